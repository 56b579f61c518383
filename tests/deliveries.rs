//! Receivers of deliveries that find no free in-flight entry: what they sleep on, and whose wakes
//! they must pass on.
//!
//! Each test acts after its sleepers have slept longer than a bounded second look lasts.
#![cfg(not(outlast_loom))]
mod common;

use common::{cpu_time, ms, until_waiting, watch};
use outlast::queue::IN_FLIGHT;
use outlast::{
    Channel, Delivery, FixedPriorityQueue, Queue, RecvError, RecvTimeoutError, Shareable, Shared,
    Spin, TryRecvError,
};
use std::os::unix::fs::FileExt as _;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

const ALL: u64 = IN_FLIGHT as u64;

/// A thread that runs `body`, and has been asleep in it for a while.
fn sleeper<'s, R: Send + 's>(
    scope: &'s Scope<'s, '_>,
    body: impl FnOnce() -> R + Send + 's,
) -> ScopedJoinHandle<'s, R> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = scope.spawn(move || {
        Spin::Never.set();
        tell.send(common::thread_id()).unwrap();
        body()
    });
    let tid = told.recv().unwrap();
    until_waiting(tid);
    std::thread::sleep(ms(100)); // past the second look, after which it sleeps again
    until_waiting(tid);
    thread
}

/// A queue with as many messages as there are in-flight entries.
fn exhausted() -> Shared<Queue<u64>> {
    let queue = Shared::<Queue<u64>>::with_capacity(IN_FLIGHT + 8).unwrap();
    (0..ALL).for_each(|n| queue.send(n).unwrap());
    queue
}

fn take_all(queue: &Queue<u64>) -> Vec<Delivery<'_, u64>> {
    (0..IN_FLIGHT).map(|_| queue.recv_ack().unwrap()).collect()
}

/// Leaves the first slot of the first queue in `field` as a sender does that has claimed it and
/// stands still. Returns the file and the offset of the slot.
fn claim_first_slot<T: ?Sized + Shareable + Sync + 'static>(
    shared: &Shared<T>,
    field: outlast::__private::Field,
) -> (std::fs::File, u64) {
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 104).unwrap();
    let slots = (field.layout)().fields[0].offset;
    let slot = u64::from_ne_bytes(word) + (field.offset + slots) as u64;
    file.write_all_at(&(4_095_u64 << 4 | 1).to_ne_bytes(), slot).unwrap();
    (file, slot)
}

#[test]
fn a_message_that_finds_no_cell_wakes_a_receiver_that_needs_none() {
    let queue = exhausted();
    let _watchdog = watch("a_message_that_finds_no_cell_wakes_a_receiver_that_needs_none", &queue);
    let mut held = take_all(&queue);
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().unwrap().ack());
        let plain = sleeper(scope, || queue.recv());
        queue.send(ALL).unwrap();
        assert_eq!(plain.join().unwrap(), Ok(ALL));
        queue.send(ALL + 1).unwrap();
        held.pop().unwrap().ack().unwrap();
        assert_eq!(acker.join().unwrap(), Ok(ALL + 1));
    });
}

#[test]
fn closed_and_empty_is_seen_without_a_cell() {
    let queue = exhausted();
    let _watchdog = watch("closed_and_empty_is_seen_without_a_cell", &queue);
    let held = take_all(&queue);
    assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::Empty));
    assert_eq!(queue.recv_ack_timeout(ms(5)).err(), Some(RecvTimeoutError::TimedOut));
    queue.send(ALL).unwrap();
    queue.close();
    assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::TooManyInFlight));
    assert_eq!(queue.recv_ack_timeout(ms(5)).err(), Some(RecvTimeoutError::TooManyInFlight));
    assert_eq!(queue.recv(), Ok(ALL));
    assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::Closed));
    assert_eq!(queue.recv_ack_timeout(ms(5_000)).err(), Some(RecvTimeoutError::Closed));
    assert_eq!(queue.recv_ack().err(), Some(RecvError::Closed));
    // A message that comes back stays in its entry.
    let mut held = held;
    held.pop().unwrap().nack();
    assert_eq!(queue.recv_ack().unwrap().attempts(), 1);
}

#[test]
fn an_end_is_seen_without_a_cell() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(IN_FLIGHT + 8).unwrap();
    let _watchdog = watch("an_end_is_seen_without_a_cell", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    (0..=ALL).for_each(|n| sender.send(n).unwrap());
    let _held: Vec<_> = (0..IN_FLIGHT).map(|_| receiver.recv_ack().unwrap()).collect();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || receiver.recv_ack().map(|delivery| *delivery));
        assert_eq!(receiver.recv(), Ok(ALL));
        drop(sender);
        assert_eq!(acker.join().unwrap(), Err(RecvError::Disconnected));
    });
    assert_eq!(receiver.try_recv_ack().err(), Some(TryRecvError::Disconnected));
    // The same, with the end before the message is taken.
    let sender = channel.sender().unwrap();
    sender.send(ALL).unwrap();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || receiver.recv_ack().map(|delivery| *delivery));
        drop(sender);
        std::thread::sleep(ms(50));
        assert!(!acker.is_finished(), "a message is left");
        assert_eq!(receiver.recv(), Ok(ALL));
        assert_eq!(acker.join().unwrap(), Err(RecvError::Disconnected));
    });
}

#[test]
fn a_receiver_that_sleeps_for_a_cell_hears_of_the_close() {
    let queue = exhausted();
    let _watchdog = watch("a_receiver_that_sleeps_for_a_cell_hears_of_the_close", &queue);
    let _held = take_all(&queue);
    queue.send(ALL).unwrap();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().map(|delivery| *delivery));
        assert_eq!(queue.try_recv(), Ok(ALL));
        queue.close();
        assert_eq!(acker.join().unwrap(), Err(RecvError::Closed));
    });
}

/// The message for which there is no entry may be received by a thread that needs none.
#[test]
fn a_receiver_that_sleeps_for_a_cell_of_a_closed_queue_hears_that_the_message_is_gone() {
    let queue = exhausted();
    let _watchdog = watch(
        "a_receiver_that_sleeps_for_a_cell_of_a_closed_queue_hears_that_the_message_is_gone",
        &queue,
    );
    let _held = take_all(&queue);
    queue.send(ALL).unwrap();
    queue.close();
    std::thread::scope(|scope| {
        let ackers: Vec<_> =
            (0..2).map(|_| sleeper(scope, || queue.recv_ack().map(|delivery| *delivery))).collect();
        assert_eq!(queue.try_recv(), Ok(ALL));
        for acker in ackers {
            assert_eq!(acker.join().unwrap(), Err(RecvError::Closed));
        }
    });
}

/// Several receivers may have waited only for a slot that is given up.
#[test]
fn the_last_slot_that_is_given_up_wakes_all_receivers_of_a_closed_queue() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog =
        watch("the_last_slot_that_is_given_up_wakes_all_receivers_of_a_closed_queue", &queue);
    let loan = queue.loan().unwrap();
    queue.close();
    std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..2).map(|_| sleeper(scope, || queue.recv())).collect();
        let acker = sleeper(scope, || queue.recv_ack().map(|delivery| *delivery));
        drop(loan);
        for receiver in receivers {
            assert_eq!(receiver.join().unwrap(), Err(RecvError::Closed));
        }
        assert_eq!(acker.join().unwrap(), Err(RecvError::Closed));
    });
}

/// A receiver that waits longer than its own look lasts uses hardly any processor time: it does not
/// wake itself.
#[test]
fn a_receiver_without_a_cell_sleeps_when_the_senders_are_gone() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(IN_FLIGHT + 8).unwrap();
    let _watchdog = watch("a_receiver_without_a_cell_sleeps_when_the_senders_are_gone", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    (0..=ALL).for_each(|n| sender.send(n).unwrap());
    let _held: Vec<_> = (0..IN_FLIGHT).map(|_| receiver.recv_ack().unwrap()).collect();
    drop(sender);
    let used = cpu_time(|| {
        let received = receiver.recv_ack_timeout(ms(1_000));
        assert_eq!(received.err(), Some(RecvTimeoutError::TooManyInFlight));
    });
    assert!(used < ms(50), "{used:?}");
}

/// The same for a message that is being written, in a channel without a sender for a moment.
#[test]
fn a_receiver_behind_a_slow_sender_sleeps() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4).unwrap();
    let _watchdog = watch("a_receiver_behind_a_slow_sender_sleeps", &channel);
    drop(channel.sender().unwrap());
    let _sender = channel.sender().unwrap();
    claim_first_slot(&channel, <Channel<Queue<u64>> as Shareable>::layout().fields[0]);
    let receiver = channel.receiver().unwrap();
    let used = cpu_time(|| {
        let received = receiver.recv_ack_timeout(ms(1_000));
        assert_eq!(received.err(), Some(RecvTimeoutError::TimedOut));
    });
    assert!(used < ms(50), "{used:?}");
}

#[test]
fn a_free_cell_that_one_receiver_leaves_is_for_the_next() {
    let queue = exhausted();
    let _watchdog = watch("a_free_cell_that_one_receiver_leaves_is_for_the_next", &queue);
    let mut held = take_all(&queue);
    queue.send(ALL).unwrap();
    std::thread::scope(|scope| {
        let first = sleeper(scope, || queue.recv_ack_timeout(ms(2_000)).map(|delivery| *delivery));
        let second = sleeper(scope, || queue.recv_ack().unwrap().ack());
        assert_eq!(queue.recv(), Ok(ALL));
        held.pop().unwrap().ack().unwrap(); // wakes the first, which finds no message
        assert_eq!(first.join().unwrap(), Err(RecvTimeoutError::TimedOut));
        std::thread::sleep(ms(100));
        queue.send(ALL + 1).unwrap();
        assert_eq!(second.join().unwrap(), Ok(ALL + 1));
    });
}

#[test]
fn each_free_cell_lets_a_receiver_through() {
    let queue = exhausted();
    let _watchdog = watch("each_free_cell_lets_a_receiver_through", &queue);
    let mut held = take_all(&queue);
    (ALL..ALL + 3).for_each(|n| queue.send(n).unwrap());
    std::thread::scope(|scope| {
        let ackers: Vec<_> =
            (0..3).map(|_| sleeper(scope, || core::mem::forget(queue.recv_ack()))).collect();
        held.drain(..3).for_each(|delivery| assert!(delivery.ack().is_ok()));
        ackers.into_iter().for_each(|acker| acker.join().unwrap());
    });
    assert!(queue.is_empty());
}

/// A delivery can use the entry of a message that is given back.
#[test]
fn a_message_that_is_given_back_wakes_a_receiver_that_sleeps_for_a_cell() {
    let queue = exhausted();
    let _watchdog =
        watch("a_message_that_is_given_back_wakes_a_receiver_that_sleeps_for_a_cell", &queue);
    let mut held = take_all(&queue);
    queue.send(ALL).unwrap();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().map(|back| (*back, back.attempts())));
        held.remove(5).nack();
        assert_eq!(acker.join().unwrap(), Ok((5, 1)));
    });
    // And the message of that receiver, which was dropped: the next is woken, too.
    std::thread::scope(|scope| {
        let _again = queue.recv_ack().unwrap();
        let acker = sleeper(scope, || queue.recv_ack().map(|back| (*back, back.attempts())));
        held.remove(0).nack();
        assert_eq!(acker.join().unwrap(), Ok((0, 1)));
    });
}

// ---------------------------------------------------------------------------------- priority

type Levels = FixedPriorityQueue<u64, 2, { IN_FLIGHT + 8 }>;

/// The same of the upper level of two.
fn exhausted_level() -> Shared<Levels> {
    let queue = Shared::anonymous(Levels::new()).unwrap();
    (0..ALL).for_each(|n| queue.send(1, n).unwrap());
    queue
}

fn take_all_of(queue: &Levels) -> Vec<Delivery<'_, u64, 2>> {
    (0..IN_FLIGHT).map(|_| queue.recv_ack().unwrap()).collect()
}

#[test]
fn levels_a_message_that_finds_no_cell_wakes_a_receiver_that_needs_none() {
    let queue = exhausted_level();
    let _watchdog =
        watch("levels_a_message_that_finds_no_cell_wakes_a_receiver_that_needs_none", &queue);
    let mut held = take_all_of(&queue);
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().unwrap().ack());
        let plain = sleeper(scope, || queue.recv());
        queue.send(1, ALL).unwrap();
        assert_eq!(plain.join().unwrap(), Ok((1, ALL)));
        queue.send(1, ALL + 1).unwrap();
        held.pop().unwrap().ack().unwrap();
        assert_eq!(acker.join().unwrap(), Ok(ALL + 1));
    });
}

#[test]
fn levels_an_end_is_seen_without_a_cell() {
    let queue = exhausted_level();
    let _watchdog = watch("levels_an_end_is_seen_without_a_cell", &queue);
    let _held = take_all_of(&queue);
    queue.send(1, ALL).unwrap();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().map(|delivery| *delivery));
        assert_eq!(queue.try_recv(), Ok((1, ALL)));
        queue.close();
        assert_eq!(acker.join().unwrap(), Err(RecvError::Closed));
    });
    assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::Closed));
    assert!(!queue.join_timeout(Duration::ZERO).unwrap());
}

#[test]
fn levels_a_receiver_that_sleeps_for_a_cell_of_a_closed_queue_hears_that_the_message_is_gone() {
    let queue = exhausted_level();
    let _watchdog = watch(
        "levels_a_receiver_that_sleeps_for_a_cell_of_a_closed_queue_hears_that_the_message_is_gone",
        &queue,
    );
    let _held = take_all_of(&queue);
    queue.send(1, ALL).unwrap();
    queue.close();
    std::thread::scope(|scope| {
        let ackers: Vec<_> =
            (0..2).map(|_| sleeper(scope, || queue.recv_ack().map(|delivery| *delivery))).collect();
        assert_eq!(queue.try_recv(), Ok((1, ALL)));
        for acker in ackers {
            assert_eq!(acker.join().unwrap(), Err(RecvError::Closed));
        }
    });
}

/// Receivers that sleep for an entry wake neither themselves nor each other.
#[test]
fn levels_receivers_without_a_cell_sleep_when_the_senders_are_gone() {
    type Levels = Channel<FixedPriorityQueue<u64, 2, { IN_FLIGHT + 8 }>>;
    let channel = Shared::anonymous(Levels::new(FixedPriorityQueue::new())).unwrap();
    let _watchdog =
        watch("levels_receivers_without_a_cell_sleep_when_the_senders_are_gone", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    (0..=ALL).for_each(|n| sender.send(1, n).unwrap());
    let _held: Vec<_> = (0..IN_FLIGHT).map(|_| receiver.recv_ack().unwrap()).collect();
    drop(sender);
    std::thread::scope(|scope| {
        let wait = || {
            cpu_time(|| {
                let received = receiver.recv_ack_timeout(ms(1_000));
                assert_eq!(received.err(), Some(RecvTimeoutError::TooManyInFlight));
            })
        };
        let receivers = [scope.spawn(wait), scope.spawn(wait)];
        for used in receivers.map(|receiver| receiver.join().unwrap()) {
            assert!(used < ms(50), "{used:?}");
        }
    });
}

#[test]
fn levels_a_free_cell_that_one_receiver_leaves_is_for_the_next() {
    let queue = exhausted_level();
    let _watchdog = watch("levels_a_free_cell_that_one_receiver_leaves_is_for_the_next", &queue);
    let mut held = take_all_of(&queue);
    queue.send(1, ALL).unwrap();
    std::thread::scope(|scope| {
        let first = sleeper(scope, || queue.recv_ack_timeout(ms(2_000)).map(|delivery| *delivery));
        let second = sleeper(scope, || queue.recv_ack().unwrap().ack());
        assert_eq!(queue.recv(), Ok((1, ALL)));
        held.pop().unwrap().ack().unwrap();
        assert_eq!(first.join().unwrap(), Err(RecvTimeoutError::TimedOut));
        std::thread::sleep(ms(100));
        queue.send(1, ALL + 1).unwrap();
        assert_eq!(second.join().unwrap(), Ok(ALL + 1));
    });
}

/// A message that is given back ends the sleep of a receiver that waits with a more urgent one.
#[test]
fn levels_a_message_that_is_given_back_ends_the_sleep_for_an_entry() {
    let queue = exhausted_level();
    let _watchdog =
        watch("levels_a_message_that_is_given_back_ends_the_sleep_for_an_entry", &queue);
    let mut held = take_all_of(&queue);
    queue.send(1, ALL).unwrap();
    std::thread::scope(|scope| {
        let acker = sleeper(scope, || queue.recv_ack().map(|back| (*back, back.attempts())));
        held.remove(5).nack();
        assert_eq!(acker.join().unwrap(), Ok((5, 1)));
    });
}
