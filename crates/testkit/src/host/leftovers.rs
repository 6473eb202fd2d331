//! Processes that nobody has a handle of any more, told by names that only one stack or cluster has.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{ProcessId, cgroup, process, wait};

/// Kills what is in `cgroup`, and what `more` finds, again and again until nothing is found, since a process that dies may have started
/// something a moment before. Returns what would not go.
pub(crate) fn kill(cgroup: &str, more: impl Fn() -> Vec<ProcessId>) -> Vec<String> {
    let find = || {
        let mut rest: Vec<ProcessId> = cgroup::processes(cgroup)
            .into_iter()
            .filter_map(ProcessId::of)
            .collect();
        rest.extend(more());
        rest.retain(|id| id.alive());
        rest.sort_unstable();
        rest.dedup();
        rest
    };
    let gone = wait::until_true(Duration::from_secs(10), || {
        cgroup::thaw(cgroup);
        let rest = find();
        for id in &rest {
            id.signal(Signal::SIGKILL);
        }
        rest.is_empty()
    });
    if gone {
        Vec::new()
    } else {
        find().iter().map(|id| format!("process {}", id.pid)).collect()
    }
}

/// Processes with an argument that names something in that directory, except the caller and its parents (a test may have the directory
/// among its own arguments).
pub(crate) fn naming(dir: &Path) -> Vec<ProcessId> {
    let inside = format!("{}/", dir.display());
    let own = ancestors();
    process::find(|argv| argv.iter().any(|word| word.contains(&inside)))
        .into_iter()
        .map(|running| running.id)
        .filter(|id| !own.contains(&id.pid))
        .collect()
}

fn ancestors() -> Vec<i32> {
    let mut pids = Vec::new();
    let mut next = procfs::process::Process::myself().and_then(|me| me.stat());
    while let Ok(stat) = next {
        pids.push(stat.pid);
        if stat.ppid <= 1 {
            break;
        }
        next = procfs::process::Process::new(stat.ppid).and_then(|parent| parent.stat());
    }
    pids
}
