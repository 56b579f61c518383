//! Models of `Latch`.
use crate::{SOON, asleep, check, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{Latch, LatchError, OnDeath, Shareable};
use std::sync::Arc;

#[test]
fn latch_shows_what_was_written_before() {
    check(|| {
        let latch = share(Latch::new(2));
        let written = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let writers = [0, 1].map(|i| {
            let written = written.clone();
            spawn(&latch, move |latch| {
                written[i].store(1, Relaxed);
                latch.count_down(1);
            })
        });
        latch.wait().unwrap();
        assert!(written.iter().all(|written| written.load(Relaxed) == 1));
        join(writers);
    });
}

/// A join is either in time, and waited for, or refused.
#[test]
fn latch_waits_for_who_has_joined() {
    check(|| {
        let latch = share(Latch::new(1));
        let done = Arc::new(AtomicU32::new(0));
        let member = {
            let done = done.clone();
            spawn(&latch, move |latch| match latch.join(1) {
                Ok(member) => {
                    done.store(1, Relaxed);
                    member.done();
                    true
                }
                Err(error) => {
                    assert_eq!(error, LatchError::Open);
                    false
                }
            })
        };
        latch.count_down(1);
        latch.wait().unwrap();
        let seen = done.load(Relaxed);
        assert_eq!(member.join().unwrap(), seen == 1);
    });
}

#[test]
fn latch_timeout_loses_no_wake() {
    check(|| {
        let latch = share(Latch::new(1));
        let timed = spawn(&latch, |latch| latch.wait_timeout(SOON));
        let patient = spawn(&latch, |latch| latch.wait());
        latch.count_down(1);
        timed.join().unwrap().ok();
        patient.join().unwrap().unwrap();
    });
}

#[test]
fn latch_outlasts_a_member_killed_anywhere() {
    for on_death in [OnDeath::CountDown, OnDeath::Fail] {
        killed_anywhere(move |victim| {
            let latch = share(Latch::with(1, on_death));
            let waiter = asleep(|| spawn(&latch, |latch| latch.wait()));
            let victim = victim.spawn(&latch, |latch| latch.join(2).map(|member| member.done()));
            let life = victim.join().unwrap();
            latch.recover(&life.dead);
            latch.count_down(1);
            let end = waiter.join().unwrap();
            match on_death {
                OnDeath::CountDown => assert_eq!(end, Ok(())),
                _ => assert!(life.result.is_none() || end.is_ok()),
            }
        });
    }
}
