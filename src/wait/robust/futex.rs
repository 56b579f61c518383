//! A robust word that is a futex: the owner's thread id, in the kernel's list of what its thread
//! holds.
//!
//! Beside it lies a count of how often it was *armed* and disarmed: odd as long as somebody may be
//! asleep.
//!
//! # State
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | tid + `WAITERS` | owned by that thread |
//! | `OWNER_DIED` + `WAITERS` | its owner ended while owning it; free to be taken, by one who must know |
//! | [`UNPLACED`] | made, but not yet where it will stay |
//!
//! | armed | next |
//! |---|---|
//! | even: nobody is asleep | odd, by who is about to sleep |
//! | odd: somebody may be | even, by who gave the word up and found nobody asleep. Two of those make it odd once more, which says nothing wrong |
//!
//! # Invariants
//! - I1. A thread asleep on the word => `armed` is odd since before that thread last looked at the
//!   word. The kernel puts it to sleep only if `armed` still is what it read then, and whoever
//!   makes `armed` even wakes everybody in the same system call.
//! - I2. A word that is owned has `WAITERS`, for the kernel alone: if the owner ends, it wakes one.
//! - I3. From before it takes the word until after it has given it up and woken whom it must, the
//!   owner's node is in its thread's `pending` field or robust list.
//! - I4. Whoever gives the word up looks at `armed` after that, and wakes one if it is odd. So does
//!   the kernel for one who is killed in between, as I3 says, if the word is free; if it has an
//!   owner by then, that will do it.
//! - I5. A word is given up only by the thread that owns it, through the address through which that
//!   thread took it: its entry is there (`sys/robust_futex.rs`, I1). After the release the node is
//!   in no list of that thread: the next owner writes the links.
//! - I6. The owner of a word exists, or the word is marked: by the kernel, or by a waiting thread
//!   that has found that no thread has the owner's id. Waiting threads ask once a second, and when
//!   a sleep ends with its time. The kernel does not mark a word if its owner calls exec and is not
//!   the first thread of its process: that thread gets the process's id before the kernel walks its
//!   list, whose words bear the old id. One gap remains. If the asking thread pauses between the
//!   answer and its exchange, the owner's id can come again and the new thread can take the word,
//!   which is then marked although its owner lives. No second question closes the gap: the pause
//!   can follow it.
//!
//! # Ordering
//! Taking is an Acquire, giving up a Release of the word (the kernel's change of it is a full
//! fence), so whatever an owner wrote is seen by the next.
//!
//! Giving up is a plain store, and the look at `armed` behind it must not come first: of who gives
//! up and who is about to sleep, one has to see the other. The sleeper pays for both fences, and
//! dozes before it sleeps, because they are not certain: see `sys/fence.rs`. (As long as `armed`
//! does not move, all who did not see it odd gave the word up before the doze.) An uncontended
//! section so has one locked instruction.
//!
//! # Death
//! Before the taking CAS: nothing happened, and if the word was free one sleeper is woken in the
//! victim's stead. From then to the releasing store: the kernel sets `OWNER_DIED` and wakes one.
//! After it: nothing, or one more sleeper is woken (I4). A woken sleeper that is killed before it
//! took the word has the node in `pending`: the kernel wakes the next, unless the word has an
//! owner, who will do so. The classic release (store 0, wake one, where a bit of the word says that
//! somebody sleeps) lacks I1: a barger that takes the word and never sees a waiter leaves the
//! others asleep once the woken one is killed.
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

/// The word, its node for the robust list, and a little room that the owner may use between them.
#[repr(C, align(8))]
#[derive(Debug)]
pub(crate) struct RobustWord {
    word: WaitWord,
    /// Odd if somebody may be asleep.
    armed: AtomicU32,
    /// For the user of the word: [`crate::Lock`]'s poison, or who a slot belongs to.
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
    /// Zero-filled memory is a free word.
    #[cfg(not(outlast_loom))]
    pub(crate) const ZERO_IS_PLACED: bool = true;

    /// Free, but not yet usable.
    pub(crate) fn new() -> Self {
        RobustWord {
            word: WaitWord::new(UNPLACED),
            armed: AtomicU32::new(0),
            note: Default::default(),
            links: Links::default(),
        }
    }

    /// Makes the word usable where it lies.
    pub(crate) fn place(&self) {
        self.word.value.store(0, Relaxed);
    }

    /// The word's value, to show.
    pub(crate) fn value(&self) -> u32 {
        self.word.value.load(Acquire)
    }

    /// The value, read in the one order of all `SeqCst` accesses.
    #[inline(always)]
    pub(crate) fn value_in_order(&self) -> u32 {
        self.word.value.load(SeqCst)
    }

    /// Whether the calling thread owns the word, and took it through this mapping (I5).
    pub(crate) fn is_mine(&self) -> bool {
        self.held().is_some()
    }

    /// Whether the calling thread is `me`, who took the word, and still owns it. Not so in the
    /// child of a fork.
    pub(crate) fn is_still(&self, me: Thread) -> bool {
        Thread::current().is_ok_and(|now| now.tid() == me.tid()) && self.is_held_by(me)
    }

    /// The calling thread, if it owns the word, and took it through this mapping (I5).
    #[inline(always)]
    pub(crate) fn held(&self) -> Option<Thread> {
        let me = Thread::fast().or_else(|| Thread::current().ok())?;
        self.is_held_here_by(me).then_some(me)
    }

    /// Whether `me` owns the word, and took it through this mapping (I5).
    #[inline(always)]
    pub(crate) fn is_held_here_by(&self, me: Thread) -> bool {
        self.is_held_by(me) && me.has(&self.links)
    }

    /// Whether `me` owns the word, through whichever mapping.
    #[inline(always)]
    pub(crate) fn is_held_by(&self, me: Thread) -> bool {
        self.word.value.load(Relaxed) & OWNER == me.tid()
    }

    /// The word itself, for `futex_waitv`.
    #[cfg(not(outlast_loom))]
    pub(crate) fn as_atomic(&self) -> &AtomicU32 {
        &self.word.value
    }

    /// Takes the word if it is free; by whom. I3 holds from here on.
    #[inline(always)]
    pub(crate) fn try_take_fast(&self) -> Option<Thread> {
        let me = Thread::fast()?;
        self.try_take_as(me, Acquire).then_some(me)
    }

    /// The same, in an order of the caller's: `Acquire`, or the one order of all `SeqCst` accesses.
    #[inline(always)]
    pub(crate) fn try_take_as(&self, me: Thread, order: Ordering) -> bool {
        let taken = me.begin_again(&self.links).is_ok()
            && self.word.value.compare_exchange(0, owned_by(me), order, Relaxed).is_ok();
        if taken {
            me.hold(&self.links);
        }
        taken
    }

    /// Takes the word if nobody alive has it.
    #[cold]
    pub(crate) fn try_take(&self) -> Result<(Taken, Thread), Refused> {
        let me = self.announce()?;
        let taken = self.attempt(me).unwrap_or(Err(Refused::Busy));
        self.settle(me, taken)
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
            Some(taken) => Ok(self.settle(me, taken)),
            None => {
                me.end();
                Err(TimedOut)
            }
        }
    }

    /// Marks the word in the kernel's stead if the owner does not exist. Returns whether it did.
    #[cfg(not(outlast_loom))]
    #[cold]
    pub(crate) fn mark_if_gone(&self) -> bool {
        let seen = self.word.value.load(Acquire);
        let owner = seen & OWNER;
        if owner == 0 || owner == UNPLACED || thread::exists(owner) {
            return false;
        }
        let marked = seen & WAITERS | OWNER_DIED; // I6 says what can come in between
        let done = self.word.value.compare_exchange(seen, marked, AcqRel, Relaxed).is_ok();
        if done {
            self.word.wake(1); // as the kernel does: keeps I1 if this thread is killed here
        }
        done
    }

    /// Makes `to` the owner in place of `from`, where 0 is nobody, if `from` is the owner. The node
    /// is in no list: only [`mark_entrusted`](Self::mark_entrusted) marks the word.
    #[cfg(not(outlast_loom))]
    pub(crate) fn entrust(&self, from: u32, to: u32) -> bool {
        let word = |owner: u32| if owner == 0 { 0 } else { owner | WAITERS };
        self.word.value.compare_exchange(word(from), word(to), AcqRel, Relaxed).is_ok()
    }

    /// Marks an [entrusted](Self::entrust) word of `owner`.
    #[cfg(not(outlast_loom))]
    pub(crate) fn mark_entrusted(&self, owner: u32) -> bool {
        let seen = owner | WAITERS;
        self.word.value.compare_exchange(seen, OWNER_DIED, AcqRel, Relaxed).is_ok()
    }

    /// In the model the kernel marks every word.
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

    /// Takes the word if nobody alive has it; or finds out that there is nothing to wait for.
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

    /// Makes `armed` odd; what it is then.
    fn arm(&self) -> u32 {
        let even = |armed: u32| (armed & 1 == 0).then_some(armed.wrapping_add(1));
        match self.armed.fetch_update(AcqRel, Acquire, even) {
            Ok(even) => even.wrapping_add(1),
            Err(odd) => odd,
        }
    }

    fn settle(
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

    /// Gives the word up, which `me` took; what was copied by fork is left alone.
    #[inline(always)]
    pub(crate) fn give_up(&self, me: Thread) {
        if !self.try_give_up_if(me, || true) {
            self.give_up_slow(me);
        }
    }

    /// Gives the word up if that is quickly done, and `is_last` says so. (It is asked only if the
    /// thread holds the word unlisted.) The node stays pending, for the next time.
    #[inline(always)]
    pub(crate) fn try_give_up_if(&self, me: Thread, is_last: impl FnOnce() -> bool) -> bool {
        if !me.is_calling() || !me.holds(&self.links) || !is_last() {
            return false;
        }
        me.let_go(); // earlier: from the store on the word is another's
        self.release();
        true
    }

    #[cold]
    fn give_up_slow(&self, taker: Thread) {
        let Ok(me) = Thread::current() else { return };
        if me.tid() != taker.tid() {
            return; // a copy made by fork; by now the child may have taken the word for itself
        }
        let was_unlisted = me.holds(&self.links);
        if was_unlisted {
            me.let_go();
        }
        // A lock taken after this one may be held unlisted: it moves to the list.
        me.begin_to_end(&self.links);
        // Out of the list before the release: the next owner will write the links.
        let was_listed = me.unlink(&self.links);
        debug_assert!(!me.has(&self.links), "still there although it is given up (I5)");
        // A peer that breaks the protocol may have taken the word from this thread.
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

    /// Takes the word as a token of the calling thread's life, listed until [`leave`](Self::leave):
    /// free, or marked by the kernel, it becomes ours. Its end is told to all who sleep on it,
    /// armed or not.
    #[cfg(not(outlast_loom))]
    pub(crate) fn enlist(&self) -> Result<bool, Fault> {
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

    /// Ends what [`enlist`](Self::enlist) began, in the same thread.
    #[cfg(not(outlast_loom))]
    pub(crate) fn leave(&self) {
        let Ok(me) = Thread::current() else { return };
        me.begin_to_end(&self.links);
        // Whatever the word says, the node leaves the list.
        if me.unlink(&self.links) && self.is_held_by(me) {
            self.word.change_and_wake(Change::Clear, u32::MAX);
        }
        me.end();
    }

    /// Makes a marked token free again. Idempotent; wakes whoever slept on it.
    #[cfg(not(outlast_loom))]
    pub(crate) fn bury(&self) {
        let seen = self.word.value.load(Acquire);
        if seen & OWNER == 0 && self.word.value.compare_exchange(seen, 0, Release, Relaxed).is_ok()
        {
            self.word.wake(u32::MAX);
        }
    }
}

/// Taking a word, by a thread that has announced it.
struct Take<'a> {
    of: &'a RobustWord,
    me: Thread,
    /// When the thread asks whether the owner exists; since its first sleep.
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

    /// Asks once a second, and when the sleep ends with its time, whether the owner exists. Wakes
    /// for no reason, such as signals, do not put it off.
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

/// The word that `me` owns.
#[inline(always)]
fn owned_by(me: Thread) -> u32 {
    me.tid() | WAITERS // keeps I2
}
