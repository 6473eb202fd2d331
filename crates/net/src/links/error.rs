//! What can go wrong with a pod's links.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::Reason;

use crate::mac::MacAddress;
use crate::netns::NamespaceError;

/// Why a pod's addresses and routes could not be written down, put back or taken off.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel refused a request.
    #[error("cannot {doing}{on} in {netns}: {source}")]
    Netlink {
        /// What was tried.
        doing: &'static str,
        /// On what; begins with a blank or is empty.
        on: String,
        /// The namespace.
        netns: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A recorded interface is not there any more.
    #[error(
        "interface {interface} is gone from {netns}: the CNI plugin has taken the pod's network away; \
         delete the pod"
    )]
    InterfaceGone {
        /// Its name.
        interface: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// An interface of the recorded name has another hardware address.
    #[error(
        "interface {interface} in {netns} has the hardware address {} and had {} when it was recorded: it \
         is not the same interface; delete the pod", show(.found), show(.recorded)
    )]
    InterfaceChanged {
        /// Its name.
        interface: String,
        /// The namespace.
        netns: PathBuf,
        /// What it had.
        recorded: Option<MacAddress>,
        /// What it has.
        found: Option<MacAddress>,
    },
    /// There is more than is written down.
    #[error("{netns} has more than {most} {what}; a pod's network of that size cannot be recorded")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most that is recorded.
        most: usize,
        /// The namespace.
        netns: PathBuf,
    },
    /// A route that could not be put back as it was.
    #[error("a route in {netns} {what}, which cannot be recorded; the pod cannot be hibernated")]
    UnsupportedRoute {
        /// What about it.
        what: &'static str,
        /// The namespace.
        netns: PathBuf,
    },
}

fn show(mac: &Option<MacAddress>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

impl LinkError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Namespace(error) => error.reason(),
            Self::Netlink { .. } => Reason::NetworkSetupFailed,
            Self::InterfaceGone { .. } | Self::InterfaceChanged { .. } => Reason::PodGone,
            Self::TooMany { .. } | Self::UnsupportedRoute { .. } => Reason::NetworkUnsupported,
        }
    }
}

/// Where something is being done, for its error message.
pub(super) struct Doing<'a> {
    pub(super) netns: &'a Path,
}

impl Doing<'_> {
    pub(super) fn failed(
        &self,
        doing: &'static str,
        on: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> LinkError {
        let (on, netns) = (on.into(), self.netns.to_owned());
        move |source| LinkError::Netlink {
            doing,
            on,
            netns,
            source,
        }
    }
}
