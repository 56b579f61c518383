//! `log::Journal`: records whole and numbered, losses counted, writers killed, in threads and
//! processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{Random, eventually, fork_child, ms, scribble, sleep_for_ever, watch, worlds};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::log::{FixedJournal, Journal, Level, PATIENCE, Record, TEXT, WhenFull};
use outlast::{OpenError, RecvTimeoutError, Shared};
use std::time::{Duration, Instant, SystemTime};

outlast::shared! {
    #[derive(Debug)]
    struct Desk { journal: FixedJournal<64>, written: [AtomicU64; 8], step: AtomicU32 }
}

fn desk() -> Shared<Desk> {
    outlast::Options::new().anonymous_with(|_: &Desk| {}).unwrap()
}

fn journal(capacity: usize) -> Shared<Journal> {
    Shared::<Journal>::with_capacity(capacity).unwrap()
}

fn drain(journal: &Journal) -> Vec<Record> {
    let mut records = journal.records();
    std::iter::from_fn(|| records.try_next()).collect()
}

#[test]
fn a_record_says_who_and_when() {
    let journal = journal(8);
    let _watchdog = watch("a_record_says_who_and_when", &journal);
    let before = SystemTime::now();
    journal.write(Level::Warn, "disk", "93 % full").unwrap();
    journal.write_args(Level::Trace, "", format_args!("{}-{}", 1, "ß")).unwrap();
    let [first, second] = drain(&journal).try_into().unwrap();
    assert_eq!((first.sequence(), second.sequence()), (0, 1));
    assert_eq!(
        (first.level(), first.target(), first.message()),
        (Level::Warn, "disk".into(), "93 % full".into())
    );
    assert_eq!(
        (second.level(), second.target(), second.message()),
        (Level::Trace, "".into(), "1-ß".into())
    );
    assert_eq!(first.pid(), std::process::id());
    assert_eq!(i32::try_from(first.thread_id()), Ok(common::thread_id()));
    let after = SystemTime::now();
    assert!(before <= first.time() && first.time() <= second.time() && second.time() <= after);
    assert!(!first.is_cut());
    assert_eq!(
        first.to_string(),
        format!("WARN {}/{} disk: 93 % full", first.pid(), first.thread_id())
    );
    assert_eq!(journal.losses(), outlast::log::Losses::default());
    assert_eq!(journal.capacity(), 8);
}

#[test]
fn long_texts_are_cut_in_whole_characters() {
    let journal = journal(16);
    let check = |target: &str, message: &str| {
        journal.write(Level::Info, target, message).unwrap();
        let record = drain(&journal).pop().unwrap();
        assert!(target.starts_with(&*record.target()) && record.target().len() <= TEXT / 4);
        assert!(message.starts_with(&*record.message()), "{record:?}");
        let whole = record.target() == target && record.message() == message;
        assert_eq!(record.is_cut(), !whole, "{record:?}");
        assert_eq!(record.to_string().ends_with(" ..."), !whole);
        record.message().len()
    };
    assert_eq!(check("", &"x".repeat(TEXT)), TEXT);
    assert_eq!(check("", &"x".repeat(TEXT + 1)), TEXT);
    // 1 + 2 * 239 bytes; half of a character does not fit.
    assert_eq!(check("a", &"ß".repeat(TEXT)), TEXT - 2);
    assert_eq!(check(&"ß".repeat(TEXT), "x"), 1);
    assert_eq!(check(&"t".repeat(TEXT / 4), &"x".repeat(TEXT)), TEXT * 3 / 4);
    assert_eq!(check("", ""), 0);
    // Nothing follows what was cut off.
    let (long, short) = ("x".repeat(TEXT - 1), "y");
    journal.write_args(Level::Info, "", format_args!("{long}{}{short}", "ß")).unwrap();
    assert_eq!(drain(&journal)[0].message(), long);
}

/// Formatting is over before a slot is claimed.
#[test]
fn a_message_that_panics() {
    struct Bomb;
    impl std::fmt::Display for Bomb {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("as planned")
        }
    }
    let journal = journal(2);
    let write = || journal.write_args(Level::Info, "", format_args!("{Bomb}"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)).unwrap_err();
    journal.write(Level::Info, "", "next").unwrap();
    assert_eq!(drain(&journal)[0].sequence(), 0);
}

#[test]
fn overwrites_the_oldest_or_drops_the_newest() {
    let journal = journal(3);
    let write =
        |n: u32| (0..n).for_each(|i| journal.write(Level::Info, "", &i.to_string()).unwrap());
    let numbers = || {
        drain(&journal)
            .iter()
            .map(|r| (r.sequence(), r.message().parse().unwrap()))
            .collect::<Vec<(u64, u32)>>()
    };
    write(5);
    assert_eq!(numbers(), [(2, 2), (3, 3), (4, 4)]);
    assert_eq!(journal.losses().overwritten, 2);
    assert_eq!(numbers(), []);
    journal.set_when_full(WhenFull::DropNewest);
    write(5);
    assert_eq!(numbers(), [(5, 0), (6, 1), (7, 2)]);
    assert_eq!((journal.losses().overwritten, journal.losses().dropped), (2, 2));
    write(1);
    assert_eq!(numbers(), [(8, 0)]);
    journal.set_when_full(WhenFull::OverwriteOldest);
    write(30);
    assert_eq!(numbers(), [(36, 27), (37, 28), (38, 29)]);
    assert_eq!(journal.losses().overwritten, 2 + 27);
}

/// A collector's successor gets what it had not finished with.
#[test]
fn the_next_collector_goes_on() {
    let journal = journal(8);
    (0..4).for_each(|i| journal.write(Level::Info, "", &i.to_string()).unwrap());
    let mut records = journal.records();
    assert_eq!(records.next().unwrap().message(), "0");
    assert_eq!(records.next().unwrap().message(), "1");
    std::mem::forget(records); // killed while it is busy with record 1
    let mut records = journal.records();
    assert_eq!(records.next().unwrap().message(), "1");
    drop(records); // ends by itself
    assert_eq!(journal.records().next().unwrap().message(), "2");
}

#[test]
fn time_passes() {
    let journal = journal(1);
    let _watchdog = watch("time_passes", &journal);
    let mut records = journal.records();
    let began = Instant::now();
    assert_eq!(records.next_timeout(ms(20)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    assert_eq!(records.next_deadline(began).unwrap_err(), RecvTimeoutError::TimedOut);
    assert_eq!(records.next_timeout(Duration::ZERO).unwrap_err(), RecvTimeoutError::TimedOut);
    journal.write(Level::Info, "", "x").unwrap();
    assert!(records.next_deadline(began).is_ok()); // what is there is had, even too late
    journal.write(Level::Info, "", "y").unwrap();
    journal.close();
    assert!(journal.is_closed());
    assert_eq!(records.next().unwrap().message(), "y");
    assert!(records.next().is_none());
    assert_eq!(records.next_timeout(ms(20)).unwrap_err(), RecvTimeoutError::Closed);
    journal.write(Level::Info, "", "z").unwrap();
    assert_eq!(records.next().unwrap().message(), "z");
}

#[test]
fn capacities() {
    for capacity in [0, outlast::log::MAX_CAPACITY + 1, usize::MAX] {
        let error = Shared::<Journal>::with_capacity(capacity).unwrap_err();
        assert!(matches!(error, OpenError::InvalidCapacity(_)), "{error}");
    }
    let name = format!("journal-{}", std::process::id());
    let here = Shared::<Journal>::create_with_capacity(&name, 5).unwrap();
    let there = Shared::<Journal>::open(&name).unwrap();
    there.write(Level::Info, "", "by name").unwrap();
    assert_eq!((here.capacity(), drain(&here)[0].message()), (5, "by name".into()));
    assert!(matches!(Shared::<FixedJournal<5>>::open(&name), Err(OpenError::OtherType { .. })));
}

/// Role 0 collects; each of the others writes numbers, which come in order, and only those are
/// missing that are counted.
#[test]
fn collected_from_all_worlds() {
    const EACH: u64 = 3_000;
    for when_full in [WhenFull::OverwriteOldest, WhenFull::DropNewest] {
        let make = || {
            let desk = desk();
            desk.journal.set_when_full(when_full);
            desk
        };
        let role = |desk: &Shared<Desk>, role: usize| {
            if role > 0 {
                for i in 0..EACH {
                    let text =
                        format!("{i} {}", "padding ".repeat(usize::try_from(i % 40).unwrap()));
                    desk.journal.write(Level::Info, &role.to_string(), &text).unwrap();
                }
                if desk.step.fetch_add(1, SeqCst) == 2 {
                    desk.journal.close();
                }
                return;
            }
            let (mut next, mut of_each, mut count) = (0, [0; 4], 0_u64);
            for record in desk.journal.records() {
                assert!(record.sequence() >= next, "{record:?}");
                next = record.sequence() + 1;
                count += 1;
                let of = &mut of_each[record.target().parse::<usize>().unwrap()];
                let message = record.message();
                let (number, padding) = message.split_once(' ').unwrap();
                let number: u64 = number.parse().unwrap();
                assert!(number >= *of, "{record:?} after {of}");
                *of = number + 1;
                assert_eq!(padding, "padding ".repeat(usize::try_from(number % 40).unwrap()));
            }
            let lost = desk.journal.losses();
            // Each number is a record, or counted.
            assert_eq!(count + lost.overwritten, next, "{lost:?}");
            match when_full {
                // Numbers that were passed over belong to no record.
                WhenFull::OverwriteOldest => assert!(next >= 3 * EACH, "{next} {lost:?}"),
                _ => assert_eq!(count + lost.dropped, 3 * EACH, "{lost:?}"),
            }
            assert_eq!(lost.unfinished, 0);
        };
        let case = format!("{when_full:?}");
        worlds("collected_from_all_worlds", &case, 4, make, role, |desk| {
            assert!(desk.journal.is_closed());
        });
    }
}

#[test]
fn the_dead_have_said_it() {
    let desk = desk();
    let _watchdog = watch("the_dead_have_said_it", &desk);
    let child = fork_child(|| {
        desk.journal.write(Level::Error, "child", "about to be killed").unwrap();
        desk.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it is written", || desk.step.load(SeqCst) == 1);
    let pid = u32::try_from(child.pid).unwrap();
    child.kill9();
    let record = drain(&desk.journal).pop().unwrap();
    assert_eq!((record.pid(), record.message()), (pid, "about to be killed".into()));
}

/// Writers are killed at any moment. Each counts what it has committed, and all of that comes out.
#[test]
fn kill_storm() {
    let desk = desk();
    let _watchdog = watch("kill_storm", &desk);
    desk.journal.set_when_full(WhenFull::DropNewest);
    let writer = |role: usize| {
        fork_child(|| {
            loop {
                let number = desk.written[role].load(SeqCst);
                let dropped = desk.journal.losses().dropped;
                desk.journal.write(Level::Info, &role.to_string(), &number.to_string()).unwrap();
                // Others may drop meanwhile; then this number is written once more, and may come
                // twice.
                if desk.journal.losses().dropped == dropped {
                    desk.written[role].store(number + 1, SeqCst);
                }
            }
        })
    };
    let (mut random, mut kills) = (Random::new(9), 0);
    let mut writers: Vec<_> = (0..3).map(|role| Some(writer(role))).collect();
    let (mut next, mut of_each, mut gaps) = (0, [0_u64; 3], 0);
    let mut records = desk.journal.records();
    let mut take = |record: Record| {
        gaps += record.sequence() - next;
        next = record.sequence() + 1;
        let of = &mut of_each[record.target().parse::<usize>().unwrap()];
        let number: u64 = record.message().parse().unwrap();
        assert!(
            number == *of || number + 1 == *of,
            "{record:?}, not {of}: a committed record is missing"
        );
        *of = number + 1;
    };
    let mut next_kill = Instant::now();
    while kills < 150 {
        match records.next_timeout(ms(1)) {
            Ok(record) => take(record),
            Err(error) => assert_eq!(error, RecvTimeoutError::TimedOut),
        }
        if Instant::now() >= next_kill {
            let victim = random.index(3);
            writers[victim].take().unwrap().kill9();
            writers[victim] = Some(writer(victim));
            kills += 1;
            next_kill = Instant::now() + Duration::from_micros(500 + random.below(4_000));
        }
    }
    writers.into_iter().flatten().for_each(common::Child::kill9);
    let patience = Instant::now() + PATIENCE * 3;
    let error = loop {
        match records.next_deadline(patience) {
            Ok(record) => take(record),
            Err(error) => break error,
        }
    };
    assert_eq!(error, RecvTimeoutError::TimedOut);
    let lost = desk.journal.losses();
    assert!(gaps <= lost.overwritten + lost.unfinished, "{gaps} gaps, {lost:?}");
    for (role, &seen) in of_each.iter().enumerate() {
        let written = desk.written[role].load(SeqCst);
        assert!(seen >= written, "writer {role}: {written} were committed, {seen} read");
    }
    common::complain(&format!("{kills} kills, {next} records, {gaps} gaps, {lost:?}"));
}

/// A stopped writer is not dead: the collector waits for a while, the other writers never.
#[test]
fn a_record_begun_and_not_finished() {
    let journal = Shared::anonymous(FixedJournal::<4>::new()).unwrap();
    let _watchdog = watch("a_record_begun_and_not_finished", &journal);
    // Lap 1, being written by process 9, which does not exist.
    let begun = (1_u64 << 14 | 1 << 12 | 9).to_ne_bytes();
    scribble::<FixedJournal<4>>(&journal, size_of::<FixedJournal<4>>() - 4 * 512, &begun);
    (1..4).for_each(|i| journal.write(Level::Info, "", &i.to_string()).unwrap());
    let began = Instant::now();
    let mut records = journal.records();
    assert!(records.try_next().is_none());
    assert_eq!(records.next().unwrap().message(), "1");
    assert!(began.elapsed() >= PATIENCE - ms(1));
    assert_eq!((journal.losses().unfinished, records.count_ready()), (1, 2));
    // That slot is not taken. A lap later its position is passed over.
    (4..9).for_each(|i| journal.write(Level::Info, "", &i.to_string()).unwrap());
    let messages: Vec<u64> = drain(&journal).iter().map(|r| r.message().parse().unwrap()).collect();
    assert_eq!(messages, [6, 7, 8]);
}

trait CountReady {
    fn count_ready(&mut self) -> usize;
}

impl CountReady for outlast::log::Records<'_> {
    fn count_ready(&mut self) -> usize {
        std::iter::from_fn(|| self.try_next()).count()
    }
}

#[test]
fn waiting_uses_no_cpu() {
    let journal = journal(4);
    let _watchdog = watch("waiting_uses_no_cpu", &journal);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            outlast::Spin::Never.set();
            let before = common::thread_cpu();
            let record = journal.records().next().unwrap();
            (record, common::thread_cpu() - before)
        });
        std::thread::sleep(ms(300));
        journal.write(Level::Info, "", "at last").unwrap();
        let (record, cpu) = collector.join().unwrap();
        assert_eq!(record.message(), "at last");
        assert!(cpu < ms(100), "{cpu:?}");
    });
}

/// (The C library trusts its mutexes.)
#[cfg(not(outlast_pthread))]
#[test]
fn any_bytes() {
    let mut random = Random::new(4);
    for _ in 0..300 {
        let journal = Shared::anonymous(FixedJournal::<4>::new()).unwrap();
        let _watchdog = watch("any_bytes", &journal);
        let len = size_of::<FixedJournal<4>>();
        if random.below(2) == 0 {
            scribble::<FixedJournal<4>>(&journal, 0, &random.bytes(len));
        } else {
            let at = random.index(len / 8) * 8;
            scribble::<FixedJournal<4>>(&journal, at, &random.bytes(8));
        }
        for i in 0..10 {
            journal.write(Level::Info, "target", &i.to_string()).unwrap();
        }
        let mut records = journal.records();
        for record in std::iter::from_fn(|| records.try_next()).take(100) {
            assert!(record.message().len() <= 3 * TEXT && record.target().len() <= 3 * TEXT);
            assert!(!format!("{record:?} {:?}", record.time()).is_empty());
        }
        assert!(!matches!(records.next_timeout(ms(1)), Err(RecvTimeoutError::Failed(_))));
        journal.close();
        assert!(!format!("{journal:?} {:?}", journal.losses()).is_empty());
    }
}

#[test]
fn in_a_forked_child_it_is_the_childs() {
    let desk = desk();
    let _watchdog = watch("in_a_forked_child_it_is_the_childs", &desk);
    desk.journal.write(Level::Info, "", "parent").unwrap();
    let child = fork_child(|| desk.journal.write(Level::Info, "", "child").unwrap());
    let pid = u32::try_from(child.pid).unwrap();
    child.succeeds();
    let pids: Vec<u32> = drain(&desk.journal).iter().map(|record| record.pid()).collect();
    assert_eq!(pids, [std::process::id(), pid]);
}

/// The macros of the crate `log`, here and in a child, and a collector that hands on to another
/// logger.
#[cfg(feature = "log")]
#[test]
fn sink_and_source_of_the_crate_log() {
    use std::sync::Mutex;
    struct Lines(Mutex<Vec<String>>);
    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let line = format!("{} {} {}", record.level(), record.target(), record.args());
            self.0.lock().unwrap().push(line);
        }
        fn flush(&self) {}
    }
    common::in_own_process("sink_and_source_of_the_crate_log", || {
        let desk = desk();
        outlast::log::init_with(desk.clone(), |desk| &desk.journal, log::LevelFilter::Info)
            .unwrap();
        assert!(
            outlast::log::init_with(desk.clone(), |desk| &desk.journal, log::LevelFilter::Info)
                .is_err()
        );
        log::info!(target: "parent", "{} % full", 93);
        log::debug!("not of interest");
        let child = fork_child(|| {
            log::error!(target: "child", "lost");
            common::exit_now(3);
        });
        let pid = child.pid;
        child.wait();
        let lines = Lines(Mutex::default());
        drain(&desk.journal).iter().for_each(|record| record.log_to(&lines));
        let me = std::process::id();
        let expected =
            [format!("INFO parent [{me}] 93 % full"), format!("ERROR child [{pid}] lost")];
        assert_eq!(*lines.0.lock().unwrap(), expected);
    });
}

/// A layer with all kinds of fields, spans and filters, and another beside it.
#[cfg(feature = "tracing")]
#[test]
fn events_of_the_crate_tracing() {
    use tracing::{Level as L, debug, error, event, info, info_span, trace, warn};
    use tracing_subscriber::prelude::*;
    let (desk, other) = (desk(), journal(8));
    let filter = tracing_subscriber::filter::LevelFilter::DEBUG;
    let subscriber = tracing_subscriber::registry()
        .with(outlast::log::layer_with(desk.clone(), |desk| &desk.journal).with_filter(filter))
        .with(
            outlast::log::layer(other.clone())
                .with_filter(tracing_subscriber::filter::LevelFilter::ERROR),
        );
    let failure = std::io::Error::other("out of \"paper\"");
    tracing::subscriber::with_default(subscriber, || {
        info!("plain");
        trace!("not of interest");
        let outer = info_span!("outer", field = 1).entered();
        let inner = tracing::trace_span!("inner"); // below the filter
        let again = info_span!("again");
        inner.in_scope(|| {
            again.in_scope(|| warn!(target: "disk", percent = 93, path = "a b", ratio = 0.5, "{} full", "nearly"))
        });
        drop(outer);
        debug!(flag = true, shown = %format_args!("x y"), debugged = ?Some('c'), none = tracing::field::Empty);
        error!(parent: &again, error = &failure as &(dyn std::error::Error + 'static), "no luck");
        event!(L::INFO, message = "by name", after = -1_i64);
        info!("{}", "x".repeat(2 * TEXT));
    });
    let records = drain(&desk.journal);
    let seen: Vec<_> = records.iter().map(|r| (r.level(), r.message().into_owned())).collect();
    let long = "x".repeat(TEXT - "log".len());
    let expected = [
        (Level::Info, "plain"),
        (Level::Warn, "outer: again: nearly full percent=93 path=\"a b\" ratio=0.5"),
        (Level::Debug, "flag=true shown=x y debugged=Some('c')"),
        (Level::Error, "outer: again: no luck error=out of \"paper\""),
        (Level::Info, "by name after=-1"),
        (Level::Info, long.as_str()),
    ];
    assert_eq!(seen, expected.map(|(level, text)| (level, text.to_owned())));
    assert_eq!((&*records[0].target(), &*records[1].target()), ("log", "disk"));
    let cut: Vec<bool> = records.iter().map(Record::is_cut).collect();
    assert_eq!(cut, [false, false, false, false, false, true]);
    let [only] = drain(&other).try_into().unwrap();
    // Spans below a layer's filter are not there for it.
    assert_eq!(only.message(), "no luck error=out of \"paper\"");
}

/// What a process had traced when it was killed, in the middle of a span.
#[cfg(feature = "tracing")]
#[test]
fn the_dead_have_traced_it() {
    use tracing_subscriber::prelude::*;
    let desk = desk();
    let _watchdog = watch("the_dead_have_traced_it", &desk);
    let child = fork_child(|| {
        let layer = outlast::log::layer_with(desk.clone(), |desk| &desk.journal);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::error_span!("last").entered();
            for step in 0..10 {
                tracing::info!(step, "goes on");
            }
            desk.step.store(1, SeqCst);
            sleep_for_ever();
        });
    });
    eventually("it is written", || desk.step.load(SeqCst) == 1);
    let pid = u32::try_from(child.pid).unwrap();
    child.kill9();
    let records = drain(&desk.journal);
    assert_eq!(records.len(), 10);
    for (step, record) in records.iter().enumerate() {
        assert_eq!((record.pid(), record.level()), (pid, Level::Info));
        assert_eq!(record.message(), format!("last: goes on step={step}"));
    }
}
