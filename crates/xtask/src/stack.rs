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
    Kubernetes,
    Coredns,
    Helm,
    Kwok,
}

impl Module {
    fn folder(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Gvisor => "gvisor",
            Self::Images => "images",
            Self::Kubernetes => "kubernetes",
            Self::Coredns => "coredns",
            Self::Helm => "helm",
            Self::Kwok => "kwok",
        }
    }
}

/// What is built together into one directory, whose name follows from all that decides its content.
#[derive(Debug, Clone, Copy)]
struct Set {
    modules: &'static [Module],
    components: &'static [Component],
    /// What comes before the hash in the directory's name.
    prefix: &'static str,
    /// The link in `target/stack` that names the newest one.
    link: &'static str,
}

/// What a node runs, and what the test images are made with.
const NODE: Set = Set {
    modules: &[Module::Core, Module::Gvisor, Module::Images],
    components: COMPONENTS,
    prefix: "",
    link: "current",
};

/// What makes a cluster of such nodes. A set of its own: it takes minutes, and most work does without.
const CLUSTER: Set = Set {
    modules: &[Module::Kubernetes, Module::Coredns, Module::Helm, Module::Kwok],
    components: CLUSTER_COMPONENTS,
    prefix: "cluster-",
    link: "current-cluster",
};

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
    /// Kubernetes' binaries call themselves v0.0.0-master unless told, and compare such versions with each other.
    Kubernetes,
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

const fn cluster(name: &'static str, module: Module, package: &'static str, version: Version) -> Component {
    Component {
        name,
        module,
        package,
        version,
        cgo: Cgo::Off,
        edited: false,
    }
}

const fn kubernetes(name: &'static str, package: &'static str) -> Component {
    cluster(name, Module::Kubernetes, package, Version::Kubernetes)
}

const CLUSTER_COMPONENTS: &[Component] = &[
    // The first one compiles most of what the others share.
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    kubernetes(
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    cluster(
        "etcd",
        Module::Kubernetes,
        "go.etcd.io/etcd/server/v3",
        Version::None,
    ),
    cluster(
        "coredns",
        Module::Coredns,
        "github.com/coredns/coredns",
        Version::None,
    ),
    cluster(
        "helm",
        Module::Helm,
        "helm.sh/helm/v4/cmd/helm",
        Version::OfModule {
            variable: "helm.sh/helm/v4/internal/version.version",
            module: "helm.sh/helm/v4",
        },
    ),
    cluster(
        "kwok",
        Module::Kwok,
        "sigs.k8s.io/kwok/cmd/kwok",
        Version::OfModule {
            variable: "sigs.k8s.io/kwok/pkg/consts.Version",
            module: "sigs.k8s.io/kwok",
        },
    ),
];

/// A finished stack.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Holds `bin/` and `images/`.
    pub(crate) dir: PathBuf,
    /// Holds the `bin/` of what makes a cluster, where that was asked for.
    pub(crate) cluster: Option<PathBuf>,
}

/// Builds what a node needs and is not there yet, and points `target/stack/current` at it.
pub(crate) fn build(paths: &Paths) -> Result<Stack> {
    let (home, _lock) = home(paths)?;
    let dir = NODE.build(paths, &home)?;
    images::build(&home, &dir)?;
    point_at(&home, NODE.link, &dir)?;
    Ok(Stack { dir, cluster: None })
}

/// The same, and what a cluster needs: `target/stack/current-cluster`.
pub(crate) fn build_with_cluster(paths: &Paths) -> Result<Stack> {
    let stack = build(paths)?;
    let (home, _lock) = home(paths)?;
    let dir = CLUSTER.build(paths, &home)?;
    point_at(&home, CLUSTER.link, &dir)?;
    Ok(Stack {
        cluster: Some(dir),
        ..stack
    })
}

/// The directory of all stacks, and the lock on it.
fn home(paths: &Paths) -> Result<(PathBuf, fs::File)> {
    let home = paths.target.join("stack");
    fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    // Two xtasks at once would build the same things into the same files.
    let lock = fs::File::create(home.join(".lock")).context("create the stack's lock file")?;
    if lock.try_lock().is_err() {
        println!("Another build of the stack is going on; waiting for it.");
        lock.lock().context("wait for the other build of the stack")?;
    }

    Ok((home, lock))
}

impl Set {
    /// Builds what is missing, and returns the directory.
    fn build(&self, paths: &Paths, home: &Path) -> Result<PathBuf> {
        let modules = paths.root.join("tests/stack");
        let dir = home.join(format!("{}{}", self.prefix, self.hash(&modules)?));
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        let missing: Vec<&Component> = self
            .components
            .iter()
            .filter(|c| !bin.join(c.name).is_file())
            .collect();
        if !missing.is_empty() {
            println!(
                "Building {} of {} pinned components into {} (minutes on a first run, seconds later)",
                missing.len(),
                self.components.len(),
                bin.display()
            );
        }
        for component in &missing {
            let label = format!("{} from {}", component.name, component.package);
            ui::step(&label, || component.build(&modules, home, &bin))?;
        }
        Ok(dir)
    }

    /// Content of everything that decides what is built.
    fn hash(&self, modules: &Path) -> Result<String> {
        let mut hasher = Sha256::new();
        for module in self.modules {
            for file in ["go.mod", "go.sum"] {
                let path = modules.join(module.folder()).join(file);
                let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                hasher.update(text.len().to_le_bytes());
                hasher.update(text);
            }
        }
        hasher.update(format!("{:?}", self.components));
        if self.components.iter().any(|component| component.edited) {
            hasher.update(shim_edit::recipe());
        }
        Ok(short_hex(&hasher.finalize()))
    }
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
            Self::Kubernetes => {
                let version = version_of("k8s.io/kubernetes")?;
                let mut numbers = version.trim_start_matches('v').split('.');
                let mut number = || numbers.next().unwrap_or("0");
                let (major, minor) = (number(), number());
                [
                    ("gitVersion", version.as_str()),
                    ("gitMajor", major),
                    ("gitMinor", minor),
                ]
                .map(|(name, value)| format!(" -X k8s.io/component-base/version.{name}={value}"))
                .concat()
            }
        })
    }
}

/// A link always names a complete set: it is replaced by rename.
fn point_at(home: &Path, link: &str, dir: &Path) -> Result<()> {
    let name = dir.file_name().context("the stack's directory has no name")?;
    let fresh = home.join(format!(".{link}.new"));
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(name, &fresh).with_context(|| format!("link {}", fresh.display()))?;
    fs::rename(&fresh, home.join(link)).with_context(|| format!("replace target/stack/{link}"))
}
