//! `dormouse snapshot create`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use crate::args::{Global, OrderArgs};
use crate::error::CliError;
use crate::verbs::orders::{Answer, to_all};

pub(super) async fn create(global: &Global, args: OrderArgs) -> Result<ExitCode, CliError> {
    to_all(
        global,
        args,
        Some("saving"),
        |agent, pod, operation_id| async move {
            let request = v1::CreateSnapshotRequest {
                pod: Some(pod),
                operation_id,
            };
            let answer = agent
                .order(request, |mut client, request| async move {
                    client.create_snapshot(request).await
                })
                .await?;
            Ok(Answer {
                pod: answer.pod,
                outcome: answer.outcome,
                snapshot: answer.snapshot.map(|snapshot| snapshot.id),
            })
        },
    )
    .await
}
