//! Signing what agents ask for.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use dormouse_tls::{Authority, Name, NameError};
use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::rollover::Pair;
use crate::objects;

/// Who signs.
pub const SIGNER: &str = "dormouse.dev/agent";

/// What certificates of agents are for, and nothing else.
const USAGES: [&str; 2] = ["digital signature", "server auth"];

/// How many answered requests are remembered.
const MOST_ANSWERED: usize = 10_000;

/// Which node a ServiceAccount's token was made for (KEP-4193).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// Why a request is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody else asks.
    #[error("{asker} is not the agents' ServiceAccount {wanted}")]
    Stranger {
        /// Who asks.
        asker: String,
        /// Who may.
        wanted: String,
    },
    /// It is not known from which node.
    #[error("the asker's token was not made for a pod on a node")]
    NoNode,
    /// It is to be for something else.
    #[error("the certificate is to be for {0}, and not for \"digital signature\" and \"server auth\"")]
    Usages(String),
    /// The node's name cannot stand in a certificate.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The agent that asks, if it is one.
///
/// # Errors
///
/// If it is none, or asks for more than it may have.
pub fn judge(request: &CertificateSigningRequest, account: &str) -> Result<Name, Refusal> {
    let spec = &request.spec;
    let asker = spec.username.clone().unwrap_or_default();
    if asker != account {
        return Err(Refusal::Stranger {
            asker,
            wanted: account.to_owned(),
        });
    }
    let mut usages = spec.usages.clone().unwrap_or_default();
    usages.sort_unstable();
    if usages != USAGES {
        return Err(Refusal::Usages(usages.join(", ")));
    }
    let nodes = spec.extra.as_ref().and_then(|extra| extra.get(NODE_CLAIM));
    match nodes.map(Vec::as_slice) {
        Some([node]) => Ok(Name::of_node(node)?),
        _ => Err(Refusal::NoNode),
    }
}

/// Why nothing was signed.
#[derive(Debug, Error)]
enum SignError {
    #[error("failed to {step}: {source}")]
    Api { step: &'static str, source: kube::Error },
    #[error(transparent)]
    Authority(#[from] dormouse_tls::AuthorityError),
}

/// Signs until `stop`, for the agents' ServiceAccount `account`; what is signed counts for `lifetime`.
pub async fn sign(
    client: Client,
    account: String,
    mut signs: watch::Receiver<Option<Pair>>,
    lifetime: Duration,
    stop: CancellationToken,
) {
    // Nothing can be signed before; what was asked meanwhile is seen then.
    let ready = signs.wait_for(Option::is_some);
    tokio::select! {
        ready = ready => if ready.is_err() { return },
        () = stop.cancelled() => return,
    }
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let requests = watcher(api.clone(), config).default_backoff().applied_objects();
    pin_mut!(requests);
    // An approval of our own comes back as news of a request that is approved and not signed.
    let mut answered = HashSet::new();
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = stop.cancelled() => return,
        };
        let request = match request {
            Some(Ok(request)) => request,
            Some(Err(error)) => {
                warn!(%error, "certificate requests cannot be watched");
                continue;
            }
            None => return,
        };
        let pair = signs.borrow().clone();
        let uid = objects::uid(&request.metadata).to_owned();
        let Some(pair) = pair.filter(|_| is_open(&request) && !answered.contains(&uid)) else {
            continue;
        };
        if let Err(error) = answer(&api, &request, &account, &pair, lifetime).await {
            warn!(request = objects::name(&request.metadata), %error, "a certificate request was not answered");
        } else {
            // Nobody asks as often; the API server forgets requests after an hour.
            if answered.len() >= MOST_ANSWERED {
                answered.clear();
            }
            answered.insert(uid);
        }
    }
}

/// Whether nobody has answered it.
fn is_open(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().is_none_or(|status| {
        status.certificate.is_none()
            && status
                .conditions
                .as_deref()
                .unwrap_or_default()
                .iter()
                // Approved and not signed: whoever was about to has ended.
                .all(|condition| condition.type_ == "Approved")
    })
}

async fn answer(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    account: &str,
    pair: &Pair,
    lifetime: Duration,
) -> Result<(), SignError> {
    let name = objects::name(&request.metadata);
    let failed = |step| move |source| SignError::Api { step, source };
    let params = PatchParams::default();
    let say = |type_: &str, reason: &str, message: String| {
        let now = Timestamp::now();
        json!({"status": {"conditions": [{
            "type": type_, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now,
        }]}})
    };
    let ByteString(asked) = &request.spec.request;
    let asked = String::from_utf8_lossy(asked);
    let granted = judge(request, account)
        .map_err(|refusal| refusal.to_string())
        .and_then(|agent| {
            let authority =
                Authority::load(&pair.certificate, &pair.key).map_err(|error| error.to_string())?;
            let certificate = authority
                .grant(&asked, &agent, SystemTime::now(), lifetime)
                .map_err(|error| error.to_string())?;
            Ok((agent, certificate))
        });
    match granted {
        Err(why) => {
            let denied = say("Denied", "Refused", why.clone());
            let patched = api
                .patch_subresource("approval", name, &params, &Patch::Merge(denied))
                .await;
            patched.map_err(failed("deny the request"))?;
            warn!(request = name, why, "a certificate request was refused");
        }
        Ok((agent, certificate)) => {
            let approved = say("Approved", "AgentOfItsNode", format!("it is {agent}"));
            let patched = api
                .patch_subresource("approval", name, &params, &Patch::Merge(approved))
                .await;
            patched.map_err(failed("approve the request"))?;
            let signed = json!({"status": {"certificate": ByteString(certificate.into_bytes())}});
            let patched = api
                .patch_subresource("status", name, &params, &Patch::Merge(signed))
                .await;
            patched.map_err(failed("sign the request"))?;
            info!(request = name, %agent, "a certificate was signed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:ns:dormouse-agent";

    fn request(user: &str, usages: &[&str], nodes: &[&str]) -> CertificateSigningRequest {
        let extra = BTreeMap::from([(
            NODE_CLAIM.to_owned(),
            nodes.iter().map(|&node| node.to_owned()).collect(),
        )]);
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                username: Some(user.to_owned()),
                usages: Some(usages.iter().map(|&usage| usage.to_owned()).collect()),
                extra: Some(extra),
                signer_name: SIGNER.to_owned(),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn only_the_agent_of_the_node_gets_a_certificate_and_only_for_serving() {
        let good = ["server auth", "digital signature"];
        let judged =
            |user: &str, usages: &[&str], nodes: &[&str]| judge(&request(user, usages, nodes), ACCOUNT);
        assert_eq!(
            judged(ACCOUNT, &good, &["one"]),
            Ok(Name::of_node("one").unwrap())
        );
        let other = judged("system:serviceaccount:ns:default", &good, &["one"]);
        assert!(matches!(other, Err(Refusal::Stranger { .. })));
        for usages in [
            &["client auth"][..],
            &["digital signature", "server auth", "client auth"],
            &[],
        ] {
            assert!(matches!(
                judged(ACCOUNT, usages, &["one"]),
                Err(Refusal::Usages(_))
            ));
        }
        assert_eq!(judged(ACCOUNT, &good, &[]), Err(Refusal::NoNode));
        assert_eq!(judged(ACCOUNT, &good, &["one", "two"]), Err(Refusal::NoNode));
        assert!(matches!(judged(ACCOUNT, &good, &["a b"]), Err(Refusal::Name(_))));
        let mut without = request(ACCOUNT, &good, &["one"]);
        without.spec.extra = None;
        assert_eq!(judge(&without, ACCOUNT), Err(Refusal::NoNode));
    }
}
