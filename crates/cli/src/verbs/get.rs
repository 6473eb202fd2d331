//! `dormouse get`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use crate::agent::{Agent, refused};
use crate::args::{GetArgs, Global};
use crate::error::CliError;
use crate::output::print;
use crate::select::{find, reference};
use crate::view::{PodView, describe};

pub(super) async fn get(global: &Global, args: &GetArgs) -> Result<ExitCode, CliError> {
    let pod = one_pod(global, &args.pod).await?;
    print(global.output, &PodView::from(&pod), |_| describe(&pod))?;
    Ok(ExitCode::SUCCESS)
}

/// The pod that is named, as the agent describes it now.
pub(super) async fn one_pod(global: &Global, name: &str) -> Result<v1::Pod, CliError> {
    let agent = Agent::connect(global).await?;
    let pods = agent.list(v1::ListRequest::default()).await?;
    let request = v1::GetRequest {
        pod: Some(reference(find(&pods, name, global.namespace.as_deref())?)),
    };
    let answer = agent
        .order(
            request,
            |mut client, request| async move { client.get(request).await },
        )
        .await;
    answer
        .map_err(|status| refused(&format!("description of {name}"), status))?
        .pod
        .ok_or_else(|| CliError::Empty {
            what: "Get".to_owned(),
            lacks: "pod",
        })
}
