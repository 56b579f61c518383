//! Which threads may have left a word in their `pending` field that they do not hold.
//!
//! Who unmaps memory has to empty the fields that lead there, of all threads of the process: when such a thread ends, the kernel looks at that
//! address once more, and would change a number there that equals the thread's id. A field is a thread's own, but its owner cannot be in the
//! way: it is at no lock in memory that nobody uses any more, and a store of its own, for a lock elsewhere, may come before or after.
//!
//! # State
//! A *place* for each thread, in a list that only grows; places are used again. (Not a lock: a fork may come at any time.)
//!
//! | place | meaning |
//! |---|---|
//! | 0 | free |
//! | a head's address | of a thread that has not ended: it leaves the place before it does |
//! | the same + `BUSY` | somebody looks at its `pending` field: it waits, and lives meanwhile |
use super::Head;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::cell::Cell;
use core::ptr::{from_ref, with_exposed_provenance};

/// Heads are aligned.
const BUSY: usize = 1;

struct Place {
    head: AtomicUsize,
    /// The address of the place that was made before this one, or 0.
    next: AtomicUsize,
}

/// The address of the place that was made last.
static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Leaves the thread's place when the thread ends. Later its locks are listed at once.
struct Leaver;

thread_local! {
    static LEAVER: Leaver = const { Leaver };
    static PLACE: Cell<Option<&'static Place>> = const { Cell::new(None) };
}

fn places() -> impl Iterator<Item = &'static Place> {
    let place = |at: &AtomicUsize| {
        // SAFETY: null, or what `enter` leaked before it published its address.
        unsafe { with_exposed_provenance::<Place>(at.load(Acquire)).as_ref::<'static>() }
    };
    core::iter::successors(place(&PLACES), move |before| place(&before.next))
}

/// Enters the calling thread, which has this head, unless it is ending.
pub(super) fn enter(head: *const Head) {
    if LEAVER.try_with(|_| ()).is_err() {
        return;
    }
    let head = head.expose_provenance();
    let take = |place: &&Place| place.head.compare_exchange(0, head, AcqRel, Relaxed).is_ok();
    let place = places().find(take).unwrap_or_else(|| {
        let new: &'static Place =
            Box::leak(Box::new(Place { head: AtomicUsize::new(head), next: AtomicUsize::new(0) }));
        let address = from_ref(new).expose_provenance();
        let mut first = PLACES.load(Relaxed);
        loop {
            new.next.store(first, Relaxed);
            match PLACES.compare_exchange(first, address, AcqRel, Relaxed) {
                Ok(_) => return new,
                Err(now) => first = now,
            }
        }
    });
    PLACE.set(Some(place));
}

/// Whether the calling thread is entered.
pub(super) fn is_entered() -> bool {
    PLACE.get().is_some()
}

/// Empties the `pending` field of each thread that has an entry there which is `gone`.
pub(super) fn forget_pending(gone: impl Fn(usize) -> bool) {
    for place in places() {
        let Some(head) = keep(place) else { continue };
        // SAFETY: the head of a thread that does not end before its place is no longer busy.
        let pending = unsafe { &(*with_exposed_provenance::<Head>(head)).pending };
        let seen = pending.load(Relaxed);
        if gone(seen) {
            // If it fails, the thread is at another lock by now.
            pending.compare_exchange(seen, 0, Relaxed, Relaxed).ok();
        }
        place.head.store(head, Release);
    }
}

/// Makes a place busy that is not free; the head that is there.
fn keep(place: &Place) -> Option<usize> {
    loop {
        let seen = place.head.load(Relaxed);
        if seen == 0 {
            return None;
        }
        let is_mine = seen & BUSY == 0
            && place.head.compare_exchange(seen, seen | BUSY, Acquire, Relaxed).is_ok();
        if is_mine {
            return Some(seen);
        }
        std::thread::yield_now();
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        let Some(place) = PLACE.take() else { return };
        super::retire();
        if keep(place).is_some() {
            place.head.store(0, Release);
        }
    }
}

/// To be called in the child of a fork: only the calling thread is there, and it is entered anew at its next lock.
pub(super) fn forget_in_child() {
    places().for_each(|place| place.head.store(0, Relaxed));
    PLACE.set(None);
}
