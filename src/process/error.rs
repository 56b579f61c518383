//! Errors of starting and joining a process.
use crate::sys::process::signal_name;
use std::io;
use thiserror::Error;

/// Why a function was not run in a process of its own.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// [`init`](crate::process::init) has not been called.
    #[error("`outlast::process::init()` has not been called at the start of `main`")]
    NotInitialised,
    /// The function does not lie in this executable, but in a library that was loaded, for example.
    #[error("the function is not part of this executable")]
    ForeignFunction,
    /// The argument cannot be encoded.
    #[error("the argument cannot be encoded: {0}")]
    Encode(String),
    /// More than 250 segments are to be shared with one process.
    #[error("at most 250 segments can be handed to one process")]
    TooManyShared,
    /// The fork server was killed at each of five attempts.
    #[error("the fork server, which starts the processes, was killed at each attempt")]
    ForkServerLost,
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a process gave no value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The function panicked.
    #[error("the process panicked at {location}: {message}")]
    Panicked {
        /// What it panicked with, if that is text.
        message: String,
        /// File, line and column.
        location: String,
        /// The stack of the process at that moment, as text.
        backtrace: String,
    },
    /// The process was killed by this signal.
    #[error("the process was killed by {}", signal_name(*.0))]
    Signalled(i32),
    /// The process ended by itself, with this code, before the function returned.
    #[error("the process exited with code {0} before the function returned")]
    Exited(i32),
    /// The process could not decode its argument.
    #[error("the argument cannot be decoded: {0}")]
    Argument(String),
    /// The process could not encode what the function returned.
    #[error("the result cannot be encoded: {0}")]
    Encode(String),
    /// What the function returned cannot be decoded here.
    #[error("the result cannot be decoded: {0}")]
    Decode(String),
    /// The fork server was killed, and this process with it.
    #[error("the fork server was killed, and the process with it")]
    Lost,
    /// The value has been taken already.
    #[error("the value of this process has been taken already")]
    Taken,
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}
