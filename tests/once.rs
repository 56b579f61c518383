//! `OnceCell` and `Once`: which thread makes the value, and what happens if it dies.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, ms, sleep_for_ever, thread_cpu, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use outlast::{Fault, Once, OnceCell, OnceError, Shared, Spin, TimeoutError};
use std::time::{Duration, Instant};

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Colour: u8 { Red = 1, Green = 2 }
}

outlast::shared! {
    #[derive(Debug)]
    struct Deed { value: OnceCell<[u64; 3]>, once: Once, colour: OnceCell<Colour>, runs: AtomicU32, step: AtomicU32 }
}

fn deed() -> Shared<Deed> {
    Shared::anonymous(Deed {
        value: OnceCell::new(),
        once: Once::new(),
        colour: OnceCell::new(),
        runs: AtomicU32::new(0),
        step: AtomicU32::new(0),
    })
    .unwrap()
}

#[test]
fn alone() {
    let deed = deed();
    let _watchdog = watch("alone", &deed);
    assert_eq!(deed.value.get(), Ok(None));
    assert!(!deed.value.is_completed());
    assert_eq!(deed.value.wait_timeout(Duration::ZERO), Err(TimeoutError::TimedOut));
    let began = Instant::now();
    assert_eq!(deed.value.wait_timeout(ms(20)), Err(TimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    let failed: Result<&[u64; 3], OnceError> =
        deed.value.get_or_try_init(|| Err(OnceError::Failed(Fault::Busy)));
    assert_eq!(failed, Err(OnceError::Failed(Fault::Busy)));
    assert_eq!(deed.value.set([1, 2, 3]), Ok(()));
    assert_eq!(deed.value.set([4, 5, 6]), Err([4, 5, 6]));
    assert_eq!(deed.value.get(), Ok(Some(&[1, 2, 3])));
    assert_eq!(deed.value.wait(), Ok(&[1, 2, 3]));
    assert_eq!(deed.value.wait_deadline(began), Ok(&[1, 2, 3]));
    assert_eq!(*deed.value.get_or_init(|| unreachable!()).unwrap(), [1, 2, 3]);
    deed.once
        .call_once(|| assert_eq!(deed.once.call_once(|| ()), Err(OnceError::WouldDeadlock)))
        .unwrap();
    deed.once.call_once(|| unreachable!()).unwrap();
}

/// While another thread makes the value, the forms that do not wait for it say so, and their
/// functions are not run.
#[test]
fn every_form_while_it_is_made() {
    let deed = deed();
    let _watchdog = watch("every_form_while_it_is_made", &deed);
    let other = deed.clone();
    let maker = std::thread::spawn(move || {
        let make = || {
            other.step.store(1, SeqCst);
            common::eventually("the others have tried", || other.step.load(SeqCst) == 2);
            [7; 3]
        };
        other.once.call_once(|| assert_eq!(other.value.get_or_init(make), Ok(&[7; 3]))).unwrap();
    });
    common::eventually("it is being made", || deed.step.load(SeqCst) == 1);
    let (value, once, past) = (&deed.value, &deed.once, Instant::now());
    let fail = || Err(OnceError::Failed(Fault::Busy));
    assert_eq!(value.try_get_or_init(|| unreachable!()), Err(OnceError::WouldBlock));
    assert_eq!(value.try_get_or_try_init(fail), Err(OnceError::WouldBlock));
    assert_eq!(once.try_call_once(|| unreachable!()), Err(OnceError::WouldBlock));
    assert_eq!(value.try_set([1; 3]), Err([1; 3]));
    for timeout in [Duration::ZERO, ms(20)] {
        let began = Instant::now();
        let late = Err(OnceError::TimedOut);
        assert_eq!(value.get_or_init_timeout(|| unreachable!(), timeout), late);
        assert_eq!(value.get_or_try_init_timeout(fail, timeout), late);
        assert_eq!(once.call_once_timeout(|| unreachable!(), timeout), Err(OnceError::TimedOut));
        assert_eq!(value.set_timeout([1; 3], timeout), Err([1; 3]));
        assert!(began.elapsed() >= 4 * timeout);
    }
    assert_eq!(value.get_or_init_deadline(|| unreachable!(), past), Err(OnceError::TimedOut));
    deed.step.store(2, SeqCst);
    assert_eq!(value.get_or_init_timeout(|| unreachable!(), common::PATIENCE), Ok(&[7; 3]));
    once.call_once_timeout(|| unreachable!(), common::PATIENCE).unwrap();
    maker.join().unwrap();
    // Once it is made, no form waits.
    assert_eq!(value.try_get_or_init(|| unreachable!()), Ok(&[7; 3]));
    assert_eq!(value.get_or_try_init_deadline(fail, past), Ok(&[7; 3]));
    assert_eq!(once.call_once_deadline(|| unreachable!(), past), Ok(()));
    assert_eq!(value.set_deadline([1; 3], past), Err([1; 3]));
}

/// One of many makes the value, and all see it whole.
#[test]
fn once_for_all() {
    worlds(
        "once_for_all",
        "",
        5,
        deed,
        |deed, i| {
            if i == 4 {
                assert_eq!(deed.value.wait().unwrap()[0], deed.value.wait().unwrap()[2]);
                return;
            }
            let mine = [i as u64; 3];
            let value = deed
                .value
                .get_or_init(|| {
                    deed.runs.fetch_add(1, SeqCst);
                    std::thread::sleep(ms(2));
                    mine
                })
                .unwrap();
            assert_eq!(value[0], value[2]);
            deed.once
                .call_once(|| {
                    deed.step.fetch_add(1, SeqCst);
                })
                .unwrap();
        },
        |deed| {
            assert_eq!(deed.runs.load(SeqCst), 1);
            assert_eq!(deed.step.load(SeqCst), 1);
        },
    );
}

/// An initialiser that is killed, or panics, leaves the work to the next.
#[test]
fn initialisers_that_fail() {
    let deed = deed();
    let _watchdog = watch("initialisers_that_fail", &deed);
    let first = fork_child(|| {
        deed.value
            .get_or_init(|| {
                deed.step.store(1, SeqCst);
                sleep_for_ever()
            })
            .unwrap();
    });
    common::eventually("it has begun", || deed.step.load(SeqCst) == 1);
    let others: Vec<_> = (0..3)
        .map(|_| {
            fork_child(|| {
                let value = deed.value.get_or_init(|| {
                    deed.runs.fetch_add(1, SeqCst);
                    [7; 3]
                });
                assert_eq!(value, Ok(&[7; 3]));
            })
        })
        .collect();
    let waiter = fork_child(|| assert_eq!(deed.value.wait(), Ok(&[7; 3])));
    others.iter().for_each(common::Child::until_waiting);
    waiter.until_waiting();
    first.kill9();
    others.into_iter().for_each(common::Child::succeeds);
    waiter.succeeds();
    assert_eq!(deed.runs.load(SeqCst), 1);

    let panicked = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
        deed.once.call_once(|| panic!("as planned"))
    }));
    assert!(panicked.is_err());
    assert!(!deed.once.is_completed());
    deed.once.call_once(|| ()).unwrap();
    assert!(deed.once.is_completed());
}

#[test]
fn bytes_that_are_no_value() {
    let deed = deed();
    let _watchdog = watch("bytes_that_are_no_value", &deed);
    deed.colour.set(Colour::Green).unwrap();
    let at = std::ptr::from_ref(deed.colour.get().unwrap().unwrap()).cast::<u8>().cast_mut();
    #[expect(unsafe_code, reason = "writes what no peer would")]
    // SAFETY: a byte of the segment, which no other thread uses.
    unsafe {
        at.write_volatile(9);
    }
    assert_eq!(deed.colour.get(), Err(Fault::Corrupt));
    assert_eq!(deed.colour.wait(), Err(Fault::Corrupt));
    assert!(matches!(
        deed.colour.get_or_init(|| Colour::Red),
        Err(OnceError::Failed(Fault::Corrupt))
    ));
}

/// A thread that waits for a value times out no earlier than it was told, whichever thread makes
/// the value.
#[test]
fn timeouts_everywhere() {
    worlds(
        "timeouts_everywhere",
        "",
        3,
        deed,
        |deed, i| {
            let value = &deed.value;
            let wait = || {
                let began = Instant::now();
                assert_eq!(value.wait_timeout(ms(30)), Err(TimeoutError::TimedOut));
                assert!(began.elapsed() >= ms(30));
                assert_eq!(value.wait_deadline(began), Err(TimeoutError::TimedOut));
                let end = Instant::now() + ms(20);
                assert_eq!(value.wait_deadline(end), Err(TimeoutError::TimedOut));
                assert!(Instant::now() >= end);
                deed.step.fetch_add(1, SeqCst);
            };
            if i == 0 {
                // While it is made, as well.
                let made = value.get_or_init(|| {
                    wait();
                    common::eventually("all have waited", || deed.step.load(SeqCst) == 3);
                    [5; 3]
                });
                assert_eq!(made, Ok(&[5; 3]));
            } else {
                wait();
            }
            assert_eq!(value.wait_timeout(Duration::MAX), Ok(&[5; 3]));
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            assert_eq!(value.wait_deadline(past), Ok(&[5; 3]), "even too late");
            assert_eq!(value.wait_timeout(Duration::ZERO), Ok(&[5; 3]));
        },
        |deed| assert_eq!(deed.value.get(), Ok(Some(&[5; 3]))),
    );
}

/// A thread that sees the value also sees what its maker wrote elsewhere, in all worlds, many
/// times.
#[test]
fn what_came_before_is_seen() {
    worlds(
        "what_came_before_is_seen",
        "",
        4,
        deed,
        |deed, _| {
            deed.once
                .call_once(|| {
                    deed.runs.store(deed.runs.load(Relaxed) + 1, Relaxed);
                })
                .unwrap();
            assert_eq!(deed.runs.load(Relaxed), 1);
            assert!(deed.once.is_completed());
        },
        |_| {},
    );
}

/// Signal handlers end neither the wait for a value nor that for the turn to make it; and neither
/// takes processor time.
#[test]
fn waiters_sleep_on() {
    let deed = deed();
    let _watchdog = watch("waiters_sleep_on", &deed);
    let maker = fork_child(|| {
        let made = deed.value.get_or_init(|| {
            deed.step.store(1, SeqCst);
            common::eventually("it may go on", || deed.step.load(SeqCst) == 2);
            [1; 3]
        });
        assert_eq!(made, Ok(&[1; 3]));
    });
    common::eventually("it has begun", || deed.step.load(SeqCst) == 1);
    let waiters: Vec<_> = [true, false]
        .iter()
        .map(|&makes| {
            fork_child(|| {
                common::catch_user_signals();
                Spin::Never.set();
                deed.runs.fetch_add(1, SeqCst);
                let value = match makes {
                    true => deed.value.get_or_init(|| unreachable!()).unwrap(),
                    false => deed.value.wait().unwrap(),
                };
                assert_eq!((value, deed.step.load(SeqCst)), (&[1; 3], 2));
                assert!(thread_cpu() < ms(100), "it has not slept: {:?}", thread_cpu());
            })
        })
        .collect();
    common::eventually("they come", || deed.runs.load(SeqCst) == 2);
    for _ in 0..30 {
        for waiter in &waiters {
            waiter.until_waiting();
            waiter.signal(libc::SIGUSR1);
        }
        std::thread::sleep(ms(3));
    }
    deed.step.store(2, SeqCst);
    maker.succeeds();
    waiters.into_iter().for_each(common::Child::succeeds);
}

/// Signals do not make a timeout later or earlier.
#[test]
fn signals_during_a_timeout() {
    let deed = deed();
    let _watchdog = watch("signals_during_a_timeout", &deed);
    let child = fork_child(|| {
        common::catch_user_signals();
        deed.step.store(1, SeqCst);
        let began = Instant::now();
        assert_eq!(deed.value.wait_timeout(ms(120)), Err(TimeoutError::TimedOut));
        assert!(began.elapsed() >= ms(120));
        deed.step.store(2, SeqCst);
    });
    common::eventually("it comes", || deed.step.load(SeqCst) >= 1);
    child.disturb_while(|| deed.step.load(SeqCst) == 1);
    child.succeeds();
}

/// A waiter that is killed, for the value or for the turn, takes no other waiter's wake with it.
#[test]
fn killed_waiters() {
    for round in 0..20 {
        let deed = deed();
        let _watchdog = watch(&format!("killed_waiters, round {round}"), &deed);
        let maker = fork_child(|| {
            deed.once
                .call_once(|| {
                    deed.step.store(1, SeqCst);
                    common::eventually("it may go on", || deed.step.load(SeqCst) == 2);
                })
                .unwrap();
        });
        common::eventually("it has begun", || deed.step.load(SeqCst) == 1);
        let mut waiters: Vec<_> = (0..4)
            .map(|i| {
                fork_child(|| match i % 2 {
                    0 => deed.once.call_once(|| unreachable!()).unwrap(),
                    _ => *deed.once.wait().unwrap(),
                })
            })
            .collect();
        waiters.iter().for_each(common::Child::until_waiting);
        let victim = waiters.swap_remove(round % 4);
        if round % 3 == 0 {
            victim.kill9();
            deed.step.store(2, SeqCst);
        } else {
            deed.step.store(2, SeqCst);
            common::busy(Duration::from_micros(20 * round as u64));
            victim.signal(libc::SIGKILL); // woken, or not, or through already
            assert!(matches!(victim.wait(), common::KILLED | common::OK));
        }
        maker.succeeds();
        waiters.into_iter().for_each(common::Child::succeeds);
    }
}

/// However often an initialiser is killed, and wherever: one comes to its end, and its value is
/// whole.
#[test]
fn kills_without_end() {
    let mut random = common::Random::new(7);
    for round in 0..60 {
        let deed = deed();
        let _watchdog = watch(&format!("kills_without_end, round {round}"), &deed);
        let mut makers: Vec<_> = (1..5)
            .map(|i| {
                fork_child(|| {
                    let deed = &deed;
                    let value = deed.value.get_or_init(|| {
                        common::busy(Duration::from_micros(400));
                        [i; 3]
                    });
                    let &[a, b, c] = value.unwrap();
                    assert!(a == b && b == c && (1..5).contains(&a));
                })
            })
            .collect();
        for _ in 0..2 {
            common::busy(random.micros(1_500));
            let victim = makers.swap_remove(random.index(makers.len()));
            victim.signal(libc::SIGKILL);
            assert!(matches!(victim.wait(), common::KILLED | common::OK));
        }
        makers.into_iter().for_each(common::Child::succeeds);
        let &[a, b, c] = deed.value.get().unwrap().expect("it has been made");
        assert!(a == b && b == c);
    }
}

/// An initialiser whose process or thread ends by itself, in the middle, leaves the work to the
/// next.
#[test]
fn initialisers_that_end() {
    let deed = deed();
    let _watchdog = watch("initialisers_that_end", &deed);
    let ends = fork_child(|| {
        deed.once.call_once(|| std::process::exit(0)).unwrap();
    });
    ends.succeeds();
    assert!(!deed.once.is_completed());
    deed.once.call_once(|| ()).unwrap();

    let leaves = fork_child(|| {
        deed.value.get_or_init(|| common::exit_now(3)).unwrap();
    });
    assert_eq!(leaves.wait(), common::Exit::Code(3));
    std::thread::scope(|scope| {
        let deed = &deed;
        let panics = scope.spawn(move || deed.value.get_or_init(|| panic!("as planned")).is_ok());
        assert!(panics.join().is_err());
    });
    assert_eq!(deed.value.get(), Ok(None));
    assert_eq!(deed.value.set([3; 3]), Ok(()));
}

/// An initialiser that forks has one turn, and that is the parent's: what the child makes is not
/// the value.
#[test]
fn an_initialiser_that_forks() {
    let deed = deed();
    let _watchdog = watch("an_initialiser_that_forks", &deed);
    let maker = fork_child(|| {
        let parent = std::process::id();
        let mut child = 0;
        let made = deed.value.get_or_init(|| {
            #[expect(unsafe_code, reason = "a fork from which both return")]
            // SAFETY: takes nothing, and this process has one thread.
            let pid = unsafe { libc::fork() };
            child = pid;
            if pid == 0 {
                return [6; 3];
            }
            common::eventually("the child has tried", || deed.step.load(SeqCst) == 1);
            [5; 3]
        });
        if std::process::id() != parent {
            assert_eq!(made, Err(OnceError::Failed(Fault::Forked)));
            assert_eq!(deed.value.get(), Ok(None));
            deed.step.store(1, SeqCst);
            assert_eq!(deed.value.wait(), Ok(&[5; 3]));
            deed.runs.fetch_add(1, SeqCst);
            return;
        }
        assert_eq!(made, Ok(&[5; 3]));
        common::eventually("the child sees it", || deed.runs.load(SeqCst) == 1);
    });
    maker.succeeds();
    assert_eq!(deed.value.get(), Ok(Some(&[5; 3])));

    // A child that is forked in the middle, and ends, does not end its parent's turn.
    deed.once
        .call_once(|| {
            fork_child(|| assert!(!deed.once.is_completed())).succeeds();
            assert!(!deed.once.is_completed());
            let other = fork_child(|| deed.once.call_once(|| unreachable!()).unwrap());
            other.until_waiting();
            drop(other);
        })
        .unwrap();
}

/// A turn inside a turn of the same cell is reported. A turn of another cell is taken.
#[test]
fn turns_in_turns() {
    let deed = deed();
    let _watchdog = watch("turns_in_turns", &deed);
    let made = deed.value.get_or_init(|| {
        assert_eq!(
            deed.value.get_or_init(|| unreachable!()).unwrap_err(),
            OnceError::WouldDeadlock
        );
        assert_eq!(deed.value.set([9; 3]), Err([9; 3]));
        deed.once.call_once(|| ()).unwrap();
        assert_eq!(deed.value.wait_timeout(ms(5)), Err(TimeoutError::TimedOut));
        [1, 2, 3]
    });
    assert_eq!(made, Ok(&[1, 2, 3]));
    assert!(deed.once.is_completed());
}

#[test]
fn outside_of_shared_memory() {
    let cell = OnceCell::<u64>::new();
    assert_eq!(cell.get(), Ok(None));
    assert_eq!(cell.wait_timeout(ms(1)), Err(TimeoutError::TimedOut));
    let made =
        std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| cell.get_or_init(|| 1).is_ok()));
    assert!(made.is_err(), "the maker's death would not be noticed");
}

/// Whatever the memory holds, calls that have a deadline end, and nothing panics.
#[test]
fn arbitrary_bytes() {
    let mut random = common::Random::new(9);
    for round in 0..300 {
        let deed = deed();
        let _watchdog = watch(&format!("arbitrary_bytes, round {round}"), &deed);
        let size = size_of::<OnceCell<Colour>>();
        if round % 2 == 0 {
            deed.colour.set(Colour::Green).unwrap();
        }
        if cfg!(not(outlast_pthread)) {
            let at = random.index(size);
            let bytes = random.bytes(size);
            common::scribble(&deed.colour, at, &bytes[..1 + random.index(size - at)]);
        } else {
            // (The robust word holds objects of the C library's.)
            common::scribble(&deed.colour, size - 8, &random.bytes(8));
        }
        drop(format!("{deed:?}"));
        let sane = |value: Result<Option<&Colour>, Fault>| match value {
            Ok(Some(colour)) => assert!(matches!(colour, Colour::Red | Colour::Green)),
            Ok(None) | Err(Fault::Corrupt) => {}
            Err(other) => panic!("{other}"),
        };
        sane(deed.colour.get());
        for value in [deed.colour.wait_timeout(ms(1)), deed.colour.wait_deadline(Instant::now())] {
            match value {
                Err(TimeoutError::TimedOut) => {}
                Err(TimeoutError::Failed(fault)) => sane(Err(fault)),
                value => sane(Ok(value.ok())),
            }
        }
        core::hint::black_box(deed.colour.is_completed());
        // The turn also comes with a word that no living thread owns. (A wait for a living owner
        // goes on.)
        if cfg!(not(outlast_pthread)) {
            for word in [0, 1 << 30, 1 << 31, 3 << 30, (1 << 30) - 1, u32::MAX] {
                common::scribble(&deed.colour, 0, &u32::to_ne_bytes(word));
                sane(deed.colour.get_or_init(|| Colour::Red).map(Some).map_err(|error| {
                    assert_eq!(error, OnceError::Failed(Fault::Corrupt));
                    Fault::Corrupt
                }));
            }
        }
    }
}

/// A value that comes without a wake is had once the deadline has passed.
#[cfg(not(outlast_pthread))] // which lays the words out where this test writes
#[test]
fn a_last_look_after_the_deadline() {
    let cell = Shared::anonymous(OnceCell::<u64>::new()).unwrap();
    let _watchdog = watch("a_last_look_after_the_deadline", &cell);
    let sleeper = fork_child(|| {
        let value = cell.wait_timeout(Duration::from_secs(2)).unwrap();
        assert_eq!(value, &0, "no look after the deadline");
    });
    sleeper.until_waiting();
    std::thread::sleep(ms(100));
    common::scribble(&*cell, 40, &3_u32.to_ne_bytes()); // the value is there, and waiters may be
    sleeper.succeeds();
}
