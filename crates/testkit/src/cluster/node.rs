//! A node: what its machine is given, and what runs there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::control::{self, Users};
use super::machine::{self, Unit};
use super::part;
use super::pki::Pki;
use super::slot::Slot;

/// The `number`th node's name, from 1.
pub(super) fn name(number: u8) -> String {
    format!("node-{number}")
}

/// Parent of its pods' cgroups.
pub(super) fn cgroup(slot: &Slot, number: u8) -> String {
    format!("{}/{}", slot.cgroup, name(number))
}

/// Writes what containerd, CNI, the shims, kubelet and kube-proxy read, into the machine's directory.
pub(super) fn write(
    slot: &Slot,
    pki: &Pki,
    users: &Users,
    number: u8,
    dir: &Path,
    kubelet: &Map<String, Value>,
) -> Result<()> {
    let put = |inside: &str, text: &str| {
        let path = machine::own(dir, inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    fs::create_dir_all(machine::own(dir, "/etc/containerd/conf.d")).context("create conf.d")?;
    put("/etc/containerd/config.toml", CONTAINERD)?;
    put("/etc/containerd/runsc.toml", RUNSC)?;
    put(
        "/etc/cni/net.d/10-cluster.conflist",
        &cni(slot, number).to_string(),
    )?;

    let name = name(number);
    let certificate = format!("kubelet-{number}");
    pki.issue(
        &certificate,
        &format!("CN = system:node:{name}\nO = system:nodes\n"),
        &[slot.node(number)],
        &[&name],
    )?;
    for (from, to) in [
        ("ca.crt".to_owned(), "ca.crt"),
        (format!("{certificate}.crt"), "kubelet.crt"),
        (format!("{certificate}.key"), "kubelet.key"),
    ] {
        let text = fs::read_to_string(pki.file(&from)).with_context(|| format!("read {from}"))?;
        put(&format!("/etc/kubernetes/{to}"), &text)?;
    }
    if let Some(user) = users.kubelets.get(usize::from(number.saturating_sub(1))) {
        put(
            "/etc/kubernetes/kubelet.kubeconfig",
            &control::kubeconfig(slot, user, "/etc/kubernetes/ca.crt"),
        )?;
    }
    put(
        "/etc/kubernetes/proxy.kubeconfig",
        &control::kubeconfig(slot, &users.proxy, "/etc/kubernetes/ca.crt"),
    )?;
    // What this host would resolve names with is none of the pods' business.
    put("/etc/kubernetes/resolv.conf", "")?;
    let mut config = kubelet_config(slot, number);
    config.extend(kubelet.clone());
    // JSON is YAML, and whoever looks for a kubelet's configuration looks there.
    put("/var/lib/kubelet/config.yaml", &Value::Object(config).to_string())?;
    put(
        "/etc/kubernetes/proxy.json",
        &proxy_config(slot, number).to_string(),
    )
}

pub(super) fn containerd() -> Unit {
    Unit::new(part::CONTAINERD, ["--config=/etc/containerd/config.toml"])
}

pub(super) fn kubelet(slot: &Slot, number: u8) -> Unit {
    Unit::new(
        part::KUBELET,
        [
            "--config=/var/lib/kubelet/config.yaml".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".to_owned(),
            format!("--hostname-override={}", name(number)),
            format!("--node-ip={}", slot.node(number)),
        ],
    )
}

pub(super) fn proxy(number: u8) -> Unit {
    Unit::new(
        part::PROXY,
        [
            "--config=/etc/kubernetes/proxy.json".to_owned(),
            format!("--hostname-override={}", name(number)),
        ],
    )
}

/// Everything at its default place, as an installer expects it: `conf.d` is what drop-ins go into.
const CONTAINERD: &str = r"version = 3
imports = ['/etc/containerd/conf.d/*.toml']

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'localhost/pause:1'

[plugins.'io.containerd.cri.v1.runtime']
# A root without CAP_SYS_RESOURCE cannot lower it.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/local/bin']
conf_dir = '/etc/cni/net.d'
use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '/usr/local/bin/runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc]
runtime_type = 'io.containerd.runsc.v1'
pod_annotations = ['dev.gvisor.*']
container_annotations = ['dev.gvisor.*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc.options]
TypeUrl = 'io.containerd.runsc.v1.options'
ConfigPath = '/etc/containerd/runsc.toml'
";

const RUNSC: &str = r#"binary_name = "/usr/local/bin/runsc"

[runsc_config]
platform = "systrap"
"#;

fn cni(slot: &Slot, number: u8) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": slot.pods_of(number)}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }]})
}

fn kubelet_config(slot: &Slot, number: u8) -> Map<String, Value> {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": slot.node(number),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt", "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": true, "enforceNodeAllocatable": [],
        // This node's alone: all kubelets of this machine share its cgroup file systems.
        "cgroupRoot": cgroup(slot, number),
        "failCgroupV1": false, "failSwapOn": false, "oomScoreAdj": 0, "makeIPTablesUtilChains": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "clusterDNS": [slot.service(10)], "clusterDomain": "cluster.local",
        // The disk is this host's, and how full it is says nothing about the test.
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "maxPods": 250, "nodeStatusUpdateFrequency": "5s",
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn proxy_config(slot: &Slot, number: u8) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "clientConnection": {"kubeconfig": "/etc/kubernetes/proxy.kubeconfig"},
        "clusterCIDR": slot.pods(), "bindAddress": slot.node(number),
        "metricsBindAddress": "127.0.0.1:10249", "oomScoreAdj": 0,
        // These are settings of the whole kernel, and not this node's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}
