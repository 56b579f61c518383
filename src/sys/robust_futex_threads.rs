//! The entries in the robust lists of all threads of this process, for a thread that unmaps memory.
//!
//! Memory may be unmapped only if no thread has an entry there. Otherwise a thread would write to
//! the links of that entry, and the kernel would follow them when the thread ends. A forgotten
//! guard and a token are such entries. The memory must be in no `pending` field either: when such a
//! thread ends, the kernel reads that address, and would change a number there that equals the id
//! of the thread.
//!
//! While a thread unmaps memory, the entries of other threads in it do not change, because nothing
//! uses the memory any more. Their entries in other memory can change.
//!
//! # State
//! There is a *record* for each thread, in a list that only grows. A record is reused once its
//! thread has ended.
//!
//! | `tid` | `living` | meaning |
//! |---|---|---|
//! | id of a thread | `Some` | the thread has not begun to end. It takes the lock of the record before it does |
//! | id of a thread | `None` | the thread is ending, or has ended. Until it has ended, the entries in `held` are in its list |
//!
//! In the child of a fork, the locks of other threads may stay locked. So the child begins a new
//! list.
use super::{Head, Held, MAX_HELD, UNLISTED};
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sys::thread::is_ours;
use core::cell::Cell;
use core::ptr::{from_ref, with_exposed_provenance};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct ThreadRecord {
    owner: Mutex<Owner>,
    /// The entries that the owner has listed, oldest first. Written by the owner.
    held: Held,
    /// The length of the list in `held`, for other threads. Written by the owner.
    len: AtomicUsize,
    /// The address of the record that was made before this one, or 0.
    next: AtomicUsize,
}

struct Owner {
    tid: u32,
    living: Option<Living>,
}

/// The addresses of a thread's own variables, which are valid until the thread ends.
struct Living {
    /// The address of the head of its robust list.
    head: usize,
    /// The address of its `UNLISTED`.
    unlisted: usize,
}

/// The address of the record that was made last.
static RECORDS: AtomicUsize = AtomicUsize::new(0);

/// Notes that the thread is ending, when it is dropped with the variables of the thread. From then
/// on the locks of the thread enter the list immediately.
struct EndDetector;

thread_local! {
    static END_DETECTOR: EndDetector = const { EndDetector };
    static RECORD: Cell<Option<&'static ThreadRecord>> = const { Cell::new(None) };
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

impl Living {
    fn pending(&self) -> &AtomicUsize {
        // SAFETY: the head of a thread that does not end before the lock of the record is released.
        unsafe { &(*with_exposed_provenance::<Head>(self.head)).pending }
    }

    fn unlisted(&self) -> usize {
        // SAFETY: a variable of a thread that does not end before the lock of the record is
        // released.
        unsafe { &*with_exposed_provenance::<AtomicUsize>(self.unlisted) }.load(Acquire)
    }
}

impl ThreadRecord {
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread `tid` the owner, if the owner has ended. Returns whether it did.
    fn take(&self, tid: u32, living: &mut Option<Living>) -> bool {
        let mut owner = self.owner();
        // An owner with the id of the calling thread has ended.
        if owner.living.is_some() || owner.tid != tid && is_ours(owner.tid) {
            return false;
        }
        self.len.store(0, Relaxed);
        *owner = Owner { tid, living: living.take() };
        true
    }

    /// Returns whether the owner has an entry for which `within` returns `true`.
    fn has(&self, within: impl Fn(usize) -> bool) -> bool {
        let owner = self.owner();
        // The unlisted entry is read first, because it may move to the list at the same time.
        let unlisted = owner.living.as_ref().is_some_and(|living| within(living.unlisted()));
        // The list is read from its end, because entries move towards its beginning.
        let listed = || {
            let held = &self.held[..self.len.load(Acquire)];
            held.iter().rev().any(|entry| within(entry.load(Acquire)))
        };
        (unlisted || listed()) && (owner.living.is_some() || is_ours(owner.tid))
    }
}

fn records() -> impl Iterator<Item = &'static ThreadRecord> {
    let record = |at: &AtomicUsize| {
        // SAFETY: the address is null, or that of a record that `add` has leaked.
        unsafe { with_exposed_provenance::<ThreadRecord>(at.load(Acquire)).as_ref::<'static>() }
    };
    core::iter::successors(record(&RECORDS), move |before| record(&before.next))
}

/// Enters the calling thread, which has this head and this id.
pub(super) fn enter(head: *const Head, tid: u32) {
    let unlisted = UNLISTED.with(|entry| from_ref(entry).expose_provenance());
    let mut living = Some(Living { head: head.expose_provenance(), unlisted });
    if END_DETECTOR.try_with(|_| ()).is_err() {
        ENDING.set(true);
        living = None;
    }
    let found = records().find(|record| record.take(tid, &mut living));
    RECORD.set(Some(found.unwrap_or_else(|| add(Owner { tid, living }))));
}

/// Adds a new record to the list.
fn add(owner: Owner) -> &'static ThreadRecord {
    let new: &'static ThreadRecord = Box::leak(Box::new(ThreadRecord {
        owner: Mutex::new(owner),
        held: [const { AtomicUsize::new(0) }; MAX_HELD + 1],
        len: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
    }));
    let mut first = RECORDS.load(Relaxed);
    loop {
        new.next.store(first, Relaxed);
        match RECORDS.compare_exchange(first, from_ref(new).expose_provenance(), AcqRel, Relaxed) {
            Ok(_) => return new,
            Err(now) => first = now,
        }
    }
}

/// Returns the entries that the calling thread has listed, if the thread was entered.
pub(super) fn held() -> Option<&'static Held> {
    RECORD.get().map(|record| &record.held)
}

/// Tells other threads how many entries the calling thread has listed. A thread that reads the
/// number sees those entries.
pub(super) fn publish_len(len: usize) {
    if let Some(record) = RECORD.get() {
        record.len.store(len, Release);
    }
}

/// Returns whether the calling thread is ending.
pub(super) fn is_ending() -> bool {
    ENDING.get()
}

/// Returns whether a thread has an entry for which `within` returns `true`.
pub(super) fn any_has(within: impl Fn(usize) -> bool) -> bool {
    records().any(|record| record.has(&within))
}

/// Empties the `pending` field of each thread if `gone` returns `true` for the entry in it.
pub(super) fn forget_pending(gone: impl Fn(usize) -> bool) {
    for record in records() {
        let owner = record.owner();
        let Some(living) = &owner.living else { continue };
        let seen = living.pending().load(Relaxed);
        if gone(seen) {
            // If this fails, the thread has announced another lock.
            living.pending().compare_exchange(seen, 0, Relaxed, Relaxed).ok();
        }
    }
}

impl Drop for EndDetector {
    fn drop(&mut self) {
        let Some(record) = RECORD.get() else { return };
        ENDING.set(true);
        super::prepare_to_end();
        record.owner().living = None;
    }
}

/// Resets the list in the child of a fork. Only the calling thread exists there. It is entered
/// again at its next lock.
pub(super) fn forget_in_child() {
    RECORDS.store(0, Relaxed);
    RECORD.set(None);
    ENDING.set(END_DETECTOR.try_with(|_| ()).is_err());
}
