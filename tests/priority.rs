//! `PriorityQueue`: the most urgent message comes first, whichever process sends, waits or is
//! killed.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, thread_cpu, watch, worlds};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    Fault, FixedPriorityQueue, Options, PriorityQueue, Queue, RecvError, RecvTimeoutError,
    SendError, SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::time::{Duration, Instant};

type Levels = FixedPriorityQueue<u64, 3, 2>;

outlast::shared! {
    #[derive(Debug)]
    struct Office { jobs: FixedPriorityQueue<u64, 4, 3>, step: AtomicU32, sum: AtomicU64, count: AtomicU64 }
}

fn levels() -> Shared<Levels> {
    Shared::anonymous(Levels::new()).unwrap()
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office {
        jobs: FixedPriorityQueue::new(),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
        count: AtomicU64::new(0),
    })
    .unwrap()
}

#[test]
fn the_most_urgent_first() {
    let queue = levels();
    let _watchdog = watch("the_most_urgent_first", &queue);
    assert_eq!((queue.levels(), queue.capacity(), queue.is_empty()), (3, 2, true));
    for (priority, message) in [(0, 1), (2, 2), (1, 3), (2, 4), (0, 5)] {
        queue.send(priority, message).unwrap();
    }
    assert_eq!((queue.len(), queue.len_of(2), queue.len_of(3)), (5, 2, 0));
    assert_eq!(queue.try_send(2, 6), Err(TrySendError::Full(6)));
    queue.try_send(1, 7).unwrap(); // each level has its own room
    let all: Vec<_> = queue.try_iter().collect();
    assert_eq!(all, [(2, 2), (2, 4), (1, 3), (1, 7), (0, 1), (0, 5)]);
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn deliveries() {
    let queue = levels();
    let _watchdog = watch("deliveries", &queue);
    queue.send(0, 1).unwrap();
    queue.send(2, 2).unwrap();
    let job = queue.recv_ack().unwrap();
    assert_eq!((job.priority(), *job, job.attempts()), (2, 2, 0));
    job.nack();
    let job = queue.try_recv_ack().unwrap();
    assert_eq!((job.priority(), *job, job.attempts()), (2, 2, 1));
    assert!(!queue.join_timeout(Duration::ZERO).unwrap());
    assert_eq!(job.ack(), Ok(2));
    assert_eq!(queue.recv_ack_timeout(ms(5)).unwrap().ack(), Ok(1));
    assert!(queue.join_deadline(Instant::now()).unwrap());
    queue.join().unwrap();
    assert_eq!(queue.try_recv_ack().unwrap_err(), TryRecvError::Empty);
}

/// The messages of all levels that are unacknowledged count together.
#[test]
fn too_many_in_flight() {
    let queue = levels();
    let _watchdog = watch("too_many_in_flight", &queue);
    let mut held: Vec<_> = (0..64)
        .map(|n| {
            queue.send(2, n).unwrap();
            queue.recv_ack().unwrap()
        })
        .collect();
    queue.send(0, 64).unwrap();
    assert_eq!(queue.try_recv_ack().unwrap_err(), TryRecvError::TooManyInFlight);
    assert_eq!(queue.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::TooManyInFlight);
    let child = fork_child(|| {
        let job = queue.recv_ack().unwrap();
        assert_eq!((job.priority(), job.ack()), (1, Ok(8)));
    });
    child.until_waiting();
    queue.send(1, 8).unwrap(); // more urgent than the message that it waits with
    held.pop().unwrap().ack().unwrap();
    child.succeeds();
    held.push(queue.recv_ack().unwrap());
    queue.send(1, 9).unwrap();
    queue.close();
    assert_eq!(queue.try_recv_ack().unwrap_err(), TryRecvError::TooManyInFlight);
    // A message that comes back has an entry, so that it is delivered although others are more
    // urgent.
    let lowest = held.pop().unwrap();
    assert_eq!((lowest.priority(), *lowest), (0, 64));
    lowest.nack();
    let job = queue.recv_ack().unwrap();
    assert_eq!((job.priority(), *job, job.attempts()), (0, 64, 1));
    drop(job);
    held.clear();
    let all: Vec<_> = queue.try_iter().collect();
    assert_eq!((all.len(), all[0].0, all[63], all[64]), (65, 2, (1, 9), (0, 64)));
    assert_eq!(queue.recv_ack().unwrap_err(), RecvError::Closed);
}

/// A queue whose capacity is chosen at run time, with as many unacknowledged messages as its
/// creator wants.
#[test]
fn chosen_at_run_time() {
    let here = Options::new().in_flight(2).with_capacity::<PriorityQueue<u64, 3>>(4).unwrap();
    let there = Shared::<PriorityQueue<u64, 3>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let _watchdog = watch("chosen_at_run_time", &here);
    assert_eq!((there.levels(), there.capacity(), there.in_flight_capacity()), (3, 4, 2));
    for n in 0..12 {
        here.try_send(usize::try_from(n % 3).unwrap(), n).unwrap();
    }
    assert!((0..3).all(|level| here.try_send(level, 0).is_err_and(|error| error.is_full())));
    let (first, second) = (there.recv_ack().unwrap(), there.recv_ack().unwrap());
    assert_eq!((*first, *second, first.priority()), (2, 5, 2));
    assert_eq!(here.try_recv_ack().unwrap_err(), TryRecvError::TooManyInFlight);
    first.nack();
    second.ack().unwrap();
    assert_eq!(here.recv_ack().map(|job| (*job, job.attempts())).unwrap(), (2, 1));
    let rest: Vec<_> = there.try_iter().map(|(level, n)| (level, n % 3)).collect();
    let ordered = [2, 1, 0].into_iter().flat_map(|level| [(level, level as u64); 4]).skip(1);
    assert_eq!(rest, Vec::from_iter(ordered));
    let with_default = Shared::<PriorityQueue<u64, 3>>::with_capacity(4).unwrap();
    assert_eq!((with_default.capacity(), with_default.in_flight_capacity()), (4, 64));
    assert!(Shared::<PriorityQueue<u64, 3>>::with_capacity(0).is_err());
    assert!(Options::new().in_flight(0).with_capacity::<PriorityQueue<u64, 3>>(4).is_err());
}

#[test]
fn time_passes() {
    let queue = levels();
    let _watchdog = watch("time_passes", &queue);
    let began = Instant::now();
    assert_eq!(queue.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    queue.send(1, 1).unwrap();
    queue.send_deadline(1, 2, began).unwrap();
    let again = Instant::now();
    assert_eq!(queue.send_timeout(1, 3, ms(20)), Err(SendTimeoutError::TimedOut(3)));
    assert!(again.elapsed() >= ms(20));
    assert_eq!(queue.recv_deadline(began), Ok((1, 1)));
    assert_eq!(queue.recv_ack_deadline(began).unwrap().ack(), Ok(2));
    assert_eq!(queue.recv_ack_deadline(began).unwrap_err(), RecvTimeoutError::TimedOut);
}

#[test]
fn closing() {
    let queue = levels();
    let _watchdog = watch("closing", &queue);
    queue.send(1, 1).unwrap();
    (0..2).for_each(|n| queue.send(0, n).unwrap());
    let sleepers = [
        fork_child(|| assert_eq!(queue.send(0, 9), Err(SendError::Closed(9)))),
        fork_child(|| {
            let other = office();
            let child = fork_child(|| assert_eq!(other.jobs.recv(), Err(RecvError::Closed)));
            child.until_waiting();
            other.jobs.close();
            child.succeeds();
        }),
    ];
    sleepers[0].until_waiting();
    queue.close();
    assert!(queue.is_closed());
    sleepers.into_iter().for_each(common::Child::succeeds);
    assert_eq!(queue.try_send(2, 1), Err(TrySendError::Closed(1)));
    assert_eq!((queue.recv(), queue.iter().count()), (Ok((1, 1)), 2));
    assert_eq!(queue.recv(), Err(RecvError::Closed));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(queue.try_recv_ack().unwrap_err(), TryRecvError::Closed);
}

#[test]
fn no_such_level() {
    let queue = levels();
    let none = Fault::NoSuchLevel;
    assert_eq!(queue.send(3, 1), Err(SendError::Failed(1, none)));
    assert_eq!(queue.try_send(usize::MAX, 1), Err(TrySendError::Failed(1, none)));
    assert_eq!(queue.send_timeout(3, 1, ms(5)), Err(SendTimeoutError::Failed(1, none)));
    assert!(queue.is_empty());
}

#[test]
fn not_in_a_segment() {
    assert_eq!(Levels::new().recv(), Err(RecvError::Failed(Fault::NotShared)));
}

/// All that is sent is received once, and each level in the order of each sender.
#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 2_000;
    worlds(
        "streams_in_every_world",
        "",
        4,
        office,
        |office, i| {
            if i < 2 {
                for n in 1..=COUNT {
                    let priority = usize::try_from(n % 4).unwrap();
                    office.jobs.send(priority, (n << 1) | i as u64).unwrap();
                }
                if office.step.fetch_add(1, SeqCst) == 1 {
                    office.jobs.close();
                }
            } else {
                let mut last = [[0; 2]; 4];
                while let Ok((priority, message)) = office.jobs.recv() {
                    let (n, sender) = (message >> 1, (message & 1) as usize);
                    assert_eq!(n % 4, priority as u64);
                    assert!(last[priority][sender] < n);
                    last[priority][sender] = n;
                    office.sum.fetch_add(n, SeqCst);
                    office.count.fetch_add(1, SeqCst);
                }
            }
        },
        |office| {
            assert_eq!(office.count.load(SeqCst), 2 * COUNT);
            assert_eq!(office.sum.load(SeqCst), COUNT * (COUNT + 1));
        },
    );
}

/// A receiver that is killed while it sleeps, or when it has been woken, or holds a message: the
/// others carry on.
#[test]
fn killed_receivers() {
    let office = office();
    let _watchdog = watch("killed_receivers", &office);
    for round in 0..20 {
        let victim = fork_child(|| {
            let _job = office.jobs.recv_ack().unwrap();
            sleep_for_ever();
        });
        let other = fork_child(|| {
            let job = office.jobs.recv_ack().unwrap();
            assert_eq!((job.priority(), *job), (3, round));
            job.ack().unwrap();
        });
        victim.until_waiting();
        other.until_waiting();
        office.jobs.send(3, round).unwrap();
        victim.kill9();
        other.succeeds();
        office.jobs.join().unwrap();
    }
}

/// `join` waits for work that a killed worker left, not for the worker.
#[test]
fn join_outlasts_workers() {
    let office = office();
    let _watchdog = watch("join_outlasts_workers", &office);
    office.jobs.send(1, 7).unwrap();
    let worker = fork_child(|| {
        let _job = office.jobs.recv_ack().unwrap();
        sleep_for_ever();
    });
    eventually("it has the job", || office.jobs.is_empty());
    let joins = fork_child(|| office.jobs.join().unwrap());
    joins.until_waiting();
    worker.kill9();
    assert_eq!(office.jobs.recv_ack().unwrap().ack(), Ok(7));
    joins.succeeds();
}

#[test]
fn a_wait_is_a_wait() {
    let office = office();
    let _watchdog = watch("a_wait_is_a_wait", &office);
    let waiter = fork_child(|| {
        common::catch_user_signals();
        let before = thread_cpu();
        assert_eq!(office.jobs.recv(), Ok((2, 5)));
        assert!(thread_cpu() - before < ms(100), "it was busy");
    });
    waiter.disturb_asleep(3, ms(60));
    office.jobs.send(2, 5).unwrap();
    waiter.succeeds();
}

/// Deliveries that a fork copies do nothing.
#[test]
fn copies_by_fork_are_inert() {
    let queue = levels();
    let _watchdog = watch("copies_by_fork_are_inert", &queue);
    queue.send(1, 1).unwrap();
    queue.send(1, 2).unwrap();
    let (one, two) = (queue.recv_ack().unwrap(), queue.recv_ack().unwrap());
    let mut both = Some((one, two));
    let child = fork_child(|| {
        let (one, two) = both.take().unwrap();
        assert_eq!(one.ack(), Err(Fault::Forked));
        drop(two);
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    });
    child.succeeds();
    let (one, two) = both.unwrap();
    assert_eq!((one.ack(), two.ack()), (Ok(1), Ok(2)));
}

#[test]
#[cfg(not(outlast_pthread))] // the other backend has objects of the C library in front
fn foreign_bytes() {
    let _watchdog = common::watch_alone("foreign_bytes");
    let child = fork_child(|| {
        let mut random = common::Random::new(9);
        for round in 0..200 {
            let office = office();
            office.jobs.send(1, 1).unwrap();
            let job = office.jobs.recv_ack().unwrap();
            let bytes = random.bytes(size_of::<FixedPriorityQueue<u64, 4, 3>>());
            let len = if round % 2 == 0 { 64 } else { bytes.len() };
            common::scribble(&office.jobs, 0, &bytes[..len]);
            for n in 0..4 {
                office.jobs.try_send(n, 1).ok();
                office.jobs.try_recv().ok();
                drop(office.jobs.try_recv_ack());
                office.jobs.recv_timeout(Duration::from_micros(10)).ok();
                drop(office.jobs.recv_ack_timeout(Duration::from_micros(10)));
                office.jobs.send_timeout(n, 1, Duration::from_micros(10)).ok();
            }
            job.ack().ok();
            let _len = (office.jobs.len(), office.jobs.is_empty(), office.jobs.join_timeout(ms(0)));
            let _text = format!("{office:?}");
        }
    });
    child.succeeds();
}

/// A job that kills each worker would come first for ever. The next worker makes it a dead letter,
/// and carries on.
#[test]
fn a_most_urgent_job_that_kills() {
    let office = office();
    let dead_letters = Shared::<Queue<u64>>::with_capacity(2).unwrap();
    let _watchdog = watch("a_most_urgent_job_that_kills", &office);
    office.jobs.send(3, 666).unwrap();
    for attempt in 0..2 {
        let victim = fork_child(|| {
            let job = office.jobs.recv_ack_or_dead_letter(2, &dead_letters).unwrap();
            assert_eq!((*job, job.priority(), job.attempts()), (666, 3, attempt));
            office.step.fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it has the job", || office.step.load(SeqCst) == attempt + 1);
        victim.kill9();
    }
    let worker = fork_child(|| {
        let job = office.jobs.recv_ack_or_dead_letter(2, &dead_letters).unwrap();
        assert_eq!((job.priority(), job.ack()), (0, Ok(7)));
        let began = Instant::now();
        let none = office.jobs.try_recv_ack_or_dead_letter(2, &dead_letters);
        assert_eq!(none.unwrap_err(), TryRecvError::Empty);
        let none = office.jobs.recv_ack_or_dead_letter_timeout(2, &dead_letters, ms(5));
        assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
        let none = office.jobs.recv_ack_or_dead_letter_deadline(2, &dead_letters, began + ms(10));
        assert_eq!(none.unwrap_err(), RecvTimeoutError::TimedOut);
        assert!(began.elapsed() >= ms(10));
    });
    eventually("it is buried", || dead_letters.len() == 1);
    office.jobs.send(0, 7).unwrap();
    worker.succeeds();
    assert_eq!(dead_letters.drain(), [666]);
    assert!(office.jobs.is_empty());
}
