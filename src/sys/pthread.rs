//! The backend for process-shared POSIX objects: a robust mutex and a semaphore beside each word.
//!
//! It does not use `pthread_cond_t`. If a process that waits on one is killed, the next signal
//! blocks for ever.
//!
//! # State
//! The mutex guards `asleep`, the number of threads that sleep on the semaphore. A sleeper locks
//! the mutex, compares the word and counts itself. A thread that wakes others subtracts the number
//! of its posts from the count.
//!
//! # What is weaker than futexes
//! - A sleeper that is killed stays in the count, and one post too many is made.
//! - A kill may come between the change of a word and its posts.
//! - A thread that came later may take a post. It passes the post on, but only a limited number of
//!   times.
//!
//! So the count is only a hint. Every sleeper checks its word again after at most [`SLICE`], so a
//! lost wake is a late wake.
//!
//! Sources: POSIX.1-2024, which has the calls with a choice of clock that the GNU C library 2.30
//! brought.
#![expect(unsafe_code, reason = "calls the C library on addresses")]
use super::clock::time_after;
use super::robust::{Mutex, SLICE};
use super::{Change, Wake, Watch};
use crate::deadline::Deadline;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::time::Duration;

/// The number of this backend in the header of a segment.
pub(crate) const BACKEND: u32 = 2;

/// The longest sleep of a thread that watches words for which no thread wakes it.
const WATCH: Duration = Duration::from_millis(50);
/// The greatest number of posts at a time. A damaged count may be greater.
const MOST_POSTS: u32 = 1 << 16;

/// The sleepers of one word.
#[repr(C)]
pub(crate) struct Parker {
    mutex: Mutex,
    semaphore: UnsafeCell<libc::sem_t>,
    asleep: AtomicU32,
    /// How often a thread that came later may still pass a post on.
    forwards: AtomicU32,
}

// SAFETY: the semaphore is made for use by many threads, and the rest are atomics.
unsafe impl Sync for Parker {}
// SAFETY: as above; it belongs to no thread.
unsafe impl Send for Parker {}

impl Default for Parker {
    fn default() -> Self {
        // SAFETY: bytes; they are no semaphore before `place`.
        let semaphore = unsafe { core::mem::zeroed() };
        Parker {
            mutex: Mutex::default(),
            semaphore: UnsafeCell::new(semaphore),
            asleep: AtomicU32::new(0),
            forwards: AtomicU32::new(0),
        }
    }
}

impl core::fmt::Debug for Parker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Parker").field("asleep", &self.asleep).finish_non_exhaustive()
    }
}

impl Parker {
    pub(crate) fn place(&self) {
        self.mutex.place();
        self.asleep.store(0, Relaxed);
        self.forwards.store(0, Relaxed);
        // SAFETY: the memory is that of a semaphore, and no thread uses it yet.
        self.semaphore.with_mut(|semaphore| unsafe { libc::sem_init(semaphore, 1, 0) });
    }

    pub(crate) fn park(&self, word: &AtomicU32, expected: u32, deadline: Deadline) -> Wake {
        let left = deadline.remaining().unwrap_or(SLICE);
        if left.is_zero() {
            return Wake::TimedOut;
        }
        {
            let _held = self.mutex.lock();
            if word.load(Acquire) != expected {
                return Wake::Woken;
            }
            self.asleep.fetch_add(1, Relaxed);
        }
        let until = time_after(left.min(SLICE));
        // SAFETY: initialised by `place`; the time is live.
        let posted = self.semaphore.with_mut(|semaphore| unsafe {
            sem_clockwait(semaphore, libc::CLOCK_MONOTONIC, &raw const until)
        }) == 0;
        if posted {
            if word.load(Acquire) == expected {
                self.forward();
            }
            return Wake::Woken;
        }
        let _held = self.mutex.lock();
        // SAFETY: initialised by `place`.
        if self.semaphore.with_mut(|semaphore| unsafe { libc::sem_trywait(semaphore) }) == 0 {
            return Wake::Woken; // the thread that posted has subtracted this one from the count
        }
        let asleep = self.asleep.load(Relaxed);
        self.asleep.store(asleep.saturating_sub(1), Relaxed);
        let late = deadline.is_over();
        if late { Wake::TimedOut } else { Wake::Woken }
    }

    pub(crate) fn park_any(&self, word: &AtomicU32, expected: u32, others: &[Watch<'_>]) {
        if others.iter().all(|other| other.word.load(Acquire) == other.expected) {
            self.park(word, expected, Deadline::after(WATCH));
        }
    }

    /// Passes on a post for a thread that fell asleep earlier: the word has not changed since this
    /// thread fell asleep.
    #[cold]
    fn forward(&self) {
        let held = self.mutex.lock();
        let forwards = self.forwards.load(Relaxed);
        if forwards > 0 && self.asleep.load(Relaxed) > 0 {
            self.forwards.store(forwards - 1, Relaxed);
            self.post(1);
            drop(held);
            std::thread::yield_now();
        }
    }

    pub(crate) fn unpark(&self, _word: &AtomicU32, n: u32) -> usize {
        let _held = self.mutex.lock();
        self.wake(n)
    }

    pub(crate) fn change_and_unpark(
        &self,
        _word: &AtomicU32,
        changed: &AtomicU32,
        change: Change,
        n: u32,
    ) -> usize {
        let _held = self.mutex.lock();
        match change {
            Change::Clear => changed.swap(0, AcqRel),
            Change::OrOne => changed.fetch_or(1, AcqRel),
            Change::AddOne => changed.fetch_add(1, AcqRel),
            Change::ClearLowestTwo => changed.fetch_and(!3, AcqRel),
        };
        self.wake(n)
    }

    /// Wakes up to `n` sleepers. The caller holds the mutex.
    fn wake(&self, n: u32) -> usize {
        let asleep = self.asleep.load(Relaxed);
        let woken = n.min(asleep).min(MOST_POSTS);
        self.asleep.store(asleep - woken, Relaxed);
        self.forwards.store(woken.saturating_mul(4), Relaxed);
        self.post(woken);
        woken as usize
    }

    fn post(&self, n: u32) {
        for _ in 0..n {
            // SAFETY: initialised by `place`. If the count of the semaphore is full, no thread is
            // asleep on it.
            self.semaphore.with_mut(|semaphore| unsafe { libc::sem_post(semaphore) });
        }
    }
}

/// Does nothing: no thread sleeps on a word without a `Parker`. Threads check such a word from time
/// to time.
pub(crate) fn wake_all(_word: &AtomicU32) {}

unsafe extern "C" {
    fn sem_clockwait(
        semaphore: *mut libc::sem_t,
        clock: libc::clockid_t,
        until: *const libc::timespec,
    ) -> libc::c_int;
}
