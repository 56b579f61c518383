//! Named points in the source, at which tests can stop, kill, hold or delay a process.
//!
//! This module is built only with `--cfg outlast_hooks`. Other builds have `no_hooks.rs` instead.
//! The plan lies in atomics. So a forked child inherits it, and no lock can stay held across a
//! fork.
//!
//! In this build the second looks are off until a test switches them on, so that they hide no lost
//! wake. These are the bounded sleep before a long one, the check of a sentinel once a second, and
//! the heartbeat of a pipe.
#![expect(unsafe_code, reason = "a system call")]
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

/// What a process does at a named point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The process stops, as by `SIGSTOP`, until it is continued.
    Stop,
    /// The process is killed, as by `SIGKILL`.
    Kill,
    /// The calling thread waits there until the plan no longer names the point.
    Hold,
    /// The calling thread sleeps for this number of microseconds.
    Nap(u32),
}

/// One point of the plan.
#[derive(Debug)]
struct Entry {
    /// The hash of the point's name, or 0 for a free entry.
    point: AtomicU64,
    /// An [`Action`] as a number.
    action: AtomicU64,
    /// The number of visits that pass before the action.
    passes: AtomicU32,
    /// The number of visits so far.
    visits: AtomicU32,
}

const ENTRIES: usize = 16;
static PLAN: [Entry; ENTRIES] = [const {
    Entry {
        point: AtomicU64::new(0),
        action: AtomicU64::new(0),
        passes: AtomicU32::new(0),
        visits: AtomicU32::new(0),
    }
}; ENTRIES];
static SECOND_LOOKS: AtomicBool = AtomicBool::new(false);
/// The longest sleep of a sentinel, in microseconds. 0 means that no test has set it.
static SENTINEL_LOOK: AtomicU32 = AtomicU32::new(0);
/// A thread naps at one visit in this number, at any point. 0 switches naps off.
static ONE_IN: AtomicU32 = AtomicU32::new(0);
/// The longest nap, in microseconds.
static NAP: AtomicU32 = AtomicU32::new(0);

/// Makes this process, and children that it forks later, do `action` at every visit of `point`.
///
/// # Panics
/// If the plan names too many points.
pub fn plan(point: &str, action: Action) {
    plan_after(point, 0, action);
}

/// Like [`plan`], but the first `passes` visits do nothing.
///
/// # Panics
/// If the plan names too many points.
pub fn plan_after(point: &str, passes: u32, action: Action) {
    let name = hash(point);
    let taken = |entry: &&Entry| entry.point.load(Relaxed) == name;
    let free = |entry: &&Entry| entry.point.load(Relaxed) == 0;
    let entry = PLAN.iter().find(taken).or_else(|| PLAN.iter().find(free));
    let entry = entry.expect("the plan has room for sixteen points");
    entry.action.store(encode(action), Relaxed);
    entry.passes.store(passes, Relaxed);
    entry.visits.store(0, Relaxed);
    entry.point.store(name, Release);
}

/// Removes every point from the plan. Threads that are held continue.
pub fn clear() {
    PLAN.iter().for_each(|entry| entry.point.store(0, Release));
    ONE_IN.store(0, Relaxed);
}

/// Returns how often this process has visited `point` since the point was planned.
#[must_use]
pub fn visits(point: &str) -> u32 {
    entry(hash(point)).map_or(0, |entry| entry.visits.load(Relaxed))
}

/// Makes threads of this process, and of children that it forks later, sleep for up to `most`
/// microseconds at one visit in `one_in` of any point.
pub fn nap_at_random(one_in: u32, most: u32) {
    NAP.store(most, Relaxed);
    ONE_IN.store(one_in, Relaxed);
}

/// Makes sentinels of this process, and of children that it forks later, look after at most
/// `length` whether owners exist. Other second looks stay as they are.
///
/// Only that look ends a stand-in, so without this a test of such a death takes a second.
pub fn set_sentinel_look(length: Duration) {
    let microseconds = u32::try_from(length.as_micros()).unwrap_or(u32::MAX);
    SENTINEL_LOOK.store(microseconds, Relaxed);
}

/// Switches the second looks of this process, and of children that it forks later, on or off.
pub fn set_second_looks(on: bool) {
    SECOND_LOOKS.store(on, Relaxed);
}

/// A point at which tests can stop, kill or delay this process.
pub(crate) fn pause(point: &'static str) {
    if let Some(entry) = entry(hash(point)) {
        let visit = entry.visits.fetch_add(1, Relaxed);
        if visit >= entry.passes.load(Relaxed) {
            act(decode(entry.action.load(Relaxed)), point);
        }
    }
    let one_in = ONE_IN.load(Relaxed);
    if one_in > 0 && random().is_multiple_of(u64::from(one_in)) {
        let most = u64::from(NAP.load(Relaxed)).max(1);
        std::thread::sleep(Duration::from_micros(random() % most));
    }
}

/// Returns the length of the sleep before a second look. Without second looks, it is an hour.
pub(crate) fn second_look(length: Duration) -> Duration {
    if SECOND_LOOKS.load(Relaxed) { length } else { Duration::from_secs(3_600) }
}

/// The length of a sentinel's second look: that of the others, unless a test has set it.
pub(crate) fn sentinel_look(length: Duration) -> Duration {
    match SENTINEL_LOOK.load(Relaxed) {
        0 => second_look(length),
        microseconds => Duration::from_micros(microseconds.into()),
    }
}

fn entry(name: u64) -> Option<&'static Entry> {
    PLAN.iter().find(|entry| entry.point.load(Acquire) == name)
}

fn act(action: Action, point: &'static str) {
    match action {
        Action::Stop => signal_this_process(libc::SIGSTOP),
        Action::Kill => signal_this_process(libc::SIGKILL),
        Action::Nap(microseconds) => {
            std::thread::sleep(Duration::from_micros(microseconds.into()));
        }
        Action::Hold => {
            while entry(hash(point)).is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Sends the signal, which concerns the whole process, to the calling thread. So it takes effect
/// before this function returns.
fn signal_this_process(signal: i32) {
    let (pid, tid) = (std::process::id(), super::thread::id());
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
}

fn encode(action: Action) -> u64 {
    match action {
        Action::Stop => 0,
        Action::Kill => 1,
        Action::Hold => 2,
        Action::Nap(microseconds) => u64::from(microseconds) << 8 | 3,
    }
}

fn decode(action: u64) -> Action {
    match action & 0xff {
        0 => Action::Stop,
        1 => Action::Kill,
        2 => Action::Hold,
        _ => Action::Nap(u32::try_from(action >> 8).unwrap_or(u32::MAX)),
    }
}

/// FNV-1a; never 0.
fn hash(point: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    point.bytes().fold(0xcbf2_9ce4_8422_2325, mix).max(1)
}

/// Returns a number that differs from call to call and from process to process.
fn random() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
    let mixed = (call ^ u64::from(super::thread::id()) << 32).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 31).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}
