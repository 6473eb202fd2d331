//! Who vouches for controller and agents.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use thiserror::Error;
use time::OffsetDateTime;

use crate::name::Name;
use crate::{AUTHORITY_LIFETIME, SKEW};

/// Who vouches for controller and agents: a key and its own certificate.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Why there is no authority, or no certificate of it.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// What was kept of it cannot be used.
    #[error(
        "the authority's certificate or key cannot be used: {0}; delete the Secret to have another one made"
    )]
    Kept(#[source] rcgen::Error),
    /// A request cannot be read.
    #[error("the certificate request cannot be read: {0}")]
    Request(#[source] rcgen::Error),
    /// A request is about somebody else than who made it.
    #[error("the certificate request is about {found}, and not about {wanted} alone")]
    Stranger {
        /// Who may be in it.
        wanted: Name,
        /// Who is.
        found: String,
    },
    /// A certificate cannot be made.
    #[error("no certificate can be made: {0}")]
    Make(#[source] rcgen::Error),
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    ///
    /// If the system gives no random bytes.
    pub fn generate(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)?;
        let mut params = CertificateParams::default();
        // A name of its own, so that certificates of two authorities of one cluster are told apart.
        let born = OffsetDateTime::from(now).unix_timestamp();
        params.distinguished_name = named(&format!("dormouse.dev authority {born}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, AUTHORITY_LIFETIME);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?.pem();
        Self::load(&certificate, &key.serialize_pem())
    }

    /// One that was kept, from PEM.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn load(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key).map_err(AuthorityError::Kept)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, pair).map_err(AuthorityError::Kept)?;
        Ok(Self {
            issuer,
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate for the controller, for calling only, that counts for `lifetime`.
    ///
    /// # Errors
    ///
    /// If the system gives no random bytes.
    pub fn issue_controller(&self, now: SystemTime, lifetime: Duration) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)?;
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let params = params(&Name::of_controller(), purpose, now, lifetime)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(AuthorityError::Make)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Grants an agent's request: a certificate for serving only that counts for `lifetime`, in PEM. Of the request only the
    /// key is taken over, and only if it is about `agent` and nobody else.
    ///
    /// # Errors
    ///
    /// If the request is unsound, or about somebody else.
    pub fn grant(
        &self,
        request: &str,
        agent: &Name,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<String, AuthorityError> {
        // Checks the signature: whoever asks has the key.
        let mut asked =
            CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)?;
        let found: Vec<String> = asked.params.subject_alt_names.iter().map(as_text).collect();
        if found != [agent.as_str()] {
            return Err(AuthorityError::Stranger {
                wanted: agent.clone(),
                found: if found.is_empty() {
                    "nobody".to_owned()
                } else {
                    found.join(", ")
                },
            });
        }
        asked.params = params(agent, ExtendedKeyUsagePurpose::ServerAuth, now, lifetime)?;
        let certificate = asked.signed_by(&self.issuer).map_err(AuthorityError::Make)?;
        Ok(certificate.pem())
    }
}

fn params(
    name: &Name,
    purpose: ExtendedKeyUsagePurpose,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(vec![name.to_string()]).map_err(AuthorityError::Make)?;
    params.distinguished_name = named(name.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, lifetime);
    Ok(params)
}

/// The common name is for people; it is cut at the 64 characters that X.509 has for it.
fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    distinguished
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    // A short one reaches less far back: two thirds of its time must not be over when it is made.
    params.not_before = OffsetDateTime::from(now - SKEW.min(lifetime));
    params.not_after = OffsetDateTime::from(now + lifetime);
}

fn as_text(name: &SanType) -> String {
    match name {
        SanType::DnsName(name) => name.to_string(),
        other => format!("{other:?}"),
    }
}
