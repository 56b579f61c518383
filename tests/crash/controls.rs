//! Negative controls: broken variants and variants of others, which the sweeps must catch. If one
//! of them passed, the sweeps would prove nothing.
use crate::heir::Heir;
use crate::stepper::{futex_wait, shared_page};
use crate::sweep::Sweep;
use std::cell::UnsafeCell;
use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

fn memory<W>(world: &&'static W) -> Vec<u8> {
    let at = std::ptr::from_ref::<W>(world).cast();
    // SAFETY: as many bytes as the world has. All processes that write them are stopped.
    unsafe { std::slice::from_raw_parts(at, size_of::<W>()) }.to_vec()
}

// ------------------------------------------------------------ a plain lock

/// A futex lock that is not released when its owner dies.
#[derive(Debug)]
struct PlainLock {
    word: AtomicU32,
}

impl PlainLock {
    fn lock(&self) {
        while self.word.swap(1, Acquire) != 0 {
            std::hint::spin_loop();
        }
    }
    fn unlock(&self) {
        self.word.store(0, Release);
    }
}

#[test]
fn a_plain_lock_is_caught() {
    Sweep::new(
        "control: plain lock",
        &shared_page::<PlainLock>,
        memory,
        |lock| {
            Box::new(|| {
                lock.lock();
                lock.unlock();
            })
        },
        |lock| if lock.word.load(Relaxed) == 0 { Ok(()) } else { Err("locked for ever".into()) },
    )
    .must_be_caught();
}

// --------------------------------------------------- an anonymous claim

/// Vyukov's bounded queue: the claim moves `tail`, and does not say whose it is.
struct AnonymousQueue {
    tail: AtomicU64,
    head: AtomicU64,
    stamps: [AtomicU64; 4],
    values: [AtomicU64; 4],
}

impl fmt::Debug for AnonymousQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tail {:?} head {:?} stamps {:?}", self.tail, self.head, self.stamps)
    }
}

impl AnonymousQueue {
    fn new() -> &'static Self {
        let queue = shared_page::<Self>();
        (0..4).zip(&queue.stamps).for_each(|(i, stamp)| stamp.store(i, Relaxed));
        queue
    }

    fn push(&self, value: u64) -> bool {
        let mut at = self.tail.load(Relaxed);
        loop {
            let i = (at % 4) as usize;
            let stamp = self.stamps[i].load(Acquire);
            if stamp == at {
                match self.tail.compare_exchange(at, at + 1, Relaxed, Relaxed) {
                    Ok(_) => {
                        self.values[i].store(value, Relaxed);
                        self.stamps[i].store(at + 1, Release);
                        return true;
                    }
                    Err(now) => at = now,
                }
            } else if stamp < at {
                return false;
            } else {
                at = self.tail.load(Relaxed);
            }
        }
    }

    fn pop(&self) -> Option<u64> {
        let mut at = self.head.load(Relaxed);
        loop {
            let i = (at % 4) as usize;
            let stamp = self.stamps[i].load(Acquire);
            if stamp == at + 1 {
                match self.head.compare_exchange(at, at + 1, Relaxed, Relaxed) {
                    Ok(_) => {
                        let value = self.values[i].load(Relaxed);
                        self.stamps[i].store(at + 4, Release);
                        return Some(value);
                    }
                    Err(now) => at = now,
                }
            } else if stamp < at + 1 {
                return None;
            } else {
                at = self.head.load(Relaxed);
            }
        }
    }
}

#[test]
fn an_anonymous_claim_is_caught() {
    Sweep::new(
        "control: anonymous claim",
        &AnonymousQueue::new,
        memory,
        |queue| Box::new(|| assert!(queue.push(9))),
        |queue| {
            while queue.pop().is_some() {}
            if (0..4).all(|i| queue.push(i)) && (0..4).all(|i| queue.pop() == Some(i)) {
                Ok(())
            } else {
                Err("the queue is wedged".into())
            }
        },
    )
    .must_be_caught();
}

// ------------------------------------------- store 0, wake 1, in the robust list

const WAITERS: u32 = 1 << 31;
const OWNER: u32 = (1 << 30) - 1;

/// A robust lock like ours, but with the classic release: it clears `WAITERS` and wakes one.
#[repr(C)]
struct ClassicLock {
    word: AtomicU32,
    padding: [u32; 5],
    prev: AtomicUsize,
    next: AtomicUsize,
}

impl fmt::Debug for ClassicLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} {:?}", self.word.load(Relaxed), self.padding.len())
    }
}

/// The pending field of this thread's robust list head.
fn pending() -> &'static AtomicUsize {
    let mut head: *const AtomicUsize = std::ptr::null();
    let mut len = 0_usize;
    // SAFETY: the kernel writes a pointer and a length that live here.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    assert_eq!((r, len), (0, 24));
    // SAFETY: the head has three words.
    let pending = unsafe { head.add(2) };
    // SAFETY: it lives as long as this thread.
    unsafe { &*pending }
}

fn tid() -> u32 {
    // SAFETY: takes no argument.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).unwrap_or(0)
}

impl ClassicLock {
    fn lock(&self) {
        pending().store(self.next.as_ptr().expose_provenance(), SeqCst);
        let mut slept = 0;
        loop {
            let seen = self.word.load(Relaxed);
            if seen & OWNER == 0 {
                let mine = tid() | (seen & WAITERS) | slept;
                if self.word.compare_exchange(seen, mine, Acquire, Relaxed).is_ok() {
                    return;
                }
            } else if seen & WAITERS != 0
                || self.word.compare_exchange(seen, seen | WAITERS, Relaxed, Relaxed).is_ok()
            {
                slept = WAITERS;
                futex_wait(&self.word, seen | WAITERS);
            }
        }
    }

    fn unlock(&self) {
        if self.word.compare_exchange(tid(), 0, Release, Relaxed).is_err() {
            // FUTEX_WAKE_OP stores 0 and wakes one, which no kill can split. The fault is
            // elsewhere.
            let word = self.word.as_ptr();
            // SAFETY: a live word. No thread sleeps on a second one.
            unsafe {
                libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE_OP, 1, 0_usize, word, 0xfff)
            };
        }
        pending().store(0, SeqCst);
    }
}

#[test]
fn store_zero_and_wake_one_is_caught() {
    Heir {
        name: "control: store 0, wake 1; heir killed while a barger holds",
        world: &shared_page::<ClassicLock>,
        memory,
        prepare: |_| {},
        lock: |lock| {
            lock.lock();
            Box::new(|| lock.unlock())
        },
        barger: true,
    }
    .must_be_caught();
}

// ---------------------------------------------------- the C library's robust mutex

struct Pthread(UnsafeCell<libc::pthread_mutex_t>);
// SAFETY: a process-shared mutex may be used by any thread of any process.
unsafe impl Sync for Pthread {}

impl fmt::Debug for Pthread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the first word of the C library's mutex is the lock word.
        let word = unsafe { &*self.0.get().cast::<AtomicU32>() };
        write!(f, "{:#010x}", word.load(Relaxed))
    }
}

impl Pthread {
    fn new() -> &'static Self {
        let lock = shared_page::<Self>();
        let mut attributes = std::mem::MaybeUninit::uninit();
        // SAFETY: initialises the attributes.
        unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
        // SAFETY: initialised right before.
        unsafe {
            libc::pthread_mutexattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            )
        };
        // SAFETY: as above.
        unsafe {
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST)
        };
        // SAFETY: new memory, which no thread uses yet.
        unsafe { libc::pthread_mutex_init(lock.0.get(), attributes.as_ptr()) };
        lock
    }

    fn lock(&self) {
        // SAFETY: initialised in `new`.
        if unsafe { libc::pthread_mutex_lock(self.0.get()) } == libc::EOWNERDEAD {
            // SAFETY: this thread has just taken it.
            unsafe { libc::pthread_mutex_consistent(self.0.get()) };
        }
    }

    fn unlock(&self) {
        // SAFETY: this thread holds it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

#[test]
fn the_c_librarys_robust_mutex_is_caught() {
    Heir {
        name: "control: glibc's robust mutex; heir killed while a barger holds",
        world: &Pthread::new,
        memory,
        prepare: |_| {},
        lock: |lock| {
            lock.lock();
            Box::new(|| lock.unlock())
        },
        barger: true,
    }
    .must_be_caught();
}

/// The harness itself: not early.
#[test]
fn a_sleeping_process_is_told_from_a_running_one() {
    let word = shared_page::<AtomicU32>();
    let mut child = crate::stepper::fork(|| {
        while word.load(Acquire) == 0 {
            futex_wait(word, 0);
        }
        0
    });
    child.wait_asleep();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(20) {
        assert!(child.is_asleep());
    }
    word.store(1, Release);
    // SAFETY: a live word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
    assert_eq!(child.end(), Some(crate::stepper::End::Exited(0)));
}
