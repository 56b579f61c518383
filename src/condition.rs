//! Waiting until what a lock guards has changed.
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
//! # State
//! A signal (`wait/signal.rs`): a sequence word, which every notify moves, and whether anybody may
//! be waiting (*armed*).
//!
//! | armed | sequence | a waiter that armed at number n |
//! |---|---|---|
//! | yes | n | sleeps, or is about to |
//! | yes | not n | has been notified: it returns, or does not fall asleep |
//! | no | n | cannot be: only a notify that moves the sequence disarms |
//! | no | not n | as above |
//!
//! # Invariants
//! - I1. A waiter reads its number and arms before it gives its lock up, in this order.
//! - I2. It sleeps only while the sequence is that number, and returns only if it is another, or
//!   too late.
//! - I3. A notify that finds it armed moves the sequence and wakes, in one system call.
//! - I4. It is disarmed only by a notify that found nobody asleep, and only if nobody has armed
//!   meanwhile (the signal's I2).
//!
//! # Ordering
//! A notify reads *armed* without a fence, and that is enough: whoever changes what the waiters
//! look at has had the lock after those that have given it up, and sees their arming as it sees all
//! that they did before (I1); a waiter that takes the lock later sees the change, and does not
//! wait. What was written before the notify is seen through the lock.
//!
//! # Death
//! A waiter killed asleep leaves *armed*, which costs the next notify a system call. One that was
//! woken and is killed before it could act has swallowed the wake; a notifier that is killed before
//! its notify has changed what nobody will hear of. So recovery moves the sequence and wakes
//! everybody: all waiters return, as if notified, and look again. If the dead one had the lock, the
//! kernel has given it up, and the waiter's return says so.
//!
//! A peer that leaves (by exit, `leave` or its last drop) is not dead, and wakes nobody: a waiter
//! counts on a reason for its return.
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

/// Where processes wait until what a [`Lock`] or [`ReentrantLock`](crate::ReentrantLock) guards has
/// changed.
///
/// A wait returns after a notify that came while it waited, after the death of any process of the
/// segment, or at its deadline; never for no reason. A process that exits, or drops its handles,
/// does not end the waits of others. If threads of it wait at its exit, it may take with it the
/// notifications that they have got.
///
/// When the wait returns, the condition may be false again, or another thread may have acted on it.
/// Test it in a loop, or let [`wait_while`](Condition::wait_while) do that.
///
/// A notify need not hold the lock, and makes no system call unless somebody waits; but change what
/// the waiters look at under the lock. Use a condition with one lock.
#[repr(C)]
#[doc(alias = "Condvar")]
pub struct Condition {
    signal: Signal,
}

/// Whether a wait ended because its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was up, and no notify had come.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

type Timed<G> = Result<(G, WaitTimeoutResult), LockError<(G, WaitTimeoutResult)>>;

/// What a wait without a deadline gives.
fn untimed<G>(ended: Timed<G>) -> Result<G, LockError<G>> {
    match ended {
        Ok((guard, _)) => Ok(guard),
        Err(error) => Err(error.map(|(guard, _)| guard)),
    }
}

impl Condition {
    /// A condition that nobody waits for, to be moved into shared memory.
    #[must_use]
    pub fn new() -> Self {
        Condition { signal: Signal::new() }
    }

    verbs! {
        /// Releases the lock, blocks until a notify, and acquires the lock again.
        ///
        /// A [`ReentrantLock`](crate::ReentrantLock) is released with all its levels, and has as
        /// many afterwards.
        ///
        /// # Errors
        /// - [`LockError::OwnerDied`], [`LockError::Poisoned`]: what acquiring the lock again has
        ///   found; it is acquired, and the guard is inside.
        /// - [`LockError::Failed`]: see [`Fault`]; the guard is dropped. The call did not block if
        ///   this process could not become a peer of the segment, or the guard is a copy made by
        ///   fork ([`Fault::Forked`]).
        pub fn wait<G: ConditionGuard>(&self, guard: G) -> Result<G, LockError<G>>
            = |deadline| untimed(self.wait_until(guard, deadline));
        /// Returns whether it timed out beside the guard. It can take longer, as the lock is
        /// acquired again in any case, even if the time has passed at the beginning.
        wait_timeout, wait_deadline -> Timed<G> = |deadline| self.wait_until(guard, deadline);
    }

    /// Blocks while `condition` returns `true`. It is called first, and again after each notify.
    ///
    /// With a [`ReentrantLock`](crate::ReentrantLock) it gets a copy of the value, which is written
    /// back.
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
    /// As [`wait`](Self::wait), immediately: then `condition` may still be true.
    #[doc(alias = "wait_for")]
    pub fn wait_while<G: ConditionGuard>(
        &self,
        guard: G,
        condition: impl FnMut(&mut G::Value) -> bool,
    ) -> Result<G, LockError<G>> {
        untimed(self.wait_until_while(guard, Deadline::NEVER, condition))
    }

    /// Like [`wait_while`](Self::wait_while), but blocks for at most `timeout`. Returns whether it
    /// timed out, with `condition` still true, beside the guard.
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
            // Notifies that come too late do not go on for ever.
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
        let lock = guard.give_up();
        let ended = WaitTimeoutResult(!self.signal.wait_for_notification(sleep, deadline));
        match G::take_again(lock) {
            Ok(guard) => Ok((guard, ended)),
            Err(error) => Err(error.map(|guard| (guard, ended))),
        }
    }

    /// Ends the wait of one that waits, if anybody does. Never blocks.
    ///
    /// Async-signal-safe with futexes, as the other two.
    #[inline]
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Ends the wait of `n` that wait, or of all if they are fewer. Never blocks.
    ///
    /// Of those that have just begun to wait, and do not sleep yet, more may come along.
    #[inline]
    pub fn notify(&self, n: u32) {
        if self.signal.is_armed() && n > 0 {
            self.signal.notify(n); // keeps I3
        }
    }

    /// Ends the wait of all that wait. Never blocks.
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

// SAFETY: `repr(C)`; a signal, two atomics for which any bytes will do.
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
        // Unlike most other waits, this one does not look at a state that would tell it to sleep
        // on.
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

    /// A lock that can be given up for a while.
    pub trait Guard: Sized {
        /// What the lock guards.
        type Value: Plain;
        /// What is needed to take it again.
        type Lock;
        /// Whether the calling thread has the lock.
        fn is_held(&self) -> bool;
        /// Asks about the value.
        fn ask(&mut self, question: &mut impl FnMut(&mut Self::Value) -> bool) -> bool;
        fn give_up(self) -> Self::Lock;
        fn take_again(lock: Self::Lock) -> Result<Self, LockError<Self>>;
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
    fn give_up(self) -> Self::Lock {
        LockGuard::give_up(self)
    }
    fn take_again((lock, panicking): Self::Lock) -> Result<Self, LockError<Self>> {
        lock.take_again(panicking)
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
    fn give_up(self) -> Self::Lock {
        ReentrantLockGuard::give_up(self)
    }
    fn take_again(lock: Self::Lock) -> Result<Self, LockError<Self>> {
        ReentrantLockGuard::take_again(lock)
    }
}
