//! `Barrier`: generations, breaking, deaths and timeouts, in threads and processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{KILLED, Stage as _, fork_child, ms, sleep_for_ever, until_waiting, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{Barrier, BarrierError, BrokenCause, Fault, Shared, Spin};
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Meeting { barrier: Barrier, here: AtomicU32, sum: AtomicU32, indices: [AtomicU32; 8] }
}

fn meeting(parties: u32) -> Shared<Meeting> {
    at(Barrier::new(parties))
}

fn at(barrier: Barrier) -> Shared<Meeting> {
    let zero = || AtomicU32::new(0);
    Shared::anonymous(Meeting { barrier, here: zero(), sum: zero(), indices: Default::default() })
        .unwrap()
}

fn broken(cause: BrokenCause) -> Result<outlast::Arrival, BarrierError> {
    Err(BarrierError::Broken(cause))
}

/// No party passes before all have arrived, over many generations. Each index goes to one party.
#[test]
fn all_or_nobody() {
    const ROUNDS: u32 = 200;
    worlds(
        "all_or_nobody",
        "",
        4,
        || meeting(4),
        |meeting, _| {
            for round in 0..ROUNDS {
                meeting.here.fetch_add(1, SeqCst);
                let arrival = meeting.barrier.wait().unwrap();
                assert!(meeting.here.load(SeqCst) >= 4 * (round + 1));
                assert_eq!(arrival.is_leader(), arrival.index() == 3);
                meeting.indices[arrival.index() as usize].fetch_add(1, SeqCst);
                meeting.sum.fetch_add(arrival.index(), SeqCst);
                meeting.barrier.wait().unwrap();
                assert_eq!(meeting.here.load(SeqCst), 4 * (round + 1));
                meeting.barrier.wait().unwrap();
            }
        },
        |meeting| {
            assert_eq!(meeting.sum.load(SeqCst), 6 * ROUNDS);
            assert!(meeting.indices[..4].iter().all(|count| count.load(SeqCst) == ROUNDS));
            assert!(!meeting.barrier.is_broken());
        },
    );
}

/// What CPython's `test.lock_tests.BarrierTests` asks of one thread.
#[test]
fn alone() {
    let meeting = meeting(1);
    let barrier = &meeting.barrier;
    let _watchdog = watch("alone", &meeting);
    for _ in 0..3 {
        let arrival = barrier.wait().unwrap();
        assert_eq!((arrival.index(), arrival.is_leader()), (0, true));
    }
    assert_eq!((barrier.parties(), barrier.waiting(), barrier.is_broken()), (1, 0, false));
    barrier.reset();
    barrier.wait_timeout(Duration::ZERO).unwrap();
    barrier.wait_deadline(Instant::now().checked_sub(ms(3)).unwrap()).unwrap();
    barrier.abort();
    assert!(barrier.is_broken());
    assert_eq!(barrier.wait(), broken(BrokenCause::Aborted));
    barrier.reset();
    assert!(!barrier.is_broken());
    barrier.wait().unwrap();
    for parties in [0, 4_096, u32::MAX] {
        assert!(std::panic::catch_unwind(|| Barrier::new(parties)).is_err());
        assert!(std::panic::catch_unwind(|| Barrier::shrinking(parties)).is_err());
    }
}

/// One that does not want to wait longer breaks it for all, as in Python.
#[test]
fn a_timeout_breaks() {
    worlds(
        "a_timeout_breaks",
        "",
        3,
        || meeting(4),
        |meeting, i| {
            if i == 0 {
                common::eventually("two wait", || meeting.barrier.waiting() == 2);
                let began = Instant::now();
                let waited = meeting.barrier.wait_timeout(ms(30));
                assert!(began.elapsed() >= ms(30));
                assert_eq!(waited, Err(BarrierError::TimedOut));
            } else {
                assert_eq!(meeting.barrier.wait(), broken(BrokenCause::TimedOut));
            }
        },
        |meeting| {
            assert!(meeting.barrier.is_broken());
            assert_eq!(meeting.barrier.waiting(), 0);
        },
    );
}

#[test]
fn abort_and_reset_reach_those_who_wait() {
    worlds(
        "abort_and_reset_reach_those_who_wait",
        "",
        3,
        || meeting(4),
        |meeting, i| {
            let barrier = &meeting.barrier;
            for round in 0..40 {
                if i > 0 {
                    let end =
                        if round % 2 == 0 { BrokenCause::Aborted } else { BrokenCause::Reset };
                    let ended = barrier.wait();
                    // (One that is slow finds the aborted generation reset.)
                    assert!(ended == broken(end) || ended == broken(BrokenCause::Reset));
                    meeting.here.fetch_add(1, SeqCst);
                    common::eventually("next round", || meeting.sum.load(SeqCst) > round);
                    continue;
                }
                common::eventually("two wait", || barrier.waiting() == 2);
                if round % 2 == 0 {
                    barrier.abort();
                }
                barrier.reset();
                common::eventually("told", || meeting.here.load(SeqCst) == 2 * (round + 1));
                assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
                meeting.sum.fetch_add(1, SeqCst);
            }
        },
        |_| {},
    );
}

/// A waiter that a reset has released, and that waits again immediately, does not learn of the same
/// reset once more.
#[test]
fn a_reset_is_told_once() {
    for round in 0..60 {
        let meeting = meeting(5);
        let _watchdog = watch(&format!("a_reset_is_told_once, round {round}"), &meeting);
        let barrier = &meeting.barrier;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    assert_eq!(barrier.wait(), broken(BrokenCause::Reset));
                    meeting.here.fetch_add(1, SeqCst);
                    barrier.wait().unwrap();
                });
            }
            common::eventually("four wait", || barrier.waiting() == 4);
            if round % 2 == 0 {
                std::thread::sleep(ms(30)); // until they sleep
            }
            barrier.reset();
            common::eventually("all are told", || meeting.here.load(SeqCst) == 4);
            barrier.wait().unwrap();
        });
        assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
    }
}

/// Some meet without end, one of them without patience, while one aborts and another one resets at
/// any moment. Each generation completes for all three or for none: each index has been given as
/// often as the others.
#[test]
fn aborts_and_resets_race_with_arrivals() {
    const RESETS: u64 = 300;
    worlds(
        "aborts_and_resets_race_with_arrivals",
        "",
        5,
        || meeting(3),
        |meeting, i| {
            let barrier = &meeting.barrier;
            let [passed @ .., _, _, _, _, _] = &meeting.indices;
            let [_, _, _, calls @ .., _, _] = &meeting.indices;
            let mut random = common::Random::new(i as u64);
            match i {
                0..3 => {
                    while meeting.here.load(SeqCst) == 0 {
                        let timeout = if i == 0 { random.micros(3_000) } else { Duration::MAX };
                        match barrier.wait_timeout(timeout) {
                            Ok(arrival) => {
                                assert_eq!(arrival.is_leader(), arrival.index() == 2);
                                passed[arrival.index() as usize].fetch_add(1, SeqCst);
                            }
                            Err(BarrierError::TimedOut) if i == 0 => {}
                            Err(BarrierError::Broken(
                                BrokenCause::Aborted | BrokenCause::TimedOut | BrokenCause::Reset,
                            )) => {
                                meeting.sum.fetch_add(1, SeqCst);
                            }
                            other => panic!("{other:?}"),
                        }
                        calls[i].fetch_add(1, SeqCst);
                    }
                }
                3 => {
                    while meeting.here.load(SeqCst) == 0 {
                        common::busy(random.micros(400));
                        barrier.abort();
                    }
                }
                _ => {
                    // On a busy machine it may take longer until all three meet once.
                    let met = || passed[0].load(SeqCst) > 0;
                    for round in (0..).take_while(|&round| round < RESETS || !met()) {
                        common::busy(random.micros(400 * (1 + round / RESETS)));
                        barrier.reset();
                        // A generation is remembered through eight resets: no waiter may sleep
                        // through more.
                        if round % 4 == 0 {
                            let before = calls.each_ref().map(|calls| calls.load(SeqCst));
                            common::eventually("all three return", || {
                                (0..3).all(|i| calls[i].load(SeqCst) != before[i])
                            });
                        }
                    }
                    meeting.here.store(1, SeqCst);
                    barrier.abort(); // and it is not reset any more
                }
            }
        },
        |meeting| {
            let passed = meeting.indices.each_ref().map(|count| count.load(SeqCst));
            assert!(passed[0] > 0 && passed[1..3] == [passed[0]; 2], "{passed:?}");
            assert!(meeting.sum.load(SeqCst) > 0, "no wait was disturbed");
            meeting.barrier.reset();
            assert_eq!((meeting.barrier.waiting(), meeting.barrier.is_broken()), (0, false));
        },
    );
}

/// A party that is killed breaks the barrier immediately, and is named, whether it was inside or
/// not.
#[test]
fn a_killed_party_breaks() {
    for inside in [true, false] {
        let meeting = meeting(3);
        let _watchdog = watch("a_killed_party_breaks", &meeting);
        let party = fork_child(|| {
            let pair = &meeting.barrier;
            if inside {
                meeting.here.store(1, SeqCst);
                pair.wait().ok();
            } else {
                // It has been here, and has not left.
                assert_eq!(pair.wait_timeout(ms(1)), Err(BarrierError::TimedOut));
                meeting.here.store(1, SeqCst);
            }
            sleep_for_ever();
        });
        common::eventually("it comes", || meeting.here.load(SeqCst) == 1);
        if inside {
            party.until_waiting();
        } else {
            meeting.barrier.reset();
        }
        let pid = u32::try_from(party.pid).unwrap();
        let waiter = fork_child(|| {
            let waited = meeting.barrier.wait();
            assert_eq!(waited, broken(BrokenCause::PeerDied { pid }));
        });
        waiter.until_waiting();
        party.kill9();
        waiter.succeeds();
        assert_eq!(meeting.barrier.wait(), broken(BrokenCause::PeerDied { pid }));
        meeting.barrier.reset();
        assert!(!meeting.barrier.is_broken());
    }
}

/// A party that leaves, by a call or by ending, breaks nothing.
#[test]
fn leaving() {
    let meeting = meeting(2);
    let _watchdog = watch("leaving", &meeting);
    let visit = || {
        fork_child(|| {
            meeting.barrier.wait().unwrap();
        })
    };
    let visitor = visit();
    meeting.barrier.wait().unwrap();
    visitor.succeeds();
    let visitor = fork_child(|| {
        meeting.barrier.wait().unwrap();
        meeting.barrier.leave().unwrap();
        meeting.here.store(1, SeqCst);
        sleep_for_ever();
    });
    meeting.barrier.wait().unwrap();
    common::eventually("it has left", || meeting.here.load(SeqCst) == 1);
    visitor.kill9();
    // Its death has been noticed by the time that another one's has.
    let other = visit();
    meeting.barrier.wait().unwrap();
    other.succeeds();
    assert!(!meeting.barrier.is_broken());
}

/// A death after a generation was complete does not fail the parties that passed.
#[test]
fn a_death_after_completion() {
    for round in 0..40 {
        let meeting = meeting(3);
        let _watchdog = watch(&format!("a_death_after_completion, round {round}"), &meeting);
        let slow: Vec<_> = (0..2)
            .map(|_| {
                fork_child(|| {
                    Spin::Never.set();
                    meeting.barrier.wait().unwrap();
                })
            })
            .collect();
        slow.iter().for_each(common::Child::until_waiting);
        let last = fork_child(|| {
            meeting.barrier.wait().unwrap();
            common::exit_now(9);
        });
        assert_eq!(last.wait(), common::Exit::Code(9));
        slow.into_iter().for_each(common::Child::succeeds);
    }
}

/// Random parties are killed. No party hangs, and each generation ends in one way for all.
#[test]
fn kills_without_end() {
    let meeting = meeting(3);
    let _watchdog = watch("kills_without_end", &meeting);
    let mut random = common::Random::new(11);
    for _ in 0..60 {
        let parties: Vec<_> =
            (0..3).map(|_| fork_child(|| while meeting.barrier.wait().is_ok() {})).collect();
        common::busy(random.micros(3_000));
        let mut parties = parties;
        let victim = parties.swap_remove(random.index(3));
        victim.signal(libc::SIGKILL);
        assert!(matches!(victim.wait(), KILLED | common::OK));
        // If it was no party yet, the others wait for it.
        common::eventually("broken, or two wait", || {
            meeting.barrier.is_broken() || meeting.barrier.waiting() == 2
        });
        meeting.barrier.abort();
        parties.into_iter().for_each(common::Child::succeeds);
        meeting.barrier.reset();
    }
}

/// A shrinking barrier without deaths is one like others.
#[test]
fn shrinking_without_deaths() {
    worlds(
        "shrinking_without_deaths",
        "",
        3,
        || at(Barrier::shrinking(3)),
        |meeting, _| {
            for _ in 0..100 {
                let arrival = meeting.barrier.wait().unwrap();
                assert_eq!(arrival.is_leader(), arrival.index() == 2);
                meeting.indices[arrival.index() as usize].fetch_add(1, SeqCst);
            }
        },
        |meeting| {
            assert!(meeting.indices[..3].iter().all(|count| count.load(SeqCst) == 100));
            assert_eq!((meeting.barrier.parties(), meeting.barrier.is_broken()), (3, false));
        },
    );
}

/// A party is killed in `wait`, or between two: the others pass without it, then and later, and
/// each has an index of its own.
#[test]
fn a_shrinking_barrier_goes_on_without_the_dead() {
    for inside in [true, false] {
        let meeting = at(Barrier::shrinking(4));
        let _watchdog = watch("a_shrinking_barrier_goes_on_without_the_dead", &meeting);
        let others: Vec<_> = (0..3)
            .map(|_| {
                fork_child(|| {
                    meeting.barrier.wait().unwrap();
                    for _ in 0..10 {
                        let arrival = meeting.barrier.wait().unwrap();
                        meeting.indices[arrival.index() as usize].fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        let party = fork_child(|| {
            meeting.barrier.wait().unwrap();
            meeting.here.store(1, SeqCst);
            if inside {
                loop {
                    meeting.barrier.wait().unwrap();
                }
            }
            sleep_for_ever();
        });
        common::eventually("it comes", || meeting.here.load(SeqCst) == 1);
        others.iter().for_each(|other| {
            if !inside {
                other.until_waiting()
            }
        });
        party.kill9();
        others.into_iter().for_each(common::Child::succeeds);
        // (It may have been killed when it had done all that the others wait for: then they do not
        // wait until it is counted out.)
        common::eventually("it is counted out", || meeting.barrier.parties() == 3);
        assert!(!meeting.barrier.is_broken());
        let counts = meeting.indices.each_ref().map(|count| count.load(SeqCst));
        assert_eq!(counts.iter().sum::<u32>(), 30);
        assert!(inside || counts[..3] == [10; 3], "{counts:?}");
    }
}

/// A process stands for as many parties as it had threads that waited at the same time. If it ends
/// by itself, no party is lost.
#[test]
fn what_a_shrinking_barrier_loses() {
    let meeting = at(Barrier::shrinking(5));
    let _watchdog = watch("what_a_shrinking_barrier_loses", &meeting);
    let two = fork_child(|| {
        std::thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(|| meeting.barrier.wait().ok())));
        });
    });
    common::eventually("both wait", || meeting.barrier.waiting() == 2);
    let one = fork_child(|| {
        meeting.barrier.wait().unwrap();
        assert_eq!(meeting.barrier.parties(), 3);
    });
    common::eventually("a third", || meeting.barrier.waiting() == 3);
    two.kill9();
    common::eventually("fewer", || meeting.barrier.parties() == 3);
    let last = fork_child(|| assert!(meeting.barrier.wait().is_ok()));
    meeting.barrier.wait().unwrap();
    one.succeeds();
    last.succeeds();
    // Those that have ended by themselves are missing, and not lost.
    assert_eq!(meeting.barrier.parties(), 3);
    assert_eq!(meeting.barrier.wait_timeout(ms(20)), Err(BarrierError::TimedOut));
    assert!(meeting.barrier.is_broken());
    meeting.barrier.reset();
    assert_eq!((meeting.barrier.parties(), meeting.barrier.waiting()), (3, 0));
}

/// A process has one cell, even if a cell that comes first in the order of its search has become
/// free since its claim. Its death is one loss.
#[test]
fn a_shrinking_barrier_loses_a_process_once() {
    let first = at(Barrier::shrinking(3)); // tag 1
    let _watchdog = watch("a_shrinking_barrier_loses_a_process_once", &first);
    let barrier = &first.barrier;
    let open = || Shared::<Meeting>::from_fd(first.try_clone_fd().unwrap()).unwrap();
    let peers: Vec<_> = (2..=64).map(|_| open()).collect(); // tags 2 to 64
    let party = fork_child(|| {
        // Tag 65: its search begins at the cell of tag 1.
        for meeting in 1..=2 {
            first.here.until(meeting);
            barrier.wait().unwrap();
        }
        sleep_for_ever();
    });
    let meet = |comes_first: &Shared<Meeting>, number: u32| {
        std::thread::scope(|scope| {
            scope.spawn(|| comes_first.barrier.wait().unwrap());
            common::eventually("the first waits", || barrier.waiting() == 1);
            first.here.reach(number);
            common::eventually("two wait", || barrier.waiting() == 2);
            peers[0].barrier.wait().unwrap();
        });
    };
    meet(&first, 1);
    barrier.leave().unwrap();
    meet(&peers[1], 2);
    assert_eq!(barrier.parties(), 3);
    party.kill9();
    common::eventually("one fewer", || barrier.parties() < 3);
    // Two are left, and one alone does not pass.
    assert_eq!(peers[0].barrier.wait_timeout(ms(100)), Err(BarrierError::TimedOut));
    assert_eq!(barrier.parties(), 2);
}

/// One after the other is killed, at random; the rest go on, until one is alone.
#[test]
fn kills_until_one_is_left() {
    for round in 0..25 {
        let meeting = at(Barrier::shrinking(4));
        let _watchdog = watch(&format!("kills_until_one_is_left, round {round}"), &meeting);
        let mut random = common::Random::new(round);
        let mut parties: Vec<_> = (0..4)
            .map(|_| {
                fork_child(|| {
                    Spin::Never.set();
                    loop {
                        let arrival = meeting.barrier.wait().unwrap();
                        if arrival.is_leader() {
                            meeting.sum.fetch_add(1, SeqCst);
                        }
                    }
                })
            })
            .collect();
        let goes_on = || {
            let before = meeting.sum.load(SeqCst);
            common::eventually("generations pass", || meeting.sum.load(SeqCst) >= before + 5);
        };
        for left in (1..4).rev() {
            goes_on();
            common::busy(random.micros(500));
            parties.swap_remove(random.index(parties.len())).kill9();
            common::eventually("one fewer", || meeting.barrier.parties() == left);
        }
        goes_on();
        assert_eq!((meeting.barrier.parties(), meeting.barrier.is_broken()), (1, false));
        parties.into_iter().for_each(common::Child::kill9);
    }
}

#[test]
fn outside_of_shared_memory() {
    assert_eq!(Barrier::new(1).wait(), Err(BarrierError::Failed(Fault::NotShared)));
}

/// A waiter sleeps; whatever the memory holds, calls end.
#[test]
fn arbitrary_bytes() {
    let meeting = meeting(2);
    let _watchdog = watch("arbitrary_bytes", &meeting);
    let at = std::ptr::from_ref(&meeting.barrier).cast::<core::sync::atomic::AtomicU64>();
    #[expect(unsafe_code, reason = "writes what no peer would")]
    // SAFETY: the state is the first field, an atomic.
    let state = unsafe { &*at };
    for value in [u64::MAX, 0xfff, 0x1000, 0xffff_ffff_0000_0fff, 0xffff, 0xfff_0000, 1 << 31] {
        state.store(value, SeqCst);
        assert!(
            meeting.barrier.wait_timeout(ms(1)).is_ok_and(|_| true) || meeting.barrier.is_broken()
        );
        meeting.barrier.reset();
        meeting.barrier.abort();
        meeting.barrier.reset();
        assert!(!meeting.barrier.is_broken());
    }
    let waiter = std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = scope.spawn({
            let meeting = &meeting;
            move || {
                tell.send(common::thread_id()).unwrap();
                meeting.barrier.wait()
            }
        });
        until_waiting(told.recv().unwrap());
        meeting.barrier.wait().unwrap();
        waiter.join().unwrap()
    });
    assert_eq!(waiter.unwrap().index(), 0);
}

/// A signal handler does not end a wait, and a party that waits takes no processor's time.
#[test]
fn a_party_sleeps_on() {
    let meeting = meeting(2);
    let _watchdog = watch("a_party_sleeps_on", &meeting);
    let child = fork_child(|| {
        common::catch_user_signals();
        Spin::Never.set();
        assert!(!meeting.barrier.wait().unwrap().is_leader());
        assert_eq!(meeting.here.load(SeqCst), 1, "a signal has ended the wait");
        assert!(common::thread_cpu() < ms(100), "it has not slept: {:?}", common::thread_cpu());
    });
    common::eventually("it comes", || meeting.barrier.waiting() == 1);
    child.disturb_asleep(50, ms(3));
    meeting.here.store(1, SeqCst);
    assert!(meeting.barrier.wait().unwrap().is_leader());
    child.succeeds();
}

#[cfg(outlast_hooks)]
mod with_pauses {
    use super::*;
    use outlast::hooks::{self, Action};

    /// A process that is no peer yet is killed between an abort or a reset and its wake: the
    /// waiters hear of it.
    #[test]
    fn a_stranger_killed_before_its_wake() {
        for resets in [false, true] {
            let meeting = meeting(2);
            let _watchdog = watch("a_stranger_killed_before_its_wake", &meeting);
            let waiter = fork_child(|| assert!(meeting.barrier.wait().is_err()));
            waiter.until_waiting();
            std::thread::sleep(ms(30));
            let stranger = fork_child(|| {
                hooks::plan("signal: changed, nobody woken yet", Action::Kill);
                if resets { meeting.barrier.reset() } else { meeting.barrier.abort() }
            });
            assert_eq!(stranger.wait(), KILLED);
            waiter.succeeds();
            assert_eq!(meeting.barrier.is_broken(), !resets);
        }
    }

    /// A waiter that a reset has woken looks only when the next generation is complete: it is told
    /// of the reset all the same.
    #[test]
    fn a_late_waiter_is_told_of_an_early_reset() {
        let meeting = meeting(2);
        let _watchdog = watch("a_late_waiter_is_told_of_an_early_reset", &meeting);
        let barrier = &meeting.barrier;
        let late = fork_child(|| {
            hooks::plan("wait: back from its sleep", Action::Stop);
            assert_eq!(barrier.wait(), broken(BrokenCause::Reset));
        });
        late.until_waiting();
        std::thread::sleep(ms(30));
        barrier.reset();
        late.until_stopped();
        std::thread::scope(|scope| {
            scope.spawn(|| barrier.wait().unwrap());
            barrier.wait().unwrap();
        });
        late.signal(libc::SIGCONT);
        late.succeeds();
    }

    /// While a thread is about to claim a cell, no other thread of its process claims a second one.
    #[test]
    fn threads_of_a_process_share_a_cell() {
        const CLAIM: &str = "barrier: about to claim a cell";
        let meeting = at(Barrier::shrinking(3));
        let _watchdog = watch("threads_of_a_process_share_a_cell", &meeting);
        let here = &meeting.here;
        let party = fork_child(|| {
            let wait = || _ = meeting.barrier.wait();
            std::thread::scope(|scope| {
                hooks::plan(CLAIM, Action::Nap(400_000));
                scope.spawn(wait);
                common::eventually("one is about to claim", || hooks::visits(CLAIM) > 0);
                hooks::clear();
                here.store(1, SeqCst);
                scope.spawn(wait);
            });
        });
        common::eventually("one is about to claim", || here.load(SeqCst) == 1);
        std::thread::sleep(ms(50));
        assert_eq!(meeting.barrier.waiting(), 0);
        common::eventually("both wait", || meeting.barrier.waiting() == 2);
        party.kill9();
        common::eventually("two fewer", || meeting.barrier.parties() == 1);
    }
}
