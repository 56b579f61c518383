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

/// How long a process may take for work of microseconds before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(3);
/// The patience of a negative control, in which a hang is expected.
const LITTLE_PATIENCE: Duration = Duration::from_millis(500);
thread_local! {
    /// Whether this thread, or the thread that forked this process, expects a hang. Other sweeps
    /// run in other threads.
    static EXPECTS_A_HANG: Cell<bool> = const { Cell::new(false) };
}

/// How long a process may take for work of microseconds before it counts as hanging.
pub(crate) fn patience() -> Duration {
    if EXPECTS_A_HANG.get() { LITTLE_PATIENCE } else { PATIENCE }
}

/// Says whether a hang is expected from here on.
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

/// Starts `body` in a child process. Its exit status is what `body` returns, or 101 after a panic.
pub(crate) fn fork(body: impl FnOnce() -> c_int) -> Child {
    // SAFETY: the child continues with the calling thread's state, which the fork handlers of this
    // crate and of the C library make consistent. It ends by `_exit`.
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

    /// Waits until the process ends. Returns `None` if that takes longer than [`patience`].
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

    /// Waits until the process ends, without a limit.
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

    /// Whether the process's first thread sleeps with a deadline, or sleeps no more.
    pub(crate) fn may_look_again(&self) -> bool {
        may_look_again(self.pid)
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
    /// Stopped by a signal, perhaps with an event that the tracer asked for.
    Stopped(c_int, c_int),
    Ended(End),
}

/// How the state of a child or of a traced thread has changed, if it has.
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

/// Whether a thread sleeps on a futex that processes share. Threads that wait for each other within
/// a process use private futexes, which have other operation numbers.
fn is_asleep(thread: pid_t) -> bool {
    let call = call_of(thread);
    let mut words = call.split(' ');
    match words.next() {
        Some("202") => matches!(words.nth(1), Some("0x0" | "0x9")),
        Some("449") => true,
        _ => false,
    }
}

/// Whether a thread sleeps with a deadline, or sleeps no more.
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

/// The system call that a thread sleeps in: its number, its arguments, and the thread's stack and
/// next instruction.
fn call_of(thread: pid_t) -> String {
    std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default()
}

/// A thread that waits for messages wakes once by itself, after less time than this, and looks
/// again. After that, only a wake or its deadline ends its sleep.
pub(crate) const DOZE: Duration = Duration::from_millis(20);

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The victim executed one instruction.
    Done,
    /// The instruction is a system call, in which the victim sleeps.
    Asleep,
    /// The operation is over.
    Finished,
}

/// A traced process that runs one step at a time.
#[derive(Debug)]
pub(crate) struct Victim {
    child: Child,
    /// The thread that is stepped: the first one, or the one that the operation started.
    thread: pid_t,
    asleep: bool,
    /// The address of the thread's robust list, once it is known.
    robust: Cell<usize>,
    /// The victim sleeps only until a thread that it has started does something. Such a sleep is
    /// short, and counts as a step.
    waits_for_its_own: bool,
}

fn ptrace(request: libc::c_uint, pid: pid_t, address: usize, data: usize) -> c_long {
    // SAFETY: none of the requests made here writes to our memory.
    unsafe { libc::ptrace(request, pid, address, data) }
}

impl Victim {
    /// Starts a process that calls `prepare` and stops. Its steps are those of the operation that
    /// `prepare` returned.
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
        let robust = Cell::new(0);
        let victim = Victim { child, thread, asleep: false, robust, waits_for_its_own: false };
        victim.set_options(libc::PTRACE_O_EXITKILL);
        victim
    }

    fn set_options(&self, options: c_int) {
        let options = usize::try_from(options).unwrap_or(0);
        ptrace(libc::PTRACE_SETOPTIONS, self.child.pid, 0, options);
    }

    /// From here on, a step waits where the victim waits for a thread that the operation starts.
    /// Such a thread runs freely.
    pub(crate) fn wait_for_its_threads(&mut self) {
        self.waits_for_its_own = true;
    }

    /// Lets the first thread run freely, and steps the thread that it starts.
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
        self.robust.set(0);
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
            std::thread::yield_now(); // lets the victim run, which is on the same CPU
            match wait(self.thread, libc::WNOHANG) {
                Some(Status::Stopped(libc::SIGSTOP, _)) => return Step::Finished,
                Some(Status::Stopped(libc::SIGTRAP, _)) => {
                    self.asleep = false;
                    return Step::Done;
                }
                Some(Status::Stopped(signal, _)) => panic!("the victim got signal {signal}"),
                Some(Status::Ended(_)) if self.thread != self.child.pid => {
                    self.thread = self.child.pid;
                    self.robust.set(0);
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
                // The call may be about to return: look twice.
                std::thread::sleep(Duration::from_micros(100));
                if is_asleep(self.thread) {
                    self.asleep = true;
                    return Step::Asleep;
                }
            }
            assert!(started.elapsed() < patience(), "a step takes too long");
        }
    }

    /// Executes `steps` instructions, unless the victim falls asleep or ends before. If the way is
    /// known, the victim runs to one of the last instructions without single steps. Returns `false`
    /// if it took another way, to which the steps of other processes may lead it.
    pub(crate) fn steps(&mut self, steps: usize, way: &Way) -> bool {
        let mut done = 0;
        if self.asleep && steps > 0 {
            if self.step() != Step::Done {
                return way.next.is_empty(); // another one was woken: it dies asleep
            }
            done = 1;
        }
        if let Some((step, address, times)) = way.shortcut(done, steps) {
            self.stop_at(Some(address));
            if (0..times).any(|_| self.run_on() != Step::Done) {
                return false; // perhaps it sleeps, and then no register can be set
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

    /// Runs the victim until it sleeps in a system call. Returns `false` if the operation ends
    /// first.
    pub(crate) fn run_until_asleep(&mut self, way: &mut Way) -> bool {
        // The victim then stops as soon as it is woken, as after a single step.
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

    /// Whether the victim sleeps without a deadline, or has slept for [`DOZE`] without looking
    /// again. If it looks again, it is stopped.
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

    /// Executes instructions up to the breakpoint.
    fn run_on(&mut self) -> Step {
        if !self.asleep {
            let r = ptrace(libc::PTRACE_CONT, self.thread, 0, 0);
            assert_eq!(r, 0, "continue: {}", io::Error::last_os_error());
        }
        self.finish_step()
    }

    /// Sets a breakpoint: the processor stops the thread before the instruction at `address`.
    fn stop_at(&mut self, address: Option<usize>) {
        let register = |n| offset_of!(libc::user, u_debugreg) + n * size_of::<usize>();
        let set = |n, value| {
            let r = ptrace(libc::PTRACE_POKEUSER, self.thread, register(n), value);
            assert_eq!(r, 0, "debug register: {}", io::Error::last_os_error());
        };
        // Bit 0 of register 7 enables register 0. Zeros in its other bits mean: stop at execution.
        set(7, 0);
        if let Some(address) = address {
            set(0, address);
            set(7, 1);
        }
    }

    /// What a kill right now would leave beside the shared memory: the robust list's head and its
    /// pending field. Also tells where the next instruction is, and whether it is a futex call.
    pub(crate) fn surroundings(&self) -> Surroundings {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        // SAFETY: the kernel fills the structure that it is given.
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.thread, 0, registers.as_mut_ptr()) };
        // SAFETY: filled right before; it is made of integers.
        let registers = unsafe { registers.assume_init() };
        let next = usize::try_from(registers.rip).unwrap_or(0);
        let futex = [libc::SYS_futex, libc::SYS_futex_waitv]
            .iter()
            .any(|&call| call.cast_unsigned() == registers.rax);
        let is_call = futex && self.peek::<1>(next)[0] & 0xffff == 0x050f;
        Surroundings { robust: self.peek(self.robust_list()), next, is_call }
    }

    /// The address of the thread's robust list. A thread sets it once, when it starts.
    fn robust_list(&self) -> usize {
        if self.robust.get() == 0 {
            let (mut head, mut len) = (0_usize, 0_usize);
            // SAFETY: the kernel writes two words that live here.
            unsafe {
                libc::syscall(libc::SYS_get_robust_list, self.thread, &raw mut head, &raw mut len)
            };
            self.robust.set(head);
        }
        self.robust.get()
    }

    fn peek<const N: usize>(&self, address: usize) -> [usize; N] {
        let mut words = [0_usize; N];
        let here = libc::iovec { iov_base: (&raw mut words).cast(), iov_len: size_of_val(&words) };
        let there = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: size_of_val(&words),
        };
        // SAFETY: copies `N` words into `words`.
        unsafe {
            libc::process_vm_readv(self.child.pid, &raw const here, 1, &raw const there, 1, 0)
        };
        words
    }
}

/// What [`Victim::surroundings`] tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) robust: [usize; 3],
    pub(crate) next: usize,
    pub(crate) is_call: bool,
}

/// The way that an operation took once. By this way another victim gets to the same instruction
/// with fewer stops.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// The address of the next instruction, at first and after each step.
    next: Vec<usize>,
    /// How often the victim has arrived at that address since the first step.
    times: Vec<usize>,
    /// The same so far, by address.
    arrivals: HashMap<usize, usize>,
    /// The address after the system call in which the process slept before.
    sleep: Option<usize>,
}

impl Way {
    /// Calls `lead`, which leads a victim along the way. If the victim did not get there, `lead` is
    /// called once more, with a way of single steps.
    pub(crate) fn follow(
        &mut self,
        mut lead: impl FnMut(&mut Way) -> Result<bool, String>,
    ) -> Result<(), String> {
        if !lead(self)? {
            lead(&mut Way { sleep: self.sleep, ..Way::default() })?;
        }
        Ok(())
    }

    /// Notes where a victim is at first, and after each step.
    pub(crate) fn push(&mut self, next: usize) {
        // A string instruction that repeats itself is many steps, and one arrival.
        let has_arrived = self.next.last().is_some_and(|&last| last != next);
        let times = self.arrivals.entry(next).or_default();
        *times += usize::from(has_arrived);
        self.times.push(*times);
        self.next.push(next);
    }

    /// How to get from one step to a later one with the fewest stops. Returns a step on the way,
    /// its address, and how often the victim stops there until it has reached that step. The rest
    /// of the way is single steps.
    fn shortcut(&self, from: usize, to: usize) -> Option<(usize, usize, usize)> {
        let here = *self.next.get(from)?;
        // The last step ends in the signal that marks the end, where no breakpoint can be reached.
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

/// The number of CPUs of the machine, whichever of them this thread may use.
pub(crate) fn cpus() -> usize {
    // SAFETY: takes no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Keeps this thread, and the children that it forks, on one CPU.
pub(crate) fn pin_to(cpu: usize) {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a set of zeros is an empty set.
    let set = unsafe { set.assume_init_mut() };
    // SAFETY: the set has room for this CPU.
    unsafe { libc::CPU_SET(cpu, set) };
    // SAFETY: reads a set that lives here. If the call fails, steps are slower.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
}

/// Zero-filled memory that forked processes share, for the negative controls.
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

/// Sleeps on a futex while it has this value.
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

/// By its way, a victim gets to the same instruction as by single steps, and has stored the same.
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
