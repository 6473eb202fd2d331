//! `exec` for a probe that the agent runs: unlike any other it does not wake a sleeper, and is no sign that anybody wants
//! the pod.

use std::path::Path;

use dormouse_core::PROBE_EXEC_PREFIX;

use super::Context;
use super::pod::{Pod, find};
use crate::EXIT_FAILURE;
use crate::args::Invocation;
use crate::outcome::{Failure, Outcome};

/// Whether the command is a probe's. The shim names the file for its process id after the exec session, whose name comes
/// from containerd's client; nothing in a pod has a say in it.
pub(super) fn is_one(invocation: &Invocation) -> bool {
    let file = invocation
        .flag("pid-file")
        .map(Path::new)
        .and_then(Path::file_name);
    invocation.verb == "exec"
        && file
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(PROBE_EXEC_PREFIX))
}

/// Becomes the real runsc, if the guest runs. It is held where it is for as long as the command takes.
pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    match find(context) {
        Pod::Known { record, .. } if record.hibernation.is_some() || record.switch.is_asleep() => {
            Err(Failure::new(
                "dormouse-runsc: the pod sleeps, and is not woken for a probe",
                EXIT_FAILURE,
            ))
        }
        Pod::Unreadable { error, .. } => Err(Failure::from_error(&error)),
        Pod::Known { .. } | Pod::Unknown => context.exec(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn a_probe_is_known_by_its_session() {
        let parse = |verb: &str, pid_file: &str| {
            let argv = [
                "--root=/r",
                verb,
                "--process",
                "/tmp/p",
                "--detach",
                "--pid-file",
                pid_file,
                "c1",
            ];
            Invocation::parse(&argv.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert!(is_one(&parse("exec", "/run/b/dormouse-probe-1-2.pid")));
        assert!(!is_one(&parse("exec", "/run/dormouse-probe-b/0a1b.pid")));
        assert!(!is_one(&parse("create", "/run/b/dormouse-probe-1-2.pid")));
        let bare: Vec<OsString> = ["exec", "c1", "sh", "--pid-file=/b/dormouse-probe-1"]
            .iter()
            .map(OsString::from)
            .collect();
        assert!(!is_one(&Invocation::parse(&bare)), "the command's own words");
    }
}
