//! The robust process-shared POSIX mutex, and the calling thread as its owner.
#![expect(unsafe_code, reason = "calls the C library on addresses")]
use super::clock::time_after;
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU32;
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::time::Duration;

/// The longest sleep between two checks.
pub(super) const SLICE: Duration = Duration::from_millis(100);
/// The number of locks that a thread may hold. The kernel reads at most 2,048 nodes of all kinds.
const MAX_HELD: usize = 1_000;

/// A mutex that reports the death of its owner, and that its owner cannot take twice.
#[repr(C)]
pub(crate) struct Mutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a mutex is made for use by many threads.
unsafe impl Sync for Mutex {}
// SAFETY: it is moved only before it is initialised.
unsafe impl Send for Mutex {}

/// The result of an attempt to take a mutex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Taken,
    /// Taken after the death of its owner. The mutex is consistent again.
    TakenFromTheDead,
    Busy,
    Mine,
    TimedOut,
    /// The memory is no mutex, or the mutex is damaged.
    Broken,
}

impl Default for Mutex {
    fn default() -> Self {
        // SAFETY: only bytes, which `place` turns into a mutex.
        Mutex(UnsafeCell::new(unsafe { core::mem::zeroed() }))
    }
}

impl core::fmt::Debug for Mutex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Mutex")
    }
}

impl Mutex {
    /// Initialises a free mutex in place. No thread may use it yet.
    pub(crate) fn place(&self) {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: initialises attributes in a live variable.
        let mut failed = unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: changes initialised attributes.
        failed |=
            unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        // SAFETY: as above.
        failed |=
            unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: as above.
        failed |=
            unsafe { libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK) };
        // SAFETY: the memory is that of a mutex, and by the caller's promise no thread uses it.
        failed |= self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_init(mutex, attributes) });
        assert_eq!(failed, 0, "the C library has no robust process-shared mutexes");
        // SAFETY: initialised above, and not used again.
        unsafe { libc::pthread_mutexattr_destroy(attributes) };
    }

    /// Takes the mutex unless a living thread owns it.
    pub(crate) fn try_take(&self) -> Outcome {
        // SAFETY: a mutex, or bytes that the C library treats as one.
        let r = self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_trylock(mutex) });
        self.judge(r)
    }

    /// Takes the mutex, waiting for it until `deadline`.
    pub(crate) fn take_until(&self, deadline: Deadline) -> Outcome {
        loop {
            // In the GNU C library a wake is lost if the woken thread is killed while a third
            // thread owns the mutex.
            let left = deadline.remaining().unwrap_or(SLICE);
            let until = time_after(left.min(SLICE));
            // SAFETY: as above; the time is live.
            let r = self.0.with_mut(|mutex| unsafe {
                pthread_mutex_clocklock(mutex, libc::CLOCK_MONOTONIC, &raw const until)
            });
            match self.judge(r) {
                Outcome::TimedOut if deadline.remaining().is_none_or(|left| !left.is_zero()) => {}
                outcome => return outcome,
            }
        }
    }

    fn judge(&self, r: libc::c_int) -> Outcome {
        match r {
            0 => Outcome::Taken,
            libc::EOWNERDEAD => {
                // SAFETY: taken by this thread just now.
                self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_consistent(mutex) });
                Outcome::TakenFromTheDead
            }
            libc::EBUSY => Outcome::Busy,
            libc::EDEADLK => Outcome::Mine,
            libc::ETIMEDOUT => Outcome::TimedOut,
            _ => Outcome::Broken,
        }
    }

    /// Unlocks the mutex, which the calling thread owns.
    pub(crate) fn unlock(&self) {
        // SAFETY: the caller's promise. If it is broken, the mutex returns an error.
        self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_unlock(mutex) });
    }

    /// Takes the mutex for a few instructions. If it is damaged, the call succeeds without it.
    pub(super) fn lock(&self) -> Held<'_> {
        match self.take_until(Deadline::NEVER) {
            Outcome::Taken | Outcome::TakenFromTheDead => Held(Some(self)),
            _ => Held(None),
        }
    }
}

/// Unlocks the mutex when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(Option<&'a Mutex>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(mutex) = self.0 {
            mutex.unlock();
        }
    }
}

thread_local! {
    /// The id of the calling thread. 0 before the first use, and in a forked child while fast paths
    /// are off.
    static FAST: Cell<u32> = const { Cell::new(0) };
    /// The same, also while fast paths are off.
    static KNOWN: Cell<u32> = const { Cell::new(0) };
    /// The number of locks that the calling thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Does nothing: the C library lists every mutex immediately.
pub(crate) fn set_eager(_eager: bool) {}

/// The calling thread as owner of robust words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    tid: u32,
    not_send: PhantomData<*const ()>,
}

impl Thread {
    /// Returns the calling thread, if it is known already.
    #[inline(always)]
    pub(crate) fn fast() -> Option<Thread> {
        match FAST.get() {
            0 => None,
            tid => Some(Thread { tid, not_send: PhantomData }),
        }
    }

    /// Returns the calling thread.
    pub(crate) fn current() -> Result<Thread, Fault> {
        if KNOWN.get() == 0 {
            if super::thread::is_in_other_namespace() {
                return Err(Fault::OtherPidNamespace);
            }
            KNOWN.set(super::thread::id());
        }
        if !super::thread::are_fast_locks_off() {
            FAST.set(KNOWN.get());
        }
        Ok(Thread { tid: KNOWN.get(), not_send: PhantomData })
    }

    /// Returns the id that this thread writes beside the mutexes that it owns.
    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    /// Counts a lock that this thread is about to take.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn begin(self) -> Result<(), Fault> {
        let held = HELD.get();
        if held >= MAX_HELD {
            return Err(Fault::TooManyLocks);
        }
        HELD.set(held + 1);
        Ok(())
    }

    /// Uncounts a lock that was not taken, or was released.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn end(self) {
        HELD.set(HELD.get().saturating_sub(1));
    }

    /// Does nothing: the death of a thread wakes no other, so threads check for deaths.
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn set_bell(self, _bell: &AtomicU32) {}

    /// Does nothing, as `set_bell`.
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn clear_bell(self) {}
}

/// Returns `false`: the C library keeps the list. The word itself tells whether a thread owns it.
pub(crate) fn is_held_within(_start: usize, _len: usize) -> bool {
    false
}

/// Does nothing: the C library keeps the list.
pub(crate) fn forget_within(_start: usize, _len: usize) {}

/// Resets the state of the thread in the child of a fork. There it has another id, and none of the
/// locks of the parent.
pub(crate) fn forget_in_child() {
    FAST.set(0);
    KNOWN.set(0);
    HELD.set(0);
}

unsafe extern "C" {
    fn pthread_mutex_clocklock(
        mutex: *mut libc::pthread_mutex_t,
        clock: libc::clockid_t,
        until: *const libc::timespec,
    ) -> libc::c_int;
}
