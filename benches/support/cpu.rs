//! CPUs: how far they are from each other, and who runs on which.
#![expect(unsafe_code, reason = "asks the kernel for a CPU, and how often it took one away")]
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::OnceLock;
use std::time::Instant;

/// How far a cache line has to go from one CPU to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Presumably within a cache that both share.
    Near,
    /// Further.
    Far,
    /// There is one CPU only.
    Alone,
}

impl Line {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Line::Near => "near",
            Line::Far => "far",
            Line::Alone => "1 CPU",
        }
    }
}

/// Between the two states that virtual machines were seen in (90 to 180 ns, and 450 to 600 ns).
const NEAR: f64 = 300.0;
/// A probe takes the median of so many times ...
const CHUNKS: usize = 7;
/// ... so many round trips.
const TRIPS: u32 = 100;

/// How long a line took there and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe(Option<f64>);

impl Probe {
    /// Nanoseconds; not a number with one CPU.
    pub(crate) fn nanoseconds(self) -> f64 {
        self.0.unwrap_or(f64::NAN)
    }

    /// Which of the states that is. `None` if the two CPUs could not play undisturbed.
    pub(crate) fn state(self) -> Option<Line> {
        match self.0 {
            None => Some(Line::Alone),
            Some(time) if time < NEAR => Some(Line::Near),
            Some(time) if time < 10.0 * NEAR => Some(Line::Far),
            Some(_) => None,
        }
    }
}

/// A word in a line of its own.
#[repr(align(128))]
struct Ball(AtomicU32);

/// Sends a line there and back between two pinned threads.
pub(crate) fn probe() -> Probe {
    let [first, second, ..] = cpus() else { return Probe(None) };
    let ball = Ball(AtomicU32::new(0));
    let until = |value: u32| {
        while ball.0.load(Acquire) != value {
            core::hint::spin_loop();
        }
    };
    let total = TRIPS * u32::try_from(CHUNKS).unwrap_or(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(*second);
            for trip in 0..total {
                until(2 * trip + 1);
                ball.0.store(2 * trip + 2, Release);
            }
        });
        let player = scope.spawn(|| {
            pin(*first);
            let mut times = [0.0; CHUNKS];
            let mut trip = 0;
            for time in &mut times {
                let start = Instant::now();
                for _ in 0..TRIPS {
                    ball.0.store(2 * trip + 1, Release);
                    until(2 * trip + 2);
                    trip += 1;
                }
                *time = start.elapsed().as_secs_f64() * 1e9 / f64::from(TRIPS);
            }
            super::spread(&mut times).0
        });
        Probe(player.join().ok())
    })
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(|| {
        let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: the kernel writes at most the size of the set.
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
        // SAFETY: a set of bits, for which zero will do.
        let set = unsafe { set.assume_init() };
        let most = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        // SAFETY: reads the set, within its length.
        (0..most).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
    })
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a set of bits, for which zero will do.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: writes the set, within its length.
    unsafe { libc::CPU_SET(cpu, set) };
    // SAFETY: reads the set; a refusal leaves the thread where it is.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
}

/// Keeps the calling worker on the CPU that is its turn, if there are two.
pub(crate) fn pin_worker(i: usize) {
    if let [first, second, ..] = cpus() {
        pin(if i.is_multiple_of(2) { *first } else { *second });
    }
}

/// How often the kernel took the CPU away from the calling thread.
pub(crate) fn involuntary_switches() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes to the live variable.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: plain numbers, for which zero will do.
    let usage = unsafe { usage.assume_init() };
    usage.ru_nivcsw
}

/// Uses the CPU for `turns` turns of a few instructions that depend on each other.
#[inline(never)]
pub(crate) fn work(turns: u32) {
    static SINK: AtomicU32 = AtomicU32::new(0);
    let mut x = turns | 1;
    for _ in 0..turns {
        x = core::hint::black_box(x.wrapping_mul(0x9e37_79b1));
    }
    if x == 0 {
        SINK.store(x, Relaxed);
    }
}

/// How many turns of [`work`] take about so many nanoseconds.
pub(crate) fn turns_for(nanoseconds: f64) -> u32 {
    const TURNS: u32 = 20_000;
    let mut times = [0.0; 9];
    for time in &mut times {
        let start = Instant::now();
        work(TURNS);
        *time = start.elapsed().as_secs_f64() * 1e9 / f64::from(TURNS);
    }
    let turns = nanoseconds / super::spread(&mut times).1;
    (1..TURNS).find(|&n| f64::from(n) >= turns).unwrap_or(TURNS)
}
