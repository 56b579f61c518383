//! A function as a number that means the same in each process that runs this executable.
//!
//! The kernel loads each process's copy wherever it likes, but in one piece: what stays is the
//! distance from the start of the code. A request says which code that is, and both ends look
//! whether the number lies in it.
use crate::sys::process::code_around;
use std::sync::OnceLock;

/// What tells executables apart: the length of the code, and where in it a function of this crate
/// lies.
pub(crate) type Image = (u64, u64);

struct Code {
    start: usize,
    len: usize,
    anchor: usize,
}

#[inline(never)]
fn anchor() -> &'static Option<Code> {
    static CODE: OnceLock<Option<Code>> = OnceLock::new();
    CODE.get_or_init(|| {
        let here = anchor as *const () as usize;
        code_around(here).map(|(start, len)| Code { start, len, anchor: here - start })
    })
}

/// The executable that this process runs.
pub(crate) fn image() -> Option<Image> {
    anchor().as_ref().map(|code| (code.len as u64, code.anchor as u64))
}

/// The number of the function at `address`, if it lies in the same code as this crate.
pub(crate) fn number(address: usize) -> Option<u64> {
    let code = anchor().as_ref()?;
    let offset = address.wrapping_sub(code.start);
    (offset < code.len).then_some(offset as u64)
}

/// Where the function with this number is in this process.
pub(crate) fn address(number: u64) -> Option<usize> {
    let code = anchor().as_ref()?;
    let offset = usize::try_from(number).ok()?;
    (offset < code.len).then(|| code.start + offset)
}
