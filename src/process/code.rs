//! Numbers of functions that mean the same in every process that runs this executable.
//!
//! The kernel loads the executable at a different address in each process, but in one piece. The
//! number of a function is its distance from the start of the code. A request names the executable,
//! and both ends check that the number lies within its code.
use crate::sys::process::code_around;
use std::sync::OnceLock;

/// Identifies an executable: the length of its code, and the position of a function of this crate.
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

/// Returns the executable that this process runs.
pub(crate) fn image() -> Option<Image> {
    anchor().as_ref().map(|code| (code.len as u64, code.anchor as u64))
}

/// Returns the number of the function at `address`, if it is part of this executable.
pub(crate) fn number(address: usize) -> Option<u64> {
    let code = anchor().as_ref()?;
    let offset = address.wrapping_sub(code.start);
    (offset < code.len).then_some(offset as u64)
}

/// Returns the address of the function with this number in this process.
pub(crate) fn address(number: u64) -> Option<usize> {
    let code = anchor().as_ref()?;
    let offset = usize::try_from(number).ok()?;
    (offset < code.len).then(|| code.start + offset)
}
