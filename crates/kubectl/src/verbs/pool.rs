//! `kubectl dormouse pool`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use dormouse_api::extensions::{SandboxTemplate, SandboxWarmPool};
use dormouse_output::print;

use crate::args::Global;
use crate::cluster::{Cluster, Name, optional};
use crate::error::PluginError;
use crate::view::{PoolView, advice_table};

/// Says how pools would serve the claims that came. Nothing is changed.
pub(super) async fn advise(
    cluster: &Cluster,
    global: &Global,
    names: &[String],
) -> Result<ExitCode, PluginError> {
    let mut pools: Vec<SandboxWarmPool> = Vec::new();
    for name in names {
        pools.push(cluster.get(&cluster.name("POOL", name)?).await?);
    }
    if names.is_empty() {
        pools = cluster.list(cluster.scope(), None).await?;
    }
    let mut templates = BTreeMap::new();
    for pool in &pools {
        let namespace = pool.metadata.namespace.clone().unwrap_or_default();
        let name = pool.spec.sandbox_template_ref.name.clone();
        let key = (namespace.clone(), name.clone());
        if templates.contains_key(&key) {
            continue;
        }
        let found = cluster.find::<SandboxTemplate>(&Name { namespace, name }).await;
        let template = optional("what a template requests", found)?;
        templates.insert(key, template);
    }
    let templates = templates
        .into_iter()
        .filter_map(|(key, template)| Some((key, template?)))
        .collect();
    let views = PoolView::all(&pools, &templates);
    print(global.output, &views, |_| advice_table(&views))?;
    Ok(ExitCode::SUCCESS)
}
