//! Models of `Queue` and of its recovery.
use crate::history::{Did, History};
use crate::{SOON, asleep, check, check_whole, join, killed_anywhere, share, spawn, spawn_dying};
use core::mem::forget;
use core::time::Duration;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{FixedQueue, Queue, RecvError, RecvTimeoutError, SendError, Shareable, TryRecvError};
use std::sync::Arc;

/// All room is free, and nothing else is in it.
fn assert_intact(queue: &Queue<u32>) {
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    let room = u32::try_from(queue.capacity()).unwrap();
    assert!((0..room).all(|i| queue.try_send(i).is_ok()));
    assert!(queue.try_send(room).is_err_and(|error| error.is_full()));
    assert_eq!(queue.drain(), Vec::from_iter(0..room));
    assert_eq!(queue.join_timeout(SOON), Ok(true));
}

fn sorted(mut messages: Vec<u32>) -> Vec<u32> {
    messages.sort_unstable();
    messages
}

/// Two producers, two consumers, two messages each.
fn two_by_two<const N: usize>() {
    check_whole(|| {
        let queue = share(FixedQueue::<u32, N>::new());
        let history = Arc::new(History::default());
        let producers = [10, 20].map(|first| {
            let history = history.clone();
            spawn(&queue, move |queue| {
                for message in [first, first + 1] {
                    history.note(|| queue.try_send(message).ok().map(|()| Did::Send(message)));
                }
            })
        });
        let receive_two = |queue: &Queue<u32>, history: &History| {
            for _ in 0..2 {
                history.note(|| queue.try_recv().ok().map(Did::Receive));
            }
        };
        let consumer = {
            let history = history.clone();
            spawn(&queue, move |queue| receive_two(queue, &history))
        };
        receive_two(&queue, &history);
        join(producers.into_iter().chain([consumer]));
        while !queue.is_empty() {
            history.note(|| Some(Did::Receive(queue.try_recv().unwrap())));
        }
        history.assert_linearizable(N);
    });
}

#[test]
fn queue_of_one_is_linearizable() {
    two_by_two::<1>();
}

#[test]
fn queue_of_two_is_linearizable() {
    two_by_two::<2>();
}

#[test]
fn queue_shows_what_was_written_before_send() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let written = Arc::new(AtomicU32::new(0));
        let receiver = {
            let written = written.clone();
            spawn(&queue, move |queue| {
                if let Ok(message) = queue.try_recv() {
                    assert_eq!((message, written.load(Relaxed)), (7, 1));
                }
            })
        };
        written.store(1, Relaxed);
        queue.try_send(7).unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn queue_keeps_the_order_of_each_producer() {
    check(|| {
        let queue = share(FixedQueue::<u32, 3>::new());
        let other = spawn(&queue, |queue| queue.send_batch(&[10, 11]).unwrap());
        queue.send(20).unwrap();
        let received = Vec::from_iter(queue.iter().take(3));
        let of = |producer: u32| received.iter().copied().filter(move |m| m / 10 == producer);
        assert!(of(1).eq([10, 11]) && of(2).eq([20]));
        other.join().unwrap();
    });
}

#[test]
fn queue_wakes_a_receiver_that_is_falling_asleep() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let receiver = spawn(&queue, |queue| [queue.recv().unwrap(), queue.recv().unwrap()]);
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(receiver.join().unwrap(), [1, 2]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_every_blocked_sender() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let senders =
            asleep(|| [1, 2].map(|message| spawn(&queue, move |queue| queue.send(message))));
        let received = Vec::from_iter(queue.iter().take(3));
        assert_eq!(received[0], 0);
        assert_eq!(sorted(received), [0, 1, 2]);
        assert!(join(senders).iter().all(Result::is_ok));
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_every_blocked_receiver() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers = asleep(|| [(); 2].map(|()| spawn(&queue, |queue| queue.recv().unwrap())));
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(sorted(join(receivers)), [1, 2]);
        assert_intact(&queue);
    });
}

/// The first sender may be slower than the second, whose receiver then finds its way barred.
#[test]
fn queue_wakes_receivers_whom_a_slow_sender_held_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers = asleep(|| [(); 2].map(|()| spawn(&queue, |queue| queue.recv().unwrap())));
        let slow = queue.loan();
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        let mut slow = slow.unwrap();
        *slow = 1;
        slow.send().unwrap();
        assert_eq!(sorted(join(receivers)), [1, 2]);
        sender.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_senders_whom_a_slow_receiver_held_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let slow = queue.recv_ref().unwrap();
        assert_eq!(*slow, 1);
        let senders =
            asleep(|| [3, 4].map(|message| spawn(&queue, move |queue| queue.send(message))));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        drop(slow);
        assert_eq!(receiver.join().unwrap(), 2);
        assert!(join(senders).iter().all(Result::is_ok));
        assert_eq!(sorted(queue.drain()), [3, 4]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_timeout_loses_no_wake_of_other_receivers() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let (timed, patient) = asleep(|| {
            (
                spawn(&queue, |queue| queue.recv_timeout(SOON)),
                spawn(&queue, |queue| queue.recv().unwrap()),
            )
        });
        queue.send(1).unwrap();
        match timed.join().unwrap() {
            Ok(message) => {
                assert_eq!(message, 1);
                queue.send(2).unwrap();
                assert_eq!(patient.join().unwrap(), 2);
            }
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(patient.join().unwrap(), 1);
            }
        }
        assert_intact(&queue);
    });
}

#[test]
fn queue_timeout_loses_no_wake_of_other_senders() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let (timed, patient) = asleep(|| {
            (
                spawn(&queue, |queue| queue.send_timeout(1, SOON).is_ok()),
                spawn(&queue, |queue| queue.send(2).unwrap()),
            )
        });
        assert_eq!(queue.recv(), Ok(0));
        if timed.join().unwrap() {
            assert!(queue.recv().is_ok());
        }
        patient.join().unwrap();
        assert_eq!(queue.drain().len(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_close_ends_every_receiver_once_all_is_received() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers =
            asleep(|| [(); 2].map(|()| spawn(&queue, |queue| Vec::from_iter(queue.iter()))));
        queue.send(1).unwrap();
        queue.close();
        assert_eq!(join(receivers).concat(), [1]);
        assert_eq!(queue.recv(), Err(RecvError::Closed));
        assert_eq!(queue.send(2), Err(SendError::Closed(2)));
    });
}

#[test]
fn queue_close_loses_no_message_that_was_sent() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let sender = spawn(&queue, |queue| queue.send(1).is_ok());
        let receiver = spawn(&queue, |queue| Vec::from_iter(queue.iter()));
        queue.close();
        // Also for the second of two receivers, which looks after the first has ended.
        let mine = Vec::from_iter(queue.iter());
        let sent = sender.join().unwrap();
        assert_eq!([mine, receiver.join().unwrap()].concat().len(), usize::from(sent));
        assert_eq!(queue.drain(), []);
    });
}

#[test]
fn queue_close_ends_blocked_senders() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let senders = [1, 2].map(|message| spawn(&queue, move |queue| queue.send(message)));
        queue.close();
        for (sender, message) in senders.into_iter().zip([1, 2]) {
            assert_eq!(sender.join().unwrap(), Err(SendError::Closed(message)));
        }
        assert_eq!(queue.drain(), [0]);
    });
}

#[test]
fn queue_passes_over_a_loan_given_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let loan = queue.loan().unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let sender = spawn(&queue, |queue| queue.send(1).unwrap());
        drop(loan);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_waits_for_the_acknowledgement() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send(7).unwrap();
        let worker = {
            let done = done.clone();
            spawn(&queue, move |queue| {
                let job = queue.recv_ack().unwrap();
                assert_eq!((*job, job.attempts()), (7, 0));
                done.store(1, Relaxed);
                job.ack().unwrap();
            })
        };
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 1);
        worker.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_waits_for_all_workers() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send_batch(&[1, 2]).unwrap();
        let work = |queue: &FixedQueue<u32, 2>, done: &AtomicU32| {
            let job = queue.recv_ack().unwrap();
            done.fetch_add(1, Relaxed);
            job.ack().unwrap();
        };
        let workers = [(); 2].map(|()| {
            let done = done.clone();
            spawn(&queue, move |queue| work(queue, &done))
        });
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 2);
        join(workers);
    });
}

/// A message arrives in the first slot before the one in the second slot is received. The queue is
/// never empty while `join` looks at one slot after the other.
#[test]
fn queue_join_sees_a_message_that_comes_behind_its_look() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(queue.recv(), Ok(1));
        let looker = spawn(&queue, |queue| queue.join_timeout(Duration::ZERO));
        queue.send(3).unwrap();
        assert_eq!(queue.recv(), Ok(2));
        assert_eq!(looker.join().unwrap(), Ok(false));
    });
}

#[test]
fn queue_delivers_again_what_was_given_back() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(7).unwrap();
        let other = spawn(&queue, |queue| queue.try_recv_ack().map(|job| job.nack()).is_ok());
        let job = queue.recv_ack().unwrap();
        let attempts = job.attempts();
        assert_eq!(job.ack(), Ok(7));
        assert_eq!(other.join().unwrap(), attempts == 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_delivers_once_what_was_given_back() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send(7).unwrap();
        queue.recv_ack().unwrap().nack();
        queue.send(8).unwrap();
        let others = [
            spawn(&queue, |queue| queue.recv().unwrap()),
            spawn(&queue, |queue| queue.recv_ack().unwrap().ack().unwrap()),
        ];
        assert_eq!(sorted(join(others)), [7, 8]);
        assert_intact(&queue);
    });
}

// -------------------------------------------------------------------- recovery

#[test]
fn recovery_frees_the_slot_of_a_dead_sender() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let dead = spawn_dying(&queue, |queue| forget(queue.loan().unwrap())).join().unwrap();
        let sender = spawn(&queue, |queue| queue.send(1).unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.recover(&dead);
        sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_opens_the_way_to_later_messages() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let dead = spawn_dying(&queue, |queue| forget(queue.loan().unwrap())).join().unwrap();
        queue.send(1).unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_eq!(queue.drain(), [2]);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_delivers_again_what_a_dead_receiver_read() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let dead = spawn_dying(&queue, |queue| forget(queue.recv_ref().unwrap())).join().unwrap();
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_eq!(queue.drain(), [2]);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_delivers_again_what_a_dead_worker_held() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let dead = spawn_dying(&queue, |queue| forget(queue.recv_ack().unwrap())).join().unwrap();
        let worker = spawn(&queue, |queue| {
            let job = queue.recv_ack().unwrap();
            assert_eq!(job.attempts(), 1);
            job.ack()
        });
        queue.recover(&dead);
        assert_eq!(worker.join().unwrap(), Ok(1));
        assert_intact(&queue);
    });
}

#[test]
fn recovery_twice_at_once_is_recovery_once() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let die = |queue: &FixedQueue<u32, 2>| {
            forget(queue.recv_ack().unwrap());
            forget(queue.recv_ref().unwrap());
            forget(queue.loan().unwrap());
        };
        let dead = spawn_dying(&queue, die).join().unwrap();
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let other = spawn(&queue, move |queue| queue.recover(&dead));
        queue.recover(&dead);
        other.join().unwrap();
        let rest = queue.try_recv_ack().unwrap();
        let attempts = rest.attempts();
        let rest = rest.ack().unwrap();
        assert_eq!(attempts, u32::from(rest == 1));
        assert_eq!(sorted(vec![receiver.join().unwrap(), rest]), [1, 2]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_a_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let victim = victim.spawn(&queue, |queue| queue.send(1).unwrap());
        queue.send(2).unwrap();
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let mut received = vec![receiver.join().unwrap()];
        received.extend(queue.drain());
        let received = sorted(received);
        assert!(received == [1, 2] || received == [2] && life.result.is_none());
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_a_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let victim = victim.spawn(&queue, |queue| queue.recv().unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let mut received = vec![receiver.join().unwrap()];
        received.extend(queue.drain());
        received.extend(life.result);
        let received = sorted(received);
        assert!(received == [1, 2] || received.len() == 1 && life.result.is_none());
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_a_worker_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| {
            let job = queue.try_recv_ack();
            let delivered = job.is_ok();
            forget(job);
            delivered
        });
        let worker = spawn(&queue, |queue| {
            let job = queue.recv_ack().unwrap();
            (job.attempts(), job.ack().unwrap())
        });
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let (attempts, message) = worker.join().unwrap();
        assert!(life.result.is_none_or(|delivered| attempts == u32::from(delivered)));
        assert!(attempts <= 1);
        assert_eq!(message, 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_one_killed_anywhere_in_giving_back() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| drop(queue.try_recv_ack()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_one_killed_anywhere_in_taking_again() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        queue.recv_ack().unwrap().nack();
        let victim = victim.spawn(&queue, |queue| forget(queue.try_recv_ack()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_outlasts_a_worker_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| queue.recv_ack().unwrap().ack().unwrap());
        let joiner = spawn(&queue, |queue| queue.join().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let rest = queue.drain();
        assert!(rest.is_empty() || rest == [1] && life.result.is_none());
        joiner.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_a_reader_in_place_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| forget(queue.try_recv_ref()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_one_killed_anywhere_in_closing() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let victim = victim.spawn(&queue, |queue| queue.close());
        let receiver = spawn(&queue, |queue| queue.recv());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        if !queue.is_closed() {
            queue.send(1).unwrap();
            assert_eq!(receiver.join().unwrap(), Ok(1));
        } else {
            assert_eq!(receiver.join().unwrap(), Err(RecvError::Closed));
        }
    });
}

#[test]
fn recovery_outlasts_a_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let die = |queue: &FixedQueue<u32, 2>| {
            forget(queue.recv_ack().unwrap());
            forget(queue.recv_ref().unwrap());
            forget(queue.loan().unwrap());
        };
        let dead = spawn_dying(&queue, die).join().unwrap();
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let victim = victim.spawn(&queue, move |queue| queue.recover(&dead));
        let life = victim.join().unwrap();
        queue.recover(&dead);
        queue.recover(&life.dead);
        let rest = queue.try_recv_ack().unwrap();
        let attempts = rest.attempts();
        let rest = rest.ack().unwrap();
        assert_eq!(attempts, u32::from(rest == 1));
        assert_eq!(sorted(vec![receiver.join().unwrap(), rest]), [1, 2]);
        assert_intact(&queue);
    });
}
