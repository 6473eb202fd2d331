//! Why a sandbox is on its rung. Pure.

use dormouse_api::agents::{ResumePolicy, SuspensionType};
use dormouse_api::conditions::{DORMANT, READY, RESTORED, SUSPENDED, messages, suspended};
use dormouse_api::quantity::memory_requests;
use dormouse_core::{ANNOTATION_RESUME_POLICY, Rung};
use dormouse_output::mib;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Facts, reasons};
use crate::view::{
    Stand, ago, capability_text, is_managed_by_annotation, policy_text, sandbox_condition, stand, strategy,
};

/// Why it stands as it stands.
pub(super) fn sentences(facts: &Facts<'_>) -> Vec<String> {
    let mut all = match stand(facts.sandbox) {
        Stand::On(Rung::Running) => running(facts),
        Stand::On(rung) => match sandbox_condition(facts.sandbox, DORMANT) {
            Some(dormant) if dormant.status == "True" => asleep(facts, rung, dormant),
            _ => suspended(facts),
        },
        Stand::Suspending => suspending(facts),
        Stand::Waking | Stand::Starting | Stand::Finished | Stand::Expired => not_ready(facts),
        Stand::Unknown => unknown(facts),
    };
    if let Some(restored) = sandbox_condition(facts.sandbox, RESTORED)
        && restored.status == "False"
    {
        all.push(format!(
            "It came back without its memory {} ago: {}",
            ago(restored.last_transition_time.0, facts.now),
            restored.message
        ));
        all.extend(meanings(restored));
    }
    all.extend(requests(facts));
    all
}

fn running(facts: &Facts<'_>) -> Vec<String> {
    let policy = policy_text(facts.sandbox);
    if policy.is_empty() {
        return vec![
            "operatingMode is Running, and it has no idleTimeout: it is never put to sleep by itself."
                .to_owned(),
        ];
    }
    let mut all = vec![format!(
        "operatingMode is Running, and it has not been idle for its idleTimeout: {policy}."
    )];
    if let Some(dormant) = sandbox_condition(facts.sandbox, DORMANT) {
        all.push(format!("{}.", dormant.message.trim_end_matches('.')));
    }
    all.push("Idle means: no packet that would wake it, next to no CPU, no exec.".to_owned());
    all.extend(agent_trouble(facts));
    all
}

fn asleep(facts: &Facts<'_>, rung: Rung, dormant: &Condition) -> Vec<String> {
    let since = ago(dormant.last_transition_time.0, facts.now);
    if dormant.message == messages::STANDS_BY {
        let mut all = vec![format!(
            "It is a standby of its pool, which has its standbys wait asleep: it fell asleep {since} ago."
        )];
        if rung == Rung::Frozen {
            all.extend(swap_trouble(facts));
        }
        all.push(what_is_left(rung).to_owned());
        all.extend(agent_trouble(facts));
        return all;
    }
    let timeout = facts.sandbox.spec.idle_timeout.as_deref().unwrap_or("its policy");
    let mut all = vec![format!(
        "operatingMode is Running, and it was idle for its idleTimeout of {timeout}: it fell asleep {since} ago."
    )];
    all.extend(ladder(facts));
    if rung == Rung::Frozen {
        // The next rung may be off here.
        all.extend(swap_trouble(facts));
    }
    all.push(what_is_left(rung).to_owned());
    all.extend(agent_trouble(facts));
    all
}

/// When it goes further down.
fn ladder(facts: &Facts<'_>) -> Option<String> {
    let sleep = facts.sandbox.spec.sleep.as_ref()?;
    let steps: Vec<String> = [
        ("freezeAfter", &sleep.freeze_after),
        ("dozeAfter", &sleep.doze_after),
        ("hibernateAfter", &sleep.hibernate_after),
        ("archiveAfter", &sleep.archive_after),
    ]
    .into_iter()
    .filter_map(|(name, after)| Some(format!("{name}: {}", after.as_ref()?)))
    .collect();
    (!steps.is_empty()).then(|| format!("From the start of idleness it counts {}.", steps.join(", ")))
}

const fn what_is_left(rung: Rung) -> &'static str {
    match rung {
        Rung::Running => "Its guest runs.",
        Rung::Frozen => "Its guest is stopped; all its memory is in RAM.",
        Rung::Dozing => "Its guest is stopped, and its memory is in swap.",
        Rung::Hibernated => "Its memory is a snapshot on its node, and its guest has ended.",
        Rung::Archived => "Its memory is a snapshot in a remote store.",
        Rung::Stopped => "Its pod is deleted, and its memory was not kept.",
    }
}

fn suspended(facts: &Facts<'_>) -> Vec<String> {
    let mut all = vec![format!(
        "operatingMode is Suspended, and suspensionStrategy.type is {}: {}",
        strategy(facts.sandbox).as_str(),
        match strategy(facts.sandbox) {
            SuspensionType::Stop => "its pod is deleted, its volumes stay, its memory is gone.",
            SuspensionType::Freeze =>
                "its pod stays with its memory, and only operatingMode: Running wakes it.",
            SuspensionType::Hibernate => "its memory becomes a snapshot on its node, and its pod is deleted.",
        }
    )];
    if let Some(condition) = sandbox_condition(facts.sandbox, SUSPENDED) {
        let since = ago(condition.last_transition_time.0, facts.now);
        all.push(format!("It has been so for {since}: {}.", condition.message));
        // What it says and what it was to keep are two things.
        if condition.reason == suspended::POD_TERMINATED
            && strategy(facts.sandbox) != SuspensionType::Stop
            && snapshot(facts).is_none()
        {
            all.push("There is no snapshot: its pod was gone before its memory could be kept.".to_owned());
        }
    }
    if strategy(facts.sandbox) == SuspensionType::Hibernate {
        all.extend(snapshot(facts));
    }
    all.extend(agent_trouble(facts));
    all
}

fn snapshot(facts: &Facts<'_>) -> Option<String> {
    let snapshot = facts.sandbox.status.as_ref()?.snapshot.as_ref()?;
    let known = facts
        .node
        .and_then(|node| node.status.as_ref())
        .and_then(|status| status.snapshots.iter().find(|kept| kept.id == snapshot.name));
    let size = known
        .map(|kept| kept.size_bytes)
        .or(snapshot.size_bytes)
        .and_then(|bytes| u64::try_from(bytes).ok());
    let mut text = format!("Its memory is snapshot {}", snapshot.name);
    if let Some(size) = size {
        text.push_str(&format!(" of {}", mib(size)));
    }
    if let Some(node) = &snapshot.node_name {
        text.push_str(&format!(" on node {node}"));
    }
    if facts.node.is_some() && known.is_none() {
        text.push_str(", which does not list it (any more, or yet)");
    }
    Some(format!("{text}."))
}

fn suspending(facts: &Facts<'_>) -> Vec<String> {
    let mut all = vec!["operatingMode is Suspended, and it is not so yet.".to_owned()];
    match sandbox_condition(facts.sandbox, SUSPENDED) {
        Some(condition) => {
            all.push(format!("{}.", condition.message.trim_end_matches('.')));
            all.extend(meanings(condition));
        }
        None => all.push("The controller has said nothing of it yet; does it run?".to_owned()),
    }
    all.extend(swap_trouble(facts));
    all.extend(agent_trouble(facts));
    all
}

fn not_ready(facts: &Facts<'_>) -> Vec<String> {
    let mut all = vec!["It is to run, and is not ready.".to_owned()];
    match sandbox_condition(facts.sandbox, READY) {
        Some(ready) => {
            all.push(format!(
                "{}: {}.",
                ready.reason,
                ready.message.trim_end_matches('.')
            ));
            all.extend(meanings(ready));
        }
        None => all.push("The controller has said nothing of it yet; does it run?".to_owned()),
    }
    // Warnings of the last time are what is in the way, mostly.
    let warnings = facts.events.iter().rev().filter(|event| event.warns()).take(3);
    all.extend(warnings.map(|event| {
        format!(
            "{}: {}: {}",
            event.about(),
            event.reason(),
            event.message().trim()
        )
    }));
    all.extend(agent_trouble(facts));
    all
}

fn unknown(facts: &Facts<'_>) -> Vec<String> {
    let mut all = vec!["The API does not say on which rung it is.".to_owned()];
    if is_managed_by_annotation(facts.sandbox) {
        all.push(format!(
            "Its pod is managed by annotations ({}), which only the agent of its node follows: ask it by \"dormouse get \
             POD\" there, or use spec.idleTimeout instead.",
            policy_text(facts.sandbox)
        ));
    }
    all.extend(agent_trouble(facts));
    all
}

/// Codes in a condition, with what they mean.
fn meanings(condition: &Condition) -> Vec<String> {
    let mut all: Vec<String> = reasons::meaning(&condition.reason)
        .map(|meaning| format!("{}: {meaning}", condition.reason))
        .into_iter()
        .collect();
    all.extend(reasons::explained(&condition.message));
    all
}

/// That pages cannot go out on its node.
fn swap_trouble(facts: &Facts<'_>) -> Option<String> {
    let capabilities = &facts.node?.status.as_ref()?.capabilities;
    let swap = capabilities.iter().find(|capability| capability.name == "swap")?;
    (!swap.available).then(|| {
        format!(
            "On {} nothing dozes: {}.",
            facts.node_text(),
            capability_text(swap).trim_end_matches('.')
        )
    })
}

/// That the agent of its node does not serve it.
fn agent_trouble(facts: &Facts<'_>) -> Vec<String> {
    let (Some(name), true) = (facts.node_name, facts.sandbox.spec.sleeps()) else {
        return Vec::new();
    };
    let Some(status) = facts.node.and_then(|node| node.status.as_ref()) else {
        return vec![format!(
            "No agent says anything of node {name}, and without one nothing sleeps there."
        )];
    };
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status != "True" => {
            let mut all = vec![format!(
                "The agent of node {name} does not serve it: {}: {}.",
                ready.reason,
                ready.message.trim_end_matches('.')
            )];
            all.extend(reasons::meaning(&ready.reason).map(|meaning| format!("{}: {meaning}", ready.reason)));
            all
        }
        _ => Vec::new(),
    }
}

/// That the scheduler counts less for it than its template says.
fn requests(facts: &Facts<'_>) -> Option<String> {
    let now = memory_requests(&facts.pod?.spec.as_ref()?.containers)?;
    let wanted = memory_requests(&facts.sandbox.spec.pod_template.spec.containers)?;
    (now < wanted).then(|| {
        format!(
            "While it sleeps the scheduler counts {} of memory for it instead of {}.",
            mib(now),
            mib(wanted)
        )
    })
}

/// Whether packets do not wake it.
pub(super) fn only_orders_wake(facts: &Facts<'_>) -> bool {
    let by_annotation = facts
        .sandbox
        .spec
        .pod_template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.annotations.as_ref()?.get(ANNOTATION_RESUME_POLICY))
        .map(String::as_str);
    facts.sandbox.spec.resume_policy == Some(ResumePolicy::Manual) || by_annotation == Some("Manual")
}
