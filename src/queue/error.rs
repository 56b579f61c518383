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
    /// A message is there, but as many as the queue allows are delivered and not acknowledged. Only
    /// verbs that deliver messages to be acknowledged fail with it.
    #[error("too many messages are delivered and not acknowledged")]
    TooManyInFlight,
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
    /// A message was there, but as many as the queue allows were delivered and not acknowledged
    /// until the deadline. Only verbs that deliver messages to be acknowledged fail with it.
    #[error("too many messages are delivered and not acknowledged")]
    TooManyInFlight,
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

/// Why an attempt to send failed.
#[derive(Clone, Copy, Debug)]
pub(super) enum SendFailure {
    Full,
    /// Or nobody can receive, where a [`Channel`](super::Channel) has said so.
    Closed,
    Disconnected,
    Failed(Fault),
}

/// Why an attempt to receive failed, where it is not just that no message is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum RecvFailure {
    /// A message is there, but no entry of the in-flight table is free.
    TooManyInFlight,
    /// Or nobody can send, where a [`Channel`](super::Channel) has said so.
    Closed,
    Disconnected,
    Failed(Fault),
}

impl From<Fault> for RecvFailure {
    fn from(fault: Fault) -> Self {
        RecvFailure::Failed(fault)
    }
}

impl RecvFailure {
    pub(super) fn for_ever<R>(received: Result<Option<R>, RecvFailure>) -> Result<R, RecvError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Err(RecvFailure::Failed(fault)) => Err(RecvError::Failed(fault)),
            Ok(None) | Err(RecvFailure::TooManyInFlight | RecvFailure::Closed) => {
                Err(RecvError::Closed)
            }
            Err(RecvFailure::Disconnected) => Err(RecvError::Disconnected),
        }
    }

    pub(super) fn at_once<R>(received: Result<Option<R>, RecvFailure>) -> Result<R, TryRecvError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(TryRecvError::Empty),
            Err(RecvFailure::TooManyInFlight) => Err(TryRecvError::TooManyInFlight),
            Err(RecvFailure::Closed) => Err(TryRecvError::Closed),
            Err(RecvFailure::Disconnected) => Err(TryRecvError::Disconnected),
            Err(RecvFailure::Failed(fault)) => Err(TryRecvError::Failed(fault)),
        }
    }

    pub(super) fn in_time<R>(
        received: Result<Option<R>, RecvFailure>,
    ) -> Result<R, RecvTimeoutError> {
        match received {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(RecvTimeoutError::TimedOut),
            Err(RecvFailure::TooManyInFlight) => Err(RecvTimeoutError::TooManyInFlight),
            Err(RecvFailure::Closed) => Err(RecvTimeoutError::Closed),
            Err(RecvFailure::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(RecvFailure::Failed(fault)) => Err(RecvTimeoutError::Failed(fault)),
        }
    }
}

impl SendFailure {
    pub(super) fn for_ever<T>((message, unsent): (T, SendFailure)) -> SendError<T> {
        match unsent {
            SendFailure::Failed(fault) => SendError::Failed(message, fault),
            SendFailure::Full | SendFailure::Closed => SendError::Closed(message),
            SendFailure::Disconnected => SendError::Disconnected(message),
        }
    }

    pub(super) fn at_once<T>((message, unsent): (T, SendFailure)) -> TrySendError<T> {
        match unsent {
            SendFailure::Full => TrySendError::Full(message),
            SendFailure::Closed => TrySendError::Closed(message),
            SendFailure::Disconnected => TrySendError::Disconnected(message),
            SendFailure::Failed(fault) => TrySendError::Failed(message, fault),
        }
    }

    pub(super) fn in_time<T>((message, unsent): (T, SendFailure)) -> SendTimeoutError<T> {
        match unsent {
            SendFailure::Full => SendTimeoutError::TimedOut(message),
            SendFailure::Closed => SendTimeoutError::Closed(message),
            SendFailure::Disconnected => SendTimeoutError::Disconnected(message),
            SendFailure::Failed(fault) => SendTimeoutError::Failed(message, fault),
        }
    }
}

/// The error of a batch of which `sent` messages were sent before `error`.
pub(super) fn after_sent<T>(error: SendError<T>, sent: usize) -> SendError<usize> {
    match error {
        SendError::Closed(_) => SendError::Closed(sent),
        SendError::Disconnected(_) => SendError::Disconnected(sent),
        SendError::PeerDied(_) => SendError::PeerDied(sent),
        SendError::Failed(_, fault) => SendError::Failed(sent, fault),
    }
}
