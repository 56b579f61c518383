//! Chunks of tasks, and where their results are delivered.
use super::error::TaskError;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use core::task::Waker;
use std::sync::Arc;
use std::time::Instant;

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
}

impl Chunk {
    /// Notes that the chunk waits for a descriptor or memory.
    #[cold]
    pub(super) fn waiting(mut self) -> Chunk {
        self.waits.get_or_insert_with(Instant::now);
        self
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
