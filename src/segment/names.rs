//! Named segments: files in a directory of the user's own, and the rules by which they go.
//!
//! **Whole or absent.** A segment is made in a file without a name, and linked in when it is
//! complete. Nobody ever finds half of one.
//!
//! **In use** is a segment on whose file somebody holds the shared lock (`flock`). The lock belongs
//! to the open file, so it lasts until the last process that has a copy of the descriptor, by fork
//! or otherwise, closed it or died. A mapping alone does not hold it.
//!
//! Invariants:
//! - N1: the creator holds the shared lock before the file gets its name.
//! - N2: a name is taken away only by who holds the exclusive lock of the very file that it names.
//!   Between looking and unlinking, the name therefore cannot come to mean another file.
//! - N3: who has the shared lock, and *then* sees that the name still means that file, keeps both:
//!   by N2 nobody can take the name away.
//! - N4: the exclusive lock is only ever tried for, never waited for, and given up explicitly, so
//!   that a process forked meanwhile does not keep it.
//!
//! From N2 and N4: who finds the exclusive lock held waits for the shared one, and looks again.
//! Then the file has either lost its name, or is in use.
use crate::error::OpenError;
use crate::segment::header::{self, HEADER, Lifetime};
use crate::segment::memory::Memory;
use crate::sys::file;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const MAX_NAME: usize = 200;

/// Makes a segment of `len` bytes: `fill` writes it, then it gets its name.
pub(crate) fn create(
    name: &str,
    len: usize,
    fill: impl FnOnce(&Memory) -> Result<(), OpenError>,
) -> Result<Memory, OpenError> {
    check_name(name)?;
    let dir = directory();
    make_directory(&dir)?;
    let path = dir.join(name);
    // Looked at early as well, so that a name in use costs no memory.
    if !vacate(&path)? {
        return Err(OpenError::AlreadyExists);
    }
    let file = file::unnamed_file_in(&dir).map_err(OpenError::Io)?;
    file::allocate(file.as_fd(), len).map_err(OpenError::Io)?;
    // Keeps N1.
    file::share_lock(file.as_fd())?;
    let memory = Memory::from_file(file)?;
    fill(&memory)?;
    let fd = memory.fd().ok_or(OpenError::Corrupt)?;
    loop {
        match file::link(fd, &dir, name) {
            Ok(()) => return Ok(memory.at_path(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !vacate(&path)? {
                    return Err(OpenError::AlreadyExists);
                }
            }
            Err(error) => return Err(OpenError::Io(error)),
        }
    }
}

/// Opens a segment that is in use, or is persistent. What is in it is still to be checked.
pub(crate) fn open(name: &str) -> Result<Memory, OpenError> {
    check_name(name)?;
    let dir = directory();
    check_directory(&dir)?;
    let path = dir.join(name);
    loop {
        if !is_ours(&fs::symlink_metadata(&path)?) {
            return Err(OpenError::PermissionDenied);
        }
        let file = file::open_nofollow(&path)?;
        // The path may have changed since it was looked at, the file cannot.
        if !is_ours(&file.metadata()?) {
            return Err(OpenError::PermissionDenied);
        }
        if unlink_unheld(&path, &file, is_until_last)? {
            return Err(OpenError::NotFound);
        }
        file::share_lock(file.as_fd())?;
        // By N3. If the name is gone or means another file, the last user has just left.
        if means(&path, &file)? {
            return Ok(Memory::from_file(file)?.at_path(path));
        }
    }
}

/// Ends this process's use of a segment: closes the file, and takes the name away if no other
/// process uses it and it is not to stay. Does nothing for memory without a name.
///
/// The mapping remains until `memory` is dropped. Whatever goes wrong leaves a segment in use by
/// nobody, which the next `open`, `create` or `reap` clears away.
pub(crate) fn leave(memory: &mut Memory) {
    let Some(file) = memory.take_file() else { return };
    let Ok(metadata) = file.metadata() else { return };
    if metadata.nlink() == 0 {
        return;
    }
    let path = match memory.path() {
        Some(path) => path.into(),
        None => match find(&metadata) {
            Some(path) => path,
            None => return,
        },
    };
    // Our own lock would be in the way of the exclusive one.
    drop(file);
    let Ok(file) = file::open_nofollow(&path) else { return };
    // On failure the segment is left to who comes next, as said above.
    unlink_unheld(&path, &file, is_until_last).unwrap_or_default();
}

/// Removes the named segments of this user that no living process uses any more.
///
/// These are what [`Lifetime::UntilLast`] processes leave behind when all of them are killed.
/// There is rarely a need to call this: opening or creating a segment of the same name clears it
/// away as well. [Persistent](Lifetime::Persistent) segments stay. So does what others use, however
/// long they have not touched it. Returns how many segments it removed.
///
/// # Errors
/// The directory `/dev/shm/outlast-<user id>` exists but cannot be read, or others may write to it.
///
/// # Examples
/// ```
/// let removed = outlast::reap()?;
/// assert_eq!(outlast::reap()?, 0, "after {removed} there are no more");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn reap() -> io::Result<usize> {
    let dir = directory();
    match check_directory(&dir) {
        Ok(()) => {}
        Err(OpenError::NotFound) => return Ok(0),
        Err(OpenError::Io(error)) => return Err(error),
        Err(_) => return Err(io::ErrorKind::PermissionDenied.into()),
    }
    let mut removed = 0;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        // Files come and go meanwhile, and one that resists is no reason to spare the others.
        if reap_one(&path).unwrap_or_default() {
            removed += 1;
        }
    }
    Ok(removed)
}

fn reap_one(path: &Path) -> io::Result<bool> {
    if !is_ours(&fs::symlink_metadata(path)?) {
        return Ok(false);
    }
    let file = file::open_nofollow(path)?;
    // Too short for a segment: nobody made it whole and linked it in.
    unlink_unheld(path, &file, |file| {
        Ok(file.metadata()?.len() < HEADER as u64 || is_until_last(file)?)
    })
}

/// Makes sure that the name can be linked, if nobody uses it: false if somebody does.
fn vacate(path: &Path) -> Result<bool, OpenError> {
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if !is_ours(&metadata) => return Ok(false),
        Ok(_) => file::open_nofollow(path),
        Err(error) => Err(error),
    };
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    if unlink_unheld(path, &file, is_until_last)? {
        return Ok(true);
    }
    // Somebody holds it alone, perhaps, and is about to unlink it: wait until that is settled.
    file::share_lock(file.as_fd())?;
    if !means(path, &file)? {
        return Ok(true);
    }
    // Our lock may just have kept the last user from unlinking it, so that is up to us now.
    Ok(unlink_unheld(path, &file, is_until_last)?)
}

/// Unlinks a file of which `garbage` says so, if nobody uses it and `path` still means it. Tells
/// whether it did. This open file has no lock afterwards.
fn unlink_unheld(
    path: &Path,
    file: &File,
    garbage: impl FnOnce(&File) -> io::Result<bool>,
) -> io::Result<bool> {
    if !file::try_exclusive(file.as_fd())? {
        return Ok(false);
    }
    let unlink = || {
        // Keeps N2.
        let ours = garbage(file)? && means(path, file)?;
        if ours {
            fs::remove_file(path)?;
        }
        Ok(ours)
    };
    let unlinked = unlink();
    // Keeps N4, whatever happened.
    file::unlock(file.as_fd())?;
    unlinked
}

/// The name of a file of which one has the descriptor only.
fn find(metadata: &Metadata) -> Option<PathBuf> {
    let dir = directory();
    check_directory(&dir).ok()?;
    // Same directory, same file system: the inode says it all.
    let entries = fs::read_dir(&dir).ok()?.filter_map(Result::ok);
    entries.into_iter().find(|entry| entry.ino() == metadata.ino()).map(|entry| entry.path())
}

fn is_until_last(file: &File) -> io::Result<bool> {
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(header::lifetime_of(bytes) == Some(Lifetime::UntilLast)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the path names this very file.
fn means(path: &Path, file: &File) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(identity(&metadata) == identity(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn is_ours(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.uid() == file::effective_uid()
}

fn check_name(name: &str) -> Result<(), OpenError> {
    let length_fits = (1..=MAX_NAME).contains(&name.len());
    if length_fits && !name.starts_with('.') && !name.contains(['/', '\0']) {
        Ok(())
    } else {
        Err(OpenError::InvalidName)
    }
}

fn directory() -> PathBuf {
    PathBuf::from(format!("/dev/shm/outlast-{}", file::effective_uid()))
}

fn make_directory(dir: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(OpenError::Io(error)),
    }
    check_directory(dir)
}

/// Anyone may make a file in `/dev/shm`, also one with the name of our directory.
fn check_directory(dir: &Path) -> Result<(), OpenError> {
    let metadata = fs::symlink_metadata(dir)?;
    let private = metadata.mode() & 0o077 == 0 && metadata.uid() == file::effective_uid();
    if metadata.is_dir() && private { Ok(()) } else { Err(OpenError::PermissionDenied) }
}

/// Removes the name of a segment; for a persistent one, the only end there is.
///
/// Whoever has it open goes on using it, like a file that was deleted.
///
/// # Errors
/// [`OpenError::NotFound`], [`OpenError::InvalidName`], [`OpenError::PermissionDenied`].
pub fn remove(name: &str) -> Result<(), OpenError> {
    check_name(name)?;
    let dir = directory();
    check_directory(&dir)?;
    Ok(fs::remove_file(dir.join(name))?)
}
