//! Threads and processes: their ids, whether they exist, and how a thread is started.
#![expect(unsafe_code, reason = "system calls")]
use super::signal_mask::Mask;
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::Ordering::Relaxed;
use core::ffi::{CStr, c_void};
use std::io;

/// Returns the id that the kernel has given to the calling thread.
pub(crate) fn id() -> u32 {
    // SAFETY: gettid takes no argument and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).expect("a thread id is positive and 32 bits wide")
}

/// Returns the number of CPUs that are online.
pub(crate) fn cpus() -> usize {
    // SAFETY: takes no pointers.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cpus).unwrap_or(1)
}

/// Whether the fast paths of locks are off: see [`set_fast_locks_off`].
static FAST_LOCKS_OFF: AtomicBool = AtomicBool::new(false);

/// Sets whether threads of this process take every lock by its slow path, which identifies the
/// process.
pub(crate) fn set_fast_locks_off(so: bool) {
    FAST_LOCKS_OFF.store(so, Relaxed);
}

pub(crate) fn are_fast_locks_off() -> bool {
    FAST_LOCKS_OFF.load(Relaxed)
}

/// Whether a fork has put this process into another PID namespace than that of the segments that it
/// inherited.
static IN_OTHER_NAMESPACE: AtomicBool = AtomicBool::new(false);

/// Sets whether calls that identify this process fail. Its thread ids would mean other threads to
/// its peers.
pub(crate) fn set_in_other_namespace(so: bool) {
    IN_OTHER_NAMESPACE.store(so, Relaxed);
}

pub(crate) fn is_in_other_namespace() -> bool {
    IN_OTHER_NAMESPACE.load(Relaxed)
}

/// Returns whether the process that forked this one is in another PID namespace.
///
/// Called in the child of a fork. The kernel shows no parent across namespaces. If the parent has
/// ended, it shows another process of the namespace of the parent.
pub(crate) fn parent_is_in_other_namespace() -> bool {
    std::os::unix::process::parent_id() == 0
}

/// Returns whether `tid` is a thread of this process. Returns `true` also if the kernel does not
/// tell.
pub(crate) fn is_ours(tid: u32) -> bool {
    exists_in(std::process::id(), tid)
}

/// Returns whether `tid` is a thread of the process `pid`. Returns `true` also if the kernel does
/// not tell.
pub(crate) fn exists_in(pid: u32, tid: u32) -> bool {
    let (Ok(pid), Ok(tid)) = (i32::try_from(pid), i32::try_from(tid)) else { return false };
    // SAFETY: signal 0 is never delivered. The kernel only checks whether the thread exists.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// A handle to join a thread of the C library. If it is dropped, the thread runs on by itself.
#[derive(Debug)]
pub(crate) struct JoinHandle(libc::pthread_t);

impl JoinHandle {
    /// Waits for the end of the thread.
    pub(crate) fn join(self) {
        // SAFETY: made joinable by `spawn_without_signals`, and joined once: `self` is gone.
        unsafe { libc::pthread_join(self.0, core::ptr::null_mut()) };
    }
}

type Body = Box<dyn FnOnce() + Send>;

/// Runs `body`, which must not panic, on a new thread that gets no signals. So no signal handler of
/// the program runs there.
///
/// The standard library cannot start this thread. Its threads take a lock of the process when they
/// start and end, and that lock stays locked in a child that is forked in the meantime.
pub(crate) fn spawn_without_signals(
    name: &CStr,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle> {
    extern "C" fn run(body: *mut c_void) -> *mut c_void {
        // SAFETY: `spawn_without_signals` has leaked the box for this thread.
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
    // SAFETY: `run` takes the box once. The id of the thread goes to a live variable.
    let r = unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, body.cast()) };
    before.set();
    // SAFETY: initialised above, and not used again.
    unsafe { libc::pthread_attr_destroy(attributes) };
    if r != 0 {
        // SAFETY: no thread has taken the box.
        drop(unsafe { Box::from_raw(body) });
        return Err(io::Error::from_raw_os_error(r));
    }
    // SAFETY: the call succeeded, so it was written.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: a thread that is not joined yet, and a C string. The name is not important.
    unsafe { libc::pthread_setname_np(thread, name.as_ptr()) };
    Ok(JoinHandle(thread))
}

/// The size of the stack that such a thread may use, in bytes.
const STACK: usize = 256 * 1024;

/// Returns the smallest size of a stack, in bytes. In the GNU C library the thread-local variables
/// of the program are part of the stack.
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
    // SAFETY: the function of this name in the GNU C library has this type.
    let least_stack = unsafe { core::mem::transmute::<*mut c_void, LeastStack>(found) };
    // SAFETY: the caller's promise.
    unsafe { least_stack(attributes) }
}

/// A function of this program that the system calls.
pub(crate) type Handler = extern "C" fn();

/// Makes every fork run `before` in the calling thread, and then `parent` or `child`.
pub(crate) fn at_fork(before: Handler, parent: Handler, child: Handler) {
    // SAFETY: the handlers are functions of this program, which is never unloaded.
    let r = unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
    assert_eq!(r, 0, "pthread_atfork: no memory");
}

/// Makes `exit` run `handler`.
pub(crate) fn at_exit(handler: Handler) {
    // SAFETY: as above.
    let r = unsafe { libc::atexit(handler) };
    assert_eq!(r, 0, "atexit: no memory");
}

/// Returns whether the process `pid` has ended, even if its parent has not waited for it.
pub(crate) fn has_ended(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which is in parentheses.
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

/// Returns whether `tid` is a thread of any process in this PID namespace. Returns `true` also if
/// the kernel does not tell.
pub(crate) fn exists(tid: u32) -> bool {
    let Ok(tid) = i32::try_from(tid) else { return false };
    // SAFETY: signal 0 is never delivered. The kernel only checks whether the thread exists.
    let r = unsafe { libc::syscall(libc::SYS_tkill, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Returns the process of a thread in this PID namespace, and the name of that process, as far as
/// `/proc` shows them.
pub(crate) fn process_of(tid: u32) -> Option<(u32, Option<String>)> {
    let read = |path| Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned());
    let status = read(format!("/proc/{tid}/status"))?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let name = read(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned());
    Some((pid, name))
}
