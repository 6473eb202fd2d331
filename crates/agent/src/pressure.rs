//! Watches the node's memory, and gives shells up and hibernates sleepers where it runs short.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_core::{Input, Moment, Reason, Rung, Sleeper, next_shell_to_give_up, next_to_hibernate};
use tokio_util::sync::CancellationToken;

use crate::actor::Message;
use crate::config::PressureConfig;
use crate::pods::{Pods, ago};
use crate::snapshots::Snapshots;
use crate::view::PodView;
use crate::{clock, memory};

/// How often a pod is asked again that did not go down.
const AGAIN: Duration = Duration::from_secs(60);

/// How long one pod is given before the next one is looked for.
const STEP: Duration = Duration::from_secs(10);

/// How long a wake waits for the room that shells give up.
const ROOM: Duration = Duration::from_secs(5);

/// Watches until `stop`; at once where it is switched off.
pub(crate) async fn watch(config: PressureConfig, pods: Pods, snapshots: Snapshots, stop: CancellationToken) {
    if config.available_percent == 0 {
        return;
    }
    let mut asked: HashMap<String, Moment> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(config.period) => {}
            () = stop.cancelled() => return,
        }
        // One after the other: each may be enough.
        while !stop.is_cancelled() {
            let short = is_short(config.available_percent);
            // Then saves that are on their way are in a hurry, too.
            snapshots.memory_is_short(short);
            if !short {
                break;
            }
            asked.retain(|_, at| clock::now().since(*at) < AGAIN);
            if !relieve(&pods, &mut asked).await {
                break;
            }
        }
    }
}

/// Whether less than this share of RAM is available, in percent.
pub(crate) fn is_short(percent: u8) -> bool {
    match (memory::available(), memory::total()) {
        (Ok(available), Ok(total)) => available < total / 100 * u64::from(percent),
        // Nothing is known, and nothing is done.
        _ => false,
    }
}

/// Has one shell given up or, where there is none, one sleeper hibernated. `false` if there is none left to ask.
async fn relieve(pods: &Pods, asked: &mut HashMap<String, Moment>) -> bool {
    let views = pods.views();
    let candidates = || {
        let rest = views.iter().filter(|view| !asked.contains_key(&view.sandbox_id));
        rest.map(|view| sleeper(view))
    };
    let (id, what) = match (
        next_shell_to_give_up(candidates()),
        next_to_hibernate(candidates()),
    ) {
        (Some(id), _) => (id.to_owned(), "a shell is given up"),
        (None, Some(id)) => (id.to_owned(), "a sleeper is hibernated"),
        (None, None) => return false,
    };
    let Some(handle) = pods.get(&id) else { return true };
    tracing::info!(pod = %handle.view().name, sandbox = %id, "the node's memory runs short; {what}");
    asked.insert(id, clock::now());
    if handle.tell(Message::Input(Input::Pressure)).await.is_err() {
        return true;
    }
    let has_let_go = |view: &PodView| view.rung >= Rung::Hibernated && view.shell.is_none();
    // One that does not go down says why by itself.
    let _ = tokio::time::timeout(STEP, handle.until(has_let_go)).await;
    true
}

/// The room that other pods' shells can give up for a wake.
pub(crate) struct Room<'a> {
    pods: &'a Pods,
    /// The pod sandbox that is to wake.
    waking: &'a str,
    asked: HashSet<String>,
    until: tokio::time::Instant,
}

impl<'a> Room<'a> {
    /// Asks nobody yet.
    pub(crate) fn new(pods: &'a Pods, waking: &'a str) -> Self {
        Self {
            pods,
            waking,
            asked: HashSet::new(),
            until: tokio::time::Instant::now() + ROOM,
        }
    }

    /// Has one more shell given up. `false` if there is none left to ask, or it took too long.
    pub(crate) async fn make(&mut self) -> bool {
        let views = self.pods.views();
        let others = views
            .iter()
            .filter(|view| view.sandbox_id != self.waking && !self.asked.contains(&view.sandbox_id));
        let Some(id) = next_shell_to_give_up(others.map(sleeper)).map(str::to_owned) else {
            return false;
        };
        let handle = self.pods.get(&id);
        self.asked.insert(id);
        // A pod that is gone has given up its shell, too.
        let Some(handle) = handle else { return true };
        tracing::info!(pod = %handle.view().name, sandbox = %handle.view().sandbox_id, "a wake lacks memory; a shell is given up");
        let given_up = async {
            let input = Input::GiveUpShell(Reason::MemoryPressure);
            if handle.tell(Message::Input(input)).await.is_ok() {
                handle.until(|view| view.shell.is_none()).await;
            }
        };
        tokio::time::timeout_at(self.until, given_up).await.is_ok()
    }
}

fn sleeper(view: &Arc<PodView>) -> Sleeper<'_> {
    let can = |what: &str| {
        view.capabilities
            .iter()
            .any(|(name, able)| *name == what && able.is_ok())
    };
    Sleeper {
        id: &view.sandbox_id,
        rung: view.rung,
        idle: ago(view.idle_since),
        managed: view.managed,
        can_doze: can("doze"),
        can_hibernate: can("hibernate"),
        moving: view.moving_to.is_some(),
        waking: view.waking,
        shell: view.shell.is_some(),
    }
}
