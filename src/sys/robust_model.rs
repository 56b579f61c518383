//! The robust list in the model, and what the kernel of the model does with it when a thread ends.
#![expect(unsafe_code, reason = "the kernel knows a word by its distance from the links")]
use super::Parker;
use crate::error::Fault;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{AcqRel, Acquire};
use crate::sync::is_dead;
use core::cell::{Cell, RefCell};
use core::mem::offset_of;
use core::ptr;

/// A byte whose address identifies the word. The model needs no links.
#[derive(Debug, Default)]
pub(crate) struct Links(u8);

impl Links {
    fn entry(&self) -> usize {
        ptr::from_ref(&self.0).expose_provenance()
    }
}

/// A robust word with the layout of `wait::robust::RobustWord`, as the kernel reads it.
#[repr(C)]
struct Node {
    word: Word,
    armed: AtomicU32,
    note: [AtomicU32; 4],
    links: Links,
}

#[repr(C)]
struct Word {
    value: AtomicU32,
    parker: Parker,
}

loom::thread_local! {
    static ID: u32 = number();
    static PENDING: Cell<usize> = Cell::new(0);
    static UNLISTED: Cell<usize> = Cell::new(0);
    static HELD: RefCell<Vec<usize>> = RefCell::new(Vec::new());
}

/// Does nothing: models do not use eager locks.
pub(crate) fn set_eager(_eager: bool) {}

/// The calling thread as owner of robust words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    tid: u32,
}

impl Thread {
    pub(crate) fn fast() -> Option<Thread> {
        Self::current().ok()
    }
    pub(crate) fn current() -> Result<Thread, Fault> {
        if is_dead() { Err(Fault::Forked) } else { Ok(Thread { tid: id() }) }
    }
    pub(crate) fn is_calling(self) -> bool {
        true
    }
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }
    pub(crate) fn begin(self, links: &Links) -> Result<(), Fault> {
        self.begin_to_end(links);
        Ok(())
    }
    pub(crate) fn begin_to_end(self, links: &Links) {
        let held = UNLISTED.with(Cell::take);
        if held != 0 {
            HELD.with(|list| list.borrow_mut().push(held));
        }
        PENDING.with(|pending| pending.set(links.entry()));
    }
    pub(crate) fn begin_again(self, links: &Links) -> Result<(), Fault> {
        if PENDING.with(Cell::get) == links.entry() { Ok(()) } else { self.begin(links) }
    }
    pub(crate) fn end(self) {
        PENDING.with(|pending| pending.set(0));
    }
    pub(crate) fn hold(self, links: &Links) {
        UNLISTED.with(|held| held.set(links.entry()));
    }
    pub(crate) fn holds(self, links: &Links) -> bool {
        !is_dead() && UNLISTED.with(Cell::get) == links.entry()
    }
    pub(crate) fn has(self, links: &Links) -> bool {
        self.holds(links) || HELD.with(|list| list.borrow().contains(&links.entry()))
    }
    pub(crate) fn let_go(self) {
        UNLISTED.with(|held| held.set(0));
    }
    pub(crate) fn is_eager(self) -> bool {
        false
    }
    pub(crate) fn link(self, links: &Links) {
        HELD.with(|list| list.borrow_mut().push(links.entry()));
    }
    pub(crate) fn unlink(self, links: &Links) -> bool {
        let is_there = HELD.with(|list| list.borrow().contains(&links.entry()));
        HELD.with(|list| list.borrow_mut().retain(|&held| held != links.entry()));
        is_there
    }
}

/// Returns the number of the calling thread in the model, which is the same in every run.
pub(crate) fn id() -> u32 {
    ID.with(|id| *id)
}

fn number() -> u32 {
    let shown = format!("{:?}", loom::thread::current().id());
    let number = shown.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
    number.expect("loom shows a thread by its number") + 1
}

/// Does what the kernel does when a thread has ended, for the calling thread.
pub(crate) fn end_thread() {
    const OWNER_DIED: u32 = 1 << 30;
    const WAITERS: u32 = 1 << 31;
    let pending = PENDING.with(Cell::take);
    let held = HELD.with(RefCell::take);
    for entry in held.into_iter().chain((pending != 0).then_some(pending)) {
        let node = ptr::with_exposed_provenance::<Node>(entry - offset_of!(Node, links));
        // SAFETY: the node of a word in use, with the layout above. It lies in a `Shared` that the
        // model keeps until all its threads have ended.
        let Word { value, parker } = unsafe { &(*node).word };
        let mut seen = value.immortal().load(Acquire);
        loop {
            let owner = seen & (OWNER_DIED - 1);
            if owner == 0 && entry == pending {
                parker.wake_for_kernel(1);
            }
            if owner != id() {
                break;
            }
            let marked = (seen & WAITERS) | OWNER_DIED;
            match value.immortal().compare_exchange(seen, marked, AcqRel, Acquire) {
                Ok(_) => {
                    if seen & WAITERS != 0 {
                        parker.wake_for_kernel(1);
                    }
                    break;
                }
                Err(now) => seen = now,
            }
        }
    }
}
