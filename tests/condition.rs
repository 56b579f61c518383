//! `Condition` on both kinds of lock: which waiters are woken and when, timeouts, deaths, forks and
//! damaged memory.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    KILLED, OK, Random, Stage, eventually, fork_child, ms, sleep_for_ever, watch, worlds,
};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    Condition, ConditionGuard, Fault, Lock, LockError, LockGuard, Options, ReentrantLock,
    ReentrantLockGuard, Shareable, Shared, Spin,
};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const CROWD: usize = 5;

outlast::shared! {
    #[derive(Debug)]
    struct Scene {
        lock: Lock<u64>,
        relock: ReentrantLock<u64>,
        changed: Condition,
        who: [AtomicU64; CROWD],
        waiting: AtomicU32,
        returned: AtomicU32,
        step: AtomicU32
    }
}

/// Runs a test that no death of its own ends: each child that another test forks is a peer, and its
/// death ends all waits.
fn alone(name: &str, test: impl FnOnce()) {
    common::in_own_process(name, test);
}

fn new_scene() -> Scene {
    Scene {
        lock: Lock::new(0),
        relock: ReentrantLock::new(0),
        changed: Condition::new(),
        who: core::array::from_fn(|_| AtomicU64::new(0)),
        waiting: AtomicU32::new(0),
        returned: AtomicU32::new(0),
        step: AtomicU32::new(0),
    }
}

fn scene() -> Shared<Scene> {
    Shared::anonymous(new_scene()).unwrap()
}

const AT_ONCE: Duration = Duration::ZERO;

/// The guard, whatever happened to earlier owners.
fn sound<G>(taken: Result<G, LockError<G>>) -> G {
    taken.or_else(|error| error.into_guard().ok_or("not taken")).unwrap()
}

impl Scene {
    /// Both locks as one, so that a test can be played with either.
    fn wait_on(&self, deep: bool, wait: impl Fn() -> Option<Duration>) -> bool {
        if deep {
            let outer = sound(self.relock.lock());
            let inner = sound(self.relock.lock());
            let (inner, timed_out) = self.wait(inner, wait());
            assert_eq!((inner.depth(), outer.depth()), (2, 2));
            timed_out
        } else {
            self.wait(sound(self.lock.lock()), wait()).1
        }
    }

    fn wait<G: ConditionGuard>(&self, guard: G, timeout: Option<Duration>) -> (G, bool) {
        match timeout {
            None => (sound(self.changed.wait(guard)), false),
            Some(timeout) => {
                let (guard, ended) = sound(self.changed.wait_timeout(guard, timeout));
                (guard, ended.timed_out())
            }
        }
    }

    /// Waits until so many have given the lock up, and sleep.
    fn until_asleep(&self, n: usize) {
        eventually("all wait", || self.waiting.load(SeqCst) == u32::try_from(n).unwrap());
        // A thread that has announced itself owns the lock until it waits.
        drop((sound(self.lock.lock()), sound(self.relock.lock())));
        for who in &self.who[..n] {
            eventually("all sleep", || common::is_waiting(who.load(SeqCst)));
        }
    }
}

/// A child that waits until it is notified, once it has announced itself as number `i`.
fn waiter(scene: &Shared<Scene>, i: usize) -> common::Child {
    fork_child(|| {
        Spin::Never.set();
        scene.wait_on(i % 2 == 1, || {
            scene.who[i].store(common::who_am_i(), SeqCst);
            scene.waiting.fetch_add(1, SeqCst);
            None
        });
        scene.returned.fetch_add(1, SeqCst);
    })
}

// -------------------------------------------------------------------------- who is woken, and when

/// What CPython's `test.lock_tests.ConditionTests.test_notify` asks: as many return as were
/// notified. That a notify needs no lock is ours.
#[test]
fn as_many_return_as_are_notified() {
    alone("as_many_return_as_are_notified", notifies_and_returns);
}

fn notifies_and_returns() {
    for (case, deep) in [("lock", false), ("reentrant", true)] {
        worlds(
            "as_many_return_as_are_notified",
            case,
            CROWD + 1,
            scene,
            |scene, role| {
                Spin::Never.set();
                for round in 1..=8 {
                    if role > 0 {
                        scene.wait_on(deep, || {
                            scene.who[role - 1].store(common::who_am_i(), SeqCst);
                            scene.waiting.fetch_add(1, SeqCst);
                            (round % 2 == 0).then_some(common::PATIENCE)
                        });
                        scene.who[role - 1].store(0, SeqCst);
                        scene.returned.fetch_add(1, SeqCst);
                        scene.step.until(round);
                        continue;
                    }
                    scene.until_asleep(CROWD);
                    let mut expected = 0_u32;
                    for n in [0, 2, 1, 0, u32::MAX] {
                        let held = (round % 3 == 0)
                            .then(|| (scene.lock.lock().unwrap(), scene.relock.lock().unwrap()));
                        match n {
                            1 => scene.changed.notify_one(),
                            u32::MAX => scene.changed.notify_all(),
                            n => scene.changed.notify(n),
                        }
                        drop(held);
                        expected = expected.saturating_add(n).min(5);
                        eventually("they return", || scene.returned.load(SeqCst) >= expected);
                        std::thread::sleep(ms(2));
                        assert_eq!(scene.returned.load(SeqCst), expected, "too many return");
                    }
                    scene.waiting.store(0, SeqCst);
                    scene.returned.store(0, SeqCst);
                    // There is no waiter: these notifications wake no waiter, also not later.
                    (0..3).for_each(|_| scene.changed.notify_one());
                    scene.changed.notify_all();
                    scene.step.reach(round);
                }
            },
            |_| {},
        );
    }
}

/// CPython's `test_waitfor` and `test_waitfor_timeout`.
#[test]
fn waits_for_a_predicate() {
    worlds(
        "waits_for_a_predicate",
        "",
        3,
        scene,
        |scene, role| {
            let changed = &scene.changed;
            if role > 0 {
                let mut asked = 0;
                let guard = scene.lock.lock().unwrap();
                let guard = changed
                    .wait_while(guard, |value| {
                        asked += 1;
                        *value < 4
                    })
                    .unwrap();
                assert!(*guard >= 4 && asked >= 1);
                drop(guard);
                let guard = scene.relock.lock().unwrap();
                let less = |value: &mut u64| *value < 4;
                let waited = changed.wait_timeout_while(guard, common::PATIENCE, less);
                let (guard, ended) = waited.unwrap();
                assert!(guard.get() >= 4 && !ended.timed_out());
                drop(guard);
                let began = Instant::now();
                let guard = scene.relock.lock().unwrap();
                let less = |value: &mut u64| *value < 18;
                let (guard, ended) = changed.wait_timeout_while(guard, ms(50), less).unwrap();
                assert!(ended.timed_out() && guard.get() < 18);
                assert!(began.elapsed() >= ms(50), "too early: {:?}", began.elapsed());
                return;
            }
            for i in 1..=4 {
                std::thread::sleep(ms(3));
                *scene.lock.lock().unwrap() = i;
                changed.notify_all();
            }
            for i in 1..=4 {
                std::thread::sleep(ms(3));
                scene.relock.lock().unwrap().set(i);
                changed.notify_all();
            }
        },
        |_| {},
    );
}

/// The predicate may change the value, and is asked before any wait and after the last.
#[test]
fn the_predicate_is_asked_first_and_last() {
    let scene = scene();
    let _watchdog = watch("the_predicate_is_asked_first_and_last", &scene);
    let guard = scene.lock.lock().unwrap();
    let take = |value: &mut u64| {
        *value += 1;
        *value < 2
    };
    let guard = scene.changed.wait_timeout_while(guard, AT_ONCE, take).unwrap();
    assert_eq!((*guard.0, guard.1.timed_out()), (2, false), "late, but so");
    let outer = scene.relock.lock().unwrap();
    let inner = scene.relock.lock().unwrap();
    let (inner, ended) = scene.changed.wait_timeout_while(inner, AT_ONCE, take).unwrap();
    assert_eq!((outer.get(), inner.depth(), ended.timed_out()), (2, 2, false));
    let past = std::time::Instant::now();
    let late = |value: &mut u64| *value < 9;
    let (inner, ended) = scene.changed.wait_deadline_while(inner, past, late).unwrap();
    assert!(ended.timed_out());
    let inner = scene.changed.wait_while(inner, |_| false).unwrap();
    drop((inner, outer));
}

/// Tokens between makers and takers: each notify is for one, and none is lost.
#[test]
fn a_notify_for_each_token() {
    const TOKENS: u64 = 1_500;
    for (case, spin) in [("adaptive", Spin::Adaptive), ("asleep", Spin::Never)] {
        worlds(
            "a_notify_for_each_token",
            case,
            4,
            scene,
            |scene, role| {
                spin.set();
                let mut random = Random::new(role as u64);
                for i in 0..TOKENS {
                    if role % 2 == 0 {
                        let mut tokens = scene.lock.lock().unwrap();
                        *tokens += 1;
                        if i % 2 == 0 {
                            drop(tokens);
                            scene.changed.notify_one();
                        } else {
                            scene.changed.notify_one();
                        }
                        if random.below(16) == 0 {
                            std::thread::sleep(random.micros(100));
                        }
                    } else {
                        let tokens = scene.lock.lock().unwrap();
                        let mut tokens =
                            scene.changed.wait_while(tokens, |tokens| *tokens == 0).unwrap();
                        *tokens -= 1;
                    }
                }
            },
            |scene| assert_eq!(*scene.lock.lock().unwrap(), 0),
        );
    }
}

/// Waits begin, time out and are notified, all at the same time.
#[test]
fn a_crowd_with_timeouts() {
    worlds(
        "a_crowd_with_timeouts",
        "",
        4,
        scene,
        |scene, role| {
            let mut random = Random::new(role as u64);
            if role == 0 {
                for _ in 0..1_000 {
                    *scene.lock.lock().unwrap() += 1;
                    scene.changed.notify_one();
                    // Many waiters time out at any moment, but one always takes the notification.
                    eventually("a waiter takes it", || *scene.lock.lock().unwrap() == 0);
                }
                scene.step.reach(1);
                return;
            }
            while scene.step.load(SeqCst) == 0 {
                let guard = scene.lock.lock().unwrap();
                let none = |tokens: &mut u64| *tokens == 0;
                let timeout = random.micros(400);
                let waited = scene.changed.wait_timeout_while(guard, timeout, none);
                let (mut tokens, ended) = waited.unwrap();
                if !ended.timed_out() {
                    *tokens -= 1;
                    scene.returned.fetch_add(1, SeqCst);
                }
            }
        },
        |scene| assert_eq!(scene.returned.load(SeqCst), 1_000),
    );
}

// --------------------------------------------------------------------------------------- times

#[test]
fn timeouts_are_not_early() {
    alone("timeouts_are_not_early", || {
        let scene = scene();
        let _watchdog = watch("timeouts_are_not_early", &scene);
        for spin in [Spin::Adaptive, Spin::Never, Spin::For(ms(3))] {
            spin.set();
            for deep in [false, true] {
                for wait in [0, 1, 2, 40] {
                    let began = Instant::now();
                    assert!(scene.wait_on(deep, || Some(ms(wait))));
                    assert!(began.elapsed() >= ms(wait), "{spin:?}: {:?}", began.elapsed());
                }
            }
            for wait in [0, 1, 40] {
                let at = Instant::now() + ms(wait);
                let guard = scene.lock.lock().unwrap();
                let (_, ended) = scene.changed.wait_deadline(guard, at).unwrap();
                assert!(ended.timed_out() && Instant::now() >= at);
            }
            let past = Instant::now().checked_sub(ms(9)).unwrap();
            let guard = scene.lock.lock().unwrap();
            assert!(scene.changed.wait_deadline(guard, past).unwrap().1.timed_out());
        }
    });
}

/// A wait whose time is up has the lock, however long that takes.
#[test]
fn a_timed_wait_ends_with_the_lock() {
    alone("a_timed_wait_ends_with_the_lock", || {
        let scene = scene();
        let _watchdog = watch("a_timed_wait_ends_with_the_lock", &scene);
        let waiter = fork_child(|| {
            let guard = scene.lock.lock().unwrap();
            scene.step.reach(1);
            let (guard, ended) = scene.changed.wait_timeout(guard, ms(60)).unwrap();
            assert!(ended.timed_out());
            assert_eq!(*guard, 7, "the lock was taken while another had it");
        });
        scene.step.until(1);
        let mut guard = scene.lock.lock().unwrap();
        std::thread::sleep(ms(120));
        *guard = 7;
        drop(guard);
        waiter.succeeds();
    });
}

#[test]
fn endless_timeouts() {
    alone("endless_timeouts", || {
        let scene = scene();
        let _watchdog = watch("endless_timeouts", &scene);
        for timeout in [Duration::MAX, Duration::from_secs(1 << 62), Duration::from_secs(1 << 40)] {
            scene.waiting.store(0, SeqCst);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let guard = scene.lock.lock().unwrap();
                    scene.who[0].store(common::who_am_i(), SeqCst);
                    scene.waiting.store(1, SeqCst);
                    scene.changed.wait_timeout(guard, timeout).unwrap().1.timed_out()
                });
                scene.until_asleep(1);
                scene.changed.notify_one();
                assert!(!waiter.join().unwrap());
            });
        }
    });
}

/// A waiter that has timed out does not take the notification of another one.
#[test]
fn a_timed_out_waiter_leaves_no_trace() {
    alone("a_timed_out_waiter_leaves_no_trace", || {
        for _ in 0..10 {
            let scene = scene(); // with no earlier deaths
            let _watchdog = watch("a_timed_out_waiter_leaves_no_trace", &scene);
            let patient = waiter(&scene, 0);
            scene.until_asleep(1);
            assert!(scene.wait_on(false, || Some(ms(1))));
            assert!(scene.wait_on(true, || Some(AT_ONCE)));
            scene.changed.notify_one();
            patient.succeeds();
        }
    });
}

#[test]
fn a_waiter_sleeps() {
    alone("a_waiter_sleeps", || {
        let scene = scene();
        let _watchdog = watch("a_waiter_sleeps", &scene);
        fork_child(|| {
            assert!(scene.wait_on(false, || Some(AT_ONCE))); // becomes a peer
            let before = common::thread_cpu();
            assert!(scene.wait_on(false, || Some(ms(300))));
            let used = common::thread_cpu() - before;
            assert!(used < ms(20), "waiting used {used:?} of CPU");
        })
        .succeeds();
    });
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);

/// Neither do they end it for no reason.
#[test]
fn signals_do_not_end_a_wait() {
    alone("signals_do_not_end_a_wait", || {
        extern "C" fn count(_: i32) {
            CAUGHT.fetch_add(1, SeqCst);
        }
        let scene = scene();
        let _watchdog = watch("signals_do_not_end_a_wait", &scene);
        let child = fork_child(|| {
            common::handle(libc::SIGUSR1, count);
            scene.step.reach(1);
            for deep in [false, true] {
                let began = Instant::now();
                assert!(scene.wait_on(deep, || Some(ms(150))), "returned with no notify");
                assert!(began.elapsed() >= ms(150), "{:?}", began.elapsed());
            }
            let before = CAUGHT.load(SeqCst);
            assert!(before > 2, "no signals came");
            scene.step.reach(2);
            scene.wait_on(false, || None);
            assert!(CAUGHT.load(SeqCst) > before, "no signals came");
            assert_eq!(scene.step.load(SeqCst), 3, "returned with no notify");
        });
        scene.step.until(1);
        child.disturb_while(|| scene.step.load(SeqCst) < 2);
        child.until_waiting();
        for _ in 0..20 {
            child.signal(libc::SIGUSR1);
            std::thread::sleep(ms(1));
        }
        scene.step.reach(3);
        scene.changed.notify_one();
        child.succeeds();
    });
}

// -------------------------------------------------------------------------------------- deaths

/// Waiters return from a death as from a notify: what they wait for may have been the dead one's to
/// do.
#[test]
fn a_death_ends_all_waits() {
    let scene = scene();
    let _watchdog = watch("a_death_ends_all_waits", &scene);
    let peer = fork_child(|| {
        assert!(scene.wait_on(false, || Some(AT_ONCE))); // becomes a peer
        scene.step.reach(1);
        sleep_for_ever();
    });
    scene.step.until(1);
    let waiters = [0, 1].map(|i| waiter(&scene, i));
    scene.until_asleep(2);
    assert_eq!(scene.returned.load(SeqCst), 0);
    peer.kill9();
    waiters.into_iter().for_each(common::Child::succeeds);
}

/// A way to leave.
type Leaves<'a> = &'a dyn Fn(&Shared<Scene>);

/// A peer that leaves in an orderly way ends no wait: that is neither a death nor a notification.
#[test]
fn a_peer_that_leaves_ends_no_wait() {
    alone("a_peer_that_leaves_ends_no_wait", || {
        let becomes_a_peer = |scene: &Shared<Scene>| {
            assert!(scene.wait_on(false, || Some(AT_ONCE)));
        };
        let leaves: [Leaves<'_>; 3] = [
            &|scene| {
                let other = Shared::<Scene>::from_fd(scene.try_clone_fd().unwrap()).unwrap();
                becomes_a_peer(&other);
                drop(other);
            },
            &|scene| fork_child(|| becomes_a_peer(scene)).succeeds(),
            &|scene| {
                let leaves = || {
                    becomes_a_peer(scene);
                    outlast::leave();
                    common::exit_now(0);
                };
                fork_child(leaves).succeeds();
            },
        ];
        for (how, leaves) in leaves.into_iter().enumerate() {
            let scene = scene();
            let _watchdog = watch(&format!("a_peer_that_leaves_ends_no_wait, {how}"), &scene);
            let waiter = fork_child(|| {
                Spin::Never.set();
                assert!(scene.wait_on(false, || {
                    scene.who[0].store(common::who_am_i(), SeqCst);
                    scene.waiting.fetch_add(1, SeqCst);
                    Some(ms(600))
                }));
            });
            scene.until_asleep(1);
            std::thread::sleep(ms(30));
            leaves(&scene);
            waiter.succeeds();
        }
    });
}

/// The woken one is killed at about the same time, before or after it has taken the token: if it is
/// left, another gets it.
#[test]
fn a_waiter_killed_as_it_is_woken() {
    alone("a_waiter_killed_as_it_is_woken", || {
        let scene = scene();
        let _watchdog = watch("a_waiter_killed_as_it_is_woken", &scene);
        let mut random = Random::new(3);
        for _ in 0..60 {
            scene.waiting.store(0, SeqCst);
            *scene.lock.lock().unwrap() = 0;
            let taker = |i: usize| {
                let child = fork_child(|| {
                    Spin::Never.set();
                    let mut tokens = sound(scene.lock.lock());
                    scene.who[i].store(common::who_am_i(), SeqCst);
                    scene.waiting.fetch_add(1, SeqCst);
                    while *tokens == 0 {
                        tokens = sound(scene.changed.wait(tokens));
                    }
                    *tokens -= 1;
                    LockGuard::mark_consistent(&mut tokens);
                });
                scene.until_asleep(i + 1);
                child
            };
            let (dies, lives) = (taker(0), taker(1));
            *sound(scene.lock.lock()) = 1;
            scene.changed.notify_one();
            common::busy(random.micros(60));
            dies.signal(libc::SIGKILL);
            assert!(matches!(dies.wait(), OK | KILLED));
            // A token that is left reaches the other with no further word.
            eventually("a waiter takes it", || *sound(scene.lock.lock()) == 0);
            *sound(scene.lock.lock()) = 1;
            scene.changed.notify_one();
            if common::is_alive(lives.pid) {
                // It took neither, or the second.
                eventually("it ends", || !common::is_alive(lives.pid));
            }
            lives.succeeds();
            scene.lock.clear_poison();
        }
    });
}

/// A child that has done nothing but lock and change is killed before it could notify: the waiters
/// hear of its death.
#[test]
fn an_owner_that_was_no_peer_killed_before_its_notify() {
    for holding in [false, true] {
        let scene = scene(); // with no earlier deaths
        let _watchdog = watch("an_owner_that_was_no_peer_killed_before_its_notify", &scene);
        let waiter = fork_child(|| {
            let guard = sound(scene.lock.lock());
            scene.step.reach(1);
            match scene.changed.wait_while(guard, |tokens| *tokens == 0) {
                Ok(guard) => assert_eq!((*guard, holding), (1, false)),
                Err(LockError::OwnerDied(guard)) => assert_eq!((*guard, holding), (1, true)),
                other => panic!("{other:?}"),
            }
        });
        scene.step.until(1);
        waiter.until_waiting();
        let owner = fork_child(|| {
            let mut guard = scene.lock.lock().unwrap();
            *guard = 1;
            if holding {
                core::mem::forget(guard);
            } else {
                drop(guard);
            }
            scene.step.reach(2);
            sleep_for_ever();
        });
        scene.step.until(2);
        owner.kill9();
        waiter.succeeds();
    }
}

/// The owner dies while another waits: the waiter learns of both, and has the lock.
#[test]
fn an_owner_killed_while_others_wait() {
    alone("an_owner_killed_while_others_wait", || {
        for deep in [false, true] {
            let scene = scene(); // with no earlier deaths
            let _watchdog = watch("an_owner_killed_while_others_wait", &scene);
            let waiter = fork_child(|| {
                if deep {
                    let outer = scene.relock.lock().unwrap();
                    scene.step.reach(1);
                    match scene.changed.wait(scene.relock.lock().unwrap()) {
                        Err(LockError::OwnerDied(guard)) => {
                            assert_eq!((guard.get(), guard.depth(), outer.depth()), (1, 2, 2));
                            guard.mark_consistent();
                        }
                        other => panic!("{other:?}"),
                    }
                } else {
                    let guard = scene.lock.lock().unwrap();
                    scene.step.reach(1);
                    match scene.changed.wait_timeout_while(guard, common::PATIENCE, |_| true) {
                        Err(LockError::OwnerDied((mut guard, ended))) => {
                            assert_eq!((*guard, ended.timed_out()), (1, false));
                            LockGuard::mark_consistent(&mut guard);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
            scene.step.until(1);
            let owner = fork_child(|| {
                assert!(scene.wait_on(deep, || Some(AT_ONCE))); // becomes a peer
                if deep {
                    let guard = scene.relock.lock().unwrap();
                    guard.set(1);
                    core::mem::forget(guard);
                } else {
                    let mut guard = scene.lock.lock().unwrap();
                    *guard = 1;
                    core::mem::forget(guard);
                }
                scene.step.reach(2);
                sleep_for_ever();
            });
            scene.step.until(2);
            waiter.until_waiting();
            owner.kill9();
            waiter.succeeds();
        }
    });
}

/// Processes are killed anywhere, and the others carry on.
#[test]
fn a_crowd_with_kills() {
    let scene = scene();
    let _watchdog = watch("a_crowd_with_kills", &scene);
    let worker = |makes: bool, for_ever: bool| {
        fork_child(|| {
            let mut done = 0;
            while for_ever || done < 200 {
                let mut tokens = sound(scene.lock.lock());
                LockGuard::mark_consistent(&mut tokens);
                if makes {
                    while *tokens >= 3 {
                        tokens = sound(scene.changed.wait(tokens));
                    }
                    *tokens += 1;
                } else {
                    while *tokens == 0 {
                        tokens = sound(scene.changed.wait(tokens));
                    }
                    *tokens -= 1;
                }
                drop(tokens);
                scene.changed.notify_all();
                done += 1;
            }
        })
    };
    let mut random = Random::new(5);
    for _ in 0..15 {
        let lasting = [worker(true, false), worker(false, false)];
        for i in 0..4 {
            let victim = worker(i % 2 == 0, true);
            std::thread::sleep(random.micros(3_000));
            victim.kill9();
        }
        // What the dead ones took or made is made up for.
        while lasting.iter().any(|child| common::is_alive(child.pid)) {
            let mut tokens = sound(scene.lock.lock());
            *tokens = 1;
            LockGuard::mark_consistent(&mut tokens);
            drop(tokens);
            scene.changed.notify_all();
            std::thread::sleep(Duration::from_micros(200));
        }
        lasting.into_iter().for_each(common::Child::succeeds);
    }
}

#[test]
fn a_panic_poisons_while_others_wait() {
    let scene = scene();
    let _watchdog = watch("a_panic_poisons_while_others_wait", &scene);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let guard = scene.lock.lock().unwrap();
            scene.step.reach(1);
            match scene.changed.wait(guard) {
                Err(LockError::Poisoned(mut guard)) => LockGuard::mark_consistent(&mut guard),
                other => panic!("{other:?}"),
            }
        });
        scene.step.until(1);
        let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let _guard = scene.lock.lock().unwrap();
            std::panic::resume_unwind(Box::new("a panic without a message"));
        }));
        assert!(panicked.is_err());
        scene.changed.notify_all();
        waiter.join().unwrap();
    });
    // A panic of the predicate is one of the owner.
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let guard = scene.lock.lock().unwrap();
        drop(scene.changed.wait_while(guard, |_| std::panic::resume_unwind(Box::new("one more"))));
    }));
    assert!(panicked.is_err());
    assert!(matches!(scene.lock.lock(), Err(LockError::Poisoned(_))));
}

// ------------------------------------------------------------------------------- forks and places

#[test]
fn a_guard_copied_by_fork_cannot_wait() {
    common::in_own_process("a_guard_copied_by_fork_cannot_wait", || {
        let scene = scene();
        let _watchdog = watch("a_guard_copied_by_fork_cannot_wait", &scene);
        let mut guards = Some((scene.lock.lock().unwrap(), scene.relock.lock().unwrap()));
        fork_child(|| {
            let (guard, reguard) = guards.take().unwrap();
            assert!(matches!(scene.changed.wait(guard), Err(LockError::Failed(Fault::Forked))));
            assert!(matches!(
                scene.changed.wait_timeout(reguard, ms(1)),
                Err(LockError::Failed(Fault::Forked))
            ));
            assert!(matches!(scene.lock.try_lock(), Err(LockError::WouldBlock)));
            assert!(matches!(scene.relock.try_lock(), Err(LockError::WouldBlock)));
        })
        .succeeds();
        drop(guards);
        drop((scene.lock.lock().unwrap(), scene.relock.lock().unwrap()));
    });
}

/// A process whose death would not be noticed does not wait. It releases the lock.
#[test]
fn one_that_cannot_be_a_peer_does_not_wait() {
    let scene = Options::new().processes(1).threads(4).anonymous(new_scene()).unwrap();
    let _watchdog = watch("one_that_cannot_be_a_peer_does_not_wait", &scene);
    assert!(scene.wait_on(false, || Some(AT_ONCE)));
    fork_child(|| {
        let guard = scene.lock.lock().unwrap();
        let waited = scene.changed.wait(guard);
        assert!(matches!(waited, Err(LockError::Failed(Fault::TooManyPeers))));
        let guard = scene.relock.lock().unwrap();
        let waited = scene.changed.wait_timeout(guard, ms(1));
        assert!(matches!(waited, Err(LockError::Failed(Fault::TooManyPeers))));
        drop((scene.lock.try_lock().unwrap(), scene.relock.try_lock().unwrap()));
        scene.changed.notify_all();
    })
    .succeeds();
    // Nor does a condition wait in memory where no death would be noticed.
    let outside = Condition::default();
    outside.notify_all();
    let waited = outside.wait(scene.lock.lock().unwrap());
    assert!(matches!(waited, Err(LockError::Failed(Fault::NotShared))));
    drop(scene.lock.try_lock().unwrap());
}

/// Whatever a broken peer writes there: it works, with a wasted system call or two.
#[test]
fn foreign_bytes() {
    let mut random = Random::new(7);
    for round in 0..12 {
        let scene = scene(); // with no earlier deaths
        let _watchdog = watch("foreign_bytes", &scene);
        let file = std::fs::File::from(scene.try_clone_fd().unwrap());
        let mut value_at = [0; 8];
        file.read_exact_at(&mut value_at, 104).unwrap(); // see the header's table
        let offset = Scene::layout().fields[2].offset as u64;
        let bytes = match round {
            0 => [0; 8],
            1 => [255; 8],
            _ => random.next().to_ne_bytes(),
        };
        file.write_all_at(&bytes, u64::from_ne_bytes(value_at) + offset).unwrap();
        assert!(format!("{:?}", scene.changed).starts_with("Condition"));
        scene.changed.notify_one();
        assert!(scene.wait_on(false, || Some(AT_ONCE)));
        let waiters = [0, 1].map(|i| waiter(&scene, i));
        scene.until_asleep(2);
        scene.changed.notify(2);
        waiters.into_iter().for_each(common::Child::succeeds);
    }
}

/// A wait releases two levels, by the guard of either one.
#[test]
fn all_levels_are_given_up_and_taken_again() {
    let scene = scene();
    let _watchdog = watch("all_levels_are_given_up_and_taken_again", &scene);
    let guards: [ReentrantLockGuard<'_, u64>; 3] = [(); 3].map(|()| scene.relock.lock().unwrap());
    let other = fork_child(|| {
        let outer = scene.relock.lock().unwrap();
        let inner = scene.relock.lock().unwrap();
        inner.set(5);
        assert_eq!(inner.depth(), 2);
        scene.changed.notify_one();
        drop((outer, inner));
    });
    let [first, second, third] = guards;
    let first = scene.changed.wait_while(first, |value| *value == 0).unwrap();
    assert_eq!((first.depth(), first.get(), third.get()), (3, 5, 5));
    other.succeeds();
    drop((first, second));
    assert_eq!(third.depth(), 1);
    drop(third);
    drop(scene.relock.lock().unwrap());
}
