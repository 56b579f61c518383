//! Models of `Channel`.
use crate::{SOON, check, killed_anywhere, share, spawn};
use outlast::{
    FixedChannel, RecvError, RecvTimeoutError, SendError, Shareable, TryRecvError, TrySendError,
};

type Pipe = FixedChannel<u32, 1>;

fn channel() -> outlast::Shared<Pipe> {
    share(Pipe::new())
}

/// What is there comes before the end; a lost wake is a deadlock.
#[test]
fn channel_last_sender_leaves() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Err(RecvError::Disconnected)));
        });
        sender.send(1).unwrap();
        drop(sender);
        receiver.join().unwrap();
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

/// A bit that was set before the end was taken again.
#[test]
fn channel_taken_again() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap());
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Err(RecvError::Disconnected)));
        });
        sender.send(1).unwrap();
        drop(sender);
        receiver.join().unwrap();
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
        let sender = victim.spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            sender.send(0).unwrap();
            sender.send(1).unwrap();
        });
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            let mut next = 0;
            loop {
                match receiver.recv() {
                    Ok(message) => assert_eq!(message, next),
                    Err(error) => return (next, error),
                }
                next += 1;
            }
        });
        let life = sender.join().unwrap();
        channel.recover(&life.dead);
        channel.recover(&life.dead);
        drop(channel.sender().unwrap()); // in case it died before it came
        let (received, error) = receiver.join().unwrap();
        assert_eq!(error, RecvError::Disconnected);
        assert!(life.result.is_none() || received == 2);
    });
}

/// The message of a killed receiver comes to the other one, before the end.
#[test]
fn channel_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        sender.send(7).unwrap();
        drop(sender);
        let dying = victim.spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            receiver.recv()
        });
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            (receiver.recv(), receiver.recv())
        });
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        let (first, second) = receiver.join().unwrap();
        assert_eq!(second, Err(RecvError::Disconnected));
        match (first, life.result) {
            (Ok(message), got) => assert!(message == 7 && !matches!(got, Some(Ok(_)))),
            (Err(error), Some(got)) => {
                assert_eq!((error, got), (RecvError::Disconnected, Ok(7)));
            }
            (Err(_), None) => {} // it had committed, and took the message with it
        }
    });
}

/// The last receiver is killed: a sender that waits is told.
#[test]
fn channel_last_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = victim.spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            receiver.recv()
        });
        let sender = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            sender.send(1).ok();
            sender.send(2).ok();
            sender.try_send(3)
        });
        let life = receiver.join().unwrap();
        channel.recover(&life.dead);
        drop(channel.receiver().unwrap()); // in case it died before it came
        let last = sender.join().unwrap();
        assert!(!matches!(last, Err(TrySendError::Closed(_))));
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
