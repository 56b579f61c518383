//! Starting, watching and ending processes, the sockets between them, and sealed files for messages
//! that are too large for a socket.
#![expect(unsafe_code, reason = "system calls")]
use super::file::{add_seals, result, seals, uninterrupted};
use crate::deadline::Deadline;
use core::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Errors and signals, for modules that may not use `libc`.
pub(crate) use libc::{EMFILE, ESRCH, SIGKILL, SIGTERM};

/// The greatest number of descriptors that the kernel passes in one message.
pub(crate) const MOST_DESCRIPTORS: usize = 253;
const CONTROL: usize = 2048;

/// Converts a descriptor that the kernel has just returned.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    let number = c_int::try_from(returned).map_err(io::Error::other)?;
    let number = result(number)?;
    // SAFETY: the descriptor has just been opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Creates two connected sockets that keep message boundaries. `exec` closes them.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: writes two numbers to the live array.
    result(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) })?;
    Ok((owned(pair[0].into())?, owned(pair[1].into())?))
}

/// Memory for the descriptors of a message, aligned for `cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

fn header(iov: &mut libc::iovec, control: &mut Control, length: usize) -> libc::msghdr {
    // SAFETY: the struct has only numbers and pointers, which may be zero.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    if length > 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = length as _;
    }
    message
}

/// Sends one message with copies of `descriptors`. If `wait` is set, waits until there is room.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    if descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let numbers: Vec<c_int> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let payload = u32::try_from(size_of_val(numbers.as_slice())).map_err(io::Error::other)?;
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: arithmetic only.
    let space = unsafe { libc::CMSG_SPACE(payload) } as usize;
    let message = header(&mut iov, &mut control, if numbers.is_empty() { 0 } else { space });
    if !numbers.is_empty() {
        // SAFETY: the control block is longer than one header.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: arithmetic only.
        let length = unsafe { libc::CMSG_LEN(payload) };
        let head = libc::cmsghdr {
            cmsg_len: length as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        // SAFETY: the first header lies in the control block, which is aligned for it.
        unsafe { first.write(head) };
        // SAFETY: the data of the first header.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: at most 253 numbers, for which the block has room after the header.
        unsafe { data.copy_from_nonoverlapping(numbers.as_ptr().cast(), payload as usize) };
    }
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: everything that the message points to is alive.
    uninterrupted(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })?;
    Ok(())
}

/// Receives one message, or its first part if `buffer` is shorter, and its descriptors. Returns 0
/// at the end of the connection.
///
/// If this process cannot have so many descriptors, the call fails with `EMFILE` and the message
/// stays. The kernel would drop the descriptors of such a message, so each message is peeked at
/// first. The socket must have no other reader during the call.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    wait: bool,
) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | if wait { 0 } else { libc::MSG_DONTWAIT };
    let (length, whole) = receive_what_fits(socket, buffer, descriptors, flags)?;
    if !whole {
        descriptors.clear();
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    if length > 0 {
        drop_message(socket)?;
    }
    Ok(length)
}

/// Receives a message for which [`receive`] has failed with `EMFILE`. Returns its first descriptor,
/// or `EMFILE` if there is no room even for that one. The outer error means that nothing was
/// received.
pub(crate) fn receive_first(socket: BorrowedFd<'_>) -> io::Result<io::Result<OwnedFd>> {
    let mut descriptors = Vec::new();
    receive_what_fits(socket, &mut [0], &mut descriptors, libc::MSG_DONTWAIT)?;
    let first = descriptors.into_iter().next();
    Ok(first.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE)))
}

/// Removes the message that was peeked at.
fn drop_message(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: writes at most one byte to the live variable.
    past_reset(|| unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) })?;
    Ok(())
}

/// Calls a function, and repeats the call after `ECONNRESET`. The kernel reports once that the
/// other end was closed with unread messages. The messages that the other end had sent come after
/// this report.
fn past_reset(mut call: impl FnMut() -> isize) -> io::Result<isize> {
    match uninterrupted(&mut call) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => uninterrupted(call),
        other => other,
    }
}

/// Receives a message. Returns its length, and whether there was room for all its descriptors.
fn receive_what_fits(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    flags: c_int,
) -> io::Result<(usize, bool)> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = header(&mut iov, &mut control, CONTROL);
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let received = past_reset(|| {
        // SAFETY: everything that the message points to is alive.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) }
    })?;
    // SAFETY: the kernel has filled the control block in.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !at.is_null() {
        // SAFETY: a header that lies in the control block.
        let head = unsafe { at.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data of this header.
            let data = unsafe { libc::CMSG_DATA(at) };
            let before = data.addr() - at.addr();
            let count = (head.cmsg_len as usize).saturating_sub(before) / size_of::<c_int>();
            for i in 0..count {
                // SAFETY: within the header's data, by its length.
                let place = unsafe { data.cast::<c_int>().add(i) };
                // SAFETY: as above; the kernel has written a number there.
                let number = unsafe { place.read_unaligned() };
                descriptors.push(owned(number.into())?);
            }
        }
        // SAFETY: walks on within the control block.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    let length = usize::try_from(received).map_err(io::Error::other)?;
    Ok((length, message.msg_flags & libc::MSG_CTRUNC == 0))
}

/// Sleeps until one of the descriptors can be read or has ended. Returns for each of them whether
/// it is so.
pub(crate) fn poll(watched: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = watched
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    uninterrupted(|| {
        // Rounded up, so that the deadline has passed when the call returns.
        let left = deadline
            .remaining()
            .map(|left| c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX));
        // SAFETY: the vector has this many entries.
        unsafe { libc::poll(polled.as_mut_ptr(), count, left.unwrap_or(-1)) }
    })?;
    Ok(polled.iter().map(|entry| entry.revents != 0).collect())
}

/// Forks the calling process. The child has the calling thread only. Returns 0 in the child, and
/// the id of the child in the parent.
///
/// # Safety
/// If the process has other threads, the child must not need anything that they may have locked.
pub(crate) unsafe fn fork() -> io::Result<u32> {
    // SAFETY: the caller's promise.
    let pid = result(unsafe { libc::fork() })?;
    u32::try_from(pid).map_err(io::Error::other)
}

/// Ends this process without its exit handlers.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(code) }
}

fn number(pid: u32) -> io::Result<libc::pid_t> {
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Returns a descriptor of the process (a pidfd), which can be read once the process has ended.
pub(crate) fn watch_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers. `exec` closes such a descriptor.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, number(pid)?, 0) })
}

/// Sends a signal to the process, if it has not been reaped.
pub(crate) fn signal(process: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let no_info = core::ptr::null::<c_void>();
    let call = libc::SYS_pidfd_send_signal;
    // SAFETY: null is allowed, and makes the kernel fill in the information.
    result(unsafe { libc::syscall(call, process.as_raw_fd(), signal, no_info, 0) })?;
    Ok(())
}

/// Waits until a child ends, and reaps it.
pub(crate) fn reap(pid: u32) -> io::Result<ExitStatus> {
    let pid = number(pid)?;
    let mut status = 0;
    // SAFETY: writes to the live variable.
    uninterrupted(|| unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    Ok(ExitStatus::from_raw(status))
}

/// Waits until the child of this descriptor ends, and reaps it.
pub(crate) fn reap_by(handle: BorrowedFd<'_>) -> io::Result<()> {
    let number = libc::id_t::try_from(handle.as_raw_fd()).map_err(io::Error::other)?;
    let mut info = core::mem::MaybeUninit::<libc::siginfo_t>::uninit();
    uninterrupted(|| {
        // SAFETY: writes to the live variable.
        unsafe { libc::waitid(libc::P_PIDFD, number, info.as_mut_ptr(), libc::WEXITED) }
    })?;
    Ok(())
}

/// Kills a child that has not been reaped.
pub(crate) fn kill_child(pid: u32) {
    if let Ok(pid) = number(pid) {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Makes the kernel kill this process when its parent, the process `parent`, ends. If the parent
/// has ended already, this process ends immediately.
pub(crate) fn die_with(parent: u32) {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if std::os::unix::process::parent_id() != parent {
        exit_now(1);
    }
}

/// Puts this process into a process group of its own. So it gets no signals of the terminal.
pub(crate) fn own_group() {
    // SAFETY: takes no pointers. It can only fail if the process has a group of its own already.
    unsafe { libc::setpgid(0, 0) };
}

/// Kills all processes of the group that `leader`, a child that has not been reaped, may have led.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(leader) = number(leader) {
        // SAFETY: takes no pointers. The kernel does not reuse the number before the child is
        // reaped.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

/// Limits the private memory of this process: its heap, its private mappings and the stacks of its
/// threads.
pub(crate) fn limit_memory(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: reads the live structure.
    result(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) })?;
    Ok(())
}

/// Returns the usual name of a signal, or its number.
pub(crate) fn signal_name(signal: c_int) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// Puts this process into a session of its own, without a terminal.
pub(crate) fn own_session() {
    // SAFETY: takes no arguments. It can only fail for the leader of a group, and a new process is
    // none.
    unsafe { libc::setsid() };
}

/// Flushes the streams of the C library.
pub(crate) fn flush_streams() {
    // SAFETY: null means all streams.
    unsafe { libc::fflush(core::ptr::null_mut()) };
}

/// Replaces standard input by an empty file.
pub(crate) fn no_input() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: takes no pointers.
    result(unsafe { libc::dup2(null.as_fd().as_raw_fd(), libc::STDIN_FILENO) })?;
    Ok(())
}

/// Makes the kernel keep the exit statuses of children, which is the default.
pub(crate) fn keep_statuses() {
    // SAFETY: the default action is no function.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Returns the start and the length of the code segment of a file that `address` lies in, or `None`
/// if it lies in none.
pub(crate) fn code_around(address: usize) -> Option<(usize, usize)> {
    struct Search {
        address: usize,
        found: Option<(usize, usize)>,
    }
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: the variable that `dl_iterate_phdr` gets below, which is alive during the call.
        let search = unsafe { &mut *search.cast::<Search>() };
        // SAFETY: valid during the callback.
        let info = unsafe { &*info };
        for i in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: the object has this many headers.
            let head = unsafe { info.dlpi_phdr.add(i) };
            // SAFETY: as above. The headers stay as long as the object is loaded.
            let head = unsafe { &*head };
            let code = head.p_type == libc::PT_LOAD && head.p_flags & libc::PF_X != 0;
            let whole = |number: u64| usize::try_from(number).unwrap_or(0);
            let start = whole(info.dlpi_addr).wrapping_add(whole(head.p_vaddr));
            let length = whole(head.p_memsz);
            if code && search.address.wrapping_sub(start) < length {
                search.found = Some((start, length));
                return 1;
            }
        }
        0
    }
    let mut search = Search { address, found: None };
    // SAFETY: the callback gets the live variable, and keeps no pointer to it.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// Sets the name of the calling thread. For a process with one thread, tools show it as the name of
/// the process.
pub(crate) fn name_thread(name: &CStr) {
    // SAFETY: reads the string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// A file with all these seals never changes.
const FROZEN: c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;

/// Seals the content of a file in memory. No process may have it mapped for writing.
pub(crate) fn freeze(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, FROZEN)
}

/// Returns whether the content of the file is sealed.
pub(crate) fn is_frozen(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(seals(fd)?.is_some_and(|seals| seals & FROZEN == FROZEN))
}
