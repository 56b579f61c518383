//! Plain counterparts of types whose layout the standard library does not define.
//!
//! Programs that share a segment may be built by different compilers. A type is plain only if every
//! compiler lays it out in the same way. That is not so for `Option<T>`, tuples, `Duration` and the
//! addresses of `std::net`. Each type in this file is `repr(C)`, and converts to and from its
//! counterpart.
#![expect(unsafe_code, reason = "the traits promise that bytes may be shared between processes")]
use crate::shareable::{Layout, Plain, Seal, begin, fields, mix, mix_u64};
use core::fmt;
use core::hash::{Hash, Hasher};
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::str::FromStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;
use thiserror::Error;

/// A value that may be absent: the plain counterpart of `Option<T>`.
///
/// `Option<NonZero<_>>` needs no counterpart: it is plain.
///
/// ```
/// use outlast::{FixedQueue, PlainOption, Shared};
///
/// let here = Shared::anonymous(FixedQueue::<PlainOption<u32>, 4>::new())?;
/// let there = Shared::<FixedQueue<PlainOption<u32>, 4>>::from_fd(here.try_clone_fd()?)?;
/// here.send(Some(7).into())?;
/// here.send(None.into())?;
/// assert_eq!(Option::from(there.recv()?), Some(7));
/// assert_eq!(Option::from(there.recv()?), None::<u32>);
/// # Ok::<(), outlast::Error>(())
/// ```
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PlainOption<T: Copy> {
    is_some: bool,
    /// Initialised if `is_some`.
    value: MaybeUninit<T>,
}

impl<T: Copy> PlainOption<T> {
    /// No value.
    pub const NONE: Self = PlainOption { is_some: false, value: MaybeUninit::uninit() };

    /// Makes an option that contains `value`.
    pub const fn some(value: T) -> Self {
        PlainOption { is_some: true, value: MaybeUninit::new(value) }
    }

    /// Returns a reference to the value, if there is one.
    pub const fn as_ref(&self) -> Option<&T> {
        if self.is_some {
            // SAFETY: if `is_some`, the value was made by `some`, or checked by `is_valid`.
            Some(unsafe { self.value.assume_init_ref() })
        } else {
            None
        }
    }

    /// Returns the value as an `Option`.
    pub const fn get(self) -> Option<T> {
        match self.as_ref() {
            Some(value) => Some(*value),
            None => None,
        }
    }
}

impl<T: Copy> From<Option<T>> for PlainOption<T> {
    fn from(option: Option<T>) -> Self {
        option.map_or(Self::NONE, Self::some)
    }
}

impl<T: Copy> From<PlainOption<T>> for Option<T> {
    fn from(option: PlainOption<T>) -> Self {
        option.get()
    }
}

impl<T: Copy> Default for PlainOption<T> {
    fn default() -> Self {
        Self::NONE
    }
}

impl<T: Copy + PartialEq> PartialEq for PlainOption<T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl<T: Copy + Eq> Eq for PlainOption<T> {}

impl<T: Copy + Hash> Hash for PlainOption<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for PlainOption<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

// SAFETY: `repr(C)`; `is_valid` checks the flag, and the value if there is one.
unsafe impl<T: Plain> Plain for PlainOption<T> {
    const FINGERPRINT: u64 = mix_u64(begin::<Self>(b"PlainOption"), T::FINGERPRINT);
    const ANY_BITS: bool = false;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        Layout::of::<Self>("PlainOption", fields!(Plain: is_some: bool, value: T))
    }
    unsafe fn is_valid(at: *const Self) -> bool {
        // SAFETY: the field lies inside the struct that the caller can read.
        let flag = unsafe { &raw const (*at).is_some }.cast::<u8>();
        // SAFETY: any byte of the struct can be read as a `u8`.
        match unsafe { flag.read() } {
            0 => true,
            1 => {
                // SAFETY: as above.
                let value = unsafe { &raw const (*at).value };
                // SAFETY: the field is readable because the struct is, and aligned by `repr(C)`.
                unsafe { T::is_valid(value.cast()) }
            }
            _ => false,
        }
    }
}

/// Declares plain counterparts of tuples.
macro_rules! tuples {
    ($($(#[$meta:meta])* $name:ident($($part:ident $at:tt),+))+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(C)]
        pub struct $name<$($part),+>($(
            #[doc = concat!("Part ", stringify!($at), " of the tuple.")]
            pub $part
        ),+);

        impl<$($part),+> From<($($part),+)> for $name<$($part),+> {
            fn from(tuple: ($($part),+)) -> Self {
                $name($(tuple.$at),+)
            }
        }

        impl<$($part),+> From<$name<$($part),+>> for ($($part),+) {
            fn from(plain: $name<$($part),+>) -> Self {
                ($(plain.$at),+)
            }
        }

        // SAFETY: `repr(C)`, every part is `Plain` itself, and each is checked.
        unsafe impl<$($part: Plain),+> Plain for $name<$($part),+> {
            const FINGERPRINT: u64 = {
                let hash = begin::<Self>(stringify!($name).as_bytes());
                $(let hash = mix_u64(hash, $part::FINGERPRINT);)+
                hash
            };
            const ANY_BITS: bool = $($part::ANY_BITS)&&+;
            const SEAL: Seal = Seal;
            fn layout() -> Layout {
                Layout::of::<Self>(stringify!($name), fields!(Plain: $($at: $part),+))
            }
            unsafe fn is_valid(at: *const Self) -> bool {
                true $(&& {
                    // SAFETY: the part lies inside the struct that the caller can read.
                    let part = unsafe { &raw const (*at).$at };
                    // SAFETY: the part is readable because the struct is, and aligned by `repr(C)`.
                    unsafe { $part::is_valid(part) }
                })+
            }
        }
    )+};
}

tuples! {
    /// Two values: the plain counterpart of `(A, B)`.
    ///
    /// ```
    /// use outlast::{Lock, Pair, Shared};
    ///
    /// let here = Shared::anonymous(Lock::new(Pair(1_u8, 2.5_f64)))?;
    /// let there = Shared::<Lock<Pair<u8, f64>>>::from_fd(here.try_clone_fd()?)?;
    /// let (number, share) = (*there.lock()?).into();
    /// assert_eq!((number, share), (1, 2.5));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    Pair(A 0, B 1)
    /// Three values: the plain counterpart of `(A, B, C)`.
    ///
    /// For more values declare a struct with [`plain!`](crate::plain).
    ///
    /// ```
    /// use outlast::Triple;
    ///
    /// let (x, y, z) = Triple(1_u8, 2_u16, 3_u32).into();
    /// assert_eq!((x, y, z), (1, 2, 3));
    /// ```
    Triple(A 0, B 1, C 2)
}

crate::plain! {
    /// A span of time: the plain counterpart of [`Duration`].
    ///
    /// ```
    /// use outlast::{Lock, PlainDuration, Shared};
    /// use std::time::Duration;
    ///
    /// let here = Shared::anonymous(Lock::new(PlainDuration::from(Duration::from_millis(1_500))))?;
    /// let there = Shared::<Lock<PlainDuration>>::from_fd(here.try_clone_fd()?)?;
    /// assert_eq!(Duration::from(*there.lock()?), Duration::from_millis(1_500));
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct PlainDuration { seconds: u64, nanoseconds: u32 }

    /// An IP address: the plain counterpart of [`IpAddr`].
    ///
    /// ```
    /// use outlast::{Lock, PlainIpAddr, Shared};
    /// use std::net::{IpAddr, Ipv4Addr};
    ///
    /// let here = Shared::anonymous(Lock::new(PlainIpAddr::from(Ipv4Addr::LOCALHOST)))?;
    /// let there = Shared::<Lock<PlainIpAddr>>::from_fd(here.try_clone_fd()?)?;
    /// assert_eq!(IpAddr::from(*there.lock()?), Ipv4Addr::LOCALHOST);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct PlainIpAddr { version: IpVersion, octets: [u8; 16] }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    enum IpVersion: u8 { V4 = 4, V6 = 6 }

    /// An IP address and a port: the plain counterpart of [`SocketAddr`].
    ///
    /// ```
    /// use outlast::{Lock, PlainSocketAddr, Shared};
    /// use std::net::SocketAddr;
    ///
    /// let address: SocketAddr = "[::1]:80".parse().unwrap();
    /// let here = Shared::anonymous(Lock::new(PlainSocketAddr::from(address)))?;
    /// let there = Shared::<Lock<PlainSocketAddr>>::from_fd(here.try_clone_fd()?)?;
    /// assert_eq!(SocketAddr::from(*there.lock()?), address);
    /// # Ok::<(), outlast::Error>(())
    /// ```
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct PlainSocketAddr { ip: PlainIpAddr, port: u16, flow_info: u32, scope_id: u32 }
}

impl From<Duration> for PlainDuration {
    fn from(duration: Duration) -> Self {
        PlainDuration { seconds: duration.as_secs(), nanoseconds: duration.subsec_nanos() }
    }
}

impl From<PlainDuration> for Duration {
    fn from(plain: PlainDuration) -> Self {
        // In a damaged segment, the nanoseconds may be more than a second.
        let rest = Duration::from_nanos(plain.nanoseconds.into());
        Duration::from_secs(plain.seconds).saturating_add(rest)
    }
}

impl From<Ipv4Addr> for PlainIpAddr {
    fn from(address: Ipv4Addr) -> Self {
        let mut octets = [0; 16];
        octets[..4].copy_from_slice(&address.octets());
        PlainIpAddr { version: IpVersion::V4, octets }
    }
}

impl From<Ipv6Addr> for PlainIpAddr {
    fn from(address: Ipv6Addr) -> Self {
        PlainIpAddr { version: IpVersion::V6, octets: address.octets() }
    }
}

impl From<IpAddr> for PlainIpAddr {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<PlainIpAddr> for IpAddr {
    fn from(plain: PlainIpAddr) -> Self {
        let [a, b, c, d, ..] = plain.octets;
        match plain.version {
            IpVersion::V4 => [a, b, c, d].into(),
            IpVersion::V6 => plain.octets.into(),
        }
    }
}

impl From<SocketAddr> for PlainSocketAddr {
    fn from(address: SocketAddr) -> Self {
        let (flow_info, scope_id) = match address {
            SocketAddr::V4(_) => (0, 0),
            SocketAddr::V6(address) => (address.flowinfo(), address.scope_id()),
        };
        PlainSocketAddr { ip: address.ip().into(), port: address.port(), flow_info, scope_id }
    }
}

impl From<PlainSocketAddr> for SocketAddr {
    fn from(plain: PlainSocketAddr) -> Self {
        match plain.ip.into() {
            IpAddr::V4(ip) => SocketAddrV4::new(ip, plain.port).into(),
            IpAddr::V6(ip) => {
                SocketAddrV6::new(ip, plain.port, plain.flow_info, plain.scope_id).into()
            }
        }
    }
}

/// A string of up to `N` bytes, which are part of the value.
///
/// ```
/// use outlast::{FixedQueue, FixedStr, Shared};
///
/// let here = Shared::anonymous(FixedQueue::<FixedStr<16>, 4>::new())?;
/// let there = Shared::<FixedQueue<FixedStr<16>, 4>>::from_fd(here.try_clone_fd()?)?;
/// here.send("worker 7".parse()?)?;
/// assert_eq!(there.recv()?.as_str(), "worker 7");
/// assert!("longer than 16 bytes".parse::<FixedStr<16>>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
#[repr(C)]
pub struct FixedStr<const N: usize> {
    len: u32,
    bytes: [u8; N],
}

/// A string does not fit into a [`FixedStr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a string of {len} bytes does not fit into a `FixedStr` of {capacity}: use a greater `N`")]
pub struct StrTooLong {
    /// The length of the string, in bytes.
    pub len: usize,
    /// The number of bytes that fit.
    pub capacity: usize,
}

impl<const N: usize> FixedStr<N> {
    const FITS: () =
        assert!(N <= u32::MAX as usize, "a `FixedStr` has at most 4,294,967,295 bytes");

    /// Copies `text`.
    ///
    /// # Errors
    /// [`StrTooLong`] if `text` has more than `N` bytes.
    pub fn new(text: &str) -> Result<Self, StrTooLong> {
        const { Self::FITS };
        let mut bytes = [0; N];
        match (bytes.get_mut(..text.len()), u32::try_from(text.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(text.as_bytes());
                Ok(FixedStr { len, bytes })
            }
            _ => Err(StrTooLong { len: text.len(), capacity: N }),
        }
    }

    /// Returns the string.
    ///
    /// Each call checks the bytes. In a damaged segment it returns an empty string if they are not
    /// a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.checked().unwrap_or_default()
    }

    fn checked(&self) -> Option<&str> {
        let bytes = self.bytes.get(..self.len as usize)?;
        core::str::from_utf8(bytes).ok()
    }
}

impl<const N: usize> Default for FixedStr<N> {
    fn default() -> Self {
        FixedStr { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> Deref for FixedStr<N> {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl<const N: usize> AsRef<str> for FixedStr<N> {
    fn as_ref(&self) -> &str {
        self
    }
}

impl<const N: usize> TryFrom<&str> for FixedStr<N> {
    type Error = StrTooLong;
    fn try_from(text: &str) -> Result<Self, StrTooLong> {
        FixedStr::new(text)
    }
}

impl<const N: usize> FromStr for FixedStr<N> {
    type Err = StrTooLong;
    fn from_str(text: &str) -> Result<Self, StrTooLong> {
        FixedStr::new(text)
    }
}

impl<const N: usize> From<FixedStr<N>> for String {
    fn from(text: FixedStr<N>) -> Self {
        (*text).to_owned()
    }
}

impl<const N: usize> PartialEq for FixedStr<N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<const N: usize> Eq for FixedStr<N> {}

impl<const N: usize> PartialEq<str> for FixedStr<N> {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<&str> for FixedStr<N> {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl<const N: usize> PartialOrd for FixedStr<N> {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> Ord for FixedStr<N> {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl<const N: usize> Hash for FixedStr<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<const N: usize> fmt::Debug for FixedStr<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<const N: usize> fmt::Display for FixedStr<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

// SAFETY: `repr(C)`; `is_valid` checks the length and the bytes.
unsafe impl<const N: usize> Plain for FixedStr<N> {
    const FINGERPRINT: u64 = mix_u64(mix(begin::<Self>(b"FixedStr"), b"utf-8"), N as u64);
    const ANY_BITS: bool = false;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        Layout::of::<Self>("FixedStr", fields!(Plain: len: u32, bytes: [u8; N]))
    }
    unsafe fn is_valid(at: *const Self) -> bool {
        // SAFETY: the caller promises that the bytes are readable, and any bytes are a number and
        // an array of bytes. The copy is checked, because a peer may change the original meanwhile.
        unsafe { at.read() }.checked().is_some()
    }
}
