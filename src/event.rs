//! A flag that threads can wait for.
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
//! Use an [`Event`] to tell waiting threads that something has happened. To count how often, use a
//! [`Semaphore`](crate::Semaphore). To wait for a change of a value under a lock, use a
//! [`Condition`](crate::Condition). A flag that no thread waits for is an
//! [`AtomicBool`](crate::AtomicBool).
//!
//! # Death
//! A process that is killed in `set` has set the event and woken the waiters, or has done neither.
//! If a waiter of an auto event is killed after it was woken and before it took the signal, another
//! waiter gets the signal. If it is killed later, the signal is lost with it.

// # How it works
// The state is one word: bit 0 `SET`, bit 1 `WAITERS`, and a number that counts how often the flag
// went from set to clear. Beside it lies whether the flag resets itself, which never changes.
//
// | `SET` | `WAITERS` | meaning |
// |---|---|---|
// | 0 | 0 | clear, no thread is asleep |
// | 0 | 1 | clear, a thread may be asleep |
// | 1 | 0 | set, no thread is asleep |
// | 1 | 1 | set; manual: no thread is asleep, the bit is stale; auto: one thread was woken, others may be asleep |
//
// Invariants:
// - I1. If a thread is asleep on a clear event, `WAITERS` is set. (The bit may be set while no
//   thread is asleep, which costs a system call.)
// - I2. No thread falls asleep on a set event: a sleeper names a value with `SET` clear, and every
//   way back to that value increments the number.
// - I3. The step from clear to set with `WAITERS` wakes the sleepers in the same system call.
//
// Ordering: writes made before `set` are visible to every thread that returns from `wait` because
// of it, also if the event was already set. `set` is a Release, or the kernel's change of the word;
// `wait` is an Acquire.
//
// Death: a waiter that is killed asleep leaves a stale bit. If an auto event's waiter was woken and
// is killed before it took the signal, the signal is still there, and recovery wakes the other
// sleepers.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::identify;
use crate::shareable::{Dead, Layout, Shareable, begin};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{Change, hooks};
use crate::wait::WaitWord;
use crate::wait::operation::{self, Armed, Operation};
use crate::wait::verbs::{self, Verb, verbs};
use core::fmt;

const SET: u32 = 1;
const WAITERS: u32 = 2;
/// One change of the flag from set to clear.
const TIME: u32 = 4;

const MANUAL: u32 = 0;
const AUTO: u32 = 1;

/// A flag that threads of any number of processes can wait for.
///
/// A *manual* event stays set until [`reset`](Event::reset), and lets every waiter through. An
/// *auto* event lets one waiter through and is then clear again. [`set`](Event::set),
/// [`reset`](Event::reset) and [`is_set`](Event::is_set) are async-signal-safe. They make no system
/// call unless a thread waits.
#[repr(C)]
pub struct Event {
    word: WaitWord,
    kind: AtomicU32,
}

impl Event {
    /// Creates an event that stays set until it is reset, to be moved into shared memory.
    #[must_use]
    pub fn manual(set: bool) -> Self {
        Event { word: WaitWord::new(u32::from(set)), kind: AtomicU32::new(MANUAL) }
    }

    /// Creates an event that is clear again once it has let one waiter through.
    ///
    /// ```
    /// use outlast::{Event, Shared};
    /// use std::time::Duration;
    ///
    /// let here = Shared::anonymous(Event::auto(false))?;
    /// let there = Shared::<Event>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.set();
    /// assert!(there.wait_timeout(Duration::ZERO)?); // one waiter is let through,
    /// assert!(!here.wait_timeout(Duration::ZERO)?); // and no other
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[must_use]
    pub fn auto(set: bool) -> Self {
        Event { word: WaitWord::new(u32::from(set)), kind: AtomicU32::new(AUTO) }
    }

    /// Sets the event. Returns `true` if a waiting thread was woken. Has no effect if the event is
    /// already set.
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
            // No thread was asleep, and while the word keeps this value none can be (I2).
            let set = seen | SET;
            self.word.value.compare_exchange(set, set & !WAITERS, Relaxed, Relaxed).ok();
        }
        woken > 0
    }

    /// Clears the event. A thread that waited while it was set still returns.
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

    /// Returns `true` if the event is set. The answer may change at any moment.
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.word.value.load(Acquire) & SET != 0
    }

    verbs! {
        /// Blocks until the event is set. An auto event is clear again afterwards.
        ///
        /// If a manual event is set and immediately reset, every thread that waited before returns.
        ///
        /// # Errors
        /// If this process cannot become a peer of the segment: see [`Fault`].
        pub fn wait(&self) -> Result<(), Fault> = Wait::new(self, || false);
        try_wait -> bool, else false;
        wait_timeout, wait_deadline -> Result<bool, Fault>, else Ok(false);
    }

    /// Like `wait`, but also returns when `over` is true. The thread that makes it true calls
    /// [`wake_to_recheck`](Self::wake_to_recheck) until the waiter has left.
    #[cfg_attr(
        any(not(feature = "pool"), outlast_loom),
        expect(dead_code, reason = "for the pool")
    )]
    pub(crate) fn wait_unless(&self, over: impl Fn() -> bool) -> Result<(), Fault> {
        verbs::block(Wait::new(self, over))
    }

    /// Wakes every waiter, so that it looks again.
    pub(crate) fn wake_to_recheck(&self) {
        self.word.wake(u32::MAX);
    }

    fn is_auto(&self) -> bool {
        self.kind.load(Relaxed) != MANUAL
    }
}

/// The verb of [`Event::wait`].
struct Wait<'a, F> {
    event: &'a Event,
    /// The word when the wait began.
    began: u32,
    /// Whether the wait has become pointless.
    over: F,
}

impl<'a, F: Fn() -> bool> Wait<'a, F> {
    fn new(event: &'a Event, over: F) -> Self {
        Wait { event, began: event.word.value.load(Acquire), over }
    }

    /// Whether the event lets the waiter through when its word is `seen`.
    fn lets_through(&self, seen: u32) -> bool {
        seen & SET != 0 || !self.event.is_auto() && (seen ^ self.began) >= TIME
    }
}

impl<F: Fn() -> bool> Verb for Wait<'_, F> {
    type Output = Result<(), Fault>;

    #[inline]
    fn fast(&mut self) -> Option<Self::Output> {
        let word = &self.event.word.value;
        let mut seen = word.load(Acquire);
        while self.lets_through(seen) {
            if !self.event.is_auto() {
                return Some(Ok(()));
            }
            let taken = seen.wrapping_add(TIME) & !SET; // keeps I2
            match word.compare_exchange(seen, taken, Acquire, Acquire) {
                Ok(_) => return Some(Ok(())),
                Err(now) => seen = now,
            }
        }
        (self.over)().then_some(Ok(()))
    }

    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output> {
        operation::wait(self, deadline)
    }
}

impl<'a, F: Fn() -> bool> Operation<'a> for Wait<'a, F> {
    fn key(&self) -> usize {
        core::ptr::from_ref(self.event).addr()
    }
    fn arm(&mut self) -> Armed<'a, Self::Output> {
        if let Err(fault) = identify(self.key()) {
            return Armed::Done(Err(fault));
        }
        let word = &self.event.word;
        let seen = word.value.load(Acquire);
        match self.lets_through(seen) {
            false => Armed::on_state(word, seen, seen | WAITERS), // keeps I1
            true => Armed::Retry,
        }
    }
}

// SAFETY: `repr(C)`; two atomics, for which any bytes are valid.
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
        self.wake_to_recheck();
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
