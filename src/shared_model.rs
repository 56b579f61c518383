//! Under loom a segment is an `Arc`, and a process is a thread.
use crate::error::OpenError;
use crate::shareable::Shareable;
use crate::sync::until_killed;
use crate::sys::robust::{end_thread, id};
use core::ops::Deref;
use std::sync::Arc;

/// A handle of a value. Clones refer to the same value.
#[derive(Debug)]
pub struct Shared<T: ?Sized>(Arc<T>);

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T: Shareable> Shared<T> {
    /// Creates a value, which stands for a new segment.
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

/// Runs the whole life of a process. It runs `act`, unless it is killed after `life` atomic
/// operations, and then ends with all that it owns. Returns its owner tag and the result of `act`.
pub fn live<R>(life: u32, act: impl Fn() -> R) -> (u32, Option<R>) {
    let result = until_killed(life, act);
    end_thread();
    (id(), result)
}
