//! Stopping by signals: each task is done or reported, no process is left over, and the exit status
//! says what happened.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "signals, forks")]
mod runner;

use outlast::pool::{OnStop, Pool, TaskError};
use outlast::process::{self, Process, Stop};
use outlast::{Event, Options, Shared};
use runner::{eventually, kill, ms, part, runs};
use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdout, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;

const INT: i32 = libc::SIGINT;
const TERM: i32 = libc::SIGTERM;

outlast::shared! {
    struct Desk { begun: AtomicU64, ended: AtomicU64, stop: Event }
}

fn main() -> ExitCode {
    if env::var_os("LATE_INIT").is_none() {
        process::init();
    }
    runner::run(
        &[
            ("drained", drained),
            ("dropped", dropped),
            ("ctrl_c_to_the_whole_group", ctrl_c_to_the_whole_group),
            ("the_status", the_status),
            ("a_second_signal", a_second_signal),
            ("the_same_signal_twice", the_same_signal_twice),
            ("a_killed_owner", a_killed_owner),
            ("workers_see_it", workers_see_it),
            ("the_handler_before", the_handler_before),
            ("no_longer_wanted", no_longer_wanted),
            ("what_is_ignored", what_is_ignored),
            ("the_child_of_a_fork", the_child_of_a_fork),
            ("several", several),
            ("an_event_in_a_named_segment", an_event_in_a_named_segment),
            ("set_by_a_task", set_by_a_task),
            ("set_before", set_before),
            ("who_waits_is_told_at_once", who_waits_is_told_at_once),
            ("a_worker_is_killed_after_it", a_worker_is_killed_after_it),
            ("never_set", never_set),
        ],
        &[
            ("owner", play_owner),
            ("patient", play_patient),
            ("twice", play_twice),
            ("workers", play_workers),
            ("handler", play_handler),
            ("no_longer", play_no_longer),
            ("fork", play_fork),
            ("fork_while_told", play_fork_while_told),
            ("several", play_several),
            ("named", play_named),
        ],
    )
}

// ------------------------------------------------------------------ other processes
/// This program, at a part.
struct Run {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Run {
    /// In a process group of its own, and with what is usual done for signals: a shell may have
    /// started the tests in the background.
    fn start(name: &str, settings: &[(&str, &str)]) -> Run {
        Run::start_with(name, settings, libc::SIG_DFL)
    }

    fn start_with(name: &str, settings: &[(&str, &str)], int: libc::sighandler_t) -> Run {
        let mut command = part(name);
        command.envs(settings.iter().copied()).stdout(Stdio::piped()).process_group(0);
        let prepare = move || {
            // SAFETY: async-signal-safe; no function is installed.
            unsafe { libc::signal(INT, int) };
            Ok(())
        };
        // SAFETY: `prepare` is async-signal-safe.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Run { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    /// To the whole group, as the terminal does.
    fn signal_group(&self, signal: i32) {
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::kill(-self.child.id().cast_signed(), signal) }, 0);
    }

    /// What it says from now on, until it and all that it has started have ended.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").unwrap();
    out.flush().unwrap();
}

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// Which segments of this name there are.
fn segments(name: &str) -> usize {
    // SAFETY: takes nothing, and cannot fail.
    let user = unsafe { libc::geteuid() };
    let entries =
        std::fs::read_dir(format!("/dev/shm/outlast-{user}")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(name)).count()
}

// ------------------------------------------------------------------------- the owner
fn counted(milliseconds: u64) -> u64 {
    let desk = Shared::<Desk>::inherited("desk").unwrap();
    desk.begun.fetch_add(1, SeqCst);
    std::thread::sleep(ms(milliseconds));
    desk.ended.fetch_add(1, SeqCst);
    milliseconds
}

fn desk() -> Shared<Desk> {
    Options::new().anonymous_with(|_: &Desk| {}).unwrap()
}

fn what(text: &str) -> OnStop {
    if text == "drain" { OnStop::Drain } else { OnStop::Drop }
}

/// Maps 200 tasks, and says what became of them.
fn play_owner() {
    let stop = Stop::on_signals().unwrap();
    process::init(); // does nothing if it was called before
    let desk = desk();
    let pool = Pool::builder().workers(2).share("desk", &desk);
    let pool = pool.stop(&stop, what(&setting("ON_STOP"))).build().unwrap();
    let waits = pool.submit(counted, 10);
    let mut results = pool.map_unordered(counted, (0..200).map(|_| 10));
    assert!(results.next().unwrap().is_ok());
    waits.wait();
    let pids: Vec<String> = pool.pids().iter().map(ToString::to_string).collect();
    say(&pids.join(" "));
    let (mut done, mut stopped) = (2, 0);
    for result in &mut results {
        match result {
            Ok(_) => done += 1,
            Err(TaskError::Stopped) => stopped += 1,
            Err(error) => panic!("{error}"),
        }
    }
    drop(results);
    assert!(stop.is_set());
    assert!(matches!(pool.apply(counted, 0), Err(TaskError::Stopped)));
    let mut late = pool.map(counted, [0]);
    assert!(matches!(late.next(), Some(Err(TaskError::Stopped))));
    drop(late);
    pool.join();
    let (begun, ended) = (desk.begun.load(SeqCst), desk.ended.load(SeqCst));
    let lost = pool.stats().lost;
    drop(pool);
    say(&format!("done {done} stopped {stopped} begun {begun} ended {ended} lost {lost}"));
    Stop::reraise(&stop);
    say("no signal");
}

/// Numbers in a text.
fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn drained() {
    let mut run = Run::start("owner", &[("ON_STOP", "drain")]);
    assert_eq!(numbers(&run.line()).len(), 2);
    run.signal(TERM);
    let (status, rest) = run.end();
    assert_eq!(rest, "done 201 stopped 0 begun 201 ended 201 lost 0\n");
    assert_eq!(status.signal(), Some(TERM), "{status}");
}

/// Whatever was begun is done, and the rest is reported.
#[track_caller]
fn is_dropped(text: &str) {
    let &[done, stopped, begun, ended, lost] = &numbers(text)[..] else { panic!("{text}") };
    assert_eq!(done + stopped, 201, "{text}");
    assert!(stopped > 100, "{text}");
    assert!(done == begun && done == ended && lost == 0, "{text}");
}

fn dropped() {
    for signal in [TERM, INT] {
        let mut run = Run::start("owner", &[("ON_STOP", "drop")]);
        run.line();
        run.signal(signal);
        let (status, rest) = run.end();
        is_dropped(&rest);
        assert_eq!(status.signal(), Some(signal), "{status}");
    }
}

/// As the terminal sends it. The fork server and the workers do not get it, however they were
/// started.
fn ctrl_c_to_the_whole_group() {
    for settings in [&[("ON_STOP", "drain")][..], &[("ON_STOP", "drain"), ("LATE_INIT", "1")]] {
        let mut run = Run::start("owner", settings);
        run.line();
        run.signal_group(INT);
        let (status, rest) = run.end();
        assert_eq!(rest, "done 201 stopped 0 begun 201 ended 201 lost 0\n");
        assert_eq!(status.signal(), Some(INT), "{status}");
    }
}

/// What a shell sees.
fn the_status() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkfifo \"$1\"; \"$0\" > \"$1\" & owner=$!; \
        { read pids; kill -s TERM $owner; cat; } < \"$1\"; wait $owner; echo status $?";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).arg(env::current_exe().unwrap()).arg(folder.path().join("pipe"));
    let output = shell.env("OUTLAST_TEST_PART", "owner").env("ON_STOP", "drop").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (first, last) = text.split_once('\n').unwrap();
    is_dropped(first);
    assert_eq!(last, "status 143\n");
}

// ------------------------------------------------------------- who does not want to wait
/// Drains for as long as it is told.
fn play_patient() {
    let stop = Stop::on_signals().unwrap();
    let desk = desk();
    let pool = Pool::builder().workers(2).share("desk", &desk);
    let pool = pool.stop(&stop, OnStop::Drain).build().unwrap();
    let long: u64 = setting("MILLISECONDS").parse().unwrap();
    let tasks: Vec<_> = (0..4).map(|_| pool.submit(counted, long)).collect();
    eventually("both are at it", || desk.begun.load(SeqCst) == 2);
    let pids: Vec<String> = pool.pids().iter().map(ToString::to_string).collect();
    say(&pids.join(" "));
    stop.wait().unwrap();
    say("stopping");
    tasks.iter().for_each(|task| assert_eq!(task.join().unwrap(), long));
    pool.join();
    say("drained");
    Stop::reraise(&stop);
}

fn pids(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn a_second_signal() {
    for (first, second) in [(TERM, TERM), (INT, INT), (INT, TERM), (TERM, INT)] {
        let mut run = Run::start("patient", &[("MILLISECONDS", "60000")]);
        let workers = pids(&run.line());
        run.signal(first);
        assert_eq!(run.line(), "stopping");
        std::thread::sleep(ms(100));
        run.signal(second);
        let (status, rest) = run.end();
        assert_eq!(rest, "");
        assert_eq!(status.signal(), Some(second), "{status}");
        assert!(workers.len() == 2 && !workers.iter().any(|&pid| runs(pid)));
    }
}

/// As from `timeout`, which sends to the process and to its group.
fn play_twice() {
    let stop = Stop::on_signals().unwrap();
    for signal in [TERM, TERM, INT] {
        // SAFETY: takes no pointers.
        unsafe { libc::raise(signal) };
    }
    assert!(stop.wait_timeout(runner::PATIENCE).unwrap());
    say("lives");
    Stop::reraise(&stop);
}

fn the_same_signal_twice() {
    let (status, rest) = Run::start("twice", &[]).end();
    assert_eq!((rest.as_str(), status.signal()), ("lives\n", Some(TERM)), "{status}");
}

fn a_killed_owner() {
    for stops in [false, true] {
        let mut run = Run::start("patient", &[("MILLISECONDS", "60000")]);
        let workers = pids(&run.line());
        if stops {
            run.signal(TERM);
            assert_eq!(run.line(), "stopping");
        }
        kill(run.child.id());
        let (status, rest) = run.end(); // which the workers would hold up
        assert_eq!((status.signal(), rest.as_str()), (Some(libc::SIGKILL), ""));
        assert!(workers.len() == 2 && !workers.iter().any(|&pid| runs(pid)));
    }
}

// --------------------------------------------------------------------------- processes
fn waits_for_it((): ()) -> bool {
    let stop = Shared::<Event>::inherited("stop").unwrap();
    say("waits");
    stop.wait_timeout(runner::PATIENCE).unwrap()
}

fn play_workers() {
    let stop = Stop::on_signals().unwrap();
    let start = || Process::builder(waits_for_it).share("stop", &stop).spawn(()).unwrap();
    let processes = [start(), start()];
    let seen = processes.iter().filter(|process| process.join().unwrap()).count();
    say(&format!("seen by {seen}, signal {:?}", Stop::signal(&stop)));
}

fn workers_see_it() {
    let mut run = Run::start("workers", &[]);
    assert_eq!((run.line(), run.line()), ("waits".to_owned(), "waits".to_owned()));
    run.signal_group(INT);
    let (status, rest) = run.end();
    assert_eq!((rest.as_str(), status.code()), ("seen by 2, signal Some(2)\n", Some(0)));
}

// ----------------------------------------------------------------------------- handlers
static CALLS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_one(_signal: i32) {
    CALLS.fetch_add(1, SeqCst);
}

extern "C" fn count_three(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: what the kernel gave.
    let told = unsafe { (*info).si_signo };
    CALLS.fetch_add(if told == signal { 100 } else { 1_000 }, SeqCst);
}

/// Had handlers of its own before.
fn play_handler() {
    // SAFETY: what they do is async-signal-safe.
    unsafe { libc::signal(INT, count_one as extern "C" fn(i32) as usize) };
    // SAFETY: zero will do for the mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = count_three as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::sigaction(TERM, &raw const action, core::ptr::null_mut()) }, 0);
    let signal: i32 = setting("SIGNAL").parse().unwrap();
    let me = std::process::id().cast_signed();
    // SAFETY: takes no pointers.
    let send = || assert_eq!(unsafe { libc::kill(me, signal) }, 0);
    let one = if signal == INT { 1 } else { 100 };
    let stop = Stop::on_signals().unwrap();
    send();
    assert!(stop.wait_timeout(runner::PATIENCE).unwrap());
    eventually("called once", || CALLS.load(SeqCst) == one);
    drop(stop);
    send(); // no other handler wants it now
    send();
    eventually("called again", || CALLS.load(SeqCst) == 3 * one);
    let stop = Stop::on_signals().unwrap();
    assert!(!stop.is_set() && Stop::signal(&stop).is_none());
    send();
    assert!(stop.wait_timeout(runner::PATIENCE).unwrap());
    eventually("called once more", || CALLS.load(SeqCst) == 4 * one);
    say("right");
    std::thread::sleep(ms(100));
    send(); // a second one
    std::thread::sleep(runner::PATIENCE);
}

fn the_handler_before() {
    for signal in [INT, TERM] {
        let (status, rest) = Run::start("handler", &[("SIGNAL", &signal.to_string())]).end();
        assert_eq!((rest.as_str(), status.signal()), ("right\n", Some(signal)), "{status}");
    }
}

fn play_no_longer() {
    let stop = Stop::on_signals().unwrap();
    if env::var_os("KEEPS").is_none() {
        drop(stop);
    } else {
        std::mem::forget(stop);
    }
    say("ready");
    std::thread::sleep(runner::PATIENCE);
    say("lives");
}

fn no_longer_wanted() {
    let mut run = Run::start("no_longer", &[]);
    assert_eq!(run.line(), "ready");
    run.signal(TERM);
    let (status, rest) = run.end();
    assert_eq!((rest.as_str(), status.signal()), ("", Some(TERM)), "{status}");
}

/// Ctrl-C for what a shell has started in the background.
fn what_is_ignored() {
    let mut run = Run::start_with("no_longer", &[("KEEPS", "1")], libc::SIG_IGN);
    assert_eq!(run.line(), "ready");
    run.signal(INT);
    std::thread::sleep(ms(100));
    run.signal(INT);
    std::thread::sleep(ms(100));
    assert!(run.child.try_wait().unwrap().is_none());
    run.signal(TERM);
    std::thread::sleep(ms(100));
    assert!(run.child.try_wait().unwrap().is_none());
    run.signal(TERM);
    let (status, rest) = run.end();
    assert_eq!((rest.as_str(), status.signal()), ("", Some(TERM)), "{status}");
}

fn play_fork() {
    let stop = Stop::on_signals().unwrap();
    // SAFETY: the other thread of this program sleeps, and holds no lock.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        std::thread::sleep(runner::PATIENCE);
        // SAFETY: ends the copy.
        unsafe { libc::_exit(0) };
    }
    let wait = |pid: i32| {
        let mut status = 0;
        // SAFETY: writes to the live variable.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        ExitStatus::from_raw(status)
    };
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, TERM) };
    assert_eq!(wait(pid).signal(), Some(TERM));
    assert!(!stop.wait_timeout(ms(100)).unwrap() && Stop::signal(&stop).is_none());
    // It can have one of its own; the parent's is another.
    // SAFETY: as above.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let own = Stop::on_signals().unwrap();
        // SAFETY: takes no pointers.
        unsafe { libc::raise(INT) };
        let right = own.wait_timeout(runner::PATIENCE).unwrap()
            && Stop::signal(&own) == Some(INT)
            && !stop.is_set();
        // SAFETY: ends the copy.
        unsafe { libc::_exit(if right { 7 } else { 8 }) };
    }
    assert_eq!(wait(pid).code(), Some(7));
    assert!(!stop.is_set());
    // SAFETY: takes no pointers.
    unsafe { libc::raise(TERM) };
    assert!(stop.wait_timeout(runner::PATIENCE).unwrap());
    say("right");
}

/// Forks while the thread that was told of a signal has the lock, which stays taken in the child.
fn play_fork_while_told() {
    /// 1: the thread is to wait. 2: it waits. 3: it may go on.
    static STEP: AtomicU64 = AtomicU64::new(0);
    fn pick(desk: &Desk) -> &Event {
        if STEP.compare_exchange(1, 2, SeqCst, SeqCst).is_ok() {
            eventually("it may go on", || STEP.load(SeqCst) == 3);
        }
        &desk.stop
    }
    let stop = Stop::on_signals_in(desk(), pick).unwrap();
    STEP.store(1, SeqCst);
    // SAFETY: takes no pointers.
    unsafe { libc::raise(TERM) };
    eventually("the thread has the lock", || STEP.load(SeqCst) == 2);
    // SAFETY: the other thread of this program sleeps, and holds no lock but this crate's.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: takes no pointers. Ends the copy if it hangs.
        unsafe { libc::alarm(20) };
        let own = Stop::on_signals().unwrap();
        drop(stop);
        // SAFETY: takes no pointers.
        unsafe { libc::raise(INT) };
        let right = own.wait_timeout(runner::PATIENCE).unwrap() && Stop::signal(&own) == Some(INT);
        // SAFETY: ends the copy.
        unsafe { libc::_exit(if right { 7 } else { 8 }) };
    }
    let mut status = 0;
    // SAFETY: writes to the live variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(ExitStatus::from_raw(status).code(), Some(7));
    STEP.store(3, SeqCst);
    assert!(stop.stop.wait_timeout(runner::PATIENCE).unwrap());
    say("right");
}

fn the_child_of_a_fork() {
    for part in ["fork", "fork_while_told"] {
        let (status, rest) = Run::start(part, &[]).end();
        assert_eq!((rest.as_str(), status.code()), ("right\n", Some(0)), "{part}: {status}");
    }
}

fn play_several() {
    let desk = desk();
    let stops = [Stop::on_signals().unwrap(), Stop::on_signals().unwrap()];
    let in_desk = Stop::on_signals_in(desk.clone(), |desk| &desk.stop).unwrap();
    let [first, second] = stops;
    drop(first);
    // SAFETY: takes no pointers.
    unsafe { libc::raise(TERM) };
    assert!(second.wait_timeout(runner::PATIENCE).unwrap());
    assert!(in_desk.stop.wait_timeout(runner::PATIENCE).unwrap() && desk.stop.is_set());
    let late = Stop::on_signals().unwrap();
    assert!(late.is_set());
    drop((second, in_desk, late));
    assert!(!Stop::on_signals().unwrap().is_set());
    say("right");
}

fn several() {
    let (status, rest) = Run::start("several", &[]).end();
    assert_eq!((rest.as_str(), status.code()), ("right\n", Some(0)), "{status}");
}

// ----------------------------------------------------------------------------- segments
fn play_named() {
    let name = setting("NAME");
    let desk = Options::new().create_with(&name, |_: &Desk| {}).unwrap();
    let stop = Stop::on_signals_in(desk, |desk| &desk.stop).unwrap();
    say("ready");
    assert!(stop.stop.wait_timeout(runner::PATIENCE).unwrap());
    let signal = Stop::signal(&stop);
    let again = Stop::on_signals().unwrap(); // for the status
    drop(stop);
    say(&format!("{signal:?}"));
    Stop::reraise(&again);
}

fn an_event_in_a_named_segment() {
    let name = format!("stop-test-{}", std::process::id());
    for ends in ["by itself", "killed"] {
        let mut run = Run::start("named", &[("NAME", &name)]);
        assert_eq!(run.line(), "ready");
        assert_eq!(segments(&name), 1);
        if ends == "killed" {
            kill(run.child.id());
            assert_eq!(run.end().0.signal(), Some(libc::SIGKILL));
            outlast::reap().unwrap();
        } else {
            run.signal(TERM);
            let (status, rest) = run.end();
            assert_eq!((rest.as_str(), status.signal()), ("Some(15)\n", Some(TERM)));
        }
        assert_eq!(segments(&name), 0, "{ends}");
    }
}

// ------------------------------------------------------------------------ without signals
fn sets_at((at, step): (u64, u64)) -> u64 {
    if at == step {
        Shared::<Event>::inherited("stop").unwrap().set();
    }
    std::thread::sleep(ms(5));
    step
}

fn event() -> Shared<Event> {
    Shared::anonymous(Event::manual(false)).unwrap()
}

fn set_by_a_task() {
    let stop = event();
    let pool = Pool::builder().workers(2).stop(&stop, OnStop::Drop).share("stop", &stop);
    let pool = pool.build().unwrap();
    let waits = pool.submit(sets_at, (1, 1));
    let tasks: Vec<_> = (100..400).map(|step| pool.submit(sets_at, (1, step))).collect();
    assert_eq!(waits.join().unwrap(), 1);
    let results: Vec<_> = tasks.iter().map(|task| task.join()).collect();
    let stopped = |result: &&Result<u64, _>| matches!(result, Err(TaskError::Stopped));
    let done = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(done + results.iter().filter(stopped).count(), 300);
    assert!(done < 200, "{done}");
    let stats = pool.stats();
    assert_eq!((stats.unfinished, stats.lost, stats.workers), (0, 0, 2));
    pool.join();
}

fn set_before() {
    for on_stop in [OnStop::Drain, OnStop::Drop] {
        let stop = Shared::anonymous(Event::manual(true)).unwrap();
        let pool = Pool::builder().workers(1).stop(&stop, on_stop).build().unwrap();
        assert!(matches!(pool.submit(sets_at, (0, 1)).join(), Err(TaskError::Stopped)));
        let results: Vec<_> = pool.map(sets_at, [(0, 1), (0, 2)]).collect();
        assert_eq!(results.len(), 2);
        assert!(results.iter().all(|result| matches!(result, Err(TaskError::Stopped))));
        pool.terminate();
        assert!(matches!(pool.apply(sets_at, (0, 1)), Err(TaskError::Terminated)));
    }
}

/// A thread that waits for cancelled tasks need not wait for the others.
fn who_waits_is_told_at_once() {
    let (stop, desk) = (event(), desk());
    let pool = Pool::builder().workers(1).stop(&stop, OnStop::Drop).share("desk", &desk);
    let pool = pool.build().unwrap();
    let (long, waits) = (pool.submit(counted, 1_000), pool.submit(counted, 0));
    eventually("begun", || desk.begun.load(SeqCst) == 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| (waits.join(), desk.ended.load(SeqCst)));
        std::thread::sleep(ms(50));
        stop.set();
        let (result, ended) = waiter.join().unwrap();
        assert!(matches!(result, Err(TaskError::Stopped)) && ended == 0, "{result:?}, {ended}");
    });
    assert_eq!(long.join().unwrap(), 1_000);
}

/// Drained, its task is done by another; dropped, it is not begun once more.
fn a_worker_is_killed_after_it() {
    for on_stop in [OnStop::Drain, OnStop::Drop] {
        let (stop, desk) = (event(), desk());
        let pool = Pool::builder().workers(1).stop(&stop, on_stop).share("desk", &desk);
        let pool = pool.build().unwrap();
        let tasks = [500, 1].map(|milliseconds| pool.submit(counted, milliseconds));
        eventually("begun", || desk.begun.load(SeqCst) == 1);
        stop.set();
        eventually("seen", || matches!(pool.apply(counted, 0), Err(TaskError::Stopped)));
        pool.pids().into_iter().for_each(kill);
        let results = tasks.map(|task| task.join());
        let stats = pool.stats();
        assert_eq!(stats.lost, 1);
        if on_stop == OnStop::Drain {
            assert!(matches!(results, [Ok(500), Ok(1)]), "{results:?}");
            assert_eq!((desk.begun.load(SeqCst), stats.retried), (3, 1));
        } else {
            let stopped = matches!(results, [Err(TaskError::Stopped), Err(TaskError::Stopped)]);
            assert!(stopped, "{results:?}");
            assert_eq!(desk.begun.load(SeqCst), 1);
        }
        pool.join();
    }
}

/// A pool that never stops ends like any other, and nothing of it is left.
fn never_set() {
    let stop = event();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let start = || Pool::builder().workers(2).stop(&stop, OnStop::Drop).build().unwrap();
    drop(start());
    let (before, descriptors) = (threads(), runner::descriptors(std::process::id()));
    let began = Instant::now();
    for i in 0..20_u32 {
        let pool = start();
        assert_eq!(pool.apply(sets_at, (0, 7)).unwrap(), 7);
        if i % 2 == 0 { pool.join() } else { pool.terminate() }
    }
    assert!(began.elapsed() < runner::PATIENCE);
    eventually("its threads are gone", || threads() <= before);
    assert_eq!(runner::descriptors(std::process::id()), descriptors);
    // Without a stop there is nothing to do: it sleeps.
    let pool = start();
    pool.apply(sets_at, (0, 1)).unwrap();
    std::thread::sleep(ms(50));
    let switches = || {
        let mut all = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            if name.trim() == "pool-stop" {
                all += line
                    .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
                    .unwrap_or(0_u64);
            }
        }
        all
    };
    let before = switches();
    assert!(before > 0, "there is such a thread");
    std::thread::sleep(ms(500));
    let most = if cfg!(not(outlast_pthread)) { 1 } else { 20 };
    assert!(switches() - before < most);
}
