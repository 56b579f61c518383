//! The sweeps of `spsc::Ring`.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::__private::Dead;
use outlast::spsc::{
    Consumer, FixedRing, Producer, RecvTimeoutError, Ring, SendTimeoutError, TryRecvError,
};
use outlast::{Shareable, Shared, Spin};
use std::time::{Duration, Instant};

type World = Shared<FixedRing<u64, 4>>;

fn empty() -> World {
    options().anonymous(FixedRing::new()).expect("a segment")
}

/// With the messages 0 and 1.
fn two() -> World {
    let world = empty();
    world.producer().expect("free").send_batch(&[0, 1]).expect("room");
    world
}

/// With the messages 0 to 3.
fn full() -> World {
    let world = two();
    world.producer().expect("free").send_batch(&[2, 3]).expect("room");
    world
}

fn warm() {
    Spin::Never.set();
}

/// The producer, once the victim is dead; it has had it, or never had it.
fn next_producer(world: &World) -> Result<Producer<u64, &Ring<u64>>, String> {
    warm();
    world.producer_timeout(patience()).map_err(|error| format!("producer: {error}"))
}

fn next_consumer(world: &World) -> Result<Consumer<u64, &Ring<u64>>, String> {
    warm();
    world.consumer_timeout(patience()).map_err(|error| format!("consumer: {error}"))
}

/// Successors take both roles. The messages are there in order, without gaps, from the first one
/// that was not received, and there is room for as many again.
fn carries_on(world: &World) -> Verdict {
    let (producer, consumer) = (next_producer(world)?, next_consumer(world)?);
    let mut left = Vec::new();
    loop {
        match consumer.try_recv() {
            Ok(message) => left.push(message),
            Err(TryRecvError::PeerDied) => {}
            Err(TryRecvError::Empty) => break,
            Err(error) => return fail(error),
        }
    }
    if left.windows(2).any(|pair| pair[0] + 1 != pair[1])
        || left.first().is_some_and(|first| *first != world.received() - left.len() as u64)
    {
        return fail(format!("left over: {left:?}"));
    }
    producer.try_send_batch(&[7, 8, 9, 10]).map_err(|error| error.to_string())?;
    let all: Vec<u64> = (0..4).map_while(|_| consumer.try_recv().ok()).collect();
    if all == [7, 8, 9, 10] { Ok(()) } else { fail(format!("sent 7 to 10, received {all:?}")) }
}

/// Receives until it has got message 1, from any sender.
fn receives(world: &World) -> Verdict {
    let consumer = next_consumer(world)?;
    let end = Instant::now() + patience();
    let mut next = None;
    loop {
        match consumer.recv_deadline(end) {
            Ok(message) if next.is_some_and(|next| next != message) => {
                return fail(format!("received {message} for {next:?}"));
            }
            Ok(1) => return Ok(()),
            Ok(message) => next = Some(message + 1),
            Err(RecvTimeoutError::PeerDied) => {}
            Err(error) => return fail(error),
        }
    }
}

/// Sends the messages that the victim did not send.
fn sends_the_rest(world: &World) -> Verdict {
    // The victim's messages are in the ring, or have been taken from it by a receiver.
    let producer = next_producer(world)?;
    let sent = position(world);
    (sent..2).try_for_each(|message| {
        producer.send_timeout(message, patience()).map_err(|error| error.to_string())
    })
}

/// How many messages were ever sent.
fn position(world: &World) -> u64 {
    let bytes = memory(world);
    u64::from_ne_bytes(bytes[..8].try_into().expect("8 bytes"))
}

fn sends_two(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let producer = world.producer().expect("free");
    Box::new(move || {
        (0..2).for_each(|message| {
            producer.send(message).ok();
        })
    })
}

fn sends_a_batch(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let producer = world.producer().expect("free");
    Box::new(move || {
        producer.send_batch(&[0, 1]).ok();
    })
}

fn sends_a_chunk(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let mut producer = world.producer().expect("free");
    Box::new(move || {
        let Ok(mut chunk) = producer.write_chunk(2) else { return };
        chunk.as_mut_slices().0.copy_from_slice(&[0, 1]);
        chunk.commit(2).ok();
    })
}

/// The role as well.
fn comes_sends_and_goes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    drop(world.consumer()); // known to the segment
    Box::new(|| {
        if let Ok(producer) = world.producer() {
            producer.send_batch(&[0, 1]).ok();
        }
    })
}

const SENDERS: [(&str, Operation<World>); 4] = [
    ("spsc: send, twice", sends_two),
    ("spsc: send_batch", sends_a_batch),
    ("spsc: write_chunk, commit", sends_a_chunk),
    ("spsc: producer, send_batch, drop", comes_sends_and_goes),
];

#[test]
fn spsc_senders_alone() {
    for (name, victim) in SENDERS {
        Sweep::new(name, &empty, memory, victim, carries_on).must_hold();
    }
}

#[test]
fn spsc_senders_with_a_receiver_asleep() {
    for (name, victim) in SENDERS {
        let name = format!("{name}; receiver asleep");
        let sweep = Sweep::new(&name, &empty, memory, victim, carries_on);
        Sweep { sleepers: &[receives], after: Some(sends_the_rest), ..sweep }.must_hold();
    }
}

/// Another waits for the role.
#[test]
fn spsc_senders_with_an_heir_asleep() {
    let sweep = Sweep::new("spsc: send; heir asleep", &empty, memory, sends_two, carries_on);
    Sweep { sleepers: &[|world| next_producer(world).map(drop)], ..sweep }.must_hold();
}

fn receives_two(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let consumer = world.consumer().expect("free");
    Box::new(move || {
        (0..2).for_each(|_| {
            consumer.recv().ok();
        })
    })
}

fn receives_a_batch(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let consumer = world.consumer().expect("free");
    let mut messages = Vec::with_capacity(4);
    Box::new(move || {
        consumer.recv_batch(&mut messages, 2).ok();
    })
}

fn receives_a_chunk(world: &World) -> Box<dyn FnOnce() + '_> {
    warm();
    let mut consumer = world.consumer().expect("free");
    Box::new(move || {
        if let Ok(chunk) = consumer.read_chunk(2) {
            chunk.consume(2).ok();
        }
    })
}

const RECEIVERS: [(&str, Operation<World>); 3] = [
    ("spsc: recv, twice", receives_two),
    ("spsc: recv_batch", receives_a_batch),
    ("spsc: read_chunk, consume", receives_a_chunk),
];

#[test]
fn spsc_receivers_alone() {
    for (name, victim) in RECEIVERS {
        Sweep::new(name, &two, memory, victim, carries_on).must_hold();
    }
}

/// Sends message 4, when there is room.
fn sends_one_more(world: &World) -> Verdict {
    let producer = next_producer(world)?;
    let end = Instant::now() + patience();
    loop {
        match producer.send_deadline(4, end) {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::PeerDied(_)) => {}
            Err(error) => return fail(error),
        }
    }
}

fn makes_room(world: &World) -> Verdict {
    next_consumer(world)?.try_recv().map(drop).or_else(|error| match error {
        TryRecvError::Empty => Ok(()),
        error => fail(error),
    })
}

#[test]
fn spsc_receivers_with_a_sender_asleep() {
    for (name, victim) in RECEIVERS {
        let name = format!("{name}; sender asleep");
        let sweep = Sweep::new(&name, &full, memory, victim, carries_on);
        Sweep { sleepers: &[sends_one_more], after: Some(makes_room), ..sweep }.must_hold();
    }
}

/// The receiver sleeps, is woken, and dies.
#[test]
fn spsc_woken_receiver() {
    let sweep = Sweep::new("spsc: the woken receiver", &empty, memory, receives_two, carries_on);
    let wake: fn(&World) = |world| {
        warm();
        world.producer().map(|producer| producer.send_batch(&[0, 1]).ok()).ok();
    };
    Sweep { wake: Some(wake), ..sweep }.must_hold();
}

/// The role as well.
#[test]
fn spsc_consumer_comes_and_goes() {
    let comes_and_goes: Operation<World> = |world| {
        warm();
        drop(world.producer()); // known to the segment
        Box::new(|| {
            if let Ok(consumer) = world.consumer() {
                consumer.recv().ok();
            }
        })
    };
    let name = "spsc: consumer, recv, drop";
    let sweep = Sweep::new(name, &two, memory, comes_and_goes, carries_on);
    sweep.must_hold();
    Sweep { late: Some(|world| next_consumer(world).map(drop)), ..sweep }.must_hold();
}

/// One waits for the role, gets it, and dies; another one waits as well.
#[test]
fn spsc_woken_heir() {
    let inherits: Operation<World> = |world| {
        warm();
        drop(world.consumer()); // known to the segment
        Box::new(|| {
            if let Ok(producer) = world.producer_timeout(patience()) {
                producer.send_batch(&[0, 1]).ok();
            }
        })
    };
    let taken: fn() -> World = || {
        let world = empty();
        std::mem::forget(world.producer().expect("free"));
        world
    };
    let give_up: fn(&World) = |world| {
        // As if the process that made the world, the first of its peers, had been killed.
        world.recover(&Dead::killed(1));
    };
    let sweep = Sweep::new("spsc: the woken heir", &taken, memory, inherits, carries_on);
    let next: fn(&World) -> Verdict = |world| next_producer(world).map(drop);
    Sweep { wake: Some(give_up), sleepers: &[next], ..sweep }.must_hold();
}

/// A wait that gives up leaves no trace.
#[test]
fn spsc_receiver_that_gives_up() {
    let gives_up: Operation<World> = |world| {
        warm();
        let consumer = world.consumer().expect("free");
        Box::new(move || {
            consumer.recv_timeout(Duration::from_micros(1)).ok();
        })
    };
    Sweep::new("spsc: recv_timeout", &empty, memory, gives_up, carries_on).must_hold();
}

/// Negative controls: a role that is never given up, and a receiver that is never woken.
#[test]
fn spsc_roles_of_the_frozen_are_caught() {
    let sweep = Sweep::new("spsc: send, twice", &empty, memory, sends_two, carries_on);
    sweep.must_be_caught_unmended();
    let sweep = Sweep::new("spsc: recv, twice", &two, memory, receives_two, carries_on);
    sweep.must_be_caught_unmended();
}
