use std::net::Ipv4Addr;
use std::sync::Mutex;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::get;
use dormouse_core::Scheme;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_util::task::TaskTracker;

use super::*;

/// Notes what is left out.
#[derive(Default)]
struct Noted {
    now: Mutex<Vec<Flow>>,
    ever: Mutex<Vec<Flow>>,
}

impl Flows for Noted {
    fn leave_out(&self, _: &PodKey, flow: Flow) -> bool {
        self.now.lock().unwrap().push(flow);
        self.ever.lock().unwrap().push(flow);
        true
    }

    fn take_in(&self, _: &PodKey, flow: Flow) {
        self.now.lock().unwrap().retain(|other| *other != flow);
    }
}

struct Bench {
    flows: Arc<Noted>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        Self {
            flows: Arc::default(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    fn run(&self) -> Run {
        Run {
            flows: Arc::clone(&self.flows) as _,
            runtime: Runtime::lazy("/nonexistent/containerd.sock").unwrap(),
            target: Target {
                wire: PodKey::from("a"),
                address: Some(Ipv4Addr::LOCALHOST.into()),
                container_id: "c".to_owned(),
            },
            stop: self.stop.clone(),
            alive: self.tracker.token(),
        }
    }

    async fn probe(&self, action: ProbeAction) -> Answer {
        let probe = Probe {
            action,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            success_threshold: 1,
            failure_threshold: 3,
            termination_grace: None,
        };
        self.run().probe(&probe).await.expect("nobody gave it up")
    }

    /// Nothing of any run is left.
    async fn at_rest(&self) {
        self.tracker.close();
        tokio::time::timeout(Duration::from_secs(5), self.tracker.wait())
            .await
            .unwrap();
        assert!(self.flows.now.lock().unwrap().is_empty());
    }
}

fn http(port: u16, path: &str) -> ProbeAction {
    ProbeAction::Http {
        port,
        path: path.to_owned(),
        scheme: Scheme::Http,
        headers: Vec::new(),
    }
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn http_is_asked_as_the_kubelet_asks() {
    let bench = Bench::new();
    let peers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let seen = Arc::clone(&peers);
    let router = Router::new()
        .route(
            "/ok",
            get(move |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
                seen.lock().unwrap().push(peer);
                "x".repeat(20 << 10)
            }),
        )
        .route("/bad", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/moved", get(|| async { Redirect::temporary("/ok") }))
        .route(
            "/away",
            get(|| async { Redirect::temporary("http://192.0.2.1/") }),
        )
        .route("/loop", get(|| async { Redirect::temporary("/loop") }));
    let (listener, port) = listener().await;
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    for good in ["/ok", "/moved", "/away"] {
        let answer = bench.probe(http(port, good)).await;
        assert_eq!(
            (answer.outcome, answer.message.as_str()),
            (ProbeOutcome::Success, ""),
            "{good}"
        );
    }
    for (bad, why) in [
        ("/bad", "HTTP status 503"),
        ("/none", "HTTP status 404"),
        ("/loop", "stopped after 10 redirects"),
    ] {
        let answer = bench.probe(http(port, bad)).await;
        assert_eq!(
            (answer.outcome, answer.message.as_str()),
            (ProbeOutcome::Failure, why)
        );
    }
    bench.at_rest().await;
    let left_out = bench.flows.ever.lock().unwrap().clone();
    for peer in peers.lock().unwrap().iter() {
        let flow = Flow {
            source: (peer.ip(), peer.port()),
            destination: (Ipv4Addr::LOCALHOST.into(), port),
        };
        assert!(left_out.contains(&flow), "{flow:?} came unannounced");
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_has_failed() {
    let bench = Bench::new();
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                .await;
        }
    });
    let answer = bench.probe(http(port, "/")).await;
    assert_eq!(answer.outcome, ProbeOutcome::Failure, "{answer:?}");
    bench.at_rest().await;
}

#[tokio::test]
async fn a_connection_is_enough_and_ends_in_peace() {
    let bench = Bench::new();
    let (listener, port) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read(&mut [0; 16]).await
    });
    let answer = bench.probe(ProbeAction::Tcp { port }).await;
    assert_eq!(answer.outcome, ProbeOutcome::Success, "{answer:?}");
    assert_eq!(server.await.unwrap().unwrap(), 0, "an end, and no reset");
    bench.at_rest().await;
    // Held, so that no other test listens there, and nobody does.
    let silent = TcpSocket::new_v4().unwrap();
    silent.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = silent.local_addr().unwrap().port();
    let answer = bench.probe(ProbeAction::Tcp { port }).await;
    assert_eq!(answer.outcome, ProbeOutcome::Failure);
    assert!(answer.message.starts_with("cannot connect"), "{answer:?}");
    assert!(bench.flows.now.lock().unwrap().is_empty());
}

#[tokio::test]
async fn tls_is_spoken_with_anybody() {
    let bench = Bench::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["somebody.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                .await;
            let _ = stream.shutdown().await;
        }
    });
    let https = |scheme| ProbeAction::Http {
        port,
        path: "/".to_owned(),
        scheme,
        headers: Vec::new(),
    };
    let answer = bench.probe(https(Scheme::Https)).await;
    assert_eq!(answer.outcome, ProbeOutcome::Success, "{answer:?}");
    let answer = bench.probe(https(Scheme::Http)).await;
    assert_eq!(answer.outcome, ProbeOutcome::Failure, "{answer:?}");
    bench.at_rest().await;
}

#[tokio::test]
async fn grpc_health_is_asked_for() {
    let bench = Bench::new();
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("down", tonic_health::ServingStatus::NotServing)
        .await;
    let (listener, port) = listener().await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let ask = |service: &str| ProbeAction::Grpc {
        port,
        service: service.to_owned(),
    };
    let answer = bench.probe(ask("")).await;
    assert_eq!(answer.outcome, ProbeOutcome::Success, "{answer:?}");
    for (service, why) in [("down", "NOT_SERVING"), ("none", "NotFound")] {
        let answer = bench.probe(ask(service)).await;
        assert_eq!(answer.outcome, ProbeOutcome::Failure);
        assert!(answer.message.contains(why), "{answer:?}");
    }
    bench.at_rest().await;
}

#[tokio::test]
async fn what_is_given_up_is_cut_off_at_once() {
    let bench = Bench::new();
    let (listener, port) = listener().await;
    let probe = Probe {
        action: http(port, "/"),
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(60),
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace: None,
    };
    let run = bench.run();
    let probing = tokio::spawn(async move { run.probe(&probe).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 1024];
    assert!(stream.read(&mut request).await.unwrap() > 0);
    bench.stop.cancel();
    assert_eq!(probing.await.unwrap(), None);
    bench.at_rest().await;
    let end = stream.read(&mut request).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_container_that_could_not_be_asked_has_not_failed() {
    let bench = Bench::new();
    let command = vec!["true".to_owned()];
    let answer = bench.probe(ProbeAction::Exec { command }).await;
    assert_eq!(answer.outcome, ProbeOutcome::Unknown, "{answer:?}");
    let mut run = bench.run();
    run.target.address = None;
    let probe = Probe {
        action: ProbeAction::Tcp { port: 1 },
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace: None,
    };
    assert_eq!(run.probe(&probe).await.unwrap().outcome, ProbeOutcome::Unknown);
}

#[test]
fn messages_are_short_and_on_one_line() {
    assert_eq!(told("a\nb"), "a?b");
    assert_eq!(told(&"ä".repeat(1000)).chars().count(), LONGEST_MESSAGE);
}
