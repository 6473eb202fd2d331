//! What an installer on a node does: it writes a drop-in, and has containerd start again.

use dormouse_testkit::cluster::part;
use dormouse_testkit::host::wait;
use dormouse_testkit::{BUSYBOX, Cluster, ClusterOptions};
use serde_json::json;

use crate::support::{LIMIT, ask, server};

/// containerd ends what it is just about to start when it is stopped, so this runs twice: the second time there is nothing to do.
const INSTALL: &str = "
set -e
place=/host/etc/containerd/conf.d/50-other.toml
if [ -e $place ]; then echo installed; exec sleep 86400; fi
cat > $place <<'END'
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other.options]
BinaryName = '/usr/local/bin/runc'
END
nsenter -t 1 -m -- systemctl restart containerd.service
echo installed
exec sleep 86400
";

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_daemon_set_adds_a_runtime_handler() {
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let node = &cluster.nodes()[0];
    let starts = node.unit(part::CONTAINERD).unwrap().starts;
    cluster
        .apply(&server("default", "before", Some("gvisor")))
        .await
        .unwrap();
    let before = cluster.wait_ready("default", "before", LIMIT).await.unwrap();
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "other"}, "handler": "other"},
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "installer", "namespace": "kube-system"},
             "spec": {
                 "selector": {"matchLabels": {"app": "installer"}},
                 "template": {
                     "metadata": {"labels": {"app": "installer"}},
                     "spec": {
                         "hostPID": true, "terminationGracePeriodSeconds": 1,
                         "containers": [{
                             "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never",
                             "command": ["sh", "-c", INSTALL], "securityContext": {"privileged": true},
                             "volumeMounts": [{"name": "etc", "mountPath": "/host/etc"}],
                         }],
                         "volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}],
                     },
                 },
             }},
        ]}))
        .await
        .unwrap();
    wait::until("containerd to be started again", LIMIT, async || {
        let unit = node.unit(part::CONTAINERD)?;
        anyhow::ensure!(unit.starts > starts && unit.pid.is_some(), "{unit:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(node.path("/etc/containerd/conf.d/50-other.toml").is_file());
    assert!(!std::path::Path::new("/etc/containerd/conf.d/50-other.toml").exists());

    let mut pod = server("default", "after", Some("other"));
    pod["spec"]["containers"][0]["env"] = json!([{"name": "WHICH", "value": "other"}]);
    cluster.apply(&pod).await.unwrap();
    let after = cluster.wait_ready("default", "after", LIMIT).await.unwrap();
    assert_eq!(ask(after).await, "after");
    // The one that was there did not notice.
    assert_eq!(ask(before).await, "before");
    let view = cluster.get("pod", "default", "before").await.unwrap();
    assert_eq!(view["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.down().unwrap();
}
