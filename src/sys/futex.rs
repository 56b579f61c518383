//! The backend for Linux futexes, on memory shared between processes (never `FUTEX_PRIVATE_FLAG`).
//!
//! If a system call is not allowed, the process goes on. Sandboxes and kernels before 5.16 do not
//! allow `futex_waitv`. Then a thread that waits for several words sleeps on one of them, and
//! checks the others every 10 ms. If `FUTEX_WAKE_OP` is not allowed, the change and the wake are
//! two steps, and a kill between them loses the wake.
//!
//! Sources: futex(2), futex_waitv (Linux 5.16), and the kernel's documentation of `FUTEX_WAKE_OP`.
#![expect(unsafe_code, reason = "system calls on addresses")]
use super::clock::time_after;
use super::{Change, Wake, Watch, hooks};
use crate::deadline::Deadline;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{Acquire, SeqCst};
use core::ptr::{self, null};
use core::time::Duration;

/// The number of this backend in the header of a segment.
pub(crate) const BACKEND: u32 = 1;

/// How long a thread sleeps on one word if the kernel does not let it sleep on several.
const SLICE: Duration = Duration::from_millis(10);

/// An empty struct: the kernel keeps the queue of sleepers.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Parker(());

impl Parker {
    /// Does nothing.
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn place(&self) {}

    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn park(&self, word: &AtomicU32, expected: u32, deadline: Deadline) -> Wake {
        let timeout = match deadline.remaining() {
            None => None,
            Some(left) if left.is_zero() => return Wake::TimedOut,
            // If the kernel cannot represent the length, the thread sleeps without a limit.
            Some(left) => i64::try_from(left.as_secs()).ok().map(|seconds| libc::timespec {
                tv_sec: seconds,
                tv_nsec: i64::from(left.subsec_nanos()),
            }),
        };
        let timeout = timeout.as_ref().map_or(null(), ptr::from_ref);
        // SAFETY: `word` is a live, aligned u32; `timeout` is null or points to a live timespec.
        let r = unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, timeout)
        };
        if r == 0 {
            return Wake::Woken;
        }
        match errno() {
            libc::EAGAIN | libc::EINTR => Wake::Woken,
            libc::ETIMEDOUT => Wake::TimedOut,
            _ => {
                // The kernel does not allow the wait. A short sleep is better than to spin.
                std::thread::sleep(Duration::from_millis(1));
                Wake::Woken
            }
        }
    }

    pub(crate) fn park_beside(
        &self,
        word: &AtomicU32,
        expected: u32,
        beside: Watch<'_>,
        deadline: Deadline,
    ) -> Wake {
        let until = match deadline.remaining() {
            None => None,
            Some(left) if left.is_zero() => return Wake::TimedOut,
            Some(left) => Some(time_after(left)),
        };
        // The order matters. If a wake of `word` comes after the thread was queued for it, the
        // thread returns. If it comes before, the comparison of `beside` is later than the wake.
        let both = [waiter(Watch { word, expected }), waiter(beside)];
        sleep_at(&both, until.as_ref()).unwrap_or_else(|WaitRefused| {
            // A wake before the sleep is lost, so both words are compared again after each slice.
            while !has_changed(&beside) {
                match self.park(word, expected, deadline.at_most(SLICE)) {
                    Wake::TimedOut if !deadline.is_over() => {}
                    wake => return wake,
                }
            }
            Wake::Woken
        })
    }

    pub(crate) fn park_any(&self, word: &AtomicU32, expected: u32, others: &[Watch<'_>]) {
        let own = Watch { word, expected };
        let mut waiters = Vec::with_capacity(others.len() + 1);
        waiters.push(waiter(own));
        waiters.extend(others.iter().copied().map(waiter));
        let look_again = time_after(hooks::sentinel_look(Duration::from_secs(1)));
        if let Err(WaitRefused) = sleep_at(&waiters, Some(&look_again))
            && !has_changed(&own)
            && !others.iter().any(has_changed)
        {
            // The first word is the bell, by which the kernel tells of a death. The caller checks
            // the other words after the slice.
            let first = others.first().unwrap_or(&own);
            self.park(first.word, first.expected, Deadline::after(SLICE));
        }
    }

    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn unpark(&self, word: &AtomicU32, n: u32) -> usize {
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        // SAFETY: `word` is a live, aligned u32.
        let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, n) };
        usize::try_from(woken).unwrap_or(0)
    }

    pub(crate) fn change_and_unpark(
        &self,
        word: &AtomicU32,
        changed: &AtomicU32,
        change: Change,
        n: u32,
    ) -> usize {
        let (op, argument): (u32, u32) = match change {
            Change::Clear => (0, 0),
            Change::OrOne => (2, 1),
            Change::AddOne => (1, 1),
            Change::ClearLowestTwo => (3, 3), // FUTEX_OP_ANDN
        };
        // The call also wakes sleepers of the changed word if a comparison of its old value is
        // true, and at least one even if it is told to wake none. The comparison here is with 2^32
        // - 1, a value that words hardly ever have. If they do, this is a wake for no reason.
        let op = (op << 28) | (argument << 12) | 0xfff;
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        // SAFETY: both addresses are of live, aligned u32s.
        let woken = unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAKE_OP,
                n,
                0usize,
                changed.as_ptr(),
                op,
            )
        };
        usize::try_from(woken).unwrap_or_else(|_| {
            match change {
                Change::Clear => changed.store(0, SeqCst),
                Change::OrOne => _ = changed.fetch_or(1, SeqCst),
                Change::AddOne => _ = changed.fetch_add(1, SeqCst),
                Change::ClearLowestTwo => _ = changed.fetch_and(!3, SeqCst),
            }
            self.unpark(word, u32::try_from(n).unwrap_or(0))
        })
    }
}

/// The kernel's `struct futex_waitv`.
#[repr(C)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

fn waiter(watch: Watch<'_>) -> Waiter {
    const FUTEX2_SIZE_U32: u32 = 2;
    Waiter {
        value: u64::from(watch.expected),
        address: watch.word.as_ptr().expose_provenance() as u64,
        flags: FUTEX2_SIZE_U32,
        reserved: 0,
    }
}

/// The error that the kernel does not let a thread sleep on several words: it is too old, a sandbox
/// forbids it, or there is no memory.
#[derive(Debug)]
struct WaitRefused;

fn has_changed(watch: &Watch<'_>) -> bool {
    watch.word.load(Acquire) != watch.expected
}

/// Sleeps until one of the words has another value or is woken, or until the monotonic clock
/// reaches `until`.
fn sleep_at(waiters: &[Waiter], until: Option<&libc::timespec>) -> Result<Wake, WaitRefused> {
    // SAFETY: `waiters` has this many entries, each with the address of a live, aligned u32. The
    // time is null or live.
    let r = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            waiters.len(),
            0,
            until.map_or(null(), ptr::from_ref),
            libc::CLOCK_MONOTONIC,
        )
    };
    if r >= 0 {
        return Ok(Wake::Woken);
    }
    match errno() {
        libc::EAGAIN | libc::EINTR => Ok(Wake::Woken),
        libc::ETIMEDOUT => Ok(Wake::TimedOut),
        _ => Err(WaitRefused),
    }
}

/// Wakes all sleepers of a word that has no `Parker`.
pub(crate) fn wake_all(word: &AtomicU32) {
    Parker::default().unpark(word, u32::MAX);
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
