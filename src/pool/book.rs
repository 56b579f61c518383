//! The owner's book: which tasks wait, which are at which desk, and what becomes of them.
//!
//! One lock guards it. Nothing of the user's runs under it: what is to be woken is collected, and
//! woken after.
use super::chunk::{Chunk, Job, Piece};
use super::core::is_final;
use super::error::TaskError;
use super::hall::{Hall, RESOURCE_TIMEOUT, WORDS};
use super::worker::status::VALUE;
use super::worker::{BY_SOCKET, HEAD, LARGE, LAST};
use crate::process::Process;
use crate::process::wire::{is_gone, read_file, to_file};
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed};
use crate::sys::process::{receive, receive_first, send};
use core::task::Waker;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What waits at a desk behind the chunk at hand: so much work, in nanoseconds, ...
const AHEAD: u64 = 300_000;
/// ... in so many chunks; or one chunk that takes no longer than 10 milliseconds.
const MOST_AHEAD: usize = 128;
const LONG: u64 = 10_000_000;

/// A chunk at a desk.
struct Sent {
    chunk: Chunk,
    number: u32,
    begin: u64,
    time: u64,
}

/// Why the owner kills a worker: for the sake of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doom {
    TimedOut,
    Cancelled,
}

/// The owner's side of a desk.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) worker: Option<Hired>,
    at: VecDeque<Sent>,
    time: u64,
    number: u32,
    /// Tasks that the worker was given.
    given: u64,
    /// It has been told to end.
    leaving: bool,
    /// The task for which it was killed.
    doom: Option<(u32, u32, Doom)>,
    /// The task that it was at when last seen, and when that was first seen.
    watched: Option<((u32, u32), Instant)>,
    /// Since when results that need a descriptor have waited for one, and the tail of the results
    /// then. Results behind that tail came later, and wait their own time.
    waits: Option<(Instant, u64)>,
}

impl Seat {
    /// Whether there is a worker for more, of at most so many tasks in its life.
    fn serves(&self, most: u64) -> bool {
        self.worker.is_some() && !self.leaving && self.doom.is_none() && self.given < most
    }
}

/// A worker.
#[derive(Clone)]
pub(super) struct Hired {
    pub(super) process: Arc<Process<Result<(), String>>>,
    pub(super) socket: Arc<OwnedFd>,
}

/// Tasks that have their results, those of them that failed, new tries; workers that died, and
/// those that were replaced.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
    pub(super) lost: u64,
    pub(super) replaced: u64,
}

pub(super) struct Book {
    pub(super) seats: Vec<Seat>,
    pub(super) pending: VecDeque<Chunk>,
    /// Tasks without a result.
    pub(super) unfinished: u64,
    /// No more tasks are taken, and why.
    pub(super) closed: Option<TaskError>,
    /// It has been seen that the pool is to stop.
    pub(super) stopped: bool,
    /// What is not begun is given up.
    drops: bool,
    pub(super) counts: Counts,
    pub(super) most_tasks: u64,
    pub(super) retries: u32,
    /// Somebody is to be woken who does not wait here: an executor, perhaps.
    pub(super) wanted: bool,
    /// Who waits until nothing is unfinished.
    pub(super) drained: Vec<Waker>,
    costs: Vec<(u64, Arc<AtomicU64>)>,
    /// Whom to wake once the lock is free.
    pub(super) wake: Vec<Waker>,
    /// A worker was asleep when it was sent something.
    pub(super) roused: bool,
    /// Whether results wait for a descriptor, and since when arguments have waited for one or for
    /// memory. They are retried by time, because no event announces a free descriptor.
    results_wait: bool,
    arguments_wait: Option<Instant>,
    /// Why the last argument could not be sent.
    refused: Option<io::Error>,
    buffer: Vec<u8>,
}

impl Book {
    pub(super) fn new(seats: usize, most_tasks: u64, retries: u32) -> Book {
        Book {
            seats: (0..seats).map(|_| Seat::default()).collect(),
            pending: VecDeque::new(),
            unfinished: 0,
            closed: None,
            stopped: false,
            drops: false,
            counts: Counts::default(),
            most_tasks,
            retries,
            wanted: false,
            drained: Vec::new(),
            costs: Vec::new(),
            wake: Vec::new(),
            roused: false,
            results_wait: false,
            arguments_wait: None,
            refused: None,
            buffer: Vec::new(),
        }
    }

    /// What is known of the time that this function takes.
    pub(super) fn cost_of(&mut self, function: u64) -> Arc<AtomicU64> {
        match self.costs.iter().position(|(other, _)| *other == function) {
            Some(0) => {}
            Some(at) => self.costs.swap(0, at),
            None => {
                self.costs.truncate(63);
                self.costs.insert(0, (function, Arc::new(AtomicU64::new(0))));
            }
        }
        Arc::clone(&self.costs[0].1)
    }

    /// Hands results over.
    fn put(&mut self, job: &Arc<dyn Job>, base: u64, count: u32, piece: Piece) {
        self.unfinished = self.unfinished.saturating_sub(u64::from(count));
        self.counts.failed += u64::from(matches!(piece, Piece::Failed(_)));
        self.counts.done += u64::from(count);
        job.put(base, count, piece, &mut self.wake);
        if self.unfinished == 0 {
            self.wanted = false;
            self.wake.append(&mut self.drained);
        }
    }

    /// Gives up on all tasks of a chunk.
    pub(super) fn fail(&mut self, mut chunk: Chunk, error: &TaskError) {
        while chunk.done < chunk.count {
            let base = chunk.base + u64::from(chunk.done);
            chunk.done += 1;
            self.put(&chunk.job, base, 1, Piece::Failed(error.clone()));
        }
    }

    // --------------------------------------------------------------------------------------- results
    /// Reads what has come; whether anything has. An error is a desk that makes no sense.
    pub(super) fn collect(&mut self, hall: &Hall) -> bool {
        let mut any = false;
        self.results_wait = false;
        for i in 0..self.seats.len() {
            let results = &hall.desks()[i].results;
            if results.tail() != results.head() {
                any = true;
                if self.collect_from(hall, i, RESOURCE_TIMEOUT).is_none()
                    && let Some(worker) = &self.seats[i].worker
                {
                    worker.process.kill().ok(); // it has written nonsense
                }
            }
        }
        any
    }

    /// Reads the results of one desk. Results that need a descriptor stay there for `patience`.
    fn collect_from(&mut self, hall: &Hall, i: usize, patience: Duration) -> Option<()> {
        let desk = hall.desks().get(i)?;
        let (head, tail) = (desk.results.head(), desk.results.tail());
        let words = usize::try_from(tail.wrapping_sub(head)).ok().filter(|&words| words <= WORDS);
        let mut bytes = core::mem::take(&mut self.buffer);
        bytes.clear();
        desk.results.copy(head, words.unwrap_or(0), &mut bytes);
        let read = words.and_then(|_| self.read_records(i, &bytes, head, patience));
        let rest = read.map_or(0, |read| (bytes.len() - read) as u64 / 8);
        desk.results.release(tail.wrapping_sub(rest));
        desk.made_room();
        self.buffer = bytes;
        read.map(drop)
    }

    /// Reads the bytes that lie from `head` on. Returns how many it has read; `None` if they make
    /// no sense.
    fn read_records(
        &mut self,
        i: usize,
        bytes: &[u8],
        head: u64,
        patience: Duration,
    ) -> Option<usize> {
        let position = |at: usize| head.wrapping_add(at as u64 / 8);
        // The records from `begin` to `at`, `count` of them, belong to the first chunk at the desk.
        let (mut begin, mut at, mut count) = (0, 0, 0);
        while at < bytes.len() {
            let (head, _) = bytes[at..].split_first_chunk::<8>()?;
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let (status, flags) = (head[4], head[5]);
            let next = at + 8 + length.next_multiple_of(8);
            let end = next + if flags & LAST != 0 { 8 } else { 0 };
            if end > bytes.len() {
                return None;
            }
            if flags & BY_SOCKET != 0 {
                self.hand_over(i, &bytes[begin..at], count)?;
                (begin, count) = (next, 0);
                let place = (position(at), position(bytes.len()));
                let Some(piece) = self.fetch(i, status, place, patience)? else {
                    return Some(at);
                };
                let sent = self.seats[i]
                    .at
                    .front_mut()
                    .filter(|sent| sent.chunk.done < sent.chunk.count)?;
                let (job, base) =
                    (Arc::clone(&sent.chunk.job), sent.chunk.base + u64::from(sent.chunk.done));
                sent.chunk.done += 1; // nothing can fail between this and the result
                self.put(&job, base, 1, piece);
            } else {
                count += 1;
            }
            self.counts.failed += u64::from(status != VALUE);
            if flags & LAST != 0 {
                self.hand_over(i, &bytes[begin..next], count)?;
                let seat = &mut self.seats[i];
                let sent = seat.at.pop_front()?;
                seat.time = seat.time.saturating_sub(sent.time);
                let (time, _) = bytes[next..].split_first_chunk::<8>()?;
                let each = u64::from_le_bytes(*time) / u64::from(sent.chunk.count.max(1));
                let cost = &sent.chunk.cost;
                let before = cost.load(Relaxed);
                let known = if before == 0 { each } else { before / 4 * 3 + each / 4 };
                cost.store(known.max(1), Relaxed);
                if sent.chunk.done != sent.chunk.count {
                    self.pending.push_front(sent.chunk); // it is not so
                    return None;
                }
                (begin, count) = (end, 0);
            }
            at = end;
        }
        self.hand_over(i, &bytes[begin..at], count)?;
        Some(at)
    }

    /// A large result, copied from its file, so that no descriptor stays open; or why it is lost.
    /// Its record lies at `place`, of results up to `tail`. `Some(None)` if it waits for a
    /// descriptor, and `None` if it cannot be taken from the socket, where it would be mistaken for
    /// the next one.
    #[cold]
    fn fetch(
        &mut self,
        i: usize,
        status: u8,
        (place, tail): (u64, u64),
        patience: Duration,
    ) -> Option<Option<Piece>> {
        let seat = &mut self.seats[i];
        let socket = seat.worker.as_ref()?.socket.as_fd();
        let mut files = Vec::new();
        let file = match receive(socket, &mut [0; 4], &mut files, false) {
            Ok(_) => {
                seat.waits = None;
                Ok(files.pop()?)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => {
                let waits = seat.waits.filter(|&(_, tail)| place < tail);
                let waits = waits.unwrap_or_else(|| (Instant::now(), tail));
                if waits.0.elapsed() < patience {
                    seat.waits = Some(waits);
                    self.results_wait = true;
                    return Some(None);
                }
                receive_first(socket).ok()?
            }
        };
        Some(Some(match file.and_then(read_file) {
            Ok(bytes) => Piece::Large(status, bytes),
            Err(error) => Piece::Failed(TaskError::Transfer(error.to_string())),
        }))
    }

    /// Whether values wait for descriptors or memory, which come without a word.
    pub(super) fn has_waiting_values(&self) -> bool {
        self.results_wait || self.arguments_wait.is_some()
    }

    fn hand_over(&mut self, i: usize, records: &[u8], count: u32) -> Option<()> {
        if count == 0 {
            return Some(());
        }
        let sent = self.seats[i].at.front_mut()?;
        let base = sent.chunk.base + u64::from(sent.chunk.done);
        if count > sent.chunk.count - sent.chunk.done {
            return None;
        }
        sent.chunk.done += count;
        let job = Arc::clone(&sent.chunk.job);
        self.put(&job, base, count, Piece::Records(records.to_vec()));
        Some(())
    }

    /// Whether a chunk of several tasks is under way: its worker rings when all are done.
    pub(super) fn has_long_message(&self) -> bool {
        self.seats.iter().any(|seat| seat.at.front().is_some_and(|sent| sent.chunk.count > 1))
    }

    // ----------------------------------------------------------------------------------------- tasks
    /// Takes tasks: to a desk with nothing to do if there is one, or behind all others.
    pub(super) fn take(&mut self, hall: &Hall, chunk: Chunk) {
        self.unfinished += u64::from(chunk.count);
        let idle = if self.pending.is_empty() { self.idle() } else { None };
        if let Err(chunk) = self.send(hall, idle, chunk) {
            self.refused = None; // it is tried once more below
            self.pending.push_back(chunk);
        }
        if !self.pending.is_empty() {
            self.dispatch(hall);
        }
    }

    /// Gives the desks what waits.
    pub(super) fn dispatch(&mut self, hall: &Hall) {
        let mut thefts = self.seats.len();
        let mut set_aside = VecDeque::new();
        loop {
            if let Some(chunk) = self.pending.pop_front() {
                if chunk.large && !set_aside.is_empty() {
                    set_aside.push_back(chunk.waiting());
                    continue;
                }
                let best = self.idle().or_else(|| self.least_busy(&chunk));
                let Err(chunk) = self.send(hall, best, chunk) else { continue };
                match self.refused.take() {
                    None => {
                        self.pending.push_front(chunk);
                        break;
                    }
                    Some(error) => set_aside.extend(self.refuse(hall, chunk, &error)),
                }
            } else if thefts == 0 || !self.rob(hall) {
                break;
            } else {
                thefts -= 1;
            }
        }
        if self.arguments_wait.is_some() && set_aside.is_empty() {
            self.arguments_wait = None;
        }
        while let Some(chunk) = set_aside.pop_back() {
            self.pending.push_front(chunk);
        }
    }

    /// A large argument that cannot be sent: gives the task back, to be tried again, or fails it.
    #[cold]
    fn refuse(&mut self, hall: &Hall, chunk: Chunk, error: &io::Error) -> Option<Chunk> {
        let since = *self.arguments_wait.get_or_insert_with(|| {
            // The thread that reads results sleeps without an end; it is to look again and again.
            hall.ring();
            hall.call();
            Instant::now()
        });
        let chunk = chunk.waiting();
        // Its time counts from when it was first refused or waited behind such an argument, but no
        // longer than descriptors have been short.
        if chunk.waits.max(Some(since)).is_some_and(|since| since.elapsed() < RESOURCE_TIMEOUT) {
            return Some(chunk);
        }
        self.fail(chunk, &TaskError::Transfer(error.to_string()));
        None
    }

    /// The first desk with nothing to do.
    fn idle(&self) -> Option<usize> {
        self.seats.iter().position(|seat| seat.at.is_empty() && seat.serves(self.most_tasks))
    }

    /// The desk with the least to do, of those where this chunk may wait.
    fn least_busy(&self, chunk: &Chunk) -> Option<usize> {
        let time = chunk.time();
        let takes = |seat: &Seat| {
            seat.serves(self.most_tasks)
                && !chunk.large
                && (seat.at.len() < MOST_AHEAD && seat.time + time <= AHEAD
                    || seat.at.len() < 2 && time < LONG)
        };
        (0..self.seats.len())
            .filter(|&i| takes(&self.seats[i]))
            .min_by_key(|&i| self.seats[i].at.len())
    }

    /// Sends a chunk, or a part of it if the worker may not do more, to a desk. Gives it back if
    /// there is none, or no room.
    fn send(&mut self, hall: &Hall, to: Option<usize>, mut chunk: Chunk) -> Result<(), Chunk> {
        let Some(i) = to else { return Err(chunk) };
        let (seat, desk) = (&mut self.seats[i], &hall.desks()[i]);
        let left = u32::try_from(self.most_tasks - seat.given).unwrap_or(u32::MAX);
        if chunk.done > 0 || chunk.count > left {
            let part = chunk.split(left.min(chunk.count - chunk.done));
            if chunk.count > 0 {
                self.pending.push_front(chunk);
            }
            chunk = part;
        }
        let number = seat.number.wrapping_add(1);
        let length = if chunk.large { 4 } else { chunk.body.len() };
        let mut room = desk.tasks.room() >= HEAD + length.div_ceil(8);
        if room && chunk.large {
            let Some(worker) = &seat.worker else { return Err(chunk) };
            let (socket, tag) = (worker.socket.as_fd(), number.to_le_bytes());
            let sent =
                to_file(&chunk.body).and_then(|file| send(socket, &tag, &[file.as_fd()], false));
            room = sent.is_ok();
            // A worker that has ended is replaced, and its end is told.
            self.refused = sent.err().filter(|error| !is_gone(error));
        }
        if !room {
            return Err(chunk);
        }
        seat.number = number;
        let begin = desk.tasks.tail();
        let sizes = length as u64 | u64::from(chunk.count) << 32;
        let head = [sizes, u64::from(number), chunk.entry, chunk.function];
        let large = LARGE.to_le_bytes();
        desk.tasks.push(&head, if chunk.large { &large } else { &chunk.body });
        let time = chunk.time();
        seat.time += time;
        seat.given += u64::from(chunk.count);
        seat.at.push_back(Sent { chunk, number, begin, time });
        if seat.given >= self.most_tasks {
            seat.leaving = true;
            desk.stop.store(1, crate::sync::atomic::Ordering::Release);
        }
        self.roused |= desk.ring();
        Ok(())
    }

    /// Takes back what waits at another desk, if one has nothing to do; whether it has something.
    fn rob(&mut self, hall: &Hall) -> bool {
        let richest = (0..self.seats.len()).max_by_key(|&i| self.seats[i].at.len());
        let Some(richest) = richest.filter(|&i| self.seats[i].at.len() > 1) else { return false };
        if self.idle().is_none() {
            return false;
        }
        self.withdraw(hall, richest)
    }

    /// Takes back what a worker has not claimed; whether there was any.
    fn withdraw(&mut self, hall: &Hall, i: usize) -> bool {
        let from = hall.desks()[i].tasks.withdraw();
        let seat = &mut self.seats[i];
        let mut any = false;
        while seat.at.back().is_some_and(|sent| sent.begin >= from)
            && let Some(sent) = seat.at.pop_back()
        {
            any = true;
            seat.time = seat.time.saturating_sub(sent.time);
            seat.given = seat.given.saturating_sub(u64::from(sent.chunk.count));
            self.pending.push_front(sent.chunk);
        }
        any
    }

    /// Gives up the tasks of a job that wait; at the desks too, as far as they were not begun.
    /// Whether one was.
    ///
    /// With `kill`, the job is one task. If a worker is at it, the task has its result now,
    /// whatever the worker still gives: so the answer and the result agree.
    pub(super) fn cancel(&mut self, hall: &Hall, job: &Arc<dyn Job>, kill: bool) -> bool {
        let is_its = |chunk: &Chunk| Arc::ptr_eq(&chunk.job, job);
        let mut any = false;
        for i in 0..self.seats.len() {
            if self.seats[i].at.iter().any(|sent| is_its(&sent.chunk)) {
                self.withdraw(hall, i);
            }
            let seat = &mut self.seats[i];
            let Some(sent) = seat.at.iter().find(|sent| is_its(&sent.chunk)) else { continue };
            if kill && let Some(worker) = &seat.worker {
                let error = Piece::Failed(TaskError::Cancelled);
                sent.chunk.job.put(sent.chunk.base, 1, error, &mut self.wake);
                seat.doom = Some((sent.number, sent.chunk.done + 1, Doom::Cancelled));
                worker.process.kill().ok();
                any = true;
            }
        }
        let pending = core::mem::take(&mut self.pending);
        let (theirs, others) = pending.into_iter().partition::<VecDeque<_>, _>(is_its);
        self.pending = others;
        for chunk in theirs {
            any = true;
            self.fail(chunk, &TaskError::Cancelled);
        }
        any
    }

    /// Why a task is not taken. What `goes_on` was begun before the pool was told to stop, and is
    /// drained.
    pub(super) fn refuses(&self, goes_on: bool) -> Option<TaskError> {
        let drains = |error: &TaskError| matches!(error, TaskError::Stopped) && !self.drops;
        self.closed.as_ref().filter(|error| !(goes_on && drains(error))).cloned()
    }

    /// Gives up all that is not begun, now and later.
    pub(super) fn drop_waiting(&mut self, hall: &Hall) {
        self.drops = true;
        self.collect(hall);
        for i in 0..self.seats.len() {
            self.withdraw(hall, i);
        }
        for chunk in core::mem::take(&mut self.pending) {
            self.fail(chunk, &TaskError::Stopped);
        }
    }

    // ---------------------------------------------------------------------------------------- workers
    /// Puts a worker at a desk, which was cleared.
    pub(super) fn seat(&mut self, i: usize, worker: Hired) {
        let number = self.seats[i].number;
        self.seats[i] = Seat { worker: Some(worker), number, ..Seat::default() };
    }

    /// The worker at a desk has ended: what it was at is tried again, or given up.
    pub(super) fn bury(&mut self, hall: &Hall, i: usize, status: Option<ExitStatus>) {
        // What does not arrive now is lost: the next worker gets the desk.
        self.collect_from(hall, i, Duration::ZERO);
        let desk = &hall.desks()[i];
        let claimed = desk.tasks.head();
        let progress = desk.progress();
        let seat = &mut self.seats[i];
        seat.worker = None;
        let (doom, leaving, at) = (seat.doom, seat.leaving, core::mem::take(&mut seat.at));
        let orderly = leaving && at.is_empty();
        self.counts.lost += u64::from(!orderly);
        self.counts.replaced += 1;
        let mut again = Vec::new();
        for Sent { mut chunk, number, begin, .. } in at {
            // The only task that it can have been at.
            let task = (number, chunk.done + 1);
            let begun = begin < claimed && progress == task;
            let doomed = doom.filter(|&(number, begun, _)| (number, begun) == task);
            if chunk.done < chunk.count && (begun || doomed.is_some()) {
                let mut victim = chunk.split(1);
                match (doomed, doom) {
                    (Some((_, _, Doom::TimedOut)), _) => self.fail(victim, &TaskError::TimedOut),
                    // Even if it was only about to begin.
                    (Some((_, _, Doom::Cancelled)), _) => self.fail(victim, &TaskError::Cancelled),
                    // Killed for another task's sake, which had just ended.
                    (None, Some(_)) => again.push(victim),
                    (None, None) => {
                        victim.attempts += 1;
                        if victim.attempts > self.retries {
                            self.fail(victim, &died(status));
                        } else {
                            self.counts.retried += 1;
                            again.push(victim);
                        }
                    }
                }
            }
            if chunk.done < chunk.count {
                let count = chunk.count - chunk.done;
                again.push(chunk.split(count));
            }
        }
        for chunk in again.into_iter().rev() {
            self.pending.push_front(chunk);
        }
        let end = self.closed.clone().filter(is_final);
        if let Some(error) = end.or(self.drops.then_some(TaskError::Stopped)) {
            for chunk in core::mem::take(&mut self.pending) {
                self.fail(chunk, &error);
            }
        }
        desk.clear();
    }

    /// Kills workers whose task has taken too long.
    pub(super) fn check_times(&mut self, hall: &Hall, limit: Duration) {
        let now = Instant::now();
        for (seat, desk) in self.seats.iter_mut().zip(hall.desks()) {
            let progress = desk.progress();
            let running = seat
                .at
                .front()
                .filter(|sent| progress == (sent.number, sent.chunk.done + 1))
                .map(|_| progress);
            match (running, seat.watched) {
                (None, _) => seat.watched = None,
                (Some(task), Some((seen, since))) if task == seen => {
                    if now.duration_since(since) >= limit
                        && seat.doom.is_none()
                        && let Some(worker) = &seat.worker
                    {
                        seat.doom = Some((task.0, task.1, Doom::TimedOut));
                        worker.process.kill().ok();
                    }
                }
                (Some(task), _) => seat.watched = Some((task, now)),
            }
        }
    }

    /// Ends the pool: all that is unfinished fails, and no more is taken.
    pub(super) fn end(&mut self, error: &TaskError) {
        self.closed = Some(error.clone());
        let mut all: Vec<Chunk> = core::mem::take(&mut self.pending).into();
        for seat in &mut self.seats {
            all.extend(seat.at.drain(..).map(|sent| sent.chunk));
            if let Some(worker) = &seat.worker {
                worker.process.kill().ok();
            }
        }
        for chunk in all {
            self.fail(chunk, error);
        }
    }

    /// Whether results must be read though nobody waits for one.
    pub(super) fn needs_clerk(&self) -> bool {
        self.unfinished > 0 && (self.wanted || !self.pending.is_empty())
    }

    /// Workers that are at a task.
    pub(super) fn busy(&self) -> usize {
        self.seats.iter().filter(|seat| !seat.at.is_empty()).count()
    }

    /// Whether the worker at a desk has got through its initializer.
    pub(super) fn is_ready(hall: &Hall, i: usize) -> bool {
        hall.desks()[i].ready.load(Acquire) != 0
    }
}

fn died(status: Option<ExitStatus>) -> TaskError {
    use std::os::unix::process::ExitStatusExt as _;
    TaskError::WorkerDied {
        signal: status.and_then(|status| status.signal()),
        code: status.and_then(|status| status.code()),
    }
}
