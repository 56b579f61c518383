//! One error for all, for programs that do not tell them apart.
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

/// Any error of this crate, without the guard or the value that the particular one carries.
///
/// Made for `?`: every error of the crate turns into it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A segment could not be created or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An operation could not even be tried.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A lock was not taken, or its value is in doubt (and the lock was given up again).
    #[error(transparent)]
    Lock(LockError<()>),
    /// A message was not sent, and is dropped.
    #[error(transparent)]
    Send(SendTimeoutError<()>),
    /// A slot was not free at once; the message is dropped.
    #[error("the queue is full")]
    Full,
    /// No message was received.
    #[error(transparent)]
    Recv(RecvTimeoutError),
    /// No message was there at once.
    #[error("the queue is empty")]
    Empty,
    /// An end of a ring was not taken.
    #[error(transparent)]
    Role(#[from] spsc::RoleError),
    /// A barrier did not let through.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A latch did not let through.
    #[error(transparent)]
    Latch(#[from] LatchError),
    /// More permits were released than a semaphore holds.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A value was not made.
    #[error(transparent)]
    Once(#[from] OnceError),
    /// A process was not started.
    #[cfg(feature = "process")]
    #[error(transparent)]
    Spawn(#[from] crate::process::SpawnError),
    /// A process gave no value.
    #[cfg(feature = "process")]
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// There is no pool.
    #[cfg(feature = "pool")]
    #[error(transparent)]
    Pool(#[from] crate::pool::PoolError),
    /// A task gave no value.
    #[cfg(feature = "pool")]
    #[error(transparent)]
    Task(#[from] crate::pool::TaskError),
    /// The time passed first.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The operating system refused.
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
