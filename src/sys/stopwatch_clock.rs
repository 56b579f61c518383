//! Lengths of time, for guesses: by the clock, where no counter of the CPU's is known.
use crate::sync::now;
use core::time::Duration;
use std::time::Instant;

/// A moment at which measuring began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Stopwatch(now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.until(Stopwatch::start())
    }

    /// From this one's beginning to the other's.
    pub(crate) fn until(self, later: Stopwatch) -> Duration {
        later.0.saturating_duration_since(self.0)
    }
}
