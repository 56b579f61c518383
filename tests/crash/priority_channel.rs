//! The sweeps of `Channel<PriorityQueue>`: coming, sending to two levels, receiving from both,
//! leaving.
#[path = "ends.rs"]
#[expect(clippy::duplicate_mod, reason = "the same sweeps, of all kinds of channels")]
mod ends;

use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, options};
use core::time::Duration;
use outlast::__private::Dead;
use outlast::{
    Channel, FixedPriorityQueue, RecvTimeoutError, SendTimeoutError, Shareable as _, Shared, Spin,
    TryRecvError, TrySendError,
};

/// Two levels for two messages each.
type World = Shared<Channel<FixedPriorityQueue<u64, 2, 2>>>;

const KIND: &str = "priority channel";

/// Of level 0, and more urgent.
const SENT: [(usize, u64); 2] = [(0, 0), (1, 1)];

fn empty() -> World {
    options().anonymous(Channel::new(FixedPriorityQueue::new())).expect("a segment")
}

/// With a message in each level, whose sender has left.
fn left() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).expect("room");
    drop(sender);
    world
}

/// Both levels are full. This process still holds a sender.
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

/// Receives until the end. The messages are some of the two.
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

/// Sends to a level until no receiver is left.
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

const SENDERS_ASLEEP: [Act<World>; 2] =
    [|world| sends_to_the_end(world, 0), |world| sends_to_the_end(world, 1)];

/// Both ends are empty, and can be held, used in all levels and left again.
fn carries_on(world: &World) -> Verdict {
    warm(world);
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends::are_held_by_one(world)?;
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
            other => return fail(format!("without a receiver: {other:?}")),
        }
    }
    Ok(())
}

fn sends_both(world: &World) {
    if let Ok(sender) = world.sender() {
        SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).ok();
    }
}

fn sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let sender = world.sender().expect("room");
    Box::new(move || {
        SENT.iter().try_for_each(|&(level, message)| sender.send(level, message)).ok();
        drop(sender);
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
    ("priority channel: sender, clone, drop", ends::comes_and_goes),
    ("priority channel: send to both levels, drop of the last", sends_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("priority channel: recv, drop of the last", ends::receives_and_goes),
    ("priority channel: recv until disconnected, drop", ends::receives_all),
    ("priority channel: recv_ack, ack, drop", acknowledges),
];

/// The recoverer is killed as well; the next one takes it up: the delivery comes back, and the last
/// sender is gone.
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
