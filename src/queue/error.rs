//! Errors of the queues: one small type per verb, which gives the value back.
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
    /// Everybody who had the receivers' end of the [`Channel`](super::Channel) is gone.
    #[error("nobody is left to receive")]
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
    /// No slot is free.
    #[error("the queue is full")]
    Full(T),
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
    /// Everybody who had the receivers' end of the [`Channel`](super::Channel) is gone.
    #[error("nobody is left to receive")]
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
    /// No slot became free in time.
    #[error("the queue stayed full past the deadline")]
    TimedOut(T),
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
    /// Everybody who had the receivers' end of the [`Channel`](super::Channel) is gone.
    #[error("nobody is left to receive")]
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
    /// The queue is closed, and nothing is left in it.
    #[error("the queue is closed and empty")]
    Closed,
    /// Everybody who had the senders' end of the [`Channel`](super::Channel) is gone, and nothing
    /// is left in it.
    #[error("nobody is left to send, and nothing to receive")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is no value of the type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

/// Why [`try_recv`](super::Queue::try_recv) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// Nothing is in the queue now.
    #[error("the queue is empty")]
    Empty,
    /// The queue is closed, and nothing is left in it.
    #[error("the queue is closed and empty")]
    Closed,
    /// Everybody who had the senders' end of the [`Channel`](super::Channel) is gone, and nothing
    /// is left in it.
    #[error("nobody is left to send, and nothing to receive")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is no value of the type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

/// Why [`recv_timeout`](super::Queue::recv_timeout) received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// Nothing came in time.
    #[error("the queue stayed empty past the deadline")]
    TimedOut,
    /// The queue is closed, and nothing is left in it.
    #[error("the queue is closed and empty")]
    Closed,
    /// Everybody who had the senders' end of the [`Channel`](super::Channel) is gone, and nothing
    /// is left in it.
    #[error("nobody is left to send, and nothing to receive")]
    Disconnected,
    /// The queue is an empty [`Ring`](super::spsc::Ring), and its producer has died.
    #[error(
        "the queue is empty and its producer has died: another process can become the producer"
    )]
    PeerDied,
    /// The attempt failed, or the message is no value of the type.
    #[error("{0}")]
    Failed(#[source] Fault),
}

impl<T> SendError<T> {
    /// The value that was not sent.
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
    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value)
            | TrySendError::Closed(value)
            | TrySendError::Disconnected(value)
            | TrySendError::PeerDied(value)
            | TrySendError::Failed(value, _) => value,
        }
    }

    /// Whether the queue was full.
    pub fn is_full(&self) -> bool {
        matches!(self, TrySendError::Full(_))
    }
}

impl<T> SendTimeoutError<T> {
    /// The value that was not sent.
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
    SendError { Closed, Disconnected, PeerDied }
    TrySendError { Full, Closed, Disconnected, PeerDied }
    SendTimeoutError { TimedOut, Closed, Disconnected, PeerDied }
}
