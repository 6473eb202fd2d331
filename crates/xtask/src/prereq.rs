//! Installs what is missing on a Debian machine, and nothing else.
//!
//! Presence is judged by the tool or header itself, so a machine that has it from elsewhere is left alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;

/// What a subcommand is about to do, and thus what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Build the Go components and the images.
    Stack,
    /// Compile the workspace's crates that have generated code.
    Rust,
    /// Run pods on this machine.
    Node,
    /// Run a Kubernetes cluster on this machine.
    Cluster,
    /// Boot a guest kernel under QEMU.
    Vm,
    /// Build libFuzzer.
    Fuzz,
}

/// One prerequisite: how to see that it is there, and the Debian package that brings it.
struct Need {
    group: Group,
    what: Probe,
    package: &'static str,
}

enum Probe {
    /// An executable in PATH or in an sbin directory.
    Tool(&'static str),
    /// Any one of these files.
    File(&'static [&'static str]),
    /// A module of the Python that is first in PATH.
    PythonModule(&'static str),
}

const NEEDS: &[Need] = &[
    Need {
        group: Group::Stack,
        what: Probe::Tool("gcc"),
        package: "gcc",
    },
    Need {
        group: Group::Stack,
        what: Probe::File(&["/usr/include/stdlib.h"]),
        package: "libc6-dev",
    },
    Need {
        group: Group::Stack,
        what: Probe::Tool("pkg-config"),
        package: "pkg-config",
    },
    Need {
        group: Group::Stack,
        what: Probe::File(&["/usr/include/seccomp.h"]),
        package: "libseccomp-dev",
    },
    Need {
        group: Group::Stack,
        what: Probe::Tool("tar"),
        package: "tar",
    },
    Need {
        group: Group::Stack,
        what: Probe::Tool("git"),
        package: "git",
    },
    Need {
        group: Group::Stack,
        what: Probe::File(&["/etc/ssl/certs/ca-certificates.crt"]),
        package: "ca-certificates",
    },
    Need {
        group: Group::Rust,
        what: Probe::Tool("protoc"),
        package: "protobuf-compiler",
    },
    Need {
        group: Group::Rust,
        what: Probe::File(&[
            "/usr/include/google/protobuf/any.proto",
            "/usr/local/include/google/protobuf/any.proto",
        ]),
        package: "libprotobuf-dev",
    },
    Need {
        group: Group::Node,
        what: Probe::Tool("ip"),
        package: "iproute2",
    },
    Need {
        group: Group::Node,
        what: Probe::Tool("mkswap"),
        package: "util-linux",
    },
    Need {
        group: Group::Node,
        what: Probe::Tool("swapon"),
        package: "mount",
    },
    Need {
        group: Group::Cluster,
        what: Probe::Tool("nft"),
        package: "nftables",
    },
    Need {
        group: Group::Cluster,
        what: Probe::Tool("nsenter"),
        package: "util-linux",
    },
    Need {
        group: Group::Cluster,
        what: Probe::Tool("openssl"),
        package: "openssl",
    },
    Need {
        group: Group::Cluster,
        // Debian has `venv` in its standard library, but not the pip that it puts into an environment.
        what: Probe::PythonModule("ensurepip"),
        package: "python3-venv",
    },
    Need {
        group: Group::Fuzz,
        what: Probe::Tool("c++"),
        package: "g++",
    },
    Need {
        group: Group::Vm,
        what: Probe::Tool("qemu-system-x86_64"),
        package: "qemu-system-x86",
    },
    Need {
        group: Group::Vm,
        what: Probe::Tool("mkfs.ext4"),
        package: "e2fsprogs",
    },
];

/// Makes sure that everything in these groups is present, installing Debian packages where it is not.
///
/// # Errors
/// When something is missing that cannot be installed: not root, no apt, or no Go toolchain.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| groups.contains(&need.group) && !need.what.present())
        .collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    if groups.contains(&Group::Stack) {
        check_go()?;
    }
    Ok(())
}

fn install(missing: &[&Need]) -> Result<()> {
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.dedup();
    let list = packages.join(" ");
    if !Probe::Tool("apt-get").present() {
        bail!(
            "missing on this machine: {list} (Debian package names), and there is no apt-get to install them"
        );
    }
    println!("Installing what is missing: {list}");
    refresh_package_lists()?;
    exec::capture(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages),
    )
    .with_context(|| format!("install these packages by hand, then try again: {list}"))?;
    if let Some(need) = missing.iter().find(|need| !need.what.present()) {
        bail!(
            "package {} is installed, but {} is still missing",
            need.package,
            need.what.name()
        );
    }
    Ok(())
}

/// `apt-get update`; called only when something has to come from the archive.
pub(crate) fn refresh_package_lists() -> Result<()> {
    exec::capture(Command::new("apt-get").arg("update"))
        .map(drop)
        .context(
            "the package lists could not be refreshed: is this root, and is the Debian archive reachable?",
        )
}

/// Go 1.21 and later fetch the exact toolchain that a go.mod names, so any such version will do.
fn check_go() -> Result<()> {
    const HELP: &str = "Go 1.21 or later is needed to build containerd, runc and gVisor (Debian 12's own golang is older): \
         install it from https://go.dev/doc/install and have `go` in PATH";
    let version = exec::capture(Command::new("go").arg("env").arg("GOVERSION")).context(HELP)?;
    let mut numbers = version
        .trim()
        .trim_start_matches("go")
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < (1, 21) {
        bail!("found {}. {HELP}", version.trim());
    }
    Ok(())
}

impl Probe {
    fn present(&self) -> bool {
        match self {
            Self::Tool(tool) => find_tool(tool),
            Self::File(files) => files.iter().any(|file| Path::new(file).exists()),
            Self::PythonModule(module) => {
                exec::capture(Command::new("python3").args(["-c", &format!("import {module}")])).is_ok()
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Tool(tool) => tool,
            Self::File(files) => files.first().copied().unwrap_or("a file"),
            Self::PythonModule(module) => module,
        }
    }
}

/// Looks in PATH and in the sbin directories, which a plain user's PATH lacks.
fn find_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(tool).is_file())
}
