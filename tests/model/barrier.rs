//! Models of `Barrier`.
use crate::{SOON, asleep, check, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{Barrier, BarrierError, Shareable};
use std::sync::Arc;

#[test]
fn barrier_shows_what_all_wrote_before() {
    check(|| {
        let barrier = share(Barrier::new(2));
        let written = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let parties = [0, 1].map(|i| {
            let written = written.clone();
            spawn(&barrier, move |barrier| {
                written[i].store(1, Relaxed);
                let index = barrier.wait().unwrap().index();
                assert_eq!(written[1 - i].load(Relaxed), 1);
                index
            })
        });
        let mut indices = join(parties);
        indices.sort_unstable();
        assert_eq!(indices, [0, 1]);
    });
}

#[test]
fn barrier_can_be_used_again() {
    check(|| {
        let barrier = share(Barrier::new(2));
        let parties = [(); 2].map(|()| {
            spawn(&barrier, |barrier| {
                barrier.wait().unwrap();
                barrier.wait().unwrap();
            })
        });
        join(parties);
        assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
    });
}

/// A timeout and the last arrival: all pass, or the barrier is broken for all.
#[test]
fn barrier_times_out_for_all_or_for_nobody() {
    check(|| {
        let barrier = share(Barrier::new(2));
        let timed = spawn(&barrier, |barrier| barrier.wait_timeout(SOON));
        let patient = spawn(&barrier, |barrier| barrier.wait());
        let (timed, patient) = (timed.join().unwrap(), patient.join().unwrap());
        assert_eq!(timed.is_ok(), patient.is_ok());
        assert_eq!(barrier.is_broken(), timed == Err(BarrierError::TimedOut));
    });
}

/// A reset and the last arrival: those of one generation are told the same.
#[test]
fn barrier_is_reset_for_all_or_for_nobody() {
    check(|| {
        let barrier = share(Barrier::new(2));
        let first = asleep(|| spawn(&barrier, |barrier| barrier.wait()));
        let resetter = spawn(&barrier, Barrier::reset);
        let last = barrier.wait_timeout(SOON);
        resetter.join().unwrap();
        if last == Err(BarrierError::TimedOut) {
            barrier.abort();
        }
        assert_eq!(first.join().unwrap().is_ok(), last.is_ok());
    });
}

/// The same for an abort and the last arrival. A party that has passed does not learn of a later
/// abort.
#[test]
fn barrier_is_aborted_for_all_or_for_nobody() {
    check(|| {
        let barrier = share(Barrier::new(2));
        let first = asleep(|| spawn(&barrier, |barrier| barrier.wait()));
        let aborter = spawn(&barrier, Barrier::abort);
        let last = barrier.wait();
        aborter.join().unwrap();
        assert!(barrier.is_broken());
        assert_eq!(first.join().unwrap().is_ok(), last.is_ok());
    });
}

#[test]
fn barrier_outlasts_a_party_killed_anywhere() {
    killed_anywhere(|victim| {
        let barrier = share(Barrier::new(2));
        let patient = spawn(&barrier, |barrier| barrier.wait());
        let victim = victim.spawn(&barrier, |barrier| barrier.wait());
        let life = victim.join().unwrap();
        barrier.recover(&life.dead);
        // Killed before it had a cell, it was no party.
        barrier.abort();
        let patient = patient.join().unwrap();
        if life.result.is_some_and(|result| result.is_ok()) {
            assert!(patient.is_ok());
        }
    });
}

/// A party that waits for a killed one passes without it, whatever the killed one had done.
#[test]
fn shrinking_barrier_outlasts_a_party_killed_anywhere() {
    killed_anywhere(|victim| {
        let barrier = share(Barrier::shrinking(2));
        let patient = spawn(&barrier, |barrier| barrier.wait());
        let victim = victim.spawn(&barrier, |barrier| barrier.wait());
        let life = victim.join().unwrap();
        barrier.recover(&life.dead);
        barrier.recover(&life.dead); // once more is no other loss
        if barrier.parties() == 2 {
            barrier.abort(); // killed before it had a cell, it was no party
            patient.join().unwrap().ok();
        } else {
            assert_eq!(barrier.parties(), 1);
            assert!(patient.join().unwrap().is_ok());
        }
    });
}
