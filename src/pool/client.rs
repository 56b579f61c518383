//! The worker's end of its connection to the pool's owner, for tasks that submit tasks.
use super::Call;
use super::call::{retry, run_call};
use super::cell::{TaskCell, Unpark, lock};
use super::chunk::{Outcome, ResultSink as _, TaskOptions};
use super::error::TaskError;
use super::protocol::{
    ANSWER, BUFFER, CANCEL, CONTROL, RESULT, Reply, Request, SUBMIT, TAKE_BACK, decode_error,
    encode_head, send_with_body,
};
use super::segment::RESOURCE_TIMEOUT;
use crate::deadline::Deadline;
use crate::process::inherited_fd;
use crate::process::wire::{is_disconnected, read_file};
use crate::segment::forks;
use crate::sys::process::{receive, receive_first, send, socket_pair};
use crate::sys::thread::spawn_without_signals;
use core::cell::Cell;
use core::task::Waker;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// The slot of this worker, and the value of [`forks`] in it.
static WORKER: OnceLock<(u32, u32)> = OnceLock::new();
/// The connection of this worker, once it has submitted a task.
static CLIENT: Mutex<Option<Arc<Client>>> = Mutex::new(None);

thread_local! {
    /// Whether this thread runs the worker's tasks.
    static RUNS_TASKS: Cell<bool> = const { Cell::new(false) };
}

/// Tells [`current`](super::current) that this thread runs the tasks of the worker in `slot`.
pub(super) fn enter(slot: u32) {
    WORKER.get_or_init(|| (slot, forks()));
    RUNS_TASKS.set(true);
}

/// The worker's end of its connection to the owner.
pub(super) struct Client {
    socket: OwnedFd,
    forks: u32,
    state: Mutex<ClientState>,
    answered: Condvar,
}

#[derive(Default)]
struct ClientState {
    /// The last number of a task or an answer.
    last: u64,
    tasks: HashMap<u64, (Arc<TaskCell>, Arc<Call>)>,
    answers: HashMap<u64, bool>,
    /// The owner has closed the connection.
    closed: bool,
}

impl Client {
    /// Returns this worker's connection. Makes it if there is none.
    pub(super) fn get() -> io::Result<Arc<Client>> {
        let mut client = lock(&CLIENT);
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        let (slot, _) = WORKER.get().ok_or_else(closed)?;
        let control = inherited_fd(CONTROL).ok_or_else(closed)?;
        let (socket, theirs) = socket_pair()?;
        send(control.as_fd(), &slot.to_le_bytes(), &[theirs.as_fd()], true)?;
        let (state, answered) = Default::default();
        let new = Arc::new(Client { socket, forks: forks(), state, answered });
        let reader = Arc::clone(&new);
        spawn_without_signals(c"pool-replies", move || reader.read_replies())?;
        *client = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Returns whether this is a copy in the child of a fork.
    pub(super) fn is_copy(&self) -> bool {
        self.forks != forks()
    }

    /// Is the body of the thread that receives replies.
    fn read_replies(&self) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut files = Vec::new();
            let socket = self.socket.as_fd();
            match retry(|| receive(socket, &mut buffer, &mut files, true)) {
                Ok(0) => break,
                Ok(length) => self.handle(&buffer[..length], files.pop().map(Ok)),
                // After `RESOURCE_TIMEOUT`, the value without a descriptor is lost.
                Err(error) if !is_disconnected(&error) => match receive_first(socket) {
                    Ok(file) => self.handle(&buffer, Some(file)),
                    Err(_) => thread::sleep(RESOURCE_TIMEOUT),
                },
                Err(_) => break,
            }
        }
        let mut state = lock(&self.state);
        state.closed = true;
        let tasks: Vec<_> = state.tasks.drain().collect();
        drop(state);
        self.answered.notify_all();
        for (_, (cell, _)) in tasks {
            finish(&cell, Outcome::Failed(TaskError::Terminated));
        }
    }

    fn handle(&self, bytes: &[u8], file: Option<io::Result<OwnedFd>>) {
        let Ok(((kind, number, status), body)) = postcard::take_from_bytes::<Reply>(bytes) else {
            return;
        };
        if kind == ANSWER {
            lock(&self.state).answers.insert(number, status == 1);
            self.answered.notify_all();
            return;
        }
        let Some((cell, _)) = lock(&self.state).tasks.remove(&number) else { return };
        let body = file.map_or_else(|| Ok(body.to_vec()), |file| file.and_then(read_file));
        let outcome = match body {
            Ok(body) if kind == RESULT => Outcome::Large(status, body),
            Ok(body) => Outcome::Failed(decode_error(&body)),
            Err(error) => Outcome::Failed(TaskError::Transfer(error.to_string())),
        };
        finish(&cell, outcome);
    }

    /// Submits a call. Returns the number of its task, and the cell for its result.
    pub(super) fn submit(
        &self,
        call: Call,
        options: TaskOptions,
    ) -> Result<(u64, Arc<TaskCell>), TaskError> {
        if self.is_copy() {
            return Err(TaskError::Forked);
        }
        let (cell, call) = (Arc::<TaskCell>::default(), Arc::new(call));
        let id = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(TaskError::Terminated);
            }
            state.last += 1;
            let id = state.last;
            state.tasks.insert(id, (Arc::clone(&cell), Arc::clone(&call)));
            id
        };
        let options = (options.timeout, options.retries);
        let head: Request = (SUBMIT, id, 0, (call.entry, call.function), options);
        let socket = self.socket.as_fd();
        retry(|| send_with_body(socket, &encode_head(&head), &call.body, true)).map_err(
            |error| {
                lock(&self.state).tasks.remove(&id);
                TaskError::Transfer(error.to_string())
            },
        )?;
        Ok((id, cell))
    }

    /// Asks the owner about a task, and blocks until it answers.
    fn ask(&self, kind: u8, id: u64) -> bool {
        let mut state = lock(&self.state);
        state.last += 1;
        let answer = state.last;
        drop(state);
        let head: Request = (kind, id, answer, (0, 0), (None, None));
        if send(self.socket.as_fd(), &encode_head(&head), &[], true).is_err() {
            return false;
        }
        let state = lock(&self.state);
        let waits = |state: &mut ClientState| !state.closed && !state.answers.contains_key(&answer);
        let state = self.answered.wait_while(state, waits);
        state.unwrap_or_else(PoisonError::into_inner).answers.remove(&answer).unwrap_or(false)
    }

    pub(super) fn cancel(&self, id: u64) -> bool {
        !self.is_copy() && self.ask(CANCEL, id)
    }

    /// Runs a task on this thread, if no worker has begun it. Returns whether it has run.
    pub(super) fn run_here(&self, id: u64) -> bool {
        if !RUNS_TASKS.get() || self.is_copy() || !lock(&self.state).tasks.contains_key(&id) {
            return false;
        }
        if !self.ask(TAKE_BACK, id) {
            return false;
        }
        let Some((cell, call)) = lock(&self.state).tasks.remove(&id) else { return false };
        let argument = if call.large { &call.body } else { call.body.get(4..).unwrap_or(&[]) };
        finish(&cell, run_call(call.entry, call.function, argument));
        true
    }

    /// Blocks until a task is done, running it if no worker has begun it. Returns `false` if the
    /// deadline passes first.
    pub(super) fn wait_for(&self, id: u64, cell: &TaskCell, deadline: Deadline) -> bool {
        /// How often this thread looks again whether it can run the task.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let waker: Waker = Arc::new(Unpark(thread::current())).into();
        loop {
            if self.is_copy() || cell.is_done() || self.run_here(id) {
                return true;
            }
            if deadline.is_over() {
                return false;
            }
            cell.register(waker.clone());
            thread::park_timeout(deadline.remaining().unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN));
        }
    }
}

/// Delivers the result of a task.
fn finish(cell: &TaskCell, outcome: Outcome) {
    let mut wake = Vec::new();
    cell.deliver(0, 1, outcome, &mut wake);
    wake.into_iter().for_each(Waker::wake);
}

/// Returns whether this process is a worker of a pool.
pub(super) fn is_worker() -> bool {
    WORKER.get().is_some_and(|(_, before)| *before == forks())
}
