//! What a channel asks of its queue, and the answer of each kind.
#![expect(private_interfaces, reason = "the traits cannot be named outside of the crate")]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{self, ByteQueue, Store, View};
use crate::queue::error::RecvFailure;
use crate::queue::levels::Invalid;
use crate::queue::{
    Delivery, FixedPriorityQueue, FixedQueue, LIGHT, NO_SENDERS, PriorityQueue, Queue,
};
use crate::shareable::{Dead, Plain, Shareable};
use crate::sync::atomic::AtomicU32;
use crate::wait::signal::Signal;
use core::fmt;

/// A kind of queue that a [`Channel`](super::Channel) can be made of: [`Queue`], [`PriorityQueue`],
/// [`ByteQueue`] or, with the feature `serde`, `ValueQueue`.
///
/// Nothing outside of this crate can implement it. `C::Received` is what a receiver gets: the
/// message, with its level if the queue has levels.
pub trait Kind: Ended {}

/// A queue that a channel can tell that one of its ends is gone.
pub trait Ended: Shareable + fmt::Debug {
    /// What a receiver gets.
    type Received;

    fn capacity(&self) -> usize;
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool;
    fn close(&self);
    fn is_closed(&self) -> bool;

    /// Receives the next message in the usual case; inlined into its callers. It may give nothing
    /// where [`take`](Self::take) gives a message or the end.
    fn take_usual(&self) -> Result<Option<Self::Received>, RecvFailure>;
    /// Receives the next message, if there is one. It fails with `Closed` if there is none and the
    /// senders' bit is set.
    fn take(&self, invalid: Invalid) -> Result<Option<Self::Received>, RecvFailure>;
    /// Like `take`, but waits.
    fn take_until(&self, deadline: Deadline) -> Result<Option<Self::Received>, RecvFailure>;

    /// The word that has the bits of the ends.
    fn ended(&self) -> &AtomicU32;
    /// Wakes all threads that wait for the end that `bit` stands for. To be called after a change.
    fn tell(&self, bit: u32);
    /// The signal that receivers sleep on until a message comes.
    fn arrived(&self) -> &Signal<LIGHT>;
    /// Whether a look for a message is worth while.
    fn may_have_message(&self) -> bool;
    /// Whether no message is there, and none that may come back is in the hands of others, or this
    /// process holds such a message itself. To be asked when the senders are gone.
    fn is_quiet(&self) -> bool;
    /// Repairs what `dead` had claimed. Then everybody is to be woken.
    fn mend(&self, dead: &Dead);
    fn wake_everybody(&self);
}

/// A kind of queue whose messages are acknowledged.
pub trait Deliver: Kind {
    /// A message that is not acknowledged yet.
    type Delivery<'a>
    where
        Self: 'a;

    fn deliver_now(&self) -> Result<Option<Self::Delivery<'_>>, RecvFailure>;
    fn deliver_until(&self, deadline: Deadline) -> Result<Option<Self::Delivery<'_>>, RecvFailure>;
    fn join_until(&self, deadline: Deadline) -> Result<bool, Fault>;
}

/// A [`ByteQueue`], or a queue that has one inside.
pub trait AsBytes: Kind {
    fn view(&self) -> View<'_>;
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

/// A [`Queue`] whose capacity is chosen at run time, or one of the fixed form.
pub trait AsQueue<T: Plain>: Shareable + fmt::Debug {
    fn as_queue(&self) -> &Queue<T>;
}

impl<T: Plain> AsQueue<T> for Queue<T> {
    #[inline(always)]
    fn as_queue(&self) -> &Queue<T> {
        self
    }
}

impl<T: Plain, const N: usize, const ENTRIES: usize> AsQueue<T> for FixedQueue<T, N, ENTRIES> {
    #[inline(always)]
    fn as_queue(&self) -> &Queue<T> {
        self
    }
}

/// A [`PriorityQueue`] whose capacity is chosen at run time, or one of the fixed form.
pub trait AsPriorityQueue<T: Plain, const LEVELS: usize>: Shareable + fmt::Debug {
    fn as_queue(&self) -> &PriorityQueue<T, LEVELS>;
}

impl<T: Plain, const LEVELS: usize> AsPriorityQueue<T, LEVELS> for PriorityQueue<T, LEVELS> {
    #[inline(always)]
    fn as_queue(&self) -> &PriorityQueue<T, LEVELS> {
        self
    }
}

impl<T: Plain, const LEVELS: usize, const N: usize, const ENTRIES: usize> AsPriorityQueue<T, LEVELS>
    for FixedPriorityQueue<T, LEVELS, N, ENTRIES>
{
    #[inline(always)]
    fn as_queue(&self) -> &PriorityQueue<T, LEVELS> {
        self
    }
}

impl<S: Store + ?Sized> Kind for ByteQueue<S> where ByteQueue<S>: Shareable {}

/// A queue of levels as a kind: `$received` makes what a receiver gets of a level and a message.
macro_rules! kind_of_levels {
    ($queue:ident [$($LEVELS:ident)?] $levels:expr, $as_queue:path, $Received:ty, $received:expr) => {
        impl<T: Plain $(, const $LEVELS: usize)?, S: ?Sized> Kind for $queue<T $(, $LEVELS)?, S>
        where
            Self: $as_queue
        {}

        impl<T: Plain $(, const $LEVELS: usize)?, S: ?Sized> Ended for $queue<T $(, $LEVELS)?, S>
        where
            Self: $as_queue
        {
            type Received = $Received;

            fn capacity(&self) -> usize {
                self.as_queue().capacity()
            }
            fn len(&self) -> usize {
                self.as_queue().len()
            }
            fn is_empty(&self) -> bool {
                self.as_queue().is_empty()
            }
            fn close(&self) {
                self.as_queue().close();
            }
            fn is_closed(&self) -> bool {
                self.as_queue().is_closed()
            }

            #[inline(always)]
            fn take_usual(&self) -> Result<Option<Self::Received>, RecvFailure> {
                Ok(self.as_queue().core.take_usual().map($received))
            }
            #[inline(always)]
            fn take(&self, invalid: Invalid) -> Result<Option<Self::Received>, RecvFailure> {
                self.as_queue().core.take(invalid).map(|taken| taken.map($received))
            }
            fn take_until(&self, deadline: Deadline) -> Result<Option<Self::Received>, RecvFailure> {
                let taken = self.as_queue().core.take_until(deadline, Invalid::Consumed);
                taken.map(|taken| taken.map($received))
            }

            fn ended(&self) -> &AtomicU32 {
                &self.as_queue().core.control.ended
            }
            fn tell(&self, bit: u32) {
                let core = &self.as_queue().core;
                if bit == NO_SENDERS {
                    core.receivers().into_iter().for_each(Signal::notify_all);
                } else {
                    core.senders().for_each(Signal::notify_all);
                }
            }
            fn arrived(&self) -> &Signal<LIGHT> {
                &self.as_queue().core.control.not_empty
            }
            fn may_have_message(&self) -> bool {
                self.as_queue().core.may_have_message()
            }
            fn is_quiet(&self) -> bool {
                self.as_queue().core.is_quiet()
            }
            fn mend(&self, dead: &Dead) {
                self.as_queue().core.mend(dead);
            }
            fn wake_everybody(&self) {
                self.as_queue().core.wake_everybody();
            }
        }

        impl<T: Plain $(, const $LEVELS: usize)?, S: ?Sized> Deliver for $queue<T $(, $LEVELS)?, S>
        where
            Self: $as_queue
        {
            type Delivery<'a>
                = Delivery<'a, T, $levels>
            where
                S: 'a;

            fn deliver_now(&self) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
                self.as_queue().core.deliver()
            }
            fn deliver_until(
                &self,
                deadline: Deadline,
            ) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
                self.as_queue().core.deliver_until(deadline)
            }
            fn join_until(&self, deadline: Deadline) -> Result<bool, Fault> {
                self.as_queue().core.join_until(deadline)
            }
        }
    };
}
kind_of_levels!(Queue [] 1, AsQueue<T>, T, |(_, message)| message);
kind_of_levels!(PriorityQueue [LEVELS] LEVELS, AsPriorityQueue<T, LEVELS>, (usize, T), |both| both);

impl<S: Store + ?Sized> Ended for ByteQueue<S>
where
    ByteQueue<S>: Shareable,
{
    type Received = Vec<u8>;

    fn capacity(&self) -> usize {
        self.capacity()
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
    fn close(&self) {
        self.close();
    }
    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    #[inline(always)]
    fn take_usual(&self) -> Result<Option<Vec<u8>>, RecvFailure> {
        self.take(Invalid::Consumed)
    }
    /// (Any bytes are a message, so that none is invalid.)
    #[inline(always)]
    fn take(&self, _invalid: Invalid) -> Result<Option<Vec<u8>>, RecvFailure> {
        self.view().claim_message().map(|message| message.map(|message| message.to_vec()))
    }
    fn take_until(&self, deadline: Deadline) -> Result<Option<Vec<u8>>, RecvFailure> {
        self.view().recv_until(deadline).map(|message| message.map(|message| message.to_vec()))
    }

    fn ended(&self) -> &AtomicU32 {
        &self.rare.ended
    }
    fn tell(&self, bit: u32) {
        if bit == NO_SENDERS {
            self.rare.receivers().into_iter().for_each(Signal::notify_all);
        } else {
            self.rare.not_full.notify_all();
        }
    }
    fn arrived(&self) -> &Signal<LIGHT> {
        &self.rare.not_empty
    }
    fn may_have_message(&self) -> bool {
        self.view().may_have_message()
    }
    fn is_quiet(&self) -> bool {
        self.view().is_quiet()
    }
    fn mend(&self, dead: &Dead) {
        self.view().recover(dead);
    }
    fn wake_everybody(&self) {
        self.rare.wake_everybody();
    }
}

impl<S: Store + ?Sized> Deliver for ByteQueue<S>
where
    ByteQueue<S>: Shareable,
{
    type Delivery<'a>
        = bytes::Delivery<'a>
    where
        S: 'a;

    fn deliver_now(&self) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
        self.view().deliver_now()
    }
    fn deliver_until(&self, deadline: Deadline) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
        self.view().deliver_until(deadline)
    }
    fn join_until(&self, deadline: Deadline) -> Result<bool, Fault> {
        self.view().join_until(deadline)
    }
}
