//! Models of `ByteQueue`. A message is known by its length, which has the same ordering as its
//! bytes.
use crate::{SOON, asleep, check, check_up_to, join, killed_anywhere, share, spawn, spawn_dying};
use core::mem::forget;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{FixedByteQueue, RecvError, RecvTimeoutError, SendError, Shareable, TryRecvError};
use std::sync::Arc;

type Two = FixedByteQueue<2>;

fn message(len: usize) -> Vec<u8> {
    vec![0; len]
}

fn try_recv<const N: usize>(queue: &FixedByteQueue<N>) -> Option<usize> {
    queue.try_recv().ok().map(|message| message.len())
}

fn recv<const N: usize>(queue: &FixedByteQueue<N>) -> usize {
    queue.recv().unwrap().len()
}

fn sorted(mut messages: Vec<usize>) -> Vec<usize> {
    messages.sort_unstable();
    messages
}

/// All room is free, and nothing else is in it.
fn assert_intact<const N: usize>(queue: &FixedByteQueue<N>) {
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    queue.try_send(&message(64 * N)).unwrap();
    assert_eq!(try_recv(queue), Some(64 * N));
    assert!((1..=N).all(|i| queue.try_send(&message(i)).is_ok()));
    assert!(queue.try_send(b"").is_err_and(|error| error.is_full()));
    assert_eq!(queue.try_iter().map(|m| m.len()).collect::<Vec<_>>(), Vec::from_iter(1..=N));
}

/// One message of each of two producers, two consumers.
fn one_message_each<const N: usize>(lens: [usize; 2]) {
    check(move || {
        let queue = share(FixedByteQueue::<N>::new());
        let try_send =
            move |queue: &FixedByteQueue<N>, i: usize| queue.try_send(&message(lens[i])).is_ok();
        let producer = spawn(&queue, move |queue| try_send(queue, 1));
        let consumer = spawn(&queue, try_recv);
        let mut sent = Vec::from_iter(try_send(&queue, 0).then_some(lens[0]));
        let received = [try_recv(&queue), consumer.join().unwrap()];
        sent.extend(producer.join().unwrap().then_some(lens[1]));
        let rest = queue.try_iter().map(|message| message.len());
        assert_eq!(sorted(received.into_iter().flatten().chain(rest).collect()), sorted(sent));
    });
}

#[test]
fn bytes_come_once() {
    one_message_each::<1>([1, 2]);
    one_message_each::<2>([1, 2]);
    one_message_each::<2>([1, 70]);
    one_message_each::<3>([1, 140]);
}

/// Two senders at the same time skip the end of the ring.
#[test]
fn bytes_skip_the_end() {
    check(|| {
        let queue = share(FixedByteQueue::<3>::new());
        queue.try_send(&message(100)).unwrap();
        assert_eq!(try_recv(&queue), Some(100));
        let senders =
            [101, 102].map(|len| spawn(&queue, move |queue| queue.send(&message(len)).unwrap()));
        assert_eq!(sorted(vec![recv(&queue), recv(&queue)]), [101, 102]);
        join(senders);
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    });
}

/// Too large for more than one preemption.
#[test]
fn bytes_of_two_producers_to_two_consumers() {
    check_up_to(1, || {
        let queue = share(Two::new());
        let producer = spawn(&queue, |queue| {
            queue.send(&message(10)).unwrap();
            queue.send(&message(110)).unwrap();
        });
        let consumer = spawn(&queue, |queue| [recv(queue), recv(queue)]);
        let mine = [20, 120].map(|len| {
            queue.send(&message(len)).unwrap();
            recv(&queue)
        });
        let other = consumer.join().unwrap();
        for received in [mine, other] {
            assert!(received[0] % 100 != received[1] % 100 || received[0] < received[1]);
        }
        assert_eq!(sorted([mine, other].concat()), [10, 20, 110, 120]);
        producer.join().unwrap();
    });
}

#[test]
fn bytes_show_what_was_written_before() {
    check(|| {
        let queue = share(Two::new());
        let written = Arc::new(AtomicU32::new(0));
        let receiver = {
            let written = written.clone();
            spawn(&queue, move |queue| {
                if let Some(len) = try_recv(queue) {
                    assert_eq!((len, written.load(Relaxed)), (7, 1));
                }
            })
        };
        written.store(1, Relaxed);
        queue.send(&message(7)).unwrap();
        receiver.join().unwrap();
    });
}

/// A writer sees what the last reader of its room did before it gave the room back.
#[test]
fn bytes_hand_room_on() {
    check(|| {
        let queue = share(FixedByteQueue::<1>::new());
        queue.send(b"1").unwrap();
        let read = Arc::new(AtomicU32::new(0));
        let receiver = {
            let read = read.clone();
            spawn(&queue, move |queue| {
                let message = queue.recv_ref().unwrap();
                read.store(1, Relaxed);
                drop(message);
            })
        };
        let _room = queue.loan(1).unwrap();
        assert_eq!(read.load(Relaxed), 1);
        receiver.join().unwrap();
    });
}

#[test]
fn bytes_wake_a_receiver_that_is_falling_asleep() {
    check(|| {
        let queue = share(Two::new());
        let receiver = spawn(&queue, recv);
        queue.send(&message(7)).unwrap();
        assert_eq!(receiver.join().unwrap(), 7);
    });
}

#[test]
fn bytes_wake_every_sender_that_fits() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(100)).unwrap();
        let senders = asleep(|| {
            [1, 2].map(|len| spawn(&queue, move |queue| queue.send(&message(len)).unwrap()))
        });
        assert_eq!(recv(&queue), 100);
        join(senders);
        assert_eq!(sorted(vec![recv(&queue), recv(&queue)]), [1, 2]);
    });
}

/// A sender of a long message does not keep the wake from one of a short one.
#[test]
fn bytes_wake_senders_of_all_lengths() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(1)).unwrap();
        queue.send(&message(2)).unwrap();
        let senders = asleep(|| {
            [100, 3].map(|len| spawn(&queue, move |queue| queue.send(&message(len)).unwrap()))
        });
        assert_eq!(recv(&queue), 1);
        assert_eq!(recv(&queue), 2);
        assert_eq!(sorted(vec![recv(&queue), recv(&queue)]), [3, 100]);
        join(senders);
    });
}

/// The receiver that the first commit wakes finds its way barred by the slower sender before it;
/// both receivers must be woken then.
#[test]
fn bytes_wake_receivers_whom_a_slow_sender_held_up() {
    check_up_to(1, || {
        let queue = share(Two::new());
        let receivers = asleep(|| [spawn(&queue, recv), spawn(&queue, recv)]);
        let slow = queue.loan(1).unwrap();
        queue.send(&message(2)).unwrap();
        slow.send().unwrap();
        assert_eq!(sorted(join(receivers)), [1, 2]);
    });
}

#[test]
fn bytes_pass_over_room_given_up() {
    check(|| {
        let queue = share(Two::new());
        let receiver = spawn(&queue, recv);
        let room = queue.loan(1).unwrap();
        queue.send(&message(2)).unwrap();
        drop(room);
        assert_eq!(receiver.join().unwrap(), 2);
    });
}

#[test]
fn bytes_timeout_loses_no_wake_of_others() {
    check(|| {
        let queue = share(Two::new());
        let receivers = asleep(|| {
            let in_time = |queue: &Two| match queue.recv_timeout(SOON) {
                Ok(message) => Some(message.len()),
                Err(RecvTimeoutError::TimedOut) => None,
                Err(error) => panic!("{error}"),
            };
            [spawn(&queue, in_time), spawn(&queue, |queue| Some(recv(queue)))]
        });
        queue.send(&message(1)).unwrap();
        queue.send(&message(2)).unwrap();
        let mut all: Vec<usize> = join(receivers).into_iter().flatten().collect();
        all.extend(queue.try_iter().map(|message| message.len()));
        assert_eq!(sorted(all), [1, 2]);
    });
}

#[test]
fn bytes_close_loses_nothing_that_was_sent() {
    check(|| {
        let queue = share(Two::new());
        let sender = spawn(&queue, |queue| match queue.send(&message(1)) {
            Ok(()) => 1,
            Err(error) => {
                assert_eq!(error, SendError::Closed(()));
                0
            }
        });
        let receiver = spawn(&queue, |queue| queue.iter().count());
        queue.close();
        assert_eq!(receiver.join().unwrap(), sender.join().unwrap());
    });
}

/// A receiver of a closed queue does not learn of the end while another process has a message that
/// may come back.
#[test]
fn bytes_close_waits_for_what_may_come_back() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(5)).unwrap();
        let held = queue.recv_ref().unwrap();
        // A thread is a process, so this is another's.
        let other = spawn(&queue, |queue| queue.iter().count());
        queue.close();
        held.give_back().unwrap();
        assert_eq!(other.join().unwrap(), 1);
        assert_eq!(queue.recv(), Err(RecvError::Closed));
    });
}

/// It learns of the end when that message does not come back.
#[test]
fn bytes_close_ends_the_wait_for_what_was_consumed() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(5)).unwrap();
        let held = queue.recv_ref().unwrap();
        queue.close();
        let other = spawn(&queue, |queue| queue.iter().count());
        drop(held);
        assert_eq!(other.join().unwrap(), 0);
    });
}

#[test]
fn bytes_close_ends_blocked_senders() {
    check(|| {
        let queue = share(FixedByteQueue::<1>::new());
        queue.send(b"1").unwrap();
        let sender = asleep(|| spawn(&queue, |queue| queue.send(b"22")));
        queue.close();
        assert_eq!(sender.join().unwrap(), Err(SendError::Closed(())));
    });
}

#[test]
fn bytes_given_back_come_to_another() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(3)).unwrap();
        let held = queue.recv_ref().unwrap();
        let receiver = spawn(&queue, recv);
        held.give_back().unwrap();
        assert_eq!(receiver.join().unwrap(), 3);
    });
}

// -------------------------------------------------------------- deliveries

/// No message is out, and the whole in-flight area is free.
fn assert_done<const N: usize>(queue: &FixedByteQueue<N>) {
    queue.try_send(&message(64 * N)).unwrap();
    let job = queue.try_recv_ack().unwrap();
    assert_eq!((job.len(), job.attempts()), (64 * N, 0));
    job.ack().unwrap();
    assert_eq!(queue.join_timeout(SOON), Ok(true));
    assert_intact(queue);
}

#[test]
fn bytes_join_waits_for_the_acknowledgement() {
    check(|| {
        let queue = share(Two::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send(&message(7)).unwrap();
        let worker = {
            let done = done.clone();
            spawn(&queue, move |queue| {
                let job = queue.recv_ack().unwrap();
                assert_eq!((job.len(), job.attempts()), (7, 0));
                done.store(1, Relaxed);
                job.ack().unwrap();
            })
        };
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 1);
        worker.join().unwrap();
        assert_done(&queue);
    });
}

/// Each message is acknowledged once, by one of two workers.
#[test]
fn bytes_join_waits_for_all_workers() {
    check_up_to(1, || {
        let queue = share(FixedByteQueue::<3>::new());
        queue.send(&message(1)).unwrap();
        queue.send(&message(70)).unwrap();
        let work = |queue: &FixedByteQueue<3>| {
            let job = queue.recv_ack().unwrap();
            let len = job.len();
            job.ack().unwrap();
            len
        };
        let workers = [(); 2].map(|()| spawn(&queue, work));
        queue.join().unwrap();
        assert_eq!(sorted(join(workers)), [1, 70]);
        assert_done(&queue);
    });
}

/// The worker sends a further message before it acknowledges: there is no moment without one.
#[test]
fn bytes_join_waits_for_what_a_worker_sends() {
    check_up_to(1, || {
        let queue = share(Two::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send(&message(1)).unwrap();
        let worker = {
            let done = done.clone();
            spawn(&queue, move |queue| {
                let job = queue.recv_ack().unwrap();
                queue.send(&message(2)).unwrap();
                job.ack().unwrap();
                let job = queue.recv_ack().unwrap();
                done.store(1, Relaxed);
                job.ack().unwrap();
            })
        };
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 1);
        worker.join().unwrap();
    });
}

/// A worker sends a further message between the two looks of `join`, and then acknowledges the
/// first one. No thread receives the further message, so `join` never returns `true`.
#[test]
fn bytes_join_notices_what_is_sent_between_its_looks() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(1)).unwrap();
        let job = queue.recv_ack().unwrap();
        let joins = spawn(&queue, |queue| queue.join_timeout(SOON));
        queue.send(&message(2)).unwrap();
        job.ack().unwrap();
        assert_eq!(joins.join().unwrap(), Ok(false));
        assert_eq!(try_recv(&queue), Some(2));
    });
}

/// A message that was given back is acknowledged once in all.
#[test]
fn bytes_deliver_once_what_was_given_back() {
    check_up_to(1, || {
        let queue = share(Two::new());
        queue.send(&message(70)).unwrap();
        let other = spawn(&queue, |queue| queue.try_recv_ack().map(|job| job.nack()).is_ok());
        let job = queue.recv_ack().unwrap();
        assert!(job.len() == 70);
        let attempts = job.attempts();
        job.ack().unwrap();
        assert_eq!(other.join().unwrap(), attempts == 1);
        assert_done(&queue);
    });
}

/// Two workers wait for room. One of them gets it, and then the other one.
#[test]
fn bytes_wake_all_that_wait_for_room_in_flight() {
    check_up_to(1, || {
        let queue = share(Two::new());
        queue.send(&message(100)).unwrap();
        let held = queue.recv_ack().unwrap();
        queue.send(&message(1)).unwrap();
        queue.send(&message(2)).unwrap();
        let workers = asleep(|| {
            [(); 2].map(|()| {
                spawn(&queue, |queue| {
                    let job = queue.recv_ack().unwrap();
                    let len = job.len();
                    job.ack().unwrap();
                    len
                })
            })
        });
        held.ack().unwrap();
        assert_eq!(sorted(join(workers)), [1, 2]);
        assert_done(&queue);
    });
}

/// Another process receives the message that found no room. The next one needs less.
#[test]
fn bytes_wake_one_that_waits_for_room_when_the_message_is_gone() {
    check_up_to(1, || {
        let queue = share(Two::new());
        queue.send(&message(1)).unwrap();
        let held = queue.recv_ack().unwrap();
        queue.send(&message(100)).unwrap();
        let worker = asleep(|| spawn(&queue, |queue| queue.recv_ack().unwrap().len()));
        assert_eq!(recv(&queue), 100);
        queue.send(&message(2)).unwrap();
        assert_eq!(worker.join().unwrap(), 2);
        drop(held);
    });
}

// ---------------------------------------------------------------- recovery

#[test]
fn bytes_recovery_opens_the_way() {
    check(|| {
        let queue = share(Two::new());
        let dying = spawn_dying(&queue, |queue| forget(queue.loan(1).unwrap()));
        let dead = dying.join().unwrap();
        queue.send(&message(2)).unwrap();
        let receiver = spawn(&queue, recv);
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 2);
        assert_intact(&queue);
    });
}

#[test]
fn bytes_recovery_delivers_again() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(70)).unwrap();
        let dying = spawn_dying(&queue, |queue| forget(queue.recv_ref().unwrap()));
        let dead = dying.join().unwrap();
        let receiver = spawn(&queue, recv);
        queue.recover(&dead);
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 70);
        assert_intact(&queue);
    });
}

#[test]
fn bytes_outlast_a_sender_killed_anywhere() {
    for len in [5, 100] {
        killed_anywhere(move |victim| {
            let queue = share(FixedByteQueue::<3>::new());
            queue.try_send(&message(66)).unwrap(); // a long one has to skip the end
            assert_eq!(try_recv(&queue), Some(66));
            let victim = victim.spawn(&queue, move |queue| queue.send(&message(len)).unwrap());
            queue.send(&message(9)).unwrap();
            let life = victim.join().unwrap();
            queue.recover(&life.dead);
            let mut all: Vec<usize> = queue.try_iter().map(|message| message.len()).collect();
            all.retain(|&got| got != len);
            assert_eq!(all, [9]);
            assert_intact(&queue);
        });
    }
}

#[test]
fn bytes_outlast_a_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedByteQueue::<3>::new());
        queue.send(&message(1)).unwrap();
        queue.send(&message(100)).unwrap();
        let victim = victim.spawn(&queue, recv);
        let mine = recv(&queue);
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let mut all: Vec<usize> = queue.try_iter().map(|message| message.len()).collect();
        all.push(mine);
        all.extend(life.result);
        // A message that the killed process had received is gone, or comes back to another one.
        let all = sorted(all);
        assert!([&[1][..], &[100], &[1, 100]].contains(&&all[..]), "{all:?}");
        assert!(life.result.is_none() || all.len() == 2);
        assert_intact(&queue);
    });
}

/// The processes that need room make it. One of them dies.
#[test]
fn bytes_outlast_one_killed_anywhere_in_making_room() {
    killed_anywhere(|victim| {
        let queue = share(Two::new());
        queue.send(&message(1)).unwrap();
        queue.send(&message(2)).unwrap();
        assert_eq!((try_recv(&queue), try_recv(&queue)), (Some(1), Some(2)));
        let victim = victim.spawn(&queue, |queue| queue.try_send(&message(3)).is_ok());
        let mine = queue.try_send(&message(4)).is_ok();
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert!(mine);
        let all: Vec<usize> = queue.try_iter().map(|message| message.len()).collect();
        assert!(all.contains(&4) && (life.result != Some(true) || all.contains(&3)), "{all:?}");
        assert_intact(&queue);
    });
}

/// A recoverer is killed too. The next one completes its work.
#[test]
fn bytes_recovery_outlasts_a_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedByteQueue::<3>::new());
        queue.send(&message(5)).unwrap();
        let dying = spawn_dying(&queue, |queue| {
            forget(queue.recv_ref().unwrap());
            forget(queue.loan(1).unwrap());
        });
        let dead = dying.join().unwrap();
        let receiver = spawn(&queue, recv);
        let recoverer = victim.spawn(&queue, move |queue| queue.recover(&dead));
        let other = recoverer.join().unwrap();
        queue.recover(&other.dead);
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 5);
        assert_intact(&queue);
    });
}

/// Acknowledged once, or delivered again to another.
#[test]
fn bytes_lose_nothing_to_a_worker_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedByteQueue::<3>::new());
        queue.send(&message(70)).unwrap();
        queue.send(&message(1)).unwrap();
        let victim = victim.spawn(&queue, |queue| {
            let job = queue.try_recv_ack().ok()?;
            let len = job.len();
            job.ack().unwrap();
            Some(len)
        });
        let mut all = Vec::new();
        let mut work = |queue: &FixedByteQueue<3>| {
            while let Ok(job) = queue.try_recv_ack() {
                all.push(job.len());
                job.ack().unwrap();
            }
        };
        work(&queue);
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        queue.recover(&life.dead);
        work(&queue);
        // Only a message that the victim had acknowledged can be missing.
        let got = life.result.flatten();
        all.extend(got);
        let all = sorted(all);
        assert!([&[1][..], &[70], &[1, 70]].contains(&&all[..]), "{all:?}");
        assert!(life.result.is_none() || all.len() == 2);
        assert_done(&queue);
    });
}

#[test]
fn bytes_recovery_delivers_again_what_a_dead_worker_held() {
    check(|| {
        let queue = share(Two::new());
        queue.send(&message(70)).unwrap();
        let dying = spawn_dying(&queue, |queue| forget(queue.recv_ack().unwrap()));
        let dead = dying.join().unwrap();
        let worker = spawn(&queue, |queue| {
            let job = queue.recv_ack().unwrap();
            assert_eq!((job.len(), job.attempts()), (70, 1));
            job.ack()
        });
        queue.recover(&dead);
        queue.recover(&dead);
        assert_eq!(worker.join().unwrap(), Ok(()));
        assert_done(&queue);
    });
}

/// A recoverer that is killed does not make one message into two.
#[test]
fn bytes_recovery_of_a_delivery_outlasts_a_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(Two::new());
        queue.send(&message(70)).unwrap();
        let dying = spawn_dying(&queue, |queue| forget(queue.recv_ack().unwrap()));
        let dead = dying.join().unwrap();
        let recoverer = victim.spawn(&queue, move |queue| queue.recover(&dead));
        let other = recoverer.join().unwrap();
        queue.recover(&other.dead);
        queue.recover(&dead);
        let job = queue.try_recv_ack().unwrap();
        assert_eq!((job.len(), job.attempts()), (70, 1));
        job.ack().unwrap();
        assert_done(&queue);
    });
}
