//! HTTP and HTTPS probes.

use std::net::SocketAddr;

use dormouse_core::{ProbeHeader, Scheme};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::http::Uri;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Failed, Run, tls};

/// The most of an answer that is read, in bytes; what follows is of no interest.
const MAX_BODY: usize = 10 << 10;

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// Asks, and follows redirects that lead to the same host; one that leads elsewhere is an answer like any below 400.
pub(super) async fn get(
    run: &Run,
    to: SocketAddr,
    scheme: Scheme,
    path: &str,
    headers: &[ProbeHeader],
) -> Result<(), Failed> {
    let (mut to, mut scheme, mut path) = (to, scheme, path.to_owned());
    for _ in 0..=MAX_REDIRECTS {
        let response = ask(run, to, scheme, &path, headers).await?;
        let status = response.status().as_u16();
        let next = (300..400)
            .contains(&status)
            .then(|| redirect(&response, to, scheme, &path))
            .flatten();
        match next {
            Some(next) => (to, scheme, path) = next,
            None if (200..400).contains(&status) => return Ok(()),
            None => return Err(Failed::Status(status)),
        }
    }
    Err(Failed::Redirects(MAX_REDIRECTS))
}

async fn ask(
    run: &Run,
    to: SocketAddr,
    scheme: Scheme,
    path: &str,
    headers: &[ProbeHeader],
) -> Result<Response<()>, Failed> {
    let request = request(to, path, headers)?;
    let connection = run.dial(to).await?;
    match scheme {
        Scheme::Http => exchange(connection, request).await,
        Scheme::Https => exchange(tls::greet(to, connection).await?, request).await,
    }
}

async fn exchange(
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<()>, Failed> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    let mut connection = Box::pin(connection);
    let mut ended = None;
    let answer = {
        let answer = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            read(body).await?;
            Ok::<_, hyper::Error>(Response::from_parts(head, ()))
        };
        tokio::pin!(answer);
        // In this task: a run that is given up leaves nothing behind.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            end = &mut connection => {
                ended = Some(end);
                // It may have been closed right behind the answer.
                answer.await
            }
        }
    };
    match ended {
        // The server closes it: that was asked for. Nobody waits for that.
        None => drop(tokio::spawn(tokio::time::timeout(super::dial::CLOSE, connection))),
        Some(Err(error)) if answer.is_err() => return Err(error.into()),
        Some(_) => {}
    }
    Ok(answer?)
}

/// Reads what there is up to a bound. An answer that breaks off is none.
async fn read(body: Incoming) -> Result<(), hyper::Error> {
    let mut body = Limited::new(body, MAX_BODY);
    while let Some(frame) = body.frame().await {
        if let Err(error) = frame {
            return match error.downcast::<hyper::Error>() {
                Ok(error) => Err(*error),
                // Longer than anybody reads.
                Err(_) => Ok(()),
            };
        }
    }
    Ok(())
}

/// With the headers that the kubelet's probes have, where the probe names no others. An empty one is left out.
fn request(
    to: SocketAddr,
    path: &str,
    headers: &[ProbeHeader],
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path.parse::<Uri>()?)
        .body(Empty::new())?;
    let all = request.headers_mut();
    for ProbeHeader { name, value } in headers {
        let name: HeaderName = name.parse()?;
        let value: HeaderValue = value.parse()?;
        if name == HOST {
            all.insert(name, value);
        } else {
            all.append(name, value);
        }
    }
    for (name, default) in [(USER_AGENT, super::USER_AGENT), (ACCEPT, "*/*")] {
        match all.get(&name).map(HeaderValue::is_empty) {
            Some(true) => drop(all.remove(&name)),
            Some(false) => {}
            None => drop(all.insert(name, HeaderValue::from_static(default))),
        }
    }
    if all.get(HOST).is_none_or(HeaderValue::is_empty) {
        all.insert(HOST, to.to_string().parse()?);
    }
    all.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// Where an answer leads, if it leads to the same host.
fn redirect(
    response: &Response<()>,
    from: SocketAddr,
    scheme: Scheme,
    path: &str,
) -> Option<(SocketAddr, Scheme, String)> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    if location.starts_with("//") {
        return None;
    }
    if !location.contains("://") {
        // To another place on the same server.
        let path = if location.starts_with('/') {
            location.to_owned()
        } else {
            let (before, _) = path.split('?').next()?.rsplit_once('/')?;
            format!("{before}/{location}")
        };
        return Some((from, scheme, path));
    }
    let uri: Uri = location.parse().ok()?;
    let authority = uri.authority()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.parse() != Ok(from.ip()) {
        return None;
    }
    let (scheme, default) = match uri.scheme_str()? {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return None,
    };
    let port = authority.port_u16().unwrap_or(default);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Some((SocketAddr::new(from.ip(), port), scheme, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> ProbeHeader {
        ProbeHeader {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    fn pod() -> SocketAddr {
        "10.0.0.7:8080".parse().unwrap()
    }

    #[test]
    fn a_request_is_the_kubelets() {
        let plain = request(pod(), "/ready?full=1", &[]).unwrap();
        assert_eq!(plain.uri(), "/ready?full=1");
        assert_eq!(plain.headers()[HOST], "10.0.0.7:8080");
        assert!(
            plain.headers()[USER_AGENT]
                .to_str()
                .unwrap()
                .starts_with("kube-probe/")
        );
        assert_eq!(plain.headers()[ACCEPT], "*/*");
        let headers = [
            header("Host", "box.example"),
            header("user-agent", ""),
            header("Accept", "text/plain"),
            header("X-A", "1"),
            header("X-A", "2"),
        ];
        let own = request(pod(), "/", &headers).unwrap();
        assert_eq!(own.headers()[HOST], "box.example");
        assert!(own.headers().get(USER_AGENT).is_none());
        assert_eq!(own.headers()[ACCEPT], "text/plain");
        assert_eq!(own.headers().get_all("x-a").iter().count(), 2);
    }

    #[test]
    fn redirects_lead_to_the_same_host_only() {
        let leads = |location: &str| {
            let response = Response::builder()
                .status(302)
                .header(LOCATION, location)
                .body(())
                .unwrap();
            redirect(&response, pod(), Scheme::Http, "/a/b?c")
        };
        let to =
            |port, scheme, path: &str| Some((SocketAddr::new(pod().ip(), port), scheme, path.to_owned()));
        assert_eq!(leads("/x"), to(8080, Scheme::Http, "/x"));
        assert_eq!(leads("x"), to(8080, Scheme::Http, "/a/x"));
        assert_eq!(leads("https://10.0.0.7/y?z"), to(443, Scheme::Https, "/y?z"));
        assert_eq!(leads("http://10.0.0.7:81"), to(81, Scheme::Http, "/"));
        for elsewhere in [
            "http://10.0.0.8/",
            "http://example/",
            "ftp://10.0.0.7/",
            "//10.0.0.8/",
        ] {
            assert_eq!(leads(elsewhere), None, "{elsewhere}");
        }
    }
}
