//! A robust process-shared mutex of POSIX, and the calling thread as its owner.
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

/// How long a sleeper sleeps without a look.
pub(super) const SLICE: Duration = Duration::from_millis(100);
/// How many locks a thread may hold; the kernel stops at 2,048 of all kinds.
const MAX_HELD: usize = 1_000;

/// A mutex that reports the death of its owner, and that its owner cannot take twice.
#[repr(C)]
pub(crate) struct Mutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: made for use by many threads.
unsafe impl Sync for Mutex {}
// SAFETY: it is moved before it is initialised only.
unsafe impl Send for Mutex {}

/// What an attempt to take a mutex came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Taken,
    /// Taken, and consistent again.
    TakenFromTheDead,
    Busy,
    Mine,
    TimedOut,
    /// No mutex, or one that somebody damaged.
    Broken,
}

impl Default for Mutex {
    fn default() -> Self {
        // SAFETY: bytes; they are no mutex before `place`.
        Mutex(UnsafeCell::new(unsafe { core::mem::zeroed() }))
    }
}

impl core::fmt::Debug for Mutex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Mutex")
    }
}

impl Mutex {
    /// Makes a free mutex of whatever lies there. Nobody may use it yet.
    pub(crate) fn place(&self) {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: makes attributes in a live variable.
        let mut failed = unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: changes attributes that have been made.
        failed |=
            unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        // SAFETY: as above.
        failed |=
            unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: as above.
        failed |=
            unsafe { libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK) };
        // SAFETY: the memory is a mutex's, and the caller says that nobody uses it.
        failed |= self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_init(mutex, attributes) });
        assert_eq!(failed, 0, "the C library has no robust process-shared mutexes");
        // SAFETY: made above, and not used again.
        unsafe { libc::pthread_mutexattr_destroy(attributes) };
    }

    /// Takes the mutex if nobody alive has it.
    pub(crate) fn try_take(&self) -> Outcome {
        // SAFETY: a mutex, or bytes of which the C library makes what it can.
        let r = self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_trylock(mutex) });
        self.judge(r)
    }

    /// Takes the mutex, waiting for it until `deadline`.
    pub(crate) fn take_until(&self, deadline: Deadline) -> Outcome {
        loop {
            // In the GNU C library a wake is lost if the one woken is killed while a third has the
            // mutex.
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

    /// Gives the mutex up, which the calling thread has taken.
    pub(crate) fn give_up(&self) {
        // SAFETY: the caller's promise; and if it is not so, the mutex refuses.
        self.0.with_mut(|mutex| unsafe { libc::pthread_mutex_unlock(mutex) });
    }

    /// Takes the mutex for a few instructions. A damaged one guards nothing, and stops nobody.
    pub(super) fn lock(&self) -> Held<'_> {
        match self.take_until(Deadline::NEVER) {
            Outcome::Taken | Outcome::TakenFromTheDead => Held(Some(self)),
            _ => Held(None),
        }
    }
}

/// Gives the mutex up when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(Option<&'a Mutex>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(mutex) = self.0 {
            mutex.give_up();
        }
    }
}

thread_local! {
    /// The calling thread's id. 0 until first used, and after fork for as long as it is held back.
    static FAST: Cell<u32> = const { Cell::new(0) };
    /// The same, also if it is held back.
    static KNOWN: Cell<u32> = const { Cell::new(0) };
    /// How many locks it holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The C library lists every mutex at once.
pub(crate) fn set_eager(_eager: bool) {}

/// The calling thread as owner of robust words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    tid: u32,
    not_send: PhantomData<*const ()>,
}

impl Thread {
    /// The calling thread, if it is known already.
    #[inline(always)]
    pub(crate) fn fast() -> Option<Thread> {
        match FAST.get() {
            0 => None,
            tid => Some(Thread { tid, not_send: PhantomData }),
        }
    }

    /// The calling thread.
    pub(crate) fn current() -> Result<Thread, Fault> {
        if KNOWN.get() == 0 {
            if super::thread::is_elsewhere() {
                return Err(Fault::OtherPidNamespace);
            }
            KNOWN.set(super::thread::id());
        }
        if !super::thread::is_held_back() {
            FAST.set(KNOWN.get());
        }
        Ok(Thread { tid: KNOWN.get(), not_send: PhantomData })
    }

    /// What this thread writes beside the mutexes that it owns.
    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    /// Counts a lock that is about to be taken.
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

    /// One that was not, or has been given up.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn end(self) {
        HELD.set(HELD.get().saturating_sub(1));
    }

    /// Nobody is woken by the death of a thread: it is looked for.
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn toll(self, _bell: &AtomicU32) {}

    /// See there.
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn untoll(self) {}
}

/// The list is the C library's own: whether a thread owns a word is to be asked of the word.
pub(crate) fn is_held_within(_start: usize, _len: usize) -> bool {
    false
}

/// The list is the C library's own.
pub(crate) fn forget_within(_start: usize, _len: usize) {}

/// To be called in the child of a fork: its thread has another id, and none of its parent's locks.
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
