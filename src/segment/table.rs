//! Which segments this process maps, and who it is in each of them.
//!
//! A primitive is a plain value, and learns who calls it from its own address: [`identify`] looks
//! in a thread-local cache of address ranges, the last one first, then in the process-wide table. Nothing of this is
//! read from shared memory. A cached range stays mapped for as long as its thread lives, or until that thread itself
//! leaves: a registered thread's token lies in it, and [`Attachment::detach`] keeps such memory (the *graveyard*).
//!
//! # Fork
//! The child of a fork is nobody yet: its cache is emptied, the count of [`forks`] moves, and every mapping
//! is attached anew at its first use. The table's lock is held across the fork, so that the child finds it whole. A lock asks nobody
//! who calls, to be as short as it is; so until the child is a peer of all segments that it was born with, its locks take
//! a longer way, on which they do: the others would not hear of its death.
#![expect(unsafe_code, reason = "a function that the system calls when the program is loaded")]
use super::memory::Memory;
use super::peers::{Membership, Peers, Recover, Remains};
use crate::error::Fault;
use crate::sync::atomic::Ordering::{AcqRel, Relaxed};
use crate::sync::atomic::{AtomicBool, AtomicU32};
use crate::sys::{fence, robust, thread};
use core::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One mapping with a peer table.
#[derive(Debug)]
struct Mapping {
    start: usize,
    len: usize,
    peers: Peers,
    recover: RecoverBox,
    /// Attachments to it: several if the memory is the caller's, who can open it twice at one address.
    users: usize,
    membership: Option<Membership>,
    /// The count of forks when `membership` was made.
    forks: u32,
}

/// A mapping without one: known only so that addresses in it count as shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: usize,
    len: usize,
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
    remains: Option<Remains>,
    memory: Memory,
}

impl Grave {
    fn is_needed(&self) -> bool {
        let (start, len) = (self.memory.base().addr(), self.memory.len());
        self.remains.as_ref().is_some_and(Remains::any) || robust::is_held_within(start, len)
    }
}

#[derive(Debug, Default)]
struct Table {
    mappings: Vec<Mapping>,
    ranges: Vec<Range>,
    graves: Vec<Grave>,
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { mappings: Vec::new(), ranges: Vec::new(), graves: Vec::new() });
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A mapping's start and length, and the owner tag of this process in it.
type Identity = (usize, usize, u32);
const NOBODY: Identity = (0, 0, 0);

thread_local! {
    /// The mapping that this thread used last.
    static HERE: Cell<Identity> = const { Cell::new(NOBODY) };
    /// Some that it used before; the oldest is the next to be replaced.
    static RECENT: Cell<[Identity; 8]> = const { Cell::new([NOBODY; 8]) };
    /// Process and thread, as the kernel knows them, and the count of forks when it was asked.
    static WHO: Cell<(u32, u32, u32)> = const { Cell::new((u32::MAX, 0, 0)) };
    /// The table's lock, held by the thread that forks.
    static ACROSS_FORK: RefCell<Option<MutexGuard<'static, Table>>> = const { RefCell::new(None) };
}

fn table() -> MutexGuard<'static, Table> {
    // What the table says is true after each statement that changes it.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The owner tag of this process in the segment that `address` lies in; the calling thread is a
/// registered peer from here on.
#[inline(always)]
pub(crate) fn identify(address: usize) -> Result<u32, Fault> {
    let (start, len, tag) = HERE.get();
    if address.wrapping_sub(start) < len { Ok(tag) } else { identify_slow(address) }
}

#[cold]
fn identify_slow(address: usize) -> Result<u32, Fault> {
    let is_there = |&(start, len, _): &Identity| address.wrapping_sub(start) < len;
    if let Some(identity) = RECENT.get().into_iter().find(is_there) {
        HERE.set(identity);
        return Ok(identity.2);
    }
    let mut table = table();
    let within = |mapping: &&mut Mapping| address.wrapping_sub(mapping.start) < mapping.len;
    let mapping = table.mappings.iter_mut().find(within).ok_or(Fault::NotShared)?;
    let membership = mapping.attach()?;
    membership.register()?;
    let tag = membership.tag();
    let identity = (mapping.start, mapping.len, tag);
    HERE.set(identity);
    let mut recent = RECENT.get();
    recent.rotate_right(1);
    recent[0] = identity;
    RECENT.set(recent);
    table.settle();
    Ok(tag)
}

/// Empties the calling thread's cache of those for which `are_gone` says so.
fn forget_identities(are_gone: impl Fn(Identity) -> bool) {
    let keep = |identity: Identity| if are_gone(identity) { NOBODY } else { identity };
    HERE.set(keep(HERE.get()));
    RECENT.set(RECENT.get().map(keep));
}

/// In the child of a fork: makes it a peer of the segment that the lock at `address` lies in, as its parent was. To be called on the way of a lock
/// that is taken when the shortest way is barred.
pub(crate) fn introduce(address: usize) {
    if thread::is_held_back() {
        identify(address).ok(); // there may be no peers in that segment, or too many
    }
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

/// How often this process is the child of a fork since its program was started: what was made under another count is a copy.
///
/// For handles of your own that stand for something of the process, as a child that was forked has a copy of each, to which nothing
/// belongs. To ask costs one load from memory.
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
    fn attach(&mut self) -> Result<&mut Membership, Fault> {
        if self.forks != forks() {
            // The parent's: its sentinel is not in this process, and its slot is not ours to free.
            core::mem::forget(self.membership.take());
            self.forks = forks();
        }
        if self.membership.is_none() {
            self.membership = Some(Membership::join(self.peers, Arc::clone(&self.recover.0))?);
        }
        self.membership.as_mut().ok_or(Fault::Corrupt)
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
        let mut table = table();
        table.bury();
        match peers {
            None => table.ranges.push(Range { start, len }),
            Some(peers) => match table.mappings.iter_mut().find(|other| other.start == start) {
                Some(other) => other.users += 1,
                None => {
                    let (recover, forks) = (RecoverBox(recover), forks());
                    let mut mapping =
                        Mapping { start, len, peers, recover, users: 1, membership: None, forks };
                    if let Err(fault) = mapping.attach() {
                        robust::forget_within(start, len);
                        return Err(fault);
                    }
                    table.mappings.push(mapping);
                }
            },
        }
        Ok(Attachment { start, len })
    }

    /// Ends the use, and unmaps as soon as no thread of this process has a token in the memory; with
    /// `keep` never.
    pub(crate) fn detach(&self, memory: Memory, keep: bool) {
        let mut table = table();
        table.bury();
        let remains = self.leave(&mut table);
        table.give_up(memory, remains, keep);
    }

    fn leave(&self, table: &mut Table) -> Option<Remains> {
        let range = Range { start: self.start, len: self.len };
        if let Some(i) = table.ranges.iter().position(|&other| other == range) {
            table.ranges.swap_remove(i);
        }
        let i = table.mappings.iter().position(|mapping| mapping.start == self.start)?;
        table.mappings[i].users -= 1;
        if table.mappings[i].users > 0 {
            return None;
        }
        let mapping = table.mappings.swap_remove(i);
        table.settle();
        forget_identities(|(start, ..)| start == self.start);
        if mapping.forks == forks() {
            mapping.membership.map(Membership::leave)
        } else {
            core::mem::forget(mapping.membership); // the parent's
            None
        }
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
        if keep {
            core::mem::forget(memory);
            return;
        }
        let is_in_use = self.has(start);
        let grave = Grave { remains, memory };
        // The caller's memory is not ours to keep; that it outlasts such threads is the caller's promise.
        if !is_in_use && !grave.memory.is_callers() && grave.is_needed() {
            self.graves.push(grave);
        } else if !is_in_use {
            robust::forget_within(start, len);
        }
    }

    /// Whether memory that starts there is in use.
    fn has(&self, start: usize) -> bool {
        self.mappings.iter().any(|mapping| mapping.start == start)
            || self.ranges.iter().any(|range| range.start == start)
    }

    /// Once this process is a peer of all segments that it was born with, locks need not ask.
    fn settle(&self) {
        if self.mappings.iter().all(|mapping| mapping.forks == forks()) {
            thread::hold_back(false);
        }
    }

    /// Unmaps what no thread has a token in any more.
    fn bury(&mut self) {
        self.graves.retain(Grave::is_needed);
    }
}

/// Has the handlers below called. At the first use of a segment it would be too late: a fork in another thread may
/// be under way, for which the system has looked at its handlers before.
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
    ACROSS_FORK.set(Some(table()));
}

extern "C" fn after_fork() {
    ACROSS_FORK.set(None);
}

extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Relaxed);
    forget_identities(|_| true);
    robust::forget_in_child();
    if let Some(table) = ACROSS_FORK.take() {
        thread::hold_back(!table.mappings.is_empty());
    }
}

/// Says that this process is about to end of its own accord, to be called right before an end that runs no exit handlers: `_exit`, or a signal that it sends
/// itself.
///
/// `std::process::exit`, and the return from `main`, say so by themselves. Otherwise it counts as killed: what it has received and not acknowledged comes back with
/// one attempt more, and those who share a barrier with it hear of a death. Nothing of the crate is to be used after it.
///
/// ```
/// use outlast::{Queue, Shared, leave};
///
/// # unsafe extern "C" { fn fork() -> i32; fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32; fn _exit(code: i32) -> !; }
/// let jobs = Shared::<Queue<u64>>::anonymous_queue(16)?;
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

/// A process that ends by itself has not been killed: the others need not count that against its messages.
extern "C" fn leave_all() {
    // A thread that holds the table's lock may have been stopped by exit; then the others take this for a kill.
    let Ok(table) = TABLE.try_lock() else { return };
    for mapping in table.mappings.iter().filter(|mapping| mapping.forks == forks()) {
        if let Some(membership) = &mapping.membership {
            membership.mark_left();
        }
    }
}
