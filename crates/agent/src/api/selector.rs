//! Kubernetes label selectors, equality form.

use std::collections::BTreeMap;

use dormouse_core::Reason;
use tonic::Status;

/// The longest selector, in bytes.
const MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Exists(String),
    Lacks(String),
}

/// A selector as in `app=x,tier!=y,flag,!other`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selector(Vec<Requirement>);

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let bad = |what: &str| {
            dormouse_rpc::status(
                Reason::InvalidRequest,
                format!("label selector: {what}; write it like \"app=web,tier!=db,flag\""),
            )
        };
        if text.len() > MAX {
            return Err(bad("longer than 1024 bytes"));
        }
        let mut requirements = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let requirement = if let Some((key, value)) = part.split_once("!=") {
                Requirement::Differs(key.trim().to_owned(), value.trim().to_owned())
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                Requirement::Equals(key.trim().to_owned(), value.trim().to_owned())
            } else if let Some(key) = part.strip_prefix('!') {
                Requirement::Lacks(key.trim().to_owned())
            } else {
                Requirement::Exists(part.to_owned())
            };
            let key = match &requirement {
                Requirement::Equals(key, _)
                | Requirement::Differs(key, _)
                | Requirement::Exists(key)
                | Requirement::Lacks(key) => key,
            };
            if key.is_empty()
                || key.contains(|c: char| c.is_whitespace() || matches!(c, '=' | '!' | '(' | ')'))
            {
                return Err(bad("a requirement has no usable key"));
            }
            requirements.push(requirement);
        }
        Ok(Self(requirements))
    }

    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Equals(key, value) => labels.get(key) == Some(value),
            Requirement::Differs(key, value) => labels.get(key) != Some(value),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Lacks(key) => !labels.contains_key(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_as_kubernetes_does() {
        let labels: BTreeMap<_, _> = [("app", "web"), ("flag", "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        for (text, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web, flag", true),
            ("app!=web", false),
            ("other!=x", true),
            ("!other", true),
            ("!flag", false),
            ("app=db", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), matches, "{text}");
        }
        for text in ["=x", "a b", "app in (x)"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
