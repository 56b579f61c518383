//! The sweeps of `Channel<ByteQueue>`: coming, writing and reading in place, leaving.
#[path = "ends.rs"]
#[expect(clippy::duplicate_mod, reason = "the same sweeps, of all kinds of channels")]
mod ends;

use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, options};
use outlast::__private::Dead;
use outlast::{
    Channel, FixedByteQueue, RecvTimeoutError, SendTimeoutError, Shareable as _, Shared, Spin,
    TryRecvError, TrySendError,
};

/// Room for one long message, or two short ones.
type World = Shared<Channel<FixedByteQueue<2>>>;

const KIND: &str = "byte channel";

const SENDERS_ASLEEP: [Act<World>; 1] = [sends_to_the_end];

fn empty() -> World {
    options().anonymous(Channel::new(FixedByteQueue::new())).expect("a segment")
}

/// With the messages 0 and 1, whose sender has left.
fn left() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    [[0], [1]].iter().try_for_each(|message| sender.send(message)).expect("room");
    drop(sender);
    world
}

/// The same, but this process still holds a sender.
fn full() -> World {
    let world = left();
    std::mem::forget(world.sender().expect("room"));
    world
}

/// With message 0 alone. This process still holds a sender.
fn half() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    sender.send(&[0]).expect("room");
    std::mem::forget(sender);
    world
}

fn warm(world: &World) {
    Spin::Never.set();
    drop(world.receiver()); // known to the segment
}

fn sends_both(world: &World) {
    if let Ok(sender) = world.sender() {
        [[0], [1]].iter().try_for_each(|message| sender.send(message)).ok();
    }
}

/// Receives until the end. The messages are 0 and 1, without those that went to others.
fn receives_to_the_end(world: &World) -> Verdict {
    Spin::Never.set();
    let receiver = world.receiver().map_err(|fault| fault.to_string())?;
    let mut all = Vec::new();
    loop {
        match receiver.recv_timeout(patience()) {
            Ok(message) if message.len() == 1 => all.extend(message),
            Ok(torn) => return fail(format!("{torn:?}")),
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
    Spin::Never.set();
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    loop {
        match sender.send_timeout(&[9], patience()) {
            Ok(()) => {}
            Err(SendTimeoutError::Disconnected(())) => return Ok(()),
            Err(error) => return fail(error),
        }
    }
}

/// Both ends are empty, and can be held, used and left again.
fn carries_on(world: &World) -> Verdict {
    Spin::Never.set();
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends::are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    for message in [5, 6] {
        sender.try_send(&[message]).map_err(|error| format!("{message}: {error}"))?;
    }
    if !matches!(sender.try_send(&[7]), Err(TrySendError::Full(()))) {
        return fail("more room than there is");
    }
    drop(sender);
    let all: Vec<u8> = receiver.try_iter().flatten().collect();
    if all != [5, 6] || receiver.try_recv() != Err(TryRecvError::Disconnected) {
        return fail(format!("{all:?}, then {:?}", receiver.try_recv()));
    }
    drop(receiver);
    let sender = world.sender().map_err(|fault| fault.to_string())?;
    match sender.try_send(&[8]) {
        Err(TrySendError::Disconnected(())) => Ok(()),
        other => fail(format!("without a receiver: {other:?}")),
    }
}

/// Writes 0 in place, gives up a message, and sends 1.
fn writes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let sender = world.sender().expect("room");
    Box::new(move || {
        if let Ok(mut room) = sender.loan(8) {
            room[0] = 0;
            room.send_len(1).ok();
        }
        drop(sender.loan(9));
        sender.send(&[1]).ok();
        drop(sender);
    })
}

/// Reads in place, gives it back, and reads it again.
fn reads_twice(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        if let Ok(message) = receiver.recv_ref() {
            message.give_back().ok();
        }
        drop(receiver.recv_ref());
        drop(receiver);
    })
}

const SENDERS: [(&str, Operation<World>); 2] = [
    ("byte channel: sender, clone, drop", ends::comes_and_goes),
    ("byte channel: loan, send, loan, drop, send, drop of the last", writes_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("byte channel: recv, drop of the last", ends::receives_and_goes),
    ("byte channel: recv until disconnected, drop", ends::receives_all),
    ("byte channel: recv_ref, given back, recv_ref, drop of both", reads_twice),
];

/// The last receiver leaves between the loan and its `send`: the message is taken back.
fn commits_to_nobody(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let (sender, receiver) = (world.sender().expect("room"), world.receiver().expect("room"));
    Box::new(move || {
        if let Ok(mut room) = sender.loan(1) {
            drop(receiver);
            room[0] = 0;
            room.send().ok();
        }
        drop(sender);
    })
}

const TO_NOBODY: &str = "byte channel: loan, drop of the last receiver, send";

#[test]
fn byte_channel_commit_to_nobody() {
    let sweep = Sweep::new(TO_NOBODY, &empty, memory, commits_to_nobody, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    sweep.must_be_caught_unmended();
}

/// The victim holds all room from the beginning. Another sender waits for room until it is
/// disconnected.
fn commits_to_nobody_with_a_sender_asleep(name: &str) -> Sweep<'_, World> {
    let commits: Operation<World> = |world| {
        Spin::Never.set();
        let receiver = world.receiver().expect("room");
        let sender = Box::leak(Box::new(world.sender().expect("room")));
        let room = sender.loan(1).expect("room");
        Box::new(move || {
            drop(receiver);
            room.send().ok();
        })
    };
    let sweep = Sweep::new(name, &half, memory, commits, ends::drains);
    Sweep { sleepers: &SENDERS_ASLEEP, ..sweep }
}

#[test]
fn byte_channel_commit_to_nobody_with_a_sender_asleep() {
    let name = format!("{TO_NOBODY}; sender asleep");
    commits_to_nobody_with_a_sender_asleep(&name).must_hold();
}

/// The recoverer is killed as well, and the next one continues its work. The message that was being
/// written is not sent, and the last sender is gone.
#[test]
fn byte_channel_recovery_is_interrupted() {
    // The process that makes the world is at a message, and counts as dead.
    let writing: fn() -> World = || {
        let world = empty();
        let sender = world.sender().expect("room");
        sender.send(&[0]).expect("room");
        std::mem::forget(sender.loan(8).expect("room"));
        std::mem::forget(sender);
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
    let name = "byte channel: recovery, interrupted; one asleep";
    let sweep = Sweep::new(name, &writing, memory, recovers, carries_on);
    Sweep { sleepers: &[receives_to_the_end], after: Some(after), ..sweep }.must_hold();
    // Without the next one, the other waits for the dead.
    let sweep = Sweep { name: "byte channel: recovery, given up; one asleep", ..sweep };
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
}

/// A negative control: a sender sleeps for room that a stopped process has claimed.
#[test]
fn byte_channel_sleeper_beside_the_frozen_is_caught() {
    let name = format!("{TO_NOBODY}; sender asleep");
    commits_to_nobody_with_a_sender_asleep(&name).must_be_caught_unmended();
}
