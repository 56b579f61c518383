//! Peers that die at random: no death goes unnoticed, and all that the dead had claimed comes back.
//!
//! The storms need *widened windows*: claims are held for some microseconds now and then, as a kill
//! that finds no claim proves nothing. And they need a control: the same storm over a ring that
//! claims anonymously must be found out.
//!
//! `OUTLAST_STORM_ROUNDS` makes them last longer (the default is 24 rounds of some 46 kills,
//! twice).
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "a segment in memory of which the parent is no user")]
mod common;

use common::{Child, KILLED, Random, Stage, exit_now, fork_child, ms, sleep_for_ever};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use outlast::{
    Event, FixedQueue, Lock, LockError, LockGuard, Options, RecvTimeoutError, SendTimeoutError,
    Shared, TryRecvError,
};
use std::time::{Duration, Instant};

const CAPACITY: usize = 16;
/// Processes alive at a time.
const CREW: usize = 8;
/// Messages in a round, at most.
const MESSAGES: usize = 1 << 16;

outlast::shared! {
    #[derive(Debug)]
    struct Storm { queue: FixedQueue<u64, CAPACITY>, total: Lock<[u64; 2]>, nudge: Event }

    /// What is written down beside the storm, in memory without any of the crate's doing.
    struct Ledger {
        next: AtomicU64,
        sent: [AtomicU8; MESSAGES],
        begun: [AtomicU8; MESSAGES],
        done: [AtomicU8; MESSAGES],
        journals: [Journal; CREW],
        quiet: AtomicU32,
        drained: AtomicU32,
        inside: AtomicU32,
        ring: Ring,
    }

    /// What one process was about to do when it was killed.
    struct Journal {
        finishing: AtomicU64,
        increments: AtomicU64,
        incrementing: AtomicU32,
    }
}

/// `Ledger::sent`: not known, yes, given back.
const SENT: u8 = 1;
const GIVEN_BACK: u8 = 2;
/// `Ledger::begun`: by an acknowledging receiver, by one that reads in place.
const DELIVERED: u8 = 1;
const LENT: u8 = 2;

fn at(cells: &[AtomicU8], id: u64) -> &AtomicU8 {
    &cells[usize::try_from(id).expect("a small number")]
}

// ------------------------------------------------------------------------------------- the control

outlast::shared! {
    /// Vyukov's ring, the best known of its kind. A place is claimed by moving `tail` or `head`,
    /// which does not name its owner. A process that dies between claim and commit stops the ring
    /// for ever.
    struct Ring { places: [RingPlace; CAPACITY], tail: AtomicU64, head: AtomicU64 }
    struct RingPlace { turn: AtomicU64, id: AtomicU64 }
}

impl Ring {
    /// The place of position `p`, and the turn that it has come to (kept relative, so that zeros
    /// are an empty ring).
    fn place(&self, p: u64) -> (&RingPlace, u64) {
        let i = p % CAPACITY as u64;
        let place = &self.places[usize::try_from(i).expect("small")];
        (place, place.turn.load(SeqCst) + i)
    }

    fn push(&self, id: u64, hold: impl FnOnce()) -> bool {
        loop {
            let p = self.tail.load(SeqCst);
            let (place, turn) = self.place(p);
            if turn < p {
                return false;
            }
            if turn == p && self.tail.compare_exchange(p, p + 1, SeqCst, SeqCst).is_ok() {
                hold();
                place.id.store(id, SeqCst);
                place.turn.fetch_add(1, SeqCst);
                return true;
            }
        }
    }

    fn pop(&self, hold: impl FnOnce()) -> Option<u64> {
        loop {
            let p = self.head.load(SeqCst);
            let (place, turn) = self.place(p);
            if turn < p + 1 {
                return None;
            }
            if turn == p + 1 && self.head.compare_exchange(p, p + 1, SeqCst, SeqCst).is_ok() {
                hold();
                let id = place.id.load(SeqCst);
                place.turn.fetch_add(CAPACITY as u64 - 1, SeqCst);
                return Some(id);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.head.load(SeqCst) == self.tail.load(SeqCst)
    }
}

// ------------------------------------------------------------------------------ one who takes part

/// What carries the messages.
#[derive(Clone, Copy)]
enum Carrier<'a> {
    Ours(&'a Storm),
    /// The control.
    Anonymous,
}

/// A process in the storm.
struct Sailor<'a> {
    carrier: Carrier<'a>,
    ledger: &'a Ledger,
    journal: &'a Journal,
    random: Random,
}

impl Sailor<'_> {
    /// Widens a window, now and then.
    fn hold(random: &mut Random) {
        if random.below(3) == 0 {
            common::busy(random.micros(40));
        }
    }

    /// The same, always: the control is so fast that it would soon have used all numbers up, and a
    /// calm proves nothing.
    fn hold_longer(random: &mut Random) {
        common::busy(random.micros(60));
    }

    fn sail(&mut self) -> ! {
        let mut drained = false;
        loop {
            if self.ledger.quiet.load(SeqCst) == 0 {
                drained = false;
                self.trade();
            } else if !drained {
                drained = self.drain();
                if drained {
                    self.ledger.drained.fetch_add(1, SeqCst);
                }
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn trade(&mut self) {
        match self.random.below(8) {
            0..3 => self.send(),
            3..6 => drop(self.receive()),
            6 => self.count(),
            _ => self.nudge(),
        }
    }

    /// Receives until nothing is left, in flight or to be seen; whether that is so.
    fn drain(&mut self) -> bool {
        while self.receive() {}
        match self.carrier {
            Carrier::Ours(storm) => storm.queue.join_timeout(ms(20)) == Ok(true),
            Carrier::Anonymous => self.ledger.ring.is_empty(),
        }
    }

    fn send(&mut self) {
        let id = self.ledger.next.fetch_add(1, SeqCst);
        if id >= MESSAGES as u64 {
            self.ledger.next.store(MESSAGES as u64, SeqCst);
            return;
        }
        let random = &mut self.random;
        let went = match self.carrier {
            Carrier::Anonymous => {
                let went = self.ledger.ring.push(id, || Self::hold_longer(random));
                if !went {
                    Self::hold_longer(random);
                }
                went
            }
            Carrier::Ours(storm) => match random.below(4) {
                0 => storm.queue.try_send(id).is_ok(),
                1 => match storm.queue.try_loan() {
                    Ok(mut loan) => {
                        Self::hold(random);
                        *loan = id;
                        Self::hold(random);
                        // Some come to nothing.
                        random.below(4) != 0 && loan.send().is_ok()
                    }
                    Err(error) => {
                        assert!(error.is_full(), "{error}");
                        false
                    }
                },
                _ => match storm.queue.send_timeout(id, random.micros(2_000)) {
                    Ok(()) => true,
                    Err(error) => {
                        assert_eq!(error, SendTimeoutError::TimedOut(id));
                        false
                    }
                },
            },
        };
        at(&self.ledger.sent, id).store(if went { SENT } else { GIVEN_BACK }, SeqCst);
    }

    /// Receives one message, if one comes in time, and does with it what one does.
    fn receive(&mut self) -> bool {
        let random = &mut self.random;
        let ledger = self.ledger;
        let begin = |id: u64, how: u8| at(&ledger.begun, id).fetch_or(how, SeqCst);
        let finish = |id: u64, finished: &mut dyn FnMut()| {
            self.journal.finishing.store(id + 1, SeqCst);
            finished();
            let before = at(&ledger.done, id).fetch_add(1, SeqCst);
            assert_eq!(before, 0, "message {id} was done twice");
            self.journal.finishing.store(0, SeqCst);
        };
        let storm = match self.carrier {
            Carrier::Ours(storm) => storm,
            Carrier::Anonymous => {
                let Some(id) = ledger.ring.pop(|| Self::hold_longer(random)) else {
                    return false;
                };
                begin(id, DELIVERED);
                Self::hold_longer(random);
                finish(id, &mut || {});
                return true;
            }
        };
        if random.below(4) == 0 {
            match storm.queue.try_recv_ref() {
                Ok(message) => {
                    let id = *message;
                    begin(id, LENT);
                    Self::hold(random);
                    assert_eq!(*message, id, "a message changed while it was read");
                    let mut message = Some(message);
                    finish(id, &mut || drop(message.take()));
                    return true;
                }
                Err(TryRecvError::Empty) => return false,
                Err(error) => panic!("{error}"),
            }
        }
        match storm.queue.recv_ack_timeout(random.micros(2_000)) {
            Ok(delivery) => {
                let id = *delivery;
                let before = begin(id, DELIVERED);
                // One that was lent, and whose reader died, was not delivered.
                let again = before & DELIVERED != 0;
                assert!(!again || delivery.attempts() > 0, "message {id} came twice, unannounced");
                Self::hold(random);
                if random.below(16) == 0 {
                    delivery.nack();
                } else {
                    let mut delivery = Some(delivery);
                    finish(id, &mut || {
                        let acked = delivery.take().map(outlast::Delivery::ack);
                        assert_eq!(acked, Some(Ok(id)));
                    });
                }
                true
            }
            Err(RecvTimeoutError::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Adds one to the number in the lock, in two steps.
    fn count(&mut self) {
        let Carrier::Ours(storm) = self.carrier else { return };
        let inside = &self.ledger.inside;
        let mut guard = match storm.total.lock_timeout(common::PATIENCE) {
            Ok(guard) => {
                assert_eq!(inside.load(SeqCst), 0, "another thread is inside");
                assert_eq!(guard[0], guard[1], "a death was not told");
                guard
            }
            Err(LockError::OwnerDied(mut guard)) => {
                // The last owner may have taken the first step: it is taken back.
                guard[0] = guard[1];
                if self.random.below(8) == 0 {
                    return; // and left to the next to declare sound
                }
                LockGuard::mark_consistent(&mut guard);
                guard
            }
            Err(error) => panic!("{error}"),
        };
        inside.store(1, SeqCst);
        self.journal.incrementing.store(1, SeqCst);
        guard[0] += 1;
        Self::hold(&mut self.random);
        guard[1] += 1;
        inside.store(0, SeqCst);
        drop(guard);
        self.journal.increments.fetch_add(1, SeqCst);
        self.journal.incrementing.store(0, SeqCst);
    }

    fn nudge(&mut self) {
        let Carrier::Ours(storm) = self.carrier else { return };
        if self.random.below(2) == 0 {
            storm.nudge.set();
        } else {
            storm.nudge.wait_timeout(self.random.micros(500)).expect("a peer");
        }
    }
}

// --------------------------------------------------------------------------------------- the storm

/// Where the segment is, and whether the parent uses it as well.
enum Place {
    /// In memory that the parent maps, without being a user: the survivors are children only.
    Memory(NonNull<u8>, usize),
    /// The parent has a handle, and with it a sentinel.
    Handle(Shared<Storm>),
    /// The control: in the ledger.
    Nowhere,
}

struct Weather {
    place: Place,
    ledger: &'static Ledger,
    crew: [Option<Child>; CREW],
    random: Random,
    kills: u64,
    /// Increments that were, or may have been, made by the dead.
    counted: u64,
    perhaps_counted: u64,
    /// Messages that the dead may have finished without writing it down.
    perhaps_done: Vec<u64>,
    patience: Duration,
}

const MEMORY: usize = 1 << 20;
outlast::shared! {
    struct Memory { bytes: [AtomicU64; MEMORY / 8] }
}

impl Weather {
    fn new(place: Place, seed: u64, patience: Duration) -> Self {
        Weather {
            place,
            ledger: common::plain_shared(),
            crew: [const { None }; CREW],
            random: Random::new(seed),
            kills: 0,
            counted: 0,
            perhaps_counted: 0,
            perhaps_done: Vec::new(),
            patience,
        }
    }

    /// Fills the crew up.
    fn sign_on(&mut self) {
        for slot in 0..CREW {
            if self.crew[slot].is_none() {
                let random = Random::new(self.random.next());
                self.crew[slot] = Some(fork_child(|| self.come_aboard(slot, random)));
            }
        }
    }

    fn come_aboard(&self, slot: usize, mut random: Random) -> ! {
        let shared = match &self.place {
            // SAFETY: the memory is shared with all forked children, and never unmapped.
            Place::Memory(at, len) => unsafe { Shared::<Storm>::open_in(*at, *len) }.map(Some),
            // Some open it for themselves, some go on with what they were forked with.
            Place::Handle(shared) if random.below(2) == 0 => Ok(Some(shared.clone())),
            Place::Handle(shared) => {
                Shared::from_fd(shared.try_clone_fd().expect("a descriptor")).map(Some)
            }
            Place::Nowhere => Ok(None),
        };
        let shared = shared.expect("opens");
        let carrier = shared.as_ref().map_or(Carrier::Anonymous, |storm| Carrier::Ours(storm));
        let (ledger, journal) = (self.ledger, &self.ledger.journals[slot]);
        Sailor { carrier, ledger, journal, random }.sail()
    }

    /// Kills some processes at the same time, and notes what they leave in doubt.
    fn strike(&mut self, slots: &[usize]) -> Result<(), String> {
        for &slot in slots {
            if let Some(child) = &self.crew[slot] {
                child.signal(libc::SIGKILL);
            }
        }
        for &slot in slots {
            let Some(child) = self.crew[slot].take() else { continue };
            let exit = child.wait();
            if exit != KILLED {
                return Err(format!("one found something wrong: {exit:?}"));
            }
            self.kills += 1;
            let journal = &self.ledger.journals[slot];
            self.perhaps_counted += u64::from(journal.incrementing.swap(0, SeqCst));
            self.counted += journal.increments.swap(0, SeqCst);
            let finishing = journal.finishing.swap(0, SeqCst);
            self.perhaps_done.extend(finishing.checked_sub(1));
        }
        Ok(())
    }

    /// One round: deaths one by one, then many at the same time, then calm, in which the survivors
    /// alone recover everything.
    fn round(&mut self, deaths: usize) -> Result<(), String> {
        let ledger = self.ledger;
        for cells in [&ledger.sent, &ledger.begun, &ledger.done] {
            cells.iter().for_each(|cell| cell.store(0, SeqCst));
        }
        self.perhaps_done.clear();
        ledger.next.store(0, SeqCst);
        ledger.drained.store(0, SeqCst);
        ledger.quiet.store(0, SeqCst);
        for _ in 0..deaths {
            self.sign_on();
            std::thread::sleep(self.random.micros(3_000));
            let slot = self.random.index(CREW);
            if self.random.below(10) == 0 {
                // One is stopped for a moment, whatever it is doing.
                let other = self.crew[(slot + 1) % CREW].as_ref().expect("all are aboard");
                other.signal(libc::SIGSTOP);
                self.strike(&[slot])?;
                std::thread::sleep(self.random.micros(1_000));
                let other = self.crew[(slot + 1) % CREW].as_ref().expect("it was not killed");
                other.signal(libc::SIGCONT);
            } else {
                self.strike(&[slot])?;
            }
        }
        self.sign_on();
        std::thread::sleep(self.random.micros(3_000));
        // With a handle of our own we may be the only survivor.
        let fewest = usize::from(!matches!(self.place, Place::Handle(_)));
        let survivors = fewest + self.random.index(3);
        let mut slots: Vec<usize> = (0..CREW).collect();
        while slots.len() > CREW - survivors {
            slots.swap_remove(self.random.index(slots.len()));
        }
        self.strike(&slots)?;
        ledger.quiet.store(1, SeqCst);
        self.calm(survivors)?;
        self.settle()
    }

    /// Waits until all survivors have found that nothing is left.
    fn calm(&mut self, survivors: usize) -> Result<(), String> {
        let end = Instant::now() + self.patience;
        let mut alone = survivors == 0;
        while self.ledger.drained.load(SeqCst) < u32::try_from(survivors).expect("few") || alone {
            if let (Place::Handle(storm), true) = (&self.place, alone) {
                // In the journal of a process that is not there now.
                let journal = &self.ledger.journals[0];
                let (carrier, random) = (Carrier::Ours(storm), Random::new(self.kills));
                alone = !Sailor { carrier, ledger: self.ledger, journal, random }.drain();
            }
            if let Some(slot) = self
                .crew
                .iter()
                .position(|child| child.as_ref().is_some_and(|child| !common::is_alive(child.pid)))
            {
                self.strike(&[slot])?; // which says how it ended
            }
            if Instant::now() > end {
                return Err("what the dead had claimed does not come back".into());
            }
            std::thread::sleep(ms(1));
        }
        Ok(())
    }

    /// Every message was done once, every increment counted.
    fn settle(&self) -> Result<(), String> {
        let ledger = self.ledger;
        let messages = ledger.next.load(SeqCst).min(MESSAGES as u64);
        for id in 0..messages {
            let [sent, begun, done] =
                [&ledger.sent, &ledger.begun, &ledger.done].map(|cells| at(cells, id).load(SeqCst));
            let perhaps = self.perhaps_done.contains(&id);
            let accounted = match sent {
                SENT => done == 1 || done == 0 && perhaps,
                GIVEN_BACK => done == 0 && begun == 0,
                _ => done <= 1, // its sender was killed over it
            };
            if !accounted {
                return Err(format!(
                    "message {id}: sent {sent}, begun {begun}, done {done}, {perhaps}"
                ));
            }
        }
        if messages < 50 {
            return Err(format!("only {messages} messages: that was no storm"));
        }
        Ok(())
    }

    /// What the counter in the lock must be, give or take the processes that were killed while they
    /// changed it.
    fn judge(&self, storm: &Storm) {
        let alive: u64 = ledger_sum(self.ledger);
        let told = match storm.total.lock() {
            Ok(guard) => {
                assert_eq!(guard[0], guard[1]);
                guard[1]
            }
            Err(error) => error.into_guard().expect("a guard")[1],
        };
        let least = self.counted + alive;
        let most = least + self.perhaps_counted;
        assert!((least..=most).contains(&told), "{told} is not within {least}..={most}");
    }
}

fn ledger_sum(ledger: &Ledger) -> u64 {
    ledger.journals.iter().map(|journal| journal.increments.load(SeqCst)).sum()
}

fn rounds() -> usize {
    let set = std::env::var("OUTLAST_STORM_ROUNDS").ok();
    set.map_or(24, |rounds| rounds.parse().expect("a number of rounds"))
}

fn storm() -> Storm {
    Storm { queue: FixedQueue::new(), total: Lock::new([0; 2]), nudge: Event::auto(false) }
}

/// Watches each round, not the whole: that may be made as long as one likes.
fn weather_the_storm(weather: &mut Weather, name: &str) {
    for round in 0..rounds() {
        let _watchdog = common::watch_alone(name);
        if let Err(violation) = weather.round(40) {
            panic!("round {round}, after {} kills: {violation}", weather.kills);
        }
    }
    println_kills(name, weather.kills);
}

fn println_kills(name: &str, kills: u64) {
    common::complain(&format!("{name}: {kills} kills"));
    assert!(kills >= 40 * rounds() as u64);
}

#[test]
fn survivors_alone_notice_every_death() {
    let at = NonNull::from(common::plain_shared::<Memory>()).cast();
    // SAFETY: shared with the children to come, never unmapped, and used by no other code.
    let shared = unsafe { Options::new().create_in(at, MEMORY, storm()) }.unwrap();
    drop(shared); // from here on this process is no user
    let mut weather = Weather::new(Place::Memory(at, MEMORY), 1, common::PATIENCE);
    weather_the_storm(&mut weather, "survivors_alone_notice_every_death");
    // All of them die now; it is we who find what is left.
    weather.strike(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    // SAFETY: as above.
    let shared = unsafe { Shared::<Storm>::open_in(at, MEMORY) }.unwrap();
    assert_eq!(shared.queue.join_timeout(common::PATIENCE), Ok(true));
    weather.judge(&shared);
    is_whole(&shared);
}

#[test]
fn a_parent_notices_every_death() {
    let shared = Shared::anonymous(storm()).unwrap();
    let mut weather = Weather::new(Place::Handle(shared.clone()), 2, common::PATIENCE);
    weather_the_storm(&mut weather, "a_parent_notices_every_death");
    weather.strike(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    assert_eq!(shared.queue.join_timeout(common::PATIENCE), Ok(true));
    weather.judge(&shared);
    is_whole(&shared);
}

/// All slots and in-flight entries can be used.
fn is_whole(storm: &Storm) {
    for lap in 0..3 {
        (0..CAPACITY as u64).for_each(|n| storm.queue.try_send(lap + n).unwrap());
        assert!(storm.queue.try_send(0).is_err());
        assert_eq!(storm.queue.drain().len(), CAPACITY);
    }
    let mut held = Vec::new();
    for n in 0..outlast::queue::IN_FLIGHT as u64 {
        storm.queue.try_send(n).unwrap();
        held.push(storm.queue.try_recv_ack().unwrap());
    }
    held.into_iter().for_each(|delivery| assert!(delivery.ack().is_ok()));
}

/// The control: a ring that claims anonymously does not come through the same storm, and the same
/// judge says so.
#[test]
fn the_storm_finds_anonymous_claims_out() {
    let _watchdog = common::watch_alone("the_storm_finds_anonymous_claims_out");
    let mut weather = Weather::new(Place::Nowhere, 3, ms(3_000));
    let found = (0..40).find_map(|_| weather.round(40).err());
    let found = found.expect("a storm that finds nothing wrong with this ring proves nothing");
    common::complain(&format!("as expected, after {} kills: {found}", weather.kills));
}

// ------------------------------------------------------------------------------- single sequences

outlast::shared! {
    #[derive(Debug)]
    struct Hold { queue: FixedQueue<u64, CAPACITY> }
    #[derive(Debug)]
    struct Tally { ready: AtomicU32, back: AtomicU32, step: AtomicU32 }
}

/// A segment in memory of which this process is no user, with some messages in it.
fn hold(messages: usize) -> (NonNull<u8>, &'static Tally) {
    let at = NonNull::from(common::plain_shared::<Memory>()).cast();
    // SAFETY: shared with the children to come, never unmapped, and used by no other code.
    let shared = unsafe { Options::new().create_in(at, MEMORY, Hold { queue: FixedQueue::new() }) };
    (0..messages as u64).for_each(|n| shared.as_ref().unwrap().queue.send(n).unwrap());
    (at, common::plain_shared())
}

/// A child with a handle of its own.
fn user(at: NonNull<u8>, body: impl FnOnce(&Hold)) -> Child {
    fork_child(|| {
        // SAFETY: as above.
        let own = unsafe { Shared::<Hold>::open_in(at, MEMORY) }.unwrap();
        body(&own);
        core::mem::forget(own);
    })
}

/// Receives one message, and keeps it until it is killed.
fn keep_one(hold: &Hold, tally: &Tally) {
    core::mem::forget(hold.queue.recv_ack().unwrap());
    tally.ready.fetch_add(1, SeqCst);
}

/// Takes what comes back.
fn take_back(hold: &Hold, tally: &Tally) -> ! {
    loop {
        let back = hold.queue.recv_ack().unwrap();
        assert_eq!(back.attempts(), 1);
        back.ack().unwrap();
        tally.back.fetch_add(1, SeqCst);
    }
}

fn watch(name: &str, tally: &'static Tally) -> common::Watchdog {
    common::watch_with(name, move || format!("{tally:?}"))
}

/// Several die in the same instant, in any order, while all others do nothing but sleep: the gap
/// between looking and sleeping, which a sentinel must not have.
#[test]
fn many_deaths_in_one_instant() {
    let mut random = Random::new(5);
    let mut slow = 0;
    for round in 0..60 {
        let (at, tally) = hold(CREW);
        let _watchdog = watch(&format!("many_deaths_in_one_instant, round {round}"), tally);
        let survivors = 1 + random.index(2);
        let mut order: Vec<usize> = (0..CREW).collect();
        let mut crew: Vec<_> = (0..CREW)
            .map(|_| {
                // Survivors are first, in the middle, or last in the table.
                let role = order.swap_remove(random.index(order.len()));
                let child = user(at, |hold| {
                    keep_one(hold, tally);
                    if role < survivors {
                        tally.ready.until(u32::try_from(CREW).unwrap());
                        take_back(hold, tally);
                    }
                    sleep_for_ever();
                });
                tally.ready.until(u32::try_from(CREW - order.len()).unwrap());
                (role, child)
            })
            .collect();
        crew.sort_by_key(|(role, _)| *role);
        let mut dying = crew.split_off(survivors);
        crew.iter().for_each(|(_, child)| child.until_waiting());
        let mut dead = Vec::new();
        while !dying.is_empty() {
            let (_, child) = dying.swap_remove(random.index(dying.len()));
            child.signal(libc::SIGKILL);
            dead.push(child);
            if random.below(4) == 0 {
                common::busy(random.micros(150));
            }
        }
        let began = Instant::now();
        tally.back.until(u32::try_from(CREW - survivors).unwrap());
        slow += u32::from(began.elapsed() > ms(900));
        dead.into_iter().for_each(|child| assert_eq!(child.wait(), KILLED));
        crew.into_iter().for_each(|(_, child)| child.kill9());
    }
    // No failure: the machine may be busy. But it should be 0, and it is what a gap would look like
    // which only the sentinels' look once a second closes.
    common::complain(&format!(
        "many_deaths_in_one_instant: {slow} of 60 rounds took a second or so"
    ));
}

/// Some processes die while they attach, at a random point, together with one that holds a message.
#[test]
fn deaths_while_arriving() {
    let mut random = Random::new(6);
    let (at, tally) = hold(0);
    let _watchdog = watch("deaths_while_arriving", tally);
    let feeder = user(at, |hold| {
        for round in 0.. {
            tally.step.until(3 * round + 1);
            hold.queue.send(u64::from(round)).unwrap();
            tally.ready.until(round + 1);
            tally.step.reach(3 * round + 2);
            // The message of the holder comes back to this process, which has slept meanwhile.
            let back = hold.queue.recv_ack().unwrap();
            assert_eq!((*back, back.attempts()), (u64::from(round), 1));
            back.ack().unwrap();
            tally.step.reach(3 * round + 3);
        }
    });
    for round in 0..200 {
        tally.step.reach(3 * round + 1);
        let holder = user(at, |hold| {
            keep_one(hold, tally);
            sleep_for_ever();
        });
        tally.step.until(3 * round + 2);
        if round % 2 == 0 {
            feeder.until_waiting();
        }
        let arriving = [0, 1].map(|_| user(at, |_| sleep_for_ever()));
        common::busy(random.micros(1_500));
        let [first, second] = arriving;
        first.signal(libc::SIGKILL);
        holder.signal(libc::SIGKILL);
        second.signal(libc::SIGKILL);
        [first, holder, second].into_iter().for_each(|child| assert_eq!(child.wait(), KILLED));
        tally.step.until(3 * round + 3);
    }
    feeder.kill9();
}

/// A process that is stopped does not keep the others from noticing a death, wherever in the table
/// it is.
#[test]
fn a_stopped_peer_hides_no_death() {
    for order in ORDERS {
        one_dies_one_is_stopped(order, |stops| {
            stops.signal(libc::SIGSTOP);
            stops.until_stopped();
        });
    }
}

/// Neither does a peer that is stopped at that very moment, when it may be the one that the kernel
/// has woken.
#[test]
fn a_peer_that_is_just_being_stopped_hides_no_death() {
    for order in ORDERS {
        for _ in 0..5 {
            one_dies_one_is_stopped(order, stop_sentinel_first);
        }
    }
}

/// Stops a process, beginning with its sentinel. By another thread, the sentinel could run on for a
/// while, and be stopped where it holds the control lock: then all others wait for it.
fn stop_sentinel_first(child: &Child) {
    let pid = child.pid;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let sentinel: Vec<libc::pid_t> = ids.filter(|&tid| tid != pid).collect();
    let [sentinel] = sentinel[..] else { panic!("one thread beside the first: {sentinel:?}") };
    // SAFETY: takes no pointers.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, pid, sentinel, libc::SIGSTOP) };
    assert_eq!(r, 0, "tgkill: {}", std::io::Error::last_os_error());
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Three come in this order: 0 is to die, 1 to be stopped, 2 to survive.
#[track_caller]
fn one_dies_one_is_stopped(order: [usize; 3], stop: impl FnOnce(&Child)) {
    let (at, tally) = hold(1);
    let _watchdog = watch("a_stopped_peer_hides_no_death", tally);
    let mut crew = [const { None }; 3];
    for (i, role) in order.into_iter().enumerate() {
        crew[role] = Some(user(at, |hold| {
            tally.step.fetch_add(1, SeqCst);
            match role {
                0 => {
                    tally.step.until(3);
                    keep_one(hold, tally);
                    sleep_for_ever();
                }
                1 => {
                    tally.step.until(4);
                    hold.queue.send(7).unwrap();
                }
                _ => {
                    tally.ready.until(1);
                    let back = hold.queue.recv_ack().unwrap();
                    assert_eq!((*back, back.attempts()), (0, 1));
                    back.ack().unwrap();
                    tally.back.reach(1);
                    assert_eq!(hold.queue.recv(), Ok(7));
                }
            }
        }));
        tally.step.until(u32::try_from(i + 1).unwrap());
    }
    tally.ready.until(1);
    let [dies, stops, survives] = crew.map(Option::unwrap);
    survives.until_waiting();
    stop(&stops);
    dies.kill9();
    common::eventually_within(ms(8_000), "the death is noticed", || tally.back.load(SeqCst) == 1);
    stops.signal(libc::SIGCONT);
    // It takes part again, in the place that it had.
    tally.step.reach(4);
    stops.succeeds();
    survives.succeeds();
}

/// A process that executes another program has left all the same: otherwise what it held would
/// never come back.
#[test]
fn exec_is_an_end() {
    let (at, tally) = hold(1);
    let _watchdog = watch("exec_is_an_end", tally);
    let changes = user(at, |hold| {
        keep_one(hold, tally);
        tally.step.until(1);
        let arguments = [c"sleep".as_ptr(), c"60".as_ptr(), core::ptr::null()];
        // SAFETY: C strings, and a list that ends with null.
        unsafe { libc::execv(c"/bin/sleep".as_ptr(), arguments.as_ptr()) };
    });
    tally.ready.until(1);
    let survivor = user(at, |hold| take_back(hold, tally));
    survivor.until_waiting();
    tally.step.reach(1);
    tally.back.until(1);
    changes.kill9(); // it was alive, as another program
    survivor.kill9();
}

/// The end of a thread is none of its process, whose claims stay.
#[test]
fn the_end_of_a_thread_is_no_death() {
    common::in_own_process("the_end_of_a_thread_is_no_death", || {
        let (at, tally) = hold(2);
        let _watchdog = watch("the_end_of_a_thread_is_no_death", tally);
        let child = user(at, |hold| {
            let held = std::thread::scope(|scope| {
                let taker = scope.spawn(|| {
                    let held = hold.queue.recv_ack().unwrap();
                    core::mem::forget(hold.queue.recv_ref().unwrap());
                    held
                });
                taker.join().unwrap()
            });
            tally.step.reach(1);
            tally.step.until(2);
            assert_eq!(held.attempts(), 0);
            held.ack().unwrap();
            tally.step.reach(3);
            sleep_for_ever();
        });
        tally.step.until(1);
        let other = user(at, |hold| {
            // Another death, so that there is a recovery.
            user_in_child(at);
            assert!(hold.queue.recv_timeout(ms(100)).is_err());
            tally.step.reach(2);
            tally.step.until(3);
            assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty));
            tally.step.reach(4);
            // Now the process itself: what was lent to its thread comes back.
            assert_eq!(hold.queue.recv(), Ok(1));
        });
        tally.step.until(4);
        other.until_waiting();
        child.kill9();
        other.succeeds();
    });
}

/// A process that comes and dies.
fn user_in_child(at: NonNull<u8>) {
    let dies = user(at, |hold| {
        assert_eq!(hold.queue.try_recv(), Err(TryRecvError::Empty));
        exit_now(0);
    });
    dies.succeeds();
}
