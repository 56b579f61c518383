//! When to give up: a point in time, made once per call, so that retries do not extend it.
use crate::sync::now;
use std::time::{Duration, Instant};

/// A point on the monotonic clock, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// Waits for as long as it takes.
    pub(crate) const NEVER: Deadline = Deadline(None);

    /// `timeout` from now; a sum that no clock can show is [`Deadline::NEVER`].
    pub(crate) fn after(timeout: Duration) -> Self {
        Deadline(now().checked_add(timeout))
    }

    /// At `instant`.
    pub(crate) fn at(instant: Instant) -> Self {
        Deadline(Some(instant))
    }

    /// This one, or `length` from now if that is earlier.
    pub(crate) fn at_most(self, length: Duration) -> Self {
        self.earlier(Deadline::after(length))
    }

    /// The earlier of the two.
    pub(crate) fn earlier(self, other: Deadline) -> Self {
        Deadline(match (self.0, other.0) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        })
    }

    /// Whether there is no end to the waiting.
    #[cfg_attr(not(outlast_loom), expect(dead_code, reason = "for the model, which has no clock"))]
    pub(crate) fn is_never(self) -> bool {
        self.0.is_none()
    }

    /// Whether it has passed.
    pub(crate) fn is_over(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// What is left of the time: `None` for ever, zero once it is over.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now()))
    }
}
