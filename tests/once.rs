//! `OnceCell` and `Once`: who makes the value, and what if that one dies.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, ms, sleep_for_ever, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::{Fault, Once, OnceCell, OnceError, Shared};
use std::time::{Duration, Instant};

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Colour: u8 { Red = 1, Green = 2 }
}

outlast::shared! {
    #[derive(Debug)]
    struct Deed { value: OnceCell<[u64; 3]>, once: Once, colour: OnceCell<Colour>, runs: AtomicU32, step: AtomicU32 }
}

fn deed() -> Shared<Deed> {
    Shared::anonymous(Deed {
        value: OnceCell::new(),
        once: Once::new(),
        colour: OnceCell::new(),
        runs: AtomicU32::new(0),
        step: AtomicU32::new(0),
    })
    .unwrap()
}

#[test]
fn alone() {
    let deed = deed();
    let _watchdog = watch("alone", &deed);
    assert_eq!(deed.value.get(), Ok(None));
    assert!(!deed.value.is_completed());
    assert_eq!(deed.value.wait_timeout(Duration::ZERO), Ok(None));
    let began = Instant::now();
    assert_eq!(deed.value.wait_timeout(ms(20)), Ok(None));
    assert!(began.elapsed() >= ms(20));
    let failed: Result<&[u64; 3], OnceError> =
        deed.value.get_or_try_init(|| Err(OnceError::Failed(Fault::Busy)));
    assert_eq!(failed, Err(OnceError::Failed(Fault::Busy)));
    assert_eq!(deed.value.set([1, 2, 3]), Ok(()));
    assert_eq!(deed.value.set([4, 5, 6]), Err([4, 5, 6]));
    assert_eq!(deed.value.get(), Ok(Some(&[1, 2, 3])));
    assert_eq!(deed.value.wait(), Ok(&[1, 2, 3]));
    assert_eq!(deed.value.wait_deadline(began), Ok(Some(&[1, 2, 3])));
    assert_eq!(*deed.value.get_or_init(|| unreachable!()).unwrap(), [1, 2, 3]);
    deed.once
        .call_once(|| assert_eq!(deed.once.call_once(|| ()), Err(OnceError::WouldDeadlock)))
        .unwrap();
    deed.once.call_once(|| unreachable!()).unwrap();
}

/// One of many makes the value, and all see it whole.
#[test]
fn once_for_all() {
    worlds(
        "once_for_all",
        "",
        5,
        deed,
        |deed, i| {
            if i == 4 {
                assert_eq!(deed.value.wait().unwrap()[0], deed.value.wait().unwrap()[2]);
                return;
            }
            let mine = [i as u64; 3];
            let value = deed
                .value
                .get_or_init(|| {
                    deed.runs.fetch_add(1, SeqCst);
                    std::thread::sleep(ms(2));
                    mine
                })
                .unwrap();
            assert_eq!(value[0], value[2]);
            deed.once
                .call_once(|| {
                    deed.step.fetch_add(1, SeqCst);
                })
                .unwrap();
        },
        |deed| {
            assert_eq!(deed.runs.load(SeqCst), 1);
            assert_eq!(deed.step.load(SeqCst), 1);
        },
    );
}

/// An initialiser that is killed, or panics, leaves the work to the next.
#[test]
fn initialisers_that_fail() {
    let deed = deed();
    let _watchdog = watch("initialisers_that_fail", &deed);
    let first = fork_child(|| {
        deed.value
            .get_or_init(|| {
                deed.step.store(1, SeqCst);
                sleep_for_ever()
            })
            .unwrap();
    });
    common::eventually("it has begun", || deed.step.load(SeqCst) == 1);
    let others: Vec<_> = (0..3)
        .map(|_| {
            fork_child(|| {
                let value = deed.value.get_or_init(|| {
                    deed.runs.fetch_add(1, SeqCst);
                    [7; 3]
                });
                assert_eq!(value, Ok(&[7; 3]));
            })
        })
        .collect();
    let waiter = fork_child(|| assert_eq!(deed.value.wait(), Ok(&[7; 3])));
    others.iter().for_each(common::Child::until_waiting);
    waiter.until_waiting();
    first.kill9();
    others.into_iter().for_each(common::Child::succeeds);
    waiter.succeeds();
    assert_eq!(deed.runs.load(SeqCst), 1);

    let panicked = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
        deed.once.call_once(|| panic!("as planned"))
    }));
    assert!(panicked.is_err());
    assert!(!deed.once.is_completed());
    deed.once.call_once(|| ()).unwrap();
    assert!(deed.once.is_completed());
}

#[test]
fn bytes_that_are_no_value() {
    let deed = deed();
    let _watchdog = watch("bytes_that_are_no_value", &deed);
    deed.colour.set(Colour::Green).unwrap();
    let at = std::ptr::from_ref(deed.colour.get().unwrap().unwrap()).cast::<u8>().cast_mut();
    #[expect(unsafe_code, reason = "writes what no peer would")]
    // SAFETY: a byte of the segment, which nobody else is at.
    unsafe {
        at.write_volatile(9);
    }
    assert_eq!(deed.colour.get(), Err(Fault::Corrupt));
    assert_eq!(deed.colour.wait(), Err(Fault::Corrupt));
    assert!(matches!(
        deed.colour.get_or_init(|| Colour::Red),
        Err(OnceError::Failed(Fault::Corrupt))
    ));
}
