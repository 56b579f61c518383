//! The named points of the source themselves: a process stops, is killed, or is held there.
//!
//! Built under `RUSTFLAGS='--cfg outlast_hooks'` only.
#![cfg(all(outlast_hooks, not(outlast_loom)))]
mod common;

use common::{KILLED, fork_child, ms};
use outlast::hooks::{self, Action};
use outlast::{Lock, Shared};

const POINT: &str = "wait: about to sleep";

/// A child that waits for the lock, which the caller holds, with `action` planned.
fn waiter(lock: &Shared<Lock<u32>>, action: Action) -> common::Child {
    let lock = lock.clone();
    fork_child(move || {
        hooks::plan(POINT, action);
        *lock.lock().unwrap() += 1;
        assert!(hooks::visits(POINT) > 0);
    })
}

fn lock() -> Shared<Lock<u32>> {
    Shared::anonymous(Lock::new(0)).unwrap()
}

#[test]
fn a_process_stops_at_a_point() {
    let lock = lock();
    let guard = lock.lock().unwrap();
    let child = waiter(&lock, Action::Stop);
    child.until_stopped();
    drop(guard);
    std::thread::sleep(ms(30));
    assert_eq!(*lock.lock().unwrap(), 0);
    child.signal(libc::SIGCONT);
    child.succeeds();
    assert_eq!(*lock.lock().unwrap(), 1);
}

#[test]
fn a_process_is_killed_at_a_point() {
    let lock = lock();
    let guard = lock.lock().unwrap();
    assert_eq!(waiter(&lock, Action::Kill).wait(), KILLED);
    drop(guard);
    assert_eq!(*lock.lock().unwrap(), 0);
}

#[test]
fn a_thread_is_held_at_a_point_until_the_plan_is_cleared() {
    let lock = lock();
    let guard = lock.lock().unwrap();
    hooks::plan(POINT, Action::Hold);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| *lock.lock().unwrap() += 1);
        common::eventually("the waiter comes to the point", || hooks::visits(POINT) > 0);
        drop(guard);
        std::thread::sleep(ms(30));
        assert!(!waiter.is_finished());
        hooks::clear();
        waiter.join().unwrap();
    });
    assert_eq!(*lock.lock().unwrap(), 1);
}
