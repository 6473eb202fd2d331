//! `dormouse manage`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use super::orders::{Answer, to_all};
use super::policy::{by_name, from_flags, next_generation};
use crate::args::{Global, ManageArgs, PolicyFlags};
use crate::error::CliError;

pub(super) async fn manage(global: &Global, args: ManageArgs) -> Result<ExitCode, CliError> {
    // Without any flag, the pod's annotations are its policy.
    let policy = if args.policy == PolicyFlags::default() {
        None
    } else {
        Some(v1::Policy::from(&from_flags(&args.policy)?))
    };
    let policy_generation = if policy.is_some() { next_generation() } else { 0 };
    to_all(global, by_name(args.pods), None, |agent, pod, operation_id| {
        let policy = policy.clone();
        async move {
            let request = v1::ManageRequest {
                pod: Some(pod),
                managed: true,
                policy,
                policy_generation,
                operation_id,
            };
            let answer = agent
                .order(request, |mut client, request| async move {
                    client.manage(request).await
                })
                .await?;
            Ok(Answer {
                pod: answer.pod,
                outcome: None,
                snapshot: None,
            })
        }
    })
    .await
}
