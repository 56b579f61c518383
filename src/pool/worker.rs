//! What a worker does.
use super::hall::{Desk, Hall, INLINE, RESOURCE_TIMEOUT};
use crate::deadline::Deadline;
use crate::process::wire::{encode, from_file, is_gone, to_file};
use crate::process::worker::{Entry, Failure, catch};
use crate::process::{inherited_fd, worker};
use crate::segment::forks;
use crate::sync::atomic::Ordering::{Acquire, Release};
use crate::sys::process::{exit_now, poll, receive, receive_first, send, watch_process};
use crate::sys::stopwatch::Stopwatch;
use core::time::Duration;
use memmap2::Mmap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// The words in front of a message's arguments: their bytes and their number, the message's number,
/// the functions.
pub(super) const HEAD: usize = 4;
/// Instead of an argument's length: it comes by the socket.
pub(super) const LARGE: u32 = u32::MAX;
/// The key of the socket.
pub(super) const SOCKET: &str = "outlast pool socket";

/// What a result is: in the second byte after its length.
pub(super) mod status {
    pub(crate) const VALUE: u8 = 0;
    pub(crate) const PANICKED: u8 = 1;
    pub(crate) const ARGUMENT: u8 = 2;
    pub(crate) const ENCODE: u8 = 3;
    pub(crate) const TRANSFER: u8 = 4;
}
/// Flags of a result: it comes by the socket; it is the last of its message, and the message's time
/// in nanoseconds follows.
pub(super) const BY_SOCKET: u8 = 1;
pub(super) const LAST: u8 = 2;

/// Who was without work for so long has slept.
const NAP: Duration = Duration::from_micros(100);
/// How long a worker sleeps until it looks whether its owner is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which desk (of how many), whose, and what is to be called first.
pub(super) type Orders = (u32, u32, u32, Option<(u64, u64, Vec<u8>)>);

struct Worker<'a> {
    hall: &'a Hall,
    desk: &'a Desk,
    socket: OwnedFd,
    owner: OwnedFd,
    /// What came by the socket last, for a message that is still to come or was withdrawn. What
    /// came before it is for none.
    early: Option<(u32, io::Result<OwnedFd>)>,
    /// The count of forks in this process: in the copy that a task has forked there is another.
    forks: u32,
    /// The message at hand.
    message: Vec<u8>,
    record: Vec<u8>,
    /// When the last message was done.
    done: Option<Stopwatch>,
}

/// The owner is gone, or what it says makes no sense: this process is to end.
struct Over;

pub(super) fn work((desk, desks, owner, initializer): Orders) -> Result<(), String> {
    let text = |what: &dyn core::fmt::Display| what.to_string();
    let hall = Hall::inherited(desks as usize).map_err(|error| text(&error))?;
    let socket = inherited_fd(SOCKET).ok_or("no socket")?;
    // The helper lives, or this process would not; and so does its owner, or it would not.
    let owner = watch_process(owner).map_err(|error| text(&error))?;
    let desk = hall.desks().get(desk as usize).ok_or("no such desk")?;
    if let Some((entry, function, argument)) = initializer {
        let before = forks();
        let done = catch(|| run(entry, function, &argument, &mut Vec::new()));
        end_if_copy(before, done.is_err());
        match done {
            Ok(Ok(())) => {}
            Ok(Err(Failure::Argument(error) | Failure::Encode(error))) => return Err(error),
            Err((message, location, _)) => {
                return Err(format!("the initializer panicked at {location}: {message}"));
            }
        }
    }
    desk.ready.store(1, Release);
    let (early, message, record, done) = Default::default();
    let forks = forks();
    let mut worker =
        Worker { hall: &hall, desk, socket, owner, early, forks, message, record, done };
    loop {
        let stop = desk.stop.load(Acquire) != 0;
        match worker.next() {
            Ok(Some(head)) => {
                if worker.run(head).is_err() {
                    break;
                }
            }
            Ok(None) if stop => break,
            Ok(None) => {
                if !desk.wait(PATIENCE) {
                    if worker.is_orphan() {
                        break;
                    }
                    // What was withdrawn is not to fill the socket.
                    while worker.hear(false).is_ok() {}
                }
            }
            Err(Over) => break,
        }
    }
    Ok(())
}

/// Ends the calling process if the user's function has forked it: it has returned from the function
/// a second time, and neither the messages nor the results are for it.
fn end_if_copy(before: u32, panicked: bool) {
    if forks() != before {
        exit_now(if panicked { 101 } else { 0 });
    }
}

/// Repeats a call that fails for lack of descriptors or memory until [`RESOURCE_TIMEOUT`] has
/// elapsed, and returns the last error then. A closed socket is an error immediately.
#[cold]
fn retry<R>(mut call: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    const PAUSE: Duration = Duration::from_millis(5);
    let mut since = None;
    loop {
        match call() {
            Err(error)
                if !is_gone(&error)
                    && since.get_or_insert_with(Instant::now).elapsed() < RESOURCE_TIMEOUT =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Calls a function by the numbers that the owner gave.
fn run(entry: u64, function: u64, argument: &[u8], result: &mut Vec<u8>) -> Result<(), Failure> {
    let (call, function) = found(entry, function)?;
    call(function, argument, result)
}

/// The call and the function that a message or the orders name.
#[expect(unsafe_code, reason = "calls a function by its number")]
fn found(entry: u64, function: u64) -> Result<(Entry, usize), Failure> {
    // SAFETY: the owner made the numbers with `numbers`, and runs the same executable: it is this
    // process's image.
    unsafe { worker::found(entry, function) }
}

/// The head of a message.
struct Head {
    count: u32,
    number: u32,
    entry: u64,
    function: u64,
}

impl Worker<'_> {
    fn is_orphan(&self) -> bool {
        poll(&[self.owner.as_fd()], Deadline::after(Duration::ZERO)).is_ok_and(|ready| ready[0])
    }

    /// Claims the next message, if there is one, and copies it.
    fn next(&mut self) -> Result<Option<Head>, Over> {
        let tasks = &self.desk.tasks;
        loop {
            let (head, tail) = (tasks.head(), tasks.tail());
            if head == tail {
                return Ok(None);
            }
            let [sizes, number, entry, function] =
                core::array::from_fn::<u64, HEAD, _>(|i| tasks.word(head + i as u64));
            let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
            let (bytes, count) = (low(sizes) as usize, low(sizes >> 32));
            let next = head + (HEAD + bytes.div_ceil(8)) as u64;
            self.message.clear();
            if next <= tail {
                tasks.copy(head + HEAD as u64, bytes.div_ceil(8), &mut self.message);
            }
            self.desk.set_progress(low(number), 1); // keeps I2
            if !tasks.claim(head, next.min(tail)) {
                continue; // withdrawn: what was read may be anything
            }
            if next > tail {
                return Err(Over);
            }
            self.message.truncate(bytes);
            return Ok(Some(Head { count, number: low(number), entry, function }));
        }
    }

    fn run(&mut self, head: Head) -> Result<(), Over> {
        let began = Stopwatch::start();
        let slept = self.done.is_none_or(|done| done.until(began) > NAP);
        let message = core::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        let found = found(head.entry, head.function);
        for i in 0..head.count {
            let (length, after) = rest.split_first_chunk().ok_or(Over)?;
            let length = u32::from_le_bytes(*length);
            self.desk.set_progress(head.number, i + 1); // keeps I2
            let status = if length == LARGE {
                rest = after;
                match self.by_socket(head.number)? {
                    Ok(large) => self.call(&found, &large),
                    Err(error) => self.fail(status::TRANSFER, &error.to_string()),
                }
            } else {
                let (argument, after) = after.split_at_checked(length as usize).ok_or(Over)?;
                rest = after;
                self.call(&found, argument)
            };
            let time = (i + 1 == head.count).then(|| began.elapsed());
            self.report(status, time)?;
        }
        self.message = message;
        self.hall.ring();
        self.done = Some(Stopwatch::start());
        if slept {
            std::thread::yield_now(); // whoever woke it may be waiting for this CPU
        }
        Ok(())
    }

    /// Calls the function, and makes a record of what comes of it, behind the place of the head.
    /// The result's status.
    #[inline(always)]
    fn call(&mut self, found: &Result<(Entry, usize), Failure>, argument: &[u8]) -> u8 {
        self.record.clear();
        self.record.resize(8, 0);
        let record = &mut self.record;
        let outcome = catch(|| match found {
            Ok((call, function)) => call(*function, argument, record),
            Err(failure) => Err(failure.clone()),
        });
        end_if_copy(self.forks, outcome.is_err());
        match outcome {
            Ok(Ok(())) => status::VALUE,
            Ok(Err(Failure::Argument(text))) => self.fail(status::ARGUMENT, &text),
            Ok(Err(Failure::Encode(text))) => self.fail(status::ENCODE, &text),
            Err(panic) => {
                self.record.truncate(8);
                encode::<worker::Panic>(&panic, &mut self.record).unwrap_or_default();
                status::PANICKED
            }
        }
    }

    /// Makes a record of an error.
    #[cold]
    fn fail(&mut self, status: u8, text: &str) -> u8 {
        self.record.clear();
        self.record.resize(8, 0);
        self.record.extend(text.as_bytes());
        status
    }

    /// Completes the record of a result.
    fn report(&mut self, mut status: u8, time: Option<Duration>) -> Result<(), Over> {
        let mut flags = 0;
        if self.record.len() - 8 > INLINE {
            match self.pass_on()? {
                Ok(()) => {
                    flags |= BY_SOCKET;
                    self.record.truncate(8);
                }
                Err(error) => status = self.fail(status::TRANSFER, &error.to_string()),
            }
        }
        let length = u32::try_from(self.record.len() - 8).map_err(|_| Over)?;
        self.record[..4].copy_from_slice(&length.to_le_bytes());
        self.record[4] = status;
        self.record.resize(self.record.len().next_multiple_of(8), 0);
        if let Some(time) = time {
            flags |= LAST;
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.record.extend(nanoseconds.to_le_bytes());
        }
        self.record[5] = flags;
        let results = &self.desk.results;
        while results.room() < self.record.len() / 8 {
            self.desk.be_stuck();
            if results.room() >= self.record.len() / 8 {
                break;
            }
            self.hall.ring();
            self.hall.call(); // nobody may be waiting for results
            if !self.desk.wait(PATIENCE) && self.is_orphan() {
                return Err(Over);
            }
        }
        results.push(&[], &self.record);
        Ok(())
    }

    /// Sends the record's bytes in a file. Retries for [`RESOURCE_TIMEOUT`], then returns the
    /// error.
    #[cold]
    fn pass_on(&mut self) -> Result<io::Result<()>, Over> {
        let sent = retry(|| {
            // For those before it: nobody may be waiting, and the socket holds so many.
            self.hall.ring();
            self.hall.call();
            let file = to_file(&self.record[8..])?;
            send(self.socket.as_fd(), &[0], &[file.as_fd()], true)
        });
        match sent {
            Err(error) if is_gone(&error) => Err(Over),
            sent => Ok(sent),
        }
    }

    /// The argument of the message with this number, or why there is none. Those of messages that
    /// were withdrawn are passed over.
    #[cold]
    fn by_socket(&mut self, number: u32) -> Result<io::Result<Mmap>, Over> {
        loop {
            if let Some((tag, file)) = self.early.take()
                && tag == number
            {
                return Ok(file.and_then(|file| retry(|| from_file(&file))));
            }
            self.hear(true)?;
        }
    }

    /// Takes the next argument from the socket. With `wait`, the call blocks until there is one. An
    /// argument for which there is no descriptor stays in the socket. With `wait`, it stays there
    /// only for [`RESOURCE_TIMEOUT`]. After that it is lost, and its task reports the error.
    fn hear(&mut self, wait: bool) -> Result<(), Over> {
        let (mut tag, mut files) = ([0; 4], Vec::new());
        let socket = self.socket.as_fd();
        let mut take = || receive(socket, &mut tag, &mut files, wait);
        let file = match if wait { retry(take) } else { take() } {
            Ok(length) if length == tag.len() => Ok(files.pop().ok_or(Over)?),
            Err(_) if wait => receive_first(socket).map_err(|_| Over)?,
            _ => return Err(Over),
        };
        self.early = Some((u32::from_le_bytes(tag), file));
        Ok(())
    }
}
