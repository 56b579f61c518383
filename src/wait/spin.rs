//! How long to look before sleeping.
//!
//! A spin that hits is 300 times faster than a sleep; one that misses burns a core for nothing. So
//! each thread keeps a budget for the words that it waits on, which doubles when a spin has hit and
//! halves when one has missed; but if the sleep after it was short, a longer spin might have hit,
//! and it doubles as well. If the longest has missed so, the others have no CPU to run on: it
//! starts again from the least. On a machine with one CPU nobody can change the word meanwhile: no
//! spin. (Which of its CPUs the calling thread may use says nothing: those who will change the word
//! may use others.)
//!
//! A spin is a number of pauses, and then a number of yields, each with a look. Where the yields
//! let others run, and that was what was needed, pauses only keep the CPU from those: then their
//! number halves, and that of the yields doubles.
//!
//! Who waits for something of which there may soon be more had better not look at once, nor all the
//! time: each look takes the line from those who write it. So such a wait begins with a *rest*,
//! which grows as long as there is more than one to be had after it.
use crate::sync::{Kept, SPINS, spin_loop};
use crate::sys::stopwatch::Stopwatch;
use core::cell::Cell;
use std::time::{Duration, Instant};

/// How the calling thread waits before it sleeps.
///
/// ```
/// use outlast::Spin;
/// Spin::Never.set(); // this thread is one of many more than there are CPUs
/// # Spin::Adaptive.set();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spin {
    /// As long as it has paid off lately, at most 50 microseconds or so. The default.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Never,
    /// Always this long.
    For(Duration),
}

impl Spin {
    /// Sets it for the calling thread.
    pub fn set(self) {
        SETTING.set(self);
    }
}

/// What an unknown word gets, in nanoseconds.
const FIRST: u32 = 2_700;
/// What waking a sleeper costs at worst.
const MOST: u32 = 50_000;
/// Below this a miss no longer halves: a budget of nothing could never see a hit.
const LEAST: u32 = 80;
/// Looks after the budget is spent, each with the CPU offered to others: at first, and at most.
const YIELDS: u32 = 2;
const MOST_YIELDS: u32 = 64;
/// A yield that takes longer has let somebody run.
const LONG_YIELD: Duration = Duration::from_nanos(1_000);
/// Words told apart, by address.
const BUDGETS: usize = 16;

thread_local! {
    static SETTING: Cell<Spin> = const { Cell::new(Spin::Adaptive) };
    static BUDGET: [Cell<Budget>; BUDGETS] = const { [const { Cell::new(Budget::UNKNOWN) }; BUDGETS] };
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    nanoseconds: u32,
    yields: u32,
}

impl Budget {
    const UNKNOWN: Budget = Budget { nanoseconds: FIRST, yields: YIELDS };

    fn longer(self) -> Budget {
        Budget { nanoseconds: (self.nanoseconds * 2).min(MOST), ..self }
    }

    fn shorter(self) -> Budget {
        Budget { nanoseconds: (self.nanoseconds / 2).max(LEAST), ..self }
    }

    fn more_yields(self) -> Budget {
        Budget { yields: (self.yields * 2).min(MOST_YIELDS), ..self }
    }

    fn fewer_yields(self) -> Budget {
        Budget { yields: (self.yields / 2).max(YIELDS), ..self }
    }
}

/// A sleep of which the waking was the most.
const SHORT: Duration = Duration::from_micros(150);

/// When a spin ended in vain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed(Stopwatch);

impl Missed {
    fn now() -> Self {
        Missed(Stopwatch::start())
    }

    /// Whether a longer spin might have hit.
    pub(crate) fn shortly(self) -> bool {
        self.0.elapsed() < SHORT
    }
}

/// One wait's worth of looking.
#[derive(Debug)]
pub(crate) struct Spinner {
    budget: usize,
    learns: bool,
    pauses: u32,
    yields: u32,
    yielding: Option<Yielding>,
    until: Option<Instant>,
}

/// That the pauses are over.
#[derive(Clone, Copy, Debug)]
struct Yielding {
    since: Stopwatch,
    times: u32,
}

impl Spinner {
    /// For a wait on the word at `address`.
    pub(crate) fn new(address: usize) -> Self {
        let budget = slot(address);
        let mut spinner =
            Spinner { budget, learns: false, pauses: 0, yields: 0, yielding: None, until: None };
        if SPINS && cpus() > 1 {
            match SETTING.get() {
                Spin::Adaptive => {
                    spinner.learns = true;
                    let Budget { nanoseconds, yields } = BUDGET.with(|all| all[budget].get());
                    spinner.pauses = pauses(nanoseconds);
                    spinner.yields = yields;
                }
                Spin::Never => {}
                Spin::For(length) => spinner.until = Instant::now().checked_add(length),
            }
        }
        spinner
    }

    /// Passes a moment; false if it is time to sleep.
    pub(crate) fn turn(&mut self) -> bool {
        if self.pauses > 0 {
            self.pauses -= 1;
            spin_loop();
        } else if self.until.is_some_and(|until| Instant::now() < until) {
            (0..16).for_each(|_| spin_loop());
        } else if self.yields > 0 {
            self.yields -= 1;
            let now = || Yielding { since: Stopwatch::start(), times: 0 };
            self.yielding.get_or_insert_with(now).times += 1;
            std::thread::yield_now();
        } else {
            return false;
        }
        true
    }

    /// The word changed in time.
    pub(crate) fn hit(&self) {
        let crowded = |yielding: Yielding| yielding.since.elapsed() > LONG_YIELD * yielding.times;
        self.learn(|budget| match self.yielding {
            Some(yielding) if crowded(yielding) => budget.shorter().more_yields(),
            _ => budget.longer(),
        });
    }

    /// When the spin ended in vain, where something is to be learned from that.
    pub(crate) fn missed(&self) -> Option<Missed> {
        self.learns.then(Missed::now)
    }

    /// It did not, and the thread has slept; or only [shortly](Missed::shortly).
    pub(crate) fn miss(&self, shortly: bool) {
        self.learn(|budget| match budget.nanoseconds {
            MOST if shortly => Budget { nanoseconds: LEAST, ..budget.more_yields() },
            _ if shortly => budget.longer().more_yields(),
            _ => budget.shorter().fewer_yields(),
        });
    }

    fn learn(&self, next: impl FnOnce(Budget) -> Budget) {
        if !self.learns {
            return;
        }
        BUDGET.with(|all| all[self.budget].set(next(all[self.budget].get())));
    }
}

/// The longest rest. It is a burst of a hundred messages.
const LONGEST_REST: u32 = 1_700;
/// Who never rests would not learn that it pays: now and then, this is tried.
const TRIAL: u32 = 110;
/// One wait in so many is a trial.
const TRIALS: u32 = 32;

thread_local! {
    static REST: [Cell<Rest>; BUDGETS] = const { [const { Cell::new(Rest { nanoseconds: 0, waits: 0 }) }; BUDGETS] };
}

/// What a thread has learned of resting at the beginning of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    nanoseconds: u32,
    waits: u32,
}

impl Rest {
    /// Rests before a wait on the word at `address`; for [`learn`](Self::learn). No rest at all:
    /// `None`.
    pub(crate) fn take(address: usize) -> Option<Self> {
        if !SPINS || SETTING.get() == Spin::Never || cpus() == 1 {
            return None;
        }
        let mut rest = REST.with(|all| all[slot(address)].get());
        rest.waits = rest.waits.wrapping_add(1);
        if rest.waits.is_multiple_of(TRIALS) {
            rest.nanoseconds = rest.nanoseconds.max(TRIAL);
        }
        (0..pauses(rest.nanoseconds)).for_each(|_| spin_loop());
        Some(rest)
    }

    /// The wait is over, and there is `more` than was waited for, or not.
    pub(crate) fn learn(self, address: usize, more: bool) {
        let nanoseconds = match more {
            true => (2 * self.nanoseconds + 27).min(LONGEST_REST),
            false => self.nanoseconds / 2,
        };
        REST.with(|all| all[slot(address)].set(Rest { nanoseconds, ..self }));
    }
}

/// Where a thread keeps what it has learned of the word at `address`.
fn slot(address: usize) -> usize {
    ((address >> 3) ^ (address >> 7)) % BUDGETS
}

/// How many pauses take so long. They take 5 to 60 nanoseconds each, by the CPU.
pub(crate) fn pauses(nanoseconds: u32) -> u32 {
    static PER_MICROSECOND: Kept = Kept::new();
    nanoseconds * PER_MICROSECOND.get(measure_pauses) / 1_000
}

/// How many pauses there are to a microsecond: 1 to 1,000.
#[cold]
fn measure_pauses() -> u32 {
    const PAUSES: u32 = 64;
    let time = || {
        let start = Instant::now();
        (0..PAUSES).for_each(|_| spin_loop());
        start.elapsed().as_nanos()
    };
    let least = (0..3).map(|_| time()).min().and_then(|least| u32::try_from(least).ok());
    (PAUSES * 1_000 / least.unwrap_or(0).max(1)).clamp(1, 1_000)
}

/// The CPUs, asked for once.
fn cpus() -> u32 {
    static CPUS: Kept = Kept::new();
    CPUS.get(|| u32::try_from(crate::sys::cpus()).unwrap_or(u32::MAX))
}
