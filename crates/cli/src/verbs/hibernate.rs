//! `dormouse hibernate`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use super::orders::{Answer, to_all};
use crate::args::{Global, OrderArgs};
use crate::error::CliError;

pub(super) async fn hibernate(global: &Global, args: OrderArgs) -> Result<ExitCode, CliError> {
    to_all(
        global,
        args,
        Some("hibernating"),
        |agent, pod, operation_id| async move {
            let request = v1::HibernateRequest {
                pod: Some(pod),
                operation_id,
                ..Default::default()
            };
            let answer = agent
                .order(request, |mut client, request| async move {
                    client.hibernate(request).await
                })
                .await?;
            Ok(Answer {
                pod: answer.pod,
                outcome: answer.outcome,
                snapshot: Some(answer.snapshot_id).filter(|id| !id.is_empty()),
            })
        },
    )
    .await
}
