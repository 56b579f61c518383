//! The sweeps of queues with an in-flight table of one entry or two: a delivery waits for an entry
//! that a killed process has.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, options};
use core::time::Duration;
use outlast::{Delivery, Owned, Queue, Shared, Spin};
use std::cell::RefCell;

type World = Shared<Queue<u64>>;
type Judge = fn(&World) -> Verdict;

/// The messages 1, 2 and 3 in a queue of four slots, with a lap behind it.
fn world(entries: usize) -> World {
    let world = options().in_flight(entries).with_capacity::<Queue<u64>>(4).expect("a segment");
    for i in 0..5 {
        world.send(i).expect("sent");
        world.recv().expect("received");
    }
    world.send_batch(&[1, 2, 3]).expect("sent");
    world
}

fn one_entry() -> World {
    world(1)
}

fn two_entries() -> World {
    world(2)
}

fn memory(world: &World) -> Vec<u8> {
    let queue: &Queue<u64> = world;
    let at = std::ptr::from_ref(queue).cast();
    // SAFETY: as many bytes as the queue has; a torn picture costs a kill point at worst.
    unsafe { std::slice::from_raw_parts(at, size_of_val(queue)) }.to_vec()
}

fn warm(world: &World) {
    Spin::Never.set();
    drop(world.try_loan()); // makes a peer of it; takes a slot for one lap
}

/// Receives all messages that are left or come back, each with its attempts, one at a time.
fn all_that_is_left(world: &World) -> Result<Vec<(u64, u32)>, String> {
    let started = std::time::Instant::now();
    let mut messages = Vec::new();
    while world.join_timeout(Duration::ZERO) != Ok(true) {
        if let Ok(delivery) = world.recv_ack_timeout(Duration::from_millis(1)) {
            messages.push((*delivery, delivery.attempts()));
            delivery.ack().map_err(|fault| fault.to_string())?;
        }
        if started.elapsed() > patience() {
            return fail(format!("a message never comes back; got {messages:?}"));
        }
    }
    messages.sort_unstable();
    Ok(messages)
}

/// As many messages as the table has entries can be delivered, and no more.
fn table_is_whole(world: &World) -> Verdict {
    let entries = world.in_flight_capacity();
    for message in 0..=entries as u64 {
        world.try_send(message).map_err(|error| format!("{error:?}"))?;
    }
    let mut held = Vec::new();
    for _ in 0..entries {
        let delivery = world.recv_ack_timeout(patience());
        held.push(delivery.map_err(|error| format!("an entry is lost: {error:?}"))?);
    }
    match world.try_recv_ack() {
        Err(outlast::TryRecvError::TooManyInFlight) => {}
        other => return fail(format!("one more entry: {other:?}")),
    }
    for delivery in held {
        delivery.ack().map_err(|fault| fault.to_string())?;
    }
    if all_that_is_left(world)?.len() == 1 { Ok(()) } else { fail("other messages are left") }
}

/// The messages 1, 2 and 3 are left, except those that a process has acknowledged.
fn none_is_missing(world: &World) -> Verdict {
    let left = all_that_is_left(world)?;
    let values: Vec<u64> = left.iter().map(|&(message, _)| message).collect();
    if values != [1, 2, 3] || left.iter().map(|&(_, attempts)| attempts).sum::<u32>() > 1 {
        return fail(format!("{left:?}"));
    }
    table_is_whole(world)
}

/// Some of the messages have been acknowledged; each of the others is there once.
fn none_is_there_twice(world: &World) -> Verdict {
    let left = all_that_is_left(world)?;
    if left.windows(2).any(|pair| pair[0].0 == pair[1].0) || left.iter().any(|&(n, _)| n > 4) {
        return fail(format!("{left:?}"));
    }
    table_is_whole(world)
}

fn takes_delivery(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| world.recv_ack().map(std::mem::forget).unwrap_or(()))
}

fn acknowledges(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let delivery = world.recv_ack().expect("a message");
    Box::new(|| _ = delivery.ack())
}

fn gives_back(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let delivery = world.recv_ack().expect("a message");
    Box::new(|| delivery.nack())
}

/// Waits for the entry that the victim has, and works.
fn works(world: &World) -> Verdict {
    Spin::Never.set();
    let delivery = world.recv_ack().map_err(|error| error.to_string())?;
    delivery.ack().map(drop).map_err(|fault| fault.to_string())
}

#[test]
fn in_flight_alone() {
    for (entries, world) in [(1, one_entry as fn() -> World), (2, two_entries)] {
        let cases: [(&str, Operation<World>, Judge); 3] = [
            ("recv_ack", takes_delivery, none_is_missing),
            ("ack", acknowledges, none_is_there_twice),
            ("nack", gives_back, none_is_missing),
        ];
        for (verb, victim, check) in cases {
            let name = format!("{entries} in flight: {verb}");
            Sweep::new(&name, &world, memory, victim, check).must_hold();
        }
    }
}

/// The victim has all entries; workers that sleep until one is free get it, however the victim
/// dies.
#[test]
fn in_flight_with_workers_asleep_for_an_entry() {
    let cases: [(&str, Operation<World>); 2] = [("ack", acknowledges), ("nack", gives_back)];
    for (verb, victim) in cases {
        let name = format!("1 in flight: {verb}; two asleep for the entry");
        let sweep = Sweep::new(&name, &one_entry, memory, victim, none_is_there_twice);
        Sweep { sleepers: &[works, works], ..sweep }.must_hold();
    }
    let name = "2 in flight: ack, twice; two asleep for an entry";
    let victim: Operation<World> = |world| {
        warm(world);
        let held = [(); 2].map(|()| world.recv_ack().expect("a message"));
        Box::new(|| held.into_iter().for_each(|delivery| _ = delivery.ack()))
    };
    let sweep = Sweep::new(name, &two_entries, memory, victim, none_is_there_twice);
    // If both messages are done, one is left for two workers.
    let after: fn(&World) -> Verdict =
        |world| world.send_timeout(4, patience()).map_err(|error| format!("{error:?}"));
    Sweep { sleepers: &[works, works], after: Some(after), ..sweep }.must_hold();
}

/// A world whose only entry this process has.
#[derive(Debug)]
struct Held {
    world: World,
    delivery: RefCell<Option<Owned<Delivery<'static, u64>, Queue<u64>>>>,
}

fn held() -> Held {
    let world = one_entry();
    let delivery = world.owned(Queue::recv_ack).expect("a message");
    Held { world, delivery: RefCell::new(Some(delivery)) }
}

/// The worker that is woken for the entry dies; the other one, which sleeps, gets it.
#[test]
fn in_flight_woken_worker() {
    let name = "1 in flight: the woken worker";
    let victim: Operation<Held> = |held| {
        warm(&held.world);
        Box::new(|| _ = works(&held.world))
    };
    let wake: fn(&Held) = |held| drop(held.delivery.take());
    let check: fn(&Held) -> Verdict = |held| none_is_there_twice(&held.world);
    let sweep = Sweep::new(name, &held, |held| memory(&held.world), victim, check);
    let sleeper: fn(&Held) -> Verdict = |held| works(&held.world);
    Sweep { wake: Some(wake), sleepers: &[sleeper], ..sweep }.must_hold();
}

/// If no process repairs the table, the checks notice.
#[test]
fn in_flight_entries_of_the_frozen_are_caught() {
    for world in [one_entry as fn() -> World, two_entries] {
        let name = "in flight: recv_ack";
        Sweep::new(name, &world, memory, takes_delivery, none_is_missing).must_be_caught_unmended();
    }
    let name = "1 in flight: ack; one asleep for the entry";
    let sweep = Sweep::new(name, &one_entry, memory, acknowledges, none_is_there_twice);
    Sweep { sleepers: &[works], ..sweep }.must_be_caught_unmended();
}
