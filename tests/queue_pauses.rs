//! Queues whose users stop, or are killed, at named points of the source.
//!
//! Built under `RUSTFLAGS='--cfg outlast_hooks'` only.
#![cfg(all(outlast_hooks, not(outlast_loom)))]
mod common;

use common::{Child, KILLED, eventually, fork_child, ms, watch};
use outlast::hooks::{self, Action};
use outlast::log::Journal;
use outlast::queue::IN_FLIGHT;
use outlast::spsc::Ring;
use outlast::{
    ByteQueue, Channel, FixedPriorityQueue, Pipe, Queue, RecvError, RecvTimeoutError,
    SendTimeoutError, Shared, TryRecvError,
};

/// A forked child closes as the first thing that it does.
const CLOSED: &str = "queue: closed, and nobody is woken";

/// What waits before the child closes, and returns all the same.
fn outlasts(name: &'static str, waiter: Child, close: impl Fn()) {
    waiter.until_waiting();
    std::thread::sleep(ms(50));
    let closer = fork_child(|| {
        hooks::plan(CLOSED, Action::Kill);
        close();
    });
    assert_eq!(closer.wait(), KILLED, "{name}");
    waiter.succeeds();
}

#[test]
fn a_killed_closer_of_any_queue_leaves_nobody_asleep() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("a_killed_closer_of_any_queue_leaves_nobody_asleep", &queue);
    let waiter = fork_child(|| assert!(queue.recv().is_err()));
    outlasts("Queue", waiter, || queue.close());

    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4).unwrap();
    let waiter = fork_child(|| assert!(channel.receiver().unwrap().recv().is_err()));
    outlasts("Channel", waiter, || channel.close());

    let levels = Shared::anonymous(FixedPriorityQueue::<u64, 3, 4>::new()).unwrap();
    let waiter = fork_child(|| assert!(levels.recv().is_err()));
    outlasts("PriorityQueue", waiter, || levels.close());

    let bytes = Shared::<ByteQueue>::with_capacity(4096).unwrap();
    let waiter = fork_child(|| assert!(bytes.recv().is_err()));
    outlasts("ByteQueue", waiter, || bytes.close());

    let ring = Shared::<Ring<u64>>::with_capacity(4).unwrap();
    let waiter = fork_child(|| assert!(ring.consumer().unwrap().recv().is_err()));
    outlasts("Ring", waiter, || ring.close());

    let journal = Shared::<Journal>::with_capacity(4).unwrap();
    let waiter = fork_child(|| assert!(journal.records().next().is_none()));
    outlasts("Journal", waiter, || journal.close());
}

/// The reader takes all parts while the writer, which found no room, still holds its turn.
#[test]
fn a_message_cut_short_wakes_its_reader() {
    const TAKEN: &str = "pipe: a reader has the writer's turn";
    const NO_ROOM: &str = "pipe: no room for the next part, and the turn is held";
    let pipe = Shared::<Pipe>::with_capacity(512).unwrap();
    let _watchdog = watch("a_message_cut_short_wakes_its_reader", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    hooks::plan(NO_ROOM, Action::Hold);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| first.send_bytes_timeout(&[1; 5_000], ms(50)));
        eventually("the writer gives up", || hooks::visits(NO_ROOM) > 0);
        let reader = fork_child(|| {
            hooks::clear();
            hooks::plan(TAKEN, Action::Nap(0));
            let end = pipe.second().unwrap().recv_bytes_timeout(ms(200));
            assert!(matches!(end, Err(RecvTimeoutError::TimedOut)), "{end:?}");
            assert_eq!(hooks::visits(TAKEN), 0, "a free turn is left to writers that do not wait");
        });
        reader.until_waiting();
        std::thread::sleep(ms(50));
        hooks::clear();
        assert_eq!(writer.join().unwrap(), Err(SendTimeoutError::TimedOut(())));
        reader.succeeds();
    });
    drop(second);
}

/// A look that finds a message needs no verdict, whose fence takes its time.
#[test]
fn a_receiver_without_a_cell_fences_only_when_the_message_is_gone() {
    const FENCED: &str = "signal: the last look is fenced";
    let queue = Shared::<Queue<u64>>::with_capacity(IN_FLIGHT + 1).unwrap();
    let _watchdog = watch("a_receiver_without_a_cell_fences_only_when_the_message_is_gone", &queue);
    (0..=IN_FLIGHT as u64).for_each(|n| queue.send(n).unwrap());
    let _held: Vec<_> = (0..IN_FLIGHT).map(|_| queue.recv_ack().unwrap()).collect();
    queue.close();
    let receiver = fork_child(|| {
        hooks::plan(FENCED, Action::Nap(0));
        assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::TooManyInFlight));
        let waited = queue.recv_ack_timeout(ms(20));
        assert_eq!(waited.err(), Some(RecvTimeoutError::TooManyInFlight));
        assert_eq!(hooks::visits(FENCED), 0);
        queue.recv().unwrap();
        assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::Closed));
        assert_eq!(hooks::visits(FENCED), 1);
    });
    receiver.succeeds();
}

/// A receiver that looks at a message, and then is held up for several laps, finds no damage.
#[test]
fn a_receiver_that_is_laps_behind_goes_on() {
    const SEEN: &str = "byte queue: a message is seen, and not yet claimed";
    let queue = Shared::<ByteQueue>::with_capacity(4096).unwrap();
    let _watchdog = watch("a_receiver_that_is_laps_behind_goes_on", &queue);
    queue.send(&[0; 200]).unwrap();
    hooks::plan(SEEN, Action::Hold);
    std::thread::scope(|scope| {
        let late = scope.spawn(|| queue.recv());
        eventually("the receiver sees the message", || hooks::visits(SEEN) > 0);
        let others = fork_child(|| {
            hooks::clear();
            for n in 1..=100 {
                assert_eq!(queue.recv().unwrap(), [n - 1; 200]);
                queue.send(&[n; 200]).unwrap();
            }
        });
        others.succeeds();
        hooks::clear();
        assert_eq!(late.join().unwrap(), Ok(vec![100; 200]));
    });
}

/// A receiver says that a queue is closed only after a fence and one more look.
#[test]
fn a_closed_queue_is_looked_at_once_more() {
    const FENCED: &str = "signal: the last look is fenced";
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("a_closed_queue_is_looked_at_once_more", &queue);
    queue.close();
    let receiver = fork_child(|| {
        hooks::plan(FENCED, Action::Nap(0));
        assert_eq!(queue.recv(), Err(RecvError::Closed));
        assert!(hooks::visits(FENCED) > 0);
    });
    receiver.succeeds();
}
