//! `dormouse node`.

use std::process::ExitCode;

use crate::agent::Agent;
use crate::args::Global;
use crate::error::CliError;
use crate::output::print;
use crate::view::NodeView;

pub(super) async fn node(global: &Global) -> Result<ExitCode, CliError> {
    let view = NodeView::from(&Agent::connect(global).await?.node().await?);
    print(global.output, &view, |_| view.describe())?;
    Ok(ExitCode::SUCCESS)
}
