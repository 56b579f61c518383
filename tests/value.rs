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
    Fault, FixedPipe, FixedValueQueue, Pipe, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Shared, TryRecvError, TrySendError, ValueQueue,
};
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

#[derive(Serialize)]
#[serde(untagged)]
enum Odd {
    Endless(Endless),
    Growing(Growing),
    Text(&'static str),
}

fn values<V: 'static>() -> (Shared<ValueQueue<V>>, Shared<ValueQueue<V>>) {
    let here = Shared::<ValueQueue<V>>::with_capacity(4096).unwrap();
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
    let (here, there) = values::<Shape>();
    let _watchdog = watch("values_of_every_shape", &here);
    let soon = || Instant::now() + ms(5_000);
    for shape in shapes() {
        let sends = || {
            here.send(&shape).unwrap();
            here.try_send(&shape).unwrap();
            here.send_timeout(&shape, ms(0)).unwrap();
            here.send_deadline(&shape, soon()).unwrap();
        };
        sends();
        assert_eq!(there.recv(), Ok(shape.clone()));
        assert_eq!(there.try_recv(), Ok(shape.clone()));
        assert_eq!(there.recv_timeout(ms(0)), Ok(shape.clone()));
        assert_eq!(there.recv_deadline(soon()), Ok(shape.clone()));
        sends();
        assert_eq!(*there.recv_ack().unwrap(), shape); // and drops it
        for attempts in [1, 0, 0, 0] {
            let job = match attempts {
                1 => there.recv_ack_timeout(ms(0)).unwrap(),
                _ => there.recv_ack_deadline(soon()).unwrap(),
            };
            assert_eq!((&*job, job.attempts()), (&shape, attempts));
            assert_eq!(job.ack(), Ok(shape.clone()));
        }
        here.join().unwrap();
    }
    here.send(&Shape::Nothing).unwrap();
    assert_eq!(there.try_iter().collect::<Vec<_>>(), [Shape::Nothing]);
    here.send(&Shape::Nothing).unwrap();
    here.close();
    assert_eq!(there.iter().collect::<Vec<_>>(), [Shape::Nothing]);
    let (here, there) = values();
    here.send(&()).unwrap(); // no bytes at all
    assert_eq!((there.len(), there.recv()), (1, Ok(())));

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
    let (here, there) = values::<Odd>();
    let _watchdog = watch("what_cannot_be_encoded_is_not_sent", &here);
    let (fault, endless) = (Fault::Unencodable, &Odd::Endless(Endless));
    assert_eq!(here.send(endless), Err(SendError::Failed((), fault)));
    assert_eq!(here.try_send(endless), Err(TrySendError::Failed((), fault)));
    let failed = Err(SendTimeoutError::Failed((), fault));
    assert_eq!(here.send_timeout(endless, ms(1)), failed);
    assert_eq!(here.send_deadline(endless, Instant::now()), failed);
    // It is found out when its place is taken already, which is passed over.
    let growing = Odd::Growing(Growing(Cell::new(0)));
    assert_eq!(here.send(&growing), Err(SendError::Failed((), fault)));
    assert_eq!(there.bytes().try_recv(), Err(TryRecvError::Empty));
    here.send(&Odd::Text("next")).unwrap();
    assert_eq!(there.bytes().recv().unwrap(), b"\x04next");
    assert_eq!(here.bytes().send(&vec![0; here.capacity()]), Ok(())); // all room is there

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
    let (here, there) = values::<Shape>();
    let _watchdog = watch("what_cannot_be_decoded_is_not_lost", &here);
    let wrong: [&[u8]; 3] = [&[1, 200], &[0, 0], &[77]];
    for bytes in wrong {
        let fault = Fault::Undecodable;
        let late = Instant::now();
        (0..8).for_each(|_| here.bytes().send(bytes).unwrap());
        here.send(&Shape::Nothing).unwrap();
        assert_eq!(there.try_iter().next(), None); // it cannot say why
        assert_eq!(there.recv(), Err(RecvError::Failed(fault)));
        assert_eq!(there.try_recv(), Err(TryRecvError::Failed(fault)));
        assert_eq!(there.recv_timeout(ms(0)), Err(RecvTimeoutError::Failed(fault)));
        assert_eq!(there.recv_deadline(late), Err(RecvTimeoutError::Failed(fault)));
        assert_eq!(there.recv_ack().unwrap_err(), RecvError::Failed(fault));
        assert_eq!(there.try_recv_ack().unwrap_err(), TryRecvError::Failed(fault));
        // Or it stays where it is, for another.
        let message = there.bytes().recv_ref().unwrap();
        assert_eq!(message.decode::<Shape>(), Err(fault));
        message.give_back().unwrap();
        let job = here.bytes().recv_ack().unwrap();
        assert_eq!((&*job, job.decode::<Shape>()), (bytes, Err(fault)));
        job.ack().unwrap();
        assert_eq!(there.iter().next(), None); // it is consumed
        assert_eq!(there.recv(), Ok(Shape::Nothing));
        there.join().unwrap();
    }

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
    let (here, there) = values::<Vec<u8>>();
    let _watchdog = watch("too_long_closed_late_and_gone", &here);
    let (long, short) = (vec![7_u8; 5_000], vec![1; 64]);
    assert_eq!(here.send(&long), Err(SendError::Failed((), Fault::TooLong)));
    let begun = Instant::now();
    assert_eq!(there.recv_timeout(ms(5)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(there.recv_ack_timeout(ms(5)).unwrap_err(), RecvTimeoutError::TimedOut);
    assert!(begun.elapsed() >= ms(10));
    assert_eq!(there.try_recv_ack().unwrap_err(), TryRecvError::Empty);
    while here.try_send(&short).is_ok() {}
    assert_eq!(here.try_send(&short), Err(TrySendError::Full(())));
    assert_eq!(here.send_timeout(&short, ms(1)), Err(SendTimeoutError::TimedOut(())));
    here.close();
    assert_eq!(here.send(&short), Err(SendError::Closed(())));
    assert!(there.iter().all(|value| value == short));
    assert_eq!(there.recv(), Err(RecvError::Closed));

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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Work {
    Answer(u32, String),
    Shape(Shape),
}

outlast::shared! {
    #[derive(Debug)]
    struct Line { work: FixedValueQueue<Work, 64>, pipe: FixedPipe<64>, done: AtomicU32, stuck: AtomicU32 }
}

fn line() -> Shared<Line> {
    Shared::anonymous(Line {
        work: FixedValueQueue::new(),
        pipe: FixedPipe::new(),
        done: AtomicU32::new(0),
        stuck: AtomicU32::new(0),
    })
    .unwrap()
}

#[test]
fn in_every_world() {
    const COUNT: u32 = 200;
    let answer = |n: u32| Work::Answer(n, n.to_string().repeat(n as usize % 9));
    let (name, roles) = ("in_every_world", 4);
    worlds(
        name,
        "",
        roles,
        line,
        |line, i| {
            if i < 2 {
                (0..COUNT).for_each(|n| line.work.send(&answer(n)).unwrap());
            } else {
                let mut done = 0;
                while done < COUNT {
                    let job = line.work.recv_ack().unwrap();
                    let Work::Answer(n, _) = *job else { panic!("{job:?}") };
                    assert_eq!(*job, answer(n));
                    if n % 7 == 0 && job.attempts() == 0 {
                        job.nack();
                        continue;
                    }
                    line.done.fetch_add(n, SeqCst);
                    job.ack().unwrap();
                    done += 1;
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
        let job = line.work.recv_ack().unwrap();
        assert_eq!((&*job, job.attempts()), (&Work::Shape(Shape::Nothing), 0));
        line.stuck.store(1, SeqCst);
        sleep_for_ever();
    });
    line.work.send(&Work::Shape(Shape::Nothing)).unwrap();
    eventually("the first worker has it", || line.stuck.load(SeqCst) == 1);
    let worker = fork_child(|| {
        let answers = line.pipe.second().unwrap();
        for _ in shapes() {
            let job = line.work.recv_ack().unwrap();
            let Work::Shape(shape) = &*job else { panic!("{job:?}") };
            assert_eq!(job.attempts(), u32::from(*shape == Shape::Nothing));
            answers.send(shape).unwrap();
            line.done.fetch_add(1, SeqCst);
            job.ack().unwrap();
        }
    });
    let side = line.pipe.first().unwrap();
    for shape in &shapes()[1..] {
        line.work.send(&Work::Shape(shape.clone())).unwrap();
        assert_eq!(side.recv(), Ok(shape.clone()));
    }
    dies.kill9();
    assert_eq!(side.recv(), Ok(Shape::Nothing)); // comes back
    line.work.join().unwrap();
    worker.succeeds();
    assert_eq!(side.recv::<Shape>(), Err(ValueError::Recv(RecvError::Disconnected)));
    assert_eq!(line.done.load(SeqCst), 4);
}
