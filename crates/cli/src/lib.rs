//! `dormouse`: what a node operator types.
//!
//! One file per verb under `verbs`, what they print under `view`, and the agent's client in `agent`.
//!
//! Exit codes: 0 = done; 1 = failed, or failed for some pods; 2 = wrong usage; 3 = the agent, or containerd,
//! cannot be reached; 130 = `run` was interrupted and undone. `doctor`: 0 = all well, 1 = warnings, 2 = something is missing.

mod agent;
mod args;
mod error;
mod select;
mod sys;
mod verbs;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use dormouse_output as output;

use crate::args::Cli;

/// Parses the command line, does what it says, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // On wrong usage, clap says what is wrong and exits with 2.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("dormouse: cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(verbs::run(cli));
    // A read from the terminal that is still waiting must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            if !error.is_broken_pipe() {
                output::complain(&format!("dormouse: {}", error.full_text()));
            }
            ExitCode::from(error.exit_code())
        }
    }
}
