//! The sweeps of `RwLock`, and variants of it that they must catch.
use crate::heir::Heir;
use crate::stepper::{patience, shared_page};
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::{LockError, ReadResult, RwLock, Shared, Spin, WriteGuard, WriteResult};
use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

outlast::shared! {
    /// Two locks, each around two numbers that are equal when no writer is at it.
    struct Locks { a: RwLock<[u64; 2]>, b: RwLock<[u64; 2]> }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.a, self.b)
    }
}

type World = Shared<Locks>;

fn locks() -> World {
    options()
        .anonymous(Locks { a: RwLock::new([0; 2]), b: RwLock::new([0; 2]) })
        .expect("a segment")
}

/// Read by this thread, which lives on.
fn read_by_us() -> World {
    let world = locks();
    std::mem::forget(world.a.read());
    world
}

/// Changes the value so that a reader in between would see it.
fn change(guard: &mut WriteGuard<'_, [u64; 2]>) {
    guard[0] += 1;
    guard[1] += 1;
}

fn inspect_read(taken: ReadResult<'_, [u64; 2]>) -> Verdict {
    match taken {
        Ok(guard) if guard[0] == guard[1] => Ok(()),
        Ok(guard) => fail(format!("torn without a word: {guard:?}")),
        Err(LockError::OwnerDied(_)) => Ok(()),
        Err(error) => fail(format!("reading: {error:?}")),
    }
}

fn inspect_write(taken: WriteResult<'_, [u64; 2]>) -> Verdict {
    match taken {
        Ok(guard) if guard[0] == guard[1] => Ok(()),
        Ok(guard) => fail(format!("torn without a word: {guard:?}")),
        Err(LockError::OwnerDied(mut guard)) => {
            *guard = [0; 2];
            WriteGuard::mark_consistent(&mut guard);
            Ok(())
        }
        Err(error) => fail(format!("writing: {error:?}")),
    }
}

fn read_a(world: &World) -> Verdict {
    Spin::Never.set();
    inspect_read(world.a.read_timeout(patience()))
}

fn write_a(world: &World) -> Verdict {
    Spin::Never.set();
    inspect_write(world.a.write_timeout(patience()))
}

fn both_are_sound(world: &World) -> Verdict {
    for lock in [&world.a, &world.b] {
        inspect_read(lock.read_timeout(patience()))?;
        inspect_write(lock.write_timeout(patience()))?;
        // What was repaired stays repaired, and the lock is free.
        match lock.try_write() {
            Ok(guard) if guard[0] == guard[1] => {}
            other => return fail(format!("not mended: {other:?}")),
        }
        inspect_read(lock.try_read())?;
    }
    Ok(())
}

/// The same, if the victim had nothing to do with writing: there is nothing to tell.
fn nothing_to_tell(world: &World) -> Verdict {
    for lock in [&world.a, &world.b] {
        if lock.poison_cause().is_some() {
            return fail("poisoned without a writer");
        }
        if let Err(error) = lock.write_timeout(patience()) {
            return fail(format!("writing: {error:?}"));
        }
        if let Err(error) = lock.read_timeout(patience()) {
            return fail(format!("reading: {error:?}"));
        }
    }
    Ok(())
}

/// Checks a lock that this thread reads, when the victim is dead: no other thread holds it, and the
/// value is unchanged.
fn only_we_read(world: &World) -> Verdict {
    if world.a.poison_cause().is_some() {
        return fail("poisoned without a writer");
    }
    std::thread::scope(|scope| scope.spawn(|| read_a(world)).join().expect("no panic"))?;
    match world.a.write() {
        Err(LockError::WouldDeadlock) => {}
        other => return fail(format!("{other:?}")),
    }
    // The one guard that was forgotten is the last.
    let guard = world.a.read().map_err(|error| error.to_string())?;
    drop(guard);
    Ok(())
}

/// So that the victim's first-time work is done.
fn warm(world: &World) {
    Spin::Never.set();
    drop(world.b.write());
    drop(world.b.read());
}

/// A writer has died inside.
fn left_by_a_dead_writer() -> World {
    let world = locks();
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(world.a.write()));
    });
    world
}

/// The victim was told of the death at most, and has not marked the value consistent.
fn the_death_is_told(world: &World) -> Verdict {
    match world.a.write_timeout(patience()) {
        Err(LockError::OwnerDied(mut guard)) => WriteGuard::mark_consistent(&mut guard),
        other => return fail(format!("writing after a death: {other:?}")),
    }
    both_are_sound(world)
}

/// The death of a writer is told, even if the thread that finds the lock so is killed before it has
/// told it.
#[test]
fn taking_over_from_a_dead_writer() {
    let sweep = sweep("write after a death", |world| {
        warm(world);
        Box::new(|| drop(world.a.write()))
    });
    Sweep { world: &left_by_a_dead_writer, check: the_death_is_told, ..sweep }.must_hold();
}

fn sweep<'a>(name: &'a str, victim: Operation<World>) -> Sweep<'a, World> {
    Sweep::new(name, &locks, memory, victim, both_are_sound)
}

fn reads(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| drop(world.a.read()))
}

fn writes(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        if let Ok(mut guard) = world.a.write() {
            change(&mut guard);
        }
    })
}

fn holds_to_read(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let guard = world.a.read().expect("free");
    Box::new(move || drop(guard))
}

fn holds_to_write(world: &World) -> Box<dyn FnOnce() + '_> {
    warm(world);
    let mut guard = world.a.write().expect("free");
    Box::new(move || {
        change(&mut guard);
        drop(guard);
    })
}

// ------------------------------------------------------------------------------------- readers

#[test]
fn rwlock_read_alone() {
    let sweep = sweep("rwlock: read, release", reads);
    Sweep { check: nothing_to_tell, ..sweep }.must_hold();
}

#[test]
fn rwlock_read_with_late_arrivals() {
    for (name, late) in [
        ("rwlock: read, release; late writer", write_a as fn(&World) -> Verdict),
        ("rwlock: read, release; late reader", read_a),
    ] {
        let sweep = sweep(name, reads);
        Sweep { late: Some(late), check: nothing_to_tell, ..sweep }.must_hold();
    }
}

#[test]
fn rwlock_release_of_a_reader_with_a_writer_asleep() {
    let sweep = sweep("rwlock: release of a reader; writer asleep", holds_to_read);
    Sweep { sleepers: &[write_a], check: nothing_to_tell, ..sweep }.must_hold();
}

/// The writer sleeps on the slot, and behind it a reader and a writer on the writer word.
#[test]
fn rwlock_release_of_a_reader_with_three_asleep() {
    let sweep = sweep("rwlock: release of a reader; three asleep", holds_to_read);
    let sweep = Sweep { sleepers: &[write_a, read_a, write_a], check: nothing_to_tell, ..sweep };
    sweep.must_hold();
    sweep.must_be_caught_unmended();
}

#[test]
fn rwlock_reads_again() {
    let sweep = sweep("rwlock: read twice, release twice", |world| {
        warm(world);
        Box::new(|| {
            let (first, second) = (world.a.read(), world.a.read());
            drop(first);
            drop(second);
        })
    });
    Sweep { check: nothing_to_tell, ..sweep }.must_hold();
}

#[test]
fn rwlock_reads_two_locks() {
    let sweep = sweep("rwlock: two locks read, out of order", |world| {
        warm(world);
        Box::new(|| {
            let (a, b) = (world.a.read(), world.b.read());
            drop(a);
            drop(b);
        })
    });
    Sweep { check: nothing_to_tell, ..sweep }.must_hold();
}

/// Behind a writer that waits, a reader passes through the writer word.
#[test]
fn rwlock_read_behind_a_writer() {
    let held: fn() -> World = || {
        let world = locks();
        std::mem::forget(world.a.write());
        world
    };
    let sweep = sweep("rwlock: read_timeout beside a writer", |world| {
        warm(world);
        Box::new(|| drop(world.a.read_timeout(Duration::from_micros(1))))
    });
    let check: fn(&World) -> Verdict = |world| match world.a.try_write() {
        Err(LockError::WouldDeadlock) => Ok(()),
        other => fail(format!("{other:?}")),
    };
    Sweep { world: &held, check, ..sweep }.must_hold();
}

// ------------------------------------------------------------------------------------- writers

#[test]
fn rwlock_write_alone() {
    let sweep = sweep("rwlock: write, release", writes);
    sweep.must_hold();
    sweep.must_be_caught_unmended();
}

#[test]
fn rwlock_write_with_late_arrivals() {
    for (name, late) in [
        ("rwlock: write, release; late writer", write_a as fn(&World) -> Verdict),
        ("rwlock: write, release; late reader", read_a),
    ] {
        Sweep { late: Some(late), ..sweep(name, writes) }.must_hold();
    }
}

#[test]
fn rwlock_release_of_a_writer_with_three_asleep() {
    let sweep = sweep("rwlock: release of a writer; three asleep", holds_to_write);
    let sweep = Sweep { sleepers: &[read_a, write_a, read_a], ..sweep };
    sweep.must_hold();
    sweep.must_be_caught_unmended();
}

#[test]
fn rwlock_release_of_a_writer_with_a_sleeper_and_a_late_arrival() {
    let sweep = sweep("rwlock: release of a writer; one asleep, late arrival", holds_to_write);
    Sweep { sleepers: &[read_a], late: Some(write_a), ..sweep }.must_hold();
}

#[test]
fn rwlock_downgrade() {
    let sweep = sweep("rwlock: write, downgrade, release; late reader", |world| {
        warm(world);
        Box::new(|| {
            let Ok(mut guard) = world.a.write() else { return };
            change(&mut guard);
            drop(WriteGuard::downgrade(guard));
        })
    });
    Sweep { late: Some(read_a), ..sweep }.must_hold();
}

#[test]
fn rwlock_downgrade_with_two_asleep() {
    let sweep = sweep("rwlock: downgrade, release; two asleep", |world| {
        warm(world);
        let mut guard = world.a.write().expect("free");
        Box::new(move || {
            change(&mut guard);
            drop(WriteGuard::downgrade(guard));
        })
    });
    Sweep { sleepers: &[write_a, read_a], ..sweep }.must_hold();
}

/// It waits for a reader, and gives up: it has changed nothing, wherever it dies.
#[test]
fn rwlock_write_that_times_out() {
    let times_out: Operation<World> = |world| {
        warm(world);
        Box::new(|| drop(world.a.write_timeout(Duration::from_micros(1))))
    };
    let sweep = sweep("rwlock: write_timeout beside a reader", times_out);
    Sweep { world: &read_by_us, check: only_we_read, ..sweep }.must_hold();
    let sweep = Sweep { name: "rwlock: write_timeout beside a reader; late reader", ..sweep };
    let sweep = Sweep { world: &read_by_us, check: only_we_read, late: Some(read_a), ..sweep };
    sweep.must_hold();
}

#[test]
fn rwlock_attempts_beside_a_reader() {
    let sweep = sweep("rwlock: try_write beside a reader", |world| {
        warm(world);
        Box::new(|| drop(world.a.try_write()))
    });
    Sweep { world: &read_by_us, check: only_we_read, late: Some(read_a), ..sweep }.must_hold();
}

/// The writer sleeps until the reader has gone, is woken, and dies; a reader sleeps behind it.
#[test]
fn rwlock_woken_writer_dies() {
    let sweep = sweep("rwlock: woken writer", |world| {
        warm(world);
        let guard = world.b.read().expect("free");
        Box::new(move || {
            if let Ok(mut guard) = world.a.write() {
                change(&mut guard);
            }
            drop(guard);
        })
    });
    let wake: fn(&World) = |world| {
        // The last of this thread's guards was forgotten: one more, and both go.
        world.a.read().map(release_twice).expect("read by us");
    };
    Sweep { world: &read_by_us, wake: Some(wake), sleepers: &[read_a, write_a], ..sweep }
        .must_hold();
}

/// Drops a guard, and the forgotten one before it.
fn release_twice(guard: outlast::ReadGuard<'_, [u64; 2]>) {
    // SAFETY: a guard of the same word and thread was forgotten; this is its copy.
    let forgotten = unsafe { std::ptr::read(&raw const guard) };
    drop(guard);
    drop(forgotten);
}

/// Both kinds sleep on a writer that lets go; the first of them is woken, and dies. The last must
/// get the lock all the same.
fn heir(name: &str, lock: Operation<World>, barger: bool) {
    Heir { name, world: &locks, memory, prepare: warm, lock, barger }.must_hold();
}

fn take_to_write(world: &World) -> Box<dyn FnOnce() + '_> {
    let mut guard = match world.a.write() {
        Ok(guard) => guard,
        Err(error) => error.into_guard().expect("taken"),
    };
    WriteGuard::mark_consistent(&mut guard);
    Box::new(move || drop(guard))
}

#[test]
fn rwlock_the_woken_heir_dies() {
    heir("rwlock: heir", take_to_write, false);
}

#[test]
fn rwlock_the_woken_heir_dies_while_a_barger_holds() {
    heir("rwlock: heir, barger", take_to_write, true);
}

// ------------------------------------------------------------------------------------- controls

/// A negative control: the same lock with a number of readers instead of slots, which does not say
/// whose they are.
#[derive(Debug)]
struct Counted {
    writer: AtomicU32,
    readers: AtomicU32,
}

#[test]
fn counted_readers_are_caught() {
    Sweep::new(
        "control: readers are counted",
        &shared_page::<Counted>,
        |lock: &&'static Counted| {
            [&lock.writer, &lock.readers]
                .map(|word| word.load(SeqCst))
                .map(u32::to_ne_bytes)
                .concat()
        },
        |lock| {
            Box::new(|| {
                lock.readers.fetch_add(1, SeqCst);
                if lock.writer.load(SeqCst) == 0 {
                    lock.readers.fetch_sub(1, SeqCst);
                }
            })
        },
        |lock| match lock.readers.load(SeqCst) {
            0 => Ok(()),
            _ => Err("no writer will ever get in".into()),
        },
    )
    .must_be_caught();
}
