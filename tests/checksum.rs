//! The example `checksum` against `find`, `sort` and `sha256sum`, also with its workers killed, and its ends.
mod built;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing here takes a tenth of this.
const TOO_LONG: Duration = Duration::from_secs(120);
/// Reading this many bytes takes a worker some 40 milliseconds, in either build.
const SLOW: u64 = if cfg!(debug_assertions) { 2 << 20 } else { 48 << 20 };

#[test]
fn one_worker() {
    same_as_sha256sum(&odd_tree(), &["--workers", "1"]);
}

#[test]
fn two_workers() {
    same_as_sha256sum(&odd_tree(), &["--workers=2"]);
}

#[test]
fn eight_workers() {
    same_as_sha256sum(&odd_tree(), &["--workers", "8"]);
}

#[test]
fn killed_workers() {
    let tree = odd_tree();
    slow_files(tree.path(), 10);
    for workers in ["1", "2", "8"] {
        let args = ["--workers", workers, "--kill-one-every-ms", "20"];
        let summary = same_as_sha256sum(&tree, &args);
        assert!(!summary.contains("workers lost: 0"), "{workers} workers: {summary}");
    }
}

/// Paths as `find` prints them, whatever form the folder is given in.
#[test]
fn forms_of_the_folder() {
    let tree = TempDir::new().unwrap();
    fs::create_dir_all(tree.path().join("a/b")).unwrap();
    fs::write(tree.path().join("a/b/file"), "text").unwrap();
    symlink("a", tree.path().join("link")).unwrap();
    for dir in [".", "a", "a/", "a//", "./a/b/", "a/b/file", "link", "link/"] {
        let run = Run::start(&[dir], tree.path());
        assert_eq!(run.finish().0.code(), Some(0), "{dir}");
        assert_eq!(run.stdout(), sha256sum(dir, tree.path()), "{dir}");
    }
    let run = Run::start(&[], tree.path());
    assert_eq!(run.finish().0.code(), Some(0));
    assert_eq!(run.stdout(), sha256sum(".", tree.path()));
}

/// A file that nobody can open is an error, and the others are read all the same.
#[test]
fn a_path_longer_than_the_system_takes() {
    let tree = odd_tree();
    let name = "d".repeat(250);
    let deeper =
        format!("for i in $(seq 17); do mkdir {name} && cd -P {name}; done; echo x > file");
    assert!(sh(&deeper, tree.path()).success());
    let run = Run::start(&["."], tree.path());
    let (status, errors) = run.finish();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("File name too long"), "{errors}");
    assert_eq!(run.stdout(), sha256sum(".", tree.path()));
}

#[test]
fn misuse() {
    let anywhere = Path::new("/");
    for args in [
        &["--workers", "0"][..],
        &["--workers", "129"],
        &["--workers"],
        &["--kill-one-every-ms=x"],
        &["--nonsense"],
        &["a", "b"],
    ] {
        let (status, errors) = Run::start(args, anywhere).finish();
        assert_eq!(status.code(), Some(2), "{args:?}: {errors}");
    }
    let (status, errors) = Run::start(&["/does/not/exist"], anywhere).finish();
    assert_eq!(status.code(), Some(1), "{errors}");
}

/// As `checksum | head`.
#[test]
fn a_reader_that_leaves() {
    let tree = odd_tree();
    let mut child =
        Command::new(example()).arg(tree.path()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn interrupted() {
    let tree = TempDir::new().unwrap();
    slow_files(tree.path(), 200);
    for signal in ["INT", "TERM"] {
        let run = Run::start(&["--workers", "4"], tree.path());
        let parent = run.wait_for_workers(4);
        // To the whole group, as the terminal does.
        assert!(sh(&format!("kill -s {signal} -- -{parent}"), tree.path()).success());
        let (status, errors) = run.finish();
        assert_eq!(status.code(), Some(130), "{signal}: {errors}");
        assert!(errors.contains("interrupted"), "{signal}: {errors}");
        assert_eq!(run.stdout(), b"", "{signal}");
        assert_eq!(workers_of(parent), [0; 0], "{signal}");
    }
}

/// Nobody can stop the workers then, and they end all the same.
#[test]
fn killed_parent() {
    let tree = TempDir::new().unwrap();
    slow_files(tree.path(), 200);
    let run = Run::start(&["--workers", "4"], tree.path());
    let parent = run.wait_for_workers(4);
    assert!(sh(&format!("kill -s KILL {parent}"), tree.path()).success());
    assert_eq!(run.finish().0.code(), None);
    let start = Instant::now();
    while !workers_of(parent).is_empty() {
        assert!(start.elapsed() < TOO_LONG, "orphans: {:?}", workers_of(parent));
        sleep(Duration::from_millis(10));
    }
}

/// Compares the output byte for byte; gives what the example wrote to stderr.
#[track_caller]
fn same_as_sha256sum(tree: &TempDir, args: &[&str]) -> String {
    let run = Run::start(&[args, &["."]].concat(), tree.path());
    let (status, errors) = run.finish();
    assert_eq!(status.code(), Some(0), "{errors}");
    let (ours, theirs) = (run.stdout(), sha256sum(".", tree.path()));
    assert!(theirs.len() > 20_000, "the comparison compares nothing");
    if ours != theirs {
        let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
        let differ = ours.split(|&b| b == b'\n').zip(theirs.split(|&b| b == b'\n'));
        let first = differ
            .map(|(a, b)| (String::from_utf8_lossy(a), String::from_utf8_lossy(b)))
            .find(|(a, b)| a != b);
        panic!("{} lines for {}, first difference: {first:?}", lines(&ours), lines(&theirs));
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
/// Some 350 files: empty, small, one of 6 MiB; names that are hard to print or to sort; things that are no files.
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
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        };
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
        bytes.truncate(len);
        bytes
    }
}

// -------------------------------------------------------------- the processes
/// One run of the example, in a process group of its own.
struct Run {
    child: RefCell<Child>,
    stdout: File,
    stderr: File,
}

impl Run {
    fn start(args: &[&str], inside: &Path) -> Self {
        // Files, since a pipe that nobody reads fills up.
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let child = Command::new(example())
            .args(args)
            .current_dir(inside)
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        Run { child: child.into(), stdout, stderr }
    }

    /// The status, and what was written to stderr.
    fn finish(&self) -> (ExitStatus, String) {
        let status = wait(&mut self.child.borrow_mut());
        (status, String::from_utf8_lossy(&content(&self.stderr)).into_owned())
    }

    fn stdout(&self) -> Vec<u8> {
        content(&self.stdout)
    }

    /// Returns when that many are at work; gives the parent's id.
    fn wait_for_workers(&self, number: usize) -> u32 {
        let parent = self.child.borrow().id();
        let start = Instant::now();
        while workers_of(parent).len() < number {
            assert!(start.elapsed() < TOO_LONG, "no workers");
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(50));
        parent
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        child.kill().and_then(|()| child.wait()).ok();
    }
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

/// The ids of the living workers that a process started, be it alive or not.
fn workers_of(parent: u32) -> Vec<u32> {
    let command = format!("\0--worker\0{parent}\0");
    let of_process = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let started_as = fs::read(entry.path().join("cmdline")).ok()?;
        started_as.ends_with(command.as_bytes()).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| of_process(entry.ok()?)).collect()
}

fn example() -> PathBuf {
    built::built("checksum")
}
