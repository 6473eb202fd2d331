//! `events --stats` of a sleeping pod.

use std::io::Write;

use dormouse_sentry::{CgroupState, PodCgroup};
use serde_json::Value;

use super::Context;
use super::asleep::{Sleeper, sleeper};
use crate::EXIT_FAILURE;
use crate::json::go_line;
use crate::outcome::{Failure, Outcome};

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let Some(sleeper) = sleeper(context) else {
        return context.exec();
    };
    if sleeper.known.stopped {
        let text = format!(
            "dormouse-runsc: cannot get events for container \"{}\" in state stopped",
            sleeper.container
        );
        return Err(Failure::new(text, EXIT_FAILURE));
    }
    let Some(text) = answer(&sleeper) else {
        let text = format!(
            "dormouse-runsc: the guest had no statistics of {} before it slept",
            sleeper.container
        );
        return Err(Failure::new(text, 1));
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}

fn answer(sleeper: &Sleeper) -> Option<String> {
    let mut event: Value = serde_json::from_str(sleeper.known.event.as_ref()?.get()).ok()?;
    // Noted with the first cgroup freeze; before that it is looked for.
    let found = match (&sleeper.record.cgroup, sleeper.record.sentry) {
        (Some(cgroup), _) => Some(cgroup.clone()),
        (None, Some(sentry)) => PodCgroup::find(sentry.pid, &sleeper.record.pod.uid).ok(),
        (None, None) => None,
    };
    let cgroup = found.as_ref();
    let cgroup_cpu = cgroup.and_then(|c| c.cpu_ns().ok().flatten());
    let cpu = cpu_ns(&sleeper.known.cpu_usage, sleeper.container.as_str(), cgroup_cpu);
    if cpu > 0 {
        *event.pointer_mut("/data/cpu/usage")? = serde_json::json!({ "total": cpu });
    }
    // What has gone to swap is no longer used: a sleeper must not look like a hog to the kubelet.
    if sleeper.record.switch.cgroup == CgroupState::Frozen
        && let Some(resident) = cgroup.and_then(|c| c.memory().ok()).map(|m| m.current)
        && let Some(usage) = event.pointer_mut("/data/memory/usage/usage")
        && usage.as_u64().is_some_and(|before| before > resident)
    {
        *usage = resident.into();
    }
    go_line(&event).ok()
}

/// The container's share of the cgroup's CPU time, the way runsc shares it out.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
fn cpu_ns(usage: &std::collections::BTreeMap<String, u64>, container: &str, cgroup: Option<u64>) -> u64 {
    let containers = usage.len() as u64;
    if containers == 0 {
        return 0;
    }
    let own = usage.get(container).copied().unwrap_or(0);
    let all = usage.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    match cgroup {
        None | Some(0) => own,
        Some(cgroup) if all == 0 => cgroup / containers,
        // In floating point, like runsc: the product does not fit in 64 bits.
        Some(cgroup) => (own as f64 * (cgroup as f64 / all as f64)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::cpu_ns;

    #[test]
    fn shares_cpu_time_like_runsc() {
        let usage = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        assert_eq!(cpu_ns(&usage(&[]), "a", Some(5)), 0);
        assert_eq!(cpu_ns(&usage(&[("a", 10)]), "a", None), 10);
        assert_eq!(cpu_ns(&usage(&[("a", 10), ("b", 30)]), "a", Some(80)), 20);
        assert_eq!(cpu_ns(&usage(&[("a", 0), ("b", 0)]), "a", Some(80)), 40);
    }
}
