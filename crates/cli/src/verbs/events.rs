//! `dormouse events`.

use std::process::ExitCode;

use dormouse_rpc::v1;
use dormouse_rpc::v1::watch_response::Kind;

use crate::agent::{Agent, refused};
use crate::args::{EventsArgs, Format, Global};
use crate::error::CliError;
use crate::output::{json_line, line, yaml};
use crate::view::EventView;

/// Tells of the pods as they are and, with `--follow`, of every change until the agent or the user ends it.
pub(super) async fn events(global: &Global, args: EventsArgs) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let request = v1::WatchRequest {
        managed_only: !args.all,
        label_selector: args.selector,
        namespace: global.namespace.clone().unwrap_or_default(),
    };
    let mut stream = agent
        .client()
        .watch(request)
        .await
        .map_err(|status| refused("watch", status))?
        .into_inner();
    loop {
        let event = tokio::select! {
            event = stream.message() => event.map_err(|status| refused("watch", status))?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let Some(event) = event else {
            // The agent ends a watch only when it shuts down.
            return Err(refused("watch", tonic::Status::unavailable("the agent ended it")));
        };
        match global.output {
            Format::Json => line(&json_line(&EventView::from(&event))?)?,
            Format::Yaml => line(&format!("---\n{}", yaml(&EventView::from(&event))?.trim_end()))?,
            Format::Table | Format::Wide => {
                if let Some(text) = EventView::line(&event) {
                    line(&text)?;
                }
            }
        }
        if event.kind() == Kind::Synced && !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
