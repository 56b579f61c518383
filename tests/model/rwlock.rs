//! Models of `RwLock`. It has two slots here, so that readers meet on one, and run out of them.
use crate::{SOON, asleep, check, check_up_to, join, killed_anywhere, share, spawn};
use core::time::Duration;
use outlast::{LockError, ReadGuard, RwLock, WriteGuard};

type Pair = RwLock<[u32; 2]>;

fn pair() -> outlast::Shared<Pair> {
    share(RwLock::new([0; 2]))
}

fn look(value: &[u32; 2]) -> u32 {
    assert_eq!(value[0], value[1], "torn");
    value[0]
}

fn add_one(lock: &Pair) {
    let mut value = lock.write().unwrap();
    value[0] += 1;
    value[1] += 1;
}

fn read(lock: &Pair) -> u32 {
    look(&lock.read().unwrap())
}

#[test]
fn rwlock_keeps_writers_apart() {
    check(|| {
        let lock = pair();
        let others = [spawn(&lock, add_one), spawn(&lock, add_one)];
        add_one(&lock);
        join(others);
        assert_eq!(read(&lock), 3);
    });
}

/// The store and the load of each side: at least one sees the other.
#[test]
fn rwlock_keeps_a_reader_and_a_writer_apart() {
    check(|| {
        let lock = pair();
        let writer = spawn(&lock, add_one);
        assert!(read(&lock) <= 1);
        assert!(read(&lock) <= 1);
        writer.join().unwrap();
        assert_eq!(read(&lock), 1);
    });
}

#[test]
fn rwlock_keeps_readers_and_a_writer_apart() {
    check_up_to(1, || {
        let lock = pair();
        let readers = [spawn(&lock, read), spawn(&lock, read)];
        add_one(&lock);
        assert!(join(readers).into_iter().all(|seen| seen <= 1));
        assert_eq!(read(&lock), 1);
    });
}

#[test]
fn rwlock_keeps_those_apart_who_only_try() {
    check(|| {
        let lock = pair();
        let tries = |lock: &Pair| match lock.try_write() {
            Ok(mut value) => {
                value[0] += 1;
                value[1] += 1;
                1
            }
            Err(error) => {
                assert!(matches!(error, LockError::WouldBlock));
                0
            }
        };
        let reads = |lock: &Pair| match lock.try_read() {
            Ok(value) => assert!(look(&value) <= 2),
            Err(error) => assert!(matches!(error, LockError::WouldBlock)),
        };
        let (writer, reader) = (spawn(&lock, tries), spawn(&lock, reads));
        let written = tries(&lock) + writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(read(&lock), written);
    });
}

/// The main thread reads when another does, in every order: neither waits for the other.
#[test]
fn rwlock_lets_readers_run_together() {
    check(|| {
        let lock = pair();
        let mine = lock.read().unwrap();
        let other = spawn(&lock, read);
        other.join().unwrap();
        drop(mine);
    });
}

#[test]
fn rwlock_shows_what_the_writer_wrote() {
    check(|| {
        let lock = pair();
        let writer = spawn(&lock, |lock| {
            add_one(lock);
            add_one(lock);
        });
        let (first, second) = (read(&lock), read(&lock));
        assert!(first <= second && second <= 2);
        writer.join().unwrap();
    });
}

#[test]
fn rwlock_wakes_a_writer_that_waits_for_a_reader() {
    check(|| {
        let lock = pair();
        let held = lock.read().unwrap();
        let writer = spawn(&lock, add_one);
        look(&held);
        drop(held);
        writer.join().unwrap();
        assert_eq!(read(&lock), 1);
    });
}

/// Behind a writer that waits for a reader, a reader and another writer wait.
#[test]
fn rwlock_wakes_everybody_behind_a_writer() {
    check_up_to(1, || {
        let lock = pair();
        let held = lock.read().unwrap();
        let writer = asleep(|| spawn(&lock, add_one));
        let others = [spawn(&lock, add_one), spawn(&lock, |lock| drop(lock.read()))];
        drop(held);
        writer.join().unwrap();
        join(others);
        assert_eq!(read(&lock), 2);
    });
}

#[test]
fn rwlock_wakes_every_reader_behind_a_writer() {
    check_up_to(1, || {
        let lock = pair();
        let held = lock.write().unwrap();
        let readers = [spawn(&lock, read), spawn(&lock, read), spawn(&lock, read)];
        drop(held);
        join(readers);
    });
}

#[test]
fn rwlock_timeout_of_a_writer_lets_the_readers_in() {
    check(|| {
        let lock = pair();
        let held = lock.read().unwrap();
        let timed = spawn(&lock, |lock| match lock.write_timeout(SOON) {
            Ok(mut value) => {
                value[0] += 1;
                value[1] += 1;
            }
            Err(error) => assert!(matches!(error, LockError::TimedOut(_))),
        });
        let patient = spawn(&lock, read);
        drop(held);
        timed.join().unwrap();
        patient.join().unwrap();
        assert!(read(&lock) <= 1);
        add_one(&lock);
    });
}

/// A reader that gives up swallows no wake that another waits for.
#[test]
fn rwlock_timeout_of_a_reader_loses_no_wake() {
    check(|| {
        let lock = pair();
        let held = lock.write().unwrap();
        let timed = spawn(&lock, |lock| match lock.read_timeout(SOON) {
            Ok(value) => drop(value),
            Err(error) => assert!(matches!(error, LockError::TimedOut(_))),
        });
        let patient = spawn(&lock, add_one);
        drop(held);
        timed.join().unwrap();
        patient.join().unwrap();
        assert_eq!(read(&lock), 1);
    });
}

#[test]
fn rwlock_reads_again_while_a_writer_waits() {
    check(|| {
        let lock = pair();
        let first = lock.read().unwrap();
        let writer = spawn(&lock, add_one);
        let second = lock.read().unwrap();
        assert_eq!((look(&first), look(&second)), (0, 0));
        drop(first);
        assert_eq!(look(&second), 0);
        drop(second);
        writer.join().unwrap();
        assert_eq!(read(&lock), 1);
    });
}

/// Two readers that both want to write are both refused, instead of waiting for each other.
#[test]
fn rwlock_refuses_readers_that_want_to_write() {
    check(|| {
        let lock = pair();
        let ask = |lock: &Pair| {
            let held = lock.read().unwrap();
            assert!(matches!(lock.write(), Err(LockError::WouldDeadlock)));
            look(&held);
        };
        let other = spawn(&lock, ask);
        ask(&lock);
        other.join().unwrap();
        add_one(&lock);
    });
}

#[test]
fn rwlock_goes_from_writing_to_reading_without_a_gap() {
    check_up_to(1, || {
        let lock = pair();
        let others = [spawn(&lock, add_one), spawn(&lock, |lock| drop(lock.read()))];
        let mut value = lock.write().unwrap();
        value[0] += 1;
        value[1] += 1;
        let written = look(&value);
        let value = WriteGuard::downgrade(value);
        assert_eq!(look(&value), written);
        drop(value);
        join(others);
        assert_eq!(read(&lock), 2);
    });
}

/// Two readers have taken both slots, and give them up only after a writer has become a reader. It
/// reads by the writer word, and no other writer may enter.
#[test]
fn rwlock_goes_from_writing_to_reading_without_a_slot() {
    check(|| {
        let lock = pair();
        let value = lock.write().unwrap();
        let passing = [(); 2].map(|()| spawn(&lock, |lock| drop(lock.try_read())));
        spawn(&lock, |_| ()).join().unwrap(); // the others may run here
        let value = WriteGuard::downgrade(value);
        join(passing);
        let writer = spawn(&lock, |lock| assert!(lock.try_write().is_err()));
        writer.join().unwrap();
        assert_eq!(look(&value), 0);
    });
}

/// Three readers at the same time, and two slots: one reader uses the writer word. Then a writer.
#[test]
fn rwlock_has_room_for_more_readers_than_slots() {
    check_up_to(1, || {
        let lock = pair();
        let held = lock.read().unwrap();
        let others = [spawn(&lock, read), spawn(&lock, read)];
        add_one_after(&lock, held);
        join(others);
        assert_eq!(read(&lock), 1);
    });
}

fn add_one_after(lock: &Pair, held: ReadGuard<'_, [u32; 2]>) {
    look(&held);
    drop(held);
    add_one(lock);
}

/// Both slots stay taken. Two readers, and a writer that times out, use the writer word.
#[test]
fn rwlock_without_slots_wakes_everybody() {
    check_up_to(1, || {
        let lock = pair();
        let holders = [(); 2].map(|()| {
            spawn(&lock, |lock| core::mem::forget(lock.read().unwrap())) // until the model ends
        });
        join(holders);
        let readers = [spawn(&lock, read), spawn(&lock, read)];
        let writer = lock.write_timeout(Duration::ZERO);
        assert!(matches!(writer, Err(LockError::TimedOut(_))));
        join(readers);
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    });
}

// -------------------------------------------------------------------------------------- deaths

/// Adds one, and repairs what a dead writer left.
fn add_one_in_any_case(lock: &Pair) {
    let mut value = match lock.write() {
        Ok(value) => value,
        Err(LockError::OwnerDied(mut value)) => {
            value[1] = value[0];
            WriteGuard::mark_consistent(&mut value);
            value
        }
        Err(error) => panic!("{error}"),
    };
    look(&value);
    value[0] += 1;
    value[1] += 1;
}

/// A reader that is told nothing sees a whole value.
fn read_in_any_case(lock: &Pair) {
    match lock.read() {
        Ok(value) => drop(look(&value)),
        Err(error) => assert!(matches!(error, LockError::OwnerDied(_))),
    }
}

/// The victim goes about it with an atomic operation between the two halves of the change.
fn add_one_slowly(lock: &Pair) {
    let Ok(mut value) = lock.write() else { return };
    value[0] += 1;
    core::hint::black_box(lock.is_poisoned()); // a place to die at
    value[1] += 1;
}

#[test]
fn rwlock_outlasts_a_writer_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let victim = victim.spawn(&lock, add_one_slowly);
        let other = spawn(&lock, add_one_in_any_case);
        read_in_any_case(&lock);
        other.join().unwrap();
        let life = victim.join().unwrap();
        add_one_in_any_case(&lock);
        let sum = read(&lock);
        assert!(sum == 3 || (2..=3).contains(&sum) && life.result.is_none());
    });
}

#[test]
fn rwlock_outlasts_a_reader_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let victim = victim.spawn(&lock, |lock| {
            let first = lock.read().unwrap();
            let second = lock.read().unwrap();
            drop(first);
            look(&second);
        });
        let other = spawn(&lock, add_one);
        add_one(&lock);
        other.join().unwrap();
        victim.join().unwrap();
        assert_eq!(read(&lock), 2);
        assert!(!lock.is_poisoned(), "a reader changes nothing");
    });
}

/// It waits for a reader, as a writer behind which others wait.
#[test]
fn rwlock_outlasts_a_waiting_writer_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let held = lock.read().unwrap();
        let victim = victim.spawn(&lock, |lock| drop(lock.write_timeout(SOON)));
        let other = spawn(&lock, read_in_any_case);
        look(&held);
        drop(held);
        victim.join().unwrap();
        other.join().unwrap();
        add_one_in_any_case(&lock);
        assert_eq!(read(&lock), 1);
    });
}

#[test]
fn rwlock_outlasts_a_waiting_reader_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let held = lock.write().unwrap();
        let victim = victim.spawn(&lock, |lock| drop(lock.read()));
        let other = spawn(&lock, add_one);
        drop(held);
        victim.join().unwrap();
        other.join().unwrap();
        assert_eq!(read(&lock), 1);
        assert!(!lock.is_poisoned());
    });
}

/// A writer becomes a reader. Readers see all of what it wrote before.
#[test]
fn rwlock_outlasts_a_downgrade_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let victim = victim.spawn(&lock, |lock| {
            let Ok(mut value) = lock.write() else { return };
            value[0] += 1;
            core::hint::black_box(lock.is_poisoned()); // a place to die at
            value[1] += 1;
            let value = WriteGuard::downgrade(value);
            look(&value);
        });
        let other = spawn(&lock, add_one_in_any_case);
        other.join().unwrap();
        victim.join().unwrap();
        add_one_in_any_case(&lock);
        assert!((2..=3).contains(&read(&lock)));
    });
}

/// The readers have no slot but the victim's, if it dies.
#[test]
fn rwlock_outlasts_a_reader_without_a_slot_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = pair();
        let holders = [(); 2].map(|()| {
            spawn(&lock, |lock| core::mem::forget(lock.read().unwrap())) // until the model ends
        });
        join(holders);
        let victim = victim.spawn(&lock, |lock| {
            let first = lock.read().unwrap();
            let second = lock.read().unwrap();
            drop(first);
            look(&second);
        });
        read(&lock);
        victim.join().unwrap();
        read(&lock);
        assert!(!lock.is_poisoned(), "a reader changes nothing");
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    });
}
