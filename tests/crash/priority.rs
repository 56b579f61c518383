//! The sweeps of `PriorityQueue`, and of dead letters.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use core::time::Duration;
use outlast::{FixedPriorityQueue, FixedQueue, Shared, Spin, TryRecvError};
use std::time::Instant;

type World = Shared<FixedPriorityQueue<u64, 2, 2>>;

fn empty() -> World {
    options().anonymous(FixedPriorityQueue::new()).expect("a segment")
}

/// With message 0 in level 0, and 1 in level 1.
fn two() -> World {
    let world = empty();
    world.send(0, 0).expect("room");
    world.send(1, 1).expect("room");
    world
}

fn warm<const N: usize>(world: &Shared<FixedPriorityQueue<u64, 2, N>>) {
    Spin::Never.set();
    world.join_timeout(Duration::ZERO).ok(); // known to the segment
}

/// Receives messages until every one is done with, also those that come back from the dead.
fn receive_all(world: &World) -> Result<Vec<(usize, u64)>, String> {
    let began = Instant::now();
    let mut all = Vec::new();
    while world.join_timeout(Duration::ZERO) != Ok(true) {
        all.extend(world.recv_timeout(Duration::from_millis(1)));
        if began.elapsed() > patience() {
            return fail(format!("a message never comes back; received {all:?}"));
        }
    }
    Ok(all)
}

/// The messages that are left were sent, and as many fit in again.
fn carries_on(world: &World) -> Verdict {
    warm(world);
    let mut left = receive_all(world)?;
    left.sort_unstable(); // messages that come back come out of order
    if ![&[][..], &[(0, 0)], &[(1, 1)], &[(0, 0), (1, 1)]].contains(&&left[..]) {
        return fail(format!("left over: {left:?}"));
    }
    for (priority, message) in [(0, 5), (1, 6), (0, 7), (1, 8)] {
        world.try_send(priority, message).map_err(|error| format!("{message}: {error}"))?;
    }
    let all: Vec<_> = world.try_iter().collect();
    if all != [(1, 6), (1, 8), (0, 5), (0, 7)] {
        return fail(format!("received {all:?}"));
    }
    match world.join_timeout(patience()) {
        Ok(true) => Ok(()),
        other => fail(format!("join: {other:?}")),
    }
}

/// Receives one, whichever.
fn receives_one(world: &World) -> Verdict {
    warm(world);
    world.recv_timeout(patience()).map(drop).map_err(|error| error.to_string())
}

/// As many as the sleepers need.
fn sends_two_more(world: &World) -> Verdict {
    warm(world);
    for (priority, message) in [(0, 0), (1, 1)] {
        world.send_timeout(priority, message, patience()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// With messages of its own left over, which may be several.
fn carries_on_with_more(world: &World) -> Verdict {
    warm(world);
    receive_all(world)?;
    carries_on(world)
}

fn sends(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.send(0, 0).ok();
        world.send(1, 1).ok();
    })
}

fn receives(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.recv().ok();
        world.recv().ok();
    })
}

fn acknowledges(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(job) = world.recv_ack() {
            job.ack().ok();
        }
    })
}

fn gives_back(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let job = world.recv_ack().expect("a message");
    Box::new(move || drop(job))
}

#[test]
fn priority_alone() {
    Sweep::new("priority: send, send", &empty, memory, sends, carries_on).must_hold();
    Sweep::new("priority: recv, recv", &two, memory, receives, carries_on).must_hold();
    Sweep::new("priority: recv_ack, ack", &two, memory, acknowledges, carries_on).must_hold();
    Sweep::new("priority: delivery given back", &two, memory, gives_back, carries_on).must_hold();
}

#[test]
fn priority_send_with_receivers_asleep() {
    let name = "priority: send, send; two receivers asleep";
    let sweep = Sweep::new(name, &empty, memory, sends, carries_on_with_more);
    Sweep { sleepers: &[receives_one, receives_one], after: Some(sends_two_more), ..sweep }
        .must_hold();
}

/// A receiver is woken for a message that the victim gave back, or left.
#[test]
fn priority_given_back_with_a_receiver_asleep() {
    let one: fn() -> World = || {
        let world = empty();
        world.send(1, 1).expect("room");
        world
    };
    let sweep = Sweep::new(
        "priority: delivery given back; one asleep",
        &one,
        memory,
        gives_back,
        carries_on,
    );
    Sweep { sleepers: &[receives_one], ..sweep }.must_hold();
}

/// The woken receiver dies. The message goes to another one, which sleeps.
#[test]
fn priority_woken_receiver() {
    let wake: fn(&World) = |world| {
        warm(world);
        world.send(0, 0).ok();
    };
    let receives: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            world.recv_ack().map(core::mem::forget).ok(); // it keeps it until it dies
        })
    };
    let sweep =
        Sweep::new("priority: the woken receiver", &empty, memory, receives, carries_on_with_more);
    Sweep { wake: Some(wake), sleepers: &[receives_one], ..sweep }.must_hold();
}

#[test]
fn priority_receiver_that_gives_up() {
    let gives_up: Operation<World> = |world| {
        warm(world);
        Box::new(|| {
            world.recv_timeout(Duration::from_micros(1)).ok();
        })
    };
    Sweep::new("priority: recv_timeout", &empty, memory, gives_up, carries_on).must_hold();
}

/// The queue is closed, or still open. A waiting receiver learns that it is closed.
#[test]
fn priority_close_with_a_receiver_asleep() {
    let closes: Operation<World> = |world| {
        warm(world);
        Box::new(|| world.close())
    };
    let told: fn(&World) -> Verdict = |world| {
        warm(world);
        match world.recv_timeout(patience()) {
            Err(outlast::RecvTimeoutError::Closed) => Ok(()),
            other => fail(format!("{other:?}")),
        }
    };
    let closed: fn(&World) -> Verdict = |world| {
        warm(world);
        match (world.try_recv(), world.try_send(1, 1)) {
            (Err(TryRecvError::Closed), Err(outlast::TrySendError::Closed(1))) => Ok(()),
            other => fail(format!("{other:?}")),
        }
    };
    let close: fn(&World) -> Verdict = |world| {
        world.close();
        Ok(())
    };
    let sweep = Sweep::new("priority: close; one asleep", &empty, memory, closes, closed);
    Sweep { sleepers: &[told], after: Some(close), ..sweep }.must_hold();
}

#[test]
fn priority_of_the_frozen_is_caught() {
    let sweep = Sweep::new("priority: delivery given back", &two, memory, gives_back, |world| {
        let all: Vec<_> = world.try_iter().collect();
        if all == [(1, 1), (0, 0)] { Ok(()) } else { fail(format!("{all:?}")) }
    });
    sweep.must_be_caught_unmended();
}

// ----------------------------------------------------------- dead letters

outlast::shared! {
    #[derive(Debug)]
    struct Graves { jobs: FixedQueue<u64, 4>, dead: FixedQueue<u64, 4> }
}

/// One message that was delivered once and not acknowledged, and one that was never delivered.
fn graves() -> Shared<Graves> {
    let graves = Graves { jobs: FixedQueue::new(), dead: FixedQueue::new() };
    let graves = options().anonymous(graves).expect("a segment");
    graves.jobs.send(6).expect("room");
    drop(graves.jobs.recv_ack().expect("a message"));
    graves.jobs.send(7).expect("room");
    graves
}

/// The message is in one of the queues, or in both; never in none.
#[test]
fn a_receiver_killed_between_the_queues() {
    let buries: Operation<Shared<Graves>> = |world| {
        Spin::Never.set();
        world.jobs.join_timeout(Duration::ZERO).ok();
        Box::new(|| {
            if let Ok(job) = world.jobs.recv_ack_or_dead_letter(1, &world.dead) {
                job.ack().ok();
            }
        })
    };
    Sweep::new("queue: recv_ack_or_dead_letter, ack", &graves, memory, buries, |world| {
        Spin::Never.set();
        let began = Instant::now();
        let mut rest = Vec::new();
        while world.jobs.join_timeout(Duration::ZERO) != Ok(true) {
            let wait = Duration::from_millis(1);
            if let Ok(job) = world.jobs.recv_ack_or_dead_letter_timeout(1, &world.dead, wait) {
                rest.push(*job);
                job.ack().map_err(|fault| fault.to_string())?;
            }
            if began.elapsed() > patience() {
                return fail(format!("a job never comes back; received {rest:?}"));
            }
        }
        let dead = world.dead.drain();
        if !([&[6][..], &[6, 6], &[6, 7], &[6, 6, 7]].contains(&&dead[..])) {
            return fail(format!("buried {dead:?}"));
        }
        if ![&[][..], &[7]].contains(&&rest[..]) { fail(format!("{rest:?}")) } else { Ok(()) }
    })
    .must_hold();
}
