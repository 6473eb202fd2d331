//! Fail points, in test builds only.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fail::FailScenario;

/// Names the fail point at which the agent kills itself, as `kill -9` would.
pub const KILL_AT: &str = "DORMOUSE_KILL_AT";

/// Names a fail point and a file, `POINT=FILE`: the agent makes the file when it first comes to the point, and goes on
/// when somebody has taken it away.
pub const HALT_AT: &str = "DORMOUSE_HALT_AT";

/// Names a file that says which change of the snapshot store's disk fails, and how; it need not be there.
pub const DISK_FAULTS: &str = "DORMOUSE_DISK_FAULTS";

/// The file that `DORMOUSE_DISK_FAULTS` names.
#[must_use]
pub fn told_faults() -> Option<PathBuf> {
    std::env::var_os(DISK_FAULTS).map(PathBuf::from)
}

/// The longest that it halts.
const HALT: Duration = Duration::from_secs(60);

/// Reads `FAILPOINTS`, and arms the points that `DORMOUSE_KILL_AT` and `DORMOUSE_HALT_AT` name.
#[must_use]
pub fn start() -> FailScenario<'static> {
    let scenario = FailScenario::setup();
    if let Ok(point) = std::env::var(KILL_AT) {
        let killed = fail::cfg_callback(point.clone(), || {
            // Whatever is said after this is said by a process that is gone.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        });
        if let Err(error) = killed {
            eprintln!("dormouse-agent: cannot arm {point}: {error}");
        }
    }
    if let Ok(words) = std::env::var(HALT_AT)
        && let Some((point, file)) = words.split_once('=')
    {
        let (file, first) = (PathBuf::from(file), AtomicBool::new(true));
        let halted = fail::cfg_callback(point, move || {
            if first.swap(false, Ordering::Relaxed) {
                halt(&file);
            }
        });
        if let Err(error) = halted {
            eprintln!("dormouse-agent: cannot arm {point}: {error}");
        }
    }
    scenario
}

fn halt(file: &Path) {
    let until = Instant::now() + HALT;
    if let Err(error) = std::fs::write(file, b"") {
        eprintln!("dormouse-agent: cannot halt: {}: {error}", file.display());
    }
    while file.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}
