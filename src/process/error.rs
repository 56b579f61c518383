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
    /// The function is not part of this executable. It may be part of a loaded library.
    #[error("the function is not part of this executable")]
    ForeignFunction,
    /// The argument cannot be encoded.
    #[error("the argument cannot be encoded: {0}")]
    Encode(String),
    /// More than 250 segments and descriptors are to be handed to one process, or their keys and
    /// the environment variables are longer than 16 KiB.
    #[error(
        "a process gets at most 250 segments and descriptors, and 16 KiB of keys and environment \
         variables"
    )]
    TooManyShared,
    /// The fork server was killed at each of five attempts.
    #[error("the fork server, which starts the processes, was killed at each attempt")]
    ForkServerLost,
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a process has no value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The function panicked.
    #[error("the process panicked at {location}: {message}")]
    Panicked {
        /// The panic's message, if it is text.
        message: String,
        /// The file, line and column.
        location: String,
        /// The frames from the function to the panic, as text.
        backtrace: String,
    },
    /// The process was killed by this signal.
    #[error("the process was killed by {}", signal_name(*.0))]
    Signalled(i32),
    /// The process exited with this code before the function returned.
    #[error("the process exited with code {0} before the function returned")]
    Exited(i32),
    /// The process could not decode its argument.
    #[error("the argument cannot be decoded: {0}")]
    Argument(String),
    /// The process could not encode the value that the function returned.
    #[error("the result cannot be encoded: {0}")]
    Encode(String),
    /// The value that the function returned cannot be decoded.
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
