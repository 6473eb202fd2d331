//! What is brought into the guest.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{GUEST_VARIABLE, PAYLOAD, Suite, image};
use crate::built::Built;

/// Room on the disk beside the files themselves.
const SLACK: u64 = 64 << 20;

/// Files and directories for the guest, found there below [`PAYLOAD`].
#[derive(Debug, Clone, Default)]
pub struct Payload {
    parts: Vec<(PathBuf, String)>,
    variables: Vec<(String, String)>,
}

impl Payload {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Brings a file or a directory as `name` (relative, may have `/`).
    #[must_use]
    pub fn with(mut self, from: impl Into<PathBuf>, name: &str) -> Self {
        self.parts.push((from.into(), name.to_owned()));
        self
    }

    /// Sets an environment variable for all suites.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Brings the real parts, the test images and, as far as they are built, Dormouse's own binaries, and tells
    /// the test kit where they are.
    #[must_use]
    pub fn stack(self, built: &Built) -> Self {
        let with = self
            .with(&built.stack, "stack")
            .variable("DORMOUSE_STACK_DIR", &format!("{PAYLOAD}/stack"))
            .variable("DORMOUSE_TESTKIT_HOME", "/var/tmp/dmk");
        if built.bin.is_dir() {
            with.with(&built.bin, "bin")
                .variable("DORMOUSE_BIN_DIR", &format!("{PAYLOAD}/bin"))
        } else {
            with
        }
    }

    /// Writes everything onto a disk in `scratch`.
    pub(super) fn write_disk(&self, suites: &[Suite], scratch: &Path) -> Result<PathBuf> {
        let tree = scratch.join("payload");
        fs::create_dir_all(&tree).context("create the payload")?;
        let mut bytes = 0;
        for (from, name) in &self.parts {
            ensure!(
                Path::new(name)
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_))),
                "{name:?} is no name for a part of the payload"
            );
            let to = tree.join(name);
            fs::create_dir_all(to.parent().context("a part without a directory")?)?;
            bytes += copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        fs::write(tree.join("suites.sh"), self.script(suites)?).context("write the suites")?;
        let disk = scratch.join("payload.ext4");
        image::make_disk(&tree, &disk, bytes + bytes / 8 + SLACK)?;
        fs::remove_dir_all(&tree).context("remove the payload's copy")?;
        Ok(disk)
    }

    fn script(&self, suites: &[Suite]) -> Result<String> {
        let mut script = format!("export {GUEST_VARIABLE}=1\n");
        for (name, value) in &self.variables {
            writeln!(script, "export {name}={}", quote(value))?;
        }
        for suite in suites {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
            ensure!(
                !suite.name.is_empty() && suite.name.chars().all(plain),
                "{:?} is no name for a suite",
                suite.name
            );
            // `timeout` gives 143 when it had to end the command. The last line that was said is the detail.
            writeln!(
                script,
                r#"echo "== suite {name}"
dmesg -c >/dev/null
read -r began rest </proc/uptime
{{ timeout -k 5 {limit} sh -c {command} 2>&1; echo $? >/tmp/status; }} </dev/null | tee /tmp/said
status=$(cat /tmp/status)
read -r ended rest </proc/uptime
took=$(echo "$ended $began" | awk '{{ print $1 - $2 }}')
if [ "$status" = 0 ]; then
	say "DORMOUSE-VM-RESULT {name} ok $took"
else
	say "DORMOUSE-VM-RESULT {name} fail $took status $status: $(tail -n 1 /tmp/said)"
	echo "== kernel log"
	dmesg | tail -n 40
fi
echo "== end {name}""#,
                name = suite.name,
                limit = suite.limit.as_secs().max(1),
                command = quote(&suite.command),
            )?;
        }
        Ok(script)
    }
}

/// For a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Copies a file or a tree, links followed; returns the bytes.
fn copy(from: &Path, to: &Path) -> Result<u64> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        let mut bytes = 0;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            bytes += copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(bytes);
    }
    // A second name costs nothing where both are on one file system.
    let real = from.canonicalize()?;
    if fs::hard_link(&real, to).is_err() {
        fs::copy(&real, to)?;
    }
    Ok(real.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_script_quotes_what_it_is_given() {
        let suite = |name: &str| Suite {
            name: name.to_owned(),
            command: "echo 'it''s'".to_owned(),
            limit: Duration::from_secs(3),
        };
        let script = Payload::new()
            .variable("A", "b'c")
            .script(&[suite("swap::plain")])
            .unwrap();
        assert!(script.contains(r"export A='b'\''c'"));
        assert!(script.contains(r"timeout -k 5 3 sh -c 'echo '\''it'\'''\''s'\'''"));
        assert!(Payload::new().script(&[suite("a b")]).is_err());
        assert!(Payload::new().script(&[suite("")]).is_err());
    }

    #[test]
    fn trees_are_copied_with_links_followed() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/x"), "12345").unwrap();
        std::os::unix::fs::symlink("a/x", from.join("y")).unwrap();
        let to = dir.path().join("to");
        assert_eq!(copy(&from, &to).unwrap(), 10);
        assert_eq!(fs::read_to_string(to.join("y")).unwrap(), "12345");
        assert!(to.join("y").symlink_metadata().unwrap().is_file());
    }
}
