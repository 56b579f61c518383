//! What loom runs instead of a kernel: a mutex, a condition and a model of time.
use super::{Change, Wake};
use crate::deadline::Deadline;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use loom::sync::{Condvar, Mutex};

/// The queue of sleepers of one word.
#[derive(Debug)]
pub(crate) struct Parker {
    sleepers: Mutex<u32>,
    changed: Condvar,
}

impl Default for Parker {
    fn default() -> Self {
        Parker { sleepers: Mutex::new(0), changed: Condvar::new() }
    }
}

impl Parker {
    pub(crate) fn park(&self, word: &AtomicU32, expected: u32, deadline: Deadline) -> Wake {
        let mut sleepers = self.sleepers.lock().unwrap();
        if word.load(Acquire) != expected {
            return Wake::Woken;
        }
        // Loom keeps no clock. A finite deadline passes at once, in every order relative to the
        // other threads, which is the hardest case for a waiter.
        if !deadline.is_never() {
            drop(sleepers);
            loom::thread::yield_now();
            return Wake::TimedOut;
        }
        *sleepers += 1;
        drop(self.changed.wait(sleepers).unwrap());
        Wake::Woken
    }

    pub(crate) fn unpark(&self, _word: &AtomicU32, n: u32) -> usize {
        let mut sleepers = self.sleepers.lock().unwrap();
        let woken = n.min(*sleepers);
        *sleepers -= woken;
        for _ in 0..woken {
            self.changed.notify_one();
        }
        woken as usize
    }

    pub(crate) fn change_and_unpark(&self, word: &AtomicU32, change: Change, n: u32) -> usize {
        let mut sleepers = self.sleepers.lock().unwrap();
        match change {
            Change::Clear => drop(word.swap(0, AcqRel)),
            Change::SetTopBit => drop(word.swap(1 << 31, AcqRel)),
            Change::OrOne => drop(word.fetch_or(1, AcqRel)),
            Change::AddOne => drop(word.fetch_add(1, AcqRel)),
        }
        let woken = n.min(*sleepers);
        *sleepers -= woken;
        for _ in 0..woken {
            self.changed.notify_one();
        }
        woken as usize
    }
}
