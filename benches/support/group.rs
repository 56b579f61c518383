//! Workers that do something together, as processes or as threads.
#![expect(unsafe_code, reason = "fork, and memory shared without the crate under test")]
use super::Outcome;
use super::cpu::{cpus, involuntary_switches, pin_worker};
use core::hint::spin_loop;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use outlast::Shareable;
use std::io;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// The most workers of a group.
const MOST: usize = 8;
/// On average a worker with a CPU of its own is to keep it at least that long.
const QUIET: Duration = Duration::from_millis(15);

outlast::shared! {
    /// What a group's workers have in common.
    struct Notes {
        ready: AtomicU32,
        go: AtomicU32,
        over: AtomicU32,
        switches: AtomicU32,
        operations: [AtomicU64; MOST],
        ended: [AtomicU64; MOST]
    }
}

/// Where the workers of one group meet.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    notes: &'static Notes,
    born: Instant,
}

impl Stage {
    fn new() -> Self {
        Stage { notes: plain_shared(), born: Instant::now() }
    }

    /// Tells that this worker is ready, and waits until all are.
    pub(crate) fn start(&self) {
        self.notes.ready.fetch_add(1, AcqRel);
        while self.notes.go.load(Acquire) == 0 {
            spin_loop();
        }
    }

    /// Whether the time is up.
    #[inline(always)]
    pub(crate) fn is_over(&self) -> bool {
        self.notes.over.load(Acquire) != 0
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn play(&self, i: usize, body: impl FnOnce(usize, &Stage) -> u64) {
        pin_worker(i);
        let before = involuntary_switches();
        let operations = body(i, self);
        self.notes.ended[i].store(self.now(), Release);
        let switches = u32::try_from(involuntary_switches() - before).unwrap_or(u32::MAX);
        self.notes.switches.fetch_add(switches, AcqRel);
        self.notes.operations[i].store(operations, Release);
    }

    /// Lets the workers go as soon as all are ready, and stops them after `time`, if any.
    fn conduct(&self, workers: usize, time: Option<Duration>) -> u64 {
        while self.notes.ready.load(Acquire) as usize != workers {
            std::thread::sleep(Duration::from_micros(200));
        }
        let start = self.now();
        self.notes.go.store(1, Release);
        if let Some(time) = time {
            std::thread::sleep(time);
            self.notes.over.store(1, Release);
        }
        start
    }

    fn outcome(&self, workers: usize, start: u64) -> Outcome {
        let notes = self.notes;
        let operations = notes.operations.iter().map(|n| n.load(Acquire)).sum();
        let end = notes.ended[..workers].iter().map(|end| end.load(Acquire)).max().unwrap_or(0);
        let time = Duration::from_nanos(end.saturating_sub(start));
        let switches = notes.switches.load(Acquire);
        let disturbed = workers <= cpus().len() && time < switches * QUIET;
        // SAFETY: made by `plain_shared`, and no worker is left.
        unsafe { libc::munmap(core::ptr::from_ref(notes).cast_mut().cast(), size_of::<Notes>()) };
        Outcome { operations, time, disturbed }
    }
}

/// Runs `body` in so many forked processes, which it tells their numbers and where to
/// [`start`](Stage::start). It gives the number of operations that the worker did. After `time`,
/// the stage [is over](Stage::is_over).
pub(crate) fn processes(
    workers: usize,
    time: Option<Duration>,
    body: impl Fn(usize, &Stage) -> u64,
) -> Outcome {
    let stage = Stage::new();
    let children: Vec<_> =
        (0..workers).map(|i| fork(|| stage.play(i, |i, stage| body(i, stage)))).collect();
    let start = stage.conduct(workers, time);
    for child in children {
        assert!(wait(child), "a worker failed");
    }
    stage.outcome(workers, start)
}

/// As [`processes`], in so many threads.
pub(crate) fn threads(
    workers: usize,
    time: Option<Duration>,
    body: impl Fn(usize, &Stage) -> u64 + Sync,
) -> Outcome {
    let stage = Stage::new();
    let start = std::thread::scope(|scope| {
        for i in 0..workers {
            let body = &body;
            scope.spawn(move || stage.play(i, body));
        }
        stage.conduct(workers, time)
    });
    stage.outcome(workers, start)
}

/// Runs `body` in a child process, which dies with the calling thread.
pub(crate) fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: takes nothing. The child uses `malloc` and the like, which glibc keeps usable in it.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: takes no pointers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let done = std::panic::catch_unwind(AssertUnwindSafe(body)).is_ok();
        // SAFETY: ends this process; what `atexit` registered is to run.
        unsafe { libc::exit(if done { 0 } else { 101 }) }
    }
    child
}

/// Waits for a child process; whether it succeeded.
pub(crate) fn wait(child: libc::pid_t) -> bool {
    let mut status = -1;
    // SAFETY: writes to the live variable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    waited == child && status == 0
}

/// Memory full of zeros that this process shares with the children it forks.
pub(crate) fn plain_shared<T: Shareable>() -> &'static T {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, wherever there is room.
    let at = unsafe { libc::mmap(core::ptr::null_mut(), size_of::<T>(), access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: as long as a `T`, aligned to a page, and not unmapped while it is referred to. Any
    // bytes are a `Shareable` value.
    unsafe { &*at.cast::<T>() }
}
