//! The real runsc.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use dormouse_sentry::SwiftMoves;
use nix::sys::signal::Signal;

use crate::EXIT_FAILURE;
use crate::outcome::{Failure, Outcome};
use crate::trace::Trace;

/// Becomes the real runsc, with the same arguments, environment and descriptors. Returns only on failure.
pub(crate) fn exec(runsc: &Path, argv: &[OsString], trace: &Trace<'_>) -> Result<Outcome, Failure> {
    trace.write("exec");
    let text = |s: &[u8]| CString::new(s).map_err(|e| Failure::from_error(&e));
    let path = text(runsc.as_os_str().as_bytes())?;
    let mut args = vec![path.clone()];
    for arg in argv {
        args.push(text(arg.as_bytes())?);
    }
    let Err(errno) = nix::unistd::execv(&path, &args);
    Err(Failure::new(
        format!(
            "dormouse-runsc: cannot execute {}: {errno}; is the real runsc installed?",
            runsc.display()
        ),
        EXIT_FAILURE,
    ))
}

/// Starts the real runsc as a child with the same descriptors.
pub(crate) fn spawn(runsc: &Path, argv: &[OsString]) -> Result<Child, Failure> {
    Command::new(runsc)
        .args(argv)
        .spawn()
        .map_err(|e| cannot_start(runsc, &e))
}

/// Runs the real runsc as a child, with the same descriptors, while moves between cgroups are swift; it ends with this
/// process. Becomes it, where they are swift by nature.
#[expect(unsafe_code, reason = "what is done between fork and exec")]
pub(crate) fn run_swiftly(runsc: &Path, argv: &[OsString], trace: &Trace<'_>) -> Result<Outcome, Failure> {
    let Some(_swift) = SwiftMoves::if_useful() else {
        return exec(runsc, argv, trace);
    };
    let mut command = Command::new(runsc);
    command.args(argv);
    // SAFETY: between fork and exec nothing is done but one system call.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
    }
    let status = command.status().map_err(|e| cannot_start(runsc, &e))?;
    Ok(Outcome::Exited(exit_code(status)))
}

fn cannot_start(runsc: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        format!(
            "dormouse-runsc: cannot start {}: {error}; is the real runsc installed?",
            runsc.display()
        ),
        EXIT_FAILURE,
    )
}

/// The code to exit with for a child's end.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| s.saturating_add(128)))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(EXIT_FAILURE)
}
