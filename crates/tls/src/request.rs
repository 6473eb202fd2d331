//! Asking for a certificate.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use thiserror::Error;

use crate::name::Name;

/// A key that never leaves this process, and the request for a certificate of it.
#[derive(Debug)]
pub struct Request {
    /// In PEM.
    pub request: String,
    /// The private key, in PEM.
    pub key: String,
}

/// Why nothing can be asked for.
#[derive(Debug, Error)]
#[error("no key or request can be made: {0}")]
pub struct RequestError(#[from] rcgen::Error);

impl Request {
    /// One about an agent, with a new key.
    ///
    /// # Errors
    ///
    /// If the system gives no random bytes.
    pub fn new(agent: &Name) -> Result<Self, RequestError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![agent.to_string()])?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        Ok(Self {
            request: request.pem()?,
            key: key.serialize_pem(),
        })
    }
}
