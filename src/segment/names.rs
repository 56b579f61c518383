//! Named segments: files in a directory of the user's own, and the rules by which they go.
//!
//! **Whole or absent.** A segment is made in a file without a name, and linked in when it is
//! complete. Nobody ever finds half of one.
//!
//! **In use** is a segment on whose file somebody holds the shared lock (`flock`). The lock belongs
//! to the open file, so it lasts until the last process that has a copy of the descriptor, by fork
//! or otherwise, closed it or died. A mapping alone does not hold it.
//!
//! **Copies.** A child between `fork` and `exec` has copies of all descriptors for a moment, and so
//! keeps segments in use that its parent has left. Each open file therefore bears a [`Mark`]. A
//! leaving process waits up to 100 ms while a copy of its descriptor is open. `create` and [`reap`]
//! wait in the same way for descriptors of dead processes. Without copies no call waits.
//!
//! Invariants:
//! - N1: the creator holds the shared lock before the file gets its name.
//! - N2: a name is taken away only by who holds the exclusive lock of the very file that it names.
//!   Between looking and unlinking, the name therefore cannot come to mean another file.
//! - N3: who has the shared lock, and *then* sees that the name still means that file, keeps both:
//!   by N2 nobody can take the name away.
//! - N4: the exclusive lock is only ever tried for, never waited for, and given up explicitly, so
//!   that a process forked meanwhile does not keep it.
//! - N5: an open file that holds the shared lock is given to other processes by `fork` only.
//!   Descriptors that are handed on otherwise are open files of their own, so they never make the
//!   process that handed them on wait.
//!
//! From N2 and N4: who finds the exclusive lock held waits for the shared one, and looks again.
//! Then the file has either lost its name, or is in use.
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
/// How long a process waits for copies of a descriptor to be closed.
const PATIENCE: Duration = Duration::from_millis(100);

/// Makes memory of `len` bytes for a segment that gets its name by [`publish`].
pub(crate) fn prepare(name: &str, len: usize) -> Result<Memory, OpenError> {
    check_name(name)?;
    let dir = directory();
    make_directory(&dir)?;
    let path = dir.join(name);
    // Looked at early as well, so that a name in use costs no memory.
    if !vacate(&path)? {
        return Err(OpenError::AlreadyExists);
    }
    let file = file::unnamed_file_in(&dir).named("opening a file without a name (O_TMPFILE)")?;
    file::allocate(file.as_fd(), len).named(ALLOCATE)?;
    // Keeps N1.
    file::share_lock(file.as_fd()).named(FLOCK)?;
    Ok(Memory::from_file(file)?.at_path(path))
}

/// Gives [prepared](prepare) memory, in which the segment is complete, its name.
pub(crate) fn publish(memory: &Memory) -> Result<(), OpenError> {
    let (Some(fd), Some(path)) = (memory.fd(), memory.path()) else {
        return Err(OpenError::Corrupt);
    };
    loop {
        match file::link(fd, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !vacate(path)? {
                    return Err(OpenError::AlreadyExists);
                }
            }
            linked => return linked.named("naming the file through /proc (linkat)"),
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
        let found = |error| lookup_error(&path, error);
        check_owner(&path, &fs::symlink_metadata(&path).map_err(found)?)?;
        let file = file::open_nofollow(&path).map_err(found)?;
        // The path may have changed since it was looked at, the file cannot.
        check_owner(&path, &file.metadata().named(FSTAT)?)?;
        if unlink_unheld(&path, &file, is_until_last)? {
            return Err(OpenError::NotFound);
        }
        file::share_lock(file.as_fd()).named(FLOCK)?;
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
    // In a forked child the mark is its parent's, which may go on using the segment.
    let mark = memory.mark().filter(|mark| mark.pid() == std::process::id());
    let is_copied = || {
        let number = mark.map(|mark| mark.0);
        number.is_some() && file::marked(file.as_fd(), number).is_ok_and(|mark| mark.is_some())
    };
    let give_up_at = Instant::now() + PATIENCE;
    // On failure the segment is left to who comes next, as said above.
    unlink_when_left(&path, &file, is_until_last, is_copied, give_up_at).unwrap_or_default();
}

/// Removes the named segments of this user that no living process uses any more.
///
/// These are what [`Lifetime::UntilLast`] processes leave behind when all of them are killed.
/// There is rarely a need to call this: opening or creating a segment of the same name clears it
/// away as well. [Persistent](Lifetime::Persistent) segments stay. So does what others use, however
/// long they have not touched it. Returns how many segments it removed.
///
/// # Errors
/// The directory `/dev/shm/outlast-<user id>` exists but cannot be read, or others have access to
/// it.
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
        // Files come and go meanwhile, and one that resists is no reason to spare the others.
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
    // Too short for a segment: nobody made it whole and linked it in.
    let is_garbage =
        |file: &File| Ok(file.metadata()?.len() < HEADER as u64 || is_until_last(file)?);
    unlink_when_left(path, &file, is_garbage, || is_orphaned(&file), give_up_at)
}

/// Makes sure that the name can be linked, if nobody uses it: false if somebody does.
fn vacate(path: &Path) -> Result<bool, OpenError> {
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
    // Somebody holds it alone, perhaps, and is about to unlink it: wait until that is settled.
    file::share_lock(file.as_fd()).named(FLOCK)?;
    if !means(path, &file)? {
        return Ok(true);
    }
    // Our lock may just have kept the last user from unlinking it, so that is up to us now.
    unlink_unheld(path, &file, is_until_last)
}

/// Whether a process that has died still has the file open: by a copy of a descriptor, which a
/// child of that process will close soon, or which is all that is left of the segment's users.
fn is_orphaned(file: &File) -> bool {
    let mark = file::marked(file.as_fd(), None).unwrap_or_default();
    mark.is_some_and(|number| !thread::exists(Mark(number).pid()))
}

/// Like [`unlink_unheld`], but tries again until `give_up_at` while somebody uses the file and
/// `is_copied` says that this may be over soon.
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

/// Unlinks a file of which `garbage` says so, if nobody uses it and `path` still means it. Tells
/// whether it did. This open file has no lock afterwards.
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
        let ours = garbage(file).named("reading the segment's header")? && means(path, file)?;
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
fn means(path: &Path, file: &File) -> Result<bool, OpenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(identity(&metadata) == identity(&file.metadata().named(FSTAT)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(lookup_error(path, error)),
    }
}

/// What it means that a name cannot be looked up. The only place that makes "no such segment" of
/// the system's "no such file".
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
        return Err(denied(path, "this is not a regular file, so it is no segment".into()));
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

/// Anyone may make a file in `/dev/shm`, also one with the name of our directory.
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
    let path = dir.join(name);
    fs::remove_file(&path).map_err(|error| lookup_error(&path, error))
}
