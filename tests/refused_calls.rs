//! Sandboxes and older kernels refuse system calls: waits take another way, and nothing panics.
#![cfg(all(not(outlast_pthread), not(outlast_loom)))]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{fork_child, ms, sleep_for_ever, watch};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{
    Condition, Event, FixedQueue, Lock, LockError, OnceCell, OwnedSemaphore, ReentrantLock, RwLock,
    Shared, Spin,
};

outlast::shared! {
    #[derive(Debug)]
    struct All {
        lock: Lock<u64>,
        rw: RwLock<u64>,
        again: ReentrantLock<u64>,
        cell: OnceCell<u64>,
        event: Event,
        condition: Condition,
        queue: FixedQueue<u64, 4>,
        permits: OwnedSemaphore,
        turn: AtomicU32,
    }
}

fn all() -> Shared<All> {
    Shared::anonymous(All {
        lock: Lock::new(0),
        rw: RwLock::new(0),
        again: ReentrantLock::new(0),
        cell: OnceCell::new(),
        event: Event::auto(false),
        condition: Condition::new(),
        queue: FixedQueue::new(),
        permits: OwnedSemaphore::new(1),
        turn: AtomicU32::new(0),
    })
    .unwrap()
}

/// From here on the kernel answers `call` with `errno`, to this thread and those that it starts.
fn refuse(call: libc::c_long, errno: i32) {
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut program =
        [load(), pass_over_if(1, call), answer(libc::SECCOMP_RET_ALLOW), answer(errno)];
    common::filter_calls(&mut program).unwrap();
}

/// From here on the kernel refuses one operation of `futex`.
fn refuse_operation(operation: i32, errno: i32) {
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let load_operation = libc::sock_filter {
        code: u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap(),
        jt: 0,
        jf: 0,
        k: 24, // the second argument
    };
    let mut program = [
        load(),
        pass_over_if(1, libc::SYS_futex),
        answer(libc::SECCOMP_RET_ALLOW),
        load_operation,
        pass_over_if(1, operation.into()),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(errno),
    ];
    common::filter_calls(&mut program).unwrap();
}

/// A process in which `refuse` was called before its first segment.
fn confined(name: &str, refuse: impl Fn(), body: impl Fn()) {
    common::in_own_process(name, || {
        refuse();
        body();
    });
}

/// One thread has what `hold` takes, until the other has waited for longer than a second look
/// takes.
fn contend(
    shared: &Shared<All>,
    hold: impl Fn(&All, &dyn Fn()) + Sync,
    take: impl Fn(&All) -> bool + Sync,
) {
    shared.turn.store(0, SeqCst);
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let inside = || {
                shared.turn.store(1, SeqCst);
                common::eventually("the other comes", || shared.turn.load(SeqCst) == 2);
                std::thread::sleep(ms(50));
            };
            hold(shared, &inside);
        });
        common::eventually("it is held", || shared.turn.load(SeqCst) == 1);
        let taker = scope.spawn(|| {
            Spin::Never.set();
            shared.turn.store(2, SeqCst);
            take(shared)
        });
        holder.join().unwrap();
        assert!(taker.join().unwrap());
    });
}

fn everything_contended() {
    let shared = all();
    let _watchdog = watch("everything_contended", &shared);
    let other = Shared::<All>::from_fd(shared.try_clone_fd().unwrap()).unwrap();
    contend(
        &shared,
        |all, inside| {
            let _guard = all.lock.lock().unwrap();
            inside();
        },
        |all| all.lock.lock().is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            let _guard = all.lock.lock().unwrap();
            assert!(matches!(all.lock.try_lock(), Err(LockError::WouldDeadlock)));
            inside();
        },
        |all| matches!(all.lock.lock_timeout(ms(5)), Err(LockError::TimedOut(_))),
    );
    contend(
        &shared,
        |all, inside| {
            let _guard = all.rw.write().unwrap();
            inside();
        },
        |all| all.rw.read().is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            let _guard = all.rw.read().unwrap();
            inside();
        },
        |all| all.rw.write().is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            let _guard = all.again.lock().unwrap();
            inside();
        },
        |all| all.again.lock().is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            all.cell
                .get_or_init(|| {
                    inside();
                    7
                })
                .unwrap();
        },
        |all| *all.cell.get_or_init(|| 8).unwrap() == 7,
    );
    contend(
        &shared,
        |all, inside| {
            inside();
            all.event.set();
        },
        |all| all.event.wait().is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            inside();
            *all.lock.lock().unwrap() = 1;
            all.condition.notify_all();
        },
        |all| all.condition.wait_while(all.lock.lock().unwrap(), |value| *value == 0).is_ok(),
    );
    contend(
        &shared,
        |all, inside| {
            inside();
            all.queue.send(3).unwrap();
        },
        |all| all.queue.recv().unwrap() == 3,
    );
    // A death is noticed.
    let child = fork_child(|| {
        all_of_a_child(&other);
    });
    common::eventually("the child holds all", || shared.turn.load(SeqCst) == 9);
    child.kill9();
    assert!(matches!(shared.lock.lock(), Err(LockError::OwnerDied(_))));
    shared.permits.acquire().unwrap().forget();
}

/// Takes what another process waits for, until the child is killed.
fn all_of_a_child(shared: &All) {
    shared.permits.acquire().unwrap().forget();
    core::mem::forget(shared.lock.lock().unwrap());
    shared.turn.store(9, SeqCst);
    sleep_for_ever();
}

#[test]
fn futex_waitv_is_forbidden() {
    let refuse = || refuse(libc::SYS_futex_waitv, libc::EPERM);
    confined("futex_waitv_is_forbidden", refuse, everything_contended);
}

#[test]
fn futex_waitv_is_unknown() {
    let refuse = || refuse(libc::SYS_futex_waitv, libc::ENOSYS);
    confined("futex_waitv_is_unknown", refuse, everything_contended);
}

#[test]
fn futex_wake_op_is_forbidden() {
    let refuse = || refuse_operation(libc::FUTEX_WAKE_OP, libc::EPERM);
    confined("futex_wake_op_is_forbidden", refuse, everything_contended);
}

/// The error of `reap` says which call was refused.
#[test]
fn reap_names_the_refused_call() {
    let refuse = || {
        [libc::SYS_statx, libc::SYS_newfstatat]
            .into_iter()
            .for_each(|call| refuse(call, libc::EIO));
    };
    confined("reap_names_the_refused_call", refuse, || {
        let error = outlast::reap().unwrap_err();
        assert!(error.to_string().starts_with("looking up the segment's file failed"), "{error}");
    });
}
