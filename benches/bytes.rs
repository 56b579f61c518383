//! What messages of bytes cost, copied and in place, beside a pipe and a queue of fixed messages.
mod support;

use outlast::{ByteQueue, Channel, Queue, Shared};
use support::scenes::{World, bytes_copied, bytes_in_place, number, pipe_stream};
use support::{ALONE, Bench, Contest, TOGETHER};

/// Messages that there is room for.
const CAPACITY: usize = 256;
/// The same, of those that are written in place.
const IN_PLACE: usize = 8;

fn queue(len: usize) -> Shared<ByteQueue> {
    // No more than 64 MiB: few of the longest.
    let messages = CAPACITY.min((64 << 20) / len).max(4);
    Shared::<ByteQueue>::with_capacity(messages * len.next_multiple_of(64)).expect("memory")
}

fn alone<const LEN: usize>(contest: &mut Contest<'_>) {
    let ours = queue(LEN);
    contest.alone("outlast::ByteQueue, in place", move |n| {
        let queue: &ByteQueue = &ours;
        for i in 0..n {
            let mut room = queue.loan(LEN).expect("open");
            room[..8].copy_from_slice(&i.to_ne_bytes());
            room.send().expect("ours");
            assert_eq!(number(&queue.recv_ref().expect("open")), i);
        }
    });
    let ours = queue(LEN);
    contest.alone("outlast::ByteQueue, copied", move |n| {
        let queue: &ByteQueue = &ours;
        let (message, mut to) = ([7; LEN], Vec::with_capacity(LEN));
        for _ in 0..n {
            queue.send(&message).expect("open");
            to.clear();
            assert_eq!(queue.recv_into(&mut to), Ok(LEN));
        }
    });
}

fn alone_beside_a_queue(contest: &mut Contest<'_>) {
    alone::<64>(contest);
    let channel = Shared::<Channel<ByteQueue>>::with_capacity(64 * CAPACITY).expect("memory");
    let (sender, receiver) = (channel.sender().expect("room"), channel.receiver().expect("room"));
    contest.alone("outlast::Channel<ByteQueue>, in place", move |n| {
        for i in 0..n {
            let mut room = sender.loan(64).expect("a receiver");
            room[..8].copy_from_slice(&i.to_ne_bytes());
            room.send().expect("ours");
            assert_eq!(number(&receiver.recv_ref().expect("a sender")), i);
        }
    });
    let fixed = Shared::<Queue<[u64; 8]>>::with_capacity(CAPACITY).expect("memory");
    contest.alone("outlast::Queue", move |n| {
        let queue: &Queue<[u64; 8]> = &fixed;
        for i in 0..n {
            queue.send([i; 8]).expect("open");
            assert_eq!(queue.recv(), Ok([i; 8]));
        }
    });
}

/// Every byte is written by the sender, and read by the receiver.
fn copied<const LEN: usize>(contest: &mut Contest<'_>) {
    for (name, world) in
        [("outlast::ByteQueue", World::Processes), ("outlast::ByteQueue (threads)", World::Threads)]
    {
        contest.counted(name, move |messages| bytes_copied(world, &queue(LEN), LEN, messages));
    }
    contest.counted("pipe", pipe_stream::<LEN>);
}

/// Both sides touch only the first bytes of a message. So this measures the queue itself, whose
/// cost is the same for every length. There is room for the same number of messages of each length.
/// The number is not 64: beginnings a power of two apart would push each other out of the caches,
/// which costs a third more.
fn in_place(contest: &mut Contest<'_>) {
    for (name, len) in
        [("1 MiB in place", 1 << 20), ("64 KiB in place", 1 << 16), ("64 B in place", 64)]
    {
        contest.counted(name, move |messages| {
            let queue = Shared::<ByteQueue>::with_capacity(IN_PLACE * len).expect("memory");
            bytes_in_place(&queue, len, messages)
        });
    }
    contest.bar(1.25);
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("bytes alone: 64 B", ALONE, 61, alone_beside_a_queue);
    bench.contest("bytes alone: 64 KiB", ALONE, 31, alone::<65_536>);
    bench.contest("bytes, stream of 64 B", TOGETHER, 11, copied::<64>);
    bench.contest("bytes, stream of 1 KiB", TOGETHER, 11, copied::<1_024>);
    bench.contest("bytes, stream of 64 KiB", TOGETHER, 11, copied::<65_536>);
    bench.contest("bytes in place, stream", TOGETHER, 11, in_place);
}
