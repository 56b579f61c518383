//! Acquiring an [`RwLock`]: the fast paths, and the slow paths, which may wait.
use super::{ReadResult, RwLock, Slot, WriteResult};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::lock::{DIED, LockError};
use crate::segment::attach_in_child;
use crate::shareable::Plain;
use crate::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sync::{READERS, between_exchange_and_load};
use crate::sys::robust::Thread;
use crate::wait::robust::{OWNER, Refused, RobustWord, Taken, WAITERS};

impl<T: Plain> RwLock<T> {
    #[inline(always)]
    pub(super) fn read_fast(&self) -> Option<(&RobustWord, Thread)> {
        let me = Thread::fast()?;
        let slot = &self.slots[me.tid() as usize % READERS].0;
        if !slot.try_take_as(me, SeqCst) {
            return None;
        }
        between_exchange_and_load();
        if is_taken(self.writer.value_in_order()) {
            slot.unlock(me); // keeps I3
            return None;
        }
        Some((slot, me))
    }

    #[cold]
    pub(super) fn read_slow(&self, deadline: Deadline) -> ReadResult<'_, T> {
        attach_in_child(core::ptr::from_ref(self).addr());
        let me = Thread::current().map_err(LockError::Failed)?;
        let mut owned = self.words().filter(|word| word.is_held_by(me)).peekable();
        if owned.peek().is_some() {
            let here = owned.find(|word| word.is_held_here_by(me)); // keeps I7
            return here.map_or(Err(LockError::WouldDeadlock), |word| self.read_again(word, me));
        }
        if !is_taken(self.writer.value_in_order())
            && let Some(slot) = self.take_slot(me)
        {
            fence(SeqCst);
            if !is_taken(self.writer.value_in_order()) {
                return self.reader(slot, me);
            }
            slot.unlock(me); // keeps I3
        }
        self.take_writer_word(deadline)?;
        // No thread writes now, and no writer waits for a slot of this thread (I6).
        match self.take_slot(me) {
            Some(slot) => {
                self.writer.unlock(me);
                self.reader(slot, me)
            }
            None => self.reader(&self.writer, me),
        }
    }

    /// Makes a further guard on a word that this thread already owns.
    fn read_again<'a>(&'a self, word: &'a RobustWord, me: Thread) -> ReadResult<'a, T> {
        if self.writer.is_still(me) && self.inside().load(Relaxed) != 0 {
            return Err(LockError::WouldDeadlock);
        }
        // If the count wrapped round, the lock would be released before the last guard is dropped.
        let more = further_guards(word).load(Relaxed).checked_add(1);
        further_guards(word).store(more.ok_or(LockError::Failed(Fault::TooDeep))?, Relaxed);
        self.reader(word, me)
    }

    /// Takes a slot that no living thread owns, if there is one.
    pub(super) fn take_slot(&self, me: Thread) -> Option<&RobustWord> {
        let first = me.tid() as usize;
        (0..READERS).map(|i| &self.slots[(first + i) % READERS].0).find(|slot| {
            slot.value() & OWNER == 0
                && slot.try_take().map(|(taken, _)| clear(slot, taken)).is_ok()
        })
    }

    #[inline(always)]
    pub(super) fn write_fast(&self) -> Option<Thread> {
        let me = Thread::fast()?;
        if !self.writer.try_take_as(me, SeqCst) {
            return None;
        }
        between_exchange_and_load();
        if self.slots.iter().any(|slot| slot.0.value_in_order() & OWNER != 0) {
            self.writer.unlock(me);
            return None;
        }
        Some(me)
    }

    #[cold]
    pub(super) fn write_slow(&self, deadline: Deadline) -> WriteResult<'_, T> {
        attach_in_child(core::ptr::from_ref(self).addr());
        let me = Thread::current().map_err(LockError::Failed)?;
        // Checked before this thread waits for any other: another reader may wait for this thread.
        if self.slots.iter().any(|slot| slot.0.value() & OWNER == me.tid()) {
            return Err(LockError::WouldDeadlock);
        }
        self.take_writer_word(deadline)?;
        fence(SeqCst);
        for Slot(slot) in &self.slots {
            if slot.value_in_order() & OWNER == 0 {
                continue;
            }
            match self.take(slot, deadline) {
                Ok(taken) => clear(slot, taken),
                Err(error) => {
                    self.writer.unlock(me);
                    return Err(error);
                }
            }
            slot.unlock(me);
        }
        self.writer(me)
    }

    fn take_writer_word<G>(&self, deadline: Deadline) -> Result<(), LockError<G>> {
        let taken = self.take(&self.writer, deadline)?;
        if taken == Taken::FromTheDead && self.inside().load(Relaxed) != 0 {
            self.poison().store(DIED, Relaxed);
            self.inside().store(0, Release); // keeps I4
        }
        clear(&self.writer, taken);
        Ok(())
    }

    fn take<G>(&self, word: &RobustWord, deadline: Deadline) -> Result<Taken, LockError<G>> {
        let taken = word.take_until(deadline).unwrap_or(Err(Refused::Busy));
        match taken {
            Ok((taken, _)) => Ok(taken),
            Err(refused) => Err(LockError::refused(refused, core::ptr::from_ref(self).addr())),
        }
    }
}

/// The number of further guards that the owner has on the word.
#[inline(always)]
pub(super) fn further_guards(word: &RobustWord) -> &AtomicU32 {
    &word.note[2]
}

/// Clears what a dead owner left in a word that this thread has just taken. (If this thread is
/// killed before that, the next owner takes the word from a dead owner again.)
fn clear(word: &RobustWord, taken: Taken) {
    if taken == Taken::FromTheDead {
        further_guards(word).store(0, Relaxed); // keeps I5
    }
}

/// Whether a thread owns the word, or died as its owner.
#[inline(always)]
fn is_taken(value: u32) -> bool {
    value & !WAITERS != 0
}
