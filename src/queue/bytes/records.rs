//! The ring of records: how records are claimed, committed and passed over.
//!
//! A record is a run of consecutive blocks. The header of its first block holds the number of
//! blocks. Headers are stored apart from the blocks, so that no message can look like a header.
use crate::queue::Line;
use crate::queue::ring::{ClaimError, Position};
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sys::hooks;
use core::ops::ControlFlow;

/// The size of a block, in bytes.
pub(crate) const BLOCK: usize = 64;

/// The largest number of blocks: an extent has 24 bits.
pub(crate) const MAX_BLOCKS: usize = (1 << EXTENT_BITS) - 1;

const PHASE_BITS: u32 = 3;
const OWNER_BITS: u32 = 12;
const EXTENT_BITS: u32 = 24;
const LAP_BITS: u32 = 25;

const MOVED_AT: u32 = 32;
const LEN: u64 = (1 << MOVED_AT) - 1;

const OWNER_AT: u32 = PHASE_BITS;
const EXTENT_AT: u32 = OWNER_AT + OWNER_BITS;
const LAP_AT: u32 = EXTENT_AT + EXTENT_BITS;

/// A header that is this many laps old belongs to no record. It is wiped before its lap number
/// comes round again.
const STALE: u64 = 1 << 20;
/// The number of laps in which every header is looked at once, to wipe it if it is stale.
const SWEEP: usize = 1 << 16;

/// The number of looks at memory that peers change all the while. After that it counts as sound:
/// peers that make progress have found it sound.
const LOOKS: usize = 1_000;

/// The number of attempts that fail because other threads are faster. After that the memory counts
/// as damaged.
const ATTEMPTS: usize = 1 << 22;

/// The phase of a record, or of a message in the in-flight area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No record.
    Free = 0,
    Writing = 1,
    Full = 2,
    Reading = 3,
    /// The message is to be received again.
    Orphan = 4,
    /// The message was received, or was given up.
    Done = 5,
    /// The message waits to be acknowledged. Only in the in-flight area.
    Delivered = 6,
}

/// The word of a header: {lap: 25, extent: 24, owner: 12, phase: 3 bits}.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u64);

/// The field of `bits` bits that begins at bit `at`.
const fn bits(word: u64, at: u32, bits: u32) -> u64 {
    (word >> at) & ((1 << bits) - 1)
}

/// The count of attempts stops here.
const MOST_ATTEMPTS: u64 = 255;

impl State {
    /// A free block of the in-flight area.
    pub(crate) const FREE: State = State(0);

    /// A claimed block of the in-flight area.
    pub(crate) const fn claimed(owner: u32) -> Self {
        State::new(0, 1, owner, Phase::Writing)
    }

    /// A message in the in-flight area that was delivered for the first time.
    pub(crate) const fn delivered(extent: usize, owner: u32) -> Self {
        State::new(0, extent, owner, Phase::Delivered)
    }

    /// How often a message in the in-flight area was delivered before. The count takes the place of
    /// the lap, which such a message does not have.
    #[expect(clippy::cast_possible_truncation, reason = "25 bits")]
    pub(crate) const fn attempts(self) -> u32 {
        bits(self.0, LAP_AT, LAP_BITS) as u32
    }

    /// The same message with one attempt more.
    pub(crate) fn tried(self) -> Self {
        let more = u64::from(bits(self.0, LAP_AT, LAP_BITS) < MOST_ATTEMPTS);
        State(self.0 + (more << LAP_AT))
    }

    const fn new(lap: u64, extent: usize, owner: u32, phase: Phase) -> Self {
        let lap = bits(lap, 0, LAP_BITS) << LAP_AT;
        State(lap | ((extent as u64) << EXTENT_AT) | ((owner as u64) << OWNER_AT) | phase as u64)
    }

    /// The same record in another phase. An `owner` of 0 means that no process holds it.
    #[inline(always)]
    pub(crate) const fn to(self, phase: Phase, owner: u32) -> Self {
        State::new(bits(self.0, LAP_AT, LAP_BITS), self.extent(), owner, phase)
    }

    #[expect(clippy::cast_possible_truncation, reason = "12 bits")]
    #[inline(always)]
    pub(crate) const fn owner(self) -> u32 {
        bits(self.0, OWNER_AT, OWNER_BITS) as u32
    }

    /// The number of blocks. A peer may have written any number: check it before use.
    #[expect(clippy::cast_possible_truncation, reason = "24 bits")]
    #[inline(always)]
    pub(crate) const fn extent(self) -> usize {
        bits(self.0, EXTENT_AT, EXTENT_BITS) as usize
    }

    #[inline(always)]
    pub(crate) const fn is_in(self, phase: Phase) -> bool {
        bits(self.0, 0, PHASE_BITS) == phase as u64
    }

    /// How many laps ago this was written, as seen from `lap`.
    #[inline(always)]
    const fn age(self, lap: u64) -> u64 {
        bits(lap.wrapping_sub(bits(self.0, LAP_AT, LAP_BITS)), 0, LAP_BITS)
    }

    /// Whether a record begins here in `lap`.
    #[inline(always)]
    const fn is_of(self, lap: u64) -> bool {
        self.age(lap) == 0 && !self.is_in(Phase::Free)
    }
}

/// The header of a block: what is known of the record that begins there.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    state: AtomicU64,
    /// {index in the in-flight area that the message moves to, plus 1: 32, length in bytes: 32
    /// bits}. The sender writes it before the commit, and the process that moves the message
    /// writes the index.
    len: AtomicU64,
}

impl Header {
    pub(crate) fn new() -> Self {
        Header { state: AtomicU64::new(0), len: AtomicU64::new(0) }
    }

    /// The length of the message in bytes. A peer may have written any number: check it before use.
    #[inline(always)]
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_len(&self, len: u64) {
        self.len.store(len, Relaxed);
    }

    /// Notes where a message, which the caller has claimed, moves to.
    pub(crate) fn set_moved(&self, index: usize) {
        self.len.store(self.len() & LEN | (index as u64 + 1) << MOVED_AT, Relaxed);
    }

    /// Where the message of a dead receiver moved to, or was about to move to.
    pub(crate) fn moved(&self) -> Option<usize> {
        usize::try_from(self.len() >> MOVED_AT).ok()?.checked_sub(1)
    }

    /// Notes that the message stays here.
    pub(crate) fn forget_moved(&self) {
        self.len.store(self.len() & LEN, Relaxed);
    }

    #[inline(always)]
    pub(crate) fn load(&self) -> State {
        State(self.state.load(Acquire))
    }

    /// Stores the state of a record that the caller has claimed.
    #[inline(always)]
    pub(crate) fn store(&self, state: State) {
        self.state.store(state.0, Release);
    }

    #[inline(always)]
    pub(crate) fn exchange(&self, seen: State, next: State) -> bool {
        self.state.compare_exchange(seen.0, next.0, AcqRel, Relaxed).is_ok()
    }
}

/// A record that the caller has claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) index: usize,
    pub(crate) state: State,
}

/// Three positions in the ring. Any process moves a mark over the next record, one at a time, as
/// soon as the record's state allows it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Marks {
    /// Where senders claim.
    tail: Line,
    /// Where receivers claim.
    head: Line,
    /// Every record before this position is done.
    freed: Line,
}

impl Marks {
    pub(crate) fn new() -> Self {
        let line = || Line(AtomicU64::new(0));
        Marks { tail: line(), head: line(), freed: line() }
    }
}

/// The ring: its marks and the headers of its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records<'a> {
    pub(crate) marks: &'a Marks,
    pub(crate) headers: &'a [Header],
}

impl Records<'_> {
    /// Claims `extent` consecutive blocks for writing; at most as many as the ring has.
    #[inline(always)]
    pub(crate) fn claim_free(&self, extent: usize, owner: u32) -> Result<Claim, ClaimError> {
        let blocks = self.headers.len();
        self.attempt(|| {
            let at = self.position(&self.marks.tail)?;
            let header = &self.headers[at.index];
            let seen = header.load();
            if seen.is_of(at.lap) {
                self.pass(&self.marks.tail, at, seen)?;
                return Ok(None);
            }
            let rest = blocks - at.index;
            let fits = extent <= rest;
            // A record does not go round the end of the ring. If it does not fit before the end,
            // the blocks there are skipped, as soon as the record fits behind them. A record that
            // is too long for that fits once the ring is empty.
            let (claimed, needed) = if fits {
                (State::new(at.lap, extent, owner, Phase::Writing), extent)
            } else {
                let both = rest + extent;
                let skipped = State::new(at.lap, rest, 0, Phase::Done);
                (skipped, if both <= blocks { both } else { rest })
            };
            if !self.has_room(at, needed)? || !header.exchange(seen, claimed) {
                return Ok(None);
            }
            // This thread or another one moves the mark on. If the mark had already left this lap,
            // the claim is stale and must be undone. The header then was in the middle of a record,
            // or in a state from an earlier lap.
            let next = at.after(claimed.extent(), blocks);
            let moved =
                self.marks.tail.0.compare_exchange(at.encode(), next.encode(), AcqRel, Acquire);
            if let Err(now) = moved
                && Position::decode(now).since(at, blocks).is_none_or(|ahead| ahead > blocks)
            {
                header.exchange(claimed, seen);
                return Ok(None);
            }
            if at.index == 0 {
                self.wipe(at.lap);
            }
            Ok(fits.then_some(Claim { index: at.index, state: claimed }))
        })
    }

    /// Claims the next message for reading.
    #[inline(always)]
    pub(crate) fn claim_full(&self, owner: u32) -> Result<Claim, ClaimError> {
        self.next_full(|at, header, seen| {
            let extent = self.extent(at, seen)?;
            hooks::pause("byte queue: a message is seen, and not yet claimed");
            if extent > 1 && !self.is_before_tail(at.after(extent, self.headers.len())) {
                // Unless another receiver has the message by now, and the senders are laps ahead.
                return if header.load() == seen { Err(ClaimError::Corrupt) } else { Ok(None) };
            }
            let state = seen.to(Phase::Reading, owner);
            if !header.exchange(seen, state) {
                return Ok(None);
            }
            self.pass(&self.marks.head, at, state)?;
            Ok(Some(Claim { index: at.index, state }))
        })
    }

    /// Whether a committed message, which ends at `end`, ends before the tail. If not, the memory
    /// is damaged.
    ///
    /// It is asked of messages of several blocks only: for the others it would cost a look at the
    /// cache line of the senders. [`is_sound`](Self::is_sound) has checked every message that was
    /// there when the segment was opened.
    #[inline(always)]
    fn is_before_tail(&self, end: Position) -> bool {
        self.marks.tail.0.load(Relaxed).wrapping_sub(end.encode()) < 2 << EXTENT_BITS
    }

    /// Whether the three marks lie on one chain of records that is not longer than the ring, and no
    /// other header says that a record begins there in this lap or a later one. It is asked when
    /// memory is opened.
    ///
    /// If so, claims never overlap (I2): each begins at a mark and moves that mark to its end. With
    /// other bytes, two claims could get the same blocks.
    pub(crate) fn is_sound(&self) -> bool {
        // Every step that a peer takes meanwhile moves a mark, except for the first step of a
        // claim, which the next look sees from the beginning.
        let marks = [&self.marks.freed, &self.marks.head, &self.marks.tail];
        let read = || marks.map(|mark| mark.0.load(Acquire));
        check_while_changing(read, |marks| self.is_chain(marks).then_some(()), ()).is_some()
    }

    fn is_chain(&self, marks: [u64; 3]) -> bool {
        let blocks = self.headers.len();
        let [freed, head, tail] = marks.map(Position::decode);
        if marks.iter().any(|&mark| Position::decode(mark).index >= blocks) {
            return false;
        }
        // Only `tail` may be behind the others: before records that were given up (I3).
        let tail_is_first = freed.since(tail, blocks).is_some();
        let mut at = if tail_is_first { tail } else { freed };
        // What is left of the last record on the chain, and the marks that were not yet found.
        let (mut rest, mut is_on_chain, mut left) = (0, true, [freed, head, tail].map(Some));
        for _ in 0..blocks {
            let seen = self.headers[at.index].load();
            let is_next = rest == 0 && is_on_chain;
            if is_next {
                left.iter_mut().for_each(|mark| *mark = mark.filter(|&mark| mark != at));
                is_on_chain = seen.is_of(at.lap);
            }
            if is_next && is_on_chain {
                let Ok(extent) = self.extent(at, seen) else { return false };
                rest = extent;
            } else if !seen.is_in(Phase::Free)
                && !(1..STALE + 2 * SWEEP as u64).contains(&seen.age(at.lap))
            {
                return false;
            }
            rest = rest.saturating_sub(1);
            at = at.after(1, blocks);
        }
        // If the ring is full, a mark is where the next lap begins.
        if is_on_chain && rest == 0 {
            left.iter_mut().for_each(|mark| *mark = mark.filter(|&mark| mark != at));
        }
        rest == 0 && left == [None; 3]
    }

    /// Returns the number of blocks of the next message, without claiming it.
    pub(crate) fn find_full(&self) -> Result<usize, ClaimError> {
        self.next_full(|at, _, seen| self.extent(at, seen).map(Some))
    }

    #[inline(always)]
    fn next_full<R>(
        &self,
        take: impl Fn(Position, &Header, State) -> Result<Option<R>, ClaimError>,
    ) -> Result<R, ClaimError> {
        self.attempt(|| {
            let at = self.position(&self.marks.head)?;
            let header = &self.headers[at.index];
            let seen = header.load();
            if !seen.is_of(at.lap) || seen.is_in(Phase::Writing) {
                // If the mark has moved meanwhile, this is not the next header.
                return match self.marks.head.0.load(Acquire) == at.encode() {
                    true if seen.is_of(at.lap) => Err(ClaimError::Pending),
                    true => Err(ClaimError::Unavailable),
                    false => Ok(None),
                };
            }
            if seen.is_in(Phase::Full) {
                return take(at, header, seen);
            }
            self.pass(&self.marks.head, at, seen)?;
            Ok(None)
        })
    }

    /// Whether `needed` blocks from `at` are free. `Ok(false)` means that the next record does not
    /// begin at `at` any more.
    #[inline(always)]
    fn has_room(&self, at: Position, needed: usize) -> Result<bool, ClaimError> {
        match self.used_before(at)? {
            Some(used) if self.fit(used, needed) => Ok(true),
            _ => self.makes_room(at, needed),
        }
    }

    /// The number of blocks from `freed` to `at`; `None` if `at` is before `freed`.
    #[inline(always)]
    fn used_before(&self, at: Position) -> Result<Option<usize>, ClaimError> {
        let freed = self.position(&self.marks.freed)?;
        Ok(at.since(freed, self.headers.len()))
    }

    #[inline(always)]
    fn fit(&self, used: usize, needed: usize) -> bool {
        used + needed <= self.headers.len()
    }

    #[cold]
    #[inline(never)]
    fn makes_room(&self, at: Position, needed: usize) -> Result<bool, ClaimError> {
        self.reclaim()?;
        match self.used_before(at)? {
            Some(used) if used > self.headers.len() => Err(ClaimError::Corrupt),
            Some(used) if self.fit(used, needed) => Ok(true),
            Some(_) if self.marks.tail.0.load(Acquire) == at.encode() => {
                Err(ClaimError::Unavailable)
            }
            _ => Ok(false),
        }
    }

    /// Moves `freed` over all records that are done.
    #[cold]
    pub(crate) fn reclaim(&self) -> Result<(), ClaimError> {
        let blocks = self.headers.len();
        self.attempt(|| {
            let start = self.position(&self.marks.freed)?;
            let mut at = start;
            let mut head = self.position(&self.marks.head)?;
            loop {
                let seen = self.headers[at.index].load();
                let is_far = at.since(start, blocks).is_none_or(|walked| walked >= blocks);
                if is_far || !seen.is_of(at.lap) || !seen.is_in(Phase::Done) {
                    break;
                }
                if at.since(head, blocks).is_some() {
                    // The head comes first: keeps I3.
                    self.pass(&self.marks.head, at, seen)?;
                    head = self.position(&self.marks.head)?;
                    if at.since(head, blocks).is_some() {
                        return Err(ClaimError::Corrupt);
                    }
                }
                at = at.after(self.extent(at, seen)?, blocks);
            }
            let freed = &self.marks.freed.0;
            let moved = freed.compare_exchange(start.encode(), at.encode(), AcqRel, Relaxed);
            // If another thread has moved the mark, it may have moved it less far.
            Ok((at == start || moved.is_ok()).then_some(()))
        })
    }

    /// Calls `visit` for every record that is not done, and for others.
    pub(crate) fn visit(
        &self,
        mut visit: impl FnMut(&Header, Claim) -> ControlFlow<()>,
    ) -> Result<(), ClaimError> {
        let blocks = self.headers.len();
        let start = self.position(&self.marks.freed)?;
        let mut at = start;
        // Every record that was there at the beginning is less than a lap away.
        while at.since(start, blocks).is_some_and(|walked| walked < blocks) {
            let header = &self.headers[at.index];
            let state = header.load();
            if state.is_of(at.lap) {
                let extent = self.extent(at, state)?;
                if visit(header, Claim { index: at.index, state }).is_break() {
                    break;
                }
                at = at.after(extent, blocks);
            } else {
                let freed = self.position(&self.marks.freed)?;
                if at.since(freed, blocks).is_some() {
                    break;
                }
                at = freed; // the record that was here is done, and other threads write here
            }
        }
        Ok(())
    }

    /// Returns where the next record will begin, if every record before that is done.
    pub(crate) fn end_if_done(&self) -> Option<Position> {
        let blocks = self.headers.len();
        let start = self.position(&self.marks.freed).ok()?;
        let mut at = start;
        while at.since(start, blocks).is_some_and(|walked| walked < blocks) {
            let state = self.headers[at.index].load();
            if !state.is_of(at.lap) {
                break;
            }
            if !state.is_in(Phase::Done) {
                return None;
            }
            at = at.after(self.extent(at, state).ok()?, blocks);
        }
        Some(at)
    }

    /// Moves a mark over the record that begins at `at`.
    #[inline(always)]
    fn pass(&self, mark: &Line, at: Position, state: State) -> Result<(), ClaimError> {
        let next = at.after(self.extent(at, state)?, self.headers.len());
        mark.0.compare_exchange(at.encode(), next.encode(), AcqRel, Relaxed).ok();
        Ok(())
    }

    /// The number of blocks of a record, which do not go past the end of the ring.
    #[inline(always)]
    fn extent(&self, at: Position, state: State) -> Result<usize, ClaimError> {
        let extent = state.extent();
        if extent > 0 && extent <= self.headers.len() - at.index {
            Ok(extent)
        } else {
            Err(ClaimError::Corrupt)
        }
    }

    #[inline(always)]
    fn position(&self, mark: &Line) -> Result<Position, ClaimError> {
        let at = Position::decode(mark.0.load(Acquire));
        if at.index < self.headers.len() { Ok(at) } else { Err(ClaimError::Corrupt) }
    }

    /// Repeats `act` until it gives a result or fails. Each time that it gives `None`, another
    /// thread has made progress.
    #[inline(always)]
    fn attempt<R>(&self, act: impl Fn() -> Result<Option<R>, ClaimError>) -> Result<R, ClaimError> {
        for _ in 0..ATTEMPTS {
            if let Some(done) = act()? {
                return Ok(done);
            }
        }
        Err(ClaimError::Corrupt)
    }

    /// Wipes some of the stale headers: those that have been in the middle of records for so long
    /// that their lap number could come round again. It is called once a lap.
    #[cold]
    fn wipe(&self, lap: u64) {
        let blocks = self.headers.len();
        let count = blocks.div_ceil(SWEEP);
        // Any bits of the lap would do, as long as consecutive laps give consecutive numbers.
        let first = (lap & ((1 << EXTENT_BITS) - 1)) as usize % blocks * count;
        for i in first..first + count {
            let header = &self.headers[i % blocks];
            let seen = header.load();
            if !seen.is_in(Phase::Free) && seen.age(lap) >= STALE {
                header.exchange(seen, State::new(lap, 0, 0, Phase::Free));
            }
        }
    }
}

/// Checks memory that peers may be changing: repeats `check` on what `read` returns until it gives
/// a result. Returns `None` if it gave none three times although nothing had changed, and
/// `changing` if something changes all the while.
pub(crate) fn check_while_changing<S: Copy + PartialEq, R>(
    read: impl Fn() -> S,
    check: impl Fn(S) -> Option<R>,
    changing: R,
) -> Option<R> {
    let mut unchanged = 0;
    for _ in 0..LOOKS {
        let seen = read();
        let checked = check(seen);
        if checked.is_some() {
            return checked;
        }
        unchanged += u32::from(read() == seen);
        if unchanged == 3 {
            return None;
        }
    }
    Some(changing)
}
