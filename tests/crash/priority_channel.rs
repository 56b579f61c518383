//! The sweeps of `PriorityChannel`: coming, sending to two levels, receiving from both, leaving.
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, once_mended, options};
use core::time::Duration;
use outlast::{
    Dead, PriorityChannel, RecvTimeoutError, SendTimeoutError, Shareable as _, Shared, Spin,
    TryRecvError, TrySendError,
};

/// Two levels for two messages each.
type World = Shared<PriorityChannel<u64, 2, 2>>;

/// Of level 0, and more urgent.
const SENT: [(usize, u64); 2] = [(0, 0), (1, 1)];

fn empty() -> World {
    options().anonymous(PriorityChannel::new()).expect("a segment")
}

/// With a message in each level, whose sender has left.
fn left() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).expect("room");
    drop(sender);
    world
}

/// Both levels are full, and somebody, this process, can still send.
fn full() -> World {
    let world = left();
    let sender = world.sender().expect("room");
    SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).expect("room");
    std::mem::forget(sender);
    world
}

fn warm(world: &World) {
    Spin::Never.set();
    world.join_timeout(Duration::ZERO).ok(); // known to the segment
}

/// Waits for the end of what comes, which is some of the two.
fn receives_to_the_end(world: &World) -> Verdict {
    warm(world);
    let receiver = world.receiver().map_err(|fault| fault.to_string())?;
    let mut all = Vec::new();
    loop {
        match receiver.recv_timeout(patience()) {
            Ok(message) => all.push(message),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(error) => return fail(error),
        }
    }
    all.sort_unstable(); // in any order: they need not have been there at the same time
    if [&[][..], &SENT[..1], &SENT, &SENT[1..]].contains(&&all[..]) {
        Ok(())
    } else {
        fail(format!("{all:?}"))
    }
}

/// Sends to a level until there is nobody to send to.
fn sends_to_the_end(world: &World, level: usize) -> Verdict {
    warm(world);
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    loop {
        match sender.send_timeout(level, 9, patience()) {
            Ok(()) => {}
            Err(SendTimeoutError::Disconnected(9)) => return Ok(()),
            Err(error) => return fail(error),
        }
    }
}

const SLEEPERS_OF_LEVELS: [Act<World>; 2] =
    [|world| sends_to_the_end(world, 0), |world| sends_to_the_end(world, 1)];

fn ends_are_held_by_one(world: &World) -> Verdict {
    once_mended(|| match (world.senders(), world.receivers()) {
        (1, 1) => Ok(()),
        (senders, receivers) => fail(format!("{senders} senders, {receivers} receivers")),
    })
}

/// Nobody is left at either end; and both can be taken, used in all levels, and left again.
fn carries_on(world: &World) -> Verdict {
    warm(world);
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends_are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    for (level, message) in [(0, 5), (1, 6), (0, 7), (1, 8)] {
        sender.try_send(level, message).map_err(|error| format!("{message}: {error}"))?;
    }
    for level in 0..2 {
        if !matches!(sender.try_send(level, 9), Err(TrySendError::Full(9))) {
            return fail("more room than there is");
        }
    }
    drop(sender);
    let all: Vec<_> = receiver.try_iter().collect();
    if all != [(1, 6), (1, 8), (0, 5), (0, 7)]
        || receiver.try_recv() != Err(TryRecvError::Disconnected)
    {
        return fail(format!("{all:?}, then {:?}", receiver.try_recv()));
    }
    drop(receiver);
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    for level in 0..2 {
        match sender.try_send(level, 8) {
            Err(TrySendError::Disconnected(8)) => {}
            other => return fail(format!("to nobody: {other:?}")),
        }
    }
    Ok(())
}

fn comes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(sender) = world.sender() {
            let second = sender.clone();
            drop(sender);
            drop(second);
        }
    })
}

fn sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let sender = world.sender().expect("room");
    Box::new(move || {
        SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).ok();
        drop(sender);
    })
}

fn receives_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        receiver.recv().ok();
        drop(receiver);
    })
}

fn receives_all(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        while receiver.recv().is_ok() {}
        drop(receiver);
    })
}

fn acknowledges(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        if let Ok(job) = receiver.recv_ack() {
            job.ack().ok();
        }
        drop(receiver);
    })
}

const SENDERS: [(&str, Operation<World>); 2] = [
    ("priority channel: sender, clone, drop", comes_and_goes),
    ("priority channel: send to both levels, drop of the last", sends_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("priority channel: recv, drop of the last", receives_and_goes),
    ("priority channel: recv until disconnected, drop", receives_all),
    ("priority channel: recv_ack, ack, drop", acknowledges),
];

#[test]
fn priority_channel_senders_alone() {
    for (name, victim) in SENDERS {
        Sweep::new(name, &empty, memory, victim, carries_on).must_hold();
    }
}

#[test]
fn priority_channel_receivers_alone() {
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
fn priority_channel_senders_with_a_receiver_asleep() {
    for (name, victim) in SENDERS {
        let name = format!("{name}; receiver asleep");
        let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
        Sweep { sleepers: &[receives_to_the_end], after: Some(somebody_comes_and_goes), ..sweep }
            .must_hold();
    }
}

/// Nobody but the recovery helps: the victim is a sender from the beginning, also between the bits of two levels.
#[test]
fn priority_channel_last_sender_with_two_asleep() {
    let (name, victim) = SENDERS[1];
    let name = format!("{name}; two receivers asleep");
    let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end, receives_to_the_end], ..sweep }.must_hold();
}

/// A sender sleeps in each level, and is told.
#[test]
fn priority_channel_last_receiver_with_senders_asleep() {
    for (name, victim) in [RECEIVERS[0], RECEIVERS[2]] {
        let name = format!("{name}; senders asleep");
        let sweep = Sweep::new(&name, &full, memory, victim, drains);
        Sweep { sleepers: &SLEEPERS_OF_LEVELS, ..sweep }.must_hold();
    }
}

/// The process that made the world can send for ever, so there is no end to see here.
fn drains(world: &World) -> Verdict {
    warm(world);
    let receiver = world.receiver().map_err(|fault| fault.to_string())?;
    ends_are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    if receiver.try_recv() == Err(TryRecvError::Empty) { Ok(()) } else { fail("an end") }
}

/// The others wait for what becomes of the victim's message.
#[test]
fn priority_channel_receivers_with_a_late_receiver() {
    for (name, victim) in RECEIVERS {
        let name = format!("{name}; late receiver");
        let sweep = Sweep::new(&name, &left, memory, victim, carries_on);
        Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    }
}

/// The bits of an end that was gone are cleared by who finds that it is not.
#[test]
fn priority_channel_stale_bits() {
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
    let name = "priority channel: try_recv, stale bits; drop";
    let sweep = Sweep::new(name, &stale, memory, looks, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
}

/// The receiver that was woken, by the end or a message, dies; another waits as well.
#[test]
fn priority_channel_woken_receiver() {
    let wake: fn(&World) = |world| {
        warm(world);
        if let Ok(sender) = world.sender() {
            SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).ok();
        }
    };
    let name = "priority channel: the woken receiver";
    let sweep = Sweep::new(name, &empty, memory, receives_all, carries_on);
    Sweep { wake: Some(wake), ..sweep }.must_hold();
    let name = "priority channel: the woken receiver; another asleep";
    let sweep = Sweep { name, ..sweep };
    Sweep { wake: Some(wake), sleepers: &[receives_to_the_end], ..sweep }.must_hold();
}

/// The recoverer is killed as well; the next one takes it up: the delivery comes back, and the last sender is gone.
#[test]
fn priority_channel_recovery_is_interrupted() {
    // The process that makes the world holds a delivery, and the senders' end, and counts as dead.
    let holding: fn() -> World = || {
        let world = empty();
        let (sender, receiver) = (world.sender().expect("room"), world.receiver().expect("room"));
        SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).expect("room");
        std::mem::forget(receiver.recv_ack().expect("a message"));
        std::mem::forget((sender, receiver));
        world
    };
    let recovers: Operation<World> = |world| {
        Spin::Never.set();
        Box::new(|| world.recover(&Dead::killed(FIRST)))
    };
    let after: Act<World> = |world| {
        world.recover(&Dead::killed(FIRST));
        Ok(())
    };
    let name = "priority channel: recovery, interrupted; one asleep";
    let sweep = Sweep::new(name, &holding, memory, recovers, carries_on);
    Sweep { sleepers: &[receives_to_the_end], after: Some(after), ..sweep }.must_hold();
    // Without the next one, the other waits for the dead.
    let sweep = Sweep { name: "priority channel: recovery, given up; one asleep", ..sweep };
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
}

/// An end that a frozen process keeps, and those who wait for it to leave.
#[test]
fn priority_channel_ends_of_the_frozen_are_caught() {
    let (name, victim) = SENDERS[1];
    let sweep = Sweep::new(name, &empty, memory, victim, carries_on);
    sweep.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[0];
    let sweep = Sweep::new(name, &left, memory, victim, carries_on);
    sweep.must_be_caught_unmended();
}

/// Those who sleep for what a frozen process keeps: an end, or a message.
#[test]
fn priority_channel_sleepers_beside_the_frozen_are_caught() {
    let (name, victim) = SENDERS[1];
    let sweep = Sweep::new(name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[0];
    let sweep = Sweep::new(name, &full, memory, victim, drains);
    Sweep { sleepers: &SLEEPERS_OF_LEVELS, ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[2];
    let sweep = Sweep::new(name, &left, memory, victim, carries_on);
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_be_caught_unmended();
}
