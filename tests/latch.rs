//! `Latch`: counting down, members and their deaths, in threads and processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, ms, sleep_for_ever, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::latch::MAX_MEMBERS;
use outlast::{Fault, Latch, LatchError, OnDeath, Shared};
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Start { latch: Latch, written: [AtomicU32; 8], step: AtomicU32 }
}

fn start(latch: Latch) -> Shared<Start> {
    Shared::anonymous(Start { latch, written: Default::default(), step: AtomicU32::new(0) })
        .unwrap()
}

#[test]
fn alone() {
    let start = start(Latch::new(3));
    let latch = &start.latch;
    let _watchdog = watch("alone", &start);
    assert_eq!((latch.remaining(), latch.is_open()), (3, false));
    latch.count_down(2);
    let began = Instant::now();
    assert_eq!(latch.wait_timeout(ms(20)), Err(LatchError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    assert_eq!(latch.wait_deadline(began), Err(LatchError::TimedOut));
    let member = latch.join(2).unwrap();
    assert_eq!((member.owed(), latch.remaining()), (2, 3));
    latch.count_down(9); // no more than there is; what is promised, is not anybody's
    assert_eq!(latch.remaining(), 2);
    member.count_down();
    assert_eq!((member.owed(), latch.is_open()), (1, false));
    member.done();
    assert!(latch.is_open());
    latch.wait().unwrap();
    latch.wait_timeout(Duration::ZERO).unwrap();
    latch.wait_deadline(began).unwrap();
    latch.arrive_and_wait().unwrap();
    assert_eq!(latch.join(1).unwrap_err(), LatchError::Open);
    assert_eq!(latch.remaining(), 0);
}

#[test]
fn as_many_members_as_cells() {
    let start = start(Latch::new(0));
    let _watchdog = watch("as_many_members_as_cells", &start);
    let members: Vec<_> = (0..MAX_MEMBERS).map(|_| start.latch.join(1).unwrap()).collect();
    assert_eq!(start.latch.join(1).unwrap_err(), LatchError::Failed(Fault::TooManyPeers));
    drop(members);
    assert!(start.latch.is_open());
}

/// Nobody passes before all have written.
#[test]
fn all_before_any() {
    worlds(
        "all_before_any",
        "",
        6,
        || start(Latch::new(6)),
        |start, i| {
            start.written[i].store(1, SeqCst);
            if i % 2 == 0 {
                start.latch.arrive_and_wait().unwrap();
            } else {
                start.latch.count_down(1);
                start.latch.wait().unwrap();
            }
            assert!(start.written[..6].iter().all(|written| written.load(SeqCst) == 1));
        },
        |start| assert!(start.latch.is_open()),
    );
}

/// A member that is killed makes the latch fail and is named, or is counted down.
#[test]
fn killed_members() {
    for on_death in [OnDeath::Fail, OnDeath::CountDown] {
        let start = start(Latch::with(1, on_death));
        let _watchdog = watch("killed_members", &start);
        let member = fork_child(|| {
            let member = start.latch.join(5).unwrap();
            member.count_down();
            start.step.store(1, SeqCst);
            sleep_for_ever();
        });
        common::eventually("it has joined", || start.step.load(SeqCst) == 1);
        assert_eq!(start.latch.remaining(), 5);
        let pid = u32::try_from(member.pid).unwrap();
        let waiter = fork_child(|| {
            let end = match on_death {
                OnDeath::Fail => Err(LatchError::MemberDied { pid }),
                OnDeath::CountDown => Ok(()),
            };
            assert_eq!(start.latch.wait(), end);
        });
        waiter.until_waiting();
        start.latch.count_down(1);
        member.kill9();
        waiter.succeeds();
        assert_eq!(start.latch.is_open(), on_death == OnDeath::CountDown);
        assert!(start.latch.join(1).is_err());
    }
}

/// One that has done its part, or ended by itself, is no loss... but one that ends without a word still owes.
#[test]
fn members_that_end() {
    let start = start(Latch::new(0));
    let _watchdog = watch("members_that_end", &start);
    let hold = start.latch.join(1).unwrap();
    fork_child(|| start.latch.join(3).unwrap().done()).succeeds();
    assert_eq!(start.latch.remaining(), 1);
    let mut copy = Some(hold);
    fork_child(|| drop(copy.take())).succeeds();
    assert_eq!(start.latch.remaining(), 1, "a copy made by fork has counted");
    drop(copy);
    start.latch.wait().unwrap();
}
