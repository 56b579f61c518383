//! A robust word that is a robust POSIX mutex, with the thread id of its owner beside it.
//!
//! # State
//! | owner | mutex | meaning |
//! |---|---|---|
//! | 0 | free | free |
//! | tid | held | owned by that thread |
//! | tid | its owner died | owned by that thread, until another thread reads or takes the word |
//! | `OWNER_DIED` | free | marked: the owner died. It can be taken, and the new owner is told |
//! | [`UNPLACED`] | not initialised | created, but not placed yet |
//!
//! # Invariants
//! - I1. Only the thread that holds the mutex writes `owner`.
//! - I2. A thread that takes the mutex of a dead owner, or finds `owner` marked, tells its caller
//!   or marks the word again.
//!
//! # Death
//! The kernel releases the mutex, whatever the instruction at which the owner is killed. A kill can
//! come between the mutex and `owner`. While taking, the next owner is told of a death, though no
//! critical section had begun. While releasing, it is told of a death, though the section was
//! complete.
//!
//! One kind of death is not detected. The kernel does not mark the mutex of a thread that calls
//! exec and is not the first thread of its process, and no other thread can mark a mutex of the C
//! library. Only a token can be marked, because no thread waits for its mutex.
use super::{OWNER, OWNER_DIED, Refused, Taken, UNPLACED};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sys::robust::{Mutex, Outcome, Thread};
use crate::sys::thread;
use crate::wait::TimedOut;

/// The mutex, its owner, and four words for its user.
#[repr(C, align(8))]
#[derive(Debug)]
pub(crate) struct RobustWord {
    mutex: Mutex,
    owner: AtomicU32,
    /// The page at which the owner has the word mapped. Written by the owner.
    page: AtomicU32,
    /// For the user of the word: the poison of a [`crate::Lock`], or the owner of a slot.
    pub(crate) note: [AtomicU32; 4],
}

impl RobustWord {
    /// Whether zero-filled memory is a free word: a mutex must be initialised in place.
    pub(crate) const ZERO_IS_PLACED: bool = false;

    /// Creates a free word, which must be placed before it is used.
    pub(crate) fn new() -> Self {
        RobustWord {
            mutex: Mutex::default(),
            owner: AtomicU32::new(UNPLACED),
            page: AtomicU32::new(0),
            note: Default::default(),
        }
    }

    /// Initialises the word in place.
    pub(crate) fn place(&self) {
        self.mutex.place();
        self.owner.store(0, Relaxed);
    }

    /// Returns the thread id of the owner, or another value of the table. To find out whether the
    /// owner lives, the calling thread tries to take the mutex, and may own it for a moment.
    pub(crate) fn value(&self) -> u32 {
        let seen = self.owner.load(Acquire);
        if seen & OWNER == 0 || seen == UNPLACED {
            return seen;
        }
        match self.mutex.try_take() {
            Outcome::TakenFromTheDead => {
                self.mark();
                self.mutex.unlock();
            }
            Outcome::Taken => self.mutex.unlock(),
            Outcome::Busy | Outcome::Mine | Outcome::TimedOut | Outcome::Broken => {}
        }
        self.owner.load(Acquire)
    }

    /// Keeps I2 in a thread that holds the mutex without taking the word.
    fn mark(&self) {
        self.owner.store(OWNER_DIED, Release);
    }

    /// Returns the owner that is noted beside the mutex, read by a `SeqCst` load.
    #[inline(always)]
    pub(crate) fn value_in_order(&self) -> u32 {
        self.owner.load(SeqCst)
    }

    /// Returns whether the calling thread owns the word, and took it through this mapping.
    pub(crate) fn is_mine(&self) -> bool {
        self.held().is_some()
    }

    /// Returns the calling thread if it owns the word, and took it through this mapping.
    pub(crate) fn held(&self) -> Option<Thread> {
        Thread::current().ok().filter(|&me| self.is_held_here_by(me))
    }

    /// Returns whether `me` owns the word, and took it through this mapping.
    pub(crate) fn is_held_here_by(&self, me: Thread) -> bool {
        self.is_held_by(me) && self.page.load(Relaxed) == self.page()
    }

    /// Returns 32 bits of the number of the page of the word, which tell two mappings apart.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
    fn page(&self) -> u32 {
        (core::ptr::from_ref(self).addr() >> 12) as u32
    }

    /// Returns whether `me` owns the word, through any mapping.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, me: Thread) -> bool {
        self.owner.load(Relaxed) == me.tid()
    }

    /// Returns whether the calling thread is `me`, which took the word, and still owns it. Returns
    /// `false` in the child of a fork.
    pub(crate) fn is_still(&self, me: Thread) -> bool {
        self.held().is_some_and(|now| now.tid() == me.tid())
    }

    /// Returns an atomic that changes when the word is taken or released.
    pub(crate) fn as_atomic(&self) -> &AtomicU32 {
        &self.owner
    }

    /// Takes the word if it is free and not marked. Returns the calling thread if it took the word.
    #[inline(always)]
    pub(crate) fn try_take_fast(&self) -> Option<Thread> {
        let me = Thread::fast()?;
        self.try_take_as(me, Relaxed).then_some(me)
    }

    /// Takes the word if it is free and not marked. `owner` is written with this order.
    #[inline(always)]
    pub(crate) fn try_take_as(&self, me: Thread, order: Ordering) -> bool {
        if self.owner.load(Relaxed) != 0 || me.begin().is_err() {
            return false;
        }
        match self.mutex.try_take() {
            Outcome::Taken if self.owner.load(Relaxed) == 0 => {
                self.own(me, order);
                return true;
            }
            Outcome::Taken => self.mutex.unlock(),
            Outcome::TakenFromTheDead => {
                self.mark();
                self.mutex.unlock();
            }
            Outcome::Busy | Outcome::Mine | Outcome::TimedOut | Outcome::Broken => {}
        }
        me.end();
        false
    }

    #[inline(always)]
    fn own(&self, me: Thread, order: Ordering) {
        self.page.store(self.page(), Relaxed);
        self.owner.store(me.tid(), order);
    }

    /// Takes the word unless a living thread owns it.
    #[cold]
    pub(crate) fn try_take(&self) -> Result<(Taken, Thread), Refused> {
        self.take(Mutex::try_take).unwrap_or(Err(Refused::Busy))
    }

    /// Takes the word, waiting for it until `deadline`.
    #[cold]
    pub(crate) fn take_until(
        &self,
        deadline: Deadline,
    ) -> Result<Result<(Taken, Thread), Refused>, TimedOut> {
        self.take(|mutex| match mutex.try_take() {
            Outcome::Busy => mutex.take_until(deadline),
            outcome => outcome,
        })
    }

    fn take(
        &self,
        take: impl FnOnce(&Mutex) -> Outcome,
    ) -> Result<Result<(Taken, Thread), Refused>, TimedOut> {
        let me = match Thread::current() {
            Ok(me) => me,
            Err(fault) => return Ok(Err(Refused::Failed(fault))),
        };
        let seen = self.owner.load(Relaxed);
        if seen == UNPLACED {
            return Ok(Err(Refused::Unplaced));
        }
        if seen == me.tid() {
            return Ok(Err(Refused::Mine));
        }
        if let Err(fault) = me.begin() {
            return Ok(Err(Refused::Failed(fault)));
        }
        let outcome = take(&self.mutex);
        if matches!(outcome, Outcome::Taken | Outcome::TakenFromTheDead) {
            let marked = self.owner.load(Relaxed) & OWNER_DIED != 0;
            self.own(me, SeqCst);
            let clean = outcome == Outcome::Taken && !marked;
            return Ok(Ok((if clean { Taken::Clean } else { Taken::FromTheDead }, me)));
        }
        me.end();
        match outcome {
            Outcome::TimedOut => Err(TimedOut),
            Outcome::Busy => Ok(Err(Refused::Busy)),
            Outcome::Mine => Ok(Err(Refused::Mine)),
            _ => Ok(Err(Refused::Failed(Fault::Corrupt))),
        }
    }

    /// Unlocks the word that `me` took. Does nothing for a copy that fork made.
    #[inline(always)]
    pub(crate) fn unlock(&self, me: Thread) {
        self.try_unlock_if(me, || true);
    }

    /// Unlocks the word if the calling thread took it and `is_last` returns `true`. Returns whether
    /// it did. `is_last` is called only in the owner.
    #[inline(always)]
    pub(crate) fn try_unlock_if(&self, me: Thread, is_last: impl FnOnce() -> bool) -> bool {
        let unlocks = self.is_still(me) && is_last();
        if unlocks {
            self.owner.store(0, Release);
            self.mutex.unlock();
            me.end();
        }
        unlocks
    }

    /// Takes the word, if it is free or marked, as the token of the calling thread, until
    /// [`free_token`](Self::free_token). Returns whether it did.
    pub(crate) fn take_token(&self) -> Result<bool, Fault> {
        let me = Thread::current()?;
        match self.mutex.try_take() {
            Outcome::Taken | Outcome::TakenFromTheDead => {
                self.own(me, Release); // with the page, for `free_token`
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Releases the token that the calling thread took with [`take_token`](Self::take_token).
    pub(crate) fn free_token(&self) {
        if self.is_mine() {
            self.owner.store(0, Release);
            self.mutex.unlock();
        }
    }

    /// Marks a token, as the kernel would, if its owner does not exist. Returns whether it did.
    ///
    /// The mutex stays taken, so the token cannot be taken again.
    #[cold]
    pub(crate) fn mark_if_gone(&self) -> bool {
        let seen = self.value();
        let is_gone = seen & OWNER != 0 && seen != UNPLACED && !thread::exists(seen);
        is_gone && self.owner.compare_exchange(seen, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// Makes `to` the owner if `from` is the owner. 0 stands for no owner. The mutex stays free, so
    /// only [`mark_transferred`](Self::mark_transferred) marks the word.
    pub(crate) fn transfer(&self, from: u32, to: u32) -> bool {
        self.owner.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }

    /// Marks a word that [`transfer`](Self::transfer) gave to `owner`.
    pub(crate) fn mark_transferred(&self, owner: u32) -> bool {
        self.owner.compare_exchange(owner, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// Makes a marked token free again. Idempotent.
    pub(crate) fn clear_mark(&self) {
        self.owner.compare_exchange(OWNER_DIED, 0, Release, Relaxed).ok();
    }
}
