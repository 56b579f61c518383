//! A handle of one side of a pipe.
use super::Pipe;
use super::way::{BlockRing, Part, Record};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::Failure;
use crate::queue::ends::Hold;
use crate::queue::verbs::wait_for;
use crate::queue::{RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::queue::{TryRecvError, TrySendError};
use crate::shared::Shared;
use crate::sys::hooks;
use crate::wait::verbs::{Call, verbs};
use core::fmt;
use core::ops::Deref;
use std::time::Duration;

/// How often a receiver that has a part of a message asks, at least, whether the message continues.
/// If it does not, the receiver is woken. The exception: the writer's process counts as dead, and
/// the kernel has not yet marked its turn.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A handle of one side of a [`Pipe`]. It sends messages to the other side and receives what that
/// side has sent.
///
/// Messages arrive whole and in order, whatever their length. Any number of threads can use a
/// handle at the same time. Their messages do not mix, and each message goes to one receiver.
///
/// A clone is a further handle of the same side. [`Pipe::first`] and [`Pipe::second`] give handles
/// that borrow the pipe; [`Shared::first`] and [`Shared::second`] give handles that keep the pipe
/// mapped and can move to any thread. In a process made by `fork`, a copied handle does nothing:
/// the child takes its own.
#[must_use = "the side is given up immediately if this is not kept"]
pub struct Connection<C: Deref<Target = Pipe>> {
    hold: Hold,
    side: usize,
    pipe: C,
}

impl<C: Deref<Target = Pipe>> Connection<C> {
    pub(crate) fn of(pipe: C, side: usize) -> Result<Self, Fault> {
        Ok(Connection { hold: pipe.sides.ends[side].hold()?, side, pipe })
    }

    /// The pointer to the pipe, and which side this is.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn parts(&self) -> (&C, usize) {
        (&self.pipe, self.side)
    }

    /// Makes the process slot or stand-in `owner` a further holder of the side.
    #[cfg_attr(outlast_loom, expect(dead_code, reason = "no programs are started in the model"))]
    pub(crate) fn hold_for(&self, owner: u32) -> Result<(), Fault> {
        self.hold.check()?;
        self.pipe.sides.ends[self.side].hold_for(owner).map(drop)
    }

    /// Returns the pipe.
    pub fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// The other side.
    #[inline(always)]
    fn other(&self) -> usize {
        1 - self.side
    }
}

/// Handles that keep the pipe mapped and can move to any thread.
impl Shared<Pipe> {
    /// Takes a handle of the first side, as [`Pipe::first`] does.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn first(&self) -> Result<Connection<Self>, Fault> {
        Connection::of(self.clone(), 0)
    }

    /// Takes a handle of the second side, as [`Pipe::second`] does.
    ///
    /// # Errors
    /// As [`Pipe::first`].
    pub fn second(&self) -> Result<Connection<Self>, Fault> {
        Connection::of(self.clone(), 1)
    }
}

// ------------------------------------------------------------------ sending
impl<C: Deref<Target = Pipe>> Connection<C> {
    verbs! {
        /// Sends a message, blocking until there is room for it.
        ///
        /// A message that is longer than [`Pipe::capacity`] is received while it is sent. If the
        /// sender or the receiver is killed meanwhile, the whole message is lost.
        ///
        /// If both sides send more than the pipe holds and neither receives, both block for ever.
        ///
        /// # Errors
        /// If the other side is gone, or if this process cannot become a peer.
        #[inline]
        #[doc(alias = "write")]
        pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError<()>>
            = |deadline| self.send_until(message, deadline);
        /// It also fails while another thread sends. It fails with [`Fault::TooLong`] if the
        /// message is longer than [`Pipe::capacity`].
        try_send_bytes -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        /// If it times out, nothing of the message is received, even if a part was sent.
        send_bytes_timeout, send_bytes_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }

    #[inline(always)]
    pub(in crate::queue) fn send_until(
        &self,
        message: &[u8],
        deadline: Deadline,
    ) -> Result<(), Failure> {
        self.hold.check()?;
        let ring = self.pipe.ring(self.side);
        if deadline.is_now() && message.len() > ring.longest() {
            return Err(Fault::TooLong.into());
        }
        let mut head = ring.way.writer.take(deadline)?.ok_or(Failure::Unavailable)?;
        for part in ring.parts(message) {
            if let Err(why) = self.wait_for_room(ring, part, &mut head, deadline) {
                hooks::pause("pipe: no room for the next part, and the turn is held");
                drop(head);
                if !part.is_first() {
                    ring.way.not_empty.notify_all(); // keeps I4
                }
                return Err(why);
            }
            ring.write(part);
        }
        Ok(())
    }

    #[inline(always)]
    fn wait_for_room(
        &self,
        ring: BlockRing<'_>,
        part: Part<'_>,
        head: &mut u64,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let attempt = || match ring.has_room(part, head)? {
            _ if self.pipe.is_gone(self.other()) => Err(Failure::Disconnected),
            true => Ok(()),
            false => Err(Failure::Unavailable),
        };
        wait_for(deadline, attempt, || &ring.way.not_full, || false)
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
            = |deadline| self.recv_until(deadline);
        /// If a message that is longer than [`Pipe::capacity`] has begun to arrive, the call blocks
        /// until it is complete. It also fails while another thread receives.
        try_recv_bytes -> Result<Vec<u8>, TryRecvError>, else Err(TryRecvError::Empty);
        /// If a message is longer than [`Pipe::capacity`], only its beginning must arrive in time.
        recv_bytes_timeout, recv_bytes_deadline -> Result<Vec<u8>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Appends a message to `to`, blocking until one is available. Returns its length.
        ///
        /// # Errors
        /// As [`recv_bytes`](Self::recv_bytes).
        pub fn recv_bytes_into(&self, to: &mut Vec<u8>) -> Result<usize, RecvError>
            = |deadline| self.recv_to(to, deadline);
        /// If a message that is longer than [`Pipe::capacity`] has begun to arrive, the call blocks
        /// until it is complete. It also fails while another thread receives.
        try_recv_bytes_into -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
        /// If a message is longer than [`Pipe::capacity`], only its beginning must arrive in time.
        recv_bytes_into_timeout, recv_bytes_into_deadline -> Result<usize, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Blocks until a message has arrived or begun to arrive, or the other side is gone.
        /// Another thread can receive the message before this one does.
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
            Err(Failure::Unavailable) => None,
            Err(Failure::Failed(fault)) => Some(Err(fault)),
            _ => Some(Ok(())),
        }
    }

    #[inline(always)]
    pub(in crate::queue) fn recv_until(&self, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        let mut message = Vec::new();
        self.recv_to(&mut message, deadline)?;
        Ok(message)
    }

    #[inline(always)]
    fn recv_to(&self, to: &mut Vec<u8>, deadline: Deadline) -> Result<usize, Failure> {
        let before = to.len();
        self.begin(deadline, |ring, first, tail| {
            ring.read(first, to);
            ring.pass(first);
            let rest = if first.goes_on() { self.recv_rest(ring, to, tail) } else { Ok(true) };
            if !matches!(rest, Ok(true)) {
                to.truncate(before);
            }
            Ok(rest?.then(|| to.len() - before))
        })
    }

    /// Takes the reader's turn, and calls `take` with the first record of a message. If `take`
    /// gives nothing, because the message was cut short, continues with the next message.
    #[inline(always)]
    fn begin<R>(
        &self,
        deadline: Deadline,
        mut take: impl FnMut(BlockRing<'_>, Record, &mut u64) -> Result<Option<R>, Failure>,
    ) -> Result<R, Failure> {
        self.hold.check()?;
        let ring = self.pipe.ring(self.other());
        let mut tail = ring.way.reader.take(deadline)?.ok_or(Failure::Unavailable)?;
        loop {
            let find = || self.find(ring, &mut tail);
            let record = wait_for(deadline, find, || &ring.way.not_empty, || false)?;
            if record.began() {
                ring.pass(record); // keeps I3
            } else if let Some(taken) = take(ring, record, &mut tail)? {
                return Ok(taken);
            }
        }
    }

    /// Appends the records after the first one of a message. Returns `false` if the message was cut
    /// short.
    #[cold]
    fn recv_rest(
        &self,
        ring: BlockRing<'_>,
        to: &mut Vec<u8>,
        tail: &mut u64,
    ) -> Result<bool, Failure> {
        loop {
            let find = || self.find_rest(ring, tail);
            let beat = Deadline::after(hooks::second_look(HEARTBEAT));
            let record = match wait_for(beat, find, || &ring.way.not_empty, || false) {
                Err(Failure::Unavailable) => continue,
                found => found?,
            };
            let Some(record) = record.filter(|record| record.began()) else { return Ok(false) };
            ring.read(record, to);
            ring.pass(record);
            if !record.goes_on() {
                return Ok(true);
            }
        }
    }

    /// Returns the next record.
    #[inline(always)]
    fn find(&self, ring: BlockRing<'_>, tail: &mut u64) -> Result<Record, Failure> {
        if let Some(record) = ring.next(tail)? {
            return Ok(record);
        }
        if !self.pipe.is_gone(self.other()) {
            return Err(Failure::Unavailable);
        }
        // The last look sees what the other side sent before it left.
        ring.next(tail)?.ok_or(Failure::Disconnected)
    }

    /// Returns the next record of a message that has begun, or `Ok(None)` if it was cut short.
    fn find_rest(&self, ring: BlockRing<'_>, tail: &mut u64) -> Result<Option<Record>, Failure> {
        match self.find(ring, tail) {
            Err(Failure::Unavailable) => {}
            found => return found.map(Some),
        }
        // If the turn is free, this thread does not take it: a `try_send_bytes` would find it
        // taken. A turn that looks taken may be that of a dead writer.
        if ring.way.writer.is_taken() {
            match ring.way.writer.take(Deadline::NOW)? {
                None => return Err(Failure::Unavailable),
                Some(_) => hooks::pause("pipe: a reader has the writer's turn"),
            }
        }
        match self.find(ring, tail) {
            Err(Failure::Unavailable) => Ok(None), // by I4
            found => found.map(Some),
        }
    }
}

impl<C: Deref<Target = Pipe> + Clone> Clone for Connection<C> {
    /// Returns a further handle. If this process already has a million handles and no cell is free,
    /// every method of the new one fails with [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        let hold = self.pipe.sides.ends[self.side].again(&self.hold);
        Connection { hold, side: self.side, pipe: self.pipe.clone() }
    }
}

impl<C: Deref<Target = Pipe>> Drop for Connection<C> {
    fn drop(&mut self) {
        if self.pipe.sides.ends[self.side].release(&self.hold) {
            self.pipe.tell_gone(self.side);
        }
    }
}

impl<C: Deref<Target = Pipe>> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("side", &self.side).field("pipe", &self.pipe()).finish()
    }
}
