//! The sweeps of `Pipe`: coming, sending, receiving, leaving.
use crate::letters::{LENGTHS, message, number};
use crate::stepper::{patience, shared_page};
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, once_mended, options};
use core::time::Duration;
use outlast::{
    Connection, FixedPipe, Pipe, RecvTimeoutError, SendTimeoutError, Shared, Spin, TryRecvError,
    TrySendError,
};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Instant;

/// Four blocks each way: 248 bytes go through in one piece. Message 2 is sent in six parts, a block
/// each.
type World = Shared<FixedPipe<8>>;
type Side<'w> = Connection<&'w Pipe>;

/// No side was ever held, so each side waits for the other one.
fn fresh() -> World {
    Spin::Never.set();
    options().anonymous(FixedPipe::new()).expect("a segment")
}

/// Both sides have been used, and left; the marks are not at the beginning.
fn empty() -> World {
    let world = fresh();
    let (first, second) = (world.first().expect("room"), world.second().expect("room"));
    for _ in 0..3 {
        first.send_bytes(&message(0)).expect("room");
        second.recv_bytes().expect("a message");
    }
    drop((first, second));
    world
}

/// With the messages 0 and 1 on the way to the second side, whose sender has left.
fn left() -> World {
    let world = empty();
    let (first, second) = (world.first().expect("room"), world.second().expect("room"));
    first.send_bytes(&message(0)).expect("room");
    first.send_bytes(&message(1)).expect("room");
    drop((first, second));
    world
}

/// With all room taken by four messages 0 for a side that was never held.
fn full() -> World {
    let world = fresh();
    let first = world.first().expect("room");
    (0..4).for_each(|_| first.send_bytes(&message(0)).expect("room"));
    drop(first);
    world
}

fn first(world: &World) -> Result<Side<'_>, String> {
    Spin::Never.set();
    world.first().map_err(|fault| fault.to_string())
}

fn second(world: &World) -> Result<Side<'_>, String> {
    Spin::Never.set();
    world.second().map_err(|fault| fault.to_string())
}

/// Receives until no sender is left.
fn all_that_comes(side: &Side<'_>) -> Result<Vec<usize>, String> {
    let mut all = Vec::new();
    loop {
        match side.recv_bytes_timeout(patience()) {
            Ok(message) => all.push(number(&message)?),
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(error) => return fail(format!("{error:?} after {all:?}")),
        }
    }
}

/// The messages come in order, and none comes twice.
fn receives_to_the_end(world: &World) -> Verdict {
    let all = all_that_comes(&second(world)?)?;
    if all.is_sorted_by(|a, b| a < b) { Ok(()) } else { fail(format!("{all:?}")) }
}

/// Once the dead are mended, each side can be taken, used to the full, and left.
fn carries_on(world: &World) -> Verdict {
    let (one, other) = (first(world)?, second(world)?);
    let end = Instant::now() + patience();
    // Messages of the dead, whole or not, are passed over.
    for side in [&one, &other] {
        while side.recv_bytes_timeout(Duration::from_millis(1)).is_ok() {}
    }
    loop {
        match one.try_send_bytes(&[7; 248]) {
            Ok(()) => break,
            Err(TrySendError::Full(()) | TrySendError::Disconnected(()))
                if Instant::now() < end => {}
            Err(error) => return fail(format!("not all room: {error}")),
        }
        std::thread::yield_now();
    }
    if one.try_send_bytes(&[]) != Err(TrySendError::Full(())) {
        return fail("more room than there is");
    }
    let received = other.recv_bytes_timeout(patience());
    if received != Ok(vec![7; 248]) {
        return fail(format!("not what was sent: {received:?}"));
    }
    other.try_send_bytes(&message(1)).map_err(|error| error.to_string())?;
    drop(other);
    let answer = one.try_recv_bytes();
    if answer != Ok(message(1)) {
        return fail(format!("not the answer: {answer:?}"));
    }
    // A dead process may have had that side, too.
    once_mended(|| match (one.try_recv_bytes(), one.try_send_bytes(&[])) {
        (Err(TryRecvError::Disconnected), Err(TrySendError::Disconnected(()))) => Ok(()),
        (Err(TryRecvError::Empty), Ok(())) => fail("the other side is still held"),
        other => fail(format!("{other:?}")),
    })
}

/// The same, with the messages that are left: a last part of 0, 1.
fn the_rest_is_there(world: &World) -> Verdict {
    let all = all_that_comes(&second(world)?)?;
    if ![&[][..], &[1], &[0, 1]].contains(&&all[..]) {
        return fail(format!("{all:?}"));
    }
    carries_on(world)
}

/// The same, with a first part of 0, 1.
fn a_beginning_is_there(world: &World) -> Verdict {
    let all = all_that_comes(&second(world)?)?;
    if ![&[][..], &[0], &[0, 1]].contains(&&all[..]) {
        return fail(format!("{all:?}"));
    }
    carries_on(world)
}

fn sends(world: &World) -> Box<dyn FnOnce() + '_> {
    let side = first(world).expect("room");
    Box::new(move || {
        side.send_bytes(&[0; LENGTHS[0]]).ok();
        side.send_bytes(&[1; LENGTHS[1]]).ok();
        drop(side);
    })
}

/// A message in parts, each of which needs room that a receiver has to make, and then the end.
fn sends_in_parts(world: &World) -> Box<dyn FnOnce() + '_> {
    let side = first(world).expect("room");
    Box::new(move || {
        side.send_bytes(&[2; LENGTHS[2]]).ok();
        drop(side);
    })
}

fn receives(world: &World) -> Box<dyn FnOnce() + '_> {
    let side = second(world).expect("room");
    let mut to = Vec::with_capacity(512);
    Box::new(move || {
        side.recv_bytes_into(&mut to).ok();
        side.recv_bytes_into(&mut to).ok();
        drop(side);
        core::mem::forget(to);
    })
}

fn comes_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    drop(second(world)); // known to the segment
    Box::new(|| {
        if let Ok(side) = world.first() {
            let again = side.clone();
            drop(side);
            drop(again);
        }
    })
}

#[test]
fn pipe_alone() {
    Sweep::new("pipe: send, send, drop", &fresh, memory, sends, a_beginning_is_there).must_hold();
    Sweep::new("pipe: recv, recv, drop", &left, memory, receives, the_rest_is_there).must_hold();
    Sweep::new("pipe: come, clone, go", &empty, memory, comes_and_goes, carries_on).must_hold();
}

#[test]
fn pipe_with_a_late_arrival() {
    let sweep = Sweep::new("pipe: send, send, drop; late", &fresh, memory, sends, carries_on);
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
    let sweep = Sweep::new("pipe: recv, recv, drop; late", &left, memory, receives, carries_on);
    Sweep { late: Some(receives_to_the_end), ..sweep }.must_hold();
}

#[test]
fn pipe_send_with_receivers_asleep() {
    let sleepers: &[Act<World>] = &[receives_to_the_end, receives_to_the_end];
    let name = "pipe: send, send, drop; two receivers asleep";
    let sweep = Sweep::new(name, &empty, memory, sends, carries_on);
    Sweep { sleepers, ..sweep }.must_hold();
    let name = "pipe: send in parts, drop; two receivers asleep";
    let sweep = Sweep::new(name, &empty, memory, sends_in_parts, carries_on);
    Sweep { sleepers, ..sweep }.must_hold();
}

/// Sends, and continues when there is room, or ends when no receiver is left.
fn sends_on(world: &World, which: usize) -> Verdict {
    let side = first(world)?;
    for n in [which, 0] {
        match side.send_bytes_timeout(&message(n), patience()) {
            Ok(()) => {}
            Err(SendTimeoutError::Disconnected(())) => break,
            Err(error) => return fail(format!("{error}")),
        }
    }
    Ok(())
}

fn sends_one(world: &World) -> Verdict {
    sends_on(world, 1)
}

fn sends_a_long_one(world: &World) -> Verdict {
    sends_on(world, 2)
}

/// The messages that are left. Any of them may be gone with a receiver, but none is torn.
fn takes_the_rest(world: &World) -> Verdict {
    all_that_comes(&second(world)?).map(drop)
}

#[test]
fn pipe_recv_with_senders_asleep() {
    let name = "pipe: recv, recv, drop; two senders asleep";
    let sweep = Sweep::new(name, &full, memory, receives, carries_on);
    let sleepers: &[Act<World>] = &[sends_one, sends_one];
    Sweep { sleepers, after: Some(takes_the_rest), ..sweep }.must_hold();
    let name = "pipe: recv in parts, recv, drop; sender asleep";
    let sweep = Sweep::new(name, &fresh, memory, receives, carries_on);
    let sleepers: &[Act<World>] = &[sends_a_long_one];
    Sweep { sleepers, after: Some(takes_the_rest), ..sweep }.must_hold();
}

/// Only the victim held the first side. A process that waits at the other side learns of the end.
#[test]
fn pipe_drop_with_both_asleep() {
    let goes: Operation<World> = |world| {
        let side = first(world).expect("room");
        Box::new(move || drop(side))
    };
    let blocked: fn(&World) -> Verdict = |world| {
        let side = second(world)?;
        match side.send_bytes_timeout(&[0; 1_000], patience()) {
            Err(SendTimeoutError::Disconnected(())) => Ok(()),
            other => fail(format!("{other:?}")),
        }
    };
    let sweep = Sweep::new("pipe: drop; both asleep", &empty, memory, goes, carries_on);
    Sweep { sleepers: &[receives_to_the_end, blocked], ..sweep }.must_hold();
}

/// The woken receiver dies. What it has not taken goes to another one, which waits for its turn.
#[test]
fn pipe_woken_receiver() {
    let wake: fn(&World) = |world| {
        let side = first(world).expect("room");
        side.send_bytes(&message(0)).and_then(|()| side.send_bytes(&message(1))).expect("room");
    };
    let sweep = Sweep::new("pipe: the woken receiver", &fresh, memory, receives, carries_on);
    Sweep { wake: Some(wake), sleepers: &[receives_to_the_end], ..sweep }.must_hold();
}

#[test]
fn pipe_woken_sender() {
    let wake: fn(&World) = |world| {
        let side = second(world).expect("room");
        (0..2).for_each(|_| drop(side.recv_bytes()));
    };
    for (name, victim) in [
        ("pipe: the woken sender", sends as Operation<World>),
        ("pipe: the woken sender, in parts", sends_in_parts),
    ] {
        let sweep = Sweep::new(name, &full, memory, victim, carries_on);
        let after = Some(takes_the_rest as Act<World>);
        Sweep { wake: Some(wake), sleepers: &[sends_one], after, ..sweep }.must_hold();
    }
}

#[test]
fn pipe_waits_that_give_up() {
    let receives: Operation<World> = |world| {
        let side = second(world).expect("room");
        Box::new(move || drop(side.recv_bytes_timeout(Duration::from_micros(1))))
    };
    Sweep::new("pipe: recv_timeout", &fresh, memory, receives, carries_on).must_hold();
    let sends: Operation<World> = |world| {
        let side = first(world).expect("room");
        Box::new(move || {
            side.send_bytes_timeout(&[2; 300], Duration::from_micros(1)).ok();
            drop(side);
        })
    };
    Sweep::new("pipe: send_timeout in parts", &fresh, memory, sends, carries_on).must_hold();
    let sweep = Sweep::new("pipe: send_timeout in parts", &empty, memory, sends, carries_on);
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_hold();
}

#[test]
fn pipes_of_the_frozen_are_caught() {
    let sweep = Sweep::new("pipe: send, send, drop", &fresh, memory, sends, a_beginning_is_there);
    sweep.must_be_caught_unmended();
    let sweep = Sweep::new("pipe: recv, recv, drop", &left, memory, receives, the_rest_is_there);
    sweep.must_be_caught_unmended();
    let name = "pipe: send in parts, drop; receiver asleep";
    let sweep = Sweep::new(name, &empty, memory, sends_in_parts, carries_on);
    Sweep { sleepers: &[receives_to_the_end], ..sweep }.must_be_caught_unmended();
}

/// A way whose writer moves the mark first, and copies then.
#[derive(Debug)]
struct Hasty {
    tail: AtomicU64,
    block: [AtomicU64; 4],
}

#[test]
fn a_commit_before_the_copy_is_caught() {
    Sweep::new(
        "control: commit before the copy",
        &shared_page::<Hasty>,
        |way| {
            let words = [&way.tail].into_iter().chain(&way.block);
            words.flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect()
        },
        |way| {
            Box::new(|| {
                way.tail.store(1, Release);
                way.block.iter().for_each(|word| word.store(7, Relaxed));
            })
        },
        |way| {
            let is_whole = way.block.iter().all(|word| word.load(Relaxed) == 7);
            if way.tail.load(Acquire) == 0 || is_whole { Ok(()) } else { fail("torn") }
        },
    )
    .must_be_caught();
}
