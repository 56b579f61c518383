//! Opens and uses a segment whose bytes were changed, and are changed further. The segment may be
//! refused, and operations may fail with the errors that they declare. No operation may panic,
//! hang, or access other memory than the segment's, which the address sanitizer checks.
//!
//! A good segment is made once and copied for each input. The input patches the header, the control
//! block, the peer table and the value of the copy. Then the copy is opened and used.
//!
//! These are kept out of the inputs, since a wait for them may take long, or since they change
//! nothing:
//! - an owner of the control lock: a thread waits for a living owner, up to ten seconds;
//! - living threads of a dead process: a recoverer waits until they are dead as well;
//! - an owner of a once cell: a thread waits for the living maker of the value, without a deadline;
//! - an owner of a pipe's turns: a thread waits for a living sender of a long message, without a
//!   deadline;
//! - after the open, patches of the header, which is not read any more.
#![no_main]

#[path = "hostile/queues.rs"]
mod queues;

use arbitrary::Unstructured;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::NonNull;
use libfuzzer_sys::fuzz_target;
use outlast::latch::Member;
use outlast::log::{Journal, Level};
use outlast::semaphore::{OwnedPermit, Permit};
use outlast::spsc::Ring;
use outlast::{
    Barrier, ByteQueue, Channel, Condition, Delivery, Event, FixedQueue, Latch, Loan, Lock,
    LockError, LockGuard, LockResult, OnDeath, Once, OnceCell, OpenError, Options, OwnedSemaphore,
    Pipe, Plain, Queue, ReadGuard, ReentrantLock, ReentrantLockGuard, Ref, RwLock, Semaphore,
    Shareable, Shared, Spin, WriteGuard,
};
use queues::Queues;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt::Debug;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

outlast::plain! {
    /// Only two of 256 bytes are one.
    #[derive(Debug, PartialEq)]
    pub enum Kind: u8 { Draw = 1, Erase = 2 }
}

outlast::shared! {
    /// One of everything.
    pub struct Everything {
        pub lock: Lock<u64>,
        pub flag: Lock<Kind>,
        pub manual: Event,
        pub auto: Event,
        pub queue: FixedQueue<u64, 4>,
        pub enums: FixedQueue<Kind, 3>,
        pub semaphore: Semaphore,
        pub bounded: Semaphore,
        pub owned: OwnedSemaphore,
        pub barrier: Barrier,
        pub pair: Barrier,
        pub shrinking: Barrier,
        pub latch: Latch,
        pub gate: Latch,
        pub once: Once,
        pub cell: OnceCell<Kind>,
        pub numbers: RwLock<u64>,
        pub flags: RwLock<Kind>,
        pub reentrant: ReentrantLock<Kind>,
        pub condition: Condition,
    }
}

fn kind(how: u8) -> Kind {
    if how & 1 == 0 { Kind::Draw } else { Kind::Erase }
}

const SOON: Duration = Duration::from_micros(50);

// Where things lie: see src/segment/header.rs.
const HEADER: usize = 128;
const CONTROL: usize = 128;
const TOTAL_AT: usize = 24;
const PEERS_AT: usize = 96;
const VALUE_AT: usize = 104;
const PROCESSES: usize = 4;
const THREADS: usize = 8;
const SLOT: usize = 64;
/// The largest alignment of a primitive.
const ALIGN: usize = 128;
/// A thread slot's note behind the word of its token: whose it is.
const TAG: usize = 8;
/// A process slot's notes: which generation.
const GENERATION: usize = 16;

// A robust word: see src/wait/robust.rs.
const OWNER_DIED: u32 = 1 << 30;
const OWNER: u32 = OWNER_DIED - 1;
const UNPLACED: u32 = OWNER;

/// Memory of the caller's, as long as the segment and not a byte longer.
struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, ALIGN).expect("a small size");
        // SAFETY: a segment is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        Memory { base, layout }
    }

    fn copy_of(bytes: &[u8]) -> Self {
        let memory = Memory::new(bytes.len());
        memory.write(0, bytes);
        memory
    }

    fn len(&self) -> usize {
        self.layout.size()
    }

    /// Byte by byte, as no peer that follows the protocol does. (No other thread looks at more than
    /// one word at a time.)
    fn write(&self, at: usize, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate().take_while(|(i, _)| at + i < self.len()) {
            // SAFETY: inside the memory.
            unsafe { self.base.add(at + i).write_volatile(byte) };
        }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        // SAFETY: all callers stay inside the memory.
        (at..at + len).map(|at| unsafe { self.base.add(at).read_volatile() }).collect()
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.read(at, 4).try_into().expect("4 bytes"))
    }
}

/// Whether this thread still holds a lock in that memory, as after a guard was forgotten: if a
/// count of guards was overwritten, none of them was the last. If the thread holds no lock there,
/// no entry of its robust list may lie there: the kernel would write to it after the memory has
/// gone.
fn holds_something_in(memory: &Memory) -> bool {
    let mut head: *const [usize; 3] = core::ptr::null();
    let mut len = 0_usize;
    // SAFETY: writes a pointer and a length to two live variables.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    assert_eq!((r, len), (0, 24));
    // SAFETY: this thread's list: its first node or itself, an offset, and the node that is on its
    // way.
    let [first, _, pending] = unsafe { head.read_volatile() };
    let is_in = |node: usize| node.wrapping_sub(memory.base.addr().get()) < memory.len();
    // (Locks in memory that had to stay are in the list as well.)
    let mut nodes: Vec<usize> = [pending].into_iter().filter(|&node| is_in(node)).collect();
    let mut node = first;
    for _ in 0..2_000 {
        if node == head.addr() {
            break;
        }
        if is_in(node) {
            nodes.push(node);
        }
        // SAFETY: the node's link, in memory that has not been freed.
        node = unsafe { (node as *const usize).read_volatile() };
    }
    // SAFETY: takes nothing.
    let me = unsafe { libc::gettid() }.cast_unsigned();
    // The word is 32 bytes before.
    let is_mine = |&node: &usize| memory.word(node - 32 - memory.base.addr().get()) & OWNER == me;
    assert!(nodes.is_empty() || nodes.iter().any(is_mine), "what is not held is listed");
    !nodes.is_empty()
}

impl Drop for Memory {
    fn drop(&mut self) {
        if holds_something_in(self) {
            // Then the memory has to stay.
            static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
            KEPT.lock().expect("no thread panicked").push(self.base.addr().get());
            return;
        }
        // SAFETY: allocated with this layout; no thread but sentinels, which have ended, and this
        // one, which has left, has used it.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A good segment's bytes, with a few messages in it.
fn good<T: ?Sized + Shareable + Sync + 'static>(
    create: impl Fn(NonNull<u8>, usize) -> Result<Shared<T>, OpenError>,
    fill: impl Fn(&T),
) -> Vec<u8> {
    let Err(OpenError::Unfit { needed, .. }) = create(NonNull::<u128>::dangling().cast(), 0) else {
        panic!("no segment fits no memory");
    };
    let memory = Memory::new(needed);
    fill(&create(memory.base, memory.len()).expect("a good segment"));
    memory.read(0, memory.len())
}

fn everything() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let create = |memory, len| {
            let value = Everything {
                lock: Lock::new(7),
                flag: Lock::new(Kind::Draw),
                manual: Event::manual(false),
                auto: Event::auto(true),
                queue: FixedQueue::new(),
                enums: FixedQueue::new(),
                semaphore: Semaphore::new(2),
                bounded: Semaphore::bounded(3),
                owned: OwnedSemaphore::new(3),
                barrier: Barrier::new(1),
                pair: Barrier::new(2),
                shrinking: Barrier::shrinking(2),
                latch: Latch::new(3),
                gate: Latch::with(2, OnDeath::CountDown),
                once: Once::new(),
                cell: OnceCell::new(),
                numbers: RwLock::new(7),
                flags: RwLock::new(Kind::Draw),
                reentrant: ReentrantLock::new(Kind::Draw),
                condition: Condition::new(),
            };
            // SAFETY: `good` gives memory of that length (or none), which outlives the segment.
            unsafe { options().create_in(memory, len, value) }
        };
        good(create, |all| {
            (0..6).for_each(|i| all.queue.try_send(i).unwrap_or(()));
            all.queue.try_recv_ack().expect("a message").nack();
            all.enums.try_send(Kind::Erase).expect("room");
        })
    })
}

fn queues() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        // SAFETY: `good` gives memory of that length (or none), which outlives the segment.
        let create = |memory, len| unsafe { options().create_in(memory, len, Queues::new()) };
        good(create, Queues::fill)
    })
}

/// A segment whose capacity is in the header. (Such are not made in the caller's memory.)
fn image<T: ?Sized + Shareable + Sync + 'static>(
    made: Result<Shared<T>, OpenError>,
    fill: impl FnOnce(&T),
) -> Vec<u8> {
    let shared = made.expect("memory");
    fill(&shared);
    let fd = shared.try_clone_fd().expect("a descriptor");
    drop(shared);
    std::fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a memfd can be read")
}

fn options() -> Options {
    Options::new().processes(PROCESSES as u32).threads(THREADS as u32)
}

fn small_queue() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        image(options().with_capacity(2), |queue: &Queue<u64>| {
            (0..3).for_each(|i| queue.try_send(i).unwrap_or(()));
            queue.try_recv_ack().expect("a message").nack();
        })
    })
}

/// How many other kinds there are.
const GROWN: usize = 6;

/// One of the others, with a message in it.
fn grown(which: usize) -> &'static [u8] {
    static BYTES: [OnceLock<Vec<u8>>; GROWN] = [const { OnceLock::new() }; GROWN];
    BYTES[which].get_or_init(|| match which {
        0 => image(options().with_capacity(3), |channel: &Channel<Queue<Kind>>| {
            channel.sender().expect("an end").try_send(Kind::Draw).expect("room");
        }),
        1 => image(options().with_capacity(3), |ring: &Ring<Kind>| {
            ring.producer().expect("the role").try_send(Kind::Draw).expect("room");
        }),
        2 => image(options().with_capacity(500), |queue: &ByteQueue| {
            queue.try_send(b"message").expect("room");
            queue.try_recv_ref().expect("a message").give_back().expect("ours");
        }),
        3 => image(options().with_capacity(500), |channel: &Channel<ByteQueue>| {
            channel.sender().expect("an end").try_send(b"message").expect("room");
        }),
        4 => image(options().with_capacity(500), |pipe: &Pipe| {
            let (first, _second) = (pipe.first().expect("a side"), pipe.second());
            first.try_send_bytes(b"message").expect("room");
        }),
        _ => image(options().with_capacity(4), |journal: &Journal| {
            journal.write(Level::Info, "target", "message").expect("a peer");
        }),
    })
}

/// Opens one of those, and uses it.
fn use_grown(which: usize, target: &Target, input: &mut Unstructured<'_>, all: bool) {
    /// Opens the segment, and calls `step` with the guards and the value.
    macro_rules! play {
        ($kind:ty, |$held:ident, $value:ident, $what:ident, $how:ident| $step:expr) => {{
            let Some($value) = target.open::<$kind>(input) else { return };
            let mut $held = queues::Held::nothing();
            target.play(input, all, |$what, $how| $step);
        }};
    }
    match which {
        0 => {
            play!(Channel<Queue<Kind>>, |held, channel, _what, how| held.use_channel(&channel, how))
        }
        1 => play!(Ring<Kind>, |held, ring, _what, how| held.use_ring(&ring, how)),
        2 => play!(ByteQueue, |held, queue, _what, how| held.use_bytes(&*queue, how)),
        3 => play!(Channel<ByteQueue>, |held, channel, _what, how| held
            .use_byte_channel(&channel, how)),
        4 => play!(Pipe, |held, pipe, _what, how| {
            queues::locks_of_pipe().iter().for_each(|at| target.disown(target.value.0 + at));
            held.use_pipe(&pipe, how);
        }),
        _ => play!(Journal, |held, journal, _what, how| held.use_journal(&journal, how)),
    }
}

/// Something to write over shared memory: anything, or what peers might write.
fn scribble(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let [kind, a, b, c] = <[u8; 4]>::try_from(input.bytes(4)?).expect("4 bytes");
    let low = |byte: u8| u64::from(byte % 6);
    Ok(match kind % 6 {
        0 => vec![a, b, c, 0],
        1 => input.bytes(4)?.to_vec(),
        2 => input.bytes(8)?.to_vec(),
        // A slot's word, some laps from here.
        3 => {
            let lap = i64::from(a.cast_signed()).cast_unsigned();
            (lap << 16 | low(b) << 4 | low(c)).to_ne_bytes().to_vec()
        }
        // A cell's word.
        4 => (u64::from(a) << 16 | low(b) << 4 | low(c)).to_ne_bytes().to_vec(),
        // A robust word. Its owner is no thread, the first process, a thread that does not exist, or a
        // thread that cannot exist.
        _ => {
            let owner = [0, 1, UNPLACED, UNPLACED - 1][usize::from(a % 4)];
            (u32::from(b) << 30 | owner).to_ne_bytes().to_vec()
        }
    })
}

/// Start and length.
type Part = (usize, usize);

/// A copy of a good segment, to be scribbled over.
struct Target {
    memory: Memory,
    peers: usize,
    value: Part,
}

impl Target {
    fn new(good: &[u8]) -> Self {
        let memory = Memory::copy_of(good);
        let number = |at: usize| {
            let bytes = memory.read(at, 8).try_into().expect("8 bytes");
            usize::try_from(u64::from_ne_bytes(bytes)).expect("a small number")
        };
        let (total, peers, value) = (number(TOTAL_AT), number(PEERS_AT), number(VALUE_AT));
        Target { memory, peers, value: (value, total - value) }
    }

    /// What may be scribbled over before the segment is opened.
    fn before(&self) -> [Part; 5] {
        let tables = (self.peers, (PROCESSES + THREADS) * SLOT);
        [(0, HEADER), (HEADER, CONTROL), tables, self.value, self.value]
    }

    /// And afterwards.
    fn meanwhile(&self) -> [Part; 5] {
        let threads = (self.peers + PROCESSES * SLOT, THREADS * SLOT);
        [(HEADER, CONTROL), threads, self.value, self.value, self.value]
    }

    /// Writes over one of the parts, at a multiple of 4 or 8 bytes.
    fn patch(&self, parts: [Part; 5], input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (start, len) = parts[usize::from(input.arbitrary::<u8>()?) % parts.len()];
        let at = usize::from(input.arbitrary::<u16>()?);
        let bytes = scribble(input)?;
        let places = len / bytes.len();
        self.memory.write(start + at % places * bytes.len(), &bytes);
        self.hurry();
        Ok(())
    }

    /// Writes something over the value, from somewhere on.
    fn overwrite_value(&self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (start, room) = self.value;
        let at = usize::from(input.arbitrary::<u16>()?) % room;
        let len = usize::from(input.arbitrary::<u16>()?);
        self.memory.write(start + at, input.bytes(len.min(input.len()).min(room - at))?);
        Ok(())
    }

    /// Removes from the memory what a thread may wait for (see above).
    fn hurry(&self) {
        let word = |at: usize| self.memory.word(at);
        self.disown(HEADER);
        for process in 0..PROCESSES {
            let at = self.peers + process * SLOT;
            if word(at) & OWNER_DIED == 0 {
                continue;
            }
            let tag = word(at + GENERATION) << 12 | (process as u32 + 1);
            for thread in 0..THREADS {
                let at = self.peers + (PROCESSES + thread) * SLOT;
                if word(at + TAG) == tag {
                    self.disown(at);
                }
            }
        }
    }

    /// Takes the owner out of a robust word.
    fn disown(&self, at: usize) {
        let word = self.memory.word(at);
        if word & OWNER != UNPLACED && word & OWNER != 0 {
            self.memory.write(at, &(word & !OWNER).to_ne_bytes());
        }
    }

    /// Opens the patched segment.
    fn open<T: ?Sized + Shareable + Sync + 'static>(
        &self,
        input: &mut Unstructured<'_>,
    ) -> Option<Shared<T>> {
        // Mostly all of it, at times less.
        let len = match input.arbitrary::<u8>().unwrap_or(0) {
            less @ 250.. => self.memory.len().saturating_sub(usize::from(less - 249) * 977),
            _ => self.memory.len(),
        };
        SCRIBBLED.set(false);
        // SAFETY: that many bytes are there, and outlive the segment.
        match unsafe { Shared::open_in(self.memory.base, len) } {
            Ok(shared) => Some(shared),
            Err(error) => {
                drop(format!("{error} {error:?}"));
                None
            }
        }
    }

    /// Plays the rest of the input. Each step is a byte for the operation, a byte for its
    /// arguments, and sometimes a patch.
    fn play(&self, input: &mut Unstructured<'_>, all: bool, mut step: impl FnMut(u8, u8)) {
        for _ in 0..40 {
            let Ok([what, how]) = input.bytes(2).map(|pair| [pair[0], pair[1]]) else { break };
            if what % 8 != 7 {
                step(what, how);
                continue;
            }
            SCRIBBLED.set(true);
            if self.patch(self.meanwhile(), input).is_err() {
                break;
            }
        }
        if all {
            (0..7).for_each(|what| (0..20).for_each(|how| step(what, how)));
            (0..OTHERS).for_each(|what| (0..16).for_each(|how| step(LATER | what, how)));
        }
    }
}

/// Marks a step with a primitive that was added later, so that older inputs keep their meaning.
const LATER: u8 = 0x80;
/// How many of those there are.
const OTHERS: u8 = 14;
/// So many guards of a kind are held from step to step, at most.
const MOST: usize = 8;

/// The guards and handles that are held from step to step.
struct Held<'a, T: Plain> {
    deliveries: Vec<Delivery<'a, T>>,
    loans: Vec<Loan<'a, T>>,
    refs: Vec<Ref<'a, T>>,
}

fn use_queue<'a, T: InPlace + Debug>(
    queue: &'a Queue<T>,
    held: &mut Held<'a, T>,
    value: T,
    verb: u8,
) {
    let seen = |value: &T| drop(format!("{value:?}"));
    match verb % 20 {
        0 => queue.try_send(value).quietly(),
        1 => queue.send_timeout(value, SOON).quietly(),
        2 => queue.send_deadline(value, Instant::now()).quietly(),
        3 => queue.try_loan().map_or((), |loan| held.loans.push(loan)),
        4 => held.loans.pop().map_or((), |loan| loan.send().quietly()),
        5 => drop(held.loans.pop()),
        6 => queue.try_recv().map_or((), |message| seen(&message)),
        7 => queue.recv_timeout(SOON).map_or((), |message| seen(&message)),
        8 => queue.recv_deadline(Instant::now()).map_or((), |message| seen(&message)),
        9 => queue.try_recv_ack().map_or((), |delivery| {
            seen(&delivery);
            held.deliveries.push(delivery);
        }),
        10 => queue.recv_ack_timeout(SOON).map_or((), |delivery| {
            seen(&delivery);
            held.deliveries.push(delivery);
        }),
        11 => held.deliveries.pop().map_or((), |delivery| {
            _ = (delivery.attempts(), delivery.ack());
        }),
        12 => held.deliveries.pop().map_or((), Delivery::nack),
        13 => T::take_ref(queue).map_or((), |message| {
            seen(&message);
            held.refs.push(message);
        }),
        14 => drop(held.refs.pop()),
        15 => queue.drain().iter().for_each(seen),
        16 => drop(queue.join_timeout(SOON)),
        17 => queue.close(),
        18 => drop((queue.len(), queue.is_empty(), queue.is_full(), queue.capacity())),
        _ => drop(format!("{queue:?}")),
    }
    let lent = T::lent(held).into_iter();
    assert_apart(lent.chain(held.deliveries.iter().map(|delivery| bytes_of(&**delivery))));
}

/// The values that are read and written in place, for which any bits are valid.
trait InPlace: Plain {
    fn take_ref(_queue: &Queue<Self>) -> Option<Ref<'_, Self>> {
        None
    }
    fn lent(_held: &Held<'_, Self>) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

impl InPlace for Kind {}

impl InPlace for u64 {
    fn take_ref(queue: &Queue<Self>) -> Option<Ref<'_, Self>> {
        queue.try_recv_ref().ok()
    }
    fn lent(held: &Held<'_, Self>) -> Vec<(usize, usize)> {
        let loans = held.loans.iter().map(|loan| bytes_of(&**loan));
        loans.chain(held.refs.iter().map(|message| bytes_of(&**message))).collect()
    }
}

fn bytes_of<T: ?Sized>(value: &T) -> (usize, usize) {
    (core::ptr::from_ref(value).addr(), size_of_val(value))
}

/// Two handles never have memory in common, unless a peer has scribbled while they were held.
fn assert_apart(lent: impl Iterator<Item = (usize, usize)>) {
    if SCRIBBLED.get() {
        return;
    }
    let mut lent: Vec<_> = lent.filter(|&(_, len)| len > 0).collect();
    lent.sort_unstable();
    for two in lent.windows(2) {
        assert!(two[0].0 + two[0].1 <= two[1].0, "two handles have the same memory");
    }
}

thread_local! {
    /// Whether bytes were written since the segment was opened.
    static SCRIBBLED: Cell<bool> = const { Cell::new(false) };
}

/// Done, or refused.
trait Quietly {
    fn quietly(self);
}

impl<E> Quietly for Result<(), E> {
    fn quietly(self) {
        self.unwrap_or(());
    }
}

fn use_lock<'a, T: Plain + Debug>(
    lock: &'a Lock<T>,
    held: &mut Option<LockGuard<'a, T>>,
    value: T,
    verb: u8,
) {
    let mut hold = |taken: LockResult<'a, T>| {
        if let Some(mut guard) = taken.map_or_else(outlast::LockError::into_guard, Some) {
            drop(format!("{guard:?}"));
            *guard = value;
            if verb & 0x80 != 0 {
                LockGuard::mark_consistent(&mut guard);
            }
            _ = lock.try_lock(); // would deadlock
            if verb & 0x40 != 0 {
                *held = Some(guard);
            }
        }
    };
    match verb % 6 {
        0 => hold(lock.try_lock()),
        1 => hold(lock.lock_timeout(SOON)),
        2 => hold(lock.lock_deadline(Instant::now())),
        3 => lock.clear_poison(),
        4 => *held = None,
        _ => drop((lock.is_poisoned(), lock.poison_cause(), format!("{lock:?}"))),
    }
}

fn use_event(event: &Event, verb: u8) {
    match verb % 6 {
        0 => _ = event.set(),
        1 => event.reset(),
        2 => drop(event.wait_timeout(SOON)),
        3 => drop(event.wait_deadline(Instant::now())),
        4 => drop(event.is_set()),
        _ => drop(format!("{event:?}")),
    }
}

fn keep<G>(held: &mut Vec<G>, verb: u8, guard: G) {
    if verb & 0x40 != 0 && held.len() < MOST {
        held.push(guard);
    }
}

fn use_semaphore<'a>(semaphore: &'a Semaphore, held: &mut Vec<Permit<'a>>, verb: u8) {
    let many = [0, 1, 2, 5, u32::MAX][usize::from(verb) % 5];
    let mut hold = |permit: Option<Permit<'a>>| {
        permit.into_iter().for_each(|permit| keep(held, verb, permit));
    };
    match verb % 11 {
        0 => hold(semaphore.try_acquire()),
        1 => hold(semaphore.try_acquire_many(many)),
        2 => hold(semaphore.acquire_timeout(SOON).ok()),
        3 => hold(semaphore.acquire_deadline(Instant::now()).ok()),
        4 => hold(semaphore.acquire_many_timeout(many, SOON).ok()),
        5 => hold(semaphore.acquire_many_deadline(many, Instant::now()).ok()),
        6 => semaphore.release(many).unwrap_or(()),
        7 => semaphore.release(1).unwrap_or(()),
        8 => drop(held.pop()),
        9 => held.pop().map_or((), Permit::forget),
        _ => drop((semaphore.available().to_string(), format!("{semaphore:?}"))),
    }
}

fn use_owned<'a>(semaphore: &'a OwnedSemaphore, held: &mut Vec<OwnedPermit<'a>>, verb: u8) {
    let many = [0, 1, 2, 5, u32::MAX][usize::from(verb) % 5];
    let mut hold = |permit: Option<OwnedPermit<'a>>| {
        permit.into_iter().for_each(|permit| keep(held, verb, permit));
    };
    match verb % 9 {
        0 => hold(semaphore.try_acquire().unwrap_or(None)),
        1 => hold(semaphore.try_acquire_many(many).unwrap_or(None)),
        2 => hold(semaphore.acquire_timeout(SOON).ok()),
        3 => hold(semaphore.acquire_deadline(Instant::now()).ok()),
        4 => hold(semaphore.acquire_many_timeout(many, SOON).ok()),
        5 => drop(held.pop()),
        6 => held.pop().map_or((), OwnedPermit::forget),
        7 => drop(format!("{} {}", semaphore.available(), semaphore.permits())),
        _ => drop(format!("{semaphore:?}")),
    }
}

fn use_barrier(barrier: &Barrier, verb: u8) {
    match verb % 7 {
        0 => drop(barrier.wait_timeout(SOON).map_err(|error| error.to_string())),
        1 => drop(barrier.wait_deadline(Instant::now()).map_err(|error| error.to_string())),
        2 => barrier.abort(),
        3 => barrier.reset(),
        4 => barrier.leave().unwrap_or(()),
        5 => drop(format!("{} {} {}", barrier.is_broken(), barrier.parties(), barrier.waiting())),
        _ => drop(format!("{barrier:?}")),
    }
}

fn use_latch<'a>(latch: &'a Latch, held: &mut Vec<Member<'a>>, verb: u8) {
    let many = [0, 1, 2, 5, u32::MAX][usize::from(verb) % 5];
    match verb % 9 {
        0 => latch.count_down(many),
        1 | 2 => latch.join(many).map_or((), |member| keep(held, verb | 0x40, member)),
        3 => held.last().map_or((), Member::count_down),
        4 => drop(held.pop()),
        5 => _ = latch.wait_timeout(SOON),
        6 => _ = latch.wait_deadline(Instant::now()),
        7 => drop(format!("{} {}", latch.is_open(), latch.remaining())),
        _ => drop(format!("{latch:?} {:?}", held.last().map(Member::owed))),
    }
}

/// `is_free`: no living thread owns the cell's word, as far as it says.
fn use_cell<T: Plain + Debug>(cell: &OnceCell<T>, value: T, is_free: bool, verb: u8) {
    let seen = |value: &T| drop(format!("{value:?}"));
    match verb % 8 {
        0 => cell.get().map_or((), |value| value.map_or((), seen)),
        1 => cell.wait_timeout(SOON).map_or((), seen),
        2 => cell.wait_deadline(Instant::now()).map_or((), seen),
        3 if is_free => cell.get_or_init(|| value).map_or((), seen),
        4 if is_free => cell
            .get_or_init(|| {
                _ = cell.set(value); // would deadlock
                value
            })
            .map_or((), seen),
        5 if is_free => cell.set(value).unwrap_or(()),
        6 => drop(cell.is_completed().to_string()),
        _ => drop(format!("{cell:?}")),
    }
}

/// Guards of a lock of many readers.
struct Inside<'a, T: Plain> {
    readers: Vec<ReadGuard<'a, T>>,
    writer: Option<WriteGuard<'a, T>>,
}

fn use_rwlock<'a, T: Plain + Debug>(
    lock: &'a RwLock<T>,
    held: &mut Inside<'a, T>,
    value: T,
    verb: u8,
) {
    let mut read = |taken: Result<ReadGuard<'a, T>, LockError<ReadGuard<'a, T>>>| {
        if let Some(guard) = taken.map_or_else(LockError::into_guard, Some) {
            drop(format!("{guard:?}"));
            keep(&mut held.readers, verb, guard);
        }
    };
    let write = |taken: Result<WriteGuard<'a, T>, LockError<WriteGuard<'a, T>>>| {
        taken.map_or_else(LockError::into_guard, Some).map(|mut guard| {
            drop(format!("{guard:?}"));
            *guard = value;
            if verb & 0x80 != 0 {
                WriteGuard::mark_consistent(&mut guard);
            }
            _ = lock.try_read(); // would deadlock
            guard
        })
    };
    let mut hold = |guard: Option<WriteGuard<'a, T>>| {
        if verb & 0x40 != 0 && guard.is_some() {
            held.writer = guard;
        }
    };
    match verb % 11 {
        0 => read(lock.try_read()),
        1 => read(lock.read_timeout(SOON)),
        2 => read(lock.read_deadline(Instant::now())),
        3 => hold(write(lock.try_write())),
        4 => hold(write(lock.write_timeout(SOON))),
        5 => hold(write(lock.write_deadline(Instant::now()))),
        6 => drop(held.readers.pop()),
        7 => held.writer = None,
        8 => held.writer.take().map_or((), |guard| {
            keep(&mut held.readers, 0x40, WriteGuard::downgrade(guard));
        }),
        9 => lock.clear_poison(),
        _ => drop((lock.is_poisoned(), lock.poison_cause(), format!("{lock:?}"))),
    }
}

fn use_reentrant<'a, T: Plain + Debug>(
    lock: &'a ReentrantLock<T>,
    held: &mut Vec<ReentrantLockGuard<'a, T>>,
    value: T,
    verb: u8,
) {
    let mut hold = |taken: Result<_, LockError<ReentrantLockGuard<'a, T>>>| {
        if let Some(guard) = taken.map_or_else(LockError::into_guard, Some) {
            drop(format!("{guard:?} {:?} {}", guard.get(), guard.depth()));
            guard.set(value);
            _ = guard.update(|seen| seen);
            if verb & 0x80 != 0 {
                guard.mark_consistent();
            }
            keep(held, verb, guard);
        }
    };
    match verb % 6 {
        0 => hold(lock.try_lock()),
        1 => hold(lock.lock_timeout(SOON)),
        2 => hold(lock.lock_deadline(Instant::now())),
        3 => lock.clear_poison(),
        4 => drop(held.pop()),
        _ => drop((lock.is_poisoned(), lock.poison_cause(), format!("{lock:?}"))),
    }
}

fn use_condition(condition: &Condition, all: &Everything, verb: u8) {
    let flag = || all.flag.lock_timeout(SOON).map_or_else(LockError::into_guard, Some);
    let reentrant = || all.reentrant.lock_timeout(SOON).map_or_else(LockError::into_guard, Some);
    match verb % 8 {
        0 => condition.notify_one(),
        1 => condition.notify(verb.into()),
        2 => condition.notify_all(),
        3 => flag().map_or((), |guard| drop(condition.wait_timeout(guard, SOON))),
        4 => reentrant().map_or((), |guard| drop(condition.wait_timeout(guard, SOON))),
        5 => flag().map_or((), |guard| {
            drop(condition.wait_timeout_while(guard, SOON, |&mut kind| kind == Kind::Draw));
        }),
        6 => flag().map_or((), |guard| drop(condition.wait_deadline(guard, Instant::now()))),
        _ => drop(format!("{condition:?}")),
    }
}

impl<T: Plain> Held<'_, T> {
    fn nothing() -> Self {
        Held { deliveries: Vec::new(), loans: Vec::new(), refs: Vec::new() }
    }
}

fn hostile(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let subject: u8 = input.arbitrary()?;
    let (all, overwrite, patches) = (subject & 4 != 0, subject & 8 != 0, subject >> 4);
    // No older input has this number: the bytes that follow select a newer primitive.
    let is_grown = patches == 15;
    let which = if is_grown { usize::from(input.arbitrary::<u8>()?) % GROWN } else { 0 };
    let patches = if is_grown { input.arbitrary::<u8>()? % 8 } else { patches };
    let target = Target::new(match subject % 4 {
        _ if is_grown => grown(which),
        0 => small_queue(),
        3 => queues(),
        _ => everything(),
    });
    for _ in 0..patches {
        target.patch(target.before(), input)?;
    }
    if overwrite {
        target.overwrite_value(input)?;
    }
    if is_grown {
        use_grown(which, &target, input, all);
    } else if subject % 4 == 0 {
        let Some(queue) = target.open::<Queue<u64>>(input) else { return Ok(()) };
        _ = queue.join_timeout(Duration::ZERO); // this thread is registered now, or never
        let mut held = Held::nothing();
        target.play(input, all, |_, how| use_queue(&queue, &mut held, how.into(), how));
    } else if subject % 4 == 3 {
        let Some(shared) = target.open::<Queues>(input) else { return Ok(()) };
        _ = shared.jobs.join_timeout(Duration::ZERO);
        let mut held = queues::Held::nothing();
        target.play(input, all, |what, how| {
            queues::locks().for_each(|at| target.disown(target.value.0 + at));
            held.step(&shared, what, how);
        });
    } else {
        let Some(shared) = target.open::<Everything>(input) else { return Ok(()) };
        _ = shared.queue.join_timeout(Duration::ZERO);
        let (mut numbers, mut enums) = (Held::nothing(), Held::nothing());
        let (mut number, mut flag) = (None, None);
        let (mut permits, mut owned, mut members) = (Vec::new(), Vec::new(), Vec::new());
        let (mut levels, mut gate) = (Vec::new(), Vec::new());
        let mut inside = Inside { readers: Vec::new(), writer: None };
        let mut flags = Inside { readers: Vec::new(), writer: None };
        let is_free = |at: usize| {
            let owner = target.memory.word(target.value.0 + at) & OWNER;
            owner == 0 || owner == UNPLACED
        };
        let mut later = |what: u8, how: u8| match what % OTHERS {
            0 => use_semaphore(&shared.semaphore, &mut permits, how),
            1 => use_semaphore(&shared.bounded, &mut permits, how),
            2 => use_owned(&shared.owned, &mut owned, how),
            3 => use_barrier(&shared.barrier, how),
            4 => use_barrier(&shared.pair, how),
            5 => use_latch(&shared.latch, &mut members, how),
            6 => use_latch(&shared.gate, &mut gate, how),
            7 => use_cell(&shared.once, (), is_free(offset_of!(Everything, once)), how),
            8 => use_cell(&shared.cell, kind(how), is_free(offset_of!(Everything, cell)), how),
            9 => use_rwlock(&shared.numbers, &mut inside, how.into(), how),
            10 => use_rwlock(&shared.flags, &mut flags, kind(how), how),
            11 => use_reentrant(&shared.reentrant, &mut levels, kind(how), how),
            12 => use_barrier(&shared.shrinking, how),
            _ => use_condition(&shared.condition, &shared, how),
        };
        target.play(input, all, |what, how| match what % 8 {
            _ if what & LATER != 0 => later(what & !LATER, how),
            0 => use_lock(&shared.lock, &mut number, how.into(), how),
            1 => use_lock(&shared.flag, &mut flag, kind(how), how),
            2 => use_event(&shared.manual, how),
            3 => use_event(&shared.auto, how),
            4 => use_queue(&shared.enums, &mut enums, kind(how), how),
            _ => use_queue(&shared.queue, &mut numbers, how.into(), how),
        });
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    Spin::Never.set();
    hostile(&mut Unstructured::new(input)).unwrap_or(());
});
