//! The types that processes can share, and the check that two programs lay a type out alike.
//!
//! There are two traits. [`Shareable`] is for values that lie in a segment and are reached by `&`
//! only: the primitives of this crate, structs of them, atomics and read-only numbers. [`Plain`] is
//! for the data that primitives guard or carry.
//!
//! Both traits state a *fingerprint* of the layout, which is compared when a segment is opened.
//! They also state a [`Layout`], which is written into the segment, so that an error can show a
//! mismatch field by field.
#![expect(unsafe_code, reason = "the traits promise that bytes may be shared between processes")]
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use core::fmt::Write as _;
use core::num::NonZero;
use core::ptr::NonNull;

/// The layout of a type in memory, as error messages show it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The name of the type, without its path.
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
    /// The number of values of the type that follow each other there.
    pub count: usize,
    /// The layout of one of them.
    pub layout: fn() -> Layout,
}

impl Layout {
    /// Returns the layout of a type whose size is known.
    #[must_use]
    pub const fn of<T>(name: &'static str, fields: &'static [Field]) -> Self {
        Layout { name, size: size_of::<T>(), align: align_of::<T>(), fields }
    }
}

#[cfg_attr(outlast_loom, expect(dead_code, reason = "the model has no segments to compare"))]
impl Layout {
    /// Returns a text with one line for each field. Nested fields are indented.
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

/// A process that has ended, as recovery describes it to each primitive.
#[derive(Clone, Copy, Debug)]
pub struct Dead {
    /// The owner tag in everything that the process had claimed: the number of its slot in the peer
    /// table, counted from 1.
    pub(crate) tag: u32,
    /// Whether the process left, by exit or by dropping its last handle, and was not killed.
    pub(crate) clean: bool,
    /// Its process id.
    pub(crate) pid: u32,
}

impl Dead {
    /// Describes a killed process, for models and tests of recovery.
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
/// The primitives of this crate implement it, and so do atomics, integers, floats, arrays of
/// these, and every struct declared with [`shared!`](crate::shared). The trait is sealed: only this
/// crate and that macro implement it. Its members are internal.
///
/// The `AtomicBool` of the standard library does not implement it. Only two of the 256 values of
/// its byte are valid, and a peer could write another one. Use [`AtomicBool`](crate::AtomicBool)
/// instead.
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
/// - The type is `repr(C)`. It holds no pointer or reference and nothing else that is private to
///   one process, and it has no `Drop`.
/// - Memory with any bytes, zero-filled memory included, is a valid value. Methods on such a value
///   may return wrong results, but their behaviour is always defined.
/// - `at`, `ALIGN` and `size` agree with each other.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot live in shared memory",
    label = "not shareable between processes",
    note = "it may hold pointers into the memory of one process. Use primitives of `outlast`, atomics, numbers and arrays of them, and declare structs of them with `outlast::shared!`"
)]
pub unsafe trait Shareable {
    /// A hash of the name, size and alignment of the type, and of the names, offsets and
    /// fingerprints of its fields. Types that differ in one of them have different fingerprints.
    #[doc(hidden)]
    const FINGERPRINT: u64;
    /// The alignment in bytes.
    #[doc(hidden)]
    const ALIGN: usize;
    /// Whether a death can leave the value in a state that a peer must repair. The kernel alone
    /// repairs the other types.
    #[doc(hidden)]
    const NEEDS_PEERS: bool;
    #[doc(hidden)]
    const SEAL: Seal;

    /// Returns the layout, for error messages.
    #[doc(hidden)]
    fn layout() -> Layout;
    /// Returns the size in bytes of a value with `len` elements chosen at run time (0 for a type
    /// without such elements), or `None` if there cannot be such a value.
    #[doc(hidden)]
    fn size(len: usize) -> Option<usize>;
    /// Returns a pointer to the value at `base` that has `len` elements chosen at run time.
    #[doc(hidden)]
    fn at(base: NonNull<u8>, len: usize) -> NonNull<Self>;
    /// Initialises the value in place. Called once, at the address where the value stays.
    #[doc(hidden)]
    fn place(&self) {}
    /// Repairs what the process `dead` had claimed. It may be called again for the same process,
    /// because the process that runs the recovery can be killed as well.
    #[doc(hidden)]
    fn recover(&self, _dead: &Dead) {}
    /// Returns whether a thread for which `ours` returns `true` owns something in the value.
    #[doc(hidden)]
    fn in_use(&self, _ours: &dyn Fn(u32) -> bool) -> bool {
        false
    }
    /// Returns whether the bytes are such that no operation lends the same memory to two callers.
    /// Called when a segment is opened, while other peers may be using it.
    #[doc(hidden)]
    fn is_sound(&self) -> bool {
        true
    }
}

/// A shareable type whose capacity is chosen when a value is created.
///
/// The queues, channels, rings, pipes and journals of this crate implement it, and so do
/// [`LockedSlice`](crate::LockedSlice) and slices of shareable types. A `Shared<[AtomicU64]>` has
/// as many elements as its capacity says, and they are zero at first.
/// [`Shared::with_capacity`](crate::Shared::with_capacity) creates such a value.
pub trait WithCapacity: Shareable {
    /// Returns the number of elements that gives at least `capacity`, or `None` if there is no such
    /// number. [`Shareable::size`] may still reject the number.
    #[doc(hidden)]
    #[must_use]
    fn units(capacity: usize) -> Option<usize> {
        Some(capacity)
    }

    /// Like [`units`](Self::units), with room for `in_flight` unacknowledged messages. Returns
    /// `None` also if the type has no acknowledgements.
    #[doc(hidden)]
    #[must_use]
    fn units_in_flight(_capacity: usize, _in_flight: usize) -> Option<usize> {
        None
    }

    /// Divides the elements of a new value, whose number `units_in_flight` has returned. Called
    /// before [`place`](Shareable::place).
    #[doc(hidden)]
    fn set_in_flight(&self, _in_flight: usize) {}
}

/// Data without pointers, which a `Lock` can guard and a `Queue` can carry.
///
/// Programs that share a segment may be built by different compilers. So a type is plain only if
/// every compiler lays it out in the same way. Where the standard library does not promise this,
/// use a type of this crate, which has `From` in both directions:
///
/// | type of the standard library | is it plain? |
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
/// A value that is read from shared memory is checked, unless any bytes are a value of its type.
/// The trait is sealed: only this crate and its macro `plain!` implement it.
///
/// # Safety
/// - The type is `repr(C)` or a primitive type. It has no pointer, no interior mutability, no
///   `Drop` and no primitive of this crate.
/// - `is_valid` tells for any bytes whether they are a value of the type. It always returns `true`
///   if `ANY_BITS` is set.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not plain data",
    label = "cannot be carried from process to process as bytes",
    note = "integers, floats, bool, char, arrays of them, and structs and C-like enums declared with `outlast::plain!` are plain. A `String`, a `Vec` or a reference points into the memory of one process",
    note = "the docs of `outlast::Plain` list the counterparts of `Option`, tuples, `Duration`, addresses and strings"
)]
pub unsafe trait Plain: Copy + Send + Sync + 'static {
    /// A hash of the name, size and alignment of the type, and of the names, offsets and
    /// fingerprints of its fields. Types that differ in one of them have different fingerprints.
    #[doc(hidden)]
    const FINGERPRINT: u64;
    /// Whether any bytes are a value of the type.
    #[doc(hidden)]
    const ANY_BITS: bool;
    #[doc(hidden)]
    const SEAL: Seal;

    /// Returns the layout, for error messages.
    #[doc(hidden)]
    fn layout() -> Layout;

    /// Returns whether the bytes at `at` are a value of the type.
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

/// The initial value of the hash.
pub(crate) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// Begins a fingerprint with the name, the size and the alignment of a type.
///
/// The fingerprint of a compound type is computed from those of its parts. So the fingerprints
/// differ if the offset of a value in a primitive differs, or the distance between the elements of
/// an array.
#[doc(hidden)]
#[must_use]
pub const fn begin<T>(name: &[u8]) -> u64 {
    mix_u64(mix_u64(mix(SEED, name), size_of::<T>() as u64), align_of::<T>() as u64)
}

/// The fields of the `repr(C)` type that is called `Self` here, for its [`Layout`]. Each has a type
/// that implements `$trait`.
macro_rules! fields {
    ($trait:ident: $($field:tt: $type:ty),+) => {
        const { &[$($crate::shareable::Field {
            name: stringify!($field),
            offset: ::core::mem::offset_of!(Self, $field),
            count: 1,
            layout: <$type as $trait>::layout,
        }),+] }
    };
}
pub(crate) use fields;

/// The members of [`Shareable`] that are the same for every type whose size is known.
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

/// The members of [`Shareable`] that are the same for every struct that ends in a slice, its field
/// `slots`. `$one` is the same struct with an array in place of the slice. `$slot` is the type of
/// an element, and `$most` is the greatest number of elements. `$is_valid` rejects further numbers.
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

/// [`Shareable::at`] for a struct that ends in a slice, or in another such struct.
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
        // SAFETY: as above; a number can only be read through `&`.
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

/// Plain types of the standard library whose bytes are checked. They are read as `$bytes`, a type
/// of the same size of which any bytes are a value.
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
                // SAFETY: the caller's promise. The two types have the same size and alignment, and
                // any bytes are a value of `$bytes`.
                check(unsafe { at.cast::<$bytes>().read() })
            }
        }
    )*};
}
checked! {
    bool: u8, |bits| bits < 2;
    char: u32, |bits| char::from_u32(bits).is_some();
}

/// `NonZero<T>`, and `Option<NonZero<T>>`, whose `None` is zero. The standard library defines both
/// layouts.
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

// SAFETY: as for an array. The number of elements is a part of the pointer: `at` gets it from the
// checked header.
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

/// Rejects a struct whose alignment is less than that of one of its fields, which only
/// `repr(packed)` can cause.
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

/// Declares structs that may lie in shared memory.
///
/// Every field must be [`Shareable`](crate::Shareable). The struct becomes `repr(C)`, and its
/// fingerprint covers the names, offsets, sizes and types of its fields. After the death of a
/// process, each field is repaired. See [`Shared`](crate::Shared) for an example.
///
/// `repr(packed)` is rejected:
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

/// Declares plain data: structs of plain fields, and C-like enums.
///
/// ```
/// outlast::plain! {
///     /// A request for a worker.
///     #[derive(Debug, PartialEq)]
///     pub struct Job { pub id: u64, pub kind: Kind, pub bounds: [f32; 4] }
///
///     /// The kinds of job.
///     #[derive(Debug, PartialEq)]
///     pub enum Kind: u8 { Draw = 1, Erase = 2 }
/// }
/// ```
///
/// A struct becomes `repr(C)`. An enum gets the size of the integer type that follows its name.
/// Both become `Copy`. An enum that is read from shared memory is checked first: a value that is no
/// variant is the error [`Fault::Corrupt`](crate::Fault::Corrupt).
///
/// `repr(packed)` is rejected, because the check needs aligned fields. Any `repr` that changes the
/// size of an enum is rejected as well. A struct may have `repr(align)`.
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
                    // SAFETY: as readable as the whole, and aligned, as asserted below.
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
                // SAFETY: the enum has the size of its integer, as asserted below, and at least its
                // alignment. Any bits are an integer.
                let bits = unsafe { at.cast::<$repr>().read() };
                false $(|| bits == $name::$variant as $repr)+
            }
        }

        const _: () = assert!(
            ::core::mem::size_of::<$name>() == ::core::mem::size_of::<$repr>(),
            "an enum of `plain!` has the size of its integer: a `repr` must not change it"
        );
        $crate::plain! { $($rest)* }
    };
}
