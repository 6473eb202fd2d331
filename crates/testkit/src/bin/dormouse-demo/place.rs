//! The demo's own directory, which survives a kill -9: what the agent brought as swap is written down there, so that
//! the next run can take it down.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::{Built, Stack};

/// Every directory above it is root's and writable for nobody else, as the agent demands of a swap file's place.
const ROOT: &str = "/var/lib/dormouse-demo";

/// The directory, held by a lock.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    agent: PathBuf,
    cleared: std::cell::Cell<bool>,
    /// Held, never read.
    _lock: File,
}

impl Place {
    /// Takes the place and clears away what an earlier run left.
    ///
    /// # Errors
    /// Another demo runs, or leftovers cannot be removed.
    pub(crate) fn take(built: &Built) -> Result<Self> {
        let root = PathBuf::from(ROOT);
        make(&root)?;
        let lock = File::create(root.join("lock")).context("create the demo's lock")?;
        ensure!(
            lock.try_lock().is_ok(),
            "another demo is running on this machine ({ROOT}/lock is held); wait for its end"
        );
        let place = Self {
            root,
            agent: built.own("dormouse-agent")?,
            cleared: std::cell::Cell::new(false),
            _lock: lock,
        };
        // Pods of a run that was killed go first: their pages are in that swap.
        Stack::sweep();
        place.clear().context("remove what an earlier demo left")?;
        place.cleared.set(false);
        make(&place.state_dir())?;
        Ok(place)
    }

    /// The agent's state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// Where the swap file goes; the agent makes it.
    pub(crate) fn swap_dir(&self) -> PathBuf {
        self.root.join("swap")
    }

    /// Takes the agent's swap down and removes everything but the lock. The pods have to be gone.
    ///
    /// # Errors
    /// The swap cannot be taken down; its record stays for the next run.
    pub(crate) fn clear(&self) -> Result<()> {
        if self.state_dir().join("swap.json").exists() {
            self.take_swap_down()?;
        }
        for dir in [self.state_dir(), self.swap_dir(), self.root.join("run")] {
            remove(&dir)?;
        }
        let config = self.root.join("take-down.toml");
        if config.exists() {
            fs::remove_file(&config).with_context(|| format!("remove {}", config.display()))?;
        }
        self.cleared.set(true);
        Ok(())
    }

    /// Through the agent's own way out: it knows what is its own.
    fn take_swap_down(&self) -> Result<()> {
        let run = self.root.join("run");
        make(&run)?;
        let config = self.root.join("take-down.toml");
        fs::write(
            &config,
            format!(
                "version = 1\nrun_dir = \"{}\"\nstate_dir = \"{}\"\n[http]\nlisten = \"off\"\n",
                run.display(),
                self.state_dir().display()
            ),
        )
        .with_context(|| format!("write {}", config.display()))?;
        let output = Command::new(&self.agent)
            .arg("--config")
            .arg(&config)
            .arg("--thaw-all")
            .stdin(Stdio::null())
            // Not reached by a second Ctrl-C.
            .process_group(0)
            .output()
            .with_context(|| format!("start {}", self.agent.display()))?;
        ensure!(
            output.status.success(),
            "`dormouse-agent --thaw-all` failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.cleared.get()
            && let Err(error) = self.clear()
        {
            crate::say::complain(&format!(
                "{} could not be cleared: {error:#}; the next run tries again",
                self.root.display()
            ));
        }
    }
}

fn make(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if dir.exists() => Err(error).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}
