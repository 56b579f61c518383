//! Handing a segment, or an end of a pipe or channel, on to a program that is started.
//!
//! # How an end is handed on
//! The end belongs to a stand-in (`segment/peers.rs`, "Handing on") from before its holder gives
//! it up until after the child has taken it. So some tag stands in its cells at every moment:
//!
//! | step | of | killed after it |
//! |---|---|---|
//! | a stand-in is made, and takes the end | parent | the stand-in ends with the parent |
//! | the parent's handle is dropped | parent | the same |
//! | the stand-in is passed on, between fork and exec | child | the stand-in ends with the child |
//! | the child opens the segment and takes the end | child | both end |
//! | the stand-in is ended | child | the end is the child's |
#![expect(unsafe_code, reason = "runs system calls in the child between fork and exec")]
use crate::error::{Fault, OpenError};
use crate::queue::channel::Kind;
use crate::queue::pipe::{Connection, Pipe};
use crate::queue::{Channel, Receiver, Sender};
use crate::segment::peers::StandIn;
use crate::segment::peers_of;
use crate::shareable::Shareable;
use crate::shared::Shared;
use crate::sys::file::{self, Named};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The environment variable that holds the number of the descriptor handed on under `key`.
pub(crate) fn variable(key: &str) -> String {
    named("OUTLAST_FD_", key)
}

/// The environment variable that holds the slot and the generation of a stand-in, and which end it
/// has.
fn variable_of_end(key: &str) -> String {
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

/// Hands shared memory on to a child process.
pub trait CommandExt {
    /// Lets the child open `shared` with [`Shared::inherited`]`(key)`.
    ///
    /// ```
    /// use outlast::{CommandExt, Event, Shared};
    /// let done = Shared::anonymous(Event::manual(false))?;
    /// let status = std::process::Command::new("sh")
    ///     .args(["-c", "env | grep -q OUTLAST_FD_done"]) // a Rust program calls `Shared::inherited("done")`
    ///     .share("done", &done)
    ///     .status()?;
    /// assert!(status.success());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// Any text will do as a key. The memory is kept open until the `Command` is dropped. If the
    /// descriptor cannot be duplicated, the memory is the caller's, or `shared` is only a
    /// [part](Shared::project), starting the child fails.
    fn share<T: ?Sized + Shareable + Sync + 'static>(
        &mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> &mut Self;

    /// Hands an end on to the child, which takes it with [`HandOver::inherited`]`(key)`.
    ///
    /// The end counts as held from before this call until the child has taken it and dropped it
    /// again, or has ended. So the other side never finds it gone in between, whatever is killed
    /// and when.
    ///
    /// ```
    /// use outlast::{CommandExt, Pipe, RecvError, Shared};
    /// let pipe = Shared::<Pipe>::with_capacity(4096)?;
    /// let parent = pipe.first()?;
    /// let mut child = std::process::Command::new("true") // a Rust program calls `inherited("pipe")`
    ///     .hand_over("pipe", pipe.second()?)
    ///     .spawn()?;
    /// child.wait()?; // it ended without taking its side, so that is gone
    /// assert_eq!(parent.recv_bytes(), Err(RecvError::Disconnected));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// The first child that this `Command` starts gets the end; starting another fails. If none is
    /// started, the end is given back when the `Command` is dropped, or when this process ends.
    ///
    /// If the child ends before it has taken the end, that is noticed within about two seconds. As
    /// long as the end is on its way it takes a process slot of the segment
    /// ([`Options::processes`](crate::Options::processes)).
    ///
    /// Starting the child fails if the end cannot be handed on: for the reasons for which
    /// [`share`](Self::share) fails, if this is a copy made by `fork`, or if the segment has no
    /// process slot left.
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
        match Handed::new(end) {
            Ok(handed) => {
                self.env(variable(key), handed.handle.number().to_string());
                self.env(variable_of_end(key), handed.describe());
                // SAFETY: fcntl and getpid are async-signal-safe, as are changes of atomics, and
                // the closure does nothing else.
                unsafe { self.pre_exec(move || handed.pass_on()) }
            }
            Err(error) => refuse(self, &error),
        }
    }
}

/// Has the start of the child fail.
fn refuse<'a>(command: &'a mut Command, error: &io::Error) -> &'a mut Command {
    let (code, kind) = (error.raw_os_error(), error.kind());
    let error = move || code.map_or_else(|| io::Error::from(kind), io::Error::from_raw_os_error);
    // SAFETY: making an error of a number is async-signal-safe.
    unsafe { command.pre_exec(move || Err(error())) }
}

/// An end that can be handed on to a child process without a gap: see [`CommandExt::hand_over`].
///
/// Implemented by a [`Connection`], [`Sender`] or [`Receiver`] that owns its [`Shared`].
pub trait HandOver: Sized {
    /// The value that it is an end of.
    #[doc(hidden)]
    type Value: ?Sized + Shareable + Sync + 'static;
    /// The handle that it owns, and which end it is.
    #[doc(hidden)]
    fn parts(&self) -> (&Shared<Self::Value>, usize);
    /// Has the stand-in `owner` hold the end as well.
    #[doc(hidden)]
    fn hold_for(&self, owner: u32) -> Result<(), Fault>;
    /// Takes the end for this process.
    #[doc(hidden)]
    fn take(shared: Shared<Self::Value>, which: usize) -> Result<Self, OpenError>;

    /// Takes the end that the parent handed on under `key` with [`CommandExt::hand_over`].
    ///
    /// ```
    /// use outlast::{Connection, HandOver, OpenError, Pipe, Shared};
    /// let nothing = Connection::<Shared<Pipe>>::inherited("pipe"); // no parent handed one on
    /// assert!(matches!(nothing, Err(OpenError::NotInherited)));
    /// ```
    ///
    /// # Errors
    /// [`OpenError::NotInherited`] if the parent handed on no end under that key, or if it has been
    /// taken already; see [`OpenError`].
    fn inherited(key: &str) -> Result<Self, OpenError> {
        let described = std::env::var(variable_of_end(key)).map_err(|_| OpenError::NotInherited)?;
        let mut numbers = described.split('.').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten().ok_or(OpenError::NotInherited);
        let (slot, generation, which) = (next()? as usize, next()?, next()? as usize);
        let shared = Shared::<Self::Value>::inherited(key)?;
        let peers = peers_of(address(&shared))?;
        let stand_in = StandIn::find(peers, (slot, generation)).ok_or(OpenError::NotInherited)?;
        let end = Self::take(shared, which)?;
        stand_in.end(std::process::id());
        Ok(end)
    }
}

impl HandOver for Connection<Shared<Pipe>> {
    type Value = Pipe;
    fn parts(&self) -> (&Shared<Pipe>, usize) {
        Connection::parts(self)
    }
    fn hold_for(&self, owner: u32) -> Result<(), Fault> {
        Connection::hold_for(self, owner)
    }
    fn take(shared: Shared<Pipe>, which: usize) -> Result<Self, OpenError> {
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
            fn hold_for(&self, owner: u32) -> Result<(), Fault> {
                $end::hold_for(self, owner)
            }
            fn take(shared: Shared<Channel<C>>, which: usize) -> Result<Self, OpenError> {
                if which != $which {
                    return Err(OpenError::NotInherited);
                }
                Ok($end::of(shared)?)
            }
        }
    )*};
}
channel_ends! { Sender = 0 Receiver = 1 }

fn address<T: ?Sized + Shareable>(shared: &Shared<T>) -> usize {
    core::ptr::from_ref::<T>(shared).addr()
}

/// An end on its way to a child process.
struct Handed<T: ?Sized + Shareable> {
    stand_in: StandIn,
    which: usize,
    handle: InheritedHandle,
    /// The process that hands on.
    from: u32,
    /// Keeps mapped what the stand-in lies in.
    _shared: Shared<T>,
}

impl<T: ?Sized + Shareable + Sync + 'static> Handed<T> {
    fn new<E: HandOver<Value = T>>(end: E) -> io::Result<Self> {
        let (shared, which) = end.parts();
        let handle = InheritedHandle::of(shared)?;
        let peers = peers_of(address(shared)).map_err(io::Error::other)?;
        let stand_in = StandIn::new(peers).map_err(io::Error::other)?;
        let shared = shared.clone();
        let from = std::process::id();
        let handed = Handed { stand_in, which, handle, from, _shared: shared };
        end.hold_for(stand_in.tag()).map_err(io::Error::other)?;
        Ok(handed)
    }

    fn describe(&self) -> String {
        let (slot, generation) = self.stand_in.describe();
        format!("{slot}.{generation}.{}", self.which)
    }

    /// To be called in the child, before exec.
    fn pass_on(&self) -> io::Result<()> {
        if !self.stand_in.pass_on(self.from, std::process::id()) {
            // Another child has it, or this process has ended.
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.handle.keep()
    }
}

impl<T: ?Sized + Shareable> Drop for Handed<T> {
    fn drop(&mut self) {
        // In a copy made by fork it is still the parent's.
        if std::process::id() == self.from {
            self.stand_in.end(self.from);
        }
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Shared<T> {
    /// Opens what the parent handed on under `key` with [`CommandExt::share`].
    ///
    /// # Errors
    /// [`OpenError::NotInherited`] if it handed on nothing under that key; see [`OpenError`].
    pub fn inherited(key: &str) -> Result<Self, OpenError> {
        let number = std::env::var(variable(key)).map_err(|_| OpenError::NotInherited)?;
        let number: RawFd = number.parse().map_err(|_| OpenError::NotInherited)?;
        if number < 3 {
            return Err(OpenError::NotInherited);
        }
        // SAFETY: borrowed for two calls, which fail if there is no such descriptor.
        let parent = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = file::duplicate(parent).map_err(|_| OpenError::NotInherited)?;
        // For this process, not for its children.
        file::set_close_on_exec(parent, true).named("fcntl(F_SETFD)")?;
        Self::from_fd(fd)
    }
}

/// The descriptor that a child process is to inherit under its own number.
#[derive(Debug)]
struct InheritedHandle(OwnedFd);

impl InheritedHandle {
    fn of<T: ?Sized + Shareable + Sync + 'static>(shared: &Shared<T>) -> io::Result<Self> {
        shared.try_clone_fd().map(InheritedHandle)
    }

    fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// To be called in the child, before exec.
    fn keep(&self) -> io::Result<()> {
        file::set_close_on_exec(self.0.as_fd(), false)
    }
}
