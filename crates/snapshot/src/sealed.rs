//! A JSON document with a MAC over it, so that only what this node wrote is believed.
//!
//! The MAC covers the exact bytes of the body and is checked before a byte of the body is interpreted.

use std::path::Path;

use dormouse_core::Reason;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;

/// A document with a MAC could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Not the JSON that it should be, or beyond a limit.
    #[error("{what} is damaged: {source}")]
    Damaged {
        /// Which document.
        what: &'static str,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// Longer than such a document may be.
    #[error("{what} is longer than {limit} bytes")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The most, in bytes.
        limit: usize,
    },
    /// The MAC does not match: not written by this node, or changed since.
    #[error(
        "{what} was not written by this node, or was changed since; is node.key the one it was written with?"
    )]
    Forged {
        /// Which document.
        what: &'static str,
    },
    /// Another format than this version knows.
    #[error("{what} has format {found}, this version knows {known}; use the version that wrote it")]
    Version {
        /// Which document.
        what: &'static str,
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
}

impl SealedError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Damaged { .. } | Self::TooLarge { .. } => Reason::SnapshotDamaged,
            Self::Forged { .. } => Reason::SnapshotForged,
            Self::Version { .. } => Reason::SnapshotFormatUnknown,
        }
    }
}

/// A kind of document: its name, format and longest text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) limit: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    kind: &'a str,
    version: u32,
    mac: Digest,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The node's key for the MACs of one kind of document.
///
/// Each kind has its own, derived from the node's key, so that no document passes for one of another kind.
#[derive(Clone)]
pub(crate) struct MacKey {
    kind: Kind,
    key: [u8; 32],
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MacKey")
            .field("kind", &self.kind.name)
            .finish_non_exhaustive()
    }
}

impl MacKey {
    pub(crate) fn derive(node_key: &[u8; 32], kind: Kind) -> Self {
        let context = format!("dormouse snapshot store {} v{}", kind.name, kind.version);
        Self {
            kind,
            key: blake3::derive_key(&context, node_key),
        }
    }

    /// Writes a document.
    pub(crate) fn seal<T: Serialize>(&self, body: &T) -> Result<Vec<u8>, SealedError> {
        let damaged = |source| SealedError::Damaged {
            what: self.kind.name,
            source,
        };
        let body = serde_json::value::to_raw_value(body).map_err(damaged)?;
        let envelope = Envelope {
            kind: self.kind.name,
            version: self.kind.version,
            mac: blake3::keyed_hash(&self.key, body.get().as_bytes()).into(),
            body: &body,
        };
        let text = serde_json::to_vec(&envelope).map_err(damaged)?;
        if text.len() > self.kind.limit {
            return Err(SealedError::TooLarge {
                what: self.kind.name,
                limit: self.kind.limit,
            });
        }
        Ok(text)
    }

    /// Reads a document.
    pub(crate) fn open<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, SealedError> {
        let what = self.kind.name;
        if text.len() > self.kind.limit {
            return Err(SealedError::TooLarge {
                what,
                limit: self.kind.limit,
            });
        }
        let envelope: Envelope<'_> =
            serde_json::from_slice(text).map_err(|source| SealedError::Damaged { what, source })?;
        if envelope.kind != what {
            return Err(SealedError::Forged { what });
        }
        if envelope.version != self.kind.version {
            return Err(SealedError::Version {
                what,
                found: envelope.version,
                known: self.kind.version,
            });
        }
        // `blake3::Hash` compares in constant time.
        let mac: Digest = blake3::keyed_hash(&self.key, envelope.body.get().as_bytes()).into();
        if mac != envelope.mac {
            return Err(SealedError::Forged { what });
        }
        serde_json::from_str(envelope.body.get()).map_err(|source| SealedError::Damaged { what, source })
    }
}

/// Whether a path is a document of ours that was never finished.
pub(crate) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "new")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind {
        name: "test",
        version: 1,
        limit: 1000,
    };

    #[test]
    fn only_what_was_sealed_opens() {
        let key = MacKey::derive(&[7; 32], KIND);
        let text = key.seal(&vec![1, 2, 3]).unwrap();
        assert_eq!(key.open::<Vec<u32>>(&text).unwrap(), [1, 2, 3]);
        let other = MacKey::derive(&[8; 32], KIND);
        assert!(matches!(
            other.open::<Vec<u32>>(&text),
            Err(SealedError::Forged { .. })
        ));
        let other = MacKey::derive(&[7; 32], Kind { name: "tset", ..KIND });
        assert!(matches!(
            other.open::<Vec<u32>>(&text),
            Err(SealedError::Forged { .. })
        ));
        let other = MacKey::derive(&[7; 32], Kind { version: 2, ..KIND });
        assert!(matches!(
            other.open::<Vec<u32>>(&text),
            Err(SealedError::Version { found: 1, .. })
        ));
        assert!(matches!(
            key.seal(&vec![0; 1000]),
            Err(SealedError::TooLarge { .. })
        ));
        assert!(matches!(
            key.open::<Vec<u32>>(&[b' '; 1001]),
            Err(SealedError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_opens_as_something_else(at in 0_usize..200, bit in 0_u8..8) {
            let key = MacKey::derive(&[7; 32], KIND);
            let mut text = key.seal(&"the body").unwrap();
            let at = at % text.len();
            text[at] ^= 1 << bit;
            if let Ok(body) = key.open::<String>(&text) {
                prop_assert_eq!(body, "the body");
            }
        }

        #[test]
        fn anything_is_refused_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(MacKey::derive(&[7; 32], KIND).open::<String>(&text).is_err());
        }
    }
}
