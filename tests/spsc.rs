//! `spsc::Ring`: order, ends, deaths and successors, in threads and processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, thread_cpu, watch, worlds};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::spsc::{
    FixedRing, RecvError, RecvTimeoutError, Ring, RoleError, SendError, SendTimeoutError,
    TryRecvError, TrySendError,
};
use outlast::{Fault, OpenError, Shared};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Pair { ring: FixedRing<u64, 3>, answers: FixedRing<u64, 1>, step: AtomicU32 }
}

outlast::plain! {
    #[derive(Debug, PartialEq)]
    enum Kind: u8 { Draw = 1, Erase = 2 }
}

fn pair() -> Shared<Pair> {
    let (ring, answers) = (FixedRing::new(), FixedRing::new());
    Shared::anonymous(Pair { ring, answers, step: AtomicU32::new(0) }).unwrap()
}

fn ring(capacity: usize) -> Shared<Ring<u64>> {
    Shared::<Ring<u64>>::with_capacity(capacity).unwrap()
}

#[test]
fn alone() {
    let ring = ring(3);
    let _watchdog = watch("alone", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    assert_eq!((ring.capacity(), ring.len(), ring.is_empty(), ring.is_full()), (3, 0, true, false));
    assert_eq!(consumer.try_recv(), Err(TryRecvError::Empty));
    for round in 0..10 {
        (0..3).for_each(|i| producer.send(round + i).unwrap());
        assert!(ring.is_full());
        assert_eq!(producer.try_send(9), Err(TrySendError::Full(9)));
        (0..3).for_each(|i| assert_eq!(consumer.recv(), Ok(round + i)));
        producer.try_send(7).unwrap(); // so that the rounds begin at each place
        assert_eq!((ring.len(), consumer.try_recv()), (1, Ok(7)));
    }
}

#[test]
fn time_passes() {
    let ring = ring(1);
    let _watchdog = watch("time_passes", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let began = Instant::now();
    assert_eq!(consumer.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    producer.send_deadline(1, began).unwrap(); // what can be had is had, even too late
    let again = Instant::now();
    assert_eq!(producer.send_timeout(2, ms(20)), Err(SendTimeoutError::TimedOut(2)));
    assert!(again.elapsed() >= ms(20));
    assert_eq!(producer.send_deadline(2, began), Err(SendTimeoutError::TimedOut(2)));
    assert_eq!(consumer.recv_deadline(began), Ok(1));
    assert_eq!(consumer.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::TimedOut));
    let began = Instant::now();
    assert_eq!(ring.consumer_timeout(ms(20)).unwrap_err(), RoleError::TimedOut);
    assert!(began.elapsed() >= ms(20));
    assert_eq!(ring.producer_deadline(began).unwrap_err(), RoleError::TimedOut);
}

#[test]
fn closing() {
    let ring = ring(2);
    let _watchdog = watch("closing", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.send(1).unwrap();
    producer.close();
    assert!(ring.is_closed());
    assert_eq!(producer.send(2), Err(SendError::Closed(2)));
    assert_eq!(producer.send_batch(&[2, 3]), Err(SendError::Closed(0)));
    assert_eq!(consumer.recv(), Ok(1));
    assert_eq!(consumer.recv(), Err(RecvError::Closed));
    assert_eq!(consumer.try_recv(), Err(TryRecvError::Closed));
}

#[test]
fn closing_wakes() {
    let pair = pair();
    let _watchdog = watch("closing_wakes", &pair);
    (0..3).for_each(|i| pair.ring.producer().unwrap().send(i).unwrap());
    let sender = fork_child(|| {
        assert_eq!(pair.ring.producer().unwrap().send(9), Err(SendError::Closed(9)));
    });
    let receiver = fork_child(|| {
        assert_eq!(pair.answers.consumer().unwrap().recv(), Err(RecvError::Closed));
    });
    sender.until_waiting();
    receiver.until_waiting();
    pair.ring.close();
    pair.answers.close();
    sender.succeeds();
    receiver.succeeds();
}

#[test]
fn roles() {
    let ring = ring(2);
    let there = Shared::<Ring<u64>>::from_fd(ring.try_clone_fd().unwrap()).unwrap();
    let _watchdog = watch("roles", &ring);
    let producer = ring.producer().unwrap();
    assert_eq!(ring.try_producer().unwrap_err(), RoleError::Taken);
    assert_eq!(there.try_producer().unwrap_err(), RoleError::Taken);
    producer.send(1).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| there.producer().map(|p| p.send(2)));
        drop(producer);
        waiter.join().unwrap().unwrap().unwrap();
    });
    assert!(!ring.producer().unwrap().predecessor_died());
    assert_eq!(there.consumer().unwrap().recv(), Ok(1));
    assert_eq!(there.consumer().unwrap().recv(), Ok(2));
    assert_eq!(there.consumer().unwrap().try_recv(), Err(TryRecvError::Empty));
}

/// An end may be used by another thread than took it.
#[test]
fn ends_are_sent() {
    let ring = ring(4);
    let _watchdog = watch("ends_are_sent", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || (0..1_000).for_each(|i| producer.send(i).unwrap()));
        scope.spawn(move || (0..1_000).for_each(|i| assert_eq!(consumer.recv(), Ok(i))));
    });
    ring.producer().unwrap();
}

#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 20_000;
    worlds(
        "streams_in_every_world",
        "",
        2,
        pair,
        |pair, i| {
            if i == 0 {
                let producer = pair.ring.producer().unwrap();
                let numbers: Vec<u64> = (0..COUNT).collect();
                for (n, part) in numbers.chunks(7).enumerate() {
                    if n % 2 == 0 {
                        producer.send_batch(part).unwrap();
                    } else {
                        part.iter().for_each(|number| producer.send(*number).unwrap());
                    }
                }
                assert_eq!(pair.answers.consumer().unwrap().recv(), Ok(COUNT));
            } else {
                let mut consumer = pair.ring.consumer().unwrap();
                let (mut all, mut next) = (Vec::new(), 0);
                while next < COUNT {
                    let chunk = consumer.read_chunk(2).unwrap();
                    let (first, second) = chunk.as_slices();
                    let read = [first, second].concat();
                    let n = chunk.len();
                    chunk.consume(n).unwrap();
                    all.extend(read);
                    if (all.len() as u64) < COUNT {
                        consumer.recv_batch(&mut all, 2).unwrap();
                    }
                    next = all.len() as u64;
                }
                assert!(all.into_iter().eq(0..COUNT));
                pair.answers.producer().unwrap().send(COUNT).unwrap();
            }
        },
        |pair| assert!(pair.ring.is_empty()),
    );
}

#[test]
fn chunks() {
    let ring = ring(3);
    let _watchdog = watch("chunks", &ring);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.send_batch(&[0, 0]).unwrap();
    assert_eq!(consumer.recv_batch(&mut Vec::new(), 9), Ok(2));
    let mut chunk = producer.write_chunk(9).unwrap();
    assert_eq!(chunk.len(), 3);
    let (first, second) = chunk.as_mut_slices();
    first.copy_from_slice(&[1]);
    second.copy_from_slice(&[2, 3]);
    chunk.set(1, 4);
    chunk.commit(2).unwrap();
    drop(producer.write_chunk(1).unwrap()); // sends nothing
    assert_eq!(ring.len(), 2);
    let chunk = consumer.read_chunk(9).unwrap();
    assert_eq!(chunk.as_slices(), (&[1][..], &[4][..]));
    assert_eq!([0, 1, 2].map(|i| chunk.get(i)), [Some(1), Some(4), None]);
    drop(chunk); // consumes nothing
    consumer.read_chunk(9).unwrap().consume(1).unwrap();
    assert_eq!(consumer.recv(), Ok(4));
    assert_eq!(consumer.try_read_chunk(1).unwrap_err(), TryRecvError::Empty);
    producer.try_write_chunk(0).unwrap().commit(1).unwrap();
    assert!(ring.is_empty());
    assert_eq!(producer.try_send_batch(&[1, 2, 3, 4]), Ok(3));
    assert_eq!(producer.try_write_chunk(1).unwrap_err(), TrySendError::Full(()));
    assert_eq!(consumer.iter().take(3).collect::<Vec<_>>(), [1, 2, 3]);
}

/// Every form of the verbs for many messages, on an empty ring and on a full one.
#[test]
fn many_at_a_time_with_deadlines() {
    let ring = ring(3);
    let _watchdog = watch("many_at_a_time_with_deadlines", &ring);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let (mut all, mut to) = (Vec::new(), [0; 3]);
    let (past, late) = (Instant::now(), RecvTimeoutError::TimedOut);
    assert_eq!(consumer.try_recv_batch(&mut all, 9), Err(TryRecvError::Empty));
    assert_eq!(consumer.recv_batch_timeout(&mut all, 9, ms(20)), Err(late));
    assert_eq!(consumer.recv_batch_deadline(&mut all, 9, past), Err(late));
    assert_eq!(consumer.try_recv_into(&mut to), Err(TryRecvError::Empty));
    assert_eq!(consumer.recv_into_timeout(&mut to, ms(20)), Err(late));
    assert_eq!(consumer.recv_into_deadline(&mut to, past), Err(late));
    assert_eq!(consumer.read_chunk_timeout(9, ms(20)).unwrap_err(), late);
    assert_eq!(consumer.read_chunk_deadline(9, past).unwrap_err(), late);
    assert!(past.elapsed() >= ms(60));

    assert_eq!(producer.send_batch_deadline(&[1, 2, 3], past), Ok(()));
    let late = SendTimeoutError::TimedOut(0);
    assert_eq!(producer.send_batch_timeout(&[4], ms(20)), Err(late));
    let late = SendTimeoutError::TimedOut(());
    assert_eq!(producer.write_chunk_timeout(9, ms(20)).unwrap_err(), late);
    assert_eq!(producer.write_chunk_deadline(9, past).unwrap_err(), late);

    assert_eq!(consumer.recv_batch_timeout(&mut all, 1, ms(20)), Ok(1));
    assert_eq!(producer.send_batch_timeout(&[4, 5], ms(20)), Err(SendTimeoutError::TimedOut(1)));
    assert_eq!(consumer.try_recv_batch(&mut all, 1), Ok(1));
    assert_eq!(all, [1, 2]);
    assert_eq!((consumer.try_recv_into(&mut to[..1]), to), (Ok(1), [3, 0, 0]));
    assert_eq!(consumer.recv_into_timeout(&mut to, ms(20)), Ok(1));
    producer.write_chunk_deadline(1, past).unwrap().commit(1).unwrap();
    consumer.read_chunk_deadline(9, past).unwrap().consume(1).unwrap();
    assert!(ring.is_empty());
}

/// Random operations, against a `VecDeque`; both ends change hands, each in a mapping of its own.
#[test]
fn as_a_deque_does() {
    for capacity in [1, 2, 3, 5, 8] {
        let here = ring(capacity);
        let there = Shared::<Ring<u64>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
        let _watchdog = watch("as_a_deque_does", &here);
        let (mut producer, mut consumer) = (here.producer().unwrap(), there.consumer().unwrap());
        let (mut model, mut seed, mut next) = (VecDeque::new(), 7_u64, 0);
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = (seed >> 40) as usize % (capacity + 2);
            match (seed >> 33) % 8 {
                0 => {
                    let sent = producer.try_send(next).is_ok();
                    assert_eq!(sent, model.len() < capacity);
                    model.extend(sent.then_some(next));
                }
                1 => assert_eq!(consumer.try_recv().ok(), model.pop_front()),
                2 => {
                    let messages: Vec<u64> = (next..).take(n).collect();
                    let sent = producer.try_send_batch(&messages).unwrap_or(0);
                    assert!(sent <= n && model.len() + sent <= capacity);
                    model.extend(&messages[..sent]);
                }
                3 if !model.is_empty() => {
                    let mut received = Vec::new();
                    consumer.recv_batch(&mut received, n).unwrap();
                    assert!(received.iter().copied().eq(model.drain(..received.len())));
                }
                4 => {
                    if let Ok(mut chunk) = producer.try_write_chunk(n) {
                        (0..chunk.len()).for_each(|i| chunk.set(i, next + i as u64));
                        model.extend((next..).take(chunk.len() / 2));
                        let half = chunk.len() / 2;
                        chunk.commit(half).unwrap();
                    }
                }
                5 => {
                    if let Ok(chunk) = consumer.try_read_chunk(n) {
                        let half = chunk.len().div_ceil(2);
                        (0..half).for_each(|i| assert_eq!(chunk.get(i), model.pop_front()));
                        chunk.consume(half).unwrap();
                    }
                }
                6 => {
                    drop(producer);
                    producer = here.producer().unwrap();
                }
                _ => {
                    drop(consumer);
                    consumer = there.consumer().unwrap();
                }
            }
            next += capacity as u64 + 2;
            assert_eq!(here.len(), model.len());
        }
    }
}

/// What is buffered, then one notice of the death; then the successor's messages.
#[test]
fn a_producer_that_is_killed() {
    let pair = pair();
    let _watchdog = watch("a_producer_that_is_killed", &pair);
    let producer = fork_child(|| {
        let producer = pair.ring.producer().unwrap();
        producer.send_batch(&[1, 2]).unwrap();
        sleep_for_ever();
    });
    let consumer = fork_child(|| {
        let consumer = pair.ring.consumer().unwrap();
        assert_eq!([consumer.recv(), consumer.recv()], [Ok(1), Ok(2)]);
        pair.step.store(1, SeqCst);
        assert_eq!(consumer.recv(), Err(RecvError::PeerDied));
        assert_eq!(consumer.try_recv(), Err(TryRecvError::Empty));
        pair.step.store(2, SeqCst);
        assert_eq!(consumer.recv(), Ok(3));
    });
    eventually("drained", || pair.step.load(SeqCst) == 1);
    consumer.until_waiting();
    assert_eq!(pair.ring.try_producer().unwrap_err(), RoleError::Taken);
    producer.kill9();
    let successor = pair.ring.producer().unwrap();
    assert!(successor.predecessor_died());
    eventually("told", || pair.step.load(SeqCst) == 2);
    successor.send(3).unwrap();
    consumer.succeeds();
}

#[test]
fn a_consumer_that_is_killed() {
    let pair = pair();
    let _watchdog = watch("a_consumer_that_is_killed", &pair);
    let consumer = fork_child(|| {
        let mut consumer = pair.ring.consumer().unwrap();
        assert_eq!(consumer.recv(), Ok(0));
        let _unconsumed = consumer.read_chunk(1).unwrap();
        pair.step.fetch_add(1, SeqCst);
        sleep_for_ever();
    });
    let producer = fork_child(|| {
        let producer = pair.ring.producer().unwrap();
        producer.send_batch(&[0, 1, 2, 3]).unwrap();
        pair.step.fetch_add(1, SeqCst);
        assert_eq!(producer.send(4), Err(SendError::PeerDied(4)));
        assert_eq!(producer.try_send(4), Err(TrySendError::Full(4)));
        producer.send(4).unwrap();
    });
    eventually("it reads, and the ring is full", || pair.step.load(SeqCst) == 2);
    producer.until_waiting();
    consumer.kill9();
    let successor = pair.ring.consumer().unwrap();
    assert!(successor.predecessor_died());
    producer.until_waiting();
    assert_eq!(successor.iter().take(4).collect::<Vec<_>>(), [1, 2, 3, 4]);
    producer.succeeds();
}

/// The death of a process that has not taken an end yet is not reported at the other end, which
/// waits for the next process.
#[test]
fn an_end_that_was_never_taken() {
    let pair = pair();
    let _watchdog = watch("an_end_that_was_never_taken", &pair);
    let victim = fork_child(|| {
        // A peer, with an end of another ring.
        let _other = pair.answers.producer().unwrap();
        pair.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it is a peer", || pair.step.load(SeqCst) == 1);
    let consumer = pair.ring.consumer().unwrap();
    let waiter = fork_child(|| {
        let answers = pair.answers.consumer().unwrap();
        assert_eq!(answers.recv(), Err(RecvError::PeerDied));
        pair.step.store(2, SeqCst);
    });
    waiter.until_waiting();
    victim.kill9();
    eventually("the death has been noticed", || pair.step.load(SeqCst) == 2);
    waiter.succeeds();
    let began = Instant::now();
    assert_eq!(consumer.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    let late = fork_child(|| {
        let producer = pair.ring.producer().unwrap();
        assert!(!producer.predecessor_died());
        producer.send(1).unwrap();
    });
    assert_eq!(consumer.recv(), Ok(1));
    late.succeeds();
}

/// A process that ends by itself has not died.
#[test]
fn an_end_whose_process_exits() {
    let pair = pair();
    let _watchdog = watch("an_end_whose_process_exits", &pair);
    fork_child(|| {
        let producer = pair.ring.producer().unwrap();
        producer.send(1).unwrap();
        std::process::exit(0);
    })
    .succeeds();
    let successor = pair.ring.producer().unwrap();
    assert!(!successor.predecessor_died());
    let consumer = pair.ring.consumer().unwrap();
    assert_eq!((consumer.recv(), consumer.try_recv()), (Ok(1), Err(TryRecvError::Empty)));
}

#[test]
fn copies_made_by_fork_are_inert() {
    let pair = pair();
    let _watchdog = watch("copies_made_by_fork_are_inert", &pair);
    let mut producer = Some(pair.ring.producer().unwrap());
    let mut consumer = Some(pair.answers.consumer().unwrap());
    fork_child(|| {
        let (producer, consumer) = (producer.take().unwrap(), consumer.take().unwrap());
        assert_eq!(producer.send(1), Err(SendError::Failed(1, Fault::Forked)));
        assert_eq!(consumer.recv(), Err(RecvError::Failed(Fault::Forked)));
        drop((producer, consumer));
        assert_eq!(pair.ring.try_producer().unwrap_err(), RoleError::Taken);
    })
    .succeeds();
    assert_eq!(pair.ring.try_producer().unwrap_err(), RoleError::Taken);
    producer.unwrap().send(1).unwrap();
    drop(consumer);
    pair.answers.consumer().unwrap();
}

#[test]
fn bad_capacities_and_names() {
    for capacity in [0, 1 << 40, usize::MAX] {
        let made = Shared::<Ring<u64>>::with_capacity(capacity);
        assert!(matches!(made, Err(OpenError::InvalidCapacity(_))), "{capacity}");
    }
    let name = format!("spsc-{}", std::process::id());
    let made = Shared::<Ring<u64>>::create_with_capacity(&name, 5).unwrap();
    let opened = Shared::<Ring<u64>>::open(&name).unwrap();
    made.producer().unwrap().send(1).unwrap();
    assert_eq!((opened.capacity(), opened.consumer().unwrap().recv()), (5, Ok(1)));
    assert!(matches!(Shared::<Ring<u32>>::open(&name), Err(OpenError::OtherType { .. })));
}

/// Any bytes: errors, no more.
#[test]
#[expect(unsafe_code, reason = "writes foreign bytes")]
fn foreign_bytes() {
    let ring = ring(3);
    let _watchdog = watch("foreign_bytes", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let words = std::ptr::from_ref::<Ring<u64>>(&ring).cast::<AtomicU32>();
    for word in [0, 32] {
        // SAFETY: the positions of the ring, each at the start of 128 bytes.
        let position = unsafe { words.add(word) };
        // SAFETY: an atomic of the ring, which lives.
        unsafe { &*position }.store(77, SeqCst);
    }
    assert_eq!(consumer.try_recv(), Err(TryRecvError::Failed(Fault::Corrupt)));
    assert_eq!(consumer.recv(), Err(RecvError::Failed(Fault::Corrupt)));
    assert_eq!(producer.send(1), Err(SendError::Failed(1, Fault::Corrupt)));
    assert!(ring.len() <= 3);
}

#[test]
#[expect(unsafe_code, reason = "writes foreign bytes")]
fn values_are_checked() {
    let ring = Shared::<Ring<Kind>>::with_capacity(4).unwrap();
    let _watchdog = watch("values_are_checked", &ring);
    let (producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let spoil = |i: usize| {
        let end = std::ptr::from_ref::<Ring<Kind>>(&ring).cast::<u8>().cast_mut();
        let slots = size_of::<FixedRing<Kind, 1>>() - 128;
        // SAFETY: the slots are the last 4 bytes, padded to 128, and no other thread uses them.
        let at = unsafe { end.add(slots + i) };
        // SAFETY: a byte of a slot.
        unsafe { at.write(9) };
    };
    producer.send_batch(&[Kind::Draw, Kind::Erase, Kind::Draw]).unwrap();
    spoil(1);
    let chunk = consumer.read_chunk(3).unwrap();
    assert_eq!((chunk.len(), chunk.get(0), chunk.get(1)), (1, Some(Kind::Draw), None));
    chunk.consume(1).unwrap();
    assert_eq!(consumer.recv(), Err(RecvError::Failed(Fault::Corrupt)));
    assert_eq!(consumer.recv(), Ok(Kind::Draw));

    // A loop ends behind it.
    producer.send_batch(&[Kind::Draw, Kind::Erase]).unwrap();
    spoil(3);
    assert_eq!((consumer.iter().next(), consumer.iter().next()), (None, Some(Kind::Erase)));
    // The next message goes to the last slot again.
    producer.send_batch(&[Kind::Draw; 2]).unwrap();
    assert_eq!(consumer.iter().take(2).count(), 2);

    // A call for many returns the messages up to the first that is no value, also around the end of
    // the ring. That one is consumed by a call of its own.
    let corrupt = Err(RecvError::Failed(Fault::Corrupt));
    producer.send_batch(&[Kind::Erase, Kind::Draw, Kind::Erase, Kind::Draw]).unwrap();
    spoil(1); // the third of them
    let mut all = vec![Kind::Draw];
    assert_eq!(consumer.recv_batch(&mut all, 9), Ok(2));
    assert_eq!(all, [Kind::Draw, Kind::Erase, Kind::Draw]);
    assert_eq!((consumer.recv_batch(&mut all, 9), all.len()), (corrupt, 3));
    assert_eq!((consumer.recv_batch(&mut all, 9), all.len()), (Ok(1), 4));
    producer.send_batch(&[Kind::Erase, Kind::Erase, Kind::Draw]).unwrap();
    spoil(0); // the second
    let mut to = [Kind::Draw; 3];
    assert_eq!((consumer.recv_into(&mut to), to), (Ok(1), [Kind::Erase, Kind::Draw, Kind::Draw]));
    assert_eq!((consumer.recv_into(&mut to), to[0]), (corrupt, Kind::Erase));
    assert_eq!((consumer.recv_into(&mut to), to[0]), (Ok(1), Kind::Draw));
}

/// A signal's handler does not end a wait, and waiting takes no time of the processor.
#[test]
fn a_wait_is_a_wait() {
    let pair = pair();
    let _watchdog = watch("a_wait_is_a_wait", &pair);
    let producer = pair.ring.producer().unwrap();
    let waiter = fork_child(|| {
        common::catch_user_signals();
        let consumer = pair.ring.consumer().unwrap();
        let before = thread_cpu();
        assert_eq!(consumer.recv(), Ok(5));
        assert!(thread_cpu() - before < ms(100), "it was busy");
    });
    waiter.disturb_asleep(3, ms(60));
    producer.send(5).unwrap();
    waiter.succeeds();
}

#[test]
fn into_a_slice() {
    let ring = ring(4);
    let _watchdog = watch("into_a_slice", &ring);
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let mut to = [0; 3];
    assert_eq!(consumer.recv_into(&mut []), Ok(0));
    for round in 0..5 {
        producer.send_batch(&[round, 1, 2, 3]).unwrap();
        assert_eq!((consumer.recv_into(&mut to), to), (Ok(3), [round, 1, 2]));
        assert_eq!((consumer.recv_into(&mut to), to), (Ok(1), [3, 1, 2]));
    }
    assert_eq!((ring.sent(), ring.received()), (20, 20));
    ring.close();
    assert_eq!(consumer.recv_into(&mut to), Err(RecvError::Closed));
}

#[test]
fn errors_become_one() {
    let ring = ring(1);
    let fails = || -> Result<(), outlast::Error> {
        let (producer, consumer) = (ring.producer()?, ring.consumer()?);
        producer.send(1)?;
        assert_eq!(consumer.recv()?, 1);
        assert!(matches!(consumer.try_recv().map_err(Into::into), Err(outlast::Error::Empty)));
        ring.try_producer()?;
        Ok(())
    };
    assert!(fails().unwrap_err().to_string().starts_with("this end of the ring is taken"));
}

/// The ends keep the ring mapped, move into threads, and give their roles back when they go.
#[test]
fn ends_that_own_their_ring() {
    let here = ring(4);
    let _watchdog = watch("ends_that_own_their_ring", &here);
    let there = Shared::<Ring<u64>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let (producer, consumer) = (here.producer().unwrap(), there.consumer().unwrap());
    assert_eq!(there.producer_timeout(ms(1)).unwrap_err(), RoleError::TimedOut);
    let last = here.clone();
    drop((here, there));
    let sender = std::thread::spawn(move || {
        (0..1_000).for_each(|i| producer.send(i).unwrap());
        producer.close();
    });
    let received = std::thread::spawn(move || consumer.iter().collect::<Vec<_>>()).join().unwrap();
    assert_eq!(received, (0..1_000).collect::<Vec<_>>());
    sender.join().unwrap();
    let next = last.producer_deadline(Instant::now()).unwrap();
    assert!(!next.predecessor_died());
    assert!(!last.consumer().unwrap().predecessor_died());
}
