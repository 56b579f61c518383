//! Work that is acknowledged: `join`, and messages that no worker gets done.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, watch, worlds};
use core::fmt::Debug;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{ByteQueue, Fault, FixedByteQueue, FixedQueue, Queue, Shareable};
use outlast::{RecvError, RecvTimeoutError, Shared, TryRecvError};
use std::time::{Duration, Instant};

/// A place of work, whose jobs are numbers or bytes.
trait Workplace: Shareable + Sync + Debug + 'static {
    type Job<'a>: Debug;
    fn new() -> Shared<Self>;
    fn send(&self, n: u32);
    /// Receives a job. After `limit` failed attempts it goes to the dead letters instead.
    fn receive(&self, limit: u32) -> Result<Self::Job<'_>, RecvError>;
    /// The job's number, and the attempts before this one.
    fn told(job: &Self::Job<'_>) -> (u32, u32);
    fn acknowledge(job: Self::Job<'_>);
    fn join(&self);
    fn join_timeout(&self, timeout: Duration) -> bool;
    fn close(&self);
    fn dead_letters(&self) -> Vec<u32>;
    fn done(&self) -> &AtomicU32;
    fn step(&self) -> &AtomicU32;
}

macro_rules! workplace {
    ($place:ident: $jobs:ty, $dead:ty, $job:ty, $send:expr, $number:expr) => {
        outlast::shared! {
            #[derive(Debug)]
            struct $place { jobs: $jobs, dead: $dead, done: AtomicU32, step: AtomicU32 }
        }

        impl Workplace for $place {
            type Job<'a> = $job;
            fn new() -> Shared<Self> {
                let (jobs, dead) = (<$jobs>::new(), <$dead>::new());
                let [done, step] = [0; 2].map(AtomicU32::new);
                Shared::anonymous($place { jobs, dead, done, step }).unwrap()
            }
            fn send(&self, n: u32) {
                $send(&self.jobs, n)
            }
            fn receive(&self, limit: u32) -> Result<Self::Job<'_>, RecvError> {
                self.jobs.recv_ack_or_dead_letter(limit, &self.dead)
            }
            fn told(job: &Self::Job<'_>) -> (u32, u32) {
                ($number(&**job), job.attempts())
            }
            fn acknowledge(job: Self::Job<'_>) {
                job.ack().map(drop).unwrap()
            }
            fn join(&self) {
                self.jobs.join().unwrap()
            }
            fn join_timeout(&self, timeout: Duration) -> bool {
                self.jobs.join_timeout(timeout).unwrap()
            }
            fn close(&self) {
                self.jobs.close()
            }
            fn dead_letters(&self) -> Vec<u32> {
                let letters = core::iter::from_fn(|| self.dead.try_recv().ok());
                letters.map(|letter| $number(&letter)).collect()
            }
            fn done(&self) -> &AtomicU32 {
                &self.done
            }
            fn step(&self) -> &AtomicU32 {
                &self.step
            }
        }
    };
}

workplace!(Pool: FixedQueue<u64, 4>, FixedQueue<u64, 2>, outlast::Delivery<'a, u64>,
    |jobs: &Queue<u64>, n: u32| jobs.send(n.into()).unwrap(),
    |job: &u64| u32::try_from(*job).unwrap());

workplace!(BytePool: FixedByteQueue<6>, FixedByteQueue<2>, outlast::queue::bytes::Delivery<'a>,
|jobs: &FixedByteQueue<6>, n: u32| jobs.send(&job(n)).unwrap(),
|message: &[u8]| {
    let n = u32::from_le_bytes(message[..4].try_into().unwrap());
    assert_eq!(message, job(n));
    n
});

/// Message `n`: of one to four blocks.
fn job(n: u32) -> Vec<u8> {
    let mut message = n.to_le_bytes().to_vec();
    message.resize(5 + n as usize * 77 % 250, n.to_le_bytes()[0]);
    message
}

/// Workers die, with a job or without it. Others do the job, and `join` returns.
fn join_outlasts_workers_at<W: Workplace>(name: &str) {
    let place = W::new();
    let _watchdog = watch(name, &place);
    for round in 0..10 {
        place.send(round);
        let victim = fork_child(|| {
            let _job = place.receive(9).unwrap();
            place.step().fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || place.step().load(SeqCst) == round + 1);
        let joins = fork_child(|| place.join());
        joins.until_waiting();
        let worker = fork_child(|| {
            let job = place.receive(9).unwrap();
            assert_eq!(W::told(&job), (round, 1));
            W::acknowledge(job);
        });
        worker.until_waiting();
        assert!(!place.join_timeout(ms(2)));
        victim.kill9();
        worker.succeeds();
        joins.succeeds();
        assert!(place.join_timeout(Duration::ZERO));
    }
}

#[test]
fn join_outlasts_workers() {
    join_outlasts_workers_at::<Pool>("join_outlasts_workers");
}

#[test]
fn bytes_join_outlasts_workers() {
    join_outlasts_workers_at::<BytePool>("bytes_join_outlasts_workers");
}

/// A job that kills each worker becomes a dead letter before the next one.
fn a_job_that_kills_at<W: Workplace>(name: &str) {
    let place = W::new();
    let _watchdog = watch(name, &place);
    place.send(66);
    for attempt in 0..3 {
        let victim = fork_child(|| {
            let job = place.receive(3).unwrap();
            assert_eq!(W::told(&job), (66, attempt));
            place.step().fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || place.step().load(SeqCst) == attempt + 1);
        victim.kill9();
    }
    let worker = fork_child(|| {
        let job = place.receive(3).unwrap();
        assert_eq!(W::told(&job), (7, 0));
        W::acknowledge(job);
    });
    let mut letters = Vec::new();
    eventually("it is a dead letter", || {
        letters.extend(place.dead_letters());
        !letters.is_empty()
    });
    place.join(); // it counts as done
    place.send(7);
    worker.succeeds();
    assert_eq!((letters, place.dead_letters()), (vec![66], vec![]));
}

#[test]
fn a_job_that_kills() {
    a_job_that_kills_at::<Pool>("a_job_that_kills");
}

#[test]
fn bytes_a_job_that_kills() {
    a_job_that_kills_at::<BytePool>("bytes_a_job_that_kills");
}

/// One role sends jobs and joins; the others do the jobs, and fail at some of them.
fn pools_in_every_world_of<W: Workplace>(name: &str) {
    const JOBS: u32 = 300;
    worlds(
        name,
        "",
        4,
        W::new,
        |place, i| {
            if i == 0 {
                (0..JOBS).for_each(|n| place.send(n));
                place.join();
                assert_eq!(place.done().load(SeqCst), JOBS);
                place.close();
            } else {
                while let Ok(job) = place.receive(200) {
                    let (n, attempts) = W::told(&job);
                    if n % 5 == 0 && attempts == 0 {
                        continue; // it fails
                    }
                    place.done().fetch_add(1, SeqCst);
                    W::acknowledge(job);
                }
            }
        },
        |place| assert!(place.dead_letters().is_empty()),
    );
}

#[test]
fn pools_in_every_world() {
    pools_in_every_world_of::<Pool>("pools_in_every_world");
}

#[test]
fn byte_pools_in_every_world() {
    pools_in_every_world_of::<BytePool>("byte_pools_in_every_world");
}

// ------------------------------------------------------------------ numbers

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

/// A message that was never delivered has not failed. A queue that is its own queue of dead letters
/// comes to an end.
#[test]
fn nothing_is_buried_undelivered() {
    let pool = Pool::new();
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
    let pool = Pool::new();
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

// ------------------------------------------------------------ byte messages

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
    let pool = BytePool::new();
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
    let pool = BytePool::new();
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

/// The end is told when no other process has a message that may come back.
#[test]
fn bytes_closed_with_a_delivery_out() {
    let pool = BytePool::new();
    let _watchdog = watch("bytes_closed_with_a_delivery_out", &pool);
    for comes_back in [false, true] {
        let pool = BytePool::new();
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
    let pool = BytePool::new();
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
