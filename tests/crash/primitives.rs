//! The sweeps of events and queues, whose sleepers the wait layer wakes and whose dead are
//! recovered from by peers. With the backend that looks again every 100 milliseconds, a lost wake
//! is only a late one, which no sweep can notice.
use crate::stepper::{Child, End, fork, patience};
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::__private::Dead;
use outlast::{Event, FixedQueue, Shareable, Shared, Spin};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

// ------------------------------------------------------------------ events

outlast::shared! {
    /// An event of each kind.
    struct Events { manual: Event, auto: Event }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.manual, self.auto)
    }
}

fn events() -> Shared<Events> {
    options()
        .anonymous(Events { manual: Event::manual(false), auto: Event::auto(false) })
        .expect("a segment")
}

fn warm_events(world: &Shared<Events>) {
    Spin::Never.set();
    world.manual.wait_timeout(Duration::ZERO).expect("a peer");
    // No thread sleeps, so this leaves no trace.
    world.manual.set();
    world.manual.reset();
}

fn wait_manual(world: &Shared<Events>) -> Verdict {
    Spin::Never.set();
    world.manual.wait().map_err(|fault| fault.to_string())
}

fn wait_auto(world: &Shared<Events>) -> Verdict {
    Spin::Never.set();
    world.auto.wait().map_err(|fault| fault.to_string())
}

/// The event still works: set lets through, clear does not.
fn events_work(world: &Shared<Events>) -> Verdict {
    for event in [&world.manual, &world.auto] {
        event.set();
        if event.wait_timeout(patience()) != Ok(true) {
            return fail("a set event lets no waiter through");
        }
        event.reset();
        if event.wait_timeout(Duration::from_micros(50)) != Ok(false) {
            return fail("a clear event lets through");
        }
    }
    Ok(())
}

fn event_sweep<'a>(name: &'a str, victim: Operation<Shared<Events>>) -> Sweep<'a, Shared<Events>> {
    Sweep::new(name, &events, memory, victim, events_work)
}

#[test]
fn set_alone() {
    event_sweep("event: set", |world| {
        warm_events(world);
        Box::new(|| _ = world.manual.set())
    })
    .must_hold();
}

#[test]
fn set_with_two_asleep() {
    let sweep = event_sweep("event: set; two asleep", |world| {
        warm_events(world);
        Box::new(|| _ = world.manual.set())
    });
    // If the victim has set it, that was all: another set does nothing then.
    let after: fn(&Shared<Events>) -> Verdict = |world| {
        world.manual.set();
        Ok(())
    };
    Sweep { sleepers: &[wait_manual, wait_manual], after: Some(after), ..sweep }.must_hold();
}

/// No process learns of the death of a process that is no peer. So such a process sets and wakes in
/// one step.
#[test]
fn set_by_a_stranger_with_two_asleep() {
    let sweep = event_sweep("event: set by a stranger; two asleep", |world| {
        Box::new(|| _ = world.manual.set())
    });
    let after: fn(&Shared<Events>) -> Verdict = |world| {
        world.manual.set();
        Ok(())
    };
    Sweep { sleepers: &[wait_manual, wait_manual], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn set_and_reset_with_two_asleep() {
    let sweep = event_sweep("event: set, reset; two asleep", |world| {
        warm_events(world);
        Box::new(|| {
            world.manual.set();
            world.manual.reset();
        })
    });
    let after: fn(&Shared<Events>) -> Verdict = |world| {
        world.manual.set();
        Ok(())
    };
    Sweep { sleepers: &[wait_manual, wait_manual], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn wait_until_asleep() {
    event_sweep("event: wait", |world| {
        warm_events(world);
        Box::new(|| world.manual.wait().unwrap_or(()))
    })
    .must_hold();
}

#[test]
fn woken_by_a_manual_event() {
    let sweep = event_sweep("event: woken", |world| {
        warm_events(world);
        Box::new(|| world.manual.wait().unwrap_or(()))
    });
    let wake: fn(&Shared<Events>) = |world| _ = world.manual.set();
    Sweep { wake: Some(wake), sleepers: &[wait_manual], ..sweep }.must_hold();
}

/// One signal, and the victim was woken for it. Either it takes the signal and dies with it, or the
/// other waiter gets it.
fn hand_the_signal_on(world: &Shared<Events>) -> Verdict {
    let started = Instant::now();
    while world.auto.is_set() {
        if started.elapsed() > patience() {
            return fail("the signal is there, and the waiter sleeps");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    world.auto.set(); // for the waiter, if the victim took the first
    Ok(())
}

#[test]
fn woken_by_an_auto_event() {
    let sweep = event_sweep("event: auto-reset take", |world| {
        warm_events(world);
        Box::new(|| world.auto.wait().unwrap_or(()))
    });
    let wake: fn(&Shared<Events>) = |world| _ = world.auto.set();
    Sweep { wake: Some(wake), sleepers: &[wait_auto], after: Some(hand_the_signal_on), ..sweep }
        .must_hold();
}

/// A process that starts when the victim has been stopped gets the victim's signal, or one that is
/// set afterwards.
fn set_with_a_late_arrival(
    name: &str,
    victim: Operation<Shared<Events>>,
    waits: fn(&Shared<Events>) -> Verdict,
) {
    let after: fn(&Shared<Events>) -> Verdict = |world| {
        world.manual.set();
        world.auto.set();
        Ok(())
    };
    Sweep { late: Some(waits), after: Some(after), ..event_sweep(name, victim) }.must_hold();
}

#[test]
fn manual_set_with_a_late_arrival() {
    let sets: Operation<Shared<Events>> = |world| {
        warm_events(world);
        Box::new(|| _ = world.manual.set())
    };
    set_with_a_late_arrival("event: set; late arrival", sets, wait_manual);
}

#[test]
fn auto_set_with_a_late_arrival() {
    let sets: Operation<Shared<Events>> = |world| {
        warm_events(world);
        Box::new(|| _ = world.auto.set())
    };
    set_with_a_late_arrival("event: auto set; late arrival", sets, wait_auto);
}

#[test]
fn auto_set_with_two_asleep() {
    let sweep = event_sweep("event: auto set; two asleep", |world| {
        warm_events(world);
        Box::new(|| _ = world.auto.set())
    });
    let after: fn(&Shared<Events>) -> Verdict = |world| {
        for _ in 0..2 {
            hand_the_signal_on(world)?;
        }
        Ok(())
    };
    Sweep { sleepers: &[wait_auto, wait_auto], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn auto_set_by_a_stranger_with_one_asleep() {
    let sweep = event_sweep("event: auto set by a stranger; one asleep", |world| {
        Box::new(|| _ = world.auto.set())
    });
    Sweep { sleepers: &[wait_auto], after: Some(hand_the_signal_on), ..sweep }.must_hold();
}

// ------------------------------------------------------------------ queues

outlast::shared! {
    /// A short queue, a note of the victim that its operation has returned, and a note of the
    /// sender that waited for room.
    struct Queued { queue: FixedQueue<u64, 4>, said: AtomicU64, sent: AtomicU64 }
}

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} said {:?}", self.queue, self.said)
    }
}

type World = Shared<Queued>;

fn queued(messages: &[u64]) -> World {
    let value =
        Queued { queue: FixedQueue::new(), said: AtomicU64::new(0), sent: AtomicU64::new(0) };
    let world = options().anonymous(value).expect("a segment");
    // A lap is behind it already.
    for i in 0..5 {
        world.queue.send(i).expect("sent");
        world.queue.recv().expect("received");
    }
    for &message in messages {
        world.queue.send(message).expect("sent");
    }
    world
}

fn empty() -> World {
    queued(&[])
}

fn two() -> World {
    queued(&[1, 2])
}

fn three() -> World {
    queued(&[1, 2, 3])
}

fn full() -> World {
    queued(&[1, 2, 3, 4])
}

fn warm_queue(world: &World) {
    Spin::Never.set();
    drop(world.queue.try_loan()); // makes a peer of it; takes a slot for one lap, if one is free
}

/// Everything that is or comes back in the queue, with attempts, until nothing is in flight.
fn all_that_is_left(world: &World) -> Result<Vec<(u64, u32)>, String> {
    let started = Instant::now();
    let mut messages = Vec::new();
    while world.queue.join_timeout(Duration::ZERO) != Ok(true) {
        if let Ok(delivery) = world.queue.recv_ack_timeout(Duration::from_millis(1)) {
            messages.push((*delivery, delivery.attempts()));
            delivery.ack().map_err(|fault| fault.to_string())?;
        }
        if started.elapsed() > patience() {
            return fail(format!("something never comes back; got {messages:?}"));
        }
    }
    Ok(messages)
}

/// As many messages fit as ever, and come out in order.
fn capacity_is_whole(world: &World) -> Verdict {
    let queue = &world.queue;
    for message in 100..104 {
        queue
            .send_timeout(message, patience())
            .map_err(|error| format!("capacity is lost: {error:?}"))?;
    }
    if !queue.try_send(104).is_err_and(|error| error.is_full()) {
        return fail("capacity has grown");
    }
    let drained = queue.drain();
    if drained == [100, 101, 102, 103] {
        Ok(())
    } else {
        fail(format!("out of order: {drained:?}"))
    }
}

fn values(messages: &[(u64, u32)]) -> Vec<u64> {
    messages.iter().map(|&(message, _)| message).collect()
}

/// After a send of 9 to a queue of `before`: 9 is there or not, once, and behind the others.
fn sent_or_not(world: &World, before: &[u64]) -> Verdict {
    let left = values(&all_that_is_left(world)?);
    let with = [before, &[9]].concat();
    if left != before && left != with {
        return fail(format!("{left:?}"));
    }
    if world.said.load(Acquire) == 1 && left != with {
        return fail("sent, but lost");
    }
    capacity_is_whole(world)
}

/// After reception of the first of 1, 2, 3: none is there twice, and at most the first is missing.
fn received_or_not(world: &World) -> Verdict {
    let mut left = values(&all_that_is_left(world)?);
    left.sort_unstable();
    if left != [1, 2, 3] && left != [2, 3] {
        return fail(format!("{left:?}"));
    }
    if world.said.load(Acquire) == 1 && left.len() == 3 {
        return fail("received, and delivered again");
    }
    capacity_is_whole(world)
}

/// After a delivery of 1 that was not acknowledged: nothing is missing, nothing is there twice.
fn nothing_is_missing(world: &World) -> Verdict {
    let mut left = all_that_is_left(world)?;
    left.sort_unstable();
    let tried = u32::from(world.said.load(Acquire) == 1);
    if values(&left) != [1, 2, 3] || left[0].1 < tried || left[0].1 > 1 || left[1].1 + left[2].1 > 0
    {
        return fail(format!("{left:?}"));
    }
    capacity_is_whole(world)
}

/// After an acknowledgement of 1: it is gone if that was said, and the others are there.
fn acknowledged_or_not(world: &World) -> Verdict {
    let left = all_that_is_left(world)?;
    let mut sorted = values(&left);
    sorted.sort_unstable();
    if sorted != [1, 2, 3] && sorted != [2, 3] {
        return fail(format!("{left:?}"));
    }
    if world.said.load(Acquire) == 1 && sorted.len() == 3 {
        return fail("acknowledged, and delivered again");
    }
    capacity_is_whole(world)
}

fn sends(world: &World) -> Box<dyn FnOnce() + '_> {
    warm_queue(world);
    Box::new(|| {
        if world.queue.send(9).is_ok() {
            world.said.store(1, Release);
        }
    })
}

fn receives(world: &World) -> Box<dyn FnOnce() + '_> {
    warm_queue(world);
    Box::new(|| {
        if world.queue.recv().is_ok() {
            world.said.store(1, Release);
        }
    })
}

fn takes_delivery(world: &World) -> Box<dyn FnOnce() + '_> {
    warm_queue(world);
    Box::new(|| {
        if let Ok(delivery) = world.queue.recv_ack() {
            world.said.store(1, Release);
            std::mem::forget(delivery);
        }
    })
}

fn acknowledges(world: &World) -> Box<dyn FnOnce() + '_> {
    warm_queue(world);
    let delivery = world.queue.recv_ack().expect("a message");
    Box::new(move || {
        if delivery.ack().is_ok() {
            world.said.store(1, Release);
        }
    })
}

fn gives_back(world: &World) -> Box<dyn FnOnce() + '_> {
    warm_queue(world);
    let delivery = world.queue.recv_ack().expect("a message");
    Box::new(move || delivery.nack())
}

fn queue_sweep<'a>(
    name: &'a str,
    world: &'a dyn Fn() -> World,
    victim: Operation<World>,
    check: fn(&World) -> Verdict,
) -> Sweep<'a, World> {
    Sweep::new(name, world, memory, victim, check)
}

#[test]
fn send_alone() {
    queue_sweep("queue: send", &two, sends, |world| sent_or_not(world, &[1, 2])).must_hold();
}

#[test]
fn receive_alone() {
    queue_sweep("queue: recv", &three, receives, received_or_not).must_hold();
}

#[test]
fn deliver_alone() {
    queue_sweep("queue: recv_ack", &three, takes_delivery, nothing_is_missing).must_hold();
}

#[test]
fn acknowledge_alone() {
    queue_sweep("queue: ack", &three, acknowledges, acknowledged_or_not).must_hold();
}

#[test]
fn give_back_alone() {
    queue_sweep("queue: nack", &three, gives_back, nothing_is_missing).must_hold();
}

#[test]
fn loan_and_in_place() {
    let lends: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| {
            let Ok(mut loan) = world.queue.loan() else { return };
            *loan = 9;
            if loan.send().is_ok() {
                world.said.store(1, Release);
            }
        })
    };
    queue_sweep("queue: loan, send", &two, lends, |world| sent_or_not(world, &[1, 2])).must_hold();
    let aborts: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| drop(world.queue.loan()))
    };
    queue_sweep("queue: loan, abort", &two, aborts, |world| sent_or_not(world, &[1, 2]))
        .must_hold();
    let reads: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| {
            if let Ok(message) = world.queue.recv_ref() {
                drop(message);
                world.said.store(1, Release);
            }
        })
    };
    queue_sweep("queue: recv_ref", &three, reads, received_or_not).must_hold();
}

#[test]
fn close_with_sleepers() {
    let closes: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| world.queue.close())
    };
    let waits: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        match world.queue.recv() {
            Err(outlast::RecvError::Closed) => Ok(()),
            other => fail(format!("{other:?}")),
        }
    };
    let after: fn(&World) -> Verdict = |world| {
        // If the victim has closed the queue, the recovery wakes the sleepers; otherwise this does.
        if !world.queue.is_closed() {
            world.queue.close();
        }
        Ok(())
    };
    let check: fn(&World) -> Verdict = |world| {
        if world.queue.try_send(1).is_err() { Ok(()) } else { fail("sent into a closed queue") }
    };
    let sweep = queue_sweep("queue: close; two asleep", &empty, closes, check);
    Sweep { sleepers: &[waits, waits], after: Some(after), ..sweep }.must_hold();
}

/// What others do while the victim is stopped: three laps of traffic.
fn traffic(world: &World) -> Verdict {
    for _ in 0..12 {
        match world.queue.try_send(50) {
            Ok(()) => {}
            Err(error) if error.is_full() => {}
            Err(error) => return fail(format!("{error:?}")),
        }
        match world.queue.try_recv() {
            Ok(_) | Err(outlast::TryRecvError::Empty) => {}
            Err(error) => return fail(format!("{error:?}")),
        }
    }
    Ok(())
}

/// After such traffic: nothing of it is there twice, and nothing is stuck.
fn traffic_ends(world: &World) -> Verdict {
    let left = values(&all_that_is_left(world)?);
    let count = |message| left.iter().filter(|&&other| other == message).count();
    if (1..10).any(|message| count(message) > 1) {
        return fail(format!("twice: {left:?}"));
    }
    if world.said.load(Acquire) == 0 && left.len() > 8 {
        return fail(format!("more than ever fitted: {left:?}"));
    }
    capacity_is_whole(world)
}

#[test]
fn active_survivors() {
    let one: fn() -> World = || queued(&[1]);
    let cases: [(&str, Operation<World>); 5] = [
        ("queue: send; active survivors", sends),
        ("queue: recv; active survivors", receives),
        ("queue: recv_ack; active survivors", takes_delivery),
        ("queue: ack; active survivors", acknowledges),
        ("queue: nack; active survivors", gives_back),
    ];
    for (name, victim) in cases {
        let sweep = queue_sweep(name, &one, victim, traffic_ends);
        Sweep { meanwhile: Some(traffic), ..sweep }.must_hold();
    }
}

fn waits_for_message(world: &World) -> Verdict {
    Spin::Never.set();
    match world.queue.recv() {
        Ok(9 | 10) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

fn waits_for_room(world: &World) -> Verdict {
    Spin::Never.set();
    world.queue.send(20).map_err(|error| format!("{error:?}"))?;
    world.sent.store(1, Release);
    Ok(())
}

#[test]
fn send_with_a_receiver_asleep() {
    let after: fn(&World) -> Verdict =
        |world| world.queue.send(10).map_err(|error| format!("{error:?}"));
    let check: fn(&World) -> Verdict = |world| {
        let left = values(&all_that_is_left(world)?);
        if left.is_empty() || left == [10] {
            capacity_is_whole(world)
        } else {
            fail(format!("{left:?}"))
        }
    };
    let sweep = queue_sweep("queue: send; receiver asleep", &empty, sends, check);
    Sweep { sleepers: &[waits_for_message], after: Some(after), ..sweep }.must_hold();
}

#[test]
fn receive_with_a_sender_asleep() {
    let after: fn(&World) -> Verdict = |world| {
        let recv = || world.queue.recv_timeout(patience()).map_err(|error| format!("{error:?}"));
        let first = recv()?;
        let started = Instant::now();
        while world.sent.load(Acquire) == 0 {
            // If that came before recovery, the message that the dead had claimed is in the
            // sender's way now.
            if started.elapsed() > patience() / 2 {
                return match (first, recv()?) {
                    (2, 1) => Ok(()),
                    other => fail(format!("there is room, and the sender sleeps: {other:?}")),
                };
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    };
    let check: fn(&World) -> Verdict = |world| {
        let left = values(&all_that_is_left(world)?);
        let lost = 3 - left.iter().filter(|&&message| message < 10).count();
        if left.contains(&20) && lost <= 1 {
            capacity_is_whole(world)
        } else {
            fail(format!("{left:?}"))
        }
    };
    let sweep = queue_sweep("queue: recv; sender asleep", &full, receives, check);
    Sweep { sleepers: &[waits_for_room], after: Some(after), ..sweep }.must_hold();
}

/// The receiver that was woken dies: the other one must get the message.
#[test]
fn the_woken_receiver_dies() {
    let victim: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| assert!(world.queue.recv().is_ok()))
    };
    let wake: fn(&World) = |world| world.queue.send(9).expect("sent");
    let after: fn(&World) -> Verdict = |world| {
        let started = Instant::now();
        while !world.queue.is_empty() {
            if started.elapsed() > patience() {
                return fail("the message is there, and the receiver sleeps");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        // For the sleeper, if the victim had the first one.
        world.queue.send(10).map_err(|error| format!("{error:?}"))
    };
    let check: fn(&World) -> Verdict = |world| {
        let left = values(&all_that_is_left(world)?);
        if left.len() <= 1 { capacity_is_whole(world) } else { fail(format!("{left:?}")) }
    };
    let sweep = queue_sweep("queue: woken receiver", &empty, victim, check);
    Sweep { wake: Some(wake), sleepers: &[waits_for_message], after: Some(after), ..sweep }
        .must_hold();
}

/// The sender that was woken dies: the other one must get the slot.
#[test]
fn the_woken_sender_dies() {
    let victim: Operation<World> = |world| {
        warm_queue(world);
        Box::new(|| assert!(world.queue.send(9).is_ok()))
    };
    let wake: fn(&World) = |world| assert!(world.queue.recv().is_ok());
    let after: fn(&World) -> Verdict = |world| {
        let started = Instant::now();
        while !world.queue.is_full() {
            if started.elapsed() > patience() {
                return fail("a slot is free, and the sender sleeps");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        world.queue.recv_timeout(patience()).map(drop).map_err(|error| format!("{error:?}"))
    };
    let check: fn(&World) -> Verdict = |world| {
        let left = values(&all_that_is_left(world)?);
        if left.contains(&20) { capacity_is_whole(world) } else { fail(format!("{left:?}")) }
    };
    let sweep = queue_sweep("queue: woken sender", &full, victim, check);
    Sweep { wake: Some(wake), sleepers: &[waits_for_room], after: Some(after), ..sweep }
        .must_hold();
}

// ---------------------------------------------------- recovery, interrupted

/// The owner tag of the first process that attaches after the one that made the segment.
const SECOND: u32 = 2;

/// A world, and a process that has claimed something in it and does nothing more, which to the
/// memory is as good as dead.
struct Leavings {
    world: World,
    frozen: RefCell<Child>,
}

impl Leavings {
    fn new(leave: fn(&World)) -> Self {
        let world = three();
        let mut frozen = fork(|| {
            Spin::Never.set();
            leave(&world);
            world.said.store(7, Release);
            loop {
                std::thread::park();
            }
        });
        let started = Instant::now();
        while world.said.load(Acquire) != 7 {
            assert!(started.elapsed() < patience() && frozen.end_now().is_none(), "no leavings");
            std::thread::yield_now();
        }
        world.said.store(0, Release);
        Leavings { world, frozen: RefCell::new(frozen) }
    }
}

impl fmt::Debug for Leavings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.world.fmt(f)
    }
}

/// A recoverer is killed in the middle of its work; the next one takes it up.
fn interrupted_recovery(name: &str, leave: fn(&World)) {
    let make = || Leavings::new(leave);
    let victim: Operation<Leavings> = |leavings| {
        let queue = &leavings.world.queue;
        warm_queue(&leavings.world);
        Box::new(|| Shareable::recover(queue, &Dead::killed(SECOND)))
    };
    let after: fn(&Leavings) -> Verdict = |leavings| {
        leavings.frozen.borrow_mut().kill();
        Ok(())
    };
    let check: fn(&Leavings) -> Verdict = |leavings| nothing_is_missing(&leavings.world);
    let sweep = Sweep::new(name, &make, |leavings| memory(&leavings.world), victim, check);
    Sweep { after: Some(after), ..sweep }.must_hold();
}

#[test]
fn recovery_of_a_delivery_is_interrupted() {
    let leave: fn(&World) = |world| std::mem::forget(world.queue.recv_ack());
    interrupted_recovery("recovery of a delivery, interrupted", leave);
}

#[test]
fn recovery_of_a_message_being_read_is_interrupted() {
    let leave: fn(&World) = |world| std::mem::forget(world.queue.recv_ref());
    interrupted_recovery("recovery of a message being read, interrupted", leave);
}

#[test]
fn recovery_of_a_slot_being_written_is_interrupted() {
    let leave: fn(&World) = |world| std::mem::forget(world.queue.loan());
    interrupted_recovery("recovery of a slot being written, interrupted", leave);
}

// ---------------------------------------------------------- coming and going

/// A segment that no process has open: its descriptor alone.
struct Unattended(File);

impl Unattended {
    fn open(&self) -> Result<World, String> {
        let file = self.0.try_clone().map_err(|error| error.to_string())?;
        Shared::from_fd(file.into()).map_err(|error| error.to_string())
    }

    fn bytes(&self) -> Vec<u8> {
        let len = usize::try_from(self.0.metadata().expect("a file").len()).expect("small");
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, 0).expect("readable");
        bytes
    }

    fn check(&self, check: fn(&World) -> Verdict) -> Verdict {
        let world = self.open()?;
        check(&world)?;
        drop(world);
        // The peer table is empty: its tokens are all zero.
        let bytes = self.bytes();
        let word =
            |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let peers = usize::try_from(word(96)).expect("an offset");
        for slot in 0..8 + 16 {
            let token = word(peers + 64 * slot);
            if token & !(1 << 31) != 0 {
                return fail(format!("slot {slot} holds {token:#x}"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Unattended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unattended")
    }
}

fn unattended() -> Unattended {
    Unattended(three().try_clone_fd().expect("a descriptor").into())
}

/// One whose only user was killed with a delivery in its hands.
fn bereft() -> Unattended {
    let segment = unattended();
    let mut holder = fork(|| {
        let world = segment.open().expect("a segment");
        std::mem::forget(world.queue.recv_ack());
        // SAFETY: ends this process.
        unsafe { libc::raise(libc::SIGKILL) };
        1
    });
    assert_eq!(holder.end(), Some(End::Killed(libc::SIGKILL)));
    segment
}

fn opens_and_closes(segment: &Unattended) -> Box<dyn FnOnce() + '_> {
    Box::new(|| {
        let world = segment.open().expect("a segment");
        world.queue.join_timeout(Duration::ZERO).expect("a peer");
        drop(world);
    })
}

/// The sentinel is killed at each step of joining and of leaving.
#[test]
fn attach_and_detach() {
    let check: fn(&Unattended) -> Verdict = |segment| segment.check(nothing_is_missing);
    let sweep = Sweep::new(
        "attach, detach: the sentinel",
        &unattended,
        Unattended::bytes,
        opens_and_closes,
        check,
    );
    Sweep { thread: true, ..sweep }.must_hold();
}

/// The same for a process that finds a dead peer. It is killed while it recovers from that death.
#[test]
fn attach_and_recover() {
    let check: fn(&Unattended) -> Verdict = |segment| {
        segment.check(|world| {
            let mut left = all_that_is_left(world)?;
            left.sort_unstable();
            if left != [(1, 1), (2, 0), (3, 0)] {
                return fail(format!("{left:?}"));
            }
            capacity_is_whole(world)
        })
    };
    let sweep = Sweep::new(
        "attach, recover: the sentinel",
        &bereft,
        Unattended::bytes,
        opens_and_closes,
        check,
    );
    Sweep { thread: true, ..sweep }.must_hold();
}

/// A thread is killed at each step of its registration, in a process that is attached already.
#[test]
fn register_a_thread() {
    let victim: Operation<World> = |world| {
        Spin::Never.set();
        // One thread attaches the process. The registration of another thread is swept.
        std::thread::scope(|scope| {
            scope.spawn(|| world.queue.join_timeout(Duration::ZERO).expect("a peer"));
        });
        Box::new(|| {
            world.queue.join_timeout(Duration::ZERO).expect("a peer");
        })
    };
    queue_sweep("register a thread", &three, victim, nothing_is_missing).must_hold();
}

// ------------------------------------------------------------------ controls

/// If no process repairs what the victim has left, each kind of check notices.
#[test]
fn what_is_not_mended_is_caught() {
    queue_sweep("queue: send", &two, sends, |world| sent_or_not(world, &[1, 2]))
        .must_be_caught_unmended();
    queue_sweep("queue: recv", &three, receives, received_or_not).must_be_caught_unmended();
    queue_sweep("queue: recv_ack", &three, takes_delivery, nothing_is_missing)
        .must_be_caught_unmended();
    queue_sweep("queue: ack", &three, acknowledges, acknowledged_or_not).must_be_caught_unmended();
}

/// A signal whose receiver was woken and does not take it is noticed.
#[test]
fn a_signal_that_is_not_handed_on_is_caught() {
    let sweep = event_sweep("event: auto-reset take", |world| {
        warm_events(world);
        Box::new(|| world.auto.wait().unwrap_or(()))
    });
    let wake: fn(&Shared<Events>) = |world| _ = world.auto.set();
    Sweep { wake: Some(wake), sleepers: &[wait_auto], after: Some(hand_the_signal_on), ..sweep }
        .must_be_caught_unmended();
}

/// A slot of the peer table that is not given back is noticed.
#[test]
fn a_peer_that_is_not_cleared_away_is_caught() {
    let check: fn(&Unattended) -> Verdict = |segment| segment.check(nothing_is_missing);
    let sweep =
        Sweep::new("attach, detach", &unattended, Unattended::bytes, opens_and_closes, check);
    Sweep { thread: true, ..sweep }.must_be_caught_unmended();
}
