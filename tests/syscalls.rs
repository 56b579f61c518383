//! Nobody waits, so nobody calls the kernel: seccomp kills whoever does.
//!
//! On objects that were never contended. Only the thread that works is confined: a sentinel, which sleeps in a call that it began
//! earlier, is another thread. (Seccomp's strict mode would kill the thread alone, and let it end alone; the process
//! would live on with its sentinel. So this is a filter with the same effect on the whole process; strict mode is used where there is none.)
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "seccomp")]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{Exit, KILLED, OK, filter_calls, fork_child, watch_alone};
use core::time::Duration;
use outlast::{Event, FixedQueue, Lock, Queue, Shared, TryRecvError};

const ROUNDS: u64 = 10_000;

outlast::shared! {
    #[derive(Debug)]
    struct All { locks: [Lock<u64>; 3], manual: Event, auto: Event, queue: FixedQueue<u64, 8> }
}

fn all() -> Shared<All> {
    Shared::anonymous(All {
        locks: core::array::from_fn(|_| Lock::new(0)),
        manual: Event::manual(false),
        auto: Event::auto(false),
        queue: FixedQueue::new(),
    })
    .unwrap()
}

/// From here on every call but `exit` and `exit_group` kills the process.
fn allow_nothing() {
    let filtered = filter_calls(&mut [
        load(),
        pass_over_if(2, libc::SYS_exit_group),
        pass_over_if(1, libc::SYS_exit),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    filtered.expect("seccomp is available");
}

/// Ends the calling thread by the one call that strict mode allows for it.
fn exit_thread() -> ! {
    loop {
        // SAFETY: ends the only thread of the process.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Runs `body` once to warm up, and then `ROUNDS` times without the kernel; how that process ended.
fn without_the_kernel(body: impl Fn(u64)) -> Exit {
    fork_child(|| {
        (0..3).for_each(&body);
        allow_nothing();
        (0..ROUNDS).for_each(&body);
        common::exit_now(0);
    })
    .wait()
}

#[track_caller]
fn makes_no_call(body: impl Fn(u64)) {
    assert_eq!(without_the_kernel(&body), OK, "it called the kernel (31 is SIGSYS)");
    // The control: it is watched, to the last round.
    let control = without_the_kernel(|i| {
        body(i);
        if i == ROUNDS - 1 {
            call_the_kernel();
        }
    });
    assert_eq!(control, Exit::Signal(libc::SIGSYS), "the watch was asleep");
}

fn call_the_kernel() {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() };
}

/// As the brief of seccomp's first mode has it: nothing but read, write and exit. For a process of one thread.
#[test]
fn a_lock_in_strict_mode() {
    let shared = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let _watchdog = common::watch("a_lock_in_strict_mode", &shared);
    for calls in [false, true] {
        let child = fork_child(|| {
            let round = || {
                *shared.lock().unwrap() += 1;
                *shared.try_lock().unwrap() += 1;
            };
            round();
            // SAFETY: takes no pointers.
            let r = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
            assert_eq!(r, 0, "seccomp is not available");
            (0..ROUNDS).for_each(|_| round());
            if calls {
                call_the_kernel();
            }
            exit_thread();
        });
        assert_eq!(child.wait(), if calls { KILLED } else { OK });
    }
    assert_eq!(*shared.lock().unwrap(), 4 * (ROUNDS + 1));
}

#[test]
fn locks() {
    let shared = all();
    let _watchdog = common::watch("locks", &shared);
    let lock = &shared.locks[0];
    makes_no_call(|_| *lock.lock().unwrap() += 1);
    makes_no_call(|_| *lock.try_lock().unwrap() += 1);
    makes_no_call(|_| *lock.lock_timeout(Duration::from_secs(1)).unwrap() += 1);
    // Nested, given up in both orders.
    makes_no_call(|i| {
        let [first, second, third] = &shared.locks;
        let first = first.lock().unwrap();
        let second = second.lock().unwrap();
        let third = third.try_lock().unwrap();
        if i % 2 == 0 {
            drop(first);
            drop(third);
            drop(second);
        }
    });
    // A lock that one holds oneself.
    makes_no_call(|_| {
        let guard = lock.lock().unwrap();
        assert!(lock.try_lock().is_err());
        drop(guard);
    });
}

/// The child of a fork that has segments which it does not use: its locks are taken on a longer way, and not by the kernel.
#[test]
fn locks_beside_other_segments() {
    let (shared, other) = (all(), all());
    let _watchdog = common::watch("locks_beside_other_segments", &shared);
    makes_no_call(|_| {
        *shared.locks[0].lock().unwrap() += 1;
        *shared.locks[1].try_lock().unwrap() += 1;
    });
    drop(other);
}

#[test]
fn locks_taken_eagerly() {
    let shared = all();
    let _watchdog = common::watch("locks_taken_eagerly", &shared);
    makes_no_call(|_| {
        outlast::lock::set_eager(true);
        *shared.locks[0].lock().unwrap() += 1;
    });
}

#[test]
fn events() {
    let shared = all();
    let _watchdog = common::watch("events", &shared);
    for event in [&shared.manual, &shared.auto] {
        makes_no_call(|_| {
            event.set();
            assert!(event.is_set());
            event.set();
            event.reset();
            assert!(!event.is_set());
            event.reset();
        });
        // What is set needs no waiting.
        makes_no_call(|_| {
            event.set();
            event.wait().unwrap();
            event.reset();
        });
    }
}

/// A timeout of nothing is a look, without spinning, yielding or sleeping. (The time is read without the kernel.)
#[test]
fn polls() {
    let shared = all();
    let _watchdog = common::watch("polls", &shared);
    let nothing = Duration::ZERO;
    makes_no_call(|_| assert!(!shared.auto.wait_timeout(nothing).unwrap()));
    makes_no_call(|_| assert!(!shared.manual.wait_timeout(nothing).unwrap()));
    makes_no_call(|_| assert!(shared.queue.recv_timeout(nothing).is_err()));
    makes_no_call(|_| assert!(shared.queue.recv_ack_timeout(nothing).is_err()));
    makes_no_call(|_| assert_eq!(shared.queue.join_timeout(nothing), Ok(true)));
}

fn rounds_of_a_queue(queue: &Queue<u64>) {
    makes_no_call(|i| {
        queue.send(i).unwrap();
        queue.try_send(i + 1).unwrap();
        assert_eq!(queue.recv(), Ok(i));
        assert_eq!(queue.try_recv(), Ok(i + 1));
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    });
    // To the brim.
    makes_no_call(|i| {
        (0..queue.capacity() as u64).for_each(|n| queue.send(i + n).unwrap());
        assert!(queue.try_send(0).is_err());
        (0..queue.capacity() as u64).for_each(|n| assert_eq!(queue.recv(), Ok(i + n)));
    });
    makes_no_call(|i| {
        queue.send(i).unwrap();
        let delivery = queue.recv_ack().unwrap();
        assert_eq!(delivery.ack(), Ok(i));
        assert!(queue.try_recv_ack().is_err());
    });
    makes_no_call(|i| {
        let mut loan = queue.loan().unwrap();
        *loan = i;
        loan.send().unwrap();
        assert_eq!(*queue.recv_ref().unwrap(), i);
    });
    makes_no_call(|i| {
        queue.send_timeout(i, Duration::from_secs(1)).unwrap();
        assert_eq!(queue.recv_timeout(Duration::from_secs(1)), Ok(i));
        assert!((queue.is_empty(), queue.is_full(), queue.len()) == (true, false, 0));
    });
}

#[test]
fn queues() {
    let shared = all();
    let _watchdog = common::watch("queues", &shared);
    rounds_of_a_queue(&shared.queue);
    for capacity in [1, 3].map(|n| n + 1) {
        let queue = Shared::<Queue<u64>>::anonymous_queue(capacity).unwrap();
        rounds_of_a_queue(&queue);
    }
}

/// The way back: a nack, a loan that is dropped. They wake nobody who is not there.
#[test]
fn giving_back() {
    let shared = all();
    let _watchdog = watch_alone("giving_back");
    makes_no_call(|i| {
        shared.queue.send(i).unwrap();
        shared.queue.recv_ack().unwrap().nack();
        assert_eq!(shared.queue.recv_ack().unwrap().ack(), Ok(i));
        drop(shared.queue.loan().unwrap());
    });
}
