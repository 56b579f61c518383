//! The settings of a pool.
use super::Pool;
use super::context;
use super::core::{Core, OnStop, Settings, StopEvent};
use super::error::PoolError;
use super::segment::MAX_WORKERS;
use super::supervisor::Supervisor;
use crate::event::Event;
use crate::process::wire::encode;
use crate::process::worker::numbers_of;
use crate::process::{SpawnError, code};
use crate::shareable::Shareable;
use crate::shared::Shared;
use core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The settings of a pool. Made by [`Pool::builder`].
#[must_use = "no pool exists before `build`"]
pub struct Builder {
    settings: Settings,
    error: Option<PoolError>,
}

impl Builder {
    /// Sets the number of workers, 1 to 256. Default: one for each CPU.
    #[doc(alias = "processes")]
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// Sets the number up to which [`Pool::set_workers`] can raise the number of workers. Default:
    /// the number of [workers](Self::workers).
    ///
    /// A pool's shared segment has a slot of 128 KiB for each possible worker. There are segments
    /// for 4, 16, 64 and 256 workers.
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.settings.max_workers = workers;
        self
    }

    /// Replaces each worker after it has run this many tasks. 0 counts as 1. Default: never.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        self.settings.most_tasks = tasks.max(1);
        self
    }

    /// Has each worker call `function(argument)` before its first task.
    ///
    /// Tasks get the value that it returns by [`context`](super::context()), where an example is.
    /// If the function panics, or its worker dies, another worker is started. After nine failures
    /// in a row, the pool's tasks fail with [`TaskError::Broken`](super::TaskError::Broken), which
    /// says what happened.
    pub fn initializer<A, C>(mut self, function: fn(A) -> C, argument: A) -> Self
    where
        A: Serialize + DeserializeOwned,
        C: 'static,
    {
        let mut bytes = Vec::new();
        match (numbers_of(context::entry::<A, C>, function), encode(&argument, &mut bytes)) {
            (Some((entry, function)), Ok(())) => {
                self.settings.initializer = Some((entry, function, bytes));
            }
            (None, _) => self.error = Some(SpawnError::ForeignFunction.into()),
            (_, Err(error)) => self.error = Some(SpawnError::Encode(error.to_string()).into()),
        }
        self
    }

    /// Limits the time that a worker takes to start, including its
    /// [initialiser](Self::initializer). Default: no limit.
    ///
    /// A worker that exceeds it is killed, up to 50 ms later, and another is started. After three
    /// such workers in a row, the pool's tasks fail with
    /// [`TaskError::Broken`](super::TaskError::Broken).
    pub fn initializer_timeout(mut self, timeout: Duration) -> Self {
        self.settings.initializer_timeout = Some(timeout);
        self
    }

    /// Limits the time of each task that has no [limit of its own](super::TaskOptions::timeout).
    /// Default: no limit.
    ///
    /// The worker of a task that exceeds its limit is killed, up to 50 ms later, and the task fails
    /// with [`TaskError::TimedOut`](super::TaskError::TimedOut).
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// Sets how often a task whose worker died is tried again. Default: 2.
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Limits the private memory of each worker, in bytes: heap, private mappings and stacks of
    /// threads. Shared segments do not count. Default: the limit of this program.
    ///
    /// An allocation beyond the limit fails. Rust's default reaction is to abort the process: the
    /// task fails with [`TaskError::WorkerDied`](super::TaskError::WorkerDied) and `SIGABRT`, after
    /// its retries. The limit is `RLIMIT_DATA`, which the processes that a task starts inherit.
    pub fn worker_memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Kills the processes that a task has started, and that are still running, when its worker
    /// ends: because its task is cancelled or exceeds its time limit, or for any other reason.
    /// Default: `false`.
    ///
    /// See [`process::Builder::kill_children`](crate::process::Builder::kill_children).
    pub fn kill_children(mut self, kill: bool) -> Self {
        self.settings.kill_children = kill;
        self
    }

    /// Lets tasks open `shared` with [`Shared::inherited`]`(key)`.
    ///
    /// Opening maps the segment, which takes some microseconds. Tasks that are short themselves
    /// open it once, in the [initialiser](Self::initializer).
    ///
    /// An end of a channel cannot be an argument of a task. Each worker takes an end of its own in
    /// the initialiser, and keeps it in its [context](super::context()). If the worker dies, its
    /// end is gone with it, and its replacement takes another. The owner keeps an end of that side
    /// if the other side must not find it gone while the only worker is replaced.
    ///
    /// ```standalone_crate
    /// use outlast::pool::{self, Pool};
    /// use outlast::{Channel, Sender, Shared, ValueQueue};
    ///
    /// type News = ValueQueue<String>;
    ///
    /// fn connect((): ()) -> Sender<News> {
    ///     let news = Shared::<Channel<News>>::inherited("news").expect("the owner shares it");
    ///     news.sender().expect("a free place")
    /// }
    ///
    /// fn cook(dish: String) {
    ///     pool::context::<Sender<News>>().send(&format!("{dish} is ready")).expect("a reader");
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     outlast::process::init(); // first of all
    ///     let news = Shared::<Channel<News>>::with_capacity(4_096)?;
    ///     let reader = news.receiver()?;
    ///     let pool = Pool::builder().workers(2).share("news", &news).initializer(connect, ());
    ///     let pool = pool.build()?;
    ///     pool.apply(cook, "soup".to_owned())?;
    ///     assert_eq!(reader.recv()?, "soup is ready");
    ///     pool.join(); // the workers end, and with them the senders
    ///     assert!(reader.recv().is_err());
    ///     Ok(())
    /// }
    /// ```
    pub fn share<T: ?Sized + Shareable + Sync + 'static>(
        mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> Self {
        match shared.try_clone_fd() {
            Ok(fd) => self.settings.shared.push((key.to_owned(), fd)),
            Err(error) => self.error = Some(error.into()),
        }
        self
    }

    /// Hands a descriptor on to the workers, as
    /// [`process::Builder::share_fd`](crate::process::Builder::share_fd) does.
    pub fn share_fd(mut self, key: &str, fd: OwnedFd) -> Self {
        self.settings.shared.push((key.to_owned(), fd));
        self
    }

    /// Sets an environment variable of the workers. The others are those that the program was
    /// started with.
    ///
    /// [`build`](Self::build) fails in the cases in which a process
    /// [refuses](crate::process::Builder::env) the variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.settings.environment.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Stops the pool once `event` is set: by this process's [signals](crate::process::Stop), by a
    /// task, or by any other process.
    ///
    /// The pool accepts no more tasks then: those fail with
    /// [`TaskError::Stopped`](super::TaskError::Stopped). `what` says what happens to the tasks
    /// that it has. The pool is [joined](Pool::join) or dropped as usual. The event must be a
    /// [manual](crate::Event::manual) one. Tasks can look at it if it is [shared](Self::share) with
    /// them.
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
    ///             Ok(3) => {
    ///                 let me = std::process::id().to_string();
    ///                 std::process::Command::new("kill").arg(me).status()?;
    ///             }
    ///             Ok(_) => {}
    ///             Err(TaskError::Stopped) => break, // the tasks that had begun are done
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

    /// Names the workers for tools such as `top`, which show 15 bytes of the name.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.settings.name);
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// [`SpawnError::NotInitialised`] if [`process::init`](crate::process::init) was not called;
    /// see [`PoolError`].
    pub fn build(mut self) -> Result<Pool, PoolError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let settings = &mut self.settings;
        settings.max_workers = settings.max_workers.max(settings.workers);
        for workers in [settings.workers, settings.max_workers] {
            if !(1..=MAX_WORKERS).contains(&workers) {
                return Err(PoolError::InvalidWorkers { workers, max: MAX_WORKERS });
            }
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
        start("pool-dispatch", Box::new(move || dispatcher.run_dispatcher()))?;
        if core.settings.stop.is_some() {
            let core = Arc::clone(&core);
            start("pool-stop", Box::new(move || core.wait_for_stop()))?;
        }
        start("pool-supervise", Box::new(move || Supervisor::default().watch(&core)))?;
        Ok(pool)
    }
}

impl Default for Builder {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings {
            workers: workers.min(MAX_WORKERS),
            max_workers: 0,
            most_tasks: u64::MAX,
            retries: 2,
            timeout: None,
            initializer: None,
            initializer_timeout: None,
            memory_limit: None,
            kill_children: false,
            shared: Vec::new(),
            environment: Vec::new(),
            name: String::from("outlast-worker"),
            stop: None,
        };
        Builder { settings, error: None }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish()
    }
}
