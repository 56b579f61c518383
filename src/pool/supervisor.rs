//! The supervisor: a thread that replaces workers and notices deaths and overdue tasks.
//!
//! A slot is given to another worker only after the process descriptor of the former one has
//! reported its end.
use super::core::Core;
use super::error::TaskError;
use super::scheduler::{Scheduler, WorkerHandle};
use crate::deadline::Deadline;
use crate::process::ProcessError;
use crate::sys::process::{SIGKILL, SIGTERM, poll, receive};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How many workers in a row may end before their initialiser has returned.
const FAILURES: usize = 8;
/// The pool ends if no worker is alive and none can be started for this long.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How many workers in a row may be killed before their initialiser has returned.
const KILLS: usize = 2_000;
/// How long after a failed start the next attempt is made.
const AGAIN: Duration = Duration::from_millis(50);
/// How long the supervisor sleeps after a failed `poll`.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Recent failures.
#[derive(Default)]
pub(super) struct Supervisor {
    /// When the current series of failed starts began.
    failing: Option<Instant>,
    /// Workers in a row that ended, or were killed, before their initialiser had returned.
    unready: usize,
    killed: usize,
    again_at: Option<Instant>,
}

impl Supervisor {
    /// The body of the thread. Returns when the pool ends.
    pub(super) fn watch(&mut self, core: &Core) {
        loop {
            let (mut vacant, mut workers) = (Vec::new(), Vec::new());
            {
                let scheduler = core.scheduler();
                if scheduler.closed.as_ref().is_some_and(TaskError::ends_pool) {
                    return;
                }
                for (i, state) in scheduler.workers.iter().enumerate() {
                    match &state.handle {
                        Some(worker) => workers.push((i, worker.clone())),
                        None => vacant.push(i),
                    }
                }
            }
            if core.is_over() {
                return;
            }
            if !vacant.is_empty() && self.again_at.is_none_or(|at| Instant::now() >= at) {
                self.again_at = None;
                vacant.into_iter().for_each(|i| self.replace(core, i));
                continue; // watch the new workers, too
            }
            for (i, worker) in self.sleep(core, workers) {
                self.clean_up(core, i, &worker);
            }
            if let Some(limit) = core.settings.timeout {
                core.with(|scheduler, segment| {
                    if scheduler.collect(segment) {
                        scheduler.dispatch(segment);
                    }
                    scheduler.kill_overdue(segment, limit);
                });
            }
        }
    }

    /// Starts a worker in a vacant slot.
    fn replace(&mut self, core: &Core, i: usize) {
        if self.again_at.is_some() {
            return; // an earlier start of this round has failed
        }
        match core.start_worker(i) {
            Ok(worker) => {
                self.failing = None;
                core.with(|scheduler, segment| {
                    scheduler.assign(i, worker);
                    if scheduler.closed.as_ref().is_some_and(TaskError::ends_pool) {
                        scheduler.end(&TaskError::Terminated); // the pool has ended meanwhile
                    }
                    scheduler.dispatch(segment);
                });
            }
            Err(error) => {
                let now = Instant::now();
                self.again_at = Some(now + AGAIN);
                let since = *self.failing.get_or_insert(now);
                let alone = core.scheduler().workers.iter().all(|state| state.handle.is_none());
                if alone && now.duration_since(since) >= START_LIMIT {
                    core.end(&TaskError::Broken(error.to_string()));
                }
            }
        }
    }

    /// Sleeps until there is something to do. Returns the workers that have ended.
    fn sleep(
        &self,
        core: &Core,
        workers: Vec<(usize, WorkerHandle)>,
    ) -> Vec<(usize, WorkerHandle)> {
        let tick = core
            .settings
            .timeout
            .map(|limit| (limit / 8).clamp(Duration::from_millis(1), Duration::from_millis(50)));
        let again = self.again_at.map(|at| at.saturating_duration_since(Instant::now()));
        let nap = tick.into_iter().chain(again).min();
        let mut watched: Vec<BorrowedFd<'_>> = vec![core.supervisor.0.as_fd()];
        watched.extend(workers.iter().map(|(_, worker)| worker.process.pidfd()));
        let Ok(ready) = poll(&watched, nap.map_or(Deadline::NEVER, Deadline::after)) else {
            // Memory is short, or a limit was lowered. It does not mean that a worker has ended.
            std::thread::sleep(RETRY_PAUSE);
            return Vec::new();
        };
        if ready[0] {
            receive(core.supervisor.0.as_fd(), &mut [0; 8], &mut Vec::new(), false).ok();
        }
        let both = workers.into_iter().zip(ready.into_iter().skip(1));
        both.filter(|(_, ended)| *ended).map(|(worker, _)| worker).collect()
    }

    /// Handles the end of a worker.
    fn clean_up(&mut self, core: &Core, i: usize, worker: &WorkerHandle) {
        // The fork server reports how it ended, or has ended as well.
        worker.process.wait_timeout(Duration::from_secs(10)).ok();
        let was_ready = Scheduler::is_ready(&core.segment, i);
        let status = worker.process.exit_status();
        core.with(|scheduler, segment| {
            scheduler.worker_ended(segment, i, status);
            scheduler.dispatch(segment);
        });
        core.segment.wake_reader(); // the leader may wait for a task that has failed
        if was_ready {
            (self.unready, self.killed) = (0, 0);
            return;
        }
        let text = match worker.process.join() {
            Ok(Ok(())) => return, // the owner had told it to end
            Ok(Err(text)) => {
                self.unready += 1;
                text
            }
            Err(error) => {
                match error {
                    ProcessError::Signalled(SIGKILL | SIGTERM) | ProcessError::Lost => {
                        self.killed += 1
                    }
                    _ => self.unready += 1,
                }
                error.to_string()
            }
        };
        if self.unready > FAILURES || self.killed > KILLS {
            core.end(&TaskError::Broken(text));
        }
    }
}
