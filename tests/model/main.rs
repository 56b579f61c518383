//! Models of the primitives. loom runs each model in every order of its threads' steps, and with
//! every value that a weakly ordered memory may show, up to a number of preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg outlast_loom" LOOM_MAX_PREEMPTIONS=2 cargo test --profile loom --test model
//! ```
//!
//! A thread stands for a process. A lost wake shows as a deadlock. A missing ordering shows as a
//! race on a value, or as a relaxed load of an old value. A process is killed before each of its
//! atomic operations in turn ([`killed_anywhere`]), which no test with real processes can do.
#![cfg(outlast_loom)]

mod barrier;
mod byte_channel;
mod bytes;
mod channel;
mod condition;
mod event;
mod history;
mod latch;
mod lock;
mod log;
mod once;
mod pipe;
mod priority;
mod priority_channel;
mod queue;
mod reentrant;
mod rwlock;
mod semaphore;
mod spsc;

use core::time::Duration;
use loom::model::Builder;
use loom::thread::{self, JoinHandle};
use outlast::__private::Dead;
use outlast::__private::live;
use outlast::{Shareable, Shared};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A timeout that may end at any moment.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// How long one model is explored at most. All but the largest models are complete before. A model
/// that is not complete says so. With `OUTLAST_MODELS=full` there is no limit.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_full() -> bool {
    std::env::var_os("OUTLAST_MODELS").is_some_and(|value| value == "full")
}

/// Runs `model` in every order with up to `LOOM_MAX_PREEMPTIONS` preemptions, or 2.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    check_up_to(usize::MAX, model);
}

/// Like [`check`], without a limit of time.
pub(crate) fn check_whole(model: impl Fn() + Send + Sync + 'static) {
    builder(usize::MAX).check(model);
}

fn builder(bound: usize) -> Builder {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(2).min(bound));
    builder.max_branches = builder.max_branches.max(20_000);
    builder
}

/// Like [`check`], for a model that is too large for more than `bound` preemptions.
pub(crate) fn check_up_to(bound: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = builder(bound);
    if !is_full() {
        builder.max_duration = Some(PATIENCE);
    }
    let began = Instant::now();
    builder.check(model);
    if !is_full() && began.elapsed() >= PATIENCE {
        let name = std::thread::current().name().unwrap_or("a model").to_owned();
        // The test runner does not capture what is written to `stderr()` itself.
        writeln!(std::io::stderr(), "{name}: not all orders in {PATIENCE:?}").unwrap_or(());
    }
}

/// Starts threads that fall asleep, in one order only: falling asleep has models of its own.
pub(crate) fn asleep<R>(start: impl FnOnce() -> R) -> R {
    loom::stop_exploring();
    let threads = start();
    thread::yield_now();
    loom::explore();
    threads
}

pub(crate) fn share<T: Shareable>(value: T) -> Shared<T> {
    Shared::anonymous(value).unwrap()
}

pub(crate) fn spawn<T: 'static, R: 'static>(
    shared: &Shared<T>,
    act: impl FnOnce(&T) -> R + 'static,
) -> JoinHandle<R> {
    let shared = shared.clone();
    thread::spawn(move || act(&shared))
}

pub(crate) fn join<R>(threads: impl IntoIterator<Item = JoinHandle<R>>) -> Vec<R> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Spawns a process that is killed after `act`, with all that it then holds.
pub(crate) fn spawn_dying<T: 'static, R: 'static>(
    shared: &Shared<T>,
    act: impl Fn(&T) -> R + 'static,
) -> JoinHandle<Dead> {
    spawn(shared, move |shared| Dead::killed(live(u32::MAX, || act(shared)).0))
}

/// A process that [`killed_anywhere`] kills.
pub(crate) struct Victim {
    life: u32,
    killed: Arc<AtomicBool>,
}

/// What became of a victim.
pub(crate) struct Life<R> {
    pub(crate) dead: Dead,
    /// What its work returned, unless it was killed.
    pub(crate) result: Option<R>,
}

impl Victim {
    pub(crate) fn spawn<T: 'static, R: 'static>(
        &self,
        shared: &Shared<T>,
        act: impl Fn(&T) -> R + 'static,
    ) -> JoinHandle<Life<R>> {
        let (life, killed) = (self.life, self.killed.clone());
        spawn(shared, move |shared| {
            let (tag, result) = live(life, || act(shared));
            killed.fetch_or(result.is_none(), std::sync::atomic::Ordering::Relaxed);
            Life { dead: Dead::killed(tag), result }
        })
    }
}

/// Checks `model` with a victim that is killed before its first atomic operation, then with one
/// that is killed before its second one, and so on until the victim always reaches its end. The
/// kill itself interrupts the victim at every place. So one preemption is enough, unless
/// `OUTLAST_MODELS` is `full`.
pub(crate) fn killed_anywhere(model: impl Fn(&Victim) + Send + Sync + 'static) {
    let bound = if is_full() { usize::MAX } else { 1 };
    let model = Arc::new(model);
    for life in 0.. {
        let killed = Arc::new(AtomicBool::new(false));
        let (model, victim) = (model.clone(), Victim { life, killed: killed.clone() });
        check_up_to(bound, move || model(&victim));
        if !killed.load(std::sync::atomic::Ordering::Relaxed) {
            assert!(life > 2, "the victim did nothing");
            return;
        }
    }
}
