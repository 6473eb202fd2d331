//! The part of `systemctl` that an installer on a node uses, for a machine whose first process is not systemd.

use std::path::Path;

use anyhow::{Result, bail};

use super::{GRACE, Order, UnitStatus, ask};

/// Runs it on the machine in that directory. False when the answer is no (`is-active`).
///
/// # Errors
/// When there is no such unit, or it is asked for something else.
pub fn run(dir: &Path, arguments: &[String]) -> Result<bool> {
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    let Some(verb) = words.next() else {
        bail!("nothing to do");
    };
    let units: Vec<&str> = words.map(|word| word.trim_end_matches(".service")).collect();
    if matches!(verb.as_str(), "daemon-reload" | "enable" | "disable") {
        return Ok(true);
    }
    let mut yes = true;
    for unit in units {
        match verb.as_str() {
            "is-active" | "status" => {
                let runs = find(dir, unit)?.is_some_and(|status| status.pid.is_some());
                println!("{}", if runs { "active" } else { "inactive" });
                yes &= runs;
            }
            "stop" => stop(dir, unit)?,
            "start" => start(dir, unit)?,
            "restart" | "try-restart" | "reload-or-restart" => {
                stop(dir, unit)?;
                start(dir, unit)?;
            }
            other => bail!("{other}: this machine has no systemd, only start, stop, restart, is-active"),
        }
    }
    Ok(yes)
}

fn find(dir: &Path, unit: &str) -> Result<Option<UnitStatus>> {
    Ok(ask(dir, &Order::Status)?
        .into_iter()
        .find(|status| status.name == unit))
}

fn stop(dir: &Path, unit: &str) -> Result<()> {
    let order = Order::Stop {
        unit: unit.to_owned(),
        grace_millis: u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX),
    };
    ask(dir, &order).map(drop)
}

fn start(dir: &Path, unit: &str) -> Result<()> {
    if find(dir, unit)?.is_some_and(|status| status.pid.is_some()) {
        return Ok(());
    }
    ask(dir, &Order::Again(unit.to_owned())).map(drop)
}
