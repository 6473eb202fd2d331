//! The controller's end.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::name::Name;
use crate::server::{certificates, roots};

/// Why a certificate cannot be called with.
#[derive(Debug, Error)]
pub enum DialerError {
    /// No PEM.
    #[error("the {what} cannot be read: {source}")]
    Pem {
        /// Certificate, key or bundle.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Calls agents.
#[derive(Clone)]
pub struct Dialer(Arc<ClientConfig>);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// Calls with a certificate and its key those for whom one of the bundle's authorities vouches. All in PEM.
    ///
    /// # Errors
    ///
    /// If they cannot be used.
    pub fn new(certificate: &str, key: &str, bundle: &str) -> Result<Self, DialerError> {
        let pem = |what| move |source| DialerError::Pem { what, source };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(bundle).map_err(pem("bundle"))?)
            .with_client_auth_cert(
                certificates(certificate).map_err(pem("certificate"))?,
                PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem("key"))?,
            )?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Greets `agent` over a connection.
    ///
    /// # Errors
    ///
    /// If it is somebody else.
    pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        agent: &Name,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsConnector::from(Arc::clone(&self.0))
            .connect(agent.server_name(), stream)
            .await
    }
}
