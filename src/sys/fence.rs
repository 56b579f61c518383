//! A fence between two threads of which one pays for both: `membarrier(2)`, `GLOBAL_EXPEDITED`
//! (Linux 4.16).
//!
//! Whoever changes something (commits a message, gives a lock up) and then looks whether anybody
//! sleeps must not have its look come first; whoever announces its sleep and then looks for a
//! change must not either. A change is made a hundred million times for each sleep, and a locked
//! instruction costs as much as all the rest of it. So here the changer only keeps the compiler
//! from moving the look ([`light`]), and the sleeper has the kernel pass a full fence on every CPU
//! that runs a process which takes part ([`heavy`]): either the changer's look came later, and sees
//! the announcement, or its change came earlier, and the sleeper sees that.
//!
//! A process takes part from its first segment on ([`adopt`]); its forks inherit it. One that
//! cannot, as its sandbox does not allow the call, fences fully after its changes, and as a sleeper
//! cannot make others fence.
//!
//! The kernel misses CPUs, too (seen in Linux 6.18): when a thread ends, its CPU counts as one that
//! runs no process that takes part; if another thread of that process comes next, it is not counted
//! in again until another process has run there. So a heavy fence is never [`CERTAIN`]. What it may
//! leave undone is little: a change made before may still be on its way out of the store buffer of
//! its CPU, where none stays for a microsecond. So whoever relies on a heavy fence looks once more,
//! long after that, before it sleeps for good or gives a verdict; the fence only makes that it
//! hardly ever finds anything then.
//!
//! Source: the asymmetric fences of C++ proposal P1202, and folly's; membarrier(2) for the
//! guarantee.
#![expect(unsafe_code, reason = "a system call")]
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicBool, fence};
use crate::sync::compiler_fence;

/// Whether heavy fences reach this process.
static TAKES_PART: AtomicBool = AtomicBool::new(false);

/// Has heavy fences, of any process, reach this one. To be called before it can reach shared
/// memory.
pub(crate) fn adopt() {
    if !TAKES_PART.load(Relaxed) && membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) {
        TAKES_PART.store(true, Relaxed);
    }
}

/// Between a change and a look whether anybody sleeps who has passed a [`heavy`].
#[inline(always)]
pub(crate) fn light() {
    if TAKES_PART.load(Relaxed) {
        compiler_fence(SeqCst);
    } else {
        fence(SeqCst);
    }
}

/// Whether a [`heavy`] has surely reached everybody.
pub(crate) const CERTAIN: bool = false;

/// Between announcing a sleep and the next look.
pub(crate) fn heavy() {
    fence(SeqCst); // for those who fence fully
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
