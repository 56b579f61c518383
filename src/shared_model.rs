//! Under loom a segment is an `Arc`, and a process is a thread.
use crate::error::OpenError;
use crate::shareable::Shareable;
use crate::sync::until_killed;
use crate::sys::robust::{bury, id};
use core::ops::Deref;
use std::sync::Arc;

/// A value that every clone sees.
#[derive(Debug)]
pub struct Shared<T: ?Sized>(Arc<T>);

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T: Shareable> Shared<T> {
    /// Stands for a fresh segment.
    ///
    /// # Errors
    /// None.
    pub fn anonymous(value: T) -> Result<Self, OpenError> {
        let shared = Shared(Arc::new(value));
        shared.place();
        Ok(shared)
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The whole life of a process: it does `act`, is killed after `life` atomic operations if it lives
/// that long, and ends with whatever it holds. Its owner tag, and what `act` came to.
pub fn live<R>(life: u32, act: impl Fn() -> R) -> (u32, Option<R>) {
    let result = until_killed(life, act);
    bury();
    (id(), result)
}
