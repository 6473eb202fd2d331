//! Removing a cluster without its help. A machine's first process takes everything on the machine with it; what is left is on this host:
//! cgroups, the bridge, and the directory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::machine;
use super::record::{self, Record};
use crate::host::{ProcessId, cgroup, command, leftovers, mounts, process, wait};
use crate::swap;

/// Removes everything. Safe to call again; the error names what would not go.
pub(super) fn remove(record: &Record) -> Result<()> {
    let mut left: Vec<String> = Vec::new();
    let mut processes = record.helpers.clone();
    processes.extend(record.machines().iter().filter_map(|dir| machine::init_of(dir)));
    if !machine::end(&processes, &record.cgroup) {
        left.push("machines that do not end".to_owned());
    }
    left.extend(leftovers::kill(&record.cgroup, || unrecorded(record)));
    left.extend(remove_links(&record.bridge));
    left.extend(record.machines().iter().filter_map(|dir| {
        let brought = machine::own(dir, "/var/lib/dormouse/swap.json");
        swap::take_brought_away(&brought)
            .err()
            .map(|error| format!("swap: {error:#}"))
    }));
    left.extend(
        mounts::unmount_below(&record.dir)
            .iter()
            .map(|point| format!("mount {}", point.display())),
    );
    left.extend(
        cgroup::remove(&record.cgroup)
            .iter()
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    if !left.is_empty() {
        // The directory with its record stays, so that the next sweep tries again.
        bail!(
            "left over of the cluster in {}: {}",
            record.dir.display(),
            left.join(", ")
        );
    }
    match fs::remove_dir_all(&record.dir) {
        Err(error) if record.dir.exists() => bail!("{} could not be removed: {error}", record.dir.display()),
        _ => Ok(()),
    }
}

/// Helpers and first processes that were started, and not yet written down when their cluster's process was killed. Only they are called
/// this way; a person's `kubectl --kubeconfig` below that directory is not.
fn unrecorded(record: &Record) -> Vec<ProcessId> {
    let machines = record::machines(&record.dir);
    process::find(|argv| match argv {
        [_, verb, spec] => (verb == "machine" || verb == "init") && Path::new(spec).starts_with(&machines),
        _ => false,
    })
    .into_iter()
    .map(|running| running.id)
    .collect()
}

/// The bridge, and this host's ends of the machines' links, which the kernel removes some time after their namespaces.
fn remove_links(bridge: &str) -> Vec<String> {
    let machines = format!("{bridge}v");
    let links = || -> Vec<String> {
        fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name == bridge || name.starts_with(&machines))
            .collect()
    };
    for link in links() {
        // Fails for one that goes at this very moment.
        let _ = command::capture(Command::new("ip").args(["link", "delete", &link]));
    }
    let _ = wait::until_true(Duration::from_secs(5), || links().is_empty());
    links().into_iter().map(|link| format!("link {link}")).collect()
}
