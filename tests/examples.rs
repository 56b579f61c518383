//! The examples that check their own outcome, also with their workers killed. (`checksum` and
//! `custom_pool` have tests of their own.)
mod built;

use built::built;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Nothing here takes a tenth of this.
const TOO_LONG: Duration = Duration::from_secs(120);

#[test]
fn analysis() {
    for workers in ["1", "3"] {
        let text = succeeds("analysis", &["--millions", "1", "--workers", workers]);
        assert!(text.contains("of 1000000 numbers: the same bits as alone"), "{text}");
        assert_eq!(lost(&text), 0, "{text}");
        // It is told; what it is, is for a benchmark.
        let told =
            text.split_once(" times as fast").and_then(|(before, _)| before.rsplit_once('('));
        let speed_up = told.and_then(|(_, number)| number.parse::<f64>().ok());
        assert!(speed_up.is_some_and(|times| times > 0.0), "{text}");
    }
}

#[test]
fn analysis_with_workers_killed() {
    let args = ["--millions", "10", "--workers", "3", "--kill-one-every-ms", "10"];
    let text = succeeds("analysis", &args);
    assert!(text.contains("of 10000000 numbers: the same bits as alone"), "{text}");
    assert!(lost(&text) > 0, "{text}");
}

#[test]
fn pipeline() {
    let text = succeeds("pipeline", &["--items", "5000", "--workers", "2"]);
    assert!(text.contains("all 5000 items came out once"), "{text}");
    assert_eq!(lost(&text), 0, "{text}");
}

#[test]
fn pipeline_with_stages_killed() {
    let text = succeeds("pipeline", &["--items", "100000", "--kill-one-every-ms", "5"]);
    assert!(text.contains("all 100000 items came out once"), "{text}");
    assert!(lost(&text) > 0, "{text}");
}

#[test]
fn game_server() {
    let text = succeeds("game_server", &["--moves", "50"]);
    assert!(text.contains("200 players made 10000 moves"), "{text}");
    assert_eq!(lost(&text), 0, "{text}");
}

#[test]
fn game_server_with_servers_killed() {
    let args = ["--moves", "100", "--workers", "4", "--kill-one-every-ms", "20"];
    let text = succeeds("game_server", &args);
    assert!(text.contains("200 players made 20000 moves"), "{text}");
    assert!(lost(&text) > 0, "{text}");
}

/// Poisonous pages cost workers, be they killed besides or not.
#[test]
fn crawler() {
    let text = succeeds("crawler", &["--pages", "400", "--workers", "4"]);
    assert!(text.contains("397 pages in"), "{text}");
    assert_eq!(lost(&text), 4 * 12, "{text}");
}

#[test]
fn crawler_with_workers_killed() {
    let args = ["--pages", "400", "--workers", "4", "--kill-one-every-ms", "50"];
    let text = succeeds("crawler", &args);
    assert!(text.contains("397 pages in"), "{text}");
    assert!(lost(&text) > 4 * 12, "{text}");
}

#[test]
fn async_workers() {
    let text = succeeds("async_workers", &[]);
    for line in [
        "148933 primes below 2,000,000",
        "168 primes below 1,000, after a crash",
        "a panic, at examples/async_workers.rs:",
        ": 41 is not what it should be",
        "given up: true; Err(Cancelled)",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let (_, ticks) = text.split_once("ticked ").unwrap();
    let ticks: u64 = ticks.split(' ').next().unwrap().parse().unwrap();
    // A tokio interval makes up for late ticks.
    assert!(ticks >= 60, "of the 600 ms that it waits at least: {text}");
    assert!(lost(&text) >= 2, "{text}");
}

#[test]
fn misuse() {
    for args in [&["--workers", "0"][..], &["--workers"], &["--nonsense", "1"], &["--workers", "x"]]
    {
        for example in ["analysis", "pipeline", "game_server", "crawler"] {
            let output = run(example, args);
            assert_eq!(output.status.code(), Some(1), "{example} {args:?}");
            assert!(!output.stderr.is_empty(), "{example} {args:?}");
        }
    }
}

/// What the example printed.
#[track_caller]
fn succeeds(example: &str, args: &[&str]) -> String {
    let output = run(example, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{example} {args:?}: {text}{errors}");
    text
}

fn run(example: &str, args: &[&str]) -> Output {
    let mut command = Command::new(built(example));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    // It prints less than a pipe holds.
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > TOO_LONG {
            child.kill().unwrap();
            panic!("{example} {args:?} hangs");
        }
        sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// How many workers were lost.
#[track_caller]
fn lost(text: &str) -> u64 {
    let (_, rest) = text.split_once("workers lost: ").expect("a number");
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}
