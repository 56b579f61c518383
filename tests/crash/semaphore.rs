//! The sweeps of `Semaphore`.
use crate::heir::Heir;
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, options};
use outlast::__private::Dead;
use outlast::{OwnedSemaphore, Semaphore, Shareable as _, Shared, Spin, TimeoutError};
use std::time::Duration;

fn make<const PERMITS: u32>() -> Shared<Semaphore> {
    options().anonymous(Semaphore::new(PERMITS)).expect("a segment")
}

/// Makes the victim a peer, and known to all that is counted once.
fn warm(world: &Shared<Semaphore>) {
    Spin::Never.set();
    assert_eq!(world.acquire_many_timeout(9, Duration::ZERO).unwrap_err(), TimeoutError::TimedOut);
}

/// Acquires a permit as a survivor, and keeps it.
fn takes_one(world: &Shared<Semaphore>) -> Verdict {
    Spin::Never.set();
    match world.acquire_timeout(patience()) {
        Ok(permit) => {
            permit.forget();
            Ok(())
        }
        other => fail(format!("{other:?}")),
    }
}

/// Between so many permits are left, and the semaphore works.
fn left<const LEAST: u32, const MOST: u32>(world: &Shared<Semaphore>) -> Verdict {
    let available = world.available();
    if !(LEAST..=MOST).contains(&available) {
        return fail(format!("{available} permits"));
    }
    world.release(1).map_err(|error| error.to_string())?;
    takes_one(world)?;
    let now = world.available();
    if now == available { Ok(()) } else { fail(format!("{now} permits, not {available}")) }
}

fn acquires_and_releases(world: &Shared<Semaphore>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| drop(world.acquire()))
}

fn releases_two(world: &Shared<Semaphore>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| world.release(2).unwrap_or(()))
}

fn sweep<'a>(
    name: &'a str,
    world: &'a dyn Fn() -> Shared<Semaphore>,
    victim: Operation<Shared<Semaphore>>,
    check: fn(&Shared<Semaphore>) -> Verdict,
) -> Sweep<'a, Shared<Semaphore>> {
    Sweep::new(name, world, memory, victim, check)
}

#[test]
fn acquire_and_release_alone() {
    // A permit that it has taken stays taken.
    sweep("semaphore: acquire, release", &make::<2>, acquires_and_releases, left::<1, 2>)
        .must_hold();
}

#[test]
fn acquire_with_a_late_arrival() {
    let sweep =
        sweep("semaphore: acquire; late arrival", &make::<2>, acquires_and_releases, left::<0, 1>);
    Sweep { late: Some(takes_one), ..sweep }.must_hold();
}

/// Two processes sleep, and get permits that the victim releases, or that are released after its
/// death.
#[test]
fn release_with_two_asleep() {
    let sweep = sweep("semaphore: release; two asleep", &make::<0>, releases_two, left::<0, 2>);
    let after = |world: &Shared<Semaphore>| world.release(2).map_err(|error| error.to_string());
    Sweep { sleepers: &[takes_one, takes_one], after: Some(after), ..sweep }.must_hold();
}

/// The same without help: as soon as the permits are there, the sleepers get them.
#[test]
fn release_is_all_or_nothing() {
    let sweep =
        sweep("semaphore: release; one asleep, released", &make::<0>, releases_two, |world| {
            // The sleeper took one, of two from the victim and one from us, or of one from us.
            match world.available() {
                0 | 2 => Ok(()),
                other => fail(format!("{other} permits")),
            }
        });
    let after = |world: &Shared<Semaphore>| world.release(1).map_err(|error| error.to_string());
    Sweep { sleepers: &[takes_one], after: Some(after), ..sweep }.must_hold();
}

/// It sleeps, is woken for a permit, and another sleeps for the same.
fn woken<'a>() -> Sweep<'a, Shared<Semaphore>> {
    let sweep = sweep(
        "semaphore: woken, another asleep",
        &make::<0>,
        |world| {
            warm(world);
            Box::new(|| world.acquire().expect("a peer").forget())
        },
        left::<0, 1>,
    );
    let wake = |world: &Shared<Semaphore>| world.release(1).expect("room");
    Sweep { wake: Some(wake), sleepers: &[takes_one], ..sweep }
}

#[test]
fn the_woken_acquirer_dies() {
    // If it has not taken the permit, the sleeper has, and one is left.
    let after = |world: &Shared<Semaphore>| world.release(1).map_err(|error| error.to_string());
    Sweep { after: Some(after), ..woken() }.must_hold();
}

#[test]
fn what_is_not_mended_is_caught() {
    // Woken and frozen, it keeps the wake of the other to itself.
    woken().must_be_caught_unmended();
    // A release that changes the count and wakes no sleeper.
    let broken =
        sweep("semaphore: released and not yet woken", &make::<0>, releases_two, left::<0, 2>);
    Sweep { sleepers: &[takes_one, takes_one], ..broken }.must_be_caught_unmended();
}

fn owned() -> Shared<OwnedSemaphore> {
    options().anonymous(OwnedSemaphore::new(2)).expect("a segment")
}

fn takes_two(world: &Shared<OwnedSemaphore>) -> Verdict {
    Spin::Never.set();
    match world.acquire_many_timeout(2, patience()) {
        Ok(_) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

/// All permits come back.
fn all_are_back(world: &Shared<OwnedSemaphore>) -> Verdict {
    takes_two(world)?;
    if world.available() == 2 { Ok(()) } else { fail(format!("{} left", world.available())) }
}

fn takes_and_gives_back(world: &Shared<OwnedSemaphore>) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    world.acquire_many_timeout(9, Duration::ZERO).expect_err("too many");
    Box::new(|| {
        let one = world.acquire();
        let other = world.acquire();
        drop(one);
        drop(other);
    })
}

#[test]
fn owned_alone() {
    Sweep::new("owned semaphore: alone", &owned, memory, takes_and_gives_back, all_are_back)
        .must_hold();
}

#[test]
fn owned_with_a_late_arrival() {
    let sweep = Sweep::new(
        "owned semaphore: late arrival",
        &owned,
        memory,
        takes_and_gives_back,
        all_are_back,
    );
    Sweep { late: Some(takes_two), ..sweep }.must_hold();
}

#[test]
fn owned_given_back_with_one_asleep() {
    let victim: Operation<Shared<OwnedSemaphore>> = |world| {
        Spin::Never.set();
        let held = world.acquire_many(2).expect("free");
        Box::new(move || drop(held))
    };
    let sweep =
        Sweep::new("owned semaphore: release; asleep", &owned, memory, victim, all_are_back);
    Sweep { sleepers: &[takes_two, takes_two], ..sweep }.must_hold();
}

/// A permit that the victim got when it was woken comes back, and reaches the last sleeper, also if
/// another process has had it in between.
#[test]
fn owned_the_woken_heir_dies() {
    for barger in [false, true] {
        let heir = Heir {
            name: "owned semaphore: the woken heir",
            world: &owned,
            memory,
            prepare: |world| {
                Spin::Never.set();
                world.acquire_many_timeout(9, Duration::ZERO).expect_err("too many");
            },
            lock: |world| {
                let both = world.acquire_many(2);
                Box::new(move || drop(both))
            },
            barger,
        };
        heir.must_hold();
    }
}

/// The recoverer is killed as well; the next one takes it up, and gives nothing back twice.
#[test]
fn owned_recovery_is_interrupted() {
    // The process that makes the world holds both, and counts as dead.
    let held: fn() -> Shared<OwnedSemaphore> = || {
        let world = owned();
        core::mem::forget(world.acquire_many(2).expect("free"));
        world
    };
    let recovers: Operation<Shared<OwnedSemaphore>> = |world| {
        Spin::Never.set();
        Box::new(|| world.recover(&Dead::killed(FIRST)))
    };
    let after: Act<Shared<OwnedSemaphore>> = |world| {
        world.recover(&Dead::killed(FIRST));
        Ok(())
    };
    let name = "owned semaphore: recovery, interrupted; two asleep";
    let sweep = Sweep::new(name, &held, memory, recovers, all_are_back);
    Sweep { sleepers: &[takes_two, takes_two], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn owned_permits_that_stay_are_caught() {
    Sweep::new("owned semaphore: alone", &owned, memory, takes_and_gives_back, |world| match world
        .available()
    {
        2 => Ok(()),
        other => fail(format!("{other} left")),
    })
    .must_be_caught_unmended();
}

/// Others release the permits that the victim did not release. Those that it did release reach the
/// sleepers without help.
fn releases_if_it_did_not(world: &Shared<Semaphore>) -> Verdict {
    match world.available() {
        0 => world.release(2).map_err(|error| error.to_string()),
        _ => Ok(()),
    }
}

#[test]
fn release_reaches_the_sleepers() {
    let sweep =
        sweep("semaphore: release; two asleep, no help", &make::<0>, releases_two, left::<0, 2>);
    let after = Some(releases_if_it_did_not as fn(&_) -> _);
    Sweep { sleepers: &[takes_one, takes_one], after, ..sweep }.must_hold();
}
