//! Pools of worker processes: each task is done or reported once, whichever process is killed.
#![cfg(not(outlast_loom))]
mod runner;

use outlast::log::{Journal, Level};
use outlast::pool::{self, Pool, PoolError, TaskError, TaskOptions, TaskSet, Until};
use outlast::process::{self, SpawnError};
use outlast::{Channel, Event, FixedQueue, Lock, LockError, Sender, Shared, TimedOut, ValueQueue};
use runner::{children, eventually, kill, ms, part, runs};
use std::collections::HashSet;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::pin::pin;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    if std::env::var_os("WITHOUT_INIT").is_none() {
        process::init();
    }
    runner::run(
        &[
            ("applies", applies),
            ("results_in_order", results_in_order),
            ("unordered_is_complete", unordered_is_complete),
            ("a_lazy_input", a_lazy_input),
            ("an_endless_input", an_endless_input),
            ("tuples", tuples),
            ("nothing_to_map", nothing_to_map),
            ("a_panic_is_told", a_panic_is_told),
            ("panics_in_a_map", panics_in_a_map),
            (
                "a_worker_is_killed_and_its_task_tried_again",
                a_worker_is_killed_and_its_task_tried_again,
            ),
            ("a_task_that_kills_its_workers", a_task_that_kills_its_workers),
            ("a_task_that_exits", a_task_that_exits),
            ("chunk_mates_of_a_killer", chunk_mates_of_a_killer),
            ("a_timeout_kills_only_its_task", a_timeout_kills_only_its_task),
            ("cancel", cancel),
            ("cancel_what_waits", cancel_what_waits),
            ("close_and_join", close_and_join),
            ("join_with_a_timeout", join_with_a_timeout),
            ("terminate", terminate),
            ("a_dropped_pool", a_dropped_pool),
            ("workers_are_replaced_after_so_many_tasks", workers_are_replaced_after_so_many_tasks),
            ("an_initializer", an_initializer),
            ("an_initializer_that_panics", an_initializer_that_panics),
            ("large_values", large_values),
            ("values_of_all_sizes", values_of_all_sizes),
            ("what_cannot_be_encoded", what_cannot_be_encoded),
            ("a_future", a_future),
            ("many_futures", many_futures),
            ("as_completed", as_completed),
            ("wait_for_first_and_all", wait_for_first_and_all),
            ("from_many_threads", from_many_threads),
            ("one_task_joined_by_many", one_task_joined_by_many),
            (
                "an_idle_worker_takes_what_waits_elsewhere",
                an_idle_worker_takes_what_waits_elsewhere,
            ),
            ("long_and_short_tasks", long_and_short_tasks),
            ("a_task_uses_a_pool", a_task_uses_a_pool),
            ("shared_memory", shared_memory),
            ("what_it_is_at_can_be_seen", what_it_is_at_can_be_seen),
            ("what_a_killed_worker_logged", what_a_killed_worker_logged),
            ("idle_it_uses_no_cpu", idle_it_uses_no_cpu),
            ("many_workers", many_workers),
            ("more_threads_than_workers", more_threads_than_workers),
            ("the_fork_server_is_killed", the_fork_server_is_killed),
            ("all_workers_are_killed_while_idle", all_workers_are_killed_while_idle),
            ("a_refused_poll_is_no_death", a_refused_poll_is_no_death),
            ("the_owner_is_killed", the_owner_is_killed),
            ("what_workers_share_after_terminate", what_workers_share_after_terminate),
            ("without_init", without_init),
            ("after_a_fork", after_a_fork),
            ("random_kills", random_kills),
            ("random_kills_of_fork_servers", random_kills_of_fork_servers),
            ("all_at_once", all_at_once),
            ("each_task_runs_once", each_task_runs_once),
            ("full_rings", full_rings),
            ("results_that_nobody_wants", results_that_nobody_wants),
            ("large_results_hold_no_descriptors", large_results_hold_no_descriptors),
            ("large_values_wait_for_descriptors", large_values_wait_for_descriptors),
            ("each_large_value_waits_its_own_time", each_large_value_waits_its_own_time),
            ("workers_without_descriptors", workers_without_descriptors),
            ("a_worker_waits_for_a_descriptor", a_worker_waits_for_a_descriptor),
            ("a_pool_outlives_a_lack_of_descriptors", a_pool_outlives_a_lack_of_descriptors),
            ("an_input_that_panics", an_input_that_panics),
            ("large_arguments_without_end", large_arguments_without_end),
            ("a_slow_input", a_slow_input),
            ("a_task_that_forks", a_task_that_forks),
            ("the_panic_that_is_told", the_panic_that_is_told),
            ("how_a_worker_ended_in_words", how_a_worker_ended_in_words),
            ("a_context", a_context),
            ("ends_of_a_channel_in_workers", ends_of_a_channel_in_workers),
            ("environment_of_workers", environment_of_workers),
            ("an_initializer_that_hangs", an_initializer_that_hangs),
            ("tasks_with_limits_of_their_own", tasks_with_limits_of_their_own),
            ("a_dropped_task_is_cancelled", a_dropped_task_is_cancelled),
            ("a_set_of_tasks_that_grows", a_set_of_tasks_that_grows),
            ("the_number_of_workers_changes", the_number_of_workers_changes),
            ("tasks_that_submit_tasks", tasks_that_submit_tasks),
            ("tasks_that_submit_many_tasks", tasks_that_submit_many_tasks),
            ("tasks_that_submit_tasks_to_a_closed_pool", tasks_that_submit_tasks_to_a_closed_pool),
            ("tasks_of_a_task_that_fail", tasks_of_a_task_that_fail),
            ("tasks_of_a_task_that_dies", tasks_of_a_task_that_dies),
            ("random_kills_of_tasks_that_submit_tasks", random_kills_of_tasks_that_submit_tasks),
            ("a_limit_of_memory", a_limit_of_memory),
            ("children_of_a_task_are_killed", children_of_a_task_are_killed),
            ("a_backtrace_shows_the_users_frames", a_backtrace_shows_the_users_frames),
            ("killed_at_every_instruction", step::killed_at_every_instruction),
            (
                "submitters_killed_at_every_instruction",
                step::submitters_killed_at_every_instruction,
            ),
        ],
        &[("owner", play_owner), ("without_init", play_without_init)],
    )
}

fn two() -> Pool {
    Pool::builder().workers(2).build().unwrap()
}

fn double(x: u64) -> u64 {
    x * 2
}

fn sleeps(milliseconds: u64) -> u64 {
    std::thread::sleep(ms(milliseconds));
    milliseconds
}

fn pid_of((): ()) -> u32 {
    std::process::id()
}

fn is_error<T, E: std::fmt::Debug>(result: &Result<T, E>, fits: fn(&E) -> bool) -> bool {
    result.as_ref().err().is_some_and(fits)
}

fn applies() {
    let pool = two();
    assert_eq!(pool.apply(double, 21).unwrap(), 42);
    for i in 0..1_000 {
        assert_eq!(pool.apply(double, i).unwrap(), 2 * i);
    }
    let task = pool.submit(double, 4);
    task.wait();
    assert!(task.is_done());
    assert_eq!(task.join().unwrap(), 8);
    assert!(is_error(&task.join(), |error| matches!(error, TaskError::Taken)));
    assert!(!task.cancel());
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed, stats.unfinished, stats.lost), (1_002, 0, 0, 0));
    assert_eq!(stats.workers, 2);
}

fn results_in_order() {
    let pool = two();
    for count in [1, 2, 3, 10, 1_000, 100_000] {
        let results: Vec<u64> = pool.map(double, 0..count).map(Result::unwrap).collect();
        assert!(results.into_iter().eq((0..count).map(|x| 2 * x)), "{count}");
    }
    let results = pool.map(double, vec![3, 1, 2]);
    assert_eq!(results.size_hint(), (3, Some(3)));
    assert_eq!(results.collect::<Result<Vec<_>, _>>().unwrap(), [6, 2, 4]);
}

fn unordered_is_complete() {
    let pool = two();
    let mut results: Vec<u64> = pool.map_unordered(double, 0..50_000).map(Result::unwrap).collect();
    results.sort_unstable();
    assert!(results.into_iter().eq((0..50_000).map(|x| 2 * x)));
    let mut slow = pool.map_unordered(sleeps, [400, 1, 1, 1]);
    assert_eq!(slow.next().unwrap().unwrap(), 1);
    assert_eq!(slow.map(Result::unwrap).sum::<u64>(), 402);
}

fn a_lazy_input() {
    let pool = two();
    let taken = AtomicU64::new(0);
    let input = (0..100_000_u64).inspect(|_| {
        taken.fetch_add(1, SeqCst);
    });
    let mut results = pool.map(sleeps, input.map(|_| 1));
    for _ in 0..20 {
        results.next().unwrap().unwrap();
    }
    assert!(taken.load(SeqCst) < 5_000, "{}", taken.load(SeqCst));
    drop(results);
    eventually("what was not begun is given up", || pool.stats().unfinished == 0);
    assert_eq!(pool.apply(double, 1).unwrap(), 2);
}

fn an_endless_input() {
    let pool = two();
    let sum: u64 = pool.map(double, 0..).map(Result::unwrap).take(10_000).sum();
    assert_eq!(sum, 9_999 * 10_000);
    let first = pool.map(double, std::iter::repeat(1)).next();
    assert_eq!(first.unwrap().unwrap(), 2);
}

fn tuples() {
    fn add((a, b, text): (u32, u32, String)) -> String {
        format!("{text}{}", a + b)
    }
    let pool = two();
    let input = (0..10).map(|i| (i, 2 * i, "n".to_owned()));
    let results: Vec<String> = pool.map(add, input).map(Result::unwrap).collect();
    assert_eq!(results[9], "n27");
}

fn nothing_to_map() {
    let pool = two();
    assert_eq!(pool.map(double, []).count(), 0);
    assert_eq!(pool.map_unordered(double, []).count(), 0);
    fn nothing((): ()) {}
    assert_eq!(pool.map(nothing, vec![(); 10_000]).map(Result::unwrap).count(), 10_000);
}

fn panics_at(x: u64) -> u64 {
    assert!(x % 100 != 7, "unlucky {x}");
    x
}

fn a_panic_is_told() {
    let pool = two();
    let Err(TaskError::Panicked { message, location, backtrace }) = pool.apply(panics_at, 107)
    else {
        panic!("no panic");
    };
    assert_eq!(message, "unlucky 107");
    assert!(location.contains("pool.rs:"), "{location}");
    assert!(backtrace.contains("panics_at"), "{backtrace}");
    assert_eq!(pool.apply(panics_at, 1).unwrap(), 1);
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed, stats.lost), (2, 1, 0));
}

fn panics_in_a_map() {
    let pool = two();
    let results: Vec<_> = pool.map(panics_at, 0..400).collect();
    for (result, x) in results.iter().zip(0..) {
        match result {
            Ok(value) => assert_eq!(*value, x),
            Err(TaskError::Panicked { message, .. }) => {
                assert_eq!(*message, format!("unlucky {x}"));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 4);
    assert!(pool.map(panics_at, 0..400).collect::<Result<Vec<_>, _>>().is_err());
    assert_eq!(pool.apply(double, 1).unwrap(), 2);
}

fn dies_until(times: u64) -> u64 {
    let count = Shared::<Lock<u64>>::inherited("count").unwrap();
    let mut guard = count.lock().unwrap();
    *guard += 1;
    let so_far = *guard;
    drop(guard);
    if so_far <= times {
        kill(std::process::id());
    }
    so_far
}

fn a_worker_is_killed_and_its_task_tried_again() {
    let count = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let pool = Pool::builder().workers(2).retries(3).share("count", &count).build().unwrap();
    assert_eq!(pool.apply(dies_until, 3).unwrap(), 4);
    assert_eq!(pool.stats().lost, 3);
    // python/cpython#96062 and the like: one killed from outside, in the middle of a task.
    let task = pool.submit(sleeps, 300);
    let pids = pool.pids();
    std::thread::sleep(ms(100));
    pids.into_iter().for_each(kill);
    assert_eq!(task.join().unwrap(), 300);
    eventually("both are replaced", || pool.stats().workers == 2);
    assert!(pool.stats().lost >= 4);
}

fn a_task_that_kills_its_workers() {
    let count = Shared::anonymous(Lock::new(0_u64)).unwrap();
    for retries in [0, 2] {
        *count.lock().unwrap() = 0;
        let pool = Pool::builder().workers(2).retries(retries).share("count", &count);
        let pool = pool.build().unwrap();
        let result = pool.apply(dies_until, u64::MAX);
        assert!(matches!(result, Err(TaskError::WorkerDied { signal: Some(9), code: None })));
        assert_eq!(*count.lock().unwrap(), u64::from(retries) + 1);
        assert_eq!(pool.apply(double, 1).unwrap(), 2);
    }
}

fn a_task_that_exits() {
    fn exits(code: i32) -> u32 {
        std::process::exit(code)
    }
    let pool = Pool::builder().workers(1).retries(0).build().unwrap();
    for code in [0, 3] {
        let Err(TaskError::WorkerDied { signal: None, code: Some(found) }) =
            pool.apply(exits, code)
        else {
            panic!("no death");
        };
        assert_eq!(found, code);
    }
    fn overflows(x: u64) -> u64 {
        let room = std::hint::black_box([x; 4_096]);
        if x == u64::MAX { 0 } else { overflows(x + 1) + room[usize::try_from(x % 4_096).unwrap()] }
    }
    let result = pool.apply(overflows, 1);
    assert!(is_error(&result, |error| matches!(error, TaskError::WorkerDied { .. })), "{result:?}");
    assert_eq!(pool.apply(double, 1).unwrap(), 2);
}

fn kills_at(x: u64) -> u64 {
    if x % 1_000 == 500 {
        kill(std::process::id());
    }
    x
}

/// Those that are in one message with a task that kills lose nothing, and no attempt.
fn chunk_mates_of_a_killer() {
    let pool = Pool::builder().workers(2).retries(0).build().unwrap();
    pool.map(double, 0..100_000).for_each(drop); // so that the chunks are large
    let results: Vec<_> = pool.map(kills_at, 0..10_000).collect();
    assert_eq!(results.len(), 10_000);
    for (result, x) in results.iter().zip(0..) {
        match result {
            Ok(value) => assert_eq!(*value, x),
            Err(TaskError::WorkerDied { signal: Some(9), .. }) => assert_eq!(x % 1_000, 500),
            Err(error) => panic!("{x}: {error}"),
        }
    }
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 10);
    assert_eq!(pool.stats().lost, 10);
}

fn a_timeout_kills_only_its_task() {
    let pool = Pool::builder().workers(2).task_timeout(ms(200)).build().unwrap();
    let start = Instant::now();
    let long = pool.submit(sleeps, 60_000);
    let others: Vec<u64> = pool.map(sleeps, vec![5; 20]).map(Result::unwrap).collect();
    assert_eq!(others, [5; 20]);
    assert!(is_error(&long.join(), |error| matches!(error, TaskError::TimedOut)));
    assert!(start.elapsed() >= ms(200));
    // In one message with others.
    fn sometimes(x: u64) -> u64 {
        if x == 5_000 { sleeps(60_000) } else { x }
    }
    pool.map(double, 0..100_000).for_each(drop);
    let results: Vec<_> = pool.map(sometimes, 0..10_000).collect();
    for (result, x) in results.iter().zip(0..) {
        match result {
            Ok(value) => assert_eq!(*value, x),
            Err(TaskError::TimedOut) => assert_eq!(x, 5_000),
            Err(error) => panic!("{x}: {error}"),
        }
    }
    assert_eq!(pool.stats().failed, 2);
}

fn cancel() {
    let pool = two();
    let task = pool.submit(sleeps, 60_000);
    let pids = pool.pids();
    std::thread::sleep(ms(50));
    let task = Arc::new(task);
    let waits = Arc::clone(&task);
    let waiter = std::thread::spawn(move || waits.join());
    std::thread::sleep(ms(50));
    assert!(task.cancel());
    assert!(task.is_done(), "the answer and the result are one step");
    assert!(is_error(&waiter.join().unwrap(), |error| matches!(error, TaskError::Cancelled)));
    // noxdafox/pebble#154, joblib/loky#176: the process does not go on with it.
    eventually("the worker is gone", || pids.iter().filter(|&&pid| runs(pid)).count() == 1);
    assert!(!task.cancel());
    eventually("it is replaced", || pool.stats().workers == 2);
    assert_eq!(pool.apply(double, 1).unwrap(), 2);
}

fn cancel_what_waits() {
    let pool = Pool::builder().workers(1).build().unwrap();
    let first = pool.submit(sleeps, 200);
    let tasks: Vec<_> = (0..20).map(|i| pool.submit(double, i)).collect();
    std::thread::sleep(ms(50));
    assert!(tasks.iter().skip(5).all(|task| task.cancel()));
    assert_eq!(first.join().unwrap(), 200);
    for (task, i) in tasks.iter().zip(0..) {
        match task.join() {
            Ok(value) => assert!(i < 5 && value == 2 * i),
            Err(TaskError::Cancelled) => assert!(i >= 5),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(pool.stats().lost, 0);
}

fn close_and_join() {
    let pool = two();
    let tasks: Vec<_> = (0..100).map(|_| pool.submit(sleeps, 3)).collect();
    pool.close();
    assert!(is_error(&pool.submit(double, 1).join(), |error| matches!(error, TaskError::Closed)));
    assert!(is_error(&pool.apply(double, 1), |error| matches!(error, TaskError::Closed)));
    let results: Vec<_> = pool.map(double, 0..3).collect();
    assert!(results.len() == 3 && results.iter().all(Result::is_err));
    let pids = pool.pids();
    // python/cpython#85927 and the like: join before the results are taken.
    pool.join();
    assert!(tasks.iter().all(|task| task.try_join().unwrap().unwrap() == 3));
    assert!(!pids.into_iter().any(runs));
    pool.join();
    pool.terminate();
}

fn join_with_a_timeout() {
    let pool = two();
    let task = pool.submit(sleeps, 300);
    let start = Instant::now();
    assert!(task.try_join().is_none());
    assert_eq!(task.join_timeout(ms(30)), Err(TimedOut));
    assert_eq!(task.join_deadline(Instant::now() + ms(30)), Err(TimedOut));
    assert!(!task.wait_timeout(ms(30)));
    assert!(!pool.join_timeout(ms(30)));
    assert!(start.elapsed() >= ms(120));
    assert_eq!(task.join_timeout(runner::PATIENCE).unwrap().unwrap(), 300);
    assert!(pool.join_timeout(runner::PATIENCE));
}

fn terminate() {
    let pool = two();
    let tasks: Vec<_> = (0..100).map(|_| pool.submit(sleeps, 60_000)).collect();
    let pids = pool.pids();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| tasks[50].join());
        std::thread::sleep(ms(50));
        pool.terminate();
        let result = waiter.join().unwrap();
        assert!(is_error(&result, |error| matches!(error, TaskError::Terminated)), "{result:?}");
    });
    for (i, task) in tasks.iter().enumerate() {
        let expected: fn(&TaskError) -> bool = match i {
            50 => |error| matches!(error, TaskError::Taken),
            _ => |error| matches!(error, TaskError::Terminated),
        };
        assert!(is_error(&task.join(), expected));
    }
    assert!(!pids.into_iter().any(runs));
    assert!(is_error(&pool.apply(double, 1), |error| matches!(error, TaskError::Terminated)));
    assert_eq!(pool.stats().unfinished, 0);
}

fn a_dropped_pool() {
    let before = runner::descriptors(std::process::id());
    for _ in 0..10 {
        let pool = two();
        let pids = pool.pids();
        let task = pool.submit(sleeps, 60_000);
        drop(pool);
        assert!(is_error(&task.join(), |error| matches!(error, TaskError::Terminated)));
        assert!(!pids.into_iter().any(runs));
    }
    eventually("nothing is left open", || runner::descriptors(std::process::id()) <= before);
}

/// python/cpython#115634, #119592.
fn workers_are_replaced_after_so_many_tasks() {
    let pool = Pool::builder().workers(2).max_tasks_per_child(10).build().unwrap();
    let pids: Vec<u32> = pool.map(pid_of, vec![(); 200]).map(Result::unwrap).collect();
    let different: HashSet<u32> = pids.iter().copied().collect();
    assert!(different.len() >= 20, "{}", different.len());
    for pid in different {
        assert!(pids.iter().filter(|&&other| other == pid).count() <= 10);
    }
    for i in 0..100 {
        assert_eq!(pool.apply(double, i).unwrap(), 2 * i);
    }
    assert!(pool.map(double, 0..1_000).map(Result::unwrap).eq((0..1_000).map(|x| 2 * x)));
    let stats = pool.stats();
    assert_eq!((stats.lost, stats.failed), (0, 0));
    let one_each = Pool::builder().workers(2).max_tasks_per_child(1).build().unwrap();
    let pids: HashSet<u32> = one_each.map(pid_of, vec![(); 50]).map(Result::unwrap).collect();
    assert_eq!(pids.len(), 50);
}

static PREPARED: AtomicU64 = AtomicU64::new(0);

fn prepare(number: u64) {
    PREPARED.store(number, SeqCst);
}

fn prepared((): ()) -> u64 {
    PREPARED.load(SeqCst)
}

fn an_initializer() {
    let pool = Pool::builder().workers(2).initializer(prepare, 77).build().unwrap();
    assert!(pool.map(prepared, vec![(); 100]).all(|result| result.unwrap() == 77));
    pool.pids().into_iter().for_each(kill);
    assert_eq!(pool.apply(prepared, ()).unwrap(), 77);
    assert_eq!(PREPARED.load(SeqCst), 0);
}

fn how_a_worker_ended_in_words() {
    let killed = TaskError::WorkerDied { signal: Some(libc::SIGKILL), code: None };
    let text = killed.to_string();
    assert_eq!(text, "the worker was killed by SIGKILL before it had finished the task");
    let exited = TaskError::WorkerDied { signal: None, code: Some(3) };
    let text = exited.to_string();
    assert_eq!(text, "the worker exited with code 3 before it had finished the task");
    assert_ne!(killed, exited);
    fn aborts((): ()) {
        std::process::abort();
    }
    let pool = Pool::builder().workers(1).retries(0).build().unwrap();
    let aborted = TaskError::WorkerDied { signal: Some(libc::SIGABRT), code: None };
    assert_eq!(pool.apply(aborts, ()), Err(aborted));
    // A pool whose workers never begin says why.
    fn exits(code: i32) {
        std::process::exit(code);
    }
    let pool = Pool::builder().workers(1).initializer(exits, 3).build().unwrap();
    let text = String::from("a worker exited with code 3 before it began");
    assert_eq!(pool.apply(double, 1), Err(TaskError::Broken(text)));
}

fn a_context() {
    struct Context {
        factor: u64,
        calls: std::cell::Cell<u64>,
    }
    fn build(factor: u64) -> Context {
        Context { factor, calls: std::cell::Cell::new(0) }
    }
    fn multiply(x: u64) -> (u64, u64) {
        let context = pool::context::<Context>();
        context.calls.set(context.calls.get() + 1);
        (x * context.factor, context.calls.get())
    }
    fn asks_for_another((): ()) {
        drop(pool::context::<String>().clone());
    }
    fn asks_on_a_thread((): ()) {
        std::thread::spawn(|| pool::context::<Context>().factor).join().unwrap();
    }
    let pool = Pool::builder().workers(1).initializer(build, 3).build().unwrap();
    for x in 1..100 {
        assert_eq!(pool.apply(multiply, x).unwrap(), (3 * x, x));
    }
    let message = |result: Result<(), TaskError>| match result {
        Err(TaskError::Panicked { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    let text = message(pool.apply(asks_for_another, ()));
    assert!(text.contains("Context, not alloc::string::String"), "{text}");
    message(pool.apply(asks_on_a_thread, ()));
    // A worker that takes another's place builds it again.
    let task = pool.submit(sleeps, 60_000);
    std::thread::sleep(ms(50));
    task.cancel();
    assert_eq!(pool.apply(multiply, 7).unwrap(), (21, 1));
    // Without an initialiser there is none; neither outside of a worker.
    let text = message(two().apply(asks_for_another, ()));
    assert!(text.contains("no context of type"), "{text}");
    assert!(std::panic::catch_unwind(pool::context::<Context>).is_err());
}

fn an_initializer_that_hangs() {
    let start = Instant::now();
    let pool = Pool::builder().workers(2).initializer(sleeps, 60_000);
    let pool = pool.initializer_timeout(ms(100)).build().unwrap();
    match pool.apply(double, 1) {
        Err(TaskError::Broken(text)) => {
            assert_eq!(text, "the initialiser exceeded its time limit of 100ms");
        }
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() >= ms(200), "several attempts");
    // The limit is for the start, not for the tasks.
    let pool = Pool::builder().workers(1).initializer(sleeps, 1).initializer_timeout(ms(10_000));
    let pool = pool.build().unwrap();
    assert_eq!(pool.apply(sleeps, 300).unwrap(), 300);
    assert_eq!(pool.stats().lost, 0);
}

fn tasks_with_limits_of_their_own() {
    let pool = two();
    let brief = TaskOptions::new().timeout(ms(100));
    let (start, other) = (Instant::now(), pool.submit(sleeps, 400));
    assert_eq!(pool.submit_with(brief, sleeps, 60_000).join(), Err(TaskError::TimedOut));
    assert!(start.elapsed() >= ms(100));
    assert_eq!(other.join(), Ok(400), "no limit");
    assert_eq!(pool.submit_with(brief, double, 4).join(), Ok(8));
    // A longer limit than the pool's.
    let pool = Pool::builder().workers(1).task_timeout(ms(100)).build().unwrap();
    let patient = TaskOptions::new().timeout(ms(30_000));
    assert_eq!(pool.submit_with(patient, sleeps, 400).join(), Ok(400));
    assert_eq!(pool.submit(sleeps, 30_000).join(), Err(TaskError::TimedOut));
    // Tries of its own.
    let count = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let pool = Pool::builder().workers(1).share("count", &count).build().unwrap();
    let once = TaskOptions::new().retries(0);
    let died = TaskError::WorkerDied { signal: Some(libc::SIGKILL), code: None };
    assert_eq!(pool.submit_with(once, dies_until, 1).join(), Err(died));
    assert_eq!(*count.lock().unwrap(), 1);
    assert_eq!(pool.submit_with(TaskOptions::new().retries(5), dies_until, 5).join(), Ok(6));
}

fn a_dropped_task_is_cancelled() {
    let pool = Pool::builder().workers(1).build().unwrap();
    let (running, waiting) = (pool.submit(sleeps, 60_000), pool.submit(sleeps, 60_000));
    std::thread::sleep(ms(50));
    drop(waiting.cancel_on_drop(true));
    assert_eq!(pool.stats().unfinished, 1);
    drop(running.cancel_on_drop(true));
    eventually("both are cancelled", || pool.stats().unfinished == 0);
    // A task that is done is left alone, and so is a task that is not to be cancelled.
    let task = pool.submit(double, 4).cancel_on_drop(true);
    task.wait();
    drop((task, pool.submit(double, 4), pool.submit(sleeps, 1).cancel_on_drop(false)));
    pool.join();
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed, stats.lost), (5, 2, 1));
}

fn a_set_of_tasks_that_grows() {
    fn halves(x: u64) -> (u64, u64) {
        (x / 2, x - x / 2)
    }
    let pool = two();
    let mut tasks = TaskSet::new();
    assert!(tasks.wait_any().is_none(), "an empty set");
    tasks.add(pool.submit(halves, 1_000));
    let mut ones = 0;
    while let Some(task) = tasks.wait_any() {
        let (a, b) = task.join().unwrap();
        for half in [a, b] {
            if half == 1 {
                ones += 1;
            } else if half > 1 {
                tasks.add(pool.submit(halves, half));
            }
        }
    }
    assert_eq!(ones, 1_000);
    // In the order of their completion, and within a time.
    let mut tasks: TaskSet<u64> =
        [300, 1, 60_000].map(|ms| pool.submit(sleeps, ms)).into_iter().collect();
    assert_eq!(tasks.len(), 3);
    assert_eq!(tasks.wait_any().unwrap().join(), Ok(1));
    assert!(tasks.wait_any_timeout(ms(1)).is_err());
    assert_eq!(tasks.wait_any_timeout(ms(30_000)).unwrap().unwrap().join(), Ok(300));
    tasks.cancel_all();
    assert_eq!(tasks.wait_any().unwrap().join(), Err(TaskError::Cancelled));
    assert!(tasks.is_empty());
    tasks.extend((0..100).map(|x| pool.submit(double, x)));
    let values = tasks.wait_all().into_iter().map(|task| task.try_join().unwrap().unwrap());
    assert!(values.eq((0..100).map(|x| 2 * x)), "in the order in which they were added");
}

fn the_number_of_workers_changes() {
    let pool = Pool::builder().workers(1).max_workers(6).build().unwrap();
    let invalid = |workers| matches!(pool.set_workers(workers), Err(PoolError::InvalidWorkers { workers: w, max: 6 }) if w == workers);
    assert!(invalid(0) && invalid(7));
    pool.set_workers(6).unwrap();
    eventually("they are started", || pool.stats().workers == 6);
    let pids: HashSet<u32> = pool.map(pid_slowly, vec![20; 60]).map(Result::unwrap).collect();
    assert!(pids.len() > 1, "{pids:?}");
    // Busy ones finish their tasks.
    let tasks: Vec<_> = (0..6).map(|_| pool.submit(sleeps, 300)).collect();
    std::thread::sleep(ms(50));
    pool.set_workers(2).unwrap();
    assert!(tasks.iter().all(|task| task.join() == Ok(300)));
    eventually("four have ended", || pool.stats().workers == 2);
    std::thread::sleep(ms(100));
    let stats = pool.stats();
    assert_eq!((stats.workers, stats.lost, stats.replaced), (2, 0, 0));
    // A worker that dies is replaced. Others do the tasks that wait at a worker that retires.
    pool.pids().into_iter().for_each(kill);
    eventually("they are replaced", || pool.stats().lost == 2 && pool.stats().workers == 2);
    let tasks: Vec<_> = (0..200).map(|x| pool.submit(double, x)).collect();
    for workers in [5, 1, 3, 2, 6, 1] {
        pool.set_workers(workers).unwrap();
    }
    assert!(tasks.iter().zip(0..).all(|(task, x)| task.join() == Ok(2 * x)));
    eventually("one is left", || pool.stats().workers == 1);
    // Idle ones end first.
    pool.set_workers(2).unwrap();
    eventually("two", || pool.stats().workers == 2);
    let (task, pids) = (pool.submit(pid_slowly, 500), pool.pids());
    std::thread::sleep(ms(50));
    pool.set_workers(1).unwrap();
    eventually("one", || pool.stats().workers == 1);
    assert_eq!(task.join().unwrap(), pool.pids()[0]);
    assert_eq!(pids.into_iter().filter(|&pid| runs(pid)).count(), 1);
    pool.join();
    pool.set_workers(4).unwrap(); // without an effect
}

fn pid_slowly(milliseconds: u64) -> u32 {
    sleeps(milliseconds);
    std::process::id()
}

fn sums((from, to): (u64, u64)) -> u64 {
    if to - from <= 10 {
        return (from..to).sum();
    }
    let middle = (from + to) / 2;
    let pool = pool::current().unwrap();
    let half = pool.submit(sums, (from, middle));
    let other = pool.apply(sums, (middle, to)).unwrap();
    half.join().unwrap() + other
}

fn tasks_that_submit_tasks() {
    assert!(pool::current().is_none());
    for workers in [1, 2, 4] {
        let pool = Pool::builder().workers(workers).build().unwrap();
        assert_eq!(pool.apply(sums, (0, 1_000)).unwrap(), 499_500);
        let all: Vec<_> = (0..8).map(|_| pool.submit(sums, (0, 300))).collect();
        assert!(all.iter().all(|task| task.join() == Ok(44_850)));
        let stats = pool.stats();
        assert_eq!((stats.unfinished, stats.failed, stats.lost), (0, 0, 0));
    }
}

fn tasks_that_submit_many_tasks() {
    fn echo(text: String) -> String {
        text
    }
    fn many(count: usize) -> usize {
        let pool = pool::current().unwrap();
        let tasks: TaskSet<u64> = (0..count as u64).map(|x| pool.submit(double, x)).collect();
        let sum: u64 = tasks.into_iter().map(|task| task.join().unwrap()).sum();
        assert_eq!(sum, (count * (count - 1)) as u64);
        // Of all sizes, by value and by file, in order.
        let sizes = [0, 1, 10_000, 12_281, 12_288, 12_300, 100_000, 3_000_000];
        let text = |&size: &usize| "x".repeat(size);
        let mut tasks: TaskSet<String> =
            sizes.iter().map(|size| pool.submit(echo, text(size))).collect();
        let echoes: Vec<String> =
            tasks.wait_all().iter().map(|task| task.join().unwrap()).collect();
        assert!(echoes.iter().zip(&sizes).all(|(echo, size)| echo.len() == *size));
        let task = pool.submit(sleeps, 20);
        assert!(matches!(task.join_timeout(ms(0)), Err(TimedOut) | Ok(Ok(20))));
        count
    }
    /// By a thread of the task's own, which runs no task in place of a worker.
    fn by_a_thread((): ()) -> u64 {
        let pool = pool::current().unwrap();
        std::thread::spawn(move || pool.apply(double, 4).unwrap()).join().unwrap()
    }
    assert_eq!(two().apply(by_a_thread, ()).unwrap(), 8);
    for workers in [2, 4] {
        let pool = Pool::builder().workers(workers).build().unwrap();
        let tasks: Vec<_> = (0..3).map(|i| pool.submit(many, 1_000 + i)).collect();
        assert!(tasks.iter().zip(1_000..).all(|(task, count)| task.join() == Ok(count)));
    }
}

fn tasks_that_submit_tasks_to_a_closed_pool() {
    fn later((): ()) -> u64 {
        sleeps(200);
        pool::current().unwrap().submit(double, 4).join().unwrap()
    }
    fn leaves_one((): ()) {
        drop(pool::current().unwrap().submit(sleeps, 200));
    }
    let pool = two();
    let tasks = [pool.submit(later, ()), pool.submit(later, ())];
    let left = pool.submit(leaves_one, ());
    std::thread::sleep(ms(50));
    pool.close();
    assert_eq!(pool.submit(double, 1).join(), Err(TaskError::Closed));
    pool.join();
    assert!(tasks.iter().all(|task| task.join() == Ok(8)));
    left.join().unwrap();
    assert_eq!((pool.stats().done, pool.stats().failed), (6, 0), "the one that was left is done");
}

fn tasks_of_a_task_that_fail() {
    fn tries((): ()) -> String {
        let pool = pool::current().unwrap();
        let once = TaskOptions::new().retries(0).timeout(ms(100));
        // A thread of its own runs no task in place of a worker.
        let elsewhere = move |task: pool::Task<u64>| {
            std::thread::spawn(move || task.join().map_err(|error| error.to_string()))
                .join()
                .unwrap()
        };
        let overdue = elsewhere(pool.submit_with(once, sleeps, 60_000));
        let died = elsewhere(pool.submit_with(once, kills_at, 500));
        let task = pool.submit(sleeps, 60_000);
        sleeps(100);
        let cancelled = task.cancel();
        let result = task.join();
        let panicked = pool.apply(panics_at, 7);
        format!("{overdue:?}, {died:?}, {cancelled}, {result:?}, {}", panicked.unwrap_err())
    }
    let pool = two();
    let text = pool.apply(tries, ()).unwrap();
    assert!(text.contains("exceeded its time limit"), "{text}");
    assert!(text.contains("was killed by SIGKILL"), "{text}");
    assert!(text.contains("true, Err(Cancelled)"), "{text}");
    assert!(text.contains("unlucky 7"), "{text}");
}

fn counts_itself(x: u64) -> u64 {
    *Shared::<Lock<u64>>::inherited("count").unwrap().lock().unwrap() += 1;
    x
}

fn tasks_of_a_task_that_dies() {
    fn submits_and_dies((): ()) {
        let pool = pool::current().unwrap();
        drop((0..100).map(|x| pool.submit(counts_itself, x)).collect::<Vec<_>>());
        kill(std::process::id());
    }
    let count = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let pool = Pool::builder().workers(1).retries(0).share("count", &count).build().unwrap();
    let died = TaskError::WorkerDied { signal: Some(libc::SIGKILL), code: None };
    assert_eq!(pool.apply(submits_and_dies, ()), Err(died));
    eventually("nothing is left", || pool.stats().unfinished == 0);
    assert_eq!(*count.lock().unwrap(), 0, "the only worker had begun none of them");
    assert_eq!(pool.apply(double, 1).unwrap(), 2);
}

fn random_kills_of_tasks_that_submit_tasks() {
    let pool = Pool::builder().workers(3).retries(1_000).build().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 1_u64;
            while !done.load(SeqCst) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                std::thread::sleep(Duration::from_micros(state >> 50));
                let pids = pool.pids();
                let at = usize::try_from(state % 3).unwrap();
                pids.get(at).copied().into_iter().for_each(kill);
            }
        });
        for _ in 0..20 {
            let tasks: Vec<_> = (0..4).map(|_| pool.submit(sums, (0, 60))).collect();
            for task in tasks {
                match task.join() {
                    Ok(sum) => assert_eq!(sum, 1_770),
                    // A task of its own was cancelled or had its connection cut.
                    Err(TaskError::Panicked { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        done.store(true, SeqCst);
    });
    assert!(pool.stats().lost > 0);
    eventually("nothing is left", || pool.stats().unfinished == 0);
    assert_eq!(pool.apply(sums, (0, 100)).unwrap(), 4_950);
}

fn a_limit_of_memory() {
    fn allocates(megabytes: usize) -> usize {
        std::hint::black_box(vec![1_u8; megabytes << 20]).len() >> 20
    }
    let pool = Pool::builder().workers(1).retries(0).worker_memory_limit(64 << 20).build().unwrap();
    assert_eq!(pool.apply(allocates, 16).unwrap(), 16);
    let aborted = TaskError::WorkerDied { signal: Some(libc::SIGABRT), code: None };
    assert_eq!(pool.apply(allocates, 256), Err(aborted));
    assert_eq!(pool.apply(allocates, 16).unwrap(), 16);
    assert_eq!(two().apply(allocates, 256).unwrap(), 256);
}

fn children_of_a_task_are_killed() {
    fn starts_a_child((): ()) -> u32 {
        let shell = ["-c", "sleep 600 > /dev/null 2>&1 & echo $!"];
        let output = Command::new("sh").args(shell).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
    fn starts_a_child_and_waits(file: String) {
        std::fs::write(file, starts_a_child(()).to_string()).unwrap();
        sleeps(60_000);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    for kills in [true, false] {
        let pool = Pool::builder().workers(1).kill_children(kills).build().unwrap();
        let child = pool.apply(starts_a_child, ()).unwrap();
        assert!(runs(child));
        let task = pool.submit(starts_a_child_and_waits, path.to_str().unwrap().to_owned());
        let mut other = None;
        eventually("the other child has started", || {
            other = std::fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
            other.is_some()
        });
        let other: u32 = other.unwrap();
        assert!(task.cancel());
        if kills {
            eventually("both children are killed", || !runs(child) && !runs(other));
        } else {
            eventually("the worker is replaced", || pool.stats().replaced == 1);
            std::thread::sleep(ms(50));
            assert!(runs(child) && runs(other));
            [child, other].into_iter().for_each(kill);
        }
        std::fs::remove_file(&path).unwrap();
    }
}

fn a_backtrace_shows_the_users_frames() {
    let pool = two();
    let Err(TaskError::Panicked { backtrace, .. }) = pool.apply(panics_at, 107) else {
        panic!("no panic");
    };
    let first = backtrace.lines().next().unwrap_or_default();
    assert!(first.contains("panics_at"), "{backtrace}");
    assert!(!backtrace.contains("outlast::process"), "{backtrace}");
    // With a hook of the user's own, which the initialiser sets.
    fn sets_a_hook((): ()) {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let pool = Pool::builder().workers(1).initializer(sets_a_hook, ()).build().unwrap();
    let Err(TaskError::Panicked { location, .. }) = pool.apply(panics_at, 107) else {
        panic!("no panic");
    };
    assert!(location.contains("pool.rs:"), "{location}");
}

fn an_initializer_that_panics() {
    fn fails((): ()) {
        panic!("cannot begin");
    }
    let pool = Pool::builder().workers(2).initializer(fails, ()).build().unwrap();
    let Err(TaskError::Broken(text)) = pool.apply(double, 1) else { panic!("not broken") };
    assert!(text.contains("cannot begin"), "{text}");
    assert!(is_error(&pool.submit(double, 1).join(), |e| matches!(e, TaskError::Broken(_))));
}

fn reversed(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.reverse();
    numbers
}

fn large(length: u64) -> Vec<u64> {
    (0..length).map(|i| u64::MAX - i).collect() // ten bytes each
}

fn large_values() {
    let pool = two();
    let sixteen = 16 * 1024 * 1024 / 10;
    let expected: Vec<u64> = large(sixteen).into_iter().rev().collect();
    assert!(pool.apply(reversed, large(sixteen)).unwrap() == expected);
    let tasks: Vec<_> = (0..8).map(|_| pool.submit(reversed, large(sixteen / 16))).collect();
    // As above: the results are not received for a while.
    tasks.iter().for_each(|task| task.wait());
    for task in tasks {
        assert_eq!(task.join().unwrap().len() as u64, sixteen / 16);
    }
    fn gives(length: u64) -> Vec<u64> {
        large(length)
    }
    assert!(pool.apply(gives, sixteen).unwrap() == large(sixteen));
    // A killed worker's arguments go to another.
    let count = Shared::anonymous(Lock::new(0_u64)).unwrap();
    fn dies_once(numbers: Vec<u64>) -> usize {
        dies_until(1);
        numbers.len()
    }
    let pool = Pool::builder().workers(2).share("count", &count).build().unwrap();
    assert_eq!(pool.apply(dies_once, large(100_000)).unwrap(), 100_000);
}

fn values_of_all_sizes() {
    let pool = two();
    let lengths = || (0..400_u64).map(|i| i * i % 3_001);
    let input = lengths().map(large);
    for (result, length) in pool.map(reversed, input).zip(lengths()) {
        assert!(result.unwrap().into_iter().eq(large(length).into_iter().rev()), "{length}");
    }
    let texts = (11_000..13_000).step_by(7).map(|length| "x".repeat(length));
    fn same(text: String) -> String {
        text
    }
    for (result, length) in pool.map(same, texts).zip((11_000..13_000).step_by(7)) {
        assert_eq!(result.unwrap().len(), length);
    }
}

#[derive(Debug)]
struct Stubborn(u64);

impl serde::Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(2) {
            to.serialize_u64(self.0)
        } else {
            Err(serde::ser::Error::custom("odd"))
        }
    }
}

impl<'de> serde::Deserialize<'de> for Stubborn {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number: u64 = serde::Deserialize::deserialize(from)?;
        if number.is_multiple_of(4) {
            Ok(Stubborn(number))
        } else {
            Err(serde::de::Error::custom("by 4"))
        }
    }
}

/// python/cpython#75880, #74734, #116685: an error, and no hang.
fn what_cannot_be_encoded() {
    fn takes(stubborn: Stubborn) -> u64 {
        stubborn.0
    }
    fn gives(number: u64) -> Stubborn {
        Stubborn(number)
    }
    let pool = two();
    assert_eq!(pool.apply(takes, Stubborn(4)).unwrap(), 4);
    let is_argument: fn(&TaskError) -> bool = |error| matches!(error, TaskError::Argument(_));
    assert!(is_error(&pool.apply(takes, Stubborn(1)), is_argument)); // here
    assert!(is_error(&pool.apply(takes, Stubborn(2)), is_argument)); // there
    assert!(is_error(&pool.apply(gives, 1), |error| matches!(error, TaskError::Encode(_))));
    assert!(is_error(&pool.apply(gives, 2), |error| matches!(error, TaskError::Decode(_))));
    let results: Vec<_> = pool.map(takes, (0..1_000).map(Stubborn)).collect();
    assert_eq!(results.len(), 1_000);
    for (result, x) in results.into_iter().zip(0..) {
        assert_eq!(result.ok(), (x % 4 == 0).then_some(x));
    }
    assert_eq!(pool.stats().unfinished, 0);
}

struct Flag(AtomicBool, std::thread::Thread);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
        self.1.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true), std::thread::current()));
    let waker = Arc::clone(&flag).into();
    loop {
        if flag.0.swap(false, SeqCst)
            && let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return value;
        }
        std::thread::park();
    }
}

fn a_future() {
    let pool = two();
    let value = block_on(async {
        let first = pool.submit(sleeps, 30).await.unwrap();
        pool.submit(double, first).await.unwrap()
    });
    assert_eq!(value, 60);
    let error = block_on(pool.submit(panics_at, 7));
    assert!(is_error(&error, |error| matches!(error, TaskError::Panicked { .. })));
}

fn many_futures() {
    let pool = two();
    for _ in 0..5 {
        let sum = block_on(async {
            let tasks: Vec<_> = (0..1_000).map(|i| pool.submit(double, i)).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            sum
        });
        assert_eq!(sum, 999_000);
    }
}

fn as_completed() {
    let pool = two();
    let tasks: Vec<_> = [300, 1, 2].into_iter().map(|time| pool.submit(sleeps, time)).collect();
    let values: Vec<u64> = pool::as_completed(tasks).map(|task| task.join().unwrap()).collect();
    assert_eq!(values.len(), 3);
    assert_eq!(values[2], 300);
    let tasks: Vec<_> = (0..5_000).map(|i| pool.submit(double, i)).collect();
    let sum: u64 = pool::as_completed(tasks).map(|task| task.join().unwrap()).sum();
    assert_eq!(sum, 4_999 * 5_000);
}

fn wait_for_first_and_all() {
    let pool = two();
    let tasks = [pool.submit(sleeps, 300), pool.submit(sleeps, 10)];
    assert_eq!(pool::wait(&tasks, Until::First, Some(ms(1))), []);
    assert_eq!(pool::wait(&tasks, Until::First, None), [1]);
    assert_eq!(pool::wait(&tasks, Until::All, Some(ms(1))), [1]);
    assert_eq!(pool::wait(&tasks, Until::All, None), [0, 1]);
    assert_eq!(pool::wait::<u64>(&[], Until::All, None), []);
    assert_eq!(pool::wait::<u64>(&[], Until::First, None), []);
}

fn from_many_threads() {
    let pool = two();
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..300 {
                    assert_eq!(
                        pool.apply(double, thread * 1_000 + i).unwrap(),
                        2 * (thread * 1_000 + i)
                    );
                }
                let sum: u64 = pool.map(double, 0..5_000).map(Result::unwrap).sum();
                assert_eq!(sum, 4_999 * 5_000);
                for i in 0..100 {
                    let task = pool.submit(double, i);
                    if i % 2 == 0 {
                        assert_eq!(task.join().unwrap(), 2 * i);
                    }
                }
            });
        }
    });
    eventually("all is done", || pool.stats().unfinished == 0);
}

fn one_task_joined_by_many() {
    let pool = two();
    let task = pool.submit(sleeps, 100);
    let taken = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5).map(|_| scope.spawn(|| task.join())).collect();
        threads
            .into_iter()
            .filter(|_| true)
            .map(|thread| thread.join().unwrap())
            .filter(Result::is_ok)
            .count()
    });
    assert_eq!(taken, 1);
}

fn an_idle_worker_takes_what_waits_elsewhere() {
    let pool = two();
    pool.map(double, 0..1_000).for_each(drop); // it is known to be short
    fn short_or_long(x: u64) -> u64 {
        if x == 0 { sleeps(3_000) } else { x }
    }
    pool.map(short_or_long, 1..5_000).for_each(drop);
    let start = Instant::now();
    let long = pool.submit(short_or_long, 0);
    let tasks: Vec<_> = (1..200).map(|x| pool.submit(short_or_long, x)).collect();
    for (task, x) in tasks.iter().zip(1..) {
        assert_eq!(task.join().unwrap(), x);
    }
    assert!(start.elapsed() < ms(2_900), "they waited for the long one");
    assert_eq!(long.join().unwrap(), 3_000);
}

fn long_and_short_tasks() {
    let pool = two();
    let times = |i: u64| if i.is_multiple_of(50) { 20 } else { 0 };
    let results: Vec<u64> = pool.map(sleeps, (0..500).map(times)).map(Result::unwrap).collect();
    assert!(results.into_iter().eq((0..500).map(times)));
}

fn a_task_uses_a_pool() {
    fn outer(x: u64) -> u64 {
        let pool = Pool::builder().workers(2).build().unwrap();
        pool.map(double, 0..x).map(Result::unwrap).sum()
    }
    let pool = two();
    assert_eq!(pool.apply(outer, 100).unwrap(), 9_900);
}

fn shared_memory() {
    fn adds(times: u64) {
        let total = Shared::<Lock<u64>>::inherited("total").unwrap();
        for _ in 0..times {
            *total.lock().unwrap() += 1;
        }
    }
    let total = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let pool = Pool::builder().workers(2).share("total", &total).build().unwrap();
    pool.map(adds, vec![100; 20]).for_each(|result| result.unwrap());
    assert_eq!(*total.lock().unwrap(), 2_000);
    // An event is set from a task.
    fn sets((): ()) {
        Shared::<Event>::inherited("event").unwrap().set();
    }
    let event = Shared::anonymous(Event::manual(false)).unwrap();
    let pool = Pool::builder().workers(1).share("event", &event).build().unwrap();
    let task = pool.submit(sets, ());
    assert!(event.wait_timeout(runner::PATIENCE).unwrap());
    task.join().unwrap();
}

fn what_it_is_at_can_be_seen() {
    fn waits((): ()) {
        Shared::<Event>::inherited("go").unwrap().wait().unwrap();
    }
    let go = Shared::anonymous(Event::manual(false)).unwrap();
    let pool = Pool::builder().workers(2).share("go", &go).build().unwrap();
    assert_eq!((pool.stats().workers, pool.stats().running), (2, 0));
    let tasks: Vec<_> = (0..5).map(|_| pool.submit(waits, ())).collect();
    eventually("both are at work", || pool.stats().running == 2);
    let stats = pool.stats();
    assert_eq!((stats.done, stats.unfinished, stats.workers), (0, 5, 2));
    go.set();
    tasks.iter().for_each(|task| task.join().unwrap());
    let stats = pool.stats();
    assert_eq!((stats.done, stats.unfinished, stats.running, stats.failed), (5, 0, 0, 0));
}

fn what_a_killed_worker_logged() {
    fn logs(number: u64) -> u64 {
        let journal = Shared::<Journal>::inherited("journal").unwrap();
        journal.write(Level::Info, "task", &format!("begins {number}")).unwrap();
        if number == 7 {
            kill(std::process::id());
        }
        journal.write(Level::Info, "task", &format!("ends {number}")).unwrap();
        number
    }
    let journal = Shared::<Journal>::with_capacity(1_024).unwrap();
    let pool = Pool::builder().workers(2).retries(1).share("journal", &journal).build().unwrap();
    let results: Vec<_> = pool.map(logs, 0..20).collect();
    for (result, number) in results.iter().zip(0..) {
        match result {
            Ok(value) => assert_eq!(*value, number),
            Err(error) => {
                assert!(number == 7 && matches!(error, TaskError::WorkerDied { .. }), "{error}");
            }
        }
    }
    assert!(results[7].is_err());
    let mut records = journal.records();
    let records: Vec<_> = std::iter::from_fn(|| records.try_next()).collect();
    let count = |text: String| records.iter().filter(|r| r.message() == text).count();
    for number in 0..20 {
        let dies = number == 7;
        assert_eq!(count(format!("begins {number}")), if dies { 2 } else { 1 }, "{number}");
        assert_eq!(count(format!("ends {number}")), usize::from(!dies), "{number}");
    }
    assert!(records.iter().all(|r| r.pid() != std::process::id() && r.target() == "task"));
    assert_eq!(journal.losses(), outlast::log::Losses::default());
}

fn many_workers() {
    for workers in [5, 17, usize::try_from(number("WORKERS", 70)).unwrap()] {
        let pool = Pool::builder().workers(workers).retries(0).build().unwrap();
        let results = pool.map(double, 0..10_000).map(Result::unwrap);
        assert!(results.eq((0..10_000).map(|x| 2 * x)));
        let pids: HashSet<u32> = pool
            .map(
                |()| {
                    std::thread::sleep(ms(3));
                    std::process::id()
                },
                vec![(); 8 * workers],
            )
            .map(Result::unwrap)
            .collect();
        assert!(pids.len() > workers / 2 && pids.len() <= workers, "{}", pids.len());
        pids.iter().copied().for_each(kill);
        assert_eq!(pool.apply(double, 2).unwrap(), 4);
        eventually("all are replaced", || pool.stats().lost == pids.len() as u64);
    }
}

fn more_threads_than_workers() {
    let pool = two();
    std::thread::scope(|scope| {
        for thread in 0..100 {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..20 {
                    assert_eq!(pool.apply(double, thread + i).unwrap(), 2 * (thread + i));
                }
            });
        }
    });
}

/// What all processes and threads of a pool have used, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

fn idle_it_uses_no_cpu() {
    let pool = two();
    pool.map(double, 0..1_000).for_each(drop);
    let mut pids = pool.pids();
    pids.push(std::process::id());
    std::thread::sleep(ms(50));
    let before: u64 = pids.iter().map(|&pid| ticks(pid)).sum();
    std::thread::sleep(ms(1_000));
    let after: u64 = pids.iter().map(|&pid| ticks(pid)).sum();
    assert!(after - before <= 3, "{} ticks of 10 ms", after - before);
    let task = pool.submit(sleeps, 1_000);
    std::thread::sleep(ms(50));
    let before: u64 = pids.iter().map(|&pid| ticks(pid)).sum();
    task.wait();
    let after: u64 = pids.iter().map(|&pid| ticks(pid)).sum();
    assert!(after - before <= 3, "{} ticks of 10 ms, waiting", after - before);
}

fn the_fork_server_is_killed() {
    let pool = two();
    let fork_server = pool.apply(parent_of, ()).unwrap();
    let task = pool.submit(sleeps, 200);
    std::thread::sleep(ms(50));
    kill(fork_server);
    assert_eq!(task.join().unwrap(), 200);
    assert_ne!(pool.apply(parent_of, ()).unwrap(), fork_server);
}

fn parent_of((): ()) -> u32 {
    std::os::unix::process::parent_id()
}

/// The kernel refuses a `poll` of more descriptors than the limit allows. The supervisor does not
/// take the error for the end of workers.
fn a_refused_poll_is_no_death() {
    let pool = Pool::builder().workers(4).task_timeout(runner::PATIENCE).build().unwrap();
    let mut pids = pool.pids();
    assert_eq!(pids.len(), 4);
    let before = runner::limit_descriptors(3);
    std::thread::sleep(ms(200));
    runner::limit_descriptors(before);
    let dead = pids.remove(3);
    kill(dead);
    eventually("it is replaced", || pool.pids().len() == 4 && !pool.pids().contains(&dead));
    let now = pool.pids();
    assert!(pids.iter().all(|pid| now.contains(pid)), "{pids:?}, then {now:?}");
    assert_eq!(pool.apply(double, 4).unwrap(), 8);
}

fn all_workers_are_killed_while_idle() {
    let pool = Pool::builder().workers(2).retries(0).build().unwrap();
    for _ in 0..20 {
        let pids = pool.pids();
        pids.iter().copied().for_each(kill);
        // Nothing had been begun.
        assert_eq!(pool.apply(double, 3).unwrap(), 6);
        eventually("they are gone", || !pids.iter().any(|&pid| runs(pid)));
    }
}

#[expect(unsafe_code, reason = "a signal's action")]
fn play_owner() {
    // Programs that a shell starts in the background ignore Ctrl-C, and so would all that they
    // start. SAFETY: the usual action is no function.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let pool = two();
    let fork_server = pool.apply(parent_of, ()).unwrap();
    let tasks: Vec<_> = (0..10).map(|_| pool.submit(sleeps, 60_000)).collect();
    let pids: Vec<String> = pool.pids().iter().map(ToString::to_string).collect();
    let mut out = std::io::stdout();
    writeln!(out, "{fork_server} {}", pids.join(" ")).unwrap();
    if std::env::var_os("EXITS").is_some() {
        std::process::exit(0);
    }
    tasks.iter().for_each(|task| task.wait());
}

/// blacklanternsecurity/bbot#3203; BrianGallew/cassandra_range_repair#19, gem/oq-engine#3955
/// (Ctrl-C).
fn the_owner_is_killed() {
    use std::os::unix::process::CommandExt as _;
    for end in ["KILL", "INT", "exit"] {
        let mut command = part("owner");
        if end == "exit" {
            command.env("EXITS", "1");
        }
        let errors = Stdio::piped();
        let mut owner =
            command.stdout(Stdio::piped()).stderr(errors).process_group(0).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(owner.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 3, "{line}");
        if end != "exit" {
            // To the whole group, as the terminal does.
            let kill = format!("kill -s {end} -- -{}", owner.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        // Its workers have nothing to say about it.
        assert!(owner.wait_with_output().unwrap().stderr.is_empty());
        eventually("all are gone", || !pids.iter().any(|&pid| runs(pid)));
    }
}

/// web-platform-tests/wpt#13447, Parsl/parsl#2314: what the workers were at stays usable.
fn what_workers_share_after_terminate() {
    fn uses((): ()) {
        let queue = Shared::<FixedQueue<u64, 8>>::inherited("queue").unwrap();
        let lock = Shared::<Lock<u64>>::inherited("lock").unwrap();
        loop {
            queue.send(1).unwrap();
            if let Ok(mut guard) = lock.lock() {
                *guard += queue.recv().unwrap();
            } else {
                return;
            }
        }
    }
    let queue = Shared::anonymous(FixedQueue::<u64, 8>::new()).unwrap();
    let lock = Shared::anonymous(Lock::new(0_u64)).unwrap();
    for _ in 0..20 {
        let pool = Pool::builder().workers(3).share("queue", &queue).share("lock", &lock);
        let pool = pool.build().unwrap();
        let tasks: Vec<_> = (0..3).map(|_| pool.submit(uses, ())).collect();
        std::thread::sleep(ms(3));
        pool.terminate();
        drop(tasks);
        if let Err(LockError::OwnerDied(mut guard)) = lock.lock() {
            outlast::LockGuard::mark_consistent(&mut guard);
        }
        while queue.try_recv().is_ok() {}
        queue.send(5).unwrap();
        // What a dead one was just taking may come back a little later.
        while queue.recv_timeout(runner::PATIENCE).unwrap() != 5 {}
    }
}

fn play_without_init() {
    let pool = Pool::builder().build();
    assert!(matches!(pool, Err(PoolError::Spawn(SpawnError::NotInitialised))));
}

fn without_init() {
    let status = part("without_init").env("WITHOUT_INIT", "1").status().unwrap();
    assert!(status.success());
    let no_workers = Pool::builder().workers(0).build();
    assert!(matches!(no_workers, Err(PoolError::InvalidWorkers { workers: 0, .. })));
}

/// In the child of a fork each verb comes back, while a thread of the parent's may hold any of the
/// pool's locks for ever.
#[expect(unsafe_code, reason = "fork")]
fn after_a_fork() {
    const FORKS: usize = 100;
    let pool = two();
    let task = pool.submit(sleeps, 100);
    let mut begun = pool.map(double, 0..FORKS as u64 + 1);
    assert_eq!(begun.next().unwrap().unwrap(), 0);
    let over = AtomicBool::new(false);
    let mut statuses = Vec::new();
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !over.load(SeqCst) {
                assert_eq!(pool.apply(double, 1).unwrap(), 2);
                assert_eq!(pool.stats().lost, 0);
            }
        });
        for _ in 0..FORKS {
            // SAFETY: what the copy calls is to need no lock that another thread of this program
            // may hold.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends a copy that hangs.
                unsafe { libc::alarm(30) };
                let wrong = wrong_in_a_copy(&pool, &task, &mut begun);
                // SAFETY: ends the copy.
                unsafe { libc::_exit(wrong) };
            }
            let mut status = 1;
            // SAFETY: writes to the live variable.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            statuses.push(status);
        }
        over.store(true, SeqCst);
        busy.join().unwrap();
    });
    assert_eq!(statuses, [0; FORKS], "each that signal, or 256 times the number of the verb");
    assert!(begun.map(Result::unwrap).eq((1..=FORKS as u64).map(|x| 2 * x)));
    assert_eq!(task.join().unwrap(), 100);
    assert_eq!(pool.stats().lost, 0);
}

/// Which verb does not do in the child of a fork what it is to do; 0 if each does.
fn wrong_in_a_copy(
    pool: &Pool,
    task: &pool::Task<u64>,
    begun: &mut pool::Map<'_, std::ops::Range<u64>, u64, u64>,
) -> i32 {
    let forked: fn(&TaskError) -> bool = |error| matches!(error, TaskError::Forked);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let given = pool.submit(double, 1);
    let rights = [
        is_error(&pool.apply(double, 1), forked),
        is_error(&given.join(), forked),
        is_error(&task.join(), forked),
        task.is_done() && task.wait_timeout(ms(1)) && !task.cancel(),
        matches!(
            pin!(pool.submit(double, 1)).poll(&mut context),
            Poll::Ready(Err(TaskError::Forked))
        ),
        pool::as_completed([given]).count() == 1,
        pool::wait(std::slice::from_ref(task), Until::All, None) == [0],
        pool.map(double, 0..3).filter(|result| is_error(result, forked)).count() == 3,
        pool.map_unordered(double, 0..3).filter(|result| is_error(result, forked)).count() == 3,
        begun.by_ref().count() > 0 && begun.next().is_none(),
        pool.stats() == pool::Stats::default() && pool.pids().is_empty(),
        format!("{pool:?} {task:?}").contains("unfinished: 0"),
        pool.join_timeout(ms(1)),
    ];
    pool.close();
    pool.join();
    pool.terminate(); // which does nothing to the workers
    let wrong = rights.iter().position(|right| !right);
    wrong.map_or(0, |at| i32::try_from(at).unwrap() + 1)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `KILLS` workers are killed at random during `TASKS` tiny tasks and more.
fn random_kills() {
    let (tasks, kills) = (number("TASKS", 20_000), number("KILLS", 40));
    let pool = Pool::builder().workers(3).retries(1_000).build().unwrap();
    let over = AtomicBool::new(false);
    let (reported, killed, rounds) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut killed, mut random) = (0, u64::from(std::process::id()) << 32 | 1);
            while killed < kills {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                std::thread::sleep(Duration::from_micros(random % 4_000));
                let pids = pool.pids();
                if !pids.is_empty() {
                    kill(pids[usize::try_from(random >> 33).unwrap() % pids.len()]);
                    killed += 1;
                }
            }
            over.store(true, SeqCst);
            killed
        });
        let (mut reported, mut rounds) = (0, 0);
        while rounds == 0 || !over.load(SeqCst) {
            let unordered = rounds % 2 == 1;
            let mut seen = vec![0_u8; usize::try_from(tasks).unwrap()];
            let mut note = |value: u64| {
                seen[usize::try_from(value / 2).unwrap()] += 1;
                reported += 1;
            };
            if unordered {
                pool.map_unordered(double, 0..tasks).for_each(|result| note(result.unwrap()));
            } else {
                pool.map(double, 0..tasks).for_each(|result| note(result.unwrap()));
            }
            assert!(seen.iter().all(|&times| times == 1), "lost or twice");
            let singles: Vec<_> = (0..200).map(|x| pool.submit(double, x)).collect();
            for (task, x) in singles.iter().zip(0..) {
                assert_eq!(task.join().unwrap(), 2 * x);
            }
            rounds += 1;
        }
        (reported, killer.join().unwrap(), rounds)
    });
    assert_eq!(reported, rounds * tasks);
    assert_eq!(killed, kills);
    assert_eq!(pool.stats().unfinished, 0);
    if std::env::var_os("KILLS").is_some() {
        eprintln!("{reported} tasks, {:?}", pool.stats());
    }
    let fork_server = pool.apply(parent_of, ()).unwrap();
    pool.join();
    assert!(children(fork_server).is_empty());
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// All workers die together with the fork server. The next fork server is a new process of the
/// program.
fn random_kills_of_fork_servers() {
    let pool = Pool::builder().workers(3).retries(1_000).build().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..number("HELPERS", 10) {
                std::thread::sleep(ms(15));
                let fork_server = pool.pids().first().and_then(|&pid| parent(pid));
                // A worker whose fork server is gone has another parent for a moment.
                if let Some(fork_server) =
                    fork_server.filter(|&pid| parent(pid) == Some(std::process::id()))
                {
                    kill(fork_server);
                }
            }
            over.store(true, SeqCst);
        });
        while !over.load(SeqCst) {
            let results = pool.map(double, 0..5_000).map(Result::unwrap);
            assert!(results.eq((0..5_000).map(|x| 2 * x)));
        }
    });
    assert_eq!(pool.stats().unfinished, 0);
}

/// Kills, timeouts, panics, replacements, cancellations and large values together: each task has
/// one result, and it is the right one.
fn all_at_once() {
    fn mixed((x, text): (u64, String)) -> (u64, usize) {
        match x % 97 {
            3 => sleeps(10_000),
            5 => panic!("unlucky {x}"),
            7 => kill_me(),
            _ => 0,
        };
        (x, text.len())
    }
    fn kill_me() -> u64 {
        kill(std::process::id());
        0
    }
    let pool =
        Pool::builder().workers(3).retries(0).max_tasks_per_child(50).task_timeout(ms(1_000));
    let pool = pool.build().unwrap();
    let size =
        |x: u64| if x.is_multiple_of(31) { 20_000 } else { usize::try_from(x % 100).unwrap() };
    let input = (0..600_u64).map(|x| (x, "x".repeat(size(x))));
    let cancelled: Vec<_> = (0..20).map(|_| pool.submit(sleeps, 10_000)).collect();
    assert!(cancelled.iter().all(|task| task.cancel()));
    let results: Vec<_> = pool.map(mixed, input).collect();
    assert_eq!(results.len(), 600);
    for (result, x) in results.iter().zip(0..) {
        match (result, x % 97) {
            (Err(TaskError::TimedOut), 3)
            | (Err(TaskError::Panicked { .. }), 5)
            | (Err(TaskError::WorkerDied { signal: Some(9), .. }), 7) => {}
            (Ok(value), rest) if ![3, 5, 7].contains(&rest) => assert_eq!(*value, (x, size(x))),
            (other, _) => panic!("{x}: {other:?}"),
        }
    }
    for task in cancelled {
        assert!(is_error(&task.join(), |error| matches!(error, TaskError::Cancelled)));
    }
    assert_eq!(pool.stats().unfinished, 0);
}

fn counts(spins: u64) {
    use std::cell::OnceCell;
    thread_local! { static COUNT: OnceCell<Shared<AtomicU64>> = const { OnceCell::new() } }
    COUNT.with(|count| {
        let count = count.get_or_init(|| Shared::inherited("count").unwrap());
        (0..spins).for_each(|_| std::hint::spin_loop());
        count.fetch_add(1, SeqCst);
    });
}

/// What waits at one worker goes to another just as the first one claims it: one of the two gets
/// it.
fn each_task_runs_once() {
    let count = Shared::anonymous(AtomicU64::new(0)).unwrap();
    let pool = Pool::builder().workers(2).share("count", &count).build().unwrap();
    let rounds = number("ROUNDS", 20_000);
    for round in 0..rounds {
        let tasks: Vec<_> =
            (0..3).map(|i| pool.submit(counts, (round * 7 + i * 13) % 60)).collect();
        tasks.iter().for_each(|task| task.join().unwrap());
    }
    assert_eq!(count.load(SeqCst), 3 * rounds);
    pool.map(counts, vec![0; 50_000]).for_each(|result| result.unwrap());
    assert_eq!(count.load(SeqCst), 3 * rounds + 50_000);
    assert_eq!(pool.stats().lost, 0);
}

/// Results come faster than they are read.
fn full_rings() {
    fn gives(length: u64) -> String {
        "x".repeat(usize::try_from(length).unwrap())
    }
    let pool = two();
    for length in [0, 3, 4, 100, 1_000, 11_000] {
        let mut results = pool.map(gives, std::iter::repeat_n(length, 5_000));
        for i in 0..5_000 {
            if i % 1_000 == 0 {
                std::thread::sleep(ms(5));
            }
            assert_eq!(results.next().unwrap().unwrap().len() as u64, length);
        }
        assert!(results.next().is_none());
    }
    assert_eq!(pool.stats().lost, 0);
}

/// More results than the rings hold, while no thread waits for one.
fn results_that_nobody_wants() {
    fn gives(last: bool) -> String {
        if last {
            Shared::<Event>::inherited("last").unwrap().set();
        }
        "x".repeat(11_000)
    }
    fn gives_more(last: bool) -> String {
        gives(last) + &"x".repeat(11_000)
    }
    for (function, count) in [(gives as fn(bool) -> String, 100), (gives_more, 500)] {
        let last = Shared::anonymous(Event::manual(false)).unwrap();
        let pool = Pool::builder().workers(1).share("last", &last).build().unwrap();
        let tasks: Vec<_> = (1..=count).map(|i| pool.submit(function, i == count)).collect();
        assert!(last.wait_timeout(runner::PATIENCE).unwrap());
        assert!(tasks.into_iter().all(|task| task.join().unwrap().len() >= 11_000));
        drop(pool.submit(function, false));
        eventually("it is done all the same", || pool.stats().unfinished == 0);
    }
}

fn letters(length: u64) -> String {
    "x".repeat(usize::try_from(length).unwrap())
}

fn length(text: String) -> u64 {
    text.len() as u64
}

/// A large result is copied when it arrives, whether or not it is taken.
fn large_results_hold_no_descriptors() {
    let pool = two();
    pool.apply(letters, 20_000).unwrap();
    let before = runner::descriptors(std::process::id());
    let tasks: Vec<_> = (0..100).map(|_| pool.submit(letters, 20_000)).collect();
    pool::wait(&tasks, Until::All, None);
    assert_eq!(runner::descriptors(std::process::id()), before);
    assert!(tasks.iter().all(|task| task.join().unwrap().len() == 20_000));
}

/// While the owner has no descriptor, small tasks go on; large ones wait for a while, and then
/// fail.
fn large_values_wait_for_descriptors() {
    let pool = two();
    let is_transfer: fn(&TaskError) -> bool = |error| matches!(error, TaskError::Transfer(_));
    let give = || (pool.submit(letters, 20_000), pool.submit(length, letters(20_000)));
    for lasts in [false, true] {
        let all = runner::AllDescriptors::take();
        let (result, argument) = give();
        assert_eq!(pool.apply(double, 4).unwrap(), 8);
        assert!(result.join_timeout(ms(50)).is_err() && argument.join_timeout(ms(50)).is_err());
        if lasts {
            result.wait();
            argument.wait();
        }
        drop(all);
        if lasts {
            assert!(is_error(&result.join(), is_transfer));
            assert!(is_error(&argument.join(), is_transfer));
        } else {
            assert_eq!(result.join().unwrap().len(), 20_000);
            assert_eq!(argument.join().unwrap(), 20_000);
        }
        // Nothing of another task's is left where the next result comes.
        let (result, argument) = give();
        assert_eq!(result.join().unwrap().len(), 20_000);
        assert_eq!(argument.join().unwrap(), 20_000);
        assert_eq!(pool.apply(letters, 30_000).unwrap().len(), 30_000);
    }
    let stats = pool.stats();
    assert_eq!((stats.lost, stats.failed, stats.unfinished), (0, 2, 0));
    pool.join();
}

/// A large value that has waited for too long does not take those with it that came later.
fn each_large_value_waits_its_own_time() {
    fn check<T: serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
        workers: usize,
        submit: impl Fn(&Pool) -> pool::Task<T>,
    ) {
        let pool = Pool::builder().workers(workers).build().unwrap();
        let value = submit(&pool).join().unwrap();
        let all = runner::AllDescriptors::take();
        let first = submit(&pool);
        assert!(first.join_timeout(ms(900)).is_err());
        let second = submit(&pool);
        first.wait();
        drop(all);
        assert!(is_error(&first.join(), |error| matches!(error, TaskError::Transfer(_))));
        assert_eq!(second.join().unwrap(), value);
    }
    // The second result comes from another worker, or from the same one.
    check(2, |pool| pool.submit(letters, 20_000));
    check(1, |pool| pool.submit(letters, 20_000));
    check(2, |pool| pool.submit(length, letters(20_000)));
}

/// A worker that has no descriptor for a large argument waits until there is one.
fn a_worker_waits_for_a_descriptor() {
    /// Until long after the task has come.
    fn takes_all(milliseconds: u64) {
        let before = runner::limit_descriptors(3);
        std::thread::spawn(move || {
            std::thread::sleep(ms(milliseconds));
            runner::limit_descriptors(before);
        });
    }
    let pool = Pool::builder().workers(1).build().unwrap();
    pool.apply(takes_all, 300).unwrap();
    assert_eq!(pool.apply(length, letters(20_000)).unwrap(), 20_000);
}

/// A worker without a descriptor for a large value reports that, and goes on.
fn workers_without_descriptors() {
    fn limit(to: u64) {
        runner::limit_descriptors(to);
    }
    let pool = Pool::builder().workers(1).retries(0).initializer(limit, 3).build().unwrap();
    let is_transfer: fn(&TaskError) -> bool = |error| matches!(error, TaskError::Transfer(_));
    assert!(is_error(&pool.apply(length, letters(20_000)), is_transfer));
    assert!(is_error(&pool.apply(letters, 20_000), is_transfer));
    assert_eq!(pool.apply(double, 4).unwrap(), 8);
    pool.apply(limit, 1_000).unwrap();
    assert_eq!(pool.apply(length, letters(20_000)).unwrap(), 20_000);
    assert_eq!(pool.apply(letters, 20_000).unwrap().len(), 20_000);
    assert_eq!(pool.stats().lost, 0);
}

/// While no worker can be started, those that there are go on.
fn a_pool_outlives_a_lack_of_descriptors() {
    let pool = two();
    let all = runner::AllDescriptors::take();
    kill(pool.pids()[0]);
    eventually("it is noticed", || pool.stats().workers == 1);
    // Longer than a pool without any worker waits.
    for _ in 0..25 {
        std::thread::sleep(ms(100));
        assert_eq!(pool.apply(double, 4).unwrap(), 8);
    }
    drop(all);
    eventually("it is replaced", || pool.stats().workers == 2);
    assert_eq!(pool.apply(double, 4).unwrap(), 8);
}

/// Arguments that were taken before the panic are not lost, and the map goes on.
fn an_input_that_panics() {
    let pool = two();
    pool.map(double, 0..10_000).for_each(drop); // so that the chunks are large
    let mut next = 0;
    let input = std::iter::from_fn(move || {
        next += 1;
        assert!(next != 3_000, "once");
        (next <= 5_000).then_some(next)
    });
    let mut results = pool.map(double, input);
    let (mut values, mut panics) = (Vec::new(), 0);
    loop {
        let next = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| results.next()));
        match next {
            Ok(Some(result)) => values.push(result.unwrap()),
            Ok(None) => break,
            Err(_) => panics += 1,
        }
    }
    assert_eq!(panics, 1);
    assert!(values.into_iter().eq((1..=5_000).filter(|&x| x != 3_000).map(|x| 2 * x)));
}

fn large_arguments_without_end() {
    let pool = two();
    let drawn = AtomicU64::new(0);
    let input = std::iter::repeat_with(|| {
        assert!(drawn.fetch_add(1, SeqCst) < 1_000, "all are drawn at once");
        letters(20_000)
    });
    let mut results = pool.map(length, input);
    for given in 1..=50 {
        assert_eq!(results.next().unwrap().unwrap(), 20_000);
        let ahead = drawn.load(SeqCst) - given;
        assert!(ahead < 50, "{ahead}");
    }
    drop(results);
    // The same for those that cannot be encoded.
    fn takes(stubborn: Stubborn) -> u64 {
        stubborn.0
    }
    let mut results = pool.map(takes, std::iter::repeat_with(|| Stubborn(1)));
    assert!(is_error(&results.next().unwrap(), |error| matches!(error, TaskError::Argument(_))));
}

/// Results that are there come before the next argument.
fn a_slow_input() {
    let pool = two();
    pool.map(double, 0..10_000).for_each(drop); // so that the chunks are large
    for ordered in [true, false] {
        let drawn = AtomicU64::new(0);
        let input = (0..40_u64).inspect(|_| {
            std::thread::sleep(ms(15));
            drawn.fetch_add(1, SeqCst);
        });
        let results =
            if ordered { pool.map(double, input) } else { pool.map_unordered(double, input) };
        let ahead: Vec<u64> = results
            .zip(1..)
            .map(|(result, given)| {
                result.unwrap();
                drawn.load(SeqCst) - given
            })
            .collect();
        // On a machine that is busy, some results may be late.
        let prompt = ahead.iter().filter(|&&ahead| ahead <= 2).count();
        assert!(prompt > 20, "arguments that are ahead of the results: {ahead:?}");
        assert_eq!(ahead.len(), 40);
    }
}

/// A copy that a task has forked ends; the messages are not for it.
#[expect(unsafe_code, reason = "fork")]
fn a_task_that_forks() {
    fn forks(panics: bool) -> u32 {
        // SAFETY: the worker has one other thread, which holds no lock that is needed here.
        let copy = unsafe { libc::fork() };
        assert!(copy != 0 || !panics, "in the copy");
        copy.cast_unsigned()
    }
    let pool = Pool::builder().workers(2).retries(0).build().unwrap();
    for round in 0..20 {
        let copy = pool.apply(forks, round % 2 == 0).unwrap();
        assert_ne!(copy, 0);
        eventually("the copy has ended", || !runs(copy));
        assert!(pool.map(double, 0..100).map(Result::unwrap).eq((0..100).map(|x| 2 * x)));
    }
    assert_eq!(pool.stats().lost, 0);
}

/// A panic that an earlier task caught is not the one that is reported.
fn the_panic_that_is_told() {
    fn catches((): ()) {
        std::panic::catch_unwind(|| panic!("caught")).unwrap_err();
    }
    fn resumes((): ()) {
        std::panic::resume_unwind(Box::new("resumed"));
    }
    let pool = Pool::builder().workers(1).build().unwrap();
    for _ in 0..2 {
        pool.apply(catches, ()).unwrap();
        let Err(TaskError::Panicked { message, location, .. }) = pool.apply(resumes, ()) else {
            panic!("no panic");
        };
        assert_eq!((message.as_str(), location.as_str()), ("resumed", "?"));
    }
}

/// The worker traps after each of its instructions, and counts them until it kills itself.
#[cfg(target_arch = "x86_64")]
mod step {
    #![expect(unsafe_code, reason = "a signal handler, and the processor's trap flag")]
    use super::{AtomicU64, Pool, SeqCst, TaskError, double, is_error, number, pool};

    static LEFT: AtomicU64 = AtomicU64::new(0);

    extern "C" fn count(_signal: i32) {
        if LEFT.fetch_sub(1, SeqCst) == 1 {
            // SAFETY: takes no pointers.
            unsafe { libc::raise(libc::SIGKILL) };
        }
    }

    /// From here on the calling worker lives for so many instructions.
    fn live_for(instructions: u64) {
        LEFT.store(instructions, SeqCst);
        // SAFETY: all zero is an empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count as *const () as usize;
        // SAFETY: the handler is async-signal-safe.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
        // SAFETY: sets the trap flag, below the red zone.
        unsafe {
            std::arch::asm!(
                "sub rsp, 128",
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "add rsp, 128"
            );
        }
    }

    /// The end of one message, two more, and the sleep after them: wherever it dies, no task is
    /// lost that it had not begun, and none that it had done; with one try each, at most one fails.
    pub(crate) fn killed_at_every_instruction() {
        let pool = Pool::builder().workers(1).retries(0).build().unwrap();
        // Later on it spins and sleeps.
        let most = if cfg!(debug_assertions) { 8_000 } else { 3_000 };
        let (stride, most) = (number("STRIDE", 61), number("INSTRUCTIONS", most));
        let (mut failed, mut survived, mut n) = (0, 0, 1);
        while n < most {
            let lost = pool.stats().lost;
            let first = pool.submit(live_for, n);
            let tasks: Vec<_> = (0..2).map(|x| pool.submit(double, x)).collect();
            let mut wrong = 0;
            for (task, x) in tasks.iter().zip(0..) {
                match task.join() {
                    Ok(value) => assert_eq!(value, 2 * x, "{n}"),
                    Err(TaskError::WorkerDied { signal: Some(9), .. }) => wrong += 1,
                    Err(error) => panic!("{n}: {error}"),
                }
            }
            if let Err(error) = first.join() {
                assert!(matches!(error, TaskError::WorkerDied { signal: Some(9), .. }), "{n}");
                wrong += 1;
            }
            assert!(wrong <= 1, "{n}: {wrong} failed");
            failed += wrong;
            survived += u64::from(wrong == 0);
            if pool.stats().lost == lost {
                // It is asleep, or not yet dead; the next one is to begin anew.
                pool.pids().into_iter().for_each(super::kill);
                super::eventually("it is gone", || pool.stats().lost > lost);
            }
            n += stride;
        }
        assert!(failed > 0 && survived > 0, "{failed} failed, {survived} survived");
        assert!(is_error(&pool.apply(live_for, 5), |e| matches!(e, TaskError::WorkerDied { .. })));
        if std::env::var_os("STRIDE").is_some() {
            eprintln!("{failed} failed, {survived} survived");
        }
    }

    /// Submits two tasks and waits for them, with so many instructions to live.
    fn submits_and_dies(instructions: u64) -> u64 {
        let pool = pool::current().unwrap();
        // The first task makes the connection and its thread, which must not inherit the trap flag.
        assert_eq!(pool.apply(double, 1).unwrap(), 2);
        if instructions > 0 {
            live_for(instructions);
        }
        let tasks = [pool.submit(double, 10), pool.submit(double, 20)];
        tasks.iter().map(|task| task.join().unwrap()).sum()
    }

    /// Wherever a worker dies that submits tasks, its own task fails and no other is lost.
    pub(crate) fn submitters_killed_at_every_instruction() {
        let pool = Pool::builder().workers(2).retries(0).build().unwrap();
        let (stride, most) = (number("STRIDE", 1_009), number("INSTRUCTIONS", 30_000));
        let (mut failed, mut n) = (0, 1);
        while n < most {
            let other = pool.submit(double, n);
            // A worker that has returned from the task dies in the next one, or while it sleeps.
            let results = [(pool.apply(submits_and_dies, n), 60), (other.join(), 2 * n)];
            let mut wrong = 0;
            for (result, expected) in results {
                match result {
                    Ok(value) => assert_eq!(value, expected, "{n}"),
                    Err(TaskError::WorkerDied { signal: Some(9), .. }) => wrong += 1,
                    Err(error) => panic!("{n}: {error}"),
                }
            }
            assert!(wrong <= 1, "{n}: {wrong} failed");
            failed += wrong;
            super::eventually("nothing is left", || pool.stats().unfinished == 0);
            n += stride;
        }
        assert!(failed > 0);
        let pool = Pool::builder().workers(2).build().unwrap(); // of workers with no trap flag
        assert_eq!(pool.apply(submits_and_dies, 0), Ok(60), "the control");
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod step {
    pub(crate) fn killed_at_every_instruction() {}
    pub(crate) fn submitters_killed_at_every_instruction() {}
}

/// The workers take ends in their initialiser. They are gone when the workers are, however those
/// end, and a replacement takes one of its own.
fn ends_of_a_channel_in_workers() {
    type News = ValueQueue<String>;
    fn connect((): ()) -> Sender<News> {
        let news = Shared::<Channel<News>>::inherited("news").unwrap();
        Sender::of(news).unwrap()
    }
    fn tell(text: String) -> u32 {
        pool::context::<Sender<News>>().send(&text).unwrap();
        std::process::id()
    }
    let news = Shared::<Channel<News>>::with_capacity(4_096).unwrap();
    let reader = news.receiver().unwrap();
    let pool = Pool::builder().workers(1).share("news", &news).initializer(connect, ());
    let pool = pool.build().unwrap();
    let worker = pool.apply(tell, "one".to_owned()).unwrap();
    assert_eq!(reader.recv().unwrap(), "one");
    assert_eq!(news.senders(), 1);
    kill(worker);
    eventually("the worker is replaced", || pool.pids().iter().all(|&pid| pid != worker));
    assert_ne!(pool.apply(tell, "two".to_owned()).unwrap(), worker);
    eventually("the new worker's end is the only one", || news.senders() == 1);
    while reader.recv().is_ok_and(|text| text != "two") {}
    let tasks: Vec<_> = (0..10).map(|n| pool.submit(tell, n.to_string())).collect();
    pool.join();
    tasks.iter().for_each(|task| assert!(task.join().is_ok()));
    let all: Vec<String> = std::iter::from_fn(|| reader.recv().ok()).collect();
    assert_eq!(all.len(), 10);
    assert!(reader.recv().is_err());
}

fn environment_of_workers() {
    fn variable(key: String) -> Option<String> {
        std::env::var(key).ok()
    }
    let pool = Pool::builder().workers(1).env("OUTLAST_TEST_A", "blue").build().unwrap();
    assert_eq!(pool.apply(variable, "OUTLAST_TEST_A".to_owned()).unwrap().unwrap(), "blue");
    assert_eq!(pool.apply(variable, "OUTLAST_TEST_B".to_owned()).unwrap(), None);
    kill(pool.pids()[0]);
    assert_eq!(pool.apply(variable, "OUTLAST_TEST_A".to_owned()).unwrap().unwrap(), "blue");
    let refused = Pool::builder().workers(1).env("a=b", "").build().unwrap_err();
    assert!(matches!(refused, PoolError::Spawn(SpawnError::Io(_))), "{refused}");
}
