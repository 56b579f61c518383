//! A process becomes another program by a call of exec: all that it held is given back.
//!
//! If the thread that calls exec is not the first of its process, the kernel marks nothing that the
//! thread held: it gives the thread the process's id first, and then looks for words with that id.
#![cfg(not(outlast_loom))]
mod common;

use common::{Child, ms, my_part, start_again};
use outlast::{
    Event, FixedQueue, Lock, LockError, OnceCell, OwnedSemaphore, ReentrantLock, RwLock, Shared,
};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

outlast::shared! {
    #[derive(Debug)]
    struct World {
        lock: Lock<u64>,
        reentrant: ReentrantLock<u64>,
        rwlock: RwLock<u64>,
        once: OnceCell<u64>,
        permits: OwnedSemaphore,
        jobs: FixedQueue<u64, 4>,
        ready: Event,
    }
}

/// Robust mutexes of the C library stay locked.
const LOCKS_ARE_FREED: bool = cfg!(not(outlast_pthread));

fn become_another_program() -> ! {
    panic!("{}", Command::new("/bin/sleep").arg("60").exec());
}

/// Plays a process that calls exec while it holds what `part` names, from another thread than its
/// first.
fn play(part: &str) {
    let world = Shared::<World>::inherited("world").unwrap();
    let body = || {
        match part {
            "lock" => core::mem::forget(world.lock.lock().unwrap()),
            "reentrant" => core::mem::forget(world.reentrant.lock().unwrap()),
            "write" => core::mem::forget(world.rwlock.write().unwrap()),
            "read" => core::mem::forget(world.rwlock.read().unwrap()),
            "once" => {
                let made = world.once.get_or_init(|| {
                    world.ready.set();
                    become_another_program()
                });
                panic!("{made:?}");
            }
            "permit" => core::mem::forget(world.permits.acquire().unwrap()),
            "job" => core::mem::forget(world.jobs.recv_ack().unwrap()),
            // A peer whose thread has a token, and holds nothing.
            "peer" => world.jobs.send(8).unwrap(),
            other => panic!("{other}"),
        }
        world.ready.set();
        become_another_program()
    };
    std::thread::scope(|scope| drop(scope.spawn(body).join()));
    unreachable!("exec failed");
}

fn start(name: &str, part: &str) -> (Shared<World>, Child) {
    let world = Shared::anonymous(World {
        lock: Lock::new(0),
        reentrant: ReentrantLock::new(0),
        rwlock: RwLock::new(0),
        once: OnceCell::new(),
        permits: OwnedSemaphore::new(1),
        jobs: FixedQueue::new(),
        ready: Event::manual(false),
    });
    let world = world.unwrap();
    world.jobs.send(7).unwrap();
    let child = start_again(name, part, |command| {
        outlast::CommandExt::share(command, "world", &world);
    });
    (world, child)
}

/// Waits until the child has executed another program. Then no thread has the id of the thread that
/// called `exec`.
fn until_another_program(child: &Child) {
    common::eventually("the child is another program", || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", child.pid));
        name.is_ok_and(|name| name == "sleep\n")
    });
}

#[test]
fn exec_from_another_thread_gives_locks_back() {
    const NAME: &str = "exec_from_another_thread_gives_locks_back";
    if let Some(part) = my_part() {
        play(&part);
    }
    if !LOCKS_ARE_FREED {
        return;
    }
    let parts =
        ["lock", "reentrant", "write", "read", "once"].map(|part| (part, start(NAME, part)));
    for (part, (world, child)) in parts {
        let _watchdog = common::watch(part, &world);
        world.ready.wait().unwrap();
        until_another_program(&child);
        match part {
            "lock" => assert!(matches!(world.lock.lock(), Err(LockError::OwnerDied(_)))),
            "reentrant" => {
                assert!(matches!(world.reentrant.lock(), Err(LockError::OwnerDied(_))));
            }
            "write" => assert!(matches!(world.rwlock.read(), Err(LockError::OwnerDied(_)))),
            "read" => assert!(world.rwlock.write().is_ok()),
            _ => assert_eq!(world.once.get_or_init(|| 5), Ok(&5)),
        }
        child.kill9(); // it was alive, as another program
    }
}

/// What the process owns as a peer comes back as well, and peers recover from other deaths
/// meanwhile.
#[test]
fn exec_from_another_thread_is_the_end_of_a_peer() {
    const NAME: &str = "exec_from_another_thread_is_the_end_of_a_peer";
    if let Some(part) = my_part() {
        play(&part);
    }
    let parts = ["permit", "job", "peer"].map(|part| (part, start(NAME, part)));
    for (part, (world, child)) in parts {
        let _watchdog = common::watch(part, &world);
        world.ready.wait().unwrap();
        until_another_program(&child);
        match part {
            "permit" if LOCKS_ARE_FREED => drop(world.permits.acquire().unwrap()),
            "permit" => {}
            "job" => assert_eq!(world.jobs.recv_ack().unwrap().attempts(), 1),
            _ => {
                // Another peer dies with a delivery.
                let dies = common::fork_child(|| {
                    core::mem::forget(world.jobs.recv_ack().unwrap());
                    common::exit_now(0);
                });
                dies.succeeds();
                let jobs = [(); 2].map(|()| world.jobs.recv_ack().unwrap());
                assert_eq!(jobs.map(|job| job.attempts()).iter().sum::<u32>(), 1);
            }
        }
        // A newcomer finds nothing that is left to do.
        let there = Shared::<World>::from_fd(world.try_clone_fd().unwrap()).unwrap();
        drop(there);
        child.kill9();
    }
}

/// A wait of less than a second asks at its end.
#[test]
fn a_short_wait_gives_a_lock_back() {
    const NAME: &str = "a_short_wait_gives_a_lock_back";
    if let Some(part) = my_part() {
        play(&part);
    }
    if !LOCKS_ARE_FREED {
        return;
    }
    let (world, child) = start(NAME, "lock");
    let _watchdog = common::watch(NAME, &world);
    world.ready.wait().unwrap();
    until_another_program(&child);
    assert!(matches!(world.lock.lock_timeout(ms(50)), Err(LockError::OwnerDied(_))));
    child.kill9();
}
