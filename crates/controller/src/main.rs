//! The controller's command.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use dormouse_controller::args::{Args, with_two_dashes};
use dormouse_controller::log;
use dormouse_controller::trace::Tracing;

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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("controller")
        .enable_all()
        .build()?;
    let tracing = {
        // The connection to the collector is the runtime's.
        let _inside = runtime.enter();
        args.enable_tracing.then(Tracing::new).transpose()
    };
    let tracing = tracing.context("--enable-tracing: the way to the collector cannot be made")?;
    log::start(args.log_format, &args.log, tracing.as_ref())?;
    let ran = runtime.block_on(dormouse_controller::run(args));
    if let Some(tracing) = &tracing {
        tracing.end();
    }
    Ok(ran?)
}
