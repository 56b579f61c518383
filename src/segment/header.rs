//! The header of a segment: what the segment holds, who may open it, and where its parts lie.
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
//! The fields, with their offsets in bytes. All numbers are in native byte order:
//!
//! | at  | field          | type | value                                                      |
//! |-----|----------------|------|------------------------------------------------------------|
//! | 0   | magic          | 8 x u8 | `outlast` and a NUL                                      |
//! | 8   | version        | u32  | 1, the layout described here                               |
//! | 12  | backend        | u32  | 1 futex, 2 pthread                                         |
//! | 16  | word           | u32  | bytes in a pointer: the robust list consists of pointers   |
//! | 20  | robust         | i32  | from a robust list entry to its lock word: -32             |
//! | 24  | total          | u64  | length of the segment, a multiple of 4,096                 |
//! | 32  | fingerprint    | u64  | of the value's type                                        |
//! | 40  | boot id        | 16 x u8 | changes at each boot, which ends all owners of locks    |
//! | 56  | PID namespace  | u64  | inode: thread ids in lock words are valid only there       |
//! | 64  | lifetime       | u32  | 0 until last, 1 persistent, 2 has no name                  |
//! | 68  | state          | u32  | 0 being created, 1 ready; written last                     |
//! | 72  | processes      | u32  | process slots, 0 for a type that needs no peers            |
//! | 76  | threads        | u32  | thread slots, 0 for a type that needs no peers             |
//! | 80  | elements       | u64  | of a value whose number of elements is chosen at run time  |
//! | 88  | text at        | u32  | start of the description                                   |
//! | 92  | text length    | u32  | its length, at most 65,536                                 |
//! | 96  | peers at       | u64  | start of the peer table                                    |
//! | 104 | value at       | u64  | start of the value                                         |
//! | 112 | value size     | u64  | its length                                                 |
//! | 120 | reserved       | u64  | 0                                                          |
//!
//! Magic, version and lifetime keep their offsets in every later version. So each version can
//! remove what another one has left behind.
//!
//! Nothing changes the header after publication. A peer that breaks this rule must do no harm to
//! others. So [`check`] loads each word once, checks the copy, and takes no offset from it. It
//! computes all offsets from the few numbers that the creator could choose, and compares them with
//! the stored ones.
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
/// The distance from the list entry in a `pthread_mutex_t` of glibc to its lock word.
const ROBUST_OFFSET: i32 = -32;
/// System calls, as errors name them.
const BOOT_ID: &str = "reading the boot id from /proc";
const PID_NAMESPACE: &str = "reading the PID namespace from /proc";
const READY: u32 = 1;
const NAMELESS: u32 = 2;

/// The parts of a segment start at multiples of a cache line.
const LINE: usize = 64;
/// Segments are mapped. So a page is the unit of their length, and the greatest alignment.
const PAGE: usize = 4_096;
/// The greatest alignment that a value can have.
pub(crate) const MAX_ALIGN: usize = PAGE;
/// The greatest length of a description, which only error messages show.
const MAX_DESCRIPTION: usize = 1 << 16;
const DESCRIPTION_AT: usize = HEADER + CONTROL;

/// How long a named segment lives.
///
/// A segment is in use while a living process has it open. The kernel keeps track of that, so a
/// process that was killed does not count.
///
/// A segment without a name, which is anonymous or lies in memory of the caller, has no lifetime.
/// It ends with its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Lifetime {
    /// The last process that leaves removes the segment.
    ///
    /// A child that `fork` has created counts as a user of the segment until it executes another
    /// program. If a process leaves while there is such a child, it waits for the child for up to
    /// 100 milliseconds. If that is too short, the name stays, as after a kill.
    ///
    /// If the last process is killed, the name stays at first. Then an open finds no such segment,
    /// a create replaces it, and [`reap`](crate::reap) removes it.
    #[default]
    UntilLast,
    /// The segment and its value stay until its file is deleted or the machine is restarted.
    Persistent,
}

/// The header as it lies in memory. It has integers only and no padding, so any bytes are a header.
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

/// The properties of a new segment.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) fingerprint: u64,
    pub(crate) description: String,
    pub(crate) value_size: usize,
    pub(crate) value_align: usize,
    /// The number of elements, if it is chosen at run time.
    pub(crate) len: usize,
    /// The number of process slots. It is 0 if the type needs no peers. Then `threads` is 0 as
    /// well.
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    /// `None` for a segment without a name.
    pub(crate) lifetime: Option<Lifetime>,
}

/// The offsets of the parts of a segment, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The length of the segment.
    pub(crate) total: usize,
    pub(crate) control: usize,
    /// The offset and the length.
    pub(crate) description: (usize, usize),
    /// The offset of the peer table: process slots and then thread slots.
    pub(crate) peers: usize,
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    pub(crate) value: usize,
    /// The number of elements of the value, if it was chosen at run time.
    pub(crate) len: usize,
}

/// What this program expects to find in a segment. The functions are called only if needed.
pub(crate) struct Expected<'a> {
    pub(crate) fingerprint: u64,
    pub(crate) description: &'a dyn Fn() -> String,
    /// Returns the size of the value with this number of elements, or `None` if there cannot be so
    /// many.
    pub(crate) value_size: &'a dyn Fn(usize) -> Option<usize>,
    pub(crate) value_align: usize,
    pub(crate) needs_peers: bool,
}

impl Spec {
    /// Returns the offsets of the parts, or `None` if there can be no such segment.
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

    /// Returns the alignment of the segment.
    pub(crate) fn align(&self) -> usize {
        self.value_align.max(LINE)
    }

    fn stored_description(&self) -> &[u8] {
        let bytes = self.description.as_bytes();
        &bytes[..bytes.len().min(MAX_DESCRIPTION)]
    }
}

/// The numbers from which a geometry is computed, both for a new segment and for one that is
/// opened.
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
        // This cannot overflow, because each term is bounded.
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

/// Writes the header and the description. The segment is not [published](publish) yet.
///
/// # Errors
/// If the boot id of the machine or the PID namespace cannot be read.
///
/// # Safety
/// - `geometry` is `spec.geometry()`, and its `total` bytes at `base` can be written.
/// - These bytes are zero and aligned to 64, and nothing else uses them yet.
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

/// Declares the segment ready. All earlier writes are visible to a process that opens it.
///
/// # Safety
/// [`write`] has succeeded at `base`.
pub(crate) unsafe fn publish(base: *mut u8) {
    // SAFETY: inside the header.
    let state = unsafe { base.add(STATE_AT) };
    // SAFETY: aligned to 4, because `base` is aligned to 64. From here on, all accesses are atomic.
    let state = unsafe { AtomicU32::from_ptr(state.cast()) };
    state.store(READY, Ordering::Release);
}

/// Checks whether this program can use the segment at `base`. Returns the geometry and the
/// lifetime.
///
/// If `exact` is set, the memory must be as long as the segment. Otherwise it may be longer.
///
/// # Errors
/// Returns the first error that applies, in this order, which tells the user most:
/// [`OpenError::Unfit`] (not aligned), `NotOurs`, `Newer`, `Backend`, `OtherBoot`,
/// `OtherPidNamespace`, `Corrupt` (not ready), `WrongSize`, `OtherType`, `Corrupt` (numbers that do
/// not agree), `Unfit` (not aligned for this type).
///
/// # Safety
/// `available` bytes at `base` can be read during the call. They may hold any values, which may
/// change during the call.
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

/// Returns the lifetime that the first bytes of a segment state, in any version of the header.
/// Returns `None` if they are not the header of a named segment.
pub(crate) fn lifetime_of(bytes: [u8; HEADER]) -> Option<Lifetime> {
    // SAFETY: the array has the size of a header, and any bytes are a header.
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
        // SAFETY: aligned and readable, by the caller's promise. After publication all accesses by
        // peers are atomic, and here are only loads.
        let word = unsafe { AtomicU32::from_ptr(word.cast_mut().cast()) };
        word.load(order)
    };
    // Loaded first, and with Acquire: the other words are then no older than the publication.
    let state = word(STATE_AT, Ordering::Acquire);
    let mut words = [0; HEADER / 4];
    for (i, copy) in words.iter_mut().enumerate() {
        *copy = word(4 * i, Ordering::Relaxed);
    }
    words[STATE_AT / 4] = state;
    // SAFETY: the array has the size of a header, and any bytes are a header.
    unsafe { mem::transmute::<[u32; HEADER / 4], Header>(words) }
}

/// Returns the description in the segment as text that is safe to print.
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
    // This version of the header is known, so the text starts where this version puts it.
    if at != DESCRIPTION_AT || len > MAX_DESCRIPTION || len > available.saturating_sub(at) {
        return Err(OpenError::Corrupt);
    }
    let bytes: Vec<u8> = (at..at + len)
        .map(|at| {
            // SAFETY: below `available`, as just checked.
            let byte = unsafe { base.add(at) };
            // SAFETY: readable. After publication, only a peer that breaks the protocol writes
            // here.
            let byte = unsafe { AtomicU8::from_ptr(byte.cast_mut()) };
            byte.load(Ordering::Relaxed)
        })
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    // Error messages show the text on terminals, which interpret control characters.
    let printable =
        |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    Ok(text.chars().map(printable).collect())
}

impl Header {
    /// Checks that a compatible program created the segment, since the last boot of this machine.
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

    /// Computes the geometry from the numbers of the header and the expected type. Returns it if
    /// the header states the same.
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

/// Returns the lines that only one of the texts has, in order. Those of `theirs` begin with `-`,
/// those of `ours` with `+`.
fn difference(theirs: &str, ours: &str) -> String {
    /// If there are more pairs of lines, the texts are listed and not compared. No type is so
    /// large.
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
        // common[i * width + j]: the number of lines that theirs[i..] and ours[j..] have in common,
        // in the same order.
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
