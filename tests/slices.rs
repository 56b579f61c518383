//! Slices, locked arrays and byte regions whose length is chosen at run time.
#![cfg(not(outlast_loom))]
mod common;

use common::{exit_now, fork_child, ms, watch};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU8, AtomicU64};
use outlast::{
    Event, Fault, Lock, LockError, LockedSlice, LockedSliceGuard, OpenError, Owned, Shared,
};

outlast::plain! {
    #[derive(Debug, PartialEq)]
    struct Point { x: u32, y: u8 }
    #[derive(Debug, PartialEq)]
    enum Kind: u8 { Draw = 1, Erase = 2 }
}

fn twice<T: ?Sized + outlast::Shareable + Sync + 'static>(shared: &Shared<T>) -> Shared<T> {
    Shared::from_fd(shared.try_clone_fd().unwrap()).unwrap()
}

#[test]
fn slices_of_atomics_and_primitives() {
    let here = Shared::<[AtomicU64]>::with_capacity(1_000).unwrap();
    let _watchdog = watch("slices_of_atomics_and_primitives", &here);
    let there = twice(&here);
    assert_eq!((here.len(), there.len()), (1_000, 1_000));
    assert!(there.iter().all(|number| number.load(Relaxed) == 0));
    here.iter().zip(0..).for_each(|(number, i)| number.store(i, Relaxed));
    assert!(there.iter().zip(0..).all(|(number, i)| number.load(Relaxed) == i));
    let third = here.project(|numbers| &numbers[999]);
    assert_eq!(third.fetch_add(1, Relaxed), 999);
    assert_eq!(there[999].load(Relaxed), 1_000);
    // Each element is placed, and recovered after a death.
    let events = Shared::<[Event]>::with_capacity(3).unwrap();
    let others = twice(&events);
    let setter = std::thread::spawn(move || others[2].set());
    events[2].wait().unwrap();
    assert!(setter.join().is_ok() && !events[0].is_set());
    let locks = Shared::<[Lock<u64>]>::with_capacity(2).unwrap();
    let child = fork_child(|| {
        core::mem::forget(locks[1].lock().unwrap());
        exit_now(0);
    });
    child.succeeds();
    assert!(matches!(locks[1].lock(), Err(LockError::OwnerDied(_))));
    assert_eq!(*locks[0].lock().unwrap(), 0);
}

#[test]
fn other_types_and_lengths() {
    let here = Shared::<[AtomicU64]>::with_capacity(4).unwrap();
    let fd = || here.try_clone_fd().unwrap();
    assert!(matches!(Shared::<[AtomicU64; 4]>::from_fd(fd()), Err(OpenError::OtherType { .. })));
    assert!(matches!(Shared::<[AtomicU8]>::from_fd(fd()), Err(OpenError::OtherType { .. })));
    assert!(matches!(Shared::<LockedSlice<u64>>::from_fd(fd()), Err(OpenError::OtherType { .. })));
    for capacity in [0, usize::MAX, usize::MAX / 8, isize::MAX as usize / 8] {
        let refused = Shared::<[AtomicU64]>::with_capacity(capacity);
        assert!(matches!(refused, Err(OpenError::InvalidCapacity(_))), "{refused:?}");
        let refused = Shared::<LockedSlice<u64>>::with_capacity(capacity);
        assert!(matches!(refused, Err(OpenError::InvalidCapacity(_))), "{refused:?}");
    }
}

#[test]
fn locked_slices() {
    let here = Shared::<LockedSlice<u64>>::with_capacity(100).unwrap();
    let _watchdog = watch("locked_slices", &here);
    let there = twice(&here);
    assert_eq!((here.len(), there.len()), (100, 100));
    let children: Vec<_> = (0..3)
        .map(|_| {
            fork_child(|| {
                for _ in 0..1_000 {
                    there.lock().unwrap().iter_mut().for_each(|number| *number += 1);
                }
            })
        })
        .collect();
    children.into_iter().for_each(common::Child::succeeds);
    assert!(here.lock().unwrap().iter().all(|&number| number == 3_000));
    // Held, by either mapping.
    let guard = there.owned(LockedSlice::lock).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(matches!(here.try_lock(), Err(LockError::WouldBlock)));
            assert!(here.lock_timeout(ms(20)).is_err());
        });
    });
    assert!(matches!(there.lock(), Err(LockError::WouldDeadlock)));
    assert_eq!(Owned::shared(&guard).len(), guard.len());
    drop(guard);
    // A death in the middle of a change is reported, until the value is marked consistent.
    let child = fork_child(|| {
        let mut guard = there.lock().unwrap();
        guard[..50].fill(0);
        core::mem::forget(guard);
        exit_now(0);
    });
    child.succeeds();
    match here.lock() {
        Err(LockError::OwnerDied(mut guard)) => {
            guard.fill(0);
            LockedSliceGuard::mark_consistent(&mut guard);
        }
        other => panic!("{other:?}"),
    }
    assert!(here.poison_cause().is_none());
    assert_eq!(there.lock().unwrap().iter().sum::<u64>(), 0);
}

/// Elements that are no values are not given out.
#[test]
fn elements_that_are_no_values() {
    let points = Shared::<LockedSlice<Point>>::with_capacity(3).unwrap();
    points.lock().unwrap()[2] = Point { x: 1, y: 2 };
    assert_eq!(twice(&points).lock().unwrap()[2], Point { x: 1, y: 2 });
    let kinds = Shared::<LockedSlice<Kind>>::with_capacity(3).unwrap();
    assert!(matches!(kinds.lock(), Err(LockError::Failed(Fault::Corrupt))));
    // The lock was released again.
    assert!(matches!(kinds.try_lock(), Err(LockError::Failed(Fault::Corrupt))));
}

#[test]
fn regions() {
    let here = Shared::<[AtomicU8]>::with_capacity(10_000).unwrap();
    let there = twice(&here);
    let bytes: Vec<u8> = (0..=255).cycle().take(9_000).collect();
    here.copy_in(1_000, &bytes);
    let mut copy = vec![1; 10_000];
    there.copy_out(0, &mut copy);
    assert!(copy[..1_000].iter().all(|&byte| byte == 0));
    assert_eq!(copy[1_000..], bytes);
    there.copy_in(10_000, &[]);
    let too_far = std::thread::spawn(move || there.copy_in(9_999, &[1, 2]));
    assert!(too_far.join().is_err());
    let too_far = std::thread::spawn(move || here.copy_out(10_001, &mut []));
    assert!(too_far.join().is_err());
}
