//! What the threads of this process have in their robust lists, told to a thread that unmaps
//! memory.
//!
//! Memory may go only if no thread has an entry there: a thread would write to the links of that
//! entry, and the kernel would follow them when the thread ends. (A guard that was forgotten is
//! such an entry, and so is a token.) Memory that goes must be left in no `pending` field either:
//! when such a thread ends, the kernel looks at that address once more, and would change a number
//! there that equals the thread's id.
//!
//! Another thread's entries in this memory cannot change meanwhile: nobody uses the memory any
//! more. Its entries elsewhere can.
//!
//! # State
//! A *place* for each thread, in a list that only grows. A place is used again once its thread is
//! gone.
//!
//! | `tid` | `living` | meaning |
//! |---|---|---|
//! | a thread's id | there | of a thread that has not begun to end: it waits for the place's lock before it does |
//! | a thread's id | none | of a thread that is ending, or is gone. Until it is gone, what is in `held` is in its list |
//!
//! The locks of other threads may stay locked in the child of a fork, which therefore begins a new
//! list.
use super::{Head, Held, MAX_HELD, UNLISTED};
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sys::thread::is_ours;
use core::cell::Cell;
use core::ptr::{from_ref, with_exposed_provenance};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Place {
    owner: Mutex<Owner>,
    /// What the owner has listed, oldest first. Written by the owner.
    held: Held,
    /// The length of the list in `held`, for other threads. Written by the owner.
    len: AtomicUsize,
    /// The address of the place that was made before this one, or 0.
    next: AtomicUsize,
}

struct Owner {
    tid: u32,
    living: Option<Living>,
}

/// Where a thread keeps what goes when it ends.
struct Living {
    /// The address of its robust list's head.
    head: usize,
    /// The address of its `UNLISTED`.
    unlisted: usize,
}

/// The address of the place that was made last.
static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Says that the thread is ending, when its variables are dropped. Later its locks are listed at
/// once.
struct Leaver;

thread_local! {
    static LEAVER: Leaver = const { Leaver };
    static PLACE: Cell<Option<&'static Place>> = const { Cell::new(None) };
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

impl Living {
    fn pending(&self) -> &AtomicUsize {
        // SAFETY: the head of a thread that does not end before the place's lock is given up.
        unsafe { &(*with_exposed_provenance::<Head>(self.head)).pending }
    }

    fn unlisted(&self) -> usize {
        // SAFETY: a variable of a thread that does not end before the place's lock is given up.
        unsafe { &*with_exposed_provenance::<AtomicUsize>(self.unlisted) }.load(Acquire)
    }
}

impl Place {
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread `tid` has the place from here on.
    fn take(&self, tid: u32, living: &mut Option<Living>) -> bool {
        let mut owner = self.owner();
        // An owner with the id of the calling thread is one that is gone.
        if owner.living.is_some() || owner.tid != tid && is_ours(owner.tid) {
            return false;
        }
        self.len.store(0, Relaxed);
        *owner = Owner { tid, living: living.take() };
        true
    }

    /// Whether the owner has an entry for which `within` says yes.
    fn has(&self, within: impl Fn(usize) -> bool) -> bool {
        let owner = self.owner();
        // The unlisted entry first: it may move to the list meanwhile.
        let unlisted = owner.living.as_ref().is_some_and(|living| within(living.unlisted()));
        // From the end, as it was once the entry was there: entries move towards the beginning.
        let listed = || {
            let held = &self.held[..self.len.load(Acquire)];
            held.iter().rev().any(|entry| within(entry.load(Acquire)))
        };
        (unlisted || listed()) && (owner.living.is_some() || is_ours(owner.tid))
    }
}

fn places() -> impl Iterator<Item = &'static Place> {
    let place = |at: &AtomicUsize| {
        // SAFETY: null, or what `add` leaked before it published its address.
        unsafe { with_exposed_provenance::<Place>(at.load(Acquire)).as_ref::<'static>() }
    };
    core::iter::successors(place(&PLACES), move |before| place(&before.next))
}

/// Enters the calling thread, which has this head and id.
pub(super) fn enter(head: *const Head, tid: u32) {
    let unlisted = UNLISTED.with(|entry| from_ref(entry).expose_provenance());
    let mut living = Some(Living { head: head.expose_provenance(), unlisted });
    if LEAVER.try_with(|_| ()).is_err() {
        ENDING.set(true);
        living = None;
    }
    let found = places().find(|place| place.take(tid, &mut living));
    PLACE.set(Some(found.unwrap_or_else(|| add(Owner { tid, living }))));
}

/// A new place in the list.
fn add(owner: Owner) -> &'static Place {
    let new: &'static Place = Box::leak(Box::new(Place {
        owner: Mutex::new(owner),
        held: [const { AtomicUsize::new(0) }; MAX_HELD + 1],
        len: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
    }));
    let mut first = PLACES.load(Relaxed);
    loop {
        new.next.store(first, Relaxed);
        match PLACES.compare_exchange(first, from_ref(new).expose_provenance(), AcqRel, Relaxed) {
            Ok(_) => return new,
            Err(now) => first = now,
        }
    }
}

/// What the calling thread has listed, if it is entered.
pub(super) fn held() -> Option<&'static Held> {
    PLACE.get().map(|place| &place.held)
}

/// Tells other threads how many entries the calling thread has listed. A thread that reads the
/// number sees those entries.
pub(super) fn publish_len(len: usize) {
    if let Some(place) = PLACE.get() {
        place.len.store(len, Release);
    }
}

/// Whether the calling thread is ending.
pub(super) fn is_ending() -> bool {
    ENDING.get()
}

/// Whether a thread has an entry for which `within` says yes.
pub(super) fn any_has(within: impl Fn(usize) -> bool) -> bool {
    places().any(|place| place.has(&within))
}

/// Empties the `pending` field of each thread that has an entry there which is `gone`.
pub(super) fn forget_pending(gone: impl Fn(usize) -> bool) {
    for place in places() {
        let owner = place.owner();
        let Some(living) = &owner.living else { continue };
        let seen = living.pending().load(Relaxed);
        if gone(seen) {
            // If it fails, the thread is at another lock by now.
            living.pending().compare_exchange(seen, 0, Relaxed, Relaxed).ok();
        }
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        let Some(place) = PLACE.get() else { return };
        ENDING.set(true);
        super::retire();
        place.owner().living = None;
    }
}

/// To be called in the child of a fork: only the calling thread is there, and it is entered anew at
/// its next lock.
pub(super) fn forget_in_child() {
    PLACES.store(0, Relaxed);
    PLACE.set(None);
    ENDING.set(LEAVER.try_with(|_| ()).is_err());
}
