//! `Queue` and `FixedQueue`: conservation, order, closing, acknowledgement, loans, and what deaths
//! do to them.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    Child, OK, Random, Stage, eventually, fork_child, ms, sleep_for_ever, until_waiting, watch,
    watch_alone, worlds,
};
use core::fmt::Debug;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU8, AtomicU32};
use outlast::queue::IN_FLIGHT;
use outlast::{
    Channel, Fault, FixedPriorityQueue, FixedQueue, OpenError, Plain, Queue, RecvError,
    RecvTimeoutError, SendError, SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

fn queue<T: Plain>(capacity: usize) -> Shared<Queue<T>> {
    Shared::<Queue<T>>::with_capacity(capacity).unwrap()
}

fn numbers(capacity: usize) -> Shared<Queue<u64>> {
    queue(capacity)
}

/// Runs `body` in a thread, and gives it back when that thread sleeps on the queue.
fn in_waiting_thread<'s, R: Send + 's>(
    scope: &'s std::thread::Scope<'s, '_>,
    body: impl FnOnce() -> R + Send + 's,
) -> std::thread::ScopedJoinHandle<'s, R> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = scope.spawn(move || {
        outlast::Spin::Never.set();
        tell.send(common::thread_id()).unwrap();
        body()
    });
    until_waiting(told.recv().unwrap());
    thread
}

// -------------------------------------------------------------------------------- conservation

outlast::plain! {
    #[derive(Debug, PartialEq)]
    struct Letter { from: u32, number: u32, check: u64 }
}

impl Letter {
    fn new(from: usize, number: u32) -> Self {
        let from = u32::try_from(from).unwrap();
        Letter { from, number, check: Self::check(from, number) }
    }
    fn check(from: u32, number: u32) -> u64 {
        (u64::from(from) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

const PRODUCERS: usize = 2;
const CONSUMERS: usize = 2;
const LETTERS: u32 = 1_500;

outlast::shared! {
    #[derive(Debug)]
    struct Queues {
        one: FixedQueue<Letter, 1>,
        two: FixedQueue<Letter, 2>,
        three: FixedQueue<Letter, 3>,
        thousand: FixedQueue<Letter, 1_000>,
        finished: AtomicU32,
        seen: Seen,
    }
    struct Seen { counts: [[AtomicU8; LETTERS as usize]; PRODUCERS] }
}

impl Debug for Seen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let seen = self.counts.iter().flatten().filter(|count| count.load(SeqCst) != 0).count();
        write!(f, "{seen} letters seen")
    }
}

impl Seen {
    fn note(&self, letter: &Letter, last: &mut [Option<u32>; PRODUCERS]) {
        assert_eq!(letter.check, Letter::check(letter.from, letter.number), "torn: {letter:?}");
        let from = letter.from as usize;
        let before = self.counts[from][letter.number as usize].fetch_add(1, SeqCst);
        assert_eq!(before, 0, "{letter:?} came twice");
        // One consumer sees the letters of one producer in the order in which they were sent.
        assert!(last[from] < Some(letter.number), "{letter:?} after {last:?}");
        last[from] = Some(letter.number);
    }
}

/// Every way to send, mixed.
fn send_all(queue: &Queue<Letter>, role: usize) {
    let mut number = 0;
    while number < LETTERS {
        let letter = Letter::new(role, number);
        match number % 6 {
            0 => queue.send(letter).unwrap(),
            1 => {
                while let Err(error) = queue.try_send(letter) {
                    assert_eq!(error, TrySendError::Full(letter));
                    std::thread::yield_now();
                }
            }
            2 => queue.send_timeout(letter, common::PATIENCE).unwrap(),
            3 => queue.send_deadline(letter, Instant::now() + common::PATIENCE).unwrap(),
            4 => {
                let mut loan = queue.loan().unwrap();
                *loan = letter;
                loan.send().unwrap();
            }
            _ => {
                let batch: Vec<_> =
                    (number..LETTERS).take(5).map(|n| Letter::new(role, n)).collect();
                queue.send_batch(&batch).unwrap();
                number += u32::try_from(batch.len()).unwrap();
                continue;
            }
        }
        number += 1;
    }
}

/// Every way to receive, mixed, until the queue is closed and empty.
fn receive_all(queue: &Queue<Letter>, mut note: impl FnMut(&Letter)) {
    for turn in 0.. {
        let ended = match turn % 7 {
            0 => queue.recv().map(|letter| note(&letter)) == Err(RecvError::Closed),
            1 => match queue.try_recv() {
                Ok(letter) => {
                    note(&letter);
                    false
                }
                Err(error) => error == TryRecvError::Closed,
            },
            2 => {
                let received = queue.recv_timeout(ms(1)).map(|letter| note(&letter));
                received == Err(RecvTimeoutError::Closed)
            }
            3 => match queue.recv_ack() {
                Ok(delivery) => {
                    assert_eq!(delivery.attempts(), 0);
                    note(&delivery);
                    delivery.ack().unwrap();
                    false
                }
                Err(error) => error == RecvError::Closed,
            },
            4 => match queue.recv_ref() {
                Ok(letter) => {
                    note(&letter);
                    false
                }
                Err(error) => error == RecvError::Closed,
            },
            5 => {
                let mut letters = Vec::new();
                let received = queue.recv_batch(&mut letters, 3);
                letters.iter().for_each(&mut note);
                received == Err(RecvError::Closed)
            }
            _ => match queue.try_recv_ack() {
                Ok(delivery) => {
                    note(&delivery);
                    delivery.ack().unwrap();
                    false
                }
                Err(error) => error == TryRecvError::Closed,
            },
        };
        if ended {
            assert!(queue.is_closed());
            return;
        }
    }
}

/// Batches, loans and references have the forms that single messages have.
#[test]
fn forms_of_batches_loans_and_references() {
    let queue = Shared::<Queue<u64>>::with_capacity(3).unwrap();
    let _watchdog = watch("forms_of_batches_loans_and_references", &queue);
    let (soon, past) = (Duration::from_millis(1), Instant::now());
    let mut buffer = Vec::new();
    assert_eq!(queue.try_recv_batch(&mut buffer, 9), Err(TryRecvError::Empty));
    let started = Instant::now();
    assert_eq!(queue.recv_batch_timeout(&mut buffer, 9, soon), Err(RecvTimeoutError::TimedOut));
    assert!(started.elapsed() >= soon);
    assert_eq!(queue.recv_ref_deadline(past).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(queue.try_join().unwrap());

    assert_eq!(queue.try_send_batch(&[1, 2]), Ok(()));
    assert!(!queue.try_join().unwrap());
    assert_eq!(queue.send_batch_timeout(&[3, 4], soon), Err(SendTimeoutError::TimedOut(1)));
    assert_eq!(queue.try_send_batch(&[4]), Err(TrySendError::Full(0)));
    assert_eq!(queue.loan_timeout(soon).unwrap_err(), SendTimeoutError::TimedOut(()));
    assert_eq!(*queue.recv_ref_timeout(soon).unwrap(), 1);
    queue.loan_deadline(past).unwrap().send().unwrap();
    assert_eq!(queue.recv_batch_deadline(&mut buffer, 2, past), Ok(2));
    assert_eq!((buffer, queue.len()), (vec![2, 3], 1));
    queue.close();
    assert_eq!(queue.try_send_batch(&[5]), Err(TrySendError::Closed(0)));
}

#[test]
fn conservation() {
    type Choice = fn(&Queues) -> &Queue<Letter>;
    let choices: [(&str, Choice); 4] = [
        ("one", |queues| &queues.one),
        ("two", |queues| &queues.two),
        ("three", |queues| &queues.three),
        ("thousand", |queues| &queues.thousand),
    ];
    for (case, choose) in choices {
        worlds(
            "conservation",
            case,
            PRODUCERS + CONSUMERS,
            || outlast::Options::new().anonymous_with(|_: &Queues| {}).unwrap(),
            |shared, role| {
                let queue = choose(shared);
                if role < PRODUCERS {
                    send_all(queue, role);
                    if shared.finished.fetch_add(1, SeqCst) as usize == PRODUCERS - 1 {
                        queue.close();
                    }
                } else {
                    let mut last = [None; PRODUCERS];
                    receive_all(queue, |letter| shared.seen.note(letter, &mut last));
                }
            },
            |shared| {
                let missing =
                    shared.seen.counts.iter().flatten().filter(|count| count.load(SeqCst) != 1);
                assert_eq!(missing.count(), 0, "letters are missing");
                let queue = choose(shared);
                assert!(queue.is_empty());
                assert_eq!(queue.len(), 0);
                assert_eq!(queue.try_recv(), Err(TryRecvError::Closed));
            },
        );
    }
}

/// The queue whose capacity is chosen at run time, in all worlds: its length comes from the header.
#[test]
fn conservation_at_run_time() {
    const EACH: u64 = 3_000;
    for capacity in [1, 3, 64] {
        worlds(
            "conservation_at_run_time",
            &capacity.to_string(),
            3,
            || numbers(capacity),
            |queue, role| {
                assert_eq!(queue.capacity(), capacity);
                if role < 2 {
                    (1..=EACH).for_each(|n| queue.send(n).unwrap());
                    queue.send(0).unwrap();
                    return;
                }
                let (mut ends, mut sum) = (0, 0);
                while ends < 2 {
                    let n = queue.recv().unwrap();
                    sum += n;
                    ends += u32::from(n == 0);
                }
                assert_eq!(sum, 2 * (1..=EACH).sum::<u64>());
            },
            |queue| assert_eq!(queue.try_recv(), Err(TryRecvError::Empty)),
        );
    }
}

// ------------------------------------------------------------------------------ one thread alone

/// A random sequence of operations, against the standard library's deque.
#[test]
fn like_a_deque() {
    for capacity in [1, 2, 3, 5, 8, 100] {
        let queue = numbers(capacity);
        let _watchdog = watch("like_a_deque", &queue);
        let mut model = VecDeque::new();
        let mut random = Random::new(capacity as u64);
        // Some hundreds of laps at least.
        for i in 0..20_000_u64 {
            match random.below(9) {
                0..4 => {
                    let room = model.len() < capacity;
                    let sent = queue.try_send(i);
                    assert_eq!(sent, if room { Ok(()) } else { Err(TrySendError::Full(i)) });
                    if room {
                        model.push_back(i);
                    }
                }
                4..6 => {
                    assert_eq!(queue.try_recv(), model.pop_front().ok_or(TryRecvError::Empty));
                }
                6 => match queue.try_recv_ack() {
                    Ok(delivery) => {
                        assert_eq!(delivery.attempts(), 0);
                        assert_eq!(delivery.ack(), Ok(model.pop_front().unwrap()));
                    }
                    Err(error) => assert_eq!((error, model.len()), (TryRecvError::Empty, 0)),
                },
                7 => match queue.try_recv_ref() {
                    Ok(message) => assert_eq!(Some(*message), model.pop_front()),
                    Err(error) => assert_eq!((error, model.len()), (TryRecvError::Empty, 0)),
                },
                _ => match queue.try_loan() {
                    Ok(mut loan) => {
                        *loan = i;
                        loan.send().unwrap();
                        model.push_back(i);
                    }
                    Err(error) => assert_eq!((error.is_full(), model.len()), (true, capacity)),
                },
            }
            assert_eq!(queue.len(), model.len(), "capacity {capacity}, step {i}");
            assert_eq!(queue.is_empty(), model.is_empty());
            assert_eq!(queue.is_full(), model.len() == capacity);
        }
        assert_eq!(queue.drain(), Vec::from(model));
    }
}

/// What a ring of places does, simply: the judge of the next test.
#[derive(Debug, Default)]
struct Model {
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Loaned,
    Sent(u64),
    Lent,
    Done,
}

impl Model {
    /// Whether the next place can be claimed: the one a lap before is done with.
    fn has_room(&self, capacity: usize) -> bool {
        let next = self.places.len();
        next < capacity || self.places[next - capacity] == Place::Done
    }
    /// The place of the next message: the first that is sent, unless a loan lies before it.
    fn next(&self) -> Option<usize> {
        let at = self.places.iter().position(|p| matches!(p, Place::Loaned | Place::Sent(_)))?;
        matches!(self.places[at], Place::Sent(_)).then_some(at)
    }
}

/// Loans that are sent late or come to nothing, and references that are kept, in random order.
#[test]
fn loans_and_references_like_a_model() {
    for (capacity, seed) in (0..60).map(|i| ([1, 2, 3, 4, 7][i % 5], i as u64)) {
        let queue = numbers(capacity);
        let _watchdog = watch("loans_and_references_like_a_model", &queue);
        let mut model = Model::default();
        let (mut loans, mut references) = (Vec::new(), Vec::new());
        let mut random = Random::new(seed);
        for i in 0..500_u64 {
            match random.below(10) {
                0..3 => {
                    let room = model.has_room(capacity);
                    assert_eq!(queue.try_send(i).is_ok(), room, "{capacity} {model:?}");
                    if room {
                        model.places.push(Place::Sent(i));
                    }
                }
                3..5 => {
                    let room = model.has_room(capacity);
                    let loan = queue.try_loan();
                    assert_eq!(loan.is_ok(), room, "{capacity} {model:?}");
                    if let Ok(loan) = loan {
                        loans.push((model.places.len(), loan));
                        model.places.push(Place::Loaned);
                    }
                }
                5 | 6 if !loans.is_empty() => {
                    let (at, mut loan) = loans.swap_remove(random.index(loans.len()));
                    if random.below(2) == 0 {
                        *loan = i;
                        loan.send().unwrap();
                        model.places[at] = Place::Sent(i);
                    } else {
                        drop(loan);
                        model.places[at] = Place::Done;
                    }
                }
                7 if !references.is_empty() => {
                    let (at, reference) = references.swap_remove(random.index(references.len()));
                    drop(reference);
                    model.places[at] = Place::Done;
                }
                8 => {
                    let next = model.next().map(|at| (at, model.places[at]));
                    match (next, queue.try_recv_ref()) {
                        (Some((at, Place::Sent(message))), Ok(reference)) => {
                            assert_eq!(*reference, message);
                            model.places[at] = Place::Lent;
                            references.push((at, reference));
                        }
                        (None, Err(TryRecvError::Empty)) => {}
                        (next, got) => panic!("{next:?}, got {got:?}: {capacity} {model:?}"),
                    }
                }
                _ => {
                    let next = model.next().map(|at| (at, model.places[at]));
                    match (next, queue.try_recv()) {
                        (Some((at, Place::Sent(message))), Ok(got)) => {
                            assert_eq!(got, message);
                            model.places[at] = Place::Done;
                        }
                        (None, Err(TryRecvError::Empty)) => {}
                        (next, got) => panic!("{next:?}, got {got:?}: {capacity} {model:?}"),
                    }
                }
            }
            assert_eq!(queue.is_full(), !model.has_room(capacity));
        }
        drop((loans, references));
        assert!(queue.drain().len() <= capacity);
        assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
        (0..capacity as u64).for_each(|n| queue.try_send(n).unwrap());
        assert_eq!(queue.drain().len(), capacity);
    }
}

/// The shortest way to the case of the test above that once went wrong.
#[test]
fn readers_step_over_aborted_loans_one_by_one() {
    let queue = numbers(2);
    let _watchdog = watch("readers_step_over_aborted_loans", &queue);
    queue.send(0).unwrap();
    drop(queue.loan().unwrap());
    assert_eq!(queue.recv(), Ok(0));
    drop(queue.loan().unwrap());
    queue.send(4).unwrap();
    drop(queue.loan().unwrap());
    assert!(!queue.is_empty());
    assert_eq!(queue.try_recv(), Ok(4));
}

/// `len` counts messages, not places that hold none.
#[test]
fn len_does_not_count_aborted_loans() {
    let queue = numbers(8);
    let _watchdog = watch("len_does_not_count_aborted_loans", &queue);
    queue.send(1).unwrap();
    let loan = queue.loan().unwrap();
    queue.send(2).unwrap();
    assert_eq!(queue.len(), 2, "a loan is no message yet");
    drop(loan);
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.drain(), [1, 2]);
    assert_eq!(queue.len(), 0);
}

#[test]
fn loans() {
    let queue = numbers(2);
    let _watchdog = watch("loans", &queue);
    let mut first = queue.loan().unwrap();
    *first = 1;
    let mut second = queue.try_loan().unwrap();
    *second = 2;
    assert!(matches!(queue.try_loan(), Err(TrySendError::Full(()))));
    assert_eq!(queue.try_send(3), Err(TrySendError::Full(3)));
    // What was sent after it waits for the loan before.
    second.send().unwrap();
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(queue.join_timeout(Duration::ZERO), Ok(false));
    first.send().unwrap();
    assert_eq!(queue.drain(), [1, 2]);

    // One that is dropped is not waited for.
    let first = queue.loan().unwrap();
    queue.send(4).unwrap();
    std::thread::scope(|scope| {
        let receiver = in_waiting_thread(scope, || queue.recv());
        drop(first);
        assert_eq!(receiver.join().unwrap(), Ok(4));
        // A full ring, and one who waits to lend.
        queue.send_batch(&[5, 6]).unwrap();
        let lender = in_waiting_thread(scope, || {
            let mut loan = queue.loan().unwrap();
            *loan = 7;
            loan.send()
        });
        assert_eq!(queue.recv(), Ok(5));
        lender.join().unwrap().unwrap();
        // And one who waits, and sees the older of two loans go back.
        assert_eq!(queue.recv(), Ok(6));
        assert_eq!(queue.recv(), Ok(7));
        let [older, newer] = [queue.loan().unwrap(), queue.loan().unwrap()];
        let sender = in_waiting_thread(scope, || queue.send(8));
        drop(older);
        sender.join().unwrap().unwrap();
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
        drop(newer);
    });
    assert_eq!(queue.drain(), [8]);
}

#[test]
fn references() {
    let queue = numbers(2);
    let _watchdog = watch("references", &queue);
    queue.send_batch(&[1, 2]).unwrap();
    let first = queue.recv_ref().unwrap();
    let second = queue.try_recv_ref().unwrap();
    assert_eq!((*first, *second), (1, 2));
    assert!(matches!(queue.try_recv_ref(), Err(TryRecvError::Empty)));
    // They hold up the ring, and a join.
    assert_eq!(queue.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(queue.join_timeout(ms(1)), Ok(false));
    drop(second);
    assert_eq!(queue.try_send(3), Err(TrySendError::Full(3)), "the first one is in the way");
    std::thread::scope(|scope| {
        let sender = in_waiting_thread(scope, || queue.send(3));
        drop(first);
        sender.join().unwrap().unwrap();
    });
    assert_eq!(queue.recv(), Ok(3));
    // A message that came back can be read in its place as well.
    queue.send(4).unwrap();
    queue.recv_ack().unwrap().nack();
    let message = queue.recv_ref().unwrap();
    assert_eq!(*message, 4);
    assert_eq!(queue.join_timeout(ms(1)), Ok(false));
    drop(message);
    assert_eq!(queue.join_timeout(ms(1)), Ok(true));
}

#[test]
fn batches_and_iterators() {
    let queue = numbers(10);
    let _watchdog = watch("batches_and_iterators", &queue);
    queue.send_batch(&[]).unwrap();
    assert!(queue.is_empty());
    queue.send_batch(&[1, 2, 3, 4, 5]).unwrap();
    let mut to = vec![0];
    assert_eq!(queue.recv_batch(&mut to, 0), Ok(0));
    assert_eq!(queue.recv_batch(&mut to, 2), Ok(2));
    assert_eq!(queue.recv_batch(&mut to, 100), Ok(3));
    assert_eq!(to, [0, 1, 2, 3, 4, 5]);
    std::thread::scope(|scope| {
        let receiver = in_waiting_thread(scope, || {
            let mut to = Vec::new();
            queue.recv_batch(&mut to, 9).map(|n| (n, to))
        });
        queue.send(6).unwrap();
        assert_eq!(receiver.join().unwrap(), Ok((1, vec![6])));

        let all = scope.spawn(|| queue.iter().collect::<Vec<_>>());
        (0..100).for_each(|n| queue.send(n).unwrap());
        queue.close();
        assert_eq!(all.join().unwrap(), (0..100).collect::<Vec<_>>());
    });
    assert_eq!(queue.iter().count(), 0);

    let queue = numbers(4);
    queue.send_batch(&[1, 2, 3]).unwrap();
    assert_eq!(queue.try_iter().take(2).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(queue.drain(), [3]);
    assert_eq!(queue.drain(), []);
    // A batch that is cut short says how much of it went.
    std::thread::scope(|scope| {
        let sender = in_waiting_thread(scope, || queue.send_batch(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(queue.recv(), Ok(1));
        eventually("the fifth is sent", || queue.is_full());
        queue.close();
        assert_eq!(sender.join().unwrap(), Err(SendError::Closed(5)));
    });
    assert_eq!(queue.drain(), [2, 3, 4, 5]);
    assert_eq!(queue.send_batch(&[7]), Err(SendError::Closed(0)));
    let mut to = Vec::new();
    assert_eq!(queue.recv_batch(&mut to, 3), Err(RecvError::Closed));
}

#[test]
fn capacities() {
    let _watchdog = watch_alone("capacities");
    for capacity in [0, 1 << 24, usize::MAX / 8, usize::MAX] {
        match Shared::<Queue<u64>>::with_capacity(capacity) {
            Err(OpenError::InvalidCapacity(told)) => assert_eq!(told, capacity),
            other => panic!("{capacity}: {other:?}"),
        }
        let name = format!("capacities-{}", std::process::id());
        let named = Shared::<Queue<[u8; 4096]>>::create_with_capacity(&name, capacity);
        assert!(matches!(named, Err(OpenError::InvalidCapacity(_))), "{capacity}");
        assert!(matches!(Shared::<Queue<[u8; 4096]>>::open(&name), Err(OpenError::NotFound)));
    }
    let queue = numbers(100_000);
    assert_eq!(queue.capacity(), 100_000);
    for lap in 0..3 {
        (0..100_000).for_each(|n| queue.try_send(n + lap).unwrap());
        assert!(queue.is_full());
        assert_eq!(queue.len(), 100_000);
        (0..100_000).for_each(|n| assert_eq!(queue.try_recv(), Ok(n + lap)));
    }
}

#[test]
fn outside_of_shared_memory() {
    let queue = Box::new(FixedQueue::<u64, 4>::new());
    assert_eq!(queue.send(1), Err(SendError::Failed(1, Fault::NotShared)));
    assert_eq!(queue.try_send(1), Err(TrySendError::Failed(1, Fault::NotShared)));
    assert_eq!(queue.recv(), Err(RecvError::Failed(Fault::NotShared)));
    assert_eq!(queue.recv_ack().err(), Some(RecvError::Failed(Fault::NotShared)));
    assert_eq!(queue.loan().err(), Some(SendError::Failed((), Fault::NotShared)));
    assert_eq!(queue.join(), Err(Fault::NotShared));
    assert_eq!((queue.capacity(), queue.len(), queue.is_empty()), (4, 0, true));
}

/// Messages of 64 KiB. (Few of them at a time on the stack of a test's thread, in a debug build.)
#[test]
fn large_messages() {
    common::in_own_process("large_messages", || {
        type Page = [u64; 8_192];
        fn is_page(page: &Page, n: u64) -> bool {
            page.iter().zip(1..).all(|(&word, i)| word == n * i)
        }
        fn send(queue: &Queue<Page>, n: u64) {
            queue.send(core::array::from_fn(|i| n * (i as u64 + 1))).unwrap();
        }
        fn lend(queue: &Queue<Page>, n: u64) {
            let mut loan = queue.loan().unwrap();
            loan.iter_mut().zip(1..).for_each(|(word, i)| *word = n * i);
            loan.send().unwrap();
        }
        fn recv(queue: &Queue<Page>, n: u64) {
            assert!(is_page(&queue.recv().unwrap(), n), "page {n}");
        }
        fn recv_ack(queue: &Queue<Page>, n: u64) {
            let delivery = queue.recv_ack().unwrap();
            assert!(is_page(&delivery, n), "page {n}");
            assert!(delivery.ack().is_ok());
        }
        worlds(
            "large_messages",
            "",
            2,
            || queue::<Page>(3),
            |queue, role| {
                let play = || {
                    for n in 0..60 {
                        match (role, n % 3) {
                            (0, 0) => lend(queue, n),
                            (0, _) => send(queue, n),
                            (_, 0) => recv_ack(queue, n),
                            (_, 1) => assert!(is_page(&queue.recv_ref().unwrap(), n), "page {n}"),
                            _ => recv(queue, n),
                        }
                    }
                };
                // A debug build copies them from frame to frame.
                std::thread::scope(|scope| {
                    let roomy = std::thread::Builder::new().stack_size(16 << 20);
                    roomy.spawn_scoped(scope, play).unwrap().join().unwrap();
                });
            },
            |queue| assert!(queue.is_empty()),
        );
        // Not so many times that an ordinary thread's stack, of 2 MiB, could not hold it.
        let queue = queue::<Page>(2);
        let _watchdog = watch("large_messages", &queue);
        fork_child(|| {
            std::thread::scope(|scope| {
                let body = || {
                    send(&queue, 1);
                    recv(&queue, 1);
                    send(&queue, 2);
                    recv_ack(&queue, 2);
                };
                let ordinary = std::thread::Builder::new().stack_size(2 << 20);
                ordinary.spawn_scoped(scope, body).unwrap().join().unwrap();
            });
        })
        .succeeds();
    });
}

#[test]
fn small_messages() {
    let nothing = queue::<()>(2);
    let _watchdog = watch("small_messages", &nothing);
    for _ in 0..5 {
        nothing.send_batch(&[(), ()]).unwrap();
        assert_eq!(nothing.try_send(()), Err(TrySendError::Full(())));
        assert_eq!(nothing.drain(), [(), ()]);
    }
    let byte = queue::<u8>(3);
    byte.send_batch(&[1, 2, 3]).unwrap();
    assert_eq!(byte.drain(), [1, 2, 3]);
}

// ------------------------------------------------------------------------------- time and sleep

#[test]
fn errors_give_the_value_back_and_are_not_early() {
    worlds(
        "errors_give_the_value_back_and_are_not_early",
        "",
        1,
        || numbers(2),
        |queue, _| {
            for wait in [0, 1, 40].map(ms) {
                let began = Instant::now();
                assert_eq!(queue.recv_timeout(wait), Err(RecvTimeoutError::TimedOut));
                assert!(began.elapsed() >= wait);
                let at = Instant::now() + wait;
                assert_eq!(queue.recv_deadline(at), Err(RecvTimeoutError::TimedOut));
                assert!(Instant::now() >= at);
                let began = Instant::now();
                assert_eq!(queue.recv_ack_timeout(wait).err(), Some(RecvTimeoutError::TimedOut));
                assert!(began.elapsed() >= wait);
                let at = Instant::now() + wait;
                assert_eq!(queue.recv_ack_deadline(at).err(), Some(RecvTimeoutError::TimedOut));
                assert!(Instant::now() >= at);
            }
            assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
            queue.send_batch(&[1, 2]).unwrap();
            for wait in [0, 1, 40].map(ms) {
                let began = Instant::now();
                assert_eq!(queue.send_timeout(3, wait), Err(SendTimeoutError::TimedOut(3)));
                assert!(began.elapsed() >= wait);
                let at = Instant::now() + wait;
                assert_eq!(queue.send_deadline(4, at), Err(SendTimeoutError::TimedOut(4)));
                assert!(Instant::now() >= at);
                let began = Instant::now();
                assert_eq!(queue.join_timeout(wait), Ok(false));
                assert!(began.elapsed() >= wait);
            }
            assert_eq!(queue.try_send(5).unwrap_err().into_inner(), 5);
            // What can be had is had, even too late.
            let past = Instant::now().checked_sub(ms(5)).unwrap();
            assert_eq!(queue.recv_deadline(past), Ok(1));
            assert_eq!(queue.send_deadline(6, past), Ok(()));
            assert_eq!(queue.recv_timeout(Duration::ZERO), Ok(2));
            assert_eq!(queue.recv_ack_deadline(past).unwrap().ack(), Ok(6));
            assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
            assert_eq!(queue.send_timeout(7, Duration::MAX), Ok(()));
            assert_eq!(queue.recv_timeout(Duration::MAX), Ok(7));
        },
        |queue| assert!(queue.is_empty()),
    );
}

#[test]
fn blocking_both_ways() {
    for capacity in [1, 3] {
        let queue = numbers(capacity);
        let _watchdog = watch("blocking_both_ways", &queue);
        for i in 0..30 {
            std::thread::scope(|scope| {
                let receiver = in_waiting_thread(scope, || match i % 3 {
                    0 => queue.recv().unwrap(),
                    1 => queue.recv_ack().unwrap().ack().unwrap(),
                    _ => *queue.recv_ref().unwrap(),
                });
                queue.send(i).unwrap();
                assert_eq!(receiver.join().unwrap(), i);
                (0..capacity as u64).for_each(|n| queue.send(n).unwrap());
                let sender = in_waiting_thread(scope, || queue.send(9));
                assert_eq!(queue.recv(), Ok(0));
                sender.join().unwrap().unwrap();
                assert_eq!(queue.drain().last(), Some(&9));
            });
        }
    }
}

/// The same between processes, which are asleep when the message is sent.
#[test]
fn a_sleeping_process_is_woken() {
    let queue = numbers(1);
    let _watchdog = watch("a_sleeping_process_is_woken", &queue);
    for i in 0..20 {
        let receiver = fork_child(|| assert_eq!(queue.recv(), Ok(i)));
        receiver.until_waiting();
        queue.send(i).unwrap();
        receiver.succeeds();
        queue.send(0).unwrap();
        let sender = fork_child(|| queue.send(i).unwrap());
        sender.until_waiting();
        assert_eq!(queue.recv(), Ok(0));
        sender.succeeds();
        assert_eq!(queue.recv(), Ok(i));
    }
}

#[test]
fn waiters_sleep() {
    let queue = numbers(1);
    let _watchdog = watch("waiters_sleep", &queue);
    let child = fork_child(|| {
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty)); // becomes a peer
        let before = common::thread_cpu();
        assert_eq!(queue.recv_timeout(ms(200)), Err(RecvTimeoutError::TimedOut));
        assert!(queue.recv_ack_timeout(ms(200)).is_err());
        queue.send(1).unwrap();
        assert!(queue.send_timeout(2, ms(200)).is_err());
        assert_eq!(queue.join_timeout(ms(200)), Ok(false));
        let used = common::thread_cpu() - before;
        assert!(used < ms(20), "waiting used {used:?} of CPU");
    });
    let (exit, used) = child.wait_with_cpu();
    assert_eq!(exit, OK);
    assert!(used < ms(150), "the child used {used:?}");
}

// ------------------------------------------------------------------------------------- closing

#[test]
fn closing() {
    let queue = numbers(3);
    let _watchdog = watch("closing", &queue);
    queue.send_batch(&[1, 2]).unwrap();
    let loan = queue.loan().unwrap();
    assert!(!queue.is_closed());
    queue.close();
    queue.close();
    assert!(queue.is_closed());
    assert_eq!(queue.send(3), Err(SendError::Closed(3)));
    assert_eq!(queue.try_send(4), Err(TrySendError::Closed(4)));
    assert_eq!(queue.send_timeout(5, ms(1)), Err(SendTimeoutError::Closed(5)));
    assert_eq!(queue.loan().err(), Some(SendError::Closed(())));
    assert_eq!(queue.try_loan().err(), Some(TrySendError::Closed(())));
    // A loan made before is too late now.
    assert_eq!(loan.send(), Err(SendError::Closed(())));
    // What is there can be received.
    assert_eq!(queue.recv(), Ok(1));
    assert_eq!(queue.recv_ack().unwrap().ack(), Ok(2));
    assert_eq!(queue.recv(), Err(RecvError::Closed));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(queue.recv_timeout(ms(1)), Err(RecvTimeoutError::Closed));
    assert_eq!(queue.recv_ack().err(), Some(RecvError::Closed));
    assert_eq!(queue.try_recv_ack().err(), Some(TryRecvError::Closed));
    assert_eq!(queue.recv_ref().err().map(|_| ()), Some(()));
    assert_eq!(queue.join(), Ok(()));
}

#[test]
fn closing_wakes_everybody() {
    for full in [false, true] {
        let queue = numbers(1);
        let _watchdog = watch("closing_wakes_everybody", &queue);
        if full {
            queue.send(1).unwrap();
        }
        let wait = || {
            if full {
                assert_eq!(queue.send(2), Err(SendError::Closed(2)));
            } else {
                assert_eq!(queue.recv(), Err(RecvError::Closed));
            }
        };
        let wait_otherwise = || {
            if full {
                assert_eq!(queue.loan().err(), Some(SendError::Closed(())));
            } else {
                assert_eq!(queue.recv_ack().err(), Some(RecvError::Closed));
            }
        };
        let children = [fork_child(wait), fork_child(wait_otherwise), fork_child(wait)];
        children.iter().for_each(Child::until_waiting);
        queue.close();
        children.into_iter().for_each(Child::succeeds);
        assert_eq!(queue.drain().len(), usize::from(full));
    }
}

/// A message that `send` has sent is received before `Closed`. One that `send` gave back is never
/// received.
#[test]
fn closing_loses_nothing() {
    outlast::shared! {
        #[derive(Debug)]
        struct Door { queue: FixedQueue<u64, 4>, sent: AtomicU32, received: AtomicU32, ready: AtomicU32 }
    }
    for round in 0..40_u64 {
        let door = outlast::Options::new().anonymous_with(|_: &Door| {}).unwrap();
        let _watchdog = watch("closing_loses_nothing", &door);
        let children: Vec<_> = (0..3)
            .map(|role| {
                let door = &door;
                fork_child(move || {
                    door.ready.fetch_add(1, SeqCst);
                    match role {
                        0 | 1 => {
                            while door.queue.send(role).is_ok() {
                                door.sent.fetch_add(1, SeqCst);
                            }
                        }
                        _ => {
                            while door.queue.recv().is_ok() {
                                door.received.fetch_add(1, SeqCst);
                            }
                        }
                    }
                })
            })
            .collect();
        eventually("all are there", || door.ready.load(SeqCst) == 3);
        std::thread::sleep(Random::new(round).micros(2_000));
        door.queue.close();
        children.into_iter().for_each(Child::succeeds);
        assert_eq!(door.sent.load(SeqCst), door.received.load(SeqCst), "round {round}");
        assert_eq!(door.queue.try_recv(), Err(TryRecvError::Closed));
    }
}

// ----------------------------------------------------------------------------- acknowledgement

#[test]
fn acknowledging() {
    let queue = numbers(4);
    let _watchdog = watch("acknowledging", &queue);
    queue.send_batch(&[1, 2, 3]).unwrap();
    let (first, second) = (queue.recv_ack().unwrap(), queue.recv_ack().unwrap());
    assert_eq!((*first, first.attempts(), *second), (1, 0, 2));
    assert_eq!(queue.len(), 1, "a delivery has left the ring");
    queue.send_batch(&[4, 5, 6]).unwrap(); // and made room in it
    assert_eq!(first.ack(), Ok(1));
    second.nack();
    // What came back comes before the others, with one attempt more each time.
    for attempts in 1..=5 {
        let delivery = queue.recv_ack().unwrap();
        assert_eq!((*delivery, delivery.attempts()), (2, attempts));
        assert_eq!(
            format!("{delivery:?}"),
            format!("Delivery {{ value: 2, attempts: {attempts} }}")
        );
        drop(delivery);
    }
    assert!(!queue.is_empty());
    assert_eq!(queue.try_recv(), Ok(2), "a plain receiver gets it as well");
    assert_eq!(queue.drain(), [3, 4, 5, 6]);
    assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
}

#[test]
fn attempts_stop_counting_at_255() {
    let queue = numbers(1);
    let _watchdog = watch("attempts_stop_counting", &queue);
    queue.send(1).unwrap();
    for attempts in 0..300 {
        let delivery = queue.recv_ack().unwrap();
        assert_eq!(delivery.attempts(), attempts.min(255));
    }
    assert_eq!(queue.recv_ack().unwrap().ack(), Ok(1));
    queue.send(2).unwrap();
    assert_eq!(queue.recv_ack().unwrap().attempts(), 0, "the next message starts afresh");
}

/// A delivery belongs to the process: another thread may acknowledge it, and the end of the first
/// changes nothing.
#[test]
fn deliveries_move_between_threads() {
    let queue = numbers(4);
    let _watchdog = watch("deliveries_move_between_threads", &queue);
    queue.send_batch(&[1, 2]).unwrap();
    let (first, second) = std::thread::scope(|scope| {
        let taker = scope.spawn(|| (queue.recv_ack().unwrap(), queue.recv_ref().unwrap()));
        taker.join().unwrap()
    });
    std::thread::sleep(ms(5));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty), "the thread's end gave it back");
    assert_eq!((first.ack(), *second), (Ok(1), 2));
    drop(second);
    let loan = std::thread::scope(|scope| scope.spawn(|| queue.loan().unwrap()).join().unwrap());
    loan.send().unwrap();
    assert!(queue.recv().is_ok());
    assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
}

#[test]
fn in_flight_has_a_limit() {
    let queue = numbers(IN_FLIGHT + 8);
    let _watchdog = watch("in_flight_has_a_limit", &queue);
    let all = IN_FLIGHT as u64 + 3;
    (0..all).for_each(|n| queue.send(n).unwrap());
    let mut held: VecDeque<_> = (0..IN_FLIGHT).map(|_| queue.recv_ack().unwrap()).collect();
    let full = (TryRecvError::TooManyInFlight, RecvTimeoutError::TooManyInFlight);
    assert_eq!(queue.try_recv_ack().err(), Some(full.0));
    assert_eq!(queue.recv_ack_timeout(ms(20)).err(), Some(full.1));
    assert_eq!(queue.recv(), Ok(IN_FLIGHT as u64), "a plain receiver needs no entry");
    std::thread::scope(|scope| {
        // Two wait; each acknowledgement lets one through.
        let waiters: Vec<_> =
            (0..2).map(|_| in_waiting_thread(scope, || queue.recv_ack().unwrap().ack())).collect();
        assert_eq!(held.pop_front().unwrap().ack(), Ok(0));
        for waiter in waiters {
            assert!(waiter.join().unwrap().unwrap() > IN_FLIGHT as u64);
        }
    });
    // The same with a process that sleeps.
    queue.send(77).unwrap();
    held.push_back(queue.recv_ack().unwrap());
    queue.send(78).unwrap();
    let waiter = fork_child(|| assert_eq!(queue.recv_ack().unwrap().ack(), Ok(78)));
    waiter.until_waiting();
    assert_eq!(held.pop_front().unwrap().ack(), Ok(1));
    waiter.succeeds();
    assert_eq!(queue.join_timeout(Duration::ZERO), Ok(false));
    held.into_iter().for_each(|delivery| assert!(delivery.ack().is_ok()));
    assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
}

/// All messages that can be in flight come back at the same time. A receiver that gets one again
/// needs no further entry for it.
#[test]
fn all_in_flight_come_back() {
    let queue = numbers(IN_FLIGHT + 8);
    let _watchdog = watch("all_in_flight_come_back", &queue);
    (0..IN_FLIGHT as u64).for_each(|n| queue.send(n).unwrap());
    let held: Vec<_> = (0..IN_FLIGHT).map(|_| queue.recv_ack().unwrap()).collect();
    held.into_iter().for_each(outlast::Delivery::nack);
    for _ in 0..IN_FLIGHT {
        let delivery = queue.recv_ack_timeout(ms(2_000)).expect("none was delivered again");
        assert_eq!(delivery.attempts(), 1);
        delivery.ack().unwrap();
    }
    // The same by a kill, with a survivor who waits for it already.
    outlast::Spin::Never.set();
    let taker = fork_child(|| {
        for _ in 0..IN_FLIGHT {
            core::mem::forget(queue.recv_ack().unwrap());
        }
        sleep_for_ever();
    });
    (0..IN_FLIGHT as u64).for_each(|n| queue.send(n).unwrap());
    eventually("all are taken", || queue.is_empty());
    let survivor = fork_child(|| {
        for _ in 0..IN_FLIGHT {
            let delivery = queue.recv_ack_timeout(ms(5_000)).expect("none was delivered again");
            assert_eq!(delivery.attempts(), 1);
            delivery.ack().unwrap();
        }
    });
    survivor.until_waiting();
    taker.kill9();
    survivor.succeeds();
}

#[test]
fn joining() {
    let queue = numbers(4);
    let _watchdog = watch("joining", &queue);
    assert_eq!(queue.join(), Ok(()));
    std::thread::scope(|scope| {
        queue.send_batch(&[1, 2, 3, 4]).unwrap();
        let joiner = in_waiting_thread(scope, || queue.join());
        assert_eq!(queue.recv(), Ok(1));
        let second = queue.recv_ack().unwrap();
        let third = queue.recv_ack().unwrap();
        assert_eq!(*queue.recv_ref().unwrap(), 4);
        third.nack();
        assert_eq!(second.ack(), Ok(2));
        std::thread::sleep(ms(20));
        assert!(!joiner.is_finished(), "one came back and is not done");
        assert_eq!(queue.recv_ack().unwrap().ack(), Ok(3));
        assert_eq!(joiner.join().unwrap(), Ok(()));
    });
    // Processes that wait, and a worker that dies over the last message.
    queue.send(5).unwrap();
    let worker = fork_child(|| {
        core::mem::forget(queue.recv_ack());
        sleep_for_ever();
    });
    eventually("it is taken", || queue.is_empty());
    let joiners = [0, 1].map(|_| fork_child(|| queue.join().unwrap()));
    joiners.iter().for_each(Child::until_waiting);
    worker.kill9();
    let delivery = queue.recv_ack().unwrap();
    assert_eq!((*delivery, delivery.attempts()), (5, 1));
    assert_eq!(queue.join_timeout(ms(10)), Ok(false));
    delivery.ack().unwrap();
    joiners.into_iter().for_each(Child::succeeds);
}

// -------------------------------------------------------------------------------------- deaths

outlast::shared! {
    #[derive(Debug)]
    struct Plot { queue: FixedQueue<u64, 4>, step: AtomicU32 }
}

fn plot() -> Shared<Plot> {
    Shared::anonymous(Plot { queue: FixedQueue::new(), step: AtomicU32::new(0) }).unwrap()
}

/// A process that does `body` (which may use the queue) and then does nothing more.
fn victim(shared: &Shared<Plot>, body: impl FnOnce(&Queue<u64>)) -> Child {
    let before = shared.step.load(SeqCst);
    let victim = fork_child(|| {
        body(&shared.queue);
        shared.step.fetch_add(1, SeqCst);
        sleep_for_ever();
    });
    eventually("the victim is ready", || shared.step.load(SeqCst) == before + 1);
    victim
}

/// How the attempts change when a process that holds a delivery ends, in several ways. No process
/// opens the segment afterwards: the peers that are there notice.
#[test]
fn attempts_after_an_end() {
    let kinds = [
        ("kill", 1),
        ("_exit", 1),
        ("exit", 0),
        ("last drop", 0),
        ("drop", 1),
        ("panic", 1),
        ("abort", 1),
    ];
    for (kind, expected) in kinds {
        for own_mapping in [true, false] {
            let shared = plot();
            let _watchdog = watch(&format!("attempts_after_an_end: {kind}"), &shared);
            if kind == "last drop" && !own_mapping {
                continue; // the child of a fork cannot drop what its parent has on the stack
            }
            shared.queue.send(1).unwrap();
            let taker = fork_child(|| {
                let own =
                    own_mapping.then(|| Shared::from_fd(shared.try_clone_fd().unwrap()).unwrap());
                let plot: &Plot = own.as_ref().unwrap_or(&shared);
                let delivery = plot.queue.recv_ack().unwrap();
                assert_eq!((*delivery, delivery.attempts()), (1, 0));
                shared.step.reach(1);
                match kind {
                    "drop" => drop(delivery),
                    "panic" => {
                        let unwound =
                            std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                                let _delivery = delivery;
                                std::panic::resume_unwind(Box::new(()));
                            }));
                        assert!(unwound.is_err());
                    }
                    _ => core::mem::forget(delivery),
                }
                match kind {
                    "exit" => return, // by `exit`, as every forked child here
                    "_exit" => common::exit_now(0),
                    "abort" => std::process::abort(),
                    "last drop" => drop(own),
                    _ => core::mem::forget(own),
                }
                sleep_for_ever();
            });
            let ends_by_itself = matches!(kind, "exit" | "_exit" | "abort");
            shared.step.until(1);
            if kind == "kill" {
                taker.signal(libc::SIGKILL);
            }
            let delivery = shared.queue.recv_ack_timeout(common::PATIENCE).unwrap();
            assert_eq!((*delivery, delivery.attempts()), (1, expected), "{kind}");
            assert_eq!(delivery.ack(), Ok(1));
            match taker {
                taker if kind == "kill" => assert_eq!(taker.wait(), common::KILLED),
                taker if kind == "abort" => {
                    assert_eq!(taker.wait(), common::Exit::Signal(libc::SIGABRT));
                }
                taker if ends_by_itself => taker.succeeds(),
                taker => taker.kill9(),
            }
            assert_eq!(shared.queue.join_timeout(common::PATIENCE), Ok(true));
        }
    }
}

#[test]
fn attempts_add_up() {
    let shared = plot();
    let _watchdog = watch("attempts_add_up", &shared);
    shared.queue.send(1).unwrap();
    let mut expected = 0;
    for kill in [true, false, true, true, false] {
        let taker = |queue: &Queue<u64>| {
            let delivery = queue.recv_ack_timeout(common::PATIENCE).unwrap();
            assert_eq!((*delivery, delivery.attempts()), (1, expected));
            core::mem::forget(delivery);
        };
        if kill {
            victim(&shared, taker).kill9();
            expected += 1;
        } else {
            fork_child(|| taker(&shared.queue)).succeeds();
        }
    }
    let delivery = shared.queue.recv_ack_timeout(common::PATIENCE).unwrap();
    assert_eq!(delivery.attempts(), 3);
    delivery.ack().unwrap();
}

/// All four slots can be used, in order, and nothing is left of anybody.
#[track_caller]
fn is_whole(queue: &Queue<u64>) {
    assert_eq!(queue.join_timeout(common::PATIENCE), Ok(true), "something is left behind");
    assert_eq!(queue.len(), 0);
    for lap in 0..3 {
        (0..4).for_each(|n| queue.try_send(10 * lap + n).unwrap());
        assert_eq!(queue.try_send(99), Err(TrySendError::Full(99)));
        assert_eq!(queue.len(), 4);
        (0..4).for_each(|n| assert_eq!(queue.try_recv(), Ok(10 * lap + n)));
    }
    let held: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            queue.try_send(5).unwrap();
            queue.try_recv_ack().unwrap()
        })
        .collect();
    held.into_iter().for_each(|delivery| assert!(delivery.ack().is_ok()));
}

#[test]
fn killed_with_loans() {
    for loans in 1..=4 {
        for sent in 0..=2 {
            let shared = plot();
            let _watchdog = watch("killed_with_loans", &shared);
            let victim = victim(&shared, |queue| {
                let mut all: Vec<_> = (0..loans).map(|_| queue.loan().unwrap()).collect();
                all.iter_mut().enumerate().for_each(|(i, loan)| **loan = i as u64);
                // Some of them are sent, the first ones last.
                for _ in 0..sent.min(loans) {
                    all.pop().unwrap().send().unwrap();
                }
                core::mem::forget(all);
            });
            let expected: Vec<u64> = (0..loans).collect::<Vec<_>>();
            let expected = &expected[usize::try_from(loans - loans.min(sent)).unwrap()..];
            // A receiver that is asleep behind the loan, and a sender that finds the ring full.
            let receiver = fork_child(|| {
                let received: Vec<_> =
                    (0..=expected.len()).map(|_| shared.queue.recv().unwrap()).collect();
                let mut whole = expected.to_vec();
                whole.push(77);
                assert_eq!(received, whole);
            });
            receiver.until_waiting();
            let sender = fork_child(|| shared.queue.send(77).unwrap());
            if loans == 4 {
                sender.until_waiting();
            }
            victim.kill9();
            sender.succeeds();
            receiver.succeeds();
            is_whole(&shared.queue);
        }
    }
}

#[test]
fn killed_with_references() {
    let shared = plot();
    let _watchdog = watch("killed_with_references", &shared);
    shared.queue.send_batch(&[1, 2, 3, 4]).unwrap();
    let victim = victim(&shared, |queue| {
        core::mem::forget(queue.recv_ref().unwrap());
        drop(queue.recv_ref().unwrap()); // this one is consumed
        core::mem::forget(queue.recv_ref().unwrap());
    });
    assert_eq!(shared.queue.recv(), Ok(4));
    let sender = fork_child(|| shared.queue.send_batch(&[5, 6, 7]).unwrap());
    sender.until_waiting();
    victim.kill9();
    // The first two come back, out of order perhaps, and only then there is room.
    let mut all: Vec<_> = (0..5)
        .map(|i| match i % 2 {
            0 => shared.queue.recv().unwrap(),
            _ => shared.queue.recv_ack().unwrap().ack().unwrap(),
        })
        .collect();
    sender.succeeds();
    all.sort_unstable();
    assert_eq!(all, [1, 3, 5, 6, 7]);
    is_whole(&shared.queue);
}

/// A message that came back is delivered in its entry, and its receiver is killed as well.
#[test]
fn killed_with_a_reference_to_what_came_back() {
    let shared = plot();
    let _watchdog = watch("killed_with_a_reference_to_what_came_back", &shared);
    shared.queue.send(1).unwrap();
    shared.queue.recv_ack().unwrap().nack();
    let victim = victim(&shared, |queue| core::mem::forget(queue.recv_ref().unwrap()));
    assert_eq!(shared.queue.try_recv(), Err(TryRecvError::Empty));
    victim.kill9();
    assert_eq!(shared.queue.recv_timeout(common::PATIENCE), Ok(1));
    is_whole(&shared.queue);
}

#[test]
fn killed_with_some_of_everything() {
    for clean in [false, true] {
        let shared = plot();
        let _watchdog = watch("killed_with_some_of_everything", &shared);
        let everything = |queue: &Queue<u64>| {
            queue.send_batch(&[1, 2, 3]).unwrap();
            core::mem::forget(queue.recv_ack().unwrap());
            core::mem::forget(queue.recv_ref().unwrap());
            assert_eq!(queue.recv(), Ok(3)); // gone with it
            core::mem::forget(queue.loan().unwrap());
            core::mem::forget(queue.loan().unwrap());
        };
        if clean {
            fork_child(|| everything(&shared.queue)).succeeds();
        } else {
            victim(&shared, everything).kill9();
        }
        let mut back = [0, 1].map(|_| shared.queue.recv_timeout(common::PATIENCE).unwrap());
        back.sort_unstable();
        assert_eq!(back, [1, 2]);
        is_whole(&shared.queue);
    }
}

#[test]
fn killed_while_asleep() {
    let shared = plot();
    let _watchdog = watch("killed_while_asleep", &shared);
    for round in 0..10 {
        // Three receivers sleep, one of them dies, three messages come.
        let receivers = [0, 1, 2].map(|_| {
            let receiver = fork_child(|| assert!(shared.queue.recv().unwrap() < 3));
            receiver.until_waiting();
            receiver
        });
        let [first, second, third] = receivers;
        let (dies, lives) =
            if round % 2 == 0 { (first, [second, third]) } else { (third, [first, second]) };
        dies.kill9();
        shared.queue.send_batch(&[0, 1]).unwrap();
        lives.into_iter().for_each(Child::succeeds);
        // The same with senders.
        shared.queue.send_batch(&[0, 0, 0, 0]).unwrap();
        let senders = [1, 2].map(|n| {
            let sender = fork_child(|| shared.queue.send(n).unwrap());
            sender.until_waiting();
            sender
        });
        let [dies, lives] = senders;
        dies.kill9();
        assert_eq!(shared.queue.recv(), Ok(0));
        lives.succeeds();
        assert_eq!(shared.queue.drain(), [0, 0, 0, 2]);
        // The same with threads that wait in `join`.
        shared.queue.send(1).unwrap();
        let joiners = [0, 1].map(|_| fork_child(|| shared.queue.join().unwrap()));
        joiners.iter().for_each(Child::until_waiting);
        let [dies, lives] = joiners;
        dies.kill9();
        assert_eq!(shared.queue.recv(), Ok(1));
        lives.succeeds();
    }
    is_whole(&shared.queue);
}

/// The receiver that is woken for a message is killed at about that time. The message goes to the
/// other sleeper, or is gone if the first one had received it already.
#[test]
fn killed_as_it_is_woken() {
    let shared = plot();
    let _watchdog = watch("killed_as_it_is_woken", &shared);
    let mut random = Random::new(7);
    for round in 0..100 {
        let [dies, lives] = [0, 1].map(|_| {
            let receiver = fork_child(|| {
                outlast::Spin::Never.set();
                let delivery = shared.queue.recv_ack().unwrap();
                assert_eq!(delivery.ack(), Ok(round));
            });
            receiver.until_waiting();
            receiver
        });
        shared.queue.send(round).unwrap();
        common::busy(random.micros(80));
        dies.signal(libc::SIGKILL);
        dies.wait();
        // Acknowledged by the first, or else by the second.
        assert_eq!(shared.queue.join_timeout(common::PATIENCE), Ok(true));
        // Whichever it was, the second has got, or gets, one.
        shared.queue.try_send(round).unwrap();
        lives.succeeds();
        assert!(shared.queue.drain().len() <= 1);
    }
    is_whole(&shared.queue);
}

// ---------------------------------------------------------------------------------------- fork

#[test]
fn copies_made_by_fork_are_inert() {
    let shared = plot();
    let _watchdog = watch("copies_made_by_fork_are_inert", &shared);
    shared.queue.send_batch(&[1, 2, 3, 4]).unwrap();
    let mut deliveries = [0, 1].map(|_| Some(shared.queue.recv_ack().unwrap()));
    let mut message = Some(shared.queue.recv_ref().unwrap());
    let mut loans = [0, 1].map(|_| Some(shared.queue.loan().unwrap()));
    for last in [false, true] {
        let child = fork_child(|| {
            let [first, second] = &mut deliveries;
            assert_eq!(first.take().unwrap().ack(), Err(Fault::Forked));
            drop(second.take());
            drop(message.take());
            let [first, second] = &mut loans;
            assert_eq!(first.take().unwrap().send(), Err(SendError::Failed((), Fault::Forked)));
            drop(second.take());
            // As a process of its own the child finds everything as it was.
            assert!(shared.queue.is_full());
            assert_eq!(shared.queue.join_timeout(ms(5)), Ok(false));
            let mut own = Some(shared.queue.recv_ack().unwrap());
            assert_eq!(own.as_ref().map(|own| (**own, own.attempts())), Some((4, u32::from(last))));
            // And its own copies are as inert in a child of its own.
            fork_child(|| assert_eq!(own.take().unwrap().ack(), Err(Fault::Forked))).succeeds();
            fork_child(|| drop(own.take())).succeeds();
            let own = own.unwrap();
            if last {
                assert_eq!(own.ack(), Ok(4));
            }
        });
        child.succeeds();
    }
    // All that the parent has is still its own.
    let [first, second] = deliveries.map(Option::unwrap);
    assert_eq!((first.attempts(), first.ack()), (0, Ok(1)));
    assert_eq!(second.ack(), Ok(2));
    drop(message);
    for (n, loan) in loans.into_iter().enumerate() {
        let mut loan = loan.unwrap();
        *loan = n as u64;
        loan.send().unwrap();
    }
    assert_eq!(shared.queue.drain(), [0, 1]);
    is_whole(&shared.queue);
}

/// The slot of a loan stays taken when a forked child drops its copy.
#[test]
fn a_loan_copied_by_fork_keeps_its_slot() {
    let queue = Shared::anonymous(FixedQueue::<u64, 1>::new()).unwrap();
    let _watchdog = watch_alone("a_loan_copied_by_fork_keeps_its_slot");
    let mut loan = Some(queue.loan().unwrap());
    fork_child(|| drop(loan.take())).succeeds();
    assert_eq!(queue.try_send(1), Err(TrySendError::Full(1)));
    let mut loan = loan.unwrap();
    *loan = 2;
    loan.send().unwrap();
    assert_eq!(queue.drain(), [2]);
}

// --------------------------------------------------------------------------------------- values

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Suit: u16 { Clubs = 3, Hearts = 500 }
    #[derive(Debug, PartialEq)]
    struct Card { suit: Suit, trump: bool, value: u64 }
}

/// Bits that are no value of the type are an error, and the queue goes on.
#[test]
fn bits_that_are_no_value() {
    use std::os::unix::fs::FileExt;
    type Receive = fn(&Queue<Card>) -> Option<Fault>;
    let good = Card { suit: Suit::Hearts, trump: true, value: 0x0123_4567_89ab_cdef };
    for (field, bits) in [(0, 4_u8), (2, 2), (2, 255)] {
        let queue = queue::<Card>(3);
        let _watchdog = watch("bits_that_are_no_value", &queue);
        let file = std::fs::File::from(queue.try_clone_fd().unwrap());
        let receivers: [Receive; 3] = [
            |queue| match queue.recv() {
                Err(RecvError::Failed(fault)) => Some(fault),
                _ => None,
            },
            |queue| match queue.recv_ack() {
                Err(RecvError::Failed(fault)) => Some(fault),
                _ => None,
            },
            |queue| match queue.try_recv() {
                Err(TryRecvError::Failed(fault)) => Some(fault),
                _ => None,
            },
        ];
        for receive in receivers {
            queue.send_batch(&[good, good]).unwrap();
            let word = |at: u64| {
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, at).unwrap();
                u64::from_ne_bytes(bytes)
            };
            let slots =
                word(104) + <Queue<Card> as outlast::Shareable>::layout().fields[0].offset as u64;
            // The older of the two: the full slot (phase 2) of the lowest lap, and then of the
            // lowest index.
            let slot = (0..3)
                .map(|i| slots + i * (8 + size_of::<Card>() as u64))
                .filter(|&at| word(at) & 0xf == 2)
                .min_by_key(|&at| (word(at) >> 16, at))
                .unwrap();
            file.write_all_at(&[bits], slot + 8 + field).unwrap();
            assert_eq!(receive(&queue), Some(Fault::Corrupt));
            assert_eq!(queue.recv(), Ok(good));
            assert_eq!(queue.join_timeout(Duration::ZERO), Ok(true));
        }
    }
}

/// A signal handler ends no wait, neither of a receiver nor of a sender. A waiting thread uses no
/// CPU time.
#[test]
fn waiters_sleep_on() {
    let (jobs, step) = (numbers(1), Shared::anonymous(AtomicU32::new(0)).unwrap());
    let _watchdog = watch("waiters_sleep_on", &jobs);
    let child = fork_child(|| {
        common::catch_user_signals();
        outlast::Spin::Never.set();
        assert_eq!(jobs.recv(), Ok(1));
        assert_eq!(step.load(SeqCst), 1, "a signal has ended the reception");
        jobs.send(2).unwrap();
        step.reach(2);
        jobs.send(3).unwrap(); // there is no room
        assert_eq!(step.load(SeqCst), 3, "a signal has ended the sending");
        assert!(common::thread_cpu() < ms(100), "it has not slept: {:?}", common::thread_cpu());
    });
    child.disturb_asleep(25, ms(3));
    step.reach(1);
    jobs.send(1).unwrap();
    step.until(2);
    child.disturb_asleep(25, ms(3));
    step.reach(3);
    assert_eq!((jobs.recv(), jobs.recv()), (Ok(2), Ok(3)));
    child.succeeds();
}

// ---------------------------------------------------------------------- what is no value

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Coin: u8 { Head = 1, Tail = 2 }
}

/// Sends a byte through the queue's memory that stands for no side of a coin.
fn spoil<T: ?Sized + outlast::Shareable + Sync + 'static>(shared: &Shared<T>, good: u8) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::from(shared.try_clone_fd().unwrap());
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 104).unwrap();
    let from = u64::from_ne_bytes(word);
    // The value of the full slot: the byte behind a word of phase 2.
    let len = file.metadata().unwrap().len();
    let is_slot = |at: &u64| {
        let (mut state, mut value) = ([0; 8], [0; 1]);
        file.read_exact_at(&mut state, *at).unwrap();
        file.read_exact_at(&mut value, at + 8).unwrap();
        u64::from_ne_bytes(state) & 0xffff == 2 && value == [good]
    };
    // The slots come last.
    let at = (from..len - 8).step_by(8).filter(is_slot).last().expect("a full slot");
    file.write_all_at(&[9], at + 8).unwrap();
}

/// An iterator cannot report a message that is no value. An iterator that does not wait leaves the
/// message to a verb that can. One that waits ends behind the message, so a further loop continues.
#[test]
fn iterators_end_at_what_is_no_value() {
    const CORRUPT: Fault = Fault::Corrupt;
    let queue = Shared::<Queue<Coin>>::with_capacity(8).unwrap();
    let _watchdog = watch("iterators_end_at_what_is_no_value", &queue);
    let mut all = Vec::new();
    for round in 0..2 {
        queue.send(Coin::Tail).unwrap();
        spoil(&queue, 2);
        queue.send(Coin::Head).unwrap();
        match round {
            0 => assert_eq!(queue.try_iter().next(), None),
            _ => assert!(queue.drain().is_empty()),
        }
        assert_eq!(queue.try_recv(), Err(TryRecvError::Failed(CORRUPT)), "round {round}");
        assert_eq!(queue.recv(), Ok(Coin::Head));
    }
    queue.send(Coin::Tail).unwrap();
    spoil(&queue, 2);
    queue.send(Coin::Head).unwrap();
    assert_eq!((queue.iter().next(), queue.iter().next()), (None, Some(Coin::Head)));
    queue.send(Coin::Tail).unwrap();
    spoil(&queue, 2);
    assert_eq!(queue.recv_batch(&mut all, 4), Err(RecvError::Failed(CORRUPT)));
    queue.send(Coin::Head).unwrap();
    queue.send(Coin::Tail).unwrap();
    spoil(&queue, 2);
    assert_eq!(queue.recv_batch(&mut all, 4), Ok(1));
    assert_eq!(queue.recv_batch(&mut all, 4), Err(RecvError::Failed(CORRUPT)));
    assert_eq!((all, queue.is_empty()), (vec![Coin::Head], true));

    let channel = Shared::<Channel<Queue<Coin>>>::with_capacity(8).unwrap();
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    sender.send(Coin::Tail).unwrap();
    spoil(&channel, 2);
    sender.send(Coin::Head).unwrap();
    assert_eq!((receiver.try_iter().next(), receiver.iter().next()), (None, None));
    assert_eq!(receiver.into_iter().next(), Some(Coin::Head));

    let levels = Shared::anonymous(FixedPriorityQueue::<Coin, 2, 4>::new()).unwrap();
    levels.send(1, Coin::Tail).unwrap();
    spoil(&levels, 2);
    levels.send(1, Coin::Head).unwrap();
    assert_eq!((levels.try_iter().next(), levels.iter().next()), (None, None));
    assert_eq!(levels.iter().next(), Some((1, Coin::Head)));

    let urgent = Shared::anonymous(Channel::new(FixedPriorityQueue::<Coin, 2, 4>::new())).unwrap();
    let (sender, receiver) = (urgent.sender().unwrap(), urgent.receiver().unwrap());
    sender.send(1, Coin::Tail).unwrap();
    spoil(&urgent, 2);
    sender.send(1, Coin::Head).unwrap();
    assert_eq!((receiver.try_iter().next(), receiver.iter().next()), (None, None));
    assert_eq!(receiver.into_iter().next(), Some((1, Coin::Head)));
}

/// A delivery returns a value that was checked, whatever is written to its entry later.
#[test]
fn a_delivery_gives_what_was_checked() {
    let queue = Shared::<Queue<Coin>>::with_capacity(8).unwrap();
    let _watchdog = watch("a_delivery_gives_what_was_checked", &queue);
    queue.send(Coin::Tail).unwrap();
    let delivery = queue.recv_ack().unwrap();
    // The lowest four bits of the entry's word are 2, as of a full slot. Its owner is a process.
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::from(queue.try_clone_fd().unwrap());
    let len = file.metadata().unwrap().len();
    let mut written = 0;
    for at in (4096..len).filter(|at| at % 8 == 0) {
        let mut byte = [0; 1];
        file.read_exact_at(&mut byte, at).unwrap();
        if byte == [2] {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at).unwrap();
            if u64::from_ne_bytes(word) == 2 {
                file.write_all_at(&[9], at).unwrap();
                written += 1;
            }
        }
    }
    assert!(written > 0, "no copy of the value was found");
    assert_eq!(*delivery, Coin::Tail);
    assert_eq!(delivery.ack(), Ok(Coin::Tail));
}
