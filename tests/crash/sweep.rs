//! A sweep kills a process at every instruction of an operation, and checks the survivors each
//! time.
//!
//! A killed process leaves behind exactly what its instructions have stored. Three things change
//! what a kill leaves: a store to the shared memory, a change of the robust list that the kernel
//! reads, and a system call. Two kills with none of these between them are the same kill. So a dry
//! run finds the steps that change something, and the sweep kills the process right before and
//! right after each of them. With `OUTLAST_SWEEP=full` it kills the process after every step.
use crate::stepper::{
    Child, DOZE, End, Step, Victim, Way, cpus, expect_a_hang, fork, patience, pin_to,
};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

/// No operation of this crate has more instructions than this.
const MOST_STEPS: usize = 200_000;
/// How many kill points any sweep takes at most, evenly spread, unless it is to be full.
const MOST_POINTS: usize = 256;

/// A function that prepares an operation, and returns it.
pub(crate) type Operation<W> = for<'w> fn(&'w W) -> Box<dyn FnOnce() + 'w>;

/// What a survivor does or checks. The error says what is wrong.
pub(crate) type Act<W> = fn(&W) -> Result<(), String>;

/// One sweep: a world in shared memory, and what each process does in it.
#[derive(Clone, Copy)]
pub(crate) struct Sweep<'a, W> {
    /// For messages.
    pub(crate) name: &'a str,
    /// Makes a new world.
    pub(crate) world: &'a dyn Fn() -> W,
    /// The shared bytes that a crash leaves to the survivors.
    pub(crate) memory: fn(&W) -> Vec<u8>,
    /// Prepares the victim (for example, attaches it to the segment), and returns the operation in
    /// which it is killed.
    pub(crate) victim: Operation<W>,
    /// The victim is the thread that the operation starts, not the process's first thread.
    pub(crate) thread: bool,
    /// The victim is a forked child that is no peer yet: the operation is its first use of the
    /// segment.
    pub(crate) newcomer: bool,
    /// A negative control: the victim is stopped instead of killed, so neither the kernel nor the
    /// survivors repair anything. A check that passes all the same proves nothing.
    pub(crate) frozen: bool,
    /// Wakes the victim once it sleeps. The instructions after its sleep are swept.
    pub(crate) wake: Option<fn(&W)>,
    /// Processes that fall asleep on the object before the victim's operation, or, if the victim is
    /// woken, after the victim.
    pub(crate) sleepers: &'a [Act<W>],
    /// A process that starts when the victim has been stopped, and has time to fall asleep.
    pub(crate) late: Option<Act<W>>,
    /// What the survivors do while the victim is stopped. It must not wait for the victim.
    pub(crate) meanwhile: Option<Act<W>>,
    /// What is done once the victim is dead, so that the other processes can end.
    pub(crate) after: Option<Act<W>>,
    /// What must hold when they have ended.
    pub(crate) check: Act<W>,
    /// How many kill points this sweep takes at most, evenly spread, unless it is to be full.
    pub(crate) most_points: usize,
}

/// What a sweep found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) instructions: usize,
    /// The number of kill points.
    pub(crate) points: usize,
    /// The number of kill points that were tried.
    pub(crate) killed: usize,
    pub(crate) violations: Vec<String>,
}

impl Report {
    pub(crate) fn new(points: &Points) -> Self {
        let (instructions, points) = (points.steps, points.steps_to_kill_at.len());
        Report { instructions, points, ..Report::default() }
    }

    /// Notes what went wrong in `world` after a kill at `step`.
    pub(crate) fn add(&mut self, step: usize, what: &str, world: &dyn Debug) {
        self.violations.push(format!("killed after {step}: {what}\n  {world:?}"));
    }

    /// Makes a report in a process of its own, and prints its figures.
    pub(crate) fn made_apart(name: &str, make: impl FnOnce() -> Report) -> Self {
        let started = Instant::now();
        let text = apart(|file| {
            let report = make();
            let Report { instructions, points, killed, violations } = report;
            let numbers = format!("{instructions} {points} {killed}");
            let texts: Vec<_> = std::iter::once(numbers).chain(violations).collect();
            file.write_all(texts.join("\0").as_bytes()).expect("room for a report");
        });
        let mut texts = text.split('\0').map(String::from);
        let numbers = texts.next().unwrap_or_default();
        let mut numbers = numbers.split(' ').map(|number| number.parse().expect("a number"));
        let mut number = || numbers.next().expect("three numbers");
        let (instructions, points, killed) = (number(), number(), number());
        let report = Report { instructions, points, killed, violations: texts.collect() };
        eprintln!(
            "{name}: {instructions} instructions, killed at {killed} of {points} points, {} \
             violations, {:.1} s",
            report.violations.len(),
            started.elapsed().as_secs_f64()
        );
        report
    }

    /// Fails the test if there are violations, or if there was nothing to sweep.
    pub(crate) fn must_hold(&self, name: &str) {
        self.violations.iter().take(5).for_each(|violation| eprintln!("{name}: {violation}"));
        assert!(self.violations.is_empty(), "{name}: {} violations", self.violations.len());
        assert!(self.killed > 1, "{name}: nothing was swept");
    }

    /// Fails the test if there are no violations.
    pub(crate) fn must_be_caught(&self, name: &str) {
        assert!(!self.violations.is_empty(), "{name}: not caught");
    }
}

/// The steps after which to kill the victim, found by a dry run.
#[derive(Debug)]
pub(crate) struct Points {
    pub(crate) steps_to_kill_at: BTreeSet<usize>,
    /// The number of all steps.
    pub(crate) steps: usize,
}

impl Points {
    pub(crate) fn new() -> Self {
        Points { steps_to_kill_at: BTreeSet::from([0]), steps: 0 }
    }

    /// Steps the victim until it ends or sleeps, and notes the way.
    pub(crate) fn record(
        &mut self,
        victim: &mut Victim,
        way: &mut Way,
        memory: impl Fn() -> Vec<u8>,
    ) {
        let mut before = (memory(), victim.surroundings());
        way.push(before.1.next);
        while victim.step() == Step::Done {
            self.steps += 1;
            assert!(self.steps < MOST_STEPS, "the operation does not end");
            let now = (memory(), victim.surroundings());
            way.push(now.1.next);
            let is_same = now.0 == before.0 && now.1.robust == before.1.robust;
            if !is_same || before.1.is_call || is_full() {
                self.steps_to_kill_at.extend([self.steps - 1, self.steps]);
            }
            before = now;
        }
        self.steps_to_kill_at.insert(self.steps);
    }
}

/// Runs `body` in a process of its own, on a CPU that no other sweep uses. Returns the text that
/// `body` wrote into the file.
///
/// A step is four times as fast if the tracer and the victim share a CPU. A process of its own
/// keeps the children of other sweeps away from the segments of this one. A forked child is a peer
/// of every segment that its parent has mapped; its death would wake sleepers that the victim left
/// asleep.
pub(crate) fn apart(body: impl FnOnce(&mut File)) -> String {
    let (cpu, _turn) = turn();
    let mut file = tempfile::tempfile().expect("a file");
    // The test harness captures output only in its own process.
    let mut panics = tempfile::tempfile().expect("a file");
    let mut process = fork(|| {
        pin_to(cpu);
        let panics = panics.try_clone().expect("a descriptor");
        std::panic::set_hook(Box::new(move |info| {
            let line = format!("[{}] {info}\n", std::process::id());
            (&panics).write_all(line.as_bytes()).ok();
        }));
        body(&mut file);
        0
    });
    let end = process.end_whenever();
    eprint!("{}", text_of(&mut panics));
    assert_eq!(end, End::Exited(0));
    text_of(&mut file)
}

fn text_of(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().expect("a file");
    file.read_to_string(&mut text).expect("text");
    text
}

/// Waits for a CPU that no other sweep uses. Returns it, and the guard that keeps it.
fn turn() -> (usize, MutexGuard<'static, ()>) {
    static TURNS: [Mutex<()>; 8] = [const { Mutex::new(()) }; 8];
    let cpus = cpus().min(TURNS.len());
    let free = TURNS[..cpus].iter().enumerate().find_map(|(cpu, turn)| match turn.try_lock() {
        Ok(turn) => Some((cpu, turn)),
        Err(TryLockError::Poisoned(turn)) => Some((cpu, turn.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    });
    free.unwrap_or_else(|| {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let cpu = NEXT.fetch_add(1, Relaxed) % cpus;
        (cpu, TURNS[cpu].lock().unwrap_or_else(PoisonError::into_inner))
    })
}

pub(crate) fn is_full() -> bool {
    std::env::var_os("OUTLAST_SWEEP").is_some_and(|value| value == "full")
}

impl<'a, W: Debug> Sweep<'a, W> {
    /// A sweep in which the victim is alone, and a survivor checks what it leaves.
    pub(crate) fn new(
        name: &'a str,
        world: &'a dyn Fn() -> W,
        memory: fn(&W) -> Vec<u8>,
        victim: Operation<W>,
        check: Act<W>,
    ) -> Self {
        Sweep {
            name,
            world,
            memory,
            victim,
            thread: false,
            newcomer: false,
            frozen: false,
            wake: None,
            sleepers: &[],
            late: None,
            meanwhile: None,
            after: None,
            check,
            most_points: MOST_POINTS,
        }
    }

    /// Runs the sweep, and fails the test if there are violations.
    pub(crate) fn must_hold(&self) {
        self.run(usize::MAX).must_hold(self.name);
    }

    /// Runs the sweep, and fails the test if there are no violations.
    pub(crate) fn must_be_caught(&self) {
        self.run(1).must_be_caught(self.name);
    }

    /// Runs the sweep as a negative control, in which nothing is repaired, and fails the test if
    /// there are no violations.
    pub(crate) fn must_be_caught_unmended(self) {
        let name = format!("control: {}; not mended", self.name);
        Sweep { name: &name, frozen: true, ..self }.must_be_caught();
    }

    /// Runs the sweep, up to the violation number `enough`.
    fn run(&self, enough: usize) -> Report {
        Report::made_apart(self.name, || {
            expect_a_hang(self.frozen);
            let mut points = Points::new();
            let mut way = Way::default();
            let world = (self.world)();
            let (mut victim, sleepers) = self.start(&world, &mut way);
            points.record(&mut victim, &mut way, || (self.memory)(&world));
            victim.kill();
            drop((sleepers, world));
            let mut report = Report::new(&points);
            let every = if is_full() {
                1
            } else {
                report.points.div_ceil(self.most_points.min(MOST_POINTS))
            };
            for &step in points.steps_to_kill_at.iter().step_by(every) {
                report.killed += 1;
                let mut last = None;
                let verdict = way.follow(|way| self.point(last.insert((self.world)()), step, way));
                if let (Err(what), Some(world)) = (verdict, last) {
                    report.add(step, &what, &world);
                    if report.violations.len() >= enough {
                        break;
                    }
                }
            }
            report
        })
    }

    /// Returns the victim, stopped before the first instruction that is swept, and the sleepers.
    fn start(&self, world: &W, way: &mut Way) -> (Victim, Vec<Child>) {
        let mut victim = Victim::start(|| (self.victim)(world));
        if self.thread {
            victim.follow_new_thread();
        }
        if self.newcomer {
            victim.wait_for_its_threads();
        }
        if let Some(wake) = self.wake {
            assert!(victim.run_until_asleep(way), "{}: the victim does not sleep", self.name);
            let sleepers = self.sleepers(world);
            wake(world);
            (victim, sleepers)
        } else {
            (victim, self.sleepers(world))
        }
    }

    fn sleepers(&self, world: &W) -> Vec<Child> {
        let start = |body: &Act<W>| {
            let mut child = survivor(world, *body);
            child.wait_asleep();
            child
        };
        let sleepers: Vec<Child> = self.sleepers.iter().map(start).collect();
        // A sleep with a deadline does not show whether it is the last one.
        let began = Instant::now();
        while began.elapsed() < DOZE && sleepers.iter().any(Child::may_look_again) {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        sleepers
    }

    /// Kills a victim after `step` instructions, and judges. Returns `false` if the victim did not
    /// get there by the known way.
    fn point(&self, world: &W, step: usize, way: &mut Way) -> Result<bool, String> {
        let (mut victim, mut others) = self.start(world, way);
        if !victim.steps(step, way) {
            return Ok(false);
        }
        if let Some(late) = self.late {
            others.push(survivor(world, late));
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
        if let Some(meanwhile) = self.meanwhile {
            meanwhile(world).map_err(|what| format!("meanwhile: {what}"))?;
        }
        if !self.frozen {
            victim.kill();
        }
        if let Some(after) = self.after {
            after(world).map_err(|what| format!("after: {what}"))?;
        }
        settle(&mut others)?;
        (self.check)(world)?;
        Ok(true)
    }
}

/// Starts a process whose exit status tells whether `body` succeeded within the patience.
///
/// A wait with a deadline looks once more at the end. So it succeeds even if its wake was lost, but
/// late.
pub(crate) fn survivor<W>(world: &W, body: Act<W>) -> Child {
    let started = Instant::now();
    let body = |world| {
        let verdict = body(world);
        forget_pending();
        verdict
    };
    fork(|| match body(world) {
        Ok(()) if started.elapsed() >= patience() => {
            eprintln!("survivor: not woken");
            1
        }
        Ok(()) => 0,
        Err(what) => {
            eprintln!("survivor: {what}");
            1
        }
    })
}

/// Clears the robust list's pending entry. The kernel wakes a waiter of that word when this thread
/// ends, which would hide a lost wake: a process that lives on makes no such wake.
pub(crate) fn forget_pending() {
    let (mut head, mut len) = (std::ptr::null_mut::<[usize; 3]>(), 0_usize);
    // SAFETY: the kernel writes two words that live here.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    assert!(!head.is_null() && len == size_of::<[usize; 3]>());
    // SAFETY: this is the calling thread's head. Only code that takes or gives up a lock uses its
    // last word, and this thread is about to do neither.
    unsafe { (*head)[2] = 0 };
}

/// Waits until all survivors have ended. Fails unless all of them succeeded.
pub(crate) fn settle(children: &mut [Child]) -> Result<(), String> {
    for child in children {
        match child.end() {
            Some(End::Exited(0)) => {}
            Some(end) => return Err(format!("a survivor ended with {end:?}")),
            None => return Err("a survivor hangs".into()),
        }
    }
    Ok(())
}
