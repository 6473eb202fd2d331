//! Single writes, after which the cache shows what the API server has answered.

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cache::Cache;

/// What can be written.
pub(crate) trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + Serialize
    + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize
        + 'static
{
}

/// Which object is deleted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Which<'a> {
    pub(crate) name: &'a str,
    /// It is left alone if it is another one by now.
    pub(crate) uid: &'a str,
    /// It is left alone if anybody has written it since.
    pub(crate) version: Option<&'a str>,
}

/// Writes for one controller.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub(crate) struct Writer {
    client: Client,
    /// Who writes, for the API server's record of field owners.
    manager: &'static str,
}

impl Writer {
    pub(crate) const fn new(client: Client, manager: &'static str) -> Self {
        Self { client, manager }
    }

    pub(crate) fn api<K: Object>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K: Object>(
        &self,
        cache: &Cache<K>,
        namespace: &str,
        object: &K,
    ) -> Result<K, kube::Error> {
        let params = PostParams {
            field_manager: Some(self.manager.to_owned()),
            ..PostParams::default()
        };
        let object = self.api::<K>(namespace).create(&params, object).await?;
        cache.wrote(object.clone());
        Ok(object)
    }

    /// With a JSON merge patch.
    pub(crate) async fn patch<K: Object>(
        &self,
        cache: &Cache<K>,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<K, kube::Error> {
        let object = self
            .api::<K>(namespace)
            .patch(name, &self.patch_params(), &Patch::Merge(patch))
            .await?;
        cache.wrote(object.clone());
        Ok(object)
    }

    /// With a JSON merge patch.
    pub(crate) async fn patch_status<K: Object>(
        &self,
        cache: &Cache<K>,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<K, kube::Error> {
        let object = self
            .api::<K>(namespace)
            .patch_status(name, &self.patch_params(), &Patch::Merge(patch))
            .await?;
        cache.wrote(object.clone());
        Ok(object)
    }

    /// Deletes an object; that it is gone already is as good.
    pub(crate) async fn delete<K: Object>(
        &self,
        cache: &Cache<K>,
        namespace: &str,
        which: Which<'_>,
        foreground: bool,
    ) -> Result<(), kube::Error> {
        let name = which.name;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(which.uid.to_owned()),
                resource_version: which.version.map(str::to_owned),
            }),
            propagation_policy: foreground.then_some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        match self.api::<K>(namespace).delete(name, &params).await {
            Ok(answer) => {
                match answer.left() {
                    Some(object) if object.meta().deletion_timestamp.is_some() => cache.wrote(object),
                    _ => cache.gone(namespace, name, which.uid),
                }
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                cache.gone(namespace, name, which.uid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn patch_params(&self) -> PatchParams {
        PatchParams {
            field_manager: Some(self.manager.to_owned()),
            ..PatchParams::default()
        }
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether it was written by somebody else since it was read.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}

pub(crate) fn is_already_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}
