//! `Channel`: which processes hold its ends, and what the processes at the other end learn of it.
//! See also `common/ends.rs`.
#![cfg(not(outlast_loom))]
mod common;

/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(message($n) $(, $until)?)
    };
}

#[macro_use]
#[path = "common/deliveries.rs"]
mod deliveries;

#[path = "common/ends.rs"]
mod ends;

use common::{eventually, fork_child, ms, watch, worlds};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    Channel, Fault, FixedQueue, OpenError, Options, Queue, RecvError, RecvTimeoutError, SendError,
    Shared, TryRecvError, TrySendError,
};
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Office { jobs: Channel<FixedQueue<u64, 3>>, answers: Channel<FixedQueue<u64, 4>>, step: AtomicU32, sum: AtomicU64 }
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office {
        jobs: Channel::new(FixedQueue::new()),
        answers: Channel::new(FixedQueue::new()),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

fn channel(capacity: usize) -> Shared<Channel<Queue<u64>>> {
    Shared::<Channel<Queue<u64>>>::with_capacity(capacity).unwrap()
}

fn again(channel: &Shared<Channel<Queue<u64>>>) -> Shared<Channel<Queue<u64>>> {
    Shared::from_fd(channel.try_clone_fd().unwrap()).unwrap()
}

fn message(n: u64) -> u64 {
    n
}

fn received(n: u64) -> u64 {
    n
}

fn back(n: u64) -> u64 {
    n
}

#[test]
fn the_number_of_deliveries_is_chosen() {
    let here = Options::new().in_flight(2).with_capacity::<Channel<Queue<u64>>>(4).unwrap();
    let there = Shared::<Channel<Queue<u64>>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let _watchdog = watch("the_number_of_deliveries_is_chosen", &here);
    assert_eq!((there.capacity(), there.in_flight_capacity()), (4, 2));
    let (sender, receiver) = (here.sender().unwrap(), there.receiver().unwrap());
    sender.send_batch(&[1, 2, 3]).unwrap();
    let held = [receiver.recv_ack().unwrap(), receiver.try_recv_ack().unwrap()];
    assert_eq!(receiver.try_recv_ack().unwrap_err(), TryRecvError::TooManyInFlight);
    let late = receiver.recv_ack_timeout(Duration::ZERO).unwrap_err();
    assert_eq!(late, RecvTimeoutError::TooManyInFlight);
    for delivery in held {
        delivery.ack().unwrap();
    }
    assert_eq!(receiver.recv_ack().unwrap().ack().unwrap(), 3);
    assert!(Options::new().in_flight(0).with_capacity::<Channel<Queue<u64>>>(4).is_err());
}

#[test]
fn alone() {
    let channel = channel(2);
    let _watchdog = watch("alone", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    assert_eq!((channel.capacity(), channel.len(), channel.is_empty()), (2, 0, true));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    sender.send(1).unwrap();
    sender.try_send(2).unwrap();
    assert!(channel.is_full());
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(receiver.recv(), Ok(1));
    assert_eq!(receiver.try_recv(), Ok(2));
    sender.send_batch(&[4, 5]).unwrap();
    let mut all = Vec::new();
    assert_eq!(receiver.recv_batch(&mut all, 9), Ok(2));
    assert_eq!(all, [4, 5]);
    sender.send(6).unwrap();
    let job = receiver.recv_ack().unwrap();
    drop(job);
    let job = receiver.try_recv_ack().unwrap();
    assert_eq!((job.attempts(), job.ack()), (1, Ok(6)));
    assert!(channel.join_timeout(Duration::ZERO).unwrap());
    assert!(sender.same_channel(&channel.sender().unwrap()));
}

/// What the ends tell reaches every verb.
#[test]
fn jobs_and_batches() {
    let channel = channel(1);
    let _watchdog = watch("jobs_and_batches", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let began = Instant::now();
    assert_eq!(receiver.recv_ack_timeout(ms(20)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    drop(sender);
    assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    assert_eq!(receiver.try_recv_ack().unwrap_err(), TryRecvError::Disconnected);
    assert_eq!(receiver.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::Disconnected);
    drop(receiver);
    let sender = channel.sender().unwrap();
    assert_eq!(sender.send_batch(&[6, 7]), Err(SendError::Disconnected(0)));
}

/// What kills each worker goes elsewhere after a while, and counts as done: the channel ends.
#[test]
fn what_kills_is_buried() {
    let channel = channel(4);
    let dead_letters = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("what_kills_is_buried", &channel);
    let sender = channel.sender().unwrap();
    sender.send(666).unwrap();
    for attempts in 0..2 {
        let victim = fork_child(|| {
            let receiver = channel.receiver().unwrap();
            let job = receiver.recv_ack_or_dead_letter(2, &dead_letters).unwrap();
            assert_eq!((*job, job.attempts()), (666, attempts));
            common::exit_now(0); // to the others it was killed
        });
        victim.succeeds();
    }
    let worker = fork_child(|| {
        let receiver = channel.receiver().unwrap();
        let job = receiver.recv_ack_or_dead_letter(2, &dead_letters).unwrap();
        assert_eq!(job.ack(), Ok(7));
    });
    eventually("it is buried", || dead_letters.len() == 1);
    sender.send(7).unwrap();
    worker.succeeds();
    assert_eq!(dead_letters.drain(), [666]);
    let receiver = channel.receiver().unwrap();
    let none = receiver.try_recv_ack_or_dead_letter(2, &dead_letters);
    assert_eq!(none.unwrap_err(), TryRecvError::Empty);
    let began = Instant::now();
    let none = receiver.recv_ack_or_dead_letter_timeout(2, &dead_letters, ms(5));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    let none = receiver.recv_ack_or_dead_letter_deadline(2, &dead_letters, began + ms(10));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(10));
    drop(sender);
    let none = receiver.recv_ack_or_dead_letter(2, &dead_letters);
    assert_eq!(none.unwrap_err(), RecvError::Disconnected);
}

#[test]
fn by_name_and_capacity() {
    let name = format!("channel-{}", std::process::id());
    let here = Shared::<Channel<Queue<u64>>>::create_with_capacity(&name, 5).unwrap();
    let _watchdog = watch("by_name_and_capacity", &here);
    let there = Shared::<Channel<Queue<u64>>>::open(&name).unwrap();
    let (sender, receiver) = (here.sender().unwrap(), there.receiver().unwrap());
    assert_eq!(there.capacity(), 5);
    for round in 0..9 {
        (0..5).for_each(|i| sender.send(round + i).unwrap());
        assert!(sender.try_send(0).unwrap_err().is_full());
        (0..5).for_each(|i| assert_eq!(receiver.recv(), Ok(round + i)));
    }
    drop(sender);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    let too_large = Shared::<Channel<Queue<u64>>>::with_capacity(1 << 24);
    assert!(matches!(too_large, Err(OpenError::InvalidCapacity(_))));
    assert!(matches!(
        Shared::<Channel<Queue<u64>>>::with_capacity(0),
        Err(OpenError::InvalidCapacity(0))
    ));
}

#[test]
fn not_in_a_segment() {
    let channel = Channel::new(FixedQueue::<u64, 2>::new());
    assert_eq!(channel.sender().map(drop), Err(Fault::NotShared));
}

/// Each sender sends its numbers and leaves. The receivers stay until no sender is left.
#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 3_000;
    worlds(
        "streams_in_every_world",
        "",
        4,
        office,
        |office, i| {
            if i < 2 {
                let sender = office.jobs.sender().unwrap();
                office.step.fetch_add(1, SeqCst);
                (1..=COUNT).for_each(|n| sender.send(n).unwrap());
            } else {
                eventually("both have come", || office.step.load(SeqCst) == 2);
                let receiver = office.jobs.receiver().unwrap();
                let mut sum = 0;
                while let Ok(n) = receiver.recv() {
                    sum += n;
                }
                assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
                office.sum.fetch_add(sum, SeqCst);
            }
        },
        |office| {
            assert_eq!(office.sum.load(SeqCst), COUNT * (COUNT + 1));
            assert_eq!((office.jobs.senders(), office.jobs.receivers()), (0, 0));
        },
    );
}

#[test]
fn errors_say_it() {
    assert_eq!(RecvError::Disconnected.to_string(), "the channel is empty and has no sender left");
    assert_eq!(SendError::Disconnected(1).to_string(), "the channel has no receiver left");
    assert_eq!(SendError::Disconnected(1).into_inner(), 1);
    let error: outlast::Error = TrySendError::Disconnected(1).into();
    assert_eq!(error.to_string(), "the channel has no receiver left");
}
