//! The pool's shared segment: one slot per worker, each with a ring of tasks and a ring of results.
//!
//! # State
//! Positions count words since the pool was built and never decrease. The word at a position is the
//! word of the ring at that position modulo the ring's length.
//!
//! | word | written by | meaning |
//! |---|---|---|
//! | `tasks.tail` | owner | messages before it are complete |
//! | `tasks.head` | worker, owner | messages before it are taken: claimed by the worker, or withdrawn by the owner |
//! | `results.tail` | worker | results before it are complete |
//! | `results.head` | owner | results before it are read |
//! | `progress` | worker | the number of the message, and how many of its tasks have begun |
//!
//! # Invariants
//! - I1. A message is taken once, by one compare-exchange of `tasks.head`, which both sides use.
//!   The worker copies a message and then claims it. If the owner has withdrawn the message
//!   meanwhile, the worker discards the copy.
//! - I2. `progress` is written before a task begins, and a task's result is complete before
//!   `progress` names the next task. The owner therefore knows which task a dead worker was
//!   running, which tasks it had finished, and that it had begun no other. `progress` names the
//!   first task of a message before the message is claimed, so a worker that dies after the claim
//!   dies at a task.
//! - I3. A thread that sleeps on an event has looked for work after it reset the event. A thread
//!   that changes something sets the event afterwards.
//!
//! # Death
//! If a worker dies, its incomplete result does not count, and its unclaimed messages still belong
//! to the owner. No word is left half-written, so nothing needs repair. The owner gives the slot to
//! the next worker. If the owner dies, the workers end.
use crate::error::OpenError;
use crate::event::Event;
use crate::process::Builder;
use crate::shared::{Options, Shared};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use core::time::Duration;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The number of words of a ring.
pub(super) const RING_WORDS: usize = 8 * 1024;
/// The largest argument or result, in bytes, that a ring carries.
pub(super) const MAX_INLINE: usize = 12 * 1024;
/// How long a larger value waits for a descriptor and for memory.
pub(super) const RESOURCE_TIMEOUT: Duration = Duration::from_secs(1);

crate::shared! {
    #[repr(align(64))]
    pub(super) struct CacheLine { word: AtomicU64 }

    pub(super) struct Ring {
        tail: CacheLine,
        head: CacheLine,
        words: [AtomicU64; RING_WORDS],
    }

    /// The part of the segment that belongs to one worker.
    #[repr(align(128))]
    pub(super) struct WorkerSlot {
        /// The worker sleeps on it.
        wakeup: Event,
        /// The worker waits for room in `results`.
        waits_for_room: AtomicU32,
        /// The worker ends when it has no more tasks.
        pub(super) stop: AtomicU32,
        /// The worker's initialiser has returned.
        pub(super) ready: AtomicU32,
        progress: CacheLine,
        pub(super) tasks: Ring,
        pub(super) results: Ring,
    }

    /// The events on which threads of the owner sleep.
    pub(super) struct OwnerEvents {
        /// The leader, which reads results, sleeps on it.
        results: Event,
        /// The dispatcher sleeps on it.
        dispatch: Event,
    }
    pub(super) struct Segment4 { owner: OwnerEvents, slots: [WorkerSlot; 4] }
    pub(super) struct Segment16 { owner: OwnerEvents, slots: [WorkerSlot; 16] }
    pub(super) struct Segment64 { owner: OwnerEvents, slots: [WorkerSlot; 64] }
    pub(super) struct Segment256 { owner: OwnerEvents, slots: [WorkerSlot; 256] }
}

impl Ring {
    pub(super) fn tail(&self) -> u64 {
        self.tail.word.load(Acquire)
    }

    pub(super) fn head(&self) -> u64 {
        self.head.word.load(Acquire)
    }

    /// Returns how many words are free. Only the writer of the tail may call it.
    pub(super) fn room(&self) -> usize {
        let used = self.tail.word.load(Relaxed).wrapping_sub(self.head());
        usize::try_from(used).map_or(0, |used| RING_WORDS.saturating_sub(used))
    }

    fn at(&self, position: u64) -> &AtomicU64 {
        &self.words[usize::try_from(position % RING_WORDS as u64).unwrap_or(0)]
    }

    /// Appends a message, for which there must be room. Its bytes are padded to whole words.
    pub(super) fn push(&self, head: &[u64], bytes: &[u8]) {
        let mut position = self.tail.word.load(Relaxed);
        let mut put = |word: u64| {
            self.at(position).store(word, Relaxed);
            position = position.wrapping_add(1);
        };
        head.iter().for_each(|&word| put(word));
        let (whole, rest) = bytes.as_chunks::<8>();
        whole.iter().for_each(|&bytes| put(u64::from_le_bytes(bytes)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            put(u64::from_le_bytes(last));
        }
        self.tail.word.store(position, Release);
    }

    /// Returns one word of a message.
    pub(super) fn word(&self, position: u64) -> u64 {
        self.at(position).load(Relaxed)
    }

    /// Appends the bytes of `words` words to `to`.
    pub(super) fn copy(&self, position: u64, words: usize, to: &mut Vec<u8>) {
        let before = to.len();
        to.resize(before + 8 * words, 0);
        let first = usize::try_from(position % RING_WORDS as u64).unwrap_or(0);
        let from = self.words[first..].iter().chain(&self.words);
        for (to, from) in to[before..].as_chunks_mut::<8>().0.iter_mut().zip(from) {
            *to = from.load(Relaxed).to_le_bytes();
        }
    }

    /// Takes what lies before `next`, if the head is still `seen`. Keeps I1.
    pub(super) fn claim(&self, seen: u64, next: u64) -> bool {
        self.head.word.compare_exchange(seen, next, AcqRel, Acquire).is_ok()
    }

    /// Withdraws all unclaimed messages, and returns the position of the first.
    pub(super) fn withdraw(&self) -> u64 {
        let tail = self.tail.word.load(Relaxed);
        loop {
            let head = self.head();
            if self.claim(head, tail) {
                return head;
            }
        }
    }

    /// Frees the words before `head`. Only the single reader may call it.
    pub(super) fn release(&self, head: u64) {
        self.head.word.store(head, Release);
    }
}

impl WorkerSlot {
    /// Returns the number of the message that the worker handles, and how many of its tasks it has
    /// begun.
    pub(super) fn progress(&self) -> (u32, u32) {
        let word = self.progress.word.load(Acquire);
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        (low(word >> 32), low(word))
    }

    pub(super) fn set_progress(&self, message: u32, begun: u32) {
        self.progress.word.store(u64::from(message) << 32 | u64::from(begun), Release);
    }

    /// Wakes the worker. Returns whether it was asleep.
    pub(super) fn wake(&self) -> bool {
        self.wakeup.set()
    }

    /// In the worker: blocks until the owner wakes it. Returns `false` if `timeout` has elapsed.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let woken = self.wakeup.wait_timeout(timeout).unwrap_or(false);
        self.wakeup.reset();
        fence(SeqCst); // keeps I3
        woken
    }

    /// In the worker: announces that it waits for room in `results`.
    pub(super) fn announce_wait(&self) {
        self.waits_for_room.store(1, SeqCst);
        fence(SeqCst); // pairs with the fence in `wake_for_room`: one side sees the other
    }

    /// Wakes the worker if it waits for room in `results`, which the owner has made.
    pub(super) fn wake_for_room(&self) {
        fence(SeqCst); // pairs with the fence in `announce_wait`
        if self.waits_for_room.load(Relaxed) != 0 {
            self.waits_for_room.store(0, Relaxed);
            self.wakeup.set();
        }
    }

    /// Resets the slot for another worker. The former worker is gone and its results are read.
    pub(super) fn clear(&self) {
        self.tasks.release(self.tasks.tail.word.load(Relaxed));
        self.set_progress(0, 0);
        for word in [&self.waits_for_room, &self.stop, &self.ready] {
            word.store(0, Relaxed);
        }
    }
}

/// The segment of a pool. It exists in four sizes, by its number of slots.
#[derive(Clone)]
pub(super) enum PoolSegment {
    Four(Shared<Segment4>),
    Sixteen(Shared<Segment16>),
    SixtyFour(Shared<Segment64>),
    Max(Shared<Segment256>),
}

/// The largest number of workers of a pool.
pub(super) const MAX_WORKERS: usize = 256;
const KEY: &str = "outlast pool";
/// The number of threads of the owner that can wait for results.
const THREADS: u32 = 2_048;

/// Evaluates an expression for the segment of whichever size.
macro_rules! each_size {
    ($segment:expr, $shared:ident => $value:expr) => {
        match $segment {
            PoolSegment::Four($shared) => $value,
            PoolSegment::Sixteen($shared) => $value,
            PoolSegment::SixtyFour($shared) => $value,
            PoolSegment::Max($shared) => $value,
        }
    };
}

impl PoolSegment {
    pub(super) fn new(workers: usize) -> Result<PoolSegment, OpenError> {
        // A process slot for each worker, for killed workers that are being recovered, and for the
        // owner.
        let processes = u32::try_from(workers).unwrap_or(0) * 4 + 16;
        let options = Options::new().processes(processes).threads(processes * 2 + THREADS);
        Ok(match workers {
            0..=4 => PoolSegment::Four(options.anonymous_with(|_| {})?),
            5..=16 => PoolSegment::Sixteen(options.anonymous_with(|_| {})?),
            17..=64 => PoolSegment::SixtyFour(options.anonymous_with(|_| {})?),
            _ => PoolSegment::Max(options.anonymous_with(|_| {})?),
        })
    }

    /// In a worker: opens the segment of a pool of `workers` workers.
    pub(super) fn inherited(workers: usize) -> Result<PoolSegment, OpenError> {
        Ok(match workers {
            0..=4 => PoolSegment::Four(Shared::inherited(KEY)?),
            5..=16 => PoolSegment::Sixteen(Shared::inherited(KEY)?),
            17..=64 => PoolSegment::SixtyFour(Shared::inherited(KEY)?),
            _ => PoolSegment::Max(Shared::inherited(KEY)?),
        })
    }

    pub(super) fn share<A, R>(&self, builder: Builder<A, R>) -> Builder<A, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        each_size!(self, shared => builder.share(KEY, shared))
    }

    fn owner(&self) -> &OwnerEvents {
        each_size!(self, shared => &shared.owner)
    }

    pub(super) fn slots(&self) -> &[WorkerSlot] {
        each_size!(self, shared => &shared.slots)
    }

    /// Wakes the thread of the owner that reads results.
    pub(super) fn wake_reader(&self) {
        self.owner().results.set();
    }

    /// Wakes the dispatcher.
    pub(super) fn wake_dispatcher(&self) {
        self.owner().dispatch.set();
    }

    /// In the dispatcher: blocks until it is woken.
    pub(super) fn wait_for_dispatch(&self) {
        wait_and_reset(&self.owner().dispatch, None);
    }

    /// In the reader: blocks until it is woken or `timeout` has elapsed.
    pub(super) fn wait_for_results(&self, timeout: Option<Duration>) {
        wait_and_reset(&self.owner().results, timeout);
    }
}

fn wait_and_reset(event: &Event, timeout: Option<Duration>) {
    let waited = match timeout {
        None => event.wait(),
        Some(timeout) => event.wait_timeout(timeout).map(drop),
    };
    if waited.is_err() {
        // The segment has no slot for another thread. The caller looks again and again instead.
        std::thread::sleep(Duration::from_millis(1));
    }
    event.reset();
    fence(SeqCst); // keeps I3
}
