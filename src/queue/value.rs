//! Messages of any shape: what `serde` knows, encoded by `postcard`.
//!
//! A [`ValueQueue<V>`](ValueQueue) has the verbs and the errors of a [`Queue`](super::Queue), for
//! any type `V` that `serde` can encode and decode. It is a [`ByteQueue`] inside.
//!
//! ```
//! use outlast::{Shared, ValueQueue};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! enum Job {
//!     Fetch { url: String, depth: u8 },
//!     Stop,
//! }
//!
//! let here = Shared::<ValueQueue<Job>>::with_capacity(64 * 1024)?; // bytes
//! let there = Shared::<ValueQueue<Job>>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send(&Job::Fetch { url: "http://localhost".into(), depth: 3 })?;
//! here.send(&Job::Stop)?;
//!
//! // Work that must be done even if the worker is killed is acknowledged when it is done:
//! let job = there.recv_ack()?;
//! assert!(matches!(*job, Job::Fetch { depth: 3, .. }));
//! job.ack()?;
//! assert_eq!(there.recv()?, Job::Stop);
//! here.join()?; // returns when every message is received and acknowledged
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Encoding
//! That of [postcard](https://docs.rs/postcard), without a mark of its type: all processes must
//! mean the same one. Bytes that are left over after the value are an error. Maps and sequences are
//! encoded if they know their length beforehand, as all of the standard library's do.
//!
//! # A message that cannot be decoded
//! is received, and the verb fails with [`Fault::Undecodable`]; the next message is not affected.
//! To keep the bytes of such a message, receive it from [`ValueQueue::bytes`] and decode it in
//! place ([`Message::decode`], [`Delivery::decode`]): it can then be given back, or sent elsewhere.
//!
//! # Death
//! As with the bytes: a message is sent whole or not at all. A plain `recv` decodes a message where
//! it is: if the process is killed meanwhile, another receives it. A `Deserialize` that panics
//! takes the message with it. With `recv_ack`, the message is delivered again in both cases.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
#![expect(
    private_interfaces,
    reason = "the traits of a channel cannot be named outside of the crate"
)]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::bytes::{Blocks, ByteQueue, Delivery, FixedByteQueue, Message, Reservation};
use crate::queue::bytes::{Store, Unit, View};
use crate::queue::channel::kind::{AsBytes, Deliver, Ended};
use crate::queue::channel::{Channel, Kind};
use crate::queue::channel::{Receiver, Room, Sender};
use crate::queue::dead_letters::{Counted, DeadLetters, dead_letter_verbs, next_live};
use crate::queue::pipe::{Connection, Pipe};
use crate::queue::{Invalid, LIGHT, RecvFailure, SendFailure};
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity, at_slice, begin, mix_u64};
use crate::sync::atomic::AtomicU32;
use crate::wait::signal::Signal;
use crate::wait::verbs::{Call, verbs};
use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::{Deref, DerefMut};
use core::time::Duration;
use postcard::ser_flavors::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Instant;
use thiserror::Error;

/// A bounded queue of values of any type that `serde` can encode and decode.
///
/// First in, first out, except that a message whose receiver died, or gave it back, comes out of
/// order. Any number of processes and threads may send and receive.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one for so many bytes of encoded
/// messages. The capacity is that of the [`ByteQueue`] inside: a message takes its length rounded
/// up to a multiple of 64. To embed one in a struct, see [`FixedValueQueue`].
#[repr(C)]
#[doc(alias = "JoinableQueue")]
pub struct ValueQueue<V, S: Store + ?Sized = [Unit]> {
    values: PhantomData<fn(V) -> V>,
    pub(in crate::queue) bytes: ByteQueue<S>,
}

/// A queue of values, of `BLOCKS` times 64 bytes, to be embedded in a struct declared with
/// [`shared!`](crate::shared).
pub type FixedValueQueue<V, const BLOCKS: usize> = ValueQueue<V, Blocks<BLOCKS>>;

impl<V, const BLOCKS: usize> FixedValueQueue<V, BLOCKS> {
    /// An empty queue, to be moved into shared memory.
    ///
    /// No block, or more than 16,777,215, does not compile.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "zero-filled memory is the default, and needs no value"
    )]
    pub fn new() -> Self {
        ValueQueue { values: PhantomData, bytes: FixedByteQueue::new() }
    }

    const FIELDS: [Field; 1] = [Field {
        name: "bytes",
        offset: offset_of!(Self, bytes),
        count: 1,
        layout: <FixedByteQueue<BLOCKS> as Shareable>::layout,
    }];
}

// ------------------------------------------------------------------ sending
impl<V: Serialize, S: Store + ?Sized> ValueQueue<V, S> {
    verbs! {
        /// Sends a value, blocking until there is room.
        ///
        /// # Errors
        /// As [`ByteQueue::send`], and [`Fault::Unencodable`] if the value cannot be encoded.
        /// Nothing is sent then.
        #[doc(alias = "push")]
        #[doc(alias = "put")]
        pub fn send(&self, value: &V) -> Result<(), SendError<()>>
            = |deadline| self.send_until(value, deadline);
        #[doc(alias = "try_push")]
        #[doc(alias = "put_nowait")]
        try_send -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }

    fn send_until(&self, value: &V, deadline: Deadline) -> Result<(), SendFailure> {
        send_value(value, |len| self.bytes.view().reserve_until(len, deadline), commit)
    }
}

/// Encodes a value in the room that `reserve` takes for so many bytes, and sends it.
fn send_value<V: Serialize, R: DerefMut<Target = [u8]>>(
    value: &V,
    reserve: impl FnOnce(usize) -> Result<R, SendFailure>,
    publish: impl FnOnce(R, usize) -> Result<(), SendFailure>,
) -> Result<(), SendFailure> {
    let mut room = reserve(encoded_len(value).map_err(SendFailure::Failed)?)?;
    // (A value that has grown since it was measured does not fit.)
    let written = postcard::to_slice(value, &mut room);
    let len = written.map_err(|_| SendFailure::Failed(Fault::Unencodable))?.len();
    publish(room, len)
}

fn commit(room: Reservation<'_>, len: usize) -> Result<(), SendFailure> {
    room.commit_len(len).map_err(SendFailure::Failed)
}

// ---------------------------------------------------------------- receiving
impl<V: DeserializeOwned, S: Store + ?Sized> ValueQueue<V, S> {
    verbs! {
        /// Receives a value, blocking until one is available.
        ///
        /// A process that is killed after `recv` has returned takes the value with it: if that
        /// matters, see [`recv_ack`](Self::recv_ack).
        ///
        /// # Errors
        /// As [`ByteQueue::recv`], and [`Fault::Undecodable`] if the message is not an encoding of
        /// a `V` (it is consumed).
        #[doc(alias = "pop")]
        #[doc(alias = "get")]
        pub fn recv(&self) -> Result<V, RecvError>
            = Call(|deadline| self.take_until(deadline).transpose());
        #[doc(alias = "try_pop")]
        #[doc(alias = "get_nowait")]
        try_recv -> Result<V, TryRecvError>, else Err(TryRecvError::Empty);
        recv_timeout, recv_deadline -> Result<V, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);

        /// Receives a value that counts as done only when it is acknowledged, blocking until one is
        /// available. See [`ByteQueue::recv_ack`].
        ///
        /// # Errors
        /// As [`recv`](Self::recv).
        pub fn recv_ack(&self) -> Result<ValueDelivery<'_, V>, RecvError>
            = Call(|deadline| self.deliver_until(deadline).transpose());
        try_recv_ack -> Result<ValueDelivery<'_, V>, TryRecvError>, else Err(TryRecvError::Empty);
        recv_ack_timeout, recv_ack_deadline -> Result<ValueDelivery<'_, V>, RecvTimeoutError>,
            else Err(RecvTimeoutError::TimedOut);
    }

    /// Values until the queue is closed and empty, or cannot be used, waiting for each.
    ///
    /// A message that cannot be decoded ends the iteration and is consumed: a later iteration goes
    /// on behind it.
    pub fn iter(&self) -> impl Iterator<Item = V> + '_ {
        core::iter::from_fn(|| self.recv().ok())
    }

    /// The values that are there, without waiting.
    ///
    /// It ends before a message that cannot be decoded: the next `recv` reports that.
    #[doc(alias = "drain")]
    pub fn try_iter(&self) -> impl Iterator<Item = V> + '_ {
        core::iter::from_fn(|| self.take(Invalid::Left).ok().flatten())
    }

    pub(in crate::queue) fn take(&self, invalid: Invalid) -> Result<Option<V>, RecvFailure> {
        self.bytes.view().claim_message()?.map(|message| value_in(message, invalid)).transpose()
    }

    pub(in crate::queue) fn take_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<V>, RecvFailure> {
        let message = self.bytes.view().recv_until(deadline)?;
        message.map(|message| value_in(message, Invalid::Consumed)).transpose()
    }

    pub(in crate::queue) fn deliver_now(
        &self,
    ) -> Result<Option<ValueDelivery<'_, V>>, RecvFailure> {
        let delivery = self.bytes.view().deliver_now()?;
        delivery.map(ValueDelivery::new).transpose()
    }

    pub(in crate::queue) fn deliver_until(
        &self,
        deadline: Deadline,
    ) -> Result<Option<ValueDelivery<'_, V>>, RecvFailure> {
        let delivery = self.bytes.view().deliver_until(deadline)?;
        delivery.map(ValueDelivery::new).transpose()
    }
}

/// The value of a message, which is received.
fn value_in<V: DeserializeOwned>(message: Message<'_>, invalid: Invalid) -> Result<V, RecvFailure> {
    let value = message.decode();
    if value.is_err() && invalid == Invalid::Left {
        message.give_back().map_err(RecvFailure::Failed)?;
    }
    value.map_err(RecvFailure::Failed)
}

impl Message<'_> {
    /// Returns the value that the message is an encoding of. The message stays as it is: to leave
    /// it to another receiver, [give it back](Self::give_back).
    ///
    /// ```
    /// use outlast::{Fault, Shared, ValueQueue};
    ///
    /// let here = Shared::<ValueQueue<String>>::with_capacity(4096)?;
    /// let there = Shared::<ValueQueue<String>>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send(&"text".to_owned())?;
    /// let message = there.bytes().recv_ref()?;
    /// assert_eq!(message.decode::<[u64; 3]>(), Err(Fault::Undecodable));
    /// message.give_back()?;
    /// assert_eq!(here.recv()?, "text");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Fault::Undecodable`].
    pub fn decode<V: DeserializeOwned>(&self) -> Result<V, Fault> {
        decode_copy(self)
    }
}

impl Delivery<'_> {
    /// Returns the value that the message is an encoding of.
    ///
    /// # Errors
    /// [`Fault::Undecodable`].
    pub fn decode<V: DeserializeOwned>(&self) -> Result<V, Fault> {
        decode_copy(self)
    }
}

/// What is decoded is a copy: decoders check text before they take it, and a peer might write to
/// shared memory in between.
fn decode_copy<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Fault> {
    let copy = bytes.to_vec();
    decode(&copy).map_err(|_| Fault::Undecodable)
}

/// A value that has been received, and must be acknowledged.
///
/// Dereferences to the value, which is a copy of this process's own. [`ack`](Self::ack) says that
/// the work is done. A delivery that is dropped otherwise, or whose process is killed, goes back
/// and is delivered again. It belongs to the process, not to the thread.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct ValueDelivery<'a, V> {
    value: V,
    delivery: Delivery<'a>,
}

impl<'a, V: DeserializeOwned> ValueDelivery<'a, V> {
    /// A message that cannot be decoded is consumed.
    fn new(delivery: Delivery<'a>) -> Result<Self, RecvFailure> {
        match delivery.decode() {
            Ok(value) => Ok(ValueDelivery { value, delivery }),
            Err(fault) => {
                delivery.ack().map_err(RecvFailure::Failed)?;
                Err(RecvFailure::Failed(fault))
            }
        }
    }
}

impl<V> ValueDelivery<'_, V> {
    /// How often this message was delivered before without being acknowledged; 255 stands for more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.delivery.attempts()
    }

    /// Acknowledges the message, which is then gone, and returns its value.
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<V, Fault> {
        self.delivery.ack().map(|()| self.value)
    }

    /// Gives the message back, as it was sent, to be delivered again with one attempt more. Has the
    /// same effect as dropping the delivery.
    pub fn nack(self) {}
}

impl<V> Deref for ValueDelivery<'_, V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V: fmt::Debug> fmt::Debug for ValueDelivery<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueDelivery")
            .field("value", &self.value)
            .field("attempts", &self.attempts())
            .finish()
    }
}

// ------------------------------------------------------- state and closing
impl<V, S: Store + ?Sized> ValueQueue<V, S> {
    /// The encoded messages.
    #[must_use]
    pub fn bytes(&self) -> &ByteQueue<S> {
        &self.bytes
    }

    /// How many bytes of encoded messages can be in the queue at a time. See
    /// [`ByteQueue::capacity`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// How many messages are to be received. May change at any moment. Takes time in proportion.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing to receive. May change at any moment.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Closes the queue. Nothing more can be sent; the messages that are there can be received. All
    /// waiting threads are woken.
    pub fn close(&self) {
        self.bytes.close();
    }

    /// Whether the queue is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.bytes.is_closed()
    }

    /// Blocks until every message that was sent has been received and, if it was delivered by
    /// [`recv_ack`](Self::recv_ack), acknowledged. See [`ByteQueue::join`].
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join(&self) -> Result<(), Fault> {
        self.bytes.join()
    }

    /// Like [`join`](Self::join), but blocks for at most `timeout`. Returns `true` if all was done.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, Fault> {
        self.bytes.join_timeout(timeout)
    }

    /// Like [`join`](Self::join), but blocks until `deadline` at most. Returns `true` if all was
    /// done.
    ///
    /// # Errors
    /// If this process cannot become a peer.
    pub fn join_deadline(&self, deadline: Instant) -> Result<bool, Fault> {
        self.bytes.join_deadline(deadline)
    }
}

/// Segments are told apart from those of bytes, but not by `V`: its name may differ between
/// programs.
const BASE: u64 =
    mix_u64(begin::<FixedByteQueue<1>>(b"ValueQueue 1"), ByteQueue::<[Unit]>::FINGERPRINT);

// SAFETY: `repr(C)`; a queue of bytes behind nothing; no `V` is in it.
unsafe impl<V, const BLOCKS: usize> Shareable for FixedValueQueue<V, BLOCKS> {
    const FINGERPRINT: u64 = mix_u64(BASE, BLOCKS as u64);
    const NEEDS_PEERS: bool = true;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("FixedValueQueue", const { &Self::FIELDS })
    }
    fn place(&self) {
        self.bytes.place();
    }
    fn recover(&self, dead: &Dead) {
        Shareable::recover(&self.bytes, dead);
    }
    fn is_sound(&self) -> bool {
        self.bytes.is_sound()
    }
}

// SAFETY: as above; the number of units is the pointer's, which `at` got from the checked header,
// and the size is that of the queue of bytes.
unsafe impl<V> Shareable for ValueQueue<V> {
    const FINGERPRINT: u64 = BASE;
    const ALIGN: usize = <ByteQueue as Shareable>::ALIGN;
    const NEEDS_PEERS: bool = true;
    fn layout() -> Layout {
        Layout { name: "ValueQueue", ..<ByteQueue as Shareable>::layout() }
    }
    fn size(len: usize) -> Option<usize> {
        <ByteQueue as Shareable>::size(len)
    }
    at_slice!();
    fn place(&self) {
        self.bytes.place();
    }
    fn recover(&self, dead: &Dead) {
        Shareable::recover(&self.bytes, dead);
    }
    fn is_sound(&self) -> bool {
        self.bytes.is_sound()
    }
}

impl<V> WithCapacity for ValueQueue<V> {
    fn units(capacity: usize) -> Option<usize> {
        <ByteQueue as WithCapacity>::units(capacity)
    }
}

impl<V, S: Store + ?Sized> fmt::Debug for ValueQueue<V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueQueue").field(&&self.bytes).finish()
    }
}

// ------------------------------------------------------------------ channels
impl<V, S: Store + ?Sized> Kind for ValueQueue<V, S>
where
    V: DeserializeOwned,
    ValueQueue<V, S>: Shareable,
    ByteQueue<S>: Shareable,
{
}

impl<V, S: Store + ?Sized> Ended for ValueQueue<V, S>
where
    V: DeserializeOwned,
    ValueQueue<V, S>: Shareable,
    ByteQueue<S>: Shareable,
{
    type Received = V;

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

    fn take_usual(&self) -> Result<Option<V>, RecvFailure> {
        self.take(Invalid::Consumed)
    }
    fn take(&self, invalid: Invalid) -> Result<Option<V>, RecvFailure> {
        self.take(invalid)
    }
    fn take_until(&self, deadline: Deadline) -> Result<Option<V>, RecvFailure> {
        self.take_until(deadline)
    }

    fn ended(&self) -> &AtomicU32 {
        Ended::ended(&self.bytes)
    }
    fn tell(&self, bit: u32) {
        self.bytes.tell(bit);
    }
    fn arrived(&self) -> &Signal<LIGHT> {
        self.bytes.arrived()
    }
    fn may_have_message(&self) -> bool {
        self.bytes.may_have_message()
    }
    fn is_quiet(&self) -> bool {
        self.bytes.is_quiet()
    }
    fn mend(&self, dead: &Dead) {
        self.bytes.mend(dead);
    }
    fn wake_everybody(&self) {
        self.bytes.wake_everybody();
    }
}

impl<V, S: Store + ?Sized> Deliver for ValueQueue<V, S>
where
    V: DeserializeOwned,
    ValueQueue<V, S>: Shareable,
    ByteQueue<S>: Shareable,
{
    type Delivery<'a>
        = ValueDelivery<'a, V>
    where
        Self: 'a;

    fn deliver_now(&self) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
        self.deliver_now()
    }
    fn deliver_until(&self, deadline: Deadline) -> Result<Option<Self::Delivery<'_>>, RecvFailure> {
        self.deliver_until(deadline)
    }
    fn join_until(&self, deadline: Deadline) -> Result<bool, Fault> {
        self.bytes.view().join_until(deadline)
    }
}

impl<V, S: Store + ?Sized> AsBytes for ValueQueue<V, S>
where
    V: DeserializeOwned,
    ValueQueue<V, S>: Shareable,
    ByteQueue<S>: Shareable,
{
    fn view(&self) -> View<'_> {
        self.bytes.view()
    }
}

/// Values of any type that `serde` can encode.
impl<V, S: Store + ?Sized, H: Deref<Target = Channel<ValueQueue<V, S>>>> Sender<ValueQueue<V, S>, H>
where
    V: Serialize + DeserializeOwned,
    ValueQueue<V, S>: Shareable,
    ByteQueue<S>: Shareable,
{
    verbs! {
        /// Sends a value, blocking until there is room.
        ///
        /// ```
        /// use outlast::{Channel, RecvError, Shared, ValueQueue};
        ///
        /// type Lines = Channel<ValueQueue<(u32, String)>>;
        /// let here = Shared::<Lines>::with_capacity(64 * 1024)?;
        /// let there = Shared::<Lines>::from_fd(here.try_clone_fd()?)?; // as another process would
        /// let (sender, receiver) = (here.sender()?, there.receiver()?);
        /// sender.send(&(1, "text".to_owned()))?;
        /// drop(sender); // or the death of its process
        /// assert_eq!(receiver.recv()?, (1, "text".to_owned()));
        /// assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        /// # Ok::<(), outlast::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`ValueQueue::send`], and if the last receiver is gone.
        pub fn send(&self, value: &V) -> Result<(), SendError<()>>
            = |deadline| self.send_until(value, deadline);
        try_send -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));
    }

    fn send_until(&self, value: &V, deadline: Deadline) -> Result<(), SendFailure> {
        send_value(value, |len| self.room_until(len, deadline), Room::publish)
    }
}

// ------------------------------------------------------------ dead letters
impl<V> Counted for ValueDelivery<'_, V> {
    fn attempts(&self) -> u32 {
        self.attempts()
    }
    fn done(self) -> Result<(), Fault> {
        self.ack().map(drop)
    }
}

impl<V, S: Store + ?Sized> DeadLetters<ValueDelivery<'_, V>> for ValueQueue<V, S> {
    fn take(&self, delivery: &ValueDelivery<'_, V>) -> bool {
        self.bytes.take(&delivery.delivery)
    }
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{Shared, ValueQueue};
    ///
    /// let jobs = Shared::<ValueQueue<String>>::with_capacity(4096)?;
    /// let there = Shared::<ValueQueue<String>>::from_fd(jobs.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<ValueQueue<String>>::with_capacity(4096)?;
    /// jobs.send(&"kills".into())?;
    /// drop(there.recv_ack()?); // it fails
    /// jobs.send(&"works".into())?;
    /// assert_eq!(*there.recv_ack_or_dead_letter(1, &*dead_letters)?, "works");
    /// assert_eq!(dead_letters.recv()?, "kills");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [V: DeserializeOwned, S: Store + ?Sized]
    ValueQueue<V, S>, ValueDelivery<'_, V>, ValueQueue<V, impl Store + ?Sized>
}

dead_letter_verbs! {
    /// ```
    /// use outlast::{Channel, Shared, ValueQueue};
    ///
    /// type Jobs = Channel<ValueQueue<String>>;
    /// let here = Shared::<Jobs>::with_capacity(4096)?;
    /// let there = Shared::<Jobs>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let dead_letters = Shared::<ValueQueue<String>>::with_capacity(4096)?;
    /// let (sender, receiver) = (here.sender()?, there.receiver()?);
    /// sender.send(&"kills".into())?;
    /// drop(receiver.recv_ack()?); // it fails
    /// sender.send(&"works".into())?;
    /// assert_eq!(*receiver.recv_ack_or_dead_letter(1, &*dead_letters)?, "works");
    /// assert_eq!(dead_letters.recv()?, "kills");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    [V: DeserializeOwned, S: Store + ?Sized, H: Deref<Target = Channel<ValueQueue<V, S>>>]
    Receiver<ValueQueue<V, S>, H>, ValueDelivery<'_, V>, ValueQueue<V, impl Store + ?Sized>
    where ValueQueue<V, S>: Shareable, ByteQueue<S>: Shareable
}

// ---------------------------------------------------------------- encoding
fn encoded_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Fault> {
    postcard::serialize_with_flavor(value, Size::default()).map_err(|_| Fault::Unencodable)
}

/// Why no value was received.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ValueError<E> {
    /// No message was received.
    #[error(transparent)]
    Recv(E),
    /// The message is no encoding of the type. It has been received, and is inside: it can be
    /// decoded as another type, or sent on to who knows it. (To leave it where it is, see
    /// [`Message::decode`].)
    #[error("the message is no encoding of the type that was asked for")]
    Undecodable(Vec<u8>),
}

/// The value that all of the bytes stand for.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> postcard::Result<T> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

fn encoded<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Fault> {
    postcard::to_allocvec(value).map_err(|_| Fault::Unencodable)
}

/// What is decoded is a copy: decoders check text before they take it, and a peer might write to
/// shared memory in between.
fn value_of<T: DeserializeOwned, E>(message: Result<Vec<u8>, E>) -> Result<T, ValueError<E>> {
    let bytes = message.map_err(ValueError::Recv)?;
    decode(&bytes).map_err(|_| ValueError::Undecodable(bytes))
}

/// Values of any shape, as the messages of a pipe.
impl<C: Deref<Target = Pipe>> Connection<C> {
    /// Sends a value, waiting for room as long as it takes.
    ///
    /// ```
    /// use outlast::{Pipe, Shared};
    ///
    /// let here = Shared::<Pipe>::with_capacity(4096)?;
    /// let there = Shared::<Pipe>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let (parent, child) = (here.first()?, there.second()?);
    /// parent.send(&("sum", vec![1_u64, 2, 3]))?;
    /// let (what, numbers): (String, Vec<u64>) = child.recv()?;
    /// child.send(&numbers.iter().sum::<u64>())?;
    /// assert_eq!((what.as_str(), parent.recv::<u64>()?), ("sum", 6));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send_bytes`](Self::send_bytes), and [`Fault::Unencodable`] if the value cannot be
    /// encoded; nothing is sent then.
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError<()>> {
        self.send_bytes(&encoded(value).map_err(|fault| SendError::Failed((), fault))?)
    }

    /// Sends a value if there is room. Never blocks.
    ///
    /// # Errors
    /// As [`try_send_bytes`](Self::try_send_bytes), and [`Fault::Unencodable`].
    pub fn try_send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), TrySendError<()>> {
        self.try_send_bytes(&encoded(value).map_err(|fault| TrySendError::Failed((), fault))?)
    }

    /// Sends a value, waiting for room at most `timeout`.
    ///
    /// # Errors
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout), and [`Fault::Unencodable`].
    pub fn send_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<()>> {
        let bytes = encoded(value).map_err(|fault| SendTimeoutError::Failed((), fault))?;
        self.send_bytes_timeout(&bytes, timeout)
    }

    /// Sends a value, waiting for room until `deadline` at most.
    ///
    /// # Errors
    /// As [`send_bytes_deadline`](Self::send_bytes_deadline), and [`Fault::Unencodable`].
    pub fn send_deadline<T: Serialize + ?Sized>(
        &self,
        value: &T,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<()>> {
        let bytes = encoded(value).map_err(|fault| SendTimeoutError::Failed((), fault))?;
        self.send_bytes_deadline(&bytes, deadline)
    }

    /// Receives a value, waiting for one as long as it takes.
    ///
    /// # Errors
    /// As [`recv_bytes`](Self::recv_bytes), and [`ValueError::Undecodable`], with the message.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T, ValueError<RecvError>> {
        value_of(self.recv_bytes())
    }

    /// Receives a value if there is one. Never blocks, except as
    /// [`try_recv_bytes`](Self::try_recv_bytes) does.
    ///
    /// # Errors
    /// As [`try_recv_bytes`](Self::try_recv_bytes), and [`ValueError::Undecodable`], with the
    /// message.
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<T, ValueError<TryRecvError>> {
        value_of(self.try_recv_bytes())
    }

    /// Receives a value, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout), and [`ValueError::Undecodable`], with
    /// the message.
    pub fn recv_timeout<T: DeserializeOwned>(
        &self,
        timeout: Duration,
    ) -> Result<T, ValueError<RecvTimeoutError>> {
        value_of(self.recv_bytes_timeout(timeout))
    }

    /// Receives a value, waiting for one until `deadline` at most.
    ///
    /// # Errors
    /// As [`recv_bytes_deadline`](Self::recv_bytes_deadline), and [`ValueError::Undecodable`], with
    /// the message.
    pub fn recv_deadline<T: DeserializeOwned>(
        &self,
        deadline: Instant,
    ) -> Result<T, ValueError<RecvTimeoutError>> {
        value_of(self.recv_bytes_deadline(deadline))
    }
}
