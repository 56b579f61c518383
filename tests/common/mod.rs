//! The harness: it runs one test body in four worlds, reaps all children, and has a watchdog.
//!
//! The helpers keep these rules:
//! - A child is reaped, and its exit status is asserted.
//! - A watchdog ends each test that could hang.
//! - No test asserts a *maximum* time. A test asserts that no call returns too early, that a
//!   sleeping thread uses no CPU, and that every call returns.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#![expect(unsafe_code, reason = "fork, signals and memory shared without the crate under test")]
use core::fmt::Debug;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU32};
use outlast::{CommandExt, Shareable, Shared};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen. It is long because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// How long a whole test may take before the watchdog ends it.
const LIMIT: Duration = Duration::from_secs(120);
/// The exit status of a part that was played. It is not 0: a test program that finds no test of the
/// given name exits with 0.
const PART_DONE: i32 = 73;

/// Makes message `n`, of `len` bytes. A message with bytes of another message differs from it.
pub(crate) fn text(n: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| n.wrapping_mul(31).wrapping_add(i * 7).to_le_bytes()[0]).collect()
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

// ---------------------------------------------------------------------------------------- children

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

pub(crate) const OK: Exit = Exit::Code(0);
pub(crate) const KILLED: Exit = Exit::Signal(libc::SIGKILL);

/// The leaders of the process groups that the watchdog has to kill.
static CHILDREN: Mutex<Vec<libc::pid_t>> = Mutex::new(Vec::new());

fn children() -> std::sync::MutexGuard<'static, Vec<libc::pid_t>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child process, in a process group of its own. Killed if it is dropped without having been
/// waited for.
#[derive(Debug)]
#[must_use = "a child is to be waited for"]
pub(crate) struct Child {
    pub(crate) pid: libc::pid_t,
    reaped: bool,
}

/// Runs `body` in a forked child, which then calls `exit`: its peers see that it has left.
///
/// The kernel kills the child when the calling thread ends.
pub(crate) fn fork_child(body: impl FnOnce()) -> Child {
    let parent = std::process::id();
    show_panics_of_children();
    // Held across the fork: otherwise another thread could hold this lock, for ever in the child.
    let mut registered = children();
    // SAFETY: takes nothing. The child uses `malloc` and the like, which glibc keeps usable in it.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        registered.clear();
        drop(registered);
        become_child(parent);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
        // SAFETY: ends this process; what `atexit` registered is to run.
        unsafe { libc::exit(if outcome.is_ok() { 0 } else { 101 }) }
    }
    registered.push(pid);
    drop(registered);
    own_group(pid);
    Child { pid, reaped: false }
}

/// The first steps of each child: it asks to be killed with its parent, or after a while, and shows
/// its panics.
fn become_child(parent: u32) {
    own_group(0);
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: takes nothing.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        exit_now(100); // the parent had ended before
    }
    rearm();
    IN_CHILD.store(true, SeqCst);
}

/// Whether this process is a child of the test program.
static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Shows panics of children in spite of the test runner, which captures output.
///
/// Called before the fork. A child cannot change the hook: a thread of its parent may have been
/// panicking at the fork, and in the child the hook's lock then stays locked.
fn show_panics_of_children() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_CHILD.load(SeqCst) {
                complain(&format!("in child: {info}"));
            } else {
                usual(info);
            }
        }));
    });
}

/// Restarts the time after which the calling child is killed.
pub(crate) fn rearm() {
    // Longer than the watchdog waits, whose report says more.
    let seconds = u32::try_from(2 * LIMIT.as_secs()).unwrap_or(u32::MAX);
    // SAFETY: takes no pointers.
    unsafe { libc::alarm(seconds) };
}

fn own_group(pid: libc::pid_t) {
    // SAFETY: takes no pointers. Parent and child both call it; the second call may fail.
    unsafe { libc::setpgid(pid, pid) };
}

/// Ends this process without its exit handlers: its peers see a death, as after a kill.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(code) }
}

/// Sleeps until killed.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Writes a line to standard error in spite of the test runner, which captures output.
pub(crate) fn complain(text: &str) {
    let line = format!("[{}] {text}\n", std::process::id());
    // SAFETY: reads as many bytes as the string has.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

impl Child {
    /// Takes over a child that a [`Command`] started as the leader of its own process group.
    fn adopt(child: &std::process::Child) -> Child {
        let pid = libc::pid_t::try_from(child.id()).expect("a pid is positive");
        children().push(pid);
        Child { pid, reaped: false }
    }

    /// Waits until the child ends. Returns how it ended, and the CPU time that it used.
    pub(crate) fn wait_with_cpu(mut self) -> (Exit, Duration) {
        let mut status = 0;
        let mut usage = core::mem::MaybeUninit::<libc::rusage>::zeroed();
        loop {
            // SAFETY: writes to the two live variables.
            let r = unsafe { libc::wait4(self.pid, &raw mut status, 0, usage.as_mut_ptr()) };
            if r == self.pid {
                break;
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "wait4: {error}");
        }
        self.reaped = true;
        children().retain(|&pid| pid != self.pid);
        // SAFETY: plain numbers, for which zero will do.
        let usage = unsafe { usage.assume_init() };
        let exit = if libc::WIFSIGNALED(status) {
            Exit::Signal(libc::WTERMSIG(status))
        } else {
            Exit::Code(libc::WEXITSTATUS(status))
        };
        (exit, cpu_of(&usage))
    }

    pub(crate) fn wait(self) -> Exit {
        self.wait_with_cpu().0
    }

    /// Waits until the child ends, and asserts that it succeeded.
    #[track_caller]
    pub(crate) fn succeeds(self) {
        assert_eq!(self.wait(), OK, "a child failed");
    }

    /// Kills the child, and asserts that it was alive until then.
    #[track_caller]
    pub(crate) fn kill9(self) {
        self.signal(libc::SIGKILL);
        assert_eq!(self.wait(), KILLED, "a child ended before it was killed");
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: takes no pointers.
        let r = unsafe { libc::kill(self.pid, signal) };
        assert_eq!(r, 0, "kill: {}", io::Error::last_os_error());
    }

    /// Waits until all threads of the child have stopped.
    #[track_caller]
    pub(crate) fn until_stopped(&self) {
        let is_stopped = |task: io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            // The state follows the name, which is in brackets.
            stat.is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
            })
        };
        eventually("a child is stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
            tasks.is_ok_and(|tasks| tasks.into_iter().all(is_stopped))
        });
    }

    /// Waits until the child's first thread sleeps on a word in shared memory.
    #[track_caller]
    pub(crate) fn until_waiting(&self) {
        let pid = self.pid;
        eventually("a child waits", || waits(pid, pid));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: takes no pointers.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
            // SAFETY: takes no pointers.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // SAFETY: null is allowed where the status is not wanted.
            unsafe { libc::waitpid(self.pid, core::ptr::null_mut(), 0) };
            children().retain(|&pid| pid != self.pid);
        }
    }
}

/// Whether the child has not ended yet. This does not reap it.
pub(crate) fn is_alive(pid: libc::pid_t) -> bool {
    // SAFETY: all zero is an empty answer.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let id = libc::id_t::try_from(pid).expect("a pid is positive");
    // SAFETY: writes to the live variable.
    let r = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) };
    // SAFETY: set by waitid, or zero.
    r == 0 && unsafe { info.si_pid() } == 0
}

/// How many threads this process has.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("the threads").count()
}

/// The processor time that this thread uses in `body`.
pub(crate) fn cpu_time(body: impl FnOnce()) -> Duration {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is this call's own.
        let read = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert_eq!(read, 0);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    };
    let began = now();
    body();
    now() - began
}

/// The kernel's id of the calling thread.
pub(crate) fn thread_id() -> libc::pid_t {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

/// Makes `handler` the calling process's handler of a signal. The signal interrupts system calls,
/// since `SA_RESTART` is not set.
pub(crate) fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: all zero is an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // SAFETY: the handlers of these tests touch atomics only.
    let r = unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) };
    assert_eq!(r, 0);
}

/// Gives the calling process a handler of SIGUSR1 that does nothing.
pub(crate) fn catch_user_signals() {
    extern "C" fn nothing(_signal: i32) {}
    handle(libc::SIGUSR1, nothing);
}

/// Filters the system calls of this process, and of programs that it executes, by `program`. The
/// steps of a program are in [`filter_step`].
pub(crate) fn filter_calls(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: takes no pointers.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the filter points to a program that lives during the call.
    let filtered =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    match (privileges, filtered) {
        (0, 0) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The steps of a filter of system calls.
pub(crate) mod filter_step {
    use libc::sock_filter;

    fn step(code: u32, jt: u8, k: u32) -> sock_filter {
        sock_filter { code: u16::try_from(code).expect("16 bits"), jt, jf: 0, k }
    }

    /// Loads the number of the call. This is the first step of a program.
    pub(crate) fn load() -> sock_filter {
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)
    }

    /// Skips `steps` steps if the number is that of `call`.
    pub(crate) fn pass_over_if(steps: u8, call: libc::c_long) -> sock_filter {
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            steps,
            u32::try_from(call).expect("32 bits"),
        )
    }

    /// Ends the program with this answer.
    pub(crate) fn answer(with: u32) -> sock_filter {
        step(libc::BPF_RET | libc::BPF_K, 0, with)
    }
}

/// Whether the thread sleeps in a futex call on shared memory. A futex call on private memory has
/// another operation number.
pub(crate) fn waits(pid: libc::pid_t, tid: libc::pid_t) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"));
    let call = call.unwrap_or_default();
    let mut words = call.split(' ');
    let number = words.next().and_then(|number| number.parse().ok());
    // FUTEX_WAIT, or FUTEX_WAIT_BITSET, which the C library uses.
    number == Some(libc::SYS_futex) && matches!(words.nth(1), Some("0x0" | "0x9"))
        || number == Some(libc::SYS_futex_waitv)
}

/// Waits until a thread of this process sleeps on a word in shared memory.
#[track_caller]
pub(crate) fn until_waiting(tid: libc::pid_t) {
    let pid = libc::pid_t::try_from(std::process::id()).expect("a pid is positive");
    eventually("a thread waits", || waits(pid, tid));
}

/// The number of the calling thread, for [`is_waiting`] in another process.
pub(crate) fn who_am_i() -> u64 {
    let tid = u64::try_from(thread_id()).expect("a thread id is positive");
    u64::from(std::process::id()) << 32 | tid
}

/// Whether the thread with this number of [`who_am_i`] sleeps on a word in shared memory. There is
/// no thread with the number 0.
pub(crate) fn is_waiting(who: u64) -> bool {
    let number = |bits: u64| libc::pid_t::try_from(bits & 0xffff_ffff).unwrap_or(0);
    who != 0 && waits(number(who >> 32), number(who))
}

/// The CPU time that the calling thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let mut usage = core::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes to the live variable.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: plain numbers, for which zero will do.
    cpu_of(&unsafe { usage.assume_init() })
}

fn cpu_of(usage: &libc::rusage) -> Duration {
    let time = |time: libc::timeval| {
        let whole = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        whole + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Lets this child live on when its parent ends.
pub(crate) fn outlive_parent() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
}

/// Uses the CPU for about `length`.
pub(crate) fn busy(length: Duration) {
    let end = Instant::now() + length;
    while Instant::now() < end {
        core::hint::spin_loop();
    }
}

/// Waits until `is_so` returns `true`. `what` describes this in the panic message.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, is_so);
}

/// Like [`eventually`], with a patience of the test's own.
#[track_caller]
pub(crate) fn eventually_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Memory full of zeros that this process shares with the children it forks, made without the crate
/// under test. It is never freed.
pub(crate) fn plain_shared<T: Shareable>() -> &'static T {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: makes a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(core::ptr::null_mut(), size_of::<T>(), access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: the mapping is as long as a `T`, aligned to a page and never unmapped, and any bytes
    // are a `Shareable` value.
    unsafe { &*at.cast::<T>() }
}

/// Overwrites bytes of a value in shared memory. No peer that follows the protocol does this.
pub(crate) fn scribble<T: Shareable>(over: &T, at: usize, bytes: &[u8]) {
    assert!(at + bytes.len() <= size_of::<T>());
    let start = core::ptr::from_ref(over).cast::<u8>().cast_mut();
    for (i, &byte) in bytes.iter().enumerate() {
        // SAFETY: inside the value.
        let place = unsafe { start.add(at + i) };
        // SAFETY: as above; any bytes are a `Shareable` value.
        unsafe { place.write_volatile(byte) };
    }
}

/// The steps of a test that several threads or processes play: one number in shared memory.
pub(crate) trait Stage {
    /// Declares that step `n` has been reached.
    fn reach(&self, n: u32);
    /// Waits until step `n` has been reached.
    fn until(&self, n: u32);
}

impl Stage for AtomicU32 {
    fn reach(&self, n: u32) {
        self.fetch_max(n, SeqCst);
    }
    #[track_caller]
    fn until(&self, n: u32) {
        eventually(&format!("step {n}"), || self.load(SeqCst) >= n);
    }
}

/// Pseudo-random numbers, the same in each run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("smaller than a usize")
    }
    /// Random bytes. Two thirds of them are 0 or 255, as in numbers near the limits of their types.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let byte = |random: &mut Self| match random.below(3) {
            0 => 0,
            1 => u8::MAX,
            _ => u8::try_from(random.below(256)).expect("a byte"),
        };
        (0..len).map(|_| byte(self)).collect()
    }
    pub(crate) fn micros(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.below(below))
    }
}

// ---------------------------------------------------------------------------------------- watchdog

/// Ends the whole test program and all its children if it is not dropped in time.
#[must_use = "it watches until it is dropped"]
#[derive(Debug)]
pub(crate) struct Watchdog(mpsc::Sender<()>);

/// Watches a test, and prints `shared` if the test hangs. Keeps `shared` alive.
pub(crate) fn watch<T>(name: &str, shared: &Shared<T>) -> Watchdog
where
    T: ?Sized + Shareable + Sync + Debug + 'static,
{
    let shared = shared.clone();
    watch_with(name, move || format!("{shared:#?}"))
}

/// Watches a test that has nothing to print.
pub(crate) fn watch_alone(name: &str) -> Watchdog {
    watch_with(name, String::new)
}

/// Watches a test, and prints what `describe` returns if the test hangs.
pub(crate) fn watch_with(name: &str, describe: impl Fn() -> String + Send + 'static) -> Watchdog {
    watch_for(LIMIT, name, describe)
}

/// Like [`watch_with`], with a limit of the test's own.
pub(crate) fn watch_for(
    limit: Duration,
    name: &str,
    describe: impl Fn() -> String + Send + 'static,
) -> Watchdog {
    let (drop_me, dropped) = mpsc::channel::<()>();
    let name = name.to_owned();
    let watch = move || {
        if dropped.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        complain(&format!("{name}: hangs after {limit:?}"));
        // Only a fork that hangs holds this lock for long, and the watchdog does not wait for it.
        let tries = (0..100).find_map(|_| {
            std::thread::sleep(ms(20));
            CHILDREN.try_lock().ok().map(|children| children.clone())
        });
        let children = tries.unwrap_or_default();
        complain(&states(&children));
        complain(&describe());
        for pid in children {
            // SAFETY: takes no pointers.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
        }
        exit_now(99);
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(watch).expect("a thread");
    Watchdog(drop_me)
}

/// The system calls that the threads of this process and of its children are in.
fn states(children: &[libc::pid_t]) -> String {
    let mut text = String::new();
    let mut pids = children.to_vec();
    pids.push(libc::pid_t::try_from(std::process::id()).unwrap_or(0));
    for pid in pids {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.filter_map(Result::ok) {
            let read = |name: &str| {
                let text = std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
                text.trim().to_owned()
            };
            let (tid, name) = (task.file_name(), read("comm"));
            text.push_str(&format!("{pid}/{tid:?} {name}: {}\n", read("syscall")));
        }
    }
    text
}

// ------------------------------------------------------------------------------------------ worlds

/// Plays the same roles in four worlds:
/// 1. as threads on one mapping,
/// 2. as threads on two mappings of the same segment,
/// 3. as forked processes,
/// 4. as new processes of this program, to which the segment is handed on.
///
/// Each world gets a new segment from `make`, and `check` judges the segment at the end.
///
/// `name` is the test's name in the test runner. `case` distinguishes several calls in one test.
pub(crate) fn worlds<T>(
    name: &str,
    case: &str,
    roles: usize,
    make: impl Fn() -> Shared<T>,
    role: impl Fn(&Shared<T>, usize) + Sync,
    check: impl Fn(&T),
) where
    T: ?Sized + Shareable + Sync + Debug + 'static,
{
    if let Some(part) = my_part().filter(|part| part != ALONE) {
        let (its_case, number) = part.rsplit_once('/').expect("case and number");
        if its_case == case {
            let shared = Shared::<T>::inherited("world").expect("handed on");
            role(&shared, number.parse().expect("a number"));
            drop(shared);
            part_is_done();
        }
        return;
    }
    let each = |world: &str, play: &dyn Fn(&Shared<T>)| {
        let shared = make();
        let _watchdog = watch(&format!("{name} {case}, {world}"), &shared);
        play(&shared);
        check(&shared);
    };
    each("threads", &|shared| {
        std::thread::scope(|scope| {
            for i in 0..roles {
                let role = &role;
                scope.spawn(move || role(shared, i));
            }
        });
    });
    each("two mappings", &|shared| {
        let fd = shared.try_clone_fd().expect("a descriptor");
        let other = Shared::<T>::from_fd(fd).expect("a second mapping");
        std::thread::scope(|scope| {
            for i in 0..roles {
                let (role, mapping) = (&role, if i % 2 == 0 { shared } else { &other });
                scope.spawn(move || role(mapping, i));
            }
        });
    });
    each("forked processes", &|shared| {
        let children: Vec<_> = (0..roles).map(|i| fork_child(|| role(shared, i))).collect();
        children.into_iter().for_each(Child::succeeds);
    });
    each("executed processes", &|shared| {
        let start = |i: usize| {
            start_again(name, &format!("{case}/{i}"), |command| {
                command.share("world", shared);
            })
        };
        let children: Vec<_> = (0..roles).map(start).collect();
        children.into_iter().for_each(Child::has_played);
    });
}

// ------------------------------------------------------------------------- the program once more

/// Starts this program once more for the test `name`, which learns its part from [`my_part`].
pub(crate) fn start_again(name: &str, part: &str, prepare: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("OUTLAST_TEST_PART", part)
        .stdout(Stdio::null())
        .process_group(0);
    prepare(&mut command);
    Child::adopt(&command.spawn().expect("this program starts"))
}

/// The part to play, in a program that [`start_again`] started.
pub(crate) fn my_part() -> Option<String> {
    let part = std::env::var("OUTLAST_TEST_PART").ok()?;
    show_panics_of_children();
    // SAFETY: takes nothing.
    become_child(u32::try_from(unsafe { libc::getppid() }).unwrap_or(0));
    Some(part)
}

/// Runs a test in a process of its own, in which no other test forks children or starts threads.
///
/// A forked child has a copy of every descriptor, so it is a user of every named segment. If a
/// thread starts or ends while a child is forked, a lock of the standard library stays locked in
/// the child. Then no thread that the child starts by the standard library ever runs.
pub(crate) fn in_own_process(name: &str, body: impl FnOnce()) {
    if my_part().is_some() {
        body();
        part_is_done();
    }
    start_again(name, ALONE, |_| {}).has_played();
}

/// The part that is the whole test.
pub(crate) const ALONE: &str = "alone";

/// Ends a program that has played its part.
pub(crate) fn part_is_done() -> ! {
    std::process::exit(PART_DONE)
}

impl Child {
    /// Sends SIGUSR1 to the child while it lives and `so` returns `true`.
    pub(crate) fn disturb_while(&self, so: impl Fn() -> bool) {
        while so() && is_alive(self.pid) {
            self.signal(libc::SIGUSR1);
            std::thread::sleep(ms(4));
        }
    }

    /// Sends SIGUSR1 to the child `times` times, each time when it sleeps, with a pause after each.
    pub(crate) fn disturb_asleep(&self, times: u32, pause: Duration) {
        for _ in 0..times {
            self.until_waiting();
            self.signal(libc::SIGUSR1);
            std::thread::sleep(pause);
        }
    }

    /// Waits for a program that was started once more, and asserts that it has played its part.
    #[track_caller]
    pub(crate) fn has_played(self) {
        let exit = self.wait();
        assert_eq!(
            exit,
            Exit::Code(PART_DONE),
            "its part failed, or there is no test of that name"
        );
    }
}
