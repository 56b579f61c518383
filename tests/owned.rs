//! `Owned`: guards that keep their segment, in structs and in threads.
#![cfg(not(outlast_loom))]
mod common;

use common::{exit_now, fork_child, ms, watch};
use outlast::{
    Channel, Condition, FixedQueue, Latch, Lock, LockError, LockGuard, Member, Owned, OwnedPermit,
    OwnedSemaphore, Permit, PriorityQueue, Queue, Receiver, ReentrantLock, RwLock, Semaphore,
    Shared, WriteGuard, bytes,
};

outlast::shared! {
    #[derive(Debug)]
    struct Office {
        till: Lock<u64>, board: RwLock<u64>, inner: ReentrantLock<u64>, seats: Semaphore,
        rooms: OwnedSemaphore, inbox: FixedQueue<u64, 4>, done: Latch, changed: Condition,
    }
}

fn office() -> (Shared<Office>, Shared<Office>) {
    let here = Shared::anonymous(Office {
        till: Lock::new(1),
        board: RwLock::new(2),
        inner: ReentrantLock::new(3),
        seats: Semaphore::new(1),
        rooms: OwnedSemaphore::new(1),
        inbox: FixedQueue::new(),
        done: Latch::new(1),
        changed: Condition::new(),
    })
    .unwrap();
    let there = Shared::from_fd(here.try_clone_fd().unwrap()).unwrap();
    (here, there)
}

/// A turn at the till, which keeps what it needs.
struct Turn {
    till: Owned<LockGuard<'static, u64>, Lock<u64>>,
    board: Option<Owned<WriteGuard<'static, u64>, RwLock<u64>>>,
}

#[test]
fn guards_in_a_struct() {
    let (here, there) = office();
    let _watchdog = watch("guards_in_a_struct", &there);
    let mut turn = Turn {
        till: here.project(|office| &office.till).owned(Lock::lock).unwrap(),
        board: here.project(|office| &office.board).owned(RwLock::write).ok(),
    };
    drop(here);
    *turn.till += 10;
    **turn.board.as_mut().unwrap() += 20;
    // Another thread finds both taken, through either mapping.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(matches!(there.till.try_lock(), Err(LockError::WouldBlock)));
            assert!(matches!(there.board.try_read(), Err(LockError::WouldBlock)));
            let through_it = Owned::shared(turn.board.as_ref().unwrap()).clone();
            let late = through_it.owned_with(RwLock::read_timeout, ms(20));
            assert!(late.is_err());
        });
    });
    turn.board = None;
    assert_eq!(*there.board.read().unwrap(), 22);
    drop(turn);
    assert_eq!(*there.till.lock().unwrap(), 11);
    let inner = there.project(|office| &office.inner);
    let mut twice = (inner.owned(ReentrantLock::lock).unwrap(), inner.lock().unwrap());
    Owned::with(&mut twice.0, |guard| guard.set(33));
    assert_eq!((twice.1.get(), Owned::with(&mut twice.0, |guard| guard.depth())), (33, 2));
}

/// An error that has a guard inside has an owned one.
#[test]
fn guards_of_the_dead() {
    let (here, there) = office();
    let _watchdog = watch("guards_of_the_dead", &there);
    let child = fork_child(|| {
        core::mem::forget(there.till.lock().unwrap());
        exit_now(0);
    });
    child.succeeds();
    let till = here.project(|office| &office.till);
    drop(here);
    let taken = till.owned(Lock::lock);
    drop(till);
    let Err(LockError::OwnerDied(mut guard)) = taken else { panic!("{taken:?}") };
    Owned::with(&mut guard, |guard| {
        LockGuard::mark_consistent(guard);
    });
    *guard += 1;
    drop(guard);
    assert_eq!(*there.till.lock().unwrap(), 2);
}

/// What belongs to the process goes to another thread, and outlives every other handle.
#[test]
fn into_threads() {
    let (here, there) = office();
    let _watchdog = watch("into_threads", &there);
    there.inbox.send(7).unwrap();
    let seat: Owned<Permit<'static>, _> =
        here.project(|office| &office.seats).owned(Semaphore::acquire).unwrap();
    let room: Owned<OwnedPermit<'static>, _> =
        here.project(|office| &office.rooms).owned(OwnedSemaphore::acquire).unwrap();
    let member: Owned<Member<'static>, _> =
        here.project(|office| &office.done).owned_with(Latch::join, 1).unwrap();
    let inbox = here.project(|office| &*office.inbox);
    let job = inbox.owned(Queue::recv_ack).unwrap();
    let mut loan = inbox.owned(Queue::loan).unwrap();
    assert!(inbox.owned_with(Queue::recv_ack_timeout, ms(5)).is_err());
    drop((here, inbox));
    let thread = std::thread::spawn(move || {
        *loan = 8;
        Owned::finish(loan, |loan| loan.send()).unwrap();
        assert_eq!(*job, 7);
        Owned::finish(job, |job| job.ack()).unwrap();
        Owned::finish(member, |member| member.done());
        (seat, room)
    });
    let (seat, room) = thread.join().unwrap();
    assert_eq!((there.seats.available(), there.rooms.available()), (0, 0));
    drop((seat, room));
    assert_eq!((there.seats.available(), there.rooms.available()), (1, 1));
    assert_eq!(there.done.remaining(), 1);
    there.done.count_down(1);
    there.done.wait().unwrap();
    assert_eq!(there.inbox.recv(), Ok(8));
    there.inbox.join().unwrap();
}

/// Dropped without an answer, a delivery comes back.
#[test]
fn dropped_without_an_answer() {
    let (here, there) = office();
    let _watchdog = watch("dropped_without_an_answer", &there);
    here.inbox.send(7).unwrap();
    let inbox = here.project(|office| &*office.inbox);
    drop(here);
    let mut job = inbox.owned(Queue::recv_ack).unwrap();
    drop(inbox);
    assert_eq!(Owned::with(&mut job, |job| job.attempts()), 0);
    assert!(there.inbox.try_recv().is_err());
    drop(job);
    assert_eq!(there.inbox.recv(), Ok(7));
}

/// Deliveries of every kind of queue, and of receivers, outlive the handles that they came from.
#[test]
fn deliveries_of_every_kind() {
    let levels = Shared::<PriorityQueue<u64, 2>>::with_capacity(4).unwrap();
    let texts = Shared::<outlast::ByteQueue>::with_capacity(64).unwrap();
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4).unwrap();
    let urgent = Shared::<Channel<PriorityQueue<u64, 2>>>::with_capacity(4).unwrap();
    let lines = Shared::<Channel<outlast::ByteQueue>>::with_capacity(64).unwrap();
    let _watchdogs =
        (watch("deliveries_of_every_kind", &levels), watch("deliveries_of_every_kind", &channel));
    levels.send(1, 2).unwrap();
    texts.send(b"three").unwrap();
    let senders = (channel.sender().unwrap(), urgent.sender().unwrap(), lines.sender().unwrap());
    senders.0.send(4).unwrap();
    senders.1.send(1, 5).unwrap();
    senders.2.send(b"six").unwrap();
    senders.2.send(b"seven").unwrap();

    let level = levels.owned(PriorityQueue::recv_ack).unwrap();
    let text: Owned<bytes::Delivery<'static>, _> =
        texts.owned(outlast::ByteQueue::recv_ack).unwrap();
    let receivers =
        (channel.receiver().unwrap(), urgent.receiver().unwrap(), lines.receiver().unwrap());
    let message = receivers.0.owned(Receiver::recv_ack).unwrap();
    assert!(receivers.0.owned_with(Receiver::recv_ack_timeout, ms(1)).is_err());
    let alarm = receivers.1.owned_with(Receiver::recv_ack_timeout, common::PATIENCE).unwrap();
    let line = receivers.2.owned(Receiver::recv_ack).unwrap();
    let in_place = receivers.2.owned(Receiver::recv_ref).unwrap();
    let again = Shared::<Channel<Queue<u64>>>::from_fd(channel.try_clone_fd().unwrap()).unwrap();
    drop((receivers, senders, levels, texts, channel, urgent, lines));
    let thread = std::thread::spawn(move || {
        assert_eq!((*level, *message, *alarm), (2, 4, 5));
        assert_eq!((&*text, &*line, &*in_place), (&b"three"[..], &b"six"[..], &b"seven"[..]));
        assert_eq!(Owned::finish(level, |level| level.ack()), Ok(2));
        Owned::finish(text, |text| text.ack()).unwrap();
        assert_eq!(Owned::finish(alarm, |alarm| alarm.ack()), Ok(5));
        Owned::finish(line, |line| line.ack()).unwrap();
        drop(message); // without an answer: it comes back
    });
    thread.join().unwrap();
    let job = again.receiver().unwrap().owned(Receiver::try_recv_ack).unwrap();
    assert_eq!(Owned::finish(job, |job| (job.attempts(), job.ack())), (1, Ok(4)));
}

#[cfg(feature = "serde")]
#[test]
fn deliveries_of_values() {
    use outlast::ValueQueue;
    let texts = Shared::<ValueQueue<String>>::with_capacity(64).unwrap();
    let channel = Shared::<Channel<ValueQueue<String>>>::with_capacity(64).unwrap();
    let _watchdog = watch("deliveries_of_values", &texts);
    texts.send(&"one".to_owned()).unwrap();
    channel.sender().unwrap().send(&"two".to_owned()).unwrap();
    let one = texts.owned(ValueQueue::recv_ack).unwrap();
    let two = channel.receiver().unwrap().owned(Receiver::recv_ack).unwrap();
    drop((texts, channel));
    let thread = std::thread::spawn(move || {
        assert_eq!((one.as_str(), two.as_str()), ("one", "two"));
        Owned::finish(two, |two| two.ack()).unwrap();
        Owned::finish(one, |one| one.ack()).unwrap()
    });
    assert_eq!(thread.join().unwrap(), "one");
}

/// An owned guard waits on a condition, and keeps the mapping while it does.
#[test]
fn waiting_with_an_owned_guard() {
    let (here, there) = office();
    let _watchdog = watch("waiting_with_an_owned_guard", &there);
    let changed = here.project(|office| &office.changed);
    let guard = here.project(|office| &office.till).owned(Lock::lock).unwrap();
    let deep = here.project(|office| &office.inner).owned(ReentrantLock::lock).unwrap();
    drop(here);
    let notifier = std::thread::spawn(move || {
        *there.till.lock().unwrap() += 1; // free only while the other thread waits
        there.changed.notify_all();
        let deep = there.inner.lock().unwrap();
        deep.set(30);
        there.changed.notify_all();
    });
    let guard = changed.wait_while(guard, |value| *value == 1).unwrap();
    assert_eq!(*guard, 2);
    drop(guard);
    let (mut deep, ended) =
        changed.wait_timeout_while(deep, common::PATIENCE, |value| *value == 3).unwrap();
    assert!(!ended.timed_out());
    assert_eq!(Owned::with(&mut deep, |deep| deep.get()), 30);
    notifier.join().unwrap();
    let (guard, ended) = changed.wait_timeout(deep, ms(1)).unwrap();
    assert!(ended.timed_out());
    drop(guard);
}
