//! The worker's side of a pool.
use super::call::{end_if_copy, resolve, retry, run};
use super::chunk::status;
use super::client;
use super::segment::{MAX_INLINE, PoolSegment, WorkerSlot};
use crate::deadline::Deadline;
use crate::process::wire::{encode, from_file, is_disconnected, to_file};
use crate::process::worker::{Entry, Failure, catch, note_panics};
use crate::process::{inherited_fd, worker};
use crate::segment::forks;
use crate::sync::atomic::Ordering::{Acquire, Release};
use crate::sys::process::{poll, receive, receive_first, send, watch_process};
use crate::sys::stopwatch::Stopwatch;
use core::time::Duration;
use memmap2::Mmap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The number of words before a message's arguments: their length and number, the message's number,
/// the two functions.
pub(super) const HEAD_WORDS: usize = 4;
/// Stands for an argument's length: the argument comes through the socket.
pub(super) const LARGE: u32 = u32::MAX;
/// The key under which a worker inherits its socket.
pub(super) const SOCKET: &str = "outlast pool socket";

/// Flag of a result: its value comes through the socket.
pub(super) const BY_SOCKET: u8 = 1;
/// Flag of a result: it is the last of its message, whose time in nanoseconds follows.
pub(super) const LAST: u8 = 2;

/// A worker that had no task for this long has slept.
const NAP: Duration = Duration::from_micros(100);
/// How often a sleeping worker checks whether its owner is alive.
const OWNER_CHECK: Duration = Duration::from_secs(1);

/// The worker's slot, the number of slots, the owner's pid, and the initialiser.
pub(super) type WorkerOrders = (u32, u32, u32, Option<(u64, u64, Vec<u8>)>);

struct Worker<'a> {
    segment: &'a PoolSegment,
    slot: &'a WorkerSlot,
    socket: OwnedFd,
    owner: OwnedFd,
    /// The last value from the socket, with the number of its message. Earlier values belonged to
    /// withdrawn messages.
    received: Option<(u32, io::Result<OwnedFd>)>,
    /// The value of [`forks`] in this process. It differs in a copy that a task has forked.
    forks: u32,
    /// The arguments of the current message.
    message: Vec<u8>,
    record: Vec<u8>,
    /// When the last message was finished.
    done: Option<Stopwatch>,
}

/// The owner has ended, or its message is malformed: the worker must end.
struct WorkerEnd;

pub(super) fn work((number, slots, owner, initializer): WorkerOrders) -> Result<(), String> {
    let text = |what: &dyn core::fmt::Display| what.to_string();
    let segment = PoolSegment::inherited(slots as usize).map_err(|error| text(&error))?;
    let socket = inherited_fd(SOCKET).ok_or("no socket")?;
    // The owner is alive: this process dies with the fork server, which ends with the owner.
    let owner = watch_process(owner).map_err(|error| text(&error))?;
    let slot = segment.slots().get(number as usize).ok_or("the pool's segment has no such slot")?;
    if let Some((entry, function, argument)) = initializer {
        let before = forks();
        let done = catch(|| run(entry, function, &argument, &mut Vec::new()));
        end_if_copy(before, done.is_err());
        match done {
            Ok(Ok(())) => {}
            Ok(Err(Failure::Argument(error) | Failure::Encode(error))) => {
                return Err(format!("the initialiser's argument cannot be decoded: {error}"));
            }
            Err((message, location, _)) => {
                return Err(format!("the initialiser panicked at {location}: {message}"));
            }
        }
        note_panics(); // the initialiser may have set a hook of its own
    }
    client::enter(number);
    slot.ready.store(1, Release);
    let (received, message, record, done) = Default::default();
    let forks = forks();
    let mut worker =
        Worker { segment: &segment, slot, socket, owner, received, forks, message, record, done };
    loop {
        let stop = slot.stop.load(Acquire) != 0;
        match worker.next() {
            Ok(Some(head)) => {
                if worker.run(head).is_err() {
                    break;
                }
            }
            Ok(None) if stop => break,
            Ok(None) => {
                if !slot.wait(OWNER_CHECK) {
                    if worker.is_orphan() {
                        break;
                    }
                    // Values of withdrawn messages must not fill the socket.
                    while worker.receive_argument(false).is_ok() {}
                }
            }
            Err(WorkerEnd) => break,
        }
    }
    Ok(())
}

/// The decoded head of a message.
struct MessageHead {
    count: u32,
    number: u32,
    entry: u64,
    function: u64,
}

impl Worker<'_> {
    fn is_orphan(&self) -> bool {
        poll(&[self.owner.as_fd()], Deadline::after(Duration::ZERO)).is_ok_and(|ready| ready[0])
    }

    /// Copies and claims the next message, if there is one.
    fn next(&mut self) -> Result<Option<MessageHead>, WorkerEnd> {
        let tasks = &self.slot.tasks;
        loop {
            let (head, tail) = (tasks.head(), tasks.tail());
            if head == tail {
                return Ok(None);
            }
            let [sizes, number, entry, function] =
                core::array::from_fn::<u64, HEAD_WORDS, _>(|i| tasks.word(head + i as u64));
            let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
            let (bytes, count) = (low(sizes) as usize, low(sizes >> 32));
            let next = head + (HEAD_WORDS + bytes.div_ceil(8)) as u64;
            self.message.clear();
            if next <= tail {
                tasks.copy(head + HEAD_WORDS as u64, bytes.div_ceil(8), &mut self.message);
            }
            self.slot.set_progress(low(number), 1); // keeps I2
            if !tasks.claim(head, next.min(tail)) {
                continue; // withdrawn: the copy may be anything
            }
            if next > tail {
                return Err(WorkerEnd);
            }
            self.message.truncate(bytes);
            return Ok(Some(MessageHead { count, number: low(number), entry, function }));
        }
    }

    fn run(&mut self, head: MessageHead) -> Result<(), WorkerEnd> {
        let began = Stopwatch::start();
        let slept = self.done.is_none_or(|done| done.until(began) > NAP);
        let message = core::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        let found = resolve(head.entry, head.function);
        for i in 0..head.count {
            let (length, after) = rest.split_first_chunk().ok_or(WorkerEnd)?;
            let length = u32::from_le_bytes(*length);
            self.slot.set_progress(head.number, i + 1); // keeps I2
            let status = if length == LARGE {
                rest = after;
                match self.large_argument(head.number)? {
                    Ok(large) => self.call(&found, &large),
                    Err(error) => self.fail(status::TRANSFER, &error.to_string()),
                }
            } else {
                let (argument, after) = after.split_at_checked(length as usize).ok_or(WorkerEnd)?;
                rest = after;
                self.call(&found, argument)
            };
            let time = (i + 1 == head.count).then(|| began.elapsed());
            self.report(status, time)?;
        }
        self.message = message;
        self.segment.wake_reader();
        self.done = Some(Stopwatch::start());
        if slept {
            std::thread::yield_now(); // the thread that woke this worker may be waiting for its CPU
        }
        Ok(())
    }

    /// Calls the function and encodes its result behind the head of a record. Returns the status.
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

    /// Encodes an error as a record. Returns `status`.
    #[cold]
    fn fail(&mut self, status: u8, text: &str) -> u8 {
        self.record.clear();
        self.record.resize(8, 0);
        self.record.extend(text.as_bytes());
        status
    }

    /// Completes the record of a result and appends it to the ring.
    fn report(&mut self, mut status: u8, time: Option<Duration>) -> Result<(), WorkerEnd> {
        let mut flags = 0;
        if self.record.len() - 8 > MAX_INLINE {
            match self.send_large()? {
                Ok(()) => {
                    flags |= BY_SOCKET;
                    self.record.truncate(8);
                }
                Err(error) => status = self.fail(status::TRANSFER, &error.to_string()),
            }
        }
        let length = u32::try_from(self.record.len() - 8).map_err(|_| WorkerEnd)?;
        self.record[..4].copy_from_slice(&length.to_le_bytes());
        self.record[4] = status;
        self.record.resize(self.record.len().next_multiple_of(8), 0);
        if let Some(time) = time {
            flags |= LAST;
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.record.extend(nanoseconds.to_le_bytes());
        }
        self.record[5] = flags;
        let results = &self.slot.results;
        while results.room() < self.record.len() / 8 {
            self.slot.announce_wait();
            if results.room() >= self.record.len() / 8 {
                break;
            }
            self.segment.wake_reader();
            self.segment.wake_dispatcher(); // perhaps no thread of the owner waits for results
            if !self.slot.wait(OWNER_CHECK) && self.is_orphan() {
                return Err(WorkerEnd);
            }
        }
        results.push(&[], &self.record);
        Ok(())
    }

    /// Sends the record's value in a file. Retries for `RESOURCE_TIMEOUT`, then returns the error.
    #[cold]
    fn send_large(&mut self) -> Result<io::Result<()>, WorkerEnd> {
        let sent = retry(|| {
            // The socket holds a limited number of earlier values: have them received.
            self.segment.wake_reader();
            self.segment.wake_dispatcher();
            let file = to_file(&self.record[8..])?;
            send(self.socket.as_fd(), &[0], &[file.as_fd()], true)
        });
        match sent {
            Err(error) if is_disconnected(&error) => Err(WorkerEnd),
            sent => Ok(sent),
        }
    }

    /// Returns the argument of the message with this number, or why there is none. Skips arguments
    /// of withdrawn messages.
    #[cold]
    fn large_argument(&mut self, number: u32) -> Result<io::Result<Mmap>, WorkerEnd> {
        loop {
            if let Some((tag, file)) = self.received.take()
                && tag == number
            {
                return Ok(file.and_then(|file| retry(|| from_file(&file))));
            }
            self.receive_argument(true)?;
        }
    }

    /// Receives the next argument from the socket. With `wait`, blocks until there is one.
    ///
    /// An argument for which there is no descriptor stays in the socket. With `wait`, it stays
    /// there only for `RESOURCE_TIMEOUT`. Then it is lost, and its task reports the error.
    fn receive_argument(&mut self, wait: bool) -> Result<(), WorkerEnd> {
        let (mut tag, mut files) = ([0; 4], Vec::new());
        let socket = self.socket.as_fd();
        let mut take = || receive(socket, &mut tag, &mut files, wait);
        let file = match if wait { retry(take) } else { take() } {
            Ok(length) if length == tag.len() => Ok(files.pop().ok_or(WorkerEnd)?),
            Err(_) if wait => receive_first(socket).map_err(|_| WorkerEnd)?,
            _ => return Err(WorkerEnd),
        };
        self.received = Some((u32::from_le_bytes(tag), file));
        Ok(())
    }
}
