//! Models of `Semaphore`.
use crate::{SOON, asleep, check, check_up_to, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{OwnedSemaphore, Semaphore, Shareable};
use std::sync::Arc;

/// Two threads, of which one at a time has the permit. Then the permit is free.
fn admits_one_at_a_time<S: Shareable + 'static>(
    make: impl Fn() -> S + Send + Sync + 'static,
    visit: fn(&S, &dyn Fn()),
    available: fn(&S) -> u32,
) {
    check(move || {
        let sem = share(make());
        let inside = Arc::new(AtomicU32::new(0));
        let visitors = [(); 2].map(|()| {
            let inside = inside.clone();
            spawn(&sem, move |sem| {
                visit(sem, &|| {
                    // Plain loads and stores: an order that giving back and taking do not give
                    // would show.
                    assert_eq!(inside.load(Relaxed), 0);
                    inside.store(1, Relaxed);
                    inside.store(0, Relaxed);
                });
            })
        });
        join(visitors);
        assert_eq!(available(&sem), 1);
    });
}

#[test]
fn semaphore_admits_as_many_as_permits() {
    let visit = |sem: &Semaphore, act: &dyn Fn()| {
        let _permit = sem.acquire().unwrap();
        act();
    };
    admits_one_at_a_time(|| Semaphore::new(1), visit, Semaphore::available);
}

#[test]
fn owned_semaphore_admits_as_many_as_permits() {
    let visit = |sem: &OwnedSemaphore, act: &dyn Fn()| {
        let _permit = sem.acquire().unwrap();
        act();
    };
    admits_one_at_a_time(|| OwnedSemaphore::new(1), visit, OwnedSemaphore::available);
}

#[test]
fn semaphore_wakes_as_many_as_released() {
    check(|| {
        let sem = share(Semaphore::new(0));
        let waiters = [(); 2].map(|()| spawn(&sem, |sem| sem.acquire().unwrap().forget()));
        sem.release(2).unwrap();
        join(waiters);
        assert_eq!(sem.available(), 0);
    });
}

#[test]
fn semaphore_wakes_one_by_one() {
    check(|| {
        let sem = share(Semaphore::new(0));
        let waiters = [(); 2].map(|()| spawn(&sem, |sem| sem.acquire().unwrap().forget()));
        sem.release(1).unwrap();
        sem.release(1).unwrap();
        join(waiters);
        assert_eq!(sem.available(), 0);
    });
}

/// Two release where there is room for one, and a third takes one meanwhile: a release is refused
/// only if there was no room.
#[test]
fn bounded_semaphore_keeps_its_ceiling() {
    check(|| {
        let sem = share(Semaphore::bounded(2));
        sem.acquire().unwrap().forget();
        let releasers = [(); 2].map(|()| spawn(&sem, |sem| sem.release(1).is_ok()));
        let taken = sem.try_acquire().map(|permit| permit.forget()).is_some();
        let made = join(releasers).into_iter().filter(|&made| made).count();
        assert!(made >= 1 && sem.available() <= 2);
        assert_eq!(sem.available() as usize, 1 + made - usize::from(taken));
    });
}

/// A thread that waits for two permits does not use up the wake of a thread that waits for one.
#[test]
fn semaphore_wakes_small_behind_large() {
    check(|| {
        let sem = share(Semaphore::new(0));
        let large = spawn(&sem, |sem| sem.acquire_many(2).unwrap().forget());
        let small = spawn(&sem, |sem| sem.acquire().unwrap().forget());
        sem.release(1).unwrap();
        sem.release(2).unwrap();
        join([large, small]);
        assert_eq!(sem.available(), 0);
    });
}

#[test]
fn semaphore_timeout_swallows_no_wake() {
    check(|| {
        let sem = share(Semaphore::new(0));
        let timed =
            spawn(&sem, |sem| sem.acquire_timeout(SOON).map(|permit| permit.forget()).is_ok());
        let patient = spawn(&sem, |sem| sem.acquire().unwrap().forget());
        sem.release(1).unwrap();
        if timed.join().unwrap() {
            sem.release(1).unwrap();
        }
        patient.join().unwrap();
        assert_eq!(sem.available(), 0);
    });
}

#[test]
fn semaphore_outlasts_a_waiter_killed_anywhere() {
    killed_anywhere(|victim| {
        let sem = share(Semaphore::new(0));
        let victim = victim.spawn(&sem, |sem| sem.acquire().unwrap().forget());
        let patient = spawn(&sem, |sem| sem.acquire().unwrap().forget());
        sem.release(2).unwrap();
        let life = victim.join().unwrap();
        sem.recover(&life.dead);
        patient.join().unwrap();
        // A permit that the victim acquired is gone. One that it did not acquire is still there.
        assert!(sem.available() <= u32::from(life.result.is_none()));
    });
}

#[test]
fn semaphore_outlasts_a_releaser_killed_anywhere() {
    killed_anywhere(|victim| {
        let sem = share(Semaphore::new(0));
        let waiters =
            asleep(|| [(); 2].map(|()| spawn(&sem, |sem| sem.acquire().unwrap().forget())));
        let victim = victim.spawn(&sem, |sem| sem.release(2).unwrap());
        let life = victim.join().unwrap();
        sem.recover(&life.dead);
        if life.result.is_none() {
            sem.release(2).unwrap();
        }
        join(waiters);
        assert!(matches!(sem.available(), 0 | 2));
    });
}

/// A permit that is given back wakes a sleeper, whenever it fell asleep.
#[test]
fn owned_semaphore_wakes_who_waits_for_what_is_given_back() {
    check(|| {
        let sem = share(OwnedSemaphore::new(1));
        let held = sem.acquire().unwrap();
        let waiter = spawn(&sem, |sem| drop(sem.acquire().unwrap()));
        drop(held);
        join([waiter]);
        assert_eq!(sem.available(), 1);
    });
}

/// A thread that waits for two permits does not consume the wake of a thread that waits for one.
#[test]
fn owned_semaphore_wakes_small_behind_large() {
    check_up_to(1, || {
        let sem = share(OwnedSemaphore::new(2));
        let (one, other) = (sem.acquire().unwrap(), sem.acquire().unwrap());
        let (large, small) = asleep(|| {
            let large = spawn(&sem, |sem| drop(sem.acquire_many(2).unwrap()));
            (large, spawn(&sem, |sem| drop(sem.acquire().unwrap())))
        });
        drop(one);
        small.join().unwrap();
        drop(other);
        large.join().unwrap();
        assert_eq!(sem.available(), 2);
    });
}

#[test]
fn owned_semaphore_timeout_swallows_no_wake() {
    check_up_to(1, || {
        let sem = share(OwnedSemaphore::new(1));
        let held = sem.acquire().unwrap();
        let timed = spawn(&sem, |sem| drop(sem.acquire_timeout(SOON)));
        let patient = spawn(&sem, |sem| drop(sem.acquire().unwrap()));
        drop(held);
        join([timed, patient]);
        assert_eq!(sem.available(), 1);
    });
}

#[test]
fn owned_semaphore_outlasts_a_holder_killed_anywhere() {
    killed_anywhere(|victim| {
        let sem = share(OwnedSemaphore::new(1));
        let victim = victim.spawn(&sem, |sem| drop(sem.acquire().unwrap()));
        let patient = spawn(&sem, |sem| drop(sem.acquire().unwrap()));
        let life = victim.join().unwrap();
        sem.recover(&life.dead);
        patient.join().unwrap();
        assert_eq!(sem.available(), 1);
    });
}
