//! An event that signals set, for programs that stop in order.
use super::per_process::PerProcess;
use crate::error::OpenError;
use crate::event::Event;
use crate::segment::{forks, leave};
use crate::shareable::Shareable;
use crate::shared::Shared;
use crate::sys::file::Named;
use crate::sys::signal::{end_by, first, install, want};
use crate::sys::thread::spawn_without_signals;
use core::fmt;
use core::ops::Deref;
use std::io::{self, Write as _};

/// An [`Event`] that `SIGINT` (Ctrl-C) and `SIGTERM` set, visible in every process that has opened
/// its segment.
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
/// // clean up here
/// assert_eq!(Stop::signal(&stop), Some(15));
/// # if Stop::signal(&stop).is_some() { return Ok(()) }
/// Stop::reraise(&stop); // ends this process as the signal would have: 128 + 15 for a shell
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// It dereferences to the [`Shared`] that holds the event: `.share("stop", &stop)` hands it on to a
/// [process](crate::process::Builder::share), a pool's workers or a
/// [command](crate::CommandExt::share), where `Shared::<Event>::inherited("stop")` is the same
/// event. Every process may set it.
///
/// # Signals
/// The first signal only sets the event, and calls the handler that was there before, if there was
/// one: the program decides when it ends. A second signal ends the process immediately, as if
/// neither had been caught. A second signal within 50 ms is ignored, because it comes from the same
/// key or command. When the `Stop` is dropped, the signals have their former effect again.
///
/// A signal that the process ignores stays ignored. Shells start background commands with `SIGINT`
/// ignored. In the child of a fork, signals have their former effect.
///
/// The processes of [`Process`](super::Process) and `Pool` are in another process group: Ctrl-C on
/// the terminal reaches this process only. If this process is killed, they end as well.
pub struct Stop<T: ?Sized + Shareable + Sync + 'static = Event> {
    shared: Shared<T>,
    /// The number of its subscription.
    number: u64,
    /// The value of [`forks`] in the process that made it.
    forks: u32,
}

/// Called when a signal comes.
type Watch = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Watches {
    /// Whether the handler and the thread of this process exist.
    installed: bool,
    next: u64,
    all: Vec<(u64, Watch)>,
}

static WATCHES: PerProcess<Watches> = PerProcess::new();

impl Stop {
    /// Creates an event, in an anonymous segment, that the signals set from now on.
    ///
    /// The first use in a process starts a thread, which sleeps. Call [`init`](super::init) before.
    ///
    /// # Errors
    /// If the segment cannot be created, or the operating system refuses.
    pub fn on_signals() -> Result<Stop, OpenError> {
        Stop::on_signals_in(Shared::anonymous(Event::manual(false))?, |event| event)
            .named("catching signals")
    }
}

impl<T: ?Sized + Shareable + Sync + Send + 'static> Stop<T> {
    /// Like [`on_signals`](Stop::on_signals), for a [manual](Event::manual) event that is part of a
    /// larger value:
    /// `Stop::on_signals_in(state, |state| &state.stop)`.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn on_signals_in(shared: Shared<T>, event: fn(&T) -> &Event) -> io::Result<Stop<T>> {
        let theirs = shared.clone();
        let watch: Watch = Box::new(move || _ = event(&theirs).set());
        let mut watches = WATCHES.lock();
        if !watches.installed {
            let bell = install()?;
            let listen = move || {
                while bell.wait().is_ok() {
                    WATCHES.lock().all.iter().for_each(|(_, watch)| watch());
                }
            };
            spawn_without_signals(c"outlast-signals", listen)?;
            watches.installed = true;
        }
        want(true);
        if first().is_some() {
            watch(); // the signal came before, for another `Stop`
        }
        let number = watches.next;
        watches.next += 1;
        watches.all.push((number, watch));
        Ok(Stop { shared, number, forks: forks() })
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Stop<T> {
    /// Returns the signal that has come, if one has: 2 for `SIGINT`, 15 for `SIGTERM`. The event
    /// may also be set without a signal.
    #[must_use]
    pub fn signal(_this: &Stop<T>) -> Option<i32> {
        first()
    }

    /// Ends this process by the signal that has come, as if it had not been caught: the shell's
    /// exit status is 128 and the number of the signal. Returns if no signal has come.
    ///
    /// Standard output is flushed. No destructors and no exit handlers run, so drop values that
    /// need it before, such as named segments.
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
            return; // a copy in the child of a fork: the number is the parent's
        }
        let mut watches = WATCHES.lock();
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
