//! A queue that knows who holds its two ends: receivers learn that nobody is left to send, and the
//! reverse.
//!
//! ```
//! use outlast::queue::channel::Channel;
//! use outlast::{RecvError, Shared};
//!
//! let here = Shared::<Channel<u64>>::with_capacity(16)?;
//! let there = Shared::<Channel<u64>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! let (sender, receiver) = (here.sender()?, there.receiver()?);
//! let worker = std::thread::spawn(move || receiver.iter().sum::<u64>());
//! (1..=4).try_for_each(|n| sender.send(n))?;
//! drop(sender); // or the death of its process
//! assert_eq!(worker.join().ok(), Some(10));
//! assert_eq!(here.receiver()?.recv(), Err(RecvError::Disconnected));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # State
//! Two sets of holders (`Ends`), and a [`Queue`] with two bits more in the word that says whether
//! it is closed:
//!
//! | bit | set | cleared |
//! |---|---|---|
//! | `NO_SENDERS` | when the last handle of the senders' end is given back, or taken from the dead | by a receiver that finds that there are senders again |
//! | `NO_RECEIVERS` | the same for the receivers' | by a sender that finds that there are receivers again |
//!
//! # Invariants
//! - I1. An end is gone for good => its bit is set, or a living process is about to set it.
//!   (Recovery sets it, as often as it runs.)
//! - I2. A bit may be set though the end is not gone. So nobody is told that he is alone before he
//!   has looked at the cells himself; who then clears the bit looks once more, and sets it again if
//!   the end has gone meanwhile: keeps I1.
//! - I3. The bit of an end is set before those on the other one are woken, so that a wait need not
//!   look at the cells.
//! - I4. Receivers are told that nobody can send only when no message is in the ring, or in the
//!   hands of another receiver that has not committed its reception, or not acknowledged it: if
//!   that one dies now, the message comes to another. Who ends such a claim wakes them. Only those
//!   who wait for nothing of the kind are waited for: a process that holds deliveries itself does
//!   not wait for those of others.
//!
//! # Ordering
//! As in the queue. Whoever sets a bit fences before it is asked whether anybody sleeps; whoever
//! sleeps has fenced between arming and its last look at the bit. What the senders sent before they
//! left is seen by who saw them gone.
//!
//! # Death
//! A handle is its process's: the death of the process gives it back. First what it had claimed in
//! the queue is mended, then its handles are taken, then the bits are set, then all are woken:
//! nobody sees an end gone before he can see what comes back.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

pub mod bytes;
pub mod priority;
mod receiver;
mod sender;

pub use receiver::{IntoIter, Iter, Receiver};
pub use sender::Sender;

use crate::error::Fault;
use crate::queue::ends::{Ends, Sided};
use crate::queue::{FixedQueue, NO_SENDERS, Queue, Slot};
use crate::shareable::{
    Dead, Field, Layout, Plain, Shareable, WithCapacity, at_slice, begin, mix_u64,
};
use crate::sync::atomic::AtomicU32;
use crate::wait::signal::Signal;
use core::fmt;
use core::mem::offset_of;
use core::ops::Deref;
use std::time::{Duration, Instant};

/// A bounded queue with two ends to hold: [`Sender`]s and [`Receiver`]s.
///
/// As [`Queue`], and when the last sender of all processes is gone, by drop or death, receivers get
/// what is left, and then [`Disconnected`](super::RecvError::Disconnected); senders get it, with
/// their message, when the last receiver is gone. An end that nobody has had yet is waited for, and
/// one that was gone can be taken again. 64 processes can hold each end.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for 1 to 16,777,215
/// messages. To embed one in a struct, see [`FixedChannel`].
#[repr(C)]
#[doc(alias = "mpsc")]
#[doc(alias = "sync_channel")]
pub struct Channel<T: Plain, S: ?Sized = [Slot<T>]> {
    senders: Ends,
    receivers: Ends,
    queue: Queue<T, S>,
}

/// A channel of `N` slots, to be embedded in a struct declared with [`shared!`](crate::shared).
///
/// Dereferences to [`Channel`], which has the verbs.
pub type FixedChannel<T, const N: usize> = Channel<T, [Slot<T>; N]>;

impl<T: Plain, const N: usize> FixedChannel<T, N> {
    /// An empty channel whose ends nobody has had, to be moved into shared memory.
    ///
    /// A capacity of 0, or of more than 16,777,215, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        Channel { senders: Ends::new(), receivers: Ends::new(), queue: FixedQueue::new() }
    }

    const FIELDS: [Field; 1] = [Field {
        name: "queue",
        offset: offset_of!(Self, queue),
        count: 1,
        layout: <FixedQueue<T, N> as Shareable>::layout,
    }];
}

impl<T: Plain, const N: usize> Deref for FixedChannel<T, N> {
    type Target = Channel<T>;
    #[inline(always)]
    fn deref(&self) -> &Channel<T> {
        self
    }
}

impl<T: Plain> Channel<T> {
    /// A handle of the senders' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn sender(&self) -> Result<Sender<T, &Self>, Fault> {
        Sender::of(self)
    }

    /// A handle of the receivers' end. All of a process's handles count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn receiver(&self) -> Result<Receiver<T, &Self>, Fault> {
        Receiver::of(self)
    }

    /// How many processes have the senders' end. May change at any moment.
    #[must_use]
    pub fn senders(&self) -> usize {
        self.senders.count()
    }

    /// How many processes have the receivers' end. May change at any moment.
    #[must_use]
    pub fn receivers(&self) -> usize {
        self.receivers.count()
    }

    /// How many messages can be in the channel at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// As [`Queue::len`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether no slot is free. May change at any moment.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Closes the channel for good: nothing more can be sent; what is there can be received.
    ///
    /// Everybody who waits is woken. What comes of a closed channel is `Closed`, whoever is left.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether the channel is closed, as against left by everybody at one end.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// As [`Queue::join`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.queue.join()
    }

    /// As [`Queue::join_timeout`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.queue.join_timeout(timeout)
    }

    /// As [`Queue::join_deadline`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.queue.join_deadline(deadline)
    }

    fn mend(&self, dead: &Dead) {
        self.queue.mend(dead);
        self.bereave(dead); // keeps I1
        self.queue.wake_everybody();
    }

    const BASE: u64 = mix_u64(begin::<FixedChannel<T, 1>>(b"Channel 1"), T::FINGERPRINT);
}

impl<T: Plain> Sided for Channel<T> {
    fn side(&self, bit: u32) -> &Ends {
        if bit == NO_SENDERS { &self.senders } else { &self.receivers }
    }
    fn ended(&self) -> impl Iterator<Item = &AtomicU32> + Clone {
        core::iter::once(&self.queue.shared.ended)
    }
    fn tell(&self, bit: u32) {
        if bit == NO_SENDERS {
            self.queue.receivers().into_iter().for_each(Signal::notify_all);
        } else {
            self.queue.shared.not_full.notify_all();
        }
    }
}

// SAFETY: `repr(C)`; the parts are shareable; no `Drop`.
unsafe impl<T: Plain, const N: usize> Shareable for FixedChannel<T, N> {
    const FINGERPRINT: u64 = mix_u64(Channel::<T>::BASE, N as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedChannel", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.queue.place();
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
}

// SAFETY: as above; the number of slots is the pointer's, which `at` got from the checked header,
// and the size is that of the queue, behind what lies before it.
unsafe impl<T: Plain> Shareable for Channel<T> {
    const FINGERPRINT: u64 = Channel::<T>::BASE;
    const ALIGN: usize = align_of::<FixedChannel<T, 1>>();
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        let (size, align) = (offset_of!(FixedChannel<T, 1>, queue), Self::ALIGN);
        const {
            assert!(
                align_of::<FixedChannel<T, 1>>() == align_of::<FixedQueue<T, 1>>(),
                "the size of the queue is a multiple of the alignment"
            );
        }
        Layout { name: "Channel", size, align, fields: const { &Self::TAIL } }
    }
    fn size(len: usize) -> Option<usize> {
        let queue = <Queue<T> as Shareable>::size(len)?;
        let size = queue.checked_add(offset_of!(FixedChannel<T, 1>, queue))?;
        Some(size).filter(|&size| isize::try_from(size).is_ok())
    }
    at_slice!();
    fn place(&self) {
        self.queue.place();
    }
    fn recover(&self, dead: &Dead) {
        self.mend(dead);
    }
}

impl<T: Plain> WithCapacity for Channel<T> {}

impl<T: Plain> Channel<T> {
    const TAIL: [Field; 1] = [Field {
        name: "queue",
        offset: offset_of!(FixedChannel<T, 1>, queue),
        count: 1,
        layout: <Queue<T> as Shareable>::layout,
    }];
}

impl<T: Plain> fmt::Debug for Channel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("senders", &self.senders)
            .field("receivers", &self.receivers)
            .field("queue", &&self.queue)
            .finish()
    }
}

impl<T: Plain, const N: usize> fmt::Debug for FixedChannel<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
