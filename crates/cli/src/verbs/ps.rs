//! `dormouse ps`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use crate::agent::Agent;
use crate::args::{Global, PsArgs};
use crate::error::CliError;
use crate::output::print;
use crate::view::{PodView, pod_table};

pub(super) async fn ps(global: &Global, args: PsArgs) -> Result<ExitCode, CliError> {
    let request = v1::ListRequest {
        managed_only: !args.all,
        label_selector: args.selector,
        namespace: global.namespace.clone().unwrap_or_default(),
    };
    let pods = Agent::connect(global).await?.list(request).await?;
    let views: Vec<PodView> = pods.iter().map(PodView::from).collect();
    print(global.output, &views, |wide| pod_table(&pods, wide))?;
    Ok(ExitCode::SUCCESS)
}
