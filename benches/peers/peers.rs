//! The primitives beside those of other crates. Those marked `(threads)` live in one process and
//! are measured between its threads; ours then too, since a process has no shorter way.
#![expect(unsafe_code, reason = "raw_sync places its primitives by pointer")]
#[path = "../support/mod.rs"]
mod support;

use core::hint::black_box;
use crossbeam_queue::ArrayQueue;
use outlast::{Event, Lock, Queue, RwLock, Shared, Spin};
use raw_sync::Timeout;
use raw_sync::events::{EventImpl, EventInit, EventState};
use raw_sync::locks::{LockImpl, LockInit};
use shared_memory::{Shmem, ShmemConf};
use std::sync::Mutex;
use std::time::Duration;
use support::group::{self, Stage};
use support::scenes::{World, contend, ping_pong, ring, ring_chunks, stream, until};
use support::{ALONE, Bench, Contest, Effort, Outcome, TOGETHER};

const CAPACITY: usize = 1_024;

type Message<const WORDS: usize> = [u64; WORDS];

fn queue<const WORDS: usize>() -> Shared<Queue<Message<WORDS>>> {
    Shared::<Queue<_>>::with_capacity(CAPACITY).expect("memory")
}

// --------------------------------------------------------------------------------- raw_sync

/// A mutex of raw_sync around a number, both in a `Shmem`.
struct RawLock {
    lock: Box<dyn LockImpl>,
    _memory: Shmem,
}

// SAFETY: a process-shared mutex, used through `lock` only.
unsafe impl Sync for RawLock {}

impl RawLock {
    fn new() -> Self {
        let memory = ShmemConf::new().size(4_096).create().expect("memory");
        let start = memory.as_ptr();
        // SAFETY: within the page.
        let number = unsafe { start.add(2_048) };
        // SAFETY: room for a mutex and a number, which live as long as the result.
        let made = unsafe { raw_sync::locks::Mutex::new(start, number) };
        let (lock, _) = made.expect("a mutex");
        RawLock { lock, _memory: memory }
    }

    #[inline(always)]
    fn with<R>(&self, body: impl FnOnce(&mut u64) -> R) -> R {
        let guard = self.lock.lock().expect("a good mutex");
        // SAFETY: the number lies there, aligned, and the mutex is held.
        body(unsafe { &mut *(*guard).cast::<u64>() })
    }
}

/// Two events of raw_sync in a `Shmem`.
struct RawEvents {
    events: [Box<dyn EventImpl>; 2],
    _memory: Shmem,
}

impl RawEvents {
    fn new() -> Self {
        let memory = ShmemConf::new().size(4_096).create().expect("memory");
        let events = [0, 2_048].map(|at| {
            // SAFETY: within the page.
            let place = unsafe { memory.as_ptr().add(at) };
            // SAFETY: room for an event, which lives as long as the result.
            let made = unsafe { raw_sync::events::Event::new(place, true) };
            made.expect("an event").0
        });
        RawEvents { events, _memory: memory }
    }
}

// ------------------------------------------------------------------------------------- locks

fn lock_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Lock::new(0_u64)).expect("memory");
    contest.alone("outlast::Lock", move |n| {
        let lock: &Lock<u64> = &ours;
        for _ in 0..n {
            *lock.lock().expect("no owner died") += 1;
        }
    });
    let parking_lot = parking_lot::Mutex::new(0_u64);
    contest.alone("parking_lot::Mutex (threads)", move |n| {
        for _ in 0..n {
            *parking_lot.lock() += 1;
        }
    });
    let raw = RawLock::new();
    contest.alone("raw_sync Mutex", move |n| {
        for _ in 0..n {
            raw.with(|n| *n += 1);
        }
    });
}

fn lock_contended(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(Lock::new(0_u64)).expect("memory");
    contest.rival("outlast::Lock", move |effort| {
        let value = || ours.lock().expect("no owner died");
        let count = || core::mem::take(&mut *value());
        contend(World::Processes, 2, effort, || *value() += 1, count)
    });
    let raw = RawLock::new();
    contest.rival("raw_sync Mutex", move |effort| {
        contend(World::Processes, 2, effort, || raw.with(|n| *n += 1), || raw.with(core::mem::take))
    });
    let parking_lot = parking_lot::Mutex::new(0_u64);
    contest.rival("parking_lot::Mutex (threads)", move |effort| {
        let count = || core::mem::take(&mut *parking_lot.lock());
        contend(World::Threads, 2, effort, || *parking_lot.lock() += 1, count)
    });
}

// -------------------------------------------------------------------------- locks for many readers

fn read_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(RwLock::new(1_u64)).expect("memory");
    contest.alone("outlast::RwLock", move |n| {
        let lock: &RwLock<u64> = &ours;
        for _ in 0..n {
            black_box(*lock.read().expect("no owner died"));
        }
    });
    let parking_lot = parking_lot::RwLock::new(1_u64);
    contest.alone("parking_lot::RwLock (threads)", move |n| {
        for _ in 0..n {
            black_box(*parking_lot.read());
        }
    });
    contest.bar(1.1);
    let std = std::sync::RwLock::new(1_u64);
    contest.alone("std::sync::RwLock (threads)", move |n| {
        for _ in 0..n {
            black_box(*std.read().expect("no owner panicked"));
        }
    });
}

fn write_alone(contest: &mut Contest<'_>) {
    let ours = Shared::anonymous(RwLock::new(1_u64)).expect("memory");
    contest.alone("outlast::RwLock", move |n| {
        let lock: &RwLock<u64> = &ours;
        for _ in 0..n {
            *lock.write().expect("no owner died") += 1;
        }
    });
    let parking_lot = parking_lot::RwLock::new(1_u64);
    contest.alone("parking_lot::RwLock (threads)", move |n| {
        for _ in 0..n {
            *parking_lot.write() += 1;
        }
    });
    let std = std::sync::RwLock::new(1_u64);
    contest.alone("std::sync::RwLock (threads)", move |n| {
        for _ in 0..n {
            *std.write().expect("no owner panicked") += 1;
        }
    });
}

/// Lets two workers read until the time is up.
fn readers(world: World, effort: Effort, read: impl Fn() -> u64 + Sync) -> Outcome {
    let time = match effort {
        Effort::Once => Duration::ZERO,
        Effort::Slice(slice) => slice,
    };
    let body = |_: usize, stage: &Stage| {
        black_box(read()); // to warm up
        stage.start();
        let mut operations = 0;
        loop {
            (0..16).for_each(|_| {
                black_box(read());
            });
            operations += 16;
            if stage.is_over() {
                return operations;
            }
        }
    };
    match world {
        World::Processes => group::processes(2, Some(time), body),
        World::Threads => group::threads(2, Some(time), body),
    }
}

fn read_together(contest: &mut Contest<'_>) {
    for (name, world) in
        [("outlast::RwLock", World::Processes), ("outlast::RwLock (threads)", World::Threads)]
    {
        let ours = Shared::anonymous(RwLock::new(1_u64)).expect("memory");
        let read = move || *ours.read().expect("no owner died");
        contest.rival(name, move |effort| readers(world, effort, &read));
    }
    let parking_lot = parking_lot::RwLock::new(1_u64);
    contest.rival("parking_lot::RwLock (threads)", move |effort| {
        readers(World::Threads, effort, || *parking_lot.read())
    });
    let std = std::sync::RwLock::new(1_u64);
    contest.rival("std::sync::RwLock (threads)", move |effort| {
        readers(World::Threads, effort, || *std.read().expect("no owner panicked"))
    });
}

// ------------------------------------------------------------------------------------ events

fn parked(contest: &mut Contest<'_>) {
    contest.counted("outlast::Event", |trips| {
        let events = Shared::anonymous([(); 2].map(|()| Event::auto(false))).expect("memory");
        let warm_up = || {
            Spin::Never.set();
            assert_eq!(events[0].wait_timeout(Duration::ZERO), Ok(false));
        };
        ping_pong(trips, warm_up, |i| _ = events[i].set(), |i| events[i].wait().expect("a peer"))
    });
    contest.counted("raw_sync Event", |trips| {
        let RawEvents { events, _memory } = RawEvents::new();
        let set = |i: usize| events[i].set(EventState::Signaled).expect("a good event");
        let wait = |i: usize| events[i].wait(Timeout::Infinite).expect("a good event");
        ping_pong(trips, || {}, set, wait)
    });
}

// ------------------------------------------------------------------------------------ queues

fn queue_alone(contest: &mut Contest<'_>) {
    let ours = queue::<1>();
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<Message<1>> = &ours;
        for i in 0..n {
            queue.send([i]).expect("open");
            assert_eq!(queue.recv(), Ok([i]));
        }
    });
    let crossbeam = ArrayQueue::new(CAPACITY);
    contest.alone("crossbeam ArrayQueue (threads)", move |n| {
        for i in 0..n {
            crossbeam.push([i]).expect("room");
            assert_eq!(crossbeam.pop(), Some([i]));
        }
    });
    contest.bar(1.6);
    let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
    contest.alone("crossbeam-channel (threads)", move |n| {
        for i in 0..n {
            sender.send([i]).expect("open");
            assert_eq!(receiver.recv(), Ok([i]));
        }
    });
    let (sender, receiver) = kanal::bounded(CAPACITY);
    contest.alone("kanal (threads)", move |n| {
        for i in 0..n {
            sender.send([i]).expect("open");
            assert_eq!(receiver.recv(), Ok([i]));
        }
    });
    let (mut sender, mut receiver) = rtrb::RingBuffer::new(CAPACITY);
    contest.alone("rtrb, one to one only (threads)", move |n| {
        for i in 0..n {
            sender.push([i]).expect("room");
            assert_eq!(receiver.pop(), Ok([i]));
        }
    });
}

fn streams<const WORDS: usize>(contest: &mut Contest<'_>, pairs: usize) {
    for (name, world) in
        [("outlast::Queue", World::Processes), ("outlast::Queue (threads)", World::Threads)]
    {
        contest.counted(name, move |messages| {
            let queue = queue::<WORDS>();
            let warm_up = || queue.join().expect("a peer");
            let sender = || {
                warm_up();
                |number| queue.send([number; WORDS]).expect("open")
            };
            let receiver = || {
                warm_up();
                || queue.recv().expect("open")[0]
            };
            stream(world, pairs, messages, sender, receiver)
        });
    }
    contest.counted("crossbeam ArrayQueue (threads)", move |messages| {
        let queue = ArrayQueue::<Message<WORDS>>::new(CAPACITY);
        let sender = || |number| until(|| queue.push([number; WORDS]).ok());
        let receiver = || || until(|| queue.pop())[0];
        stream(World::Threads, pairs, messages, sender, receiver)
    });
    if pairs == 2 {
        contest.bar(if WORDS == 1 { 0.67 } else { 0.83 });
    }
    contest.counted("crossbeam-channel (threads)", move |messages| {
        let (to, from) = crossbeam_channel::bounded::<Message<WORDS>>(CAPACITY);
        let sender = || |number| to.send([number; WORDS]).expect("open");
        let receiver = || || from.recv().expect("open")[0];
        stream(World::Threads, pairs, messages, sender, receiver)
    });
    contest.counted("kanal (threads)", move |messages| {
        let (to, from) = kanal::bounded::<Message<WORDS>>(CAPACITY);
        let sender = || |number| to.send([number; WORDS]).expect("open");
        let receiver = || || from.recv().expect("open")[0];
        stream(World::Threads, pairs, messages, sender, receiver)
    });
    if pairs == 1 {
        rtrb_stream::<WORDS>(contest);
    }
}

fn rtrb_stream<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("rtrb, one to one only (threads)", move |messages| {
        let (to, from) = rtrb::RingBuffer::<Message<WORDS>>::new(CAPACITY);
        let ends = Mutex::new((Some(to), Some(from)));
        let ends = || ends.lock().expect("no owner panicked");
        let sender = || {
            let mut to = ends().0.take().expect("one sender");
            move |number| until(|| to.push([number; WORDS]).ok())
        };
        let receiver = || {
            let mut from = ends().1.take().expect("one receiver");
            move || until(|| from.pop().ok())[0]
        };
        stream(World::Threads, 1, messages, sender, receiver)
    });
}

/// Ends of one kind, one of each.
fn ring_streams<const WORDS: usize>(contest: &mut Contest<'_>) {
    for (name, world) in
        [("outlast spsc::Ring", World::Processes), ("outlast spsc::Ring (threads)", World::Threads)]
    {
        contest.counted(name, move |messages| {
            let ring = ring::<WORDS>(CAPACITY);
            let sender = || {
                let producer = ring.producer().expect("free");
                move |number| producer.send([number; WORDS]).expect("open")
            };
            let receiver = || {
                let consumer = ring.consumer().expect("free");
                move || consumer.recv().expect("open")[0]
            };
            stream(world, 1, messages, sender, receiver)
        });
    }
    contest.counted("outlast spsc::Ring, chunks of 64 (threads)", ring_chunks::<WORDS>);
    rtrb_stream::<WORDS>(contest);
    contest.bar(if WORDS == 1 { 0.67 } else { 1.0 });
    contest.counted("crossbeam ArrayQueue (threads)", move |messages| {
        let queue = ArrayQueue::<Message<WORDS>>::new(CAPACITY);
        let sender = || |number| until(|| queue.push([number; WORDS]).ok());
        let receiver = || || until(|| queue.pop())[0];
        stream(World::Threads, 1, messages, sender, receiver)
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("queue alone: send and recv", ALONE, 61, queue_alone);
    bench.contest("lock alone", ALONE, 61, lock_alone);
    bench.contest("lock contended, 2 workers", TOGETHER, 11, lock_contended);
    bench.contest("read lock alone", ALONE, 61, read_alone);
    bench.contest("write lock alone", ALONE, 61, write_alone);
    bench.contest("read lock, 2 workers", TOGETHER, 21, read_together);
    bench.contest("round trip between two processes, parked", TOGETHER, 21, parked);
    bench.contest("stream, 8 B, 1 to 1", TOGETHER, 11, |contest| streams::<1>(contest, 1));
    bench.contest("stream, 64 B, 1 to 1", TOGETHER, 11, |contest| streams::<8>(contest, 1));
    bench.contest("stream, 8 B, 2 to 2", TOGETHER, 11, |contest| streams::<1>(contest, 2));
    bench.contest("stream, 64 B, 2 to 2", TOGETHER, 11, |contest| streams::<8>(contest, 2));
    bench.contest("ring, stream of 8 B", TOGETHER, 11, ring_streams::<1>);
    bench.contest("ring, stream of 64 B", TOGETHER, 11, ring_streams::<8>);
    bench.contest("ring, stream of 1 KiB", TOGETHER, 11, ring_streams::<128>);
}
