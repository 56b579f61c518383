//! The handle by which a task submits tasks to the pool that runs it.
use super::Call;
use super::chunk::TaskOptions;
use super::client::{Client, is_worker};
use super::error::TaskError;
use super::task::{Backend, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A handle to the pool that runs the current task, from [`current`].
#[derive(Clone, Copy, Debug)]
pub struct PoolHandle(());

/// Returns a handle to the pool that runs the current task, or `None` if this process is not a
/// worker of a pool.
///
/// A task uses it to submit tasks to its own pool, and waits for them by their [`Task`]s or in a
/// [`TaskSet`](super::TaskSet). While a task waits, its worker runs no other task, with one
/// exception: if the task that it waits for has not begun, the waiting thread runs that task
/// itself. So a pool never comes to a standstill because all its workers wait, as long as each
/// waits only for tasks that it has submitted. The time of a task that is run so counts for the one
/// that waits. Only the thread that runs the worker's tasks does this, and not a thread that a task
/// has started.
///
/// ```standalone_crate
/// use outlast::pool::{self, Pool};
///
/// /// Sums a range, by halves.
/// fn sum((from, to): (u64, u64)) -> u64 {
///     if to - from <= 1_000 {
///         return (from..to).sum();
///     }
///     let middle = (from + to) / 2;
///     let pool = pool::current().expect("this runs in a worker");
///     let half = pool.submit(sum, (from, middle));
///     sum((middle, to)) + half.join().expect("a sum")
/// }
///
/// fn main() -> Result<(), outlast::Error> {
///     outlast::process::init(); // first of all
///     let pool = Pool::builder().workers(2).build()?;
///     assert_eq!(pool.apply(sum, (0, 10_000))?, 49_995_000);
///     Ok(())
/// }
/// ```
///
/// # Death
/// If the worker dies, the tasks that it has submitted and that have not begun are cancelled: the
/// task that submitted them is tried again, and submits them again. A task that has returned leaves
/// its tasks to be finished.
#[must_use]
pub fn current() -> Option<PoolHandle> {
    is_worker().then_some(PoolHandle(()))
}

impl PoolHandle {
    /// Submits `function(argument)` to the pool.
    pub fn submit<A, R>(self, function: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.submit_with(TaskOptions::new(), function, argument)
    }

    /// Like [`submit`](Self::submit), with options for this task.
    pub fn submit_with<A, R>(
        self,
        options: TaskOptions,
        function: fn(A) -> R,
        argument: A,
    ) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let submitted = Call::new(function, &argument).and_then(|call| {
            let client = Client::get().map_err(|error| TaskError::Transfer(error.to_string()))?;
            let (id, cell) = client.submit(call, options)?;
            Ok(Task::new(cell, Backend::Worker(client, id)))
        });
        submitted.unwrap_or_else(Task::failed)
    }

    /// Runs `function(argument)` in the pool, and blocks until it returns.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub fn apply<A, R>(self, function: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.submit(function, argument).join()
    }
}
