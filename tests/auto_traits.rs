//! Traits that a user expects of the public types: checked when this file is compiled.
#![cfg(not(outlast_loom))]
use outlast::{
    Barrier, Condition, Event, Latch, Lock, LockError, LockGuard, OnceCell, OwnedPermit,
    OwnedSemaphore, Permit, Queue, ReadGuard, ReentrantLock, ReentrantLockGuard, RwLock, Semaphore,
    Shared, WriteGuard,
};
use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};

fn both<T: UnwindSafe + RefUnwindSafe + ?Sized>() {}
fn unwinds<T: UnwindSafe>() {}
fn made<T: Default + From<u64>>() -> T {
    drop(T::default());
    T::from(7)
}

#[test]
fn a_panic_may_pass_them() {
    both::<Shared<Queue<u64>>>();
    both::<Lock<u64>>();
    both::<ReentrantLock<u64>>();
    both::<RwLock<u64>>();
    both::<OnceCell<u64>>();
    both::<Semaphore>();
    both::<OwnedSemaphore>();
    both::<Event>();
    both::<Condition>();
    both::<Barrier>();
    both::<Latch>();
    unwinds::<&Queue<u64>>();
    unwinds::<LockGuard<'_, u64>>();
    unwinds::<ReentrantLockGuard<'_, u64>>();
    unwinds::<ReadGuard<'_, u64>>();
    unwinds::<WriteGuard<'_, u64>>();
    unwinds::<Permit<'_>>();
    unwinds::<OwnedPermit<'_>>();
    #[cfg(feature = "pool")]
    both::<outlast::pool::Pool>();
}

#[test]
fn they_are_made_from_a_value() {
    let lock = Shared::anonymous(made::<Lock<u64>>()).unwrap();
    assert_eq!(*lock.lock().unwrap(), 7);
    let lock = Shared::anonymous(made::<RwLock<u64>>()).unwrap();
    assert_eq!(*lock.read().unwrap(), 7);
    let lock = Shared::anonymous(made::<ReentrantLock<u64>>()).unwrap();
    assert_eq!(lock.lock().unwrap().get(), 7);
}

/// A lock says itself that an owner panicked, so that `AssertUnwindSafe` is not needed around it.
#[test]
fn a_lock_tells_of_a_panic_that_was_caught() {
    let lock = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let caught = catch_unwind(|| {
        let mut guard = lock.lock().unwrap();
        *guard = 1;
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(caught.is_err());
    assert!(matches!(lock.lock(), Err(LockError::Poisoned(guard)) if *guard == 1));
}
