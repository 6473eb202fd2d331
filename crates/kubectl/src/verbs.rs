//! One file per verb.

mod completion;
mod events;
mod node;
mod operate;
mod pool;
mod ps;
mod snapshot;
mod top;
mod version;
mod wait;
mod why;

use std::process::ExitCode;

use dormouse_api::agents::OperatingMode;

use crate::args::{Cli, NodeVerb, PoolVerb, Verb};
use crate::cluster::Cluster;
use crate::error::PluginError;

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode, PluginError> {
    let global = cli.global;
    if let Verb::Completion { shell } = cli.verb {
        return completion::completion(shell);
    }
    if let Verb::Version = cli.verb {
        return version::version(&global).await;
    }
    let cluster = Cluster::connect(&global).await?;
    match cli.verb {
        Verb::Ps(args) => ps::ps(&cluster, &global, &args).await,
        Verb::Suspend(args) => operate::operate(&cluster, &global, args, OperatingMode::Suspended).await,
        Verb::Resume(args) => operate::operate(&cluster, &global, args, OperatingMode::Running).await,
        Verb::Snapshot(args) => snapshot::snapshot(&cluster, &global, args.verb).await,
        Verb::Node(args) => match args.verb {
            NodeVerb::Ls => node::ls(&cluster, &global).await,
            NodeVerb::Describe { name } => node::describe(&cluster, &global, &name).await,
        },
        Verb::Pool(args) => match args.verb {
            PoolVerb::Advise { names } => pool::advise(&cluster, &global, &names).await,
        },
        Verb::Top(args) => top::top(&cluster, &global, &args).await,
        Verb::Events(args) => events::events(&cluster, &global, &args).await,
        Verb::Why(args) => why::why(&cluster, &global, &args).await,
        Verb::Version | Verb::Completion { .. } => Ok(ExitCode::SUCCESS),
    }
}
