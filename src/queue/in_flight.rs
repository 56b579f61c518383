//! The in-flight table: messages that were delivered and are not yet acknowledged.
//!
//! A message that is received with `recv_ack` moves from the ring to an entry of this table, so
//! that a slow worker does not hold up the ring.
use super::LIGHT;
use super::error::Failure;
use super::ring::Slot;
use crate::deadline::Deadline;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::wait::signal::Signal;

/// The number of messages of a queue that can be delivered and unacknowledged at a time, unless its
/// creator chooses another number: 64.
pub const IN_FLIGHT: usize = crate::sync::IN_FLIGHT;

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// Empty.
    Free = 0,
    /// Claimed by a process that looks for a message to put here.
    Claimed = 1,
    /// Its message is delivered to a process and not acknowledged.
    Delivered = 2,
    /// Its message is to be delivered again.
    Returned = 3,
    /// Its message is being read by a plain `recv`.
    Reading = 4,
}

/// The word of an entry: {use: 35, level: 5, attempts: 8, owner: 12, state: 4 bits}. `use` counts
/// how often the entry was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryWord(pub(crate) u64);

const ATTEMPT: u64 = 1 << 16;
const LEVEL_SHIFT: u32 = 24;
const USE: u64 = 1 << 29;

impl DeliveryWord {
    pub(crate) fn is_in(self, state: DeliveryState) -> bool {
        self.0 & 0xf == state as u64
    }
    pub(crate) fn owner(self) -> u32 {
        ((self.0 >> 4) & 0xfff) as u32
    }
    pub(crate) fn attempts(self) -> u32 {
        ((self.0 >> 16) & 0xff) as u32
    }
    pub(crate) fn level(self) -> usize {
        ((self.0 >> LEVEL_SHIFT) & 0x1f) as usize
    }
    pub(crate) fn to(self, state: DeliveryState, owner: u32) -> Self {
        DeliveryWord((self.0 & !(ATTEMPT - 1)) | (u64::from(owner & 0xfff) << 4) | state as u64)
    }
    /// The word of a claimed entry after a message of `level` was delivered in it.
    pub(crate) fn delivered(self, level: usize, owner: u32) -> Self {
        DeliveryWord(self.to(DeliveryState::Delivered, owner).0 | (level as u64) << LEVEL_SHIFT)
    }
    /// The word with one attempt more. The number stays at 255.
    pub(crate) fn tried(self) -> Self {
        if self.attempts() == 255 { self } else { DeliveryWord(self.0 + ATTEMPT) }
    }
    /// The word of a free entry for its next use: no attempts, and a new number of the use.
    pub(crate) fn freed(self) -> Self {
        DeliveryWord((self.0 & !(USE - 1)).wrapping_add(USE))
    }
}

/// The methods of a slot that is an entry of the table.
impl<T> Slot<T> {
    pub(crate) fn delivery(&self) -> DeliveryWord {
        DeliveryWord(self.state.load(Acquire))
    }

    pub(crate) fn exchange(&self, from: DeliveryWord, to: DeliveryWord) -> bool {
        self.state.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok()
    }
}

/// Repeats `deliver` until it returns a delivery, or the deadline has passed. `deliver` fails with
/// `TooManyInFlight` if a message is available but there is no room for it in the in-flight table.
///
/// Receivers sleep on two signals: on `not_empty` until a message comes, and on `in_flight_free`
/// while a message is available but there is no room for it. A thread sleeps on one of the two. The
/// wake that ends its sleep may be the only wake for a message or an entry that this thread then
/// cannot use. Therefore the thread wakes another sleeper of the signal that it leaves. So a
/// message goes to a thread that needs no room, and room goes to a thread that finds a message. (If
/// a thread slept on both signals, two such threads would wake each other without end.)
#[inline(always)]
pub(crate) fn deliver_until<D>(
    signals: [&Signal<LIGHT>; 2],
    deadline: Deadline,
    deliver: impl Fn() -> Result<D, Failure>,
) -> Result<D, Failure> {
    match deliver() {
        Err(Failure::Unavailable | Failure::TooManyInFlight) if !deadline.is_now() => {
            deliver_slow(signals, deadline, deliver)
        }
        done => done,
    }
}

#[cold]
#[inline(never)]
fn deliver_slow<D>(
    [not_empty, in_flight_free]: [&Signal<LIGHT>; 2],
    deadline: Deadline,
    deliver: impl Fn() -> Result<D, Failure>,
) -> Result<D, Failure> {
    let (mut lacks, mut signal) = (Failure::Unavailable, not_empty);
    loop {
        let attempt = || Some(deliver()).filter(|done| done.as_ref().err() != Some(&lacks));
        let Ok(done) = signal.wait(deadline, attempt) else { return Err(lacks) };
        let next = match done {
            Err(Failure::Unavailable) => (Failure::Unavailable, not_empty),
            Err(Failure::TooManyInFlight) => (Failure::TooManyInFlight, in_flight_free),
            done => return done,
        };
        signal.notify(1); // keeps I5
        (lacks, signal) = next;
    }
}
