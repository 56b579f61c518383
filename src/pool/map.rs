//! A function applied to many arguments.
use super::chunk::{Chunk, Outcome, ResultSink};
use super::error::TaskError;
use super::segment::MAX_INLINE;
use super::task::{first, from_outcome};
use super::{Pool, TaskOrigin};
use crate::deadline::Deadline;
use crate::process::wire::encode;
use crate::process::worker;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::stopwatch::Stopwatch;
use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;
use core::task::Waker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An iterator over the results of [`Pool::map`] and [`Pool::map_unordered`].
///
/// It takes arguments from its input lazily: at most a few chunks for each worker ahead of the
/// results that the caller has taken. If it is dropped, tasks that have not begun are cancelled.
///
/// Available results are returned before a slow input is asked for more. The input runs in the
/// calling thread, and no result is returned while it blocks. An input that waits for one of the
/// map's own results therefore never ends. Use [`submit`](Pool::submit) and
/// [`as_completed`](super::as_completed) for that.
///
/// A panic of the input reaches the caller. No argument that was taken before is lost.
#[must_use = "it submits only the first arguments unless it is iterated"]
pub struct Map<'a, I, A, R> {
    pool: &'a Pool,
    input: Option<I>,
    /// Why no task can be submitted.
    failed: Option<TaskError>,
    /// The map began before the pool was stopped.
    goes_on: bool,
    entry: u64,
    function: u64,
    cost: Arc<AtomicU64>,
    sink: Arc<MapSink>,
    ordered: bool,
    /// The number of tasks sent, and of results returned.
    sent: u64,
    given: u64,
    /// The chunk under construction: the number of its arguments, and their length in bytes. It
    /// survives a panic of the input or of an argument's encoder, which may leave more bytes.
    count: u32,
    end: usize,
    body: Vec<u8>,
    /// The size of the last chunk.
    size: u64,
    /// The time that the input takes for an argument, in nanoseconds.
    pace: u64,
    arrived: BTreeMap<u64, (u32, Outcome)>,
    /// The current records: how many are left, and where the next begins.
    current: (u32, usize, Vec<u8>),
    kind: PhantomData<fn(A) -> R>,
}

/// Receives the results of a map.
#[derive(Default)]
struct MapSink(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    outcomes: Vec<(u64, u32, Outcome)>,
    wakers: Vec<Waker>,
}

impl MapSink {
    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResultSink for MapSink {
    fn deliver(&self, base: u64, count: u32, outcome: Outcome, wake: &mut Vec<Waker>) {
        let mut arrived = self.arrived();
        arrived.outcomes.push((base, count, outcome));
        wake.append(&mut arrived.wakers);
    }
}

/// The intended time of a chunk, in nanoseconds, and its largest number of tasks.
const CHUNK: u64 = 250_000;
const MAX_CHUNK: u64 = 4_096;

impl<'a, I, A, R> Map<'a, I, A, R>
where
    I: Iterator<Item = A>,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    pub(super) fn new(pool: &'a Pool, function: fn(A) -> R, input: I, ordered: bool) -> Self {
        let numbers = worker::numbers(function);
        let failed = numbers.is_none().then_some(TaskError::ForeignFunction);
        let (entry, function) = numbers.unwrap_or((0, 0));
        pool.core.look_for_stop();
        let (cost, goes_on) = match pool.core.is_copy() {
            true => (Arc::default(), false),
            false => {
                let mut scheduler = pool.core.scheduler();
                (scheduler.cost_of(function), scheduler.closed.is_none())
            }
        };
        let mut map = Map {
            pool,
            input: Some(input),
            failed,
            goes_on,
            entry,
            function,
            cost,
            sink: Arc::default(),
            ordered,
            sent: 0,
            given: 0,
            count: 0,
            end: 0,
            body: Vec::new(),
            size: 1,
            pace: 0,
            arrived: BTreeMap::new(),
            current: (0, 0, Vec::new()),
            kind: PhantomData,
        };
        map.feed();
        map
    }

    /// Returns the size of the next chunk.
    fn next_size(&self, left: Option<usize>) -> u64 {
        let workers = self.pool.core.workers() as u64;
        let fits = match self.cost.load(Relaxed) {
            0 => 1,
            cost => CHUNK / cost.max(self.pace),
        };
        // Small chunks near the end, so that all workers finish at about the same time.
        let share = left.map_or(u64::MAX, |left| left as u64 / (3 * workers));
        fits.min(4 * self.size).min(share).clamp(1, MAX_CHUNK)
    }

    /// Sends as many chunks as may be in flight. Stops asking a slow input once a result is there.
    fn feed(&mut self) {
        if self.pool.core.is_copy() && self.failed.is_none() {
            self.failed = Some(TaskError::Forked);
            self.sent += u64::from(core::mem::take(&mut self.count));
        }
        let workers = self.pool.core.workers() as u64;
        let began = Stopwatch::start();
        while self.failed.is_none() && self.input.is_some() {
            let left = self.input.as_ref().and_then(|input| input.size_hint().1);
            let size = self.next_size(left);
            if self.sent - self.given > (2 * workers + 2) * size.max(self.size) {
                return;
            }
            let (before, first) = (self.sent, Stopwatch::start());
            self.send(size);
            let now = Stopwatch::start();
            let nanoseconds = |from: Stopwatch| u64::try_from(from.until(now).as_nanos());
            self.size = (self.sent - before).max(1);
            let pace = nanoseconds(first).unwrap_or(u64::MAX) / self.size;
            self.pace = pace.max(self.pace / 2);
            if nanoseconds(began).unwrap_or(u64::MAX) > CHUNK && self.looks_for_results() {
                return;
            }
        }
    }

    /// Returns whether the next result is there. Waits for it at most an eighth of the time that
    /// the input takes for an argument, which slows the map down little.
    #[cold]
    fn looks_for_results(&mut self) -> bool {
        if self.pool.core.is_copy() {
            return false;
        }
        let deadline = Deadline::after(Duration::from_nanos(self.pace / 8));
        self.pool.core.collect_results();
        loop {
            self.gather();
            let first = self.arrived.first_key_value();
            if first.is_some_and(|(&base, _)| !self.ordered || base == self.given) {
                return true;
            }
            if self.sent == self.given || deadline.is_over() {
                return false;
            }
            self.wait_until(deadline);
        }
    }

    /// Blocks until results have come, or the deadline passes.
    fn wait_until(&self, deadline: Deadline) {
        let sink = Arc::clone(&self.sink);
        let mut ready = || !sink.arrived().outcomes.is_empty();
        let mut register = |waker: Waker| {
            let mut arrived = sink.arrived();
            if arrived.outcomes.is_empty() {
                arrived.wakers.push(waker);
            } else {
                drop(arrived);
                waker.wake();
            }
        };
        self.pool.core.wait_for(deadline, &mut ready, &mut register);
    }

    /// Sends a chunk of up to `size` arguments. A large argument ends it and is a chunk of its own.
    fn send(&mut self, size: u64) {
        self.body.truncate(self.end);
        let mut large = Vec::new();
        let mut failed = None;
        while u64::from(self.count) < size && self.end < MAX_INLINE / 2 {
            let Some(argument) = self.input.as_mut().and_then(Iterator::next) else {
                self.input = None;
                break;
            };
            let (body, end) = (&mut self.body, self.end);
            body.extend([0; 4]);
            match encode(&argument, body) {
                Ok(()) if body.len() <= MAX_INLINE => {
                    let length = u32::try_from(body.len() - end - 4).unwrap_or(0);
                    body[end..end + 4].copy_from_slice(&length.to_le_bytes());
                    self.end = body.len();
                    self.count += 1;
                }
                other => {
                    large = body.split_off(end).split_off(4);
                    failed = other.err();
                    break;
                }
            }
        }
        let (count, body) = (core::mem::take(&mut self.count), core::mem::take(&mut self.body));
        self.end = 0;
        self.submit(count, body, false);
        if let Some(error) = failed {
            let error = TaskError::Argument(error.to_string());
            self.arrived.insert(self.sent, (1, Outcome::Failed(error)));
            self.sent += 1;
        } else if !large.is_empty() {
            self.submit(1, large, true);
        }
    }

    /// Counts `count` tasks as sent, and submits them.
    fn submit(&mut self, count: u32, body: Vec<u8>, large: bool) {
        if count == 0 {
            return;
        }
        let base = self.sent;
        self.sent += u64::from(count);
        let chunk = Chunk {
            sink: Arc::clone(&self.sink) as _,
            base,
            count,
            done: 0,
            attempts: 0,
            entry: self.entry,
            function: self.function,
            cost: Arc::clone(&self.cost),
            body,
            large,
            waits: None,
            options: None,
        };
        let origin = if self.goes_on { TaskOrigin::EarlierMap } else { TaskOrigin::Owner };
        if let Err(error) = self.pool.core.submit(|_| chunk, origin) {
            for number in base..base + u64::from(count) {
                self.arrived.insert(number, (1, Outcome::Failed(error.clone())));
            }
        }
    }

    /// Moves delivered results from the sink to `arrived`.
    fn gather(&mut self) {
        let outcomes = core::mem::take(&mut self.sink.arrived().outcomes);
        self.arrived
            .extend(outcomes.into_iter().map(|(base, count, outcome)| (base, (count, outcome))));
    }

    /// Takes the next outcome to return.
    fn outcome(&mut self) -> Option<(u32, Outcome)> {
        if self.ordered {
            self.arrived.remove(&self.given)
        } else {
            self.arrived.pop_first().map(|(_, outcome)| outcome)
        }
    }
}

impl<I, A, R> Iterator for Map<'_, I, A, R>
where
    I: Iterator<Item = A>,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (left, at, records) = &mut self.current;
        if *left > 0 {
            let (result, length) = first(&records[*at..]);
            *left -= 1;
            *at += length;
            self.given += 1;
            return Some(result);
        }
        self.next_piece()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let under_way = self.sent - self.given + u64::from(self.count);
        let under_way = usize::try_from(under_way).unwrap_or(usize::MAX);
        let (least, most) = self.input.as_ref().map_or((0, Some(0)), Iterator::size_hint);
        let most = most.and_then(|most| most.checked_add(under_way));
        (least.saturating_add(under_way), most)
    }
}

impl<I, A, R> Map<'_, I, A, R>
where
    I: Iterator<Item = A>,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    #[cold]
    #[inline(never)]
    fn next_piece(&mut self) -> Option<Result<R, TaskError>> {
        loop {
            // A slow input is asked only if there is no result to return.
            if self.pace <= CHUNK || !self.looks_for_results() {
                self.feed();
            }
            if let Some(error) = &self.failed {
                // Each argument has a result nevertheless, including those sent before a fork.
                if self.given < self.sent {
                    self.given += 1;
                    return Some(Err(error.clone()));
                }
                return self.input.as_mut()?.next().map(|_| Err(error.clone()));
            }
            self.gather();
            if let Some((count, outcome)) = self.outcome() {
                if let Outcome::Records(records) = outcome {
                    self.current = (count, 0, records);
                    return self.next();
                }
                self.given += 1;
                return Some(from_outcome(outcome));
            }
            if self.sent == self.given && self.input.is_none() {
                return None;
            }
            self.wait_until(Deadline::NEVER);
        }
    }
}

impl<I, A, R> FusedIterator for Map<'_, I, A, R>
where
    I: FusedIterator<Item = A>,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
}

impl<I, A, R> Drop for Map<'_, I, A, R> {
    fn drop(&mut self) {
        if self.sent > self.given {
            let sink: Arc<dyn ResultSink> = Arc::clone(&self.sink) as _;
            self.pool.core.cancel(&sink, false);
            self.pool.core.ensure_leader();
        }
    }
}

impl<I, A, R> fmt::Debug for Map<'_, I, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("sent", &self.sent).field("given", &self.given).finish()
    }
}
