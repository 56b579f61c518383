//! Limits and sandboxes: what the system refuses gives an error that names the call, and kills no
//! process.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "limits, signals, seccomp, mounts")]
mod common;

use common::filter_step::{answer, load, pass_over_if};
use common::{filter_calls, fork_child, watch_alone};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{FixedQueue, Lock, OpenError, Shared};

outlast::shared! {
    /// A value that needs peers.
    struct Desk { lock: Lock<u64>, queue: FixedQueue<u64, 64> }
}

/// Every way to make a segment: with peers, without, and with a name.
fn make_all() -> [Result<(), OpenError>; 3] {
    let desk = Desk { lock: Lock::new(0), queue: FixedQueue::new() };
    let name = format!("test limits {}", std::process::id());
    [
        Shared::anonymous(desk).map(drop),
        Shared::anonymous(Lock::new(0_u64)).map(drop),
        Shared::create(&name, Lock::new(0_u64)).map(drop),
    ]
}

/// The call that is named, and the system's error number.
#[track_caller]
fn refusal(made: &Result<(), OpenError>) -> (&'static str, Option<i32>) {
    match made {
        Err(OpenError::Io { call, source }) => (call, source.raw_os_error()),
        other => panic!("{other:?}"),
    }
}

fn limit_file_size(to: u64) {
    let limit = libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: reads the live limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}

#[test]
fn a_limit_of_file_size_is_an_error() {
    let _watchdog = watch_alone("a_limit_of_file_size_is_an_error");
    for limit in [0, 1_024] {
        fork_child(|| {
            limit_file_size(limit);
            for made in make_all() {
                let (call, error) = refusal(&made);
                assert!(call.contains("fallocate"), "{call}");
                assert_eq!(error, Some(libc::EFBIG));
            }
        })
        .succeeds();
    }
    // What fits is made.
    fork_child(|| {
        limit_file_size(4_096);
        let [desk, lock, named] = make_all();
        assert_eq!(refusal(&desk).1, Some(libc::EFBIG));
        assert!(lock.is_ok() && named.is_ok());
    })
    .succeeds();
}

/// The program's own handling of the signal stays as it is, and so does a signal that it has held
/// back.
#[test]
fn the_signal_of_the_limit_is_left_alone() {
    static CAUGHT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn catch(_signal: i32) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    let _watchdog = watch_alone("the_signal_of_the_limit_is_left_alone");
    fork_child(|| {
        common::handle(libc::SIGXFSZ, catch);
        limit_file_size(0);
        make_all().iter().for_each(|made| assert!(made.is_err()));
        assert_eq!(CAUGHT.load(SeqCst), 0);
        // SAFETY: takes no pointers.
        unsafe { libc::raise(libc::SIGXFSZ) };
        assert_eq!(CAUGHT.load(SeqCst), 1);
        // One that waits for the program to let it through.
        hold(libc::SIG_BLOCK);
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGXFSZ) };
        make_all().iter().for_each(|made| assert!(made.is_err()));
        assert_eq!(CAUGHT.load(SeqCst), 1);
        hold(libc::SIG_UNBLOCK);
        assert_eq!(CAUGHT.load(SeqCst), 2);
    })
    .succeeds();
}

/// Holds SIGXFSZ back in this thread, or no longer.
fn hold(how: i32) {
    let mut set = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the live set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: adds to the set filled above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGXFSZ) };
    // SAFETY: reads that set.
    unsafe { libc::pthread_sigmask(how, set.as_ptr(), core::ptr::null_mut()) };
}

/// From here on this process is refused the call, with this error.
fn refuse(call: libc::c_long, error: i32) {
    let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(error).unwrap();
    filter_calls(&mut [
        load(),
        pass_over_if(1, call),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(refusal),
    ])
    .unwrap();
}

#[test]
fn a_refused_call_is_named() {
    let _watchdog = watch_alone("a_refused_call_is_named");
    for (call, error, name, which) in [
        (libc::SYS_memfd_create, libc::ENOSYS, "memfd_create", 0..2),
        (libc::SYS_memfd_create, libc::EPERM, "memfd_create", 0..2),
        (libc::SYS_fallocate, libc::EPERM, "fallocate", 0..3),
        (libc::SYS_flock, libc::EPERM, "flock", 2..3),
        (libc::SYS_linkat, libc::ENOENT, "linkat", 2..3),
    ] {
        fork_child(|| {
            refuse(call, error);
            for (i, made) in make_all().iter().enumerate() {
                if which.contains(&i) {
                    let (named, number) = refusal(made);
                    assert!(named.contains(name), "{named} in place of {name}");
                    assert_eq!(number, Some(error), "{name}");
                } else {
                    assert!(made.is_ok(), "{name}: {made:?}");
                }
            }
        })
        .succeeds();
    }
}

/// A new thread gets no robust list. Locks would outlive their owners, and no death would be
/// noticed.
#[cfg(not(outlast_pthread))]
#[test]
fn without_robust_lists() {
    let _watchdog = watch_alone("without_robust_lists");
    fork_child(|| {
        refuse(libc::SYS_set_robust_list, libc::EPERM);
        let [desk, ..] = make_all();
        let refused = matches!(desk, Err(OpenError::Attach(outlast::Fault::Unsupported)));
        assert!(refused, "{desk:?}");
    })
    .succeeds();
}

/// A system call that is interrupted again and again is not repeated for ever.
#[test]
fn memory_is_not_asked_for_without_end() {
    let _watchdog = watch_alone("memory_is_not_asked_for_without_end");
    fork_child(|| {
        refuse(libc::SYS_fallocate, libc::EINTR);
        for made in make_all() {
            assert_eq!(refusal(&made).1, Some(libc::EINTR));
        }
    })
    .succeeds();
}

/// "No such segment" is what a name that is looked up can mean, and not a missing file of the
/// system's.
#[test]
fn without_proc() {
    let _watchdog = watch_alone("without_proc");
    let lock = Shared::anonymous(Lock::new(0_u64)).unwrap();
    fork_child(|| {
        // SAFETY: takes no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return; // not allowed here
        }
        let none = c"none".as_ptr();
        let apart = libc::MS_REC | libc::MS_PRIVATE;
        let null = core::ptr::null();
        // SAFETY: C strings, and null where nothing is to be said.
        assert_eq!(unsafe { libc::mount(none, c"/".as_ptr(), null, apart, null.cast()) }, 0);
        // SAFETY: as above.
        let hidden =
            unsafe { libc::mount(none, c"/proc".as_ptr(), c"tmpfs".as_ptr(), 0, null.cast()) };
        assert_eq!(hidden, 0);
        for made in make_all() {
            let (call, error) = refusal(&made);
            assert!(call.contains("/proc"), "{call}");
            assert_eq!(error, Some(libc::ENOENT));
        }
        let opened = Shared::<Lock<u64>>::from_fd(lock.try_clone_fd().unwrap());
        assert!(refusal(&opened.map(drop)).0.contains("/proc"));
        let nothing = Shared::<Lock<u64>>::open("test limits, no such name");
        assert!(matches!(nothing, Err(OpenError::NotFound)), "{nothing:?}");
    })
    .succeeds();
}
