//! Runs a process one machine instruction at a time, and kills it after any of them.
use libc::{c_int, c_long, pid_t};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::ptr::{null, null_mut};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long a process may take for what takes microseconds, before that counts as a hang.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same where a hang is what is expected.
const LITTLE_PATIENCE: Duration = Duration::from_millis(500);
thread_local! {
    /// Whether this thread, or the one whose process it was forked from, expects a hang. (Other
    /// sweeps run beside it.)
    static EXPECTS_A_HANG: Cell<bool> = const { Cell::new(false) };
}

/// How long a process may take for what takes microseconds, before that counts as a hang.
pub(crate) fn patience() -> Duration {
    if EXPECTS_A_HANG.get() { LITTLE_PATIENCE } else { PATIENCE }
}

/// Whether from here on a hang is what is expected.
pub(crate) fn expect_a_hang(is_expected: bool) {
    EXPECTS_A_HANG.set(is_expected);
}

/// A child made by `fork`. Killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: pid_t,
    reaped: bool,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exited(c_int),
    Killed(c_int),
}

/// Starts `body` in a child process, which exits with what it returns; a panic is status 101.
pub(crate) fn fork(body: impl FnOnce() -> c_int) -> Child {
    // SAFETY: the child uses what the parent's thread had, and the library's own handlers make its
    // state whole; it ends by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        die_with_parent();
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
        // SAFETY: ends the process.
        unsafe { libc::_exit(status) };
    }
    Child { pid, reaped: false }
}

fn die_with_parent() {
    // SAFETY: prctl with integers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

impl Child {
    /// Kills the process (all its threads) and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if !self.reaped {
            // SAFETY: signals our own child, which is not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.wait_blocking();
        }
    }

    /// Waits for the end; `None` if that takes longer than [`patience`].
    pub(crate) fn end(&mut self) -> Option<End> {
        let started = Instant::now();
        loop {
            match self.poll() {
                Some(Status::Ended(end)) => return Some(end),
                _ if started.elapsed() > patience() => return None,
                _ => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }

    /// How the process has ended, if it has.
    #[cfg(not(outlast_pthread))]
    pub(crate) fn end_now(&mut self) -> Option<End> {
        match self.poll() {
            Some(Status::Ended(end)) => Some(end),
            _ => None,
        }
    }

    /// Waits for the end, as long as that takes.
    pub(crate) fn end_whenever(&mut self) -> End {
        loop {
            if let Some(Status::Ended(end)) = wait(self.pid, 0) {
                self.reaped = true;
                return end;
            }
        }
    }

    fn wait_blocking(&mut self) {
        while !self.reaped {
            self.reaped = !matches!(wait(self.pid, 0), Some(Status::Stopped(..)));
        }
    }

    fn poll(&mut self) -> Option<Status> {
        let status = wait(self.pid, libc::WNOHANG);
        self.reaped |= matches!(status, Some(Status::Ended(_)));
        status
    }

    /// Whether the process's first thread is asleep in a futex call.
    pub(crate) fn is_asleep(&self) -> bool {
        is_asleep(self.pid)
    }

    /// Waits until the process's first thread sleeps in a futex call.
    pub(crate) fn wait_asleep(&mut self) {
        let started = Instant::now();
        while !self.is_asleep() {
            assert!(started.elapsed() < patience(), "the process does not fall asleep");
            if let Some(Status::Ended(end)) = self.poll() {
                panic!("the process ended before it slept: {end:?}");
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// By a signal, and with it perhaps an event that the tracer asked for.
    Stopped(c_int, c_int),
    Ended(End),
}

/// Whether and how a child's or a traced thread's state has changed.
fn wait(pid: pid_t, flags: c_int) -> Option<Status> {
    let mut status = 0;
    // SAFETY: writes a status that lives here.
    let r = unsafe { libc::waitpid(pid, &raw mut status, flags | libc::__WALL) };
    if r != pid {
        None
    } else if libc::WIFSTOPPED(status) {
        Some(Status::Stopped(libc::WSTOPSIG(status), status >> 16))
    } else if libc::WIFEXITED(status) {
        Some(Status::Ended(End::Exited(libc::WEXITSTATUS(status))))
    } else {
        Some(Status::Ended(End::Killed(libc::WTERMSIG(status))))
    }
}

/// Whether a thread is asleep on a futex that processes share. (Threads that wait for each other
/// within a process, while one starts, use private ones, which say so in the call.)
fn is_asleep(thread: pid_t) -> bool {
    let call = call_of(thread);
    let mut words = call.split(' ');
    match words.next() {
        Some("202") => matches!(words.nth(1), Some("0x0" | "0x9")),
        Some("449") => true,
        _ => false,
    }
}

/// Whether a thread sleeps with a deadline; or does not sleep any more.
fn may_look_again(thread: pid_t) -> bool {
    let call = call_of(thread);
    !matches!(call.split(' ').nth(4), Some("0x0"))
}

/// The address of the instruction after the system call that a thread sleeps in.
fn sleeps_at(thread: pid_t) -> Option<usize> {
    let call = call_of(thread);
    let (_, address) = call.trim_end().rsplit_once(" 0x")?;
    usize::from_str_radix(address, 16).ok()
}

/// The system call that a thread sleeps in: its number, arguments, stack and next instruction.
fn call_of(thread: pid_t) -> String {
    std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default()
}

/// Who waits for messages looks again once after a while, without a wake: after that, it sleeps for
/// good.
pub(crate) const DOZE: Duration = Duration::from_millis(20);

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// One instruction was executed.
    Done,
    /// The instruction is a system call, and the process sleeps in it.
    Asleep,
    /// The operation is over.
    Finished,
}

/// A process that runs only when told.
#[derive(Debug)]
pub(crate) struct Victim {
    child: Child,
    /// The thread that is stepped: the first, or the one that the operation started.
    thread: pid_t,
    asleep: bool,
    /// Its sleeps are short, since it waits only for a thread that it has started, and count as
    /// steps.
    waits_for_its_own: bool,
}

fn ptrace(request: libc::c_uint, pid: pid_t, address: usize, data: usize) -> c_long {
    // SAFETY: none of the requests made here writes to our memory.
    unsafe { libc::ptrace(request, pid, address, data) }
}

impl Victim {
    /// Starts a process that runs `prepare`, stops, and then does what that returned step by step.
    pub(crate) fn start<F: FnOnce()>(prepare: impl FnOnce() -> F) -> Self {
        let mut child = fork(|| {
            ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            let operation = prepare();
            mark();
            operation();
            mark();
            0
        });
        let started = Instant::now();
        loop {
            match wait(child.pid, libc::WNOHANG) {
                Some(Status::Stopped(libc::SIGSTOP, _)) => break,
                Some(Status::Stopped(signal, _)) => {
                    panic!("the victim got signal {signal} while it prepared")
                }
                Some(Status::Ended(end)) => {
                    child.reaped = true;
                    panic!("the victim ended while it prepared: {end:?}");
                }
                None if started.elapsed() > patience() => {
                    panic!("the victim hangs while it prepares")
                }
                None => std::thread::sleep(Duration::from_micros(20)),
            }
        }
        let thread = child.pid;
        let victim = Victim { child, thread, asleep: false, waits_for_its_own: false };
        victim.set_options(libc::PTRACE_O_EXITKILL);
        victim
    }

    fn set_options(&self, options: c_int) {
        let options = usize::try_from(options).unwrap_or(0);
        ptrace(libc::PTRACE_SETOPTIONS, self.child.pid, 0, options);
    }

    /// Waits wherever the victim waits for a thread that the operation starts, and that runs
    /// freely.
    pub(crate) fn wait_for_its_threads(&mut self) {
        self.waits_for_its_own = true;
    }

    /// Lets the first thread run freely from here on, and steps the thread that it starts.
    pub(crate) fn follow_new_thread(&mut self) {
        let main = self.child.pid;
        self.set_options(libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE);
        ptrace(libc::PTRACE_CONT, main, 0, 0);
        let Some(Status::Stopped(libc::SIGTRAP, libc::PTRACE_EVENT_CLONE)) = wait(main, 0) else {
            panic!("the operation started no thread");
        };
        let mut thread: libc::c_ulong = 0;
        // SAFETY: the kernel writes the new thread's id to a variable that lives here.
        unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, main, 0, &raw mut thread) };
        self.thread = pid_t::try_from(thread).unwrap_or(0);
        assert!(matches!(wait(self.thread, 0), Some(Status::Stopped(..))));
        ptrace(libc::PTRACE_CONT, main, 0, 0);
    }

    /// Kills the process, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if self.thread != self.child.pid {
            // SAFETY: signals our own child, which is not reaped yet.
            unsafe { libc::kill(self.child.pid, libc::SIGKILL) };
            // Its first thread cannot be reaped before this one.
            while matches!(wait(self.thread, 0), Some(Status::Stopped(..))) {}
        }
        self.child.kill();
    }

    /// Executes one instruction.
    pub(crate) fn step(&mut self) -> Step {
        if !self.asleep {
            let r = ptrace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0);
            assert_eq!(r, 0, "singlestep: {}", io::Error::last_os_error());
        }
        self.finish_step()
    }

    fn finish_step(&mut self) -> Step {
        let started = Instant::now();
        let mut looks = 0_u32;
        loop {
            match wait(self.thread, libc::WNOHANG) {
                Some(Status::Stopped(libc::SIGSTOP, _)) => return Step::Finished,
                Some(Status::Stopped(libc::SIGTRAP, _)) => {
                    self.asleep = false;
                    return Step::Done;
                }
                Some(Status::Stopped(signal, _)) => panic!("the victim got signal {signal}"),
                Some(Status::Ended(_)) if self.thread != self.child.pid => {
                    self.thread = self.child.pid;
                    return Step::Finished;
                }
                Some(Status::Ended(end)) => {
                    self.child.reaped = true;
                    panic!("the victim ended: {end:?}");
                }
                None => {}
            }
            looks += 1;
            let may_sleep = !self.waits_for_its_own && looks > 200 && looks.is_multiple_of(50);
            if may_sleep && is_asleep(self.thread) {
                // Twice, as it may be about to return.
                std::thread::sleep(Duration::from_micros(100));
                if is_asleep(self.thread) {
                    self.asleep = true;
                    return Step::Asleep;
                }
            }
            assert!(started.elapsed() < patience(), "a step takes too long");
            std::thread::yield_now(); // to the victim, on the same CPU
        }
    }

    /// Executes so many instructions, unless it falls asleep or ends before: in one go up to one of
    /// the last of them, if the way is known. False if it took another way: what others do may lead
    /// it there.
    pub(crate) fn steps(&mut self, steps: usize, way: &Way) -> bool {
        let mut done = 0;
        if self.asleep && steps > 0 {
            if self.step() != Step::Done {
                return way.next.is_empty(); // another was woken; in the end, it dies where it sleeps
            }
            done = 1;
        }
        if let Some((step, address, times)) = way.shortcut(done, steps) {
            self.stop_at(Some(address));
            if (0..times).any(|_| self.run_on() != Step::Done) {
                return false; // and perhaps it sleeps: then there is nothing to be set
            }
            self.stop_at(None);
            done = step;
        }
        for _ in done..steps {
            if self.step() != Step::Done {
                break;
            }
        }
        true
    }

    /// Runs until it sleeps in a system call; false if the operation ends first.
    pub(crate) fn run_until_asleep(&mut self, way: &mut Way) -> bool {
        // It then stops as soon as it is woken, as a single step does.
        self.stop_at(way.sleep);
        loop {
            let step = if way.sleep.is_some() { self.run_on() } else { self.step() };
            match step {
                Step::Asleep if self.stays_asleep() => break,
                Step::Done | Step::Asleep => {}
                Step::Finished => return false,
            }
        }
        way.sleep = sleeps_at(self.thread);
        true
    }

    /// Whether it sleeps for good, or has at least not looked again after a while. (If it has, it
    /// is stopped.)
    fn stays_asleep(&mut self) -> bool {
        let until = Instant::now() + DOZE;
        while may_look_again(self.thread) && Instant::now() < until {
            match wait(self.thread, libc::WNOHANG) {
                None => std::thread::sleep(Duration::from_micros(200)),
                Some(Status::Stopped(libc::SIGTRAP, _)) => {
                    self.asleep = false;
                    return false;
                }
                other => panic!("the victim was to sleep: {other:?}"),
            }
        }
        true
    }

    /// Executes instructions up to where it is to stop.
    fn run_on(&mut self) -> Step {
        if !self.asleep {
            let r = ptrace(libc::PTRACE_CONT, self.thread, 0, 0);
            assert_eq!(r, 0, "continue: {}", io::Error::last_os_error());
        }
        self.finish_step()
    }

    /// Has the processor stop the thread before it executes the instruction there.
    fn stop_at(&mut self, address: Option<usize>) {
        let register = |n| offset_of!(libc::user, u_debugreg) + n * size_of::<usize>();
        let set = |n, value| {
            let r = ptrace(libc::PTRACE_POKEUSER, self.thread, register(n), value);
            assert_eq!(r, 0, "debug register: {}", io::Error::last_os_error());
        };
        // Bit 0 of register 7 makes use of register 0; its other bits, if 0, mean execution.
        set(7, 0);
        if let Some(address) = address {
            set(0, address);
            set(7, 1);
        }
    }

    /// What a kill right now would leave beside the shared memory: the robust list's head and its
    /// pending field; and whether the next instruction, which is at that address, is a futex call.
    pub(crate) fn surroundings(&self) -> Surroundings {
        let mut head = 0_usize;
        let mut len = 0_usize;
        // SAFETY: the kernel writes two words that live here.
        unsafe {
            libc::syscall(libc::SYS_get_robust_list, self.thread, &raw mut head, &raw mut len)
        };
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        // SAFETY: the kernel fills the structure that it is given.
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.thread, 0, registers.as_mut_ptr()) };
        // SAFETY: filled right before; it is made of integers.
        let registers = unsafe { registers.assume_init() };
        let next = usize::try_from(registers.rip).unwrap_or(0);
        let robust = [self.peek(head), self.peek(head + 8), self.peek(head + 16)];
        let futex = [libc::SYS_futex, libc::SYS_futex_waitv]
            .iter()
            .any(|&call| call.cast_unsigned() == registers.rax);
        let is_call = self.peek(next) & 0xffff == 0x050f && futex;
        Surroundings { robust, next, is_call }
    }

    fn peek(&self, address: usize) -> usize {
        let mut word = 0_usize;
        let here = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<usize>() };
        let there = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: size_of::<usize>(),
        };
        // SAFETY: copies one word into `word`.
        unsafe {
            libc::process_vm_readv(self.child.pid, &raw const here, 1, &raw const there, 1, 0)
        };
        word
    }
}

/// What [`Victim::surroundings`] tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) robust: [usize; 3],
    pub(crate) next: usize,
    pub(crate) is_call: bool,
}

/// The way that an operation took once, by which another victim is brought to the same instruction
/// without a stop after each before it.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// The address of the next instruction, at first and after each step.
    next: Vec<usize>,
    /// How often that address has been come to since the first step, by then.
    times: Vec<usize>,
    /// The same by address, so far.
    comings: HashMap<usize, usize>,
    /// Where the process slept before.
    sleep: Option<usize>,
}

impl Way {
    /// Does what leads a victim along the way, and does it once more by single steps if that says
    /// that it did not get there.
    pub(crate) fn follow(
        &mut self,
        mut lead: impl FnMut(&mut Way) -> Result<bool, String>,
    ) -> Result<(), String> {
        if !lead(self)? {
            lead(&mut Way { sleep: self.sleep, ..Way::default() })?;
        }
        Ok(())
    }

    /// Takes down where a victim is at first, and after each step.
    pub(crate) fn push(&mut self, next: usize) {
        // A string instruction that repeats itself is come to once, and counts as many steps.
        let is_come_to = self.next.last().is_some_and(|&last| last != next);
        let times = self.comings.entry(next).or_default();
        *times += usize::from(is_come_to);
        self.times.push(*times);
        self.next.push(next);
    }

    /// How to get from one step to a later one with the fewest stops: the step to go to in one go,
    /// its address, and how often the victim will come there; the rest is single steps.
    fn shortcut(&self, from: usize, to: usize) -> Option<(usize, usize, usize)> {
        let here = *self.next.get(from)?;
        // The last step ends in the signal that tells of the end: no breakpoint is come to there.
        (from + 1..=to.min(self.next.len() - 2))
            .filter(|&step| self.next[step] != here && self.next[step] != self.next[step - 1])
            .map(|step| (step, self.next[step], self.times[step]))
            .min_by_key(|&(step, _, times)| times + (to - step))
    }
}

/// Stops the traced process.
fn mark() {
    // SAFETY: raises a signal that the tracer catches.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// How many CPUs there are, whichever this thread keeps to.
pub(crate) fn cpus() -> usize {
    // SAFETY: takes no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Keeps this thread, and the children it makes, on one CPU.
pub(crate) fn pin_to(cpu: usize) {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: an all-zero set is a set.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: a CPU that there is, of those that a set has room for.
    unsafe { libc::CPU_SET(cpu, set) };
    // SAFETY: reads a set that lives here. If it fails, steps are slower.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
}

/// Memory that forked processes share, zero-filled, for the negative controls.
pub(crate) fn shared_page<T>() -> &'static T {
    assert!(size_of::<T>() <= 4096 && align_of::<T>() <= 4096);
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: asks for fresh memory.
    let page = unsafe { libc::mmap(null_mut(), 4096, protection, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: fresh, zero-filled, aligned memory that is never unmapped; the controls keep only
    // atomics and pthread objects in it.
    unsafe { &*page.cast_const().cast() }
}

/// Sleeps on a futex while it has the value.
pub(crate) fn futex_wait(word: &std::sync::atomic::AtomicU32, value: u32) {
    // SAFETY: a live word, no timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            null::<libc::timespec>(),
        )
    };
}

/// A victim comes to the same instruction, having done the same, by single steps and by its way.
#[test]
fn the_known_way_leads_where_single_steps_do() {
    crate::sweep::apart(|_| {
        let page = shared_page::<[AtomicU64; 64]>();
        let start = || {
            page.iter().for_each(|word| word.store(0, Relaxed));
            Victim::start(|| {
                || {
                    for round in 0..6 {
                        // A string instruction or a call, and a loop.
                        let from = std::hint::black_box([round; 64]);
                        page.iter().zip(from).for_each(|(word, n)| word.store(n + 1, Relaxed));
                    }
                }
            })
        };
        let state = |victim: &Victim| {
            let written: u64 = page.iter().map(|word| word.load(Relaxed)).sum();
            (victim.surroundings().next, written)
        };
        let mut way = Way::default();
        let mut states = Vec::new();
        let mut stepped = start();
        loop {
            states.push(state(&stepped));
            way.push(state(&stepped).0);
            if stepped.step() != Step::Done {
                break;
            }
        }
        assert!(states.last().is_some_and(|&(_, written)| written == 6 * 64));
        stepped.kill();
        for step in (0..states.len()).step_by(states.len() / 50) {
            let mut victim = start();
            assert!(victim.steps(step, &way));
            assert_eq!(state(&victim), states[step], "after {step} of {} steps", states.len());
        }
    });
}
