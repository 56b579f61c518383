//! A stream of messages from some workers to others.
use super::Outcome;
use super::group::{self, Stage};

/// What the workers are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum World {
    Processes,
    Threads,
}

/// A message that tells a receiver to stop.
const END: u64 = u64::MAX;

/// Sends `messages` numbers through something, from `pairs` workers to as many others.
///
/// Each sender calls `sender` for its end and then sends its share; likewise the receivers. Whatever has to
/// be warmed up is to be done there.
pub(crate) fn stream<S: FnMut(u64), R: FnMut() -> u64>(
    world: World,
    pairs: usize,
    messages: u64,
    sender: impl Fn() -> S + Sync,
    receiver: impl Fn() -> R + Sync,
) -> Outcome {
    let share = messages.div_ceil(pairs as u64);
    // Senders and receivers take turns, so that with two CPUs all senders are on one of them.
    let work = |i: usize, stage: &Stage| {
        if i.is_multiple_of(2) {
            let mut send = sender();
            stage.start();
            (0..share).for_each(&mut send);
            send(END);
            0
        } else {
            let mut receive = receiver();
            stage.start();
            let mut received = 0;
            while receive() != END {
                received += 1;
            }
            received
        }
    };
    let outcome = match world {
        World::Processes => group::processes(2 * pairs, None, work),
        World::Threads => group::threads(2 * pairs, None, work),
    };
    assert_eq!(outcome.operations, share * pairs as u64, "messages were lost or repeated");
    outcome
}
