//! Models of `Lock`.
use crate::{SOON, asleep, check, join, killed_anywhere, share, spawn};
use loom::sync::Notify;
use loom::thread;
use outlast::{Lock, LockError};
use std::sync::Arc;

#[test]
fn lock_admits_one_at_a_time() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let add_one = |lock: &Lock<u32>| *lock.lock().unwrap() += 1;
        let others = [spawn(&lock, add_one), spawn(&lock, add_one)];
        add_one(&lock);
        join(others);
        assert_eq!(*lock.lock().unwrap(), 3);
    });
}

#[test]
fn lock_wakes_every_sleeper() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let held = lock.lock().unwrap();
        let sleepers = [(); 3].map(|()| spawn(&lock, |lock| *lock.lock().unwrap() += 1));
        drop(held);
        join(sleepers);
        assert_eq!(*lock.lock().unwrap(), 3);
    });
}

#[test]
fn lock_timeout_loses_no_wake_of_others() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let mut held = lock.lock().unwrap();
        let timed = spawn(&lock, |lock| match lock.lock_timeout(SOON) {
            Ok(mut value) => *value += 1,
            Err(error) => assert!(matches!(error, LockError::TimedOut(_))),
        });
        let patient = spawn(&lock, |lock| *lock.lock().unwrap() += 1);
        *held += 1;
        drop(held);
        timed.join().unwrap();
        patient.join().unwrap();
        assert!((2..=3).contains(&*lock.lock().unwrap()));
    });
}

#[test]
fn try_lock_takes_only_what_is_free() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let try_one = |lock: &Lock<u32>| match lock.try_lock() {
            Ok(mut value) => {
                assert!(matches!(lock.try_lock(), Err(LockError::WouldDeadlock)));
                *value += 1;
                1
            }
            Err(error) => {
                assert!(matches!(error, LockError::WouldBlock));
                0
            }
        };
        let others = [spawn(&lock, try_one), spawn(&lock, try_one)];
        *lock.lock().unwrap() += 1;
        let taken: u32 = join(others).iter().sum();
        assert_eq!(*lock.lock().unwrap(), taken + 1);
    });
}

#[test]
fn locks_are_given_up_in_any_order() {
    check(|| {
        let locks = share([Lock::new(0_u32), Lock::new(0_u32)]);
        let others = [0, 1].map(|i| spawn(&locks, move |locks| *locks[i].lock().unwrap() += 1));
        let (mut first, mut second) = (locks[0].lock().unwrap(), locks[1].lock().unwrap());
        *first += 1;
        *second += 1;
        drop(first);
        drop(second);
        join(others);
        assert_eq!((*locks[0].lock().unwrap(), *locks[1].lock().unwrap()), (2, 2));
    });
}

/// Adds one, whatever happened to earlier owners.
fn add_one(lock: &Lock<u32>) {
    *lock.lock().or_else(|error| error.into_guard().ok_or(())).unwrap() += 1;
}

#[test]
fn lock_outlasts_an_owner_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = share(Lock::new(0));
        let victim = victim.spawn(&lock, add_one);
        let other = spawn(&lock, add_one);
        add_one(&lock);
        other.join().unwrap();
        let life = victim.join().unwrap();
        let sum = *lock.lock().or_else(|error| error.into_guard().ok_or(())).unwrap();
        assert!(sum == 3 || sum == 2 && life.result.is_none());
    });
}

#[test]
fn lock_outlasts_a_sleeper_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = share(Lock::new(0));
        let held = lock.lock().unwrap();
        let victim = victim.spawn(&lock, |lock| drop(lock.lock()));
        let other = spawn(&lock, add_one);
        drop(held);
        victim.join().unwrap();
        other.join().unwrap();
    });
}

/// Says so when it is dropped, by its owner's death as well.
struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify();
    }
}

/// The victim has released the lock, and finds no sleeper. Before it has noted that, there is a
/// next owner, and a thread falls asleep.
#[test]
fn lock_outlasts_one_killed_as_it_finds_nobody_asleep() {
    killed_anywhere(|victim| {
        let lock = share(Lock::new(0));
        let (holds, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let victim = asleep(|| {
            let (tell, told) = (holds.clone(), go.clone());
            let victim = victim.spawn(&lock, move |lock| {
                let tell = Tell(tell.clone());
                let held = lock.lock();
                drop(tell);
                told.wait();
                drop(held);
            });
            holds.wait();
            // A late release leaves the word as if a thread slept.
            drop(lock.lock_timeout(SOON));
            victim
        });
        go.notify();
        let held = loop {
            match lock.try_lock() {
                Err(LockError::WouldBlock) => thread::yield_now(),
                taken => break taken.or_else(|error| error.into_guard().ok_or(())).unwrap(),
            }
        };
        let sleeper = spawn(&lock, add_one);
        victim.join().unwrap();
        drop(held);
        sleeper.join().unwrap();
    });
}
