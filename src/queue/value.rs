//! A queue of values of any type that `serde` can encode and decode.
//!
//! A [`ValueQueue<V>`](ValueQueue) has the verbs and the errors of a [`Queue`](super::Queue).
//! Inside it is a [`ByteQueue`].
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
//! // As another process would:
//! let there = Shared::<ValueQueue<Job>>::from_fd(here.try_clone_fd()?)?;
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
//! # When to use another type
//! For plain data, a [`Queue`](super::Queue) needs no encoding. For bytes, use a [`ByteQueue`].
//!
//! # Encoding
//! Values are encoded as [postcard](https://docs.rs/postcard) does it. A message does not say what
//! type it has: all processes must use the same one. Bytes after the end of the value are an error.
//! Maps and sequences can be encoded if they know their length beforehand, as all those of the
//! standard library do.
//!
//! # Messages that cannot be decoded
//! Such a message is consumed, and the verb fails with [`Fault::Undecodable`]. The next message is
//! not affected. To keep the bytes, receive the message from [`ValueQueue::bytes`] and decode it in
//! place ([`Ref::decode`], [`Delivery::decode`]). It can then be given back, or sent elsewhere.
//!
//! # Death
//! A message is sent whole or not at all, as in a [`ByteQueue`]. A plain `recv` decodes a message
//! in place. If the process is killed meanwhile, another receiver gets the message. If
//! `Deserialize` panics, the message is lost. With `recv_ack`, the message is delivered again in
//! both cases.
#![expect(unsafe_code, reason = "promises that the bytes may be shared")]
#![expect(
    private_interfaces,
    reason = "the traits of a channel cannot be named outside of the crate"
)]
use crate::deadline::Deadline;
use crate::error::Fault;
use crate::queue::Failure;
use crate::queue::bytes::{Blocks, ByteQueue, Delivery, FixedByteQueue, Loan, Ref};
use crate::queue::bytes::{Store, Unit, View};
use crate::queue::channel::kind::AsBytes;
use crate::queue::channel::{Channel, Kind, Receiver, Sender};
use crate::queue::dead_letters::{Counted, DeadLetters, dead_letter_verbs, next_live};
use crate::queue::pipe::{Connection, Pipe};
use crate::queue::verbs::{QueueState, receiving, state};
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::shareable::{Dead, Field, Layout, Shareable, WithCapacity, at_slice, begin, mix_u64};
use crate::wait::verbs::verbs;
use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::Deref;
use postcard::ser_flavors::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A bounded queue of values of any type that `serde` can encode and decode.
///
/// Messages are received in the order in which they were sent. A message whose receiver has died,
/// or has given it back, is received again, out of that order. Any number of processes and threads
/// may send and receive.
///
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates one. Its capacity is that of the
/// [`ByteQueue`] inside, in bytes of encoded messages: a message takes its length rounded up to a
/// multiple of 64. To embed one in a struct, see [`FixedValueQueue`].
#[repr(C)]
#[doc(alias = "JoinableQueue")]
pub struct ValueQueue<V, S: Store + ?Sized = [Unit]> {
    values: PhantomData<fn(V) -> V>,
    pub(in crate::queue) bytes: ByteQueue<S>,
}

/// A [`ValueQueue`] with a capacity of `BLOCKS` times 64 bytes, to be embedded in a struct declared
/// with [`shared!`](crate::shared).
pub type FixedValueQueue<V, const BLOCKS: usize> = ValueQueue<V, Blocks<BLOCKS>>;

impl<V, const BLOCKS: usize> FixedValueQueue<V, BLOCKS> {
    /// Creates an empty queue, to be moved into shared memory.
    ///
    /// It compiles only for 1 to 16,777,215 blocks.
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

    fn send_until(&self, value: &V, deadline: Deadline) -> Result<(), Failure> {
        send_value(value, |len| self.bytes.view().loan_until(len, deadline))
    }
}

/// Encodes a value in the loan that `take` returns for its length, and sends it.
fn send_value<'a, V: Serialize>(
    value: &V,
    take: impl FnOnce(usize) -> Result<Loan<'a>, Failure>,
) -> Result<(), Failure> {
    let mut loan = take(encoded_len(value)?)?;
    // If the encoding has grown since it was measured, it does not fit.
    let len = postcard::to_slice(value, &mut loan).map_err(|_| Fault::Unencodable)?.len();
    loan.publish(len)
}

// ---------------------------------------------------------------- receiving
receiving! {
    impl [V: DeserializeOwned, S: Store + ?Sized] ValueQueue<V, S>;
    invalid: "a message that cannot be decoded";
    /// # Errors
    /// As [`ByteQueue::recv`], and [`Fault::Undecodable`] if the message cannot be decoded as a
    /// `V`. Such a message is consumed.
    recv -> V;
    /// See [`ByteQueue::recv_ack`].
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    recv_ack -> ValueDelivery<'_, V>;
    iter;
}

impl<V: DeserializeOwned, S: Store + ?Sized> ValueQueue<V, S> {
    fn recv_until(&self, deadline: Deadline) -> Result<V, Failure> {
        Ok(self.bytes.view().recv_until(deadline)?.decode()?)
    }

    /// Leaves a message that cannot be decoded in the queue.
    fn recv_valid(&self) -> Result<V, Failure> {
        let message = self.bytes.view().recv_until(Deadline::NOW)?;
        let value = message.decode();
        if value.is_err() {
            message.give_back()?;
        }
        Ok(value?)
    }

    fn deliver_until(&self, deadline: Deadline) -> Result<ValueDelivery<'_, V>, Failure> {
        ValueDelivery::new(self.bytes.view().deliver_until(deadline)?)
    }
}

impl Ref<'_> {
    /// Decodes the message and returns the value. The message does not change. To leave it to
    /// another receiver, [give it back](Self::give_back).
    ///
    /// ```
    /// use outlast::{Fault, Shared, ValueQueue};
    ///
    /// let here = Shared::<ValueQueue<String>>::with_capacity(4096)?;
    /// // As another process would:
    /// let there = Shared::<ValueQueue<String>>::from_fd(here.try_clone_fd()?)?;
    /// here.send(&"text".to_owned())?;
    /// let message = there.bytes().recv_ref()?;
    /// assert_eq!(message.decode::<[u64; 3]>(), Err(Fault::Undecodable));
    /// message.give_back()?;
    /// assert_eq!(here.recv()?, "text");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Fault::Undecodable`] if the message is not an encoding of a `V`.
    pub fn decode<V: DeserializeOwned>(&self) -> Result<V, Fault> {
        decode_copy(self)
    }
}

impl Delivery<'_> {
    /// Decodes the message and returns the value. The delivery must still be acknowledged.
    ///
    /// # Errors
    /// [`Fault::Undecodable`] if the message is not an encoding of a `V`.
    pub fn decode<V: DeserializeOwned>(&self) -> Result<V, Fault> {
        decode_copy(self)
    }
}

/// Decodes a copy of the bytes. A decoder checks text before it uses it, and a peer might write to
/// shared memory in between.
fn decode_copy<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Fault> {
    let copy = bytes.to_vec();
    decode(&copy).map_err(|_| Fault::Undecodable)
}

/// A received value that must be acknowledged.
///
/// It dereferences to the value, which this process has copied. [`ack`](Self::ack) says that the
/// work is done. If the delivery is dropped without it, or its process is killed, the message is
/// delivered again. A delivery belongs to the process, not to the thread.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct ValueDelivery<'a, V> {
    value: V,
    delivery: Delivery<'a>,
}

impl<'a, V: DeserializeOwned> ValueDelivery<'a, V> {
    /// Decodes the message. Consumes it if it cannot be decoded.
    fn new(delivery: Delivery<'a>) -> Result<Self, Failure> {
        match delivery.decode() {
            Ok(value) => Ok(ValueDelivery { value, delivery }),
            Err(fault) => {
                delivery.ack()?;
                Err(fault.into())
            }
        }
    }
}

impl<V> ValueDelivery<'_, V> {
    /// Returns how often this message was delivered before without being acknowledged. The number
    /// 255 stands for 255 or more.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.delivery.attempts()
    }

    /// Acknowledges the message, which removes it from the queue, and returns its value.
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    #[doc(alias = "task_done")]
    pub fn ack(self) -> Result<V, Fault> {
        self.delivery.ack().map(|()| self.value)
    }

    /// Gives the message back, as it was sent, to be delivered again with one attempt more.
    /// Dropping the delivery has the same effect.
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

impl<V, S: Store + ?Sized> ValueQueue<V, S> {
    /// Returns the queue of the encoded messages.
    #[must_use]
    pub fn bytes(&self) -> &ByteQueue<S> {
        &self.bytes
    }
}

state! {
    impl [V, S: Store + ?Sized] ValueQueue<V, S>;
    |queue| queue.bytes.view();
    /// Returns how many bytes of encoded messages can be in the queue at a time. See
    /// [`ByteQueue::capacity`].
    capacity;
    /// Returns how many bytes of encoded messages can be delivered and unacknowledged at a time.
    in_flight_capacity;
}

/// The fingerprint differs from that of a [`ByteQueue`]. It does not depend on `V`, whose name may
/// differ between programs.
const BASE: u64 =
    mix_u64(begin::<FixedByteQueue<1>>(b"ValueQueue 1"), ByteQueue::<[Unit]>::FINGERPRINT);

// SAFETY: the type is `repr(C)`, and a byte queue is its only field with a size. It holds no `V`.
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

// SAFETY: as above. The number of units is that of the pointer, which `at` got from the checked
// header, and the size is that of the byte queue.
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
    type Received = V;
    type Delivery<'a>
        = ValueDelivery<'a, V>
    where
        Self: 'a;

    fn state(&self) -> impl QueueState<'_> {
        self.bytes.view()
    }
    fn take_until(&self, deadline: Deadline) -> Result<V, Failure> {
        self.recv_until(deadline)
    }
    fn take_valid(&self) -> Result<V, Failure> {
        self.recv_valid()
    }
    fn deliver_until(&self, deadline: Deadline) -> Result<ValueDelivery<'_, V>, Failure> {
        self.deliver_until(deadline)
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

    fn send_until(&self, value: &V, deadline: Deadline) -> Result<(), Failure> {
        send_value(value, |len| self.loan_until(len, deadline))
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
    [V: DeserializeOwned, S: Store + ?Sized]
    ValueQueue<V, S>, ValueDelivery<'_, V>, ValueQueue<V, impl Store + ?Sized>
}

dead_letter_verbs! {
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
    /// The message cannot be decoded as a value of the type. It has been received, and this variant
    /// holds its bytes. They can be decoded as another type, or sent to another process.
    #[error("the message cannot be decoded as a value of the requested type")]
    Undecodable(Vec<u8>),
}

/// Decodes a value from `bytes`. Bytes after the end of the value are an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> postcard::Result<T> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

fn encoded<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Fault> {
    postcard::to_allocvec(value).map_err(|_| Fault::Unencodable)
}

/// Values of any type that `serde` can encode, as the messages of a pipe.
impl<C: Deref<Target = Pipe>> Connection<C> {
    verbs! {
        /// Sends a value, blocking until there is room for all of it.
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
        /// encoded. Nothing is sent then.
        pub fn send(&self, value: &(impl Serialize + ?Sized)) -> Result<(), SendError<()>>
            = |deadline| self.send_value_until(value, deadline);
        try_send -> Result<(), TrySendError<()>>, else Err(TrySendError::Full(()));
        send_timeout, send_deadline -> Result<(), SendTimeoutError<()>>,
            else Err(SendTimeoutError::TimedOut(()));

        /// Receives a value, blocking until one is available.
        ///
        /// # Errors
        /// As [`recv_bytes`](Self::recv_bytes), and [`ValueError::Undecodable`], with the bytes of
        /// the message, if it cannot be decoded as a `T`.
        pub fn recv<T: DeserializeOwned>(&self) -> Result<T, ValueError<RecvError>>
            = |deadline| self.value_until(deadline);
        try_recv -> Result<T, ValueError<TryRecvError>>, else Err(TryRecvError::Empty);
        recv_timeout, recv_deadline -> Result<T, ValueError<RecvTimeoutError>>,
            else Err(RecvTimeoutError::TimedOut);
    }

    fn send_value_until(
        &self,
        value: &(impl Serialize + ?Sized),
        deadline: Deadline,
    ) -> Result<(), Failure> {
        self.send_until(&encoded(value)?, deadline)
    }

    fn value_until<T: DeserializeOwned>(
        &self,
        deadline: Deadline,
    ) -> Result<T, ValueError<Failure>> {
        let bytes = self.recv_until(deadline).map_err(ValueError::Recv)?;
        decode(&bytes).map_err(|_| ValueError::Undecodable(bytes))
    }
}

impl<E> ValueError<E> {
    fn convert<F: From<E>>(self) -> ValueError<F> {
        match self {
            ValueError::Recv(error) => ValueError::Recv(error.into()),
            ValueError::Undecodable(bytes) => ValueError::Undecodable(bytes),
        }
    }
}

macro_rules! convert {
    ($($Error:ident)+) => {$(
        impl From<ValueError<Failure>> for ValueError<$Error> {
            fn from(error: ValueError<Failure>) -> Self {
                error.convert()
            }
        }
    )+};
}
convert!(RecvError TryRecvError RecvTimeoutError);
