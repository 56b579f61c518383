//! Named segments: files in a directory that belongs to the user, and the rules for their removal.
//!
//! - **Complete or absent.** A segment is created in a file without a name. The file is linked to
//!   its name when the segment is complete, so no process finds an incomplete segment.
//! - **In use.** A segment is in use while a process holds the shared lock (`flock`) on its file.
//!   The lock belongs to the open file. So it lasts until each process that has a copy of the
//!   descriptor, by fork or otherwise, has closed it or died. A mapping alone does not hold the
//!   lock.
//! - **Copies.** Between `fork` and `exec`, a child has copies of all descriptors. So it keeps
//!   segments in use that its parent has left. For this reason each open file has a [`Mark`]. A
//!   process that leaves waits up to 100 ms while a copy of its descriptor is open. `create` and
//!   [`reap`] wait in the same way for descriptors of dead processes. Without copies no call waits.
//!
//! # Invariants
//! - N1. The creator holds the shared lock before the file gets its name.
//! - N2. Only a process that holds the exclusive lock of a file removes the name of that file. So
//!   the name cannot be given to another file between the check and the removal.
//! - N3. A process that has the shared lock and *then* sees that the name still belongs to the file
//!   keeps both. By N2 no other process can remove the name.
//! - N4. No process waits for the exclusive lock. The lock is released explicitly, so that a child
//!   that was forked in the meantime does not keep it.
//! - N5. An open file that holds the shared lock reaches other processes only by `fork`. A
//!   descriptor that is passed in another way is an open file of its own, so the process that
//!   passed it never has to wait for it.
//!
//! A consequence of N2 and N4: a process that finds the exclusive lock held waits for the shared
//! lock and checks again. Then either the file has lost its name, or it is in use.
use crate::error::OpenError;
use crate::segment::header::{self, HEADER, Lifetime};
use crate::segment::memory::{ALLOCATE, FLOCK, FSTAT, Mark, Memory};
use crate::sys::file::{self, Named};
use crate::sys::{hooks, thread};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MAX_NAME: usize = 200;
/// How long a process waits until copies of a descriptor are closed.
const PATIENCE: Duration = Duration::from_millis(100);

/// Allocates `len` bytes for a segment, which gets its name by [`publish`].
pub(crate) fn prepare(name: &str, len: usize) -> Result<Memory, OpenError> {
    check_name(name)?;
    let dir = directory();
    make_directory(&dir)?;
    let path = dir.join(name);
    // This early check saves the allocation if the name is in use.
    if !free_name(&path)? {
        return Err(OpenError::AlreadyExists);
    }
    let file = file::unnamed_file_in(&dir).named("opening a file without a name (O_TMPFILE)")?;
    file::allocate(file.as_fd(), len).named(ALLOCATE)?;
    // Keeps N1.
    file::share_lock(file.as_fd()).named(FLOCK)?;
    Ok(Memory::from_file(file)?.at_path(path))
}

/// Gives a complete segment, in memory from [`prepare`], its name.
pub(crate) fn publish(memory: &Memory) -> Result<(), OpenError> {
    let (Some(fd), Some(path)) = (memory.fd(), memory.path()) else {
        return Err(OpenError::Corrupt);
    };
    loop {
        match file::link(fd, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !free_name(path)? {
                    return Err(OpenError::AlreadyExists);
                }
            }
            linked => return linked.named("naming the file through /proc (linkat)"),
        }
    }
}

/// Opens a segment that is in use or persistent. The caller has to check its content.
pub(crate) fn open(name: &str) -> Result<Memory, OpenError> {
    check_name(name)?;
    let dir = directory();
    check_directory(&dir)?;
    let path = dir.join(name);
    loop {
        let found = |error| lookup_error(&path, error);
        check_owner(&path, &fs::symlink_metadata(&path).map_err(found)?)?;
        let file = file::open_nofollow(&path).map_err(found)?;
        // The path may have changed since the first check. The open file cannot change.
        check_owner(&path, &file.metadata().named(FSTAT)?)?;
        if unlink_unheld(&path, &file, is_until_last)? {
            return Err(OpenError::NotFound);
        }
        file::share_lock(file.as_fd()).named(FLOCK)?;
        // By N3. If the name is gone or belongs to another file, the last user has just left.
        if is_name_of(&path, &file)? {
            return Ok(Memory::from_file(file)?.at_path(path));
        }
    }
}

/// Ends the use of a segment by this process. Closes the file, and removes the name if no other
/// process uses the segment and it is not persistent. Does nothing for memory without a name.
///
/// The memory stays mapped until `memory` is dropped. If an error occurs, the segment stays without
/// users, and the next `open`, `create` or `reap` removes it.
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
    // The shared lock of this process would prevent the exclusive one.
    drop(file);
    let Ok(file) = file::open_nofollow(&path) else { return };
    // In a forked child the mark is that of the parent, which may still use the segment.
    let mark = memory.mark().filter(|mark| mark.pid() == std::process::id());
    let is_copied = || {
        let number = mark.map(|mark| mark.0);
        number.is_some() && file::marked(file.as_fd(), number).is_ok_and(|mark| mark.is_some())
    };
    let give_up_at = Instant::now() + PATIENCE;
    // On failure the segment stays, as the docs of this function say.
    unlink_when_left(&path, &file, is_until_last, is_copied, give_up_at).unwrap_or_default();
}

/// Removes the named segments of this user that no living process uses, and returns their number.
///
/// A segment with [`Lifetime::UntilLast`] is left behind if all processes that use it are killed. A
/// program rarely has to call this function: opening or creating a segment of the same name removes
/// it as well. [Persistent](Lifetime::Persistent) segments stay. So do segments that a process has
/// open, even if it does not use them.
///
/// # Errors
/// If the directory `/dev/shm/outlast-<user id>` exists but cannot be read, or if other users have
/// access to it.
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
        Err(error) => {
            let kind = match &error {
                OpenError::Io { source, .. } => source.kind(),
                _ => io::ErrorKind::PermissionDenied,
            };
            return Err(io::Error::new(kind, error));
        }
    }
    let give_up_at = Instant::now() + PATIENCE;
    let mut removed = 0;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        // Files may come and go at the same time. An error of one file does not matter for the
        // others.
        if reap_one(&path, give_up_at).unwrap_or_default() {
            removed += 1;
        }
    }
    Ok(removed)
}

fn reap_one(path: &Path, give_up_at: Instant) -> Result<bool, OpenError> {
    let found = |error| lookup_error(path, error);
    check_owner(path, &fs::symlink_metadata(path).map_err(found)?)?;
    let file = file::open_nofollow(path).map_err(found)?;
    // A file that is too short is no complete segment.
    let is_garbage =
        |file: &File| Ok(file.metadata()?.len() < HEADER as u64 || is_until_last(file)?);
    unlink_when_left(path, &file, is_garbage, || is_orphaned(&file), give_up_at)
}

/// Frees the name, unless a process uses its segment. Returns whether the name is free.
fn free_name(path: &Path) -> Result<bool, OpenError> {
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if check_owner(path, &metadata).is_err() => return Ok(false),
        Ok(_) => file::open_nofollow(path),
        Err(error) => Err(error),
    };
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(lookup_error(path, error)),
    };
    let give_up_at = Instant::now() + PATIENCE;
    if unlink_when_left(path, &file, is_until_last, || is_orphaned(&file), give_up_at)? {
        return Ok(true);
    }
    // Another process may hold the exclusive lock, and be about to unlink the file. This waits for
    // that process.
    file::share_lock(file.as_fd()).named(FLOCK)?;
    if !is_name_of(path, &file)? {
        return Ok(true);
    }
    // This lock may have prevented the last user from unlinking the file. Then this process does
    // it.
    unlink_unheld(path, &file, is_until_last)
}

/// Returns whether the file is open by a descriptor of a process that has died. A child of that
/// process has the copy. It will close it soon, or it is the last user of the segment.
fn is_orphaned(file: &File) -> bool {
    let mark = file::marked(file.as_fd(), None).unwrap_or_default();
    mark.is_some_and(|number| !thread::exists(Mark(number).pid()))
}

/// Like [`unlink_unheld`], but tries again until `give_up_at` while a process uses the file and
/// `is_copied` returns `true`, which means that this use may end soon.
fn unlink_when_left(
    path: &Path,
    file: &File,
    garbage: impl Fn(&File) -> io::Result<bool>,
    is_copied: impl Fn() -> bool,
    give_up_at: Instant,
) -> Result<bool, OpenError> {
    loop {
        if unlink_unheld(path, file, &garbage)? {
            return Ok(true);
        }
        if !is_copied() || Instant::now() >= give_up_at {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Unlinks the file if no process uses it, `garbage` returns `true`, and `path` still belongs to
/// it. Returns whether it did. This open file has no lock afterwards.
fn unlink_unheld(
    path: &Path,
    file: &File,
    garbage: impl FnOnce(&File) -> io::Result<bool>,
) -> Result<bool, OpenError> {
    hooks::pause("names: about to lock");
    if !file::try_exclusive(file.as_fd()).named(FLOCK)? {
        return Ok(false);
    }
    let unlink = || {
        // Keeps N2.
        let ours = garbage(file).named("reading the segment's header")? && is_name_of(path, file)?;
        if ours {
            fs::remove_file(path).map_err(|error| lookup_error(path, error))?;
        }
        Ok(ours)
    };
    let unlinked = unlink();
    // Keeps N4, whatever happened.
    file::unlock(file.as_fd()).named(FLOCK)?;
    unlinked
}

/// Finds the name of an open file.
fn find(metadata: &Metadata) -> Option<PathBuf> {
    let dir = directory();
    check_directory(&dir).ok()?;
    // All files of one directory are on one file system, so the inode number is enough.
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

/// Returns whether the path is the name of this file.
fn is_name_of(path: &Path, file: &File) -> Result<bool, OpenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(identity(&metadata) == identity(&file.metadata().named(FSTAT)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(lookup_error(path, error)),
    }
}

/// Converts an error of looking up a name. Only here does "no such file" become "no such segment".
fn lookup_error(path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound,
        io::ErrorKind::PermissionDenied => denied(path, "the system denies access".into()),
        _ => OpenError::Io { call: "looking up the segment's file", source: error },
    }
}

fn denied(path: &Path, problem: String) -> OpenError {
    OpenError::PermissionDenied { path: path.into(), problem }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
    let (owner, me) = (metadata.uid(), file::effective_uid());
    if !metadata.is_file() {
        return Err(denied(path, "this is not a regular file, so it cannot be a segment".into()));
    }
    if owner != me {
        return Err(denied(path, format!("the file belongs to user {owner}, not to user {me}")));
    }
    Ok(())
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
        Err(source) => {
            return Err(OpenError::Io { call: "creating the directory of segments", source });
        }
    }
    check_directory(dir)
}

/// Checks the owner and the mode of the directory. Every user can create a file in `/dev/shm`, and
/// it can have the name of this directory.
fn check_directory(dir: &Path) -> Result<(), OpenError> {
    let metadata = fs::symlink_metadata(dir).map_err(|error| lookup_error(dir, error))?;
    let (owner, me) = (metadata.uid(), file::effective_uid());
    let problem = if owner != me {
        format!(
            "this belongs to user {owner}, and user {me} needs a directory of that name for named \
             segments: user {owner} or root can remove it"
        )
    } else if !metadata.is_dir() {
        "this is not a directory, and named segments need one of that name: remove it".into()
    } else if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        format!("other users have access to the directory (mode {mode:03o}): `chmod 700` it")
    } else {
        return Ok(());
    };
    Err(denied(dir, problem))
}

/// Removes the name of a segment. A persistent segment ends only in this way.
///
/// Processes that have the segment open can still use it, as with a file that is deleted.
///
/// # Errors
/// [`OpenError::NotFound`], [`OpenError::InvalidName`], [`OpenError::PermissionDenied`].
pub fn remove(name: &str) -> Result<(), OpenError> {
    check_name(name)?;
    let dir = directory();
    check_directory(&dir)?;
    let path = dir.join(name);
    fs::remove_file(&path).map_err(|error| lookup_error(&path, error))
}
