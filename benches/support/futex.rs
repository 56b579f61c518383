//! A rival that no other can beat: the kernel's sleep and wake by themselves.
#![expect(unsafe_code, reason = "a system call")]
use super::group;
use core::ptr::null;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Release};

/// A word that the kernel puts threads to sleep on, and nothing else.
#[derive(Debug)]
pub(crate) struct Futex(&'static AtomicU32);

impl Futex {
    pub(crate) fn new() -> Self {
        Futex(group::plain_shared())
    }

    fn call(&self, operation: i32, number: u32) {
        // SAFETY: the word lives for ever; no timeout.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.0.as_ptr(),
                operation,
                number,
                null::<libc::timespec>(),
            )
        };
    }

    pub(crate) fn set(&self) {
        self.0.store(1, Release);
        self.call(libc::FUTEX_WAKE, 1);
    }

    pub(crate) fn wait(&self) {
        while self.0.compare_exchange(1, 0, Acquire, Acquire).is_err() {
            self.call(libc::FUTEX_WAIT, 0);
        }
    }
}
