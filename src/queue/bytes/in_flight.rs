//! The in-flight area: messages that were delivered and are not acknowledged.
//!
//! `recv_ack` moves a message from the ring to this area, so that a slow worker does not hold up
//! the ring. The area has as many blocks as the ring, each with a header. A message takes a run of
//! blocks that follow each other; its head is the header of the first one. The word of a header is
//! {attempts: 25, extent in blocks: 24, owner: 12, phase: 3 bits}:
//!
//! | phase | owner | extent | meaning | next |
//! |---|---|---|---|---|
//! | `Free` | - | 0 | the block can be claimed | `Writing` by a claim |
//! | `Writing` | process | 1 | the block is claimed, and its message is not here yet or not any more; or it is hidden | `Delivered` = the commit of `recv_ack`; or `Free` |
//! | `Delivered` | process | run | a message that a process works at | `Free` = the commit of `ack`; `Orphan` by nack, drop or death |
//! | `Orphan` | - | run | a message to be received again | `Delivered`, or `Reading` for a plain `recv` |
//! | `Reading` | process | run | a message that a plain `recv` reads | `Free` = the commit of `recv`; `Orphan` if it is given back, or its reader dies |
//!
//! # Invariants
//! - A1. The blocks behind the head of a run are *hidden*: the head's word speaks for them. Their
//!   own words say `Writing`, so that a process that walks into a run by mistake claims nothing.
//! - A2. A hidden word names the process that made the run, or a process that is about to free it.
//!   The process that frees a run writes its own name into the hidden words before it changes the
//!   head. So the blocks behind a head that changes never name a dead process, and recovery, which
//!   steps over the hidden words, frees no block of a run.
//! - A3. `used` is not less than the end of any block that was ever claimed.
//!
//! # Death
//! Recovery frees `Writing` blocks of the dead. What it had `Delivered` comes back with one attempt
//! more, and what it was `Reading` comes back as it was. The record in the ring says where its
//! message went (`Header::set_moved`), so that recovery does not deliver it twice.
use crate::queue::bytes::records::{Claim, Header, Phase, State};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use core::ops::ControlFlow;

/// Looks at a run that others change, before it is held to be unsound.
const LOOKS: usize = 1_000;

/// The headers of the area. A [`Claim`] of a message in the area has an index past the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight<'a> {
    pub(crate) headers: &'a [Header],
    pub(crate) used: &'a AtomicU32,
}

impl<'a> InFlight<'a> {
    /// The header of a claim in the area; `None` for one in the ring.
    pub(crate) fn header(self, index: usize) -> Option<&'a Header> {
        self.headers.get(index.checked_sub(self.headers.len())?)
    }

    /// Claims `extent` blocks that follow each other. Returns the index of the first one, or `None`
    /// if no such run is free. `on_release` is called after blocks were claimed in vain.
    pub(crate) fn claim(self, extent: usize, owner: u32, on_release: impl Fn()) -> Option<usize> {
        let mut first = 0;
        while first + extent <= self.headers.len() {
            let run = &self.headers[first..first + extent];
            // Without a free run there is no claim: the end of one in vain wakes others.
            let taken =
                run.iter().map(Header::load).enumerate().find(|(_, state)| *state != State::FREE);
            if let Some((i, state)) = taken {
                first += i + state.extent().max(1);
                continue;
            }
            let end = u32::try_from(first + extent).unwrap_or(u32::MAX);
            self.used.fetch_max(end, AcqRel); // keeps A3
            let claims = |header: &Header| header.exchange(State::FREE, State::claimed(owner));
            match run.iter().position(|header| !claims(header)) {
                None => return Some(self.headers.len() + first),
                Some(0) => {}
                Some(claimed) => {
                    run[..claimed].iter().for_each(|header| header.store(State::FREE));
                    on_release();
                }
            }
        }
        None
    }

    /// Frees blocks that this process has claimed, each for itself.
    pub(crate) fn free(self, first: usize, count: usize) {
        (first..first + count)
            .filter_map(|index| self.header(index))
            .for_each(|header| header.store(State::FREE));
    }

    /// Frees the run of a message that this process holds. Returns `false`, and changes nothing, if
    /// the head is not in the state of the claim.
    pub(crate) fn consume(self, Claim { index, state }: Claim) -> bool {
        let Some(head) = self.header(index).filter(|head| head.load() == state) else {
            return false;
        };
        let rest = index + 1..index + state.extent();
        let rest = || rest.clone().filter_map(|index| self.header(index));
        rest().for_each(|header| header.store(State::claimed(state.owner()))); // keeps A2
        head.store(State::FREE); // the commit
        rest().for_each(|header| header.store(State::FREE));
        true
    }

    /// Shows every head, and every single block that is claimed, to `visit`.
    pub(crate) fn visit(self, mut visit: impl FnMut(&Header, Claim) -> ControlFlow<()>) {
        let used = self.used.load(Acquire) as usize;
        let mut i = 0;
        while let Some(header) = self.headers[..used.min(self.headers.len())].get(i) {
            let state = header.load();
            let extent = state.extent().max(1);
            let fits = extent <= self.headers.len() - i;
            let claim = Claim { index: self.headers.len() + i, state };
            if state != State::FREE && fits && visit(header, claim).is_break() {
                break;
            }
            i += if fits { extent } else { 1 };
        }
    }

    /// Whether no two runs have a block in common: A1. To be asked when the memory is opened.
    pub(crate) fn is_sound(self) -> bool {
        let mut i = 0;
        while i < self.headers.len() {
            match self.sound_extent(i) {
                Some(extent) => i += extent,
                None => return false,
            }
        }
        true
    }

    /// How many blocks the word at `i` speaks for, if they are as A1 says.
    fn sound_extent(self, i: usize) -> Option<usize> {
        let mut still = 0;
        for _ in 0..LOOKS {
            let state = self.headers[i].load();
            if let Some(extent) = self.extent_if_sound(i, state) {
                return Some(extent);
            }
            // Peers that follow the protocol may be at work meanwhile.
            still += u32::from(self.headers[i].load() == state);
            if still == 3 {
                return None;
            }
        }
        Some(1)
    }

    fn extent_if_sound(self, i: usize, state: State) -> Option<usize> {
        if state == State::FREE {
            return Some(1);
        }
        let extent = state.extent();
        let is_run =
            [Phase::Delivered, Phase::Orphan, Phase::Reading].iter().any(|&p| state.is_in(p));
        let is_single = state.is_in(Phase::Writing) && extent == 1;
        let hidden = self.headers[i + 1..].get(..extent.checked_sub(1)?)?;
        let is_hidden = |header: &Header| {
            let state = header.load();
            state.is_in(Phase::Writing) && state.extent() == 1
        };
        ((is_run || is_single) && hidden.iter().all(is_hidden)).then_some(extent)
    }
}
