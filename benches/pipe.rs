//! The cost of a pipe between two sides, as a stream and as a round trip, beside the system's pipe
//! and socket pair.
mod support;

use outlast::{Pipe, Shared};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use support::scenes::{World, ping_pong, pipe_copied, pipe_stream, system_stream};
use support::{ALONE, Bench, Contest, TOGETHER, group};

fn pipe(len: usize) -> Shared<Pipe> {
    let capacity = (256 * len).clamp(1 << 14, 1 << 22); // each way
    Shared::<Pipe>::with_capacity(capacity).expect("memory")
}

fn alone<const LEN: usize>(contest: &mut Contest<'_>) {
    let ours = pipe(LEN);
    contest.alone("outlast::Pipe", move |n| {
        let (first, second) = (ours.first().expect("free"), ours.second().expect("free"));
        let (message, mut to) = ([7; LEN], Vec::with_capacity(LEN));
        for _ in 0..n {
            first.send_bytes(&message).expect("open");
            to.clear();
            assert_eq!(second.recv_bytes_into(&mut to), Ok(LEN));
        }
    });
}

/// Every byte is written by the sender, and read by the receiver. (The system's have no messages:
/// both know the length.)
fn streams<const LEN: usize>(contest: &mut Contest<'_>) {
    for (name, world) in
        [("outlast::Pipe", World::Processes), ("outlast::Pipe (threads)", World::Threads)]
    {
        contest.counted(name, move |messages| pipe_copied(world, &pipe(LEN), LEN, messages));
    }
    contest.counted("pipe", pipe_stream::<LEN>);
    contest.counted("socketpair", |messages| {
        let (from, to) = UnixStream::pair().expect("a pair");
        let (to, from) = (|| to.try_clone().expect("a copy"), || from.try_clone().expect("a copy"));
        system_stream::<LEN, _, _>(messages, to, from)
    });
}

fn round_trips<const LEN: usize>(contest: &mut Contest<'_>) {
    contest.counted("outlast::Pipe", |trips| {
        let pipe = pipe(LEN);
        group::processes(2, None, |i, stage| {
            let side = if i == 0 { pipe.first() } else { pipe.second() }.expect("free");
            let (message, mut to) = ([7; LEN], Vec::with_capacity(LEN));
            stage.start();
            for _ in 0..trips {
                to.clear();
                if i == 0 {
                    side.send_bytes(&message).expect("open");
                    side.recv_bytes_into(&mut to).expect("open");
                } else {
                    side.recv_bytes_into(&mut to).expect("open");
                    side.send_bytes(&to).expect("open");
                }
            }
            // No side leaves while the other one waits for an answer: it is done when it got one.
            if i == 0 { trips } else { 0 }
        })
    });
    contest.counted("socketpair", |trips| {
        let (first, second) = UnixStream::pair().expect("a pair");
        let ends = [&first, &second];
        ping_pong(
            trips,
            || {},
            |i| (&mut &*ends[i]).write_all(&[7; LEN]).expect("a reader"),
            |i| (&mut &*ends[1 - i]).read_exact(&mut [0; LEN]).expect("a writer"),
        )
    });
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("pipe alone: 64 B", ALONE, 61, alone::<64>);
    bench.contest("pipe, stream of 64 B", TOGETHER, 11, streams::<64>);
    bench.contest("pipe, stream of 1 KiB", TOGETHER, 11, streams::<1_024>);
    bench.contest("pipe, stream of 64 KiB", TOGETHER, 11, streams::<65_536>);
    bench.contest("pipe, round trip of 64 B", TOGETHER, 11, round_trips::<64>);
    bench.contest("pipe, round trip of 4 KiB", TOGETHER, 11, round_trips::<4_096>);
}
