//! A task that was submitted to a pool, and its result.
use super::chunk::{Outcome, ResultSink};
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

/// A task that was submitted to a [`Pool`](super::Pool).
///
/// The task runs even if its handle is dropped. All methods take `&self`. The value can be taken
/// once. A `Task` is also a `Future`, for any runtime. In the child of a fork every method that
/// takes the value returns [`TaskError::Forked`] immediately.
#[doc(alias = "AsyncResult")]
#[must_use = "the result of a task whose handle is dropped is lost"]
pub struct Task<R> {
    pub(super) cell: Arc<Cell>,
    pub(super) core: Arc<Core>,
    result: PhantomData<fn() -> R>,
}

/// Holds the result of one task.
#[derive(Default)]
pub(super) struct Cell(Mutex<State>);

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
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

    /// Wakes `waker` when the task is done, or immediately if it is.
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

impl ResultSink for Cell {
    fn deliver(&self, _base: u64, _count: u32, outcome: Outcome, wake: &mut Vec<Waker>) {
        let mut state = self.state();
        if state.done {
            return; // it was cancelled, and its worker finished it before the signal arrived
        }
        state.done = true;
        state.outcome = Some(outcome);
        wake.append(&mut state.wakers);
    }
}

/// Decodes a result from the bytes of a record or a file.
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
        _ => Err(TaskError::Decode(String::from("unknown status"))),
    }
}

/// Decodes the first record. Returns its result, and its length in bytes.
pub(super) fn first<R: DeserializeOwned>(records: &[u8]) -> (Result<R, TaskError>, usize) {
    let cut = || (Err(TaskError::Decode(String::from("cut short"))), records.len());
    let Some((head, rest)) = records.split_first_chunk::<8>() else { return cut() };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    match rest.get(..length) {
        Some(bytes) => (decode(head[4], bytes), 8 + length.next_multiple_of(8)),
        None => cut(),
    }
}

pub(super) fn from_outcome<R: DeserializeOwned>(outcome: Outcome) -> Result<R, TaskError> {
    match outcome {
        Outcome::Records(bytes) => first(&bytes).0,
        Outcome::Large(kind, bytes) => decode(kind, &bytes),
        Outcome::Failed(error) => Err(error),
    }
}

impl<R> Task<R> {
    pub(super) fn new(cell: Arc<Cell>, core: Arc<Core>) -> Self {
        Task { cell, core, result: PhantomData }
    }

    /// Returns whether the task has its value or has failed. Always `true` in the child of a fork.
    #[must_use]
    #[doc(alias = "ready")]
    pub fn is_done(&self) -> bool {
        if self.core.is_copy() {
            return true;
        }
        if !self.cell.is_done() {
            self.core.collect_results(); // perhaps no other thread reads results
        }
        self.cell.is_done()
    }

    /// Wakes `waker` when the task is done, or immediately if it is.
    pub(super) fn register(&self, waker: Waker) {
        if self.core.is_copy() {
            return waker.wake();
        }
        self.cell.register(waker);
        self.core.request_results();
    }

    /// Cancels the task. A worker that runs it is killed and replaced. Returns `false` if the task
    /// was done already.
    ///
    /// If this returns `true`, every thread that waits for the task gets [`TaskError::Cancelled`],
    /// even if the worker completes the task before the signal reaches it.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn cancel(&self) -> bool {
        let sink: Arc<dyn ResultSink> = Arc::clone(&self.cell) as _;
        let cancelled = !self.is_done() && self.core.cancel(&sink, true);
        self.core.ensure_leader();
        cancelled
    }

    fn wait_until(&self, deadline: Deadline) -> bool {
        let mut ready = || self.cell.is_done();
        let mut register = |waker| self.cell.register(waker);
        self.core.wait_for(deadline, &mut ready, &mut register)
    }

    /// Blocks until the task is done. Does not take its value.
    pub fn wait(&self) {
        self.wait_until(Deadline::NEVER);
    }

    /// Blocks until the task is done or `timeout` has elapsed. Returns whether it is done.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(Deadline::after(timeout))
    }
}

impl<R: DeserializeOwned> Task<R> {
    /// Blocks until the task is done, and takes the value that its function returned.
    ///
    /// # Errors
    /// See [`TaskError`].
    #[doc(alias = "get")]
    pub fn join(&self) -> Result<R, TaskError> {
        self.wait();
        self.take()
    }

    /// Like [`join`](Self::join), but returns `None` if the task is not done when `timeout` has
    /// elapsed.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn join_timeout(&self, timeout: Duration) -> Option<Result<R, TaskError>> {
        self.wait_until(Deadline::after(timeout)).then(|| self.take())
    }

    /// Like [`join`](Self::join), but returns `None` if the task is not done at `deadline`.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn join_deadline(&self, deadline: Instant) -> Option<Result<R, TaskError>> {
        self.wait_until(Deadline::at(deadline)).then(|| self.take())
    }

    /// Takes the value that the function returned, or returns `None` if the task is not done.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn try_join(&self) -> Option<Result<R, TaskError>> {
        self.join_timeout(Duration::ZERO)
    }

    fn take(&self) -> Result<R, TaskError> {
        if self.core.is_copy() {
            return Err(TaskError::Forked);
        }
        let outcome = self.cell.state().outcome.take();
        outcome.map_or(Err(TaskError::Taken), from_outcome)
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
            self.core.request_results();
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
