//! The way to the API server: every call has a bound, and an error that says what was asked.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::error::PluginError;
use crate::refusal::{Call, late};

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Who writes.
const FIELD_MANAGER: &str = "kubectl-dormouse";

/// Kinds of which there are some in each namespace.
pub(crate) trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The cluster that is meant.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    /// What the context says.
    default_namespace: String,
    /// Where is looked; `None` everywhere.
    scope: Option<String>,
}

/// An object by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Cluster {
    /// Makes a client as the command line says. Nothing is asked yet.
    pub(crate) async fn connect(global: &Global) -> Result<Self, PluginError> {
        let mut config = config(global).await?;
        config.connect_timeout = Some(CONNECT);
        if let Some(user) = &global.as_user {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !global.as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(global.as_group.clone());
        }
        let default_namespace = global
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let scope = (!global.all_namespaces).then(|| default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| PluginError::Client(Box::new(error)))?;
        Ok(Self {
            client,
            default_namespace,
            scope,
        })
    }

    /// Where is looked; `None` everywhere.
    pub(crate) fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// The client itself.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// What a name on the command line means.
    pub(crate) fn name(&self, kind: &'static str, given: &str) -> Result<Name, PluginError> {
        parse_name(kind, given, &self.default_namespace)
    }

    /// The API of a kind, in the scope.
    pub(crate) fn scoped<K: Namespaced>(&self, scope: Option<&str>) -> Api<K> {
        match scope {
            Some(namespace) => Api::namespaced(self.client(), namespace),
            None => Api::all(self.client()),
        }
    }

    /// All of a kind in the scope.
    pub(crate) async fn list<K: Namespaced>(
        &self,
        scope: Option<&str>,
        selector: Option<&str>,
    ) -> Result<Vec<K>, PluginError> {
        let params = ListParams {
            label_selector: selector.map(str::to_owned),
            ..ListParams::default()
        };
        let api: Api<K> = self.scoped(scope);
        let call = call_of::<K>("list", scope, None);
        Ok(within(&call, api.list(&params)).await?.items)
    }

    /// All of a kind of the cluster's own.
    pub(crate) async fn list_cluster<K>(&self) -> Result<Vec<K>, PluginError>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client());
        let call = call_of::<K>("list", None, None);
        Ok(within(&call, api.list(&ListParams::default())).await?.items)
    }

    /// One of the cluster's own; `None` if there is none of that name.
    pub(crate) async fn find_cluster<K>(&self, name: &str) -> Result<Option<K>, PluginError>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client());
        let call = call_of::<K>("get", None, Some(name));
        none_if_absent(within(&call, api.get(name)).await)
    }

    /// One object.
    pub(crate) async fn get<K: Namespaced>(&self, name: &Name) -> Result<K, PluginError> {
        let api: Api<K> = Api::namespaced(self.client(), &name.namespace);
        let call = call_of::<K>("get", Some(&name.namespace), Some(&name.name));
        within(&call, api.get(&name.name)).await
    }

    /// One object; `None` if there is none of that name.
    pub(crate) async fn find<K: Namespaced>(&self, name: &Name) -> Result<Option<K>, PluginError> {
        none_if_absent(self.get(name).await)
    }

    /// Changes some fields of an object.
    pub(crate) async fn merge<K: Namespaced>(
        &self,
        name: &Name,
        patch: &serde_json::Value,
    ) -> Result<K, PluginError> {
        let api: Api<K> = Api::namespaced(self.client(), &name.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let call = call_of::<K>("patch", Some(&name.namespace), Some(&name.name));
        within(&call, api.patch(&name.name, &params, &Patch::Merge(patch))).await
    }

    /// Makes an object.
    pub(crate) async fn create<K: Namespaced + Serialize>(
        &self,
        namespace: &str,
        object: &K,
    ) -> Result<K, PluginError> {
        let api: Api<K> = Api::namespaced(self.client(), namespace);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let call = call_of::<K>("create", Some(namespace), None);
        within(&call, api.create(&params, object)).await
    }

    /// Deletes an object; returns its UID, for whoever waits for it to be gone.
    pub(crate) async fn delete<K: Namespaced>(&self, name: &Name) -> Result<Option<String>, PluginError> {
        let api: Api<K> = Api::namespaced(self.client(), &name.namespace);
        let call = call_of::<K>("delete", Some(&name.namespace), Some(&name.name));
        let deleted = within(&call, api.delete(&name.name, &DeleteParams::default())).await?;
        Ok(deleted.left().and_then(|object| object.meta().uid.clone()))
    }
}

/// Leaves out what is only useful and cannot be had, with a word about it.
pub(crate) fn optional<T: Default>(what: &str, found: Result<T, PluginError>) -> Result<T, PluginError> {
    match found {
        Err(error) if error.can_be_left_out() => {
            dormouse_output::complain(&format!("{what} is left out: {}", error.full_text()));
            Ok(T::default())
        }
        other => other,
    }
}

/// What is asked of the API server, for the error.
pub(crate) fn call_of<K: Resource<DynamicType = ()>>(
    verb: &'static str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Call {
    Call {
        verb,
        resource: K::plural(&()).into_owned(),
        group: K::group(&()).into_owned(),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    }
}

/// Makes one call.
pub(crate) async fn within<T>(
    call: &Call,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, PluginError> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| PluginError::api(call, &error)),
        Err(_) => Err(PluginError::Api(Box::new(late(call, ANSWER.as_secs())))),
    }
}

fn none_if_absent<T>(found: Result<T, PluginError>) -> Result<Option<T>, PluginError> {
    match found {
        Err(PluginError::Api(refusal)) if refusal.reason == "NotFound" => Ok(None),
        other => other.map(Some),
    }
}

async fn config(global: &Global) -> Result<Config, PluginError> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..KubeConfigOptions::default()
    };
    let unusable = |error| PluginError::Kubeconfig(Box::new(error));
    let read = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let from_file = match read {
        Ok(file) => {
            let by_file = names_proxy(&file, global.context.as_deref());
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map(|mut config| {
                    if !by_file {
                        // The client takes it from the environment, and does not ask NO_PROXY whether it is for this
                        // cluster.
                        config.proxy_url = None;
                    }
                    config
                })
        }
        Err(error) => Err(error),
    };
    match from_file {
        // A pod has no kubeconfig, and an account of its own.
        Err(error) if global.kubeconfig.is_none() && global.context.is_none() => {
            Config::incluster().map_err(|_| unusable(error))
        }
        other => other.map_err(unusable),
    }
}

/// Whether the kubeconfig itself says that there is a proxy before the cluster.
fn names_proxy(file: &Kubeconfig, context: Option<&str>) -> bool {
    let context = context.or(file.current_context.as_deref());
    let cluster = file
        .contexts
        .iter()
        .find(|named| Some(named.name.as_str()) == context)
        .and_then(|named| Some(named.context.as_ref()?.cluster.as_str()));
    file.clusters
        .iter()
        .find(|named| Some(named.name.as_str()) == cluster)
        .and_then(|named| named.cluster.as_ref()?.proxy_url.as_ref())
        .is_some_and(|url| !url.is_empty())
}

fn parse_name(kind: &'static str, given: &str, default_namespace: &str) -> Result<Name, PluginError> {
    let (namespace, name) = given.split_once('/').unwrap_or((default_namespace, given));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(PluginError::Name {
            kind,
            given: given.to_owned(),
        });
    }
    Ok(Name {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_the_kubeconfigs_or_none() {
        let file = |proxy: &str| -> Kubeconfig {
            serde_json::from_value(serde_json::json!({
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "one", "user": "me"}},
                             {"name": "b", "context": {"cluster": "two", "user": "me"}}],
                "clusters": [{"name": "one", "cluster": {"server": "https://1", "proxy-url": proxy}},
                             {"name": "two", "cluster": {"server": "https://2"}}],
            }))
            .unwrap()
        };
        assert!(names_proxy(&file("http://proxy"), None));
        assert!(!names_proxy(&file(""), None));
        assert!(!names_proxy(&file("http://proxy"), Some("b")));
        assert!(!names_proxy(&file("http://proxy"), Some("nowhere")));
    }

    #[test]
    fn names_may_have_a_namespace() {
        let parsed = |given: &str| {
            parse_name("SANDBOX", given, "here")
                .ok()
                .map(|name| (name.namespace, name.name))
        };
        assert_eq!(parsed("a"), Some(("here".into(), "a".into())));
        assert_eq!(parsed("there/a"), Some(("there".into(), "a".into())));
        for wrong in ["", "/a", "a/", "a/b/c"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
