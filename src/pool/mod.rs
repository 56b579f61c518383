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
//! this program, values that `serde` knows, of any size.
//!
//! # Death
//! | what happens | then |
//! |---|---|
//! | a task panics | it is [`TaskError::Panicked`], with the worker's backtrace; the worker goes on |
//! | a worker dies | another takes its place at once. The task that it was at is tried again, [so often](Builder::retries), and then [`TaskError::WorkerDied`]; those that it had not begun are done by others, and those that it had done are done |
//! | a task takes [too long](Builder::task_timeout) | its worker is killed, and it is [`TaskError::TimedOut`]; others lose nothing |
//! | the owner dies | the workers are killed |
//! | the owner is [asked to stop](Builder::stop) | all that it was given is done, or all that was begun, by choice |
//!
//! A task has one result, which is given once. A task that is tried again may have been done, all
//! but for its result: let its effects be idempotent, or set [`retries(0)`](Builder::retries).
//!
//! # How it works
//! Each worker has two rings in one segment, for tasks and for results; all that is not done stays
//! with the owner as well. Tiny tasks go many to a message, as many as take a quarter of a
//! millisecond. A worker that has nothing to do gets what waits at another's. Results are read by
//! the thread that waits for one; if there is none, by one of the pool's two threads. (A third one
//! waits for a stop, if there may be one.) Values above 12 KiB go by a file in memory.
mod chunk;
mod core;
mod error;
mod finished;
mod map;
mod scheduler;
mod segment;
mod supervisor;
mod task;
mod worker;

pub use self::core::OnStop;
pub use error::{PoolError, TaskError};
pub use finished::{AsCompleted, Until, as_completed, wait};
pub use map::Map;
pub use task::Task;

use self::chunk::Chunk;
use self::core::{Core, Settings, StopEvent};
use self::scheduler::Scheduler;
use self::segment::{MAX_INLINE, MAX_WORKERS};
use self::supervisor::Supervisor;
use self::task::Cell;
use crate::deadline::Deadline;
use crate::event::Event;
use crate::process::wire::encode;
use crate::process::worker::numbers;
use crate::process::{SpawnError, code};
use crate::shareable::Shareable;
use crate::shared::Shared;
use ::core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Room for the usual argument, so that its encoding need not be moved as it grows.
const SHORT: usize = 60;

/// Worker processes that run functions.
///
/// Dropped, it is [terminated](Pool::terminate); [`join`](Pool::join) lets it finish first.
///
/// The workers are of the process that built it. In the child of a fork each task fails with
/// [`TaskError::Forked`], one that was given before the fork, too, and nothing else that is done to
/// the pool has an effect.
#[doc(alias = "multiprocessing")]
#[doc(alias = "ProcessPoolExecutor")]
pub struct Pool {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How a pool is to be: made by [`Pool::builder`].
#[must_use = "it is no pool before `build`"]
pub struct Builder {
    settings: Settings,
    wrong: Option<PoolError>,
}

/// What a pool has done so far, and what it is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks that have their result, or have failed.
    pub done: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Tasks that are not done.
    pub unfinished: u64,
    /// Times that a task was tried again, since its worker died at it.
    pub retried: u64,
    /// Workers that are at work.
    pub running: usize,
    /// Workers there are.
    pub workers: usize,
    /// Workers that died: that were killed, or ended in the middle of a task.
    pub lost: u64,
    /// Workers that were replaced, or are about to be: those that died, and those that had done
    /// their number of tasks.
    pub replaced: u64,
}

impl Builder {
    /// How many workers: 1 to 256. Default: one for each CPU.
    #[doc(alias = "processes")]
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// Replaces each worker when it has done so many tasks. Default: never. 0 counts as 1.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        self.settings.most_tasks = tasks.max(1);
        self
    }

    /// Has each worker call `function(argument)` before its first task. If that panics again and
    /// again, the pool is [`TaskError::Broken`].
    pub fn initializer<A: Serialize + DeserializeOwned>(
        mut self,
        function: fn(A),
        argument: A,
    ) -> Self {
        let mut bytes = Vec::new();
        match (numbers::<A, ()>(function), encode(&argument, &mut bytes)) {
            (Some((entry, function)), Ok(())) => {
                self.settings.initializer = Some((entry, function, bytes));
            }
            (None, _) => self.wrong = Some(SpawnError::ForeignFunction.into()),
            (_, Err(error)) => self.wrong = Some(SpawnError::Encode(error.to_string()).into()),
        }
        self
    }

    /// How long a task may take. Then its worker is killed; not before that, but up to 50 ms later.
    /// Default: as long as it likes.
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// How often a task is tried again whose worker died at it. Default: 2.
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Lets tasks open `shared` with [`Shared::inherited`]`(key)`.
    pub fn share<T: ?Sized + Shareable + Sync + 'static>(
        mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> Self {
        match shared.try_clone_fd() {
            Ok(fd) => self.settings.shared.push((key.to_owned(), fd)),
            Err(error) => self.wrong = Some(error.into()),
        }
        self
    }

    /// Hands a descriptor on to the workers, as
    /// [`process::Builder::share_fd`](crate::process::Builder::share_fd).
    pub fn share_fd(mut self, key: &str, fd: OwnedFd) -> Self {
        self.settings.shared.push((key.to_owned(), fd));
        self
    }

    /// Has the pool stop, in one of two ways, once `event` is set: by this process's
    /// [signals](crate::process::Stop), by a task, by anybody.
    ///
    /// It takes no more tasks then: those fail with [`TaskError::Stopped`]. For how its tasks end,
    /// the pool stays what it was; it is [joined](Pool::join) or dropped as usual. The event must
    /// be a [manual](crate::Event::manual) one. Workers look at it if it is [shared](Self::share)
    /// with them as well.
    ///
    /// ```standalone_crate
    /// use outlast::pool::{OnStop, Pool, TaskError};
    /// use outlast::process::{self, Stop};
    ///
    /// fn work(step: u64) -> u64 {
    ///     std::thread::sleep(std::time::Duration::from_millis(20));
    ///     step
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     process::init(); // first of all
    ///     let stop = Stop::on_signals()?;
    ///     let pool = Pool::builder().workers(2).stop(&stop, OnStop::Drop).build()?;
    ///     for result in pool.map(work, 0..1_000) {
    ///         match result {
    ///             Ok(3) => drop(std::process::Command::new("kill").arg(std::process::id().to_string()).status()?),
    ///             Ok(_) => {}
    ///             Err(TaskError::Stopped) => break, // what had been begun is done
    ///             Err(error) => return Err(error.into()),
    ///         }
    ///     }
    ///     pool.join();
    ///     assert!(pool.stats().done < 1_000);
    ///     # if Stop::signal(&stop) == Some(15) { return Ok(()) }
    ///     Stop::reraise(&stop); // ends this process as the signal would have
    ///     Ok(())
    /// }
    /// ```
    pub fn stop(mut self, event: &Shared<Event>, what: OnStop) -> Self {
        self.settings.stop = Some((StopEvent(event.clone()), what));
        self
    }

    /// A name of the workers for tools such as `top`, which show 15 bytes of it.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.settings.name);
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// [`SpawnError::NotInitialised`] if [`process::init`](crate::process::init) was not called;
    /// see [`PoolError`].
    pub fn build(self) -> Result<Pool, PoolError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        if !(1..=MAX_WORKERS).contains(&self.settings.workers) {
            return Err(PoolError::InvalidWorkers);
        }
        code::image().ok_or(SpawnError::ForeignFunction)?;
        let core = Core::new(self.settings)?;
        let pool = Pool { core: Arc::clone(&core), threads: Mutex::default() };
        let dispatcher = Arc::clone(&core);
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
            pool.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            Ok::<_, PoolError>(())
        };
        start("pool-dispatcher", Box::new(move || dispatcher.run_dispatcher()))?;
        if core.settings.stop.is_some() {
            let core = Arc::clone(&core);
            start("pool-stop", Box::new(move || core.wait_for_stop()))?;
        }
        start("pool-supervisor", Box::new(move || Supervisor::default().watch(&core)))?;
        Ok(pool)
    }
}

impl Pool {
    /// A pool of one worker for each CPU, or as the builder is told.
    pub fn builder() -> Builder {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings {
            workers: workers.min(MAX_WORKERS),
            most_tasks: u64::MAX,
            retries: 2,
            timeout: None,
            initializer: None,
            shared: Vec::new(),
            name: String::from("outlast-worker"),
            stop: None,
        };
        Builder { settings, wrong: None }
    }

    /// Runs `function(argument)` in a worker, and waits for what it returns.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub fn apply<A, R>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let (task, woke_worker) = self.give(function, &argument)?;
        if woke_worker {
            // The worker may be waiting for this CPU: then the result is there when this thread has
            // it back.
            std::thread::yield_now();
        }
        task.join()
    }

    /// Has `function(argument)` run in a worker.
    #[doc(alias = "apply_async")]
    pub fn submit<A, R>(&self, function: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        match self.give(function, &argument) {
            Ok((task, _)) => {
                self.core.ensure_leader();
                task
            }
            Err(error) => {
                let cell = Arc::<Cell>::default();
                chunk::ResultSink::deliver(
                    &*cell,
                    0,
                    1,
                    chunk::Outcome::Failed(error),
                    &mut Vec::new(),
                );
                Task::new(cell, Arc::clone(&self.core))
            }
        }
    }

    /// The task, and whether a worker was woken for it.
    fn give<A, R>(&self, function: fn(A) -> R, argument: &A) -> Result<(Task<R>, bool), TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let (entry, number) = numbers(function).ok_or(TaskError::ForeignFunction)?;
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
        let cell = Arc::<Cell>::default();
        let chunk = |scheduler: &mut Scheduler| Chunk {
            sink: Arc::clone(&cell) as _,
            base: 0,
            count: 1,
            done: 0,
            attempts: 0,
            entry,
            function: number,
            cost: scheduler.cost_of(number),
            body,
            large,
            waits: None,
        };
        let woke_worker = self.core.submit(chunk, false)?;
        Ok((Task::new(cell, Arc::clone(&self.core)), woke_worker))
    }

    /// Applies `function` to each argument; the results in the same order, as they come.
    ///
    /// For a function of several arguments let it take a tuple. Collected into a `Result`, it stops
    /// at the first error; into a `Vec`, each task has its own.
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

    /// Applies `function` to each argument; the results as they come, in any order.
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

    /// What has been done, and what is under way; all zero in the child of a fork.
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

    /// The workers' pids; none in the child of a fork.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        if self.core.is_copy() {
            return Vec::new();
        }
        let scheduler = self.core.scheduler();
        let worker = scheduler.workers.iter().filter_map(|state| state.handle.as_ref());
        worker.map(|worker| worker.process.pid()).collect()
    }

    /// Takes no more tasks: those fail with [`TaskError::Closed`]. Those that it has are done.
    pub fn close(&self) {
        if !self.core.is_copy() {
            self.core.scheduler().closed.get_or_insert(TaskError::Closed);
        }
    }

    /// Closes the pool, waits until all tasks are done, and has the workers end.
    pub fn join(&self) {
        self.close();
        if !self.core.is_copy() {
            self.core.drain(Deadline::NEVER);
            self.end_workers();
        }
    }

    /// Closes the pool, and waits at most `timeout` until all tasks are done; whether they are. The
    /// workers go on until they are.
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

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish()
    }
}
