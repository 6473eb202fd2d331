//! How many sandboxes there are, counted when it is asked.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{READY, ready::SANDBOX_EXPIRED};
use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use dormouse_api::names::labels;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::claims::{launch_type, template_of};
use crate::objects::{self, condition, controller_of_kind};
use crate::sandbox::known_creator;

/// Counts sandboxes once it is told where they are.
#[derive(Clone, Default)]
pub(super) struct SandboxCounts(pub(super) Arc<OnceLock<Store<Sandbox>>>);

impl fmt::Debug for SandboxCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SandboxCounts").finish()
    }
}

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
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let mut counts: HashMap<Labels, i64> = HashMap::new();
        for sandbox in store.state() {
            *counts.entry(labels_of(&sandbox)).or_default() += 1;
        }
        let mut family = encoder.encode_descriptor(
            "agent_sandboxes",
            "Sandboxes that there are",
            None,
            MetricType::Gauge,
        )?;
        for (labels, count) in counts {
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
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
