//! A test that runs its own binary again as another process, to kill it or to look at it from outside.
#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const ROLE: &str = "DORMOUSE_NET_TEST_ROLE";
const ARGUMENT: &str = "DORMOUSE_NET_TEST_ARGUMENT";

/// In the other process: what it was started with.
pub fn argument(role: &str) -> Option<String> {
    (std::env::var(ROLE).ok()? == role).then(|| {
        // Not to outlive the test.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
        std::env::var(ARGUMENT).unwrap()
    })
}

/// The other process; killed on drop.
pub struct Again {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// Runs the test `name` of this binary in another process.
pub fn run(name: &str, role: &str, argument: &str, more: &[(&str, &PathBuf)]) -> Again {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(ARGUMENT, argument)
        .envs(more.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    Again {
        child,
        to,
        from: BufReader::new(from),
    }
}

impl Again {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads lines until one has this word; returns what is behind it.
    #[track_caller]
    pub fn wait_for(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.from.read_line(&mut line).unwrap(),
                0,
                "the other process ended before {word:?}"
            );
            if let Some((_, rest)) = line.trim_end().split_once(word) {
                return rest.to_owned();
            }
        }
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
