//! `Event`: both kinds, in threads and processes, with deaths, signals and timeouts.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    KILLED, OK, Random, Stage, eventually, fork_child, ms, sleep_for_ever, until_waiting, watch,
    watch_alone, worlds,
};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{Event, Fault, Shared, Spin};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Signals { manual: Event, auto: Event, count: AtomicU32, step: AtomicU32, stop: AtomicU32 }
}

fn signals() -> Shared<Signals> {
    Shared::anonymous(Signals {
        manual: Event::manual(false),
        auto: Event::auto(false),
        count: AtomicU32::new(0),
        step: AtomicU32::new(0),
        stop: AtomicU32::new(0),
    })
    .unwrap()
}

fn event(event: Event) -> Shared<Event> {
    Shared::anonymous(event).unwrap()
}

const AT_ONCE: Duration = Duration::ZERO;

// -------------------------------------------------------------------- what one thread can see

/// What CPython's `test.lock_tests.EventTests` asks of an event.
#[test]
fn alone() {
    let event = event(Event::manual(false));
    let _watchdog = watch("alone", &event);
    assert!(!event.is_set());
    event.set();
    assert!(event.is_set());
    event.set();
    assert!(event.is_set());
    event.wait().unwrap();
    assert!(event.wait_timeout(AT_ONCE).unwrap());
    assert!(event.wait_deadline(Instant::now().checked_sub(ms(9)).unwrap()).unwrap());
    assert!(event.is_set(), "waiting has reset it");
    event.reset();
    assert!(!event.is_set());
    event.reset();
    assert!(!event.is_set());
    assert!(!event.wait_timeout(AT_ONCE).unwrap());
    assert!(!event.is_set());
}

#[test]
fn an_auto_event_lets_one_through() {
    let event = event(Event::auto(false));
    let _watchdog = watch("an_auto_event_lets_one_through", &event);
    assert!(!event.wait_timeout(AT_ONCE).unwrap());
    event.set();
    event.set(); // twice is once
    assert!(event.is_set());
    assert!(event.wait_timeout(AT_ONCE).unwrap());
    assert!(!event.is_set());
    assert!(!event.wait_timeout(AT_ONCE).unwrap());
    event.set();
    event.reset();
    assert!(!event.wait_timeout(AT_ONCE).unwrap());
    event.set();
    event.wait().unwrap();
    assert!(!event.wait_deadline(Instant::now() + ms(1)).unwrap());
    assert!(!event.try_wait());
    event.set();
    assert_eq!((event.try_wait(), event.try_wait()), (true, false));
}

#[test]
fn born_set() {
    let _watchdog = watch_alone("born_set");
    for manual in [true, false] {
        let event = event(if manual { Event::manual(true) } else { Event::auto(true) });
        assert!(event.is_set());
        assert!(event.wait_timeout(AT_ONCE).unwrap());
        assert_eq!(event.is_set(), manual);
    }
}

#[test]
fn outside_of_shared_memory() {
    for event in [Event::manual(false), Event::auto(false)] {
        assert_eq!(event.wait_timeout(ms(1)), Err(Fault::NotShared));
        event.set();
        assert!(event.is_set());
        assert_eq!(event.wait_timeout(ms(1)), Ok(true), "there was no need to wait");
    }
}

#[test]
fn timeouts_are_not_early() {
    let shared = signals();
    let _watchdog = watch("timeouts_are_not_early", &shared);
    for spin in [Spin::Adaptive, Spin::Never, Spin::For(ms(3))] {
        spin.set();
        for event in [&shared.manual, &shared.auto] {
            for wait in [0, 1, 2, 40] {
                let began = Instant::now();
                assert!(!event.wait_timeout(ms(wait)).unwrap());
                assert!(began.elapsed() >= ms(wait), "{spin:?}: {:?}", began.elapsed());
                let at = Instant::now() + ms(wait);
                assert!(!event.wait_deadline(at).unwrap());
                assert!(Instant::now() >= at);
            }
        }
    }
}

/// Times that no clock can show are for ever, and those that it just can show are no error.
#[test]
fn endless_timeouts() {
    let shared = signals();
    let _watchdog = watch("endless_timeouts", &shared);
    let ages = Duration::from_secs(1 << 40);
    for timeout in
        [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(1 << 62), ages]
    {
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let event = &shared.auto;
            let waiter = scope.spawn(move || {
                tell.send(common::thread_id()).unwrap();
                event.wait_timeout(timeout)
            });
            until_waiting(told.recv().unwrap());
            event.set();
            assert_eq!(waiter.join().unwrap(), Ok(true));
        });
    }
    shared.manual.set();
    assert!(shared.manual.wait_deadline(Instant::now() + ages).unwrap());
}

// ------------------------------------------------------------------------------- many waiters

#[test]
fn manual_lets_everybody_through() {
    worlds(
        "manual_lets_everybody_through",
        "",
        4,
        signals,
        |shared, role| {
            let event = &shared.manual;
            for round in 0..60 {
                if role == 0 {
                    eventually("all others are at it", || {
                        shared.count.load(SeqCst) == 3 * (round + 1)
                    });
                    if round % 2 == 0 {
                        std::thread::sleep(ms(1));
                    }
                    event.set();
                    shared.step.reach(2 * round + 1);
                    eventually("all have passed", || shared.stop.load(SeqCst) == 3 * (round + 1));
                    event.reset();
                    shared.step.reach(2 * round + 2);
                } else {
                    shared.count.fetch_add(1, SeqCst);
                    match round % 3 {
                        0 => event.wait().unwrap(),
                        1 => assert!(event.wait_timeout(common::PATIENCE).unwrap()),
                        _ => {
                            assert!(event.wait_deadline(Instant::now() + common::PATIENCE).unwrap())
                        }
                    }
                    assert!(event.is_set());
                    shared.stop.fetch_add(1, SeqCst);
                    shared.step.until(2 * round + 2);
                }
            }
        },
        |shared| assert!(!shared.manual.is_set()),
    );
}

/// The event is set and immediately reset. All threads that waited before get through, as in
/// CPython (bpo-8777).
#[test]
fn a_pulse_reaches_all_who_wait() {
    outlast::shared! {
        #[derive(Debug)]
        struct Pulse { event: Event, who: [AtomicU64; 4], passed: AtomicU32, step: AtomicU32 }
    }
    let make = || {
        let who = core::array::from_fn(|_| AtomicU64::new(0));
        let (passed, step) = (AtomicU32::new(0), AtomicU32::new(0));
        Shared::anonymous(Pulse { event: Event::manual(false), who, passed, step }).unwrap()
    };
    worlds(
        "a_pulse_reaches_all_who_wait",
        "",
        4,
        make,
        |shared, role| {
            Spin::Never.set();
            for round in 1..=20 {
                if role > 0 {
                    shared.who[role].store(common::who_am_i(), SeqCst);
                    let t0 = Instant::now();
                    assert!(
                        shared.event.wait_timeout(ms(3000)).unwrap(),
                        "it passed by {round} {role} {shared:?} {:?}",
                        t0.elapsed()
                    );
                    shared.who[role].store(0, SeqCst);
                    shared.passed.fetch_add(1, SeqCst);
                    shared.step.until(round); // not before it is reset
                    continue;
                }
                for who in &shared.who[1..] {
                    eventually("all wait", || common::is_waiting(who.load(SeqCst)));
                }
                shared.event.set();
                shared.event.reset();
                eventually("all are through", || shared.passed.load(SeqCst) == 3 * round);
                assert!(!shared.event.is_set());
                shared.step.reach(round);
            }
        },
        |_| {},
    );
}

/// One set lets exactly one waiter through.
#[test]
fn auto_lets_one_through_at_a_time() {
    const SETS: u32 = 200;
    for (case, spin) in [("asleep", Spin::Never), ("adaptive", Spin::Adaptive)] {
        worlds(
            "auto_lets_one_through_at_a_time",
            case,
            4,
            signals,
            |shared, role| {
                spin.set();
                let event = &shared.auto;
                if role == 0 {
                    for i in 1..=SETS {
                        event.set();
                        eventually("one has passed", || shared.count.load(SeqCst) >= i);
                        if i % 50 == 0 {
                            std::thread::sleep(ms(5));
                        }
                        assert_eq!(shared.count.load(SeqCst), i, "more than one has passed");
                        assert!(!event.is_set());
                    }
                    shared.stop.store(1, SeqCst);
                    while shared.step.load(SeqCst) < 3 {
                        event.set();
                        std::thread::sleep(Duration::from_micros(100));
                    }
                } else {
                    loop {
                        event.wait().unwrap();
                        if shared.stop.load(SeqCst) == 1 {
                            break;
                        }
                        shared.count.fetch_add(1, SeqCst);
                    }
                    shared.step.fetch_add(1, SeqCst);
                }
            },
            |shared| assert_eq!(shared.count.load(SeqCst), SETS),
        );
    }
}

/// Two auto events as a ping and a pong: no signal is lost, none is doubled.
#[test]
fn ping_pong() {
    outlast::shared! {
        #[derive(Debug)]
        struct Table { ping: Event, pong: Event, ball: AtomicU32 }
    }
    let make = || {
        let table =
            Table { ping: Event::auto(false), pong: Event::auto(false), ball: AtomicU32::new(0) };
        Shared::anonymous(table).unwrap()
    };
    const STROKES: u32 = 2_000;
    worlds(
        "ping_pong",
        "",
        2,
        make,
        |table, role| {
            for i in 0..STROKES {
                if role == 0 {
                    assert_eq!(table.ball.swap(2 * i + 1, SeqCst), 2 * i);
                    table.ping.set();
                    table.pong.wait().unwrap();
                } else {
                    table.ping.wait().unwrap();
                    assert_eq!(table.ball.swap(2 * i + 2, SeqCst), 2 * i + 1);
                    table.pong.set();
                }
            }
        },
        |table| assert_eq!(table.ball.load(SeqCst), 2 * STROKES),
    );
}

/// What was written before `set` is seen after `wait`.
#[test]
fn what_was_written_before_is_seen() {
    outlast::shared! {
        #[derive(Debug)]
        struct Letter { there: Event, text: [AtomicU32; 16], read: Event }
    }
    use core::sync::atomic::Ordering::Relaxed;
    let make = || {
        let text = core::array::from_fn(|_| AtomicU32::new(0));
        Shared::anonymous(Letter { there: Event::auto(false), text, read: Event::auto(true) })
            .unwrap()
    };
    worlds(
        "what_was_written_before_is_seen",
        "",
        2,
        make,
        |letter, role| {
            for i in 1..2_000 {
                if role == 0 {
                    letter.read.wait().unwrap();
                    letter.text.iter().for_each(|word| word.store(i, Relaxed));
                    letter.there.set();
                } else {
                    letter.there.wait().unwrap();
                    assert!(letter.text.iter().all(|word| word.load(Relaxed) == i));
                    letter.read.set();
                }
            }
        },
        |_| {},
    );
}

// -------------------------------------------------------------------------------------- deaths

#[test]
fn a_setter_that_is_killed_has_set() {
    let shared = signals();
    let _watchdog = watch("a_setter_that_is_killed", &shared);
    for _ in 0..10 {
        let waiter = fork_child(|| {
            shared.manual.wait().unwrap();
            shared.auto.wait().unwrap();
        });
        waiter.until_waiting();
        let setter = fork_child(|| {
            shared.manual.set();
            shared.auto.set();
            common::exit_now(5);
        });
        assert_eq!(setter.wait(), common::Exit::Code(5));
        waiter.succeeds();
        shared.manual.reset();
        assert!(!shared.auto.is_set());
    }
}

/// A waiter that dies asleep keeps no other waiter from being woken.
#[test]
fn killed_waiters() {
    let shared = signals();
    let _watchdog = watch("killed_waiters", &shared);
    for round in 0..30 {
        let [dies, lives] = [0, 1].map(|_| {
            let waiter = fork_child(|| {
                Spin::Never.set();
                shared.auto.wait().unwrap();
                shared.count.fetch_add(1, SeqCst);
            });
            waiter.until_waiting();
            waiter
        });
        dies.kill9();
        assert_eq!(shared.count.load(SeqCst), round);
        shared.auto.set();
        lives.succeeds();
        assert_eq!(shared.count.load(SeqCst), round + 1);
        assert!(!shared.auto.is_set());
    }
}

/// The waiter that is woken is killed at about the same time, before or after it has taken the
/// signal: the next signal reaches the other one.
#[test]
fn a_waiter_killed_as_it_is_woken() {
    let shared = signals();
    let _watchdog = watch("a_waiter_killed_as_it_is_woken", &shared);
    let mut random = Random::new(3);
    for _ in 0..100 {
        let [dies, lives] = [0, 1].map(|_| {
            let waiter = fork_child(|| {
                Spin::Never.set();
                shared.auto.wait().unwrap();
            });
            waiter.until_waiting();
            waiter
        });
        shared.auto.set();
        common::busy(random.micros(60));
        dies.signal(libc::SIGKILL);
        let taken = dies.wait();
        assert!(matches!(taken, OK | KILLED));
        shared.auto.set();
        lives.succeeds();
        // Either both signals were taken, or the dead one's went to the other, and the second is
        // left.
        shared.auto.reset();
    }
}

// ------------------------------------------------------------------------------------- signals

static EVENT: OnceLock<Shared<Signals>> = OnceLock::new();
static CAUGHT: AtomicU32 = AtomicU32::new(0);

/// python/cpython#85772, #126434.
#[test]
fn set_in_a_signal_handler() {
    extern "C" fn set(_: i32) {
        if let Some(shared) = EVENT.get() {
            shared.manual.set();
            shared.auto.set();
            CAUGHT.fetch_add(1, SeqCst);
        }
    }
    let shared = signals();
    let _watchdog = watch("set_in_a_signal_handler", &shared);
    let waiter = fork_child(|| {
        shared.manual.wait().unwrap();
        shared.auto.wait().unwrap();
        shared.step.reach(2);
    });
    waiter.until_waiting();
    let child = fork_child(|| {
        EVENT.set(shared.clone()).unwrap();
        common::handle(libc::SIGUSR1, set);
        shared.step.reach(1);
        // In the middle of its own operations on the same events, and while it waits itself.
        while shared.step.load(SeqCst) < 2 || CAUGHT.load(SeqCst) < 20 {
            shared.auto.set();
            shared.manual.reset();
            shared.auto.wait_timeout(Duration::from_micros(200)).unwrap();
        }
        shared.manual.wait().unwrap();
        shared.step.reach(3);
    });
    shared.step.until(1);
    while shared.step.load(SeqCst) < 3 {
        child.signal(libc::SIGUSR1);
        std::thread::sleep(Duration::from_micros(500));
    }
    waiter.succeeds();
    child.succeeds();
}

#[test]
fn signals_do_not_end_a_wait() {
    extern "C" fn count(_: i32) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    let shared = signals();
    let _watchdog = watch("signals_do_not_end_a_wait", &shared);
    let child = fork_child(|| {
        common::handle(libc::SIGUSR1, count);
        shared.step.reach(1);
        for event in [&shared.manual, &shared.auto] {
            let began = Instant::now();
            assert!(!event.wait_timeout(ms(150)).unwrap());
            assert!(began.elapsed() >= ms(150), "{:?}", began.elapsed());
        }
        assert!(CAUGHT.load(SeqCst) > 2, "no signals came");
        let before = CAUGHT.load(SeqCst);
        shared.step.reach(2);
        shared.auto.wait().unwrap();
        assert!(CAUGHT.load(SeqCst) > before, "no signals came");
    });
    shared.step.until(1);
    child.disturb_while(|| shared.step.load(SeqCst) < 2);
    for _ in 0..20 {
        child.signal(libc::SIGUSR1);
        std::thread::sleep(ms(1));
    }
    shared.auto.set();
    child.succeeds();
}

#[test]
fn a_waiter_sleeps() {
    for manual in [true, false] {
        let shared = event(if manual { Event::manual(false) } else { Event::auto(false) });
        let _watchdog = watch("a_waiter_sleeps", &shared);
        let child = fork_child(|| {
            assert!(!shared.wait_timeout(AT_ONCE).unwrap()); // becomes a peer
            let before = common::thread_cpu();
            assert!(!shared.wait_timeout(ms(300)).unwrap());
            let used = common::thread_cpu() - before;
            assert!(used < ms(20), "waiting used {used:?} of CPU");
        });
        // The same for the whole process: its sentinel sleeps as well. (Making it a peer costs a
        // little.)
        let (exit, used) = child.wait_with_cpu();
        assert_eq!(exit, OK);
        assert!(used < ms(150), "the child used {used:?}");
    }
}

#[test]
fn who_sets_learns_whether_somebody_slept() {
    for manual in [true, false] {
        let shared = event(if manual { Event::manual(false) } else { Event::auto(false) });
        let _watchdog = watch("who_sets_learns_whether_somebody_slept", &shared);
        assert!(!shared.set(), "there is no waiter");
        assert!(!shared.set(), "it was set");
        shared.reset();
        let child = fork_child(|| shared.wait().unwrap());
        child.until_waiting();
        assert!(shared.set(), "a child slept");
        child.succeeds();
        assert!(!shared.set(), "it has gone");
    }
}

/// Waits begin, time out and get signals, all at the same time.
#[test]
fn a_crowd_with_timeouts() {
    worlds(
        "a_crowd_with_timeouts",
        "",
        4,
        signals,
        |shared, role| {
            let mut random = Random::new(role as u64);
            if role == 0 {
                for _ in 0..1_500 {
                    shared.auto.set();
                    // Many waiters time out at any moment, but one takes every signal.
                    eventually("a waiter takes it", || !shared.auto.is_set());
                    if random.below(4) == 0 {
                        std::thread::sleep(random.micros(300));
                    }
                }
                shared.stop.store(1, SeqCst);
                return;
            }
            while shared.stop.load(SeqCst) == 0 {
                if shared.auto.wait_timeout(random.micros(400)).unwrap() {
                    shared.count.fetch_add(1, SeqCst);
                }
            }
        },
        |shared| assert_eq!(shared.count.load(SeqCst), 1_500),
    );
}

/// A child that is killed while asleep does not disturb the numbers: `sleep_for_ever` children go
/// as well.
#[test]
fn many_kills_then_a_signal() {
    let shared = signals();
    let _watchdog = watch("many_kills_then_a_signal", &shared);
    let waiters: Vec<_> = (0..5)
        .map(|i| {
            fork_child(|| {
                if i == 4 {
                    shared.auto.wait_timeout(AT_ONCE).unwrap();
                    shared.step.reach(1);
                    sleep_for_ever();
                }
                shared.manual.wait().unwrap();
            })
        })
        .collect();
    shared.step.until(1);
    waiters[..4].iter().for_each(common::Child::until_waiting);
    let mut waiters = waiters.into_iter();
    let last = waiters.next().unwrap();
    waiters.for_each(common::Child::kill9);
    shared.manual.set();
    last.succeeds();
}

#[cfg(outlast_hooks)]
mod with_pauses {
    use super::*;
    use outlast::hooks::{self, Action};

    /// A setter that found no sleeper continues when others sleep. It does not remove the mark that
    /// says so, although the event is set once more.
    #[test]
    fn a_setter_that_is_late_hides_no_sleeper() {
        const SET: &str = "event: set, nobody was asleep";
        const AWAKE: &str = "wait: back from its sleep";
        let shared = signals();
        let event = &shared.auto;
        let _watchdog = watch("a_setter_that_is_late_hides_no_sleeper", &shared);
        Spin::Never.set();
        assert!(!event.wait_timeout(ms(1)).unwrap()); // leaves its mark
        let late = fork_child(|| {
            hooks::plan(SET, Action::Stop);
            assert!(!event.set());
        });
        late.until_stopped();
        event.wait().unwrap();
        // They are woken in this order. The first one stays, as its end would wake the second.
        let first = fork_child(|| {
            hooks::plan(AWAKE, Action::Stop);
            event.wait().unwrap();
            shared.step.reach(1);
            sleep_for_ever();
        });
        first.until_waiting();
        let second = fork_child(|| event.wait().unwrap());
        second.until_waiting();
        std::thread::sleep(ms(30));
        assert!(event.set(), "no sleeper was woken");
        first.until_stopped();
        late.signal(libc::SIGCONT);
        late.succeeds();
        first.signal(libc::SIGCONT);
        shared.step.until(1);
        assert!(event.set(), "no sleeper was woken");
        second.succeeds();
        first.kill9();
    }
}
