//! Models of `Channel`.

/// Sends a message of that number by a verb of the senders' end, until some time.
macro_rules! send {
    ($sender:ident.$verb:ident($n:expr $(, $until:expr)?)) => {
        $sender.$verb(message($n) $(, $until)?)
    };
}

#[path = "ends.rs"]
#[expect(clippy::duplicate_mod, reason = "the same models, of two kinds of channels")]
mod ends;

use crate::{SOON, check, killed_anywhere, share, spawn};
use outlast::{Channel, FixedQueue, RecvError, RecvTimeoutError, Shareable, Shared, TryRecvError};

type Pipe = Channel<FixedQueue<u32, 1>>;

fn channel() -> Shared<Pipe> {
    share(Pipe::new(FixedQueue::new()))
}

fn message(n: u32) -> u32 {
    n
}

fn received(n: u32) -> u32 {
    n
}

fn back(n: u32) -> u32 {
    n
}

/// Of two that leave at the same time, one tells.
#[test]
fn channel_two_leave() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let mine = channel.sender().unwrap();
        let other = channel.sender().unwrap(); // the same cell
        let leaver = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            assert!(sender.try_send(1).is_ok());
        });
        drop((mine, other));
        assert!(matches!(receiver.recv(), Ok(1) | Err(RecvError::Disconnected)));
        leaver.join().unwrap();
        assert!(matches!(receiver.try_recv(), Ok(1) | Err(TryRecvError::Disconnected)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    });
}

/// A holder that leaves after another one has come was never the last.
#[test]
fn channel_end_handed_on() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let first = channel.sender().unwrap();
        let looker = spawn(&channel, |channel| channel.receiver().unwrap().recv_timeout(SOON));
        let heir = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            channel.close(); // says that it has come
            core::mem::forget(sender);
        });
        heir.join().unwrap();
        drop(first);
        let seen = looker.join().unwrap();
        assert!(matches!(seen, Err(RecvTimeoutError::TimedOut | RecvTimeoutError::Closed)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    });
}

/// The end moves from a later cell to an earlier one while another process looks at one cell after
/// the other.
#[test]
fn channel_end_handed_on_under_a_look() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap()); // so that receivers ask
        let shared = channel.clone();
        let early = loom::thread::spawn(move || shared.sender().unwrap()).join().unwrap();
        let first = channel.sender().unwrap();
        drop(early); // the first cell is free
        let looker = spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let heir = spawn(&channel, |channel| core::mem::forget(channel.sender().unwrap()));
        heir.join().unwrap();
        drop(first);
        assert_eq!(looker.join().unwrap(), Err(TryRecvError::Empty));
    });
}

/// The receiver gets a first part of the messages, then the end.
#[test]
fn channel_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = victim.spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            sender.send(0).unwrap();
            sender.try_send(1).is_ok()
        });
        let mut all: Vec<u32> = receiver.recv_timeout(SOON).into_iter().collect();
        all.extend(receiver.recv_timeout(SOON));
        let life = sender.join().unwrap();
        channel.recover(&life.dead);
        channel.recover(&life.dead);
        drop(channel.sender().unwrap()); // in case it died before it came
        all.extend(receiver.iter());
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert_eq!(all, [0, 1][..all.len()]);
        assert!(life.result.is_none_or(|second| all.len() == 1 + usize::from(second)));
    });
}
