//! The backend of the model: a queue of sleepers for each word, and a model of time.
use super::{Change, Wake, Watch};
use crate::deadline::Deadline;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use loom::sync::{Mutex, MutexGuard};
use loom::thread::{Thread, current, park, yield_now};
use std::collections::VecDeque;

/// The sleepers of one word. The first one has slept longest.
#[derive(Debug)]
pub(crate) struct Parker(Mutex<VecDeque<Sleeper>>);

#[derive(Debug)]
struct Sleeper {
    thread: Thread,
    /// Whether the sleeper has a deadline. If so, its thread does not block in loom.
    timed: bool,
}

impl Default for Parker {
    fn default() -> Self {
        Parker(Mutex::new(VecDeque::new()))
    }
}

impl Parker {
    #[expect(clippy::unused_self, reason = "one contract for all backends")]
    pub(crate) fn place(&self) {}

    pub(crate) fn park(&self, word: &AtomicU32, expected: u32, deadline: Deadline) -> Wake {
        self.park_at([Watch { word, expected }], deadline)
    }

    pub(crate) fn park_beside(
        &self,
        word: &AtomicU32,
        expected: u32,
        beside: Watch<'_>,
        deadline: Deadline,
    ) -> Wake {
        self.park_at([Watch { word, expected }, beside], deadline)
    }

    fn park_at<const N: usize>(&self, watches: [Watch<'_>; N], deadline: Deadline) -> Wake {
        let watches = watches.map(|watch| (watch.word.alive(), watch.expected));
        let mut sleepers = self.sleepers();
        if watches.iter().any(|(word, expected)| word.load(Acquire) != *expected) {
            return Wake::Woken;
        }
        let (thread, timed) = (current(), !deadline.is_never());
        let id = thread.id();
        sleepers.push_back(Sleeper { thread, timed });
        drop(sleepers);
        if !timed {
            park();
            return Wake::Woken;
        }
        // Loom has no clock. The deadline may pass at any moment from now on. Before it does, other
        // threads may run, and one of them may wake this thread.
        yield_now();
        let mut sleepers = self.sleepers();
        match sleepers.iter().position(|sleeper| sleeper.thread.id() == id) {
            Some(asleep) => {
                sleepers.remove(asleep);
                Wake::TimedOut
            }
            None => Wake::Woken,
        }
    }

    pub(crate) fn unpark(&self, word: &AtomicU32, n: u32) -> usize {
        word.alive();
        self.wake_for_kernel(n)
    }

    pub(crate) fn change_and_unpark(
        &self,
        _word: &AtomicU32,
        changed: &AtomicU32,
        change: Change,
        n: u32,
    ) -> usize {
        let changed = changed.alive();
        let sleepers = self.sleepers();
        match change {
            Change::Clear => changed.swap(0, AcqRel),
            Change::OrOne => changed.fetch_or(1, AcqRel),
            Change::AddOne => changed.fetch_add(1, AcqRel),
            Change::ClearLowestTwo => changed.fetch_and(!3, AcqRel),
        };
        Self::wake(sleepers, n)
    }

    /// Wakes up to `n` sleepers, without a point at which the thread can be killed.
    pub(crate) fn wake_for_kernel(&self, n: u32) -> usize {
        Self::wake(self.sleepers(), n)
    }

    fn sleepers(&self) -> MutexGuard<'_, VecDeque<Sleeper>> {
        self.0.lock().unwrap()
    }

    fn wake(mut sleepers: MutexGuard<'_, VecDeque<Sleeper>>, n: u32) -> usize {
        let n = sleepers.len().min(n as usize);
        for sleeper in sleepers.drain(..n) {
            if !sleeper.timed {
                sleeper.thread.unpark();
            }
        }
        n
    }
}
