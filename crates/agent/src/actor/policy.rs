//! The pod's policy: from its annotations at birth, and by orders afterwards.

use dormouse_core::{Input, Policy, Reason};

use super::Actor;
use super::pending::OrderFailed;
use crate::journal::Entry;
use crate::view::NewsKind;

impl Actor {
    /// Reads policy and management from the journal, the annotations and the configuration, in this order.
    pub(super) fn read_policy(&mut self) {
        self.left_alone = None;
        let annotated = Policy::from_annotations(&self.pod.annotations);
        let by_default = self.ctx.config.manage.handlers.contains(&self.pod.handler);
        let (managed, policy) = match annotated {
            Ok((managed, policy)) => (managed.unwrap_or(by_default), policy),
            Err(error) => {
                if self.entry.policy.is_none() {
                    let message = error.to_string();
                    self.left_alone = Some((Reason::InvalidAnnotation, message.clone()));
                    tracing::warn!(
                        pod = %self.pod.full_name(), reason = %Reason::InvalidAnnotation,
                        "pod is left alone: {message}"
                    );
                    self.tell_news(
                        NewsKind::Warning,
                        Some(Reason::InvalidAnnotation),
                        message,
                        None,
                        None,
                    );
                }
                (false, Policy::default())
            }
        };
        self.state.managed = self.entry.managed.unwrap_or(managed);
        self.state.policy = self.entry.policy.clone().unwrap_or(policy);
    }

    pub(super) async fn set_policy(&mut self, policy: Policy, generation: u64) -> Result<(), OrderFailed> {
        if generation <= self.entry.policy_generation {
            return Err(self.stale(generation, "not newer"));
        }
        let entry = Entry {
            policy: Some(policy.clone()),
            policy_generation: generation,
            ..self.entry.clone()
        };
        self.store(entry).await?;
        self.forget_annotation();
        self.apply(Input::SetPolicy(policy));
        self.plan_shell();
        self.wire.follow_ports(&self.ctx, &self.state);
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.publish();
        self.tell_news(NewsKind::Changed, None, "policy was set".to_owned(), None, None);
        Ok(())
    }

    pub(super) async fn manage(
        &mut self,
        managed: bool,
        policy: Option<(Policy, u64)>,
    ) -> Result<(), OrderFailed> {
        if let Some((_, generation)) = &policy
            && *generation < self.entry.policy_generation
        {
            return Err(self.stale(*generation, "older"));
        }
        let mut entry = Entry {
            managed: Some(managed),
            ..self.entry.clone()
        };
        if let Some((policy, generation)) = policy {
            entry.policy = Some(policy);
            entry.policy_generation = generation;
        }
        self.store(entry).await?;
        self.read_policy_again();
        self.apply(Input::SetManaged(managed));
        self.plan_shell();
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.publish();
        let message = if managed {
            "pod is managed"
        } else {
            "pod is no longer managed"
        };
        self.tell_news(NewsKind::Changed, None, message.to_owned(), None, None);
        Ok(())
    }

    pub(super) fn read_policy_again(&mut self) {
        if let Some(policy) = self.entry.policy.clone() {
            self.forget_annotation();
            self.apply(Input::SetPolicy(policy));
            self.wire.follow_ports(&self.ctx, &self.state);
        }
    }

    fn stale(&self, generation: u64, how: &str) -> OrderFailed {
        OrderFailed {
            reason: Reason::StaleGeneration,
            message: format!(
                "pod {}: policy generation {generation} is {how} than {}, which is in force",
                self.pod.full_name(),
                self.entry.policy_generation
            ),
        }
    }

    /// A policy that was set by order counts, and no bad annotation any more.
    fn forget_annotation(&mut self) {
        let left_alone = self.left_alone.take();
        self.left_alone = left_alone.filter(|(reason, _)| *reason != Reason::InvalidAnnotation);
    }

    /// Writes the journal before an order is answered.
    pub(super) async fn store(&mut self, entry: Entry) -> Result<(), OrderFailed> {
        match self.ctx.writer.store(entry.clone()).await {
            Ok(()) => {
                self.entry = entry;
                Ok(())
            }
            Err(error) => Err(OrderFailed {
                reason: error.reason(),
                message: error.to_string(),
            }),
        }
    }
}
