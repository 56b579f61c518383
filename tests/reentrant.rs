//! `ReentrantLock`: levels, exclusion, time, deaths, panics, forks and damaged memory.
#![cfg(not(outlast_loom))]
mod common;

use common::{Random, Stage, busy, fork_child, ms, sleep_for_ever, watch, worlds};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{
    Fault, Lock, LockError, PoisonCause, ReentrantLock, ReentrantLockGuard, Shareable, Shared, Spin,
};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Counter { lock: ReentrantLock<[u64; 2]>, inside: AtomicU32, step: AtomicU32 }
}

fn counter() -> Shared<Counter> {
    let (inside, step) = (AtomicU32::new(0), AtomicU32::new(0));
    Shared::anonymous(Counter { lock: ReentrantLock::new([0; 2]), inside, step }).unwrap()
}

/// Whether a thread that holds nothing can have the lock now.
fn is_free<T: outlast::Plain>(lock: &ReentrantLock<T>) -> bool {
    std::thread::scope(|scope| {
        let free = || !matches!(lock.try_lock(), Err(LockError::WouldBlock));
        scope.spawn(free).join().unwrap()
    })
}

fn from_the_dead<T: outlast::Plain>(lock: &ReentrantLock<T>) -> ReentrantLockGuard<'_, T> {
    match lock.lock_timeout(common::PATIENCE) {
        Err(LockError::OwnerDied(guard)) => guard,
        other => panic!("{other:?}", other = other.map(|_| "taken")),
    }
}

// -------------------------------------------------------------------------------------- levels

/// What CPython's `test.lock_tests.RLockTests` asks of one thread.
#[test]
fn levels() {
    let shared = counter();
    let _watchdog = watch("levels", &shared);
    let lock = &shared.lock;
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut guards = [
            Some(lock.lock().unwrap()),
            Some(lock.try_lock().unwrap()),
            Some(lock.lock_timeout(Duration::ZERO).unwrap()),
            Some(lock.lock_deadline(Instant::now()).unwrap()),
        ];
        for (gone, i) in order.into_iter().enumerate() {
            let depth = 4 - u32::try_from(gone).unwrap();
            assert!(guards.iter().flatten().all(|guard| guard.depth() == depth));
            assert!(!is_free(lock), "given up at depth {depth}");
            guards[i] = None;
        }
        assert!(is_free(lock));
    }
    assert_eq!(lock.lock().unwrap().depth(), 1);
}

/// What one guard writes, the others of the thread read.
#[test]
fn the_value_is_copied() {
    let shared = Shared::anonymous(ReentrantLock::new(1_u64)).unwrap();
    let _watchdog = watch("the_value_is_copied", &shared);
    let (outer, inner) = (shared.lock().unwrap(), shared.lock().unwrap());
    inner.set(7);
    assert_eq!(outer.get(), 7);
    assert_eq!(outer.update(|value| value + 1), 8);
    assert_eq!(inner.get(), 8);
    // One that changes the value within is overwritten, and harms nothing.
    let changed = outer.update(|value| {
        shared.lock().unwrap().set(100);
        assert_eq!(inner.get(), 100);
        value + 1
    });
    assert_eq!((changed, inner.get()), (9, 9));
    assert_eq!((format!("{outer}"), format!("{inner:?}")), ("9".into(), "9".into()));
    assert!(format!("{:?}", *shared).contains("depth: 2"), "{:?}", *shared);
}

#[test]
fn a_forgotten_level_keeps_the_lock() {
    let shared = counter();
    let _watchdog = watch("a_forgotten_level_keeps_the_lock", &shared);
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                core::mem::forget(shared.lock.lock().unwrap());
                drop(shared.lock.lock().unwrap());
                assert!(!is_free(&shared.lock));
            })
            .join()
            .unwrap();
    });
    // Until the thread ends.
    assert_eq!(from_the_dead(&shared.lock).depth(), 1);
}

/// Where the depth lies in the segment's file, and the file.
#[cfg(not(outlast_pthread))]
fn depth_in_file(shared: &Shared<ReentrantLock<u64>>) -> (std::fs::File, u64) {
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut value_at = [0; 8];
    file.read_exact_at(&mut value_at, 104).unwrap(); // see the header's table
    // Word, idle, poison, depth.
    (file, u64::from_ne_bytes(value_at) + 12)
}

#[cfg(not(outlast_pthread))] // which lays the depth out where this test writes
#[test]
fn too_many_levels() {
    let shared = Shared::anonymous(ReentrantLock::new(5_u64)).unwrap();
    let _watchdog = watch("too_many_levels", &shared);
    let (file, depth_at) = depth_in_file(&shared);
    let guard = shared.lock().unwrap();
    file.write_all_at(&u32::MAX.to_ne_bytes(), depth_at).unwrap();
    assert_eq!(guard.depth(), u32::MAX, "the depth lies elsewhere");
    for _ in 0..2 {
        assert!(matches!(shared.lock(), Err(LockError::Failed(Fault::TooDeep))));
        assert!(matches!(shared.try_lock(), Err(LockError::Failed(Fault::TooDeep))));
    }
    assert!(!is_free(&shared));
    file.write_all_at(&1_u32.to_ne_bytes(), depth_at).unwrap();
    drop(guard);
    assert!(is_free(&shared));
}

/// Whatever a broken peer writes there, the lock can be released and acquired again.
#[cfg(not(outlast_pthread))] // which lays the depth out where this test writes
#[test]
fn a_depth_that_is_damaged() {
    let shared = Shared::anonymous(ReentrantLock::new(5_u64)).unwrap();
    let _watchdog = watch("a_depth_that_is_damaged", &shared);
    let (file, depth_at) = depth_in_file(&shared);
    for bad in [0, 1, 7, u32::MAX] {
        file.write_all_at(&bad.to_ne_bytes(), depth_at).unwrap();
        let outer = shared.lock().unwrap();
        assert_eq!(outer.depth(), 1, "a fresh taking counts from 1");
        let inner = shared.lock().unwrap();
        file.write_all_at(&0_u32.to_ne_bytes(), depth_at).unwrap();
        drop(inner);
        assert!(is_free(&shared));
        // The other guard has nothing any more, and says so.
        assert!(std::panic::catch_unwind(AssertUnwindSafe(|| outer.get())).is_err());
        assert!(std::panic::catch_unwind(AssertUnwindSafe(|| outer.set(1))).is_err());
        assert_eq!((outer.depth(), format!("{outer:?}")), (0, "<not held>".into()));
        drop(outer);
        assert!(is_free(&shared));
        assert_eq!(shared.lock().unwrap().get(), 5);
    }
}

/// A level is counted only through the mapping through which the lock was taken.
#[test]
fn through_another_mapping() {
    let here = counter();
    let _watchdog = watch("through_another_mapping", &here);
    let there = Shared::<Counter>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    for (one, other) in [(&here.lock, &there.lock), (&there.lock, &here.lock)] {
        let outer = one.lock().unwrap();
        for nested in [false, true] {
            let inner = nested.then(|| one.lock().unwrap());
            assert!(matches!(other.lock(), Err(LockError::WouldDeadlock)));
            assert!(matches!(other.try_lock(), Err(LockError::WouldDeadlock)));
            assert!(matches!(other.lock_timeout(ms(1)), Err(LockError::WouldDeadlock)));
            assert_eq!(outer.depth(), 1 + u32::from(nested));
            drop(inner);
        }
        assert!(!is_free(other));
        drop(outer);
        assert!(is_free(one));
    }
    drop(there.lock.lock().unwrap());
    drop(here.lock.lock().unwrap());
}

/// A broken peer has freed a guard's lock. The guard does not release the lock that the same thread
/// acquired later through another mapping.
#[cfg(not(outlast_pthread))] // which lays the depth out where this test writes
#[test]
fn a_freed_guard_leaves_another_mapping_alone() {
    let here = Shared::anonymous(ReentrantLock::new(5_u64)).unwrap();
    let _watchdog = watch("a_freed_guard_leaves_another_mapping_alone", &here);
    let there = Shared::<ReentrantLock<u64>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let (file, depth_at) = depth_in_file(&here);
    let (outer, inner) = (here.lock().unwrap(), here.lock().unwrap());
    file.write_all_at(&0_u32.to_ne_bytes(), depth_at).unwrap();
    drop(inner);
    assert!(is_free(&here));
    let guard = there.lock().unwrap();
    drop(outer);
    assert!(!is_free(&here), "given up through a mapping through which it was not taken");
    drop(guard);
    assert!(is_free(&here));
}

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Colour: u8 { Red = 1, Green = 2 }
}

#[test]
fn bits_that_are_no_value() {
    let shared = Shared::anonymous(ReentrantLock::new(Colour::Green)).unwrap();
    let _watchdog = watch("bits_that_are_no_value", &shared);
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut value_at = [0; 8];
    file.read_exact_at(&mut value_at, 104).unwrap();
    let in_lock = <Lock<Colour> as Shareable>::layout().fields[0].offset;
    let value_at = u64::from_ne_bytes(value_at) + in_lock as u64;
    file.write_all_at(&[9], value_at).unwrap();
    assert!(matches!(shared.lock(), Err(LockError::Failed(Fault::Corrupt))));
    assert!(is_free(&shared));
    file.write_all_at(&[1], value_at).unwrap();
    assert_eq!(shared.lock().unwrap().get(), Colour::Red);
}

// ----------------------------------------------------------------------------------- exclusion

const ROUNDS: u64 = 1_000;

#[test]
fn exclusion() {
    for (case, spin) in [("adaptive", Spin::Adaptive), ("asleep", Spin::Never)] {
        worlds(
            "exclusion",
            case,
            4,
            counter,
            |shared, role| {
                spin.set();
                let mut random = Random::new(role as u64);
                for _ in 0..ROUNDS {
                    let outer = shared.lock.lock().unwrap();
                    assert_eq!(shared.inside.swap(1, SeqCst), 0, "another thread is inside");
                    let deep = random.below(4);
                    let levels: Vec<_> = (0..deep).map(|_| shared.lock.lock().unwrap()).collect();
                    assert_eq!(u64::from(outer.depth()), deep + 1);
                    outer.update(|[a, b]| [a + 1, b]);
                    if random.below(8) == 0 {
                        busy(random.micros(20));
                    }
                    outer.update(|[a, b]| [a, b + 1]);
                    assert_eq!(outer.get()[0], outer.get()[1]);
                    assert_eq!(shared.inside.swap(0, SeqCst), 1);
                    if random.below(2) == 0 {
                        drop(outer);
                    }
                    drop(levels);
                }
            },
            |shared| assert_eq!(shared.lock.lock().unwrap().get(), [4 * ROUNDS; 2]),
        );
    }
}

#[test]
fn times() {
    worlds(
        "times",
        "",
        2,
        counter,
        |shared, role| {
            let (lock, step) = (&shared.lock, &shared.step);
            if role == 0 {
                let outer = lock.lock().unwrap();
                let inner = lock.lock().unwrap();
                step.reach(1);
                step.until(2);
                drop(outer);
                step.reach(3);
                step.until(4); // one level is not enough
                drop(inner);
                step.reach(5);
                return;
            }
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            for stage in [1, 3] {
                step.until(stage);
                assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
                for wait in [0, 1, 40] {
                    let began = Instant::now();
                    assert!(matches!(lock.lock_timeout(ms(wait)), Err(LockError::TimedOut(_))));
                    assert!(began.elapsed() >= ms(wait), "too early: {:?}", began.elapsed());
                    let at = Instant::now() + ms(wait);
                    assert!(matches!(lock.lock_deadline(at), Err(LockError::TimedOut(_))));
                    assert!(Instant::now() >= at, "too early");
                }
                assert!(matches!(lock.lock_deadline(past), Err(LockError::TimedOut(_))));
                step.reach(stage + 1);
            }
            step.until(5);
            drop(lock.lock_deadline(past).unwrap());
            drop(lock.lock_timeout(Duration::MAX).unwrap());
        },
        |_| {},
    );
}

// -------------------------------------------------------------------------------------- deaths

#[test]
fn a_dead_owners_levels_are_forgotten() {
    let shared = counter();
    let _watchdog = watch("a_dead_owners_levels_are_forgotten", &shared);
    for round in 1..=20 {
        let owner = fork_child(|| {
            let outer = shared.lock.lock().unwrap();
            core::mem::forget([shared.lock.lock().unwrap(), shared.lock.lock().unwrap()]);
            outer.set([round, 0]);
            shared.step.reach(u32::try_from(round).unwrap());
            sleep_for_ever();
        });
        shared.step.until(u32::try_from(round).unwrap());
        let sleeper = fork_child(|| {
            let guard = from_the_dead(&shared.lock);
            assert_eq!((guard.depth(), guard.get()), (1, [round, 0]));
            // Reported at every level, until it is marked consistent.
            let again = from_the_dead(&shared.lock);
            assert_eq!(again.depth(), 2);
            assert_eq!(shared.lock.poison_cause(), Some(PoisonCause::OwnerDied));
            again.set([round, round]);
            again.mark_consistent();
            assert_eq!(shared.lock.lock().unwrap().depth(), 3);
        });
        sleeper.until_waiting();
        owner.kill9();
        sleeper.succeeds();
        assert!(!shared.lock.is_poisoned());
        assert_eq!(shared.lock.lock().unwrap().get(), [round, round]);
    }
}

#[test]
fn a_panic_poisons() {
    let shared = counter();
    let _watchdog = watch("a_panic_poisons", &shared);
    for deep in [false, true] {
        let outer = deep.then(|| shared.lock.lock().unwrap());
        let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let _guard = shared.lock.lock().unwrap();
            std::panic::resume_unwind(Box::new("a panic without a message"));
        }));
        assert!(panicked.is_err());
        assert_eq!(outer.as_ref().map(ReentrantLockGuard::depth), deep.then_some(1));
        assert_eq!(shared.lock.poison_cause(), Some(PoisonCause::Panicked));
        match shared.lock.lock() {
            Err(LockError::Poisoned(guard)) => guard.mark_consistent(),
            other => panic!("{other:?}"),
        }
        drop(outer);
        drop(shared.lock.lock().unwrap());
    }
}

// ---------------------------------------------------------------------------------------- fork

#[test]
fn a_guard_copied_by_fork_is_inert() {
    common::in_own_process("a_guard_copied_by_fork_is_inert", || {
        let shared = counter();
        let _watchdog = watch("a_guard_copied_by_fork", &shared);
        let mut guards = [Some(shared.lock.lock().unwrap()), Some(shared.lock.lock().unwrap())];
        for panics in [false, true] {
            fork_child(|| {
                let guard = guards[0].take().unwrap();
                assert_eq!(guard.depth(), 0);
                guard.mark_consistent();
                for result in [
                    std::panic::catch_unwind(AssertUnwindSafe(|| _ = guard.get())),
                    std::panic::catch_unwind(AssertUnwindSafe(|| guard.set([9; 2]))),
                ] {
                    assert!(result.is_err(), "it acts on the parent's lock");
                }
                if panics {
                    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
                        let _guard = guard;
                        std::panic::resume_unwind(Box::new("a panic without a message"));
                    }));
                    assert!(panicked.is_err());
                } else {
                    drop(guard);
                }
                guards = [None, None];
                assert!(matches!(shared.lock.try_lock(), Err(LockError::WouldBlock)));
                assert!(matches!(shared.lock.lock_timeout(ms(10)), Err(LockError::TimedOut(_))));
            })
            .succeeds();
            let outer = guards[0].as_ref().unwrap();
            assert_eq!((outer.depth(), outer.get()), (2, [0; 2]));
            assert!(!is_free(&shared.lock));
            assert_eq!(shared.lock.poison_cause(), None);
        }
        guards[0] = None;
        assert!(!is_free(&shared.lock));
        guards[1] = None;
        assert!(is_free(&shared.lock));
    });
}

// -------------------------------------------------------------------------------------- places

#[test]
fn outside_of_shared_memory_it_panics() {
    let lock = ReentrantLock::new(1_u64);
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(lock.lock()))).is_err());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(lock.try_lock()))).is_err());
}

#[test]
fn before_it_is_shared() {
    let mut lock = ReentrantLock::new(1_u64);
    *lock.get_mut() += 1;
    let shared = Shared::anonymous(lock).unwrap();
    assert_eq!(shared.lock().unwrap().get(), 2);
}

/// A signal handler does not end a wait, and a waiter takes no processor's time.
#[test]
fn a_waiter_sleeps_on() {
    let shared = counter();
    let _watchdog = watch("a_waiter_sleeps_on", &shared);
    let outer = shared.lock.lock().unwrap();
    let inner = shared.lock.lock().unwrap();
    let child = fork_child(|| {
        common::catch_user_signals();
        Spin::Never.set();
        shared.step.reach(1);
        assert_eq!(shared.lock.lock().unwrap().depth(), 1);
        assert_eq!(shared.step.load(SeqCst), 2, "a signal has ended the wait");
        assert!(common::thread_cpu() < ms(100), "it has not slept: {:?}", common::thread_cpu());
    });
    shared.step.until(1);
    child.disturb_asleep(25, ms(3));
    drop(inner); // which gives nothing up
    child.disturb_asleep(25, ms(3));
    shared.step.reach(2);
    drop(outer);
    child.succeeds();
}
