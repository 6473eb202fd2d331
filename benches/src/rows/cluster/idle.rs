//! A pod asks a sleeping sandbox by its Service's name.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_testkit::cluster::release;
use dormouse_testkit::host::wait;
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{PYTHON, http};
use serde_json::{Value, json};

use super::site::{SPACE, Site, sandbox};
use crate::ask::{AWAKE, LIMIT};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, Taken};

/// The sleeper's name, and its Service's.
const SLEEPER: &str = "sleeper";
/// Its block.
const MIB: u32 = 64;

/// A pod that asks for others, on request, and says how long each part took, ms.
const ASKER: &str = "
import http.server, json, socket, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        t0 = time.perf_counter()
        to = socket.getaddrinfo(self.path.strip('/'), 8080, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        t1 = time.perf_counter()
        with socket.create_connection(to, timeout=30) as s:
            t2 = time.perf_counter()
            s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            got = b''
            while more := s.recv(4096):
                got += more
        t3 = time.perf_counter()
        body = json.dumps({'resolve': (t1 - t0) * 1e3, 'connect': (t2 - t1) * 1e3, 'answer': (t3 - t2) * 1e3,
                           'word': got.split(b'\\r\\n\\r\\n', 1)[1].decode()}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', 8080), Handler).serve_forever()
";

struct Asker<'a> {
    site: &'a Site,
    at: SocketAddr,
    word: String,
}

pub(super) async fn measure(
    plan: &Plan,
    site: &Site,
    row: &mut Row,
    zram: &mut Option<TestSwap>,
) -> Result<()> {
    // It is to sleep when it is told to, not by itself.
    let (_, word) = site
        .start(SLEEPER, &sandbox(SLEEPER, MIB, &json!({"idleTimeout": "1h"})))
        .await?;
    site.cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asker", "namespace": SPACE},
            "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                    "command": ["python3", "-c", ASKER],
                }],
            },
        }))
        .await?;
    let ip: Ipv4Addr = site.cluster.wait_ready(SPACE, "asker", LIMIT).await?;
    let asker = Asker {
        site,
        at: (ip, 8080).into(),
        word,
    };
    // Until its Service's name is known to the cluster's DNS.
    wait::until("the sleeper to be known by name", LIMIT, async || {
        asker.ask().await
    })
    .await?;

    let mut running = Series::wait("running, by Service name", None);
    for _ in 0..plan.n {
        running.take(asker.ask().await?);
    }
    row.line(
        Line::new(
            "a running sandbox's answer by its Service's name, for comparison",
            "-",
        )
        .measured(running.halves())
        .n(running.samples.n()),
    );
    row.series.push(running);
    asker.rung(plan, row, "freeze", "Frozen", 10.0).await?;
    asker.rung(plan, row, "doze", "Dozing, zram", 30.0).await?;
    // It is awake: nothing of value is in there.
    drop(zram.take());
    asker.rung(plan, row, "doze", "Dozing, disk", 80.0).await
}

impl Asker<'_> {
    async fn rung(&self, plan: &Plan, row: &mut Row, verb: &str, name: &str, limit: f64) -> Result<()> {
        say(format!("{name}, by Service name"));
        let mut series = Series::wait(format!("{name}, by Service name"), Some(limit));
        let pod = format!("{SPACE}/{SLEEPER}");
        for _ in 0..plan.n {
            tokio::time::sleep(AWAKE).await;
            // A change of its requests, which follow what it did before, may come in between.
            wait::until(&format!("{verb} {pod}"), LIMIT, async || {
                release::dormouse(&self.site.cluster, &[verb, &pod]).await
            })
            .await?;
            series.take(self.ask().await?);
        }
        row.line(
            Line::new(
                format!("idle sandbox, {name}: a pod's request to its headless Service name -> answer"),
                format!("p50 <= {limit:.0} ms"),
            )
            .measured(series.halves())
            .n(plan.n)
            .at_most("p50", series.samples.p50(), limit),
        );
        row.series.push(series);
        Ok(())
    }

    async fn ask(&self) -> Result<Taken> {
        let path = format!("/{SLEEPER}.{SPACE}.svc.cluster.local");
        let answer = http::get(self.at, &path, Duration::from_secs(30)).await?;
        ensure!(
            answer.status == 200,
            "the asking pod: {} {}",
            answer.status,
            answer.body
        );
        let answer: Value = answer.json()?;
        ensure!(answer["word"] == self.word, "another sandbox answered: {answer}");
        let part = |key: &str| -> Result<(String, f64)> {
            let took = answer[key]
                .as_f64()
                .with_context(|| format!("no {key} in {answer}"))?;
            Ok((key.to_owned(), took))
        };
        Ok(Taken::of(vec![
            part("resolve")?,
            part("connect")?,
            part("answer")?,
        ]))
    }
}
