//! Processes killed at every instruction of every operation; the survivors prove that all is well.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "forks, traces and kills processes, and looks at their memory")]

#[cfg(feature = "futex")]
mod barrier;
#[cfg(feature = "futex")]
mod byte_channel;
#[cfg(feature = "futex")]
mod bytes;
#[cfg(feature = "futex")]
mod channel;
#[cfg(feature = "futex")]
mod condition;
mod controls;
mod heir;
#[cfg(feature = "futex")]
mod latch;
#[cfg(feature = "futex")]
mod letters;
#[cfg(feature = "futex")]
mod log;
#[cfg(feature = "futex")]
mod newcomers;
#[cfg(feature = "futex")]
mod pipe;
#[cfg(feature = "futex")]
mod primitives;
#[cfg(feature = "futex")]
mod priority;
#[cfg(feature = "futex")]
mod priority_channel;
#[cfg(feature = "futex")]
mod reentrant;
#[cfg(feature = "futex")]
mod rwlock;
#[cfg(feature = "futex")]
mod semaphore;
#[cfg(feature = "futex")]
mod spsc;
mod stepper;
mod sweep;
mod sweeps;
