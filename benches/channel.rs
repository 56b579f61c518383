//! The cost of a channel beside the queue in it, with levels and without, and the cost of a queue
//! of levels beside one without.
mod support;

use outlast::{Channel, FixedPriorityQueue, Queue, Shared};
use std::sync::mpsc::sync_channel;
use support::scenes::{World, stream};
use support::{ALONE, Bench, Contest, TOGETHER};

const CAPACITY: usize = 1_024;

type Levels = FixedPriorityQueue<u64, 4, CAPACITY>;
type LevelsBetween = Channel<FixedPriorityQueue<u64, 4, CAPACITY>>;

fn queue() -> Shared<Queue<u64>> {
    Shared::<Queue<u64>>::with_capacity(CAPACITY).expect("memory")
}

fn channel() -> Shared<Channel<Queue<u64>>> {
    Shared::<Channel<Queue<u64>>>::with_capacity(CAPACITY).expect("memory")
}

fn levels() -> Shared<Levels> {
    outlast::Options::new().anonymous_with(|_: &Levels| {}).expect("memory")
}

fn levels_between() -> Shared<LevelsBetween> {
    outlast::Options::new().anonymous_with(|_: &LevelsBetween| {}).expect("memory")
}

fn alone(contest: &mut Contest<'_>) {
    let ours = channel();
    let (sender, receiver) = (ours.sender().expect("room"), ours.receiver().expect("room"));
    contest.alone("outlast::Channel", move |n| {
        for i in 0..n {
            sender.send(i).expect("a receiver");
            assert_eq!(receiver.recv(), Ok(i));
        }
    });
    let plain = queue();
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<u64> = &plain;
        for i in 0..n {
            queue.send(i).expect("open");
            assert_eq!(queue.recv(), Ok(i));
        }
    });
    let urgent = levels();
    contest.alone("outlast::PriorityQueue, 4 levels, the highest", move |n| {
        let queue: &Levels = &urgent;
        for i in 0..n {
            queue.send(3, i).expect("open");
            assert_eq!(queue.recv(), Ok((3, i)));
        }
    });
    let between = levels_between();
    let (sender, receiver) = (between.sender().expect("room"), between.receiver().expect("room"));
    contest.alone("outlast::Channel<PriorityQueue>, 4 levels, the highest", move |n| {
        for i in 0..n {
            sender.send(3, i).expect("a receiver");
            assert_eq!(receiver.recv(), Ok((3, i)));
        }
    });
    let last = levels();
    contest.alone("outlast::PriorityQueue, 4 levels, the lowest", move |n| {
        let queue: &Levels = &last;
        for i in 0..n {
            queue.send(0, i).expect("open");
            assert_eq!(queue.recv(), Ok((0, i)));
        }
    });
    let (sender, receiver) = sync_channel(CAPACITY);
    contest.alone("std sync_channel", move |n| {
        for i in 0..n {
            sender.send(i).expect("open");
            assert_eq!(receiver.recv(), Ok(i));
        }
    });
}

/// The last number is the stream's end, and must come last.
fn level(number: u64) -> usize {
    if number == u64::MAX { 0 } else { usize::try_from(1 + number % 3).expect("small") }
}

fn streams(contest: &mut Contest<'_>, pairs: usize) {
    contest.counted("outlast::Channel", move |messages| {
        let channel = channel();
        // Each process takes its own, and keeps it to the end.
        let sender = || {
            let sender = channel.sender().expect("room");
            move |number| sender.send(number).expect("a receiver")
        };
        let receiver = || {
            let receiver = channel.receiver().expect("room");
            move || receiver.recv().expect("a sender")
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
    contest.counted("outlast::Queue", move |messages| {
        let queue = queue();
        let sender = || {
            queue.join().expect("a free slot");
            |number| queue.send(number).expect("open")
        };
        let receiver = || {
            queue.join().expect("a free slot");
            || queue.recv().expect("open")
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
    contest.counted("outlast::PriorityQueue, 4 levels", move |messages| {
        let queue = levels();
        let sender = || {
            queue.join().expect("a free slot");
            |number: u64| queue.send(level(number), number).expect("open")
        };
        let receiver = || {
            queue.join().expect("a free slot");
            || queue.recv().expect("open").1
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
    contest.counted("outlast::Channel<PriorityQueue>, 4 levels", move |messages| {
        let channel = levels_between();
        let sender = || {
            let sender = channel.sender().expect("room");
            move |number: u64| sender.send(level(number), number).expect("a receiver")
        };
        let receiver = || {
            let receiver = channel.receiver().expect("room");
            move || receiver.recv().expect("a sender").1
        };
        stream(World::Processes, pairs, messages, sender, receiver)
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("channel alone: send and recv", ALONE, 61, alone);
    bench.contest("stream, 8 B, 1 to 1", TOGETHER, 11, |contest| streams(contest, 1));
    bench.contest("stream, 8 B, 2 to 2", TOGETHER, 11, |contest| streams(contest, 2));
}
