//! Models of `spsc::Ring`.
use crate::{SOON, check, join, killed_anywhere, share, spawn};
use outlast::Shareable;
use outlast::spsc::{FixedRing, RecvError, RecvTimeoutError, Ring, SendError};

fn send_all(ring: &Ring<u32>, count: u32) {
    let producer = ring.producer().unwrap();
    (0..count).for_each(|i| producer.send(i).unwrap());
}

fn receive_all(ring: &Ring<u32>, count: u32) {
    let consumer = ring.consumer().unwrap();
    (0..count).for_each(|i| assert_eq!(consumer.recv(), Ok(i)));
}

/// Both sleep: a lost wake is a deadlock, a slot used by both a race.
#[test]
fn spsc_keeps_order_and_wakes() {
    check(|| {
        let ring = share(FixedRing::<u32, 1>::new());
        let producer = spawn(&ring, |ring| send_all(ring, 3));
        receive_all(&ring, 3);
        producer.join().unwrap();
    });
    check(|| {
        let ring = share(FixedRing::<u32, 2>::new());
        let producer = spawn(&ring, |ring| ring.producer().unwrap().send_batch(&[0, 1, 2]));
        receive_all(&ring, 3);
        producer.join().unwrap().unwrap();
    });
}

#[test]
fn spsc_batches_are_received() {
    check(|| {
        let ring = share(FixedRing::<u32, 2>::new());
        let producer = spawn(&ring, |ring| ring.producer().unwrap().send_batch(&[0, 1, 2]));
        let (consumer, mut all) = (ring.consumer().unwrap(), Vec::new());
        while all.len() < 3 {
            consumer.recv_batch(&mut all, 2).unwrap();
        }
        assert_eq!(all, [0, 1, 2]);
        producer.join().unwrap().unwrap();
    });
}

#[test]
fn spsc_times_out_or_receives() {
    check(|| {
        let ring = share(FixedRing::<u32, 1>::new());
        let producer = spawn(&ring, |ring| ring.producer().unwrap().send(7));
        let consumer = ring.consumer().unwrap();
        match consumer.recv_timeout(SOON) {
            Ok(message) => assert_eq!(message, 7),
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(consumer.recv(), Ok(7));
            }
        }
        producer.join().unwrap().unwrap();
    });
}

/// Messages that were sent before the close are received.
#[test]
fn spsc_closes_after_the_last() {
    check(|| {
        let ring = share(FixedRing::<u32, 2>::new());
        let producer = spawn(&ring, |ring| {
            let producer = ring.producer().unwrap();
            producer.send(1).unwrap();
            producer.close();
        });
        let consumer = ring.consumer().unwrap();
        assert_eq!((consumer.recv(), consumer.recv()), (Ok(1), Err(RecvError::Closed)));
        producer.join().unwrap();
    });
}

#[test]
fn spsc_role_is_one_threads() {
    check(|| {
        let ring = share(FixedRing::<u32, 2>::new());
        let send = |ring: &FixedRing<u32, 2>| {
            let producer = ring.producer().unwrap();
            producer.send(1).unwrap();
        };
        let threads = [spawn(&ring, send), spawn(&ring, send)];
        join(threads);
        receive_both(&ring);
    });
}

fn receive_both(ring: &Ring<u32>) {
    let consumer = ring.consumer().unwrap();
    assert_eq!([consumer.try_recv(), consumer.try_recv()], [Ok(1), Ok(1)]);
}

/// The messages that the dead producer committed are received. Then its death is reported once.
#[test]
fn spsc_producer_killed_anywhere() {
    killed_anywhere(|victim| {
        let ring = share(FixedRing::<u32, 1>::new());
        let producer = victim.spawn(&ring, |ring| send_all(ring, 2));
        let consumer = spawn(&ring, |ring| {
            let consumer = ring.consumer().unwrap();
            let mut next = 0;
            loop {
                match consumer.recv() {
                    Ok(message) => assert_eq!(message, next),
                    Err(error) => return (next, error),
                }
                next += 1;
            }
        });
        let life = producer.join().unwrap();
        ring.recover(&life.dead);
        ring.recover(&life.dead); // may be called again
        let successor = ring.producer().unwrap();
        let died = successor.predecessor_died();
        assert!(!died || life.result.is_none());
        if !died {
            ring.close(); // there is no death to report
        }
        let (received, error) = consumer.join().unwrap();
        assert_eq!(error, if died { RecvError::PeerDied } else { RecvError::Closed });
        assert!(life.result.is_none() || received == 2);
        assert!(ring.is_empty());
    });
}

/// A message whose receiver died before the commit goes to the successor. No living receiver gets a
/// message twice.
#[test]
fn spsc_consumer_killed_anywhere() {
    killed_anywhere(|victim| {
        let ring = share(FixedRing::<u32, 1>::new());
        let consumer = victim.spawn(&ring, |ring| ring.consumer().unwrap().recv().unwrap());
        let producer = spawn(&ring, |ring| {
            let producer = ring.producer().unwrap();
            for i in 0..2 {
                match producer.send(i) {
                    Ok(()) => {}
                    Err(error) => {
                        assert!(matches!(error, SendError::PeerDied(_)));
                        producer.send(i).unwrap();
                    }
                }
            }
        });
        let life = consumer.join().unwrap();
        ring.recover(&life.dead);
        let successor = ring.consumer().unwrap();
        let first = successor.recv().unwrap();
        assert!(first <= 1 && (life.result.is_none() || first == 1));
        if first == 0 {
            assert_eq!(successor.recv(), Ok(1));
        }
        producer.join().unwrap();
        assert!(ring.is_empty());
    });
}
