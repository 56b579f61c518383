//! `Channel<ByteQueue>`: messages of any length, between two ends that notice each other's (see
//! `ends`, too).
#![cfg(not(outlast_loom))]
mod common;

/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(message($n) $(, $until)?)
    };
}

/// Receives a message that comes back if the process is killed.
macro_rules! hold {
    ($receiver:ident) => {
        $receiver.recv_ref()
    };
}

/// The same, if there is one.
macro_rules! try_hold {
    ($receiver:ident) => {
        $receiver.try_recv_ref()
    };
}

/// Whether it is the message of that number, and has come back once.
macro_rules! is_back {
    ($held:ident, $n:expr) => {
        &*$held == message($n)
    };
}

/// Is done with it.
macro_rules! let_go {
    ($held:ident) => {
        Ok::<(), Fault>(drop($held))
    };
}

#[path = "common/ends.rs"]
#[expect(clippy::unit_arg, reason = "errors give no bytes back")]
mod ends;

use common::{eventually, fork_child, ms, sleep_for_ever, watch, worlds};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    ByteQueue, Channel, Fault, FixedByteQueue, OpenError, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::time::Instant;

outlast::shared! {
    #[derive(Debug)]
    struct Office { jobs: Channel<FixedByteQueue<4>>, answers: Channel<FixedByteQueue<4>>, step: AtomicU32, sum: AtomicU64 }
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office {
        jobs: Channel::new(FixedByteQueue::new()),
        answers: Channel::new(FixedByteQueue::new()),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

/// A channel of so many blocks, of which a short message takes one.
fn channel(blocks: usize) -> Shared<Channel<ByteQueue>> {
    Shared::<Channel<ByteQueue>>::with_capacity(64 * blocks).unwrap()
}

fn again(channel: &Shared<Channel<ByteQueue>>) -> Shared<Channel<ByteQueue>> {
    Shared::from_fd(channel.try_clone_fd().unwrap()).unwrap()
}

/// (As long as the program.)
fn message(n: u64) -> &'static [u8] {
    received(n).leak()
}

fn received(n: u64) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

fn back(_n: u64) {}

#[test]
fn alone() {
    let channel = channel(4);
    let _watchdog = watch("alone", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    assert_eq!((channel.capacity(), channel.len(), channel.is_empty()), (256, 0, true));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    sender.send(b"one").unwrap();
    let mut room = sender.loan(100).unwrap();
    room[..2].copy_from_slice(b"in");
    room.send_len(2).unwrap();
    sender.try_send(b"").unwrap();
    assert_eq!(sender.try_send(b"too much"), Err(TrySendError::Full(())));
    assert_eq!(sender.send(&[0; 257]), Err(SendError::Failed((), Fault::TooLong)));
    assert_eq!(channel.len(), 3);
    assert_eq!(receiver.recv().unwrap(), b"one");
    let message = receiver.recv_ref().unwrap();
    assert_eq!(&*message, b"in");
    message.give_back().unwrap();
    let mut all = Vec::from(*b"was ");
    assert_eq!(receiver.recv_into(&mut all), Ok(2));
    assert_eq!(all, b"was in");
    assert_eq!(receiver.try_recv().unwrap(), b"");
    drop(sender.loan(9).unwrap());
    assert!(channel.is_empty());
    assert!(sender.same_channel(&channel.sender().unwrap()));
    assert!(receiver.same_channel(&receiver.clone()));
}

#[test]
fn time_passes_in_place() {
    let channel = channel(4);
    let _watchdog = watch("time_passes_in_place", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let began = Instant::now();
    assert_eq!(receiver.recv_ref_timeout(ms(20)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    sender.send(&[1; 256]).unwrap();
    let none = sender.loan_deadline(1, Instant::now()).map(drop);
    assert_eq!(none, Err(SendTimeoutError::TimedOut(())));
    drop(sender);
    assert_eq!(receiver.try_recv_ref().unwrap().len(), 256);
    assert_eq!(receiver.recv_ref_deadline(began).unwrap_err(), RecvTimeoutError::Disconnected);
}

/// Room was taken, and then the last receiver leaves.
#[test]
fn room_for_nobody() {
    let channel = channel(4);
    let _watchdog = watch("room_for_nobody", &channel);
    let sender = channel.sender().unwrap();
    sender.send(&[1; 100]).unwrap();
    let receiver = channel.receiver().unwrap();
    let (room, other) = (sender.try_loan(60).unwrap(), sender.loan(64).unwrap());
    drop(receiver);
    assert_eq!(room.send(), Err(SendError::Disconnected(()))); // and it is not received
    assert_eq!(other.send_len(3), Err(SendError::Disconnected(())));
    assert_eq!(channel.len(), 1);
    assert_eq!(sender.loan(6).map(drop), Err(SendError::Disconnected(())));
    let receiver = channel.receiver().unwrap();
    assert_eq!(sender.try_send(&[8; 200]), Err(TrySendError::Full(())));
    assert_eq!(receiver.recv().unwrap().len(), 100);
    let room = sender.loan(256).unwrap(); // all is there again
    drop(receiver);
    let receiver = channel.receiver().unwrap(); // no process has looked meanwhile
    room.send_len(9).unwrap();
    drop(sender);
    assert_eq!(receiver.iter().map(|message| message.len()).collect::<Vec<_>>(), [9]);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
}

#[test]
fn by_name_and_capacity() {
    let name = format!("byte-channel-{}", std::process::id());
    let here = Shared::<Channel<ByteQueue>>::create_with_capacity(&name, 300).unwrap();
    let _watchdog = watch("by_name_and_capacity", &here);
    let there = Shared::<Channel<ByteQueue>>::open(&name).unwrap();
    let (sender, receiver) = (here.sender().unwrap(), there.receiver().unwrap());
    assert_eq!(there.capacity(), 512);
    for round in 0..9_u8 {
        (0..4).for_each(|i| sender.send(&[round + i; 128]).unwrap());
        assert!(sender.try_send(b"").unwrap_err().is_full());
        (0..4).for_each(|i| assert_eq!(receiver.recv().unwrap(), [round + i; 128]));
    }
    drop(sender);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    for wrong in [0, 1 << 31, usize::MAX] {
        let made = Shared::<Channel<ByteQueue>>::with_capacity(wrong);
        assert!(matches!(made, Err(OpenError::InvalidCapacity(_))), "{wrong}");
    }
}

#[test]
fn not_in_a_segment() {
    let channel = Channel::new(FixedByteQueue::<2>::new());
    assert_eq!(channel.sender().map(drop), Err(Fault::NotShared));
}

/// Each sender sends its numbers and leaves. The receivers stay until no sender is left.
#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 2_000;
    worlds(
        "streams_in_every_world",
        "",
        4,
        office,
        |office, i| {
            if i < 2 {
                let sender = office.jobs.sender().unwrap();
                office.step.fetch_add(1, SeqCst);
                for n in 1..=COUNT {
                    let mut room = sender.loan(200).unwrap();
                    room[..8].copy_from_slice(&n.to_ne_bytes());
                    room.send_len(8 + usize::try_from(n % 150).unwrap()).unwrap();
                }
            } else {
                eventually("both have come", || office.step.load(SeqCst) == 2);
                let receiver = office.jobs.receiver().unwrap();
                let mut sum = 0;
                while let Ok(message) = receiver.recv_ref() {
                    let n = u64::from_ne_bytes(message[..8].try_into().unwrap());
                    assert_eq!(message.len() as u64, 8 + n % 150);
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

/// What was being written when the last sender was killed is no message.
#[test]
fn a_sender_killed_at_a_reservation() {
    let office = office();
    let _watchdog = watch("a_sender_killed_at_a_reservation", &office);
    let victim = fork_child(|| {
        let sender = office.jobs.sender().unwrap();
        sender.send(b"whole").unwrap();
        let _room = sender.loan(70).unwrap();
        office.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it writes", || office.step.load(SeqCst) == 1);
    let receiver = fork_child(|| {
        let receiver = office.jobs.receiver().unwrap();
        assert_eq!(receiver.recv().unwrap(), b"whole");
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    });
    receiver.until_waiting();
    victim.kill9();
    receiver.succeeds();
}

/// Room is its taker's process's.
#[test]
fn room_that_was_copied_by_fork() {
    let channel = channel(4);
    let _watchdog = watch("room_that_was_copied_by_fork", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let room = sender.loan(3).unwrap();
    let child = fork_child(|| {
        assert_eq!(room.send(), Err(SendError::Failed((), Fault::Forked)));
    });
    child.succeeds();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    sender.send(b"3").unwrap();
    assert_eq!(receiver.try_recv().unwrap(), b"3");
}

/// The error of a closed channel is `Closed`, also for a sender that holds room and has no
/// receiver.
#[test]
fn closed_and_left() {
    let channel = channel(4);
    let _watchdog = watch("closed_and_left", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let (first, second) = (sender.loan(1).unwrap(), sender.loan(2).unwrap());
    channel.close();
    first.send().unwrap(); // it was taken before
    assert_eq!(receiver.recv().unwrap().len(), 1);
    drop(receiver);
    assert_eq!(second.send(), Err(SendError::Closed(())));
    let receiver = channel.receiver().unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
}

#[cfg(feature = "serde")]
#[test]
fn values_of_any_shape() {
    use outlast::{Fault, ValueQueue};
    type Job = (String, Vec<Option<u64>>);
    let channel = Shared::<Channel<ValueQueue<Job>>>::with_capacity(4096).unwrap();
    let _watchdog = watch("values_of_any_shape", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let job = (String::from("fetch"), vec![Some(7_u64), None]);
    let bytes = Shared::<Channel<outlast::ByteQueue>>::from_fd(channel.try_clone_fd().unwrap());
    assert!(bytes.is_err()); // it is another type
    sender.send(&job).unwrap();
    sender.try_send(&job).unwrap();
    sender.send_timeout(&job, ms(5)).unwrap();
    sender.send_deadline(&job, std::time::Instant::now()).unwrap();
    assert_eq!(receiver.recv(), Ok(job.clone()));
    let delivery = receiver.recv_ack().unwrap();
    assert_eq!((&*delivery, delivery.attempts()), (&job, 0));
    drop(sender);
    // The process that has a delivery does not wait for its own.
    assert_eq!(receiver.recv_timeout(ms(5)), Ok(job.clone()));
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), std::slice::from_ref(&job));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    delivery.nack();
    let delivery = receiver.recv_ack_timeout(ms(5)).unwrap();
    assert_eq!((delivery.attempts(), delivery.ack()), (1, Ok(job.clone())));
    channel.join().unwrap();
    drop(receiver);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    drop(receiver);
    assert_eq!(sender.send(&job), Err(SendError::Disconnected(())));
    let _receiver = channel.receiver().unwrap();
    let long = ("long".repeat(2_000), Vec::new());
    assert_eq!(sender.send(&long), Err(SendError::Failed((), Fault::TooLong)));
}

/// Deliveries in a channel of bytes: the end is told when none may come back from another process.
#[test]
fn deliveries_that_may_come_back() {
    for comes_back in [false, true] {
        let channel = channel(16);
        let _watchdog = watch("deliveries_that_may_come_back", &channel);
        let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
        sender.send(b"7").unwrap();
        let job = receiver.recv_ack().unwrap();
        let waits = fork_child(|| {
            let receiver = channel.receiver().unwrap();
            match receiver.recv_ack() {
                Ok(job) => assert!(comes_back && job.attempts() == 1 && job.ack().is_ok()),
                Err(error) => assert!(!comes_back && error == RecvError::Disconnected),
            }
        });
        waits.until_waiting();
        drop(sender);
        waits.until_waiting();
        if comes_back {
            drop(job)
        } else {
            job.ack().unwrap()
        }
        waits.succeeds();
        channel.join().unwrap();
    }
}
