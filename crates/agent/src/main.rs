//! The node agent's command.

use std::process::ExitCode;

use clap::Parser as _;
use dormouse_agent::args::Args;
use dormouse_agent::config::Config;

fn main() -> ExitCode {
    // The guard of a reclaim is this same binary, started anew.
    dormouse_runtime::reclaim::guard::main_if_requested();
    #[cfg(feature = "failpoints")]
    let _failpoints = dormouse_agent::failpoints::start();
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    dormouse_agent::log::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_name("agent")
        .thread_stack_size(512 << 10)
        .enable_all()
        .build()?;
    if args.thaw_all {
        return runtime.block_on(dormouse_agent::thaw_all(&config));
    }
    runtime.block_on(dormouse_agent::run(config))
}
