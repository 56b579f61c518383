//! Messages of any shape: what `serde` knows, encoded by `postcard`, through queues and pipes of
//! bytes.
//!
//! ```
//! use outlast::queue::ValueError;
//! use outlast::{ByteQueue, Shared};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! enum Job {
//!     Fetch { url: String, depth: u8 },
//!     Stop,
//! }
//!
//! let here = Shared::<ByteQueue>::with_capacity(64 * 1024)?;
//! let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd()?)?; // as another process would
//! here.send_value(&Job::Fetch { url: "http://localhost".into(), depth: 3 })?;
//! here.send_value("no job")?;
//! here.send_value(&Job::Stop)?;
//! assert!(matches!(there.recv_value()?, Job::Fetch { depth: 3, .. }));
//! // What is no encoding of the type is given to who asked for it, as it came:
//! let Err(ValueError::Undecodable(bytes)) = there.recv_value::<Job>() else { panic!() };
//! assert_eq!(bytes, b"\x06no job");
//! assert_eq!(there.recv_value::<Job>()?, Job::Stop);
//! # Ok::<(), outlast::Error>(())
//! ```
//!
//! # Encoding
//! That of [postcard](https://docs.rs/postcard), without a mark of its type: both ends must mean
//! the same one. Bytes that are left over after the value are an error. Maps and sequences are
//! encoded if they know their length beforehand, as all of the standard library's do.
//!
//! # What cannot be decoded
//! is not lost. `recv_value` and its kin have received it: the error has all of its bytes, to be
//! decoded as something else, or to be sent again, behind what was sent since. To leave it to
//! another reader without that detour, and ahead of the others, receive it by
//! [`recv_ref`](ByteQueue::recv_ref), try [`Message::decode`], and [give it
//! back](Message::give_back).
//!
//! # Death
//! As with the bytes: a message is sent whole or not at all, and is received before it is decoded.
//! So a `Deserialize` that panics, or whose process is killed in it, takes the message with it,
//! unless it is decoded in place ([`Message::decode`]) and given back.
use crate::error::Fault;
use crate::queue::SendFailure;
use crate::queue::bytes::{ByteQueue, Message, Reservation, Store};
use crate::queue::channel::{Channel, Receiver, Room, Sender};
use crate::queue::pipe::{Connection, Pipe};
use crate::queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::shareable::Shareable;
use core::ops::{Deref, DerefMut};
use core::time::Duration;
use postcard::ser_flavors::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Instant;
use thiserror::Error;

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

fn encoded_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Fault> {
    postcard::serialize_with_flavor(value, Size::default()).map_err(|_| Fault::Unencodable)
}

/// Room for a message, in a queue or a channel.
trait Place: DerefMut<Target = [u8]> {
    /// Sends the first `len` bytes.
    fn send_first(self, len: usize) -> Result<(), SendFailure>;
}

impl Place for Reservation<'_> {
    fn send_first(self, len: usize) -> Result<(), SendFailure> {
        self.commit_len(len).map_err(SendFailure::Failed)
    }
}

impl Place for Room<'_> {
    fn send_first(self, len: usize) -> Result<(), SendFailure> {
        self.publish(len)
    }
}

/// Encodes it in its place, and sends it.
fn fill<T: Serialize + ?Sized>(mut room: impl Place, value: &T) -> Result<(), SendFailure> {
    // (A value that has grown since it was measured does not fit.)
    let written = postcard::to_slice(value, &mut room);
    let len = written.map_err(|_| SendFailure::Failed(Fault::Unencodable))?.len();
    room.send_first(len)
}

/// What is decoded is a copy: decoders check text before they take it, and a peer might write to
/// shared memory in between.
fn value_of<T: DeserializeOwned, E>(message: Result<Vec<u8>, E>) -> Result<T, ValueError<E>> {
    let bytes = message.map_err(ValueError::Recv)?;
    decode(&bytes).map_err(|_| ValueError::Undecodable(bytes))
}

impl Message<'_> {
    /// The value that it is the encoding of. The message stays as it is: to be received by another
    /// who can decode it, it is [given back](Self::give_back).
    ///
    /// ```
    /// use outlast::{ByteQueue, Fault, Shared};
    ///
    /// let here = Shared::<ByteQueue>::with_capacity(4096)?;
    /// let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// here.send_value("text")?;
    /// let message = there.recv_ref()?;
    /// assert_eq!(message.decode::<[u64; 3]>(), Err(Fault::Undecodable));
    /// message.give_back()?;
    /// assert_eq!(here.recv_value::<String>()?, "text");
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Fault::Undecodable`].
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        let copy = self.to_vec(); // as in `value_of`
        decode(&copy).map_err(|_| Fault::Undecodable)
    }
}

/// For what has room for a message: values of any shape, encoded in their place.
macro_rules! sends_values {
    ([$($generics:tt)*] $sender:ty $(where $queue:ty: $bound:path)?) => {
        impl<$($generics)*> $sender $(where $queue: $bound)? {
            /// Sends a value, waiting for room as long as it takes.
            ///
            /// # Errors
            /// As [`send`](Self::send), and [`Fault::Unencodable`] if the value cannot be encoded;
            /// nothing is sent then.
            pub fn send_value<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError<()>> {
                let failed = |fault| SendError::Failed((), fault);
                let room = self.reserve(encoded_len(value).map_err(failed)?)?;
                fill(room, value).map_err(|why| SendFailure::for_ever(((), why)))
            }

            /// Sends a value if there is room. Never blocks.
            ///
            /// # Errors
            /// As [`try_send`](Self::try_send), and [`Fault::Unencodable`].
            pub fn try_send_value<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), TrySendError<()>> {
                let failed = |fault| TrySendError::Failed((), fault);
                let room = self.try_reserve(encoded_len(value).map_err(failed)?)?;
                fill(room, value).map_err(|why| SendFailure::at_once(((), why)))
            }

            /// Sends a value, waiting for room at most `timeout`.
            ///
            /// # Errors
            /// As [`send_timeout`](Self::send_timeout), and [`Fault::Unencodable`].
            pub fn send_value_timeout<T: Serialize + ?Sized>(
                &self,
                value: &T,
                timeout: Duration,
            ) -> Result<(), SendTimeoutError<()>> {
                let failed = |fault| SendTimeoutError::Failed((), fault);
                let room = self.reserve_timeout(encoded_len(value).map_err(failed)?, timeout)?;
                fill(room, value).map_err(|why| SendFailure::in_time(((), why)))
            }

            /// Sends a value, waiting for room until `deadline` at most.
            ///
            /// # Errors
            /// As [`send_deadline`](Self::send_deadline), and [`Fault::Unencodable`].
            pub fn send_value_deadline<T: Serialize + ?Sized>(
                &self,
                value: &T,
                deadline: Instant,
            ) -> Result<(), SendTimeoutError<()>> {
                let failed = |fault| SendTimeoutError::Failed((), fault);
                let room = self.reserve_deadline(encoded_len(value).map_err(failed)?, deadline)?;
                fill(room, value).map_err(|why| SendFailure::in_time(((), why)))
            }
        }
    };
}

/// For what receives messages: values of any shape.
macro_rules! receives_values {
    ([$($generics:tt)*] $receiver:ty $(where $queue:ty: $bound:path)?) => {
        impl<$($generics)*> $receiver $(where $queue: $bound)? {
            /// Receives a value, waiting for one as long as it takes.
            ///
            /// # Errors
            /// As [`recv`](Self::recv), and [`ValueError::Undecodable`], with the message.
            pub fn recv_value<T: DeserializeOwned>(&self) -> Result<T, ValueError<RecvError>> {
                value_of(self.recv())
            }

            /// Receives a value if there is one. Never blocks.
            ///
            /// # Errors
            /// As [`try_recv`](Self::try_recv), and [`ValueError::Undecodable`], with the message.
            pub fn try_recv_value<T: DeserializeOwned>(&self) -> Result<T, ValueError<TryRecvError>> {
                value_of(self.try_recv())
            }

            /// Receives a value, waiting for one at most `timeout`.
            ///
            /// # Errors
            /// As [`recv_timeout`](Self::recv_timeout), and [`ValueError::Undecodable`], with the
            /// message.
            pub fn recv_value_timeout<T: DeserializeOwned>(
                &self,
                timeout: Duration,
            ) -> Result<T, ValueError<RecvTimeoutError>> {
                value_of(self.recv_timeout(timeout))
            }

            /// Receives a value, waiting for one until `deadline` at most.
            ///
            /// # Errors
            /// As [`recv_deadline`](Self::recv_deadline), and [`ValueError::Undecodable`], with the
            /// message.
            pub fn recv_value_deadline<T: DeserializeOwned>(
                &self,
                deadline: Instant,
            ) -> Result<T, ValueError<RecvTimeoutError>> {
                value_of(self.recv_deadline(deadline))
            }
        }
    };
}

sends_values! { [S: Store + ?Sized] ByteQueue<S> }
receives_values! { [S: Store + ?Sized] ByteQueue<S> }
sends_values! {
    [S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>]
    Sender<ByteQueue<S>, H> where ByteQueue<S>: Shareable
}
receives_values! {
    [S: Store + ?Sized, H: Deref<Target = Channel<ByteQueue<S>>>]
    Receiver<ByteQueue<S>, H> where ByteQueue<S>: Shareable
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
