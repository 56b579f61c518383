//! Traits that a user expects of the public types: checked when this file is compiled.
#![cfg(not(outlast_loom))]
use outlast::spsc::{Consumer, Producer, Ring};
use outlast::{
    Barrier, BarrierError, ByteQueue, Channel, Condition, Connection, Delivery, Event, Fault,
    Latch, LatchError, Loan, Lock, LockError, LockGuard, LockedSlice, LockedSliceGuard, Member,
    Once, OnceCell, OnceError, OpenError, Owned, OwnedPermit, OwnedSemaphore, Permit, Pipe,
    PriorityQueue, Queue, ReadGuard, Receiver, RecvError, RecvTimeoutError, ReentrantLock,
    ReentrantLockGuard, Ref, RwLock, Semaphore, SendError, SendTimeoutError, Sender, Shared,
    TimedOut, TimeoutError, TryRecvError, TrySendError, WriteGuard, bytes,
};
use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};

fn both<T: UnwindSafe + RefUnwindSafe + ?Sized>() {}
fn unwinds<T: UnwindSafe>() {}
fn compared<T: PartialEq + Send + Sync + std::error::Error + 'static>() {}
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
    both::<LockedSlice<u64>>();
    both::<Queue<u64>>();
    both::<PriorityQueue<u64, 2>>();
    both::<ByteQueue>();
    both::<Ring<u64>>();
    both::<Pipe>();
    both::<Channel<Queue<u64>>>();
    both::<Sender<Queue<u64>>>();
    both::<Receiver<Queue<u64>>>();
    unwinds::<Producer<u64>>();
    unwinds::<Consumer<u64>>();
    both::<Connection<Shared<Pipe>>>();
    unwinds::<&Queue<u64>>();
    unwinds::<LockedSliceGuard<'_, u64>>();
    unwinds::<Member<'_>>();
    unwinds::<Delivery<'_, u64>>();
    unwinds::<Loan<'_, u64>>();
    unwinds::<Ref<'_, u64>>();
    unwinds::<bytes::Delivery<'_>>();
    unwinds::<bytes::Ref<'_>>();
    unwinds::<bytes::Loan<'_>>();
    unwinds::<Owned<LockGuard<'static, u64>, Lock<u64>>>();
    #[cfg(feature = "serde")]
    both::<outlast::ValueQueue<String>>();
    #[cfg(feature = "serde")]
    unwinds::<outlast::ValueDelivery<'_, String>>();
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

#[test]
fn cells_are_made_from_nothing_and_from_a_value() {
    let empty = Shared::anonymous(OnceCell::<u64>::default()).unwrap();
    assert_eq!(empty.get(), Ok(None));
    let full = Shared::anonymous(OnceCell::from(7_u64)).unwrap();
    assert_eq!((full.get(), full.set(8), full.wait()), (Ok(Some(&7)), Err(8), Ok(&7)));
    let once = Shared::anonymous(Once::default()).unwrap();
    assert!(!once.is_completed());
    assert_eq!((once.call_once(|| ()), once.is_completed()), (Ok(()), true));
}

#[test]
fn errors_are_compared() {
    compared::<LockError<()>>();
    compared::<LockError<u64>>();
    compared::<BarrierError>();
    compared::<LatchError>();
    compared::<OnceError>();
    compared::<TimeoutError>();
    compared::<TimedOut>();
    compared::<Fault>();
    compared::<SendError<()>>();
    compared::<TrySendError<()>>();
    compared::<SendTimeoutError<()>>();
    compared::<RecvError>();
    compared::<TryRecvError>();
    compared::<RecvTimeoutError>();
    #[cfg(feature = "pool")]
    compared::<outlast::pool::TaskError>();
}

#[test]
fn errors_name_their_source() {
    fn names(error: &dyn std::error::Error) -> bool {
        error.source().is_some_and(|source| source.is::<Fault>())
    }
    assert!(names(&LockError::<()>::Failed(Fault::Forked)));
    assert!(names(&SendError::Failed((), Fault::Forked)));
    assert!(names(&TrySendError::Failed((), Fault::Forked)));
    assert!(names(&SendTimeoutError::Failed((), Fault::Forked)));
    assert!(names(&RecvError::Failed(Fault::Forked)));
    assert!(names(&TryRecvError::Failed(Fault::Forked)));
    assert!(names(&RecvTimeoutError::Failed(Fault::Forked)));
    let refused = OpenError::Io { call: "open", source: std::io::Error::other("no") };
    assert!(
        std::error::Error::source(&refused).is_some_and(|source| source.is::<std::io::Error>())
    );
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
