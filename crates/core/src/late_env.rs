//! Environment variables for a container that runs already: what a pod says at its birth of where they go, and the file that
//! they become.

use std::collections::BTreeMap;
use std::fmt;

use crate::policy::shown;
use crate::wish::{MAX_VALUE, MAX_WORDS, command};

/// The file, as an absolute path in the container, that the environment of a claim is written to. Without it a pod takes none
/// once it runs.
pub const ANNOTATION_LATE_ENV: &str = "dormouse.dev/late-env";
/// A command, as a JSON array, that is run in the container when the file is there.
pub const ANNOTATION_LATE_ENV_EXEC: &str = "dormouse.dev/late-env-exec";

/// The most variables for one container.
pub const MAX_VARIABLES: usize = 256;
/// The longest file, in bytes. A program of the kernel's takes no longer text than twice that.
pub const MAX_VARIABLES_BYTES: usize = 64 << 10;

/// Where a pod takes the environment of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateEnv {
    /// The file, as an absolute path in the container.
    pub file: String,
    /// The command that is run when it is there; empty = none.
    pub exec: Vec<String>,
}

/// Annotations that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LateEnvError {
    /// The value is longer than 4096 bytes.
    #[error("annotation {annotation} is longer than {MAX_VALUE} bytes")]
    ValueTooLong {
        /// Which annotation.
        annotation: &'static str,
    },
    /// Not the absolute path of a file.
    #[error(
        "annotation {ANNOTATION_LATE_ENV} is {value:?}; expected the absolute path of a file, as in \"/run/claim/env\""
    )]
    BadFile {
        /// The value, shortened.
        value: String,
    },
    /// Not a JSON array of words.
    #[error(
        "annotation {ANNOTATION_LATE_ENV_EXEC} is {value:?}; expected a JSON array of 1 to {MAX_WORDS} words, as in [\"/bin/reload\", \"--now\"]"
    )]
    BadExec {
        /// The value, shortened.
        value: String,
    },
    /// A command without a file.
    #[error("annotation {ANNOTATION_LATE_ENV_EXEC} is set, but {ANNOTATION_LATE_ENV} is not")]
    NoFile,
}

impl LateEnv {
    /// What a pod's annotations say; `None`: it takes no environment once it runs.
    ///
    /// # Errors
    /// A value cannot be used.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, LateEnvError> {
        let get = |annotation: &'static str| {
            let value = annotations.get(annotation).map(String::as_str);
            match value {
                Some(value) if value.len() > MAX_VALUE => Err(LateEnvError::ValueTooLong { annotation }),
                value => Ok(value),
            }
        };
        let file = get(ANNOTATION_LATE_ENV)?.map(file).transpose()?;
        let exec = get(ANNOTATION_LATE_ENV_EXEC)?
            .map(|value| command(value).ok_or_else(|| LateEnvError::BadExec { value: shown(value) }));
        match (file, exec.transpose()?) {
            (Some(file), exec) => Ok(Some(Self {
                file,
                exec: exec.unwrap_or_default(),
            })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(LateEnvError::NoFile),
        }
    }

    /// Whether an annotation is one of these.
    #[must_use]
    pub fn knows(annotation: &str) -> bool {
        [ANNOTATION_LATE_ENV, ANNOTATION_LATE_ENV_EXEC].contains(&annotation)
    }
}

fn file(value: &str) -> Result<String, LateEnvError> {
    let names = value.strip_prefix('/').unwrap_or_default().split('/');
    // Whatever leads elsewhere than it seems to is not meant.
    let fits = names.into_iter().all(|name| !["", ".", ".."].contains(&name));
    if fits && !value.contains(char::is_control) {
        Ok(value.to_owned())
    } else {
        Err(LateEnvError::BadFile { value: shown(value) })
    }
}

/// Environment variables that a file can be made of. Their values are secrets as often as not: they are in no message, and
/// not in what is printed of this.
#[derive(Clone, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

/// Variables that no file can be made of. Values are not in the messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariablesError {
    /// There are more than 256.
    #[error("there are {count} environment variables; {MAX_VARIABLES} are the most")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The file would be longer than 64 KiB.
    #[error("the environment takes more than {MAX_VARIABLES_BYTES} bytes")]
    TooLong,
    /// The name is none that a shell knows.
    #[error("the name {name:?} of an environment variable cannot be used; letters, digits and _ can")]
    BadName {
        /// The name, shortened.
        name: String,
    },
    /// The value has a byte that ends it.
    #[error("the value of the environment variable {name} has a NUL in it")]
    Nul {
        /// The name.
        name: String,
    },
}

impl Variables {
    /// Of these, each with its name and its value. Of two with the same name the later one counts.
    ///
    /// # Errors
    /// They are too many or too long, or one of them has a name or a value that cannot be used.
    pub fn new(given: Vec<(String, String)>) -> Result<Self, VariablesError> {
        if given.len() > MAX_VARIABLES {
            return Err(VariablesError::TooMany { count: given.len() });
        }
        let mut all: Vec<(String, String)> = Vec::with_capacity(given.len());
        for (name, value) in given {
            if !is_name(&name) {
                return Err(VariablesError::BadName { name: shown(&name) });
            }
            if value.contains('\0') {
                return Err(VariablesError::Nul { name });
            }
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some(other) => other.1 = value,
                None => all.push((name, value)),
            }
        }
        let variables = Self(all);
        if variables.to_file().len() > MAX_VARIABLES_BYTES {
            return Err(VariablesError::TooLong);
        }
        Ok(variables)
    }

    /// Names and values.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// The file: a line `NAME='value'` for each, which `sh` reads with `.` and gives back to the byte. A `'` in a value is
    /// written as `'\''`; a value with line ends goes over several lines.
    #[must_use]
    pub fn to_file(&self) -> String {
        let lines = self.0.iter();
        lines
            .map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''")))
            .collect()
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({})", self.0.len())
    }
}

/// Whether a shell takes it for the name of a variable.
fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(all: &[(&str, &str)]) -> Result<Option<LateEnv>, LateEnvError> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        LateEnv::from_annotations(&all.iter().map(owned).collect())
    }

    fn variables(all: &[(&str, &str)]) -> Result<Variables, VariablesError> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Variables::new(all.iter().map(owned).collect())
    }

    #[test]
    fn what_a_pod_takes_is_read() {
        assert_eq!(read(&[]), Ok(None));
        let late = read(&[
            (ANNOTATION_LATE_ENV, "/run/claim/env"),
            (ANNOTATION_LATE_ENV_EXEC, r#"["/bin/reload","--now"]"#),
        ]);
        let late = late.unwrap().unwrap();
        assert_eq!(late.file, "/run/claim/env");
        assert_eq!(late.exec, ["/bin/reload", "--now"]);
        assert_eq!(
            read(&[(ANNOTATION_LATE_ENV, "/env")]).unwrap().unwrap().exec,
            [""; 0]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let long = format!("/{}", "x".repeat(MAX_VALUE));
        for file in [
            "",
            "/",
            "env",
            "/run/",
            "/run//env",
            "/run/../env",
            "/./env",
            "/a\nb",
            "/a\0b",
            &long,
        ] {
            assert!(read(&[(ANNOTATION_LATE_ENV, file)]).is_err(), "{file:?}");
        }
        for exec in ["", "[]", "/bin/true", r#"[""]"#, r#"["a\u0000b"]"#] {
            let both = [(ANNOTATION_LATE_ENV, "/env"), (ANNOTATION_LATE_ENV_EXEC, exec)];
            assert!(read(&both).is_err(), "{exec:?}");
        }
        let alone = read(&[(ANNOTATION_LATE_ENV_EXEC, r#"["a"]"#)]);
        assert_eq!(alone, Err(LateEnvError::NoFile));
    }

    #[test]
    fn names_and_sizes_are_limited() {
        for name in ["", "1A", "A-B", "A.B", "A B", "Ä", "A=B", "A\n"] {
            assert!(variables(&[(name, "v")]).is_err(), "{name:?}");
        }
        for name in ["A", "_", "a1_B"] {
            assert!(variables(&[(name, "v")]).is_ok(), "{name:?}");
        }
        assert_eq!(
            variables(&[("A", "a\0b")]),
            Err(VariablesError::Nul { name: "A".to_owned() })
        );
        let many = |count: usize| (0..count).map(|i| (format!("V{i}"), String::new())).collect();
        assert!(Variables::new(many(MAX_VARIABLES)).is_ok());
        assert!(Variables::new(many(MAX_VARIABLES + 1)).is_err());
        // Name, sign, quotes and line end are five bytes.
        let of = |bytes: usize| variables(&[("A", &"x".repeat(bytes))]);
        assert!(of(MAX_VARIABLES_BYTES - 5).is_ok());
        assert_eq!(of(MAX_VARIABLES_BYTES - 4), Err(VariablesError::TooLong));
        assert_eq!(
            variables(&[("A", &"'".repeat(MAX_VARIABLES_BYTES / 4))]),
            Err(VariablesError::TooLong)
        );
    }

    #[test]
    fn of_two_of_a_name_the_later_one_counts() {
        let file = variables(&[("A", "1"), ("B", "it's"), ("A", "2")])
            .unwrap()
            .to_file();
        assert_eq!(file, "A='2'\nB='it'\\''s'\n");
    }

    #[test]
    fn values_are_not_printed() {
        let secret = variables(&[("TOKEN", "hunter2")]).unwrap();
        assert_eq!(format!("{secret:?}"), "Variables(1)");
        let error = variables(&[("TOKEN", "hunter2\0")]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn nothing_that_is_given_panics(key in ".*", value in ".*", file in ".*", exec in ".*") {
            let _ = variables(&[(&key, &value)]);
            let _ = read(&[(ANNOTATION_LATE_ENV, &file), (ANNOTATION_LATE_ENV_EXEC, &exec)]);
        }
    }
}
