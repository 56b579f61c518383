//! The primitives under loom, which runs each model in every order of its threads' steps and with
//! every value that a weakly ordered memory may show, up to a number of preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg outlast_loom" LOOM_MAX_PREEMPTIONS=2 cargo test --profile loom --test model
//! ```
//!
//! A thread stands for a process. A lost wake shows as a deadlock, a missing order as a race on a
//! value or a stale relaxed load. Processes are killed before each of their atomic operations in
//! turn ([`killed_anywhere`]), which no test with real processes can do.
#![cfg(outlast_loom)]

use core::mem::forget;
use core::time::Duration;
use loom::model::Builder;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread::{self, JoinHandle};
use outlast::__private::live;
use outlast::{
    Dead, Event, FixedQueue, Lock, LockError, Queue, RecvError, RecvTimeoutError, SendError,
    Shareable, Shared, TryRecvError,
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A deadline that may pass at any moment.
const SOON: Duration = Duration::from_secs(1);

/// How long one model is explored at most: all but those of two senders and two receivers are through
/// before. With `OUTLAST_MODELS=full` there is no limit.
const PATIENCE: Duration = Duration::from_secs(15);

fn is_full() -> bool {
    std::env::var_os("OUTLAST_MODELS").is_some_and(|value| value == "full")
}

/// Runs `model` in every order. The bound is `LOOM_MAX_PREEMPTIONS`, or 2.
fn check(model: impl Fn() + Send + Sync + 'static) {
    check_up_to(usize::MAX, model);
}

/// The same for a model that is too large for more than `bound` preemptions.
fn check_up_to(bound: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(2).min(bound));
    builder.max_branches = builder.max_branches.max(20_000);
    if !is_full() {
        builder.max_duration = Some(PATIENCE);
    }
    builder.check(model);
}

/// Starts threads that go to sleep, in one order only: falling asleep has models of its own.
fn asleep<R>(start: impl FnOnce() -> R) -> R {
    loom::stop_exploring();
    let threads = start();
    thread::yield_now();
    loom::explore();
    threads
}

fn share<T: Shareable>(value: T) -> Shared<T> {
    Shared::anonymous(value).unwrap()
}

fn spawn<T: 'static, R: 'static>(
    shared: &Shared<T>,
    act: impl FnOnce(&T) -> R + 'static,
) -> JoinHandle<R> {
    let shared = shared.clone();
    thread::spawn(move || act(&shared))
}

fn join<R>(threads: impl IntoIterator<Item = JoinHandle<R>>) -> Vec<R> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// A process that ends after `act`, with all that it then has.
fn spawn_dying<T: 'static, R: 'static>(
    shared: &Shared<T>,
    act: impl Fn(&T) -> R + 'static,
) -> JoinHandle<Dead> {
    spawn(shared, move |shared| Dead::killed(live(u32::MAX, || act(shared)).0))
}

/// A process that `killed_anywhere` kills.
struct Victim {
    life: u32,
    killed: Arc<AtomicBool>,
}

/// How a victim's life went.
struct Life<R> {
    dead: Dead,
    /// What its work came to, unless it was killed.
    result: Option<R>,
}

impl Victim {
    fn spawn<T: 'static, R: 'static>(
        &self,
        shared: &Shared<T>,
        act: impl Fn(&T) -> R + 'static,
    ) -> JoinHandle<Life<R>> {
        let (life, killed) = (self.life, self.killed.clone());
        spawn(shared, move |shared| {
            let (tag, result) = live(life, || act(shared));
            killed.fetch_or(result.is_none(), std::sync::atomic::Ordering::Relaxed);
            Life { dead: Dead::killed(tag), result }
        })
    }
}

/// Checks `model` with a victim that is killed before its first atomic operation, before its
/// second, and so on until it always comes to its end. The kill itself interrupts at every place,
/// so one preemption more is enough, unless `OUTLAST_MODELS` is `full`.
fn killed_anywhere(model: impl Fn(&Victim) + Send + Sync + 'static) {
    let bound = if is_full() { usize::MAX } else { 1 };
    let model = Arc::new(model);
    for life in 0.. {
        let killed = Arc::new(AtomicBool::new(false));
        let (model, victim) = (model.clone(), Victim { life, killed: killed.clone() });
        check_up_to(bound, move || model(&victim));
        if !killed.load(std::sync::atomic::Ordering::Relaxed) {
            assert!(life > 2, "the victim did nothing");
            return;
        }
    }
}

// ------------------------------------------------------------------------ lock

#[test]
fn lock_admits_one_at_a_time() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let add_one = |lock: &Lock<u32>| *lock.lock().unwrap() += 1;
        let others = [spawn(&lock, add_one), spawn(&lock, add_one)];
        add_one(&lock);
        join(others);
        assert_eq!(*lock.lock().unwrap(), 3);
    });
}

#[test]
fn lock_wakes_every_sleeper() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let held = lock.lock().unwrap();
        let sleepers = [(); 3].map(|()| spawn(&lock, |lock| *lock.lock().unwrap() += 1));
        drop(held);
        join(sleepers);
        assert_eq!(*lock.lock().unwrap(), 3);
    });
}

#[test]
fn lock_timeout_loses_no_wake_of_others() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let mut held = lock.lock().unwrap();
        let timed = spawn(&lock, |lock| match lock.lock_timeout(SOON) {
            Ok(mut value) => *value += 1,
            Err(error) => assert!(matches!(error, LockError::TimedOut)),
        });
        let patient = spawn(&lock, |lock| *lock.lock().unwrap() += 1);
        *held += 1;
        drop(held);
        timed.join().unwrap();
        patient.join().unwrap();
        assert!((2..=3).contains(&*lock.lock().unwrap()));
    });
}

#[test]
fn try_lock_takes_only_what_is_free() {
    check(|| {
        let lock = share(Lock::new(0_u32));
        let try_one = |lock: &Lock<u32>| match lock.try_lock() {
            Ok(mut value) => {
                assert!(matches!(lock.try_lock(), Err(LockError::WouldDeadlock)));
                *value += 1;
                1
            }
            Err(error) => {
                assert!(matches!(error, LockError::WouldBlock));
                0
            }
        };
        let others = [spawn(&lock, try_one), spawn(&lock, try_one)];
        *lock.lock().unwrap() += 1;
        let taken: u32 = join(others).iter().sum();
        assert_eq!(*lock.lock().unwrap(), taken + 1);
    });
}

#[test]
fn locks_are_given_up_in_any_order() {
    check(|| {
        let locks = share([Lock::new(0_u32), Lock::new(0_u32)]);
        let others = [0, 1].map(|i| spawn(&locks, move |locks| *locks[i].lock().unwrap() += 1));
        let (mut first, mut second) = (locks[0].lock().unwrap(), locks[1].lock().unwrap());
        *first += 1;
        *second += 1;
        drop(first);
        drop(second);
        join(others);
        assert_eq!((*locks[0].lock().unwrap(), *locks[1].lock().unwrap()), (2, 2));
    });
}

/// Adds one, whatever happened to earlier owners.
fn add_one(lock: &Lock<u32>) {
    *lock.lock().or_else(|error| error.into_guard().ok_or(())).unwrap() += 1;
}

#[test]
fn lock_outlasts_an_owner_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = share(Lock::new(0));
        let victim = victim.spawn(&lock, add_one);
        let other = spawn(&lock, add_one);
        add_one(&lock);
        other.join().unwrap();
        let life = victim.join().unwrap();
        let sum = *lock.lock().or_else(|error| error.into_guard().ok_or(())).unwrap();
        assert!(sum == 3 || sum == 2 && life.result.is_none());
    });
}

#[test]
fn lock_outlasts_a_sleeper_killed_anywhere() {
    killed_anywhere(|victim| {
        let lock = share(Lock::new(0));
        let held = lock.lock().unwrap();
        let victim = victim.spawn(&lock, |lock| drop(lock.lock()));
        let other = spawn(&lock, add_one);
        drop(held);
        victim.join().unwrap();
        other.join().unwrap();
    });
}

// ----------------------------------------------------------------------- event

#[test]
fn manual_event_shows_what_was_written_before() {
    check(|| {
        let event = share(Event::manual(false));
        let written = Arc::new(AtomicU32::new(0));
        let waiters = [(); 2].map(|()| {
            let written = written.clone();
            spawn(&event, move |event| {
                event.wait().unwrap();
                assert_eq!(written.load(Relaxed), 1);
            })
        });
        written.store(1, Relaxed);
        event.set();
        join(waiters);
        assert!(event.is_set());
    });
}

#[test]
fn manual_event_seen_as_set_shows_what_was_written_before() {
    check(|| {
        let event = share(Event::manual(false));
        let written = Arc::new(AtomicU32::new(0));
        let watcher = {
            let written = written.clone();
            spawn(&event, move |event| {
                if event.is_set() || event.wait_timeout(SOON).unwrap() {
                    assert_eq!(written.load(Relaxed), 1);
                }
            })
        };
        written.store(1, Relaxed);
        event.set();
        watcher.join().unwrap();
    });
}

/// Whether somebody may be asleep: bit 1 of the word, which only `Debug` shows.
fn has_waiters(event: &Event) -> bool {
    let shown = format!("{event:?}");
    let (_, word) = shown.split_once("0x").unwrap();
    u32::from_str_radix(&word[..8], 16).unwrap() & 2 != 0
}

#[test]
fn manual_event_pulse_releases_who_waited_before() {
    check(|| {
        let event = share(Event::manual(false));
        let waiter = spawn(&event, |event| event.wait().unwrap());
        let waited_before = has_waiters(&event);
        event.set();
        event.reset();
        if !waited_before {
            event.set();
        }
        waiter.join().unwrap();
    });
}

#[test]
fn manual_event_can_be_used_again() {
    check(|| {
        let event = share(Event::manual(false));
        let waiters = [(); 2].map(|()| spawn(&event, |event| event.wait().unwrap()));
        event.set();
        event.reset();
        assert!(!event.is_set());
        event.set();
        join(waiters);
    });
}

#[test]
fn auto_event_lets_one_through_a_time() {
    check(|| {
        let events = share([Event::auto(false), Event::auto(false)]);
        let through = Arc::new(AtomicU32::new(0));
        let waiters = [(); 2].map(|()| {
            let through = through.clone();
            spawn(&events, move |[event, taken]| {
                event.wait().unwrap();
                through.fetch_add(1, Relaxed);
                taken.set();
            })
        });
        let [event, taken] = &*events;
        event.set();
        taken.wait().unwrap();
        assert_eq!(through.load(Relaxed), 1);
        event.set();
        join(waiters);
        assert!(!event.is_set());
    });
}

#[test]
fn auto_event_timeout_swallows_no_signal() {
    check(|| {
        let event = share(Event::auto(false));
        let timed = spawn(&event, |event| event.wait_timeout(SOON).unwrap());
        let patient = spawn(&event, |event| event.wait().unwrap());
        event.set();
        if timed.join().unwrap() {
            event.set();
        }
        patient.join().unwrap();
        assert!(!event.is_set());
    });
}

#[test]
fn event_outlasts_a_waiter_killed_anywhere() {
    killed_anywhere(|victim| {
        let event = share(Event::auto(false));
        let victim = victim.spawn(&event, |event| event.wait_timeout(SOON).unwrap());
        let patient = spawn(&event, |event| event.wait().unwrap());
        event.set();
        let life = victim.join().unwrap();
        event.recover(&life.dead);
        if life.result != Some(false) {
            event.set(); // it has taken the signal, or may have
        }
        patient.join().unwrap();
    });
}

#[test]
fn event_outlasts_a_setter_killed_anywhere() {
    killed_anywhere(|victim| {
        let event = share(Event::manual(false));
        let waiters = asleep(|| [(); 2].map(|()| spawn(&event, |event| event.wait().unwrap())));
        let victim = victim.spawn(&event, Event::set);
        let life = victim.join().unwrap();
        event.recover(&life.dead);
        if life.result.is_none() {
            event.set();
        }
        join(waiters);
    });
}

// ----------------------------------------------------------------------- queue

/// All room is free, and nothing else is in it.
fn assert_intact(queue: &Queue<u32>) {
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    let room = u32::try_from(queue.capacity()).unwrap();
    assert!((0..room).all(|i| queue.try_send(i).is_ok()));
    assert!(queue.try_send(room).is_err_and(|error| error.is_full()));
    assert_eq!(queue.drain(), Vec::from_iter(0..room));
    assert_eq!(queue.join_timeout(SOON), Ok(true));
}

fn sorted(mut messages: Vec<u32>) -> Vec<u32> {
    messages.sort_unstable();
    messages
}

/// One message of each of two producers, two consumers.
fn one_message_each<const N: usize>() {
    check(|| {
        let queue = share(FixedQueue::<u32, N>::new());
        let producer = spawn(&queue, |queue| queue.try_send(1).is_ok());
        let consumer = spawn(&queue, |queue| queue.try_recv().ok());
        let mut sent = Vec::from_iter(queue.try_send(2).is_ok().then_some(2));
        let received = [queue.try_recv().ok(), consumer.join().unwrap()];
        sent.extend(producer.join().unwrap().then_some(1));
        let received = received.into_iter().flatten().chain(queue.drain()).collect();
        assert_eq!(sorted(received), sorted(sent));
    });
}

/// Two messages of each, which come in the order in which they were sent. Too large for more than one preemption.
fn two_producers_and_two_consumers<const N: usize>() {
    check_up_to(1, || {
        let queue = share(FixedQueue::<u32, N>::new());
        let producer = spawn(&queue, |queue| queue.send_batch(&[10, 11]).unwrap());
        let consumer = spawn(&queue, |queue| [queue.recv().unwrap(), queue.recv().unwrap()]);
        let mine = [20, 21].map(|message| {
            queue.send(message).unwrap();
            queue.recv().unwrap()
        });
        let other = consumer.join().unwrap();
        for received in [mine, other] {
            assert!(received[0] / 10 != received[1] / 10 || received[0] < received[1]);
        }
        assert_eq!(sorted([mine, other].concat()), [10, 11, 20, 21]);
        producer.join().unwrap();
    });
}

#[test]
fn queue_of_one_delivers_each_message_once() {
    one_message_each::<1>();
    two_producers_and_two_consumers::<1>();
}

#[test]
fn queue_of_two_delivers_each_message_once() {
    one_message_each::<2>();
    two_producers_and_two_consumers::<2>();
}

#[test]
fn queue_shows_what_was_written_before_send() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let written = Arc::new(AtomicU32::new(0));
        let receiver = {
            let written = written.clone();
            spawn(&queue, move |queue| {
                if let Ok(message) = queue.try_recv() {
                    assert_eq!((message, written.load(Relaxed)), (7, 1));
                }
            })
        };
        written.store(1, Relaxed);
        queue.try_send(7).unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn queue_keeps_the_order_of_each_producer() {
    check(|| {
        let queue = share(FixedQueue::<u32, 3>::new());
        let other = spawn(&queue, |queue| queue.send_batch(&[10, 11]).unwrap());
        queue.send(20).unwrap();
        let received = Vec::from_iter(queue.iter().take(3));
        let of = |producer: u32| received.iter().copied().filter(move |m| m / 10 == producer);
        assert!(of(1).eq([10, 11]) && of(2).eq([20]));
        other.join().unwrap();
    });
}

#[test]
fn queue_wakes_a_receiver_that_is_falling_asleep() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let receiver = spawn(&queue, |queue| [queue.recv().unwrap(), queue.recv().unwrap()]);
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(receiver.join().unwrap(), [1, 2]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_every_blocked_sender() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let senders =
            asleep(|| [1, 2].map(|message| spawn(&queue, move |queue| queue.send(message))));
        let received = Vec::from_iter(queue.iter().take(3));
        assert_eq!(received[0], 0);
        assert_eq!(sorted(received), [0, 1, 2]);
        assert!(join(senders).iter().all(Result::is_ok));
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_every_blocked_receiver() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers = asleep(|| [(); 2].map(|()| spawn(&queue, |queue| queue.recv().unwrap())));
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(sorted(join(receivers)), [1, 2]);
        assert_intact(&queue);
    });
}

/// The first sender may be slower than the second, whose receiver then finds its way barred.
#[test]
fn queue_wakes_receivers_whom_a_slow_sender_held_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers = asleep(|| [(); 2].map(|()| spawn(&queue, |queue| queue.recv().unwrap())));
        let slow = queue.loan();
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        let mut slow = slow.unwrap();
        *slow = 1;
        slow.send().unwrap();
        assert_eq!(sorted(join(receivers)), [1, 2]);
        sender.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_wakes_senders_whom_a_slow_receiver_held_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let slow = queue.recv_ref().unwrap();
        assert_eq!(*slow, 1);
        let senders =
            asleep(|| [3, 4].map(|message| spawn(&queue, move |queue| queue.send(message))));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        drop(slow);
        assert_eq!(receiver.join().unwrap(), 2);
        assert!(join(senders).iter().all(Result::is_ok));
        assert_eq!(sorted(queue.drain()), [3, 4]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_timeout_loses_no_wake_of_other_receivers() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let (timed, patient) = asleep(|| {
            (
                spawn(&queue, |queue| queue.recv_timeout(SOON)),
                spawn(&queue, |queue| queue.recv().unwrap()),
            )
        });
        queue.send(1).unwrap();
        match timed.join().unwrap() {
            Ok(message) => {
                assert_eq!(message, 1);
                queue.send(2).unwrap();
                assert_eq!(patient.join().unwrap(), 2);
            }
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(patient.join().unwrap(), 1);
            }
        }
        assert_intact(&queue);
    });
}

#[test]
fn queue_timeout_loses_no_wake_of_other_senders() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let (timed, patient) = asleep(|| {
            (
                spawn(&queue, |queue| queue.send_timeout(1, SOON).is_ok()),
                spawn(&queue, |queue| queue.send(2).unwrap()),
            )
        });
        assert_eq!(queue.recv(), Ok(0));
        if timed.join().unwrap() {
            assert!(queue.recv().is_ok());
        }
        patient.join().unwrap();
        assert_eq!(queue.drain().len(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_close_ends_every_receiver_once_all_is_received() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receivers =
            asleep(|| [(); 2].map(|()| spawn(&queue, |queue| Vec::from_iter(queue.iter()))));
        queue.send(1).unwrap();
        queue.close();
        assert_eq!(join(receivers).concat(), [1]);
        assert_eq!(queue.recv(), Err(RecvError::Closed));
        assert_eq!(queue.send(2), Err(SendError::Closed(2)));
    });
}

#[test]
fn queue_close_loses_no_message_that_was_sent() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let sender = spawn(&queue, |queue| queue.send(1).is_ok());
        let receiver = spawn(&queue, |queue| Vec::from_iter(queue.iter()));
        queue.close();
        // Also for the second of two receivers, which looks after the first has ended.
        let mine = Vec::from_iter(queue.iter());
        let sent = sender.join().unwrap();
        assert_eq!([mine, receiver.join().unwrap()].concat().len(), usize::from(sent));
        assert_eq!(queue.drain(), []);
    });
}

#[test]
fn queue_close_ends_blocked_senders() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(0).unwrap();
        let senders = [1, 2].map(|message| spawn(&queue, move |queue| queue.send(message)));
        queue.close();
        for (sender, message) in senders.into_iter().zip([1, 2]) {
            assert_eq!(sender.join().unwrap(), Err(SendError::Closed(message)));
        }
        assert_eq!(queue.drain(), [0]);
    });
}

#[test]
fn queue_passes_over_a_loan_given_up() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let loan = queue.loan().unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let sender = spawn(&queue, |queue| queue.send(1).unwrap());
        drop(loan);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_waits_for_the_acknowledgement() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send(7).unwrap();
        let worker = {
            let done = done.clone();
            spawn(&queue, move |queue| {
                let job = queue.recv_ack().unwrap();
                assert_eq!((*job, job.attempts()), (7, 0));
                done.store(1, Relaxed);
                job.ack().unwrap();
            })
        };
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 1);
        worker.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_waits_for_all_workers() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let done = Arc::new(AtomicU32::new(0));
        queue.send_batch(&[1, 2]).unwrap();
        let work = |queue: &FixedQueue<u32, 2>, done: &AtomicU32| {
            let job = queue.recv_ack().unwrap();
            done.fetch_add(1, Relaxed);
            job.ack().unwrap();
        };
        let workers = [(); 2].map(|()| {
            let done = done.clone();
            spawn(&queue, move |queue| work(queue, &done))
        });
        queue.join().unwrap();
        assert_eq!(done.load(Relaxed), 2);
        join(workers);
    });
}

#[test]
fn queue_delivers_again_what_was_given_back() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(7).unwrap();
        let other = spawn(&queue, |queue| queue.try_recv_ack().map(|job| job.nack()).is_ok());
        let job = queue.recv_ack().unwrap();
        let attempts = job.attempts();
        assert_eq!(job.ack(), Ok(7));
        assert_eq!(other.join().unwrap(), attempts == 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_delivers_once_what_was_given_back() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send(7).unwrap();
        queue.recv_ack().unwrap().nack();
        queue.send(8).unwrap();
        let others = [
            spawn(&queue, |queue| queue.recv().unwrap()),
            spawn(&queue, |queue| queue.recv_ack().unwrap().ack().unwrap()),
        ];
        assert_eq!(sorted(join(others)), [7, 8]);
        assert_intact(&queue);
    });
}

// -------------------------------------------------------------------- recovery

#[test]
fn recovery_frees_the_slot_of_a_dead_sender() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let dead = spawn_dying(&queue, |queue| forget(queue.loan().unwrap())).join().unwrap();
        let sender = spawn(&queue, |queue| queue.send(1).unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.recover(&dead);
        sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_opens_the_way_to_later_messages() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let dead = spawn_dying(&queue, |queue| forget(queue.loan().unwrap())).join().unwrap();
        queue.send(1).unwrap();
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_eq!(queue.drain(), [2]);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_delivers_again_what_a_dead_receiver_read() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let dead = spawn_dying(&queue, |queue| forget(queue.recv_ref().unwrap())).join().unwrap();
        let sender = spawn(&queue, |queue| queue.send(2).unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.recover(&dead);
        assert_eq!(receiver.join().unwrap(), 1);
        sender.join().unwrap();
        assert_eq!(queue.drain(), [2]);
        assert_intact(&queue);
    });
}

#[test]
fn recovery_delivers_again_what_a_dead_worker_held() {
    check(|| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let dead = spawn_dying(&queue, |queue| forget(queue.recv_ack().unwrap())).join().unwrap();
        let worker = spawn(&queue, |queue| {
            let job = queue.recv_ack().unwrap();
            assert_eq!(job.attempts(), 1);
            job.ack()
        });
        queue.recover(&dead);
        assert_eq!(worker.join().unwrap(), Ok(1));
        assert_intact(&queue);
    });
}

#[test]
fn recovery_twice_at_once_is_recovery_once() {
    check(|| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let die = |queue: &FixedQueue<u32, 2>| {
            forget(queue.recv_ack().unwrap());
            forget(queue.recv_ref().unwrap());
            forget(queue.loan().unwrap());
        };
        let dead = spawn_dying(&queue, die).join().unwrap();
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let other = spawn(&queue, move |queue| queue.recover(&dead));
        queue.recover(&dead);
        other.join().unwrap();
        let rest = queue.try_recv_ack().unwrap();
        let attempts = rest.attempts();
        let rest = rest.ack().unwrap();
        assert_eq!(attempts, u32::from(rest == 1));
        assert_eq!(sorted(vec![receiver.join().unwrap(), rest]), [1, 2]);
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_a_sender_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let victim = victim.spawn(&queue, |queue| queue.send(1).unwrap());
        queue.send(2).unwrap();
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let mut received = vec![receiver.join().unwrap()];
        received.extend(queue.drain());
        let received = sorted(received);
        assert!(received == [1, 2] || received == [2] && life.result.is_none());
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_a_receiver_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        let victim = victim.spawn(&queue, |queue| queue.recv().unwrap());
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let mut received = vec![receiver.join().unwrap()];
        received.extend(queue.drain());
        received.extend(life.result);
        let received = sorted(received);
        assert!(received == [1, 2] || received.len() == 1 && life.result.is_none());
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_a_worker_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| {
            let job = queue.try_recv_ack();
            let delivered = job.is_ok();
            forget(job);
            delivered
        });
        let worker = spawn(&queue, |queue| {
            let job = queue.recv_ack().unwrap();
            (job.attempts(), job.ack().unwrap())
        });
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let (attempts, message) = worker.join().unwrap();
        assert!(life.result.is_none_or(|delivered| attempts == u32::from(delivered)));
        assert!(attempts <= 1);
        assert_eq!(message, 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_one_killed_anywhere_in_giving_back() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| drop(queue.try_recv_ack()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_one_killed_anywhere_in_taking_again() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        queue.recv_ack().unwrap().nack();
        let victim = victim.spawn(&queue, |queue| forget(queue.try_recv_ack()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_join_outlasts_a_worker_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| queue.recv_ack().unwrap().ack().unwrap());
        let joiner = spawn(&queue, |queue| queue.join().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        let rest = queue.drain();
        assert!(rest.is_empty() || rest == [1] && life.result.is_none());
        joiner.join().unwrap();
        assert_intact(&queue);
    });
}

#[test]
fn queue_loses_nothing_to_a_reader_in_place_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        queue.send(1).unwrap();
        let victim = victim.spawn(&queue, |queue| forget(queue.try_recv_ref()));
        let receiver = spawn(&queue, |queue| queue.recv().unwrap());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        assert_eq!(receiver.join().unwrap(), 1);
        assert_intact(&queue);
    });
}

#[test]
fn queue_outlasts_one_killed_anywhere_in_closing() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 1>::new());
        let victim = victim.spawn(&queue, |queue| queue.close());
        let receiver = spawn(&queue, |queue| queue.recv());
        let life = victim.join().unwrap();
        queue.recover(&life.dead);
        if !queue.is_closed() {
            queue.send(1).unwrap();
            assert_eq!(receiver.join().unwrap(), Ok(1));
        } else {
            assert_eq!(receiver.join().unwrap(), Err(RecvError::Closed));
        }
    });
}

#[test]
fn recovery_outlasts_a_recoverer_killed_anywhere() {
    killed_anywhere(|victim| {
        let queue = share(FixedQueue::<u32, 2>::new());
        queue.send_batch(&[1, 2]).unwrap();
        let die = |queue: &FixedQueue<u32, 2>| {
            forget(queue.recv_ack().unwrap());
            forget(queue.recv_ref().unwrap());
            forget(queue.loan().unwrap());
        };
        let dead = spawn_dying(&queue, die).join().unwrap();
        let receiver = asleep(|| spawn(&queue, |queue| queue.recv().unwrap()));
        let victim = victim.spawn(&queue, move |queue| queue.recover(&dead));
        let life = victim.join().unwrap();
        queue.recover(&dead);
        queue.recover(&life.dead);
        let rest = queue.try_recv_ack().unwrap();
        let attempts = rest.attempts();
        let rest = rest.ack().unwrap();
        assert_eq!(attempts, u32::from(rest == 1));
        assert_eq!(sorted(vec![receiver.join().unwrap(), rest]), [1, 2]);
        assert_intact(&queue);
    });
}
