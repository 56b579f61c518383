//! Sleeping until somebody says that something has changed, where the state itself is no word that
//! one could sleep on.
use super::operation::{self, Armed, Fence, Operation, Sleep};
use super::spin::Rest;
use super::verbs::Verb;
use super::{TimedOut, WaitWord};
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sys::{Change, fence as asymmetric, hooks};
use std::time::Duration;

/// A sequence word, and whether anybody sleeps on it.
///
/// # Invariants
/// - I1. A thread asleep on `seq` => `armed` has `ARMED`. (It may be there with nobody asleep: one
///   wasted system call clears it.) A sleeper arms, fences, looks once more, and sleeps; who
///   changes the state fences and then reads `armed`: one of the two sees the other. Where a lock
///   orders the arming before the change, nobody needs a fence. With `LIGHT`, the sleeper pays for
///   both fences, and dozes before it sleeps, because they are not certain: see `sys/fence.rs`.
///   (While `seq` stands still, `ARMED` stays, by I2: so all changes that are not announced were
///   made before the doze.)
/// - I2. `ARMED` is cleared only by one whose wake found nobody asleep, and only if nobody has
///   armed since before that wake: each arming makes another number. Whoever armed before had read
///   `seq` before that, and the wake moved it: the kernel will not put that thread to sleep. (With
///   the sequence itself for a number, an arming that comes late would hide a later one, and the
///   clearing would take that for old.)
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Signal<const LIGHT: bool = false> {
    seq: WaitWord,
    /// Bit 0, and above it how often it was set.
    armed: AtomicU32,
}

const ARMED: u32 = 1;
/// One arming.
const ONCE: u32 = 2;

/// A thousand times as long as a change can be on its way.
const ON_ITS_WAY: Duration = Duration::from_micros(100);

impl<const LIGHT: bool> Signal<LIGHT> {
    pub(crate) fn new() -> Self {
        Signal { seq: WaitWord::new(0), armed: AtomicU32::new(0) }
    }

    /// To be called where it will stay.
    pub(crate) fn place(&self) {
        self.seq.place();
    }

    /// Announces a sleeper, and how it sleeps: for [`Operation::arm`].
    pub(crate) fn arm(&self) -> Sleep<'_> {
        let seen = [self.seq.value.load(Acquire), 0];
        self.set_armed();
        Sleep { word: &self.seq, seen, fence: Self::FENCE } // keeps I1
    }

    /// An address for [`Operation::key`].
    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Waits until `attempt` gives something.
    pub(crate) fn wait<R>(
        &self,
        deadline: Deadline,
        attempt: impl FnMut() -> Option<R>,
    ) -> Result<R, TimedOut> {
        operation::wait(&mut Until { signal: self, attempt }, deadline).ok_or(TimedOut)
    }

    /// Like `wait`, where after the first there may soon be `more`: not to look at once may pay
    /// (see [`Rest`]).
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

    /// The fence before a last look without a sleep.
    #[cold]
    pub(crate) fn fence_before_verdict() {
        hooks::pause("signal: the last look is fenced");
        Self::FENCE.pass();
        if !Self::FENCE.is_certain() {
            std::thread::sleep(ON_ITS_WAY);
        }
    }

    /// The fence between a change and [`is_armed`](Self::is_armed); one for several signals of the
    /// same kind.
    #[inline(always)]
    pub(crate) fn fence_after_change() {
        if LIGHT { asymmetric::light() } else { fence(SeqCst) }
    }

    /// Marks the signal as armed, so that notifiers make the system call.
    fn set_armed(&self) {
        let armed = |armed: u32| Some(armed.wrapping_add(ONCE) | ARMED);
        // The look at `seq` comes before it: keeps I2.
        self.armed.fetch_update(Release, Relaxed, armed).ok();
    }

    /// Waits until a notify after the [`arm`](Self::arm) that gave this sleep. Returns whether one
    /// came before the deadline.
    pub(crate) fn wait_beyond(&self, sleep: Sleep<'_>, deadline: Deadline) -> bool {
        operation::wait(&mut Beyond(sleep), deadline).is_some()
    }

    /// Whether somebody may be asleep. To be asked after a change and
    /// [`fence_after_change`](Self::fence_after_change).
    #[inline(always)]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed) & ARMED != 0
    }

    /// Whether one of several is armed, in one branch.
    #[inline(always)]
    pub(crate) fn are_armed<const N: usize>(signals: [&Self; N]) -> bool {
        let armed = signals.into_iter().map(|signal| signal.armed.load(Relaxed));
        armed.fold(0, |all, armed| all | armed) & ARMED != 0
    }

    /// Wakes up to `n` sleepers, if there may be any.
    #[cold]
    pub(crate) fn notify(&self, n: u32) {
        hooks::pause("signal: changed, nobody woken yet");
        let armed = self.armed.load(Acquire);
        if armed & ARMED != 0 && self.seq.change_and_wake(Change::AddOne, n) == 0 {
            self.armed.compare_exchange(armed, armed & !ARMED, Relaxed, Relaxed).ok(); // keeps I2
        }
    }

    /// Wakes everybody, if there may be anybody. To be called after a change.
    pub(crate) fn notify_all(&self) {
        Self::fence_after_change(); // keeps I1
        if self.is_armed() {
            self.notify(u32::MAX);
        }
    }

    /// Wakes everybody, come what may.
    pub(crate) fn wake_all(&self) {
        self.seq.change_and_wake(Change::AddOne, u32::MAX);
    }
}

/// A wait for whatever a function finds.
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

/// A wait for a notify after the signal was armed.
struct Beyond<'a>(Sleep<'a>);

impl Verb for Beyond<'_> {
    type Output = ();
    fn attempt(&mut self) -> Option<()> {
        (self.0.word.value.load(Acquire) != self.0.seen[0]).then_some(())
    }
    fn wait(&mut self, deadline: Deadline) -> Option<()> {
        operation::wait(self, deadline)
    }
}

impl<'a> Operation<'a> for Beyond<'a> {
    fn key(&self) -> usize {
        core::ptr::from_ref(self.0.word).addr()
    }
    fn arm(&mut self) -> Armed<'a, ()> {
        Armed::Sleep(Sleep { fence: Fence::None, ..self.0 }) // it is armed already
    }
}
