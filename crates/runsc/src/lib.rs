//! The wrapper's parts; see the binary.

pub mod annotations;
pub mod args;
mod cri;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod json;
mod outcome;
mod real;
mod trace;
mod verb;
mod volumes;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use args::Invocation;
use dormouse_sentry::WrapperConfig as Config;
use outcome::{Failure, Outcome};
use trace::Trace;

/// What a verb that fails inside the wrapper exits with; runsc's own number for it.
pub const EXIT_FAILURE: u8 = 128;

/// Runs the wrapper with the process's arguments. Returns only where it has not become the real runsc.
#[must_use]
pub fn run(argv: Vec<OsString>) -> ExitCode {
    let started = Instant::now();
    let argv: Vec<OsString> = argv.into_iter().skip(1).collect();
    if argv.first().is_some_and(|a| a == "--dormouse-version") {
        println!("dormouse-runsc {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let invocation = Invocation::parse(&argv);
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => return Failure::from_error(&error).report(&invocation),
    };
    let trace = Trace::new(config.trace.as_deref(), &invocation, started);
    match verb::dispatch(&config, &invocation, &argv, &trace) {
        Ok(Outcome::Answered) => {
            trace.write("answered");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Exited(code)) => {
            trace.write("child");
            ExitCode::from(code)
        }
        Err(failure) => {
            trace.write("failed");
            failure.report(&invocation)
        }
    }
}
