//! `kubectl dormouse`: what somebody types who has a kubeconfig, and no node.
//!
//! One file per verb under `verbs`, which do what has an effect; what they print is made by `view` and `why`, which are
//! pure. It is a program of its own beside `dormouse`, which needs neither an API server nor a client of one.
//!
//! Exit codes: 0 = done; 1 = failed, or failed for some sandboxes; 2 = wrong usage; 3 = the cluster cannot be reached.

mod args;
mod cluster;
mod error;
mod refusal;
mod verbs;
mod view;
mod why;

use std::process::ExitCode;

use clap::Parser as _;
use dormouse_output::complain;

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
            complain(&format!("kubectl dormouse: cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(verbs::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            if !error.is_broken_pipe() {
                complain(&format!("kubectl dormouse: {}", error.full_text()));
            }
            ExitCode::from(error.exit_code())
        }
    }
}
