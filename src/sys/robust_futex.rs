//! The calling thread's robust list: the kernel's promise to mark what a thread held when it dies.
//!
//! The C library registers one list head per thread. A node of ours has the offsets of the C
//! library's own robust mutex (its word 32 bytes before `next`, `prev` 8 bytes before it), so that
//! both can share the list. When the thread ends, by whatever means, the kernel sets
//! `OWNER_DIED` in every listed word that carries the thread's id, wakes one sleeper of each, and
//! treats the node in the head's *pending* field likewise, even if it is not in the list.
//!
//! # The lazy list
//! A held lock usually stays in `pending` and never enters the list: a section costs two stores.
//! Only when a second lock is taken while the first is held does the first move to the list
//! ([`Thread::begin`]). Hence the rule, also between copies of this crate in one process: *whoever
//! finds `pending` occupied links that node before using the field.* A pthread robust mutex taken
//! inside a section does not know the rule and would empty the field; [`set_eager`] is for such programs.
//!
//! # Which links are believed
//! `prev` and `next` lie in shared memory. As long as nobody else's node is in the list, they are
//! written for the kernel and never read: a private stack (`HELD`) says what neighbours a
//! node has. Once the C library has linked a mutex of its own, its neighbours' fields change
//! without our knowledge, and unlinking reads them from memory, as the C library does.
//!
//! Sources: get_robust_list(2), the kernel's "robust futexes" documents, and experiments on Linux
//! 6.18: a pending word whose owner part is zero gets one sleeper woken as well.
#![expect(unsafe_code, reason = "the list belongs to the C library and the kernel")]
use super::thread::is_held_back;
use crate::error::Fault;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use crate::sync::compiler_fence;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::null;

/// The bytes from a node's `next` back to its word.
const WORD_OFFSET: usize = 32;
/// The bytes from a node's `next` back to its `prev`.
const PREV_OFFSET: usize = 8;
/// How many nodes of ours a thread may have listed; the kernel stops at 2,048 of all kinds.
const MAX_HELD: usize = 1_000;

/// The two links of a node, 24 bytes after its word.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Links {
    prev: AtomicUsize,
    next: AtomicUsize,
}
const _: () = assert!(offset_of!(Links, next) == PREV_OFFSET);

impl Links {
    /// What the kernel knows the node by.
    #[inline(always)]
    fn entry(&self) -> usize {
        self.next.as_ptr().expose_provenance()
    }

    /// Forgets the links that a dead owner left.
    pub(crate) fn reset(&self) {
        self.prev.store(0, Relaxed);
        self.next.store(0, Relaxed);
    }
}

/// The kernel's `struct robust_list_head`; the C library owns it.
#[repr(C)]
#[derive(Debug)]
struct Head {
    list: AtomicUsize,
    futex_offset: i64,
    pending: AtomicUsize,
}

thread_local! {
    /// This thread's head and id. Empty until first used, after fork for as long as it is held back, and always if eager.
    static FAST: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The same, also if eager.
    static KNOWN: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The entries that this thread has listed, oldest first.
    static HELD: [Cell<usize>; MAX_HELD] = const { [const { Cell::new(0) }; MAX_HELD] };
    static HELD_LEN: Cell<usize> = const { Cell::new(0) };
    /// A node of somebody else is, or may be, between ours.
    static FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// Whether locks enter the list at once.
static EAGER: AtomicBool = AtomicBool::new(false);

/// Makes every lock of this process enter the robust list at once, or not. To be called before the first lock.
pub(crate) fn set_eager(eager: bool) {
    EAGER.store(eager, Relaxed);
    FAST.set((null(), 0));
}

/// The calling thread as owner of robust words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    head: *const Head,
    tid: u32,
}

impl Thread {
    /// The calling thread, if it is known already and locks lazily.
    #[inline(always)]
    pub(crate) fn fast() -> Option<Thread> {
        let (head, tid) = FAST.get();
        if head.is_null() { None } else { Some(Thread { head, tid }) }
    }

    /// The calling thread.
    pub(crate) fn current() -> Result<Thread, Fault> {
        let (head, tid) = KNOWN.get();
        if head.is_null() {
            return Self::introduce();
        }
        Self::allow_fast(head, tid);
        Ok(Thread { head, tid })
    }

    #[cold]
    fn introduce() -> Result<Thread, Fault> {
        let mut head: *const Head = null();
        let mut len = 0usize;
        // SAFETY: the kernel writes a pointer and a length to two live variables.
        let r = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
        if r != 0 || head.is_null() || len != size_of::<Head>() {
            return Err(Fault::Unsupported);
        }
        // SAFETY: the kernel's answer for this thread is its head, which lives as long as the thread.
        let offset = unsafe { (*head).futex_offset };
        if offset != -(WORD_OFFSET as i64) {
            return Err(Fault::Unsupported);
        }
        let tid = super::thread::id();
        KNOWN.set((head, tid));
        Self::allow_fast(head, tid);
        Ok(Thread { head, tid })
    }

    fn allow_fast(head: *const Head, tid: u32) {
        if !EAGER.load(Relaxed) && !is_held_back() {
            FAST.set((head, tid));
        }
    }

    /// What this thread writes into the words that it owns.
    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    #[inline(always)]
    fn head(&self) -> &Head {
        // SAFETY: `head` is the kernel's answer for this thread and lives as long as it does;
        // a `Thread` never leaves the thread (the pointer makes it `!Send`).
        unsafe { &*self.head }
    }

    /// Announces that the word of `links` is about to be taken or given up.
    #[inline(always)]
    pub(crate) fn begin(self, links: &Links) -> Result<(), Fault> {
        if self.head().pending.load(Relaxed) != 0 {
            self.spill()?;
        }
        self.head().pending.store(links.entry(), Relaxed);
        compiler_fence(SeqCst);
        Ok(())
    }

    /// Takes the announcement back: the word is listed, or not ours.
    #[inline(always)]
    pub(crate) fn end(self) {
        compiler_fence(SeqCst);
        self.head().pending.store(0, Relaxed);
    }

    /// Whether `links` is the node announced.
    #[inline(always)]
    pub(crate) fn is_pending(self, links: &Links) -> bool {
        self.head().pending.load(Relaxed) == links.entry()
    }

    /// Whether this process wants its locks listed at once.
    pub(crate) fn is_eager(self) -> bool {
        EAGER.load(Relaxed)
    }

    /// Moves the lock that is held in `pending` into the list.
    #[cold]
    fn spill(self) -> Result<(), Fault> {
        let entry = self.head().pending.load(Relaxed);
        // SAFETY: by the rule of the lazy list an occupied `pending` names a node whose lock this
        // thread holds, so its mapping is alive; `entry` is the address of its `next`.
        let links = unsafe { &*core::ptr::with_exposed_provenance::<Links>(entry - PREV_OFFSET) };
        self.link(links)?;
        self.end();
        Ok(())
    }

    /// Puts the node of a word that this thread owns into the list.
    pub(crate) fn link(self, links: &Links) -> Result<(), Fault> {
        let (head, len) = (self.head(), HELD_LEN.get());
        if len == MAX_HELD {
            return Err(Fault::TooManyLocks);
        }
        let first = head.list.load(Relaxed);
        self.note_foreign(first, len);
        links.next.store(first, Relaxed);
        links.prev.store(self.head_entry(), Relaxed);
        // The C library keeps a `prev` of its own right before the head as well.
        store(masked(first) - PREV_OFFSET, links.entry());
        compiler_fence(SeqCst);
        head.list.store(links.entry(), Relaxed);
        HELD.with(|held| held[len].set(links.entry()));
        HELD_LEN.set(len + 1);
        Ok(())
    }

    /// Takes a node out of the list, if it is there. It must be the pending one meanwhile.
    pub(crate) fn unlink(self, links: &Links) {
        let (head, len) = (self.head(), HELD_LEN.get());
        let entry = links.entry();
        let Some(at) = HELD.with(|held| (0..len).rev().find(|&i| held[i].get() == entry)) else {
            return;
        };
        self.note_foreign(head.list.load(Relaxed), len);
        let (prev, next) = if FOREIGN.get() {
            (links.prev.load(Relaxed), links.next.load(Relaxed))
        } else {
            HELD.with(|held| {
                let prev = if at + 1 == len { self.head_entry() } else { held[at + 1].get() };
                let next = if at == 0 { self.head_entry() } else { held[at - 1].get() };
                (prev, next)
            })
        };
        store(masked(prev), next);
        store(masked(next) - PREV_OFFSET, prev);
        compiler_fence(SeqCst);
        links.reset();
        HELD.with(|held| (at + 1..len).for_each(|i| held[i - 1].set(held[i].get())));
        HELD_LEN.set(len - 1);
    }

    /// Leaves `pending` on the word 32 bytes before `entry` for good: when this thread dies, the
    /// kernel wakes one sleeper of a word that is zero.
    pub(crate) fn toll(self, bell: &AtomicU32) {
        let entry = bell.as_ptr().expose_provenance().wrapping_add(WORD_OFFSET);
        self.head().pending.store(entry, Relaxed);
        compiler_fence(SeqCst);
    }

    /// Takes that back.
    pub(crate) fn untoll(self) {
        self.end();
    }

    /// The address by which the list's end, which is the head, is known.
    fn head_entry(self) -> usize {
        self.head.expose_provenance()
    }

    fn note_foreign(self, first: usize, len: usize) {
        let ours = if len == 0 { self.head_entry() } else { HELD.with(|held| held[len - 1].get()) };
        if first != ours {
            FOREIGN.set(true);
        } else if len == 0 {
            FOREIGN.set(false);
        }
    }
}

/// An entry's address without the mark of a priority-inheriting mutex.
fn masked(entry: usize) -> usize {
    entry & !1
}

/// Writes a link of a neighbour.
fn store(address: usize, value: usize) {
    // SAFETY: `address` is the `next` or `prev` of a node in this thread's robust list, or of its
    // head: known from the private stack, or read from the list as the C library does. Nodes stay
    // mapped while they are listed.
    unsafe { core::ptr::with_exposed_provenance_mut::<usize>(address).write_volatile(value) };
}

/// Takes out of the calling thread's list what lies in memory that is about to go. Nothing does, unless a peer has written over
/// a word that was held, or over the count of its guards.
pub(crate) fn forget_within(start: usize, len: usize) {
    let (head, tid) = KNOWN.get();
    if head.is_null() {
        return;
    }
    let me = Thread { head, tid };
    let within = |entry: usize| entry.wrapping_sub(start) < len;
    if within(me.head().pending.load(Relaxed)) {
        me.end();
    }
    let listed = || {
        HELD.with(|held| (0..HELD_LEN.get()).map(|i| held[i].get()).find(|&entry| within(entry)))
    };
    while let Some(entry) = listed() {
        // SAFETY: a node in memory that is still mapped; `entry` is the address of its `next`.
        me.unlink(unsafe { &*core::ptr::with_exposed_provenance::<Links>(entry - PREV_OFFSET) });
    }
}

/// To be called in the child of a fork: its thread has another id, an empty list, and none of its parent's locks.
pub(crate) fn forget_in_child() {
    let (head, _) = KNOWN.get();
    if !head.is_null() {
        // SAFETY: the child's copy of the head; its only thread runs this.
        unsafe { (*head).pending.store(0, Relaxed) };
    }
    FAST.set((null(), 0));
    KNOWN.set((null(), 0));
    HELD_LEN.set(0);
    FOREIGN.set(false);
}
