//! Giving its environment to a sandbox that runs already.
//!
//! It goes on in the background: a command that takes its time must not keep a worker from other claims. What it leads to is
//! kept in mind with the claim, and a controller that begins does it again, which agents allow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::agents::Sandbox;
use dormouse_api::names::annotations;
use dormouse_core::Reason;
use kube::runtime::events::EventType;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use super::late::{self, Environment, Part};
use super::{ClaimContext, ClaimError, Observed};
use crate::agents::{Agents, Order, OrderError};
use crate::objects;

/// How long a look at a claim waits for it. If it takes longer the claim is looked at when it is done.
const BOUND: Duration = Duration::from_secs(1);

/// How long an agent that cannot be reached, or cannot do it now, is asked again. Then the claim gets a sandbox of its own.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long claims on a template get sandboxes of their own at once after a delivery has failed: each attempt costs a standby.
const PAUSE: Duration = Duration::from_secs(60);

/// The longest reason that is noted on a claim, in characters.
const LONGEST: usize = 256;

/// One attempt.
#[derive(Debug)]
pub(super) struct Attempt {
    /// UID of the pod.
    pod: String,
    /// When the first attempt on the pod began.
    since: Instant,
    end: watch::Receiver<Option<End>>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Delivered,
    /// Another attempt may go better.
    NotYet(String),
    /// It would not.
    Failed(String),
}

impl ClaimContext {
    /// Has the environment delivered, and says in `observed` how it stands then. If it cannot be, that is noted on the claim.
    pub(super) async fn deliver(
        &self,
        observed: &mut Observed,
        sandbox: &Sandbox,
        pod: &str,
    ) -> Result<(), ClaimError> {
        let parts = late::parts(&observed.claim, &sandbox.spec.pod_template.spec);
        let (Some(node), Some(parts)) = (self.guests.node_of(sandbox), parts) else {
            let why = "its pod has no node, or another environment".to_owned();
            return self.give_up(observed, why).await;
        };
        let (since, mut end) = self.attempt(observed, node, pod, parts);
        let ended = match timeout(BOUND, end.wait_for(Option::is_some)).await {
            Ok(Ok(end)) => end.clone(),
            // It came to no end: it is begun again.
            Ok(Err(_)) => Some(End::NotYet("the delivery broke off".to_owned())),
            Err(_) => None,
        };
        match ended {
            None => observed.environment = Environment::UnderWay { why: String::new() },
            Some(End::Delivered) => observed.environment = Environment::Delivered { pod: pod.to_owned() },
            Some(End::NotYet(why)) if since.elapsed() < GIVE_UP => {
                observed.environment = Environment::UnderWay { why };
            }
            Some(End::NotYet(why) | End::Failed(why)) => return self.give_up(observed, why).await,
        }
        Ok(())
    }

    /// The attempt that is on its way or has come to an end that counts; otherwise a new one. Since when it is tried, and how
    /// it ends.
    fn attempt(
        &self,
        observed: &Observed,
        node: String,
        pod: &str,
        parts: Vec<Part>,
    ) -> (Instant, watch::Receiver<Option<End>>) {
        let claim = &*observed.claim;
        self.notes.delivery(claim, |known| {
            let known_one = known.as_ref().filter(|attempt| attempt.pod == pod);
            if let Some(attempt) = known_one.filter(|attempt| attempt.counts()) {
                return (attempt.since, attempt.end.clone());
            }
            let since = known_one.map_or_else(Instant::now, |attempt| attempt.since);
            let (sender, end) = watch::channel(None);
            let (agents, order_pod) = (self.guests.agents.clone(), pod.to_owned());
            let (queue, meta) = (self.claim_queue.clone(), claim.metadata.clone());
            tokio::spawn(async move {
                let begun = Instant::now();
                let end = deliver(&agents, &node, &order_pod, parts).await;
                let took = begun.elapsed();
                info!(
                    node,
                    pod = order_pod,
                    ?took,
                    ?end,
                    "an environment was to be delivered"
                );
                sender.send_replace(Some(end));
                if took >= BOUND {
                    // Nobody waits any more.
                    queue.push(objects::namespace(&meta), objects::name(&meta));
                }
            });
            *known = Some(Attempt {
                pod: pod.to_owned(),
                since,
                end: end.clone(),
            });
            (since, end)
        })
    }

    /// Notes on the claim that it does not get its environment so. The note is the record: whichever controller reads it
    /// frees the sandbox and makes another one.
    async fn give_up(&self, observed: &mut Observed, why: String) -> Result<(), ClaimError> {
        let claim = Arc::clone(&observed.claim);
        let meta = &claim.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        if let Some(pool) = &observed.pool {
            self.failing.note(namespace, &pool.spec.sandbox_template_ref.name);
        }
        let why: String = why.chars().take(LONGEST).collect();
        info!(
            namespace,
            claim = name,
            why,
            "a claim gets a sandbox of its own for its environment"
        );
        let patch = json!({"metadata": {"annotations": {annotations::LATE_ENV_REFUSED: why}}});
        let written = self.writer.patch(&self.claims, namespace, name, &patch).await;
        let written = written.map_err(|source| ClaimError::Api {
            step: "annotate claim",
            source,
        })?;
        let note = format!("A sandbox is made for the claim, as its environment was not delivered: {why}");
        self.tell(
            &claim,
            EventType::Warning,
            "EnvironmentNotDelivered",
            "Delivering",
            note,
        );
        observed.claim = Arc::new(written);
        Ok(())
    }
}

impl Attempt {
    /// Whether it goes on, or has come to an end that another attempt would not better.
    fn counts(&self) -> bool {
        let is_closed = self.end.has_changed().is_err();
        match &*self.end.borrow() {
            None => !is_closed,
            Some(End::NotYet(_)) => false,
            Some(End::Delivered | End::Failed(_)) => true,
        }
    }

    /// UID of the pod that has its environment.
    pub(super) fn delivered(&self) -> Option<&str> {
        matches!(&*self.end.borrow(), Some(End::Delivered)).then_some(&self.pod)
    }
}

async fn deliver(agents: &Agents, node: &str, pod: &str, parts: Vec<Part>) -> End {
    for Part { container, variables } in parts {
        let order = Order::DeliverEnvironment {
            pod: pod.to_owned(),
            container,
            variables,
        };
        if let Err(error) = agents.order(node, order).await {
            return judge(&error);
        }
    }
    End::Delivered
}

fn judge(error: &OrderError) -> End {
    let may_pass = match error {
        OrderError::Unreachable { .. } => true,
        // A container that has ended is started again.
        OrderError::Refused { reason, may_pass, .. } => *may_pass || reason == Reason::PodNotReady.as_str(),
    };
    if may_pass {
        End::NotYet(error.to_string())
    } else {
        End::Failed(error.to_string())
    }
}

/// Templates whose standbys have not taken an environment of late, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<HashMap<(String, String), Instant>>);

impl Failing {
    fn note(&self, namespace: &str, template: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, since| since.elapsed() < PAUSE);
        all.insert((namespace.to_owned(), template.to_owned()), Instant::now());
    }

    pub(super) fn is(&self, namespace: &str, template: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(namespace.to_owned(), template.to_owned()))
            .is_some_and(|since| since.elapsed() < PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again() {
        let refused = |reason: &str, may_pass| OrderError::Refused {
            node: "n".to_owned(),
            what: "deliver the environment",
            reason: reason.to_owned(),
            message: "m".to_owned(),
            may_pass,
        };
        let away = OrderError::Unreachable { node: "n".to_owned() };
        for error in [away, refused("NodeBusy", true), refused("PodNotReady", false)] {
            assert!(matches!(judge(&error), End::NotYet(_)), "{error}");
        }
        for reason in ["EnvironmentNotDelivered", "EnvironmentNotTaken", "Unimplemented"] {
            assert!(
                matches!(judge(&refused(reason, false)), End::Failed(_)),
                "{reason}"
            );
        }
    }
}
