//! The atomics and the clock, of the standard library or of loom.

#[cfg(not(outlast_loom))]
mod imp {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::compiler_fence;
    use std::time::Instant;
    pub(crate) mod atomic {
        #[cfg(feature = "process")]
        pub(crate) use core::sync::atomic::AtomicPtr;
        pub(crate) use core::sync::atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }

    /// Memory whose owner changes by a protocol of this crate, which the borrow checker cannot see.
    #[repr(transparent)]
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    // A panic leaves shared memory in the same state as a death, which each protocol repairs or
    // reports.
    impl<T> core::panic::RefUnwindSafe for UnsafeCell<T> {}

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            UnsafeCell(core::cell::UnsafeCell::new(value))
        }
        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }
        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Returns the time of the monotonic clock.
    #[inline]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Whether threads spin before they sleep. It is useful, because other threads run meanwhile.
    pub(crate) const SPINS: bool = true;

    /// The number of readers of an `RwLock` that have a slot of their own.
    pub(crate) const READERS: usize = 32;

    /// The number of words of text in a record of a `Journal`.
    pub(crate) const RECORD_WORDS: usize = 60;

    /// The number of processes that can hold one side of a channel.
    pub(crate) const HOLDERS: usize = 64;

    /// The number of messages of one queue that can be in flight at a time.
    pub(crate) const IN_FLIGHT: usize = 64;

    /// The fence between a `SeqCst` exchange of a word and a `SeqCst` load of another word. If each
    /// of two threads does this with the words swapped, at least one must see the exchange of the
    /// other.
    ///
    /// No fence is needed here. All four accesses are in one total order. The last load in it comes
    /// after both exchanges, so it sees the exchange of the other thread, or a later value.
    #[inline(always)]
    pub(crate) fn between_exchange_and_load() {}
}

#[cfg(outlast_loom)]
mod imp {
    use core::cell::Cell;
    use core::ops::Deref;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::LazyLock;
    use std::time::Instant;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) mod atomic {
        use super::Mortal;
        use loom::sync::atomic;

        pub(crate) use loom::sync::atomic::{Ordering, fence};
        pub(crate) type AtomicU32 = Mortal<atomic::AtomicU32>;
        pub(crate) type AtomicU64 = Mortal<atomic::AtomicU64>;
        pub(crate) type AtomicUsize = Mortal<atomic::AtomicUsize>;
    }

    /// Returns the time of a clock that stands still. If it moved, a model would behave differently
    /// each time it is slow. Waits end when the kernel of the model ends them.
    pub(crate) fn now() -> Instant {
        static ALWAYS: LazyLock<Instant> = LazyLock::new(Instant::now);
        *ALWAYS
    }

    /// Whether threads spin. It would only multiply the states that loom must visit.
    pub(crate) const SPINS: bool = false;

    /// The smallest number with which two threads can want the same slot first.
    pub(crate) const READERS: usize = 2;

    /// The smallest number with which a record can be torn.
    pub(crate) const RECORD_WORDS: usize = 2;

    /// The number of threads of a model.
    pub(crate) const HOLDERS: usize = 3;

    /// So few that a queue fits on the stack of a model.
    pub(crate) const IN_FLIGHT: usize = 4;

    /// A fence: loom treats `SeqCst` accesses as Acquire and Release, but knows a `SeqCst` fence.
    pub(crate) fn between_exchange_and_load() {
        atomic::fence(atomic::Ordering::SeqCst);
    }

    /// Does nothing: in a model no compiler moves an atomic operation.
    pub(crate) fn compiler_fence(_order: atomic::Ordering) {}

    /// An atomic. The calling thread may be killed before each of its operations.
    #[derive(Debug, Default)]
    pub struct Mortal<A>(A);

    impl<A> Mortal<A> {
        /// Returns the atomic itself, unless the calling thread is killed here.
        pub(crate) fn alive(&self) -> &A {
            LIFE.with(|life| match life.get() {
                Life::Immortal => {}
                Life::Left(0) => {
                    life.set(Life::Over);
                    resume_unwind(Box::new(Killed));
                }
                Life::Left(operations) => life.set(Life::Left(operations - 1)),
                Life::Over => unreachable!("the dead do nothing"),
            });
            &self.0
        }

        /// Returns the atomic itself, for the kernel of the model.
        pub(crate) fn immortal(&self) -> &A {
            &self.0
        }
    }

    impl<A> Deref for Mortal<A> {
        type Target = A;
        fn deref(&self) -> &A {
            self.alive()
        }
    }

    macro_rules! atomics {
        ($($atomic:ident $number:ty)*) => {$(
            impl atomic::$atomic {
                pub(crate) fn new(value: $number) -> Self {
                    Mortal(loom::sync::atomic::$atomic::new(value))
                }
            }
        )*};
    }
    atomics!(AtomicU32 u32 AtomicU64 u64);

    impl atomic::AtomicU32 {
        /// Stores by an exchange. Loom does not order a plain store and a concurrent exchange of
        /// the old value, so a reader that must see the store could see the exchange. It would
        /// report a fault of `Signal` that no machine can have.
        pub(crate) fn store(&self, value: u32, order: atomic::Ordering) {
            self.alive().swap(value, order);
        }
    }

    /// How long a thread lives.
    #[derive(Clone, Copy)]
    enum Life {
        Immortal,
        /// It is killed after this number of atomic operations.
        Left(u32),
        Over,
    }

    /// The payload with which a killed thread unwinds.
    struct Killed;

    loom::thread_local! {
        static LIFE: Cell<Life> = Cell::new(Life::Immortal);
    }

    /// Runs `act`, and kills the thread after `life` atomic operations. A killed thread releases
    /// nothing. Returns `None` if it was killed.
    pub(crate) fn until_killed<R>(life: u32, act: impl Fn() -> R) -> Option<R> {
        LIFE.with(|left| left.set(Life::Left(life)));
        let result = catch_unwind(AssertUnwindSafe(act));
        LIFE.with(|left| left.set(Life::Over));
        match result {
            Ok(result) => Some(result),
            Err(payload) if payload.is::<Killed>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }

    /// Returns whether the calling thread was killed, and is only unwinding.
    pub(crate) fn is_dead() -> bool {
        LIFE.with(|life| matches!(life.get(), Life::Over))
    }
}

pub(crate) use imp::*;

/// A number other than 0 that is computed at the first use. Several threads may compute it at the
/// same time.
///
/// A `OnceLock` would not do: if a child is forked while another thread is in it, the child would
/// wait for that thread for ever.
#[derive(Debug)]
pub(crate) struct Kept(core::sync::atomic::AtomicU32);

impl Kept {
    pub(crate) const fn new() -> Self {
        Kept(core::sync::atomic::AtomicU32::new(0))
    }

    #[inline]
    pub(crate) fn get(&self, find_out: fn() -> u32) -> u32 {
        use core::sync::atomic::Ordering::Relaxed;
        match self.0.load(Relaxed) {
            0 => {
                let found = find_out();
                self.0.store(found, Relaxed);
                found
            }
            known => known,
        }
    }
}
