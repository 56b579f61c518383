//! Errors that several modules return.
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a segment could not be created, opened or attached to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no segment of this name, or no process holds it any more.
    #[error("there is no segment of this name")]
    NotFound,
    /// The call timed out: no segment of this name appeared.
    #[error("timed out: no segment of this name appeared")]
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
    /// The segment has a name and belongs to another user. A segment without a name can be handed
    /// to the processes of any user.
    #[error("the named segment belongs to user {owner}: only processes of that user can use it")]
    OtherUser {
        /// The user id of the owner.
        owner: u32,
    },
    /// The name is empty, too long, starts with a dot, or holds a slash or NUL.
    #[error(
        "a segment's name is 1 to 200 bytes, without slash or NUL, and does not start with a dot"
    )]
    InvalidName,
    /// The capacity is zero or too large.
    #[error("a capacity of {0} is out of range")]
    InvalidCapacity(usize),
    /// The alignment of the type is larger than a segment can guarantee.
    #[error("the type has an alignment of {0} bytes: a segment guarantees at most 4,096")]
    InvalidAlignment(usize),
    /// The initialiser returned while a thread of this process held a lock in the value.
    #[error("the initialiser returned while a lock of the value was held")]
    LeftLocked,
    /// The requested peer table is empty or too large.
    #[error("the peer table must hold 1 to 4,095 processes and 1 to 65,535 threads")]
    InvalidPeers,
    /// The memory does not start with this crate's magic number.
    #[error("not a segment of this crate")]
    NotOurs,
    /// A newer version of this crate made the segment.
    #[error("the segment has layout version {found}: this program knows versions up to {known}")]
    Newer {
        /// The version in the segment's header.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The segment was made for another backend than that of this build (futex or pthread).
    #[error("the segment was made for the {found} backend: this program uses {ours}")]
    Backend {
        /// The backend of the segment.
        found: String,
        /// The backend of this build.
        ours: &'static str,
    },
    /// The segment holds another type.
    #[error("the segment holds another type than this program expects:\n{difference}")]
    OtherType {
        /// The fields that differ: `-` as in the segment, `+` as in this program.
        difference: String,
    },
    /// The memory is shorter or longer than the header says.
    #[error("the segment is {found} bytes long, but its header says {stated}")]
    WrongSize {
        /// The length of the memory, in bytes.
        found: u64,
        /// The length in the header, in bytes.
        stated: u64,
    },
    /// The machine has been restarted since the segment was created.
    #[error("the segment was created before the last restart of the machine")]
    OtherBoot,
    /// The segment belongs to another PID namespace, where thread ids mean other threads.
    #[error("the segment belongs to another PID namespace (a container's, perhaps)")]
    OtherPidNamespace,
    /// The file descriptor is not a sealed memfd. Its file could shrink while processes use it.
    #[error("the file descriptor is not sealed against shrinking and growing")]
    NotSealed,
    /// The header or the peer table contains values that no version of this crate writes.
    #[error("the segment is damaged")]
    Corrupt,
    /// The parent process handed nothing to this process under this key.
    #[error("nothing was handed to this process under this key")]
    NotInherited,
    /// The caller's memory is too small or not aligned.
    #[error("the memory is too small or not aligned: {needed} bytes aligned to {align} are needed")]
    Unfit {
        /// The size of the segment in bytes.
        needed: usize,
        /// The alignment of the segment in bytes.
        align: usize,
    },
    /// This process cannot become a peer of the segment.
    #[error(transparent)]
    Attach(#[from] Fault),
    /// The operating system refused a call.
    #[error("{call} failed: {source}")]
    Io {
        /// The system call, or what it was for.
        call: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// Why a timed call returned no permit and no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TimeoutError {
    /// No permit or value became available in time.
    #[error("timed out")]
    TimedOut,
    /// The call failed for another reason.
    #[error(transparent)]
    Failed(#[from] Fault),
}

/// Why an operation could not be tried. Waiting longer does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// The shared memory contains a value that no correct peer writes.
    #[error("the shared memory is damaged")]
    Corrupt,
    /// All slots of the segment's peer table, or of the primitive, are taken.
    #[error("too many processes or threads use the segment or the primitive")]
    TooManyPeers,
    /// The sentinel thread, which watches the other peers, cannot be started.
    #[error("the sentinel thread cannot be started: {}", io::Error::from_raw_os_error(*errno))]
    NoSentinel {
        /// The error of the operating system.
        errno: i32,
    },
    /// The process was forked into another PID namespace, where thread ids mean other threads. It
    /// can use segments again once it has dropped all handles that it inherited.
    #[error("the process was forked into another PID namespace than that of its segments")]
    OtherPidNamespace,
    /// The guard or end is a copy that `fork` made. It belongs to the parent process.
    #[error("this guard or end belongs to the parent process: `fork` has only copied it")]
    Forked,
    /// The primitive does not lie in a segment, so no process would notice a death.
    #[error("the primitive does not lie in a shared segment")]
    NotShared,
    /// Another process has been attaching, or doing a recovery, for ten seconds.
    #[error("another process has held the segment's peer table for ten seconds")]
    Busy,
    /// The thread would hold more than 1,000 locks at a time.
    #[error("this thread holds too many locks: the maximum is 1,000")]
    TooManyLocks,
    /// This thread has acquired the lock as often as the lock can count.
    #[error("this thread has acquired the lock too many times")]
    TooDeep,
    /// The message is longer than the whole queue.
    #[error("the message is longer than the queue can hold")]
    TooLong,
    /// The queue has no level of that number.
    #[error("the queue has no level of that number")]
    NoSuchLevel,
    /// The value cannot be encoded: the format cannot represent a part of it, such as a sequence of
    /// unknown length.
    #[error("the value cannot be encoded")]
    Unencodable,
    /// The bytes of the message are not a value of the expected type.
    #[error("the message is not a value of the expected type")]
    Undecodable,
    /// The kernel or the C library gives this thread no robust list in a layout that this crate
    /// knows.
    #[error("robust futexes are not available to this thread")]
    Unsupported,
}
