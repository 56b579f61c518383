//! `Lock`: exclusion, time, deaths, panics and limits, in threads and in processes.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "robust mutexes of the C library, to be mixed with our locks")]
mod common;

#[cfg(outlast_hooks)]
use common::Child;
use common::{
    Exit, OK, Random, Stage, busy, fork_child, ms, sleep_for_ever, until_waiting, watch,
    watch_alone, worlds,
};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{Fault, Lock, LockError, LockGuard, PoisonCause, Shareable, Shared, Spin};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Counter { lock: Lock<[u64; 2]>, inside: AtomicU32, step: AtomicU32 }
}

fn counter() -> Shared<Counter> {
    let (inside, step) = (AtomicU32::new(0), AtomicU32::new(0));
    Shared::anonymous(Counter { lock: Lock::new([0; 2]), inside, step }).unwrap()
}

/// Whether a thread that holds nothing can have the lock now.
fn is_free<T: outlast::Plain>(lock: &Lock<T>) -> bool {
    std::thread::scope(|scope| {
        scope.spawn(|| !matches!(lock.try_lock(), Err(LockError::WouldBlock))).join().unwrap()
    })
}

// ----------------------------------------------------------------------------------- exclusion

const ROUNDS: u64 = 1_500;

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
                for i in 0..ROUNDS {
                    let mut guard = match i % 4 {
                        0 => shared.lock.lock().unwrap(),
                        1 => shared.lock.lock_timeout(Duration::MAX).unwrap(),
                        2 => shared.lock.lock_deadline(Instant::now() + ms(60_000)).unwrap(),
                        _ => loop {
                            match shared.lock.try_lock() {
                                Ok(guard) => break guard,
                                Err(LockError::WouldBlock) => std::thread::yield_now(),
                                Err(error) => panic!("{error}"),
                            }
                        },
                    };
                    assert_eq!(shared.inside.swap(1, SeqCst), 0, "another thread is inside");
                    guard[0] += 1;
                    if random.below(8) == 0 {
                        busy(random.micros(20));
                    }
                    guard[1] += 1;
                    assert_eq!(guard[0], guard[1]);
                    assert_eq!(shared.inside.swap(0, SeqCst), 1);
                }
            },
            |shared| assert_eq!(*shared.lock.lock().unwrap(), [4 * ROUNDS; 2]),
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
                let guard = lock.lock().unwrap();
                step.reach(1);
                step.until(2);
                drop(guard);
                step.reach(3);
                // And once more, for one who waits long enough.
                step.until(4);
                let guard = lock.lock().unwrap();
                step.reach(5);
                std::thread::sleep(ms(60));
                drop(guard);
                return;
            }
            step.until(1);
            assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
            for wait in [0, 1, 70] {
                let began = Instant::now();
                assert!(matches!(lock.lock_timeout(ms(wait)), Err(LockError::TimedOut(_))));
                assert!(began.elapsed() >= ms(wait), "too early: {:?}", began.elapsed());
                let at = Instant::now() + ms(wait);
                assert!(matches!(lock.lock_deadline(at), Err(LockError::TimedOut(_))));
                assert!(Instant::now() >= at, "too early");
            }
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            assert!(matches!(lock.lock_deadline(past), Err(LockError::TimedOut(_))));
            step.reach(2);
            step.until(3);
            // A free lock is taken, however late it is.
            drop(lock.try_lock().unwrap());
            drop(lock.lock_timeout(Duration::ZERO).unwrap());
            drop(lock.lock_deadline(past).unwrap());
            step.reach(4);
            step.until(5);
            drop(lock.lock_timeout(Duration::from_secs(u64::MAX)).unwrap());
        },
        |shared| assert!(!shared.lock.is_poisoned()),
    );
}

#[test]
fn a_waiter_sleeps() {
    let shared = counter();
    let _watchdog = watch("a_waiter_sleeps", &shared);
    let guard = shared.lock.lock().unwrap();
    let child = fork_child(|| {
        let before = common::thread_cpu();
        assert!(matches!(shared.lock.lock_timeout(ms(300)), Err(LockError::TimedOut(_))));
        let used = common::thread_cpu() - before;
        assert!(used < ms(20), "waiting used {used:?} of CPU");
    });
    let (exit, used) = child.wait_with_cpu();
    assert_eq!(exit, OK);
    assert!(used < ms(150), "the child used {used:?}");
    drop(guard);
}

/// Frees the lock in a way that no waiter is told of, as if the owner's look at the waiters had
/// come before its store. Only this backend has the word where the test writes.
#[cfg(all(not(outlast_pthread), not(outlast_hooks)))]
fn free_silently<T: outlast::Plain>(lock: &Lock<T>, guard: LockGuard<'_, T>) {
    core::mem::forget(guard);
    common::scribble(lock, 0, &[0; 4]);
}

/// A waiter that the owner did not see, as fences between CPUs may fail, looks once more after a
/// moment.
#[cfg(all(not(outlast_pthread), not(outlast_hooks)))] // where the look is on
#[test]
fn a_second_look_soon_after_the_first() {
    common::in_own_process("a_second_look_soon_after_the_first", || {
        // Held up by other processes, the test comes too late for the look, and tries again.
        let found = (0..50).any(|_| {
            let shared = counter();
            let _watchdog = watch("a_second_look_soon_after_the_first", &shared);
            let guard = shared.lock.lock().unwrap();
            let sleeper = fork_child(|| {
                Spin::Never.set();
                let asleep = Instant::now();
                let taken = shared.lock.lock_timeout(Duration::from_secs(1));
                assert!(taken.is_ok(), "not even at the end");
                common::exit_now(i32::from(asleep.elapsed() > ms(500)));
            });
            sleeper.until_waiting();
            free_silently(&shared.lock, guard);
            sleeper.wait() == OK
        });
        assert!(found, "no waiter looked before its deadline");
    });
}

/// An owner finds no sleeper. Before it notes that, others fall asleep, and count on being woken.
/// It wakes them all.
#[cfg(all(not(outlast_pthread), outlast_hooks))]
#[test]
fn an_owner_that_disarms_the_word_wakes_everybody() {
    use outlast::hooks::{Action, plan};
    let shared = counter();
    let _watchdog = watch("an_owner_that_disarms_the_word_wakes_everybody", &shared);
    let (lock, step) = (&shared.lock, &shared.step);
    let owner = fork_child(|| {
        let guard = lock.lock().unwrap();
        step.reach(1);
        step.until(2);
        plan("robust word: found nobody asleep, not disarmed yet", Action::Stop);
        drop(guard);
    });
    step.until(1);
    // The word stays armed.
    assert!(matches!(lock.lock_timeout(ms(50)), Err(LockError::TimedOut(_))));
    step.reach(2);
    owner.until_stopped();
    let guard = lock.lock().unwrap();
    let sleepers = [(); 2].map(|()| {
        let sleeper = fork_child(|| {
            plan("wait: back from its sleep", Action::Stop);
            drop(lock.lock().unwrap());
        });
        sleeper.until_waiting();
        sleeper
    });
    std::thread::sleep(ms(30));
    owner.signal(libc::SIGCONT);
    owner.succeeds();
    sleepers.iter().for_each(Child::until_stopped);
    drop(guard); // wakes no thread: the word is disarmed
    for sleeper in sleepers {
        sleeper.signal(libc::SIGCONT);
        sleeper.succeeds();
    }
}

#[test]
fn signals_do_not_end_a_wait() {
    let shared = counter();
    let _watchdog = watch("signals_do_not_end_a_wait", &shared);
    let guard = shared.lock.lock().unwrap();
    let child = fork_child(|| {
        catch_user_signal();
        shared.step.reach(1);
        let began = Instant::now();
        assert!(matches!(shared.lock.lock_timeout(ms(200)), Err(LockError::TimedOut(_))));
        assert!(began.elapsed() >= ms(200));
        assert!(CAUGHT.load(SeqCst) > 0, "no signal came");
        shared.step.reach(2);
        drop(shared.lock.lock().unwrap());
        assert!(began.elapsed() >= ms(200));
    });
    shared.step.until(1);
    child.disturb_while(|| shared.step.load(SeqCst) == 1);
    for _ in 0..10 {
        child.signal(libc::SIGUSR1);
        std::thread::sleep(ms(1));
    }
    drop(guard);
    child.succeeds();
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);

fn catch_user_signal() {
    extern "C" fn caught(_: i32) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    common::handle(libc::SIGUSR1, caught);
}

// -------------------------------------------------------------------------------------- deaths

/// The guard inside `OwnerDied`.
#[track_caller]
fn from_the_dead<T: outlast::Plain>(lock: &Lock<T>) -> LockGuard<'_, T> {
    match lock.lock_timeout(common::PATIENCE) {
        Err(LockError::OwnerDied(guard)) => guard,
        Ok(_) => panic!("the death was not told"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_killed_owner_wakes_the_sleepers_one_after_the_other() {
    for second_mapping in [false, true] {
        let shared = counter();
        let _watchdog = watch("a_killed_owner_wakes_the_sleepers", &shared);
        let in_child = || {
            if second_mapping {
                return Shared::from_fd(shared.try_clone_fd().unwrap()).unwrap();
            }
            shared.clone()
        };
        let owner = fork_child(|| {
            let shared = in_child();
            let mut guard = shared.lock.lock().unwrap();
            guard[0] = 7;
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        let sleepers: Vec<_> = (0..3)
            .map(|_| {
                let sleeper = fork_child(|| {
                    let guard = from_the_dead(&in_child().lock)[0];
                    assert_eq!(guard, 7);
                });
                sleeper.until_waiting();
                sleeper
            })
            .collect();
        owner.kill9();
        sleepers.into_iter().for_each(common::Child::succeeds);

        // It stays poisoned for all threads until one of them marks it consistent.
        let lock = &shared.lock;
        assert!(lock.is_poisoned());
        assert_eq!(lock.poison_cause(), Some(PoisonCause::OwnerDied));
        for _ in 0..2 {
            assert_eq!(from_the_dead(lock)[0], 7);
        }
        match lock.try_lock() {
            Err(error @ LockError::OwnerDied(_)) => {
                assert_eq!(error.cause(), Some(PoisonCause::OwnerDied));
                let mut guard = error.into_guard().unwrap();
                guard[1] = 7;
                LockGuard::mark_consistent(&mut guard);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(*lock.lock().unwrap(), [7, 7]);
        assert!(!lock.is_poisoned());
    }
}

#[test]
fn poison_shows_before_anybody_has_taken_the_lock() {
    let shared = counter();
    let _watchdog = watch("poison_shows", &shared);
    let owner = fork_child(|| {
        core::mem::forget(shared.lock.lock());
        shared.step.reach(1);
        sleep_for_ever();
    });
    shared.step.until(1);
    assert_eq!(shared.lock.poison_cause(), None);
    owner.kill9();
    assert_eq!(shared.lock.poison_cause(), Some(PoisonCause::OwnerDied));
    drop(from_the_dead(&shared.lock));
    shared.lock.clear_poison();
    assert_eq!(shared.lock.poison_cause(), None);
    drop(shared.lock.lock().unwrap());
}

/// The next owner dies before it could declare the value sound: the one after it still learns of
/// it.
#[test]
fn deaths_in_a_row() {
    let shared = counter();
    let _watchdog = watch("deaths_in_a_row", &shared);
    for i in 0..5 {
        let owner = fork_child(|| {
            let guard =
                if i == 0 { shared.lock.lock().unwrap() } else { from_the_dead(&shared.lock) };
            core::mem::forget(guard);
            shared.step.reach(i + 1);
            sleep_for_ever();
        });
        shared.step.until(i + 1);
        owner.kill9();
    }
    LockGuard::mark_consistent(&mut from_the_dead(&shared.lock));
    drop(shared.lock.lock().unwrap());
}

/// A sleeper that is killed leaves nothing behind.
#[test]
fn killed_sleepers() {
    let shared = counter();
    let _watchdog = watch("killed_sleepers", &shared);
    for round in 0..20 {
        let guard = shared.lock.lock().unwrap();
        let sleepers: Vec<_> = (0..3)
            .map(|_| fork_child(|| drop(shared.lock.lock_timeout(common::PATIENCE).unwrap())))
            .collect();
        sleepers.iter().for_each(common::Child::until_waiting);
        let mut sleepers = sleepers.into_iter();
        let first = sleepers.next().unwrap();
        if round % 2 == 0 {
            first.kill9();
            drop(guard);
        } else {
            // The waiter that the release wakes is killed before, while or after it acquires the
            // lock.
            drop(guard);
            first.signal(libc::SIGKILL);
            assert!(matches!(first.wait(), common::KILLED | OK));
        }
        for sleeper in sleepers {
            match sleeper.wait() {
                OK => {}
                // The first was killed when it had the lock.
                Exit::Code(101) if round % 2 == 1 => {}
                other => panic!("{other:?}"),
            }
        }
        shared.lock.clear_poison();
        match shared.lock.lock() {
            Ok(_) => {}
            Err(LockError::OwnerDied(mut guard)) => LockGuard::mark_consistent(&mut guard),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_thread_that_ends_with_the_lock_is_a_death() {
    let shared = counter();
    let _watchdog = watch("a_thread_that_ends_with_the_lock", &shared);
    std::thread::scope(|scope| {
        let owner = scope.spawn(|| {
            core::mem::forget(shared.lock.lock().unwrap());
            shared.step.reach(1);
            shared.step.until(2);
        });
        shared.step.until(1);
        let sleeper = scope.spawn(|| {
            shared.step.reach(u32::try_from(common::thread_id()).unwrap());
            LockGuard::mark_consistent(&mut from_the_dead(&shared.lock));
        });
        common::eventually("the sleeper is there", || shared.step.load(SeqCst) > 2);
        owner.join().unwrap();
        sleeper.join().unwrap();
    });
    drop(shared.lock.lock().unwrap());
}

#[test]
fn exec_ends_ownership() {
    let shared = counter();
    let _watchdog = watch("exec_ends_ownership", &shared);
    let owner = fork_child(|| {
        core::mem::forget(shared.lock.lock().unwrap());
        shared.step.reach(1);
        shared.step.until(2);
        let arguments = [c"sleep".as_ptr(), c"60".as_ptr(), core::ptr::null()];
        // SAFETY: C strings, and a list that ends with null.
        unsafe { libc::execv(c"/bin/sleep".as_ptr(), arguments.as_ptr()) };
    });
    shared.step.until(1);
    let sleeper = fork_child(|| drop(from_the_dead(&shared.lock)));
    sleeper.until_waiting();
    shared.step.reach(2);
    sleeper.succeeds();
    drop(from_the_dead(&shared.lock));
    owner.kill9(); // it was alive, as another program
}

// -------------------------------------------------------------------------------------- panics

#[test]
fn a_panic_poisons() {
    let shared = counter();
    let _watchdog = watch("a_panic_poisons", &shared);
    let lock = &shared.lock;
    let panicked = std::thread::scope(|scope| {
        let owner = scope.spawn(|| {
            let mut guard = lock.lock().unwrap();
            guard[0] = 1;
            panic!("while it holds the lock (expected)");
        });
        owner.join().is_err()
    });
    assert!(panicked);
    assert_eq!(lock.poison_cause(), Some(PoisonCause::Panicked));
    for _ in 0..2 {
        match lock.lock() {
            Err(error @ LockError::Poisoned(_)) => {
                assert_eq!(error.cause(), Some(PoisonCause::Panicked));
                assert_eq!(error.into_guard().unwrap()[0], 1);
            }
            other => panic!("{other:?}"),
        }
    }
    // A death on top of it is the graver of the two.
    let owner = fork_child(|| {
        core::mem::forget(lock.lock().unwrap_err().into_guard());
        shared.step.reach(1);
        sleep_for_ever();
    });
    shared.step.until(1);
    owner.kill9();
    LockGuard::mark_consistent(&mut from_the_dead(lock));
    assert_eq!(lock.poison_cause(), None);
    drop(lock.lock().unwrap());
}

#[test]
fn a_lock_taken_while_panicking_is_not_poisoned() {
    struct Last<'a>(&'a Lock<[u64; 2]>);
    impl Drop for Last<'_> {
        fn drop(&mut self) {
            self.0.lock().unwrap()[0] += 1;
        }
    }
    let shared = counter();
    let _watchdog = watch("a_lock_taken_while_panicking", &shared);
    let panicked = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _last = Last(&shared.lock);
            panic!("holding nothing (expected)");
        });
        thread.join().is_err()
    });
    assert!(panicked);
    assert_eq!(shared.lock.lock().unwrap()[0], 1);
}

// --------------------------------------------------------------------- one thread, several locks

#[test]
fn taking_it_twice_is_an_error() {
    common::in_own_process("taking_it_twice_is_an_error", || {
        let shared = counter();
        let _watchdog = watch("taking_it_twice", &shared);
        let other = Shared::<Counter>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
        let guard = shared.lock.lock().unwrap();
        for lock in [&shared.lock, &other.lock] {
            assert!(matches!(lock.lock(), Err(LockError::WouldDeadlock)));
            assert!(matches!(lock.try_lock(), Err(LockError::WouldDeadlock)));
            assert!(matches!(lock.lock_timeout(ms(1)), Err(LockError::WouldDeadlock)));
            assert!(matches!(lock.lock_deadline(Instant::now()), Err(LockError::WouldDeadlock)));
            assert!(!is_free(lock), "the attempt has given the lock up");
        }
        drop(guard);
        drop(other.lock.lock().unwrap());
        assert!(is_free(&shared.lock));

        // After such an attempt the kernel still knows who owns it.
        let owner = fork_child(|| {
            let _guard = shared.lock.lock().unwrap();
            assert!(shared.lock.lock().is_err());
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        owner.kill9();
        LockGuard::mark_consistent(&mut from_the_dead(&shared.lock));
    });
}

outlast::shared! {
    #[derive(Debug)]
    struct Many { locks: [Lock<u64>; 6], step: AtomicU32 }
}

fn many() -> Shared<Many> {
    let locks = core::array::from_fn(|_| Lock::new(0));
    Shared::anonymous(Many { locks, step: AtomicU32::new(0) }).unwrap()
}

/// All orders in which four locks can be released.
#[test]
fn nested_locks_in_any_order() {
    let shared = many();
    let _watchdog = watch("nested_locks_in_any_order", &shared);
    for order in 0..256_usize {
        let order = [order & 3, order >> 2 & 3, order >> 4 & 3, order >> 6];
        let mut guards = [const { None }; 4];
        for (guard, lock) in guards.iter_mut().zip(&shared.locks) {
            *guard = Some(lock.lock().unwrap());
        }
        for i in order {
            guards[i] = None;
            for (guard, lock) in guards.iter().zip(&shared.locks) {
                assert_eq!(lock.try_lock().is_ok(), guard.is_none());
            }
        }
        drop(guards);
        assert!(shared.locks.iter().all(is_free));
    }
}

/// At a random moment of a random sequence the owner is killed: exactly what it held is marked.
#[test]
fn nested_locks_of_the_dead() {
    for seed in 0..60 {
        let shared = many();
        let _watchdog = watch("nested_locks_of_the_dead", &shared);
        let mut random = Random::new(seed);
        let choices: Vec<usize> = (0..random.below(40)).map(|_| random.index(6)).collect();
        let mut held = [false; 6];
        choices.iter().for_each(|&i| held[i] = !held[i]);
        let child = fork_child(|| {
            let mut guards = [const { None }; 6];
            for &i in &choices {
                guards[i] = match guards[i].take() {
                    None => Some(shared.locks[i].lock().unwrap()),
                    Some(guard) => {
                        drop(guard);
                        None
                    }
                };
            }
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        child.kill9();
        for (i, lock) in shared.locks.iter().enumerate() {
            let died = matches!(lock.try_lock(), Err(LockError::OwnerDied(_)));
            assert_eq!(died, held[i], "lock {i} after {choices:?}");
        }
    }
}

#[test]
fn a_thread_can_hold_a_thousand() {
    common::in_own_process("a_thread_can_hold_a_thousand", || {
        const LOCKS: usize = 1_010;
        outlast::shared! {
            struct Crowd { locks: [Lock<u64>; LOCKS], held: AtomicU32, step: AtomicU32 }
        }
        // Zero-filled memory is free locks.
        let shared = outlast::Options::new().anonymous_with(|_: &Crowd| {}).unwrap();
        let _watchdog = watch_alone("a_thread_can_hold_a_thousand");
        let child = fork_child(|| {
            let mut guards: Vec<_> =
                shared.locks.iter().map_while(|lock| lock.lock().ok()).collect();
            let n = guards.len();
            assert!((1_000..=1_001).contains(&n), "{n} locks");
            for lock in &shared.locks[n..] {
                assert!(matches!(lock.lock(), Err(LockError::Failed(Fault::TooManyLocks))));
                assert!(matches!(lock.try_lock(), Err(LockError::Failed(Fault::TooManyLocks))));
                assert!(lock.lock_timeout(ms(1)).is_err());
                assert!(is_free(lock));
            }
            // Any of them can be replaced by another.
            for i in [0, n / 2, n - 1] {
                drop(guards.remove(i));
                assert!(is_free(&shared.locks[i]));
                guards.insert(i, shared.locks[i].lock().unwrap());
                assert!(matches!(shared.locks[n].try_lock(), Err(LockError::Failed(_))));
            }
            // All others are still held.
            assert!(!shared.locks[..n].iter().step_by(37).any(is_free));
            shared.held.store(u32::try_from(n).unwrap(), SeqCst);
            // Half the time, half of them are released in a random order.
            let mut random = Random::new(1);
            for _ in 0..n / 2 {
                drop(guards.swap_remove(random.index(guards.len())));
            }
            let kept = guards.len();
            assert_eq!(shared.locks[..n].iter().filter(|lock| is_free(lock)).count(), n - kept);
            for lock in &shared.locks[..n] {
                match lock.try_lock() {
                    Ok(guard) => guards.push(guard),
                    Err(LockError::WouldDeadlock | LockError::Failed(Fault::TooManyLocks)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(guards.len(), n);
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        let held = shared.held.load(SeqCst) as usize;
        for (i, lock) in shared.locks.iter().enumerate() {
            let busy = matches!(lock.try_lock(), Err(LockError::WouldBlock));
            assert_eq!(busy, i < held, "lock {i}");
        }
        child.kill9();
        for (i, lock) in shared.locks.iter().enumerate() {
            let died = matches!(lock.try_lock(), Err(LockError::OwnerDied(_)));
            assert_eq!(died, i < held, "lock {i}");
        }
    });
}

// ---------------------------------------------------------------------------------------- fork

#[test]
fn a_guard_copied_by_fork_is_inert() {
    common::in_own_process("a_guard_copied_by_fork_is_inert", || {
        let shared = many();
        let _watchdog = watch("a_guard_copied_by_fork", &shared);
        let lock = &shared.locks[0];
        for panics in [false, true] {
            // Both states of the owner: one lock in the kernel's list, the other not yet.
            let mut guards = [Some(lock.lock().unwrap()), Some(shared.locks[1].lock().unwrap())];
            let child = fork_child(|| {
                if panics {
                    let guard = guards[0].take();
                    let panicked = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                        let _guard = guard;
                        std::panic::resume_unwind(Box::new("a panic without a message"));
                    }));
                    assert!(panicked.is_err());
                }
                guards.iter_mut().for_each(|guard| drop(guard.take()));
                assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
                assert!(matches!(
                    shared.locks[1].lock_timeout(ms(10)),
                    Err(LockError::TimedOut(_))
                ));
                // The child is an owner of its own.
                let mine = shared.locks[2].lock().unwrap();
                assert!(!is_free(&shared.locks[2]));
                drop(mine);
            });
            child.succeeds();
            assert!(!is_free(lock));
            assert!(!is_free(&shared.locks[1]));
            assert_eq!(lock.poison_cause(), None);
            drop(guards);
            assert!(shared.locks.iter().all(is_free));
        }
        // The death of a child that had copies of our guards is none of our locks' business.
        let guard = lock.lock().unwrap();
        let child = fork_child(|| {
            core::mem::forget(shared.locks[2].lock());
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        child.kill9();
        drop(guard);
        drop(lock.lock().unwrap());
        LockGuard::mark_consistent(&mut from_the_dead(&shared.locks[2]));
    });
}

// --------------------------------------------------------- together with the C library's mutexes

/// Robust mutexes of the C library in memory shared with forked children.
#[derive(Clone, Copy)]
struct Foreign(&'static [libc::pthread_mutex_t; 4]);

// SAFETY: a process-shared mutex may be used by all threads, through a pointer to it.
unsafe impl Sync for Foreign {}

outlast::shared! { struct Bytes { bytes: [AtomicU32; 64] } }
const _: () = assert!(size_of::<Bytes>() >= size_of::<[libc::pthread_mutex_t; 4]>());

impl Foreign {
    fn new() -> Self {
        let at: *const Bytes = common::plain_shared::<Bytes>();
        // SAFETY: zero-filled, a page long, never unmapped; the C library alone writes it from here
        // on, in place.
        let mutexes = unsafe { &*at.cast::<[libc::pthread_mutex_t; 4]>() };
        for mutex in mutexes {
            let mut kind = core::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
            // SAFETY: initialises the live variable.
            unsafe { libc::pthread_mutexattr_init(kind.as_mut_ptr()) };
            // SAFETY: initialised above.
            unsafe { libc::pthread_mutexattr_setpshared(kind.as_mut_ptr(), 1) };
            // SAFETY: as above.
            unsafe {
                libc::pthread_mutexattr_setrobust(kind.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST)
            };
            let mutex = core::ptr::from_ref(mutex).cast_mut();
            // SAFETY: memory of a mutex that no thread uses yet, and initialised attributes.
            let r = unsafe { libc::pthread_mutex_init(mutex, kind.as_ptr()) };
            assert_eq!(r, 0);
        }
        Foreign(mutexes)
    }

    fn lock(&self, i: usize) -> i32 {
        // SAFETY: an initialised mutex, which the C library changes from any thread.
        unsafe { libc::pthread_mutex_lock(core::ptr::from_ref(&self.0[i]).cast_mut()) }
    }

    /// As `lock`, if that does not have to wait: else `EBUSY`.
    fn try_lock(&self, i: usize) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_trylock(core::ptr::from_ref(&self.0[i]).cast_mut()) }
    }

    fn unlock(&self, i: usize) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(core::ptr::from_ref(&self.0[i]).cast_mut()) }
    }
}

/// A thread's list has locks of both kinds, acquired and released in random order. Then the thread
/// is killed, and exactly the locks that it held are marked.
///
/// With lazy locking, the kernel knows the newest lock of this crate only by the field that the C
/// library uses as well. So mutexes of the C library may be used only while that field is empty.
/// With eager locking there is no such rule.
#[test]
fn among_foreign_robust_mutexes() {
    for seed in 0..120 {
        let eager = seed % 2 == 0;
        let shared = many();
        let _watchdog = watch("among_foreign_robust_mutexes", &shared);
        let foreign = Foreign::new();
        let mut random = Random::new(seed);
        let (mut ours, mut theirs) = ([false; 6], [false; 4]);
        let mut pending = None;
        let mut steps = Vec::new();
        for _ in 0..random.below(60) {
            if random.below(2) == 0 {
                let i = random.index(6);
                ours[i] = !ours[i];
                if ours[i] {
                    pending = Some(i);
                } else if pending == Some(i) {
                    pending = None;
                } else if pending.is_some() {
                    pending = None; // giving up one moves the other to the list
                }
                steps.push((true, i));
            } else if eager || pending.is_none() {
                let i = random.index(4);
                theirs[i] = !theirs[i];
                steps.push((false, i));
            }
        }
        let child = fork_child(|| {
            outlast::lock::set_eager(eager);
            let mut guards = [const { None }; 6];
            let mut held = [false; 4];
            for &(is_ours, i) in &steps {
                if is_ours {
                    guards[i] = match guards[i].take() {
                        None => Some(shared.locks[i].lock().unwrap()),
                        Some(guard) => {
                            drop(guard);
                            None
                        }
                    };
                } else {
                    let r = if held[i] { foreign.unlock(i) } else { foreign.lock(i) };
                    assert_eq!(r, 0);
                    held[i] = !held[i];
                }
            }
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        for (i, &held) in theirs.iter().enumerate() {
            assert_eq!(foreign.try_lock(i), if held { libc::EBUSY } else { 0 });
            assert!(held || foreign.unlock(i) == 0);
        }
        child.kill9();
        for (i, lock) in shared.locks.iter().enumerate() {
            let died = match lock.try_lock() {
                Ok(_) => false,
                Err(LockError::OwnerDied(_)) => true,
                Err(error) => panic!("lock {i}, eager {eager}: {error} after {steps:?}"),
            };
            assert_eq!(died, ours[i], "lock {i}, eager {eager}, after {steps:?}");
        }
        for (i, &held) in theirs.iter().enumerate() {
            let expected = if held { libc::EOWNERDEAD } else { 0 };
            assert_eq!(foreign.try_lock(i), expected, "mutex {i} after {steps:?}");
        }
    }
}

/// The control of the test above, and the documented limit: what a mutex taken inside our section
/// does to it.
#[cfg(not(outlast_pthread))] // of how futexes are used
#[test]
fn why_there_is_an_eager_mode() {
    for eager in [true, false] {
        let shared = many();
        let _watchdog = watch("why_there_is_an_eager_mode", &shared);
        let foreign = Foreign::new();
        let child = fork_child(|| {
            outlast::lock::set_eager(eager);
            core::mem::forget(shared.locks[0].lock());
            assert_eq!(foreign.lock(0), 0);
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        child.kill9();
        assert_eq!(foreign.lock(0), libc::EOWNERDEAD);
        let told = matches!(shared.locks[0].try_lock(), Err(LockError::OwnerDied(_)));
        assert_eq!(told, eager);
    }
}

// --------------------------------------------------------------------------- places and values

#[test]
fn a_lock_outside_of_shared_memory_panics() {
    let lock = Lock::new(1_u64);
    for attempt in [0, 1, 2] {
        let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| match attempt {
            0 => drop(lock.lock()),
            1 => drop(lock.try_lock()),
            _ => drop(lock.lock_timeout(ms(1))),
        }));
        let panic = *outcome.unwrap_err().downcast::<&'static str>().unwrap();
        assert_eq!(panic, "the lock does not lie in shared memory");
    }
    // And it has left this thread able to lock.
    drop(counter().lock.lock().unwrap());
}

#[test]
fn a_forgotten_guard_keeps_the_mapping() {
    common::in_own_process("a_forgotten_guard_keeps_the_mapping", || {
        let _watchdog = watch_alone("a_forgotten_guard_keeps_the_mapping");
        fork_child(|| {
            let mappings = || {
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                maps.lines().filter(|line| line.contains("memfd:outlast")).count()
            };
            let before = mappings();
            let (send, receive) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                let shared = counter();
                let second = many();
                core::mem::forget(shared.lock.lock());
                core::mem::forget(second.locks[3].lock());
                core::mem::forget(second.locks[5].lock());
                drop(shared);
                assert_eq!(mappings(), before + 2, "unmapped under the kernel's list");
                drop(second);
                assert_eq!(mappings(), before + 2, "unmapped under the kernel's list");
                receive.recv().unwrap_err(); // the other end goes
                mappings()
            });
            drop(send);
            assert_eq!(thread.join().unwrap(), before + 2);
            // One that was forgotten by a thread that is gone keeps nothing.
            let third = counter();
            std::thread::scope(|scope| {
                scope.spawn(|| core::mem::forget(third.lock.lock())).join().unwrap();
            });
            drop(third);
            assert_eq!(mappings(), before + 2);
        })
        .succeeds();
    });
}

/// A peer frees a word that another thread of this process holds. The thread still has it in its
/// list: the memory stays.
#[cfg(not(outlast_pthread))] // which lays the words out where this test writes
#[test]
fn a_lock_that_a_peer_has_freed_keeps_the_mapping() {
    common::in_own_process("a_lock_that_a_peer_has_freed_keeps_the_mapping", || {
        let _watchdog = watch_alone("a_lock_that_a_peer_has_freed_keeps_the_mapping");
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.contains("memfd:outlast")).count()
        };
        let others = many();
        for listed in [false, true] {
            let before = mapped();
            let shared = many();
            let (go, went) = std::sync::mpsc::channel::<()>();
            let (tell, told) = std::sync::mpsc::channel();
            let (clone, others) = (shared.clone(), others.clone());
            let holder = std::thread::spawn(move || {
                core::mem::forget(clone.locks[0].lock().unwrap());
                if listed {
                    drop(others.locks[0].lock().unwrap());
                }
                drop(clone);
                tell.send(()).unwrap();
                went.recv().unwrap_err(); // the other end goes
                let outer = others.locks[1].lock().unwrap();
                drop(others.locks[2].lock().unwrap());
                drop(outer);
            });
            told.recv().unwrap();
            common::scribble(&shared.locks[0], 0, &[0; 4]);
            drop(shared);
            assert_eq!(mapped(), before + 1, "unmapped under a thread's list");
            drop(go);
            holder.join().unwrap();
            // Until the thread is gone, which the next who unmaps finds.
            common::eventually("the memory goes", || {
                drop(many());
                mapped() == before
            });
        }
        assert!((0..3).all(|i| is_free(&others.locks[i])));
    });
}

/// Where the `pending` field of a thread's robust list leads.
#[cfg(not(outlast_pthread))]
fn pending(tid: libc::pid_t) -> usize {
    let (mut head, mut len) = (core::ptr::null::<[usize; 3]>(), 0_usize);
    // SAFETY: writes a pointer and a length to the live variables.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    assert_eq!((r, len), (0, size_of::<[usize; 3]>()));
    // SAFETY: the last of the three words of a head.
    let pending = unsafe { head.cast::<usize>().add(2) };
    // SAFETY: the head of a living thread of this process; the word is written as a whole.
    unsafe { pending.read_volatile() }
}

#[cfg(not(outlast_pthread))]
fn leads_into<T: Shareable>(entry: usize, shared: &T) -> bool {
    entry.wrapping_sub(core::ptr::from_ref(shared).addr()) < size_of::<T>()
}

/// A released lock stays in the `pending` field of its last owner only as long as the lock exists.
/// Later, the kernel would mistake other memory there for a lock.
#[cfg(not(outlast_pthread))] // of how futexes are used
#[test]
fn what_threads_have_left_pending_goes_with_the_memory() {
    let _watchdog = watch_alone("what_threads_have_left_pending_goes_with_the_memory");
    let (shared, other) = (many(), counter());
    let uses = |shared: Shared<Many>, i: usize| {
        drop(shared.locks[i].lock().unwrap());
        assert!(leads_into(pending(common::thread_id()), &*shared), "to save a store");
    };
    let clone = shared.clone();
    std::thread::spawn(move || uses(clone, 0)).join().unwrap();
    uses(shared.clone(), 1);
    std::thread::scope(|scope| {
        let (to, tids) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        for holds in [false, true] {
            let (to, shared, other, ended) = (to.clone(), shared.clone(), &other, ended.clone());
            scope.spawn(move || {
                uses(shared, 2);
                let guard = holds.then(|| other.lock.lock().unwrap());
                to.send((holds, common::thread_id())).unwrap();
                ended.lock().unwrap().recv().unwrap_err(); // the other end goes
                drop(guard);
            });
        }
        let others = [(); 2].map(|()| tids.recv().unwrap());
        drop(shared);
        assert_eq!(pending(common::thread_id()), 0);
        for (holds, tid) in others {
            match holds {
                false => assert_eq!(pending(tid), 0),
                true => assert!(leads_into(pending(tid), &*other)),
            }
        }
        drop(end);
    });
    assert!(is_free(&other.lock));
}

/// In the child of a fork nothing is pending: the lock is the parent's.
#[cfg(not(outlast_pthread))] // of how futexes are used
#[test]
fn nothing_is_pending_in_a_forked_child() {
    let shared = counter();
    let _watchdog = watch("nothing_is_pending_in_a_forked_child", &shared);
    drop(shared.lock.lock().unwrap());
    assert!(leads_into(pending(common::thread_id()), &*shared));
    fork_child(|| assert_eq!(pending(common::thread_id()), 0)).succeeds();
}

/// A thread that is ending locks while its variables are dropped: nothing stays pending, and what
/// it holds is a death's.
#[cfg(not(outlast_pthread))] // of how futexes are used
#[test]
fn locks_of_a_thread_that_is_ending() {
    use std::cell::RefCell;
    /// Locks one, and forgets the other.
    struct Last(Shared<Many>);
    impl Drop for Last {
        fn drop(&mut self) {
            let Last(shared) = self;
            assert_eq!(pending(common::thread_id()), 0, "what was held there is listed");
            for _ in 0..2 {
                let outer = shared.locks[0].lock().unwrap();
                drop(shared.locks[1].lock().unwrap());
                drop(outer);
                assert_eq!(pending(common::thread_id()), 0);
            }
            core::mem::forget(shared.locks[2].lock().unwrap());
            shared.step.reach(1);
        }
    }
    thread_local! {
        static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        static GUARD: RefCell<Option<LockGuard<'static, u64>>> = const { RefCell::new(None) };
    }
    let _watchdog = watch_alone("locks_of_a_thread_that_is_ending");
    let shared = many();
    let kept: &'static Shared<Many> = Box::leak(Box::new(shared.clone()));
    let clone = shared.clone();
    std::thread::spawn(move || {
        // Made before the first lock, so that they are dropped after what the crate keeps for the
        // thread.
        GUARD.set(None);
        LAST.set(Some(Last(clone)));
        GUARD.set(Some(kept.locks[3].lock().unwrap()));
        assert!(leads_into(pending(common::thread_id()), &**kept));
    })
    .join()
    .unwrap();
    assert_eq!(shared.step.load(SeqCst), 1);
    for (i, lock) in shared.locks.iter().enumerate() {
        match lock.try_lock() {
            Ok(_) => assert_ne!(i, 2),
            Err(LockError::OwnerDied(_)) => assert_eq!(i, 2),
            Err(error) => panic!("lock {i}: {error}"),
        }
    }
}

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Colour: u8 { Red = 1, Green = 2 }
    #[derive(Debug, PartialEq)]
    struct Paint { amount: u64, colour: Colour, dry: bool }
}

#[test]
fn bits_that_are_no_value() {
    let shared =
        Shared::anonymous(Lock::new(Paint { amount: 9, colour: Colour::Green, dry: true }))
            .unwrap();
    let _watchdog = watch("bits_that_are_no_value", &shared);
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut value_at = [0; 8];
    file.read_exact_at(&mut value_at, 104).unwrap(); // see the header's table
    let in_lock = <Lock<Paint> as Shareable>::layout().fields[0].offset;
    let value_at = u64::from_ne_bytes(value_at) + in_lock as u64;
    let (colour, dry) = (value_at + 8, value_at + 9);
    for (at, bits) in [(colour, 0), (colour, 3), (colour, 255), (dry, 2), (dry, 255)] {
        let mut good = [0];
        file.read_exact_at(&mut good, at).unwrap();
        file.write_all_at(&[bits], at).unwrap();
        for _ in 0..2 {
            assert!(matches!(shared.lock(), Err(LockError::Failed(Fault::Corrupt))));
            assert!(matches!(shared.try_lock(), Err(LockError::Failed(Fault::Corrupt))));
            assert!(is_free(&shared), "the lock was kept");
        }
        file.write_all_at(&good, at).unwrap();
        let expected = Paint { amount: 9, colour: Colour::Green, dry: true };
        assert_eq!(*shared.lock().unwrap(), expected);
    }
}

/// The word of a lock holds a value that no peer writes. The result is an error, neither a panic
/// nor a hang.
#[cfg(not(outlast_pthread))] // of how futexes are used
#[test]
fn a_word_that_is_damaged() {
    let shared = Shared::anonymous(Lock::new(5_u64)).unwrap();
    let _watchdog = watch("a_word_that_is_damaged", &shared);
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut value_at = [0; 8];
    file.read_exact_at(&mut value_at, 104).unwrap();
    let word_at = u64::from_ne_bytes(value_at);
    // "Not placed yet", in a segment where everything is.
    file.write_all_at(&0x3fff_ffff_u32.to_ne_bytes(), word_at).unwrap();
    assert!(matches!(shared.lock(), Err(LockError::Failed(Fault::Corrupt))));
    assert!(matches!(shared.try_lock(), Err(LockError::Failed(Fault::Corrupt))));
    // To a waiter, an owner that does not exist is dead.
    file.write_all_at(&0x3fff_fff0_u32.to_ne_bytes(), word_at).unwrap();
    assert!(matches!(shared.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(shared.lock_timeout(ms(5)), Err(LockError::OwnerDied(_))));
    shared.clear_poison();
    assert_eq!(*shared.lock().unwrap(), 5);
}

#[test]
fn before_it_is_shared() {
    let mut lock = Lock::new(1_u64);
    *lock.get_mut() += 1;
    let shared = Shared::anonymous(lock).unwrap();
    assert_eq!(*shared.lock().unwrap(), 2);
    assert_eq!(format!("{}", shared.lock().unwrap()), "2");
    assert_eq!(format!("{:?}", shared.lock().unwrap()), "2");
}

#[test]
fn a_sleeping_thread_is_woken() {
    let shared = counter();
    let _watchdog = watch("a_sleeping_thread_is_woken", &shared);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            let guard = shared.lock.lock().unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            let lock = &shared.lock;
            let sleeper = scope.spawn(move || {
                Spin::Never.set();
                tell.send(common::thread_id()).unwrap();
                drop(lock.lock().unwrap());
            });
            until_waiting(told.recv().unwrap());
            drop(guard);
            sleeper.join().unwrap();
        }
    });
}
