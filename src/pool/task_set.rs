//! Waiting for several tasks.
use super::task::Task;
use crate::deadline::Deadline;
use crate::wait::TimedOut;
use core::fmt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

/// A waker that sends the number of its task.
struct Completion {
    number: u64,
    to: Sender<u64>,
}

impl Wake for Completion {
    fn wake(self: Arc<Self>) {
        self.to.send(self.number).ok(); // fails if the receiver has been dropped
    }
}

fn completion(number: u64, to: &Sender<u64>) -> Waker {
    Arc::new(Completion { number, to: to.clone() }).into()
}

/// Receives the number of a task that is done. Returns `None` if the deadline passes first.
///
/// In a worker, `run_one` runs a waiting task on this thread; see [`current`](super::current).
fn receive(
    from: &Receiver<u64>,
    deadline: Deadline,
    is_nested: bool,
    mut run_one: impl FnMut() -> bool,
) -> Option<u64> {
    /// How often a worker looks again for a task that it can run.
    const LOOK_AGAIN: Duration = Duration::from_millis(100);
    let longest = if is_nested { LOOK_AGAIN } else { Duration::MAX };
    loop {
        if let Ok(number) = from.try_recv() {
            return Some(number);
        }
        if is_nested && run_one() {
            continue;
        }
        match from.recv_timeout(deadline.remaining().unwrap_or(longest).min(longest)) {
            Ok(number) => return Some(number),
            Err(RecvTimeoutError::Timeout) if !deadline.is_over() => {}
            Err(_) => return None,
        }
    }
}

/// A set of tasks that grows, and whose tasks can be taken as they complete.
///
/// Each task is waited for once: waiting for the next of many tasks does not look at the others
/// again. Dropping the set drops its tasks, as [`Task`] describes.
///
/// ```standalone_crate
/// use outlast::pool::{Pool, TaskSet};
///
/// /// Returns the two halves of a number, which are work again.
/// fn halves(x: u64) -> (u64, u64) {
///     (x / 2, x - x / 2)
/// }
///
/// fn main() -> Result<(), outlast::Error> {
///     outlast::process::init(); // first of all
///     let pool = Pool::builder().workers(2).build()?;
///     let mut tasks = TaskSet::new();
///     tasks.add(pool.submit(halves, 8));
///     let mut ones = 0;
///     while let Some(task) = tasks.wait_any() {
///         let (a, b) = task.join()?; // does not block
///         for half in [a, b] {
///             match half {
///                 1 => ones += 1,
///                 more => tasks.add(pool.submit(halves, more)),
///             }
///         }
///     }
///     assert_eq!(ones, 8);
///     Ok(())
/// }
/// ```
#[doc(alias = "JoinSet")]
pub struct TaskSet<R> {
    tasks: BTreeMap<u64, Task<R>>,
    next: u64,
    done: Receiver<u64>,
    to: Sender<u64>,
}

impl<R> TaskSet<R> {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Self {
        let (to, done) = channel();
        TaskSet { tasks: BTreeMap::new(), next: 0, done, to }
    }

    /// Adds a task.
    pub fn add(&mut self, task: Task<R>) {
        task.register(completion(self.next, &self.to));
        self.tasks.insert(self.next, task);
        self.next += 1;
    }

    /// Returns the number of tasks in the set, done or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Returns whether the set has no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Blocks until a task is done, and takes it out of the set. Returns `None` if the set is
    /// empty.
    ///
    /// In the child of a fork all tasks count as done, and give
    /// [`TaskError::Forked`](super::TaskError::Forked).
    pub fn wait_any(&mut self) -> Option<Task<R>> {
        self.wait_any_until(Deadline::NEVER).ok()?
    }

    /// Like [`wait_any`](Self::wait_any), but gives up when `timeout` has elapsed.
    ///
    /// # Errors
    /// [`TimedOut`] if no task was done in time.
    pub fn wait_any_timeout(&mut self, timeout: Duration) -> Result<Option<Task<R>>, TimedOut> {
        self.wait_any_until(Deadline::after(timeout))
    }

    /// Like [`wait_any`](Self::wait_any), but gives up at `deadline`.
    ///
    /// # Errors
    /// [`TimedOut`] if no task was done in time.
    pub fn wait_any_deadline(&mut self, deadline: Instant) -> Result<Option<Task<R>>, TimedOut> {
        self.wait_any_until(Deadline::at(deadline))
    }

    fn wait_any_until(&mut self, deadline: Deadline) -> Result<Option<Task<R>>, TimedOut> {
        let Some(first) = self.tasks.first_entry() else { return Ok(None) };
        if first.get().is_copy() {
            return Ok(Some(first.remove()));
        }
        let is_nested = first.get().is_nested();
        let tasks = &self.tasks;
        let run_one = || tasks.values().rev().any(Task::run_here);
        let number = receive(&self.done, deadline, is_nested, run_one).ok_or(TimedOut)?;
        Ok(self.tasks.remove(&number))
    }

    /// Blocks until all tasks are done, and returns them in the order in which they were added.
    #[must_use = "the tasks hold the results"]
    pub fn wait_all(&mut self) -> Vec<Task<R>> {
        let tasks: Vec<_> = core::mem::take(self).tasks.into_values().collect();
        // The last ones first: in a worker, these are the ones that it can run itself.
        tasks.iter().rev().for_each(Task::wait);
        tasks
    }

    /// Cancels all tasks that are not done. They stay in the set.
    pub fn cancel_all(&self) {
        self.tasks.values().for_each(|task| _ = task.cancel());
    }
}

impl<R> Default for TaskSet<R> {
    fn default() -> Self {
        TaskSet::new()
    }
}

impl<R> Extend<Task<R>> for TaskSet<R> {
    fn extend<I: IntoIterator<Item = Task<R>>>(&mut self, tasks: I) {
        tasks.into_iter().for_each(|task| self.add(task));
    }
}

impl<R> FromIterator<Task<R>> for TaskSet<R> {
    fn from_iter<I: IntoIterator<Item = Task<R>>>(tasks: I) -> Self {
        let mut set = TaskSet::new();
        set.extend(tasks);
        set
    }
}

impl<R> IntoIterator for TaskSet<R> {
    type Item = Task<R>;
    type IntoIter = AsCompleted<R>;

    /// Returns an iterator that gives the tasks in the order of their completion.
    fn into_iter(self) -> AsCompleted<R> {
        AsCompleted(self)
    }
}

impl<R> fmt::Debug for TaskSet<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet").field("len", &self.len()).finish()
    }
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
    TaskSet::from_iter(tasks).into_iter()
}

/// An iterator over tasks in the order of their completion, from [`as_completed`] or a [`TaskSet`].
#[derive(Debug)]
pub struct AsCompleted<R>(TaskSet<R>);

impl<R> Iterator for AsCompleted<R> {
    type Item = Task<R>;

    fn next(&mut self) -> Option<Task<R>> {
        self.0.wait_any()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
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

/// Blocks until one or all of `tasks` are done, or `timeout` has elapsed. Returns the indices of
/// the tasks that are done, in order.
///
/// Returns immediately if `tasks` is empty. Use a [`TaskSet`] to wait for one task after the other.
#[doc(alias = "wait_all")]
pub fn wait<R>(tasks: &[Task<R>], until: Until, timeout: Option<Duration>) -> Vec<usize> {
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    let (to, done) = channel();
    tasks.iter().for_each(|task| task.register(completion(0, &to)));
    let wanted = match until {
        Until::First => 1.min(tasks.len()),
        Until::All => tasks.len(),
    };
    let run_one = || tasks.iter().rev().any(Task::run_here);
    let is_nested = tasks.first().is_some_and(Task::is_nested);
    for _ in 0..wanted {
        if receive(&done, deadline, is_nested, run_one).is_none() {
            break;
        }
    }
    (0..tasks.len()).filter(|&i| tasks[i].is_done()).collect()
}
