//! The messages between owner, fork server and worker.
#![expect(unsafe_code, reason = "maps files that other processes have written")]
use super::code::Image;
use crate::sys::file::{growing, memfd_create};
use crate::sys::process::{freeze, is_frozen, receive, send};
use core::ops::Deref;
use memmap2::{Mmap, MmapOptions};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt;

/// Appends the encoded value.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> postcard::Result<()> {
    struct Appended<'a>(&'a mut Vec<u8>);
    impl Extend<u8> for Appended<'_> {
        fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
            self.0.extend(bytes);
        }
    }
    postcard::to_extend(value, Appended(to)).map(drop)
}

/// The longest body that a message carries itself. Longer ones are passed as a file in memory.
const MAX_INLINE: usize = 32 * 1024;
/// The longest message.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// The kind of a message: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum MessageKind {
    /// Owner to fork server: start a worker.
    Start,
    /// Fork server to owner: the pid, with the process descriptor.
    Started,
    /// Owner to worker: the owner has that descriptor, and the function may begin.
    Go,
    /// Worker to owner: the value that the function returned.
    Value,
    /// Worker to owner: message, location and backtrace of a panic.
    Panicked,
    /// Worker to owner: the argument cannot be decoded.
    Argument,
    /// Worker to owner: the value cannot be encoded.
    Encode,
    /// Fork server to owner: the exit status.
    Ended,
    /// Fork server to owner: no worker was started; the error number.
    Refused,
}

impl MessageKind {
    fn of(byte: u8) -> Option<MessageKind> {
        use MessageKind::{Argument, Encode, Ended, Go, Panicked, Refused, Start, Started, Value};
        let all = [Start, Started, Go, Value, Panicked, Argument, Encode, Ended, Refused];
        all.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A received message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: MessageKind,
    pub(super) body: Vec<u8>,
    /// The body, if it was too long for the message.
    pub(super) file: Option<OwnedFd>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The body of a message, or a mapping of the file that holds it.
#[derive(Debug)]
pub(crate) enum Bytes {
    Inline(Vec<u8>),
    Mapped(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Inline(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes,
        }
    }
}

impl Message {
    /// Returns the whole body.
    pub(super) fn into_bytes(self) -> io::Result<Bytes> {
        self.file.map_or(Ok(Bytes::Inline(self.body)), |file| from_file(&file).map(Bytes::Mapped))
    }
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Writes bytes to a file in memory, and seals it against every change.
pub(crate) fn to_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create()?);
    growing(|| file.write_all_at(bytes, 0))?;
    freeze(file.as_fd())?;
    Ok(file.into())
}

/// Maps a file made by [`to_file`].
pub(crate) fn from_file(file: &OwnedFd) -> io::Result<Mmap> {
    if !is_frozen(file.as_fd())? {
        return Err(malformed());
    }
    // SAFETY: the file is sealed: neither its length nor its content changes.
    unsafe { MmapOptions::new().populate().map_copy_read_only(file) }
}

/// Reads a file made by [`to_file`].
pub(crate) fn read_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    if !is_frozen(file.as_fd())? {
        return Err(malformed());
    }
    let mut file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether a message could not be sent because the other end of the socket is closed.
pub(crate) fn is_disconnected(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Sends a message: the kind, a flag that tells whether the body is in a file (the last
/// descriptor), `head`, and the body.
pub(super) fn send_message(
    to: BorrowedFd<'_>,
    kind: MessageKind,
    head: &[u8],
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    let mut bytes = vec![kind as u8, 0];
    bytes.extend_from_slice(head);
    if body.len() <= MAX_INLINE {
        bytes.extend_from_slice(body);
        return send(to, &bytes, descriptors, wait);
    }
    bytes[1] = 1;
    let file = to_file(body)?;
    let mut descriptors = descriptors.to_vec();
    descriptors.push(file.as_fd());
    send(to, &bytes, &descriptors, wait)
}

/// Receives a message. Returns `None` if no more will come. If this process has no room for the
/// message's descriptors, the call fails and the message stays in the socket.
pub(super) fn receive_message(
    from: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
) -> io::Result<Option<Message>> {
    let mut descriptors = Vec::new();
    let length = receive(from, buffer, &mut descriptors, wait)?;
    if length == 0 {
        return Ok(None);
    }
    let (&[kind, in_file], rest) = buffer[..length].split_first_chunk().ok_or_else(malformed)?;
    let kind = MessageKind::of(kind).ok_or_else(malformed)?;
    let file = match in_file {
        0 => None,
        _ => Some(descriptors.pop().ok_or_else(malformed)?),
    };
    Ok(Some(Message { kind, body: rest.to_vec(), file, descriptors }))
}

/// A request to start a worker: what it runs, and how.
#[derive(Debug)]
pub(super) struct StartRequest {
    pub(super) image: Image,
    /// The numbers of the [`Entry`](super::worker::Entry) and of its function.
    pub(super) entry: u64,
    pub(super) function: u64,
    pub(super) detached: bool,
    /// The process has a group of its own, which is killed when the process ends.
    pub(super) own_group: bool,
    /// The limit of private memory, in bytes.
    pub(super) memory_limit: Option<u64>,
    pub(super) name: String,
    /// The keys of the shared descriptors, which follow the channel's.
    pub(super) keys: Vec<String>,
    /// Environment variables to set.
    pub(super) environment: Vec<(OsString, OsString)>,
}

type Variables<'a> = Vec<(&'a [u8], &'a [u8])>;
type Fields<'a> =
    (Image, (u64, u64), (bool, bool, Option<u64>), &'a str, Vec<&'a str>, Variables<'a>);

impl StartRequest {
    pub(super) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let keys = self.keys.iter().map(String::as_str).collect();
        let options = (self.detached, self.own_group, self.memory_limit);
        let environment = self.environment.iter();
        let environment =
            environment.map(|(key, value)| (key.as_bytes(), value.as_bytes())).collect();
        let fields: Fields<'_> =
            (self.image, (self.entry, self.function), options, &self.name, keys, environment);
        postcard::to_allocvec(&fields)
    }

    /// Decodes a request. Returns it and the argument behind it.
    pub(super) fn decode(bytes: &[u8]) -> Result<(StartRequest, &[u8]), postcard::Error> {
        let ((image, (entry, function), options, name, keys, environment), argument) =
            postcard::take_from_bytes::<Fields<'_>>(bytes)?;
        let (detached, own_group, memory_limit) = options;
        let keys = keys.into_iter().map(str::to_owned).collect();
        let owned = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        let environment = environment.into_iter().map(|(key, value)| (owned(key), owned(value)));
        let request = StartRequest {
            image,
            entry,
            function,
            detached,
            own_group,
            memory_limit,
            name: name.to_owned(),
            keys,
            environment: environment.collect(),
        };
        Ok((request, argument))
    }
}
