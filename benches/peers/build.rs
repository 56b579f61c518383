//! Compiles what stands between the benchmarks and Boost, if they are to have it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "boost")]
    boost();
}

#[cfg(feature = "boost")]
fn boost() {
    println!("cargo:rerun-if-changed=boost.cpp");
    cc::Build::new().cpp(true).std("c++14").opt_level(3).file("boost.cpp").compile("boost_queue");
    println!("cargo:rustc-link-lib=rt");
    println!("cargo:rustc-link-lib=pthread");
}
