//! A Python with exactly the packages that a lock file names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The interpreter of an environment that holds what `requirements` names and nothing else. It is made once for each content of that
/// file, and kept below Cargo's build directory.
pub(crate) async fn python(requirements: PathBuf) -> PathBuf {
    tokio::task::spawn_blocking(move || environment(&requirements))
        .await
        .unwrap()
        .unwrap()
}

fn environment(requirements: &Path) -> Result<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    // Tests run at once, also those of two processes. The lock goes with the file.
    let lock = File::create(home.join("lock")).context("create the lock")?;
    lock.lock().context("wait for the environment")?;

    let dir = home.join(key(requirements)?);
    let (python, complete) = (dir.join("bin/python"), dir.join("complete"));
    if python.is_file() && complete.is_file() {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        // Nothing but what is written down, and nothing that would have to be built.
        .args(["--require-hashes", "--only-binary=:all:", "--requirement"])
        .arg(requirements))?;
    fs::write(&complete, "").with_context(|| format!("write {}", complete.display()))?;
    Ok(python)
}

/// Compiled packages are for one version of Python.
fn key(requirements: &Path) -> Result<String> {
    let version = run(Command::new("python3").arg("--version"))?;
    let text = fs::read(requirements).with_context(|| format!("read {}", requirements.display()))?;
    let digest = Sha256::new().chain_update(version).chain_update(text).finalize();
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?} (`cargo xtask test --only cluster` installs Python)"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
