//! Functions that run in processes of their own.
//!
//! [`Process::spawn`] is `std::thread::spawn` for processes: it runs a function in a new process,
//! and [`join`](Process::join) returns the function's value.
//!
//! ```standalone_crate
//! use outlast::process::{self, Process};
//!
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! fn main() -> Result<(), outlast::Error> {
//!     process::init(); // first of all
//!     let process = Process::spawn(square, 12)?;
//!     assert_eq!(process.join()?, 144);
//!     Ok(())
//! }
//! ```
//!
//! # Arguments and results
//! The function is a `fn` of this executable, not a closure that captures. Only its number is sent.
//! Arguments and results are `serde` values of any size, encoded by `postcard`. Shared memory is
//! handed on with [`Builder::share`], or opened in the process by its name. An end of a pipe, a
//! channel or a ring is handed over with [`Builder::hand_over`].
//!
//! # Where it runs
//! In a fork of the *fork server*, which [`init`] starts at the beginning of `main`. The fork
//! server has one thread and holds no locks, so a fork copies nothing that another thread is
//! changing. The process has the standard output, standard error, environment and working directory
//! that the program was started with, and no standard input. It is in the fork server's process
//! group: Ctrl-C on the terminal reaches only the owner, which can shut down in order with a
//! [`Stop`]. A panic is printed on standard error, as a thread's is.
//!
//! Any other program can take part as well: `std::process::Command` starts it, with
//! [`CommandExt::share`](crate::CommandExt::share).
//!
//! # Death
//! | killed process | consequence |
//! |---|---|
//! | the process | [`ProcessError::Signalled`], unless it had given its result |
//! | its owner | the process is killed, unless it is [detached](Builder::detached) |
//! | the fork server | its processes are killed; the next one is started by a new fork server |
//!
//! If [`spawn`](Builder::spawn) fails, the function has not run, and all other processes go on.
//!
//! A process is reaped even if it is not joined. Signals are sent through a process descriptor, and
//! never reach another process that has reused the pid.
//!
//! If the function forks, only the process itself reports its result. The copy ends when it returns
//! from the function, as by `_exit`.
//!
//! `process::exit`, `abort` or a stack overflow end that process only, which is reported as
//! [`ProcessError::Exited`] or [`ProcessError::Signalled`].
#![expect(unsafe_code, reason = "borrows a descriptor by its number")]
pub(crate) mod code;
mod error;
mod fork_server;
mod per_process;
mod stop;
pub(crate) mod wire;
pub(crate) mod worker;

pub use error::{ProcessError, SpawnError};
pub use fork_server::init;
pub use stop::Stop;

use crate::command::{HandOver, HandedEnd, variable_of_end};
use crate::deadline::Deadline;
use crate::queue::value::decode;
use crate::shareable::Shareable;
use crate::shared::Shared;
use crate::sys::process::{ESRCH, SIGKILL, SIGTERM, poll, signal};
use crate::wait::TimedOut;
use core::fmt;
use core::marker::PhantomData;
use fork_server::{ForkServer, MAX_SHARED, StartedProcess};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Bytes, MAX_MESSAGE, MessageKind, StartRequest, receive_message};

/// A function that runs, or ran, in a process of its own.
///
/// The process goes on if its handle is dropped. The value can be taken once.
#[doc(alias = "multiprocessing")]
pub struct Process<R> {
    channel: OwnedFd,
    fork_server: Arc<ForkServer>,
    pid: u32,
    handle: OwnedFd,
    state: Mutex<State>,
    result: PhantomData<fn() -> R>,
}

/// The reports of the process and of the fork server.
#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    taken: bool,
    status: Option<ExitStatus>,
    /// The last message has come.
    over: bool,
}

#[derive(Debug)]
struct Outcome {
    kind: MessageKind,
    body: io::Result<Bytes>,
}

/// The settings of a process. Made by [`Process::builder`].
#[must_use = "no process exists before `spawn`"]
pub struct Builder<A, R> {
    function: fn(A) -> R,
    name: String,
    detached: bool,
    own_group: bool,
    memory_limit: Option<u64>,
    keys: Vec<String>,
    shared: io::Result<Vec<OwnedFd>>,
    handed: Vec<HandedEnd>,
    environment: Vec<(OsString, OsString)>,
}

impl<R: Serialize + DeserializeOwned> Process<R> {
    /// Runs `function(argument)` in a new process.
    ///
    /// # Errors
    /// [`SpawnError::NotInitialised`] if [`init`] was not called; see [`SpawnError`].
    pub fn spawn<A: Serialize + DeserializeOwned>(
        function: fn(A) -> R,
        argument: A,
    ) -> Result<Process<R>, SpawnError> {
        Process::builder(function).spawn(argument)
    }

    /// Returns a builder, which has more options than [`spawn`](Process::spawn).
    pub fn builder<A: Serialize + DeserializeOwned>(function: fn(A) -> R) -> Builder<A, R> {
        Builder {
            function,
            name: String::new(),
            detached: false,
            own_group: false,
            memory_limit: None,
            keys: Vec::new(),
            shared: Ok(Vec::new()),
            handed: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Blocks until the process ends, and takes the value that its function returned.
    ///
    /// # Errors
    /// If the process panicked, was killed or has no value for another reason: see
    /// [`ProcessError`].
    pub fn join(&self) -> Result<R, ProcessError> {
        self.wait_until(Deadline::NEVER)?;
        self.take()
    }

    /// Like [`join`](Self::join), but blocks at most until `timeout` has elapsed.
    ///
    /// ```standalone_crate
    /// use outlast::process::{self, Process};
    /// use std::time::Duration;
    ///
    /// fn square(x: u64) -> u64 {
    ///     x * x
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     process::init(); // first of all
    ///     let process = Process::spawn(square, 12)?;
    ///     let square = process.join_timeout(Duration::from_secs(60))??; // too late, or failed
    ///     assert_eq!(square, 144);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TimedOut`] if the process has not ended in time. It goes on, and can be joined later. The
    /// inner result is that of [`join`](Self::join).
    pub fn join_timeout(&self, timeout: Duration) -> Result<Result<R, ProcessError>, TimedOut> {
        self.join_until(Deadline::after(timeout))
    }

    /// Like [`join`](Self::join), but blocks at most until `deadline`.
    ///
    /// # Errors
    /// As [`join_timeout`](Self::join_timeout).
    pub fn join_deadline(&self, deadline: Instant) -> Result<Result<R, ProcessError>, TimedOut> {
        self.join_until(Deadline::at(deadline))
    }

    /// Takes the value that the function returned, or returns `None` if the process has not ended.
    pub fn try_join(&self) -> Option<Result<R, ProcessError>> {
        self.join_timeout(Duration::ZERO).ok()
    }

    fn join_until(&self, deadline: Deadline) -> Result<Result<R, ProcessError>, TimedOut> {
        match self.wait_until(deadline) {
            Ok(true) => Ok(self.take()),
            Ok(false) => Err(TimedOut),
            Err(error) => Ok(Err(error.into())),
        }
    }

    fn take(&self) -> Result<R, ProcessError> {
        let mut state = self.state();
        if core::mem::replace(&mut state.taken, true) {
            return Err(ProcessError::Taken);
        }
        let Some(Outcome { kind, body }) = state.outcome.take() else {
            let Some(status) = state.status else { return Err(ProcessError::Lost) };
            return Err(match status.signal() {
                Some(signal) => ProcessError::Signalled(signal),
                None => ProcessError::Exited(status.code().unwrap_or(0)),
            });
        };
        drop(state);
        let body = body?;
        let text = || String::from_utf8_lossy(&body).into_owned();
        match kind {
            MessageKind::Argument => Err(ProcessError::Argument(text())),
            MessageKind::Encode => Err(ProcessError::Encode(text())),
            MessageKind::Panicked => {
                let (message, location, backtrace) =
                    decode::<worker::Panic>(&body).map_err(decoding)?;
                Err(ProcessError::Panicked { message, location, backtrace })
            }
            _ => decode(&body).map_err(decoding),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn decoding(error: postcard::Error) -> ProcessError {
    ProcessError::Decode(error.to_string())
}

impl<R> Process<R> {
    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the process descriptor, which becomes readable when the process ends.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Returns whether the process has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.wait_until(Deadline::after(Duration::ZERO)).unwrap_or(false)
    }

    /// Blocks until the process ends. Does not take its value.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn wait(&self) -> io::Result<()> {
        self.wait_until(Deadline::NEVER).map(drop)
    }

    /// Blocks until the process ends or `timeout` has elapsed. Returns whether it has ended.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<bool> {
        self.wait_until(Deadline::after(timeout))
    }

    /// Returns how the process ended. Returns `None` if it has not ended, or if it was lost
    /// together with the fork server.
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.wait_until(Deadline::after(Duration::ZERO)).ok();
        self.state().status
    }

    /// Asks the process to end, with `SIGTERM`. Has no effect if it has ended.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(SIGTERM)
    }

    /// Kills the process, with `SIGKILL`. Has no effect if it has ended.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(SIGKILL)
    }

    /// Sends the process a signal. Has no effect if it has ended.
    ///
    /// # Errors
    /// If there is no such signal, or the operating system refuses.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        match signal(self.pidfd(), number) {
            Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(()),
            other => other,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives the messages that have come. Returns whether the last one has come.
    fn receive_message(&self, state: &mut State) -> io::Result<bool> {
        let mut buffer = Vec::new();
        while !state.over {
            buffer.resize(MAX_MESSAGE, 0);
            match receive_message(self.channel.as_fd(), &mut buffer, false) {
                Ok(None) => state.over = true,
                Ok(Some(message)) => match message.kind {
                    MessageKind::Ended => {
                        let status = message.body.first_chunk().copied().map(i32::from_le_bytes);
                        state.status = status.map(ExitStatus::from_raw);
                        state.over = true;
                    }
                    kind => state.outcome = Some(Outcome { kind, body: message.into_bytes() }),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Blocks until the process ends. Returns `false` if the deadline passes first.
    fn wait_until(&self, deadline: Deadline) -> io::Result<bool> {
        let mut ended = false;
        loop {
            let lost = ended && self.fork_server.is_lost(); // its earlier messages have arrived
            let mut state = self.state();
            if self.receive_message(&mut state)? {
                return Ok(true);
            }
            if lost {
                // Children of the process may keep the channel open, but no report will come.
                state.over = true;
                return Ok(true);
            }
            drop(state);
            if deadline.is_over() {
                return Ok(false);
            }
            let other = if ended { self.fork_server.as_fd() } else { self.pidfd() };
            let ready = poll(&[self.channel.as_fd(), other], deadline)?;
            ended |= ready[1];
        }
    }
}

/// Returns a copy of the descriptor that [`Builder::share_fd`] has handed to this process under
/// `key`. Returns `None` if there is none.
#[must_use]
pub fn inherited_fd(key: &str) -> Option<OwnedFd> {
    let number = std::env::var(crate::command::variable(key)).ok()?.parse().ok()?;
    if number < 3 {
        return None;
    }
    // SAFETY: borrowed for one call, which fails if there is no such descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    crate::sys::file::duplicate(fd).ok()
}

impl<A: Serialize + DeserializeOwned, R: Serialize + DeserializeOwned> Builder<A, R> {
    /// Lets the process open `shared` with [`Shared::inherited`]`(key)`.
    ///
    /// The key can be any text. At most 250 segments and descriptors can be handed on.
    pub fn share<T: ?Sized + Shareable + Sync + 'static>(
        mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> Self {
        if let Ok(all) = &mut self.shared {
            match shared.try_clone_fd() {
                Ok(fd) => all.push(fd),
                Err(error) => self.shared = Err(error),
            }
        }
        self.keys.push(key.to_owned());
        self
    }

    /// Hands an end over to the process, which takes it with [`HandOver::inherited`]`(key)`.
    ///
    /// The end is a side of a [`Pipe`](crate::Pipe), or an end of a [`Channel`](crate::Channel) or
    /// a [`Ring`](crate::spsc::Ring), that owns its [`Shared`]. It counts as held from before this
    /// call until the process has taken it and dropped it again, or has ended. The other side never
    /// finds it gone in between, whichever process is killed, and whenever that happens.
    ///
    /// ```standalone_crate
    /// use outlast::process::{self, Process};
    /// use outlast::{Channel, HandOver, Queue, Sender, Shared};
    ///
    /// fn count(to: u64) {
    ///     let numbers = Sender::<Queue<u64>>::inherited("numbers").expect("handed over");
    ///     (0..to).for_each(|n| numbers.send(n).expect("a receiver"));
    /// }
    ///
    /// fn main() -> Result<(), outlast::Error> {
    ///     process::init(); // first of all
    ///     let channel = Shared::<Channel<Queue<u64>>>::with_capacity(16)?;
    ///     let receiver = channel.receiver()?;
    ///     let builder = Process::builder(count).hand_over("numbers", channel.sender()?);
    ///     let process = builder.spawn(100)?;
    ///     assert_eq!(receiver.iter().sum::<u64>(), 4_950); // ends when the sender is dropped
    ///     process.join()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// If the process is not started, the end is given back when the builder is dropped, or when
    /// this process ends. If the process ends before it has taken the end, the other side learns it
    /// within about two seconds. As long as the end is on its way, it occupies a process slot of
    /// the segment ([`Options::processes`](crate::Options::processes)).
    ///
    /// [`spawn`](Self::spawn) fails if the end cannot be handed over: if its descriptor cannot be
    /// duplicated, if its memory is the [caller's own](crate::Options::create_in), if it leads to a
    /// [part](Shared::project) of a segment, if this is a copy made by `fork`, or if the segment
    /// has no free process slot.
    pub fn hand_over<E: HandOver>(mut self, key: &str, end: E) -> Self {
        match (HandedEnd::new(end), &mut self.shared) {
            (Ok((handed, fd)), Ok(all)) => {
                all.push(fd);
                self.environment.push((variable_of_end(key).into(), handed.describe().into()));
                self.handed.push(handed);
            }
            (Err(error), shared) => *shared = Err(error),
            (Ok(_), Err(_)) => {}
        }
        self.keys.push(key.to_owned());
        self
    }

    /// Sets an environment variable of the process. The others are those that the program was
    /// started with.
    ///
    /// [`spawn`](Self::spawn) fails if the key is empty or contains `=`, or if the key or the value
    /// contains a zero byte.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Hands a descriptor on, such as a socket or a file. The process gets it by
    /// [`inherited_fd`]`(key)`.
    pub fn share_fd(mut self, key: &str, fd: OwnedFd) -> Self {
        if let Ok(all) = &mut self.shared {
            all.push(fd);
        }
        self.keys.push(key.to_owned());
        self
    }

    /// Sets whether the process goes on when its owner ends. If so, it has a session of its own,
    /// without a terminal. Default: `false`.
    #[doc(alias = "daemon")]
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// Kills the process's children when the process ends, however it ends. Default: `false`.
    ///
    /// The process gets a process group of its own. When it has ended, the fork server kills the
    /// group, before the pid can be reused. A child that has left the group, as a daemon does,
    /// survives. So do the children if the fork server is killed.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), outlast::Error> {
    /// use outlast::process::Process;
    ///
    /// fn pings(host: String) {
    ///     std::process::Command::new("ping").arg(host).status().ok();
    /// }
    ///
    /// let process = Process::builder(pings).kill_children(true).spawn("localhost".to_owned())?;
    /// process.kill()?; // ends `ping`, too
    /// # Ok(())
    /// # }
    /// ```
    pub fn kill_children(mut self, kill: bool) -> Self {
        self.own_group = kill;
        self
    }

    /// Limits the private memory of the process, in bytes: heap, private mappings and stacks of
    /// threads. Shared segments do not count. Default: the limit of this program.
    ///
    /// This sets `RLIMIT_DATA`. An allocation beyond the limit fails. Rust's default reaction is to
    /// abort the process, which is reported as [`ProcessError::Signalled`] with `SIGABRT`.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Names the process for tools such as `top`, which show 15 bytes of the name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.chars().take(64).collect();
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn spawn(self, argument: A) -> Result<Process<R>, SpawnError> {
        let encoded = postcard::to_allocvec(&argument)
            .map_err(|error| SpawnError::Encode(error.to_string()))?;
        let image = code::image().ok_or(SpawnError::ForeignFunction)?;
        let (entry, function) =
            worker::numbers(self.function).ok_or(SpawnError::ForeignFunction)?;
        if self.keys.len() > MAX_SHARED {
            return Err(SpawnError::TooManyShared);
        }
        if !self.environment.iter().all(is_valid_variable) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let request = StartRequest {
            image,
            entry,
            function,
            detached: self.detached,
            own_group: self.own_group,
            memory_limit: self.memory_limit,
            name: self.name,
            keys: self.keys,
            environment: self.environment,
        };
        // If the process has ended meanwhile, its stand-ins end as well.
        let pass_on = |pid| self.handed.iter().for_each(|end| _ = end.pass_on(pid));
        let StartedProcess { fork_server, channel, pid, handle } =
            fork_server::start(&request, &encoded, &self.shared?, &pass_on)?;
        Ok(Process {
            channel,
            fork_server,
            pid,
            handle,
            state: Mutex::default(),
            result: PhantomData,
        })
    }
}

/// Returns whether the operating system accepts an environment variable.
fn is_valid_variable((key, value): &(OsString, OsString)) -> bool {
    let (key, value) = (key.as_bytes(), value.as_bytes());
    !key.is_empty() && !key.contains(&b'=') && !key.contains(&0) && !value.contains(&0)
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.state.try_lock().ok().and_then(|state| state.status);
        f.debug_struct("Process").field("pid", &self.pid).field("status", &status).finish()
    }
}

impl<A, R> fmt::Debug for Builder<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("keys", &self.keys).finish()
    }
}
