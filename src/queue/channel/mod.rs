//! A queue with two ends that processes hold. Receivers learn when the last sender is gone, and
//! senders learn when the last receiver is gone.
//!
//! ```
//! use outlast::{Channel, Queue, RecvError, Shared};
//!
//! let here = Shared::<Channel<Queue<u64>>>::with_capacity(16)?;
//! // As another process would:
//! let there = Shared::<Channel<Queue<u64>>>::from_fd(here.try_clone_fd()?)?;
//! let (sender, receiver) = (here.sender()?, there.receiver()?);
//! let worker = std::thread::spawn(move || receiver.iter().sum::<u64>());
//! (1..=4).try_for_each(|n| sender.send(n))?;
//! drop(sender); // or the death of its process
//! assert_eq!(worker.join().ok(), Some(10));
//! assert_eq!(here.receiver()?.recv(), Err(RecvError::Disconnected));
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Which queue
//! | channel | its messages |
//! |---|---|
//! | `Channel<Queue<T>>` | plain data |
//! | `Channel<PriorityQueue<T, LEVELS>>` | plain data, the most urgent first |
//! | `Channel<ByteQueue>` | bytes of any length, written and read in place |
//! | `Channel<ValueQueue<V>>` | values of any type that `serde` can encode |
//!
//! The ends have the same verbs as the queue. If your code does not need to know whether the other
//! end is gone, use the queue itself.
//!
//! # Death
//! A handle belongs to its process, and the death of the process gives it back. Recovery first
//! repairs what the process had claimed in the queue, so that its messages come back. Then it
//! removes the process from the holders, marks an end that has no holder left, and wakes all
//! waiting threads. So no thread sees an end gone before it can see the messages that come back. A
//! sender that is killed after the commit of its message has sent it: the next receiver gets it.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]

// # How it works
//
// The state is two sets of holders (`Ends`), and two bits in the word of the queue that also says
// whether it is closed (`QueueState::ended`). All levels of a `PriorityQueue` share that word.
//
// | bit | set | cleared |
// |---|---|---|
// | `NO_SENDERS` | when the last handle of the senders' end is given back, or taken from the dead | by a receiver that finds that the end has holders again |
// | `NO_RECEIVERS` | the same for the receivers' end | by a sender that finds that the end has holders again |
//
// Invariants:
// - I1. If an end is gone and stays gone, its bit is set, or a living process is about to set it.
//   (Recovery sets it each time it runs.)
// - I2. A bit may be set although the end is not gone. So a caller looks at the holders itself
//   before it returns `Disconnected`. A caller that clears the bit looks once more, and sets it
//   again if the end has gone meanwhile, which keeps I1.
// - I3. The bit of an end is set before the threads at the other end are woken. So a wait need not
//   look at the holders.
// - I4. A receiver returns `Disconnected` only if no message is in the queue, and no other receiver
//   holds a message that could come back. A message comes back if its receiver dies before it
//   commits the reception, or acknowledges the message. The end of such a claim wakes all
//   receivers. A process that holds deliveries itself does not wait for the deliveries of others:
//   two such processes would wait for each other.
// - I5. All levels share the signals on which receivers sleep. A sender sleeps on the signal of its
//   own level. The end of a claim of any level wakes all receivers if `NO_SENDERS` is set.
// - I6. A sender that has committed a message looks at `NO_RECEIVERS` after that. If the end is
//   gone, it takes the message back, unless a receiver that came meanwhile has it. So no receiver
//   gets a message whose sender was told that no receiver is left, however long the sender held its
//   loan.
//
// Ordering is that of the queue. A thread that sets a bit fences before it looks whether others
// sleep. A thread that goes to sleep has fenced between arming and its last look at the bit. The
// messages of senders that have left are visible to a receiver that sees them gone. A receiver
// looks at all levels, then at the holders, and then at the messages that other receivers hold. The
// last look sees a message that a sender sent after the first look, and before it left.

pub(in crate::queue) mod kind;
mod receiver;
mod sender;

pub use kind::Kind;
pub use receiver::{IntoIter, Iter, Receiver};
pub use sender::Sender;

use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::ends::{Ends, Hold};
use crate::queue::verbs::{QueueState as _, state};
use crate::queue::{Failure, NO_RECEIVERS, NO_SENDERS, PriorityQueue, Queue};
use crate::shareable::{Dead, Field, Layout, Plain, Seal, Shareable, WithCapacity, begin, mix_u64};
use crate::shared::Shared;
use crate::sync::atomic::Ordering::AcqRel;
use core::fmt;
use core::ptr::NonNull;
use kind::AsLevels;

/// A bounded queue whose two ends are held by [`Sender`]s and [`Receiver`]s.
///
/// `C` is the kind of queue: [`Queue`], [`PriorityQueue`], [`ByteQueue`](crate::ByteQueue) or, with
/// the feature `serde`, `ValueQueue`.
///
/// When the last sender of all processes is gone, by drop or death, receivers get the remaining
/// messages, and then [`Disconnected`](super::RecvError::Disconnected). When the last receiver is
/// gone, senders get [`Disconnected`](super::SendError::Disconnected), with their message. An end
/// that has had no holder yet does not count as gone: the other end waits for it. An end that is
/// gone can be taken again. Up to 64 processes can hold each end.
///
/// [`Shared::with_capacity`] creates one, with the capacity of its queue. To embed one in a struct,
/// use the fixed form of the queue:
///
/// ```
/// use outlast::{Channel, FixedQueue, Shared};
///
/// outlast::shared! {
///     struct Office { jobs: Channel<FixedQueue<u64, 16>>, answers: Channel<FixedQueue<u64, 4>> }
/// }
/// let here = Shared::anonymous(Office {
///     jobs: Channel::new(FixedQueue::new()),
///     answers: Channel::new(FixedQueue::new()),
/// })?;
/// let there = Shared::<Office>::from_fd(here.try_clone_fd()?)?; // as another process would
/// let (sender, receiver) = (here.jobs.sender()?, there.jobs.receiver()?);
/// sender.send(7)?;
/// assert_eq!(receiver.recv()?, 7);
/// # Ok::<(), outlast::Error>(())
/// ```
#[repr(C)]
#[doc(alias = "mpsc")]
#[doc(alias = "sync_channel")]
pub struct Channel<C: ?Sized> {
    senders: Ends,
    receivers: Ends,
    queue: C,
}

impl<C: Kind> Channel<C> {
    /// Creates a channel whose ends have had no holder yet, to be moved into shared memory.
    #[must_use]
    pub fn new(queue: C) -> Self {
        Channel { senders: Ends::new(), receivers: Ends::new(), queue }
    }
}

impl<C: Kind + ?Sized> Channel<C> {
    /// Takes a handle of the senders' end. All handles of a process count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn sender(&self) -> Result<Sender<C, &Self>, Fault> {
        Sender::of(self)
    }

    /// Takes a handle of the receivers' end. All handles of a process count as one.
    ///
    /// # Errors
    /// [`Fault::TooManyPeers`] if 64 other processes have one; see [`Fault`].
    pub fn receiver(&self) -> Result<Receiver<C, &Self>, Fault> {
        Receiver::of(self)
    }

    /// Returns the number of processes that have the senders' end. It may change at any moment.
    #[must_use]
    pub fn senders(&self) -> usize {
        self.senders.count()
    }

    /// Returns the number of processes that have the receivers' end. It may change at any moment.
    #[must_use]
    pub fn receivers(&self) -> usize {
        self.receivers.count()
    }

    /// The end that `bit` stands for, `NO_SENDERS` or `NO_RECEIVERS`.
    fn end(&self, bit: u32) -> &Ends {
        if bit == NO_SENDERS { &self.senders } else { &self.receivers }
    }

    /// Gives back a handle of the end that `bit` stands for. If it was the last one, wakes the
    /// other end.
    fn give_back(&self, hold: &Hold, bit: u32) {
        if self.end(bit).release(hold) {
            let state = self.queue.state();
            state.ended().fetch_or(bit, AcqRel);
            state.wake_other_end(bit); // keeps I3
        }
    }

    /// Whether the end is really gone after its bit was seen: keeps I2.
    #[cold]
    fn is_gone(&self, bit: u32) -> bool {
        let state = self.queue.state();
        self.end(bit).confirm_gone(state.ended(), bit, || state.wake_other_end(bit))
    }

    /// Repeats `send` as long as it fails with `Closed` only because of a receivers' bit that is
    /// out of date.
    fn send_to_holders<M, R>(
        &self,
        mut message: M,
        send: impl Fn(M) -> Result<R, (M, Failure)>,
    ) -> Result<R, (M, Failure)> {
        loop {
            match send(message) {
                Err((back, Failure::Closed)) if !self.is_closed() => {
                    if self.is_gone(NO_RECEIVERS) {
                        return Err((back, Failure::Disconnected));
                    }
                    message = back;
                }
                done => return done,
            }
        }
    }

    /// Repeats `receive` until it returns a message, or it is certain that no message can come.
    /// `receive` fails with `Closed` if it finds no message and the senders' bit is set.
    fn receive_to_the_end<R>(
        &self,
        deadline: Deadline,
        receive: impl Fn() -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let state = self.queue.state();
        loop {
            match receive() {
                Err(Failure::Closed) if !state.is_closed() => {}
                done => return done,
            }
            if !self.is_gone(NO_SENDERS) {
                continue;
            }
            if state.is_quiet() {
                return Err(Failure::Disconnected); // keeps I4
            }
            // A message is there, or may come back from another receiver.
            let has_changed = || {
                let is_known = state.may_have_message() || state.is_quiet();
                (is_known || state.is_closed() || !self.senders.is_gone()).then_some(())
            };
            let [not_empty, _] = state.receivers();
            if not_empty.wait(deadline, has_changed).is_err() {
                return Err(Failure::Unavailable);
            }
        }
    }
}

state! {
    impl [C: Kind + ?Sized] Channel<C>;
    |channel| channel.queue.state();
    /// Returns the capacity of the queue.
    capacity;
    /// Returns how much can be delivered and unacknowledged at a time, in messages or bytes as
    /// [`capacity`](Self::capacity).
    in_flight_capacity;
}

impl<T: Plain, S: ?Sized> Channel<Queue<T, S>>
where
    Queue<T, S>: AsLevels<T, 1>,
{
    /// Returns `true` if no slot is free. It may change at any moment.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue.levels().is_full(0)
    }
}

impl<T: Plain, const LEVELS: usize, S: ?Sized> Channel<PriorityQueue<T, LEVELS, S>>
where
    PriorityQueue<T, LEVELS, S>: AsLevels<T, LEVELS>,
{
    /// Returns the number of levels.
    #[must_use]
    pub fn levels(&self) -> usize {
        LEVELS
    }

    /// Returns the number of messages in level `priority`, 0 if there is no such level.
    #[must_use]
    pub fn len_of(&self, priority: usize) -> usize {
        self.queue.levels().len_of(priority)
    }
}

/// Handles that keep the channel mapped and can move to any thread.
impl<C: Kind + ?Sized> Shared<Channel<C>> {
    /// Takes a handle of the senders' end, as [`Channel::sender`] does.
    ///
    /// # Errors
    /// As [`Channel::sender`].
    pub fn sender(&self) -> Result<Sender<C>, Fault> {
        Sender::of(self.clone())
    }

    /// Takes a handle of the receivers' end, as [`Channel::receiver`] does.
    ///
    /// # Errors
    /// As [`Channel::receiver`].
    pub fn receiver(&self) -> Result<Receiver<C>, Fault> {
        Receiver::of(self.clone())
    }
}

impl<C: Kind + ?Sized> Channel<C> {
    /// The distance of the queue from the start.
    const QUEUE: usize = size_of::<[Ends; 2]>().next_multiple_of(C::ALIGN);

    const FIELDS: [Field; 1] =
        [Field { name: "queue", offset: Self::QUEUE, count: 1, layout: C::layout }];
}

// SAFETY: the type is `repr(C)`. It consists of two sets of atomics, for which any bytes are valid,
// and of a queue that is shareable. It has no `Drop`. `QUEUE` and `ALIGN` follow from `repr(C)`. A
// pointer to the whole has the metadata of a pointer to its last field.
unsafe impl<C: Kind + ?Sized> Shareable for Channel<C> {
    const FINGERPRINT: u64 = mix_u64(
        mix_u64(begin::<[Ends; 2]>(b"Channel 2"), Self::QUEUE as u64),
        <C as Shareable>::FINGERPRINT,
    );
    const ALIGN: usize = if C::ALIGN > align_of::<Ends>() { C::ALIGN } else { align_of::<Ends>() };
    const NEEDS_PEERS: bool = true;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        let size = (Self::QUEUE + C::layout().size).next_multiple_of(Self::ALIGN);
        Layout { name: "Channel", size, align: Self::ALIGN, fields: const { &Self::FIELDS } }
    }
    fn size(len: usize) -> Option<usize> {
        let size = Self::QUEUE.checked_add(C::size(len)?)?.checked_next_multiple_of(Self::ALIGN);
        size.filter(|&size| isize::try_from(size).is_ok())
    }
    fn at(base: NonNull<u8>, len: usize) -> NonNull<Self> {
        let pointer = C::at(base, len).as_ptr() as *mut Self;
        NonNull::new(pointer).unwrap_or_else(|| unreachable!("`base` is not null"))
    }
    fn place(&self) {
        self.queue.place();
    }
    fn recover(&self, dead: &Dead) {
        let state = self.queue.state();
        state.repair(dead);
        for bit in [NO_SENDERS, NO_RECEIVERS] {
            self.end(bit).recover(dead, state.ended(), bit); // keeps I1
        }
        state.wake_all_waiters();
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.queue.in_use(ours)
    }
    fn is_sound(&self) -> bool {
        self.queue.is_sound()
    }
}

impl<C: Kind + WithCapacity + ?Sized> WithCapacity for Channel<C> {
    fn units(capacity: usize) -> Option<usize> {
        C::units(capacity)
    }
    fn units_in_flight(capacity: usize, in_flight: usize) -> Option<usize> {
        C::units_in_flight(capacity, in_flight)
    }
    fn set_in_flight(&self, in_flight: usize) {
        self.queue.set_in_flight(in_flight);
    }
}

impl<C: Kind + ?Sized> fmt::Debug for Channel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("senders", &self.senders)
            .field("receivers", &self.receivers)
            .field("queue", &&self.queue)
            .finish()
    }
}
