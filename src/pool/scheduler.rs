//! The scheduler: which tasks wait, which worker has which tasks, and what happens when one dies.
//!
//! One lock guards it. No code of the user runs under that lock: the scheduler collects wakers, and
//! its caller wakes them after it has released the lock.
use super::TaskOrigin;
use super::chunk::status::VALUE;
use super::chunk::{Chunk, Outcome, ResultSink};
use super::error::TaskError;
use super::segment::{PoolSegment, RESOURCE_TIMEOUT, RING_WORDS};
use super::worker::{BY_SOCKET, HEAD_WORDS, LARGE, LAST};
use crate::process::Process;
use crate::process::wire::{is_disconnected, read_file, to_file};
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::process::{receive, receive_first, send};
use core::task::Waker;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most work, in nanoseconds, that may be queued at a worker.
const QUEUED_TIME: u64 = 300_000;
/// The largest number of chunks that may be queued at a worker.
const MAX_QUEUED: usize = 128;
/// The longest run time, in nanoseconds, of a chunk that may wait alone behind the chunk that a
/// worker runs. It may exceed [`QUEUED_TIME`].
const MAX_LONE_TIME: u64 = 10_000_000;

/// A chunk that was sent to a worker.
struct SentChunk {
    chunk: Chunk,
    /// The number of its message.
    number: u32,
    /// The position of its message in the worker's ring of tasks.
    begin: u64,
    /// Its expected time, in nanoseconds.
    time: u64,
}

/// Why the owner kills a worker: because of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillReason {
    TimedOut,
    Cancelled,
    /// Not a task, but the worker's start exceeds its time limit.
    Initializer,
}

/// The owner's record of the worker in one slot.
#[derive(Default)]
pub(super) struct WorkerState {
    pub(super) handle: Option<WorkerHandle>,
    queue: VecDeque<SentChunk>,
    queued_time: u64,
    last_number: u32,
    /// How many tasks the worker has been given.
    given: u64,
    /// When the worker was started.
    started: Option<Instant>,
    /// The worker has been told to end.
    retiring: bool,
    /// The worker is not replaced when it ends, because there are too many.
    surplus: bool,
    /// Why the worker was killed: the message and the task in it, counted from 1, and the reason.
    kill_reason: Option<(u32, u32, KillReason)>,
    /// The task that the worker ran at the last look, and the time of the first look that saw it.
    running_since: Option<((u32, u32), Instant)>,
    /// When results that need a descriptor began to wait for one, and the tail of the results at
    /// that time. Results behind that tail came later, and have a time limit of their own.
    results_wait: Option<(Instant, u64)>,
}

impl WorkerState {
    /// Returns whether the worker accepts tasks, if each worker may run `most` tasks.
    fn accepts(&self, most: u64) -> bool {
        self.handle.is_some() && !self.retiring && self.kill_reason.is_none() && self.given < most
    }
}

/// A worker process, and the socket for large values.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    pub(super) process: Arc<Process<Result<(), String>>>,
    pub(super) socket: Arc<OwnedFd>,
}

/// The counters of [`Stats`](super::Stats).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
    pub(super) lost: u64,
    pub(super) replaced: u64,
}

pub(super) struct Scheduler {
    pub(super) workers: Vec<WorkerState>,
    /// The intended number of workers.
    target: usize,
    /// The shortest time limit of tasks that have one of their own.
    pub(super) own_limit: Option<Duration>,
    pub(super) pending: VecDeque<Chunk>,
    /// The number of tasks without a result.
    pub(super) unfinished: u64,
    /// Why the pool accepts no more tasks.
    pub(super) closed: Option<TaskError>,
    /// The stop event was seen.
    pub(super) stopped: bool,
    /// Tasks that have not begun are dropped.
    drops: bool,
    pub(super) counts: Counts,
    pub(super) most_tasks: u64,
    pub(super) retries: u32,
    /// Results must be read although no thread of the owner waits: an executor polls a `Task`.
    pub(super) results_wanted: bool,
    /// Woken when no task is unfinished.
    pub(super) drained: Vec<Waker>,
    costs: Vec<(u64, Arc<AtomicU64>)>,
    /// To be woken by the caller when it has released the lock.
    pub(super) wake: Vec<Waker>,
    /// A worker was asleep when it was sent a chunk.
    pub(super) woke_worker: bool,
    /// Whether results wait for a descriptor, and when arguments began to wait for a descriptor or
    /// memory. Both are retried at intervals, because no event announces a free descriptor.
    results_wait: bool,
    arguments_wait: Option<Instant>,
    /// Why the last large argument could not be sent.
    refused: Option<io::Error>,
    buffer: Vec<u8>,
}

impl Scheduler {
    pub(super) fn new(workers: usize, most_tasks: u64, retries: u32) -> Scheduler {
        Scheduler {
            workers: (0..workers).map(|_| WorkerState::default()).collect(),
            target: workers,
            own_limit: None,
            pending: VecDeque::new(),
            unfinished: 0,
            closed: None,
            stopped: false,
            drops: false,
            counts: Counts::default(),
            most_tasks,
            retries,
            results_wanted: false,
            drained: Vec::new(),
            costs: Vec::new(),
            wake: Vec::new(),
            woke_worker: false,
            results_wait: false,
            arguments_wait: None,
            refused: None,
            buffer: Vec::new(),
        }
    }

    /// Returns the average time of a call of `function`, in nanoseconds; 0 if not known yet.
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

    /// Delivers results to the caller that waits for them.
    fn deliver(&mut self, sink: &Arc<dyn ResultSink>, base: u64, count: u32, outcome: Outcome) {
        self.unfinished = self.unfinished.saturating_sub(u64::from(count));
        self.counts.failed += u64::from(matches!(outcome, Outcome::Failed(_)));
        self.counts.done += u64::from(count);
        sink.deliver(base, count, outcome, &mut self.wake);
        if self.unfinished == 0 {
            self.results_wanted = false;
            self.wake.append(&mut self.drained);
        }
    }

    /// Fails all unfinished tasks of a chunk.
    pub(super) fn fail(&mut self, mut chunk: Chunk, error: &TaskError) {
        while chunk.done < chunk.count {
            let base = chunk.base + u64::from(chunk.done);
            chunk.done += 1;
            self.deliver(&chunk.sink, base, 1, Outcome::Failed(error.clone()));
        }
    }

    // ------------------------------------------------------------------------------------- results
    /// Reads the results of all workers. Returns whether there were any.
    ///
    /// A worker whose results are malformed is killed.
    pub(super) fn collect(&mut self, segment: &PoolSegment) -> bool {
        let mut any = false;
        self.results_wait = false;
        for i in 0..self.workers.len() {
            let results = &segment.slots()[i].results;
            if results.tail() != results.head() {
                any = true;
                if self.collect_from(segment, i, RESOURCE_TIMEOUT).is_none()
                    && let Some(worker) = &self.workers[i].handle
                {
                    worker.process.kill().ok(); // its results are malformed
                }
            }
        }
        any
    }

    /// Reads the results of one worker. Results that need a descriptor stay there for `patience`.
    /// Returns `None` if the results are malformed.
    fn collect_from(&mut self, segment: &PoolSegment, i: usize, patience: Duration) -> Option<()> {
        let slot = segment.slots().get(i)?;
        let (head, tail) = (slot.results.head(), slot.results.tail());
        let words =
            usize::try_from(tail.wrapping_sub(head)).ok().filter(|&words| words <= RING_WORDS);
        let mut bytes = core::mem::take(&mut self.buffer);
        bytes.clear();
        slot.results.copy(head, words.unwrap_or(0), &mut bytes);
        let read = words.and_then(|_| self.read_records(i, &bytes, head, patience));
        let rest = read.map_or(0, |read| (bytes.len() - read) as u64 / 8);
        slot.results.release(tail.wrapping_sub(rest));
        slot.wake_for_room();
        self.buffer = bytes;
        read.map(drop)
    }

    /// Reads the records in `bytes`, which begin at position `head`. Returns the number of bytes
    /// read, or `None` if they are malformed.
    fn read_records(
        &mut self,
        i: usize,
        bytes: &[u8],
        head: u64,
        patience: Duration,
    ) -> Option<usize> {
        let position = |at: usize| head.wrapping_add(at as u64 / 8);
        // The `count` records from `begin` to `at` belong to the worker's first chunk.
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
                self.deliver_records(i, &bytes[begin..at], count)?;
                (begin, count) = (next, 0);
                let place = (position(at), position(bytes.len()));
                let Some(outcome) = self.receive_large(i, status, place, patience)? else {
                    return Some(at);
                };
                let sent = self.workers[i]
                    .queue
                    .front_mut()
                    .filter(|sent| sent.chunk.done < sent.chunk.count)?;
                let (sink, base) =
                    (Arc::clone(&sent.chunk.sink), sent.chunk.base + u64::from(sent.chunk.done));
                sent.chunk.done += 1; // nothing can fail between this and the result
                self.deliver(&sink, base, 1, outcome);
            } else {
                count += 1;
            }
            self.counts.failed += u64::from(status != VALUE);
            if flags & LAST != 0 {
                self.deliver_records(i, &bytes[begin..next], count)?;
                let state = &mut self.workers[i];
                let sent = state.queue.pop_front()?;
                state.queued_time = state.queued_time.saturating_sub(sent.time);
                let (time, _) = bytes[next..].split_first_chunk::<8>()?;
                let each = u64::from_le_bytes(*time) / u64::from(sent.chunk.count.max(1));
                let cost = &sent.chunk.cost;
                let before = cost.load(Relaxed);
                let known = if before == 0 { each } else { before / 4 * 3 + each / 4 };
                cost.store(known.max(1), Relaxed);
                if sent.chunk.done != sent.chunk.count {
                    self.pending.push_front(sent.chunk); // the worker has finished fewer
                    return None;
                }
                (begin, count) = (end, 0);
            }
            at = end;
        }
        self.deliver_records(i, &bytes[begin..at], count)?;
        Some(at)
    }

    /// Receives a large result and copies it from its file, so that no descriptor stays open.
    ///
    /// Its record is at the position `place`, among results up to `tail`. Returns `Some(None)` if
    /// the result waits for a descriptor. Returns `None` if it cannot be taken from the socket,
    /// where it would be mistaken for the next one.
    #[cold]
    fn receive_large(
        &mut self,
        i: usize,
        status: u8,
        (place, tail): (u64, u64),
        patience: Duration,
    ) -> Option<Option<Outcome>> {
        let state = &mut self.workers[i];
        let socket = state.handle.as_ref()?.socket.as_fd();
        let mut files = Vec::new();
        let file = match receive(socket, &mut [0; 4], &mut files, false) {
            Ok(_) => {
                state.results_wait = None;
                Ok(files.pop()?)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => {
                let waits = state.results_wait.filter(|&(_, tail)| place < tail);
                let waits = waits.unwrap_or_else(|| (Instant::now(), tail));
                if waits.0.elapsed() < patience {
                    state.results_wait = Some(waits);
                    self.results_wait = true;
                    return Some(None);
                }
                receive_first(socket).ok()?
            }
        };
        Some(Some(match file.and_then(read_file) {
            Ok(bytes) => Outcome::Large(status, bytes),
            Err(error) => Outcome::Failed(TaskError::Transfer(error.to_string())),
        }))
    }

    /// Returns whether values wait for descriptors or memory, which no event announces.
    pub(super) fn has_waiting_values(&self) -> bool {
        self.results_wait || self.arguments_wait.is_some()
    }

    fn deliver_records(&mut self, i: usize, records: &[u8], count: u32) -> Option<()> {
        if count == 0 {
            return Some(());
        }
        let sent = self.workers[i].queue.front_mut()?;
        let base = sent.chunk.base + u64::from(sent.chunk.done);
        if count > sent.chunk.count - sent.chunk.done {
            return None;
        }
        sent.chunk.done += count;
        let sink = Arc::clone(&sent.chunk.sink);
        self.deliver(&sink, base, count, Outcome::Records(records.to_vec()));
        Some(())
    }

    /// Returns whether a worker runs a chunk of several tasks. It wakes the reader only after the
    /// last.
    pub(super) fn has_long_message(&self) -> bool {
        self.workers
            .iter()
            .any(|state| state.queue.front().is_some_and(|sent| sent.chunk.count > 1))
    }

    // --------------------------------------------------------------------------------------- tasks
    /// Accepts tasks: sends them to an idle worker, or queues them behind all others.
    pub(super) fn accept(&mut self, segment: &PoolSegment, chunk: Chunk) {
        self.unfinished += u64::from(chunk.count);
        let idle = if self.pending.is_empty() { self.idle() } else { None };
        if let Err(chunk) = self.send(segment, idle, chunk) {
            self.refused = None; // `dispatch` tries again
            self.pending.push_back(chunk);
        }
        if !self.pending.is_empty() {
            self.dispatch(segment);
        }
    }

    /// Sends pending chunks to workers.
    pub(super) fn dispatch(&mut self, segment: &PoolSegment) {
        let mut withdrawals = self.workers.len();
        let mut set_aside = VecDeque::new();
        loop {
            if let Some(chunk) = self.pending.pop_front() {
                if chunk.large && !set_aside.is_empty() {
                    set_aside.push_back(chunk.waiting());
                    continue;
                }
                let best = self.idle().or_else(|| self.least_busy(&chunk));
                let Err(chunk) = self.send(segment, best, chunk) else { continue };
                match self.refused.take() {
                    None => {
                        self.pending.push_front(chunk);
                        break;
                    }
                    Some(error) => set_aside.extend(self.refuse(segment, chunk, &error)),
                }
            } else if withdrawals == 0 || !self.rebalance(segment) {
                break;
            } else {
                withdrawals -= 1;
            }
        }
        if self.arguments_wait.is_some() && set_aside.is_empty() {
            self.arguments_wait = None;
        }
        while let Some(chunk) = set_aside.pop_back() {
            self.pending.push_front(chunk);
        }
    }

    /// Handles a large argument that cannot be sent. Returns the chunk if it may be tried again, or
    /// fails its task.
    #[cold]
    fn refuse(&mut self, segment: &PoolSegment, chunk: Chunk, error: &io::Error) -> Option<Chunk> {
        let since = *self.arguments_wait.get_or_insert_with(|| {
            // The leader or the dispatcher must wake up and look again at intervals.
            segment.wake_reader();
            segment.wake_dispatcher();
            Instant::now()
        });
        let chunk = chunk.waiting();
        // The time limit begins when the argument was first refused, or waited behind a refused
        // one, but not before descriptors became short.
        if chunk.waits.max(Some(since)).is_some_and(|since| since.elapsed() < RESOURCE_TIMEOUT) {
            return Some(chunk);
        }
        self.fail(chunk, &TaskError::Transfer(error.to_string()));
        None
    }

    /// Returns the first idle worker.
    fn idle(&self) -> Option<usize> {
        self.workers
            .iter()
            .position(|state| state.queue.is_empty() && state.accepts(self.most_tasks))
    }

    /// Returns the worker with the shortest queue, among those where this chunk may wait.
    fn least_busy(&self, chunk: &Chunk) -> Option<usize> {
        let time = chunk.time();
        let takes = |state: &WorkerState| {
            state.accepts(self.most_tasks)
                && !chunk.large
                && (state.queue.len() < MAX_QUEUED && state.queued_time + time <= QUEUED_TIME
                    || state.queue.len() < 2 && time < MAX_LONE_TIME)
        };
        (0..self.workers.len())
            .filter(|&i| takes(&self.workers[i]))
            .min_by_key(|&i| self.workers[i].queue.len())
    }

    /// Sends a chunk to worker `to`, or a part of the chunk if the worker may not run more tasks.
    /// Returns the chunk if `to` is `None` or there is no room.
    fn send(
        &mut self,
        segment: &PoolSegment,
        to: Option<usize>,
        mut chunk: Chunk,
    ) -> Result<(), Chunk> {
        let Some(i) = to else { return Err(chunk) };
        let (state, slot) = (&mut self.workers[i], &segment.slots()[i]);
        let left = u32::try_from(self.most_tasks - state.given).unwrap_or(u32::MAX);
        if chunk.done > 0 || chunk.count > left {
            let part = chunk.split(left.min(chunk.count - chunk.done));
            if chunk.count > 0 {
                self.pending.push_front(chunk);
            }
            chunk = part;
        }
        let number = state.last_number.wrapping_add(1);
        let length = if chunk.large { 4 } else { chunk.body.len() };
        let mut room = slot.tasks.room() >= HEAD_WORDS + length.div_ceil(8);
        if room && chunk.large {
            let Some(worker) = &state.handle else { return Err(chunk) };
            let (socket, tag) = (worker.socket.as_fd(), number.to_le_bytes());
            let sent =
                to_file(&chunk.body).and_then(|file| send(socket, &tag, &[file.as_fd()], false));
            room = sent.is_ok();
            // The supervisor handles a worker that has ended.
            self.refused = sent.err().filter(|error| !is_disconnected(error));
        }
        if !room {
            return Err(chunk);
        }
        state.last_number = number;
        let begin = slot.tasks.tail();
        let sizes = length as u64 | u64::from(chunk.count) << 32;
        let head = [sizes, u64::from(number), chunk.entry, chunk.function];
        let large = LARGE.to_le_bytes();
        slot.tasks.push(&head, if chunk.large { &large } else { &chunk.body });
        let time = chunk.time();
        state.queued_time += time;
        state.given += u64::from(chunk.count);
        state.queue.push_back(SentChunk { chunk, number, begin, time });
        if state.given >= self.most_tasks {
            state.retiring = true;
            slot.stop.store(1, Release);
        }
        self.woke_worker |= slot.wake();
        Ok(())
    }

    /// Takes back the chunks queued at the busiest worker if another worker is idle. Returns
    /// whether it took any.
    fn rebalance(&mut self, segment: &PoolSegment) -> bool {
        let busiest = (0..self.workers.len()).max_by_key(|&i| self.workers[i].queue.len());
        let Some(busiest) = busiest.filter(|&i| self.workers[i].queue.len() > 1) else {
            return false;
        };
        if self.idle().is_none() {
            return false;
        }
        self.withdraw(segment, busiest)
    }

    /// Takes back the chunks that a worker has not claimed. Returns whether there were any.
    fn withdraw(&mut self, segment: &PoolSegment, i: usize) -> bool {
        let from = segment.slots()[i].tasks.withdraw();
        let state = &mut self.workers[i];
        let mut any = false;
        while state.queue.back().is_some_and(|sent| sent.begin >= from)
            && let Some(sent) = state.queue.pop_back()
        {
            any = true;
            state.queued_time = state.queued_time.saturating_sub(sent.time);
            state.given = state.given.saturating_sub(u64::from(sent.chunk.count));
            self.pending.push_front(sent.chunk);
        }
        any
    }

    /// Cancels the tasks of `sink` that have not begun. Returns whether there were any.
    ///
    /// With `kill`, the sink has one task, and a worker that runs it is killed. The task has its
    /// result from now on, whatever the worker still writes, so that the return value and the
    /// result agree.
    pub(super) fn cancel(
        &mut self,
        segment: &PoolSegment,
        sink: &Arc<dyn ResultSink>,
        kill: bool,
    ) -> bool {
        let belongs = |chunk: &Chunk| Arc::ptr_eq(&chunk.sink, sink);
        let mut any = false;
        for i in 0..self.workers.len() {
            if self.workers[i].queue.iter().any(|sent| belongs(&sent.chunk)) {
                self.withdraw(segment, i);
            }
            let state = &mut self.workers[i];
            let Some(sent) = state.queue.iter().find(|sent| belongs(&sent.chunk)) else { continue };
            if kill && let Some(worker) = &state.handle {
                let error = Outcome::Failed(TaskError::Cancelled);
                sent.chunk.sink.deliver(sent.chunk.base, 1, error, &mut self.wake);
                state.kill_reason = Some((sent.number, sent.chunk.done + 1, KillReason::Cancelled));
                worker.process.kill().ok();
                any = true;
            }
        }
        let pending = core::mem::take(&mut self.pending);
        let (theirs, others) = pending.into_iter().partition::<VecDeque<_>, _>(belongs);
        self.pending = others;
        for chunk in theirs {
            any = true;
            self.fail(chunk, &TaskError::Cancelled);
        }
        any
    }

    /// Returns why the pool does not accept a task of this origin, or `None` if it does.
    pub(super) fn refuses(&self, origin: TaskOrigin) -> Option<TaskError> {
        let accepts = |error: &TaskError| match error {
            TaskError::Stopped => origin != TaskOrigin::Owner && !self.drops,
            TaskError::Closed => origin == TaskOrigin::Task,
            _ => false,
        };
        self.closed.as_ref().filter(|error| !accepts(error)).cloned()
    }

    /// Drops all tasks that have not begun, now and later.
    pub(super) fn drop_waiting(&mut self, segment: &PoolSegment) {
        self.drops = true;
        self.collect(segment);
        for i in 0..self.workers.len() {
            self.withdraw(segment, i);
        }
        for chunk in core::mem::take(&mut self.pending) {
            self.fail(chunk, &TaskError::Stopped);
        }
    }

    /// Takes back a task that has not begun, which is then the caller's to run. Returns whether it
    /// had not begun.
    pub(super) fn take_back(&mut self, segment: &PoolSegment, sink: &Arc<dyn ResultSink>) -> bool {
        let belongs = |chunk: &Chunk| Arc::ptr_eq(&chunk.sink, sink);
        let queued = |state: &WorkerState| state.queue.iter().any(|sent| belongs(&sent.chunk));
        if let Some(i) = self.workers.iter().position(queued) {
            self.withdraw(segment, i);
        }
        let Some(at) = self.pending.iter().position(belongs) else { return false };
        self.pending.remove(at);
        self.unfinished = self.unfinished.saturating_sub(1);
        self.counts.done += 1;
        true
    }

    // ------------------------------------------------------------------------------------- workers
    /// Sets the intended number of workers.
    pub(super) fn set_workers(&mut self, segment: &PoolSegment, target: usize) {
        self.target = target;
        self.retire_surplus(segment);
        self.dispatch(segment);
    }

    /// Retires the workers that are too many, idle ones first.
    pub(super) fn retire_surplus(&mut self, segment: &PoolSegment) {
        for _ in self.target..self.count() {
            let workers = self.workers.iter().enumerate().rev();
            let stays = workers.filter(|(_, state)| state.handle.is_some() && !state.surplus);
            let retires = stays.min_by_key(|(_, state)| (!state.retiring, state.queue.len()));
            let Some((i, _)) = retires else { break };
            self.withdraw(segment, i);
            (self.workers[i].retiring, self.workers[i].surplus) = (true, true);
            let slot = &segment.slots()[i];
            slot.stop.store(1, Release);
            slot.wake();
        }
    }

    /// Returns the number of workers that exist and are not too many.
    fn count(&self) -> usize {
        self.workers.iter().filter(|state| state.handle.is_some() && !state.surplus).count()
    }

    /// Returns the vacant slots in which workers are to be started.
    pub(super) fn vacancies(&mut self, segment: &PoolSegment) -> Vec<usize> {
        let missing = self.target.saturating_sub(self.count());
        let occupied = self.workers.iter().filter(|state| state.handle.is_some()).count();
        let slots = (occupied + missing).min(segment.slots().len());
        if self.workers.len() < slots {
            self.workers.resize_with(slots, WorkerState::default);
        }
        let vacant = (0..self.workers.len()).filter(|&i| self.workers[i].handle.is_none());
        vacant.take(missing).collect()
    }

    /// Assigns a worker to a slot, which is cleared.
    pub(super) fn assign(&mut self, i: usize, worker: WorkerHandle) {
        let last_number = self.workers[i].last_number;
        self.workers[i] = WorkerState {
            handle: Some(worker),
            last_number,
            started: Some(Instant::now()),
            ..WorkerState::default()
        };
    }

    /// Handles the end of a worker: its tasks are tried again, or fail.
    pub(super) fn worker_ended(
        &mut self,
        segment: &PoolSegment,
        i: usize,
        status: Option<ExitStatus>,
    ) {
        // Results that are not read now are lost, because the next worker gets the slot.
        self.collect_from(segment, i, Duration::ZERO);
        let slot = &segment.slots()[i];
        let claimed = slot.tasks.head();
        let progress = slot.progress();
        let state = &mut self.workers[i];
        state.handle = None;
        let (kill_reason, queue) = (state.kill_reason, core::mem::take(&mut state.queue));
        let orderly = state.retiring && queue.is_empty();
        self.counts.lost += u64::from(!orderly);
        self.counts.replaced += u64::from(!core::mem::take(&mut state.surplus));
        let mut again = Vec::new();
        for SentChunk { mut chunk, number, begin, .. } in queue {
            // By I2 of the segment, the worker can have run only this task of the chunk.
            let task = (number, chunk.done + 1);
            let begun = begin < claimed && progress == task;
            let killed_for_it = kill_reason.filter(|&(number, begun, _)| (number, begun) == task);
            if chunk.done < chunk.count && (begun || killed_for_it.is_some()) {
                let mut victim = chunk.split(1);
                match (killed_for_it, kill_reason) {
                    (Some((_, _, KillReason::TimedOut)), _) => {
                        self.fail(victim, &TaskError::TimedOut)
                    }
                    // Even if the worker had only been about to begin it.
                    (Some((_, _, KillReason::Cancelled)), _) => {
                        self.fail(victim, &TaskError::Cancelled)
                    }
                    // Killed because of another task, which had just ended, or before it was ready.
                    (_, Some(_)) => again.push(victim),
                    (_, None) => {
                        victim.attempts += 1;
                        if victim.attempts > victim.retries().unwrap_or(self.retries) {
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
        let end = self.closed.clone().filter(TaskError::ends_pool);
        if let Some(error) = end.or(self.drops.then_some(TaskError::Stopped)) {
            for chunk in core::mem::take(&mut self.pending) {
                self.fail(chunk, &error);
            }
        }
        slot.clear();
    }

    /// Returns the shortest time limit that the supervisor must watch now.
    pub(super) fn shortest_limit(
        &mut self,
        segment: &PoolSegment,
        task: Option<Duration>,
        initializer: Option<Duration>,
    ) -> Option<Duration> {
        self.own_limit = self.own_limit.filter(|_| self.unfinished > 0);
        let starts = |i: usize| self.workers[i].handle.is_some() && !Self::is_ready(segment, i);
        let initializer = initializer.filter(|_| (0..self.workers.len()).any(starts));
        task.into_iter().chain(self.own_limit).chain(initializer).min()
    }

    /// Kills each worker whose task or whose start exceeds its time limit.
    pub(super) fn kill_overdue(
        &mut self,
        segment: &PoolSegment,
        task: Option<Duration>,
        initializer: Option<Duration>,
    ) {
        let now = Instant::now();
        for (state, slot) in self.workers.iter_mut().zip(segment.slots()) {
            let Some(worker) = state.handle.as_ref().filter(|_| state.kill_reason.is_none()) else {
                continue;
            };
            let exceeds = |limit: Option<Duration>, since: Instant| {
                limit.is_some_and(|limit| now.duration_since(since) >= limit)
            };
            let progress = slot.progress();
            let runs = |sent: &&SentChunk| progress == (sent.number, sent.chunk.done + 1);
            let reason = match (state.queue.front().filter(runs), state.running_since) {
                (Some(sent), Some((seen, since))) if seen == progress => {
                    let limit = sent.chunk.timeout().or(task);
                    exceeds(limit, since).then_some((progress.0, progress.1, KillReason::TimedOut))
                }
                (running, _) => {
                    state.running_since = running.map(|_| (progress, now));
                    let starts = state.started.filter(|_| slot.ready.load(Acquire) == 0);
                    let overdue = starts.is_some_and(|since| exceeds(initializer, since));
                    overdue.then_some((0, 0, KillReason::Initializer))
                }
            };
            if reason.is_some() {
                state.kill_reason = reason;
                worker.process.kill().ok();
            }
        }
    }

    /// Returns whether the worker in a slot was killed because its start exceeded its time limit.
    pub(super) fn start_timed_out(&self, i: usize) -> bool {
        matches!(self.workers[i].kill_reason, Some((_, _, KillReason::Initializer)))
    }

    /// Ends the pool: all unfinished tasks fail, and no more are accepted.
    pub(super) fn end(&mut self, error: &TaskError) {
        self.closed = Some(error.clone());
        let mut all: Vec<Chunk> = core::mem::take(&mut self.pending).into();
        for state in &mut self.workers {
            all.extend(state.queue.drain(..).map(|sent| sent.chunk));
            if let Some(worker) = &state.handle {
                worker.process.kill().ok();
            }
        }
        for chunk in all {
            self.fail(chunk, error);
        }
    }

    /// Returns whether results must be read although no thread of the owner waits.
    pub(super) fn needs_dispatcher(&self) -> bool {
        self.unfinished > 0 && (self.results_wanted || !self.pending.is_empty())
    }

    /// Returns the number of workers that have tasks.
    pub(super) fn busy(&self) -> usize {
        self.workers.iter().filter(|state| !state.queue.is_empty()).count()
    }

    /// Returns whether the initialiser of the worker in a slot has returned.
    pub(super) fn is_ready(segment: &PoolSegment, i: usize) -> bool {
        segment.slots()[i].ready.load(Acquire) != 0
    }
}

fn died(status: Option<ExitStatus>) -> TaskError {
    use std::os::unix::process::ExitStatusExt as _;
    TaskError::WorkerDied {
        signal: status.and_then(|status| status.signal()),
        code: status.and_then(|status| status.code()),
    }
}
