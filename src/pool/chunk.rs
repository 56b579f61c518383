//! Chunks of tasks, and where their results are delivered.
use super::error::TaskError;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use core::task::Waker;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Receives the results of some tasks.
pub(super) trait ResultSink: Send + Sync {
    /// Takes the results of `count` tasks from number `base` on, and adds the wakers to wake to
    /// `wake`. A single task keeps its first result.
    fn deliver(&self, base: u64, count: u32, outcome: Outcome, wake: &mut Vec<Waker>);
}

/// The results of one or more tasks.
pub(super) enum Outcome {
    /// Records in sequence: length, status, flags and value, padded to eight bytes.
    Records(Vec<u8>),
    /// One result that was too large for a record: its status and its value.
    Large(u8, Vec<u8>),
    /// The error of one task.
    Failed(TaskError),
}

/// The status of a result: the first byte after its length.
pub(super) mod status {
    pub(crate) const VALUE: u8 = 0;
    pub(crate) const PANICKED: u8 = 1;
    pub(crate) const ARGUMENT: u8 = 2;
    pub(crate) const ENCODE: u8 = 3;
    pub(crate) const TRANSFER: u8 = 4;
}

/// Options of one task, for [`Pool::submit_with`](super::Pool::submit_with).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct TaskOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Option<u32>,
}

impl TaskOptions {
    /// Returns options that change nothing: the task has those of the pool.
    pub fn new() -> Self {
        TaskOptions::default()
    }

    /// Limits the time of the task, instead of
    /// [`Builder::task_timeout`](super::Builder::task_timeout).
    ///
    /// The time begins when a worker begins the task. If the task exceeds it, its worker is killed,
    /// up to 50 ms later, and the task fails with [`TaskError::TimedOut`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how often the task is tried again if its worker dies, instead of
    /// [`Builder::retries`](super::Builder::retries).
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }
}

/// Returns the status and the value of the only record in `bytes`.
pub(super) fn record_of(bytes: &[u8]) -> (u8, &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else { return (u8::MAX, &[]) };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    rest.get(..length).map_or((u8::MAX, &[]), |value| (head[4], value))
}

/// Calls of one function that are sent to a worker as one message.
pub(super) struct Chunk {
    pub(super) sink: Arc<dyn ResultSink>,
    pub(super) base: u64,
    pub(super) count: u32,
    /// How many of the tasks have their results.
    pub(super) done: u32,
    /// How many workers have died at it. If not zero, the chunk has one task.
    pub(super) attempts: u32,
    pub(super) entry: u64,
    pub(super) function: u64,
    /// The average time of a task, in nanoseconds.
    pub(super) cost: Arc<AtomicU64>,
    /// The arguments, each after its length. If `large`, one argument without its length.
    pub(super) body: Vec<u8>,
    pub(super) large: bool,
    /// When the chunk began to wait for a descriptor or memory.
    pub(super) waits: Option<Instant>,
    /// The options of a single task, if it has any.
    pub(super) options: Option<Box<TaskOptions>>,
}

impl Chunk {
    /// Notes that the chunk waits for a descriptor or memory.
    #[cold]
    pub(super) fn waiting(mut self) -> Chunk {
        self.waits.get_or_insert_with(Instant::now);
        self
    }

    /// Returns the time limit of the task, if it has one of its own.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.options.as_ref()?.timeout
    }

    /// Returns how often the task is tried again, if it has a number of its own.
    pub(super) fn retries(&self) -> Option<u32> {
        self.options.as_ref()?.retries
    }

    /// Returns the expected time of the tasks that have no result, in nanoseconds.
    pub(super) fn time(&self) -> u64 {
        match self.cost.load(Relaxed) {
            0 => UNKNOWN,
            cost => cost.saturating_mul(u64::from(self.count - self.done)),
        }
    }

    /// Splits off the first `count` tasks that have no result.
    pub(super) fn split(&mut self, count: u32) -> Chunk {
        let length_of = |body: &[u8]| {
            let length = body.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            (4 + length as usize).min(body.len())
        };
        let mut body = core::mem::take(&mut self.body);
        let first = if self.large {
            core::mem::take(&mut body)
        } else {
            for _ in 0..self.done {
                body.drain(..length_of(&body));
            }
            let mut end = 0;
            for _ in 0..count {
                end += length_of(&body[end..]);
            }
            body.drain(..end).collect()
        };
        let taken = Chunk {
            sink: Arc::clone(&self.sink),
            base: self.base + u64::from(self.done),
            count,
            done: 0,
            attempts: self.attempts,
            entry: self.entry,
            function: self.function,
            cost: Arc::clone(&self.cost),
            body: first,
            large: self.large,
            waits: self.waits,
            options: self.options.clone(),
        };
        self.base += u64::from(self.done + count);
        self.count -= self.done + count;
        self.done = 0;
        self.body = body;
        taken
    }
}

/// The assumed time of a task that was never measured, in nanoseconds.
const UNKNOWN: u64 = 100_000;
