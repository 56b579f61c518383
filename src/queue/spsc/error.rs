//! Why an end was not taken, and what the state of an end means to each verb.
use super::end::Nothing;
use crate::error::Fault;
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use thiserror::Error;

/// Why an end of the ring was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoleError {
    /// A process has it.
    #[error("this end of the ring is taken: `producer_timeout` and `consumer_timeout` wait for it")]
    Taken,
    /// A process kept it past the deadline.
    #[error("another process kept this end of the ring past the deadline")]
    TimedOut,
    /// The attempt failed.
    #[error("{0}")]
    Failed(#[source] Fault),
}

impl<T> From<(T, Nothing)> for SendError<T> {
    fn from((value, nothing): (T, Nothing)) -> Self {
        match nothing {
            // Waiting without end does not end with a full ring.
            Nothing::Now | Nothing::Closed => SendError::Closed(value),
            Nothing::PeerDied => SendError::PeerDied(value),
            Nothing::Failed(fault) => SendError::Failed(value, fault),
        }
    }
}

impl<T> From<(T, Nothing)> for TrySendError<T> {
    fn from((value, nothing): (T, Nothing)) -> Self {
        match nothing {
            Nothing::Now => TrySendError::Full(value),
            Nothing::Closed => TrySendError::Closed(value),
            Nothing::PeerDied => TrySendError::PeerDied(value),
            Nothing::Failed(fault) => TrySendError::Failed(value, fault),
        }
    }
}

impl<T> From<(T, Nothing)> for SendTimeoutError<T> {
    fn from((value, nothing): (T, Nothing)) -> Self {
        match nothing {
            Nothing::Now => SendTimeoutError::TimedOut(value),
            Nothing::Closed => SendTimeoutError::Closed(value),
            Nothing::PeerDied => SendTimeoutError::PeerDied(value),
            Nothing::Failed(fault) => SendTimeoutError::Failed(value, fault),
        }
    }
}

impl From<Nothing> for RecvError {
    fn from(nothing: Nothing) -> Self {
        match nothing {
            Nothing::PeerDied => RecvError::PeerDied,
            Nothing::Failed(fault) => RecvError::Failed(fault),
            // Waiting without end does not end with an empty ring.
            Nothing::Closed | Nothing::Now => RecvError::Closed,
        }
    }
}

impl From<Nothing> for TryRecvError {
    fn from(nothing: Nothing) -> Self {
        match nothing {
            Nothing::Now => TryRecvError::Empty,
            Nothing::Closed => TryRecvError::Closed,
            Nothing::PeerDied => TryRecvError::PeerDied,
            Nothing::Failed(fault) => TryRecvError::Failed(fault),
        }
    }
}

impl From<Nothing> for RecvTimeoutError {
    fn from(nothing: Nothing) -> Self {
        match nothing {
            Nothing::Now => RecvTimeoutError::TimedOut,
            Nothing::Closed => RecvTimeoutError::Closed,
            Nothing::PeerDied => RecvTimeoutError::PeerDied,
            Nothing::Failed(fault) => RecvTimeoutError::Failed(fault),
        }
    }
}
