//! Errors of the ring: one small type per verb, which gives the value back.
use super::end::Nothing;
use crate::error::Fault;
use core::fmt;
use thiserror::Error;

/// Why an end of the ring was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoleError {
    /// A process has it.
    #[error("this end of the ring is taken")]
    Taken,
    /// It could not even be tried.
    #[error(transparent)]
    Failed(Fault),
}

/// Why [`send`](super::Producer::send) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError<T> {
    /// The ring is closed.
    #[error("the ring is closed")]
    Closed(T),
    /// The ring is full, and the consumer has died.
    #[error("the ring is full and its consumer has died")]
    PeerDied(T),
    /// It could not even be tried.
    #[error("{1}")]
    Failed(T, Fault),
}

/// Why [`try_send`](super::Producer::try_send) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// No slot is free.
    #[error("the ring is full")]
    Full(T),
    /// The ring is closed.
    #[error("the ring is closed")]
    Closed(T),
    /// The ring is full, and the consumer has died.
    #[error("the ring is full and its consumer has died")]
    PeerDied(T),
    /// It could not even be tried.
    #[error("{1}")]
    Failed(T, Fault),
}

/// Why [`send_timeout`](super::Producer::send_timeout) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendTimeoutError<T> {
    /// No slot became free in time.
    #[error("the ring stayed full past the deadline")]
    TimedOut(T),
    /// The ring is closed.
    #[error("the ring is closed")]
    Closed(T),
    /// The ring is full, and the consumer has died.
    #[error("the ring is full and its consumer has died")]
    PeerDied(T),
    /// It could not even be tried.
    #[error("{1}")]
    Failed(T, Fault),
}

/// Why [`recv`](super::Consumer::recv) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The ring is closed, and nothing is left in it.
    #[error("the ring is closed and empty")]
    Closed,
    /// The producer has died, and nothing is left in the ring.
    #[error("the ring is empty and its producer has died")]
    PeerDied,
    /// It could not even be tried, or what came out is no value of the type.
    #[error(transparent)]
    Failed(Fault),
}

/// Why [`try_recv`](super::Consumer::try_recv) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// Nothing is in the ring now.
    #[error("the ring is empty")]
    Empty,
    /// The ring is closed, and nothing is left in it.
    #[error("the ring is closed and empty")]
    Closed,
    /// The producer has died, and nothing is left in the ring.
    #[error("the ring is empty and its producer has died")]
    PeerDied,
    /// It could not even be tried, or what came out is no value of the type.
    #[error(transparent)]
    Failed(Fault),
}

/// Why [`recv_timeout`](super::Consumer::recv_timeout) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// Nothing came in time.
    #[error("the ring stayed empty past the deadline")]
    TimedOut,
    /// The ring is closed, and nothing is left in it.
    #[error("the ring is closed and empty")]
    Closed,
    /// The producer has died, and nothing is left in the ring.
    #[error("the ring is empty and its producer has died")]
    PeerDied,
    /// It could not even be tried, or what came out is no value of the type.
    #[error(transparent)]
    Failed(Fault),
}

impl<T> SendError<T> {
    pub(super) fn from(nothing: Nothing, value: T) -> Self {
        match nothing {
            Nothing::PeerDied => SendError::PeerDied(value),
            Nothing::Failed(fault) => SendError::Failed(value, fault),
            // Waiting without end does not end with a full ring.
            Nothing::Closed | Nothing::Now => SendError::Closed(value),
        }
    }

    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Closed(value) | SendError::PeerDied(value) | SendError::Failed(value, _) => {
                value
            }
        }
    }
}

impl<T> TrySendError<T> {
    pub(super) fn from(nothing: Nothing, value: T) -> Self {
        match nothing {
            Nothing::Now => TrySendError::Full(value),
            Nothing::Closed => TrySendError::Closed(value),
            Nothing::PeerDied => TrySendError::PeerDied(value),
            Nothing::Failed(fault) => TrySendError::Failed(value, fault),
        }
    }

    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value)
            | TrySendError::Closed(value)
            | TrySendError::PeerDied(value)
            | TrySendError::Failed(value, _) => value,
        }
    }

    /// Whether the ring was full, and no more.
    pub fn is_full(&self) -> bool {
        matches!(self, TrySendError::Full(_))
    }
}

impl<T> SendTimeoutError<T> {
    pub(super) fn from(nothing: Nothing, value: T) -> Self {
        match nothing {
            Nothing::Now => SendTimeoutError::TimedOut(value),
            Nothing::Closed => SendTimeoutError::Closed(value),
            Nothing::PeerDied => SendTimeoutError::PeerDied(value),
            Nothing::Failed(fault) => SendTimeoutError::Failed(value, fault),
        }
    }

    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            SendTimeoutError::TimedOut(value)
            | SendTimeoutError::Closed(value)
            | SendTimeoutError::PeerDied(value)
            | SendTimeoutError::Failed(value, _) => value,
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

/// `Debug` without asking it of the value, so that errors can be unwrapped whatever they carry.
macro_rules! debug_by_name {
    ($($error:ident { $($variant:ident),+ })*) => {$(
        impl<T> fmt::Debug for $error<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($error::$variant(_) => f.write_str(stringify!($variant)),)+
                    $error::Failed(_, fault) => f.debug_tuple("Failed").field(fault).finish(),
                }
            }
        }
    )*};
}
debug_by_name! {
    SendError { Closed, PeerDied }
    TrySendError { Full, Closed, PeerDied }
    SendTimeoutError { TimedOut, Closed, PeerDied }
}
