//! Who does the owner's work: the threads that wait for results, and two that are there when none
//! does.
//!
//! Results are read by one thread at a time, the *leader*: a thread that waits for some. Others
//! that wait are *followers*, woken when their result is there, or when the leader has what it
//! wanted. So a result passes from the worker to who wants it without another thread in between. If
//! nobody waits, results stay where they are, unless there is need: tasks wait for room at the
//! desks, a worker for room for results, or a future's executor for a wake. Then the *clerk* leads,
//! a thread of the pool's. The *warden*, another thread, watches over the workers: it starts them,
//! notices their deaths and those tasks that take too long.
use super::book::{Book, Hired};
use super::chunk::{Chunk, Job};
use super::error::TaskError;
use super::hall::Hall;
use super::worker::{self, Orders, SOCKET};
use crate::deadline::Deadline;
use crate::event::Event;
use crate::process::Process;
use crate::segment::forks;
use crate::shared::Shared;
use crate::sys::file::duplicate;
use crate::sys::process::{send, socket_pair};
use core::fmt;
use core::task::Waker;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// How a pool was asked for.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) workers: usize,
    pub(super) most_tasks: u64,
    pub(super) retries: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) initializer: Option<(u64, u64, Vec<u8>)>,
    pub(super) shared: Vec<(String, OwnedFd)>,
    pub(super) name: String,
    pub(super) stop: Option<(StopEvent, OnStop)>,
}

/// What a pool does when it is told to [stop](super::Builder::stop).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// Does all that it was given, and takes no more. A [`map`](super::Pool::map) that was begun
    /// goes on to the end of its input, which may look at the event as well: `(0..).take_while(|_|
    /// !stop.is_set())`.
    Drain,
    /// Does what has been begun. All the rest fails with [`TaskError::Stopped`], each argument of a
    /// `map` that is asked for, too.
    Drop,
}

/// The event for which a pool stops.
pub(super) struct StopEvent(pub(super) Shared<Event>);

impl fmt::Debug for StopEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) struct Core {
    pub(super) hall: Hall,
    book: Mutex<Book>,
    lead: Mutex<Lead>,
    pub(super) plan: Plan,
    /// A byte sent here has the warden look again.
    pub(super) warden: (OwnedFd, OwnedFd),
    forks: u32,
}

#[derive(Default)]
struct Lead {
    led: bool,
    followers: Vec<Thread>,
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Panics under these locks are the crate's own bugs; what they guard is true after each
    // statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Core {
    pub(super) fn new(plan: Plan) -> Result<Arc<Core>, super::PoolError> {
        let hall = Hall::new(plan.workers)?;
        let book = Book::new(plan.workers, plan.most_tasks, plan.retries);
        let core = Arc::new(Core {
            hall,
            book: Mutex::new(book),
            lead: Mutex::default(),
            plan,
            warden: socket_pair()?,
            forks: forks(),
        });
        for i in 0..core.plan.workers {
            match core.hire(i) {
                Ok(hired) => core.book().seat(i, hired),
                Err(error) => {
                    core.end(&TaskError::Terminated);
                    core.dismiss();
                    return Err(error.into());
                }
            }
        }
        Ok(core)
    }

    /// Never in a [copy](Self::is_copy): a thread may have held the lock that the copy has not.
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        debug_assert!(!self.is_copy(), "who would give the lock back?");
        lock(&self.book)
    }

    /// Whether this is a fork's copy, to which the workers do not belong, and no thread that leads,
    /// or holds one of the locks.
    pub(super) fn is_copy(&self) -> bool {
        self.forks != forks()
    }

    pub(super) fn hire(&self, i: usize) -> Result<Hired, crate::process::SpawnError> {
        let (ours, theirs) = socket_pair()?;
        let mut builder = Process::builder(worker::work).name(&self.plan.name);
        builder = self.hall.share(builder).share_fd(SOCKET, theirs);
        for (key, fd) in &self.plan.shared {
            builder = builder.share_fd(key, duplicate(fd.as_fd())?);
        }
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let initializer = self.plan.initializer.clone();
        let orders: Orders = (short(i), short(self.plan.workers), std::process::id(), initializer);
        let process = Arc::new(builder.spawn(orders)?);
        Ok(Hired { process, socket: Arc::new(ours) })
    }

    // -------------------------------------------------------------------------------------- the book
    /// Changes the book, and wakes whom that concerns.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut Book, &Hall) -> R) -> R {
        let mut book = self.book();
        let result = change(&mut book, &self.hall);
        let wake = core::mem::take(&mut book.wake);
        drop(book);
        wake.into_iter().for_each(Waker::wake);
        result
    }

    /// Takes tasks, unless the pool is closed; whether a worker was asleep.
    pub(super) fn submit(
        &self,
        chunk: impl FnOnce(&mut Book) -> Chunk,
        goes_on: bool,
    ) -> Result<bool, TaskError> {
        if self.is_copy() {
            return Err(TaskError::Forked);
        }
        self.look_for_stop();
        self.with(|book, hall| {
            if let Some(error) = book.refuses(goes_on) {
                return Err(error);
            }
            let chunk = chunk(book);
            book.roused = false;
            book.take(hall, chunk);
            Ok(book.roused)
        })
    }

    /// Gives up a job's tasks; whether there were any.
    pub(super) fn cancel(&self, job: &Arc<dyn Job>, kill: bool) -> bool {
        if self.is_copy() {
            return false;
        }
        let any = self.with(|book, hall| {
            book.collect(hall);
            let any = book.cancel(hall, job, kill);
            book.dispatch(hall);
            any
        });
        self.hall.ring(); // the leader may wait for it
        any
    }

    /// Reads results and hands on tasks; whether there were results, and whether more can come
    /// unannounced.
    pub(super) fn pump(&self) -> (bool, bool) {
        self.with(|book, hall| {
            let any = book.collect(hall);
            let waiting = book.has_waiting_values();
            if any || waiting {
                book.dispatch(hall);
            }
            (any, waiting || book.has_long_message())
        })
    }

    // ------------------------------------------------------------------------------------- the leader
    /// Waits until `ready`; whether that came before the deadline. `register` has somebody woken
    /// then.
    pub(super) fn wait_for(
        &self,
        deadline: Deadline,
        ready: &mut dyn FnMut() -> bool,
        register: &mut dyn FnMut(Waker),
    ) -> bool {
        if self.is_copy() {
            return true; // for nothing: it never comes here, and `ready` may want a lock
        }
        loop {
            if ready() {
                return true;
            }
            let mut lead = lock(&self.lead);
            if !lead.led {
                lead.led = true;
                drop(lead);
                let came = self.lead_until(deadline, ready);
                self.resign();
                return came;
            }
            let me = thread::current();
            lead.followers.push(me.clone());
            drop(lead);
            register(Arc::new(Unpark(me.clone())).into());
            let done = ready() || deadline.is_over();
            if !done {
                match deadline.remaining() {
                    None => thread::park(),
                    Some(left) => thread::park_timeout(left),
                }
            }
            let mut lead = lock(&self.lead);
            if let Some(at) = lead.followers.iter().position(|other| other.id() == me.id()) {
                lead.followers.swap_remove(at);
            }
            drop(lead);
            let came = ready();
            if came || deadline.is_over() {
                self.hand_on();
                return came;
            }
        }
    }

    fn lead_until(&self, deadline: Deadline, ready: &mut dyn FnMut() -> bool) -> bool {
        const SHORTEST: Duration = Duration::from_millis(1);
        let mut nap = SHORTEST;
        loop {
            let (any, unannounced) = self.pump();
            if ready() {
                return true;
            }
            nap = if any { SHORTEST } else { (nap * 2).min(20 * SHORTEST) };
            let left = deadline.remaining();
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let nap = unannounced.then_some(nap);
            self.hall.wait(left.into_iter().chain(nap).min());
        }
    }

    fn resign(&self) {
        let mut lead = lock(&self.lead);
        lead.led = false;
        self.hand_on_from(lead);
    }

    /// Has somebody read results, though nobody waits here for one.
    pub(super) fn want(&self) {
        if self.is_copy() {
            return;
        }
        {
            let mut book = self.book();
            book.wanted = book.unfinished > 0;
        }
        self.hand_on();
    }

    /// Sees to it that somebody leads, if there is need.
    pub(super) fn hand_on(&self) {
        if !self.is_copy() {
            self.hand_on_from(lock(&self.lead));
        }
    }

    fn hand_on_from(&self, lead: MutexGuard<'_, Lead>) {
        if lead.led {
            return;
        }
        if let Some(follower) = lead.followers.last() {
            follower.unpark();
            return;
        }
        drop(lead);
        if self.book().needs_clerk() {
            self.hall.call();
        }
    }

    /// What the clerk does.
    pub(super) fn keep_books(&self) {
        loop {
            self.hall.wait_for_call();
            let mut lead = lock(&self.lead);
            if lead.over {
                return;
            }
            if lead.led {
                continue; // who leads hands on
            }
            lead.led = true;
            drop(lead);
            self.lead_until(Deadline::NEVER, &mut || !self.book().needs_clerk());
            self.resign();
        }
    }

    // ------------------------------------------------------------------------------------------ the stop
    /// Does what is to be done once the pool is told to stop, if it is.
    pub(super) fn look_for_stop(&self) {
        let Some((StopEvent(event), what)) = &self.plan.stop else { return };
        if self.is_copy() || !event.is_set() {
            return;
        }
        let first = self.with(|book, hall| {
            let first = !core::mem::replace(&mut book.stopped, true);
            if first {
                book.closed.get_or_insert(TaskError::Stopped);
                if *what == OnStop::Drop {
                    book.drop_waiting(hall);
                }
            }
            first
        });
        if first {
            self.hall.ring(); // the leader may want one of those that were given up
        }
    }

    /// What the thread does that is there for a pool with such an event.
    pub(super) fn wait_for_stop(&self) {
        let Some((StopEvent(event), _)) = &self.plan.stop else { return };
        while !event.is_set() {
            match event.wait_unless(Deadline::NEVER, || self.is_over()) {
                Ok(_) if self.is_over() => return,
                Ok(_) => {}
                // One process or thread too many. It looks again and again.
                Err(_) if self.is_over() => return,
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        self.look_for_stop();
    }

    // ---------------------------------------------------------------------------------------- the end
    fn alarm(&self) {
        send(self.warden.1.as_fd(), &[0], &[], false).ok();
    }

    /// Fails all that is unfinished, and kills the workers.
    pub(super) fn end(&self, error: &TaskError) {
        self.with(|book, _| {
            if !book.closed.as_ref().is_some_and(is_final) {
                book.end(error);
            }
        });
        self.hall.ring();
        self.alarm();
    }

    /// Waits until nothing is unfinished.
    pub(super) fn drain(&self, deadline: Deadline) -> bool {
        let mut ready = || self.book().unfinished == 0;
        let mut register = |waker: Waker| {
            let mut book = self.book();
            if book.unfinished == 0 {
                drop(book);
                waker.wake();
            } else {
                book.drained.push(waker);
            }
        };
        self.wait_for(deadline, &mut ready, &mut register)
    }

    /// Whether they are to end.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.lead).over
    }

    /// Has the clerk and the warden end, and who waits for the stop.
    pub(super) fn stop(&self, threads: impl Iterator<Item = JoinHandle<()>>) {
        lock(&self.lead).over = true;
        self.hall.call();
        self.alarm();
        for thread in threads {
            while let Some((StopEvent(event), _)) = &self.plan.stop
                && !thread.is_finished()
            {
                event.disturb();
                thread::sleep(Duration::from_micros(100));
            }
            thread.join().ok(); // it never panics
        }
    }

    /// Has the workers end, which have nothing to do, and waits for them. To be called when nobody
    /// starts any more.
    pub(super) fn dismiss(&self) {
        let workers: Vec<Hired> = self.with(|book, hall| {
            for desk in hall.desks() {
                desk.stop.store(1, crate::sync::atomic::Ordering::Release);
                desk.ring();
            }
            book.seats.iter().filter_map(|seat| seat.worker.clone()).collect()
        });
        for hired in workers {
            if !hired.process.wait_timeout(Duration::from_secs(10)).unwrap_or(false) {
                hired.process.kill().ok();
                hired.process.wait().ok();
            }
        }
    }
}

/// Whether a pool that is closed for this reason has come to its end.
pub(super) fn is_final(error: &TaskError) -> bool {
    !matches!(error, TaskError::Closed | TaskError::Stopped)
}
