//! The sweeps of `ByteChannel`: coming, writing and reading in place, leaving.
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{FIRST, Verdict, fail, memory, once_mended, options};
use outlast::{
    Dead, FixedByteChannel, RecvTimeoutError, SendTimeoutError, Shareable as _, Shared, Spin,
    TryRecvError, TrySendError,
};

/// Room for one long message, or two short ones.
type World = Shared<FixedByteChannel<2>>;

fn empty() -> World {
    options().anonymous(FixedByteChannel::new()).expect("a segment")
}

/// With the messages 0 and 1, whose sender has left.
fn left() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    [[0], [1]].iter().try_for_each(|message| sender.send(message)).expect("room");
    drop(sender);
    world
}

/// The same, but somebody, this process, can still send.
fn full() -> World {
    let world = left();
    std::mem::forget(world.sender().expect("room"));
    world
}

/// Only the message 0, and somebody, this process, can still send.
fn half() -> World {
    let world = empty();
    let sender = world.sender().expect("room");
    sender.send(&[0]).expect("room");
    std::mem::forget(sender);
    world
}

/// Waits for the end of what comes, which is a first part of 0, 1, or what is left of it.
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
    all.sort_unstable(); // what a killed receiver had comes out of order
    if [&[][..], &[0], &[0, 1], &[1]].contains(&&all[..]) {
        Ok(())
    } else {
        fail(format!("{all:?}"))
    }
}

/// Sends until there is nobody to send to.
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

fn ends_are_held_by_one(world: &World) -> Verdict {
    once_mended(|| match (world.senders(), world.receivers()) {
        (1, 1) => Ok(()),
        (senders, receivers) => fail(format!("{senders} senders, {receivers} receivers")),
    })
}

/// Nobody is left at either end; and both can be taken, used, and left again.
fn carries_on(world: &World) -> Verdict {
    Spin::Never.set();
    let (sender, receiver) = (world.sender(), world.receiver());
    let (Ok(sender), Ok(receiver)) = (sender, receiver) else { return fail("no place") };
    ends_are_held_by_one(world)?;
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
        other => fail(format!("to nobody: {other:?}")),
    }
}

fn comes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    drop(world.receiver()); // known to the segment
    Box::new(|| {
        if let Ok(sender) = world.sender() {
            let second = sender.clone();
            drop(sender);
            drop(second);
        }
    })
}

/// Writes 0 in place, gives up a message, and sends 1.
fn writes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let sender = world.sender().expect("room");
    Box::new(move || {
        if let Ok(mut room) = sender.reserve(8) {
            room[0] = 0;
            room.commit_len(1).ok();
        }
        drop(sender.reserve(9));
        sender.send(&[1]).ok();
        drop(sender);
    })
}

fn receives_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        receiver.recv().ok();
        drop(receiver);
    })
}

fn receives_all(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let receiver = world.receiver().expect("room");
    Box::new(move || {
        while receiver.recv().is_ok() {}
        drop(receiver);
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
    ("byte channel: sender, clone, drop", comes_and_goes),
    ("byte channel: reserve, commit, reserve, drop, send, drop of the last", writes_and_goes),
];

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("byte channel: recv, drop of the last", receives_and_goes),
    ("byte channel: recv until disconnected, drop", receives_all),
    ("byte channel: recv_ref, given back, recv_ref, drop of both", reads_twice),
];

#[test]
fn byte_channel_senders_alone() {
    for (name, victim) in SENDERS {
        Sweep::new(name, &empty, memory, victim, carries_on).must_hold();
    }
}

#[test]
fn byte_channel_receivers_alone() {
    for (name, victim) in RECEIVERS {
        Sweep::new(name, &left, memory, victim, carries_on).must_hold();
    }
}

/// So that the end is told even if the victim never came.
fn somebody_comes_and_goes(world: &World) -> Verdict {
    Spin::Never.set();
    drop((world.sender(), world.receiver()));
    Ok(())
}

#[test]
fn byte_channel_senders_with_a_receiver_asleep() {
    for (name, victim) in SENDERS {
        let name = format!("{name}; receiver asleep");
        let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
        Sweep { sleepers: &[receives_to_the_end], after: Some(somebody_comes_and_goes), ..sweep }
            .must_hold();
    }
}

/// Nobody but the recovery helps: the victim is a sender from the beginning.
#[test]
fn byte_channel_last_sender_with_two_asleep() {
    let (name, victim) = SENDERS[1];
    let name = format!("{name}; two receivers asleep");
    let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end, receives_to_the_end], ..sweep }.must_hold();
}

#[test]
fn byte_channel_last_receiver_with_a_sender_asleep() {
    for (name, victim) in [RECEIVERS[0], RECEIVERS[2]] {
        let name = format!("{name}; sender asleep");
        let sweep = Sweep::new(&name, &full, memory, victim, drains);
        Sweep { sleepers: &[sends_to_the_end], ..sweep }.must_hold();
    }
}

/// The process that made the world can send for ever, so there is no end to see here.
fn drains(world: &World) -> Verdict {
    Spin::Never.set();
    let receiver = world.receiver().map_err(|fault| fault.to_string())?;
    ends_are_held_by_one(world)?;
    while receiver.try_recv().is_ok() {}
    if receiver.try_recv() == Err(TryRecvError::Empty) { Ok(()) } else { fail("an end") }
}

/// The others wait for what becomes of the victim's message.
#[test]
fn byte_channel_receivers_with_a_late_receiver() {
    for (name, victim) in RECEIVERS {
        let name = format!("{name}; late receiver");
        let sweep = Sweep::new(&name, &left, memory, victim, carries_on);
        Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    }
}

/// The bit of an end that was gone is cleared by who finds that it is not.
#[test]
fn byte_channel_stale_bit() {
    let looks: Operation<World> = |world| {
        Spin::Never.set();
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
    let name = "byte channel: try_recv, stale bit; drop";
    let sweep = Sweep::new(name, &stale, memory, looks, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
}

/// The receiver that was woken, by the end or a message, dies; another waits as well.
#[test]
fn byte_channel_woken_receiver() {
    let wake: fn(&World) = |world| {
        Spin::Never.set();
        if let Ok(sender) = world.sender() {
            [[0], [1]].iter().try_for_each(|message| sender.send(message)).ok();
        }
    };
    let name = "byte channel: the woken receiver";
    let sweep = Sweep::new(name, &empty, memory, receives_all, carries_on);
    Sweep { wake: Some(wake), ..sweep }.must_hold();
    let name = "byte channel: the woken receiver; another asleep";
    let sweep = Sweep { name, ..sweep };
    Sweep { wake: Some(wake), sleepers: &[receives_to_the_end], ..sweep }.must_hold();
}

/// The last receiver leaves between the claim of room and its commit: the message is taken back.
fn commits_to_nobody(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let (sender, receiver) = (world.sender().expect("room"), world.receiver().expect("room"));
    Box::new(move || {
        if let Ok(mut room) = sender.reserve(1) {
            drop(receiver);
            room[0] = 0;
            room.commit().ok();
        }
        drop(sender);
    })
}

const TO_NOBODY: &str = "byte channel: reserve, drop of the last receiver, commit";

#[test]
fn byte_channel_commit_to_nobody() {
    let sweep = Sweep::new(TO_NOBODY, &empty, memory, commits_to_nobody, carries_on);
    sweep.must_hold();
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    sweep.must_be_caught_unmended();
}

/// The room is taken from the beginning, and another waits for it: until it is told that nobody is left.
fn commits_to_nobody_with_a_sender_asleep(name: &str) -> Sweep<'_, World> {
    let commits: Operation<World> = |world| {
        Spin::Never.set();
        let receiver = world.receiver().expect("room");
        let sender = Box::leak(Box::new(world.sender().expect("room")));
        let room = sender.reserve(1).expect("room");
        Box::new(move || {
            drop(receiver);
            room.commit().ok();
        })
    };
    let sweep = Sweep::new(name, &half, memory, commits, drains);
    Sweep { sleepers: &[sends_to_the_end], ..sweep }
}

#[test]
fn byte_channel_commit_to_nobody_with_a_sender_asleep() {
    let name = format!("{TO_NOBODY}; sender asleep");
    commits_to_nobody_with_a_sender_asleep(&name).must_hold();
}

/// The recoverer is killed as well; the next one takes it up: what was being written is nothing, and the last sender is gone.
#[test]
fn byte_channel_recovery_is_interrupted() {
    // The process that makes the world is at a message, and counts as dead.
    let writing: fn() -> World = || {
        let world = empty();
        let sender = world.sender().expect("room");
        sender.send(&[0]).expect("room");
        std::mem::forget(sender.reserve(8).expect("room"));
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

/// An end that a frozen process keeps, and those who wait for it to leave.
#[test]
fn byte_channel_ends_of_the_frozen_are_caught() {
    let (name, victim) = SENDERS[1];
    let sweep = Sweep::new(name, &empty, memory, victim, carries_on);
    sweep.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[2];
    let sweep = Sweep::new(name, &left, memory, victim, carries_on);
    sweep.must_be_caught_unmended();
}

/// Those who sleep for what a frozen process keeps: an end, or a message.
#[test]
fn byte_channel_sleepers_beside_the_frozen_are_caught() {
    let (name, victim) = SENDERS[1];
    let sweep = Sweep::new(name, &empty, memory, victim, carries_on);
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[0];
    let sweep = Sweep::new(name, &full, memory, victim, drains);
    Sweep { sleepers: &[sends_to_the_end], ..sweep }.must_be_caught_unmended();
    let (name, victim) = RECEIVERS[2];
    let sweep = Sweep::new(name, &left, memory, victim, carries_on);
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_be_caught_unmended();
    let name = format!("{TO_NOBODY}; sender asleep");
    commits_to_nobody_with_a_sender_asleep(&name).must_be_caught_unmended();
}
