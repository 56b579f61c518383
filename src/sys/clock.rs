//! The clock for the deadlines of system calls.
#![expect(unsafe_code, reason = "a system call")]
use core::time::Duration;

/// Returns the monotonic time that is `length` from now.
pub(super) fn time_after(length: Duration) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time to a live variable; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let nanoseconds = time.tv_nsec + i64::from(length.subsec_nanos());
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    time.tv_sec = time.tv_sec.saturating_add(seconds).saturating_add(nanoseconds / 1_000_000_000);
    time.tv_nsec = nanoseconds % 1_000_000_000;
    time
}
