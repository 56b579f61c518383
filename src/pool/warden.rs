//! The warden: it starts the workers' successors, notices deaths, and tasks that take too long.
//!
//! A worker's desk is given to another only after the descriptor of its process has told its end.
use super::book::{Book, Hired};
use super::core::{Core, is_final};
use super::error::TaskError;
use crate::deadline::Deadline;
use crate::process::ProcessError;
use crate::sys::process::{SIGKILL, SIGTERM, poll, receive};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How many workers in a row may end before they are ready.
const FAILURES: usize = 8;
/// If no worker is alive and none can be started for this long, the pool ends.
const START_LIMIT: Duration = Duration::from_secs(2);
/// The same, for those that were killed.
const KILLS: usize = 2_000;
/// How long after a worker was not started the next try is.
const AGAIN: Duration = Duration::from_millis(50);
/// How long the warden sleeps after a failed `poll`.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What has gone wrong lately.
#[derive(Default)]
pub(super) struct Warden {
    /// Since when all starts have failed.
    failing: Option<Instant>,
    /// Workers that ended, or were killed, before they were ready.
    unready: usize,
    killed: usize,
    again_at: Option<Instant>,
}

impl Warden {
    /// Until the pool ends.
    pub(super) fn watch(&mut self, core: &Core) {
        loop {
            let (mut vacant, mut workers) = (Vec::new(), Vec::new());
            {
                let book = core.book();
                if book.closed.as_ref().is_some_and(is_final) {
                    return;
                }
                for (i, seat) in book.seats.iter().enumerate() {
                    match &seat.worker {
                        Some(hired) => workers.push((i, hired.clone())),
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
                continue; // with them
            }
            for (i, hired) in self.sleep(core, workers) {
                self.bury(core, i, &hired);
            }
            if let Some(limit) = core.plan.timeout {
                core.with(|book, hall| {
                    if book.collect(hall) {
                        book.dispatch(hall);
                    }
                    book.check_times(hall, limit);
                });
            }
        }
    }

    /// Starts a worker for a desk.
    fn replace(&mut self, core: &Core, i: usize) {
        if self.again_at.is_some() {
            return; // the one before failed
        }
        match core.hire(i) {
            Ok(hired) => {
                self.failing = None;
                core.with(|book, hall| {
                    book.seat(i, hired);
                    if book.closed.as_ref().is_some_and(is_final) {
                        book.end(&TaskError::Terminated); // meanwhile, without this one
                    }
                    book.dispatch(hall);
                });
            }
            Err(error) => {
                let now = Instant::now();
                self.again_at = Some(now + AGAIN);
                let since = *self.failing.get_or_insert(now);
                let alone = core.book().seats.iter().all(|seat| seat.worker.is_none());
                if alone && now.duration_since(since) >= START_LIMIT {
                    core.end(&TaskError::Broken(error.to_string()));
                }
            }
        }
    }

    /// Sleeps until there is something to do; the workers that have ended.
    fn sleep(&self, core: &Core, workers: Vec<(usize, Hired)>) -> Vec<(usize, Hired)> {
        let tick = core
            .plan
            .timeout
            .map(|limit| (limit / 8).clamp(Duration::from_millis(1), Duration::from_millis(50)));
        let again = self.again_at.map(|at| at.saturating_duration_since(Instant::now()));
        let nap = tick.into_iter().chain(again).min();
        let mut watched: Vec<BorrowedFd<'_>> = vec![core.warden.0.as_fd()];
        watched.extend(workers.iter().map(|(_, hired)| hired.process.pidfd()));
        let Ok(ready) = poll(&watched, nap.map_or(Deadline::NEVER, Deadline::after)) else {
            // There is no memory, or a limit was lowered. Nobody has ended because of it.
            std::thread::sleep(RETRY_PAUSE);
            return Vec::new();
        };
        if ready[0] {
            receive(core.warden.0.as_fd(), &mut [0; 8], &mut Vec::new(), false).ok();
        }
        let both = workers.into_iter().zip(ready.into_iter().skip(1));
        both.filter(|(_, ended)| *ended).map(|(worker, _)| worker).collect()
    }

    /// Sees to what a worker has left that has ended.
    fn bury(&mut self, core: &Core, i: usize, hired: &Hired) {
        // The helper tells how it ended, or has ended as well.
        hired.process.wait_timeout(Duration::from_secs(10)).ok();
        let was_ready = Book::is_ready(&core.hall, i);
        let status = hired.process.exit_status();
        core.with(|book, hall| {
            book.bury(hall, i, status);
            book.dispatch(hall);
        });
        core.hall.ring(); // the leader may want one of those that were given up
        if was_ready {
            (self.unready, self.killed) = (0, 0);
            return;
        }
        let text = match hired.process.join() {
            Ok(Ok(())) => return, // it was told to end
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
