//! A sequence word to sleep on, for primitives whose state is not a single 32-bit word.
use super::operation::{self, Armed, Fence, Operation, Sleep};
use super::spin::Rest;
use super::verbs::Verb;
use super::{TimedOut, WaitWord};
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sys::{Change, fence as asymmetric, hooks};
use std::time::Duration;

/// A sequence word, and a flag that says whether a thread may be asleep on it.
///
/// # Invariants
/// - I1. While a thread is asleep on `seq`, `armed` has the bit `ARMED`. (The bit may be set with
///   no thread asleep. Then one wasted system call clears it.) The sleeper sets the bit, passes a
///   fence, makes another attempt, and sleeps. The notifier changes the state, passes a fence, and
///   reads the bit. So at least one of the two sees the other. If a lock orders the arming before
///   the change, no fence is needed. With `LIGHT`, the sleeper pays for both fences. These are not
///   certain (see `sys/fence.rs`), so its first sleep is bounded. While `seq` does not move,
///   `ARMED` stays set, by I2. So every change without a notification was made before the bounded
///   sleep.
/// - I2. A notifier clears `ARMED` only if its wake found no thread asleep, and only if no thread
///   has armed since before that wake. Each arming changes the count in `armed`, so the notifier
///   can tell. A thread that armed before the wake had read `seq` before it. The wake moved `seq`,
///   so the kernel does not put that thread to sleep. (The value of `seq` cannot replace the count:
///   a late arming would overwrite a newer one, and the notifier would take it for an old one.)
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Signal<const LIGHT: bool = false> {
    seq: WaitWord,
    /// `ARMED` in bit 0, and the number of armings above it.
    armed: AtomicU32,
}

const ARMED: u32 = 1;
/// One arming.
const ONCE: u32 = 2;

/// A thousand times as long as a store can stay in the store buffer of a CPU.
const ON_ITS_WAY: Duration = Duration::from_micros(100);

impl<const LIGHT: bool> Signal<LIGHT> {
    pub(crate) fn new() -> Self {
        Signal { seq: WaitWord::new(0), armed: AtomicU32::new(0) }
    }

    /// Initialises the signal in place.
    pub(crate) fn place(&self) {
        self.seq.place();
    }

    /// Announces a sleeper. Returns what it sleeps on, for [`Operation::arm`].
    pub(crate) fn arm(&self) -> Sleep<'_> {
        let seen = [self.seq.value.load(Acquire), 0];
        self.set_armed();
        Sleep { word: &self.seq, seen, fence: Self::FENCE } // keeps I1
    }

    /// Returns an address for [`Operation::key`].
    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Waits until `attempt` returns a value.
    pub(crate) fn wait<R>(
        &self,
        deadline: Deadline,
        attempt: impl FnMut() -> Option<R>,
    ) -> Result<R, TimedOut> {
        operation::wait(&mut Until { signal: self, attempt }, deadline).ok_or(TimedOut)
    }

    /// Like `wait`, for a value after which there may soon be `more`. The thread may rest before
    /// its first attempt (see [`Rest`]).
    pub(crate) fn wait_for_many<R>(
        &self,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Option<R>,
        more: impl FnOnce(&R) -> bool,
    ) -> Result<R, TimedOut> {
        let rest = if deadline.is_over() { None } else { Rest::take(self.key()) };
        let rested = rest.and_then(|_| attempt());
        let done = rested.map_or_else(|| self.wait(deadline, attempt), Ok)?;
        if let Some(rest) = rest {
            rest.learn(self.key(), more(&done));
        }
        Ok(done)
    }

    /// The sleeper's fence.
    const FENCE: Fence = if LIGHT { Fence::Heavy } else { Fence::Full };

    /// The fence before a last look that is not followed by a sleep.
    #[cold]
    pub(crate) fn fence_before_verdict() {
        hooks::pause("signal: the last look is fenced");
        Self::FENCE.pass();
        if !Self::FENCE.is_certain() {
            std::thread::sleep(ON_ITS_WAY);
        }
    }

    /// The fence between a change and [`is_armed`](Self::is_armed). One fence is enough for several
    /// signals of the same kind.
    #[inline(always)]
    pub(crate) fn fence_after_change() {
        if LIGHT { asymmetric::light() } else { fence(SeqCst) }
    }

    /// Sets `ARMED`, so that notifiers make the system call.
    fn set_armed(&self) {
        let armed = |armed: u32| Some(armed.wrapping_add(ONCE) | ARMED);
        // `seq` is read before this: keeps I2.
        self.armed.fetch_update(Release, Relaxed, armed).ok();
    }

    /// Waits for a notification that comes after the [`arm`](Self::arm) that returned `sleep`.
    /// Returns `false` if the deadline passes first.
    pub(crate) fn wait_for_notification(&self, sleep: Sleep<'_>, deadline: Deadline) -> bool {
        operation::wait(&mut NotifiedAfter(sleep), deadline).is_some()
    }

    /// Returns whether a thread may be asleep. Called after a change and
    /// [`fence_after_change`](Self::fence_after_change).
    #[inline(always)]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed) & ARMED != 0
    }

    /// Returns whether one of several signals is armed, with one branch.
    #[inline(always)]
    pub(crate) fn are_armed<const N: usize>(signals: [&Self; N]) -> bool {
        let armed = signals.into_iter().map(|signal| signal.armed.load(Relaxed));
        armed.fold(0, |all, armed| all | armed) & ARMED != 0
    }

    /// Wakes up to `n` sleepers, if the signal is armed.
    #[cold]
    pub(crate) fn notify(&self, n: u32) {
        hooks::pause("signal: changed, nobody woken yet");
        let armed = self.armed.load(Acquire);
        if armed & ARMED != 0 && self.seq.change_and_wake(Change::AddOne, n) == 0 {
            self.armed.compare_exchange(armed, armed & !ARMED, Relaxed, Relaxed).ok(); // keeps I2
        }
    }

    /// Wakes all sleepers, if the signal is armed. Called after a change.
    pub(crate) fn notify_all(&self) {
        Self::fence_after_change(); // keeps I1
        if self.is_armed() {
            self.notify(u32::MAX);
        }
    }

    /// Wakes all sleepers, whether the signal is armed or not.
    pub(crate) fn wake_all(&self) {
        self.seq.change_and_wake(Change::AddOne, u32::MAX);
    }
}

/// A wait until a function returns a value.
struct Until<'a, F, const LIGHT: bool> {
    signal: &'a Signal<LIGHT>,
    attempt: F,
}

impl<R, F: FnMut() -> Option<R>, const LIGHT: bool> Verb for Until<'_, F, LIGHT> {
    type Output = R;
    #[inline]
    fn attempt(&mut self) -> Option<R> {
        (self.attempt)()
    }
    fn wait(&mut self, deadline: Deadline) -> Option<R> {
        operation::wait(self, deadline)
    }
}

impl<'a, R, F: FnMut() -> Option<R>, const LIGHT: bool> Operation<'a> for Until<'a, F, LIGHT> {
    fn key(&self) -> usize {
        self.signal.key()
    }
    fn arm(&mut self) -> Armed<'a, R> {
        Armed::Sleep(self.signal.arm())
    }
}

/// A wait for a notification after the signal was armed.
struct NotifiedAfter<'a>(Sleep<'a>);

impl Verb for NotifiedAfter<'_> {
    type Output = ();
    fn attempt(&mut self) -> Option<()> {
        (self.0.word.value.load(Acquire) != self.0.seen[0]).then_some(())
    }
    fn wait(&mut self, deadline: Deadline) -> Option<()> {
        operation::wait(self, deadline)
    }
}

impl<'a> Operation<'a> for NotifiedAfter<'a> {
    fn key(&self) -> usize {
        core::ptr::from_ref(self.0.word).addr()
    }
    fn arm(&mut self) -> Armed<'a, ()> {
        Armed::Sleep(Sleep { fence: Fence::None, ..self.0 }) // the signal is armed already
    }
}
