//! The sweeps of `Channel`: coming, sending, receiving, leaving.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, once_mended, options};
use outlast::{
    FixedChannel, RecvTimeoutError, SendTimeoutError, Shared, Spin, TryRecvError, TrySendError,
};

type World = Shared<FixedChannel<u64, 2>>;

fn empty() -> World {
    options().anonymous(FixedChannel::new()).expect("a segment")
}

/// With the messages 0 and 1, whose sender has left.
fn left() -> World {
    let world = empty();
    world.sender().expect("room").send_batch(&[0, 1]).expect("room");
    world
}

/// The same, but somebody, this process, can still send.
fn full() -> World {
    let world = left();
    std::mem::forget(world.sender().expect("room"));
    world
}

fn warm(world: &World) {
    Spin::Never.set();
    world.join_timeout(core::time::Duration::ZERO).ok(); // known to the segment
}

/// Waits for the end of what comes, which is a first part of 0, 1, or what is left of it.
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
    all.sort_unstable(); // what a killed receiver had comes out of order
    if [&[][..], &[0], &[0, 1], &[1]].contains(&&all[..]) {
        Ok(())
    } else {
        fail(format!("{all:?}"))
    }
}

/// Sends until there is nobody to send to.
fn sends_to_the_end(world: &World) -> Verdict {
    warm(world);
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    loop {
        match sender.send_timeout(9, patience()) {
            Ok(()) => {}
            Err(SendTimeoutError::Disconnected(9)) => return Ok(()),
            Err(error) => return fail(error),
        }
    }
}

fn ends_are_held_by_one(world: &World) -> Verdict {
    once_mended(|| match (world.senders(), world.receivers()) {
        (1, 1) => Ok(()),
        (senders, receivers) => fail(format!("{senders} senders, {receivers} receivers")),
    })
}

/// Nobody is left at either end; and both can be taken, used, and left again.
fn carries_on(world: &World) -> Verdict {
    warm(world);
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends_are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    for message in [5, 6] {
        sender.try_send(message).map_err(|error| format!("{message}: {error}"))?;
    }
    if !matches!(sender.try_send(7), Err(TrySendError::Full(7))) {
        return fail("more room than there is");
    }
    drop(sender);
    let all: Vec<u64> = receiver.try_iter().collect();
    if all != [5, 6] || receiver.try_recv() != Err(TryRecvError::Disconnected) {
        return fail(format!("{all:?}, then {:?}", receiver.try_recv()));
    }
    drop(receiver);
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    match sender.try_send(8) {
        Err(TrySendError::Disconnected(8)) => Ok(()),
        other => fail(format!("to nobody: {other:?}")),
    }
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

fn comes_sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(sender) = world.sender() {
            sender.send_batch(&[0, 1]).ok();
        }
    })
}

fn sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let sender = world.sender().expect("room");
    Box::new(move || {
        sender.send_batch(&[0, 1]).ok();
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

const SENDERS: [(&str, Operation<World>); 3] = [
    ("channel: sender, clone, drop", comes_and_goes),
    ("channel: sender, send, send, drop", comes_sends_and_goes),
    ("channel: send, send, drop of the last", sends_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("channel: recv, drop of the last", receives_and_goes),
    ("channel: recv until disconnected, drop", receives_all),
    ("channel: recv_ack, ack, drop", acknowledges),
];

#[test]
fn channel_senders_alone() {
    for (name, victim) in SENDERS {
        Sweep::new(name, &empty, memory, victim, carries_on).must_hold();
    }
}

#[test]
fn channel_receivers_alone() {
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
fn channel_senders_with_a_receiver_asleep() {
    for (name, victim) in SENDERS {
        let name = format!("{name}; receiver asleep");
        let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
        Sweep { sleepers: &[receives_to_the_end], after: Some(somebody_comes_and_goes), ..sweep }
            .must_hold();
    }
}

/// Nobody but the recovery helps: the victim is a sender from the beginning.
#[test]
fn channel_last_sender_with_two_asleep() {
    let name = "channel: send, send, drop of the last; two receivers asleep";
    let sweep = Sweep::new(name, &empty, memory, sends_and_goes, carries_on);
    Sweep { sleepers: &[receives_to_the_end, receives_to_the_end], ..sweep }.must_hold();
}

#[test]
fn channel_last_receiver_with_a_sender_asleep() {
    for (name, victim) in [RECEIVERS[0], RECEIVERS[2]] {
        let name = format!("{name}; sender asleep");
        let sweep = Sweep::new(&name, &full, memory, victim, drains);
        Sweep { sleepers: &[sends_to_the_end], ..sweep }.must_hold();
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
fn channel_receivers_with_a_receiver_asleep() {
    for (name, victim) in RECEIVERS {
        let name = format!("{name}; late receiver");
        let sweep = Sweep::new(&name, &left, memory, victim, carries_on);
        Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    }
}

/// The bit of an end that was gone is cleared by who finds that it is not.
#[test]
fn channel_stale_bit() {
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
    let sweep = Sweep::new("channel: try_recv, stale bit; drop", &stale, memory, looks, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
}

/// The receiver that was woken, by the end or a message, dies.
#[test]
fn channel_woken_receiver() {
    let wake: fn(&World) = |world| {
        warm(world);
        world.sender().map(|sender| sender.send_batch(&[0, 1]).ok()).ok();
    };
    let sweep = Sweep::new("channel: the woken receiver", &empty, memory, receives_all, carries_on);
    Sweep { wake: Some(wake), ..sweep }.must_hold();
}

/// An end that a frozen process keeps, and those who wait for it to leave.
#[test]
fn channel_ends_of_the_frozen_are_caught() {
    let name = "channel: send, send, drop of the last";
    let sweep = Sweep::new(name, &empty, memory, sends_and_goes, carries_on);
    sweep.must_be_caught_unmended();
    let sweep = Sweep::new("channel: recv, drop", &left, memory, receives_and_goes, carries_on);
    sweep.must_be_caught_unmended();
}
