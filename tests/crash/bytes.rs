//! The sweeps of `ByteQueue`.
use crate::letters::{LENGTHS, message, number};
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use core::time::Duration;
use outlast::{FixedByteQueue, Shared, Spin, TryRecvError};
use std::time::Instant;

type World = Shared<FixedByteQueue<4>>;

/// Makes this process a peer, and its waits sleep immediately.
fn warm(world: &World) {
    Spin::Never.set();
    drop(world.try_loan(usize::MAX));
}

/// The tail is at the third block: message 1 fits before the end, two of them do not.
fn empty() -> World {
    let world = options().anonymous(FixedByteQueue::new()).expect("a segment");
    world.send(&message(1)).expect("room");
    world.recv().expect("a message");
    world
}

/// The tail is at the last block, which message 1 skips.
fn at_the_end() -> World {
    let world = empty();
    world.send(&message(0)).expect("room");
    world.recv().expect("a message");
    world
}

/// With both messages.
fn two() -> World {
    let world = empty();
    (0..2).for_each(|n| world.send(&message(n)).expect("room"));
    world
}

/// With all room taken by short ones.
fn full() -> World {
    let world = empty();
    (0..4).for_each(|_| world.send(&message(0)).expect("room"));
    world
}

/// Calls `act` until every message is done with, also those that come back from the dead.
fn until_done(world: &World, mut act: impl FnMut() -> Verdict) -> Verdict {
    let began = Instant::now();
    while world.join_timeout(Duration::ZERO) != Ok(true) {
        act()?;
        if began.elapsed() > patience() {
            return fail("a message never comes back");
        }
    }
    Ok(())
}

/// Receives messages until every one is done with.
fn receive_all(world: &World, mut check: impl FnMut(&[u8]) -> Verdict) -> Verdict {
    until_done(world, || match world.recv_timeout(Duration::from_millis(1)) {
        Ok(message) => check(&message),
        Err(_) => Ok(()),
    })
}

/// The messages that are left were sent, and are whole and not there twice. All room can be used
/// again.
fn carries_on(world: &World) -> Verdict {
    Spin::Never.set();
    let mut left = Vec::new();
    receive_all(world, |message| {
        left.push(number(message)?);
        Ok(())
    })?;
    left.sort_unstable(); // messages that come back come out of order
    if ![&[][..], &[0], &[1], &[0, 1]].contains(&&left[..]) {
        return fail(format!("left over: {left:?}"));
    }
    has_all_room(world)
}

fn has_all_room(world: &World) -> Verdict {
    let sends = |len: usize, what: u8| {
        world.try_send(&vec![what; len]).map_err(|error| format!("{len} bytes: {error}"))
    };
    sends(256, 9)?;
    let whole = world.recv_timeout(patience()).map_err(|error| error.to_string())?;
    if whole != [9; 256] {
        return fail(format!("sent 256 bytes, received {}", whole.len()));
    }
    (0..4).try_for_each(|what| sends(64, what))?;
    if sends(0, 0).is_ok() {
        return fail("room for more than there is");
    }
    let all: Vec<_> = world.try_iter().collect();
    if (0..4).map(|what| vec![what; 64]).eq(all.iter().cloned()) && world.is_empty() {
        Ok(())
    } else {
        fail(format!("sent 0 to 3, received {all:?}"))
    }
}

/// With messages of its own left over, which may be several.
fn carries_on_with_more(world: &World) -> Verdict {
    Spin::Never.set();
    receive_all(world, |message| number(message).map(drop))?;
    has_all_room(world)
}

fn receives_one(world: &World) -> Verdict {
    Spin::Never.set();
    let message = world.recv_timeout(patience()).map_err(|error| error.to_string())?;
    number(&message).map(drop)
}

fn sends_one_more(world: &World) -> Verdict {
    Spin::Never.set();
    world.send_timeout(&message(1), patience()).map_err(|error| error.to_string())
}

fn sends(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.send(&[0; LENGTHS[0]]).ok();
        world.send(&[1; LENGTHS[1]]).ok();
    })
}

fn takes_loans(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(mut room) = world.loan(128) {
            room.fill(1);
            room.send_len(LENGTHS[1]).ok();
        }
        drop(world.try_loan(64));
    })
}

fn receives(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        drop(world.recv_ref());
        drop(world.recv_ref());
    })
}

fn gives_back(world: &World) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    let message = world.recv_ref().expect("a message");
    Box::new(move || {
        message.give_back().ok();
        drop(world.try_recv_ref());
    })
}

#[test]
fn bytes_alone() {
    Sweep::new("bytes: send, send", &empty, memory, sends, carries_on).must_hold();
    Sweep::new("bytes: send past the end", &at_the_end, memory, takes_loans, carries_on)
        .must_hold();
    Sweep::new("bytes: recv_ref, twice", &two, memory, receives, carries_on).must_hold();
    Sweep::new("bytes: give_back", &two, memory, gives_back, carries_on).must_hold();
}

#[test]
fn bytes_send_with_receivers_asleep() {
    let name = "bytes: send, send; two receivers asleep";
    let more: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        (0..2).try_for_each(|n| {
            world.send_timeout(&message(n), patience()).map_err(|error| error.to_string())
        })
    };
    let sweep = Sweep::new(name, &empty, memory, sends, carries_on_with_more);
    Sweep { sleepers: &[receives_one, receives_one], after: Some(more), ..sweep }.must_hold();
}

/// A message behind room that is given up is received.
#[test]
fn bytes_abandoned_with_a_receiver_asleep() {
    let abandons: Operation<World> = |world| {
        warm(world);
        let room = world.loan(1).expect("room");
        world.send(&message(0)).expect("room");
        Box::new(move || drop(room))
    };
    let sweep = Sweep::new("bytes: drop; receiver asleep", &empty, memory, abandons, carries_on);
    Sweep { sleepers: &[receives_one], ..sweep }.must_hold();
}

#[test]
fn bytes_recv_with_senders_asleep() {
    // The victim may die before it has made room.
    let makes_room: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        receive_all(world, |message| number(message).map(drop))
    };
    let sweep = Sweep::new(
        "bytes: recv_ref, twice; two senders asleep",
        &full,
        memory,
        receives,
        carries_on_with_more,
    );
    Sweep { sleepers: &[sends_one_more, sends_one_more], after: Some(makes_room), ..sweep }
        .must_hold();
}

/// The woken receiver dies. The message goes to another one, which sleeps.
#[test]
fn bytes_woken_receiver() {
    let wake: fn(&World) = |world| {
        Spin::Never.set();
        world.send(&message(0)).ok();
    };
    let keeps: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            world.recv_ref().map(core::mem::forget).ok(); // until it dies
        })
    };
    let sweep = Sweep::new("bytes: the woken receiver", &empty, memory, keeps, carries_on);
    Sweep { wake: Some(wake), sleepers: &[receives_one], ..sweep }.must_hold();
}

/// Two senders wait for room, and both are woken: the victim and another one.
#[test]
fn bytes_woken_sender() {
    let wake: fn(&World) = |world| {
        Spin::Never.set();
        (0..4).for_each(|_| drop(world.recv_ref()));
    };
    let takes: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            if let Ok(mut room) = world.loan(LENGTHS[1]) {
                room.fill(1);
                room.send().ok();
            }
        })
    };
    let sweep = Sweep::new("bytes: the woken sender", &full, memory, takes, carries_on_with_more);
    Sweep { wake: Some(wake), sleepers: &[sends_one_more], ..sweep }.must_hold();
}

#[test]
fn bytes_waits_that_give_up() {
    let gives_up: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            world.recv_timeout(Duration::from_micros(1)).ok();
        })
    };
    Sweep::new("bytes: recv_timeout", &empty, memory, gives_up, carries_on).must_hold();
    let gives_up: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            world.send_timeout(&[0; 10], Duration::from_micros(1)).ok();
        })
    };
    Sweep::new("bytes: send_timeout", &full, memory, gives_up, carries_on_with_more).must_hold();
}

/// The queue is closed, or still open. A waiting receiver learns that it is closed, although
/// another process has a message that may come back.
#[test]
fn bytes_close_and_the_last_message() {
    let one: fn() -> World = || {
        let world = empty();
        world.send(&message(0)).expect("room");
        world
    };
    let finishes: Operation<World> = |world| {
        Spin::Never.set();
        let last = world.recv_ref().expect("a message");
        Box::new(move || {
            world.close();
            drop(last);
        })
    };
    let told: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        loop {
            match world.recv_timeout(patience()) {
                Ok(message) => number(&message).map(drop)?, // it came back
                Err(outlast::RecvTimeoutError::Closed) => return Ok(()),
                other => return fail(format!("{other:?}")),
            }
        }
    };
    let close: fn(&World) -> Verdict = |world| {
        world.close();
        Ok(())
    };
    let closed: fn(&World) -> Verdict = |world| match (world.try_recv(), world.try_send(b"")) {
        (Err(TryRecvError::Closed), Err(outlast::TrySendError::Closed(()))) => Ok(()),
        other => fail(format!("{other:?}")),
    };
    let sweep = Sweep::new("bytes: close, the last one done", &one, memory, finishes, closed);
    Sweep { sleepers: &[told], after: Some(close), ..sweep }.must_hold();
}

// ------------------------------------------------------------- deliveries

/// As [`two`], with the second message in the in-flight area, to be received again.
fn one_came_back() -> World {
    let world = empty();
    world.send(&message(1)).expect("room");
    drop(world.recv_ack().expect("a message"));
    world.send(&message(0)).expect("room");
    world
}

/// As [`carries_on`], and all of the in-flight area can be used again.
fn delivers_on(world: &World) -> Verdict {
    carries_on(world)?;
    world.try_send(&[9; 256]).map_err(|error| error.to_string())?;
    let whole = world.recv_ack_timeout(patience()).map_err(|error| error.to_string())?;
    if *whole != [9; 256] {
        return fail(format!("sent 256 bytes, delivered {}", whole.len()));
    }
    whole.ack().map_err(|error| error.to_string())?;
    is_done(world)
}

fn is_done(world: &World) -> Verdict {
    match world.join_timeout(patience()) {
        Ok(true) => Ok(()),
        other => fail(format!("join: {other:?}")),
    }
}

/// Acknowledges all that comes.
fn works(world: &World) -> Verdict {
    Spin::Never.set();
    until_done(world, || match world.recv_ack_timeout(Duration::from_millis(1)) {
        Ok(job) => {
            number(&job)?;
            job.ack().map_err(|error| error.to_string())
        }
        Err(_) => Ok(()),
    })
}

fn acknowledges(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        for _ in 0..2 {
            if let Ok(job) = world.try_recv_ack() {
                job.ack().ok();
            }
        }
    })
}

/// Prepared with a delivery of two blocks.
fn holding(world: &World) -> outlast::queue::bytes::Delivery<'_> {
    Spin::Never.set();
    let first = world.recv_ack().expect("a message");
    if first.len() == LENGTHS[1] {
        return first;
    }
    let second = world.recv_ack().expect("a message");
    drop(first);
    second
}

fn nacks(world: &World) -> Box<dyn FnOnce() + '_> {
    let job = holding(world);
    Box::new(|| job.nack())
}

fn acks(world: &World) -> Box<dyn FnOnce() + '_> {
    let job = holding(world);
    Box::new(|| _ = job.ack())
}

#[test]
fn bytes_delivered_alone() {
    Sweep::new("bytes: recv_ack, ack, twice", &two, memory, acknowledges, delivers_on).must_hold();
    Sweep::new("bytes: nack", &two, memory, nacks, delivers_on).must_hold();
    Sweep::new("bytes: ack of two blocks", &two, memory, acks, delivers_on).must_hold();
    let name = "bytes: recv_ack, ack, of what came back";
    Sweep::new(name, &one_came_back, memory, acknowledges, delivers_on).must_hold();
    let name = "bytes: recv_ref, twice, of what came back";
    Sweep::new(name, &one_came_back, memory, receives, delivers_on).must_hold();
}

/// A message is acknowledged once, or delivered again. A sleeping receiver gets the message if it
/// comes back, and its room otherwise.
#[test]
fn bytes_delivered_with_others_asleep() {
    let long: fn() -> World = || {
        let world = two();
        world.recv().expect("a message");
        world
    };
    let needs_all_room: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        let job = world.recv_ack_timeout(patience()).map_err(|error| error.to_string())?;
        if job.len() != 256 {
            number(&job)?; // that of the victim, and its room is free then
        }
        job.ack().map_err(|error| error.to_string())
    };
    let with_one_more: Operation<World> = |world| {
        let job = holding(world);
        world.send(&[9; 256]).expect("room");
        Box::new(|| _ = job.ack())
    };
    let rest: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        receive_all(world, |message| match message {
            [9, ..] if message == [9; 256] => Ok(()),
            _ => number(message).map(drop),
        })?;
        delivers_on(world)
    };
    let sweep = Sweep::new("bytes: ack; asleep for room", &long, memory, with_one_more, rest);
    Sweep { sleepers: &[needs_all_room], ..sweep }.must_hold();
    let sweep = Sweep::new("bytes: nack; receiver asleep", &long, memory, nacks, delivers_on);
    Sweep { sleepers: &[receives_one], ..sweep }.must_hold();
    // It is done, or another does it.
    let sweep = Sweep::new("bytes: ack; join asleep", &long, memory, acks, delivers_on);
    Sweep { sleepers: &[is_done], after: Some(works), ..sweep }.must_hold();
    let sweep = Sweep::new("bytes: recv_ref; join asleep", &long, memory, receives, delivers_on);
    Sweep { sleepers: &[is_done], after: Some(works), ..sweep }.must_hold();
}

#[test]
fn bytes_delivered_to_the_frozen_are_caught() {
    let sweep = Sweep::new("bytes: recv_ack, ack", &two, memory, acknowledges, delivers_on);
    sweep.must_be_caught_unmended();
    Sweep::new("bytes: ack of two blocks", &two, memory, acks, delivers_on)
        .must_be_caught_unmended();
}

#[test]
fn bytes_of_the_frozen_are_caught() {
    let sweep = Sweep::new("bytes: send, send", &empty, memory, sends, carries_on);
    sweep.must_be_caught_unmended();
    let sweep = Sweep::new("bytes: recv_ref, twice", &two, memory, receives, carries_on);
    sweep.must_be_caught_unmended();
}
