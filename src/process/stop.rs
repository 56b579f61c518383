//! Stopping when asked to, by a signal.
use crate::error::OpenError;
use crate::event::Event;
use crate::segment::{forks, leave};
use crate::shareable::Shareable;
use crate::shared::Shared;
use crate::sys::file::Named;
use crate::sys::signal::{end_by, first, install, want};
use crate::sys::thread::spawn_silent;
use core::fmt;
use core::ops::Deref;
use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An [`Event`] that `SIGINT` (Ctrl-C) and `SIGTERM` set, for all who have the segment to see.
///
/// ```standalone_crate
/// use outlast::process::Stop;
/// use std::process::Command;
/// use std::time::Duration;
///
/// let stop = Stop::on_signals()?;
/// let me = std::process::id().to_string();
/// Command::new("kill").args(["-s", "TERM", &me]).status()?;
/// while !stop.wait_timeout(Duration::from_millis(10))? {
///     // a step of the work
/// }
/// // what is to be tidied up
/// assert_eq!(Stop::signal(&stop), Some(15));
/// # if Stop::signal(&stop).is_some() { return Ok(()) }
/// Stop::reraise(&stop); // ends this process as the signal would have: 128 + 15 for a shell
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// It dereferences to the [`Shared`] that holds the event: `.share("stop", &stop)` hands it on to a
/// [process](crate::process::Builder::share), a pool's workers or a
/// [command](crate::CommandExt::share), where `Shared::<Event>::inherited("stop")` is the same
/// event. Anybody may set it.
///
/// # Signals
/// The first one sets the event, and that is all: the program decides when it ends. It then calls
/// the handler that was there before, if there was one. A second one ends the process at once, as
/// if neither had been caught; not if it comes within 50 ms, which is one key or one command that
/// came twice. When it is dropped, the signals do again what they did before.
///
/// A signal that the process ignores stays ignored, as `SIGINT` is by what a shell starts in the
/// background. In the child of a fork, signals do what they did before.
///
/// What [`Process`](super::Process) and `Pool` start is in a process group of its own: Ctrl-C on
/// the terminal reaches this process only. Should this process be killed, they end as well.
pub struct Stop<T: ?Sized + Shareable + Sync + 'static = Event> {
    shared: Shared<T>,
    /// Of the watch.
    number: u64,
    /// Of the process that it was made in.
    forks: u32,
}

/// What is to be told when a signal comes.
type Watch = Box<dyn Fn() + Send>;

struct Watches {
    /// Whose they are: after a fork, the parent's.
    owner: u32,
    next: u64,
    all: Vec<(u64, Watch)>,
}

static WATCHES: Mutex<Watches> = Mutex::new(Watches { owner: 0, next: 0, all: Vec::new() });

fn watches() -> MutexGuard<'static, Watches> {
    // Nothing that can panic runs under it, but for the caller's `pick`; what it guards is true all
    // the same.
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    /// A new event, in an anonymous segment, that the signals set from now on.
    ///
    /// The first use in a process starts a thread, which sleeps: call [`init`](super::init) before.
    ///
    /// # Errors
    /// If there is no segment, or the operating system refuses.
    pub fn on_signals() -> Result<Stop, OpenError> {
        Stop::on_signals_in(Shared::anonymous(Event::manual(false))?, |event| event)
            .named("catching signals")
    }
}

impl<T: ?Sized + Shareable + Sync + Send + 'static> Stop<T> {
    /// The same, for a [manual](Event::manual) event that is part of a larger value:
    /// `Stop::on_signals_in(state, |state| &state.stop)`.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn on_signals_in(shared: Shared<T>, event: fn(&T) -> &Event) -> io::Result<Stop<T>> {
        let theirs = shared.clone();
        let watch: Watch = Box::new(move || _ = event(&theirs).set());
        let mut watches = watches();
        let this = std::process::id();
        if watches.owner != this {
            let bell = install()?;
            let listen = move || {
                while bell.wait().is_ok() {
                    self::watches().all.iter().for_each(|(_, watch)| watch());
                }
            };
            spawn_silent(c"outlast-signals", listen)?;
            watches.owner = this;
            watches.all.clear(); // the parent's
        }
        want(true);
        if first().is_some() {
            watch(); // for another one, that is there still
        }
        let number = watches.next;
        watches.next += 1;
        watches.all.push((number, watch));
        Ok(Stop { shared, number, forks: forks() })
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Stop<T> {
    /// The signal that has come, if one has: 2 for `SIGINT`, 15 for `SIGTERM`. The event may be set
    /// by others as well.
    #[must_use]
    pub fn signal(_this: &Stop<T>) -> Option<i32> {
        first()
    }

    /// Ends this process by the signal that has come, as if it had not been caught: a shell sees
    /// 128 and its number. Returns if none has.
    ///
    /// Nothing is dropped, and nothing that is registered for the end runs: whatever needs that is
    /// to be dropped before, such as named segments. Standard output is flushed.
    pub fn reraise(_this: &Stop<T>) {
        if let Some(signal) = first() {
            io::stdout().flush().ok();
            leave();
            end_by(signal);
        }
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Deref for Stop<T> {
    type Target = Shared<T>;
    fn deref(&self) -> &Shared<T> {
        &self.shared
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Drop for Stop<T> {
    fn drop(&mut self) {
        if self.forks != forks() {
            return; // a copy, in the child of a fork, where the lock may be held by nobody
        }
        let mut watches = watches();
        let at = watches.all.iter().position(|&(number, _)| number == self.number);
        let watch = at.map(|at| watches.all.swap_remove(at));
        want(!watches.all.is_empty());
        drop(watches);
        drop(watch); // its segment, perhaps
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> fmt::Debug for Stop<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("signal", &first()).finish()
    }
}
