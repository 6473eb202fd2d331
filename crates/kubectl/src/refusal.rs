//! What an answer of the API server, or its silence, means to whoever asked. Pure.

use std::fmt;

use kube::Error;
use kube::core::Status;

/// What was asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// The API's verb: `list`, `get`, `patch`, `create`, `delete`, `watch`.
    pub(crate) verb: &'static str,
    /// The resource in plural.
    pub(crate) resource: String,
    /// The group of the API; empty for the core.
    pub(crate) group: String,
    /// The namespace; `None` for all, or for what has none.
    pub(crate) namespace: Option<String>,
    /// The object; `None` for many.
    pub(crate) name: Option<String>,
}

impl Call {
    /// `sandboxes.agents.x-k8s.io`, as kubectl names it.
    fn kind(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.kind())?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// What became of a call, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// A stable code.
    pub(crate) reason: String,
    /// What failed, on what, and what to do.
    pub(crate) message: String,
    /// Nobody answered.
    pub(crate) unreachable: bool,
}

impl Refusal {
    fn new(reason: &str, message: String) -> Self {
        Self {
            reason: reason.to_owned(),
            message,
            unreachable: false,
        }
    }

    fn unreachable(message: String) -> Self {
        Self {
            unreachable: true,
            ..Self::new("ClusterUnreachable", message)
        }
    }
}

/// What an error means.
pub(crate) fn explain(call: &Call, error: &Error) -> Refusal {
    match error {
        Error::Api(status) => refused(call, status),
        Error::SerdeError(error) => Refusal::new(
            "Internal",
            format!("{call}: the answer cannot be understood ({error}); are plugin and CRDs of one version?"),
        ),
        Error::Auth(error) => Refusal::new(
            "Unauthorized",
            format!("{call}: there are no credentials ({error}); log in anew, or choose another --context"),
        ),
        error => Refusal::unreachable(format!(
            "{call}: no answer from the API server ({}); is --context the right one, and the cluster up?",
            chain(error)
        )),
    }
}

/// What it means that nothing came within a time.
pub(crate) fn late(call: &Call, seconds: u64) -> Refusal {
    Refusal::unreachable(format!(
        "{call}: no answer from the API server within {seconds} s; is --context the right one, and the cluster up?"
    ))
}

fn refused(call: &Call, status: &Status) -> Refusal {
    match status.code {
        // The API server answers so, without details, for a resource that it does not have.
        404 if is_unknown_resource(status) => Refusal::new("NotInstalled", not_installed(call)),
        404 => Refusal::new("NotFound", not_found(call)),
        403 => Refusal::new(
            "Forbidden",
            format!(
                "{call}: not allowed; it needs a Role with the verb {:?} on {:?} of API group {:?} ({})",
                call.verb, call.resource, call.group, status.message
            ),
        ),
        401 => Refusal::new(
            "Unauthorized",
            format!("{call}: the credentials are not accepted; log in anew, or choose another --context"),
        ),
        429 | 503 | 504 => Refusal::new(
            known(&status.reason, "ServiceUnavailable"),
            format!(
                "{call}: the API server is busy or not ready; try again ({})",
                status.message
            ),
        ),
        _ => Refusal::new(
            known(&status.reason, "Failure"),
            format!("{call}: {}", status.message),
        ),
    }
}

fn known<'a>(reason: &'a str, otherwise: &'a str) -> &'a str {
    if reason.is_empty() { otherwise } else { reason }
}

fn is_unknown_resource(status: &Status) -> bool {
    status
        .details
        .as_ref()
        .is_none_or(|details| details.name.is_empty())
}

fn not_installed(call: &Call) -> String {
    let kind = call.kind();
    match call.group.as_str() {
        "metrics.k8s.io" => format!("the cluster has no {kind}: metrics-server is not installed"),
        "agents.x-k8s.io" | "extensions.agents.x-k8s.io" | "dormouse.dev" => format!(
            "the cluster has no {kind}: install Dormouse (helm install dormouse daemonset/chart/dormouse), or choose \
             another --context"
        ),
        _ => format!("the cluster has no {kind}"),
    }
}

fn not_found(call: &Call) -> String {
    let lists = match call.resource.as_str() {
        "sandboxes" => "; \"kubectl dormouse ps -A\" lists sandboxes",
        "sandboxsnapshots" => "; \"kubectl dormouse snapshot ls -A\" lists snapshots",
        "sandboxnodes" | "nodes" => "; \"kubectl dormouse node ls\" lists nodes",
        _ => "",
    };
    format!("{call}: there is none{lists}")
}

/// An error and what lies below it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let next = error.to_string();
        // Many libraries repeat what lies below.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    fn call() -> Call {
        Call {
            verb: "list",
            resource: "sandboxes".into(),
            group: "agents.x-k8s.io".into(),
            namespace: Some("team".into()),
            name: None,
        }
    }

    fn api(code: u16, reason: &str, name: &str) -> Error {
        let details: StatusDetails = serde_json::from_value(serde_json::json!({"name": name})).unwrap();
        Error::Api(Box::new(Status {
            code,
            reason: reason.into(),
            message: "said so".into(),
            details: Some(details),
            ..Status::default()
        }))
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let crd = explain(&call(), &api(404, "NotFound", ""));
        assert_eq!(crd.reason, "NotInstalled");
        assert!(crd.message.contains("sandboxes.agents.x-k8s.io"), "{crd:?}");
        assert!(crd.message.contains("daemonset/chart/dormouse"), "{crd:?}");
        let one = Call {
            verb: "get",
            name: Some("box".into()),
            ..call()
        };
        let gone = explain(&one, &api(404, "NotFound", "box"));
        assert_eq!(gone.reason, "NotFound");
        assert!(
            gone.message
                .starts_with("get sandboxes.agents.x-k8s.io box in namespace team: there is none; "),
            "{gone:?}"
        );
    }

    #[test]
    fn what_is_forbidden_says_what_would_be_needed() {
        let refusal = explain(&call(), &api(403, "Forbidden", ""));
        assert_eq!(refusal.reason, "Forbidden");
        assert!(
            refusal
                .message
                .contains("verb \"list\" on \"sandboxes\" of API group \"agents.x-k8s.io\""),
            "{refusal:?}"
        );
        assert!(!refusal.unreachable);
    }

    #[test]
    fn silence_is_not_a_refusal() {
        let error = Error::Service("connection refused".into());
        let refusal = explain(&call(), &error);
        assert_eq!(refusal.reason, "ClusterUnreachable");
        assert!(refusal.unreachable && refusal.message.contains("connection refused"));
        assert!(late(&call(), 30).unreachable);
        assert_eq!(explain(&call(), &api(503, "", "")).reason, "ServiceUnavailable");
        assert_eq!(explain(&call(), &api(422, "Invalid", "")).reason, "Invalid");
        assert_eq!(
            explain(&call(), &api(401, "Unauthorized", "")).reason,
            "Unauthorized"
        );
    }
}
