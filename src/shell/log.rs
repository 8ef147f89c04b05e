//! Events on stderr, one line each. Other ranks only emit them; where they go is decided here.

use std::io;

use tracing_subscriber::filter::LevelFilter;

use super::cli::{LogFormat, LogLevel};

/// Installs the process's log. Only the first call of a process has an effect.
///
/// A JSON line is one flat object: `timestamp` (RFC 3339 UTC, microseconds), `level`, `message`, `target`, and the
/// event's own fields.
pub fn install(format: LogFormat, level: LogLevel) {
    let builder =
        tracing_subscriber::fmt().with_max_level(filter(level)).with_ansi(false).with_writer(io::stderr);
    // A second subscriber in one process is a test's; it logs where the first does.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}
