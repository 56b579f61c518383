//! Errors of the queues: one type for each form of a verb. Errors of sending give the value back.
use super::ring::ClaimError;
use crate::error::Fault;
use core::fmt;
use thiserror::Error;

/// Why [`send`](super::Queue::send) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError<T> {
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
    /// The [`Channel`](super::Channel) has no receiver left.
    #[error("the channel has no receiver left")]
    Disconnected(T),
    /// The queue is a full [`Ring`](super::spsc::Ring), and its consumer has died.
    #[error("the queue is full and its consumer has died: another process can become the consumer")]
    PeerDied(T),
    /// The attempt failed.
    #[error("{1}")]
    Failed(T, #[source] Fault),
}

/// Why [`try_send`](super::Queue::try_send) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// There is no room.
    #[error("the queue is full")]
    Full(T),
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
    /// The [`Channel`](super::Channel) has no receiver left.
    #[error("the channel has no receiver left")]
    Disconnected(T),
    /// The queue is a full [`Ring`](super::spsc::Ring), and its consumer has died.
    #[error("the queue is full and its consumer has died: another process can become the consumer")]
    PeerDied(T),
    /// The attempt failed.
    #[error("{1}")]
    Failed(T, #[source] Fault),
}

/// Why [`send_timeout`](super::Queue::send_timeout) did not send.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendTimeoutError<T> {
    /// No room became free before the deadline.
    #[error("the queue stayed full past the deadline")]
    TimedOut(T),
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
    /// The [`Channel`](super::Channel) has no receiver left.
    #[error("the channel has no receiver left")]
    Disconnected(T),
    /// The queue is a full [`Ring`](super::spsc::Ring), and its consumer has died.
    #[error("the queue is full and its consumer has died: another process can become the consumer")]
    PeerDied(T),
    /// The attempt failed.
    #[error("{1}")]
    Failed(T, #[source] Fault),
}

/// Why [`recv`](super::Queue::recv) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
    /// The [`Channel`](super::Channel) is empty, and it has no sender left.
    #[error("the channel is empty and has no sender left")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is not a valid value of its type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

/// Why [`try_recv`](super::Queue::try_recv) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// No message is in the queue now.
    #[error("the queue is empty")]
    Empty,
    /// A message is available, but as many as the queue allows are delivered and not acknowledged.
    /// Only verbs such as `recv_ack`, whose messages must be acknowledged, return this error.
    #[error("too many messages are delivered and not acknowledged")]
    TooManyInFlight,
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
    /// The [`Channel`](super::Channel) is empty, and it has no sender left.
    #[error("the channel is empty and has no sender left")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is not a valid value of its type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

/// Why [`recv_timeout`](super::Queue::recv_timeout) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// No message came before the deadline.
    #[error("the queue stayed empty past the deadline")]
    TimedOut,
    /// A message was available, but up to the deadline as many as the queue allows were delivered
    /// and not acknowledged. Only verbs such as `recv_ack`, whose messages must be acknowledged,
    /// return this error.
    #[error("too many messages are delivered and not acknowledged")]
    TooManyInFlight,
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
    /// The [`Channel`](super::Channel) is empty, and it has no sender left.
    #[error("the channel is empty and has no sender left")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is not a valid value of its type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

impl<T> SendError<T> {
    /// Returns the value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Closed(value)
            | SendError::Disconnected(value)
            | SendError::PeerDied(value)
            | SendError::Failed(value, _) => value,
        }
    }
}

impl<T> TrySendError<T> {
    /// Returns the value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value)
            | TrySendError::Closed(value)
            | TrySendError::Disconnected(value)
            | TrySendError::PeerDied(value)
            | TrySendError::Failed(value, _) => value,
        }
    }

    /// Returns `true` if the queue was full.
    pub fn is_full(&self) -> bool {
        matches!(self, TrySendError::Full(_))
    }
}

impl<T> SendTimeoutError<T> {
    /// Returns the value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            SendTimeoutError::TimedOut(value)
            | SendTimeoutError::Closed(value)
            | SendTimeoutError::Disconnected(value)
            | SendTimeoutError::PeerDied(value)
            | SendTimeoutError::Failed(value, _) => value,
        }
    }
}

/// Implements `Debug` without the value. So a result can be unwrapped even if the value has no
/// `Debug`.
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
    SendError { Closed, Disconnected, PeerDied }
    TrySendError { Full, Closed, Disconnected, PeerDied }
    SendTimeoutError { TimedOut, Closed, Disconnected, PeerDied }
}

/// Why an attempt to send or to receive failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no room, or no message. After a wait: neither came before the deadline.
    Unavailable,
    /// A message is there, but no entry of the in-flight table is free.
    TooManyInFlight,
    /// The queue is closed, or the other end of its [`Channel`](super::Channel) seems to be gone.
    Closed,
    Disconnected,
    /// The other end of a [`Ring`](super::spsc::Ring) died.
    PeerDied,
    Failed(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Failed(fault)
    }
}

impl From<ClaimError> for Failure {
    #[inline(always)]
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Unavailable | ClaimError::Pending => Failure::Unavailable,
            ClaimError::Corrupt => Failure::Failed(Fault::Corrupt),
        }
    }
}

/// Converts a failure into the error of each form of a verb. The form that blocks without a
/// deadline has no variant for `Unavailable` and `TooManyInFlight`, because it never fails with
/// them.
macro_rules! convert {
    ($($Error:ident: $Full:ident;)*) => {$(
        impl<T> From<(T, Failure)> for $Error<T> {
            #[inline]
            fn from((message, failure): (T, Failure)) -> Self {
                match failure {
                    Failure::Unavailable | Failure::TooManyInFlight => $Error::$Full(message),
                    Failure::Closed => $Error::Closed(message),
                    Failure::Disconnected => $Error::Disconnected(message),
                    Failure::PeerDied => $Error::PeerDied(message),
                    Failure::Failed(fault) => $Error::Failed(message, fault),
                }
            }
        }

        impl From<Failure> for $Error<()> {
            #[inline]
            fn from(failure: Failure) -> Self {
                ((), failure).into()
            }
        }
    )*};
    ($($Error:ident: $Empty:ident, $TooMany:ident;)*) => {$(
        impl From<Failure> for $Error {
            #[inline]
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::Unavailable => $Error::$Empty,
                    Failure::TooManyInFlight => $Error::$TooMany,
                    Failure::Closed => $Error::Closed,
                    Failure::Disconnected => $Error::Disconnected,
                    Failure::PeerDied => $Error::PeerDied,
                    Failure::Failed(fault) => $Error::Failed(fault),
                }
            }
        }
    )*};
}
convert! {
    SendError: Closed;
    TrySendError: Full;
    SendTimeoutError: TimedOut;
}
convert! {
    RecvError: Closed, Closed;
    TryRecvError: Empty, TooManyInFlight;
    RecvTimeoutError: TimedOut, TooManyInFlight;
}
