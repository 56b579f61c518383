//! Each queue, and a `VecDeque`, driven by the same random operations from two mappings: they must
//! always agree.
#![cfg(not(outlast_loom))]
mod common;

use common::watch_alone;
use outlast::bytes::Ref;
use outlast::spsc::{self, Ring};
use outlast::{
    ByteQueue, Channel, Delivery, Fault, FixedPriorityQueue, Pipe, Queue, RecvTimeoutError,
    SendError, Shared, TryRecvError, TrySendError,
};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

/// What is done to a queue of any kind.
#[derive(Clone, Copy, Debug)]
enum Act {
    Send(u32),
    Receive,
    ReceiveInTime,
    ReceiveToAcknowledge,
    /// The delivery that was made so many ago.
    Acknowledge(usize),
    GiveBack(usize),
    ReceiveBatch(usize),
    /// Makes or drops one handle of an end.
    Come(bool),
    Leave(bool),
    Close,
    Look,
}

/// Each operation, and through which mapping.
fn plays() -> impl Strategy<Value = Vec<(Act, bool)>> {
    let act = prop_oneof![
        8 => any::<u32>().prop_map(Act::Send),
        5 => Just(Act::Receive),
        1 => Just(Act::ReceiveInTime),
        3 => Just(Act::ReceiveToAcknowledge),
        2 => (0..4_usize).prop_map(Act::Acknowledge),
        2 => (0..4_usize).prop_map(Act::GiveBack),
        1 => (0..5_usize).prop_map(Act::ReceiveBatch),
        2 => any::<bool>().prop_map(Act::Come),
        2 => any::<bool>().prop_map(Act::Leave),
        1 => Just(Act::Close),
        2 => Just(Act::Look),
    ];
    prop::collection::vec((act, any::<bool>()), 1..80)
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }
}

/// The model of `Queue`: messages that came back go first, in the order of their entries.
#[derive(Debug, Default)]
struct Model {
    capacity: usize,
    ring: VecDeque<u32>,
    /// Message and attempts; the test takes them in any order.
    returned: Vec<(u32, u32)>,
    closed: bool,
}

impl Model {
    fn send(&mut self, message: u32) -> Result<(), TrySendError<u32>> {
        if self.closed {
            Err(TrySendError::Closed(message))
        } else if self.ring.len() == self.capacity {
            Err(TrySendError::Full(message))
        } else {
            self.ring.push_back(message);
            Ok(())
        }
    }

    /// Whether it can be `message` that comes out, after so many attempts where that is known.
    fn receive(&mut self, message: u32, attempts: Option<u32>) -> bool {
        if self.returned.is_empty() {
            return attempts.unwrap_or(0) == 0 && self.ring.pop_front() == Some(message);
        }
        let fits =
            |&(m, a): &(u32, u32)| m == message && attempts.is_none_or(|attempts| attempts == a);
        let found = self.returned.iter().position(fits);
        found.map(|i| self.returned.swap_remove(i)).is_some()
    }

    fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.returned.is_empty()
    }
}

fn nothing(model: &Model) -> TryRecvError {
    if model.closed { TryRecvError::Closed } else { TryRecvError::Empty }
}

fn play_queue(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<Queue<u32>>::with_capacity(capacity).unwrap();
    let there = Shared::<Queue<u32>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let mut model = Model { capacity, ..Model::default() };
    let mut held: Vec<Delivery<'_, u32>> = Vec::new();
    for &(act, first) in plays {
        let queue: &Queue<u32> = if first { &here } else { &there };
        match act {
            Act::Send(message) => assert_eq!(queue.try_send(message), model.send(message)),
            Act::Receive => match queue.try_recv() {
                Ok(message) => assert!(model.receive(message, None), "{message}"),
                Err(error) => assert!(model.is_empty() && error == nothing(&model), "{error}"),
            },
            Act::ReceiveInTime => match queue.recv_timeout(Duration::ZERO) {
                Ok(message) => assert!(model.receive(message, None), "{message}"),
                Err(RecvTimeoutError::TimedOut) => assert!(model.is_empty() && !model.closed),
                Err(error) => assert!(model.is_empty() && model.closed, "{error}"),
            },
            Act::ReceiveToAcknowledge => match queue.try_recv_ack() {
                Ok(job) => {
                    assert!(model.receive(*job, Some(job.attempts())), "{job:?}");
                    held.push(job);
                }
                Err(error) => assert!(model.is_empty() && error == nothing(&model), "{error}"),
            },
            Act::Acknowledge(i) if i < held.len() => {
                let job = held.swap_remove(i);
                let message = *job;
                assert_eq!(job.ack(), Ok(message));
            }
            Act::GiveBack(i) if i < held.len() => {
                let job = held.swap_remove(i);
                model.returned.push((*job, job.attempts() + 1));
            }
            Act::ReceiveBatch(most) if !model.is_empty() => {
                let mut all = Vec::new();
                let expected = most.min(model.ring.len() + model.returned.len());
                assert_eq!(queue.recv_batch(&mut all, most), Ok(expected));
                assert!(all.iter().all(|&message| model.receive(message, None)), "{all:?}");
            }
            Act::Close => {
                queue.close();
                model.closed = true;
            }
            _ => {
                let (len, full) = (model.ring.len(), model.ring.len() == capacity);
                assert_eq!(
                    (queue.len(), queue.is_full(), queue.is_empty()),
                    (len, full, model.is_empty())
                );
                assert_eq!(queue.is_closed(), model.closed);
                let idle = model.is_empty() && held.is_empty();
                assert_eq!(queue.join_timeout(Duration::ZERO), Ok(idle));
            }
        }
    }
}

fn play_ring(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<Ring<u32>>::with_capacity(capacity).unwrap();
    let there = Shared::<Ring<u32>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let (mut sent, mut received) = (0, 0);
    let mut model = Model { capacity, ..Model::default() };
    let mut ends = (Some(here.producer().unwrap()), Some(there.consumer().unwrap()));
    for &(act, first) in plays {
        let ring = if first { &here } else { &there };
        match act {
            Act::Send(message) => {
                let producer = ends.0.as_ref().unwrap();
                let expected = match model.send(message) {
                    Ok(()) => {
                        sent += 1;
                        Ok(())
                    }
                    Err(TrySendError::Full(back)) => Err(spsc::TrySendError::Full(back)),
                    Err(error) => Err(spsc::TrySendError::Closed(error.into_inner())),
                };
                assert_eq!(producer.try_send(message), expected);
            }
            Act::ReceiveInTime if !model.ring.is_empty() => {
                let mut to = [0; 3];
                let expected: Vec<u32> = model.ring.drain(..model.ring.len().min(3)).collect();
                let consumer = ends.1.as_ref().unwrap();
                assert_eq!(consumer.recv_into(&mut to), Ok(expected.len()));
                assert_eq!(to[..expected.len()], expected);
                assert!(to[expected.len()..].iter().all(|&untouched| untouched == 0));
                received += expected.len() as u64;
            }
            Act::Receive | Act::ReceiveInTime | Act::ReceiveToAcknowledge => {
                let consumer = ends.1.as_ref().unwrap();
                let expected = match model.ring.pop_front() {
                    Some(message) => {
                        received += 1;
                        Ok(message)
                    }
                    None if model.closed => Err(spsc::TryRecvError::Closed),
                    None => Err(spsc::TryRecvError::Empty),
                };
                assert_eq!(consumer.try_recv(), expected);
            }
            Act::ReceiveBatch(most) if !model.ring.is_empty() => {
                let mut all = Vec::new();
                let expected: Vec<u32> = model.ring.drain(..most.min(model.ring.len())).collect();
                let consumer = ends.1.as_ref().unwrap();
                assert_eq!(consumer.recv_batch(&mut all, most), Ok(expected.len()));
                assert_eq!(all, expected);
                received += expected.len() as u64;
            }
            // In place, and less of it than was taken.
            Act::Acknowledge(most) => {
                let chunk = match ends.1.as_mut().unwrap().try_read_chunk(most) {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        assert!(model.ring.is_empty(), "{error}");
                        assert_eq!(error == spsc::TryRecvError::Closed, model.closed);
                        continue;
                    }
                };
                let len = most.min(model.ring.len());
                assert_eq!(chunk.len(), len);
                let (first, second) = chunk.as_slices();
                assert!(first.iter().chain(second).eq(model.ring.iter().take(len)));
                assert!((0..len).all(|i| chunk.get(i) == model.ring.get(i).copied()));
                let consumed = if first.is_empty() { 0 } else { len - len / 3 };
                chunk.consume(consumed).unwrap();
                model.ring.drain(..consumed);
                received += consumed as u64;
            }
            Act::GiveBack(most) => {
                let room = if model.closed { 0 } else { most.min(capacity - model.ring.len()) };
                let mut chunk = match ends.0.as_mut().unwrap().try_write_chunk(most) {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        assert!(room == 0, "{error}");
                        assert_eq!(error == spsc::TrySendError::Closed(()), model.closed);
                        continue;
                    }
                };
                assert_eq!(chunk.len(), room);
                let messages: Vec<u32> = (1_000..).take(room).collect();
                for (i, &message) in messages.iter().enumerate() {
                    chunk.set(i, message);
                }
                let committed = room - room / 3;
                assert_eq!(chunk.commit(committed), Ok(()));
                model.ring.extend(&messages[..committed]);
                sent += committed as u64;
            }
            Act::Leave(_) => {
                let room = if model.closed { 0 } else { capacity - model.ring.len() };
                let messages = [7, 8, 9];
                match ends.0.as_ref().unwrap().try_send_batch(&messages) {
                    Ok(count) => {
                        assert_eq!(count, room.min(3));
                        model.ring.extend(&messages[..count]);
                        sent += count as u64;
                    }
                    Err(error) => {
                        assert!(room == 0, "{error}");
                        assert_eq!(error == spsc::TrySendError::Closed(()), model.closed);
                    }
                }
            }
            // Another takes over.
            Act::Come(true) => {
                ends.0 = None;
                ends.0 = Some(ring.producer().unwrap());
            }
            Act::Come(false) => {
                ends.1 = None;
                ends.1 = Some(ring.consumer().unwrap());
            }
            Act::Close => {
                ring.close();
                model.closed = true;
            }
            _ => {
                assert_eq!((ring.len(), ring.is_empty()), (model.ring.len(), model.is_empty()));
                assert_eq!((ring.sent(), ring.received()), (sent, received));
                assert_eq!(ring.is_full(), model.ring.len() == capacity);
            }
        }
    }
}

fn play_channel(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<Channel<Queue<u32>>>::with_capacity(capacity).unwrap();
    let there = Shared::<Channel<Queue<u32>>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let mut model = Model { capacity, ..Model::default() };
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    let (mut sent_to, mut received_from) = (false, false); // whether the end was ever held
    for &(act, first) in plays {
        let channel = if first { &here } else { &there };
        match act {
            Act::Come(true) => {
                senders.push((channel.sender().unwrap(), first));
                received_from = true;
            }
            Act::Come(false) => {
                receivers.push((channel.receiver().unwrap(), first));
                sent_to = true;
            }
            Act::Leave(true) => drop(senders.pop()),
            Act::Leave(false) => drop(receivers.pop()),
            Act::Send(message) => {
                let Some((sender, _)) = senders.last() else { continue };
                let expected = if !model.closed && sent_to && receivers.is_empty() {
                    Err(TrySendError::Disconnected(message))
                } else {
                    model.send(message)
                };
                assert_eq!(sender.clone().try_send(message), expected);
            }
            Act::Close => {
                channel.close();
                model.closed = true;
            }
            Act::Look => {
                let count = |mappings: Vec<bool>| {
                    usize::from(mappings.contains(&true)) + usize::from(mappings.contains(&false))
                };
                assert_eq!(channel.senders(), count(senders.iter().map(|end| end.1).collect()));
                assert_eq!(channel.receivers(), count(receivers.iter().map(|end| end.1).collect()));
                assert_eq!(
                    (channel.len(), channel.is_full()),
                    (model.ring.len(), model.ring.len() == capacity)
                );
            }
            _ => {
                let Some((receiver, _)) = receivers.first() else { continue };
                let expected = match model.ring.pop_front() {
                    Some(message) => Ok(message),
                    None if model.closed => Err(TryRecvError::Closed),
                    None if received_from && senders.is_empty() => Err(TryRecvError::Disconnected),
                    None => Err(TryRecvError::Empty),
                };
                let received = match act {
                    Act::ReceiveToAcknowledge => {
                        receiver.try_recv_ack().map(|job| job.ack().unwrap())
                    }
                    _ => receiver.clone().try_recv(),
                };
                assert_eq!(received, expected);
            }
        }
    }
}

/// With messages of a block each: what the ends do.
fn play_byte_channel(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<Channel<ByteQueue>>::with_capacity(64 * capacity).unwrap();
    let there = Shared::<Channel<ByteQueue>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let capacity = here.capacity() / 64;
    let mut blocks = Blocks { capacity, tail: 0, records: VecDeque::new() };
    let mut model = Model { capacity, ..Model::default() };
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    let (mut sent_to, mut received_from) = (false, false); // whether the end was ever held
    for &(act, first) in plays {
        let channel = if first { &here } else { &there };
        match act {
            Act::Come(true) => {
                senders.push(channel.sender().unwrap());
                received_from = true;
            }
            Act::Come(false) => {
                receivers.push(channel.receiver().unwrap());
                sent_to = true;
            }
            Act::Leave(true) => drop(senders.pop()),
            // The last receiver, while a sender holds room. Its message is not sent, and is passed
            // over.
            Act::Leave(false) if receivers.len() == 1 && !senders.is_empty() => {
                let room = senders[0].try_loan(1);
                assert_eq!(room.is_ok(), !model.closed && blocks.room() > 0);
                receivers.clear();
                if let Ok(room) = room {
                    assert_eq!(room.send(), Err(SendError::Disconnected(())));
                    blocks.send(0, 1);
                    blocks.records.back_mut().unwrap().1 = None;
                }
            }
            Act::Leave(false) => drop(receivers.pop()),
            Act::Send(message) => {
                let Some(sender) = senders.last() else { continue };
                let expected = if !model.closed && sent_to && receivers.is_empty() {
                    Err(TrySendError::Disconnected(()))
                } else if model.closed {
                    Err(TrySendError::Closed(()))
                } else if blocks.send(message, 1) {
                    model.send(message).unwrap();
                    Ok(())
                } else {
                    Err(TrySendError::Full(()))
                };
                let result = if first {
                    sender.clone().try_send(&message.to_le_bytes())
                } else {
                    sender.try_loan(64).map(|mut room| {
                        room[..4].copy_from_slice(&message.to_le_bytes());
                        room.send_len(4).unwrap();
                    })
                };
                assert_eq!(result, expected);
            }
            Act::Close => {
                channel.close();
                model.closed = true;
            }
            Act::Look => {
                assert_eq!((channel.len(), channel.is_closed()), (model.ring.len(), model.closed));
                assert_eq!(channel.is_empty(), model.is_empty());
            }
            _ => {
                let Some(receiver) = receivers.first() else { continue };
                let expected = match model.ring.pop_front() {
                    Some(message) => {
                        blocks.done(message);
                        Ok(message.to_le_bytes().to_vec())
                    }
                    None if model.closed => Err(TryRecvError::Closed),
                    None if received_from && senders.is_empty() => Err(TryRecvError::Disconnected),
                    None => Err(TryRecvError::Empty),
                };
                if matches!(act, Act::GiveBack(_)) {
                    let seen = receiver.try_recv_ref().map(|message| {
                        let copy = message.to_vec();
                        message.give_back().unwrap();
                        copy
                    });
                    assert_eq!(seen, expected); // and again:
                }
                assert_eq!(receiver.clone().try_recv(), expected);
            }
        }
    }
}

/// What `ByteQueue` is to do, block by block.
#[derive(Debug)]
struct Blocks {
    capacity: usize,
    tail: usize,
    /// Extents of what was sent and skipped, and whether it is done with.
    records: VecDeque<(usize, Option<u32>)>,
}

impl Blocks {
    fn room(&mut self) -> usize {
        while self.records.front().is_some_and(|(_, message)| message.is_none()) {
            self.records.pop_front();
        }
        self.capacity - self.records.iter().map(|(extent, _)| extent).sum::<usize>()
    }

    fn send(&mut self, message: u32, extent: usize) -> bool {
        let rest = self.capacity - self.tail;
        if extent > rest {
            let both = rest + extent;
            let needed = if both <= self.capacity { both } else { rest };
            if self.room() < needed {
                return false;
            }
            self.records.push_back((rest, None));
            self.tail = 0;
        }
        if self.room() < extent {
            return false;
        }
        self.records.push_back((extent, Some(message)));
        self.tail = (self.tail + extent) % self.capacity;
        true
    }

    fn done(&mut self, message: u32) {
        let record = self.records.iter_mut().find(|(_, there)| *there == Some(message));
        record.unwrap().1 = None;
    }
}

/// Message `n` has a length of its own.
fn letter(n: u32, capacity: usize) -> Vec<u8> {
    let len = n as usize * 37 % (64 * capacity + 1);
    n.to_le_bytes().into_iter().cycle().take(len).collect()
}

fn play_bytes(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<ByteQueue>::with_capacity(64 * capacity).unwrap();
    let there = Shared::<ByteQueue>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let mut blocks = Blocks { capacity, tail: 0, records: VecDeque::new() };
    // Messages by their numbers: those to come, in order, and those that came back.
    let (mut sent, mut model) = (0, Model { capacity: usize::MAX, ..Model::default() });
    // With the mapping: each counts as a process.
    let mut held: Vec<(u32, Ref<'_>, bool)> = Vec::new();
    for &(act, first) in plays {
        let queue: &ByteQueue = if first { &here } else { &there };
        match act {
            Act::Send(number) => {
                let text = letter(sent, capacity);
                let result = if number % 2 == 0 {
                    queue.try_send(&text)
                } else {
                    queue.try_loan(text.len()).map(|mut room| {
                        room.copy_from_slice(&text);
                        room.send().unwrap();
                    })
                };
                let expected = if model.closed {
                    Err(TrySendError::Closed(()))
                } else if blocks.send(sent, text.len().div_ceil(64).max(1)) {
                    model.send(sent).unwrap();
                    Ok(())
                } else {
                    Err(TrySendError::Full(()))
                };
                assert_eq!(result, expected, "{text:?}");
                sent += u32::from(result.is_ok());
            }
            Act::Receive
            | Act::ReceiveInTime
            | Act::ReceiveToAcknowledge
            | Act::ReceiveBatch(_) => {
                // What came back goes first, in the order in which it was sent.
                let returned = model.returned.iter().map(|&(n, _)| n).min();
                let next = returned.or(model.ring.front().copied());
                match (queue.try_recv_ref(), next) {
                    (Ok(message), Some(n)) => {
                        assert!(*message == letter(n, capacity), "{n}");
                        assert!(model.receive(n, None));
                        if matches!(act, Act::Receive) {
                            drop(message);
                            blocks.done(n);
                        } else {
                            held.push((n, message, first));
                        }
                    }
                    (Err(error), None) => {
                        // It may come back, unless this one waits for itself.
                        let waits = !held.is_empty() && held.iter().all(|held| held.2 != first);
                        let closed = model.closed && !waits;
                        let expected =
                            if closed { TryRecvError::Closed } else { TryRecvError::Empty };
                        assert_eq!(error, expected);
                    }
                    (received, next) => panic!("{received:?} for {next:?}"),
                }
            }
            Act::Acknowledge(i) if i < held.len() => {
                let (n, message, _) = held.swap_remove(i);
                drop(message);
                blocks.done(n);
            }
            Act::GiveBack(i) if i < held.len() => {
                let (n, message, _) = held.swap_remove(i);
                message.give_back().unwrap();
                model.returned.push((n, 1));
            }
            Act::Close => {
                queue.close();
                model.closed = true;
            }
            _ => {
                let len = model.ring.len() + model.returned.len();
                assert_eq!((queue.len(), queue.is_empty()), (len, len == 0));
                assert_eq!((queue.capacity(), queue.is_closed()), (64 * capacity, model.closed));
            }
        }
    }
}

#[test]
fn bytes_and_model_agree() {
    let _watchdog = watch_alone("bytes_and_model_agree");
    proptest!(cases(), |(quarter in 1..4_usize, plays in plays())| play_bytes(4 * quarter, &plays));
}

/// `capacity` is in blocks, each way.
fn play_pipe(capacity: usize, plays: &[(Act, bool)]) {
    let here = Shared::<Pipe>::with_capacity(64 * capacity - 8).unwrap();
    let there = Shared::<Pipe>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    assert_eq!(here.capacity(), 64 * capacity - 8);
    let blocks = |text: &[u8]| (8 + text.len()).div_ceil(64);
    let (mut handles, mut opened) = ([Vec::new(), Vec::new()], [false; 2]);
    // From the first side, and from the second.
    let mut ways: [VecDeque<Vec<u8>>; 2] = Default::default();
    for &(act, first) in plays {
        let pipe: &Pipe = if first { &here } else { &there };
        let gone = [0, 1].map(|side| opened[side] && handles[side].is_empty());
        match act {
            Act::Come(to_first) => {
                let side = usize::from(!to_first);
                let handle = if to_first { pipe.first() } else { pipe.second() };
                handles[side].push(handle.unwrap());
                opened[side] = true;
            }
            Act::Leave(first) => drop(handles[usize::from(!first)].pop()),
            Act::Send(number) => {
                let side = number as usize % 2;
                let Some(handle) = handles[side].last() else { continue };
                let text = letter(number % 1_000, capacity);
                let used: usize = ways[side].iter().map(|text| blocks(text)).sum();
                let expected = if text.len() > 64 * capacity - 8 {
                    Err(TrySendError::Failed((), Fault::TooLong))
                } else if gone[1 - side] {
                    Err(TrySendError::Disconnected(()))
                } else if used + blocks(&text) > capacity {
                    Err(TrySendError::Full(()))
                } else {
                    ways[side].push_back(text.clone());
                    Ok(())
                };
                assert_eq!(handle.try_send_bytes(&text), expected);
            }
            Act::Receive | Act::ReceiveToAcknowledge | Act::ReceiveInTime => {
                let Some(handle) = handles[usize::from(first)].first() else { continue };
                let other = usize::from(!first);
                let expected = match ways[other].pop_front() {
                    Some(text) => Ok(text),
                    None if gone[other] => Err(TryRecvError::Disconnected),
                    None => Err(TryRecvError::Empty),
                };
                let received = match act {
                    Act::ReceiveInTime => {
                        handle.recv_bytes_timeout(Duration::ZERO).map_err(|error| match error {
                            RecvTimeoutError::TimedOut => TryRecvError::Empty,
                            _ => TryRecvError::Disconnected,
                        })
                    }
                    _ => handle.try_recv_bytes(),
                };
                assert_eq!(received, expected);
            }
            _ => {
                let Some(handle) = handles[usize::from(first)].last() else { continue };
                let other = usize::from(!first);
                let ready = !ways[other].is_empty() || gone[other];
                assert_eq!(handle.clone().try_poll(), Ok(ready));
            }
        }
    }
}

#[test]
fn pipe_and_model_agree() {
    let _watchdog = watch_alone("pipe_and_model_agree");
    proptest!(cases(), |(power in 0..4_u32, plays in plays())| play_pipe(1 << power, &plays));
}

const LEVELS: usize = 3;

fn play_priority(plays: &[(Act, bool)]) {
    type Levels = FixedPriorityQueue<u32, LEVELS, 2>;
    let here = Shared::anonymous(Levels::new()).unwrap();
    let there = Shared::<Levels>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let mut models: [Model; LEVELS] =
        core::array::from_fn(|_| Model { capacity: 2, ..Model::default() });
    let mut held = Vec::new();
    for &(act, first) in plays {
        let queue: &Levels = if first { &here } else { &there };
        let urgent = models.iter().rposition(|model| !model.is_empty());
        let nothing = nothing(&models[0]);
        match act {
            Act::Send(message) => {
                let priority = message as usize % LEVELS;
                assert_eq!(queue.try_send(priority, message), models[priority].send(message));
            }
            Act::Receive | Act::ReceiveInTime | Act::ReceiveBatch(_) => match queue.try_recv() {
                Ok((priority, message)) => {
                    assert_eq!(Some(priority), urgent);
                    assert!(models[priority].receive(message, None), "{message}");
                }
                Err(error) => assert_eq!((urgent, error), (None, nothing)),
            },
            Act::ReceiveToAcknowledge => match queue.try_recv_ack() {
                Ok(job) => {
                    assert_eq!(Some(job.priority()), urgent);
                    assert!(models[job.priority()].receive(*job, Some(job.attempts())), "{job:?}");
                    held.push(job);
                }
                Err(error) => assert_eq!((urgent, error), (None, nothing)),
            },
            Act::Acknowledge(i) if i < held.len() => {
                let job = held.swap_remove(i);
                let message = *job;
                assert_eq!(job.ack(), Ok(message));
            }
            Act::GiveBack(i) if i < held.len() => {
                let job = held.swap_remove(i);
                models[job.priority()].returned.push((*job, job.attempts() + 1));
            }
            Act::Close => {
                queue.close();
                models.iter_mut().for_each(|model| model.closed = true);
            }
            _ => {
                let len: usize = models.iter().map(|model| model.ring.len()).sum();
                assert_eq!((queue.len(), queue.is_empty()), (len, urgent.is_none()));
                assert_eq!(queue.len_of(1), models[1].ring.len());
                let idle = urgent.is_none() && held.is_empty();
                assert_eq!(queue.join_timeout(Duration::ZERO), Ok(idle));
            }
        }
    }
}

/// What the ends do, in all levels.
fn play_priority_channel(plays: &[(Act, bool)]) {
    type Levels = Channel<FixedPriorityQueue<u32, LEVELS, 2>>;
    let here = Shared::anonymous(Levels::new(FixedPriorityQueue::new())).unwrap();
    let there = Shared::<Levels>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    let mut models: [Model; LEVELS] =
        core::array::from_fn(|_| Model { capacity: 2, ..Model::default() });
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    let (mut sent_to, mut received_from) = (false, false); // whether the end was ever held
    for &(act, first) in plays {
        let channel = if first { &here } else { &there };
        match act {
            Act::Come(true) => {
                senders.push(channel.sender().unwrap());
                received_from = true;
            }
            Act::Come(false) => {
                receivers.push(channel.receiver().unwrap());
                sent_to = true;
            }
            Act::Leave(true) => drop(senders.pop()),
            Act::Leave(false) => drop(receivers.pop()),
            Act::Send(message) => {
                let Some(sender) = senders.last() else { continue };
                let level = message as usize % LEVELS;
                let expected = if !models[level].closed && sent_to && receivers.is_empty() {
                    Err(TrySendError::Disconnected(message))
                } else {
                    models[level].send(message)
                };
                assert_eq!(sender.clone().try_send(level, message), expected);
            }
            Act::Close => {
                channel.close();
                models.iter_mut().for_each(|model| model.closed = true);
            }
            Act::Look => {
                let lens: Vec<_> = models.iter().map(|model| model.ring.len()).collect();
                let found: Vec<_> = (0..LEVELS).map(|level| channel.len_of(level)).collect();
                assert_eq!((found, channel.len()), (lens.clone(), lens.iter().sum()));
                assert_eq!(channel.is_closed(), models[0].closed);
            }
            _ => {
                let Some(receiver) = receivers.first() else { continue };
                let urgent = models.iter().rposition(|model| !model.is_empty());
                let expected = match urgent {
                    Some(level) => Ok((level, models[level].ring.pop_front().unwrap())),
                    None if models[0].closed => Err(TryRecvError::Closed),
                    None if received_from && senders.is_empty() => Err(TryRecvError::Disconnected),
                    None => Err(TryRecvError::Empty),
                };
                let received = match act {
                    Act::ReceiveToAcknowledge => {
                        receiver.try_recv_ack().map(|job| (job.priority(), job.ack().unwrap()))
                    }
                    _ => receiver.clone().try_recv(),
                };
                assert_eq!(received, expected);
            }
        }
    }
}

#[test]
fn queue_and_model_agree() {
    let _watchdog = watch_alone("queue_and_model_agree");
    proptest!(cases(), |(capacity in 1..5_usize, plays in plays())| play_queue(capacity, &plays));
}

#[test]
fn ring_and_model_agree() {
    let _watchdog = watch_alone("ring_and_model_agree");
    proptest!(cases(), |(capacity in 1..5_usize, plays in plays())| play_ring(capacity, &plays));
}

#[test]
fn channel_and_model_agree() {
    let _watchdog = watch_alone("channel_and_model_agree");
    proptest!(cases(), |(capacity in 1..5_usize, closes: bool, plays in plays())| {
        let plays: Vec<_> =
            plays.into_iter().filter(|(act, _)| closes || !matches!(act, Act::Close)).collect();
        play_channel(capacity, &plays);
    });
}

#[test]
fn byte_channel_and_model_agree() {
    let _watchdog = watch_alone("byte_channel_and_model_agree");
    proptest!(cases(), |(capacity in 1..5_usize, closes: bool, plays in plays())| {
        let plays: Vec<_> =
            plays.into_iter().filter(|(act, _)| closes || !matches!(act, Act::Close)).collect();
        play_byte_channel(capacity, &plays);
    });
}

#[test]
fn priority_and_model_agree() {
    let _watchdog = watch_alone("priority_and_model_agree");
    proptest!(cases(), |(plays in plays())| play_priority(&plays));
}

#[test]
fn priority_channel_and_model_agree() {
    let _watchdog = watch_alone("priority_channel_and_model_agree");
    proptest!(cases(), |(closes: bool, plays in plays())| {
        let plays: Vec<_> =
            plays.into_iter().filter(|(act, _)| closes || !matches!(act, Act::Close)).collect();
        play_priority_channel(&plays);
    });
}
