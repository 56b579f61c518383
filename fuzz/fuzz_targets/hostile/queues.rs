//! Queues of every other kind, and what is done with them.
use crate::{Kind, Memory, Quietly as _, SOON, UNPLACED, assert_apart, bytes_of, keep, kind};
use outlast::bytes::{self, Store};
use outlast::log::{FixedJournal, Journal, Level, Records, WhenFull};
use outlast::queue::value::FixedValueQueue;
use outlast::spsc::{Consumer, FixedRing, Producer, Ring};
use outlast::{
    ByteQueue, Channel, Connection, Delivery, FixedByteQueue, FixedPipe, FixedPriorityQueue,
    FixedQueue, Pipe, Queue, Receiver, Sender,
};
use std::fmt::Debug;
use std::mem::offset_of;
use std::sync::OnceLock;
use std::time::Instant;

outlast::shared! {
    /// One of each that is not in [`Everything`](crate::Everything).
    pub struct Queues {
        pub jobs: FixedQueue<u64, 4>,
        pub buried: FixedQueue<u64, 2>,
        pub priority: FixedPriorityQueue<Kind, 3, 2>,
        pub channel: Channel<FixedQueue<Kind, 3>>,
        pub urgent: Channel<FixedPriorityQueue<Kind, 3, 2>>,
        pub ring: FixedRing<Kind, 4>,
        pub bytes: FixedByteQueue<8>,
        pub values: FixedValueQueue<Value, 8>,
        pub pipe: FixedPipe<8>,
        pub journal: FixedJournal<4>,
    }
}

type Levels = FixedPriorityQueue<Kind, 3, 2>;
type Urgent = Channel<Levels>;
type Few = FixedQueue<Kind, 3>;
/// Of a type with all that a decoder checks: lengths, text, the kind of an enum.
type Value = (Option<String>, Vec<Result<u64, bool>>, char);

impl Queues {
    pub fn new() -> Self {
        Queues {
            jobs: FixedQueue::new(),
            buried: FixedQueue::new(),
            priority: FixedPriorityQueue::new(),
            channel: Channel::new(FixedQueue::new()),
            urgent: Channel::new(FixedPriorityQueue::new()),
            ring: FixedRing::new(),
            bytes: FixedByteQueue::new(),
            values: FixedValueQueue::new(),
            pipe: FixedPipe::new(),
            journal: FixedJournal::new(),
        }
    }

    /// Some messages in each.
    pub fn fill(&self) {
        for i in 0..2 {
            self.jobs.try_send(i).expect("room");
            self.priority.try_send(1, Kind::Draw).expect("room");
            self.channel.sender().expect("an end").try_send(Kind::Erase).expect("room");
            self.urgent.sender().expect("an end").try_send(2, Kind::Erase).expect("room");
            self.ring.producer().expect("the role").try_send(Kind::Draw).expect("room");
            self.bytes.try_send(b"message").expect("room");
            self.values.try_send(&(Some("text".into()), vec![Ok(1)], 'x')).expect("room");
            self.journal.write(Level::Info, "target", "message").expect("a peer");
        }
        let (first, _second) = (self.pipe.first().expect("a side"), self.pipe.second());
        first.try_send_bytes(b"message").expect("room");
        self.jobs.try_recv_ack().expect("a message").nack();
        self.priority.try_recv_ack().expect("a message").nack();
        self.bytes.try_recv_ack().expect("a message").nack();
    }
}

/// Where the robust words of a pipe's turns are: before they are placed, they name an owner that
/// cannot be.
pub fn locks_of_pipe() -> &'static [usize] {
    static PLACES: OnceLock<Vec<usize>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let memory = Memory::new(size_of::<FixedPipe<8>>());
        // SAFETY: as long as a pipe, and aligned as one.
        unsafe { memory.base.cast::<FixedPipe<8>>().write(FixedPipe::new()) };
        let words = (0..memory.len()).step_by(4);
        let places: Vec<usize> = words.filter(|&at| memory.word(at) == UNPLACED).collect();
        assert!(places.len() >= 4, "two turns each way");
        places
    })
}

/// Those of the pipe among the others.
pub fn locks() -> impl Iterator<Item = usize> {
    locks_of_pipe().iter().map(|at| offset_of!(Queues, pipe) + at)
}

/// What is held from step to step.
pub struct Held<'a> {
    jobs: Vec<Delivery<'a, u64>>,
    priority: Vec<Delivery<'a, Kind, 3>>,
    few_senders: Vec<Sender<Few, &'a Channel<Few>>>,
    few_receivers: Vec<Receiver<Few, &'a Channel<Few>>>,
    senders: Vec<Sender<Queue<Kind>, &'a Channel<Queue<Kind>>>>,
    receivers: Vec<Receiver<Queue<Kind>, &'a Channel<Queue<Kind>>>>,
    producer: Option<Producer<Kind, &'a Ring<Kind>>>,
    consumer: Option<Consumer<Kind, &'a Ring<Kind>>>,
    loans: Vec<bytes::Loan<'a>>,
    messages: Vec<bytes::Ref<'a>>,
    deliveries: Vec<bytes::Delivery<'a>>,
    sides: [Vec<Connection<&'a Pipe>>; 2],
    records: Vec<Records<'a>>,
    urgent_senders: Vec<Sender<Levels, &'a Urgent>>,
    urgent_receivers: Vec<Receiver<Levels, &'a Urgent>>,
    byte_senders: Vec<Sender<ByteQueue, &'a Channel<ByteQueue>>>,
    byte_receivers: Vec<Receiver<ByteQueue, &'a Channel<ByteQueue>>>,
}

/// What is done with a channel of plain messages.
macro_rules! use_channel {
    ($use:ident, $queue:ty, $senders:ident, $receivers:ident) => {
        pub fn $use(&mut self, channel: &'a Channel<$queue>, how: u8) {
            let (sender, receiver) = (self.$senders.last(), self.$receivers.last());
            match how % 20 {
                0 | 1 => channel.sender().map_or((), |end| keep(&mut self.$senders, 0x40, end)),
                2 | 3 => channel.receiver().map_or((), |end| keep(&mut self.$receivers, 0x40, end)),
                4 => drop(self.$senders.pop()),
                5 => drop(self.$receivers.pop()),
                6 => drop(sender.map(|end| end.try_send(kind(how)))),
                7 => drop(sender.map(|end| end.send_timeout(kind(how), SOON))),
                8 => drop(sender.map(|end| end.send_deadline(kind(how), Instant::now()))),
                9 => drop(receiver.map(|end| seen(end.try_recv()))),
                10 => drop(receiver.map(|end| seen(end.recv_timeout(SOON)))),
                11 => drop(receiver.map(|end| seen(end.recv_deadline(Instant::now())))),
                12 => drop(receiver.map(|end| end.try_recv_ack().map(Delivery::ack))),
                13 => drop(receiver.map(|end| drop(end.recv_ack_timeout(SOON)))),
                14 => drop(receiver.map(|end| end.try_iter().take(9).count())),
                15 => drop((sender.cloned(), receiver.cloned())),
                16 => drop(channel.join_timeout(SOON)),
                17 => channel.close(),
                18 => seen_all(&(channel.senders(), channel.receivers(), channel.len())),
                _ => seen_all(&(channel, sender, receiver)),
            }
        }
    };
}

impl<'a> Held<'a> {
    pub fn nothing() -> Self {
        Held {
            jobs: Vec::new(),
            priority: Vec::new(),
            few_senders: Vec::new(),
            few_receivers: Vec::new(),
            senders: Vec::new(),
            receivers: Vec::new(),
            producer: None,
            consumer: None,
            loans: Vec::new(),
            messages: Vec::new(),
            deliveries: Vec::new(),
            sides: [Vec::new(), Vec::new()],
            records: Vec::new(),
            urgent_senders: Vec::new(),
            urgent_receivers: Vec::new(),
            byte_senders: Vec::new(),
            byte_receivers: Vec::new(),
        }
    }

    pub fn step(&mut self, all: &'a Queues, what: u8, how: u8) {
        match what % 9 {
            8 => self.use_priority_channel(&all.urgent, how),
            0 => self.bury(&all.jobs, &all.buried, how),
            1 => self.use_priority(&all.priority, how),
            2 => self.use_few(&all.channel, how),
            3 => self.use_ring(&all.ring, how),
            4 => self.use_bytes(&all.bytes, how),
            5 => self.use_pipe(&all.pipe, how),
            6 => self.use_values(&all.values, how),
            _ => self.use_journal(&all.journal, how),
        }
    }

    fn bury(&mut self, jobs: &'a Queue<u64>, buried: &Queue<u64>, how: u8) {
        let limit = [0, 1, 2, u32::MAX][usize::from(how) / 8 % 4];
        let mut hold = |job: Option<Delivery<'a, u64>>| {
            job.into_iter().for_each(|job| keep(&mut self.jobs, how, job));
        };
        match how % 8 {
            0 => hold(jobs.try_recv_ack_or_dead_letter(limit, buried).ok()),
            1 => hold(jobs.recv_ack_or_dead_letter_timeout(limit, buried, SOON).ok()),
            2 => hold(jobs.recv_ack_or_dead_letter_deadline(limit, buried, Instant::now()).ok()),
            // A queue's own dead letters go to its end.
            3 => hold(jobs.recv_ack_or_dead_letter_timeout(limit, jobs, SOON).ok()),
            4 => drop(self.jobs.pop().map(Delivery::ack)),
            5 => drop(self.jobs.pop()),
            6 => jobs.try_send(how.into()).quietly(),
            _ => drop((buried.try_recv(), format!("{jobs:?} {buried:?}"))),
        }
    }

    fn use_priority(&mut self, queue: &'a Levels, how: u8) {
        let (level, value) = (usize::from(how) % 3, kind(how));
        let mut hold = |job: Option<Delivery<'a, Kind, 3>>| {
            job.into_iter().for_each(|job| {
                drop(format!("{job:?} {} {}", job.priority(), job.attempts()));
                keep(&mut self.priority, how, job);
            });
        };
        match how % 16 {
            0 => queue.try_send(level, value).quietly(),
            1 => queue.send_timeout(level, value, SOON).quietly(),
            2 => queue.send_deadline(level, value, Instant::now()).quietly(),
            3 => seen(queue.try_recv()),
            4 => seen(queue.recv_timeout(SOON)),
            5 => seen(queue.recv_deadline(Instant::now())),
            6 => hold(queue.try_recv_ack().ok()),
            7 => hold(queue.recv_ack_timeout(SOON).ok()),
            8 => hold(queue.recv_ack_deadline(Instant::now()).ok()),
            9 => drop(self.priority.pop().map(Delivery::ack)),
            10 => drop(self.priority.pop()),
            11 => queue.try_iter().take(9).for_each(|message| drop(format!("{message:?}"))),
            12 => drop(queue.join_timeout(SOON)),
            13 => queue.close(),
            14 => {
                seen_all(&(queue.len(), queue.len_of(level), queue.is_empty(), queue.is_closed()))
            }
            _ => seen_all(queue),
        }
    }

    fn use_priority_channel(&mut self, channel: &'a Urgent, how: u8) {
        let (sender, receiver) = (self.urgent_senders.last(), self.urgent_receivers.last());
        let (level, value) = (usize::from(how) / 16 % 4, kind(how)); // or one that there is not
        match how % 16 {
            0 | 1 => channel.sender().map_or((), |end| keep(&mut self.urgent_senders, 0x40, end)),
            2 | 3 => {
                if let Ok(end) = channel.receiver() {
                    keep(&mut self.urgent_receivers, 0x40, end);
                }
            }
            4 => drop(self.urgent_senders.pop()),
            5 => drop(self.urgent_receivers.pop()),
            6 => drop(sender.map(|end| end.try_send(level, value))),
            7 => drop(sender.map(|end| end.send_timeout(level, value, SOON))),
            8 => drop(sender.map(|end| end.send_deadline(level, value, Instant::now()))),
            9 => drop(receiver.map(|end| seen(end.try_recv()))),
            10 => drop(receiver.map(|end| seen(end.recv_timeout(SOON)))),
            11 => drop(receiver.map(|end| end.try_recv_ack().map(Delivery::ack))),
            12 => drop(receiver.map(|end| end.try_iter().take(9).count())),
            13 => drop((sender.cloned(), receiver.cloned())),
            14 => channel.close(),
            _ => seen_all(&(channel, sender, receiver, channel.senders(), channel.len_of(level))),
        }
    }

    use_channel! { use_few, Few, few_senders, few_receivers }
    use_channel! { use_channel, Queue<Kind>, senders, receivers }

    pub fn use_ring(&mut self, ring: &'a Ring<Kind>, how: u8) {
        let many = usize::from(how) / 24;
        let mut all = Vec::new();
        let (producer, consumer) = (self.producer.as_mut(), self.consumer.as_mut());
        match how % 24 {
            0 => self.producer = ring.try_producer().ok().or(self.producer.take()),
            1 => self.producer = ring.producer_timeout(SOON).ok().or(self.producer.take()),
            2 => self.consumer = ring.try_consumer().ok().or(self.consumer.take()),
            3 => {
                self.consumer = ring.consumer_deadline(Instant::now()).ok().or(self.consumer.take())
            }
            4 => self.producer = None,
            5 => self.consumer = None,
            6 | 7 => drop(producer.map(|end| end.try_send(kind(how)))),
            8 => drop(producer.map(|end| end.send_timeout(kind(how), SOON))),
            9 => drop(producer.map(|end| end.send_deadline(kind(how), Instant::now()))),
            10 => drop(producer.map(|end| end.try_send_batch(&[kind(how); 6][..many % 7]))),
            11 => drop(producer.map(|end| {
                let Ok(mut chunk) = end.try_write_chunk(many) else { return };
                (0..chunk.len()).for_each(|i| chunk.set(i, kind(how)));
                drop(format!("{chunk:?}"));
                chunk.commit(many / 2).quietly();
            })),
            12 | 13 => drop(consumer.map(|end| seen(end.try_recv()))),
            14 => drop(consumer.map(|end| seen(end.recv_timeout(SOON)))),
            15 => drop(consumer.map(|end| seen(end.recv_deadline(Instant::now())))),
            // It waits for the first message, but not if the ring is closed.
            16 if ring.is_closed() => drop(consumer.map(|end| end.recv_batch(&mut all, many))),
            16 => drop(consumer.map(|end| {
                // What is there is received without waiting, if no scribble says otherwise.
                let mut to = [Kind::Draw; 3];
                if end.try_read_chunk(1).is_ok() {
                    seen(end.recv_into(&mut to[..many % 4]));
                }
                seen_all(&to);
            })),
            17 => drop(consumer.map(|end| {
                let Ok(chunk) = end.try_read_chunk(many) else { return };
                drop(format!("{chunk:?}"));
                (0..=chunk.len()).for_each(|i| seen_all(&chunk.get(i)));
                chunk.consume(many / 2).quietly();
            })),
            18 => seen_all(&(ring.len(), ring.is_empty(), ring.is_full(), ring.is_closed())),
            19 => seen_all(&(ring.sent(), ring.received(), ring.capacity())),
            20 => ring.close(),
            21 => drop(producer.map(|end| end.predecessor_died())),
            22 => drop(consumer.map(|end| end.predecessor_died())),
            _ => seen_all(&(ring, producer, consumer)),
        }
    }

    pub fn use_bytes<S: Store + ?Sized>(&mut self, queue: &'a ByteQueue<S>, how: u8) {
        let len = [0, 1, 60, 64, 200, 440, 100_000][usize::from(how) / 20 % 7];
        let message = vec![how; len];
        let mut hold = |message: Option<bytes::Ref<'a>>| {
            message.into_iter().for_each(|message| {
                drop(format!("{message:?} {:?}", message.to_vec()));
                keep(&mut self.messages, how, message);
            });
        };
        match how % 24 {
            0 => queue.try_send(&message).quietly(),
            1 => queue.send_timeout(&message, SOON).quietly(),
            2 => queue.send_deadline(&message, Instant::now()).quietly(),
            3 | 4 => queue.try_loan(len).map_or((), |mut loan| {
                loan.fill(how);
                keep(&mut self.loans, how | 0x40, loan);
            }),
            5 => drop(queue.loan_timeout(len, SOON)),
            6 => drop(self.loans.pop().map(bytes::Loan::send)),
            7 => drop(self.loans.pop().map(|loan| {
                let len = loan.len();
                loan.send_len(len / 2)
            })),
            8 => drop(self.loans.pop()),
            9 => seen(queue.try_recv()),
            10 => seen(queue.recv_timeout(SOON)),
            11 => seen(queue.recv_deadline(Instant::now())),
            12 => hold(queue.try_recv_ref().ok()),
            13 => hold(queue.recv_ref_timeout(SOON).ok()),
            14 => drop(self.messages.pop()),
            15 => drop(self.messages.pop().map(bytes::Ref::give_back)),
            16 => queue.try_iter().take(9).for_each(drop),
            17 => queue.close(),
            18 => seen_all(&(queue.len(), queue.is_empty(), queue.is_closed(), queue.capacity())),
            19 | 20 => queue.try_recv_ack().map_or((), |job| keep(&mut self.deliveries, how, job)),
            21 => drop(self.deliveries.pop()),
            22 => drop(self.deliveries.pop().map(bytes::Delivery::ack)),
            _ => seen_all(&(queue, &self.messages, &self.loans, &self.deliveries)),
        }
        let delivered = self.deliveries.iter().map(|job| bytes_of(&**job));
        let lent = delivered.chain(self.messages.iter().map(|message| bytes_of(&**message)));
        assert_apart(lent.chain(self.loans.iter().map(|loan| bytes_of(&**loan))));
    }

    pub fn use_byte_channel(&mut self, channel: &'a Channel<ByteQueue>, how: u8) {
        let (sender, receiver) = (self.byte_senders.last(), self.byte_receivers.last());
        let message = vec![how; [0, 1, 60, 64, 200, 440, 100_000][usize::from(how) / 20 % 7]];
        match how % 20 {
            0 | 1 => channel.sender().map_or((), |end| keep(&mut self.byte_senders, 0x40, end)),
            2 | 3 => channel.receiver().map_or((), |end| keep(&mut self.byte_receivers, 0x40, end)),
            4 => drop(self.byte_senders.pop()),
            5 => drop(self.byte_receivers.pop()),
            6 => drop(sender.map(|end| end.try_send(&message))),
            7 => drop(sender.map(|end| end.send_timeout(&message, SOON))),
            8 => drop(sender.map(|end| end.send_deadline(&message, Instant::now()))),
            9 => drop(sender.map(|end| {
                end.try_loan(message.len()).map(|mut loan| {
                    loan.fill(how);
                    if how >= 0x80 {
                        self.byte_receivers.clear(); // perhaps to nobody
                    }
                    loan.send_len(usize::from(how))
                })
            })),
            10 => drop(receiver.map(|end| seen(end.try_recv()))),
            11 => drop(receiver.map(|end| seen(end.recv_timeout(SOON)))),
            12 => drop(receiver.map(|end| seen(end.recv_deadline(Instant::now())))),
            13 => drop(receiver.map(|end| end.try_recv_ref().map(bytes::Ref::give_back))),
            14 => drop(receiver.map(|end| end.try_iter().take(9).count())),
            15 => drop((sender.cloned(), receiver.cloned())),
            16 => drop(receiver.map(|end| end.try_recv_ack().map(bytes::Delivery::ack))),
            17 => channel.close(),
            18 => seen_all(&(channel.senders(), channel.receivers(), channel.len())),
            _ => seen_all(&(channel, sender, receiver)),
        }
    }

    pub fn use_pipe(&mut self, pipe: &'a Pipe, how: u8) {
        let side = usize::from(how & 0x80 != 0);
        let len = [0, 1, 60, 64, 200, 900][usize::from(how) / 12 % 6];
        let message = vec![how; len];
        let here = self.sides[side].last();
        match how % 12 {
            0 | 1 => {
                let connection = if side == 0 { pipe.first() } else { pipe.second() };
                _ = connection.map(|end| keep(&mut self.sides[side], 0x40, end));
            }
            2 => drop(self.sides[side].pop()),
            3 => drop(here.map(|end| end.try_send_bytes(&message))),
            4 => drop(here.map(|end| end.send_bytes_timeout(&message, SOON))),
            5 => drop(here.map(|end| end.send_bytes_deadline(&message, Instant::now()))),
            6 => drop(here.map(|end| seen(end.try_recv_bytes()))),
            7 => drop(here.map(|end| seen(end.recv_bytes_timeout(SOON)))),
            8 => drop(here.map(|end| seen(end.recv_bytes_deadline(Instant::now())))),
            9 => drop(here.map(|end| end.poll_timeout(SOON))),
            10 => drop(here.cloned()),
            _ => seen_all(&(pipe, pipe.capacity(), here)),
        }
    }

    fn use_values(&mut self, queue: &'a FixedValueQueue<Value, 8>, how: u8) {
        let value: Value = (Some("ä".repeat(how.into())), vec![Ok(u64::MAX); how.into()], 'ö');
        let here = self.sides[usize::from(how & 0x80 != 0)].last();
        match how % 10 {
            0 => queue.try_send(&value).quietly(),
            1 => queue.send_timeout(&value, SOON).quietly(),
            2 => seen(queue.try_recv()),
            3 => seen(queue.recv_timeout(SOON)),
            4 => drop(queue.try_recv_ack().map(|job| drop(format!("{job:?}")))),
            5 => drop(here.map(|end| end.try_send(&value))),
            6 => drop(here.map(|end| end.send_timeout(&value, SOON))),
            7 => drop(here.map(|end| seen(end.try_recv::<Value>()))),
            8 => drop(here.map(|end| seen(end.recv_timeout::<Value>(SOON)))),
            _ => seen(queue.recv_deadline(Instant::now())),
        }
    }

    pub fn use_journal(&mut self, journal: &'a Journal, how: u8) {
        let text = "äöü and more ".repeat(usize::from(how));
        match how % 10 {
            0..=2 => journal.write(Level::Warn, "target", &text).quietly(),
            3 => keep(&mut self.records, 0x40, journal.records()),
            4 => drop(self.records.pop()),
            5 => drop(self.records.last_mut().map(|records| {
                records.try_next().map(|record| drop(format!("{record} {record:?}")))
            })),
            6 => drop(self.records.last_mut().map(|records| records.next_timeout(SOON))),
            7 => journal.set_when_full(
                [WhenFull::OverwriteOldest, WhenFull::DropNewest][usize::from(how) / 128],
            ),
            8 => journal.close(),
            _ => seen_all(&(journal, journal.losses(), journal.is_closed())),
        }
    }
}

fn seen<T: Debug, E>(received: Result<T, E>) {
    if let Ok(message) = received {
        seen_all(&message);
    }
}

fn seen_all<T: Debug>(things: &T) {
    drop(format!("{things:?}"));
}
