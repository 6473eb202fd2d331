//! How many sandboxes there are, counted when it is asked.

use std::fmt;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{READY, ready::SANDBOX_EXPIRED};
use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use dormouse_api::names::labels;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::claims::{launch_type, template_of};
use super::counted::{Counted, gauges, tally};
use crate::objects::{self, condition, controller_of_kind};
use crate::sandbox::known_creator;

/// Counts sandboxes once it is told where they are.
#[derive(Debug, Clone, Default)]
pub(super) struct SandboxCounts(pub(super) Counted<Store<Sandbox>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    ready_condition: &'static str,
    expired: &'static str,
    launch_type: &'static str,
    sandbox_template: String,
    owned_by: &'static str,
    created_by: String,
}

impl Collector for SandboxCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let counts = tally(store.state().iter().map(|sandbox| labels_of(sandbox)));
        gauges(encoder, "agent_sandboxes", "Sandboxes that there are", counts)
    }
}

fn labels_of(sandbox: &Sandbox) -> Labels {
    let meta = &sandbox.metadata;
    let ready = sandbox
        .status
        .as_ref()
        .and_then(|status| condition(&status.conditions, READY));
    let said = |yes: bool| if yes { "true" } else { "false" };
    let owned_by = if controller_of_kind::<SandboxClaim>(meta).is_some() {
        "SandboxClaim"
    } else if controller_of_kind::<SandboxWarmPool>(meta).is_some() {
        "SandboxWarmPool"
    } else {
        "None"
    };
    Labels {
        namespace: objects::namespace(meta).to_owned(),
        ready_condition: said(ready.is_some_and(|condition| condition.status == "True")),
        expired: said(ready.is_some_and(|condition| condition.reason == SANDBOX_EXPIRED)),
        launch_type: launch_type(sandbox),
        sandbox_template: template_of(sandbox, "unknown").to_owned(),
        owned_by,
        created_by: known_creator(objects::label(meta, labels::CREATED_BY).unwrap_or_default()).to_owned(),
    }
}
