//! A flag that can be waited for.
//!
//! ```
//! use outlast::{Event, Shared};
//!
//! let here = Shared::anonymous(Event::manual(false))?;
//! let there = Shared::<Event>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let waiter = std::thread::spawn(move || there.wait());
//! here.set();
//! waiter.join().unwrap()?;
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! One word: bit 0 `SET`, bit 1 `WAITERS`, and a number that counts the times that the flag went
//! from set to clear. Beside it, unchanged from birth, whether the flag resets itself.
//!
//! | `SET` | `WAITERS` | meaning |
//! |---|---|---|
//! | 0 | 0 | clear, nobody asleep |
//! | 0 | 1 | clear, somebody may be asleep |
//! | 1 | 0 | set, nobody asleep |
//! | 1 | 1 | set; manual: nobody is asleep, the bit is stale; auto: one was woken, others may be asleep |
//!
//! # Invariants
//! - I1. A thread asleep on a clear event => `WAITERS`. (The bit may be set with nobody asleep: a
//!   wasted system call.)
//! - I2. Nobody falls asleep on a set event: sleepers name a value with `SET` clear, and every way
//!   back to that value counts up the number.
//! - I3. The step from clear to set with `WAITERS` wakes whom it must in the same system call.
//!
//! # Ordering
//! What was written before `set` is seen by whoever returns from `wait` because of it (Release, or
//! the kernel's fence; Acquire), also if the event was set already.
//!
//! # Death
//! A setter killed before its step did nothing; after it, all is done (I3). A waiter killed asleep
//! leaves a stale bit. An auto-reset waiter that was woken and is killed before it took the signal:
//! the signal is still there, and recovery wakes the other sleepers. Killed after: it took the
//! signal with it.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::identify;
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{Change, hooks};
use crate::wait::{Look, Step, TimedOut, WaitWord};
use core::fmt;
use std::time::{Duration, Instant};

const SET: u32 = 1;
const WAITERS: u32 = 2;
/// One time that the flag was cleared.
const TIME: u32 = 4;

const MANUAL: u32 = 0;
const AUTO: u32 = 1;

/// A flag that processes can wait for.
///
/// A *manual* event stays set until [`reset`](Event::reset) and lets everybody through; an *auto*
/// event lets one waiter through and is clear again. [`set`](Event::set), [`reset`](Event::reset)
/// and [`is_set`](Event::is_set) are async-signal-safe, and make no system call unless somebody
/// waits.
#[repr(C)]
pub struct Event {
    word: WaitWord,
    kind: AtomicU32,
}

impl Event {
    /// An event that stays set until it is reset.
    #[must_use]
    pub fn manual(set: bool) -> Self {
        Event { word: WaitWord::new(u32::from(set)), kind: AtomicU32::new(MANUAL) }
    }

    /// An event that is clear again once it has let one waiter through.
    ///
    /// ```
    /// use outlast::{Event, Shared};
    /// use std::time::Duration;
    ///
    /// let here = Shared::anonymous(Event::auto(false))?;
    /// let there = Shared::<Event>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.set();
    /// assert!(there.wait_timeout(Duration::ZERO)?); // one has it,
    /// assert!(!here.wait_timeout(Duration::ZERO)?); // and nobody else
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[must_use]
    pub fn auto(set: bool) -> Self {
        Event { word: WaitWord::new(u32::from(set)), kind: AtomicU32::new(AUTO) }
    }

    /// Sets the event; whether a sleeper was woken. Setting what is set already changes nothing.
    ///
    /// Async-signal-safe.
    pub fn set(&self) -> bool {
        let mut seen = self.word.value.load(Relaxed);
        while seen & WAITERS == 0 || seen & SET != 0 {
            match self.word.value.compare_exchange_weak(seen, seen | SET, Release, Relaxed) {
                Ok(_) => return false,
                Err(now) => seen = now,
            }
        }
        self.set_and_wake(seen)
    }

    #[cold]
    fn set_and_wake(&self, seen: u32) -> bool {
        let sleepers = if self.is_auto() { 1 } else { u32::MAX };
        let woken = self.word.change_and_wake(Change::OrOne, sleepers); // keeps I3
        if woken == 0 {
            hooks::pause("event: set, nobody was asleep");
            // Nobody was asleep, and as long as the word stays this one nobody can be (I2).
            let set = seen | SET;
            self.word.value.compare_exchange(set, set & !WAITERS, Relaxed, Relaxed).ok();
        }
        woken > 0
    }

    /// Clears the event. Whoever waited while it was set gets through all the same.
    ///
    /// Async-signal-safe.
    #[doc(alias = "clear")]
    pub fn reset(&self) {
        let stale = if self.is_auto() { 0 } else { WAITERS };
        let mut seen = self.word.value.load(Relaxed);
        while seen & SET != 0 {
            let clear = seen.wrapping_add(TIME) & !(SET | stale); // keeps I2
            match self.word.value.compare_exchange_weak(seen, clear, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Whether the event is set. May change at any moment.
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.word.value.load(Acquire) & SET != 0
    }

    /// Waits until the event is set, and clears it if it is an auto event.
    ///
    /// A manual event that is set and reset at once lets everybody through who waited before.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn wait(&self) -> Result<(), Fault> {
        self.wait_until(Deadline::NEVER).map(drop)
    }

    /// Waits until the event is set, at most `timeout`; whether it was.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.wait_until(Deadline::after(timeout))
    }

    /// Waits until the event is set, until `deadline` at most; whether it was. An event that is set
    /// lets through even if that has passed.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn wait_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.wait_until(Deadline::at(deadline))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<bool, Fault> {
        self.wait_unless(deadline, || false)
    }

    /// The same, or until `over`: whoever makes that so calls [`disturb`](Self::disturb) until the
    /// waiter has left.
    #[inline]
    pub(crate) fn wait_unless(
        &self,
        deadline: Deadline,
        over: impl Fn() -> bool,
    ) -> Result<bool, Fault> {
        let began = self.word.value.load(Acquire);
        if let Step::Done(()) = self.step(began, began, Look::Glance) {
            return Ok(true);
        }
        identify(core::ptr::from_ref(self).addr())?;
        let waited =
            self.word.wait_until(deadline, |seen, look| match self.step(began, seen, look) {
                Step::Done(()) => Step::Done(true),
                _ if over() => Step::Done(false),
                Step::Retry => Step::Retry,
                Step::Sleep(seen) => Step::Sleep(seen),
                Step::Doze(seen) => Step::Doze(seen),
            });
        match waited {
            Ok(set) => Ok(set),
            Err(TimedOut) => Ok(false),
        }
    }

    /// Has all who wait look again.
    pub(crate) fn disturb(&self) {
        self.word.wake(u32::MAX);
    }

    #[inline]
    fn step(&self, began: u32, seen: u32, look: Look) -> Step<()> {
        let auto = self.is_auto();
        if auto && seen & SET != 0 {
            let taken = seen.wrapping_add(TIME) & !SET; // keeps I2
            return match self.word.value.compare_exchange(seen, taken, Acquire, Relaxed) {
                Ok(_) => Step::Done(()),
                Err(_) => Step::Retry,
            };
        }
        if !auto && (seen & SET != 0 || (seen ^ began) >= TIME) {
            return Step::Done(());
        }
        if look == Look::Glance || seen & WAITERS != 0 {
            return Step::Sleep(seen);
        }
        match self.word.value.compare_exchange(seen, seen | WAITERS, Relaxed, Relaxed) {
            Ok(_) => Step::Sleep(seen | WAITERS), // keeps I1
            Err(_) => Step::Retry,
        }
    }

    fn is_auto(&self) -> bool {
        self.kind.load(Relaxed) != MANUAL
    }
}

// SAFETY: `repr(C)`; two atomics, for which any bytes will do.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Event {
    const FINGERPRINT: u64 = begin::<Self>(b"Event 1");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Event", &[])
    }
    fn place(&self) {
        self.word.place();
    }
    fn recover(&self, _dead: &Dead) {
        self.disturb();
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("word", &format_args!("{:#010x}", self.word.value.load(Relaxed)))
            .field("auto", &self.is_auto())
            .finish()
    }
}
