//! Work that is acknowledged: `join`, and messages that nobody gets done.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{FixedQueue, Queue, RecvTimeoutError, Shared, TryRecvError};
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
