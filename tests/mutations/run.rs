//! Plants the faults one after the other in a copy of the repository.
//!
//! One thread builds the copy. Other threads run copies of the programs that it has built, so a
//! test that hangs holds up no other. After a test, all processes that it has started are killed.
#![expect(unsafe_code, reason = "kills what the tests leave behind")]
use crate::plan::{Build, Mutation, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The environment variable by which the runner recognises the processes of a test.
const MARK: &str = "OUTLAST_MUTANT";
/// With this variable, the program is the compiler of the copy: see [`compile_if_asked`].
const FLAGS: &str = "OUTLAST_MUTANT_FLAGS";
/// A test counts as hanging after ten times the time that it takes on the unchanged sources, and
/// this in addition.
const GRACE: Duration = Duration::from_secs(20);
/// How often a test is run before a fault counts as survived: a test may notice a fault by chance
/// only. A model is run once, since it leaves nothing to chance.
const TRIES: usize = 3;

/// Which faults are planted.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// The part, and the number of parts.
    part: Option<(usize, usize)>,
    /// Parts of the names or files of faults. None selects all.
    names: Vec<String>,
}

impl Selection {
    pub(crate) fn parse(arguments: &[String]) -> Result<Selection, String> {
        let mut selection = Selection::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--part" {
                let numbers = arguments.next().and_then(|part| part.split_once('/'));
                let part = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
                let usable = part.filter(|&(_, n): &(usize, usize)| n > 0);
                selection.part = Some(usable.ok_or("--part is to be followed by I/N")?);
            } else {
                selection.names.push(argument.clone());
            }
        }
        Ok(selection)
    }

    /// The selected faults that tests can notice, sorted by build and test program. The number of
    /// the part wraps around, so the number of a day or of a commit can be given.
    fn of<'a>(&self, all: &[&'a Mutation]) -> Vec<&'a Mutation> {
        let is_meant = |mutation: &Mutation| {
            let fits = |name: &String| mutation.name.contains(name) || mutation.file.contains(name);
            self.names.is_empty() || self.names.iter().any(fits)
        };
        let mut chosen: Vec<&Mutation> =
            all.iter().copied().filter(|mutation| is_meant(mutation)).collect();
        chosen.retain(|mutation| group(mutation).is_some());
        chosen.sort_by_key(|mutation| (group(mutation), mutation.file, mutation.name));
        if let Some((i, n)) = self.part {
            let (i, len) = (i % n, chosen.len());
            chosen = chosen[i * len / n..(i + 1) * len / n].to_vec();
        }
        chosen
    }
}

/// The build and the test program of a fault; `None` for one that no test can notice.
fn group(mutation: &Mutation) -> Option<(Build, &'static str)> {
    match mutation.outcome {
        Outcome::Caught { build, target, .. } => Some((build, target)),
        Outcome::Equivalent(_) => None,
    }
}

fn tests_of(mutation: &Mutation) -> &'static [&'static str] {
    match mutation.outcome {
        Outcome::Caught { tests, .. } => tests,
        Outcome::Equivalent(_) => &[],
    }
}

/// A test program with a fault.
struct Mutant<'a> {
    mutation: &'a Mutation,
    build: Build,
    /// How long each of its tests takes without the fault.
    usual: Vec<Duration>,
    program: PathBuf,
}

pub(crate) fn run(root: &Path, all: &[&Mutation], selection: &Selection) -> ExitCode {
    let began = Instant::now();
    let chosen = selection.of(all);
    let workshop = Workshop::new(root);
    let (passed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let say = |mutation: &Mutation, verdict: Result<String, String>| {
        let (count, text) = match &verdict {
            Ok(text) => (&passed, text),
            Err(text) => (&failed, text),
        };
        count.fetch_add(1, Relaxed);
        print(&format!("{} [{}]: {text}", mutation.name, mutation.file));
    };
    // Most tests sleep or hang, and leave the CPUs to others.
    let runners = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let (ready, built) = sync_channel::<Mutant<'_>>(1);
    let built = Mutex::new(built);
    let groups: BTreeSet<_> = chosen.iter().filter_map(|mutation| group(mutation)).collect();
    std::thread::scope(|scope| {
        for _ in 0..runners {
            scope.spawn(|| {
                let next = || built.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
                while let Some(mutant) = next() {
                    say(mutant.mutation, workshop.judge(&mutant));
                    fs::remove_file(&mutant.program).unwrap();
                }
            });
        }
        for (build, target) in groups {
            let of_group: Vec<&Mutation> = chosen
                .iter()
                .copied()
                .filter(|mutation| group(mutation) == Some((build, target)))
                .collect();
            let usual = workshop.usual(build, target, &of_group);
            for mutation in of_group {
                match workshop.make(mutation, build, target, &usual) {
                    Ok(mutant) => ready.send(mutant).unwrap(),
                    Err(error) => say(mutation, Err(error)),
                }
            }
        }
        drop(ready);
    });
    let equivalent = all.iter().filter(|mutation| group(mutation).is_none()).count();
    let (passed, failed) = (passed.into_inner(), failed.into_inner());
    print(&format!(
        "\nmutations: {passed} passed; {failed} failed; {equivalent} equivalent ones not planted; \
         {} s\n",
        began.elapsed().as_secs()
    ));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the compiler with further flags, if the program was started for that: it is the wrapper for
/// the crates of the workspace. What they depend on is compiled without, and so need not be built
/// once more. Returns only if it was not, or if the compiler does not run.
pub(crate) fn compile_if_asked() -> Option<io::Error> {
    let flags = std::env::var(FLAGS).ok()?;
    let mut arguments = std::env::args_os().skip(1);
    let compiler = arguments.next()?;
    Some(Command::new(compiler).args(arguments).args(flags.split_whitespace()).exec())
}

fn print(line: &str) {
    let mut out = io::stdout();
    writeln!(out, "{line}").unwrap();
}

/// The copy of the repository, and the folder of its builds.
struct Workshop {
    copy: PathBuf,
    folder: PathBuf,
    /// Numbers files and processes.
    runs: AtomicUsize,
    _lock: File,
}

impl Workshop {
    fn new(root: &Path) -> Workshop {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
        let copy = folder.join("copy");
        fs::create_dir_all(&copy).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        // SAFETY: takes no pointers.
        let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        assert_eq!(locked, 0, "another run uses {}", folder.display());
        let tracked = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
        let tracked = tracked.expect("git lists the files").stdout;
        let mut files = BTreeSet::new();
        for name in tracked.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            // A file that was deleted is tracked until the next commit.
            let Ok(text) = fs::read(root.join(name)) else { continue };
            let to = copy.join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            // A file that has not changed keeps its time, so that it is not built again.
            if fs::read(&to).ok().as_ref() != Some(&text) {
                fs::write(&to, text).unwrap();
            }
            files.insert(to);
        }
        assert!(!files.is_empty(), "no file is tracked");
        let program = std::env::current_exe().expect("a path");
        for build in ["ordinary", "hooks", "loom"] {
            let wrapper = folder.join(build);
            fs::remove_file(&wrapper).ok();
            std::os::unix::fs::symlink(&program, &wrapper).unwrap();
        }
        remove_others(&copy, &files);
        Workshop { copy, folder, runs: AtomicUsize::new(0), _lock: lock }
    }

    /// Builds a test program. The error is the compiler's output.
    fn build(&self, build: Build, target: &str) -> Result<PathBuf, String> {
        let features = ["--features", "pool log tracing"];
        // The model has dependencies of its own, for which the flag is everybody's.
        let (all, flags, wrapper, folder, arguments) = match build {
            Build::Ordinary => ("", "", "ordinary", ".", features),
            Build::Hooks => ("", "--cfg outlast_hooks", "hooks", ".", features),
            Build::Loom => ("--cfg outlast_loom", "", "loom", "loom", ["--profile", "loom"]),
        };
        let targets = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target folder");
        let output = Command::new(env!("CARGO"))
            .args(["test", "--no-run", "--message-format", "json", "--test", target])
            .args(arguments)
            .arg("--target-dir")
            .arg(targets.join(folder))
            .current_dir(&self.copy)
            .env("RUSTFLAGS", all)
            .env("RUSTC_WORKSPACE_WRAPPER", self.folder.join(wrapper))
            // A fault may leave names unused.
            .env(FLAGS, format!("{flags} --cap-lints allow"))
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "none")
            .env("CARGO_PROFILE_LOOM_DEBUG", "none")
            // A mutant's model ends early: its build takes longer than its run.
            .env("CARGO_PROFILE_LOOM_OPT_LEVEL", "1")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .expect("cargo runs");
        let messages = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = messages.lines().filter_map(|line| text_after(line, "\"rendered\":\""));
            let errors: String = errors.collect();
            let last = String::from_utf8_lossy(&output.stderr);
            return Err(format!("does not compile\n{errors}{last}"));
        }
        let program = messages.lines().find_map(|line| text_after(line, "\"executable\":\""));
        program.map(PathBuf::from).ok_or_else(|| "no test program was built".to_owned())
    }

    /// How long each of the tests takes on the unchanged sources, or why it fails there.
    fn usual(
        &self,
        build: Build,
        target: &str,
        mutations: &[&Mutation],
    ) -> BTreeMap<&'static str, Result<Duration, String>> {
        let program = self.build(build, target);
        let tests: BTreeSet<&str> =
            mutations.iter().flat_map(|mutation| tests_of(mutation)).copied().collect();
        let time = |test| {
            let run = self.test(program.as_ref().map_err(Clone::clone)?, test, build, 4 * GRACE);
            let passed = run.status.is_some_and(|status| status.success());
            // A program without such a test succeeds too.
            if passed && run.log.contains(&format!("test {test} ... ")) {
                Ok(run.time)
            } else {
                Err(format!("{test} fails without the fault, or is not there\n{}", run.log))
            }
        };
        tests.into_iter().map(|test| (test, time(test))).collect()
    }

    /// Plants a fault, builds the program, and removes the fault.
    fn make<'a>(
        &self,
        mutation: &'a Mutation,
        build: Build,
        target: &str,
        usual: &BTreeMap<&str, Result<Duration, String>>,
    ) -> Result<Mutant<'a>, String> {
        let times = tests_of(mutation).iter().map(|test| usual[test].clone());
        let usual = times.collect::<Result<Vec<Duration>, String>>()?;
        let file = self.copy.join(mutation.file);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, mutation.planted(&text)?).unwrap();
        let program = self.build(build, target);
        fs::write(&file, text).unwrap();
        let program = program?;
        let number = self.runs.fetch_add(1, Relaxed);
        // Tests look beside their program for the examples that cargo has built.
        let copy = program.with_file_name(format!("mutant-{}-{number}", std::process::id()));
        fs::copy(&program, &copy).unwrap();
        Ok(Mutant { mutation, build, usual, program: copy })
    }

    /// Runs the mutant's tests. All of them must fail.
    fn judge(&self, mutant: &Mutant<'_>) -> Result<String, String> {
        let tries = if mutant.build == Build::Loom { 1 } else { TRIES };
        let mut words = Vec::new();
        for (test, usual) in tests_of(mutant.mutation).iter().zip(&mutant.usual) {
            let caught = (1..=tries).find_map(|try_| {
                let run = self.test(&mutant.program, test, mutant.build, *usual * 10 + GRACE);
                let how = match run.status {
                    Some(status) if status.success() => return None,
                    Some(_) => "",
                    None => ", which hung",
                };
                let again = if try_ == 1 { "" } else { ", not at the first try" };
                Some(format!("{test} in {:.1} s{how}{again}", run.time.as_secs_f64()))
            });
            match caught {
                Some(caught) => words.push(caught),
                None => return Err(format!("SURVIVED {test}: {}", mutant.mutation.rule)),
            }
        }
        Ok(format!("caught by {}", words.join(", ")))
    }

    /// Runs one test, and kills all processes that it leaves behind.
    fn test(&self, program: &Path, test: &str, build: Build, limit: Duration) -> Run {
        let number = self.runs.fetch_add(1, Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let log = self.folder.join(format!("log-{mark}"));
        let out = File::create(&log).unwrap();
        let mut command = Command::new(program);
        command.args([test, "--exact"]).current_dir(&self.copy).env(MARK, &mark).process_group(0);
        if build == Build::Loom {
            command.env("LOOM_MAX_PREEMPTIONS", "2");
        }
        command.stdin(std::process::Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
        let began = Instant::now();
        let mut child = command.spawn().expect("the test program runs");
        let mut status = None;
        while status.is_none() && began.elapsed() < limit {
            status = child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        let time = began.elapsed();
        kill_marked(&mark);
        child.wait().unwrap();
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        fs::remove_file(&log).unwrap();
        Run { status, time, log: text }
    }
}

/// The outcome of one test.
struct Run {
    /// `None` if it was killed because it hung.
    status: Option<ExitStatus>,
    time: Duration,
    log: String,
}

/// Kills all processes that have this mark in their environment.
fn kill_marked(mark: &str) {
    let variable = format!("{MARK}={mark}");
    loop {
        let mut found = false;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<libc::pid_t>().ok()) else {
                continue;
            };
            // The environment of a zombie is empty.
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes()) {
                found = true;
                // SAFETY: takes no pointers.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The string that begins after `key` in a line of JSON.
fn text_after(line: &str, key: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = line.split_once(key)?.1.chars();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                'n' => text.push('\n'),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
}

/// Removes all files from the folder that are not among `files`.
fn remove_others(folder: &Path, files: &BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            remove_others(&path, files);
        } else if !files.contains(&path) {
            fs::remove_file(&path).unwrap();
        }
    }
}
