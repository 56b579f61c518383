//! The first bytes of a segment: what it holds, who may open it, and where its parts lie.
//!
//! ```text
//!        0       4       8      12      16      20      24      28      32
//!      0 | magic         |version|backend|word   |robust | total         |
//!     32 | fingerprint   | boot id                       | PID namespace >
//!     64 |lifetim| state |process|threads| elements      |text at|length |
//!     96 | peers at      | value at      | value size    | reserved      |
//!    128 | control block, 128 bytes: belongs to the peers                |
//!    256 | description of the type, UTF-8                                |
//!        | peer table, aligned to 64: process slots, then thread slots   |
//!        | value, aligned to 64 or more                                  |
//! ```
//!
//! To be exact, in bytes from the start, all numbers in native order:
//!
//! | at  | field          | type | value                                                      |
//! |-----|----------------|------|------------------------------------------------------------|
//! | 0   | magic          | 8 x u8 | `outlast` and a NUL                                      |
//! | 8   | version        | u32  | 1, the layout described here                               |
//! | 12  | backend        | u32  | 1 futex, 2 pthread                                         |
//! | 16  | word           | u32  | bytes in a pointer, since the robust list is made of them  |
//! | 20  | robust         | i32  | from a robust list entry to its lock word: -32             |
//! | 24  | total          | u64  | length of the segment, a multiple of 4,096                 |
//! | 32  | fingerprint    | u64  | of the value's type                                        |
//! | 40  | boot id        | 16 x u8 | of the machine's run: what it locked died with it       |
//! | 56  | PID namespace  | u64  | inode: thread ids in lock words mean something only there  |
//! | 64  | lifetime       | u32  | 0 until last, 1 persistent, 2 has no name                  |
//! | 68  | state          | u32  | 0 being made, 1 ready; written last                        |
//! | 72  | processes      | u32  | process slots, 0 for a type that needs no peers            |
//! | 76  | threads        | u32  | thread slots, likewise                                     |
//! | 80  | elements       | u64  | of the value, where their number is chosen at run time     |
//! | 88  | text at        | u32  | start of the description                                   |
//! | 92  | text length    | u32  | its length, at most 65,536                                 |
//! | 96  | peers at       | u64  | start of the peer table                                    |
//! | 104 | value at       | u64  | start of the value                                         |
//! | 112 | value size     | u64  | its length                                                 |
//! | 120 | reserved       | u64  | 0                                                          |
//!
//! Magic, version and lifetime keep their places in every later version, so that any version can
//! tell what another has left.
//!
//! Nothing after publication changes the header. A peer that scribbles over it all the same must
//! not harm us: [`check`] loads each word once, judges the copy, and takes no offset from it. It
//! computes all of them anew from the few numbers that were free to choose, and demands that the
//! stored ones are equal.
#![expect(unsafe_code, reason = "reads and writes raw shared memory")]
use crate::error::OpenError;
use crate::sys::file::Named;
use crate::sys::{BACKEND, file};
// Segments lie outside of what loom models, so these are never its atomics.
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use core::{mem, ptr};

/// The length of the header, in bytes.
pub(crate) const HEADER: usize = 128;
/// The length of the control block behind it.
pub(crate) const CONTROL: usize = 128;
/// The length of a process's entry in the peer table.
pub(crate) const PROCESS_SLOT: usize = 64;
/// The length of a thread's entry in the peer table.
pub(crate) const THREAD_SLOT: usize = 64;
/// The most processes that a peer table holds: what fits beside the other bits of an owner tag.
pub(crate) const MAX_PROCESSES: u32 = 4_095;
/// The most threads that a peer table holds.
pub(crate) const MAX_THREADS: u32 = 65_535;

const MAGIC: [u8; 8] = *b"outlast\0";
const VERSION: u32 = 1;
const FUTEX: u32 = 1;
const PTHREAD: u32 = 2;
const WORD: u32 = usize::BITS / 8;
/// glibc's distance from the list entry in a `pthread_mutex_t` to its lock word.
const ROBUST_OFFSET: i32 = -32;
/// What is asked of the system.
const BOOT_ID: &str = "reading the boot id from /proc";
const PID_NAMESPACE: &str = "reading the PID namespace from /proc";
const READY: u32 = 1;
const NAMELESS: u32 = 2;

/// The parts of a segment start at multiples of a cache line.
const LINE: usize = 64;
/// Segments are mapped, so they end, and are aligned to at most, a page.
const PAGE: usize = 4_096;
/// The greatest alignment that a value can have.
pub(crate) const MAX_ALIGN: usize = PAGE;
/// A description is for people. Nobody reads more than this.
const MAX_DESCRIPTION: usize = 1 << 16;
const DESCRIPTION_AT: usize = HEADER + CONTROL;

/// How long a named segment stays.
///
/// "In use" means that a living process has the segment open. The kernel keeps count, so that a
/// process which was killed does not use it any more.
///
/// A segment without a name (anonymous, or in memory of the caller) has no lifetime: it goes with
/// its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Lifetime {
    /// The last process that leaves removes it.
    ///
    /// A process that is created by `fork` counts as one that uses the segment, also in the moment
    /// before it executes another program. A process that leaves beside such a child waits for it,
    /// for 100 milliseconds at most. If that is too short, the name stays as it does after a kill.
    ///
    /// Where that process was killed, whoever comes next does: an open finds no such segment, a
    /// create replaces it, and [`reap`](crate::reap) clears it away.
    #[default]
    UntilLast,
    /// It stays, with what is in it, until its file is deleted or the machine is restarted.
    Persistent,
}

/// The header as it lies in memory. Integers without padding: any bytes are one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    backend: u32,
    word: u32,
    robust: i32,
    total: u64,
    fingerprint: u64,
    boot_id: [u8; 16],
    pid_namespace: u64,
    lifetime: u32,
    state: u32,
    processes: u32,
    threads: u32,
    len: u64,
    description_at: u32,
    description_len: u32,
    peers: u64,
    value: u64,
    value_size: u64,
    reserved: u64,
}

const STATE_AT: usize = mem::offset_of!(Header, state);
const _: () = assert!(size_of::<Header>() == HEADER && align_of::<Header>() <= LINE);
const _: () = assert!(mem::offset_of!(Header, lifetime) == 64 && STATE_AT == 68);
const _: () = assert!(mem::offset_of!(Header, reserved) == 120);

/// What a new segment is to be.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) fingerprint: u64,
    pub(crate) description: String,
    pub(crate) value_size: usize,
    pub(crate) value_align: usize,
    /// Elements whose number is chosen at run time.
    pub(crate) len: usize,
    /// Slots for processes, 0 if the type needs no peers; then `threads` is 0 as well.
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    /// `None` for a segment without a name.
    pub(crate) lifetime: Option<Lifetime>,
}

/// Where the parts of a segment lie, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The length of the segment.
    pub(crate) total: usize,
    pub(crate) control: usize,
    /// Start and length.
    pub(crate) description: (usize, usize),
    /// Start of the peer table. Process slots first, then thread slots; no bytes if both are 0.
    pub(crate) peers: usize,
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    pub(crate) value: usize,
    /// Elements of the value whose number was chosen at run time.
    pub(crate) len: usize,
}

/// What this program expects to find in a segment. The parts that cost something are asked for
/// only when they are needed.
pub(crate) struct Expected<'a> {
    pub(crate) fingerprint: u64,
    pub(crate) description: &'a dyn Fn() -> String,
    /// The size of the value with so many run-time elements, `None` if there cannot be so many.
    pub(crate) value_size: &'a dyn Fn(usize) -> Option<usize>,
    pub(crate) value_align: usize,
    pub(crate) needs_peers: bool,
}

impl Spec {
    /// Where the parts will lie, or `None` if no segment can be like this.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        Parts {
            description: self.stored_description().len(),
            processes: self.processes,
            threads: self.threads,
            value_size: self.value_size,
            value_align: self.value_align,
            len: self.len,
        }
        .geometry()
    }

    /// What the start of the segment must be aligned to.
    pub(crate) fn align(&self) -> usize {
        self.value_align.max(LINE)
    }

    fn stored_description(&self) -> &[u8] {
        let bytes = self.description.as_bytes();
        &bytes[..bytes.len().min(MAX_DESCRIPTION)]
    }
}

/// The numbers that a geometry follows from. Creation and opening both go through here.
struct Parts {
    description: usize,
    processes: u32,
    threads: u32,
    value_size: usize,
    value_align: usize,
    len: usize,
}

impl Parts {
    fn geometry(&self) -> Option<Geometry> {
        let peers_fit = match (self.processes, self.threads) {
            (0, 0) => true,
            (processes, threads) => {
                (1..=MAX_PROCESSES).contains(&processes) && (1..=MAX_THREADS).contains(&threads)
            }
        };
        let align_fits = self.value_align.is_power_of_two() && self.value_align <= MAX_ALIGN;
        if !peers_fit || !align_fits || self.description > MAX_DESCRIPTION {
            return None;
        }
        let processes = usize::try_from(self.processes).ok()?;
        let threads = usize::try_from(self.threads).ok()?;
        // Cannot overflow: each term is bounded above.
        let peers = (DESCRIPTION_AT + self.description).next_multiple_of(LINE);
        let peers_end = peers + processes * PROCESS_SLOT + threads * THREAD_SLOT;
        let value = peers_end.next_multiple_of(self.value_align.max(LINE));
        let total = value.checked_add(self.value_size)?.checked_next_multiple_of(PAGE)?;
        // No object in memory, and no file, is longer.
        isize::try_from(total).ok()?;
        Some(Geometry {
            total,
            control: HEADER,
            description: (DESCRIPTION_AT, self.description),
            peers,
            processes: self.processes,
            threads: self.threads,
            value,
            len: self.len,
        })
    }
}

/// Writes header and description. The segment is not [published](publish) yet.
///
/// # Errors
/// The machine's boot id or the PID namespace cannot be read.
///
/// # Safety
/// - `geometry` is `spec.geometry()`, and its `total` bytes at `base` can be written.
/// - They are zero, aligned to 64, and nobody else uses them yet.
pub(crate) unsafe fn write(
    base: *mut u8,
    spec: &Spec,
    geometry: &Geometry,
) -> Result<(), OpenError> {
    let description = spec.stored_description();
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        backend: BACKEND,
        word: WORD,
        robust: ROBUST_OFFSET,
        total: geometry.total as u64,
        fingerprint: spec.fingerprint,
        boot_id: file::boot_id().named(BOOT_ID)?,
        pid_namespace: file::pid_namespace().named(PID_NAMESPACE)?,
        lifetime: match spec.lifetime {
            Some(Lifetime::UntilLast) => 0,
            Some(Lifetime::Persistent) => 1,
            None => NAMELESS,
        },
        state: 0,
        processes: geometry.processes,
        threads: geometry.threads,
        len: geometry.len as u64,
        // Both are at most `MAX_DESCRIPTION` and a little.
        description_at: u32::try_from(geometry.description.0).map_err(|_| OpenError::Corrupt)?,
        description_len: u32::try_from(geometry.description.1).map_err(|_| OpenError::Corrupt)?,
        peers: geometry.peers as u64,
        value: geometry.value as u64,
        value_size: spec.value_size as u64,
        reserved: 0,
    };
    // SAFETY: a geometry's total exceeds the header, and the caller owns the bytes.
    unsafe { base.cast::<Header>().write(header) };
    // SAFETY: the description starts inside the segment, as its geometry says.
    let text = unsafe { base.add(geometry.description.0) };
    // SAFETY: room for these bytes was counted in by the geometry; the source is our own memory.
    unsafe { ptr::copy_nonoverlapping(description.as_ptr(), text, description.len()) };
    Ok(())
}

/// Declares the segment ready: all that was written to it before is visible to who opens it.
///
/// # Safety
/// `base` is what [`write`] succeeded on.
pub(crate) unsafe fn publish(base: *mut u8) {
    // SAFETY: inside the header.
    let state = unsafe { base.add(STATE_AT) };
    // SAFETY: aligned to 4, since `base` is to 64; it is only ever accessed as an atomic from here
    // on.
    let state = unsafe { AtomicU32::from_ptr(state.cast()) };
    state.store(READY, Ordering::Release);
}

/// Finds out whether this is a segment that this program can use, and where its parts lie.
///
/// With `exact` the memory must be as long as the segment; without, it may be longer.
///
/// # Errors
/// The first that applies, in the order that tells the user most: [`OpenError::Unfit`] (not
/// aligned), `NotOurs`, `Newer`, `Backend`, `OtherBoot`, `OtherPidNamespace`, `Corrupt` (not
/// ready), `WrongSize`, `OtherType`, `Corrupt` (numbers that do not agree), `Unfit` (not aligned
/// for this type).
///
/// # Safety
/// `available` bytes at `base` can be read, and stay so during the call. They may hold anything,
/// and change meanwhile.
pub(crate) unsafe fn check(
    base: *const u8,
    available: usize,
    exact: bool,
    expected: &Expected<'_>,
) -> Result<(Geometry, Option<Lifetime>), OpenError> {
    if available < HEADER {
        return Err(OpenError::NotOurs);
    }
    if !base.addr().is_multiple_of(LINE) {
        return Err(OpenError::Unfit { needed: available, align: LINE });
    }
    // SAFETY: at least the header can be read, and it is aligned.
    let header = unsafe { load(base) };
    header.check_origin()?;
    let stated = header.total;
    let fits = if exact { stated == available as u64 } else { stated <= available as u64 };
    if !fits {
        return Err(OpenError::WrongSize { found: available as u64, stated });
    }
    if header.fingerprint != expected.fingerprint {
        // SAFETY: the caller's promise.
        let theirs = unsafe { load_description(base, available, &header) }?;
        let mut difference = difference(&theirs, &(expected.description)());
        if difference.is_empty() {
            let (theirs, ours) = (header.fingerprint, expected.fingerprint);
            difference = format!("-fingerprint {theirs:#018x}\n+fingerprint {ours:#018x}\n");
        }
        return Err(OpenError::OtherType { difference });
    }
    let geometry = header.geometry(expected).ok_or(OpenError::Corrupt)?;
    let lifetime = match header.lifetime {
        NAMELESS => None,
        number => Some(lifetime(number).ok_or(OpenError::Corrupt)?),
    };
    let align = expected.value_align.max(LINE);
    if !base.addr().is_multiple_of(align) {
        return Err(OpenError::Unfit { needed: geometry.total, align });
    }
    Ok((geometry, lifetime))
}

/// The lifetime that the first bytes of a named segment state, of whatever version; `None` if they
/// are not those of a segment that has one.
pub(crate) fn lifetime_of(bytes: [u8; HEADER]) -> Option<Lifetime> {
    // SAFETY: as long as a header, which any bytes are.
    let header = unsafe { mem::transmute::<[u8; HEADER], Header>(bytes) };
    if header.magic == MAGIC { lifetime(header.lifetime) } else { None }
}

fn lifetime(number: u32) -> Option<Lifetime> {
    match number {
        0 => Some(Lifetime::UntilLast),
        1 => Some(Lifetime::Persistent),
        _ => None,
    }
}

/// Copies the header, each word loaded once.
///
/// # Safety
/// `base` is aligned to 4, and a header's bytes can be read there.
unsafe fn load(base: *const u8) -> Header {
    let word = |at: usize, order: Ordering| {
        // SAFETY: all callers below stay inside the header.
        let word = unsafe { base.add(at) };
        // SAFETY: aligned and readable, says the caller; after publication all accesses by peers
        // are atomic, and only loads are made here.
        let word = unsafe { AtomicU32::from_ptr(word.cast_mut().cast()) };
        word.load(order)
    };
    // First, and with Acquire: what follows is then no older than the publication.
    let state = word(STATE_AT, Ordering::Acquire);
    let mut words = [0; HEADER / 4];
    for (i, copy) in words.iter_mut().enumerate() {
        *copy = word(4 * i, Ordering::Relaxed);
    }
    words[STATE_AT / 4] = state;
    // SAFETY: as long as a header, which any bytes are.
    unsafe { mem::transmute::<[u32; HEADER / 4], Header>(words) }
}

/// The description that the segment holds, as text that is safe to print.
///
/// # Safety
/// `available` bytes at `base` can be read.
unsafe fn load_description(
    base: *const u8,
    available: usize,
    header: &Header,
) -> Result<String, OpenError> {
    let at = usize::try_from(header.description_at).unwrap_or(usize::MAX);
    let len = usize::try_from(header.description_len).unwrap_or(usize::MAX);
    // No later version of the crate is this one, so the text starts where this one puts it.
    if at != DESCRIPTION_AT || len > MAX_DESCRIPTION || len > available.saturating_sub(at) {
        return Err(OpenError::Corrupt);
    }
    let bytes: Vec<u8> = (at..at + len)
        .map(|at| {
            // SAFETY: below `available`, as just checked.
            let byte = unsafe { base.add(at) };
            // SAFETY: readable; nobody writes it after publication but by breaking the protocol.
            let byte = unsafe { AtomicU8::from_ptr(byte.cast_mut()) };
            byte.load(Ordering::Relaxed)
        })
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    // It ends up in error messages on terminals, which take orders from control characters.
    let printable =
        |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    Ok(text.chars().map(printable).collect())
}

impl Header {
    /// Whether a program like this one made the segment, in this run of this machine.
    fn check_origin(&self) -> Result<(), OpenError> {
        if self.magic != MAGIC {
            return Err(OpenError::NotOurs);
        }
        if self.version > VERSION {
            return Err(OpenError::Newer { found: self.version, known: VERSION });
        }
        if self.version != VERSION {
            return Err(OpenError::Corrupt);
        }
        if self.backend != BACKEND {
            return Err(OpenError::Backend { found: name(self.backend), ours: OURS });
        }
        if self.word != WORD || self.robust != ROBUST_OFFSET {
            let (name, bits, robust) = (name(self.backend), u64::from(self.word) * 8, self.robust);
            let found = format!("{name} ({bits}-bit, lock word at {robust})");
            return Err(OpenError::Backend { found, ours: OURS });
        }
        if self.boot_id != file::boot_id().named(BOOT_ID)? {
            return Err(OpenError::OtherBoot);
        }
        if self.pid_namespace != file::pid_namespace().named(PID_NAMESPACE)? {
            return Err(OpenError::OtherPidNamespace);
        }
        if self.state == READY { Ok(()) } else { Err(OpenError::Corrupt) }
    }

    /// The geometry that the header's numbers and the expected type lead to, if it is the one that
    /// the header states.
    fn geometry(&self, expected: &Expected<'_>) -> Option<Geometry> {
        let len = usize::try_from(self.len).ok()?;
        let value_size = (expected.value_size)(len)?;
        let geometry = Parts {
            description: usize::try_from(self.description_len).ok()?,
            processes: self.processes,
            threads: self.threads,
            value_size,
            value_align: expected.value_align,
            len,
        }
        .geometry()?;
        let agrees = (self.processes != 0) == expected.needs_peers
            && self.total == geometry.total as u64
            && u64::from(self.description_at) == geometry.description.0 as u64
            && self.peers == geometry.peers as u64
            && self.value == geometry.value as u64
            && self.value_size == value_size as u64;
        agrees.then_some(geometry)
    }
}

const OURS: &str = if BACKEND == FUTEX { "futex" } else { "pthread" };

fn name(backend: u32) -> String {
    match backend {
        FUTEX => "futex".into(),
        PTHREAD => "pthread".into(),
        other => format!("unknown ({other})"),
    }
}

/// The lines that only one of the texts has, in order: `-` before theirs, `+` before ours.
fn difference(theirs: &str, ours: &str) -> String {
    /// Beyond this many pairs of lines they are listed, not compared: damage, not a type.
    const MAX_PAIRS: usize = 1 << 20;
    let mut theirs: Vec<&str> = theirs.lines().collect();
    let mut ours: Vec<&str> = ours.lines().collect();
    let same = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    theirs.drain(..same);
    ours.drain(..same);
    while !theirs.is_empty() && theirs.last() == ours.last() {
        theirs.pop();
        ours.pop();
    }
    let mut text = String::new();
    let mut add = |sign: char, line: &str| {
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    };
    let (mut i, mut j) = (0, 0);
    let width = ours.len() + 1;
    if theirs.len().saturating_mul(ours.len()) <= MAX_PAIRS {
        // common[i * width + j]: how many lines the rests from i and j have in common, in order.
        let mut common = vec![0_u32; (theirs.len() + 1) * width];
        for i in (0..theirs.len()).rev() {
            for j in (0..ours.len()).rev() {
                common[i * width + j] = if theirs[i] == ours[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        while i < theirs.len() && j < ours.len() {
            if theirs[i] == ours[j] {
                (i, j) = (i + 1, j + 1);
            } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
                add('-', theirs[i]);
                i += 1;
            } else {
                add('+', ours[j]);
                j += 1;
            }
        }
    }
    theirs[i..].iter().for_each(|line| add('-', line));
    ours[j..].iter().for_each(|line| add('+', line));
    text
}
