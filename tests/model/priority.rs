//! Models of `PriorityQueue`.
#![expect(unsafe_code, reason = "a payload that has bytes which are no value")]
use crate::{SOON, asleep, check, join, killed_anywhere, share, spawn};
use outlast::__private::{Layout, Seal};
use outlast::{
    Fault, FixedPriorityQueue, Plain, RecvError, RecvTimeoutError, Shareable, TryRecvError,
};

type Levels = FixedPriorityQueue<u32, 2, 1>;

/// Apart, as the stack of a model is small.
#[inline(never)]
fn drain(queue: &Levels) -> Vec<(usize, u32)> {
    queue.try_iter().collect()
}

/// Both levels reach one receiver; a lost wake is a deadlock.
#[test]
fn priority_one_receiver_for_all_levels() {
    check(|| {
        let queue = share(Levels::new());
        let sender = spawn(&queue, |queue| queue.send(0, 1).unwrap());
        let receiver = spawn(&queue, |queue| {
            let mut all = [queue.recv().unwrap(), queue.recv().unwrap()];
            all.sort_unstable();
            assert_eq!(all, [(0, 1), (1, 2)]);
        });
        queue.send(1, 2).unwrap();
        sender.join().unwrap();
        receiver.join().unwrap();
    });
}

/// Two wakes reach two receivers.
#[test]
fn priority_two_receivers() {
    check(|| {
        let queue = share(Levels::new());
        let receive = |queue: &Levels| queue.recv().unwrap();
        let receivers = [spawn(&queue, receive), spawn(&queue, receive)];
        queue.send(0, 1).unwrap();
        queue.send(1, 2).unwrap();
        let mut all = join(receivers);
        all.sort_unstable();
        assert_eq!(all, [(0, 1), (1, 2)]);
    });
}

#[test]
fn priority_most_urgent_of_what_is_there() {
    check(|| {
        let queue = share(Levels::new());
        queue.send(0, 1).unwrap();
        queue.send(1, 2).unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let mine = queue.recv().unwrap();
        let other = receiver.join().unwrap();
        assert!([mine, other].contains(&(0, 1)) && [mine, other].contains(&(1, 2)));
    });
}

/// A message that is given back comes to another receiver, which waits.
#[test]
fn priority_given_back() {
    check(|| {
        let queue = share(Levels::new());
        queue.send(1, 7).unwrap();
        let held = queue.recv_ack().unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        drop(held);
        assert_eq!(receiver.join().unwrap(), (1, 7));
    });
}

#[test]
fn priority_times_out_or_receives() {
    check(|| {
        let queue = share(Levels::new());
        let sender = spawn(&queue, |queue| queue.send(0, 7).unwrap());
        match queue.recv_timeout(SOON) {
            Ok(message) => assert_eq!(message, (0, 7)),
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(queue.recv(), Ok((0, 7)));
            }
        }
        sender.join().unwrap();
    });
}

/// A message is sent or given back. A receiver learns that the queue is closed only after it got
/// the message.
#[test]
fn priority_closes() {
    check(|| {
        let queue = share(Levels::new());
        let receiver = spawn(&queue, |queue| (queue.recv().ok(), queue.recv()));
        let closer = spawn(&queue, |queue| queue.close());
        let sent = queue.send(0, 1).is_ok();
        closer.join().unwrap();
        let (first, second) = receiver.join().unwrap();
        assert_eq!((first.is_some(), second), (sent, Err(RecvError::Closed)));
    });
}

#[test]
fn priority_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(Levels::new());
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let sender = victim.spawn(&queue, |queue| queue.send(0, 1).unwrap());
        let life = sender.join().unwrap();
        queue.recover(&life.dead);
        queue.recover(&life.dead);
        queue.send(1, 2).unwrap();
        let got = receiver.join().unwrap();
        let left = queue.try_recv();
        match left {
            Err(error) => assert_eq!((error, got), (TryRecvError::Empty, (1, 2))),
            Ok(left) => assert!(left != got && [left, got].contains(&(0, 1))),
        }
        assert!(life.result.is_none() || left.is_ok());
    });
}

/// The message comes to another, unless the killed one had taken it.
#[test]
fn priority_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(Levels::new());
        let dying = victim.spawn(&queue, |queue| queue.recv());
        queue.send(1, 7).unwrap();
        let mine = queue.try_recv().ok();
        queue.send(0, 8).unwrap(); // for the receiver that has none
        let life = dying.join().unwrap();
        queue.recover(&life.dead);
        let left: Vec<_> = drain(&queue).into_iter().chain(mine).collect();
        let all = [(1, 7), (0, 8)];
        match life.result {
            Some(got) => assert!(left.len() == 1 && got.is_ok_and(|got| !left.contains(&got))),
            None => assert!(left.len() + 1 >= all.len()),
        }
        assert!(left.iter().all(|message| all.contains(message)));
    });
}

/// A queue that is closed half-way is closed by the recovery.
#[test]
fn priority_closer_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(Levels::new());
        let receiver = spawn(&queue, |queue| queue.recv());
        let closer = victim.spawn(&queue, |queue| queue.close());
        let life = closer.join().unwrap();
        queue.recover(&life.dead);
        if !queue.is_closed() {
            assert!(life.result.is_none());
            queue.close();
        }
        assert_eq!(receiver.join().unwrap(), Err(RecvError::Closed));
    });
}

/// A number that is no value if it is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
struct Even(u32);

// SAFETY: a number; any bits may be looked at, and some are told to be no value.
unsafe impl Plain for Even {
    const FINGERPRINT: u64 = <u32 as Plain>::FINGERPRINT;
    const ANY_BITS: bool = false;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        <u32 as Plain>::layout()
    }
    unsafe fn is_valid(at: *const Self) -> bool {
        // SAFETY: the caller's promise.
        unsafe { at.read() }.0.is_multiple_of(2)
    }
}

/// A receiver that is woken for a message that is no value passes the wake on to a receiver that
/// can have the other message. That one may have been sent before, behind a slower sender.
fn wakes_for_the_next(receive: fn(&FixedPriorityQueue<Even, 1, 2>) -> Result<Even, RecvError>) {
    check(move || {
        let queue = share(FixedPriorityQueue::<Even, 1, 2>::new());
        let receivers = asleep(|| [spawn(&queue, receive), spawn(&queue, receive)]);
        let sender = spawn(&queue, |queue| queue.send(0, Even(1)).unwrap());
        queue.send(0, Even(2)).unwrap();
        sender.join().unwrap();
        let all = join(receivers);
        assert!(all.contains(&Ok(Even(2))), "{all:?}");
        assert!(all.contains(&Err(RecvError::Failed(Fault::Corrupt))), "{all:?}");
    });
}

#[test]
fn priority_received_what_is_no_value() {
    wakes_for_the_next(|queue| queue.recv().map(|(_, message)| message));
}

#[test]
fn priority_delivered_what_is_no_value() {
    wakes_for_the_next(|queue| queue.recv_ack().map(|job| job.ack().unwrap()));
}
