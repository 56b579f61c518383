//! Tests of what all kinds of channels have in common: which processes hold the ends, and what the
//! processes at the other end learn about that.
//!
//! The file that includes this one defines how a channel is made, how a message is sent (`send!`),
//! and what a receiver and an error return. It also defines how a message is received so that it
//! comes back if its receiver dies (`hold!`, `try_hold!`, `is_back!`, `let_go!`).
use super::common::{
    self, Random, eventually, fork_child, ms, scribble, sleep_for_ever, thread_cpu, watch,
    watch_alone,
};
use super::{again, back, channel, message, office, received};
use core::sync::atomic::Ordering::SeqCst;
use outlast::{
    Fault, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn time_passes() {
    let channel = channel(4);
    let _watchdog = watch("time_passes", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let began = Instant::now();
    assert_eq!(receiver.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    (1..5).for_each(|n| send!(sender.send_deadline(n, began)).unwrap());
    let again = Instant::now();
    assert_eq!(send!(sender.send_timeout(5, ms(20))), Err(SendTimeoutError::TimedOut(back(5))));
    assert!(again.elapsed() >= ms(20));
    drop(sender);
    (1..5).for_each(|n| assert_eq!(receiver.recv_deadline(began), Ok(received(n))));
    assert_eq!(receiver.recv_deadline(began), Err(RecvTimeoutError::Disconnected));
}

/// A receiver gets the buffered messages before it is disconnected. It is connected again as soon
/// as there is a sender again.
#[test]
fn the_last_sender_leaves() {
    let channel = channel(4);
    let _watchdog = watch("the_last_sender_leaves", &channel);
    let receiver = channel.receiver().unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty)); // the other end was never held
    assert_eq!(receiver.recv_timeout(ms(5)), Err(RecvTimeoutError::TimedOut));
    let sender = channel.sender().unwrap();
    let second = sender.clone();
    assert_eq!(channel.senders(), 1);
    send!(sender.send(1)).unwrap();
    drop(sender);
    send!(second.send(2)).unwrap();
    drop(second);
    assert_eq!(channel.senders(), 0);
    assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(received(1)), Ok(received(2))));
    for _ in 0..2 {
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv_timeout(ms(5)), Err(RecvTimeoutError::Disconnected));
    }
    let third = channel.sender().unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    send!(third.send(3)).unwrap();
    assert_eq!(receiver.recv(), Ok(received(3)));
    drop(third);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
}

#[test]
fn the_last_receiver_leaves() {
    let channel = channel(4);
    let _watchdog = watch("the_last_receiver_leaves", &channel);
    let sender = channel.sender().unwrap();
    send!(sender.send(1)).unwrap(); // the other end was never held
    let receiver = channel.receiver().unwrap();
    let second = receiver.clone();
    drop(receiver);
    send!(sender.try_send(2)).unwrap();
    drop(second);
    assert_eq!(send!(sender.send(3)), Err(SendError::Disconnected(back(3))));
    assert_eq!(send!(sender.try_send(4)), Err(TrySendError::Disconnected(back(4))));
    let late = send!(sender.send_timeout(5, ms(5)));
    assert_eq!(late, Err(SendTimeoutError::Disconnected(back(5))));
    let third = channel.receiver().unwrap();
    (6..8).for_each(|n| send!(sender.send(n)).unwrap());
    assert_eq!(send!(sender.try_send(8)), Err(TrySendError::Full(back(8))));
    [1, 2, 6, 7].iter().for_each(|&n| assert_eq!(third.recv(), Ok(received(n))));
    send!(sender.send(9)).unwrap();
    drop(sender);
    assert_eq!((third.recv(), third.recv()), (Ok(received(9)), Err(RecvError::Disconnected)));
}

#[test]
fn closed_is_another_thing() {
    let channel = channel(4);
    let _watchdog = watch("closed_is_another_thing", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    send!(sender.send(1)).unwrap();
    channel.close();
    assert!(channel.is_closed());
    assert_eq!(send!(sender.send(2)), Err(SendError::Closed(back(2))));
    assert_eq!(send!(sender.try_send(2)), Err(TrySendError::Closed(back(2))));
    drop(sender);
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(received(1)), Err(RecvError::Closed)));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    drop(receiver);
    let sender = channel.sender().unwrap();
    let sent = send!(sender.send(3));
    assert_eq!(sent, Err(SendError::Closed(back(3))));
}

/// Handles that keep the channel, as those of `std::sync::mpsc`.
#[test]
fn handles_move_into_threads() {
    let channel = channel(4);
    let _watchdog = watch("handles_move_into_threads", &channel);
    let receiver = again(&channel).receiver().unwrap(); // the mapping stays with it
    let sender = channel.sender().unwrap();
    drop(channel);
    let senders: Vec<_> = (0..3)
        .map(|i| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                (0..1_000).try_for_each(|n| send!(sender.send(1_000 * i + n))).unwrap();
            })
        })
        .collect();
    drop(sender);
    let other = receiver.clone();
    let half = std::thread::spawn(move || other.into_iter().collect::<Vec<_>>());
    let mut all = BTreeSet::new();
    for message in &receiver {
        all.insert(message);
    }
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    all.extend(half.join().unwrap());
    assert_eq!(all, (0..3_000).map(received).collect());
    senders.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Sleeping threads are woken if the last process at the other end leaves, or is killed.
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
            (0..4).for_each(|n| send!(sender.send(n)).unwrap());
            assert_eq!(send!(sender.send(9)), Err(SendError::Disconnected(back(9))));
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

/// The copies of handles in a forked child do nothing.
#[test]
fn copies_by_fork_are_inert() {
    let channel = channel(4);
    let _watchdog = watch("copies_by_fork_are_inert", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    send!(sender.send(1)).unwrap();
    let child = fork_child(|| {
        assert_eq!(send!(sender.send(2)), Err(SendError::Failed(back(2), Fault::Forked)));
        assert_eq!(send!(sender.try_send(2)), Err(TrySendError::Failed(back(2), Fault::Forked)));
        assert_eq!(receiver.recv(), Err(RecvError::Failed(Fault::Forked)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Failed(Fault::Forked)));
        let copy = receiver.clone();
        assert_eq!(copy.try_recv(), Err(TryRecvError::Failed(Fault::Forked)));
        drop((sender.clone(), copy));
        let mine = channel.receiver().unwrap();
        assert_eq!((channel.receivers(), mine.recv()), (2, Ok(received(1))));
    });
    child.succeeds();
    assert_eq!((channel.senders(), channel.receivers()), (1, 1));
    send!(sender.send(3)).unwrap();
    assert_eq!(receiver.recv(), Ok(received(3)));
    let child = fork_child(|| drop((sender, receiver)));
    child.succeeds();
    assert_eq!((channel.senders(), channel.receivers()), (0, 0));
}

/// A process counts once, and 64 processes can hold an end.
#[test]
fn no_more_than_64_processes() {
    let channel = channel(4);
    let _watchdog = watch("no_more_than_64_processes", &channel);
    let mappings: Vec<_> = (0..65).map(|_| again(&channel)).collect();
    let mut senders: Vec<_> = mappings[..64].iter().map(|there| there.sender().unwrap()).collect();
    assert_eq!(channel.senders(), 64);
    assert_eq!(mappings[64].sender().map(drop), Err(Fault::TooManyPeers));
    assert_eq!(mappings[0].sender().map(drop), Ok(())); // its process has one already
    senders.pop();
    let late = mappings[64].sender().unwrap();
    send!(late.send(1)).unwrap();
    drop(late);
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
        assert_eq!(receiver.recv(), Ok(received(5)));
        assert!(thread_cpu() - before < ms(100), "it was busy");
    });
    waiter.disturb_asleep(3, ms(60));
    send!(sender.send(5)).unwrap();
    waiter.succeeds();
}

/// Two processes at one end leave at the same time, again and again. The other end learns of it
/// each time.
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
                send!(one.send(round)).unwrap();
                drop(one);
            });
            scope.spawn(move || drop(two));
            assert_eq!(receiver.recv(), Ok(received(round)));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        });
    }
}

/// An end is handed on without a gap. The other end is never disconnected.
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
            send!(holder.send(1)).unwrap();
        });
        let outcome = loop {
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => {}
                outcome => break outcome,
            }
        };
        assert_eq!(outcome, Ok(received(1)));
    });
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
}

/// A message that a killed process held goes to another receiver. That receiver is not disconnected
/// before.
#[test]
fn what_a_killed_receiver_had_comes_first() {
    let office = office();
    let _watchdog = watch("what_a_killed_receiver_had_comes_first", &office);
    let sender = office.jobs.sender().unwrap();
    send!(sender.send(7)).unwrap();
    let victim = fork_child(|| {
        let receiver = office.jobs.receiver().unwrap();
        let _held = hold!(receiver).unwrap();
        office.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("the victim has it", || office.step.load(SeqCst) == 1);
    drop(sender);
    let other = fork_child(|| {
        let receiver = office.jobs.receiver().unwrap();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        let held = hold!(receiver).unwrap();
        assert!(is_back!(held, 7), "{held:?}");
        // A process that holds a message itself does not wait for those of others.
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert_eq!(hold!(receiver).unwrap_err(), RecvError::Disconnected);
        let_go!(held).unwrap();
        assert_eq!(hold!(receiver).unwrap_err(), RecvError::Disconnected);
    });
    other.until_waiting();
    victim.kill9();
    other.succeeds();
}

/// The last receiver leaves while a sender sends. The next receiver gets the message if and only if
/// the send succeeded.
#[test]
fn sends_race_with_the_last_receiver() {
    let channel = channel(4);
    let there = again(&channel);
    let _watchdog = watch("sends_race_with_the_last_receiver", &channel);
    let sender = channel.sender().unwrap();
    for round in 0..2_000 {
        let receiver = there.receiver().unwrap();
        let result = std::thread::scope(|scope| {
            scope.spawn(move || drop(receiver));
            send!(sender.send(round))
        });
        let next = there.receiver().unwrap();
        match result {
            Ok(()) => assert_eq!(next.try_recv(), Ok(received(round))),
            Err(error) => assert_eq!(error, SendError::Disconnected(back(round))),
        }
        assert_eq!(next.try_recv(), Err(TryRecvError::Empty));
    }
}

#[test]
fn foreign_bytes() {
    let _watchdog = watch_alone("foreign_bytes");
    let mut random = Random::new(7);
    let child = fork_child(|| {
        for round in 0..300 {
            let office = office();
            let (sender, receiver) =
                (office.jobs.sender().unwrap(), office.jobs.receiver().unwrap());
            let bytes = random.bytes(size_of_val(&office.jobs));
            // The ends only, or all; what the C library keeps in the other backend is none of ours.
            let ends_only = round % 2 == 0 || cfg!(outlast_pthread);
            let len = if ends_only { 520 } else { bytes.len() };
            scribble(&office.jobs, 0, &bytes[..len]);
            for n in 0..4 {
                let soon = Duration::from_micros(10);
                send!(sender.try_send(n)).ok();
                receiver.try_recv().ok();
                drop(try_hold!(receiver));
                receiver.recv_timeout(soon).ok();
                send!(sender.send_timeout(n, soon)).ok();
            }
            drop((sender.clone(), receiver.clone()));
            drop((office.jobs.sender(), office.jobs.receiver()));
            let _counts = (office.jobs.senders(), office.jobs.receivers());
            let _text = format!("{office:?}");
        }
    });
    child.succeeds();
}
