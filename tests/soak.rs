//! Processes that use all primitives at the same time, and a pool, are killed at random and
//! replaced.
//!
//! Each round has a new segment. Its workers do one random operation after the other, most of which
//! block. A worker is killed at a random time, or kills itself at a random point of the source.
//! Threads pause at random points, and no second look hides a lost wake. At the end of a round no
//! worker may still sleep. The primitives must hold what the workers have noted in memory that the
//! crate does not know.
//!
//! `OUTLAST_KILLS` sets how many processes are killed: 2,000 if it is not set. A part of the
//! program is run with a recovery that skips one primitive. The same checks must catch this.
#![cfg(not(outlast_loom))]
#![cfg_attr(
    outlast_hooks,
    expect(unsafe_code, reason = "a wrapper that lies in shared memory, and signals")
)]

#[cfg(not(outlast_hooks))]
fn main() {}

#[cfg(outlast_hooks)]
mod common;

#[cfg(outlast_hooks)]
fn main() -> std::process::ExitCode {
    outlast::process::init();
    soak::main()
}

#[cfg(outlast_hooks)]
mod soak {
    use crate::common::{Child, Exit, KILLED, OK, Random, complain, fork_child, is_alive, ms};
    use crate::common::{exit_now, plain_shared, rearm, waits, watch_for};
    use core::sync::atomic::Ordering::{Relaxed, SeqCst};
    use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
    use outlast::__private::{Dead, Layout};
    use outlast::hooks::{self, Action};
    use outlast::pool::Pool;
    use outlast::spsc::{self, FixedRing, RoleError};
    use outlast::{
        Barrier, BarrierError, Channel, Condition, Event, FixedByteQueue, FixedPipe,
        FixedPriorityQueue, FixedQueue, Latch, Lock, LockError, LockGuard, OnDeath, OnceCell,
        Options, OwnedSemaphore, ReentrantLock, RwLock, Semaphore, Shareable, Shared, WriteGuard,
    };
    use std::collections::BTreeMap;
    use std::process::{Command, ExitCode};
    use std::time::{Duration, Instant};

    const WORKERS: usize = 6;
    const POOL_WORKERS: usize = 2;
    /// Kills in a round. Few, as it is at its end that a lost wake shows: until then others may
    /// make up for it.
    const ROUND: u64 = 10;
    /// Numbers of messages in a round, for each line.
    const NUMBERS: usize = 1 << 12;
    const CELLS: usize = 24;
    const PERMITS: u32 = 3;
    const CAUGHT: u8 = 3;

    // ------------------------------------------------------------------------------ the segment

    /// A primitive that recovery passes over if its number is [`PASSED_OVER`].
    #[repr(transparent)]
    struct Mended<T, const NUMBER: u32>(T);

    static PASSED_OVER: AtomicU32 = AtomicU32::new(u32::MAX);

    // SAFETY: the bytes of the primitive.
    unsafe impl<T: Shareable, const NUMBER: u32> Shareable for Mended<T, NUMBER> {
        const FINGERPRINT: u64 = T::FINGERPRINT;
        const NEEDS_PEERS: bool = true;
        outlast::__sized_shareable!();
        fn layout() -> Layout {
            T::layout()
        }
        fn place(&self) {
            self.0.place();
        }
        fn recover(&self, dead: &Dead) {
            if PASSED_OVER.load(Relaxed) != NUMBER {
                self.0.recover(dead);
            }
        }
        fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
            self.0.in_use(ours)
        }
    }

    outlast::shared! {
        struct World {
            lock: Mended<Lock<[u64; 2]>, 0>,
            relock: Mended<ReentrantLock<[u64; 2]>, 1>,
            rwlock: Mended<RwLock<[u64; 2]>, 2>,
            tokens: Mended<Lock<u64>, 3>,
            changed: Mended<Condition, 4>,
            cells: Mended<[OnceCell<[u64; 2]>; CELLS], 5>,
            semaphore: Mended<Semaphore, 6>,
            owned: Mended<OwnedSemaphore, 7>,
            manual: Mended<Event, 8>,
            auto: Mended<Event, 9>,
            barrier: Mended<Barrier, 10>,
            shrinking: Mended<Barrier, 11>,
            latch: Mended<Latch, 12>,
            queue: Mended<FixedQueue<u64, 8>, 13>,
            jobs: Mended<FixedQueue<u64, 8>, 14>,
            priority: Mended<FixedPriorityQueue<u64, 3, 4>, 15>,
            bytes: Mended<FixedByteQueue<64>, 16>,
            channel: Mended<Channel<FixedQueue<u64, 8>>, 17>,
            byte_channel: Mended<Channel<FixedByteQueue<64>>, 18>,
            priority_channel: Mended<Channel<FixedPriorityQueue<u64, 3, 4>>, 19>,
            pipe: Mended<FixedPipe<32>, 20>,
            ring: Mended<FixedRing<u64, 8>, 21>,
        }
    }

    fn world() -> Shared<World> {
        let made = Options::new().processes(32).threads(64).anonymous(World {
            lock: Mended(Lock::new([0; 2])),
            relock: Mended(ReentrantLock::new([0; 2])),
            rwlock: Mended(RwLock::new([0; 2])),
            tokens: Mended(Lock::new(0)),
            changed: Mended(Condition::new()),
            cells: Mended(core::array::from_fn(|_| OnceCell::new())),
            semaphore: Mended(Semaphore::new(PERMITS)),
            owned: Mended(OwnedSemaphore::new(PERMITS)),
            manual: Mended(Event::manual(false)),
            auto: Mended(Event::auto(false)),
            barrier: Mended(Barrier::new(2)),
            shrinking: Mended(Barrier::shrinking(3)),
            latch: Mended(Latch::with(1, OnDeath::CountDown)),
            queue: Mended(FixedQueue::new()),
            jobs: Mended(FixedQueue::new()),
            priority: Mended(FixedPriorityQueue::new()),
            bytes: Mended(FixedByteQueue::new()),
            channel: Mended(Channel::new(FixedQueue::new())),
            byte_channel: Mended(Channel::new(FixedByteQueue::new())),
            priority_channel: Mended(Channel::new(FixedPriorityQueue::new())),
            pipe: Mended(FixedPipe::new()),
            ring: Mended(FixedRing::new()),
        });
        made.unwrap()
    }

    // ---------------------------------------------------------------------------------- the books

    const LINES: usize = 8;
    const JOBS: usize = 1;

    outlast::shared! {
        /// What the workers say of themselves and of the messages, in memory that the crate knows
        /// nothing of.
        struct Books {
            /// The operation that each worker is in, or 0.
            operation: [AtomicU32; WORKERS],
            /// Process id and owned permits of each worker.
            owned: [AtomicU64; WORKERS],
            stop: AtomicU32,
            /// The owners of the exclusive locks.
            inside: [AtomicU32; 3],
            given: AtomicU32,
            taken: AtomicU32,
            passed: [AtomicU32; 2],
            /// Whether each worker is a party of the shrinking barrier: it has returned from a
            /// wait.
            is_party: [AtomicU32; WORKERS],
            values: [AtomicU64; CELLS],
            next: [AtomicU32; LINES],
            /// 1 before a message is sent, 2 after that.
            sent: [[AtomicU32; NUMBERS]; LINES],
            received: [[AtomicU32; NUMBERS]; LINES],
            acknowledged: [AtomicU32; NUMBERS],
        }
    }

    impl Books {
        fn clear(&self) {
            let zero = |words: &[AtomicU32]| words.iter().for_each(|word| word.store(0, SeqCst));
            zero(&self.operation);
            zero(&self.inside);
            zero(&self.passed);
            zero(&self.is_party);
            zero(core::slice::from_ref(&self.stop));
            zero(core::slice::from_ref(&self.given));
            zero(core::slice::from_ref(&self.taken));
            zero(&self.next);
            self.sent.iter().chain(&self.received).for_each(|line| zero(line));
            zero(&self.acknowledged);
            self.owned.iter().chain(&self.values).for_each(|word| word.store(0, SeqCst));
        }

        fn is_at(&self, operation: u32) -> bool {
            self.operation.iter().any(|other| other.load(SeqCst) == operation)
        }

        /// Adds one, and panics if that is more than `most`.
        fn note(words: &[AtomicU32; NUMBERS], n: u64, most: u32) {
            let before = words[usize::try_from(n).unwrap()].fetch_add(1, SeqCst);
            assert!(before < most, "message {n} came {} times", before + 1);
        }
    }

    const ATTACH: u32 = 1;
    const LOCK: u32 = 2;
    const RELOCK: u32 = 3;
    const READ: u32 = 4;
    const WRITE: u32 = 5;
    const CELL: u32 = 6;
    const SEMAPHORE: u32 = 7;
    const OWNED: u32 = 8;
    const MANUAL: u32 = 9;
    const AUTO: u32 = 10;
    const TAKE: u32 = 11;
    const GIVE: u32 = 12;
    const BARRIER: u32 = 13;
    const SHRINKING: u32 = 14;
    const LATCH: u32 = 15;
    const PRODUCE: u32 = 16;
    const CONSUME: u32 = 17;
    const FIRST_LINE: u32 = 18;
    const OPERATIONS: u32 = FIRST_LINE + 2 * 8;
    const _: () = assert!(LINES == 8);

    fn send_to(line: usize) -> u32 {
        FIRST_LINE + 2 * u32::try_from(line).unwrap()
    }

    fn receive_from(line: usize) -> u32 {
        send_to(line) + 1
    }

    fn name(operation: u32) -> String {
        const NAMES: [&str; FIRST_LINE as usize] = [
            "between",
            "attach",
            "lock",
            "relock",
            "read",
            "write",
            "cell",
            "semaphore",
            "owned",
            "manual",
            "auto",
            "take",
            "give",
            "barrier",
            "shrinking",
            "latch",
            "produce",
            "consume",
        ];
        const OF_LINES: [&str; LINES] = [
            "queue",
            "jobs",
            "priority",
            "bytes",
            "channel",
            "byte channel",
            "priority channel",
            "pipe",
        ];
        let operation = usize::try_from(operation).unwrap();
        match operation.checked_sub(NAMES.len()) {
            None => NAMES[operation].into(),
            Some(at) => format!("{} {}", ["to", "from"][at % 2], OF_LINES[at / 2]),
        }
    }

    // ------------------------------------------------------------------------------------- lines

    type Receive<'a> = dyn Fn(&dyn Fn(u64)) + 'a;

    /// A kind of queue.
    struct Line<'a> {
        send: Box<dyn Fn(u64) + 'a>,
        try_send: Box<dyn Fn(u64) -> bool + 'a>,
        /// Receives a message, and has it noted.
        receive: Box<Receive<'a>>,
        try_receive: Box<dyn Fn() -> Option<u64> + 'a>,
        is_empty: Box<dyn Fn() -> bool + 'a>,
    }

    fn letter(n: u64) -> Vec<u8> {
        let rest = (0..n % 300).map(|i| (n + i).to_le_bytes()[0]);
        n.to_le_bytes().into_iter().chain(rest).collect()
    }

    fn number(message: &[u8]) -> u64 {
        let n = u64::from_le_bytes(message[..8].try_into().unwrap());
        assert!(message == letter(n), "message {n} is torn");
        n
    }

    fn level(n: u64) -> usize {
        usize::try_from(n % 3).unwrap()
    }

    fn lines<'a>(world: &'a World, books: &'a Books) -> [Line<'a>; LINES] {
        let (queue, jobs, priority) = (&world.queue.0, &world.jobs.0, &world.priority.0);
        let (bytes, channel, letters) = (&world.bytes.0, &world.channel.0, &world.byte_channel.0);
        let (levels, pipe) = (&world.priority_channel.0, &world.pipe.0);
        let leveled = |(at, n): (usize, u64)| {
            assert_eq!(at, level(n));
            n
        };
        [
            Line {
                send: Box::new(|n| queue.send(n).unwrap()),
                try_send: Box::new(|n| queue.try_send(n).is_ok()),
                receive: Box::new(|note| note(queue.recv().unwrap())),
                try_receive: Box::new(|| queue.try_recv().ok()),
                is_empty: Box::new(|| queue.is_empty()),
            },
            Line {
                send: Box::new(|n| jobs.send(n).unwrap()),
                try_send: Box::new(|n| jobs.try_send(n).is_ok()),
                receive: Box::new(|note| {
                    let job = jobs.recv_ack().unwrap();
                    note(*job);
                    let n = job.ack().unwrap();
                    Books::note(&books.acknowledged, n, 1);
                }),
                try_receive: Box::new(|| {
                    let n = jobs.try_recv_ack().ok()?.ack().unwrap();
                    Books::note(&books.acknowledged, n, 1);
                    Some(n)
                }),
                is_empty: Box::new(|| jobs.is_empty()),
            },
            Line {
                send: Box::new(|n| priority.send(level(n), n).unwrap()),
                try_send: Box::new(|n| priority.try_send(level(n), n).is_ok()),
                receive: Box::new(move |note| note(leveled(priority.recv().unwrap()))),
                try_receive: Box::new(move || priority.try_recv().ok().map(leveled)),
                is_empty: Box::new(|| priority.is_empty()),
            },
            Line {
                send: Box::new(|n| bytes.send(&letter(n)).unwrap()),
                try_send: Box::new(|n| bytes.try_send(&letter(n)).is_ok()),
                receive: Box::new(|note| note(number(&bytes.recv().unwrap()))),
                try_receive: Box::new(|| bytes.try_recv().ok().map(|message| number(&message))),
                is_empty: Box::new(|| bytes.is_empty()),
            },
            Line {
                send: Box::new(|n| channel.sender().unwrap().send(n).unwrap()),
                try_send: Box::new(|n| channel.sender().unwrap().try_send(n).is_ok()),
                receive: Box::new(|note| note(channel.receiver().unwrap().recv().unwrap())),
                try_receive: Box::new(|| channel.receiver().unwrap().try_recv().ok()),
                is_empty: Box::new(|| channel.is_empty()),
            },
            Line {
                send: Box::new(|n| letters.sender().unwrap().send(&letter(n)).unwrap()),
                try_send: Box::new(|n| letters.sender().unwrap().try_send(&letter(n)).is_ok()),
                receive: Box::new(|note| {
                    note(number(&letters.receiver().unwrap().recv().unwrap()));
                }),
                try_receive: Box::new(|| {
                    let message = letters.receiver().unwrap().try_recv().ok();
                    message.map(|message| number(&message))
                }),
                is_empty: Box::new(|| letters.is_empty()),
            },
            Line {
                send: Box::new(|n| levels.sender().unwrap().send(level(n), n).unwrap()),
                try_send: Box::new(|n| levels.sender().unwrap().try_send(level(n), n).is_ok()),
                receive: Box::new(move |note| {
                    note(leveled(levels.receiver().unwrap().recv().unwrap()));
                }),
                try_receive: Box::new(move || {
                    levels.receiver().unwrap().try_recv().ok().map(leveled)
                }),
                is_empty: Box::new(|| levels.is_empty()),
            },
            Line {
                send: Box::new(|n| pipe.first().unwrap().send_bytes(&letter(n)).unwrap()),
                try_send: Box::new(|n| pipe.first().unwrap().try_send_bytes(&letter(n)).is_ok()),
                receive: Box::new(|note| {
                    note(number(&pipe.second().unwrap().recv_bytes().unwrap()));
                }),
                try_receive: Box::new(|| {
                    let message = pipe.second().unwrap().try_recv_bytes().ok();
                    message.map(|message| number(&message))
                }),
                is_empty: Box::new(|| !pipe.second().unwrap().try_poll().unwrap()),
            },
        ]
    }

    // ----------------------------------------------------------------------------------- a worker

    /// The guard, whatever happened to earlier owners, and whether nothing did.
    fn sound<G>(taken: Result<G, LockError<G>>) -> (G, bool) {
        match taken {
            Ok(guard) => (guard, true),
            Err(error) => (error.into_guard().expect("taken"), false),
        }
    }

    fn can_be_had<G>(taken: Result<G, LockError<G>>) -> bool {
        taken.map_or_else(|error| error.into_guard().is_some(), |_| true)
    }

    struct Worker<'a> {
        world: &'a World,
        books: &'a Books,
        lines: [Line<'a>; LINES],
        me: usize,
        random: Random,
    }

    impl Worker<'_> {
        fn at(&self, operation: u32) {
            self.books.operation[self.me].store(operation, SeqCst);
        }

        fn work(&mut self) {
            let (world, books) = (self.world, self.books);
            self.at(ATTACH);
            let member = world.latch.0.join(2).ok();
            self.at(0);
            while books.stop.load(SeqCst) == 0 {
                let operation =
                    u32::try_from(self.random.below(u64::from(OPERATIONS - 2))).unwrap() + 2;
                self.at(operation);
                if operation == LATCH {
                    member.iter().for_each(|member| member.count_down());
                } else if operation < FIRST_LINE {
                    self.do_one(operation);
                } else {
                    self.pass_a_message(usize::try_from(operation - FIRST_LINE).unwrap());
                }
                self.at(0);
            }
            self.at(LATCH);
            drop(member);
            world.latch.0.wait().unwrap();
            self.at(0);
        }

        /// Between taking a lock and giving it back.
        fn own(&self, lock: usize, is_whole: bool) {
            let before = self.books.inside[lock].swap(std::process::id(), SeqCst);
            assert!(!is_whole || before == 0, "{before} is inside");
        }

        fn disown(&self, lock: usize) {
            self.books.inside[lock].store(0, SeqCst);
        }

        fn do_one(&mut self, operation: u32) {
            let (world, books) = (self.world, self.books);
            let chance = self.random.below(8);
            match operation {
                LOCK => {
                    let (mut guard, is_whole) = sound(world.lock.0.lock());
                    self.own(0, is_whole);
                    if !is_whole {
                        *guard = [0; 2];
                        LockGuard::mark_consistent(&mut guard);
                    }
                    assert_eq!(guard[0], guard[1]);
                    guard[0] += 1;
                    self.nap();
                    guard[1] += 1;
                    self.disown(0);
                }
                RELOCK => {
                    let (outer, is_whole) = sound(world.relock.0.lock());
                    self.own(1, is_whole);
                    if !is_whole {
                        outer.set([0; 2]);
                        outer.mark_consistent();
                    }
                    let inner = world.relock.0.lock().unwrap();
                    let [a, b] = inner.get();
                    assert_eq!(a, b);
                    inner.set([a + 1, b]);
                    self.nap();
                    inner.set([a + 1, b + 1]);
                    self.disown(1);
                }
                READ => {
                    if let Ok(guard) = world.rwlock.0.read() {
                        assert_eq!((guard[0], books.inside[2].load(SeqCst)), (guard[1], 0));
                        self.nap();
                    }
                }
                WRITE => {
                    let (mut guard, is_whole) = sound(world.rwlock.0.write());
                    self.own(2, is_whole);
                    if !is_whole {
                        *guard = [0; 2];
                        WriteGuard::mark_consistent(&mut guard);
                    }
                    assert_eq!(guard[0], guard[1]);
                    guard[0] += 1;
                    self.nap();
                    guard[1] += 1;
                    self.disown(2);
                }
                CELL => {
                    let i = self.random.index(CELLS);
                    let cell = &world.cells.0[i];
                    let made = u64::from(std::process::id());
                    let value = match chance {
                        0 => cell.wait().unwrap(),
                        _ => cell
                            .get_or_init(|| {
                                self.nap();
                                [made; 2]
                            })
                            .unwrap(),
                    };
                    let first = books.values[i].compare_exchange(0, value[0], SeqCst, SeqCst);
                    assert_eq!(*value, [first.map_or_else(|first| first, |_| value[0]); 2]);
                }
                SEMAPHORE => {
                    let permit = world.semaphore.0.acquire().unwrap();
                    self.nap();
                    drop(permit);
                }
                OWNED => {
                    let n = 1 + u32::try_from(chance % 2).unwrap();
                    let permits = world.owned.0.acquire_many(n).unwrap();
                    let mine = u64::from(std::process::id()) << 8 | u64::from(n);
                    books.owned[self.me].store(mine, SeqCst);
                    self.check_owned();
                    self.nap();
                    books.owned[self.me].store(0, SeqCst);
                    drop(permits);
                }
                MANUAL if chance == 0 => {
                    world.manual.0.set();
                    world.manual.0.reset();
                }
                MANUAL => world.manual.0.wait().unwrap(),
                AUTO => {
                    world.auto.0.wait().unwrap();
                    if chance < 6 {
                        world.auto.0.set();
                    }
                }
                TAKE => {
                    let (mut tokens, is_whole) = sound(world.tokens.0.lock());
                    if !is_whole {
                        LockGuard::mark_consistent(&mut tokens);
                    }
                    while *tokens == 0 {
                        let is_whole;
                        (tokens, is_whole) = sound(world.changed.0.wait(tokens));
                        if !is_whole {
                            LockGuard::mark_consistent(&mut tokens);
                        }
                    }
                    *tokens -= 1;
                    books.taken.fetch_add(1, SeqCst);
                }
                GIVE => give(world, books),
                BARRIER | SHRINKING => self.meet(operation, chance),
                PRODUCE => match world.ring.0.try_producer() {
                    Ok(producer) => match producer.send(world.ring.0.sent()) {
                        Ok(()) | Err(spsc::SendError::PeerDied(_)) => {}
                        Err(error) => panic!("{error}"),
                    },
                    Err(RoleError::Taken) => {}
                    Err(error) => panic!("{error}"),
                },
                CONSUME => match world.ring.0.try_consumer() {
                    Ok(consumer) => {
                        let n = world.ring.0.received();
                        match consumer.recv() {
                            Ok(message) => assert_eq!(message, n),
                            Err(spsc::RecvError::PeerDied) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    Err(RoleError::Taken) => {}
                    Err(error) => panic!("{error}"),
                },
                other => unreachable!("operation {other}"),
            }
        }

        fn meet(&self, operation: u32, chance: u64) {
            let is_pair = operation == BARRIER;
            let barrier = if is_pair { &self.world.barrier.0 } else { &self.world.shrinking.0 };
            let met = if chance == 0 { barrier.wait_timeout(ms(1)) } else { barrier.wait() };
            match met {
                Ok(arrival) if is_pair => {
                    let index = usize::try_from(arrival.index()).unwrap();
                    self.books.passed[index].fetch_add(1, SeqCst);
                }
                Ok(_) => self.books.is_party[self.me].store(1, SeqCst),
                Err(BarrierError::Broken(_) | BarrierError::TimedOut) => barrier.reset(),
                Err(error) => panic!("{error}"),
            }
        }

        fn pass_a_message(&mut self, which: usize) {
            let (line, books) = (which / 2, self.books);
            if which % 2 == 1 {
                let most = if line == JOBS { u32::MAX } else { 1 };
                (self.lines[line].receive)(&|n| Books::note(&books.received[line], n, most));
                return;
            }
            let n = books.next[line].fetch_add(1, SeqCst);
            if usize::try_from(n).unwrap() < NUMBERS / 2 {
                let state = &books.sent[line][usize::try_from(n).unwrap()];
                state.store(1, SeqCst);
                (self.lines[line].send)(u64::from(n));
                state.store(2, SeqCst);
            }
        }

        fn nap(&self) {
            if self.random.clone().next().is_multiple_of(4) {
                std::thread::sleep(Duration::from_micros(30));
            }
        }

        /// Never do living processes hold more permits than there are.
        fn check_owned(&self) {
            let held = || {
                let marks = self.books.owned.iter().map(|mark| mark.load(SeqCst));
                let alive = |mark: &u64| *mark != 0 && runs(mark >> 8);
                let held = marks.filter(alive).map(|mark| u32::try_from(mark & 0xff).unwrap());
                held.sum::<u32>()
            };
            let plain: u64 = self.books.owned.iter().map(|mark| mark.load(SeqCst) & 0xff).sum();
            // A process that has been killed may be counted until its end is complete.
            if plain > u64::from(PERMITS) {
                let too_many = (0..20).all(|_| {
                    let too_many = held() > PERMITS;
                    std::thread::sleep(Duration::from_micros(500));
                    too_many
                });
                assert!(!too_many, "too many permits are held");
            }
        }
    }

    fn give(world: &World, books: &Books) {
        let (mut tokens, is_whole) = sound(world.tokens.0.lock());
        if !is_whole {
            LockGuard::mark_consistent(&mut tokens);
        }
        *tokens += 1;
        books.given.fetch_add(1, SeqCst);
        drop(tokens);
        world.changed.0.notify_one();
    }

    /// Whether the process runs: it has not ended, and is no zombie.
    fn runs(pid: u64) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        state.is_some_and(|state| !"ZX".contains(state))
    }

    /// The names of all points of the source.
    fn points() -> Vec<String> {
        fn search(folder: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    search(&path, found);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let names = text.split("hooks::pause(\"").skip(1);
                found.extend(names.filter_map(|rest| rest.split('"').next()).map(String::from));
            }
        }
        let mut found = Vec::new();
        search(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        found.sort_unstable();
        found.dedup();
        assert!(found.len() > 3, "no points in the source");
        found
    }

    // ------------------------------------------------------------------------------------- a round

    #[derive(Default)]
    struct Report {
        kills: u64,
        /// Kills of processes that were inside an operation.
        inside: u64,
        /// Of processes that killed themselves at a point of the source.
        at_points: u64,
        of_pool: u64,
        by_operation: BTreeMap<u32, u64>,
        rounds: u64,
    }

    struct Round<'a> {
        shared: &'a Shared<World>,
        books: &'static Books,
        lines: [Line<'a>; LINES],
        points: &'a [String],
        workers: Vec<Child>,
        /// Kills in this round, by operation.
        killed: [u64; OPERATIONS as usize],
        /// Killed parties of the shrinking barrier.
        parties_lost: u32,
        /// Numbers of messages that this process has sent, for each line.
        fed: [u64; LINES],
        released: u32,
        patience: Duration,
    }

    type Verdict = Result<(), String>;

    fn check(is_so: bool, what: impl FnOnce() -> String) -> Verdict {
        if is_so { Ok(()) } else { Err(what()) }
    }

    impl Round<'_> {
        fn start(&self, me: usize, random: &mut Random) -> Child {
            let (world, books): (&World, _) = (self.shared, self.books);
            let seed = random.next();
            let planned =
                (random.below(2) == 0).then(|| (random.index(self.points.len()), random.below(6)));
            books.owned[me].store(0, SeqCst);
            books.operation[me].store(ATTACH, SeqCst);
            fork_child(|| {
                hooks::nap_at_random(8, 150);
                if let Some((point, passes)) = planned {
                    let passes = u32::try_from(passes).unwrap();
                    hooks::plan_after(&self.points[point], passes, Action::Kill);
                }
                let (lines, random) = (lines(world, books), Random::new(seed));
                Worker { world, books, lines, me, random }.work();
            })
        }

        /// Notes the death of worker `me`, which has been killed.
        fn bury(&mut self, me: usize, exit: Exit, report: &mut Report) -> Verdict {
            check(exit == KILLED, || format!("a worker ended with {exit:?}"))?;
            let operation = self.books.operation[me].load(SeqCst);
            self.killed[usize::try_from(operation).unwrap()] += 1;
            *report.by_operation.entry(operation).or_default() += 1;
            report.kills += 1;
            report.inside += u64::from(operation != 0);
            self.parties_lost += self.books.is_party[me].swap(0, SeqCst);
            Ok(())
        }

        /// Kills and replaces, until there have been enough kills or numbers run out.
        fn kill(
            &mut self,
            report: &mut Report,
            pool: &Patient<'_>,
            random: &mut Random,
        ) -> Verdict {
            let end = report.kills + ROUND;
            let has_numbers = |books: &Books| {
                let limit = u32::try_from(NUMBERS / 2).unwrap();
                books.next.iter().all(|next| next.load(SeqCst) < limit)
            };
            while report.kills < end && has_numbers(self.books) {
                std::thread::sleep(random.micros(3_000));
                self.help(false)?;
                for me in 0..WORKERS {
                    if !is_alive(self.workers[me].pid) {
                        report.at_points += 1;
                        self.replace(me, report, random)?;
                    }
                }
                if random.below(8) == 0 && pool.kill(report, random) {
                    continue;
                }
                let me = random.index(WORKERS);
                self.workers[me].signal(libc::SIGKILL);
                self.replace(me, report, random)?;
            }
            Ok(())
        }

        fn replace(&mut self, me: usize, report: &mut Report, random: &mut Random) -> Verdict {
            let dead = self.workers.remove(me);
            let exit = dead.wait();
            self.bury(me, exit, report)?;
            let next = self.start(me, random);
            self.workers.insert(me, next);
            Ok(())
        }

        /// Gives each worker that blocks what it waits for, if nothing of that is there: if
        /// something is, it has to take that by itself.
        fn help(&mut self, is_last: bool) -> Verdict {
            let (world, books): (&World, _) = (self.shared, self.books);
            for (i, line) in self.lines.iter().enumerate() {
                let (sends, receives) = (books.is_at(send_to(i)), books.is_at(receive_from(i)));
                if receives && (line.is_empty)() {
                    let n = NUMBERS as u64 / 2 + self.fed[i];
                    let state = &books.sent[i][usize::try_from(n).unwrap()];
                    state.store(1, SeqCst);
                    if (line.try_send)(n) {
                        state.store(2, SeqCst);
                        self.fed[i] += 1;
                    }
                } else if sends && !receives {
                    self.receive(i);
                }
            }
            let semaphore = &world.semaphore.0;
            if books.is_at(SEMAPHORE) && semaphore.available() == 0 {
                semaphore.release(1).unwrap();
                self.released += 1;
            }
            world.manual.0.set();
            world.manual.0.reset();
            if books.is_at(AUTO) && !world.auto.0.is_set() {
                world.auto.0.set();
            }
            if books.is_at(TAKE) && *sound(world.tokens.0.lock()).0 == 0 {
                give(world, books);
            }
            let ring = &world.ring.0;
            if books.is_at(CONSUME)
                && ring.is_empty()
                && let Ok(producer) = ring.try_producer()
            {
                producer.try_send(ring.sent()).ok();
            }
            if books.is_at(PRODUCE)
                && ring.is_full()
                && let Ok(consumer) = ring.try_consumer()
            {
                let n = ring.received();
                let message = consumer.try_recv();
                check(message.is_err() || message == Ok(n), || format!("{message:?} for {n}"))?;
            }
            if is_last {
                let barriers = [(BARRIER, &world.barrier.0), (SHRINKING, &world.shrinking.0)];
                for (at, barrier) in barriers {
                    if books.is_at(at) && barrier.waiting() > 0 {
                        barrier.abort();
                    }
                }
                for cell in &world.cells.0 {
                    cell.get_or_init(|| [1; 2]).unwrap();
                }
            }
            Ok(())
        }

        fn receive(&self, line: usize) -> bool {
            let Some(n) = (self.lines[line].try_receive)() else { return false };
            Books::note(&self.books.received[line], n, u32::MAX);
            true
        }

        /// All workers end by themselves.
        fn end(&mut self, report: &mut Report) -> Verdict {
            let began = Instant::now();
            self.books.stop.store(1, SeqCst);
            self.shared.latch.0.count_down(1);
            let mut left: Vec<_> = self.workers.drain(..).enumerate().collect();
            while !left.is_empty() {
                self.help(true)?;
                let mut i = 0;
                while i < left.len() {
                    if is_alive(left[i].1.pid) {
                        i += 1;
                        continue;
                    }
                    let (me, ended) = left.remove(i);
                    match ended.wait() {
                        OK => {}
                        exit => {
                            report.at_points += 1;
                            self.bury(me, exit, report)?;
                        }
                    }
                    self.books.operation[me].store(0, SeqCst);
                }
                check(began.elapsed() < self.patience, || self.sleepers(&left))?;
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(())
        }

        fn sleepers(&self, left: &[(usize, Child)]) -> String {
            let sleeper = |(me, child): &(usize, Child)| {
                let at = name(self.books.operation[*me].load(SeqCst));
                let waits = waits(child.pid, child.pid);
                format!("{at} ({})", if waits { "asleep" } else { "awake" })
            };
            let sleepers: Vec<_> = left.iter().map(sleeper).collect();
            format!("workers do not end: {}", sleepers.join(", "))
        }

        /// Waits until a condition holds: peers may not have recovered from the last deaths yet.
        fn eventually(&self, what: &str, is_so: impl Fn() -> bool) -> Verdict {
            let began = Instant::now();
            while !is_so() {
                check(began.elapsed() < self.patience, || format!("in vain: {what}"))?;
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(())
        }

        /// What the primitives hold is what the books say.
        fn judge(&self) -> Verdict {
            let (world, books): (&World, _) = (self.shared, self.books);
            let killed_at = |operations: &[u32]| {
                operations.iter().map(|&at| self.killed[usize::try_from(at).unwrap()]).sum::<u64>()
            };
            self.eventually("all owned permits are back", || world.owned.0.available() == PERMITS)?;
            self.eventually("the latch is open", || {
                world.latch.0.is_open() && world.latch.0.remaining() == 0
            })?;
            let (all, free) = (PERMITS + self.released, world.semaphore.0.available());
            let lost = u64::from(all.saturating_sub(free));
            check(free <= all && lost <= killed_at(&[SEMAPHORE]), || {
                format!("{free} of {all} permits are left")
            })?;
            for i in 0..LINES {
                let rows = || books.sent[i].iter().zip(&books.received[i]);
                let missing = || {
                    let is_missing = |(sent, received): &(&AtomicU32, &AtomicU32)| {
                        sent.load(SeqCst) == 2 && received.load(SeqCst) == 0
                    };
                    rows().filter(is_missing).count() as u64
                };
                let bound = if i == JOBS { 0 } else { killed_at(&[receive_from(i)]) };
                self.eventually(&format!("{}: all is received", name(send_to(i))), || {
                    while self.receive(i) {}
                    missing() <= bound && (i != JOBS || world.jobs.0.join_timeout(ms(1)).unwrap())
                })?;
                let is_wrong = |(sent, received): (&AtomicU32, &AtomicU32)| {
                    let (sent, received) = (sent.load(SeqCst), received.load(SeqCst));
                    sent == 0 && received > 0 || i != JOBS && received > 1
                };
                check(!rows().any(is_wrong), || format!("{}: twice", name(send_to(i))))?;
            }
            let tokens = u64::from(books.taken.load(SeqCst)) + *sound(world.tokens.0.lock()).0;
            let given = u64::from(books.given.load(SeqCst));
            check(tokens.abs_diff(given) <= killed_at(&[TAKE, GIVE]), || {
                format!("{given} tokens given, {tokens} taken or left")
            })?;
            let passed = books.passed.each_ref().map(|passed| passed.load(SeqCst));
            check(u64::from(passed[0].abs_diff(passed[1])) <= killed_at(&[BARRIER]), || {
                format!("passed: {passed:?}")
            })?;
            self.eventually("no party waits at the barriers", || {
                world.barrier.0.waiting() == 0 && world.shrinking.0.waiting() == 0
            })?;
            let parties = 3_u32.saturating_sub(self.parties_lost).max(1);
            self.eventually("the barrier has shrunk", || world.shrinking.0.parties() <= parties)?;
            let (ring, mut n) = (&world.ring.0, world.ring.0.received());
            self.eventually("the ring's ends are free", || {
                ring.try_consumer().is_ok() && ring.try_producer().is_ok()
            })?;
            let consumer = ring.consumer().map_err(|error| error.to_string())?;
            while let Ok(message) = consumer.try_recv() {
                check(message == n, || format!("ring: {message} for {n}"))?;
                n += 1;
            }
            check(n == ring.sent(), || format!("ring: {n} of {}", ring.sent()))?;
            let (lock, relock, rwlock) = (&world.lock.0, &world.relock.0, &world.rwlock.0);
            let is_taken = [
                can_be_had(lock.lock_timeout(self.patience)),
                can_be_had(relock.lock_timeout(self.patience)),
                can_be_had(rwlock.write_timeout(self.patience)),
            ];
            check(is_taken == [true; 3], || format!("locks: {is_taken:?}"))
        }
    }

    // ------------------------------------------------------------------------------------ the pool

    /// A pool whose workers are killed.
    struct Patient<'a> {
        pool: Option<&'a Pool>,
        marks: &'a Shared<[AtomicU32; 64]>,
    }

    fn mark_of(marks: &[AtomicU32; 64], pid: u32) -> &AtomicU32 {
        &marks[usize::try_from(pid % 64).unwrap()]
    }

    impl Patient<'_> {
        fn kill(&self, report: &mut Report, random: &mut Random) -> bool {
            let pids = self.pool.map(Pool::pids).unwrap_or_default();
            if pids.is_empty() {
                return false;
            }
            let pid = pids[random.index(pids.len())];
            // SAFETY: takes no pointers.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
            report.kills += 1;
            report.of_pool += 1;
            report.inside += u64::from(mark_of(self.marks, pid).load(SeqCst) == pid);
            true
        }
    }

    fn settle((): ()) {
        hooks::nap_at_random(8, 150);
    }

    /// Marks that this process is at a task.
    /// What the task for `x` returns: now and then more than fits a message.
    fn long_or_short(x: u64) -> Vec<u8> {
        letter(x % 64 * if x.is_multiple_of(50) { 500 } else { 1 })
    }

    fn task(x: u64) -> (u64, Vec<u8>) {
        thread_local! {
            static MARKS: std::cell::OnceCell<Shared<[AtomicU32; 64]>> =
                const { std::cell::OnceCell::new() };
        }
        MARKS.with(|marks| {
            let marks = marks.get_or_init(|| Shared::inherited("marks").unwrap());
            let pid = std::process::id();
            mark_of(marks, pid).store(pid, SeqCst);
            std::thread::sleep(Duration::from_micros(200));
            let result = (2 * x, long_or_short(x));
            mark_of(marks, pid).store(0, SeqCst);
            result
        })
    }

    /// Each task has one result, and it is the right one.
    fn use_pool(pool: &Pool, over: &AtomicBool) -> Result<u64, String> {
        let mut tasks = 0;
        while !over.load(SeqCst) {
            let mut count = 0;
            for (result, x) in pool.map(task, 0..200).zip(0..) {
                let (double, text) = result.map_err(|error| format!("task {x}: {error}"))?;
                let expected = long_or_short(x);
                check(double == 2 * x && text == expected, || format!("task {x}: {double}"))?;
                count += 1;
            }
            check(count == 200, || format!("{count} results of 200"))?;
            let single = pool.submit(task, tasks).join().map_err(|error| error.to_string())?;
            check(single.0 == 2 * tasks, || format!("task {tasks}: {}", single.0))?;
            tasks += 201;
        }
        Ok(tasks)
    }

    // ------------------------------------------------------------------------------------ the soak

    fn soak(
        kills: u64,
        pool: &Patient<'_>,
        patience: Duration,
        seed: u64,
    ) -> Result<Report, String> {
        let (books, points) = (plain_shared::<Books>(), points());
        let (mut report, mut random) = (Report::default(), Random::new(seed));
        while report.kills < kills {
            rearm();
            books.clear();
            let shared = world();
            let _watchdog = watch_for(3 * patience, "a round", move || {
                let at: Vec<_> = books.operation.iter().map(|at| name(at.load(SeqCst))).collect();
                at.join(", ")
            });
            let world: &World = &shared;
            // So that no end is ever gone.
            let ends = (world.channel.0.sender(), world.channel.0.receiver());
            let more_ends = (world.byte_channel.0.sender(), world.byte_channel.0.receiver());
            let levels = (world.priority_channel.0.sender(), world.priority_channel.0.receiver());
            let sides = (world.pipe.0.first(), world.pipe.0.second());
            let mut round = Round {
                shared: &shared,
                books,
                lines: lines(world, books),
                points: &points,
                workers: Vec::new(),
                killed: [0; OPERATIONS as usize],
                parties_lost: 0,
                fed: [0; LINES],
                released: 0,
                patience,
            };
            for me in 0..WORKERS {
                let worker = round.start(me, &mut random);
                round.workers.push(worker);
            }
            round.kill(&mut report, pool, &mut random)?;
            round.end(&mut report)?;
            round.judge()?;
            drop((ends, more_ends, levels, sides));
            report.rounds += 1;
        }
        Ok(report)
    }

    fn variable(name: &str, otherwise: u64) -> u64 {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    }

    fn no_marks() -> Shared<[AtomicU32; 64]> {
        Shared::anonymous(core::array::from_fn(|_| AtomicU32::new(0))).unwrap()
    }

    fn all_hold() -> Verdict {
        let (kills, began) = (variable("OUTLAST_KILLS", 2_000), Instant::now());
        let seed = variable("OUTLAST_SEED", u64::from(std::process::id()));
        let marks = no_marks();
        let pool = Pool::builder().workers(POOL_WORKERS).retries(1_000).initializer(settle, ());
        let pool = pool.share("marks", &marks).build().map_err(|error| error.to_string())?;
        let patient = Patient { pool: Some(&pool), marks: &marks };
        let over = AtomicBool::new(false);
        let (report, tasks) = std::thread::scope(|scope| {
            let user = scope.spawn(|| use_pool(&pool, &over));
            let report = soak(kills, &patient, crate::common::PATIENCE, seed);
            over.store(true, SeqCst);
            (report, user.join().unwrap())
        });
        let (report, tasks) = (report.map_err(|what| format!("seed {seed}: {what}"))?, tasks?);
        let by_operation: Vec<_> =
            report.by_operation.iter().map(|(&at, n)| format!("{} {n}", name(at))).collect();
        complain(&format!(
            "soak: {} processes killed, {} of them inside an operation, {} at points of the source, {} \
             workers of the pool, beside {tasks} tasks; {} rounds, {:.1} s\nkilled at: {}",
            report.kills,
            report.inside,
            report.at_points,
            report.of_pool,
            report.rounds,
            began.elapsed().as_secs_f64(),
            by_operation.join(", ")
        ));
        check(2 * report.inside >= report.kills, || "too few were inside an operation".into())
    }

    /// Recovery passes over a primitive: that is caught.
    fn controls() -> Verdict {
        for (number, what) in [(7, "owned semaphore"), (13, "queue"), (10, "barrier")] {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            let played =
                Command::new(program).env("OUTLAST_TEST_PART", number.to_string()).status();
            let code = played.map_err(|error| error.to_string())?.code();
            check(code == Some(CAUGHT.into()), || format!("{what} without recovery: {code:?}"))?;
        }
        Ok(())
    }

    fn play(number: u32) -> ExitCode {
        PASSED_OVER.store(number, SeqCst);
        let marks = no_marks();
        match soak(1_000, &Patient { pool: None, marks: &marks }, ms(4_000), 1) {
            Ok(_) => ExitCode::SUCCESS,
            Err(what) => {
                complain(&format!("control {number}: {what}"));
                ExitCode::from(CAUGHT)
            }
        }
    }

    pub(crate) fn main() -> ExitCode {
        if let Some(number) = std::env::var("OUTLAST_TEST_PART").ok().and_then(|n| n.parse().ok()) {
            return play(number);
        }
        for (name, test) in [("all_hold", all_hold as fn() -> Verdict), ("controls", controls)] {
            let filters: Vec<String> =
                std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
                continue;
            }
            let verdict = test();
            complain(&format!("test {name} ... {verdict:?}"));
            if verdict.is_err() {
                exit_now(1);
            }
        }
        ExitCode::SUCCESS
    }
}
