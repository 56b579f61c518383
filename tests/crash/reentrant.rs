//! Sweeps of `ReentrantLock`.
use crate::heir::Heir;
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::{
    Lock, LockError, LockGuard, ReentrantLock, ReentrantLockGuard, ReentrantLockResult, Shared,
    Spin,
};

type World = Shared<ReentrantLock<[u64; 2]>>;

fn world() -> World {
    options().anonymous(ReentrantLock::new([0; 2])).expect("a segment")
}

/// Changes the value so that a reader in between would see it.
fn change(guard: &ReentrantLockGuard<'_, [u64; 2]>) {
    guard.update(|[a, b]| [a + 1, b]);
    guard.update(|[a, b]| [a, b + 1]);
}

/// Acquires the lock twice, as a survivor, and says what is wrong with it.
fn inspect(lock: &ReentrantLock<[u64; 2]>, taken: ReentrantLockResult<'_, [u64; 2]>) -> Verdict {
    let guard = match taken {
        Ok(guard) if guard.get()[0] == guard.get()[1] => guard,
        Ok(guard) => return fail(format!("torn without a word: {guard:?}")),
        Err(LockError::OwnerDied(guard)) => {
            guard.set([0; 2]);
            guard.mark_consistent();
            guard
        }
        Err(error) => return fail(format!("{error:?}")),
    };
    match (guard.depth(), lock.lock().map(|inner| inner.depth())) {
        (1, Ok(2)) => Ok(()),
        other => fail(format!("the levels are {other:?}")),
    }
}

fn lock_it(world: &World) -> Verdict {
    inspect(world, world.lock_timeout(patience()))
}

fn is_sound(world: &World) -> Verdict {
    lock_it(world)?;
    // What was repaired stays repaired.
    inspect(world, world.try_lock())
}

/// So that the victim's first-time work is done.
fn warm(world: &World) {
    Spin::Never.set();
    drop(world.lock());
}

fn sweep<'a>(name: &'a str, victim: Operation<World>) -> Sweep<'a, World> {
    Sweep::new(name, &world, memory, victim, is_sound)
}

fn locks_twice(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        let (Ok(outer), Ok(inner)) = (world.lock(), world.lock()) else { return };
        change(&inner);
        drop(outer);
        change(&inner);
        drop(inner);
    })
}

fn unlocks_twice(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let (outer, inner) = (world.lock().expect("free"), world.lock().expect("ours"));
    Box::new(move || drop((inner, outer)))
}

#[test]
fn reentrant_lock_alone() {
    sweep("reentrant: lock, lock, unlock, unlock", locks_twice).must_hold();
}

#[test]
fn reentrant_lock_with_a_late_arrival() {
    let sweep = sweep("reentrant: lock, lock, unlock, unlock; late arrival", locks_twice);
    Sweep { late: Some(lock_it), ..sweep }.must_hold();
}

#[test]
fn reentrant_unlock_with_sleepers() {
    let sweep = sweep("reentrant: unlock, unlock; two asleep", unlocks_twice);
    Sweep { sleepers: &[lock_it, lock_it], ..sweep }.must_hold();
}

#[test]
fn reentrant_unlock_with_a_sleeper_and_a_late_arrival() {
    let sweep = sweep("reentrant: unlock, unlock; one asleep, late arrival", unlocks_twice);
    Sweep { sleepers: &[lock_it], late: Some(lock_it), ..sweep }.must_hold();
}

fn heir(name: &str, barger: bool) {
    let lock: Operation<World> = |world| {
        let outer = match world.lock() {
            Ok(guard) => guard,
            Err(error) => error.into_guard().expect("taken"),
        };
        outer.mark_consistent();
        let inner = world.lock().expect("its own");
        Box::new(move || drop((outer, inner)))
    };
    let prepare = |world: &World| {
        Spin::Never.set();
        drop(world.try_lock()); // another process owns it
    };
    Heir { name, world: &world, memory, prepare, lock, barger }.must_hold();
}

#[test]
fn reentrant_the_woken_heir_dies() {
    heir("reentrant: heir", false);
}

#[test]
fn reentrant_the_woken_heir_dies_while_a_barger_holds() {
    heir("reentrant: heir, barger", true);
}

#[test]
fn reentrant_that_is_not_mended_is_caught() {
    sweep("reentrant: lock, lock, unlock, unlock", locks_twice).must_be_caught_unmended();
}

/// A negative control: the depth is counted from the value that a dead owner left, not from 1. Then
/// the lock would never be released.
#[test]
fn a_depth_that_survives_its_owner_is_caught() {
    fn enter(world: &Shared<Lock<u64>>) -> Option<LockGuard<'_, u64>> {
        let taken = world.lock_timeout(patience());
        let mut depth = taken.or_else(|error| error.into_guard().ok_or(())).ok()?;
        *depth += 1;
        Some(depth)
    }
    let world = || options().anonymous(Lock::new(0)).expect("a segment");
    let victim: Operation<Shared<Lock<u64>>> = |world| {
        Spin::Never.set();
        drop(world.lock());
        Box::new(|| {
            let Some(mut depth) = enter(world) else { return };
            *depth -= 1;
        })
    };
    let check: fn(&Shared<Lock<u64>>) -> Verdict = |world| match enter(world).as_deref() {
        Some(1) => Ok(()),
        other => fail(format!("the depth is {other:?}")),
    };
    Sweep::new("control: depth not forgotten", &world, memory, victim, check).must_be_caught();
}
