//! A task that was submitted to a pool, and its result.
use super::cell::TaskCell;
use super::chunk::{Outcome, ResultSink, status};
use super::client::Client;
use super::core::Core;
use super::error::TaskError;
use crate::deadline::Deadline;
use crate::process::worker::Panic;
use crate::queue::value;
use crate::wait::TimedOut;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A task that was submitted to a [`Pool`](super::Pool).
///
/// The task runs even if its handle is dropped, unless [`cancel_on_drop`](Self::cancel_on_drop)
/// says otherwise. The value can be taken once. A `Task` is also a `Future`, for any runtime. In
/// the child of a fork every method that takes the value returns [`TaskError::Forked`] immediately.
#[doc(alias = "AsyncResult")]
#[must_use = "the result of a task whose handle is dropped is lost"]
pub struct Task<R> {
    cell: Arc<TaskCell>,
    backend: Backend,
    cancel_on_drop: bool,
    result: PhantomData<fn() -> R>,
}

/// The pool that runs a task.
pub(super) enum Backend {
    /// A pool of this process.
    Owner(Arc<Core>),
    /// In a worker: the pool that runs the worker. The task has a number.
    Worker(Arc<Client>, u64),
    /// None: the task has failed before it was submitted.
    NotSubmitted,
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
    pub(super) fn new(cell: Arc<TaskCell>, backend: Backend) -> Self {
        Task { cell, backend, cancel_on_drop: false, result: PhantomData }
    }

    /// Returns a task that has failed before it was submitted.
    pub(super) fn failed(error: TaskError) -> Self {
        let cell = Arc::<TaskCell>::default();
        cell.deliver(0, 1, Outcome::Failed(error), &mut Vec::new());
        Task::new(cell, Backend::NotSubmitted)
    }

    /// Sets whether dropping this handle [cancels](Self::cancel) the task. Default: `false`.
    ///
    /// A future that a timeout or a `select!` drops then leaves no work behind:
    ///
    /// ```standalone_crate
    /// use outlast::pool::Pool;
    ///
    /// fn sleeps(seconds: u64) {
    ///     std::thread::sleep(std::time::Duration::from_secs(seconds));
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     outlast::process::init(); // first of all
    ///     let pool = Pool::builder().workers(1).build()?;
    ///     drop(pool.submit(sleeps, 3_600).cancel_on_drop(true));
    ///     pool.join(); // takes no hour
    ///     Ok(())
    /// }
    /// ```
    pub fn cancel_on_drop(mut self, cancel: bool) -> Self {
        self.cancel_on_drop = cancel;
        self
    }

    /// Returns whether this is a copy in the child of a fork, where no result arrives.
    pub(super) fn is_copy(&self) -> bool {
        match &self.backend {
            Backend::Owner(core) => core.is_copy(),
            Backend::Worker(client, _) => client.is_copy(),
            Backend::NotSubmitted => false,
        }
    }

    /// Returns whether this process is a worker, and the pool is that of its owner.
    pub(super) fn is_nested(&self) -> bool {
        matches!(self.backend, Backend::Worker(..))
    }

    /// In a worker: runs the task on this thread, if no worker has begun it. Returns whether it has
    /// run.
    pub(super) fn run_here(&self) -> bool {
        match &self.backend {
            Backend::Worker(client, id) => client.run_here(*id),
            _ => false,
        }
    }

    /// Returns whether the task has its value or has failed. Always `true` in the child of a fork.
    #[must_use]
    #[doc(alias = "ready")]
    pub fn is_done(&self) -> bool {
        if self.is_copy() || self.cell.is_done() {
            return true;
        }
        if let Backend::Owner(core) = &self.backend {
            core.collect_results(); // perhaps no other thread reads results
        }
        self.cell.is_done()
    }

    /// Wakes `waker` when the task is done, or immediately if it is.
    pub(super) fn register(&self, waker: Waker) {
        if self.is_copy() {
            return waker.wake();
        }
        self.cell.register(waker);
        self.request_result();
    }

    /// Cancels the task. A worker that runs it is killed and replaced. Returns `false` if the task
    /// was done already.
    ///
    /// If this returns `true`, every thread that waits for the task gets [`TaskError::Cancelled`],
    /// even if the worker completes the task before the signal reaches it.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn cancel(&self) -> bool {
        let sink: Arc<dyn ResultSink> = Arc::clone(&self.cell) as _;
        if self.is_done() {
            return false;
        }
        match &self.backend {
            Backend::Owner(core) => {
                let cancelled = core.cancel(&sink, true);
                core.ensure_leader();
                cancelled
            }
            Backend::Worker(client, id) => client.cancel(*id),
            Backend::NotSubmitted => false,
        }
    }

    /// Has the result read although no thread waits for it.
    fn request_result(&self) {
        if let Backend::Owner(core) = &self.backend {
            core.request_results();
        }
    }

    fn wait_until(&self, deadline: Deadline) -> bool {
        let mut ready = || self.cell.is_done();
        let mut register = |waker| self.cell.register(waker);
        match &self.backend {
            Backend::Owner(core) => core.wait_for(deadline, &mut ready, &mut register),
            Backend::Worker(client, id) => client.wait_for(*id, &self.cell, deadline),
            Backend::NotSubmitted => true,
        }
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

    /// Like [`join`](Self::join), but blocks at most until `timeout` has elapsed.
    ///
    /// ```standalone_crate
    /// use outlast::pool::Pool;
    /// use std::time::Duration;
    ///
    /// fn square(x: u64) -> u64 {
    ///     x * x
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     outlast::process::init(); // first of all
    ///     let pool = Pool::builder().workers(1).build()?;
    ///     let task = pool.submit(square, 12);
    ///     let square = task.join_timeout(Duration::from_secs(60))??; // too late, or failed
    ///     assert_eq!(square, 144);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TimedOut`] if the task is not done in time. The task goes on, and can be joined later. The
    /// inner result is that of [`join`](Self::join). Its [`TaskError::TimedOut`] is another case:
    /// the task has failed, because it exceeded the time limit of its pool.
    pub fn join_timeout(&self, timeout: Duration) -> Result<Result<R, TaskError>, TimedOut> {
        self.join_until(Deadline::after(timeout))
    }

    /// Like [`join`](Self::join), but blocks at most until `deadline`.
    ///
    /// # Errors
    /// As [`join_timeout`](Self::join_timeout).
    pub fn join_deadline(&self, deadline: Instant) -> Result<Result<R, TaskError>, TimedOut> {
        self.join_until(Deadline::at(deadline))
    }

    fn join_until(&self, deadline: Deadline) -> Result<Result<R, TaskError>, TimedOut> {
        if self.wait_until(deadline) { Ok(self.take()) } else { Err(TimedOut) }
    }

    /// Takes the value that the function returned, or returns `None` if the task is not done.
    #[expect(clippy::must_use_candidate, reason = "the effect may be all that the caller wants")]
    pub fn try_join(&self) -> Option<Result<R, TaskError>> {
        self.join_timeout(Duration::ZERO).ok()
    }

    fn take(&self) -> Result<R, TaskError> {
        if self.is_copy() {
            return Err(TaskError::Forked);
        }
        let outcome = self.cell.take();
        outcome.map_or(Err(TaskError::Taken), from_outcome)
    }
}

impl<R: DeserializeOwned> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.is_copy() {
            return Poll::Ready(Err(TaskError::Forked));
        }
        if !self.cell.poll(context.waker()) {
            self.request_result();
            return Poll::Pending;
        }
        Poll::Ready(self.take())
    }
}

impl<R> Drop for Task<R> {
    fn drop(&mut self) {
        if self.cancel_on_drop {
            self.cancel();
        }
    }
}

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("done", &self.is_done()).finish()
    }
}
