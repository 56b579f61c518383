//! One system call fails, for lack of descriptors, memory or processes: the n-th that the owner of
//! a pool makes, or its fork server, or a worker, for each n. Every task still ends, with its value
//! or with an error, no process ends that should live, nothing hangs and nothing stays open.
//!
//! A filter has the kernel stop each such call, and this program, the tracer, makes the chosen one
//! fail. `STRIDE=7` tries every seventh call only.
#![cfg(all(not(outlast_loom), target_arch = "x86_64"))]
#![expect(unsafe_code, reason = "traces processes")]
mod runner;

use outlast::pool::Pool;
use outlast::process::{self, Process};
use outlast::{Event, Shared};
use runner::{children, descriptors, part};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Numbers of no system call, by which the traced program says where it is.
const BEGIN: i64 = 9_001;
const CALM: i64 = 9_002;
/// A run takes less than a second, if it does not hang.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if std::env::var_os("SCENARIO").is_some() {
        mark(BEGIN);
        process::init();
    }
    runner::run(
        &[
            ("calls_of_the_owner", || sweep(Role::Owner)),
            ("calls_of_the_fork_server", || sweep(Role::ForkServer)),
            ("calls_of_the_workers", || sweep(Role::Worker)),
        ],
        &[("scenario", play)],
    )
}

// ------------------------------------------------------------------------------ the traced program
fn mark(number: i64) {
    // SAFETY: the kernel knows no such call.
    unsafe { libc::syscall(number) };
}

fn double(x: u64) -> u64 {
    x * 2
}

fn letters(length: usize) -> String {
    "x".repeat(length)
}

fn length(text: String) -> usize {
    text.len()
}

/// Waits for the end, even if one of its own calls fails.
fn stays((): ()) -> u64 {
    loop {
        let waited = Shared::<Event>::inherited("end").is_ok_and(|end| end.wait().is_ok());
        if waited {
            return 7;
        }
    }
}

/// The value, or an error, which is right only while a call may fail.
fn check<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    calm: bool,
    result: Result<T, E>,
    right: &T,
) {
    match result {
        Ok(value) => assert_eq!(value, *right),
        Err(error) => assert!(!calm, "{error:?}"),
    }
}

fn counts((): ()) {
    Shared::<AtomicU64>::inherited("count").unwrap().fetch_add(1, SeqCst);
}

fn try_all(calm: bool) {
    if let Ok(count) = Shared::anonymous(AtomicU64::new(0)) {
        let spawned = Process::builder(counts).share("count", &count).spawn(());
        match spawned.map(|process| process.join()) {
            Ok(result) => check(calm, result, &()),
            Err(error) => {
                assert!(!calm, "{error:?}");
                std::thread::sleep(runner::ms(20));
                assert_eq!(count.load(SeqCst), 0, "it was not spawned, and has begun");
            }
        }
    }
    check(calm, Process::spawn(double, 4).map(|process| process.join().unwrap_or(8)), &8);
    match Process::spawn(letters, 40_000).map(|process| process.join()) {
        Ok(result) => check(calm, result.map(|text| text.len()), &40_000),
        Err(error) => assert!(!calm, "{error:?}"),
    }
    let pool = match Pool::builder().workers(2).build() {
        Ok(pool) => pool,
        Err(error) => return assert!(!calm, "{error:?}"),
    };
    check(calm, pool.apply(double, 4), &8);
    let result = pool.submit(letters, 20_000);
    let argument = pool.submit(length, letters(20_000));
    let small = pool.submit(double, 5);
    check(calm, result.join().map(|text| text.len()), &20_000);
    check(calm, argument.join(), &20_000);
    check(calm, small.join(), &10);
    let results: Vec<_> = pool.map(double, 0..200).collect();
    assert_eq!(results.len(), 200);
    results.into_iter().zip(0..).for_each(|(result, x)| check(calm, result, &(2 * x)));
    let results: Vec<_> = pool.map(length, (0..3).map(|_| letters(15_000))).collect();
    assert_eq!(results.len(), 3);
    results.into_iter().for_each(|result| check(calm, result, &15_000));
    pool.pids().first().into_iter().for_each(|&pid| runner::kill(pid));
    check(calm, pool.apply(double, 6), &12);
    assert_eq!(pool.stats().unfinished, 0);
    pool.join();
}

fn play() {
    let end = Shared::anonymous(Event::manual(false));
    let bystander =
        end.as_ref().ok().and_then(|end| Process::builder(stays).share("end", end).spawn(()).ok());
    try_all(false);
    mark(CALM);
    try_all(true);
    if let (Ok(end), Some(bystander)) = (end, bystander) {
        end.set();
        assert_eq!(bystander.join().unwrap(), 7, "a process that should live");
    }
    let me = std::process::id();
    runner::eventually("only the fork server is left", || children(me).len() == 1);
    let open = descriptors(me);
    let mut out = std::io::stdout();
    writeln!(out, "{open}").unwrap();
}

// -------------------------------------------------------------------------------------- the tracer
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Owner,
    ForkServer,
    Worker,
}

/// The calls that may fail, each with its error.
const CALLS: [(libc::c_long, i32); 20] = [
    (libc::SYS_openat, libc::EMFILE),
    (libc::SYS_open, libc::EMFILE),
    (libc::SYS_socketpair, libc::EMFILE),
    (libc::SYS_memfd_create, libc::EMFILE),
    (libc::SYS_pidfd_open, libc::EMFILE),
    (libc::SYS_eventfd2, libc::EMFILE),
    (libc::SYS_fcntl, libc::EMFILE),
    (libc::SYS_recvmsg, 0),
    (libc::SYS_sendmsg, libc::ETOOMANYREFS),
    (libc::SYS_mmap, libc::ENOMEM),
    (libc::SYS_mprotect, libc::ENOMEM),
    (libc::SYS_mremap, libc::ENOMEM),
    (libc::SYS_poll, libc::ENOMEM),
    (libc::SYS_fallocate, libc::ENOSPC),
    (libc::SYS_ftruncate, libc::ENOSPC),
    (libc::SYS_pwrite64, libc::ENOSPC),
    (libc::SYS_clone, libc::EAGAIN),
    (libc::SYS_clone3, libc::EAGAIN),
    (libc::SYS_fork, libc::EAGAIN),
    (libc::SYS_vfork, libc::EAGAIN),
];

/// Has the kernel stop the calling program at these calls.
fn filter() -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let calls = CALLS.iter().map(|&(call, _)| call).chain([BEGIN, CALM]);
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        let same = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let mut jump = statement(same, u32::try_from(call).unwrap());
        jump.jf = 1;
        filter.push(jump);
        filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRACE));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    filter
}

/// What came of a run: how it ended, what it said, and which call was made to fail.
struct Run {
    code: Option<i32>,
    said: String,
    failed: Option<libc::c_long>,
}

fn ptrace(request: libc::c_uint, pid: i32, data: usize) -> bool {
    // SAFETY: the requests used here read nothing, or a structure that lives.
    unsafe { libc::ptrace(request, pid, 0_usize, data) == 0 }
}

fn limit_of(process: i32, new: Option<libc::rlimit>) -> libc::rlimit {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: reads and writes live variables.
    unsafe { libc::prlimit(process, libc::RLIMIT_NOFILE, new, &raw mut old) };
    old
}

/// The calls of one role, counted until the program is calm.
struct Tracer {
    role: Role,
    /// The number of the call that is to fail.
    nth: u64,
    seen: u64,
    counts: bool,
    failed: Option<libc::c_long>,
    owner: i32,
    /// Of each thread.
    roles: HashMap<i32, Role>,
    /// Threads that have stopped before it was known whose they are.
    early: Vec<i32>,
    /// The thread whose process is allowed no descriptor until its call returns, and what it was
    /// allowed.
    lowered: Option<(i32, libc::rlimit)>,
}

impl Tracer {
    /// The thread has stopped: what is to be done, and with which signal it goes on.
    fn stopped(&mut self, thread: i32, status: i32) {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let forks = [libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_VFORK, libc::PTRACE_EVENT_CLONE];
        let mut pass = 0;
        if forks.contains(&event) {
            let mut new: libc::c_ulong = 0;
            ptrace(libc::PTRACE_GETEVENTMSG, thread, (&raw mut new).addr());
            let role = match (self.roles[&thread], event == libc::PTRACE_EVENT_CLONE) {
                (role, true) => role,
                (Role::Owner, false) => Role::ForkServer,
                (_, false) => Role::Worker,
            };
            let new = i32::try_from(new).unwrap();
            self.roles.insert(new, role);
            if let Some(at) = self.early.iter().position(|&early| early == new) {
                self.early.swap_remove(at);
                ptrace(libc::PTRACE_CONT, new, 0);
            }
        } else if event == libc::PTRACE_EVENT_SECCOMP {
            if self.call(thread) {
                ptrace(libc::PTRACE_SYSCALL, thread, 0);
                return;
            }
        } else if signal == libc::SIGTRAP | 0x80 {
            if let Some((_, before)) = self.lowered.take_if(|(lowered, _)| *lowered == thread) {
                limit_of(thread, Some(before));
            }
        } else if !self.roles.contains_key(&thread) {
            self.early.push(thread);
            return;
        } else if event == 0 && signal != libc::SIGSTOP {
            pass = signal;
        }
        ptrace(libc::PTRACE_CONT, thread, usize::try_from(pass).unwrap());
    }

    /// A call begins; whether its end is of interest.
    fn call(&mut self, thread: i32) -> bool {
        // SAFETY: all zero will do for numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, thread, (&raw mut registers).addr());
        let call = registers.orig_rax.cast_signed();
        if call == BEGIN || call == CALM {
            if thread == self.owner {
                self.counts = call == BEGIN;
            }
            return false;
        }
        if !self.counts
            || self.roles[&thread] != self.role
            || !may_fail(self.owner, thread, &registers)
        {
            return false;
        }
        self.seen += 1;
        if self.seen != self.nth {
            return false;
        }
        self.failed = Some(call);
        let error = CALLS.iter().find(|(other, _)| *other == call).unwrap().1;
        if error == 0 {
            // The call succeeds, and there is no room for the descriptors.
            let before = limit_of(thread, None);
            limit_of(thread, Some(libc::rlimit { rlim_cur: 0, ..before }));
            self.lowered = Some((thread, before));
            return true;
        }
        registers.orig_rax = u64::MAX; // is not made at all
        registers.rax = i64::from(-error).cast_unsigned();
        ptrace(libc::PTRACE_SETREGS, thread, (&raw mut registers).addr());
        false
    }
}

/// Whether the call is of the kind that needs a descriptor, memory or a process.
fn may_fail(owner: i32, thread: i32, registers: &libc::user_regs_struct) -> bool {
    let low = |register: u64| register & 0xffff_ffff;
    match registers.orig_rax.cast_signed() {
        // The standard library ends the process if a thread of its own gets no stack for signals.
        libc::SYS_mmap if thread != owner => registers.rsi > 64 * 1024 || low(registers.rdx) != 3,
        libc::SYS_mprotect if thread != owner => registers.rsi != 4_096 || low(registers.rdx) != 0,
        libc::SYS_fcntl => {
            let copies = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC];
            copies.iter().any(|how| low(registers.rsi) == u64::from(how.cast_unsigned()))
        }
        libc::SYS_sendmsg => {
            // The length of the control block, in which descriptors go.
            let address = registers.rsi + 40;
            // SAFETY: reads a word of the stopped thread.
            let length = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, thread, address, 0_usize) };
            length > 0
        }
        _ => true,
    }
}

fn run(role: Role, nth: u64) -> Run {
    let filter = filter();
    let mut command = part("scenario");
    command.env("SCENARIO", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or(0),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: takes no pointers.
        let mut refused = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0;
        // SAFETY: takes no pointers.
        refused |= unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0;
        let with_filter = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the program and its statements live.
        refused |=
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, with_filter, &raw const program) } != 0;
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: makes system calls only.
    let mut child = unsafe { command.pre_exec(program) }.spawn().unwrap();
    let owner = i32::try_from(child.id()).unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    });
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    let all = Arc::new(Mutex::new(vec![owner]));
    let (done, watch) = channel::<()>();
    let threads = Arc::clone(&all);
    let watchdog = std::thread::spawn(move || {
        let hangs = watch
            .recv_timeout(LIMIT)
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout);
        if hangs {
            threads.lock().unwrap().iter().for_each(|&pid| runner::kill(pid.cast_unsigned()));
        }
        hangs
    });
    let mut tracer = Tracer {
        role,
        nth,
        seen: 0,
        counts: false,
        failed: None,
        owner,
        roles: HashMap::from([(owner, Role::Owner)]),
        early: Vec::new(),
        lowered: None,
    };
    let options = libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACESYSGOOD;
    let (mut code, mut status, mut known) = (None, 0, false);
    while !tracer.roles.is_empty() {
        // SAFETY: writes to the live variable.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        assert!(thread > 0, "{:?}", std::io::Error::last_os_error());
        if !known {
            // The program has just begun, which is told by a signal that is not for it.
            known = true;
            assert!(ptrace(libc::PTRACE_SETOPTIONS, owner, options.cast_unsigned() as usize));
            ptrace(libc::PTRACE_CONT, owner, 0);
            continue;
        }
        if libc::WIFSTOPPED(status) {
            tracer.stopped(thread, status);
            let mut all = all.lock().unwrap();
            if !all.contains(&thread) {
                all.push(thread);
            }
        } else {
            tracer.roles.remove(&thread);
            all.lock().unwrap().retain(|&other| other != thread);
            if thread == owner {
                code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            }
        }
    }
    child.wait().ok(); // its status was taken above
    drop(done);
    let hangs = if watchdog.join().unwrap() { "it hangs\n" } else { "" };
    let said = said.join().unwrap() + hangs;
    let said = if code == Some(0) { said } else { said + &complaints.join().unwrap() };
    Run { code, said, failed: tracer.failed }
}

fn sweep(role: Role) {
    let stride = std::env::var("STRIDE").map_or(1, |text| text.parse().unwrap());
    let calm = run(role, 0);
    assert_eq!(calm.code, Some(0), "{}", calm.said);
    let (mut nth, mut bad) = (1, Vec::new());
    loop {
        let Run { code, said, failed } = run(role, nth);
        let Some(call) = failed else { break };
        if code != Some(0) || said != calm.said {
            bad.push(nth);
            eprintln!(
                "{role:?}: call {nth}, system call {call}: code {code:?}, not {:?}: {said}",
                calm.said
            );
        }
        nth += stride;
    }
    assert!(nth > 10, "few calls were seen");
    assert!(bad.is_empty(), "{role:?}: {bad:?}");
    eprintln!("{role:?}: {nth} calls, every {stride}th");
}
