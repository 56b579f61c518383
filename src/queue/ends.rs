//! The set of processes that hold one side of something: the senders of a channel, its receivers,
//! or a side of a pipe.
//!
//! # Death
//! If a process is killed before it has taken a cell, it holds nothing. After that, recovery frees
//! its cell. If it is killed after it has freed its last cell, but before it has told the other
//! side, recovery tells the other side: the container always does that in its own `recover`.
//!
//! # How it works
//! There are 64 cells of {handles: 20, owner: 12 bits}, 0 if free, and a word that counts how often
//! the side was taken.
//!
//! | cell | next |
//! |---|---|
//! | free | {1, owner} by the first handle of a process |
//! | {n, owner} | {n + 1, owner} or {n - 1, owner} by another handle; free by the last, or by recovery |
//!
//! - I1. If a process has a handle, a cell names it. (If two of its threads take their first handle
//!   at the same time, two cells may name it.)
//! - I2. `takes` is not 0 once a handle was given out. It changes after a cell was taken, and
//!   before the handle is given out. So if two loads of `takes` give the same value, a look at all
//!   cells in between shows them as they were at one moment. Otherwise such a look could miss that
//!   one process hands the side to another: it would read the cell of the second process too early,
//!   and that of the first one too late.
//! - I3. Only the owner of a cell that is not free, or recovery after the owner's death, changes
//!   it.
//!
//! Ordering: a cell is freed with Release and read with Acquire, so a thread that sees that the
//! side is gone sees all that its holders did. If two holders leave at the same time, at least one
//! sees that the side is gone: each has a fence between its leaving and its look.
use crate::error::Fault;
use crate::segment::{forks, identify};
use crate::shareable::Dead;
use crate::sync::HOLDERS;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use crate::sync::atomic::fence;
use core::fmt;

const OWNER: u32 = 0xfff;
/// One handle in a cell.
const HANDLE: u32 = 0x1000;
/// In `takes`: the side was taken at least once.
const OPENED: u32 = 1;
/// The number of looks at the cells. After that, the side counts as held: each failed look means
/// that a process has taken the side meanwhile.
const LOOKS: u32 = 1_000;

/// The holders of one side.
#[repr(C)]
pub(crate) struct Ends {
    /// Bit 0, and above it how often the side was taken.
    takes: AtomicU32,
    cells: [AtomicU32; HOLDERS],
}

/// A handle of a side that this process holds. [`Ends::release`] gives it back.
#[derive(Debug)]
pub(crate) struct Hold {
    cell: usize,
    owner: u32,
    /// The count of forks when the handle was made; another number if it is a handle of no side.
    forks: u32,
}

impl Hold {
    /// Fails in a forked child, which has only a copy of the handle.
    #[inline(always)]
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.forks == forks() { Ok(()) } else { Err(self.fault()) }
    }

    #[cold]
    fn fault(&self) -> Fault {
        if self.cell < HOLDERS { Fault::Forked } else { Fault::TooManyPeers }
    }

    /// A handle of no side: a clone for which no cell was free.
    fn of_no_side() -> Self {
        Hold { cell: usize::MAX, owner: 0, forks: !forks() }
    }
}

impl Ends {
    /// A side that no process has taken yet.
    pub(crate) fn new() -> Self {
        Ends { takes: AtomicU32::new(0), cells: core::array::from_fn(|_| AtomicU32::new(0)) }
    }

    /// Takes a further handle for this process. Fails with [`Fault::TooManyPeers`] if 64 processes
    /// hold the side.
    pub(crate) fn hold(&self) -> Result<Hold, Fault> {
        self.hold_for(identify(core::ptr::from_ref(self).addr())?)
    }

    /// Like [`hold`](Self::hold), but for the process slot or stand-in `owner`.
    pub(crate) fn hold_for(&self, owner: u32) -> Result<Hold, Fault> {
        let hold = self.take_cell(owner)?;
        let taken = |takes: u32| Some(takes.wrapping_add(2 * OPENED) | OPENED);
        self.takes.fetch_update(AcqRel, Relaxed, taken).ok(); // keeps I2
        Ok(hold)
    }

    /// Takes a further handle beside `hold`. If no cell is free, or `hold` is itself a handle of no
    /// side, the result is a handle of no side.
    pub(crate) fn again(&self, hold: &Hold) -> Hold {
        if hold.check().is_err() {
            return Hold { ..*hold };
        }
        self.hold().unwrap_or_else(|_| Hold::of_no_side())
    }

    /// Counts a further handle in the cell of `owner`, or takes a free cell.
    fn take_cell(&self, owner: u32) -> Result<Hold, Fault> {
        let forks = forks();
        let ours = |seen: u32| seen & OWNER == owner && seen < u32::MAX - OWNER;
        let free = |seen: u32| seen & OWNER == 0;
        loop {
            let find = |fits: &dyn Fn(u32) -> bool| {
                let seen = |cell: usize| (cell, self.cells[cell].load(Relaxed));
                (0..HOLDERS).map(seen).find(|&(_, seen)| fits(seen))
            };
            let (cell, seen) = find(&ours).or_else(|| find(&free)).ok_or(Fault::TooManyPeers)?;
            let next = if free(seen) { HANDLE | owner } else { seen + HANDLE };
            if self.cells[cell].compare_exchange(seen, next, AcqRel, Relaxed).is_ok() {
                return Ok(Hold { cell, owner, forks });
            }
        }
    }

    /// Gives a handle back. Returns `true` if the side is gone now: the caller then tells the other
    /// side. A copy made by `fork` gives back nothing.
    ///
    /// The calling thread need not be registered, so that this cannot fail when all thread slots
    /// are in use. That is safe: if the process is killed, this thread is stopped before the
    /// process's sentinel ends. Recovery begins only then, and only after it can another process
    /// get the cell.
    pub(crate) fn release(&self, hold: &Hold) -> bool {
        if hold.check().is_err() {
            return false;
        }
        let Some(cell) = self.cells.get(hold.cell) else { return false };
        let less = |seen: u32| {
            let ours = seen & OWNER == hold.owner; // otherwise the memory is damaged
            ours.then(|| if seen < 2 * HANDLE { 0 } else { seen - HANDLE })
        };
        match cell.fetch_update(AcqRel, Relaxed, less) {
            Ok(seen) if seen < 2 * HANDLE => {
                fence(SeqCst);
                self.is_gone()
            }
            _ => false,
        }
    }

    /// Whether the side is gone: it was taken at least once, and no process holds it now.
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

    /// Whether the side is really gone, where `bit` of the word `ended` says so. The bit is set as
    /// soon as the side is gone, but may also be set while a process holds the side. In that case
    /// this clears it. If the side is gone after that, this sets the bit again and calls `tell`,
    /// which must wake the threads that may have read the word in between.
    #[cold]
    pub(crate) fn confirm_gone(&self, ended: &AtomicU32, bit: u32, tell: impl FnOnce()) -> bool {
        if self.is_gone() {
            return true;
        }
        ended.fetch_and(!bit, AcqRel);
        fence(SeqCst);
        let gone = self.is_gone();
        if gone {
            ended.fetch_or(bit, AcqRel);
            tell();
        }
        gone
    }

    /// The number of processes that hold the side. It may change at any moment.
    pub(crate) fn count(&self) -> usize {
        let owners = self.cells.iter().map(|cell| cell.load(Relaxed) & OWNER);
        let mut owners: Vec<u32> = owners.filter(|&owner| owner != 0).collect();
        owners.sort_unstable();
        owners.dedup();
        owners.len()
    }

    /// Frees the cells of `dead`, and sets `bit` of the word `ended` if the side is gone. May be
    /// called again. The caller must then wake the other side in any case: the dead process may
    /// have been the last holder, and may have died before it told the other side.
    pub(crate) fn recover(&self, dead: &Dead, ended: &AtomicU32, bit: u32) {
        for cell in &self.cells {
            let seen = cell.load(Acquire);
            if seen & OWNER == dead.tag {
                cell.compare_exchange(seen, 0, AcqRel, Relaxed).ok();
            }
        }
        if self.is_gone() {
            ended.fetch_or(bit, AcqRel);
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
