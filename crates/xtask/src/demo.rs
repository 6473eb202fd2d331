//! `cargo xtask demo`.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{image, stack};

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
    let (stack, binaries) = if args.cluster {
        prereq::ensure(&[Group::Rust, Group::Stack, Group::Node, Group::Cluster])?;
        let binaries = binaries::build_image(&paths, Profile::Release)?;
        image::build(&paths, &binaries.dir, Profile::Release, image::REPOSITORY)?;
        binaries::build_cluster(&paths, Profile::Release)?;
        (stack::build_with_cluster(&paths)?, binaries)
    } else {
        prereq::ensure(&[Group::Rust, Group::Stack, Group::Node])?;
        (stack::build(&paths)?, binaries::build_node(&paths)?)
    };
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
