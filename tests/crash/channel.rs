//! The sweeps of `Channel`: coming, sending, receiving, leaving.
#[path = "ends.rs"]
mod ends;

use crate::stepper::patience;
use crate::sweep::{Act, Operation};
use crate::sweeps::{Verdict, fail, options};
use outlast::{
    Channel, FixedQueue, RecvTimeoutError, SendTimeoutError, Shared, Spin, TryRecvError,
    TrySendError,
};

type World = Shared<Channel<FixedQueue<u64, 2>>>;

const KIND: &str = "channel";

const SENDERS_ASLEEP: [Act<World>; 1] = [sends_to_the_end];

fn empty() -> World {
    options().anonymous(Channel::new(FixedQueue::new())).expect("a segment")
}

/// With the messages 0 and 1, whose sender has left.
fn left() -> World {
    let world = empty();
    world.sender().expect("room").send_batch(&[0, 1]).expect("room");
    world
}

/// The same, but this process still holds a sender.
fn full() -> World {
    let world = left();
    std::mem::forget(world.sender().expect("room"));
    world
}

fn warm(world: &World) {
    Spin::Never.set();
    world.join_timeout(core::time::Duration::ZERO).ok(); // known to the segment
}

/// Receives until the end. The messages are 0 and 1, without those that went to others.
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
    all.sort_unstable(); // a message of a killed receiver comes out of order
    if [&[][..], &[0], &[0, 1], &[1]].contains(&&all[..]) {
        Ok(())
    } else {
        fail(format!("{all:?}"))
    }
}

/// Sends until no receiver is left.
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

/// Both ends are empty, and can be held, used and left again.
fn carries_on(world: &World) -> Verdict {
    warm(world);
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends::are_held_by_one(world)?;
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
        other => fail(format!("without a receiver: {other:?}")),
    }
}

fn sends_both(world: &World) {
    world.sender().map(|sender| sender.send_batch(&[0, 1]).ok()).ok();
}

fn comes_sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| sends_both(world))
}

fn sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let sender = world.sender().expect("room");
    Box::new(move || {
        sender.send_batch(&[0, 1]).ok();
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

const SENDERS: [(&str, Operation<World>); 3] = [
    ("channel: sender, clone, drop", ends::comes_and_goes),
    ("channel: sender, send, send, drop", comes_sends_and_goes),
    ("channel: send, send, drop of the last", sends_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("channel: recv, drop of the last", ends::receives_and_goes),
    ("channel: recv until disconnected, drop", ends::receives_all),
    ("channel: recv_ack, ack, drop", acknowledges),
];
