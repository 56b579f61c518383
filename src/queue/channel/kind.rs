//! The trait through which a channel uses its queue, and its implementation for each kind of queue.
#![expect(private_interfaces, reason = "the traits cannot be named outside of the crate")]
use crate::deadline::Deadline;
use crate::queue::bytes::{self, ByteQueue, Store, View};
use crate::queue::error::Failure;
use crate::queue::levels::{Invalid, Levels};
use crate::queue::verbs::QueueState;
use crate::queue::{Delivery, FixedPriorityQueue, FixedQueue, PriorityQueue, Queue};
use crate::shareable::{Plain, Shareable};
use core::fmt;

/// A kind of queue from which a [`Channel`](super::Channel) can be made: [`Queue`],
/// [`PriorityQueue`], [`ByteQueue`] or, with the feature `serde`, `ValueQueue`.
///
/// Other crates cannot implement it.
pub trait Kind: Shareable + fmt::Debug {
    /// The result of a reception: the message, with its level if the queue has levels.
    type Received;
    /// A message that is not acknowledged yet.
    type Delivery<'a>
    where
        Self: 'a;

    #[doc(hidden)]
    fn state(&self) -> impl QueueState<'_>;
    /// Receives the next message if that takes only the usual few instructions, which are inlined.
    /// `None` in every other case, and for kinds of queue that have no such case.
    #[doc(hidden)]
    #[inline(always)]
    fn take_usual(&self) -> Option<Self::Received> {
        None
    }
    /// Receives the next message. It fails with `Closed` if there is none and the senders' bit is
    /// set.
    #[doc(hidden)]
    fn take_until(&self, deadline: Deadline) -> Result<Self::Received, Failure>;
    /// Like `take_until`, but returns immediately, and leaves an invalid message where it is.
    #[doc(hidden)]
    fn take_valid(&self) -> Result<Self::Received, Failure>;
    #[doc(hidden)]
    fn deliver_until(&self, deadline: Deadline) -> Result<Self::Delivery<'_>, Failure>;
}

/// A [`ByteQueue`], or a queue that has one inside.
pub trait AsBytes: Kind {
    fn view(&self) -> View<'_>;
}

/// A [`Queue`] or [`PriorityQueue`], whether its capacity is chosen at run time or in its type.
pub trait AsLevels<T: Plain, const LEVELS: usize>: Shareable + fmt::Debug {
    fn levels(&self) -> &Levels<T, LEVELS>;
}

impl<S: Store + ?Sized> AsBytes for ByteQueue<S>
where
    ByteQueue<S>: Shareable,
{
    #[inline(always)]
    fn view(&self) -> View<'_> {
        self.view()
    }
}

impl<S: Store + ?Sized> Kind for ByteQueue<S>
where
    ByteQueue<S>: Shareable,
{
    type Received = Vec<u8>;
    type Delivery<'a>
        = bytes::Delivery<'a>
    where
        S: 'a;

    #[inline(always)]
    fn state(&self) -> impl QueueState<'_> {
        self.view()
    }
    #[inline(always)]
    fn take_until(&self, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        self.recv_until(deadline)
    }
    /// Any bytes are a message, so no message is invalid.
    fn take_valid(&self) -> Result<Vec<u8>, Failure> {
        self.recv_until(Deadline::NOW)
    }
    fn deliver_until(&self, deadline: Deadline) -> Result<bytes::Delivery<'_>, Failure> {
        self.view().deliver_until(deadline)
    }
}

/// Implements [`Kind`] for a queue of levels. `$received` turns a level and a message into the
/// result of a reception.
macro_rules! kind_of_levels {
    ($queue:ident, $fixed:ident [$($LEVELS:ident)?] $levels:expr, $Received:ty, $received:expr) => {
        impl<T: Plain $(, const $LEVELS: usize)?> AsLevels<T, $levels> for $queue<T $(, $LEVELS)?> {
            #[inline(always)]
            fn levels(&self) -> &Levels<T, $levels> {
                &self.core
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?, const N: usize, const ENTRIES: usize>
            AsLevels<T, $levels> for $fixed<T $(, $LEVELS)?, N, ENTRIES>
        {
            #[inline(always)]
            fn levels(&self) -> &Levels<T, $levels> {
                &(**self).core
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?, S: ?Sized> Kind for $queue<T $(, $LEVELS)?, S>
        where
            Self: AsLevels<T, $levels>
        {
            type Received = $Received;
            type Delivery<'a>
                = Delivery<'a, T, $levels>
            where
                S: 'a;

            #[inline(always)]
            fn state(&self) -> impl QueueState<'_> {
                self.levels()
            }
            #[inline(always)]
            fn take_usual(&self) -> Option<Self::Received> {
                self.levels().take_usual().map($received)
            }
            #[inline(always)]
            fn take_until(&self, deadline: Deadline) -> Result<Self::Received, Failure> {
                self.levels().take_slow(deadline, Invalid::Consumed).map($received)
            }
            #[inline(always)]
            fn take_valid(&self) -> Result<Self::Received, Failure> {
                self.levels().take_now(Invalid::Left).map($received)
            }
            fn deliver_until(&self, deadline: Deadline) -> Result<Self::Delivery<'_>, Failure> {
                self.levels().deliver_until(deadline)
            }
        }
    };
}
kind_of_levels!(Queue, FixedQueue [] 1, T, |(_, message)| message);
kind_of_levels!(PriorityQueue, FixedPriorityQueue [LEVELS] LEVELS, (usize, T), |both| both);
