//! Functions in processes of their own: what they return, and which process outlives which.
#![cfg(not(outlast_loom))]
mod runner;

use outlast::process::{self, Process, ProcessError, SpawnError};
use outlast::spsc::{Consumer, Producer, Ring};
use outlast::{
    Connection, Event, HandOver, Lock, OpenError, Pipe, RecvError, RecvTimeoutError, Shared,
    TimedOut,
};
use runner::{children, descriptors, eventually, kill, ms, part, runs};
use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    if std::env::var_os("PREPARED").is_some() {
        prepare();
    }
    if std::env::var_os("WITHOUT_INIT").is_none() {
        process::init();
    }
    runner::run(
        &[
            ("returns_a_value", returns_a_value),
            ("values_of_all_kinds", values_of_all_kinds),
            ("a_panic_is_told", a_panic_is_told),
            ("a_killed_process", a_killed_process),
            ("an_exit_code", an_exit_code),
            ("large_values", large_values),
            ("a_limit_of_file_size", a_limit_of_file_size),
            ("a_value_that_cannot_be_encoded", a_value_that_cannot_be_encoded),
            ("shared_memory", shared_memory),
            ("join_with_a_timeout", join_with_a_timeout),
            ("the_value_is_taken_once", the_value_is_taken_once),
            ("signals_to_the_reaped", signals_to_the_reaped),
            ("no_input_and_own_group", no_input_and_own_group),
            ("two_hundred_leave_nothing", two_hundred_leave_nothing),
            ("from_many_threads", from_many_threads),
            ("a_process_starts_processes", a_process_starts_processes),
            ("after_a_fork", after_a_fork),
            ("the_fork_server_is_killed", the_fork_server_is_killed),
            (
                "the_fork_server_is_killed_again_and_again",
                the_fork_server_is_killed_again_and_again,
            ),
            ("the_owner_is_killed", the_owner_is_killed),
            ("without_init", without_init),
            ("a_late_init", a_late_init),
            ("a_function_of_a_library", a_function_of_a_library),
            ("dropped_it_runs_on", dropped_it_runs_on),
            ("a_fork_server_without_descriptors", a_fork_server_without_descriptors),
            ("a_value_waits_for_a_descriptor", a_value_waits_for_a_descriptor),
            ("a_number_that_comes_again", a_number_that_comes_again),
            ("what_came_before_init", what_came_before_init),
            ("a_function_that_forks", a_function_that_forks),
            ("environment", environment),
            ("an_end_is_handed_over", an_end_is_handed_over),
            ("both_ends_of_a_ring_are_handed_over", both_ends_of_a_ring_are_handed_over),
            ("an_end_that_is_not_taken", an_end_that_is_not_taken),
            ("an_end_whose_owner_is_killed", an_end_whose_owner_is_killed),
            (
                "owners_that_are_killed_while_they_hand_over",
                owners_that_are_killed_while_they_hand_over,
            ),
        ],
        &[
            ("owner", play_owner),
            ("limited", play_limited),
            ("without_init", play_without_init),
            ("late_init", play_late_init),
            ("few_descriptors", play_few_descriptors),
            ("number_again", play_number_again),
            ("prepared", play_prepared),
            ("hands_over", play_hands_over),
            ("hands_over_again_and_again", play_hands_over_again_and_again),
        ],
    )
}

fn double(x: u64) -> u64 {
    x * 2
}

fn forever((): ()) {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn pid_of((): ()) -> u32 {
    std::process::id()
}

fn returns_a_value() {
    let process = Process::spawn(double, 21).unwrap();
    assert_ne!(process.pid(), std::process::id());
    assert_eq!(process.join().unwrap(), 42);
    assert_eq!(process.exit_status().unwrap().code(), Some(0));
    assert!(!process.is_alive());
    let process = Process::spawn(pid_of, ()).unwrap();
    assert_eq!(process.join().unwrap(), process.pid());
}

type Everything =
    (Option<String>, Vec<(i8, f64)>, Result<char, ()>, std::collections::BTreeMap<u8, String>);

fn turn(mut everything: Everything) -> Everything {
    everything.0 = everything.0.map(|text| text.chars().rev().collect());
    everything.1.reverse();
    everything
}

fn values_of_all_kinds() {
    let map: std::collections::BTreeMap<_, _> = [(3, "c".to_owned())].into();
    let there = (Some("äb".to_owned()), vec![(-1, 0.5), (2, f64::MAX)], Ok('ß'), map.clone());
    let back = (Some("bä".to_owned()), vec![(2, f64::MAX), (-1, 0.5)], Ok('ß'), map);
    assert_eq!(Process::spawn(turn, there).unwrap().join().unwrap(), back);
    fn nothing((): ()) {}
    Process::spawn(nothing, ()).unwrap().join().unwrap();
}

fn panics(text: String) -> u32 {
    panic!("it is {text}")
}

fn panics_with_a_number(x: u32) -> u32 {
    std::panic::panic_any(x)
}

fn recovers((): ()) -> u32 {
    std::panic::catch_unwind(|| panic!("caught")).map_or(7, |()| 0)
}

fn a_panic_is_told() {
    let process = Process::spawn(panics, "late".to_owned()).unwrap();
    let Err(ProcessError::Panicked { message, location, backtrace }) = process.join() else {
        panic!("no panic");
    };
    assert_eq!(message, "it is late");
    assert!(location.contains("process.rs:"), "{location}");
    assert!(backtrace.contains("panics"), "{backtrace}");
    assert_eq!(process.exit_status().unwrap().code(), Some(101));
    let process = Process::spawn(panics_with_a_number, 3).unwrap();
    let Err(ProcessError::Panicked { message, .. }) = process.join() else { panic!("no panic") };
    assert_eq!(message, "a panic whose payload is not text");
    assert_eq!(Process::spawn(recovers, ()).unwrap().join().unwrap(), 7);
}

fn a_killed_process() {
    let process = Process::spawn(forever, ()).unwrap();
    assert!(process.is_alive());
    assert!(process.exit_status().is_none());
    process.kill().unwrap();
    assert!(matches!(process.join(), Err(ProcessError::Signalled(9))));
    let process = Process::spawn(forever, ()).unwrap();
    process.terminate().unwrap();
    assert!(matches!(process.join(), Err(ProcessError::Signalled(15))));
    fn aborts((): ()) {
        std::process::abort();
    }
    let process = Process::spawn(aborts, ()).unwrap();
    assert!(matches!(process.join(), Err(ProcessError::Signalled(6))));
}

fn an_exit_code() {
    fn exits(code: i32) {
        std::process::exit(code);
    }
    let process = Process::spawn(exits, 5).unwrap();
    assert!(matches!(process.join(), Err(ProcessError::Exited(5))));
    assert_eq!(process.exit_status().unwrap().code(), Some(5));
    let process = Process::spawn(exits, 0).unwrap();
    assert!(matches!(process.join(), Err(ProcessError::Exited(0))));
}

fn large_values() {
    fn reversed(mut bytes: Vec<u64>) -> Vec<u64> {
        bytes.reverse();
        bytes
    }
    for length in [0, 1, 3_000, 4_096, 8_191, 100_000, 2 * 1024 * 1024] {
        let numbers: Vec<u64> = (0..length).map(|i| u64::MAX - i).collect(); // ten bytes each
        let expected: Vec<u64> = numbers.iter().rev().copied().collect();
        let process = Process::spawn(reversed, numbers).unwrap();
        process.wait().unwrap(); // nothing has been read: no process may block
        assert!(process.join().unwrap() == expected, "{length}");
    }
}

/// Large values go by files. If one would be longer than the process's limit, that is an error on
/// either side.
fn a_limit_of_file_size() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -f 4; exec \"$0\""]).arg(std::env::current_exe().unwrap());
    shell.envs(part("limited").get_envs().filter_map(|(key, value)| Some((key, value?))));
    assert!(shell.status().unwrap().success());
}

fn play_limited() {
    fn length(bytes: Vec<u8>) -> usize {
        bytes.len()
    }
    fn zeros(length: usize) -> Vec<u8> {
        vec![0; length]
    }
    assert_eq!(Process::spawn(length, vec![0; 1_000]).unwrap().join().unwrap(), 1_000);
    match Process::spawn(length, vec![0; 100_000]) {
        Err(SpawnError::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge),
        other => panic!("{:?}", other.map(|_| "a process")),
    }
    let process = Process::spawn(zeros, 100_000).unwrap();
    match process.join() {
        Err(ProcessError::Signalled(signal)) => panic!("killed by signal {signal}"),
        Err(_) => {}
        Ok(zeros) => panic!("{} bytes", zeros.len()),
    }
}

#[derive(Debug)]
struct Stubborn;

impl serde::Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

impl<'de> serde::Deserialize<'de> for Stubborn {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let () = serde::Deserialize::deserialize(from)?;
        Err(serde::de::Error::custom("never"))
    }
}

/// Serializes, but what comes back cannot be read.
#[derive(Debug)]
struct OneWay;

impl serde::Serialize for OneWay {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_unit()
    }
}

impl<'de> serde::Deserialize<'de> for OneWay {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Stubborn::deserialize(from).map(|_| OneWay)
    }
}

fn a_value_that_cannot_be_encoded() {
    fn takes(_: Stubborn) {}
    fn gives((): ()) -> Stubborn {
        Stubborn
    }
    fn takes_one_way(_: OneWay) {}
    fn gives_one_way((): ()) -> OneWay {
        OneWay
    }
    assert!(matches!(Process::spawn(takes, Stubborn), Err(SpawnError::Encode(_))));
    let joined = Process::spawn(gives, ()).unwrap().join();
    assert!(matches!(joined, Err(ProcessError::Encode(_))), "{joined:?}");
    let joined = Process::spawn(takes_one_way, OneWay).unwrap().join();
    assert!(matches!(joined, Err(ProcessError::Argument(_))), "{joined:?}");
    let joined = Process::spawn(gives_one_way, ()).unwrap().join();
    assert!(matches!(joined, Err(ProcessError::Decode(_))), "{joined:?}");
}

fn shared_memory() {
    fn adds(times: u64) {
        let total = Shared::<Lock<u64>>::inherited("the total").unwrap();
        let go = Shared::<Event>::inherited("go").unwrap();
        go.wait().unwrap();
        for _ in 0..times {
            *total.lock().unwrap() += 1;
        }
        assert!(Shared::<Event>::inherited("other").is_err());
    }
    let total = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let go = Shared::anonymous(Event::manual(false)).unwrap();
    let start = |_| {
        let builder = Process::builder(adds).share("the total", &total).share("go", &go);
        builder.name("adds").spawn(10_000).unwrap()
    };
    let processes: Vec<Process<()>> = (0..4).map(start).collect();
    go.set();
    processes.iter().for_each(|process| process.join().unwrap());
    assert_eq!(*total.lock().unwrap(), 40_000);

    fn dies_with_it((): ()) {
        let total = Shared::<Lock<u64>>::inherited("total").unwrap();
        let _guard = total.lock().unwrap();
        std::process::abort();
    }
    let process = Process::builder(dies_with_it).share("total", &total).spawn(()).unwrap();
    assert!(process.join().is_err());
    assert!(matches!(total.lock(), Err(outlast::LockError::OwnerDied(_))));
}

fn join_with_a_timeout() {
    fn sleeps(milliseconds: u64) -> u64 {
        std::thread::sleep(ms(milliseconds));
        1
    }
    let process = Process::spawn(sleeps, 300).unwrap();
    let start = Instant::now();
    assert!(process.try_join().is_none());
    assert_eq!(process.join_timeout(ms(20)).unwrap_err(), TimedOut);
    let deadline = Instant::now() + ms(20);
    assert_eq!(process.join_deadline(deadline).unwrap_err(), TimedOut);
    assert!(!process.wait_timeout(ms(20)).unwrap());
    assert!(start.elapsed() >= ms(60));
    assert!(process.is_alive());
    assert_eq!(process.join_timeout(runner::PATIENCE).unwrap().unwrap(), 1);
    assert!(start.elapsed() >= ms(300));
}

fn the_value_is_taken_once() {
    let process = Process::spawn(double, 1).unwrap();
    assert_eq!(process.join().unwrap(), 2);
    assert!(matches!(process.join(), Err(ProcessError::Taken)));
    assert!(matches!(process.try_join(), Some(Err(ProcessError::Taken))));
}

fn signals_to_the_reaped() {
    let process = Process::spawn(double, 1).unwrap();
    process.wait().unwrap();
    process.kill().unwrap();
    process.terminate().unwrap();
    assert_eq!(process.join().unwrap(), 2);
    assert!(process.signal(10_000).is_err() || !process.is_alive());
}

fn no_input_and_own_group() {
    fn looks((): ()) -> (usize, String, u32) {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line).unwrap();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let rest = stat.rsplit(')').next().unwrap().to_owned();
        let open = descriptors(std::process::id());
        (read, rest, u32::try_from(open).unwrap())
    }
    let stat = |rest: &str| rest.split_whitespace().nth(2).unwrap().to_owned();
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let others: Vec<_> = (0..5).map(|_| Process::spawn(forever, ()).unwrap()).collect();
    let (read, rest, open) = Process::spawn(looks, ()).unwrap().join().unwrap();
    assert_eq!(read, 0);
    assert_ne!(stat(&rest), stat(own.rsplit(')').next().unwrap()));
    // Nothing of its siblings or of the fork server's: three standard ones, the channel, the folder
    // that is just read.
    let inherited = 0..=2;
    let mine = descriptors(std::process::id());
    assert!(usize::try_from(open).unwrap() <= 5 + mine.saturating_sub(*inherited.end()), "{open}");
    assert!(open <= 10, "{open} descriptors");
    others.iter().for_each(|process| process.kill().unwrap());
}

/// The fork server's pid: the only child of this process that has the same name.
fn fork_server() -> u32 {
    let process = Process::spawn(parent_of, ()).unwrap();
    process.join().unwrap()
}

fn parent_of((): ()) -> u32 {
    std::os::unix::process::parent_id()
}

fn two_hundred_leave_nothing() {
    let fork_server = fork_server();
    eventually("the fork server has reaped those before", || children(fork_server).is_empty());
    std::thread::sleep(ms(20)); // it closes their descriptors then
    let (before, fork_servers) = (descriptors(std::process::id()), descriptors(fork_server));
    for round in 0..20_u64 {
        let processes: Vec<_> =
            (0..10).map(|i| Process::spawn(double, round + i).unwrap()).collect();
        for (process, i) in processes.iter().zip(0..) {
            assert_eq!(process.join().unwrap(), 2 * (round + i));
        }
    }
    assert_eq!(descriptors(std::process::id()), before);
    eventually("the fork server has as few as before", || descriptors(fork_server) <= fork_servers);
    assert!(children(fork_server).is_empty(), "zombies");
}

fn from_many_threads() {
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            scope.spawn(move || {
                for i in 0..10 {
                    let process = Process::spawn(double, thread * 100 + i).unwrap();
                    assert_eq!(process.join().unwrap(), 2 * (thread * 100 + i));
                }
            });
        }
    });
}

fn a_process_starts_processes() {
    fn outer(x: u64) -> (u64, u32) {
        let process = Process::spawn(double, x).unwrap();
        (process.join().unwrap(), process.pid())
    }
    let process = Process::spawn(outer, 8).unwrap();
    let (value, pid) = process.join().unwrap();
    assert_eq!(value, 16);
    assert_ne!(pid, process.pid());
    eventually("the inner process is gone", || !runs(pid));
}

#[expect(unsafe_code, reason = "fork")]
fn after_a_fork() {
    // SAFETY: the only other thread is the watchdog, which sleeps.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // The processes that it starts end with it, because it has its own fork server.
        let own = std::panic::catch_unwind(fork_server)
            .is_ok_and(|server| children(std::process::id()).contains(&server));
        // SAFETY: ends the copy.
        unsafe { libc::_exit(i32::from(!own)) };
    }
    let mut status = 1;
    // SAFETY: writes to the live variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert_eq!(Process::spawn(double, 4).unwrap().join().unwrap(), 8);
}

fn the_fork_server_is_killed() {
    let first = fork_server();
    let process = Process::spawn(forever, ()).unwrap();
    let detached = Process::builder(forever).detached(true).spawn(()).unwrap();
    kill(first);
    assert!(matches!(process.join(), Err(ProcessError::Lost)));
    assert!(process.exit_status().is_none());
    assert_eq!(Process::spawn(double, 5).unwrap().join().unwrap(), 10);
    let second = fork_server();
    assert_ne!(first, second);
    assert!(!children(std::process::id()).contains(&first), "a zombie");
    assert!(detached.is_alive());
    detached.kill().unwrap();
    assert!(detached.join_timeout(runner::PATIENCE).unwrap().is_err());
    // What had given its value has given it.
    fn gives_and_stays((): ()) -> u32 {
        3
    }
    let process = Process::spawn(gives_and_stays, ()).unwrap();
    eventually("it has ended", || !runs(process.pid()));
    kill(second);
    assert_eq!(process.join().unwrap(), 3);
}

fn the_fork_server_is_killed_again_and_again() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                for child in children(std::process::id()) {
                    kill(child);
                }
                std::thread::sleep(ms(30));
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let (mut done, mut lost) = (0, 0);
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            match Process::spawn(double, 6) {
                Ok(process) => match process.join() {
                    Ok(value) => {
                        assert_eq!(value, 12);
                        done += 1;
                    }
                    Err(ProcessError::Lost | ProcessError::Signalled(9)) => lost += 1,
                    Err(error) => panic!("{error}"),
                },
                Err(SpawnError::ForkServerLost) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(done > 0, "{done} done, {lost} lost");
    });
    assert_eq!(Process::spawn(double, 6).unwrap().join().unwrap(), 12);
}

fn play_owner() {
    use std::io::Write as _;
    let process = Process::spawn(forever, ()).unwrap();
    let detached = Process::builder(forever).detached(true).spawn(()).unwrap();
    let fork_server = fork_server();
    let mut out = std::io::stdout();
    writeln!(out, "{} {} {fork_server}", process.pid(), detached.pid()).unwrap();
    match std::env::var("THEN").as_deref() {
        Ok("exits") => {}
        Ok("forks") => play_forking_owner(),
        _ => forever(()),
    }
}

/// Leaves a copy of this process, with copies of all its descriptors.
#[expect(unsafe_code, reason = "forks")]
fn play_forking_owner() {
    use std::io::Write as _;
    // SAFETY: this process has one thread.
    let copy = unsafe { libc::fork() };
    if copy == 0 {
        std::thread::sleep(2 * runner::PATIENCE);
        // SAFETY: ends the copy.
        unsafe { libc::_exit(0) };
    }
    let mut out = std::io::stdout();
    writeln!(out, "{copy}").unwrap();
    forever(());
}

fn the_owner_is_killed() {
    for then in ["exits", "is killed", "forks"] {
        let mut command = part("owner");
        let mut owner = command.env("THEN", then).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(owner.stdout.take().unwrap());
        let mut numbers = || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            line.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        };
        let [process, detached, fork_server] = numbers().try_into().unwrap();
        let copy = if then == "forks" { numbers() } else { Vec::new() };
        if then != "exits" {
            assert!(runs(process) && runs(detached) && runs(fork_server));
            owner.kill().unwrap();
        }
        owner.wait().unwrap();
        eventually("the process is gone", || !runs(process));
        eventually("the fork server is gone", || !runs(fork_server));
        std::thread::sleep(ms(50));
        assert!(runs(detached));
        kill(detached);
        for copy in copy {
            assert!(runs(copy), "it had the fork server's socket open");
            kill(copy);
        }
    }
}

fn play_without_init() {
    assert!(matches!(Process::spawn(double, 1), Err(SpawnError::NotInitialised)));
}

fn without_init() {
    let status = part("without_init").env("WITHOUT_INIT", "1").status().unwrap();
    assert!(status.success());
}

fn play_late_init() {
    assert!(matches!(Process::spawn(double, 1), Err(SpawnError::NotInitialised)));
    std::thread::spawn(|| forever(()));
    process::init();
    process::init();
    assert_eq!(Process::spawn(double, 1).unwrap().join().unwrap(), 2);
}

/// With other threads about, the fork server is the program started once more.
fn a_late_init() {
    // That one finds no variable, calls `init`, and becomes the fork server.
    let status = part("late_init").env("WITHOUT_INIT", "1").status().unwrap();
    assert!(status.success());
}

#[expect(unsafe_code, reason = "makes a function of another kind")]
fn a_function_of_a_library() {
    let address = libc::getpid as *const ();
    // SAFETY: it is not called.
    let function = unsafe { std::mem::transmute::<*const (), fn(u64) -> u64>(address) };
    let refused = Process::spawn(function, 1);
    // Linked statically it is a part of the executable, and called by a stub otherwise.
    assert!(matches!(refused, Err(SpawnError::ForeignFunction)) || refused.is_ok());
    // SAFETY: the name is a C string.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"getpid".as_ptr()) };
    // SAFETY: as above.
    let function = unsafe { std::mem::transmute::<*mut libc::c_void, fn(u64) -> u64>(address) };
    let refused = Process::spawn(function, 1);
    assert!(matches!(refused, Err(SpawnError::ForeignFunction)), "{refused:?}");
}

#[expect(unsafe_code, reason = "a limit for another process")]
fn play_few_descriptors() {
    runner::limit_descriptors(4_096); // only the fork server is to have few
    let mut all: Vec<Process<()>> = Vec::new();
    let mut refused = 0;
    while refused < 5 {
        match Process::spawn(forever, ()) {
            Ok(process) => all.push(process),
            Err(SpawnError::Io(error)) => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(all.iter().all(Process::is_alive), "{} processes, {refused} refused", all.len());
    }
    assert!(all.len() > 5, "{}", all.len());
    all.iter().take(3).for_each(|process| process.kill().unwrap());
    all.iter().take(3).for_each(|process| assert!(process.join().is_err()));
    eventually("another one finds room", || {
        Process::spawn(double, 4).is_ok_and(|process| process.join().unwrap() == 8)
    });
    assert!(all.iter().skip(3).all(Process::is_alive));
    // It may have no descriptor at all, so that it cannot even refuse.
    let none = libc::rlimit { rlim_cur: 3, rlim_max: 4_096 };
    let fork_server = std::fs::read_to_string(format!("/proc/{}/stat", all[4].pid())).unwrap();
    let fork_server = fork_server.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
    let (fork_server, no_old) = (fork_server.parse().unwrap(), std::ptr::null_mut());
    // SAFETY: reads the live variable.
    let r = unsafe { libc::prlimit(fork_server, libc::RLIMIT_NOFILE, &raw const none, no_old) };
    assert_eq!(r, 0);
    assert!(matches!(Process::spawn(double, 4), Err(SpawnError::Io(_))));
    assert!(all.iter().skip(3).all(Process::is_alive));
}

/// A fork server that has no room for an order's descriptors refuses the order. It does not count
/// as dead.
#[expect(unsafe_code, reason = "a limit for the child")]
fn a_fork_server_without_descriptors() {
    use std::os::unix::process::CommandExt as _;
    let limit = || {
        runner::limit_descriptors(40);
        Ok(())
    };
    let mut command = part("few_descriptors");
    // SAFETY: makes two system calls, and nothing else.
    let status = unsafe { command.pre_exec(limit) }.status().unwrap();
    assert!(status.success());
}

/// Without room for the descriptor that a large value comes in, `join` fails, and can be called
/// again.
fn a_value_waits_for_a_descriptor() {
    fn gives(length: usize) -> Vec<u8> {
        vec![7; length]
    }
    let process = Process::spawn(gives, 100_000).unwrap();
    eventually("it has ended", || !runs(process.pid()));
    let all = runner::AllDescriptors::take();
    let joined = process.join();
    drop(all);
    let Err(ProcessError::Io(error)) = joined else { panic!("{joined:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    assert_eq!(process.join().unwrap(), [7; 100_000]);
    assert_eq!(process.exit_status().unwrap().code(), Some(0));
}

/// The kernel gives the number of a dead fork server to another process, which is left alone.
#[expect(unsafe_code, reason = "system calls")]
fn play_number_again() {
    // SAFETY: ignoring is no function. The kernel reaps children then, and their numbers are free.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let fork_server = fork_server();
    kill(fork_server);
    eventually("the fork server is gone", || !children(std::process::id()).contains(&fork_server));
    for _ in 0..200 {
        if std::fs::write("/proc/sys/kernel/ns_last_pid", (fork_server - 1).to_string()).is_err() {
            break; // not permitted
        }
        // SAFETY: the copy calls what needs no lock, and ends.
        let stranger = unsafe { libc::fork() };
        if stranger == 0 {
            // SAFETY: sleeps until it is killed.
            unsafe { libc::sleep(60) };
            // SAFETY: ends the copy.
            unsafe { libc::_exit(0) };
        }
        let stranger = stranger.cast_unsigned();
        if stranger == fork_server {
            assert_eq!(Process::spawn(double, 4).unwrap().join().unwrap(), 8);
            assert!(runs(stranger), "the stranger was killed");
            kill(stranger);
            return;
        }
        kill(stranger);
    }
    eprintln!("not tried: the number {fork_server} did not come again");
}

fn a_number_that_comes_again() {
    assert!(part("number_again").status().unwrap().success());
}

/// What a program may have done before `init`: it has printed, caught a signal and blocked another.
#[expect(unsafe_code, reason = "system calls")]
fn prepare() {
    use std::io::Write as _;
    extern "C" fn ignore(_signal: i32) {}
    std::io::stdout().write_all(b"rust;").unwrap();
    // SAFETY: a C string without arguments.
    unsafe { libc::printf(c"c;".as_ptr()) };
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as usize) };
    // SAFETY: all zero is an empty set.
    let mut blocked: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: adds to the live set.
    unsafe { libc::sigaddset(&raw mut blocked, libc::SIGTERM) };
    // SAFETY: reads the live set.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut()) };
}

fn play_prepared() {
    Process::spawn(double, 1).unwrap().join().unwrap();
    for signal in [libc::SIGTERM, libc::SIGUSR1] {
        let process = Process::spawn(forever, ()).unwrap();
        process.signal(signal).unwrap();
        let joined = process.join_timeout(runner::PATIENCE);
        assert!(matches!(joined, Ok(Err(ProcessError::Signalled(by))) if by == signal));
    }
}

fn what_came_before_init() {
    let output = part("prepared").env("PREPARED", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((text.matches("rust;").count(), text.matches("c;").count()), (1, 1), "{text}");
}

#[expect(unsafe_code, reason = "fork")]
fn a_function_that_forks() {
    static COPY: AtomicI32 = AtomicI32::new(0);
    extern "C" fn wait_for_copy() {
        // SAFETY: waits for a child, if there is one.
        unsafe { libc::waitpid(COPY.load(SeqCst), std::ptr::null_mut(), 0) };
    }
    fn returns_twice((): ()) -> u32 {
        // SAFETY: the process has one thread.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            std::thread::sleep(ms(50)); // the other one has returned
        } else {
            COPY.store(copy, SeqCst);
            // SAFETY: the handler is a function of this program.
            unsafe { libc::atexit(wait_for_copy) };
        }
        std::process::id()
    }
    let process = Process::spawn(returns_twice, ()).unwrap();
    assert_eq!(process.join().unwrap(), process.pid());
}

fn dropped_it_runs_on() {
    fn sets((): ()) {
        std::thread::sleep(ms(50));
        Shared::<Event>::inherited("done").unwrap().set();
    }
    let done = Shared::anonymous(Event::manual(false)).unwrap();
    drop(Process::builder(sets).share("done", &done).spawn(()).unwrap());
    assert!(done.wait_timeout(runner::PATIENCE).unwrap());
}

fn environment() {
    fn variables(keys: Vec<String>) -> Vec<Option<Vec<u8>>> {
        use std::os::unix::ffi::OsStringExt as _;
        keys.into_iter().map(|key| std::env::var_os(key).map(|value| value.into_vec())).collect()
    }
    let keys = ["OUTLAST_TEST_A", "OUTLAST_TEST_B", "OUTLAST_TEST_C", "PATH"].map(str::to_owned);
    let process = Process::builder(variables)
        .env("OUTLAST_TEST_A", "blue")
        .env(std::ffi::OsString::from("OUTLAST_TEST_B"), "")
        .env(
            "OUTLAST_TEST_C",
            std::os::unix::ffi::OsStrExt::from_bytes(&b"\xff"[..]) as &std::ffi::OsStr,
        )
        .spawn(keys.to_vec())
        .unwrap();
    let path = std::env::var("PATH").ok().map(String::into_bytes);
    let values = [Some(b"blue".to_vec()), Some(Vec::new()), Some(vec![0xff]), path];
    assert_eq!(process.join().unwrap(), values);
    for (key, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
        let error = Process::builder(double).env(key, value).spawn(1).unwrap_err();
        assert!(matches!(error, SpawnError::Io(_)), "{error}");
    }
    let error = Process::builder(double).env("a", "x".repeat(20_000)).spawn(1).unwrap_err();
    assert!(matches!(error, SpawnError::TooManyShared), "{error}");
}

type Side = Connection<Shared<Pipe>>;

fn pipe() -> (Shared<Pipe>, Side) {
    let pipe = Shared::<Pipe>::with_capacity(4096).unwrap();
    let first = pipe.first().unwrap();
    (pipe, first)
}

/// Longer than a sentinel takes to look whether owners exist.
const LONG: u64 = 1_500;

fn an_end_is_handed_over() {
    fn answers(key: String) -> Vec<u8> {
        std::thread::sleep(ms(LONG));
        let end = Side::inherited(&key).unwrap();
        // It is taken once, and under its own key only.
        assert!(matches!(Side::inherited(&key), Err(OpenError::NotInherited)));
        assert!(matches!(Side::inherited("other"), Err(OpenError::NotInherited)));
        end.send_bytes(b"here").unwrap();
        let answer = end.recv_bytes().unwrap();
        // The stand-in has ended. The end of this process stays.
        std::thread::sleep(ms(LONG));
        end.send_bytes(b"still here").unwrap();
        answer
    }
    let (pipe, first) = pipe();
    let builder = Process::builder(answers).hand_over("the side", pipe.second().unwrap());
    assert_eq!(first.recv_bytes_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    let process = builder.spawn(String::from("the side")).unwrap();
    assert_eq!(first.recv_bytes_timeout(ms(LONG / 2)), Err(RecvTimeoutError::TimedOut));
    assert_eq!(first.recv_bytes(), Ok(b"here".to_vec()));
    first.send_bytes(b"and there").unwrap();
    assert_eq!(first.recv_bytes(), Ok(b"still here".to_vec()));
    assert_eq!(process.join().unwrap(), b"and there");
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
}

fn both_ends_of_a_ring_are_handed_over() {
    fn produces(to: u64) {
        std::thread::sleep(ms(LONG));
        assert!(matches!(Consumer::<u64>::inherited("end"), Err(OpenError::NotInherited)));
        let end = Producer::<u64>::inherited("end").unwrap();
        assert!(!end.predecessor_died());
        (2..to).for_each(|n| end.send(n).unwrap());
        end.ring().close();
    }
    fn sums((): ()) -> u64 {
        let end = Consumer::<u64>::inherited("end").unwrap();
        assert!(!end.predecessor_died());
        std::iter::from_fn(|| end.recv().ok()).sum()
    }
    let ring = Shared::<Ring<u64>>::with_capacity(4).unwrap();
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.send_batch(&[0, 1]).unwrap();
    let produces = Process::builder(produces).hand_over("end", producer);
    // It is the stand-in's, and then the process's.
    assert!(ring.producer_timeout(ms(LONG)).is_err());
    let produces = produces.spawn(1_000).unwrap();
    let sums = Process::builder(sums).hand_over("end", consumer).spawn(()).unwrap();
    assert!(ring.try_producer().is_err() && ring.try_consumer().is_err());
    assert_eq!(sums.join().unwrap(), 499_500);
    produces.join().unwrap();
    assert!(ring.producer_timeout(runner::PATIENCE).is_ok());
    assert!(ring.consumer_timeout(runner::PATIENCE).is_ok());

    // The other end is told of a death on the way once, and waits for the successor then.
    let ring = Shared::<Ring<u64>>::with_capacity(4).unwrap();
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let process = Process::builder(forever).hand_over("end", producer).spawn(()).unwrap();
    assert_eq!(consumer.recv_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    process.kill().unwrap();
    assert_eq!(consumer.recv(), Err(RecvError::PeerDied));
    let producer = ring.try_producer().unwrap();
    assert!(producer.predecessor_died());
    // An end that is given back is no death.
    drop(Process::builder(forever).hand_over("end", producer));
    let producer = ring.producer_timeout(runner::PATIENCE).unwrap();
    assert!(!producer.predecessor_died());
    producer.send(7).unwrap();
    assert_eq!(consumer.recv(), Ok(7));
}

fn an_end_that_is_not_taken() {
    let (pipe, first) = pipe();
    let second = || pipe.second().unwrap();
    let process = Process::builder(forever).hand_over("side", second()).spawn(()).unwrap();
    assert_eq!(first.recv_bytes_timeout(ms(LONG)), Err(RecvTimeoutError::TimedOut));
    process.kill().unwrap();
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // A function that returns without taking it.
    let process = Process::builder(double).hand_over("side", second()).spawn(1).unwrap();
    assert_eq!(process.join().unwrap(), 2);
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // No process is started.
    drop(Process::builder(double).hand_over("side", second()));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    let refused = Process::builder(double).hand_over("side", second()).env("", "").spawn(1);
    assert!(matches!(refused, Err(SpawnError::Io(_))));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    // A part of a segment has no descriptor.
    let part = pipe.project(|pipe| pipe).second().unwrap();
    let refused = Process::builder(double).hand_over("side", part).spawn(1);
    assert!(matches!(refused, Err(SpawnError::Io(_))));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
}

fn takes_its_end_late((): ()) {
    std::thread::sleep(ms(LONG));
    Side::inherited("side").unwrap().send_bytes(b"here").unwrap();
}

fn play_hands_over() {
    use std::io::Write as _;
    let pipe = Shared::<Pipe>::inherited("pipe").unwrap();
    let builder = Process::builder(takes_its_end_late).detached(true);
    let process = builder.hand_over("side", pipe.second().unwrap()).spawn(()).unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "{}", process.pid()).unwrap();
    forever(());
}

/// A detached process takes its end although its owner is dead.
fn an_end_whose_owner_is_killed() {
    use outlast::CommandExt as _;
    let (pipe, first) = pipe();
    let mut command = part("hands_over");
    let mut owner = command.share("pipe", &pipe).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut line).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(first.recv_bytes_timeout(runner::PATIENCE), Ok(b"here".to_vec()));
    assert_eq!(first.recv_bytes(), Err(RecvError::Disconnected));
    let process: u32 = line.trim().parse().unwrap();
    eventually("the detached process has ended", || !runs(process));
}

fn takes_its_end((): ()) {
    drop(Side::inherited("side"));
}

fn play_hands_over_again_and_again() {
    let pipe = Shared::<Pipe>::inherited("pipe").unwrap();
    loop {
        let builder = Process::builder(takes_its_end).hand_over("side", pipe.second().unwrap());
        builder.spawn(()).unwrap().join().unwrap();
    }
}

/// Each owner is killed at another moment: before it hands the end over, on the way, or after it.
fn owners_that_are_killed_while_they_hand_over() {
    use outlast::CommandExt as _;
    let start = |_| {
        let (pipe, first) = pipe();
        drop(pipe.second().unwrap()); // from now on, a side without a holder is disconnected
        let owner = part("hands_over_again_and_again").share("pipe", &pipe).spawn().unwrap();
        (owner, first)
    };
    let mut owners: Vec<_> = (0..20).map(start).collect();
    std::thread::sleep(ms(300));
    for (owner, _) in &mut owners {
        std::thread::sleep(Duration::from_micros(u64::from(owner.id()) * 37 % 3_000));
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
    for (_, first) in &owners {
        let end = first.recv_bytes_timeout(runner::PATIENCE);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected));
    }
}
