//! A value in memory that several processes map: `Arc` for processes.
#![expect(unsafe_code, reason = "gives references to a value that lies in a checked mapping")]
use crate::deadline::Deadline;
use crate::error::{Fault, OpenError};
use crate::segment::header::{self, Expected, Geometry, Lifetime, Spec};
use crate::segment::memory::Memory;
use crate::segment::names;
use crate::segment::peers::Peers;
use crate::segment::{Attachment, discard, is_last_use};
use crate::shareable::{Dead, Shareable, WithCapacity};
use crate::sync::atomic::AtomicU8;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::thread;
use core::fmt;
use core::ops::Deref;
use core::panic::{RefUnwindSafe, UnwindSafe};
use core::ptr::NonNull;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest pause between two attempts to open a name that does not exist yet.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// A handle of a value in shared memory, as `Arc` is for threads.
///
/// Clones, and the handles of other processes, refer to the same value. All methods of the value
/// take `&self`. The memory stays mapped while this process has a clone of the handle. It exists
/// while any process has it open.
///
/// ```
/// use outlast::{Event, FixedQueue, Lock, Shared};
///
/// outlast::plain! {
///     /// What a worker is to do.
///     pub struct Job { pub number: u64 }
/// }
/// outlast::shared! {
///     /// What the processes of a pool share.
///     pub struct Jobs {
///         pub pending: FixedQueue<Job, 64>,
///         pub done: Event,
///         pub total: Lock<u64>,
///     }
/// }
///
/// let jobs = Shared::anonymous(Jobs {
///     pending: FixedQueue::new(),
///     done: Event::manual(false),
///     total: Lock::new(0),
/// })?;
/// let worker = Shared::<Jobs>::from_fd(jobs.try_clone_fd()?)?; // as another process would
/// jobs.pending.send(Job { number: 5 })?;
/// *worker.total.lock()? += worker.pending.recv()?.number;
/// worker.done.set();
/// jobs.done.wait()?;
/// assert_eq!(*jobs.total.lock()?, 5);
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// # How another process gets the value
/// - By **fork**: the child can use the value immediately. Copies of guards, deliveries and loans
///   are inert in the child.
/// - By **exec**: the parent calls [`CommandExt::share`](crate::CommandExt::share), and the child
///   calls [`Shared::inherited`].
/// - By **name**: one process calls [`Shared::create`], the others call [`Shared::open`].
/// - By **file descriptor**, over a Unix socket for example: one process calls
///   [`Shared::try_clone_fd`], the other calls [`Shared::from_fd`].
///
/// # Death
/// Locks, reader-writer locks and `Once` need no help: the kernel releases them when their owner
/// dies. A segment with any other primitive has a table of its users. A process that opens such a
/// segment becomes a *peer*, and a thread of the crate, the *sentinel*, sleeps in each peer. When a
/// peer dies, a sentinel of another peer wakes and repairs each primitive.
pub struct Shared<T: ?Sized + Shareable> {
    at: NonNull<T>,
    /// The value is only a part of the value of the segment.
    is_part: bool,
    inner: Arc<Inner>,
}

// SAFETY: a `Shared` is a `&T` with its mapping kept alive.
unsafe impl<T: ?Sized + Shareable + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Shareable + Sync> Sync for Shared<T> {}

// The handle has no state that a panic could leave half changed. The primitives of a value repair
// or report what a panic leaves.
impl<T: ?Sized + Shareable> UnwindSafe for Shared<T> {}
impl<T: ?Sized + Shareable> RefUnwindSafe for Shared<T> {}

/// Memory with a value, which threads of this process may use.
///
/// It is made before an initialiser sees the value, because the initialiser can take locks, fail
/// and panic. So the memory is released by `drop` in every case.
struct Inner {
    /// `None` only while it is dropped.
    memory: Option<Memory>,
    /// `None` until the segment is complete.
    attachment: Option<Attachment>,
    /// Returns whether a thread of this process owns something in the value.
    in_use: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Inner {
    /// # Safety
    /// `at` points to a value in `memory`.
    unsafe fn new<T: ?Sized + Shareable + Sync + 'static>(memory: Memory, at: NonNull<T>) -> Self {
        let value = Anywhere(at);
        // SAFETY: `drop` calls this before it releases the memory, and `make` while it has it.
        let in_use = Box::new(move || unsafe { value.get() }.in_use(&thread::is_ours));
        Inner { memory: Some(memory), attachment: None, in_use }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(mut memory) = self.memory.take() else { return };
        // If a guard was forgotten, its lock is in the robust list of its thread. Then the memory
        // must stay mapped.
        let keep = (self.in_use)();
        names::leave(&mut memory);
        match &self.attachment {
            Some(attachment) => attachment.detach(memory, keep),
            None => discard(memory, keep),
        }
    }
}

/// Options for a new segment: its lifetime, and how many processes and threads can use it.
///
/// ```
/// use outlast::{Lock, Lifetime, Options, Shared};
/// let name = format!("options-{}", std::process::id());
/// let counter = Options::new().lifetime(Lifetime::Persistent).create(&name, Lock::new(1_u64))?;
/// drop(counter); // no process has it open now, but it persists
/// assert_eq!(*Shared::<Lock<u64>>::open(&name)?.lock()?, 1);
/// outlast::remove(&name)?;
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// # Limits
/// All memory of a segment is allocated when the segment is created, so that no later use can fail.
/// To the system a segment is a file. If it is longer than the limit of the process for the size of
/// files (`RLIMIT_FSIZE`), creation fails with [`OpenError::Io`] and the error `EFBIG`. The process
/// gets no signal `SIGXFSZ`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    lifetime: Lifetime,
    processes: u32,
    threads: u32,
    in_flight: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options { lifetime: Lifetime::UntilLast, processes: 256, threads: 1_024, in_flight: None }
    }
}

/// A pointer to a value that any thread may refer to.
struct Anywhere<T: ?Sized>(NonNull<T>);
// SAFETY: it stands for a `&T`. Each call of `get` argues that the value is mapped.
unsafe impl<T: ?Sized + Sync> Send for Anywhere<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for Anywhere<T> {}

impl<T: ?Sized> Anywhere<T> {
    /// # Safety
    /// The value is mapped.
    unsafe fn get(&self) -> &T {
        // SAFETY: the caller's promise.
        unsafe { self.0.as_ref() }
    }
}

impl Options {
    /// Creates the default options: the segment lives until its last user has left, and at most 256
    /// processes and 1,024 threads can use it at a time.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a named segment lives.
    #[must_use]
    pub fn lifetime(self, lifetime: Lifetime) -> Self {
        Options { lifetime, ..self }
    }

    /// Sets how many processes can use the segment at a time: 1 to 4,095.
    ///
    /// Each of them takes 64 bytes of the segment, whether it is in use or not.
    #[must_use]
    pub fn processes(self, processes: u32) -> Self {
        Options { processes, ..self }
    }

    /// Sets how many messages of a queue can be in flight at a time: 1 to 1,048,575. The default
    /// is 64.
    ///
    /// A message is in flight while it is delivered and not acknowledged. The setting applies to
    /// queues and channels with acknowledgements whose capacity is chosen at run time. For other
    /// types, [`with_capacity`](Self::with_capacity) fails with [`OpenError::InvalidCapacity`].
    ///
    /// ```
    /// use outlast::{Options, Queue, TryRecvError};
    /// let jobs = Options::new().in_flight(1).with_capacity::<Queue<u64>>(16)?;
    /// jobs.send_batch(&[7, 8])?;
    /// let first = jobs.recv_ack()?;
    /// assert_eq!(jobs.try_recv_ack().err(), Some(TryRecvError::TooManyInFlight));
    /// first.ack()?;
    /// assert_eq!(*jobs.recv_ack()?, 8);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[must_use]
    pub fn in_flight(self, in_flight: usize) -> Self {
        Options { in_flight: Some(in_flight), ..self }
    }

    /// Sets how many threads, of all processes together, can wait, send or receive in the segment
    /// at a time: 1 to 65,535.
    ///
    /// Each of them takes 64 bytes of the segment, whether it is in use or not.
    #[must_use]
    pub fn threads(self, threads: u32) -> Self {
        Options { threads, ..self }
    }

    /// Like [`Shared::anonymous`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn anonymous<T: Shareable + Sync + 'static>(
        self,
        value: T,
    ) -> Result<Shared<T>, OpenError> {
        self.make(Home::Anonymous, 0, |at| Self::put(at, value))
    }

    /// Like [`anonymous`](Self::anonymous), but initialises the value in place.
    ///
    /// The value never lies on the stack, so it can be large. Zero-filled memory is an empty value
    /// of every primitive. `init` gets a reference to this value.
    ///
    /// # Errors
    /// [`OpenError::LeftLocked`] if `init` has forgotten the guard of a lock; see [`OpenError`].
    pub fn anonymous_with<T: Shareable + Sync + 'static>(
        self,
        init: impl FnOnce(&T),
    ) -> Result<Shared<T>, OpenError> {
        self.make(Home::Anonymous, 0, |at| Self::init(at, init))
    }

    /// Like [`Shared::create`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn create<T: Shareable + Sync + 'static>(
        self,
        name: &str,
        value: T,
    ) -> Result<Shared<T>, OpenError> {
        self.make(Home::Named(name), 0, |at| Self::put(at, value))
    }

    /// Like [`create`](Self::create), but initialises the value in place, as
    /// [`anonymous_with`](Self::anonymous_with) does.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn create_with<T: Shareable + Sync + 'static>(
        self,
        name: &str,
        init: impl FnOnce(&T),
    ) -> Result<Shared<T>, OpenError> {
        self.make(Home::Named(name), 0, |at| Self::init(at, init))
    }

    /// Like [`Shared::open_or_create`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_or_create<T: Shareable + Sync + 'static>(
        self,
        name: &str,
        mut value: impl FnMut() -> T,
    ) -> Result<Shared<T>, OpenError> {
        open_or(name, || self.create(name, value()))
    }

    /// Like [`Shared::with_capacity`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn with_capacity<T: ?Sized + WithCapacity + Sync + 'static>(
        self,
        capacity: usize,
    ) -> Result<Shared<T>, OpenError> {
        self.make_for(Home::Anonymous, capacity)
    }

    /// Like [`Shared::create_with_capacity`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn create_with_capacity<T: ?Sized + WithCapacity + Sync + 'static>(
        self,
        name: &str,
        capacity: usize,
    ) -> Result<Shared<T>, OpenError> {
        self.make_for(Home::Named(name), capacity)
    }

    /// Like [`Shared::open_or_create_with_capacity`], with these options.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_or_create_with_capacity<T: ?Sized + WithCapacity + Sync + 'static>(
        self,
        name: &str,
        capacity: usize,
    ) -> Result<Shared<T>, OpenError> {
        open_or(name, || self.create_with_capacity(name, capacity))
    }

    fn make_for<T: ?Sized + WithCapacity + Sync + 'static>(
        self,
        home: Home<'_>,
        capacity: usize,
    ) -> Result<Shared<T>, OpenError> {
        let units = match self.in_flight {
            Some(in_flight) => T::units_in_flight(capacity, in_flight),
            None => T::units(capacity),
        };
        let units = units.filter(|&units| T::size(units).is_some());
        self.make(home, units.ok_or(OpenError::InvalidCapacity(capacity))?, |at: NonNull<T>| {
            if let Some(in_flight) = self.in_flight {
                // SAFETY: `make` passes zero-filled memory, which is a value of the type.
                unsafe { at.as_ref() }.set_in_flight(in_flight);
            }
            Self::empty(at);
        })
    }

    /// Creates a segment in memory that the caller provides, such as a `shared_memory::Shmem`.
    ///
    /// # Errors
    /// [`OpenError::Unfit`] if the memory is too small or not aligned to 64 bytes; others as for
    /// [`OpenError`].
    ///
    /// # Safety
    /// - `len` bytes at `memory` are readable and writable. They are shared by the processes that
    ///   use the segment, and nothing else uses them.
    /// - They stay mapped, and nothing else uses them, while this process has a clone of the
    ///   result, while any of its threads that used the segment is alive, and for ever if a guard
    ///   was forgotten. [`Shared::close_timeout`] waits until none of this is the case.
    pub unsafe fn create_in<T: Shareable + Sync + 'static>(
        self,
        memory: NonNull<u8>,
        len: usize,
        value: T,
    ) -> Result<Shared<T>, OpenError> {
        // SAFETY: the caller's promise.
        let memory = unsafe { Memory::callers(memory, len) };
        self.make(Home::Callers(memory), 0, |at| Self::put(at, value))
    }

    /// Returns the size and the alignment of the memory that [`create_in`](Self::create_in) needs
    /// for a value of this type.
    ///
    /// ```
    /// use outlast::{Lock, Options, Shared};
    /// use std::time::Duration;
    ///
    /// let layout = Options::new().layout_in::<Lock<u64>>()?;
    /// # #[allow(unsafe_code)]
    /// // SAFETY: the layout is not empty.
    /// let memory = unsafe { std::alloc::alloc(layout) }; // not shared with other processes
    /// let memory = core::ptr::NonNull::new(memory).unwrap();
    /// # #[allow(unsafe_code)]
    /// // SAFETY: the memory has this size, and stays until `close_timeout` has returned `Ok`.
    /// let lock = unsafe { Options::new().create_in(memory, layout.size(), Lock::new(1_u64)) }?;
    /// *lock.lock()? += 1;
    /// lock.close_timeout(Duration::from_secs(10)).unwrap();
    /// # #[allow(unsafe_code)]
    /// // SAFETY: allocated above, with this layout, and no longer in use.
    /// unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OpenError::InvalidPeers`] or [`OpenError::InvalidAlignment`], which `create_in` would
    /// return as well.
    pub fn layout_in<T: Shareable>(self) -> Result<core::alloc::Layout, OpenError> {
        let (spec, geometry) = self.plan::<T>(0, None)?;
        core::alloc::Layout::from_size_align(geometry.total, spec.align())
            .map_err(|_| OpenError::InvalidCapacity(0))
    }

    fn put<T: Shareable>(at: NonNull<T>, value: T) {
        // SAFETY: `make` passes zero-filled, aligned memory of the size of the type, which nothing
        // else uses yet.
        unsafe { at.write(value) };
        // SAFETY: just written.
        unsafe { at.as_ref() }.place();
    }

    fn init<T: Shareable>(at: NonNull<T>, init: impl FnOnce(&T)) {
        // SAFETY: zero-filled memory is a value of every `Shareable` type.
        let value = unsafe { at.as_ref() };
        // Before `init`, which may use the value.
        value.place();
        init(value);
    }

    /// Places an empty value, which zero-filled memory is.
    fn empty<T: ?Sized + Shareable>(at: NonNull<T>) {
        // SAFETY: as above.
        unsafe { at.as_ref() }.place();
    }

    /// Returns the header and the geometry of a segment for a value of this type.
    fn plan<T: ?Sized + Shareable>(
        self,
        len: usize,
        lifetime: Option<Lifetime>,
    ) -> Result<(Spec, Geometry), OpenError> {
        if !(1..=header::MAX_PROCESSES).contains(&self.processes)
            || !(1..=header::MAX_THREADS).contains(&self.threads)
        {
            return Err(OpenError::InvalidPeers);
        }
        if T::ALIGN > header::MAX_ALIGN {
            return Err(OpenError::InvalidAlignment(T::ALIGN));
        }
        let spec = Spec {
            fingerprint: T::FINGERPRINT,
            description: T::layout().describe(),
            value_size: T::size(len).ok_or(OpenError::InvalidCapacity(len))?,
            value_align: T::ALIGN,
            len,
            processes: if T::NEEDS_PEERS { self.processes } else { 0 },
            threads: if T::NEEDS_PEERS { self.threads } else { 0 },
            lifetime,
        };
        let geometry = spec.geometry().ok_or(OpenError::InvalidCapacity(len))?;
        Ok((spec, geometry))
    }

    fn make<T: ?Sized + Shareable + Sync + 'static>(
        self,
        home: Home<'_>,
        len: usize,
        fill: impl FnOnce(NonNull<T>),
    ) -> Result<Shared<T>, OpenError> {
        let (spec, geometry) =
            self.plan::<T>(len, matches!(home, Home::Named(_)).then_some(self.lifetime))?;
        let (named, anonymous) = (matches!(home, Home::Named(_)), matches!(home, Home::Anonymous));
        let memory = match home {
            Home::Anonymous => Memory::anonymous(geometry.total)?,
            Home::Named(name) => names::prepare(name, geometry.total)?,
            Home::Callers(memory) => {
                let (needed, align) = (geometry.total, spec.align());
                if memory.len() < needed || !memory.base().addr().is_multiple_of(align) {
                    return Err(OpenError::Unfit { needed, align });
                }
                // SAFETY: the memory is at least that long, and by the caller's promise nothing
                // else uses it.
                unsafe { memory.base().write_bytes(0, needed) };
                memory
            }
        };
        let base = NonNull::new(memory.base()).ok_or(OpenError::Corrupt)?;
        let at = Shared::<T>::value_in(&memory, &geometry)?;
        // SAFETY: the value lies there, by the geometry.
        let inner = unsafe { Inner::new(memory, at) };
        // SAFETY: the memory is mapped, zero-filled and `geometry.total` bytes long. Nothing else
        // uses it yet.
        unsafe { header::write(base.as_ptr(), &spec, &geometry) }?;
        if T::NEEDS_PEERS {
            // SAFETY: the memory has this geometry, and stays mapped during the call.
            unsafe { Peers::new(base, &geometry) }.place();
        }
        fill(at);
        if (inner.in_use)() {
            return Err(OpenError::LeftLocked);
        }
        // SAFETY: header and value are complete.
        unsafe { header::publish(base.as_ptr()) };
        match &inner.memory {
            Some(memory) if named => names::publish(memory)?,
            Some(memory) if anonymous => memory.seal()?,
            _ => {}
        }
        Shared::attach(inner, at, &geometry)
    }
}

/// Opens the segment called `name`, or calls `create`.
fn open_or<T: ?Sized + Shareable + Sync + 'static>(
    name: &str,
    mut create: impl FnMut() -> Result<Shared<T>, OpenError>,
) -> Result<Shared<T>, OpenError> {
    loop {
        match Shared::open(name) {
            Err(OpenError::NotFound) => {}
            opened => return opened,
        }
        match create() {
            Err(OpenError::AlreadyExists) => {} // another process has just created it
            created => return created,
        }
    }
}

/// The kind of memory that a new segment gets.
enum Home<'a> {
    Anonymous,
    Named(&'a str),
    Callers(Memory),
}

impl<T: Shareable + Sync + 'static> Shared<T> {
    /// Moves `value` into a new segment without a name.
    ///
    /// The memory is a memfd whose length is sealed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn anonymous(value: T) -> Result<Self, OpenError> {
        Options::new().anonymous(value)
    }

    /// Moves `value` into a new segment that other programs of the same user open by `name`.
    ///
    /// Other programs find the complete segment under its name, or no segment.
    ///
    /// # Errors
    /// [`OpenError::AlreadyExists`] if a segment of this name is in use; see [`OpenError`].
    pub fn create(name: &str, value: T) -> Result<Self, OpenError> {
        Options::new().create(name, value)
    }

    /// Opens the segment called `name`, or creates it with the value that `value` returns.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_or_create(name: &str, value: impl FnMut() -> T) -> Result<Self, OpenError> {
        Options::new().open_or_create(name, value)
    }
}

/// Values whose capacity is chosen at run time.
impl<T: ?Sized + WithCapacity + Sync + 'static> Shared<T> {
    /// Creates an empty value of `capacity`, in a segment without a name.
    ///
    /// The docs of the type tell what the capacity counts, such as messages, bytes or records, and
    /// what its limits are.
    ///
    /// ```
    /// use outlast::{ByteQueue, Queue, Shared};
    /// let jobs = Shared::<Queue<u64>>::with_capacity(16)?;
    /// let texts = Shared::<ByteQueue>::with_capacity(64 * 1024)?;
    /// assert_eq!((jobs.capacity(), texts.capacity()), (16, 64 * 1024));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OpenError::InvalidCapacity`] if the type does not allow the capacity; see [`OpenError`].
    pub fn with_capacity(capacity: usize) -> Result<Self, OpenError> {
        Options::new().with_capacity(capacity)
    }

    /// Creates an empty value of `capacity`, in a segment that other programs of the same user open
    /// by `name`.
    ///
    /// # Errors
    /// As [`Shared::with_capacity`], and [`OpenError::AlreadyExists`] if a segment of this name is
    /// in use.
    pub fn create_with_capacity(name: &str, capacity: usize) -> Result<Self, OpenError> {
        Options::new().create_with_capacity(name, capacity)
    }

    /// Opens the segment called `name`, or creates it with `capacity`.
    ///
    /// A segment that exists already keeps its capacity.
    ///
    /// # Errors
    /// As [`Shared::with_capacity`].
    pub fn open_or_create_with_capacity(name: &str, capacity: usize) -> Result<Self, OpenError> {
        Options::new().open_or_create_with_capacity(name, capacity)
    }
}

/// A region of bytes whose length is chosen at run time. Its address is
/// [`as_ptr`](slice::as_ptr).
///
/// ```
/// use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
/// use outlast::Shared;
///
/// let here = Shared::<[AtomicU8]>::with_capacity(1 << 20)?;
/// let there = Shared::<[AtomicU8]>::from_fd(here.try_clone_fd()?)?; // as another process would
/// here.copy_in(5, b"hello");
/// let mut copy = [0; 5];
/// there.copy_out(5, &mut copy);
/// assert_eq!((&copy, there[4].load(Relaxed)), (b"hello", 0));
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// The copies are not synchronised. If another thread writes to the same bytes at the same time, a
/// copy may hold old and new bytes. Use a lock or an event, in another value, to order the copies.
impl Shared<[AtomicU8]> {
    /// Copies `bytes` into the region, from byte `at` on.
    ///
    /// # Panics
    /// If the region is too short.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        let region = &self[at..][..bytes.len()];
        region.iter().zip(bytes).for_each(|(to, byte)| to.store(*byte, Relaxed));
    }

    /// Fills `to` with bytes of the region, from byte `at` on.
    ///
    /// # Panics
    /// If the region is too short.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) {
        let region = &self[at..][..to.len()];
        region.iter().zip(to).for_each(|(byte, to)| *to = byte.load(Relaxed));
    }
}

impl<T: ?Sized + Shareable + Sync + 'static> Shared<T> {
    /// Opens the segment called `name`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(name: &str) -> Result<Self, OpenError> {
        Self::adopt(names::open(name)?, true)
    }

    /// Opens the segment called `name`, blocking until it exists or `timeout` has elapsed.
    ///
    /// The call tries again after a millisecond at first, and then in intervals that grow to 20
    /// milliseconds.
    ///
    /// ```
    /// use outlast::{Event, OpenError, Shared};
    /// use std::time::Duration;
    ///
    /// let name = format!("open-timeout-{}", std::process::id());
    /// let early = Shared::<Event>::open_timeout(&name, Duration::from_millis(5));
    /// assert!(matches!(early, Err(OpenError::TimedOut)));
    /// let creator = std::thread::spawn({
    ///     let name = name.clone();
    ///     move || Shared::create(&name, Event::manual(true)) // later, as another process would
    /// });
    /// let event = Shared::<Event>::open_timeout(&name, Duration::from_secs(10))?;
    /// assert!(event.is_set());
    /// # drop(creator.join());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OpenError::TimedOut`] if no segment of this name has appeared. Errors other than
    /// [`OpenError::NotFound`] are returned immediately; see [`OpenError`].
    pub fn open_timeout(name: &str, timeout: Duration) -> Result<Self, OpenError> {
        Self::open_until(name, Deadline::after(timeout))
    }

    /// Opens the segment called `name`, blocking until it exists or `deadline` has passed.
    ///
    /// A segment that exists is opened even if the deadline has passed.
    ///
    /// # Errors
    /// As [`open_timeout`](Self::open_timeout).
    pub fn open_deadline(name: &str, deadline: Instant) -> Result<Self, OpenError> {
        Self::open_until(name, Deadline::at(deadline))
    }

    fn open_until(name: &str, deadline: Deadline) -> Result<Self, OpenError> {
        let mut pause = Duration::from_millis(1);
        loop {
            let is_over = deadline.is_over(); // read before the attempt: the last one comes later
            match Self::open(name) {
                Err(OpenError::NotFound) if is_over => return Err(OpenError::TimedOut),
                Err(OpenError::NotFound) => {}
                opened => return opened,
            }
            std::thread::sleep(deadline.remaining().map_or(pause, |left| left.min(pause)));
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Returns a handle of a part of the value, which keeps the whole segment mapped.
    ///
    /// With it, a field of a struct can be used wherever a `Shared` of the type of the field is
    /// needed. The part has no file descriptor: only a handle of the whole value can be passed to
    /// another program.
    ///
    /// ```
    /// use outlast::{Event, FixedQueue, Queue, Shared};
    ///
    /// outlast::shared! {
    ///     /// What two programs share.
    ///     pub struct Office { pub inbox: FixedQueue<u64, 8>, pub closed: Event }
    /// }
    ///
    /// let office = Office { inbox: FixedQueue::new(), closed: Event::manual(false) };
    /// let here = Shared::anonymous(office)?;
    /// let there = Shared::<Office>::from_fd(here.try_clone_fd()?)?; // as another process would
    /// let inbox: Shared<Queue<u64>> = here.project(|office| &*office.inbox);
    /// drop(here); // the part keeps the mapping
    /// let sender = std::thread::spawn(move || inbox.send(5));
    /// assert_eq!(there.inbox.recv()?, 5);
    /// # sender.join().unwrap()?;
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// # Panics
    /// If the reference that `part` returns does not lie in the segment, but in a `static` for
    /// example.
    #[must_use]
    pub fn project<U: ?Sized + Shareable>(&self, part: impl FnOnce(&T) -> &U) -> Shared<U> {
        // The closure must work for a value of any lifetime. So the reference that it returns is
        // valid as long as the mapping, or for ever.
        let part = part(self);
        let (start, size) = (core::ptr::from_ref(part).addr(), size_of_val(part));
        let within = |memory: &Memory| {
            let offset = start.checked_sub(memory.base().addr());
            offset.is_some_and(|offset| offset <= memory.len() && size <= memory.len() - offset)
        };
        assert!(
            self.inner.memory.as_ref().is_some_and(within),
            "`Shared::project`: the part lies outside of the segment"
        );
        let at = NonNull::from(part);
        Shared { at, is_part: true, inner: Arc::clone(&self.inner) }
    }

    /// Opens the segment of a descriptor that [`try_clone_fd`](Self::try_clone_fd) returned, in
    /// this process or in another.
    ///
    /// # Errors
    /// [`OpenError::NotSealed`] if the file could shrink; see [`OpenError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OpenError> {
        Self::adopt(Memory::from_fd(fd)?, true)
    }

    /// Opens a segment in memory that the caller provides, created there with
    /// [`Options::create_in`].
    ///
    /// # Errors
    /// See [`OpenError`].
    ///
    /// # Safety
    /// As for [`Options::create_in`].
    pub unsafe fn open_in(memory: NonNull<u8>, len: usize) -> Result<Self, OpenError> {
        // SAFETY: the caller's promise.
        let memory = unsafe { Memory::callers(memory, len) };
        Self::adopt(memory, false)
    }

    /// Drops the handle as soon as nothing else in this process needs the memory.
    ///
    /// If it succeeds, memory that the caller provided may be unmapped. The call blocks until both
    /// of these are true:
    /// - All other clones, parts, owned guards and owned ends have been dropped.
    /// - Every other thread that has used the segment has ended, or has used another segment since.
    ///   When such a thread ends, the kernel looks into the memory. This includes a thread that
    ///   holds a lock whose guard was forgotten.
    ///
    /// Other processes may go on using the memory.
    ///
    /// # Errors
    /// Returns the handle if `timeout` elapses first.
    pub fn close_timeout(self, timeout: Duration) -> Result<(), Self> {
        let deadline = Deadline::after(timeout);
        loop {
            let is_over = deadline.is_over();
            let is_last = Arc::strong_count(&self.inner) == 1
                && !(self.inner.in_use)()
                && self
                    .inner
                    .memory
                    .as_ref()
                    .is_none_or(|memory| is_last_use(memory.base().addr()));
            if is_last {
                return Ok(()); // drops the handle
            }
            if is_over {
                return Err(self);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns a new file descriptor of the memory, for another process.
    ///
    /// # Errors
    /// If the process has no descriptor left, if the caller provided the memory, or if this is a
    /// handle of a part, made by [`project`](Self::project).
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        match &self.inner.memory {
            Some(memory) if !self.is_part => memory.clone_fd(),
            _ => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this is a handle of a part of a segment: use a handle of the whole value",
            )),
        }
    }

    /// Returns the file descriptor of the memory.
    ///
    /// Returns `None` if the caller provided the memory, and for a handle of a part, made by
    /// [`project`](Self::project).
    ///
    /// A copy of the descriptor keeps a named segment in use. When this process drops its last
    /// handle, it waits a moment until such copies are closed. To pass the segment to another
    /// process, use [`try_clone_fd`](Self::try_clone_fd).
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.memory.as_ref().filter(|_| !self.is_part).and_then(Memory::fd)
    }

    fn adopt(mut memory: Memory, exact: bool) -> Result<Self, OpenError> {
        let expected = Expected {
            fingerprint: T::FINGERPRINT,
            description: &|| T::layout().describe(),
            value_size: &T::size,
            value_align: T::ALIGN,
            needs_peers: T::NEEDS_PEERS,
        };
        // SAFETY: `len` bytes are mapped at `base`.
        let checked = unsafe { header::check(memory.base(), memory.len(), exact, &expected) };
        match checked {
            Ok((geometry, _)) => {
                let at = Self::value_in(&memory, &geometry)?;
                // SAFETY: the value lies there, by the geometry.
                let shared = Self::attach(unsafe { Inner::new(memory, at) }, at, &geometry)?;
                if shared.is_sound() { Ok(shared) } else { Err(OpenError::Corrupt) }
            }
            Err(error) => {
                names::leave(&mut memory);
                Err(error)
            }
        }
    }

    fn attach(mut inner: Inner, at: NonNull<T>, geometry: &Geometry) -> Result<Self, OpenError> {
        let memory = inner.memory.as_ref().ok_or(OpenError::Corrupt)?;
        let base = NonNull::new(memory.base()).ok_or(OpenError::Corrupt)?;
        // SAFETY: the memory was created with this geometry or checked against it. The attachment
        // uses the tables only while the memory is mapped.
        let peers = T::NEEDS_PEERS.then(|| unsafe { Peers::new(base, geometry) });
        let value = Anywhere(at);
        // SAFETY: the sentinel that calls this is joined before the memory is unmapped.
        let recover = Arc::new(move |dead: &Dead| unsafe { value.get() }.recover(dead));
        inner.attachment = Some(Attachment::new(memory, peers, recover)?);
        Ok(Shared { at, is_part: false, inner: Arc::new(inner) })
    }

    fn value_in(memory: &Memory, geometry: &Geometry) -> Result<NonNull<T>, OpenError> {
        let base = NonNull::new(memory.base()).ok_or(Fault::Corrupt)?;
        // SAFETY: the value lies within the memory, by the geometry.
        Ok(T::at(unsafe { base.add(geometry.value) }, geometry.len))
    }
}

impl<T: ?Sized + Shareable> Deref for Shared<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: a value was written there, or `Shareable` allows any bytes there. `inner` keeps
        // the memory mapped.
        unsafe { self.at.as_ref() }
    }
}

impl<T: ?Sized + Shareable> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared { at: self.at, is_part: self.is_part, inner: Arc::clone(&self.inner) }
    }
}

impl<T: ?Sized + Shareable + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&&**self).finish()
    }
}
