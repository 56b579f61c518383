//! Where the headers and the blocks of a queue lie, for both forms of a queue.
//!
//! The types are public, because public types have them as parameters, but nobody else can name
//! them. The invariants I1 and I2 are those of [`ByteQueue`](super::ByteQueue).
#![expect(unsafe_code, reason = "the blocks of a record are reached by its claimer alone")]
use super::records::{BLOCK, Header};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// 64 bytes of messages.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Block(UnsafeCell<[u8; BLOCK]>);

impl Block {
    pub(super) fn new() -> Self {
        Block(UnsafeCell::new([0; BLOCK]))
    }
}

// SAFETY: blocks are reached by the claimer of their record alone (I1, I2), and are bytes.
unsafe impl Sync for Block {}

/// The memory of a queue whose capacity is chosen at run time, one unit for each block of the ring.
/// The headers of all units come first: those of the ring, then those of the in-flight area. The
/// blocks follow in the same order.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Unit {
    _headers: [Header; 2],
    _blocks: UnsafeCell<[[u8; BLOCK]; 2]>,
}

// SAFETY: as for `Block`.
unsafe impl Sync for Unit {}

/// The memory of a queue of `N` blocks.
#[repr(C)]
#[derive(Debug)]
pub struct Blocks<const N: usize> {
    pub(super) headers: [[Header; N]; 2],
    pub(super) blocks: [[Block; N]; 2],
}

/// Where headers and blocks lie: `count` headers of the ring, as many of the in-flight area, and as
/// many blocks as headers, in the same order.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    headers: NonNull<Header>,
    blocks: NonNull<Block>,
    pub(super) count: usize,
    of: PhantomData<&'a [Header]>,
}

// SAFETY: it stands for `&[Header]` and `&[Block]`.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    #[inline(always)]
    pub(super) fn ring(self) -> &'a [Header] {
        // SAFETY: so many headers lie there, in cells for which any bytes will do.
        unsafe { core::slice::from_raw_parts(self.headers.as_ptr(), self.count) }
    }

    #[inline(always)]
    pub(super) fn in_flight(self) -> &'a [Header] {
        let first = self.headers.as_ptr().wrapping_add(self.count);
        // SAFETY: as many follow those of the ring.
        unsafe { core::slice::from_raw_parts(first, self.count) }
    }

    #[inline(always)]
    pub(super) fn blocks(self) -> &'a [Block] {
        // SAFETY: so many blocks lie there.
        unsafe { core::slice::from_raw_parts(self.blocks.as_ptr(), 2 * self.count) }
    }
}

/// The memory of a queue.
pub trait Store: sealed::Sealed {
    /// Returns the places of the headers and the blocks.
    fn parts(&self) -> Parts<'_>;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for [Unit] {}
impl<const N: usize> sealed::Sealed for Blocks<N> {}

impl<const N: usize> Store for Blocks<N> {
    #[inline(always)]
    fn parts(&self) -> Parts<'_> {
        let (headers, blocks) = (NonNull::from(&self.headers), NonNull::from(&self.blocks));
        Parts { headers: headers.cast(), blocks: blocks.cast(), count: N, of: PhantomData }
    }
}

impl Store for [Unit] {
    #[inline(always)]
    fn parts(&self) -> Parts<'_> {
        let count = self.len();
        let headers = NonNull::from(self).cast::<Header>();
        // SAFETY: a unit is as long as two headers and two blocks. The blocks are aligned, as the
        // units begin at a multiple of 128 bytes and their number is a multiple of `GRAIN`.
        let blocks = unsafe { headers.add(2 * count) };
        Parts { headers, blocks: blocks.cast(), count, of: PhantomData }
    }
}
