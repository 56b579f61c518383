//! `ByteQueue`: messages of any length, in place and copied, deaths, damage, in threads and
//! processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{
    eventually, fork_child, ms, scribble, sleep_for_ever, text, thread_cpu, watch, watch_alone,
    worlds,
};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    ByteQueue, Fault, FixedByteQueue, OpenError, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use std::time::{Duration, Instant};

outlast::shared! {
    #[derive(Debug)]
    struct Post { out: FixedByteQueue<9>, back: FixedByteQueue<1>, step: AtomicU32, sum: AtomicU64 }
}

fn post() -> Shared<Post> {
    Shared::anonymous(Post {
        out: FixedByteQueue::new(),
        back: FixedByteQueue::new(),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

fn queue(capacity: usize) -> Shared<ByteQueue> {
    Shared::<ByteQueue>::with_capacity(capacity).unwrap()
}

fn again(queue: &Shared<ByteQueue>) -> Shared<ByteQueue> {
    Shared::from_fd(queue.try_clone_fd().unwrap()).unwrap()
}

/// Messages that came back occupy all of the in-flight area, and a message that needs room there
/// came back to the ring: those of the area are delivered first.
#[test]
fn what_needs_no_room_is_delivered_first() {
    let here = queue(4 * 64);
    let there = again(&here);
    let _watchdog = watch("what_needs_no_room_is_delivered_first", &here);
    let [first, second, third] = [text(1, 128), text(2, 128), text(3, 1)];
    here.send(&first).unwrap();
    here.send(&second).unwrap();
    let held = [there.recv_ack().unwrap(), here.recv_ack().unwrap()];
    here.send(&third).unwrap();
    there.recv_ref().unwrap().give_back().unwrap();
    assert_eq!(here.try_recv_ack().unwrap_err(), TryRecvError::TooManyInFlight);
    drop(held);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = here.try_recv_ack().unwrap();
        seen.push(delivery.to_vec());
        delivery.ack().unwrap();
    }
    assert_eq!(seen, [first, second, third]);
}

#[test]
fn alone() {
    let here = queue(1_000);
    let there = again(&here);
    let _watchdog = watch("alone", &here);
    assert_eq!((here.capacity(), here.len(), here.is_empty()), (1_024, 0, true));
    assert_eq!(there.try_recv(), Err(TryRecvError::Empty));
    for len in [0, 1, 63, 64, 65, 128, 500, 1_024, 0, 1_000] {
        here.send(&text(9, len)).unwrap();
        assert_eq!((here.len(), there.is_empty()), (1, false));
        assert_eq!(there.recv().unwrap(), text(9, len));
    }
    here.send(&text(1, 1_000)).unwrap();
    assert_eq!(here.try_send(b""), Err(TrySendError::Full(())));
    let mut all = b"before".to_vec();
    assert_eq!(there.recv_into(&mut all), Ok(1_000));
    assert_eq!((&all[..6], &all[6..]), (&b"before"[..], &text(1, 1_000)[..]));
    assert_eq!(here.send(&[0; 1_025]), Err(SendError::Failed((), Fault::TooLong)));
    assert_eq!(here.try_loan(usize::MAX).unwrap_err(), TrySendError::Failed((), Fault::TooLong));
}

/// Lengths that begin everywhere in the ring, and skip its end in every way.
#[test]
fn every_length_everywhere() {
    for blocks in [4, 8, 12] {
        let queue = queue(blocks * 64);
        let _watchdog = watch("every_length_everywhere", &queue);
        let mut sent = 0;
        for len in 0..=blocks * 64 {
            queue.send(&text(sent, len)).unwrap();
            let mut waiting = vec![(sent, len)];
            sent += 1;
            while queue.try_send(&text(sent, 130)).is_ok() {
                waiting.push((sent, 130));
                sent += 1;
            }
            assert_eq!(queue.len(), waiting.len());
            for (n, len) in waiting {
                assert_eq!(queue.recv().unwrap(), text(n, len));
            }
        }
    }
}

#[test]
fn in_place() {
    let here = queue(4_096);
    let there = again(&here);
    let _watchdog = watch("in_place", &here);
    let mut room = here.loan(700).unwrap();
    assert_eq!(room.len(), 700);
    assert!(room.as_ptr().addr().is_multiple_of(64));
    room.copy_from_slice(&text(1, 700));
    here.send(b"later").unwrap();
    assert_eq!(there.try_recv(), Err(TryRecvError::Empty)); // in their order
    room.send().unwrap();
    let (first, second) = (there.recv_ref().unwrap(), there.try_recv_ref().unwrap());
    assert_eq!((&*first, &*second), (&text(1, 700)[..], &b"later"[..]));
    drop((first, second));

    let mut room = here.loan(4_000).unwrap();
    room[..3].copy_from_slice(b"abc");
    room.send_len(3).unwrap();
    assert_eq!(there.recv().unwrap(), b"abc");
    let room = here.loan(5).unwrap();
    here.send(b"next").unwrap();
    drop(room); // sends nothing
    assert_eq!(there.recv().unwrap(), b"next");
    let room = here.loan(2).unwrap();
    room.send_len(usize::MAX).unwrap(); // at most all
    assert_eq!(there.recv_ref().unwrap().len(), 2);
}

/// A sender takes and drops a loan of the whole ring, several times, while no receiver looks. The
/// next message is received all the same.
#[test]
fn room_given_up_for_laps() {
    let queue = queue(512);
    let _watchdog = watch("room_given_up_for_laps", &queue);
    for laps in 1..4 {
        for len in [1, 64, 65, 500] {
            (0..laps * 8).for_each(|_| drop(queue.try_loan(len).unwrap()));
            queue.try_send(&text(laps, len)).unwrap();
            assert_eq!(queue.try_recv(), Ok(text(laps, len)), "{laps} laps, {len} bytes");
        }
    }
}

/// What is given back goes first, whatever came after it.
#[test]
fn given_back() {
    let queue = queue(1_024);
    let _watchdog = watch("given_back", &queue);
    (0..3).for_each(|n| queue.send(&text(n, 70)).unwrap());
    let held = [queue.recv_ref().unwrap(), queue.recv_ref().unwrap()];
    let [first, second] = held;
    second.give_back().unwrap();
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.recv().unwrap(), text(1, 70));
    assert_eq!(queue.recv().unwrap(), text(2, 70));
    first.give_back().unwrap();
    assert!(!queue.is_empty());
    assert_eq!(queue.recv().unwrap(), text(0, 70));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    assert!(queue.is_empty());
}

#[test]
fn time_passes() {
    let queue = queue(256);
    let _watchdog = watch("time_passes", &queue);
    let began = Instant::now();
    assert_eq!(queue.recv_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(queue.recv_ref_timeout(ms(1)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(began.elapsed() >= ms(21));
    queue.send_deadline(&[1; 200], began).unwrap(); // what can be had is had, even too late
    let again = Instant::now();
    assert_eq!(queue.send_timeout(b"x", ms(20)), Err(SendTimeoutError::TimedOut(())));
    assert_eq!(queue.loan_timeout(1, ms(1)).unwrap_err(), SendTimeoutError::TimedOut(()));
    assert!(again.elapsed() >= ms(21));
    assert_eq!(queue.loan_deadline(1, began).unwrap_err(), SendTimeoutError::TimedOut(()));
    assert_eq!(queue.recv_deadline(began), Ok(vec![1; 200]));
    assert_eq!(queue.recv_ref_deadline(began).unwrap_err(), RecvTimeoutError::TimedOut);
}

#[test]
fn closing() {
    let queue = queue(1_024);
    let _watchdog = watch("closing", &queue);
    queue.send(b"one").unwrap();
    let mut room = queue.loan(3).unwrap();
    queue.close();
    assert!(queue.is_closed());
    assert_eq!(queue.send(b"two"), Err(SendError::Closed(())));
    assert_eq!(queue.try_send(b"two"), Err(TrySendError::Closed(())));
    assert_eq!(queue.send_timeout(b"two", ms(1)), Err(SendTimeoutError::Closed(())));
    assert_eq!(queue.recv().unwrap(), b"one");
    assert_eq!(queue.try_recv(), Err(TryRecvError::Empty)); // what has room is sent
    room.copy_from_slice(b"two");
    room.send().unwrap();
    assert_eq!(queue.iter().collect::<Vec<_>>(), [b"two"]);
    assert_eq!(queue.recv(), Err(RecvError::Closed));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(queue.recv_timeout(ms(1)), Err(RecvTimeoutError::Closed));
}

/// Receivers of a closed queue leave when nothing can come back any more.
#[test]
fn closed_is_said_last() {
    for killed in [false, true] {
        let post = post();
        let _watchdog = watch("closed_is_said_last", &post);
        post.out.send(b"work").unwrap();
        let worker = fork_child(|| {
            let work = post.out.recv_ref().unwrap();
            post.step.store(1, SeqCst);
            eventually("it is time to finish", || post.step.load(SeqCst) == 2);
            // A receiver that holds a message does not wait.
            assert_eq!(post.out.try_recv(), Err(TryRecvError::Closed));
            drop(work);
        });
        eventually("the worker has it", || post.step.load(SeqCst) == 1);
        post.out.close();
        assert_eq!(post.out.try_recv(), Err(TryRecvError::Empty));
        let others: Vec<_> = (0..2)
            .map(|_| {
                fork_child(|| {
                    let all = post.out.iter().count();
                    post.sum.fetch_add(all as u64, SeqCst);
                })
            })
            .collect();
        others.iter().for_each(common::Child::until_waiting);
        if killed {
            worker.kill9();
        } else {
            post.step.store(2, SeqCst);
            worker.succeeds();
        }
        others.into_iter().for_each(common::Child::succeeds);
        assert_eq!(post.sum.load(SeqCst), u64::from(killed));
    }
}

#[test]
fn by_name() {
    let name = format!("bytes-{}", std::process::id());
    let here = Shared::<ByteQueue>::create_with_capacity(&name, 300).unwrap();
    let _watchdog = watch("by_name", &here);
    let there = Shared::<ByteQueue>::open(&name).unwrap();
    assert_eq!(there.capacity(), 512);
    here.send(b"by name").unwrap();
    assert_eq!(there.recv().unwrap(), b"by name");
    for capacity in [0, 1 << 30, usize::MAX] {
        let refused = Shared::<ByteQueue>::with_capacity(capacity).map(drop);
        assert!(matches!(refused, Err(OpenError::InvalidCapacity(c)) if c == capacity));
    }
    assert!(matches!(
        Shared::<FixedByteQueue<8>>::open(&name).map(drop),
        Err(OpenError::OtherType { .. })
    ));
}

#[test]
fn not_in_a_segment() {
    let queue = FixedByteQueue::<2>::new();
    assert_eq!(queue.send(b""), Err(SendError::Failed((), Fault::NotShared)));
    assert_eq!(queue.try_recv(), Err(TryRecvError::Failed(Fault::NotShared)));
}

#[test]
fn the_largest() {
    let queue = queue(32 << 20);
    let _watchdog = watch_alone("the_largest");
    let message = text(3, 32 << 20);
    queue.send(&message).unwrap();
    assert!(*queue.recv_ref().unwrap() == message);
    queue.send(&message[1..]).unwrap();
    assert!(queue.recv().unwrap() == message[1..]);
}

/// Two send messages of all lengths, two receive them; each is as it was sent, and those of one
/// sender come in their order to one receiver.
#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 4_000;
    worlds(
        "streams_in_every_world",
        "",
        4,
        post,
        |post, i| {
            if i < 2 {
                for n in 0..COUNT {
                    let len = 16 + usize::try_from((n * 37 + i as u64) % 560).unwrap();
                    let mut room = post.out.loan(len).unwrap();
                    room[..8].copy_from_slice(&n.to_le_bytes());
                    room[8..16].copy_from_slice(&(i as u64).to_le_bytes());
                    room[16..].copy_from_slice(&text(n + i as u64, len - 16));
                    room.send().unwrap();
                }
                if post.step.fetch_add(1, SeqCst) == 1 {
                    post.out.close();
                }
            } else {
                let mut last = [None; 2];
                while let Ok(message) = post.out.recv_ref() {
                    let word = |at: usize| {
                        u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"))
                    };
                    let (n, sender) = (word(0), word(8));
                    let last = &mut last[usize::try_from(sender).unwrap()];
                    assert!(last.replace(n).is_none_or(|last| last < n));
                    assert!(message[16..] == text(n + sender, message.len() - 16));
                    post.sum.fetch_add(n + 1, SeqCst);
                }
            }
        },
        |post| assert_eq!(post.sum.load(SeqCst), COUNT * (COUNT + 1)),
    );
}

/// Room that a killed sender held is passed over, and the receivers that waited behind it carry on.
#[test]
fn killed_sender() {
    let post = post();
    let _watchdog = watch("killed_sender", &post);
    let victim = fork_child(|| {
        let mut room = post.out.loan(200).unwrap();
        room.fill(1);
        post.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it writes", || post.step.load(SeqCst) == 1);
    post.out.send(b"behind it").unwrap();
    let receiver = fork_child(|| assert_eq!(post.out.recv().unwrap(), b"behind it"));
    let sender = fork_child(|| post.out.send(&[2; 576]).unwrap()); // all there is
    receiver.until_waiting();
    sender.until_waiting();
    victim.kill9();
    receiver.succeeds();
    sender.succeeds();
    assert_eq!(post.out.recv().unwrap(), [2; 576]);
}

/// A message that a killed receiver was reading goes to another.
#[test]
fn killed_receiver() {
    let post = post();
    let _watchdog = watch("killed_receiver", &post);
    post.out.send(b"twice").unwrap();
    let victim = fork_child(|| {
        let _message = post.out.recv_ref().unwrap();
        post.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it reads", || post.step.load(SeqCst) == 1);
    let other = fork_child(|| assert_eq!(post.out.recv().unwrap(), b"twice"));
    other.until_waiting();
    victim.kill9();
    other.succeeds();
    assert_eq!(post.out.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn copies_by_fork_are_inert() {
    let queue = queue(1_024);
    let _watchdog = watch("copies_by_fork_are_inert", &queue);
    queue.send(b"read").unwrap();
    let (message, mut room) = (queue.recv_ref().unwrap(), queue.loan(4).unwrap());
    room.copy_from_slice(b"sent");
    let handles = core::cell::Cell::new(Some((message, room)));
    let child = fork_child(|| {
        let (message, room) = handles.take().unwrap(); // out of its own copy
        assert_eq!(message.give_back(), Err(Fault::Forked));
        assert_eq!(room.send(), Err(SendError::Failed((), Fault::Forked)));
        queue.send(b"child").unwrap();
    });
    child.succeeds();
    let (message, room) = handles.take().unwrap();
    assert_eq!(&*message, b"read");
    drop(message);
    room.send().unwrap();
    assert_eq!(
        (queue.recv().unwrap(), queue.recv().unwrap()),
        (b"sent".to_vec(), b"child".to_vec())
    );
}

/// A wait uses no processor time, and a signal's handler does not end it.
#[test]
fn waits_asleep() {
    let post = post();
    let _watchdog = watch("waits_asleep", &post);
    post.back.send(&[1; 64]).unwrap();
    let sender = fork_child(|| {
        common::catch_user_signals();
        let before = thread_cpu();
        post.back.send(b"second").unwrap();
        assert!(thread_cpu() - before < ms(60));
    });
    let receiver = fork_child(|| {
        common::catch_user_signals();
        let before = thread_cpu();
        assert_eq!(post.out.recv().unwrap(), b"at last");
        assert!(thread_cpu() - before < ms(60));
    });
    for child in [&sender, &receiver] {
        child.until_waiting();
        child.disturb_asleep(3, ms(2));
    }
    post.out.send(b"at last").unwrap();
    assert_eq!(post.back.recv().unwrap(), [1; 64]);
    receiver.succeeds();
    sender.succeeds();
    assert_eq!(post.back.recv().unwrap(), b"second");
}

/// Whatever lies in the memory: an answer or an error, no panic, no end of the process.
#[test]
fn foreign_bytes() {
    let _watchdog = watch_alone("foreign_bytes");
    let mut random = common::Random::new(7);
    let child = fork_child(|| {
        for round in 0..600 {
            let post = self::post();
            post.out.send(&text(round, 100)).unwrap();
            let bytes = random.bytes(size_of::<FixedByteQueue<9>>());
            let headers = bytes.len() - (9 * 80_usize).next_multiple_of(128);
            // The marks, the headers, or all; what the C library keeps in the other backend is none
            // of ours.
            let (at, len) = match round % 3 {
                0 => (0, 384),
                1 => (headers, 144),
                _ if cfg!(not(outlast_pthread)) => (0, bytes.len()),
                _ => continue,
            };
            scribble(&post.out, at, &bytes[at..at + len]);
            for _ in 0..4 {
                post.out.try_send(b"x").ok();
                post.out.send_timeout(&[7; 200], Duration::ZERO).ok();
                if let Ok(mut room) = post.out.try_loan(90) {
                    room.fill(1);
                    room.send_len(80).unwrap();
                }
                post.out.try_recv().ok();
                if let Ok(message) = post.out.try_recv_ref() {
                    assert!(message.len() <= post.out.capacity());
                    assert!(message.iter().map(|&b| u64::from(b)).sum::<u64>() <= 255 * 576);
                    message.give_back().unwrap();
                }
                post.out.recv_timeout(Duration::from_micros(10)).ok();
            }
            assert!(post.out.len() <= 9);
            let _text = format!("{post:?}");
            post.out.close();
            assert!(post.out.try_iter().take(20).count() <= 20);
        }
    });
    child.succeeds();
}
