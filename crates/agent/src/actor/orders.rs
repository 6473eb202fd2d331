//! Orders: taken in, and answered.

use std::sync::Arc;

use dormouse_core::{Input, Order, OrderId, Reason, Refusal};

use super::pending::{Answer, OrderDone, OrderFailed};
use super::{Actor, report};
use crate::clock;

impl Actor {
    pub(super) fn order(&mut self, order: Order, operation_id: String, answer: Answer) {
        let Some(answer) = self.pending.join(order, &operation_id, answer) else {
            return;
        };
        if !matches!(order, Order::Wake(_)) {
            if let Some((reason, message)) = &self.left_alone
                && *reason == Reason::RuntimeUnsupported
            {
                // Whoever asked may have gone meanwhile.
                let _ = answer.send(Err(OrderFailed {
                    reason: *reason,
                    message: message.clone(),
                }));
                return;
            }
            self.refresh_abilities();
            // An unmanaged pod has no wire yet; an order to sleep wants it woken by packets all the same.
            self.wire.attach(&self.ctx, &self.pod, &self.state);
        }
        if matches!(order, Order::Wake(_)) {
            self.wake_asked.get_or_insert_with(clock::now);
        }
        self.next_order += 1;
        let id = OrderId(self.next_order);
        self.pending.add(id, order, operation_id, answer);
        self.apply(Input::Order(id, order));
    }

    pub(super) fn reply(&mut self, id: OrderId, result: Result<bool, Refusal>) {
        let result = match result {
            Ok(moved) => Ok(OrderDone {
                moved,
                phases: if moved {
                    self.last_report
                        .as_ref()
                        .map(|r| r.phases.clone())
                        .unwrap_or_default()
                } else {
                    Vec::new()
                },
                snapshot: self.entry.snapshot.clone(),
                pod: Arc::new(report::of(self)),
            }),
            Err(Refusal(reason)) => Err(OrderFailed {
                reason,
                message: self.explain(reason),
            }),
        };
        self.pending.answer(id, &result);
    }

    pub(super) fn explain(&self, reason: Reason) -> String {
        let detail = self
            .last_report
            .as_ref()
            .and_then(|r| r.failure.as_ref())
            .filter(|f| f.reason == reason);
        let detail = detail.map_or_else(|| reason.meaning().trim().to_owned(), |f| f.message.clone());
        format!("pod {}: {detail}", self.pod.full_name())
    }
}
