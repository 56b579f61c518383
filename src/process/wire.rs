//! What owner, helper and worker say to each other.
#![expect(unsafe_code, reason = "maps what others have written")]
use super::code::Image;
use crate::sys::file::{growing, memfd_create};
use crate::sys::process::{freeze, is_frozen, receive, send};
use core::ops::Deref;
use memmap2::{Mmap, MmapOptions};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// What goes in a message itself. More goes by a file in memory.
const INLINE: usize = 32 * 1024;
/// A message is never longer.
pub(super) const LONGEST: usize = 64 * 1024;

/// What a message is about, in its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Owner to helper: start a worker.
    Start,
    /// Helper to owner: the pid; with it goes a descriptor of the process.
    Born,
    /// Owner to worker: the owner has that descriptor, and the function may begin.
    Go,
    /// Worker to owner: what the function returned.
    Value,
    /// Worker to owner: message, location, backtrace.
    Panicked,
    /// Worker to owner: the argument is not understood.
    Argument,
    /// Worker to owner: the value cannot be said.
    Encode,
    /// Helper to owner: the exit status.
    Ended,
    /// Helper to owner: no worker, and the error number.
    Refused,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::{Argument, Born, Encode, Ended, Go, Panicked, Refused, Start, Value};
        let all = [Start, Born, Go, Value, Panicked, Argument, Encode, Ended, Refused];
        all.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
    /// What did not fit in.
    pub(super) file: Option<OwnedFd>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Bytes that came in a message, or where they lie.
#[derive(Debug)]
pub(crate) enum Bytes {
    Here(Vec<u8>),
    There(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Here(bytes) => bytes,
            Bytes::There(bytes) => bytes,
        }
    }
}

impl Message {
    /// All of it.
    pub(super) fn whole(self) -> io::Result<Bytes> {
        self.file.map_or(Ok(Bytes::Here(self.body)), |file| from_file(&file).map(Bytes::There))
    }
}

fn garbled() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Bytes in a file in memory, which nobody can change any more.
pub(crate) fn to_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create()?);
    growing(|| file.write_all_at(bytes, 0))?;
    freeze(file.as_fd())?;
    Ok(file.into())
}

/// What is in such a file, in its place.
pub(crate) fn from_file(file: &OwnedFd) -> io::Result<Mmap> {
    if !is_frozen(file.as_fd())? {
        return Err(garbled());
    }
    // SAFETY: neither its length nor what it holds changes any more.
    unsafe { MmapOptions::new().populate().map_copy_read_only(file) }
}

/// A copy of what is in such a file.
pub(crate) fn read_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    if !is_frozen(file.as_fd())? {
        return Err(garbled());
    }
    let mut file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a message could not be sent because the other end of the socket is closed.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Sends a message: first the kind, then whether the body is in a file (the last descriptor), then
/// `head`, the body.
pub(super) fn say(
    to: BorrowedFd<'_>,
    kind: Kind,
    head: &[u8],
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    let mut bytes = vec![kind as u8, 0];
    bytes.extend_from_slice(head);
    if body.len() <= INLINE {
        bytes.extend_from_slice(body);
        return send(to, &bytes, descriptors, wait);
    }
    bytes[1] = 1;
    let file = to_file(body)?;
    let mut descriptors = descriptors.to_vec();
    descriptors.push(file.as_fd());
    send(to, &bytes, &descriptors, wait)
}

/// Takes a message. `None` if no more will come. If this process has no room for the message's
/// descriptors, the call fails and the message stays.
pub(super) fn hear(
    from: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: bool,
) -> io::Result<Option<Message>> {
    let mut descriptors = Vec::new();
    let length = receive(from, buffer, &mut descriptors, wait)?;
    if length == 0 {
        return Ok(None);
    }
    let (&[kind, in_file], rest) = buffer[..length].split_first_chunk().ok_or_else(garbled)?;
    let kind = Kind::of(kind).ok_or_else(garbled)?;
    let file = match in_file {
        0 => None,
        _ => Some(descriptors.pop().ok_or_else(garbled)?),
    };
    Ok(Some(Message { kind, body: rest.to_vec(), file, descriptors }))
}

/// What a worker is to run, and how.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) image: Image,
    /// The function that decodes, calls and encodes, and the one that it calls.
    pub(super) entry: u64,
    pub(super) function: u64,
    pub(super) detached: bool,
    pub(super) name: String,
    /// The keys of the segments; their descriptors follow the channel's.
    pub(super) keys: Vec<String>,
}

type Fields<'a> = (Image, u64, u64, bool, &'a str, Vec<&'a str>);

impl Order {
    pub(super) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let keys = self.keys.iter().map(String::as_str).collect();
        let fields: Fields<'_> =
            (self.image, self.entry, self.function, self.detached, &self.name, keys);
        postcard::to_allocvec(&fields)
    }

    /// The order, and the argument behind it.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Order, &[u8]), postcard::Error> {
        let ((image, entry, function, detached, name, keys), argument) =
            postcard::take_from_bytes::<Fields<'_>>(bytes)?;
        let keys = keys.into_iter().map(str::to_owned).collect();
        let name = name.to_owned();
        Ok((Order { image, entry, function, detached, name, keys }, argument))
    }
}
