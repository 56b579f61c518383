//! Forks, and what a forked child has to do with the segments that it was born with.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "forks, limits and namespaces")]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{OK, exit_now, filter_calls, fork_child, in_own_process, ms};
use core::cell::RefCell;
use outlast::{
    Condition, Event, Fault, FixedQueue, Lock, LockError, OpenError, OwnedSemaphore, ReentrantLock,
    RwLock, Semaphore, Shared,
};
use std::io;

outlast::shared! {
    #[derive(Debug)]
    struct Locks { lock: Lock<u64>, rwlock: RwLock<u64>, reentrant: ReentrantLock<u64>, queue: FixedQueue<u64, 4> }
}

fn locks() -> Shared<Locks> {
    let locks = Shared::anonymous(Locks {
        lock: Lock::new(0),
        rwlock: RwLock::new(0),
        reentrant: ReentrantLock::new(0),
        queue: FixedQueue::new(),
    });
    locks.unwrap()
}

fn die() -> ! {
    // SAFETY: takes no pointers.
    let me = unsafe { libc::getpid() };
    // SAFETY: as above.
    unsafe { libc::kill(me, libc::SIGKILL) };
    common::sleep_for_ever()
}

/// A child changes a guarded value in one segment, and dies before it notifies the threads that
/// wait in another.
#[test]
fn a_forked_child_is_a_peer_of_all_its_segments() {
    let ways: [fn(&Locks); 3] = [
        |locks| *locks.lock.lock().unwrap() = 1,
        |locks| *locks.rwlock.write().unwrap() = 1,
        |locks| locks.reentrant.lock().unwrap().set(1),
    ];
    for (i, change) in ways.into_iter().enumerate() {
        let (guarded, condition, beside) = (
            locks(),
            Shared::anonymous(Condition::new()).unwrap(),
            Shared::anonymous(Lock::new(0_u64)).unwrap(),
        );
        let _watchdog = common::watch(&format!("way {i}"), &guarded);
        let waiter = fork_child(|| {
            let mut guard = beside.lock().unwrap();
            let mut seen = 0;
            while seen == 0 {
                guard = condition.wait(guard).unwrap(); // as long as it takes
                seen = *guarded.lock.lock().unwrap_or_else(|error| error.into_guard().unwrap())
                    + *guarded.rwlock.read().unwrap_or_else(|error| error.into_guard().unwrap())
                    + guarded.reentrant.lock().unwrap().get();
            }
            assert_eq!((seen, *guard), (1, 0));
        });
        waiter.until_waiting();
        std::thread::sleep(ms(50));
        let dies = fork_child(|| {
            change(&guarded);
            die();
        });
        assert_eq!(dies.wait(), common::KILLED);
        waiter.succeeds();
    }
}

/// Runs `body` in a child in a new PID namespace. Does nothing without the right to make one.
fn fork_elsewhere(body: impl FnOnce()) {
    // SAFETY: takes no pointers. For children of this process only.
    if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
        return;
    }
    // SAFETY: as in `fork_child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(body));
        exit_now(if outcome.is_ok() { 0 } else { 101 });
    }
    let mut status = 0;
    // SAFETY: writes to the live variable.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((reaped, status), (pid, 0), "the child failed");
}

/// Thread ids mean other threads there: the child is refused, until it has let go of what it was
/// born with.
#[test]
fn a_child_in_another_pid_namespace_is_refused() {
    const NAME: &str = "a_child_in_another_pid_namespace_is_refused";
    in_own_process(NAME, || {
        let _watchdog = common::watch_alone(NAME);
        let (shared, alone) = (locks(), Shared::anonymous(Lock::new(0_u64)).unwrap());
        let event = Shared::anonymous(Event::manual(false)).unwrap();
        shared.queue.send(7).unwrap();
        let guard = shared.reentrant.lock().unwrap();
        let handles = RefCell::new(Some((shared.clone(), alone, event.clone())));
        fork_elsewhere(|| {
            let (shared, alone, event) = handles.take().unwrap();
            let refused = LockError::<()>::Failed(Fault::OtherPidNamespace);
            let say = |error: &dyn core::fmt::Display| error.to_string();
            assert_eq!(say(&shared.lock.lock().unwrap_err()), say(&refused));
            assert_eq!(say(&shared.lock.try_lock().unwrap_err()), say(&refused));
            assert_eq!(say(&shared.rwlock.read().unwrap_err()), say(&refused));
            assert_eq!(say(&shared.rwlock.try_write().unwrap_err()), say(&refused));
            assert_eq!(say(&shared.reentrant.lock().unwrap_err()), say(&refused));
            assert_eq!(say(&alone.lock().unwrap_err()), say(&refused));
            assert!(shared.queue.recv().is_err());
            assert!(shared.queue.send(1).is_err());
            let opened = Shared::anonymous(Semaphore::new(1));
            assert!(matches!(opened, Err(OpenError::Attach(Fault::OtherPidNamespace))));
            event.set(); // needs no peer
            drop((shared, alone, event));
        });
        assert!(event.is_set() || handles.borrow().is_some());
        drop(guard);
        assert_eq!(shared.queue.recv(), Ok(7));
        assert_eq!(*shared.lock.lock().unwrap(), 0);
    });
}

/// Once the inherited handles are gone, the child is a process like any other.
#[test]
fn a_child_in_another_pid_namespace_makes_segments_of_its_own() {
    const NAME: &str = "a_child_in_another_pid_namespace_makes_segments_of_its_own";
    in_own_process(NAME, || {
        let _watchdog = common::watch_alone(NAME);
        let handles = RefCell::new(Some((locks(), Shared::anonymous(Lock::new(0_u64)).unwrap())));
        fork_elsewhere(|| {
            drop(handles.take());
            let own = locks();
            *own.lock.lock().unwrap() += 1;
            own.queue.send(1).unwrap();
            assert_eq!(own.queue.recv(), Ok(1));
            let there = Shared::<Locks>::from_fd(own.try_clone_fd().unwrap()).unwrap();
            assert_eq!(*there.lock.lock().unwrap(), 1);
        });
    });
}

fn fork_and_reap() {
    // SAFETY: takes nothing; the child ends immediately.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        exit_now(7);
    }
    let mut status = 0;
    // SAFETY: writes to the live variable.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(libc::WEXITSTATUS(status), 7);
}

extern "C" fn fork_at_exit() {
    fork_and_reap();
}

struct ForksWhenDropped;

impl Drop for ForksWhenDropped {
    fn drop(&mut self) {
        fork_and_reap();
    }
}

thread_local! {
    static FORKS_LAST: RefCell<Option<ForksWhenDropped>> = const { RefCell::new(None) };
}

/// A thread forks, and forks once more when its thread-locals are gone; the first one in an exit
/// handler, too.
#[test]
fn a_thread_forks_as_it_ends() {
    const NAME: &str = "a_thread_forks_as_it_ends";
    in_own_process(NAME, || {
        let _watchdog = common::watch_alone(NAME);
        let shared = locks();
        let ends = std::thread::spawn(move || {
            FORKS_LAST.set(Some(ForksWhenDropped));
            *shared.lock.lock().unwrap() += 1;
            fork_and_reap();
        });
        ends.join().unwrap();
        FORKS_LAST.set(Some(ForksWhenDropped));
        // SAFETY: a function of this program.
        unsafe { libc::atexit(fork_at_exit) };
        fork_and_reap();
    });
}

/// Where no thread can be started, that is the error.
#[test]
fn a_sentinel_that_cannot_be_started() {
    let semaphore = Shared::anonymous(OwnedSemaphore::new(1)).unwrap();
    let _watchdog = common::watch("a_sentinel_that_cannot_be_started", &semaphore);
    let child = fork_child(|| {
        let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EAGAIN).unwrap();
        let filtered = filter_calls(&mut [
            load(),
            pass_over_if(2, libc::SYS_clone3),
            pass_over_if(1, libc::SYS_clone),
            answer(libc::SECCOMP_RET_ALLOW),
            answer(refused),
        ]);
        filtered.expect("seccomp is available");
        let failed = semaphore.try_acquire().map(drop);
        assert_eq!(failed, Err(Fault::NoSentinel { errno: libc::EAGAIN }));
        let why = Fault::NoSentinel { errno: libc::EAGAIN }.to_string();
        assert!(why.contains("Resource temporarily unavailable"), "{why}");
    });
    assert_eq!(child.wait(), OK);
}
