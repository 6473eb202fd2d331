//! What would change how a sandbox stands. Pure.

use dormouse_api::agents::SuspensionType;
use dormouse_api::conditions::{DORMANT, messages};
use dormouse_core::Rung;

use super::Facts;
use super::rung::only_orders_wake;
use crate::view::{Stand, policy_text, sandbox_condition, stand, strategy};

/// What would change it.
pub(super) fn sentences(facts: &Facts<'_>) -> Vec<String> {
    let named = facts.named();
    let suspend = format!("kubectl dormouse suspend {named}");
    let resume = format!("kubectl dormouse resume {named}");
    let events = format!("kubectl dormouse events {named} tells what happens meanwhile.");
    match stand(facts.sandbox) {
        Stand::On(Rung::Running) => {
            let keeps = match strategy(facts.sandbox) {
                SuspensionType::Stop => {
                    "its memory is lost then; suspensionStrategy.type: Freeze or Hibernate keeps it"
                }
                SuspensionType::Freeze => "its pod stays then, with its memory",
                SuspensionType::Hibernate => "its memory becomes a snapshot then",
            };
            let mut all = vec![format!("{suspend} suspends it; {keeps}.")];
            if policy_text(facts.sandbox).is_empty() {
                all.push("spec.idleTimeout, as in 5m, lets it fall asleep by itself.".to_owned());
            } else {
                all.push("Without traffic it falls asleep by itself.".to_owned());
            }
            all
        }
        Stand::On(_) if stands_by(facts) => vec![
            "A claim that gets it wakes it; packets do not.".to_owned(),
            "Its pool's spec.awake and spec.standby say how many standbys wait awake, and where the others do."
                .to_owned(),
        ],
        Stand::On(_) if is_dormant(facts) => {
            let wakes = if only_orders_wake(facts) {
                "An exec or an order wakes it; packets do not (resumePolicy: Manual)."
            } else {
                "The first packet to it, an exec or an order wakes it; whoever asks need not know that it slept."
            };
            vec![
                wakes.to_owned(),
                "A longer spec.idleTimeout keeps it awake for longer; without one it never sleeps."
                    .to_owned(),
            ]
        }
        Stand::On(_) => vec![format!("{resume} lets it run again.")],
        Stand::Suspending => vec![format!("{resume} calls it off."), events],
        Stand::Waking | Stand::Starting => vec![events],
        Stand::Finished => {
            vec!["Its pod has ended for good: delete the sandbox, and make it anew.".to_owned()]
        }
        Stand::Expired => {
            vec!["Its shutdownTime has come: a later one, or none, lets it run again.".to_owned()]
        }
        Stand::Unknown => vec![format!("{suspend} suspends it.")],
    }
}

/// Whether it sleeps because nobody has claimed it.
fn stands_by(facts: &Facts<'_>) -> bool {
    sandbox_condition(facts.sandbox, DORMANT)
        .is_some_and(|dormant| dormant.status == "True" && dormant.message == messages::STANDS_BY)
}

/// Whether it sleeps because it was idle.
fn is_dormant(facts: &Facts<'_>) -> bool {
    facts.sandbox.spec.operating_mode == dormouse_api::agents::OperatingMode::Running
}
