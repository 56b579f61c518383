//! Sleeping until somebody says that something has changed, where the state itself is no word that one could sleep on.
use super::{Look, Step, TimedOut, WaitWord};
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sys::Change;

/// A sequence word, and whether anybody sleeps on it.
///
/// # Invariants
/// - I1. A thread asleep on `seq` => `armed` is not 0. (It may be not 0 with nobody asleep: one wasted system
///   call clears it.) A sleeper arms, fences, looks once more, and sleeps; who changes the state
///   fences and then reads `armed`: one of the two sees the other.
/// - I2. `armed` is cleared only by one whose wake found nobody asleep, and only if it still holds what
///   was there before that wake. Whoever armed it with the same number read `seq` before the wake, which
///   moved it: the kernel will not put that thread to sleep.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Signal {
    seq: WaitWord,
    armed: AtomicU32,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Signal { seq: WaitWord::new(0), armed: AtomicU32::new(0) }
    }

    /// To be called where it will stay.
    pub(crate) fn place(&self) {
        self.seq.place();
    }

    /// Waits until `attempt` gives something.
    pub(crate) fn wait<R>(
        &self,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Result<R, TimedOut> {
        self.seq.wait_until(deadline, |seen, look| {
            if let Some(done) = attempt() {
                return Step::Done(done);
            }
            if look == Look::Glance {
                return Step::Sleep(seen);
            }
            self.armed.store((seen << 1) | 1, Relaxed);
            fence(SeqCst); // keeps I1
            attempt().map_or(Step::Sleep(seen), Step::Done)
        })
    }

    /// Whether somebody may be asleep. To be asked after a change and a `fence(SeqCst)`.
    #[inline(always)]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed) != 0
    }

    /// Wakes up to `n` sleepers, if there may be any.
    #[cold]
    pub(crate) fn notify(&self, n: u32) {
        let armed = self.armed.load(Relaxed);
        if armed != 0 && self.seq.change_and_wake(Change::AddOne, n) == 0 {
            self.armed.compare_exchange(armed, 0, Relaxed, Relaxed).ok(); // keeps I2
        }
    }

    /// Wakes everybody, come what may.
    pub(crate) fn wake_all(&self) {
        self.seq.change_and_wake(Change::AddOne, u32::MAX);
    }
}
