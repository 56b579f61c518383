//! The cost of a stream of large messages from one process to another, copied and in place, beside
//! iceoryx2, Boost's `message_queue` and the system's pipe. Also of a stream of small messages,
//! beside the last two.
//!
//! Copied: the sender writes every byte, and the receiver reads it. In place: both touch only the
//! first 8 bytes, which leaves the cost of the queue itself. All have room for the same number of
//! messages, except the system's pipe.
//!
//! Boost takes part under `--features boost`, which needs its headers (Debian: `libboost-dev`) and
//! a compiler of C++.
#![expect(unsafe_code, reason = "iceoryx2 loans memory that was not written yet, and Boost is C++")]
#[path = "../support/mod.rs"]
mod support;

use core::any::Any;
use core::cell::RefCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::update_connections::UpdateConnections as _;
use iceoryx2::prelude::{
    BackpressureStrategy, LogLevel, NodeBuilder, PortFactory as _, ipc, set_log_level,
};
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;
use outlast::{ByteQueue, Pipe, Shared};
use std::rc::Rc;
use support::scenes::{
    World, bytes_copied, bytes_in_place, pipe_copied, pipe_stream, ring, stream, until,
};
use support::{Bench, Contest, TOGETHER};

/// Small messages that there is room for.
const SMALL: usize = 1_024;
/// Messages of 64 KiB that there is room for.
const COPIED: usize = 64;
/// Messages of 1 MiB that there is room for.
const IN_PLACE: usize = 8;

/// A name that nothing else has.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("outlast-peers-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

thread_local! {
    /// Dropped when the process ends.
    static KEPT: RefCell<Vec<Rc<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Has something dropped when this process ends, rather than while the time is taken.
fn keep<T: 'static>(what: T) -> Rc<T> {
    let what = Rc::new(what);
    KEPT.with_borrow_mut(|kept| kept.push(Rc::clone(&what) as _));
    what
}

// ----------------------------------------------------------------------------------- outlast

fn bytes(messages: usize, len: usize) -> Shared<ByteQueue> {
    Shared::<ByteQueue>::with_capacity(messages * len).expect("memory")
}

fn ring_of_words(contest: &mut Contest<'_>) {
    contest.counted("outlast spsc::Ring", |messages| {
        let ring = ring::<1>(SMALL);
        let sender = || {
            let producer = ring.producer().expect("free");
            move |number| producer.send([number]).expect("open")
        };
        let receiver = || {
            let consumer = ring.consumer().expect("free");
            move || consumer.recv().expect("open")[0]
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

fn ring_chunks<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("outlast spsc::Ring, chunks of 1", |messages| {
        let ring = ring::<WORDS>(COPIED);
        let sender = || {
            let (mut producer, mut message) = (ring.producer().expect("free"), vec![7; WORDS]);
            move |number| {
                message[0] = number;
                let mut room = producer.write_chunk(1).expect("open");
                room.as_mut_slices().0[0].copy_from_slice(&message);
                room.commit(1).expect("open");
            }
        };
        let receiver = || {
            let (mut consumer, mut to) = (ring.consumer().expect("free"), vec![0; WORDS]);
            move || {
                let message = consumer.read_chunk(1).expect("open");
                to.copy_from_slice(&message.as_slices().0[0]);
                message.consume(1).expect("ours");
                to[0]
            }
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

fn ring_copied<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("outlast spsc::Ring", |messages| {
        let ring = ring::<WORDS>(COPIED);
        let sender = || {
            let (producer, mut message) = (ring.producer().expect("free"), vec![[7; WORDS]]);
            move |number| {
                message[0][0] = number;
                producer.send_batch(&message).expect("open");
            }
        };
        let receiver = || {
            let (consumer, mut to) = (ring.consumer().expect("free"), vec![[0; WORDS]]);
            move || {
                assert_eq!(consumer.recv_into(&mut to), Ok(1));
                to[0][0]
            }
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

fn ring_in_place<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("outlast spsc::Ring", |messages| {
        let ring = ring::<WORDS>(IN_PLACE);
        let sender = || {
            let mut producer = ring.producer().expect("free");
            move |number| {
                let mut room = producer.write_chunk(1).expect("open");
                room.as_mut_slices().0[0][0] = number;
                room.commit(1).expect("open");
            }
        };
        let receiver = || {
            let mut consumer = ring.consumer().expect("free");
            move || {
                let message = consumer.read_chunk(1).expect("open");
                let number = message.as_slices().0[0][0];
                message.consume(1).expect("ours");
                number
            }
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

// ---------------------------------------------------------------------------------- iceoryx2

/// What iceoryx2 carries. Its memory may hold anything.
type Loaned<const WORDS: usize> = [MaybeUninit<u64>; WORDS];

/// A service between one publisher and one subscriber. It is gone when both are.
fn service<const WORDS: usize>(
    name: &str,
    capacity: usize,
) -> PortFactory<ipc::Service, Loaned<WORDS>, ()> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<ipc::Service>().expect("a node");
    node.service_builder(&name.try_into().expect("a name"))
        .publish_subscribe::<Loaned<WORDS>>()
        .enable_safe_overflow(false)
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .max_nodes(2)
        .subscriber_max_buffer_size(capacity)
        .subscriber_max_borrowed_samples(1)
        .open_or_create()
        .expect("a service")
}

/// The end that sends, connected.
fn publisher<const WORDS: usize>(
    name: &str,
    capacity: usize,
) -> Rc<Publisher<ipc::Service, Loaned<WORDS>, ()>> {
    let service = service::<WORDS>(name, capacity);
    let publisher = service
        .publisher_builder()
        .max_loaned_samples(1)
        .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
        .create()
        .expect("a publisher");
    until(|| (service.dynamic_config().number_of_subscribers() == 1).then_some(()));
    publisher.update_connections().expect("a subscriber");
    keep(publisher)
}

/// The end that receives, connected.
fn subscriber<const WORDS: usize>(
    name: &str,
    capacity: usize,
) -> Rc<Subscriber<ipc::Service, Loaned<WORDS>, ()>> {
    let service = service::<WORDS>(name, capacity);
    let subscriber = service.subscriber_builder().create().expect("a subscriber");
    until(|| (service.dynamic_config().number_of_publishers() == 1).then_some(()));
    subscriber.update_connections().expect("a publisher");
    keep(subscriber)
}

fn iceoryx_copied<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("iceoryx2 publish-subscribe", |messages| {
        let name = unique();
        let sender = || {
            let (publisher, mut message) = (publisher::<WORDS>(&name, COPIED), vec![7; WORDS]);
            move |number| {
                message[0] = number;
                let sample = publisher.loan_uninit().expect("one is free");
                // SAFETY: words that may hold anything need no value.
                let mut sample = unsafe { sample.assume_init() };
                sample.payload_mut().write_copy_of_slice(&message);
                assert_eq!(sample.send(), Ok(1));
            }
        };
        let receiver = || {
            let (subscriber, mut to) = (subscriber::<WORDS>(&name, COPIED), vec![0; WORDS]);
            move || {
                let sample = until(|| subscriber.receive().expect("connected"));
                // SAFETY: the sender has written all of them.
                to.copy_from_slice(unsafe { sample.payload().assume_init_ref() });
                to[0]
            }
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

fn iceoryx_in_place<const WORDS: usize>(contest: &mut Contest<'_>) {
    contest.counted("iceoryx2 publish-subscribe", |messages| {
        let name = unique();
        let sender = || {
            let publisher = publisher::<WORDS>(&name, IN_PLACE);
            move |number| {
                let sample = publisher.loan_uninit().expect("one is free");
                // SAFETY: words that may hold anything need no value.
                let mut sample = unsafe { sample.assume_init() };
                sample.payload_mut()[0].write(number);
                assert_eq!(sample.send(), Ok(1));
            }
        };
        let receiver = || {
            let subscriber = subscriber::<WORDS>(&name, IN_PLACE);
            move || {
                let sample = until(|| subscriber.receive().expect("connected"));
                // SAFETY: the sender has written it.
                unsafe { sample.payload()[0].assume_init() }
            }
        };
        stream(World::Processes, 1, messages, sender, receiver)
    });
}

// ------------------------------------------------------------------------------------- Boost

#[cfg(feature = "boost")]
mod boost {
    use super::support::Contest;
    use super::support::scenes::{World, number, stream};
    use super::unique;
    use core::ffi::{CStr, c_char, c_void};
    use core::ptr::NonNull;
    use std::ffi::CString;

    // SAFETY: these are the functions of `boost.cpp`.
    unsafe extern "C" {
        fn boost_create(name: *const c_char, messages: usize, length: usize) -> *mut c_void;
        fn boost_open(name: *const c_char) -> *mut c_void;
        fn boost_close(queue: *mut c_void);
        fn boost_send(queue: *mut c_void, message: *const c_void, length: usize) -> bool;
        fn boost_receive(queue: *mut c_void, to: *mut c_void, length: usize) -> bool;
        fn boost_remove(name: *const c_char) -> bool;
    }

    /// A `message_queue`.
    struct Queue(NonNull<c_void>);

    impl Queue {
        fn open(name: &CStr) -> Self {
            // SAFETY: a string that lives longer than the call.
            Queue(NonNull::new(unsafe { boost_open(name.as_ptr()) }).expect("a queue"))
        }

        fn send(&self, message: &[u8]) {
            // SAFETY: an open queue, and as many bytes to read.
            let sent =
                unsafe { boost_send(self.0.as_ptr(), message.as_ptr().cast(), message.len()) };
            assert!(sent, "not sent");
        }

        fn receive(&self, to: &mut [u8]) {
            // SAFETY: an open queue, and as many bytes to write.
            let received =
                unsafe { boost_receive(self.0.as_ptr(), to.as_mut_ptr().cast(), to.len()) };
            assert!(received, "not received");
        }
    }

    impl Drop for Queue {
        fn drop(&mut self) {
            // SAFETY: open, and not used any more.
            unsafe { boost_close(self.0.as_ptr()) };
        }
    }

    /// The name of a queue, which goes with it.
    struct Name(CString);

    impl Name {
        fn create(messages: usize, len: usize) -> Self {
            let name = CString::new(unique()).expect("no zeros");
            // SAFETY: a string that lives longer than the call.
            let queue = unsafe { boost_create(name.as_ptr(), messages, len) };
            drop(Queue(NonNull::new(queue).expect("a new queue")));
            Name(name)
        }
    }

    impl Drop for Name {
        fn drop(&mut self) {
            // SAFETY: a string that lives longer than the call.
            let removed = unsafe { boost_remove(self.0.as_ptr()) };
            assert!(removed || std::thread::panicking(), "not removed");
        }
    }

    pub(super) fn copied<const LEN: usize>(contest: &mut Contest<'_>, capacity: usize, bar: f64) {
        let run = move |messages| {
            let name = Name::create(capacity, LEN);
            let sender = || {
                let (queue, mut message) = (Queue::open(&name.0), vec![7; LEN]);
                move |number: u64| {
                    message[..8].copy_from_slice(&number.to_ne_bytes());
                    queue.send(&message);
                }
            };
            let receiver = || {
                let (queue, mut to) = (Queue::open(&name.0), vec![0; LEN]);
                move || {
                    queue.receive(&mut to);
                    number(&to)
                }
            };
            stream(World::Processes, 1, messages, sender, receiver)
        };
        contest.counted("Boost message_queue", run).bar(bar);
    }
}

#[cfg(not(feature = "boost"))]
mod boost {
    use super::support::Contest;

    pub(super) fn copied<const LEN: usize>(_: &mut Contest<'_>, _: usize, _: f64) {}
}

// ---------------------------------------------------------------------------------- contests

fn copied(contest: &mut Contest<'_>) {
    ring_chunks::<8_192>(contest);
    ring_copied::<8_192>(contest);
    contest.counted("outlast::ByteQueue", |messages| {
        bytes_copied(World::Processes, &bytes(COPIED, 65_536), 65_536, messages)
    });
    contest.counted("outlast::Pipe", |messages| {
        let pipe = Shared::<Pipe>::with_capacity(COPIED * 65_536).expect("memory");
        pipe_copied(World::Processes, &pipe, 65_536, messages)
    });
    boost::copied::<65_536>(contest, COPIED, 0.4);
    iceoryx_copied::<8_192>(contest);
    contest.counted("pipe", pipe_stream::<65_536>);
}

fn in_place(contest: &mut Contest<'_>) {
    ring_in_place::<131_072>(contest);
    contest.counted("outlast::ByteQueue", |messages| {
        bytes_in_place(&bytes(IN_PLACE, 1_048_576), 1_048_576, messages)
    });
    iceoryx_in_place::<131_072>(contest);
    contest.bar(0.5);
}

fn small(contest: &mut Contest<'_>) {
    ring_of_words(contest);
    boost::copied::<8>(contest, SMALL, 0.067);
    contest.counted("pipe", pipe_stream::<8>).bar(0.067);
}

fn main() {
    let bench = Bench::from_args();
    bench.contest("stream, 64 KiB copied, 1 to 1 (processes)", TOGETHER, 11, copied);
    bench.contest("stream, 1 MiB in place, 1 to 1 (processes)", TOGETHER, 11, in_place);
    bench.contest("stream, 8 B, 1 to 1 (processes)", TOGETHER, 11, small);
}
