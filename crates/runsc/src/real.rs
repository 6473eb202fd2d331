//! The real runsc.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use dormouse_sentry::{RunDir, RunscRecord, SwiftMoves};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::EXIT_FAILURE;
use crate::config::Config;
use crate::outcome::{Failure, Outcome};
use crate::trace::Trace;

/// Becomes the real runsc, with the same arguments, environment and descriptors. Returns only on failure.
pub(crate) fn exec(config: &Config, argv: &[OsString], trace: &Trace<'_>) -> Result<Outcome, Failure> {
    trace.write("exec");
    let text = |s: &[u8]| CString::new(s).map_err(|e| Failure::from_error(&e));
    let path = text(config.runsc.as_os_str().as_bytes())?;
    let mut args = vec![path.clone()];
    for arg in argv {
        args.push(text(arg.as_bytes())?);
    }
    let Err(errno) = nix::unistd::execv(&path, &args);
    Err(Failure::new(
        format!(
            "dormouse-runsc: cannot execute {}: {errno}; is the real runsc installed?",
            config.runsc.display()
        ),
        EXIT_FAILURE,
    ))
}

/// Starts the real runsc as a child with the same descriptors.
pub(crate) fn spawn(config: &Config, argv: &[OsString]) -> Result<Child, Failure> {
    Command::new(&config.runsc)
        .args(argv)
        .spawn()
        .map_err(|e| cannot_start(config, &e))
}

/// Runs the real runsc as a child, with the same descriptors, while moves between cgroups are swift; it ends with this
/// process. Becomes it, where they are swift by nature.
#[expect(unsafe_code, reason = "what is done between fork and exec")]
pub(crate) fn run_swiftly(config: &Config, argv: &[OsString], trace: &Trace<'_>) -> Result<Outcome, Failure> {
    let Some(_swift) = SwiftMoves::if_useful() else {
        return exec(config, argv, trace);
    };
    let mut command = Command::new(&config.runsc);
    command.args(argv);
    // SAFETY: between fork and exec nothing is done but one system call.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
    }
    let status = command.status().map_err(|e| cannot_start(config, &e))?;
    Ok(Outcome::Exited(exit_code(status)))
}

fn cannot_start(config: &Config, error: &std::io::Error) -> Failure {
    Failure::new(
        format!(
            "dormouse-runsc: cannot start {}: {error}; is the real runsc installed?",
            config.runsc.display()
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

/// What is known of a runsc binary, kept so that it is asked once and not with every pod.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    version: String,
    oci_version: String,
}

/// The real runsc, for a pod's record. What cannot be found out stays empty.
pub(crate) fn describe(config: &Config, dir: &RunDir) -> RunscRecord {
    let known = known(&config.runsc, dir);
    RunscRecord {
        path: config.runsc.clone(),
        version: known.as_ref().map(|k| k.version.clone()).unwrap_or_default(),
        oci_version: known.map(|k| k.oci_version).unwrap_or_default(),
    }
}

fn known(runsc: &Path, dir: &RunDir) -> Option<Known> {
    let meta = std::fs::metadata(runsc).ok()?;
    let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    let cache = dir.path().join("runsc-version.json");
    let stored: Option<Known> = std::fs::read(&cache)
        .ok()
        .filter(|t| t.len() < 4096)
        .and_then(|t| serde_json::from_slice(&t).ok());
    if let Some(known) = stored
        && (known.device, known.inode, known.size, known.modified_ns)
            == (meta.dev(), meta.ino(), meta.size(), modified_ns)
    {
        return Some(known);
    }
    let (version, oci_version) = ask(runsc)?;
    let known = Known {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified_ns,
        version,
        oci_version,
    };
    // Two that write at once write the same; a half of it would not parse and be asked for again.
    let text = serde_json::to_vec(&known).ok()?;
    let temporary = dir
        .path()
        .join(format!("runsc-version.json.{}", std::process::id()));
    if std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &cache))
        .is_err()
    {
        let _ = std::fs::remove_file(&temporary);
    }
    Some(known)
}

/// `runsc version release-…` and `spec: 1.2.1`.
fn ask(runsc: &Path) -> Option<(String, String)> {
    let mut child = Command::new(runsc)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .map(|out| out.take(4096).read_to_string(&mut text));
    child.wait().ok()?;
    read?.ok()?;
    let find = |prefix: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(prefix))
            .map(|v| v.trim().to_owned())
    };
    Some((find("runsc version ")?, find("spec: ")?))
}
