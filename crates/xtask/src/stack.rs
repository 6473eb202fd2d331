//! Builds the real node components, at the versions that the go.mod files below `tests/stack` pin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::paths::Paths;
use crate::{exec, images, shim_edit, ui};

/// Which go.mod pins a component: they want different versions of the same modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Core,
    Gvisor,
    Images,
}

impl Module {
    const ALL: [Self; 3] = [Self::Core, Self::Gvisor, Self::Images];

    fn folder(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Gvisor => "gvisor",
            Self::Images => "images",
        }
    }
}

/// How a component's version gets into its binary.
#[derive(Debug, Clone, Copy)]
enum Version {
    /// The component does not want one, or finds it by itself.
    None,
    /// `-X variable=<version of module>`.
    OfModule {
        variable: &'static str,
        module: &'static str,
    },
    /// gVisor's releases are named by date; the pinned pseudo-version starts with it.
    GvisorRelease {
        variable: &'static str,
        module: &'static str,
    },
    /// This one: the same source under the name of another release.
    Given {
        variable: &'static str,
        version: &'static str,
    },
}

/// One binary.
#[derive(Debug, Clone, Copy)]
struct Component {
    name: &'static str,
    module: Module,
    package: &'static str,
    version: Version,
    cgo: Cgo,
    edited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cgo {
    /// Static by nature.
    Off,
    /// Linked statically against C libraries, with these build tags.
    Static { tags: &'static str },
}

const CONTAINERD: &str = "github.com/containerd/containerd/v2";
const CONTAINERD_VERSION: Version = Version::OfModule {
    variable: "github.com/containerd/containerd/v2/version.Version",
    module: CONTAINERD,
};

const fn core(name: &'static str, package: &'static str, version: Version) -> Component {
    Component {
        name,
        module: Module::Core,
        package,
        version,
        cgo: Cgo::Off,
        edited: false,
    }
}

const COMPONENTS: &[Component] = &[
    core(
        "containerd",
        "github.com/containerd/containerd/v2/cmd/containerd",
        CONTAINERD_VERSION,
    ),
    core(
        "ctr",
        "github.com/containerd/containerd/v2/cmd/ctr",
        CONTAINERD_VERSION,
    ),
    core(
        "containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        CONTAINERD_VERSION,
    ),
    Component {
        // Static, so that it starts inside any root file system.
        cgo: Cgo::Static {
            tags: "seccomp netgo osusergo",
        },
        ..core("runc", "github.com/opencontainers/runc", Version::None)
    },
    Component {
        // Must be static: its sandbox process re-executes itself in an empty root, where a dynamic binary finds
        // no loader ("waiting for sandbox to start: EOF").
        name: "runsc",
        module: Module::Gvisor,
        package: "gvisor.dev/gvisor/runsc",
        version: Version::GvisorRelease {
            variable: "gvisor.dev/gvisor/runsc/version.version",
            module: "gvisor.dev/gvisor",
        },
        cgo: Cgo::Off,
        edited: false,
    },
    Component {
        // A runsc that is not the one above, for tests of upgrades: runsc restores only what it has saved itself.
        name: "runsc-next",
        module: Module::Gvisor,
        package: "gvisor.dev/gvisor/runsc",
        version: Version::Given {
            variable: "gvisor.dev/gvisor/runsc/version.version",
            version: "release-20260905.0-next",
        },
        cgo: Cgo::Off,
        edited: false,
    },
    Component {
        name: "containerd-shim-runsc-v1",
        module: Module::Gvisor,
        package: "gvisor.dev/gvisor/shim",
        version: Version::None,
        cgo: Cgo::Off,
        edited: true,
    },
    core(
        "bridge",
        "github.com/containernetworking/plugins/plugins/main/bridge",
        Version::None,
    ),
    core(
        "ptp",
        "github.com/containernetworking/plugins/plugins/main/ptp",
        Version::None,
    ),
    core(
        "ipvlan",
        "github.com/containernetworking/plugins/plugins/main/ipvlan",
        Version::None,
    ),
    core(
        "host-local",
        "github.com/containernetworking/plugins/plugins/ipam/host-local",
        Version::None,
    ),
    Component {
        name: "crane",
        module: Module::Images,
        package: "github.com/google/go-containerregistry/cmd/crane",
        version: Version::None,
        cgo: Cgo::Off,
        edited: false,
    },
];

/// A finished stack.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Holds `bin/` and `images/`.
    pub(crate) dir: PathBuf,
}

/// Builds what is not there yet, and points `target/stack/current` at it.
pub(crate) fn build(paths: &Paths) -> Result<Stack> {
    let modules = paths.root.join("tests/stack");
    let home = paths.target.join("stack");
    fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    // Two xtasks at once would build the same things into the same files.
    let lock = fs::File::create(home.join(".lock")).context("create the stack's lock file")?;
    if lock.try_lock().is_err() {
        println!("Another build of the stack is going on; waiting for it.");
        lock.lock().context("wait for the other build of the stack")?;
    }

    let dir = home.join(hash(&modules)?);
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    let missing: Vec<&Component> = COMPONENTS
        .iter()
        .filter(|c| !bin.join(c.name).is_file())
        .collect();
    if !missing.is_empty() {
        println!(
            "Building {} of {} pinned components into {} (minutes on a first run, seconds later)",
            missing.len(),
            COMPONENTS.len(),
            bin.display()
        );
    }
    for component in &missing {
        let label = format!("{} from {}", component.name, component.package);
        ui::step(&label, || component.build(&modules, &home, &bin))?;
    }
    images::build(&home, &dir)?;
    point_current_at(&home, &dir)?;
    Ok(Stack { dir })
}

/// Content of everything that decides what is built.
fn hash(modules: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    for module in Module::ALL {
        for file in ["go.mod", "go.sum"] {
            let path = modules.join(module.folder()).join(file);
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            hasher.update(text.len().to_le_bytes());
            hasher.update(text);
        }
    }
    hasher.update(format!("{COMPONENTS:?}"));
    hasher.update(shim_edit::recipe());
    Ok(short_hex(&hasher.finalize()))
}

/// The first 8 bytes: enough to tell builds apart, short enough for socket paths.
pub(crate) fn short_hex(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Component {
    fn build(&self, modules: &Path, home: &Path, bin: &Path) -> Result<()> {
        let module_dir = modules.join(self.module.folder());
        let partial = bin.join(format!(".{}.partial", self.name));
        let mut go = Command::new("go");
        // GOFLAGS of the person's environment could turn `-mod=readonly` off.
        go.current_dir(&module_dir)
            .env("GOFLAGS", "")
            .env("GOWORK", "off");
        go.args(["build", "-trimpath", "-mod=readonly"]);
        if self.edited {
            println!(
                "      {} is built with one condition of its containerd dependency relaxed: the stock one \
                 refuses to start where CAP_SYS_RESOURCE is missing. Test stack only.",
                self.name
            );
            let modfile = shim_edit::prepare(&module_dir, &home.join("work").join(self.name))?;
            go.arg(format!("-modfile={}", modfile.display()));
        }
        let mut ldflags = String::from("-s -w");
        match self.cgo {
            Cgo::Off => {
                go.env("CGO_ENABLED", "0");
            }
            Cgo::Static { tags } => {
                go.env("CGO_ENABLED", "1").args(["-tags", tags]);
                ldflags.push_str(" -linkmode external -extldflags -static");
            }
        }
        ldflags.push_str(&self.version.ldflag(&module_dir)?);
        go.args(["-ldflags", &ldflags, "-o"])
            .arg(&partial)
            .arg(self.package);
        exec::capture(&mut go)?;
        let done = bin.join(self.name);
        fs::rename(&partial, &done).with_context(|| format!("put {} in place", done.display()))
    }
}

impl Version {
    fn ldflag(self, module_dir: &Path) -> Result<String> {
        let version_of = |module: &str| {
            exec::capture(
                Command::new("go")
                    .current_dir(module_dir)
                    .env("GOFLAGS", "")
                    .env("GOWORK", "off")
                    .args(["list", "-mod=readonly", "-m", "-f", "{{.Version}}", module]),
            )
            .map(|version| version.trim().to_owned())
        };
        Ok(match self {
            Self::None => String::new(),
            Self::Given { variable, version } => format!(" -X {variable}={version}"),
            Self::OfModule { variable, module } => format!(" -X {variable}={}", version_of(module)?),
            Self::GvisorRelease { variable, module } => {
                let version = version_of(module)?;
                let date: String = version
                    .split('-')
                    .nth(1)
                    .with_context(|| format!("{module} {version} is not a pseudo-version with a date"))?
                    .chars()
                    .take(8)
                    .collect();
                format!(" -X {variable}=release-{date}.0")
            }
        })
    }
}

/// `current` always names a complete stack: it is replaced by rename.
fn point_current_at(home: &Path, dir: &Path) -> Result<()> {
    let name = dir.file_name().context("the stack's directory has no name")?;
    let fresh = home.join(".current.new");
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(name, &fresh).with_context(|| format!("link {}", fresh.display()))?;
    fs::rename(&fresh, home.join("current")).context("replace target/stack/current")
}
