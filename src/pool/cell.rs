//! Where the result of a task arrives.
use super::chunk::{Outcome, ResultSink};
use core::task::Waker;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::thread::Thread;

/// Locks one of the pool's mutexes.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under these locks is a bug of this crate. Their values are valid after each
    // statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A waker that unparks a thread.
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Holds the result of one task.
#[derive(Default)]
pub(super) struct TaskCell(Mutex<State>);

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    done: bool,
    wakers: Vec<Waker>,
}

impl TaskCell {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Takes the result. Returns `None` if it has been taken, or has not arrived.
    pub(super) fn take(&self) -> Option<Outcome> {
        self.state().outcome.take()
    }

    /// Returns whether the result has arrived. If not, `waker` is woken when it does.
    pub(super) fn poll(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if !state.done {
            state.add(waker);
        }
        state.done
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

impl ResultSink for TaskCell {
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
