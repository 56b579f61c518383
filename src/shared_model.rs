//! Under loom a segment is an `Arc`.
use crate::error::OpenError;
use crate::shareable::Shareable;
use core::ops::Deref;
use loom::sync::Arc;

/// A value that every clone sees.
#[derive(Debug)]
pub struct Shared<T>(Arc<T>);

impl<T> Clone for Shared<T> {
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

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
