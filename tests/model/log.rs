//! Models of `log::Journal`.
use crate::{check, join, killed_anywhere, share, spawn};
use outlast::Shareable;
use outlast::log::{FixedJournal, Journal, Level, Records, WhenFull};

type Ring<const N: usize> = FixedJournal<N>;

fn write(journal: &Journal, message: &str) {
    journal.write(Level::Info, "", message).unwrap();
}

/// Whole, in order, and each number is a record or is counted.
fn all(records: &mut Records<'_>, journal: &Journal) -> Vec<String> {
    let (mut messages, mut next) = (Vec::new(), 0);
    let mut gaps = 0;
    for record in records.by_ref() {
        let message = record.message().into_owned();
        assert!(
            message.len() == 16 && message.bytes().all(|b| b == message.as_bytes()[0]),
            "{message}"
        );
        gaps += record.sequence() - next;
        next = record.sequence() + 1;
        messages.push(message);
    }
    let lost = journal.losses();
    assert!(lost.overwritten + lost.unfinished >= gaps, "{gaps} gaps, {lost:?}");
    messages
}

const A: &str = "aaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbb";

/// The collector sleeps: a lost wake is a deadlock.
#[test]
fn log_wakes_the_collector() {
    check(|| {
        let journal = share(Ring::<2>::new());
        let writer = spawn(&journal, |journal| write(journal, A));
        let record = journal.records().next().unwrap();
        assert_eq!((record.message().as_ref(), record.sequence()), (A, 0));
        writer.join().unwrap();
    });
}

#[test]
fn log_close_wakes_the_collector() {
    check(|| {
        let journal = share(Ring::<1>::new());
        let writer = spawn(&journal, |journal| {
            write(journal, A);
            journal.close();
        });
        assert_eq!(all(&mut journal.records(), &journal), [A]);
        writer.join().unwrap();
    });
}

/// Two never write one slot.
#[test]
fn log_two_writers() {
    check(|| {
        let journal = share(Ring::<2>::new());
        let writers = [A, B].map(|message| spawn(&journal, move |journal| write(journal, message)));
        join(writers);
        journal.close();
        let mut messages = all(&mut journal.records(), &journal);
        messages.sort();
        assert_eq!(messages, [A, B]);
    });
}

/// A record that is overwritten while it is read is not handed out torn.
#[test]
fn log_is_read_while_overwritten() {
    check(|| {
        let journal = share(Ring::<1>::new());
        write(&journal, A);
        let writer = spawn(&journal, |journal| {
            write(journal, B);
            journal.close();
        });
        let messages = all(&mut journal.records(), &journal);
        assert!(messages == [A, B] || messages == [B], "{messages:?}");
        writer.join().unwrap();
    });
}

#[test]
fn log_two_writers_overwrite() {
    check(|| {
        let journal = share(Ring::<1>::new());
        let writers = [A, B].map(|message| spawn(&journal, move |journal| write(journal, message)));
        join(writers);
        journal.close();
        let messages = all(&mut journal.records(), &journal);
        let lost = journal.losses();
        assert_eq!(
            messages.len() as u64 + lost.overwritten + lost.dropped,
            2,
            "{messages:?} {lost:?}"
        );
    });
}

/// Nothing unread is overwritten.
#[test]
fn log_drops_the_newest() {
    check(|| {
        let journal = share(Ring::<1>::new());
        journal.set_when_full(WhenFull::DropNewest);
        let writer = spawn(&journal, |journal| {
            write(journal, A);
            write(journal, B);
            journal.close();
        });
        let messages = all(&mut journal.records(), &journal);
        assert_eq!(messages[0], A);
        assert_eq!(messages.len() as u64 + journal.losses().dropped, 2);
        writer.join().unwrap();
    });
}

/// Committed records are read. A record that was only begun is passed over, and does not hold up
/// the collector.
#[test]
fn log_writer_killed_anywhere() {
    killed_anywhere(|victim| {
        let journal = share(Ring::<2>::new());
        let writer = victim.spawn(&journal, |journal| write(journal, A));
        let life = writer.join().unwrap();
        journal.recover(&life.dead);
        journal.recover(&life.dead); // may be called again
        write(&journal, B);
        journal.close();
        let messages = all(&mut journal.records(), &journal);
        let lost = journal.losses();
        assert!(messages == [A, B] || messages == [B], "{messages:?}");
        assert!(life.result.is_none() || messages.len() == 2);
        assert!(lost.unfinished <= 1 && lost.overwritten == 0 && lost.dropped == 0, "{lost:?}");
    });
}

/// The collector sleeps meanwhile, and other writers write.
#[test]
fn log_writer_killed_beside_a_collector() {
    killed_anywhere(|victim| {
        let journal = share(Ring::<1>::new());
        let writer = victim.spawn(&journal, |journal| write(journal, A));
        let collector = spawn(&journal, |journal| all(&mut journal.records(), journal));
        let life = writer.join().unwrap();
        journal.recover(&life.dead);
        journal.close();
        let messages = collector.join().unwrap();
        assert!(messages == [A] || life.result.is_none() && messages.is_empty());
    });
}
