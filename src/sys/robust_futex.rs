//! The robust list of the calling thread. When the thread dies, the kernel marks the words of the
//! locks in it.
//!
//! The C library registers one list head for each thread. The nodes of this crate have the layout
//! of the robust mutex of the C library: the word is 32 bytes before `next`, and `prev` is 8 bytes
//! before it. So both kinds of nodes can be in the list. When the thread ends, in any way, the
//! kernel sets `OWNER_DIED` in every listed word that holds the id of the thread, and wakes one
//! sleeper of each. It treats the node in the *pending* field of the head in the same way, even if
//! that node is not in the list.
//!
//! # The lazy list
//! A held lock usually stays in `pending` and is not in the list. It moves to the list only when
//! the thread takes a second lock while it holds the first ([`Thread::begin`]). A robust pthread
//! mutex, or a lock of another copy of this crate, does not know that `pending` is in use. If the
//! thread takes one while it holds a lock, it empties the field. [`set_eager`] is for such
//! programs.
//!
//! A released lock stays in `pending` as well. It is often the next lock that this thread takes,
//! which then needs no store. (A store right before a locked instruction costs half as much as that
//! instruction.) A pending word that this thread does not own has almost no effect: at most the
//! kernel wakes one sleeper for no reason. Only this thread knows which lock it holds in `pending`:
//! `UNLISTED`. But memory that is unmapped must not be left in `pending`, or the kernel might take
//! later content of that memory for a lock: see `threads`.
//!
//! # Invariants
//! An *entry* is the address of the `next` field of a node. A word that is mapped twice has two
//! entries. A thread *has* an entry if it is in `UNLISTED` or in `held`.
//! - I1. A thread has an entry exactly while it owns the word of that entry and took it through
//!   that address. So the thread id in a word tells which thread owns the word, but not through
//!   which mapping. [`Thread::has`] decides whether a word can be locked again or unlocked. (A peer
//!   that breaks the protocol can overwrite the word of a held lock. Then the entry stays until the
//!   guard is dropped.)
//! - I2. Each node of this crate in the list of the kernel is in `held`, and the reverse.
//! - I3. `UNLISTED` is 0 or equal to `pending`, and is not in `held`.
//! - I4. Memory in which an entry of any thread lies stays mapped (`is_held_within`).
//!
//! # State of a thread
//! | what | meaning | set | cleared | read by |
//! |---|---|---|---|---|
//! | `pending` | the word that this thread takes, releases, holds unlisted, or held last; in a sentinel, the bell | `begin`, `set_bell` | `end`; [`forget_within`], in any thread; `forget_in_child` | the kernel; `begin_again` |
//! | `UNLISTED` | the entry that is held in `pending` alone | `hold` | `let_go`; `list_unlisted`, which lists the entry | `holds`, `begin`; a thread that unmaps memory |
//! | `held`, in the thread's `ThreadRecord` | the entries in the list, oldest first | `link` | `unlink`; `enter`, after the thread's end | `position`, `unlink`; a thread that unmaps memory |
//! | `HELD_LEN` | the length of `held`; `len` in the `ThreadRecord` is the same, for other threads | `link` | `unlink`, `forget_in_child` | `is_full`; `len`: a thread that unmaps memory |
//! | `FOREIGN` | a node of the C library may be in the list, so `unlink` reads links from memory | `note_foreign` | `note_foreign`, when the list is empty; `forget_in_child` | `unlink` |
//! | `KNOWN` | the head and the id of the thread | `look_up` | `forget_in_child` | `current` |
//! | `FAST` | the same, if the thread may use the fast paths of locks | `allow_fast` | `set_eager`, `prepare_to_end`, `forget_in_child` | `fast`, `is_calling` |
//! | `ENDING` | the thread has begun to end, so its locks enter the list immediately | `EndDetector`; `enter` | `forget_in_child` | `must_list` |
//! | `EAGER`, of the process | every lock enters the list immediately | [`set_eager`] | [`set_eager`] | `must_list` |
//! | `FAST_LOCKS_OFF`, of the process (`sys/thread.rs`) | this is a forked child that is not a peer of all inherited segments yet, so `FAST` stays empty | `set_fast_locks_off`, after a fork | `set_fast_locks_off`, once the child is a peer | `allow_fast`, `attach_in_child` of `segment/table.rs` |
//!
//! # Which links are trusted
//! `prev` and `next` lie in shared memory. While only nodes of this crate are in the list, the
//! fields are written for the kernel and never read: a private stack (`held`) tells the neighbours
//! of a node. Once the C library has linked a mutex of its own, it changes the fields of the
//! neighbours. Then unlinking reads the fields from memory, as the C library does.
//!
//! Sources: get_robust_list(2), the "robust futexes" documents of the kernel, and experiments on
//! Linux 6.18: if the owner part of a pending word is zero, the kernel wakes one sleeper as well.
#![expect(unsafe_code, reason = "the list belongs to the C library and the kernel")]
#[path = "robust_futex_threads.rs"]
mod threads;

use super::thread::{are_fast_locks_off, is_in_other_namespace};
use crate::error::Fault;
use crate::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use crate::sync::compiler_fence;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::null;

/// The number of bytes from the `next` field of a node back to its word.
const WORD_OFFSET: usize = 32;
/// The number of bytes from the `next` field of a node back to its `prev` field.
const PREV_OFFSET: usize = 8;
/// The number of locks that a thread may hold when it takes one more. The kernel reads at most
/// 2,048 nodes of all kinds.
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
    /// Returns the address by which the kernel knows the node.
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
    /// The head and the id of this thread. Empty before the first use, in a forked child while fast
    /// paths are off, and always if locks are eager.
    static FAST: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The same, also while fast paths are off and if locks are eager.
    static KNOWN: Cell<(*const Head, u32)> = const { Cell::new((null(), 0)) };
    /// The entry of the lock that this thread holds in `pending` alone, or 0.
    static UNLISTED: AtomicUsize = const { AtomicUsize::new(0) };
    /// The number of entries that this thread has listed. There is always room for the unlisted one
    /// as well.
    static HELD_LEN: Cell<usize> = const { Cell::new(0) };
    /// Whether a node of the C library may be in the list.
    static FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// Whether locks enter the list immediately.
static EAGER: AtomicBool = AtomicBool::new(false);

/// Sets whether every lock of this process enters the robust list immediately. Called before the
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
    /// Returns the calling thread, if it is known already and may use the fast paths.
    #[inline(always)]
    pub(crate) fn fast() -> Option<Thread> {
        let (head, tid) = FAST.get();
        if head.is_null() { None } else { Some(Thread { head, tid }) }
    }

    /// Returns the calling thread.
    pub(crate) fn current() -> Result<Thread, Fault> {
        let (head, tid) = KNOWN.get();
        if head.is_null() {
            return Self::look_up();
        }
        Self::allow_fast(head, tid);
        Ok(Thread { head, tid })
    }

    #[cold]
    fn look_up() -> Result<Thread, Fault> {
        if is_in_other_namespace() {
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
        if !must_list() && !are_fast_locks_off() {
            FAST.set((head, tid));
        }
    }

    /// Returns whether this is the calling thread, and [fast](Self::fast). Returns `false` in the
    /// child of a fork for a `Thread` that was made before the fork.
    #[inline(always)]
    pub(crate) fn is_calling(self) -> bool {
        FAST.get().1 == self.tid
    }

    /// Returns the id that this thread writes into the words that it owns.
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

    /// Announces that this thread is about to take the word of `links`. A lock that was held
    /// unlisted moves to the list.
    #[inline(always)]
    pub(crate) fn begin(self, links: &Links) -> Result<(), Fault> {
        if self.is_full() {
            return Err(Fault::TooManyLocks);
        }
        self.begin_to_end(links);
        Ok(())
    }

    /// Announces that this thread is about to release a listed word. There is always room for this.
    #[inline(always)]
    pub(crate) fn begin_to_end(self, links: &Links) {
        if unlisted() != 0 {
            self.list_unlisted();
        }
        self.head().pending.store(links.entry(), Relaxed);
        compiler_fence(SeqCst);
    }

    /// Like [`begin`](Self::begin), for one attempt without an [`end`](Self::end) if it fails.
    /// Usually the word is announced already.
    #[inline(always)]
    pub(crate) fn begin_again(self, links: &Links) -> Result<(), Fault> {
        if self.head().pending.load(Relaxed) == links.entry() {
            compiler_fence(SeqCst);
            Ok(())
        } else {
            self.begin(links)
        }
    }

    /// Ends the announcement: the word is listed, or this thread does not own it.
    #[inline(always)]
    pub(crate) fn end(self) {
        compiler_fence(SeqCst);
        self.head().pending.store(0, Relaxed);
    }

    /// Notes that this thread now owns the announced word, which stays out of the list.
    #[inline(always)]
    pub(crate) fn hold(self, links: &Links) {
        debug_assert_eq!(self.head().pending.load(Relaxed), links.entry(), "not announced (I3)");
        compiler_fence(SeqCst);
        set_unlisted(links.entry());
    }

    /// Returns whether this thread holds the word unlisted.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn holds(self, links: &Links) -> bool {
        unlisted() == links.entry()
    }

    /// Returns whether this thread has the entry: it took the word through this address (I1).
    #[inline(always)]
    pub(crate) fn has(self, links: &Links) -> bool {
        self.holds(links) || self.has_listed(links)
    }

    #[cold]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    fn has_listed(self, links: &Links) -> bool {
        threads::held().is_some_and(|held| position(held, HELD_LEN.get(), links.entry()).is_some())
    }

    /// Notes that this thread is about to release its unlisted word, which stays announced.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn let_go(self) {
        set_unlisted(0);
        compiler_fence(SeqCst);
    }

    /// Returns whether the locks of this thread enter the list immediately.
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    pub(crate) fn is_eager(self) -> bool {
        must_list()
    }

    /// Returns whether this thread holds as many locks as it may.
    #[expect(clippy::unused_self, reason = "of the calling thread")]
    fn is_full(self) -> bool {
        HELD_LEN.get() + usize::from(unlisted() != 0) > MAX_HELD
    }

    /// Moves the lock that is held in `pending` into the list.
    #[cold]
    fn list_unlisted(self) {
        // SAFETY: the node of a lock that this thread holds, so the memory is mapped. The entry is
        // the address of its `next`.
        self.link(unsafe { node(unlisted()) });
        // Release: a thread that unmaps memory finds the entry here, or then in `held`.
        UNLISTED.with(|entry| entry.store(0, Release));
    }

    /// Puts the node of a word that this thread owns into the list. [`begin`](Self::begin) has
    /// checked that there is room.
    pub(crate) fn link(self, links: &Links) {
        let (head, len, entry) = (self.head(), HELD_LEN.get(), links.entry());
        let Some(held) = threads::held() else { return }; // never: the thread was entered
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

    /// Removes a node from the list. Returns whether it was there. The node must be in `pending`
    /// during the call.
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

    /// Points `pending` to the bell, a word that is zero. When this thread dies, the kernel wakes
    /// one sleeper of the bell.
    pub(crate) fn set_bell(self, bell: &AtomicU32) {
        let entry = bell.as_ptr().expose_provenance().wrapping_add(WORD_OFFSET);
        self.head().pending.store(entry, Relaxed);
        compiler_fence(SeqCst);
    }

    /// Empties `pending`.
    pub(crate) fn clear_bell(self) {
        self.end();
    }

    /// Returns the address of the head, which the kernel takes for the end of the list.
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

/// Sets the number of entries that the calling thread has listed.
fn set_len(len: usize) {
    HELD_LEN.set(len);
    threads::publish_len(len);
}

/// Returns the index of the entry among the first `len` of `held`.
fn position(held: &Held, len: usize, entry: usize) -> Option<usize> {
    held[..len].iter().rposition(|held| held.load(Relaxed) == entry)
}

/// Returns the node of an entry.
///
/// # Safety
/// The entry is the address of the `next` field of the node. The memory stays mapped as long as the
/// result is used.
unsafe fn node<'a>(entry: usize) -> &'a Links {
    // SAFETY: the caller's promise; a node is made of atomics, for which any bytes will do.
    unsafe { &*core::ptr::with_exposed_provenance::<Links>(entry - PREV_OFFSET) }
}

/// Returns whether the locks of the calling thread enter the list immediately. They do if the
/// process wants that. They do in a thread that is ending as well, because later no thread could
/// empty its `pending` field.
fn must_list() -> bool {
    EAGER.load(Relaxed) || threads::is_ending()
}

/// Returns an entry without the bit that marks a priority-inheriting mutex.
fn masked(entry: usize) -> usize {
    entry & !1
}

/// Writes a link of a neighbour.
fn store(address: usize, value: usize) {
    // SAFETY: `address` is the `next` or `prev` field of a node in the robust list of this thread,
    // or of its head. It is from the private stack, or read from the list as the C library does.
    // Nodes stay mapped while they are listed.
    unsafe { core::ptr::with_exposed_provenance_mut::<usize>(address).write_volatile(value) };
}

/// Returns whether a thread of this process has an entry in this memory. Then the memory must stay
/// mapped (I4).
pub(crate) fn is_held_within(start: usize, len: usize) -> bool {
    threads::any_has(|entry| entry.wrapping_sub(start) < len)
}

/// Removes all words in memory that is about to be unmapped: from the `pending` fields of all
/// threads of this process, and from the list of the calling thread. No other thread has an entry
/// there ([`is_held_within`]).
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

/// Empties the `pending` field of the calling thread, which is ending. From here on its locks enter
/// the list immediately.
fn prepare_to_end() {
    FAST.set((null(), 0));
    let (head, tid) = KNOWN.get();
    let me = Thread { head, tid };
    if unlisted() != 0 {
        me.list_unlisted();
    }
    me.end();
}

/// Resets the state of the thread in the child of a fork. There it has another id, an empty list,
/// and none of the locks of the parent.
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
