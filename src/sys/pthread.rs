//! Sleeping by process-shared objects of POSIX: a robust mutex and a semaphore beside each word.
//!
//! Never a `pthread_cond_t`: once a process that waited on it was killed, the next signal blocks
//! for ever.
//!
//! # State
//! The mutex guards the number of those who are `asleep` on the semaphore. A sleeper compares the
//! word under the mutex and counts itself; who wakes takes as many off the count as it posts.
//!
//! # What is weaker than futexes
//! A sleeper that was killed stays counted, and one post too many is made. A kill may come between
//! the change of a word and its posts. And a post may be taken by one who came later: it is passed
//! on, but not for ever. So the count is a hint, and every sleeper looks again after [`SLICE`] at
//! the latest: a lost wake is a late one.
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

/// What the header of a segment calls this backend.
pub(crate) const BACKEND: u32 = 2;

/// The same for one who watches over words that nobody wakes it for.
const WATCH: Duration = Duration::from_millis(50);
/// As many posts at once are no sign of damage.
const MOST_POSTS: u32 = 1 << 16;

/// The sleepers of one word.
#[repr(C)]
pub(crate) struct Parker {
    mutex: Mutex,
    semaphore: UnsafeCell<libc::sem_t>,
    asleep: AtomicU32,
    /// How often a post may still be passed on by one who was not meant.
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
        // SAFETY: the memory is a semaphore's, and nobody uses it yet.
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
            return Wake::Woken; // whoever posted it has taken us off the count
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

    /// Passes a post on that was meant for one who fell asleep before: the word has not changed
    /// since we did.
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

    /// Under the mutex.
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
            // SAFETY: initialised by `place`. That it counts no higher is no loss: nobody is asleep
            // then.
            self.semaphore.with_mut(|semaphore| unsafe { libc::sem_post(semaphore) });
        }
    }
}

/// Nobody can sleep on a word without a `Parker`: it is looked at now and then.
pub(crate) fn wake_all(_word: &AtomicU32) {}

unsafe extern "C" {
    fn sem_clockwait(
        semaphore: *mut libc::sem_t,
        clock: libc::clockid_t,
        until: *const libc::timespec,
    ) -> libc::c_int;
}
