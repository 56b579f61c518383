//! The cost of a ring between one producer and one consumer: in one thread, as a stream and as a
//! round trip.
mod support;

use criterion::Criterion;
use outlast::{Queue, Shared};
use support::scenes::{World, ring, ring_chunks, stream};
use support::{ALONE, Bench, Contest, TOGETHER};

const CAPACITY: usize = 1_024;

type Message<const WORDS: usize> = [u64; WORDS];

fn alone(contest: &mut Contest<'_>) {
    let ours = ring::<1>(CAPACITY);
    contest.alone("outlast spsc::Ring", move |n| {
        let (producer, consumer) = (ours.producer().expect("free"), ours.consumer().expect("free"));
        for i in 0..n {
            producer.send([i]).expect("open");
            assert_eq!(consumer.recv(), Ok([i]));
        }
    });
    let queue = Shared::<Queue<Message<1>>>::with_capacity(CAPACITY).expect("memory");
    contest.alone("outlast::Queue", move |n| {
        for i in 0..n {
            queue.send([i]).expect("open");
            assert_eq!(queue.recv(), Ok([i]));
        }
    });
}

fn streams<const WORDS: usize>(contest: &mut Contest<'_>) {
    for (name, world) in
        [("outlast spsc::Ring", World::Processes), ("outlast spsc::Ring (threads)", World::Threads)]
    {
        contest.counted(name, move |messages| {
            let ring = ring::<WORDS>(CAPACITY);
            let sender = || {
                let producer = ring.producer().expect("free");
                move |number| producer.send([number; WORDS]).expect("open")
            };
            let receiver = || {
                let consumer = ring.consumer().expect("free");
                move || consumer.recv().expect("open")[0]
            };
            stream(world, 1, messages, sender, receiver)
        });
    }
    contest.counted("outlast spsc::Ring, chunks of 64 (threads)", ring_chunks::<WORDS>);
}

/// Slots that stay in the first cache of both CPUs, as those of many more do not.
const FEW: usize = 16;

/// There and back by two rings, of which each worker keeps an end.
fn round_trips(contest: &mut Contest<'_>) {
    for (name, world, capacity) in [
        ("outlast spsc::Ring of 16", World::Processes, FEW),
        ("outlast spsc::Ring of 16 (threads)", World::Threads, FEW),
        ("outlast spsc::Ring of 1,024", World::Processes, CAPACITY),
        ("outlast spsc::Ring of 1,024 (threads)", World::Threads, CAPACITY),
    ] {
        contest.counted(name, move |trips| {
            let rings = [(); 2].map(|()| ring::<8>(capacity));
            world.run(2, None, |i, stage| {
                let (producer, consumer) =
                    (rings[i].producer().expect("free"), rings[1 - i].consumer().expect("free"));
                stage.start();
                for _ in 0..trips {
                    if i == 0 {
                        producer.send([7; 8]).expect("open");
                        consumer.recv().expect("open");
                    } else {
                        producer.send(consumer.recv().expect("open")).expect("open");
                    }
                }
                if i == 0 { trips } else { 0 }
            })
        });
    }
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("ring alone: send and recv", ALONE, 61, alone);
    bench.contest("ring, stream of 8 B", TOGETHER, 11, streams::<1>);
    bench.contest("ring, stream of 64 B", TOGETHER, 11, streams::<8>);
    bench.contest("ring, stream of 1 KiB", TOGETHER, 11, streams::<128>);
    bench.contest("ring, round trip of 64 B", TOGETHER, 11, round_trips);

    // For comparison with earlier runs of the same program, which criterion keeps.
    let mut criterion = Criterion::default().configure_from_args();
    let ring = ring::<1>(CAPACITY);
    let (producer, consumer) = (ring.producer().expect("free"), ring.consumer().expect("free"));
    criterion.bench_function("Ring, send and recv", |bencher| {
        bencher.iter(|| {
            producer.send([1]).expect("open");
            consumer.recv().expect("open")
        });
    });
    criterion.final_summary();
}
