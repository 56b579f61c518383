//! Who uses a segment, and what happens when one of them dies.
//!
//! # State
//! Each process has a *slot*, each of its threads that claims or waits has another. A slot's
//! *token* is a robust word: the thread's id while it lives, marked by the kernel when it ends. The
//! process's token belongs to its *sentinel*, a thread that does nothing but watch over the others.
//!
//! | process slot | token | note |
//! |---|---|---|
//! | free | 0 | `FREE` |
//! | being taken | 0 | `JOINING`, and the control lock is held (if not: its taker died, it is free) |
//! | taken | sentinel's tid | `LIVE` |
//! | taken, process is about to exit by itself | sentinel's tid | `LEFT` |
//! | stands in for a process that is to come | a process's id | `HANDED`, or `ENDING` |
//! | dead | `OWNER_DIED` | any but `FREE` until recovered |
//!
//! A thread slot belongs to the process whose tag (slot and generation) it bears. Any thread can
//! take it if its token is free or marked: it takes the token first, then writes its tag.
//!
//! # How a death is noticed
//! A sentinel leaves its `pending` field on the segment's *bell*, a word that is always 0. When it
//! dies, the kernel marks its token, and then wakes one sleeper of the bell; if that one is killed
//! as well, the next. A sentinel that is just between looking and sleeping hears no bell, so it
//! sleeps on the token of the nearest taken slot before its own too: the kernel compares the value
//! as it puts it to sleep. A *roster* word that grows with every arrival, and the token of the one
//! slot that may be `JOINING`, close the same gap for newcomers.
//!
//! The kernel's one wake can go to a process that is stopped (`SIGSTOP`) at that very moment, and
//! be swallowed. So a sentinel also looks once a second, which nothing else relies on.
//!
//! # Recovery, in this order
//! 1. A process token is marked: that process has been killed or has exited.
//! 2. Wait until each of its threads has ended: before, it might still run on another CPU. (A
//!    thread that registers too late finds its sentinel's token marked, and parks.) Meanwhile other
//!    processes are recovered.
//! 3. Take the control lock; look again whether the slot is still marked.
//! 4. Every primitive mends what bears the dead process's tag, bumps its wait words and wakes all.
//! 5. Free the thread slots; free the process slot last, so that the death of the recoverer leaves
//!    the work visible.
//!
//! A thread has ended if its token is marked, or if the process has no such thread. The kernel does
//! not mark the token of a thread that calls exec and is not the first of its process. An unmarked
//! token proves nothing if its owner does not exist. A peer then marks the token. Sentinels look
//! once a second whether the sentinel before them exists.
//!
//! All of it may be done twice. A sentinel that takes the control lock has `pending` on it instead
//! of on the bell, so it first wakes all others.
//!
//! # Handing on
//! What a process hands on to a child belongs to a *stand-in* until the child has taken it: a slot
//! with a tag of its own. Its token names the process that hands on, and from the fork on the
//! child, which is no peer yet. The token is in no robust list, because exec would mark it: so
//! sentinels look once a second whether the process that it names has ended. The child takes what
//! belongs to the stand-in, and then ends it: it marks the token, and moves the roster, so that
//! sentinels look. A stand-in that nobody takes ends in the same way when it is dropped.
//!
//! # Invariants
//! - I1. A process whose tag stands in any primitive has a taken slot, and its claims are made by
//!   threads with a token.
//! - I2. At most one slot is `JOINING` at a time; the control lock is held from before that until
//!   its token is listed.
//! - I3. The owner of a token exists, or the token is marked, by the kernel or in its stead.
//! - I4. No process waits for a thread of another one while it has a death to mend that waits for
//!   nothing.
//! - I5. A marked process token is seen by some sentinel, as long as one lives, and by every
//!   newcomer.
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

/// Slot states, in the process slot's first note.
const FREE: u32 = 0;
const JOINING: u32 = 1;
const LIVE: u32 = 2;
const LEFT: u32 = 3;
/// A stand-in: see "Handing on".
const HANDED: u32 = 4;
/// A stand-in that is about to be marked.
const ENDING: u32 = 5;

/// How long a process waits for the control lock, which is held for moments only, unless its owner
/// is stopped.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What the notes of a token hold.
const STATE: usize = 0;
const PID: usize = 1;
const GENERATION: usize = 2;
/// A thread slot's note: the tag of its process.
const TAG: usize = 0;

/// A slot index and a generation in one number: what a thread slot bears.
fn tag(slot: usize, generation: u32) -> u32 {
    // Slots are at most 4,095, so that 12 bits hold a slot counted from 1.
    (generation << 12) | (u32::try_from(slot).unwrap_or(0) + 1)
}

/// What lies between the header and the tables.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Control {
    /// Serialises arrivals and recovery.
    lock: RobustWord,
    /// Always 0. See "How a death is noticed".
    bell: AtomicU32,
    /// Grows with every arrival.
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
    /// Whether the process has a thread of this id.
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

// SAFETY: the pointers are to atomics in shared memory, which any thread may use while it is
// mapped; whoever keeps a `Peers` keeps the mapping (`Mapping` in `table.rs`, joined by the last
// drop).
unsafe impl Send for Peers {}
// SAFETY: as above.
unsafe impl Sync for Peers {}

impl Peers {
    /// The tables of a segment at `base`.
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

    /// Makes the tables of a new segment usable where they lie.
    pub(crate) fn place(&self) {
        if RobustWord::ZERO_IS_PLACED {
            return; // as new memory is; all of it would have to be touched
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

    /// Takes the control lock. Holding it is proof of nothing but exclusion: all that it
    /// guards can be left off and taken up at any point.
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

    /// Takes a slot for a process, on its sentinel, and makes room for it if the table is full of
    /// the dead.
    fn join(&self, stop: &Stop, recover: &Recover) -> Result<usize, Fault> {
        let mut has_waited = false;
        loop {
            match self.take_slot(stop, LIVE, RobustWord::enlist) {
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
    /// one. Keeps I3.
    fn mark_the_gone(&self) -> bool {
        let gone = |slot: &&ProcessSlot| slot.token.mark_if_gone();
        self.processes().iter().filter(gone).count() > 0
    }

    /// Takes a free slot, whose token `own` takes. Keeps I2.
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
                slot.state().store(FREE, Relaxed); // its taker died: we hold the lock, so it is not at it
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
            slot.state().store(FREE, Relaxed); // a mutex that stays taken: see `mark_if_gone`
        }
        Err(Fault::TooManyPeers)
    }

    /// Marks the token of each stand-in whose process has ended. Returns whether there was one.
    fn mark_ended_stand_ins(&self) -> bool {
        let ended = |slot: &&ProcessSlot| {
            let owner = slot.token.value() & OWNER;
            matches!(slot.state().load(Relaxed), HANDED | ENDING)
                && owner != 0
                && thread::has_ended(owner)
                && slot.token.mark_entrusted(owner)
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

    /// Recovers the process in slot `i`, unless one of its threads still lives: then returns what
    /// to sleep on.
    fn recover_one(
        &self,
        i: usize,
        stop: &Stop,
        recover: &Recover,
    ) -> Result<Option<[Watch<'_>; 2]>, Fault> {
        let slot = &self.processes()[i];
        // Whoever recovered another just before has `pending` empty: killed below, it would ring
        // for nobody.
        Thread::current()?.toll(&self.control().bell);
        hooks::pause("peers: a death is seen");
        fence(SeqCst); // pairs with the fence in `register`: we see its tag, or it sees the mark
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
            // Not marked by exec; or of another process, which is just taking the slot and will
            // write its tag.
            thread.token.mark_if_gone(); // keeps I3
        }
        // From here on `pending` is the lock's, and our death would ring for nobody.
        wake_all(&self.control().bell);
        Thread::current()?.untoll();
        hooks::pause("peers: about to recover");
        let locked = self.lock(stop)?;
        let generation = slot.generation().load(Acquire);
        if RobustWord::is_marked(slot.token.value()) && tag(i, generation) == dead {
            self.clear(i, generation, recover);
            hooks::pause("peers: recovered, slot not free yet");
            slot.token.bury();
        }
        drop(locked);
        Ok(None)
    }

    /// Mends what the process in slot `i` left, and frees all but its token.
    fn clear(&self, i: usize, generation: u32, recover: &Recover) {
        let slot = &self.processes()[i];
        let owner = tag(i, 0);
        let clean = matches!(slot.state().load(Relaxed), LEFT | ENDING);
        recover(&Dead { tag: owner, clean, pid: slot.token.note[PID].load(Relaxed) });
        self.untag(tag(i, generation));
        slot.state().store(FREE, Relaxed);
        slot.generation().store(generation.wrapping_add(1), Release);
    }

    /// Frees the thread slots that bear this tag: all but the tokens of threads that live.
    fn untag(&self, all: u32) {
        for thread in
            self.threads().iter().filter(|thread| thread.token.note[TAG].load(Relaxed) == all)
        {
            thread.token.bury();
            thread.token.note[TAG].compare_exchange(all, 0, Release, Relaxed).ok();
        }
    }

    /// The tag that the threads of the process in slot `i` bear.
    fn thread_tag(&self, i: usize) -> u32 {
        tag(i, self.processes()[i].generation().load(Relaxed))
    }

    /// Gives the calling thread a token under the process in slot `i`, whose sentinel is the thread
    /// `sentinel`.
    fn register(&self, i: usize, sentinel: u32) -> Result<usize, Fault> {
        let slot = &self.processes()[i];
        let mine = self.thread_tag(i);
        for (t, thread) in self.threads().iter().enumerate() {
            // Free, or of a thread that has ended, whosever it was.
            if thread.token.value() & OWNER != 0 || !thread.token.enlist()? {
                continue;
            }
            let owner = &thread.token.note[TAG];
            hooks::pause("peers: a thread has its token, and no tag yet");
            owner.store(mine, SeqCst);
            hooks::pause("peers: a thread has its tag");
            fence(SeqCst);
            // If this process is being killed, its sentinel may be gone already and recovery be
            // under way, without this thread: it must not touch anything. It has nothing else to
            // do.
            if slot.token.value() & OWNER != sentinel {
                thread::park_for_ever();
            }
            // Who recovers the tag's former owner may have taken us for a thread of that one.
            wake_all(owner);
            return Ok(t);
        }
        Err(Fault::TooManyPeers)
    }

    /// Whether the thread `tid` has the token in slot `t`, with this tag.
    ///
    /// The id alone does not say so: a thread that has ended may have had it, and the slot may be
    /// another mapping's by now.
    fn has_token(&self, t: usize, tid: u32, tag: u32) -> bool {
        let token = &self.threads()[t].token;
        token.value() & OWNER == tid && token.note[TAG].load(Relaxed) == tag
    }

    /// Ends the calling thread's registration in thread slot `t`, which it made through this
    /// mapping.
    fn unregister(&self, t: usize, tag: u32) {
        let token = &self.threads()[t].token;
        // The tag first: once the token is free, another thread may write its own.
        if token.note[TAG].compare_exchange(tag, 0, Release, Relaxed).is_ok() {
            token.leave();
        }
    }

    /// Notes that the process in slot `i` is ending by itself.
    fn mark_left(&self, i: usize) {
        self.processes()[i].state().store(LEFT, Release);
    }

    /// The nearest slot before `me` whose token is owned, and a slot that is being taken.
    ///
    /// `None` if a token is marked that `survey` does not know of.
    fn watched(&self, me: usize, survey: &Survey<'_>) -> Option<(usize, Watch<'_>, Watch<'_>)> {
        let (slots, len) = (self.processes(), self.processes().len());
        let watch =
            |i: usize| Watch { word: slots[i].token.as_atomic(), expected: slots[i].token.value() };
        let (mut at, mut before, mut joining) = (me, watch(me), watch(me));
        for distance in 1..len {
            let i = (me + len - distance) % len;
            // The state first: what is `JOINING` and has a token by the time of the second look is
            // taken.
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

/// What a walk over the marked tokens has found.
#[derive(Debug, Default)]
struct Survey<'a> {
    has_recovered: bool,
    /// The slots of processes of which a thread still lives, and what changes when it ends.
    awaited: Vec<(usize, [Watch<'a>; 2])>,
}

impl<'a> Survey<'a> {
    /// What to sleep on. (Beyond so many, the next of them is watched when one of these has ended.)
    fn watches(&self) -> Vec<Watch<'a>> {
        const MOST: usize = 60; // the kernel takes 128, and there are some others
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
        self.lock.give_up(self.me);
    }
}

/// A slot that has claims until another process takes them: see "Handing on".
///
/// It is to be used while the segment is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StandIn {
    peers: Peers,
    slot: usize,
    generation: u32,
}

impl StandIn {
    /// A new one, which ends with this process unless it is [passed on](Self::pass_on).
    pub(crate) fn new(peers: Peers) -> Result<Self, Fault> {
        let pid = std::process::id();
        let own = |token: &RobustWord| Ok(token.entrust(0, pid));
        let slot = peers.take_slot(&Stop::new(LOCK_LIMIT), HANDED, own)?;
        let generation = peers.processes()[slot].generation().load(Relaxed);
        Ok(StandIn { peers, slot, generation })
    }

    /// The one that another process has described by [`describe`](Self::describe), if it has been
    /// passed on to this process.
    pub(crate) fn find(peers: Peers, (slot, generation): (usize, u32)) -> Option<Self> {
        let found = peers.processes().get(slot)?;
        let is_ours = found.state().load(Acquire) == HANDED
            && found.generation().load(Relaxed) == generation
            && found.token.value() & OWNER == std::process::id();
        is_ours.then_some(StandIn { peers, slot, generation })
    }

    /// What [`find`](Self::find) needs.
    pub(crate) fn describe(&self) -> (usize, u32) {
        (self.slot, self.generation)
    }

    /// What stands in the cells that it claims.
    pub(crate) fn tag(&self) -> u32 {
        tag(self.slot, 0)
    }

    /// Makes the stand-in end with the process `to` in place of `from`. Returns whether it belonged
    /// to that one. Makes no system call, and takes no lock.
    pub(crate) fn pass_on(&self, from: u32, to: u32) -> bool {
        let slot = &self.peers.processes()[self.slot];
        let done = slot.token.entrust(from, to);
        if done {
            slot.token.note[PID].store(to, Relaxed);
        }
        done
    }

    /// Ends the stand-in, if it belongs to the process `owner`: what it has is given back.
    pub(crate) fn end(&self, owner: u32) {
        let slot = &self.peers.processes()[self.slot];
        if slot.token.value() & OWNER != owner {
            return;
        }
        slot.state().store(ENDING, Release);
        hooks::pause("peers: a stand-in is about to end");
        if slot.token.mark_entrusted(owner) {
            self.peers.announce_roster();
        }
    }
}

/// Mends one segment's primitives after a death.
pub(crate) type Recover = dyn Fn(&Dead) + Send + Sync;

/// Tells a sentinel to leave.
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
    /// Sleeps until one of the words changes, or it is set, for a second at most.
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
    sentinel: thread::Silent,
    sentinel_tid: u32,
    /// The registered threads: slots and ids. What the shared memory says of them is not believed
    /// where it would cost memory safety: their tokens are in robust lists.
    threads: Vec<(usize, u32)>,
}

impl Membership {
    /// Takes a slot, starts a sentinel, and lets it recover whoever is dead already (if that takes
    /// more than a second, in the background). Fails if the control lock is not free within
    /// `patience`.
    pub(crate) fn join(
        peers: Peers,
        recover: Arc<Recover>,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let stop = Arc::new(Stop::new(patience));
        stop.word.place();
        let (tell, told) = mpsc::channel();
        let watcher = Sentinel { peers, stop: Arc::clone(&stop), recover };
        let sentinel = thread::spawn_silent(c"outlast-sentinel", move || watcher.run(&tell))
            .map_err(|error| Fault::NoSentinel { errno: error.raw_os_error().unwrap_or(0) })?;
        let (slot, sentinel_tid) = match told.recv().unwrap_or(Err(Fault::Corrupt)) {
            Ok(joined) => joined,
            Err(fault) => {
                sentinel.join(); // it touches the memory no more
                return Err(fault);
            }
        };
        // The second word says that the first recovery is done; it is not an error if it is late.
        told.recv_timeout(Duration::from_secs(1)).ok();
        Ok(Membership { peers, slot, stop, sentinel, sentinel_tid, threads: Vec::new() })
    }

    /// What this process writes into cells that it claims.
    pub(crate) fn tag(&self) -> u32 {
        tag(self.slot, 0)
    }

    /// Makes the calling thread a registered one, if it is not yet.
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

    /// Whether a registered thread of this process, other than the calling one, is alive.
    pub(crate) fn has_other_threads(&self) -> bool {
        let me = thread::id();
        self.threads.iter().any(|&(_, tid)| tid != me && thread::is_ours(tid))
    }

    /// Notes that this process is about to end by itself.
    pub(crate) fn mark_left(&self) {
        self.peers.mark_left(self.slot);
    }

    /// Gives the slot back and ends the sentinel. What is left are the tokens of this process's
    /// threads.
    pub(crate) fn leave(self) -> Remains {
        self.stop.set();
        self.sentinel.join();
        Remains { peers: self.peers, threads: self.threads }
    }
}

/// Tokens of threads of this process, which keep memory from being unmapped after the last use.
#[derive(Debug)]
pub(crate) struct Remains {
    peers: Peers,
    threads: Vec<(usize, u32)>,
}

impl Remains {
    /// Gives the tokens of the calling thread up. Returns whether it had any.
    pub(crate) fn give_up_own(&mut self) -> bool {
        let (me, before) = (thread::id(), self.threads.len());
        self.threads.retain(|&(t, tid)| {
            if tid == me {
                self.peers.unregister(t, 0); // the sentinel has cleared the tag
            }
            tid != me
        });
        self.threads.len() < before
    }

    /// Whether any of the threads lives. (One that has its id by now counts: then the memory stays
    /// longer.)
    pub(crate) fn any(&self) -> bool {
        self.threads.iter().any(|&(_, tid)| thread::is_ours(tid))
    }
}

/// The thread that watches over the others.
struct Sentinel {
    peers: Peers,
    stop: Arc<Stop>,
    recover: Arc<Recover>,
}

impl Sentinel {
    fn run(self, tell: &mpsc::Sender<Result<(usize, u32), Fault>>) {
        // A sentinel that ended alone would look to the others like the death of this process.
        let abort_on_panic = AbortOnPanic;
        match self.peers.join(&self.stop, &*self.recover) {
            Err(fault) => tell.send(Err(fault)).unwrap_or(()),
            Ok(me) => {
                let joined = (me, thread::id());
                tell.send(Ok(joined)).unwrap_or(());
                // Nobody listens any more after the second time.
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
            thread.toll(&control.bell);
            control.bell.store(0, Relaxed); // it is; another value would silence it
            let roster = Watch { word: &control.roster, expected: control.roster.load(Acquire) };
            hooks::pause("peers: the sentinel looks");
            let survey = match self.peers.recover_marked(&self.stop, &*self.recover) {
                Ok(survey) if survey.has_recovered => continue,
                Ok(survey) => survey,
                Err(_) => {
                    // Damaged, or held by a process that is stopped: again a little later.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if survey.awaited.is_empty() {
                recovered();
            }
            hooks::pause("peers: the dead are recovered");
            let Some((at, before, joining)) = self.peers.watched(me, &survey) else { continue };
            if looked_at.elapsed() >= PATIENCE {
                looked_at = Instant::now();
                let is_gone = at != me && self.peers.processes()[at].token.mark_if_gone(); // keeps I3
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
        thread.untoll();
    }

    fn leave(&self, me: usize) {
        let slot = &self.peers.processes()[me];
        slot.state().store(LEFT, Release);
        hooks::pause("peers: leaving");
        // Without the lock the slot would have to stay taken: better to end as a dead process does,
        // which the next to come will recover.
        if let Ok(locked) = self.peers.lock(&Stop::new(LOCK_LIMIT)) {
            self.peers.clear(me, slot.generation().load(Relaxed), &*self.recover);
            slot.token.leave();
            drop(locked);
        } else {
            // The threads live on, and use the memory no more: nobody is to wait for them.
            self.peers.untag(self.peers.thread_tag(me));
        }
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
