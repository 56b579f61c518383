//! The owner's side of a pool: its threads, and which of them reads results.
//!
//! One thread at a time reads results, the *leader*: a thread that waits for a result. Other
//! threads that wait are *followers*. They are woken when their result has come, or when the leader
//! has what it waited for. A result therefore passes from the worker to the thread that wants it
//! without another thread in between.
//!
//! If no thread waits, results stay in the rings, unless they are needed: tasks wait for room in a
//! ring, a worker waits for room for results, or an executor waits for a wake-up. Then the
//! *dispatcher*, a thread of the pool, leads. The *supervisor*, another thread of the pool, starts
//! workers and notices deaths and tasks that exceed their time limit.
use super::TaskOrigin;
use super::cell::{Unpark, lock};
use super::chunk::{Chunk, ResultSink};
use super::error::TaskError;
use super::protocol::CONTROL;
use super::scheduler::{Scheduler, WorkerHandle};
use super::segment::PoolSegment;
use super::worker::{self, SOCKET, WorkerOrders};
use crate::deadline::Deadline;
use crate::event::Event;
use crate::process::Process;
use crate::segment::forks;
use crate::shared::Shared;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::{Relaxed, Release};
use crate::sys::file::duplicate;
use crate::sys::process::{send, socket_pair};
use core::fmt;
use core::task::Waker;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// The settings of a pool, made by its builder.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) workers: usize,
    pub(super) max_workers: usize,
    pub(super) most_tasks: u64,
    pub(super) retries: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) initializer: Option<(u64, u64, Vec<u8>)>,
    pub(super) initializer_timeout: Option<Duration>,
    pub(super) memory_limit: Option<u64>,
    pub(super) kill_children: bool,
    pub(super) shared: Vec<(String, OwnedFd)>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) name: String,
    pub(super) stop: Option<(StopEvent, OnStop)>,
}

/// How a pool reacts when its [stop event](super::Builder::stop) is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnStop {
    /// Runs all tasks that it has, and accepts no more. A [`map`](super::Pool::map) that has begun
    /// continues to the end of its input. The input can check the event itself:
    /// `(0..).take_while(|_| !stop.is_set())`.
    Drain,
    /// Finishes the tasks that have begun. All others fail with [`TaskError::Stopped`], including
    /// each remaining argument of a `map`.
    Drop,
}

/// The event that stops a pool.
pub(super) struct StopEvent(pub(super) Shared<Event>);

impl fmt::Debug for StopEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) struct Core {
    pub(super) segment: PoolSegment,
    scheduler: Mutex<Scheduler>,
    lead: Mutex<Lead>,
    pub(super) settings: Settings,
    /// The supervisor polls the first socket; a byte sent to the second wakes it.
    pub(super) supervisor: (OwnedFd, OwnedFd),
    /// The intended number of workers.
    workers: AtomicUsize,
    forks: u32,
}

#[derive(Default)]
struct Lead {
    led: bool,
    followers: Vec<Thread>,
    over: bool,
}

impl Core {
    pub(super) fn new(settings: Settings) -> Result<Arc<Core>, super::PoolError> {
        let segment = PoolSegment::new(settings.max_workers)?;
        let scheduler = Scheduler::new(settings.workers, settings.most_tasks, settings.retries);
        let core = Arc::new(Core {
            segment,
            scheduler: Mutex::new(scheduler),
            lead: Mutex::default(),
            workers: AtomicUsize::new(settings.workers),
            settings,
            supervisor: socket_pair()?,
            forks: forks(),
        });
        for i in 0..core.settings.workers {
            match core.start_worker(i) {
                Ok(worker) => core.scheduler().assign(i, worker),
                Err(error) => {
                    core.end(&TaskError::Terminated);
                    core.end_workers();
                    return Err(error.into());
                }
            }
        }
        Ok(core)
    }

    /// Locks the scheduler.
    ///
    /// It must not be called in a [copy](Self::is_copy): a thread that the child does not have may
    /// have held the lock.
    pub(super) fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        debug_assert!(!self.is_copy(), "in the child of a fork, the lock may be held for ever");
        lock(&self.scheduler)
    }

    /// Returns whether this is a copy in the child of a fork. The workers, the leader and the
    /// threads that hold locks belong to the parent.
    pub(super) fn is_copy(&self) -> bool {
        self.forks != forks()
    }

    pub(super) fn start_worker(
        &self,
        i: usize,
    ) -> Result<WorkerHandle, crate::process::SpawnError> {
        let (ours, theirs) = socket_pair()?;
        let mut builder = Process::builder(worker::work).name(&self.settings.name);
        builder = self.segment.share(builder).share_fd(SOCKET, theirs);
        builder = builder.share_fd(CONTROL, duplicate(self.supervisor.1.as_fd())?);
        builder = builder.kill_children(self.settings.kill_children);
        if let Some(limit) = self.settings.memory_limit {
            builder = builder.memory_limit(limit);
        }
        for (key, fd) in &self.settings.shared {
            builder = builder.share_fd(key, duplicate(fd.as_fd())?);
        }
        for (key, value) in &self.settings.environment {
            builder = builder.env(key, value);
        }
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let initializer = self.settings.initializer.clone();
        let orders: WorkerOrders =
            (short(i), short(self.settings.max_workers), std::process::id(), initializer);
        let process = Arc::new(builder.spawn(orders)?);
        Ok(WorkerHandle { process, socket: Arc::new(ours) })
    }

    // ------------------------------------------------------------------------------- the scheduler
    /// Calls `change` with the scheduler locked, then wakes the wakers that it has collected.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut Scheduler, &PoolSegment) -> R) -> R {
        let mut scheduler = self.scheduler();
        let result = change(&mut scheduler, &self.segment);
        let wake = core::mem::take(&mut scheduler.wake);
        drop(scheduler);
        wake.into_iter().for_each(Waker::wake);
        result
    }

    /// Accepts tasks, unless the pool is closed. Returns whether a sleeping worker was woken.
    pub(super) fn submit(
        &self,
        chunk: impl FnOnce(&mut Scheduler) -> Chunk,
        origin: TaskOrigin,
    ) -> Result<bool, TaskError> {
        if self.is_copy() {
            return Err(TaskError::Forked);
        }
        self.look_for_stop();
        self.with(|scheduler, segment| {
            if let Some(error) = scheduler.refuses(origin) {
                return Err(error);
            }
            let chunk = chunk(scheduler);
            scheduler.woke_worker = false;
            scheduler.accept(segment, chunk);
            Ok(scheduler.woke_worker)
        })
    }

    /// Cancels the tasks of a sink. Returns whether there were any.
    pub(super) fn cancel(&self, sink: &Arc<dyn ResultSink>, kill: bool) -> bool {
        if self.is_copy() {
            return false;
        }
        let any = self.with(|scheduler, segment| {
            scheduler.collect(segment);
            let any = scheduler.cancel(segment, sink, kill);
            scheduler.dispatch(segment);
            any
        });
        self.segment.wake_reader(); // the leader may wait for this result
        any
    }

    /// Reads results and sends pending tasks. Returns whether there were results, and whether more
    /// can come that no event announces.
    pub(super) fn collect_results(&self) -> (bool, bool) {
        self.with(|scheduler, segment| {
            let any = scheduler.collect(segment);
            let waiting = scheduler.has_waiting_values();
            if any || waiting {
                scheduler.dispatch(segment);
            }
            (any, waiting || scheduler.has_long_message())
        })
    }

    /// Takes back a task that has not begun. Returns whether it had not.
    pub(super) fn take_back(&self, sink: &Arc<dyn ResultSink>) -> bool {
        self.with(|scheduler, segment| {
            scheduler.collect(segment);
            let taken = scheduler.take_back(segment, sink);
            scheduler.dispatch(segment);
            taken
        })
    }

    /// Has the supervisor look for tasks that exceed a limit of their own.
    #[cold]
    pub(super) fn watch_limit(&self, limit: Duration) {
        let shorter = self.with(|scheduler, _| {
            let shorter = scheduler.own_limit.is_none_or(|before| limit < before);
            scheduler.own_limit = scheduler.own_limit.into_iter().chain([limit]).min();
            shorter
        });
        if shorter {
            self.wake_supervisor();
        }
    }

    /// Returns the intended number of workers.
    pub(super) fn workers(&self) -> usize {
        self.workers.load(Relaxed)
    }

    /// Changes the number of workers.
    pub(super) fn set_workers(&self, workers: usize) {
        if self.is_copy() {
            return;
        }
        self.workers.store(workers, Relaxed);
        self.with(|scheduler, segment| scheduler.set_workers(segment, workers));
        self.segment.wake_reader(); // the leader may wait for a task that has moved
        self.wake_supervisor();
    }

    // ---------------------------------------------------------------------------------- the leader
    /// Blocks until `ready` returns `true`. Returns `false` if the deadline passes first.
    /// `register` takes a waker to be woken when `ready` may have changed.
    pub(super) fn wait_for(
        &self,
        deadline: Deadline,
        ready: &mut dyn FnMut() -> bool,
        register: &mut dyn FnMut(Waker),
    ) -> bool {
        if self.is_copy() {
            return true; // no result will come, and `ready` may take a lock that is never released
        }
        loop {
            if ready() {
                return true;
            }
            let mut lead = lock(&self.lead);
            if !lead.led {
                lead.led = true;
                drop(lead);
                let came = self.lead_until(deadline, ready);
                self.resign();
                return came;
            }
            let me = thread::current();
            lead.followers.push(me.clone());
            drop(lead);
            register(Arc::new(Unpark(me.clone())).into());
            let done = ready() || deadline.is_over();
            if !done {
                match deadline.remaining() {
                    None => thread::park(),
                    Some(left) => thread::park_timeout(left),
                }
            }
            let mut lead = lock(&self.lead);
            if let Some(at) = lead.followers.iter().position(|other| other.id() == me.id()) {
                lead.followers.swap_remove(at);
            }
            drop(lead);
            let came = ready();
            if came || deadline.is_over() {
                self.ensure_leader();
                return came;
            }
        }
    }

    fn lead_until(&self, deadline: Deadline, ready: &mut dyn FnMut() -> bool) -> bool {
        const SHORTEST: Duration = Duration::from_millis(1);
        let mut nap = SHORTEST;
        loop {
            let (any, unannounced) = self.collect_results();
            if ready() {
                return true;
            }
            nap = if any { SHORTEST } else { (nap * 2).min(20 * SHORTEST) };
            let left = deadline.remaining();
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let nap = unannounced.then_some(nap);
            self.segment.wait_for_results(left.into_iter().chain(nap).min());
        }
    }

    fn resign(&self) {
        let mut lead = lock(&self.lead);
        lead.led = false;
        self.ensure_leader_from(lead);
    }

    /// Has results read although no thread of the owner waits for one.
    pub(super) fn request_results(&self) {
        if self.is_copy() {
            return;
        }
        {
            let mut scheduler = self.scheduler();
            scheduler.results_wanted = scheduler.unfinished > 0;
        }
        self.ensure_leader();
    }

    /// Wakes a thread to lead, if results must be read.
    pub(super) fn ensure_leader(&self) {
        if !self.is_copy() {
            self.ensure_leader_from(lock(&self.lead));
        }
    }

    fn ensure_leader_from(&self, lead: MutexGuard<'_, Lead>) {
        if lead.led {
            return;
        }
        if let Some(follower) = lead.followers.last() {
            follower.unpark();
            return;
        }
        drop(lead);
        if self.scheduler().needs_dispatcher() {
            self.segment.wake_dispatcher();
        }
    }

    /// Is the body of the dispatcher thread.
    pub(super) fn run_dispatcher(&self) {
        loop {
            self.segment.wait_for_dispatch();
            let mut lead = lock(&self.lead);
            if lead.over {
                return;
            }
            if lead.led {
                continue; // the leader calls `ensure_leader` when it resigns
            }
            lead.led = true;
            drop(lead);
            self.lead_until(Deadline::NEVER, &mut || !self.scheduler().needs_dispatcher());
            self.resign();
        }
    }

    // ------------------------------------------------------------------------------------ stopping
    /// Stops the pool if its stop event is set.
    pub(super) fn look_for_stop(&self) {
        let Some((StopEvent(event), what)) = &self.settings.stop else { return };
        if self.is_copy() || !event.is_set() {
            return;
        }
        let first = self.with(|scheduler, segment| {
            let first = !core::mem::replace(&mut scheduler.stopped, true);
            if first {
                scheduler.closed.get_or_insert(TaskError::Stopped);
                if *what == OnStop::Drop {
                    scheduler.drop_waiting(segment);
                }
            }
            first
        });
        if first {
            self.segment.wake_reader(); // the leader may wait for a dropped task
        }
    }

    /// Is the body of the thread that waits for the stop event.
    pub(super) fn wait_for_stop(&self) {
        let Some((StopEvent(event), _)) = &self.settings.stop else { return };
        while !event.is_set() {
            match event.wait_unless(|| self.is_over()) {
                Ok(_) if self.is_over() => return,
                Ok(_) => {}
                // The segment has no slot for another process or thread: look at intervals instead.
                Err(_) if self.is_over() => return,
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        self.look_for_stop();
    }

    // ------------------------------------------------------------------------------------- the end
    /// Has the supervisor look again.
    pub(super) fn wake_supervisor(&self) {
        send(self.supervisor.1.as_fd(), &[0], &[], false).ok();
    }

    /// Fails all unfinished tasks, and kills the workers.
    pub(super) fn end(&self, error: &TaskError) {
        self.with(|scheduler, _| {
            if !scheduler.closed.as_ref().is_some_and(TaskError::ends_pool) {
                scheduler.end(error);
            }
        });
        self.segment.wake_reader();
        self.wake_supervisor();
    }

    /// Blocks until no task is unfinished. Returns `false` if the deadline passes first.
    pub(super) fn drain(&self, deadline: Deadline) -> bool {
        let mut ready = || self.scheduler().unfinished == 0;
        let mut register = |waker: Waker| {
            let mut scheduler = self.scheduler();
            if scheduler.unfinished == 0 {
                drop(scheduler);
                waker.wake();
            } else {
                scheduler.drained.push(waker);
            }
        };
        self.wait_for(deadline, &mut ready, &mut register)
    }

    /// Returns whether the pool's threads must end.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.lead).over
    }

    /// Ends and joins the pool's threads.
    pub(super) fn stop(&self, threads: impl Iterator<Item = JoinHandle<()>>) {
        lock(&self.lead).over = true;
        self.segment.wake_dispatcher();
        self.wake_supervisor();
        for thread in threads {
            while let Some((StopEvent(event), _)) = &self.settings.stop
                && !thread.is_finished()
            {
                event.wake_to_recheck();
                thread::sleep(Duration::from_micros(100));
            }
            thread.join().ok(); // these threads never panic
        }
    }

    /// Ends the workers, which have no tasks, and waits for them. The supervisor must have ended,
    /// so that it starts no more.
    pub(super) fn end_workers(&self) {
        let workers: Vec<WorkerHandle> = self.with(|scheduler, segment| {
            for slot in segment.slots() {
                slot.stop.store(1, Release);
                slot.wake();
            }
            scheduler.workers.iter().filter_map(|state| state.handle.clone()).collect()
        });
        for worker in workers {
            if !worker.process.wait_timeout(Duration::from_secs(10)).unwrap_or(false) {
                worker.process.kill().ok();
                worker.process.wait().ok();
            }
        }
    }
}
