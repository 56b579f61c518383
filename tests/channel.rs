//! `Channel`: who holds its ends, and what those at the other end learn of it.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    eventually, fork_child, ms, scribble, sleep_for_ever, thread_cpu, watch, watch_alone, worlds,
};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    Channel, Fault, FixedChannel, OpenError, Queue, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Office { jobs: FixedChannel<u64, 3>, answers: FixedChannel<u64, 4>, step: AtomicU32, sum: AtomicU64 }
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office {
        jobs: FixedChannel::new(),
        answers: FixedChannel::new(),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

fn channel(capacity: usize) -> Shared<Channel<u64>> {
    Shared::<Channel<u64>>::anonymous_channel(capacity).unwrap()
}

fn again(channel: &Shared<Channel<u64>>) -> Shared<Channel<u64>> {
    Shared::from_fd(channel.try_clone_fd().unwrap()).unwrap()
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

#[test]
fn time_passes() {
    let channel = channel(1);
    let _watchdog = watch("time_passes", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let began = Instant::now();
    assert_eq!(receiver.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    sender.send_deadline(1, began).unwrap();
    let again = Instant::now();
    assert_eq!(sender.send_timeout(2, ms(20)), Err(SendTimeoutError::TimedOut(2)));
    assert!(again.elapsed() >= ms(20));
    assert_eq!(receiver.recv_deadline(began), Ok(1));
    assert_eq!(receiver.recv_ack_timeout(ms(1)).unwrap_err(), RecvTimeoutError::TimedOut);
    drop(sender);
    assert_eq!(receiver.recv_deadline(began), Err(RecvTimeoutError::Disconnected));
}

/// What is buffered comes before the end, which is no longer one when somebody sends again.
#[test]
fn the_last_sender_leaves() {
    let channel = channel(4);
    let _watchdog = watch("the_last_sender_leaves", &channel);
    let receiver = channel.receiver().unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty)); // nobody has come yet
    assert_eq!(receiver.recv_timeout(ms(5)), Err(RecvTimeoutError::TimedOut));
    let sender = channel.sender().unwrap();
    let second = sender.clone();
    assert_eq!(channel.senders(), 1);
    sender.send(1).unwrap();
    drop(sender);
    second.send(2).unwrap();
    drop(second);
    assert_eq!(channel.senders(), 0);
    assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(1), Ok(2)));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    assert_eq!(receiver.recv_timeout(ms(5)), Err(RecvTimeoutError::Disconnected));
    assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    assert_eq!(receiver.try_recv_ack().unwrap_err(), TryRecvError::Disconnected);
    assert_eq!(receiver.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::Disconnected);

    let third = channel.sender().unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    third.send(3).unwrap();
    assert_eq!(receiver.recv(), Ok(3));
    drop(third);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
}

#[test]
fn the_last_receiver_leaves() {
    let channel = channel(2);
    let _watchdog = watch("the_last_receiver_leaves", &channel);
    let sender = channel.sender().unwrap();
    sender.send(1).unwrap(); // nobody has come yet
    let receiver = channel.receiver().unwrap();
    let second = receiver.clone();
    drop(receiver);
    sender.try_send(2).unwrap();
    drop(second);
    assert_eq!(sender.send(3), Err(SendError::Disconnected(3)));
    assert_eq!(sender.try_send(4), Err(TrySendError::Disconnected(4)));
    assert_eq!(sender.send_timeout(5, ms(5)), Err(SendTimeoutError::Disconnected(5)));
    assert_eq!(sender.send_batch(&[6, 7]), Err(SendError::Disconnected(0)));
    let third = channel.receiver().unwrap();
    assert_eq!(sender.try_send(8), Err(TrySendError::Full(8)));
    assert_eq!((third.recv(), third.recv()), (Ok(1), Ok(2)));
    sender.send(9).unwrap();
    drop(sender);
    assert_eq!((third.recv(), third.recv()), (Ok(9), Err(RecvError::Disconnected)));
}

#[test]
fn closed_is_another_thing() {
    let channel = channel(2);
    let _watchdog = watch("closed_is_another_thing", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    sender.send(1).unwrap();
    channel.close();
    assert_eq!(sender.send(2), Err(SendError::Closed(2)));
    assert_eq!(sender.try_send(2), Err(TrySendError::Closed(2)));
    drop(sender);
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Err(RecvError::Closed)));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    drop(receiver);
    assert_eq!(channel.sender().unwrap().send(3), Err(SendError::Closed(3)));
}

/// What kills each worker goes elsewhere after a while, and counts as done: the channel ends.
#[test]
fn what_kills_is_buried() {
    let channel = channel(4);
    let dead_letters = Shared::<Queue<u64>>::anonymous_queue(4).unwrap();
    let _watchdog = watch("what_kills_is_buried", &channel);
    let sender = channel.sender().unwrap();
    sender.send(666).unwrap();
    for attempts in 0..2 {
        let victim = fork_child(|| {
            let receiver = channel.receiver().unwrap();
            let job = receiver.recv_ack_or_bury(2, &dead_letters).unwrap();
            assert_eq!((*job, job.attempts()), (666, attempts));
            common::exit_now(0); // to the others it was killed
        });
        victim.succeeds();
    }
    let worker = fork_child(|| {
        let receiver = channel.receiver().unwrap();
        let job = receiver.recv_ack_or_bury(2, &dead_letters).unwrap();
        assert_eq!(job.ack(), Ok(7));
    });
    eventually("it is buried", || dead_letters.len() == 1);
    sender.send(7).unwrap();
    worker.succeeds();
    assert_eq!(dead_letters.drain(), [666]);
    let receiver = channel.receiver().unwrap();
    let none = receiver.try_recv_ack_or_bury(2, &dead_letters);
    assert_eq!(none.unwrap_err(), TryRecvError::Empty);
    let began = Instant::now();
    let none = receiver.recv_ack_or_bury_timeout(2, &dead_letters, ms(5));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    let none = receiver.recv_ack_or_bury_deadline(2, &dead_letters, began + ms(10));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(10));
    drop(sender);
    let none = receiver.recv_ack_or_bury(2, &dead_letters);
    assert_eq!(none.unwrap_err(), RecvError::Disconnected);
}

/// Handles that keep the channel, as those of `std::sync::mpsc`.
#[test]
fn handles_move_into_threads() {
    let channel = channel(4);
    let _watchdog = watch("handles_move_into_threads", &channel);
    let receiver = again(&channel).receiver().unwrap(); // the mapping stays with it
    let sender = channel.sender().unwrap();
    drop(channel);
    let senders: Vec<_> = (0..3_u64)
        .map(|i| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                (0..1_000).try_for_each(|n| sender.send(1_000 * i + n)).unwrap();
            })
        })
        .collect();
    drop(sender);
    let other = receiver.clone();
    let half = std::thread::spawn(move || other.into_iter().collect::<Vec<u64>>());
    let mut all = BTreeSet::new();
    for message in &receiver {
        all.insert(message);
    }
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    all.extend(half.join().unwrap());
    assert_eq!(all, (0..3_000).collect());
    senders.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn by_name_and_capacity() {
    let name = format!("channel-{}", std::process::id());
    let here = Shared::<Channel<u64>>::create_channel(&name, 5).unwrap();
    let _watchdog = watch("by_name_and_capacity", &here);
    let there = Shared::<Channel<u64>>::open(&name).unwrap();
    let (sender, receiver) = (here.sender().unwrap(), there.receiver().unwrap());
    assert_eq!(there.capacity(), 5);
    for round in 0..9 {
        (0..5).for_each(|i| sender.send(round + i).unwrap());
        assert!(sender.try_send(0).unwrap_err().is_full());
        (0..5).for_each(|i| assert_eq!(receiver.recv(), Ok(round + i)));
    }
    drop(sender);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    let too_large = Shared::<Channel<u64>>::anonymous_channel(1 << 24);
    assert!(matches!(too_large, Err(OpenError::InvalidCapacity(_))));
    assert!(matches!(
        Shared::<Channel<u64>>::anonymous_channel(0),
        Err(OpenError::InvalidCapacity(0))
    ));
}

#[test]
fn not_in_a_segment() {
    let channel = FixedChannel::<u64, 2>::new();
    assert_eq!(channel.sender().map(drop), Err(Fault::NotShared));
}

/// Each sends its numbers and leaves; the receivers stay until nobody can send.
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

/// Those who sleep are told, whether the last one at the other end leaves, or is killed.
#[test]
fn sleepers_learn_of_the_end() {
    for killed in [false, true] {
        let office = office();
        let _watchdog = watch("sleepers_learn_of_the_end", &office);
        let last = fork_child(|| {
            let (_sender, _receiver) =
                (office.jobs.sender().unwrap(), office.answers.receiver().unwrap());
            office.step.store(1, SeqCst);
            eventually("it is time to leave", || office.step.load(SeqCst) == 2);
        });
        eventually("it has come", || office.step.load(SeqCst) == 1);
        assert_eq!((office.jobs.senders(), office.answers.receivers()), (1, 1));
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                fork_child(|| {
                    let receiver = office.jobs.receiver().unwrap();
                    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
                })
            })
            .collect();
        let sender = fork_child(|| {
            let sender = office.answers.sender().unwrap();
            (0..4).for_each(|n| sender.send(n).unwrap());
            assert_eq!(sender.send(9), Err(SendError::Disconnected(9)));
        });
        receivers.iter().chain([&sender]).for_each(common::Child::until_waiting);
        if killed {
            last.kill9();
        } else {
            office.step.store(2, SeqCst);
            last.succeeds();
        }
        receivers.into_iter().chain([sender]).for_each(common::Child::succeeds);
    }
}

/// A killed worker's job goes to another, who is not told before that nobody can send.
#[test]
fn what_a_killed_receiver_had_comes_first() {
    let office = office();
    let _watchdog = watch("what_a_killed_receiver_had_comes_first", &office);
    let sender = office.jobs.sender().unwrap();
    sender.send(7).unwrap();
    let worker = fork_child(|| {
        let receiver = office.jobs.receiver().unwrap();
        let _job = receiver.recv_ack().unwrap();
        office.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("the worker has it", || office.step.load(SeqCst) == 1);
    drop(sender);
    let other = fork_child(|| {
        let receiver = office.jobs.receiver().unwrap();
        let job = receiver.recv_ack().unwrap();
        assert_eq!((*job, job.attempts()), (7, 1));
        // Who holds one is not to wait for others.
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
        job.ack().unwrap();
        assert_eq!(receiver.recv_ack().unwrap_err(), RecvError::Disconnected);
    });
    other.until_waiting();
    worker.kill9();
    other.succeeds();
}

/// The copies of handles that a fork makes do nothing.
#[test]
fn copies_by_fork_are_inert() {
    let channel = channel(4);
    let _watchdog = watch("copies_by_fork_are_inert", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    sender.send(1).unwrap();
    let child = fork_child(|| {
        assert_eq!(sender.send(2), Err(SendError::Failed(2, Fault::Forked)));
        assert_eq!(sender.try_send(2), Err(TrySendError::Failed(2, Fault::Forked)));
        assert_eq!(receiver.recv(), Err(RecvError::Failed(Fault::Forked)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Failed(Fault::Forked)));
        let copy = receiver.clone();
        assert_eq!(copy.try_recv(), Err(TryRecvError::Failed(Fault::Forked)));
        drop((sender.clone(), copy));
        let mine = channel.receiver().unwrap();
        assert_eq!((channel.receivers(), mine.recv()), (2, Ok(1)));
    });
    child.succeeds();
    assert_eq!((channel.senders(), channel.receivers()), (1, 1));
    sender.send(3).unwrap();
    assert_eq!(receiver.recv(), Ok(3));
    let child = fork_child(|| drop((sender, receiver)));
    child.succeeds();
    assert_eq!((channel.senders(), channel.receivers()), (0, 0));
}

/// A process counts once, and 64 can hold an end.
#[test]
fn no_more_than_64_processes() {
    let channel = channel(2);
    let _watchdog = watch("no_more_than_64_processes", &channel);
    let mappings: Vec<_> = (0..65).map(|_| again(&channel)).collect();
    let mut senders: Vec<_> = mappings[..64].iter().map(|there| there.sender().unwrap()).collect();
    assert_eq!(channel.senders(), 64);
    assert_eq!(mappings[64].sender().map(drop), Err(Fault::TooManyPeers));
    assert_eq!(mappings[0].sender().map(drop), Ok(())); // it has it already
    senders.pop();
    mappings[64].sender().unwrap().send(1).unwrap();
    assert_eq!(channel.senders(), 63);
}

/// A signal's handler does not end a wait, and waiting takes no time of the processor.
#[test]
fn a_wait_is_a_wait() {
    let office = office();
    let _watchdog = watch("a_wait_is_a_wait", &office);
    let sender = office.jobs.sender().unwrap();
    let waiter = fork_child(|| {
        common::catch_user_signals();
        let receiver = office.jobs.receiver().unwrap();
        let before = thread_cpu();
        assert_eq!(receiver.recv(), Ok(5));
        assert!(thread_cpu() - before < ms(100), "it was busy");
    });
    waiter.disturb_asleep(3, ms(60));
    sender.send(5).unwrap();
    waiter.succeeds();
}

/// Two at one end leave at the same time, again and again: the other end is told each time.
#[test]
fn ends_race() {
    let channel = channel(4);
    let there = again(&channel);
    let _watchdog = watch("ends_race", &channel);
    let receiver = channel.receiver().unwrap();
    for round in 0..2_000 {
        let (one, two) = (channel.sender().unwrap(), there.sender().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.send(round).unwrap();
                drop(one);
            });
            scope.spawn(move || drop(two));
            assert_eq!(receiver.recv(), Ok(round));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        });
    }
}

/// An end is handed on, and never empty: nobody is told that it was.
#[test]
fn an_end_that_is_handed_on() {
    let channel = channel(4);
    let there = again(&channel);
    let _watchdog = watch("an_end_that_is_handed_on", &channel);
    let receiver = channel.receiver().unwrap();
    let first = channel.sender().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut holder, mut here) = (first, false);
            for _ in 0..20_000 {
                let next = if here { channel.sender() } else { there.sender() };
                holder = next.unwrap(); // and the one before it is dropped
                here = !here;
            }
            holder.send(1).unwrap();
        });
        let received = loop {
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => {}
                received => break received,
            }
        };
        assert_eq!(received, Ok(1));
    });
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
}

#[test]
fn foreign_bytes() {
    let office = office();
    let _watchdog = watch_alone("foreign_bytes");
    let mut random = common::Random::new(7);
    let child = fork_child(|| {
        for round in 0..300 {
            let office = self::office();
            let (sender, receiver) =
                (office.jobs.sender().unwrap(), office.jobs.receiver().unwrap());
            let bytes = random.bytes(size_of::<FixedChannel<u64, 3>>());
            // The ends only, or all; what the C library keeps in the other backend is none of ours.
            let ends_only = round % 2 == 0 || !cfg!(feature = "futex");
            let len = if ends_only { 520 } else { bytes.len() };
            scribble(&office.jobs, 0, &bytes[..len]);
            for n in 0..4 {
                sender.try_send(n).ok();
                receiver.try_recv().ok();
                drop(receiver.try_recv_ack());
                receiver.recv_timeout(Duration::from_micros(10)).ok();
                sender.send_timeout(n, Duration::from_micros(10)).ok();
            }
            drop((sender.clone(), receiver.clone()));
            drop((office.jobs.sender(), office.jobs.receiver()));
            let _counts = (office.jobs.senders(), office.jobs.receivers());
            let _text = format!("{office:?}");
        }
    });
    child.succeeds();
    drop(office);
}

#[test]
fn errors_say_it() {
    assert_eq!(
        RecvError::Disconnected.to_string(),
        "nobody is left to send, and nothing to receive"
    );
    assert_eq!(SendError::Disconnected(1).to_string(), "nobody is left to receive");
    assert_eq!(SendError::Disconnected(1).into_inner(), 1);
    let error: outlast::Error = TrySendError::Disconnected(1).into();
    assert_eq!(error.to_string(), "nobody is left to receive");
}
