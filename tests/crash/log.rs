//! The sweeps of `log::Journal`.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::log::{FixedJournal, Level, WhenFull};
use outlast::{RecvTimeoutError, Shared, Spin};
use std::time::Instant;

type World = Shared<FixedJournal<4>>;

fn empty() -> World {
    options().anonymous(FixedJournal::new()).expect("a segment")
}

/// With more records than it holds.
fn full() -> World {
    let world = empty();
    (0..6).for_each(|i| put(&world, i));
    world
}

fn drops_newest() -> World {
    let world = empty();
    world.set_when_full(WhenFull::DropNewest);
    (0..2).for_each(|i| put(&world, i));
    world
}

fn put(world: &World, i: u32) {
    world.write(Level::Info, "sweep", &format!("before {i}")).expect("a peer");
}

fn warm(world: &World) {
    Spin::Never.set();
    put(world, 0); // this process is a peer, and its thread known
}

/// Messages are whole, and each number is a record or is counted.
fn reads_all(world: &World) -> Result<Vec<String>, String> {
    let before = world.losses();
    let (mut messages, mut next, mut gaps) = (Vec::new(), None, 0);
    let mut records = world.records();
    loop {
        let record = match records.next_timeout(patience() / 20) {
            Ok(record) => record,
            Err(RecvTimeoutError::TimedOut | RecvTimeoutError::Closed) => break,
            Err(error) => return fail(error),
        };
        gaps += next.map_or(0, |next| record.sequence() - next);
        next = Some(record.sequence() + 1);
        if record.target() != "sweep" {
            return fail(format!("{record:?}"));
        }
        let message = record.message().into_owned();
        let known =
            ["before ", "the victim's, which is longer than the others, so that both would show"]
                .iter()
                .any(|known| message.starts_with(known));
        if !known {
            return fail(format!("torn: {record:?}"));
        }
        messages.push(message);
        if messages.last().is_some_and(|message| message == "before 99") {
            break;
        }
    }
    let lost = world.losses();
    let counted = lost.overwritten + lost.unfinished - before.overwritten - before.unfinished;
    if counted < gaps {
        return fail(format!("{gaps} numbers are missing, {lost:?} are counted"));
    }
    Ok(messages)
}

/// The journal can be used immediately.
fn goes_on(world: &World) -> Verdict {
    Spin::Never.set();
    let dead = Instant::now();
    drop(reads_first(world)?);
    (0..3).for_each(|i| put(world, i));
    put(world, 99);
    let messages = reads_all(world)?;
    if messages.last().is_none_or(|last| last != "before 99") {
        return fail(format!("after {:?}: {messages:?}", dead.elapsed()));
    }
    if world.losses().unfinished > 1 {
        return fail(format!("{:?}", world.losses()));
    }
    // The dead process was recovered from: no writer is ever found in the middle of a record.
    let bytes = memory(world);
    let slots = bytes[bytes.len() - 4 * 512..].chunks(512);
    let states = slots.map(|slot| u64::from_ne_bytes(slot[..8].try_into().expect("8 bytes")));
    if states.filter(|state| state >> 12 & 3 == 1).count() > 0 {
        return fail("a slot is the dead process's");
    }
    Ok(())
}

/// The records that are there, without waiting.
fn reads_first(world: &World) -> Result<Vec<String>, String> {
    // The sentinel of this process may not have recovered yet what the victim left.
    let end = Instant::now() + patience();
    let is_writing = || {
        let bytes = memory(world);
        let slots = bytes[bytes.len() - 4 * 512..].chunks(512);
        slots
            .map(|slot| u64::from_ne_bytes(slot[..8].try_into().expect("8 bytes")))
            .any(|state| state >> 12 & 3 == 1)
    };
    put(world, 0); // a peer
    while is_writing() && Instant::now() < end {
        std::thread::yield_now();
    }
    let mut records = world.records();
    Ok(std::iter::from_fn(|| records.try_next())
        .map(|record| record.message().into_owned())
        .collect())
}

fn writes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        let message = "the victim's, which is longer than the others, so that both would show";
        world.write(Level::Warn, "sweep", message).ok();
    })
}

#[test]
fn log_write() {
    Sweep::new("log: write", &empty, memory, writes, goes_on).must_hold();
    Sweep::new("log: write, overwriting", &full, memory, writes, goes_on).must_hold();
    Sweep::new("log: write, dropping", &drops_newest, memory, writes, |world| {
        world.set_when_full(WhenFull::OverwriteOldest);
        goes_on(world)
    })
    .must_hold();
}

/// Reads until it has seen message 99.
fn collects(world: &World) -> Verdict {
    Spin::Never.set();
    let end = Instant::now() + patience();
    let mut records = world.records();
    loop {
        match records.next_deadline(end) {
            Ok(record) if record.message() == "before 99" => return Ok(()),
            Ok(_) => {}
            Err(RecvTimeoutError::TimedOut) => return fail("never woken"),
            Err(error) => return fail(error),
        }
    }
}

fn writes_the_last(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.write(Level::Warn, "sweep", "before 99").ok();
    })
}

/// Committed and not announced: recovery wakes the collector. Not committed: the survivor's record
/// does.
#[test]
fn log_write_with_the_collector_asleep() {
    let sweep =
        Sweep::new("log: write; collector asleep", &empty, memory, writes_the_last, goes_on);
    let after: fn(&World) -> Verdict = |world| {
        Spin::Never.set();
        // Its second record, in the second slot: in the first lap, committed.
        let bytes = memory(world);
        let state = &bytes[bytes.len() - 3 * 512..][..8];
        if state != (1_u64 << 14).to_ne_bytes() {
            put(world, 99);
        }
        Ok(())
    };
    Sweep { sleepers: &[collects], after: Some(after), ..sweep }.must_hold();
}

/// A collector's successor goes on.
#[test]
fn log_collector() {
    let operation: Operation<World> = |world| {
        warm(world);
        let mut records = world.records();
        Box::new(move || while records.try_next().is_some() {})
    };
    Sweep::new("log: try_next", &full, memory, operation, goes_on).must_hold();
}

#[test]
fn log_slots_of_the_frozen_are_caught() {
    Sweep::new("log: write", &empty, memory, writes, goes_on).must_be_caught_unmended();
}
