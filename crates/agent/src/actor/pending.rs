//! Orders that wait for an answer, and answers that may be asked for again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dormouse_core::{Order, OrderId, Reason};
use tokio::sync::oneshot;

use crate::step_report::Phase;
use crate::view::PodView;

/// How many named operations are remembered per pod, so that they can be repeated.
const REMEMBERED: usize = 64;

/// What an order did.
#[derive(Debug, Clone)]
pub struct OrderDone {
    /// Whether the pod moved for it.
    pub moved: bool,
    /// The phases of the last step.
    pub phases: Vec<Phase>,
    /// The pod's newest snapshot.
    pub snapshot: Option<String>,
    /// The pod afterwards.
    pub pod: Arc<PodView>,
}

/// Why an order was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OrderFailed {
    /// The stable reason code.
    pub reason: Reason,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// Where an order's answer goes.
pub type Answer = oneshot::Sender<Result<OrderDone, OrderFailed>>;

#[derive(Debug)]
struct Open {
    operation_id: String,
    answers: Vec<Answer>,
}

#[derive(Debug)]
struct Remembered {
    operation_id: String,
    order: Order,
    /// `None` while it is under way.
    result: Option<Result<OrderDone, OrderFailed>>,
}

/// The orders of one pod.
#[derive(Debug, Default)]
pub(super) struct Pending {
    open: HashMap<OrderId, Open>,
    remembered: VecDeque<Remembered>,
}

impl Pending {
    /// Answers an order whose operation is known already, or lets it join one that is under way; gives the
    /// answer's way back if the operation is new.
    pub(super) fn join(&mut self, order: Order, operation_id: &str, answer: Answer) -> Option<Answer> {
        if operation_id.is_empty() {
            return Some(answer);
        }
        let Some(known) = self.remembered.iter().find(|r| r.operation_id == operation_id) else {
            return Some(answer);
        };
        if known.order != order {
            let _ = answer.send(Err(OrderFailed {
                reason: Reason::OperationIdReused,
                message: format!(
                    "operation id {operation_id:?} was used for another order on this pod; use a new one for each order"
                ),
            }));
        } else if let Some(result) = &known.result {
            let _ = answer.send(result.clone());
        } else if let Some(open) = self.open.values_mut().find(|o| o.operation_id == operation_id) {
            open.answers.push(answer);
        } else {
            return Some(answer);
        }
        None
    }

    /// Enters a new order.
    pub(super) fn add(&mut self, id: OrderId, order: Order, operation_id: String, answer: Answer) {
        if !operation_id.is_empty() {
            if self.remembered.len() == REMEMBERED {
                // The oldest that has ended; one under way must still be found.
                let oldest = self
                    .remembered
                    .iter()
                    .position(|r| r.result.is_some())
                    .unwrap_or(0);
                self.remembered.remove(oldest);
            }
            self.remembered.push_back(Remembered {
                operation_id: operation_id.clone(),
                order,
                result: None,
            });
        }
        self.open.insert(
            id,
            Open {
                operation_id,
                answers: vec![answer],
            },
        );
    }

    /// Answers an order; failures are not remembered, so that the same operation can be tried again.
    pub(super) fn answer(&mut self, id: OrderId, result: &Result<OrderDone, OrderFailed>) {
        let Some(open) = self.open.remove(&id) else { return };
        let entry = self
            .remembered
            .iter()
            .position(|r| r.operation_id == open.operation_id);
        match (entry, result) {
            (Some(at), Ok(_)) => {
                if let Some(remembered) = self.remembered.get_mut(at) {
                    remembered.result = Some(result.clone());
                }
            }
            (Some(at), Err(_)) => {
                self.remembered.remove(at);
            }
            (None, _) => {}
        }
        for answer in open.answers {
            let _ = answer.send(result.clone());
        }
    }

    /// Tells everybody that the pod is gone.
    pub(super) fn end(&mut self, pod: &str) {
        for (_, open) in self.open.drain() {
            for answer in open.answers {
                let _ = answer.send(Err(OrderFailed {
                    reason: Reason::PodGone,
                    message: format!("pod {pod} went away while the order was carried out"),
                }));
            }
        }
    }
}
