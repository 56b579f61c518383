//! The peer table: the processes that use a segment, and the recovery after the death of one.
//!
//! # State
//! Each process has a *process slot*. Each of its threads that claims or waits has a *thread slot*.
//! The *token* of a slot is a robust word. It holds the id of a thread while the thread lives, and
//! the kernel marks it when the thread ends. The token of a process belongs to its *sentinel*, a
//! thread that only watches the other peers.
//!
//! | process slot | token | state |
//! |---|---|---|
//! | free | 0 | `FREE` |
//! | being taken | 0 | `JOINING`, and the control lock is held. Otherwise the process that took it has died, and the slot is free |
//! | taken | tid of the sentinel | `LIVE` |
//! | taken, and the process is about to exit | tid of the sentinel | `LEFT` |
//! | stand-in for a child that has not attached yet | id of a process | `HANDED`, or `ENDING` |
//! | dead | `OWNER_DIED` | any but `FREE`, until it is recovered |
//!
//! A thread slot holds the tag of its process: slot and generation. Any thread can take a thread
//! slot whose token is free or marked. It takes the token first and then writes its tag.
//!
//! # How a death is noticed
//! While a sentinel sleeps, its `pending` field points to the *bell* of the segment, a word that is
//! always 0. When the sentinel dies, the kernel marks its token and then wakes one sleeper of the
//! bell. If that sleeper is killed as well, the kernel wakes the next one.
//!
//! A sentinel that has read the tokens and is not asleep yet would miss this wake. So it also
//! sleeps on the token of the nearest taken slot before its own: the kernel compares the value when
//! it puts the thread to sleep. Two more words close the same gap for newcomers: the *roster*,
//! which grows with every arrival, and the token of the one slot that may be `JOINING`.
//!
//! The wake of the kernel can go to a process that is stopped (`SIGSTOP`) at that moment, and be
//! lost. So a sentinel also reads all tokens once a second. Nothing else relies on this.
//!
//! # Recovery, in this order
//! 1. A process token is marked: the process has been killed or has exited.
//! 2. The recoverer waits until each thread of that process has ended. Until then a thread might
//!    still run on another CPU. (A thread that registers too late finds the token of its sentinel
//!    marked, and parks.) In the meantime other processes are recovered.
//! 3. It takes the control lock, and checks again that the slot is marked.
//! 4. Every primitive repairs what holds the tag of the dead process, changes its wait words, and
//!    wakes all sleepers.
//! 5. It frees the thread slots and then the process slot. If the recoverer dies before the end,
//!    the slot is still marked, and another peer does the work again.
//!
//! A thread has ended if its token is marked, or if the process has no such thread. The kernel does
//! not mark the token of a thread that calls exec and is not the first thread of its process. So an
//! unmarked token proves nothing if its owner does not exist. Then a peer marks the token. Each
//! sentinel checks once a second whether the sentinel before it exists.
//!
//! Every step may be repeated. While a sentinel takes the control lock, its `pending` field points
//! to the lock instead of to the bell. So it wakes all other sentinels first.
//!
//! # Passing a claim to a child
//! What a process passes to a child belongs to a *stand-in* until the child has taken it. A
//! stand-in is a slot with a tag of its own. Its token holds the id of the parent, and after the
//! fork that of the child, which is no peer yet. The token is in no robust list, because exec would
//! mark it. So sentinels check once a second whether the process that it names has ended.
//!
//! The child takes what belongs to the stand-in and then ends the stand-in: it marks the token and
//! changes the roster, so that the sentinels look. A stand-in that no child takes ends in the same
//! way when it is dropped.
//!
//! # Invariants
//! - I1. If a primitive holds the tag of a process, the process has a taken slot, and the thread
//!   that made the claim has a token.
//! - I2. At most one slot is `JOINING` at a time. The control lock is held from before that until
//!   the token of the slot is in a robust list.
//! - I3. The owner of a token exists, or the token is marked by the kernel or by a peer.
//! - I4. A process does not wait for a thread of a dead peer while it can recover another dead peer
//!   without waiting.
//! - I5. A marked process token is seen by a sentinel, if one lives, and by every newcomer.
#![expect(unsafe_code, reason = "the peer table lies in the segment, at checked addresses")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::header::{Geometry, PROCESS_SLOT, THREAD_SLOT};
use crate::shareable::Dead;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sys::robust::Thread;
use crate::sys::{Watch, hooks, thread, wake_all};
use crate::wait::WaitWord;
use crate::wait::robust::{OWNER, PATIENCE, Refused, RobustWord};
use core::ptr::NonNull;
use core::time::Duration;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

/// The states of a process slot, in the first note of its token.
const FREE: u32 = 0;
const JOINING: u32 = 1;
const LIVE: u32 = 2;
const LEFT: u32 = 3;
/// The slot is a stand-in: see "Passing a claim to a child".
const HANDED: u32 = 4;
/// The slot is a stand-in that is about to be marked.
const ENDING: u32 = 5;

/// How long a process waits for the control lock. It is held for moments only, unless its owner is
/// stopped.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// The notes of the token of a process.
const STATE: usize = 0;
const PID: usize = 1;
const GENERATION: usize = 2;
/// The note of the token of a thread: the tag of its process.
const TAG: usize = 0;

/// Returns the tag of a process: the index of its slot and a generation in one number.
fn tag(slot: usize, generation: u32) -> u32 {
    // Slots are at most 4,095, so that 12 bits hold a slot counted from 1.
    (generation << 12) | (u32::try_from(slot).unwrap_or(0) + 1)
}

/// The control block, which lies between the header and the tables.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Control {
    /// Serialises arrivals and recovery.
    lock: RobustWord,
    /// Always 0: see "How a death is noticed".
    bell: AtomicU32,
    /// Grows with every process that arrives.
    roster: AtomicU32,
}

/// One process.
#[repr(C, align(64))]
#[derive(Debug)]
struct ProcessSlot {
    token: RobustWord,
}

/// One thread.
#[repr(C, align(64))]
#[derive(Debug)]
struct ThreadSlot {
    token: RobustWord,
}

const _: () = {
    assert!(size_of::<Control>() == 128);
    assert!(size_of::<ProcessSlot>() == PROCESS_SLOT);
    assert!(size_of::<ThreadSlot>() == THREAD_SLOT);
};

impl ProcessSlot {
    fn state(&self) -> &AtomicU32 {
        &self.token.note[STATE]
    }
    fn generation(&self) -> &AtomicU32 {
        &self.token.note[GENERATION]
    }
    /// Returns whether the process has a thread of this id.
    fn has_thread(&self, tid: u32) -> bool {
        thread::exists_in(self.token.note[PID].load(Relaxed), tid)
    }
}

/// The control block and the tables of one mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peers {
    control: NonNull<Control>,
    processes: NonNull<[ProcessSlot]>,
    threads: NonNull<[ThreadSlot]>,
}

// SAFETY: the pointers are to atomics in shared memory, which any thread may use while the memory
// is mapped. The owner of a `Peers` keeps the mapping: see `Mapping` in `table.rs`.
unsafe impl Send for Peers {}
// SAFETY: as above.
unsafe impl Sync for Peers {}

impl Peers {
    /// Returns the tables of the segment at `base`.
    ///
    /// # Safety
    /// `geometry` describes the segment, its memory is mapped at `base`, and stays so as long as
    /// this value and its copies are used.
    pub(crate) unsafe fn new(base: NonNull<u8>, geometry: &Geometry) -> Self {
        // SAFETY: the offset is within the segment, by the caller's promise.
        let control = unsafe { base.add(geometry.control) }.cast();
        // SAFETY: as above.
        let processes = unsafe { base.add(geometry.peers) };
        // SAFETY: the thread slots follow the process slots within the segment.
        let threads = unsafe { processes.add(geometry.processes as usize * PROCESS_SLOT) };
        Peers {
            control,
            processes: NonNull::slice_from_raw_parts(processes.cast(), geometry.processes as usize),
            threads: NonNull::slice_from_raw_parts(threads.cast(), geometry.threads as usize),
        }
    }

    /// Initialises the tables of a new segment in place.
    pub(crate) fn place(&self) {
        if RobustWord::ZERO_IS_PLACED {
            return; // new memory is zero-filled, and writing would touch all of it
        }
        self.control().lock.place();
        self.processes().iter().for_each(|slot| slot.token.place());
        self.threads().iter().for_each(|slot| slot.token.place());
    }

    fn control(&self) -> &Control {
        // SAFETY: `new`'s promise; the block is made of atomics, for which any bytes will do.
        unsafe { self.control.as_ref() }
    }

    fn processes(&self) -> &[ProcessSlot] {
        // SAFETY: as above.
        unsafe { self.processes.as_ref() }
    }

    fn threads(&self) -> &[ThreadSlot] {
        // SAFETY: as above.
        unsafe { self.threads.as_ref() }
    }

    /// Takes the control lock. The lock only excludes other threads. Its owner may die at any
    /// point, and the next owner can repeat all that the lock guards.
    fn lock(&self, stop: &Stop) -> Result<Locked<'_>, Fault> {
        let lock = &self.control().lock;
        let give_up_at = Instant::now() + stop.patience;
        loop {
            match lock.take_until(Deadline::after(Duration::from_millis(100))) {
                Ok(Ok((_, me))) => return Ok(Locked { lock, me }),
                Ok(Err(Refused::Failed(fault))) => return Err(fault),
                Ok(Err(_)) => return Err(Fault::Corrupt),
                Err(_) if stop.is_set() || Instant::now() >= give_up_at => return Err(Fault::Busy),
                Err(_) => {}
            }
        }
    }

    /// Takes a slot for this process. Called by its sentinel. If the table is full, recovers dead
    /// processes first.
    fn join(&self, stop: &Stop, recover: &Recover) -> Result<usize, Fault> {
        let mut has_waited = false;
        loop {
            match self.take_slot(stop, LIVE, RobustWord::take_token) {
                Err(Fault::TooManyPeers) => {}
                joined => return joined,
            }
            let survey = self.recover_marked(stop, recover)?;
            if survey.has_recovered || self.mark_the_gone() {
                continue;
            }
            if survey.awaited.is_empty() || has_waited {
                return Err(Fault::TooManyPeers);
            }
            stop.sleep_any(&survey.watches());
            has_waited = true;
        }
    }

    /// Marks the token of each process whose sentinel does not exist. Returns whether there was
    /// such a process. Keeps I3.
    fn mark_the_gone(&self) -> bool {
        let gone = |slot: &&ProcessSlot| slot.token.mark_if_gone();
        self.processes().iter().filter(gone).count() > 0
    }

    /// Takes a free slot. `own` takes its token. Keeps I2.
    fn take_slot(
        &self,
        stop: &Stop,
        state: u32,
        own: impl Fn(&RobustWord) -> Result<bool, Fault>,
    ) -> Result<usize, Fault> {
        let _locked = self.lock(stop)?;
        let free =
            || self.processes().iter().enumerate().filter(|(_, slot)| slot.token.value() == 0);
        for (_, slot) in free() {
            if slot.state().load(Relaxed) != FREE {
                // The process that was taking the slot has died: this thread holds the lock.
                slot.state().store(FREE, Relaxed);
            }
        }
        for (i, slot) in free() {
            slot.token.note[PID].store(std::process::id(), Relaxed);
            slot.state().store(JOINING, Release);
            self.announce_roster();
            hooks::pause("peers: joining");
            if own(&slot.token)? {
                slot.state().store(state, Release);
                return Ok(i);
            }
            slot.state().store(FREE, Relaxed); // its mutex stays taken: see `mark_if_gone`
        }
        Err(Fault::TooManyPeers)
    }

    /// Marks the token of each stand-in whose process has ended. Returns whether there was such a
    /// stand-in.
    fn mark_ended_stand_ins(&self) -> bool {
        let ended = |slot: &&ProcessSlot| {
            let owner = slot.token.value() & OWNER;
            matches!(slot.state().load(Relaxed), HANDED | ENDING)
                && owner != 0
                && thread::has_ended(owner)
                && slot.token.mark_transferred(owner)
        };
        self.processes().iter().filter(ended).count() > 0
    }

    fn announce_roster(&self) {
        self.control().roster.fetch_add(1, SeqCst);
        wake_all(&self.control().roster);
    }

    /// Recovers every process whose token is marked and whose threads have ended. Keeps I4.
    fn recover_marked(&self, stop: &Stop, recover: &Recover) -> Result<Survey<'_>, Fault> {
        let mut survey = Survey::default();
        for (i, slot) in self.processes().iter().enumerate() {
            if RobustWord::is_marked(slot.token.value()) {
                match self.recover_one(i, stop, recover)? {
                    Some(awaited) => survey.awaited.push((i, awaited)),
                    None => survey.has_recovered = true,
                }
            }
        }
        Ok(survey)
    }

    /// Recovers the process in slot `i`, unless one of its threads still lives. In that case
    /// returns what to sleep on.
    fn recover_one(
        &self,
        i: usize,
        stop: &Stop,
        recover: &Recover,
    ) -> Result<Option<[Watch<'_>; 2]>, Fault> {
        let slot = &self.processes()[i];
        // If this thread has just recovered another process, `pending` is empty. Without the bell
        // in it, a kill below would wake no sentinel.
        Thread::current()?.set_bell(&self.control().bell);
        hooks::pause("peers: a death is seen");
        // Pairs with the fence in `register`: either this thread sees the tag of the new thread, or
        // that thread sees the mark.
        fence(SeqCst);
        let dead = tag(i, slot.generation().load(Acquire));
        for thread in
            self.threads().iter().filter(|thread| thread.token.note[TAG].load(Acquire) == dead)
        {
            let seen = thread.token.value();
            if seen & OWNER == 0 {
                continue;
            }
            if slot.has_thread(seen & OWNER) {
                return Ok(Some([
                    Watch { word: thread.token.as_atomic(), expected: seen },
                    Watch { word: &thread.token.note[TAG], expected: dead },
                ]));
            }
            // The thread has called exec, or a thread of another process has just taken this slot
            // and will write its own tag.
            thread.token.mark_if_gone(); // keeps I3
        }
        // From here on `pending` points to the lock, and the death of this thread would wake no
        // sentinel.
        wake_all(&self.control().bell);
        Thread::current()?.clear_bell();
        hooks::pause("peers: about to recover");
        let locked = self.lock(stop)?;
        let generation = slot.generation().load(Acquire);
        if RobustWord::is_marked(slot.token.value()) && tag(i, generation) == dead {
            self.recover_slot(i, generation, recover);
            hooks::pause("peers: recovered, slot not free yet");
            slot.token.clear_mark();
        }
        drop(locked);
        Ok(None)
    }

    /// Repairs what the process in slot `i` had claimed, and frees all but its token. The owner tag
    /// in claims has the generation 0: all claims are gone before the slot is taken again.
    fn recover_slot(&self, i: usize, generation: u32, recover: &Recover) {
        let slot = &self.processes()[i];
        let owner = tag(i, 0);
        let clean = matches!(slot.state().load(Relaxed), LEFT | ENDING);
        recover(&Dead { tag: owner, clean, pid: slot.token.note[PID].load(Relaxed) });
        self.free_thread_slots(tag(i, generation));
        slot.state().store(FREE, Relaxed);
        slot.generation().store(generation.wrapping_add(1), Release);
    }

    /// Frees the thread slots that hold this tag, except the tokens of living threads.
    fn free_thread_slots(&self, all: u32) {
        for thread in
            self.threads().iter().filter(|thread| thread.token.note[TAG].load(Relaxed) == all)
        {
            thread.token.clear_mark();
            thread.token.note[TAG].compare_exchange(all, 0, Release, Relaxed).ok();
        }
    }

    /// Returns the tag of the threads of the process in slot `i`.
    fn thread_tag(&self, i: usize) -> u32 {
        tag(i, self.processes()[i].generation().load(Relaxed))
    }

    /// Takes a thread slot for the calling thread. Its process is in slot `i`, and the sentinel of
    /// that process is the thread `sentinel`.
    fn register(&self, i: usize, sentinel: u32) -> Result<usize, Fault> {
        let slot = &self.processes()[i];
        let mine = self.thread_tag(i);
        for (t, thread) in self.threads().iter().enumerate() {
            // The token is free, or it belongs to a thread, of any process, that has ended.
            if thread.token.value() & OWNER != 0 || !thread.token.take_token()? {
                continue;
            }
            let owner = &thread.token.note[TAG];
            hooks::pause("peers: a thread has its token, and no tag yet");
            owner.store(mine, SeqCst);
            hooks::pause("peers: a thread has its tag");
            fence(SeqCst);
            // If this process is being killed, its sentinel may have ended, and a recovery may be
            // under way that does not know of this thread. Then the thread must not touch the
            // segment, and parks until it ends.
            if slot.token.value() & OWNER != sentinel {
                thread::park_for_ever();
            }
            // A peer that recovers the former owner of the tag may be waiting for this thread.
            wake_all(owner);
            return Ok(t);
        }
        Err(Fault::TooManyPeers)
    }

    /// Returns whether the thread `tid` has the token in slot `t`, with this tag.
    ///
    /// The id alone is not enough. It may be that of a thread that has ended, and the slot may
    /// belong to another mapping by now.
    fn has_token(&self, t: usize, tid: u32, tag: u32) -> bool {
        let token = &self.threads()[t].token;
        token.value() & OWNER == tid && token.note[TAG].load(Relaxed) == tag
    }

    /// Frees the thread slot `t`, which the calling thread took through this mapping.
    fn unregister(&self, t: usize, tag: u32) {
        let token = &self.threads()[t].token;
        // The tag is cleared first: once the token is free, another thread may write its own tag.
        if token.note[TAG].compare_exchange(tag, 0, Release, Relaxed).is_ok() {
            token.free_token();
        }
    }

    /// Notes that the process in slot `i` is about to exit, and is not killed.
    fn mark_left(&self, i: usize) {
        self.processes()[i].state().store(LEFT, Release);
    }

    /// Returns the nearest slot before `me` whose token is owned, its token to sleep on, and the
    /// token of a slot that is being taken. Where there is no such slot, it is the one of `me`.
    ///
    /// Returns `None` if a token is marked that is not in `survey`.
    fn neighbours(&self, me: usize, survey: &Survey<'_>) -> Option<(usize, Watch<'_>, Watch<'_>)> {
        let (slots, len) = (self.processes(), self.processes().len());
        let watch =
            |i: usize| Watch { word: slots[i].token.as_atomic(), expected: slots[i].token.value() };
        let (mut at, mut before, mut joining) = (me, watch(me), watch(me));
        for distance in 1..len {
            let i = (me + len - distance) % len;
            // The state is read first: a slot that was `JOINING` and has a token now is taken.
            let is_joining = slots[i].state().load(Acquire) == JOINING;
            let seen = watch(i);
            if seen.expected == 0 {
                if is_joining {
                    joining = seen;
                }
            } else if !RobustWord::is_marked(seen.expected) {
                if at == me {
                    (at, before) = (i, seen);
                }
            } else if at == me && !survey.awaited.iter().any(|&(awaited, _)| awaited == i) {
                return None;
            }
        }
        Some((at, before, joining))
    }
}

/// The result of a walk over the marked tokens.
#[derive(Debug, Default)]
struct Survey<'a> {
    has_recovered: bool,
    /// The slots of dead processes of which a thread still lives, and the words that change when
    /// that thread ends.
    awaited: Vec<(usize, [Watch<'a>; 2])>,
}

impl<'a> Survey<'a> {
    /// Returns what to sleep on. If there are too many words, the rest is watched when one of the
    /// first has changed.
    fn watches(&self) -> Vec<Watch<'a>> {
        const MOST: usize = 60; // two words for each; the kernel takes 128, and there are others
        self.awaited.iter().take(MOST).flat_map(|&(_, watches)| watches).collect()
    }
}

/// The control lock, held.
#[derive(Debug)]
struct Locked<'a> {
    lock: &'a RobustWord,
    me: Thread,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.lock.unlock(self.me);
    }
}

/// A slot that owns claims until a child takes them: see "Passing a claim to a child".
///
/// It may be used only while the segment is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StandIn {
    peers: Peers,
    slot: usize,
    generation: u32,
}

impl StandIn {
    /// Takes a slot for a new stand-in. It ends with this process unless it is
    /// [passed on](Self::pass_on).
    pub(crate) fn new(peers: Peers) -> Result<Self, Fault> {
        let pid = std::process::id();
        let own = |token: &RobustWord| Ok(token.transfer(0, pid));
        let slot = peers.take_slot(&Stop::new(LOCK_LIMIT), HANDED, own)?;
        let generation = peers.processes()[slot].generation().load(Relaxed);
        Ok(StandIn { peers, slot, generation })
    }

    /// Returns the stand-in that the parent has described by [`describe`](Self::describe), if it
    /// was passed on to this process.
    pub(crate) fn find(peers: Peers, (slot, generation): (usize, u32)) -> Option<Self> {
        let found = peers.processes().get(slot)?;
        let is_ours = found.state().load(Acquire) == HANDED
            && found.generation().load(Relaxed) == generation
            && found.token.value() & OWNER == std::process::id();
        is_ours.then_some(StandIn { peers, slot, generation })
    }

    /// Returns the description that [`find`](Self::find) needs.
    pub(crate) fn describe(&self) -> (usize, u32) {
        (self.slot, self.generation)
    }

    /// Returns the owner tag of the stand-in.
    pub(crate) fn tag(&self) -> u32 {
        tag(self.slot, 0)
    }

    /// Makes the stand-in end with the process `to` instead of `from`. Returns `false` if it did
    /// not belong to `from`. Makes no system call and takes no lock.
    pub(crate) fn pass_on(&self, from: u32, to: u32) -> bool {
        let slot = &self.peers.processes()[self.slot];
        let done = slot.token.transfer(from, to);
        if done {
            slot.token.note[PID].store(to, Relaxed);
        }
        done
    }

    /// Ends the stand-in, if it belongs to the process `owner`. What it owns is released.
    pub(crate) fn end(&self, owner: u32) {
        let slot = &self.peers.processes()[self.slot];
        if slot.token.value() & OWNER != owner {
            return;
        }
        slot.state().store(ENDING, Release);
        hooks::pause("peers: a stand-in is about to end");
        if slot.token.mark_transferred(owner) {
            self.peers.announce_roster();
        }
    }
}

/// Repairs the primitives of a segment after a death.
pub(crate) type Recover = dyn Fn(&Dead) + Send + Sync;

/// Tells a sentinel to stop.
#[derive(Debug)]
struct Stop {
    word: WaitWord,
    /// How long the sentinel waits for the control lock each time.
    patience: Duration,
}

impl Stop {
    fn new(patience: Duration) -> Self {
        Stop { word: WaitWord::default(), patience }
    }
    fn is_set(&self) -> bool {
        self.word.value.load(Acquire) != 0
    }
    fn set(&self) {
        self.word.value.store(1, Release);
        self.word.wake(1);
    }
    /// Sleeps until one of the words changes or the flag is set, for at most a second.
    fn sleep_any(&self, watches: &[Watch<'_>]) {
        self.word.sleep_any(0, watches);
    }
}

/// This process's place in a segment.
#[derive(Debug)]
pub(crate) struct Membership {
    peers: Peers,
    slot: usize,
    stop: Arc<Stop>,
    sentinel: thread::JoinHandle,
    sentinel_tid: u32,
    /// The slots and ids of the registered threads. Their tokens are in robust lists, so memory
    /// safety depends on this list. It does not rely on what the shared memory says of them.
    threads: Vec<(usize, u32)>,
}

impl Membership {
    /// Starts a sentinel, which takes a slot and recovers the peers that are dead already. If the
    /// recovery takes more than a second, it goes on in the background. Fails if the control lock
    /// is not free within `patience`.
    pub(crate) fn join(
        peers: Peers,
        recover: Arc<Recover>,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let stop = Arc::new(Stop::new(patience));
        stop.word.place();
        let (tell, told) = mpsc::channel();
        let watcher = Sentinel { peers, stop: Arc::clone(&stop), recover };
        let sentinel =
            thread::spawn_without_signals(c"outlast-sentinel", move || watcher.run(&tell))
                .map_err(|error| Fault::NoSentinel { errno: error.raw_os_error().unwrap_or(0) })?;
        let (slot, sentinel_tid) = match told.recv().unwrap_or(Err(Fault::Corrupt)) {
            Ok(joined) => joined,
            Err(fault) => {
                sentinel.join(); // after this it does not use the memory
                return Err(fault);
            }
        };
        // The second message says that the first recovery is done. It may come late.
        told.recv_timeout(Duration::from_secs(1)).ok();
        Ok(Membership { peers, slot, stop, sentinel, sentinel_tid, threads: Vec::new() })
    }

    /// Returns the owner tag of this process.
    pub(crate) fn tag(&self) -> u32 {
        tag(self.slot, 0)
    }

    /// Registers the calling thread, if it is not registered yet.
    pub(crate) fn register(&mut self) -> Result<(), Fault> {
        let (me, tag) = (thread::id(), self.peers.thread_tag(self.slot));
        if self.threads.iter().any(|&(t, tid)| tid == me && self.peers.has_token(t, me, tag)) {
            return Ok(());
        }
        self.threads.retain(|&(_, tid)| tid == me || thread::is_ours(tid));
        let t = self.peers.register(self.slot, self.sentinel_tid)?;
        self.threads.push((t, me));
        Ok(())
    }

    /// Returns whether a registered thread of this process, other than the calling one, is alive.
    pub(crate) fn has_other_threads(&self) -> bool {
        let me = thread::id();
        self.threads.iter().any(|&(_, tid)| tid != me && thread::is_ours(tid))
    }

    /// Notes that this process is about to exit, and is not killed.
    pub(crate) fn mark_left(&self) {
        self.peers.mark_left(self.slot);
    }

    /// Ends the sentinel, which frees the slot. Returns the tokens of the threads of this process.
    pub(crate) fn leave(self) -> ThreadTokens {
        self.stop.set();
        self.sentinel.join();
        ThreadTokens { peers: self.peers, threads: self.threads }
    }
}

/// Tokens of threads of this process. After the last use of the memory, it stays mapped because of
/// them.
#[derive(Debug)]
pub(crate) struct ThreadTokens {
    peers: Peers,
    threads: Vec<(usize, u32)>,
}

impl ThreadTokens {
    /// Frees the tokens of the calling thread. Returns whether there were any.
    pub(crate) fn free_own_tokens(&mut self) -> bool {
        let (me, before) = (thread::id(), self.threads.len());
        self.threads.retain(|&(t, tid)| {
            if tid == me {
                self.peers.unregister(t, 0); // the sentinel has cleared the tag
            }
            tid != me
        });
        self.threads.len() < before
    }

    /// Returns whether any of the threads lives. (A new thread with the same id counts as well.
    /// Then the memory only stays longer.)
    pub(crate) fn any(&self) -> bool {
        self.threads.iter().any(|&(_, tid)| thread::is_ours(tid))
    }
}

/// The thread that watches the other peers.
struct Sentinel {
    peers: Peers,
    stop: Arc<Stop>,
    recover: Arc<Recover>,
}

impl Sentinel {
    fn run(self, tell: &mpsc::Sender<Result<(usize, u32), Fault>>) {
        // If only the sentinel ended, other peers would take that for the death of this process.
        let abort_on_panic = AbortOnPanic;
        match self.peers.join(&self.stop, &*self.recover) {
            Err(fault) => tell.send(Err(fault)).unwrap_or(()),
            Ok(me) => {
                let joined = (me, thread::id());
                tell.send(Ok(joined)).unwrap_or(());
                // The receiver is gone after the second message.
                self.watch(me, || tell.send(Ok(joined)).unwrap_or(()));
                self.leave(me);
            }
        }
        core::mem::forget(abort_on_panic);
    }

    fn watch(&self, me: usize, recovered: impl Fn()) {
        let control = self.peers.control();
        let Ok(thread) = Thread::current() else { return };
        let mut looked_at = Instant::now();
        while !self.stop.is_set() {
            thread.set_bell(&control.bell);
            control.bell.store(0, Relaxed); // a peer may have damaged it: only 0 works
            let roster = Watch { word: &control.roster, expected: control.roster.load(Acquire) };
            hooks::pause("peers: the sentinel looks");
            let survey = match self.peers.recover_marked(&self.stop, &*self.recover) {
                Ok(survey) if survey.has_recovered => continue,
                Ok(survey) => survey,
                Err(_) => {
                    // The control lock is damaged, or its owner is stopped. Tries again later.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if survey.awaited.is_empty() {
                recovered();
            }
            hooks::pause("peers: the dead are recovered");
            let Some((at, before, joining)) = self.peers.neighbours(me, &survey) else { continue };
            if looked_at.elapsed() >= hooks::sentinel_look(PATIENCE) {
                looked_at = Instant::now();
                // Keeps I3.
                let is_gone = at != me && self.peers.processes()[at].token.mark_if_gone();
                if self.peers.mark_ended_stand_ins() || is_gone {
                    continue;
                }
            }
            hooks::pause("peers: the sentinel is about to sleep");
            let bell = Watch { word: &control.bell, expected: 0 };
            let mut watches = vec![bell, roster, before, joining];
            watches.extend(survey.watches());
            self.stop.sleep_any(&watches);
        }
        thread.clear_bell();
    }

    fn leave(&self, me: usize) {
        let slot = &self.peers.processes()[me];
        slot.state().store(LEFT, Release);
        hooks::pause("peers: leaving");
        // Without the control lock the slot cannot be freed. Then this process ends like a dead
        // one, and another peer recovers it.
        if let Ok(locked) = self.peers.lock(&Stop::new(LOCK_LIMIT)) {
            self.peers.recover_slot(me, slot.generation().load(Relaxed), &*self.recover);
            slot.token.free_token();
            drop(locked);
        } else {
            // The threads of this process live on, but do not use the memory. Without the tag, no
            // recovery waits for them.
            self.peers.free_thread_slots(self.peers.thread_tag(me));
        }
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
