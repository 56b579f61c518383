//! The warden: it starts the workers' successors, notices deaths, and tasks that take too long.
use super::book::Book;
use super::core::{Core, is_final};
use super::error::TaskError;
use crate::deadline::Deadline;
use crate::sys::process::{poll, receive};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Workers that in a row may end before they are ready.
const FAILURES: usize = 8;
/// The same, for those that were killed.
const KILLS: usize = 2_000;

impl Core {
    /// Until the pool ends.
    pub(super) fn watch(&self) {
        let (mut failures, mut kills) = (0, 0);
        let mut retry_at = None::<Instant>;
        loop {
            let mut vacant = Vec::new();
            let mut watched = Vec::new();
            let over = self.is_over() || {
                let book = self.book();
                for (i, seat) in book.seats.iter().enumerate() {
                    match &seat.worker {
                        Some(hired) => watched.push((i, hired.clone())),
                        None => vacant.push(i),
                    }
                }
                book.closed.as_ref().is_some_and(is_final)
            };
            if over {
                return;
            }
            if retry_at.is_none_or(|at| Instant::now() >= at) {
                retry_at = None;
                for &i in &vacant {
                    match self.hire(i) {
                        Ok(hired) => {
                            self.with(|book, hall| {
                                book.seat(i, hired);
                                // Closed meanwhile, by one that did not know of it.
                                if book.closed.as_ref().is_some_and(is_final) {
                                    book.end(&TaskError::Terminated);
                                }
                                book.dispatch(hall);
                            });
                        }
                        Err(error) => {
                            failures += 1;
                            retry_at = Some(Instant::now() + Duration::from_millis(50));
                            if failures > FAILURES {
                                self.give_up(&error.to_string());
                            }
                            break;
                        }
                    }
                }
                if !vacant.is_empty() && retry_at.is_none() {
                    continue;
                }
            }
            let tick = self.plan.timeout.map(|limit| {
                (limit / 8).clamp(Duration::from_millis(1), Duration::from_millis(50))
            });
            let retry = retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            let nap = tick.into_iter().chain(retry).min();
            let mut fds: Vec<BorrowedFd<'_>> = vec![self.warden.0.as_fd()];
            // One without ended before it could tell: it is as if its descriptor was ready.
            let ended_early = watched.iter().any(|(_, hired)| hired.process.pidfd().is_none());
            fds.extend(watched.iter().filter_map(|(_, hired)| hired.process.pidfd()));
            let nap = if ended_early { Some(Duration::ZERO) } else { nap };
            let ready = poll(&fds, nap.map_or(Deadline::NEVER, Deadline::after));
            let ready = ready.unwrap_or_else(|_| vec![false; fds.len()]);
            if ready[0] {
                receive(self.warden.0.as_fd(), &mut [0; 8], &mut Vec::new(), false).ok();
            }
            let mut ready = ready[1..].iter();
            for (i, hired) in &watched {
                let ended = match hired.process.pidfd() {
                    Some(_) => ready.next().copied().unwrap_or(false),
                    None => true,
                };
                if ended {
                    // The helper tells how it ended.
                    hired.process.wait_timeout(Duration::from_secs(10)).ok();
                    let unready = !Book::is_ready(&self.hall, *i);
                    let status = hired.process.exit_status();
                    self.with(|book, hall| {
                        book.bury(hall, *i, status);
                        book.dispatch(hall);
                    });
                    self.hall.ring(); // the leader may want one of those that were given up
                    let error = hired.process.join().map_or_else(
                        |error| Some((error.to_string(), is_kill(&error))),
                        |done| done.err().map(|error| (error, false)),
                    );
                    match (unready, error) {
                        (true, Some((text, killed))) => {
                            if killed {
                                kills += 1
                            } else {
                                failures += 1
                            }
                            if failures > FAILURES || kills > KILLS {
                                self.give_up(&text);
                            }
                        }
                        _ => (failures, kills) = (0, 0),
                    }
                }
            }
            if let Some(limit) = self.plan.timeout {
                self.with(|book, hall| {
                    book.collect(hall);
                    book.dispatch(hall);
                    book.check_times(hall, limit);
                });
                self.hall.ring();
            }
        }
    }

    fn give_up(&self, text: &str) {
        self.end(&TaskError::Broken(text.to_owned()));
    }
}

fn is_kill(error: &crate::process::ProcessError) -> bool {
    use crate::process::ProcessError::{Lost, Signalled};
    matches!(error, Signalled(9 | 15) | Lost)
}
