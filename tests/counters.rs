//! Counters that come round: each is set close to its end, and the primitive is used across it.
#![cfg(not(outlast_loom))]
mod common;

use common::{ms, watch};
use outlast::log::{Journal, Level};
use outlast::queue::IN_FLIGHT;
use outlast::spsc::Ring;
use outlast::{
    ByteQueue, Channel, Pipe, Queue, RecvError, Shareable, Shared, TryRecvError, TrySendError,
};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// The bytes of a value, past all its protocols.
struct Bytes {
    file: File,
    value: u64,
}

impl Bytes {
    fn of<T: ?Sized + Shareable + Sync + 'static>(shared: &Shared<T>) -> Self {
        let bytes = Bytes { file: File::from(shared.try_clone_fd().unwrap()), value: 0 };
        Bytes { value: bytes.get(104), ..bytes }
    }

    fn get(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, self.value + at).unwrap();
        u64::from_ne_bytes(word)
    }

    fn put(&self, at: u64, word: u64) {
        self.file.write_all_at(&word.to_ne_bytes(), self.value + at).unwrap();
    }

    fn put_half(&self, at: u64, word: u32) {
        self.file.write_all_at(&word.to_ne_bytes(), self.value + at).unwrap();
    }

    /// The word in the first `len` bytes that each of some calls of `act` makes larger by one.
    fn counted_by(&self, len: u64, act: impl Fn()) -> u64 {
        let look = || (0..len).step_by(8).map(|at| self.get(at)).collect::<Vec<_>>();
        let looks = [(); 4].map(|()| {
            act();
            look()
        });
        let grows = |&at: &usize| looks.windows(2).all(|two| two[0][at] + 1 == two[1][at]);
        let mut found = (0..looks[0].len()).filter(grows);
        let at = found.next().expect("a word that counts");
        assert_eq!(found.next(), None, "one only");
        at as u64 * 8
    }
}

/// Where the slots of a queue of numbers are. Each takes 16 bytes.
fn slots_of_queue() -> u64 {
    <Queue<u64> as Shareable>::layout().fields[0].offset as u64
}

#[test]
fn laps_of_a_queue() {
    for capacity in [1, 2, 3, 16] {
        let queue = Shared::<Queue<u64>>::with_capacity(capacity).unwrap();
        let _watchdog = watch("laps_of_a_queue", &queue);
        let (bytes, slots) = (Bytes::of(&queue), slots_of_queue());
        let lap = (1 << 40) - 3;
        bytes.put(0, lap << 24);
        bytes.put(128, lap << 24);
        (0..capacity as u64).for_each(|i| bytes.put(slots + 16 * i, lap << 16));
        for n in 0..10 * capacity as u64 {
            queue.try_send(n).unwrap();
            match n % 4 {
                0 => assert_eq!(queue.try_recv(), Ok(n)),
                1 => assert_eq!(queue.recv_ack().unwrap().ack(), Ok(n)),
                2 => {
                    queue.recv_ack().unwrap().nack();
                    assert_eq!(queue.recv_ack().map(|back| (*back, back.attempts())), Ok((n, 1)));
                    assert_eq!(queue.recv(), Ok(n));
                }
                _ => drop((queue.recv_ref().unwrap(), queue.try_loan())),
            }
            assert!(queue.is_empty() && queue.join_timeout(ms(0)).unwrap());
            assert_eq!((queue.len(), queue.try_recv()), (0, Err(TryRecvError::Empty)));
        }
        for n in 0..capacity as u64 {
            queue.try_send(n).unwrap();
        }
        assert!(queue.is_full() && queue.try_send(7).is_err());
        assert_eq!(queue.drain().len(), capacity);
    }
}

/// The next position of the senders is in lap 0, and the slot that they wait for is in the last
/// lap.
#[test]
fn a_full_queue_across_the_last_lap() {
    for (capacity, passed) in [(1, 0), (2, 0), (2, 1), (3, 2), (16, 5)] {
        let queue = Shared::<Queue<u64>>::with_capacity(capacity).unwrap();
        let _watchdog = watch("a_full_queue_across_the_last_lap", &queue);
        let (bytes, slots) = (Bytes::of(&queue), slots_of_queue());
        let last_lap = (1 << 40) - 1;
        bytes.put(0, last_lap << 24);
        bytes.put(128, last_lap << 24);
        (0..capacity as u64).for_each(|i| bytes.put(slots + 16 * i, last_lap << 16));
        for n in 0..passed {
            queue.try_send(n).unwrap();
            assert_eq!(queue.try_recv(), Ok(n));
        }
        for n in 0..capacity as u64 {
            queue.try_send(n).unwrap();
        }
        assert_eq!((queue.len(), queue.is_full()), (capacity, true));
        assert_eq!(queue.try_send(7), Err(TrySendError::Full(7)));
        assert_eq!(queue.drain(), (0..capacity as u64).collect::<Vec<_>>());
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty));
    }
}

#[test]
fn laps_of_a_byte_queue() {
    for lap in [1_u64 << 25, 1 << 32, 1 << 39, 1 << 40].map(|end| end - 3) {
        let queue = Shared::<ByteQueue>::with_capacity(512).unwrap();
        let _watchdog = watch("laps_of_a_byte_queue", &queue);
        let bytes = Bytes::of(&queue);
        [0, 128, 256].into_iter().for_each(|mark| bytes.put(mark, lap << 24));
        for n in 0..200_usize {
            let message = vec![n.to_le_bytes()[0]; n * 37 % 500];
            queue.try_send(&message).unwrap();
            if n % 3 == 0 {
                queue.try_recv_ref().unwrap().give_back().unwrap();
            }
            assert_eq!(queue.len(), 1);
            assert_eq!(queue.try_recv(), Ok(message));
            assert_eq!((queue.len(), queue.is_empty()), (0, true));
        }
        // What has come so far is opened.
        drop(Shared::<ByteQueue>::from_fd(queue.try_clone_fd().unwrap()).unwrap());
        (0..8).for_each(|_| queue.try_send(b"").unwrap());
        assert!(queue.try_send(b"").is_err());
        assert_eq!(queue.try_iter().count(), 8);
    }
}

/// The lap of a header has 25 bits: one of long ago is wiped before its lap comes again.
#[test]
fn headers_of_long_ago() {
    let queue = Shared::<ByteQueue>::with_capacity(512).unwrap();
    let _watchdog = watch("headers_of_long_ago", &queue);
    let bytes = Bytes::of(&queue);
    let header =
        |block: u64| <ByteQueue as Shareable>::layout().fields[0].offset as u64 + 16 * block;
    (0..8).for_each(|_| queue.send(b"").unwrap());
    (0..8).for_each(|_| drop(queue.recv().unwrap()));
    assert!((0..8).all(|block| bytes.get(header(block)) != 0));
    let lap = (1 << 20) + 2;
    [0, 128, 256].into_iter().for_each(|mark| bytes.put(mark, lap << 24));
    for _ in 0..9 {
        queue.send(&[1; 512]).unwrap(); // a lap
        queue.recv().unwrap();
    }
    for block in 1..8 {
        assert_eq!(bytes.get(header(block)) & 7, 0, "block {block}");
    }
}

#[test]
fn returned_messages() {
    for end in [1 << 32, 0_u64] {
        let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
        let _watchdog = watch("returned_messages", &queue);
        let (bytes, slots) = (Bytes::of(&queue), slots_of_queue());
        queue.send(7).unwrap();
        let returned = bytes.counted_by(slots, || queue.recv_ack().unwrap().nack());
        assert_eq!(queue.recv(), Ok(7));
        assert_eq!(queue.try_recv(), Err(TryRecvError::Empty)); // `searched` follows
        bytes.put(returned, u64::wrapping_sub(end, 5));
        bytes.put(returned + 8, u64::wrapping_sub(end, 5));
        queue.send(8).unwrap();
        for attempts in 0..10 {
            let delivery = queue.try_recv_ack().unwrap();
            assert_eq!((*delivery, delivery.attempts()), (8, attempts));
            delivery.nack();
        }
        assert_eq!(queue.recv(), Ok(8));
    }
}

/// Returned messages are found, however many came back since the last search in vain.
#[test]
fn returned_messages_that_nobody_looked_for() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("returned_messages_that_nobody_looked_for", &queue);
    let (bytes, slots) = (Bytes::of(&queue), slots_of_queue());
    queue.send(7).unwrap();
    let returned = bytes.counted_by(slots, || queue.recv_ack().unwrap().nack());
    let delivery = queue.try_recv_ack().unwrap();
    // As after 2^32 more.
    bytes.put(returned, bytes.get(returned + 8).wrapping_add((1 << 32) - 1));
    delivery.nack();
    assert_eq!(queue.try_recv_ack().map(|delivery| *delivery), Ok(7));
}

#[test]
fn returned_byte_messages() {
    for end in [1 << 32, 0_u64] {
        let queue = Shared::<ByteQueue>::with_capacity(512).unwrap();
        let _watchdog = watch("returned_byte_messages", &queue);
        let bytes = Bytes::of(&queue);
        let marks = <ByteQueue as Shareable>::layout().fields[0].offset as u64;
        queue.send(b"7").unwrap();
        let give_back = || queue.try_recv_ref().unwrap().give_back().unwrap();
        let returned = bytes.counted_by(marks, give_back);
        bytes.put(returned, u64::wrapping_sub(end, 5));
        bytes.put(returned + 8, u64::wrapping_sub(end, 6));
        (0..10).for_each(|_| give_back());
        assert_eq!(queue.try_recv(), Ok(b"7".to_vec()));
        assert!(queue.is_empty());
    }
}

#[test]
fn attempts_stop_at_the_last() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("attempts_stop_at_the_last", &queue);
    queue.send(7).unwrap();
    for n in 0..300 {
        let delivery = queue.recv_ack().unwrap();
        assert_eq!(delivery.attempts(), n.min(255));
        delivery.nack();
    }
    assert_eq!(queue.recv_ack().unwrap().ack(), Ok(7));
    queue.send(8).unwrap();
    assert_eq!(queue.recv_ack().unwrap().attempts(), 0);
}

#[test]
fn uses_of_an_entry() {
    let queue = Shared::<Queue<u64>>::with_capacity(4).unwrap();
    let _watchdog = watch("uses_of_an_entry", &queue);
    let (bytes, slots) = (Bytes::of(&queue), slots_of_queue());
    for i in 4..4 + IN_FLIGHT as u64 {
        bytes.put(slots + 16 * i, u64::MAX << 29);
    }
    for n in 0..4 * IN_FLIGHT as u64 {
        queue.send(n).unwrap();
        let delivery = queue.recv_ack().unwrap();
        assert_eq!((*delivery, delivery.attempts()), (n, 0));
        delivery.ack().unwrap();
    }
    assert!(queue.join_timeout(ms(0)).unwrap());
}

#[test]
fn takers_of_an_end() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4).unwrap();
    let _watchdog = watch("takers_of_an_end", &channel);
    let bytes = Bytes::of(&channel);
    let receiver = channel.receiver().unwrap();
    drop(channel.sender().unwrap());
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    bytes.put_half(0, u32::MAX - 4); // the count of the senders' end, which was taken
    for n in 0..5 {
        let sender = channel.sender().unwrap();
        sender.send(n).unwrap();
        assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(n), Err(TryRecvError::Empty)));
        drop(sender.clone());
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        drop(sender);
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    }
}

/// A cell of an end that counts as many handles as it can: a further handle takes another cell.
#[test]
fn handles_of_an_end() {
    let channel = Shared::<Channel<Queue<u64>>>::with_capacity(4).unwrap();
    let _watchdog = watch("handles_of_an_end", &channel);
    let bytes = Bytes::of(&channel);
    let receiver = channel.receiver().unwrap();
    let sender = channel.sender().unwrap();
    let word = |at: u64| bytes.get(at) & 0xffff_ffff;
    let first = word(4);
    assert_eq!(first >> 12, 1);
    bytes.put_half(4, u32::try_from(0xffff_f000 | first & 0xfff).unwrap());
    let clone = sender.clone();
    assert_eq!((word(4) >> 12, word(8) >> 12), (0xf_ffff, 1));
    clone.send(7).unwrap();
    drop(clone);
    bytes.put_half(4, u32::try_from(first).unwrap());
    drop(sender);
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(7), Err(RecvError::Disconnected)));
}

#[test]
fn positions_of_a_ring() {
    // At 2^64 the slot of a position is as before only if the capacity is a power of two.
    for (end, capacity) in [(1_u64 << 32, 3), (1 << 32, 4), (0, 4), (0, 1)] {
        let ring = Shared::<Ring<u64>>::with_capacity(capacity).unwrap();
        let _watchdog = watch("positions_of_a_ring", &ring);
        let bytes = Bytes::of(&ring);
        [0, 128].into_iter().for_each(|at| bytes.put(at, end.wrapping_sub(7)));
        for n in 0..20_u64 {
            // The ends are taken anew each time, on either side of the end.
            let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
            (0..capacity as u64).for_each(|i| producer.try_send(n + i).unwrap());
            assert!(producer.try_send(0).is_err() && ring.is_full());
            let mut to = Vec::new();
            assert_eq!(consumer.recv_batch(&mut to, 9), Ok(capacity));
            assert!(to.into_iter().eq(n..n + capacity as u64) && ring.is_empty());
        }
        assert_eq!(ring.sent(), end.wrapping_sub(7).wrapping_add(20 * capacity as u64));
    }
}

#[test]
fn marks_of_a_pipe() {
    for end in [1_u64 << 32, 0] {
        let pipe = Shared::<Pipe>::with_capacity(512).unwrap();
        let _watchdog = watch("marks_of_a_pipe", &pipe);
        let (bytes, (first, second)) =
            (Bytes::of(&pipe), (pipe.first().unwrap(), pipe.second().unwrap()));
        [0, 128].into_iter().for_each(|at| bytes.put(at, end.wrapping_sub(17)));
        for n in 0..60_u8 {
            let message = vec![n; usize::from(n) * 7 % 450];
            first.try_send_bytes(&message).unwrap();
            assert_eq!(second.try_recv_bytes(), Ok(message));
        }
        assert_eq!(second.try_recv_bytes(), Err(TryRecvError::Empty));
        std::thread::scope(|scope| {
            scope.spawn(|| first.send_bytes(&[3; 10_000]));
            assert_eq!(second.recv_bytes(), Ok(vec![3; 10_000]));
        });
    }
}

#[test]
fn laps_of_a_journal() {
    // A slot's lap has 50 bits, and positions have 64.
    for start in [((1_u64 << 50) - 3) * 4, (1 << 32) - 8, 0_u64.wrapping_sub(8)] {
        let journal = Shared::<Journal>::with_capacity(4).unwrap();
        let _watchdog = watch("laps_of_a_journal", &journal);
        let bytes = Bytes::of(&journal);
        journal.write(Level::Info, "", "before").unwrap();
        let head = {
            let mut records = journal.records();
            records.try_next().unwrap();
            drop(records);
            let slots = <Journal as Shareable>::layout().fields[0].offset as u64;
            let counts = |at: &u64| *at >= 128 && bytes.get(*at) == 1;
            let at = (0..slots).step_by(8).filter(counts).last().expect("the collector's position");
            for i in 0..4 {
                bytes.put(slots + 512 * i, (start.wrapping_add(i) / 4) << 14);
            }
            at
        };
        bytes.put(0, start);
        bytes.put(head, start);
        let mut records = journal.records();
        for n in 0..40_u64 {
            journal.write(Level::Info, "", &n.to_string()).unwrap();
            let record = records.try_next().unwrap_or_else(|| panic!("{n} of {start:#x}"));
            assert_eq!(record.message(), n.to_string());
            assert!(records.try_next().is_none());
        }
        assert_eq!(journal.losses().overwritten, 0, "{start:#x}");
        (0..6).for_each(|_| journal.write(Level::Info, "", "over").unwrap());
        assert_eq!(std::iter::from_fn(|| records.try_next()).count(), 4);
        assert_eq!(journal.losses().overwritten, 2);
    }
}

// What a signal and a role look like depends on the way to wait.
#[cfg(not(outlast_pthread))]
mod of_the_futex_backend {
    use super::*;
    use common::{KILLED, fork_child, sleep_for_ever};
    use outlast::{Spin, spsc};

    const RARE: u64 = 256;

    /// The word that sleepers sleep on, and the count of those that fell asleep.
    #[test]
    fn sequences_and_armings_of_a_signal() {
        let queue = Shared::<Queue<u64>>::with_capacity(1).unwrap();
        let back = Shared::<Queue<u64>>::with_capacity(1).unwrap();
        let _watchdog = watch("sequences_and_armings_of_a_signal", &queue);
        for bytes in [Bytes::of(&queue), Bytes::of(&back)] {
            for signal in 0..2 {
                bytes.put_half(RARE + 8 * signal, u32::MAX - 5);
                bytes.put_half(RARE + 8 * signal + 4, u32::MAX - 11); // not armed
            }
        }
        let child = fork_child(|| {
            Spin::Never.set();
            queue.iter().for_each(|n| back.send(n).unwrap());
        });
        Spin::Never.set();
        for n in 0..40 {
            child.until_waiting();
            queue.send(n).unwrap();
            assert_eq!(back.recv(), Ok(n));
        }
        queue.close();
        child.succeeds();
        let bytes = Bytes::of(&queue);
        assert!(bytes.get(RARE) & 0xffff_ffff < 1_000, "the sequence has come round");
        assert!(bytes.get(RARE) >> 32 < 1_000, "and so have the armings");
    }

    #[test]
    fn deaths_with_a_role() {
        let ring = Shared::<Ring<u64>>::with_capacity(4).unwrap();
        let _watchdog = watch("deaths_with_a_role", &ring);
        let bytes = Bytes::of(&ring);
        let consumer = ring.consumer().unwrap();
        let deaths = 0_u32.wrapping_sub(2 << 13);
        bytes.put_half(RARE + 28, deaths);
        bytes.put_half(RARE + 32, deaths);
        for _ in 0..4 {
            let producer = fork_child(|| {
                let producer = ring.producer().unwrap();
                producer.send(7).unwrap();
                sleep_for_ever();
            });
            assert_eq!(consumer.recv(), Ok(7));
            producer.signal(libc::SIGKILL);
            assert_eq!(producer.wait(), KILLED);
            assert_eq!(consumer.recv(), Err(spsc::RecvError::PeerDied));
            assert!(ring.producer().unwrap().predecessor_died());
        }
    }
}
