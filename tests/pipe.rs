//! `Pipe`: whole messages of any length, ends that are noticed, deaths, in threads and processes.
#![cfg(not(outlast_loom))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, text, watch, worlds};
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::{
    Fault, FixedPipe, OpenError, Pipe, RecvError, RecvTimeoutError, SendError, SendTimeoutError,
    Shared, TryRecvError, TrySendError,
};
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

outlast::shared! {
    #[derive(Debug)]
    struct Line { pipe: FixedPipe<16>, step: AtomicU32, sum: AtomicU64 }
}

fn line() -> Shared<Line> {
    Shared::anonymous(Line {
        pipe: FixedPipe::new(),
        step: AtomicU32::new(0),
        sum: AtomicU64::new(0),
    })
    .unwrap()
}

fn pipe(capacity: usize) -> Shared<Pipe> {
    Shared::<Pipe>::with_capacity(capacity).unwrap()
}

fn again(pipe: &Shared<Pipe>) -> Shared<Pipe> {
    Shared::from_fd(pipe.try_clone_fd().unwrap()).unwrap()
}

#[test]
fn alone() {
    let here = pipe(500);
    let there = again(&here);
    let _watchdog = watch("alone", &here);
    assert_eq!(here.capacity(), 504);
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    assert_eq!(second.try_recv_bytes(), Err(TryRecvError::Empty));
    assert!(!second.try_poll().unwrap());
    for len in [0, 1, 55, 56, 57, 64, 120, 121, 400, 504, 0] {
        first.send_bytes(&text(9, len)).unwrap();
        assert!(second.try_poll().unwrap());
        assert_eq!(second.recv_bytes().unwrap(), text(9, len));
        second.try_send_bytes(&text(5, len)).unwrap();
        assert_eq!(first.try_recv_bytes().unwrap(), text(5, len));
    }
    first.send_bytes(&text(1, 450)).unwrap();
    assert_eq!(first.try_send_bytes(b""), Err(TrySendError::Full(())));
    assert_eq!(first.try_send_bytes(&text(1, 505)), Err(TrySendError::Failed((), Fault::TooLong)));
    let mut all = b"before".to_vec();
    assert_eq!(second.recv_bytes_into(&mut all), Ok(450));
    assert_eq!((&all[..6], &all[6..]), (&b"before"[..], &text(1, 450)[..]));
}

#[test]
fn time_passes() {
    let pipe = pipe(64);
    let _watchdog = watch("time_passes", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    let began = Instant::now();
    assert_eq!(first.recv_bytes_timeout(ms(20)), Err(RecvTimeoutError::TimedOut));
    assert!(began.elapsed() >= ms(20));
    first.send_bytes_deadline(b"1", began).unwrap();
    let again = Instant::now();
    assert_eq!(first.send_bytes_timeout(b"2", ms(20)), Err(SendTimeoutError::TimedOut(())));
    assert!(again.elapsed() >= ms(20));
    assert_eq!(second.recv_bytes_deadline(began).unwrap(), b"1");
    let again = Instant::now();
    assert!(!second.poll_timeout(ms(20)).unwrap());
    assert!(again.elapsed() >= ms(20));
    assert!(!second.poll_deadline(began).unwrap());
    let (mut all, again) = (Vec::new(), Instant::now());
    let late = Err(RecvTimeoutError::TimedOut);
    assert_eq!(second.recv_bytes_into_timeout(&mut all, ms(20)), late);
    assert_eq!(second.recv_bytes_into_deadline(&mut all, began), late);
    assert_eq!(second.try_recv_bytes_into(&mut all), Err(TryRecvError::Empty));
    assert!(again.elapsed() >= ms(20));
    first.send_bytes(b"345").unwrap();
    second.poll().unwrap();
    assert!(second.poll_deadline(began).unwrap());
    assert_eq!(second.recv_bytes_into_deadline(&mut all, began), Ok(3));
    drop(first);
    second.poll().unwrap(); // the end has come
    assert_eq!(second.try_recv_bytes_into(&mut all), Err(TryRecvError::Disconnected));
}

/// If a sender times out, the parts of its message that were sent are not received.
#[test]
fn given_up_in_the_middle() {
    let pipe = pipe(1_024);
    let _watchdog = watch("given_up_in_the_middle", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    let long = text(3, 5_000);
    assert_eq!(first.send_bytes_timeout(&long, ms(5)), Err(SendTimeoutError::TimedOut(())));
    assert_eq!(second.recv_bytes_timeout(ms(5)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(first.send_bytes_timeout(&long, ms(5)), Err(SendTimeoutError::TimedOut(())));
    std::thread::scope(|scope| {
        scope.spawn(|| first.send_bytes(b"after").unwrap());
        assert_eq!(second.recv_bytes().unwrap(), b"after");
    });
}

#[test]
fn capacities() {
    for bad in [0, (1 << 30) + 1, usize::MAX] {
        let made = Shared::<Pipe>::with_capacity(bad);
        assert!(matches!(made, Err(OpenError::InvalidCapacity(of)) if of == bad));
    }
}

#[test]
fn by_name() {
    let name = format!("outlast-test-pipe-{}", std::process::id());
    let here = Shared::<Pipe>::create_with_capacity(&name, 100).unwrap();
    let there = Shared::<Pipe>::open(&name).unwrap();
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    first.send_bytes(b"by name").unwrap();
    assert_eq!(second.recv_bytes().unwrap(), b"by name");
}

#[test]
fn not_in_a_segment() {
    let pipe = FixedPipe::<4>::new();
    assert_eq!(pipe.first().unwrap_err(), Fault::NotShared);
}

/// Messages much longer than the ring, both ways at the same time.
#[test]
fn the_longest() {
    let pipe = pipe(64 * 1024);
    let _watchdog = watch("the_longest", &pipe);
    let long = text(1, (16 << 20) + 1);
    let child = fork_child(|| {
        let second = pipe.second().unwrap();
        let got = second.recv_bytes().unwrap();
        second.send_bytes(&got).unwrap();
    });
    let first = pipe.first().unwrap();
    first.send_bytes(&long).unwrap();
    assert!(first.recv_bytes().unwrap() == long);
    child.succeeds();
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
}

/// Two at each side send and receive messages of all lengths; each is received once, as it was
/// sent.
#[test]
fn streams_in_every_world() {
    const COUNT: u64 = 1_500;
    worlds(
        "streams_in_every_world",
        "",
        4,
        line,
        |line, i| {
            let wait = || eventually("all are there", || line.step.load(SeqCst) >= 4);
            if i < 2 {
                let first = line.pipe.first().unwrap();
                line.step.fetch_add(1, SeqCst);
                wait();
                for n in 0..COUNT {
                    // Most are shorter than the ring of 504 bytes, some longer.
                    let len = 8 + usize::try_from((n * 37 + i as u64) % 800).unwrap();
                    let mut message = n.to_le_bytes().to_vec();
                    message.extend(text(n, len - 8));
                    first.send_bytes(&message).unwrap();
                }
            } else {
                let second = line.pipe.second().unwrap();
                line.step.fetch_add(1, SeqCst);
                wait();
                while let Ok(message) = second.recv_bytes() {
                    let n = u64::from_le_bytes(message[..8].try_into().expect("8 bytes"));
                    assert!(message[8..] == text(n, message.len() - 8));
                    line.sum.fetch_add(n + 1, SeqCst);
                }
            }
        },
        |line| assert_eq!(line.sum.load(SeqCst), COUNT * (COUNT + 1)),
    );
}

/// What is there comes before the end, which is none any more when the side is taken again.
#[test]
fn the_other_side_leaves() {
    let pipe = pipe(1_000);
    let _watchdog = watch("the_other_side_leaves", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    let clone = second.clone();
    drop(second);
    clone.send_bytes(b"last").unwrap();
    drop(clone);
    assert!(first.try_poll().unwrap());
    assert_eq!(first.recv_bytes().unwrap(), b"last");
    assert!(first.try_poll().unwrap());
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    assert_eq!(first.try_recv_bytes(), Err(TryRecvError::Disconnected));
    assert_eq!(first.recv_bytes_timeout(ms(5)), Err(RecvTimeoutError::Disconnected));
    assert_eq!(first.send_bytes(b""), Err(SendError::Disconnected(())));
    assert_eq!(first.try_send_bytes(b""), Err(TrySendError::Disconnected(())));
    let second = pipe.second().unwrap();
    assert_eq!(first.try_recv_bytes(), Err(TryRecvError::Empty));
    first.send_bytes(b"again").unwrap();
    assert_eq!(second.recv_bytes().unwrap(), b"again");
}

/// Threads that wait for a side that is killed learn of it.
#[test]
fn the_other_side_is_killed() {
    let line = line();
    let _watchdog = watch("the_other_side_is_killed", &line);
    let holder = fork_child(|| {
        let _first = line.pipe.first().unwrap();
        line.step.store(1, SeqCst);
        sleep_for_ever();
    });
    eventually("it is there", || line.step.load(SeqCst) == 1);
    let receiver = fork_child(|| {
        let second = line.pipe.second().unwrap();
        assert_eq!(second.recv_bytes(), Err(RecvError::Disconnected));
    });
    let sender = fork_child(|| {
        let second = line.pipe.second().unwrap();
        assert_eq!(second.send_bytes(&[7; 9_000]), Err(SendError::Disconnected(())));
    });
    receiver.until_waiting();
    sender.until_waiting();
    holder.kill9();
    receiver.succeeds();
    sender.succeeds();
}

/// A sender that is killed in the middle of a message is followed by another of its side, whose
/// message comes whole.
#[test]
fn killed_in_the_middle() {
    let line = line();
    let _watchdog = watch("killed_in_the_middle", &line);
    let sender = fork_child(|| {
        let first = line.pipe.first().unwrap();
        line.step.store(1, SeqCst);
        first.send_bytes(&[1; 9_000]).unwrap();
    });
    sender.until_waiting(); // for room, as no process receives
    let first = line.pipe.first().unwrap(); // so that the side is not gone
    let receiver = fork_child(|| {
        let second = line.pipe.second().unwrap();
        line.step.store(2, SeqCst);
        assert_eq!(second.recv_bytes().unwrap(), b"whole");
    });
    // The receiver may have read parts by now, or not.
    sender.signal(libc::SIGSTOP);
    sender.kill9();
    first.send_bytes(b"whole").unwrap();
    receiver.succeeds();
}

/// The rest of a message whose receiver was killed in the middle is passed over.
#[test]
fn a_receiver_killed_in_the_middle() {
    let line = line();
    let _watchdog = watch("a_receiver_killed_in_the_middle", &line);
    let second = line.pipe.second().unwrap();
    let sender = fork_child(|| {
        let first = line.pipe.first().unwrap();
        first.send_bytes(&[1; 9_000]).unwrap();
        first.send_bytes(b"whole").unwrap();
    });
    sender.until_waiting(); // for room
    sender.signal(libc::SIGSTOP);
    sender.until_stopped();
    let victim = fork_child(|| {
        let second = line.pipe.second().unwrap();
        second.recv_bytes().unwrap();
    });
    victim.until_waiting(); // for more
    victim.kill9();
    sender.signal(libc::SIGCONT);
    assert_eq!(second.recv_bytes().unwrap(), b"whole");
    sender.succeeds();
}

/// A receiver that is killed while it waits leaves its turn to another of its side.
#[test]
fn killed_receiver() {
    let line = line();
    let _watchdog = watch("killed_receiver", &line);
    let victim = fork_child(|| {
        line.pipe.second().unwrap().recv_bytes().ok();
    });
    victim.until_waiting();
    let heir = fork_child(|| {
        let second = line.pipe.second().unwrap();
        assert_eq!(second.recv_bytes().unwrap(), b"for the heir");
    });
    heir.until_waiting();
    victim.kill9();
    line.pipe.first().unwrap().send_bytes(b"for the heir").unwrap();
    heir.succeeds();
}

/// The copies of handles that a fork makes do nothing.
#[test]
fn copies_by_fork_are_inert() {
    let pipe = pipe(1_000);
    let _watchdog = watch("copies_by_fork_are_inert", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    first.send_bytes(b"parent").unwrap();
    fork_child(|| {
        assert_eq!(first.send_bytes(b""), Err(SendError::Failed((), Fault::Forked)));
        assert_eq!(second.recv_bytes(), Err(RecvError::Failed(Fault::Forked)));
        assert_eq!(second.try_poll(), Err(Fault::Forked));
    })
    .succeeds();
    assert_eq!(second.recv_bytes().unwrap(), b"parent");
}

/// A peer may write any bytes: a message is never longer than what is in the pipe.
#[test]
fn a_message_longer_than_what_is_there() {
    let pipe = Shared::anonymous(FixedPipe::<64>::new()).unwrap();
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    first.send_bytes(&[0xa5; 8]).unwrap();
    let segment = std::fs::File::from(pipe.try_clone_fd().unwrap());
    let mut bytes = vec![0; segment.metadata().unwrap().len().try_into().unwrap()];
    segment.read_exact_at(&mut bytes, 0).unwrap();
    let message = bytes.windows(8).position(|eight| eight == [0xa5; 8]).unwrap();
    // The header lies right before the message, with its length in the low bits.
    let header = u64::from_le_bytes(bytes[message - 8..message].try_into().unwrap());
    segment.write_all_at(&(header + 100_000).to_le_bytes(), message as u64 - 8).unwrap();
    assert_eq!(second.recv_bytes(), Err(RecvError::Failed(Fault::Corrupt)));
}
