//! One file per verb.

mod bar;
mod completion;
mod doctor;
mod doze;
mod events;
mod freeze;
mod get;
mod hibernate;
mod manage;
mod node;
mod orders;
mod policy;
mod ps;
mod rm;
mod run;
mod snapshot;
mod source;
mod top;
mod unmanage;
mod version;
mod wake;

use std::process::ExitCode;

use crate::args::{Cli, Verb};
use crate::error::CliError;

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let global = cli.global;
    match cli.verb {
        Verb::Ps(args) => ps::ps(&global, args).await,
        Verb::Get(args) => get::get(&global, &args).await,
        Verb::Freeze(args) => freeze::freeze(&global, args).await,
        Verb::Doze(args) => doze::doze(&global, args).await,
        Verb::Hibernate(args) => hibernate::hibernate(&global, args).await,
        Verb::Snapshot(args) => snapshot::snapshot(&global, args).await,
        Verb::Wake(args) => wake::wake(&global, args).await,
        Verb::Manage(args) => manage::manage(&global, args).await,
        Verb::Unmanage(args) => unmanage::unmanage(&global, args).await,
        Verb::Policy(args) => policy::policy(&global, args).await,
        Verb::Run(args) => run::run(&global, &args).await,
        Verb::Rm(args) => rm::rm(&global, args).await,
        Verb::Top(args) => top::top(&global, args).await,
        Verb::Events(args) => events::events(&global, args).await,
        Verb::Node => node::node(&global).await,
        Verb::Doctor(args) => doctor::doctor(&global, args).await,
        Verb::Version => version::version(&global).await,
        Verb::Completion { shell } => completion::completion(shell),
    }
}
