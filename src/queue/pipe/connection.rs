//! One side of a pipe.
use super::Pipe;
use super::way::{Flow, NoTurn, Part, Record, Seen};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::ends::Hold;
use crate::queue::{RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::queue::{RecvFailure, SendFailure};
use crate::queue::{TryRecvError, TrySendError};
use crate::shared::Shared;
use crate::sys::hooks;
use crate::wait::verbs::{Call, verbs};
use core::fmt;
use core::ops::Deref;
use std::time::Duration;

/// How often who has a part of a message asks whether it goes on, at least. He is woken if it does
/// not; except if the kernel has not yet marked the turn of a writer whose process is held to be
/// dead.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A handle of one side of a [`Pipe`]: sends messages to the other side, and receives what that has
/// sent.
///
/// Messages arrive whole and in order, whatever their length. Any number of threads may use it at a
/// time: their messages do not mix, and each is received by one of those who receive.
///
/// Clones are further handles. Made by [`Pipe::first`] or [`Pipe::second`] it borrows the pipe;
/// made by [`Shared::first`] or [`Shared::second`] it
/// keeps it, and can move into a thread. In a process made by `fork` a copied one does nothing: the
/// child makes its own.
#[must_use = "the side is given up at once if this is not kept"]
pub struct Connection<C: Deref<Target = Pipe>> {
    hold: Hold,
    side: usize,
    pipe: C,
}

impl<C: Deref<Target = Pipe>> Connection<C> {
    /// A handle of the first side that keeps whatever leads to the pipe.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn first(pipe: C) -> Result<Self, Fault> {
        Self::of(pipe, 0)
    }

    /// A handle of the second side that keeps whatever leads to the pipe.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn second(pipe: C) -> Result<Self, Fault> {
        Self::of(pipe, 1)
    }

    pub(crate) fn of(pipe: C, side: usize) -> Result<Self, Fault> {
        Ok(Connection { hold: pipe.sides.ends[side].hold()?, side, pipe })
    }

    /// What leads to the pipe, and which side of it this is.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn parts(&self) -> (&C, usize) {
        (&self.pipe, self.side)
    }

    /// Has the process slot or stand-in `owner` hold the side as well.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn hold_for(&self, owner: u32) -> Result<(), Fault> {
        self.hold.check()?;
        self.pipe.sides.ends[self.side].hold_for(owner).map(drop)
    }

    /// The pipe.
    pub fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// The other side.
    #[inline(always)]
    fn other(&self) -> usize {
        1 - self.side
    }
}

/// Handles that keep the pipe mapped, and can move to any thread.
impl Shared<Pipe> {
    /// Takes a handle of the first side, as [`Pipe::first`] does.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn first(&self) -> Result<Connection<Self>, Fault> {
        Connection::first(self.clone())
    }

    /// Takes a handle of the second side, as [`Pipe::second`] does.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn second(&self) -> Result<Connection<Self>, Fault> {
        Connection::second(self.clone())
    }
}

// ------------------------------------------------------------------ sending
impl<C: Deref<Target = Pipe>> Connection<C> {
    verbs! {
        /// Sends a message, blocking until there is room for it.
        ///
        /// A message that is longer than [`Pipe::capacity`] is received while it is sent. It is
        /// lost as a whole if one of the two processes is killed meanwhile.
        ///
        /// Two sides that both send more than the pipe holds, and receive nothing meanwhile, wait
        /// for each other for ever.
        ///
        /// # Errors
        /// If the other side is gone, or if this process cannot become a peer.
        #[inline]
        #[doc(alias = "write")]
        pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError<()>>
            = |deadline| self.send_until(message, deadline);
        /// It also fails while another thread sends; and always, with [`Fault::TooLong`], if the
        /// message is longer than [`Pipe::capacity`].
        try_send_bytes -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        /// If it times out, nothing is received, even of a message of which a part has been sent.
        send_bytes_timeout, send_bytes_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }

    #[inline(always)]
    pub(in crate::queue) fn send_until(
        &self,
        message: &[u8],
        deadline: Deadline,
    ) -> Result<(), SendFailure> {
        self.hold.check().map_err(SendFailure::Failed)?;
        let flow = self.pipe.flow(self.side);
        if deadline.is_now() && message.len() > flow.longest() {
            return Err(SendFailure::Failed(Fault::TooLong));
        }
        let mut head = flow.way.writer.take(deadline).map_err(SendFailure::from)?;
        for part in flow.parts(message) {
            if let Err(why) = self.wait_for_room(flow, part, &mut head, deadline) {
                hooks::pause("pipe: no room for the next part, and the turn is held");
                drop(head);
                if !part.is_first() {
                    flow.way.not_empty.notify_all(); // keeps I4
                }
                return Err(why);
            }
            flow.write(part);
        }
        Ok(())
    }

    #[inline(always)]
    fn wait_for_room(
        &self,
        flow: Flow<'_>,
        part: Part<'_>,
        head: &mut Seen<'_>,
        deadline: Deadline,
    ) -> Result<(), SendFailure> {
        let mut find = || self.find_room(flow, part, head);
        let found = find().or_else(|| flow.way.not_full.wait(deadline, find).ok());
        found.unwrap_or(Err(SendFailure::Full))
    }

    #[inline(always)]
    fn find_room(
        &self,
        flow: Flow<'_>,
        part: Part<'_>,
        head: &mut Seen<'_>,
    ) -> Option<Result<(), SendFailure>> {
        if self.pipe.is_gone(self.other()) {
            return Some(Err(SendFailure::Disconnected));
        }
        match flow.has_room(part, head) {
            Ok(has_room) => has_room.then_some(Ok(())),
            Err(fault) => Some(Err(SendFailure::Failed(fault))),
        }
    }
}

// ---------------------------------------------------------------- receiving
impl<C: Deref<Target = Pipe>> Connection<C> {
    verbs! {
        /// Receives a message, blocking until one is available.
        ///
        /// # Errors
        /// If the other side is gone and no message is left, if this process cannot become a peer,
        /// or if the memory is damaged.
        #[inline]
        #[doc(alias = "read")]
        pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError>
            = Call(|deadline| self.recv_until(deadline).transpose());
        /// If a message that is longer than [`Pipe::capacity`] has begun to arrive, the call blocks
        /// until it is complete. It also fails while another thread receives.
        try_recv_bytes -> Result<Vec<u8>, TryRecvError>, else Err(TryRecvError::Empty);
        /// Of a message that is longer than [`Pipe::capacity`], the beginning has to come in time.
        recv_bytes_timeout, recv_bytes_deadline -> Result<Vec<u8>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Receives a message to the end of `to`, blocking until one is available. Returns its
        /// length.
        ///
        /// # Errors
        /// As [`recv_bytes`](Self::recv_bytes).
        pub fn recv_bytes_into(&self, to: &mut Vec<u8>) -> Result<usize, RecvError>
            = Call(|deadline| self.recv_to(to, deadline).transpose());
        /// If a message that is longer than [`Pipe::capacity`] has begun to arrive, the call blocks
        /// until it is complete. It also fails while another thread receives.
        try_recv_bytes_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        /// Of a message that is longer than [`Pipe::capacity`], the beginning has to come in time.
        recv_bytes_into_timeout, recv_bytes_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Blocks until a message has come, or begun to come, or the other side is gone. Another
        /// thread can receive that message meanwhile.
        ///
        /// ```
        /// use outlast::{Pipe, Shared};
        ///
        /// let pipe = Shared::<Pipe>::with_capacity(4096)?;
        /// let (here, there) = (pipe.first()?, pipe.second()?);
        /// assert!(!there.try_poll()?);
        /// here.send_bytes(b"hello")?;
        /// assert!(there.try_poll()?);
        /// assert_eq!(there.recv_bytes()?, b"hello");
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// If this process cannot become a peer, or if the memory is damaged.
        pub fn poll(&self) -> Result<(), Fault> = Call(|deadline| self.poll_until(deadline));
        /// It also returns `Ok(false)` while another thread receives.
        try_poll -> Result<bool, Fault>, else Ok(false);
        poll_timeout, poll_deadline -> Result<bool, Fault>, else Ok(false);
    }

    fn poll_until(&self, deadline: Deadline) -> Option<Result<(), Fault>> {
        match self.begin(deadline, |_, _, _| Ok(Some(()))) {
            Err(RecvFailure::Failed(fault)) => Some(Err(fault)),
            begun => begun.unwrap_or(Some(())).map(Ok),
        }
    }

    #[inline(always)]
    pub(in crate::queue) fn recv_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<Vec<u8>>, RecvFailure> {
        let mut message = Vec::new();
        let received = self.recv_to(&mut message, deadline)?;
        Ok(received.map(|_| message))
    }

    #[inline(always)]
    fn recv_to(&self, to: &mut Vec<u8>, deadline: Deadline) -> Result<Option<usize>, RecvFailure> {
        let before = to.len();
        self.begin(deadline, |flow, first, tail| {
            flow.read(first, to);
            flow.pass(first);
            let rest = if first.goes_on() { self.recv_rest(flow, to, tail) } else { Ok(Some(())) };
            if !matches!(rest, Ok(Some(()))) {
                to.truncate(before);
            }
            Ok(rest?.map(|()| to.len() - before))
        })
    }

    /// Takes the reader's turn, and gives `take` the first record of a message, until that has made
    /// something of it.
    #[inline(always)]
    fn begin<R>(
        &self,
        deadline: Deadline,
        mut take: impl FnMut(Flow<'_>, Record, &mut Seen<'_>) -> Result<Option<R>, RecvFailure>,
    ) -> Result<Option<R>, RecvFailure> {
        self.hold.check().map_err(RecvFailure::Failed)?;
        let flow = self.pipe.flow(self.other());
        let mut tail = match flow.way.reader.take(deadline) {
            Ok(tail) => tail,
            Err(NoTurn::Busy) => return Ok(None),
            Err(NoTurn::Failed(fault)) => return Err(RecvFailure::Failed(fault)),
        };
        loop {
            let mut find = || self.find(flow, &mut tail);
            let found = find().or_else(|| flow.way.not_empty.wait(deadline, find).ok());
            match found.transpose()? {
                None => return Ok(None),
                Some(record) if record.began() => flow.pass(record), // keeps I3
                Some(record) => {
                    if let Some(made) = take(flow, record, &mut tail)? {
                        return Ok(Some(made));
                    }
                }
            }
        }
    }

    /// Appends what follows the first record of a message; nothing if it does not go on.
    #[cold]
    fn recv_rest(
        &self,
        flow: Flow<'_>,
        to: &mut Vec<u8>,
        tail: &mut Seen<'_>,
    ) -> Result<Option<()>, RecvFailure> {
        loop {
            let record = loop {
                let find = || self.find_rest(flow, tail);
                let beat = Deadline::after(hooks::second_look(HEARTBEAT));
                if let Ok(found) = flow.way.not_empty.wait(beat, find) {
                    break found?;
                }
            };
            let Some(record) = record.filter(|record| record.began()) else { return Ok(None) };
            flow.read(record, to);
            flow.pass(record);
            if !record.goes_on() {
                return Ok(Some(()));
            }
        }
    }

    /// The next record; or that there is none, and never will be.
    #[inline(always)]
    fn find(&self, flow: Flow<'_>, tail: &mut Seen<'_>) -> Option<Result<Record, RecvFailure>> {
        let find = |tail: &mut Seen<'_>| flow.next(tail).map_err(RecvFailure::Failed).transpose();
        let gone = || self.pipe.is_gone(self.other());
        // The last look sees what they have sent before they left.
        find(tail).or_else(|| gone().then(|| find(tail).unwrap_or(Err(RecvFailure::Disconnected))))
    }

    /// The next record of a message of which there was a part; or that it does not go on.
    fn find_rest(
        &self,
        flow: Flow<'_>,
        tail: &mut Seen<'_>,
    ) -> Option<Result<Option<Record>, RecvFailure>> {
        if let Some(found) = self.find(flow, tail) {
            return Some(found.map(Some));
        }
        // A free turn is not taken: a writer that does not wait would find it taken. One that seems
        // to be taken may be that of a dead writer.
        if flow.way.writer.is_taken() {
            match flow.way.writer.take(Deadline::NOW) {
                Err(NoTurn::Busy) => return None,
                Err(NoTurn::Failed(fault)) => return Some(Err(RecvFailure::Failed(fault))),
                Ok(_) => hooks::pause("pipe: a reader has the writer's turn"),
            }
        }
        Some(self.find(flow, tail).transpose()) // by I4
    }
}

impl From<NoTurn> for SendFailure {
    fn from(no_turn: NoTurn) -> Self {
        match no_turn {
            NoTurn::Busy => SendFailure::Full,
            NoTurn::Failed(fault) => SendFailure::Failed(fault),
        }
    }
}

impl<C: Deref<Target = Pipe> + Clone> Clone for Connection<C> {
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.pipe.sides.ends[self.side].again(&self.hold);
        Connection { hold, side: self.side, pipe: self.pipe.clone() }
    }
}

impl<C: Deref<Target = Pipe>> Drop for Connection<C> {
    fn drop(&mut self) {
        if self.pipe.sides.ends[self.side].release(&self.hold) {
            self.pipe.part(self.side);
        }
    }
}

impl<C: Deref<Target = Pipe>> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("side", &self.side).field("pipe", &self.pipe()).finish()
    }
}
