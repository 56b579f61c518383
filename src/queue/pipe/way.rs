//! One direction of a pipe: a ring of blocks. A record is a header and the bytes of a message
//! behind it. Nothing here waits, except for a turn.
#![expect(unsafe_code, reason = "blocks belong to one end at a time")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::lock::{Lock, LockError, LockGuard, Take};
use crate::queue::{LIGHT, Line};
use crate::shareable::Shareable;
use crate::sync::UnsafeCell;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::wait::signal::Signal;
use crate::wait::verbs::Verb;

/// The size of a block, in bytes. A record is a whole number of blocks.
pub(crate) const BLOCK: usize = 64;
/// The size of a header.
const HEADER: usize = size_of::<u64>();

/// In a header, beside the length: the message continues in the next record.
const GOES_ON: u64 = 1 << 63;
/// In a header: the message began in an earlier record.
const BEGAN: u64 = 1 << 62;

/// 64 bytes of messages.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Block(UnsafeCell<[u8; BLOCK]>);

// SAFETY: a block is reached by the writer or by the reader that has its turn (I1, I2), and holds
// bytes.
unsafe impl Sync for Block {}

impl Block {
    pub(crate) fn new() -> Self {
        Block(UnsafeCell::new([0; BLOCK]))
    }

    /// Writes bytes from offset `at` on, as many as the block has room for.
    #[inline(always)]
    fn put(&self, at: usize, bytes: &[u8]) {
        let len = bytes.len().min(BLOCK - at);
        // SAFETY: the cell has room for `len` bytes from `at`, and belongs to the writer now.
        self.0.with_mut(|block| unsafe {
            core::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                block.cast::<u8>().wrapping_add(at),
                len,
            );
        });
    }

    /// Appends `len` bytes from offset `at` on to `to`, or as many as the block has.
    #[inline(always)]
    fn append_to(&self, at: usize, len: usize, to: &mut Vec<u8>) {
        let len = len.min(BLOCK - at);
        to.reserve(len);
        let end = to.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: the cell has `len` bytes from `at`, no thread writes to it now, and `to` has room
        // for them.
        self.0.with(|block| unsafe {
            core::ptr::copy_nonoverlapping(block.cast::<u8>().wrapping_add(at), end, len);
        });
        // SAFETY: `len` bytes behind the old length have just been written.
        unsafe { to.set_len(to.len() + len) };
    }

    #[inline(always)]
    fn header(&self) -> u64 {
        // SAFETY: the cell begins with 8 aligned bytes, and no thread writes to it now.
        self.0.with(|block| unsafe { block.cast::<u64>().read() })
    }
}

/// The turn to write, or to read: a lock. Its value is the position of the other end that the last
/// owners of the turn saw.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Turn(Lock<u64>);

/// A turn that this thread has. It dereferences to the position of the other end that was last
/// seen.
pub(crate) type TurnGuard<'a> = LockGuard<'a, u64>;

impl Turn {
    fn new() -> Self {
        Turn(Lock::new(0))
    }

    /// Takes the turn, blocking until `deadline` for it. Returns `None` if it times out.
    #[inline(always)]
    pub(crate) fn take(&self, deadline: Deadline) -> Result<Option<TurnGuard<'_>>, Fault> {
        match Take(&self.0).fast() {
            Some(taken) => taken.map(Some).or_else(Self::mend),
            None => self.take_slow(deadline),
        }
    }

    #[cold]
    fn take_slow(&self, deadline: Deadline) -> Result<Option<TurnGuard<'_>>, Fault> {
        Take(&self.0).wait(deadline).map_or(Ok(None), |taken| taken.map(Some).or_else(Self::mend))
    }

    /// Whether a thread has the turn. If none has it, all that its last owner wrote is visible to
    /// the caller.
    pub(crate) fn is_taken(&self) -> bool {
        self.0.in_use(&|_| true)
    }

    /// Takes over the turn of an owner that died. There is nothing to repair: the owner moved its
    /// position over whole records only, and the position of the other end that it had seen was
    /// once right.
    #[cold]
    fn mend(error: LockError<TurnGuard<'_>>) -> Result<Option<TurnGuard<'_>>, Fault> {
        match error {
            LockError::OwnerDied(mut seen) | LockError::Poisoned(mut seen) => {
                LockGuard::mark_consistent(&mut seen);
                Ok(Some(seen))
            }
            LockError::Failed(fault) => Err(fault),
            _ => Ok(None),
        }
    }
}

/// One direction, without its blocks.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Way {
    /// The number of blocks ever written.
    tail: Line,
    /// The number of blocks ever read.
    head: Line,
    /// A record can be read. Only the thread with the reader's turn sleeps here.
    pub(crate) not_empty: Signal<LIGHT>,
    /// Blocks are free. Only the thread with the writer's turn sleeps here.
    pub(crate) not_full: Signal<LIGHT>,
    pub(crate) writer: Turn,
    pub(crate) reader: Turn,
}

/// A record that can be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    header: u64,
    blocks: u64,
}

impl Record {
    #[inline(always)]
    pub(crate) fn goes_on(self) -> bool {
        self.header & GOES_ON != 0
    }

    #[inline(always)]
    pub(crate) fn began(self) -> bool {
        self.header & BEGAN != 0
    }
}

/// A part of a message, to be written as a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    bytes: &'a [u8],
    flags: u64,
}

impl Part<'_> {
    #[inline(always)]
    pub(crate) fn is_first(self) -> bool {
        self.flags & BEGAN == 0
    }
}

impl Way {
    pub(crate) fn new() -> Self {
        let line = || Line(AtomicU64::new(0));
        Way {
            tail: line(),
            head: line(),
            not_empty: Signal::new(),
            not_full: Signal::new(),
            writer: Turn::new(),
            reader: Turn::new(),
        }
    }

    pub(crate) fn place(&self) {
        self.not_empty.place();
        self.not_full.place();
        self.writer.0.place();
        self.reader.0.place();
    }

    pub(crate) fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.writer.0.in_use(ours) || self.reader.0.in_use(ours)
    }

    pub(crate) fn wake_everybody(&self) {
        self.not_empty.wake_all();
        self.not_full.wake_all();
    }
}

/// One direction with its blocks, whose number is a power of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockRing<'a> {
    pub(crate) way: &'a Way,
    pub(crate) blocks: &'a [Block],
}

impl<'a> BlockRing<'a> {
    /// The length in bytes of the longest message that is one record.
    #[inline(always)]
    pub(crate) fn longest(self) -> usize {
        self.blocks.len() * BLOCK - HEADER
    }

    /// Divides a message into records. A message that is too long for one record becomes several,
    /// each a quarter of the ring, so that it can be read while it is written.
    #[inline(always)]
    pub(crate) fn parts(self, message: &[u8]) -> impl Iterator<Item = Part<'_>> {
        let piece = match message.len() <= self.longest() {
            true => self.longest(),
            false => (self.blocks.len() / 4).max(1) * BLOCK - HEADER,
        };
        let mut rest = Some(message);
        core::iter::from_fn(move || {
            let left = rest.take()?;
            let (bytes, after) = left.split_at(left.len().min(piece));
            rest = (!after.is_empty()).then_some(after);
            let goes_on = if rest.is_some() { GOES_ON } else { 0 };
            let began = if left.len() == message.len() { 0 } else { BEGAN };
            Some(Part { bytes, flags: goes_on | began })
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than the number of blocks")]
    #[inline(always)]
    fn block(self, at: u64) -> &'a Block {
        &self.blocks[(at & (self.blocks.len() as u64 - 1)) as usize]
    }

    /// The number of blocks from `head` to `tail`, or `None` if that is not possible. One of the
    /// two is the position that was last seen.
    #[inline(always)]
    fn used(self, tail: u64, head: u64) -> Option<u64> {
        Some(tail.wrapping_sub(head)).filter(|&used| used <= self.blocks.len() as u64)
    }

    /// Whether there is room for the part. The caller has the writer's turn.
    #[inline(always)]
    pub(crate) fn has_room(self, part: Part<'_>, head: &mut u64) -> Result<bool, Fault> {
        let tail = self.way.tail.0.load(Relaxed);
        let has_room = |used: u64| used + blocks(part.bytes.len()) <= self.blocks.len() as u64;
        if self.used(tail, *head).is_some_and(has_room) {
            return Ok(true);
        }
        *head = self.way.head.0.load(Acquire);
        self.used(tail, *head).map(has_room).ok_or(Fault::Corrupt)
    }

    /// Writes a part, for which there must be room. The caller has the writer's turn.
    #[inline(always)]
    pub(crate) fn write(self, part: Part<'_>) {
        let tail = self.way.tail.0.load(Relaxed);
        let (first, rest) = part.bytes.split_at(part.bytes.len().min(BLOCK - HEADER));
        let header = part.bytes.len() as u64 | part.flags;
        self.block(tail).put(0, &header.to_ne_bytes());
        self.block(tail).put(HEADER, first);
        for (i, bytes) in (1..).zip(rest.chunks(BLOCK)) {
            self.block(tail.wrapping_add(i)).put(0, bytes);
        }
        let end = tail.wrapping_add(blocks(part.bytes.len()));
        self.way.tail.0.store(end, Release); // the commit
        Signal::<LIGHT>::fence_after_change();
        if self.way.not_empty.is_armed() {
            self.way.not_empty.notify(1);
        }
    }

    /// Returns the next record, if there is one. The caller has the reader's turn.
    #[inline(always)]
    pub(crate) fn next(self, tail: &mut u64) -> Result<Option<Record>, Fault> {
        let head = self.way.head.0.load(Relaxed);
        if self.used(*tail, head).is_none_or(|used| used == 0) {
            *tail = self.way.tail.0.load(Acquire);
        }
        let used = self.used(*tail, head).ok_or(Fault::Corrupt)?;
        if used == 0 {
            return Ok(None);
        }
        let header = self.block(head).header();
        let blocks = usize::try_from(header & !(GOES_ON | BEGAN)).map_or(u64::MAX, blocks);
        if blocks > used {
            return Err(Fault::Corrupt);
        }
        Ok(Some(Record { header, blocks }))
    }

    /// Appends the bytes of the next record to `to`. The caller has the reader's turn.
    #[inline(always)]
    pub(crate) fn read(self, record: Record, to: &mut Vec<u8>) {
        let head = self.way.head.0.load(Relaxed);
        // At most the ring's length: `next` has checked it.
        let len = usize::try_from(record.header & !(GOES_ON | BEGAN)).unwrap_or(0);
        let first = len.min(BLOCK - HEADER);
        to.reserve(len);
        self.block(head).append_to(HEADER, first, to);
        let mut left = len - first;
        for i in 1..record.blocks {
            self.block(head.wrapping_add(i)).append_to(0, left, to);
            left = left.saturating_sub(BLOCK);
        }
    }

    /// Consumes the next record. The caller has the reader's turn.
    #[inline(always)]
    pub(crate) fn pass(self, record: Record) {
        let head = self.way.head.0.load(Relaxed);
        self.way.head.0.store(head.wrapping_add(record.blocks), Release); // the commit
        Signal::<LIGHT>::fence_after_change();
        if self.way.not_full.is_armed() {
            self.way.not_full.notify(1);
        }
    }
}

/// The number of blocks of a record of `len` bytes.
#[inline(always)]
fn blocks(len: usize) -> u64 {
    (len as u64).saturating_add(HEADER as u64).div_ceil(BLOCK as u64)
}
