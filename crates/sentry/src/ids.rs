//! Identifiers that become parts of paths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest id, in bytes. containerd's own are 64; a file name may have 255, and runsc joins two of them.
const MAX_ID: usize = 100;

/// The text cannot be an id: empty, too long, or with a character that no id has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid {what}: 1 to {MAX_ID} characters out of A-Z a-z 0-9 . _ - are allowed, the first a letter or digit"
)]
pub struct InvalidId {
    /// Which kind of id was read.
    what: &'static str,
}

/// Whether `text` is a single, harmless path component.
fn is_component(text: &str) -> bool {
    text.len() <= MAX_ID
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident, $what:literal) => {
        $(#[doc = $doc])+
        ///
        /// Checked when it is made, so that it can be joined to a path as it is.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, InvalidId> {
                if is_component(s) { Ok(Self(s.to_owned())) } else { Err(InvalidId { what: $what }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(s: String) -> Result<Self, InvalidId> {
                if is_component(&s) { Ok(Self(s)) } else { Err(InvalidId { what: $what }) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The id of a pod sandbox in containerd, which is also the id of its root container.
    SandboxId,
    "pod sandbox id"
);
id!(
    /// The id of a container in containerd.
    ContainerId,
    "container id"
);
id!(
    /// The UID of a pod in Kubernetes.
    PodUid,
    "pod UID"
);

impl From<&SandboxId> for ContainerId {
    /// The root container of a pod sandbox has the pod sandbox's id.
    fn from(id: &SandboxId) -> Self {
        Self(id.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_leaves_its_directory() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/a",
            "a\0b",
            "a b",
            "-a",
            ".a",
            "ä",
            "a\n",
            &"a".repeat(101),
        ] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
        for good in ["0", "a-b_c.d", &"f".repeat(64), &"f".repeat(100)] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_component(s in ".{0,120}") {
            if let Ok(id) = s.parse::<SandboxId>() {
                let path = std::path::Path::new("/run").join(id.as_str());
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/run")));
                prop_assert_eq!(path.components().count(), 3);
            }
        }
    }
}
