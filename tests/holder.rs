//! The holder of a lock: as the lock names it, as the error of a timeout names it, and after a
//! death.
#![cfg(not(outlast_loom))]
mod common;

use common::{Stage, fork_child, ms, sleep_for_ever, thread_id, watch};
use core::sync::atomic::AtomicU32;
use outlast::{Error, Fault, Holder, Lock, LockError, ReentrantLock, RwLock, Shared};
use std::error::Error as _;

outlast::shared! {
    #[derive(Debug)]
    struct Locks { lock: Lock<u64>, deep: ReentrantLock<u64>, wide: RwLock<u64>, step: AtomicU32 }
}

fn locks() -> Shared<Locks> {
    let step = AtomicU32::new(0);
    let locks = Locks { lock: 1.into(), deep: 2.into(), wide: 3.into(), step };
    Shared::anonymous(locks).unwrap()
}

/// The holder in the error of a timeout.
#[track_caller]
fn named<G>(taken: Result<G, LockError<G>>) -> Holder {
    match taken {
        Err(LockError::TimedOut(Some(holder))) => holder,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("taken"),
    }
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned()
}

#[test]
fn another_process_is_named() -> Result<(), Error> {
    let here = locks();
    let _watchdog = watch("another_process_is_named", &here);
    let child = fork_child(|| {
        let _guards = (here.lock.lock().unwrap(), here.deep.lock().unwrap());
        let _writer = here.wide.write().unwrap();
        assert!(here.lock.is_held_by_me() && here.deep.is_held_by_me());
        here.step.reach(1);
        sleep_for_ever();
    });
    here.step.until(1);
    let pid = u32::try_from(child.pid).unwrap();
    let holders = [
        here.lock.holder(),
        here.deep.holder(),
        here.wide.holders().pop(),
        Some(named(here.lock.lock_timeout(ms(5)))),
        Some(named(here.deep.lock_timeout(ms(5)))),
        Some(named(here.wide.write_timeout(ms(5)))),
        Some(named(here.wide.read_timeout(ms(5)))),
    ];
    for holder in holders {
        let holder = holder.expect("a holder");
        assert_eq!(
            (holder.thread_id(), holder.pid()),
            (pid, Some(pid)),
            "the child has one thread"
        );
        assert_eq!(holder.process_name(), Some(comm(pid)));
    }
    let error = here.lock.lock_timeout(ms(5)).map(drop).unwrap_err().to_string();
    assert!(error.contains(&format!("process {pid} ({})", comm(pid))), "{error}");
    assert!(here.lock.is_locked() && here.deep.is_locked() && here.wide.is_locked());
    assert!(!here.lock.is_held_by_me() && !here.deep.is_held_by_me());

    child.kill9();
    assert_eq!((here.lock.holder(), here.deep.holder()), (None, None));
    assert_eq!(here.wide.holders(), []);
    assert!(!here.lock.is_locked() && !here.deep.is_locked() && !here.wide.is_locked());
    // The recovered guard has marked the values consistent: the death is not reported again.
    assert_eq!(*here.lock.lock().or_else(LockError::recover)?, 1);
    assert_eq!(here.deep.lock().or_else(LockError::recover)?.get(), 2);
    assert_eq!(*here.wide.write().or_else(LockError::recover)?, 3);
    assert!(here.lock.lock().is_ok() && here.deep.lock().is_ok() && here.wide.read().is_ok());
    Ok(())
}

#[test]
fn a_thread_of_this_process_is_named() {
    let here = locks();
    let there = Shared::<Locks>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let guard = here.lock.lock().unwrap();
    let readers = (here.wide.read().unwrap(), here.wide.read().unwrap());
    // The other mapping shows the same owner.
    assert!(there.lock.is_held_by_me());
    let me = u32::try_from(thread_id()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let holder = named(there.lock.lock_timeout(ms(5)));
            assert_eq!((holder.thread_id(), holder.pid()), (me, Some(std::process::id())));
            assert_eq!(named(there.wide.write_timeout(ms(5))).thread_id(), me);
            assert!(!there.lock.is_held_by_me());
            // An error without a guard cannot be recovered.
            let busy = there.lock.try_lock().or_else(LockError::recover);
            assert_eq!(busy.unwrap_err(), LockError::WouldBlock);
        });
    });
    assert_eq!(here.wide.holders().iter().map(|holder| holder.thread_id()).max(), Some(me));
    drop((guard, readers));
    assert!(!here.lock.is_locked() && !here.lock.is_held_by_me() && !here.wide.is_locked());
}

#[test]
fn a_lock_that_is_not_placed_has_no_holder() {
    let lock = Lock::<u64>::default();
    assert!(!lock.is_locked() && !lock.is_held_by_me());
    assert_eq!(lock.holder(), None);
}

#[test]
fn errors_are_compared_and_name_their_source() {
    let failed = LockError::<()>::Failed(Fault::TooManyLocks);
    let source = failed.source().and_then(|source| source.downcast_ref::<Fault>());
    assert_eq!(source, Some(&Fault::TooManyLocks));
    assert_ne!(failed, LockError::Failed(Fault::Corrupt));
    assert_eq!(LockError::OwnerDied(1), LockError::OwnerDied(2), "guards are not compared");
    assert_ne!(LockError::OwnerDied(1), LockError::Poisoned(1));
    let source = outlast::RecvError::Failed(Fault::Forked);
    assert!(source.source().is_some_and(|source| source.is::<Fault>()));
}
