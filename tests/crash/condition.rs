//! Sweeps of `Condition`.
use crate::stepper::patience;
use crate::sweep::{Operation, Sweep};
use crate::sweeps::{Verdict, fail, memory, options};
use outlast::__private::{Dead, Layout};
use outlast::{
    Condition, Lock, LockError, LockGuard, ReentrantLock, ReentrantLockGuard, Shareable, Shared,
    Spin,
};
use std::fmt;
use std::time::{Duration, Instant};

/// How many tokens were given, and taken.
type Tokens = [u64; 2];

outlast::shared! {
    /// Tokens, and word of them.
    struct Waits { tokens: Lock<Tokens>, changed: Condition }
    /// The same, on the other kind of lock.
    struct DeepWaits { tokens: ReentrantLock<Tokens>, changed: Condition }
    /// The same, on a condition that hears of no death.
    struct DeafWaits { tokens: Lock<Tokens>, changed: Deaf }
}

/// A broken variant: recovery passes it by.
struct Deaf(Condition);

// SAFETY: the condition's own bytes.
unsafe impl Shareable for Deaf {
    const FINGERPRINT: u64 = <Condition as Shareable>::FINGERPRINT + 1;
    const NEEDS_PEERS: bool = true;
    outlast::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>("Deaf", &[])
    }
    fn place(&self) {
        self.0.place();
    }
    fn recover(&self, _dead: &Dead) {}
}

/// The guard, whatever happened to earlier owners.
fn sound<G>(taken: Result<G, LockError<G>>) -> G {
    taken.or_else(|error| error.into_guard().ok_or("not taken")).expect("a guard")
}

/// What the sweeps do with each kind of condition.
trait World: fmt::Debug + Sized {
    fn make() -> Self;
    fn bytes(&self) -> Vec<u8>;
    /// Fails if the lock is not to be had.
    fn change(&self, change: impl FnOnce(&mut Tokens)) -> Verdict;
    fn notify(&self, n: u32);
    /// Waits until there is a token, and takes it; whether there was, in time.
    fn take(&self, timeout: Option<Duration>) -> bool;

    fn tokens(&self) -> Result<Tokens, String> {
        let mut seen = [0; 2];
        self.change(|tokens| seen = *tokens)?;
        Ok(seen)
    }

    fn warm(&self) {
        Spin::Never.set();
        assert!(!self.take(Some(Duration::ZERO)), "a token from nowhere");
        self.notify(1); // there is no waiter, so this leaves no trace
    }
}

macro_rules! worlds {
    ($($waits:ident $kind:ident $guard:ident, $condition:expr, $wrap:expr, $change:expr;)*) => {$(
        impl fmt::Debug for $waits {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?} {:?}", self.tokens, $condition(self))
            }
        }

        impl World for Shared<$waits> {
            fn make() -> Self {
                let changed = $wrap(Condition::new());
                options().anonymous($waits { tokens: $kind::new([0; 2]), changed }).expect("a segment")
            }
            fn bytes(&self) -> Vec<u8> {
                memory(self)
            }
            fn change(&self, change: impl FnOnce(&mut Tokens)) -> Verdict {
                let guard = self.tokens.lock_timeout(patience());
                let guard = guard.or_else(|error| error.into_guard().ok_or("the lock is not to be had"));
                drop($change(guard?, change));
                Ok(())
            }
            fn notify(&self, n: u32) {
                $condition(self).notify(n);
            }
            fn take(&self, timeout: Option<Duration>) -> bool {
                let mut guard: $guard<'_, Tokens> = sound(self.tokens.lock());
                let deadline = timeout.map(|timeout| Instant::now() + timeout);
                let mut late = false;
                loop {
                    let mut taken = false;
                    guard = $change(guard, |[given, gone]: &mut Tokens| {
                        taken = given > gone;
                        *gone += u64::from(taken);
                    });
                    if taken {
                        return true;
                    }
                    let Some(deadline) = deadline else {
                        guard = sound($condition(self).wait(guard));
                        continue;
                    };
                    if late {
                        return false;
                    }
                    let (back, ended) = sound($condition(self).wait_deadline(guard, deadline));
                    guard = back;
                    late = ended.timed_out() || deadline < Instant::now();
                }
            }
        }
    )*};
}

fn in_place<'a>(
    mut guard: LockGuard<'a, Tokens>,
    change: impl FnOnce(&mut Tokens),
) -> LockGuard<'a, Tokens> {
    change(&mut guard);
    guard
}

fn copied<'a>(
    guard: ReentrantLockGuard<'a, Tokens>,
    change: impl FnOnce(&mut Tokens),
) -> ReentrantLockGuard<'a, Tokens> {
    let mut tokens = guard.get();
    change(&mut tokens);
    guard.set(tokens);
    guard
}

fn its(waits: &Waits) -> &Condition {
    &waits.changed
}
fn deep(waits: &DeepWaits) -> &Condition {
    &waits.changed
}
fn deaf(waits: &DeafWaits) -> &Condition {
    &waits.changed.0
}

worlds! {
    Waits Lock LockGuard, its, |changed| changed, in_place;
    DeepWaits ReentrantLock ReentrantLockGuard, deep, |changed| changed, copied;
    DeafWaits Lock LockGuard, deaf, Deaf, in_place;
}

type Plain = Shared<Waits>;
type Deep = Shared<DeepWaits>;

/// A waiter that is still there.
fn takes<W: World>(world: &W) -> Verdict {
    Spin::Never.set();
    world.take(None);
    Ok(())
}

/// It still works: a token is found, and none where there is none.
fn works<W: World>(world: &W) -> Verdict {
    world.change(|[given, gone]| *gone = *given)?;
    if world.take(Some(Duration::from_micros(50))) {
        return fail("a token from nowhere");
    }
    world.change(|[given, _]| *given += 1)?;
    world.notify(1);
    if world.take(Some(patience())) { Ok(()) } else { fail("a token is not found") }
}

fn sweep<'a, W: World + 'static>(name: &'a str, victim: Operation<W>) -> Sweep<'a, W> {
    Sweep::new(name, &W::make, W::bytes, victim, works)
}

fn gives_two<W: World>(world: &W) -> Box<dyn FnOnce() + '_> {
    world.warm();
    Box::new(|| {
        world.change(|[given, _]| *given = 2).expect("the lock");
        world.notify(2);
    })
}

/// Two tokens in all, given by the victim, or by this if it died before it had.
fn two_in_all<W: World>(world: &W) -> Verdict {
    let mut given_now = false;
    world.change(|[given, _]| given_now = core::mem::replace(given, 2) == 0)?;
    if given_now {
        world.notify(2);
    }
    Ok(())
}

#[test]
fn notify_alone() {
    sweep::<Plain>("condition: notify", gives_two).must_hold();
}

#[test]
fn notify_with_two_asleep() {
    let sweep = sweep::<Plain>("condition: notify; two asleep", gives_two);
    Sweep { sleepers: &[takes, takes], after: Some(two_in_all), ..sweep }.must_hold();
}

#[test]
fn notify_with_two_asleep_on_a_reentrant_lock() {
    let sweep = sweep::<Deep>("condition: notify; two asleep, reentrant", gives_two);
    Sweep { sleepers: &[takes, takes], after: Some(two_in_all), ..sweep }.must_hold();
}

#[test]
fn notify_with_one_asleep_and_a_late_arrival() {
    let sweep = sweep::<Plain>("condition: notify; one asleep, late arrival", gives_two);
    Sweep { sleepers: &[takes], late: Some(takes), after: Some(two_in_all), ..sweep }.must_hold();
}

#[test]
fn notify_with_the_lock_held() {
    let sweep = sweep::<Plain>("condition: notify, lock held; two asleep", |world| {
        world.warm();
        Box::new(|| {
            world
                .change(|[given, _]| {
                    *given = 2;
                    world.notify(2);
                })
                .expect("the lock");
        })
    });
    Sweep { sleepers: &[takes, takes], after: Some(two_in_all), ..sweep }.must_hold();
}

fn waits<W: World>(world: &W) -> Box<dyn FnOnce() + '_> {
    world.warm();
    Box::new(|| drop(takes(world)))
}

/// The victim is killed while it falls asleep. A later waiter is woken all the same.
#[test]
fn condition_wait_until_asleep() {
    let sweep = sweep::<Plain>("condition: wait; one asleep, late arrival", waits);
    Sweep { sleepers: &[takes], late: Some(takes), after: Some(two_in_all), ..sweep }.must_hold();
}

#[test]
fn condition_wait_until_asleep_on_a_reentrant_lock() {
    let sweep = sweep::<Deep>("condition: wait; one asleep, late arrival, reentrant", waits);
    Sweep { sleepers: &[takes], late: Some(takes), after: Some(two_in_all), ..sweep }.must_hold();
}

#[test]
fn condition_wait_that_times_out() {
    let sweep = sweep::<Plain>("condition: wait_timeout; one asleep", |world| {
        world.warm();
        Box::new(|| _ = world.take(Some(Duration::from_micros(1))))
    });
    let after: fn(&Plain) -> Verdict = |world| {
        world.change(|[given, gone]| *given = *gone + 1)?;
        world.notify(1);
        Ok(())
    };
    Sweep { sleepers: &[takes], after: Some(after), ..sweep }.must_hold();
}

fn gives_one<W: World>(world: &W) {
    world.change(|[given, _]| *given += 1).expect("the lock");
    world.notify(1);
}

/// One token, and the victim was woken for it. Either it takes the token with it, or the other
/// waiter gets it with no further word.
fn hand_the_token_on<W: World>(world: &W) -> Verdict {
    let started = Instant::now();
    loop {
        let [given, gone] = world.tokens()?;
        if given == gone {
            break;
        }
        if started.elapsed() > patience() {
            return fail("the token is there, and the waiter sleeps");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    gives_one(world); // for the waiter, if the victim took the first
    Ok(())
}

fn woken<'a, W: World + 'static>(name: &'a str) -> Sweep<'a, W> {
    let sleepers: &[fn(&W) -> Verdict] = const { &[takes] };
    let after: Option<fn(&W) -> Verdict> = Some(hand_the_token_on);
    Sweep { wake: Some(gives_one), sleepers, after, ..sweep(name, waits) }
}

#[test]
fn the_woken_waiter_dies() {
    woken::<Plain>("condition: woken").must_hold();
}

#[test]
fn the_woken_waiter_of_a_reentrant_lock_dies() {
    woken::<Deep>("condition: woken, reentrant").must_hold();
}

/// A killed recoverer has woken all waiters or none. Its own death wakes them as well.
#[test]
fn recovery_of_a_condition_is_interrupted() {
    let sweep = sweep::<Plain>("condition: recovery, interrupted; one asleep", |world| {
        world.warm();
        Box::new(|| {
            // As a process does that dies without a notification.
            world.change(|[given, _]| *given = 1).expect("the lock");
            Shareable::recover(&world.changed, &Dead::killed(7));
        })
    });
    let after: fn(&Plain) -> Verdict = |world| {
        if world.tokens()?[0] == 0 {
            gives_one(world);
        }
        Ok(())
    };
    Sweep { sleepers: &[takes], after: Some(after), ..sweep }.must_hold();
}

// ------------------------------------------------------------------ controls

#[test]
fn a_notify_that_is_not_made_up_for_is_caught() {
    let sweep = sweep::<Plain>("condition: notify; two asleep", gives_two);
    Sweep { sleepers: &[takes, takes], after: Some(two_in_all), ..sweep }.must_be_caught_unmended();
}

#[test]
fn a_token_that_is_not_handed_on_is_caught() {
    woken::<Plain>("condition: woken").must_be_caught_unmended();
}

/// A negative control: the kernel releases the lock, but no process passes the wake on.
#[test]
fn a_condition_that_hears_of_no_death_is_caught() {
    woken::<Shared<DeafWaits>>("control: condition: woken, no recovery").must_be_caught();
}
