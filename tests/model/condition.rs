//! Models of `Condition`, on both kinds of lock.
use crate::{Life, SOON, Victim, asleep, check, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread::{self, JoinHandle};
use outlast::{Condition, Lock, LockError, LockGuard, ReentrantLock, Shareable, Shared};
use std::sync::Arc;
use std::time::Duration;

/// Tokens, and word of them.
#[derive(Clone)]
struct Counter {
    count: Shared<Lock<u32>>,
    changed: Shared<Condition>,
}

fn counter() -> Counter {
    Counter { count: share(Lock::new(0)), changed: share(Condition::new()) }
}

/// The guard, whatever happened to earlier owners.
fn sound<G>(taken: Result<G, LockError<G>>) -> G {
    taken.or_else(|error| error.into_guard().ok_or(())).unwrap()
}

impl Counter {
    fn lock(&self) -> LockGuard<'_, u32> {
        sound(self.count.lock())
    }

    fn spawn<R: 'static>(&self, act: impl FnOnce(&Self) -> R + 'static) -> JoinHandle<R> {
        let this = self.clone();
        spawn(&self.changed, move |_| act(&this))
    }

    fn spawn_victim(&self, victim: &Victim, act: impl Fn(&Self) + 'static) -> JoinHandle<Life<()>> {
        let this = self.clone();
        victim.spawn(&self.changed, move |_| act(&this))
    }

    /// Waits for a token, and takes it.
    fn take(&self) {
        let mut count = self.lock();
        while *count == 0 {
            count = sound(self.changed.wait(count));
        }
        *count -= 1;
    }

    /// Leaves so many tokens, and tells as many.
    fn give(&self, n: u32) {
        *self.lock() += n;
        self.changed.notify(n);
    }
}

#[test]
fn condition_loses_no_change() {
    check(|| {
        let counter = counter();
        let written = Arc::new(AtomicU32::new(0));
        let waiter = {
            let written = written.clone();
            counter.spawn(move |counter| {
                counter.take();
                assert_eq!(written.load(Relaxed), 1);
            })
        };
        written.store(1, Relaxed);
        counter.give(1);
        waiter.join().unwrap();
    });
}

#[test]
fn condition_notified_while_the_lock_is_held() {
    check(|| {
        let counter = counter();
        let waiters = [(); 2].map(|()| counter.spawn(Counter::take));
        let mut count = counter.lock();
        *count = 2;
        counter.changed.notify_all();
        drop(count);
        join(waiters);
    });
}

#[test]
fn condition_notified_for_each_token() {
    check(|| {
        let counter = counter();
        let waiters = [(); 2].map(|()| counter.spawn(Counter::take));
        counter.give(1);
        counter.give(1);
        join(waiters);
        assert_eq!(*counter.lock(), 0);
    });
}

#[test]
fn condition_returns_for_a_notify_only() {
    check(|| {
        let counter = counter();
        let told = Arc::new(AtomicU32::new(0));
        let waiter = {
            let told = told.clone();
            counter.spawn(move |counter| {
                let count = counter.lock();
                let (_, ended) = sound(counter.changed.wait_timeout(count, SOON));
                assert!(ended.timed_out() || told.load(Relaxed) == 1);
            })
        };
        // Another thread acquires the lock and releases it, without a notification.
        drop(counter.lock());
        told.store(1, Relaxed);
        drop(counter.lock());
        counter.changed.notify_one();
        waiter.join().unwrap();
    });
}

#[test]
fn condition_timeout_swallows_no_notify() {
    check(|| {
        let counter = counter();
        let timed = counter.spawn(|counter| {
            let count = counter.lock();
            let ended = counter.changed.wait_timeout_while(count, SOON, |count| *count == 0);
            let (mut count, ended) = sound(ended);
            *count -= u32::from(!ended.timed_out());
            !ended.timed_out()
        });
        let patient = counter.spawn(Counter::take);
        counter.give(1);
        if timed.join().unwrap() {
            counter.give(1);
        }
        patient.join().unwrap();
        assert_eq!(*counter.lock(), 0);
    });
}

/// Two that take turns, so that each waits again while the other's notify is still under way.
#[test]
fn condition_can_be_used_again() {
    check(|| {
        let (turn, changed) = (share(ReentrantLock::new(0_u32)), share(Condition::new()));
        let play = |turn: &ReentrantLock<u32>, changed: &Condition, me: u32| {
            for mine in [me, me + 2] {
                let outer = turn.lock().unwrap();
                let inner = turn.lock().unwrap();
                let inner = changed.wait_while(inner, |now| *now != mine).unwrap();
                assert_eq!(inner.depth(), 2);
                drop(outer);
                inner.set(mine + 1);
                drop(inner);
                changed.notify_one();
            }
        };
        let other = {
            let turn = turn.clone();
            spawn(&changed, move |changed| play(&turn, changed, 1))
        };
        play(&turn, &changed, 0);
        other.join().unwrap();
        assert_eq!(turn.lock().unwrap().get(), 4);
    });
}

/// Nothing orders the armings here. One that comes late must not hide another from a notify that is
/// just disarming.
#[test]
fn condition_is_armed_by_any_waiter() {
    check(|| {
        let (locks, changed) = (share([Lock::new(0_u32), Lock::new(0)]), share(Condition::new()));
        asleep(|| {
            let guard = locks[0].lock().unwrap();
            drop(changed.wait_timeout(guard, Duration::ZERO)); // it stays armed
        });
        let slow = {
            let locks = locks.clone();
            spawn(&changed, move |changed| {
                let guard = locks[0].lock().unwrap();
                drop(changed.wait_timeout(guard, SOON).unwrap());
            })
        };
        let patient = {
            let locks = locks.clone();
            spawn(&changed, move |changed| {
                let guard = locks[1].lock().unwrap();
                drop(changed.wait_while(guard, |value| *value == 0).unwrap());
            })
        };
        changed.notify_one();
        *locks[1].lock().unwrap() = 1;
        changed.notify_all();
        slow.join().unwrap();
        patient.join().unwrap();
    });
}

#[test]
fn condition_outlasts_a_waiter_killed_anywhere() {
    killed_anywhere(|victim| {
        let counter = counter();
        // The thread that fell asleep first is woken first.
        let (victim, patient) = asleep(|| {
            let victim = counter.spawn_victim(victim, Counter::take);
            thread::yield_now();
            (victim, counter.spawn(Counter::take))
        });
        counter.give(1);
        let life = victim.join().unwrap();
        counter.changed.recover(&life.dead);
        // If the token is there still, the patient one has been told of it.
        if *counter.lock() == 0 {
            counter.give(1);
        }
        patient.join().unwrap();
    });
}

#[test]
fn condition_outlasts_a_notifier_killed_anywhere() {
    killed_anywhere(|victim| {
        let counter = counter();
        let waiters = asleep(|| [(); 2].map(|()| counter.spawn(Counter::take)));
        let victim = counter.spawn_victim(victim, |counter| {
            *counter.lock() = 2;
            counter.changed.notify_all();
        });
        let life = victim.join().unwrap();
        counter.changed.recover(&life.dead);
        if life.result.is_none() {
            // The notifications that the victim had not made before it died.
            let mut count = counter.lock();
            if *count == 0 {
                *count = 2;
                counter.changed.notify_all();
            }
        }
        join(waiters);
    });
}
