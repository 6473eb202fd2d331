//! Names that become parts of paths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::{Timestamp, Uuid, Variant};

/// The text cannot be a snapshot's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot id: a version 7 UUID in lower case with hyphens is expected")]
pub struct InvalidSnapshotId;

/// The id of a snapshot: a version 7 UUID, so that ids sort by age.
///
/// Only the canonical text (lower case, hyphens) is read, so that one snapshot has one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(Uuid);

impl SnapshotId {
    /// A new id for a snapshot taken at `now_ms` (ms since 1970).
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        let nanos = u32::try_from(now_ms % 1000)
            .unwrap_or(0)
            .saturating_mul(1_000_000);
        Self(Uuid::new_v7(Timestamp::from_unix_time(
            now_ms / 1000,
            nanos,
            0,
            0,
        )))
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;

    fn from_str(s: &str) -> Result<Self, InvalidSnapshotId> {
        let id = Uuid::try_parse(s).map_err(|_| InvalidSnapshotId)?;
        let canonical = id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122;
        if canonical && id.hyphenated().to_string() == s {
            Ok(Self(id))
        } else {
            Err(InvalidSnapshotId)
        }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = InvalidSnapshotId;

    fn try_from(s: String) -> Result<Self, InvalidSnapshotId> {
        s.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The longest name of a file in a snapshot, in bytes.
const MAX_NAME: usize = 100;

/// What the store itself keeps in a snapshot's directory; no image file may be called so.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MARKS: &str = "marks.json";
pub(crate) const DATA_KEY: &str = "data.key";
/// What is appended to the name of a file whose new content is not whole yet.
pub(crate) const NEW: &str = ".new";

/// The text cannot be the name of a file in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid file name: 1 to {MAX_NAME} characters out of A-Z a-z 0-9 . _ - are allowed, the first not a dot, and none of the store's own names"
)]
pub struct InvalidFileName;

/// The name of one file in a snapshot: one harmless path component, checked when it is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FileName {
    type Error = InvalidFileName;

    fn try_from(s: String) -> Result<Self, InvalidFileName> {
        let harmless = !s.is_empty()
            && s.len() <= MAX_NAME
            && !s.starts_with('.')
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if harmless && !matches!(s.as_str(), MANIFEST | MARKS | DATA_KEY) && !s.ends_with(NEW) {
            Ok(Self(s))
        } else {
            Err(InvalidFileName)
        }
    }
}

impl FromStr for FileName {
    type Err = InvalidFileName;

    fn from_str(s: &str) -> Result<Self, InvalidFileName> {
        s.to_owned().try_into()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_strict_and_sort_by_age() {
        let (a, b) = (SnapshotId::new(1_000), SnapshotId::new(2_000));
        assert!(a < b);
        let text = a.to_string();
        assert_eq!(text.parse::<SnapshotId>().unwrap(), a);
        for bad in [
            text.to_uppercase(),
            text.replace('-', ""),
            format!("{{{text}}}"),
            format!("urn:uuid:{text}"),
            format!("{text} "),
            "a1a2a3a4-b1b2-4000-8000-d1d2d3d4d5d6".to_owned(),
            "../../etc/passwd".to_owned(),
            String::new(),
        ] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn file_names_stay_in_their_directory() {
        for bad in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "/a",
            "../a",
            "a\0",
            "a b",
            "ä",
            "manifest.json",
            "marks.json",
            "data.key",
            "pages.img.new",
            &"a".repeat(101),
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
        for good in ["checkpoint.img", "pages_meta.img", "pages.img", "-", "A-1.b_c"] {
            assert_eq!(good.parse::<FileName>().unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_component(s in ".{0,120}") {
            if let Ok(name) = s.parse::<FileName>() {
                let path = std::path::Path::new("/s").join(name.as_str());
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/s")));
                prop_assert_eq!(path.components().count(), 3);
            }
        }

        #[test]
        fn an_accepted_id_is_what_was_read(s in "[0-9a-f-]{30,40}") {
            if let Ok(id) = s.parse::<SnapshotId>() {
                prop_assert_eq!(id.to_string(), s);
            }
        }
    }
}
