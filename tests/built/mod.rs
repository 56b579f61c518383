//! The programs of `examples`, for tests that run them.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The path of an example's program. `cargo test` builds the examples; `cargo test --test NAME`
/// does not, and then this builds it.
pub(crate) fn built(example: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let tests = std::env::current_exe().unwrap(); // target/<profile>/deps/<test>-<hash>
    let profile = tests.parent().and_then(Path::parent).unwrap();
    let built = profile.join("examples").join(example);
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.exists() {
        let name = match profile.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", example, "--profile", name, "--target-dir"])
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.unwrap().success(), "the example does not build");
    }
    built
}
