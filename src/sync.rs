//! The one place where `std` and loom atomics differ.

#[cfg(not(outlast_loom))]
mod imp {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::compiler_fence;
    pub(crate) mod atomic {
        pub(crate) use core::sync::atomic::{
            AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }

    /// Memory that a protocol of this crate, not the borrow checker, hands from owner to owner.
    #[repr(transparent)]
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

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

    /// Spinning is worth while: other threads run meanwhile.
    pub(crate) const SPINS: bool = true;
}

#[cfg(outlast_loom)]
mod imp {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) mod atomic {
        pub(crate) use loom::sync::atomic::{
            AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }
    /// Orders this thread against a signal or a kill, which loom does not model.
    pub(crate) fn compiler_fence(_: atomic::Ordering) {}

    /// Spinning only multiplies the states that the model checker must visit.
    pub(crate) const SPINS: bool = false;
}

pub(crate) use imp::*;
