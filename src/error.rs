//! Errors that more than one module gives.
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a segment could not be created, opened or attached to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No segment of this name, or one that nobody holds any more.
    #[error("no such segment")]
    NotFound,
    /// No segment of this name appeared in time.
    #[error("no such segment appeared in time")]
    TimedOut,
    /// A segment of this name is in use.
    #[error("a segment of this name already exists")]
    AlreadyExists,
    /// The owner or the mode of a file or directory forbids it.
    #[error("{}: {problem}", path.display())]
    PermissionDenied {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what can be done about it.
        problem: String,
    },
    /// The segment has a name and belongs to another user. Segments without a name can be handed to
    /// any user's processes.
    #[error("the named segment belongs to user {owner}, whose processes alone can use it")]
    OtherUser {
        /// The user id of the owner.
        owner: u32,
    },
    /// The name is empty, too long, starts with a dot, or holds a slash or NUL.
    #[error(
        "a segment's name is 1 to 200 bytes, without slash or NUL, and does not start with a dot"
    )]
    InvalidName,
    /// A queue of this capacity cannot be.
    #[error("a capacity of {0} is out of range")]
    InvalidCapacity(usize),
    /// The alignment of the type is larger than a segment can guarantee.
    #[error("the type has an alignment of {0} bytes, a segment guarantees 4,096 at most")]
    InvalidAlignment(usize),
    /// The initialiser returned while a thread of this process held a lock in the value.
    #[error("the initialiser left a lock of the value locked")]
    LeftLocked,
    /// The peer table asked for is empty or too large.
    #[error("the peer table must hold 1 to 4,095 processes and 1 to 65,535 threads")]
    InvalidPeers,
    /// The memory does not start with this crate's magic number.
    #[error("not a segment of this crate")]
    NotOurs,
    /// A newer version of this crate made the segment.
    #[error("the segment has layout version {found}, this program knows {known}")]
    Newer {
        /// The version that the segment states.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The segment waits by other means than this build (futex or pthread).
    #[error("the segment was made for the {found} backend, this program uses {ours}")]
    Backend {
        /// The backend of the segment.
        found: String,
        /// The backend of this build.
        ours: &'static str,
    },
    /// The segment holds another type.
    #[error("the segment holds another type than this program expects:\n{difference}")]
    OtherType {
        /// The fields that differ, `-` as the segment has them, `+` as this program does.
        difference: String,
    },
    /// The memory is shorter or longer than the header says.
    #[error("the segment is {found} bytes long, its header says {stated}")]
    WrongSize {
        /// The length of the memory, in bytes.
        found: u64,
        /// The length that the header states, in bytes.
        stated: u64,
    },
    /// The machine has been restarted since the segment was made.
    #[error("the segment was made before the machine was last started")]
    OtherBoot,
    /// The segment belongs to another PID namespace, where thread ids mean other threads.
    #[error("the segment belongs to another PID namespace (a container's, perhaps)")]
    OtherPidNamespace,
    /// A file descriptor that is not a sealed memfd could shrink under its users.
    #[error("the file descriptor is not sealed against shrinking and growing")]
    NotSealed,
    /// The header or the peer table holds values that no version of this crate writes.
    #[error("the segment is damaged")]
    Corrupt,
    /// Nothing was handed to this process under this key.
    #[error("nothing was handed to this process under this key")]
    NotInherited,
    /// Memory given by the caller is too small or not aligned to 64 bytes.
    #[error("{needed} bytes aligned to {align} are needed")]
    Unfit {
        /// The bytes that the segment takes.
        needed: usize,
        /// The alignment that it needs, in bytes.
        align: usize,
    },
    /// This process cannot take its place among the users of the segment.
    #[error(transparent)]
    Attach(#[from] Fault),
    /// The operating system refused a call.
    #[error("{call} failed: {source}")]
    Io {
        /// The system call, or what it was for.
        call: &'static str,
        /// The error that the system gave.
        source: io::Error,
    },
}

/// Why a timed call returned no permit or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TimeoutError {
    /// No permit or value became available in time.
    #[error("timed out")]
    TimedOut,
    /// The call failed, whatever its time limit.
    #[error(transparent)]
    Failed(#[from] Fault),
}

/// Why an operation could not even be tried. None of these is a matter of waiting longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// Shared memory holds a value that no peer which follows the protocol writes.
    #[error("the shared memory is damaged")]
    Corrupt,
    /// All slots of the segment's peer table are taken.
    #[error("the segment's peer table is full")]
    TooManyPeers,
    /// The thread that watches over the other users of the segment cannot be started.
    #[error("the sentinel thread cannot be started: {}", io::Error::from_raw_os_error(*errno))]
    NoSentinel {
        /// The error of the operating system.
        errno: i32,
    },
    /// The process was forked into another PID namespace, where thread ids mean other threads. It
    /// can use segments again once it has dropped all handles that it was born with.
    #[error("the process was forked into another PID namespace than its segments belong to")]
    OtherPidNamespace,
    /// The value was copied into this process by `fork`, which does not copy what it stands for.
    #[error("this handle belongs to the process that was forked")]
    Forked,
    /// The primitive does not lie in a segment, so that nobody would notice a death.
    #[error("the primitive does not lie in a shared segment")]
    NotShared,
    /// Another process has been attaching, or mending what a death left, for ten seconds.
    #[error("another process holds the segment's peer table")]
    Busy,
    /// A thread holds at most 1,000 robust locks at a time.
    #[error("this thread holds too many locks")]
    TooManyLocks,
    /// This thread has taken the lock as often as can be counted.
    #[error("this thread has taken the lock too many times")]
    TooDeep,
    /// The message is longer than the queue.
    #[error("the message is longer than the queue can hold")]
    TooLong,
    /// The queue has no level of that number.
    #[error("there is no level of that priority")]
    NoSuchLevel,
    /// The value cannot be encoded: it has a part that the format has no form for, such as a
    /// sequence of unknown length.
    #[error("the value cannot be encoded")]
    Unencodable,
    /// The message is no encoding of the type that was asked for.
    #[error("the message is no encoding of the type that was asked for")]
    Undecodable,
    /// The kernel or the C library gives this thread no robust list of the layout known here.
    #[error("robust futexes are not available to this thread")]
    Unsupported,
}
