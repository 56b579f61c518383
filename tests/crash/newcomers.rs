//! Sweeps of forked children that are no peers yet: the verb under test is their first use of the
//! segment. The survivors hear of the death only if the verb makes its caller a peer before the
//! change, or changes and wakes in one step.
use crate::stepper::patience;
use crate::sweep::{Act, Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::log::FixedJournal;
use outlast::spsc::FixedRing;
use outlast::{
    Barrier, Channel, Condition, Event, FixedByteQueue, FixedPriorityQueue, FixedQueue, Latch,
    Lock, LockError, LockGuard, OnceCell, Semaphore, Shareable, Shared, Spin,
};
use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// A segment, what a newcomer does to it, and what other processes wait for there.
struct Scene<T: Shareable> {
    shared: Shared<T>,
    verb: fn(&T),
    /// Whether the verb's change is there.
    is_changed: fn(&T) -> bool,
    /// What a sleeper does. It must return in time, with any result.
    wait: fn(&T),
    /// The number of sleepers that came back: they may have taken the change.
    back: Shared<AtomicU32>,
}

impl<T: Shareable + fmt::Debug> fmt::Debug for Scene<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} came back", *self.shared, self.back.load(SeqCst))
    }
}

fn shared<T: Shareable + Sync + 'static>(value: T) -> Shared<T> {
    options().anonymous(value).expect("a segment")
}

fn verb<T: Shareable>(scene: &Scene<T>) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    Box::new(|| (scene.verb)(&scene.shared))
}

fn sleeper<T: Shareable>(scene: &Scene<T>) -> Verdict {
    Spin::Never.set();
    (scene.wait)(&scene.shared);
    scene.back.fetch_add(1, SeqCst);
    Ok(())
}

/// A survivor makes the change that the victim did not make. A change that was made before wakes no
/// sleeper again. A change that the victim left half made counts as made until a peer has recovered
/// from its death.
fn change_if_unchanged<T: Shareable>(scene: &Scene<T>) -> Verdict {
    let began = Instant::now();
    while scene.back.load(SeqCst) == 0 && began.elapsed() < patience() {
        if !(scene.is_changed)(&scene.shared) {
            (scene.verb)(&scene.shared);
            break;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn is_changed_in_the_end<T: Shareable>(scene: &Scene<T>) -> Verdict {
    let is_changed = scene.back.load(SeqCst) > 0 || (scene.is_changed)(&scene.shared);
    if is_changed { Ok(()) } else { fail("no sleeper returned, and nothing has changed") }
}

/// The verb, what tells that it has been done, and what `SLEEPERS` others wait for meanwhile.
struct Newcomer<'a, T: Shareable, const SLEEPERS: usize> {
    name: &'a str,
    world: fn() -> Shared<T>,
    verb: fn(&T),
    is_changed: fn(&T) -> bool,
    wait: fn(&T),
}

impl<T: Shareable + Sync + fmt::Debug + 'static, const SLEEPERS: usize> Newcomer<'_, T, SLEEPERS> {
    fn with_sweep(&self, run: impl FnOnce(Sweep<'_, Scene<T>>)) {
        let scene = || Scene {
            shared: (self.world)(),
            back: Shared::anonymous(AtomicU32::new(0)).expect("a segment"),
            verb: self.verb,
            is_changed: self.is_changed,
            wait: self.wait,
        };
        let operation: Operation<Scene<T>> = verb;
        let memory: fn(&Scene<T>) -> Vec<u8> = |scene| memory(&scene.shared);
        let check: Act<Scene<T>> = is_changed_in_the_end;
        let sweep = Sweep::new(self.name, &scene, memory, operation, check);
        let sleepers = &[sleeper as Act<Scene<T>>; SLEEPERS];
        let after: Option<Act<Scene<T>>> = Some(change_if_unchanged);
        run(Sweep { newcomer: true, sleepers, after, ..sweep });
    }

    fn must_hold(&self) {
        self.with_sweep(|sweep| sweep.must_hold());
    }
}

#[test]
fn event_set() {
    Newcomer::<Event, 2> {
        name: "newcomer: event, set",
        world: || shared(Event::manual(false)),
        verb: |event| _ = event.set(),
        is_changed: Event::is_set,
        wait: |event| _ = event.wait_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn semaphore_release() {
    Newcomer::<Semaphore, 1> {
        name: "newcomer: semaphore, release",
        world: || shared(Semaphore::new(0)),
        verb: |permits| permits.release(1).expect("room"),
        is_changed: |permits| permits.available() > 0,
        wait: |permits| permits.acquire_timeout(patience()).expect("a permit").forget(),
    }
    .must_hold();
}

#[test]
fn barrier_abort() {
    Newcomer::<Barrier, 2> {
        name: "newcomer: barrier, abort",
        world: || shared(Barrier::new(3)),
        verb: Barrier::abort,
        is_changed: Barrier::is_broken,
        wait: |barrier| _ = barrier.wait_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn barrier_reset() {
    Newcomer::<Barrier, 2> {
        name: "newcomer: barrier, reset",
        world: || shared(Barrier::new(3)),
        verb: Barrier::reset,
        is_changed: |barrier| barrier.waiting() == 0,
        wait: |barrier| _ = barrier.wait_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn latch_count_down() {
    Newcomer::<Latch, 2> {
        name: "newcomer: latch, count_down",
        world: || shared(Latch::new(1)),
        verb: |latch| latch.count_down(1),
        is_changed: Latch::is_open,
        wait: |latch| _ = latch.wait_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn once_cell_set() {
    Newcomer::<OnceCell<u64>, 2> {
        name: "newcomer: once cell, set",
        world: || shared(OnceCell::new()),
        verb: |cell| _ = cell.set(1),
        is_changed: |cell| cell.get() == Ok(Some(&1)),
        wait: |cell| _ = cell.wait_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn queue_send() {
    Newcomer::<FixedQueue<u64, 4>, 1> {
        name: "newcomer: queue, send",
        world: || shared(FixedQueue::new()),
        verb: |queue| queue.send(1).expect("open"),
        is_changed: |queue| !queue.is_empty(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn queue_close() {
    Newcomer::<FixedQueue<u64, 4>, 2> {
        name: "newcomer: queue, close",
        world: || shared(FixedQueue::new()),
        verb: |queue| queue.close(),
        is_changed: |queue| queue.is_closed(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn priority_send() {
    Newcomer::<FixedPriorityQueue<u64, 2, 4>, 1> {
        name: "newcomer: priority queue, send",
        world: || shared(FixedPriorityQueue::new()),
        verb: |queue| queue.send(1, 1).expect("open"),
        is_changed: |queue| !queue.is_empty(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn priority_close() {
    Newcomer::<FixedPriorityQueue<u64, 2, 4>, 2> {
        name: "newcomer: priority queue, close",
        world: || shared(FixedPriorityQueue::new()),
        verb: |queue| queue.close(),
        is_changed: |queue| queue.is_closed(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn bytes_send() {
    Newcomer::<FixedByteQueue<16>, 1> {
        name: "newcomer: byte queue, send",
        world: || shared(FixedByteQueue::new()),
        verb: |queue| queue.send(b"one").expect("open"),
        is_changed: |queue| !queue.is_empty(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

#[test]
fn bytes_close() {
    Newcomer::<FixedByteQueue<16>, 2> {
        name: "newcomer: byte queue, close",
        world: || shared(FixedByteQueue::new()),
        verb: |queue| queue.close(),
        is_changed: |queue| queue.is_closed(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    }
    .must_hold();
}

// The process that makes a channel stays its sender: otherwise a receiver would not wait.

#[test]
fn channel_close() {
    Newcomer::<Channel<FixedQueue<u64, 4>>, 2> {
        name: "newcomer: channel, close",
        world: || {
            let world = shared(Channel::new(FixedQueue::new()));
            std::mem::forget((*world).sender().expect("room"));
            world
        },
        verb: |channel| channel.close(),
        is_changed: |channel| channel.is_closed(),
        wait: |channel| _ = channel.receiver().map(|receiver| receiver.recv_timeout(patience())),
    }
    .must_hold();
}

#[test]
fn byte_channel_close() {
    Newcomer::<Channel<FixedByteQueue<16>>, 2> {
        name: "newcomer: byte channel, close",
        world: || {
            let world = shared(Channel::new(FixedByteQueue::new()));
            std::mem::forget((*world).sender().expect("room"));
            world
        },
        verb: |channel| channel.close(),
        is_changed: |channel| channel.is_closed(),
        wait: |channel| _ = channel.receiver().map(|receiver| receiver.recv_timeout(patience())),
    }
    .must_hold();
}

#[test]
fn priority_channel_close() {
    Newcomer::<Channel<FixedPriorityQueue<u64, 2, 4>>, 2> {
        name: "newcomer: priority channel, close",
        world: || {
            let world = shared(Channel::new(FixedPriorityQueue::new()));
            std::mem::forget((*world).sender().expect("room"));
            world
        },
        verb: Channel::close,
        is_changed: Channel::is_closed,
        wait: |channel| _ = channel.receiver().map(|receiver| receiver.recv_timeout(patience())),
    }
    .must_hold();
}

#[test]
fn ring_close() {
    Newcomer::<FixedRing<u64, 4>, 1> {
        name: "newcomer: ring, close",
        world: || shared(FixedRing::new()),
        verb: |ring| ring.close(),
        is_changed: |ring| ring.is_closed(),
        wait: |ring| _ = ring.consumer().map(|consumer| consumer.recv_timeout(patience())),
    }
    .must_hold();
}

#[test]
fn journal_close() {
    Newcomer::<FixedJournal<4>, 1> {
        name: "newcomer: journal, close",
        world: || shared(FixedJournal::new()),
        verb: |journal| journal.close(),
        is_changed: |journal| journal.is_closed(),
        wait: |journal| _ = journal.records().next(),
    }
    .must_hold();
}

/// A closer that is frozen at the worst moment, so that nothing is mended, must be caught.
#[test]
fn a_change_that_is_not_told_is_caught() {
    let closes = Newcomer::<FixedQueue<u64, 4>, 2> {
        name: "newcomer: queue, close",
        world: || shared(FixedQueue::new()),
        verb: |queue| queue.close(),
        is_changed: |queue| queue.is_closed(),
        wait: |queue| _ = queue.recv_timeout(patience()),
    };
    closes.with_sweep(|sweep| sweep.must_be_caught_unmended());
}

/// The waiters look at a value in one segment, and sleep on an object in another.
#[derive(Debug)]
struct Pair {
    value: Shared<Lock<u64>>,
    changed: Shared<Condition>,
}

impl Pair {
    fn lock(&self) -> LockGuard<'_, u64> {
        match self.value.lock() {
            Ok(guard) => guard,
            Err(LockError::OwnerDied(mut guard)) => {
                LockGuard::mark_consistent(&mut guard);
                guard
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn change(&self) {
        *self.lock() = 1;
        self.changed.notify_all();
    }

    fn is_changed(&self) -> bool {
        *self.lock() == 1
    }

    fn wait(&self) -> Verdict {
        Spin::Never.set();
        let mut guard = self.lock();
        while *guard == 0 {
            guard = match self.changed.wait_timeout(guard, patience()) {
                Ok((_, timeout)) if timeout.timed_out() => return fail("not woken"),
                Ok((guard, _)) => guard,
                Err(error) => error.into_guard().ok_or("no guard")?.0,
            };
        }
        Ok(())
    }
}

/// A newcomer changes a value in one segment, and is killed before it notifies the sleepers in
/// another.
#[test]
fn a_lock_in_one_segment_and_a_condition_in_another() {
    let pair = || Pair { value: shared(Lock::new(0)), changed: shared(Condition::new()) };
    let memory: fn(&Pair) -> Vec<u8> = |pair| [memory(&pair.value), memory(&pair.changed)].concat();
    let changes: Operation<Pair> = |pair| {
        Spin::Never.set();
        Box::new(|| pair.change())
    };
    let check: Act<Pair> =
        |pair| if pair.is_changed() { Ok(()) } else { fail("nothing has changed") };
    let after: Act<Pair> = |pair| {
        if !pair.is_changed() {
            pair.change();
        }
        Ok(())
    };
    let name = "newcomer: a lock here, a condition there";
    let sweep = Sweep::new(name, &pair, memory, changes, check);
    let sleepers: &[Act<Pair>] = &[Pair::wait, Pair::wait];
    Sweep { newcomer: true, sleepers, after: Some(after), ..sweep }.must_hold();
}
