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
//! # Which type?
//! Use a [`Pipe`] for a conversation between two sides, such as a parent and its child. Each side
//! can be held by several processes; a message goes to one of them. Use a
//! [`Channel`](crate::Channel) if messages go in one direction and must be acknowledged, or a
//! [`Ring`](crate::spsc::Ring) for messages of a fixed type between one sender and one receiver.
//!
//! # Death
//! If a sender is killed before the commit of its message, nothing is sent. After it, the message
//! is sent. A message that is longer than the ring consists of several records; if its sender is
//! killed between them, the receiver drops the part that was sent.
//!
//! If a receiver is killed before the commit, another holder of its side gets the message. After
//! it, the message is lost with the process. If it had received the first part of a long message,
//! the rest of that message is dropped.
//!
//! When the last holder of a side is gone, the other side gets the remaining messages, and then
//! [`Disconnected`](super::RecvError::Disconnected). The kernel frees the turns of a dead process.
//! Recovery releases its handles, sets the bit of a side that is gone, and wakes all waiting
//! threads.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

// # How it works
//
// A pipe has two sets of holders (`Ends`), a word with a bit for each side that is gone, and two
// directions (`Way`). Each direction is a ring of blocks of 64 bytes with
//
// | word | meaning | written by |
// |---|---|---|
// | `tail` | number of blocks ever written | the thread with the writer's turn; the store is the commit of a record |
// | `head` | number of blocks ever read | the thread with the reader's turn; the store is the commit of its reception |
// | the writer's turn, the reader's turn | a `Lock`, held while a message is sent or received, or is waited for | senders; receivers |
//
// A record is a header of 8 bytes {goes on: 1, began before: 1, length: 62 bits} and its bytes, in
// as many blocks as that takes. A message is one record if the ring can hold it. Otherwise it is
// several records, one behind the other: all but the last *go on*, and all but the first *began
// before*.
//
// Invariants:
// - I1. Only the thread with the writer's turn moves `tail` and writes blocks from `tail` to `head`
//   + capacity. Only the thread with the reader's turn moves `head` and reads blocks from `head` to
//   `tail`.
// - I2. `head` <= `tail` <= `head` + capacity, in blocks.
// - I3. A record that began before follows one of the same message that goes on, or is at the place
//   where its reader left it. A receiver that finds such a record first skips it.
// - I4. A message that goes on does so only while its writer has the turn. So no more of it comes
//   if a reader that has a part sees the turn free, and then finds nothing more, or another
//   beginning.
// - I5. If a side is gone, its bit is set, or a living process is about to set it and then wakes
//   the other side. The bit may be set although the side is not gone: a thread that sees it looks
//   at the cells itself (`Ends::confirm_gone`).
//
// Ordering: `tail` is stored with Release and loaded with Acquire, so writes made before the commit
// of a record are visible after it was read. `head` gives blocks back in the same way. The owner of
// a turn leaves the last position of the other end that it saw in the lock, for the next owner.
// Every commit is followed by a light fence before the look whether a thread sleeps (see
// `signal.rs`). What a side sent before it left is visible to a thread that has seen it gone and
// then looks again.

mod connection;
mod way;

pub use connection::Connection;

use crate::error::Fault;
use crate::queue::ends::Ends;
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity};
use crate::shareable::{begin, both_shareable, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use crate::sync::atomic::fence;
use core::fmt;
use core::mem::offset_of;
use way::{Block, BlockRing, Way};

pub(crate) use way::BLOCK;

/// The largest number of blocks, for both directions together.
const MAX_BLOCKS: usize = 1 << 25;

/// Two rings of bytes, one for each direction between two sides. Its capacity is chosen at
/// creation.
///
/// [`first`](Self::first) and [`second`](Self::second) take a handle of a side: a [`Connection`],
/// which sends and receives. Up to 64 processes can hold each side; a message goes to one of them.
/// When the last handle of a side is gone, by drop or death, the other side gets the remaining
/// messages, and then [`Disconnected`](super::RecvError::Disconnected). A side that no process has
/// taken yet is waited for. A side that was gone can be taken again.
///
/// A pipe holds [`capacity`](Self::capacity) bytes in each direction. If both sides send more than
/// that and neither receives, both block for ever. One side must receive first, receive in another
/// thread, or send with a timeout.
///
/// A side belongs to the processes that hold a handle of it. To hand a side to a program that is
/// started, use [`CommandExt::hand_over`](crate::CommandExt::hand_over): the other side does not
/// notice it. Without that, the receiving process must take its handle before the other process
/// drops its own. If the only handle is dropped first, the other side gets `Disconnected` in
/// between.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates a pipe for 1 to 1,073,741,824
/// bytes in each direction, rounded up to 64 times a power of two. To embed one in a struct, see
/// [`FixedPipe`].
#[repr(C)]
#[doc(alias = "duplex")]
#[doc(alias = "socketpair")]
pub struct Pipe<S: ?Sized = [Block]> {
    /// From the first side to the second, and back.
    ways: [Way; 2],
    sides: Sides,
    slots: S,
}

/// A pipe of `BLOCKS` times 64 bytes, half of them for each direction, to be embedded in a struct
/// declared with [`shared!`](crate::shared).
///
/// It dereferences to [`Pipe`], which has the methods.
pub type FixedPipe<const BLOCKS: usize> = Pipe<[Block; BLOCKS]>;

/// Which processes hold the sides. All processes read it, and it is rarely written.
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
    /// Creates an empty pipe, to be moved into shared memory. No process has taken a side of it.
    ///
    /// A number of blocks that is not a power of two from 2 to 33,554,432 does not compile.
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
            slots: core::array::from_fn(|_| Block::new()),
        }
    }

    const FIELDS: [Field; 1] = {
        let offset = offset_of!(Self, slots);
        [Field { name: "blocks", offset, count: BLOCKS * BLOCK, layout: u8::layout }]
    };
}

/// Whether a pipe can have this number of blocks.
const fn is_valid(blocks: usize) -> bool {
    blocks >= 2 && blocks <= MAX_BLOCKS && blocks.is_power_of_two()
}

impl Pipe {
    /// Takes a handle of the first side. All handles of one process count as one holder.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes hold the side; see [`Fault`].
    pub fn first(&self) -> Result<Connection<&Self>, Fault> {
        Connection::of(self, 0)
    }

    /// Takes a handle of the second side. All handles of one process count as one holder.
    ///
    /// # Errors
    /// As [`first`](Self::first).
    pub fn second(&self) -> Result<Connection<&Self>, Fault> {
        Connection::of(self, 1)
    }

    /// Returns the length in bytes of the longest message that is sent in one piece, in each
    /// direction.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring(0).longest()
    }

    /// The ring of the direction that begins at a side.
    #[inline(always)]
    fn ring(&self, side: usize) -> BlockRing<'_> {
        let (first, second) = self.slots.split_at(self.slots.len() / 2);
        let blocks = if side == 0 { first } else { second };
        BlockRing { way: &self.ways[side], blocks }
    }

    /// Whether a side is gone.
    #[inline(always)]
    fn is_gone(&self, side: usize) -> bool {
        self.sides.gone.load(Relaxed) & bit(side) != 0 && self.confirm_gone(side)
    }

    #[cold]
    fn confirm_gone(&self, side: usize) -> bool {
        let Sides { gone, ends } = &self.sides;
        ends[side].confirm_gone(gone, bit(side), || self.wake_everybody())
    }

    /// Tells the other side that `side` is gone.
    #[cold]
    fn tell_gone(&self, side: usize) {
        self.sides.gone.fetch_or(bit(side), AcqRel);
        self.wake_everybody();
    }

    fn wake_everybody(&self) {
        fence(SeqCst);
        self.ways.iter().for_each(Way::wake_everybody);
    }

    const BASE: u64 = begin::<FixedPipe<2>>(b"Pipe 1");
}

// SAFETY: `repr(C)`; atomics and locks, for which any bytes are valid, and bytes; indices are
// masked; no `Drop`.
both_shareable! {
    [] Pipe, [BLOCKS] FixedPipe<BLOCKS>, "Pipe", FixedPipe<2>, Block, MAX_BLOCKS, is_valid;
    fn place(&self) {
        self.ways.iter().for_each(Way::place);
    }
    fn recover(&self, dead: &Dead) {
        let Sides { gone, ends } = &self.sides;
        (0..2).for_each(|side| ends[side].recover(dead, gone, bit(side))); // keeps I5
        self.wake_everybody();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.ways.iter().any(|way| way.in_use(ours))
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
