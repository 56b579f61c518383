//! `Shared`: how segments are created, handed on, refused, kept and left.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "descriptors over sockets, other users, memory of the caller's")]
mod common;

use common::{
    Random, Stage, eventually, exit_now, fork_child, in_own_process, ms, my_part, part_is_done,
    sleep_for_ever, start_again, watch, watch_alone,
};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::log::Journal;
use outlast::spsc::Ring;
use outlast::{
    ByteQueue, Channel, CommandExt, Event, Fault, FixedQueue, Lifetime, Lock, LockError, OnceCell,
    OpenError, Options, Pipe, Queue, ReentrantLock, RwLock, Shareable, Shared, TryRecvError,
};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Office { inbox: FixedQueue<u64, 8>, open: Event, till: Lock<u64>, step: AtomicU32 }
}

impl Office {
    fn new() -> Self {
        Office {
            inbox: FixedQueue::new(),
            open: Event::manual(false),
            till: Lock::new(0),
            step: AtomicU32::new(0),
        }
    }

    /// Uses everything, alone, as a process that knows nothing but the value.
    fn work(&self) {
        let mut till = self.till.lock().unwrap();
        *till += 1;
        self.inbox.send(7).unwrap();
        assert_eq!(self.inbox.recv_ack().unwrap().ack(), Ok(7));
        self.open.set();
        self.open.wait().unwrap();
        self.open.reset();
        assert!(!self.open.wait_timeout(Duration::ZERO).unwrap());
        *till += 1;
    }
}

fn office() -> Shared<Office> {
    Shared::anonymous(Office::new()).unwrap()
}

/// A name that no other test, and no other process, has; gone at the end.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Name(format!("test {test} {}", std::process::id()))
    }
    fn path(&self) -> PathBuf {
        directory().join(&self.0)
    }
    fn exists(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        outlast::remove(&self.0).unwrap_or_default();
    }
}

fn directory() -> PathBuf {
    PathBuf::from(format!("/dev/shm/outlast-{}", effective_uid()))
}

fn effective_uid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() }
}

// -------------------------------------------------------------------------------------- births

#[test]
fn anonymous() {
    let shared = office();
    let _watchdog = watch("anonymous", &shared);
    shared.work();
    let clone = shared.clone();
    let other = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
    drop(shared);
    clone.work();
    drop(clone);
    other.work();
    assert_eq!(*other.till.lock().unwrap(), 6);
    assert!(other.fd().is_some());
    // It is sealed: no process can shorten it while it is mapped.
    let file = File::from(other.try_clone_fd().unwrap());
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(1 << 30).is_err());
    assert!(file.metadata().unwrap().len().is_multiple_of(4096));
}

#[test]
fn in_place() {
    in_own_process("in_place", || {
        outlast::shared! {
            struct Large { queue: FixedQueue<[u64; 512], 512>, count: Lock<u64>, first: AtomicU64 }
        }
        let _watchdog = watch_alone("in_place");
        let init = |large: &Large| large.first.store(5, SeqCst);
        let anonymous = Options::new().anonymous_with(init).unwrap();
        let name = Name::new("in_place");
        let named = Options::new().create_with(&name.0, init).unwrap();
        let opened = Shared::<Large>::open(&name.0).unwrap();
        for large in [&anonymous, &named, &opened] {
            assert_eq!(large.first.load(SeqCst), 5);
            let mut loan = large.queue.loan().unwrap();
            loan[511] = 6;
            loan.send().unwrap();
            assert_eq!(large.queue.recv_ref().unwrap()[511], 6);
            *large.count.lock().unwrap() += 1;
        }
        assert_eq!(*named.count.lock().unwrap(), 2);
    });
}

/// An initialiser may use the value, and it may fail on any way: what it did is kept, or forgotten
/// by the kernel.
#[test]
fn initialisers_that_take_locks() {
    in_own_process("initialisers_that_take_locks", || {
        outlast::shared! {
            #[derive(Debug)]
            struct Locks {
                lock: Lock<u64>, read: RwLock<u64>, deep: ReentrantLock<u64>, jobs: FixedQueue<u64, 4>
            }
        }
        let name = Name::new("initialisers_that_take_locks");
        let _watchdog = watch_alone("initialisers_that_take_locks");
        let others = [7, 8, 9].map(|value| Shared::anonymous(Lock::new(value)).unwrap());
        // The thread's list of held locks is walked, and written, where one is taken inside of
        // another.
        let nest = || {
            let guards = others.each_ref().map(|lock| lock.lock().unwrap());
            assert_eq!(guards.map(|guard| *guard), [7, 8, 9]);
        };
        let forget_all = |locks: &Locks| {
            core::mem::forget(locks.lock.lock().unwrap());
            core::mem::forget(locks.read.read().unwrap());
            core::mem::forget(locks.deep.lock().unwrap());
        };
        let fail = |init: &dyn Fn(&Locks)| {
            let anonymous = || Options::new().anonymous_with(init).map(drop);
            let named = || Options::new().create_with(&name.0, init).map(drop);
            let makers: [&dyn Fn() -> Result<(), OpenError>; 2] = [&anonymous, &named];
            makers.map(|make| {
                let made = std::panic::catch_unwind(core::panic::AssertUnwindSafe(make));
                nest();
                assert!(!name.exists());
                made
            })
        };
        for _ in 0..3 {
            // It panics: with locks that it has forgotten, and with locks that it releases as it
            // unwinds.
            for made in fail(&|locks| {
                forget_all(locks);
                panic!("as it is meant to");
            }) {
                assert!(made.is_err());
            }
            for made in fail(&|locks| {
                let _guards = (locks.lock.lock().unwrap(), locks.read.write().unwrap());
                panic!("as it is meant to");
            }) {
                assert!(made.is_err());
            }
            // It returns, and forgets.
            for made in fail(&forget_all) {
                assert!(matches!(made, Ok(Err(OpenError::LeftLocked))), "{made:?}");
            }
        }
        // Another process takes the name meanwhile.
        for forgets in [false, true] {
            let mut first = None;
            let made = Options::new().create_with(&name.0, |locks: &Locks| {
                if forgets {
                    forget_all(locks);
                } else {
                    drop((locks.lock.lock().unwrap(), locks.deep.lock().unwrap()));
                }
                first = Some(Shared::create(&name.0, Office::new()).unwrap());
            });
            nest();
            let expected = match made.map(drop) {
                Err(OpenError::LeftLocked) => forgets,
                Err(OpenError::AlreadyExists) => !forgets,
                other => panic!("{other:?}"),
            };
            assert!(expected);
            first.unwrap().work();
        }
        // It goes well.
        let init = |locks: &Locks| {
            *locks.lock.lock().unwrap() += 5;
            locks.deep.lock().unwrap().set(6);
            *locks.read.write().unwrap() = 7;
        };
        for made in [Options::new().anonymous_with(init), Options::new().create_with(&name.0, init)]
        {
            let made = made.unwrap();
            nest();
            let locks =
                (made.lock.lock().unwrap(), made.deep.lock().unwrap(), made.read.read().unwrap());
            assert_eq!((*locks.0, locks.1.get(), *locks.2), (5, 6, 7));
        }
    });
}

#[test]
fn named() {
    in_own_process("named", || {
        let name = Name::new("named");
        let _watchdog = watch_alone("named");
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        shared.work();
        let again = Shared::create(&name.0, Office::new());
        assert!(matches!(again, Err(OpenError::AlreadyExists)));
        let other = Shared::<Office>::open(&name.0).unwrap();
        other.work();
        assert_eq!(*shared.till.lock().unwrap(), 4);
        let third = Shared::open_or_create(&name.0, || -> Office { panic!("it exists") }).unwrap();
        third.work();
        assert_eq!(*shared.till.lock().unwrap(), 6);
        // No other user can read it.
        assert_eq!(fs::metadata(name.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(directory()).unwrap().permissions().mode() & 0o777, 0o700);
        // It stays as long as one of them does, and not longer.
        drop(shared);
        drop(third);
        assert!(name.exists());
        other.work();
        drop(other);
        assert!(!name.exists());
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
        let fresh = Shared::open_or_create(&name.0, Office::new).unwrap();
        assert_eq!(*fresh.till.lock().unwrap(), 0);
    });
}

#[test]
fn queues_of_any_length() {
    in_own_process("queues_of_any_length", || {
        let name = Name::new("queues_of_any_length");
        let _watchdog = watch_alone("queues_of_any_length");
        let shared = Shared::<Queue<u64>>::create_with_capacity(&name.0, 5).unwrap();
        let other = Shared::<Queue<u64>>::open(&name.0).unwrap();
        let third = Shared::<Queue<u64>>::from_fd(other.try_clone_fd().unwrap()).unwrap();
        assert_eq!((other.capacity(), third.capacity()), (5, 5));
        // A segment that exists keeps its capacity; `create` does not take its place.
        let fourth = Shared::<Queue<u64>>::open_or_create_with_capacity(&name.0, 9).unwrap();
        assert_eq!(fourth.capacity(), 5);
        fourth.send(1).unwrap();
        assert_eq!(shared.recv(), Ok(1));
        let again = Shared::<Queue<u64>>::create_with_capacity(&name.0, 5);
        assert!(matches!(again, Err(OpenError::AlreadyExists)));
        let other_name = Name::new("queues_of_another_length");
        let options = Options::new().processes(2);
        let fresh = options.open_or_create_with_capacity::<Queue<u64>>(&other_name.0, 9).unwrap();
        assert_eq!(fresh.capacity(), 9);
        assert!(other_name.exists());
        for kind in [
            Shared::<Queue<u64>>::with_capacity(0).map(drop),
            Shared::<Channel<Queue<u64>>>::with_capacity(0).map(drop),
            Shared::<Ring<u64>>::with_capacity(0).map(drop),
            Shared::<ByteQueue>::with_capacity(0).map(drop),
            Shared::<Channel<ByteQueue>>::with_capacity(0).map(drop),
            Shared::<Pipe>::with_capacity(0).map(drop),
            Shared::<Journal>::with_capacity(0).map(drop),
        ] {
            assert!(matches!(kind, Err(OpenError::InvalidCapacity(0))), "{kind:?}");
        }
        shared.send_batch(&[1, 2, 3, 4, 5]).unwrap();
        assert!(third.is_full());
        assert_eq!(third.drain(), [1, 2, 3, 4, 5]);
        // A queue of a fixed length is another type, also if it is the same length.
        let fixed = Shared::<FixedQueue<u64, 5>>::open(&name.0);
        assert!(matches!(fixed, Err(OpenError::OtherType { .. })));
        let other_payload = Shared::<Queue<i64>>::open(&name.0);
        assert!(matches!(other_payload, Err(OpenError::OtherType { .. })));
    });
}

#[test]
fn opened_when_it_appears() {
    in_own_process("opened_when_it_appears", || {
        let name = Name::new("opened_when_it_appears");
        let _watchdog = watch_alone("opened_when_it_appears");
        let refused = Shared::<Office>::open_timeout(&name.0, ms(30));
        assert!(matches!(refused, Err(OpenError::TimedOut)), "{refused:?}");
        // No name that will never exist is waited for, and no type that never fits.
        let refused = Shared::<Office>::open_timeout("a/b", ms(1_000_000));
        assert!(matches!(refused, Err(OpenError::InvalidName)), "{refused:?}");
        let creator = fork_child(|| {
            std::thread::sleep(ms(50));
            let shared = Shared::create(&name.0, Office::new()).unwrap();
            shared.open.wait().unwrap();
        });
        let shared = Shared::<Office>::open_timeout(&name.0, ms(100_000)).unwrap();
        let refused = Shared::<Event>::open_timeout(&name.0, ms(1_000_000));
        assert!(matches!(refused, Err(OpenError::OtherType { .. })), "{refused:?}");
        // What exists is opened, however late it is.
        let past = Instant::now().checked_sub(ms(1)).unwrap();
        Shared::<Office>::open_deadline(&name.0, past).unwrap().open.set();
        creator.succeeds();
        drop(shared);
        let refused = Shared::<Office>::open_deadline(&name.0, past);
        assert!(matches!(refused, Err(OpenError::TimedOut)), "{refused:?}");
    });
}

#[test]
fn parts_keep_the_whole() {
    in_own_process("parts_keep_the_whole", || {
        let name = Name::new("parts_keep_the_whole");
        let _watchdog = watch_alone("parts_keep_the_whole");
        let whole = Shared::create(&name.0, Office::new()).unwrap();
        let other = Shared::<Office>::open(&name.0).unwrap();
        let inbox: Shared<Queue<u64>> = whole.project(|office| &*office.inbox);
        let till = whole.clone().project(|office| &office.till);
        let again = till.project(|till| till);
        drop((whole, till));
        *again.lock().unwrap() += 1;
        assert_eq!(*other.till.lock().unwrap(), 1);
        let sender = std::thread::spawn({
            let inbox = inbox.clone();
            move || inbox.send(7).unwrap()
        });
        assert_eq!(other.inbox.recv(), Ok(7));
        sender.join().unwrap();
        // A part is no file, not even a part that begins where the whole segment begins.
        assert!(inbox.fd().is_none() && again.fd().is_none());
        assert_eq!(inbox.try_clone_fd().unwrap_err().kind(), io::ErrorKind::Unsupported);
        let started = std::process::Command::new("true").share("inbox", &inbox).status();
        assert!(started.is_err());
        // It makes this process a peer, and a user, as the whole does.
        drop(other);
        inbox.send(8).unwrap();
        let child = fork_child(|| {
            core::mem::forget(inbox.recv_ack().unwrap());
            exit_now(0);
        });
        child.succeeds();
        let delivery = inbox.recv_ack().unwrap();
        assert_eq!((*delivery, delivery.attempts()), (8, 1));
        delivery.ack().unwrap();
        drop(inbox);
        assert!(name.exists());
        drop(again);
        assert!(!name.exists());
    });
}

#[test]
#[should_panic(expected = "outside of the segment")]
fn a_part_of_something_else() {
    static ELSEWHERE: AtomicU64 = AtomicU64::new(0);
    let part = office().project(|_| &ELSEWHERE);
    drop(part);
}

#[test]
fn options() {
    let _watchdog = watch_alone("options");
    let wrong = [
        Options::new().processes(0),
        Options::new().processes(4_096),
        Options::new().threads(0),
        Options::new().threads(65_536),
        Options::new().processes(u32::MAX).threads(u32::MAX),
    ];
    for options in wrong {
        assert!(matches!(options.anonymous(Office::new()), Err(OpenError::InvalidPeers)));
    }
    for options in [
        Options::new().processes(4_095).threads(65_535),
        Options::new().processes(1).threads(1),
        Options::new().processes(1).threads(65_535),
        Options::new().processes(4_095).threads(1),
    ] {
        options.anonymous(Office::new()).unwrap().work();
    }
}

// -------------------------------------------------------------------------- memory of the caller's

fn borrowed(len: usize) -> shared_memory::Shmem {
    shared_memory::ShmemConf::new().size(len).create().unwrap()
}

fn start(memory: &shared_memory::Shmem) -> NonNull<u8> {
    NonNull::new(memory.as_ptr()).unwrap()
}

#[test]
fn memory_of_the_callers() {
    let _watchdog = watch_alone("memory_of_the_callers");
    let memory = borrowed(1 << 20);
    let other = shared_memory::ShmemConf::new().os_id(memory.get_os_id()).open().unwrap();
    // SAFETY: mapped as long as `memory` and `other` live, which is longer than this test's
    // segments; the other processes are forked from this one.
    let shared =
        unsafe { Options::new().create_in(start(&memory), 1 << 20, Office::new()) }.unwrap();
    shared.work();
    // SAFETY: as above; `len` is that of the mapping.
    let there = unsafe { Shared::<Office>::open_in(start(&other), other.len()) }.unwrap();
    there.work();
    assert_eq!(*shared.till.lock().unwrap(), 4);
    assert!(shared.fd().is_none());
    assert_eq!(shared.try_clone_fd().unwrap_err().kind(), io::ErrorKind::Unsupported);
    let started = std::process::Command::new("true").share("office", &shared).status();
    assert!(started.is_err(), "there is nothing to hand on");
    // A child of a fork, and its death.
    shared.inbox.send(1).unwrap();
    let child = fork_child(|| {
        there.work_with_delivery();
        sleep_for_ever();
    });
    shared.step.until(1);
    child.kill9();
    let delivery = shared.inbox.recv_ack().unwrap();
    assert_eq!((*delivery, delivery.attempts()), (1, 1));
    delivery.ack().unwrap();
    drop(there);
    shared.work();
    drop(shared);
    // SAFETY: as above. It is still there, and may be used again.
    let again = unsafe { Shared::<Office>::open_in(start(&memory), memory.len()) }.unwrap();
    again.work();
    assert_eq!(*again.till.lock().unwrap(), 8);
    // SAFETY: as above.
    let wrong = unsafe { Shared::<Event>::open_in(start(&memory), memory.len()) };
    assert!(matches!(wrong, Err(OpenError::OtherType { .. })));
}

impl Office {
    /// Receives a message, and keeps it until it is killed.
    fn work_with_delivery(&self) {
        core::mem::forget(self.inbox.recv_ack().unwrap());
        self.step.reach(1);
    }
}

#[test]
fn memory_that_does_not_fit() {
    let _watchdog = watch_alone("memory_that_does_not_fit");
    let memory = borrowed(1 << 20);
    let at = |offset: usize| start(&memory).map_addr(|at| at.checked_add(offset).unwrap());
    let create = |offset: usize, len: usize| {
        // SAFETY: inside the mapping, and no other thread uses it.
        unsafe { Options::new().create_in(at(offset), len, Office::new()) }
    };
    let open = |offset: usize, len: usize| {
        // SAFETY: as above.
        unsafe { Shared::<Office>::open_in(at(offset), len) }
    };
    let (needed, align) = match create(0, 100) {
        Err(OpenError::Unfit { needed, align }) => (needed, align),
        other => panic!("{other:?}"),
    };
    assert!(needed > 64 * 1024 && align >= 64);
    assert!(matches!(create(0, needed - 1), Err(OpenError::Unfit { .. })));
    assert!(matches!(create(8, 1 << 19), Err(OpenError::Unfit { .. })));
    assert!(matches!(create(align / 2, 1 << 19), Err(OpenError::Unfit { .. })));
    assert!(matches!(open(0, 1 << 20), Err(OpenError::NotOurs)));
    assert!(matches!(open(0, 100), Err(OpenError::NotOurs)));
    assert!(matches!(open(1, 1 << 19), Err(OpenError::Unfit { .. } | OpenError::NotOurs)));
    let shared = create(align, needed).unwrap();
    shared.work();
    match open(align, needed - 1) {
        Err(OpenError::WrongSize { found, stated }) => {
            assert_eq!((found, stated), (needed as u64 - 1, needed as u64));
        }
        other => panic!("{other:?}"),
    }
    open(align, needed).unwrap().work();
}

/// Two handles on the very same memory in one process: when one goes, the other is still a peer.
#[test]
fn closed_before_it_is_unmapped() {
    let _watchdog = watch_alone("closed_before_it_is_unmapped");
    let layout = Options::new().layout_in::<Office>().unwrap();
    let memory = borrowed(layout.size() + layout.align());
    let start = start(&memory);
    // What is said to be needed is what is needed.
    // SAFETY: the memory is that long, and mapped until the end; a byte less is not enough.
    let refused = unsafe { Options::new().create_in(start, layout.size() - 1, Office::new()) };
    let needed = matches!(refused, Err(OpenError::Unfit { needed, align })
        if needed == layout.size() && align == layout.align());
    assert!(needed, "{refused:?}");
    // SAFETY: as above.
    let shared = unsafe { Options::new().create_in(start, layout.size(), Office::new()) }.unwrap();
    shared.work();
    // Another handle, or a part.
    let part = shared.project(|office| &office.till);
    let shared = shared.close_timeout(ms(5)).unwrap_err();
    drop(part);
    // A thread that has used it, and lives.
    let (used, leave) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let shared = std::thread::scope(|scope| {
        let clone = shared.clone();
        let (used, leave) = (&used, &leave);
        let user = scope.spawn(move || {
            clone.work();
            drop(clone);
            used.wait();
            leave.wait();
        });
        used.wait();
        let shared = shared.close_timeout(ms(5)).unwrap_err();
        leave.wait();
        user.join().unwrap();
        shared
    });
    shared.work();
    shared.close_timeout(ms(10_000)).unwrap();
    drop(memory);
}

#[test]
fn the_same_memory_twice() {
    let _watchdog = watch_alone("the_same_memory_twice");
    let memory = borrowed(1 << 20);
    // SAFETY: mapped longer than the handles live.
    let first =
        unsafe { Options::new().create_in(start(&memory), 1 << 20, Office::new()) }.unwrap();
    // SAFETY: as above.
    let second = unsafe { Shared::<Office>::open_in(start(&memory), memory.len()) }.unwrap();
    second.inbox.send(1).unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let holder = scope.spawn({
            let second = &second;
            move || {
                let delivery = second.inbox.recv_ack().unwrap();
                tell.send(()).unwrap();
                gone.recv().unwrap();
                delivery.ack()
            }
        });
        told.recv().unwrap();
        drop(first);
        // Another process comes, perhaps into the slot that has become free, and dies.
        let child = fork_child(|| {
            // SAFETY: the mapping was inherited by the fork.
            let own = unsafe { Shared::<Office>::open_in(start(&memory), memory.len()) }.unwrap();
            own.inbox.send(2).unwrap();
            own.work_with_delivery();
            sleep_for_ever();
        });
        second.step.until(1);
        child.kill9();
        let back = second.inbox.recv_ack_timeout(common::PATIENCE).unwrap();
        assert_eq!(*back, 2, "what a living thread holds was delivered again");
        go.send(()).unwrap();
        assert_eq!(holder.join().unwrap(), Ok(1));
        back.ack().unwrap();
    });
    assert_eq!(second.inbox.join_timeout(ms(100)), Ok(true));
}

// ---------------------------------------------------------------------------------- handing on

#[test]
fn by_fork_to_children_and_theirs() {
    let shared = office();
    let _watchdog = watch("by_fork_to_children_and_theirs", &shared);
    shared.work();
    let child = fork_child(|| {
        shared.work();
        let other = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
        fork_child(|| {
            shared.work();
            other.work();
            // One that has not used it before forks on.
            fork_child(|| other.work()).succeeds();
            shared.work();
        })
        .succeeds();
        other.work();
        drop(other);
        shared.work();
    });
    child.succeeds();
    // One generation that does nothing between two that do.
    fork_child(|| fork_child(|| shared.work()).succeeds()).succeeds();
    shared.work();
    assert_eq!(*shared.till.lock().unwrap(), 2 * 10);
}

/// A grandchild dies. Its parent, which is a child, and this process survive.
#[test]
fn deaths_across_generations() {
    let shared = office();
    let _watchdog = watch("deaths_across_generations", &shared);
    shared.inbox.send_batch(&[1, 2]).unwrap();
    let child = fork_child(|| {
        let grandchild = fork_child(|| {
            core::mem::forget(shared.till.lock().unwrap());
            shared.work_with_delivery();
            sleep_for_ever();
        });
        shared.step.until(1);
        grandchild.kill9();
        match shared.till.lock() {
            Err(LockError::OwnerDied(mut guard)) => outlast::LockGuard::mark_consistent(&mut guard),
            other => panic!("{other:?}"),
        }
        // Now this one dies as well, with a message of its own.
        core::mem::forget(shared.inbox.recv_ack().unwrap());
        shared.step.reach(2);
        sleep_for_ever();
    });
    shared.step.until(2);
    child.kill9();
    let mut back = [0, 1].map(|_| {
        let delivery = shared.inbox.recv_ack_timeout(common::PATIENCE).unwrap();
        (delivery.attempts(), delivery.ack().unwrap())
    });
    back.sort_unstable_by_key(|back| back.1);
    // The child received the message that came back, or the other one.
    assert!(matches!(back, [(2, 1), (0, 2)] | [(1, 1), (1, 2)]), "{back:?}");
    assert!(shared.till.lock().is_ok());
}

/// The creator dies. The processes to which the segment was handed on carry on, and recover what
/// the creator left.
#[test]
fn the_creator_dies_first() {
    let name = Name::new("the_creator_dies_first");
    let _watchdog = watch_alone("the_creator_dies_first");
    let steps: &AtomicU32 = common::plain_shared();
    let creator = fork_child(|| {
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        shared.inbox.send(1).unwrap();
        core::mem::forget(shared.inbox.recv_ack().unwrap());
        core::mem::forget(shared.till.lock().unwrap());
        let heir = fork_child(|| {
            common::outlive_parent();
            let delivery = shared.inbox.recv_ack().unwrap();
            assert_eq!((*delivery, delivery.attempts()), (1, 1));
            delivery.ack().unwrap();
            assert!(matches!(shared.till.lock(), Err(LockError::OwnerDied(_))));
            shared.work_alone();
            steps.reach(2);
            // No process is there to reap it, so its exit status does not matter.
            exit_now(0);
        });
        heir.until_waiting();
        steps.reach(1);
        sleep_for_ever();
    });
    steps.until(1);
    creator.kill9();
    steps.until(2);
}

impl Office {
    fn work_alone(&self) {
        self.till.clear_poison();
        self.work();
    }
}

#[test]
fn by_exec() {
    const KEYS: [&str; 6] = ["office", "a b", "", "x.y-z_W", "\u{e4}=1", "-"];
    if let Some(part) = my_part() {
        if part == "orphan" {
            Shared::<Office>::inherited(KEYS[0]).unwrap().work();
            for key in &KEYS[1..] {
                // The environment still names a descriptor, but that is closed, or by now another.
                assert!(Shared::<Office>::inherited(key).is_err(), "{key}");
            }
            part_is_done();
        }
        let shared: Vec<_> =
            KEYS.iter().map(|key| Shared::<Office>::inherited(key).expect(key)).collect();
        shared.iter().for_each(|office| office.work());
        // Once more, from the same key.
        Shared::<Office>::inherited("office").unwrap().work();
        assert!(matches!(Shared::<Office>::inherited("offic"), Err(OpenError::NotInherited)));
        assert!(matches!(Shared::<Event>::inherited("office"), Err(OpenError::OtherType { .. })));
        if part == "child" {
            // What was handed to this process is not handed on unless it says so.
            start_again("by_exec", "orphan", |command| {
                command.share(KEYS[0], &shared[0]);
            })
            .has_played();
            start_again("by_exec", "grandchild", |command| {
                KEYS.iter().zip(&shared).for_each(|(key, office)| {
                    command.share(key, office);
                });
            })
            .has_played();
        }
        part_is_done();
    }
    let _watchdog = watch_alone("by_exec");
    let offices: Vec<_> = KEYS.iter().map(|_| office()).collect();
    for _ in 0..2 {
        start_again("by_exec", "child", |command| {
            KEYS.iter().zip(&offices).for_each(|(key, office)| {
                command.share(key, office);
            });
        })
        .has_played();
    }
    // Child and grandchild, twice. The users of the first key do so more often.
    for office in &offices[1..] {
        assert_eq!(*office.till.lock().unwrap(), 2 * 2 * 2);
    }
    // One command started twice.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "test -e /proc/self/fd/$OUTLAST_FD_k"]).share("k", &offices[0]);
    assert!(command.status().unwrap().success());
    assert!(command.status().unwrap().success());
    drop(command);
    let status = std::process::Command::new("sh")
        .args(["-c", "ls -l /proc/self/fd | grep -q memfd:outlast"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1), "a child that was given nothing has something");
}

#[test]
fn not_inherited() {
    if let Some(part) = my_part() {
        let got = Shared::<Office>::inherited("x");
        match part.as_str() {
            "not sealed" => assert!(matches!(got, Err(OpenError::NotSealed)), "{got:?}"),
            "not ours" => assert!(matches!(got, Err(OpenError::NotOurs)), "{got:?}"),
            _ => assert!(matches!(got, Err(OpenError::NotInherited)), "{part}: {got:?}"),
        }
        part_is_done();
    }
    let _watchdog = watch_alone("not_inherited");
    assert!(matches!(Shared::<Office>::inherited("x"), Err(OpenError::NotInherited)));
    for value in ["", "x", "-1", "0", "1", "2", "99", "1000000000000", "3 ", "+"] {
        let set = |command: &mut std::process::Command| {
            command.env("OUTLAST_FD_x", value);
        };
        start_again("not_inherited", &format!("{value:?}"), set).has_played();
    }
    // Descriptors that are something else.
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let memfd = memfd(1 << 20, true);
    for (part, fd) in [("not sealed", OwnedFd::from(file)), ("not ours", memfd.into())] {
        let plain = fd.try_clone().unwrap(); // not closed at exec, below
        // SAFETY: takes no pointers.
        unsafe { libc::fcntl(plain.as_raw_fd(), libc::F_SETFD, 0) };
        start_again("not_inherited", part, |command| {
            command.env("OUTLAST_FD_x", plain.as_raw_fd().to_string());
        })
        .has_played();
    }
}

fn memfd(len: u64, sealed: bool) -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe {
        libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    };
    assert!(fd >= 0);
    // SAFETY: just opened.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len).unwrap();
    if sealed {
        // SAFETY: takes no pointers.
        unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) };
    }
    file
}

// ----------------------------------------------------------------------------- over a socket

#[repr(C)]
union Control {
    header: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Calls `with` with a message of one byte, and room for one descriptor.
fn with_message<R>(byte: &mut u8, with: impl FnOnce(&mut libc::msghdr) -> R) -> R {
    let mut data = libc::iovec { iov_base: core::ptr::from_mut(byte).cast(), iov_len: 1 };
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: all zero is an empty message.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = 24; // CMSG_SPACE(4)
    with(&mut message)
}

fn send_fd(socket: &UnixStream, fd: &OwnedFd) {
    with_message(&mut 1, |message| {
        // SAFETY: the message has a control buffer.
        let header = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: there is room for a header in it.
        let header = unsafe { &mut *header };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        header.cmsg_len = 20; // CMSG_LEN(4)
        // SAFETY: a header with room behind it.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: four bytes of that room.
        unsafe { data.cast::<libc::c_int>().write_unaligned(fd.as_raw_fd()) };
        // SAFETY: all pointers in the message are to live variables.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), message, 0) };
        assert_eq!(sent, 1, "sendmsg: {}", io::Error::last_os_error());
    });
}

fn receive_fd(socket: &UnixStream) -> OwnedFd {
    with_message(&mut 0, |message| {
        // SAFETY: all pointers in the message are to live variables.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) };
        assert_eq!(got, 1, "recvmsg: {}", io::Error::last_os_error());
        // SAFETY: the kernel filled the control buffer.
        let header = unsafe { libc::CMSG_FIRSTHDR(message) };
        assert!(!header.is_null(), "no descriptor came");
        // SAFETY: a whole header.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: a descriptor was sent, so four bytes are there.
        let fd = unsafe { data.cast::<libc::c_int>().read_unaligned() };
        // SAFETY: the kernel made it for us.
        unsafe { OwnedFd::from_raw_fd(fd) }
    })
}

#[test]
fn over_a_socket() {
    let part = my_part();
    if part.is_none() {
        return start_again("over_a_socket", common::ALONE, |_| {}).has_played();
    }
    if let Some(part) = part.filter(|part| part != common::ALONE) {
        // The socket is this program's standard input.
        // SAFETY: open, and no other thread reads from it.
        let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
        let shared = Shared::<Office>::from_fd(receive_fd(&socket)).unwrap();
        shared.work();
        if part == "dies" {
            shared.step.reach(1);
            core::mem::forget(shared.inbox.recv_ack().unwrap());
            shared.step.reach(2);
            sleep_for_ever();
        }
        part_is_done();
    }
    let name = Name::new("over_a_socket");
    let _watchdog = watch_alone("over_a_socket");
    for shared in [office(), Shared::create(&name.0, Office::new()).unwrap()] {
        for dies in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            assert!(shared.inbox.is_empty());
            let part = if dies { "dies" } else { "ends" };
            let child = start_again("over_a_socket", part, |command| {
                command.stdin(OwnedFd::from(theirs));
            });
            send_fd(&ours, &shared.try_clone_fd().unwrap());
            if dies {
                shared.step.until(1);
                shared.inbox.send(5).unwrap();
                shared.step.until(2);
                child.kill9();
                let back = shared.inbox.recv_ack_timeout(common::PATIENCE).unwrap();
                assert_eq!(back.attempts(), 1);
                back.ack().unwrap();
            } else {
                child.has_played();
            }
        }
        assert_eq!(*shared.till.lock().unwrap(), 4);
    }
    assert!(!name.exists(), "the last user was killed or has left");
    part_is_done();
}

// ------------------------------------------------------------------------------------- refusals

#[test]
fn names() {
    in_own_process("names", || {
        let _watchdog = watch_alone("names");
        let long = "x".repeat(201);
        for name in ["", "/", "a/b", "/a", ".", "..", ".hidden", "a\0b", "\0", &long] {
            assert!(matches!(
                Shared::create(name, Event::auto(false)),
                Err(OpenError::InvalidName)
            ));
            assert!(matches!(Shared::<Event>::open(name), Err(OpenError::InvalidName)));
            let either = Shared::open_or_create(name, || Event::auto(false));
            assert!(matches!(either, Err(OpenError::InvalidName)));
            assert!(matches!(outlast::remove(name), Err(OpenError::InvalidName)));
            let queue = Shared::<Queue<u8>>::create_with_capacity(name, 1);
            assert!(matches!(queue, Err(OpenError::InvalidName)));
        }
        let pid = std::process::id();
        let longest = format!("{pid:x>200}");
        for name in
            [longest, format!("{pid} \u{fc}\n\\*?'\""), format!("{pid}..."), format!("{pid}~")]
        {
            let created = Shared::create(&name, Event::auto(true)).unwrap();
            assert!(Shared::<Event>::open(&name).unwrap().is_set());
            drop(created);
            assert!(matches!(Shared::<Event>::open(&name), Err(OpenError::NotFound)));
        }
    });
}

/// The bytes of a header, to be changed.
struct Header(File);

impl Header {
    fn of(shared: &Shared<Office>) -> Self {
        Header(File::from(shared.try_clone_fd().unwrap()))
    }
    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
    /// What opening says while the header has these bytes there.
    fn with(&self, at: u64, bytes: &[u8]) -> Result<Shared<Office>, OpenError> {
        let good = self.read::<128>(0);
        self.0.write_all_at(bytes, at).unwrap();
        let opened = Shared::from_fd(self.0.try_clone().unwrap().into());
        self.0.write_all_at(&good, 0).unwrap();
        opened
    }
}

#[test]
fn headers_that_are_refused() {
    let shared = office();
    let _watchdog = watch("headers_that_are_refused", &shared);
    let header = Header::of(&shared);
    let open = |at: u64, bytes: &[u8]| header.with(at, bytes).map(drop).unwrap_err();
    assert!(header.with(0, b"outlast\0").is_ok());

    assert!(matches!(open(0, b"outlasT\0"), OpenError::NotOurs));
    assert!(matches!(open(0, &[0; 128]), OpenError::NotOurs));
    match open(8, &2_u32.to_ne_bytes()) {
        error @ OpenError::Newer { found: 2, known: 1 } => {
            let text = "the segment has layout version 2: this program knows versions up to 1";
            assert_eq!(error.to_string(), text);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(open(8, &0_u32.to_ne_bytes()), OpenError::Corrupt));
    let (other, names) = if cfg!(not(outlast_pthread)) {
        (2_u32, ("pthread", "futex"))
    } else {
        (1, ("futex", "pthread"))
    };
    match open(12, &other.to_ne_bytes()) {
        OpenError::Backend { found, ours } => assert_eq!((found.as_str(), ours), names),
        other => panic!("{other:?}"),
    }
    assert!(matches!(open(12, &77_u32.to_ne_bytes()), OpenError::Backend { .. }));
    match open(16, &4_u32.to_ne_bytes()) {
        OpenError::Backend { found, .. } => assert!(found.contains("32-bit"), "{found}"),
        other => panic!("{other:?}"),
    }
    match open(20, &(-28_i32).to_ne_bytes()) {
        OpenError::Backend { found, .. } => assert!(found.contains("-28"), "{found}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(open(40, &[0; 16]), OpenError::OtherBoot));
    assert!(matches!(open(56, &1_u64.to_ne_bytes()), OpenError::OtherPidNamespace));
    assert!(matches!(open(68, &0_u32.to_ne_bytes()), OpenError::Corrupt)); // still being made
    let total = u64::from_ne_bytes(header.read(24));
    for stated in [0, total - 4096, total + 4096, u64::MAX] {
        match open(24, &stated.to_ne_bytes()) {
            OpenError::WrongSize { found, stated: told } => {
                assert_eq!((found, told), (total, stated));
            }
            other => panic!("{other:?}"),
        }
    }
    // The first that applies is told.
    let mut all = header.read::<128>(0);
    all[8..].fill(0xee);
    assert!(matches!(open(0, &all), OpenError::Newer { .. }));
}

/// Every bit of the header matters, except a few that are never read. A wrong bit does no harm.
#[test]
fn every_bit_of_the_header() {
    let shared = office();
    let _watchdog = watch("every_bit_of_the_header", &shared);
    let header = Header::of(&shared);
    let good = header.read::<128>(0);
    for at in 0..128_usize {
        for bit in 0..8 {
            let opened = header.with(at as u64, &[good[at] ^ 1 << bit]);
            // Reserved; 0 instead of 2 for the lifetime of what has no name; a slot, or a letter of
            // text, more or less, if alignment made room for it (the tables stay inside the
            // segment).
            let unread = (120..128).contains(&at) || at == 64 && bit == 1;
            let counts = (72..80).contains(&at) || (92..96).contains(&at);
            match opened {
                Ok(_) => assert!(unread || counts, "byte {at}, bit {bit}"),
                Err(OpenError::Attach(fault)) => panic!("byte {at}, bit {bit}: {fault}"),
                Err(_) => assert!(!unread, "byte {at}, bit {bit}"),
            }
        }
        // And together with a fingerprint that makes it look at the description.
        let mut bytes = good;
        bytes[32] ^= 1;
        bytes[at] ^= 0x80;
        assert!(header.with(0, &bytes).is_err());
    }
    shared.work();
}

#[test]
fn another_type_is_shown() {
    in_own_process("another_type_is_shown", || {
        mod newer {
            outlast::shared! {
                pub(crate) struct Office {
                    pub(crate) inbox: outlast::FixedQueue<u64, 8>,
                    pub(crate) open: outlast::Event,
                    pub(crate) till: outlast::Lock<u32>,
                    pub(crate) step: core::sync::atomic::AtomicU32,
                    pub(crate) staff: outlast::Lock<u8>
                }
            }
        }
        let name = Name::new("another_type_is_shown");
        let _watchdog = watch_alone("another_type_is_shown");
        let _shared = Shared::create(&name.0, Office::new()).unwrap();
        let difference = match Shared::<newer::Office>::open(&name.0) {
            Err(OpenError::OtherType { difference }) => difference,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("another type was opened"),
        };
        let at = if cfg!(not(outlast_pthread)) { 40 } else { 64 };
        let (minus, plus): (Vec<_>, Vec<_>) =
            difference.lines().partition(|line| line.starts_with('-'));
        assert!(minus.iter().any(|line| line.trim_start_matches('-').trim()
            == format!("value: u64 at {at} (8 bytes, aligned to 8)")));
        assert!(plus.iter().any(|line| line.trim_start_matches('+').trim()
            == format!("value: u32 at {at} (4 bytes, aligned to 4)")));
        assert!(plus.iter().all(|line| line.starts_with('+')));
        assert!(plus.iter().any(|line| line.contains("staff: Lock at")), "{difference}");
        assert!(!difference.contains("inbox"), "what is equal is not shown: {difference}");
        // The order and the names of fields matter as well, and types that look the same.
        outlast::shared! {
            struct Renamed { a: Lock<u64>, b: Event }
            struct Other { a: Lock<u64>, c: Event }
        }
        let renamed = Renamed { a: Lock::new(0), b: Event::auto(false) };
        let renamed = Shared::anonymous(renamed).unwrap();
        match Shared::<Other>::from_fd(renamed.try_clone_fd().unwrap())
            .map(|other| (other.a.is_poisoned(), other.c.is_set()))
        {
            Err(OpenError::OtherType { difference }) => {
                assert!(difference.contains("-  b: Event at"), "{difference}");
                assert!(difference.contains("+  c: Event at"), "{difference}");
            }
            other => panic!("{other:?}"),
        }
        drop((renamed.a.lock().unwrap(), renamed.b.is_set()));
        let lock = Shared::anonymous(Lock::new(0_u64)).unwrap();
        let signed = Shared::<Lock<i64>>::from_fd(lock.try_clone_fd().unwrap());
        assert!(matches!(signed, Err(OpenError::OtherType { .. })));
    });
}

/// Payload of the same name and fields, with another alignment or size, is another type.
#[test]
fn another_alignment_is_another_type() {
    mod plain {
        outlast::plain! {
            pub(crate) struct Point { pub(crate) x: u64 }
            pub(crate) struct Pair { pub(crate) x: u64, pub(crate) y: u64 }
        }
        outlast::shared! {
            pub(crate) struct Place { pub(crate) ticks: [core::sync::atomic::AtomicU32; 2] }
        }
    }
    mod aligned {
        outlast::plain! {
            #[repr(align(16))]
            pub(crate) struct Point { pub(crate) x: u64 }
            #[repr(align(16))]
            pub(crate) struct Pair { pub(crate) x: u64, pub(crate) y: u64 }
        }
        outlast::shared! {
            #[repr(align(64))]
            pub(crate) struct Place { pub(crate) ticks: [core::sync::atomic::AtomicU32; 2] }
        }
    }
    fn differ<A, B>(made: Shared<A>, words: [&str; 2])
    where
        A: ?Sized + Shareable + Sync + 'static,
        B: ?Sized + Shareable + Sync + 'static,
    {
        match Shared::<B>::from_fd(made.try_clone_fd().unwrap()) {
            Err(OpenError::OtherType { difference }) => {
                let [minus, plus] = words;
                let shows = |sign: char, words: &str| {
                    difference.lines().any(|line| line.starts_with(sign) && line.contains(words))
                };
                assert!(shows('-', minus) && shows('+', plus), "{difference}");
            }
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("another type was opened"),
        }
    }
    let _watchdog = watch_alone("another_alignment_is_another_type");
    let point = plain::Point { x: 7 };
    let words = ["aligned to 8)", "aligned to 16)"];
    differ::<_, Lock<aligned::Point>>(Shared::anonymous(Lock::new(point)).unwrap(), words);
    differ::<_, RwLock<aligned::Point>>(Shared::anonymous(RwLock::new(point)).unwrap(), words);
    let deep = Shared::anonymous(ReentrantLock::new(point)).unwrap();
    differ::<_, ReentrantLock<aligned::Point>>(deep, words);
    let cell = Shared::anonymous(OnceCell::<plain::Point>::new()).unwrap();
    differ::<_, OnceCell<aligned::Point>>(cell, words);
    let queue = Shared::<Queue<plain::Point>>::with_capacity(4).unwrap();
    differ::<_, Queue<aligned::Point>>(queue, words);
    let points = Shared::anonymous(Lock::new([point; 3])).unwrap();
    differ::<_, Lock<[aligned::Point; 3]>>(points, words);
    // The other way round, and a struct of primitives.
    let point = aligned::Point { x: 7 };
    let words = ["aligned to 16)", "aligned to 8)"];
    differ::<_, Lock<plain::Point>>(Shared::anonymous(Lock::new(point)).unwrap(), words);
    // The alignment alone differs.
    let pair = Shared::anonymous(Lock::new(plain::Pair { x: 7, y: 8 })).unwrap();
    assert_eq!(size_of::<plain::Pair>(), size_of::<aligned::Pair>());
    differ::<_, Lock<aligned::Pair>>(pair, ["aligned to 8)", "aligned to 16)"]);
    assert_eq!(aligned::Pair { x: 7, y: 8 }.y, 8);
    let place = Shared::anonymous(plain::Place { ticks: Default::default() }).unwrap();
    differ::<_, aligned::Place>(place, ["aligned to 4)", "aligned to 64)"]);
    let place = Shared::anonymous(
        [const { plain::Place { ticks: [AtomicU32::new(0), AtomicU32::new(0)] } }; 2],
    );
    differ::<_, [aligned::Place; 2]>(place.unwrap(), ["aligned to 4)", "aligned to 64)"]);
    assert_eq!((point.x, aligned::Place { ticks: Default::default() }.ticks.len()), (7, 2));
}

#[test]
fn an_alignment_that_is_too_large() {
    mod page {
        outlast::plain! { #[repr(align(4096))] pub(crate) struct Point { pub(crate) x: u64 } }
    }
    mod more {
        outlast::plain! { #[repr(align(8192))] pub(crate) struct Point { pub(crate) x: u64 } }
    }
    let largest = Shared::anonymous(Lock::new(page::Point { x: 7 })).unwrap();
    assert_eq!(largest.lock().unwrap().x, 7);
    let refused = Shared::anonymous(Lock::new(more::Point { x: 7 })).map(drop);
    assert!(matches!(refused, Err(OpenError::InvalidAlignment(8_192))), "{refused:?}");
    let refused = Shared::<Queue<more::Point>>::with_capacity(1).map(drop);
    assert!(matches!(refused, Err(OpenError::InvalidAlignment(8_192))), "{refused:?}");
    assert_eq!(more::Point { x: 7 }.x, 7);
}

#[test]
fn files_of_a_wrong_size() {
    in_own_process("files_of_a_wrong_size", || {
        let name = Name::new("files_of_a_wrong_size");
        let _watchdog = watch_alone("files_of_a_wrong_size");
        let shared = Shared::create(&name.0, Lock::new(3_u8)).unwrap();
        let file = File::options().write(true).open(name.path()).unwrap();
        let len = file.metadata().unwrap().len();
        for wrong in [len + 1, len + 4096] {
            file.set_len(wrong).unwrap();
            match Shared::<Lock<u8>>::open(&name.0) {
                Err(OpenError::WrongSize { found, stated }) => {
                    assert_eq!((found, stated), (wrong, len))
                }
                other => panic!("{other:?}"),
            }
        }
        file.set_len(len).unwrap();
        assert_eq!(*Shared::<Lock<u8>>::open(&name.0).unwrap().lock().unwrap(), 3);
        drop(shared);
        // Files that are no segments.
        for len in [0, 1, 127, 128, 4096] {
            fs::write(name.path(), vec![7; len]).unwrap();
            assert!(matches!(Shared::<Lock<u8>>::open(&name.0), Err(OpenError::NotOurs)), "{len}");
            let created = Shared::create(&name.0, Lock::new(1_u8));
            assert!(matches!(created, Err(OpenError::AlreadyExists)), "{len}: {created:?}");
            fs::remove_file(name.path()).unwrap();
        }
    });
}

#[test]
fn descriptors_that_could_shrink() {
    let _watchdog = watch_alone("descriptors_that_could_shrink");
    let shared = office();
    let mut image = Vec::new();
    File::from(shared.try_clone_fd().unwrap()).read_to_end(&mut image).unwrap();
    let open = |file: File| Shared::<Office>::from_fd(file.into()).map(drop);
    // A perfect copy, but not sealed.
    let loose = memfd(image.len() as u64, false);
    loose.write_all_at(&image, 0).unwrap();
    assert!(matches!(open(loose.try_clone().unwrap()), Err(OpenError::NotSealed)));
    // Half sealed.
    // SAFETY: takes no pointers.
    unsafe { libc::fcntl(loose.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) };
    assert!(matches!(open(loose.try_clone().unwrap()), Err(OpenError::NotSealed)));
    // SAFETY: as above.
    unsafe { libc::fcntl(loose.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    // A sealed copy is accepted. (It names a process as alive that does not use it, which does no
    // harm.)
    assert!(open(loose).is_ok());
    // On a disk, in memory without being ours, and things that are no files.
    let mut disk = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut disk, &image).unwrap();
    assert!(matches!(open(disk.reopen().unwrap()), Err(OpenError::NotSealed)));
    assert!(matches!(open(tempfile::tempfile().unwrap()), Err(OpenError::NotSealed)));
    assert!(matches!(open(File::open("/dev/zero").unwrap()), Err(OpenError::NotSealed)));
    assert!(matches!(open(File::open("/").unwrap()), Err(OpenError::NotSealed)));
    let (_, pipe) = io::pipe().unwrap();
    assert!(matches!(Shared::<Office>::from_fd(pipe.into()), Err(OpenError::NotSealed)));
    // Huge pages, sealed: where there are none, touching them would be a SIGBUS.
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"outlast test".as_ptr(), flags) };
    if fd >= 0 {
        // SAFETY: just opened, and no other code knows of it.
        let huge = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        huge.set_len(1 << 30).unwrap();
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) }, 0);
        assert!(matches!(open(huge), Err(OpenError::NotSealed)));
    }
    for len in [0, 1, 127, 128, 4096] {
        assert!(matches!(open(memfd(len, true)), Err(OpenError::NotOurs)), "{len}");
    }
}

/// What lies under the name is not a file of this user's.
#[test]
fn names_that_are_somebody_elses() {
    in_own_process("names_that_are_somebody_elses", || {
        let name = Name::new("names_that_are_somebody_elses");
        let _watchdog = watch_alone("names_that_are_somebody_elses");
        let real = Name::new("names_that_are_somebody_elses, real");
        let shared = Shared::create(&real.0, Office::new()).unwrap();
        std::os::unix::fs::symlink(real.path(), name.path()).unwrap();
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::PermissionDenied { .. })));
        let created = Shared::create(&name.0, Office::new());
        assert!(matches!(created, Err(OpenError::AlreadyExists)));
        outlast::reap().unwrap();
        assert!(name.exists(), "it was not ours to take away");
        fs::remove_file(name.path()).unwrap();
        fs::create_dir(name.path()).unwrap();
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::PermissionDenied { .. })));
        fs::remove_dir(name.path()).unwrap();
        shared.work();
    });
}

/// Runs `body` in a child that is another user; tells whether that could be done.
fn as_another_user(uid: u32, body: impl FnOnce()) -> bool {
    if effective_uid() != 0 {
        return false;
    }
    fork_child(|| {
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::setuid(uid) }, 0);
        body();
    })
    .succeeds();
    true
}

#[test]
fn users_are_kept_apart() {
    in_own_process("users_are_kept_apart", || {
        let name = Name::new("users_are_kept_apart");
        let _watchdog = watch_alone("users_are_kept_apart");
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        let anonymous = office();
        let uid = 200_000 + std::process::id() % 100_000;
        let theirs = PathBuf::from(format!("/dev/shm/outlast-{uid}"));
        let theirs_too = format!("their own {uid}");
        let create = || Shared::create(&theirs_too, Office::new()).map(drop);
        let open = || Shared::<Office>::open(&theirs_too).map(drop);
        if !as_another_user(uid, || {
            // Each has a directory of its own.
            assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
            assert_eq!(outlast::reap().unwrap(), 0);
            create().unwrap();
            // The descriptor of a file that another could shorten at any time. (A sealed memfd is
            // fine.)
            let named = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap());
            assert!(matches!(named, Err(OpenError::OtherUser { owner: 0 })), "{named:?}");
            Shared::<Office>::from_fd(anonymous.try_clone_fd().unwrap()).unwrap().work();
        }) {
            return; // only root can become another user
        }
        // The message says which directory it is, what is wrong with it, and what to do.
        let denied = |words: &str| {
            as_another_user(uid, || {
                for refused in [open(), create()] {
                    assert!(matches!(refused, Err(OpenError::PermissionDenied { .. })));
                    let message = refused.unwrap_err().to_string();
                    assert!(message.contains(theirs.to_str().unwrap()), "{message}");
                    assert!(message.contains(words), "{message}");
                }
                assert!(matches!(
                    outlast::remove(&theirs_too),
                    Err(OpenError::PermissionDenied { .. })
                ));
                assert_eq!(outlast::reap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            });
        };
        // Their directory is open to others, is another's, or is no directory.
        let mode =
            |mode: u32| fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        denied("(mode 777): `chmod 700` it");
        mode(0o750);
        denied("(mode 750): `chmod 700` it");
        mode(0o700);
        std::os::unix::fs::chown(&theirs, Some(0), Some(0)).unwrap();
        denied("belongs to user 0");
        denied("user 0 or root can remove it");
        fs::remove_dir_all(&theirs).unwrap();
        fs::write(&theirs, "").unwrap();
        denied("belongs to user 0");
        std::os::unix::fs::chown(&theirs, Some(uid), None).unwrap();
        denied("not a directory");
        fs::remove_file(&theirs).unwrap();
        // It is theirs, and the file in it is not.
        fs::create_dir(&theirs).unwrap();
        mode(0o700);
        std::os::unix::fs::chown(&theirs, Some(uid), None).unwrap();
        fs::write(theirs.join(&theirs_too), "").unwrap();
        as_another_user(uid, || {
            assert!(matches!(open(), Err(OpenError::PermissionDenied { .. })));
            assert!(matches!(create(), Err(OpenError::AlreadyExists)));
        });
        fs::remove_dir_all(&theirs).unwrap();
    });
}

/// Thread ids mean other threads in another PID namespace.
#[test]
fn containers_are_kept_apart() {
    let shared = office();
    let _watchdog = watch("containers_are_kept_apart", &shared);
    let child = fork_child(|| {
        // SAFETY: takes no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return; // not allowed here
        }
        // The next child is the first process of the new namespace.
        fork_child_unseen(|| {
            let opened = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap());
            matches!(opened, Err(OpenError::OtherPidNamespace))
        });
    });
    child.succeeds();
    shared.work();
}

/// As `fork_child`, without the check for the parent's id, which is 0 from inside.
fn fork_child_unseen(body: impl FnOnce() -> bool) {
    // SAFETY: the caller has one thread only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        exit_now(i32::from(!body()));
    }
    let mut status = 0;
    // SAFETY: writes to the live variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

// ---------------------------------------------------------------------------------- full tables

#[test]
fn one_process_at_a_time() {
    let _watchdog = watch_alone("one_process_at_a_time");
    let shared = Options::new().processes(1).anonymous(Office::new()).unwrap();
    shared.work();
    let full = || {
        let other = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap());
        matches!(other, Err(OpenError::Attach(Fault::TooManyPeers)))
    };
    assert!(full());
    fork_child(|| {
        assert!(full());
        // As itself it is one too many as well, which only an operation that needs a place finds
        // out.
        assert_eq!(shared.inbox.try_recv(), Err(TryRecvError::Failed(Fault::TooManyPeers)));
        assert_eq!(shared.open.wait_timeout(ms(1)), Err(Fault::TooManyPeers));
        shared.open.set();
        assert!(shared.open.wait_timeout(ms(1)).unwrap(), "what is set needs no waiting");
        *shared.till.lock().unwrap() += 1;
    })
    .succeeds();
    shared.work();
    let fd = shared.try_clone_fd().unwrap();
    drop(shared);
    // The place is free again: after an end by itself, and after each kind of death.
    for kind in ["drop", "exit", "_exit", "kill", "drop"] {
        let steps: &AtomicU32 = common::plain_shared();
        let child = fork_child(|| {
            let shared = Shared::<Office>::from_fd(fd.try_clone().unwrap()).unwrap();
            shared.work();
            match kind {
                "drop" => drop(shared),
                "_exit" => exit_now(0),
                "kill" => {
                    steps.reach(1);
                    sleep_for_ever();
                }
                _ => core::mem::forget(shared),
            }
        });
        if kind == "kill" {
            steps.until(1);
            child.kill9();
        } else {
            child.succeeds();
        }
    }
    Shared::<Office>::from_fd(fd).unwrap().work();
}

#[test]
fn one_thread_at_a_time() {
    let _watchdog = watch_alone("one_thread_at_a_time");
    let shared = Options::new().threads(1).anonymous(Office::new()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| shared.work()).join().unwrap();
        // Its place is free again as soon as it has ended.
        scope.spawn(|| shared.work()).join().unwrap();
    });
    shared.work();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert_eq!(shared.inbox.try_recv(), Err(TryRecvError::Failed(Fault::TooManyPeers)));
            assert!(shared.inbox.send(1).is_err());
            assert_eq!(shared.open.wait_timeout(ms(1)), Err(Fault::TooManyPeers));
            *shared.till.lock().unwrap() += 1;
        });
        other.join().unwrap();
    });
    shared.work();
}

/// Threads of one process that have ended keep no other thread out.
#[test]
fn places_of_ended_threads() {
    let shared = Options::new().threads(3).anonymous(Office::new()).unwrap();
    let _watchdog = watch("places_of_ended_threads", &shared);
    let barrier = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        let work = || {
            shared.work_alone();
            barrier.wait();
        };
        let threads = [(); 3].map(|()| scope.spawn(work));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    // No thread has a place now. Another process needs one.
    fork_child(|| shared.work_alone()).succeeds();
    shared.work_alone();
}

/// More threads one after the other than the table has places.
#[test]
fn many_threads_in_a_row() {
    let shared = Options::new().threads(4).anonymous(Office::new()).unwrap();
    let _watchdog = watch("many_threads_in_a_row", &shared);
    for _ in 0..100 {
        std::thread::scope(|scope| {
            let work = || assert_eq!(shared.inbox.try_recv(), Err(TryRecvError::Empty));
            // The end of the scope waits until they have returned; a join, until they have ended,
            // and left their places.
            let threads = [(); 3].map(|()| scope.spawn(work));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
    shared.work();
}

// ------------------------------------------------------------------------------------ lifetimes

#[test]
fn until_the_last_has_left() {
    in_own_process("until_the_last_has_left", || {
        let name = Name::new("until_the_last_has_left");
        let _watchdog = watch_alone("until_the_last_has_left");
        let steps: &AtomicU32 = common::plain_shared();
        // The last one is another process, which ends in this way or that.
        for (i, kind) in [(0, "drop"), (1, "exit"), (2, "kill")] {
            let shared = Shared::create(&name.0, Office::new()).unwrap();
            shared.work();
            let child = fork_child(|| {
                let own = Shared::<Office>::open(&name.0).unwrap();
                steps.reach(2 * i + 1);
                steps.until(2 * i + 2);
                own.work();
                match kind {
                    "drop" => {
                        drop(own);
                        // The copy of its parent's descriptor is what keeps it still.
                        assert!(name.exists());
                    }
                    "exit" => core::mem::forget(own),
                    _ => sleep_for_ever(),
                }
            });
            steps.until(2 * i + 1);
            drop(shared);
            assert!(name.exists());
            Shared::<Office>::open(&name.0).unwrap().work();
            steps.reach(2 * i + 2);
            if kind == "kill" {
                child.kill9();
            } else {
                child.succeeds();
            }
            assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)), "{kind}");
            assert!(!name.exists(), "{kind}");
        }
    });
}

/// All users were killed at the same time. The next creator finds the name free, and `reap` removes
/// it.
#[test]
fn all_are_killed() {
    in_own_process("all_are_killed", || {
        let name = Name::new("all_are_killed");
        let _watchdog = watch_alone("all_are_killed");
        for (round, then) in [(0, "create"), (1, "open"), (2, "reap"), (3, "open or create")] {
            let steps: &AtomicU32 = common::plain_shared();
            let children: Vec<_> = (0..4)
                .map(|_| {
                    fork_child(|| {
                        let shared = Shared::open_or_create(&name.0, Office::new).unwrap();
                        shared.work();
                        steps.fetch_add(1, SeqCst);
                        sleep_for_ever();
                    })
                })
                .collect();
            eventually("all have come", || steps.load(SeqCst) == 4);
            outlast::reap().unwrap();
            assert_eq!(
                *Shared::<Office>::open(&name.0).unwrap().till.lock().unwrap(),
                8,
                "{round}"
            );
            children.iter().for_each(|child| child.signal(libc::SIGKILL));
            children.into_iter().for_each(|child| assert_eq!(child.wait(), common::KILLED));
            match then {
                "create" => {
                    let shared = Shared::create(&name.0, Office::new()).unwrap();
                    assert_eq!(*shared.till.lock().unwrap(), 0);
                }
                "open" => {
                    assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
                }
                // Another test may be faster with it.
                "reap" => assert!(outlast::reap().is_ok()),
                _ => {
                    let shared = Shared::open_or_create(&name.0, Office::new).unwrap();
                    assert_eq!(*shared.till.lock().unwrap(), 0);
                }
            }
            assert!(!name.exists(), "after {then}");
        }
    });
}

/// The forked child has a copy of our descriptor, and so of our use: also if it is all that is
/// left.
#[test]
fn a_forked_child_is_a_user() {
    in_own_process("a_forked_child_is_a_user", || {
        let name = Name::new("a_forked_child_is_a_user");
        let _watchdog = watch_alone("a_forked_child_is_a_user");
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        let steps: &AtomicU32 = common::plain_shared();
        let child = fork_child(|| {
            steps.until(1);
            shared.work();
            Shared::<Office>::open(&name.0).unwrap().work();
        });
        drop(shared.clone());
        let gone = std::panic::AssertUnwindSafe(shared);
        drop(gone);
        steps.reach(1);
        child.succeeds();
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
    });
}

/// A child that has not executed its program yet has a copy of the parent's descriptor. The parent
/// waits for the child's end before it removes the name.
#[test]
fn a_child_about_to_execute_keeps_no_name() {
    in_own_process("a_child_about_to_execute_keeps_no_name", || {
        let name = Name::new("a_child_about_to_execute_keeps_no_name");
        let _watchdog = watch_alone("a_child_about_to_execute_keeps_no_name");
        let (mut dropped, mut created) = (0, 0);
        for _ in 0..40 {
            let steps: &AtomicU32 = common::plain_shared();
            let shared = Shared::create(&name.0, Lock::new(0_u64)).unwrap();
            // The child ends while the parent waits for it. (On a machine that is too busy, the
            // parent stops waiting before.)
            let child = fork_child(|| {
                steps.until(1);
                std::thread::sleep(ms(2));
                exit_now(0);
            });
            steps.reach(1);
            drop(shared);
            dropped += u32::from(!name.exists());
            child.succeeds();
            // The user was killed, and its child is about to execute a program.
            let killed = fork_child(|| {
                let shared = Shared::create(&name.0, Lock::new(0_u64)).unwrap();
                // SAFETY: the child only sleeps and ends.
                if unsafe { libc::fork() } == 0 {
                    std::thread::sleep(ms(20));
                    exit_now(0);
                }
                core::mem::forget(shared);
                exit_now(0);
            });
            killed.succeeds();
            created += u32::from(Shared::create(&name.0, Lock::new(0_u64)).is_ok());
            outlast::remove(&name.0).unwrap_or_default();
        }
        assert!(dropped >= 20, "{dropped} of 40 names went with the last user");
        assert!(created >= 20, "{created} of 40 names of dead users were free");
    });
}

/// The same with real programs, which two threads start again and again.
#[test]
fn names_go_beside_programs_that_start() {
    in_own_process("names_go_beside_programs_that_start", || {
        let name = Name::new("names_go_beside_programs_that_start");
        let _watchdog = watch_alone("names_go_beside_programs_that_start");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        assert!(std::process::Command::new("true").status().unwrap().success());
                    }
                });
            }
            let (rounds, mut stayed, mut refused) = (2_000, 0, 0);
            for _ in 0..rounds {
                match Shared::create(&name.0, Lock::new(0_u64)) {
                    Ok(shared) => drop(shared),
                    Err(OpenError::AlreadyExists) => refused += 1,
                    Err(other) => panic!("{other:?}"),
                }
                stayed += u32::from(name.exists());
            }
            done.store(true, SeqCst);
            // Some may: a machine that is busy enough lets a child wait for as long as we do.
            assert!(stayed + refused < rounds / 100, "{stayed} stayed, {refused} were refused");
        });
    });
}

/// Between the look at a name and the lock of its file, the name can come to mean another file,
/// which is in use.
#[cfg(outlast_hooks)]
#[test]
fn a_name_that_means_another_file_stays() {
    use outlast::hooks::{Action, clear, plan, visits};
    const POINT: &str = "names: about to lock";
    in_own_process("a_name_that_means_another_file_stays", || {
        let name = Name::new("a_name_that_means_another_file_stays");
        let _watchdog = watch_alone("a_name_that_means_another_file_stays");
        let steps: &AtomicU32 = common::plain_shared();
        let killed = fork_child(|| {
            core::mem::forget(Shared::create(&name.0, Office::new()).unwrap());
            exit_now(0);
        });
        killed.succeeds();
        // It has opened the file of the dead, which it may unlink, and is held before it locks it.
        let child = fork_child(|| {
            plan(POINT, Action::Hold);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    eventually("the name is looked up", || visits(POINT) > 0);
                    steps.reach(1);
                    steps.until(2);
                    clear();
                });
                Shared::<Office>::open(&name.0).unwrap().work();
            });
        });
        steps.until(1);
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        steps.reach(2);
        child.succeeds();
        assert!(name.exists());
        assert_eq!(*shared.till.lock().unwrap(), 2);
    });
}

/// What is done to the file lock of a descriptor that was handed on does not concern the process
/// that handed it on, nor the process that opened the segment by it.
#[test]
fn descriptors_handed_on_are_open_files_of_their_own() {
    in_own_process("descriptors_handed_on_are_open_files_of_their_own", || {
        let name = Name::new("descriptors_handed_on_are_open_files_of_their_own");
        let _watchdog = watch_alone("descriptors_handed_on_are_open_files_of_their_own");
        let give_up = |fd: &OwnedFd| {
            // SAFETY: takes no pointers.
            assert_eq!(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }, 0);
        };
        let is_in_use = || {
            let created = Shared::create(&name.0, Office::new());
            matches!(created, Err(OpenError::AlreadyExists))
        };
        let shared = Shared::create(&name.0, Office::new()).unwrap();
        let given = shared.try_clone_fd().unwrap();
        // On its way it is a use of the segment.
        let kept = given.try_clone().unwrap();
        drop(shared);
        assert!(is_in_use());
        // Opened, it is another.
        let opened = Shared::<Office>::from_fd(given).unwrap();
        give_up(&kept);
        assert!(is_in_use());
        let other = opened.try_clone_fd().unwrap();
        give_up(&other);
        assert!(is_in_use());
        opened.work();
        drop(opened);
        assert!(!name.exists());
    });
}

#[test]
fn reaping() {
    in_own_process("reaping", || {
        let _watchdog = watch_alone("reaping");
        let [used, kept, short, garbage] =
            ["used", "kept", "short", "garbage"].map(|name| Name::new(&format!("reaping, {name}")));
        let shared = Shared::create(&used.0, Office::new()).unwrap();
        drop(Options::new().lifetime(Lifetime::Persistent).create(&kept.0, Office::new()).unwrap());
        let killed = fork_child(|| {
            let dead = Shared::create(&garbage.0, Office::new()).unwrap();
            dead.till.lock().map(core::mem::forget).unwrap();
            exit_now(0);
        });
        killed.succeeds();
        fs::write(short.path(), "too short for a segment").unwrap();
        outlast::reap().unwrap();
        assert!(used.exists() && kept.exists());
        assert!(!garbage.exists() && !short.exists());
        shared.work();
        Shared::<Office>::open(&kept.0).unwrap().work();
        assert!(kept.exists());
    });
}

#[test]
fn removing() {
    in_own_process("removing", || {
        let name = Name::new("removing");
        let _watchdog = watch_alone("removing");
        assert!(matches!(outlast::remove(&name.0), Err(OpenError::NotFound)));
        let first = Shared::create(&name.0, Office::new()).unwrap();
        outlast::remove(&name.0).unwrap();
        assert!(!name.exists());
        // Its users carry on. A newcomer finds no segment, and may make another one.
        first.work();
        assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
        let second = Shared::create(&name.0, Office::new()).unwrap();
        second.work();
        // Its end is no end of the other one.
        drop(first);
        assert!(name.exists());
        assert_eq!(*Shared::<Office>::open(&name.0).unwrap().till.lock().unwrap(), 2);
        drop(second);
        assert!(!name.exists());
    });
}

#[test]
fn persistent() {
    in_own_process("persistent", || {
        let name = Name::new("persistent");
        let _watchdog = watch_alone("persistent");
        let create =
            || Options::new().lifetime(Lifetime::Persistent).create(&name.0, Office::new());
        let shared = create().unwrap();
        shared.work();
        shared.inbox.send_batch(&[1, 2]).unwrap();
        drop(shared);
        assert!(name.exists());
        assert!(matches!(create(), Err(OpenError::AlreadyExists)));
        assert!(matches!(Shared::<Event>::open(&name.0), Err(OpenError::OtherType { .. })));
        outlast::reap().unwrap();
        fork_child(|| {
            let shared = Shared::<Office>::open(&name.0).unwrap();
            assert_eq!(*shared.till.lock().unwrap(), 2);
            assert_eq!(shared.inbox.recv(), Ok(1));
        })
        .succeeds();
        let shared = Shared::open_or_create(&name.0, || -> Office { panic!("it exists") }).unwrap();
        assert_eq!(shared.inbox.drain(), [2]);
        outlast::remove(&name.0).unwrap();
        shared.work();
        drop(shared);
        assert!(!name.exists());
    });
}

/// All processes are killed in the middle of their work. The next process that opens the segment
/// finds it repaired.
#[test]
fn persistent_segments_heal() {
    in_own_process("persistent_segments_heal", || {
        let name = Name::new("persistent_segments_heal");
        let _watchdog = watch_alone("persistent_segments_heal");
        let options = Options::new().lifetime(Lifetime::Persistent);
        drop(options.create(&name.0, Office::new()).unwrap());
        for _ in 0..10 {
            let steps: &AtomicU32 = common::plain_shared();
            let path = &name.0;
            let victims: Vec<_> = (0..3)
                .map(|i| {
                    fork_child(move || {
                        let shared = Shared::<Office>::open(path).unwrap();
                        shared.inbox.send(10 + i).unwrap();
                        core::mem::forget(shared.inbox.recv_ack().unwrap());
                        steps.fetch_add(1, SeqCst);
                        match i {
                            0 => core::mem::forget(shared.till.lock()),
                            1 => {
                                // Behind it nothing gets through.
                                steps.until(4);
                                core::mem::forget(shared.inbox.loan().unwrap());
                            }
                            _ => {}
                        }
                        steps.fetch_add(1, SeqCst);
                        sleep_for_ever();
                    })
                })
                .collect();
            steps.until(6);
            victims.iter().for_each(|victim| victim.signal(libc::SIGKILL));
            victims.into_iter().for_each(|victim| assert_eq!(victim.wait(), common::KILLED));

            let shared = Shared::<Office>::open(&name.0).unwrap();
            let mut back: Vec<_> = (0..3)
                .map(|_| {
                    let delivery = shared.inbox.recv_ack_timeout(common::PATIENCE).unwrap();
                    assert_eq!(delivery.attempts(), 1);
                    delivery.ack().unwrap()
                })
                .collect();
            back.sort_unstable();
            assert_eq!(back, [10, 11, 12]);
            match shared.till.lock() {
                Err(LockError::OwnerDied(mut guard)) => {
                    outlast::LockGuard::mark_consistent(&mut guard)
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(shared.inbox.join_timeout(common::PATIENCE), Ok(true));
            (0..8).for_each(|n| shared.inbox.try_send(n).unwrap());
            assert_eq!(shared.inbox.drain().len(), 8);
        }
    });
}

/// Many processes create, open, use and leave segments of the same name, and some are killed. A
/// process shares its segment with all that have it open at that time. In the end nothing is left.
#[test]
fn coming_and_going() {
    in_own_process("coming_and_going", || {
        let name = Name::new("coming_and_going");
        let _watchdog = watch_alone("coming_and_going");
        for kills in [false, true] {
            let path = &name.0;
            let children: Vec<_> = (0..4)
                .map(|i| {
                    fork_child(move || {
                        let mut random = Random::new(i);
                        for _ in 0..60 {
                            let shared = Shared::open_or_create(path, Office::new).unwrap();
                            match shared.till.lock() {
                                Ok(mut guard) => *guard += 1,
                                Err(error) => {
                                    let mut guard = error.into_guard().unwrap();
                                    *guard += 1;
                                    outlast::LockGuard::mark_consistent(&mut guard);
                                }
                            }
                            shared.inbox.send(1).unwrap();
                            if random.below(3) == 0 {
                                std::thread::sleep(random.micros(500));
                            }
                            if kills && random.below(50) == 0 {
                                // SAFETY: takes no pointers.
                                unsafe { libc::raise(libc::SIGKILL) };
                            }
                            assert_eq!(shared.inbox.recv(), Ok(1));
                        }
                    })
                })
                .collect();
            for child in children {
                let exit = child.wait();
                assert!(exit == common::OK || kills && exit == common::KILLED, "{exit:?}");
            }
            assert!(matches!(Shared::<Office>::open(&name.0), Err(OpenError::NotFound)));
            assert!(!name.exists());
        }
    });
}

// --------------------------------------------------------------------------- what it leaves behind

/// What this process has open: descriptors, threads, and mappings of segments.
fn possessions() -> (usize, usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains("outlast")).count();
    (count("fd"), count("task"), mappings)
}

#[test]
fn nothing_is_left_behind() {
    common::in_own_process("nothing_is_left_behind", || {
        let name = Name::new("nothing_is_left_behind");
        let _watchdog = watch_alone("nothing_is_left_behind");
        // In a child, which no other test disturbs.
        let name = &name.0;
        fork_child(move || {
            let cycle = || {
                office().work();
                let shared = Shared::create(name, Office::new()).unwrap();
                let other = Shared::<Office>::open(name).unwrap();
                let third = Shared::<Office>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
                third.work();
                drop(shared);
                std::thread::scope(|scope| {
                    scope.spawn(|| other.work()).join().unwrap();
                    scope.spawn(|| third.work());
                });
                drop(Shared::anonymous(Lock::new(1_u8)).unwrap().lock().unwrap());
                drop(Shared::<Queue<u64>>::with_capacity(10).unwrap());
                // Failures as well.
                let fd = third.try_clone_fd().unwrap();
                assert!(matches!(Shared::<Event>::from_fd(fd), Err(OpenError::OtherType { .. })));
                assert!(matches!(Shared::<Event>::open(name), Err(OpenError::OtherType { .. })));
                let full = Options::new().processes(1).anonymous(Event::auto(true)).unwrap();
                assert!(Shared::<Event>::from_fd(full.try_clone_fd().unwrap()).is_err());
                assert!(Shared::create(name, Office::new()).is_err());
            };
            (0..3).for_each(|_| cycle());
            let before = possessions();
            (0..100).for_each(|_| cycle());
            // A thread may live for a moment longer than its scope, and so may the memory that it
            // has a token in: until the next opportunity.
            eventually("all is given back", || {
                drop(Shared::anonymous(Lock::new(1_u8)).unwrap());
                possessions() == before
            });
        })
        .succeeds();
    });
}

/// The last handle goes while another thread, which has a token in the segment, lives on: the
/// memory stays until that one has ended, and goes at the next opportunity.
#[test]
fn memory_that_stays_mapped() {
    common::in_own_process("memory_that_stays_mapped", || {
        let _watchdog = watch_alone("memory_that_stays_mapped");
        fork_child(|| {
            office().work();
            let (_, _, before) = possessions();
            for round in 0..20 {
                let shared = office();
                let (registered, go, gone) = (
                    std::sync::Arc::new(std::sync::Barrier::new(3)),
                    std::sync::mpsc::channel::<()>(),
                    std::sync::mpsc::channel::<()>(),
                );
                let ends = [go, gone].map(|(tell, told)| {
                    let (shared, registered) = (shared.clone(), registered.clone());
                    let thread = std::thread::spawn(move || {
                        assert_eq!(shared.inbox.try_recv(), Err(TryRecvError::Empty));
                        drop(shared);
                        registered.wait();
                        told.recv().unwrap_err();
                        // It uses another segment meanwhile, and again.
                        office().work();
                    });
                    (tell, thread)
                });
                registered.wait();
                drop(shared);
                assert_eq!(possessions().2, before + 1, "unmapped under the kernel's list");
                // Meanwhile life goes on.
                office().work();
                for (i, (tell, thread)) in ends.into_iter().enumerate() {
                    drop(tell);
                    thread.join().unwrap();
                    drop(office()); // the opportunity
                    if i == 0 {
                        assert_eq!(possessions().2, before + 1, "round {round}");
                    }
                }
                // The kernel marks a thread's token after `join` has returned, perhaps.
                eventually("it is unmapped", || {
                    drop(office());
                    possessions().2 == before
                });
            }
        })
        .succeeds();
    });
}

/// The other way round: a thread holds a token in two segments, and in one that is long gone.
#[test]
fn a_thread_with_several_tokens() {
    common::in_own_process("a_thread_with_several_tokens", || {
        let _watchdog = watch_alone("a_thread_with_several_tokens");
        fork_child(|| {
            let lasting = office();
            lasting.work();
            let (_, _, before) = possessions();
            let (tell, told) = std::sync::mpsc::channel::<Option<Shared<Office>>>();
            let thread = std::thread::spawn(move || {
                while let Some(shared) = told.recv().unwrap() {
                    let guard = shared.till.lock().unwrap();
                    shared.inbox.send(1).unwrap();
                    drop(guard);
                }
            });
            let mut segments = Vec::new();
            for _ in 0..10 {
                let shared = office();
                tell.send(Some(shared.clone())).unwrap();
                tell.send(Some(lasting.clone())).unwrap();
                assert_eq!(lasting.inbox.recv(), Ok(1));
                assert_eq!(shared.inbox.recv(), Ok(1));
                segments.push(shared);
            }
            // All go, in another order than they came, while the thread works elsewhere.
            let mut random = Random::new(4);
            while !segments.is_empty() {
                drop(segments.swap_remove(random.index(segments.len())));
                tell.send(Some(lasting.clone())).unwrap();
                assert_eq!(lasting.inbox.recv(), Ok(1));
            }
            // The thread gave up its tokens as it went on.
            assert_eq!(possessions().2, before);
            tell.send(None).unwrap();
            thread.join().unwrap();
            lasting.work();
        })
        .succeeds();
    });
}

/// In a child of a fork, the copies of the parent's graves and handles do no harm.
#[test]
fn dropping_in_a_child() {
    let shared = office();
    let _watchdog = watch("dropping_in_a_child", &shared);
    shared.work();
    let mut mine = Some(office());
    mine.as_ref().unwrap().work();
    for used_before in [false, true] {
        fork_child(|| {
            if used_before {
                mine.as_ref().unwrap().work();
            }
            drop(mine.take());
            shared.work();
            office().work();
        })
        .succeeds();
        mine.as_ref().unwrap().work();
        shared.work();
    }
}

/// A child that is forked while another thread makes its first use of the crate must be able to use
/// it as well.
#[test]
fn forked_beside_a_first_use() {
    if let Some(part) = my_part() {
        let mut random = Random::new(part.parse().unwrap());
        let first = std::thread::spawn(|| {
            let shared = Shared::anonymous(Lock::new(0_u8)).unwrap();
            let guard = shared.lock().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(shared.lock_timeout(Duration::from_micros(50)).is_err()));
            });
            drop(guard);
            office().work();
        });
        common::busy(random.micros(600));
        fork_child(|| {
            // SAFETY: takes no pointers. Its end comes sooner than usual.
            unsafe { libc::alarm(10) };
            office().work();
        })
        .succeeds();
        first.join().unwrap();
        part_is_done();
    }
    let _watchdog = watch_alone("forked_beside_a_first_use");
    for seed in 0..150 {
        let part = format!("{seed}");
        start_again("forked_beside_a_first_use", &part, |_| {}).has_played();
    }
}

/// A child that is forked while other threads start and end must be able to become a peer, which
/// takes a thread.
#[test]
fn forked_beside_starting_threads() {
    struct StopAtEnd<'a>(&'a AtomicU32);
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.reach(1);
        }
    }
    in_own_process("forked_beside_starting_threads", || {
        let shared = office();
        let _watchdog = watch("forked_beside_starting_threads", &shared);
        let stop = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for _ in 0..3 {
                scope.spawn(|| {
                    while stop.load(SeqCst) == 0 {
                        std::thread::spawn(|| {}).join().unwrap();
                    }
                });
            }
            for _ in 0..500 {
                fork_child(|| {
                    // SAFETY: takes no pointers. Its end comes sooner than usual.
                    unsafe { libc::alarm(20) };
                    shared.work();
                })
                .succeeds();
            }
        });
    });
}
