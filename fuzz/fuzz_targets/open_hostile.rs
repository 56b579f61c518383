//! A segment in which somebody has scribbled, and goes on to scribble: it may be refused, and operations may fail with
//! the errors that they declare. Nothing may panic, leave the segment's memory (the address sanitizer watches), or hang.
//!
//! A good segment is made once and copied for each input; the input then patches header, control block, peer table and
//! value, and the copy is opened and used.
//!
//! What is kept out of the inputs, since it is allowed to take long, or stands for what is known:
//! - an owner of the control lock: a living thread that keeps it is waited for, ten seconds at most;
//! - living threads of a dead process: they are waited for until they are dead as well;
//! - a dead process's token that still names an owner, which the kernel never writes: sentinels would go round in circles;
//! - patches of anything but the value after the open: our own tokens lie there.
#![no_main]

use arbitrary::Unstructured;
use core::ptr::NonNull;
use libfuzzer_sys::fuzz_target;
use outlast::{
    Delivery, Event, FixedQueue, Loan, Lock, LockGuard, LockResult, OpenError, Options, Plain,
    Queue, Ref, Shareable, Shared, Spin,
};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt::Debug;
use std::sync::OnceLock;
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
    }
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
        let layout = Layout::from_size_align(len, SLOT).expect("a small size");
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

    /// Byte by byte, as no peer that follows the protocol does. (No other thread looks at more than one word at a time.)
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

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; no thread but sentinels, which have ended, and this one, which has
        // left, has used it.
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
            };
            let (processes, threads) = (PROCESSES as u32, THREADS as u32);
            // SAFETY: `good` gives memory of that length (or none), which outlives the segment.
            unsafe {
                Options::new().processes(processes).threads(threads).create_in(memory, len, value)
            }
        };
        good(create, |all| {
            (0..6).for_each(|i| all.queue.try_send(i).unwrap_or(()));
            all.queue.try_recv_ack().expect("a message").nack();
            all.enums.try_send(Kind::Erase).expect("room");
        })
    })
}

/// A queue whose capacity is in the header: made of a `FixedQueue`, which has the same layout but another name.
fn queue(capacity: usize) -> Vec<u8> {
    let shared: Shared<Queue<u64>> = Options::new()
        .processes(PROCESSES as u32)
        .threads(THREADS as u32)
        .anonymous_queue(capacity)
        .expect("memory");
    (0..3).for_each(|i| shared.try_send(i).unwrap_or(()));
    shared.try_recv_ack().expect("a message").nack();
    let fd = shared.try_clone_fd().expect("a descriptor");
    drop(shared);
    std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))
        .expect("a memfd can be read")
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
        // A robust word: of nobody, of the first process, of no thread, of a thread that cannot be.
        _ => {
            let owner = [0, 1, UNPLACED, UNPLACED - 1][usize::from(a % 4)];
            (u32::from(b) << 30 | owner).to_ne_bytes().to_vec()
        }
    })
}

/// Writes over a part of the memory, at a multiple of 4 or 8 bytes.
fn patch(
    memory: &Memory,
    part: (usize, usize),
    input: &mut Unstructured<'_>,
) -> arbitrary::Result<()> {
    let (start, len) = part;
    let at = usize::from(input.arbitrary::<u16>()?);
    let bytes = scribble(input)?;
    if len >= bytes.len() {
        let places = len / bytes.len();
        memory.write(start + at % places * bytes.len(), &bytes);
    }
    Ok(())
}

/// Takes out of the memory what is allowed to take long (see above).
fn hurry(memory: &Memory, peers: usize) {
    let set = |at: usize, word: u32| memory.write(at, &word.to_ne_bytes());
    let lock = memory.word(HEADER);
    if lock & OWNER != UNPLACED {
        set(HEADER, lock & !OWNER);
    }
    for process in 0..PROCESSES {
        let at = peers + process * SLOT;
        let token = memory.word(at);
        if token & OWNER_DIED == 0 {
            continue;
        }
        set(at, token & !OWNER);
        let tag = memory.word(at + GENERATION) << 12 | (process as u32 + 1);
        for thread in 0..THREADS {
            let at = peers + (PROCESSES + thread) * SLOT;
            if memory.word(at + TAG) == tag {
                set(at, memory.word(at) & !OWNER);
            }
        }
    }
}

/// What is held from step to step.
struct Held<'a, T: Plain> {
    deliveries: Vec<Delivery<'a, T>>,
    loans: Vec<Loan<'a, T>>,
    refs: Vec<Ref<'a, T>>,
}

fn use_queue<'a, T: Plain + Debug>(
    queue: &'a Queue<T>,
    held: &mut Held<'a, T>,
    value: T,
    verb: u8,
) {
    let seen = |value: &T| drop(format!("{value:?}"));
    match verb % 20 {
        0 => queue.try_send(value).unwrap_or_default_quietly(),
        1 => queue.send_timeout(value, SOON).unwrap_or_default_quietly(),
        2 => queue.send_deadline(value, Instant::now()).unwrap_or_default_quietly(),
        3 => queue.try_loan().map_or((), |loan| held.loans.push(loan)),
        4 => held.loans.pop().map_or((), |loan| loan.send().unwrap_or_default_quietly()),
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
        13 => queue.try_recv_ref().map_or((), |message| {
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
}

/// `unwrap_or_default` for results whose errors carry what was not sent.
trait Quietly {
    fn unwrap_or_default_quietly(self);
}

impl<E> Quietly for Result<(), E> {
    fn unwrap_or_default_quietly(self) {
        self.unwrap_or(());
    }
}

fn use_lock<T: Plain + Debug>(lock: &Lock<T>, value: T, verb: u8) {
    let hold = |taken: LockResult<'_, T>| {
        let guard = taken.map_or_else(outlast::LockError::into_guard, Some);
        if let Some(mut guard) = guard {
            drop(format!("{guard:?}"));
            *guard = value;
            if verb & 0x80 != 0 {
                LockGuard::mark_consistent(&mut guard);
            }
            _ = lock.try_lock(); // would deadlock
        }
    };
    match verb % 5 {
        0 => hold(lock.try_lock()),
        1 => hold(lock.lock_timeout(SOON)),
        2 => hold(lock.lock_deadline(Instant::now())),
        3 => lock.clear_poison(),
        _ => drop((lock.is_poisoned(), lock.poison_cause(), format!("{lock:?}"))),
    }
}

fn use_event(event: &Event, verb: u8) {
    match verb % 6 {
        0 => event.set(),
        1 => event.reset(),
        2 => drop(event.wait_timeout(SOON)),
        3 => drop(event.wait_deadline(Instant::now())),
        4 => drop(event.is_set()),
        _ => drop(format!("{event:?}")),
    }
}

impl<T: Plain> Held<'_, T> {
    fn nothing() -> Self {
        Held { deliveries: Vec::new(), loans: Vec::new(), refs: Vec::new() }
    }
}

/// Opens what was patched.
fn open<T: ?Sized + Shareable + Sync + 'static>(
    memory: &Memory,
    input: &mut Unstructured<'_>,
) -> Option<Shared<T>> {
    // Mostly all of it, at times less.
    let len = match input.arbitrary::<u8>().unwrap_or(0) {
        less @ 250.. => memory.len().saturating_sub(usize::from(less - 249) * 977),
        _ => memory.len(),
    };
    // SAFETY: that many bytes are there, and outlive the segment.
    match unsafe { Shared::open_in(memory.base, len) } {
        Ok(shared) => Some(shared),
        Err(error) => {
            drop(format!("{error} {error:?}"));
            None
        }
    }
}

/// Plays what is left of the input: each step is a byte that says what, a byte that says how, and at times a patch.
fn play(
    memory: &Memory,
    value: (usize, usize),
    input: &mut Unstructured<'_>,
    all: bool,
    mut step: impl FnMut(u8, u8),
) {
    for _ in 0..40 {
        let Ok([what, how]) = input.bytes(2).map(|pair| [pair[0], pair[1]]) else { break };
        if what % 8 == 7 {
            if patch(memory, value, input).is_err() {
                break;
            }
        } else {
            step(what, how);
        }
    }
    if all {
        (0..7).for_each(|what| (0..20).for_each(|how| step(what, how)));
    }
}

fn hostile(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let subject: u8 = input.arbitrary()?;
    let all = subject & 4 != 0;
    let template: &[u8] = match subject % 4 {
        0 => {
            static SMALL: OnceLock<Vec<u8>> = OnceLock::new();
            SMALL.get_or_init(|| queue(2))
        }
        _ => everything(),
    };
    let memory = Memory::copy_of(template);
    let number =
        |at: usize| u64::from_ne_bytes(memory.read(at, 8).try_into().expect("8 bytes")) as usize;
    let (total, peers, value) = (number(TOTAL_AT), number(PEERS_AT), number(VALUE_AT));
    let value = (value, total - value);
    let parts =
        [(0, HEADER), (HEADER, CONTROL), (peers, (PROCESSES + THREADS) * SLOT), value, value];
    for _ in 0..subject >> 4 {
        let part = usize::from(input.arbitrary::<u8>()?) % parts.len();
        patch(&memory, parts[part], input)?;
    }
    if subject & 8 != 0 {
        // The rest of the value with whatever there is.
        let at = usize::from(input.arbitrary::<u16>()?) % value.1;
        let len = input.arbitrary::<u16>()?;
        let len = usize::from(len).min(input.len()).min(value.1 - at);
        memory.write(value.0 + at, input.bytes(len)?);
    }
    hurry(&memory, peers);
    if subject % 4 == 0 {
        let Some(shared) = open::<Queue<u64>>(&memory, input) else { return Ok(()) };
        let mut held = Held::nothing();
        play(&memory, value, input, all, |_, how| use_queue(&shared, &mut held, how.into(), how));
    } else {
        let Some(shared) = open::<Everything>(&memory, input) else { return Ok(()) };
        let (mut numbers, mut enums) = (Held::nothing(), Held::nothing());
        let kind = |how: u8| if how & 1 == 0 { Kind::Draw } else { Kind::Erase };
        play(&memory, value, input, all, |what, how| match what % 8 {
            0 => use_lock(&shared.lock, how.into(), how),
            1 => use_lock(&shared.flag, kind(how), how),
            2 => use_event(&shared.manual, how),
            3 => use_event(&shared.auto, how),
            4 => use_queue(&shared.enums, &mut enums, kind(how), how),
            _ => use_queue(&shared.queue, &mut numbers, how.into(), how),
        });
    }
    Ok(())
}

/// The sentinel of an open that failed may still be ending when leaks are looked for.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const core::ffi::c_char {
    c"detect_leaks=0".as_ptr()
}

fuzz_target!(|input: &[u8]| {
    Spin::Never.set();
    hostile(&mut Unstructured::new(input)).unwrap_or(());
});
