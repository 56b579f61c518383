//! The senders' end.
use super::Channel;
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::ends::{Hold, Sided as _};
use crate::queue::{NO_RECEIVERS, NO_SENDERS};
use crate::queue::{SendError, SendTimeoutError, TrySendError};
use crate::queue::{SendFailure, after_sent};
use crate::shareable::Plain;
use core::fmt;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A handle of the senders' end of a [`Channel`].
///
/// Clones are further handles. Made by [`Channel::sender`] it borrows the channel; made by
/// [`Shared::sender`](crate::Shared::sender) it keeps it, and can move into a thread. In a process
/// made by `fork` a copied one does nothing: the child makes its own.
#[must_use = "the end is given up at once if this is not kept"]
pub struct Sender<T: Plain, C: Deref<Target = Channel<T>>> {
    hold: Hold,
    channel: C,
}

impl<T: Plain, C: Deref<Target = Channel<T>>> Sender<T, C> {
    /// A handle that keeps whatever leads to the channel.
    ///
    /// # Errors
    /// As [`Channel::sender`].
    pub fn of(channel: C) -> Result<Self, Fault> {
        Ok(Sender { hold: channel.senders.hold()?, channel })
    }

    /// The channel.
    pub fn channel(&self) -> &Channel<T> {
        &self.channel
    }

    /// Sends a message, waiting for a free slot as long as it takes.
    ///
    /// # Errors
    /// Gives the message back if the channel is closed, or the last receiver gone, or if this
    /// process cannot become a peer.
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.send_until(message, Deadline::NEVER).map_err(SendFailure::for_ever)
    }

    /// Sends a message if a slot is free. Never blocks.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if the channel is full.
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let pushed = self.hold.check().map_err(SendFailure::Failed);
        match pushed.and_then(|()| self.channel.queue.push(&message)) {
            Err(SendFailure::Closed) => self.send_slow(message, Deadline::after(Duration::ZERO)),
            pushed => pushed.map_err(|unsent| (message, unsent)),
        }
        .map_err(SendFailure::at_once)
    }

    /// Sends a message, waiting for a free slot at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if that takes too long.
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_until(message, Deadline::after(timeout)).map_err(SendFailure::in_time)
    }

    /// Sends a message, waiting for a free slot until `deadline` at most. A slot that is free is
    /// used even if that has passed.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(&self, message: T, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_until(message, Deadline::at(deadline)).map_err(SendFailure::in_time)
    }

    /// Sends messages one after the other, waiting for free slots as long as it takes.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of messages that were sent before.
    pub fn send_batch(&self, messages: &[T]) -> Result<(), SendError<usize>> {
        for (sent, message) in messages.iter().enumerate() {
            self.send(*message).map_err(|error| after_sent(error, sent))?;
        }
        Ok(())
    }

    /// Whether both are handles of the same channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        core::ptr::eq(self.channel(), other.channel())
    }

    #[inline(always)]
    fn send_until(&self, message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        if let Err(fault) = self.hold.check() {
            return Err((message, SendFailure::Failed(fault)));
        }
        match self.channel.queue.push(&message) {
            Ok(()) => Ok(()),
            Err(_) => self.send_slow(message, deadline),
        }
    }

    /// By value, as the queue's.
    #[cold]
    #[inline(never)]
    fn send_slow(&self, mut message: T, deadline: Deadline) -> Result<(), (T, SendFailure)> {
        loop {
            match self.channel.queue.send_slow(message, deadline) {
                Err((back, SendFailure::Closed)) if !self.channel.is_closed() => {
                    if self.channel.is_cut_off(NO_RECEIVERS) {
                        return Err((back, SendFailure::Disconnected));
                    }
                    message = back;
                }
                done => return done,
            }
        }
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>> + Clone> Clone for Sender<T, C> {
    /// A further handle. If there is no place for it, with a million of this process's already, all
    /// it gives is [`Fault::TooManyPeers`].
    fn clone(&self) -> Self {
        Sender { hold: self.channel.senders.again(&self.hold), channel: self.channel.clone() }
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>>> Drop for Sender<T, C> {
    fn drop(&mut self) {
        self.channel.give_back(&self.hold, NO_SENDERS);
    }
}

impl<T: Plain, C: Deref<Target = Channel<T>>> fmt::Debug for Sender<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.channel()).finish()
    }
}
