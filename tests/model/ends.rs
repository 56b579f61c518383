//! Models of what all kinds of channels have in common. The file that includes this one defines a
//! channel with room for one message, how a message is sent (`send!`), and what a receiver and an
//! error return.
use super::{back, channel, message, received};
use crate::{SOON, check, killed_anywhere, spawn};
use outlast::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, Shareable as _, TryRecvError,
};

/// A receiver gets the messages before the end. (A lost wake is a deadlock.) With `again`, the bit
/// of the senders' end was set before the end was taken again.
fn one_message_then_the_end(again: bool) {
    check(move || {
        let channel = channel();
        if again {
            drop(channel.sender().unwrap());
        }
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| {
            let receiver = channel.receiver().unwrap();
            assert_eq!(receiver.recv(), Ok(received(1)));
            assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        });
        send!(sender.send(1)).unwrap();
        drop(sender);
        receiver.join().unwrap();
    });
}

#[test]
fn last_sender_leaves() {
    one_message_then_the_end(false);
}

#[test]
fn taken_again() {
    one_message_then_the_end(true);
}

#[test]
fn last_receiver_leaves() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            send!(sender.send(1)).ok();
            assert_eq!(send!(sender.send(2)), Err(SendError::Disconnected(back(2))));
        });
        drop(receiver);
        sender.join().unwrap();
    });
}

#[test]
fn times_out_or_ends() {
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

/// The message of a killed receiver comes to the other one, before the end.
#[test]
fn receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = channel.sender().unwrap();
        send!(sender.send(7)).unwrap();
        drop(sender);
        let dying = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let mine = receiver.try_recv();
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        let rest: Vec<_> = receiver.iter().collect();
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        let theirs = life.result == Some(Ok(received(7)));
        let times = [mine.is_ok(), theirs, rest == [received(7)]];
        let times = times.into_iter().filter(|&got| got).count();
        assert!(times == 1 || (times == 0 && life.result.is_none()), "{mine:?} {rest:?}");
        // A receiver that was disconnected knows that no message comes back.
        assert!(mine != Err(TryRecvError::Disconnected) || rest.is_empty());
    });
}

/// The last receiver is killed: a sender is told.
#[test]
fn last_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let first = send!(sender.send_timeout(1, SOON));
        assert!(first.is_ok() || first == Err(SendTimeoutError::Disconnected(back(1))));
        let life = receiver.join().unwrap();
        channel.recover(&life.dead);
        drop(channel.receiver().unwrap()); // in case it died before it came
        assert_eq!(send!(sender.send(2)), Err(SendError::Disconnected(back(2))));
    });
}

/// Two leave while one of them is killed in it.
#[test]
fn leaver_killed_anywhere() {
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

/// One receiver clears the bit of an end that was taken again, while the end goes at last. The
/// other receiver, which may have looked in between, learns of the end.
#[test]
fn stale_bit_is_cleared_beside_another() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap());
        let sender = channel.sender().unwrap();
        let receives = || spawn(&channel, |channel| channel.receiver().unwrap().recv());
        let receivers = [receives(), receives()];
        loom::thread::yield_now(); // so that two preemptions are enough for the worst
        drop(sender);
        let told = receivers.map(|receiver| receiver.join().unwrap());
        assert_eq!(told, [Err(RecvError::Disconnected), Err(RecvError::Disconnected)]);
    });
}
