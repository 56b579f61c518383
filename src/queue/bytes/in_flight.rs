//! The in-flight area: messages that were delivered and are not acknowledged.
//!
//! `recv_ack` moves a message from the ring to this area, so that a slow worker does not hold up
//! the ring. The area has as many blocks as the ring, each with a header. A message occupies a run
//! of consecutive blocks. The header of the first block is the *head* of the run. The word of a
//! header is {attempts: 25, extent in blocks: 24, owner: 12, phase: 3 bits}:
//!
//! | phase | owner | extent | meaning | next |
//! |---|---|---|---|---|
//! | `Free` | - | 0 | the block can be claimed | `Writing` by a claim |
//! | `Writing` | process | 1 | the block is claimed, and its message is not here yet or has left; or the block is hidden | `Delivered` = the commit of `recv_ack`; or `Free` |
//! | `Delivered` | process | run | a message that a process works on | `Free` = the commit of `ack`; `Orphan` by nack, drop or death |
//! | `Orphan` | - | run | a message to be received again | `Delivered`, or `Reading` for a plain `recv` |
//! | `Reading` | process | run | a message that a plain `recv` reads | `Free` = the commit of `recv`; `Orphan` if it is given back, or its reader dies |
//!
//! # Invariants
//! - A1. The blocks behind the head of a run are *hidden*: the head's word speaks for them. Their
//!   own words say `Writing`, so that a process that walks into a run by mistake claims nothing.
//! - A2. A hidden word names the process that made the run, or a process that is about to free it.
//!   The process that frees a run writes its own tag into the hidden words before it changes the
//!   head. So the blocks behind a head that changes never name a dead process. Recovery, which
//!   skips the hidden words, frees no block of a run.
//! - A3. `used` is at least the number of leading blocks that contains every block ever claimed.
//!
//! # Death
//! Recovery frees the `Writing` blocks of a dead process. A message in phase `Delivered` is
//! received again with one attempt more, and a message in phase `Reading` without. The record in
//! the ring says where its message moved to (`Header::set_moved`), so that recovery does not
//! deliver it twice.
use crate::queue::bytes::records::{Claim, Header, Phase, State, check_while_changing};
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use core::ops::ControlFlow;

/// The headers of the area. The index in a [`Claim`] counts on from the blocks of the ring: a
/// message in the area has an index past the end of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight<'a> {
    pub(crate) headers: &'a [Header],
    pub(crate) used: &'a AtomicU32,
}

impl<'a> InFlight<'a> {
    /// The header that an index of a claim stands for; `None` if that is in the ring.
    pub(crate) fn header(self, index: usize) -> Option<&'a Header> {
        self.headers.get(index.checked_sub(self.headers.len())?)
    }

    /// Claims `extent` consecutive blocks. Returns the index of the first one, or `None` if no such
    /// run is free. Calls `on_release` after it has given back blocks of a run that it could not
    /// claim whole.
    pub(crate) fn claim(self, extent: usize, owner: u32, on_release: impl Fn()) -> Option<usize> {
        let mut first = 0;
        while first + extent <= self.headers.len() {
            let run = &self.headers[first..first + extent];
            // It claims nothing unless the whole run looks free: giving blocks back wakes threads.
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

    /// Frees single blocks that this process has claimed.
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

    /// Calls `visit` for every head, and for every single block that is claimed.
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

    /// Whether no two runs have a block in common (A1). It is asked when memory is opened.
    pub(crate) fn is_sound(self) -> bool {
        let mut i = 0;
        while i < self.headers.len() {
            let read = || self.headers[i].load();
            match check_while_changing(read, |state| self.extent_if_sound(i, state), 1) {
                Some(extent) => i += extent,
                None => return false,
            }
        }
        true
    }

    /// The number of blocks that the word `state` at `i` speaks for, if they are as A1 says.
    fn extent_if_sound(self, i: usize, state: State) -> Option<usize> {
        if state == State::FREE {
            return Some(1);
        }
        let is_single = |state: State| state.is_in(Phase::Writing) && state.extent() == 1;
        let is_run = [Phase::Delivered, Phase::Orphan, Phase::Reading].map(|p| state.is_in(p));
        let extent = state.extent();
        let hidden = self.headers[i + 1..].get(..extent.checked_sub(1)?)?;
        let is_hidden = hidden.iter().all(|header| is_single(header.load()));
        ((is_run.contains(&true) || is_single(state)) && is_hidden).then_some(extent)
    }
}
