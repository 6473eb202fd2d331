//! Looking into a certificate.

use std::time::{Duration, SystemTime};

use x509_parser::pem::parse_x509_pem;

/// When a certificate begins and ceases to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspected {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Inspected {
    /// When it has to be replaced: after two thirds of its time, so that a third is left for trying.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + whole * 2 / 3
    }
}

/// Looks into the first certificate of a PEM text; `None` if there is none that can be read.
#[must_use]
pub fn inspect(pem: &str) -> Option<Inspected> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let at = |seconds: i64| {
        let seconds = u64::try_from(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let validity = certificate.validity();
    Some(Inspected {
        not_before: at(validity.not_before.timestamp())?,
        not_after: at(validity.not_after.timestamp())?,
    })
}
