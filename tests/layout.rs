//! Where everything lies, as numbers: a change of layout must be meant, and then counts up the
//! version in the header. (With the other backend it is the C library that says how large its
//! objects are.)
#![cfg(all(not(outlast_loom), not(outlast_pthread)))]
use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64};
use outlast::spsc::FixedRing;
use outlast::{
    Barrier, ByteQueue, Channel, Condition, Event, FixedByteQueue, FixedPipe, FixedPriorityQueue,
    FixedQueue, Latch, Lock, OnDeath, Once, OnceCell, Options, OwnedSemaphore, Queue,
    ReentrantLock, RwLock, Semaphore, Shareable, Shared,
};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

outlast::plain! {
    #[derive(Debug)]
    struct Job { id: u64, kind: Kind, bounds: [f32; 3] }
    #[derive(Debug)]
    enum Kind: u8 { Draw = 1, Erase = 2 }
}

outlast::shared! {
    struct Jobs {
        pending: FixedQueue<Job, 3>,
        done: Event,
        total: Lock<u64>,
        ticks: [AtomicU32; 2],
    }
}

/// Name, offset, count, size.
type Row = (&'static str, usize, usize, usize);

fn rows<T: ?Sized + Shareable>() -> Vec<Row> {
    let rows = T::layout().fields.iter();
    rows.map(|field| (field.name, field.offset, field.count, (field.layout)().size)).collect()
}

#[test]
fn sizes_and_alignments() {
    assert_eq!((size_of::<Lock<u64>>(), align_of::<Lock<u64>>()), (64, 64));
    assert_eq!((size_of::<Lock<u8>>(), align_of::<Lock<u8>>()), (64, 64));
    assert_eq!((size_of::<Lock<[u64; 4]>>(), align_of::<Lock<[u64; 4]>>()), (128, 64));
    assert_eq!((size_of::<Event>(), align_of::<Event>()), (8, 4));
    assert_eq!((size_of::<Semaphore>(), align_of::<Semaphore>()), (8, 4));
    assert_eq!((size_of::<OwnedSemaphore>(), align_of::<OwnedSemaphore>()), (576, 64));
    assert_eq!((size_of::<Barrier>(), align_of::<Barrier>()), (4_224, 64));
    assert_eq!((size_of::<Latch>(), align_of::<Latch>()), (544, 8));
    assert_eq!((size_of::<Once>(), align_of::<Once>()), (64, 64));
    assert_eq!((size_of::<OnceCell<u64>>(), align_of::<OnceCell<u64>>()), (64, 64));
    assert_eq!((size_of::<RwLock<u64>>(), align_of::<RwLock<u64>>()), (2_176, 64));
    assert_eq!((size_of::<ReentrantLock<u64>>(), align_of::<ReentrantLock<u64>>()), (64, 64));
    assert_eq!((size_of::<Condition>(), align_of::<Condition>()), (8, 4));
    assert_eq!(size_of::<FixedQueue<u64, 4>>(), 1_536);
    assert_eq!(align_of::<FixedQueue<u64, 4>>(), 128);
    assert_eq!(size_of::<FixedQueue<u64, 5>>() - size_of::<FixedQueue<u64, 4>>(), 0);
    assert_eq!(size_of::<FixedQueue<u64, 12>>() - size_of::<FixedQueue<u64, 4>>(), 128);
    // Two ends of 260 bytes, and the queue.
    assert_eq!(size_of::<Channel<FixedQueue<u64, 4>>>(), 640 + 1_536);
    assert_eq!(size_of::<Channel<FixedPriorityQueue<u64, 2, 4>>>(), 640 + 1_792);
    assert_eq!((size_of::<FixedByteQueue<4>>(), align_of::<FixedByteQueue<4>>()), (1152, 128));
    assert_eq!(size_of::<Channel<FixedByteQueue<4>>>(), 640 + 1152);
    assert_eq!(align_of::<Channel<FixedByteQueue<4>>>(), 128);
}

#[test]
fn fields() {
    assert_eq!(rows::<Lock<u64>>(), [("value", 40, 1, 8)]);
    assert_eq!(rows::<Event>(), []);
    assert_eq!(rows::<Semaphore>(), []);
    assert_eq!(rows::<OwnedSemaphore>(), []);
    assert_eq!(rows::<Barrier>(), []);
    assert_eq!(rows::<Latch>(), []);
    assert_eq!(rows::<Condition>(), []);
    assert_eq!(rows::<Once>(), [("value", 44, 1, 0)]);
    assert_eq!(rows::<OnceCell<u64>>(), [("value", 48, 1, 8)]);
    assert_eq!(rows::<RwLock<u64>>(), [("value", 2_112, 1, 8)]);
    assert_eq!(rows::<ReentrantLock<u64>>(), [("lock", 0, 1, 64)]);
    let queue = [("slots", 384, 4, 8), ("in_flight", 448, 64, 8)];
    assert_eq!(rows::<FixedQueue<u64, 4>>(), queue);
    assert_eq!(rows::<Queue<u64>>(), [("slots", 384, 1, 8)]);
    assert_eq!(rows::<Channel<FixedQueue<u64, 4>>>(), [("queue", 640, 1, 1_536)]);
    assert_eq!(rows::<Channel<FixedPriorityQueue<u64, 2, 4>>>(), [("queue", 640, 1, 1_792)]);
    assert_eq!(rows::<FixedByteQueue<4>>(), [("blocks", 512, 4, 8)]);
    assert_eq!(rows::<Channel<FixedByteQueue<4>>>(), [("queue", 640, 1, 1152)]);
    assert_eq!(rows::<Channel<ByteQueue>>(), [("queue", 640, 1, 512)]);
    let jobs = [
        ("pending", 0, 1, 2_560),
        ("done", 2_560, 1, 8),
        ("total", 2_624, 1, 64),
        ("ticks", 2_688, 1, 8),
    ];
    assert_eq!(rows::<Jobs>(), jobs);
}

/// Whether two programs mean the same bytes is judged by these.
#[test]
fn fingerprints() {
    let found = [
        <u64 as Shareable>::FINGERPRINT,
        <AtomicU64 as Shareable>::FINGERPRINT,
        <[u64; 3] as Shareable>::FINGERPRINT,
        <Lock<u64> as Shareable>::FINGERPRINT,
        <Event as Shareable>::FINGERPRINT,
        <FixedQueue<u64, 4> as Shareable>::FINGERPRINT,
        <Queue<u64> as Shareable>::FINGERPRINT,
        <Lock<Job> as Shareable>::FINGERPRINT,
        <Jobs as Shareable>::FINGERPRINT,
        <Semaphore as Shareable>::FINGERPRINT,
        <OwnedSemaphore as Shareable>::FINGERPRINT,
        <Barrier as Shareable>::FINGERPRINT,
        <Latch as Shareable>::FINGERPRINT,
        <Condition as Shareable>::FINGERPRINT,
        <Once as Shareable>::FINGERPRINT,
        <OnceCell<u64> as Shareable>::FINGERPRINT,
        <RwLock<u64> as Shareable>::FINGERPRINT,
        <ReentrantLock<u64> as Shareable>::FINGERPRINT,
        <RwLock<Job> as Shareable>::FINGERPRINT,
        <ByteQueue as Shareable>::FINGERPRINT,
        <Channel<ByteQueue> as Shareable>::FINGERPRINT,
        <Channel<FixedByteQueue<4>> as Shareable>::FINGERPRINT,
        <Channel<FixedQueue<u64, 4>> as Shareable>::FINGERPRINT,
        <FixedPriorityQueue<u64, 2, 4> as Shareable>::FINGERPRINT,
        <Channel<FixedPriorityQueue<u64, 2, 4>> as Shareable>::FINGERPRINT,
        <FixedRing<u64, 4> as Shareable>::FINGERPRINT,
        <FixedPipe<4> as Shareable>::FINGERPRINT,
    ];
    let golden = [
        0xaf4c_548b_cc96_4472,
        0x861e_3913_5680_edbd,
        0xfb51_7bfa_09ae_ca90,
        0xa744_bd1b_0936_6c33,
        0xf042_4e6e_ec14_6d58,
        0x835f_9a5b_1aa8_3132,
        0xcac6_ceb0_5059_dc76,
        0xbd04_2e84_90d4_1c05,
        0xac84_1505_70e8_3100,
        0x7763_9fb3_0695_8a23,
        0xc144_d05c_d847_d729,
        0x36d6_7bfd_bca6_5fd3,
        0x9c7b_f51a_279e_5884,
        0x08f0_15a9_ba24_b43d,
        0x0373_3116_5049_1125,
        0x252c_54a5_ef71_f1c1,
        0x36aa_f62d_474d_1bfc,
        0x38ec_57dc_2788_3b24,
        0xccb6_d458_6232_c766,
        0xa124_4190_dd3a_a0d8,
        0x1845_da60_908f_1057,
        0xd80b_daad_57a9_4304,
        0x3330_e21a_7a1e_3df2,
        0x9f63_686f_23bc_0da1,
        0xe46b_6d67_aeb7_4964,
        0x5196_9d10_b465_a8e9,
        0x537e_3777_6a59_00a2,
    ];
    assert_eq!(
        found.map(|print| format!("{print:#018x}")),
        golden.map(|print: u64| format!("{print:#018x}"))
    );
    let mut all = found.to_vec();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), found.len(), "two types have the same");
}

/// Where the numbers lie that a value is born with. (Padding holds whatever was on the stack.)
#[test]
fn births() {
    /// The words of 32 bits at these offsets.
    fn words<T: Shareable + Sync + 'static, const N: usize>(value: T, at: [usize; N]) -> [u32; N] {
        let shared = Shared::anonymous(value).unwrap();
        let file = File::from(shared.try_clone_fd().unwrap());
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 104).unwrap();
        let start = u64::from_ne_bytes(bytes);
        at.map(|at| {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, start + at as u64).unwrap();
            u32::from_ne_bytes(bytes)
        })
    }
    assert_eq!(words(Event::auto(true), [0, 4]), [1, 1]);
    assert_eq!(words(Semaphore::new(5), [0, 4]), [5 << 2, 0]);
    assert_eq!(words(Semaphore::with_ceiling(5, 7), [0, 4]), [5 << 2, 8]);
    assert_eq!(words(OwnedSemaphore::new(5), [0, 40, 44, 48, 56]), [0, 5, 0, 0, 0]);
    assert_eq!(words(Barrier::new(5), [0, 4, 8, 12, 16, 20]), [0, 0, 0, 0, 5, 0]);
    let latch = Latch::with(5, OnDeath::CountDown);
    assert_eq!(words(latch, [0, 4, 8, 12, 16, 20, 24, 32]), [0, 0, 0, 0, 5, 1, 0, 0]);
    assert_eq!(words(Condition::new(), [0, 4]), [0, 0]);
    assert_eq!(words(OnceCell::<u64>::new(), [0, 40, 48, 52]), [0; 4]);
    let set = Shared::anonymous(OnceCell::<u64>::new()).unwrap();
    set.set(7).unwrap();
    let value = std::ptr::from_ref(set.get().unwrap().unwrap()).addr();
    assert_eq!(value - std::ptr::from_ref::<OnceCell<u64>>(&set).addr(), 48);
    assert_eq!(words(RwLock::new(7_u64), [0, 64, 2_048, 2_112]), [0, 0, 0, 7]);
    assert_eq!(words(ReentrantLock::new(7_u64), [0, 40]), [0, 7]);
}

/// The 128 bytes of the header, as the table in `src/segment/header.rs` has them.
#[test]
fn header() {
    let shared = Shared::anonymous(Jobs {
        pending: FixedQueue::new(),
        done: Event::manual(true),
        total: Lock::new(0x0102_0304),
        ticks: Default::default(),
    })
    .unwrap();
    let file = File::from(shared.try_clone_fd().unwrap());
    let mut bytes = [0; 128];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut golden = Vec::new();
    golden.extend(*b"outlast\0");
    golden.extend([1_u32, 1, 8].map(u32::to_ne_bytes).concat()); // version, backend, word
    golden.extend((-32_i32).to_ne_bytes());
    golden.extend(86_016_u64.to_ne_bytes()); // total
    golden.extend(<Jobs as Shareable>::FINGERPRINT.to_ne_bytes());
    // What differs from machine to machine.
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let digits: Vec<u8> =
        boot_id.trim().chars().filter_map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
    golden.extend(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]));
    golden.extend(std::fs::metadata("/proc/self/ns/pid").unwrap().ino().to_ne_bytes());
    // Lifetime, state, processes, threads.
    golden.extend([2_u32, 1, 256, 1_024].map(u32::to_ne_bytes).concat());
    golden.extend(0_u64.to_ne_bytes()); // elements
    let text = DESCRIPTION;
    golden.extend([256, u32::try_from(text.len()).unwrap()].map(u32::to_ne_bytes).concat());
    // Peer table, value, size of the value, reserved.
    golden.extend([1_088_u64, VALUE_AT, 2_816, 0].map(u64::to_ne_bytes).concat());
    assert_eq!(golden.len(), 128);
    assert_eq!(bytes[..], golden[..]);
    let mut found = vec![0; text.len()];
    file.read_exact_at(&mut found, 256).unwrap();
    assert_eq!(String::from_utf8(found).unwrap(), text);
    assert_eq!(file.metadata().unwrap().len(), 86_016);
    // The value is where it says, with what it was born with.
    let mut value = [0; 8];
    file.read_exact_at(&mut value, VALUE_AT + 2_560).unwrap();
    assert_eq!(value[..4], 1_u32.to_ne_bytes(), "the event is set");
    file.read_exact_at(&mut value, VALUE_AT + 2_624 + 40).unwrap();
    assert_eq!(value, 0x0102_0304_u64.to_ne_bytes());
}

/// Where the value of `Jobs` lies in its segment.
const VALUE_AT: u64 = 83_072;

/// What people are shown if the types differ.
const DESCRIPTION: &str = "Jobs (2816 bytes, aligned to 128)
  pending: FixedQueue at 0 (2560 bytes, aligned to 128)
    slots: Job x 3 at 384 (24 bytes, aligned to 8)
      id: u64 at 0 (8 bytes, aligned to 8)
      kind: Kind at 8 (1 bytes, aligned to 1)
      bounds: array at 12 (12 bytes, aligned to 4)
        element: f32 x 3 at 0 (4 bytes, aligned to 4)
    in_flight: Job x 64 at 480 (24 bytes, aligned to 8)
      id: u64 at 0 (8 bytes, aligned to 8)
      kind: Kind at 8 (1 bytes, aligned to 1)
      bounds: array at 12 (12 bytes, aligned to 4)
        element: f32 x 3 at 0 (4 bytes, aligned to 4)
  done: Event at 2560 (8 bytes, aligned to 4)
  total: Lock at 2624 (64 bytes, aligned to 64)
    value: u64 at 40 (8 bytes, aligned to 8)
  ticks: array at 2688 (8 bytes, aligned to 4)
    element: AtomicU32 x 2 at 0 (4 bytes, aligned to 4)
";

/// Types that need no peers have no table, and a chosen size has that size.
#[test]
fn tables() {
    let word = |file: &File, at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_ne_bytes(bytes)
    };
    let lock = Shared::anonymous(Lock::new(0_u64)).unwrap();
    let lock = File::from(lock.try_clone_fd().unwrap());
    assert_eq!(word(&lock, 24), 4_096);
    assert_eq!(word(&lock, 72), 0);
    let options = Options::new().processes(3).threads(5);
    let queue = options.with_capacity::<Queue<u64>>(7).unwrap();
    let file = File::from(queue.try_clone_fd().unwrap());
    assert_eq!(word(&file, 72), 3 | 5 << 32);
    assert_eq!(word(&file, 80), 7 + 64); // slots, with those of the in-flight table
    let (peers, value) = (word(&file, 96), word(&file, 104));
    assert_eq!(value, (peers + 8 * 64).next_multiple_of(128));
}

/// Zero-filled memory is what the constructors make, but for what they are told (and for a lock,
/// which becomes usable when it is placed).
#[test]
fn zeros_are_an_empty_value() {
    const CAPACITY: core::ops::Range<usize> = 284..288;
    let image = |shared: &Shared<Jobs>| {
        let file = File::from(shared.try_clone_fd().unwrap());
        let mut bytes = vec![0; size_of::<Jobs>()];
        file.read_exact_at(&mut bytes, VALUE_AT).unwrap();
        bytes
    };
    let born = Shared::anonymous(Jobs {
        pending: FixedQueue::new(),
        done: Event::manual(false),
        total: Lock::new(0),
        ticks: Default::default(),
    })
    .unwrap();
    let zeros = Options::new().anonymous_with(|_: &Jobs| {}).unwrap();
    // The queue learns its capacity when it is placed.
    let (born, mut zeros) = (image(&born), image(&zeros));
    assert_eq!(zeros[CAPACITY].first(), Some(&3));
    assert_eq!(zeros[CAPACITY], born[CAPACITY]);
    zeros[CAPACITY].fill(0);
    assert!(zeros.iter().all(|&byte| byte == 0));
    // (Padding, and slots without a message, hold whatever was on the stack.)
    for part in [0..8, 128..136, 256..284, 288..312, 2_560..2_568, 2_624..2_672, 2_688..2_696] {
        assert!(born[part.clone()].iter().all(|&byte| byte == 0), "{part:?}");
    }
}
