//! The signal mask of the calling thread.
#![expect(unsafe_code, reason = "calls the C library")]
use core::ffi::c_int;

/// A set of blocked signals.
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    /// Returns the set of these signals.
    pub(crate) fn of(signals: &[c_int]) -> Mask {
        let mut mask = Mask::written(|set| {
            // SAFETY: empties the live set.
            unsafe { libc::sigemptyset(set) };
        });
        for &signal in signals {
            // SAFETY: adds to the set emptied above.
            unsafe { libc::sigaddset(&raw mut mask.0, signal) };
        }
        mask
    }

    /// Returns the set of all signals except these.
    pub(crate) fn all_but(signals: &[c_int]) -> Mask {
        let mut mask = Mask::written(|set| {
            // SAFETY: fills the live set.
            unsafe { libc::sigfillset(set) };
        });
        for &signal in signals {
            // SAFETY: takes from the set filled above.
            unsafe { libc::sigdelset(&raw mut mask.0, signal) };
        }
        mask
    }

    /// Makes this the mask of the calling thread. Returns the previous mask.
    pub(crate) fn set(&self) -> Mask {
        Mask::written(|before| {
            // SAFETY: reads one live set, writes the other.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, before) };
        })
    }

    /// Returns the set that `write` writes.
    fn written(write: impl FnOnce(*mut libc::sigset_t)) -> Mask {
        let mut set = core::mem::MaybeUninit::zeroed();
        write(set.as_mut_ptr());
        // SAFETY: plain numbers, for which zero will do.
        Mask(unsafe { set.assume_init() })
    }
}

/// Returns whether the signal is blocked and has been sent to the calling thread or to its process.
pub(crate) fn is_pending(signal: c_int) -> bool {
    let pending = Mask::written(|set| {
        // SAFETY: writes the live set.
        unsafe { libc::sigpending(set) };
    });
    // SAFETY: reads the live set.
    unsafe { libc::sigismember(&raw const pending.0, signal) == 1 }
}

/// Removes the signal, which the calling thread has blocked, if it has been sent.
pub(crate) fn take(signal: c_int) {
    let set = Mask::of(&[signal]);
    let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the live set and the time; null is allowed where no details are wanted.
    unsafe { libc::sigtimedwait(&raw const set.0, core::ptr::null_mut(), &raw const no_time) };
}
