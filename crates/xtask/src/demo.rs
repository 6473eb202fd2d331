//! `cargo xtask demo`.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::binaries;
use crate::paths::Paths;
use crate::shipped;

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// On a Kubernetes cluster of its own: installed by helm, suspended and resumed by kubectl.
    #[arg(long)]
    cluster: bool,
    /// Handed to the demo itself; `-- --help` shows what it takes.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Prepares everything, then becomes the demo program.
///
/// # Errors
/// Something cannot be installed or built.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    let (stack, binaries) = shipped::prepare(&paths, args.cluster)?;
    let program = binaries::build_demo(&paths)?;
    let mut demo = Command::new(&program);
    demo.current_dir(&paths.root)
        .args(args.cluster.then_some("--cluster"))
        .args(&args.rest)
        .stdin(Stdio::null());
    binaries.export(&stack, &mut demo);
    // In place of this process: Ctrl-C then ends it once, and the shell waits until everything is removed.
    Err(demo.exec()).with_context(|| format!("start {}", program.display()))
}
