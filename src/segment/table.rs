//! Which segments this process maps, and who it is in each of them.
//!
//! A primitive is a plain value, and learns who calls it from its own address: [`identify`] looks
//! in a thread-local cache of address ranges, the last one first, then in the process-wide table.
//! Nothing of this is read from shared memory.
//!
//! # After the last use
//! A registered thread's token lies in the memory. So [`Attachment::detach`] keeps the memory (in a
//! *grave*) until each such thread has ended, or has come back here: a thread releases its tokens
//! in unused memory the next time it is identified. Memory of the caller's is not kept, and may be
//! opened again at the same address while such threads live. So the last use empties the caches of
//! all threads, which the table lists.
//!
//! # Fork
//! The child of a fork is nobody yet: its cache is emptied, the count of [`forks`] moves, and every
//! mapping is attached anew at its first use. To stay short, the fast path of a lock does not
//! identify its caller. So until the child is a peer of all segments that it was born with, its
//! locks take a longer way, on which it becomes one: what it changes under a lock in one of them,
//! it may announce in another, and the others must hear of its death in between. If a stopped
//! process holds the control lock of one of the other segments, a lock waits a moment for it, and
//! the next lock tries again.
//!
//! A child in another PID namespace than its parent can be no peer of the parent's segments, as
//! thread ids mean other threads there: all calls that need to know who it is fail in it until it
//! has dropped the handles that it was born with.
//!
//! The table's lock is held across the fork, so that the child finds it whole. Nobody holds it
//! while a sentinel starts or ends: that can take seconds, if another process holds the segment's
//! control lock.
#![expect(
    unsafe_code,
    reason = "a function that the system calls when the program is loaded, and a pointer in place of a reference"
)]
use super::memory::Memory;
use super::peers::{LOCK_LIMIT, Membership, Peers, Recover, Remains};
use crate::error::Fault;
use crate::sync::atomic::Ordering::{AcqRel, Relaxed};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use crate::sys::{fence, hooks, robust, thread};
use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::time::Duration;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One mapping with a peer table.
#[derive(Debug)]
struct Mapping {
    start: usize,
    len: usize,
    peers: Peers,
    recover: RecoverBox,
    /// Attachments to it: several if the memory is the caller's, who can open it twice at one
    /// address.
    users: usize,
    place: Place,
    /// The count of forks when `place` was last changed: under another one, it is the parent's.
    forks: u32,
}

/// This process's place among the users of a mapping.
#[derive(Debug)]
enum Place {
    None,
    /// A thread is just taking it, without the table's lock.
    Joining,
    Peer(Membership),
}

/// A mapping without one: known only so that addresses in it count as shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: usize,
    len: usize,
    /// The count of forks when it was entered.
    forks: u32,
}

#[derive(Clone)]
struct RecoverBox(Arc<Recover>);

impl core::fmt::Debug for RecoverBox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Recover")
    }
}

/// Memory whose last user has gone, while threads of this process still have tokens or locks in it.
#[derive(Debug)]
struct Grave {
    /// `None` if this process was no peer.
    remains: Option<Remains>,
    /// Kept mapped. `None` if it is the caller's.
    memory: Option<Memory>,
    start: usize,
}

impl Grave {
    fn is_needed(&self) -> bool {
        let held = |memory: &Memory| robust::is_held_within(memory.base().addr(), memory.len());
        self.remains.as_ref().is_some_and(Remains::any) || self.memory.as_ref().is_some_and(held)
    }
}

#[derive(Debug)]
struct Table {
    mappings: Vec<Mapping>,
    ranges: Vec<Range>,
    graves: Vec<Grave>,
    /// Those of all threads that have been identified and have not begun to end.
    caches: Vec<CacheOfThread>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    mappings: Vec::new(),
    ranges: Vec::new(),
    graves: Vec::new(),
    caches: Vec::new(),
});
/// A mapping is no longer [`Place::Joining`].
static JOINED: Condvar = Condvar::new();
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The mapping that a thread used last, at index 0, and some that it used before, the oldest one
/// last.
const KNOWN: usize = 9;
/// The lengths of mappings, or 0 for none.
type Lengths = [AtomicUsize; KNOWN];
/// A mapping's start and length, and the owner tag of this process in it.
type Identity = (usize, usize, u32);

/// What a thread knows without a look at the table: mappings in which it is registered.
///
/// Other threads only set lengths to 0, which costs the thread a look at the table. Atomics for
/// that, though no order is needed: a thread that has a mapping of which the last use is over does
/// nothing in it.
#[derive(Debug)]
struct Cache {
    lengths: Lengths,
    starts: [Cell<usize>; KNOWN],
    tags: [Cell<u32>; KNOWN],
}

impl Cache {
    #[inline(always)]
    fn get(&self, i: usize) -> Identity {
        (self.starts[i].get(), self.lengths[i].load(Relaxed), self.tags[i].get())
    }

    /// For a mapping that is in use, or with the table's lock held: another thread may clear the
    /// lengths meanwhile.
    fn set(&self, i: usize, (start, length, tag): Identity) {
        self.lengths[i].store(0, Relaxed);
        self.starts[i].set(start);
        self.tags[i].set(tag);
        self.lengths[i].store(length, Relaxed);
    }

    /// Makes one of the mappings used before the one used last, if `address` lies in it.
    fn use_again(&self, address: usize) -> Option<u32> {
        let covers = |&(start, length, _): &Identity| address.wrapping_sub(start) < length;
        let identity = (1..KNOWN).map(|i| self.get(i)).find(covers)?;
        self.set(0, identity);
        Some(identity.2)
    }

    /// Puts a mapping in the place of the oldest one.
    fn add(&self, identity: Identity) {
        (2..KNOWN).rev().for_each(|i| self.set(i, self.get(i - 1)));
        self.set(1, identity);
        self.set(0, identity);
    }

    fn clear(lengths: &Lengths) {
        lengths.iter().for_each(|length| length.store(0, Relaxed));
    }
}

/// The lengths in the cache of a thread that has not ended, as the table's lock makes sure.
#[derive(Debug)]
struct CacheOfThread(*const Lengths);

// SAFETY: to atomics. Their thread takes the pointer out of the table, under the table's lock,
// before it ends.
unsafe impl Send for CacheOfThread {}

impl CacheOfThread {
    fn clear(&self) {
        // SAFETY: the thread has not ended, as its pointer is in the table, whose lock the caller
        // holds.
        Cache::clear(unsafe { &*self.0 });
    }
}

/// Whether the calling thread's cache is in the table; taken out when the thread ends.
struct Entered(Cell<bool>);

impl Drop for Entered {
    fn drop(&mut self) {
        if self.0.get() {
            let mine = CACHE.with(|cache| &raw const cache.lengths);
            let mut table = table();
            table.caches.retain(|cache| cache.0 != mine);
            CACHE.with(|cache| Cache::clear(&cache.lengths));
        }
    }
}

thread_local! {
    static CACHE: Cache = const {
        Cache {
            lengths: [const { AtomicUsize::new(0) }; KNOWN],
            starts: [const { Cell::new(0) }; KNOWN],
            tags: [const { Cell::new(0) }; KNOWN],
        }
    };
    static ENTERED: Entered = const { Entered(Cell::new(false)) };
    /// Process and thread, as the kernel knows them, and the count of forks when it was asked.
    static WHO: Cell<(u32, u32, u32)> = const { Cell::new((u32::MAX, 0, 0)) };
    /// The table's lock, held by the thread that forks. Without a destructor: a thread may fork
    /// after its thread-locals have gone.
    static ACROSS_FORK: Cell<Option<ManuallyDrop<MutexGuard<'static, Table>>>> =
        const { Cell::new(None) };
}

fn table() -> MutexGuard<'static, Table> {
    // What the table says is true after each statement that changes it.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The owner tag of this process in the segment that `address` lies in; the calling thread is a
/// registered peer from here on.
#[inline(always)]
pub(crate) fn identify(address: usize) -> Result<u32, Fault> {
    let (start, len, tag) = CACHE.with(|cache| cache.get(0));
    if address.wrapping_sub(start) < len { Ok(tag) } else { identify_slow(address) }
}

#[cold]
fn identify_slow(address: usize) -> Result<u32, Fault> {
    if let Some(tag) = CACHE.with(|cache| cache.use_again(address)) {
        return Ok(tag);
    }
    robust::Thread::current()?; // not in another PID namespace
    let mut table = table();
    table.give_up_own();
    let start = table.within(address).ok_or(Fault::NotShared)?.start;
    let attached = attach(table, start, LOCK_LIMIT);
    table = attached.0;
    attached.1?;
    let mapping = table.mapping(start).ok_or(Fault::NotShared)?;
    let Place::Peer(membership) = &mut mapping.place else { return Err(Fault::Corrupt) };
    membership.register()?;
    let identity = (mapping.start, mapping.len, membership.tag());
    if table.enter_cache() {
        CACHE.with(|cache| cache.add(identity));
    }
    Ok(identity.2)
}

/// Makes this process a peer of the mapping that starts there, if it is none.
///
/// Releases the table's lock while the sentinel starts. The mapping stays: `detach` waits until the
/// join has ended. If the control lock is not free within `limit`, the attempt fails; with less
/// than [`LOCK_LIMIT`] the mapping then counts as inherited again.
fn attach(
    mut table: MutexGuard<'static, Table>,
    start: usize,
    limit: Duration,
) -> (MutexGuard<'static, Table>, Result<(), Fault>) {
    let (peers, recover) = loop {
        let Some(mapping) = table.mapping(start) else { return (table, Err(Fault::NotShared)) };
        mapping.forget_parent();
        match mapping.place {
            Place::Peer(..) => return (table, Ok(())),
            Place::Joining => table = JOINED.wait(table).unwrap_or_else(PoisonError::into_inner),
            Place::None => {
                mapping.place = Place::Joining;
                break (mapping.peers, Arc::clone(&mapping.recover.0));
            }
        }
    };
    drop(table);
    hooks::pause("table: attaching");
    let joined = Membership::join(peers, recover, limit);
    let mut table = self::table();
    let mut result = Err(Fault::Corrupt);
    if let Some(mapping) = table.mapping(start) {
        (mapping.place, result) = match joined {
            Ok(membership) => (Place::Peer(membership), Ok(())),
            Err(fault) => (Place::None, Err(fault)),
        };
        if limit < LOCK_LIMIT && result == Err(Fault::Busy) {
            mapping.forks = forks().wrapping_sub(1);
        }
    }
    table.settle();
    JOINED.notify_all();
    (table, result)
}

/// How long a lock waits for the control lock of a segment that is not the lock's own.
const SHORT_LIMIT: Duration = Duration::from_millis(500);

/// In the child of a fork: makes it a peer of each mapping that it was born with. Each is tried
/// once: there may be too many peers. Those of which the control lock is not free stay inherited:
/// the next lock tries them again.
fn attach_inherited(mut table: MutexGuard<'static, Table>) {
    let inherited = |mapping: &&Mapping| mapping.is_inherited() || mapping.is_joining();
    let starts: Vec<_> =
        table.mappings.iter().filter(inherited).map(|mapping| mapping.start).collect();
    for start in starts {
        table = attach(table, start, SHORT_LIMIT).0;
    }
}

/// In the child of a fork: makes it a peer of all segments that it was born with, as its parent
/// was, and registers the calling thread in that of the lock at `address`. The slow path of a lock
/// calls this while the fast path is disabled.
pub(crate) fn introduce(address: usize) {
    // Not in another PID namespace.
    if thread::is_held_back() && robust::Thread::current().is_ok() {
        // The lock's own segment first. There may be no peers in it, or too many.
        identify(address).ok();
        attach_inherited(table());
    }
}

/// The peers of the segment that `address` lies in, which the calling thread is one of.
pub(crate) fn peers_of(address: usize) -> Result<Peers, Fault> {
    identify(address)?;
    table().within(address).map(|mapping| mapping.peers).ok_or(Fault::NotShared)
}

/// Whether a single handle, in the calling thread, is all that still needs the memory that starts
/// there.
pub(crate) fn is_last_use(start: usize) -> bool {
    let mut table = table();
    table.give_up_own();
    table.bury();
    let is_last = |mapping: &Mapping| {
        let is_mine = |place: &Place| match place {
            Place::None => true,
            Place::Joining => false,
            Place::Peer(membership) => !membership.has_other_threads(),
        };
        mapping.users == 1 && (mapping.is_inherited() || is_mine(&mapping.place))
    };
    table.mappings.iter().filter(|mapping| mapping.start == start).all(is_last)
        && table.ranges.iter().filter(|range| range.start == start).count() <= 1
        && table.graves.iter().all(|grave| grave.start != start)
}

/// Runs `act`, which must not look at segments, while no other thread of this process runs one.
pub(crate) fn one_at_a_time<R>(act: impl FnOnce() -> R) -> R {
    let _table = table(); // held across a fork, so that the child finds it free
    act()
}

/// Whether `address` lies in a segment that this process has open.
pub(crate) fn contains(address: usize) -> bool {
    let table = table();
    let within = |start: usize, len: usize| address.wrapping_sub(start) < len;
    table.mappings.iter().any(|mapping| within(mapping.start, mapping.len))
        || table.ranges.iter().any(|range| within(range.start, range.len))
}

/// How often this process is the child of a fork since its program was started: what was made under
/// another count is a copy.
///
/// For handles of your own that stand for something of the process, as a child that was forked has
/// a copy of each, to which nothing belongs. To ask costs one load from memory.
///
/// ```
/// # use outlast::forks;
/// struct Worker { forks: u32 }
/// let worker = Worker { forks: forks() };
/// impl Drop for Worker {
///     fn drop(&mut self) {
///         if self.forks != forks() {
///             return; // a copy: the worker is the parent's
///         }
///         // stop it
///     }
/// }
/// # drop(worker);
/// ```
#[inline(always)]
#[must_use]
pub fn forks() -> u32 {
    FORKS.load(Relaxed)
}

/// The ids of this process and of the calling thread. The kernel is asked once a thread.
pub(crate) fn who() -> (u32, u32) {
    let (forks_then, pid, tid) = WHO.get();
    if forks_then == forks() {
        return (pid, tid);
    }
    let (pid, tid) = (std::process::id(), thread::id());
    WHO.set((forks(), pid, tid));
    (pid, tid)
}

impl Mapping {
    /// Whether this process was born with it, and has not taken a place in it since.
    fn is_inherited(&self) -> bool {
        self.forks != forks()
    }

    fn is_joining(&self) -> bool {
        matches!(self.place, Place::Joining)
    }

    /// Forgets the parent's place: its sentinel is not in this process, and its slot is not ours to
    /// free.
    fn forget_parent(&mut self) {
        if self.is_inherited() {
            core::mem::forget(core::mem::replace(&mut self.place, Place::None));
            self.forks = forks();
        }
    }
}

/// This process's use of one mapping, ended by [`detach`](Attachment::detach).
#[derive(Debug)]
pub(crate) struct Attachment {
    start: usize,
    len: usize,
}

impl Attachment {
    /// Enters memory in the table, and with a peer table makes this process a peer.
    pub(crate) fn new(
        memory: &Memory,
        peers: Option<Peers>,
        recover: Arc<Recover>,
    ) -> Result<Self, Fault> {
        hook(); // in case the linker left `HOOK_AT_LOAD` out
        robust::Thread::current()?;
        fence::adopt();
        let (start, len) = (memory.base().expose_provenance(), memory.len());
        let forks = forks();
        let mut table = table();
        table.bury();
        match peers {
            None => table.ranges.push(Range { start, len, forks }),
            Some(peers) => match table.mapping(start) {
                Some(other) => other.users += 1,
                None => {
                    let (recover, place) = (RecoverBox(recover), Place::None);
                    let mapping = Mapping { start, len, peers, recover, users: 1, place, forks };
                    table.mappings.push(mapping);
                    let attached = attach(table, start, LOCK_LIMIT);
                    table = attached.0;
                    if let Err(fault) = attached.1 {
                        let gone = table.leave(start);
                        drop(table);
                        if gone.is_some() {
                            robust::forget_within(start, len);
                        }
                        return Err(fault);
                    }
                }
            },
        }
        Ok(Attachment { start, len })
    }

    /// Ends the use, and unmaps as soon as no thread of this process has a token in the memory;
    /// with `keep` never.
    pub(crate) fn detach(&self, memory: Memory, keep: bool) {
        let mut table = table();
        table.bury();
        let range = |other: &Range| (other.start, other.len) == (self.start, self.len);
        if let Some(i) = table.ranges.iter().position(range) {
            table.ranges.swap_remove(i);
        }
        while table
            .mapping(self.start)
            .is_some_and(|mapping| !mapping.is_inherited() && mapping.is_joining())
        {
            table = JOINED.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let gone = table.leave(self.start);
        table.settle();
        drop(table);
        let remains = gone.and_then(Mapping::give_back);
        self::table().give_up(memory, remains, keep);
    }
}

impl Mapping {
    /// Gives this process's place back. Returns what its threads still have there.
    fn give_back(self) -> Option<Remains> {
        if self.is_inherited() {
            core::mem::forget(self.place); // the parent's
            return None;
        }
        let Place::Peer(membership) = self.place else { return None };
        let mut remains = membership.leave();
        remains.give_up_own();
        Some(remains)
    }
}

/// Lets go of memory that a thread of this process may have used, and that has no attachment.
/// `keep` as in [`Attachment::detach`].
pub(crate) fn discard(memory: Memory, keep: bool) {
    table().give_up(memory, None, keep);
}

impl Table {
    /// Unmaps memory, as soon as no thread of this process has a token or a lock in it; with `keep`
    /// never.
    fn give_up(&mut self, memory: Memory, remains: Option<Remains>, keep: bool) {
        let (start, len) = (memory.base().addr(), memory.len());
        let mut grave = Grave { remains, memory: None, start };
        if keep {
            core::mem::forget(memory);
        } else if !self.has(start) {
            // The caller's memory is not ours to keep; that it outlasts such threads is the
            // caller's promise.
            if memory.is_callers() {
                robust::forget_within(start, len);
            } else {
                grave.memory = Some(memory);
            }
        }
        self.graves.push(grave);
        self.bury();
    }

    /// The mapping that starts there.
    fn mapping(&mut self, start: usize) -> Option<&mut Mapping> {
        self.mappings.iter_mut().find(|mapping| mapping.start == start)
    }

    /// The mapping that an address lies in.
    fn within(&self, address: usize) -> Option<&Mapping> {
        self.mappings.iter().find(|mapping| address.wrapping_sub(mapping.start) < mapping.len)
    }

    /// Ends one use of the mapping that starts there; the mapping, if it was the last one. From
    /// here on no cache knows it.
    fn leave(&mut self, start: usize) -> Option<Mapping> {
        let i = self.mappings.iter().position(|mapping| mapping.start == start)?;
        self.mappings[i].users -= 1;
        if self.mappings[i].users > 0 {
            return None;
        }
        let mapping = self.mappings.swap_remove(i);
        self.caches.iter().for_each(CacheOfThread::clear);
        Some(mapping)
    }

    /// Enters the calling thread's cache. Returns whether it is in the table: not so in a thread
    /// that is ending.
    fn enter_cache(&mut self) -> bool {
        ENTERED
            .try_with(|entered| {
                if !entered.0.replace(true) {
                    self.caches.push(CacheOfThread(CACHE.with(|cache| &raw const cache.lengths)));
                }
            })
            .is_ok()
    }

    /// Whether memory that starts there is in use.
    fn has(&self, start: usize) -> bool {
        self.mappings.iter().any(|mapping| mapping.start == start)
            || self.ranges.iter().any(|range| range.start == start)
    }

    /// Once this process is a peer of all segments that it was born with, locks need not ask. In
    /// another PID namespace they are refused until there is no such segment any more.
    fn settle(&self) {
        let inherited = self.mappings.iter().any(Mapping::is_inherited);
        if thread::is_elsewhere() {
            let inherited = inherited || self.ranges.iter().any(|range| range.forks != forks());
            thread::set_elsewhere(inherited);
            if inherited {
                return;
            }
        }
        if !inherited && !self.mappings.iter().any(Mapping::is_joining) {
            thread::hold_back(false);
        }
    }

    /// Gives up the calling thread's tokens in graves.
    fn give_up_own(&mut self) {
        let mut any = false;
        for grave in &mut self.graves {
            any |= grave.remains.as_mut().is_some_and(Remains::give_up_own);
        }
        if any {
            self.bury();
        }
    }

    /// Unmaps what no thread has a token in any more.
    fn bury(&mut self) {
        self.graves.retain(|grave| {
            let stays = grave.is_needed();
            if let Some(memory) = grave.memory.as_ref().filter(|_| !stays) {
                robust::forget_within(memory.base().addr(), memory.len());
            }
            stays
        });
    }
}

/// Has the handlers below called. At the first use of a segment it would be too late: a fork in
/// another thread may be under way, for which the system has looked at its handlers before.
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK_AT_LOAD: thread::Handler = hook;

extern "C" fn hook() {
    static HOOKED: AtomicBool = AtomicBool::new(false);
    if !HOOKED.swap(true, AcqRel) {
        thread::at_fork(before_fork, after_fork, after_fork_in_child);
        thread::at_exit(leave_all);
    }
}

extern "C" fn before_fork() {
    ACROSS_FORK.set(Some(ManuallyDrop::new(table())));
}

extern "C" fn after_fork() {
    drop(ACROSS_FORK.take().map(ManuallyDrop::into_inner));
}

extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Relaxed);
    CACHE.with(|cache| Cache::clear(&cache.lengths));
    robust::forget_in_child();
    if let Some(mut table) = ACROSS_FORK.take().map(ManuallyDrop::into_inner) {
        table.caches.clear(); // of threads that are not in this process
        ENTERED.try_with(|entered| entered.0.set(false)).ok();
        thread::hold_back(!table.mappings.is_empty());
        // What is checked when a segment is opened is so in the child as well, but for this.
        let any = !table.mappings.is_empty() || !table.ranges.is_empty();
        if any && thread::parent_is_elsewhere() {
            thread::set_elsewhere(true);
        }
    }
}

/// Says that this process is about to end of its own accord, to be called right before an end that
/// runs no exit handlers: `_exit`, or a signal that it sends itself.
///
/// `std::process::exit`, and the return from `main`, say so by themselves. Otherwise it counts as
/// killed: what it has received and not acknowledged comes back with one attempt more, and those
/// who share a barrier with it hear of a death. Nothing of the crate is to be used after it.
///
/// ```
/// use outlast::{Queue, Shared, leave};
///
/// # unsafe extern "C" { fn fork() -> i32; fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32; fn _exit(code: i32) -> !; }
/// let jobs = Shared::<Queue<u64>>::with_capacity(16)?;
/// jobs.send(7)?;
/// # let child = unsafe { fork() };
/// if child == 0 {
///     let _job = jobs.recv_ack();
///     leave(); // the job goes to another, and nobody is to blame
///     unsafe { _exit(0) };
/// }
/// # assert_eq!(unsafe { waitpid(child, &mut 0, 0) }, child);
/// let there = Shared::<Queue<u64>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
/// assert_eq!(there.recv_ack()?.attempts(), 0);
/// # Ok::<(), outlast::Error>(())
/// ```
pub fn leave() {
    leave_all();
}

/// A process that ends by itself has not been killed: the others need not count that against its
/// messages.
extern "C" fn leave_all() {
    // A thread that holds the table's lock may have been stopped by exit; then the others take this
    // for a kill.
    let Ok(table) = TABLE.try_lock() else { return };
    for mapping in table.mappings.iter().filter(|mapping| !mapping.is_inherited()) {
        if let Place::Peer(membership) = &mapping.place {
            membership.mark_left();
        }
    }
}
