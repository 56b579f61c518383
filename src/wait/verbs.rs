//! The forms of a blocking verb, all written by one macro: `verb`, `try_verb`, `verb_timeout` and
//! `verb_deadline`.
//!
//! A [`Verb`] is a call that has not begun: how to try, and how to block until a deadline. A verb
//! that says what it sleeps on is an [`Operation`](super::operation::Operation), whose loop does
//! the waiting. The macro stands in an `impl` block, and writes methods:
//!
//! ```text
//! verbs! {
//!     /// Receives a message, blocking until one is available.
//!     ///
//!     /// # Errors
//!     /// [`RecvError::Closed`] if the queue is closed and empty.
//!     #[inline]
//!     pub fn recv(&self) -> Result<T, RecvError> = Recv { queue: self };
//!     #[inline]
//!     try_recv -> Result<T, TryRecvError>, else Err(TryRecvError::Empty);
//!     recv_timeout, recv_deadline -> Result<T, RecvTimeoutError>,
//!         else Err(RecvTimeoutError::TimedOut);
//! }
//! ```
//!
//! # The blocking form
//! The first line has the whole documentation, the signature, and behind `=` what does the work:
//!
//! - A [`Verb`]. Its output is a `Result`. `From` converts the error, if it is not that of the
//!   form.
//! - [`Call`] of a function that blocks until a deadline, and returns `None` if it is late:
//!   `= Call(|deadline| self.recv_until(deadline).transpose());`.
//! - A function that returns a `Result` whose errors say whether it was late, and are converted by
//!   `From` for each form: `= |deadline| self.send_until(message, deadline);`.
//!
//! The deadline of the `try_` form is [`Deadline::NOW`]. No comma stands behind the last argument.
//!
//! # The other forms
//! The `try_` form is optional, and so are the two timed forms, which share their result. The macro
//! writes their documentation. A doc comment on such a line is added behind the first sentence,
//! and attributes (`#[inline]`, `#[doc(alias = "..")]`) are copied.
//!
//! Behind `else` stands what the form returns if there is no output in time. It also says what
//! becomes of an output:
//!
//! | `else` | value | error |
//! |---|---|---|
//! | `Err(..)` | the same | converted by `From` |
//! | `Ok(None)` | `Some(value)` | the same |
//! | `Ok(false)` | `true`, for `()` | the same |
//! | `None` | `Some(value)` | `None` |
//! | `false` | `true` | `false` |
//!
//! An `else` that gives a message back names the argument: `Err(TrySendError::Full(message))`. With
//! a function that returns a `Result`, `else` is for the documentation alone.
//!
//! Timed forms whose result has another shape have a function of their own:
//! `wait_timeout, wait_deadline -> Timed<G> = |deadline| self.wait_until(guard, deadline);`.
//!
//! `tests/verbs.rs` finds each form that is missing, and each that is written by hand.
use crate::deadline::Deadline;

/// A blocking call that has not begun.
pub(crate) trait Verb: Sized {
    /// A `Result`: what the blocking form returns, or what is converted to it.
    type Output;

    /// Whether [`fast`](Self::fast) mostly succeeds, so that [`wait`](Self::wait) is rare.
    const HAS_FAST_PATH: bool = true;

    /// Tries the common case, short enough to be inlined into every caller. It may fail where
    /// [`attempt`](Self::attempt) would succeed.
    #[inline(always)]
    fn fast(&mut self) -> Option<Self::Output> {
        None
    }

    /// Continues with what [`fast`](Self::fast) gives, or with the verb if that fails.
    ///
    /// A verb whose output is made by a function that is not inlined calls that function here: the
    /// output then stays in registers, which it does not inside an `Option`.
    #[inline(always)]
    fn fast_or<R>(
        mut self,
        done: impl FnOnce(Self::Output) -> R,
        otherwise: impl FnOnce(Self) -> R,
    ) -> R {
        match self.fast() {
            Some(output) => done(output),
            None => otherwise(self),
        }
    }

    /// Tries once. Never blocks, and changes nothing if it fails.
    #[inline(always)]
    fn attempt(&mut self) -> Option<Self::Output> {
        self.fast()
    }

    /// Blocks until there is an output or the deadline has passed. Tries at least once.
    fn wait(&mut self, deadline: Deadline) -> Option<Self::Output>;
}

/// A verb that is a function of a deadline, and returns `None` if there is no output in time.
pub(crate) struct Call<F>(pub(crate) F);

impl<R, F: FnMut(Deadline) -> Option<R>> Verb for Call<F> {
    type Output = R;
    const HAS_FAST_PATH: bool = false;
    #[inline(always)]
    fn attempt(&mut self) -> Option<R> {
        (self.0)(Deadline::NOW)
    }
    #[inline]
    fn wait(&mut self, deadline: Deadline) -> Option<R> {
        (self.0)(deadline)
    }
}

/// The blocking form.
#[inline(always)]
pub(crate) fn block<T, E, F: From<E>, V: Verb<Output = Result<T, E>>>(verb: V) -> Result<T, F> {
    verb.fast_or(
        |done| done.map_err(F::from),
        |verb| match V::HAS_FAST_PATH {
            true => block_slow(verb).map_err(F::from),
            false => wait_for_ever(verb).map_err(F::from),
        },
    )
}

/// By value, so that the fast path keeps the verb in registers.
#[cold]
#[inline(never)]
fn block_slow<V: Verb>(verb: V) -> V::Output {
    wait_for_ever(verb)
}

#[inline(always)]
fn wait_for_ever<V: Verb>(mut verb: V) -> V::Output {
    loop {
        if let Some(done) = verb.wait(Deadline::NEVER) {
            return done;
        }
    }
}

/// The `try_` form.
#[inline(always)]
pub(crate) fn attempt<V: Verb>(mut verb: V) -> Option<V::Output> {
    verb.attempt()
}

/// The timed forms. The clock is read only if the common case fails.
#[inline(always)]
pub(crate) fn block_until<V: Verb>(
    mut verb: V,
    deadline: impl FnOnce() -> Deadline,
) -> Option<V::Output> {
    match verb.fast() {
        Some(done) => Some(done),
        None if V::HAS_FAST_PATH => block_until_slow(verb, deadline()),
        None => verb.wait(deadline()),
    }
}

#[cold]
#[inline(never)]
fn block_until_slow<V: Verb>(mut verb: V, deadline: Deadline) -> Option<V::Output> {
    verb.wait(deadline)
}

/// Writes the forms of verbs: see the module.
macro_rules! verbs {
    () => {};
    // The blocking form, over a function of a deadline; or over a verb.
    (
        $(#[$attribute:meta])*
        pub fn $verb:ident $(<$($G:ident: $bound:path),+>)? ($($argument:tt)*) -> $R:ty
            = |$deadline:ident| $call:expr;
        $($rest:tt)*
    ) => {
        $crate::wait::verbs::verbs! {
            @verb $verb [$($($G: $bound),+)?] ($($argument)*) [|$deadline| ($call)]
            [$(#[$attribute])*] $R; $($rest)*
        }
    };
    (
        $(#[$attribute:meta])*
        pub fn $verb:ident $(<$($G:ident: $bound:path),+>)? ($($argument:tt)*) -> $R:ty = $value:expr;
        $($rest:tt)*
    ) => {
        $crate::wait::verbs::verbs! {
            @verb $verb [$($($G: $bound),+)?] ($($argument)*) [$value]
            [$(#[$attribute])*] $R; $($rest)*
        }
    };
    (
        @verb $verb:ident [$($generics:tt)*] $arguments:tt $how:tt
        [$($attributes:tt)*] $R:ty; $($rest:tt)*
    ) => {
        $($attributes)*
        pub fn $verb <$($generics)*> $arguments -> $R {
            $crate::wait::verbs::verbs!(@block $how)
        }
        $crate::wait::verbs::verbs! {
            @forms { $verb [$($generics)*] $arguments $how } $($rest)*
        }
    };
    // The `try_` form.
    (
        @forms { $verb:ident $generics:tt $arguments:tt $how:tt }
        $(#[$attribute:meta])*
        $form:ident -> $R:ty, else $late:ident $(($($inside:tt)+))?;
        $($rest:tt)*
    ) => {
        $crate::wait::verbs::verbs! {
            @form $verb $form $generics $arguments [$(#[$attribute])*] $R;
            "returns immediately if it would block.";
            "it would block", [$late $(($($inside)+))?];
            { $crate::wait::verbs::verbs!(@attempt $how $late $(($($inside)+))?) }
        }
        $crate::wait::verbs::verbs! {
            @forms { $verb $generics $arguments $how } $($rest)*
        }
    };
    // The timed forms; or the same over a function of a deadline of their own.
    (
        @forms { $verb:ident $generics:tt ($($argument:tt)*) $how:tt }
        $(#[$attribute:meta])*
        $timeout:ident, $until:ident -> $R:ty, else $late:ident $(($($inside:tt)+))?;
        $($rest:tt)*
    ) => {
        $crate::wait::verbs::verbs! {
            @form $verb $timeout $generics ($($argument)*, timeout: ::std::time::Duration)
            [$(#[$attribute])*] $R;
            "blocks for at most `timeout`.";
            "it times out", [$late $(($($inside)+))?];
            {
                let deadline = || $crate::deadline::Deadline::after(timeout);
                $crate::wait::verbs::verbs!(@until deadline $how $late $(($($inside)+))?)
            }
        }
        $crate::wait::verbs::verbs! {
            @form $verb $until $generics ($($argument)*, deadline: ::std::time::Instant)
            [$(#[$attribute])*] $R;
            "blocks until `deadline` at the latest. If that has passed, it still tries once.";
            "it times out", [$late $(($($inside)+))?];
            {
                let deadline = || $crate::deadline::Deadline::at(deadline);
                $crate::wait::verbs::verbs!(@until deadline $how $late $(($($inside)+))?)
            }
        }
        $crate::wait::verbs::verbs! { $($rest)* }
    };
    (
        @forms { $verb:ident $generics:tt $arguments:tt $how:tt }
        $(#[$attribute:meta])*
        $timeout:ident, $until:ident -> $R:ty = |$deadline:ident| $call:expr;
        $($rest:tt)*
    ) => {
        $crate::wait::verbs::verbs! {
            @forms { $verb $generics $arguments [|$deadline| ($call)] }
            $(#[$attribute])*
            $timeout, $until -> $R, else Ok(true);
            $($rest)*
        }
    };
    (@forms $verb:tt $($rest:tt)*) => {
        $crate::wait::verbs::verbs! { $($rest)* }
    };
    (
        @form $verb:ident $form:ident [$($generics:tt)*] $arguments:tt [$($attributes:tt)*] $R:ty;
        $but:literal; $if:literal, [$late:ident $($inside:tt)?]; $body:tt
    ) => {
        #[doc = concat!(
            "Like [`", stringify!($verb), "`](Self::", stringify!($verb), "), but ", $but,
        )]
        #[doc = $crate::wait::verbs::verbs!(@returns $if, $late $($inside)?)]
        $($attributes)*
        #[doc = $crate::wait::verbs::verbs!(@errors $verb $if, $late $($inside)?)]
        pub fn $form <$($generics)*> $arguments -> $R $body
    };
    // The call, by what the verb is.
    (@block [|$deadline:ident| ($call:expr)]) => {{
        let $deadline = $crate::deadline::Deadline::NEVER;
        $call.map_err(From::from)
    }};
    // Even where the error stays the same, this takes the result apart: a guard stays in registers.
    (@block [$value:expr]) => { $crate::wait::verbs::block($value) };
    (@attempt [|$deadline:ident| ($call:expr)] $($late:tt)+) => {{
        let $deadline = $crate::deadline::Deadline::NOW;
        $call.map_err(From::from)
    }};
    (@attempt [$value:expr] $late:ident $($inside:tt)?) => {
        match $crate::wait::verbs::attempt($value) {
            Some(done) => $crate::wait::verbs::verbs!(@convert done $late $($inside)?),
            None => $late $($inside)?,
        }
    };
    (@until $until:ident [|$deadline:ident| ($call:expr)] $($late:tt)+) => {{
        let $deadline = $until();
        $call.map_err(From::from)
    }};
    (@until $until:ident [$value:expr] $late:ident $($inside:tt)?) => {
        match $crate::wait::verbs::block_until($value, $until) {
            Some(done) => $crate::wait::verbs::verbs!(@convert done $late $($inside)?),
            None => $late $($inside)?,
        }
    };
    // What an output becomes, by what stands behind `else`.
    (@convert $done:ident Err $late:tt) => { $done.map_err(From::from) };
    (@convert $done:ident Ok (None)) => { $done.map(Some) };
    (@convert $done:ident Ok (false)) => { $done.map(|()| true) };
    (@convert $done:ident None) => { $done.ok() };
    (@convert $done:ident false) => { $done.is_ok() };
    // The sentence about a result that is no error.
    (@returns $if:literal, Err $late:tt) => { "" };
    (@returns $if:literal, Ok (true)) => { "" };
    (@returns $if:literal, Ok ($late:ident)) => {
        concat!("Returns `Ok(", stringify!($late), ")` if ", $if, ".")
    };
    (@returns $if:literal, $late:ident) => {
        concat!("Returns `", stringify!($late), "` if ", $if, ".")
    };
    // The section about errors.
    (@errors $verb:ident $if:literal, Err ($Error:ident :: $late:ident $($message:tt)?)) => {
        concat!(
            "\n# Errors\nAs [`", stringify!($verb), "`](Self::", stringify!($verb), "), and [`",
            stringify!($Error), "::", stringify!($late), "`] if ", $if, ".",
        )
    };
    (@errors $verb:ident $if:literal, Err ($argument:ident)) => {
        concat!(
            "\n# Errors\nAs [`", stringify!($verb), "`](Self::", stringify!($verb),
            "), and gives `", stringify!($argument), "` back if ", $if, ".",
        )
    };
    (@errors $verb:ident $if:literal, Ok $late:tt) => {
        concat!("\n# Errors\nAs [`", stringify!($verb), "`](Self::", stringify!($verb), ").")
    };
    (@errors $verb:ident $if:literal, $late:ident) => { "" };
}
pub(crate) use verbs;
