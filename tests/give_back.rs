//! Ends that are given back by a thread for which the segment has no place.
#![cfg(not(outlast_loom))]
mod common;

use common::watch;
use outlast::spsc::{Ring, RoleError, TrySendError as RingError};
use outlast::{Channel, Fault, Options, Pipe, Queue, RecvError, Shareable, Shared, TrySendError};
use std::sync::mpsc;

/// Runs `act` on a thread that finds all places of the segment taken by threads that live on.
fn without_a_place<R: Send>(attach: impl Fn() + Send + Sync, act: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let ends: Vec<_> = (0..6)
            .map(|_| {
                let ((end, until), (tell, attach)) =
                    (mpsc::channel::<()>(), (tell.clone(), &attach));
                scope.spawn(move || {
                    attach();
                    tell.send(()).unwrap();
                    until.recv().unwrap_err();
                });
                told.recv().unwrap();
                end
            })
            .collect();
        let result = scope.spawn(act).join().unwrap();
        drop(ends);
        result
    })
}

fn options() -> Options {
    Options::new().threads(4)
}

#[test]
fn the_last_sender() {
    let channel = options().with_capacity::<Channel<Queue<u64>>>(4).unwrap();
    let _watchdog = watch("the_last_sender", &channel);
    let (sender, receiver) = (channel.sender().unwrap(), channel.receiver().unwrap());
    let sent = without_a_place(
        || drop(channel.receiver()),
        || {
            let sent = sender.try_send(1);
            drop(sender);
            sent
        },
    );
    assert_eq!(sent, Err(TrySendError::Failed(1, Fault::TooManyPeers)), "it has no place");
    assert_eq!((channel.senders(), receiver.recv()), (0, Err(RecvError::Disconnected)));
}

#[test]
fn a_side_of_a_pipe() {
    let pipe = options().with_capacity::<Pipe>(4096).unwrap();
    let _watchdog = watch::<Pipe>("a_side_of_a_pipe", &pipe);
    let (first, second) = (pipe.first().unwrap(), pipe.second().unwrap());
    without_a_place(|| drop(pipe.second()), || drop(first));
    assert_eq!(second.recv_bytes(), Err(RecvError::Disconnected));
}

#[test]
fn an_end_of_a_ring() {
    let ring = Shared::clone(&options().with_capacity::<Ring<u64>>(4).unwrap());
    let _watchdog = watch("an_end_of_a_ring", &ring);
    let producer = ring.producer().unwrap();
    assert_eq!(ring.try_producer().unwrap_err(), RoleError::Taken);
    let sent = without_a_place(
        || drop(ring.consumer()),
        || {
            let sent = producer.try_send(1);
            drop(producer);
            sent
        },
    );
    assert_eq!(sent, Err(RingError::Failed(1, Fault::TooManyPeers)), "it has no place");
    assert!(!ring.producer().unwrap().predecessor_died());
    const { assert!(<outlast::spsc::Ring<u64> as Shareable>::NEEDS_PEERS) };
}
