//! Models of `Channel<PriorityQueue>`.
/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(1, message($n) $(, $until)?)
    };
}

#[path = "ends.rs"]
#[expect(clippy::duplicate_mod, reason = "the same models, of all kinds of channels")]
mod ends;

use crate::{SOON, check, killed_anywhere, share, spawn};
use core::mem::forget;
use outlast::Shareable as _;
use outlast::{Channel, FixedPriorityQueue, RecvError, SendError, Shared, TryRecvError};

type Levels = Channel<FixedPriorityQueue<u32, 2, 1>>;

fn channel() -> Shared<Levels> {
    share(Levels::new(FixedPriorityQueue::new()))
}

fn message(n: u32) -> u32 {
    n
}

fn received(n: u32) -> (usize, u32) {
    (1, n)
}

fn back(n: u32) -> u32 {
    n
}

/// Apart, as the stack of a model is small.
#[inline(never)]
fn rest(channel: &Levels) -> Vec<(usize, u32)> {
    channel.receiver().unwrap().iter().collect()
}

/// A receiver gets the messages of all levels before the end.
#[test]
fn priority_channel_both_levels_then_the_end() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| {
            let mut all = rest(channel);
            all.sort_unstable();
            assert_eq!(all, [(0, 1), (1, 2)]);
        });
        sender.send(0, 1).unwrap();
        sender.send(1, 2).unwrap();
        drop(sender);
        receiver.join().unwrap();
    });
}

/// No receiver is disconnected while another process holds a message that may come back, of any
/// level.
#[test]
fn priority_channel_given_back_before_the_end() {
    for level in 0..2 {
        check(move || {
            let channel = channel();
            channel.sender().unwrap().send(level, 7).unwrap(); // and leaves
            let receiver = channel.receiver().unwrap();
            let held = receiver.recv_ack().unwrap();
            let other = spawn(&channel, |channel| channel.receiver().unwrap().recv());
            drop(held);
            assert_eq!(other.join().unwrap(), Ok((level, 7)));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        });
    }
}

/// A receiver that waits for a message that another one holds learns that it does not come back.
#[test]
fn priority_channel_ends_the_wait_for_what_was_acknowledged() {
    check(|| {
        let channel = channel();
        channel.sender().unwrap().send(0, 7).unwrap(); // and leaves
        let receiver = channel.receiver().unwrap();
        let held = receiver.recv_ack().unwrap();
        let plain = spawn(&channel, |channel| channel.receiver().unwrap().recv());
        held.ack().unwrap();
        assert_eq!(plain.join().unwrap(), Err(RecvError::Disconnected));
    });
}

/// The same for a receiver of deliveries, which looks for a message with an entry of its own, and
/// for a message that is received immediately.
#[test]
fn priority_channel_looks_of_two() {
    check(|| {
        let channel = channel();
        channel.sender().unwrap().send(0, 7).unwrap(); // and leaves
        let delivers = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            let mut count = 0;
            while let Ok(job) = receiver.recv_ack() {
                job.ack().unwrap();
                count += 1;
            }
            count
        });
        let mine = rest(&channel).len();
        assert_eq!(mine + delivers.join().unwrap(), 1);
    });
}

/// The receiver gets the messages that were committed, and then the end.
#[test]
fn priority_channel_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let dying = victim.spawn(&channel, |channel| channel.sender().unwrap().send(1, 7));
        let mut all: Vec<_> = receiver.recv_timeout(SOON).into_iter().collect();
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        channel.recover(&life.dead);
        drop(channel.sender().unwrap()); // in case it died before it came
        all.extend(receiver.iter());
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert!(all.is_empty() || all == [(1, 7)], "{all:?}");
        assert!(life.result.is_none() || all.len() == 1);
    });
}

/// A message is committed while the last receiver leaves. The next receiver gets it if it was sent,
/// and no receiver gets it otherwise.
#[test]
fn priority_channel_send_races_with_the_last_receiver() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = spawn(&channel, |channel| channel.sender().unwrap().send(1, 3));
        drop(receiver);
        let sent = sender.join().unwrap();
        let next = channel.receiver().unwrap();
        assert_eq!(next.try_recv().is_ok(), sent.is_ok());
        assert!(matches!(sent, Ok(()) | Err(SendError::Disconnected(3))));
        assert_eq!(next.try_recv(), Err(TryRecvError::Disconnected));
    });
}

/// A recoverer is killed too. The next one completes its work, and wakes the sleepers.
#[test]
fn priority_channel_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let dying = crate::spawn_dying(&channel, |channel| forget(channel.sender().unwrap()));
        let dead = dying.join().unwrap();
        let receiver =
            crate::asleep(|| spawn(&channel, |channel| channel.receiver().unwrap().recv()));
        let recoverer = victim.spawn(&channel, move |channel| channel.recover(&dead));
        let other = recoverer.join().unwrap();
        channel.recover(&other.dead);
        channel.recover(&dead);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
    });
}
