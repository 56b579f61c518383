//! The examples `checksum`, on a `Pool`, and `custom_pool` against `find`, `sort` and `sha256sum`,
//! also with their workers killed, and their ends.
#![expect(unsafe_code, reason = "signals")]
mod built;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing here takes a tenth of this.
const TOO_LONG: Duration = Duration::from_secs(120);
/// Summing this many bytes up takes a worker 25 to 100 milliseconds.
const SLOW: u64 = 48 << 20;

/// Each test for each of the two.
macro_rules! both {
    ($($test:ident)*) => {
        mod checksum { $( #[test] fn $test() { super::$test("checksum"); } )* }
        mod custom_pool { $( #[test] fn $test() { super::$test("custom_pool"); } )* }
    };
}

both! {
    one_worker two_workers eight_workers killed_workers forms_of_the_folder a_path_longer_than_the_system_takes
    misuse help a_reader_that_leaves interrupted interrupted_twice killed_parent
}

fn one_worker(program: &str) {
    same_as_sha256sum(program, &odd_tree(), &["--workers", "1"]);
}

fn two_workers(program: &str) {
    same_as_sha256sum(program, &odd_tree(), &["--workers=2"]);
}

fn eight_workers(program: &str) {
    same_as_sha256sum(program, &odd_tree(), &["--workers", "8"]);
}

fn killed_workers(program: &str) {
    let tree = odd_tree();
    // So many that a kill hits a worker, even if the program or a worker that is about to return a
    // sum has to wait for a CPU.
    slow_files(tree.path(), 12);
    let sums = sha256sum(".", tree.path());
    for workers in ["1", "2", "8"] {
        let args = ["--workers", workers, "--kill-one-every-ms", "5"];
        let summary = prints(&sums, program, &tree, &args);
        assert!(summary.contains("workers lost: "), "{workers} workers: {summary}");
        assert!(!summary.contains("workers lost: 0"), "{workers} workers: {summary}");
    }
}

/// Paths as `find` prints them, whatever form the folder is given in.
fn forms_of_the_folder(program: &str) {
    let tree = TempDir::new().unwrap();
    fs::create_dir_all(tree.path().join("a/b")).unwrap();
    fs::write(tree.path().join("a/b/file"), "text").unwrap();
    symlink("a", tree.path().join("link")).unwrap();
    for dir in [".", "a", "a/", "a//", "./a/b/", "a/b/file", "link", "link/"] {
        let run = Run::start(program, &[dir], tree.path());
        assert_eq!(run.finish().0.code(), Some(0), "{dir}");
        assert_eq!(run.stdout(), sha256sum(dir, tree.path()), "{dir}");
    }
    let run = Run::start(program, &[], tree.path());
    assert_eq!(run.finish().0.code(), Some(0));
    assert_eq!(run.stdout(), sha256sum(".", tree.path()));
}

/// A file that cannot be opened is an error, and the others are read all the same.
fn a_path_longer_than_the_system_takes(program: &str) {
    let tree = odd_tree();
    let name = "d".repeat(250);
    let deeper =
        format!("for i in $(seq 17); do mkdir {name} && cd -P {name}; done; echo x > file");
    assert!(sh(&deeper, tree.path()).success());
    let run = Run::start(program, &["."], tree.path());
    let (status, errors) = run.finish();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("File name too long"), "{errors}");
    assert_eq!(run.stdout(), sha256sum(".", tree.path()));
}

fn misuse(program: &str) {
    let anywhere = Path::new("/");
    for args in [
        &["--workers", "0"][..],
        &["--workers", "129"],
        &["--workers"],
        &["--kill-one-every-ms=x"],
        &["--nonsense"],
        &["a", "b"],
    ] {
        let (status, errors) = Run::start(program, args, anywhere).finish();
        assert_eq!(status.code(), Some(2), "{args:?}: {errors}");
    }
    let (status, errors) = Run::start(program, &["/does/not/exist"], anywhere).finish();
    assert_eq!(status.code(), Some(1), "{errors}");
}

fn help(program: &str) {
    let run = Run::start(program, &["--help"], Path::new("/"));
    assert_eq!(run.finish().0.code(), Some(0));
    assert!(String::from_utf8(run.stdout()).unwrap().contains("--kill-one-every-ms"));
}

/// As `checksum | head`.
fn a_reader_that_leaves(program: &str) {
    let tree = odd_tree();
    let mut child = Command::new(built::built(program))
        .arg(tree.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
}

/// The files at hand are done, and no more; nothing is printed.
fn interrupted(program: &str) {
    let tree = TempDir::new().unwrap();
    slow_files(tree.path(), 200);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let run = Run::start(program, &["--workers", "4"], tree.path());
        run.wait_for_workers(4);
        run.signal_group(signal);
        let (status, errors) = run.finish();
        assert_eq!(status.signal(), Some(signal), "{errors}");
        assert!(errors.contains("interrupted after "), "{signal}: {errors}");
        assert!(errors.contains("workers lost: 0"), "{signal}: {errors}");
        assert_eq!(run.stdout(), b"", "{signal}");
        run.leaves_nobody();
    }
}

/// A user who interrupts twice does not want to wait for a file that never ends.
fn interrupted_twice(program: &str) {
    let tree = TempDir::new().unwrap();
    File::create(tree.path().join("endless")).unwrap().set_len(1 << 40).unwrap();
    let run = Run::start(program, &["--workers", "2"], tree.path());
    run.wait_for_workers(1);
    run.signal_group(libc::SIGINT);
    sleep(Duration::from_millis(200));
    assert!(run.child.borrow_mut().try_wait().unwrap().is_none());
    run.signal_group(libc::SIGINT);
    let (status, errors) = run.finish();
    assert_eq!((status.signal(), errors.as_str()), (Some(libc::SIGINT), ""));
    if program == "checksum" {
        run.leaves_nobody(); // of its own, a worker looks after a file only
    } else {
        run.members().into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
    }
}

/// The program is killed and cannot stop its workers, which end all the same.
fn killed_parent(program: &str) {
    let tree = TempDir::new().unwrap();
    slow_files(tree.path(), 200);
    let run = Run::start(program, &["--workers", "4"], tree.path());
    run.wait_for_workers(4);
    run.child.borrow_mut().kill().unwrap();
    assert_eq!(run.finish().0.code(), None);
    run.leaves_nobody();
}

/// Compares the output byte for byte. Returns what the example wrote to stderr.
#[track_caller]
fn same_as_sha256sum(program: &str, tree: &TempDir, args: &[&str]) -> String {
    prints(&sha256sum(".", tree.path()), program, tree, args)
}

/// Asserts that the program prints `theirs`. Returns what it wrote to stderr.
#[track_caller]
fn prints(theirs: &[u8], program: &str, tree: &TempDir, args: &[&str]) -> String {
    let run = Run::start(program, &[args, &["."]].concat(), tree.path());
    let (status, errors) = run.finish();
    assert_eq!(status.code(), Some(0), "{errors}");
    let ours = run.stdout();
    assert!(theirs.len() > 20_000, "the comparison compares nothing");
    if ours != theirs {
        let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
        let differ = ours.split(|&b| b == b'\n').zip(theirs.split(|&b| b == b'\n'));
        let first = differ
            .map(|(a, b)| (String::from_utf8_lossy(a), String::from_utf8_lossy(b)))
            .find(|(a, b)| a != b);
        panic!("{} lines for {}, first difference: {first:?}", lines(&ours), lines(theirs));
    }
    errors
}

fn sha256sum(dir: &str, inside: &Path) -> Vec<u8> {
    let pipe = "find \"$0\" -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum";
    let output = Command::new("sh").args(["-c", pipe, dir]).current_dir(inside).output().unwrap();
    output.stdout
}

fn sh(script: &str, inside: &Path) -> ExitStatus {
    Command::new("sh").args(["-c", script]).current_dir(inside).status().unwrap()
}

// ------------------------------------------------------------------ the trees
/// Some 350 files: empty, small, one of 6 MiB; names that are hard to print or to sort; things that
/// are no files.
fn odd_tree() -> TempDir {
    let tree = TempDir::new().unwrap();
    let root = tree.path();
    let mut bytes = Noise(0x9e37_79b9_7f4a_7c15);
    for i in 0..300_usize {
        let folder = root.join(format!("{}/{}", i % 7, i % 13));
        fs::create_dir_all(&folder).unwrap();
        let size = if i % 10 == 0 { 0 } else { i * i };
        fs::write(folder.join(format!("file {i}")), bytes.take(size)).unwrap();
    }
    fs::write(root.join("large"), bytes.take(6 << 20)).unwrap();
    let names: [&[u8]; 20] = [
        b"sort-",
        b"sort.",
        b"sort0",
        b"Sort",
        b"sort ",
        b"-dash",
        b"--workers",
        b".hidden",
        b"new\nline",
        b"\nfirst",
        b"return\r",
        b"back\\slash",
        b"\\",
        b"tab\t",
        b"escape\x1b[31m",
        b"quotes'\"`",
        b"$HOME *?[]",
        b"\xff\xfe not UTF-8",
        "ß ∑ 🦀".as_bytes(),
        &[b'n'; 255],
    ];
    fs::create_dir(root.join("sort")).unwrap();
    for name in names {
        fs::write(root.join(OsStr::from_bytes(name)), bytes.take(100)).unwrap();
        fs::write(root.join("sort").join(OsStr::from_bytes(name)), bytes.take(10)).unwrap();
    }
    fs::create_dir(root.join("folder\nof lines")).unwrap();
    fs::write(root.join("folder\nof lines/x"), "x").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    symlink("large", root.join("link to a file")).unwrap();
    symlink(".", root.join("link in a circle")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    assert!(sh("mkfifo pipe", root).success());
    tree
}

/// Files that take a while each, and no room on the disk.
fn slow_files(folder: &Path, number: u64) {
    for i in 0..number {
        let mut file = File::create(folder.join(format!("slow {i}"))).unwrap();
        file.set_len(SLOW).unwrap();
        file.seek(SeekFrom::Start(i * 1_000)).unwrap();
        file.write_all(b"different").unwrap();
    }
}

struct Noise(u64);

impl Noise {
    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

// -------------------------------------------------------------- the processes
/// One run of a program, in a process group of its own.
struct Run {
    child: RefCell<Child>,
    /// All that it starts have this in their environment, too.
    mark: String,
    stdout: File,
    stderr: File,
}

impl Run {
    fn start(program: &str, args: &[&str], inside: &Path) -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let mark = format!("CHECKSUM_RUN={}-{}", std::process::id(), RUNS.fetch_add(1, Relaxed));
        // Files, since a pipe that is not read fills up.
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (variable, value) = mark.split_once('=').unwrap();
        let mut command = Command::new(built::built(program));
        command
            .args(args)
            .current_dir(inside)
            .env(variable, value)
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .process_group(0);
        let usual = || {
            // A shell may have started the tests in the background, away from Ctrl-C.
            // SAFETY: async-signal-safe; the usual action is no function.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: `usual` is async-signal-safe.
        unsafe { command.pre_exec(usual) };
        let child = command.spawn().unwrap().into();
        Run { child, mark, stdout, stderr }
    }

    /// The status, and what was written to stderr.
    fn finish(&self) -> (ExitStatus, String) {
        let status = wait(&mut self.child.borrow_mut());
        (status, String::from_utf8_lossy(&content(&self.stderr)).into_owned())
    }

    fn stdout(&self) -> Vec<u8> {
        content(&self.stdout)
    }

    /// To the whole group, as the terminal does.
    fn signal_group(&self, number: i32) {
        signal(-self.child.borrow().id().cast_signed(), number);
    }

    /// The ids of all living processes that belong to it.
    fn members(&self) -> Vec<i32> {
        let of_process = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|&byte| byte == 0)
                .any(|var| var == self.mark.as_bytes())
                .then_some(pid)
        };
        fs::read_dir("/proc").unwrap().filter_map(|entry| of_process(entry.ok()?)).collect()
    }

    /// Returns when that many are at work.
    fn wait_for_workers(&self, number: usize) {
        let is_worker = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let started_as = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.trim() == "outlast-worker"
                || started_as.windows(10).any(|part| part == b"\0--worker\0")
        };
        let start = Instant::now();
        while self.members().iter().filter(|&pid| is_worker(pid)).count() < number {
            assert!(start.elapsed() < TOO_LONG, "no workers");
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(50));
    }

    /// Returns when all have ended.
    fn leaves_nobody(&self) {
        let start = Instant::now();
        while !self.members().is_empty() {
            assert!(start.elapsed() < TOO_LONG, "orphans: {:?}", self.members());
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        child.kill().and_then(|()| child.wait()).ok();
    }
}

fn signal(pid: i32, number: i32) {
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > TOO_LONG {
            child.kill().unwrap();
            panic!("the example hangs");
        }
        sleep(Duration::from_millis(2));
    }
}
