//! The sweeps of `Barrier` and `OnceCell`.
use crate::stepper::{Child, fork, patience};
use crate::sweep::{Act, Operation, Sweep, forget_pending};
use crate::sweeps::{FIRST, Verdict, fail, memory, once_mended, options};
use outlast::__private::Dead;
use outlast::{
    Barrier, BarrierError, BrokenCause, OnceCell, OnceError, Shareable as _, Shared, Spin,
};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

fn pair() -> Shared<Barrier> {
    options().anonymous(Barrier::new(2)).expect("a segment")
}

fn three() -> Shared<Barrier> {
    options().anonymous(Barrier::new(3)).expect("a segment")
}

/// Makes the victim a peer and a party, and the barrier whole.
fn warm(world: &Shared<Barrier>) {
    Spin::Never.set();
    world.wait_timeout(Duration::ZERO).ok();
    world.reset();
}

/// Waits as a survivor: it passes, or learns that a party died.
fn waits(world: &Shared<Barrier>) -> Verdict {
    Spin::Never.set();
    match world.wait_timeout(patience()) {
        Ok(_) | Err(BarrierError::Broken(_)) => Ok(()),
        Err(error) => fail(error),
    }
}

/// After a reset it works for two.
fn works(world: &Shared<Barrier>) -> Verdict {
    world.reset();
    if world.is_broken() || world.waiting() != 0 {
        return fail("not whole after a reset");
    }
    world.abort();
    match world.wait() {
        Err(BarrierError::Broken(_)) => {}
        other => return fail(format!("after an abort: {other:?}")),
    }
    world.reset();
    Ok(())
}

/// An operation on a barrier, and then it works.
fn sweep<'a>(
    name: &'a str,
    world: &'a dyn Fn() -> Shared<Barrier>,
    victim: Operation<Shared<Barrier>>,
) -> Sweep<'a, Shared<Barrier>> {
    Sweep::new(name, world, memory, victim, works)
}

fn arrives(world: &Shared<Barrier>) -> Box<dyn FnOnce() + '_> {
    warm(world);
    Box::new(|| {
        world.wait().ok();
    })
}

#[test]
fn last_arrival_with_one_asleep() {
    let swept = sweep("barrier: last arrival; one asleep", &pair, arrives);
    Sweep { sleepers: &[waits], ..swept }.must_hold();
}

#[test]
fn last_arrival_with_two_asleep() {
    let swept = sweep("barrier: last arrival; two asleep", &three, arrives);
    Sweep { sleepers: &[waits, waits], ..swept }.must_hold();
}

/// It arrives first and is killed on the way to sleep: the other does not wait for it.
#[test]
fn first_arrival_with_a_late_one() {
    let swept = sweep("barrier: first arrival; late arrival", &pair, |world| {
        warm(world);
        Box::new(|| {
            world.wait_timeout(Duration::from_micros(200)).ok();
        })
    });
    Sweep { late: Some(waits), ..swept }.must_hold();
}

#[test]
fn reset_with_one_asleep() {
    let swept = sweep("barrier: reset; one asleep", &pair, |world| {
        warm(world);
        Box::new(|| world.reset())
    });
    Sweep { sleepers: &[waits], ..swept }.must_hold();
}

#[test]
fn a_party_whose_death_is_not_told_is_caught() {
    let swept = sweep("barrier: last arrival; one asleep", &pair, arrives);
    Sweep { sleepers: &[waits], ..swept }.must_be_caught_unmended();
}

outlast::shared! {
    /// A barrier, its victim, and what the other parties were told.
    #[derive(Debug)]
    struct Meeting { barrier: Barrier, victim: AtomicU32, done: AtomicU32, passed: AtomicU32, told: AtomicU32 }
}

type Party = Shared<Meeting>;

fn meeting() -> Party {
    let none = || AtomicU32::new(0);
    let barrier = Barrier::new(3);
    let empty = Meeting { barrier, victim: none(), done: none(), passed: none(), told: none() };
    options().anonymous(empty).expect("a segment")
}

fn come(world: &Party) {
    Spin::Never.set();
    world.barrier.wait_timeout(Duration::ZERO).ok();
    world.barrier.reset();
    world.victim.store(std::process::id(), SeqCst);
}

/// Passes, or is told that the victim died, and nothing else.
fn passes_or_is_told(world: &Party) -> Verdict {
    Spin::Never.set();
    match world.barrier.wait_timeout(patience()) {
        Ok(_) => world.passed.fetch_add(1, SeqCst),
        Err(BarrierError::Broken(BrokenCause::PeerDied { pid }))
            if pid == world.victim.load(SeqCst) =>
        {
            world.told.fetch_add(1, SeqCst)
        }
        Err(error) => return fail(format!("{error:?}")),
    };
    Ok(())
}

/// Notes whether the generation in which two wait had its end before the victim was killed: whether
/// that completed or broke it.
fn note_if_done(world: &Party) -> Verdict {
    world.done.store(u32::from(world.barrier.waiting() == 0), SeqCst);
    Ok(())
}

/// Two waited for the same, so they have got the same.
fn both_the_same(world: &Party) -> Verdict {
    match (world.passed.load(SeqCst), world.told.load(SeqCst)) {
        (2, 0) | (0, 2) => Ok(()),
        other => fail(format!("(passed, told): {other:?}")),
    }
}

/// As before, and the generation ended as the victim has ended it, or broke at its death.
fn all_or_nobody(world: &Party) -> Verdict {
    let [passed, told, done] =
        [&world.passed, &world.told, &world.done].map(|count| count.load(SeqCst));
    if (passed, told) == (2 * done, 2 - 2 * done) {
        Ok(())
    } else {
        fail(format!("passed {passed}, told {told}, done {done}"))
    }
}

fn comes_last(world: &Party) -> Box<dyn FnOnce() + '_> {
    come(world);
    Box::new(|| {
        world.barrier.wait().ok();
    })
}

#[test]
fn all_pass_or_all_are_told_of_the_victim() {
    let name = "barrier: last arrival; both get the same";
    let sweep = Sweep::new(name, &meeting, memory, comes_last, all_or_nobody);
    let meanwhile: Option<Act<_>> = Some(note_if_done);
    Sweep { sleepers: &[passes_or_is_told, passes_or_is_told], meanwhile, ..sweep }.must_hold();
}

/// Control: it passes by itself, so that the other one alone is told.
#[test]
fn one_that_is_told_alone_is_caught() {
    let passes: fn(&Party) -> Verdict = |world| {
        world.passed.fetch_add(1, SeqCst);
        world.barrier.wait_timeout(patience()).ok();
        Ok(())
    };
    let name = "control: barrier: one does not heed what it is told";
    let sweep = Sweep::new(name, &meeting, memory, comes_last, all_or_nobody);
    let meanwhile: Option<Act<_>> = Some(note_if_done);
    let sweep = Sweep { sleepers: &[passes, passes_or_is_told], meanwhile, ..sweep };
    sweep.must_be_caught();
}

/// All parties have arrived, and one of the woken parties dies. The other one passes all the same.
#[test]
fn the_woken_party_dies() {
    let wake: fn(&Party) = |world| {
        Spin::Never.set();
        world.barrier.wait_timeout(patience()).expect("all have come");
        world.barrier.leave().expect("a peer");
    };
    let all_passed = |world: &Party| match world.passed.load(SeqCst) {
        1 => Ok(()),
        other => fail(format!("{other} passed")),
    };
    let sweep = Sweep::new("barrier: the woken party", &meeting, memory, comes_last, all_passed);
    Sweep { wake: Some(wake), sleepers: &[passes_or_is_told], ..sweep }.must_hold();
}

/// Is told that it was broken for this reason, or that the victim died first, and nothing else.
fn is_told(world: &Party, cause: BrokenCause) -> Verdict {
    Spin::Never.set();
    match world.barrier.wait_timeout(patience()) {
        Err(BarrierError::Broken(told)) if told == cause => world.passed.fetch_add(1, SeqCst),
        Err(BarrierError::Broken(BrokenCause::PeerDied { pid }))
            if pid == world.victim.load(SeqCst) =>
        {
            world.told.fetch_add(1, SeqCst)
        }
        other => return fail(format!("{other:?}")),
    };
    Ok(())
}

/// Both who wait are told one of the two: that it was aborted, or that the victim died first.
#[test]
fn abort_with_two_asleep() {
    let aborts: Operation<Party> = |world| {
        come(world);
        Box::new(|| world.barrier.abort())
    };
    let is_told: fn(&Party) -> Verdict = |world| is_told(world, BrokenCause::Aborted);
    let sweep = Sweep::new("barrier: abort; two asleep", &meeting, memory, aborts, all_or_nobody);
    let meanwhile: Option<Act<_>> = Some(note_if_done);
    Sweep { sleepers: &[is_told, is_told], meanwhile, ..sweep }.must_hold();
}

/// The same for a reset, which breaks the generation and then begins the next one. Later it works.
#[test]
fn reset_with_two_asleep() {
    let resets: Operation<Party> = |world| {
        come(world);
        Box::new(|| world.barrier.reset())
    };
    let is_told: fn(&Party) -> Verdict = |world| is_told(world, BrokenCause::Reset);
    let both_hear_the_same: Act<Party> = |world| {
        all_or_nobody(world)?;
        world.barrier.reset();
        if world.barrier.is_broken() { fail("not whole after a reset") } else { Ok(()) }
    };
    let name = "barrier: reset; two asleep";
    let sweep = Sweep::new(name, &meeting, memory, resets, both_hear_the_same);
    let meanwhile: Option<Act<_>> = Some(note_if_done);
    Sweep { sleepers: &[is_told, is_told], meanwhile, ..sweep }.must_hold();
}

/// A party that has left breaks nothing. The others wait on, for a party that takes its place.
#[test]
fn leave_with_two_asleep() {
    let leaves: Operation<Party> = |world| {
        come(world);
        Box::new(|| world.barrier.leave().unwrap_or(()))
    };
    let comes: fn(&Party) -> Verdict = |world| {
        Spin::Never.set();
        once_mended(|| match (world.barrier.is_broken(), world.told.load(SeqCst)) {
            (true, told) if told < 2 => fail("both are to be told"),
            _ => Ok(()),
        })?;
        match world.barrier.wait_timeout(patience()) {
            Ok(_) | Err(BarrierError::Broken(BrokenCause::PeerDied { .. })) => Ok(()),
            Err(error) => fail(error),
        }
    };
    let sweep = Sweep::new("barrier: leave; two asleep", &meeting, memory, leaves, both_the_same);
    let sleepers: &[Act<_>] = &[passes_or_is_told, passes_or_is_told];
    Sweep { sleepers, after: Some(comes), ..sweep }.must_hold();
}

fn shrinking() -> Shared<Barrier> {
    options().anonymous(Barrier::shrinking(3)).expect("a segment")
}

/// Waits as a survivor of a shrinking barrier does: it passes. Then it is no party, whose end would
/// be a loss.
fn passes(world: &Shared<Barrier>) -> Verdict {
    Spin::Never.set();
    world.wait_timeout(patience()).map_or_else(fail, |_| Ok(()))?;
    world.leave().or_else(fail)
}

/// Where all had arrived, the others did not wait for the dead one to be mended.
fn lost_one(world: &Shared<Barrier>) -> Verdict {
    once_mended(|| match (world.parties(), world.waiting(), world.is_broken()) {
        (2, 0, false) => Ok(()),
        other => fail(format!("parties, waiting, broken: {other:?}")),
    })
}

/// Whether it had arrived or not, the two others pass: by its arrival, or by its death.
#[test]
fn arrival_at_a_shrinking_barrier_with_two_asleep() {
    let swept = sweep("barrier, shrinking: last arrival; two asleep", &shrinking, arrives);
    Sweep { sleepers: &[passes, passes], check: lost_one, ..swept }.must_hold();
}

#[test]
fn arrival_at_a_shrinking_barrier_with_a_late_one() {
    let swept = sweep("barrier, shrinking: arrival; one asleep, one late", &shrinking, |world| {
        warm(world);
        Box::new(|| {
            world.wait_timeout(Duration::from_micros(200)).ok();
            world.reset();
        })
    });
    let survives: fn(&Shared<Barrier>) -> Verdict = |world| match waits(world) {
        // Its timeout has broken the barrier, and it was killed before it could reset that.
        Ok(()) if world.is_broken() => {
            world.reset();
            Ok(())
        }
        verdict => verdict,
    };
    Sweep { sleepers: &[survives], late: Some(survives), ..swept }.must_hold();
}

#[test]
fn a_shrinking_barrier_that_does_not_shrink_is_caught() {
    let swept = sweep("barrier, shrinking: last arrival; two asleep", &shrinking, arrives);
    Sweep { sleepers: &[passes, passes], check: lost_one, ..swept }.must_be_caught_unmended();
}

/// The recoverer is killed as well; the next one takes it up, and takes nothing off twice.
#[test]
fn recovery_of_a_shrinking_barrier_is_interrupted() {
    // The process that makes the world is a party, and counts as dead.
    let with_a_party: fn() -> Shared<Barrier> = || {
        let world = shrinking();
        warm(&world);
        world
    };
    let recovers: Operation<Shared<Barrier>> = |world| {
        Spin::Never.set();
        Box::new(|| world.recover(&Dead::killed(FIRST)))
    };
    let recovers_again: Act<Shared<Barrier>> = |world| {
        world.recover(&Dead::killed(FIRST));
        Ok(())
    };
    let name = "barrier, shrinking: recovery, interrupted; two asleep";
    let sweep = Sweep::new(name, &with_a_party, memory, recovers, lost_one);
    Sweep { sleepers: &[passes, passes], after: Some(recovers_again), ..sweep }.must_hold();
}

/// The recoverer is killed as well, at any point, and a survivor resets the barrier if it is
/// broken. The next recoverer breaks the barrier if that has not happened yet, and not a second
/// time.
#[test]
fn recovery_that_breaks_a_barrier_is_interrupted() {
    // The process that makes the world is a party, and counts as dead.
    let with_a_party: fn() -> Shared<Barrier> = || {
        let world = three();
        warm(&world);
        world
    };
    let recovers: Operation<Shared<Barrier>> = |world| {
        Spin::Never.set();
        Box::new(|| world.recover(&Dead::killed(FIRST)))
    };
    let recovers_again: Act<Shared<Barrier>> = |world| {
        let was_broken = world.is_broken();
        if was_broken {
            world.reset();
        }
        world.recover(&Dead::killed(FIRST));
        if was_broken == world.is_broken() {
            return fail(format!("broken before: {was_broken}, and after as well"));
        }
        world.reset();
        Ok(())
    };
    // Its own end is not to break the barrier.
    let waits_and_leaves: Act<Shared<Barrier>> = |world| {
        waits(world)?;
        world.leave().or_else(fail)
    };
    let name = "barrier: recovery, interrupted; one asleep";
    let sweep = Sweep::new(name, &with_a_party, memory, recovers, works);
    Sweep { sleepers: &[waits_and_leaves], after: Some(recovers_again), ..sweep }.must_hold();
}

fn cell() -> Shared<OnceCell<[u64; 2]>> {
    options().anonymous(OnceCell::new()).expect("a segment")
}

fn makes(world: &Shared<OnceCell<[u64; 2]>>) -> Verdict {
    match world.get_or_init(|| [2, 2]) {
        Ok([1, 1] | [2, 2]) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

fn initialises(world: &Shared<OnceCell<[u64; 2]>>) -> Box<dyn FnOnce() + '_> {
    Spin::Never.set();
    world.wait_timeout(Duration::ZERO).ok();
    Box::new(|| {
        world.get_or_init(|| [1, 1]).ok();
    })
}

#[test]
fn initialise_alone() {
    Sweep::new("once cell: initialise", &cell, memory, initialises, makes).must_hold();
}

#[test]
fn initialise_with_a_waiter_and_a_late_arrival() {
    let sweep =
        Sweep::new("once cell: initialise; late arrival", &cell, memory, initialises, makes);
    Sweep { late: Some(makes), ..sweep }.must_hold();
}

fn waits_for_a_value(world: &Shared<OnceCell<[u64; 2]>>) -> Verdict {
    Spin::Never.set();
    match world.wait_timeout(patience()) {
        Ok([1, 1] | [2, 2]) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

/// Where the victim did not make the value, a newcomer does.
#[test]
fn initialise_with_two_asleep() {
    let name = "once cell: initialise; two asleep";
    let sweep = Sweep::new(name, &cell, memory, initialises, makes);
    let sleepers: &[Act<_>] = &[waits_for_a_value, waits_for_a_value];
    Sweep { sleepers, after: Some(makes), ..sweep }.must_hold();
}

#[test]
fn the_woken_waiter_for_a_value_dies() {
    let waits: Operation<Shared<OnceCell<[u64; 2]>>> = |world| {
        Spin::Never.set();
        Box::new(|| {
            world.wait().ok();
        })
    };
    let wake: fn(&Shared<OnceCell<[u64; 2]>>) = |world| {
        world.set([1, 1]).expect("there is none");
    };
    let sweep = Sweep::new("once cell: the woken waiter", &cell, memory, waits, makes);
    Sweep { wake: Some(wake), sleepers: &[waits_for_a_value], ..sweep }.must_hold();
}

outlast::shared! {
    /// A cell, and whether the one whose turn it is has begun, is to fail, and has failed.
    #[derive(Debug)]
    struct Turns { cell: OnceCell<[u64; 2]>, gate: AtomicU32 }
}

const BEGUN: u32 = 1;
const TO_FAIL: u32 = 2;
const FAILED: u32 = 3;

/// And the process whose turn it is.
#[derive(Debug)]
struct Taken {
    turns: Shared<Turns>,
    holder: Child,
}

fn until(gate: &AtomicU32, state: u32) {
    while gate.load(SeqCst) != state {
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn taken() -> Taken {
    let empty = Turns { cell: OnceCell::new(), gate: AtomicU32::new(0) };
    let turns = options().anonymous(empty).expect("a segment");
    let holder = fork(|| {
        let made = turns.cell.get_or_try_init(|| {
            turns.gate.store(BEGUN, SeqCst);
            until(&turns.gate, TO_FAIL);
            Err(None::<OnceError>)
        });
        assert_eq!(made, Err(None));
        forget_pending(); // its end wakes only the victim
        turns.gate.store(FAILED, SeqCst);
        0
    });
    until(&turns.gate, BEGUN);
    Taken { turns, holder }
}

fn takes_a_turn(world: &Taken) -> Verdict {
    Spin::Never.set();
    match world.turns.cell.get_or_init(|| [2, 2]) {
        Ok([1, 1] | [2, 2]) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

/// Its turn ends without a value, by a failure or by its death; the victim is woken for the next
/// one, and another waits.
fn next_turn(name: &str, wake: fn(&Taken)) -> Sweep<'_, Taken> {
    let victim: Operation<Taken> = |world| {
        Spin::Never.set();
        Box::new(|| {
            world.turns.cell.get_or_init(|| [1, 1]).ok();
        })
    };
    let is_made: Act<Taken> = |world| match world.turns.cell.get() {
        Ok(Some([1, 1] | [2, 2])) => Ok(()),
        other => fail(format!("{other:?}")),
    };
    let memory: fn(&Taken) -> Vec<u8> = |world| memory(&world.turns);
    let sweep = Sweep::new(name, &taken, memory, victim, is_made);
    Sweep { wake: Some(wake), sleepers: &[takes_a_turn], ..sweep }
}

fn fails(world: &Taken) {
    world.turns.gate.store(TO_FAIL, SeqCst);
    until(&world.turns.gate, FAILED);
}

fn dies(world: &Taken) {
    // SAFETY: signals our own child, which is not reaped before the world goes.
    unsafe { libc::kill(world.holder.pid, libc::SIGKILL) };
}

#[test]
fn the_woken_heir_of_an_initialiser_dies() {
    next_turn("once cell: the woken heir of one that failed", fails).must_hold();
    next_turn("once cell: the woken heir of one that died", dies).must_hold();
}

#[test]
fn an_heir_that_is_stuck_is_caught() {
    next_turn("once cell: the woken heir of one that failed", fails).must_be_caught_unmended();
}

#[test]
fn an_initialiser_that_is_stuck_is_caught() {
    let sweep =
        Sweep::new("once cell: initialise; late arrival", &cell, memory, initialises, |world| {
            match world.get() {
                Ok(Some(_)) => Ok(()),
                other => fail(format!("{other:?}")),
            }
        });
    sweep.must_be_caught_unmended();
}
