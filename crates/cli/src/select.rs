//! Which pods are meant. Pure.

use dormouse_rpc::v1;

/// The shortest beginning of a sandbox id that is looked for.
const MIN_ID: usize = 4;

/// What was named is no pod, or more than one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectError {
    /// There is no such pod.
    #[error("PodNotFound: no pod {name:?}{} on this node; \"dormouse ps --all\" lists them", in_namespace(namespace.as_deref()))]
    NotFound {
        /// What was named.
        name: String,
        /// The namespace that was asked for.
        namespace: Option<String>,
    },
    /// There are several.
    #[error("InvalidRequest: {name:?} is more than one pod: {}; name one by NAMESPACE/NAME or its UID", candidates.join(", "))]
    Ambiguous {
        /// What was named.
        name: String,
        /// The pods it can be.
        candidates: Vec<String>,
    },
}

fn in_namespace(namespace: Option<&str>) -> String {
    namespace
        .map(|ns| format!(" in namespace {ns:?}"))
        .unwrap_or_default()
}

/// The pod that `name` means: a UID, `NAMESPACE/NAME`, a name, or the beginning of a sandbox id.
pub(crate) fn find<'a>(
    pods: &'a [v1::Pod],
    name: &str,
    namespace: Option<&str>,
) -> Result<&'a v1::Pod, SelectError> {
    let here: Vec<&v1::Pod> = pods
        .iter()
        .filter(|pod| namespace.is_none_or(|ns| pod.namespace == ns))
        .collect();
    let ways: [&dyn Fn(&v1::Pod) -> bool; 4] = [
        &|pod| pod.uid == name,
        &|pod| {
            name.split_once('/')
                .is_some_and(|(ns, n)| pod.namespace == ns && pod.name == n)
        },
        &|pod| pod.name == name,
        &|pod| name.len() >= MIN_ID && pod.sandbox_id.starts_with(name),
    ];
    for way in ways {
        let found: Vec<&v1::Pod> = here.iter().copied().filter(|pod| way(pod)).collect();
        match found.as_slice() {
            [] => {}
            [pod] => return Ok(pod),
            several => {
                return Err(SelectError::Ambiguous {
                    name: name.to_owned(),
                    candidates: several
                        .iter()
                        .map(|pod| format!("{}/{} ({})", pod.namespace, pod.name, pod.uid))
                        .collect(),
                });
            }
        }
    }
    Err(SelectError::NotFound {
        name: name.to_owned(),
        namespace: namespace.map(str::to_owned),
    })
}

/// How to name a pod to the agent, beyond doubt.
pub(crate) fn reference(pod: &v1::Pod) -> v1::PodRef {
    v1::PodRef {
        uid: pod.uid.clone(),
        sandbox_id: pod.sandbox_id.clone(),
        ..v1::PodRef::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, uid: &str, sandbox_id: &str) -> v1::Pod {
        v1::Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            sandbox_id: sandbox_id.into(),
            ..Default::default()
        }
    }

    #[test]
    fn every_way_to_name_a_pod() {
        let pods = [
            pod("a", "x", "u1", "abcd1111"),
            pod("b", "x", "u2", "abcd2222"),
            pod("b", "y", "u3", "ef"),
        ];
        let found = |name: &str, ns| find(&pods, name, ns).map(|pod| pod.uid.as_str());
        assert_eq!(found("u1", None), Ok("u1"));
        assert_eq!(found("b/x", None), Ok("u2"));
        assert_eq!(found("y", None), Ok("u3"));
        assert_eq!(found("x", Some("a")), Ok("u1"));
        assert_eq!(found("abcd2", None), Ok("u2"));
        assert!(matches!(found("x", None), Err(SelectError::Ambiguous { .. })));
        assert!(matches!(found("abcd", None), Err(SelectError::Ambiguous { .. })));
        for stranger in ["z", "a/y", "", "ef", "abc"] {
            assert!(
                matches!(found(stranger, None), Err(SelectError::NotFound { .. })),
                "{stranger:?}"
            );
        }
        assert!(
            found("y", Some("a"))
                .unwrap_err()
                .to_string()
                .contains("in namespace \"a\"")
        );
    }
}
