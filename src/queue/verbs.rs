//! The verbs that all kinds of queue have, written once.
#![expect(private_interfaces, reason = "the trait cannot be named outside of the crate")]
use super::{Failure, LIGHT, NO_SENDERS};
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::shareable::Dead;
use crate::sync::atomic::AtomicU32;
use crate::wait::signal::Signal;

/// The state of a queue: the part that all kinds of queue have, and what a channel asks of it.
pub trait QueueState<'a>: Copy {
    fn capacity(self) -> usize;
    fn in_flight_capacity(self) -> usize;
    fn len(self) -> usize;
    fn is_empty(self) -> bool;
    fn close(self);
    fn is_closed(self) -> bool;
    /// Blocks until every message is received and acknowledged. Returns `false` if it times out.
    fn join_until(self, deadline: Deadline) -> Result<bool, Fault>;

    /// The word with the bits `CLOSED`, `NO_RECEIVERS` and `NO_SENDERS`.
    fn ended(self) -> &'a AtomicU32;
    /// The two signals on which receivers sleep: the first until a message comes, the second until
    /// there is room for another delivery.
    fn receivers(self) -> [&'a Signal<LIGHT>; 2];
    /// Wakes the threads that sleep until they can send.
    fn wake_senders(self);
    /// Whether a receiver should look for a message: one is there, or may be.
    fn may_have_message(self) -> bool;
    /// Whether no message is there, and no other process holds one that would come back if that
    /// process died now. To be called when nothing more can be sent. For a process that holds
    /// deliveries itself, those of others do not count: two such processes would wait for each
    /// other.
    fn is_quiet(self) -> bool;
    /// Repairs what `dead` had claimed. The caller must then call `wake_all_waiters`.
    fn repair(self, dead: &Dead);
    /// Wakes every thread that sleeps on a signal of the queue.
    fn wake_all_waiters(self);

    /// Wakes all threads that wait for the end that `bit` stands for: receivers for `NO_SENDERS`,
    /// senders for `NO_RECEIVERS`. To be called after the bit was changed.
    fn wake_other_end(self, bit: u32) {
        if bit == NO_SENDERS {
            self.receivers().into_iter().for_each(Signal::notify_all);
        } else {
            self.wake_senders();
        }
    }
}

/// Repeats `attempt` until it does not fail with `Unavailable`, or the deadline has passed. The
/// thread sleeps on `signal`. `more` returns whether another attempt would succeed as well: then
/// one more thread is woken.
#[inline(always)]
pub(super) fn wait_for<'a, R>(
    deadline: Deadline,
    mut attempt: impl FnMut() -> Result<R, Failure>,
    signal: impl FnOnce() -> &'a Signal<LIGHT>,
    more: impl Fn() -> bool,
) -> Result<R, Failure> {
    match attempt() {
        Err(Failure::Unavailable) if !deadline.is_now() => {
            wait_slow(deadline, attempt, signal, more)
        }
        done => done,
    }
}

#[cold]
#[inline(never)]
fn wait_slow<'a, R>(
    deadline: Deadline,
    mut attempt: impl FnMut() -> Result<R, Failure>,
    signal: impl FnOnce() -> &'a Signal<LIGHT>,
    more: impl Fn() -> bool,
) -> Result<R, Failure> {
    let attempt = || match attempt() {
        Err(Failure::Unavailable) => None,
        done => Some(done),
    };
    let waited = signal().wait_for_many(deadline, attempt, |_| more());
    waited.unwrap_or(Err(Failure::Unavailable))
}

/// Writes the verbs that receive, for a type with `recv_until(deadline)`, `recv_valid()` and
/// `deliver_until(deadline)`. The doc comments at each use have what is particular to the type.
/// `invalid` describes messages whose bytes are not a value of the type, if there can be any.
macro_rules! receiving {
    (
        impl [$($generics:tt)*] $Receiver:ty $(, where [$($bounds:tt)+])?;
        $(invalid: $invalid:literal;)?
        $(#[$recv:meta])*
        recv -> $Received:ty;
        $(#[$ack:meta])*
        recv_ack -> $Delivery:ty;
        $($(#[$over:meta])* $iter:ident;)?
    ) => {
        impl<$($generics)*> $Receiver $(where $($bounds)+)? {
            $crate::wait::verbs::verbs! {
                /// Receives a message, blocking until one is available.
                ///
                /// If this process is killed after `recv` has returned, the message is lost. If
                /// that matters, use [`recv_ack`](Self::recv_ack).
                ///
                $(#[$recv])*
                #[doc(alias = "pop")]
                #[doc(alias = "get")]
                #[inline]
                pub fn recv(&self) -> Result<$Received, RecvError>
                    = |deadline| self.recv_until(deadline);
                #[doc(alias = "try_pop")]
                #[doc(alias = "get_nowait")]
                #[inline]
                try_recv -> Result<$Received, TryRecvError>, else Err(TryRecvError::Empty);
                recv_timeout, recv_deadline -> Result<$Received, RecvTimeoutError>,
                    else Err(RecvTimeoutError::TimedOut);

                /// Receives a message that must be acknowledged, blocking until one is available.
                ///
                /// If this process is killed, or drops the delivery, before it has acknowledged the
                /// message, the message is delivered again.
                ///
                $(#[$ack])*
                pub fn recv_ack(&self) -> Result<$Delivery, RecvError>
                    = |deadline| self.deliver_until(deadline);
                /// If a message is available, but there is no room for another delivery, returns
                /// [`TryRecvError::TooManyInFlight`].
                try_recv_ack -> Result<$Delivery, TryRecvError>, else Err(TryRecvError::Empty);
                /// If it times out while a message is available but there is no room for another
                /// delivery, returns [`RecvTimeoutError::TooManyInFlight`].
                recv_ack_timeout, recv_ack_deadline -> Result<$Delivery, RecvTimeoutError>,
                    else Err(RecvTimeoutError::TimedOut);

                /// Appends up to `max` messages to `buffer` and returns their number. Blocks only
                /// if none is available.
                ///
                $(#[doc = concat!("The batch ends before ", $invalid, ". The next reception reports it.\n")])?
                ///
                /// # Errors
                /// As [`recv`](Self::recv), if no message was received.
                pub fn recv_batch(&self, buffer: &mut Vec<$Received>, max: usize)
                    -> Result<usize, RecvError> = |deadline| self.batch_until(buffer, max, deadline);
                try_recv_batch -> Result<usize, TryRecvError>, else Err(TryRecvError::Empty);
                recv_batch_timeout, recv_batch_deadline -> Result<usize, RecvTimeoutError>,
                    else Err(RecvTimeoutError::TimedOut);
            }

            fn batch_until(
                &self,
                buffer: &mut Vec<$Received>,
                max: usize,
                deadline: Deadline,
            ) -> Result<usize, Failure> {
                if max == 0 {
                    return Ok(0);
                }
                let before = buffer.len();
                buffer.push(self.recv_until(deadline)?);
                buffer.extend(self.try_iter().take(max - 1));
                Ok(buffer.len() - before)
            }

            $(
                /// Iterates over messages, blocking for each one, until the queue is closed and
                /// empty.
                ///
                /// Any other error of [`recv`](Self::recv) ends the iteration as well. A message
                /// that `recv` would report as an error is consumed: a later iteration continues
                /// after it.
                ///
                $(#[$over])*
                pub fn $iter(&self) -> impl Iterator<Item = $Received> + '_ {
                    core::iter::from_fn(|| self.recv_until(Deadline::NEVER).ok())
                }
            )?

            /// Iterates over the available messages, without blocking.
            ///
            $(#[doc = concat!("The iteration ends before ", $invalid, ". The next reception reports it.\n")])?
            pub fn try_iter(&self) -> impl Iterator<Item = $Received> + '_ {
                core::iter::from_fn(|| self.recv_valid().ok())
            }

            /// Receives all available messages, without blocking.
            ///
            /// Stops where [`try_iter`](Self::try_iter) stops.
            #[must_use]
            pub fn drain(&self) -> Vec<$Received> {
                self.try_iter().collect()
            }
        }
    };
}
pub(in crate::queue) use receiving;

/// Writes the methods about the state of a queue, for a type whose [`QueueState`] is `$state`.
macro_rules! state {
    (
        impl [$($generics:tt)*] $Queue:ty $(, where [$($bounds:tt)+])?;
        |$queue:ident| $state:expr;
        $(#[$capacity:meta])*
        capacity;
        $(#[$in_flight:meta])*
        in_flight_capacity;
    ) => {
        impl<$($generics)*> $Queue $(where $($bounds)+)? {
            $(#[$capacity])*
            #[must_use]
            pub fn capacity(&self) -> usize {
                let $queue = self;
                $state.capacity()
            }

            $(#[$in_flight])*
            #[must_use]
            pub fn in_flight_capacity(&self) -> usize {
                let $queue = self;
                $state.in_flight_capacity()
            }

            /// Returns the number of messages that can be received. Messages that were delivered
            /// and are not acknowledged do not count.
            ///
            /// The number may change at any moment. The time of the call grows with it.
            #[must_use]
            #[doc(alias = "qsize")]
            pub fn len(&self) -> usize {
                let $queue = self;
                $state.len()
            }

            /// Returns `true` if no message can be received. The result may change at any moment.
            #[must_use]
            #[doc(alias = "empty")]
            pub fn is_empty(&self) -> bool {
                let $queue = self;
                $state.is_empty()
            }

            /// Closes the queue. Nothing more can be sent. The messages in it can still be
            /// received.
            ///
            /// Wakes every waiting thread. A closed queue cannot be opened again.
            pub fn close(&self) {
                let $queue = self;
                $state.close();
            }

            /// Returns `true` if the queue is closed.
            #[must_use]
            #[inline(always)]
            pub fn is_closed(&self) -> bool {
                let $queue = self;
                $state.is_closed()
            }

            $crate::wait::verbs::verbs! {
                /// Blocks until every message that was sent has been received and, if it was
                /// delivered by `recv_ack`, acknowledged.
                ///
                /// A message that a process had not acknowledged when it died still counts, until
                /// another process acknowledges it.
                ///
                /// # Errors
                /// Fails if this process cannot become a peer.
                pub fn join(&self) -> Result<(), Fault> = $crate::wait::verbs::Call(|deadline| {
                    let $queue = self;
                    let joined = $state.join_until(deadline);
                    joined.map(|is_done| is_done.then_some(())).transpose()
                });
                try_join -> Result<bool, Fault>, else Ok(false);
                join_timeout, join_deadline -> Result<bool, Fault>, else Ok(false);
            }
        }
    };
}
pub(in crate::queue) use state;
