//! Waiting until the value under a lock has changed.
//!
//! ```
//! use outlast::{Condition, Lock, Shared};
//!
//! outlast::shared! {
//!     struct Mailbox { letters: Lock<u32>, came: Condition }
//! }
//! let here = Shared::anonymous(Mailbox { letters: Lock::new(0), came: Condition::new() })?;
//! let there = Shared::<Mailbox>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let reader = std::thread::spawn(move || {
//!     let letters = there.letters.lock()?;
//!     let mut letters = there.came.wait_while(letters, |letters| *letters == 0)?;
//!     *letters -= 1;
//!     Ok::<(), outlast::Error>(())
//! });
//! *here.letters.lock()? += 1;
//! here.came.notify_one();
//! reader.join().unwrap()?;
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! Use a [`Condition`] together with a lock, if threads wait for any change of the value that the
//! lock guards. To wait for one flag, an [`Event`](crate::Event) is simpler; to hand over work, use
//! a [`Queue`](crate::Queue).
//!
//! # Death
//! The death of any process of the segment ends all waits, as a notification does: the dead process
//! may have changed the value without a notification, or may have taken a notification with it. The
//! waiting threads look again. If the dead process held the lock, the kernel has released it, and
//! the result of the wait says so.
//!
//! A process that leaves (by exit, `leave`, or dropping its last handle) is not dead, and ends no
//! wait.

// # How it works
// The state is a signal (`wait/signal.rs`): a sequence word, which every notification moves, and
// whether a thread may be waiting (*armed*).
//
// | armed | sequence | a waiter that armed at number n |
// |---|---|---|
// | yes | n | sleeps, or is about to |
// | yes | not n | has been notified: it returns, or does not fall asleep |
// | no | n | impossible: only a notification that moves the sequence disarms |
// | no | not n | has been notified |
//
// Invariants:
// - I1. A waiter reads its number and arms before it releases its lock, in this order.
// - I2. A waiter sleeps only while the sequence is that number. It returns only if the sequence is
//   another number, or if the wait times out.
// - I3. A notification that finds the signal armed moves the sequence and wakes, in one system
//   call.
// - I4. Only a notification that found no thread asleep disarms the signal, and only if no thread
//   has armed it since (I2 of the signal).
//
// Ordering: a notification reads *armed* without a fence, and that is enough. A thread that changes
// the value has acquired the lock after every waiter that has released it, and sees that they armed
// (I1). A waiter that acquires the lock later sees the change, and does not wait. Writes made
// before the notification are visible through the lock.
//
// Death: a waiter that is killed asleep leaves the signal armed, which costs the next notification
// a system call. A waiter that is killed after it was woken has consumed the wake. A notifier that
// is killed before its notification has made a change of which no waiter hears. So recovery moves
// the sequence and wakes every sleeper.
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::lock::{Lock, LockError, LockGuard};
use crate::reentrant::ReentrantLockGuard;
use crate::segment::identify;
use crate::shareable::{Dead, Layout, Plain, Shareable, begin};
use crate::wait::signal::Signal;
use crate::wait::verbs::verbs;
use core::fmt;
use std::time::{Duration, Instant};

/// A condition variable: threads wait until the value under a [`Lock`] or
/// [`ReentrantLock`](crate::ReentrantLock) has changed.
///
/// A wait returns after a notification that came while the thread waited, after the death of any
/// process of the segment, or when it times out. It never returns for no reason. A process that
/// exits, or drops its handles, does not end the waits of others. If a process exits while threads
/// of it wait, notifications that reached these threads may be lost with it.
///
/// When a wait returns, the value may have changed again. Test it in a loop, or let
/// [`wait_while`](Condition::wait_while) do that.
///
/// Change the value under the lock. The notification itself needs no lock, and makes no system call
/// unless a thread waits. Use a condition with only one lock.
#[repr(C)]
#[doc(alias = "Condvar")]
pub struct Condition {
    signal: Signal,
}

/// Whether a wait of a [`Condition`] timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Returns `true` if the wait timed out and no notification had come.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

type Timed<G> = Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>>;

/// The result of a wait without a deadline.
fn untimed<G>(ended: Timed<G>) -> Result<G, LockError<G>> {
    match ended {
        Ok((guard, _)) => Ok(guard),
        Err(error) => Err(error.map(|(guard, _)| guard)),
    }
}

impl Condition {
    /// Creates a condition, to be moved into shared memory.
    #[must_use]
    pub fn new() -> Self {
        Condition { signal: Signal::new() }
    }

    verbs! {
        /// Releases the lock, blocks until a notification, and acquires the lock again.
        ///
        /// A [`ReentrantLock`](crate::ReentrantLock) is released with all its levels, and acquired
        /// again with as many.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: the lock is acquired again, the
        ///   guard is inside, and the value may be half changed.
        /// - [`LockError::Failed`]: see [`Fault`]. The guard is dropped. The call does not block if
        ///   this process cannot become a peer of the segment, or if the guard is a copy made by
        ///   `fork` ([`Fault::Forked`]).
        pub fn wait<G: ConditionGuard>(&self, guard: G) -> Result<G, LockError<G>>
            = |deadline| untimed(self.wait_until(guard, deadline));
        /// Returns the guard and whether the wait timed out. The call can take longer, because it
        /// acquires the lock again in any case.
        wait_timeout, wait_deadline -> Timed<G> = |deadline| self.wait_until(guard, deadline);
    }

    /// Blocks while `condition` returns `true`. Calls it first, and again after each notification.
    ///
    /// With a [`ReentrantLock`](crate::ReentrantLock), `condition` gets a copy of the value, which
    /// is then written back.
    ///
    /// ```
    /// use outlast::{Condition, Lock, Shared};
    ///
    /// outlast::shared! {
    ///     struct Account { balance: Lock<i64>, paid_in: Condition }
    /// }
    /// let here = Shared::anonymous(Account { balance: Lock::new(0), paid_in: Condition::new() })?;
    /// let there = here.clone();
    /// let payer = std::thread::spawn(move || {
    ///     *there.balance.lock().unwrap() += 5;
    ///     there.paid_in.notify_one();
    /// });
    /// let balance = here.paid_in.wait_while(here.balance.lock()?, |balance| *balance < 5)?;
    /// assert_eq!(*balance, 5);
    /// payer.join().unwrap();
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Self::wait). `condition` may then still be true.
    #[doc(alias = "wait_for")]
    pub fn wait_while<G: ConditionGuard>(
        &self,
        guard: G,
        condition: impl FnMut(&mut G::Value) -> bool,
    ) -> Result<G, LockError<G>> {
        untimed(self.wait_until_while(guard, Deadline::NEVER, condition))
    }

    /// Like [`wait_while`](Self::wait_while), but blocks for at most `timeout`. Returns the guard,
    /// and whether the wait timed out while `condition` was still true.
    ///
    /// # Errors
    /// As [`wait_while`](Self::wait_while).
    #[doc(alias = "wait_for")]
    pub fn wait_timeout_while<G: ConditionGuard>(
        &self,
        guard: G,
        timeout: Duration,
        condition: impl FnMut(&mut G::Value) -> bool,
    ) -> Timed<G> {
        self.wait_until_while(guard, Deadline::after(timeout), condition)
    }

    /// Like [`wait_timeout_while`](Self::wait_timeout_while), but blocks until `deadline` at the
    /// latest.
    ///
    /// # Errors
    /// As [`wait_while`](Self::wait_while).
    pub fn wait_deadline_while<G: ConditionGuard>(
        &self,
        guard: G,
        deadline: Instant,
        condition: impl FnMut(&mut G::Value) -> bool,
    ) -> Timed<G> {
        self.wait_until_while(guard, Deadline::at(deadline), condition)
    }

    fn wait_until_while<G: ConditionGuard>(
        &self,
        mut guard: G,
        deadline: Deadline,
        mut condition: impl FnMut(&mut G::Value) -> bool,
    ) -> Timed<G> {
        let mut late = false;
        loop {
            if !guard.ask(&mut condition) {
                return Ok((guard, WaitTimeoutResult(false)));
            }
            if late {
                return Ok((guard, WaitTimeoutResult(true)));
            }
            let ended;
            (guard, ended) = self.wait_until(guard, deadline)?;
            // Notifications that come after the deadline do not prolong the wait.
            late = ended.timed_out() || deadline.is_over();
        }
    }

    fn wait_until<G: ConditionGuard>(&self, guard: G, deadline: Deadline) -> Timed<G> {
        if !guard.is_held() {
            return Err(LockError::Failed(Fault::Forked));
        }
        if let Err(fault) = identify(core::ptr::from_ref(self).addr()) {
            return Err(LockError::Failed(fault));
        }
        let sleep = self.signal.arm(); // keeps I1
        let lock = guard.release_for_wait();
        let ended = WaitTimeoutResult(!self.signal.wait_for_notification(sleep, deadline));
        match G::acquire_after_wait(lock) {
            Ok(guard) => Ok((guard, ended)),
            Err(error) => Err(error.map(|guard| (guard, ended))),
        }
    }

    /// Ends the wait of one waiting thread, if there is one. Never blocks.
    ///
    /// This and the two other notifications are async-signal-safe with the futex backend.
    #[inline]
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Ends the wait of `n` waiting threads, or of all if they are fewer. Never blocks.
    ///
    /// Threads that have just begun to wait, and do not sleep yet, may also return.
    #[inline]
    pub fn notify(&self, n: u32) {
        if self.signal.is_armed() && n > 0 {
            self.signal.notify(n); // keeps I3
        }
    }

    /// Ends the wait of every waiting thread. Never blocks.
    #[inline]
    pub fn notify_all(&self) {
        self.notify(u32::MAX);
    }
}

impl Default for Condition {
    fn default() -> Self {
        Condition::new()
    }
}

// SAFETY: `repr(C)`; a signal, which is two atomics, for which any bytes are valid.
#[expect(unsafe_code, reason = "promises that the bytes may be shared")]
unsafe impl Shareable for Condition {
    const FINGERPRINT: u64 = begin::<Self>(b"Condition 1");
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Condition", &[])
    }
    fn place(&self) {
        self.signal.place();
    }
    fn recover(&self, dead: &Dead) {
        // Unlike most other waits, this one has no state that would tell it to sleep on.
        if !dead.clean {
            self.signal.wake_all();
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").field("signal", &self.signal).finish()
    }
}

/// A guard that can [wait](Condition::wait): [`LockGuard`], [`ReentrantLockGuard`], or an
/// [`Owned`](crate::Owned) of one of them.
pub trait ConditionGuard: sealed::Guard {}
impl<T: Plain> ConditionGuard for LockGuard<'_, T> {}
impl<T: Plain> ConditionGuard for ReentrantLockGuard<'_, T> {}

pub(crate) mod sealed {
    use crate::lock::LockError;
    use crate::shareable::Plain;

    /// A guard whose lock can be released for a while.
    pub trait Guard: Sized {
        /// The value under the lock.
        type Value: Plain;
        /// What is needed to acquire the lock again.
        type Lock;
        /// Whether the calling thread holds the lock.
        fn is_held(&self) -> bool;
        /// Calls `question` with the value.
        fn ask(&mut self, question: &mut impl FnMut(&mut Self::Value) -> bool) -> bool;
        fn release_for_wait(self) -> Self::Lock;
        fn acquire_after_wait(lock: Self::Lock) -> Result<Self, LockError<Self>>;
    }
}

impl<'a, T: Plain> sealed::Guard for LockGuard<'a, T> {
    type Value = T;
    type Lock = (&'a Lock<T>, bool);
    fn is_held(&self) -> bool {
        self.lock.word.is_mine()
    }
    fn ask(&mut self, question: &mut impl FnMut(&mut T) -> bool) -> bool {
        question(self)
    }
    fn release_for_wait(self) -> Self::Lock {
        LockGuard::release_for_wait(self)
    }
    fn acquire_after_wait((lock, panicking): Self::Lock) -> Result<Self, LockError<Self>> {
        lock.acquire_after_wait(panicking)
    }
}

impl<'a, T: Plain> sealed::Guard for ReentrantLockGuard<'a, T> {
    type Value = T;
    type Lock = (&'a Lock<T>, bool, u32);
    fn is_held(&self) -> bool {
        ReentrantLockGuard::is_held(self)
    }
    fn ask(&mut self, question: &mut impl FnMut(&mut T) -> bool) -> bool {
        let mut value = self.get();
        let answer = question(&mut value);
        self.set(value);
        answer
    }
    fn release_for_wait(self) -> Self::Lock {
        ReentrantLockGuard::release_for_wait(self)
    }
    fn acquire_after_wait(lock: Self::Lock) -> Result<Self, LockError<Self>> {
        ReentrantLockGuard::acquire_after_wait(lock)
    }
}
