//! Where no thread waits, no thread makes a system call. Seccomp kills a process that makes one.
//!
//! This holds for objects that were never contended. Only the working thread is confined, not the
//! sentinel, which sleeps in a call that it began earlier. (Seccomp's strict mode would kill and
//! end the thread alone, and the process would live on with its sentinel. So this is a filter with
//! the same effect on the whole process. Strict mode is used where there is no sentinel.)
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "seccomp")]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{Exit, KILLED, OK, filter_calls, fork_child, watch_alone};
use core::time::Duration;
use outlast::spsc::FixedRing;
use outlast::{
    Barrier, Channel, Condition, Event, FixedByteQueue, FixedPipe, FixedPriorityQueue, FixedQueue,
    Latch, Lock, Once, OnceCell, Options, OwnedSemaphore, Queue, ReentrantLock, RwLock, Semaphore,
    Shared, TryRecvError,
};

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

/// As the brief of seccomp's first mode has it: nothing but read, write and exit. For a process of
/// one thread.
#[test]
fn a_lock_in_strict_mode() {
    // Where no other test has segments with peers: the child would become a peer of those, too, and
    // have a sentinel.
    common::in_own_process("a_lock_in_strict_mode", strict_mode);
}

fn strict_mode() {
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
    // Nested, released in both orders.
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

/// The child of a fork that has segments which it does not use: its locks are taken on a longer
/// way, and not by the kernel.
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

/// A timeout of nothing is a look, without spinning, yielding or sleeping. (The time is read
/// without the kernel.)
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
    // Another process has the lock, or the turn to make the value. A mutex of the C library calls
    // the kernel.
    if cfg!(not(outlast_pthread)) {
        let _guard = shared.locks[0].lock().unwrap();
        makes_no_call(|_| assert!(shared.locks[0].try_lock().is_err()));
        makes_no_call(|_| assert!(shared.locks[0].lock_timeout(nothing).is_err()));
        let cell = Shared::anonymous(OnceCell::<u64>::new()).unwrap();
        let made = cell.get_or_init(|| {
            makes_no_call(|_| assert!(cell.get_or_init_timeout(|| 2, nothing).is_err()));
            1
        });
        assert_eq!(made, Ok(&1));
    }
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
        let queue = Shared::<Queue<u64>>::with_capacity(capacity).unwrap();
        rounds_of_a_queue(&queue);
    }
}

/// The way back: a nack, and a loan that is dropped. They wake no thread where none sleeps.
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

outlast::shared! {
    #[derive(Debug)]
    struct Family {
        lock: Lock<u64>, changed: Condition, again: ReentrantLock<u64>, many: RwLock<u64>, permits: Semaphore, owned: OwnedSemaphore,
        alone: Barrier, latch: Latch, once: Once, cell: OnceCell<u64>
    }
}

#[test]
fn the_family() {
    let family = Shared::anonymous(Family {
        lock: Lock::new(0),
        changed: Condition::new(),
        again: ReentrantLock::new(0),
        many: RwLock::new(0),
        permits: Semaphore::new(3),
        owned: OwnedSemaphore::new(3),
        alone: Barrier::new(1),
        latch: Latch::new(u32::MAX),
        once: Once::new(),
        cell: OnceCell::new(),
    })
    .unwrap();
    let _watchdog = common::watch("the_family", &family);
    makes_no_call(|_| {
        *family.lock.lock().unwrap() += 1;
        family.changed.notify_one();
        family.changed.notify(7);
        family.changed.notify_all();
    });
    makes_no_call(|_| {
        let outer = family.again.lock().unwrap();
        family.again.lock().unwrap().update(|x| x + 1);
        family.again.try_lock().unwrap().update(|x| x + 1);
        drop(outer);
    });
    makes_no_call(|i| {
        *family.many.write().unwrap() = i;
        let (first, second) = (family.many.read().unwrap(), family.many.try_read().unwrap());
        assert_eq!((*first, *second), (i, i));
        drop((first, second));
        *family.many.try_write().unwrap() += 1;
    });
    makes_no_call(|_| {
        let two = family.permits.acquire_many(2).unwrap();
        drop(family.permits.try_acquire().unwrap());
        drop(two);
        family.permits.acquire().unwrap().forget();
        family.permits.release(1).unwrap();
        assert!(family.permits.try_acquire_many(4).is_none());
    });
    makes_no_call(|_| {
        let two = family.owned.acquire_many(2).unwrap();
        drop(family.owned.acquire().unwrap());
        assert!(family.owned.try_acquire_many(2).unwrap().is_none());
        drop(two);
    });
    makes_no_call(|_| {
        assert!(family.alone.wait().unwrap().is_leader());
        family.alone.leave().unwrap(); // or its end would break it for the next process
    });
    makes_no_call(|i| {
        family.latch.count_down(1);
        if i % 1_000 == 0 {
            family.latch.join(1).unwrap().done();
        }
        assert!(!family.latch.is_open());
    });
    makes_no_call(|i| {
        family.once.call_once(|| ()).unwrap();
        assert!(*family.cell.get_or_init(|| i).unwrap() < 3);
        assert!(family.cell.get().unwrap().is_some());
    });
}

outlast::shared! {
    #[derive(Debug)]
    struct Ways {
        ring: FixedRing<u64, 4>, bytes: FixedByteQueue<64>, pipe: FixedPipe<64>, channel: Channel<FixedQueue<u64, 4>>, letters: Channel<FixedByteQueue<64>>,
        urgent: FixedPriorityQueue<u64, 3, 4>, urgent_ends: Channel<FixedPriorityQueue<u64, 3, 4>>, stream: FixedQueue<u64, 1024>, fast: FixedRing<u64, 1024>
    }
}

fn ways() -> Shared<Ways> {
    Options::new().anonymous_with(|_: &Ways| {}).unwrap()
}

#[test]
fn the_other_queues() {
    let ways = ways();
    let _watchdog = common::watch("the_other_queues", &ways);
    makes_no_call(|i| {
        let (producer, consumer) = (ways.ring.producer().unwrap(), ways.ring.consumer().unwrap());
        producer.send_batch(&[i, i + 1]).unwrap();
        assert_eq!((consumer.recv(), consumer.try_recv()), (Ok(i), Ok(i + 1)));
        assert!(consumer.try_recv().is_err());
        (0..4).for_each(|n| producer.send(n).unwrap());
        assert!(producer.try_send(4).is_err());
        assert!(consumer.iter().take(4).eq(0..4));
    });
    makes_no_call(|i| {
        ways.bytes.send(&i.to_le_bytes()).unwrap();
        let mut room = ways.bytes.loan(100).unwrap();
        room.fill(7);
        room.send().unwrap();
        assert_eq!(*ways.bytes.recv_ref().unwrap(), i.to_le_bytes());
        drop(ways.bytes.recv_ref().unwrap());
        assert!(ways.bytes.try_recv_ref().is_err());
    });
    // (Ends are made by the process that uses them, and what ends tells the others.)
    let ends = std::cell::OnceCell::new();
    makes_no_call(|i| {
        let (first, second) =
            ends.get_or_init(|| (ways.pipe.first().unwrap(), ways.pipe.second().unwrap()));
        first.send_bytes(&i.to_le_bytes()).unwrap();
        second.send_bytes(&[7; 100]).unwrap();
        assert_eq!(second.recv_bytes().unwrap(), i.to_le_bytes());
        assert_eq!(first.recv_bytes().unwrap(), [7; 100]);
    });
    let ends = std::cell::OnceCell::new();
    makes_no_call(|i| {
        let (sender, receiver) =
            ends.get_or_init(|| (ways.channel.sender().unwrap(), ways.channel.receiver().unwrap()));
        sender.send(i).unwrap();
        sender.clone().send(i + 1).unwrap();
        assert_eq!(receiver.recv(), Ok(i));
        assert_eq!(receiver.recv_ack().unwrap().ack(), Ok(i + 1));
        assert!(receiver.try_recv().is_err());
    });
    let ends = std::cell::OnceCell::new();
    makes_no_call(|i| {
        let (sender, receiver) =
            ends.get_or_init(|| (ways.letters.sender().unwrap(), ways.letters.receiver().unwrap()));
        sender.clone().send(&i.to_le_bytes()).unwrap();
        let mut room = sender.loan(100).unwrap();
        room.fill(7);
        room.send().unwrap();
        assert_eq!(*receiver.recv_ref().unwrap(), i.to_le_bytes());
        receiver.recv_ref().unwrap().give_back().unwrap();
        assert_eq!(receiver.clone().recv().unwrap(), [7; 100]);
        assert!(receiver.try_recv_ref().is_err());
    });
    makes_no_call(|i| {
        ways.urgent.send(0, i).unwrap();
        ways.urgent.send(2, i + 1).unwrap();
        let first = ways.urgent.recv().unwrap();
        assert_eq!(first.1, i + 1);
        assert_eq!(ways.urgent.recv_ack().unwrap().ack(), Ok(i));
        assert!(ways.urgent.try_recv().is_err());
    });
    let ends = std::cell::OnceCell::new();
    makes_no_call(|i| {
        let take = || (ways.urgent_ends.sender().unwrap(), ways.urgent_ends.receiver().unwrap());
        let (sender, receiver) = ends.get_or_init(take);
        sender.send(0, i).unwrap();
        sender.clone().send(2, i + 1).unwrap();
        assert_eq!(receiver.clone().recv(), Ok((2, i + 1)));
        assert_eq!(receiver.recv_ack().unwrap().ack(), Ok(i));
        assert!(receiver.try_recv().is_err());
    });
}

/// A receiver asks whether the upper levels stay empty only when the lower ones are empty, too.
#[test]
fn what_is_left_in_the_lowest_level() {
    type Levels = FixedPriorityQueue<u64, 3, 65_536>;
    let queue = Options::new().anonymous_with(|_: &Levels| {}).unwrap();
    let _watchdog = common::watch("what_is_left_in_the_lowest_level", &queue);
    (0..queue.capacity() as u64).for_each(|i| queue.send(0, i).unwrap());
    queue.close();
    makes_no_call(|_| {
        let (_, first) = queue.recv().unwrap();
        assert_eq!(queue.recv_ack().unwrap().ack(), Ok(first + 1));
    });
    assert!(queue.len() > 1, "there was something to the last");
}

/// Runs `part` in a process; how many system calls its thread made.
fn calls_of(part: impl FnOnce()) -> u64 {
    let child = fork_child(|| {
        // SAFETY: takes no pointers.
        let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
        assert_eq!(traced, 0);
        // SAFETY: takes no pointers.
        unsafe { libc::raise(libc::SIGSTOP) };
        part();
        common::exit_now(0); // what a process does at its end is not counted
    });
    let (pid, mut stops) = (child.pid, 0);
    loop {
        // SAFETY: plain data, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
        let (id, events) = (libc::id_t::try_from(pid).unwrap(), libc::WEXITED | libc::WSTOPPED);
        // SAFETY: writes to the live variable.
        let r = unsafe {
            libc::waitid(libc::P_PID, id, &raw mut info, events | libc::WNOWAIT | libc::__WALL)
        };
        assert_eq!(r, 0, "waitid: {}", std::io::Error::last_os_error());
        if ![libc::CLD_TRAPPED, libc::CLD_STOPPED].contains(&info.si_code) {
            child.succeeds();
            return stops / 2; // on the way in, and out
        }
        let mut status = 0;
        // SAFETY: writes to the live variable.
        unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if libc::WSTOPSIG(status) == libc::SIGSTOP {
            let (nothing, good) = (0_usize, libc::PTRACE_O_TRACESYSGOOD);
            // SAFETY: takes no pointers; the child is this thread's, and stopped.
            let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, nothing, good) };
            assert_eq!(set, 0);
        } else {
            assert_eq!(libc::WSTOPSIG(status), libc::SIGTRAP | 0x80, "a signal");
            stops += 1;
        }
        // SAFETY: as above.
        let r = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0_usize, 0_usize) };
        assert_eq!(r, 0);
    }
}

/// Two processes wait for each other again and again, and call the kernel for few of the messages.
#[test]
fn a_stream_between_processes() {
    const MESSAGES: u64 = 200_000;
    let ways = ways();
    let _watchdog = common::watch("a_stream_between_processes", &ways);
    let both = |sends: &(dyn Fn() + Sync), receives: &(dyn Fn() + Sync)| {
        // Each is traced by the thread that began it.
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| calls_of(sends));
            (calls_of(receives), sender.join().unwrap())
        })
    };
    let queue = both(&|| (0..MESSAGES).for_each(|i| ways.stream.send(i).unwrap()), &|| {
        assert!((0..MESSAGES).all(|i| ways.stream.recv() == Ok(i)));
    });
    let ring = both(
        &|| {
            let producer = ways.fast.producer().unwrap();
            (0..MESSAGES).for_each(|i| producer.send(i).unwrap());
        },
        &|| {
            let consumer = ways.fast.consumer().unwrap();
            assert!((0..MESSAGES).all(|i| consumer.recv() == Ok(i)));
        },
    );
    for calls in [queue.0, queue.1, ring.0, ring.1] {
        assert!(calls < MESSAGES / 20, "{calls} calls for {MESSAGES} messages: {queue:?} {ring:?}");
    }
    // The control: it counts.
    let counted = calls_of(|| (0..1_000).for_each(|_| call_the_kernel()));
    assert!((1_000..1_100).contains(&counted), "{counted}");
}
