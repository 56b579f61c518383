//! What a blocking call tries and what it sleeps on, and the only loop in the crate that blocks.
use super::WaitWord;
use super::spin::{Missed, Spinner};
use super::verbs::Verb;
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::fence;
use crate::sys::{Wake, fence as asymmetric, hooks};
use std::time::Duration;

/// How long a thread sleeps at most where a change may come without a wake.
const DOZE: Duration = Duration::from_millis(10);

/// A verb that says what it sleeps on.
///
/// An operation guarantees that a thread may sleep as long as the word that `arm` gave has the
/// value that it gave.
pub(crate) trait Operation<'a>: Verb {
    /// An address by which the thread remembers how long it is worth spinning.
    fn key(&self) -> usize;

    /// Announces a sleeper, after an attempt has failed.
    fn arm(&mut self) -> Armed<'a, Self::Output>;

    /// Sleeps where `arm` said.
    fn park(&mut self, sleep: Sleep<'a>, until: Deadline) -> Wake {
        sleep.word.park(sleep.seen[0], until)
    }
}

/// What an operation sleeps on, or why it does not sleep.
#[derive(Debug)]
pub(crate) enum Armed<'a, T> {
    /// Until the word changes.
    Sleep(Sleep<'a>),
    /// The word changed before the sleeper was announced: try again.
    Retry,
    /// There is an output: this process cannot wait, or a last attempt succeeded.
    Done(T),
}

/// A word, and the value at which to sleep on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep<'a> {
    pub(crate) word: &'a WaitWord,
    /// The second value is that of another word, for an operation that parks on two.
    pub(crate) seen: [u32; 2],
    pub(crate) fence: Fence,
}

impl<'a, T> Armed<'a, T> {
    /// Announces a sleeper on a word that is the state itself, and was `seen`.
    pub(crate) fn on_state(word: &'a WaitWord, seen: u32, announced: u32) -> Self {
        let changed = seen != announced
            && word.value.compare_exchange(seen, announced, Relaxed, Relaxed).is_err();
        match changed {
            true => Armed::Retry,
            false => Armed::Sleep(Sleep { word, seen: [announced, 0], fence: Fence::None }),
        }
    }
}

/// What comes between the announcement of a sleeper and the next attempt, so that either the
/// attempt sees a change, or the thread that makes the change sees the sleeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Neither a fence nor an attempt: the kernel compares the state itself.
    None,
    /// A fence. The other thread has one as well.
    Full,
    /// A fence for both threads: see `sys/fence.rs`.
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

    /// Whether it reaches every thread that relies on it. If not, a change that was just made may
    /// come without a wake.
    pub(crate) fn is_certain(self) -> bool {
        self != Fence::Heavy || asymmetric::CERTAIN
    }
}

/// Runs an operation until it has an output, spinning for a while and then sleeping.
///
/// It tries once more after the deadline has passed: what can be had is had, even too late. The
/// deadline is a point in time, so that retries do not extend it; a signal is a wake for no reason.
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
    let mut dozed = None; // at these values, and nothing changed
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
        if !sleep.fence.is_certain() && dozed != Some(sleep.seen) {
            let doze = operation.park(sleep, deadline.at_most(hooks::second_look(DOZE)));
            dozed = (doze == Wake::TimedOut).then_some(sleep.seen);
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

/// Tries, announces a sleeper, and tries again.
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
