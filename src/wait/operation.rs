//! Operations: what a blocking call attempts, and what it sleeps on. The function [`wait`] is the
//! only loop of the crate that blocks.
use super::WaitWord;
use super::spin::{Missed, Spinner};
use super::verbs::Verb;
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::fence;
use crate::sys::{Wake, fence as asymmetric, hooks};
use std::time::Duration;

/// The longest first sleep after a fence that is not certain: a change may come without a wake.
const BOUNDED_SLEEP: Duration = Duration::from_millis(10);

/// A verb that can sleep.
///
/// An operation guarantees that a thread may sleep while the word that [`arm`](Self::arm) returned
/// has the value that `arm` returned.
pub(crate) trait Operation<'a>: Verb {
    /// Returns an address. The thread keeps a budget for spinning under it.
    fn key(&self) -> usize;

    /// Announces a sleeper after an attempt has failed.
    fn arm(&mut self) -> Armed<'a, Self::Output>;

    /// Sleeps on the word that `arm` returned.
    fn park(&mut self, sleep: Sleep<'a>, until: Deadline) -> Wake {
        sleep.word.park(sleep.seen[0], until)
    }
}

/// What an operation sleeps on, or why it does not sleep.
#[derive(Debug)]
pub(crate) enum Armed<'a, T> {
    /// The thread sleeps until the word changes.
    Sleep(Sleep<'a>),
    /// The word changed before the sleeper was announced. The thread tries again.
    Retry,
    /// There is an output: this process cannot wait, or a last attempt succeeded.
    Done(T),
}

/// A word, and the value at which a thread sleeps on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep<'a> {
    pub(crate) word: &'a WaitWord,
    /// The second value is that of another word, for an operation that sleeps on two words.
    pub(crate) seen: [u32; 2],
    pub(crate) fence: Fence,
}

impl<'a, T> Armed<'a, T> {
    /// Announces a sleeper on a word that is itself the state. Its value was `seen`, and
    /// `announced` is the same state with a sleeper.
    pub(crate) fn on_state(word: &'a WaitWord, seen: u32, announced: u32) -> Self {
        let changed = seen != announced
            && word.value.compare_exchange(seen, announced, Relaxed, Relaxed).is_err();
        match changed {
            true => Armed::Retry,
            false => Armed::Sleep(Sleep { word, seen: [announced, 0], fence: Fence::None }),
        }
    }
}

/// The fence between the announcement of a sleeper and the next attempt. Because of it, either the
/// attempt sees a change, or the thread that makes the change sees the sleeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Neither a fence nor an attempt is needed: the kernel compares the state itself.
    None,
    /// The sleeper passes a fence, and so does the thread that makes the change.
    Full,
    /// The sleeper passes a fence for both threads: see `sys/fence.rs`.
    Heavy,
}

impl Fence {
    pub(crate) fn pass(self) {
        match self {
            Fence::None => {}
            Fence::Full => fence(SeqCst),
            Fence::Heavy => asymmetric::heavy(),
        }
    }

    /// Returns whether the fence reaches every thread that relies on it. Otherwise a change that
    /// was just made may come without a wake.
    pub(crate) fn is_certain(self) -> bool {
        self != Fence::Heavy || asymmetric::CERTAIN
    }
}

/// Runs an operation until it has an output. The thread spins for a while and then sleeps.
///
/// A last attempt comes after the deadline, and the operation succeeds if that attempt does. The
/// deadline is a point in time, so retries do not extend it. A signal counts as a wake for no
/// reason.
pub(crate) fn wait<'a, O: Operation<'a>>(
    operation: &mut O,
    deadline: Deadline,
) -> Option<O::Output> {
    if deadline.is_over() {
        return operation.attempt();
    }
    let mut spinner = Spinner::new(operation.key());
    while spinner.turn() {
        if let Some(done) = operation.attempt() {
            spinner.hit();
            return Some(done);
        }
    }
    let mut slept = None;
    let mut unchanged = None; // the values at which a bounded sleep ended with its time
    let mut late = false;
    while !late {
        let sleep = match prepare(operation) {
            Armed::Done(done) => {
                slept.iter().for_each(|missed: &Missed| spinner.miss(missed.shortly()));
                return Some(done);
            }
            Armed::Retry => {
                crate::sync::spin_loop();
                continue;
            }
            Armed::Sleep(sleep) => sleep,
        };
        slept = slept.or_else(|| spinner.missed());
        hooks::pause("wait: about to sleep");
        if !sleep.fence.is_certain() && unchanged != Some(sleep.seen) {
            let limit = deadline.at_most(hooks::second_look(BOUNDED_SLEEP));
            let wake = operation.park(sleep, limit);
            unchanged = (wake == Wake::TimedOut).then_some(sleep.seen);
            late = deadline.is_over();
        } else {
            late = operation.park(sleep, deadline) == Wake::TimedOut;
        }
        hooks::pause("wait: back from its sleep");
    }
    let done = operation.attempt();
    spinner.miss(done.is_some() && slept.is_some_and(Missed::shortly));
    done
}

/// Makes an attempt, announces a sleeper, and makes another attempt.
fn prepare<'a, O: Operation<'a>>(operation: &mut O) -> Armed<'a, O::Output> {
    if let Some(done) = operation.attempt() {
        return Armed::Done(done);
    }
    let armed = operation.arm();
    if let Armed::Sleep(sleep) = &armed
        && sleep.fence != Fence::None
    {
        sleep.fence.pass();
        return operation.attempt().map_or(armed, Armed::Done);
    }
    armed
}
