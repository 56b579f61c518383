//! Messages between the owner of a pool and its workers that submit tasks.
//!
//! # Connection
//! A worker that submits a task makes a socket pair, and sends one end to the pool's supervisor
//! through the control socket, which every worker inherits. The supervisor serves requests; the
//! worker has a thread that receives replies. Workers that submit nothing have neither.
//!
//! | message | direction | reply |
//! |---|---|---|
//! | `SUBMIT` a call, as task `id` | worker to owner | `RESULT` of `id`, when the task is done |
//! | `TAKE_BACK` task `id`, to run it in the worker | worker to owner | `ANSWER`: whether it had not begun |
//! | `CANCEL` task `id` | worker to owner | `ANSWER`: whether it was not done |
//!
//! # No deadlock
//! A task that waits for a task which no worker has begun takes it back and runs it itself. A task
//! that a worker has begun makes progress by the same rule. So tasks that wait only for tasks that
//! they have submitted always end, even if all workers wait.
//!
//! # Death
//! If the worker dies, its tasks that have not begun are cancelled, because the task that submitted
//! them is tried again or has failed. The others finish, and their results are discarded. If the
//! owner dies, the workers are killed.
use super::error::TaskError;
use super::segment::MAX_INLINE;
use crate::process::wire::to_file;
use crate::sys::process::send;
use core::time::Duration;
use serde::Serialize;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The key under which a worker inherits the control socket.
pub(super) const CONTROL: &str = "outlast pool control";

/// Longer than any message: its head, and a body of up to [`MAX_INLINE`] bytes.
pub(super) const BUFFER: usize = MAX_INLINE + 256;

/// A request: its kind, its task, the number of the answer, the call, and the task's options.
pub(super) type Request = (u8, u64, u64, (u64, u64), (Option<Duration>, Option<u32>));
pub(super) const SUBMIT: u8 = 0;
pub(super) const TAKE_BACK: u8 = 1;
pub(super) const CANCEL: u8 = 2;

/// A reply: its kind, the number of the task or the answer, and a status.
pub(super) type Reply = (u8, u64, u8);
/// The task's value, or its error, with the status of a record.
pub(super) const RESULT: u8 = 0;
/// The task's error, of the pool.
pub(super) const FAILED: u8 = 1;
/// The answer: status 1 for yes.
pub(super) const ANSWER: u8 = 2;

/// Encodes a head, to be followed by a body.
pub(super) fn encode_head<T: Serialize>(head: &T) -> Vec<u8> {
    postcard::to_allocvec(head).unwrap_or_default()
}

/// Sends a message. A body that is too long for it is passed as a file.
pub(super) fn send_with_body(
    to: BorrowedFd<'_>,
    head: &[u8],
    body: &[u8],
    wait: bool,
) -> io::Result<()> {
    if body.len() > MAX_INLINE {
        let file = to_file(body)?;
        return send(to, head, &[file.as_fd()], wait);
    }
    send(to, &[head, body].concat(), &[], wait)
}

pub(super) fn encode_error(error: &TaskError) -> Vec<u8> {
    let (kind, text, signal, code) = match error {
        TaskError::WorkerDied { signal, code } => (0, "", *signal, *code),
        TaskError::TimedOut => (1, "", None, None),
        TaskError::Cancelled => (2, "", None, None),
        TaskError::Closed => (3, "", None, None),
        TaskError::Stopped => (4, "", None, None),
        TaskError::Terminated => (5, "", None, None),
        TaskError::Broken(text) => (6, text.as_str(), None, None),
        TaskError::Transfer(text) => (7, text.as_str(), None, None),
        _ => (8, "", None, None),
    };
    encode_head::<(u8, &str, Option<i32>, Option<i32>)>(&(kind, text, signal, code))
}

pub(super) fn decode_error(bytes: &[u8]) -> TaskError {
    type Fields = (u8, String, Option<i32>, Option<i32>);
    match postcard::from_bytes::<Fields>(bytes) {
        Ok((0, _, signal, code)) => TaskError::WorkerDied { signal, code },
        Ok((1, ..)) => TaskError::TimedOut,
        Ok((2, ..)) => TaskError::Cancelled,
        Ok((3, ..)) => TaskError::Closed,
        Ok((4, ..)) => TaskError::Stopped,
        Ok((5, ..)) => TaskError::Terminated,
        Ok((6, text, ..)) => TaskError::Broken(text),
        Ok((7, text, ..)) => TaskError::Transfer(text),
        _ => TaskError::Decode(String::from("malformed error of a task")),
    }
}
