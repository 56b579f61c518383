//! A flag in shared memory.
#![expect(unsafe_code, reason = "the traits promise that bytes may be shared between processes")]
use crate::shareable::{Layout, Shareable, begin};
use crate::sync::atomic::{AtomicU8, Ordering};
use core::fmt;

/// The counterpart of the standard library's `AtomicBool` in shared memory.
///
/// Every byte is a valid flag: only the lowest bit counts.
///
/// To wait until a flag is set, use an [`Event`](crate::Event).
///
/// ```
/// use outlast::{AtomicBool, Shared};
/// use std::sync::atomic::Ordering::{Acquire, Release};
///
/// outlast::shared! {
///     struct State { ready: AtomicBool }
/// }
/// let here = Shared::anonymous(State { ready: AtomicBool::new(false) })?;
/// let there = Shared::<State>::from_fd(here.try_clone_fd()?)?; // as another process would
/// here.ready.store(true, Release);
/// assert!(there.ready.load(Acquire));
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// # Death
/// Each operation is one instruction. A process that is killed has done it or has not.
#[derive(Default)]
#[repr(transparent)]
pub struct AtomicBool(AtomicU8);

const SET: u8 = 1;

impl AtomicBool {
    /// Creates a flag.
    #[must_use]
    pub const fn new(value: bool) -> Self {
        AtomicBool(AtomicU8::new(value as u8))
    }

    /// Returns the value.
    ///
    /// # Panics
    /// If `order` is `Release` or `AcqRel`.
    #[must_use]
    pub fn load(&self, order: Ordering) -> bool {
        is_set(self.0.load(order))
    }

    /// Stores a value.
    ///
    /// # Panics
    /// If `order` is `Acquire` or `AcqRel`.
    pub fn store(&self, value: bool, order: Ordering) {
        self.0.store(value.into(), order);
    }

    /// Stores a value, and returns the previous one.
    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        is_set(self.0.swap(value.into(), order))
    }

    /// Stores `new` if the value is `current`. Returns the previous value, as `Ok` if it was
    /// `current`.
    ///
    /// # Errors
    /// The value, if it is not `current`.
    ///
    /// # Panics
    /// If `failure` is `Release` or `AcqRel`.
    pub fn compare_exchange(
        &self,
        current: bool,
        new: bool,
        success: Ordering,
        failure: Ordering,
    ) -> Result<bool, bool> {
        let mut expected = u8::from(current);
        loop {
            match self.0.compare_exchange(expected, new.into(), success, failure) {
                Ok(_) => return Ok(current),
                // Another byte with the same lowest bit, which this type does not write.
                Err(seen) if is_set(seen) == current => expected = seen,
                Err(_) => return Err(!current),
            }
        }
    }

    /// Sets the flag if `value` is `true`. Returns the previous value.
    pub fn fetch_or(&self, value: bool, order: Ordering) -> bool {
        is_set(self.0.fetch_or(value.into(), order))
    }

    /// Clears the flag if `value` is `false`. Returns the previous value.
    pub fn fetch_and(&self, value: bool, order: Ordering) -> bool {
        is_set(self.0.fetch_and(value.into(), order))
    }

    /// Inverts the flag if `value` is `true`. Returns the previous value.
    pub fn fetch_xor(&self, value: bool, order: Ordering) -> bool {
        is_set(self.0.fetch_xor(value.into(), order))
    }
}

fn is_set(byte: u8) -> bool {
    byte & SET != 0
}

impl From<bool> for AtomicBool {
    fn from(value: bool) -> Self {
        AtomicBool::new(value)
    }
}

impl fmt::Debug for AtomicBool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load(Ordering::Relaxed).fmt(f)
    }
}

// SAFETY: an atomic byte, for which any value means `true` or `false`.
unsafe impl Shareable for AtomicBool {
    const FINGERPRINT: u64 = begin::<Self>(b"AtomicBool");
    const NEEDS_PEERS: bool = false;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("AtomicBool", &[])
    }
}
