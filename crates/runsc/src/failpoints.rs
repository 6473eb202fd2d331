//! Fail points, in test builds only.
//!
//! The wrapper is started by the shim, so no test can hand it an environment: what is to happen stands in a file beside
//! the binary, `<binary>.failpoints`, in one line.
//!
//! | line | what the first process that comes to the point does |
//! |---|---|
//! | `POINT kill` | ends itself, as `kill -9` would |
//! | `POINT halt FILE` | makes the file, and goes on when somebody has taken it away |
//!
//! It takes the line away first: others that come to the point pass it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fail::FailScenario;
use nix::sys::signal::{Signal, raise};

/// The longest that it halts.
const HALT: Duration = Duration::from_secs(60);

/// Arms the point that the file names.
#[must_use]
pub fn start() -> FailScenario<'static> {
    let scenario = FailScenario::setup();
    let Some(path) = armed() else { return scenario };
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mut words = text.split_whitespace().map(str::to_owned);
    let (Some(point), Some(what), file) = (words.next(), words.next(), words.next()) else {
        return scenario;
    };
    let armed = fail::cfg_callback(point.clone(), move || {
        if std::fs::remove_file(&path).is_err() {
            return;
        }
        match (what.as_str(), &file) {
            ("halt", Some(file)) => halt(Path::new(file)),
            // Whatever is said after this is said by a process that is gone.
            _ => drop(raise(Signal::SIGKILL)),
        }
    });
    if let Err(error) = armed {
        eprintln!("dormouse-runsc: cannot arm {point}: {error}");
    }
    scenario
}

fn armed() -> Option<PathBuf> {
    let mut path = std::env::current_exe().ok()?.into_os_string();
    path.push(".failpoints");
    Some(PathBuf::from(path)).filter(|path| path.exists())
}

fn halt(file: &Path) {
    let until = Instant::now() + HALT;
    if let Err(error) = std::fs::write(file, b"") {
        eprintln!("dormouse-runsc: cannot halt: {}: {error}", file.display());
    }
    while file.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}
