//! `kubectl dormouse completion`.

use std::process::ExitCode;

use clap::CommandFactory as _;
use dormouse_output::line;

use crate::args::Cli;
use crate::error::PluginError;

pub(super) fn completion(shell: clap_complete::Shell) -> Result<ExitCode, PluginError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-dormouse", &mut script);
    line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
