//! Who a certificate is about.

use std::fmt;

use rustls::pki_types::{DnsName, ServerName};
use thiserror::Error;

/// What names of agents end with.
const NODE_SUFFIX: &str = ".node.dormouse.dev";

/// The controller's name.
const CONTROLLER: &str = "controller.dormouse.dev";

/// Who a certificate is about: a DNS name below `dormouse.dev`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(DnsName<'static>);

/// Why a node can have no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{node}\" cannot be the name of a node: it is no DNS name of at most 234 characters")]
pub struct NameError {
    /// What was given.
    node: String,
}

impl Name {
    /// The agent of a node.
    ///
    /// # Errors
    ///
    /// If the node's name is no DNS name, or too long.
    pub fn of_node(node: &str) -> Result<Self, NameError> {
        let sound = !node.is_empty()
            && node.len() <= 253 - NODE_SUFFIX.len()
            && node
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
        let wrong = || NameError {
            node: node.chars().take(300).collect(),
        };
        if !sound {
            return Err(wrong());
        }
        DnsName::try_from(format!("{node}{NODE_SUFFIX}"))
            .map(Self)
            .map_err(|_| wrong())
    }

    /// The controller.
    #[must_use]
    pub fn of_controller() -> Self {
        // The only panic-free way from a constant; it is a DNS name, as the test shows.
        match DnsName::try_from_str(CONTROLLER) {
            Ok(name) => Self(name.to_owned()),
            Err(_) => unreachable!("a constant"),
        }
    }

    /// As it stands in certificates.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_ref()
    }

    pub(crate) fn server_name(&self) -> ServerName<'static> {
        ServerName::DnsName(self.0.clone())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        assert_eq!(
            Name::of_node("node-1.example").unwrap().as_str(),
            "node-1.example.node.dormouse.dev"
        );
        assert_eq!(Name::of_controller().as_str(), CONTROLLER);
        for node in ["", "a b", "UPPER", "a/b", "a..b", "*", &"x".repeat(240)] {
            assert!(Name::of_node(node).is_err(), "{node}");
        }
    }
}
