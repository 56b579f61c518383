//! Where a segment's bytes are: mapped from a file in memory, or given by the caller.
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

/// What is asked of the system.
pub(super) const ALLOCATE: &str = "allocating memory (fallocate)";
pub(super) const FLOCK: &str = "flock";
pub(super) const FSTAT: &str = "fstat";
const GET_SEALS: &str = "fcntl(F_GET_SEALS)";
const REOPEN: &str = "opening the segment's file again through /proc";

/// Memory for a segment, and what keeps it. Says nothing about what is in it.
///
/// The file stays open as long as the segment is in use: it is handed on to other processes, and
/// where it has a name, its shared lock is what "in use" means.
#[derive(Debug)]
pub(crate) struct Memory {
    place: Place,
    file: Option<File>,
    /// The file's name, if it is known. A descriptor does not tell: the creator's, for one, was
    /// opened before there was a name.
    path: Option<PathBuf>,
    /// The mark on the file, if it has, or will have, a name.
    mark: Option<Mark>,
}

/// The number by which an open file is known: the id of the process that opened it, and a count.
///
/// It stands on the open file as a lock of one byte, and so lasts until every copy of the
/// descriptor is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(pub(super) u64);

impl Mark {
    fn new() -> Mark {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Mark(u64::from(std::process::id()) << 32 | u64::from(COUNT.fetch_add(1, Relaxed)))
    }

    /// The process that opened the file.
    pub(crate) fn pid(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Debug)]
enum Place {
    Mapped(MmapRaw),
    Callers { base: NonNull<u8>, len: usize },
}

// SAFETY: only `Place::Callers` is not `Send` by itself, and its pointer is valid in all threads,
// as `Memory::callers` demands. Nothing here reads or writes through it.
unsafe impl Send for Memory {}
// SAFETY: as above; through `&Memory` one learns only addresses and the descriptor.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zero-filled memory of which only this process and those it hands it to know. It wants to be
    /// [sealed](Self::seal) before it is handed on.
    pub(crate) fn anonymous(len: usize) -> Result<Memory, OpenError> {
        let fd = file::memfd_create().named("memfd_create")?;
        file::allocate(fd.as_fd(), len).named(ALLOCATE)?;
        Memory::from_memfd(fd.into())
    }

    /// Maps the whole of a file that has, or will have, a name, and keeps the lock on it.
    pub(crate) fn from_file(file: File) -> Result<Memory, OpenError> {
        // A mapping holds on to the open file that it was made from, and so to its lock. Made from
        // another one, it can outlast our use of the segment and not count as use.
        let unlocked = file::reopen(file.as_fd()).named(REOPEN)?;
        let mapping = map(&unlocked)?;
        let mark = Mark::new();
        // Without it, leaving does not wait for copies of the descriptor: that is all.
        file::mark(file.as_fd(), mark.0).ok();
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None, mark: Some(mark) })
    }

    fn from_memfd(file: File) -> Result<Memory, OpenError> {
        let mapping = map(&file)?;
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None, mark: None })
    }

    /// Maps what a descriptor from elsewhere stands for, if its length can be relied on.
    ///
    /// # Errors
    /// - [`OpenError::NotSealed`] if it is neither a memfd whose length is sealed, nor a file with
    ///   a name that lives in memory.
    /// - [`OpenError::OtherUser`] if it has a name and belongs to another user, who could shorten
    ///   it. (This user could as well, but may do so anyway.)
    /// - [`OpenError::NotFound`] if it has just lost its name.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Memory, OpenError> {
        let file = File::from(fd);
        let metadata = file.metadata().named(FSTAT)?;
        if !metadata.is_file() {
            return Err(OpenError::NotSealed);
        }
        // Seals alone do not say so: files of huge pages have them as well, and a sender can take
        // back the memory of those.
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
        // The descriptor may be a copy of another user's, who must not have to wait for our end.
        let own = file::reopen(file.as_fd()).named(REOPEN)?;
        // Once this process has the lock, nobody takes the name away; a process that holds it alone
        // now may do so.
        file::share_lock(own.as_fd()).named(FLOCK)?;
        drop(file);
        if own.metadata().named(FSTAT)?.nlink() == 0 {
            return Err(OpenError::NotFound);
        }
        Memory::from_file(own)
    }

    /// Memory that the caller has and keeps.
    ///
    /// # Safety
    /// `len` bytes at `base` can be read and written, by any thread, until this is dropped.
    pub(crate) unsafe fn callers(base: NonNull<u8>, len: usize) -> Memory {
        Memory { place: Place::Callers { base, len }, file: None, path: None, mark: None }
    }

    /// Fixes the length of anonymous memory for ever.
    pub(crate) fn seal(&self) -> Result<(), OpenError> {
        match self.fd() {
            Some(fd) => file::seal(fd).named("sealing the memory"),
            None => Ok(()),
        }
    }

    /// Whether the caller gave the memory.
    pub(crate) fn is_callers(&self) -> bool {
        matches!(self.place, Place::Callers { .. })
    }

    /// The first byte. Mappings are aligned to a page.
    pub(crate) fn base(&self) -> *mut u8 {
        match &self.place {
            Place::Mapped(mapping) => mapping.as_mut_ptr(),
            Place::Callers { base, .. } => base.as_ptr(),
        }
    }

    /// The length in bytes: for a mapping that of its file, else what the caller said.
    pub(crate) fn len(&self) -> usize {
        match &self.place {
            Place::Mapped(mapping) => mapping.len(),
            Place::Callers { len, .. } => *len,
        }
    }

    /// The file, unless the caller gave the memory or the file was [taken](Self::take_file).
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    /// A descriptor to be given to another process.
    ///
    /// For memory with a name it is an open file of its own, with the shared lock: it keeps the
    /// segment in use until the other process has opened it, and longer than this process does.
    pub(crate) fn clone_fd(&self) -> io::Result<OwnedFd> {
        let Some(file) = &self.file else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the memory is the caller's"));
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

    /// Parts with the file. The mapping stays: it does not need it.
    pub(crate) fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// The file's name, if it is known.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The mark on the file, if it has, or will have, a name.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// The same memory, with the name of its file.
    pub(crate) fn at_path(self, path: PathBuf) -> Memory {
        Memory { path: Some(path), ..self }
    }
}

/// Maps the whole file. The length is asked for here, so that the mapping cannot exceed the file.
fn map(file: &File) -> Result<MmapRaw, OpenError> {
    let len = file.metadata().named(FSTAT)?.len();
    let len = usize::try_from(len).map_err(|_| OpenError::Corrupt)?;
    if len < HEADER {
        return Err(OpenError::NotOurs);
    }
    MmapOptions::new().len(len).map_raw(file).named("mmap")
}
