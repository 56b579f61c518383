//! The helper that starts the others: a process with one thread, that maps nothing, and does nothing else.
//!
//! # Who knows what
//! | socket | from | to | what |
//! |---|---|---|---|
//! | the helper's | owner | helper | orders, each with one end of a channel |
//! | a channel | worker | owner | that it is born, what came of it |
//! | a channel | helper | owner | how the worker ended |
//!
//! # Death
//! - The owner: the helper watches it, kills all workers that are not detached, waits for them and ends.
//! - The helper: the kernel kills its workers. The owner notices when it gives the next order, and starts another. An
//!   order that was under way counts as given once its worker was born: then it is not given again.
//! - A worker: the helper reaps it and tells the owner.
#![expect(unsafe_code, reason = "forks; inherits a descriptor by its number")]
use super::code;
use super::error::SpawnError;
use super::wire::{Bytes, Kind, LONGEST, Message, Order, from_file, hear, say};
use super::worker;
use crate::deadline::Deadline;
use crate::sys::file::set_close_on_exec;
use crate::sys::process::{
    MOST_DESCRIPTORS, exit_now, fork, keep_statuses, kill_child, no_input, own_group, poll, reap,
    signal, socket_pair, watch_process,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt, parent_id};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tells a program that it is started as a helper: the descriptor of its socket, and its owner's pid.
const VARIABLE: &str = "OUTLAST_NURSERY";
/// Descriptors of an order that are no segments: the channel, and a file with the argument.
pub(super) const MOST_SHARED: usize = MOST_DESCRIPTORS - 3;
/// How many helpers in a row may be killed.
const ATTEMPTS: usize = 5;

// ------------------------------------------------------------------------------------------ the owner
/// The helper as its owner knows it.
#[derive(Debug)]
pub(super) struct Helper {
    socket: OwnedFd,
    pid: u32,
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

/// Prepares this program for starting processes. To be called first thing in `main`, before there are other threads.
///
/// It forks a small helper process, which later forks the others: at that time this one has threads and locks, which
/// are better not copied. The helper, and what it started, end with this process. If the helper is killed, the program
/// is started once more, with an environment variable by which `init` knows that it is to be the new one; in there
/// it does not return. So nothing that a program should not do twice comes before it. A second call does nothing.
///
/// The usual test runner has a `main` of its own: tests that start processes need one too (`harness = false`).
pub fn init() {
    if let Ok(order) = std::env::var(VARIABLE) {
        become_helper(&order);
    }
    if core::mem::replace(&mut nursery().initialised, true) {
        return;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if alone {
        // The lock is free meanwhile: the copy has uses for it. If the fork fails, the first order starts a helper.
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
        // SAFETY: there is no other thread, as `init` has looked.
        let pid = unsafe { fork() }?;
        if pid == 0 {
            drop(ours);
            serve(theirs, owner);
        }
        Ok(Helper { socket: ours, pid, owner })
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
        let pid = command.spawn()?.id();
        Ok(Helper { socket: ours, pid, owner })
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
                signal_and_reap(helper.pid);
            }
        }
        let helper = Arc::new(Helper::started()?);
        nursery.helper = Some(Arc::clone(&helper));
        Ok(helper)
    }

    /// Readable once it has ended.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it has ended.
    pub(super) fn is_lost(&self) -> bool {
        // Nothing is ever sent this way: it can only have ended.
        poll(&[self.socket.as_fd()], Deadline::after(core::time::Duration::ZERO))
            .is_ok_and(|ready| ready[0])
    }
}

/// It has let go of its socket, so that it is as good as dead.
fn signal_and_reap(pid: u32) {
    if let Ok(handle) = watch_process(pid) {
        signal(handle.as_fd(), 9).ok();
    }
    reap(pid).ok();
}

/// What is known of a worker that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) helper: Arc<Helper>,
    pub(super) channel: OwnedFd,
    pub(super) pid: u32,
    /// Stands for the process; `None` if it ended before it had told.
    pub(super) handle: Option<OwnedFd>,
    /// How it ended, then.
    pub(super) ended: Option<i32>,
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
        let Some(Message { kind, body, mut descriptors, .. }) =
            hear(channel.as_fd(), &mut buffer, true)?
        else {
            lost = Some(helper); // and no worker was born
            continue;
        };
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(i32::from_le_bytes).ok_or(io::Error::from(io::ErrorKind::InvalidData))
        };
        return match kind {
            Kind::Born => Ok(Started {
                helper,
                channel,
                pid: number(0)?.cast_unsigned(),
                handle: descriptors.pop(),
                ended: None,
            }),
            Kind::Ended => {
                let (ended, pid) = (Some(number(0)?), number(4)?.cast_unsigned());
                Ok(Started { helper, channel, pid, handle: None, ended })
            }
            Kind::Refused => Err(match number(0)? {
                0 => SpawnError::ForeignFunction,
                code => io::Error::from_raw_os_error(code).into(),
            }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        };
    }
    Err(SpawnError::HelperLost)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
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
    /// The socket, and what stands for the owner.
    own: Vec<OwnedFd>,
    workers: Vec<Worker>,
}

/// Starts workers for as long as the owner lives.
fn serve(socket: OwnedFd, owner: u32) -> ! {
    own_group();
    keep_statuses();
    let watched = watch_process(owner);
    let (Ok(watched), true) = (watched, parent_id() == owner) else { exit_now(1) };
    if no_input().is_err() {
        exit_now(1);
    }
    let mut desk = Desk { own: vec![socket, watched], workers: Vec::new() };
    let mut buffer = vec![0; LONGEST];
    while desk.turn(&mut buffer).is_ok_and(|goes_on| goes_on) {}
    for worker in desk.workers.iter().filter(|worker| !worker.detached) {
        signal(worker.handle.as_fd(), 9).ok();
    }
    for worker in desk.workers.iter().filter(|worker| !worker.detached) {
        reap(worker.pid).ok();
    }
    exit_now(0)
}

impl Desk {
    /// Sleeps until there is something to do, and does it; whether there is more to come.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut watched: Vec<_> = self.own.iter().map(OwnedFd::as_fd).collect();
        watched.extend(self.workers.iter().map(|worker| worker.handle.as_fd()));
        let ready = poll(&watched, Deadline::NEVER)?;
        if ready[1] {
            return Ok(false);
        }
        let mut ended = ready[2..].iter();
        self.workers.retain(|worker| {
            let ended = ended.next().copied().unwrap_or(false);
            if ended {
                let status = reap(worker.pid).map_or(0, ExitStatusExt::into_raw);
                let mut body = status.to_le_bytes().to_vec();
                body.extend(worker.pid.to_le_bytes());
                say(worker.channel.as_fd(), Kind::Ended, &[], &body, &[], false).ok();
            }
            !ended
        });
        if ready[0] {
            match hear(self.own[0].as_fd(), buffer, false) {
                Ok(None) => return Ok(false),
                Ok(Some(message)) => self.start(message),
                // One that cannot be understood, or for which there are no descriptors left.
                Err(_) => {}
            }
        }
        Ok(true)
    }

    fn start(&mut self, message: Message) {
        let Message { body, file, descriptors, .. } = message;
        let mut descriptors = descriptors.into_iter();
        let Some(channel) = descriptors.next() else { return };
        let refuse = |channel: &OwnedFd, code: i32| {
            say(channel.as_fd(), Kind::Refused, &[], &code.to_le_bytes(), &[], false).ok();
        };
        let shared: Vec<OwnedFd> = descriptors.collect();
        let Ok((order, argument)) = Order::decode(&body) else {
            return refuse(&channel, 0);
        };
        let known = |number| code::address(number).is_some();
        if code::image() != Some(order.image)
            || !known(order.entry)
            || !known(order.function)
            || order.keys.len() != shared.len()
        {
            return refuse(&channel, 0);
        }
        let helper = std::process::id();
        // SAFETY: this process has one thread.
        match unsafe { fork() } {
            Ok(0) => {
                self.own.clear();
                self.workers.clear();
                let argument = match file.map(from_file) {
                    None => Ok(Bytes::Here(argument.to_vec())),
                    Some(read) => read.map(Bytes::There),
                };
                let argument = argument.unwrap_or_else(|_| exit_now(1));
                worker::work(&order, &argument, helper, &channel, shared)
            }
            Ok(pid) => match watch_process(pid) {
                Ok(handle) => {
                    self.workers.push(Worker { pid, handle, channel, detached: order.detached });
                }
                Err(error) => {
                    // It cannot be watched. Nobody else knows its pid, and it is not reaped yet.
                    refuse(&channel, error.raw_os_error().unwrap_or(0));
                    kill_child(pid);
                    reap(pid).ok();
                }
            },
            Err(error) => refuse(&channel, error.raw_os_error().unwrap_or(0)),
        }
    }
}
