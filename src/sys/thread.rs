//! Threads and processes, as the kernel knows them.
#![expect(unsafe_code, reason = "system calls")]
use std::io;

/// The kernel's id of the calling thread.
pub(crate) fn id() -> u32 {
    // SAFETY: gettid takes no argument and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).expect("a thread id is positive and 32 bits wide")
}

/// Whether `tid` is a thread of this process.
pub(crate) fn is_ours(tid: u32) -> bool {
    i32::try_from(tid).is_ok_and(|tid| {
        // SAFETY: signal 0 is never delivered; the kernel only looks whether the thread exists.
        let r = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, 0) };
        r == 0
    })
}

/// Runs `body` on a thread that gets no signals, so that no handler of the program runs there.
pub(crate) fn spawn_silent(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let previous = block_signals();
    let thread =
        std::thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(body);
    restore_signals(&previous);
    thread
}

fn block_signals() -> libc::sigset_t {
    let mut all = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut previous = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: writes the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: reads the set filled above, writes the previous mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr()) };
    // SAFETY: pthread_sigmask with valid arguments cannot fail, so the mask was written.
    unsafe { previous.assume_init() }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: reads a mask that the system gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, core::ptr::null_mut()) };
}

/// A function of this program for the system to call.
pub(crate) type Handler = extern "C" fn();

/// Has `before` run in this thread ahead of every fork, and `parent` and `child` after it.
pub(crate) fn at_fork(before: Handler, parent: Handler, child: Handler) {
    // SAFETY: the handlers are functions of this program, which is never unloaded.
    let r = unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
    assert_eq!(r, 0, "pthread_atfork: no memory");
}

/// Has `handler` run when the process ends by itself.
pub(crate) fn at_exit(handler: Handler) {
    // SAFETY: as above.
    let r = unsafe { libc::atexit(handler) };
    assert_eq!(r, 0, "atexit: no memory");
}

/// Sleeps until the process ends.
pub(crate) fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Whether `tid` is a thread of any process in this PID namespace.
pub(crate) fn exists(tid: u32) -> bool {
    let Ok(tid) = i32::try_from(tid) else { return false };
    // SAFETY: signal 0 is never delivered; the kernel only looks whether the thread exists.
    let r = unsafe { libc::syscall(libc::SYS_tkill, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}
