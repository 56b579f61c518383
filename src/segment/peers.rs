//! Who uses a segment, and what happens when one of them dies.
//!
//! # State
//! Each process has a *slot*, each of its threads that claims or waits has another. A slot's *token* is a
//! robust word: the thread's id while it lives, marked by the kernel when it ends. The process's token
//! belongs to its *sentinel*, a thread that does nothing but watch over the others.
//!
//! | process slot | token | note |
//! |---|---|---|
//! | free | 0 | `FREE` |
//! | being taken | 0 | `JOINING`, and the control lock is held (if not: its taker died, it is free) |
//! | taken | sentinel's tid | `LIVE` |
//! | taken, process is about to exit by itself | sentinel's tid | `LEFT` |
//! | dead | `OWNER_DIED` | `LIVE` or `LEFT` (or `JOINING`) until recovered |
//!
//! A thread slot belongs to the process whose tag (slot and generation) it bears. Any thread can take it if its
//! token is free or marked: it takes the token first, then writes its tag.
//!
//! # How a death is noticed
//! A sentinel leaves its `pending` field on the segment's *bell*, a word that is always 0. When it dies,
//! the kernel marks its token, and then wakes one sleeper of the bell; if that one is killed as well, the next.
//! A sentinel that is just between looking and sleeping hears no bell, so it sleeps on the token of the nearest taken slot
//! before its own too: the kernel compares the value as it puts it to sleep. A *roster* word that grows with every arrival, and the token
//! of the one slot that may be `JOINING`, close the same gap for newcomers.
//!
//! The kernel's one wake can go to a process that is stopped (`SIGSTOP`) at that very moment, and be swallowed. So a sentinel also
//! looks once a second, which nothing else relies on.
//!
//! # Recovery, in this order
//! 1. A process token is marked: that process has been killed or has exited.
//! 2. Wait until each of its threads' tokens is marked: before, it might still run on another CPU.
//!    (A thread that registers too late finds its sentinel's token marked, and parks.)
//! 3. Take the control lock; look again whether the slot is still marked.
//! 4. Every primitive mends what bears the dead process's tag, bumps its wait words and wakes all.
//! 5. Free the thread slots; free the process slot last, so that the death of the recoverer leaves the work visible.
//!
//! All of it may be done twice. A sentinel that takes the control lock has `pending` on it instead of on the bell, so it first wakes all others.
//!
//! # Invariants
//! - I1. A process whose tag stands in any primitive has a taken slot, and its claims are made by threads with a token.
//! - I2. At most one slot is `JOINING` at a time; the control lock is held from before that until its token is listed.
//! - I3. A marked process token is seen by some sentinel, as long as one lives, and by every newcomer.
#![expect(unsafe_code, reason = "the peer table lies in the segment, at checked addresses")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::segment::header::{Geometry, PROCESS_SLOT, THREAD_SLOT};
use crate::shareable::Dead;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, fence};
use crate::sys::robust::Thread;
use crate::sys::{Watch, thread, wake_all};
use crate::wait::WaitWord;
use crate::wait::robust::{OWNER, Refused, RobustWord};
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
}

/// The control block and the tables of one mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peers {
    control: NonNull<Control>,
    processes: NonNull<[ProcessSlot]>,
    threads: NonNull<[ThreadSlot]>,
}

// SAFETY: the pointers are to atomics in shared memory, which any thread may use while it is mapped;
// whoever keeps a `Peers` keeps the mapping (`Mapping` in `table.rs`, joined by the last drop).
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
        let give_up_at = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = lock.value();
            match lock.take_until(Deadline::after(Duration::from_millis(100))) {
                Ok(Ok((_, me))) => return Ok(Locked { lock, me }),
                Ok(Err(Refused::Failed(fault))) => return Err(fault),
                Ok(Err(_)) => return Err(Fault::Corrupt),
                // The kernel marks a word before its owner's id is free again: an unmarked
                // owner that does not exist is no owner.
                Err(_) if lock.value() == seen && !thread::exists(seen & OWNER) => {
                    return Err(Fault::Corrupt);
                }
                Err(_) if stop.is_set() || Instant::now() >= give_up_at => return Err(Fault::Busy),
                Err(_) => {}
            }
        }
    }

    /// Takes a slot for a process, on its sentinel, and makes room for it if the table is full of the dead.
    fn join(&self, stop: &Stop, recover: &Recover) -> Result<usize, Fault> {
        match self.take_slot(stop) {
            Err(Fault::TooManyPeers) if self.recover_marked(stop, recover)? => self.take_slot(stop),
            joined => joined,
        }
    }

    /// Takes a free slot. Keeps I2.
    fn take_slot(&self, stop: &Stop) -> Result<usize, Fault> {
        let locked = self.lock(stop)?;
        let mut found = None;
        for (i, slot) in self.processes().iter().enumerate() {
            let taken = slot.token.value() != 0;
            if !taken && slot.state().load(Relaxed) != FREE {
                slot.state().store(FREE, Relaxed); // its taker died: we hold the lock, so it is not at it
            }
            if !taken && found.is_none() {
                found = Some(i);
            }
        }
        let i = found.ok_or(Fault::TooManyPeers)?;
        let slot = &self.processes()[i];
        slot.token.note[PID].store(std::process::id(), Relaxed);
        slot.state().store(JOINING, Release);
        self.announce_roster();
        if !slot.token.enlist()? {
            return Err(Fault::Corrupt);
        }
        slot.state().store(LIVE, Release);
        drop(locked);
        Ok(i)
    }

    fn announce_roster(&self) {
        self.control().roster.fetch_add(1, SeqCst);
        wake_all(&self.control().roster);
    }

    /// Recovers every process whose token is marked; whether there was one.
    fn recover_marked(&self, stop: &Stop, recover: &Recover) -> Result<bool, Fault> {
        let mut any = false;
        for (i, slot) in self.processes().iter().enumerate() {
            if RobustWord::is_marked(slot.token.value()) {
                any = true;
                self.recover_one(i, stop, recover)?;
            }
        }
        Ok(any)
    }

    fn recover_one(&self, i: usize, stop: &Stop, recover: &Recover) -> Result<(), Fault> {
        let slot = &self.processes()[i];
        // Whoever recovered another just before has `pending` empty: killed below, it would ring for nobody.
        Thread::current()?.toll(&self.control().bell);
        fence(SeqCst); // pairs with the fence in `register`: we see its tag, or it sees the mark
        let dead = tag(i, slot.generation().load(Acquire));
        for thread in
            self.threads().iter().filter(|thread| thread.token.note[TAG].load(Acquire) == dead)
        {
            loop {
                let seen = thread.token.value();
                if seen & OWNER == 0 || thread.token.note[TAG].load(Acquire) != dead {
                    break;
                }
                if stop.is_set() {
                    return Ok(());
                }
                let control = self.control();
                stop.sleep_any([
                    Watch { word: thread.token.as_atomic(), expected: seen },
                    Watch { word: &thread.token.note[TAG], expected: dead },
                    Watch { word: &control.bell, expected: 0 },
                ]);
            }
        }
        // From here on `pending` is the lock's, and our death would ring for nobody.
        wake_all(&self.control().bell);
        Thread::current()?.untoll();
        let locked = self.lock(stop)?;
        let generation = slot.generation().load(Acquire);
        if RobustWord::is_marked(slot.token.value()) && tag(i, generation) == dead {
            self.clear(i, generation, recover);
            slot.token.bury();
        }
        drop(locked);
        Ok(())
    }

    /// Mends what the process in slot `i` left, and frees all but its token.
    fn clear(&self, i: usize, generation: u32, recover: &Recover) {
        let slot = &self.processes()[i];
        let owner = tag(i, 0);
        let (clean, pid) = (slot.state().load(Relaxed) == LEFT, slot.token.note[PID].load(Relaxed));
        recover(&Dead { tag: owner, clean, pid });
        let all = tag(i, generation);
        for thread in
            self.threads().iter().filter(|thread| thread.token.note[TAG].load(Relaxed) == all)
        {
            thread.token.bury();
            thread.token.note[TAG].compare_exchange(all, 0, Release, Relaxed).ok();
        }
        slot.state().store(FREE, Relaxed);
        slot.generation().store(generation.wrapping_add(1), Release);
    }

    /// Gives the calling thread a token under the process in slot `i`, whose sentinel is the thread `sentinel`.
    fn register(&self, i: usize, sentinel: u32) -> Result<usize, Fault> {
        let slot = &self.processes()[i];
        let mine = tag(i, slot.generation().load(Relaxed));
        for (t, thread) in self.threads().iter().enumerate() {
            // Free, or of a thread that has ended, whosever it was.
            if thread.token.value() & OWNER != 0 || !thread.token.enlist()? {
                continue;
            }
            let owner = &thread.token.note[TAG];
            owner.store(mine, SeqCst);
            fence(SeqCst);
            // If this process is being killed, its sentinel may be gone already and recovery be under
            // way, without this thread: it must not touch anything. It has nothing else to do.
            if slot.token.value() & OWNER != sentinel {
                thread::park_for_ever();
            }
            // Who recovers the tag's former owner may have taken us for a thread of that one.
            wake_all(owner);
            return Ok(t);
        }
        Err(Fault::TooManyPeers)
    }

    /// Whether the thread `tid` has the token in slot `t`.
    fn has_token(&self, t: usize, tid: u32) -> bool {
        self.threads()[t].token.value() & OWNER == tid
    }

    /// Ends the calling thread's registration in thread slot `t`.
    fn unregister(&self, t: usize) {
        // The tag first: once the token is free, another thread may write its own.
        self.threads()[t].token.note[TAG].store(0, Release);
        self.threads()[t].token.leave();
    }

    /// Notes that the process in slot `i` is ending by itself.
    fn mark_left(&self, i: usize) {
        self.processes()[i].state().store(LEFT, Release);
    }

    /// The nearest slot before `me` whose token is taken, and a slot that is being taken.
    fn watched(&self, me: usize) -> (Watch<'_>, Watch<'_>) {
        let (slots, len) = (self.processes(), self.processes().len());
        let watch =
            |i: usize| Watch { word: slots[i].token.as_atomic(), expected: slots[i].token.value() };
        let (mut before, mut joining) = (watch(me), watch(me));
        let mut found = false;
        for distance in 1..len {
            let i = (me + len - distance) % len;
            // The state first: what is `JOINING` and has a token by the time of the second look is taken.
            let is_joining = slots[i].state().load(Acquire) == JOINING;
            let seen = watch(i);
            if seen.expected == 0 {
                if is_joining {
                    joining = seen;
                }
            } else if !found {
                (before, found) = (seen, true);
            }
        }
        (before, joining)
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

/// Mends one segment's primitives after a death.
pub(crate) type Recover = dyn Fn(&Dead) + Send + Sync;

/// Tells a sentinel to leave.
#[derive(Debug, Default)]
struct Stop(WaitWord);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.value.load(Acquire) != 0
    }
    fn set(&self) {
        self.0.value.store(1, Release);
        self.0.wake(1);
    }
    /// Sleeps until one of the words changes, or it is set.
    fn sleep_any<const N: usize>(&self, watches: [Watch<'_>; N]) {
        self.0.sleep_any(0, watches);
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
    /// The registered threads: slots and ids. What the shared memory says of them is not believed where
    /// it would cost memory safety: their tokens are in robust lists.
    threads: Vec<(usize, u32)>,
}

impl Membership {
    /// Takes a slot, starts a sentinel, and lets it recover whoever is dead already (if that takes
    /// more than a second, in the background).
    pub(crate) fn join(peers: Peers, recover: Arc<Recover>) -> Result<Self, Fault> {
        let stop = Arc::new(Stop::default());
        stop.0.place();
        let (tell, told) = mpsc::channel();
        let watcher = Sentinel { peers, stop: Arc::clone(&stop), recover };
        let sentinel = thread::spawn_silent(c"outlast-sentinel", move || watcher.run(&tell))
            .map_err(|_| Fault::TooManyPeers)?;
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
        let me = thread::id();
        // A thread that has ended may have had the same id; then the kernel has marked its token.
        if self.threads.iter().any(|&(t, tid)| tid == me && self.peers.has_token(t, me)) {
            return Ok(());
        }
        self.threads.retain(|&(_, tid)| tid == me || thread::is_ours(tid));
        let t = self.peers.register(self.slot, self.sentinel_tid)?;
        self.threads.push((t, me));
        Ok(())
    }

    /// Notes that this process is about to end by itself.
    pub(crate) fn mark_left(&self) {
        self.peers.mark_left(self.slot);
    }

    /// Gives the slot back and ends the sentinel. What is left are the threads of this process
    /// other than the calling one that still have tokens in the memory.
    pub(crate) fn leave(mut self) -> Remains {
        self.stop.set();
        self.sentinel.join();
        let me = thread::id();
        self.threads.retain(|&(t, tid)| {
            if tid == me {
                self.peers.unregister(t);
            }
            tid != me
        });
        Remains { threads: self.threads.into_iter().map(|(_, tid)| tid).collect() }
    }
}

/// Threads of this process whose tokens keep memory from being unmapped.
#[derive(Debug)]
pub(crate) struct Remains {
    threads: Vec<u32>,
}

impl Remains {
    /// Whether any of the threads lives. (One that has its id by now counts: then the memory stays longer.)
    pub(crate) fn any(&self) -> bool {
        self.threads.iter().any(|&tid| thread::is_ours(tid))
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
        while !self.stop.is_set() {
            thread.toll(&control.bell);
            control.bell.store(0, Relaxed); // it is; another value would silence it
            let roster = Watch { word: &control.roster, expected: control.roster.load(Acquire) };
            match self.peers.recover_marked(&self.stop, &*self.recover) {
                Ok(false) => {}
                Ok(true) => continue,
                Err(_) => {
                    // Damaged, or held by a process that is stopped: again a little later.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            }
            recovered();
            let (before, joining) = self.peers.watched(me);
            if RobustWord::is_marked(before.expected) {
                continue;
            }
            let bell = Watch { word: &control.bell, expected: 0 };
            self.stop.sleep_any([bell, roster, before, joining]);
        }
        thread.untoll();
    }

    fn leave(&self, me: usize) {
        let slot = &self.peers.processes()[me];
        slot.state().store(LEFT, Release);
        // Without the lock the slot would have to stay taken: better to end as a dead process does,
        // which the next to come will recover.
        if let Ok(locked) = self.peers.lock(&Stop::default()) {
            self.peers.clear(me, slot.generation().load(Relaxed), &*self.recover);
            slot.token.leave();
            drop(locked);
        }
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
