//! Values of any shape through queues and pipes of bytes: what cannot be encoded is not sent, what
//! cannot be decoded is not lost.
#![cfg(all(feature = "serde", not(outlast_loom)))]
mod common;

use common::{eventually, fork_child, ms, sleep_for_ever, watch, watch_alone, worlds};
use core::fmt::Debug;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use outlast::queue::ValueError;
use outlast::{
    ByteQueue, Fault, FixedByteQueue, FixedPipe, Pipe, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Named { name: String, sizes: Vec<u16> },
    Nested(Box<Shape>, Option<f64>),
    Table(BTreeMap<String, (i64, bool)>),
}

fn shapes() -> Vec<Shape> {
    let table = [("low".to_owned(), (i64::MIN, false)), ("high".to_owned(), (i64::MAX, true))];
    let named = Shape::Named { name: "näme".into(), sizes: vec![1, 200, u16::MAX] };
    vec![
        Shape::Nothing,
        named.clone(),
        Shape::Nested(Box::new(named), Some(0.1)),
        Shape::Table(BTreeMap::from(table)),
    ]
}

/// As an iterator of unknown length would be.
struct Endless;

impl Serialize for Endless {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(std::iter::repeat_n(1, 3).filter(|_| true))
    }
}

/// Longer each time.
struct Growing(Cell<usize>);

impl Serialize for Growing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.set(self.0.get() + 100);
        serializer.serialize_bytes(&vec![7; self.0.get()])
    }
}

fn bytes() -> (Shared<ByteQueue>, Shared<ByteQueue>) {
    let here = Shared::<ByteQueue>::with_capacity(4096).unwrap();
    let there = Shared::from_fd(here.try_clone_fd().unwrap()).unwrap();
    (here, there)
}

fn pipes() -> (Shared<Pipe>, Shared<Pipe>) {
    let here = Shared::<Pipe>::with_capacity(500).unwrap();
    let there = Shared::from_fd(here.try_clone_fd().unwrap()).unwrap();
    (here, there)
}

#[test]
fn values_of_every_shape() {
    let (here, there) = bytes();
    let _watchdog = watch("values_of_every_shape", &here);
    let soon = || Instant::now() + ms(5_000);
    for shape in shapes() {
        here.send_value(&shape).unwrap();
        here.try_send_value(&shape).unwrap();
        here.send_value_timeout(&shape, ms(0)).unwrap();
        here.send_value_deadline(&shape, soon()).unwrap();
        assert_eq!(there.recv_value(), Ok(shape.clone()));
        assert_eq!(there.try_recv_value(), Ok(shape.clone()));
        assert_eq!(there.recv_value_timeout(ms(0)), Ok(shape.clone()));
        assert_eq!(there.recv_value_deadline(soon()), Ok(shape));
    }
    here.send_value(&()).unwrap(); // no bytes at all
    assert_eq!((there.len(), there.recv_value()), (1, Ok(())));

    let (here, there) = pipes();
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    for shape in shapes() {
        first.send(&shape).unwrap();
        first.try_send(&shape).unwrap();
        first.send_timeout(&shape, ms(0)).unwrap();
        first.send_deadline(&shape, soon()).unwrap();
        assert_eq!(second.recv(), Ok(shape.clone()));
        assert_eq!(second.try_recv(), Ok(shape.clone()));
        assert_eq!(second.recv_timeout(ms(0)), Ok(shape.clone()));
        assert_eq!(second.recv_deadline(soon()), Ok(shape));
    }
    first.send(&()).unwrap();
    assert_eq!(second.recv(), Ok(()));
}

/// No message, nor a part of one, is left behind.
#[test]
fn what_cannot_be_encoded_is_not_sent() {
    let (here, there) = bytes();
    let _watchdog = watch("what_cannot_be_encoded_is_not_sent", &here);
    let fault = Fault::Unencodable;
    assert_eq!(here.send_value(&Endless), Err(SendError::Failed((), fault)));
    assert_eq!(here.try_send_value(&Endless), Err(TrySendError::Failed((), fault)));
    let failed = Err(SendTimeoutError::Failed((), fault));
    assert_eq!(here.send_value_timeout(&Endless, ms(1)), failed);
    assert_eq!(here.send_value_deadline(&Endless, Instant::now()), failed);
    // It is found out when its place is taken already, which is passed over.
    assert_eq!(here.send_value(&Growing(Cell::new(0))), Err(SendError::Failed((), fault)));
    assert_eq!(there.try_recv_value::<()>(), Err(ValueError::Recv(TryRecvError::Empty)));
    here.send_value("next").unwrap();
    assert_eq!(there.recv_value::<String>().unwrap(), "next");
    assert_eq!(here.send(&vec![0; here.capacity()]), Ok(())); // all room is there

    let (here, there) = pipes();
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    assert_eq!(first.send(&Endless), Err(SendError::Failed((), fault)));
    assert_eq!(first.try_send(&Endless), Err(TrySendError::Failed((), fault)));
    assert_eq!(first.send_timeout(&Endless, ms(1)), failed);
    assert_eq!(first.send_deadline(&Endless, Instant::now()), failed);
    assert_eq!(second.try_recv::<()>(), Err(ValueError::Recv(TryRecvError::Empty)));
    first.send("next").unwrap();
    assert_eq!(second.recv::<String>().unwrap(), "next");
}

fn undecodable<T: Debug, E: Debug>(received: Result<T, ValueError<E>>) -> Vec<u8> {
    match received {
        Err(ValueError::Undecodable(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Too short, with something left over, or none of the enum's variants: each is inside the error,
/// and the next one comes.
#[test]
fn what_cannot_be_decoded_is_not_lost() {
    let (here, there) = bytes();
    let _watchdog = watch("what_cannot_be_decoded_is_not_lost", &here);
    let wrong: [&[u8]; 3] = [&[1, 200], &[0, 0], &[77]];
    for bytes in wrong {
        (0..5).for_each(|_| here.send(bytes).unwrap());
        here.send_value(&Shape::Nothing).unwrap();
        assert_eq!(undecodable(there.recv_value::<Shape>()), bytes);
        assert_eq!(undecodable(there.try_recv_value::<Shape>()), bytes);
        assert_eq!(undecodable(there.recv_value_timeout::<Shape>(ms(0))), bytes);
        assert_eq!(undecodable(there.recv_value_deadline::<Shape>(Instant::now())), bytes);
        // Or it stays where it is, for another.
        let message = there.recv_ref().unwrap();
        assert_eq!(message.decode::<Shape>(), Err(Fault::Undecodable));
        message.give_back().unwrap();
        assert_eq!([here.recv().unwrap(), here.recv().unwrap()], [bytes, &[0]]);
    }

    // What is inside the error is the whole message: sent on, another reads it.
    here.send_value("text").unwrap();
    let bytes = undecodable(there.recv_value::<[u64; 3]>());
    assert_eq!(there.try_recv_value::<String>(), Err(ValueError::Recv(TryRecvError::Empty)));
    there.send(&bytes).unwrap();
    assert_eq!(here.recv_value::<String>().unwrap(), "text");

    let (here, there) = pipes();
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    for bytes in wrong {
        (0..4).for_each(|_| first.send_bytes(bytes).unwrap());
        first.send(&Shape::Nothing).unwrap();
        assert_eq!(undecodable(second.recv::<Shape>()), bytes);
        assert_eq!(undecodable(second.try_recv::<Shape>()), bytes);
        assert_eq!(undecodable(second.recv_timeout::<Shape>(ms(0))), bytes);
        assert_eq!(undecodable(second.recv_deadline::<Shape>(Instant::now())), bytes);
        assert_eq!(second.recv(), Ok(Shape::Nothing));
    }
}

/// What ends a wait for bytes ends one for a value.
#[test]
fn too_long_closed_late_and_gone() {
    let (here, there) = bytes();
    let _watchdog = watch("too_long_closed_late_and_gone", &here);
    let long = vec![7_u8; 5_000];
    assert_eq!(here.send_value(&long), Err(SendError::Failed((), Fault::TooLong)));
    let begun = Instant::now();
    let late = there.recv_value_timeout::<()>(ms(5));
    assert_eq!(late, Err(ValueError::Recv(RecvTimeoutError::TimedOut)));
    assert!(begun.elapsed() >= ms(5));
    while here.try_send_value(&[1_u64; 8]).is_ok() {}
    assert_eq!(here.try_send_value(&[1_u64; 8]), Err(TrySendError::Full(())));
    assert_eq!(here.send_value_timeout(&[1_u64; 8], ms(1)), Err(SendTimeoutError::TimedOut(())));
    here.close();
    assert_eq!(here.send_value(&1), Err(SendError::Closed(())));
    while there.try_recv_value::<[u64; 8]>().is_ok() {}
    assert_eq!(there.recv_value::<()>(), Err(ValueError::Recv(RecvError::Closed)));

    let (here, there) = pipes();
    let (first, second) = (here.first().unwrap(), there.second().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| first.send(&long).unwrap()); // goes through in parts
        assert_eq!(second.recv(), Ok(long.clone()));
    });
    let begun = Instant::now();
    let late = Err(ValueError::Recv(RecvTimeoutError::TimedOut));
    assert_eq!(second.recv_timeout::<()>(ms(5)), late);
    assert_eq!(second.recv_deadline::<()>(begun + ms(10)), late);
    assert!(begun.elapsed() >= ms(10));
    let mut sent = 0;
    while first.try_send(&[1_u64; 8]).is_ok() {
        sent += 1;
    }
    assert_eq!(first.try_send(&[1_u64; 8]), Err(TrySendError::Full(())));
    let begun = Instant::now();
    let late = Err(SendTimeoutError::TimedOut(()));
    assert_eq!(first.send_timeout(&[1_u64; 8], ms(5)), late);
    assert_eq!(first.send_deadline(&[1_u64; 8], begun + ms(10)), late);
    assert!(begun.elapsed() >= ms(10));
    drop(first);
    (0..sent).for_each(|_| assert_eq!(second.recv(), Ok([1_u64; 8]))); // what was sent is there
    assert_eq!(second.recv::<()>(), Err(ValueError::Recv(RecvError::Disconnected)));
    assert_eq!(second.send(&1), Err(SendError::Disconnected(())));
}

outlast::shared! {
    #[derive(Debug)]
    struct Line { work: FixedByteQueue<64>, pipe: FixedPipe<64>, done: AtomicU32, stuck: AtomicU32 }
}

fn line() -> Shared<Line> {
    Shared::anonymous(Line {
        work: FixedByteQueue::new(),
        pipe: FixedPipe::new(),
        done: AtomicU32::new(0),
        stuck: AtomicU32::new(0),
    })
    .unwrap()
}

fn received<T: DeserializeOwned + Debug>(line: &Line) -> T {
    line.work.recv_value().unwrap()
}

#[test]
fn in_every_world() {
    const COUNT: u32 = 200;
    let answer = |n: u32| (n, n.to_string().repeat(n as usize % 9));
    let (name, roles) = ("in_every_world", 4);
    worlds(
        name,
        "",
        roles,
        line,
        |line, i| {
            if i < 2 {
                (0..COUNT).for_each(|n| line.work.send_value(&answer(n)).unwrap());
            } else {
                for _ in 0..COUNT {
                    let (n, text): (u32, String) = received(line);
                    assert_eq!((n, text), answer(n));
                    line.done.fetch_add(n, SeqCst);
                }
            }
        },
        |line| assert_eq!(line.done.load(SeqCst), COUNT * (COUNT - 1)),
    );
}

/// Two processes answer through the pipe; one of them is killed with a message that it has not done
/// with.
#[test]
fn between_processes() {
    let line = line();
    let _watchdog = watch_alone("between_processes");
    let dies = fork_child(|| {
        let message = line.work.recv_ref().unwrap();
        assert_eq!(message.decode::<Shape>(), Ok(Shape::Nothing));
        line.stuck.store(1, SeqCst);
        sleep_for_ever();
    });
    line.work.send_value(&Shape::Nothing).unwrap();
    eventually("the first worker has it", || line.stuck.load(SeqCst) == 1);
    let worker = fork_child(|| {
        let answers = line.pipe.second().unwrap();
        for _ in shapes() {
            answers.send(&received::<Shape>(&line)).unwrap();
            line.done.fetch_add(1, SeqCst);
        }
    });
    let side = line.pipe.first().unwrap();
    for shape in &shapes()[1..] {
        line.work.send_value(shape).unwrap();
        assert_eq!(side.recv(), Ok(shape.clone()));
    }
    dies.kill9();
    assert_eq!(side.recv(), Ok(Shape::Nothing)); // comes back
    worker.succeeds();
    assert_eq!(side.recv::<Shape>(), Err(ValueError::Recv(RecvError::Disconnected)));
    assert_eq!(line.done.load(SeqCst), 4);
}
