//! Long runs in which senders and receivers are processes that are killed at random and replaced.
//! Each message is received once.
//!
//! `OUTLAST_MESSAGES` sets the number of messages of each run.
#![cfg(not(outlast_loom))]
#![expect(
    unsafe_code,
    reason = "takes memory that the children share, without the crate under test"
)]
mod common;

use common::{
    Child, KILLED, OK, Random, complain, eventually, fork_child, plain_shared, watch_for,
};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU8, AtomicU64};
use outlast::spsc::{self, Ring};
use outlast::{
    ByteQueue, Channel, FixedPriorityQueue, FixedQueue, Options, Pipe, Queue, RecvError, Shared,
    TryRecvError, ValueQueue,
};
use std::time::{Duration, Instant};

const CAPACITY: usize = 256;

fn messages() -> usize {
    let number = std::env::var("OUTLAST_MESSAGES").ok().and_then(|text| text.parse().ok());
    number.unwrap_or(200_000)
}

/// A record of what became of each message, in memory that the crate under test does not know.
#[derive(Clone, Copy)]
struct Books {
    next: &'static AtomicU64,
    /// 1 before the message is sent, 2 afterwards.
    sent: &'static [AtomicU8],
    /// How often the message was received.
    received: &'static [AtomicU8],
    /// How often an acknowledgement of the message has returned.
    acknowledged: &'static [AtomicU8],
}

fn column(len: usize) -> &'static [AtomicU8] {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: new memory; nothing is replaced.
    let at = unsafe { libc::mmap(core::ptr::null_mut(), len, access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: that many zeros, never unmapped.
    unsafe { core::slice::from_raw_parts(at.cast(), len) }
}

impl Books {
    fn new(len: usize) -> Self {
        let [sent, received, acknowledged] = [column(len), column(len), column(len)];
        Books { next: plain_shared(), sent, received, acknowledged }
    }

    /// Sends numbers until all have been handed out.
    fn send_all(self, send: impl Fn(u64)) {
        loop {
            let n = self.next.fetch_add(1, Relaxed);
            let Some(state) = usize::try_from(n).ok().and_then(|n| self.sent.get(n)) else {
                return;
            };
            state.store(1, SeqCst);
            send(n);
            state.store(2, SeqCst);
        }
    }

    fn note(column: &[AtomicU8], n: u64) {
        column[usize::try_from(n).unwrap()].fetch_add(1, SeqCst);
    }

    /// The number of messages whose record fulfils `is_so`.
    fn count(self, is_so: impl Fn(u8, u8, u8) -> bool) -> u64 {
        let rows = self.sent.iter().zip(self.received).zip(self.acknowledged);
        let is_so = |((s, r), a): &((&AtomicU8, &AtomicU8), &AtomicU8)| {
            is_so(s.load(SeqCst), r.load(SeqCst), a.load(SeqCst))
        };
        rows.filter(is_so).count() as u64
    }
}

/// Processes in two roles, which are killed at random while the first role is played.
struct Crew<'a> {
    roles: [&'a dyn Fn(); 2],
    members: Vec<(usize, Option<Child>)>,
    killed: [u64; 2],
}

impl<'a> Crew<'a> {
    fn new(each: usize, roles: [&'a dyn Fn(); 2]) -> Self {
        let members = (0..2 * each).map(|i| (i % 2, Some(fork_child(roles[i % 2])))).collect();
        Crew { roles, members, killed: [0; 2] }
    }

    /// Kills and replaces processes until all those of the first role have ended by themselves.
    fn kill(&mut self) {
        let mut random = Random::new(11);
        while self.members.iter().any(|(role, child)| *role == 0 && child.is_some()) {
            std::thread::sleep(random.micros(2_000));
            let victim = random.index(self.members.len());
            let (role, child) = &mut self.members[victim];
            let Some(alive) = child.take() else { continue };
            alive.signal(libc::SIGKILL);
            match alive.wait() {
                KILLED => {
                    self.killed[*role] += 1;
                    *child = Some(fork_child(self.roles[*role]));
                }
                exit => assert_eq!(exit, OK),
            }
        }
    }

    fn ends(&mut self) {
        self.members.iter_mut().filter_map(|(_, child)| child.take()).for_each(Child::succeeds);
    }

    fn report(&self, name: &str, what: &str, books: Books, began: Instant) {
        let [senders, receivers] = self.killed;
        complain(&format!(
            "{name}: {} messages, {senders} senders and {receivers} receivers killed, {what}, {:.1} s\n",
            books.sent.len(),
            began.elapsed().as_secs_f64()
        ));
    }
}

fn watchdog(name: &str, describe: impl Fn() -> String + Send + 'static) -> common::Watchdog {
    watch_for(Duration::from_secs(580), name, describe)
}

/// Each message was received at most once. A missing one was with a receiver that was killed.
fn judge_plain(name: &str, books: Books, crew: &Crew<'_>, began: Instant) {
    let missing = books.count(|sent, received, _| sent == 2 && received == 0);
    let doubled = books.count(|_, received, _| received > 1);
    let foreign = books.count(|sent, received, _| sent == 0 && received > 0);
    crew.report(name, &format!("{missing} gone with a receiver, {doubled} doubled"), books, began);
    assert_eq!((doubled, foreign), (0, 0));
    assert!(missing <= crew.killed[1], "{missing} are missing");
}

#[test]
fn kills_of_queue() {
    let queue = Shared::<Queue<u64>>::with_capacity(CAPACITY).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_queue", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    let sends = || books.send_all(|n| queue.send(n).unwrap());
    let receives = || queue.iter().for_each(|n| Books::note(books.received, n));
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    // Messages of the processes that were killed last come back.
    eventually("all is received", || queue.join_timeout(Duration::from_millis(10)).unwrap());
    queue.close();
    crew.ends();
    judge_plain("Queue", books, &crew, began);
}

/// Makes message `n`. Its length and its bytes depend on `n`.
fn letter(n: u64) -> Vec<u8> {
    let rest = (0..n % 300).map(|i| (n + i).to_le_bytes()[0]);
    n.to_le_bytes().into_iter().chain(rest).collect()
}

/// The number of a message, which must be whole.
fn number(message: &[u8]) -> u64 {
    let n = u64::from_le_bytes(message[..8].try_into().unwrap());
    assert!(message == letter(n), "message {n} is torn");
    n
}

/// No message is missing, since each is noted before it is consumed. Only a killed receiver has its
/// message received again.
fn judge_in_place(name: &str, books: Books, crew: &Crew<'_>, began: Instant) {
    let missing = books.count(|sent, received, _| sent == 2 && received == 0);
    let again = books.count(|_, received, _| received > 1);
    let foreign = books.count(|sent, received, _| sent == 0 && received > 0);
    crew.report(name, &format!("{missing} missing, {again} seen again"), books, began);
    assert_eq!((missing, foreign), (0, 0));
    assert!(again <= crew.killed[1], "{again} seen again");
}

/// Messages are written and read in place. Each is whole, and none is missing, since each is noted
/// before it is consumed.
#[test]
fn kills_of_bytes() {
    let queue = Shared::<ByteQueue>::with_capacity(64 * CAPACITY).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_bytes", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    let sends = || {
        books.send_all(|n| {
            let letter = letter(n);
            let mut room = queue.loan(letter.len() + 50).unwrap();
            room[..letter.len()].copy_from_slice(&letter);
            room.send_len(letter.len()).unwrap();
        });
    };
    let receives = || {
        while let Ok(message) = queue.recv_ref() {
            Books::note(books.received, number(&message));
        }
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    queue.close();
    crew.ends(); // they have received what the killed ones left
    judge_in_place("ByteQueue", books, &crew, began);
}

/// Messages are copied. Each is whole, and is missing only if its receiver was killed.
#[test]
fn kills_of_bytes_copied() {
    let queue = Shared::<ByteQueue>::with_capacity(64 * CAPACITY).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_bytes_copied", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    let sends = || books.send_all(|n| queue.send(&letter(n)).unwrap());
    let receives = || {
        for message in queue.iter() {
            let n = u64::from_le_bytes(message[..8].try_into().unwrap());
            Books::note(books.received, n); // first: a kill before this loses the message
            assert!(message == letter(n), "message {n} is torn");
        }
        assert_eq!(queue.recv(), Err(RecvError::Closed)); // and no fault
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    queue.close();
    crew.ends(); // they have received what the killed ones left
    judge_plain("ByteQueue, recv", books, &crew, began);
}

#[test]
fn kills_of_channel() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(CAPACITY).unwrap();
    let shown = channel.clone();
    let _watchdog = watchdog("kills_of_channel", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    // These keep both ends held while processes are replaced.
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let sends = || {
        let sender = channel.sender().unwrap();
        books.send_all(|n| sender.send(n).unwrap());
    };
    let receives = || {
        let receiver = channel.receiver().unwrap();
        receiver.iter().for_each(|n| Books::note(books.received, n));
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    drop(sender);
    crew.ends();
    // The receivers were disconnected only after they had received what the killed ones left.
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    judge_plain("Channel", books, &crew, began);
}

/// Counted senders copy their messages into a channel, and counted receivers read them in place.
#[test]
fn kills_of_byte_channel() {
    let channel = Shared::<Channel<ByteQueue>>::with_capacity(64 * CAPACITY).unwrap();
    let shown = channel.clone();
    let _watchdog = watchdog("kills_of_byte_channel", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    // These keep both ends held while processes are replaced.
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let sends = || {
        let sender = channel.sender().unwrap();
        books.send_all(|n| sender.send(&letter(n)).unwrap());
    };
    let receives = || {
        let receiver = channel.receiver().unwrap();
        while let Ok(message) = receiver.recv_ref() {
            Books::note(books.received, number(&message));
        }
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    drop(sender);
    crew.ends();
    // The receivers were disconnected only after they had received what the killed ones left.
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    judge_in_place("ByteChannel", books, &crew, began);
}

/// Some messages go through in parts. No receiver joins parts of different messages.
#[test]
fn kills_of_pipe() {
    let pipe = Shared::<Pipe>::with_capacity(248).unwrap();
    let shown = pipe.clone();
    let _watchdog = watchdog("kills_of_pipe", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    // These keep both sides held while processes are replaced.
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    let sends = || {
        let side = pipe.first().unwrap();
        books.send_all(|n| side.send_bytes(&letter(n)).unwrap());
    };
    let receives = || {
        let side = pipe.second().unwrap();
        while let Ok(message) = side.recv_bytes() {
            Books::note(books.received, number(&message));
        }
        assert_eq!(side.recv_bytes(), Err(RecvError::Disconnected));
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    drop(first);
    crew.ends();
    assert_eq!(second.try_recv_bytes(), Err(TryRecvError::Disconnected));
    judge_plain("Pipe", books, &crew, began);
}

#[test]
fn kills_of_priority() {
    let queue = Shared::anonymous(FixedPriorityQueue::<u64, 3, CAPACITY>::new()).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_priority", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    let level = |n: u64| usize::try_from(n % 3).unwrap();
    let sends = || books.send_all(|n| queue.send(level(n), n).unwrap());
    let receives = || {
        for (priority, n) in queue.iter() {
            assert_eq!(priority, level(n));
            Books::note(books.received, n);
        }
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    eventually("all is received", || queue.join_timeout(Duration::from_millis(10)).unwrap());
    queue.close();
    crew.ends();
    judge_plain("PriorityQueue", books, &crew, began);
}

/// The same in a channel. A receiver is disconnected only after the messages of the killed ones
/// were received, in all levels.
#[test]
fn kills_of_priority_channel() {
    let channel =
        Shared::anonymous(Channel::new(FixedPriorityQueue::<u64, 3, CAPACITY>::new())).unwrap();
    let shown = channel.clone();
    let _watchdog = watchdog("kills_of_priority_channel", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    // These keep both ends held while processes are replaced.
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let level = |n: u64| usize::try_from(n % 3).unwrap();
    let sends = || {
        let sender = channel.sender().unwrap();
        books.send_all(|n| sender.send(level(n), n).unwrap());
    };
    let receives = || {
        let receiver = channel.receiver().unwrap();
        for (priority, n) in &receiver {
            assert_eq!(priority, level(n));
            Books::note(books.received, n);
        }
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    };
    let mut crew = Crew::new(2, [&sends, &receives]);
    crew.kill();
    drop(sender);
    crew.ends();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    judge_plain("Channel<PriorityQueue>", books, &crew, began);
}

/// Kills senders and workers of a queue whose messages are acknowledged. Each message is worked at
/// at least once and acknowledged once; only a killed worker has it worked at again.
///
/// `work` receives a message, calls its argument with the message's number, and acknowledges the
/// message. It returns the number, or `None` if the queue is closed. `finish` waits in `join`, and
/// closes the queue.
fn kill_workers(
    name: &str,
    messages: usize,
    send: impl Fn(u64),
    work: impl Fn(&dyn Fn(u64)) -> Option<u64>,
    finish: impl FnOnce(),
) {
    let (books, began) = (Books::new(messages), Instant::now());
    let sends = || books.send_all(&send);
    let works = || {
        while let Some(n) = work(&|n| Books::note(books.received, n)) {
            Books::note(books.acknowledged, n);
        }
    };
    let mut crew = Crew::new(2, [&sends, &works]);
    crew.kill();
    finish();
    crew.ends();
    let missing = books.count(|sent, received, _| sent == 2 && received == 0);
    let again = books.count(|_, received, _| received > 1);
    let foreign = books.count(|sent, received, _| sent == 0 && received > 0);
    let twice = books.count(|_, _, acknowledged| acknowledged > 1);
    let silent = books.count(|sent, _, acknowledged| sent == 2 && acknowledged == 0);
    let what = format!("{missing} missing, {again} done again, {twice} acknowledged twice");
    crew.report(name, &what, books, began);
    assert_eq!((missing, foreign, twice), (0, 0, 0));
    // A worker killed before the end of its `ack` has its message done again. One killed in the
    // `ack` or right after it has not noted the acknowledgement.
    assert!(again + silent <= crew.killed[1], "{again} again, {silent} not noted");
}

fn kill_workers_at_numbers(name: &str, messages: usize, queue: &Queue<u64>) {
    let work = |received: &dyn Fn(u64)| {
        let job = queue.recv_ack().ok()?;
        received(*job);
        Some(job.ack().unwrap())
    };
    let finish = || {
        queue.join().unwrap();
        queue.close();
    };
    kill_workers(name, messages, |n| queue.send(n).unwrap(), work, finish);
}

#[test]
fn kills_of_acknowledged() {
    let queue = Shared::<Queue<u64>>::with_capacity(CAPACITY).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_acknowledged", move || format!("{shown:?}"));
    kill_workers_at_numbers("recv_ack", messages(), &queue);
}

/// A worker waits for the other's acknowledgement or death before it receives a message.
#[test]
fn kills_of_acknowledged_one_at_a_time() {
    let queue = Options::new().in_flight(1).with_capacity::<Queue<u64>>(CAPACITY).unwrap();
    let fixed = Shared::anonymous(FixedQueue::<u64, CAPACITY, 1>::new()).unwrap();
    let shown = (queue.clone(), fixed.clone());
    let _watchdog = watchdog("kills_of_acknowledged_one_at_a_time", move || format!("{shown:?}"));
    let (queue, fixed): (&Queue<u64>, &Queue<u64>) = (&queue, &fixed);
    for (name, queue) in [("one in flight", queue), ("one in flight, fixed", fixed)] {
        assert_eq!(queue.in_flight_capacity(), 1);
        kill_workers_at_numbers(&format!("recv_ack, {name}"), messages() / 8, queue);
    }
}

/// The table has an entry for each worker, and none for one that has just been killed.
#[test]
fn kills_of_acknowledged_two_at_a_time() {
    let queue = Shared::anonymous(FixedQueue::<u64, CAPACITY, 2>::new()).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_acknowledged_two_at_a_time", move || format!("{shown:?}"));
    kill_workers_at_numbers("recv_ack, two in flight", messages() / 4, &queue);
    assert_eq!(queue.in_flight_capacity(), 2);
}

/// Messages of one to five blocks. The in-flight area has room for a few of them.
#[test]
fn kills_of_acknowledged_bytes() {
    let queue = Shared::<ByteQueue>::with_capacity(64 * 16).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_acknowledged_bytes", move || format!("{shown:?}"));
    let work = |received: &dyn Fn(u64)| {
        let job = queue.recv_ack().ok()?;
        let n = number(&job);
        received(n);
        job.ack().unwrap();
        Some(n)
    };
    let finish = || {
        queue.join().unwrap();
        queue.close();
    };
    let send = |n| queue.send(&letter(n)).unwrap();
    kill_workers("recv_ack of bytes", messages() / 2, send, work, finish);
}

#[test]
fn kills_of_acknowledged_values() {
    let queue = Shared::<ValueQueue<(u64, String)>>::with_capacity(64 * CAPACITY).unwrap();
    let shown = queue.clone();
    let _watchdog = watchdog("kills_of_acknowledged_values", move || format!("{shown:?}"));
    let text = |n: u64| "x".repeat(usize::try_from(n % 150).unwrap());
    let work = |received: &dyn Fn(u64)| {
        let job = queue.recv_ack().ok()?;
        let n = job.0;
        assert!(job.1 == text(n), "message {n} is torn");
        received(n);
        job.ack().unwrap();
        Some(n)
    };
    let finish = || {
        queue.join().unwrap();
        queue.close();
    };
    let send = |n| queue.send(&(n, text(n))).unwrap();
    kill_workers("recv_ack of values", messages() / 4, send, work, finish);
}

#[test]
fn kills_of_spsc() {
    let ring = Shared::<Ring<u64>>::with_capacity(CAPACITY).unwrap();
    let shown = ring.clone();
    let _watchdog = watchdog("kills_of_spsc", move || format!("{shown:?}"));
    let (books, began) = (Books::new(messages()), Instant::now());
    let all = messages() as u64;
    let sends = || {
        let producer = ring.producer_timeout(common::PATIENCE).unwrap();
        let mut n = ring.sent();
        while n < all {
            match producer.send(n) {
                Ok(()) => n += 1,
                Err(spsc::SendError::PeerDied(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let receives = || {
        let mut consumer = ring.consumer_timeout(common::PATIENCE).unwrap();
        let mut n = ring.received();
        while n < all {
            match consumer.read_chunk(64) {
                Ok(chunk) => {
                    let len = chunk.len();
                    for i in 0..len {
                        assert_eq!(chunk.get(i), Some(n), "message {n}");
                        books.received[usize::try_from(n).unwrap()].store(1, SeqCst);
                        n += 1;
                    }
                    chunk.consume(len).unwrap();
                }
                Err(spsc::RecvError::PeerDied) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let mut crew = Crew::new(1, [&sends, &receives]);
    crew.kill();
    crew.ends();
    let missing = books.count(|_, received, _| received == 0);
    crew.report("spsc", &format!("{missing} missing, each at its index"), books, began);
    assert_eq!((missing, ring.sent(), ring.received()), (0, all, all));
}
