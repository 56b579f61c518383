//! The cost of a death for a survivor: the time from `SIGKILL` until the survivor carries on.
//!
//! The survivor sleeps already. The victim holds what the survivor waits for, or has used up its
//! wake. Time is taken right before the kill, and when the survivor's call has returned. So the
//! kernel's work for a dying process is included.
//!
//! The least time of a few kills must be far below the time after which a survivor would look
//! without a report of the death.
#![expect(
    unsafe_code,
    reason = "kill, clock_gettime, and a sleep on a word without the crate under test"
)]
mod support;

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::spsc::{self, FixedRing};
use outlast::{
    Barrier, BarrierError, BrokenCause, Channel, Condition, Event, FixedQueue, Latch, LatchError,
    Lock, LockError, OnceCell, OwnedSemaphore, RecvError, ReentrantLock, RwLock, Semaphore,
    Shareable, Shared, Spin, TimeoutError,
};
use std::time::{Duration, Instant};
use support::{Bench, duration, group, say, spread};

/// Kills of each kind, and when it is only to be seen that they work.
const KILLS: usize = 101;
const FEW_KILLS: usize = 5;
/// Where the kernel tells of a death, a survivor goes on before that, or was not told.
const TOLD: Duration = Duration::from_millis(40);
/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

outlast::shared! {
    /// What the processes of one kill tell each other.
    struct Notes { ready: AtomicU32, resumed: AtomicU64, woken: AtomicU32 }
}

outlast::shared! {
    struct Guarded { lock: Lock<u64>, changed: Condition }
}

/// The time by a clock that all processes share.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the live variable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let [seconds, rest] = [time.tv_sec, time.tv_nsec].map(|n| u64::try_from(n).unwrap_or(0));
    seconds * 1_000_000_000 + rest
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Whether the first thread of a process sleeps on a word of `value`, or for a time: not in a call
/// that it makes on the way there, in which a busy machine may have stopped it.
fn sleeps<T>(pid: libc::pid_t, value: &T) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = call.split(' ');
    let number = words.next().and_then(|number| number.parse().ok());
    let first = words.next().and_then(|word| word.strip_prefix("0x"));
    let address = first.and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let start = core::ptr::from_ref(value).addr();
    let within = |address: usize| (start..start + size_of::<T>()).contains(&address);
    match number {
        Some(libc::SYS_futex) => address.is_some_and(within),
        // The kernel's `struct futex_waitv`: a value of 8 bytes, then the word's address.
        Some(libc::SYS_futex_waitv) => address.and_then(|at| peek(pid, at + 8)).is_some_and(within),
        number => matches!(number, Some(libc::SYS_nanosleep | libc::SYS_clock_nanosleep)),
    }
}

/// A word of another process's memory.
fn peek(pid: libc::pid_t, address: usize) -> Option<usize> {
    let mut word = 0_usize;
    let here = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<usize>() };
    let base = core::ptr::with_exposed_provenance_mut(address);
    let there = libc::iovec { iov_base: base, iov_len: size_of::<usize>() };
    // SAFETY: copies one word into `word`.
    let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
    usize::try_from(read).ok().filter(|&read| read == size_of::<usize>()).map(|_| word)
}

/// Waits until it does so for a while. (The child of a fork has the value at the same address.)
fn until_asleep<T>(pid: libc::pid_t, value: &T) {
    eventually("a process sleeps", || {
        sleeps(pid, value) && {
            std::thread::sleep(Duration::from_micros(300));
            sleeps(pid, value)
        }
    });
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(PATIENCE);
    }
}

impl Notes {
    /// The victim holds what it is to die with.
    fn ready(&self) {
        self.ready.store(1, SeqCst);
    }

    fn hold<R>(&self, _held: R) -> ! {
        self.ready();
        sleep_for_ever()
    }

    /// The survivor goes on.
    fn resumed(&self) {
        self.resumed.store(now(), SeqCst);
    }

    /// Sleeps on the first word of a value, as a waiter does, and swallows the wake that comes.
    fn swallow_a_wake<T>(&self, of: &T) -> ! {
        let word = core::ptr::from_ref(of).cast::<AtomicU32>();
        // SAFETY: the values that this is used with begin with an atomic word.
        let value = unsafe { &*word }.load(SeqCst);
        self.ready();
        let forever = core::ptr::null::<libc::timespec>();
        // SAFETY: reads the word, which is mapped.
        let woken =
            unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, value, forever) };
        assert_eq!(woken, 0, "a wake");
        self.woken.store(1, SeqCst);
        sleep_for_ever()
    }

    fn until_swallowed(&self) {
        eventually("the wake is swallowed", || self.woken.load(SeqCst) == 1);
    }
}

/// One kind of death.
struct Scene<T> {
    name: &'static str,
    make: fn() -> T,
    /// Ends in a call or a sleep that only a kill ends.
    victim: fn(&T, &Notes),
    survivor: fn(&T, &Notes),
    /// When both sleep.
    then: fn(&T, &Notes),
}

impl<T: Shareable + Sync + 'static> Scene<T> {
    fn run(&self, bench: &Bench) {
        if !bench.wants(self.name) {
            return;
        }
        let kills = if bench.is_smoke() { FEW_KILLS } else { KILLS };
        let mut times: Vec<f64> = (0..kills).map(|_| self.kill()).collect();
        let (median, least, most) = spread(&mut times);
        if cfg!(not(outlast_pthread)) {
            assert!(
                least < TOLD.as_secs_f64() * 1e9,
                "{}: the death was not reported: {times:?}",
                self.name
            );
        }
        let late = times[times.len() * 9 / 10];
        let [median, least, late, most] = [median, least, late, most].map(duration);
        let name = self.name;
        say(&format!("  {name:48} {median:>8}  [{least}..{most}], 9 of 10 in {late} ({kills})\n"));
    }

    /// From one kill to the survivor, in nanoseconds.
    fn kill(&self) -> f64 {
        let value = Shared::anonymous((self.make)()).expect("memory");
        let notes: &'static Notes = group::plain_shared();
        let victim = group::fork(|| {
            Spin::Never.set();
            (self.victim)(&value, notes);
        });
        eventually("the victim is ready", || notes.ready.load(SeqCst) == 1);
        until_asleep(victim, &*value);
        let survivor = group::fork(|| {
            Spin::Never.set();
            (self.survivor)(&value, notes);
        });
        until_asleep(survivor, &*value);
        (self.then)(&value, notes);
        assert_eq!(notes.resumed.load(SeqCst), 0, "{}: the survivor did not wait", self.name);
        let start = now();
        // SAFETY: takes no pointers; a child of ours that has not been waited for.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        assert!(group::wait(survivor), "{}: the survivor failed", self.name);
        assert!(!group::wait(victim), "{}: the victim ended by itself", self.name);
        let time = notes.resumed.load(SeqCst) - start;
        // SAFETY: made by `plain_shared`, and no longer used by any process.
        unsafe { libc::munmap(core::ptr::from_ref(notes).cast_mut().cast(), size_of::<Notes>()) };
        time as f64
    }
}

fn nothing<T>(_value: &T, _notes: &Notes) {}

fn locks(bench: &Bench) {
    Scene {
        name: "Lock, holder",
        make: || Lock::new(0_u64),
        victim: |lock, notes| notes.hold(lock.lock().expect("free")),
        survivor: |lock, notes| {
            let taken = lock.lock();
            notes.resumed();
            assert!(matches!(taken, Err(LockError::OwnerDied(_))));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "ReentrantLock, holder of two levels",
        make: || ReentrantLock::new(0_u64),
        victim: |lock, notes| notes.hold((lock.lock().expect("free"), lock.lock().expect("mine"))),
        survivor: |lock, notes| {
            let taken = lock.lock();
            notes.resumed();
            assert!(matches!(taken, Err(LockError::OwnerDied(_))));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "RwLock, reader (a writer waits)",
        make: || RwLock::new(0_u64),
        victim: |lock, notes| notes.hold(lock.read().expect("free")),
        survivor: |lock, notes| {
            let taken = lock.write();
            notes.resumed();
            assert!(taken.is_ok());
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "RwLock, writer (a reader waits)",
        make: || RwLock::new(0_u64),
        victim: |lock, notes| notes.hold(lock.write().expect("free")),
        survivor: |lock, notes| {
            let taken = lock.read();
            notes.resumed();
            assert!(matches!(taken, Err(LockError::OwnerDied(_))));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "OnceCell, initialiser (another takes its turn)",
        make: OnceCell::new,
        victim: |cell, notes| {
            cell.get_or_init(|| notes.hold(())).expect("never");
        },
        survivor: |cell, notes| {
            let value = cell.get_or_init(|| {
                notes.resumed();
                7_u64
            });
            assert_eq!(value, Ok(&7));
        },
        then: nothing,
    }
    .run(bench);
}

fn conditions(bench: &Bench) {
    let make = || Guarded { lock: Lock::new(0), changed: Condition::new() };
    Scene {
        name: "Condition, waiter (another waits)",
        make,
        victim: |all: &Guarded, notes| {
            let guard = all.lock.lock().expect("free");
            notes.ready();
            drop(all.changed.wait(guard));
            unreachable!("there is no notification");
        },
        survivor: |all, notes| {
            let guard = all.changed.wait(all.lock.lock().expect("free"));
            notes.resumed();
            drop(guard.expect("the lock was free"));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Condition, holder of its lock (another waits)",
        make,
        // It waits until the survivor has released the lock. (A condition notices the death of a
        // process that has used it.)
        victim: |all: &Guarded, notes| {
            let guard = all.lock.lock().expect("free");
            drop(all.changed.wait_timeout(guard, Duration::ZERO));
            notes.ready();
            while notes.woken.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
            let guard = all.lock.lock().expect("free");
            notes.woken.store(2, SeqCst);
            core::mem::forget(guard);
            sleep_for_ever()
        },
        survivor: |all, notes| {
            let guard = all.changed.wait(all.lock.lock().expect("free"));
            notes.resumed();
            assert!(matches!(guard, Err(LockError::OwnerDied(_))));
        },
        then: |_, notes| {
            notes.woken.store(1, SeqCst);
            eventually("the victim has the lock", || notes.woken.load(SeqCst) == 2);
        },
    }
    .run(bench);
}

fn groups(bench: &Bench) {
    Scene {
        name: "OwnedSemaphore, holder",
        make: || OwnedSemaphore::new(1),
        victim: |semaphore, notes| notes.hold(semaphore.acquire().expect("a peer")),
        survivor: |semaphore, notes| {
            let permit = semaphore.acquire();
            notes.resumed();
            drop(permit.expect("a peer"));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Barrier, party that waits",
        make: || Barrier::new(3),
        victim: |barrier, notes| {
            notes.ready();
            unreachable!("{:?}", barrier.wait());
        },
        survivor: |barrier, notes| {
            let waited = barrier.wait();
            notes.resumed();
            assert!(matches!(waited, Err(BarrierError::Broken(BrokenCause::PeerDied { .. }))));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Barrier that shrinks, party that is elsewhere",
        make: || Barrier::shrinking(2),
        // It does not wait, but is a party from then on.
        victim: |barrier, notes| {
            assert!(barrier.wait_timeout(Duration::from_micros(50)).is_err());
            barrier.reset();
            notes.hold(());
        },
        survivor: |barrier, notes| {
            let waited = barrier.wait();
            notes.resumed();
            assert!(waited.expect("it shrinks").is_leader());
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Latch, member",
        make: || Latch::new(0),
        victim: |latch, notes| notes.hold(latch.join(1).expect("closed")),
        survivor: |latch, notes| {
            let waited = latch.wait();
            notes.resumed();
            assert!(matches!(waited, Err(LatchError::MemberDied { .. })));
        },
        then: nothing,
    }
    .run(bench);
}

fn messages(bench: &Bench) {
    Scene {
        name: "Queue, delivery (another receiver waits)",
        make: FixedQueue::<u64, 4>::new,
        victim: |queue, notes| {
            queue.send(7).expect("room");
            notes.hold(queue.recv_ack().expect("a message"));
        },
        survivor: |queue, notes| {
            let again = queue.recv_ack();
            notes.resumed();
            assert_eq!(again.expect("it comes back").attempts(), 1);
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Ring, producer (its consumer waits)",
        make: FixedRing::<u64, 4>::new,
        victim: |ring, notes| notes.hold(ring.producer().expect("vacant")),
        survivor: |ring, notes| {
            let consumer = ring.consumer().expect("vacant");
            let received = consumer.recv();
            notes.resumed();
            assert_eq!(received, Err(spsc::RecvError::PeerDied));
        },
        then: nothing,
    }
    .run(bench);
    Scene {
        name: "Channel, last sender (a receiver waits)",
        make: || Channel::new(FixedQueue::<u64, 4>::new()),
        victim: |channel, notes| notes.hold(channel.sender().expect("a place")),
        survivor: |channel, notes| {
            let received = channel.receiver().expect("a place").recv();
            notes.resumed();
            assert_eq!(received, Err(RecvError::Disconnected));
        },
        then: nothing,
    }
    .run(bench);
}

/// Waiters that die with a wake that was meant for one of two.
fn swallowed_wakes(bench: &Bench) {
    Scene {
        name: "Semaphore, waiter that was woken (another waits)",
        make: || Semaphore::new(0),
        victim: |semaphore, notes| {
            // It has used the object: a thread may be asleep.
            let late = semaphore.acquire_timeout(Duration::from_micros(50)).expect_err("no permit");
            assert_eq!(late, TimeoutError::TimedOut);
            notes.swallow_a_wake(semaphore);
        },
        survivor: |semaphore, notes| {
            let permit = semaphore.acquire();
            notes.resumed();
            permit.expect("a peer").forget();
        },
        then: |semaphore, notes| {
            semaphore.release(1).expect("room");
            notes.until_swallowed();
        },
    }
    .run(bench);
    Scene {
        name: "Event, waiter that was woken (another waits)",
        make: || Event::auto(false),
        victim: |event, notes| {
            assert!(!event.wait_timeout(Duration::from_micros(50)).expect("a peer"));
            notes.swallow_a_wake(event);
        },
        survivor: |event, notes| {
            let waited = event.wait();
            notes.resumed();
            waited.expect("a peer");
        },
        then: |event, notes| {
            event.set();
            notes.until_swallowed();
        },
    }
    .run(bench);
}

fn main() {
    let bench = Bench::from_args();
    say("\nfrom SIGKILL to the survivor that goes on\n");
    locks(&bench);
    conditions(&bench);
    groups(&bench);
    messages(&bench);
    // With the other backend waiters do not sleep on the first word of the value.
    if cfg!(not(outlast_pthread)) {
        swallowed_wakes(&bench);
    }
}
