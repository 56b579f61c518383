//! A journal as a layer for subscribers of the crate `tracing`.
use super::{Journal, Level};
use core::fmt;
use core::ops::Deref;
use tracing_core::field::{Field, Visit};
use tracing_core::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A layer that writes events to a journal, made by [`layer`] and [`layer_with`].
pub struct JournalLayer<T> {
    holder: T,
    journal: fn(&T) -> &Journal,
}

/// Returns a layer for the subscribers of the crate `tracing-subscriber` that writes each event to
/// `journal`, as one record.
///
/// The record's message is what `tracing_subscriber::fmt` would print: the names of the enclosing
/// spans, from the outermost inwards, the event's message, and its other fields. The fields of
/// spans are not written. Filters choose the events, as with any layer.
///
/// ```
/// use outlast::{Shared, log::FixedJournal};
/// use tracing_subscriber::prelude::*;
///
/// let journal = Shared::anonymous(FixedJournal::<64>::new())?;
/// let level = tracing_subscriber::filter::LevelFilter::INFO;
/// let layer = outlast::log::layer(journal.clone()).with_filter(level);
/// let subscriber = tracing_subscriber::registry().with(layer);
/// // Or `subscriber.init()`, once in each process:
/// tracing::subscriber::with_default(subscriber, || {
///     let _span = tracing::info_span!("nightly").entered();
///     tracing::warn!(percent = 93, "the disk is nearly full");
///     tracing::debug!("not of interest");
/// });
/// let mut records = journal.records();
/// let record = records.try_next().expect("one");
/// assert_eq!(record.message(), "nightly: the disk is nearly full percent=93");
/// assert!(records.try_next().is_none());
/// # Ok::<(), outlast::Error>(())
/// ```
#[must_use]
pub fn layer<J>(journal: J) -> JournalLayer<J>
where
    J: Deref<Target: AsRef<Journal>> + Send + Sync + 'static,
{
    layer_with(journal, |journal| (**journal).as_ref())
}

/// Like [`layer`], for a journal that is part of a larger value: `|state| &state.journal`.
#[must_use]
pub fn layer_with<T: Send + Sync + 'static>(
    holder: T,
    journal: fn(&T) -> &Journal,
) -> JournalLayer<T> {
    JournalLayer { holder, journal }
}

impl<S, T> Layer<S> for JournalLayer<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    T: Send + Sync + 'static,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (level, target) = (event.metadata().level().into(), event.metadata().target());
        // There is no way to report a failure of the log itself.
        let line = Line { event, context: &context };
        (self.journal)(&self.holder).write_args(level, target, format_args!("{line}")).ok();
    }
}

/// An event as text.
struct Line<'a, S> {
    event: &'a Event<'a>,
    context: &'a Context<'a, S>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> fmt::Display for Line<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spans = self.context.event_scope(self.event).into_iter();
        for span in spans.flat_map(|scope| scope.from_root()) {
            write!(f, "{}: ", span.name())?;
        }
        self.event.record(&mut Fields { to: f, first: true });
        Ok(())
    }
}

/// Writes fields, with spaces between them.
struct Fields<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    first: bool,
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let gap = if core::mem::take(&mut self.first) { "" } else { " " };
        // Text that does not fit is cut, which is no error.
        match field.name() {
            "message" => write!(self.to, "{gap}{value}"),
            name => write!(self.to, "{gap}{name}={value}"),
        }
        .unwrap_or_default();
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put(field, format_args!("{value}")),
            _ => self.put(field, format_args!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn core::error::Error + 'static)) {
        self.put(field, format_args!("{value}"));
    }
}

impl From<&tracing_core::Level> for Level {
    fn from(level: &tracing_core::Level) -> Self {
        match *level {
            tracing_core::Level::ERROR => Level::Error,
            tracing_core::Level::WARN => Level::Warn,
            tracing_core::Level::INFO => Level::Info,
            tracing_core::Level::DEBUG => Level::Debug,
            tracing_core::Level::TRACE => Level::Trace,
        }
    }
}

impl<T> fmt::Debug for JournalLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalLayer")
    }
}
