//! What an event costs: alone, and as a signal that goes to another process and is answered, met
//! spinning or asleep.
#![expect(unsafe_code, reason = "calls futex and sem_*")]
mod support;

use core::hint::spin_loop;
use core::sync::atomic::Ordering::{Acquire, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use criterion::Criterion;
use outlast::{Event, Shared, Spin};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::time::Duration;
use support::futex::Futex;
use support::scenes::ping_pong;
use support::{ALONE, Bench, Contest, TOGETHER, group};

/// A slice in which no thread sleeps.
const SHORT: Duration = Duration::from_millis(8);

// -------------------------------------------------------------------------------------- rivals

/// A process-shared semaphore of POSIX.
struct Semaphore(*mut libc::sem_t);

// SAFETY: it is made to be used by several threads, and is never unmapped.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    fn new() -> Self {
        let room: &'static [AtomicU64; size_of::<libc::sem_t>().div_ceil(8)] =
            group::plain_shared();
        let semaphore = room.as_ptr().cast_mut().cast::<libc::sem_t>();
        // SAFETY: fresh memory of that size, aligned to a page.
        let made = unsafe { libc::sem_init(semaphore, 1, 0) };
        assert_eq!(made, 0, "sem_init");
        Semaphore(semaphore)
    }

    fn set(&self) {
        // SAFETY: made by `new`.
        unsafe { libc::sem_post(self.0) };
    }

    fn wait(&self) {
        loop {
            // SAFETY: made by `new`.
            let waited = unsafe { libc::sem_wait(self.0) };
            if waited == 0 {
                return;
            }
        }
    }
}

/// A pipe for single bytes.
struct Pipe(PipeReader, PipeWriter);

impl Pipe {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        Pipe(reader, writer)
    }

    fn set(&self) {
        (&self.1).write_all(&[1]).expect("a reader");
    }

    fn wait(&self) {
        (&self.0).read_exact(&mut [0]).expect("a writer");
    }
}

// ------------------------------------------------------------------------------------- contests

fn alone(contest: &mut Contest<'_>) {
    let manual = Shared::anonymous(Event::manual(false)).expect("memory");
    contest.alone("outlast::Event, manual: set, reset", move |n| {
        let event: &Event = &manual;
        for _ in 0..n {
            event.set();
            event.reset();
        }
    });
    let auto = Shared::anonymous(Event::auto(false)).expect("memory");
    contest.alone("outlast::Event, auto: set, wait", move |n| {
        let event: &Event = &auto;
        for _ in 0..n {
            event.set();
            event.wait().expect("set");
        }
    });
    let semaphore = Semaphore::new();
    contest.alone("sem_t: post, wait", move |n| {
        for _ in 0..n {
            semaphore.set();
            semaphore.wait();
        }
    });
    let pipe = Pipe::new();
    contest.alone("pipe: write, read", move |n| {
        for _ in 0..n {
            pipe.set();
            pipe.wait();
        }
    });
}

fn events(contest: &mut Contest<'_>, name: &str, spin: Spin) {
    contest.counted(name, move |trips| {
        let events = [(); 2].map(|()| Event::auto(false));
        let events = Shared::anonymous(events).expect("memory");
        let warm_up = || {
            spin.set();
            let came = events[0].wait_timeout(Duration::ZERO);
            assert_eq!(came, Ok(false), "this process is a peer, and nothing is set");
        };
        let wait = |i: usize| events[i].wait().expect("a peer");
        ping_pong(trips, warm_up, |i| _ = events[i].set(), wait)
    });
}

fn hot(contest: &mut Contest<'_>) {
    events(contest, "outlast::Event", Spin::Adaptive);
    events(contest, "outlast::Event, Spin::For 1 ms", Spin::For(Duration::from_millis(1)));
    contest.counted("an atomic, spinning for ever", |trips| {
        let words: &[[AtomicU32; 32]; 2] = group::plain_shared();
        let wait = |i: usize| {
            while words[i][0].load(Acquire) == 0 {
                spin_loop();
            }
            words[i][0].store(0, Release);
        };
        ping_pong(trips, || {}, |i| words[i][0].store(1, Release), wait)
    });
}

fn parked(contest: &mut Contest<'_>) {
    events(contest, "outlast::Event", Spin::Never);
    contest.counted("futex", |trips| {
        let words = [(); 2].map(|()| Futex::new());
        ping_pong(trips, || {}, |i| words[i].set(), |i| words[i].wait())
    });
    contest.bar(1.4);
    contest.counted("sem_t", |trips| {
        let semaphores = [(); 2].map(|()| Semaphore::new());
        ping_pong(trips, || {}, |i| semaphores[i].set(), |i| semaphores[i].wait())
    });
    contest.counted("pipe", |trips| {
        let pipes = [(); 2].map(|()| Pipe::new());
        ping_pong(trips, || {}, |i| pipes[i].set(), |i| pipes[i].wait())
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("event alone", ALONE, 61, alone);
    bench.contest("round trip between two processes, hot", SHORT, 31, hot);
    bench.contest("round trip between two processes, parked", TOGETHER, 21, parked);

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let event = Shared::anonymous(Event::manual(false)).expect("memory");
    criterion.bench_function("Event, set and reset", |bencher| {
        bencher.iter(|| {
            event.set();
            event.reset();
        });
    });
    criterion.final_summary();
}
