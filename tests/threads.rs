//! Threads and the segments that they have used: tokens, caches, and ids that come again.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "segments in memory of the caller's")]
mod common;

use common::{Stage, fork_child, in_own_process, sleep_for_ever};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use outlast::{Event, Options, OwnedPermit, OwnedSemaphore, Shared, TimeoutError};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

/// A thread that lives long uses segments that another one opens and drops: they do not stay mapped
/// for it.
#[test]
fn a_thread_that_lives_keeps_no_memory() {
    const NAME: &str = "a_thread_that_lives_keeps_no_memory";
    in_own_process(NAME, || {
        let _watchdog = common::watch_alone(NAME);
        let first = Shared::anonymous(OwnedSemaphore::new(4)).unwrap();
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.contains("memfd:")).count()
        };
        let before = mappings();
        let (to, from) = mpsc::sync_channel::<Shared<OwnedSemaphore>>(0);
        let (tell, told) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            for semaphore in from {
                drop(semaphore.acquire().unwrap());
                drop(semaphore);
                tell.send(()).unwrap();
            }
        });
        for _ in 0..50 {
            let fd = first.try_clone_fd().unwrap();
            let shared = Shared::<OwnedSemaphore>::from_fd(fd).unwrap();
            to.send(shared.clone()).unwrap();
            told.recv().unwrap();
            drop(shared);
        }
        // The one that it used last may still be there.
        assert!(mappings() <= before + 1, "{} and {before} before", mappings());
        drop(to);
        worker.join().unwrap();
    });
}

const MEMORY: usize = 1 << 20;

outlast::shared! {
    struct Memory { bytes: [AtomicU64; MEMORY / 8] }
    #[derive(Debug)]
    struct Steps { step: AtomicU32 }
}

/// Keeps a permit; how many it stands for.
fn hold(permit: OwnedPermit<'_>) -> u32 {
    let count = permit.count();
    core::mem::forget(permit);
    count
}

/// Memory of the caller's is opened again at the same address, where this process has another place
/// among the peers by then.
#[test]
fn a_thread_does_not_go_on_as_another_process() {
    const NAME: &str = "a_thread_does_not_go_on_as_another_process";
    in_own_process(NAME, || {
        let at = NonNull::from(common::plain_shared::<Memory>()).cast::<u8>();
        let steps = common::plain_shared::<Steps>();
        let _watchdog = common::watch_with(NAME, move || format!("{steps:?}"));
        // SAFETY: shared with the child to come, never unmapped, used by nobody else.
        let first = unsafe { Options::new().create_in(at, MEMORY, OwnedSemaphore::new(1)) };
        let (to, from) = mpsc::sync_channel::<Option<Shared<OwnedSemaphore>>>(0);
        let (tell, told) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let Some(Some(first)) = from.iter().next() else { return };
            drop(first.acquire().unwrap());
            drop(first);
            tell.send(None).unwrap();
            let Some(Some(again)) = from.iter().next() else { return };
            tell.send(Some(hold(again.acquire().unwrap()))).unwrap();
            from.iter().next();
        });
        to.send(first.ok()).unwrap();
        assert_eq!(told.recv().unwrap(), None);
        // Another process takes the place that has become free.
        let other = fork_child(|| {
            // SAFETY: as above.
            let own = unsafe { Shared::<OwnedSemaphore>::open_in(at, MEMORY) }.unwrap();
            drop(own.acquire().unwrap());
            steps.step.reach(1);
            core::mem::forget(own);
            sleep_for_ever();
        });
        steps.step.until(1);
        // SAFETY: as above.
        let again = unsafe { Shared::<OwnedSemaphore>::open_in(at, MEMORY) }.unwrap();
        to.send(Some(again.clone())).unwrap();
        assert_eq!(told.recv().unwrap(), Some(1));
        other.kill9();
        // Its death is mended before this becomes a peer; what the thread has is not given back by
        // it. SAFETY: as above.
        let third = unsafe { Shared::<OwnedSemaphore>::open_in(at, MEMORY) }.unwrap();
        assert_eq!(
            third.acquire_timeout(common::ms(200)).unwrap_err(),
            TimeoutError::TimedOut,
            "granted twice"
        );
        to.send(None).unwrap();
        worker.join().unwrap();
    });
}

outlast::shared! {
    struct Both { permits: OwnedSemaphore, event: Event }
}

/// The owner of each of the first thread slots.
fn owners(shared: &Shared<Both>) -> Vec<u32> {
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut header = [0; 128];
    file.read_exact_at(&mut header, 0).unwrap();
    let processes = u64::from(u32::from_ne_bytes(header[72..76].try_into().unwrap()));
    let peers = u64::from_ne_bytes(header[96..104].try_into().unwrap());
    let owner = |i: u64| {
        let mut word = [0; 4];
        file.read_exact_at(&mut word, peers + (processes + i) * 64).unwrap();
        u32::from_ne_bytes(word) & 0x3fff_ffff
    };
    (0..8).map(owner).collect()
}

fn thread_id() -> u32 {
    u32::try_from(common::thread_id()).unwrap()
}

/// The number of a thread that has ended is given to another one, which uses two mappings: it has a
/// token through each.
#[test]
fn a_thread_id_comes_again() {
    if cfg!(outlast_pthread) {
        return; // where a token lies is another matter
    }
    let both = Both { permits: OwnedSemaphore::new(4), event: Event::manual(false) };
    let first = Shared::anonymous(both).unwrap();
    let second = Shared::<Both>::from_fd(first.try_clone_fd().unwrap()).unwrap();
    let use_it = |shared: &Shared<Both>| drop(shared.permits.acquire().unwrap());
    let (first, second) = (&first, &second);
    std::thread::scope(|scope| {
        let once = || {
            use_it(first);
            thread_id()
        };
        let old = scope.spawn(once).join().unwrap();
        for _ in 0..2_000 {
            // Without the right to choose it there is nothing to try.
            let next = format!("{}", old - 1);
            if std::fs::write("/proc/sys/kernel/ns_last_pid", next).is_err() {
                return;
            }
            let again = move || {
                (thread_id() == old).then(|| {
                    use_it(second);
                    use_it(first);
                    owners(first).into_iter().filter(|&owner| owner == old).count()
                })
            };
            if let Some(tokens) = scope.spawn(again).join().unwrap() {
                assert_eq!(tokens, 2);
                return;
            }
        }
        common::complain("a_thread_id_comes_again: it did not");
    });
}
