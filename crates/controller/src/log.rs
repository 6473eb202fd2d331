//! Log lines.

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Why nothing can be logged.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter is none.
    #[error("--log is not a filter such as `info,kube=warn`: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody logs already.
    #[error("logging has been started twice")]
    Twice,
}

/// Begins to log to the standard error.
///
/// # Errors
///
/// If the filter is none, or it has been begun.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let filter: EnvFilter = filter.parse()?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogError::Twice)
}
