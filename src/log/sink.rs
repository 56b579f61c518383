//! A journal as the logger of the crate `log`, and any `log::Log` as the receiver of its records.
use super::{Journal, Level, Record};
use ::log::{Log, Metadata, SetLoggerError};
use core::ops::Deref;

struct Sink<T> {
    holder: T,
    journal: fn(&T) -> &Journal,
}

impl<T: Send + Sync> Log for Sink<T> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= ::log::max_level()
    }

    fn log(&self, record: &::log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().into();
            // There is no way to report a failure of the log itself.
            (self.journal)(&self.holder).write_args(level, record.target(), *record.args()).ok();
        }
    }

    fn flush(&self) {}
}

/// Makes the macros of the crate `log` write to `journal` in this process, for records of `level`
/// and above. Each process calls it once.
///
/// ```
/// use outlast::{Shared, log::FixedJournal};
/// let journal = Shared::anonymous(FixedJournal::<64>::new())?;
/// outlast::log::init(journal.clone(), log::LevelFilter::Info).expect("the first logger");
/// log::warn!("the disk is {} % full", 93);
/// let record = journal.records().try_next().expect("one");
/// assert_eq!(record.message(), "the disk is 93 % full");
/// # Ok::<(), outlast::Error>(())
/// ```
///
/// # Errors
/// If the process has a logger already.
pub fn init<J>(journal: J, level: ::log::LevelFilter) -> Result<(), SetLoggerError>
where
    J: Deref<Target: AsRef<Journal>> + Send + Sync + 'static,
{
    init_with(journal, |journal| (**journal).as_ref(), level)
}

/// Like [`init`], for a journal that is part of a larger value: `|state| &state.journal`.
///
/// # Errors
/// As [`init`].
pub fn init_with<T: Send + Sync + 'static>(
    holder: T,
    journal: fn(&T) -> &Journal,
    level: ::log::LevelFilter,
) -> Result<(), SetLoggerError> {
    ::log::set_boxed_logger(Box::new(Sink { holder, journal }))?;
    ::log::set_max_level(level);
    Ok(())
}

impl Record {
    /// Passes the record to a logger, as if this process had logged it.
    ///
    /// A `log::Record` has no field for the process, so the pid is written before the message.
    pub fn log_to(&self, logger: &dyn Log) {
        let (target, message, pid) = (self.target(), self.message(), self.pid());
        let cut = if self.is_cut() { " ..." } else { "" };
        let level = self.level().into();
        logger.log(
            &::log::Record::builder()
                .level(level)
                .target(&target)
                .args(format_args!("[{pid}] {message}{cut}"))
                .build(),
        );
    }
}

impl From<::log::Level> for Level {
    fn from(level: ::log::Level) -> Self {
        match level {
            ::log::Level::Error => Level::Error,
            ::log::Level::Warn => Level::Warn,
            ::log::Level::Info => Level::Info,
            ::log::Level::Debug => Level::Debug,
            ::log::Level::Trace => Level::Trace,
        }
    }
}

impl From<Level> for ::log::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => ::log::Level::Error,
            Level::Warn => ::log::Level::Warn,
            Level::Info => ::log::Level::Info,
            Level::Debug => ::log::Level::Debug,
            Level::Trace => ::log::Level::Trace,
        }
    }
}
