//! Builds Dormouse's own binaries and puts them side by side.
//!
//! All are static: the agent works in the node's mount namespace, where it would meet the node's libraries when it starts
//! itself again, the wrapper runs wherever the shim runs, and an image holds nothing else. Tests and programs of a debug
//! build are one selection of packages and features, so that nothing is compiled twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::stack::Stack;
use crate::{exec, ui};

/// One of Dormouse's programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The package that it is of.
    pub(crate) package: &'static str,
    /// Its file's name.
    pub(crate) name: &'static str,
}

impl Program {
    const fn of(package: &'static str, name: &'static str) -> Self {
        Self { package, name }
    }
}

const AGENT: Program = Program::of("dormouse-agent", "dormouse-agent");
const CONTROLLER: Program = Program::of("dormouse-controller", "dormouse-controller");
const CLI: Program = Program::of("dormouse-cli", "dormouse");
const RUNSC: Program = Program::of("dormouse-runsc", "dormouse-runsc");
/// Shipped beside the image.
const PLUGIN: Program = Program::of("dormouse-kubectl", "kubectl-dormouse");
const CLUSTER: Program = Program::of("dormouse-testkit", "dormouse-cluster");
const DEMO: Program = Program::of("dormouse-testkit", "dormouse-demo");

/// What the image holds.
pub(crate) const IMAGE: [Program; 4] = [AGENT, CONTROLLER, CLI, RUNSC];
/// As shipped, the image's programs and the plugin are made of one selection of packages, whatever they are built for: two
/// images of one commit are the same.
const SHIPPED: [Program; 5] = [AGENT, CONTROLLER, CLI, RUNSC, PLUGIN];
/// What tests start.
const TRIED: [Program; 6] = [AGENT, CONTROLLER, CLI, RUNSC, PLUGIN, CLUSTER];

/// Every crate that has fail points.
const FAILPOINTS: &str = "dormouse-agent/failpoints,dormouse-runsc/failpoints,dormouse-runtime/failpoints,\
                          dormouse-sentry/failpoints,dormouse-snapshot/failpoints";

/// Which build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// With fail points, for tests.
    Dev,
    /// As shipped, for the demo and for measurements.
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Built binaries.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// Holds the programs that were asked for, by their own names.
    pub(crate) dir: PathBuf,
}

impl Binaries {
    /// Tells a child command where everything is; the test kit reads these variables.
    pub(crate) fn export(&self, stack: &Stack, command: &mut Command) {
        command
            .env("DORMOUSE_BIN_DIR", &self.dir)
            .env("DORMOUSE_STACK_DIR", &stack.dir);
        if let Some(dir) = &stack.cluster {
            command.env("DORMOUSE_CLUSTER_DIR", dir);
        }
    }
}

/// `cargo VERB` for static programs. The explicit target keeps the flag away from build scripts and procedural macros.
pub(crate) fn cargo(paths: &Paths, verb: &str) -> Result<Command> {
    Ok(cargo_of(paths, verb, &["--target", &host_triple()?]))
}

/// `cargo VERB` for whatever a debug build is: all packages at once, with fail points. Every command that compiles for a
/// test has to be made of this one, or it compiles most dependencies again, with other features.
pub(crate) fn cargo_dev(paths: &Paths, verb: &str) -> Result<Command> {
    let triple = host_triple()?;
    let selection = ["--target", &triple, "--workspace", "--features", FAILPOINTS];
    let mut cargo = cargo_of(paths, verb, &selection);
    // For the test that has to build another one.
    cargo.env("DORMOUSE_CARGO_SELECTION", selection.join(" "));
    Ok(cargo)
}

fn cargo_of(paths: &Paths, verb: &str, selection: &[&str]) -> Command {
    let flag = "-C target-feature=+crt-static";
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&paths.root)
        .env("RUSTFLAGS", flag)
        .env("RUSTDOCFLAGS", flag)
        .args([verb, "--quiet"])
        .args(selection);
    cargo
}

/// Where [`cargo`] puts what it builds.
pub(crate) fn built(paths: &Paths, profile: Profile) -> Result<PathBuf> {
    Ok(paths.target.join(host_triple()?).join(profile.folder()))
}

/// Builds every program, the examples that tests start, and these test binaries, for tests.
pub(crate) fn build_for_tests(paths: &Paths, tests: &[&str]) -> Result<Binaries> {
    ui::step("all programs (debug)", || {
        let mut cargo = cargo_dev(paths, "build")?;
        cargo.args(["--bins", "--examples"]);
        for test in tests {
            cargo.args(["--test", test]);
        }
        exec::capture(&mut cargo).map(drop)
    })?;
    gather(paths, Profile::Dev, &TRIED)
}

/// Builds what a node needs that belongs to no cluster, as shipped.
pub(crate) fn build_node(paths: &Paths) -> Result<Binaries> {
    let what = "dormouse-agent, dormouse, dormouse-runsc";
    build(paths, what, Profile::Release, &[AGENT, CLI, RUNSC])
}

/// Builds what the image holds.
pub(crate) fn build_image(paths: &Paths, profile: Profile) -> Result<Binaries> {
    match profile {
        Profile::Dev => build_for_tests(paths, &[]),
        Profile::Release => build(paths, "all programs", profile, &SHIPPED),
    }
}

/// Builds the program that is behind `cargo xtask cluster`, and the first process of each of a cluster's machines.
pub(crate) fn build_cluster(paths: &Paths, profile: Profile) -> Result<Binaries> {
    build(paths, CLUSTER.name, profile, &[CLUSTER])
}

/// Builds the demo, as fast as what it shows.
pub(crate) fn build_demo(paths: &Paths) -> Result<PathBuf> {
    let binaries = build(paths, DEMO.name, Profile::Release, &[DEMO])?;
    Ok(binaries.dir.join(DEMO.name))
}

/// The program of [`build_cluster`] as an earlier debug build has left it.
pub(crate) fn find_cluster(paths: &Paths) -> Result<Binaries> {
    let dir = folder(paths, Profile::Dev);
    anyhow::ensure!(
        dir.join(CLUSTER.name).is_file(),
        "no cluster has been brought up from here yet: `cargo xtask cluster up`"
    );
    Ok(Binaries { dir })
}

/// Builds programs and puts them into `target/bin/<profile>`.
fn build(paths: &Paths, what: &str, profile: Profile, programs: &[Program]) -> Result<Binaries> {
    ui::step(&format!("{what} ({})", profile.folder()), || {
        let mut cargo = cargo(paths, "build")?;
        for program in programs {
            cargo.args(["--package", program.package, "--bin", program.name]);
        }
        if profile == Profile::Release {
            cargo.arg("--release");
        }
        exec::capture(&mut cargo).map(drop)
    })?;
    gather(paths, profile, programs)
}

fn folder(paths: &Paths, profile: Profile) -> PathBuf {
    paths.target.join("bin").join(profile.folder())
}

fn gather(paths: &Paths, profile: Profile, programs: &[Program]) -> Result<Binaries> {
    let dir = folder(paths, profile);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let built = built(paths, profile)?;
    for program in programs {
        replace(&built.join(program.name), &dir)?;
    }
    Ok(Binaries { dir })
}

/// Puts a binary into `dir`. Copied and renamed: a running copy of an earlier build keeps its file.
fn replace(source: &Path, dir: &Path) -> Result<()> {
    let name = source.file_name().context("a binary without a name")?;
    let partial = dir.join(".partial");
    fs::copy(source, &partial).with_context(|| format!("copy {}", source.display()))?;
    fs::rename(&partial, dir.join(name)).with_context(|| format!("put {} in place", source.display()))
}

pub(crate) fn host_triple() -> Result<String> {
    exec::capture(Command::new("rustc").arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("`rustc -vV` names no host")
}
