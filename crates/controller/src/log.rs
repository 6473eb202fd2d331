//! Log lines.

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::args::LogFormat;
use crate::trace::{TARGET, Tracing};

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

/// Begins to log to the standard error, and to trace if that is wanted.
///
/// # Errors
///
/// If the filter is none, or it has been begun.
pub fn start(format: LogFormat, filter: &str, tracing: Option<&Tracing>) -> Result<(), LogError> {
    // What is traced is not logged; and without tracing it is not even looked at.
    let untraced = format!("{TARGET}=off").parse()?;
    let filter = filter.parse::<EnvFilter>()?.add_directive(untraced);
    match tracing {
        None => registry().with(filter).with(lines(format)).try_init(),
        Some(tracing) => registry()
            .with(lines(format).with_filter(filter))
            .with(tracing.layer())
            .try_init(),
    }
    .map_err(|_| LogError::Twice)
}

fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}
