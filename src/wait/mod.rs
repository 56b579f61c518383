//! Waiting: a word in shared memory, and the only loop in the crate that blocks on one.

pub(crate) mod robust;
pub(crate) mod signal;
pub(crate) mod spin;

use crate::deadline::Deadline;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Acquire;
use crate::sys::{Change, Parker, Wake, Watch, hooks};
use spin::{Missed, Spinner};
use std::time::Duration;
use thiserror::Error;

/// The deadline passed before what was waited for happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("timed out")]
pub struct TimedOut;

/// How long [`Step::Doze`] sleeps before it looks again.
const DOZE: Duration = Duration::from_millis(10);

/// A shared word and what is needed to wait on it.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct WaitWord {
    pub(crate) value: AtomicU32,
    parker: Parker,
}

/// What a primitive makes of the word it has just seen.
#[derive(Debug)]
pub(crate) enum Step<T, V = u32> {
    /// The call is done.
    Done(T),
    /// The word moved under us: look again.
    Retry,
    /// Nothing to do until the word is no longer this value (or, of two words, one of them is not).
    Sleep(V),
    /// The same, but look once more after a while: a change that was just made may come without a
    /// wake.
    Doze(V),
}

/// How serious the look is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Spinning: take what is there, and leave no trace.
    Glance,
    /// About to sleep: whoever changes the word must learn that there is a sleeper.
    BeforeSleep,
}

impl WaitWord {
    pub(crate) fn new(value: u32) -> Self {
        WaitWord { value: AtomicU32::new(value), parker: Parker::default() }
    }

    /// Makes the word usable where it lies. Its value stays.
    pub(crate) fn place(&self) {
        self.parker.place();
    }

    /// Runs `step` until it is `Done`, spinning for a while and then sleeping whenever it says so.
    ///
    /// `step` is given the word's value, and runs once more after the deadline has passed: what can
    /// be had is had, even too late. The deadline is a point in time, so that retries do not extend
    /// it; a signal is a wake for no reason.
    pub(crate) fn wait_until<T>(
        &self,
        deadline: Deadline,
        step: impl FnMut(u32, Look) -> Step<T>,
    ) -> Result<T, TimedOut> {
        let park = |seen, until| self.parker.park(&self.value, seen, until);
        self.wait(deadline, step, park)
    }

    /// Like `wait_until`, but the thread sleeps only while a second word, `beside`, has not changed
    /// either. Wakes are for this word.
    ///
    /// Calls `on_patience` once a second during the sleep, and when a sleep ends with its time. It
    /// costs nothing before the sleep. Wakes for no reason, such as signals, do not put it off.
    #[cfg(any(feature = "futex", not(feature = "pthread"), outlast_loom))]
    pub(crate) fn wait_until_beside<T>(
        &self,
        beside: &AtomicU32,
        deadline: Deadline,
        step: impl FnMut(u32, Look) -> Step<T, [u32; 2]>,
        on_patience: impl Fn(),
    ) -> Result<T, TimedOut> {
        // In the model no time passes.
        let patience = || match cfg!(outlast_loom) {
            true => Deadline::NEVER,
            false => Deadline::after(hooks::second_look(robust::PATIENCE)),
        };
        let patient_until = core::cell::Cell::new(None); // since the first sleep
        let park = |[seen, expected]: [u32; 2], until: Deadline| loop {
            let patient = patient_until.get().unwrap_or_else(patience);
            patient_until.set(Some(patient));
            let beside = Watch { word: beside, expected };
            let first = until.earlier(patient);
            if self.parker.park_beside(&self.value, seen, beside, first) == Wake::Woken {
                return Wake::Woken;
            }
            on_patience();
            if first == until {
                return Wake::TimedOut;
            }
            patient_until.set(None);
        };
        self.wait(deadline, step, park)
    }

    fn wait<T, V: Copy + PartialEq>(
        &self,
        deadline: Deadline,
        mut step: impl FnMut(u32, Look) -> Step<T, V>,
        park: impl Fn(V, Deadline) -> Wake,
    ) -> Result<T, TimedOut> {
        if deadline.is_over() {
            // Nothing to wait for: take what is there, and leave no trace.
            loop {
                match step(self.value.load(Acquire), Look::Glance) {
                    Step::Done(done) => return Ok(done),
                    Step::Retry => crate::sync::spin_loop(),
                    Step::Sleep(_) | Step::Doze(_) => return Err(TimedOut),
                }
            }
        }
        let mut spinner = Spinner::new(core::ptr::from_ref(self).addr());
        while spinner.turn() {
            if let Step::Done(done) = step(self.value.load(Acquire), Look::Glance) {
                spinner.hit();
                return Ok(done);
            }
        }
        let park = |seen, until| {
            hooks::pause("wait: about to sleep");
            let wake = park(seen, until);
            hooks::pause("wait: back from its sleep");
            wake
        };
        let mut slept = None;
        let mut dozed = None; // at this value, and nothing came of it
        let mut late = false;
        loop {
            match step(self.value.load(Acquire), Look::BeforeSleep) {
                Step::Done(done) => {
                    slept.iter().for_each(|missed: &Missed| spinner.miss(missed.shortly()));
                    return Ok(done);
                }
                Step::Retry => crate::sync::spin_loop(),
                Step::Sleep(_) | Step::Doze(_) if late => {
                    spinner.miss(false);
                    return Err(TimedOut);
                }
                Step::Doze(seen) if dozed != Some(seen) => {
                    slept = slept.or_else(|| spinner.missed());
                    let doze = deadline.at_most(hooks::second_look(DOZE));
                    dozed = (park(seen, doze) == Wake::TimedOut).then_some(seen);
                    late = deadline.is_over();
                }
                Step::Sleep(seen) | Step::Doze(seen) => {
                    slept = slept.or_else(|| spinner.missed());
                    late = park(seen, deadline) == Wake::TimedOut;
                }
            }
        }
    }

    /// Sleeps, for a while at most, until the word is no longer `seen` or one of the others has
    /// changed. May return for no reason.
    #[cfg(not(outlast_loom))]
    pub(crate) fn sleep_any(&self, seen: u32, others: &[Watch<'_>]) {
        self.parker.park_any(&self.value, seen, others);
    }

    /// Wakes up to `n` sleepers; how many there were.
    pub(crate) fn wake(&self, n: u32) -> usize {
        self.parker.unpark(&self.value, n)
    }

    /// Changes the word and wakes up to `n` sleepers, in one step that a kill cannot split.
    pub(crate) fn change_and_wake(&self, change: Change, n: u32) -> usize {
        self.parker.change_and_unpark(&self.value, &self.value, change, n)
    }

    /// The same, but changes the word `beside` this one.
    #[cfg(any(feature = "futex", not(feature = "pthread"), outlast_loom))]
    pub(crate) fn change_beside_and_wake(
        &self,
        beside: &AtomicU32,
        change: Change,
        n: u32,
    ) -> usize {
        self.parker.change_and_unpark(&self.value, beside, change, n)
    }
}
