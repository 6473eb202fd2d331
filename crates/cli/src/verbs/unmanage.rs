//! `dormouse unmanage`.

use std::process::ExitCode;

use dormouse_rpc::v1;

use super::orders::{Answer, to_all};
use crate::args::{Global, OrderArgs};
use crate::error::CliError;

pub(super) async fn unmanage(global: &Global, args: OrderArgs) -> Result<ExitCode, CliError> {
    to_all(global, args, None, |agent, pod, operation_id| async move {
        let request = v1::ManageRequest {
            pod: Some(pod),
            managed: false,
            operation_id,
            ..v1::ManageRequest::default()
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
    })
    .await
}
