//! A robust word that is a futex. It holds the thread id of its owner, and the kernel finds it in
//! the robust list of that thread.
//!
//! Beside the word lies `armed`, a count of how often the word was armed and disarmed. The count is
//! odd while a thread may be asleep.
//!
//! # State
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | tid + `WAITERS` | owned by that thread |
//! | `OWNER_DIED` + `WAITERS` | marked: the owner ended while owning the word. It can be taken, and the new owner is told |
//! | [`UNPLACED`] | created, but not placed yet |
//!
//! | armed | next value |
//! |---|---|
//! | even: no thread is asleep | odd, written by a thread that is about to sleep |
//! | odd: a thread may be asleep | even, written by a thread that has released the word and woken no thread. If two threads do so, the count is odd again, which is allowed |
//!
//! # Invariants
//! - I1. If a thread is asleep on the word, `armed` has been odd since before that thread last read
//!   the word. The kernel puts the thread to sleep only if `armed` still has the value that the
//!   thread read then. The thread that makes `armed` even wakes all sleepers in the same system
//!   call.
//! - I2. A word that is owned has `WAITERS`. Only the kernel reads this bit: if the owner ends, the
//!   kernel wakes one sleeper.
//! - I3. The node of the word is in the `pending` field or in the robust list of the owner's
//!   thread. This is so from before the thread takes the word until after it has released the word
//!   and woken a sleeper.
//! - I4. The thread that releases the word reads `armed` afterwards, and wakes one sleeper if it is
//!   odd. If this thread is killed in between, the kernel wakes one sleeper because of I3, provided
//!   that the word is free. If the word has an owner by then, that owner will wake one.
//! - I5. Only the owner releases a word, through the address through which it took the word: its
//!   entry is there (`sys/robust_futex.rs`, I1). After the release the node is in no list of that
//!   thread, because the next owner writes the links.
//! - I6. The owner of a word exists, or the word is marked. The kernel marks it, or a waiting
//!   thread does after it has found that no thread has the id of the owner. Waiting threads check
//!   this once a second, and when a sleep ends with its time. The kernel does not mark the word if
//!   the owner calls exec and is not the first thread of its process: that thread gets the id of
//!   the process before the kernel walks its list, whose words have the old id. One gap remains. A
//!   waiting thread may pause between the check and its compare-exchange. Meanwhile a new thread
//!   may get the id and take the word, which is then marked although its owner lives. A second
//!   check would not close the gap, because the pause can follow it.
//!
//! # Ordering
//! Taking the word is an Acquire and releasing it a Release. (A change by the kernel is a full
//! fence.) So the next owner sees all writes of the last one.
//!
//! The release is a plain store. The read of `armed` after it must not move before it: of a thread
//! that releases and a thread that is about to sleep, at least one has to see the other. The
//! sleeper pays for both fences. These are not certain (see `sys/fence.rs`), so its first sleep is
//! bounded. (While `armed` does not move, every thread that did not see it odd has released the
//! word before the bounded sleep.) So an uncontended critical section has one locked
//! instruction.
//!
//! # Death
//! - Killed before the compare-exchange that takes the word: nothing has happened. If the word was
//!   free, the kernel wakes one sleeper.
//! - Killed from then until the releasing store: the kernel sets `OWNER_DIED` and wakes one
//!   sleeper.
//! - Killed after the store: nothing, or the kernel wakes one more sleeper (I4).
//! - A woken sleeper that is killed before it takes the word has the node in `pending`. So the
//!   kernel wakes the next sleeper, unless the word has an owner, which will wake one.
//!
//! The usual futex lock (store 0 and wake one sleeper, if a bit of the word says that one sleeps)
//! lacks I1. There, a newcomer may take the word and see no waiter. If the woken sleeper is then
//! killed, the others sleep for ever.
use super::{OWNER, OWNER_DIED, PATIENCE, Refused, Taken, UNPLACED, WAITERS};
use crate::deadline::Deadline;
#[cfg(not(outlast_loom))]
use crate::error::Fault;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sys::robust::{Links, Thread};
#[cfg(not(outlast_loom))]
use crate::sys::thread;
use crate::sys::{Change, Wake, Watch, fence, hooks};
use crate::wait::operation::{self, Armed, Fence, Operation, Sleep};
use crate::wait::verbs::Verb;
use crate::wait::{TimedOut, WaitWord};

/// The word, its node for the robust list, and between them four words for its user.
#[repr(C, align(8))]
#[derive(Debug)]
pub(crate) struct RobustWord {
    word: WaitWord,
    /// Odd if a thread may be asleep.
    armed: AtomicU32,
    /// For the user of the word: the poison of a [`crate::Lock`], or the owner of a slot.
    pub(crate) note: [AtomicU32; 4],
    links: Links,
}

#[cfg(not(outlast_loom))]
const _: () = {
    assert!(core::mem::offset_of!(RobustWord, word) == 0);
    assert!(core::mem::offset_of!(RobustWord, links) == 24);
    assert!(size_of::<RobustWord>() == 40);
};

impl RobustWord {
    /// Whether zero-filled memory is a free word.
    #[cfg(not(outlast_loom))]
    pub(crate) const ZERO_IS_PLACED: bool = true;

    /// Creates a free word, which must be placed before it is used.
    pub(crate) fn new() -> Self {
        RobustWord {
            word: WaitWord::new(UNPLACED),
            armed: AtomicU32::new(0),
            note: Default::default(),
            links: Links::default(),
        }
    }

    /// Initialises the word in place.
    pub(crate) fn place(&self) {
        self.word.value.store(0, Relaxed);
    }

    /// Returns the value of the word.
    pub(crate) fn value(&self) -> u32 {
        self.word.value.load(Acquire)
    }

    /// Returns the value, read by a `SeqCst` load.
    #[inline(always)]
    pub(crate) fn value_in_order(&self) -> u32 {
        self.word.value.load(SeqCst)
    }

    /// Returns whether the calling thread owns the word, and took it through this mapping (I5).
    pub(crate) fn is_mine(&self) -> bool {
        self.held().is_some()
    }

    /// Returns whether the calling thread is `me`, which took the word, and still owns it. Returns
    /// `false` in the child of a fork.
    pub(crate) fn is_still(&self, me: Thread) -> bool {
        Thread::current().is_ok_and(|now| now.tid() == me.tid()) && self.is_held_by(me)
    }

    /// Returns the calling thread if it owns the word, and took it through this mapping (I5).
    #[inline(always)]
    pub(crate) fn held(&self) -> Option<Thread> {
        let me = Thread::fast().or_else(|| Thread::current().ok())?;
        self.is_held_here_by(me).then_some(me)
    }

    /// Returns whether `me` owns the word, and took it through this mapping (I5).
    #[inline(always)]
    pub(crate) fn is_held_here_by(&self, me: Thread) -> bool {
        self.is_held_by(me) && me.has(&self.links)
    }

    /// Returns whether `me` owns the word, through any mapping.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, me: Thread) -> bool {
        self.word.value.load(Relaxed) & OWNER == me.tid()
    }

    /// Returns the word itself, for `futex_waitv`.
    #[cfg(not(outlast_loom))]
    pub(crate) fn as_atomic(&self) -> &AtomicU32 {
        &self.word.value
    }

    /// Takes the word if it is free. Returns the calling thread if it took the word. I3 holds from
    /// here on.
    #[inline(always)]
    pub(crate) fn try_take_fast(&self) -> Option<Thread> {
        let me = Thread::fast()?;
        self.try_take_as(me, Acquire).then_some(me)
    }

    /// Takes the word if it is free, with the order `Acquire` or `SeqCst`.
    #[inline(always)]
    pub(crate) fn try_take_as(&self, me: Thread, order: Ordering) -> bool {
        let taken = me.begin_again(&self.links).is_ok()
            && self.word.value.compare_exchange(0, owned_by(me), order, Relaxed).is_ok();
        if taken {
            me.hold(&self.links);
        }
        taken
    }

    /// Takes the word unless a living thread owns it.
    #[cold]
    pub(crate) fn try_take(&self) -> Result<(Taken, Thread), Refused> {
        let me = self.announce()?;
        let taken = self.attempt(me).unwrap_or(Err(Refused::Busy));
        self.finish(me, taken)
    }

    /// Takes the word, waiting for it until `deadline`.
    #[cold]
    pub(crate) fn take_until(
        &self,
        deadline: Deadline,
    ) -> Result<Result<(Taken, Thread), Refused>, TimedOut> {
        let me = match self.announce() {
            Ok(me) => me,
            Err(refused) => return Ok(Err(refused)),
        };
        match operation::wait(&mut Take { of: self, me, patience: None }, deadline) {
            Some(taken) => Ok(self.finish(me, taken)),
            None => {
                me.end();
                Err(TimedOut)
            }
        }
    }

    /// Marks the word, as the kernel would, if its owner does not exist. Returns whether it did.
    #[cfg(not(outlast_loom))]
    #[cold]
    pub(crate) fn mark_if_gone(&self) -> bool {
        let seen = self.word.value.load(Acquire);
        let owner = seen & OWNER;
        if owner == 0 || owner == UNPLACED || thread::exists(owner) {
            return false;
        }
        let marked = seen & WAITERS | OWNER_DIED; // for the gap before this step, see I6
        let done = self.word.value.compare_exchange(seen, marked, AcqRel, Relaxed).is_ok();
        if done {
            self.word.wake(1); // as the kernel does: keeps I1 if this thread is killed here
        }
        done
    }

    /// Makes `to` the owner if `from` is the owner. 0 stands for no owner. The node is in no list,
    /// so the kernel does not mark the word: only [`mark_transferred`](Self::mark_transferred)
    /// does.
    #[cfg(not(outlast_loom))]
    pub(crate) fn transfer(&self, from: u32, to: u32) -> bool {
        let word = |owner: u32| if owner == 0 { 0 } else { owner | WAITERS };
        self.word.value.compare_exchange(word(from), word(to), AcqRel, Relaxed).is_ok()
    }

    /// Marks a word that [`transfer`](Self::transfer) gave to `owner`.
    #[cfg(not(outlast_loom))]
    pub(crate) fn mark_transferred(&self, owner: u32) -> bool {
        let seen = owner | WAITERS;
        self.word.value.compare_exchange(seen, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// Does nothing: in the model the kernel marks every word.
    #[cfg(outlast_loom)]
    #[expect(clippy::unused_self, reason = "one contract with the real builds")]
    fn mark_if_gone(&self) -> bool {
        false
    }

    fn announce(&self) -> Result<Thread, Refused> {
        let me = Thread::current().map_err(Refused::Failed)?;
        me.begin(&self.links).map_err(Refused::Failed)?;
        Ok(me)
    }

    /// Takes the word, unless a living thread owns it. Returns `None` if the caller has to wait.
    fn attempt(&self, me: Thread) -> Option<Result<Taken, Refused>> {
        let mut seen = self.word.value.load(Acquire);
        loop {
            match seen & OWNER {
                0 => match self.word.value.compare_exchange(seen, owned_by(me), Acquire, Relaxed) {
                    Err(now) => seen = now,
                    Ok(_) if seen & OWNER_DIED == 0 => return Some(Ok(Taken::Clean)),
                    Ok(_) => return Some(Ok(Taken::FromTheDead)),
                },
                UNPLACED => return Some(Err(Refused::Unplaced)),
                owner if owner == me.tid() => return Some(Err(Refused::Mine)),
                _ => return None,
            }
        }
    }

    /// Makes `armed` odd. Returns its value.
    fn arm(&self) -> u32 {
        let even = |armed: u32| (armed & 1 == 0).then_some(armed.wrapping_add(1));
        match self.armed.fetch_update(AcqRel, Acquire, even) {
            Ok(even) => even.wrapping_add(1),
            Err(odd) => odd,
        }
    }

    fn finish(
        &self,
        me: Thread,
        taken: Result<Taken, Refused>,
    ) -> Result<(Taken, Thread), Refused> {
        match taken {
            Err(refused) => {
                me.end();
                Err(refused)
            }
            Ok(taken) => {
                if me.is_eager() {
                    me.link(&self.links);
                    me.end();
                } else {
                    me.hold(&self.links);
                }
                Ok((taken, me))
            }
        }
    }

    /// Unlocks the word that `me` took. Does nothing for a copy that fork made.
    #[inline(always)]
    pub(crate) fn unlock(&self, me: Thread) {
        if !self.try_unlock_if(me, || true) {
            self.unlock_slow(me);
        }
    }

    /// Unlocks the word by the fast path if `is_last` returns `true`. Returns whether it did.
    /// `is_last` is called only if the thread holds the word unlisted. The node stays pending, for
    /// the next lock.
    #[inline(always)]
    pub(crate) fn try_unlock_if(&self, me: Thread, is_last: impl FnOnce() -> bool) -> bool {
        if !me.is_calling() || !me.holds(&self.links) || !is_last() {
            return false;
        }
        me.let_go(); // before the store, after which another thread may own the word
        self.release();
        true
    }

    #[cold]
    fn unlock_slow(&self, taker: Thread) {
        let Ok(me) = Thread::current() else { return };
        if me.tid() != taker.tid() {
            return; // a copy that fork made: the child may have taken the word itself by now
        }
        let was_unlisted = me.holds(&self.links);
        if was_unlisted {
            me.let_go();
        }
        // If a lock that was taken after this one is held unlisted, it moves to the list.
        me.begin_to_end(&self.links);
        // Unlinked before the release, because the next owner will write the links.
        let was_listed = me.unlink(&self.links);
        debug_assert!(!me.has(&self.links), "the entry is still there after the unlock (I5)");
        // The check is for a peer that breaks the protocol and has overwritten the word.
        if (was_unlisted || was_listed) && self.is_held_by(me) {
            self.release(); // keeps I5
        }
        me.end();
    }

    #[inline(always)]
    fn release(&self) {
        self.word.value.store(0, Release);
        fence::light();
        if self.armed.load(Relaxed) & 1 != 0 {
            self.wake_one(); // keeps I4
        }
    }

    #[cold]
    fn wake_one(&self) {
        hooks::pause("robust word: given up, nobody woken yet");
        if self.word.wake(1) == 0 {
            hooks::pause("robust word: found nobody asleep, not disarmed yet");
            self.word.change_beside_and_wake(&self.armed, Change::AddOne, u32::MAX); // keeps I1
        }
    }

    /// Takes the word, if it is free or marked, as the token of the calling thread. Returns whether
    /// it did.
    ///
    /// The word is in the robust list until [`free_token`](Self::free_token). The end of the token
    /// wakes all threads that sleep on it, whether the word is armed or not.
    #[cfg(not(outlast_loom))]
    pub(crate) fn take_token(&self) -> Result<bool, Fault> {
        let me = Thread::current()?;
        me.begin(&self.links)?;
        let seen = self.word.value.load(Acquire);
        let free = seen & OWNER == 0;
        if !free || self.word.value.compare_exchange(seen, owned_by(me), Acquire, Relaxed).is_err()
        {
            me.end();
            return Ok(false);
        }
        me.link(&self.links);
        me.end();
        Ok(true)
    }

    /// Releases the token that the calling thread took with [`take_token`](Self::take_token).
    #[cfg(not(outlast_loom))]
    pub(crate) fn free_token(&self) {
        let Ok(me) = Thread::current() else { return };
        me.begin_to_end(&self.links);
        // The node leaves the list whatever the value of the word is.
        if me.unlink(&self.links) && self.is_held_by(me) {
            self.word.change_and_wake(Change::Clear, u32::MAX);
        }
        me.end();
    }

    /// Makes a marked token free again, and wakes all threads that sleep on it. Idempotent.
    #[cfg(not(outlast_loom))]
    pub(crate) fn clear_mark(&self) {
        let seen = self.word.value.load(Acquire);
        if seen & OWNER == 0 && self.word.value.compare_exchange(seen, 0, Release, Relaxed).is_ok()
        {
            self.word.wake(u32::MAX);
        }
    }
}

/// The operation of taking a word, by a thread that has announced it.
struct Take<'a> {
    of: &'a RobustWord,
    me: Thread,
    /// When the thread checks whether the owner exists. `None` before its first sleep.
    patience: Option<Deadline>,
}

impl Verb for Take<'_> {
    type Output = Result<Taken, Refused>;
    fn attempt(&mut self) -> Option<Self::Output> {
        self.of.attempt(self.me)
    }
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        operation::wait(self, deadline)
    }
}

impl<'a> Operation<'a> for Take<'a> {
    fn key(&self) -> usize {
        core::ptr::from_ref(self.of).addr()
    }

    fn arm(&mut self) -> Armed<'a, Self::Output> {
        let word = &self.of.word;
        let seen = word.value.load(Acquire);
        if seen & OWNER == 0 {
            return Armed::Retry;
        }
        Armed::Sleep(Sleep { word, seen: [seen, self.of.arm()], fence: Fence::Heavy })
    }

    /// Checks once a second, and when the sleep ends with its time, whether the owner exists. Wakes
    /// for no reason, such as signals, do not delay the check.
    fn park(&mut self, sleep: Sleep<'a>, until: Deadline) -> Wake {
        // In the model no time passes.
        let patience = || match cfg!(outlast_loom) {
            true => Deadline::NEVER,
            false => Deadline::after(hooks::second_look(PATIENCE)),
        };
        let [seen, expected] = sleep.seen;
        let beside = Watch { word: &self.of.armed, expected };
        loop {
            let first = until.earlier(*self.patience.get_or_insert_with(patience));
            if sleep.word.park_beside(seen, beside, first) == Wake::Woken {
                return Wake::Woken;
            }
            self.of.mark_if_gone(); // keeps I6
            if first == until {
                return Wake::TimedOut;
            }
            self.patience = None;
        }
    }
}

/// Returns the value of a word that `me` owns.
#[inline(always)]
fn owned_by(me: Thread) -> u32 {
    me.tid() | WAITERS // keeps I2
}
