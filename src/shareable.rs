//! What may cross from process to process, and how it proves that both sides mean the same bytes.
//!
//! Two traits: [`Shareable`] for what lies in a segment and is reached by `&` only (the primitives
//! of this crate, structs of them, atomics, read-only numbers), and [`Plain`] for the payload that
//! primitives guard or carry. Both state a *fingerprint* of their layout, compared at open, and a
//! [`Layout`] that is written into the segment, so that a mismatch can be shown field by field.
#![expect(unsafe_code, reason = "the traits promise that bytes may be shared between processes")]
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use core::fmt::Write as _;
use core::num::NonZero;
use core::ptr::NonNull;

/// A type's layout in memory, for people to compare.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The type's name, without its path.
    pub name: &'static str,
    /// Its size in bytes, without elements whose number is chosen at run time.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// Its fields, in order.
    pub fields: &'static [Field],
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Its distance from the start of the type, in bytes.
    pub offset: usize,
    /// How many values of the type follow each other there.
    pub count: usize,
    /// The layout of one of them.
    pub layout: fn() -> Layout,
}

impl Layout {
    /// The layout of a type whose size is known.
    #[must_use]
    pub const fn of<T>(name: &'static str, fields: &'static [Field]) -> Self {
        Layout { name, size: size_of::<T>(), align: align_of::<T>(), fields }
    }
}

#[cfg_attr(outlast_loom, expect(dead_code, reason = "the model has no segments to compare"))]
impl Layout {
    /// One line a field, nested ones indented.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        writeln!(text, "{} ({} bytes, aligned to {})", self.name, self.size, self.align)
            .unwrap_or_default();
        self.describe_fields(1, &mut text);
        text
    }

    fn describe_fields(&self, depth: usize, text: &mut String) {
        for field in self.fields {
            let layout = (field.layout)();
            let (indent, times) = (2 * depth, field.count);
            let times = if times == 1 { String::new() } else { format!(" x {times}") };
            writeln!(
                text,
                "{:indent$}{}: {}{times} at {} ({} bytes, aligned to {})",
                "", field.name, layout.name, field.offset, layout.size, layout.align
            )
            .unwrap_or_default();
            layout.describe_fields(depth + 1, text);
        }
    }
}

/// A process that has left, as the recovery walk hands it to each primitive.
#[derive(Clone, Copy, Debug)]
pub struct Dead {
    /// The owner tag in every cell that the process had claimed: its slot in the peer table, from
    /// 1.
    pub(crate) tag: u32,
    /// It left by itself (exit, last drop) rather than by being killed.
    pub(crate) clean: bool,
    /// Its process id.
    pub(crate) pid: u32,
}

impl Dead {
    /// A killed process, for models and tests of the recovery walk.
    #[doc(hidden)]
    #[must_use]
    pub fn killed(tag: u32) -> Self {
        Dead { tag, clean: false, pid: tag }
    }
}

/// Proves that an implementation of [`Shareable`] or [`Plain`] comes from this crate or one of its
/// macros.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Seal;

/// A type whose values may lie in shared memory.
///
/// Implemented by the primitives of this crate, by atomics, integers, floats and arrays of them,
/// and by every struct declared with [`shared!`](crate::shared). The trait is sealed: only this
/// crate and that macro implement it. Every member is a part of the inside.
///
/// The standard library's `AtomicBool` is not among the atomics: of its 256 bytes only two are
/// valid, and a peer could write another. [`AtomicBool`](crate::AtomicBool) takes its place.
///
/// ```compile_fail,E0277
/// outlast::shared! {
///     struct Wrong { names: String } // a `String` points into one process's heap
/// }
/// ```
///
/// ```compile_fail,E0277
/// outlast::shared! {
///     struct Wrong { guarded: outlast::Lock<Vec<u8>> } // so does what a `Vec` owns
/// }
/// ```
///
/// # Safety
/// - `repr(C)`, no pointer or reference, no `Drop`, nothing that is private to one process.
/// - Zero-filled memory, and in fact memory with any bytes, is a valid value: reached through `&`
///   it may give wrong answers, never undefined behaviour.
/// - [`at`](Shareable::at), `ALIGN` and [`size`](Shareable::size) agree with each other.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot live in shared memory",
    label = "not shareable between processes",
    note = "it may hold pointers into one process. Use primitives of `outlast`, atomics, numbers and arrays of them; declare structs of them with `outlast::shared!`"
)]
pub unsafe trait Shareable {
    /// A hash of the type's name, size and alignment, and of its fields' names, offsets and
    /// fingerprints. Types that differ in one of them have different fingerprints.
    #[doc(hidden)]
    const FINGERPRINT: u64;
    /// The alignment in bytes.
    #[doc(hidden)]
    const ALIGN: usize;
    /// Whether the death of a process leaves something to mend that the kernel does not.
    #[doc(hidden)]
    const NEEDS_PEERS: bool;
    #[doc(hidden)]
    const SEAL: Seal;

    /// The layout, for people.
    #[doc(hidden)]
    fn layout() -> Layout;
    /// The size in bytes with `len` elements chosen at run time (0 where there are none), or
    /// `None` if that is not possible.
    #[doc(hidden)]
    fn size(len: usize) -> Option<usize>;
    /// The pointer to a value with `len` run-time elements that starts at `base`.
    #[doc(hidden)]
    fn at(base: NonNull<u8>, len: usize) -> NonNull<Self>;
    /// Called once when the value lies where it will stay.
    #[doc(hidden)]
    fn place(&self) {}
    /// Mends what `dead` left behind. May be called again for the same process: a recoverer
    /// can be killed as well.
    #[doc(hidden)]
    fn recover(&self, _dead: &Dead) {}
    /// Whether a thread for which `ours` answers yes still owns something in here.
    #[doc(hidden)]
    fn in_use(&self, _ours: &dyn Fn(u32) -> bool) -> bool {
        false
    }
    /// Whether the bytes are such that operations on them keep apart what they lend to different
    /// callers. It is asked when a segment is opened, beside peers that may be using it.
    #[doc(hidden)]
    fn is_sound(&self) -> bool {
        true
    }
}

/// A shareable type whose capacity is chosen when a value is created.
///
/// Implemented by the queues, channels, rings, pipes and journals of this crate, by
/// [`LockedSlice`](crate::LockedSlice), and by slices of shareable types: a
/// `Shared<[AtomicU64]>` has as many elements as its capacity says, zero-filled.
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates such a value.
pub trait WithCapacity: Shareable {
    /// The number of elements ([`Shareable::size`]) that gives at least `capacity`, or `None` if
    /// there is no such number. [`Shareable::size`] may still refuse the number.
    #[doc(hidden)]
    #[must_use]
    fn units(capacity: usize) -> Option<usize> {
        Some(capacity)
    }

    /// Like [`units`](Self::units), with room for `in_flight` unacknowledged messages. `None` also
    /// if messages of the type are not acknowledged.
    #[doc(hidden)]
    #[must_use]
    fn units_in_flight(_capacity: usize, _in_flight: usize) -> Option<usize> {
        None
    }

    /// Divides the elements of a new value, of which there are `units_in_flight`. Called before
    /// [`place`](Shareable::place).
    #[doc(hidden)]
    fn set_in_flight(&self, _in_flight: usize) {}
}

/// Data that primitives guard and carry: what may be in a `Lock` or pass through a `Queue`.
///
/// The programs that share a segment may be built by different compilers, so a type is plain only
/// if all compilers lay it out in the same way. Where the standard library does not promise that,
/// a type of this crate takes its place, with `From` in both directions:
///
/// | of the standard library | is it plain? |
/// |---|---|
/// | integers, floats, `bool`, `char`, `()` | yes |
/// | arrays of plain types | yes |
/// | `NonZero<T>`, `Option<NonZero<T>>` | yes |
/// | `Option<T>` of other types | no: [`PlainOption<T>`](crate::PlainOption) |
/// | tuples | no: [`Pair`](crate::Pair), [`Triple`](crate::Triple), or a struct of `plain!` |
/// | `Duration` | no: [`PlainDuration`](crate::PlainDuration) |
/// | `IpAddr`, `Ipv4Addr`, `Ipv6Addr` | no: [`PlainIpAddr`](crate::PlainIpAddr) |
/// | `SocketAddr` | no: [`PlainSocketAddr`](crate::PlainSocketAddr) |
/// | `String`, `&str` | no: [`FixedStr<N>`](crate::FixedStr) |
/// | structs and enums | if they are declared with [`plain!`](crate::plain) |
///
/// A value that comes out of shared memory is checked if not all patterns of bytes are values of
/// its type. The trait is sealed: only this crate and its macro `plain!` implement it.
///
/// # Safety
/// - `repr(C)` or primitive; no pointer, no interior mutability, no `Drop`, no primitive of this
///   crate.
/// - [`is_valid`](Plain::is_valid) tells for any bytes whether they are a value of the type, and
///   always says yes if `ANY_BITS`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not plain data",
    label = "cannot be carried from process to process as bytes",
    note = "plain are integers, floats, bool, char, arrays of them, and structs and C-like enums declared with `outlast::plain!`; a `String`, `Vec` or reference points into one process",
    note = "the docs of `outlast::Plain` list the counterparts of `Option`, tuples, `Duration`, addresses and strings"
)]
pub unsafe trait Plain: Copy + Send + Sync + 'static {
    /// A hash of the type's name, size and alignment, and of its fields' names, offsets and
    /// fingerprints. Types that differ in one of them have different fingerprints.
    #[doc(hidden)]
    const FINGERPRINT: u64;
    /// Whether every pattern of bytes is a value.
    #[doc(hidden)]
    const ANY_BITS: bool;
    #[doc(hidden)]
    const SEAL: Seal;

    /// The layout, for people.
    #[doc(hidden)]
    fn layout() -> Layout;

    /// Whether the bytes at `at` are a value of the type.
    ///
    /// # Safety
    /// `at` is aligned and `size_of::<Self>()` bytes can be read there.
    #[doc(hidden)]
    unsafe fn is_valid(at: *const Self) -> bool;
}

/// Folds bytes into a fingerprint (the 64-bit FNV-1a hash).
#[doc(hidden)]
#[must_use]
pub const fn mix(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

/// Folds a number into a fingerprint.
#[doc(hidden)]
#[must_use]
pub const fn mix_u64(hash: u64, number: u64) -> u64 {
    mix(hash, &number.to_le_bytes())
}

/// The basis of the hash.
pub(crate) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// Where every fingerprint starts: the name of a type, its size and its alignment.
///
/// The fingerprint of a type that holds others is made of theirs. So neither the place of a value
/// within a primitive nor the distance between the elements of an array can differ unnoticed.
#[doc(hidden)]
#[must_use]
pub const fn begin<T>(name: &[u8]) -> u64 {
    mix_u64(mix_u64(mix(SEED, name), size_of::<T>() as u64), align_of::<T>() as u64)
}

/// The parts of [`Shareable`] that every type of a known size shares.
#[doc(hidden)]
#[macro_export]
macro_rules! __sized_shareable {
    () => {
        const ALIGN: usize = ::core::mem::align_of::<Self>();
        const SEAL: $crate::__private::Seal = $crate::__private::Seal;
        fn size(len: usize) -> ::core::option::Option<usize> {
            if len == 0 { Some(::core::mem::size_of::<Self>()) } else { None }
        }
        fn at(base: ::core::ptr::NonNull<u8>, _len: usize) -> ::core::ptr::NonNull<Self> {
            base.cast()
        }
    };
}

/// The parts of [`Shareable`] that are shared by every struct which ends in a slice, its field
/// `slots`. `$one` is the same struct with an array in place of the slice, `$slot` an element,
/// `$most` the greatest number of them. `$is_valid` refuses further numbers.
macro_rules! slice_shareable {
    ($one:ty, $slot:ty, $most:expr $(, $is_valid:expr)?) => {
        const ALIGN: usize = align_of::<$one>();
        fn size(len: usize) -> Option<usize> {
            if len == 0 || len > $most $(|| !$is_valid(len))? {
                return None;
            }
            let end = size_of::<$slot>()
                .checked_mul(len)?
                .checked_add(::core::mem::offset_of!($one, slots))?;
            end.checked_next_multiple_of(Self::ALIGN).filter(|&size| isize::try_from(size).is_ok())
        }
        $crate::shareable::at_slice!();
    };
}
pub(crate) use slice_shareable;

/// [`Shareable::at`] of a struct that ends in a slice, or in another such struct.
macro_rules! at_slice {
    () => {
        const SEAL: $crate::shareable::Seal = $crate::shareable::Seal;
        fn at(base: ::core::ptr::NonNull<u8>, len: usize) -> ::core::ptr::NonNull<Self> {
            // A pointer to a struct that ends in a slice has the slice's length as its own.
            let slice = ::core::ptr::NonNull::slice_from_raw_parts(base, len);
            let pointer = slice.as_ptr() as *mut Self;
            ::core::ptr::NonNull::new(pointer).unwrap_or_else(|| unreachable!("`base` is not null"))
        }
    };
}
pub(crate) use at_slice;

/// [`Shareable`] for the two forms of a struct, whose last field `slots` is a slice (`$Slice`) or
/// an array of `$N` elements (`$Array`). The second form dereferences to the first. The other
/// arguments are those of [`slice_shareable!`], and methods of the trait for both forms.
///
/// The caller promises what [`Shareable`] demands, in a SAFETY comment.
macro_rules! both_shareable {
    (
        [$($generics:tt)*] $Slice:ty, [$N:ident] $Array:ty, $name:literal,
        $one:ty, $slot:ty, $most:expr $(, $is_valid:expr)?;
        $($methods:tt)*
    ) => {
        // SAFETY: the caller's promise.
        unsafe impl<$($generics)* const $N: usize> Shareable for $Array {
            const FINGERPRINT: u64 = mix_u64(<$Slice>::BASE, $N as u64);
            const NEEDS_PEERS: bool = true;
            $crate::__sized_shareable!();
            fn layout() -> Layout {
                Layout::of::<Self>(concat!("Fixed", $name), const { &Self::FIELDS })
            }
            $($methods)*
        }

        // SAFETY: the caller's promise. The number of elements is the pointer's, which `at` got
        // from the checked header, and which `size` has approved.
        unsafe impl<$($generics)*> Shareable for $Slice {
            const FINGERPRINT: u64 = <$Slice>::BASE;
            const NEEDS_PEERS: bool = true;
            fn layout() -> Layout {
                let (fields, align) = (const { &<$one>::FIELDS }, Self::ALIGN);
                Layout { name: $name, size: fields[0].offset, align, fields }
            }
            $crate::shareable::slice_shareable!($one, $slot, $most $(, $is_valid)?);
            $($methods)*
        }

        impl<$($generics)* const $N: usize> ::core::ops::Deref for $Array {
            type Target = $Slice;
            #[inline(always)]
            fn deref(&self) -> &$Slice {
                self
            }
        }

        impl<$($generics)* const $N: usize> ::core::fmt::Debug for $Array {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}
pub(crate) use both_shareable;

macro_rules! numbers {
    ($($number:ty)*) => {$(
        // SAFETY: a number has no padding, and any bits are one of its values.
        unsafe impl Plain for $number {
            const FINGERPRINT: u64 = begin::<$number>(stringify!($number).as_bytes());
            const ANY_BITS: bool = true;
            const SEAL: Seal = Seal;
            fn layout() -> Layout {
                Layout::of::<$number>(stringify!($number), &[])
            }
            unsafe fn is_valid(_at: *const Self) -> bool {
                true
            }
        }
        // SAFETY: as above; through `&` it can only be read.
        unsafe impl Shareable for $number {
            const FINGERPRINT: u64 = <$number as Plain>::FINGERPRINT;
            const NEEDS_PEERS: bool = false;
            $crate::__sized_shareable!();
            fn layout() -> Layout {
                <$number as Plain>::layout()
            }
        }
    )*};
}
numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

macro_rules! atomics {
    ($($atomic:ty)*) => {$(
        // SAFETY: an atomic has no padding, and any bits of it are a value.
        unsafe impl Shareable for $atomic {
            const FINGERPRINT: u64 = begin::<$atomic>(stringify!($atomic).as_bytes());
            const NEEDS_PEERS: bool = false;
            $crate::__sized_shareable!();
            fn layout() -> Layout {
                Layout::of::<$atomic>(stringify!($atomic), &[])
            }
        }
    )*};
}
atomics!(AtomicU32 AtomicU64 AtomicUsize);
#[cfg(not(outlast_loom))]
use core::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16,
};
#[cfg(not(outlast_loom))]
atomics!(AtomicU8 AtomicU16 AtomicI8 AtomicI16 AtomicI32 AtomicI64 AtomicIsize);

/// Plain types of the standard library whose bytes are checked as another type, of the same size,
/// of which any bytes are a value.
macro_rules! checked {
    ($($type:ty: $bytes:ty, $check:expr;)*) => {$(
        // SAFETY: the standard library defines the layout, and `is_valid` admits only its values.
        unsafe impl Plain for $type {
            const FINGERPRINT: u64 = begin::<$type>(stringify!($type).as_bytes());
            const ANY_BITS: bool = false;
            const SEAL: Seal = Seal;
            fn layout() -> Layout {
                Layout::of::<$type>(stringify!($type), &[])
            }
            unsafe fn is_valid(at: *const Self) -> bool {
                let check: fn($bytes) -> bool = $check;
                // SAFETY: the caller's promise; the types have one size and one alignment, and any
                // bytes are of type `$bytes`.
                check(unsafe { at.cast::<$bytes>().read() })
            }
        }
    )*};
}
checked! {
    bool: u8, |bits| bits < 2;
    char: u32, |bits| char::from_u32(bits).is_some();
}

/// The numbers other than zero, and as `Option`, whose `None` is zero: the standard library defines
/// both layouts.
macro_rules! nonzeros {
    ($($number:ty)*) => {$(
        checked! { NonZero<$number>: $number, |bits| bits != 0; }
        // SAFETY: laid out as the number, of which any bits are a value.
        unsafe impl Plain for Option<NonZero<$number>> {
            const FINGERPRINT: u64 =
                begin::<Self>(stringify!(Option<NonZero<$number>>).as_bytes());
            const ANY_BITS: bool = true;
            const SEAL: Seal = Seal;
            fn layout() -> Layout {
                Layout::of::<Self>(stringify!(Option<NonZero<$number>>), &[])
            }
            unsafe fn is_valid(_at: *const Self) -> bool {
                true
            }
        }
    )*};
}
nonzeros!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

// SAFETY: no bytes at all.
unsafe impl Plain for () {
    const FINGERPRINT: u64 = begin::<()>(b"()");
    const ANY_BITS: bool = true;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        Layout::of::<()>("()", &[])
    }
    unsafe fn is_valid(_at: *const Self) -> bool {
        true
    }
}

// SAFETY: elements follow each other without gaps, and each is checked.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {
    const FINGERPRINT: u64 = mix_u64(mix(T::FINGERPRINT, b"array"), N as u64);
    const ANY_BITS: bool = T::ANY_BITS;
    const SEAL: Seal = Seal;
    fn layout() -> Layout {
        Layout::of::<Self>(
            "array",
            const { &[Field { name: "element", offset: 0, count: N, layout: T::layout }] },
        )
    }
    unsafe fn is_valid(at: *const Self) -> bool {
        let first = at.cast::<T>();
        T::ANY_BITS
            || (0..N).all(|i| {
                // SAFETY: `i` is below the length of the array that `at` points to.
                let element = unsafe { first.add(i) };
                // SAFETY: an element of the array is as readable as the whole.
                unsafe { T::is_valid(element) }
            })
    }
}

// SAFETY: elements follow each other without gaps, and each keeps the contract.
unsafe impl<T: Shareable, const N: usize> Shareable for [T; N] {
    const FINGERPRINT: u64 = mix_u64(mix(<T as Shareable>::FINGERPRINT, b"array"), N as u64);
    const NEEDS_PEERS: bool = T::NEEDS_PEERS;
    crate::__sized_shareable!();
    fn layout() -> Layout {
        Layout::of::<Self>(
            "array",
            const { &[Field { name: "element", offset: 0, count: N, layout: <T as Shareable>::layout }] },
        )
    }
    fn place(&self) {
        self.as_slice().place();
    }
    fn recover(&self, dead: &Dead) {
        self.as_slice().recover(dead);
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.as_slice().in_use(ours)
    }
    fn is_sound(&self) -> bool {
        self.as_slice().is_sound()
    }
}

// SAFETY: as an array; the number of elements is the pointer's, which `at` got from the checked
// header.
unsafe impl<T: Shareable> Shareable for [T] {
    const FINGERPRINT: u64 = mix(<T as Shareable>::FINGERPRINT, b"slice");
    const SEAL: Seal = Seal;
    const ALIGN: usize = align_of::<T>();
    const NEEDS_PEERS: bool = T::NEEDS_PEERS;
    fn size(len: usize) -> Option<usize> {
        let size = size_of::<T>().checked_mul(len)?;
        Some(size).filter(|&size| len > 0 && isize::try_from(size).is_ok())
    }
    fn at(base: NonNull<u8>, len: usize) -> NonNull<Self> {
        NonNull::slice_from_raw_parts(base.cast(), len)
    }
    fn layout() -> Layout {
        Layout {
            name: "slice",
            size: 0,
            align: Self::ALIGN,
            fields: const {
                &[Field { name: "element", offset: 0, count: 1, layout: <T as Shareable>::layout }]
            },
        }
    }
    fn place(&self) {
        self.iter().for_each(T::place);
    }
    fn recover(&self, dead: &Dead) {
        self.iter().for_each(|element| element.recover(dead));
    }
    fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
        self.iter().any(|element| element.in_use(ours))
    }
    fn is_sound(&self) -> bool {
        self.iter().all(T::is_sound)
    }
}

impl<T: Shareable> WithCapacity for [T] {}

/// Refuses a struct that `repr(packed)`, in any of its forms, lets begin at an address at which one
/// of its fields could not. Without it, the alignment of a struct is that of its fields or greater.
#[doc(hidden)]
#[macro_export]
macro_rules! __aligned_fields {
    ($name:ident : $($type:ty),+) => {
        const _: () = assert!(
            true $(&& ::core::mem::align_of::<$name>() >= ::core::mem::align_of::<$type>())+,
            "`repr(packed)` is not allowed: its fields are not aligned"
        );
    };
}

/// Declares structs that may lie in shared memory, field by field.
///
/// Every field must be [`Shareable`](crate::Shareable). The struct becomes `repr(C)`, gets a
/// fingerprint of its names, offsets, sizes and types, and hands the death of a process on to
/// each of its fields. See [`Shared`](crate::Shared) for an example.
///
/// `repr(packed)` is refused:
///
/// ```compile_fail,E0080
/// outlast::shared! {
///     #[repr(packed(2))]
///     struct Wrong { before: outlast::Event, count: u64 }
/// }
/// ```
#[macro_export]
macro_rules! shared {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $type:ty),+ $(,)?
    })+) => {$(
        $(#[$meta])*
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type),+ }

        // SAFETY: `repr(C)`, and every field is `Shareable` itself.
        #[allow(unsafe_code, clippy::allow_attributes, clippy::allow_attributes_without_reason)]
        unsafe impl $crate::Shareable for $name {
            const FINGERPRINT: u64 = {
                let mut hash = $crate::__private::begin::<$name>(stringify!($name).as_bytes());
                $(
                    hash = $crate::__private::mix(hash, stringify!($field).as_bytes());
                    hash = $crate::__private::mix_u64(hash, ::core::mem::offset_of!($name, $field) as u64);
                    hash = $crate::__private::mix_u64(hash, <$type as $crate::Shareable>::FINGERPRINT);
                )+
                hash
            };
            const NEEDS_PEERS: bool = $(<$type as $crate::Shareable>::NEEDS_PEERS)||+;
            $crate::__sized_shareable!();
            fn layout() -> $crate::__private::Layout {
                $crate::__private::Layout::of::<$name>(
                    stringify!($name),
                    const { &[$($crate::__private::Field {
                        name: stringify!($field),
                        offset: ::core::mem::offset_of!($name, $field),
                        count: 1,
                        layout: <$type as $crate::Shareable>::layout,
                    }),+] },
                )
            }
            fn place(&self) {
                $($crate::Shareable::place(&self.$field);)+
            }
            fn recover(&self, dead: &$crate::__private::Dead) {
                $($crate::Shareable::recover(&self.$field, dead);)+
            }
            fn in_use(&self, ours: &dyn Fn(u32) -> bool) -> bool {
                false $(|| $crate::Shareable::in_use(&self.$field, ours))+
            }
            fn is_sound(&self) -> bool {
                true $(&& $crate::Shareable::is_sound(&self.$field))+
            }
        }

        const _: () = assert!(!::core::mem::needs_drop::<$name>(), "a shared struct has no drop");
        $crate::__aligned_fields!($name: $($type),+);
    )+};
}

/// Declares payload: structs of plain fields, and C-like enums.
///
/// ```
/// outlast::plain! {
///     /// What a worker is asked to do.
///     #[derive(Debug, PartialEq)]
///     pub struct Job { pub id: u64, pub kind: Kind, pub bounds: [f32; 4] }
///
///     /// The kinds of job.
///     #[derive(Debug, PartialEq)]
///     pub enum Kind: u8 { Draw = 1, Erase = 2 }
/// }
/// ```
///
/// A struct becomes `repr(C)`, an enum takes the integer that is named; both become `Copy`. A
/// value of an enum that comes out of shared memory is checked first: bits that stand for no
/// variant give an error ([`Fault::Corrupt`](crate::Fault::Corrupt)).
///
/// `repr(packed)` is refused, since the check needs fields that are aligned. So is any `repr` that
/// changes the size of an enum. `repr(align)` of a struct is fine.
///
/// ```compile_fail,E0080
/// outlast::plain! {
///     #[repr(packed)]
///     struct Wrong { before: u8, kind: Kind }
///     enum Kind: u32 { Draw = 1, Erase = 2 }
/// }
/// ```
///
/// ```compile_fail,E0080
/// outlast::plain! {
///     #[repr(packed(2))]
///     struct Wrong { count: u32, kind: u8 }
/// }
/// ```
///
/// ```compile_fail,E0080
/// outlast::plain! {
///     #[repr(align(16))]
///     enum Wrong: u8 { Draw = 1, Erase = 2 }
/// }
/// ```
#[macro_export]
macro_rules! plain {
    () => {};
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $type:ty),+ $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type),+ }

        // SAFETY: `repr(C)`, every field is `Plain` itself, and validity is checked field by field.
        #[allow(unsafe_code, clippy::allow_attributes, clippy::allow_attributes_without_reason)]
        unsafe impl $crate::Plain for $name {
            const FINGERPRINT: u64 = {
                let mut hash = $crate::__private::begin::<$name>(stringify!($name).as_bytes());
                $(
                    hash = $crate::__private::mix(hash, stringify!($field).as_bytes());
                    hash = $crate::__private::mix_u64(hash, ::core::mem::offset_of!($name, $field) as u64);
                    hash = $crate::__private::mix_u64(hash, <$type as $crate::Plain>::FINGERPRINT);
                )+
                hash
            };
            const ANY_BITS: bool = $(<$type as $crate::Plain>::ANY_BITS)&&+;
            const SEAL: $crate::__private::Seal = $crate::__private::Seal;
            fn layout() -> $crate::__private::Layout {
                $crate::__private::Layout::of::<$name>(
                    stringify!($name),
                    const { &[$($crate::__private::Field {
                        name: stringify!($field),
                        offset: ::core::mem::offset_of!($name, $field),
                        count: 1,
                        layout: <$type as $crate::Plain>::layout,
                    }),+] },
                )
            }
            unsafe fn is_valid(at: *const Self) -> bool {
                true $(&& {
                    // SAFETY: the field lies inside the struct that the caller can read.
                    let field = unsafe { &raw const (*at).$field };
                    // SAFETY: as readable as the whole, and aligned, as is asserted below.
                    unsafe { <$type as $crate::Plain>::is_valid(field) }
                })+
            }
        }

        $crate::__aligned_fields!($name: $($type),+);
        $crate::plain! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident : $repr:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $value:expr),+ $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        #[repr($repr)]
        $vis enum $name { $($(#[$variant_meta])* $variant = $value),+ }

        // SAFETY: the bits are those of the integer, and `is_valid` admits the variants only.
        #[allow(unsafe_code, clippy::allow_attributes, clippy::allow_attributes_without_reason)]
        unsafe impl $crate::Plain for $name {
            const FINGERPRINT: u64 = {
                let mut hash = $crate::__private::begin::<$name>(stringify!($name).as_bytes());
                hash = $crate::__private::mix(hash, stringify!($repr).as_bytes());
                $(
                    hash = $crate::__private::mix(hash, stringify!($variant).as_bytes());
                    hash = $crate::__private::mix_u64(hash, $name::$variant as u64);
                )+
                hash
            };
            const ANY_BITS: bool = false;
            const SEAL: $crate::__private::Seal = $crate::__private::Seal;
            fn layout() -> $crate::__private::Layout {
                $crate::__private::Layout::of::<$name>(stringify!($name), &[])
            }
            unsafe fn is_valid(at: *const Self) -> bool {
                // SAFETY: the enum has the size of its integer, as is asserted below, and its
                // alignment at least. Any bits are an integer.
                let bits = unsafe { at.cast::<$repr>().read() };
                false $(|| bits == $name::$variant as $repr)+
            }
        }

        const _: () = assert!(
            ::core::mem::size_of::<$name>() == ::core::mem::size_of::<$repr>(),
            "an enum of `plain!` has the size of its integer: no `repr` may change that"
        );
        $crate::plain! { $($rest)* }
    };
}
