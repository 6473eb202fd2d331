//! Keeping the budgets.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_api::agents::Sandbox;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::next::{NAME, Next, next};
use crate::backoff;
use crate::cache::Cache;
use crate::objects;
use crate::sandbox::holds_memory;
use crate::write::{Which, Writer};

/// Who makes them.
pub(crate) const MANAGER: &str = "dormouse-controller";

/// Which namespaces have sandboxes that keep their memory, and which are to be looked at.
#[derive(Clone)]
pub(crate) struct Budgets(Arc<Inner>);

struct Inner {
    budgets: Arc<Cache<PodDisruptionBudget>>,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// Names of sandboxes, by namespace; none without any.
    holders: HashMap<String, HashSet<String>>,
    /// Namespaces that are to be looked at.
    due: BTreeSet<String>,
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgets").finish_non_exhaustive()
    }
}

impl Budgets {
    pub(crate) fn new(budgets: Arc<Cache<PodDisruptionBudget>>) -> Self {
        Self(Arc::new(Inner {
            budgets,
            state: Mutex::default(),
            news: Notify::new(),
        }))
    }

    /// Takes note of a sandbox, or that there is none of that name.
    pub(crate) fn saw_sandbox(&self, namespace: &str, name: &str, there: Option<&Sandbox>) {
        let mut state = self.state();
        let turned = if there.is_some_and(holds_memory) {
            let holders = state.holders.entry(namespace.to_owned()).or_default();
            holders.insert(name.to_owned()) && holders.len() == 1
        } else {
            let left = state.holders.get_mut(namespace).map(|holders| {
                holders.remove(name);
                holders.is_empty()
            });
            if left == Some(true) {
                state.holders.remove(namespace);
            }
            left == Some(true)
        };
        if turned {
            state.due.insert(namespace.to_owned());
            self.0.news.notify_one();
        }
    }

    /// Takes note of a budget that has changed.
    pub(crate) fn saw_budget(&self, namespace: &str) {
        self.look_at(namespace.to_owned());
    }

    fn look_at(&self, namespace: String) {
        self.state().due.insert(namespace);
        self.0.news.notify_one();
    }

    fn take(&self) -> Vec<(String, bool)> {
        let mut state = self.state();
        let due = std::mem::take(&mut state.due);
        due.into_iter()
            .map(|namespace| {
                let wanted = state.holders.contains_key(&namespace);
                (namespace, wanted)
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the budgets until `stop`. `wanted`: whether there are to be any.
pub(crate) async fn keep(budgets: Budgets, client: Client, wanted: bool, stop: CancellationToken) {
    let writer = Writer::new(client, MANAGER);
    tokio::select! {
        // An error: the watch has ended, as it does with the process.
        _ = budgets.0.budgets.store().wait_until_ready() => {}
        () = stop.cancelled() => return,
    }
    for budget in budgets.0.budgets.store().state() {
        budgets.look_at(objects::namespace(&budget.metadata).to_owned());
    }
    let with_holders: Vec<String> = budgets.state().holders.keys().cloned().collect();
    for namespace in with_holders {
        budgets.look_at(namespace);
    }
    let mut failures = 0;
    loop {
        let mut failed = Vec::new();
        for (namespace, has_holders) in budgets.take() {
            if let Err(error) = bring(&budgets, &writer, &namespace, wanted && has_holders).await {
                warn!(namespace, %error, "the budget that holds up evictions is not as it should be, and is tried again");
                failed.push(namespace);
            }
        }
        if failed.is_empty() {
            failures = 0;
            tokio::select! {
                () = budgets.0.news.notified() => continue,
                () = stop.cancelled() => return,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff::next(&mut failures)) => {}
            () = stop.cancelled() => return,
        }
        for namespace in failed {
            budgets.look_at(namespace);
        }
    }
}

async fn bring(budgets: &Budgets, writer: &Writer, namespace: &str, wanted: bool) -> Result<(), kube::Error> {
    let cache = &*budgets.0.budgets;
    let there = cache.get(namespace, NAME);
    match next(namespace, wanted, there.as_deref()) {
        Next::Nothing => {}
        Next::Create(budget) => {
            writer.create(cache, namespace, &*budget).await?;
            info!(
                namespace,
                "evictions of sandboxes are held up until their memory is saved"
            );
        }
        Next::Delete { uid } => {
            let which = Which {
                name: NAME,
                uid: &uid,
                version: None,
            };
            writer.delete(cache, namespace, which, false).await?;
            // One that said something else is made anew.
            budgets.look_at(namespace.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_api::agents::{SuspensionStrategy, SuspensionType};
    use kube::runtime::reflector::store;

    fn holder() -> Sandbox {
        let mut sandbox = Sandbox::default();
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_: SuspensionType::Hibernate,
            fallback: None,
        });
        sandbox
    }

    #[test]
    fn a_namespace_is_looked_at_with_its_first_and_its_last_sandbox() {
        let budgets = Budgets::new(Arc::new(Cache::new(store().0, |_| None)));
        let due = |wanted| vec![("ns".to_owned(), wanted)];
        budgets.saw_sandbox("ns", "plain", Some(&Sandbox::default()));
        assert_eq!(budgets.take(), vec![]);
        budgets.saw_sandbox("ns", "a", Some(&holder()));
        assert_eq!(budgets.take(), due(true));
        budgets.saw_sandbox("ns", "a", Some(&holder()));
        budgets.saw_sandbox("ns", "b", Some(&holder()));
        budgets.saw_sandbox("ns", "a", None);
        assert_eq!(budgets.take(), vec![]);
        // It does not keep its memory any more.
        budgets.saw_sandbox("ns", "b", Some(&Sandbox::default()));
        assert_eq!(budgets.take(), due(false));
        budgets.saw_budget("ns");
        assert_eq!(budgets.take(), due(false));
    }
}
