//! A function applied to many arguments.
use super::Pool;
use super::chunk::{Chunk, Job, Piece};
use super::error::TaskError;
use super::hall::INLINE;
use super::task::{first, from_piece};
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

/// The results of [`Pool::map`] and [`Pool::map_unordered`], as they come.
///
/// It takes arguments from its input as it goes: never more than a few chunks for each worker ahead
/// of what was taken from it. Dropped, it gives up what was not begun.
///
/// Results that are there are given before a slow input is asked for more. But while the input
/// itself is waiting, in this thread, nothing is given: an input that waits for one of the map's
/// own results never ends. Use [`submit`](Pool::submit) and [`as_completed`](super::as_completed)
/// for that.
///
/// A panic of the input reaches the caller, and loses no argument that was taken before it.
#[must_use = "it sends no more than the first arguments by itself"]
pub struct Map<'a, I, A, R> {
    pool: &'a Pool,
    input: Option<I>,
    /// Why nothing can be sent at all.
    failed: Option<TaskError>,
    /// It was begun before the pool was told to stop.
    goes_on: bool,
    entry: u64,
    function: u64,
    cost: Arc<AtomicU64>,
    batch: Arc<Batch>,
    ordered: bool,
    /// Tasks sent, and results given.
    sent: u64,
    given: u64,
    /// The chunk that is being made: how many arguments, in how many bytes. It outlasts a panic of
    /// the input, and of an argument's own code, which may leave some bytes more.
    count: u32,
    end: usize,
    body: Vec<u8>,
    /// How many the last chunk was of.
    size: u64,
    /// Nanoseconds that the input takes for an argument.
    pace: u64,
    arrived: BTreeMap<u64, (u32, Piece)>,
    /// The records at hand: how many are left, and from which byte on.
    at_hand: (u32, usize, Vec<u8>),
    kind: PhantomData<fn(A) -> R>,
}

/// Where the results come.
#[derive(Default)]
struct Batch(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    pieces: Vec<(u64, u32, Piece)>,
    wakers: Vec<Waker>,
}

impl Batch {
    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job for Batch {
    fn put(&self, base: u64, count: u32, piece: Piece, wake: &mut Vec<Waker>) {
        let mut arrived = self.arrived();
        arrived.pieces.push((base, count, piece));
        wake.append(&mut arrived.wakers);
    }
}

/// What a chunk is to take, in nanoseconds, and how many tasks it has at most.
const CHUNK: u64 = 250_000;
const MOST: u64 = 4_096;

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
                let mut book = pool.core.book();
                (book.cost_of(function), book.closed.is_none())
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
            batch: Arc::default(),
            ordered,
            sent: 0,
            given: 0,
            count: 0,
            end: 0,
            body: Vec::new(),
            size: 1,
            pace: 0,
            arrived: BTreeMap::new(),
            at_hand: (0, 0, Vec::new()),
            kind: PhantomData,
        };
        map.feed();
        map
    }

    /// How many tasks the next chunk is to have.
    fn next_size(&self, left: Option<usize>) -> u64 {
        let workers = self.pool.core.plan.workers as u64;
        let fits = match self.cost.load(Relaxed) {
            0 => 1,
            cost => CHUNK / cost.max(self.pace),
        };
        // At the end small ones, so that all workers end at about the same time.
        let share = left.map_or(u64::MAX, |left| left as u64 / (3 * workers));
        fits.min(4 * self.size).min(share).clamp(1, MOST)
    }

    /// Sends as much as may be under way. A slow input is asked for no more once a result is there.
    fn feed(&mut self) {
        if self.pool.core.is_copy() && self.failed.is_none() {
            self.failed = Some(TaskError::Forked);
            self.sent += u64::from(core::mem::take(&mut self.count));
        }
        let workers = self.pool.core.plan.workers as u64;
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

    /// Whether the next result to give is there, or comes before an eighth of the time has passed
    /// that the input takes for an argument: that slows nothing down by much.
    #[cold]
    fn looks_for_results(&mut self) -> bool {
        if self.pool.core.is_copy() {
            return false;
        }
        let deadline = Deadline::after(Duration::from_nanos(self.pace / 8));
        self.pool.core.pump();
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

    /// Waits until results have come.
    fn wait_until(&self, deadline: Deadline) {
        let batch = Arc::clone(&self.batch);
        let mut ready = || !batch.arrived().pieces.is_empty();
        let mut register = |waker: Waker| {
            let mut arrived = batch.arrived();
            if arrived.pieces.is_empty() {
                arrived.wakers.push(waker);
            } else {
                drop(arrived);
                waker.wake();
            }
        };
        self.pool.core.wait_for(deadline, &mut ready, &mut register);
    }

    /// Sends a chunk: up to `size` arguments, or a large one and those before it.
    fn send(&mut self, size: u64) {
        self.body.truncate(self.end);
        let mut large = Vec::new();
        let mut failed = None;
        while u64::from(self.count) < size && self.end < INLINE / 2 {
            let Some(argument) = self.input.as_mut().and_then(Iterator::next) else {
                self.input = None;
                break;
            };
            let (body, end) = (&mut self.body, self.end);
            body.extend([0; 4]);
            match encode(&argument, body) {
                Ok(()) if body.len() <= INLINE => {
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
            self.arrived.insert(self.sent, (1, Piece::Failed(error)));
            self.sent += 1;
        } else if !large.is_empty() {
            self.submit(1, large, true);
        }
    }

    /// Counts so many tasks as sent, and sends them.
    fn submit(&mut self, count: u32, body: Vec<u8>, large: bool) {
        if count == 0 {
            return;
        }
        let base = self.sent;
        self.sent += u64::from(count);
        let chunk = Chunk {
            job: Arc::clone(&self.batch) as _,
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
        };
        if let Err(error) = self.pool.core.submit(|_| chunk, self.goes_on) {
            for number in base..base + u64::from(count) {
                self.arrived.insert(number, (1, Piece::Failed(error.clone())));
            }
        }
    }

    /// Takes the results that have come over from where others put them.
    fn gather(&mut self) {
        let pieces = core::mem::take(&mut self.batch.arrived().pieces);
        self.arrived.extend(pieces.into_iter().map(|(base, count, piece)| (base, (count, piece))));
    }

    /// The next piece to give.
    fn piece(&mut self) -> Option<(u32, Piece)> {
        if self.ordered {
            self.arrived.remove(&self.given)
        } else {
            self.arrived.pop_first().map(|(_, piece)| piece)
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
        let (left, at, records) = &mut self.at_hand;
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
            // An input that takes longer than a chunk may comes second.
            if self.pace <= CHUNK || !self.looks_for_results() {
                self.feed();
            }
            if let Some(error) = &self.failed {
                // Each argument has its result all the same, those that were sent before a fork,
                // too.
                if self.given < self.sent {
                    self.given += 1;
                    return Some(Err(error.clone()));
                }
                return self.input.as_mut()?.next().map(|_| Err(error.clone()));
            }
            self.gather();
            if let Some((count, piece)) = self.piece() {
                if let Piece::Records(records) = piece {
                    self.at_hand = (count, 0, records);
                    return self.next();
                }
                self.given += 1;
                return Some(from_piece(piece));
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
            let job: Arc<dyn Job> = Arc::clone(&self.batch) as _;
            self.pool.core.cancel(&job, false);
            self.pool.core.hand_on();
        }
    }
}

impl<I, A, R> fmt::Debug for Map<'_, I, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("sent", &self.sent).field("given", &self.given).finish()
    }
}
