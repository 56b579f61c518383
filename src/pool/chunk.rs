//! Tasks on their way, and who wants what comes of them.
use super::error::TaskError;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use core::task::Waker;
use std::sync::Arc;
use std::time::Instant;

/// Who wants the results of some tasks.
pub(super) trait Job: Send + Sync {
    /// Takes the results of so many tasks from `base` on, and adds whom to wake for it. A single
    /// task keeps the first result that it is given.
    fn put(&self, base: u64, count: u32, piece: Piece, wake: &mut Vec<Waker>);
}

/// Results.
pub(super) enum Piece {
    /// Records, one after the other: length, status, flags and value, padded to eight bytes.
    Records(Vec<u8>),
    /// One result that was too large for a record: its status and its bytes.
    Large(u8, Vec<u8>),
    /// The error of one task.
    Failed(TaskError),
}

/// Tasks that go together.
pub(super) struct Chunk {
    pub(super) job: Arc<dyn Job>,
    pub(super) base: u64,
    pub(super) count: u32,
    /// How many have their results.
    pub(super) done: u32,
    /// How many workers have died at it. Then it is one task.
    pub(super) attempts: u32,
    pub(super) entry: u64,
    pub(super) function: u64,
    /// Nanoseconds that a task takes.
    pub(super) cost: Arc<AtomicU64>,
    /// Arguments, each after its length; or, if `large`, one without.
    pub(super) body: Vec<u8>,
    pub(super) large: bool,
    /// Since when it has waited for a descriptor or memory, by the owner's first look.
    pub(super) waits: Option<Instant>,
}

impl Chunk {
    /// The chunk, which waits for a descriptor or memory from now on, unless it does already.
    #[cold]
    pub(super) fn waiting(mut self) -> Chunk {
        self.waits.get_or_insert_with(Instant::now);
        self
    }

    pub(super) fn time(&self) -> u64 {
        match self.cost.load(Relaxed) {
            0 => UNKNOWN,
            cost => cost.saturating_mul(u64::from(self.count - self.done)),
        }
    }

    /// Takes off the first `count` tasks that have no result.
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
            job: Arc::clone(&self.job),
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

/// What a chunk counts for that was never measured: 100 microseconds.
const UNKNOWN: u64 = 100_000;
