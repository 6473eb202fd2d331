//! What is waited for before the sandbox of a pod is made that is to be filled: leave to do so.
//!
//! A pod sandbox that cannot be created is tried again by kubelet, and costs nothing meanwhile. So this is where a pod
//! waits whose leave is late, and where one is held back whose memory must not be lost (fallback `Hold` or `Fail`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dormouse_core::{BirthWish, Fallback, Reason, Rung};
use dormouse_sentry::file::read_bounded;
use dormouse_sentry::{Grant, PodUid, RunDir};
use serde::Deserialize;

use super::refused;
use crate::outcome::Failure;
use crate::verb::Context;

/// How long a grant is waited for: whoever creates the pod may issue it just behind.
const GRANT: Duration = Duration::from_secs(5);

/// How often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long an agent is waited for that has not come up yet since the node's start.
const AGENT: Duration = Duration::from_secs(30);

/// How long it may take to notice that a sandbox is lost.
const NOTICED: Duration = Duration::from_secs(2);

/// The largest entry of the agent's journal, in bytes.
const ENTRY: usize = 64 << 10;

/// What is of interest in the agent's journal.
#[derive(Deserialize)]
struct Entry {
    rung: Rung,
    moving_to: Option<Rung>,
    snapshot: Option<String>,
}

/// Before a pod sandbox is made.
pub(in crate::verb) fn before_sandbox(
    context: &Context<'_>,
    dir: &RunDir,
    uid: &PodUid,
    annotations: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let grant = || Grant::read(dir, uid).ok().flatten();
    // One that was used is of an earlier sandbox: it says nothing of what the pod has become since.
    let granted = || grant().is_some_and(|grant| !grant.used);
    if granted() {
        return Ok(());
    }
    fail::fail_point!("runsc::fill::awaited");
    // One that cannot be understood is refused later, with words on what is wrong.
    let wish = BirthWish::from_annotations(annotations).unwrap_or_default();
    let message = if let Some(rung) = slept(context, uid) {
        let began = Instant::now();
        let may_be_lost = || rung != Rung::Hibernated && !Grant::is_withheld(dir, uid);
        let over = |waited: Duration| {
            let noticed = may_be_lost() || waited >= NOTICED;
            waited >= AGENT || Grant::are_issued(dir) && noticed
        };
        while !granted() && !over(began.elapsed()) {
            std::thread::sleep(LOOK_AGAIN);
        }
        if granted() {
            return Ok(());
        }
        // Of a pod that only dozed nothing is left but what `durable` saved, and the agent knows of that.
        let lost = Grant::are_issued(dir) && may_be_lost();
        (!lost).then_some(
            "it was hibernated, and the agent gives no leave to restore it; see its log, or is it not up?",
        )
    } else if wish.snapshot.is_some() && grant().is_none() {
        let began = Instant::now();
        while !granted() && began.elapsed() < GRANT {
            std::thread::sleep(LOOK_AGAIN);
        }
        (!granted()).then_some("it was not granted for this pod")
    } else {
        None
    };
    match message {
        Some(message) if wish.fallback != Fallback::ColdStart => {
            Err(refused(&wish, Reason::RestoreNotGranted, message))
        }
        _ => Ok(()),
    }
}

/// On which rung the pod slept when the agent last noted it, if it has a snapshot, or may have: one that was being hibernated
/// when the node went down.
fn slept(context: &Context<'_>, uid: &PodUid) -> Option<Rung> {
    let path = context
        .config
        .state_dir
        .join("pods")
        .join(uid.as_str())
        .join("state.json");
    let entry: Entry = serde_json::from_slice(&read_bounded(&path, ENTRY).ok()?).ok()?;
    let slept = entry.snapshot.is_some() && entry.rung >= Rung::Dozing;
    (slept || entry.moving_to == Some(Rung::Hibernated)).then_some(entry.rung)
}
