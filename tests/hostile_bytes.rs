//! Arbitrary bytes in a `ByteQueue`: it is refused when it is opened, or no two handles have the
//! same memory.
#![cfg(not(outlast_loom))]
mod common;

use common::watch;
use outlast::{ByteQueue, Channel, OpenError, Shareable, Shared, spsc::Ring};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const BLOCKS: usize = 8;
const MARKS: [u64; 3] = [0, 128, 256]; // tail, head, freed

/// The bytes of a segment, past all its protocols.
struct Bytes {
    file: File,
    value: u64,
}

impl Bytes {
    fn of<T: ?Sized + Shareable + Sync + 'static>(shared: &Shared<T>) -> Self {
        let file = File::from(shared.try_clone_fd().unwrap());
        let bytes = Bytes { file, value: 0 };
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
}

/// Where the header of a block is.
fn header(block: u64) -> u64 {
    <ByteQueue as Shareable>::layout().fields[0].offset as u64 + 16 * block
}

fn state(lap: u64, extent: u64, phase: u64) -> u64 {
    lap << 39 | extent << 15 | phase
}

const FULL: u64 = 2;
const DONE: u64 = 5;

fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn up_to(seed: &mut u64, below: usize) -> usize {
    usize::try_from(random(seed, below as u64)).unwrap()
}

/// Takes and drops handles at random: whether two of them ever had a byte in common.
fn overlaps(queue: &ByteQueue, seed: &mut u64) -> bool {
    let (mut rooms, mut messages, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..30 {
        match random(seed, 8) {
            0 | 1 => rooms.extend(queue.try_loan(up_to(seed, 300)).ok()),
            2 | 3 => messages.extend(queue.try_recv_ref().ok()),
            4 if !messages.is_empty() => {
                let i = up_to(seed, messages.len());
                drop(messages.swap_remove(i));
            }
            5 if !rooms.is_empty() => {
                let i = up_to(seed, rooms.len());
                rooms.swap_remove(i).send().unwrap();
            }
            6 => deliveries.extend(queue.try_recv_ack().ok()),
            7 if !deliveries.is_empty() => {
                let job = deliveries.swap_remove(up_to(seed, deliveries.len()));
                if random(seed, 2) == 0 { drop(job) } else { job.ack().unwrap() }
            }
            _ => {}
        }
        let all = rooms.iter().map(|room| room.as_ptr_range());
        let all = all.chain(messages.iter().map(|m| m.as_ptr_range()));
        let mut all: Vec<_> = all.chain(deliveries.iter().map(|m| m.as_ptr_range())).collect();
        all.retain(|range| !range.is_empty());
        all.sort_unstable_by_key(|range| range.start);
        if all.windows(2).any(|pair| pair[1].start < pair[0].end) {
            return true;
        }
    }
    false
}

#[test]
fn handles_never_overlap() {
    let seed = &mut 7;
    let (mut opened, mut refused) = (0, 0);
    for round in 0..1_500 {
        let queue = Shared::<ByteQueue>::with_capacity(BLOCKS * 64).unwrap();
        let _watchdog = watch("handles_never_overlap", &queue);
        // A queue that was used, and then a few words, or all, written over.
        for _ in 0..random(seed, 12) {
            queue.try_send(&vec![1; up_to(seed, 300)]).ok();
            match random(seed, 4) {
                0 => {}
                1 => drop(queue.try_recv_ack()),
                _ => drop(queue.try_recv()),
            }
        }
        let bytes = Bytes::of(&queue);
        let lap = bytes.get(0) >> 24;
        for at in MARKS {
            if random(seed, 8) == 0 {
                bytes.put(at, (lap + random(seed, 2)) << 24 | random(seed, BLOCKS as u64));
            }
        }
        for block in 0..BLOCKS as u64 {
            if round % 3 == 0 || random(seed, 16) == 0 {
                let (extent, phase) = (random(seed, BLOCKS as u64), random(seed, 7));
                bytes.put(header(block), state(lap + random(seed, 2), extent, phase));
                bytes.put(header(block) + 8, random(seed, 64 * extent + 1));
            }
        }
        // Those of the in-flight area follow those of the ring, and have no lap.
        for block in BLOCKS as u64..2 * BLOCKS as u64 {
            if round % 2 == 0 && random(seed, 24) == 0 {
                let (extent, phase) = (random(seed, 4), random(seed, 8));
                bytes.put(header(block), state(0, extent, phase));
                bytes.put(header(block) + 8, random(seed, 64 * extent + 1));
            }
        }
        match Shared::<ByteQueue>::from_fd(queue.try_clone_fd().unwrap()) {
            Ok(there) => {
                opened += 1;
                assert!(!overlaps(&there, seed), "round {round}");
            }
            Err(OpenError::Corrupt) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(opened > 50 && refused > 50, "{opened} {refused}");
}

/// A message of ten blocks in the place of one of five.
#[test]
fn a_message_beyond_the_tail_is_refused() {
    let queue = Shared::<ByteQueue>::with_capacity(4096).unwrap();
    let _watchdog = watch("a_message_beyond_the_tail_is_refused", &queue);
    queue.send(&[1; 300]).unwrap();
    let bytes = Bytes::of(&queue);
    assert_eq!((bytes.get(header(0)), bytes.get(0)), (state(0, 5, FULL), 5));
    bytes.put(header(0), state(0, 10, FULL));
    bytes.put(header(0) + 8, 640);
    let opened = Shared::<ByteQueue>::from_fd(queue.try_clone_fd().unwrap());
    assert!(matches!(opened, Err(OpenError::Corrupt)));
    // Nor is it lent by a queue that was open before.
    assert!(queue.try_recv_ref().is_err());
}

/// Records that are done with, in a chain of their own across a record that is not.
#[test]
fn a_chain_that_passes_the_head_by_is_refused() {
    let channel = Shared::<Channel<ByteQueue>>::with_capacity(BLOCKS * 64).unwrap();
    let _watchdog = watch("a_chain_that_passes_the_head_by_is_refused", &channel);
    let bytes = Bytes::of(&channel);
    let queue = <Channel<ByteQueue> as Shareable>::layout().fields[0].offset as u64;
    for (block, extent, phase) in [(0, 5, DONE), (3, 4, FULL), (5, 2, DONE)] {
        bytes.put(queue + header(block), state(0, extent, phase));
        bytes.put(queue + header(block) + 8, 64 * extent);
    }
    for (mark, at) in MARKS.into_iter().zip([7, 3, 0]) {
        bytes.put(queue + mark, at);
    }
    let opened = Shared::<Channel<ByteQueue>>::from_fd(channel.try_clone_fd().unwrap());
    assert!(matches!(opened, Err(OpenError::Corrupt)));
}

#[test]
fn a_ring_of_more_messages_than_slots_is_refused() {
    let ring = Shared::<Ring<u64>>::with_capacity(8).unwrap();
    let bytes = Bytes::of(&ring);
    bytes.put(0, 9);
    let opened = Shared::<Ring<u64>>::from_fd(ring.try_clone_fd().unwrap());
    assert!(matches!(opened, Err(OpenError::Corrupt)));
    bytes.put(0, 8);
    assert!(Shared::<Ring<u64>>::from_fd(ring.try_clone_fd().unwrap()).is_ok());
}

/// Runs of the in-flight area that have a block in common, or go past its end.
#[test]
fn an_in_flight_area_with_overlapping_runs_is_refused() {
    const ORPHAN: u64 = 4;
    let last = 2 * BLOCKS as u64 - 1;
    let wrong = [
        vec![(8, 3, ORPHAN), (9, 1, ORPHAN)],
        vec![(8, 2, ORPHAN)], // and a free one
        vec![(8, 0, ORPHAN)],
        vec![(8, 1, FULL)],
        vec![(last, 2, ORPHAN)],
    ];
    let is_opened = |words: &[(u64, u64, u64)]| {
        let queue = Shared::<ByteQueue>::with_capacity(BLOCKS * 64).unwrap();
        let bytes = Bytes::of(&queue);
        words.iter().for_each(|&(block, n, phase)| bytes.put(header(block), state(0, n, phase)));
        Shared::<ByteQueue>::from_fd(queue.try_clone_fd().unwrap()).is_ok()
    };
    assert!(is_opened(&[(8, 2, ORPHAN), (9, 1, 1), (last, 1, ORPHAN)]));
    wrong.iter().for_each(|words| assert!(!is_opened(words), "{words:?}"));
}

/// A queue that peers use is opened all the while.
#[test]
fn a_queue_in_use_is_sound() {
    let queue = Shared::<ByteQueue>::with_capacity(BLOCKS * 64).unwrap();
    let _watchdog = watch("a_queue_in_use_is_sound", &queue);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for n in 0_usize.. {
                    if queue.send(&vec![0; n * 37 % 400]).is_err() {
                        break;
                    }
                }
            });
            scope.spawn(|| queue.iter().for_each(drop));
            scope.spawn(|| {
                while let Ok(job) = queue.recv_ack() {
                    match (job.len() % 2, job.attempts()) {
                        (0, 0) => drop(job),
                        _ => job.ack().unwrap(),
                    }
                }
            });
        }
        for _ in 0..300 {
            drop(Shared::<ByteQueue>::from_fd(queue.try_clone_fd().unwrap()).unwrap());
        }
        queue.close();
    });
}
