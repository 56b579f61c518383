//! The ring of records: claiming, committing, stepping over.
//!
//! A record is a run of blocks; the header of its first block says how many they are. Headers lie
//! apart from what is written to the blocks, so that no message can look like one.
use crate::queue::Line;
use crate::queue::ring::ClaimError;
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

/// A header this many laps old is of no record, and is wiped before its lap comes round again.
const STALE: u64 = 1 << 20;
/// Within so many laps each header is looked at once.
const SWEEP: usize = 1 << 16;

/// A position that is so many laps after another is before it: laps have 40 bits.
const HALF_THE_LAPS: u64 = 1 << (u64::BITS - EXTENT_BITS - 1);

/// Looks at a ring that others move, before it is held to be sound.
const LOOKS: usize = 1_000;

/// Attempts that come to nothing because others were faster, before the memory is held to be
/// damaged.
const ATTEMPTS: usize = 1 << 22;

/// What a record is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No record.
    Free = 0,
    Writing = 1,
    Full = 2,
    Reading = 3,
    Orphan = 4,
    Done = 5,
    /// Only in the in-flight area.
    Delivered = 6,
}

/// The word of a header: {lap: 25, extent: 24, owner: 12, phase: 3 bits}.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u64);

/// Fewer than 32 bits of a word.
const fn bits(word: u64, at: u32, bits: u32) -> u64 {
    (word >> at) & ((1 << bits) - 1)
}

/// This many attempts stand for all beyond.
const MOST_ATTEMPTS: u64 = 255;

impl State {
    /// Of a block in the in-flight area.
    pub(crate) const FREE: State = State(0);

    /// Of a block in the in-flight area.
    pub(crate) const fn claimed(owner: u32) -> Self {
        State::new(0, 1, owner, Phase::Writing)
    }

    /// Of a message in the in-flight area, delivered for the first time.
    pub(crate) const fn delivered(extent: usize, owner: u32) -> Self {
        State::new(0, extent, owner, Phase::Delivered)
    }

    /// How often a message in the in-flight area was delivered before. It has no lap.
    #[expect(clippy::cast_possible_truncation, reason = "25 bits")]
    pub(crate) const fn attempts(self) -> u32 {
        bits(self.0, LAP_AT, LAP_BITS) as u32
    }

    /// One attempt more.
    pub(crate) fn tried(self) -> Self {
        let more = u64::from(bits(self.0, LAP_AT, LAP_BITS) < MOST_ATTEMPTS);
        State(self.0 + (more << LAP_AT))
    }

    const fn new(lap: u64, extent: usize, owner: u32, phase: Phase) -> Self {
        let lap = bits(lap, 0, LAP_BITS) << LAP_AT;
        State(lap | ((extent as u64) << EXTENT_AT) | ((owner as u64) << OWNER_AT) | phase as u64)
    }

    /// The same record in another phase; `owner` is 0 where nobody has it.
    #[inline(always)]
    pub(crate) const fn to(self, phase: Phase, owner: u32) -> Self {
        State::new(bits(self.0, LAP_AT, LAP_BITS), self.extent(), owner, phase)
    }

    #[expect(clippy::cast_possible_truncation, reason = "12 bits")]
    #[inline(always)]
    pub(crate) const fn owner(self) -> u32 {
        bits(self.0, OWNER_AT, OWNER_BITS) as u32
    }

    /// Its blocks. To be checked before it is used.
    #[expect(clippy::cast_possible_truncation, reason = "24 bits")]
    #[inline(always)]
    pub(crate) const fn extent(self) -> usize {
        bits(self.0, EXTENT_AT, EXTENT_BITS) as usize
    }

    #[inline(always)]
    pub(crate) const fn is_in(self, phase: Phase) -> bool {
        bits(self.0, 0, PHASE_BITS) == phase as u64
    }

    /// How many laps before `lap`.
    #[inline(always)]
    const fn age(self, lap: u64) -> u64 {
        bits(lap.wrapping_sub(bits(self.0, LAP_AT, LAP_BITS)), 0, LAP_BITS)
    }

    /// Whether it is that of a record that begins here in `lap`.
    #[inline(always)]
    const fn is_of(self, lap: u64) -> bool {
        self.age(lap) == 0 && !self.is_in(Phase::Free)
    }
}

/// What is known of the record that begins at a block.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    state: AtomicU64,
    /// {where in the in-flight area the message is, plus 1: 32, bytes of the message: 32 bits}:
    /// written before the commit, and by the process that moves the message.
    len: AtomicU64,
}

impl Header {
    pub(crate) fn new() -> Self {
        Header { state: AtomicU64::new(0), len: AtomicU64::new(0) }
    }

    /// Bytes of the message. To be checked before it is used.
    #[inline(always)]
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_len(&self, len: u64) {
        self.len.store(len, Relaxed);
    }

    /// Notes where a message goes, which the caller has claimed.
    pub(crate) fn set_moved(&self, index: usize) {
        self.len.store(self.len() & LEN | (index as u64 + 1) << MOVED_AT, Relaxed);
    }

    /// Where the message of a dead reader went, or was to go.
    pub(crate) fn moved(&self) -> Option<usize> {
        usize::try_from(self.len() >> MOVED_AT).ok()?.checked_sub(1)
    }

    /// The message stays here.
    pub(crate) fn forget_moved(&self) {
        self.len.store(self.len() & LEN, Relaxed);
    }

    #[inline(always)]
    pub(crate) fn load(&self) -> State {
        State(self.state.load(Acquire))
    }

    /// Of a record that the caller has claimed.
    #[inline(always)]
    pub(crate) fn store(&self, state: State) {
        self.state.store(state.0, Release);
    }

    #[inline(always)]
    pub(crate) fn exchange(&self, seen: State, next: State) -> bool {
        self.state.compare_exchange(seen.0, next.0, AcqRel, Relaxed).is_ok()
    }
}

/// A place in the endless sequence of blocks. Its laps are counted round the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    lap: u64,
    pub(crate) index: usize,
}

impl Position {
    #[inline(always)]
    fn decode(word: u64) -> Self {
        Position { lap: word >> EXTENT_BITS, index: (word & ((1 << EXTENT_BITS) - 1)) as usize }
    }

    #[inline(always)]
    fn encode(self) -> u64 {
        (self.lap << EXTENT_BITS) | self.index as u64
    }

    /// The position after a record of `extent` blocks, in a ring of `blocks`.
    #[inline(always)]
    fn after(self, extent: usize, blocks: usize) -> Self {
        match self.index + extent {
            index if index < blocks => Position { lap: self.lap, index },
            _ => Position { lap: self.lap.wrapping_add(1) & (u64::MAX >> EXTENT_BITS), index: 0 },
        }
    }

    /// How many blocks it is after `earlier`, or a number larger than any ring's if it is more than
    /// a lap or two; `None` if it is before.
    #[inline(always)]
    fn since(self, earlier: Position, blocks: usize) -> Option<u64> {
        let (index, earlier_index) = (self.index as u64, earlier.index as u64);
        match self.lap.wrapping_sub(earlier.lap) << EXTENT_BITS >> EXTENT_BITS {
            0 => index.checked_sub(earlier_index),
            1 => Some(blocks as u64 + index - earlier_index),
            laps if laps < HALF_THE_LAPS => Some(u64::MAX >> 1),
            _ => None,
        }
    }
}

/// A record that the caller has claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) index: usize,
    pub(crate) state: State,
}

/// How far the ring has come: three positions, each moved over one record at a time, by whoever
/// sees that it can be.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Marks {
    /// Writers claim here.
    tail: Line,
    /// Readers claim here.
    head: Line,
    /// All before it is done with.
    freed: Line,
}

impl Marks {
    pub(crate) fn new() -> Self {
        let line = || Line(AtomicU64::new(0));
        Marks { tail: line(), head: line(), freed: line() }
    }
}

/// The ring itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records<'a> {
    pub(crate) marks: &'a Marks,
    pub(crate) headers: &'a [Header],
}

impl Records<'_> {
    /// Claims `extent` blocks that follow each other for writing; at most as many as the ring has.
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
            // A record does not go round the end: what is left there is skipped, and not before the
            // record has room, too. One that is too long for that has it when the ring has run
            // empty.
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
            // The mark moves on, by this or another's hand. If it was elsewhere all the while, the
            // claim is of a lap long gone, and nobody's: its header is in the middle of a record,
            // or in an earlier state than that of the lap.
            let next = at.after(claimed.extent(), blocks);
            let moved =
                self.marks.tail.0.compare_exchange(at.encode(), next.encode(), AcqRel, Acquire);
            if let Err(now) = moved
                && Position::decode(now).since(at, blocks).is_none_or(|ahead| ahead > blocks as u64)
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
                // Or the message is another receiver's by now, and the writers are laps ahead.
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

    /// Whether a message that ends there, and was committed, ends where no writer claims any more.
    ///
    /// It does, or the memory is damaged. This is asked of messages of several blocks only; the
    /// others are not worth a look at the line of the writers. [`is_sound`](Self::is_sound) has
    /// looked at all that was there when the segment was opened.
    #[inline(always)]
    fn is_before_tail(&self, end: Position) -> bool {
        self.marks.tail.0.load(Relaxed).wrapping_sub(end.encode()) < 2 << EXTENT_BITS
    }

    /// Whether the marks lie on one chain of records of at most the ring's length, and no other
    /// header says that a record begins there in this lap or a later one.
    ///
    /// If so, claims never overlap (I2): each begins at a mark and moves that mark to its end.
    /// Other bytes could give two claims the same blocks. To be asked when the memory is opened.
    pub(crate) fn is_sound(&self) -> bool {
        // Peers that follow the protocol may be at work meanwhile. What they do moves a mark, all
        // but the first step of a claim, which the next look sees from the beginning.
        let mut still = 0;
        for _ in 0..LOOKS {
            let marks = || {
                [&self.marks.freed, &self.marks.head, &self.marks.tail]
                    .map(|mark| mark.0.load(Acquire))
            };
            let before = marks();
            if self.is_chain(before) {
                return true;
            }
            still += u32::from(marks() == before);
            if still == 3 {
                return false;
            }
        }
        true // they move the marks all the while, so they have found the chain whole
    }

    fn is_chain(&self, marks: [u64; 3]) -> bool {
        let blocks = self.headers.len();
        let [freed, head, tail] = marks.map(Position::decode);
        if marks.iter().any(|&mark| Position::decode(mark).index >= blocks) {
            return false;
        }
        // Only `tail` may lag behind the others, over records that were given up: I3.
        let tail_is_first = freed.since(tail, blocks).is_some();
        let mut at = if tail_is_first { tail } else { freed };
        // How far the record goes that was last found on the chain, and the marks that were not yet
        // met.
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
        // A full ring: a mark is where the next lap begins.
        if is_on_chain && rest == 0 {
            left.iter_mut().for_each(|mark| *mark = mark.filter(|&mark| mark != at));
        }
        rest == 0 && left == [None; 3]
    }

    /// How many blocks the next message has, without a claim.
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
                // If the mark has moved meanwhile, the header is not what is next.
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

    /// Whether `needed` blocks from `at`, where the next record begins, are done with. Nothing if
    /// that is not so any more.
    #[inline(always)]
    fn has_room(&self, at: Position, needed: usize) -> Result<bool, ClaimError> {
        match self.is_free(at, needed) {
            Ok(Some(false)) => self.makes_room(at, needed),
            known => known.map(|free| free.unwrap_or(false)),
        }
    }

    /// Whether `freed` says so; nothing if the next record begins elsewhere.
    #[inline(always)]
    fn is_free(&self, at: Position, needed: usize) -> Result<Option<bool>, ClaimError> {
        let blocks = self.headers.len() as u64;
        let freed = self.position(&self.marks.freed)?;
        match at.since(freed, self.headers.len()) {
            Some(used) if used > blocks => Err(ClaimError::Corrupt),
            Some(used) => Ok(Some(used + needed as u64 <= blocks)),
            None => Ok(None),
        }
    }

    #[cold]
    #[inline(never)]
    fn makes_room(&self, at: Position, needed: usize) -> Result<bool, ClaimError> {
        self.reclaim()?;
        match self.is_free(at, needed)? {
            Some(false) if self.marks.tail.0.load(Acquire) == at.encode() => {
                Err(ClaimError::Unavailable)
            }
            free => Ok(free == Some(true)),
        }
    }

    /// Moves `freed` over all records that are done with.
    #[cold]
    pub(crate) fn reclaim(&self) -> Result<(), ClaimError> {
        let blocks = self.headers.len();
        self.attempt(|| {
            let start = self.position(&self.marks.freed)?;
            let mut at = start;
            let mut head = self.position(&self.marks.head)?;
            loop {
                let seen = self.headers[at.index].load();
                let far =
                    at.since(start, blocks).is_none_or(|blocks_on| blocks_on >= blocks as u64);
                if far || !seen.is_of(at.lap) || !seen.is_in(Phase::Done) {
                    break;
                }
                if at.since(head, blocks).is_some() {
                    // Readers come first: keeps I3.
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
            // Another's move may have been shorter.
            Ok((at == start || moved.is_ok()).then_some(()))
        })
    }

    /// Shows every record that is not done with to `visit`, and others.
    pub(crate) fn visit(
        &self,
        mut visit: impl FnMut(&Header, Claim) -> ControlFlow<()>,
    ) -> Result<(), ClaimError> {
        let blocks = self.headers.len();
        let start = self.position(&self.marks.freed)?;
        let mut at = start;
        // What was there at the beginning lies within a lap from it.
        while at.since(start, blocks).is_some_and(|walked| walked < blocks as u64) {
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
                at = freed; // what was here is done with, and others write here
            }
        }
        Ok(())
    }

    /// Where the next record will begin, if every record before it is done with.
    pub(crate) fn end_if_done(&self) -> Option<Position> {
        let blocks = self.headers.len();
        let start = self.position(&self.marks.freed).ok()?;
        let mut at = start;
        while at.since(start, blocks).is_some_and(|walked| walked < blocks as u64) {
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

    /// The blocks of a record, none of which is beyond the end.
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

    /// Repeats until there is something, or nothing for good: each time in vain, another has done
    /// something.
    #[inline(always)]
    fn attempt<R>(&self, act: impl Fn() -> Result<Option<R>, ClaimError>) -> Result<R, ClaimError> {
        for _ in 0..ATTEMPTS {
            if let Some(done) = act()? {
                return Ok(done);
            }
        }
        Err(ClaimError::Corrupt)
    }

    /// Once a lap: wipes some of the headers that have been in the middle of records for so long
    /// that their lap could come again.
    #[cold]
    fn wipe(&self, lap: u64) {
        let blocks = self.headers.len();
        let count = blocks.div_ceil(SWEEP);
        // Any of the lap's bits will do, as long as laps follow each other.
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
