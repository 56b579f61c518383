//! Plain types: each value comes through shared memory unchanged, and bytes that are no value of
//! the type are refused.
#![cfg(not(outlast_loom))]
#![expect(unsafe_code, reason = "asks the hidden checks about bytes of all kinds")]
use outlast::{
    AtomicBool, Error, Fault, FixedQueue, FixedStr, Lock, LockError, Pair, Plain, PlainDuration,
    PlainIpAddr, PlainOption, PlainSocketAddr, RecvError, Shared, Triple,
};
use std::mem::{align_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// The value after its way through a queue, to another mapping of the segment.
fn through<T: Plain>(value: T) -> T {
    let here = Shared::anonymous(FixedQueue::<T, 2>::new()).unwrap();
    let there = Shared::<FixedQueue<T, 2>>::from_fd(here.try_clone_fd().unwrap()).unwrap();
    here.send(value).unwrap();
    there.recv().unwrap()
}

/// Whether these bytes are a value of the type.
fn is_valid<T: Plain>(bytes: &[u8]) -> bool {
    assert_eq!(bytes.len(), size_of::<T>());
    let mut room = vec![0_u128; bytes.len().div_ceil(16).max(1)];
    assert!(align_of::<T>() <= align_of::<u128>());
    let at = room.as_mut_ptr().cast::<u8>();
    // SAFETY: the room has at least this many bytes.
    unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    // SAFETY: as many bytes as the type has, aligned.
    unsafe { T::is_valid(at.cast()) }
}

#[test]
fn numbers_other_than_zero() {
    assert_eq!(through(NonZero::new(5_u32).unwrap()).get(), 5);
    assert_eq!(through(NonZero::new(-5_i64)), NonZero::new(-5));
    assert_eq!(through(NonZero::new(0_u8)), None);
    assert!(!is_valid::<NonZero<u32>>(&[0; 4]));
    assert!(is_valid::<NonZero<u32>>(&[0, 0, 1, 0]));
    assert!(!is_valid::<NonZero<i128>>(&[0; 16]));
    assert!(is_valid::<Option<NonZero<u32>>>(&[0; 4]));
}

#[test]
fn characters() {
    for character in ['a', '\0', 'ß', '\u{d7ff}', '\u{e000}', char::MAX] {
        assert_eq!(through(character), character);
        assert!(is_valid::<char>(&u32::from(character).to_ne_bytes()));
    }
    for number in [0xd800_u32, 0xdfff, 0x11_0000, u32::MAX] {
        assert!(!is_valid::<char>(&number.to_ne_bytes()), "{number:#x}");
    }
}

#[test]
fn options() {
    for option in [None, Some(0_u64), Some(u64::MAX)] {
        assert_eq!(Option::from(through(PlainOption::from(option))), option);
    }
    assert_eq!(PlainOption::<u8>::default(), PlainOption::NONE);
    assert_ne!(PlainOption::some(0_u8), PlainOption::NONE);
    // The value is checked only if there is one.
    assert!(is_valid::<PlainOption<bool>>(&[0, 7]));
    assert!(is_valid::<PlainOption<bool>>(&[1, 1]));
    assert!(!is_valid::<PlainOption<bool>>(&[1, 7]));
    assert!(!is_valid::<PlainOption<bool>>(&[2, 1]));
}

#[test]
fn tuples() {
    assert_eq!(<(u8, f64)>::from(through(Pair(1, 2.5))), (1, 2.5));
    assert_eq!(through(Triple::from((1_u8, 'x', true))), Triple(1, 'x', true));
    assert!(is_valid::<Pair<u8, bool>>(&[9, 1]));
    assert!(!is_valid::<Pair<u8, bool>>(&[1, 9]));
    assert!(!is_valid::<Triple<bool, u8, u8>>(&[2, 0, 0]));
}

#[test]
fn durations() {
    for duration in [Duration::ZERO, Duration::MAX, Duration::new(3, 999_999_999)] {
        assert_eq!(Duration::from(through(PlainDuration::from(duration))), duration);
    }
    // Any bytes are a duration, also those that no program writes.
    assert!(is_valid::<PlainDuration>(&[0xff; 16]));
    assert!(PlainDuration::from(Duration::from_millis(1)) < PlainDuration::from(Duration::MAX));
}

#[test]
fn addresses() {
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6).into(),
    ];
    for address in addresses {
        assert_eq!(IpAddr::from(through(PlainIpAddr::from(address))), address);
        let socket = SocketAddr::new(address, 443);
        assert_eq!(SocketAddr::from(through(PlainSocketAddr::from(socket))), socket);
    }
    let scoped = SocketAddr::from(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 2, 3));
    assert_eq!(SocketAddr::from(through(PlainSocketAddr::from(scoped))), scoped);
    let mut bytes = [0; 17];
    assert!(!is_valid::<PlainIpAddr>(&bytes));
    bytes[0] = 4;
    assert!(is_valid::<PlainIpAddr>(&bytes));
}

#[test]
fn strings() {
    for text in ["", "a", "Straße", "16 bytes exactly"] {
        let fixed: FixedStr<16> = through(text.parse().unwrap());
        assert_eq!(fixed, text);
        assert_eq!(String::from(fixed), text);
    }
    let error = FixedStr::<4>::new("12345").unwrap_err();
    assert_eq!((error.len, error.capacity), (5, 4));
    assert!(error.to_string().contains("5 bytes"), "{error}");
    let bytes = |len: u32, text: [u8; 4]| [len.to_ne_bytes(), text].concat();
    assert!(is_valid::<FixedStr<4>>(&bytes(4, *b"abcd")));
    assert!(is_valid::<FixedStr<4>>(&bytes(1, [b'a', 0xff, 0xff, 0xff]))); // the rest is no text
    assert!(!is_valid::<FixedStr<4>>(&bytes(2, [b'a', 0xff, 0, 0])));
    assert!(!is_valid::<FixedStr<4>>(&bytes(5, *b"abcd")));
    assert!(!is_valid::<FixedStr<4>>(&bytes(u32::MAX, *b"abcd")));
}

/// A peer that writes nonsense gives an error, not a wrong value.
#[test]
fn a_damaged_value_is_refused() -> Result<(), Error> {
    let here = Shared::anonymous(Lock::new('\u{10fffe}'))?;
    let file = std::fs::File::from(here.try_clone_fd().unwrap());
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    file.read_exact_at(&mut bytes, 0)?;
    let value = 0x10_fffe_u32.to_ne_bytes();
    let places: Vec<_> = (0..bytes.len() - 3).filter(|&at| bytes[at..at + 4] == value).collect();
    let [place] = places[..] else { panic!("{places:?}") };
    file.write_all_at(&0xd800_u32.to_ne_bytes(), place as u64)?;
    assert!(matches!(here.lock(), Err(LockError::Failed(Fault::Corrupt))));
    file.write_all_at(&value, place as u64)?;
    assert_eq!(*here.lock()?, '\u{10fffe}');

    let queue = Shared::anonymous(FixedQueue::<char, 2>::new())?;
    queue.send('\u{10fffe}')?;
    let file = std::fs::File::from(queue.try_clone_fd().unwrap());
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    file.read_exact_at(&mut bytes, 0)?;
    let place = (0..bytes.len() - 3).find(|&at| bytes[at..at + 4] == value).unwrap();
    file.write_all_at(&0xd800_u32.to_ne_bytes(), place as u64)?;
    assert_eq!(queue.recv(), Err(RecvError::Failed(Fault::Corrupt)));
    Ok(())
}

/// Types that differ are not taken for each other, although their bytes are the same.
#[test]
fn fingerprints_differ() {
    let fingerprints = [
        <u32 as Plain>::FINGERPRINT,
        <char as Plain>::FINGERPRINT,
        <NonZero<u32> as Plain>::FINGERPRINT,
        <Option<NonZero<u32>> as Plain>::FINGERPRINT,
        <[u8; 4] as Plain>::FINGERPRINT,
        <Pair<u16, u16> as Plain>::FINGERPRINT,
        <Pair<u16, i16> as Plain>::FINGERPRINT,
        <Triple<u16, u8, u8> as Plain>::FINGERPRINT,
        <PlainOption<u16> as Plain>::FINGERPRINT,
        <PlainOption<i16> as Plain>::FINGERPRINT,
        <FixedStr<0> as Plain>::FINGERPRINT,
        <FixedStr<4> as Plain>::FINGERPRINT,
        <FixedStr<5> as Plain>::FINGERPRINT,
    ];
    let distinct: std::collections::BTreeSet<_> = fingerprints.iter().collect();
    assert_eq!(distinct.len(), fingerprints.len());
}

outlast::shared! {
    struct Flags { first: AtomicBool, others: [AtomicBool; 3] }
}

#[test]
fn flags() -> Result<(), Error> {
    let others = [true, false, true].map(AtomicBool::new);
    let here = Shared::anonymous(Flags { first: AtomicBool::new(false), others })?;
    let there = Shared::<Flags>::from_fd(here.try_clone_fd()?)?;
    assert!(!here.first.swap(true, SeqCst));
    assert!(there.first.load(SeqCst));
    assert_eq!(there.first.compare_exchange(false, true, SeqCst, SeqCst), Err(true));
    assert_eq!(there.first.compare_exchange(true, false, SeqCst, SeqCst), Ok(true));
    assert!(!here.first.fetch_or(true, SeqCst));
    assert!(here.first.fetch_xor(true, SeqCst));
    assert!(!here.first.fetch_or(false, SeqCst));
    assert!(there.others[0].fetch_and(false, SeqCst));
    assert!(!here.others[0].load(SeqCst));
    Ok(())
}

/// A byte that is neither 0 nor 1 counts by its lowest bit, and ends every operation.
#[test]
fn a_flag_of_any_byte() {
    for byte in 0..=u8::MAX {
        // SAFETY: the type is transparent, and says of itself that any byte is valid.
        let flag: AtomicBool = unsafe { std::mem::transmute(byte) };
        let set = byte % 2 == 1;
        assert_eq!(flag.load(SeqCst), set);
        assert_eq!(flag.compare_exchange(!set, set, SeqCst, SeqCst), Err(set));
        assert_eq!(flag.compare_exchange(set, !set, SeqCst, SeqCst), Ok(set));
        assert_eq!(flag.load(SeqCst), !set);
    }
}
