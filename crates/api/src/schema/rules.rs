//! What the API server checks of the fields that agent-sandbox does not have: rules in CEL, each with a message that
//! says what to do. An object without such fields passes all of them.

use dormouse_core::{MAX_DURATION, format_duration};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

/// What a duration looks like: what `dormouse_core::parse_duration` reads, with so few digits that CEL's `duration()`
/// reads it as well and neither can overflow.
pub const DURATION: &str = "^(0|([0-9]{1,12}([.][0-9]{0,9})?ms|[0-9]{1,9}([.][0-9]{0,9})?s|[0-9]{1,7}([.][0-9]{0,9})?m|[0-9]{1,5}([.][0-9]{0,9})?h)+)$";

/// The longest text of a duration. It bounds what the rules may cost.
pub const DURATION_LENGTH: usize = 32;

/// The shortest time after which anything may count as idle; `dormouse_core::Policy::check` refuses less.
pub const SHORTEST_IDLE_TIMEOUT: &str = "100ms";

/// What an object's name looks like.
const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// What an amount of memory looks like, with so few digits that it fits into 63 bits.
pub const MEMORY: &str = "^([0-9]{1,15}|[0-9]{1,6}([.][0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti))$";

/// The longest text of one.
const MEMORY_LENGTH: usize = 15;

/// What a namespace's name looks like.
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

fn rule(rule: impl Into<String>, message: impl Into<String>) -> Value {
    json!({"rule": rule.into(), "message": message.into()})
}

fn string(longest: usize, rules: &[Value]) -> Schema {
    let schema = json!({
        "type": "string",
        "maxLength": longest,
        "x-kubernetes-validations": rules,
    });
    Schema::try_from(schema).unwrap_or_else(|_| Schema::from(false))
}

/// A duration of a policy.
pub fn policy_duration(_: &mut SchemaGenerator) -> Schema {
    string(DURATION_LENGTH, &[policy_duration_rule()])
}

/// How long something has to be idle.
pub fn idle_timeout(_: &mut SchemaGenerator) -> Schema {
    let shortest = rule(
        format!("!self.matches('{DURATION}') || duration(self) >= duration('{SHORTEST_IDLE_TIMEOUT}')"),
        format!("must be at least {SHORTEST_IDLE_TIMEOUT}"),
    );
    string(DURATION_LENGTH, &[policy_duration_rule(), shortest])
}

/// How long something is kept.
pub fn time_to_live(_: &mut SchemaGenerator) -> Schema {
    let rule = rule(
        format!("self.matches('{DURATION}') && duration(self) > duration('0s')"),
        "must be a duration longer than nothing, as in \"72h\" or \"30m\"",
    );
    string(DURATION_LENGTH, &[rule])
}

/// An amount of memory: what [`crate::quantity::bytes`] reads.
pub fn memory(_: &mut SchemaGenerator) -> Schema {
    let rule = rule(
        format!("self.matches('{MEMORY}')"),
        "must be an amount of memory, as in \"512Mi\" or \"8Gi\"",
    );
    string(MEMORY_LENGTH, &[rule])
}

fn policy_duration_rule() -> Value {
    let longest = format_duration(MAX_DURATION);
    rule(
        format!("self.matches('{DURATION}') && duration(self) <= duration('{longest}')"),
        format!("must be a duration of at most {longest}, as in \"90s\", \"5m\" or \"1h30m\""),
    )
}

/// Name of a Sandbox that something is bound to for good.
pub fn sandbox_name(_: &mut SchemaGenerator) -> Schema {
    string(
        253,
        &[
            rule(
                format!("self.matches('{SUBDOMAIN}')"),
                "must be the name of a Sandbox: lower-case letters, digits, '-' and '.'",
            ),
            rule(
                "self == oldSelf",
                "cannot be changed; create another SandboxSnapshot for another Sandbox",
            ),
        ],
    )
}

/// What a pool's standbys are cloned from.
pub fn golden(_: &mut SchemaGenerator) -> Schema {
    string(
        253,
        &[rule(
            format!("self == 'Auto' || self.matches('{SUBDOMAIN}')"),
            "must be \"Auto\" or the name of a SandboxSnapshot in the pool's namespace; leave it out to boot each standby",
        )],
    )
}

/// Of the specification of a Sandbox.
#[must_use]
pub fn sandbox() -> Value {
    let mut rules = vec![rule(
        // Upstream's, to the letter.
        "has(self.volumeClaimTemplates) == has(oldSelf.volumeClaimTemplates) && (!has(self.volumeClaimTemplates) || self.volumeClaimTemplates == oldSelf.volumeClaimTemplates)",
        "volumeClaimTemplates is immutable",
    )];
    rules.extend(sleep());
    Value::Array(rules)
}

/// Of the specification of a SandboxTemplate.
#[must_use]
pub fn sandbox_template() -> Value {
    Value::Array(sleep())
}

/// How a sandbox sleeps: the order of the ladder, and that there is one.
fn sleep() -> Vec<Value> {
    let mut rules = vec![rule(
        "has(self.idleTimeout) || (!has(self.sleep) && !has(self.resumePolicy))",
        "sleep and resumePolicy mean nothing without idleTimeout; set idleTimeout as well, or leave them out",
    )];
    // The latest of the earlier rungs that is given: the one that this one must not come before.
    let mut earlier = String::from("self.idleTimeout");
    let mut named = vec!["idleTimeout".to_owned()];
    for field in ["freezeAfter", "dozeAfter", "hibernateAfter", "archiveAfter"] {
        let this = format!("self.sleep.{field}");
        rules.push(rule(
            format!(
                "!has(self.idleTimeout) || !has(self.sleep) || !has({this}) || duration({this}) >= duration({earlier})"
            ),
            format!("sleep.{field} must not be shorter than {}", named.join(", ")),
        ));
        earlier = format!("(has({this}) ? {this} : {earlier})");
        named.insert(0, format!("sleep.{field}"));
    }
    rules
}

/// Of what a suspension keeps.
#[must_use]
pub fn suspension_strategy() -> Value {
    json!([rule(
        "!has(self.fallback) || (has(self.type) && self.type != 'Stop')",
        "fallback says what becomes of memory that cannot be had back, and type Stop keeps none; set type to Freeze or Hibernate, or leave fallback out",
    )])
}

/// Of the specification of a SandboxWarmPool.
#[must_use]
pub fn warm_pool() -> Value {
    json!([rule(
        "!has(self.minReady) || !has(self.maxReady) || self.minReady <= self.maxReady",
        "minReady must not be greater than maxReady",
    )])
}

/// Of a SnapshotStore as a whole.
#[must_use]
pub fn snapshot_store() -> Value {
    json!([rule(
        format!("self.metadata.name.size() <= 63 && self.metadata.name.matches('{LABEL}')"),
        "a SnapshotStore has the name of the namespace that it is for, or \"default\" for all that have none of their own",
    )])
}

/// Of the specification of a StandbyQuota.
#[must_use]
pub fn standby_quota() -> Value {
    json!([rule(
        "has(self.standbys) || has(self.memory)",
        "a StandbyQuota limits standbys, memory or both; set one, or delete it",
    )])
}

/// Of a node's swap.
#[must_use]
pub fn node_swap() -> Value {
    json!([rule(
        "self.freeBytes <= self.totalBytes",
        "freeBytes must not be greater than totalBytes",
    )])
}
