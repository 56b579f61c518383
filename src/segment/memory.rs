//! Where a segment's bytes are: mapped from a file in memory, or given by the caller.
#![expect(unsafe_code, reason = "shares a raw pointer between threads")]
use crate::error::OpenError;
use crate::segment::header::HEADER;
use crate::sys::file;
use core::ptr::NonNull;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
        let fd = file::memfd_create().map_err(OpenError::Io)?;
        file::allocate(fd.as_fd(), len).map_err(OpenError::Io)?;
        Memory::from_memfd(fd.into())
    }

    /// Maps the whole of a file that has, or will have, a name, and keeps the lock on it.
    pub(crate) fn from_file(file: File) -> Result<Memory, OpenError> {
        // A mapping holds on to the open file that it was made from, and so to its lock. Made from
        // another one, it can outlast our use of the segment and not count as use.
        let unlocked = file::reopen(file.as_fd())?;
        let mapping = map(&unlocked)?;
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None })
    }

    fn from_memfd(file: File) -> Result<Memory, OpenError> {
        let mapping = map(&file)?;
        Ok(Memory { place: Place::Mapped(mapping), file: Some(file), path: None })
    }

    /// Maps what a descriptor from elsewhere stands for, if its length can be relied on.
    ///
    /// # Errors
    /// [`OpenError::NotSealed`] if it is neither a memfd whose length is sealed, nor a file with a
    /// name that lives in memory and belongs to this user: such a file could be shortened, but only
    /// by those who may anyway. [`OpenError::NotFound`] if it has just lost its name.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Memory, OpenError> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(OpenError::NotSealed);
        }
        if metadata.nlink() == 0 {
            if !file::is_sealed(file.as_fd())? {
                return Err(OpenError::NotSealed);
            }
            return Memory::from_memfd(file);
        }
        let in_memory = file::seals(file.as_fd())?.is_some();
        if !in_memory || metadata.uid() != file::effective_uid() {
            return Err(OpenError::NotSealed);
        }
        // A copy of a user's descriptor has the lock already, one opened afresh has not. Once we
        // have it nobody takes the name away, and who holds it alone now may do so.
        file::share_lock(file.as_fd())?;
        if file.metadata()?.nlink() == 0 {
            return Err(OpenError::NotFound);
        }
        Memory::from_file(file)
    }

    /// Memory that the caller has and keeps.
    ///
    /// # Safety
    /// `len` bytes at `base` can be read and written, by any thread, until this is dropped.
    pub(crate) unsafe fn callers(base: NonNull<u8>, len: usize) -> Memory {
        Memory { place: Place::Callers { base, len }, file: None, path: None }
    }

    /// Fixes the length of anonymous memory for ever.
    pub(crate) fn seal(&self) -> Result<(), OpenError> {
        match self.fd() {
            Some(fd) => Ok(file::seal(fd)?),
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

    /// Parts with the file. The mapping stays: it does not need it.
    pub(crate) fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// The file's name, if it is known.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The same memory, with the name of its file.
    pub(crate) fn at_path(self, path: PathBuf) -> Memory {
        Memory { path: Some(path), ..self }
    }
}

/// Maps the whole file. The length is asked for here, so that the mapping cannot exceed the file.
fn map(file: &File) -> Result<MmapRaw, OpenError> {
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| OpenError::Corrupt)?;
    if len < HEADER {
        return Err(OpenError::NotOurs);
    }
    Ok(MmapOptions::new().len(len).map_raw(file)?)
}
