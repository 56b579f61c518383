//! One record in three forms: the writer's draft, words in shared memory, and the reader's copy.
use crate::sync::RECORD_WORDS;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use core::fmt;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// The number of bytes of text in a record: of its target and its message together.
pub const TEXT: usize = 8 * RECORD_WORDS;

/// The number of words before the text: the time, the writer, and a word of level and lengths.
pub(super) const HEAD: usize = 3;

/// How important a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// An operation failed.
    Error = 1,
    /// An operation may fail later.
    Warn = 2,
    /// A step of normal work.
    Info = 3,
    /// A detail for the search of a fault.
    Debug = 4,
    /// The finest detail.
    Trace = 5,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        })
    }
}

/// A record before it has a slot. It is complete before a slot is claimed, because formatting runs
/// code of the caller, which may be slow or panic.
pub(super) struct Draft {
    time: u64,
    /// The writer's process id and thread id.
    who: u64,
    level: Level,
    target_len: usize,
    text_len: usize,
    is_cut: bool,
    /// The message was cut: further text is ignored.
    is_full: bool,
    text: [u8; TEXT],
}

impl Draft {
    pub(super) fn new(level: Level, target: &str, (pid, tid): (u32, u32)) -> Self {
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let mut draft = Draft {
            time: u64::try_from(time).unwrap_or(u64::MAX),
            who: u64::from(pid) << 32 | u64::from(tid),
            level,
            target_len: 0,
            text_len: 0,
            is_cut: false,
            is_full: false,
            text: [0; TEXT],
        };
        draft.push(target, TEXT / 4);
        draft.target_len = draft.text_len;
        draft
    }

    /// Appends as much of `text` as fits below `limit`, in whole characters.
    fn push(&mut self, text: &str, limit: usize) {
        let len = whole_characters(text, limit.saturating_sub(self.text_len));
        self.text[self.text_len..][..len].copy_from_slice(&text.as_bytes()[..len]);
        self.text_len += len;
        self.is_cut |= len < text.len();
    }

    /// Returns the words for the slot, without unused ones at the end.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let lens = (self.target_len as u64) << 8 | (self.text_len as u64) << 20;
        let is_cut = u64::from(self.is_cut) << 32;
        let head = [self.time, self.who, self.level as u64 | lens | is_cut];
        let text = self.text[..self.text_len.next_multiple_of(8)].chunks_exact(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        head.into_iter().chain(text.map(word))
    }
}

impl fmt::Write for Draft {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !self.is_full {
            let before = self.text_len;
            self.push(text, TEXT);
            self.is_full = self.text_len - before < text.len();
        }
        Ok(())
    }
}

/// Returns the length of the longest prefix of `text` that has at most `most` bytes and whole
/// characters.
fn whole_characters(text: &str, most: usize) -> usize {
    if most >= text.len() {
        return text.len();
    }
    (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// A record that was copied out of the journal.
#[derive(Clone)]
pub struct Record {
    sequence: u64,
    time: u64,
    who: u64,
    lens: u64,
    text: [u8; TEXT],
}

impl Record {
    pub(super) fn read(words: &[AtomicU64; HEAD + RECORD_WORDS], sequence: u64) -> Self {
        let [time, who, lens] = [0, 1, 2].map(|i: usize| words[i].load(Relaxed));
        let mut record = Record { sequence, time, who, lens, text: [0; TEXT] };
        let used = record.text_len();
        for (to, from) in record.text.chunks_exact_mut(8).zip(&words[HEAD..]).take(used.div_ceil(8))
        {
            to.copy_from_slice(&from.load(Relaxed).to_le_bytes());
        }
        record
    }

    fn text_len(&self) -> usize {
        // The length in memory may be damaged.
        usize::try_from(self.lens >> 20 & 0xfff).map_or(TEXT, |len| len.min(TEXT))
    }

    fn target_len(&self) -> usize {
        usize::try_from(self.lens >> 8 & 0xfff).map_or(0, |len| len.min(self.text_len()))
    }

    /// Returns the record's number in the journal, from 0. A missing number is counted in
    /// [`Losses`](super::Losses).
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns when the record was written, by the system's clock.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.time)
    }

    /// Returns the id of the process that wrote the record.
    #[must_use]
    pub fn pid(&self) -> u32 {
        u32::try_from(self.who >> 32).unwrap_or(0)
    }

    /// Returns the kernel's id of the thread that wrote the record.
    #[must_use]
    pub fn thread_id(&self) -> u32 {
        u32::try_from(self.who & 0xffff_ffff).unwrap_or(0)
    }

    /// Returns how important the record is.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.lens & 0xff {
            1 => Level::Error,
            2 => Level::Warn,
            3 => Level::Info,
            4 => Level::Debug,
            _ => Level::Trace,
        }
    }

    /// Returns the record's target. With the crate `log`, that is the module unless the program
    /// names another target.
    #[must_use]
    pub fn target(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.text[..self.target_len()])
    }

    /// Returns the message.
    #[must_use]
    pub fn message(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.text[self.target_len()..self.text_len()])
    }

    /// Returns whether the target or the message was too long and has been cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.lens >> 32 & 1 != 0
    }
}

/// Writes the record as a line of a log, without the time.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pid, thread, cut) =
            (self.pid(), self.thread_id(), if self.is_cut() { " ..." } else { "" });
        write!(f, "{} {pid}/{thread} {}: {}{cut}", self.level(), self.target(), self.message())
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({}: {self})", self.sequence)
    }
}
