//! The one-line edit of a dependency of the stock gVisor shim.
//!
//! The shim sets its own `oom_score_adj` to -999 and gives up when that is refused, which it is for a root
//! without `CAP_SYS_RESOURCE` (many CI machines and small VMs). No option turns it off. The containerd module
//! that holds the check is copied out of the module cache, the one condition is relaxed, and the shim is built
//! against the copy. Nothing of it is committed, and on a real node the stock shim is used as it comes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;

/// The module that is edited.
const MODULE: &str = "github.com/containerd/containerd/v2";
/// The file in it.
const FILE: &str = "pkg/sys/oom_linux.go";
/// What is replaced by what; each must occur exactly once.
const EDITS: &[(&str, &str)] = &[
    (
        "if os.IsPermission(err) && (!runningPrivileged() || userns.RunningInUserNS())",
        "if os.IsPermission(err)",
    ),
    ("\t\"github.com/moby/sys/userns\"\n", ""),
];

/// Text that goes into the stack's hash, so that a changed edit makes a new build.
pub(crate) fn recipe() -> String {
    format!("{MODULE} {FILE} {EDITS:?}")
}

/// Copies the module into `work`, edits it, and writes a go.mod there that points at the copy.
///
/// Returns the path for `go build -modfile`. `module_dir` is where the committed go.mod is.
pub(crate) fn prepare(module_dir: &Path, work: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(work);
    fs::create_dir_all(work).with_context(|| format!("create {}", work.display()))?;
    // The go commands below work on copies, so that they can never touch the committed files.
    let modfile = work.join("go.mod");
    copy(&module_dir.join("go.mod"), &modfile)?;
    copy(&module_dir.join("go.sum"), &work.join("go.sum"))?;

    let listed = exec::capture(
        Command::new("go")
            .current_dir(module_dir)
            .env("GOFLAGS", "")
            .args(["mod", "download", "-json"])
            .arg(format!("-modfile={}", modfile.display()))
            .arg(MODULE),
    )?;
    let listed: serde_json::Value =
        serde_json::from_str(&listed).context("`go mod download -json` wrote something else than JSON")?;
    let field = |name: &str| {
        listed
            .get(name)
            .and_then(serde_json::Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("`go mod download -json {MODULE}` named no {name}"))
    };
    let (source, version) = (field("Dir")?, field("Version")?);

    let edited = work.join("containerd");
    // `--no-preserve=mode`: the module cache is read-only, the copy has to be writable.
    exec::capture(
        Command::new("cp")
            .args(["-R", "--no-preserve=mode", &source])
            .arg(&edited),
    )?;
    edit(&edited.join(FILE))?;
    let replace = format!("{MODULE}@{version}={}", edited.display());
    exec::capture(
        Command::new("go")
            .current_dir(work)
            .args(["mod", "edit", &format!("-replace={replace}")])
            .arg(&modfile),
    )?;
    Ok(modfile)
}

fn edit(path: &Path) -> Result<()> {
    let mut text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    for (from, to) in EDITS {
        let found = text.matches(from).count();
        if found != 1 {
            bail!(
                "{FILE} of {MODULE} holds {from:?} {found} times, not once: the pinned version has changed, so look at the edit again"
            );
        }
        text = text.replacen(from, to, 1);
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_file_that_no_longer_matches() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("oom_linux.go");
        fs::write(&file, "package sys\n").unwrap();
        let error = edit(&file).unwrap_err().to_string();
        assert!(error.contains("0 times"), "{error}");
    }

    #[test]
    fn edits_each_place_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("oom_linux.go");
        let text = EDITS.iter().map(|(from, _)| *from).collect::<Vec<_>>().join("\n");
        fs::write(&file, text).unwrap();
        edit(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "if os.IsPermission(err)\n");
    }
}
