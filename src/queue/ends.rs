//! Which processes hold one side of something: the senders of a channel, or its receivers.
//!
//! # State
//! 64 cells of {handles: 20, owner: 12 bits}, 0 if free, and a word that says how often the side
//! was taken.
//!
//! | cell | next |
//! |---|---|
//! | free | {1, owner} by the first handle of a process |
//! | {n, owner} | {n + 1, owner}, or {n - 1, owner} by another handle; free by the last, or by recovery |
//!
//! # Invariants
//! - I1. A process has a handle => a cell names it. (Two of its threads that take their first at
//!   the same time may make it two cells.)
//! - I2. `takes` is not 0 as soon as a handle was given out, and moves after each cell was taken,
//!   before the handle is given out. So a look at all cells between two equal looks at `takes` is a
//!   picture of one moment: who hands the side over to another process, and leaves when that one
//!   has it, is not taken for the last.
//! - I3. Only its owner, or who mends what it left, changes a cell that is not free.
//!
//! # Ordering
//! A cell is freed with Release, and looked at with Acquire: whoever sees that nobody is left sees
//! all that they did. Of two that leave at the same time one sees both gone: each fences between
//! its own leaving and its look.
//!
//! # Death
//! Killed before a cell is taken: nothing. After: recovery frees it. Killed between the freeing and
//! what its caller does about it (wake the other side): the container does that in its own
//! `recover`, always.
use crate::error::Fault;
use crate::segment::{forks, identify};
use crate::shareable::Dead;
use crate::sync::HOLDERS;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use crate::sync::atomic::fence;
use core::fmt;
use core::ops::Deref;

const OWNER: u32 = 0xfff;
/// One handle.
const ONCE: u32 = 0x1000;
/// Of `takes`: somebody had the side once.
const OPENED: u32 = 1;
/// Looks at the cells before they are said to be in use. Each one in vain means that somebody has
/// taken one meanwhile.
const LOOKS: u32 = 1_000;

/// One side.
#[repr(C)]
pub(crate) struct Ends {
    /// Bit 0, and above it how often the side was taken.
    takes: AtomicU32,
    cells: [AtomicU32; HOLDERS],
}

/// This process's handle of a side; to be given back by [`Ends::release`].
#[derive(Debug)]
pub(crate) struct Hold {
    cell: usize,
    owner: u32,
    /// The count of forks when it was made; another one if it stands for nothing.
    forks: u32,
}

impl Hold {
    /// Whether it is this process's, and not the copy of one that has forked.
    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.forks == forks() { Ok(()) } else { Err(self.fault()) }
    }

    #[cold]
    fn fault(&self) -> Fault {
        if self.cell < HOLDERS { Fault::Forked } else { Fault::TooManyPeers }
    }

    /// Of no side: what a clone is for which there was no place.
    fn nothing() -> Self {
        Hold { cell: usize::MAX, owner: 0, forks: !forks() }
    }
}

impl Ends {
    /// A side that nobody has had.
    pub(crate) fn new() -> Self {
        Ends { takes: AtomicU32::new(0), cells: core::array::from_fn(|_| AtomicU32::new(0)) }
    }

    /// One handle more for this process.
    ///
    /// [`Fault::TooManyPeers`] if 64 processes hold the side.
    pub(crate) fn hold(&self) -> Result<Hold, Fault> {
        self.hold_for(identify(core::ptr::from_ref(self).addr())?)
    }

    /// As [`hold`](Self::hold), for the process slot or stand-in `owner`.
    pub(crate) fn hold_for(&self, owner: u32) -> Result<Hold, Fault> {
        let hold = self.join(owner)?;
        let taken = |takes: u32| Some(takes.wrapping_add(2 * OPENED) | OPENED);
        self.takes.fetch_update(AcqRel, Relaxed, taken).ok(); // keeps I2
        Ok(hold)
    }

    /// A further handle beside `hold`; one that stands for nothing, as `hold` may do itself, if
    /// there is no place.
    pub(crate) fn again(&self, hold: &Hold) -> Hold {
        if hold.check().is_err() {
            return Hold { ..*hold };
        }
        self.hold().unwrap_or_else(|_| Hold::nothing())
    }

    fn join(&self, owner: u32) -> Result<Hold, Fault> {
        let forks = forks();
        let ours = |seen: u32| seen & OWNER == owner && seen < u32::MAX - OWNER;
        let free = |seen: u32| seen & OWNER == 0;
        loop {
            let find = |fits: &dyn Fn(u32) -> bool| {
                let seen = |cell: usize| (cell, self.cells[cell].load(Relaxed));
                (0..HOLDERS).map(seen).find(|&(_, seen)| fits(seen))
            };
            let (cell, seen) = find(&ours).or_else(|| find(&free)).ok_or(Fault::TooManyPeers)?;
            let next = if free(seen) { ONCE | owner } else { seen + ONCE };
            if self.cells[cell].compare_exchange(seen, next, AcqRel, Relaxed).is_ok() {
                return Ok(Hold { cell, owner, forks });
            }
        }
    }

    /// Gives a handle back. Returns `true` if nobody has the side now; the caller then tells the
    /// other side. A copy made by fork gives back nothing.
    ///
    /// The calling thread need not be registered: a give-back must not fail for want of a place. If
    /// the process is killed, this thread is interrupted before the process's sentinel has ended.
    /// The cell goes to another process only after a recovery and an arrival, which that sentinel's
    /// end begins.
    pub(crate) fn release(&self, hold: &Hold) -> bool {
        if hold.check().is_err() {
            return false;
        }
        let Some(cell) = self.cells.get(hold.cell) else { return false };
        let less = |seen: u32| {
            let ours = seen & OWNER == hold.owner; // or the memory is damaged
            ours.then(|| if seen < 2 * ONCE { 0 } else { seen - ONCE })
        };
        match cell.fetch_update(AcqRel, Relaxed, less) {
            Ok(seen) if seen < 2 * ONCE => {
                fence(SeqCst);
                self.is_gone()
            }
            _ => false,
        }
    }

    /// Whether somebody had the side, and nobody has it now.
    pub(crate) fn is_gone(&self) -> bool {
        for _ in 0..LOOKS {
            let takes = self.takes.load(Acquire);
            let held = |cell: &AtomicU32| cell.load(Acquire) & OWNER != 0;
            if takes & OPENED == 0 || self.cells.iter().any(held) {
                return false;
            }
            if self.takes.load(Relaxed) == takes {
                return true; // by I2
            }
        }
        false
    }

    /// Whether the side is gone indeed, of which `bit` of all the words `ended` says so: that is
    /// set as soon as it is gone, but may be there though it is not. Who clears it looks once more,
    /// and sets it again if the side has gone meanwhile; and has the others told once more by
    /// `tell`, as they may have looked between.
    #[cold]
    pub(crate) fn confirm_gone(
        &self,
        ended: impl Iterator<Item = impl Deref<Target = AtomicU32>> + Clone,
        bit: u32,
        tell: impl FnOnce(),
    ) -> bool {
        if self.is_gone() {
            return true;
        }
        ended.clone().for_each(|word| _ = word.fetch_and(!bit, AcqRel));
        fence(SeqCst);
        let gone = self.is_gone();
        if gone {
            ended.for_each(|word| _ = word.fetch_or(bit, AcqRel));
            tell();
        }
        gone
    }

    /// How many processes have the side. May change at any moment.
    pub(crate) fn count(&self) -> usize {
        let owners = self.cells.iter().map(|cell| cell.load(Relaxed) & OWNER);
        let mut owners: Vec<u32> = owners.filter(|&owner| owner != 0).collect();
        owners.sort_unstable();
        owners.dedup();
        owners.len()
    }

    /// Frees what `dead` had, and sets `bit` of all of `ended` if the side is gone; may be called
    /// again. Then the other side is to be woken in any case: who died may have been the last, and
    /// have told nobody.
    pub(crate) fn recover(
        &self,
        dead: &Dead,
        ended: impl Iterator<Item = impl Deref<Target = AtomicU32>>,
        bit: u32,
    ) {
        for cell in &self.cells {
            let seen = cell.load(Acquire);
            if seen & OWNER == dead.tag {
                cell.compare_exchange(seen, 0, AcqRel, Relaxed).ok();
            }
        }
        if self.is_gone() {
            ended.for_each(|word| _ = word.fetch_or(bit, AcqRel));
        }
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends")
            .field("opened", &(self.takes.load(Relaxed) & OPENED != 0))
            .field("processes", &self.count())
            .finish()
    }
}
