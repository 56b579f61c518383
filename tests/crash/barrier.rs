//! The sweeps of `Barrier` and `OnceCell`.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, once_mended, options};
use outlast::{Barrier, BarrierError, OnceCell, Shared, Spin};
use std::time::Duration;

fn pair() -> Shared<Barrier> {
    options().anonymous(Barrier::new(2)).expect("a segment")
}

fn three() -> Shared<Barrier> {
    options().anonymous(Barrier::new(3)).expect("a segment")
}

/// Makes the victim a peer and a party, and the barrier whole.
fn warm(world: &Shared<Barrier>) {
    Spin::Never.set();
    world.wait_timeout(Duration::ZERO).ok();
    world.reset();
}

/// Waits as a survivor does: it passes, or is told that somebody died.
fn waits(world: &Shared<Barrier>) -> Verdict {
    Spin::Never.set();
    match world.wait_timeout(patience()) {
        Ok(_) | Err(BarrierError::Broken(_)) => Ok(()),
        Err(error) => fail(error),
    }
}

/// After a reset it works for two.
fn works(world: &Shared<Barrier>) -> Verdict {
    world.reset();
    if world.is_broken() || world.waiting() != 0 {
        return fail("not whole after a reset");
    }
    world.abort();
    match world.wait() {
        Err(BarrierError::Broken(_)) => {}
        other => return fail(format!("after an abort: {other:?}")),
    }
    world.reset();
    Ok(())
}

/// An operation on a barrier, and then it works.
fn sweep<'a>(
    name: &'a str,
    world: &'a dyn Fn() -> Shared<Barrier>,
    victim: Operation<Shared<Barrier>>,
) -> Sweep<'a, Shared<Barrier>> {
    Sweep::new(name, world, memory, victim, works)
}

fn arrives(world: &Shared<Barrier>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.wait().ok();
    })
}

#[test]
fn last_arrival_with_one_asleep() {
    let swept = sweep("barrier: last arrival; one asleep", &pair, arrives);
    Sweep { sleepers: &[waits], ..swept }.must_hold();
}

#[test]
fn last_arrival_with_two_asleep() {
    let swept = sweep("barrier: last arrival; two asleep", &three, arrives);
    Sweep { sleepers: &[waits, waits], ..swept }.must_hold();
}

/// It arrives first and is killed on the way to sleep: the other does not wait for it.
#[test]
fn first_arrival_with_a_late_one() {
    let swept = sweep("barrier: first arrival; late arrival", &pair, |world| {
        warm(world);
        Box::new(|| {
            world.wait_timeout(Duration::from_micros(200)).ok();
        })
    });
    Sweep { late: Some(waits), ..swept }.must_hold();
}

#[test]
fn reset_with_one_asleep() {
    let swept = sweep("barrier: reset; one asleep", &pair, |world| {
        warm(world);
        Box::new(|| world.reset())
    });
    Sweep { sleepers: &[waits], ..swept }.must_hold();
}

#[test]
fn a_party_whose_death_is_not_told_is_caught() {
    let swept = sweep("barrier: last arrival; one asleep", &pair, arrives);
    Sweep { sleepers: &[waits], ..swept }.must_be_caught_unmended();
}

fn shrinking() -> Shared<Barrier> {
    options().anonymous(Barrier::shrinking(3)).expect("a segment")
}

/// Waits as a survivor of a shrinking barrier does: it passes. Then it is no party, whose end would be a loss.
fn passes(world: &Shared<Barrier>) -> Verdict {
    Spin::Never.set();
    world.wait_timeout(patience()).map_or_else(fail, |_| Ok(()))?;
    world.leave().or_else(fail)
}

/// Where all had arrived, the others did not wait for the dead one to be mended.
fn lost_one(world: &Shared<Barrier>) -> Verdict {
    once_mended(|| match (world.parties(), world.waiting(), world.is_broken()) {
        (2, 0, false) => Ok(()),
        other => fail(format!("parties, waiting, broken: {other:?}")),
    })
}

/// Whether it had arrived or not, the two others pass: by its arrival, or by its death.
#[test]
fn arrival_at_a_shrinking_barrier_with_two_asleep() {
    let swept = sweep("barrier, shrinking: last arrival; two asleep", &shrinking, arrives);
    Sweep { sleepers: &[passes, passes], check: lost_one, ..swept }.must_hold();
}

#[test]
fn arrival_at_a_shrinking_barrier_with_a_late_one() {
    let swept = sweep("barrier, shrinking: arrival; one asleep, one late", &shrinking, |world| {
        warm(world);
        Box::new(|| {
            world.wait_timeout(Duration::from_micros(200)).ok();
            world.reset();
        })
    });
    let survives: fn(&Shared<Barrier>) -> Verdict = |world| match waits(world) {
        // Its timeout has broken the barrier, and it was killed before it could reset that.
        Ok(()) if world.is_broken() => {
            world.reset();
            Ok(())
        }
        verdict => verdict,
    };
    Sweep { sleepers: &[survives], late: Some(survives), ..swept }.must_hold();
}

#[test]
fn a_shrinking_barrier_that_does_not_shrink_is_caught() {
    let swept = sweep("barrier, shrinking: last arrival; two asleep", &shrinking, arrives);
    Sweep { sleepers: &[passes, passes], check: lost_one, ..swept }.must_be_caught_unmended();
}

fn cell() -> Shared<OnceCell<[u64; 2]>> {
    options().anonymous(OnceCell::new()).expect("a segment")
}

fn makes(world: &Shared<OnceCell<[u64; 2]>>) -> Verdict {
    match world.get_or_init(|| [2, 2]) {
        Ok([1, 1] | [2, 2]) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

fn initialises(world: &Shared<OnceCell<[u64; 2]>>) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    world.wait_timeout(Duration::ZERO).ok();
    Box::new(|| {
        world.get_or_init(|| [1, 1]).ok();
    })
}

#[test]
fn initialise_alone() {
    Sweep::new("once cell: initialise", &cell, memory, initialises, makes).must_hold();
}

#[test]
fn initialise_with_a_waiter_and_a_late_arrival() {
    let sweep =
        Sweep::new("once cell: initialise; late arrival", &cell, memory, initialises, makes);
    Sweep { late: Some(makes), ..sweep }.must_hold();
}

#[test]
fn an_initialiser_that_is_stuck_is_caught() {
    let sweep =
        Sweep::new("once cell: initialise; late arrival", &cell, memory, initialises, |world| {
            match world.get() {
                Ok(Some(_)) => Ok(()),
                other => fail(format!("{other:?}")),
            }
        });
    sweep.must_be_caught_unmended();
}
