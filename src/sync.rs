//! The one place where `std` and loom differ: atomics, and the clock.

#[cfg(not(outlast_loom))]
mod imp {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::compiler_fence;
    use std::time::Instant;
    pub(crate) mod atomic {
        pub(crate) use core::sync::atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }

    /// Memory that a protocol of this crate, not the borrow checker, hands from owner to owner.
    #[repr(transparent)]
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    // A panic leaves shared memory as a death does, and each protocol repairs or reports that.
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

    /// The monotonic clock.
    #[inline]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Spinning is worth while: other threads run meanwhile.
    pub(crate) const SPINS: bool = true;

    /// Readers of an `RwLock` that have a slot each.
    pub(crate) const READERS: usize = 32;

    /// Words of text in a record of a `Journal`.
    pub(crate) const RECORD_WORDS: usize = 60;

    /// Processes that hold one side of a channel.
    pub(crate) const HOLDERS: usize = 64;

    /// Messages of one queue that can be delivered and unacknowledged at a time.
    pub(crate) const IN_FLIGHT: usize = 64;

    /// Between a `SeqCst` exchange and a `SeqCst` load of another word, of which one in each of two
    /// threads must see the other's exchange.
    ///
    /// Here nothing is needed. All four accesses have a place in one order; the load that comes
    /// last in it comes after both exchanges, and so sees the other's, or something later.
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

    /// A clock that stands still: if it went on, a model would take another way each time it is
    /// slow. Waits end when the model's kernel says so.
    pub(crate) fn now() -> Instant {
        static ALWAYS: LazyLock<Instant> = LazyLock::new(Instant::now);
        *ALWAYS
    }

    /// Spinning only multiplies the states that the model checker must visit.
    pub(crate) const SPINS: bool = false;

    /// As few as can be told apart, with threads that have the same one first.
    pub(crate) const READERS: usize = 2;

    /// Enough for a record to be torn.
    pub(crate) const RECORD_WORDS: usize = 2;

    /// As few as a model has threads.
    pub(crate) const HOLDERS: usize = 3;

    /// So that a queue fits on the stack of a model.
    pub(crate) const IN_FLIGHT: usize = 4;

    /// Loom gives `SeqCst` accesses the order of Acquire and Release only, but knows the fence.
    pub(crate) fn between_exchange_and_load() {
        atomic::fence(atomic::Ordering::SeqCst);
    }

    /// The model has no compiler that would move an atomic operation.
    pub(crate) fn compiler_fence(_order: atomic::Ordering) {}

    /// An atomic before each of whose operations the calling thread may be killed.
    #[derive(Debug, Default)]
    pub struct Mortal<A>(A);

    impl<A> Mortal<A> {
        /// The atomic itself, if the calling thread lives on.
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

        /// The atomic itself, for the kernel.
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
        /// A store that has one place in the order of all changes. To loom a plain store and a
        /// concurrent exchange of the value before it are unordered, so that a reader who must see
        /// the store could see the exchange: an alarm about a `Signal` that no machine can give.
        pub(crate) fn store(&self, value: u32, order: atomic::Ordering) {
            self.alive().swap(value, order);
        }
    }

    /// What is left of a thread's life.
    #[derive(Clone, Copy)]
    enum Life {
        Immortal,
        /// So many atomic operations.
        Left(u32),
        Over,
    }

    /// What a killed thread unwinds with.
    struct Killed;

    loom::thread_local! {
        static LIFE: Cell<Life> = Cell::new(Life::Immortal);
    }

    /// Runs `act`, and kills the thread after `life` atomic operations: nothing that it holds is
    /// given up. `None` if it was killed.
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

    /// Whether the calling thread was killed, and is only unwinding.
    pub(crate) fn is_dead() -> bool {
        LIFE.with(|life| matches!(life.get(), Life::Over))
    }
}

pub(crate) use imp::*;

/// A number, not 0, that is found out once, or by several threads at once. (Not a `OnceLock`: a
/// child forked while another thread is in it would wait for that thread for ever.)
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
