//! Where the headers and the blocks of a queue lie, for both forms of a queue.
//!
//! The types are public, because public types have them as parameters, but no other crate can name
//! them. The invariants I1 and I2 are those of [`ByteQueue`](super::ByteQueue).
#![expect(unsafe_code, reason = "the blocks of a record are reached by its claimer alone")]
use super::records::{BLOCK, Header};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// A block of the ring or of the in-flight area: 64 bytes of messages.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Block(UnsafeCell<[u8; BLOCK]>);

impl Block {
    pub(super) fn new() -> Self {
        Block(UnsafeCell::new([0; BLOCK]))
    }
}

// SAFETY: only the claimer of a record reaches its blocks (I1, I2), and blocks are bytes.
unsafe impl Sync for Block {}

// A panic gives the claim of a record back, so that no message stays half sent or half read.
impl core::panic::RefUnwindSafe for Block {}

/// One unit of the memory of a queue whose capacity is chosen at run time: two headers and two
/// blocks, for one block of the ring and one of the in-flight area. A unit is a measure only. In
/// memory, the headers of the ring come first, then the headers of the in-flight area. The blocks
/// follow in the same order.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Unit {
    _headers: [Header; 2],
    _blocks: UnsafeCell<[[u8; BLOCK]; 2]>,
}

// SAFETY: as for `Block`.
unsafe impl Sync for Unit {}

// As for `Block`.
impl core::panic::RefUnwindSafe for Unit {}

/// The memory of a queue whose number of blocks, `N`, is chosen at compile time.
#[repr(C)]
#[derive(Debug)]
pub struct Blocks<const N: usize> {
    pub(super) headers: [[Header; N]; 2],
    pub(super) blocks: [[Block; N]; 2],
}

/// The place of the headers and blocks: `count` headers of the ring, as many of the in-flight area,
/// and as many blocks as headers, in the same order.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    headers: NonNull<Header>,
    blocks: NonNull<Block>,
    pub(super) count: usize,
    of: PhantomData<&'a [Header]>,
}

// SAFETY: it is used as `&[Header]` and `&[Block]`, which are `Send`.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above, and they are `Sync`.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    #[inline(always)]
    pub(super) fn ring(self) -> &'a [Header] {
        // SAFETY: `count` headers lie there. They consist of atomics, for which any bytes are
        // valid.
        unsafe { core::slice::from_raw_parts(self.headers.as_ptr(), self.count) }
    }

    #[inline(always)]
    pub(super) fn in_flight(self) -> &'a [Header] {
        let first = self.headers.as_ptr().wrapping_add(self.count);
        // SAFETY: `count` more headers follow those of the ring.
        unsafe { core::slice::from_raw_parts(first, self.count) }
    }

    #[inline(always)]
    pub(super) fn blocks(self) -> &'a [Block] {
        // SAFETY: twice `count` blocks lie there, one for each header.
        unsafe { core::slice::from_raw_parts(self.blocks.as_ptr(), 2 * self.count) }
    }
}

/// The memory of a queue, with a capacity chosen at run time or at compile time.
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
        // SAFETY: a unit is as long as two headers and two blocks. The blocks are aligned, because
        // the units begin at a multiple of 128 bytes and their number is a multiple of `GRAIN`.
        let blocks = unsafe { headers.add(2 * count) };
        Parts { headers, blocks: blocks.cast(), count, of: PhantomData }
    }
}
