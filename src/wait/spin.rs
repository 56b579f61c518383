//! How long a waiting thread spins before it sleeps.
//!
//! # The budget of a spin
//! A spin that succeeds is 300 times faster than a sleep. A spin that fails only uses up CPU time.
//! So each thread keeps a *budget* for the words that it waits on:
//!
//! - After a success the budget doubles.
//! - After a failure it halves.
//! - After a failure and a short sleep it doubles, because a longer spin might have succeeded.
//! - If the longest spin fails in this way, the other threads have no CPU to run on. The budget
//!   starts again from the shortest spin.
//!
//! On a machine with one CPU no thread spins, because no other thread could change the word in the
//! meantime. The number of CPUs that the calling thread may use does not matter: the thread that
//! will change the word may use others.
//!
//! A spin is a number of CPU pauses and then a number of yields to the scheduler. The thread checks
//! the word after each. If a yield lets the other thread run and this was needed, pauses only keep
//! the CPU from that thread. Then the number of pauses halves, and that of the yields doubles.
//!
//! # The rest before a spin
//! Each check of a word takes its cache line from the CPU that writes it. So a thread that waits
//! for the first of many messages should not check immediately. Such a wait begins with a *rest*, a
//! number of pauses without a check. The rest grows as long as there is more than one message after
//! it.
use crate::sync::{Kept, SPINS, spin_loop};
use crate::sys::stopwatch::Stopwatch;
use core::cell::Cell;
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps, in every call that blocks.
///
/// ```
/// use outlast::Spin;
/// Spin::Never.set(); // this program has many more threads than there are CPUs
/// # Spin::Adaptive.set();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spin {
    /// Spins as long as it was useful lately, up to about 50 microseconds. This is the default.
    #[default]
    Adaptive,
    /// Sleeps immediately.
    Never,
    /// Always spins this long.
    For(Duration),
}

impl Spin {
    /// Sets this mode for the calling thread.
    pub fn set(self) {
        SETTING.set(self);
    }
}

/// The budget of a word that the thread has not waited on before, in nanoseconds.
const FIRST: u32 = 2_700;
/// The greatest budget, in nanoseconds: the longest time that waking a sleeper takes.
const MOST: u32 = 50_000;
/// The smallest budget, in nanoseconds. It is not zero, or no spin could ever succeed again.
const LEAST: u32 = 80;
/// The number of yields after the pauses: at first, and at most.
const YIELDS: u32 = 2;
const MOST_YIELDS: u32 = 64;
/// If a yield takes longer than this, it has let another thread run.
const LONG_YIELD: Duration = Duration::from_nanos(1_000);
/// The number of budgets that a thread keeps. The address of a word selects one of them.
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

/// The length of a short sleep. Most of it is the time that the wake takes.
const SHORT: Duration = Duration::from_micros(150);

/// The moment when a spin failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed(Stopwatch);

impl Missed {
    fn now() -> Self {
        Missed(Stopwatch::start())
    }

    /// Returns whether a longer spin might have succeeded.
    pub(crate) fn shortly(self) -> bool {
        self.0.elapsed() < SHORT
    }
}

/// The spin of one wait.
#[derive(Debug)]
pub(crate) struct Spinner {
    budget: usize,
    learns: bool,
    pauses: u32,
    yields: u32,
    yielding: Option<Yielding>,
    until: Option<Instant>,
}

/// The yields of a spin.
#[derive(Clone, Copy, Debug)]
struct Yielding {
    since: Stopwatch,
    times: u32,
}

impl Spinner {
    /// Begins a wait on the word at `address`.
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

    /// Waits for a moment. Returns `false` if it is time to sleep.
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

    /// Learns that the spin has succeeded.
    pub(crate) fn hit(&self) {
        let crowded = |yielding: Yielding| yielding.since.elapsed() > LONG_YIELD * yielding.times;
        self.learn(|budget| match self.yielding {
            Some(yielding) if crowded(yielding) => budget.shorter().more_yields(),
            _ => budget.longer(),
        });
    }

    /// Returns the moment when the spin failed, if the thread learns from it.
    pub(crate) fn missed(&self) -> Option<Missed> {
        self.learns.then(Missed::now)
    }

    /// Learns that the spin has failed, and whether the thread then slept
    /// [shortly](Missed::shortly).
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

/// The longest rest, in nanoseconds: the time of a burst of a hundred messages.
const LONGEST_REST: u32 = 1_700;
/// The rest of a trial, in nanoseconds. A thread that never rests would not learn that it helps.
const TRIAL: u32 = 110;
/// One wait in this many is a trial.
const TRIALS: u32 = 32;

thread_local! {
    static REST: [Cell<Rest>; BUDGETS] = const { [const { Cell::new(Rest { nanoseconds: 0, waits: 0 }) }; BUDGETS] };
}

/// What a thread has learned about resting before a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    nanoseconds: u32,
    waits: u32,
}

impl Rest {
    /// Rests before a wait on the word at `address`. Returns a value for [`learn`](Self::learn), or
    /// `None` if threads do not rest.
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

    /// Learns, after the wait, whether there is `more` than one message.
    pub(crate) fn learn(self, address: usize, more: bool) {
        let nanoseconds = match more {
            true => (2 * self.nanoseconds + 27).min(LONGEST_REST),
            false => self.nanoseconds / 2,
        };
        REST.with(|all| all[slot(address)].set(Rest { nanoseconds, ..self }));
    }
}

/// The index at which a thread keeps what it has learned about the word at `address`.
fn slot(address: usize) -> usize {
    ((address >> 3) ^ (address >> 7)) % BUDGETS
}

/// Returns how many pauses take this time. One takes 5 to 60 nanoseconds, depending on the CPU.
pub(crate) fn pauses(nanoseconds: u32) -> u32 {
    static PER_MICROSECOND: Kept = Kept::new();
    nanoseconds * PER_MICROSECOND.get(measure_pauses) / 1_000
}

/// Measures how many pauses take a microsecond: 1 to 1,000.
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

/// The number of CPUs. The system is asked once.
fn cpus() -> u32 {
    static CPUS: Kept = Kept::new();
    CPUS.get(|| u32::try_from(crate::sys::cpus()).unwrap_or(u32::MAX))
}
