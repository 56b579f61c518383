//! What can go wrong with a pool, and with a task.
use crate::error::OpenError;
use crate::process::SpawnError;
use thiserror::Error;

/// Why there is no pool.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool has 1 to 256 workers.
    #[error("a pool has 1 to 256 workers")]
    InvalidWorkers,
    /// No worker was started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// There is no memory for it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Why a task gave no value.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function panicked.
    #[error("the task panicked at {location}: {message}")]
    Panicked {
        /// What it panicked with, if that is text.
        message: String,
        /// File, line and column.
        location: String,
        /// The worker's stack at that moment, as text.
        backtrace: String,
    },
    /// The worker died at it, as often as it was to be tried.
    #[error("the worker died (signal {signal:?}, exit code {code:?})")]
    WorkerDied {
        /// The signal that killed the last one.
        signal: Option<i32>,
        /// Its exit code, if it ended by itself.
        code: Option<i32>,
    },
    /// It took longer than the pool allows.
    #[error("the task took longer than its pool allows")]
    TimedOut,
    /// [`Task::cancel`](super::Task::cancel) was called.
    #[error("the task was cancelled")]
    Cancelled,
    /// The pool is closed, so that the task was never begun.
    #[error("the pool is closed")]
    Closed,
    /// The pool was [stopped](super::Builder::stop) before the task was begun, or before it was
    /// tried again.
    #[error("the pool was stopped")]
    Stopped,
    /// The pool was terminated.
    #[error("the pool was terminated")]
    Terminated,
    /// No worker can be started, or none gets through its initializer.
    #[error("the pool has no workers: {0}")]
    Broken(String),
    /// The function does not lie in this executable.
    #[error("the function is not part of this executable")]
    ForeignFunction,
    /// The argument cannot be encoded, or the worker cannot decode it.
    #[error("the argument cannot be encoded: {0}")]
    Argument(String),
    /// The worker cannot encode the result.
    #[error("the result cannot be encoded: {0}")]
    Encode(String),
    /// The result cannot be decoded here.
    #[error("the result cannot be decoded: {0}")]
    Decode(String),
    /// There was no descriptor or no memory to pass a value of more than 12 KiB to the worker or
    /// back, and none became free within a second. If it was the result, the task has run.
    #[error("a large value cannot be passed between the processes: {0}")]
    Transfer(String),
    /// The value has been taken already.
    #[error("the value of this task has been taken already")]
    Taken,
    /// The pool belongs to the process that was forked.
    #[error("the pool belongs to the process that was forked")]
    Forked,
}

impl TaskError {
    /// Whether a pool that is closed for this reason has ended.
    pub(super) fn ends_pool(&self) -> bool {
        !matches!(self, TaskError::Closed | TaskError::Stopped)
    }
}
