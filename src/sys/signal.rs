//! Catching the signals that ask a process to end.
//!
//! The handler is async-signal-safe. It reads atomics, writes to a descriptor, and calls the
//! previous handler. A thread reads the descriptor and does the rest.
#![expect(unsafe_code, reason = "system calls; calls a function by its address")]
use super::file::{result, uninterrupted};
use super::signal_mask::Mask;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use core::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The caught signals: that of Ctrl-C, and the default of `kill`.
const CAUGHT: [c_int; 2] = [libc::SIGINT, libc::SIGTERM];
/// A signal that follows another within this number of microseconds is ignored. A person does not
/// press a key so fast, but a program such as `timeout` signals the process and its group.
const ECHO: u64 = 50_000;

/// The process whose signals are caught, and the descriptor that the handler writes to.
static OWNER: AtomicU32 = AtomicU32::new(0);
static BELL: AtomicU32 = AtomicU32::new(0);
/// Whether signals are caught.
static WANTED: AtomicBool = AtomicBool::new(false);
/// The first signal since then, in the lowest byte, and its time above it.
static FIRST: AtomicU64 = AtomicU64::new(0);
/// The previous actions of the signals.
static BEFORE: [Before; 2] = [const { Before::usual() }; 2];

struct Before {
    action: AtomicUsize,
    takes_three: AtomicBool,
}

impl Before {
    const fn usual() -> Self {
        Before { action: AtomicUsize::new(libc::SIG_DFL), takes_three: AtomicBool::new(false) }
    }
}

type Three = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
type One = extern "C" fn(c_int);

/// The descriptor that the handler writes to.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    /// Sleeps until the handler has run.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut count = 0_u64;
        // SAFETY: writes eight bytes to the live variable.
        uninterrupted(|| unsafe {
            let to = (&raw mut count).cast();
            c_int::try_from(libc::read(self.0.as_raw_fd(), to, 8)).unwrap_or(-1)
        })?;
        Ok(())
    }
}

/// Installs the handler in this process, which has none that works. An ignored signal stays
/// ignored.
pub(crate) fn install() -> io::Result<Bell> {
    // SAFETY: takes no pointers.
    let number = result(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the descriptor has just been opened, and nothing else owns it.
    let bell = Bell(unsafe { OwnedFd::from_raw_fd(number) });
    WANTED.store(false, Relaxed);
    BELL.store(number.cast_unsigned(), Relaxed);
    OWNER.store(std::process::id(), Release);
    for (&signal, before) in CAUGHT.iter().zip(&BEFORE) {
        let mut known = core::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: only asks, and writes to the live variable.
        result(unsafe { libc::sigaction(signal, core::ptr::null(), known.as_mut_ptr()) })?;
        // SAFETY: the call has succeeded, so it was written.
        let known = unsafe { known.assume_init() };
        let ours = handler as Three as usize;
        // In the child of a fork the handler is installed already. A shell that starts a program in
        // the background makes it ignore Ctrl-C, which must stay so.
        if known.sa_sigaction == ours || known.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        before.action.store(known.sa_sigaction, Relaxed);
        before.takes_three.store(known.sa_flags & libc::SA_SIGINFO != 0, Release);
        // SAFETY: plain numbers, for which zero will do.
        let mut new: libc::sigaction = unsafe { core::mem::zeroed() };
        new.sa_sigaction = ours;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: fills the live set.
        unsafe { libc::sigemptyset(&raw mut new.sa_mask) };
        // SAFETY: reads the live action, whose function is async-signal-safe and never goes away.
        result(unsafe { libc::sigaction(signal, &raw const new, core::ptr::null_mut()) })?;
    }
    Ok(bell)
}

/// Sets whether signals are caught from now on. Otherwise their previous actions take effect.
pub(crate) fn want(so: bool) {
    if so && !WANTED.load(Relaxed) {
        FIRST.store(0, Relaxed);
    }
    WANTED.store(so, Release);
}

/// Returns the first signal that was caught, if there was one.
pub(crate) fn first() -> Option<c_int> {
    let first = FIRST.load(Acquire);
    (first != 0).then_some((first & 0xff) as c_int)
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: returns the address of the error number of this thread, which the handler restores.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread is.
    let error = unsafe { errno.read() };
    // In the child of a fork no thread reads the descriptor.
    if OWNER.load(Acquire) != std::process::id() || !WANTED.load(Acquire) {
        as_before(signal, info, context, true);
    } else {
        let this = now() << 8 | u64::from(signal.cast_unsigned());
        match FIRST.compare_exchange(0, this, Release, Relaxed) {
            Ok(_) => {
                let (bell, one) = (BELL.load(Relaxed).cast_signed(), 1_u64);
                // SAFETY: reads eight bytes of the live variable. It cannot fail before the count
                // is 2^64.
                unsafe { libc::write(bell, (&raw const one).cast(), 8) };
                as_before(signal, info, context, false);
            }
            Err(first) if (this >> 8).saturating_sub(first >> 8) < ECHO => {}
            Err(_) => end_by(signal),
        }
    }
    // SAFETY: as above.
    unsafe { errno.write(error) };
}

/// Does what the previous action of the signal does. The default action, which ends the process, is
/// done only if `all` is set.
fn as_before(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, all: bool) {
    let Some(at) = CAUGHT.iter().position(|&caught| caught == signal) else { return };
    let takes_three = BEFORE[at].takes_three.load(Acquire);
    match BEFORE[at].action.load(Relaxed) {
        libc::SIG_DFL if all => end_by(signal),
        libc::SIG_DFL | libc::SIG_IGN => {}
        action if takes_three => {
            let action = core::ptr::with_exposed_provenance::<()>(action);
            // SAFETY: a handler with three arguments, by the flags with which it was installed.
            let action = unsafe { core::mem::transmute::<*const (), Three>(action) };
            action(signal, info, context);
        }
        action => {
            let action = core::ptr::with_exposed_provenance::<()>(action);
            // SAFETY: a handler with one argument, as above.
            let action = unsafe { core::mem::transmute::<*const (), One>(action) };
            action(signal);
        }
    }
}

/// Ends this process by the default action of the signal. Async-signal-safe.
pub(crate) fn end_by(signal: c_int) -> ! {
    // SAFETY: the default action is no function.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    let mut set = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the live set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: adds to the set filled above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: reads that set.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), core::ptr::null_mut()) };
    // SAFETY: takes no pointers.
    unsafe { libc::raise(signal) };
    // Signals do not end the first process of a container.
    super::process::exit_now(128 + signal)
}

/// Gives signals the actions that they have after `exec`, and unblocks all signals. A handler
/// becomes the default action, and an ignored signal stays ignored. `SIGSEGV` and `SIGBUS` keep
/// their handlers, by which the standard library reports a stack overflow.
pub(crate) fn reset_actions() {
    for signal in 1..=libc::SIGRTMAX() {
        let mut known = core::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: only asks, and writes to the live variable.
        let r = unsafe { libc::sigaction(signal, core::ptr::null(), known.as_mut_ptr()) };
        if r != 0 || [libc::SIGSEGV, libc::SIGBUS].contains(&signal) {
            continue; // the C library reserves some signals
        }
        // SAFETY: the call has succeeded, so it was written.
        let known = unsafe { known.assume_init() };
        if ![libc::SIG_DFL, libc::SIG_IGN].contains(&known.sa_sigaction) {
            // SAFETY: the default action is no function.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    Mask::of(&[]).set();
}

/// Returns the monotonic time in microseconds.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time to a live variable; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_nsec.cast_unsigned() / 1_000
}
