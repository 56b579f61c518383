//! Pools and processes under the usual test harness, whose `main` is not the test's.
#![cfg(not(outlast_loom))]
use outlast::pool::{Pool, TaskError};
use outlast::process::Process;

outlast::init_in_tests!();

fn square(x: u64) -> u64 {
    x * x
}

fn parent((): ()) -> u32 {
    std::os::unix::process::parent_id()
}

fn panics(x: u64) -> u64 {
    panic!("refuses {x}")
}

#[test]
fn a_process() {
    assert_eq!(Process::spawn(square, 12).unwrap().join().unwrap(), 144);
    // It is a fork of the fork server, not of this process.
    assert_ne!(Process::spawn(parent, ()).unwrap().join().unwrap(), std::process::id());
}

#[test]
fn a_pool() {
    let pool = Pool::builder().workers(2).build().unwrap();
    let squares: Result<Vec<u64>, _> = pool.map(square, 0..1_000).collect();
    assert_eq!(squares.unwrap()[999], 998_001);
    let result = pool.apply(panics, 7);
    assert!(
        matches!(result, Err(TaskError::Panicked { ref message, .. }) if message == "refuses 7")
    );
}

#[test]
fn several_pools_at_once() {
    let threads: Vec<_> = (0..4)
        .map(|i| {
            std::thread::spawn(move || {
                let pool = Pool::builder().workers(1).build().unwrap();
                pool.map(square, 0..100).map(Result::unwrap).sum::<u64>() + i
            })
        })
        .collect();
    for (thread, i) in threads.into_iter().zip(0..) {
        assert_eq!(thread.join().unwrap(), 328_350 + i);
    }
}
