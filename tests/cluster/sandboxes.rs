//! Sandboxes as agent-sandbox has them, on a real cluster.

use std::sync::Arc;
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, PYTHON};
use serde_json::{Value, json};

use crate::installed::{installed, words};
use crate::support::{LIMIT, ask, ask_from, namespace, server};

/// A Sandbox around a pod that answers HTTP with its own name.
pub(crate) fn sandbox(space: &str, name: &str, class: Option<&str>, spec: &Value) -> Value {
    let pod = server(space, name, class);
    let mut object = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": space},
        "spec": {"podTemplate": {"spec": pod["spec"]}},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

/// Status, reason and message of a condition.
pub(crate) fn condition(object: &Value, type_: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == type_)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits until a condition of a Sandbox is so.
pub(crate) async fn until(
    cluster: &Cluster,
    space: &str,
    name: &str,
    type_: &str,
    status: &str,
    reason: &str,
) -> Value {
    let what = format!("{name}: {type_}={status} ({reason})");
    let seen = wait::until(&what, LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", space, name).await?;
        let is = condition(&object, type_);
        match &is {
            Some((is_status, is_reason, _)) if is_status == status && is_reason == reason => Ok(object),
            _ => Err(anyhow::anyhow!("it is {is:?}; {}", object["status"])),
        }
    })
    .await;
    match seen {
        Ok(object) => object,
        Err(error) => panic!("{error:#}\n{}", words(cluster).await),
    }
}

/// Tells a Sandbox to run, or not to.
pub(crate) async fn operate(cluster: &Cluster, space: &str, name: &str, mode: &str) {
    let patch = json!({"spec": {"operatingMode": mode}}).to_string();
    let target = [
        "sandbox.agents.x-k8s.io",
        name,
        "-n",
        space,
        "--type=merge",
        "-p",
        &patch,
    ];
    cluster
        .kubectl(&[&["patch"][..], &target].concat())
        .await
        .unwrap();
}

pub(crate) async fn gone(cluster: &Cluster, kind: &str, space: &str, name: &str) {
    let object = format!("{kind}/{name}");
    cluster
        .kubectl(&["wait", "--for=delete", &object, "-n", space, "--timeout=90s"])
        .await
        .unwrap();
}

fn pod_ip(object: &Value) -> std::net::Ipv4Addr {
    object["status"]["podIPs"][0].as_str().unwrap().parse().unwrap()
}

async fn uid(cluster: &Cluster, kind: &str, space: &str, name: &str) -> String {
    let object = cluster.get(kind, space, name).await.unwrap();
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

async fn start(space: &str) -> Arc<Cluster> {
    let cluster = installed().await;
    namespace(&cluster, space).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_runs_is_suspended_and_runs_again() {
    let space = "cycle";
    let cluster = start(space).await;
    let object = sandbox(space, "box", None, &json!({"service": true}));
    cluster.apply(&object).await.unwrap();
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(condition(&up, "Ready").unwrap().2, "Pod is Ready; Service Exists");
    assert_eq!(condition(&up, "Suspended").unwrap().1, "NotSuspended");
    assert_eq!(condition(&up, "PodScheduled").unwrap().0, "True");
    assert_eq!(up["status"]["conditions"].as_array().unwrap().len(), 3, "{up}");
    assert_eq!(up["metadata"]["annotations"]["agents.x-k8s.io/pod-name"], "box");
    assert_eq!(up["status"]["serviceFQDN"], "box.cycle.svc.cluster.local");
    let selector = up["status"]["selector"].as_str().unwrap().to_owned();
    assert_eq!(ask(pod_ip(&up)).await, "box");
    cluster.apply(&server(space, "asker", None)).await.unwrap();
    cluster.wait_ready(space, "asker", LIMIT).await.unwrap();
    assert_eq!(ask_from(&cluster, space, "asker", "box.cycle").await, "box");
    let before = uid(&cluster, "pod", space, "box").await;

    operate(&cluster, space, "box", "Suspended").await;
    let down = until(&cluster, space, "box", "Suspended", "True", "PodTerminated").await;
    gone(&cluster, "pod", space, "box").await;
    assert_eq!(condition(&down, "Ready").unwrap().1, "SandboxSuspended");
    assert_eq!(condition(&down, "Ready").unwrap().2, "Sandbox is suspended");
    assert_eq!(down["status"]["podIPs"], Value::Null);
    assert_eq!(down["status"]["selector"], selector);
    assert_eq!(down["status"]["service"], "box");
    assert_eq!(
        down["metadata"]["annotations"]["agents.x-k8s.io/pod-name"],
        Value::Null
    );

    operate(&cluster, space, "box", "Running").await;
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(pod_ip(&up)).await, "box");
    assert_ne!(uid(&cluster, "pod", space, "box").await, before);

    cluster
        .kubectl(&["delete", "sandbox.agents.x-k8s.io", "box", "-n", space])
        .await
        .unwrap();
    gone(&cluster, "pod", space, "box").await;
    gone(&cluster, "service", space, "box").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_somebody_deletes_comes_back_and_one_that_ended_does_not() {
    let space = "pods";
    let cluster = start(space).await;
    cluster
        .apply(&sandbox(space, "box", None, &json!({})))
        .await
        .unwrap();
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let before = uid(&cluster, "pod", space, "box").await;
    cluster
        .kubectl(&["delete", "pod", "box", "-n", space, "--wait=true"])
        .await
        .unwrap();
    wait::until("another pod", LIMIT, async || {
        let now = cluster.get("pod", space, "box").await?;
        anyhow::ensure!(now["metadata"]["uid"] != before.as_str(), "the old one");
        Ok(())
    })
    .await
    .unwrap();
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;

    for (name, code, reason) in [("good", "0", "PodSucceeded"), ("bad", "1", "PodFailed")] {
        let object = json!({
            "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
            "metadata": {"name": name, "namespace": space},
            "spec": {"podTemplate": {"spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                    "command": ["python3", "-c", format!("raise SystemExit({code})")],
                }],
            }}},
        });
        cluster.apply(&object).await.unwrap();
        let ended = until(&cluster, space, name, "Finished", "True", reason).await;
        assert_eq!(condition(&ended, "Ready").unwrap().1, reason);
        let pod = uid(&cluster, "pod", space, name).await;
        let now = cluster.get("pod", space, name).await.unwrap();
        assert_eq!(now["metadata"]["uid"], pod.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_somebody_elses_is_not_touched() {
    let space = "foreign";
    let cluster = start(space).await;
    cluster.apply(&server(space, "box", None)).await.unwrap();
    cluster.wait_ready(space, "box", LIMIT).await.unwrap();
    let before = uid(&cluster, "pod", space, "box").await;
    cluster
        .apply(&sandbox(space, "box", None, &json!({})))
        .await
        .unwrap();
    let stuck = until(&cluster, space, "box", "Ready", "False", "ReconcilerError").await;
    assert!(
        condition(&stuck, "Ready")
            .unwrap()
            .2
            .contains("cannot adopt unowned pod \"box\""),
        "{stuck}"
    );
    operate(&cluster, space, "box", "Suspended").await;
    let suspended = until(&cluster, space, "box", "Ready", "False", "SandboxSuspended").await;
    assert_eq!(condition(&suspended, "Suspended").unwrap().1, "PodNotOwned");
    assert_eq!(uid(&cluster, "pod", space, "box").await, before);
    // It says that it may be had.
    cluster
        .kubectl(&[
            "label",
            "pod",
            "box",
            "-n",
            space,
            "agents.x-k8s.io/adoptable=true",
        ])
        .await
        .unwrap();
    operate(&cluster, space, "box", "Running").await;
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let pod = cluster.get("pod", space, "box").await.unwrap();
    assert_eq!(pod["metadata"]["uid"], before.as_str());
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Sandbox");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_refuses_is_said_and_others_do_not_suffer() {
    let space = "invalid";
    let cluster = start(space).await;
    let mut bad = sandbox(space, "bad", None, &json!({}));
    bad["spec"]["podTemplate"]["spec"]["containers"][0]["name"] = json!("NOT A NAME");
    cluster.apply(&bad).await.unwrap();
    let refused = until(&cluster, space, "bad", "Ready", "False", "InvalidConfiguration").await;
    assert!(
        condition(&refused, "Ready").unwrap().2.contains("NOT A NAME"),
        "{refused}"
    );
    cluster
        .apply(&sandbox(space, "good", None, &json!({})))
        .await
        .unwrap();
    until(&cluster, space, "good", "Ready", "True", "DependenciesReady").await;
    let wrong = sandbox(space, "wrong", None, &json!({"idleTimeout": "soon"}));
    let error = cluster.apply(&wrong).await.unwrap_err().to_string();
    assert!(error.contains("idleTimeout"), "{error}");
}

/// What keeps a pod out of a namespace.
struct Limit {
    space: &'static str,
    /// The object that does, or the namespace's label; and how `kubectl` lifts it.
    set: Option<Value>,
    label: Option<&'static str>,
    lift: &'static [&'static str],
    /// What is so of a container that fits, and of one that does not.
    fits: Value,
    exceeds: Value,
    says: &'static str,
}

impl Limit {
    fn memory(request: &str, limit: &str) -> Value {
        json!({"resources": {"requests": {"cpu": "10m", "memory": request}, "limits": {"memory": limit}}})
    }

    fn of_size() -> Self {
        Self {
            space: "limited-size",
            set: Some(json!({
                "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "most"},
                "spec": {"limits": [{"type": "Container", "max": {"memory": "128Mi"}}]},
            })),
            label: None,
            lift: &["delete", "limitrange", "most"],
            fits: Self::memory("64Mi", "128Mi"),
            exceeds: Self::memory("64Mi", "256Mi"),
            says: "maximum memory usage per Container is 128Mi, but limit is 256Mi",
        }
    }

    fn of_sum() -> Self {
        Self {
            space: "limited-sum",
            set: Some(json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
                "spec": {"hard": {"requests.memory": "100Mi"}},
            })),
            label: None,
            lift: &[
                "patch",
                "resourcequota",
                "few",
                "--type=merge",
                "-p",
                r#"{"spec": {"hard": {"requests.memory": "1Gi"}}}"#,
            ],
            fits: Self::memory("64Mi", "256Mi"),
            exceeds: Self::memory("128Mi", "256Mi"),
            says: "exceeded quota: few, requested: requests.memory=128Mi",
        }
    }

    fn of_rights() -> Self {
        Self {
            space: "limited-rights",
            set: None,
            label: Some("pod-security.kubernetes.io/enforce=restricted"),
            lift: &[
                "label",
                "namespace",
                "limited-rights",
                "pod-security.kubernetes.io/enforce-",
            ],
            fits: json!({"securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            }}),
            exceeds: json!({}),
            says: "violates PodSecurity \"restricted:",
        }
    }

    async fn set(&self, cluster: &Cluster) {
        namespace(cluster, self.space).await;
        if let Some(object) = &self.set {
            let mut object = object.clone();
            object["metadata"]["namespace"] = json!(self.space);
            cluster.apply(&object).await.unwrap();
        }
        if let Some(label) = self.label {
            cluster
                .kubectl(&["label", "namespace", self.space, label])
                .await
                .unwrap();
        }
        if self
            .set
            .as_ref()
            .is_some_and(|object| object["kind"] == "ResourceQuota")
        {
            // It limits nothing until it has been counted what there is.
            wait::until("the quota to be in force", LIMIT, async || {
                let quota = cluster.get("resourcequota", self.space, "few").await?;
                anyhow::ensure!(quota["status"]["hard"].is_object(), "it is {}", quota["status"]);
                Ok(())
            })
            .await
            .unwrap();
        }
    }

    async fn make(&self, cluster: &Cluster, name: &str, of_container: &Value) {
        let mut object = sandbox(self.space, name, None, &json!({}));
        for (key, value) in of_container.as_object().unwrap() {
            object["spec"]["podTemplate"]["spec"]["containers"][0][key] = value.clone();
        }
        cluster.apply(&object).await.unwrap();
    }

    /// One is refused and says why, another one beside it runs, and the first comes once the limit is lifted.
    async fn holds(&self, cluster: &Cluster) {
        self.set(cluster).await;
        self.make(cluster, "exceeds", &self.exceeds).await;
        let refused = until(
            cluster,
            self.space,
            "exceeds",
            "Ready",
            "False",
            "ReconcilerError",
        )
        .await;
        let (.., message) = condition(&refused, "Ready").unwrap();
        assert!(
            message.contains("failed to create pod") && message.contains(self.says),
            "{}: {message}",
            self.space
        );
        self.make(cluster, "fits", &self.fits).await;
        until(cluster, self.space, "fits", "Ready", "True", "DependenciesReady").await;
        let still = cluster
            .get("sandbox.agents.x-k8s.io", self.space, "exceeds")
            .await;
        let (status, reason, _) = condition(&still.unwrap(), "Ready").unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "ReconcilerError"));

        let lift = [self.lift, &["-n", self.space]].concat();
        cluster.kubectl(&lift).await.unwrap();
        until(
            cluster,
            self.space,
            "exceeds",
            "Ready",
            "True",
            "DependenciesReady",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_beyond_its_namespaces_limits_is_said_and_comes_when_they_are_lifted() {
    let cluster = installed().await;
    let (size, sum, rights) = (Limit::of_size(), Limit::of_sum(), Limit::of_rights());
    futures::join!(size.holds(&cluster), sum.holds(&cluster), rights.holds(&cluster));
}

/// Writes to a file of the sandbox's volume, or reads it.
async fn in_volume(cluster: &Cluster, space: &str, program: &str) -> String {
    let program = format!("file = '/data/word'\n{program}");
    cluster
        .kubectl(&["exec", "-n", space, "box", "--", "python3", "-c", &program])
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_a_sandbox_claims_outlives_its_pods() {
    let space = "volumes";
    let cluster = start(space).await;
    // Nobody here makes volumes for claims; this one is there already.
    cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "by-hand"},
            "spec": {
                "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "by-hand",
                "hostPath": {"path": "/var/lib/by-hand", "type": "DirectoryOrCreate"},
            },
        }))
        .await
        .unwrap();
    let claims = json!({"volumeClaimTemplates": [{
        "metadata": {"name": "data", "labels": {"kept": "yes"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "64Mi"}},
        },
    }]});
    let mut object = sandbox(space, "box", Some("dormouse-gvisor"), &claims);
    let container = &mut object["spec"]["podTemplate"]["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    cluster.apply(&object).await.unwrap();
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let claim = cluster
        .get("persistentvolumeclaim", space, "data-box")
        .await
        .unwrap();
    assert_eq!(claim["spec"]["volumeName"], "by-hand");
    assert_eq!(claim["metadata"]["labels"]["kept"], "yes");
    assert_eq!(claim["metadata"]["ownerReferences"][0]["kind"], "Sandbox");
    in_volume(&cluster, space, "open(file, 'x').write('kept')").await;
    let before = uid(&cluster, "pod", space, "box").await;

    operate(&cluster, space, "box", "Suspended").await;
    until(&cluster, space, "box", "Suspended", "True", "PodTerminated").await;
    gone(&cluster, "pod", space, "box").await;
    let kept = uid(&cluster, "persistentvolumeclaim", space, "data-box").await;
    assert_eq!(claim["metadata"]["uid"], kept.as_str());
    operate(&cluster, space, "box", "Running").await;
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_ne!(uid(&cluster, "pod", space, "box").await, before);
    let read = in_volume(&cluster, space, "print(open(file).read())").await;
    assert_eq!(read.trim(), "kept");
    assert_eq!(
        uid(&cluster, "persistentvolumeclaim", space, "data-box").await,
        kept
    );

    cluster
        .kubectl(&["delete", "sandbox.agents.x-k8s.io", "box", "-n", space])
        .await
        .unwrap();
    gone(&cluster, "persistentvolumeclaim", space, "data-box").await;
    cluster
        .kubectl(&["delete", "persistentvolume", "by-hand"])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_end_a_sandbox_goes_as_its_policy_says() {
    let space = "ends";
    let cluster = start(space).await;
    let mut kept = sandbox(space, "kept", None, &json!({"service": true}));
    let mut deleted = sandbox(space, "deleted", None, &json!({"shutdownPolicy": "Delete"}));
    for sandbox in [&kept, &deleted] {
        cluster.apply(sandbox).await.unwrap();
    }
    for name in ["kept", "deleted"] {
        until(&cluster, space, name, "Ready", "True", "DependenciesReady").await;
    }
    // Only now, however long that took; and still to come when the controller hears of it.
    let end = jiff_in(Duration::from_secs(3));
    for sandbox in [&mut kept, &mut deleted] {
        sandbox["spec"]["shutdownTime"] = json!(end);
        cluster.apply(sandbox).await.unwrap();
    }
    let ended = until(&cluster, space, "kept", "Ready", "False", "SandboxExpired").await;
    assert_eq!(condition(&ended, "Ready").unwrap().2, "Sandbox has expired");
    gone(&cluster, "pod", space, "kept").await;
    gone(&cluster, "service", space, "kept").await;
    gone(&cluster, "sandbox.agents.x-k8s.io", space, "deleted").await;
    let ended = wait::until("a status that is cleared up", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", space, "kept").await?;
        anyhow::ensure!(object["status"]["selector"].is_null(), "{}", object["status"]);
        Ok(object)
    })
    .await
    .unwrap();
    assert_eq!(condition(&ended, "PodScheduled"), None);
}

fn jiff_in(after: Duration) -> String {
    let at = std::time::SystemTime::now() + after;
    humantime::format_rfc3339_seconds(at).to_string()
}
