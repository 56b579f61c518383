//! What both ends have in common: a position of their own, a view of the other's, and waiting for
//! it to move.
use super::{DEATHS, Ring, Slot};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::{LIGHT, assert_ours};
use crate::segment::forks;
use crate::shareable::Plain;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::wait::signal::Signal;
use core::cell::Cell;
use core::ops::{Deref, Range};

/// Why an end can do nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Nothing {
    /// Nothing to receive; no free slot.
    Now,
    Closed,
    PeerDied,
    Failed(Fault),
}

/// The role of the producer (`SENDS`) or of the consumer. The cells make it one thread's at a time.
#[derive(Debug)]
pub(super) struct End<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool> {
    pub(super) ring: R,
    tag: u32,
    forks: u32,
    pub(super) inherited: bool,
    /// The next message to write or read.
    at: Cell<u64>,
    /// The first that is not ours to write or read, as far as is known.
    bound: Cell<u64>,
    /// The message that went to the first slot in this lap.
    lap: Cell<u64>,
    /// The last wait ended with less than a ring of slots: the other end is the slower one.
    keeps_up: Cell<bool>,
}

impl Nothing {
    /// The output of a verb: none if that may still come.
    #[inline(always)]
    pub(super) fn in_time<R, E>(
        done: Result<R, Nothing>,
        error: impl FnOnce(Nothing) -> E,
    ) -> Option<Result<R, E>> {
        match done {
            Err(Nothing::Now) => None,
            done => Some(done.map_err(error)),
        }
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool> End<T, R, SENDS> {
    /// For a role that was just taken: where the last owner's last commit left it.
    pub(super) fn new(ring: R, tag: u32, forks: u32, inherited: bool) -> Self {
        let position = if SENDS { &ring.tail.0 } else { &ring.head.0 };
        let at = position.load(Acquire);
        let index = at.checked_rem(ring.capacity() as u64).unwrap_or(0);
        End {
            ring,
            tag,
            forks,
            inherited,
            at: Cell::new(at),
            bound: Cell::new(at),
            lap: Cell::new(at.wrapping_sub(index)),
            keeps_up: Cell::new(false),
        }
    }

    /// Whether it is this process's, and not the copy of one that has forked. The calling thread is
    /// known to the segment from here on: the role is not given to another before it has ended.
    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.forks != forks() {
            return Err(Fault::Forked);
        }
        self.ring.identify().map(drop)
    }

    /// Keeps a forked child from the slots of its parent.
    #[inline(always)]
    pub(super) fn assert_ours(&self) {
        assert_ours(self.forks);
    }

    /// Whether a slot is this end's, as far as one look shows, and nothing bars it. An end that
    /// keeps up does not look: each look takes the line from the other end, and finds little.
    #[inline(always)]
    pub(super) fn is_ready(&self) -> bool {
        let finds_more = || !self.keeps_up.get() && self.refresh().is_ok_and(|room| room > 0);
        self.may_go_on().is_ok() && (self.known() > 0 || finds_more())
    }

    #[inline(always)]
    fn may_go_on(&self) -> Result<(), Nothing> {
        self.check().map_err(Nothing::Failed)?;
        if SENDS && self.ring.is_closed() { Err(Nothing::Closed) } else { Ok(()) }
    }

    /// How many slots are this end's, at least one.
    pub(super) fn room(&self) -> Result<usize, Nothing> {
        self.may_go_on()?;
        match self.known() {
            0 => self.look(),
            room => Ok(room),
        }
    }

    /// As [`room`](Self::room), blocking until there is some: an end that keeps up before it looks.
    #[inline(never)]
    pub(super) fn room_until(&self, deadline: Deadline) -> Result<usize, Nothing> {
        if deadline.is_now() {
            return self.room();
        }
        if self.keeps_up.get() && self.known() == 0 {
            self.may_go_on()?;
            return self.wait(deadline);
        }
        match self.room() {
            Err(Nothing::Now) => self.wait(deadline),
            done => done,
        }
    }

    /// Of the room that there is, what `want` asks for at most; if less is known of, looks for
    /// more.
    pub(super) fn most(&self, room: usize, want: usize) -> Result<usize, Nothing> {
        Ok(if room < want { self.refresh()?.min(want) } else { want })
    }

    #[inline(always)]
    fn known(&self) -> usize {
        // Never more than the capacity: `refresh` has seen to it.
        usize::try_from(self.bound.get().wrapping_sub(self.at.get())).unwrap_or(0)
    }

    /// Looks where the other end is.
    #[inline(always)]
    fn refresh(&self) -> Result<usize, Nothing> {
        let (at, capacity) = (self.at.get(), self.ring.capacity() as u64);
        let (bound, room) = if SENDS {
            let bound = self.ring.head.0.load(Acquire).wrapping_add(capacity);
            (bound, bound.wrapping_sub(at))
        } else {
            let bound = self.ring.tail.0.load(Acquire);
            (bound, bound.wrapping_sub(at))
        };
        if room > capacity {
            return Err(Nothing::Failed(Fault::Corrupt)); // I2
        }
        self.bound.set(bound);
        Ok(self.known())
    }

    #[inline]
    fn look(&self) -> Result<usize, Nothing> {
        match self.refresh()? {
            0 => self.look_for_an_end(),
            room => Ok(room),
        }
    }

    #[cold]
    fn look_for_an_end(&self) -> Result<usize, Nothing> {
        let closed = self.ring.is_closed();
        if closed && SENDS {
            return Err(Nothing::Closed);
        }
        let peer = self.ring.role(!SENDS);
        let deaths = peer.word.load(Acquire) & DEATHS;
        let died = deaths != peer.told.load(Relaxed);
        if !closed && !died {
            return Err(Nothing::Now);
        }
        // What was there before the end comes before it: keeps I4.
        match self.refresh()? {
            0 if closed => Err(Nothing::Closed),
            0 => {
                peer.told.store(deaths, Relaxed);
                Err(Nothing::PeerDied)
            }
            room => Ok(room),
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, deadline: Deadline) -> Result<usize, Nothing> {
        let look = || match self.look() {
            Err(Nothing::Now) => None,
            done => Some(done),
        };
        let more = |room: &Result<usize, Nothing>| room.is_ok_and(|room| room > 1);
        let waited = self.signal(SENDS).wait_for_many(deadline, look, more);
        let room = waited.unwrap_or(Err(Nothing::Now))?;
        let capacity = self.ring.capacity();
        self.keeps_up.set(room < capacity - capacity / 8);
        Ok(room)
    }

    /// Where this end, or the other one, sleeps.
    #[inline(always)]
    fn signal(&self, sends: bool) -> &Signal<LIGHT> {
        if sends { &self.ring.rare.not_full } else { &self.ring.rare.not_empty }
    }

    /// Commits `n` slots, of which there is [`room`](Self::room), and wakes the other end if it
    /// sleeps.
    #[inline(always)]
    pub(super) fn advance(&self, n: usize) {
        let at = self.at.get().wrapping_add(n as u64);
        self.at.set(at);
        if self.index() >= self.ring.capacity() {
            self.begin_lap();
        }
        let mine: &AtomicU64 = if SENDS { &self.ring.tail.0 } else { &self.ring.head.0 };
        mine.store(at, Release); // the commit
        Signal::<LIGHT>::fence_after_change();
        let signal = self.signal(!SENDS);
        if signal.is_armed() {
            signal.notify(1);
        }
    }

    #[cold]
    fn begin_lap(&self) {
        self.lap.set(self.lap.get().wrapping_add(self.ring.capacity() as u64));
    }

    /// `at` in the ring.
    #[inline(always)]
    fn index(&self) -> usize {
        // Less than two laps: a commit is of at most one, and ends the lap if need be.
        usize::try_from(self.at.get().wrapping_sub(self.lap.get())).unwrap_or(0)
    }

    /// The next slot.
    #[inline(always)]
    pub(super) fn slot(&self) -> &Slot<T> {
        &self.ring.slots[self.index()]
    }

    /// The next `n` slots, in two runs.
    pub(super) fn runs(&self, n: usize) -> (&[Slot<T>], &[Slot<T>]) {
        let slots = &self.ring.slots;
        let first: Range<usize> = self.index()..(self.index() + n).min(slots.len());
        let second = n - first.len();
        (&slots[first], &slots[..second])
    }
}

impl<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool> Drop for End<T, R, SENDS> {
    fn drop(&mut self) {
        // The calling thread need not be registered: see `Ends::release`.
        if self.forks == forks() {
            self.ring.role(SENDS).give_up(self.tag);
            self.ring.rare.vacant.notify_all();
        }
    }
}
