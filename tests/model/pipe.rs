//! Models of `Pipe`. A message is told by its length, which is read in no other order than its
//! bytes.
use crate::{SOON, asleep, check, check_up_to, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{
    FixedPipe, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Shareable, Shared,
    TryRecvError,
};
use std::sync::Arc;

/// A block each way: 56 bytes go through in one piece.
type Narrow = FixedPipe<2>;
/// Two blocks each way.
type Wide = FixedPipe<4>;

/// A message longer than a narrow pipe: two parts.
const LONG: usize = 100;

fn message(len: usize) -> Vec<u8> {
    vec![0; len]
}

fn send<const N: usize>(pipe: &FixedPipe<N>, len: usize) -> Result<(), SendError<()>> {
    pipe.first().unwrap().send_bytes(&message(len))
}

fn recv<const N: usize>(pipe: &FixedPipe<N>) -> Result<usize, RecvError> {
    pipe.second().unwrap().recv_bytes().map(|message| message.len())
}

/// A pipe whose two sides this thread, a process of its own, keeps.
fn pipe<const N: usize>() -> Shared<FixedPipe<N>> {
    let pipe = share(FixedPipe::<N>::new());
    core::mem::forget((pipe.first().unwrap(), pipe.second().unwrap()));
    pipe
}

#[test]
fn pipe_messages_of_two_senders_come_once() {
    check_up_to(1, || {
        let pipe = pipe::<4>();
        let senders = [1, 70].map(|len| spawn(&pipe, move |pipe| send(pipe, len).unwrap()));
        let mut received = [recv(&pipe).unwrap(), recv(&pipe).unwrap()];
        received.sort_unstable();
        assert_eq!(received, [1, 70]);
        join(senders);
        let side = pipe.second().unwrap();
        assert_eq!(side.try_recv_bytes(), Err(TryRecvError::Empty));
    });
}

#[test]
fn pipe_messages_come_once_to_two_receivers() {
    check_up_to(1, || {
        let pipe = pipe::<4>();
        let receivers = [(); 2].map(|()| spawn(&pipe, |pipe: &Wide| recv(pipe).unwrap()));
        send(&pipe, 1).unwrap();
        send(&pipe, 2).unwrap();
        let mut received = join(receivers);
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
    });
}

/// No wake is lost: neither that of a thread that waits for a message, nor that of one that waits
/// for room.
#[test]
fn pipe_messages_come_in_order() {
    check(|| {
        let pipe = pipe::<2>();
        let sender = spawn(&pipe, |pipe| (1..4).for_each(|len| send(pipe, len).unwrap()));
        assert_eq!([(); 3].map(|()| recv(&pipe).unwrap()), [1, 2, 3]);
        sender.join().unwrap();
    });
}

#[test]
fn pipe_wakes_a_sleeper() {
    check(|| {
        let pipe = pipe::<2>();
        let sleeper = asleep(|| spawn(&pipe, |pipe: &Narrow| recv(pipe).unwrap()));
        send(&pipe, 7).unwrap();
        assert_eq!(sleeper.join().unwrap(), 7);
    });
}

#[test]
fn pipe_shows_what_was_written_before() {
    check(|| {
        let pipe = pipe::<2>();
        let written = Arc::new(AtomicU32::new(0));
        let receiver = {
            let written = written.clone();
            spawn(&pipe, move |pipe: &Narrow| {
                if pipe.second().unwrap().try_recv_bytes().is_ok() {
                    assert_eq!(written.load(Relaxed), 1);
                }
            })
        };
        written.store(1, Relaxed);
        send(&pipe, 7).unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn pipe_long_message_goes_through_in_parts() {
    check(|| {
        let pipe = pipe::<2>();
        let sender = spawn(&pipe, |pipe: &Narrow| {
            send(pipe, LONG).unwrap();
            send(pipe, 3).unwrap();
        });
        assert_eq!((recv(&pipe), recv(&pipe)), (Ok(LONG), Ok(3)));
        sender.join().unwrap();
    });
}

/// It is received whole, or not at all; and what follows is received in any case.
#[test]
fn pipe_sender_gives_up_in_the_middle() {
    check(|| {
        let pipe = pipe::<2>();
        let sender = spawn(&pipe, |pipe: &Narrow| {
            let side = pipe.first().unwrap();
            let sent = side.send_bytes_timeout(&message(LONG), SOON);
            assert!(matches!(sent, Ok(()) | Err(SendTimeoutError::TimedOut(()))));
            side.send_bytes(&message(3)).unwrap();
            sent.is_ok()
        });
        let first = recv(&pipe).unwrap();
        assert!(first == 3 || (first, recv(&pipe)) == (LONG, Ok(3)));
        assert_eq!(sender.join().unwrap(), first == LONG);
    });
}

#[test]
fn pipe_receiver_that_times_out_loses_nothing() {
    check(|| {
        let pipe = pipe::<2>();
        let sender = spawn(&pipe, |pipe: &Narrow| send(pipe, LONG).unwrap());
        let received = pipe.second().unwrap().recv_bytes_timeout(SOON);
        match received {
            Ok(message) => assert_eq!(message.len(), LONG),
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(recv(&pipe), Ok(LONG));
            }
        }
        sender.join().unwrap();
    });
}

/// A message that was sent before the end is received before it.
#[test]
fn pipe_ends_with_the_last_of_a_side() {
    check(|| {
        let pipe = share(Narrow::new());
        let side = pipe.second().unwrap();
        let sender = spawn(&pipe, |pipe| send(pipe, 1).unwrap());
        assert_eq!(side.recv_bytes().map(|message| message.len()), Ok(1));
        assert_eq!(side.recv_bytes(), Err(RecvError::Disconnected));
        sender.join().unwrap();
    });
}

#[test]
fn pipe_ends_for_a_sender_without_room() {
    check(|| {
        let pipe = share(Narrow::new());
        let side = pipe.second().unwrap();
        let sender = spawn(&pipe, |pipe| (send(pipe, 1), send(pipe, 2)));
        drop(side);
        let (first, second) = sender.join().unwrap();
        assert!(first.is_ok() || first == Err(SendError::Disconnected(())));
        assert_eq!(second, Err(SendError::Disconnected(())));
    });
}

/// The parts of a dead sender's message are dropped, and the message of another one is received.
#[test]
fn pipe_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let pipe = pipe::<2>();
        let sender = victim.spawn(&pipe, |pipe| send(pipe, LONG).unwrap());
        let receiver = spawn(&pipe, |pipe: &Narrow| {
            let first = recv(pipe).unwrap();
            assert!(first == 3 || (first, recv(pipe)) == (LONG, Ok(3)));
            first == LONG
        });
        let life = sender.join().unwrap();
        pipe.recover(&life.dead);
        send(&pipe, 3).unwrap();
        assert!(receiver.join().unwrap() || life.result.is_none());
    });
}

/// A message is received by the victim or, if it had not got it, by the other.
#[test]
fn pipe_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let pipe = pipe::<2>();
        let dying = victim.spawn(&pipe, |pipe: &Narrow| recv(pipe).unwrap());
        let sender = spawn(&pipe, |pipe: &Narrow| {
            send(pipe, LONG).unwrap();
            send(pipe, 3).unwrap();
        });
        let life = dying.join().unwrap();
        pipe.recover(&life.dead);
        let next = recv(&pipe).unwrap();
        assert!(next == 3 || (life.result.is_none() && (next, recv(&pipe)) == (LONG, Ok(3))));
        sender.join().unwrap();
    });
}

/// The last holder of a side is killed. A thread that waits at the other side learns of it.
#[test]
fn pipe_last_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let pipe = share(Narrow::new());
        let side = pipe.second().unwrap();
        let sender = victim.spawn(&pipe, |pipe| send(pipe, 1).unwrap());
        let first = side.recv_bytes_timeout(SOON).map(|message| message.len());
        let life = sender.join().unwrap();
        pipe.recover(&life.dead);
        drop(pipe.first().unwrap()); // in case it died before it came
        let mut all = Vec::from_iter(first.ok());
        all.extend(side.recv_bytes().map(|message| message.len()));
        assert_eq!(side.recv_bytes(), Err(RecvError::Disconnected));
        assert!(all == [1] || all.is_empty() && life.result.is_none());
    });
}

/// A thread at the other side clears the bit of a side that was taken again, while that side goes
/// at last. Another thread there, which waits for room and may have looked in between, learns of
/// it.
#[test]
fn pipe_stale_bit_is_cleared_beside_another() {
    check(|| {
        let pipe = share(Narrow::new());
        drop(pipe.first().unwrap());
        let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
        second.send_bytes(&message(1)).unwrap(); // no room any more
        let receiver = spawn(&pipe, |pipe: &Narrow| recv(pipe));
        let sender = spawn(&pipe, |pipe: &Narrow| pipe.second().unwrap().send_bytes(&message(2)));
        loom::thread::yield_now(); // so that two preemptions are enough for the worst
        drop(first);
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Disconnected));
        assert_eq!(sender.join().unwrap(), Err(SendError::Disconnected(())));
    });
}
