//! `Semaphore` and `OwnedSemaphore`: counts, bounds, several permits at a time, in threads and
//! processes, with deaths, signals and timeouts.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, ms, sleep_for_ever, thread_cpu, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::semaphore::{MAX_HOLDERS, MAX_PERMITS, ReleaseError};
use outlast::{Barrier, Fault, Lock, OwnedSemaphore, Semaphore, Shared, Spin, TimeoutError};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Room { seats: Semaphore, inside: AtomicU32, most: AtomicU32, visits: AtomicU32 }
}

fn room(seats: Semaphore) -> Shared<Room> {
    let zero = || AtomicU32::new(0);
    Shared::anonymous(Room { seats, inside: zero(), most: zero(), visits: zero() }).unwrap()
}

fn semaphore(semaphore: Semaphore) -> Shared<Semaphore> {
    Shared::anonymous(semaphore).unwrap()
}

const AT_ONCE: Duration = Duration::ZERO;

/// What CPython's `test.lock_tests.BaseSemaphoreTests` asks of one thread.
#[test]
fn alone() {
    let sem = semaphore(Semaphore::new(2));
    let _watchdog = watch("alone", &sem);
    let a = sem.acquire().unwrap();
    let b = sem.try_acquire().unwrap();
    assert_eq!((a.count(), sem.available()), (1, 0));
    assert!(sem.try_acquire().is_none());
    drop(a);
    assert_eq!(sem.available(), 1);
    b.forget();
    assert_eq!(sem.available(), 1);
    sem.release(4).unwrap(); // any thread may release, any number of times
    assert_eq!(sem.available(), 5);
    let all = sem.acquire_many(5).unwrap();
    assert!(sem.try_acquire_many(1).is_none());
    assert_eq!(sem.try_acquire_many(0).unwrap().count(), 0);
    drop(all);
    assert!(sem.try_acquire_many(6).is_none());
    assert_eq!(sem.available(), 5);
}

#[test]
fn bounds() {
    let sem = semaphore(Semaphore::bounded(2));
    let _watchdog = watch("bounds", &sem);
    assert_eq!(sem.release(1), Err(ReleaseError));
    let permit = sem.acquire().unwrap();
    assert_eq!(sem.release(2), Err(ReleaseError), "all or nothing");
    assert_eq!(sem.available(), 1);
    sem.release(1).unwrap();
    drop(permit); // there is no room, since the permit was released before: no panic
    assert_eq!(sem.available(), 2);
    let large = semaphore(Semaphore::new(MAX_PERMITS));
    assert_eq!(large.release(1), Err(ReleaseError));
    assert_eq!(large.release(u32::MAX), Err(ReleaseError));
    assert_eq!(large.available(), MAX_PERMITS);
    assert!(large.try_acquire_many(u32::MAX).is_none());
    drop(large.try_acquire_many(MAX_PERMITS).unwrap());
    assert!(std::panic::catch_unwind(|| Semaphore::new(MAX_PERMITS + 1)).is_err());
    assert!(std::panic::catch_unwind(|| Semaphore::bounded(MAX_PERMITS + 1)).is_err());
    assert!(std::panic::catch_unwind(|| Semaphore::with_ceiling(2, 1)).is_err());
    assert!(std::panic::catch_unwind(|| Semaphore::with_ceiling(0, MAX_PERMITS + 1)).is_err());
}

/// A ceiling is a number of its own: there may be fewer permits to begin with, and none at all.
#[test]
fn ceilings() {
    let sem = semaphore(Semaphore::with_ceiling(1, 3));
    let _watchdog = watch("ceilings", &sem);
    assert_eq!(sem.release(3), Err(ReleaseError));
    sem.release(2).unwrap();
    assert_eq!((sem.available(), sem.release(1)), (3, Err(ReleaseError)));
    for sem in [Semaphore::bounded(0), Semaphore::with_ceiling(0, 0)] {
        let never = semaphore(sem);
        assert_eq!((never.release(1), never.release(0)), (Err(ReleaseError), Ok(())));
        assert!(never.try_acquire().is_none());
    }
    let large = semaphore(Semaphore::with_ceiling(0, MAX_PERMITS));
    large.release(MAX_PERMITS).unwrap();
    assert_eq!((large.available(), large.release(1)), (MAX_PERMITS, Err(ReleaseError)));
}

#[test]
fn timeouts() {
    let sem = semaphore(Semaphore::new(1));
    let _watchdog = watch("timeouts", &sem);
    let past = Instant::now().checked_sub(ms(5)).unwrap();
    drop(sem.acquire_timeout(AT_ONCE).unwrap());
    drop(sem.acquire_deadline(past).unwrap());
    let held = sem.acquire().unwrap();
    let began = Instant::now();
    assert_eq!(sem.acquire_timeout(ms(40)).unwrap_err(), TimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(40));
    assert_eq!(sem.acquire_deadline(past).unwrap_err(), TimeoutError::TimedOut);
    assert_eq!(sem.acquire_timeout(AT_ONCE).unwrap_err(), TimeoutError::TimedOut);
    assert_eq!(sem.acquire_many_timeout(2, ms(5)).unwrap_err(), TimeoutError::TimedOut);
    assert_eq!(sem.acquire_many_deadline(2, past).unwrap_err(), TimeoutError::TimedOut);
    drop(held);
    assert_eq!(sem.available(), 1);
    drop(sem.acquire_timeout(Duration::MAX).unwrap());
}

/// No more are inside than there are permits, and every visitor gets in.
#[test]
fn no_more_than_permits() {
    worlds(
        "no_more_than_permits",
        "",
        6,
        || room(Semaphore::bounded(2)),
        |room, i| {
            for _ in 0..150 {
                let permit = match i % 3 {
                    0 => room.seats.acquire().unwrap(),
                    1 => loop {
                        if let Ok(permit) = room.seats.acquire_timeout(ms(2)) {
                            break permit;
                        }
                    },
                    _ => room.seats.acquire_many(2).unwrap(),
                };
                let inside = room.inside.fetch_add(permit.count(), SeqCst) + permit.count();
                room.most.fetch_max(inside, SeqCst);
                room.visits.fetch_add(1, SeqCst);
                std::thread::yield_now();
                room.inside.fetch_sub(permit.count(), SeqCst);
            }
        },
        |room| {
            assert_eq!(room.most.load(SeqCst), 2);
            assert_eq!(room.visits.load(SeqCst), 900);
            assert_eq!(room.seats.available(), 2);
        },
    );
}

outlast::shared! {
    #[derive(Debug)]
    struct Rim { seats: Semaphore, start: Barrier, made: AtomicU32, taken: AtomicU32, refused: AtomicU32, wrong: AtomicU32 }
}

impl Rim {
    fn release(&self, n: u32) {
        if self.seats.release(n).is_ok() {
            self.made.fetch_add(n, SeqCst);
        } else {
            self.refused.fetch_add(1, SeqCst);
        }
        self.note(self.seats.available() <= 3);
    }

    /// Judged at the end: other roles would wait for one that stops here.
    fn note(&self, is_right: bool) {
        self.wrong.fetch_add(u32::from(!is_right), SeqCst);
    }
}

fn rim() -> Shared<Rim> {
    let zero = || AtomicU32::new(0);
    let (seats, start) = (Semaphore::bounded(3), Barrier::new(6));
    let (made, taken, refused, wrong) = (zero(), zero(), zero(), zero());
    Shared::anonymous(Rim { seats, start, made, taken, refused, wrong }).unwrap()
}

/// All release at the same time, more permits than there is room for. As many are made as there is
/// room for, and the other releases fail.
#[test]
fn releasers_race_at_the_ceiling() {
    const ROUNDS: u32 = 200;
    worlds(
        "releasers_race_at_the_ceiling",
        "",
        6,
        rim,
        |rim, i| {
            let seats = &rim.seats;
            for round in 0..ROUNDS {
                if i == 0 {
                    while let Some(permit) = seats.try_acquire() {
                        permit.forget();
                    }
                    rim.made.store(0, SeqCst);
                }
                rim.start.wait().unwrap();
                // In every other round two of them want one, and may sleep for it.
                let wanted = 2 * u32::from(round % 2 == 0);
                if wanted > 0 && i >= 4 {
                    seats.acquire().unwrap().forget();
                } else {
                    rim.release(1 + u32::from(i == 3));
                }
                rim.start.wait().unwrap();
                if i == 0 {
                    // There was no room for what was refused: three were there, wanted or not.
                    let made = rim.made.load(SeqCst);
                    rim.note((3..=3 + wanted).contains(&made));
                    rim.note(seats.available() == made - made.min(wanted));
                }
            }
        },
        |rim| {
            assert_eq!(rim.wrong.load(SeqCst), 0);
            assert!(rim.refused.load(SeqCst) >= 3 * ROUNDS / 2);
        },
    );
}

/// The same without pauses, while others take: there are never more than there may be.
#[test]
fn releasers_and_takers_race_at_the_ceiling() {
    const MADE: u32 = 20_000;
    worlds(
        "releasers_and_takers_race_at_the_ceiling",
        "",
        6,
        rim,
        |rim, i| {
            rim.start.wait().unwrap();
            // Also until a release has failed, which may take a while on a busy machine.
            while rim.made.load(SeqCst) < MADE || rim.refused.load(SeqCst) == 0 {
                if i < 4 {
                    rim.release(1);
                } else if let Some(permit) = rim.seats.try_acquire() {
                    permit.forget();
                    rim.taken.fetch_add(1, SeqCst);
                    continue;
                }
                std::thread::yield_now(); // lets the others acquire or release
            }
        },
        |rim| {
            assert_eq!(rim.wrong.load(SeqCst), 0);
            let [made, taken] = [&rim.made, &rim.taken].map(|count| count.load(SeqCst));
            assert_eq!(rim.seats.available(), 3 + made - taken);
        },
    );
}

/// `release(n)` lets `n` sleepers through, as CPython's `test_multirelease` asks.
#[test]
fn as_many_as_released_get_through() {
    worlds(
        "as_many_as_released_get_through",
        "",
        5,
        || room(Semaphore::new(0)),
        |room, i| {
            if i > 0 {
                Spin::Never.set();
                room.seats.acquire().unwrap().forget();
                room.visits.fetch_add(1, SeqCst);
                return;
            }
            std::thread::sleep(ms(30));
            room.seats.release(3).unwrap();
            common::eventually("three get through", || room.visits.load(SeqCst) == 3);
            std::thread::sleep(ms(10));
            assert_eq!(room.visits.load(SeqCst), 3);
            room.seats.release(1).unwrap();
        },
        |room| assert_eq!((room.visits.load(SeqCst), room.seats.available()), (4, 0)),
    );
}

/// A thread that waits for many permits does not use up the wake of a thread that waits for few.
#[test]
fn large_waiters_let_small_ones_through() {
    let room = room(Semaphore::new(0));
    let _watchdog = watch("large_waiters_let_small_ones_through", &room);
    for _ in 0..20 {
        let large = fork_child(|| drop(room.seats.acquire_many(3).unwrap()));
        large.until_waiting();
        let small = fork_child(|| room.seats.acquire().unwrap().forget());
        small.until_waiting();
        room.seats.release(1).unwrap();
        small.succeeds();
        room.seats.release(3).unwrap();
        large.succeeds();
        room.seats.try_acquire_many(3).unwrap().forget();
    }
}

/// Permits of the dead stay taken; their wakes do not.
#[test]
fn killed_holders_and_waiters() {
    let room = room(Semaphore::new(2));
    let _watchdog = watch("killed_holders_and_waiters", &room);
    let holder = fork_child(|| {
        let _permit = room.seats.acquire().unwrap();
        room.visits.store(1, SeqCst);
        sleep_for_ever();
    });
    common::eventually("it holds", || room.visits.load(SeqCst) == 1);
    holder.kill9();
    assert_eq!(room.seats.available(), 1, "as with POSIX");
    room.seats.acquire().unwrap().forget();
    for _ in 0..30 {
        let waiters: Vec<_> =
            (0..3).map(|_| fork_child(|| room.seats.acquire().unwrap().forget())).collect();
        waiters.iter().for_each(common::Child::until_waiting);
        let mut waiters = waiters.into_iter();
        let first = waiters.next().unwrap();
        room.seats.release(2).unwrap();
        // Woken, or not, or through already: the others get what is there.
        first.signal(libc::SIGKILL);
        assert!(matches!(first.wait(), common::KILLED | common::OK));
        assert!(room.seats.available() <= 2);
        room.seats.release(1).unwrap();
        waiters.for_each(common::Child::succeeds);
        while let Some(permit) = room.seats.try_acquire() {
            permit.forget();
        }
    }
}

#[test]
fn a_copy_made_by_fork_is_inert() {
    let sem = semaphore(Semaphore::new(1));
    let _watchdog = watch("a_copy_made_by_fork_is_inert", &sem);
    let permit = sem.acquire().unwrap();
    let mut copy = Some(permit);
    fork_child(|| drop(copy.take())).succeeds();
    assert_eq!(sem.available(), 0);
    drop(copy);
    assert_eq!(sem.available(), 1);
}

/// A permit may be given back by another thread.
#[test]
fn permits_travel() {
    let sem = semaphore(Semaphore::new(1));
    let _watchdog = watch("permits_travel", &sem);
    let permit = sem.acquire().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(permit));
    });
    assert_eq!(sem.available(), 1);
}

/// A signal handler does not end a wait, and a waiter takes no processor's time.
#[test]
fn a_waiter_sleeps_on() {
    let room = room(Semaphore::new(0));
    let _watchdog = watch("a_waiter_sleeps_on", &room);
    let child = fork_child(|| {
        common::catch_user_signals();
        Spin::Never.set();
        room.visits.store(1, SeqCst);
        room.seats.acquire().unwrap().forget();
        assert_eq!(room.visits.load(SeqCst), 2, "a signal has ended the wait");
        assert!(thread_cpu() < ms(100), "it has not slept: {:?}", thread_cpu());
    });
    common::eventually("it comes", || room.visits.load(SeqCst) >= 1);
    child.disturb_asleep(50, ms(5));
    room.visits.store(2, SeqCst);
    room.seats.release(1).unwrap();
    child.succeeds();
}

/// A process that releases to sleepers becomes a peer first. If it is killed before it has woken
/// them, its peers have to notice. (A peer has one more thread, the sentinel.)
#[test]
fn a_releaser_is_known() {
    let room = room(Semaphore::new(0));
    let _watchdog = watch("a_releaser_is_known", &room);
    let sleeper = fork_child(|| room.seats.acquire_many(2).unwrap().forget());
    sleeper.until_waiting();
    let releaser = fork_child(|| {
        assert_eq!(common::threads(), 1);
        room.seats.release(2).unwrap();
        assert!(common::threads() > 1); // one for each segment of this process
    });
    releaser.succeeds();
    sleeper.succeeds();
}

#[test]
fn outside_of_shared_memory() {
    let sem = Semaphore::new(1);
    drop(sem.acquire().unwrap()); // this needs no peer
    let held = sem.acquire().unwrap();
    assert_eq!(sem.acquire_timeout(ms(1)).unwrap_err(), Fault::NotShared.into());
    drop(held);
}

/// Whatever the word and the ceiling hold, calls end, and nothing panics.
#[test]
fn arbitrary_bytes() {
    let sem = semaphore(Semaphore::new(0));
    let _watchdog = watch("arbitrary_bytes", &sem);
    let file = std::fs::File::from(sem.try_clone_fd().unwrap());
    let at = file.metadata().unwrap().len() - 4_096;
    for word in [0, 1, 2, 3, 4, 7, u32::MAX, u32::MAX - 3, 1 << 31] {
        for ceiling in [0, 1, u32::MAX] {
            let mut bytes = vec![0; 4_096];
            file.read_exact_at(&mut bytes, at).unwrap();
            let offset = std::ptr::from_ref::<Semaphore>(&sem).addr() % 4_096;
            file.write_all_at(&u32::to_ne_bytes(word), at + offset as u64).unwrap();
            let last = (offset + size_of::<Semaphore>() - 4) as u64;
            file.write_all_at(&u32::to_ne_bytes(ceiling), at + last).unwrap();
            drop(sem.acquire_timeout(ms(1)));
            drop(sem.acquire_many_timeout(u32::MAX, ms(1)));
            sem.release(3).ok();
            assert!(sem.available() <= MAX_PERMITS);
        }
    }
}

// ------------------------------------------------------------------------------------- with owners

outlast::shared! {
    #[derive(Debug)]
    struct Hall { seats: OwnedSemaphore, inside: AtomicU32, most: AtomicU32, visits: AtomicU32 }
}

fn hall(permits: u32) -> Shared<Hall> {
    let zero = || AtomicU32::new(0);
    let seats = OwnedSemaphore::new(permits);
    Shared::anonymous(Hall { seats, inside: zero(), most: zero(), visits: zero() }).unwrap()
}

#[test]
fn owned_alone() {
    let hall = hall(3);
    let _watchdog = watch("owned_alone", &hall);
    let seats = &hall.seats;
    let two = seats.acquire_many(2).unwrap();
    assert_eq!((two.count(), seats.available(), seats.permits()), (2, 1, 3));
    assert!(seats.try_acquire_many(2).unwrap().is_none());
    let one = seats.try_acquire().unwrap().unwrap();
    let began = Instant::now();
    assert_eq!(seats.acquire_timeout(ms(20)).unwrap_err(), TimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    assert_eq!(seats.acquire_deadline(began).unwrap_err(), TimeoutError::TimedOut);
    assert_eq!(seats.acquire_many_timeout(u32::MAX, ms(1)).unwrap_err(), TimeoutError::TimedOut);
    let began = Instant::now();
    assert_eq!(seats.acquire_many_deadline(2, began + ms(5)).unwrap_err(), TimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(5));
    let mut copy = Some(one);
    fork_child(|| drop(copy.take())).succeeds();
    assert_eq!(seats.available(), 0, "a copy made by fork has given back");
    std::thread::scope(|scope| {
        scope.spawn(move || drop(copy));
    });
    assert_eq!(seats.available(), 1);
    drop(two);
    drop(seats.acquire_deadline(began).unwrap());
    drop(seats.acquire_many_deadline(3, began).unwrap());
    assert_eq!(seats.available(), 3);
    assert_eq!(OwnedSemaphore::new(1).acquire().unwrap_err(), Fault::NotShared);
}

#[test]
fn owned_no_more_than_permits() {
    worlds(
        "owned_no_more_than_permits",
        "",
        5,
        || hall(3),
        |hall, i| {
            for _ in 0..100 {
                let permit = hall.seats.acquire_many(1 + u32::try_from(i).unwrap() % 3).unwrap();
                let inside = hall.inside.fetch_add(permit.count(), SeqCst) + permit.count();
                hall.most.fetch_max(inside, SeqCst);
                hall.visits.fetch_add(1, SeqCst);
                std::thread::yield_now();
                hall.inside.fetch_sub(permit.count(), SeqCst);
            }
        },
        |hall| {
            assert!(hall.most.load(SeqCst) <= 3);
            assert_eq!((hall.visits.load(SeqCst), hall.seats.available()), (500, 3));
        },
    );
}

/// Permits of killed processes come back, and waiting processes get them.
#[test]
fn owned_permits_come_back() {
    let hall = hall(2);
    let _watchdog = watch("owned_permits_come_back", &hall);
    for round in 1..=30 {
        let holder = fork_child(|| {
            hall.seats.acquire_many(2).unwrap().forget();
            hall.visits.store(round, SeqCst);
            sleep_for_ever();
        });
        common::eventually("it holds", || hall.visits.load(SeqCst) == round);
        assert_eq!(hall.seats.available(), 0);
        let waiters: Vec<_> =
            (0..2).map(|_| fork_child(|| drop(hall.seats.acquire().unwrap()))).collect();
        waiters.iter().for_each(common::Child::until_waiting);
        holder.kill9();
        waiters.into_iter().for_each(common::Child::succeeds);
        assert_eq!(hall.seats.available(), 2);
    }
}

/// CPython's `test_try_acquire_contended`: of many that try without waiting, only as many succeed
/// as there are permits.
#[test]
fn owned_try_contended() {
    worlds(
        "owned_try_contended",
        "",
        4,
        || hall(4),
        |hall, _| {
            for _ in 0..200 {
                let mut held = Vec::new();
                while let Some(permit) = hall.seats.try_acquire().unwrap() {
                    let inside = hall.inside.fetch_add(1, SeqCst) + 1;
                    hall.most.fetch_max(inside, SeqCst);
                    held.push(permit);
                }
                for permit in held {
                    hall.inside.fetch_sub(1, SeqCst);
                    drop(permit);
                }
            }
        },
        |hall| {
            assert!((1..=4).contains(&hall.most.load(SeqCst)));
            assert_eq!(hall.seats.available(), 4);
        },
    );
}

/// CPython's `test_multirelease`, by owners: each who gives back lets others through, for as many
/// as there are.
#[test]
fn owned_give_back_lets_through() {
    worlds(
        "owned_give_back_lets_through",
        "",
        4,
        || hall(3),
        |hall, i| {
            if i > 0 {
                Spin::Never.set();
                common::eventually("all are taken", || hall.visits.load(SeqCst) > 0);
                let permit = hall.seats.acquire().unwrap();
                hall.visits.fetch_add(1, SeqCst);
                common::eventually("all are in", || hall.visits.load(SeqCst) == 4);
                drop(permit);
                return;
            }
            let all = hall.seats.acquire_many(3).unwrap();
            hall.visits.store(1, SeqCst);
            std::thread::sleep(ms(20));
            assert_eq!(hall.visits.load(SeqCst), 1);
            drop(all);
        },
        |hall| assert_eq!((hall.visits.load(SeqCst), hall.seats.available()), (4, 3)),
    );
}

#[test]
fn owned_timeouts_everywhere() {
    worlds(
        "owned_timeouts_everywhere",
        "",
        3,
        || hall(2),
        |hall, i| {
            let seats = &hall.seats;
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            if i == 0 {
                // An available permit is acquired even past the deadline. (No other thread competes
                // yet.)
                drop(seats.acquire_deadline(past).unwrap());
                drop(seats.acquire_timeout(AT_ONCE).unwrap());
                drop(seats.acquire_many_timeout(2, AT_ONCE).unwrap());
                let held = seats.acquire_many(2).unwrap();
                hall.visits.store(1, SeqCst);
                common::eventually("both have waited", || hall.visits.load(SeqCst) == 3);
                drop(held);
            } else {
                common::eventually("all are taken", || hall.visits.load(SeqCst) > 0);
                let began = Instant::now();
                assert_eq!(seats.acquire_timeout(ms(30)).unwrap_err(), TimeoutError::TimedOut);
                assert!(began.elapsed() >= ms(30));
                let began = Instant::now();
                assert_eq!(
                    seats.acquire_many_timeout(2, ms(20)).unwrap_err(),
                    TimeoutError::TimedOut
                );
                assert!(began.elapsed() >= ms(20));
                let end = Instant::now() + ms(20);
                assert_eq!(seats.acquire_deadline(end).unwrap_err(), TimeoutError::TimedOut);
                assert!(Instant::now() >= end);
                assert_eq!(seats.acquire_deadline(past).unwrap_err(), TimeoutError::TimedOut);
                assert_eq!(seats.acquire_timeout(AT_ONCE).unwrap_err(), TimeoutError::TimedOut);
                hall.visits.fetch_add(1, SeqCst);
            }
            drop(seats.acquire_timeout(Duration::MAX).unwrap());
        },
        |hall| assert_eq!(hall.seats.available(), 2),
    );
}

#[test]
fn owned_zero_and_huge() {
    let none = hall(0);
    let _watchdog = watch("owned_zero_and_huge", &none);
    assert_eq!((none.seats.permits(), none.seats.available()), (0, 0));
    assert!(none.seats.try_acquire().unwrap().is_none());
    assert_eq!(none.seats.acquire_timeout(ms(5)).unwrap_err(), TimeoutError::TimedOut);
    assert_eq!(none.seats.try_acquire_many(0).unwrap().unwrap().count(), 0);
    assert_eq!(none.seats.acquire_many(0).unwrap().count(), 0);

    for permits in [(1 << 20) - 1, 1 << 20, u32::MAX - 1, u32::MAX] {
        let large = hall(permits);
        let seats = &large.seats;
        let one = seats.acquire().unwrap();
        assert!(seats.try_acquire_many(permits).unwrap().is_none());
        let rest = seats.try_acquire_many(permits - 1).unwrap().unwrap();
        assert_eq!((rest.count(), seats.available()), (permits - 1, 0));
        assert!(seats.try_acquire().unwrap().is_none());
        fork_child(|| assert!(seats.try_acquire_many(u32::MAX).unwrap().is_none())).succeeds();
        drop(one);
        assert_eq!(seats.available(), 1);
        drop(rest);
        drop(seats.try_acquire_many(permits).unwrap().unwrap());
        assert_eq!(seats.available(), permits);
    }
}

/// So many processes hold permits at a time; one more is told so. One that has given all back is no
/// holder any more.
#[test]
fn owned_holders() {
    let hall = hall(1_000);
    let _watchdog = watch("owned_holders", &hall);
    let permits: Vec<_> = (0..MAX_HOLDERS - 1)
        .map(|_| {
            fork_child(|| {
                let permit = hall.seats.acquire().unwrap();
                hall.visits.fetch_add(1, SeqCst);
                common::eventually("give back", || hall.most.load(SeqCst) == 1);
                drop(permit);
                hall.inside.fetch_add(1, SeqCst);
                sleep_for_ever();
            })
        })
        .collect();
    let most = u32::try_from(MAX_HOLDERS).unwrap();
    common::eventually("all but one hold", || hall.visits.load(SeqCst) == most - 1);
    // This process is one holder.
    let held: Vec<_> = (0..10).map(|_| hall.seats.acquire().unwrap()).collect();
    let one_more = fork_child(|| {
        assert_eq!(hall.seats.acquire().unwrap_err(), Fault::TooManyPeers);
        assert_eq!(hall.seats.try_acquire().unwrap_err(), Fault::TooManyPeers);
        assert_eq!(hall.seats.acquire_timeout(ms(1)).unwrap_err(), Fault::TooManyPeers.into());
    });
    one_more.succeeds();
    assert_eq!(hall.seats.available(), 1_000 - most + 1 - 10);
    drop(held);
    fork_child(|| drop(hall.seats.acquire().unwrap())).succeeds();
    // All the others live on, without permits.
    hall.most.store(1, SeqCst);
    common::eventually("all have given back", || hall.inside.load(SeqCst) == most - 1);
    let others: Vec<_> = (0..MAX_HOLDERS)
        .map(|_| {
            fork_child(|| {
                let permit = hall.seats.acquire().unwrap();
                hall.visits.fetch_add(1, SeqCst);
                common::eventually("end", || hall.most.load(SeqCst) == 2);
                drop(permit);
            })
        })
        .collect();
    common::eventually("others hold", || hall.visits.load(SeqCst) == 2 * most - 1);
    hall.most.store(2, SeqCst);
    others.into_iter().for_each(common::Child::succeeds);
    permits.into_iter().for_each(common::Child::kill9);
    assert_eq!(hall.seats.available(), 1_000);
}

/// A signal handler does not end a wait, and a waiter takes no processor's time.
#[test]
fn owned_waiter_sleeps_on() {
    let hall = hall(1);
    let _watchdog = watch("owned_waiter_sleeps_on", &hall);
    let held = hall.seats.acquire().unwrap();
    let child = fork_child(|| {
        common::catch_user_signals();
        Spin::Never.set();
        hall.visits.store(1, SeqCst);
        drop(hall.seats.acquire().unwrap());
        assert_eq!(hall.visits.load(SeqCst), 2, "a signal has ended the wait");
        assert!(thread_cpu() < ms(100), "it has not slept: {:?}", thread_cpu());
    });
    common::eventually("it comes", || hall.visits.load(SeqCst) >= 1);
    child.disturb_asleep(50, ms(3));
    hall.visits.store(2, SeqCst);
    drop(held);
    child.succeeds();
}

/// Signals make a timeout neither later nor earlier; of either semaphore.
#[test]
fn signals_during_a_timeout() {
    let (room, hall) = (room(Semaphore::new(0)), hall(0));
    let _watchdog = watch("signals_during_a_timeout", &room);
    let child = fork_child(|| {
        common::catch_user_signals();
        room.visits.store(1, SeqCst);
        let began = Instant::now();
        assert_eq!(room.seats.acquire_timeout(ms(80)).unwrap_err(), TimeoutError::TimedOut);
        assert!(began.elapsed() >= ms(80));
        let began = Instant::now();
        assert_eq!(hall.seats.acquire_timeout(ms(80)).unwrap_err(), TimeoutError::TimedOut);
        assert!(began.elapsed() >= ms(80));
        room.visits.store(2, SeqCst);
    });
    common::eventually("it comes", || room.visits.load(SeqCst) >= 1);
    child.disturb_while(|| room.visits.load(SeqCst) == 1);
    child.succeeds();
}

/// Killed waiters take nothing with them, and no wake; killed at any time, holders neither.
#[test]
fn owned_kills_without_end() {
    let hall = hall(2);
    let _watchdog = watch("owned_kills_without_end", &hall);
    let mut random = common::Random::new(13);
    for round in 0..40 {
        let held = hall.seats.acquire_many(2).unwrap();
        let mut visitors: Vec<_> = (0..4)
            .map(|i| {
                fork_child(|| {
                    for _ in 0..40 {
                        drop(hall.seats.acquire_many(1 + i % 2).unwrap());
                    }
                })
            })
            .collect();
        if round % 2 == 0 {
            visitors.iter().for_each(common::Child::until_waiting);
        }
        drop(held);
        for _ in 0..2 {
            common::busy(random.micros(800));
            let victim = visitors.swap_remove(random.index(visitors.len()));
            victim.signal(libc::SIGKILL);
            assert!(matches!(victim.wait(), common::KILLED | common::OK));
        }
        visitors.into_iter().for_each(common::Child::succeeds);
        // The kernel has reported the deaths by now, and a peer recovers from them.
        let all = hall.seats.acquire_many_timeout(2, common::PATIENCE).unwrap();
        assert_eq!(all.count(), 2);
    }
}

/// Permits are the process's: they stay when the thread that took them ends, and come back when the
/// process ends by itself.
#[test]
fn owned_permits_outlive_threads() {
    let hall = hall(3);
    let _watchdog = watch("owned_permits_outlive_threads", &hall);
    let permit = std::thread::scope(|scope| {
        scope.spawn(|| hall.seats.acquire_many(2).unwrap()).join().unwrap()
    });
    fork_child(|| drop(hall.seats.acquire().unwrap())).succeeds();
    std::thread::sleep(ms(20));
    assert_eq!(hall.seats.available(), 1);
    drop(permit);
    fork_child(|| hall.seats.acquire_many(3).unwrap().forget()).succeeds();
    let all = hall.seats.acquire_many_timeout(3, common::PATIENCE).unwrap();
    assert_eq!(all.count(), 3);
}

/// A copy made by fork gives nothing back, and the end of its process neither; what the child takes
/// is its own.
#[test]
fn owned_copies_made_by_fork() {
    let hall = hall(3);
    let _watchdog = watch("owned_copies_made_by_fork", &hall);
    let mut permit = Some(hall.seats.acquire_many(2).unwrap());
    fork_child(|| {
        let own = hall.seats.acquire().unwrap();
        drop(permit.take());
        assert_eq!(hall.seats.available(), 0);
        drop(own);
        assert_eq!(hall.seats.available(), 1);
        hall.seats.acquire().unwrap().forget();
    })
    .succeeds();
    let killed = fork_child(|| {
        hall.visits.store(1, SeqCst);
        let _copy = permit.take();
        sleep_for_ever();
    });
    common::eventually("it runs", || hall.visits.load(SeqCst) == 1);
    killed.kill9();
    drop(hall.seats.acquire_timeout(common::PATIENCE).unwrap());
    assert_eq!(hall.seats.available(), 1);
    drop(permit);
    assert_eq!(hall.seats.available(), 3);
}

/// A permit is given back only by its owner. Once the cell belongs to another process, nothing is
/// taken from that process.
#[test]
fn owned_permits_of_a_lost_cell() {
    let hall = hall(3);
    let _watchdog = watch("owned_permits_of_a_lost_cell", &hall);
    let permit = hall.seats.acquire().unwrap();
    // The value lies in the last page; the only cell in use holds one permit for the first process.
    let file = std::fs::File::from(hall.try_clone_fd().unwrap());
    let page = file.metadata().unwrap().len() - 4_096;
    let mut bytes = vec![0; 4_096];
    file.read_exact_at(&mut bytes, page).unwrap();
    let start = std::ptr::from_ref(&hall.seats).addr() % 4_096;
    let ours = (1_u64 << 32 | 1).to_ne_bytes();
    let is_ours = |at: &usize| bytes[*at..*at + 8] == ours;
    let end = start + size_of::<OwnedSemaphore>();
    let at = (start..end).step_by(8).find(is_ours).expect("a cell");
    let theirs = (2_u64 << 32 | 0x7ff).to_ne_bytes();
    common::scribble(&hall.seats, at - start, &theirs);
    assert_eq!(hall.seats.available(), 1);
    drop(permit);
    assert_eq!(hall.seats.available(), 1);
}

/// A process that is stopped while it acquires permits keeps no other one longer than its timeout.
#[test]
#[cfg(not(outlast_pthread))] // which has its word first, in which the owner's thread id stands
fn owned_by_one_that_is_stopped() {
    let hall = hall(2);
    let _watchdog = watch("owned_by_one_that_is_stopped", &hall);
    drop(hall.seats.acquire().unwrap());
    let idle = fork_child(|| sleep_for_ever());
    common::scribble(&hall.seats, 0, &u32::to_ne_bytes(u32::try_from(idle.pid).unwrap()));
    let began = Instant::now();
    assert_eq!(hall.seats.acquire_timeout(ms(30)).unwrap_err(), TimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(30));
    assert!(hall.seats.try_acquire().unwrap().is_none());
    assert_eq!(hall.seats.acquire_deadline(began).unwrap_err(), TimeoutError::TimedOut);
    common::scribble(&hall.seats, 0, &[0; 4]);
    drop(hall.seats.try_acquire().unwrap().unwrap());
}

/// What is wrong is told as what it is.
#[test]
fn owned_by_one_with_too_many_locks() {
    let hall = hall(2);
    let _watchdog = watch("owned_by_one_with_too_many_locks", &hall);
    drop(hall.seats.acquire().unwrap()); // this thread is a peer from here on
    let locks = Shared::anonymous(core::array::from_fn::<_, 1_000, _>(|_| Lock::new(0_u8)));
    let locks = locks.unwrap();
    let held: Vec<_> = locks.iter().map_while(|lock| lock.lock().ok()).collect();
    let refused = hall.seats.acquire_timeout(ms(1)).map(drop);
    assert!(held.len() >= 990);
    assert_eq!(refused, Err(Fault::TooManyLocks.into()));
    drop(held);
    drop(hall.seats.acquire().unwrap());
}

/// Whatever the memory holds, calls that have a deadline end, and nothing panics.
#[test]
fn owned_arbitrary_bytes() {
    let mut random = common::Random::new(17);
    for round in 0..300 {
        let hall = hall(2);
        let seats = &hall.seats;
        let _watchdog = watch(&format!("owned_arbitrary_bytes, round {round}"), &hall);
        let permit = seats.acquire();
        // (With the other backend, objects of the C library's lie before the cells.)
        let size = size_of::<OwnedSemaphore>();
        let first = if cfg!(not(outlast_pthread)) { 0 } else { size - 8 * MAX_HOLDERS };
        let at = first + random.index(size - first);
        let bytes = random.bytes(size - at);
        common::scribble(seats, at, &bytes[..1 + random.index(size - at)]);
        drop(format!("{seats:?}"));
        core::hint::black_box((seats.available(), seats.permits()));
        let try_all = || {
            let sane = |fault| {
                assert!(matches!(fault, Fault::Corrupt | Fault::TooManyPeers), "{fault}");
            };
            let late = |taken: Result<_, TimeoutError>| match taken.map(drop) {
                Ok(()) | Err(TimeoutError::TimedOut) => {}
                Err(TimeoutError::Failed(fault)) => sane(fault),
                Err(other) => panic!("{other}"),
            };
            seats.try_acquire().map_or_else(sane, drop);
            late(seats.acquire_timeout(ms(1)));
            late(seats.acquire_deadline(Instant::now()));
            late(seats.acquire_many_timeout(u32::MAX, ms(1)));
            seats.try_acquire_many(0).map_or_else(sane, drop);
        };
        try_all();
        drop(permit);
        // Recovery copes with any bytes.
        fork_child(|| core::mem::forget(seats.acquire_timeout(ms(1)))).succeeds();
        try_all();
    }
}
