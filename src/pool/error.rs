//! Errors of pools and of tasks.
use crate::error::OpenError;
use crate::process::SpawnError;
use crate::sys::process::signal_name;
use thiserror::Error;

/// Why a pool was not built or changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The number of workers is zero, or above the pool's maximum.
    #[error("a pool has 1 to {max} workers, not {workers}")]
    InvalidWorkers {
        /// The requested number of workers.
        workers: usize,
        /// The largest possible number.
        max: usize,
    },
    /// A worker could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The pool's segment could not be created.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Why a task has no value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function panicked.
    #[error("the task panicked at {location}: {message}")]
    Panicked {
        /// The panic's message, if it is text.
        message: String,
        /// The file, line and column.
        location: String,
        /// The frames from the function to the panic, as text.
        backtrace: String,
    },
    /// A worker died while it ran the task, at each attempt.
    #[error("the worker {} before it had finished the task", how_it_ended(*.signal, *.code))]
    WorkerDied {
        /// The signal that killed the last worker.
        signal: Option<i32>,
        /// The exit code of the last worker, if it ended by itself.
        code: Option<i32>,
    },
    /// The task exceeded its time limit.
    #[error("the task exceeded its time limit")]
    TimedOut,
    /// [`Task::cancel`](super::Task::cancel) was called.
    #[error("the task was cancelled")]
    Cancelled,
    /// The pool was closed before the task was submitted.
    #[error("the pool is closed")]
    Closed,
    /// The pool was [stopped](super::Builder::stop) before the task began, or before it was tried
    /// again.
    #[error("the pool was stopped")]
    Stopped,
    /// The pool was terminated.
    #[error("the pool was terminated")]
    Terminated,
    /// No worker can be started, or the initialiser fails again and again. The text says why.
    #[error("the pool has no workers: {0}")]
    Broken(String),
    /// The function is not part of this executable.
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
    /// A value of more than 12 KiB could not be passed to the worker or back, because descriptors
    /// or memory were short for a second. If the value was the result, the task has run.
    #[error("a large value cannot be passed between the processes: {0}")]
    Transfer(String),
    /// The value has been taken already.
    #[error("the value of this task has been taken already")]
    Taken,
    /// The pool belongs to the process that was forked.
    #[error("the pool belongs to the process that was forked")]
    Forked,
}

/// Says in words how a worker ended.
pub(super) fn how_it_ended(signal: Option<i32>, code: Option<i32>) -> String {
    match (signal, code) {
        (Some(signal), _) => format!("was killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => String::from("was killed together with the fork server"),
    }
}

impl TaskError {
    /// Returns whether a pool that is closed for this reason has ended.
    pub(super) fn ends_pool(&self) -> bool {
        !matches!(self, TaskError::Closed | TaskError::Stopped)
    }
}
