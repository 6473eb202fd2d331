//! The node agent's command.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use dormouse_agent::args::{Args, Command};
use dormouse_agent::config::Config;
use dormouse_agent::prepare::{self, NodeSettings};
use dormouse_agent::{Cluster, allocator, enter};

fn main() -> ExitCode {
    // The guard of a reclaim is this same binary, started anew.
    dormouse_runtime::reclaim::guard::main_if_requested();
    allocator::keep_little();
    #[cfg(feature = "failpoints")]
    let _failpoints = dormouse_agent::failpoints::start();
    match start(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dormouse-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(args)?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    let settings = match &args.node_settings {
        Some(path) => Some(NodeSettings::read(path)?),
        None => None,
    };
    if let Some(settings) = &settings {
        config.wrapper_config = settings.wrapper_config_path();
    }
    let mut wrapper = args.wrapper.clone();
    let mut api = None;
    if args.from_container {
        if let Some(code) = enter::stay_outside()? {
            return Ok(code);
        }
        // The last moment at which there is no other thread.
        wrapper = enter::in_reach(&wrapper)?;
        api = enter::enter(&mut config)?;
    }
    dormouse_agent::log::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_name("agent")
        .thread_stack_size(512 << 10)
        .enable_all()
        .build()?;
    match &args.command {
        _ if args.thaw_all => runtime.block_on(dormouse_agent::thaw_all(&config)),
        Some(Command::Install) => runtime.block_on(install(&settings.unwrap_or_default(), &config, &wrapper)),
        Some(Command::Uninstall { stay: false }) => runtime
            .block_on(uninstall(&settings.unwrap_or_default(), &config))
            .map(drop),
        Some(Command::Uninstall { stay: true }) => {
            runtime.block_on(uninstall_all(&settings.unwrap_or_default(), &config))
        }
        None => {
            let prepare = settings.map(|settings| (settings, wrapper));
            runtime.block_on(dormouse_agent::run(config, Cluster { api, prepare }))
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn install(settings: &NodeSettings, config: &Config, wrapper: &Path) -> anyhow::Result<()> {
    let program = std::fs::read(wrapper).with_context(|| format!("cannot read {}", wrapper.display()))?;
    let done = prepare::prepare(settings, config, program)
        .await
        .map_err(|error| anyhow::anyhow!("{}: {error}", error.reason()))?;
    for path in &done.written {
        println!("written    {}", path.display());
    }
    if done.restarted {
        println!("restarted  containerd");
    }
    println!("the node is prepared");
    Ok(())
}

/// Says whether nothing is left.
async fn uninstall(settings: &NodeSettings, config: &Config) -> anyhow::Result<bool> {
    let left = prepare::remove(settings, config)
        .await
        .map_err(|error| anyhow::anyhow!("{}: {error}", error.reason()))?;
    if left.restarted {
        println!("restarted  containerd");
    }
    if left.files.is_empty() {
        println!(
            "nothing of Dormouse is left on the node but {}",
            config.state_dir.display()
        );
        return Ok(true);
    }
    for path in &left.files {
        println!("kept       {}", path.display());
    }
    println!(
        "kept for pods of the handler, whose shims call the wrapper until they are deleted: {}",
        left.pods.join(", ")
    );
    Ok(false)
}

async fn uninstall_all(settings: &NodeSettings, config: &Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = async {
        while !uninstall(settings, config).await? {
            prepare::pods_changed(config).await?;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        failed = work => return failed,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
