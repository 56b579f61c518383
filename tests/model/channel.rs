//! Models of `Channel`.
use crate::{SOON, check, killed_anywhere, share, spawn};
use core::ops::Deref;
use outlast::{
    Channel, FixedChannel, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender,
    Shareable, Shared, TryRecvError,
};

type Pipe = FixedChannel<u32, 1>;

fn channel() -> outlast::Shared<Pipe> {
    share(Pipe::new())
}

/// What is there comes before the end; a lost wake is a deadlock.
fn one_message_then_the_end(channel: &Shared<Pipe>) {
    let sender = channel.sender().unwrap();
    let receiver = spawn(channel, |channel| {
        let receiver = channel.receiver().unwrap();
        assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Err(RecvError::Disconnected)));
    });
    sender.send(1).unwrap();
    drop(sender);
    receiver.join().unwrap();
}

#[test]
fn channel_last_sender_leaves() {
    check(|| {
        let channel = channel();
        one_message_then_the_end(&channel);
    });
}

#[test]
fn channel_last_receiver_leaves() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            sender.send(1).ok();
            assert_eq!(sender.send(2), Err(SendError::Disconnected(2)));
        });
        drop(receiver);
        sender.join().unwrap();
    });
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

/// Who leaves when another has come was never the last.
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

/// What leads to the channel, kept by a handle.
struct Keep(Shared<Pipe>);

impl Deref for Keep {
    type Target = Channel<u32>;
    fn deref(&self) -> &Channel<u32> {
        &self.0
    }
}

/// The end goes from a later cell to an earlier one, while somebody looks at one after the other.
#[test]
fn channel_end_handed_on_under_a_look() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap()); // so that receivers ask
        let shared = channel.clone();
        let early = loom::thread::spawn(move || Sender::of(Keep(shared)).unwrap()).join().unwrap();
        let first = channel.sender().unwrap();
        drop(early); // the first cell is free
        let looker = spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let heir = spawn(&channel, |channel| core::mem::forget(channel.sender().unwrap()));
        heir.join().unwrap();
        drop(first);
        assert_eq!(looker.join().unwrap(), Err(TryRecvError::Empty));
    });
}

/// A bit that was set before the end was taken again.
#[test]
fn channel_taken_again() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap());
        one_message_then_the_end(&channel);
    });
}

#[test]
fn channel_times_out_or_ends() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            let first = receiver.recv_timeout(SOON);
            assert!(matches!(
                first,
                Err(RecvTimeoutError::TimedOut | RecvTimeoutError::Disconnected)
            ));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        });
        drop(sender);
        receiver.join().unwrap();
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

/// The message of a killed receiver comes to the other one, before the end.
#[test]
fn channel_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = channel.sender().unwrap();
        sender.send(7).unwrap();
        drop(sender);
        let dying = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let mine = receiver.try_recv();
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        let rest: Vec<u32> = receiver.iter().collect();
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        let times = [mine.is_ok(), matches!(life.result, Some(Ok(7))), rest == [7]];
        let times = times.into_iter().filter(|&got| got).count();
        assert!(times == 1 || (times == 0 && life.result.is_none()), "{mine:?} {rest:?}");
        // Who is told of the end knows that nothing comes back.
        assert!(mine != Err(TryRecvError::Disconnected) || rest.is_empty());
    });
}

/// The last receiver is killed: a sender is told.
#[test]
fn channel_last_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let first = sender.send_timeout(1, SOON);
        assert!(matches!(first, Ok(()) | Err(SendTimeoutError::Disconnected(1))));
        let life = receiver.join().unwrap();
        channel.recover(&life.dead);
        drop(channel.receiver().unwrap()); // in case it died before it came
        assert_eq!(sender.send(2), Err(SendError::Disconnected(2)));
    });
}

/// Two leave while one of them is killed in it.
#[test]
fn channel_leaver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let dying = victim.spawn(&channel, |channel| drop(channel.sender().unwrap()));
        let receiver = spawn(&channel, |channel| channel.receiver().unwrap().recv());
        drop(sender);
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
    });
}
