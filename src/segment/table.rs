//! The mappings of this process, and its place in the peer table of each.
//!
//! A primitive is a plain value, and finds out by its own address which segment it lies in.
//! [`identify`] looks the address up in a thread-local cache of address ranges, and then in the
//! table of the process. It reads nothing from shared memory.
//!
//! # After the last use
//! The token of a registered thread lies in the memory. So [`Attachment::detach`] keeps the memory
//! mapped until each such thread has ended or has been identified again: then the thread frees its
//! tokens in unused memory. Memory that the caller provided is not kept. The caller may open it
//! again at the same address while such threads live. So the last use empties the caches of all
//! threads, which the table lists.
//!
//! # Fork
//! The child of a fork is no peer yet. Its cache is emptied, the count of [`forks`] changes, and
//! each mapping is attached again at its first use.
//!
//! The fast path of a lock does not identify its caller, so that it stays short. So fast paths are
//! off in the child until it is a peer of all segments that it inherited. Until then, each lock
//! takes the slow path, which attaches the child. Otherwise the child could change a value under a
//! lock in one segment, and die before it tells the peers of another segment of the change. If a
//! stopped process holds the control lock of another segment, the lock waits for a moment, and the
//! next lock tries again.
//!
//! A child in another PID namespace cannot be a peer of the segments of its parent, because its
//! thread ids mean other threads there. All calls that identify the process fail in the child until
//! it has dropped the handles that it inherited.
//!
//! The lock of the table is held across the fork, so that the child finds the table consistent. It
//! is not held while a sentinel starts or ends, because that can take seconds if another process
//! holds the control lock of the segment.
#![expect(
    unsafe_code,
    reason = "a function that the system calls when the program is loaded, and a pointer in place of a reference"
)]
use super::memory::Memory;
use super::peers::{LOCK_LIMIT, Membership, Peers, Recover, ThreadTokens};
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
    /// The number of attachments. The caller can open memory that it provided twice at one address.
    users: usize,
    state: PeerState,
    /// The count of forks when `state` was last changed. If the count is another one now, the state
    /// is that of the parent.
    forks: u32,
}

/// Whether this process is a peer of a mapping.
#[derive(Debug)]
enum PeerState {
    None,
    /// A thread makes this process a peer, and does not hold the lock of the table.
    Joining,
    Peer(Membership),
}

/// A mapping without a peer table. It is listed so that addresses in it count as shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: usize,
    len: usize,
    /// The count of forks when the mapping was made.
    forks: u32,
}

#[derive(Clone)]
struct RecoverBox(Arc<Recover>);

impl core::fmt::Debug for RecoverBox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Recover")
    }
}

/// Memory after its last use, while threads of this process still have tokens or locks in it.
#[derive(Debug)]
struct Retained {
    /// `None` if this process was no peer.
    tokens: Option<ThreadTokens>,
    /// Stays mapped. `None` if the caller provided the memory.
    memory: Option<Memory>,
    start: usize,
}

impl Retained {
    fn is_needed(&self) -> bool {
        let held = |memory: &Memory| robust::is_held_within(memory.base().addr(), memory.len());
        self.tokens.as_ref().is_some_and(ThreadTokens::any)
            || self.memory.as_ref().is_some_and(held)
    }
}

#[derive(Debug)]
struct Table {
    mappings: Vec<Mapping>,
    ranges: Vec<Range>,
    retained: Vec<Retained>,
    /// The caches of all threads that have been identified and have not begun to end.
    caches: Vec<CacheOfThread>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    mappings: Vec::new(),
    ranges: Vec::new(),
    retained: Vec::new(),
    caches: Vec::new(),
});
/// Notified when a mapping is no longer [`PeerState::Joining`].
static JOINED: Condvar = Condvar::new();
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The size of a cache. Index 0 is the mapping that the thread used last, and the others are
/// mappings that it used before, the oldest one last.
const CACHED: usize = 9;
/// The lengths of mappings, or 0 for none.
type Lengths = [AtomicUsize; CACHED];
/// The start and the length of a mapping, and the owner tag of this process in it.
type Identity = (usize, usize, u32);

/// The cache of a thread: mappings in which it is registered.
///
/// Other threads only set lengths to 0. Then the thread has to look at the table. The lengths are
/// atomics for this reason, but need no order: after the last use of a mapping, no thread uses it.
#[derive(Debug)]
struct Cache {
    lengths: Lengths,
    starts: [Cell<usize>; CACHED],
    tags: [Cell<u32>; CACHED],
}

impl Cache {
    #[inline(always)]
    fn get(&self, i: usize) -> Identity {
        (self.starts[i].get(), self.lengths[i].load(Relaxed), self.tags[i].get())
    }

    /// Stores a mapping that is in use, or is called with the lock of the table held: another
    /// thread may clear the lengths at the same time.
    fn set(&self, i: usize, (start, length, tag): Identity) {
        self.lengths[i].store(0, Relaxed);
        self.starts[i].set(start);
        self.tags[i].set(tag);
        self.lengths[i].store(length, Relaxed);
    }

    /// If `address` lies in a mapping that the thread used before, makes that the one used last.
    fn use_again(&self, address: usize) -> Option<u32> {
        let covers = |&(start, length, _): &Identity| address.wrapping_sub(start) < length;
        let identity = (1..CACHED).map(|i| self.get(i)).find(covers)?;
        self.set(0, identity);
        Some(identity.2)
    }

    /// Stores a mapping instead of the oldest one.
    fn add(&self, identity: Identity) {
        (2..CACHED).rev().for_each(|i| self.set(i, self.get(i - 1)));
        self.set(1, identity);
        self.set(0, identity);
    }

    fn clear(lengths: &Lengths) {
        lengths.iter().for_each(|length| length.store(0, Relaxed));
    }
}

/// A pointer to the lengths in the cache of a thread that has not ended. The lock of the table
/// makes sure of that.
#[derive(Debug)]
struct CacheOfThread(*const Lengths);

// SAFETY: the pointer is to atomics. Before their thread ends, it removes the pointer from the
// table, under the lock of the table.
unsafe impl Send for CacheOfThread {}

impl CacheOfThread {
    fn clear(&self) {
        // SAFETY: the thread has not ended, because its pointer is in the table and the caller
        // holds the lock of the table.
        Cache::clear(unsafe { &*self.0 });
    }
}

/// Whether the cache of the calling thread is in the table. Removed when the thread ends.
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
            lengths: [const { AtomicUsize::new(0) }; CACHED],
            starts: [const { Cell::new(0) }; CACHED],
            tags: [const { Cell::new(0) }; CACHED],
        }
    };
    static ENTERED: Entered = const { Entered(Cell::new(false)) };
    /// The count of forks when the kernel was asked, and the ids of the process and the thread.
    static IDS: Cell<(u32, u32, u32)> = const { Cell::new((u32::MAX, 0, 0)) };
    /// The lock of the table, held by the thread that forks. It has no destructor, because a thread
    /// may fork after its thread-locals were destroyed.
    static ACROSS_FORK: Cell<Option<ManuallyDrop<MutexGuard<'static, Table>>>> =
        const { Cell::new(None) };
}

fn table() -> MutexGuard<'static, Table> {
    // The table is consistent after each statement that changes it, so a panic does not matter.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the owner tag of this process in the segment that `address` lies in.
///
/// If needed, makes this process a peer of the segment and registers the calling thread.
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
    robust::Thread::current()?; // fails in another PID namespace
    let mut table = table();
    table.free_own_tokens();
    let start = table.within(address).ok_or(Fault::NotShared)?.start;
    let attached = attach(table, start, LOCK_LIMIT);
    table = attached.0;
    attached.1?;
    let mapping = table.mapping(start).ok_or(Fault::NotShared)?;
    let PeerState::Peer(membership) = &mut mapping.state else { return Err(Fault::Corrupt) };
    membership.register()?;
    let identity = (mapping.start, mapping.len, membership.tag());
    if table.enter_cache() {
        CACHE.with(|cache| cache.add(identity));
    }
    Ok(identity.2)
}

/// Makes this process a peer of the mapping that starts at `start`, if it is not a peer yet.
///
/// Releases the lock of the table while the sentinel starts. The mapping stays, because `detach`
/// waits until the attempt has ended. If the control lock is not free within `limit`, the attempt
/// fails. If `limit` is less than [`LOCK_LIMIT`], the mapping then counts as inherited again.
fn attach(
    mut table: MutexGuard<'static, Table>,
    start: usize,
    limit: Duration,
) -> (MutexGuard<'static, Table>, Result<(), Fault>) {
    let (peers, recover) = loop {
        let Some(mapping) = table.mapping(start) else { return (table, Err(Fault::NotShared)) };
        mapping.forget_parent();
        match mapping.state {
            PeerState::Peer(..) => return (table, Ok(())),
            PeerState::Joining => {
                table = JOINED.wait(table).unwrap_or_else(PoisonError::into_inner)
            }
            PeerState::None => {
                mapping.state = PeerState::Joining;
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
        (mapping.state, result) = match joined {
            Ok(membership) => (PeerState::Peer(membership), Ok(())),
            Err(fault) => (PeerState::None, Err(fault)),
        };
        if limit < LOCK_LIMIT && result == Err(Fault::Busy) {
            mapping.forks = forks().wrapping_sub(1);
        }
    }
    table.update_fast_locks();
    JOINED.notify_all();
    (table, result)
}

/// How long a lock waits for the control lock of another segment.
const SHORT_LIMIT: Duration = Duration::from_millis(500);

/// Makes the child of a fork a peer of each mapping that it inherited.
///
/// There is one attempt for each mapping, because there may be too many peers. If a control lock is
/// not free, the mapping stays inherited, and the next lock tries again.
fn attach_inherited(mut table: MutexGuard<'static, Table>) {
    let inherited = |mapping: &&Mapping| mapping.is_inherited() || mapping.is_joining();
    let starts: Vec<_> =
        table.mappings.iter().filter(inherited).map(|mapping| mapping.start).collect();
    for start in starts {
        table = attach(table, start, SHORT_LIMIT).0;
    }
}

/// Makes the child of a fork a peer of all segments that it inherited, and registers the calling
/// thread in the segment of the lock at `address`.
///
/// The slow path of a lock calls this. It does nothing while fast paths are on.
pub(crate) fn attach_in_child(address: usize) {
    // In another PID namespace the second condition is false.
    if thread::are_fast_locks_off() && robust::Thread::current().is_ok() {
        // The segment of the lock comes first. It may have no peer table, or too many peers.
        identify(address).ok();
        attach_inherited(table());
    }
}

/// Returns the peer table of the segment that `address` lies in, and makes this process a peer.
pub(crate) fn peers_of(address: usize) -> Result<Peers, Fault> {
    identify(address)?;
    table().within(address).map(|mapping| mapping.peers).ok_or(Fault::NotShared)
}

/// Returns whether only a single handle, in the calling thread, still needs the memory that starts
/// at `start`.
pub(crate) fn is_last_use(start: usize) -> bool {
    let mut table = table();
    table.free_own_tokens();
    table.unmap_unused();
    let is_last = |mapping: &Mapping| {
        let is_mine = |state: &PeerState| match state {
            PeerState::None => true,
            PeerState::Joining => false,
            PeerState::Peer(membership) => !membership.has_other_threads(),
        };
        mapping.users == 1 && (mapping.is_inherited() || is_mine(&mapping.state))
    };
    table.mappings.iter().filter(|mapping| mapping.start == start).all(is_last)
        && table.ranges.iter().filter(|range| range.start == start).count() <= 1
        && table.retained.iter().all(|kept| kept.start != start)
}

/// Runs `act`, which must not use segments, while no other thread of this process runs such a
/// function.
pub(crate) fn one_at_a_time<R>(act: impl FnOnce() -> R) -> R {
    let _table = table(); // this lock is held across a fork, so the child finds it free
    act()
}

/// Returns whether `address` lies in a segment that this process has open.
pub(crate) fn contains(address: usize) -> bool {
    let table = table();
    let within = |start: usize, len: usize| address.wrapping_sub(start) < len;
    table.mappings.iter().any(|mapping| within(mapping.start, mapping.len))
        || table.ranges.iter().any(|range| within(range.start, range.len))
}

/// Returns the number of forks between the start of this program and this process.
///
/// If a handle was made under another count, it is a copy that a fork has made. A handle of your
/// own that owns something of its process, such as a child process, can detect such a copy and do
/// nothing. A call costs one load from memory.
///
/// ```
/// # use outlast::forks;
/// struct Worker { forks: u32 }
/// let worker = Worker { forks: forks() };
/// impl Drop for Worker {
///     fn drop(&mut self) {
///         if self.forks != forks() {
///             return; // this is a copy: the worker belongs to the parent
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

/// Returns the ids of this process and of the calling thread. Each thread asks the kernel once.
pub(crate) fn current_ids() -> (u32, u32) {
    let (forks_then, pid, tid) = IDS.get();
    if forks_then == forks() {
        return (pid, tid);
    }
    let (pid, tid) = (std::process::id(), thread::id());
    IDS.set((forks(), pid, tid));
    (pid, tid)
}

impl Mapping {
    /// Returns whether this process inherited the mapping by a fork, and has not become a peer
    /// itself.
    fn is_inherited(&self) -> bool {
        self.forks != forks()
    }

    fn is_joining(&self) -> bool {
        matches!(self.state, PeerState::Joining)
    }

    /// Forgets the membership of the parent. Its sentinel is not in this process, and its slot must
    /// stay taken.
    fn forget_parent(&mut self) {
        if self.is_inherited() {
            core::mem::forget(core::mem::replace(&mut self.state, PeerState::None));
            self.forks = forks();
        }
    }
}

/// The use of one mapping by this process, until [`detach`](Attachment::detach).
#[derive(Debug)]
pub(crate) struct Attachment {
    start: usize,
    len: usize,
}

impl Attachment {
    /// Enters memory in the table. If it has a peer table, makes this process a peer.
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
        table.unmap_unused();
        match peers {
            None => table.ranges.push(Range { start, len, forks }),
            Some(peers) => match table.mapping(start) {
                Some(other) => other.users += 1,
                None => {
                    let (recover, state) = (RecoverBox(recover), PeerState::None);
                    let mapping = Mapping { start, len, peers, recover, users: 1, state, forks };
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

    /// Ends the use. Unmaps the memory as soon as no thread of this process has a token in it, or
    /// never if `keep` is set.
    pub(crate) fn detach(&self, memory: Memory, keep: bool) {
        let mut table = table();
        table.unmap_unused();
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
        table.update_fast_locks();
        drop(table);
        let tokens = gone.and_then(Mapping::give_back);
        self::table().release(memory, tokens, keep);
    }
}

impl Mapping {
    /// Leaves the peer table. Returns the tokens that threads of this process still have there.
    fn give_back(self) -> Option<ThreadTokens> {
        if self.is_inherited() {
            core::mem::forget(self.state); // this is the membership of the parent
            return None;
        }
        let PeerState::Peer(membership) = self.state else { return None };
        let mut tokens = membership.leave();
        tokens.free_own_tokens();
        Some(tokens)
    }
}

/// Releases memory that has no attachment, but that a thread of this process may have used. For
/// `keep` see [`Attachment::detach`].
pub(crate) fn discard(memory: Memory, keep: bool) {
    table().release(memory, None, keep);
}

impl Table {
    /// Unmaps memory as soon as no thread of this process has a token or a lock in it, or never if
    /// `keep` is set.
    fn release(&mut self, memory: Memory, tokens: Option<ThreadTokens>, keep: bool) {
        let (start, len) = (memory.base().addr(), memory.len());
        let mut kept = Retained { tokens, memory: None, start };
        if keep {
            core::mem::forget(memory);
        } else if !self.has(start) {
            // Memory that the caller provided is not kept. By its promise, it outlasts such
            // threads.
            if memory.is_callers() {
                robust::forget_within(start, len);
            } else {
                kept.memory = Some(memory);
            }
        }
        self.retained.push(kept);
        self.unmap_unused();
    }

    /// Returns the mapping that starts at `start`.
    fn mapping(&mut self, start: usize) -> Option<&mut Mapping> {
        self.mappings.iter_mut().find(|mapping| mapping.start == start)
    }

    /// Returns the mapping that `address` lies in.
    fn within(&self, address: usize) -> Option<&Mapping> {
        self.mappings.iter().find(|mapping| address.wrapping_sub(mapping.start) < mapping.len)
    }

    /// Ends one use of the mapping that starts at `start`. If it was the last use, returns the
    /// mapping, which is in no cache from here on.
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

    /// Enters the cache of the calling thread in the table. Returns `false` in a thread that is
    /// ending.
    fn enter_cache(&mut self) -> bool {
        ENTERED
            .try_with(|entered| {
                if !entered.0.replace(true) {
                    self.caches.push(CacheOfThread(CACHE.with(|cache| &raw const cache.lengths)));
                }
            })
            .is_ok()
    }

    /// Returns whether memory that starts at `start` is in use.
    fn has(&self, start: usize) -> bool {
        self.mappings.iter().any(|mapping| mapping.start == start)
            || self.ranges.iter().any(|range| range.start == start)
    }

    /// Turns the fast paths of locks on once this process is a peer of all segments that it
    /// inherited. In another PID namespace, locks fail until there is no such segment any more.
    fn update_fast_locks(&self) {
        let inherited = self.mappings.iter().any(Mapping::is_inherited);
        if thread::is_in_other_namespace() {
            let inherited = inherited || self.ranges.iter().any(|range| range.forks != forks());
            thread::set_in_other_namespace(inherited);
            if inherited {
                return;
            }
        }
        if !inherited && !self.mappings.iter().any(Mapping::is_joining) {
            thread::set_fast_locks_off(false);
        }
    }

    /// Frees the tokens of the calling thread in retained memory.
    fn free_own_tokens(&mut self) {
        let mut any = false;
        for kept in &mut self.retained {
            any |= kept.tokens.as_mut().is_some_and(ThreadTokens::free_own_tokens);
        }
        if any {
            self.unmap_unused();
        }
    }

    /// Unmaps retained memory in which no thread has a token or a lock any more.
    fn unmap_unused(&mut self) {
        self.retained.retain(|kept| {
            let stays = kept.is_needed();
            if let Some(memory) = kept.memory.as_ref().filter(|_| !stays) {
                robust::forget_within(memory.base().addr(), memory.len());
            }
            stays
        });
    }
}

/// Registers the handlers below when the program is loaded. At the first use of a segment it would
/// be too late: another thread may be in a fork, for which the system has read its list of handlers
/// already.
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
        table.caches.clear(); // their threads are not in this process
        ENTERED.try_with(|entered| entered.0.set(false)).ok();
        thread::set_fast_locks_off(!table.mappings.is_empty());
        // Of the checks at open, only this one can have another result in the child.
        let any = !table.mappings.is_empty() || !table.ranges.is_empty();
        if any && thread::parent_is_in_other_namespace() {
            thread::set_in_other_namespace(true);
        }
    }
}

/// Tells the peers of this process that it is about to exit, so that its end does not count as a
/// kill.
///
/// Call it right before an end that runs no exit handlers: `_exit`, or a signal that the process
/// sends to itself. `std::process::exit` and the return from `main` do it automatically. After it,
/// the process must not use the crate any more.
///
/// Without it, the process counts as killed: a message that it has received and not acknowledged
/// comes back with one attempt more, and a barrier that it takes part in is broken.
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
///     leave(); // the job goes to another process, without an attempt more
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

/// Marks the process as one that left in all its segments. Its messages get no further attempt.
extern "C" fn leave_all() {
    // Exit may have stopped a thread that holds the lock of the table. Then this end counts as a
    // kill.
    let Ok(table) = TABLE.try_lock() else { return };
    for mapping in table.mappings.iter().filter(|mapping| !mapping.is_inherited()) {
        if let PeerState::Peer(membership) = &mapping.state {
            membership.mark_left();
        }
    }
}
