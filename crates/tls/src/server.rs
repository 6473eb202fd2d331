//! The agent's end.

use std::fmt;
use std::io;
use std::sync::{Arc, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::name::Name;

/// Why a certificate cannot be served with.
#[derive(Debug, Error)]
pub enum ListenerError {
    /// No PEM.
    #[error("the {what} cannot be read: {source}")]
    Pem {
        /// Certificate, key or bundle.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The bundle vouches for nobody.
    #[error("the bundle of authorities cannot be used: {0}")]
    Bundle(#[from] VerifierBuilderError),
    /// Certificate and key do not fit.
    #[error("certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Takes in callers that are who they have to be. What it serves with can be replaced while it does.
#[derive(Clone)]
pub struct Listener(Arc<RwLock<Arc<ServerConfig>>>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Serves with a certificate and its key, to `caller` alone, for whom one of the bundle's authorities vouches. All in
    /// PEM.
    ///
    /// # Errors
    ///
    /// If they cannot be used.
    pub fn new(certificate: &str, key: &str, bundle: &str, caller: Name) -> Result<Self, ListenerError> {
        Ok(Self(Arc::new(RwLock::new(config(
            certificate,
            key,
            bundle,
            caller,
        )?))))
    }

    /// Replaces what it serves with, for those that call from now on.
    ///
    /// # Errors
    ///
    /// If they cannot be used; the old ones stay.
    pub fn replace(
        &self,
        certificate: &str,
        key: &str,
        bundle: &str,
        caller: Name,
    ) -> Result<(), ListenerError> {
        let new = config(certificate, key, bundle, caller)?;
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        Ok(())
    }

    /// Takes a caller in.
    ///
    /// # Errors
    ///
    /// If he is not who he has to be.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let config = Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn config(
    certificate: &str,
    key: &str,
    bundle: &str,
    caller: Name,
) -> Result<Arc<ServerConfig>, ListenerError> {
    let roots = Arc::new(roots(bundle).map_err(|source| ListenerError::Pem {
        what: "bundle",
        source,
    })?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let verifier = Arc::new(Only { chain, caller });
    let pem = |what| move |source| ListenerError::Pem { what, source };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates(certificate).map_err(pem("certificate"))?,
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem("key"))?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect()
}

pub(crate) fn roots(pem: &str) -> Result<RootCertStore, rustls::pki_types::pem::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(pem)?);
    Ok(roots)
}

/// Verifies as the web does, and then that it is the one caller.
#[derive(Debug)]
struct Only {
    chain: Arc<dyn ClientCertVerifier>,
    caller: Name,
}

impl ClientCertVerifier for Only {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let stranger = rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForName);
        let certificate = webpki::EndEntityCert::try_from(end_entity).map_err(|_| stranger.clone())?;
        certificate
            .verify_is_valid_for_subject_name(&self.caller.server_name())
            .map_err(|_| stranger)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
