//! Waiting for several tasks at once.
use super::task::Task;
use core::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Wake;
use std::time::{Duration, Instant};

/// A waker that sends the number of its task.
struct IndexWaker {
    number: usize,
    to: Sender<usize>,
}

impl Wake for IndexWaker {
    fn wake(self: Arc<Self>) {
        self.to.send(self.number).ok(); // fails if the receiver has been dropped
    }
}

fn completions<'a, R: 'a>(tasks: impl Iterator<Item = &'a Task<R>>) -> Receiver<usize> {
    let (to, from) = channel();
    for (number, task) in tasks.enumerate() {
        task.register(Arc::new(IndexWaker { number, to: to.clone() }).into());
    }
    from
}

/// Returns an iterator that gives tasks in the order of their completion.
///
/// ```no_run
/// # fn f(pool: &outlast::pool::Pool) -> Result<(), outlast::Error> {
/// # fn square(x: u64) -> u64 { x * x }
/// let tasks: Vec<_> = (0..10).map(|x| pool.submit(square, x)).collect();
/// for task in outlast::pool::as_completed(tasks) {
///     let value = task.join()?; // does not block
/// }
/// # Ok(())
/// # }
/// ```
pub fn as_completed<R>(tasks: impl IntoIterator<Item = Task<R>>) -> AsCompleted<R> {
    let tasks: Vec<Option<Task<R>>> = tasks.into_iter().map(Some).collect();
    let done = completions(tasks.iter().flatten());
    AsCompleted { tasks, done }
}

/// An iterator over tasks in the order of their completion, from [`as_completed`].
pub struct AsCompleted<R> {
    tasks: Vec<Option<Task<R>>>,
    done: Receiver<usize>,
}

impl<R> Iterator for AsCompleted<R> {
    type Item = Task<R>;

    fn next(&mut self) -> Option<Task<R>> {
        // The channel is closed after the last task.
        self.done.recv().ok().and_then(|number| self.tasks.get_mut(number)?.take())
    }
}

impl<R> fmt::Debug for AsCompleted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.tasks.iter().flatten().count();
        f.debug_struct("AsCompleted").field("left", &left).finish()
    }
}

/// When [`wait`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// When one task is done.
    First,
    /// When all tasks are done.
    All,
}

/// Blocks until one or all of `tasks` are done, or `timeout` has elapsed. Returns the indices of the
/// tasks that are done, in order.
///
/// Returns immediately if `tasks` is empty.
#[doc(alias = "wait_all")]
#[expect(clippy::must_use_candidate, reason = "the waiting may be all that the caller wants")]
pub fn wait<R>(tasks: &[Task<R>], until: Until, timeout: Option<Duration>) -> Vec<usize> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let done = completions(tasks.iter());
    let wanted = match until {
        Until::First => 1,
        Until::All => tasks.len(),
    };
    let mut left = wanted.min(tasks.len());
    while left > 0 {
        let told = match deadline {
            None => done.recv().ok(),
            Some(at) => done.recv_timeout(at.saturating_duration_since(Instant::now())).ok(),
        };
        if told.is_none() {
            break;
        }
        left -= 1;
    }
    (0..tasks.len()).filter(|&i| tasks[i].is_done()).collect()
}
