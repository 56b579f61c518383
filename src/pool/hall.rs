//! What owner and workers share: a desk for each worker, with a ring of tasks and a ring of
//! results.
//!
//! # State
//! Positions count words from the pool's beginning, and never go back; a ring's word is that of the
//! position modulo its length.
//!
//! | word | written by | meaning |
//! |---|---|---|
//! | `tasks.tail` | owner | messages before it are complete |
//! | `tasks.head` | worker, owner | messages before it are taken: claimed by the worker, or withdrawn by the owner |
//! | `results.tail` | worker | results before it are complete |
//! | `results.head` | owner | results before it are read |
//! | `progress` | worker | number of the message, and how many of its tasks were begun |
//!
//! # Invariants
//! - I1. A message is taken once: by one exchange of `tasks.head`, which both sides make. The
//!   worker copies a message and then claims it; if the owner withdrew it meanwhile, the copy is
//!   void.
//! - I2. A task's `progress` stands before it begins, and its result is complete before the next
//!   one's `progress`: of a dead worker the owner knows which task it was at, which ones it had
//!   done, and that it had begun no other. The first task of a message has its `progress` before
//!   the message is claimed: every worker that dies after the claim dies at a task.
//! - I3. Who waits has looked after clearing the bell, and who changes something rings after that.
//!
//! # Death
//! A worker's: what it had not completed is not there, and what it had not claimed is still the
//! owner's. No word is left half-way, so nothing is to be mended; the owner gives the desk to the
//! next worker. The owner's: the workers end.
use crate::error::OpenError;
use crate::event::Event;
use crate::process::{Builder, Process};
use crate::shared::{Options, Shared};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use core::time::Duration;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Words of a ring.
pub(super) const WORDS: usize = 8 * 1024;
/// The most bytes of a message's arguments, or of a result, that go through a ring.
pub(super) const INLINE: usize = 12 * 1024;
/// How long a larger one waits for a descriptor and for memory.
pub(super) const RESOURCE_TIMEOUT: Duration = Duration::from_secs(1);

crate::shared! {
    #[repr(align(64))]
    pub(super) struct Line { word: AtomicU64 }

    pub(super) struct Ring {
        tail: Line,
        head: Line,
        words: [AtomicU64; WORDS],
    }

    /// One worker's.
    #[repr(align(128))]
    pub(super) struct Desk {
        bell: Event,
        /// The worker waits for room in `results`.
        stuck: AtomicU32,
        /// The worker is to end when there is no more to do.
        pub(super) stop: AtomicU32,
        /// The worker has begun.
        pub(super) ready: AtomicU32,
        progress: Line,
        pub(super) tasks: Ring,
        pub(super) results: Ring,
    }

    pub(super) struct Front {
        /// For the owner's leader.
        bell: Event,
        /// For its clerk.
        help: Event,
    }
    pub(super) struct Hall4 { front: Front, desks: [Desk; 4] }
    pub(super) struct Hall16 { front: Front, desks: [Desk; 16] }
    pub(super) struct Hall64 { front: Front, desks: [Desk; 64] }
    pub(super) struct Hall256 { front: Front, desks: [Desk; 256] }
}

impl Ring {
    pub(super) fn tail(&self) -> u64 {
        self.tail.word.load(Acquire)
    }

    pub(super) fn head(&self) -> u64 {
        self.head.word.load(Acquire)
    }

    /// How many words there is room for, for the one who writes the tail.
    pub(super) fn room(&self) -> usize {
        let used = self.tail.word.load(Relaxed).wrapping_sub(self.head());
        usize::try_from(used).map_or(0, |used| WORDS.saturating_sub(used))
    }

    fn at(&self, position: u64) -> &AtomicU64 {
        &self.words[usize::try_from(position % WORDS as u64).unwrap_or(0)]
    }

    /// Completes a message, for which there must be room. Its bytes are padded to whole words.
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

    /// A word of a message.
    pub(super) fn word(&self, position: u64) -> u64 {
        self.at(position).load(Relaxed)
    }

    /// The bytes of so many words.
    pub(super) fn copy(&self, position: u64, words: usize, to: &mut Vec<u8>) {
        let before = to.len();
        to.resize(before + 8 * words, 0);
        let first = usize::try_from(position % WORDS as u64).unwrap_or(0);
        let from = self.words[first..].iter().chain(&self.words);
        for (to, from) in to[before..].as_chunks_mut::<8>().0.iter_mut().zip(from) {
            *to = from.load(Relaxed).to_le_bytes();
        }
    }

    /// Takes what lies before `next`, if the head is `seen`. Keeps I1.
    pub(super) fn claim(&self, seen: u64, next: u64) -> bool {
        self.head.word.compare_exchange(seen, next, AcqRel, Acquire).is_ok()
    }

    /// Withdraws all that is not claimed; where that begins.
    pub(super) fn withdraw(&self) -> u64 {
        let tail = self.tail.word.load(Relaxed);
        loop {
            let head = self.head();
            if self.claim(head, tail) {
                return head;
            }
        }
    }

    /// Gives up all up to there, for the only reader.
    pub(super) fn release(&self, head: u64) {
        self.head.word.store(head, Release);
    }
}

impl Desk {
    /// The number of the message that the worker is at, and how many of its tasks it has begun.
    pub(super) fn progress(&self) -> (u32, u32) {
        let word = self.progress.word.load(Acquire);
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        (low(word >> 32), low(word))
    }

    pub(super) fn set_progress(&self, message: u32, begun: u32) {
        self.progress.word.store(u64::from(message) << 32 | u64::from(begun), Release);
    }

    /// Has the worker look; whether it was asleep.
    pub(super) fn ring(&self) -> bool {
        self.bell.set()
    }

    /// Waits for the owner; false if that took too long.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let rung = self.bell.wait_timeout(timeout).unwrap_or(false);
        self.bell.reset();
        fence(SeqCst); // keeps I3
        rung
    }

    /// The worker waits for room from now on.
    pub(super) fn be_stuck(&self) {
        self.stuck.store(1, SeqCst);
        fence(SeqCst); // one of the two sees the other
    }

    /// The owner has made room.
    pub(super) fn made_room(&self) {
        fence(SeqCst); // as above
        if self.stuck.load(Relaxed) != 0 {
            self.stuck.store(0, Relaxed);
            self.bell.set();
        }
    }

    /// Makes it as new for another worker, when the former one is gone and its results are read.
    pub(super) fn clear(&self) {
        self.tasks.release(self.tasks.tail.word.load(Relaxed));
        self.set_progress(0, 0);
        for word in [&self.stuck, &self.stop, &self.ready] {
            word.store(0, Relaxed);
        }
    }
}

/// The segment, which is made for a few numbers of desks.
#[derive(Clone)]
pub(super) enum Hall {
    Four(Shared<Hall4>),
    Sixteen(Shared<Hall16>),
    SixtyFour(Shared<Hall64>),
    Most(Shared<Hall256>),
}

/// The most desks of a pool.
pub(super) const MOST_WORKERS: usize = 256;
const KEY: &str = "outlast pool";
/// Threads of the owner's that can wait for results.
const THREADS: u32 = 2_048;

impl Hall {
    pub(super) fn new(desks: usize) -> Result<Hall, OpenError> {
        // A place for each worker, for those who were killed and are being mended, and for the
        // owner.
        let processes = u32::try_from(desks).unwrap_or(0) * 4 + 16;
        let options = Options::new().processes(processes).threads(processes * 2 + THREADS);
        Ok(match desks {
            0..=4 => Hall::Four(options.anonymous_with(|_| {})?),
            5..=16 => Hall::Sixteen(options.anonymous_with(|_| {})?),
            17..=64 => Hall::SixtyFour(options.anonymous_with(|_| {})?),
            _ => Hall::Most(options.anonymous_with(|_| {})?),
        })
    }

    /// In a worker: the hall for so many desks.
    pub(super) fn inherited(desks: usize) -> Result<Hall, OpenError> {
        Ok(match desks {
            0..=4 => Hall::Four(Shared::inherited(KEY)?),
            5..=16 => Hall::Sixteen(Shared::inherited(KEY)?),
            17..=64 => Hall::SixtyFour(Shared::inherited(KEY)?),
            _ => Hall::Most(Shared::inherited(KEY)?),
        })
    }

    pub(super) fn share<A, R>(&self, builder: Builder<A, R>) -> Builder<A, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        Process<R>: Sized,
    {
        match self {
            Hall::Four(hall) => builder.share(KEY, hall),
            Hall::Sixteen(hall) => builder.share(KEY, hall),
            Hall::SixtyFour(hall) => builder.share(KEY, hall),
            Hall::Most(hall) => builder.share(KEY, hall),
        }
    }

    fn front(&self) -> &Front {
        match self {
            Hall::Four(hall) => &hall.front,
            Hall::Sixteen(hall) => &hall.front,
            Hall::SixtyFour(hall) => &hall.front,
            Hall::Most(hall) => &hall.front,
        }
    }

    pub(super) fn desks(&self) -> &[Desk] {
        match self {
            Hall::Four(hall) => &hall.desks,
            Hall::Sixteen(hall) => &hall.desks,
            Hall::SixtyFour(hall) => &hall.desks,
            Hall::Most(hall) => &hall.desks,
        }
    }

    /// Tells the owner that there is something for it.
    pub(super) fn ring(&self) {
        self.front().bell.set();
    }

    /// Has the clerk look.
    pub(super) fn call(&self) {
        self.front().help.set();
    }

    /// Waits until somebody calls the clerk.
    pub(super) fn wait_for_call(&self) {
        if self.front().help.wait().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.front().help.reset();
        fence(SeqCst); // keeps I3
    }

    /// Waits until somebody rings.
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        let bell = &self.front().bell;
        let waited = match timeout {
            None => bell.wait(),
            Some(timeout) => bell.wait_timeout(timeout).map(drop),
        };
        if waited.is_err() {
            // One thread too many. It looks again and again.
            std::thread::sleep(Duration::from_millis(1));
        }
        bell.reset();
        fence(SeqCst); // keeps I3
    }
}
