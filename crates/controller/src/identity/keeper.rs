//! Keeping the authority.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use dormouse_tls::{Authority, AuthorityError, Dialer, DialerError, Inspected, inspect};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::rollover::{Kept, Pair, advance};
use crate::agents::Agents;

/// Name of the Secret, and of the ConfigMap.
const SECRET: &str = "dormouse-authority";
const CONFIG_MAP: &str = "dormouse-authorities";

/// Keys in them.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_SINCE: &str = "next.since";
const PREVIOUS: &str = "previous.crt";
const BUNDLE: &str = "ca.crt";

/// How often a look is taken.
const LOOK: Duration = Duration::from_secs(60);

/// How long a failure is let rest.
const REST: Duration = Duration::from_secs(2);

/// Why the authority is not there.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// It cannot be made or used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The controller's own certificate cannot be used.
    #[error(transparent)]
    Dialer(#[from] DialerError),
}

/// Where the authority is kept.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
}

impl Keeper {
    /// In a namespace.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
        }
    }

    /// What is kept, brought up to date, and told to everybody.
    async fn look(&self, now: SystemTime) -> Result<Kept, KeeperError> {
        let failed = |step| move |source| KeeperError::Api { step, source };
        let there = self
            .secrets
            .get_opt(SECRET)
            .await
            .map_err(failed("get the authority's Secret"))?;
        let mut kept = there.as_ref().map(from_secret).unwrap_or_default();
        if let Some(new) = advance(&kept, now)? {
            let secret = to_secret(&new, there.as_ref());
            let params = PostParams::default();
            // Whoever else has changed it meanwhile has won: the look is taken again.
            let written = match &there {
                None => self.secrets.create(&params, &secret).await,
                Some(_) => self.secrets.replace(SECRET, &params, &secret).await,
            };
            written.map_err(failed("write the authority's Secret"))?;
            info!("the authority that vouches for controller and agents has changed");
            kept = new;
        }
        let told = self
            .config_maps
            .get_opt(CONFIG_MAP)
            .await
            .map_err(failed("get the authorities' ConfigMap"))?;
        let bundle = kept.bundle();
        let is_told = told
            .and_then(|map| map.data)
            .and_then(|mut data| data.remove(BUNDLE))
            == Some(bundle.clone());
        if !is_told {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP}, "data": {BUNDLE: bundle},
            });
            let params = PatchParams::apply("dormouse-controller").force();
            let written = self
                .config_maps
                .patch(CONFIG_MAP, &params, &Patch::Apply(map))
                .await;
            written.map_err(failed("write the authorities' ConfigMap"))?;
        }
        Ok(kept)
    }
}

/// Keeps the authority, and the controller's own certificate, which counts for `lifetime`, until `stop`; `signs` has who
/// signs.
pub async fn keep(
    keeper: Keeper,
    agents: Agents,
    signs: watch::Sender<Option<Pair>>,
    lifetime: Duration,
    stop: CancellationToken,
) {
    let mut own: Option<(String, String)> = None;
    loop {
        let wait = match keep_once(&keeper, &agents, &signs, &mut own, lifetime).await {
            Ok(()) => next_look(own.as_ref().and_then(|(own, _)| inspect(own)), SystemTime::now()),
            Err(error) => {
                warn!(%error, "the authority that vouches for controller and agents is not there");
                REST
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// How long to wait for the next look: no longer than the controller's own certificate needs to be replaced.
fn next_look(own: Option<Inspected>, now: SystemTime) -> Duration {
    let due = own.map_or(LOOK, |own| own.renew_at().duration_since(now).unwrap_or_default());
    due.clamp(REST, LOOK)
}

async fn keep_once(
    keeper: &Keeper,
    agents: &Agents,
    signs: &watch::Sender<Option<Pair>>,
    own: &mut Option<(String, String)>,
    lifetime: Duration,
) -> Result<(), KeeperError> {
    let now = SystemTime::now();
    let kept = keeper.look(now).await?;
    let Some(current) = &kept.current else {
        return Ok(());
    };
    signs.send_if_modified(|signs| {
        let news = signs.as_ref() != Some(current);
        if news {
            *signs = Some(current.clone());
        }
        news
    });
    let bundle = kept.bundle();
    let is_good = own.as_ref().is_some_and(|(certificate, believed)| {
        *believed == bundle && inspect(certificate).is_some_and(|seen| seen.renew_at() > now)
    });
    if !is_good {
        let issued = Authority::load(&current.certificate, &current.key)?.issue_controller(now, lifetime)?;
        agents.call_with(Dialer::new(&issued.certificate, &issued.key, &bundle)?);
        *own = Some((issued.certificate, bundle));
    }
    Ok(())
}

fn from_secret(secret: &Secret) -> Kept {
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone())
            .ok()
            .filter(|text| !text.is_empty())
    };
    let pair = |certificate: &str, key: &str| {
        Some(Pair {
            certificate: text(certificate)?,
            key: text(key)?,
        })
    };
    let since = text(NEXT_SINCE).and_then(|text| text.parse().ok());
    Kept {
        current: pair(CERTIFICATE, KEY),
        next: pair(NEXT_CERTIFICATE, NEXT_KEY).zip(since),
        previous: text(PREVIOUS),
    }
}

fn to_secret(kept: &Kept, there: Option<&Secret>) -> Secret {
    let mut data = BTreeMap::new();
    let mut put = |key: &str, value: &str| data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    if let Some(pair) = &kept.current {
        put(CERTIFICATE, &pair.certificate);
        put(KEY, &pair.key);
    }
    if let Some((pair, since)) = &kept.next {
        put(NEXT_CERTIFICATE, &pair.certificate);
        put(NEXT_KEY, &pair.key);
        put(NEXT_SINCE, &since.to_string());
    }
    if let Some(previous) = &kept.previous {
        put(PREVIOUS, previous);
    }
    Secret {
        metadata: there.map_or_else(
            || ObjectMeta {
                name: Some(SECRET.to_owned()),
                ..ObjectMeta::default()
            },
            |there| there.metadata.clone(),
        ),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_counts_for_a_short_time_is_looked_at_in_time() {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        for (lifetime, least, most) in [
            (dormouse_tls::LIFETIME, LOOK, LOOK),
            (
                dormouse_tls::LEAST_LIFETIME,
                Duration::from_secs(5),
                Duration::from_secs(10),
            ),
        ] {
            let own = authority.issue_controller(now, lifetime).unwrap();
            let wait = next_look(inspect(&own.certificate), now);
            assert!(least <= wait && wait <= most, "{wait:?} of {lifetime:?}");
        }
        assert_eq!(next_look(None, now), LOOK);
    }
}
