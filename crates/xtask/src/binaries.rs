//! Builds Dormouse's own binaries and puts them side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::stack::Stack;
use crate::{exec, ui};

/// All of Dormouse's programs.
pub(crate) const PROGRAMS: [&str; 4] = [
    "dormouse-agent",
    "dormouse-controller",
    "dormouse",
    "dormouse-runsc",
];

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
    /// Holds `dormouse-agent`, `dormouse` and the static `dormouse-runsc`.
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

/// Builds agent, CLI and wrapper, and gathers them in `target/bin/<profile>`.
pub(crate) fn build(paths: &Paths, profile: Profile) -> Result<Binaries> {
    let dir = paths.target.join("bin").join(profile.folder());
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let triple = host_triple()?;

    ui::step(
        &format!("dormouse-agent and dormouse ({})", profile.folder()),
        || {
            let mut cargo = Command::new("cargo");
            cargo.current_dir(&paths.root).args([
                "build",
                "--quiet",
                "-p",
                "dormouse-agent",
                "-p",
                "dormouse-cli",
            ]);
            match profile {
                Profile::Dev => cargo.args(["--features", "dormouse-agent/failpoints"]),
                Profile::Release => cargo.arg("--release"),
            };
            exec::capture(&mut cargo).map(drop)
        },
    )?;
    // Static, because it runs wherever the shim runs, and fast to start, because it runs for every verb. The flag
    // would rebuild every dependency in the common directory, so it gets its own (its dependencies are few). The
    // explicit target keeps the flag away from build scripts and procedural macros.
    let static_dir = paths.target.join("static");
    ui::step(&format!("dormouse-runsc, static ({})", profile.folder()), || {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&paths.root)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args([
                "build",
                "--quiet",
                "-p",
                "dormouse-runsc",
                "--target",
                &triple,
                "--target-dir",
            ])
            .arg(&static_dir);
        match profile {
            Profile::Dev => cargo.args(["--features", "dormouse-runsc/failpoints"]),
            Profile::Release => cargo.arg("--release"),
        };
        exec::capture(&mut cargo).map(drop)
    })?;

    let common = paths.target.join(profile.folder());
    let wrapper = static_dir
        .join(&triple)
        .join(profile.folder())
        .join("dormouse-runsc");
    for source in [common.join("dormouse-agent"), common.join("dormouse"), wrapper] {
        gather(&source, &dir)?;
    }
    Ok(Binaries { dir })
}

/// Builds all programs static, for an image that holds nothing else: the agent works in the node's mount namespace, where
/// it would meet the node's libraries when it starts itself again, and the wrapper is copied there.
pub(crate) fn build_static(paths: &Paths, profile: Profile) -> Result<Binaries> {
    let dir = paths
        .target
        .join("bin")
        .join(format!("{}-static", profile.folder()));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let triple = host_triple()?;
    let static_dir = paths.target.join("static");
    ui::step(&format!("all programs, static ({})", profile.folder()), || {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&paths.root)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args(["build", "--quiet", "--target", &triple, "--target-dir"])
            .arg(&static_dir);
        for package in [
            "dormouse-runsc",
            "dormouse-agent",
            "dormouse-controller",
            "dormouse-cli",
        ] {
            cargo.args(["-p", package]);
        }
        match profile {
            Profile::Dev => cargo.args([
                "--features",
                "dormouse-runsc/failpoints,dormouse-agent/failpoints",
            ]),
            Profile::Release => cargo.arg("--release"),
        };
        exec::capture(&mut cargo).map(drop)
    })?;
    let built = static_dir.join(&triple).join(profile.folder());
    for program in PROGRAMS {
        gather(&built.join(program), &dir)?;
    }
    Ok(Binaries { dir })
}

/// Builds the program that is behind `cargo xtask cluster`, and the first process of each of a cluster's machines. A
/// debug build: nothing that it does takes time. It is put beside the programs of the given profile.
pub(crate) fn build_cluster(paths: &Paths, beside: Profile) -> Result<Binaries> {
    let dir = paths.target.join("bin").join(beside.folder());
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    ui::step("dormouse-cluster", || {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(&paths.root).args([
            "build",
            "--quiet",
            "-p",
            "dormouse-testkit",
            "--bin",
            "dormouse-cluster",
        ]);
        exec::capture(&mut cargo).map(drop)
    })?;
    gather(&paths.target.join("debug/dormouse-cluster"), &dir)?;
    Ok(Binaries { dir })
}

/// Builds `kubectl dormouse`, which is on nobody's node and in no image, and puts it beside the programs of a debug build.
pub(crate) fn build_plugin(paths: &Paths) -> Result<()> {
    let dir = paths.target.join("bin").join(Profile::Dev.folder());
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    ui::step("kubectl-dormouse", || {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&paths.root)
            .args(["build", "--quiet", "-p", "dormouse-kubectl"]);
        exec::capture(&mut cargo).map(drop)
    })?;
    gather(&paths.target.join("debug/kubectl-dormouse"), &dir)
}

/// The same program as an earlier [`build_cluster`] has left it.
pub(crate) fn find_cluster(paths: &Paths) -> Result<Binaries> {
    let dir = paths.target.join("bin").join(Profile::Dev.folder());
    anyhow::ensure!(
        dir.join("dormouse-cluster").is_file(),
        "no cluster has been brought up from here yet: `cargo xtask cluster up`"
    );
    Ok(Binaries { dir })
}

/// Puts a binary into `dir`. Copied and renamed: a running copy of an earlier build keeps its file.
fn gather(source: &Path, dir: &Path) -> Result<()> {
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
