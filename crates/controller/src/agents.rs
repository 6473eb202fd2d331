//! The agents of the nodes: where they are, what the guests on their nodes do, and orders to them.
//!
//! An agent is found by its pod. One link per node follows the agent's stream of events, so that what a guest does is
//! known here without asking; a link that breaks is made again, ever less often, and each at its own moment.

mod guest;
mod link;
mod order;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use dormouse_tls::Dialer;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::objects;

pub use guest::{Guest, GuestMemory, GuestProbes, Woken};
pub use order::{Order, OrderError, Ordered, Quiet};

/// How long it is remembered since when an agent is out of reach.
const LOST: Duration = Duration::from_secs(600);

/// The agents of all nodes.
#[derive(Clone)]
pub struct Agents(Arc<Inner>);

struct Inner {
    /// Who we are; `None` until there is a certificate.
    dialer: RwLock<Option<Dialer>>,
    links: Mutex<HashMap<String, Link>>,
    /// Since when agents are out of reach that could be reached before, by node.
    lost: Mutex<HashMap<String, Instant>>,
    guests: RwLock<HashMap<String, Guest>>,
    /// Is told of each guest that has changed: its namespace and its pod's name.
    changed: Changed,
    /// Is told of each node whose agent can be reached from now on, or not any more.
    turned: Turned,
}

/// Takes a node's name.
type Turned = Box<dyn Fn(&str) + Send + Sync>;

/// Takes a namespace and a pod's name.
type Changed = Box<dyn Fn(&str, &str) + Send + Sync>;

struct Link {
    address: SocketAddr,
    stop: CancellationToken,
    /// Whether all guests of the node are known.
    synced: bool,
    client: Option<dormouse_rpc::NodeClient>,
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// What is known of a pod's guest.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// What its agent says.
    Seen(Box<Guest>),
    /// Its agent cannot be reached.
    Unreachable,
    /// Its agent does not know the pod, or not yet.
    Unknown,
}

impl Sight {
    /// The guest's last wake, if its agent says of one.
    #[must_use]
    pub fn woken(&self) -> Option<&Woken> {
        match self {
            Self::Seen(guest) => guest.woken.as_ref(),
            Self::Unreachable | Self::Unknown => None,
        }
    }
}

impl Agents {
    /// None yet. `changed` is told of each guest that has changed: its namespace and its pod's name; `turned` of each
    /// node whose agent can be reached from now on, or not any more.
    #[must_use]
    pub fn new(
        changed: impl Fn(&str, &str) + Send + Sync + 'static,
        turned: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            dialer: RwLock::default(),
            links: Mutex::default(),
            lost: Mutex::default(),
            guests: RwLock::default(),
            changed: Box::new(changed),
            turned: Box::new(turned),
        }))
    }

    /// Calls with this certificate from now on. Links that there are stay: both ends knew each other when they were made.
    pub fn call_with(&self, dialer: Dialer) {
        *self.0.dialer.write().unwrap_or_else(PoisonError::into_inner) = Some(dialer);
    }

    pub(crate) fn dialer(&self) -> Option<Dialer> {
        self.0
            .dialer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes note of where the agent of a node is; `None`: nowhere.
    pub fn locate(&self, node: &str, address: Option<SocketAddr>) {
        let mut links = self.links();
        if links.get(node).map(|link| link.address) == address {
            return;
        }
        if let Some(old) = links.remove(node) {
            old.stop.cancel();
            if old.client.is_some() {
                self.lost(node);
            }
        }
        let Some(address) = address else {
            return;
        };
        let stop = CancellationToken::new();
        let link = Link {
            address,
            stop: stop.clone(),
            synced: false,
            client: None,
        };
        links.insert(node.to_owned(), link);
        drop(links);
        tokio::spawn(link::follow(self.clone(), node.to_owned(), address, stop));
    }

    /// Whether the agent of a node can be given orders.
    #[must_use]
    pub fn reaches(&self, node: &str) -> bool {
        self.links()
            .get(node)
            .is_some_and(|link| link.synced && link.client.is_some())
    }

    /// Since when the agent of a node is out of reach without a break, if it could be reached before.
    #[must_use]
    pub fn lost_since(&self, node: &str) -> Option<Instant> {
        let lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get(node).copied()
    }

    /// What is known of the guest of a pod on a node.
    #[must_use]
    pub fn sight(&self, node: &str, pod_uid: &str) -> Sight {
        if !self.reaches(node) {
            return Sight::Unreachable;
        }
        self.ask(pod_uid, |guest| Sight::Seen(Box::new(guest.clone())))
            .unwrap_or(Sight::Unknown)
    }

    /// What the guest of a pod has in memory, if its agent can be reached and knows it. Asked of whole pools at once, so
    /// nothing is copied.
    #[must_use]
    pub fn memory_of(&self, pod: &Pod) -> Option<GuestMemory> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        if !self.reaches(node) {
            return None;
        }
        self.ask(objects::uid(&pod.metadata), Guest::memory)
    }

    /// What is to be known of the guest of a pod, if there is one.
    fn ask<T>(&self, pod_uid: &str, question: impl FnOnce(&Guest) -> T) -> Option<T> {
        let guests = self.0.guests.read().unwrap_or_else(PoisonError::into_inner);
        guests.get(pod_uid).map(question)
    }

    /// Gives an order to the agent of a node, and takes note of what the guest does then.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or refuses.
    pub async fn order(&self, node: &str, order: Order) -> Result<Ordered, OrderError> {
        let client = self.links().get(node).and_then(|link| link.client.clone());
        let client = client.ok_or_else(|| OrderError::Unreachable {
            node: node.to_owned(),
        })?;
        let ordered = order::give(client, node, order).await?;
        if let Some(guest) = &ordered.guest {
            self.note(guest, false);
        }
        Ok(ordered)
    }

    /// Gives an order for which nobody who knows the guest waits: those who do are told what has come of it. Returns how
    /// long it took on the node.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or refuses.
    pub async fn order_behind(&self, node: &str, order: Order) -> Result<Duration, OrderError> {
        let ordered = self.order(node, order).await?;
        if let Some(guest) = &ordered.guest {
            (self.0.changed)(&guest.namespace, &guest.pod);
        }
        Ok(ordered.took)
    }

    /// Links to an agent without looking for it, for tests.
    #[cfg(test)]
    pub(crate) fn link(&self, node: &str, client: dormouse_rpc::NodeClient, guests: &[Guest]) {
        let link = Link {
            address: ([127, 0, 0, 1], 0).into(),
            stop: CancellationToken::new(),
            synced: true,
            client: Some(client),
        };
        self.links().insert(node.to_owned(), link);
        self.found(node);
        for guest in guests {
            self.note(guest, false);
        }
    }

    /// Breaks a link, for tests.
    #[cfg(test)]
    pub(crate) fn unlink(&self, node: &str) {
        self.unlinked(node);
    }

    fn links(&self) -> MutexGuard<'_, HashMap<String, Link>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a guest; `tell`: and tells of it if it is news.
    fn note(&self, guest: &Guest, tell: bool) {
        let (namespace, pod) = (guest.namespace.clone(), guest.pod.clone());
        let news = {
            let mut guests = self.0.guests.write().unwrap_or_else(PoisonError::into_inner);
            let before = guests.insert(guest.uid.clone(), guest.clone());
            before.is_none_or(|before| before.stands_otherwise(guest))
        };
        if tell && news {
            (self.0.changed)(&namespace, &pod);
        }
    }

    /// Takes note that a guest is gone.
    fn forget(&self, uid: &str) {
        let gone = {
            let mut guests = self.0.guests.write().unwrap_or_else(PoisonError::into_inner);
            guests.remove(uid)
        };
        if let Some(guest) = gone {
            (self.0.changed)(&guest.namespace, &guest.pod);
        }
    }

    /// A link is there, with the guests of its node as they are now.
    fn linked(&self, node: &str, client: dormouse_rpc::NodeClient, there: &[String]) {
        if let Some(link) = self.links().get_mut(node) {
            link.client = Some(client);
            link.synced = true;
            self.found(node);
        }
        let gone: Vec<String> = {
            let guests = self.0.guests.read().unwrap_or_else(PoisonError::into_inner);
            let of_node = guests.values().filter(|guest| guest.node == node);
            of_node
                .map(|guest| guest.uid.clone())
                .filter(|uid| !there.contains(uid))
                .collect()
        };
        for uid in gone {
            self.forget(&uid);
        }
        self.tell_all_of(node);
        (self.0.turned)(node);
    }

    /// A link is broken.
    fn unlinked(&self, node: &str) {
        let was = self.links().get_mut(node).is_some_and(|link| {
            link.synced = false;
            link.client.take().is_some()
        });
        if was {
            self.lost(node);
            self.tell_all_of(node);
            (self.0.turned)(node);
        }
    }

    /// From now on an agent is out of reach. Of one that has been for long nobody asks any more since when.
    fn lost(&self, node: &str) {
        let mut lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.retain(|_, since| since.elapsed() < LOST);
        lost.entry(node.to_owned()).or_insert_with(Instant::now);
    }

    /// From now on an agent can be reached.
    fn found(&self, node: &str) {
        let mut lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.remove(node);
    }

    fn tell_all_of(&self, node: &str) {
        let pods: Vec<(String, String)> = {
            let guests = self.0.guests.read().unwrap_or_else(PoisonError::into_inner);
            let of_node = guests.values().filter(|guest| guest.node == node);
            of_node
                .map(|guest| (guest.namespace.clone(), guest.pod.clone()))
                .collect()
        };
        for (namespace, pod) in pods {
            (self.0.changed)(&namespace, &pod);
        }
    }
}
