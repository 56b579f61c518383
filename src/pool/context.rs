//! The value that a worker's initialiser has returned, for the tasks of that worker.
use crate::process::worker::{Failure, call};
use core::any::{Any, type_name};
use core::cell::Cell;
use serde::de::DeserializeOwned;

/// The context and the name of its type.
type Context = (&'static dyn Any, &'static str);

thread_local! {
    /// Set once, on the thread of a worker that runs the initialiser and then all tasks.
    static CONTEXT: Cell<Option<Context>> = const { Cell::new(None) };
}

/// Is the [`Entry`](crate::process::worker::Entry) for initialisers from `A` to `C`.
pub(super) fn entry<A: DeserializeOwned, C: 'static>(
    function: usize,
    argument: &[u8],
    _result: &mut Vec<u8>,
) -> Result<(), Failure> {
    let context = call::<A, C>(function, argument)?;
    // Lives as long as the worker, which has one initialiser.
    CONTEXT.set(Some((Box::leak(Box::new(context)), type_name::<C>())));
    Ok(())
}

/// Returns the value that the [initialiser](super::Builder::initializer) of this worker has
/// returned.
///
/// It is the place for values that are built once in each worker: a connection, a model, a cache.
/// The value belongs to the thread that runs the tasks, so it need not be `Sync`; use a `Cell` or a
/// `RefCell` to change it. It is never dropped: the worker process ends without running its
/// destructor.
///
/// ```standalone_crate
/// use outlast::pool::{self, Pool};
/// use std::cell::Cell;
/// use std::collections::HashMap;
///
/// struct Context {
///     prices: HashMap<String, u64>,
///     questions: Cell<u64>,
/// }
///
/// fn load(currency: String) -> Context {
///     // It might read a file here.
///     let prices = HashMap::from([(format!("tea in {currency}"), 3)]);
///     Context { prices, questions: Cell::new(0) }
/// }
///
/// fn price(of: String) -> Option<u64> {
///     let context = pool::context::<Context>();
///     context.questions.set(context.questions.get() + 1);
///     context.prices.get(&of).copied()
/// }
///
/// fn main() -> Result<(), outlast::Error> {
///     outlast::process::init(); // first of all
///     let pool = Pool::builder().workers(2).initializer(load, "euros".to_owned()).build()?;
///     assert_eq!(pool.apply(price, "tea in euros".to_owned())?, Some(3));
///     Ok(())
/// }
/// ```
///
/// # Panics
/// If the initialiser has not returned a `T`, or the calling thread is not the one that runs a
/// pool's tasks. A task can hand the reference to its own threads if `T` is `Sync`.
#[must_use]
#[track_caller]
pub fn context<T: 'static>() -> &'static T {
    let wanted = type_name::<T>();
    let Some((context, found)) = CONTEXT.get() else {
        panic!(
            "no context of type {wanted}: this thread runs no tasks of a pool with an initialiser"
        );
    };
    match context.downcast_ref() {
        Some(context) => context,
        None => panic!("the pool's initialiser returned {found}, not {wanted}"),
    }
}
