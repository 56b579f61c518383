//! `Channel<PriorityQueue>`: the most urgent first, between two ends that notice each other's (see
//! `ends`, too).
#![cfg(not(outlast_loom))]
mod common;

/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(1, message($n) $(, $until)?)
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
    Channel, Fault, FixedPriorityQueue, Queue, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::time::{Duration, Instant};

type Levels = Channel<FixedPriorityQueue<u64, 3, 4>>;

outlast::shared! {
    #[derive(Debug)]
    struct Office { jobs: Channel<FixedPriorityQueue<u64, 3, 4>>, answers: Channel<FixedPriorityQueue<u64, 3, 4>>, step: AtomicU32, sum: AtomicU64 }
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office {
        jobs: Channel::new(FixedPriorityQueue::new()),
        answers: Channel::new(FixedPriorityQueue::new()),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

fn channel(capacity: usize) -> Shared<Levels> {
    let channel = Shared::anonymous(Levels::new(FixedPriorityQueue::new())).unwrap();
    assert_eq!(channel.capacity(), capacity);
    channel
}

fn again(channel: &Shared<Levels>) -> Shared<Levels> {
    Shared::from_fd(channel.try_clone_fd().unwrap()).unwrap()
}

fn message(n: u64) -> u64 {
    n
}

fn received(n: u64) -> (usize, u64) {
    (1, n)
}

fn back(n: u64) -> u64 {
    n
}

#[test]
fn alone() {
    let channel = channel(4);
    let _watchdog = watch("alone", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    assert_eq!((channel.levels(), channel.len(), channel.is_empty()), (3, 0, true));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    for (priority, message) in [(0, 1), (2, 2), (1, 3), (2, 4), (0, 5)] {
        sender.send(priority, message).unwrap();
    }
    assert_eq!((channel.len(), channel.len_of(2), channel.len_of(3)), (5, 2, 0));
    sender.try_send(2, 6).unwrap();
    sender.try_send(2, 7).unwrap();
    assert_eq!(sender.try_send(2, 8), Err(TrySendError::Full(8)));
    let all: Vec<_> = receiver.try_iter().collect();
    assert_eq!(all, [(2, 2), (2, 4), (2, 6), (2, 7), (1, 3), (0, 1), (0, 5)]);
    sender.send(1, 9).unwrap();
    drop(receiver.recv_ack().unwrap());
    let job = receiver.try_recv_ack().unwrap();
    assert_eq!((job.priority(), job.attempts(), *job), (1, 1, 9));
    assert!(!channel.join_timeout(Duration::ZERO).unwrap());
    assert_eq!(job.ack(), Ok(9));
    assert!(channel.join_deadline(Instant::now()).unwrap());
    channel.join().unwrap();
    assert!(sender.same_channel(&channel.sender().unwrap()));
    assert!(receiver.same_channel(&receiver.clone()));
}

/// A level that there is not is the caller's mistake, which every verb names.
#[test]
fn no_such_level() {
    let channel = channel(4);
    let _watchdog = watch("no_such_level", &channel);
    let sender = channel.sender().unwrap();
    let (fault, now) = (Fault::NoSuchLevel, Instant::now());
    for level in [3, 32, usize::MAX] {
        assert_eq!(sender.send(level, 7), Err(SendError::Failed(7, fault)));
        assert_eq!(sender.try_send(level, 7), Err(TrySendError::Failed(7, fault)));
        let sent = sender.send_timeout(level, 7, ms(1));
        assert_eq!(sent, Err(SendTimeoutError::Failed(7, fault)));
        let sent = sender.send_deadline(level, 7, now);
        assert_eq!(sent, Err(SendTimeoutError::Failed(7, fault)));
    }
    assert!(channel.is_empty());
    assert_eq!(fault.to_string(), "the queue has no level of that number");
}

/// What the ends tell reaches every verb, and what is in any level comes before it.
#[test]
fn jobs_of_all_levels() {
    let channel = channel(4);
    let _watchdog = watch("jobs_of_all_levels", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let began = Instant::now();
    assert_eq!(receiver.recv_ack_timeout(ms(20)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    (0..3).for_each(|level| sender.send(level, 7).unwrap());
    drop(sender);
    for level in [2, 1, 0] {
        let job = receiver.recv_ack_deadline(began).unwrap();
        assert_eq!((job.priority(), job.ack()), (level, Ok(7)));
    }
    assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    assert_eq!(receiver.try_recv_ack().unwrap_err(), TryRecvError::Disconnected);
    assert_eq!(receiver.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::Disconnected);
    drop(receiver);
    let sender = channel.sender().unwrap();
    for level in 0..3 {
        assert_eq!(sender.send(level, 8), Err(SendError::Disconnected(8)));
    }
    assert!(channel.is_empty());
}

#[test]
fn not_in_a_segment() {
    let channel = Levels::new(FixedPriorityQueue::new());
    assert_eq!(channel.sender().map(drop), Err(Fault::NotShared));
}

#[test]
fn by_name() {
    let name = format!("priority-channel-{}", std::process::id());
    let here = Shared::create(&name, Levels::new(FixedPriorityQueue::new())).unwrap();
    let _watchdog = watch("by_name", &here);
    let there = Shared::<Levels>::open(&name).unwrap();
    let (sender, receiver) = (here.sender().unwrap(), there.receiver().unwrap());
    for round in 0..9 {
        (0..3).for_each(|level| sender.send(level, round).unwrap());
        (0..3).rev().for_each(|level| assert_eq!(receiver.recv(), Ok((level, round))));
    }
    drop(sender);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    let other = Shared::<Channel<FixedPriorityQueue<u64, 4, 4>>>::open(&name);
    assert!(matches!(other, Err(outlast::OpenError::OtherType { .. })), "{other:?}");
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
                let level = |n: u64| usize::try_from(n % 3).unwrap();
                (1..=COUNT).for_each(|n| sender.send(level(n), n).unwrap());
            } else {
                eventually("both have come", || office.step.load(SeqCst) == 2);
                let receiver = office.jobs.receiver().unwrap();
                let mut sum = 0;
                while let Ok((level, n)) = receiver.recv() {
                    assert_eq!(level as u64, n % 3);
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

/// What kills each worker goes elsewhere after a while, and counts as done: the channel ends.
#[test]
fn what_kills_is_buried() {
    let channel = channel(4);
    let dead_letters = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("what_kills_is_buried", &channel);
    let sender = channel.sender().unwrap();
    sender.send(2, 666).unwrap();
    for attempts in 0..2 {
        let victim = fork_child(|| {
            let receiver = channel.receiver().unwrap();
            let job = receiver.recv_ack_or_dead_letter(2, &dead_letters).unwrap();
            assert_eq!((*job, job.priority(), job.attempts()), (666, 2, attempts));
            common::exit_now(0); // to the others it was killed
        });
        victim.succeeds();
    }
    drop(sender);
    let began = Instant::now();
    let receiver = channel.receiver().unwrap();
    assert_eq!(
        receiver.recv_ack_or_dead_letter(2, &dead_letters).unwrap_err(),
        RecvError::Disconnected
    );
    assert_eq!(dead_letters.drain(), [666]);
    assert_eq!(
        receiver.try_recv_ack_or_dead_letter(2, &dead_letters).unwrap_err(),
        TryRecvError::Disconnected
    );
    let _sender = channel.sender().unwrap();
    let none = receiver.recv_ack_or_dead_letter_timeout(2, &dead_letters, ms(5));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    let none = receiver.recv_ack_or_dead_letter_deadline(2, &dead_letters, began + ms(10));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(10));
}

/// All receivers that wait for a message that another one holds learn when it is done with,
/// whichever its level was.
#[test]
fn all_who_wait_for_the_last_delivery_are_told() {
    for (level, given_back) in [(0, false), (2, false), (0, true), (2, true)] {
        let office = office();
        let _watchdog = watch("all_who_wait_for_the_last_delivery_are_told", &office);
        let receiver = office.jobs.receiver().unwrap();
        office.jobs.sender().unwrap().send(level, 7).unwrap(); // and leaves
        let job = receiver.recv_ack().unwrap();
        let waiters: Vec<_> = (0..4)
            .map(|i| {
                fork_child(|| {
                    let receiver = office.jobs.receiver().unwrap();
                    let last = loop {
                        let next = if i % 2 == 0 {
                            receiver.recv()
                        } else {
                            receiver.recv_ack().map(|job| (job.priority(), job.ack().unwrap()))
                        };
                        match next {
                            Ok(message) => {
                                assert_eq!(message, (level, 7));
                                office.sum.fetch_add(1, SeqCst);
                            }
                            Err(error) => break error,
                        }
                    };
                    assert_eq!(last, RecvError::Disconnected);
                })
            })
            .collect();
        waiters.iter().for_each(common::Child::until_waiting);
        if given_back {
            job.nack()
        } else {
            assert_eq!(job.ack(), Ok(7))
        }
        waiters.into_iter().for_each(common::Child::succeeds);
        assert_eq!(office.sum.load(SeqCst), u64::from(given_back));
    }
}

/// Two that hold what may come back, of different levels, do not wait for each other.
#[test]
fn holders_do_not_wait_for_each_other() {
    let office = office();
    let _watchdog = watch("holders_do_not_wait_for_each_other", &office);
    let sender = office.jobs.sender().unwrap();
    (0..2).for_each(|level| sender.send(2 * level, 7).unwrap());
    drop(sender);
    let workers: Vec<_> = (0..2)
        .map(|_| {
            fork_child(|| {
                let receiver = office.jobs.receiver().unwrap();
                let job = receiver.recv_ack().unwrap();
                office.step.fetch_add(1, SeqCst);
                eventually("both have one", || office.step.load(SeqCst) >= 2);
                assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
                job.ack().unwrap();
            })
        })
        .collect();
    workers.into_iter().for_each(common::Child::succeeds);
}
