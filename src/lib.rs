//! Locks, queues and worker pools in shared memory. Any process that uses them may be killed at any
//! instruction, and the others carry on.
//!
//! <div>
#![doc = include_str!("picture.svg")]
//! <style>img.outlast-readme { display: none }</style></div>
//!
// Links of the README, which has other targets for them: the first definition counts.
//! [benches]: https://docs.rs/crate/outlast/latest/source/benches/README.md
//! [mit]: https://docs.rs/crate/outlast/latest/source/LICENSE-MIT
//! [apache]: https://docs.rs/crate/outlast/latest/source/LICENSE-APACHE
//! [glossary]: crate::glossary
//! [memory]: crate::glossary#memory-and-its-users
//! [ownership]: crate::glossary#ownership
//! [deaths]: crate::glossary#deaths
//! [Shared]: crate::Shared
//! [shared!]: crate::shared!
//! [Plain]: crate::Plain
//! [Lock]: crate::Lock
//! [ReentrantLock]: crate::ReentrantLock
//! [RwLock]: crate::RwLock
//! [Semaphore]: crate::Semaphore
//! [OwnedSemaphore]: crate::OwnedSemaphore
//! [Condition]: crate::Condition
//! [Barrier]: crate::Barrier
//! [Latch]: crate::Latch
//! [Once]: crate::Once
//! [OnceCell]: crate::OnceCell
//! [Event]: crate::Event
//! [Queue]: crate::Queue
//! [FixedQueue]: crate::FixedQueue
//! [recv_ack]: crate::Queue::recv_ack
//! [loan]: crate::Queue::loan
//! [recv_ref]: crate::Queue::recv_ref
//! [PriorityQueue]: crate::PriorityQueue
//! [FixedPriorityQueue]: crate::FixedPriorityQueue
//! [ByteQueue]: crate::ByteQueue
//! [FixedByteQueue]: crate::FixedByteQueue
#![cfg_attr(feature = "serde", doc = "[ValueQueue]: crate::ValueQueue")]
#![cfg_attr(feature = "serde", doc = "[FixedValueQueue]: crate::FixedValueQueue")]
//! [Channel]: crate::Channel
//! [Pipe]: crate::Pipe
//! [FixedPipe]: crate::FixedPipe
//! [Ring]: crate::spsc::Ring
//! [FixedRing]: crate::spsc::FixedRing
//! [Journal]: crate::log::Journal
//! [FixedJournal]: crate::log::FixedJournal
#![cfg_attr(feature = "process", doc = "[Process]: crate::process::Process")]
#![cfg_attr(feature = "process", doc = "[Stop]: crate::process::Stop")]
#![cfg_attr(feature = "pool", doc = "[Pool]: crate::pool::Pool")]
#![cfg_attr(feature = "pool", doc = "[cookbook]: crate::cookbook")]
#![cfg_attr(feature = "pool", doc = "[FAQ]: crate::faq")]
#![cfg_attr(feature = "pool", doc = "[coming_from]: crate::coming_from")]
#![cfg_attr(feature = "pool", doc = "[multiprocessing]: crate::multiprocessing")]
//!
// Without the feature `pool`, the example of the README that uses a pool does not compile.
#![cfg_attr(feature = "pool", doc = include_str!("../README.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))] // marks what a feature adds
#![cfg_attr(docsrs, doc(auto_cfg(hide(outlast_loom))))]
// The layers, top to bottom; a module uses only those below it (`tests/layers.rs` checks it):
//
//   any_error                            one error for all
//   pool                                 workers, tasks
//   process                              functions in processes of their own
//   log                                  records of all processes, to one collector
//   owned  command                       guards that own their `Shared`; handing a segment on
//   queue                                built on the wait layer and the peer table
//   condition                            waiting for what a lock guards
//   reentrant  locked_slice              a lock around a lock, or around an array
//   lock  rwlock  semaphore  event  barrier  once  latch    standalone
//   shared                               Shared<T>
//   segment/{header,memory,names,peers,table}    memory, names, who uses it, recovery
//   wait/{robust,spin}                   the only blocking loop, robust words
//   sys/{futex,pthread,robust,thread,file,clock}    the only place for libc
//   atomic_bool  plain_types             counterparts of types of the standard library
//   deadline  error  shareable            when to give up, errors, what may cross
//   sync                                  atomics, the clock

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
compile_error!(
    "outlast needs 64-bit Linux with glibc: it relies on futexes, on robust lists and on 64-bit \
     atomics in shared memory"
);

#[cfg(not(outlast_loom))]
mod any_error;
#[cfg(not(outlast_loom))]
mod atomic_bool;
pub mod barrier;
#[cfg(not(outlast_loom))]
mod command;
pub mod condition;
mod deadline;
mod error;
pub mod event;
pub mod latch;
pub mod lock;
#[cfg(not(outlast_loom))]
mod locked_slice;
pub mod log;
pub mod once;
#[cfg(not(outlast_loom))]
mod owned;
mod plain_types;
#[cfg(all(feature = "pool", not(outlast_loom)))]
pub mod pool;
#[cfg(all(feature = "process", not(outlast_loom)))]
pub mod process;
pub mod queue;
pub mod reentrant;
pub mod rwlock;
mod segment;
pub mod semaphore;
mod shareable;
#[cfg_attr(outlast_loom, path = "shared_model.rs")]
mod shared;
mod sync;
mod sys;
mod wait;

#[cfg(not(outlast_loom))]
pub use any_error::Error;
#[cfg(not(outlast_loom))]
pub use atomic_bool::AtomicBool;
#[doc(inline)]
pub use barrier::{Arrival, Barrier, BarrierError, BrokenCause};
#[cfg(not(outlast_loom))]
pub use command::{CommandExt, HandOver};
#[doc(inline)]
pub use condition::{Condition, ConditionGuard, WaitTimeoutResult};
pub use error::{Fault, OpenError, TimeoutError};
#[doc(inline)]
pub use event::Event;
#[doc(inline)]
pub use latch::{Latch, LatchError, Member, OnDeath};
#[doc(inline)]
pub use lock::{Holder, Lock, LockError, LockGuard, LockResult, PoisonCause};
#[cfg(not(outlast_loom))]
pub use locked_slice::{LockedSlice, LockedSliceGuard, LockedSliceResult};
#[doc(inline)]
pub use once::{Once, OnceCell, OnceError};
#[cfg(not(outlast_loom))]
pub use owned::Owned;
pub use plain_types::{
    FixedStr, Pair, PlainDuration, PlainIpAddr, PlainOption, PlainSocketAddr, StrTooLong, Triple,
};
#[doc(inline)]
pub use queue::bytes;
#[doc(inline)]
pub use queue::spsc;
#[doc(inline)]
pub use queue::{ByteQueue, FixedByteQueue};
#[doc(inline)]
pub use queue::{Channel, FixedPriorityQueue, PriorityQueue, Receiver, Sender};
#[doc(inline)]
pub use queue::{Connection, FixedPipe, Pipe};
#[doc(inline)]
pub use queue::{Delivery, FixedQueue, Loan, Queue, Ref};
#[cfg(all(feature = "serde", not(outlast_loom)))]
#[doc(inline)]
pub use queue::{FixedValueQueue, ValueDelivery, ValueQueue};
#[doc(inline)]
pub use queue::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
#[doc(inline)]
pub use reentrant::{ReentrantLock, ReentrantLockGuard, ReentrantLockResult};
#[doc(inline)]
pub use rwlock::{ReadGuard, ReadResult, RwLock, WriteGuard, WriteResult};
#[cfg(not(outlast_loom))]
pub use segment::{forks, header::Lifetime, leave, names::reap, names::remove};
#[doc(inline)]
pub use semaphore::{OwnedPermit, OwnedSemaphore, Permit, Semaphore};
pub use shareable::{Plain, Shareable, WithCapacity};
#[cfg(not(outlast_loom))]
pub use shared::Options;
pub use shared::Shared;
pub use wait::TimedOut;
pub use wait::spin::Spin;

#[cfg(all(feature = "pool", not(outlast_loom)))]
#[doc = include_str!("coming_from.md")]
pub mod coming_from {}

#[cfg(all(feature = "pool", not(outlast_loom)))]
#[doc = include_str!("cookbook.md")]
pub mod cookbook {}

#[cfg(all(feature = "pool", not(outlast_loom)))]
#[doc = include_str!("faq.md")]
pub mod faq {}

#[cfg(not(outlast_loom))]
#[doc = include_str!("glossary.md")]
pub mod glossary {}

#[cfg(all(feature = "pool", not(outlast_loom)))]
#[doc = include_str!("multiprocessing.md")]
pub mod multiprocessing {}

/// Control over this process at named points of the source, for the crate's own tests.
#[cfg(outlast_hooks)]
#[doc(hidden)]
pub mod hooks {
    pub use crate::sys::hooks::*;
}

/// For the macros of this crate: what they expand to names these items.
#[doc(hidden)]
pub mod __private {
    pub use crate::shareable::{Dead, Field, Layout, Seal, begin, mix, mix_u64};
    #[cfg(outlast_loom)]
    pub use crate::shared::live;
}
