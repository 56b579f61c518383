//! Measuring approximate lengths of time by the clock, for CPUs without a known counter.
use crate::sync::now;
use core::time::Duration;
use std::time::Instant;

/// The moment at which a measurement began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Stopwatch(now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.until(Stopwatch::start())
    }

    /// Returns the time from this moment to `later`.
    pub(crate) fn until(self, later: Stopwatch) -> Duration {
        later.0.saturating_duration_since(self.0)
    }
}
