//! The woken heir dies. A holds the lock, B and C sleep on it, A releases it and B is woken; B is
//! killed after each of its instructions from there on. C must get the lock all the same, also if a
//! *barger* has taken it before B could.
use crate::stepper::{Child, Victim, Way, fork};
use crate::sweep::{Operation, Points, Report, settle};
use std::fmt::Debug;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

/// A lock, and how to use it.
pub(crate) struct Heir<'a, W> {
    pub(crate) name: &'a str,
    pub(crate) world: &'a dyn Fn() -> W,
    /// The shared bytes that a crash leaves to the survivors.
    pub(crate) memory: fn(&W) -> Vec<u8>,
    /// So that a process is known to the segment.
    pub(crate) prepare: fn(&W),
    /// Takes the lock, and returns what gives it back.
    pub(crate) lock: Operation<W>,
    pub(crate) barger: bool,
}

impl<W: Debug> Heir<'_, W> {
    /// Runs the sweep, and fails the test if anything went wrong.
    pub(crate) fn must_hold(&self) {
        self.run(usize::MAX).must_hold(self.name);
    }

    /// Runs the sweep, and fails the test if nothing went wrong.
    pub(crate) fn must_be_caught(&self) {
        self.run(1).must_be_caught(self.name);
    }

    /// Kills the heir at each point that matters, from its first instruction once awake until it is
    /// done.
    fn run(&self, enough: usize) -> Report {
        Report::made_apart(self.name, || {
            let mut points = Points::new();
            let world = (self.world)();
            let mut way = Way::default();
            let outcome = self.play(&world, &mut way, |heir, way| {
                points.record(heir, way, || (self.memory)(&world));
                true
            });
            let mut report = Report::new(&points);
            if let Err(what) = outcome {
                report.add(points.steps, &what, &world);
            }
            for &step in &points.steps_to_kill_at {
                report.killed += 1;
                let mut last = None;
                let outcome = way.follow(|way| {
                    let world = last.insert((self.world)());
                    self.play(world, way, |heir, way| heir.steps(step, way))
                });
                if let (Err(what), Some(world)) = (outcome, last) {
                    report.add(step, &what, &world);
                }
                if report.violations.len() >= enough {
                    break;
                }
            }
            report
        })
    }

    /// All up to the death of the heir, which `step` brings to where it is to die, or says that it
    /// did not; whether the last one gets the lock.
    fn play(
        &self,
        world: &W,
        way: &mut Way,
        step: impl FnOnce(&mut Victim, &mut Way) -> bool,
    ) -> Result<bool, String> {
        let lock = self.lock;
        let gate = crate::stepper::shared_page::<Gate>();
        let holder = self.holder(world, &gate.holder);
        let mut heir = Victim::start(|| {
            (self.prepare)(world);
            || lock(world)()
        });
        assert!(heir.run_until_asleep(way), "{}: the heir does not sleep", self.name);
        let mut last = fork(|| {
            (self.prepare)(world);
            lock(world)();
            0
        });
        last.wait_asleep();
        gate.holder.go();
        gate.holder.wait_for(RELEASED);
        let barger = self.barger.then(|| self.holder(world, &gate.barger));
        let is_there = step(&mut heir, way);
        heir.kill();
        gate.barger.go();
        let outcome = settle(std::slice::from_mut(&mut last))
            .map_err(|what| format!("the last sleeper: {what}"));
        drop((holder, barger));
        gate.unmap();
        outcome.map(|()| is_there)
    }

    /// A process that takes the lock, and gives it back when told.
    fn holder(&self, world: &W, turn: &'static Turn) -> Child {
        let lock = self.lock;
        let child = fork(|| {
            (self.prepare)(world);
            let unlock = lock(world);
            turn.0.store(HOLDS, Release);
            turn.wait_for(GO);
            unlock();
            turn.0.store(RELEASED, Release);
            turn.wait_for(GO);
            0
        });
        turn.wait_for(HOLDS);
        child
    }
}

const HOLDS: u32 = 1;
const GO: u32 = 2;
const RELEASED: u32 = 3;

#[derive(Debug)]
struct Turn(AtomicU32);

#[derive(Debug)]
struct Gate {
    holder: Turn,
    barger: Turn,
}

impl Gate {
    fn unmap(&'static self) {
        // SAFETY: made by `shared_page`; the processes that used it are gone, and so is this one's
        // use.
        unsafe { libc::munmap(std::ptr::from_ref(self).cast_mut().cast(), 4096) };
    }
}

impl Turn {
    fn go(&self) {
        self.0.store(GO, Release);
    }
    fn wait_for(&self, state: u32) {
        while self.0.load(Acquire) != state {
            std::thread::yield_now();
        }
    }
}
