//! One error type that every other error of the crate converts into.
use crate::barrier::BarrierError;
use crate::error::{Fault, OpenError, TimeoutError};
use crate::latch::LatchError;
use crate::lock::LockError;
use crate::once::OnceError;
use crate::queue::spsc;
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::semaphore::ReleaseError;
use crate::wait::TimedOut;
use std::io;
use thiserror::Error;

/// Any error of this crate, without the guard or the message that the original error contains.
///
/// It is made for `?`: every error of the crate converts into it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A segment could not be created or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An operation could not be tried.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A lock was not acquired, or its value may be half changed. The lock is released again.
    #[error(transparent)]
    Lock(LockError<()>),
    /// A message was not sent. It is dropped.
    #[error(transparent)]
    Send(SendTimeoutError<()>),
    /// The queue was full, and the call does not block. The message is dropped.
    #[error("the queue is full")]
    Full,
    /// No message was received.
    #[error(transparent)]
    Recv(RecvTimeoutError),
    /// The queue was empty, and the call does not block.
    #[error("the queue is empty")]
    Empty,
    /// This process could not become the producer or the consumer of a ring.
    #[error(transparent)]
    Role(#[from] spsc::RoleError),
    /// A barrier broke, or could not be used.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A latch failed, or could not be used.
    #[error(transparent)]
    Latch(#[from] LatchError),
    /// A release would have made more permits than a semaphore can have.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The value of a cell was not made.
    #[error(transparent)]
    Once(#[from] OnceError),
    /// A process could not be started.
    #[cfg(feature = "process")]
    #[error(transparent)]
    Spawn(#[from] crate::process::SpawnError),
    /// A process ended without a value.
    #[cfg(feature = "process")]
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// A pool could not be built or used.
    #[cfg(feature = "pool")]
    #[error(transparent)]
    Pool(#[from] crate::pool::PoolError),
    /// A task ended without a value.
    #[cfg(feature = "pool")]
    #[error(transparent)]
    Task(#[from] crate::pool::TaskError),
    /// A call timed out.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The operating system refused a call.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<TimeoutError> for Error {
    fn from(error: TimeoutError) -> Self {
        match error {
            TimeoutError::TimedOut => Error::TimedOut(TimedOut),
            TimeoutError::Failed(fault) => Error::Fault(fault),
        }
    }
}

impl<G> From<LockError<G>> for Error {
    fn from(error: LockError<G>) -> Self {
        Error::Lock(error.map(drop))
    }
}

impl<T> From<SendError<T>> for Error {
    fn from(error: SendError<T>) -> Self {
        Error::Send(match error {
            SendError::Closed(_) => SendTimeoutError::Closed(()),
            SendError::Disconnected(_) => SendTimeoutError::Disconnected(()),
            SendError::PeerDied(_) => SendTimeoutError::PeerDied(()),
            SendError::Failed(_, fault) => SendTimeoutError::Failed((), fault),
        })
    }
}

impl<T> From<SendTimeoutError<T>> for Error {
    fn from(error: SendTimeoutError<T>) -> Self {
        Error::Send(match error {
            SendTimeoutError::TimedOut(_) => SendTimeoutError::TimedOut(()),
            SendTimeoutError::Closed(_) => SendTimeoutError::Closed(()),
            SendTimeoutError::Disconnected(_) => SendTimeoutError::Disconnected(()),
            SendTimeoutError::PeerDied(_) => SendTimeoutError::PeerDied(()),
            SendTimeoutError::Failed(_, fault) => SendTimeoutError::Failed((), fault),
        })
    }
}

impl<T> From<TrySendError<T>> for Error {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Error::Full,
            TrySendError::Closed(_) => Error::Send(SendTimeoutError::Closed(())),
            TrySendError::Disconnected(_) => Error::Send(SendTimeoutError::Disconnected(())),
            TrySendError::PeerDied(_) => Error::Send(SendTimeoutError::PeerDied(())),
            TrySendError::Failed(_, fault) => Error::Send(SendTimeoutError::Failed((), fault)),
        }
    }
}

impl From<RecvError> for Error {
    fn from(error: RecvError) -> Self {
        Error::Recv(match error {
            RecvError::Closed => RecvTimeoutError::Closed,
            RecvError::Disconnected => RecvTimeoutError::Disconnected,
            RecvError::PeerDied => RecvTimeoutError::PeerDied,
            RecvError::Failed(fault) => RecvTimeoutError::Failed(fault),
        })
    }
}

#[cfg(feature = "serde")]
impl<E: Into<Error>> From<crate::queue::ValueError<E>> for Error {
    fn from(error: crate::queue::ValueError<E>) -> Self {
        match error {
            crate::queue::ValueError::Recv(error) => error.into(),
            crate::queue::ValueError::Undecodable(_) => Error::Fault(Fault::Undecodable),
        }
    }
}

impl From<RecvTimeoutError> for Error {
    fn from(error: RecvTimeoutError) -> Self {
        Error::Recv(error)
    }
}

impl From<TryRecvError> for Error {
    fn from(error: TryRecvError) -> Self {
        match error {
            TryRecvError::Empty => Error::Empty,
            TryRecvError::TooManyInFlight => Error::Recv(RecvTimeoutError::TooManyInFlight),
            TryRecvError::Closed => Error::Recv(RecvTimeoutError::Closed),
            TryRecvError::Disconnected => Error::Recv(RecvTimeoutError::Disconnected),
            TryRecvError::PeerDied => Error::Recv(RecvTimeoutError::PeerDied),
            TryRecvError::Failed(fault) => Error::Recv(RecvTimeoutError::Failed(fault)),
        }
    }
}
