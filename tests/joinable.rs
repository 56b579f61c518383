//! Work that is acknowledged: `join`, and messages that nobody gets done.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{ByteQueue, Fault, FixedByteQueue, FixedQueue, Queue};
use outlast::{RecvError, RecvTimeoutError, Shared, TryRecvError};
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Pool { jobs: FixedQueue<u64, 4>, dead: FixedQueue<u64, 2>, done: AtomicU32, step: AtomicU32 }
}

fn pool() -> Shared<Pool> {
    let (jobs, dead) = (FixedQueue::new(), FixedQueue::new());
    Shared::anonymous(Pool { jobs, dead, done: AtomicU32::new(0), step: AtomicU32::new(0) })
        .unwrap()
}

#[test]
fn join_takes_its_time() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("join_takes_its_time", &queue);
    let began = Instant::now();
    assert_eq!(
        (queue.join_deadline(began), queue.join_timeout(Duration::ZERO)),
        (Ok(true), Ok(true))
    );
    queue.send(1).unwrap();
    assert_eq!(queue.join_deadline(began), Ok(false));
    assert_eq!(queue.join_deadline(began + ms(20)), Ok(false));
    assert!(began.elapsed() >= ms(20));
    let job = queue.recv_ack().unwrap();
    let again = Instant::now();
    assert_eq!(queue.join_timeout(ms(20)), Ok(false));
    assert!(again.elapsed() >= ms(20));
    job.ack().unwrap();
    assert_eq!(queue.join_deadline(began), Ok(true));
}

/// Workers die, with a job or without; it is done all the same, and `join` returns.
#[test]
fn join_outlasts_workers() {
    let pool = pool();
    let _watchdog = watch("join_outlasts_workers", &pool);
    for round in 0..10_u32 {
        pool.jobs.send(round.into()).unwrap();
        let victim = fork_child(|| {
            let _job = pool.jobs.recv_ack().unwrap();
            pool.step.fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || pool.step.load(SeqCst) == round + 1);
        let joins = fork_child(|| pool.jobs.join().unwrap());
        joins.until_waiting();
        let worker = fork_child(|| {
            let job = pool.jobs.recv_ack().unwrap();
            assert_eq!((*job, job.attempts()), (round.into(), 1));
            job.ack().unwrap();
        });
        worker.until_waiting();
        assert_eq!(pool.jobs.join_timeout(ms(2)), Ok(false));
        victim.kill9();
        worker.succeeds();
        joins.succeeds();
        assert_eq!(pool.jobs.join_timeout(Duration::ZERO), Ok(true));
    }
}

/// A job that kills each worker is buried by the next.
#[test]
fn a_job_that_kills() {
    let pool = pool();
    let _watchdog = watch("a_job_that_kills", &pool);
    pool.jobs.send(666).unwrap();
    for attempt in 0..3 {
        let victim = fork_child(|| {
            let job = pool.jobs.recv_ack_or_dead_letter(3, &pool.dead).unwrap();
            assert_eq!((*job, job.attempts()), (666, attempt));
            pool.step.fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || pool.step.load(SeqCst) == attempt + 1);
        victim.kill9();
    }
    let worker = fork_child(|| {
        let job = pool.jobs.recv_ack_or_dead_letter(3, &pool.dead).unwrap();
        assert_eq!(job.ack(), Ok(7));
    });
    eventually("it is buried", || pool.dead.len() == 1);
    assert_eq!(pool.jobs.join(), Ok(())); // it counts as done
    pool.jobs.send(7).unwrap();
    worker.succeeds();
    assert_eq!(pool.dead.drain(), [666]);
}

/// Without a delivery there is nothing that may have failed; and a queue that buries in itself
/// comes to an end.
#[test]
fn nothing_is_buried_undelivered() {
    let pool = pool();
    let _watchdog = watch("nothing_is_buried_undelivered", &pool);
    pool.jobs.send_batch(&[7, 8]).unwrap();
    let job = pool.jobs.recv_ack_or_dead_letter(0, &pool.dead).unwrap();
    assert_eq!((*job, job.attempts()), (7, 0));
    drop(job);
    let job = pool.jobs.recv_ack_or_dead_letter(0, &pool.jobs).unwrap();
    assert_eq!((*job, job.attempts()), (8, 0));
    assert_eq!(pool.jobs.try_recv(), Ok(7)); // sent anew
    assert!(pool.dead.is_empty());
}

/// Nothing is lost if there is no room for it.
#[test]
fn no_room_for_a_dead_letter() {
    let pool = pool();
    let _watchdog = watch("no_room_for_a_dead_letter", &pool);
    pool.dead.send_batch(&[1, 2]).unwrap();
    pool.jobs.send(666).unwrap();
    drop(pool.jobs.try_recv_ack_or_dead_letter(1, &pool.dead).unwrap());
    let job = pool.jobs.try_recv_ack_or_dead_letter(1, &pool.dead).unwrap();
    assert_eq!((*job, job.attempts()), (666, 1));
    pool.dead.recv().unwrap();
    drop(job);
    let none = pool.jobs.try_recv_ack_or_dead_letter(1, &pool.dead);
    assert_eq!(none.unwrap_err(), TryRecvError::Empty);
    assert_eq!(pool.dead.drain(), [2, 666]);
    let none = pool.jobs.recv_ack_or_dead_letter_timeout(1, &pool.dead, ms(5));
    assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
    pool.dead.close();
    pool.jobs.send(8).unwrap();
    let job = pool.jobs.recv_ack_or_dead_letter_deadline(1, &pool.dead, Instant::now()).unwrap();
    assert_eq!(job.ack(), Ok(8));
}

/// One hands out jobs and joins, the others do them, and fail at some.
#[test]
fn pools_in_every_world() {
    const JOBS: u32 = 300;
    worlds(
        "pools_in_every_world",
        "",
        4,
        pool,
        |pool, i| {
            if i == 0 {
                (0..JOBS).for_each(|n| pool.jobs.send(n.into()).unwrap());
                pool.jobs.join().unwrap();
                assert_eq!(pool.done.load(SeqCst), JOBS);
                pool.jobs.close();
            } else {
                while let Ok(job) = pool.jobs.recv_ack_or_dead_letter(200, &pool.dead) {
                    if *job % 5 == 0 && job.attempts() == 0 {
                        continue; // it fails
                    }
                    pool.done.fetch_add(1, SeqCst);
                    job.ack().unwrap();
                }
            }
        },
        |pool| assert!(pool.dead.is_empty()),
    );
}

// ------------------------------------------------------------ byte messages

outlast::shared! {
    #[derive(Debug)]
    struct BytePool {
        jobs: FixedByteQueue<6>, dead: FixedByteQueue<2>, done: AtomicU32, step: AtomicU32,
    }
}

fn byte_pool() -> Shared<BytePool> {
    let (jobs, dead) = (FixedByteQueue::new(), FixedByteQueue::new());
    Shared::anonymous(BytePool { jobs, dead, done: AtomicU32::new(0), step: AtomicU32::new(0) })
        .unwrap()
}

/// Message `n`: of one to four blocks, each byte like the others.
fn job(n: usize) -> Vec<u8> {
    vec![n.to_le_bytes()[0]; 1 + n * 77 % 250]
}

#[test]
fn bytes_are_acknowledged() {
    let here = Shared::<ByteQueue>::with_capacity(1024).unwrap();
    let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let _watchdog = watch("bytes_are_acknowledged", &here);
    assert!(here.join_timeout(Duration::ZERO).unwrap());
    (0..3).for_each(|n| here.send(&job(n)).unwrap());
    let first = there.recv_ack().unwrap();
    assert_eq!((&*first, first.attempts()), (&job(0)[..], 0));
    // What is not acknowledged does not hold up the ring.
    for n in 3..100 {
        here.send(&job(n)).unwrap();
        assert_eq!(there.recv().unwrap(), job(n - 2));
    }
    assert_eq!(*first, job(0));
    drop(first);
    assert_eq!(here.len(), 3);
    let again = there.recv_ack_timeout(ms(1)).unwrap();
    assert_eq!((&*again, again.attempts()), (&job(0)[..], 1));
    again.nack();
    // A plain `recv` takes what came back, and so does one in place, which may give it back again.
    let message = here.recv_ref().unwrap();
    assert_eq!(*message, job(0));
    message.give_back().unwrap();
    let again = there.recv_ack_deadline(Instant::now()).unwrap();
    assert_eq!((&*again, again.attempts()), (&job(0)[..], 2));
    drop(again);
    assert_eq!(here.recv().unwrap(), job(0));
    assert_eq!(here.join_timeout(ms(5)), Ok(false));
    assert_eq!(there.try_recv_ack().unwrap().ack(), Ok(()));
    let last = there.try_recv_ack().unwrap();
    assert_eq!(here.join_deadline(Instant::now() + ms(5)), Ok(false));
    last.ack().unwrap();
    assert_eq!(there.try_recv_ack().unwrap_err(), TryRecvError::Empty);
    here.join().unwrap();
    assert!(here.is_empty());
}

/// The in-flight area is as large as the queue; what finds no room there waits.
#[test]
fn bytes_find_no_room_in_flight() {
    let pool = byte_pool();
    let _watchdog = watch("bytes_find_no_room_in_flight", &pool);
    let mut held = Vec::new();
    for n in 0..6 {
        pool.jobs.send(&[n]).unwrap();
        held.push(pool.jobs.recv_ack().unwrap());
    }
    pool.jobs.send(&[6; 300]).unwrap();
    assert_eq!(pool.jobs.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::TooManyInFlight);
    // Five blocks that follow each other are needed.
    let waits = fork_child(|| {
        let job = pool.jobs.recv_ack().unwrap();
        assert_eq!(*job, [6; 300]);
        job.ack().unwrap();
    });
    waits.until_waiting();
    for n in [0, 2, 1, 4] {
        held.remove(held.iter().position(|job| **job == [n]).unwrap()).ack().unwrap();
        waits.until_waiting();
    }
    held.remove(0).ack().unwrap(); // the one in their midst
    waits.succeeds();
    held.remove(0).ack().unwrap();
    pool.jobs.join().unwrap();
}

/// A thread that waits for room for a long message gets the short one behind it, when another has
/// received the long one.
#[test]
fn bytes_another_message_needs_less_room() {
    let pool = byte_pool();
    let _watchdog = watch("bytes_another_message_needs_less_room", &pool);
    pool.jobs.send(&[1; 200]).unwrap();
    let held = pool.jobs.recv_ack().unwrap();
    pool.jobs.send(&[2; 200]).unwrap();
    pool.jobs.send(&[3]).unwrap();
    let waits = fork_child(|| assert_eq!(*pool.jobs.recv_ack().unwrap(), [3]));
    waits.until_waiting();
    assert_eq!(pool.jobs.recv(), Ok(vec![2; 200]));
    waits.succeeds();
    drop(held);
}

/// Workers die, with a job or without; it is done all the same, and `join` returns.
#[test]
fn bytes_join_outlasts_workers() {
    let pool = byte_pool();
    let _watchdog = watch("bytes_join_outlasts_workers", &pool);
    for round in 0..10_u32 {
        let message = job(round as usize);
        pool.jobs.send(&message).unwrap();
        let victim = fork_child(|| {
            let _job = pool.jobs.recv_ack().unwrap();
            pool.step.fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || pool.step.load(SeqCst) == round + 1);
        let joins = fork_child(|| pool.jobs.join().unwrap());
        joins.until_waiting();
        let worker = fork_child(|| {
            let job = pool.jobs.recv_ack().unwrap();
            assert_eq!((&*job, job.attempts()), (&message[..], 1));
            job.ack().unwrap();
        });
        worker.until_waiting();
        assert_eq!(pool.jobs.join_timeout(ms(2)), Ok(false));
        victim.kill9();
        worker.succeeds();
        joins.succeeds();
        assert_eq!(pool.jobs.join_timeout(Duration::ZERO), Ok(true));
    }
}

/// The end is told when no other process has a message that may come back.
#[test]
fn bytes_closed_with_a_delivery_out() {
    let pool = byte_pool();
    let _watchdog = watch("bytes_closed_with_a_delivery_out", &pool);
    for comes_back in [false, true] {
        let pool = byte_pool();
        pool.jobs.send(b"7").unwrap();
        let held = pool.jobs.recv_ack().unwrap();
        pool.jobs.close();
        assert_eq!(pool.jobs.try_recv(), Err(TryRecvError::Closed)); // it has one itself
        let waits = fork_child(|| match pool.jobs.recv_ack() {
            Ok(job) => assert!(comes_back && job.ack().is_ok()),
            Err(error) => assert!(!comes_back && error == RecvError::Closed),
        });
        waits.until_waiting();
        if comes_back {
            held.nack()
        } else {
            held.ack().unwrap()
        }
        waits.succeeds();
    }
}

/// A delivery is of its process: a forked copy does nothing.
#[test]
fn bytes_forked_deliveries() {
    let pool = byte_pool();
    let _watchdog = watch("bytes_forked_deliveries", &pool);
    pool.jobs.send(b"7").unwrap();
    let mut held = Some(pool.jobs.recv_ack().unwrap());
    let child = fork_child(|| {
        let job = held.take().unwrap();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.len())).is_err());
        assert_eq!(job.ack(), Err(Fault::Forked));
    });
    child.succeeds();
    assert_eq!(pool.jobs.try_recv_ack().unwrap_err(), TryRecvError::Empty);
    held.unwrap().ack().unwrap();
    pool.jobs.join().unwrap();
}

/// One hands out jobs and joins, the others do them, and fail at some.
#[test]
fn byte_pools_in_every_world() {
    const JOBS: usize = 300;
    worlds(
        "byte_pools_in_every_world",
        "",
        4,
        byte_pool,
        |pool, i| {
            if i == 0 {
                (0..JOBS).for_each(|n| pool.jobs.send(&job(n)).unwrap());
                pool.jobs.join().unwrap();
                assert_eq!(pool.done.load(SeqCst), u32::try_from(JOBS).unwrap());
                pool.jobs.close();
            } else {
                while let Ok(job) = pool.jobs.recv_ack() {
                    assert!(job.iter().all(|byte| *byte == job[0]));
                    if job[0] % 5 == 0 && job.attempts() == 0 {
                        continue; // it fails
                    }
                    pool.done.fetch_add(1, SeqCst);
                    job.ack().unwrap();
                }
            }
        },
        |pool| assert!(pool.dead.is_empty()),
    );
}
