//! How long to look before sleeping.
//!
//! A spin that hits is 300 times faster than a sleep; one that misses burns a core for nothing. So
//! each thread keeps a budget for the words that it waits on, which doubles when a spin has hit
//! and halves when one has missed; but if the sleep after it was short, a longer spin might have
//! hit, and it doubles as well. If the longest has missed so, the others have no CPU to run on: it starts
//! again from the least. With one CPU nobody can change the word meanwhile: no spin.
use crate::sync::SPINS;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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

/// What an unknown word gets: about 2.7 microseconds at 27 ns a pause.
const FIRST: u32 = 100;
/// Some 50 microseconds: what waking a sleeper costs at worst.
const MOST: u32 = 1_850;
/// Below this a miss no longer halves: a budget of nothing could never see a hit.
const LEAST: u32 = 12;
/// Looks after the budget is spent, each with the CPU offered to others.
const YIELDS: u32 = 2;
/// Words told apart, by address.
const BUDGETS: usize = 16;

thread_local! {
    static SETTING: Cell<Spin> = const { Cell::new(Spin::Adaptive) };
    static BUDGET: [Cell<u32>; BUDGETS] = const { [const { Cell::new(FIRST) }; BUDGETS] };
}

/// A sleep of which the waking was the most.
const SHORT: Duration = Duration::from_micros(150);

/// When a spin ended in vain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed(Instant);

impl Missed {
    pub(crate) fn now() -> Self {
        Missed(Instant::now())
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
    left: u32,
    yields: u32,
    until: Option<Instant>,
}

impl Spinner {
    /// For a wait on the word at `address`.
    pub(crate) fn new(address: usize) -> Self {
        let budget = (address >> 6) % BUDGETS;
        let mut spinner = Spinner { budget, left: 0, yields: 0, until: None };
        if SPINS && cpus() > 1 {
            match SETTING.get() {
                Spin::Adaptive => {
                    spinner.left = BUDGET.with(|all| all[budget].get());
                    spinner.yields = YIELDS;
                }
                Spin::Never => {}
                Spin::For(length) => spinner.until = Instant::now().checked_add(length),
            }
        }
        spinner
    }

    /// Passes a moment; false if it is time to sleep.
    pub(crate) fn turn(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            crate::sync::spin_loop();
        } else if self.until.is_some_and(|until| Instant::now() < until) {
            (0..16).for_each(|_| crate::sync::spin_loop());
        } else if self.yields > 0 {
            self.yields -= 1;
            std::thread::yield_now();
        } else {
            return false;
        }
        true
    }

    /// The word changed in time.
    pub(crate) fn hit(&self) {
        self.learn(|budget| (budget * 2).min(MOST));
    }

    /// It did not, and the thread has slept; or only [shortly](Missed::shortly).
    pub(crate) fn miss(&self, shortly: bool) {
        self.learn(|budget| match budget {
            MOST if shortly => LEAST,
            _ if shortly => (budget * 2).min(MOST),
            _ => (budget / 2).max(LEAST),
        });
    }

    fn learn(&self, next: impl FnOnce(u32) -> u32) {
        BUDGET.with(|all| all[self.budget].set(next(all[self.budget].get())));
    }
}

/// The CPUs of this process, asked for once. (Not a `OnceLock`: a child forked while another thread
/// is in it would wait for that thread for ever.)
fn cpus() -> usize {
    static CPUS: AtomicUsize = AtomicUsize::new(0);
    match CPUS.load(Relaxed) {
        0 => {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            CPUS.store(cpus, Relaxed);
            cpus
        }
        cpus => cpus,
    }
}
