//! What the producer and the consumer have in common: a position of their own, the last known
//! position of the other end, and how they wait until that moves.
use super::{DEATHS, Ring, RoleError, Slot};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::{Failure, LIGHT, assert_ours};
use crate::segment::forks;
use crate::shareable::Plain;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::wait::signal::Signal;
use core::cell::Cell;
use core::ops::{Deref, Range};

/// The end of the producer (`SENDS`) or of the consumer. Because of its cells, only one thread at a
/// time can use it.
#[derive(Debug)]
pub(super) struct End<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool> {
    pub(super) ring: R,
    tag: u32,
    /// The count of forks when the end was taken.
    forks: u32,
    /// Whether the last owner of the role died.
    pub(super) predecessor_died: bool,
    /// The number of the next message to write or read.
    at: Cell<u64>,
    /// The number of the first message that this end cannot write or read yet, as far as it knows.
    bound: Cell<u64>,
    /// The number of the message in the first slot of this lap.
    lap_start: Cell<u64>,
    /// Whether this end is faster than the other one. If so, its last wait ended with few slots:
    /// less than seven eighths of the ring.
    is_faster: Cell<bool>,
}

impl<T: Plain, R: Deref<Target = Ring<T>>, const SENDS: bool> End<T, R, SENDS> {
    /// Takes the role, blocking until `deadline` while a process has it. The end continues after
    /// the last commit of its last owner.
    pub(super) fn take(ring: R, deadline: Deadline) -> Result<Self, RoleError> {
        let forks = forks();
        let tag = ring.identify().map_err(RoleError::Failed)?;
        let take = || ring.role(SENDS).take(tag);
        let late = if deadline.is_now() { RoleError::Taken } else { RoleError::TimedOut };
        let wait = || ring.rare.vacant.wait(deadline, take).ok();
        let predecessor_died = take().or_else(wait).ok_or(late)?;
        Ok(Self::new(ring, tag, forks, predecessor_died))
    }

    /// Takes the role over from the stand-in `from`.
    pub(super) fn take_over(ring: R, from: u32) -> Result<Self, Fault> {
        let (forks, tag) = (forks(), ring.identify()?);
        if !ring.role(SENDS).pass_on(from, tag) {
            return Err(Fault::Corrupt);
        }
        Ok(Self::new(ring, tag, forks, false))
    }

    /// Returns an end for a role that was just taken.
    fn new(ring: R, tag: u32, forks: u32, predecessor_died: bool) -> Self {
        let position = if SENDS { &ring.tail.0 } else { &ring.head.0 };
        let at = position.load(Acquire);
        let index = at.checked_rem(ring.capacity() as u64).unwrap_or(0);
        let lap_start = Cell::new(at.wrapping_sub(index));
        let (at, bound) = (Cell::new(at), Cell::new(at));
        End {
            ring,
            tag,
            forks,
            predecessor_died,
            at,
            bound,
            lap_start,
            is_faster: Cell::new(false),
        }
    }

    /// Fails in a forked child, which has only a copy of the end. Also registers the calling thread
    /// with the segment: the role goes to another process only after this thread has ended.
    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.forks != forks() {
            return Err(Fault::Forked);
        }
        self.ring.identify().map(drop)
    }

    /// Passes the role on to the stand-in `owner`.
    pub(super) fn hold_for(mut self, owner: u32) -> Result<(), Fault> {
        self.check()?;
        if !self.ring.role(SENDS).pass_on(self.tag, owner) {
            return Err(Fault::Corrupt);
        }
        self.forks = !self.forks; // dropping it gives up nothing
        Ok(())
    }

    /// Panics in a forked child, which must not touch the slots of its parent.
    #[inline(always)]
    pub(super) fn assert_ours(&self) {
        assert_ours(self.forks);
    }

    /// Whether this end can use a slot, as far as one look shows. A faster end does not look at the
    /// other end's position: each look takes the cache line from the other end, and finds little.
    #[inline(always)]
    pub(super) fn is_ready(&self) -> bool {
        let finds_more = || !self.is_faster.get() && self.refresh().is_ok_and(|room| room > 0);
        self.may_go_on().is_ok() && (self.known_room() > 0 || finds_more())
    }

    #[inline(always)]
    fn may_go_on(&self) -> Result<(), Failure> {
        self.check().map_err(Failure::Failed)?;
        if SENDS && self.ring.is_closed() { Err(Failure::Closed) } else { Ok(()) }
    }

    /// Returns the number of slots that this end can use, at least one.
    fn room(&self) -> Result<usize, Failure> {
        self.may_go_on()?;
        match self.known_room() {
            0 => self.look(),
            room => Ok(room),
        }
    }

    /// Like [`room`](Self::room), but blocks until there is a slot. A faster end blocks before it
    /// looks.
    #[inline(never)]
    pub(super) fn room_until(&self, deadline: Deadline) -> Result<usize, Failure> {
        if deadline.is_now() {
            return self.room();
        }
        if self.is_faster.get() && self.known_room() == 0 {
            self.may_go_on()?;
            return self.wait(deadline);
        }
        match self.room() {
            Err(Failure::Unavailable) => self.wait(deadline),
            done => done,
        }
    }

    /// Like [`room_until`](Self::room_until), but returns `want` if there are more slots. If the
    /// number that is known is not enough, it looks for more.
    #[inline(always)]
    pub(super) fn room_for(&self, want: usize, deadline: Deadline) -> Result<usize, Failure> {
        let room = self.room_until(deadline)?;
        Ok(if room < want { self.refresh()?.min(want) } else { want })
    }

    #[inline(always)]
    fn known_room(&self) -> usize {
        // At most the capacity: `refresh` has checked it.
        usize::try_from(self.bound.get().wrapping_sub(self.at.get())).unwrap_or(0)
    }

    /// Looks at the other end's position. Returns the number of slots that this end can use.
    #[inline(always)]
    fn refresh(&self) -> Result<usize, Failure> {
        let (at, capacity) = (self.at.get(), self.ring.capacity() as u64);
        let bound = match SENDS {
            true => self.ring.head.0.load(Acquire).wrapping_add(capacity),
            false => self.ring.tail.0.load(Acquire),
        };
        if bound.wrapping_sub(at) > capacity {
            return Err(Failure::Failed(Fault::Corrupt)); // I2
        }
        self.bound.set(bound);
        Ok(self.known_room())
    }

    /// Returns the number of slots that this end can use, at least one, or why there is none.
    #[inline]
    fn look(&self) -> Result<usize, Failure> {
        match self.refresh()? {
            0 => self.look_for_failure(),
            room => Ok(room),
        }
    }

    /// Finds out why this end cannot use any slot.
    #[cold]
    fn look_for_failure(&self) -> Result<usize, Failure> {
        let closed = self.ring.is_closed();
        if closed && SENDS {
            return Err(Failure::Closed);
        }
        let peer = self.ring.role(!SENDS);
        let deaths = peer.word.load(Acquire) & DEATHS;
        let died = deaths != peer.told.load(Relaxed);
        if !closed && !died {
            return Err(Failure::Unavailable);
        }
        // Messages that were sent before the ring was closed come first: keeps I4.
        match self.refresh()? {
            0 if closed => Err(Failure::Closed),
            0 => {
                peer.told.store(deaths, Relaxed);
                Err(Failure::PeerDied)
            }
            room => Ok(room),
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, deadline: Deadline) -> Result<usize, Failure> {
        let look = || match self.look() {
            Err(Failure::Unavailable) => None,
            done => Some(done),
        };
        let more = |room: &Result<usize, Failure>| room.is_ok_and(|room| room > 1);
        let waited = self.signal(SENDS).wait_for_many(deadline, look, more);
        let room = waited.unwrap_or(Err(Failure::Unavailable))?;
        let capacity = self.ring.capacity();
        self.is_faster.set(room < capacity - capacity / 8);
        Ok(room)
    }

    /// The signal on which the producer (`sends`) or the consumer sleeps.
    #[inline(always)]
    fn signal(&self, sends: bool) -> &Signal<LIGHT> {
        if sends { &self.ring.rare.not_full } else { &self.ring.rare.not_empty }
    }

    /// Commits `n` slots, which this end can use, and wakes the other end if it sleeps.
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
        self.lap_start.set(self.lap_start.get().wrapping_add(self.ring.capacity() as u64));
    }

    /// The index of the next slot.
    #[inline(always)]
    fn index(&self) -> usize {
        // Less than two laps: a commit has at most a lap of slots, and then begins the next lap.
        usize::try_from(self.at.get().wrapping_sub(self.lap_start.get())).unwrap_or(0)
    }

    /// The next slot.
    #[inline(always)]
    pub(super) fn slot(&self) -> &Slot<T> {
        &self.ring.slots[self.index()]
    }

    /// The next `n` slots, as two slices: the second begins at the first slot of the ring.
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
            self.ring.role(SENDS).leave(self.tag, false);
            self.ring.rare.vacant.notify_all();
        }
    }
}
