//! The collector: it takes records out of a journal in order, and counts those that it does not
//! get.
use super::{COMMITTED, Journal, LAP_SHIFT, PATIENCE, PHASE, Record, WRITING, ahead};
use crate::deadline::Deadline;
use crate::queue::RecvTimeoutError;
use crate::segment::identify;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU64, fence};
use crate::sync::now;
use core::cmp::Ordering;
use std::time::{Duration, Instant};

/// The collector of a [`Journal`], made by [`Journal::records`].
#[derive(Debug)]
pub struct Records<'a> {
    journal: &'a Journal,
    at: u64,
    /// A position at which a writer was found busy, and when that was first seen.
    stuck: Option<(u64, Instant)>,
}

impl<'a> Records<'a> {
    pub(super) fn new(journal: &'a Journal) -> Self {
        Records { journal, at: journal.rare.head.load(Acquire), stuck: None }
    }
}

/// The content of a position.
#[cfg_attr(
    not(outlast_loom),
    expect(
        clippy::large_enum_variant,
        reason = "a record is moved to its reader, not to the heap"
    )
)]
enum Found {
    Record(Record),
    /// No record, now or later: the next position follows.
    Gap,
    /// A record that is being written.
    Unfinished,
    /// No record yet.
    NotYet,
}

impl Records<'_> {
    /// Returns the next record if there is one. Never blocks: a record that is being written is not
    /// there yet.
    pub fn try_next(&mut self) -> Option<Record> {
        self.next_until(Deadline::at(now())).ok()
    }

    /// Returns the next record. Blocks until there is one, or `timeout` has elapsed.
    ///
    /// # Errors
    /// - [`RecvTimeoutError::TimedOut`] if there was no record in time.
    /// - [`RecvTimeoutError::Closed`] if the journal is closed and has no more records.
    /// - [`RecvTimeoutError::Failed`] if this process cannot become a peer of the segment.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Record, RecvTimeoutError> {
        self.next_until(Deadline::after(timeout))
    }

    /// Like [`next_timeout`](Self::next_timeout), but blocks until `deadline`. A record that is
    /// there is returned even if the deadline has passed.
    ///
    /// # Errors
    /// As [`next_timeout`](Self::next_timeout).
    pub fn next_deadline(&mut self, deadline: Instant) -> Result<Record, RecvTimeoutError> {
        self.next_until(Deadline::at(deadline))
    }

    fn next_until(&mut self, deadline: Deadline) -> Result<Record, RecvTimeoutError> {
        let journal = self.journal;
        journal.rare.head.store(self.at, Release); // the caller has handled the record before it
        loop {
            let closed = journal.is_closed();
            let unfinished = match self.look() {
                Found::Record(record) => {
                    self.at = self.at.wrapping_add(1);
                    return Ok(record);
                }
                Found::Gap => continue,
                Found::NotYet if closed => return Err(RecvTimeoutError::Closed),
                Found::NotYet => false,
                Found::Unfinished => true,
            };
            let known = identify(core::ptr::from_ref(journal).addr());
            known.map_err(RecvTimeoutError::Failed)?;
            let patience = unfinished.then(|| self.patience());
            if patience.is_some_and(|left| left.is_zero()) {
                self.lose(1, &journal.rare.unfinished); // its owner is stopped
                continue;
            }
            let first =
                patience.filter(|&mine| deadline.remaining().is_none_or(|left| left > mine));
            let is_new = || match self.glance() {
                Found::NotYet => journal.is_closed().then_some(()),
                Found::Unfinished if unfinished => None,
                _ => Some(()),
            };
            let until = first.map_or(deadline, Deadline::after);
            if journal.rare.filled.wait(until, is_new).is_err() && first.is_none() {
                return Err(RecvTimeoutError::TimedOut);
            }
        }
    }

    /// Returns how much longer to wait for the record that is being written at this position.
    fn patience(&mut self) -> Duration {
        let since = match self.stuck {
            Some((at, since)) if at == self.at => since,
            _ => now(),
        };
        self.stuck = Some((self.at, since));
        PATIENCE.saturating_sub(now().saturating_duration_since(since))
    }

    /// Returns the content of this position, without the record's text: a record is reported as a
    /// gap.
    fn glance(&self) -> Found {
        let tail = self.journal.tail.0.load(Acquire); // before the state: I2
        let (slot, lap) = self.journal.position(self.at);
        let seen = slot.state.load(Acquire);
        match ahead(seen >> LAP_SHIFT, lap).cmp(&0) {
            Ordering::Greater => {
                // The writer that claimed it had seen the tail there, or the memory is damaged.
                let tail = self.journal.tail.0.load(Acquire);
                let ahead = tail.wrapping_sub(self.at).cast_signed();
                let lap = self.journal.slots.len() as i64;
                if ahead >= lap { Found::Gap } else { Found::NotYet }
            }
            Ordering::Less if tail.wrapping_sub(self.at).cast_signed() > 0 => Found::Gap,
            Ordering::Less => Found::NotYet,
            Ordering::Equal => match seen & PHASE {
                WRITING => Found::Unfinished,
                _ => Found::Gap, // or a record: see `look`
            },
        }
    }

    /// Returns the content of this position. Passes over a gap, and counts it.
    fn look(&mut self) -> Found {
        match self.glance() {
            Found::Gap => {}
            other => return other,
        }
        let journal = self.journal;
        let (slot, lap) = journal.position(self.at);
        let seen = slot.state.load(Acquire);
        if seen >> LAP_SHIFT == lap && seen & PHASE == WRITING {
            return Found::Unfinished; // claimed just now
        }
        if seen >> LAP_SHIFT == lap && seen & PHASE != COMMITTED {
            self.lose(1, &journal.rare.unfinished);
            return Found::Gap;
        }
        if seen >> LAP_SHIFT == lap {
            let record = Record::read(&slot.words, self.at);
            fence(Acquire);
            if slot.state.load(Relaxed) == seen {
                return Found::Record(record); // by I3
            }
        }
        // Overwritten: continue with the oldest record that can still be there.
        let tail = journal.tail.0.load(Acquire);
        let behind = tail.wrapping_sub(self.at).wrapping_sub(journal.slots.len() as u64);
        let most = behind.cast_signed().max(1).cast_unsigned();
        self.lose(most, &journal.rare.overwritten);
        Found::Gap
    }

    /// Passes over records. Keeps I4.
    fn lose(&mut self, number: u64, counter: &AtomicU64) {
        self.at = self.at.wrapping_add(number);
        counter.fetch_add(number, Relaxed);
        self.journal.rare.head.store(self.at, Release);
    }
}

impl Iterator for Records<'_> {
    type Item = Record;
    /// Returns the next record, blocking until there is one. Returns `None` if the journal is
    /// closed and has no more records, or if this process cannot become a peer.
    fn next(&mut self) -> Option<Record> {
        self.next_until(Deadline::NEVER).ok()
    }
}

impl Drop for Records<'_> {
    /// The next collector continues after the last record.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.journal.rare.head.store(self.at, Release);
        }
    }
}
