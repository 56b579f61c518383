//! The owner's end of the connection of a worker that submits tasks.
use super::cell::lock;
use super::chunk::{Outcome, ResultSink, TaskOptions, record_of};
use super::core::Core;
use super::error::TaskError;
use super::protocol::{
    ANSWER, BUFFER, FAILED, RESULT, Reply, Request, SUBMIT, TAKE_BACK, encode_error, encode_head,
    send_with_body,
};
use super::scheduler::Scheduler;
use super::{Call, TaskOrigin};
use crate::process::wire::{is_disconnected, read_file};
use crate::sys::process::{receive, receive_first};
use core::task::Waker;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::task::Wake;
use std::time::Duration;

/// The owner's end of the connection of a worker that submits tasks.
pub(super) struct Connection {
    core: Weak<Core>,
    /// The worker's slot.
    pub(super) slot: usize,
    socket: OwnedFd,
    /// The tasks that have no result.
    tasks: Mutex<HashMap<u64, Arc<NestedTask>>>,
    /// Replies for which the socket had no room: head and body.
    unsent: Mutex<VecDeque<(Vec<u8>, Vec<u8>)>>,
}

/// A task that a worker has submitted.
struct NestedTask {
    connection: Arc<Connection>,
    id: u64,
}

/// A result on its way to the worker. It is sent when it is woken, outside of the scheduler's lock.
struct PendingReply {
    connection: Arc<Connection>,
    id: u64,
    outcome: Mutex<Option<Outcome>>,
}

impl ResultSink for NestedTask {
    fn deliver(&self, _base: u64, _count: u32, outcome: Outcome, wake: &mut Vec<Waker>) {
        if lock(&self.connection.tasks).remove(&self.id).is_some() {
            let connection = Arc::clone(&self.connection);
            let outcome = Mutex::new(Some(outcome));
            wake.push(Arc::new(PendingReply { connection, id: self.id, outcome }).into());
        }
    }
}

impl Wake for PendingReply {
    fn wake(self: Arc<Self>) {
        let (kind, status, body) = match lock(&self.outcome).take() {
            Some(Outcome::Records(bytes)) => {
                let (status, value) = record_of(&bytes);
                (RESULT, status, value.to_vec())
            }
            Some(Outcome::Large(status, bytes)) => (RESULT, status, bytes),
            Some(Outcome::Failed(error)) => (FAILED, 0, encode_error(&error)),
            None => return,
        };
        self.connection.reply((kind, self.id, status), body);
    }
}

impl Connection {
    pub(super) fn new(core: &Arc<Core>, slot: usize, socket: OwnedFd) -> Arc<Connection> {
        let (tasks, unsent) = Default::default();
        Arc::new(Connection { core: Arc::downgrade(core), slot, socket, tasks, unsent })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a reply, without blocking: the supervisor retries later.
    fn reply(&self, head: Reply, body: Vec<u8>) {
        lock(&self.unsent).push_back((encode_head(&head), body));
        if !self.flush()
            && let Some(core) = self.core.upgrade()
        {
            core.wake_supervisor();
        }
    }

    /// Sends the replies that wait. Returns whether none is left.
    pub(super) fn flush(&self) -> bool {
        let mut unsent = lock(&self.unsent);
        while let Some((head, body)) = unsent.front() {
            match send_with_body(self.socket.as_fd(), head, body, false) {
                Err(error) if !is_disconnected(&error) => return false,
                _ => drop(unsent.pop_front()),
            }
        }
        true
    }

    /// Serves the requests that have come. Returns `false` if no more will come.
    pub(super) fn serve(self: &Arc<Self>, core: &Core) -> bool {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut files = Vec::new();
            match receive(self.socket.as_fd(), &mut buffer, &mut files, false) {
                Ok(0) => return false,
                Ok(length) => self.handle(core, &buffer[..length], files.pop().map(Ok)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if is_disconnected(&error) => return false,
                Err(_) => match receive_first(self.socket.as_fd()) {
                    // The buffer holds the message, but not its descriptor.
                    Ok(file) => self.handle(core, &buffer, Some(file)),
                    Err(_) => return true,
                },
            }
        }
    }

    fn handle(self: &Arc<Self>, core: &Core, bytes: &[u8], file: Option<io::Result<OwnedFd>>) {
        let Ok(((kind, id, answer, call, options), body)) =
            postcard::take_from_bytes::<Request>(bytes)
        else {
            return;
        };
        let task = || lock(&self.tasks).get(&id).cloned();
        let yes = match kind {
            SUBMIT => {
                let body = match file {
                    None => Ok((body.to_vec(), false)),
                    Some(file) => file.and_then(read_file).map(|body| (body, true)),
                };
                return self.submit(core, id, call, body, options);
            }
            TAKE_BACK => task().is_some_and(|task| {
                let taken = core.take_back(&(Arc::clone(&task) as _));
                if taken {
                    lock(&self.tasks).remove(&id);
                }
                taken
            }),
            _ => task().is_some_and(|task| core.cancel(&(task as _), true)),
        };
        self.reply((ANSWER, answer, u8::from(yes)), Vec::new());
    }

    fn submit(
        self: &Arc<Self>,
        core: &Core,
        id: u64,
        (entry, function): (u64, u64),
        body: io::Result<(Vec<u8>, bool)>,
        (timeout, retries): (Option<Duration>, Option<u32>),
    ) {
        let task = Arc::new(NestedTask { connection: Arc::clone(self), id });
        lock(&self.tasks).insert(id, Arc::clone(&task));
        let accepted = match body {
            Ok((body, large)) => {
                let call = Call { entry, function, body, large };
                let options = TaskOptions { timeout, retries };
                let sink = Arc::clone(&task) as _;
                let chunk = |scheduler: &mut Scheduler| call.into_chunk(scheduler, sink, options);
                core.submit(chunk, TaskOrigin::Task).map(drop)
            }
            Err(error) => Err(TaskError::Transfer(error.to_string())),
        };
        match accepted {
            Ok(()) => {
                core.request_results(); // the worker waits, and no thread of the owner may
                if let Some(limit) = timeout {
                    core.watch_limit(limit);
                }
            }
            Err(error) => {
                let mut wake = Vec::new();
                task.deliver(0, 1, Outcome::Failed(error), &mut wake);
                wake.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Cancels the tasks that have not begun, because their worker has died.
    pub(super) fn cancel_all(&self, core: &Core) {
        let tasks: Vec<_> = lock(&self.tasks).values().cloned().collect();
        for task in tasks {
            core.cancel(&(task as _), false);
        }
    }
}
