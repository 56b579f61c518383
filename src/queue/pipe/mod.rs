//! A duplex pair of byte rings, between two sides that notice each other's end.
//!
//! ```
//! use outlast::{Pipe, RecvError, Shared};
//!
//! let here = Shared::<Pipe>::with_capacity(64 * 1024)?;
//! let there = Shared::<Pipe>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let (parent, child) = (here.first()?, there.second()?);
//! let worker = std::thread::spawn(move || {
//!     while let Ok(question) = child.recv_bytes() {
//!         child.send_bytes(&question.to_ascii_uppercase()).ok();
//!     }
//! });
//! parent.send_bytes(b"is anybody there?")?;
//! assert_eq!(parent.recv_bytes()?, b"IS ANYBODY THERE?");
//! parent.send_bytes(&vec![b'a'; 1_000_000])?; // longer than the ring: goes through in parts
//! assert_eq!(parent.recv_bytes()?.len(), 1_000_000);
//! drop(parent); // or the death of its process
//! worker.join().ok();
//! assert_eq!(here.first()?.recv_bytes(), Err(RecvError::Disconnected));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! Two sets of holders (`Ends`), a word with a bit for each side that is gone, and two ways, each a
//! ring of blocks of 64 bytes with
//!
//! | word | meaning | written by |
//! |---|---|---|
//! | `tail` | blocks ever written | who has the writer's turn; the store is the commit of a record |
//! | `head` | blocks ever read | who has the reader's turn; the store is the commit of its reception |
//! | the writer's turn, the reader's turn | a `Lock`, held for as long as a message takes, or is waited for | who sends, who receives |
//!
//! A record is a header of 8 bytes {goes on: 1, began before: 1, length: 62 bits}, and its bytes,
//! in as many blocks as that takes. A message is one record if the ring can hold it. Otherwise it
//! is several that follow each other, all but the last going on, all but the first begun before.
//!
//! # Invariants
//! - I1. `tail` is moved, and blocks from `tail` to `head` + capacity are written, in the writer's
//!   turn only; `head` is moved, and blocks from `head` to `tail` are read, in the reader's.
//! - I2. `head` <= `tail` <= `head` + capacity, in blocks.
//! - I3. A record that began before follows one of the same message that goes on, or stands where
//!   its reader has left it: who finds one at the beginning passes over it.
//! - I4. A message that goes on goes on as long as its writer has its turn. So no more of it comes
//!   if a reader has a part, then sees that turn free, and then finds nothing more, or another
//!   beginning.
//! - I5. A side is gone for good => its bit is set, or a living process is about to set it, and
//!   wakes the other side after that. It may be set though the side is not gone: who sees it looks
//!   at the cells himself (`Ends::confirm_gone`).
//!
//! # Ordering
//! What was written before the commit of a record is seen after its reading: Release store of
//! `tail`, Acquire load; in the same way `head` gives blocks back. What one taker of a turn saw of
//! the other mark he leaves in the lock for the next. Every commit is followed by a light fence
//! before it is asked whether anybody sleeps (see `signal.rs`). What a side sent before it left is
//! seen by who has seen it gone, and looks again.
//!
//! # Death
//! Writer killed before the commit: nothing is sent; after: it is sent. In the middle of a message
//! of several records: what is there of it is dropped by who reads it (I4). Reader killed before
//! the commit: another of its side gets the message; after, it is gone with him, and so is the rest
//! of a message of which he had the first part (I3). The kernel gives the turns back. Recovery
//! gives back the handles of the dead, sets the bit of a side that is gone, and wakes all.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

mod connection;
mod way;

pub use connection::Connection;
pub use way::Block;

use crate::error::Fault;
use crate::queue::ends::Ends;
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity, at_slice, begin, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use crate::sync::atomic::fence;
use core::fmt;
use core::mem::offset_of;
use core::ops::Deref;
use way::{Flow, Way};

pub(crate) use way::BLOCK;

/// The largest number of blocks, of both ways together.
const MAX_BLOCKS: usize = 1 << 25;

/// Two byte rings, one each way between two sides. Its capacity is chosen when it is created.
///
/// [`first`](Self::first) and [`second`](Self::second) give a side: a [`Connection`], which has the
/// verbs. Up to 64 processes can hold each; a message goes to one of them. When the last of a side
/// is gone, by drop or death, the other gets what is left, and then
/// [`Disconnected`](super::RecvError::Disconnected). A side that nobody has had yet is waited for,
/// and one that was gone can be taken again.
///
/// A pipe holds [`capacity`](Self::capacity) bytes each way. If both sides send more than that and
/// neither receives meanwhile, both wait for ever: one of them has to receive first, or in another
/// thread, or to send with a timeout.
///
/// A side belongs to the processes that hold a handle of it. To hand a side on to a program that is
/// started, use [`CommandExt::hand_over`](crate::CommandExt::hand_over): the other side does not
/// notice it. Otherwise the receiving process takes its handle before the giving one drops its own.
/// If the only handle is dropped first, the other side gets `Disconnected` in between.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 1,073,741,824 bytes
/// each way, rounded up to 64 times a power of two. To embed one in a struct, see [`FixedPipe`].
#[repr(C)]
#[doc(alias = "duplex")]
#[doc(alias = "socketpair")]
pub struct Pipe<S: ?Sized = [Block]> {
    /// From the first to the second, and back.
    ways: [Way; 2],
    sides: Sides,
    blocks: S,
}

/// A pipe of `BLOCKS` times 64 bytes, half of them each way, to be embedded in a struct declared
/// with [`shared!`](crate::shared).
///
/// Dereferences to [`Pipe`], which has the verbs.
pub type FixedPipe<const BLOCKS: usize> = Pipe<[Block; BLOCKS]>;

/// Who is there. Read by all and written rarely.
#[repr(C, align(128))]
#[derive(Debug)]
struct Sides {
    /// A bit for each side that is gone.
    gone: AtomicU32,
    ends: [Ends; 2],
}

/// The bit of a side.
const fn bit(side: usize) -> u32 {
    1 << side
}

impl<const BLOCKS: usize> FixedPipe<BLOCKS> {
    /// An empty pipe whose sides nobody has had, to be moved into shared memory.
    ///
    /// A number of blocks that is no power of two from 2 to 33,554,432 does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        const { assert!(is_valid(BLOCKS), "a pipe has 2 to 33,554,432 blocks, a power of two") }
        Pipe {
            ways: [Way::new(), Way::new()],
            sides: Sides { gone: AtomicU32::new(0), ends: [Ends::new(), Ends::new()] },
            blocks: core::array::from_fn(|_| Block::new()),
        }
    }

    const FIELDS: [Field; 1] = {
        let offset = offset_of!(Self, blocks);
        [Field { name: "blocks", offset, count: BLOCKS * BLOCK, layout: u8::layout }]
    };
}

/// Whether a pipe can have so many blocks.
const fn is_valid(blocks: usize) -> bool {
    blocks >= 2 && blocks <= MAX_BLOCKS && blocks.is_power_of_two()
}

impl<const BLOCKS: usize> Deref for FixedPipe<BLOCKS> {
    type Target = Pipe;
    #[inline(always)]
    fn deref(&self) -> &Pipe {
        self
    }
}

impl Pipe {
    /// A handle of the first side. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn first(&self) -> Result<Connection<&Self>, Fault> {
        Connection::first(self)
    }

    /// A handle of the second side. All of a process's handles count as one.
    ///
    /// # Errors
    /// As [`first`](Self::first).
    pub fn second(&self) -> Result<Connection<&Self>, Fault> {
        Connection::second(self)
    }

    /// The bytes of the longest message that goes through in one piece, each way.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.flow(0).longest()
    }

    /// The way that begins at a side.
    #[inline(always)]
    fn flow(&self, side: usize) -> Flow<'_> {
        let (first, second) = self.blocks.split_at(self.blocks.len() / 2);
        let blocks = if side == 0 { first } else { second };
        Flow { way: &self.ways[side], blocks }
    }

    /// Whether a side is gone.
    #[inline(always)]
    fn is_gone(&self, side: usize) -> bool {
        self.sides.gone.load(Relaxed) & bit(side) != 0 && self.confirm_gone(side)
    }

    #[cold]
    fn confirm_gone(&self, side: usize) -> bool {
        let gone = core::iter::once(&self.sides.gone);
        self.sides.ends[side].confirm_gone(gone, bit(side), || self.wake_everybody())
    }

    /// A side is gone: the other is told.
    #[cold]
    fn part(&self, side: usize) {
        self.sides.gone.fetch_or(bit(side), AcqRel);
        self.wake_everybody();
    }

    fn wake_everybody(&self) {
        fence(SeqCst);
        self.ways.iter().for_each(Way::wake_everybody);
    }

    fn mend(&self, dead: &Dead) {
        for (side, ends) in self.sides.ends.iter().enumerate() {
            ends.recover(dead, core::iter::once(&self.sides.gone), bit(side)); // keeps I5
        }
        self.wake_everybody();
    }

    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.ways.iter().any(|way| way.in_use(ours))
    }

    const BASE: u64 = begin::<FixedPipe<2>>(b"Pipe 1");
}

// SAFETY: `repr(C)`; atomics and locks, for which any bytes will do, and bytes; indices are masked;
// no `Drop`.
unsafe impl<const BLOCKS: usize> Shareable for FixedPipe<BLOCKS> {
    const FINGERPRINT: u64 = mix_u64(Pipe::<[Block]>::BASE, BLOCKS as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedPipe", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.ways.iter().for_each(Way::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        Pipe::in_use(self, ours)
    }
}

// SAFETY: as above; the number of blocks is the pointer's, which `at` got from the checked header,
// and which `size` has approved.
unsafe impl Shareable for Pipe {
    const FINGERPRINT: u64 = Pipe::<[Block]>::BASE;
    const NEEDS_PEERS: bool = true;
    const ALIGN: usize = align_of::<FixedPipe<2>>();
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedPipe<2>, blocks), Self::ALIGN);
        Layout { name: "Pipe", size, align, fields: const { &FixedPipe::<2>::FIELDS } }
    }
    fn size(len: usize) -> Option<usize> {
        let end = len.checked_mul(BLOCK)?.checked_add(offset_of!(FixedPipe<2>, blocks))?;
        let size = end.checked_next_multiple_of(Self::ALIGN)?;
        Some(size).filter(|&size| is_valid(len) && isize::try_from(size).is_ok())
    }
    at_slice!();
    fn place(&self) {
        self.ways.iter().for_each(Way::place);
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        Pipe::in_use(self, ours)
    }
}

impl WithCapacity for Pipe {
    fn units(capacity: usize) -> Option<usize> {
        let each_way = capacity.div_ceil(BLOCK);
        each_way.checked_next_power_of_two()?.checked_mul(2).filter(|_| capacity > 0)
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe")
            .field("capacity", &self.capacity())
            .field("first", &self.sides.ends[0])
            .field("second", &self.sides.ends[1])
            .finish_non_exhaustive()
    }
}

impl<const BLOCKS: usize> fmt::Debug for FixedPipe<BLOCKS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
