//! What several workers do together, whatever they do it with.
use super::cpu::{turns_for, work};
use super::group::{self, Stage};
use super::{Effort, Outcome};
use core::hint::spin_loop;
use outlast::spsc::Ring;
use outlast::{ByteQueue, Pipe, Shared};
use std::io::{Read, Write};
use std::sync::OnceLock;
use std::time::Duration;

/// What the workers are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum World {
    Processes,
    Threads,
}

impl World {
    pub(crate) fn run(
        self,
        workers: usize,
        time: Option<Duration>,
        body: impl Fn(usize, &Stage) -> u64 + Sync,
    ) -> Outcome {
        match self {
            World::Processes => group::processes(workers, time, body),
            World::Threads => group::threads(workers, time, body),
        }
    }
}

/// Messages in a chunk.
const BATCH: usize = 64;

pub(crate) fn ring<const WORDS: usize>(capacity: usize) -> Shared<Ring<[u64; WORDS]>> {
    Shared::<Ring<_>>::with_capacity(capacity).expect("memory")
}

/// Sends numbers through a ring between two threads, written and read in chunks.
pub(crate) fn ring_chunks<const WORDS: usize>(messages: u64) -> Outcome {
    let ring = ring::<WORDS>(1_024);
    let sender = || {
        let mut producer = ring.producer().expect("free");
        let mut waiting = Vec::with_capacity(BATCH);
        move |number| {
            waiting.push([number; WORDS]);
            if waiting.len() == BATCH || number == u64::MAX {
                let mut sent = 0;
                while sent < waiting.len() {
                    let mut chunk = producer.write_chunk(waiting.len() - sent).expect("open");
                    let n = chunk.len();
                    let (first, second) = chunk.as_mut_slices();
                    let (to_first, to_second) = waiting[sent..sent + n].split_at(first.len());
                    first.copy_from_slice(to_first);
                    second.copy_from_slice(to_second);
                    chunk.commit(n).expect("open");
                    sent += n;
                }
                waiting.clear();
            }
        }
    };
    let receiver = || {
        let consumer = ring.consumer().expect("free");
        let (mut there, mut next) = (Vec::with_capacity(BATCH), 0);
        move || {
            if next == there.len() {
                there.clear();
                next = 0;
                consumer.recv_batch(&mut there, BATCH).expect("open");
            }
            next += 1;
            there[next - 1][0]
        }
    };
    stream(World::Threads, 1, messages, sender, receiver)
}

/// Sends `messages` numbers through something, from `pairs` workers to as many others.
///
/// Each sender calls `sender` for its end and then sends its share; likewise the receivers.
/// Whatever has to be warmed up is to be done there.
pub(crate) fn stream<S: FnMut(u64), R: FnMut() -> u64>(
    world: World,
    pairs: usize,
    messages: u64,
    sender: impl Fn() -> S + Sync,
    receiver: impl Fn() -> R + Sync,
) -> Outcome {
    /// Tells a receiver to stop.
    const END: u64 = u64::MAX;
    let share = messages.div_ceil(pairs as u64);
    // Senders and receivers take turns, so that with two CPUs all senders are on one of them.
    let outcome = world.run(2 * pairs, None, |i, stage| {
        if i.is_multiple_of(2) {
            let mut send = sender();
            stage.start();
            (0..share).for_each(&mut send);
            send(END);
            0
        } else {
            let mut receive = receiver();
            stage.start();
            let mut received = 0;
            while receive() != END {
                received += 1;
            }
            received
        }
    });
    assert_eq!(outcome.operations, share * pairs as u64, "messages were lost or repeated");
    outcome
}

/// A [`stream`] between processes of messages of `LEN` bytes through something of the system's, of
/// which each process takes a copy. The first eight bytes are the number.
pub(crate) fn system_stream<const LEN: usize, W: Write, R: Read>(
    messages: u64,
    to: impl Fn() -> W + Sync,
    from: impl Fn() -> R + Sync,
) -> Outcome {
    let sender = || {
        let (mut to, mut message) = (to(), vec![7; LEN]);
        move |number: u64| {
            message[..8].copy_from_slice(&number.to_ne_bytes());
            to.write_all(&message).expect("a reader");
        }
    };
    let receiver = || {
        let (mut from, mut message) = (from(), vec![0; LEN]);
        move || {
            from.read_exact(&mut message).expect("a writer");
            u64::from_ne_bytes(message[..8].try_into().expect("8 bytes"))
        }
    };
    stream(World::Processes, 1, messages, sender, receiver)
}

/// The same through a pipe of the system's.
pub(crate) fn pipe_stream<const LEN: usize>(messages: u64) -> Outcome {
    let (from, to) = std::io::pipe().expect("a pipe");
    let (to, from) = (|| to.try_clone().expect("a copy"), || from.try_clone().expect("a copy"));
    system_stream::<LEN, _, _>(messages, to, from)
}

/// The number that a message begins with.
pub(crate) fn number(message: &[u8]) -> u64 {
    u64::from_ne_bytes(message[..8].try_into().expect("8 bytes"))
}

/// A [`stream`] of messages of `len` bytes through a queue: every byte is written by the sender,
/// and read by the receiver.
pub(crate) fn bytes_copied(world: World, queue: &ByteQueue, len: usize, messages: u64) -> Outcome {
    let sender = || {
        become_known(queue);
        let mut message = vec![7; len];
        move |number: u64| {
            message[..8].copy_from_slice(&number.to_ne_bytes());
            queue.send(&message).expect("open");
        }
    };
    let receiver = || {
        become_known(queue);
        let mut to = Vec::with_capacity(len);
        move || {
            to.clear();
            assert_eq!(queue.recv_into(&mut to), Ok(len));
            number(&to)
        }
    };
    stream(world, 1, messages, sender, receiver)
}

/// The same between processes, in place: both touch only the first bytes, which leaves the cost of
/// the queue itself.
pub(crate) fn bytes_in_place(queue: &ByteQueue, len: usize, messages: u64) -> Outcome {
    let sender = || {
        become_known(queue);
        |number: u64| {
            let mut room = queue.loan(len).expect("open");
            room[..8].copy_from_slice(&number.to_ne_bytes());
            room.send().expect("ours");
        }
    };
    let receiver = || {
        become_known(queue);
        || number(&queue.recv_ref().expect("open"))
    };
    stream(World::Processes, 1, messages, sender, receiver)
}

/// Makes the worker a peer, so that it is not counted.
fn become_known(queue: &ByteQueue) {
    drop(queue.try_loan(usize::MAX));
}

/// As [`bytes_copied`], from one side of a pipe to the other.
pub(crate) fn pipe_copied(world: World, pipe: &Pipe, len: usize, messages: u64) -> Outcome {
    let sender = || {
        let (side, mut message) = (pipe.first().expect("free"), vec![7; len]);
        move |number: u64| {
            message[..8].copy_from_slice(&number.to_ne_bytes());
            side.send_bytes(&message).expect("open");
        }
    };
    let receiver = || {
        let (side, mut to) = (pipe.second().expect("free"), Vec::with_capacity(len));
        move || {
            to.clear();
            assert_eq!(side.recv_bytes_into(&mut to), Ok(len));
            number(&to)
        }
    };
    stream(world, 1, messages, sender, receiver)
}

/// Looks again and again, lets others have the CPU if that does not help.
pub(crate) fn until<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    for tries in 0_u64.. {
        if let Some(done) = attempt() {
            return done;
        }
        if tries % 64 == 63 { std::thread::yield_now() } else { spin_loop() }
    }
    unreachable!("584 years have passed")
}

/// Lets workers run `section`, which takes a lock and counts, and work 90 ns in between, until the
/// time is up. `count` tells how often it was run, and starts anew.
pub(crate) fn contend(
    world: World,
    workers: usize,
    effort: Effort,
    section: impl Fn() + Sync,
    count: impl Fn() -> u64,
) -> Outcome {
    static TURNS: OnceLock<u32> = OnceLock::new();
    let turns = *TURNS.get_or_init(|| turns_for(90.0));
    let time = match effort {
        Effort::Once => Duration::ZERO,
        Effort::Slice(slice) => slice,
    };
    count();
    let outcome = world.run(workers, Some(time), |_, stage| {
        section(); // to warm up
        stage.start();
        let mut operations = 0;
        loop {
            section();
            work(turns);
            operations += 1;
            if stage.is_over() {
                return operations;
            }
        }
    });
    assert_eq!(count(), outcome.operations + workers as u64, "the lock does not exclude");
    outcome
}

/// Sends a signal there and back so many times between two processes, after both have warmed up.
/// `set` and `wait` are told which of the two signals.
pub(crate) fn ping_pong(
    trips: u64,
    warm_up: impl Fn(),
    set: impl Fn(usize),
    wait: impl Fn(usize),
) -> Outcome {
    group::processes(2, None, |i, stage| {
        warm_up();
        stage.start();
        for _ in 0..trips {
            if i == 0 {
                set(0);
                wait(1);
            } else {
                wait(0);
                set(1);
            }
        }
        if i == 0 { trips } else { 0 }
    })
}
