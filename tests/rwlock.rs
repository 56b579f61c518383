//! `RwLock`: readers together, writers alone, turns, deaths, panics and limits, in threads and in
//! processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    Child, OK, Random, Stage, busy, fork_child, ms, sleep_for_ever, until_waiting, watch, worlds,
};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use outlast::{
    Fault, Lock, LockError, OpenError, Options, PoisonCause, ReadGuard, ReentrantLock, RwLock,
    Shareable, Shared, Spin, WriteGuard,
};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// As in `src/sync.rs`.
const SLOTS: usize = 32;
/// Bytes before the first slot, and from slot to slot.
#[cfg(all(not(outlast_pthread), not(outlast_hooks)))]
const LINE: u64 = 64;

outlast::shared! {
    #[derive(Debug)]
    struct Pair {
        lock: RwLock<[u64; 2]>,
        readers: AtomicU32,
        writers: AtomicU32,
        together: AtomicU32,
        turns: AtomicU64,
        over: AtomicU32,
        step: AtomicU32,
    }
}

fn pair() -> Shared<Pair> {
    let zero = || AtomicU32::new(0);
    Shared::anonymous(Pair {
        lock: RwLock::new([0; 2]),
        readers: zero(),
        writers: zero(),
        together: zero(),
        turns: AtomicU64::new(0),
        over: zero(),
        step: zero(),
    })
    .unwrap()
}

/// Asks in a thread of its own, which holds nothing.
fn elsewhere<R: Send>(ask: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| scope.spawn(ask).join().unwrap())
}

fn can_write<T: outlast::Plain>(lock: &RwLock<T>) -> bool {
    elsewhere(|| !matches!(lock.try_write(), Err(LockError::WouldBlock)))
}

fn can_read<T: outlast::Plain>(lock: &RwLock<T>) -> bool {
    elsewhere(|| !matches!(lock.try_read(), Err(LockError::WouldBlock)))
}

/// Ends the calling child, with all that it holds.
fn hold(shared: &Pair, step: u32) -> ! {
    shared.step.reach(step);
    sleep_for_ever()
}

// ----------------------------------------------------------------------------------- exclusion

const ROUNDS: u64 = 1_200;

/// Notes that a reader is there, and that no writer is.
fn as_reader(shared: &Pair, guard: &ReadGuard<'_, [u64; 2]>, random: &mut Random) {
    shared.readers.fetch_add(1, SeqCst);
    assert_eq!(shared.writers.load(SeqCst), 0, "a reader beside a writer");
    let first = guard[0];
    if random.below(8) == 0 {
        busy(random.micros(20));
    }
    assert_eq!(guard[1], first, "changed under a reader");
    shared.readers.fetch_sub(1, SeqCst);
}

fn as_writer(shared: &Pair, guard: &mut WriteGuard<'_, [u64; 2]>, random: &mut Random) {
    assert_eq!(shared.writers.fetch_add(1, SeqCst), 0, "two writers");
    assert_eq!(shared.readers.load(SeqCst), 0, "a writer beside a reader");
    guard[0] += 1;
    if random.below(8) == 0 {
        busy(random.micros(20));
    }
    guard[1] += 1;
    assert_eq!(guard[0], guard[1]);
    assert_eq!(shared.readers.load(SeqCst), 0, "a reader beside a writer");
    shared.writers.fetch_sub(1, SeqCst);
}

/// Tries until it need not wait.
fn insist<G>(mut attempt: impl FnMut() -> Result<G, LockError<G>>) -> G {
    loop {
        match attempt() {
            Ok(guard) => return guard,
            Err(LockError::WouldBlock) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_writer_excludes_all() {
    for (case, spin) in [("adaptive", Spin::Adaptive), ("asleep", Spin::Never)] {
        worlds(
            "a_writer_excludes_all",
            case,
            4,
            pair,
            |shared, role| {
                spin.set();
                let mut random = Random::new(role as u64);
                let lock = &shared.lock;
                let soon = || Instant::now() + ms(60_000);
                for i in 0..ROUNDS {
                    if i % 3 == 0 {
                        let mut guard = match i / 3 % 4 {
                            0 => lock.write().unwrap(),
                            1 => lock.write_timeout(Duration::MAX).unwrap(),
                            2 => lock.write_deadline(soon()).unwrap(),
                            _ => insist(|| lock.try_write()),
                        };
                        as_writer(shared, &mut guard, &mut random);
                        if random.below(4) == 0 {
                            let seen = guard[0];
                            let guard = WriteGuard::downgrade(guard);
                            as_reader(shared, &guard, &mut random);
                            assert_eq!(guard[0], seen, "written in between");
                        }
                        continue;
                    }
                    let guard = match i % 4 {
                        0 => lock.read().unwrap(),
                        1 => lock.read_timeout(Duration::MAX).unwrap(),
                        2 => lock.read_deadline(soon()).unwrap(),
                        _ => insist(|| lock.try_read()),
                    };
                    as_reader(shared, &guard, &mut random);
                    if random.below(16) == 0 {
                        let second = lock.read().unwrap();
                        drop(guard);
                        as_reader(shared, &second, &mut random);
                    }
                }
            },
            |shared| assert_eq!(*shared.lock.read().unwrap(), [4 * ROUNDS / 3; 2]),
        );
    }
}

#[test]
fn readers_run_together() {
    worlds(
        "readers_run_together",
        "",
        6,
        pair,
        |shared, role| {
            for round in 1..20 {
                let guard = match role % 3 {
                    0 => shared.lock.read().unwrap(),
                    1 => shared.lock.read_timeout(common::PATIENCE).unwrap(),
                    _ => insist(|| shared.lock.try_read()),
                };
                shared.together.fetch_add(1, SeqCst);
                shared.together.until(6 * round); // every one of the six is inside
                drop(guard);
            }
        },
        |shared| assert!(can_write(&shared.lock)),
    );
}

#[test]
fn times() {
    worlds(
        "times",
        "",
        2,
        pair,
        |shared, role| {
            let (lock, step) = (&shared.lock, &shared.step);
            if role == 0 {
                let guard = lock.write().unwrap();
                step.reach(1);
                step.until(2);
                let guard = WriteGuard::downgrade(guard);
                step.reach(3);
                step.until(4);
                drop(guard);
                step.reach(5);
                // And once more, for one who waits long enough.
                step.until(6);
                let guard = lock.write().unwrap();
                step.reach(7);
                std::thread::sleep(ms(60));
                let guard = WriteGuard::downgrade(guard);
                std::thread::sleep(ms(60));
                drop(guard);
                return;
            }
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            let cannot_write = || {
                assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
                assert!(matches!(lock.write_deadline(past), Err(LockError::TimedOut(_))));
                for wait in [0, 1, 70] {
                    let began = Instant::now();
                    assert!(matches!(lock.write_timeout(ms(wait)), Err(LockError::TimedOut(_))));
                    assert!(began.elapsed() >= ms(wait), "too early: {:?}", began.elapsed());
                    let at = Instant::now() + ms(wait);
                    assert!(matches!(lock.write_deadline(at), Err(LockError::TimedOut(_))));
                    assert!(Instant::now() >= at, "too early");
                }
            };
            step.until(1);
            cannot_write();
            assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
            assert!(matches!(lock.read_deadline(past), Err(LockError::TimedOut(_))));
            for wait in [0, 1, 70] {
                let began = Instant::now();
                assert!(matches!(lock.read_timeout(ms(wait)), Err(LockError::TimedOut(_))));
                assert!(began.elapsed() >= ms(wait), "too early: {:?}", began.elapsed());
                let at = Instant::now() + ms(wait);
                assert!(matches!(lock.read_deadline(at), Err(LockError::TimedOut(_))));
                assert!(Instant::now() >= at, "too early");
            }
            step.reach(2);
            step.until(3);
            // Beside a reader, and a writer that gave up has left nothing behind.
            cannot_write();
            drop(lock.read().unwrap());
            drop(lock.try_read().unwrap());
            drop(lock.read_deadline(past).unwrap());
            step.reach(4);
            step.until(5);
            // A free lock is taken, however late it is.
            drop(lock.try_write().unwrap());
            drop(lock.write_timeout(Duration::ZERO).unwrap());
            drop(lock.write_deadline(past).unwrap());
            drop(lock.read_timeout(Duration::ZERO).unwrap());
            drop(lock.try_read().unwrap());
            step.reach(6);
            step.until(7);
            drop(lock.read_timeout(Duration::from_secs(u64::MAX)).unwrap());
            drop(lock.write_timeout(Duration::from_secs(u64::MAX)).unwrap());
        },
        |shared| assert!(!shared.lock.is_poisoned()),
    );
}

#[test]
fn a_waiter_sleeps() {
    let shared = pair();
    let _watchdog = watch("a_waiter_sleeps", &shared);
    let waits = |wait: &dyn Fn()| {
        let child = fork_child(|| {
            let before = common::thread_cpu();
            wait();
            let used = common::thread_cpu() - before;
            assert!(used < ms(20), "waiting used {used:?} of CPU");
        });
        let (exit, used) = child.wait_with_cpu();
        assert_eq!(exit, OK);
        assert!(used < ms(150), "the child used {used:?}");
    };
    let write =
        || assert!(matches!(shared.lock.write_timeout(ms(300)), Err(LockError::TimedOut(_))));
    let read = || assert!(matches!(shared.lock.read_timeout(ms(300)), Err(LockError::TimedOut(_))));
    let guard = shared.lock.write().unwrap();
    waits(&write);
    waits(&read);
    let guard = WriteGuard::downgrade(guard);
    waits(&write);
    // Behind a writer that waits itself.
    let writer = fork_child(|| drop(shared.lock.write().unwrap()));
    writer.until_waiting();
    waits(&write);
    waits(&read);
    drop(guard);
    writer.succeeds();
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);

fn catch_user_signal() {
    extern "C" fn caught(_: i32) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    common::handle(libc::SIGUSR1, caught);
}

#[test]
fn signals_do_not_end_a_wait() {
    let shared = pair();
    let _watchdog = watch("signals_do_not_end_a_wait", &shared);
    let guard = shared.lock.write().unwrap();
    let child = fork_child(|| {
        catch_user_signal();
        shared.step.reach(1);
        let began = Instant::now();
        assert!(matches!(shared.lock.read_timeout(ms(100)), Err(LockError::TimedOut(_))));
        assert!(began.elapsed() >= ms(100));
        shared.step.reach(2);
        shared.step.until(3); // there is a reader now
        let began = Instant::now();
        assert!(matches!(shared.lock.write_timeout(ms(100)), Err(LockError::TimedOut(_))));
        assert!(began.elapsed() >= ms(100));
        assert!(CAUGHT.load(SeqCst) > 0, "no signal came");
        shared.step.reach(4);
        drop(shared.lock.write().unwrap());
    });
    let disturb_until = |step: u32| {
        child.disturb_while(|| shared.step.load(SeqCst) < step);
    };
    shared.step.until(1);
    disturb_until(2);
    let guard = WriteGuard::downgrade(guard);
    shared.step.reach(3);
    disturb_until(4);
    for _ in 0..10 {
        child.signal(libc::SIGUSR1);
        std::thread::sleep(ms(1));
    }
    drop(guard);
    child.succeeds();
}

// --------------------------------------------------------------------------------------- turns

/// Readers who take turns so that there is always one; the writer gets in all the same.
#[test]
fn readers_do_not_keep_a_writer_out() {
    worlds(
        "readers_do_not_keep_a_writer_out",
        "",
        4,
        pair,
        |shared, role| {
            if role == 0 {
                shared.turns.fetch_add(1, SeqCst);
                for i in 0..40 {
                    let mut guard = shared.lock.write_timeout(common::PATIENCE).unwrap();
                    guard[i % 2] += 1;
                    drop(guard);
                    std::thread::sleep(ms(1));
                }
                shared.over.store(1, SeqCst);
                return;
            }
            while shared.over.load(SeqCst) == 0 {
                let guard = shared.lock.read().unwrap();
                // Stays until another reader is inside, or a writer waits.
                let seen = shared.together.fetch_add(1, SeqCst);
                let end = Instant::now() + ms(3);
                while shared.together.load(SeqCst) == seen + 1 && Instant::now() < end {
                    std::thread::yield_now();
                }
                drop(guard);
            }
        },
        |shared| assert_eq!(*shared.lock.read().unwrap(), [20; 2]),
    );
}

#[test]
fn writers_do_not_keep_a_reader_out() {
    worlds(
        "writers_do_not_keep_a_reader_out",
        "",
        4,
        pair,
        |shared, role| {
            if role == 0 {
                for _ in 0..40 {
                    drop(shared.lock.read_timeout(common::PATIENCE).unwrap());
                }
                shared.over.store(1, SeqCst);
                return;
            }
            while shared.over.load(SeqCst) == 0 {
                let mut guard = shared.lock.write().unwrap();
                guard[0] += 1;
                busy(Duration::from_micros(5));
                guard[1] += 1;
            }
        },
        |shared| {
            let guard = shared.lock.read().unwrap();
            assert_eq!(guard[0], guard[1]);
        },
    );
}

/// Many asleep behind one writer, of both kinds: all of them get their turn.
#[test]
fn every_sleeper_is_woken() {
    let shared = pair();
    let _watchdog = watch("every_sleeper_is_woken", &shared);
    for round in 0..15 {
        let guard = shared.lock.write().unwrap();
        let sleepers: Vec<_> = (0..6)
            .map(|i| {
                let sleeper = fork_child(|| {
                    Spin::Never.set();
                    if i % 2 == round % 2 {
                        drop(shared.lock.read().unwrap());
                    } else {
                        shared.lock.write().unwrap()[0] += 1;
                    }
                });
                sleeper.until_waiting();
                sleeper
            })
            .collect();
        drop(guard);
        sleepers.into_iter().for_each(Child::succeeds);
    }
    assert_eq!(shared.lock.read().unwrap()[0], 15 * 3);
}

/// Readers sleep behind a writer that waits for a reader and then times out. They are let in.
#[test]
fn a_writer_that_gives_up_lets_the_readers_in() {
    let shared = pair();
    let _watchdog = watch("a_writer_that_gives_up", &shared);
    for _ in 0..10 {
        let guard = shared.lock.read().unwrap();
        let writer = fork_child(|| {
            Spin::Never.set();
            assert!(matches!(shared.lock.write_timeout(ms(80)), Err(LockError::TimedOut(_))));
        });
        writer.until_waiting();
        let readers = [(); 3].map(|()| {
            fork_child(|| {
                Spin::Never.set();
                drop(shared.lock.read().unwrap());
            })
        });
        readers.iter().for_each(Child::until_waiting);
        writer.succeeds();
        readers.into_iter().for_each(Child::succeeds);
        drop(guard);
        assert!(can_write(&shared.lock));
    }
}

// -------------------------------------------------------------------------------------- deaths

#[track_caller]
fn read_from_the_dead<T: outlast::Plain>(lock: &RwLock<T>) -> ReadGuard<'_, T> {
    match lock.read_timeout(common::PATIENCE) {
        Err(LockError::OwnerDied(guard)) => guard,
        Ok(_) => panic!("the death was not told"),
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn write_from_the_dead<T: outlast::Plain>(lock: &RwLock<T>) -> WriteGuard<'_, T> {
    match lock.write_timeout(common::PATIENCE) {
        Err(LockError::OwnerDied(guard)) => guard,
        Ok(_) => panic!("the death was not told"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_dead_reader_lets_go_at_once() {
    let shared = pair();
    let _watchdog = watch("a_dead_reader", &shared);
    for round in 0..20 {
        let step = 2 * round;
        let readers = [(); 2].map(|()| {
            fork_child(|| {
                core::mem::forget(shared.lock.read().unwrap());
                core::mem::forget(shared.lock.read().unwrap()); // and once more
                shared.together.fetch_add(1, SeqCst);
                sleep_for_ever();
            })
        });
        shared.together.until(2 * (round + 1));
        assert!(matches!(shared.lock.try_write(), Err(LockError::WouldBlock)));
        let writer = fork_child(|| {
            Spin::Never.set();
            shared.lock.write().unwrap()[0] += 1;
            shared.step.reach(step + 1);
        });
        writer.until_waiting();
        let late = (round % 2 == 0).then(|| {
            let late = fork_child(|| drop(shared.lock.read().unwrap()));
            late.until_waiting();
            late
        });
        readers.into_iter().for_each(Child::kill9);
        writer.succeeds();
        late.into_iter().for_each(Child::succeeds);
        assert_eq!(shared.lock.poison_cause(), None);
    }
    // Wherever a thread looks for a slot first: nothing of the dead is left in it.
    for _ in 0..3 * SLOTS {
        elsewhere(|| drop(shared.lock.read().unwrap()));
        assert!(can_write(&shared.lock));
    }
}

#[test]
fn a_dead_writer_poisons() {
    for second_mapping in [false, true] {
        let shared = pair();
        let _watchdog = watch("a_dead_writer_poisons", &shared);
        let in_child = || {
            if second_mapping {
                return Shared::from_fd(shared.try_clone_fd().unwrap()).unwrap();
            }
            shared.clone()
        };
        let writer = fork_child(|| {
            let shared = in_child();
            let mut guard = shared.lock.write().unwrap();
            guard[0] = 7;
            hold(&shared, 1);
        });
        shared.step.until(1);
        let sleepers: Vec<_> = (0..4)
            .map(|i| {
                let sleeper = fork_child(|| {
                    let shared = in_child();
                    let seen = if i % 2 == 0 {
                        read_from_the_dead(&shared.lock)[0]
                    } else {
                        write_from_the_dead(&shared.lock)[0]
                    };
                    assert_eq!(seen, 7);
                });
                sleeper.until_waiting();
                sleeper
            })
            .collect();
        writer.kill9();
        sleepers.into_iter().for_each(Child::succeeds);

        // It stays poisoned for all threads until one of them marks it consistent.
        let lock = &shared.lock;
        assert!(lock.is_poisoned());
        assert_eq!(lock.poison_cause(), Some(PoisonCause::OwnerDied));
        for _ in 0..2 {
            assert_eq!(read_from_the_dead(lock)[0], 7);
            assert_eq!(write_from_the_dead(lock)[0], 7);
        }
        assert!(matches!(lock.try_read(), Err(LockError::OwnerDied(_))));
        match lock.try_write() {
            Err(error @ LockError::OwnerDied(_)) => {
                assert_eq!(error.cause(), Some(PoisonCause::OwnerDied));
                let mut guard = error.into_guard().unwrap();
                guard[1] = 7;
                WriteGuard::mark_consistent(&mut guard);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(*lock.read().unwrap(), [7, 7]);
        assert!(!lock.is_poisoned());
    }
}

#[test]
fn poison_shows_before_anybody_has_taken_the_lock() {
    let shared = pair();
    let _watchdog = watch("poison_shows", &shared);
    let writer = fork_child(|| {
        core::mem::forget(shared.lock.write());
        hold(&shared, 1);
    });
    shared.step.until(1);
    assert_eq!(shared.lock.poison_cause(), None);
    writer.kill9();
    assert_eq!(shared.lock.poison_cause(), Some(PoisonCause::OwnerDied));
    drop(read_from_the_dead(&shared.lock));
    shared.lock.clear_poison();
    assert_eq!(shared.lock.poison_cause(), None);
    drop(shared.lock.write().unwrap());
}

/// The next writer dies before it could declare the value sound: the one after it still learns of
/// it.
#[test]
fn deaths_in_a_row() {
    let shared = pair();
    let _watchdog = watch("deaths_in_a_row", &shared);
    for i in 0..6 {
        let owner = fork_child(|| {
            if i % 2 == 0 {
                core::mem::forget(shared.lock.write());
            } else {
                core::mem::forget(read_from_the_dead(&shared.lock));
            }
            hold(&shared, i + 1);
        });
        shared.step.until(i + 1);
        owner.kill9();
    }
    WriteGuard::mark_consistent(&mut write_from_the_dead(&shared.lock));
    drop(shared.lock.write().unwrap());
}

/// A slot that a dead reader owned twice is free after one drop of its next owner.
#[test]
fn levels_of_a_dead_reader_are_forgotten() {
    let shared = pair();
    let _watchdog = watch("levels_of_a_dead_reader", &shared);
    // This many threads own each slot in turn, also the one that this thread prefers.
    for _ in 0..256 {
        elsewhere(|| {
            std::mem::forget(shared.lock.read().unwrap());
            std::mem::forget(shared.lock.read().unwrap());
        });
    }
    drop(shared.lock.read().unwrap());
    assert!(elsewhere(|| can_write(&shared.lock)));
    assert_eq!(shared.lock.poison_cause(), None);
}

/// A writer that waits for readers has not touched the value. Neither has a thread that waits for
/// the writer word.
#[test]
fn a_dead_waiter_leaves_nothing_behind() {
    let shared = pair();
    let _watchdog = watch("a_dead_waiter", &shared);
    for round in 0..20 {
        let guard = shared.lock.read().unwrap();
        let waiters: Vec<_> = (0..4)
            .map(|i| {
                let waiter = fork_child(|| {
                    Spin::Never.set();
                    if i % 2 == 0 {
                        drop(shared.lock.write().unwrap());
                    } else {
                        drop(shared.lock.read().unwrap());
                    }
                });
                waiter.until_waiting();
                waiter
            })
            .collect();
        let mut waiters = waiters.into_iter();
        let first = waiters.next().unwrap();
        if round % 2 == 0 {
            first.kill9(); // it owns the writer word, and waits for the reader
            assert_eq!(shared.lock.poison_cause(), None);
            drop(guard);
        } else {
            drop(guard);
            first.signal(libc::SIGKILL);
            assert!(matches!(first.wait(), common::KILLED | OK));
        }
        for waiter in waiters {
            match waiter.wait() {
                OK => {}
                // The first was killed when it had the lock.
                common::Exit::Code(101) if round % 2 == 1 => {}
                other => panic!("{other:?}"),
            }
        }
        if round % 2 == 0 {
            assert_eq!(shared.lock.poison_cause(), None);
        }
        shared.lock.clear_poison();
        drop(shared.lock.write().unwrap());
    }
}

#[test]
fn a_thread_that_ends_with_the_lock_is_a_death() {
    let shared = pair();
    let _watchdog = watch("a_thread_that_ends_with_the_lock", &shared);
    elsewhere(|| core::mem::forget(shared.lock.read().unwrap()));
    drop(shared.lock.write().unwrap());
    elsewhere(|| core::mem::forget(shared.lock.write().unwrap()));
    drop(read_from_the_dead(&shared.lock));
    WriteGuard::mark_consistent(&mut write_from_the_dead(&shared.lock));
    drop(shared.lock.read().unwrap());
}

/// Readers and writers are killed in the middle of their work, all the time. The value is two
/// numbers that are equal and grow by one with every change. The lock reports a change that was
/// interrupted, and the next writer repairs the value.
#[test]
fn storms_with_kills() {
    const LIVES: u64 = 120;
    let shared = pair();
    let _watchdog = watch("storms_with_kills", &shared);
    let work = |seed: u64, lives_on: bool| {
        let mut random = Random::new(seed);
        let lock = &shared.lock;
        let mut changes = 0;
        while !lives_on || shared.over.load(SeqCst) == 0 {
            if random.below(4) > 0 {
                let guard = match lock.read_timeout(common::PATIENCE) {
                    Ok(guard) => guard,
                    Err(LockError::OwnerDied(_)) => continue,
                    Err(error) => panic!("{error}"),
                };
                let first = guard[0];
                busy(random.micros(15));
                assert_eq!(guard[1], first, "half changed, and not poisoned");
                if random.below(8) == 0 {
                    drop(lock.read_timeout(common::PATIENCE));
                }
                continue;
            }
            let mut guard = match lock.write_timeout(common::PATIENCE) {
                Ok(guard) => guard,
                Err(LockError::OwnerDied(mut guard)) => {
                    // The second number was not counted up yet, or it was and the death came right
                    // after.
                    assert!((0..=1).contains(&(guard[0] - guard[1])), "{guard:?}");
                    guard[0] = guard[1];
                    WriteGuard::mark_consistent(&mut guard);
                    guard
                }
                Err(error) => panic!("{error}"),
            };
            assert_eq!(guard[0], guard[1], "half changed, and not poisoned");
            guard[0] += 1;
            core::sync::atomic::compiler_fence(SeqCst);
            if random.below(4) == 0 {
                busy(random.micros(20));
            }
            core::sync::atomic::compiler_fence(SeqCst);
            guard[1] += 1;
            changes += 1;
            // Seen by others before it is said to be done.
            drop(guard);
            if lives_on {
                shared.turns.fetch_add(1, SeqCst);
            }
        }
        assert!(changes > 0);
    };
    let survivors = [1, 2].map(|seed| fork_child(|| work(seed, true)));
    let mut random = Random::new(9);
    let mut victims: Vec<Child> = Vec::new();
    for life in 0..LIVES {
        victims.push(fork_child(|| work(100 + life, false)));
        std::thread::sleep(Duration::from_micros(500) + random.micros(4_000));
        if victims.len() > 3 {
            victims.swap_remove(random.index(4)).kill9();
        }
    }
    victims.into_iter().for_each(Child::kill9);
    shared.over.store(1, SeqCst);
    survivors.into_iter().for_each(Child::succeeds);
    let mut guard = match shared.lock.write_timeout(common::PATIENCE) {
        Ok(guard) => guard,
        Err(error) => error.into_guard().unwrap(),
    };
    assert!(guard[0] - guard[1] <= 1, "{guard:?}");
    assert!(guard[1] >= shared.turns.load(SeqCst), "changes of survivors were lost");
    WriteGuard::mark_consistent(&mut guard);
    drop(guard);
    assert!(can_read(&shared.lock) && can_write(&shared.lock));
}

// -------------------------------------------------------------------------------------- panics

#[test]
fn a_panic_of_a_writer_poisons() {
    let shared = pair();
    let _watchdog = watch("a_panic_poisons", &shared);
    let lock = &shared.lock;
    let panics = |act: &(dyn Fn() + Sync)| {
        let panicked = std::thread::scope(|scope| scope.spawn(act).join().is_err());
        assert!(panicked);
    };
    panics(&|| {
        let _guard = lock.read().unwrap();
        panic!("while it reads (expected)");
    });
    assert_eq!(lock.poison_cause(), None);
    panics(&|| {
        let mut guard = lock.write().unwrap();
        guard[0] = 1;
        panic!("while it writes (expected)");
    });
    assert_eq!(lock.poison_cause(), Some(PoisonCause::Panicked));
    match lock.read() {
        Err(error @ LockError::Poisoned(_)) => {
            assert_eq!(error.cause(), Some(PoisonCause::Panicked));
            assert_eq!(error.into_guard().unwrap()[0], 1);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(lock.write(), Err(LockError::Poisoned(_))));
    // A death on top of it is the graver of the two.
    let writer = fork_child(|| {
        core::mem::forget(lock.write().unwrap_err().into_guard());
        hold(&shared, 1);
    });
    shared.step.until(1);
    writer.kill9();
    WriteGuard::mark_consistent(&mut write_from_the_dead(lock));
    assert_eq!(lock.poison_cause(), None);
    // A thread that reads on while it panics has written before.
    struct Last<'a>(Option<WriteGuard<'a, [u64; 2]>>);
    impl Drop for Last<'_> {
        fn drop(&mut self) {
            drop(WriteGuard::downgrade(self.0.take().unwrap()));
        }
    }
    panics(&|| {
        let _last = Last(Some(lock.write().unwrap()));
        panic!("while it writes (expected)");
    });
    assert_eq!(lock.poison_cause(), Some(PoisonCause::Panicked));
    lock.clear_poison();
    // A lock that is taken while the thread panics already is not poisoned.
    struct Late<'a>(&'a RwLock<[u64; 2]>);
    impl Drop for Late<'_> {
        fn drop(&mut self) {
            self.0.write().unwrap()[0] = 5;
        }
    }
    panics(&|| {
        let _late = Late(lock);
        panic!("holding nothing (expected)");
    });
    assert_eq!(lock.read().unwrap()[0], 5);
}

// ---------------------------------------------------------------------------------- one thread

#[test]
fn reading_again() {
    let shared = pair();
    let _watchdog = watch("reading_again", &shared);
    let lock = &shared.lock;
    for first_out in [0, 1, 2] {
        let mut guards = Vec::from([(); 3].map(|()| lock.read().unwrap()));
        // Gets in immediately, although a writer waits.
        let writer = fork_child(|| {
            Spin::Never.set();
            lock.write().unwrap()[0] += 1;
        });
        writer.until_waiting();
        guards.push(lock.read().unwrap());
        guards.push(lock.try_read().unwrap());
        guards.push(lock.read_timeout(Duration::ZERO).unwrap());
        assert!(!can_read(lock), "past a writer that waits");
        // Until the last of them has gone, in any order, the writer waits.
        drop(guards.swap_remove(first_out));
        while guards.len() > 1 {
            drop(guards.swap_remove(guards.len() / 2));
            assert_eq!(guards[0][0], first_out as u64);
            assert!(!can_write(lock));
        }
        writer.until_waiting();
        drop(guards);
        writer.succeeds();
        assert!(can_write(lock));
    }
}

/// A guard is counted only through the mapping through which the lock was taken.
#[test]
fn reading_again_through_another_mapping() {
    let shared = pair();
    let _watchdog = watch("reading_again_through_another_mapping", &shared);
    let other = Shared::<Pair>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
    for (here, there) in [(&shared.lock, &other.lock), (&other.lock, &shared.lock)] {
        for writes in [false, true] {
            let first = match writes {
                true => WriteGuard::downgrade(here.write().unwrap()),
                false => here.read().unwrap(),
            };
            let second = here.read().unwrap();
            assert!(matches!(there.read(), Err(LockError::WouldDeadlock)));
            assert!(matches!(there.try_read(), Err(LockError::WouldDeadlock)));
            assert!(matches!(there.read_timeout(ms(1)), Err(LockError::WouldDeadlock)));
            drop(first);
            assert!(!can_write(there));
            drop(second);
            assert!(can_write(there));
        }
    }
}

/// A thread tries the lock again through another mapping, and releases what it holds in the order
/// in which it acquired it. Another process acquires the lock and one more. The thread dies, and
/// the kernel still finds all else that the thread held.
#[test]
fn attempts_through_another_mapping_lose_no_other_lock() {
    outlast::shared! {
        #[derive(Debug)]
        struct World { before: Lock<u64>, after: Lock<u64>, read: RwLock<u64>, again: ReentrantLock<u64>, inner: Lock<u64>, step: AtomicU32 }
    }
    common::in_own_process("attempts_through_another_mapping_lose_no_other_lock", || {
        let (before, after, inner) = (Lock::new(0), Lock::new(0), Lock::new(0));
        let (read, again, step) = (RwLock::new(0), ReentrantLock::new(0), AtomicU32::new(0));
        let shared = Shared::anonymous(World { before, after, read, again, inner, step }).unwrap();
        let _watchdog = watch("attempts_through_another_mapping", &shared);
        let holder = fork_child(|| {
            let other = Shared::<World>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
            let _before = shared.before.lock().unwrap();
            for _ in 0..2 {
                drop((shared.read.read().unwrap(), other.read.read()));
                drop((shared.again.lock().unwrap(), other.again.lock()));
            }
            let _after = shared.after.lock().unwrap();
            shared.step.reach(1);
            sleep_for_ever();
        });
        shared.step.until(1);
        // All words that the child may have had: their links are written.
        let _written = (shared.read.write().unwrap(), shared.again.lock().unwrap());
        let _inner = shared.inner.lock().unwrap();
        holder.kill9();
        for lock in [&shared.before, &shared.after] {
            let taken = lock.lock_timeout(ms(10_000));
            assert!(matches!(taken, Err(LockError::OwnerDied(_))), "{taken:?}");
        }
    });
}

#[test]
fn from_reading_to_writing_there_is_no_way() {
    let shared = pair();
    let _watchdog = watch("from_reading_to_writing", &shared);
    let other = Shared::<Pair>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
    let refused = |lock: &RwLock<[u64; 2]>| {
        assert!(matches!(lock.write(), Err(LockError::WouldDeadlock)));
        assert!(matches!(lock.try_write(), Err(LockError::WouldDeadlock)));
        assert!(matches!(lock.write_timeout(ms(1)), Err(LockError::WouldDeadlock)));
        assert!(matches!(lock.write_deadline(Instant::now()), Err(LockError::WouldDeadlock)));
    };
    // A reader, two readers that both want to write, and a reader behind which a writer waits.
    let guard = shared.lock.read().unwrap();
    refused(&shared.lock);
    refused(&other.lock);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let _guard = shared.lock.read().unwrap();
            refused(&shared.lock);
        });
        refused(&shared.lock);
        second.join().unwrap();
    });
    let writer = fork_child(|| drop(shared.lock.write().unwrap()));
    writer.until_waiting();
    refused(&shared.lock);
    drop(guard);
    writer.succeeds();
    // A writer.
    let guard = shared.lock.write().unwrap();
    for lock in [&shared.lock, &other.lock] {
        refused(lock);
        assert!(matches!(lock.read(), Err(LockError::WouldDeadlock)));
        assert!(matches!(lock.try_read(), Err(LockError::WouldDeadlock)));
        assert!(matches!(lock.read_timeout(ms(1)), Err(LockError::WouldDeadlock)));
    }
    assert!(!can_read(&shared.lock), "the attempts have given the lock up");
    drop(guard);
    assert!(can_write(&shared.lock));
}

#[test]
fn from_writing_to_reading() {
    let shared = pair();
    let _watchdog = watch("from_writing_to_reading", &shared);
    let mut guard = shared.lock.write().unwrap();
    guard[0] = 3;
    let sleepers = [0, 1].map(|kind| {
        let sleeper = fork_child(|| {
            Spin::Never.set();
            if kind == 0 {
                assert_eq!(shared.lock.read().unwrap()[0], 3, "written in between");
                shared.step.reach(1);
            } else {
                shared.step.until(1); // for as long as the other was the only one waiting
                shared.lock.write().unwrap()[0] += 1;
            }
        });
        if kind == 0 {
            sleeper.until_waiting();
        }
        sleeper
    });
    let guard = WriteGuard::downgrade(guard);
    shared.step.until(1);
    assert_eq!(guard[0], 3);
    assert!(matches!(shared.lock.write(), Err(LockError::WouldDeadlock)));
    drop(shared.lock.read().unwrap());
    drop(guard);
    sleepers.into_iter().for_each(Child::succeeds);
    assert_eq!(shared.lock.read().unwrap()[0], 4);
    // The death of a reader changes nothing, whatever the reader was before.
    let child = fork_child(|| {
        core::mem::forget(WriteGuard::downgrade(shared.lock.write().unwrap()));
        hold(&shared, 2);
    });
    shared.step.until(2);
    child.kill9();
    drop(shared.lock.write().unwrap());
}

/// Locks of both kinds in one thread, released in all orders.
#[test]
fn several_locks_in_any_order() {
    outlast::shared! {
        #[derive(Debug)]
        struct Several { a: RwLock<u64>, b: RwLock<u64>, c: Lock<u64> }
    }
    enum Guard<'a> {
        Read(#[expect(dead_code, reason = "held")] ReadGuard<'a, u64>),
        Write(#[expect(dead_code, reason = "held")] WriteGuard<'a, u64>),
        Lock(#[expect(dead_code, reason = "held")] outlast::LockGuard<'a, u64>),
    }
    let (a, b, c) = (RwLock::new(0), RwLock::new(0), Lock::new(0));
    let shared = Shared::anonymous(Several { a, b, c }).unwrap();
    let _watchdog = watch("several_locks", &shared);
    for order in 0..64_usize {
        let mut guards = [
            Some(Guard::Read(shared.a.read().unwrap())),
            Some(Guard::Write(shared.b.write().unwrap())),
            Some(Guard::Lock(shared.c.lock().unwrap())),
        ];
        for i in [order & 3, order >> 2 & 3, order >> 4] {
            if let Some(guard) = guards.get_mut(i) {
                *guard = None;
            }
            assert_eq!(can_write(&shared.a), guards[0].is_none());
            assert_eq!(can_read(&shared.b), guards[1].is_none());
        }
        drop(guards);
        assert!(can_write(&shared.a) && can_write(&shared.b));
        drop(shared.c.lock().unwrap());
    }
}

#[test]
fn a_thread_that_holds_too_many_locks() {
    common::in_own_process("a_thread_that_holds_too_many_locks", || {
        outlast::shared! { struct Crowd { locks: [Lock<u64>; 1_010], lock: RwLock<u64> } }
        let shared = outlast::Options::new().anonymous_with(|_: &Crowd| {}).unwrap();
        let _watchdog = common::watch_alone("a_thread_that_holds_too_many_locks");
        let lock = &shared.lock;
        let mut guards: Vec<_> = shared.locks.iter().map_while(|lock| lock.lock().ok()).collect();
        let too_many = |result: Result<(), Option<Fault>>| {
            assert_eq!(result, Err(Some(Fault::TooManyLocks)));
        };
        let fault = |error| if let LockError::Failed(fault) = error { Some(fault) } else { None };
        too_many(lock.read().map(drop).map_err(|error| fault(error.map_guard())));
        too_many(lock.write().map(drop).map_err(|error| fault(error.map_guard())));
        assert!(can_write(lock));
        // With room for one word a reader gets by, but a writer that has to wait would need two.
        guards.pop();
        drop(lock.read().unwrap());
        drop(lock.write().unwrap());
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                let _guard = lock.read().unwrap();
                tell.send(()).unwrap();
                ended.recv().unwrap_err();
            });
            told.recv().unwrap();
            drop(lock.read().unwrap());
            too_many(lock.write().map(drop).map_err(|error| fault(error.map_guard())));
            drop(end);
        });
        assert!(can_write(lock));
        drop(guards);
        drop(lock.write().unwrap());
    });
}

/// What is left of an error when the guard does not matter.
trait MapGuard {
    fn map_guard(self) -> LockError<()>;
}

impl<G> MapGuard for LockError<G> {
    fn map_guard(self) -> LockError<()> {
        match self {
            LockError::Failed(fault) => LockError::Failed(fault),
            _ => LockError::WouldBlock,
        }
    }
}

#[test]
fn eagerly() {
    common::in_own_process("eagerly", || {
        let shared = pair();
        let _watchdog = watch("eagerly", &shared);
        outlast::lock::set_eager(true);
        for round in 0..3 {
            let (first, second) = (shared.lock.read().unwrap(), shared.lock.read().unwrap());
            assert!(!can_write(&shared.lock));
            drop(first);
            assert!(!can_write(&shared.lock));
            drop(second);
            drop(WriteGuard::downgrade(shared.lock.write().unwrap()));
            let reader = fork_child(|| {
                core::mem::forget(shared.lock.read().unwrap());
                hold(&shared, 2 * round + 1);
            });
            shared.step.until(2 * round + 1);
            reader.kill9();
            let writer = fork_child(|| {
                core::mem::forget(shared.lock.write().unwrap());
                hold(&shared, 2 * round + 2);
            });
            shared.step.until(2 * round + 2);
            writer.kill9();
            WriteGuard::mark_consistent(&mut write_from_the_dead(&shared.lock));
        }
    });
}

// ------------------------------------------------------------------------ more readers than slots

/// Lets this many threads read at the same time, and then runs `inside` beside them.
fn beside_readers(shared: &Shared<Pair>, readers: usize, inside: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let before = shared.together.load(SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                let guard = shared.lock.read().unwrap();
                shared.together.fetch_add(1, SeqCst);
                common::eventually("all is over", || over.load(SeqCst));
                drop(guard);
            });
        }
        shared.together.until(before + u32::try_from(readers).unwrap());
        let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(inside));
        over.store(true, SeqCst);
        outcome.unwrap();
    });
    assert!(can_write(&shared.lock));
}

#[test]
fn more_readers_than_slots() {
    common::in_own_process("more_readers_than_slots", || {
        let shared = pair();
        let _watchdog = watch("more_readers_than_slots", &shared);
        let lock = &shared.lock;
        // One more reader than there are slots, all inside at the same time. Otherwise
        // `beside_readers` would wait for ever.
        beside_readers(&shared, SLOTS + 1, || {
            assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
            assert!(matches!(lock.read_timeout(ms(30)), Err(LockError::TimedOut(_))));
            assert!(matches!(lock.write_timeout(ms(30)), Err(LockError::TimedOut(_))));
        });
        beside_readers(&shared, SLOTS, || {
            // This thread is the one without a slot. It is a reader like any other.
            let (first, second) = (lock.read().unwrap(), lock.try_read().unwrap());
            assert!(matches!(lock.write(), Err(LockError::WouldDeadlock)));
            assert!(!can_read(lock));
            drop(first);
            assert!(!can_read(lock));
            // Later readers wait for it, and are let in one after the other.
            let late = [(); 2].map(|()| {
                fork_child(|| {
                    drop(shared.lock.read().unwrap());
                })
            });
            late.iter().for_each(Child::until_waiting);
            drop(second);
            late.into_iter().for_each(Child::succeeds);
            assert!(can_read(lock) && !can_write(lock));
            // And if it dies: it is no writer.
            let overflow = fork_child(|| {
                core::mem::forget(lock.read().unwrap());
                core::mem::forget(lock.read().unwrap());
                hold(&shared, 1);
            });
            shared.step.until(1);
            assert!(!can_read(lock));
            let late = fork_child(|| drop(shared.lock.read().unwrap()));
            late.until_waiting();
            overflow.kill9();
            late.succeeds();
            assert_eq!(lock.poison_cause(), None);
            drop(lock.try_read().unwrap());
        });
        drop(lock.write().unwrap());
    });
}

/// A crowd that comes and goes, more than there are slots, with a writer among them.
#[test]
fn a_crowd() {
    const CROWD: u64 = 80;
    let shared = pair();
    let _watchdog = watch("a_crowd", &shared);
    std::thread::scope(|scope| {
        for i in 0..CROWD {
            let shared = &shared;
            scope.spawn(move || {
                let mut random = Random::new(i);
                for _ in 0..60 {
                    if random.below(20) == 0 {
                        as_writer(shared, &mut shared.lock.write().unwrap(), &mut random);
                    } else {
                        let guard = shared.lock.read().unwrap();
                        std::thread::yield_now();
                        as_reader(shared, &guard, &mut random);
                    }
                }
            });
        }
    });
    assert!(can_write(&shared.lock));
}

// ---------------------------------------------------------------------------------------- fork

#[test]
fn a_guard_copied_by_fork_is_inert() {
    common::in_own_process("a_guard_copied_by_fork_is_inert", || {
        let shared = pair();
        let _watchdog = watch("a_guard_copied_by_fork", &shared);
        let lock = &shared.lock;
        for panics in [false, true] {
            for kind in 0..4 {
                let (mut write, mut reads) = (None, Vec::new());
                match kind {
                    0 => write = Some(lock.write().unwrap()),
                    1 => reads.push(WriteGuard::downgrade(lock.write().unwrap())),
                    n => reads.extend((1..n).map(|_| lock.read().unwrap())),
                }
                let child = fork_child(|| {
                    let mut guards = (write.take(), core::mem::take(&mut reads));
                    if panics {
                        let panicked =
                            std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                                let _guards = guards;
                                std::panic::resume_unwind(Box::new("a panic without a message"));
                            }));
                        assert!(panicked.is_err());
                    } else if let Some(guard) = guards.0.take() {
                        drop(WriteGuard::downgrade(guard));
                    }
                    assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
                    if kind == 0 {
                        assert!(matches!(lock.read_timeout(ms(5)), Err(LockError::TimedOut(_))));
                    } else {
                        drop(lock.read().unwrap());
                    }
                });
                child.succeeds();
                assert!(!can_write(lock));
                assert_eq!(can_read(lock), kind != 0);
                assert_eq!(lock.poison_cause(), None);
                drop((write, reads));
                assert!(can_write(lock));
            }
        }
    });
}

/// The parent gives a lock up, the child takes it, and only then drops its copy of the parent's
/// guard.
#[test]
fn a_copy_does_not_give_up_what_the_child_took_itself() {
    common::in_own_process("a_copy_does_not_give_up_what_the_child_took_itself", || {
        outlast::shared! {
            #[derive(Debug)]
            struct Two { pair: RwLock<u64>, lock: Lock<u64>, step: AtomicU32 }
        }
        let (pair, lock, step) = (RwLock::new(0), Lock::new(0), AtomicU32::new(0));
        let shared = Shared::anonymous(Two { pair, lock, step }).unwrap();
        let _watchdog = watch("a_copy_does_not_give_up", &shared);
        let can_lock =
            || elsewhere(|| !matches!(shared.lock.try_lock(), Err(LockError::WouldBlock)));
        for (round, writes) in [(0, true), (1, false)] {
            let mut guards = if writes {
                (Some(shared.lock.lock().unwrap()), Some(shared.pair.write().unwrap()), Vec::new())
            } else {
                let reads = Vec::from([(); 2].map(|()| shared.pair.read().unwrap()));
                (Some(shared.lock.lock().unwrap()), None, reads)
            };
            let child = fork_child(|| {
                shared.step.until(2 * round + 1);
                let mut mine = (shared.lock.lock().unwrap(), None, Vec::new());
                if writes {
                    mine.1 = Some(shared.pair.write().unwrap());
                } else {
                    // Until it has the slot that the parent had.
                    mine.2.extend([(); 3].map(|()| shared.pair.read().unwrap()));
                }
                drop((guards.0.take(), guards.1.take(), core::mem::take(&mut guards.2)));
                shared.step.reach(2 * round + 2);
                sleep_for_ever();
            });
            drop((guards.0.take(), guards.1.take(), core::mem::take(&mut guards.2)));
            shared.step.reach(2 * round + 1);
            shared.step.until(2 * round + 2);
            assert!(!can_lock(), "the child's lock has been given up");
            assert!(!can_write(&shared.pair), "the child's lock has been given up");
            assert_eq!(can_read(&shared.pair), !writes);
            child.kill9();
            shared.lock.lock().map_err(LockError::into_guard).unwrap_err();
            shared.lock.clear_poison();
            drop(shared.pair.write());
            shared.pair.clear_poison();
        }
    });
}

// --------------------------------------------------------------------------- places and values

#[test]
fn a_lock_outside_of_shared_memory_panics() {
    let lock = RwLock::new(1_u64);
    for attempt in 0..6 {
        let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| match attempt {
            0 => drop(lock.read()),
            1 => drop(lock.try_read()),
            2 => drop(lock.read_timeout(ms(1))),
            3 => drop(lock.write()),
            4 => drop(lock.try_write()),
            _ => drop(lock.write_timeout(ms(1))),
        }));
        let panic = *outcome.unwrap_err().downcast::<&'static str>().unwrap();
        assert_eq!(panic, "the lock does not lie in shared memory");
    }
    // And it has left this thread able to lock.
    drop(pair().lock.write().unwrap());
}

#[test]
fn a_forgotten_guard_keeps_the_mapping() {
    common::in_own_process("a_forgotten_guard_keeps_the_mapping", || {
        let _watchdog = common::watch_alone("a_forgotten_guard_keeps_the_mapping");
        fork_child(|| {
            let mappings = || {
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                maps.lines().filter(|line| line.contains("memfd:outlast")).count()
            };
            let before = mappings();
            std::thread::spawn(move || {
                for held in 1..=3 {
                    let shared = pair();
                    match held {
                        1 => core::mem::forget(shared.lock.read()),
                        2 => core::mem::forget(shared.lock.write()),
                        _ => core::mem::forget(WriteGuard::downgrade(shared.lock.write().unwrap())),
                    }
                    drop(shared);
                    assert_eq!(mappings(), before + held, "unmapped under the kernel's list");
                }
            })
            .join()
            .unwrap();
        })
        .succeeds();
    });
}

/// The list of held locks keeps a mapping even if `in_use` does not report the guard. Nothing else
/// reports it when an initialiser returns.
#[test]
fn an_initialiser_that_forgets_a_guard_is_refused() {
    const NAME: &str = "an_initialiser_that_forgets_a_guard_is_refused";
    common::in_own_process(NAME, || {
        let _watchdog = common::watch_alone(NAME);
        let forgets: [fn(&RwLock<u64>); 3] = [
            |lock| core::mem::forget(lock.read()),
            |lock| core::mem::forget(lock.write()),
            |lock| core::mem::forget(WriteGuard::downgrade(lock.write().unwrap())),
        ];
        for forget in forgets {
            let made = Options::new().anonymous_with(forget);
            assert!(matches!(made, Err(OpenError::LeftLocked)), "{made:?}");
        }
    });
}

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Colour: u8 { Red = 1, Green = 2 }
    #[derive(Debug, PartialEq)]
    struct Paint { amount: u64, colour: Colour, dry: bool }
}

/// The segment's bytes, and where the value in it starts.
fn bytes_of<T: Shareable + Sync + 'static>(shared: &Shared<T>) -> (std::fs::File, u64) {
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut value_at = [0; 8];
    file.read_exact_at(&mut value_at, 104).unwrap(); // see the header's table
    (file, u64::from_ne_bytes(value_at))
}

#[test]
fn bits_that_are_no_value() {
    let paint = Paint { amount: 9, colour: Colour::Green, dry: true };
    let shared = Shared::anonymous(RwLock::new(paint)).unwrap();
    let _watchdog = watch("bits_that_are_no_value", &shared);
    let (file, start) = bytes_of(&shared);
    let value_at = start + <RwLock<Paint> as Shareable>::layout().fields[0].offset as u64;
    let (colour, dry) = (value_at + 8, value_at + 9);
    for (at, bits) in [(colour, 0), (colour, 3), (colour, 255), (dry, 2), (dry, 255)] {
        let mut good = [0];
        file.read_exact_at(&mut good, at).unwrap();
        file.write_all_at(&[bits], at).unwrap();
        for _ in 0..2 {
            assert!(matches!(shared.read(), Err(LockError::Failed(Fault::Corrupt))));
            assert!(matches!(shared.try_write(), Err(LockError::Failed(Fault::Corrupt))));
            assert!(can_write(&shared), "the lock was kept");
        }
        file.write_all_at(&good, at).unwrap();
        assert_eq!(*shared.read().unwrap(), paint);
    }
}

/// Every word holds a value that no peer writes. The result is an error at worst, neither a panic
/// nor a hang.
#[cfg(all(not(outlast_pthread), not(outlast_hooks)))] // a later look finds owners that do not exist
#[test]
fn words_that_are_damaged() {
    let shared = Shared::anonymous(RwLock::new(5_u64)).unwrap();
    let _watchdog = watch("words_that_are_damaged", &shared);
    let (file, start) = bytes_of(&shared);
    let lock: &RwLock<u64> = &shared;
    let write = |slot: u64, word: u32| {
        file.write_all_at(&word.to_ne_bytes(), start + LINE * slot).unwrap();
    };
    let slots = 1..=SLOTS as u64;
    let (unplaced, nobody) = (0x3fff_ffff, 0x3fff_fff0);
    // "Not placed yet", in a segment where everything is; and an owner that does not exist, and so
    // is dead.
    write(0, unplaced);
    assert!(matches!(lock.read(), Err(LockError::Failed(Fault::Corrupt))));
    assert!(matches!(lock.write(), Err(LockError::Failed(Fault::Corrupt))));
    write(0, nobody);
    assert!(matches!(lock.try_read(), Err(LockError::WouldBlock)));
    assert_eq!(*lock.read_timeout(ms(5)).unwrap(), 5);
    write(0, nobody);
    assert_eq!(*lock.write_timeout(ms(5)).unwrap(), 5);
    slots.clone().for_each(|slot| write(slot, unplaced));
    assert_eq!(*lock.read().unwrap(), 5); // without a slot
    assert!(matches!(lock.write(), Err(LockError::Failed(Fault::Corrupt))));
    slots.clone().for_each(|slot| write(slot, nobody));
    assert_eq!(*lock.read().unwrap(), 5);
    assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    // When it times out, a wait asks about one owner: the one for which it has slept.
    assert!(matches!(lock.write_timeout(ms(5)), Err(LockError::TimedOut(_))));
    assert_eq!(*lock.write().unwrap(), 5);
    // Any bytes at all.
    let mut random = Random::new(3);
    for _ in 0..300 {
        let mut bytes = [0; 40 + 64 * SLOTS];
        for chunk in bytes.chunks_exact_mut(8) {
            let known = [0, 1, 2, u64::MAX, u64::from(unplaced), 1 << 30, 1 << 31, 3 << 30];
            let number = if random.below(2) == 0 { random.next() } else { known[random.index(8)] };
            chunk.copy_from_slice(&number.to_ne_bytes());
        }
        file.write_all_at(&bytes, start).unwrap();
        for ask in 0..4 {
            elsewhere(|| match ask {
                0 => drop(lock.try_read()),
                1 => drop(lock.read_timeout(Duration::from_micros(50))),
                2 => drop(lock.try_write()),
                _ => drop(lock.write_timeout(Duration::from_micros(50))),
            });
        }
        assert!(!format!("{shared:?}").is_empty());
    }
    // And none, as a fresh mapping has them.
    file.write_all_at(&[0; 40 + 64 * SLOTS], start).unwrap();
    *lock.write().unwrap() += 1;
    assert_eq!(*lock.read().unwrap(), 6);
}

#[test]
fn before_it_is_shared() {
    let mut lock = RwLock::new(1_u64);
    *lock.get_mut() += 1;
    let shared = Shared::anonymous(lock).unwrap();
    assert_eq!(*shared.read().unwrap(), 2);
    assert_eq!(format!("{0} {0:?}", shared.read().unwrap()), "2 2");
    assert_eq!(format!("{0} {0:?}", shared.write().unwrap()), "2 2");
    assert_eq!(size_of::<RwLock<u64>>(), 64 * (SLOTS + 2));
    assert_eq!(<RwLock<u64> as Shareable>::layout().fields[0].offset, 64 * (SLOTS + 1));
}

#[test]
fn sleeping_threads_are_woken() {
    let shared = pair();
    let _watchdog = watch("sleeping_threads_are_woken", &shared);
    std::thread::scope(|scope| {
        for round in 0..60 {
            let guard = shared.lock.write().unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            let lock = &shared.lock;
            let sleeper = scope.spawn(move || {
                Spin::Never.set();
                tell.send(common::thread_id()).unwrap();
                if round % 2 == 0 {
                    drop(lock.read().unwrap());
                } else {
                    drop(lock.write().unwrap());
                }
            });
            until_waiting(told.recv().unwrap());
            if round % 3 == 0 {
                let guard = WriteGuard::downgrade(guard);
                if round % 2 == 0 {
                    sleeper.join().unwrap(); // a reader, beside this one
                    drop(guard);
                    continue;
                }
                drop(guard);
            } else {
                drop(guard);
            }
            sleeper.join().unwrap();
        }
    });
}

#[test]
#[cfg(not(outlast_pthread))] // which lays the words out where this test writes
fn too_many_guards_of_one_reader() {
    let lock = Shared::anonymous(RwLock::new(1_u64)).unwrap();
    let _watchdog = watch("too_many_guards_of_one_reader", &lock);
    let count = |to: u32| {
        (1..=32).for_each(|slot| common::scribble(&*lock, 64 * slot + 16, &to.to_ne_bytes()));
    };
    let guard = lock.read().unwrap();
    count(u32::MAX);
    assert!(matches!(lock.read(), Err(LockError::Failed(Fault::TooDeep))));
    assert!(matches!(lock.try_read(), Err(LockError::Failed(Fault::TooDeep))));
    assert!(!can_write(&lock));
    count(0);
    drop(guard);
    assert!(can_write(&lock));
}

/// A peer that writes over the count of a reader's guards keeps the lock taken, and no more: the
/// memory is not touched when it has gone.
#[test]
#[cfg(not(outlast_pthread))] // which lays the words out where this test writes
fn a_forged_count_of_guards() {
    let _watchdog = common::watch_alone("a_forged_count_of_guards");
    let other = Shared::anonymous([Lock::new(0_u8), Lock::new(0)]).unwrap();
    for listed in [false, true] {
        let lock = Shared::anonymous(RwLock::new(1_u64)).unwrap();
        let guard = lock.read().unwrap();
        let held = listed.then(|| other[0].lock().unwrap());
        for slot in 1..=32 {
            common::scribble(&*lock, 64 * slot + 16, &u32::to_ne_bytes(5));
        }
        drop(guard);
        assert!(matches!(lock.try_write(), Err(LockError::WouldDeadlock)), "it is this thread's");
        for slot in 1..=32 {
            common::scribble(&*lock, 64 * slot, &[0; 4]);
        }
        drop(lock);
        let (one, two) = (other[1].lock().unwrap(), held.or_else(|| other[0].lock().ok()));
        drop((one, two));
    }
}
