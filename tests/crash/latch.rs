//! The sweeps of `Latch`.
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, options};
use outlast::__private::Dead;
use outlast::{Latch, LatchError, OnDeath, Shareable as _, Shared, Spin};
use std::time::Duration;

fn counted() -> Shared<Latch> {
    options().anonymous(Latch::with(1, OnDeath::CountDown)).expect("a segment")
}

fn failing() -> Shared<Latch> {
    options().anonymous(Latch::new(1)).expect("a segment")
}

fn warm(world: &Shared<Latch>) {
    Spin::Never.set();
    world.wait_timeout(Duration::ZERO).ok();
}

/// Waits as a survivor does.
fn waits(world: &Shared<Latch>) -> Verdict {
    Spin::Never.set();
    match world.wait_timeout(patience()) {
        Ok(true) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

fn counts(world: &Shared<Latch>) -> Verdict {
    world.count_down(1);
    Ok(())
}

/// Nothing is owed any more, and it is open.
fn is_open(world: &Shared<Latch>) -> Verdict {
    waits(world)?;
    if world.remaining() == 0 { Ok(()) } else { fail(format!("{} remain", world.remaining())) }
}

fn joins_and_does(world: &Shared<Latch>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(member) = world.join(2) {
            member.count_down();
        }
    })
}

#[test]
fn member_with_a_waiter_asleep() {
    let sweep = Sweep::new(
        "latch: join, count, done; one asleep",
        &counted,
        memory,
        joins_and_does,
        is_open,
    );
    Sweep { sleepers: &[waits], after: Some(counts), ..sweep }.must_hold();
}

/// Killed as a member it makes the latch fail; before and after, not.
#[test]
fn member_whose_death_is_a_failure() {
    let ends = |world: &Shared<Latch>| match world.wait_timeout(patience()) {
        Ok(true) | Err(LatchError::MemberDied { .. }) => Ok(()),
        other => fail(format!("{other:?}")),
    };
    let sweep =
        Sweep::new("latch: join, count, done; may fail", &failing, memory, joins_and_does, ends);
    Sweep { sleepers: &[ends], after: Some(counts), ..sweep }.must_hold();
}

fn counts_last(world: &Shared<Latch>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| world.count_down(1))
}

/// The victim makes the last count while another process sleeps. The latch opens, by the victim's
/// count or by another one.
#[test]
fn last_count_with_two_asleep() {
    let sweep = Sweep::new("latch: last count; two asleep", &counted, memory, counts_last, is_open);
    Sweep { sleepers: &[waits, waits], after: Some(counts), ..sweep }.must_hold();
}

/// The same without another count: a count that the victim has made opens the latch, and wakes the
/// sleepers.
#[test]
fn last_count_reaches_the_sleepers() {
    let sweep = Sweep::new("latch: last count, no help", &counted, memory, counts_last, is_open);
    let after: fn(&Shared<Latch>) -> Verdict = |world| match world.remaining() {
        0 => Ok(()),
        _ => counts(world),
    };
    Sweep { sleepers: &[waits, waits], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn member_alone_and_with_a_late_waiter() {
    let name = "latch: join, count, done; alone";
    let does = |world: &Shared<Latch>| {
        counts(world)?;
        is_open(world)
    };
    let sweep = Sweep::new(name, &counted, memory, joins_and_does, does);
    sweep.must_hold();
    let name = "latch: join, count, done; late waiter";
    let sweep = Sweep::new(name, &counted, memory, joins_and_does, is_open);
    Sweep { late: Some(waits), after: Some(counts), ..sweep }.must_hold();
}

/// It is open, and stays so for the other one.
#[test]
fn the_woken_waiter_dies() {
    let victim: Operation<Shared<Latch>> = |world| {
        warm(world);
        Box::new(|| world.wait().unwrap_or(()))
    };
    let wake: fn(&Shared<Latch>) = |world| world.count_down(1);
    let sweep = Sweep::new("latch: the woken waiter", &failing, memory, victim, is_open);
    Sweep { wake: Some(wake), sleepers: &[waits], ..sweep }.must_hold();
}

/// The recoverer is killed as well; the next one takes it up.
#[test]
fn recovery_of_a_member_is_interrupted() {
    // The process that makes the world is a member, and counts as dead.
    let with_a_member: fn() -> Shared<Latch> = || {
        let world = counted();
        core::mem::forget(world.join(2).expect("closed"));
        world
    };
    let recovers: Operation<Shared<Latch>> = |world| {
        warm(world);
        Box::new(|| world.recover(&Dead::killed(FIRST)))
    };
    let after: Act<Shared<Latch>> = |world| {
        world.recover(&Dead::killed(FIRST));
        counts(world)
    };
    let name = "latch: recovery, interrupted; two asleep";
    let sweep = Sweep::new(name, &with_a_member, memory, recovers, is_open);
    Sweep { sleepers: &[waits, waits], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn what_a_member_owes_for_ever_is_caught() {
    let sweep = Sweep::new(
        "latch: join, count, done; one asleep",
        &counted,
        memory,
        joins_and_does,
        is_open,
    );
    Sweep { sleepers: &[waits], after: Some(counts), ..sweep }.must_be_caught_unmended();
}
