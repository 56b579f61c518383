//! Models of `ReentrantLock`.
use crate::{SOON, check, join, killed_anywhere, share, spawn};
use outlast::{LockError, ReentrantLock};

fn sound<G>(taken: Result<G, LockError<G>>) -> G {
    taken.or_else(|error| error.into_guard().ok_or(())).unwrap()
}

/// Adds one on two levels, given up in either order, whatever happened to earlier owners.
fn add_one(lock: &ReentrantLock<u32>, outer_first: bool) {
    let outer = sound(lock.lock());
    assert_eq!(outer.depth(), 1);
    let value = outer.get();
    let inner = sound(lock.lock());
    assert_eq!(inner.depth(), 2);
    inner.set(value + 1);
    if outer_first {
        drop(outer);
        assert_eq!((inner.depth(), inner.get()), (1, value + 1));
    } else {
        drop(inner);
        assert_eq!((outer.depth(), outer.get()), (1, value + 1));
    }
}

#[test]
fn reentrant_lock_admits_one_thread_at_a_time() {
    check(|| {
        let lock = share(ReentrantLock::new(0_u32));
        let others = [false, true].map(|order| spawn(&lock, move |lock| add_one(lock, order)));
        add_one(&lock, false);
        join(others);
        assert_eq!(lock.lock().unwrap().get(), 3);
    });
}

#[test]
fn reentrant_lock_timeout_loses_no_wake_of_others() {
    check(|| {
        let lock = share(ReentrantLock::new(0_u32));
        let outer = lock.lock().unwrap();
        let timed = spawn(&lock, |lock| match lock.lock_timeout(SOON) {
            Ok(guard) => _ = guard.update(|value| value + 1),
            Err(error) => assert!(matches!(error, LockError::TimedOut(_))),
        });
        let patient = spawn(&lock, |lock| add_one(lock, false));
        let inner = lock.try_lock().unwrap();
        inner.set(1);
        drop(outer);
        assert_eq!(inner.depth(), 1);
        drop(inner);
        join([timed, patient]);
        let guard = lock.lock().unwrap();
        assert!((2..=3).contains(&guard.get()));
    });
}

#[test]
fn reentrant_lock_outlasts_an_owner_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = share(ReentrantLock::new(0));
        let victim = victim.spawn(&lock, |lock| add_one(lock, false));
        let other = spawn(&lock, |lock| add_one(lock, true));
        add_one(&lock, false);
        other.join().unwrap();
        let life = victim.join().unwrap();
        let guard = sound(lock.lock());
        assert_eq!(guard.depth(), 1);
        let sum = guard.get();
        assert!(sum == 3 || sum == 2 && life.result.is_none());
    });
}
