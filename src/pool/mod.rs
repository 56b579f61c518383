//! Pools of worker processes.
//!
//! ```standalone_crate
//! use outlast::pool::Pool;
//!
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! fn main() -> Result<(), outlast::Error> {
//!     outlast::process::init(); // first of all
//!     let pool = Pool::builder().workers(2).build()?;
//!     assert_eq!(pool.apply(square, 12)?, 144);
//!     let squares: Result<Vec<u64>, _> = pool.map(square, 0..1_000).collect();
//!     assert_eq!(squares?[999], 998_001);
//!     let task = pool.submit(square, 5); // a future, as well
//!     assert_eq!(task.join()?, 25);
//!     Ok(())
//! }
//! ```
//!
//! Functions, arguments and results are those of [`Process`](crate::process::Process): a `fn` of
//! this program, and `serde` values of any size. A value that is built once in each worker is its
//! [`context`](context()). A task can [submit tasks](current) to its own pool. Tests call
//! [`init_in_tests!`](crate::init_in_tests) instead of `init`.
//!
//! # Death
//! | event | consequence |
//! |---|---|
//! | a task panics | The task fails with [`TaskError::Panicked`]. The worker goes on. |
//! | a worker dies | The worker is replaced. The task that it ran is tried again, up to [`retries`](Builder::retries) times, and then fails with [`TaskError::WorkerDied`]. Other workers run the tasks that it had not begun. |
//! | a task exceeds its [time limit](Builder::task_timeout) | Its worker is killed, and the task fails with [`TaskError::TimedOut`]. No other task is affected. |
//! | the owner dies | The workers are killed. |
//! | the owner is [asked to stop](Builder::stop) | The pool finishes all its tasks, or only those that have begun, by choice. |
//!
//! Each task has one result. A task that is tried again may have run to its end before, without
//! having delivered its result. Make its effects idempotent, or set
//! [`retries(0)`](Builder::retries).
//!
//! # How it works
//! Each worker has two rings in one shared segment, for tasks and for results. The owner keeps a
//! copy of every unfinished task. Short tasks share a message, up to a quarter of a millisecond of
//! work. An idle worker gets tasks that wait at another. Results are read by the thread that waits
//! for one, or else by the pool's dispatcher thread. A supervisor thread watches the workers, and a
//! third thread waits for the stop event, if there is one. Values above 12 KiB are passed as files
//! in memory.
mod builder;
mod call;
mod cell;
mod chunk;
mod client;
mod connection;
mod context;
mod core;
mod error;
mod handle;
mod map;
mod protocol;
mod scheduler;
mod segment;
mod supervisor;
mod task;
mod task_set;
mod worker;

pub use self::builder::Builder;
pub use self::context::context;
pub use self::core::OnStop;
pub use chunk::TaskOptions;
pub use error::{PoolError, TaskError};
pub use handle::{PoolHandle, current};
pub use map::Map;
pub use task::Task;
pub use task_set::{AsCompleted, TaskSet, Until, as_completed, wait};

use self::cell::TaskCell;
use self::chunk::Chunk;
use self::core::Core;
use self::scheduler::Scheduler;
use self::segment::MAX_INLINE;
use self::task::Backend;
use crate::deadline::Deadline;
use crate::process::wire::encode;
use crate::process::worker::numbers;
use ::core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Room for the usual argument, so that its encoding need not be moved as it grows.
const SHORT: usize = 60;

/// Worker processes that run functions.
///
/// Dropping a pool [terminates](Pool::terminate) it. [`join`](Pool::join) lets it finish first.
///
/// The workers belong to the process that built the pool. In the child of a fork every task fails
/// with [`TaskError::Forked`], including tasks submitted before the fork, and no other method has
/// an effect.
#[doc(alias = "multiprocessing")]
#[doc(alias = "ProcessPoolExecutor")]
pub struct Pool {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Numbers of a pool's tasks and workers, past and present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks that have returned a value or have failed.
    pub done: u64,
    /// Tasks among them that have failed.
    pub failed: u64,
    /// Tasks that are not done.
    pub unfinished: u64,
    /// How often a task was tried again because its worker died.
    pub retried: u64,
    /// Workers that have tasks.
    pub running: usize,
    /// Workers that exist.
    pub workers: usize,
    /// Workers that died: that were killed, or ended in the middle of a task.
    pub lost: u64,
    /// Workers that have ended and were replaced, or are about to be.
    pub replaced: u64,
}

/// The encoded call of a function.
struct Call {
    entry: u64,
    function: u64,
    /// The argument, after its length unless it is large.
    body: Vec<u8>,
    large: bool,
}

impl Call {
    fn new<A, R>(function: fn(A) -> R, argument: &A) -> Result<Call, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let (entry, function) = numbers(function).ok_or(TaskError::ForeignFunction)?;
        let mut body = Vec::with_capacity(SHORT);
        body.extend([0; 4]);
        encode(argument, &mut body).map_err(|error| TaskError::Argument(error.to_string()))?;
        let large = body.len() > MAX_INLINE;
        if large {
            body.drain(..4);
        } else {
            let length = u32::try_from(body.len() - 4).unwrap_or(0);
            body[..4].copy_from_slice(&length.to_le_bytes());
        }
        Ok(Call { entry, function, body, large })
    }

    /// Makes a chunk of the one call, whose result `sink` receives.
    #[inline]
    fn into_chunk(
        self,
        scheduler: &mut Scheduler,
        sink: Arc<dyn chunk::ResultSink>,
        options: TaskOptions,
    ) -> Chunk {
        let options = (options != TaskOptions::new()).then(|| Box::new(options));
        let Call { entry, function, body, large } = self;
        Chunk {
            sink,
            base: 0,
            count: 1,
            done: 0,
            attempts: 0,
            entry,
            function,
            cost: scheduler.cost_of(function),
            body,
            large,
            waits: None,
            options,
        }
    }
}

/// Where a task comes from, which decides whether a closed or stopped pool accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskOrigin {
    /// The owner.
    Owner,
    /// A map that the owner began before the pool was stopped.
    EarlierMap,
    /// A task of this pool.
    Task,
}

impl Pool {
    /// Returns a builder for a pool of one worker for each CPU.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs `function(argument)` in a worker, and blocks until it returns.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub fn apply<A, R>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let (task, woke_worker) = self.start(function, &argument, TaskOptions::new())?;
        if woke_worker {
            // The worker may be waiting for this CPU. If so, the result is there when this thread
            // gets the CPU back.
            std::thread::yield_now();
        }
        task.join()
    }

    /// Submits `function(argument)`, to be run in a worker.
    #[doc(alias = "apply_async")]
    pub fn submit<A, R>(&self, function: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.submit_with(TaskOptions::new(), function, argument)
    }

    /// Like [`submit`](Self::submit), with options for this task.
    ///
    /// ```standalone_crate
    /// use outlast::pool::{Pool, TaskError, TaskOptions};
    /// use std::time::Duration;
    ///
    /// fn sleeps(seconds: u64) {
    ///     std::thread::sleep(Duration::from_secs(seconds));
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     outlast::process::init(); // first of all
    ///     let pool = Pool::builder().workers(2).build()?;
    ///     let brief = TaskOptions::new().timeout(Duration::from_millis(50));
    ///     let task = pool.submit_with(brief, sleeps, 3_600);
    ///     assert_eq!(task.join(), Err(TaskError::TimedOut));
    ///     Ok(())
    /// }
    /// ```
    pub fn submit_with<A, R>(
        &self,
        options: TaskOptions,
        function: fn(A) -> R,
        argument: A,
    ) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        match self.start(function, &argument, options) {
            Ok((task, _)) => {
                self.core.ensure_leader();
                task
            }
            Err(error) => Task::failed(error),
        }
    }

    /// Returns the task, and whether a worker was woken for it.
    fn start<A, R>(
        &self,
        function: fn(A) -> R,
        argument: &A,
        options: TaskOptions,
    ) -> Result<(Task<R>, bool), TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let call = Call::new(function, argument)?;
        let cell = Arc::<TaskCell>::default();
        let chunk =
            |scheduler: &mut Scheduler| call.into_chunk(scheduler, Arc::clone(&cell) as _, options);
        let woke_worker = self.core.submit(chunk, TaskOrigin::Owner)?;
        if let Some(limit) = options.timeout {
            self.core.watch_limit(limit);
        }
        Ok((Task::new(cell, Backend::Owner(Arc::clone(&self.core))), woke_worker))
    }

    /// Applies `function` to each argument. Returns an iterator over the results, in the order of
    /// the arguments.
    ///
    /// A function of several arguments takes a tuple. Collecting into a `Result` stops at the first
    /// error; collecting into a `Vec` keeps the result of each task.
    #[doc(alias = "imap")]
    #[doc(alias = "starmap")]
    pub fn map<A, R, I>(&self, function: fn(A) -> R, input: I) -> Map<'_, I::IntoIter, A, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        Map::new(self, function, input.into_iter(), true)
    }

    /// Applies `function` to each argument. Returns an iterator over the results, in the order in
    /// which they come.
    #[doc(alias = "imap_unordered")]
    pub fn map_unordered<A, R, I>(
        &self,
        function: fn(A) -> R,
        input: I,
    ) -> Map<'_, I::IntoIter, A, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        Map::new(self, function, input.into_iter(), false)
    }

    /// Changes the number of workers.
    ///
    /// More workers are started in the background. If there are too many, idle workers end first;
    /// others finish the task that they run, and pass on those that they have not begun.
    /// [`stats`](Self::stats) tells how many there are. Has no effect after the pool has ended, and
    /// none in the child of a fork.
    ///
    /// ```standalone_crate
    /// use outlast::pool::Pool;
    ///
    /// fn square(x: u64) -> u64 {
    ///     x * x
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     outlast::process::init(); // first of all
    ///     let pool = Pool::builder().workers(1).max_workers(4).build()?;
    ///     pool.set_workers(4)?; // for the heavy part
    ///     let squares: Result<Vec<u64>, _> = pool.map(square, 0..1_000).collect();
    ///     assert_eq!(squares?[30], 900);
    ///     pool.set_workers(1)?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`PoolError::InvalidWorkers`] if `workers` is 0 or above [`Builder::max_workers`].
    pub fn set_workers(&self, workers: usize) -> Result<(), PoolError> {
        let max = self.core.settings.max_workers;
        if !(1..=max).contains(&workers) {
            return Err(PoolError::InvalidWorkers { workers, max });
        }
        self.core.set_workers(workers);
        Ok(())
    }

    /// Returns what the pool has done, and what it is doing. All zero in the child of a fork.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.core.is_copy() {
            return Stats::default();
        }
        self.core.collect_results(); // perhaps no other thread reads results
        let scheduler = self.core.scheduler();
        Stats {
            done: scheduler.counts.done,
            failed: scheduler.counts.failed,
            unfinished: scheduler.unfinished,
            retried: scheduler.counts.retried,
            running: scheduler.busy(),
            workers: scheduler.workers.iter().filter(|state| state.handle.is_some()).count(),
            lost: scheduler.counts.lost,
            replaced: scheduler.counts.replaced,
        }
    }

    /// Returns the workers' pids. Empty in the child of a fork.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        if self.core.is_copy() {
            return Vec::new();
        }
        let scheduler = self.core.scheduler();
        let worker = scheduler.workers.iter().filter_map(|state| state.handle.as_ref());
        worker.map(|worker| worker.process.pid()).collect()
    }

    /// Closes the pool: tasks submitted from now on fail with [`TaskError::Closed`]. The tasks that
    /// it has are finished, and may still [submit tasks](current).
    pub fn close(&self) {
        if !self.core.is_copy() {
            self.core.scheduler().closed.get_or_insert(TaskError::Closed);
        }
    }

    /// Closes the pool, blocks until all tasks are done, and ends the workers.
    pub fn join(&self) {
        self.close();
        if !self.core.is_copy() {
            self.core.drain(Deadline::NEVER);
            self.end_workers();
        }
    }

    /// Closes the pool, and blocks until all tasks are done or `timeout` has elapsed. Returns
    /// whether they are done. If so, it ends the workers.
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        self.close();
        let done = self.core.drain(Deadline::after(timeout));
        if done && !self.core.is_copy() {
            self.end_workers();
        }
        done
    }

    /// Kills the workers. Unfinished tasks fail with [`TaskError::Terminated`].
    pub fn terminate(&self) {
        if !self.core.is_copy() {
            self.core.end(&TaskError::Terminated);
            self.end_workers();
        }
    }

    fn end_workers(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.stop(threads.drain(..));
        self.core.end_workers();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.terminate();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish()
    }
}
