//! Standbys that were made while their pool said that they run, and are to sleep now. Whether a guest can be put to sleep is
//! settled at its pod's birth, so others have to take their places: by and by, and only where the pool replaces standbys
//! that are not as it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_core::{ANNOTATION_MANAGED, Rung};
use k8s_openapi::api::core::v1::Pod;

use super::Observed;
use super::next::{is_ready, recreates};
use super::wish::Wished;
use crate::objects;

/// Of how many standbys one is replaced at a time.
const AT_A_TIME: usize = 4;

/// Whether nobody has said at a pod's birth whether its guest may be put to sleep. Where somebody says that it may not, its
/// successor could not be, either.
pub(super) fn is_born_so(pod: &Pod) -> bool {
    objects::annotation(&pod.metadata, ANNOTATION_MANAGED).is_none()
}

/// Those that are to be replaced now. `standbys`: all that there are, none is missing.
pub(super) fn replaced(
    observed: &Observed,
    standbys: &[Arc<Sandbox>],
    wishes: Option<&BTreeMap<String, Wished>>,
) -> Vec<Arc<Sandbox>> {
    // Those that were replaced last are ready before others are: claims find most of the pool as it was.
    if !recreates(&observed.pool) || !standbys.iter().all(|standby| is_ready(standby)) {
        return Vec::new();
    }
    let is_to_sleep = |standby: &&Arc<Sandbox>| {
        let uid = objects::uid(&standby.metadata);
        let wish = wishes.and_then(|wishes| wishes.get(uid));
        observed.sleepless.contains(uid) && wish.is_some_and(|(_, rung)| *rung != Rung::Running)
    };
    let most = standbys.len().div_ceil(AT_A_TIME);
    standbys.iter().filter(is_to_sleep).take(most).cloned().collect()
}
