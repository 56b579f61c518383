//! The calling thread's robust list: the kernel's promise to mark what a thread held when it dies.
//!
//! The C library registers one list head per thread. A node of ours has the offsets of the C
//! library's own robust mutex (its word 32 bytes before `next`, `prev` 8 bytes before it), so that
//! both can share the list. When the thread ends, by whatever means, the kernel sets
//! `OWNER_DIED` in every listed word that carries the thread's id, wakes one sleeper of each, and
//! treats the node in the head's *pending* field likewise, even if it is not in the list.
//!
//! # The lazy list
//! A held lock usually stays in `pending` and never enters the list. Only when a second lock is
//! taken while the first is held does the first move to the list ([`Thread::begin`]). A pthread
//! robust mutex taken inside a section, or a lock of another copy of this crate, does not know that
//! `pending` is in use and would empty the field; [`set_eager`] is for such programs.
//!
//! Given up, a lock stays in `pending` all the same: it may well be the next that this thread
//! takes, which then costs no store. (One right before a locked instruction costs as much as half
//! of that.) To the kernel a pending word that belongs to somebody else, or to nobody, says
//! nothing: at most it wakes one sleeper for no reason. Which lock in `pending` is held, only this
//! thread knows (`UNLISTED`). But memory that goes must not be left pending, or the kernel might
//! take what comes to lie there for a lock: see `threads`.
//!
//! # Invariants
//! An *entry* is the address of a node's `next`. A word that is mapped twice has two entries. A
//! thread *has* an entry if it is in `UNLISTED` or in `held`.
//! - I1. A thread has an entry exactly while the thread owns that entry's word and took the word
//!   through that address. So the thread id in a word says which thread owns the word, but not
//!   through which mapping: [`Thread::has`] decides whether a word can be entered again or given
//!   up. (A peer that breaks the protocol can write over the word of a held lock. Then the entry
//!   stays until the guard is dropped.)
//! - I2. Each node in the kernel's list that is not the C library's is in `held`, and the reverse.
//! - I3. `UNLISTED` is 0 or equal to `pending`, and is not in `held`.
//! - I4. Memory into which an entry of any thread leads stays mapped (`is_held_within`).
//!
//! # State of a thread
//! | what | meaning | set | cleared | read by |
//! |---|---|---|---|---|
//! | `pending` | the word that this thread takes, gives up, holds unlisted, or held last; the bell, in a sentinel | `begin`, `toll` | `end`; [`forget_within`], in any thread; `forget_in_child` | the kernel; `begin_again` |
//! | `UNLISTED` | the entry that is held in `pending` alone | `hold` | `let_go`; `spill`, which lists the entry | `holds`, `begin`; a thread that unmaps memory |
//! | `held`, in the thread's `Place` | the entries in the list, oldest first | `link` | `unlink`; `enter`, after the thread's end | `position`, `unlink`; a thread that unmaps memory |
//! | `HELD_LEN` | the length of `held`; `len` in the `Place` is the same, for other threads | `link` | `unlink`, `forget_in_child` | `is_full`; `len`: a thread that unmaps memory |
//! | `FOREIGN` | a node of the C library may lie between ours: `unlink` reads links from memory | `note_foreign` | `note_foreign`, when the list is empty; `forget_in_child` | `unlink` |
//! | `KNOWN` | the thread's head and id | `introduce` | `forget_in_child` | `current` |
//! | `FAST` | the same, if the thread may lock by the shortest way: lazily, and asking nobody | `allow_fast` | `set_eager`, `retire`, `forget_in_child` | `fast`, `is_calling` |
//! | `ENDING` | the thread has begun to end: it lists its locks at once | `Leaver`; `enter` | `forget_in_child` | `must_list` |
//! | `EAGER`, of the process | every lock enters the list at once | [`set_eager`] | [`set_eager`] | `must_list` |
//! | `HELD_BACK`, of the process (`sys/thread.rs`) | a forked child that is not yet a peer where its parent was: `FAST` stays empty | `hold_back`, after a fork | `hold_back`, once the child is a peer | `allow_fast`, `introduce` of `segment/table.rs` |
//!
//! # Which links are believed
//! `prev` and `next` lie in shared memory. As long as nobody else's node is in the list, they are
//! written for the kernel and never read: a private stack (`held`) says what neighbours a
//! node has. Once the C library has linked a mutex of its own, its neighbours' fields change
//! without our knowledge, and unlinking reads them from memory, as the C library does.
//!
//! Sources: get_robust_list(2), the kernel's "robust futexes" documents, and experiments on Linux
//! 6.18: a pending word whose owner part is zero gets one sleeper woken as well.
#![expect(unsafe_code, reason = "the list belongs to the C library and the kernel")]
#[path = "robust_futex_threads.rs"]
mod threads;

use super::thread::{is_elsewhere, is_held_back};
use crate::error::Fault;
use crate::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use crate::sync::compiler_fence;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::null;

/// The bytes from a node's `next` back to its word.
const WORD_OFFSET: usize = 32;
/// The bytes from a node's `next` back to its `prev`.
const PREV_OFFSET: usize = 8;
/// How many locks a thread may hold when it takes one more; the kernel stops at 2,048 of all kinds.
const MAX_HELD: usize = 1_000;
/// The entries that a thread can have in its list.
type Held = [AtomicUsize; MAX_HELD + 1];

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
    /// This thread's head and id. Empty until first used, after fork for as long as it is held
    /// back, and always if eager.
    static FAST: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The same, also if eager.
    static KNOWN: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The entry of the lock that this thread holds in `pending` alone, or 0.
    static UNLISTED: AtomicUsize = const { AtomicUsize::new(0) };
    /// How many entries this thread has listed. There is room for the unlisted one as well, at any
    /// time.
    static HELD_LEN: Cell<usize> = const { Cell::new(0) };
    /// A node of somebody else is, or may be, between ours.
    static FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// Whether locks enter the list at once.
static EAGER: AtomicBool = AtomicBool::new(false);

/// Makes every lock of this process enter the robust list at once, or not. To be called before the
/// first lock.
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
        if is_elsewhere() {
            return Err(Fault::OtherPidNamespace);
        }
        let mut head: *const Head = null();
        let mut len = 0usize;
        // SAFETY: the kernel writes a pointer and a length to two live variables.
        let r = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
        if r != 0 || head.is_null() || len != size_of::<Head>() {
            return Err(Fault::Unsupported);
        }
        // SAFETY: the kernel's answer for this thread is its head, which lives as long as the
        // thread.
        let offset = unsafe { (*head).futex_offset };
        if offset != -(WORD_OFFSET as i64) {
            return Err(Fault::Unsupported);
        }
        let tid = super::thread::id();
        KNOWN.set((head, tid));
        threads::enter(head, tid);
        Self::allow_fast(head, tid);
        Ok(Thread { head, tid })
    }

    fn allow_fast(head: *const Head, tid: u32) {
        if !must_list() && !is_held_back() {
            FAST.set((head, tid));
        }
    }

    /// Whether this is the calling thread, and [fast](Self::fast): not so in the child of a fork,
    /// for a `Thread` that was made before.
    #[inline(always)]
    pub(crate) fn is_calling(self) -> bool {
        FAST.get().1 == self.tid
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

    /// Announces that the word of `links` is about to be taken. A lock that was held unlisted is in
    /// the list from here on.
    #[inline(always)]
    pub(crate) fn begin(self, links: &Links) -> Result<(), Fault> {
        if self.is_full() {
            return Err(Fault::TooManyLocks);
        }
        self.begin_to_end(links);
        Ok(())
    }

    /// Announces that a listed word is about to be given up: there is always room for this.
    #[inline(always)]
    pub(crate) fn begin_to_end(self, links: &Links) {
        if unlisted() != 0 {
            self.spill();
        }
        self.head().pending.store(links.entry(), Relaxed);
        compiler_fence(SeqCst);
    }

    /// As [`begin`](Self::begin), for a word that is tried once, and then [held](Self::hold) or
    /// left: mostly it is announced already.
    #[inline(always)]
    pub(crate) fn begin_again(self, links: &Links) -> Result<(), Fault> {
        if self.head().pending.load(Relaxed) == links.entry() {
            compiler_fence(SeqCst);
            Ok(())
        } else {
            self.begin(links)
        }
    }

    /// Takes the announcement back: the word is listed, or not ours.
    #[inline(always)]
    pub(crate) fn end(self) {
        compiler_fence(SeqCst);
        self.head().pending.store(0, Relaxed);
    }

    /// The word announced is ours now, and stays out of the list.
    #[inline(always)]
    pub(crate) fn hold(self, links: &Links) {
        debug_assert_eq!(self.head().pending.load(Relaxed), links.entry(), "not announced (I3)");
        compiler_fence(SeqCst);
        set_unlisted(links.entry());
    }

    /// Whether this thread holds the word so.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn holds(self, links: &Links) -> bool {
        unlisted() == links.entry()
    }

    /// Whether this thread has the entry: it took the word through this address (I1).
    #[inline(always)]
    pub(crate) fn has(self, links: &Links) -> bool {
        self.holds(links) || self.has_listed(links)
    }

    #[cold]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    fn has_listed(self, links: &Links) -> bool {
        threads::held().is_some_and(|held| position(held, HELD_LEN.get(), links.entry()).is_some())
    }

    /// The word held is about to be given up. It stays announced.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn let_go(self) {
        set_unlisted(0);
        compiler_fence(SeqCst);
    }

    /// Whether this thread's locks are to be listed at once.
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn is_eager(self) -> bool {
        must_list()
    }

    /// Whether it holds as many as it may.
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    fn is_full(self) -> bool {
        HELD_LEN.get() + usize::from(unlisted() != 0) > MAX_HELD
    }

    /// Moves the lock that is held in `pending` into the list.
    #[cold]
    fn spill(self) {
        // SAFETY: the node of a lock that this thread holds, so its mapping is alive; the entry is
        // the address of its `next`.
        self.link(unsafe { node(unlisted()) });
        // Release: a thread that unmaps memory finds the entry here, or then in `held`.
        UNLISTED.with(|entry| entry.store(0, Release));
    }

    /// Puts the node of a word that this thread owns into the list. There is room: it
    /// [began](Self::begin).
    pub(crate) fn link(self, links: &Links) {
        let (head, len, entry) = (self.head(), HELD_LEN.get(), links.entry());
        let Some(held) = threads::held() else { return }; // there is: the thread was entered
        let first = head.list.load(Relaxed);
        self.note_foreign(first, held, len);
        links.next.store(first, Relaxed);
        links.prev.store(self.head_entry(), Relaxed);
        // The C library keeps a `prev` of its own right before the head as well.
        store(masked(first) - PREV_OFFSET, entry);
        compiler_fence(SeqCst);
        head.list.store(entry, Relaxed);
        held[len].store(entry, Release);
        set_len(len + 1);
    }

    /// Takes a node out of the list, if it is there; whether it was. It must be the pending one
    /// meanwhile.
    pub(crate) fn unlink(self, links: &Links) -> bool {
        let (head, len) = (self.head(), HELD_LEN.get());
        let Some(held) = threads::held() else { return false };
        let Some(at) = position(held, len, links.entry()) else { return false };
        self.note_foreign(head.list.load(Relaxed), held, len);
        let (prev, next) = if FOREIGN.get() {
            (links.prev.load(Relaxed), links.next.load(Relaxed))
        } else {
            let neighbour = |i: usize| held[i].load(Relaxed);
            let prev = if at + 1 == len { self.head_entry() } else { neighbour(at + 1) };
            let next = if at == 0 { self.head_entry() } else { neighbour(at - 1) };
            (prev, next)
        };
        store(masked(prev), next);
        store(masked(next) - PREV_OFFSET, prev);
        compiler_fence(SeqCst);
        // In this order: a thread that reads `held` from its end meets each entry that stays.
        (at + 1..len).for_each(|i| held[i - 1].store(held[i].load(Relaxed), Release));
        set_len(len - 1);
        true
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

    fn note_foreign(self, first: usize, held: &Held, len: usize) {
        let ours = if len == 0 { self.head_entry() } else { held[len - 1].load(Relaxed) };
        if first != ours {
            FOREIGN.set(true);
        } else if len == 0 {
            FOREIGN.set(false);
        }
    }
}

#[inline(always)]
fn unlisted() -> usize {
    UNLISTED.with(|entry| entry.load(Relaxed))
}

#[inline(always)]
fn set_unlisted(to: usize) {
    UNLISTED.with(|entry| entry.store(to, Relaxed));
}

/// Notes how many entries the calling thread has listed.
fn set_len(len: usize) {
    HELD_LEN.set(len);
    threads::publish_len(len);
}

/// Where the entry is among the first `len` that are held, if it is.
fn position(held: &Held, len: usize, entry: usize) -> Option<usize> {
    held[..len].iter().rposition(|held| held.load(Relaxed) == entry)
}

/// The node of an entry.
///
/// # Safety
/// The entry is the address of its `next`, in memory that is mapped, and stays so for as long as
/// the result is used.
unsafe fn node<'a>(entry: usize) -> &'a Links {
    // SAFETY: the caller's promise; a node is made of atomics, for which any bytes will do.
    unsafe { &*core::ptr::with_exposed_provenance::<Links>(entry - PREV_OFFSET) }
}

/// Whether the calling thread lists its locks at once: if the process wants that, and when the
/// thread is ending, after which nobody could take back what it left in `pending`.
fn must_list() -> bool {
    EAGER.load(Relaxed) || threads::is_ending()
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

/// Whether a thread of this process has an entry that leads into this memory: then the memory must
/// stay (I4).
pub(crate) fn is_held_within(start: usize, len: usize) -> bool {
    threads::any_has(|entry| entry.wrapping_sub(start) < len)
}

/// Has the kernel forget words in memory that is about to go: what the threads of this process have
/// left in `pending`, and what the calling thread has there. No other thread has an entry there
/// ([`is_held_within`]).
pub(crate) fn forget_within(start: usize, len: usize) {
    let within = |entry: usize| entry.wrapping_sub(start) < len;
    let (head, tid) = KNOWN.get();
    if !head.is_null() {
        let me = Thread { head, tid };
        if within(unlisted()) {
            me.let_go();
        }
        let listed = || {
            let held = threads::held()?;
            (0..HELD_LEN.get()).map(|i| held[i].load(Relaxed)).find(|&entry| within(entry))
        };
        while let Some(entry) = listed() {
            // SAFETY: a node in memory that is still mapped.
            me.unlink(unsafe { node(entry) });
        }
    }
    threads::forget_pending(within);
}

/// Leaves nothing in the calling thread's `pending` field but what is about to be taken or given
/// up, now or later.
fn retire() {
    FAST.set((null(), 0));
    let (head, tid) = KNOWN.get();
    let me = Thread { head, tid };
    if unlisted() != 0 {
        me.spill();
    }
    me.end();
}

/// To be called in the child of a fork: its thread has another id, an empty list, and none of its
/// parent's locks.
pub(crate) fn forget_in_child() {
    let (head, _) = KNOWN.get();
    if !head.is_null() {
        // SAFETY: the child's copy of the head; its only thread runs this.
        unsafe { (*head).pending.store(0, Relaxed) };
    }
    threads::forget_in_child();
    FAST.set((null(), 0));
    KNOWN.set((null(), 0));
    set_unlisted(0);
    HELD_LEN.set(0);
    FOREIGN.set(false);
}
