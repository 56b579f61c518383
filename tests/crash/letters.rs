//! Byte messages that show whether they are whole.
use crate::sweeps::fail;

/// The messages 0, 1 and 2: of one block, of two, and longer than a small ring.
pub(crate) const LENGTHS: [usize; 3] = [10, 100, 300];

pub(crate) fn message(n: usize) -> Vec<u8> {
    vec![u8::try_from(n).expect("small"); LENGTHS[n]]
}

/// The number of a message. Fails if the message is not whole.
pub(crate) fn number(message: &[u8]) -> Result<usize, String> {
    match message.first() {
        Some(&n) if usize::from(n) < LENGTHS.len() && self::message(n.into()) == message => {
            Ok(n.into())
        }
        _ => fail(format!("torn: {message:?}")),
    }
}
