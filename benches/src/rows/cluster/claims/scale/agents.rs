//! The agents of the nodes that are not there: found by their pods, spoken to over mutual TLS, as all agents are.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::Command;
use std::task::{Context as Task, Poll};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use dormouse_core::Policy;
use dormouse_rpc::v1;
use dormouse_testkit::cluster::fake;
use dormouse_testkit::host::{command, wait};
use dormouse_tls::{Authority, LIFETIME, Listener, Name, Request};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::ByteString;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::super::pool::all;
use super::agent::Agent;
use crate::rows::cluster::site::Site;

/// Where an agent listens, as the chart says.
const PORT: u16 = 9466;
/// Of RFC 2544: addresses for measurements, which nobody has.
const NETWORK: [u8; 2] = [198, 18];
const LONG: Duration = Duration::from_secs(120);
/// Callers that wait to be served: the controller is one.
const CALLERS: usize = 16;

/// The agents. Dropping it ends them; their addresses go with the cluster's bridge.
pub(super) struct Agents {
    count: usize,
    _tasks: JoinSet<()>,
}

impl Agents {
    /// Starts one for each of the first `count` nodes that are not there, and has the controller find it.
    pub(super) async fn start(site: &Site, count: u32) -> Result<Self> {
        let authority = authority(site).await?;
        let mut tasks = JoinSet::new();
        let mut agents = HashMap::new();
        for index in 0..count {
            let node = fake::name(index);
            let address = address(site.cluster.host_address(), index)?;
            let assigned = format!("{address}/32");
            let arguments = ["addr", "add", &assigned, "dev", site.cluster.bridge()];
            command::capture(Command::new("ip").args(arguments))?;
            let listener = TcpListener::bind(SocketAddr::from((address, PORT)))
                .await
                .with_context(|| format!("listen at {address}"))?;
            let agent = Agent::default();
            tasks.spawn(serve(listener, identity(&authority, &node)?, agent.clone()));
            agents.insert(node, agent);
        }
        tasks.spawn(follow(site.pods(), agents));
        for index in 0..count {
            locate(site, index).await?;
        }
        Ok(Self {
            count: usize::try_from(count)?,
            _tasks: tasks,
        })
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }
}

/// The address of an agent of the cluster whose host has this one.
fn address(host: Ipv4Addr, index: u32) -> Result<Ipv4Addr> {
    let [.., cluster, _] = host.octets();
    let last = u8::try_from(index + 1).context("more nodes than addresses")?;
    let [first, second] = NETWORK;
    Ok(Ipv4Addr::new(first, second, cluster, last))
}

/// Who vouches in this cluster.
async fn authority(site: &Site) -> Result<Authority> {
    let secrets = site.installed("Secret", "secrets");
    let secret = wait::until("the authority", LONG, async || {
        Ok(secrets.get("dormouse-authority").await?)
    })
    .await?;
    let text = |key: &str| -> Result<String> {
        let ByteString(bytes) = serde_json::from_value(secret.data["data"][key].clone())
            .with_context(|| format!("{key} of the authority"))?;
        String::from_utf8(bytes).with_context(|| format!("{key} of the authority"))
    };
    Ok(Authority::load(&text("tls.crt")?, &text("tls.key")?)?)
}

/// What the agent of a node serves with.
fn identity(authority: &Authority, node: &str) -> Result<Listener> {
    let name = Name::of_node(node)?;
    let asked = Request::new(&name)?;
    let granted = authority.grant(&asked.request, &name, SystemTime::now(), LIFETIME)?;
    let caller = Name::of_controller();
    Ok(Listener::new(
        &granted,
        &asked.key,
        authority.certificate(),
        caller,
    )?)
}

/// Has the controller find an agent: says of the pod of the DaemonSet on that node, of which kwok says that it runs, that
/// it is there.
async fn locate(site: &Site, index: u32) -> Result<()> {
    let (node, pods) = (fake::name(index), site.installed("Pod", "pods"));
    // Which is what the DaemonSet goes by.
    let label = ["label", "node", &node, "kubernetes.io/os=linux"];
    site.cluster.kubectl(&label).await?;
    let pod = wait::until(&format!("an agent's pod on {node}"), LONG, async || {
        let found = all(&pods).await?;
        let pod = found.into_iter().find(|pod| {
            pod.data["spec"]["nodeName"] == node
                && pod.data["status"]["phase"] == "Running"
                && pod
                    .metadata
                    .name
                    .as_deref()
                    .unwrap_or_default()
                    .starts_with("dormouse-agent-")
        });
        pod.context("none runs")
    })
    .await?;
    let name = pod.metadata.name.context("a pod without a name")?;
    let ip = address(site.cluster.host_address(), index)?.to_string();
    // A merge patch, which replaces the list.
    let patch = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    let patched = pods
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("move pod {name}"))?;
    let shown = &patched.data["status"]["podIP"];
    ensure!(*shown == ip, "pod {name} is at {shown} and not at {ip}");
    Ok(())
}

/// Serves one agent.
async fn serve(listener: TcpListener, tls: Listener, agent: Agent) {
    let (callers, incoming) = mpsc::channel(CALLERS);
    let accept = async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever is not the controller is turned away.
            if stream.set_nodelay(true).is_ok()
                && let Ok(stream) = tls.accept(stream).await
                && callers.send(Ok::<_, io::Error>(Caller(stream))).await.is_err()
            {
                return;
            }
        }
    };
    let served = Server::builder()
        .add_service(agent)
        .serve_with_incoming(ReceiverStream::new(incoming));
    let ((), served) = tokio::join!(accept, served);
    if let Err(error) = served {
        crate::progress::say(format!("an agent ended: {error}"));
    }
}

/// Tells each agent of the pods on its node, as its containerd would.
async fn follow(pods: Api<DynamicObject>, agents: HashMap<String, Agent>) {
    loop {
        if let Err(error) = follow_once(&pods, &agents).await {
            crate::progress::say(format!("the agents' watch of pods: {error:#}"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn follow_once(pods: &Api<DynamicObject>, agents: &HashMap<String, Agent>) -> Result<()> {
    let params = WatchParams::default().timeout(290);
    // Those that there are come first. One that goes while nobody watches stays known: no order comes for it.
    let mut events = pods.watch(&params, "0").await.context("begin to watch")?.boxed();
    while let Some(event) = events.try_next().await.context("watch")? {
        let (pod, is_gone) = match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
            WatchEvent::Deleted(pod) => (pod, true),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => bail!("{status:?}"),
        };
        let node = pod.data["spec"]["nodeName"].as_str().unwrap_or_default();
        let Some(agent) = agents.get(node) else { continue };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if is_gone {
            agent.gone(&uid);
        } else if pod.data["status"]["phase"] == "Running" && !agent.knows(&uid) {
            agent.born(guest(pod)?);
        }
    }
    Ok(())
}

/// What an agent would say of a pod that has just begun to run.
fn guest(pod: DynamicObject) -> Result<v1::Pod> {
    let meta = pod.metadata;
    let (managed, policy) = Policy::from_annotations(&meta.annotations.unwrap_or_default())?;
    let ip = |value: &Value| value.as_str().map(str::to_owned);
    Ok(v1::Pod {
        uid: meta.uid.unwrap_or_default(),
        namespace: meta.namespace.unwrap_or_default(),
        name: meta.name.unwrap_or_default(),
        runtime: "gvisor".to_owned(),
        managed: managed.unwrap_or_default(),
        rung: v1::Rung::Running.into(),
        policy: Some((&policy).into()),
        labels: meta.labels.unwrap_or_default().into_iter().collect(),
        addresses: ip(&pod.data["status"]["podIP"]).into_iter().collect(),
        ..v1::Pod::default()
    })
}

/// The controller, as the handshake has shown.
struct Caller<T>(T);

impl<T> Connected for Caller<T> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<T: AsyncRead + Unpin> AsyncRead for Caller<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Caller<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use std::time::{Duration, SystemTime};

    use dormouse_rpc::{NodeClient, v1};
    use dormouse_tls::{Authority, Dialer, LIFETIME, Name};
    use hyper_util::rt::TokioIo;
    use serde_json::json;
    use tokio::net::{TcpListener, TcpStream};
    use tonic::transport::Endpoint;

    use super::{Agent, address, guest, identity, serve};

    #[test]
    fn clusters_beside_each_other_have_other_addresses() {
        let of = |cluster, index| address(Ipv4Addr::new(10, 90, cluster, 1), index);
        assert_eq!(of(0, 0).unwrap(), Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(of(3, 9).unwrap(), Ipv4Addr::new(198, 18, 3, 10));
        assert!(of(0, 255).is_err());
    }

    #[test]
    fn a_standby_is_managed_and_only_an_order_wakes_it() {
        let pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": {
                "dormouse.dev/managed": "true", "dormouse.dev/resume-policy": "Manual",
            }},
            "status": {"podIP": "10.0.0.1"},
        }));
        let seen = guest(pod.unwrap()).unwrap();
        assert!(seen.managed);
        let policy = dormouse_core::Policy::try_from(seen.policy.unwrap()).unwrap();
        assert_eq!(policy.resume_policy, dormouse_core::ResumePolicy::Manual);
        let plain = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}));
        assert!(!guest(plain.unwrap()).unwrap().managed);
    }

    /// As the controller does it, and on this host alone.
    #[tokio::test]
    async fn the_controller_is_served_over_mutual_tls() {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        let agent = Agent::default();
        agent.born(v1::Pod {
            uid: "u".to_owned(),
            rung: v1::Rung::Dozing.into(),
            ..v1::Pod::default()
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let tls = identity(&authority, "fake-0").unwrap();
        let serving = tokio::spawn(serve(listener, tls, agent));

        let issued = authority.issue_controller(now, LIFETIME).unwrap();
        let dialer = Dialer::new(&issued.certificate, &issued.key, authority.certificate()).unwrap();
        let stream = TcpStream::connect(to).await.unwrap();
        let stream = dialer
            .greet(&Name::of_node("fake-0").unwrap(), stream)
            .await
            .unwrap();
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let endpoint = Endpoint::from_static("http://agent");
        let channel = endpoint.connect_with_connector(tower::service_fn(move |_| {
            let stream = stream.lock().unwrap().take();
            async move { stream.ok_or_else(|| std::io::Error::other("once")) }
        }));
        let mut client = NodeClient::new(channel.await.unwrap());
        let request = v1::WakeRequest {
            pod: Some(v1::PodRef {
                uid: "u".to_owned(),
                ..v1::PodRef::default()
            }),
            ..v1::WakeRequest::default()
        };
        let woken = tokio::time::timeout(Duration::from_secs(10), client.wake(request));
        let woken = woken.await.unwrap().unwrap().into_inner();
        assert!(woken.outcome.unwrap().moved);
        assert_eq!(woken.pod.unwrap().rung(), v1::Rung::Running);
        serving.abort();
    }
}
