//! Environment variables for a pod that runs already.

use std::sync::Arc;

use dormouse_core::{LateEnv, Variables};
use tokio::sync::oneshot;

use super::{Actor, OrderFailed};
use crate::deliver::{DeliverError, Delivery};
use crate::view::PodView;

impl Actor {
    /// Gives an environment to a container of the pod, and says so when it is done. The pod's life goes on meanwhile; of
    /// two that come at a time the second one waits for the first.
    pub(super) fn deliver(
        &self,
        container: &str,
        variables: Variables,
        answer: oneshot::Sender<Result<Arc<PodView>, OrderFailed>>,
    ) {
        let (turn, view) = (Arc::clone(&self.deliveries), self.view.subscribe());
        let (delivery, pod) = (self.delivery(container, variables), self.pod.full_name());
        tokio::spawn(async move {
            let done = match delivery {
                Ok(delivery) => {
                    let _turn = turn.lock().await;
                    delivery.carry_out().await
                }
                Err(error) => Err(error),
            };
            let done = done.map_err(|error| {
                let (reason, message) = (error.reason(), format!("pod {pod}: {error}"));
                tracing::warn!(%pod, %reason, "an environment was not delivered: {error}");
                OrderFailed { reason, message }
            });
            // Whoever asked may have gone meanwhile.
            let _ = answer.send(done.map(|()| view.borrow().clone()));
        });
    }

    fn delivery(&self, container: &str, variables: Variables) -> Result<Delivery, DeliverError> {
        // As they were at the pod's birth: nobody can have added to them since.
        let late = LateEnv::from_annotations(&self.pod.annotations)?.ok_or(DeliverError::NotTaken)?;
        if self.state.rung.is_asleep() {
            return Err(DeliverError::Asleep);
        }
        let running = self.pod.running().filter(|running| running.name == container);
        let running = running
            .max_by_key(|running| running.attempt)
            .ok_or_else(|| DeliverError::NoContainer(container.to_owned()))?;
        Ok(Delivery {
            runtime: self.ctx.runtime.clone(),
            container: running.name.clone(),
            container_id: running.id.clone(),
            late,
            variables,
        })
    }
}
