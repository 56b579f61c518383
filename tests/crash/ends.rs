//! The sweeps that all kinds of channels have in common. The file that includes this one defines
//! the worlds (empty, without a sender, full), what senders and receivers do there, and what must
//! hold afterwards.
use super::{
    KIND, RECEIVERS, SENDERS, SENDERS_ASLEEP, World, carries_on, empty, full, left,
    receives_to_the_end, sends_both, warm,
};
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, once_mended};
use outlast::TryRecvError;

/// One that is a sender from the beginning, and the last.
fn last_sender() -> (&'static str, Operation<World>) {
    SENDERS[SENDERS.len() - 1]
}

pub(super) fn are_held_by_one(world: &World) -> Verdict {
    once_mended(|| match (world.senders(), world.receivers()) {
        (1, 1) => Ok(()),
        (senders, receivers) => fail(format!("{senders} senders, {receivers} receivers")),
    })
}

pub(super) fn comes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(sender) = world.sender() {
            let second = sender.clone();
            drop(sender);
            drop(second);
        }
    })
}

pub(super) fn receives_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        receiver.recv().ok();
        drop(receiver);
    })
}

pub(super) fn receives_all(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        while receiver.recv().is_ok() {}
        drop(receiver);
    })
}

/// The process that made the world can send for ever, so there is no end to see here.
pub(super) fn drains(world: &World) -> Verdict {
    warm(world);
    let receiver = world.receiver().map_err(|fault| fault.to_string())?;
    are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    if receiver.try_recv() == Err(TryRecvError::Empty) { Ok(()) } else { fail("an end") }
}

#[test]
fn senders_alone() {
    for (name, victim) in SENDERS {
        Sweep::new(name, &empty, memory, victim, carries_on).must_hold();
    }
}

#[test]
fn receivers_alone() {
    for (name, victim) in RECEIVERS {
        Sweep::new(name, &left, memory, victim, carries_on).must_hold();
    }
}

/// So that the end is told even if the victim never came.
fn somebody_comes_and_goes(world: &World) -> Verdict {
    warm(world);
    drop((world.sender(), world.receiver()));
    Ok(())
}

#[test]
fn senders_with_a_receiver_asleep() {
    for (name, victim) in SENDERS {
        let name = format!("{name}; receiver asleep");
        let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
        Sweep { sleepers: &[receives_to_the_end], after: Some(somebody_comes_and_goes), ..sweep }
            .must_hold();
    }
}

/// Only the recovery helps.
#[test]
fn last_sender_with_two_asleep() {
    let (name, victim) = last_sender();
    let name = format!("{name}; two receivers asleep");
    let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end, receives_to_the_end], ..sweep }.must_hold();
}

#[test]
fn last_receiver_with_senders_asleep() {
    for (name, victim) in [RECEIVERS[0], RECEIVERS[2]] {
        let name = format!("{name}; senders asleep");
        let sweep = Sweep::new(&name, &full, memory, victim, drains);
        Sweep { sleepers: &SENDERS_ASLEEP, ..sweep }.must_hold();
    }
}

/// The others wait for what becomes of the victim's message.
#[test]
fn receivers_with_a_late_receiver() {
    for (name, victim) in RECEIVERS {
        let name = format!("{name}; late receiver");
        let sweep = Sweep::new(&name, &left, memory, victim, carries_on);
        Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    }
}

/// The bit of an end is cleared by a process that finds the end held again.
#[test]
fn stale_bit() {
    let looks: Operation<World> = |world| {
        warm(world);
        let receiver = world.receiver().expect("room");
        let sender = world.sender().expect("room");
        Box::new(move || {
            receiver.try_recv().ok();
            drop(sender);
        })
    };
    let stale: fn() -> World = || {
        let world = empty();
        drop(world.sender().expect("room"));
        world
    };
    let name = format!("{KIND}: try_recv, stale bit; drop");
    let sweep = Sweep::new(&name, &stale, memory, looks, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
}

/// The receiver that was woken, by the end or a message, dies; another waits as well.
#[test]
fn woken_receiver() {
    let wake: fn(&World) = |world| {
        warm(world);
        sends_both(world);
    };
    let name = format!("{KIND}: the woken receiver");
    let sweep = Sweep::new(&name, &empty, memory, receives_all, carries_on);
    Sweep { wake: Some(wake), ..sweep }.must_hold();
    let name = format!("{name}; another asleep");
    let sweep = Sweep { name: &name, ..sweep };
    Sweep { wake: Some(wake), sleepers: &[receives_to_the_end], ..sweep }.must_hold();
}

/// A negative control: a stopped process keeps an end, and others wait until it has left.
#[test]
fn held_by_the_frozen_are_caught() {
    let (name, victim) = last_sender();
    Sweep::new(name, &empty, memory, victim, carries_on).must_be_caught_unmended();
    for (name, victim) in [RECEIVERS[0], RECEIVERS[2]] {
        Sweep::new(name, &left, memory, victim, carries_on).must_be_caught_unmended();
    }
}

/// A negative control: others sleep for an end or a message that a stopped process keeps.
#[test]
fn sleepers_beside_the_frozen_are_caught() {
    let (name, victim) = last_sender();
    let sweep = Sweep::new(name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[0];
    let sweep = Sweep::new(name, &full, memory, victim, drains);
    Sweep { sleepers: &SENDERS_ASLEEP, ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[2];
    let sweep = Sweep::new(name, &left, memory, victim, carries_on);
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_be_caught_unmended();
}
