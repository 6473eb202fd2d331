//! `dormouse policy`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_core::{Fallback, Policy, ResumePolicy, ShellPolicy};
use dormouse_rpc::v1;

use super::get::one_pod;
use super::orders::{Answer, to_all};
use crate::args::{
    FallbackFlag, Global, OrderArgs, PolicyArgs, PolicyFlags, PolicyVerb, ResumeFlag, ShellFlag,
};
use crate::error::CliError;
use crate::output::print;
use crate::view::PolicyView;

pub(super) async fn policy(global: &Global, args: PolicyArgs) -> Result<ExitCode, CliError> {
    match args.verb {
        PolicyVerb::Get(args) => {
            let pod = one_pod(global, &args.pod).await?;
            let policy = PolicyView::of(&pod);
            print(global.output, &policy, |_| {
                policy
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), PolicyView::text)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyVerb::Set { pods, policy } => set(global, pods, &policy).await,
    }
}

async fn set(global: &Global, pods: Vec<String>, flags: &PolicyFlags) -> Result<ExitCode, CliError> {
    let policy = v1::Policy::from(&from_flags(flags)?);
    let policy_generation = next_generation();
    to_all(global, by_name(pods), None, |agent, pod, operation_id| {
        let policy = policy.clone();
        async move {
            let request = v1::SetPolicyRequest {
                pod: Some(pod),
                policy: Some(policy),
                policy_generation,
                operation_id,
            };
            let answer = agent
                .order(request, |mut client, request| async move {
                    client.set_policy(request).await
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

/// The policy that the flags say.
pub(super) fn from_flags(flags: &PolicyFlags) -> Result<Policy, CliError> {
    let policy = Policy {
        idle_timeout: flags.idle_timeout,
        freeze_after: flags.freeze_after,
        doze_after: flags.doze_after,
        hibernate_after: flags.hibernate_after,
        durable: flags.durable,
        fallback: match flags.fallback {
            None | Some(FallbackFlag::Hold) => Fallback::Hold,
            Some(FallbackFlag::Fail) => Fallback::Fail,
            Some(FallbackFlag::ColdStart) => Fallback::ColdStart,
        },
        resume_policy: match flags.resume_policy {
            None | Some(ResumeFlag::OnDemand) => ResumePolicy::OnDemand,
            Some(ResumeFlag::Manual) => ResumePolicy::Manual,
        },
        wake_udp_ports: flags.wake_udp_ports.clone(),
        shell: match flags.shell {
            None | Some(ShellFlag::Never) => ShellPolicy::Never,
            Some(ShellFlag::Always) => ShellPolicy::Always,
            Some(ShellFlag::Predicted) => ShellPolicy::Predicted,
        },
        wake_schedule: flags.wake_schedule.clone(),
    };
    policy.check()?;
    Ok(policy)
}

/// A policy generation for an order by hand: the time in milliseconds, so that a later order wins and none has
/// to ask first which generation is in force.
pub(super) fn next_generation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

pub(super) const fn by_name(pods: Vec<String>) -> OrderArgs {
    OrderArgs {
        pods,
        all: false,
        selector: None,
    }
}
