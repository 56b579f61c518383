//! Models of `ByteChannel`.
use crate::{SOON, check, killed_anywhere, share, spawn};
use outlast::Shareable as _;
use outlast::{
    FixedByteChannel, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Shared,
    TryRecvError,
};

type Way = FixedByteChannel<1>;

fn channel() -> Shared<Way> {
    share(Way::new())
}

/// What is there comes before the end; a lost wake is a deadlock.
fn one_message_then_the_end(channel: &Shared<Way>) {
    let sender = channel.sender().unwrap();
    let receiver = spawn(channel, |channel| {
        let receiver = channel.receiver().unwrap();
        assert_eq!(receiver.recv().unwrap(), [1]);
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    });
    sender.send(&[1]).unwrap();
    drop(sender);
    receiver.join().unwrap();
}

#[test]
fn byte_channel_last_sender_leaves() {
    check(|| {
        let channel = channel();
        one_message_then_the_end(&channel);
    });
}

/// A bit that was set before the end was taken again.
#[test]
fn byte_channel_taken_again() {
    check(|| {
        let channel = channel();
        drop(channel.sender().unwrap());
        one_message_then_the_end(&channel);
    });
}

#[test]
fn byte_channel_last_receiver_leaves() {
    check(|| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            sender.send(&[1]).ok();
            assert_eq!(sender.send(&[2]), Err(SendError::Disconnected(())));
        });
        drop(receiver);
        sender.join().unwrap();
    });
}

/// Room that is given up by the last sender bars nobody's view of the end.
#[test]
fn byte_channel_room_is_given_up() {
    check(|| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = spawn(&channel, |channel| channel.receiver().unwrap().recv());
        drop(sender.reserve(1).unwrap());
        drop(sender);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
    });
}

/// Nobody is told of the end while another reads what may come back.
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

#[test]
fn byte_channel_times_out_or_ends() {
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

/// The receiver gets what was committed, then the end.
#[test]
fn byte_channel_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        let sender = victim.spawn(&channel, |channel| {
            let sender = channel.sender().unwrap();
            let mut room = sender.reserve(1).unwrap();
            room[0] = 7;
            room.commit().unwrap();
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

/// The message of a killed receiver comes to the other one, before the end.
#[test]
fn byte_channel_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let receiver = channel.receiver().unwrap();
        channel.sender().unwrap().send(&[7]).unwrap();
        let dying = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let mine = receiver.try_recv();
        let life = dying.join().unwrap();
        channel.recover(&life.dead);
        let rest: Vec<Vec<u8>> = receiver.iter().collect();
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        let times = [mine.is_ok(), matches!(life.result, Some(Ok(_))), rest == [[7]]];
        let times = times.into_iter().filter(|&got| got).count();
        assert!(times == 1 || (times == 0 && life.result.is_none()), "{mine:?} {rest:?}");
        // Who is told of the end knows that nothing comes back.
        assert!(mine != Err(TryRecvError::Disconnected) || rest.is_empty());
    });
}

/// The last receiver is killed: a sender is told.
#[test]
fn byte_channel_last_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let channel = channel();
        let sender = channel.sender().unwrap();
        let receiver = victim.spawn(&channel, |channel| channel.receiver().unwrap().try_recv());
        let first = sender.send_timeout(&[1], SOON);
        assert!(matches!(first, Ok(()) | Err(SendTimeoutError::Disconnected(()))));
        let life = receiver.join().unwrap();
        channel.recover(&life.dead);
        drop(channel.receiver().unwrap()); // in case it died before it came
        assert_eq!(sender.send(&[2]), Err(SendError::Disconnected(())));
    });
}
