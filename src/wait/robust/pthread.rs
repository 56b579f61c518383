//! A robust word that is a robust mutex of POSIX, with its owner's thread id beside it.
//!
//! # State
//! | owner | mutex | meaning |
//! |---|---|---|
//! | 0 | free | free |
//! | tid | held | owned by that thread |
//! | tid | its owner died | the same, until somebody looks or takes |
//! | `OWNER_DIED` | free | marked: its owner died; free to be taken, by one who must know |
//! | [`UNPLACED`] | none yet | made, but not yet where it will stay |
//!
//! # Invariants
//! - I1. `owner` is written by who holds the mutex only.
//! - I2. Who takes the mutex from the dead, or finds `owner` marked, says so to its caller or marks
//!   it again.
//!
//! # Death
//! The kernel gives the mutex back, at every instruction. Killed between the mutex and `owner`:
//! taking, the next is told of a death without a section; giving up, of a section that was
//! complete.
//!
//! One kind of death is not detected: the kernel marks no mutex of a thread that calls exec and is
//! not the first thread of its process, and a mutex of the C library's cannot be marked in its
//! stead. Only a token, whose mutex nobody waits for, can.
use super::{OWNER, OWNER_DIED, Refused, Taken, UNPLACED};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sys::robust::{Mutex, Outcome, Thread};
use crate::sys::thread;
use crate::wait::TimedOut;

/// The mutex, its owner, and a little room that the owner may use.
#[repr(C, align(8))]
#[derive(Debug)]
pub(crate) struct RobustWord {
    mutex: Mutex,
    owner: AtomicU32,
    /// The page at which the owner has the word mapped. Written by the owner.
    page: AtomicU32,
    /// For the user of the word: [`crate::Lock`]'s poison, or who a slot belongs to.
    pub(crate) note: [AtomicU32; 4],
}

impl RobustWord {
    /// A mutex must be initialised where it lies.
    pub(crate) const ZERO_IS_PLACED: bool = false;

    /// Free, but not yet usable.
    pub(crate) fn new() -> Self {
        RobustWord {
            mutex: Mutex::default(),
            owner: AtomicU32::new(UNPLACED),
            page: AtomicU32::new(0),
            note: Default::default(),
        }
    }

    /// Makes the word usable where it lies.
    pub(crate) fn place(&self) {
        self.mutex.place();
        self.owner.store(0, Relaxed);
    }

    /// The owner's thread id, or what the table says. Looks whether the owner still lives, so that
    /// it is a moment's owner itself if not.
    pub(crate) fn value(&self) -> u32 {
        let seen = self.owner.load(Acquire);
        if seen & OWNER == 0 || seen == UNPLACED {
            return seen;
        }
        match self.mutex.try_take() {
            Outcome::TakenFromTheDead => {
                self.mark();
                self.mutex.give_up();
            }
            Outcome::Taken => self.mutex.give_up(),
            Outcome::Busy | Outcome::Mine | Outcome::TimedOut | Outcome::Broken => {}
        }
        self.owner.load(Acquire)
    }

    /// Keeps I2, for one who holds the mutex without taking the word.
    fn mark(&self) {
        self.owner.store(OWNER_DIED, Release);
    }

    /// The owner as it stands beside the mutex, read in the one order of all `SeqCst` accesses.
    #[inline(always)]
    pub(crate) fn value_in_order(&self) -> u32 {
        self.owner.load(SeqCst)
    }

    /// Whether the calling thread owns the word, and took it through this mapping.
    pub(crate) fn is_mine(&self) -> bool {
        self.held().is_some()
    }

    /// The calling thread, if it owns the word, and took it through this mapping.
    pub(crate) fn held(&self) -> Option<Thread> {
        Thread::current().ok().filter(|&me| self.is_held_here_by(me))
    }

    /// Whether `me` owns the word, and took it through this mapping.
    pub(crate) fn is_held_here_by(&self, me: Thread) -> bool {
        self.is_held_by(me) && self.page.load(Relaxed) == self.page()
    }

    /// What tells two mappings of the word apart: 32 bits of the number of its page.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
    fn page(&self) -> u32 {
        (core::ptr::from_ref(self).addr() >> 12) as u32
    }

    /// Whether `me` owns the word, through whichever mapping.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, me: Thread) -> bool {
        self.owner.load(Relaxed) == me.tid()
    }

    /// Whether the calling thread is `me`, who took the word, and still owns it. Not so in the
    /// child of a fork.
    pub(crate) fn is_still(&self, me: Thread) -> bool {
        self.held().is_some_and(|now| now.tid() == me.tid())
    }

    /// What changes when the word is taken or given up.
    pub(crate) fn as_atomic(&self) -> &AtomicU32 {
        &self.owner
    }

    /// Takes the word if it is free and never was a dead one's; by whom.
    #[inline(always)]
    pub(crate) fn try_take_fast(&self) -> Option<Thread> {
        let me = Thread::fast()?;
        self.try_take_as(me, Relaxed).then_some(me)
    }

    /// The same, with the owner written in an order of the caller's: any, or the one order of all
    /// `SeqCst` accesses.
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
            Outcome::Taken => self.mutex.give_up(),
            Outcome::TakenFromTheDead => {
                self.mark();
                self.mutex.give_up();
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

    /// Takes the word if nobody alive has it.
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

    /// Gives the word up, which `me` took; what was copied by fork is left alone.
    #[inline(always)]
    pub(crate) fn give_up(&self, me: Thread) {
        self.try_give_up_if(me, || true);
    }

    /// Gives the word up if the calling thread took it, and `is_last` says so. (It is asked only by
    /// the owner.)
    #[inline(always)]
    pub(crate) fn try_give_up_if(&self, me: Thread, is_last: impl FnOnce() -> bool) -> bool {
        let given = self.is_still(me) && is_last();
        if given {
            self.owner.store(0, Release);
            self.mutex.give_up();
            me.end();
        }
        given
    }

    /// Takes the word as a token of the calling thread's life, until [`leave`](Self::leave): free,
    /// or marked by the kernel.
    pub(crate) fn enlist(&self) -> Result<bool, Fault> {
        let me = Thread::current()?;
        match self.mutex.try_take() {
            Outcome::Taken | Outcome::TakenFromTheDead => {
                self.own(me, Release); // with the page, for `leave`
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Ends what [`enlist`](Self::enlist) began, in the same thread.
    pub(crate) fn leave(&self) {
        if self.is_mine() {
            self.owner.store(0, Release);
            self.mutex.give_up();
        }
    }

    /// Marks a token in the kernel's stead if its owner does not exist. Returns whether it did.
    ///
    /// Its mutex stays taken, and so the token cannot be taken again.
    #[cold]
    pub(crate) fn mark_if_gone(&self) -> bool {
        let seen = self.value();
        let is_gone = seen & OWNER != 0 && seen != UNPLACED && !thread::exists(seen);
        is_gone && self.owner.compare_exchange(seen, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// Makes `to` the owner in place of `from`, where 0 is nobody, if `from` is the owner. The
    /// mutex stays free: only [`mark_entrusted`](Self::mark_entrusted) marks the word.
    pub(crate) fn entrust(&self, from: u32, to: u32) -> bool {
        self.owner.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }

    /// Marks an [entrusted](Self::entrust) word of `owner`.
    pub(crate) fn mark_entrusted(&self, owner: u32) -> bool {
        self.owner.compare_exchange(owner, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// Makes a marked token free again. Idempotent.
    pub(crate) fn bury(&self) {
        self.owner.compare_exchange(OWNER_DIED, 0, Release, Relaxed).ok();
    }
}
