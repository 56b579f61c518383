//! Handing a segment on to a program that is started.
#![expect(unsafe_code, reason = "runs a system call in the child between fork and exec")]
use crate::shareable::Shareable;
use crate::shared::{InheritedHandle, Shared};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The environment variable that holds the number of the descriptor handed on under `key`.
pub(crate) fn variable(key: &str) -> String {
    let mut name = String::from("OUTLAST_FD_");
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
    }
    name
}

/// Hands shared memory on to a child process.
pub trait CommandExt {
    /// Lets the child open `shared` with [`Shared::inherited`]`(key)`.
    ///
    /// ```
    /// use outlast::{CommandExt, Event, Shared};
    /// let done = Shared::anonymous(Event::manual(false))?;
    /// let status = std::process::Command::new("sh")
    ///     .args(["-c", "env | grep -q OUTLAST_FD_done"]) // a Rust program calls `Shared::inherited("done")`
    ///     .share("done", &done)
    ///     .status()?;
    /// assert!(status.success());
    /// # Ok::<(), outlast::Error>(())
    /// ```
    ///
    /// Any text will do as a key. The memory is kept open until the `Command` is dropped. If the
    /// descriptor cannot be duplicated, or the memory is the caller's, starting the child fails.
    fn share<T: ?Sized + Shareable + Sync + 'static>(
        &mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> &mut Self;
}

impl CommandExt for Command {
    fn share<T: ?Sized + Shareable + Sync + 'static>(
        &mut self,
        key: &str,
        shared: &Shared<T>,
    ) -> &mut Self {
        match InheritedHandle::of(shared) {
            Ok(handle) => {
                self.env(variable(key), handle.number().to_string());
                // SAFETY: fcntl is async-signal-safe, and the closure does nothing else.
                unsafe { self.pre_exec(move || handle.keep()) }
            }
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(0);
                // SAFETY: making an error of a number is async-signal-safe.
                unsafe { self.pre_exec(move || Err(std::io::Error::from_raw_os_error(code))) }
            }
        }
    }
}
