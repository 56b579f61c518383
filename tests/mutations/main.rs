//! Faults planted in the sources, each with the tests that must notice it.
//!
//! ```text
//! cargo test --test mutations                              # checks the list, in a moment
//! cargo test --test mutations -- run                       # plants every fault in turn
//! cargo test --test mutations -- run --part 3/10           # plants the fourth tenth of the list
//! cargo test --test mutations -- run lock semaphore        # selects by name or file
//! ```
//!
//! A test that passes whatever the source says proves nothing. Each entry of the list breaks one
//! rule of the source. The runner changes a copy of the repository, builds it, and runs the tests
//! that the entry names. All of them must fail there, and pass on the unchanged copy. A fault that
//! its tests do not notice has *survived*. Then the rule needs a test, or the fault changes nothing
//! that a test could notice, and its entry says why (`equivalent`).
//!
//! # How to add an entry
//! Put the entry into the file of its area. `from` must be found exactly once in the source file.
//! White space in it matches any white space, so it may span several lines. Name the fastest test
//! that notices the fault. Then run it: `cargo test --test mutations -- run NAME`.
#![cfg(not(outlast_loom))]

mod lock;
mod peers;
mod plan;
mod pool;
mod queue;
mod run;
mod rwlock;
mod segments;
mod sync;
mod sys;
mod wait;

use plan::{Mutation, Outcome};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// The list, one file for each area.
const AREAS: [&[Mutation]; 9] = [
    wait::MUTATIONS,
    sys::MUTATIONS,
    segments::MUTATIONS,
    peers::MUTATIONS,
    lock::MUTATIONS,
    rwlock::MUTATIONS,
    sync::MUTATIONS,
    queue::MUTATIONS,
    pool::MUTATIONS,
];

fn main() -> ExitCode {
    if let Some(error) = run::compile_if_asked() {
        panic!("the compiler does not run: {error}");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all: Vec<&Mutation> = AREAS.into_iter().flatten().collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout();
    if arguments.iter().any(|argument| argument == "--list") {
        writeln!(out, "the_list_is_sound: test").unwrap();
        return ExitCode::SUCCESS;
    }
    let wrong = faults_of_the_list(root, &all);
    if !wrong.is_empty() {
        writeln!(out, "{}\n\n{} entries are wrong", wrong.join("\n"), wrong.len()).unwrap();
        return ExitCode::FAILURE;
    }
    match arguments.split_first() {
        Some((first, rest)) if first == "run" => match run::Selection::parse(rest) {
            Ok(selection) => run::run(root, &all, &selection),
            Err(error) => {
                writeln!(out, "{error}").unwrap();
                ExitCode::FAILURE
            }
        },
        _ => {
            let number = all.len();
            writeln!(out, "\n{number} mutations can be planted (`-- run` plants them)\n").unwrap();
            ExitCode::SUCCESS
        }
    }
}

/// Describes all that is wrong with the list.
fn faults_of_the_list(root: &Path, all: &[&Mutation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for mutation in all {
        let name = mutation.name;
        if !names.insert(name) {
            wrong.push(format!("{name}: there are two of this name"));
        }
        match std::fs::read_to_string(root.join(mutation.file)) {
            Ok(text) => {
                if let Err(error) = mutation.planted(&text) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {}: {error}", mutation.file)),
        }
        if mutation.rule.is_empty() {
            wrong.push(format!("{name}: no rule"));
        }
        match mutation.outcome {
            Outcome::Equivalent("") => {
                wrong.push(format!("{name}: no reason"));
            }
            Outcome::Equivalent(_) => {}
            Outcome::Caught { target, tests, .. } => {
                if tests.is_empty() {
                    wrong.push(format!("{name}: no test"));
                }
                for test in tests {
                    if !is_test(root, target, test) {
                        wrong.push(format!("{name}: {target} has no test `{test}`"));
                    }
                }
            }
        }
    }
    wrong
}

/// Whether the file of the test contains the test's name as a whole word.
fn is_test(root: &Path, target: &str, test: &str) -> bool {
    let tests = root.join("tests");
    let (modules, function) = test.rsplit_once("::").unwrap_or(("", test));
    let of_module = |module: &str| tests.join(target).join(format!("{module}.rs"));
    let mut files = vec![tests.join(format!("{target}.rs")), of_module("main")];
    files.extend(modules.split("::").map(of_module));
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).any(|text| {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == function)
    })
}
