//! The part of `systemctl` that an installer on a node uses, for a machine whose first process is not systemd.

use std::path::Path;

use anyhow::{Result, bail};

use super::{GRACE, Order, UnitStatus, ask, millis};

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
            "stop" => drop(ask(
                dir,
                &Order::Stop {
                    unit: unit.to_owned(),
                    grace_millis: millis(GRACE),
                },
            )?),
            "start" => start(dir, unit)?,
            // One order, as with systemd: who asks for it may run in a container of the unit, and end with it.
            "restart" | "try-restart" | "reload-or-restart" => drop(ask(
                dir,
                &Order::Restart {
                    unit: unit.to_owned(),
                    grace_millis: millis(GRACE),
                },
            )?),
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

fn start(dir: &Path, unit: &str) -> Result<()> {
    if find(dir, unit)?.is_some_and(|status| status.pid.is_some()) {
        return Ok(());
    }
    ask(dir, &Order::Again(unit.to_owned())).map(drop)
}
