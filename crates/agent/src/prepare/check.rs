//! Whether a node can be prepared at all; nothing is changed.

use std::path::{Path, PathBuf};

use dormouse_cri::Runtime;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{NodeSettings, PrepareError, containerd};
use crate::config::Config;
use crate::facts::cgroup_version;
use crate::swap;

/// The oldest kernels: `process_madvise(2)`, and `memory.reclaim` of cgroup v2.
const KERNEL: (u32, u32) = (5, 10);
const KERNEL_V2: (u32, u32) = (5, 19);

/// The oldest containerd.
const CONTAINERD: u32 = 2;

/// The shim's program, as containerd makes its name of the runtime's type.
const SHIM: &str = "containerd-shim-runsc-v1";

/// Looks at the node.
pub(super) async fn node(
    settings: &NodeSettings,
    config: &Config,
    runtime: &Runtime,
) -> Result<(), PrepareError> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel(release.trim(), cgroup_version())?;
    if cgroup_version() == 1 {
        cgroups_v1(&std::fs::read_to_string("/proc/cgroups").unwrap_or_default())?;
    }
    memory_backed(&config.run_dir)?;
    let version = runtime.version().await?;
    let found = format!("{} {}", version.name, version.version);
    if version.name != "containerd" || version.major().is_none_or(|major| major < CONTAINERD) {
        return Err(PrepareError::Containerd { found });
    }
    program("runsc", &settings.runsc)?;
    program("the gVisor shim", &shim(settings, runtime.socket()))?;
    let kubelet = swap::kubelet(&config.swap);
    if config.swap.wants_own() && kubelet.forbids_swap() {
        let problem = kubelet.explain();
        if settings.require_swap {
            return Err(PrepareError::KubeletForbidsSwap { problem });
        }
        tracing::warn!("pods will not doze on this node: {problem}");
    }
    Ok(())
}

fn kernel(release: &str, cgroups: u32) -> Result<(), PrepareError> {
    let least = if cgroups == 2 { KERNEL_V2 } else { KERNEL };
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().ok());
    let found = numbers.next().flatten().zip(numbers.next().flatten());
    if found.is_none_or(|found| found < least) {
        return Err(PrepareError::Node {
            problem: format!(
                "its kernel is {release}, and {}.{} is needed with cgroup v{cgroups}",
                least.0, least.1
            ),
        });
    }
    Ok(())
}

fn cgroups_v1(listed: &str) -> Result<(), PrepareError> {
    for controller in ["memory", "freezer"] {
        let enabled = listed.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&controller) && words.last() == Some(&"1")
        });
        if !enabled {
            return Err(PrepareError::Node {
                problem: format!("its kernel has no cgroup controller \"{controller}\""),
            });
        }
    }
    Ok(())
}

/// The run directory, or the first directory above it that is there, has to be in memory: what is in it must end with the
/// guests that it tells of.
fn memory_backed(run_dir: &Path) -> Result<(), PrepareError> {
    let there = run_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let kind = statfs(there).map(|stat| stat.filesystem_type());
    if !kind.is_ok_and(|kind| kind == TMPFS_MAGIC) {
        return Err(PrepareError::Node {
            problem: format!(
                "run_dir is {}, and {} is not on a tmpfs",
                run_dir.display(),
                there.display()
            ),
        });
    }
    Ok(())
}

fn program(what: &'static str, path: &Path) -> Result<(), PrepareError> {
    use std::os::unix::fs::PermissionsExt as _;
    let bad = |problem: &str| PrepareError::Program {
        what,
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    let meta = std::fs::metadata(path).map_err(|error| bad(&error.to_string()))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(bad("it is no program"));
    }
    if !containerd::is_roots(path) {
        return Err(bad(
            "it or its directory does not belong to root, or others can write to it",
        ));
    }
    Ok(())
}

/// The shim that containerd will start.
fn shim(settings: &NodeSettings, socket: &Path) -> PathBuf {
    if !settings.shim.as_os_str().is_empty() {
        return settings.shim.clone();
    }
    let beside = settings.runsc.with_file_name(SHIM);
    containerd::search_path(socket)
        .into_iter()
        .map(|dir| dir.join(SHIM))
        .find(|path| path.is_file())
        .unwrap_or(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        for (release, cgroups, good) in [
            ("5.10.0-30-amd64", 1, true),
            ("5.9.16", 1, false),
            ("6.18.44-fc", 2, true),
            ("5.15.0-100-generic", 2, false),
            ("5.19", 2, true),
            ("", 1, false),
            ("six", 1, false),
        ] {
            assert_eq!(
                kernel(release, cgroups).is_ok(),
                good,
                "{release} with v{cgroups}"
            );
        }
    }

    #[test]
    fn controllers_of_cgroup_v1() {
        let listed = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t7\t90\t1\nfreezer\t8\t90\t1\n";
        assert!(cgroups_v1(listed).is_ok());
        assert!(cgroups_v1(&listed.replace("freezer\t8\t90\t1", "freezer\t8\t90\t0")).is_err());
        assert!(cgroups_v1("").is_err());
    }

    #[test]
    fn a_program_is_there_and_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runsc");
        assert!(matches!(
            program("runsc", &path),
            Err(PrepareError::Program { .. })
        ));
        std::fs::write(&path, "").unwrap();
        assert!(program("runsc", &path).is_err(), "not executable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let is_root = nix::unistd::geteuid().is_root();
        assert_eq!(program("runsc", &path).is_ok(), is_root);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(program("runsc", &path).is_err(), "anybody can write it");
    }

    #[test]
    fn the_run_directory_is_in_memory() {
        // Where neither is, as in a bare container, there is nothing to compare.
        if statfs("/dev/shm").is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC) {
            assert!(memory_backed(Path::new("/dev/shm/not/there/yet")).is_ok());
        }
        assert!(memory_backed(Path::new("/proc/self")).is_err());
    }
}
