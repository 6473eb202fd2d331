//! Fail points, in test builds only.

use fail::FailScenario;

/// Names the fail point at which the agent kills itself, as `kill -9` would.
pub const KILL_AT: &str = "DORMOUSE_KILL_AT";

/// Reads `FAILPOINTS`, and arms the point that `DORMOUSE_KILL_AT` names.
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
    scenario
}
