//! The cost of a queue: in one thread, as a stream between processes, with acknowledgements, and
//! when a receiver is killed.
#![expect(unsafe_code, reason = "kills a process, and sets the size of a pipe")]
mod support;

use criterion::Criterion;
use outlast::{Queue, Shared};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use support::scenes::{World, stream};
use support::{ALONE, Bench, Contest, TOGETHER, group};

const CAPACITY: usize = 1_024;

/// A queue of messages of so many words.
fn queue<const WORDS: usize>() -> Shared<Queue<[u64; WORDS]>> {
    Shared::<Queue<_>>::with_capacity(CAPACITY).expect("memory")
}

// ------------------------------------------------------------------------------- in one thread

fn alone(contest: &mut Contest<'_>) {
    let ours = queue::<1>();
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<[u64; 1]> = &ours;
        for i in 0..n {
            queue.send([i]).expect("open");
            assert_eq!(queue.recv(), Ok([i]));
        }
    });
    let acknowledged = queue::<1>();
    contest.alone("outlast::Queue, recv_ack + ack", move |n| {
        let queue: &Queue<[u64; 1]> = &acknowledged;
        for i in 0..n {
            queue.send([i]).expect("open");
            assert_eq!(queue.recv_ack().expect("open").ack(), Ok([i]));
        }
    });
    let (sender, receiver) = sync_channel(CAPACITY);
    contest.alone("std sync_channel", move |n| {
        for i in 0..n {
            sender.send([i]).expect("open");
            assert_eq!(receiver.recv(), Ok([i]));
        }
    });
    let pipe = Pipe::new();
    contest.alone("pipe", move |n| {
        for i in 0..n {
            pipe.send([i]);
            assert_eq!(pipe.receive(), [i]);
        }
    });
}

// --------------------------------------------------------------------------- between processes

/// A pipe with room for 1 MiB.
struct Pipe(PipeReader, PipeWriter);

impl Pipe {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        // SAFETY: takes no pointers. If it is refused, the pipe has the usual size.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
        Pipe(reader, writer)
    }

    /// So few bytes are written, and read, in one piece.
    fn send<const WORDS: usize>(&self, message: [u64; WORDS]) {
        let mut bytes = [[0; 8]; WORDS];
        bytes.iter_mut().zip(message).for_each(|(to, word)| *to = word.to_ne_bytes());
        (&self.1).write_all(bytes.as_flattened()).expect("a reader");
    }

    fn receive<const WORDS: usize>(&self) -> [u64; WORDS] {
        let mut bytes = [[0; 8]; WORDS];
        (&self.0).read_exact(bytes.as_flattened_mut()).expect("a writer");
        bytes.map(u64::from_ne_bytes)
    }
}

/// Makes this process a peer, so that it is not counted.
fn warm_up<const WORDS: usize>(queue: &Queue<[u64; WORDS]>) {
    queue.join().expect("a free slot");
}

fn streams<const WORDS: usize>(contest: &mut Contest<'_>, pairs: usize) {
    contest.counted("outlast::Queue", move |messages| {
        let queue = queue::<WORDS>();
        let sender = || {
            warm_up(&queue);
            |number| queue.send([number; WORDS]).expect("open")
        };
        let receiver = || {
            warm_up(&queue);
            || queue.recv().expect("open")[0]
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
    contest.counted("outlast::Queue, recv_ack + ack", move |messages| {
        let queue = queue::<WORDS>();
        let sender = || {
            warm_up(&queue);
            |number| queue.send([number; WORDS]).expect("open")
        };
        let receiver = || {
            warm_up(&queue);
            || queue.recv_ack().expect("open").ack().expect("ours")[0]
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
    contest.counted("pipe", move |messages| {
        let pipe = Pipe::new();
        let sender = || |number| pipe.send([number; WORDS]);
        let receiver = || || pipe.receive::<WORDS>()[0];
        stream(World::Processes, pairs, messages, sender, receiver)
    });
}

// ------------------------------------------------------------------------------------- a death

/// How long after the kill of a receiver another one has its message, and the parent is told of its
/// end.
fn recovery() -> (Duration, Duration) {
    let queue = queue::<1>();
    queue.send([7]).expect("open");
    let victim = group::fork(|| {
        let _held = queue.recv_ack().expect("a message");
        loop {
            std::thread::park();
        }
    });
    while !queue.is_empty() {
        std::thread::yield_now();
    }
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5)); // until the survivor sleeps
        let killed = Instant::now();
        // SAFETY: takes no pointers; the child is not reaped yet.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        assert!(!group::wait(victim), "killed");
        (killed, killed.elapsed())
    });
    let delivery = queue.recv_ack_timeout(Duration::from_secs(10)).expect("the message");
    let delivered = Instant::now();
    assert_eq!((*delivery, delivery.attempts()), ([7], 1));
    delivery.ack().expect("ours");
    let (killed, reaped) = killer.join().expect("it does not panic");
    (delivered - killed, reaped)
}

fn recoveries(bench: &Bench) {
    const TITLE: &str =
        "recovery: from SIGKILL of a receiver that holds a message to its delivery to another";
    if !bench.wants(TITLE) {
        return;
    }
    let rounds = if bench.is_smoke() { 1 } else { 101 };
    let times: Vec<_> = (0..rounds).map(|_| recovery()).collect();
    let show = |name: &str, mut times: Vec<f64>| {
        let (median, low, high) = support::spread(&mut times);
        let [median, low, high] = [median, low, high].map(|time| support::duration(time * 1e9));
        format!("  {name:40} {median:>8} [{low}..{high}] ({rounds})\n")
    };
    let delivered = times.iter().map(|(delivered, _)| delivered.as_secs_f64()).collect();
    let reaped = times.iter().map(|(_, reaped)| reaped.as_secs_f64()).collect();
    let delivered = show("delivered to a receiver that slept", delivered);
    let reaped = show("waitpid in the parent returns", reaped);
    support::say(&format!("\n{TITLE}\n{delivered}{reaped}"));
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("queue alone: send and recv", ALONE, 61, alone);
    bench.contest("stream, 8 B, 1 to 1", TOGETHER, 11, |contest| streams::<1>(contest, 1));
    bench.contest("stream, 64 B, 1 to 1", TOGETHER, 11, |contest| streams::<8>(contest, 1));
    bench.contest("stream, 8 B, 2 to 2", TOGETHER, 11, |contest| streams::<1>(contest, 2));
    bench.contest("stream, 64 B, 2 to 2", TOGETHER, 11, |contest| streams::<8>(contest, 2));
    recoveries(&bench);

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let queue = queue::<1>();
    criterion.bench_function("Queue, send and recv", |bencher| {
        bencher.iter(|| {
            queue.send([1]).expect("open");
            queue.recv().expect("open")
        });
    });
    criterion.final_summary();
}
