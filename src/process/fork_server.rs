//! The fork server: a process with one thread that maps nothing and only forks others.
//!
//! # Messages
//! | socket | from | to | content |
//! |---|---|---|---|
//! | the fork server's | owner | fork server | start requests, each with one end of a channel |
//! | a channel | fork server | owner | the worker has started, with its process descriptor; how it ended |
//! | a channel | owner | worker | the owner has that descriptor: the function may begin |
//! | a channel | worker | owner | the result of the function |
//!
//! # Invariants
//! - I1. A function begins only after its owner holds the process's descriptor. If `start` fails,
//!   nothing has run and nothing will.
//! - I2. Only a process's own descriptor tells that it has ended. Silence, the end of a channel and
//!   a missing descriptor tell nothing: each may be a lack of descriptors or memory.
//! - I3. The fork server has a spare descriptor whenever it reads a request. The channel, which is
//!   a request's first descriptor, therefore arrives even if the others do not, and the owner gets
//!   an answer.
//!
//! # Death
//! - The owner: the fork server watches it, kills all workers that are not detached, reaps them and
//!   ends.
//! - The fork server: the kernel kills its workers. The owner notices at its next request, and
//!   starts another fork server. A request that was in flight is sent again, which is safe: its
//!   function has not begun (I1).
//! - A worker: the fork server reaps it and reports its exit status to the owner.
#![expect(unsafe_code, reason = "forks; inherits a descriptor by its number")]
use super::code;
use super::error::SpawnError;
use super::per_process::PerProcess;
use super::wire::{
    Bytes, MAX_MESSAGE, Message, MessageKind, StartRequest, from_file, is_disconnected,
    receive_message, send_message,
};
use super::worker;
use crate::deadline::Deadline;
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::file::{duplicate, set_close_on_exec};
use crate::sys::process::{
    EMFILE, MOST_DESCRIPTORS, SIGKILL, exit_now, flush_streams, fork, keep_statuses, kill_child,
    kill_group, no_input, own_group, poll, reap, reap_by, receive_first, signal, socket_pair,
    watch_process,
};
use crate::sys::signal::reset_actions;
use core::time::Duration;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt, parent_id};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Tells a program that it is started as a fork server. Holds the descriptor of its socket, and its
/// owner's pid.
const VARIABLE: &str = "OUTLAST_FORK_SERVER";
/// How many descriptors a request can share. It also has the channel, and a file with the argument.
pub(super) const MAX_SHARED: usize = MOST_DESCRIPTORS - 3;
/// How many fork servers in a row may be killed before a start fails.
const ATTEMPTS: usize = 5;
/// The longest time between the moment when an ending process closes its descriptors and its end.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// How long the fork server sleeps after a failed `poll`.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

// --------------------------------------------------------------------------------------- the owner
/// The owner's side of the fork server.
#[derive(Debug)]
pub(super) struct ForkServer {
    socket: OwnedFd,
    /// The process descriptor. A pid may be reused by another process.
    handle: OwnedFd,
}

/// Whether [`init`] has been called.
static INITIALISED: AtomicBool = AtomicBool::new(false);
/// The fork server of this process. After a fork, the parent's fork server is not the child's.
static FORK_SERVER: PerProcess<Option<Arc<ForkServer>>> = PerProcess::new();

/// Prepares this program for starting processes. Call it first in `main`, before there are other
/// threads.
///
/// It forks a small process, the *fork server*, which later forks all others. At that time this
/// process has threads and locks, which a fork must not copy. The fork server, and the processes
/// that it has started, end with this process. A second call has no effect.
///
/// If the fork server is killed, this program is started once more as the new fork server. `init`
/// recognises that by an environment variable, and does not return there. The program must
/// therefore do nothing before `init` that it should not do twice.
///
/// Standard output and the C library's streams are flushed before the fork, so that no process
/// prints again what the program has printed before. Signal handlers and the signal mask are not
/// inherited: in the processes, a signal for which the program has a handler has its default
/// action, and no signal is blocked. A signal that the program ignores is ignored there as well.
///
/// The usual test harness has its own `main`: tests use
/// [`init_in_tests!`](crate::init_in_tests).
pub fn init() {
    if let Ok(request) = std::env::var(VARIABLE) {
        become_fork_server(&request);
    }
    if INITIALISED.swap(true, Relaxed) {
        return;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if alone {
        // If the fork fails, the first request starts a fork server.
        let fork_server = ForkServer::forked().ok().map(Arc::new);
        *FORK_SERVER.lock() = fork_server;
    }
}

/// Runs this program as a fork server, as which it was started.
fn become_fork_server(request: &str) -> ! {
    // SAFETY: the program has just begun, and has one thread. Its children are no fork servers.
    unsafe { std::env::remove_var(VARIABLE) };
    let mut numbers = request.split(' ').map(str::parse::<u32>);
    let (Some(Ok(socket)), Some(Ok(owner))) = (numbers.next(), numbers.next()) else {
        exit_now(1);
    };
    let Ok(socket) = RawFd::try_from(socket) else { exit_now(1) };
    if socket < 3 {
        exit_now(1);
    }
    // SAFETY: the owner has passed the descriptor on for this, and nothing else in this program
    // uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    if set_close_on_exec(socket.as_fd(), true).is_err() {
        exit_now(1);
    }
    INITIALISED.store(true, Relaxed); // for the workers, which may start others
    serve(socket, owner)
}

impl ForkServer {
    /// Forks this process, which must have one thread.
    fn forked() -> io::Result<ForkServer> {
        let (ours, theirs) = socket_pair()?;
        let owner = std::process::id();
        // The copy must not print what this process has in its buffers.
        io::stdout().flush().ok();
        flush_streams();
        // SAFETY: there is no other thread, as `init` has looked.
        let pid = unsafe { fork() }?;
        if pid == 0 {
            drop(ours);
            serve(theirs, owner);
        }
        match watch_process(pid) {
            Ok(handle) => Ok(ForkServer { socket: ours, handle }),
            Err(error) => {
                kill_child(pid); // just forked, and only this thread could reap it
                reap(pid).ok();
                Err(error)
            }
        }
    }

    /// Starts this program once more.
    fn started() -> io::Result<ForkServer> {
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
            Ok(handle) => Ok(ForkServer { socket: ours, handle }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                Err(error)
            }
        }
    }

    /// Returns this process's fork server. Starts one if there is none, or if it is `lost`.
    fn current(lost: Option<&Arc<ForkServer>>) -> Result<Arc<ForkServer>, SpawnError> {
        if !INITIALISED.load(Relaxed) {
            return Err(SpawnError::NotInitialised);
        }
        let mut current = FORK_SERVER.lock();
        if let Some(fork_server) = &*current {
            if !lost.is_some_and(|lost| Arc::ptr_eq(lost, fork_server)) {
                return Ok(Arc::clone(fork_server));
            }
            signal(fork_server.handle.as_fd(), SIGKILL).ok();
            reap_by(fork_server.handle.as_fd()).ok();
        }
        let fork_server = Arc::new(ForkServer::started()?);
        *current = Some(Arc::clone(&fork_server));
        Ok(fork_server)
    }

    /// Returns the process descriptor, which is readable once the fork server has ended.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Returns whether the fork server has ended.
    pub(super) fn is_lost(&self) -> bool {
        self.ends_within(Duration::ZERO).unwrap_or(false)
    }

    fn ends_within(&self, timeout: Duration) -> io::Result<bool> {
        Ok(poll(&[self.as_fd()], Deadline::after(timeout))?[0])
    }

    /// Receives the answer to a start request. Returns `None` if the fork server has ended without
    /// one.
    fn first_message(
        &self,
        channel: BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<Message>> {
        poll(&[channel, self.as_fd()], Deadline::NEVER)?;
        let message = match receive_message(channel, buffer, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => other?,
        };
        if message.is_some() || self.ends_within(EXIT_GRACE)? {
            return Ok(message);
        }
        // The fork server is alive and has lost the request: its limit of descriptors is zero.
        Err(io::Error::from_raw_os_error(EMFILE))
    }
}

/// A process that was started, as its owner knows it.
#[derive(Debug)]
pub(super) struct StartedProcess {
    pub(super) fork_server: Arc<ForkServer>,
    pub(super) channel: OwnedFd,
    pub(super) pid: u32,
    /// The process descriptor.
    pub(super) handle: OwnedFd,
}

/// Has the fork server start a worker. Calls `pass_on` with its pid before the function begins.
pub(super) fn start(
    request: &StartRequest,
    argument: &[u8],
    shared: &[OwnedFd],
    pass_on: &dyn Fn(u32),
) -> Result<StartedProcess, SpawnError> {
    let head = request.encode().map_err(|error| SpawnError::Encode(error.to_string()))?;
    if head.len() > MAX_MESSAGE / 4 || shared.len() > MAX_SHARED {
        return Err(SpawnError::TooManyShared);
    }
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut lost = None;
    for _ in 0..ATTEMPTS {
        let fork_server = ForkServer::current(lost.as_ref())?;
        let (channel, theirs) = socket_pair()?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(shared.iter().map(OwnedFd::as_fd));
        let sent = send_message(
            fork_server.socket.as_fd(),
            MessageKind::Start,
            &head,
            argument,
            &descriptors,
            true,
        );
        drop(theirs);
        match sent {
            Ok(()) => {}
            Err(error) if is_disconnected(&error) => {
                lost = Some(fork_server);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let message = fork_server.first_message(channel.as_fd(), &mut buffer)?;
        let Some(Message { kind, body, mut descriptors, .. }) = message else {
            lost = Some(fork_server);
            continue;
        };
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let number = body.first_chunk().copied().map(i32::from_le_bytes).ok_or_else(invalid)?;
        return match kind {
            MessageKind::Started => {
                let handle = descriptors.pop().ok_or_else(invalid)?;
                let pid = number.cast_unsigned();
                pass_on(pid);
                // It fails if the process was killed meanwhile, which the fork server reports.
                send_message(channel.as_fd(), MessageKind::Go, &[], &[], &[], false).ok();
                Ok(StartedProcess { fork_server, channel, pid, handle })
            }
            MessageKind::Refused => Err(match number {
                0 => SpawnError::ForeignFunction,
                code => io::Error::from_raw_os_error(code).into(),
            }),
            _ => Err(invalid().into()),
        };
    }
    Err(SpawnError::ForkServerLost)
}

// --------------------------------------------------------------------------------- the fork server
/// A worker as the fork server knows it.
struct Worker {
    pid: u32,
    handle: OwnedFd,
    channel: OwnedFd,
    detached: bool,
    own_group: bool,
}

impl Worker {
    /// Kills the children of a worker that has its own group. The worker must not be reaped yet.
    fn kill_group(&self) {
        if self.own_group {
            kill_group(self.pid);
        }
    }
}

/// The fork server's own state.
struct Server {
    owner: u32,
    /// The socket, and the owner's process descriptor.
    own: Vec<OwnedFd>,
    workers: Vec<Worker>,
    /// Keeps I3.
    spare: Option<OwnedFd>,
}

/// Starts workers as long as the owner is alive.
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
    let mut server = Server { owner, own: vec![socket, watched], workers: Vec::new(), spare };
    let mut buffer = vec![0; MAX_MESSAGE];
    while server.step(&mut buffer) {}
    for worker in server.workers.iter().filter(|worker| !worker.detached) {
        signal(worker.handle.as_fd(), SIGKILL).ok();
        worker.kill_group();
    }
    for worker in server.workers.iter().filter(|worker| !worker.detached) {
        reap(worker.pid).ok();
    }
    exit_now(0)
}

fn refuse(channel: BorrowedFd<'_>, error: &io::Error) {
    let code = error.raw_os_error().unwrap_or(0);
    send_message(channel, MessageKind::Refused, &[], &code.to_le_bytes(), &[], false).ok();
}

impl Server {
    /// Sleeps until there is something to do, and does it. Returns `false` when the owner has
    /// ended.
    fn step(&mut self, buffer: &mut [u8]) -> bool {
        let mut watched: Vec<_> = self.own.iter().map(OwnedFd::as_fd).collect();
        watched.extend(self.workers.iter().map(|worker| worker.handle.as_fd()));
        let Ok(ready) = poll(&watched, Deadline::NEVER) else {
            // Memory is short, or a limit was lowered. It does not mean that a process has ended.
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
                worker.kill_group();
                let status = reap(worker.pid).map_or(0, ExitStatusExt::into_raw);
                send_message(
                    worker.channel.as_fd(),
                    MessageKind::Ended,
                    &[],
                    &status.to_le_bytes(),
                    &[],
                    false,
                )
                .ok();
            }
            !ended
        });
        if ready[0] {
            match receive_message(self.own[0].as_fd(), buffer, false) {
                Ok(None) => return false,
                Ok(Some(message)) => self.start(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.refuse_without_descriptors(&error),
            }
        }
        if self.spare.is_none() {
            self.spare = duplicate(self.own[0].as_fd()).ok();
        }
        true
    }

    /// Answers a request whose descriptors this process cannot receive.
    fn refuse_without_descriptors(&mut self, error: &io::Error) {
        self.spare = None; // makes room for the channel
        if let Ok(Ok(channel)) = receive_first(self.own[0].as_fd()) {
            refuse(channel.as_fd(), error);
        }
    }

    fn start(&mut self, message: Message) {
        let Message { body, file, descriptors, .. } = message;
        let mut descriptors = descriptors.into_iter();
        let Some(channel) = descriptors.next() else { return };
        match self.fork_worker(&body, file, &channel, descriptors.collect()) {
            Ok((pid, handle, request)) => {
                let StartRequest { detached, own_group, .. } = request;
                self.workers.push(Worker { pid, handle, channel, detached, own_group });
            }
            Err(error) => refuse(channel.as_fd(), &error),
        }
    }

    /// Forks a worker and reports it to the owner. If that fails, no worker remains.
    fn fork_worker(
        &mut self,
        body: &[u8],
        file: Option<OwnedFd>,
        channel: &OwnedFd,
        shared: Vec<OwnedFd>,
    ) -> io::Result<(u32, OwnedFd, StartRequest)> {
        let foreign = || io::Error::from(io::ErrorKind::InvalidInput);
        let (request, argument) = StartRequest::decode(body).map_err(|_| foreign())?;
        let known = |number| code::address(number).is_some();
        if code::image() != Some(request.image)
            || !known(request.entry)
            || !known(request.function)
            || request.keys.len() != shared.len()
        {
            return Err(foreign());
        }
        let argument = match file {
            None => Bytes::Inline(argument.to_vec()),
            Some(file) => Bytes::Mapped(from_file(&file)?),
        };
        let fork_server = std::process::id();
        // SAFETY: this process has one thread.
        let pid = unsafe { fork() }?;
        if pid == 0 {
            self.own.clear();
            self.workers.clear();
            self.spare = None;
            worker::work(&request, &argument, fork_server, channel, shared)
        }
        drop(shared); // makes room for the next descriptor
        let reported = watch_process(pid).and_then(|handle| {
            let number = pid.to_le_bytes();
            send_message(
                channel.as_fd(),
                MessageKind::Started,
                &[],
                &number,
                &[handle.as_fd()],
                false,
            )?;
            Ok((pid, handle, request))
        });
        if reported.is_err() {
            // Its function has not begun (I1), and only this process can reap it.
            kill_child(pid);
            reap(pid).ok();
        }
        reported
    }
}

/// Calls [`process::init`](crate::process::init) before `main`, for tests under the usual harness.
///
/// The `main` of `cargo test` belongs to the harness, so a test cannot call `init` before there are
/// other threads. This macro places a call of it in the program's `.init_array` section, which runs
/// before `main`. Use it once, at the top of a file in `tests/`, or, with `#[cfg(test)]`, in the
/// root module of a crate whose unit tests start processes:
///
/// ```standalone_crate
/// outlast::init_in_tests!();
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// // #[test]
/// fn squares() {
///     let pool = outlast::pool::Pool::builder().workers(2).build().unwrap();
///     assert_eq!(pool.apply(square, 12).unwrap(), 144);
/// }
/// # fn main() { squares() }
/// ```
///
/// Programs call `init` at the start of `main` instead. Code that runs before `main` finds neither
/// the actions for signals that the standard library sets, such as ignoring `SIGPIPE`, nor its
/// message about a stack overflow. The worker processes of such tests therefore lack both.
#[macro_export]
macro_rules! init_in_tests {
    () => {
        #[expect(unsafe_code, reason = "puts a function pointer where the loader expects one")]
        const _: () = {
            extern "C" fn init() {
                $crate::process::init();
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static INIT: extern "C" fn() = init;
        };
    };
}
