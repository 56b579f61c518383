//! Models of `Channel<ByteQueue>`.

/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(message($n) $(, $until)?)
    };
}

#[path = "ends.rs"]
#[expect(clippy::unit_arg, reason = "errors give no bytes back")]
mod ends;

use crate::{SOON, asleep, check, killed_anywhere, share, spawn, spawn_dying};
use core::mem::forget;
use outlast::Shareable as _;
use outlast::{Channel, FixedByteQueue, RecvError, SendError, Shared, TryRecvError};

type Way = Channel<FixedByteQueue<1>>;

fn channel() -> Shared<Way> {
    share(Way::new(FixedByteQueue::new()))
}

fn message(n: usize) -> &'static [u8] {
    const ALL: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7];
    &ALL[n..=n]
}

fn received(n: usize) -> Vec<u8> {
    message(n).to_vec()
}

fn back(_n: usize) {}

/// Room that the last sender gives up hides the end from no receiver.
#[test]
fn byte_channel_room_is_given_up() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| channel.receiver().unwrap().recv());
        drop(sender.loan(1).unwrap());
        drop(sender);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
    });
}

/// No receiver is disconnected while another process reads a message that may come back.
#[test]
fn byte_channel_given_back_before_the_end() {
    check(|| {
        let channel = channel();
        channel.sender().unwrap().send(&[1]).unwrap();
        let receiver = channel.receiver().unwrap();
        let message = receiver.recv_ref().unwrap();
        let other = crate::asleep(|| {
            spawn(&channel, |channel| channel.receiver().unwrap().recv_timeout(SOON))
        });
        message.give_back().unwrap();
        let theirs = other.join().unwrap();
        let mine = receiver.try_recv();
        assert!(theirs.is_ok() != mine.is_ok(), "{theirs:?} {mine:?}");
    });
}

/// The receiver gets the messages that were committed, and then the end.
#[test]
fn byte_channel_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = victim.spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            let mut room = sender.loan(1).unwrap();
            room[0] = 7;
            room.send().unwrap();
        });
        let mut all: Vec<Vec<u8>> = receiver.recv_timeout(SOON).into_iter().collect();
        let life = sender.join().unwrap();
        channel.recover(&life.dead);
        channel.recover(&life.dead);
        drop(channel.sender().unwrap()); // in case it died before it came
        all.extend(receiver.iter());
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert!(all.len() <= 1 && all.iter().all(|message| message == &[7]));
        assert!(life.result.is_none() || all.len() == 1);
    });
}

fn lens(messages: impl Iterator<Item = Vec<u8>>) -> Vec<usize> {
    messages.map(|message| message.len()).collect()
}

/// Takes a loan and sends it, perhaps without a receiver.
fn loans_and_sends(channel: &Way) -> Result<(), SendError<()>> {
    let sender = channel.sender().unwrap();
    sender.loan(3).map_or_else(Err, |room| room.send())
}

/// All room is free, and nothing else is in it.
fn assert_intact(channel: &Way) {
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    sender.try_send(&[0; 64]).unwrap();
    drop(sender);
    assert_eq!(lens(receiver.iter()), [64]);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
}

/// A loan is sent while the last receiver leaves. The next receiver gets the message if it was
/// sent, and no receiver gets it otherwise.
#[test]
fn byte_channel_commit_races_with_the_last_receiver() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = spawn(&channel, loans_and_sends);
        drop(receiver);
        let sent = sender.join().unwrap();
        let next = channel.receiver().unwrap();
        assert_eq!(lens(next.iter()), vec![3; usize::from(sent.is_ok())]);
        assert!(matches!(sent, Ok(()) | Err(SendError::Disconnected(()))));
        drop(next);
        assert_intact(&channel);
    });
}

/// The same while another receiver arrives: it gets the message, or the message was not sent.
#[test]
fn byte_channel_commit_races_with_the_next_receiver() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = channel.receiver().unwrap();
        let room = sender.loan(3).unwrap();
        drop(receiver);
        let next = spawn(&channel, |channel| {
            let next = channel.receiver().unwrap();
            let early = next.try_recv().is_ok();
            forget(next); // so that the end is not empty again
            early
        });
        let sent = room.send();
        let early = next.join().unwrap();
        let late = channel.receiver().unwrap().try_recv().is_ok();
        assert_eq!(usize::from(early) + usize::from(late), usize::from(sent.is_ok()));
    });
}

/// A message that is taken back leaves its room to a waiting sender. That sender came with a
/// receiver, too late to be seen.
#[test]
fn byte_channel_taken_back_makes_room() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = channel.receiver().unwrap();
        let room = sender.loan(3).unwrap();
        drop(receiver);
        let other = spawn(&channel, |channel| {
            forget(channel.receiver().unwrap());
            channel.sender().unwrap().send(&[1])
        });
        let next = room.send().is_ok().then(|| channel.receiver().unwrap());
        if let Some(next) = &next {
            assert_eq!(next.recv().unwrap().len(), 3);
        }
        assert_eq!(other.join().unwrap(), Ok(()));
        assert_eq!(channel.receiver().unwrap().try_recv().unwrap(), [1]);
    });
}

/// A receiver that waits for a message that another one reads learns that it does not come back.
/// The senders' end goes at the same time.
#[test]
fn byte_channel_ends_the_wait_for_what_was_consumed() {
    check(|| {
        let channel = channel();
        let mine = channel.receiver().unwrap();
        let sender = channel.sender().unwrap();
        sender.send(&[5]).unwrap();
        let held = mine.recv_ref().unwrap();
        // A thread is a process, so this is another's.
        let other = spawn(&channel, |channel| lens(channel.receiver().unwrap().iter()));
        drop(sender);
        drop(held);
        assert_eq!(other.join().unwrap(), [0; 0]);
    });
}

/// The victim holds the message for all its life. The message comes back to a waiting receiver.
#[test]
fn byte_channel_reader_dies() {
    check(|| {
        let channel = channel();
        channel.sender().unwrap().send(&[7]).unwrap(); // and leaves
        let dying = spawn_dying(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            forget(receiver.recv_ref().unwrap());
            forget(receiver);
        });
        let dead = dying.join().unwrap();
        let other = spawn(&channel, |channel| lens(channel.receiver().unwrap().iter()));
        channel.recover(&dead);
        assert_eq!(other.join().unwrap(), [1]);
        assert_intact(&channel);
    });
}

/// A sender is killed while it finds that no receiver is left. Its message is sent, or it is not.
#[test]
fn byte_channel_sender_to_nobody_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let dying = victim.spawn(&channel, loans_and_sends);
        drop(receiver);
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        drop(channel.sender().unwrap()); // in case it died before it came
        let next = channel.receiver().unwrap();
        let left = lens(next.iter());
        assert!(left.is_empty() || left == [3]);
        assert!(life.result.is_none_or(|sent| sent.is_ok() == (left == [3])), "{left:?}");
        drop(next);
        assert_intact(&channel);
    });
}

/// A recoverer is killed too. The next one completes its work, and wakes the sleepers.
#[test]
fn byte_channel_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let dying = spawn_dying(&channel, |channel| {
            let sender = channel.sender().unwrap();
            forget(sender.loan(1).unwrap());
            forget(sender);
        });
        let dead = dying.join().unwrap();
        let receiver = asleep(|| spawn(&channel, |channel| channel.receiver().unwrap().recv()));
        let recoverer = victim.spawn(&channel, move |channel| channel.recover(&dead));
        let other = recoverer.join().unwrap();
        channel.recover(&other.dead);
        channel.recover(&dead);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
        assert_intact(&channel);
    });
}
