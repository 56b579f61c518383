//! Models of `Event`.
use crate::{SOON, asleep, check, join, killed_anywhere, share, spawn};
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use outlast::{Event, Shareable};
use std::sync::Arc;

#[test]
fn manual_event_shows_what_was_written_before() {
    check(|| {
        let event = share(Event::manual(false));
        let written = Arc::new(AtomicU32::new(0));
        let waiters = [(); 2].map(|()| {
            let written = written.clone();
            spawn(&event, move |event| {
                event.wait().unwrap();
                assert_eq!(written.load(Relaxed), 1);
            })
        });
        written.store(1, Relaxed);
        event.set();
        join(waiters);
        assert!(event.is_set());
    });
}

#[test]
fn manual_event_seen_as_set_shows_what_was_written_before() {
    check(|| {
        let event = share(Event::manual(false));
        let written = Arc::new(AtomicU32::new(0));
        let watcher = {
            let written = written.clone();
            spawn(&event, move |event| {
                if event.is_set() || event.wait_timeout(SOON).unwrap() {
                    assert_eq!(written.load(Relaxed), 1);
                }
            })
        };
        written.store(1, Relaxed);
        event.set();
        watcher.join().unwrap();
    });
}

/// Whether a thread may be asleep: bit 1 of the word, which only `Debug` shows.
fn has_waiters(event: &Event) -> bool {
    let shown = format!("{event:?}");
    let (_, word) = shown.split_once("0x").unwrap();
    u32::from_str_radix(&word[..8], 16).unwrap() & 2 != 0
}

#[test]
fn manual_event_pulse_releases_who_waited_before() {
    check(|| {
        let event = share(Event::manual(false));
        let waiter = spawn(&event, |event| event.wait().unwrap());
        let waited_before = has_waiters(&event);
        event.set();
        event.reset();
        if !waited_before {
            event.set();
        }
        waiter.join().unwrap();
    });
}

#[test]
fn manual_event_can_be_used_again() {
    check(|| {
        let event = share(Event::manual(false));
        let waiters = [(); 2].map(|()| spawn(&event, |event| event.wait().unwrap()));
        event.set();
        event.reset();
        assert!(!event.is_set());
        event.set();
        join(waiters);
    });
}

#[test]
fn auto_event_lets_one_through_a_time() {
    check(|| {
        let events = share([Event::auto(false), Event::auto(false)]);
        let through = Arc::new(AtomicU32::new(0));
        let waiters = [(); 2].map(|()| {
            let through = through.clone();
            spawn(&events, move |[event, taken]| {
                event.wait().unwrap();
                through.fetch_add(1, Relaxed);
                taken.set();
            })
        });
        let [event, taken] = &*events;
        event.set();
        taken.wait().unwrap();
        assert_eq!(through.load(Relaxed), 1);
        event.set();
        join(waiters);
        assert!(!event.is_set());
    });
}

/// A reset takes the signal back, and leaves the sleepers announced: later sets wake them.
#[test]
fn auto_event_reset_forgets_no_sleeper() {
    check(|| {
        let events = share([Event::auto(false), Event::auto(false)]);
        let sleepers = asleep(|| {
            [(); 2].map(|()| {
                spawn(&events, |[event, taken]| {
                    event.wait().unwrap();
                    taken.set();
                })
            })
        });
        let [event, taken] = &*events;
        event.set();
        event.reset();
        event.set();
        taken.wait().unwrap();
        event.set();
        join(sleepers);
    });
}

#[test]
fn auto_event_timeout_swallows_no_signal() {
    check(|| {
        let event = share(Event::auto(false));
        let timed = spawn(&event, |event| event.wait_timeout(SOON).unwrap());
        let patient = spawn(&event, |event| event.wait().unwrap());
        event.set();
        if timed.join().unwrap() {
            event.set();
        }
        patient.join().unwrap();
        assert!(!event.is_set());
    });
}

#[test]
fn event_outlasts_a_waiter_killed_anywhere() {
    killed_anywhere(|victim| {
        let event = share(Event::auto(false));
        let victim = victim.spawn(&event, |event| event.wait_timeout(SOON).unwrap());
        let patient = spawn(&event, |event| event.wait().unwrap());
        event.set();
        let life = victim.join().unwrap();
        event.recover(&life.dead);
        if life.result != Some(false) {
            event.set(); // it has taken the signal, or may have
        }
        patient.join().unwrap();
    });
}

#[test]
fn event_outlasts_a_setter_killed_anywhere() {
    killed_anywhere(|victim| {
        let event = share(Event::manual(false));
        let waiters = asleep(|| [(); 2].map(|()| spawn(&event, |event| event.wait().unwrap())));
        let victim = victim.spawn(&event, Event::set);
        let life = victim.join().unwrap();
        event.recover(&life.dead);
        if life.result.is_none() {
            event.set();
        }
        join(waiters);
    });
}
