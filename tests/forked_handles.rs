//! Copies of handles in a forked child: the bytes that they stand for may be others' by then.
#![cfg(not(outlast_loom))]
mod common;

use common::{fork_child, watch};
use outlast::spsc::Ring;
use outlast::{ByteQueue, Channel, FixedPriorityQueue, Queue, Shared};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether it panics, as each way to the bytes of the parent's handle does.
fn is_barred<R>(access: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(access)).is_err()
}

#[test]
fn messages_in_place() {
    let queue = Shared::<Queue<[u64; 4]>>::with_capacity(8).unwrap();
    let _watchdog = watch("messages_in_place", &queue);
    queue.send_batch(&[[1; 4], [2; 4], [3; 4]]).unwrap();
    let message = queue.recv_ref().unwrap();
    let delivery = queue.recv_ack().unwrap();
    let mut loan = queue.loan().unwrap();
    *loan = [7; 4];
    fork_child(|| {
        assert!(is_barred(|| *loan = [8; 4]));
        assert!(is_barred(|| loan[0]));
        assert!(is_barred(|| message[0]));
        assert!(is_barred(|| delivery[0]));
        drop(format!("{message:?} {delivery:?} {loan:?}"));
    })
    .succeeds();
    assert_eq!((message[0], delivery[0], loan[0]), (1, 2, 7));
    loan.send().unwrap();
    delivery.ack().unwrap();
    drop(message);
    assert_eq!(queue.drain(), [[3; 4], [7; 4]]);
}

#[test]
fn deliveries_of_a_level() {
    let queue = Shared::anonymous(FixedPriorityQueue::<u64, 2, 4>::new()).unwrap();
    let _watchdog = watch("deliveries_of_a_level", &queue);
    queue.send(1, 5).unwrap();
    let delivery = queue.recv_ack().unwrap();
    fork_child(|| {
        assert!(is_barred(|| *delivery));
        drop(format!("{delivery:?}"));
    })
    .succeeds();
    assert_eq!(delivery.ack(), Ok(5));
}

#[test]
fn bytes_in_place() {
    let queue = Shared::<ByteQueue>::with_capacity(4096).unwrap();
    let channel = Shared::<Channel<ByteQueue>>::with_capacity(4096).unwrap();
    let _watchdog = watch("bytes_in_place", &queue);
    let (sender, _receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    queue.send(b"first").unwrap();
    let message = queue.recv_ref().unwrap();
    let (mut place, mut room) = (queue.loan(4).unwrap(), sender.loan(4).unwrap());
    place.fill(1);
    room.fill(1);
    fork_child(|| {
        assert!(is_barred(|| place.fill(2)));
        assert!(is_barred(|| place[0]));
        assert!(is_barred(|| room.fill(2)));
        assert!(is_barred(|| room[0]));
        assert!(is_barred(|| message.len()));
        drop(format!("{message:?} {place:?} {room:?}"));
    })
    .succeeds();
    assert_eq!((&*message, &*place, &*room), (&b"first"[..], &[1; 4][..], &[1; 4][..]));
}

#[test]
fn chunks() {
    let ring = Shared::<Ring<u64>>::with_capacity(8).unwrap();
    let _watchdog = watch("chunks", &ring);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.send(1).unwrap();
    let read = consumer.read_chunk(1).unwrap();
    let mut write = producer.write_chunk(2).unwrap();
    write.set(0, 5);
    fork_child(|| {
        assert!(is_barred(|| write.set(0, 6)));
        assert!(is_barred(|| write.as_mut_slices().0[0] = 6));
        assert!(is_barred(|| read.get(0)));
        assert!(is_barred(|| read.as_slices().0[0]));
        drop(format!("{read:?} {write:?}"));
    })
    .succeeds();
    assert_eq!((read.get(0), write.as_mut_slices().0[0]), (Some(1), 5));
}
