//! The helper that starts the others: a process with one thread, that maps nothing, and does
//! nothing else.
//!
//! # Who knows what
//! | socket | from | to | what |
//! |---|---|---|---|
//! | the helper's | owner | helper | orders, each with one end of a channel |
//! | a channel | helper | owner | that the worker is born, with its descriptor; how it ended |
//! | a channel | owner | worker | that the owner has that descriptor: the function may begin |
//! | a channel | worker | owner | what came of it |
//!
//! # Invariants
//! - I1. A function begins only after its owner holds the process's descriptor. If `start` fails,
//!   nothing has run and nothing will.
//! - I2. Only a process's own descriptor tells that it has ended. Silence, the end of a channel and
//!   a descriptor that did not arrive tell nothing: each may be a lack of descriptors or memory.
//! - I3. The helper has a spare descriptor whenever it looks for an order. So the channel, which is
//!   an order's first descriptor, arrives even if the others do not, and the owner gets an answer.
//!
//! # Death
//! - The owner: the helper watches it, kills all workers that are not detached, waits for them and
//!   ends.
//! - The helper: the kernel kills its workers. The owner notices when it gives the next order, and
//!   starts another. An order that was under way is given again, which is safe: its function has
//!   not begun (I1).
//! - A worker: the helper reaps it and tells the owner.
#![expect(unsafe_code, reason = "forks; inherits a descriptor by its number")]
use super::code;
use super::error::SpawnError;
use super::wire::{Bytes, Kind, LONGEST, Message, Order, from_file, hear, is_gone, say};
use super::worker;
use crate::deadline::Deadline;
use crate::sys::file::{duplicate, set_close_on_exec};
use crate::sys::process::{
    EMFILE, MOST_DESCRIPTORS, SIGKILL, exit_now, flush_streams, fork, keep_statuses, kill_child,
    no_input, own_group, poll, reap, reap_by, receive_first, signal, socket_pair, watch_process,
};
use crate::sys::signal::reset_actions;
use core::time::Duration;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt, parent_id};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tells a program that it is started as a helper: the descriptor of its socket, and its owner's
/// pid.
const VARIABLE: &str = "OUTLAST_NURSERY";
/// Descriptors of an order that are no segments: the channel, and a file with the argument.
pub(super) const MOST_SHARED: usize = MOST_DESCRIPTORS - 3;
/// How many helpers in a row may be killed.
const ATTEMPTS: usize = 5;
/// A process that is ending closes its descriptors this long, at most, before it has ended.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long the helper sleeps after a failed `poll`.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

// ------------------------------------------------------------------------------------------ the owner
/// The helper as its owner knows it.
#[derive(Debug)]
pub(super) struct Helper {
    socket: OwnedFd,
    /// Stands for the process, from its birth on: its number may become a stranger's.
    handle: OwnedFd,
    owner: u32,
}

#[derive(Debug)]
struct Nursery {
    initialised: bool,
    helper: Option<Arc<Helper>>,
}

static NURSERY: Mutex<Nursery> = Mutex::new(Nursery { initialised: false, helper: None });

fn nursery() -> MutexGuard<'static, Nursery> {
    NURSERY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prepares this program for starting processes. To be called first thing in `main`, before there
/// are other threads.
///
/// It forks a small helper process, which later forks the others: at that time this one has threads
/// and locks, which are better not copied. The helper, and what it started, end with this process.
/// If the helper is killed, the program is started once more, with an environment variable by which
/// `init` knows that it is to be the new one; in there it does not return. So nothing that a
/// program should not do twice comes before it. A second call does nothing.
///
/// Standard output and the C library's streams are flushed before the fork, so that no process
/// prints again what the program had printed before. Handlers of signals and the signal mask that
/// the program has set are not passed on: in the processes, a signal that has a handler in the
/// program has its default action, and none is blocked. A signal that the program ignores is
/// ignored there as well.
///
/// The usual test runner has a `main` of its own: tests that start processes need one too (`harness
/// = false`).
pub fn init() {
    if let Ok(order) = std::env::var(VARIABLE) {
        become_helper(&order);
    }
    if core::mem::replace(&mut nursery().initialised, true) {
        return;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if alone {
        // The lock is free meanwhile: the copy has uses for it. If the fork fails, the first order
        // starts a helper.
        let helper = Helper::forked().ok().map(Arc::new);
        nursery().helper = helper;
    }
}

/// What a program does that was started as a helper.
fn become_helper(order: &str) -> ! {
    // SAFETY: the program has just begun, and has one thread. Its children are no helpers.
    unsafe { std::env::remove_var(VARIABLE) };
    let mut numbers = order.split(' ').map(str::parse::<u32>);
    let (Some(Ok(socket)), Some(Ok(owner))) = (numbers.next(), numbers.next()) else {
        exit_now(1);
    };
    let Ok(socket) = RawFd::try_from(socket) else { exit_now(1) };
    if socket < 3 {
        exit_now(1);
    }
    // SAFETY: handed on for this, and nobody else in this program knows of it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    if set_close_on_exec(socket.as_fd(), true).is_err() {
        exit_now(1);
    }
    nursery().initialised = true; // for the workers, which may start others
    serve(socket, owner)
}

impl Helper {
    /// A copy of this process, which must have one thread.
    fn forked() -> io::Result<Helper> {
        let (ours, theirs) = socket_pair()?;
        let owner = std::process::id();
        // The copy is not to print what this process has in its buffers.
        io::stdout().flush().ok();
        flush_streams();
        // SAFETY: there is no other thread, as `init` has looked.
        let pid = unsafe { fork() }?;
        if pid == 0 {
            drop(ours);
            serve(theirs, owner);
        }
        match watch_process(pid) {
            Ok(handle) => Ok(Helper { socket: ours, handle, owner }),
            Err(error) => {
                kill_child(pid); // just born, and only this thread could reap it
                reap(pid).ok();
                Err(error)
            }
        }
    }

    /// The program, started once more.
    fn started() -> io::Result<Helper> {
        let (ours, theirs) = socket_pair()?;
        let owner = std::process::id();
        let mut command = Command::new("/proc/self/exe");
        command.env(VARIABLE, format!("{} {owner}", theirs.as_raw_fd())).stdin(Stdio::null());
        command.process_group(0); // from its first instruction: Ctrl-C is for the owner
        let number = theirs.as_raw_fd();
        let keep = move || {
            // SAFETY: the child's copy of `theirs`, which lives until the child is started.
            let socket = unsafe { BorrowedFd::borrow_raw(number) };
            set_close_on_exec(socket, false)
        };
        // SAFETY: fcntl is async-signal-safe, and the closure does nothing else.
        unsafe { command.pre_exec(keep) };
        let mut child = command.spawn()?;
        match watch_process(child.id()) {
            Ok(handle) => Ok(Helper { socket: ours, handle, owner }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                Err(error)
            }
        }
    }

    /// This process's helper; a new one if there is none, or if it is `lost`.
    fn current(lost: Option<&Arc<Helper>>) -> Result<Arc<Helper>, SpawnError> {
        let mut nursery = nursery();
        if !nursery.initialised {
            return Err(SpawnError::NotInitialised);
        }
        if let Some(helper) = &nursery.helper {
            // After a fork the helper is the parent's, not ours.
            let ours = helper.owner == std::process::id();
            let lost = lost.is_some_and(|lost| Arc::ptr_eq(lost, helper));
            if ours && !lost {
                return Ok(Arc::clone(helper));
            }
            if ours {
                signal(helper.handle.as_fd(), SIGKILL).ok();
                reap_by(helper.handle.as_fd()).ok();
            }
        }
        let helper = Arc::new(Helper::started()?);
        nursery.helper = Some(Arc::clone(&helper));
        Ok(helper)
    }

    /// Readable once it has ended.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether it has ended.
    pub(super) fn is_lost(&self) -> bool {
        self.ends_within(Duration::ZERO).unwrap_or(false)
    }

    fn ends_within(&self, timeout: Duration) -> io::Result<bool> {
        Ok(poll(&[self.as_fd()], Deadline::after(timeout))?[0])
    }

    /// The first message about a process that this helper is to start. `None` if the helper has
    /// ended without it.
    fn first_word(
        &self,
        channel: BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<Message>> {
        poll(&[channel, self.as_fd()], Deadline::NEVER)?;
        let word = match hear(channel, buffer, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => other?,
        };
        if word.is_some() || self.ends_within(EXIT_GRACE)? {
            return Ok(word);
        }
        // The helper lives, and has lost the order: it was allowed no descriptor at all.
        Err(io::Error::from_raw_os_error(EMFILE))
    }
}

/// What is known of a worker that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) helper: Arc<Helper>,
    pub(super) channel: OwnedFd,
    pub(super) pid: u32,
    /// Stands for the process.
    pub(super) handle: OwnedFd,
}

/// Has the helper start a worker.
pub(super) fn start(
    order: &Order,
    argument: &[u8],
    shared: &[OwnedFd],
) -> Result<Started, SpawnError> {
    let head = order.encode().map_err(|error| SpawnError::Encode(error.to_string()))?;
    if head.len() > LONGEST / 4 || shared.len() > MOST_SHARED {
        return Err(SpawnError::TooManyShared);
    }
    let mut buffer = vec![0; LONGEST];
    let mut lost = None;
    for _ in 0..ATTEMPTS {
        let helper = Helper::current(lost.as_ref())?;
        let (channel, theirs) = socket_pair()?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(shared.iter().map(OwnedFd::as_fd));
        let said = say(helper.socket.as_fd(), Kind::Start, &head, argument, &descriptors, true);
        drop(theirs);
        match said {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {
                lost = Some(helper);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let word = helper.first_word(channel.as_fd(), &mut buffer)?;
        let Some(Message { kind, body, mut descriptors, .. }) = word else {
            lost = Some(helper);
            continue;
        };
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let number = body.first_chunk().copied().map(i32::from_le_bytes).ok_or_else(invalid)?;
        return match kind {
            Kind::Born => {
                let handle = descriptors.pop().ok_or_else(invalid)?;
                // A process that was killed meanwhile does not hear it, and the helper reports
                // that.
                say(channel.as_fd(), Kind::Go, &[], &[], &[], false).ok();
                Ok(Started { helper, channel, pid: number.cast_unsigned(), handle })
            }
            Kind::Refused => Err(match number {
                0 => SpawnError::ForeignFunction,
                code => io::Error::from_raw_os_error(code).into(),
            }),
            _ => Err(invalid().into()),
        };
    }
    Err(SpawnError::HelperLost)
}

// ----------------------------------------------------------------------------------------- the helper
/// A worker as the helper knows it.
struct Worker {
    pid: u32,
    handle: OwnedFd,
    channel: OwnedFd,
    detached: bool,
}

/// What the helper has open.
struct Desk {
    owner: u32,
    /// The socket, and what stands for the owner.
    own: Vec<OwnedFd>,
    workers: Vec<Worker>,
    /// Keeps I3.
    spare: Option<OwnedFd>,
}

/// Starts workers for as long as the owner lives.
fn serve(socket: OwnedFd, owner: u32) -> ! {
    own_group();
    reset_actions();
    keep_statuses();
    let watched = watch_process(owner);
    let (Ok(watched), true) = (watched, parent_id() == owner) else { exit_now(1) };
    if no_input().is_err() {
        exit_now(1);
    }
    let spare = duplicate(socket.as_fd()).ok();
    let mut desk = Desk { owner, own: vec![socket, watched], workers: Vec::new(), spare };
    let mut buffer = vec![0; LONGEST];
    while desk.turn(&mut buffer) {}
    for worker in desk.workers.iter().filter(|worker| !worker.detached) {
        signal(worker.handle.as_fd(), SIGKILL).ok();
    }
    for worker in desk.workers.iter().filter(|worker| !worker.detached) {
        reap(worker.pid).ok();
    }
    exit_now(0)
}

fn refuse(channel: BorrowedFd<'_>, error: &io::Error) {
    let code = error.raw_os_error().unwrap_or(0);
    say(channel, Kind::Refused, &[], &code.to_le_bytes(), &[], false).ok();
}

impl Desk {
    /// Sleeps until there is something to do, and does it; whether there is more to come.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        let mut watched: Vec<_> = self.own.iter().map(OwnedFd::as_fd).collect();
        watched.extend(self.workers.iter().map(|worker| worker.handle.as_fd()));
        let Ok(ready) = poll(&watched, Deadline::NEVER) else {
            // There is no memory, or a limit was lowered. Nobody has ended because of it.
            std::thread::sleep(RETRY_PAUSE);
            return parent_id() == self.owner;
        };
        if ready[1] {
            return false;
        }
        let mut ended = ready[2..].iter();
        self.workers.retain(|worker| {
            let ended = ended.next().copied().unwrap_or(false);
            if ended {
                let status = reap(worker.pid).map_or(0, ExitStatusExt::into_raw);
                say(worker.channel.as_fd(), Kind::Ended, &[], &status.to_le_bytes(), &[], false)
                    .ok();
            }
            !ended
        });
        if ready[0] {
            match hear(self.own[0].as_fd(), buffer, false) {
                Ok(None) => return false,
                Ok(Some(message)) => self.start(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.turn_down(&error),
            }
        }
        if self.spare.is_none() {
            self.spare = duplicate(self.own[0].as_fd()).ok();
        }
        true
    }

    /// Answers an order whose descriptors this process cannot take.
    fn turn_down(&mut self, error: &io::Error) {
        self.spare = None; // its place is for the channel
        if let Ok(Ok(channel)) = receive_first(self.own[0].as_fd()) {
            refuse(channel.as_fd(), error);
        }
    }

    fn start(&mut self, message: Message) {
        let Message { body, file, descriptors, .. } = message;
        let mut descriptors = descriptors.into_iter();
        let Some(channel) = descriptors.next() else { return };
        match self.born(&body, file, &channel, descriptors.collect()) {
            Ok((pid, handle, detached)) => {
                self.workers.push(Worker { pid, handle, channel, detached });
            }
            Err(error) => refuse(channel.as_fd(), &error),
        }
    }

    /// Forks a worker and tells the owner of it. If that fails, no worker is left.
    fn born(
        &mut self,
        body: &[u8],
        file: Option<OwnedFd>,
        channel: &OwnedFd,
        shared: Vec<OwnedFd>,
    ) -> io::Result<(u32, OwnedFd, bool)> {
        let foreign = || io::Error::from(io::ErrorKind::InvalidInput);
        let (order, argument) = Order::decode(body).map_err(|_| foreign())?;
        let known = |number| code::address(number).is_some();
        if code::image() != Some(order.image)
            || !known(order.entry)
            || !known(order.function)
            || order.keys.len() != shared.len()
        {
            return Err(foreign());
        }
        let argument = match file {
            None => Bytes::Here(argument.to_vec()),
            Some(file) => Bytes::There(from_file(&file)?),
        };
        let helper = std::process::id();
        // SAFETY: this process has one thread.
        let pid = unsafe { fork() }?;
        if pid == 0 {
            self.own.clear();
            self.workers.clear();
            self.spare = None;
            worker::work(&order, &argument, helper, channel, shared)
        }
        drop(shared); // there is room for the next descriptor then
        let told = watch_process(pid).and_then(|handle| {
            let number = pid.to_le_bytes();
            say(channel.as_fd(), Kind::Born, &[], &number, &[handle.as_fd()], false)?;
            Ok((pid, handle, order.detached))
        });
        if told.is_err() {
            // Its function has not begun (I1), and only this process can reap it.
            kill_child(pid);
            reap(pid).ok();
        }
        told
    }
}
