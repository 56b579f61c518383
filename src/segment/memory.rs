//! The memory of a segment: mapped from a file in memory, or provided by the caller.
#![expect(unsafe_code, reason = "shares a raw pointer between threads")]
use crate::error::OpenError;
use crate::segment::header::HEADER;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::file::{self, Named};
use core::ptr::NonNull;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// System calls, as errors name them.
pub(super) const ALLOCATE: &str = "allocating memory (fallocate)";
pub(super) const FLOCK: &str = "flock";
pub(super) const FSTAT: &str = "fstat";
const GET_SEALS: &str = "fcntl(F_GET_SEALS)";
const REOPEN: &str = "opening the segment's file again through /proc";

/// The memory of a segment, and its file. Nothing is known about the content.
///
/// The file stays open as long as the segment is in use. Other processes get it, and the shared
/// lock on a file with a name says that the segment is in use.
#[derive(Debug)]
pub(crate) struct Memory {
    place: Place,
    file: Option<File>,
    /// The name of the file, if it is known. It cannot be found from a descriptor: the creator
    /// opens the file before it has a name.
    path: Option<PathBuf>,
    /// The mark on the file, if the file has a name or will have one.
    mark: Option<Mark>,
}

/// The number of an open file: the id of the process that opened it, and a count.
///
/// It is the offset of a lock of one byte on the open file, so it lasts until every copy of the
/// descriptor is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(pub(super) u64);

impl Mark {
    fn new() -> Mark {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Mark(u64::from(std::process::id()) << 32 | u64::from(COUNT.fetch_add(1, Relaxed)))
    }

    /// Returns the id of the process that opened the file.
    pub(crate) fn pid(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Debug)]
enum Place {
    Mapped(MmapRaw),
    Callers { base: NonNull<u8>, len: usize },
}

// SAFETY: only `Place::Callers` is not `Send` by itself. Its pointer is valid in all threads, as
// `Memory::callers` demands, and this module neither reads nor writes through it.
unsafe impl Send for Memory {}
// SAFETY: as above; `&Memory` gives only addresses and the descriptor.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates zero-filled memory without a name. It must be [sealed](Self::seal) before another
    /// process gets it.
    pub(crate) fn anonymous(len: usize) -> Result<Memory, OpenError> {
        let fd = file::memfd_create().named("memfd_create")?;
        file::allocate(fd.as_fd(), len).named(ALLOCATE)?;
        Memory::from_memfd(fd.into())
    }

    /// Maps a whole file that has a name or will have one, and keeps the lock on it.
    pub(crate) fn from_file(file: File) -> Result<Memory, OpenError> {
        // A mapping keeps the open file that it was made from, and so its lock. This mapping is
        // made from another open file: it may stay after the use of the segment has ended.
        let unlocked = file::reopen(file.as_fd()).named(REOPEN)?;
        let mapping = map(&unlocked)?;
        let mark = Mark::new();
        // On failure, this process does not wait for copies of the descriptor when it leaves.
        file::mark(file.as_fd(), mark.0).ok();
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None, mark: Some(mark) })
    }

    fn from_memfd(file: File) -> Result<Memory, OpenError> {
        let mapping = map(&file)?;
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None, mark: None })
    }

    /// Maps the file of a descriptor that another process made, if its length cannot change.
    ///
    /// # Errors
    /// - [`OpenError::NotSealed`] if it is neither a memfd whose length is sealed, nor a named file
    ///   in memory.
    /// - [`OpenError::OtherUser`] if it has a name and belongs to another user, who could shorten
    ///   it. (The user of this process could do so as well, but is trusted.)
    /// - [`OpenError::NotFound`] if it has just lost its name.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Memory, OpenError> {
        let file = File::from(fd);
        let metadata = file.metadata().named(FSTAT)?;
        if !metadata.is_file() {
            return Err(OpenError::NotSealed);
        }
        // Seals are not enough: a file of huge pages can have them as well, and its creator can
        // remove the memory of such a file.
        if !file::is_in_memory(file.as_fd()).named("fstatfs")? {
            return Err(OpenError::NotSealed);
        }
        if metadata.nlink() == 0 {
            if !file::is_sealed(file.as_fd()).named(GET_SEALS)? {
                return Err(OpenError::NotSealed);
            }
            return Memory::from_memfd(file);
        }
        if metadata.uid() != file::effective_uid() {
            return Err(OpenError::OtherUser { owner: metadata.uid() });
        }
        // The descriptor may be a copy of that of another process, which must not have to wait for
        // the end of this one.
        let own = file::reopen(file.as_fd()).named(REOPEN)?;
        // Once this process has the lock, no other process removes the name. A process that has the
        // exclusive lock now may do so.
        file::share_lock(own.as_fd()).named(FLOCK)?;
        drop(file);
        if own.metadata().named(FSTAT)?.nlink() == 0 {
            return Err(OpenError::NotFound);
        }
        Memory::from_file(own)
    }

    /// Uses memory that the caller provides.
    ///
    /// # Safety
    /// `len` bytes at `base` can be read and written, by any thread, until the result is dropped.
    pub(crate) unsafe fn callers(base: NonNull<u8>, len: usize) -> Memory {
        Memory { place: Place::Callers { base, len }, file: None, path: None, mark: None }
    }

    /// Seals the length of anonymous memory.
    pub(crate) fn seal(&self) -> Result<(), OpenError> {
        match self.fd() {
            Some(fd) => file::seal(fd).named("sealing the memory"),
            None => Ok(()),
        }
    }

    /// Returns whether the caller provided the memory.
    pub(crate) fn is_callers(&self) -> bool {
        matches!(self.place, Place::Callers { .. })
    }

    /// Returns the address of the first byte. Mappings are aligned to a page.
    pub(crate) fn base(&self) -> *mut u8 {
        match &self.place {
            Place::Mapped(mapping) => mapping.as_mut_ptr(),
            Place::Callers { base, .. } => base.as_ptr(),
        }
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        match &self.place {
            Place::Mapped(mapping) => mapping.len(),
            Place::Callers { len, .. } => *len,
        }
    }

    /// Returns the file, unless the caller provided the memory or [`take_file`](Self::take_file)
    /// was called.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    /// Returns a descriptor for another process.
    ///
    /// For memory with a name it is an open file of its own with the shared lock. So the segment
    /// stays in use until the other process has opened it, even if this process leaves first.
    pub(crate) fn clone_fd(&self) -> io::Result<OwnedFd> {
        let Some(file) = &self.file else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the caller provided the memory, so there is no descriptor",
            ));
        };
        if file.metadata()?.nlink() == 0 {
            return file::duplicate(file.as_fd());
        }
        match file::reopen(file.as_fd()) {
            Ok(other) => file::share_lock(other.as_fd()).map(|()| other.into()),
            // Without /proc, or if the process has changed its user.
            Err(_) => file::duplicate(file.as_fd()),
        }
    }

    /// Removes the file from the memory. The mapping does not need it.
    pub(crate) fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// Returns the name of the file, if it is known.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns the mark on the file, if the file has a name or will have one.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// Sets the name of the file.
    pub(crate) fn at_path(self, path: PathBuf) -> Memory {
        Memory { path: Some(path), ..self }
    }
}

/// Maps the whole file. The length is read here, so that the mapping is not longer than the file.
fn map(file: &File) -> Result<MmapRaw, OpenError> {
    let len = file.metadata().named(FSTAT)?.len();
    let len = usize::try_from(len).map_err(|_| OpenError::Corrupt)?;
    if len < HEADER {
        return Err(OpenError::NotOurs);
    }
    MmapOptions::new().len(len).map_raw(file).named("mmap")
}
