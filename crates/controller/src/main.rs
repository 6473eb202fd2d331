//! The controller's command.

use std::process::ExitCode;

use clap::Parser as _;
use dormouse_controller::args::{Args, with_two_dashes};

fn main() -> ExitCode {
    let args = Args::parse_from(with_two_dashes(std::env::args_os()));
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    dormouse_controller::log::start(args.log_format, &args.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("controller")
        .enable_all()
        .build()?;
    runtime.block_on(dormouse_controller::run(args))?;
    Ok(())
}
