//! Threads and processes, as the kernel knows them.
#![expect(unsafe_code, reason = "system calls")]
use super::signal_mask::Mask;
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::Ordering::Relaxed;
use core::ffi::{CStr, c_void};
use std::io;

/// The kernel's id of the calling thread.
pub(crate) fn id() -> u32 {
    // SAFETY: gettid takes no argument and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).expect("a thread id is positive and 32 bits wide")
}

/// How many CPUs the machine has online.
pub(crate) fn cpus() -> usize {
    // SAFETY: takes no pointers.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cpus).unwrap_or(1)
}

/// Whether threads of this process are to take no lock by the shortest way: see [`hold_back`].
static HELD_BACK: AtomicBool = AtomicBool::new(false);

/// Sets whether every lock is taken by its slow path, which identifies this process.
pub(crate) fn hold_back(so: bool) {
    HELD_BACK.store(so, Relaxed);
}

pub(crate) fn is_held_back() -> bool {
    HELD_BACK.load(Relaxed)
}

/// Whether this process was forked into another PID namespace than that of the segments which it
/// was born with.
static ELSEWHERE: AtomicBool = AtomicBool::new(false);

/// Sets whether calls that need this process's identity fail: its thread ids mean other threads to
/// its peers.
pub(crate) fn set_elsewhere(so: bool) {
    ELSEWHERE.store(so, Relaxed);
}

pub(crate) fn is_elsewhere() -> bool {
    ELSEWHERE.load(Relaxed)
}

/// Whether the process that forked this one is in another PID namespace. To be asked in the child
/// of a fork: the kernel shows no parent across namespaces, and if the parent has ended, it shows
/// another process of the parent's namespace.
pub(crate) fn parent_is_elsewhere() -> bool {
    std::os::unix::process::parent_id() == 0
}

/// Whether `tid` is a thread of this process; also if the kernel does not say.
pub(crate) fn is_ours(tid: u32) -> bool {
    exists_in(std::process::id(), tid)
}

/// Whether `tid` is a thread of the process `pid`; also if the kernel does not say.
pub(crate) fn exists_in(pid: u32, tid: u32) -> bool {
    let (Ok(pid), Ok(tid)) = (i32::try_from(pid), i32::try_from(tid)) else { return false };
    // SAFETY: signal 0 is never delivered; the kernel only looks whether the thread exists.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// A thread of the C library's, to be joined. (Dropped without, it goes on by itself.)
#[derive(Debug)]
pub(crate) struct Silent(libc::pthread_t);

impl Silent {
    /// Waits for its end.
    pub(crate) fn join(self) {
        // SAFETY: made joinable by `spawn_silent`, and joined once: `self` is gone.
        unsafe { libc::pthread_join(self.0, core::ptr::null_mut()) };
    }
}

type Body = Box<dyn FnOnce() + Send>;

/// Runs `body`, which must not panic, on a thread that gets no signals, so that no handler of the
/// program runs there.
///
/// Not a thread of the standard library: those take a lock of the process as they start and end,
/// and in a child that was forked meanwhile that lock is never given up again.
pub(crate) fn spawn_silent(
    name: &CStr,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<Silent> {
    extern "C" fn run(body: *mut c_void) -> *mut c_void {
        // SAFETY: what `spawn_silent` leaked for this thread.
        let body = unsafe { Box::from_raw(body.cast::<Body>()) };
        body();
        core::ptr::null_mut()
    }
    let body: *mut Body = Box::into_raw(Box::new(Box::new(body)));
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: initialises the live variable.
    unsafe { libc::pthread_attr_init(attributes) };
    // SAFETY: the attributes were initialised above.
    let stack = unsafe { least_stack(attributes) }.next_multiple_of(4096) + STACK;
    // SAFETY: as above.
    unsafe { libc::pthread_attr_setstacksize(attributes, stack) };
    let before = Mask::all_but(&[]).set();
    let mut thread = core::mem::MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: `run` takes what it is given here, once; the thread's id goes to a live variable.
    let r = unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, body.cast()) };
    before.set();
    // SAFETY: initialised above, and not used again.
    unsafe { libc::pthread_attr_destroy(attributes) };
    if r != 0 {
        // SAFETY: no thread has got it.
        drop(unsafe { Box::from_raw(body) });
        return Err(io::Error::from_raw_os_error(r));
    }
    // SAFETY: the call succeeded, so it was written.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: a thread that is not joined yet, and a C string. It does not matter if the name is
    // refused.
    unsafe { libc::pthread_setname_np(thread, name.as_ptr()) };
    Ok(Silent(thread))
}

/// What such a thread may use of its stack, in bytes.
const STACK: usize = 256 * 1024;

/// The size of the smallest stack, in bytes. In the GNU C library the thread-local memory of the
/// program is part of the stack.
///
/// # Safety
/// The attributes are initialised.
unsafe fn least_stack(attributes: *const libc::pthread_attr_t) -> usize {
    type LeastStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> usize;
    let name = c"__pthread_get_minstack";
    // SAFETY: reads a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        // SAFETY: takes no pointers.
        return usize::try_from(unsafe { libc::sysconf(libc::_SC_THREAD_STACK_MIN) }).unwrap_or(0);
    }
    // SAFETY: the function of that name in the GNU C library, which has this type.
    let least_stack = unsafe { core::mem::transmute::<*mut c_void, LeastStack>(found) };
    // SAFETY: the caller's promise.
    unsafe { least_stack(attributes) }
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

/// Whether the process `pid` has ended, also if its parent has not taken notice of that.
pub(crate) fn has_ended(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which is in brackets.
        Ok(stat) => {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
        }
        Err(_) => !exists(pid),
    }
}

/// Sleeps until the process ends.
pub(crate) fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Whether `tid` is a thread of any process in this PID namespace; also if the kernel does not say.
pub(crate) fn exists(tid: u32) -> bool {
    let Ok(tid) = i32::try_from(tid) else { return false };
    // SAFETY: signal 0 is never delivered; the kernel only looks whether the thread exists.
    let r = unsafe { libc::syscall(libc::SYS_tkill, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// The process of a thread in this PID namespace, and the name of the process, as far as `/proc`
/// shows them.
pub(crate) fn process_of(tid: u32) -> Option<(u32, Option<String>)> {
    let read = |path| Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned());
    let status = read(format!("/proc/{tid}/status"))?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let name = read(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned());
    Some((pid, name))
}
