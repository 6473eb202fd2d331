//! A client of the pods: requests, orders, and how long they take.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_rpc::v1::Outcome;
use dormouse_testkit::host::command;
use dormouse_testkit::http::{self, Answer};
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, Stack};
use serde_json::Value;

use crate::samples::{Taken, ms};

/// Nothing here takes longer unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a woken guest is left alone after its answer, before it does something else or sleeps again.
pub(crate) const AWAKE: Duration = Duration::from_millis(150);

/// Where a pod's guest listens.
pub(crate) fn address(pod: &Pod) -> SocketAddr {
    (pod.ip, 8080).into()
}

/// Asks the guest; its answer has to be a good one.
pub(crate) async fn get(pod: &Pod, path: &str) -> Result<Answer> {
    let answer = http::get(address(pod), path, LIMIT).await?;
    ensure!(
        answer.status == 200,
        "{path} of pod {}: status {}: {}",
        pod.name,
        answer.status,
        answer.body
    );
    Ok(answer)
}

/// Asks the guest for JSON.
pub(crate) async fn json(pod: &Pod, path: &str) -> Result<Value> {
    get(pod, path).await?.json()
}

/// What a client sees: connect, request, answer.
pub(crate) async fn packet(pod: &Pod, path: &str) -> Result<Taken> {
    Ok(Taken::of(client_parts(&get(pod, path).await?)))
}

/// A wake order, and then an answer.
pub(crate) async fn order(rig: &Rig, pod: &Pod, path: &str) -> Result<Taken> {
    let began = Instant::now();
    let outcome = rig
        .wake(pod)
        .await
        .with_context(|| format!("wake pod {}", pod.name))?;
    let replied = ms(began.elapsed());
    ensure!(outcome.moved, "pod {} was awake before it was woken", pod.name);
    let mut parts = outcome_parts(&outcome);
    let inside: f64 = parts.iter().map(|(_, value)| value).sum();
    parts.push(("call".into(), replied - inside));
    parts.extend(client_parts(&get(pod, path).await?));
    Ok(Taken::of(parts))
}

/// The phases of an order's outcome, in milliseconds.
pub(crate) fn outcome_parts(outcome: &Outcome) -> Vec<(String, f64)> {
    outcome
        .phases
        .iter()
        .map(|phase| {
            let took = phase
                .took
                .and_then(|took| Duration::try_from(took).ok())
                .unwrap_or_default();
            (phase.name.clone(), ms(took))
        })
        .collect()
}

fn client_parts(answer: &Answer) -> Vec<(String, f64)> {
    vec![
        ("connect".into(), ms(answer.connected)),
        (
            "first byte".into(),
            ms(answer.first_byte.saturating_sub(answer.connected)),
        ),
        ("rest".into(), ms(answer.total.saturating_sub(answer.first_byte))),
    ]
}

/// Makes this machine forget the pods' hardware addresses.
pub(crate) fn forget_neighbours(stack: &Stack) -> Result<()> {
    let (bridge, _) = stack.bridge();
    command::capture(Command::new("ip").args(["neigh", "flush", "dev", &bridge])).map(drop)
}
