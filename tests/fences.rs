//! A thread that commits a message or releases a lock makes no fence: the sleeper pays for both
//! fences. No wake is lost between the two, also where the system call for this is not allowed.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "seccomp")]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{Child, Random, filter_calls, fork_child, my_part, part_is_done, start_again, watch};
use outlast::spsc::FixedRing;
use outlast::{CommandExt as _, FixedQueue, Lock, Queue, RecvError, Shared, Spin};
use std::os::unix::process::CommandExt as _;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A value so long that the commit behind it is still in the CPU's store buffer at the next load.
type Ball = [u64; 128];

outlast::shared! {
    #[derive(Debug)]
    struct Court { there: FixedQueue<Ball, 1>, back: FixedQueue<Ball, 1>, ring: FixedRing<Ball, 1>, answers: FixedRing<Ball, 1>, lock: Lock<Ball>, taken: AtomicU64 }
}

fn court() -> Shared<Court> {
    let (there, back) = (FixedQueue::new(), FixedQueue::new());
    let (ring, answers) = (FixedRing::new(), FixedRing::new());
    let (lock, taken) = (Lock::new([0; 128]), AtomicU64::new(0));
    Shared::anonymous(Court { there, back, ring, answers, lock, taken }).unwrap()
}

/// The calling thread runs on this CPU, if it may: two on one CPU never meet.
fn stay_on(cpu: usize) {
    // SAFETY: a set of bits, for which zeros are a value.
    let mut only: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: `cpu` is less than the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut only) };
    // SAFETY: the set is live and of that size.
    unsafe { libc::sched_setaffinity(0, size_of_val(&only), &raw const only) };
}

/// A thread ends on the CPU that the calling one stays on: Linux 6.18 then leaves that CPU out of
/// `membarrier`, until another process has run there.
fn leave_a_thread_behind() {
    std::thread::spawn(|| {}).join().unwrap();
}

/// Waits sleep immediately, after a pause of about the time in which the other process is woken and
/// commits.
fn play(court: &Court, serves: bool, rounds: u64) {
    Spin::Never.set();
    stay_on(usize::from(serves));
    let mut random = Random::new(u64::from(serves));
    let counted = || {
        (0..rounds).inspect(|i| {
            if i.is_multiple_of(50) {
                leave_a_thread_behind();
            }
        })
    };
    let mut hesitate = || (0..random.below(1_500)).for_each(|_| core::hint::spin_loop());
    for i in counted().map(|i| [i; 128]) {
        hesitate();
        if serves {
            court.there.send(i).unwrap();
            hesitate();
            assert_eq!(court.back.recv(), Ok(i));
        } else {
            assert_eq!(court.there.recv(), Ok(i));
            hesitate();
            court.back.send(i).unwrap();
        }
    }
    let (sends, receives) =
        if serves { (&court.ring, &court.answers) } else { (&court.answers, &court.ring) };
    let (producer, consumer) = (sends.producer().unwrap(), receives.consumer().unwrap());
    for i in counted().map(|i| [i; 128]) {
        hesitate();
        if serves {
            producer.send(i).unwrap();
        }
        assert_eq!(consumer.recv().unwrap(), i);
        if !serves {
            hesitate();
            producer.send(i).unwrap();
        }
    }
    for i in counted() {
        // The other one has the lock, and will not come back before this one had it.
        let before = 2 * i + u64::from(!serves);
        while court.taken.load(SeqCst) < before {
            core::hint::spin_loop();
        }
        let mut ball = court.lock.lock().unwrap();
        court.taken.store(before + 1, SeqCst);
        hesitate();
        *ball = [before + 1; 128];
    }
}

const ROUNDS: u64 = 15_000;

#[test]
fn no_wake_is_lost_between_a_commit_and_a_sleep() {
    common::worlds(
        "no_wake_is_lost_between_a_commit_and_a_sleep",
        "court",
        2,
        court,
        |court, role| play(court, role == 0, ROUNDS),
        |court| assert_eq!(*court.lock.lock().unwrap(), [2 * ROUNDS; 128]),
    );
}

/// From here on the process, and what it executes, cannot call `membarrier`.
fn forbid_membarrier() -> std::io::Result<()> {
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    filter_calls(&mut [
        load(),
        pass_over_if(1, libc::SYS_membarrier),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(refuse),
    ])?;
    // SAFETY: takes no pointers.
    let allowed = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) } >= 0;
    assert!(!allowed, "the filter does not hold");
    Ok(())
}

/// A process that never could make others fence, and a process that cannot any more, against one
/// that does not fence for itself.
#[test]
fn in_a_sandbox_without_membarrier() {
    const NAME: &str = "in_a_sandbox_without_membarrier";
    const ROUNDS: u64 = 300;
    if let Some(part) = my_part() {
        let court = Shared::<Court>::inherited("court").unwrap();
        play(&court, part == "serves", ROUNDS);
        part_is_done();
    }
    for serves in [false, true] {
        let court = court();
        let _watchdog = watch(NAME, &court);
        let sandboxed = start_again(NAME, if serves { "serves" } else { "answers" }, |command| {
            command.share("court", &court);
            // SAFETY: makes system calls, and allocates nothing.
            unsafe { command.pre_exec(forbid_membarrier) };
        });
        fork_child(|| play(&court, !serves, ROUNDS)).succeeds();
        sandboxed.has_played();
    }
    for serves in [false, true] {
        let court = self::court();
        let _watchdog = watch(NAME, &court);
        let sandboxed = fork_child(|| {
            forbid_membarrier().unwrap();
            play(&court, serves, ROUNDS);
        });
        let free = fork_child(|| play(&court, !serves, ROUNDS));
        [sandboxed, free].into_iter().for_each(Child::succeeds);
    }
}

/// The verdict that a queue is closed and empty needs such a fence as well.
#[test]
fn closed_in_a_sandbox() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("closed_in_a_sandbox", &queue);
    queue.send(1).unwrap();
    queue.close();
    let reader = || {
        assert_eq!(queue.recv(), Ok(1));
        assert_eq!(queue.recv(), Err(RecvError::Closed));
    };
    fork_child(|| {
        forbid_membarrier().unwrap();
        reader();
    })
    .succeeds();
}

/// A waiter makes the kernel fence for the owner, which does not fence itself. It does so between
/// its two looks at the word, before it sleeps.
#[cfg(not(outlast_pthread))]
#[test]
fn a_waiter_has_the_kernel_fence_for_the_owner() {
    let shared = court();
    let _watchdog = watch("a_waiter_has_the_kernel_fence_for_the_owner", &shared);
    let ends = || {
        let child = fork_child(|| {
            Spin::Never.set();
            // The first lock of a process may make further calls.
            drop(Shared::anonymous(Lock::new(0_u8)).unwrap().lock().unwrap());
            let filtered = filter_calls(&mut [
                load(),
                pass_over_if(1, libc::SYS_membarrier),
                answer(libc::SECCOMP_RET_ALLOW),
                answer(libc::SECCOMP_RET_KILL_PROCESS),
            ]);
            filtered.unwrap();
            drop(shared.lock.lock_timeout(common::ms(20)));
        });
        child.wait()
    };
    let guard = shared.lock.lock().unwrap();
    assert_eq!(ends(), common::Exit::Signal(libc::SIGSYS));
    drop(guard);
    assert_eq!(ends(), common::OK, "a lock that is free needs no fence");
}
