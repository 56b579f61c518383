//! Handing a segment, or an end of a pipe, channel or ring, to a process that is started.
#![expect(unsafe_code, reason = "runs system calls in the child between fork and exec")]

// # How an end is handed over
// The end belongs to a stand-in (`segment/peers.rs`, "Handing on") from before its owner gives it
// up until after the child has taken it. Some owner tag is in the end's cells at every moment:
//
// | step | taken by | if that process is killed after the step |
// |---|---|---|
// | a stand-in is created and takes the end | parent | the stand-in ends with the parent |
// | the parent's handle is dropped | parent | the same |
// | the stand-in is passed on to the child | see below | the stand-in ends with the child |
// | the child opens the segment and takes the end | child | both end |
// | the stand-in is ended | child | the end is the child's |
//
// A `Command` passes the stand-in on in the child, between fork and exec. A process of the crate is
// forked by the fork server: its owner passes the stand-in on once it knows the pid, and before it
// lets the function begin.

use crate::error::{Fault, OpenError};
use crate::queue::channel::Kind;
use crate::queue::pipe::{Connection, Pipe};
use crate::queue::spsc::{Consumer, Producer, Ring};
use crate::queue::{Channel, Receiver, Sender};
use crate::segment::peers::StandIn;
use crate::segment::peers_of;
use crate::shareable::{Plain, Shareable};
use crate::shared::Shared;
use crate::sys::file::{self, Named};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Returns the environment variable that holds the number of the descriptor handed on under `key`.
pub(crate) fn variable(key: &str) -> String {
    named("OUTLAST_FD_", key)
}

/// Returns the environment variable that holds the slot and the generation of a stand-in, and which
/// end it has.
pub(crate) fn variable_of_end(key: &str) -> String {
    named("OUTLAST_END_", key)
}

fn named(prefix: &str, key: &str) -> String {
    let mut name = String::from(prefix);
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
    }
    name
}

/// Hands shared memory to a child process that `std::process::Command` starts.
pub trait CommandExt {
    /// Lets the child open `shared` with [`Shared::inherited`]`(key)`.
    ///
    /// The key can be any text.
    ///
    /// ```
    /// use outlast::{CommandExt, Event, Shared};
    /// let done = Shared::anonymous(Event::manual(false))?;
    /// let status = std::process::Command::new("sh")
    ///     .args(["-c", "env | grep -q OUTLAST_FD_done"]) // in Rust: `Shared::inherited("done")`
    ///     .share("done", &done)
    ///     .status()?;
    /// assert!(status.success());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// The `Command` keeps the memory open until it is dropped. Starting the child fails in three
    /// cases: the descriptor cannot be duplicated, the memory is the [caller's
    /// own](crate::Options::create_in), or `shared` is only a [part](Shared::project) of a segment.
    fn share<T: ?Sized + Shareable + Sync + 'static>(
        &mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> &mut Self;

    /// Hands an end over to the child, which takes it with [`HandOver::inherited`]`(key)`.
    ///
    /// The end counts as held from before this call until the child has taken it and dropped it
    /// again, or has ended. The other side never finds it gone in between, whichever process is
    /// killed, and whenever that happens.
    ///
    /// ```
    /// use outlast::{CommandExt, Pipe, RecvError, Shared};
    /// let pipe = Shared::<Pipe>::with_capacity(4096)?;
    /// let parent = pipe.first()?;
    /// let mut child = std::process::Command::new("true") // a Rust program calls `inherited`
    ///     .hand_over("pipe", pipe.second()?)
    ///     .spawn()?;
    /// child.wait()?; // it ended without taking its side, which is therefore gone
    /// assert_eq!(parent.recv_bytes(), Err(RecvError::Disconnected));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// The first child that this `Command` starts gets the end. Starting another child fails. If no
    /// child is started, the end is given back when the `Command` is dropped, or when this process
    /// ends.
    ///
    /// If the child ends before it has taken the end, the other side learns it within about two
    /// seconds. As long as the end is on its way, it occupies a process slot of the segment
    /// ([`Options::processes`](crate::Options::processes)).
    ///
    /// Starting the child fails if the end cannot be handed over: for the reasons for which
    /// [`share`](Self::share) fails, if this is a copy made by `fork`, or if the segment has no
    /// free process slot.
    ///
    /// A function that runs in a process of its own gets ends by
    /// [`process::Builder::hand_over`](crate::process::Builder::hand_over).
    fn hand_over<E: HandOver>(&mut self, key: &str, end: E) -> &mut Self;
}

impl CommandExt for Command {
    fn share<T: ?Sized + Shareable + Sync + 'static>(
        &mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> &mut Self {
        match InheritedHandle::of(shared) {
            Ok(handle) => {
                self.env(variable(key), handle.number().to_string());
                // SAFETY: fcntl is async-signal-safe, and the closure does nothing else.
                unsafe { self.pre_exec(move || handle.keep()) }
            }
            Err(error) => refuse(self, &error),
        }
    }

    fn hand_over<E: HandOver>(&mut self, key: &str, end: E) -> &mut Self {
        match HandedEnd::new(end) {
            Ok((handed, fd)) => {
                let handle = InheritedHandle(fd);
                self.env(variable(key), handle.number().to_string());
                self.env(variable_of_end(key), handed.describe());
                let pass_on = move || {
                    if !handed.pass_on(std::process::id()) {
                        // Another child has it, or this process has ended.
                        return Err(io::ErrorKind::ResourceBusy.into());
                    }
                    handle.keep()
                };
                // SAFETY: fcntl and getpid are async-signal-safe, as are changes of atomics, and
                // the closure does nothing else.
                unsafe { self.pre_exec(pass_on) }
            }
            Err(error) => refuse(self, &error),
        }
    }
}

/// Makes the start of the child fail.
fn refuse<'a>(command: &'a mut Command, error: &io::Error) -> &'a mut Command {
    let (code, kind) = (error.raw_os_error(), error.kind());
    let error = move || code.map_or_else(|| io::Error::from(kind), io::Error::from_raw_os_error);
    // SAFETY: making an error from a number is async-signal-safe.
    unsafe { command.pre_exec(move || Err(error())) }
}

/// An end that can be handed over to a child process without a gap.
///
/// Implemented by a [`Connection`], [`Sender`], [`Receiver`], [`Producer`] or [`Consumer`] that
/// owns its [`Shared`]. [`CommandExt::hand_over`] hands it to a program, and
/// [`process::Builder::hand_over`](crate::process::Builder::hand_over) to a function that runs in a
/// process of its own.
pub trait HandOver: Sized {
    /// The value whose end this is.
    #[doc(hidden)]
    type Value: ?Sized + Shareable + Sync + 'static;
    /// Returns the handle that the end owns, and which end it is.
    #[doc(hidden)]
    fn parts(&self) -> (&Shared<Self::Value>, usize);
    /// Gives the end to the stand-in `owner`.
    #[doc(hidden)]
    fn hold_for(self, owner: u32) -> Result<(), Fault>;
    /// Takes the end, which the stand-in `from` holds, for this process.
    #[doc(hidden)]
    fn take(shared: Shared<Self::Value>, which: usize, from: u32) -> Result<Self, OpenError>;

    /// Takes the end that the parent handed over under `key`.
    ///
    /// ```
    /// use outlast::{Connection, HandOver, OpenError, Pipe, Shared};
    /// let nothing = Connection::<Shared<Pipe>>::inherited("pipe"); // nothing was handed over
    /// assert!(matches!(nothing, Err(OpenError::NotInherited)));
    /// ```
    ///
    /// # Errors
    /// [`OpenError::NotInherited`] if the parent handed over no such end under this key, or if it
    /// has been taken already. See [`OpenError`] for the other cases.
    fn inherited(key: &str) -> Result<Self, OpenError> {
        let described = std::env::var(variable_of_end(key)).map_err(|_| OpenError::NotInherited)?;
        let mut numbers = described.split('.').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten().ok_or(OpenError::NotInherited);
        let (slot, generation, which) = (next()? as usize, next()?, next()? as usize);
        let shared = Shared::<Self::Value>::inherited(key)?;
        let peers = peers_of(address(&shared))?;
        let stand_in = StandIn::find(peers, (slot, generation)).ok_or(OpenError::NotInherited)?;
        let end = Self::take(shared, which, stand_in.tag())?;
        stand_in.end(std::process::id());
        Ok(end)
    }
}

impl HandOver for Connection<Shared<Pipe>> {
    type Value = Pipe;
    fn parts(&self) -> (&Shared<Pipe>, usize) {
        Connection::parts(self)
    }
    fn hold_for(self, owner: u32) -> Result<(), Fault> {
        Connection::hold_for(&self, owner)
    }
    fn take(shared: Shared<Pipe>, which: usize, _from: u32) -> Result<Self, OpenError> {
        if which > 1 {
            return Err(OpenError::NotInherited);
        }
        Ok(Connection::of(shared, which)?)
    }
}

macro_rules! channel_ends {
    ($($end:ident = $which:literal)*) => {$(
        impl<C: Kind + ?Sized> HandOver for $end<C>
        where
            Channel<C>: Shareable + Sync + 'static,
        {
            type Value = Channel<C>;
            fn parts(&self) -> (&Shared<Channel<C>>, usize) {
                (self.pointer(), $which)
            }
            fn hold_for(self, owner: u32) -> Result<(), Fault> {
                $end::hold_for(&self, owner)
            }
            fn take(
                shared: Shared<Channel<C>>,
                which: usize,
                _from: u32,
            ) -> Result<Self, OpenError> {
                if which != $which {
                    return Err(OpenError::NotInherited);
                }
                Ok($end::of(shared)?)
            }
        }
    )*};
}
channel_ends! { Sender = 0 Receiver = 1 }

macro_rules! ring_ends {
    ($($end:ident = $which:literal)*) => {$(
        impl<T: Plain> HandOver for $end<T> {
            type Value = Ring<T>;
            fn parts(&self) -> (&Shared<Ring<T>>, usize) {
                (self.pointer(), $which)
            }
            fn hold_for(self, owner: u32) -> Result<(), Fault> {
                $end::hold_for(self, owner)
            }
            fn take(shared: Shared<Ring<T>>, which: usize, from: u32) -> Result<Self, OpenError> {
                if which != $which {
                    return Err(OpenError::NotInherited);
                }
                Ok($end::taken_from(shared, from)?)
            }
        }
    )*};
}
ring_ends! { Producer = 0 Consumer = 1 }

fn address<T: ?Sized + Shareable>(shared: &Shared<T>) -> usize {
    core::ptr::from_ref::<T>(shared).addr()
}

/// An end on its way to a child process. Dropping it gives the end back, unless it was passed on.
pub(crate) struct HandedEnd {
    stand_in: StandIn,
    which: usize,
    /// The process that hands the end over.
    from: u32,
    /// Keeps the stand-in's memory mapped.
    _shared: Box<dyn Send + Sync>,
}

impl HandedEnd {
    /// Takes an end from this process. Returns the descriptor of its segment, too.
    pub(crate) fn new<E: HandOver>(end: E) -> io::Result<(Self, OwnedFd)> {
        let (shared, which) = end.parts();
        let fd = shared.try_clone_fd()?;
        let peers = peers_of(address(shared)).map_err(io::Error::other)?;
        let stand_in = StandIn::new(peers).map_err(io::Error::other)?;
        let shared = Box::new(shared.clone());
        let handed = HandedEnd { stand_in, which, from: std::process::id(), _shared: shared };
        end.hold_for(stand_in.tag()).map_err(io::Error::other)?;
        Ok((handed, fd))
    }

    /// Returns what [`HandOver::inherited`] needs.
    pub(crate) fn describe(&self) -> String {
        let (slot, generation) = self.stand_in.describe();
        format!("{slot}.{generation}.{}", self.which)
    }

    /// Makes the end belong to the child `pid`. Returns `false` if another child has it. Makes no
    /// system call, and takes no lock.
    pub(crate) fn pass_on(&self, pid: u32) -> bool {
        self.stand_in.pass_on(self.from, pid)
    }
}

impl Drop for HandedEnd {
    fn drop(&mut self) {
        // In a copy made by fork, the end is still the parent's.
        if std::process::id() == self.from {
            self.stand_in.end(self.from);
        }
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Shared<T> {
    /// Opens the segment that the parent shared under `key` with [`CommandExt::share`],
    /// [`process::Builder::share`](crate::process::Builder::share) or
    /// [`pool::Builder::share`](crate::pool::Builder::share).
    ///
    /// # Errors
    /// [`OpenError::NotInherited`] if the parent shared nothing under this key. See [`OpenError`]
    /// for the other cases.
    pub fn inherited(key: &str) -> Result<Self, OpenError> {
        let number = std::env::var(variable(key)).map_err(|_| OpenError::NotInherited)?;
        let number: RawFd = number.parse().map_err(|_| OpenError::NotInherited)?;
        if number < 3 {
            return Err(OpenError::NotInherited);
        }
        // SAFETY: borrowed for two calls. They fail if there is no such descriptor.
        let parent = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = file::duplicate(parent).map_err(|_| OpenError::NotInherited)?;
        // For this process, not for its children.
        file::set_close_on_exec(parent, true).named("fcntl(F_SETFD)")?;
        Self::from_fd(fd)
    }
}

/// The descriptor that a child process inherits under the same number.
#[derive(Debug)]
struct InheritedHandle(OwnedFd);

impl InheritedHandle {
    fn of<T: ?Sized + Shareable + Sync + 'static>(shared: &Shared<T>) -> io::Result<Self> {
        shared.try_clone_fd().map(InheritedHandle)
    }

    fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// In the child, before exec: lets the program inherit the descriptor.
    fn keep(&self) -> io::Result<()> {
        file::set_close_on_exec(self.0.as_fd(), false)
    }
}
