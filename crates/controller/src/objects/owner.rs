//! Whose an object is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

/// Whose an object is, seen from somebody who would like to have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ownership<'a> {
    /// It is theirs.
    Own,
    /// No controller has it.
    Nobodys,
    /// Another controller has it.
    Others(&'a OwnerReference),
}

/// The owner that controls the object.
#[must_use]
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// The owner that controls the object, if it is of this kind, in whatever version of its group.
#[must_use]
pub fn controller_of_kind<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<&OwnerReference> {
    controller_of(meta).filter(|owner| {
        let group = owner.api_version.split('/').next().unwrap_or_default();
        owner.kind == K::kind(&()) && group == K::group(&())
    })
}

/// Whose the object is, seen from the one with this UID.
#[must_use]
pub fn ownership<'a>(meta: &'a ObjectMeta, uid: &str) -> Ownership<'a> {
    match controller_of(meta) {
        None => Ownership::Nobodys,
        Some(owner) if owner.uid == uid => Ownership::Own,
        Some(owner) => Ownership::Others(owner),
    }
}

/// The reference that makes `owner` the controller of an object, and holds a deletion in the foreground until the object
/// is gone.
#[must_use]
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: super::name(owner.meta()).to_owned(),
        uid: super::uid(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
