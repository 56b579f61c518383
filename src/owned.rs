//! Guards, permits and deliveries that keep their memory mapped.

// # How it works
// `Shared::owned` calls a verb with a reference whose lifetime it extends to `'static`, and stores
// the guard beside a clone of the handle. That is sound:
// - O1. The fields of `Owned` are dropped in order: the guard before the handle.
// - O2. The verb works for every lifetime. So it cannot keep the reference elsewhere. It can return
//   the reference only within what `Keep` admits: guards, which are stored in an `Owned`, and
//   errors without references.
// - O3. No caller gets the guard with its `'static` lifetime, by value or by reference. A caller
//   gets the guarded value (`Deref`), or the guard with a lifetime that ends with the call.
// - O4. If an `Owned` is forgotten, its handle is forgotten too, and the mapping stays.
#![expect(unsafe_code, reason = "extends the lifetime of a guard that lies beside its handle")]
use crate::condition::{ConditionGuard, sealed};
use crate::error::{Fault, TimeoutError};
use crate::latch::{LatchError, Member};
use crate::lock::{LockError, LockGuard, MarkConsistent};
use crate::locked_slice::LockedSliceGuard;
#[cfg(feature = "serde")]
use crate::queue::ValueDelivery;
use crate::queue::bytes::{Delivery as BytesDelivery, Loan as BytesLoan, Ref as BytesRef};
use crate::queue::channel::{Channel, Kind, Receiver};
use crate::queue::{Delivery, Loan, Ref};
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::reentrant::ReentrantLockGuard;
use crate::rwlock::{ReadGuard, WriteGuard};
use crate::semaphore::{OwnedPermit, Permit};
use crate::shareable::{Plain, Shareable};
use crate::shared::Shared;
use core::fmt;
use core::mem::{ManuallyDrop, transmute_copy};
use core::ops::{Deref, DerefMut};

/// A guard, permit or delivery together with a handle that keeps its memory mapped.
///
/// [`Shared::owned`] and [`Receiver::owned`] make one. It dereferences to the guarded value. Unlike
/// the guard it borrows nothing, so it can be a field of a struct, beside the handle or without it.
/// It can move to another thread if the guard can. Permits and deliveries can. The guards of locks
/// cannot, because a lock belongs to the thread that acquired it.
///
/// Dropping it drops the guard and then the handle. In a process made by `fork`, a copy does
/// nothing, like a copy of the guard.
///
/// [`Condition::wait`](crate::Condition::wait) also accepts the owned guard of a lock.
///
/// ```
/// use outlast::{Lock, LockGuard, Owned, Shared};
///
/// struct Turn {
///     guard: Owned<LockGuard<'static, u64>, Lock<u64>>,
/// }
///
/// let here = Shared::anonymous(Lock::new(1_u64))?;
/// let there = Shared::<Lock<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
/// let mut turn = Turn { guard: here.owned(Lock::lock)? };
/// drop(here); // the guard keeps the mapping
/// *turn.guard += 41;
/// drop(turn);
/// assert_eq!(*there.lock()?, 42);
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// ```compile_fail,E0277
/// # use outlast::{Lock, LockGuard, Owned};
/// fn moves_into_a_thread<T: Send>() {}
/// moves_into_a_thread::<Owned<LockGuard<'static, u64>, Lock<u64>>>();
/// ```
///
/// # Death
/// As for the guard: see the type whose verb was called.
#[must_use = "the guard is dropped immediately if this is not kept"]
pub struct Owned<G, T: ?Sized + Shareable> {
    guard: G,
    // After the guard: O1.
    shared: Shared<T>,
}

impl<T: ?Sized + Shareable + Sync + 'static> Shared<T> {
    /// Calls a verb that returns a guard, and returns a guard that owns a clone of this handle.
    ///
    /// The result has the shape of the verb's result, with each guard in an [`Owned`]. This works
    /// for locks, semaphores, latches, deliveries, and messages that are read or written in place.
    /// The ends of channels, rings and pipes own their handle if they are taken from a `Shared`.
    ///
    /// ```
    /// use outlast::{Owned, Queue, Shared};
    ///
    /// let here = Shared::<Queue<u64>>::with_capacity(4)?;
    /// let there = Shared::<Queue<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// there.send(7)?;
    /// let job = here.owned(Queue::recv_ack)?;
    /// let worker = std::thread::spawn(move || {
    ///     assert_eq!(*job, 7);
    ///     Owned::finish(job, |job| job.ack())
    /// });
    /// assert_eq!(worker.join().unwrap()?, 7);
    /// there.join()?;
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn owned<F>(&self, verb: F) -> <<F as Verb<'static, T>>::Output as Keep<T>>::Kept
    where
        F: for<'a> Verb<'a, T>,
        <F as Verb<'static, T>>::Output: Keep<T>,
    {
        verb(self.as_static()).keep(self)
    }

    /// Like [`owned`](Self::owned), for a verb with one argument, such as a timeout.
    ///
    /// ```
    /// use outlast::{Lock, LockError, Shared};
    /// use std::time::Duration;
    ///
    /// let lock = Shared::anonymous(Lock::new(0_u64))?;
    /// let guard = lock.owned_with(Lock::lock_timeout, Duration::from_secs(10))?;
    /// let other = lock.clone();
    /// let late = std::thread::spawn(move || {
    ///     let taken = other.owned_with(Lock::lock_timeout, Duration::from_millis(10));
    ///     matches!(taken, Err(LockError::TimedOut { .. }))
    /// });
    /// assert!(late.join().unwrap());
    /// # drop(guard);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn owned_with<A, F>(
        &self,
        verb: F,
        argument: A,
    ) -> <<F as VerbWith<'static, T, A>>::Output as Keep<T>>::Kept
    where
        F: for<'a> VerbWith<'a, T, A>,
        <F as VerbWith<'static, T, A>>::Output: Keep<T>,
    {
        verb(self.as_static(), argument).keep(self)
    }

    /// A reference for a verb whose guard is kept beside a clone of this handle.
    fn as_static(&self) -> &'static T {
        let value: &T = self;
        // SAFETY: only `owned` and `owned_with` use the reference, and `self` keeps the value
        // mapped during the call. After that the guard has it, beside a clone of `self` (O1 to O4).
        unsafe { &*core::ptr::from_ref(value) }
    }
}

impl<C: Kind + ?Sized + 'static> Receiver<C> {
    /// Calls a verb of this receiver that returns a delivery or a message, and returns a delivery
    /// that keeps the channel mapped: see [`Shared::owned`].
    ///
    /// The delivery does not keep the receivers' end: the receiver can be dropped before it.
    ///
    /// ```
    /// use outlast::{Channel, Owned, Queue, Receiver, Shared};
    ///
    /// let here = Shared::<Channel<Queue<u64>>>::with_capacity(4)?;
    /// // As another process would:
    /// let there = Shared::<Channel<Queue<u64>>>::from_fd(here.try_clone_fd()?)?;
    /// let receiver = there.receiver()?;
    /// here.sender()?.send(7)?;
    /// let job = receiver.owned(Receiver::recv_ack)?;
    /// let worker = std::thread::spawn(move || Owned::finish(job, |job| job.ack()));
    /// assert_eq!(worker.join().unwrap()?, 7);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn owned<F>(
        &self,
        verb: F,
    ) -> <<F as Verb<'static, Self>>::Output as Keep<Channel<C>>>::Kept
    where
        F: for<'a> Verb<'a, Self>,
        <F as Verb<'static, Self>>::Output: Keep<Channel<C>>,
    {
        verb(self.as_static()).keep(self.pointer())
    }

    /// Like [`owned`](Self::owned), for a verb with one argument, such as a timeout.
    pub fn owned_with<A, F>(
        &self,
        verb: F,
        argument: A,
    ) -> <<F as VerbWith<'static, Self, A>>::Output as Keep<Channel<C>>>::Kept
    where
        F: for<'a> VerbWith<'a, Self, A>,
        <F as VerbWith<'static, Self, A>>::Output: Keep<Channel<C>>,
    {
        verb(self.as_static(), argument).keep(self.pointer())
    }

    /// A reference for a verb whose guard is kept beside the channel's handle.
    fn as_static(&self) -> &'static Self {
        // SAFETY: only `owned` and `owned_with` use the reference, and `self` lives during the
        // call. The guards that a receiver returns refer to the channel's memory and not to the
        // receiver. Each is stored beside a clone of the channel's handle (O1 to O4).
        unsafe { &*core::ptr::from_ref(self) }
    }
}

impl<G: Guard, T: ?Sized + Shareable> Owned<G, T> {
    /// Returns the handle that keeps the memory mapped.
    pub fn shared(owned: &Self) -> &Shared<T> {
        &owned.shared
    }

    /// Calls a method of the guard itself.
    ///
    /// ```
    /// use outlast::{Owned, Queue, Shared};
    /// let queue = Shared::<Queue<u64>>::with_capacity(4)?;
    /// queue.send(7)?;
    /// let mut job = queue.owned(Queue::recv_ack)?;
    /// assert_eq!(Owned::with(&mut job, |job| job.attempts()), 0);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    pub fn with<R>(owned: &mut Self, act: impl for<'a> FnOnce(&mut G::At<'a>) -> R) -> R {
        let guard = core::ptr::from_mut(&mut owned.guard).cast::<G::At<'_>>();
        // SAFETY: this is the same type with a shorter lifetime, as `Guard` promises, and it is
        // borrowed exclusively. The closure works for every lifetime, so a guard that it puts there
        // instead is `'static`.
        act(unsafe { &mut *guard })
    }

    /// Calls a method of the guard that consumes it, and then drops the handle.
    ///
    /// For example `Owned::finish(delivery, |delivery| delivery.ack())`.
    pub fn finish<R>(owned: Self, act: impl for<'a> FnOnce(G::At<'a>) -> R) -> R {
        let Owned { guard, shared } = owned;
        let guard = ManuallyDrop::new(guard);
        // SAFETY: this is the same type with a shorter lifetime, as `Guard` promises, and the
        // original is not used again.
        let guard = unsafe { transmute_copy::<G, G::At<'_>>(&guard) };
        let result = act(guard);
        drop(shared); // keeps O1
        result
    }
}

impl<G: Guard + Deref, T: ?Sized + Shareable> Deref for Owned<G, T> {
    type Target = G::Target;
    #[inline(always)]
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: Guard + DerefMut, T: ?Sized + Shareable> DerefMut for Owned<G, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<G: Guard + MarkConsistent, T: ?Sized + Shareable> Owned<G, T> {
    /// Declares the value consistent again after the death or panic of an owner.
    pub fn mark_consistent(&mut self) {
        self.guard.mark_consistent();
    }
}

impl<G: Guard + MarkConsistent, T: ?Sized + Shareable> MarkConsistent for Owned<G, T> {
    fn mark_consistent(&mut self) {
        Owned::mark_consistent(self);
    }
}

impl<G: Guard + ConditionGuard, T: ?Sized + Shareable> ConditionGuard for Owned<G, T> {}

impl<G: Guard + ConditionGuard, T: ?Sized + Shareable> sealed::Guard for Owned<G, T> {
    type Value = G::Value;
    // While the lock is released, the handle keeps it mapped.
    type Lock = (G::Lock, Shared<T>);
    fn is_held(&self) -> bool {
        self.guard.is_held()
    }
    fn ask(&mut self, question: &mut impl FnMut(&mut G::Value) -> bool) -> bool {
        self.guard.ask(question)
    }
    fn release_for_wait(self) -> Self::Lock {
        (self.guard.release_for_wait(), self.shared)
    }
    fn acquire_after_wait((lock, shared): Self::Lock) -> Result<Self, LockError<Self>> {
        match G::acquire_after_wait(lock) {
            Ok(guard) => Ok(Owned { guard, shared }),
            Err(error) => Err(error.map(|guard| Owned { guard, shared })),
        }
    }
}

impl<G: Guard + fmt::Debug, T: ?Sized + Shareable> fmt::Debug for Owned<G, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owned").field(&self.guard).finish()
    }
}

/// A guard, permit or delivery that an [`Owned`] can keep.
///
/// # Safety
/// - `At<'a>` is the same type with the lifetime `'a`, and `Self` is `At<'static>`.
/// - If it implements `Deref`, the target does not depend on the lifetime.
pub unsafe trait Guard: Sized + 'static {
    /// The guard with another lifetime.
    type At<'a>;
}

macro_rules! guards {
    ($($guard:ident $(<$value:ident>)?)*) => {$(
        // SAFETY: the lifetime is the type's parameter. If the type dereferences, it is to plain
        // data or a slice of plain data.
        unsafe impl$(<$value: Plain>)? Guard for $guard<'static $(, $value)?> {
            type At<'a> = $guard<'a $(, $value)?>;
        }
    )*};
}
guards! {
    LockGuard<V> LockedSliceGuard<V> ReentrantLockGuard<V> ReadGuard<V> WriteGuard<V>
    Permit OwnedPermit Member
    BytesLoan BytesRef BytesDelivery
}

macro_rules! guards_of_levels {
    ($($guard:ident)*) => {$(
        // SAFETY: as above.
        unsafe impl<V: Plain, const LEVELS: usize> Guard for $guard<'static, V, LEVELS> {
            type At<'a> = $guard<'a, V, LEVELS>;
        }
    )*};
}
guards_of_levels! { Delivery Loan Ref }

// SAFETY: the lifetime is the type's parameter, and the target `V` is `'static`.
#[cfg(feature = "serde")]
unsafe impl<V: 'static> Guard for ValueDelivery<'static, V> {
    type At<'a> = ValueDelivery<'a, V>;
}

/// A function that takes a reference to a shared value.
pub trait Verb<'a, T: ?Sized + 'a>: FnOnce(&'a T) -> <Self as Verb<'a, T>>::Output {
    /// The return type.
    type Output;
}

impl<'a, T: ?Sized + 'a, F: FnOnce(&'a T) -> R, R> Verb<'a, T> for F {
    type Output = R;
}

/// A function that takes a reference to a shared value, and an argument.
pub trait VerbWith<'a, T: ?Sized + 'a, A>:
    FnOnce(&'a T, A) -> <Self as VerbWith<'a, T, A>>::Output
{
    /// The return type.
    type Output;
}

impl<'a, T: ?Sized + 'a, A, F: FnOnce(&'a T, A) -> R, R> VerbWith<'a, T, A> for F {
    type Output = R;
}

/// The result of a verb: guards in results and options, and errors.
pub trait Keep<T: ?Sized + Shareable> {
    /// The same result with each guard in an [`Owned`].
    type Kept;
    /// Puts each guard beside a clone of `shared`.
    fn keep(self, shared: &Shared<T>) -> Self::Kept;
}

impl<G: Guard, T: ?Sized + Shareable> Keep<T> for G {
    type Kept = Owned<G, T>;
    fn keep(self, shared: &Shared<T>) -> Owned<G, T> {
        Owned { guard: self, shared: shared.clone() }
    }
}

impl<K: Keep<T>, T: ?Sized + Shareable> Keep<T> for Option<K> {
    type Kept = Option<K::Kept>;
    fn keep(self, shared: &Shared<T>) -> Self::Kept {
        self.map(|kept| kept.keep(shared))
    }
}

impl<K: Keep<T>, E: Keep<T>, T: ?Sized + Shareable> Keep<T> for Result<K, E> {
    type Kept = Result<K::Kept, E::Kept>;
    fn keep(self, shared: &Shared<T>) -> Self::Kept {
        self.map(|kept| kept.keep(shared)).map_err(|error| error.keep(shared))
    }
}

impl<G: Guard, T: ?Sized + Shareable> Keep<T> for LockError<G> {
    type Kept = LockError<Owned<G, T>>;
    fn keep(self, shared: &Shared<T>) -> Self::Kept {
        self.map(|guard| guard.keep(shared))
    }
}

macro_rules! errors {
    ($($error:ty)*) => {$(
        impl<T: ?Sized + Shareable> Keep<T> for $error {
            type Kept = Self;
            fn keep(self, _shared: &Shared<T>) -> Self {
                self
            }
        }
    )*};
}
errors! {
    Fault TimeoutError LatchError RecvError TryRecvError RecvTimeoutError
    SendError<()> TrySendError<()> SendTimeoutError<()>
}
