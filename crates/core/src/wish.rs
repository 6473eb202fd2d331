//! What a pod asks for at its birth beside a policy: to be filled from a snapshot, and what follows on that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::shown;
use crate::{ANNOTATION_FALLBACK, Fallback};

/// The snapshot that the pod is to be filled from, by its whole id. Honoured only with a grant for the pod's UID.
pub const ANNOTATION_RESTORE_FROM: &str = "dormouse.dev/restore-from";
/// A command, as a JSON array, that is run in the restored guest before its containers count as started.
pub const ANNOTATION_POST_RESTORE_EXEC: &str = "dormouse.dev/post-restore-exec";
/// The container that the command runs in; the first one of the snapshot without it.
pub const ANNOTATION_POST_RESTORE_CONTAINER: &str = "dormouse.dev/post-restore-container";
/// A signal that the first process of each restored container gets, as in `SIGUSR1`.
pub const ANNOTATION_POST_RESTORE_SIGNAL: &str = "dormouse.dev/post-restore-signal";
/// `"true"`: every container sees who the pod is in `/run/dormouse/identity.json`.
pub const ANNOTATION_IDENTITY: &str = "dormouse.dev/identity";

/// What the snapshot that the pod is filled from is called to people, as the controller writes it down. Asks for nothing.
pub const ANNOTATION_RESTORED_FROM: &str = "dormouse.dev/restored-from";

/// The longest value of one of these, in bytes.
pub(crate) const MAX_VALUE: usize = 4096;

/// The most words of a command.
pub(crate) const MAX_WORDS: usize = 64;

/// Signals that a guest may be told of its new identity with.
const SIGNALS: [&str; 5] = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT"];

/// What a pod asks for at its birth.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BirthWish {
    /// The snapshot to be filled from.
    pub snapshot: Option<String>,
    /// The command to run in the restored guest; empty = none.
    #[serde(default)]
    pub exec: Vec<String>,
    /// The container to run it in; `None` = the snapshot's first one.
    #[serde(default)]
    pub container: Option<String>,
    /// The signal to send to the restored containers.
    #[serde(default)]
    pub signal: Option<String>,
    /// Whether the containers see the pod's identity.
    #[serde(default)]
    pub identity: bool,
    /// What becomes of the pod if it cannot be filled.
    #[serde(default)]
    pub fallback: Fallback,
}

/// A wish that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// The value is longer than 4096 bytes.
    #[error("annotation {annotation} is longer than {MAX_VALUE} bytes")]
    ValueTooLong {
        /// Which annotation.
        annotation: &'static str,
    },
    /// Not the id of a snapshot.
    #[error("annotation {ANNOTATION_RESTORE_FROM} is {value:?}; expected a snapshot's whole id")]
    BadSnapshot {
        /// The value, shortened.
        value: String,
    },
    /// Not a JSON array of words.
    #[error(
        "annotation {ANNOTATION_POST_RESTORE_EXEC} is {value:?}; expected a JSON array of 1 to {MAX_WORDS} words, as in [\"/bin/reseed\", \"--now\"]"
    )]
    BadExec {
        /// The value, shortened.
        value: String,
    },
    /// None of the signals.
    #[error("annotation {ANNOTATION_POST_RESTORE_SIGNAL} is {value:?}; expected one of {}", SIGNALS.join(", "))]
    BadSignal {
        /// The value, shortened.
        value: String,
    },
    /// Neither `true` nor `false`.
    #[error("annotation {ANNOTATION_IDENTITY} is {value:?}; expected \"true\" or \"false\"")]
    BadIdentity {
        /// The value, shortened.
        value: String,
    },
    /// None of `Hold`, `Fail` and `ColdStart`.
    #[error("annotation {ANNOTATION_FALLBACK} is {value:?}; expected Hold, Fail or ColdStart")]
    BadFallback {
        /// The value, shortened.
        value: String,
    },
    /// Something is to follow on a restore that was not asked for.
    #[error("annotation {annotation} is set, but {ANNOTATION_RESTORE_FROM} is not")]
    NoSnapshot {
        /// Which annotation.
        annotation: &'static str,
    },
}

impl BirthWish {
    /// What a pod's annotations ask for.
    ///
    /// # Errors
    /// A value cannot be used. Such a pod is started without its memory, or not at all, by its fallback.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, WishError> {
        let get = |annotation: &'static str| {
            let value = annotations.get(annotation).map(String::as_str);
            match value {
                Some(value) if value.len() > MAX_VALUE => Err(WishError::ValueTooLong { annotation }),
                value => Ok(value),
            }
        };
        let snapshot = get(ANNOTATION_RESTORE_FROM)?.map(snapshot).transpose()?;
        let exec = get(ANNOTATION_POST_RESTORE_EXEC)?.map(exec).transpose()?;
        let container = get(ANNOTATION_POST_RESTORE_CONTAINER)?.map(str::to_owned);
        let signal = get(ANNOTATION_POST_RESTORE_SIGNAL)?.map(signal).transpose()?;
        if snapshot.is_none() {
            for (annotation, set) in [
                (ANNOTATION_POST_RESTORE_EXEC, exec.is_some()),
                (ANNOTATION_POST_RESTORE_CONTAINER, container.is_some()),
                (ANNOTATION_POST_RESTORE_SIGNAL, signal.is_some()),
            ] {
                if set {
                    return Err(WishError::NoSnapshot { annotation });
                }
            }
        }
        let identity = match get(ANNOTATION_IDENTITY)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(value) => return Err(WishError::BadIdentity { value: shown(value) }),
        };
        let fallback = get(ANNOTATION_FALLBACK)?.map_or(Ok(Fallback::default()), |value| {
            value
                .parse()
                .map_err(|_| WishError::BadFallback { value: shown(value) })
        })?;
        Ok(Self {
            snapshot,
            exec: exec.unwrap_or_default(),
            container,
            signal,
            identity,
            fallback,
        })
    }

    /// Whether an annotation is one of these.
    #[must_use]
    pub fn knows(annotation: &str) -> bool {
        [
            ANNOTATION_RESTORE_FROM,
            ANNOTATION_RESTORED_FROM,
            ANNOTATION_POST_RESTORE_EXEC,
            ANNOTATION_POST_RESTORE_CONTAINER,
            ANNOTATION_POST_RESTORE_SIGNAL,
            ANNOTATION_IDENTITY,
        ]
        .contains(&annotation)
    }
}

/// The store reads ids more strictly; here it is enough that it is harmless wherever it is shown.
fn snapshot(value: &str) -> Result<String, WishError> {
    let fits = value.len() == 36 && value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if fits {
        Ok(value.to_owned())
    } else {
        Err(WishError::BadSnapshot { value: shown(value) })
    }
}

fn exec(value: &str) -> Result<Vec<String>, WishError> {
    command(value).ok_or_else(|| WishError::BadExec { value: shown(value) })
}

/// A command that is written as a JSON array of at most [`MAX_WORDS`] words; `None` if it is none.
pub(crate) fn command(value: &str) -> Option<Vec<String>> {
    serde_json::from_str::<Vec<String>>(value)
        .ok()
        .filter(|words| (1..=MAX_WORDS).contains(&words.len()))
        .filter(|words| {
            words.iter().all(|word| !word.contains('\0')) && words.first().is_some_and(|w| !w.is_empty())
        })
}

fn signal(value: &str) -> Result<String, WishError> {
    SIGNALS
        .into_iter()
        .find(|known| *known == value)
        .map(str::to_owned)
        .ok_or_else(|| WishError::BadSignal { value: shown(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0192f4a0-0000-7000-8000-0000deadbeef";

    fn parsed(all: &[(&str, &str)]) -> Result<BirthWish, WishError> {
        let all = all
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        BirthWish::from_annotations(&all)
    }

    #[test]
    fn wishes_are_read() {
        assert_eq!(parsed(&[]), Ok(BirthWish::default()));
        let wish = parsed(&[
            (ANNOTATION_RESTORE_FROM, ID),
            (ANNOTATION_POST_RESTORE_EXEC, r#"["/bin/reseed","--now"]"#),
            (ANNOTATION_POST_RESTORE_SIGNAL, "SIGUSR1"),
            (ANNOTATION_IDENTITY, "true"),
            (ANNOTATION_FALLBACK, "ColdStart"),
        ])
        .unwrap();
        assert_eq!(wish.snapshot.as_deref(), Some(ID));
        assert_eq!(wish.exec, ["/bin/reseed", "--now"]);
        assert_eq!(wish.signal.as_deref(), Some("SIGUSR1"));
        assert!(wish.identity);
        assert_eq!(wish.fallback, Fallback::ColdStart);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let long = "x".repeat(MAX_VALUE + 1);
        for (key, value) in [
            (ANNOTATION_RESTORE_FROM, "../../etc/passwd"),
            (ANNOTATION_RESTORE_FROM, long.as_str()),
            (ANNOTATION_POST_RESTORE_EXEC, "/bin/true"),
            (ANNOTATION_POST_RESTORE_EXEC, "[]"),
            (ANNOTATION_POST_RESTORE_EXEC, r#"["a\u0000b"]"#),
            (ANNOTATION_POST_RESTORE_SIGNAL, "SIGKILL"),
            (ANNOTATION_POST_RESTORE_SIGNAL, "SIGUSR1"),
            (ANNOTATION_IDENTITY, "yes"),
            (ANNOTATION_FALLBACK, "Retry"),
        ] {
            assert!(parsed(&[(key, value)]).is_err(), "{key}={}", shown(value));
        }
    }
}
