//! A fence between two threads, for which only one of them pays: `membarrier(2)`,
//! `GLOBAL_EXPEDITED` (Linux 4.16).
//!
//! # Why
//! One thread, the *changer*, makes a change (commits a message, releases a lock) and then reads
//! whether a thread sleeps. Another, the *sleeper*, announces its sleep and then checks for a
//! change. In neither of them may the second step move before the first. There are a hundred
//! million changes for each sleep, and a locked instruction would cost as much as all the rest of a
//! change.
//!
//! So the changer only keeps the compiler from moving its read ([`light`]). The sleeper makes the
//! kernel pass a full fence on every CPU that runs a participating process ([`heavy`]). Then either
//! the read of the changer came later and sees the announcement, or its change came earlier and the
//! sleeper sees the change.
//!
//! # Participation
//! A process participates from its first segment on ([`adopt`]), and its forked children inherit
//! this. If the sandbox of a process does not allow the call, the process passes full fences after
//! its changes. As a sleeper it cannot make others pass a fence.
//!
//! # Why a heavy fence is not certain
//! The kernel can miss a CPU (seen in Linux 6.18). When a thread ends, its CPU no longer counts as
//! one that runs a participating process. If another thread of the same process runs there next,
//! the CPU does not count again until another process has run on it. So a heavy fence is never
//! [`CERTAIN`].
//!
//! The effect of a missed CPU is small: an earlier change may still be in the store buffer of that
//! CPU, where no store stays for a microsecond. So a thread that relies on a heavy fence checks
//! once more, long after that, before it sleeps without a limit or returns a final result. Because
//! of the fence, this check hardly ever finds a change.
//!
//! Source: the asymmetric fences of C++ proposal P1202, and folly's; membarrier(2) for the
//! guarantee.
#![expect(unsafe_code, reason = "a system call")]
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicBool, fence};
use crate::sync::compiler_fence;

/// Whether this process participates.
static TAKES_PART: AtomicBool = AtomicBool::new(false);

/// Makes this process participate, so that the heavy fences of all processes reach it. Called
/// before the process can use shared memory.
pub(crate) fn adopt() {
    if !TAKES_PART.load(Relaxed) && membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) {
        TAKES_PART.store(true, Relaxed);
    }
}

/// The fence of a changer, between the change and the read that tells whether a thread sleeps.
#[inline(always)]
pub(crate) fn light() {
    if TAKES_PART.load(Relaxed) {
        compiler_fence(SeqCst);
    } else {
        fence(SeqCst);
    }
}

/// Whether a [`heavy`] fence reaches every CPU.
pub(crate) const CERTAIN: bool = false;

/// The fence of a sleeper, between the announcement of the sleep and the next check.
pub(crate) fn heavy() {
    fence(SeqCst); // for changers that pass full fences
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
