//! How peers that attach, sleep, recover and leave affect each other at the worst moment.
//!
//! Each test stops, delays or kills a process at a named point of the source, and fails if the step
//! that it is about is left out. Second looks would hide that, and are off in this build.
//!
//! Built under `RUSTFLAGS='--cfg outlast_hooks'` only.
#![cfg(all(outlast_hooks, not(outlast_pthread), not(outlast_loom)))]
#![expect(unsafe_code, reason = "a segment in memory of which the parent is no user")]
mod common;

use common::{Child, KILLED, Stage, eventually, exit_now, fork_child, ms, sleep_for_ever};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::hooks::{self, Action};
use outlast::{FixedQueue, Lock, Options, RecvTimeoutError, Shared, TryRecvError};

const MEMORY: usize = 1 << 20;

outlast::shared! {
    struct Memory { words: [AtomicU32; MEMORY / 4] }
    struct Hold { queue: FixedQueue<u64, 16> }
    #[derive(Debug)]
    struct Tally { ready: AtomicU32, back: AtomicU32, step: AtomicU32, more: AtomicU64 }
}

/// A segment of which this process is no user, and what the children tell.
struct Scene {
    memory: &'static Memory,
    tally: &'static Tally,
    _watchdog: common::Watchdog,
}

const OWNER_DIED: u32 = 1 << 30;

impl Scene {
    fn new(name: &str, messages: u64) -> Self {
        let (memory, tally) = (common::plain_shared::<Memory>(), common::plain_shared::<Tally>());
        let _watchdog = common::watch_with(name, move || format!("{tally:?}"));
        let scene = Scene { memory, tally, _watchdog };
        let value = Hold { queue: FixedQueue::new() };
        // SAFETY: shared with the children to come, never unmapped, and used by no other code.
        let shared = unsafe { Options::new().create_in(scene.at(), MEMORY, value) }.unwrap();
        (0..messages).for_each(|n| shared.queue.send(n).unwrap());
        scene
    }

    fn at(&self) -> NonNull<u8> {
        NonNull::from(self.memory).cast()
    }

    fn open(&self) -> Shared<Hold> {
        // SAFETY: as in `new`.
        unsafe { Shared::<Hold>::open_in(self.at(), MEMORY) }.unwrap()
    }

    /// A child with a handle of its own, which plans before it opens that.
    fn peer(&self, plan: impl FnOnce(), body: impl FnOnce(&Hold)) -> Child {
        fork_child(|| {
            plan();
            let own = self.open();
            body(&own);
            core::mem::forget(own);
        })
    }

    /// One that does nothing but be there, with a sentinel.
    fn idle(&self) -> Child {
        let seen = self.tally.more.load(SeqCst);
        let idle = self.peer(no_plan, |_| {
            self.tally.more.fetch_add(1, SeqCst);
            sleep_for_ever();
        });
        eventually("it is there", || self.tally.more.load(SeqCst) > seen);
        idle
    }

    /// Receives one message, and keeps it until it is killed.
    fn keep_one(&self, hold: &Hold) {
        core::mem::forget(hold.queue.recv_ack().unwrap());
        self.tally.ready.fetch_add(1, SeqCst);
    }

    /// One that keeps a message.
    fn keeper(&self, plan: impl FnOnce()) -> Child {
        let kept = self.tally.ready.load(SeqCst);
        let keeper = self.peer(plan, |hold| {
            self.keep_one(hold);
            sleep_for_ever();
        });
        self.tally.ready.until(kept + 1);
        keeper
    }

    /// Takes what comes back.
    fn take_back(&self, hold: &Hold) -> ! {
        loop {
            let back = hold.queue.recv_ack().unwrap();
            assert_eq!(back.attempts(), 1);
            back.ack().unwrap();
            self.tally.back.fetch_add(1, SeqCst);
        }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        &self.memory.words[at / 4]
    }

    /// The token of the process in a slot.
    fn token(&self, slot: usize) -> &AtomicU32 {
        self.word(self.word(96).load(SeqCst) as usize + 64 * slot)
    }

    /// Has the sentinel of a living process look dead, as if its other threads were dying more
    /// slowly.
    fn end_sentinel(&self, slot: usize) {
        let token = self.token(slot);
        token.store(OWNER_DIED, SeqCst);
        // SAFETY: an aligned word in mapped memory.
        unsafe { libc::syscall(libc::SYS_futex, token.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    fn until_free(&self, slot: usize) {
        eventually("the slot is free", || self.token(slot).load(SeqCst) == 0);
    }
}

fn no_plan() {}

fn stop_at(point: &'static str) -> impl FnOnce() {
    move || hooks::plan(point, Action::Stop)
}

const JOINING: &str = "peers: joining";
const LOOKS: &str = "peers: the sentinel looks";
const HAS_LOOKED: &str = "peers: the dead are recovered";
const SLEEPS: &str = "peers: the sentinel is about to sleep";
const SEEN: &str = "peers: a death is seen";
const RECOVERS: &str = "peers: about to recover";
const RECOVERED: &str = "peers: recovered, slot not free yet";
const NO_TAG: &str = "peers: a thread has its token, and no tag yet";

/// Longer than whatever is under way takes.
const A_WHILE: u64 = 300;

fn go_on(child: &Child) {
    child.signal(libc::SIGCONT);
}

fn stop(child: &Child) {
    child.signal(libc::SIGSTOP);
    child.until_stopped();
}

/// Waits until the sentinel of a child sleeps: the only thread but the first.
fn until_asleep(child: &Child) {
    let pid = child.pid;
    eventually("the sentinel sleeps", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        tasks.is_ok_and(|tasks| {
            let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
            let mut others = ids.filter(|&tid: &libc::pid_t| tid != pid);
            others.next().is_some_and(|tid| common::waits(pid, tid))
        })
    });
}

/// A process is dead as soon as its sentinel is, but its other threads may still run, on other
/// CPUs.
#[test]
fn the_threads_of_a_dead_process_are_awaited() {
    let scene = Scene::new("the_threads_of_a_dead_process_are_awaited", 1);
    let dies = scene.keeper(no_plan);
    let survives = scene.peer(no_plan, |hold| scene.take_back(hold));
    survives.until_waiting();
    until_asleep(&survives);
    scene.end_sentinel(0);
    std::thread::sleep(ms(A_WHILE));
    assert_eq!(scene.tally.back.load(SeqCst), 0, "its thread lives");
    dies.kill9();
    scene.tally.back.until(1);
    survives.kill9();
}

/// Meanwhile peers recover from other deaths.
#[test]
fn a_slow_death_holds_up_no_other() {
    let scene = Scene::new("a_slow_death_holds_up_no_other", 2);
    let dies_slowly = scene.keeper(no_plan);
    let dies = scene.keeper(no_plan);
    let survives = scene.peer(no_plan, |hold| scene.take_back(hold));
    survives.until_waiting();
    scene.end_sentinel(0);
    std::thread::sleep(ms(50));
    dies.kill9();
    scene.tally.back.until(1);
    dies_slowly.kill9();
    scene.tally.back.until(2);
    survives.kill9();
}

/// A thread that is about to register is none that recovery knows of.
#[test]
fn a_thread_that_registers_too_late_touches_nothing() {
    let scene = Scene::new("a_thread_that_registers_too_late_touches_nothing", 1);
    let late = scene.peer(stop_at(NO_TAG), |hold| {
        let taken = hold.queue.recv();
        scene.tally.ready.fetch_add(1, SeqCst);
        panic!("{taken:?}");
    });
    late.until_stopped();
    let survives = scene.peer(no_plan, |hold| {
        scene.tally.step.until(1);
        assert_eq!(hold.queue.recv(), Ok(0));
    });
    scene.end_sentinel(0);
    scene.until_free(0);
    go_on(&late);
    std::thread::sleep(ms(A_WHILE));
    assert_eq!(scene.tally.ready.load(SeqCst), 0, "it went on");
    late.kill9();
    scene.tally.step.reach(1);
    survives.succeeds();
}

/// A thread that is stopped as it registers, in a slot of a dead thread, does not look like that
/// one.
#[test]
fn a_thread_that_is_stopped_as_it_registers_holds_up_nothing() {
    const NAME: &str = "a_thread_that_is_stopped_as_it_registers_holds_up_nothing";
    // A child starts a thread.
    common::in_own_process(NAME, || {
        let scene = Scene::new(NAME, 0);
        let survives = scene.peer(no_plan, |hold| {
            assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty)); // thread slot 0
            scene.tally.step.reach(1);
            scene.tally.step.until(2);
            scene.take_back(hold)
        });
        scene.tally.step.until(1);
        let dies = scene.peer(no_plan, |hold| {
            assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty)); // thread slot 1
            let other = || assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty)); // 2
            std::thread::scope(|scope| scope.spawn(other).join().unwrap());
            hold.queue.send(7).unwrap();
            scene.keep_one(hold);
            sleep_for_ever();
        });
        scene.tally.ready.until(1);
        let stopped = scene.peer(stop_at(NO_TAG), |hold| {
            assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty)); // thread slot 2
        });
        stopped.until_stopped();
        scene.tally.step.reach(2);
        survives.until_waiting();
        dies.kill9();
        scene.tally.back.until(1);
        go_on(&stopped);
        stopped.succeeds();
        survives.kill9();
    });
}

/// A peer that is late for a recovery finds another process in the slot.
#[test]
fn a_slot_taken_again_is_another_process() {
    let scene = Scene::new("a_slot_taken_again_is_another_process", 2);
    let first = scene.keeper(no_plan);
    let late = scene.peer(stop_at(RECOVERS), |_| sleep_for_ever());
    until_asleep(&late);
    first.kill9();
    late.until_stopped();
    let other = scene.peer(no_plan, |hold| {
        scene.tally.step.until(1);
        let none = hold.queue.recv_ack_timeout(ms(A_WHILE)).map(|back| back.attempts());
        assert_eq!(none, Err(RecvTimeoutError::TimedOut), "its thread lives");
        scene.tally.step.reach(2);
        for _ in 0..2 {
            assert!(hold.queue.recv_ack().unwrap().attempts() > 0);
        }
    });
    scene.until_free(0);
    let second = scene.peer(no_plan, |hold| {
        scene.keep_one(hold);
        scene.keep_one(hold);
        sleep_for_ever();
    });
    scene.tally.ready.until(3);
    scene.end_sentinel(0);
    go_on(&late);
    scene.tally.step.reach(1);
    scene.tally.step.until(2);
    second.kill9();
    other.succeeds();
    late.kill9();
}

/// A process arrives and dies while the only other sentinel is between its look and its sleep.
#[test]
fn an_arrival_between_look_and_sleep_is_not_missed() {
    let scene = Scene::new("an_arrival_between_look_and_sleep_is_not_missed", 1);
    let survives = scene.peer(stop_at(SLEEPS), |hold| {
        scene.tally.step.until(1);
        hooks::clear();
        scene.take_back(hold)
    });
    survives.until_stopped();
    scene.tally.step.reach(1);
    scene.keeper(no_plan).kill9();
    eventually("the death is noticed", || {
        go_on(&survives); // it may stop once more before it has cleared its plan
        scene.tally.back.load(SeqCst) == 1
    });
    survives.kill9();
}

/// A process dies after the only other sentinel has looked for dead peers, and before that sentinel
/// chooses which peer to watch.
#[test]
fn a_death_between_two_looks_is_not_missed() {
    let scene = Scene::new("a_death_between_two_looks_is_not_missed", 1);
    let keeper = scene.keeper(no_plan);
    let survives = scene.peer(no_plan, |hold| {
        hooks::plan(HAS_LOOKED, Action::Stop);
        scene.tally.step.reach(1);
        scene.tally.step.until(2);
        hooks::clear();
        scene.take_back(hold)
    });
    scene.tally.step.until(1);
    scene.idle().kill9(); // an arrival, so that the sentinel looks
    survives.until_stopped();
    keeper.kill9();
    scene.tally.step.reach(2);
    eventually("the death is noticed", || {
        go_on(&survives); // it may stop once more before it has cleared its plan
        scene.tally.back.load(SeqCst) == 1
    });
    survives.kill9();
}

/// The same, where the sentinel has looked when the other one was just arriving.
#[test]
fn an_arrival_under_way_is_watched() {
    let scene = Scene::new("an_arrival_under_way_is_watched", 1);
    let survives = scene.peer(no_plan, |hold| {
        scene.tally.step.reach(1);
        scene.tally.step.until(2);
        hooks::plan(SLEEPS, Action::Stop);
        scene.tally.step.reach(3);
        scene.tally.step.until(4);
        hooks::clear();
        scene.take_back(hold)
    });
    scene.tally.step.until(1);
    until_asleep(&survives);
    scene.tally.step.reach(2);
    scene.tally.step.until(3);
    let arrives = scene.peer(stop_at(JOINING), |hold| {
        scene.keep_one(hold);
        sleep_for_ever();
    });
    arrives.until_stopped();
    survives.until_stopped();
    go_on(&arrives);
    scene.tally.ready.until(1);
    arrives.kill9();
    scene.tally.step.reach(4);
    eventually("the death is noticed", || {
        go_on(&survives);
        scene.tally.back.load(SeqCst) == 1
    });
    survives.kill9();
}

/// A process that is killed as it arrives leaves a slot that can be taken.
#[test]
fn a_death_while_arriving_leaves_a_slot() {
    let scene = Scene::new("a_death_while_arriving_leaves_a_slot", 0);
    let survives = scene.idle();
    until_asleep(&survives);
    let arrives = scene.peer(|| hooks::plan(JOINING, Action::Kill), |_| exit_now(1));
    assert_eq!(arrives.wait(), KILLED);
    let next = scene.peer(no_plan, |hold| {
        hold.queue.send(1).unwrap();
        scene.tally.step.reach(1);
        sleep_for_ever();
    });
    scene.tally.step.until(1);
    assert_ne!(scene.token(1).load(SeqCst), 0, "it has the slot");
    next.kill9();
    scene.until_free(1);
    survives.kill9();
}

/// A sentinel that has recovered one process rings for the others again before it goes on to the
/// next.
#[test]
fn a_death_between_two_recoveries_is_heard() {
    let scene = Scene::new("a_death_between_two_recoveries_is_heard", 1);
    let first = scene.idle();
    let second = scene.idle();
    let recovers = scene.peer(no_plan, |hold| {
        scene.keep_one(hold);
        scene.tally.step.until(1);
        // Both are dead when it looks.
        hooks::plan(LOOKS, Action::Nap(400_000));
        hooks::plan_after(SEEN, 1, Action::Stop);
        scene.tally.step.reach(2);
        sleep_for_ever();
    });
    scene.tally.ready.until(1);
    // This process watches the one that recovers, and learns nothing.
    let deaf = scene.idle();
    stop(&deaf);
    stop(&second);
    until_asleep(&recovers);
    scene.tally.step.reach(1);
    scene.tally.step.until(2);
    first.kill9();
    second.kill9();
    recovers.until_stopped();
    let survives = scene.peer(no_plan, |hold| scene.take_back(hold));
    survives.until_waiting();
    until_asleep(&survives);
    recovers.kill9();
    scene.tally.back.until(1);
    survives.kill9();
    deaf.kill9();
}

/// A sentinel that is about to acquire the control lock cannot watch over any peer then. So it
/// wakes the others before.
#[test]
fn a_death_while_recovering_is_heard() {
    let scene = Scene::new("a_death_while_recovering_is_heard", 1);
    let dies = scene.keeper(no_plan);
    let plan = || {
        hooks::plan(SEEN, Action::Stop);
        hooks::plan(RECOVERS, Action::Kill);
    };
    let recovers = scene.peer(plan, |_| sleep_for_ever());
    until_asleep(&recovers);
    let deaf = scene.idle();
    stop(&deaf);
    // It has looked, and found nothing.
    let survives = scene.peer(stop_at(SLEEPS), |hold| {
        scene.tally.step.until(1);
        hooks::clear();
        scene.tally.step.reach(2);
        scene.take_back(hold)
    });
    survives.until_stopped();
    scene.tally.step.reach(1);
    dies.kill9();
    recovers.until_stopped();
    go_on(&survives);
    scene.tally.step.until(2);
    survives.until_waiting();
    until_asleep(&survives);
    go_on(&recovers);
    scene.tally.back.until(1);
    assert_eq!(recovers.wait(), KILLED);
    survives.kill9();
    deaf.kill9();
}

/// The recoverer is killed when all is recovered, and the slot is not free yet. Recovery is done
/// again.
#[test]
fn a_recovery_is_taken_up_again() {
    let scene = Scene::new("a_recovery_is_taken_up_again", 1);
    let dies = scene.keeper(no_plan);
    let recovers = scene.peer(|| hooks::plan(RECOVERED, Action::Kill), |_| sleep_for_ever());
    until_asleep(&recovers);
    dies.kill9();
    assert_eq!(recovers.wait(), KILLED);
    let survives = scene.peer(no_plan, |hold| scene.take_back(hold));
    scene.tally.back.until(1);
    scene.until_free(0);
    scene.until_free(1);
    survives.kill9();
}

/// A sentinel whose token the kernel did not mark is looked for.
#[test]
fn a_sentinel_that_does_not_exist_is_dead() {
    let scene = Scene::new("a_sentinel_that_does_not_exist_is_dead", 1);
    let dies = scene.keeper(no_plan);
    let survives = scene.peer(|| hooks::set_second_looks(true), |hold| scene.take_back(hold));
    survives.until_waiting();
    scene.token(0).store(0x3fff_fff0, SeqCst);
    dies.kill9();
    scene.tally.back.until(1);
    survives.kill9();
}

/// A fork in one thread does not wait for a sentinel that another thread starts.
#[test]
fn no_fork_waits_for_a_sentinel() {
    const NAME: &str = "no_fork_waits_for_a_sentinel";
    common::in_own_process(NAME, || {
        let scene = Scene::new(NAME, 0);
        let holds = scene.peer(stop_at(JOINING), |_| sleep_for_ever());
        holds.until_stopped(); // with the control lock
        hooks::plan("table: attaching", Action::Nap(0));
        std::thread::scope(|scope| {
            let attaches = scope.spawn(|| drop(scene.open()));
            eventually("it is under way", || hooks::visits("table: attaching") > 0);
            std::thread::sleep(ms(50));
            fork_child(|| ()).succeeds();
            assert!(!attaches.is_finished(), "the fork came after it");
            go_on(&holds);
            attaches.join().unwrap();
        });
        holds.kill9();
    });
}

/// A process that cannot take the control lock as it leaves (for ten seconds) lets the others do
/// it.
#[test]
fn a_leave_without_the_control_lock() {
    let scene = Scene::new("a_leave_without_the_control_lock", 0);
    let leaves = fork_child(|| {
        let own = scene.open();
        assert_eq!(own.queue.try_recv(), Err(TryRecvError::Empty)); // its thread has a token
        scene.tally.step.reach(1);
        scene.tally.step.until(2);
        drop(own);
        scene.tally.step.reach(3);
        sleep_for_ever();
    });
    scene.tally.step.until(1);
    let holds = scene.peer(stop_at(JOINING), |_| sleep_for_ever());
    holds.until_stopped();
    scene.tally.step.reach(2);
    scene.tally.step.until(3);
    go_on(&holds);
    scene.until_free(0);
    leaves.kill9();
    holds.kill9();
}

/// A forked child's lock waits a moment only for the control lock of another segment. The next lock
/// tries that segment again.
#[test]
fn a_stopped_process_in_another_segment_does_not_stop_a_lock() {
    const NAME: &str = "a_stopped_process_in_another_segment_does_not_stop_a_lock";
    let tally = common::plain_shared::<Tally>();
    let _watchdog = common::watch_with(NAME, move || format!("{tally:?}"));
    let other = Shared::anonymous(FixedQueue::<u64, 16>::new()).unwrap();
    let own = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let holds = fork_child(|| {
        hooks::plan(JOINING, Action::Stop);
        other.try_send(1).unwrap();
        sleep_for_ever();
    });
    holds.until_stopped(); // with the control lock
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let child = fork_child(|| {
        *own.lock().unwrap() += 1;
        assert_eq!(threads(), 1, "a sentinel");
        tally.step.reach(1);
        tally.step.until(2);
        *own.lock().unwrap() += 1;
        assert_eq!(threads(), 2, "no sentinel");
    });
    tally.step.until(1);
    go_on(&holds);
    eventually("the control lock is free", || other.len() == 1);
    tally.step.reach(2);
    child.succeeds();
    holds.kill9();
}
