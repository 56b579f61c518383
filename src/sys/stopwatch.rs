//! Measuring approximate lengths of time that are shorter than a read of the clock.
//!
//! The code and the data for reading the clock lie in pages of their own. A thread that was just
//! woken has none of them in its cache. Loading them takes longer than all else that the thread
//! does then. Reading the time stamp counter of the CPU is one instruction. Its speed is measured
//! once. If the counters of CPUs differ, or change their speed, the results are wrong.
#![expect(unsafe_code, reason = "an instruction that is no function of the language's")]
use crate::sync::Kept;
use core::time::Duration;
use std::time::Instant;

/// The moment at which a measurement began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(u64);

impl Stopwatch {
    #[inline(always)]
    pub(crate) fn start() -> Self {
        // SAFETY: all CPUs of this architecture have the counter. A process that may not read it
        // (`PR_SET_TSC`) may not read the clock either.
        Stopwatch(unsafe { core::arch::x86_64::_rdtsc() })
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.until(Stopwatch::start())
    }

    /// Returns the time from this moment to `later`.
    pub(crate) fn until(self, later: Stopwatch) -> Duration {
        static PER_MILLISECOND: Kept = Kept::new();
        let speed = u64::from(PER_MILLISECOND.get(measure));
        let counts = later.0.saturating_sub(self.0);
        let (milliseconds, rest) = (counts / speed, counts % speed);
        Duration::from_millis(milliseconds) + Duration::from_nanos(rest * 1_000_000 / speed)
    }
}

/// Measures the number of counts in a millisecond, to about a percent. It returns the median of
/// three measurements, because one of them may be interrupted between its two reads.
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
