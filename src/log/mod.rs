//! A journal: what all processes log, in one ring in shared memory, read by one collector.
//!
//! ```
//! use outlast::Shared;
//! use outlast::log::{FixedJournal, Level};
//!
//! let here = Shared::anonymous(FixedJournal::<64>::new())?;
//! let there = Shared::<FixedJournal<64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! there.write(Level::Info, "worker", "ready")?; // killed after this, it has still said so
//! let record = here.records().try_next().expect("one record");
//! assert_eq!((record.message(), record.pid()), ("ready".into(), std::process::id()));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! With the feature `log`, the macros of the crate `log` write to a journal (`init`), and the
//! collector can hand its records to any `log::Log`. With the feature `tracing`, a layer (`layer`)
//! writes the events of the crate `tracing`.
//!
//! # State
//! Positions count records from 0; position `p` lies in slot `p % capacity`, in lap `p / capacity +
//! 1`. A slot's state is one word: lap, phase, and the owner tag of the process that writes it.
//!
//! | slot, lap, phase | meaning for position `p` of lap `L` |
//! |---|---|
//! | older than `L`, and `tail` <= `p` | not claimed yet |
//! | older than `L`, and `tail` > `p` | passed over: there was somebody still writing, a whole lap behind |
//! | `L`, `Writing` | claimed; its owner fills it, or has died on the way and is not mended yet |
//! | `L`, `Committed` | a record |
//! | `L`, `Abandoned` | its owner died on the way: no record |
//! | newer than `L` | overwritten |
//!
//! # Invariants
//! - I1. A slot has an owner from the instruction that claims it. Nobody else claims it until it is
//!   `Committed` or `Abandoned`, in whatever lap: two never write the same slot.
//! - I2. `tail` passes `p` only when the slot of `p` was claimed for `p`, or somebody was writing
//!   it for an older lap. So whoever sees `tail` > `p` and then an older lap knows that `p` was
//!   passed over, or soon will be late.
//! - I3. What is read of a slot is a record if the slot's word was `Committed` in its lap before,
//!   and is the same after.
//! - I4. Every position below the collector's was handed out, or is counted in [`Losses`].
//!
//! # Ordering
//! Writer: claim, `fence(Release)`, text (relaxed words), commit (Release). Reader: word (Acquire),
//! text, `fence(Acquire)`, word again. Text of a later claim comes with that claim's word, so the
//! second look finds it (I3). A commit is followed by a `fence(SeqCst)` before it is asked whether
//! the collector sleeps (see `signal.rs`).
//!
//! # Death
//! Writer killed before its claim: nothing. Between claim and commit: recovery makes it
//! `Abandoned`, and the collector passes over it, and counts it. After the commit: the record is
//! there; recovery wakes the collector, if the writer had not. A writer that is stopped, not dead,
//! holds the collector up for [`PATIENCE`], and other writers never. Collector killed: the next one
//! goes on at the record after the last one whose successor was asked for; one may come twice.

#[cfg(all(feature = "tracing", not(outlast_loom)))]
mod layer;
mod record;
mod records;
#[cfg(all(feature = "log", not(outlast_loom)))]
mod sink;

#[cfg(all(feature = "tracing", not(outlast_loom)))]
pub use layer::{JournalLayer, layer, layer_with};
pub use record::{Level, Record, TEXT};
pub use records::Records;
#[cfg(all(feature = "log", not(outlast_loom)))]
pub use sink::{init, init_with};

use crate::error::Fault;
use crate::segment::{become_known, current_ids, identify};
use crate::shareable::{
    Dead, Field, Layout, Shareable, WithCapacity, begin, mix, mix_u64, slice_shareable,
};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU32, AtomicU64, fence};
use crate::sys::hooks;
use crate::wait::signal::Signal;
use core::fmt::{self, Write as _};
use core::mem::offset_of;
use core::ops::Deref;
use record::Draft;
use std::time::Duration;

/// The most records that a journal holds.
pub const MAX_CAPACITY: usize = 1 << 24;

/// How long the collector waits for a record that was begun by a process which is alive, and then
/// passes over it.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// A writer that finds so many slots taken gives up: it never waits, whatever is in the memory.
const MOST_TURNS: u32 = 1_000;

const OWNER_BITS: u32 = 12;
const OWNER: u64 = (1 << OWNER_BITS) - 1;
const PHASE: u64 = 3 << OWNER_BITS;
const COMMITTED: u64 = 0;
const WRITING: u64 = 1 << OWNER_BITS;
const ABANDONED: u64 = 2 << OWNER_BITS;
const LAP_SHIFT: u32 = OWNER_BITS + 2;

/// How many laps `a` is ahead of `b`, counted round the clock.
#[expect(clippy::cast_possible_wrap, reason = "the topmost bit of the difference is its sign")]
const fn ahead(a: u64, b: u64) -> i64 {
    (a.wrapping_sub(b) << LAP_SHIFT) as i64 >> LAP_SHIFT
}

/// What to do with a new record when the collector has not read the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum WhenFull {
    /// The oldest one is overwritten.
    OverwriteOldest = 0,
    /// The new one is dropped.
    DropNewest = 1,
}

/// Records that the collector did not get, since the journal was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// Overwritten before they were read. Their numbers are missing in the sequence. Numbers that
    /// no record got count as well: writers pass over a slot that somebody is still filling who is
    /// a whole lap behind.
    pub overwritten: u64,
    /// Begun and not finished: their writer was killed on the way. Their numbers are missing in the
    /// sequence.
    pub unfinished: u64,
    /// Dropped by their writer, as there was no room. They had no number.
    pub dropped: u64,
}

/// A ring of log records, whose capacity is chosen when it is created.
///
/// Any number of processes and threads may write. One reads, the *collector*. A writer never waits,
/// and makes no system call unless the collector is asleep. If the collector is too slow, records
/// are lost, and counted: see [`WhenFull`].
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,216
/// records. To embed one in a struct, see [`FixedJournal`].
#[repr(C)]
#[doc(alias = "QueueHandler")]
#[doc(alias = "logger")]
pub struct Journal<S: ?Sized = [Slot]> {
    tail: Line,
    rare: Rare,
    slots: S,
}

/// A journal of `N` records, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// Dereferences to [`Journal`], which has the verbs.
pub type FixedJournal<const N: usize> = Journal<[Slot; N]>;

#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

#[repr(C, align(128))]
#[derive(Debug)]
struct Rare {
    /// A record was committed.
    filled: Signal,
    closed: AtomicU32,
    when_full: AtomicU32,
    /// The collector's position.
    head: AtomicU64,
    overwritten: AtomicU64,
    unfinished: AtomicU64,
    dropped: AtomicU64,
}

use slot::Slot;

/// `Slot` is public, because `Journal` has it as a parameter, but nobody else can name it.
mod slot {
    use crate::log::record;
    use crate::sync::RECORD_WORDS;
    use crate::sync::atomic::AtomicU64;

    /// Room for one record: 512 bytes.
    #[repr(C)]
    pub struct Slot {
        pub(super) state: AtomicU64,
        pub(super) words: [AtomicU64; record::HEAD + RECORD_WORDS],
    }
}

impl Slot {
    fn new() -> Self {
        Slot { state: AtomicU64::new(0), words: core::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({:#x})", self.state.load(Relaxed))
    }
}

impl<const N: usize> FixedJournal<N> {
    /// An empty journal that overwrites the oldest, to be moved into shared memory.
    ///
    /// A capacity of 0, or of more than 16,777,216, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { assert!(N > 0 && N <= MAX_CAPACITY, "a journal holds 1 to 16,777,216 records") }
        Journal {
            tail: Line(AtomicU64::new(0)),
            rare: Rare {
                filled: Signal::new(),
                closed: AtomicU32::new(0),
                when_full: AtomicU32::new(0),
                head: AtomicU64::new(0),
                overwritten: AtomicU64::new(0),
                unfinished: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
            },
            slots: core::array::from_fn(|_| Slot::new()),
        }
    }
}

impl<const N: usize> Deref for FixedJournal<N> {
    type Target = Journal;
    #[inline(always)]
    fn deref(&self) -> &Journal {
        self
    }
}

impl<const N: usize> AsRef<Journal> for FixedJournal<N> {
    fn as_ref(&self) -> &Journal {
        self
    }
}

impl AsRef<Journal> for Journal {
    fn as_ref(&self) -> &Journal {
        self
    }
}

// ------------------------------------------------------------------ writing
impl Journal {
    /// Writes a record. Never blocks.
    ///
    /// Target and message have [`TEXT`] bytes together, of which the target gets a quarter at most;
    /// what is longer is cut, and [`Record::is_cut`] says so. Whether the record was dropped is not
    /// told here, but counted: [`losses`](Self::losses).
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn write(&self, level: Level, target: &str, message: &str) -> Result<(), Fault> {
        let mut draft = Draft::new(level, target, current_ids());
        draft.write_str(message).unwrap_or_default(); // cannot fail
        self.put(&draft)
    }

    /// As [`write`](Self::write), with a message that is formatted straight into the record, before
    /// a slot is claimed for it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_args(
        &self,
        level: Level,
        target: &str,
        message: fmt::Arguments<'_>,
    ) -> Result<(), Fault> {
        let mut draft = Draft::new(level, target, current_ids());
        // If the caller's `Display` fails, the text that came before the error stays.
        draft.write_fmt(message).unwrap_or_default();
        self.put(&draft)
    }

    fn put(&self, draft: &Draft) -> Result<(), Fault> {
        let owner = u64::from(identify(core::ptr::from_ref(self).addr())?) & OWNER;
        let Some((slot, lap)) = self.claim(owner) else {
            self.rare.dropped.fetch_add(1, Relaxed);
            return Ok(());
        };
        fence(Release); // keeps I3: text is not seen without the claim
        for (place, word) in slot.words.iter().zip(draft.words()) {
            place.store(word, Relaxed);
        }
        slot.state.store(lap << LAP_SHIFT | COMMITTED, Release);
        self.rare.filled.notify_all();
        Ok(())
    }

    /// A slot of the caller's, and its lap; `None` if there is no room.
    #[inline]
    fn claim(&self, owner: u64) -> Option<(&Slot, u64)> {
        let drops = self.rare.when_full.load(Relaxed) == WhenFull::DropNewest as u32;
        let (mut at, mut blocked) = (self.tail.0.load(Acquire), 0);
        for _ in 0..MOST_TURNS {
            let unread = at.wrapping_sub(self.rare.head.load(Acquire));
            if drops && unread.cast_signed() >= self.slots.len() as i64 {
                return None;
            }
            let (slot, lap) = self.position(at);
            let seen = slot.state.load(Acquire);
            let is_older = ahead(lap, seen >> LAP_SHIFT) > 0;
            if is_older && seen & PHASE != WRITING {
                let claimed = lap << LAP_SHIFT | WRITING | owner;
                if slot.state.compare_exchange(seen, claimed, AcqRel, Relaxed).is_ok() {
                    self.pass(at);
                    return Some((slot, lap)); // keeps I1
                }
                continue;
            }
            if is_older {
                blocked += 1;
                if blocked >= self.slots.len() {
                    return None; // every slot is being written
                }
            }
            at = self.pass(at); // keeps I2
        }
        None
    }

    /// Moves the tail over a position; where it is then.
    fn pass(&self, at: u64) -> u64 {
        let next = at.wrapping_add(1);
        match self.tail.0.compare_exchange(at, next, AcqRel, Acquire) {
            Ok(_) => next,
            Err(now) => now,
        }
    }

    #[inline]
    fn position(&self, at: u64) -> (&Slot, u64) {
        let capacity = self.slots.len() as u64; // not 0, by the type or by `size`
        let index = usize::try_from(at % capacity).unwrap_or(0);
        (&self.slots[index], (at / capacity + 1) & (u64::MAX >> LAP_SHIFT))
    }

    /// What is done when the collector is too slow, from now on. At first, the oldest are
    /// overwritten.
    pub fn set_when_full(&self, what: WhenFull) {
        self.rare.when_full.store(what as u32, Relaxed);
    }

    /// Ends the collector's wait once it has read what is there. Writing goes on to work.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.rare.closed.store(1, Release);
        hooks::pause("queue: closed, and nobody is woken");
        self.rare.filled.notify_all();
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rare.closed.load(Acquire) != 0
    }

    /// How many records it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// What the collector did not get so far.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses {
            overwritten: self.rare.overwritten.load(Relaxed),
            unfinished: self.rare.unfinished.load(Relaxed),
            dropped: self.rare.dropped.load(Relaxed),
        }
    }

    /// The records, from where the last collector stopped; as an iterator, it waits for more until
    /// the journal is [closed](Self::close).
    ///
    /// There is to be one collector at a time. Nothing breaks if there are two, but both get
    /// records that the other has got.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::new(self)
    }
}

// -------------------------------------------------------------- shared memory
impl<S: ?Sized> Journal<S> {
    const BASE: u64 = begin::<FixedJournal<1>>(b"Journal 1");
}

impl<const N: usize> FixedJournal<N> {
    const FIELDS: [Field; 1] = [Field {
        name: "slots",
        offset: offset_of!(Self, slots),
        count: N,
        layout: || Layout::of::<Slot>("Slot", &[]),
    }];
}

impl Journal {
    fn mend(&self, dead: &Dead) {
        for slot in &self.slots {
            let seen = slot.state.load(Relaxed);
            if seen & PHASE == WRITING && seen & OWNER == u64::from(dead.tag) {
                let abandoned = seen >> LAP_SHIFT << LAP_SHIFT | ABANDONED;
                slot.state.compare_exchange(seen, abandoned, Release, Relaxed).ok();
            }
        }
        self.rare.filled.wake_all();
    }
}

// SAFETY: `repr(C)`; atomics and wait words, for which any bytes will do.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl<const N: usize> Shareable for FixedJournal<N> {
    const FINGERPRINT: u64 = mix_u64(mix(Self::BASE, b"fixed"), N as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedJournal", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.rare.filled.place();
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
}

// SAFETY: as above; the number of slots is the pointer's, which `at` got from the checked header.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Journal {
    const FINGERPRINT: u64 = Self::BASE;
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedJournal<1>, slots), Self::ALIGN);
        Layout { name: "Journal", size, align, fields: const { &FixedJournal::<1>::FIELDS } }
    }
    slice_shareable!(FixedJournal<1>, Slot, MAX_CAPACITY);
    fn place(&self) {
        self.rare.filled.place();
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
}

impl WithCapacity for Journal {}

impl<S: ?Sized> fmt::Debug for Journal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("tail", &self.tail.0.load(Relaxed))
            .field("head", &self.rare.head.load(Relaxed))
            .field("closed", &self.rare.closed.load(Relaxed))
            .finish_non_exhaustive()
    }
}
