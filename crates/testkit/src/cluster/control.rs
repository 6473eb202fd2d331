//! The control plane: what its machine is given, and what runs there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::machine::{self, Unit};
use super::part;
use super::pki::{Pki, User, tokens};
use super::slot::Slot;

/// The machine's host name.
pub(super) const NAME: &str = "control";

/// Where the control plane's own files are on its machine.
const KUBERNETES: &str = "/etc/kubernetes";

/// Who the parts of the cluster are.
#[derive(Debug)]
pub(super) struct Users {
    pub(super) admin: User,
    pub(super) controller_manager: User,
    pub(super) scheduler: User,
    pub(super) proxy: User,
    pub(super) dns: User,
    pub(super) fake_nodes: User,
    pub(super) kubelets: Vec<User>,
}

impl Users {
    pub(super) fn new(nodes: &[String]) -> Self {
        Self {
            admin: User::new("admin", Some("system:masters")),
            // It acts for all its controllers: with a ServiceAccount for each it takes seconds longer to begin.
            controller_manager: User::new("system:kube-controller-manager", Some("system:masters")),
            scheduler: User::new("system:kube-scheduler", None),
            proxy: User::new("system:kube-proxy", None),
            dns: User::new("coredns", Some("system:masters")),
            fake_nodes: User::new("kwok", Some("system:masters")),
            kubelets: nodes
                .iter()
                .map(|name| User::new(format!("system:node:{name}"), Some("system:nodes")))
                .collect(),
        }
    }

    fn tokens(&self) -> String {
        let mut users = vec![
            &self.admin,
            &self.controller_manager,
            &self.scheduler,
            &self.proxy,
            &self.dns,
            &self.fake_nodes,
        ];
        users.extend(&self.kubelets);
        tokens(&users)
    }
}

/// The API server's address for everybody.
pub(super) fn server(slot: &Slot) -> String {
    format!("https://{}:6443", slot.control())
}

/// A kubeconfig. `ca` is where whoever reads it has the authority's certificate.
pub(super) fn kubeconfig(slot: &Slot, user: &User, ca: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
        "clusters": [{"name": "cluster", "cluster": {"server": server(slot), "certificate-authority": ca}}],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": user.name}}],
    })
    .to_string()
}

/// Issues the control plane's certificates.
pub(super) fn certificates(slot: &Slot, pki: &Pki) -> Result<()> {
    pki.issue(
        "apiserver",
        "CN = kube-apiserver\n",
        &[slot.control(), std::net::Ipv4Addr::LOCALHOST, slot.service(1)],
        &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ],
    )?;
    pki.issue(
        "apiserver-kubelet",
        "CN = kube-apiserver\nO = system:masters\n",
        &[],
        &[],
    )
}

/// Writes what the control plane reads, into its machine's directory.
pub(super) fn write(slot: &Slot, pki: &Pki, users: &Users, dir: &Path) -> Result<()> {
    let own = machine::own(dir, KUBERNETES);
    pki.give(
        &own,
        &[
            "ca.crt",
            "ca.key",
            "sa.key",
            "sa.pub",
            "apiserver.crt",
            "apiserver.key",
            "apiserver-kubelet.crt",
            "apiserver-kubelet.key",
        ],
    )?;
    let put = |name: &str, text: &str| {
        let path = own.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    put("tokens.csv", &users.tokens())?;
    for (name, user) in [
        ("controller-manager", &users.controller_manager),
        ("scheduler", &users.scheduler),
        ("coredns", &users.dns),
        ("kwok", &users.fake_nodes),
    ] {
        put(
            &format!("{name}.kubeconfig"),
            &kubeconfig(slot, user, "/etc/kubernetes/ca.crt"),
        )?;
    }
    put("fake-nodes.yaml", include_str!("fake-nodes.yaml"))?;
    put(
        "Corefile",
        &format!(
            ".:53 {{\n    bind {}\n    errors\n    kubernetes cluster.local in-addr.arpa {{\n        \
             kubeconfig {KUBERNETES}/coredns.kubeconfig\n        ttl 1\n    }}\n}}\n",
            slot.control()
        ),
    )
}

pub(super) fn etcd() -> Unit {
    Unit::new(
        part::ETCD,
        [
            "--name=control",
            "--data-dir=/var/lib/etcd",
            // A cluster of a test does not outlive a crash of this host.
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=control=http://127.0.0.1:2380",
            "--log-level=warn",
        ],
    )
}

pub(super) fn apiserver(slot: &Slot, more: &[String]) -> Unit {
    let file = |flag: &str, name: &str| format!("--{flag}={KUBERNETES}/{name}");
    let address = slot.control();
    let mut arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        "--secure-port=6443".to_owned(),
        format!("--service-cluster-ip-range={}", slot.services()),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("service-account-key-file", "sa.pub"),
        file("service-account-signing-key-file", "sa.key"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("token-auth-file", "tokens.csv"),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        file("kubelet-certificate-authority", "ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--cert-dir=/run/kubernetes".to_owned(),
    ];
    arguments.extend_from_slice(more);
    Unit::new(part::APISERVER, arguments)
}

pub(super) fn controller_manager(more: &[String]) -> Unit {
    let all = [
        "--kubeconfig=/etc/kubernetes/controller-manager.kubeconfig",
        "--service-account-private-key-file=/etc/kubernetes/sa.key",
        "--root-ca-file=/etc/kubernetes/ca.crt",
        "--cluster-signing-cert-file=/etc/kubernetes/ca.crt",
        "--cluster-signing-key-file=/etc/kubernetes/ca.key",
        "--use-service-account-credentials=false",
        "--leader-elect=false",
        "--secure-port=0",
    ];
    let all = all.into_iter().map(str::to_owned);
    Unit::new(part::CONTROLLER_MANAGER, all.chain(more.iter().cloned()))
}

pub(super) fn scheduler(more: &[String]) -> Unit {
    let all = [
        "--kubeconfig=/etc/kubernetes/scheduler.kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
    ];
    let all = all.into_iter().map(str::to_owned);
    Unit::new(part::SCHEDULER, all.chain(more.iter().cloned()))
}

pub(super) fn dns() -> Unit {
    Unit::new(part::DNS, ["-conf=/etc/kubernetes/Corefile"])
}

/// Keeps nodes that are annotated `kwok.x-k8s.io/node: fake`, and their pods, as if they were there.
pub(super) fn fake_nodes() -> Unit {
    Unit::new(
        part::FAKE_NODES,
        [
            "--kubeconfig=/etc/kubernetes/kwok.kubeconfig",
            "--config=/etc/kubernetes/fake-nodes.yaml",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
        ],
    )
}

/// What every pod expects of a cluster: its name service, and the runtime handlers that need a RuntimeClass.
pub(super) fn objects(slot: &Slot) -> Value {
    let ports = |target: bool| -> Vec<Value> {
        [("dns", "UDP"), ("dns-tcp", "TCP")]
            .map(|(name, protocol)| {
                let mut port = json!({"name": name, "port": 53, "protocol": protocol});
                if let (true, Some(port)) = (target, port.as_object_mut()) {
                    port.insert("targetPort".to_owned(), json!(53));
                }
                port
            })
            .to_vec()
    };
    json!({"apiVersion": "v1", "kind": "List", "items": [
        // Without a selector: the server is a process on the control plane's machine.
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
         "spec": {"clusterIP": slot.service(10), "ports": ports(true)}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
         "metadata": {"name": "kube-dns-1", "namespace": "kube-system",
                      "labels": {"kubernetes.io/service-name": "kube-dns"}},
         "addressType": "IPv4", "endpoints": [{"addresses": [slot.control()], "conditions": {"ready": true}}],
         "ports": ports(false)},
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": crate::GVISOR},
    ]})
}
