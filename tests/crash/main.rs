//! Processes are killed at every instruction of every operation. The survivors prove that they can
//! carry on.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "forks, traces and kills processes, and looks at their memory")]

#[cfg(not(outlast_pthread))]
mod barrier;
#[cfg(not(outlast_pthread))]
mod byte_channel;
#[cfg(not(outlast_pthread))]
mod bytes;
#[cfg(not(outlast_pthread))]
mod channel;
#[cfg(not(outlast_pthread))]
mod condition;
mod controls;
#[cfg(not(outlast_pthread))]
mod hand_over;
mod heir;
#[cfg(not(outlast_pthread))]
mod in_flight;
#[cfg(not(outlast_pthread))]
mod latch;
#[cfg(not(outlast_pthread))]
mod letters;
#[cfg(not(outlast_pthread))]
mod log;
#[cfg(not(outlast_pthread))]
mod newcomers;
#[cfg(not(outlast_pthread))]
mod pipe;
#[cfg(not(outlast_pthread))]
mod primitives;
#[cfg(not(outlast_pthread))]
mod priority;
#[cfg(not(outlast_pthread))]
mod priority_channel;
#[cfg(not(outlast_pthread))]
mod reentrant;
#[cfg(not(outlast_pthread))]
mod rwlock;
#[cfg(not(outlast_pthread))]
mod semaphore;
#[cfg(not(outlast_pthread))]
mod spsc;
mod stepper;
mod sweep;
mod sweeps;
