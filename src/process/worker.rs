//! The body of a process that was started.
#![expect(unsafe_code, reason = "calls a function by its address")]
use super::code;
use super::wire::{Message, MessageKind, StartRequest, receive_message, send_message};
use crate::command;
use crate::process::wire::encode;
use crate::queue::value::decode;
use crate::sys::process::{die_with, exit_now, limit_memory, name_thread, own_group, own_session};
use core::any::Any;
use core::cell::Cell;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::backtrace::Backtrace;
use std::ffi::CString;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

/// Why a call gave no value although it did not panic.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The argument cannot be decoded.
    Argument(String),
    /// The result cannot be encoded.
    Encode(String),
}

/// Decodes an argument, calls the function at an address with it, and appends the encoded result.
pub(crate) type Entry = fn(usize, &[u8], &mut Vec<u8>) -> Result<(), Failure>;

/// Is the [`Entry`] for functions from `A` to `R`. `function` must be the address of one.
pub(crate) fn entry<A: DeserializeOwned, R: Serialize>(
    function: usize,
    argument: &[u8],
    result: &mut Vec<u8>,
) -> Result<(), Failure> {
    let value = call::<A, R>(function, argument)?;
    encode(&value, result).map_err(|error| Failure::Encode(error.to_string()))
}

/// Decodes an argument and calls the function at an address, which must be one from `A` to `R`.
#[inline(always)]
pub(crate) fn call<A: DeserializeOwned, R>(function: usize, argument: &[u8]) -> Result<R, Failure> {
    let argument = decode(argument).map_err(|error| Failure::Argument(error.to_string()))?;
    let function = core::ptr::with_exposed_provenance::<()>(function);
    // SAFETY: the address of a `fn(A) -> R`. `numbers_of` pairs the function's number with the
    // entry that calls this instance, in the same executable, and both numbers lie within its code.
    let function = unsafe { core::mem::transmute::<*const (), fn(A) -> R>(function) };
    Ok(function(argument))
}

/// Returns the numbers of an [`Entry`] and of its function.
pub(crate) fn numbers<A: DeserializeOwned, R: Serialize>(
    function: fn(A) -> R,
) -> Option<(u64, u64)> {
    numbers_of(entry::<A, R>, function)
}

/// Returns the numbers of an entry and of a function that it can call.
pub(crate) fn numbers_of<A, R>(entry: Entry, function: fn(A) -> R) -> Option<(u64, u64)> {
    Some((code::number(entry as usize)?, code::number(function as usize)?))
}

/// Returns the [`Entry`] with this number.
///
/// # Safety
/// [`numbers`] has made the number, in a process that runs the same executable.
unsafe fn entry_of(number: u64) -> Option<Entry> {
    let entry = core::ptr::with_exposed_provenance::<()>(code::address(number)?);
    // SAFETY: by the caller's promise, it is the address of an `Entry`.
    Some(unsafe { core::mem::transmute::<*const (), Entry>(entry) })
}

/// Returns the [`Entry`] and the address of the function with these numbers.
///
/// # Safety
/// As for [`entry_of`].
pub(crate) unsafe fn resolve(entry: u64, function: u64) -> Result<(Entry, usize), Failure> {
    // SAFETY: by the caller's promise.
    let entry = unsafe { entry_of(entry) };
    let unknown = || Failure::Argument(String::from("no such function"));
    entry.zip(code::address(function)).ok_or_else(unknown)
}

/// The report of a panic: message, location, backtrace.
pub(crate) type Panic = (String, String, String);

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// The last panic that the hook has noted since the body began.
    static LAST: Cell<Option<Box<Panic>>> = const { Cell::new(None) };
}

/// Runs `body`, and returns its value or its panic.
pub(crate) fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Panic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(note_panics);
    let before = CATCHING.replace(true);
    LAST.take(); // an earlier body may have caught a panic itself
    let outcome = catch_unwind(AssertUnwindSafe(body));
    CATCHING.set(before);
    outcome.map_err(|payload| {
        let noted = LAST.take().map(|panic| *panic);
        noted.unwrap_or_else(|| (text_of(&*payload), String::from("?"), String::new()))
    })
}

/// Installs a panic hook that notes panics, and then calls the program's own hook.
pub(crate) fn note_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        note(info);
        usual(info);
    }));
}

fn note(info: &PanicHookInfo<'_>) {
    if !CATCHING.get() {
        return;
    }
    let location = info.location().map_or_else(|| String::from("?"), ToString::to_string);
    let backtrace = frames_of_the_user(&Backtrace::force_capture().to_string());
    let panic = Box::new((text_of(info.payload()), location, backtrace));
    LAST.try_with(|last| last.set(Some(panic))).ok(); // fails while the thread is ending
}

/// Cuts a backtrace down to the frames between the function that was called and its panic.
fn frames_of_the_user(backtrace: &str) -> String {
    const PANIC: [&str; 3] = ["core::panicking::", "std::panicking::begin_panic", "panic_any"];
    const ENTRY: [&str; 2] = ["outlast::process::worker::entry", "outlast::pool::context::entry"];
    // A frame is a line "12: path::of::the_function" and perhaps a line "at file:line:column".
    let lines: Vec<&str> = backtrace.lines().collect();
    let names = |line: &&str, parts: &[&str]| parts.iter().any(|part| line.contains(part));
    let end = lines.iter().position(|line| names(line, &ENTRY)).unwrap_or(lines.len());
    let lines = &lines[..end];
    let panic = lines.iter().rposition(|line| names(line, &PANIC));
    let begin = panic.map_or(0, |at| at + 1);
    let place = lines.get(begin).is_some_and(|line| line.trim_start().starts_with("at "));
    lines[begin + usize::from(place)..].join("\n")
}

fn text_of(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| String::from("a panic whose payload is not text"))
}

/// Runs the function of one request in a process that was forked for it, and ends the process.
pub(super) fn work(
    request: &StartRequest,
    argument: &[u8],
    fork_server: u32,
    channel: &OwnedFd,
    shared: Vec<OwnedFd>,
) -> ! {
    if request.detached {
        own_session();
    } else {
        die_with(fork_server);
    }
    if request.own_group {
        own_group();
    }
    if let Ok(name) = CString::new(request.name.as_str())
        && !request.name.is_empty()
    {
        name_thread(&name);
    }
    for (key, value) in &request.environment {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(key, value) };
    }
    for (key, fd) in request.keys.iter().zip(shared) {
        let number = fd.into_raw_fd().to_string(); // stays open until this process ends
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(command::variable(key), number) };
    }
    let go = receive_message(channel.as_fd(), &mut [0; 8], true);
    if !matches!(go, Ok(Some(Message { kind: MessageKind::Go, .. }))) {
        exit_now(1); // the owner has no descriptor of this process, and does not know of it
    }
    let pid = std::process::id();
    let limited = request.memory_limit.map_or(Ok(()), limit_memory);

    let outcome = catch(|| {
        limited.map_err(|error| Failure::Argument(format!("the memory limit: {error}")))?;
        // SAFETY: the numbers were made by this executable, as the fork server has checked.
        let (entry, function) = unsafe { resolve(request.entry, request.function) }?;
        let mut value = Vec::new();
        entry(function, argument, &mut value).map(|()| value)
    });
    let (kind, body, code) = match outcome {
        Ok(Ok(value)) => (MessageKind::Value, value, 0),
        Ok(Err(Failure::Argument(text))) => (MessageKind::Argument, text.into_bytes(), 1),
        Ok(Err(Failure::Encode(text))) => (MessageKind::Encode, text.into_bytes(), 1),
        Err(panic) => {
            (MessageKind::Panicked, postcard::to_allocvec(&panic).unwrap_or_default(), 101)
        }
    };
    if std::process::id() != pid {
        // This process is a fork that the function made. Only its parent reports the result.
        exit_now(code);
    }
    if let Err(error) = send_message(channel.as_fd(), kind, &[], &body, &[], true) {
        // Descriptors or memory are short, or the owner has ended.
        let text = error.to_string();
        send_message(channel.as_fd(), MessageKind::Encode, &[], text.as_bytes(), &[], true).ok();
    }
    std::process::exit(code)
}
