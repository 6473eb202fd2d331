//! What is said of a pool by events.

use dormouse_api::extensions::SandboxWarmPool;
use jiff::Timestamp;
use kube::Resource;
use kube::runtime::events::EventType;

use super::super::Next;
use super::super::halt::Turn;
use super::super::state::Key;
use super::PoolContext;
use crate::events;

impl PoolContext {
    /// Says what became of its golden snapshots, for which quota it is short of standbys, and that it does not get on, or does
    /// again.
    pub(super) async fn tell(&self, pool: &SandboxWarmPool, planned: &Next, key: &Key, now: Timestamp) {
        for news in &planned.news {
            let type_ = if news.good {
                EventType::Normal
            } else {
                EventType::Warning
            };
            self.say(pool, type_, news.reason, news.note.clone()).await;
        }
        let exceeded = planned.exceeded.as_ref();
        let state = &self.known.state;
        let is_new = state.exceeds(key, exceeded.map(|exceeded| exceeded.reason));
        if let Some(exceeded) = exceeded.filter(|_| is_new) {
            let note = exceeded.message.clone();
            self.say(pool, EventType::Warning, exceeded.reason, note).await;
        }
        match (state.halts(key, planned, now), &planned.halted) {
            (Some(Turn::Halts), Some(why)) => {
                let note = why.to_string();
                self.say(pool, EventType::Warning, "WarmPoolNotProgressing", note)
                    .await;
            }
            (Some(Turn::GetsOn), _) => {
                let note = "Warm pool is progressing again".to_owned();
                self.say(pool, EventType::Normal, "WarmPoolProgressing", note)
                    .await;
            }
            _ => {}
        }
    }

    async fn say(&self, pool: &SandboxWarmPool, type_: EventType, reason: &'static str, note: String) {
        let event = events::event(type_, reason, "Reconciling", note);
        events::publish(&self.recorder, &pool.object_ref(&()), &event).await;
    }
}
