//! `Latch`: counting down, members and their deaths, in threads and processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, ms, sleep_for_ever, thread_cpu, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::latch::MAX_MEMBERS;
use outlast::{Fault, Latch, LatchError, OnDeath, Shared, Spin};
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
    assert_eq!(latch.wait_timeout(ms(20)), Ok(false));
    assert!(began.elapsed() >= ms(20));
    assert_eq!(latch.wait_deadline(began), Ok(false));
    assert_eq!(latch.try_wait(), Ok(false));
    let member = latch.join(2).unwrap();
    assert_eq!((member.owed(), latch.remaining()), (2, 3));
    latch.count_down(9); // no more than there is; what is promised, is not anybody's
    assert_eq!(latch.remaining(), 2);
    member.count_down();
    assert_eq!((member.owed(), latch.is_open()), (1, false));
    member.done();
    assert!(latch.is_open());
    latch.wait().unwrap();
    assert_eq!(latch.wait_timeout(Duration::ZERO), Ok(true));
    assert_eq!(latch.wait_deadline(began), Ok(true));
    assert_eq!(latch.try_wait(), Ok(true));
    latch.arrive_and_wait().unwrap();
    assert_eq!(latch.arrive_and_wait_timeout(Duration::ZERO), Ok(true));
    assert_eq!(latch.join(1).unwrap_err(), LatchError::Open);
    assert_eq!(latch.remaining(), 0);
}

/// An arrival that times out stays.
#[test]
fn late_arrivals_count() {
    let start = start(Latch::new(3));
    let latch = &start.latch;
    let _watchdog = watch("late_arrivals_count", &start);
    let began = Instant::now();
    assert_eq!(latch.arrive_and_wait_timeout(ms(20)), Ok(false));
    assert!(began.elapsed() >= ms(20));
    assert_eq!(latch.arrive_and_wait_deadline(began), Ok(false));
    assert_eq!(latch.remaining(), 1);
    assert_eq!(latch.arrive_and_wait_deadline(began), Ok(true));
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

/// No waiter passes before all have written.
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
                _ => Ok(()),
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

/// The death of a member that has done its part fails nothing, nor does a process that ends by
/// itself. But a member that ends by itself still owes its counts.
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

/// Counts of members, and counts that no member promised, in all worlds. No waiter passes before
/// all is done.
#[test]
fn members_everywhere() {
    worlds(
        "members_everywhere",
        "",
        4,
        || start(Latch::new(4)),
        |start, i| {
            let member = start.latch.join(3).unwrap();
            start.latch.count_down(1);
            member.count_down();
            assert_eq!(member.owed(), 2);
            member.count_down();
            start.written[i].store(1, SeqCst);
            // (By a call, or by going out of scope.)
            if i % 2 == 0 {
                member.done();
            } else {
                drop(member);
            }
            start.latch.wait().unwrap();
            assert!(start.written[..4].iter().all(|written| written.load(SeqCst) == 1));
            assert_eq!(start.latch.join(1).unwrap_err(), LatchError::Open);
        },
        |start| assert_eq!((start.latch.remaining(), start.latch.is_open()), (0, true)),
    );
}

/// A wait ends no earlier than it was told, and changes nothing; an open latch is passed even too
/// late.
#[test]
fn timeouts_everywhere() {
    worlds(
        "timeouts_everywhere",
        "",
        3,
        || start(Latch::new(1)),
        |start, i| {
            let latch = &start.latch;
            let began = Instant::now();
            assert_eq!(latch.wait_timeout(ms(30)), Ok(false));
            assert!(began.elapsed() >= ms(30));
            assert_eq!(latch.wait_deadline(began), Ok(false));
            assert_eq!(latch.wait_timeout(Duration::ZERO), Ok(false));
            let end = Instant::now() + ms(20);
            assert_eq!(latch.wait_deadline(end), Ok(false));
            assert!(Instant::now() >= end);
            start.step.fetch_add(1, SeqCst);
            if i == 0 {
                common::eventually("all have waited", || start.step.load(SeqCst) == 3);
                latch.count_down(1);
            }
            assert_eq!(latch.wait_timeout(Duration::MAX), Ok(true));
            assert_eq!(latch.wait_deadline(began), Ok(true));
            assert_eq!(latch.wait_timeout(Duration::ZERO), Ok(true));
        },
        |start| assert!(start.latch.is_open()),
    );
}

#[test]
fn zero_and_huge() {
    let start = start(Latch::new(u32::MAX));
    let latch = &start.latch;
    let _watchdog = watch("zero_and_huge", &start);
    latch.count_down(0);
    assert_eq!(latch.remaining(), u64::from(u32::MAX));
    let huge: Vec<_> = (0..3).map(|_| latch.join(u32::MAX).unwrap()).collect();
    assert_eq!(latch.remaining(), 4 * u64::from(u32::MAX));
    huge[0].count_down();
    assert_eq!(huge[0].owed(), u32::MAX - 1);
    let nothing = latch.join(0).unwrap();
    nothing.count_down(); // there is nothing left to count
    assert_eq!((nothing.owed(), latch.remaining()), (0, 4 * u64::from(u32::MAX) - 1));
    drop(nothing);
    drop(huge);
    assert!(!latch.is_open());
    latch.count_down(u32::MAX);
    assert!(latch.is_open());
    latch.count_down(u32::MAX);
    assert_eq!(latch.remaining(), 0);

    let empty = self::start(Latch::new(0));
    assert!(!empty.latch.is_open(), "no count has been made yet");
    drop(empty.latch.join(0).unwrap());
    assert!(empty.latch.is_open());
}

/// A cell is free again when its member has done its part.
#[test]
fn more_members_than_cells_one_by_one() {
    let start = start(Latch::new(1));
    let _watchdog = watch("more_members_than_cells_one_by_one", &start);
    for _ in 0..3 * MAX_MEMBERS {
        start.latch.join(2).unwrap().done();
    }
    assert_eq!(start.latch.remaining(), 1);
}

/// A signal handler does not end a wait, and a waiter takes no processor's time.
#[test]
fn a_waiter_sleeps_on() {
    let start = start(Latch::new(1));
    let _watchdog = watch("a_waiter_sleeps_on", &start);
    let child = fork_child(|| {
        common::catch_user_signals();
        Spin::Never.set();
        start.step.store(1, SeqCst);
        start.latch.wait().unwrap();
        assert_eq!(start.step.load(SeqCst), 2, "a signal has ended the wait");
        assert!(thread_cpu() < ms(100), "it has not slept: {:?}", thread_cpu());
    });
    common::eventually("it comes", || start.step.load(SeqCst) == 1);
    child.disturb_asleep(50, ms(3));
    start.step.store(2, SeqCst);
    start.latch.count_down(1);
    child.succeeds();
}

/// Signals do not make a timeout later or earlier.
#[test]
fn signals_during_a_timeout() {
    let start = start(Latch::new(1));
    let _watchdog = watch("signals_during_a_timeout", &start);
    let child = fork_child(|| {
        common::catch_user_signals();
        start.step.store(1, SeqCst);
        let began = Instant::now();
        assert_eq!(start.latch.wait_timeout(ms(120)), Ok(false));
        assert!(began.elapsed() >= ms(120));
        start.step.store(2, SeqCst);
    });
    common::eventually("it comes", || start.step.load(SeqCst) >= 1);
    child.disturb_while(|| start.step.load(SeqCst) == 1);
    child.succeeds();
}

/// A waiter that is killed takes no other waiter's wake with it.
#[test]
fn killed_waiters() {
    for round in 0..20 {
        let start = start(Latch::new(1));
        let _watchdog = watch(&format!("killed_waiters, round {round}"), &start);
        let mut waiters: Vec<_> =
            (0..3).map(|_| fork_child(|| start.latch.wait().unwrap())).collect();
        waiters.iter().for_each(common::Child::until_waiting);
        let victim = waiters.swap_remove(round % 3);
        if round % 2 == 0 {
            victim.kill9();
            start.latch.count_down(1);
        } else {
            start.latch.count_down(1);
            victim.signal(libc::SIGKILL); // woken, or not, or through already
            assert!(matches!(victim.wait(), common::KILLED | common::OK));
        }
        waiters.into_iter().for_each(common::Child::succeeds);
    }
}

/// Counts that no member has promised have no owner. A death changes nothing about them.
#[test]
fn killed_without_a_promise() {
    let start = start(Latch::new(2));
    let _watchdog = watch("killed_without_a_promise", &start);
    let counter = fork_child(|| {
        start.latch.count_down(1);
        start.step.store(1, SeqCst);
        sleep_for_ever();
    });
    common::eventually("it counts", || start.step.load(SeqCst) == 1);
    counter.kill9();
    assert_eq!(start.latch.wait_timeout(ms(30)), Ok(false));
    assert_eq!((start.latch.remaining(), start.latch.is_open()), (1, false));
    start.latch.count_down(1);
    start.latch.wait().unwrap();
}

/// A process that ends by itself, and leaves a promise behind, has not kept it.
#[test]
fn a_forgotten_promise() {
    for on_death in [OnDeath::Fail, OnDeath::CountDown] {
        let start = start(Latch::with(1, on_death));
        let _watchdog = watch("a_forgotten_promise", &start);
        let member = fork_child(|| core::mem::forget(start.latch.join(2).unwrap()));
        let pid = u32::try_from(member.pid).unwrap();
        member.succeeds();
        start.latch.count_down(1);
        let end = match on_death {
            OnDeath::Fail => Err(LatchError::MemberDied { pid }),
            _ => Ok(true),
        };
        assert_eq!(start.latch.wait_timeout(common::PATIENCE), end);
    }
}

/// A latch that has failed stays failed, and reports it to every newcomer. Its members can still
/// count down.
#[test]
fn failed_for_good() {
    let start = start(Latch::new(1));
    let _watchdog = watch("failed_for_good", &start);
    let mine = start.latch.join(2).unwrap();
    let member = fork_child(|| {
        let _member = start.latch.join(1).unwrap();
        start.step.store(1, SeqCst);
        sleep_for_ever();
    });
    common::eventually("it has joined", || start.step.load(SeqCst) == 1);
    let pid = u32::try_from(member.pid).unwrap();
    let died = LatchError::MemberDied { pid };
    let waiters: Vec<_> =
        (0..2).map(|_| fork_child(|| assert_eq!(start.latch.wait(), Err(died)))).collect();
    waiters.iter().for_each(common::Child::until_waiting);
    member.kill9();
    waiters.into_iter().for_each(common::Child::succeeds);
    mine.count_down();
    mine.done();
    start.latch.count_down(1);
    // A recoverer may fail the latch before it removes the counts that the dead member owed.
    common::eventually("nothing remains", || start.latch.remaining() == 0);
    assert!(!start.latch.is_open());
    assert_eq!(start.latch.wait(), Err(died));
    assert_eq!(start.latch.wait_timeout(Duration::ZERO), Err(died));
    assert_eq!(start.latch.arrive_and_wait(), Err(died));
    assert_eq!(start.latch.join(1).unwrap_err(), died);
    fork_child(|| assert_eq!(start.latch.wait(), Err(died))).succeeds();
}

/// Whenever members are killed, the latch opens once the others have done their part.
#[test]
fn kills_without_end() {
    let mut random = common::Random::new(5);
    for round in 0..40 {
        let start = start(Latch::with(3, OnDeath::CountDown));
        let _watchdog = watch(&format!("kills_without_end, round {round}"), &start);
        let mut members: Vec<_> = (0..3)
            .map(|_| {
                fork_child(|| {
                    for _ in 0..50 {
                        let Ok(member) = start.latch.join(3) else { break };
                        member.count_down();
                        member.count_down();
                    }
                    start.latch.count_down(1);
                    start.latch.wait().unwrap();
                })
            })
            .collect();
        common::busy(random.micros(2_500));
        let victim = members.swap_remove(random.index(3));
        victim.signal(libc::SIGKILL);
        assert!(matches!(victim.wait(), common::KILLED | common::OK));
        start.latch.count_down(1); // the victim's, if it did not come to that
        members.into_iter().for_each(common::Child::succeeds);
        assert_eq!((start.latch.remaining(), start.latch.is_open()), (0, true));
    }
}

/// A member may be another thread's, and counts for its process even if the thread that joined has
/// ended.
#[test]
fn members_travel() {
    let start = start(Latch::new(0));
    let _watchdog = watch("members_travel", &start);
    let member =
        std::thread::scope(|scope| scope.spawn(|| start.latch.join(2).unwrap()).join().unwrap());
    std::thread::sleep(ms(20));
    assert_eq!((member.owed(), start.latch.remaining()), (2, 2));
    std::thread::scope(|scope| {
        scope.spawn(move || member.done());
    });
    assert!(start.latch.is_open());
}

/// A copy made by fork does nothing, whatever is done with it, and neither does the end of its
/// process.
#[test]
fn a_copy_made_by_fork_is_inert() {
    let start = start(Latch::new(0));
    let _watchdog = watch("a_copy_made_by_fork_is_inert", &start);
    let mut member = Some(start.latch.join(2).unwrap());
    fork_child(|| {
        let copy = member.take().unwrap();
        copy.count_down();
        assert_eq!(copy.owed(), 2);
        copy.done();
        // A member of its own is another matter.
        let own = start.latch.join(1).unwrap();
        assert_eq!(start.latch.remaining(), 3);
        own.done();
        assert_eq!(start.latch.wait_timeout(ms(1)), Ok(false));
    })
    .succeeds();
    let killed = fork_child(|| {
        start.step.store(1, SeqCst);
        sleep_for_ever();
    });
    common::eventually("it runs", || start.step.load(SeqCst) == 1);
    killed.kill9();
    assert_eq!(start.latch.remaining(), 2);
    member.take().unwrap().done();
    start.latch.wait().unwrap();
}

/// A process that counts down becomes a peer first. If it is killed before it has opened the latch,
/// its peers have to notice. (A peer has one more thread, the sentinel.)
#[test]
fn who_counts_is_known() {
    let start = start(Latch::new(1));
    let _watchdog = watch("who_counts_is_known", &start);
    fork_child(|| {
        assert_eq!(common::threads(), 1);
        start.latch.count_down(1);
        assert!(common::threads() > 1); // one for each segment of this process
    })
    .succeeds();
}

#[test]
fn outside_of_shared_memory() {
    let latch = Latch::new(1);
    let not_shared = LatchError::Failed(Fault::NotShared);
    assert_eq!(latch.wait_timeout(ms(1)), Err(not_shared));
    assert_eq!(latch.wait(), Err(not_shared));
    assert_eq!(latch.join(1).unwrap_err(), not_shared);
    latch.count_down(1); // this needs no peer
    latch.wait().unwrap();
}

/// Whatever the memory holds, calls end, and nothing panics.
#[test]
fn arbitrary_bytes() {
    let mut random = common::Random::new(3);
    for round in 0..300 {
        let start = start(Latch::with(2, [OnDeath::Fail, OnDeath::CountDown][round % 2]));
        let latch = &start.latch;
        let _watchdog = watch(&format!("arbitrary_bytes, round {round}"), &start);
        let member = latch.join(2);
        // (With the other backend an object of the C library's lies between the state and the
        // cells.)
        let cells = size_of::<Latch>() - 8 * MAX_MEMBERS;
        let (at, len) = if cfg!(not(outlast_pthread)) {
            let at = random.index(size_of::<Latch>());
            (at, 1 + random.index(size_of::<Latch>() - at))
        } else {
            [(0, 8), (cells, 8 * MAX_MEMBERS)][random.index(2)]
        };
        common::scribble(latch, at, &random.bytes(len));
        drop(format!("{latch:?}"));
        core::hint::black_box((latch.remaining(), latch.is_open()));
        if let Ok(member) = &member {
            member.count_down();
            core::hint::black_box(member.owed());
        }
        _ = latch.wait_timeout(ms(1));
        _ = latch.wait_deadline(Instant::now());
        drop(latch.join(1));
        drop(latch.join(u32::MAX));
        latch.count_down(1);
        latch.count_down(u32::MAX);
        drop(member);
        // Recovery copes with any bytes.
        fork_child(|| core::mem::forget(latch.join(3))).succeeds();
        _ = latch.wait_timeout(ms(1));
    }
}
