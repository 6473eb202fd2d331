//! How one authority takes over from another.
//!
//! The next one is made and told to everybody well before it is used, and the one before is believed until what it has
//! signed has ended: at no moment does one end show a certificate that the other cannot know.

use std::time::{Duration, SystemTime};

use dormouse_tls::{Authority, AuthorityError, LIFETIME, inspect};

/// How long the next authority is known to everybody before it is used. A ConfigMap reaches a running pod within two
/// minutes or so.
const KNOWN_FIRST: Duration = Duration::from_secs(900);

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Who signs.
    pub current: Option<Pair>,
    /// Who will, and since when that is known, in seconds since 1970.
    pub next: Option<(Pair, u64)>,
    /// Who did: its certificate.
    pub previous: Option<String>,
}

impl Kept {
    /// The certificates of all that are to be believed, in PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        let current = self.current.as_ref().map(|pair| pair.certificate.as_str());
        let next = self.next.as_ref().map(|(pair, _)| pair.certificate.as_str());
        [current, next, self.previous.as_deref()]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// What is to be kept instead; `None` if it is as it should be.
///
/// # Errors
///
/// If an authority cannot be made.
pub fn advance(kept: &Kept, now: SystemTime) -> Result<Option<Kept>, AuthorityError> {
    let Some(current) = &kept.current else {
        let current = Some(make(now)?);
        return Ok(Some(Kept {
            current,
            ..Kept::default()
        }));
    };
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let seen = inspect(&current.certificate);
    if seen.is_none_or(|seen| seen.not_after <= now) {
        // Nobody believes it any more; there is nothing to take over.
        let current = Some(make(now)?);
        return Ok(Some(Kept {
            current,
            ..Kept::default()
        }));
    }
    match &kept.next {
        Some((next, since)) if seconds.saturating_sub(*since) >= KNOWN_FIRST.as_secs() => Ok(Some(Kept {
            current: Some(next.clone()),
            next: None,
            previous: Some(current.certificate.clone()),
        })),
        Some(_) => Ok(None),
        None if seen.is_some_and(|seen| seen.renew_at() <= now) => Ok(Some(Kept {
            next: Some((make(now)?, seconds)),
            ..kept.clone()
        })),
        None => {
            // What the one before has signed ends a day after the other took over, at the latest.
            let ended = kept.previous.is_some()
                && seen.is_some_and(|seen| seen.not_before + KNOWN_FIRST + 2 * LIFETIME < now);
            Ok(ended.then(|| Kept {
                previous: None,
                ..kept.clone()
            }))
        }
    }
}

fn make(now: SystemTime) -> Result<Pair, AuthorityError> {
    let authority = Authority::generate(now)?;
    Ok(Pair {
        certificate: authority.certificate().to_owned(),
        key: authority.key().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn the_next_one_is_known_before_it_is_used_and_the_one_before_is_believed_to_its_end() {
        let begin = SystemTime::now();
        let first = advance(&Kept::default(), begin).unwrap().unwrap();
        assert_eq!(advance(&first, begin + DAY).unwrap(), None);
        let late = begin + 250 * DAY;
        let staged = advance(&first, late).unwrap().unwrap();
        assert_eq!(staged.current, first.current);
        assert_eq!(staged.bundle().matches("BEGIN CERT").count(), 2);
        assert_eq!(advance(&staged, late + Duration::from_secs(60)).unwrap(), None);
        let taken = advance(&staged, late + KNOWN_FIRST).unwrap().unwrap();
        assert_eq!(taken.current, staged.next.map(|(pair, _)| pair));
        assert_eq!(taken.previous, first.current.map(|pair| pair.certificate));
        assert_eq!(taken.bundle().matches("BEGIN CERT").count(), 2);
        assert_eq!(advance(&taken, late + DAY).unwrap(), None);
        let alone = advance(&taken, late + 3 * DAY).unwrap().unwrap();
        assert_eq!(alone.bundle().matches("BEGIN CERT").count(), 1);
        assert_eq!(advance(&alone, late + 4 * DAY).unwrap(), None);
    }

    #[test]
    fn one_that_has_ended_is_replaced_at_once() {
        let begin = SystemTime::now();
        let first = advance(&Kept::default(), begin).unwrap().unwrap();
        let after = advance(&first, begin + 400 * DAY).unwrap().unwrap();
        assert_ne!(after.current, first.current);
        assert_eq!(after.previous, None);
    }
}
