//! A journal: log records of all processes, in one ring in shared memory, read by one collector.
//!
//! ```
//! use outlast::Shared;
//! use outlast::log::{FixedJournal, Level};
//!
//! let here = Shared::anonymous(FixedJournal::<64>::new())?;
//! let there = Shared::<FixedJournal<64>>::from_fd(here.try_clone_fd()?)?; // in another process
//! there.write(Level::Info, "worker", "ready")?; // the record stays if it is killed now
//! let record = here.records().try_next().expect("one record");
//! assert_eq!((record.message(), record.pid()), ("ready".into(), std::process::id()));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! With the feature `log`, the macros of the crate `log` write to a journal (`init`), and the
//! collector can pass its records to any `log::Log`. With the feature `tracing`, a layer (`layer`)
//! writes the events of the crate `tracing`.
//!
//! A journal is for messages that a human reads, of up to [`TEXT`] bytes each. If each message must
//! arrive, use a [`Queue`](crate::Queue) or a [`ByteQueue`](crate::ByteQueue): a journal loses
//! records when its collector is too slow.
//!
//! # Death
//! | killed process | consequence |
//! |---|---|
//! | a writer, before it has claimed a slot | There is no record. |
//! | a writer, between the claim and the commit | Recovery marks the slot as abandoned. The collector passes over it and counts it. |
//! | a writer, after the commit | The record is there. If the writer had not woken the collector, recovery does. |
//! | the collector | The next collector continues with the record that the former one was given last, so that record may be read twice. |
//!
//! A writer that is stopped, but not dead, delays the collector by at most [`PATIENCE`]. It never
//! delays other writers.

// # State
// Positions count records from 0. Position `p` lies in slot `p % capacity`, in lap
// `p / capacity + 1`. The state of a slot is one word: its lap, its phase, and the owner tag of the
// process that writes it.
//
// | slot: lap, phase | meaning for position `p` of lap `L` |
// |---|---|
// | older than `L`, and `tail` <= `p` | not claimed yet |
// | older than `L`, and `tail` > `p` | passed over: a writer was still busy there, a whole lap behind |
// | `L`, `Writing` | claimed: its owner fills it, or has died and is not recovered yet |
// | `L`, `Committed` | a record |
// | `L`, `Abandoned` | its owner died before the commit: no record |
// | newer than `L` | overwritten |
//
// # Invariants
// - I1. A slot has an owner from the instruction that claims it. No other writer claims it before
//   it is `Committed` or `Abandoned`, in any lap. Two writers therefore never write the same slot.
// - I2. `tail` passes `p` only if the slot of `p` was claimed for `p`, or a writer was busy there
//   for an older lap. A reader that sees `tail` > `p`, and then an older lap, therefore knows that
//   `p` was passed over, or that its claim is about to fail.
// - I3. The words of a slot are a record if the state was `Committed` in its lap before they were
//   read, and is the same afterwards.
// - I4. Each position below the collector's was returned as a record, or is counted in [`Losses`].
//
// # Ordering
// Writer: claim, `fence(Release)`, text (relaxed words), commit (Release). Reader: state (Acquire),
// text, `fence(Acquire)`, state again. A reader that sees text of a later claim also sees the state
// of that claim, so its second look finds it (I3). A commit is followed by a `fence(SeqCst)` before
// the writer looks whether the collector sleeps (see `signal.rs`).

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

/// The largest capacity of a journal, in records.
pub const MAX_CAPACITY: usize = 1 << 24;

/// How long the collector waits for a record whose writer is alive. Then it passes over the record.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// A writer that has found this many slots occupied drops its record. It never waits, whatever the
/// memory contains.
const MOST_TURNS: u32 = 1_000;

const OWNER_BITS: u32 = 12;
const OWNER: u64 = (1 << OWNER_BITS) - 1;
const PHASE: u64 = 3 << OWNER_BITS;
const COMMITTED: u64 = 0;
const WRITING: u64 = 1 << OWNER_BITS;
const ABANDONED: u64 = 2 << OWNER_BITS;
const LAP_SHIFT: u32 = OWNER_BITS + 2;

/// Returns how many laps `a` is ahead of `b`. Laps wrap around.
#[expect(clippy::cast_possible_wrap, reason = "the topmost bit of the difference is its sign")]
const fn ahead(a: u64, b: u64) -> i64 {
    (a.wrapping_sub(b) << LAP_SHIFT) as i64 >> LAP_SHIFT
}

/// What happens to a new record if the collector has not read the oldest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum WhenFull {
    /// The oldest record is overwritten.
    OverwriteOldest = 0,
    /// The new record is dropped.
    DropNewest = 1,
}

/// The numbers of records that the collector did not get, since the journal was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// Records that were overwritten before they were read. Their numbers are missing in the
    /// sequence. Numbers without a record count as well: a writer passes over a slot which another
    /// writer, a whole lap behind, is still filling.
    pub overwritten: u64,
    /// Records that were begun and not finished: their writer was killed before it had committed
    /// them, or was stopped for longer than [`PATIENCE`]. Their numbers are missing in the
    /// sequence.
    pub unfinished: u64,
    /// Records that their writer dropped, because there was no room. They had no number.
    pub dropped: u64,
}

/// A ring of log records, whose capacity is chosen when it is created.
///
/// Any number of processes and threads may write. One thread reads, the *collector*. A writer never
/// waits, and makes no system call unless the collector is asleep. If the collector is too slow,
/// records are lost and counted: see [`WhenFull`] and [`losses`](Self::losses).
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates a journal for 1 to 16,777,216
/// records. A [`FixedJournal`] can be embedded in a struct.
#[repr(C)]
#[doc(alias = "QueueHandler")]
#[doc(alias = "logger")]
pub struct Journal<S: ?Sized = [Slot]> {
    tail: Line,
    rare: Rare,
    slots: S,
}

/// A journal of `N` records, which can be embedded in a struct declared with
/// [`shared!`](crate::shared).
///
/// It dereferences to [`Journal`], which has the methods.
pub type FixedJournal<const N: usize> = Journal<[Slot; N]>;

/// A counter in cache lines of its own.
#[repr(C, align(128))]
#[derive(Debug)]
struct Line(AtomicU64);

/// The fields that writers change rarely.
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
    /// Creates an empty journal that overwrites the oldest record, to be moved into shared memory.
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
    /// Target and message have [`TEXT`] bytes together, of which the target gets at most a quarter.
    /// Longer text is cut, and [`Record::is_cut`] returns `true`. A dropped record is no error: it
    /// is counted in [`losses`](Self::losses).
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn write(&self, level: Level, target: &str, message: &str) -> Result<(), Fault> {
        let mut draft = Draft::new(level, target, current_ids());
        draft.write_str(message).unwrap_or_default(); // cannot fail
        self.put(&draft)
    }

    /// Like [`write`](Self::write), with a message that is formatted directly into the record. A
    /// slot is claimed for it afterwards.
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
        fence(Release); // keeps I3: a reader that sees this text also sees the claim
        for (to, word) in slot.words.iter().zip(draft.words()) {
            to.store(word, Relaxed);
        }
        slot.state.store(lap << LAP_SHIFT | COMMITTED, Release);
        self.rare.filled.notify_all();
        Ok(())
    }

    /// Claims a slot, and returns it with its lap. Returns `None` if there is no room.
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

    /// Moves the tail over a position. Returns the tail afterwards.
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

    /// Sets what happens to new records if the collector is too slow. A new journal overwrites the
    /// oldest record.
    pub fn set_when_full(&self, what: WhenFull) {
        self.rare.when_full.store(what as u32, Relaxed);
    }

    /// Closes the journal: the collector's wait ends once it has read all records. Writing still
    /// works.
    pub fn close(&self) {
        become_known(core::ptr::from_ref(self).addr());
        self.rare.closed.store(1, Release);
        hooks::pause("queue: closed, and nobody is woken");
        self.rare.filled.notify_all();
    }

    /// Returns whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rare.closed.load(Acquire) != 0
    }

    /// Returns the largest number of records that the journal holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the numbers of records that the collector has not got.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses {
            overwritten: self.rare.overwritten.load(Relaxed),
            unfinished: self.rare.unfinished.load(Relaxed),
            dropped: self.rare.dropped.load(Relaxed),
        }
    }

    /// Returns the collector, which continues where the last one stopped. As an iterator, it waits
    /// for more records until the journal is [closed](Self::close).
    ///
    /// A journal has one collector at a time. Two collectors are memory-safe, but both get records
    /// that the other one has got.
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
    fn repair(&self, dead: &Dead) {
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

// SAFETY: `repr(C)`; atomics and wait words, of which any bytes are valid.
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
        self.repair(dead);
    }
}

// SAFETY: as above; the number of slots is the pointer's length, which comes from the checked
// header.
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
        self.repair(dead);
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
