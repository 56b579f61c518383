//! Files in memory: creating and allocating them, their seals, their locks and their owners.
#![expect(unsafe_code, reason = "calls the C library")]
use super::signal_mask::{Mask, is_pending, take};
use crate::error::OpenError;
use core::ffi::c_int;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A file with both seals keeps its length for ever.
const LENGTH_SEALS: c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// Adds the name of the system call to an error.
///
/// There is no conversion by `?`, because the meaning of an error number depends on the call. "No
/// such file" is [`OpenError::NotFound`] only if the name of a segment is looked up.
pub(crate) trait Named<T> {
    /// Converts the error to an [`OpenError::Io`].
    fn named(self, call: &'static str) -> Result<T, OpenError>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, call: &'static str) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Io { call, source })
    }
}

/// Converts a result of -1 to the last error of the C library.
pub(super) fn result<T: PartialEq + From<i8>>(returned: T) -> io::Result<T> {
    if returned == T::from(-1) { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Calls a function, and repeats the call if a signal interrupts it.
pub(super) fn uninterrupted<T: PartialEq + From<i8>>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        match result(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Creates an empty file in memory that has no name and can be sealed.
pub(crate) fn memfd_create() -> io::Result<OwnedFd> {
    let create = |flags| {
        // SAFETY: the name is a C string, and the call keeps no pointer to it.
        result(unsafe { libc::memfd_create(c"outlast".as_ptr(), flags) })
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let fd = match create(flags | libc::MFD_NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        other => other?,
    };
    // SAFETY: the descriptor has just been opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Extends the file to `len` zero bytes, and allocates memory for each of them. If it had a hole, a
/// thread that touches the hole when memory is short would get a `SIGBUS`.
///
/// Every call that extends a file goes through [`growing`], as this one does.
pub(crate) fn allocate(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    /// Signals are blocked, so only a process that is being stopped or killed is interrupted.
    const MOST_INTERRUPTIONS: u32 = 100;
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let mut interruptions = 0;
    growing(|| {
        loop {
            // SAFETY: takes no pointers.
            match unsafe { libc::posix_fallocate(fd.as_raw_fd(), 0, len) } {
                0 => return Ok(()),
                libc::EINTR if interruptions < MOST_INTERRUPTIONS => interruptions += 1,
                // This function returns the error and does not set `errno`.
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    })
}

/// Runs `grow`, which extends a file and must not panic, while signals are blocked in this thread.
///
/// - Beyond the limit of the process (`RLIMIT_FSIZE`) the call fails with EFBIG. The kernel also
///   sends the signal SIGXFSZ, which ends the process unless it is handled. This function removes
///   the signal: the error is enough.
/// - Before Linux 6.7, the allocation of a file in memory starts again after every signal. With a
///   timer it might never end.
pub(crate) fn growing<R>(grow: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    /// Signals of errors in the program itself. If they are blocked, they end the process.
    const NEVER_HELD: [c_int; 6] =
        [libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];
    let before = Mask::all_but(&NEVER_HELD).set();
    let was_pending = is_pending(libc::SIGXFSZ);
    let grown = grow();
    let is_too_long = |error: &io::Error| error.raw_os_error() == Some(libc::EFBIG) && !was_pending;
    if grown.as_ref().is_err_and(is_too_long) {
        take(libc::SIGXFSZ);
    }
    before.set();
    grown
}

/// Seals the length of the file, and the seals themselves.
pub(crate) fn seal(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, LENGTH_SEALS | libc::F_SEAL_SEAL)
}

pub(super) fn add_seals(fd: BorrowedFd<'_>, seals: c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(())
}

/// Returns the seals of the file, or `None` if the file cannot have seals, because it is not in
/// memory.
pub(crate) fn seals(fd: BorrowedFd<'_>) -> io::Result<Option<c_int>> {
    // SAFETY: takes no pointers.
    match result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        other => other.map(Some),
    }
}

/// Returns whether the file is in a tmpfs. Each of its pages exists, or is created when it is
/// touched.
pub(crate) fn is_in_memory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut system = core::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: writes to the live variable.
    result(unsafe { libc::fstatfs(fd.as_raw_fd(), system.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, so it was written.
    Ok(unsafe { system.assume_init() }.f_type == libc::TMPFS_MAGIC)
}

/// Returns whether the length of the file is sealed.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(seals(fd)?.is_some_and(|seals| seals & LENGTH_SEALS == LENGTH_SEALS))
}

/// Takes the shared lock of the file. Waits while another open file has the exclusive lock.
///
/// The lock belongs to the open file, so all copies of the descriptor hold it together, including
/// those in forked children. If this open file has the exclusive lock, it is converted.
pub(crate) fn share_lock(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_SH) })?;
    Ok(())
}

/// Takes the exclusive lock of the file, if it is free. Returns whether it did. Otherwise this open
/// file has no lock.
pub(crate) fn try_exclusive(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: takes no pointers.
    match uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => other.map(|_| true),
    }
}

/// Puts a mark on the open file: a shared lock of the byte with this number, which nothing else
/// uses. The mark belongs to the open file, as the other lock does. It never prevents another mark.
pub(crate) fn mark(fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    let mark = byte_lock(libc::F_RDLCK, number, 1)?;
    // SAFETY: reads the live description of a lock.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const mark) })?;
    Ok(())
}

/// Returns the number of a mark on another open file of the same file. Looks for this number, or
/// for any number if it is `None`.
pub(crate) fn marked(fd: BorrowedFd<'_>, number: Option<u64>) -> io::Result<Option<u64>> {
    // A length of 0 means all bytes from the start on.
    let mut query = byte_lock(libc::F_WRLCK, number.unwrap_or(0), number.map_or(0, |_| 1))?;
    // SAFETY: reads and writes the live description of a lock.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut query) })?;
    let is_there = libc::c_int::from(query.l_type) != libc::F_UNLCK;
    Ok(is_there.then_some(query.l_start.cast_unsigned()))
}

fn byte_lock(kind: c_int, start: u64, len: libc::off_t) -> io::Result<libc::flock> {
    // SAFETY: the struct has only numbers, which may be zero.
    let mut lock: libc::flock = unsafe { core::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).map_err(io::Error::other)?;
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?;
    lock.l_start = libc::off_t::try_from(start).map_err(io::Error::other)?;
    lock.l_len = len;
    Ok(lock)
}

/// Releases the lock. Closing the descriptor would not release it if the process was forked in the
/// meantime.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointers.
    uninterrupted(|| unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) })?;
    Ok(())
}

/// Creates a file in `dir` that has no name yet. Only its owner has access to it.
pub(crate) fn unnamed_file_in(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir)
}

/// Gives an unnamed file its name. Fails if the name exists.
pub(crate) fn link(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let from = CString::new(descriptor_path(fd))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are C strings, and the call keeps no pointers to them.
    result(unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })?;
    Ok(())
}

/// Returns the path by which the kernel shows the file of a descriptor.
fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens a file for reading and writing, unless it is a symbolic link.
pub(crate) fn open_nofollow(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Opens the same file again. The new open file has a lock of its own.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(descriptor_path(fd))
}

/// Returns another descriptor of the same open file, which `exec` closes.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// Sets whether `exec` closes the descriptor.
///
/// It is async-signal-safe, so it may be called between `fork` and `exec`.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>, close: bool) -> io::Result<()> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: takes no pointers. `FD_CLOEXEC` is the only flag that descriptors have.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) })?;
    Ok(())
}

/// Returns the number of the PID namespace of this process. It is not cached, because a child may
/// be in another namespace.
pub(crate) fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// Returns a number that changes each time the machine starts.
pub(crate) fn boot_id() -> io::Result<[u8; 16]> {
    // A UUID in hexadecimal: 32 digits, with hyphens.
    let text = fs::read("/proc/sys/kernel/random/boot_id")?;
    let mut id = [0; 16];
    let mut count = 0;
    for digit in text.iter().filter_map(|&byte| char::from(byte).to_digit(16)).take(32) {
        let byte: &mut u8 = &mut id[count / 2];
        *byte = *byte << 4 | u8::try_from(digit).map_err(io::Error::other)?;
        count += 1;
    }
    if count == 32 { Ok(id) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Returns the effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: takes no arguments, and cannot fail.
    unsafe { libc::geteuid() }
}
