//! The supervisor: a thread that replaces workers and notices deaths and overdue tasks.
//!
//! A slot is given to another worker only after the process descriptor of the former one has
//! reported its end.
use super::connection::Connection;
use super::core::Core;
use super::error::{TaskError, how_it_ended};
use super::scheduler::{Scheduler, WorkerHandle};
use crate::deadline::Deadline;
use crate::process::ProcessError;
use crate::sys::process::{SIGKILL, SIGTERM, poll, receive, receive_first};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
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
/// How often the supervisor looks for tasks that exceed their time limit.
const SHORTEST_TICK: Duration = Duration::from_millis(1);
const LONGEST_TICK: Duration = Duration::from_millis(50);

/// Recent failures, and the workers that submit tasks.
#[derive(Default)]
pub(super) struct Supervisor {
    /// When the current series of failed starts began.
    failing: Option<Instant>,
    /// Workers in a row that ended, or were killed, before their initialiser had returned.
    unready: usize,
    killed: usize,
    again_at: Option<Instant>,
    /// The connections of workers that submit tasks, and whether they are open. A closed one stays
    /// until its worker's end is handled.
    connections: Vec<(Arc<Connection>, bool)>,
}

impl Supervisor {
    /// Is the body of the thread. Returns when the pool ends.
    pub(super) fn watch(&mut self, core: &Arc<Core>) {
        let (task, initializer) = (core.settings.timeout, core.settings.initializer_timeout);
        loop {
            let (vacant, workers, limit) = {
                let mut scheduler = core.scheduler();
                if scheduler.closed.as_ref().is_some_and(TaskError::ends_pool) {
                    return;
                }
                let vacant = scheduler.vacancies(&core.segment);
                let workers = scheduler.workers.iter().enumerate();
                let workers = workers.filter_map(|(i, state)| Some((i, state.handle.clone()?)));
                let workers: Vec<_> = workers.collect();
                (vacant, workers, scheduler.shortest_limit(&core.segment, task, initializer))
            };
            if core.is_over() {
                return;
            }
            if vacant.is_empty() {
                self.again_at = None;
            } else if self.again_at.is_none_or(|at| Instant::now() >= at) {
                self.again_at = None;
                vacant.into_iter().for_each(|i| self.replace(core, i));
                continue; // watch the new workers, too
            }
            for (i, worker) in self.sleep(core, workers, limit) {
                self.clean_up(core, i, &worker);
            }
            if limit.is_some() {
                core.with(|scheduler, segment| {
                    if scheduler.collect(segment) {
                        scheduler.dispatch(segment);
                    }
                    scheduler.kill_overdue(segment, task, initializer);
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
                    // `set_workers` may have been called meanwhile.
                    scheduler.retire_surplus(segment);
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

    /// Sleeps until there is something to do, and serves workers that submit tasks. Returns the
    /// workers that have ended.
    fn sleep(
        &mut self,
        core: &Arc<Core>,
        workers: Vec<(usize, WorkerHandle)>,
        limit: Option<Duration>,
    ) -> Vec<(usize, WorkerHandle)> {
        let open = self.connections.iter().filter(|(_, open)| *open);
        let connections: Vec<_> = open.map(|(connection, _)| Arc::clone(connection)).collect();
        let unsent = connections.iter().filter(|connection| !connection.flush()).count() > 0;
        let tick = limit.map(|limit| (limit / 8).clamp(SHORTEST_TICK, LONGEST_TICK));
        let again = self.again_at.map(|at| at.saturating_duration_since(Instant::now()));
        let nap = tick.into_iter().chain(again).chain(unsent.then_some(SHORTEST_TICK)).min();
        let mut watched: Vec<BorrowedFd<'_>> = vec![core.supervisor.0.as_fd()];
        watched.extend(connections.iter().map(|connection| connection.as_fd()));
        watched.extend(workers.iter().map(|(_, worker)| worker.process.pidfd()));
        let Ok(ready) = poll(&watched, nap.map_or(Deadline::NEVER, Deadline::after)) else {
            // Memory is short, or a limit was lowered. It does not mean that a worker has ended.
            std::thread::sleep(RETRY_PAUSE);
            return Vec::new();
        };
        if ready[0] {
            self.accept(core);
        }
        let mut ready = ready.into_iter().skip(1);
        for (connection, ready) in connections.iter().zip(ready.by_ref()) {
            if ready && !connection.serve(core) {
                let others = self.connections.iter_mut();
                others
                    .filter(|(other, _)| Arc::ptr_eq(other, connection))
                    .for_each(|it| it.1 = false);
            }
        }
        let both = workers.into_iter().zip(ready);
        both.filter(|(_, ended)| *ended).map(|(worker, _)| worker).collect()
    }

    /// Receives a message from the control socket: a wake-up, or a worker's connection.
    fn accept(&mut self, core: &Arc<Core>) {
        let (mut slot, mut files) = ([0; 4], Vec::new());
        let control = core.supervisor.0.as_fd();
        match receive(control, &mut slot, &mut files, false) {
            Ok(_) => {
                let slot = usize::try_from(u32::from_le_bytes(slot)).unwrap_or(usize::MAX);
                let new = |file| (Connection::new(core, slot, file), true);
                self.connections.extend(files.into_iter().map(new));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // There is no descriptor for the connection. Closing it fails the worker's tasks.
            Err(_) => drop(receive_first(control)),
        }
    }

    /// Handles the end of a worker.
    fn clean_up(&mut self, core: &Core, i: usize, worker: &WorkerHandle) {
        // The fork server reports how it ended, or has ended as well.
        worker.process.wait_timeout(Duration::from_secs(10)).ok();
        let was_ready = Scheduler::is_ready(&core.segment, i);
        let status = worker.process.exit_status();
        let belongs = |(connection, _): &mut (Arc<Connection>, bool)| connection.slot == i;
        let connections: Vec<_> = self.connections.extract_if(.., belongs).collect();
        for (connection, _) in connections {
            connection.serve(core); // requests that it sent before it ended
            if !status.is_some_and(|status| status.success()) {
                connection.cancel_all(core);
            }
        }
        let timed_out = core.with(|scheduler, segment| {
            let timed_out = scheduler.start_timed_out(i);
            scheduler.worker_ended(segment, i, status);
            scheduler.dispatch(segment);
            timed_out
        });
        core.segment.wake_reader(); // the leader may wait for a task that has failed
        if was_ready {
            (self.unready, self.killed) = (0, 0);
            return;
        }
        let limit = core.settings.initializer_timeout.filter(|_| timed_out);
        let text = match (limit, worker.process.join()) {
            (Some(limit), _) => {
                self.unready += FAILURES / 2;
                format!("the initialiser exceeded its time limit of {limit:?}")
            }
            (None, Ok(Ok(()))) => return, // the owner had told it to end
            (None, Ok(Err(text))) => {
                self.unready += 1;
                text
            }
            (None, Err(error)) => {
                let killed = matches!(
                    error,
                    ProcessError::Signalled(SIGKILL | SIGTERM) | ProcessError::Lost
                );
                *if killed { &mut self.killed } else { &mut self.unready } += 1;
                format!("a worker {} before it began", words(status, &error))
            }
        };
        if self.unready > FAILURES || self.killed > KILLS {
            core.end(&TaskError::Broken(text));
        }
    }
}

/// Says in words how a worker ended that never ran a task.
fn words(status: Option<ExitStatus>, error: &ProcessError) -> String {
    match status {
        Some(status) => how_it_ended(status.signal(), status.code()),
        None => format!("was lost ({error})"),
    }
}
