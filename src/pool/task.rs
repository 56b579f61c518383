//! A task that was given to a pool, and what came of it.
use super::chunk::{Job, Piece};
use super::core::Core;
use super::error::TaskError;
use super::worker::status;
use crate::deadline::Deadline;
use crate::process::worker::Panic;
use crate::queue::value;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A task that was given to a [`Pool`](super::Pool).
///
/// Dropped, the task is done all the same. All verbs take `&self`; the value can be taken once. It
/// is a `Future` as well, for any runtime. In the child of a fork it gives [`TaskError::Forked`] at
/// once.
#[doc(alias = "AsyncResult")]
#[must_use = "its result is lost otherwise"]
pub struct Task<R> {
    pub(super) cell: Arc<Cell>,
    pub(super) core: Arc<Core>,
    result: PhantomData<fn() -> R>,
}

/// Where a task's result comes.
#[derive(Default)]
pub(super) struct Cell(Mutex<State>);

#[derive(Default)]
struct State {
    piece: Option<Piece>,
    done: bool,
    wakers: Vec<Waker>,
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_done(&self) -> bool {
        self.state().done
    }

    /// Has this one woken once it is done: now, perhaps.
    pub(super) fn register(&self, waker: Waker) {
        let mut state = self.state();
        if state.done {
            drop(state);
            waker.wake();
        } else {
            state.add(&waker);
        }
    }
}

impl State {
    fn add(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|other| other.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }
}

impl Job for Cell {
    fn put(&self, _base: u64, _count: u32, piece: Piece, wake: &mut Vec<Waker>) {
        let mut state = self.state();
        if state.done {
            return; // it was cancelled, and its worker was faster than the kill
        }
        state.done = true;
        state.piece = Some(piece);
        wake.append(&mut state.wakers);
    }
}

/// The result in a record's or a file's bytes.
pub(super) fn decode<R: DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<R, TaskError> {
    let decoding = |error: postcard::Error| TaskError::Decode(error.to_string());
    let text = || String::from_utf8_lossy(bytes).into_owned();
    match kind {
        status::VALUE => value::decode(bytes).map_err(decoding),
        status::PANICKED => {
            let (message, location, backtrace) = value::decode::<Panic>(bytes).map_err(decoding)?;
            Err(TaskError::Panicked { message, location, backtrace })
        }
        status::ARGUMENT => Err(TaskError::Argument(text())),
        status::ENCODE => Err(TaskError::Encode(text())),
        status::TRANSFER => Err(TaskError::Transfer(text())),
        _ => Err(TaskError::Decode(String::from("no such status"))),
    }
}

/// The first record: its result, and how many bytes it takes.
pub(super) fn first<R: DeserializeOwned>(records: &[u8]) -> (Result<R, TaskError>, usize) {
    let cut = || (Err(TaskError::Decode(String::from("cut short"))), records.len());
    let Some((head, rest)) = records.split_first_chunk::<8>() else { return cut() };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    match rest.get(..length) {
        Some(bytes) => (decode(head[4], bytes), 8 + length.next_multiple_of(8)),
        None => cut(),
    }
}

pub(super) fn from_piece<R: DeserializeOwned>(piece: Piece) -> Result<R, TaskError> {
    match piece {
        Piece::Records(bytes) => first(&bytes).0,
        Piece::Large(kind, bytes) => decode(kind, &bytes),
        Piece::Failed(error) => Err(error),
    }
}

impl<R> Task<R> {
    pub(super) fn new(cell: Arc<Cell>, core: Arc<Core>) -> Self {
        Task { cell, core, result: PhantomData }
    }

    /// Whether the task has its result, or has failed, as each has in the child of a fork.
    #[must_use]
    #[doc(alias = "ready")]
    pub fn is_done(&self) -> bool {
        if self.core.is_copy() {
            return true;
        }
        if !self.cell.is_done() {
            self.core.pump(); // perhaps nobody else reads results
        }
        self.cell.is_done()
    }

    /// Has this one woken once it is done: now, perhaps.
    pub(super) fn register(&self, waker: Waker) {
        if self.core.is_copy() {
            return waker.wake();
        }
        self.cell.register(waker);
        self.core.want();
    }

    /// Gives the task up. If a worker is at it, that is killed, and another takes its place. False
    /// if the task was done.
    ///
    /// If this returns `true`, every thread that waits for the task gets [`TaskError::Cancelled`],
    /// even if the worker completes the task before the signal reaches it.
    #[expect(clippy::must_use_candidate, reason = "what it does may be all that is wanted")]
    pub fn cancel(&self) -> bool {
        let job: Arc<dyn Job> = Arc::clone(&self.cell) as _;
        let cancelled = !self.is_done() && self.core.cancel(&job, true);
        self.core.hand_on();
        cancelled
    }

    fn wait_until(&self, deadline: Deadline) -> bool {
        let mut ready = || self.cell.is_done();
        let mut register = |waker| self.cell.register(waker);
        self.core.wait_for(deadline, &mut ready, &mut register)
    }

    /// Waits until the task is done; its value stays to be taken.
    pub fn wait(&self) {
        self.wait_until(Deadline::NEVER);
    }

    /// The same, at most `timeout`; whether it is done.
    #[expect(clippy::must_use_candidate, reason = "what it does may be all that is wanted")]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(Deadline::after(timeout))
    }
}

impl<R: DeserializeOwned> Task<R> {
    /// Waits until the task is done, and takes what its function returned.
    ///
    /// # Errors
    /// See [`TaskError`].
    #[doc(alias = "get")]
    pub fn join(&self) -> Result<R, TaskError> {
        self.wait();
        self.take()
    }

    /// The same, within `timeout`; `None` if the task is not done then.
    #[expect(clippy::must_use_candidate, reason = "what it does may be all that is wanted")]
    pub fn join_timeout(&self, timeout: Duration) -> Option<Result<R, TaskError>> {
        self.wait_until(Deadline::after(timeout)).then(|| self.take())
    }

    /// The same, until `deadline`; `None` if the task is not done then.
    #[expect(clippy::must_use_candidate, reason = "what it does may be all that is wanted")]
    pub fn join_deadline(&self, deadline: Instant) -> Option<Result<R, TaskError>> {
        self.wait_until(Deadline::at(deadline)).then(|| self.take())
    }

    /// What the function returned, if the task is done.
    #[expect(clippy::must_use_candidate, reason = "what it does may be all that is wanted")]
    pub fn try_join(&self) -> Option<Result<R, TaskError>> {
        self.join_timeout(Duration::ZERO)
    }

    fn take(&self) -> Result<R, TaskError> {
        if self.core.is_copy() {
            return Err(TaskError::Forked);
        }
        let piece = self.cell.state().piece.take();
        piece.map_or(Err(TaskError::Taken), from_piece)
    }
}

impl<R: DeserializeOwned> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.core.is_copy() {
            return Poll::Ready(Err(TaskError::Forked));
        }
        let mut state = self.cell.state();
        if !state.done {
            state.add(context.waker());
            drop(state);
            self.core.want();
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(self.take())
    }
}

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("done", &self.is_done()).finish()
    }
}
