//! The agent's certificate: asked for by a CertificateSigningRequest, asked for anew well before it ends.
//!
//! The key is made here, stays in memory, and is another one each time. See
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dormouse_tls::{Listener, ListenerError, Name, Request, RequestError, inspect};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Who signs.
const SIGNER: &str = "dormouse.dev/agent";

/// What the certificate is for.
const USAGES: [&str; 2] = ["digital signature", "server auth"];

/// How long an answer is waited for, and how often it is looked for.
const ANSWER: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);

/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often the authorities' file and the certificate's end are looked at.
const WATCH: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("cannot {verb} the CertificateSigningRequest: {source}")]
    Api {
        verb: &'static str,
        source: Box<kube::Error>,
    },
    #[error("the CertificateSigningRequest {name} was refused: {message}; see the controller's log")]
    Refused { name: String, message: String },
    #[error("the CertificateSigningRequest {name} was not signed within 60 s; is the controller running?")]
    Unanswered { name: String },
    #[error("the certificate that was signed cannot be read")]
    Unreadable,
    #[error("cannot read {} (cluster.authorities_file): {source}", path.display())]
    Authorities { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Listener(#[from] ListenerError),
}

/// What the controller is served with.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) listener: Listener,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    certificate: String,
    authorities: String,
}

/// The first certificate, however long it takes.
pub(super) async fn first(client: &Client, name: &Name, authorities_file: &Path) -> Tls {
    let mut wait = RETRY.0;
    let mut told = false;
    loop {
        match try_first(client, name, authorities_file).await {
            Ok(tls) => return tls,
            // The controller writes it, and kubelet brings it some time later. To look for it costs nobody anything.
            Err(error @ CertificateError::Authorities { .. }) => {
                if !told {
                    tracing::warn!("no certificate yet, so the controller cannot be served: {error}");
                }
                told = true;
                tokio::time::sleep(RETRY.0).await;
                continue;
            }
            Err(error) => tracing::warn!("no certificate yet, so the controller cannot be served: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn try_first(client: &Client, name: &Name, authorities_file: &Path) -> Result<Tls, CertificateError> {
    let authorities = read(authorities_file)?;
    let (certificate, key) = ask(client, name).await?;
    let listener = Listener::new(&certificate, &key, &authorities, Name::of_controller())?;
    let held = Held {
        certificate,
        authorities,
    };
    Ok(Tls {
        listener,
        held: Arc::new(Mutex::new(held)),
    })
}

/// Keeps certificate and authorities new until `stop`.
pub(super) async fn renew(
    client: Client,
    name: Name,
    authorities_file: PathBuf,
    tls: Tls,
    stop: CancellationToken,
) {
    let mut wait = RETRY.0;
    let mut pause = WATCH;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        match refresh(&client, &name, &authorities_file, &tls).await {
            Ok(()) => (wait, pause) = (RETRY.0, WATCH),
            Err(error) => {
                tracing::warn!(
                    "the certificate or the authorities could not be renewed, the old ones are still used: {error}"
                );
                (pause, wait) = (wait, (wait * 2).min(RETRY.1));
            }
        }
    }
}

async fn refresh(
    client: &Client,
    name: &Name,
    authorities_file: &Path,
    tls: &Tls,
) -> Result<(), CertificateError> {
    let authorities = read(authorities_file)?;
    let (due, changed) = {
        let held = tls.held.lock().unwrap_or_else(PoisonError::into_inner);
        let due = inspect(&held.certificate).is_none_or(|seen| seen.renew_at() <= SystemTime::now());
        (due, held.authorities != authorities)
    };
    // With other authorities the controller may soon not know this one's any more.
    if due || changed {
        let (certificate, key) = ask(client, name).await?;
        tls.listener
            .replace(&certificate, &key, &authorities, Name::of_controller())?;
        tracing::info!(due, changed, "a new certificate is in use");
        *tls.held.lock().unwrap_or_else(PoisonError::into_inner) = Held {
            certificate,
            authorities,
        };
    }
    Ok(())
}

fn read(authorities_file: &Path) -> Result<String, CertificateError> {
    std::fs::read_to_string(authorities_file).map_err(|source| CertificateError::Authorities {
        path: authorities_file.to_owned(),
        source,
    })
}

/// A certificate and its key.
async fn ask(client: &Client, name: &Name) -> Result<(String, String), CertificateError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let failed = |verb| {
        move |source: kube::Error| CertificateError::Api {
            verb,
            source: Box::new(source),
        }
    };
    let Request { request, key } = Request::new(name)?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("dormouse-agent-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: i32::try_from(dormouse_tls::LIFETIME.as_secs()).ok(),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = api
        .create(&PostParams::default(), &object)
        .await
        .map_err(failed("create"))?;
    let object_name = made.metadata.name.unwrap_or_default();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < ANSWER {
        tokio::time::sleep(LOOK).await;
        let status = api
            .get(&object_name)
            .await
            .map_err(failed("get"))?
            .status
            .unwrap_or_default();
        if let Some(ByteString(certificate)) = status.certificate {
            let certificate = String::from_utf8(certificate).map_err(|_| CertificateError::Unreadable)?;
            return Ok((certificate, key));
        }
        let refused = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| {
                condition.status == "True" && matches!(condition.type_.as_str(), "Denied" | "Failed")
            });
        if let Some(condition) = refused {
            return Err(CertificateError::Refused {
                name: object_name,
                message: condition.message.unwrap_or_default(),
            });
        }
    }
    Err(CertificateError::Unanswered { name: object_name })
}
