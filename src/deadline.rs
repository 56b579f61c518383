//! When a call gives up: a point in time, made once per call, so that retries do not extend it.
use crate::sync::now;
use std::time::{Duration, Instant};

/// A point on the monotonic clock, never, or now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(When);

/// The variants are in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Now,
    At(Instant),
    Never,
}

impl Deadline {
    /// The call blocks as long as necessary.
    pub(crate) const NEVER: Deadline = Deadline(When::Never);

    /// The call does not block.
    pub(crate) const NOW: Deadline = Deadline(When::Now);

    /// The point `timeout` from now. A sum that the clock cannot represent is [`Deadline::NEVER`].
    pub(crate) fn after(timeout: Duration) -> Self {
        Deadline(now().checked_add(timeout).map_or(When::Never, When::At))
    }

    /// The point `instant`.
    pub(crate) fn at(instant: Instant) -> Self {
        Deadline(When::At(instant))
    }

    /// This deadline, or `length` from now if that is earlier.
    pub(crate) fn at_most(self, length: Duration) -> Self {
        self.earlier(Deadline::after(length))
    }

    /// The earlier of the two.
    pub(crate) fn earlier(self, other: Deadline) -> Self {
        Deadline(self.0.min(other.0))
    }

    /// Whether this is [`Deadline::NOW`].
    pub(crate) fn is_now(self) -> bool {
        self.0 == When::Now
    }

    /// Whether this is [`Deadline::NEVER`].
    #[cfg_attr(not(outlast_loom), expect(dead_code, reason = "for the model, which has no clock"))]
    pub(crate) fn is_never(self) -> bool {
        self.0 == When::Never
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_over(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// The remaining time: `None` for [`Deadline::NEVER`], zero once the deadline has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        match self.0 {
            When::Now => Some(Duration::ZERO),
            When::At(at) => Some(at.saturating_duration_since(now())),
            When::Never => None,
        }
    }
}
