//! A program with large thread-local memory, which the GNU C library takes from each thread's
//! stack.
#![cfg(not(outlast_loom))]
use core::cell::Cell;
use outlast::{OwnedSemaphore, Shared};

const LENGTH: usize = 1 << 20;

thread_local! {
    static LARGE: [Cell<u8>; LENGTH] = const { [const { Cell::new(0) }; LENGTH] };
}

#[test]
fn a_sentinel_has_a_stack() {
    LARGE.with(|bytes| bytes[7].set(1));
    let here = Shared::anonymous(OwnedSemaphore::new(1)).unwrap();
    let there = Shared::<OwnedSemaphore>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    drop(there.acquire().unwrap());
    drop(there); // the other sentinel walks over all
    drop(here.acquire().unwrap());
}
