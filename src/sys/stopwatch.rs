//! Lengths of time, for guesses, measured where reading the clock costs more than what is measured.
//!
//! The kernel's code and data for the system's clock lie in pages of their own. A thread that was
//! just woken finds none of them in a cache, and getting them takes it longer than all else that it
//! does. The CPU's time stamp counter is one instruction. Its speed is measured once; where CPUs'
//! counters differ, or change their speed, lengths are wrong.
#![expect(unsafe_code, reason = "an instruction that is no function of the language's")]
use crate::sync::Kept;
use core::time::Duration;
use std::time::Instant;

/// A moment at which measuring began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(u64);

impl Stopwatch {
    #[inline(always)]
    pub(crate) fn start() -> Self {
        // SAFETY: all CPUs of this architecture have it. Who is forbidden it (`PR_SET_TSC`) is
        // forbidden the clock as well.
        Stopwatch(unsafe { core::arch::x86_64::_rdtsc() })
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.until(Stopwatch::start())
    }

    /// From this one's beginning to the other's.
    pub(crate) fn until(self, later: Stopwatch) -> Duration {
        static PER_MILLISECOND: Kept = Kept::new();
        let speed = u64::from(PER_MILLISECOND.get(measure));
        let counts = later.0.saturating_sub(self.0);
        let (milliseconds, rest) = (counts / speed, counts % speed);
        Duration::from_millis(milliseconds) + Duration::from_nanos(rest * 1_000_000 / speed)
    }
}

/// Counts in a millisecond, to a percent or so. Of three times, one that was interrupted between
/// two readings is not the middle one.
#[cold]
fn measure() -> u32 {
    const LENGTH: Duration = Duration::from_micros(5);
    let mut speeds = [(); 3].map(|()| {
        let (clock, began) = (Instant::now(), Stopwatch::start());
        loop {
            let (time, counts) = (clock.elapsed(), Stopwatch::start().0.saturating_sub(began.0));
            if time >= LENGTH {
                let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                return counts.saturating_mul(1_000_000) / nanoseconds;
            }
        }
    });
    speeds.sort_unstable();
    u32::try_from(speeds[1]).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::Stopwatch;
    use core::time::Duration;
    use std::time::Instant;

    #[test]
    fn goes_as_the_clock_does() {
        let (clock, began) = (Instant::now(), Stopwatch::start());
        let least = Duration::from_millis(30);
        std::thread::sleep(least);
        let (elapsed, most) = (began.elapsed(), clock.elapsed());
        assert!(elapsed >= least * 9 / 10, "{elapsed:?} of {least:?} at least");
        assert!(elapsed <= most * 11 / 10, "{elapsed:?} of {most:?} at most");
    }

    #[test]
    fn does_not_go_back() {
        let (later, sooner) = (Stopwatch(2_000_000), Stopwatch(1_000_000));
        assert_eq!(later.until(sooner), Duration::ZERO);
        assert!(sooner.until(later) > Duration::ZERO);
    }
}
