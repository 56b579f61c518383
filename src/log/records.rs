//! The collector: takes records out of a journal, in order, and counts what it does not get.
use super::{COMMITTED, Journal, LAP_SHIFT, PATIENCE, PHASE, Record, WRITING, ahead};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::identify;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU64, fence};
use crate::sync::now;
use core::cmp::Ordering;
use std::time::{Duration, Instant};

/// The collector's place in a [`Journal`]: see [`Journal::records`].
#[derive(Debug)]
pub struct Records<'a> {
    journal: &'a Journal,
    at: u64,
    /// A position at which somebody was found writing, and when that was first seen.
    stuck: Option<(u64, Instant)>,
}

impl<'a> Records<'a> {
    pub(super) fn new(journal: &'a Journal) -> Self {
        Records { journal, at: journal.rare.head.load(Acquire), stuck: None }
    }
}

/// What is at a position.
#[cfg_attr(
    not(outlast_loom),
    expect(
        clippy::large_enum_variant,
        reason = "a record is moved to its reader, not to the heap"
    )
)]
enum Found {
    Record(Record),
    /// Nothing that will ever be read; look at the next position.
    Gap,
    /// A record that somebody is writing.
    Unfinished,
    Nothing,
}

impl Records<'_> {
    /// The next record, if there is one. Never blocks: a record that is just being written is not
    /// there yet.
    pub fn try_next(&mut self) -> Option<Record> {
        self.next_until(Deadline::at(now())).ok().flatten()
    }

    /// The next record; `None` after `timeout`, or if the journal is closed and all was read.
    ///
    /// # Errors
    /// If this process cannot become a peer of the segment: see [`Fault`].
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Record>, Fault> {
        self.next_until(Deadline::after(timeout))
    }

    /// The next record; `None` after `deadline`, or if the journal is closed and all was read. What
    /// is there is given even if that has passed.
    ///
    /// # Errors
    /// As [`next_timeout`](Self::next_timeout).
    pub fn next_deadline(&mut self, deadline: Instant) -> Result<Option<Record>, Fault> {
        self.next_until(Deadline::at(deadline))
    }

    fn next_until(&mut self, deadline: Deadline) -> Result<Option<Record>, Fault> {
        let journal = self.journal;
        journal.rare.head.store(self.at, Release); // what came before is dealt with
        loop {
            let closed = journal.is_closed();
            let unfinished = match self.look() {
                Found::Record(record) => {
                    self.at = self.at.wrapping_add(1);
                    return Ok(Some(record));
                }
                Found::Gap => continue,
                Found::Nothing if closed => return Ok(None),
                Found::Nothing => false,
                Found::Unfinished => true,
            };
            identify(core::ptr::from_ref(journal).addr())?;
            let patience = unfinished.then(|| self.patience());
            if patience.is_some_and(|left| left.is_zero()) {
                self.lose(1, &journal.rare.unfinished); // its owner is stopped
                continue;
            }
            let first =
                patience.filter(|&mine| deadline.remaining().is_none_or(|left| left > mine));
            let is_new = || match self.glance() {
                Found::Nothing => journal.is_closed().then_some(()),
                Found::Unfinished if unfinished => None,
                _ => Some(()),
            };
            let until = first.map_or(deadline, Deadline::after);
            if journal.rare.filled.wait(until, is_new).is_err() && first.is_none() {
                return Ok(None);
            }
        }
    }

    /// How much longer to wait for the record that somebody writes here.
    fn patience(&mut self) -> Duration {
        let since = match self.stuck {
            Some((at, since)) if at == self.at => since,
            _ => now(),
        };
        self.stuck = Some((self.at, since));
        PATIENCE.saturating_sub(now().saturating_duration_since(since))
    }

    /// What is at this position, without its text.
    fn glance(&self) -> Found {
        let tail = self.journal.tail.0.load(Acquire); // before the state: I2
        let (slot, lap) = self.journal.position(self.at);
        let seen = slot.state.load(Acquire);
        match ahead(seen >> LAP_SHIFT, lap).cmp(&0) {
            Ordering::Greater => {
                // Whoever claimed it had seen the tail there; otherwise the memory is damaged.
                let tail = self.journal.tail.0.load(Acquire);
                let ahead = tail.wrapping_sub(self.at).cast_signed();
                let lap = self.journal.slots.len() as i64;
                if ahead >= lap { Found::Gap } else { Found::Nothing }
            }
            Ordering::Less if tail.wrapping_sub(self.at).cast_signed() > 0 => Found::Gap,
            Ordering::Less => Found::Nothing,
            Ordering::Equal => match seen & PHASE {
                WRITING => Found::Unfinished,
                _ => Found::Gap, // or a record
            },
        }
    }

    /// What is at this position; a gap is counted, and passed over.
    fn look(&mut self) -> Found {
        match self.glance() {
            Found::Gap => {}
            other => return other,
        }
        let journal = self.journal;
        let (slot, lap) = journal.position(self.at);
        let seen = slot.state.load(Acquire);
        if seen >> LAP_SHIFT == lap && seen & PHASE == WRITING {
            return Found::Unfinished; // claimed this moment
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
        // Overwritten: on to the oldest that can be there.
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
    /// Waits for the next record as long as it takes; `None` if the journal is closed and all was
    /// read, or if this process cannot become a peer.
    fn next(&mut self) -> Option<Record> {
        self.next_until(Deadline::NEVER).ok().flatten()
    }
}

impl Drop for Records<'_> {
    /// The next collector goes on behind the last record.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.journal.rare.head.store(self.at, Release);
        }
    }
}
