//! What all sweeps share, and the sweeps of locks.
use crate::heir::Heir;
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use outlast::{Lock, LockError, LockGuard, LockResult, Options, Shareable, Shared, Spin};
use std::fmt;
use std::time::Duration;

pub(crate) type Verdict = Result<(), String>;

pub(crate) fn fail<T>(what: impl fmt::Display) -> Result<T, String> {
    Err(what.to_string())
}

/// Repeats a check until it passes, or until the [`patience`] is over. A dead process may not be
/// recovered from yet.
#[cfg(not(outlast_pthread))] // with the other backend only locks are swept, without a recovery
pub(crate) fn once_mended(verdict: impl Fn() -> Verdict) -> Verdict {
    let began = std::time::Instant::now();
    loop {
        match verdict() {
            Err(_) if began.elapsed() <= patience() => std::thread::yield_now(),
            verdict => return verdict,
        }
    }
}

/// The owner tag of the process that makes a segment.
#[cfg(not(outlast_pthread))]
pub(crate) const FIRST: u32 = 1;

/// The value's bytes.
pub(crate) fn memory<T: Shareable>(world: &Shared<T>) -> Vec<u8> {
    let at = std::ptr::from_ref::<T>(world).cast();
    // SAFETY: as many bytes as the value has. If they are changed meanwhile, a kill point too many
    // or too few may be found.
    unsafe { std::slice::from_raw_parts(at, size_of::<T>()) }.to_vec()
}

pub(crate) fn options() -> Options {
    Options::new().processes(8).threads(16)
}

// ------------------------------------------------------------------- locks

outlast::shared! {
    /// Two locks. The two numbers in each are equal whenever the lock is free.
    struct Locks { a: Lock<[u64; 2]>, b: Lock<[u64; 2]> }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.a, self.b)
    }
}

fn locks() -> Shared<Locks> {
    options().anonymous(Locks { a: Lock::new([0; 2]), b: Lock::new([0; 2]) }).expect("a segment")
}

/// Changes the value in two steps, so that a kill between them shows.
fn change(guard: &mut LockGuard<'_, [u64; 2]>) {
    guard[0] += 1;
    guard[1] += 1;
}

/// Judges the result of a survivor's attempt to acquire a lock.
fn inspect(taken: LockResult<'_, [u64; 2]>) -> Verdict {
    match taken {
        Ok(guard) if guard[0] == guard[1] => Ok(()),
        Ok(guard) => fail(format!("half changed, and not poisoned: {guard:?}")),
        Err(LockError::OwnerDied(mut guard)) => {
            *guard = [0; 2];
            LockGuard::mark_consistent(&mut guard);
            Ok(())
        }
        Err(error) => fail(format!("{error:?}")),
    }
}

fn lock_a(world: &Shared<Locks>) -> Verdict {
    inspect(world.a.lock_timeout(patience()))
}

fn both_locks_are_sound(world: &Shared<Locks>) -> Verdict {
    inspect(world.a.lock_timeout(patience()))?;
    inspect(world.b.lock_timeout(patience()))?;
    // What was repaired stays repaired.
    inspect(world.a.try_lock())?;
    inspect(world.b.try_lock())
}

/// Does the victim's first-time work.
fn warm_locks(world: &Shared<Locks>) {
    Spin::Never.set();
    drop(world.b.lock());
}

fn lock_sweep<'a>(name: &'a str, victim: Operation<Shared<Locks>>) -> Sweep<'a, Shared<Locks>> {
    Sweep::new(name, &locks, memory, victim, both_locks_are_sound)
}

fn locks_and_unlocks(world: &Shared<Locks>) -> Box<dyn FnOnce() + '_> {
    warm_locks(world);
    Box::new(|| {
        if let Ok(mut guard) = world.a.lock() {
            change(&mut guard);
        }
    })
}

#[test]
fn lock_and_unlock_alone() {
    lock_sweep("lock, unlock", locks_and_unlocks).must_hold();
}

#[test]
fn lock_and_unlock_with_a_late_arrival() {
    let sweep = lock_sweep("lock, unlock; late arrival", locks_and_unlocks);
    Sweep { late: Some(lock_a), ..sweep }.must_hold();
}

#[test]
fn unlock_with_sleepers() {
    let sweep = lock_sweep("unlock; two asleep", |world| {
        warm_locks(world);
        let guard = world.a.lock().expect("free");
        Box::new(move || drop(guard))
    });
    Sweep { sleepers: &[lock_a, lock_a], ..sweep }.must_hold();
}

#[test]
fn unlock_with_a_sleeper_and_a_late_arrival() {
    let sweep = lock_sweep("unlock; one asleep, late arrival", |world| {
        warm_locks(world);
        let guard = world.a.lock().expect("free");
        Box::new(move || drop(guard))
    });
    Sweep { sleepers: &[lock_a], late: Some(lock_a), ..sweep }.must_hold();
}

#[test]
fn nested_locks() {
    lock_sweep("nested locks", |world| {
        warm_locks(world);
        Box::new(|| {
            let (Ok(mut a), Ok(mut b)) = (world.a.lock(), world.b.lock()) else { return };
            change(&mut a);
            change(&mut b);
            drop(b);
            drop(a);
        })
    })
    .must_hold();
}

#[test]
fn nested_locks_released_out_of_order() {
    lock_sweep("nested locks, out of order", |world| {
        warm_locks(world);
        Box::new(|| {
            let (Ok(mut a), Ok(mut b)) = (world.a.lock(), world.b.lock()) else { return };
            change(&mut a);
            change(&mut b);
            drop(a);
            drop(b);
        })
    })
    .must_hold();
}

#[test]
fn nested_locks_with_late_arrivals() {
    let sweep = lock_sweep("nested locks, out of order; late arrival", |world| {
        warm_locks(world);
        Box::new(|| {
            let (Ok(a), Ok(b)) = (world.a.lock(), world.b.lock()) else { return };
            drop(a);
            drop(b);
        })
    });
    let late: fn(&Shared<Locks>) -> Verdict = |world| {
        inspect(world.a.lock_timeout(patience()))?;
        inspect(world.b.lock_timeout(patience()))
    };
    Sweep { late: Some(late), ..sweep }.must_hold();
}

/// A waiter that times out leaves no trace.
#[test]
fn lock_that_times_out() {
    let sweep = lock_sweep("lock_timeout on a lock that is held", |world| {
        warm_locks(world);
        Box::new(|| drop(world.a.lock_timeout(Duration::from_micros(1))))
    });
    let held: fn() -> Shared<Locks> = || {
        let world = locks();
        std::mem::forget(world.a.lock());
        world
    };
    let give_up: fn(&Shared<Locks>) -> Verdict = |world| {
        // This thread owns the lock: the word must say so, whatever the victim did.
        match world.a.try_lock() {
            Err(LockError::WouldDeadlock) => Ok(()),
            other => fail(format!("{other:?}")),
        }
    };
    Sweep { world: &held, check: give_up, ..sweep }.must_hold();
}

fn heir(name: &str, barger: bool) {
    let lock: Operation<Shared<Locks>> = |world| {
        let mut guard = match world.a.lock() {
            Ok(guard) => guard,
            Err(error) => error.into_guard().expect("taken"),
        };
        LockGuard::mark_consistent(&mut guard);
        Box::new(move || drop(guard))
    };
    Heir { name, world: &locks, memory, prepare: warm_locks, lock, barger }.must_hold();
}

#[test]
fn the_woken_heir_dies() {
    heir("heir", false);
}

#[test]
fn the_woken_heir_dies_while_a_barger_holds() {
    heir("heir, barger", true);
}

/// A negative control: the victim's lock is not released for it.
#[test]
fn a_lock_that_is_not_given_back_is_caught() {
    lock_sweep("lock, unlock", locks_and_unlocks).must_be_caught_unmended();
}
