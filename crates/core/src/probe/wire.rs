//! Probes as Kubernetes writes them, and as they stand in the annotation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ProbeAction, ProbeFault, ProbeHeader, ProbeKind, ProbesError, Scheme};
use crate::policy::{MAX_DURATION, shown};

/// The longest path of a request, in bytes.
const MAX_PATH: usize = 4096;
/// The longest name and value of a header, in bytes.
const MAX_HEADER: usize = 4096;
/// The most headers.
const MAX_HEADERS: usize = 32;
/// The most words of a command, and the longest, in bytes.
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 16 << 10;
/// The longest name of a gRPC service, in bytes.
const MAX_SERVICE: usize = 256;
/// The highest threshold.
const MAX_THRESHOLD: i64 = 1_000_000;

/// The probes of one container.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Container {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    liveness: Option<Probe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readiness: Option<Probe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    startup: Option<Probe>,
}

/// One probe.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Probe {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_get: Option<HttpGet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp_socket: Option<TcpSocket>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc: Option<Grpc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<Exec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initial_delay_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    period_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    success_threshold: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure_threshold: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    termination_grace_period_seconds: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpGet {
    port: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    http_headers: Vec<ProbeHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpSocket {
    port: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grpc {
    port: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    #[serde(default)]
    command: Vec<String>,
}

impl Container {
    pub(super) fn checked(self) -> Result<super::ContainerProbes, ProbesError> {
        let name = self.name;
        let read = |kind, probe: Option<Probe>| {
            probe
                .map(|probe| probe.checked(kind))
                .transpose()
                .map_err(|fault| ProbesError::Probe {
                    name: shown(&name),
                    kind,
                    fault,
                })
        };
        let (liveness, readiness, startup) = (
            read(ProbeKind::Liveness, self.liveness)?,
            read(ProbeKind::Readiness, self.readiness)?,
            read(ProbeKind::Startup, self.startup)?,
        );
        Ok(super::ContainerProbes {
            name,
            liveness,
            readiness,
            startup,
        })
    }
}

impl Probe {
    pub(super) fn checked(self, kind: ProbeKind) -> Result<super::Probe, ProbeFault> {
        let most = i64::try_from(MAX_DURATION.as_secs()).unwrap_or(i64::MAX);
        let seconds = |field, value, default, least| {
            number(field, value, default, least, most).map(|n| Duration::from_secs(n.into()))
        };
        let grace = "terminationGracePeriodSeconds";
        let termination_grace = match self.termination_grace_period_seconds {
            Some(_) if kind == ProbeKind::Readiness => {
                return Err(ProbeFault::Meaningless { field: grace, kind });
            }
            Some(value) => Some(seconds(grace, Some(value), 0, 1)?),
            None => None,
        };
        let threshold = "successThreshold";
        let success_threshold = number(threshold, or_default(self.success_threshold), 1, 1, MAX_THRESHOLD)?;
        if success_threshold != 1 && kind != ProbeKind::Readiness {
            return Err(ProbeFault::Meaningless {
                field: threshold,
                kind,
            });
        }
        let failures = or_default(self.failure_threshold);
        Ok(super::Probe {
            initial_delay: seconds("initialDelaySeconds", self.initial_delay_seconds, 0, 0)?,
            period: seconds("periodSeconds", or_default(self.period_seconds), 10, 1)?,
            timeout: seconds("timeoutSeconds", or_default(self.timeout_seconds), 1, 1)?,
            success_threshold,
            failure_threshold: number("failureThreshold", failures, 3, 1, MAX_THRESHOLD)?,
            termination_grace,
            action: action(self.http_get, self.tcp_socket, self.grpc, self.exec)?,
        })
    }
}

/// To Kubernetes 0 is the same as nothing where 0 cannot be meant.
fn or_default(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn number(
    field: &'static str,
    value: Option<i64>,
    default: u32,
    least: i64,
    most: i64,
) -> Result<u32, ProbeFault> {
    let Some(value) = value else { return Ok(default) };
    u32::try_from(value)
        .ok()
        .filter(|_| (least..=most).contains(&value))
        .ok_or(ProbeFault::Number {
            field,
            value,
            least,
            most,
        })
}

fn action(
    http: Option<HttpGet>,
    tcp: Option<TcpSocket>,
    grpc: Option<Grpc>,
    exec: Option<Exec>,
) -> Result<ProbeAction, ProbeFault> {
    let count = [http.is_some(), tcp.is_some(), grpc.is_some(), exec.is_some()]
        .into_iter()
        .filter(|there| *there)
        .count();
    match (http, tcp, grpc, exec) {
        (Some(http), None, None, None) => http.checked(),
        (None, Some(tcp), None, None) => {
            no_host(tcp.host.as_deref())?;
            Ok(ProbeAction::Tcp {
                port: port(tcp.port)?,
            })
        }
        (None, None, Some(grpc), None) => {
            let service = grpc.service.unwrap_or_default();
            text("service", &service, MAX_SERVICE, |c| !c.is_control())?;
            Ok(ProbeAction::Grpc {
                port: port(grpc.port)?,
                service,
            })
        }
        (None, None, None, Some(exec)) => exec.checked(),
        _ => Err(ProbeFault::Actions { count }),
    }
}

impl HttpGet {
    fn checked(self) -> Result<ProbeAction, ProbeFault> {
        no_host(self.host.as_deref())?;
        let mut path = self.path.unwrap_or_default();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        text("path", &path, MAX_PATH, |c| c.is_ascii_graphic())?;
        between("httpHeaders", self.http_headers.len(), 0, MAX_HEADERS)?;
        for header in &self.http_headers {
            // RFC 9110: a token.
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            text("header's name", &header.name, MAX_HEADER, token)?;
            if header.name.is_empty() {
                return Err(ProbeFault::Text {
                    field: "header's name",
                    most: MAX_HEADER,
                });
            }
            let visible = |c: char| c.is_ascii_graphic() || c == ' ' || c == '\t';
            text("header's value", &header.value, MAX_HEADER, visible)?;
        }
        Ok(ProbeAction::Http {
            port: port(self.port)?,
            path,
            scheme: self.scheme.unwrap_or_default(),
            headers: self.http_headers,
        })
    }
}

impl Exec {
    fn checked(self) -> Result<ProbeAction, ProbeFault> {
        between("command", self.command.len(), 1, MAX_WORDS)?;
        for word in &self.command {
            text("command", word, MAX_WORD, |c| c != '\0')?;
        }
        Ok(ProbeAction::Exec {
            command: self.command,
        })
    }
}

fn no_host(host: Option<&str>) -> Result<(), ProbeFault> {
    match host {
        None | Some("") => Ok(()),
        Some(_) => Err(ProbeFault::Host),
    }
}

fn port(port: i64) -> Result<u16, ProbeFault> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(ProbeFault::Port { port })
}

fn text(
    field: &'static str,
    value: &str,
    most: usize,
    may_have: impl Fn(char) -> bool,
) -> Result<(), ProbeFault> {
    if value.len() > most || !value.chars().all(may_have) {
        return Err(ProbeFault::Text { field, most });
    }
    Ok(())
}

const fn between(field: &'static str, count: usize, least: usize, most: usize) -> Result<(), ProbeFault> {
    if count < least || count > most {
        return Err(ProbeFault::Count {
            field,
            count,
            least,
            most,
        });
    }
    Ok(())
}

impl From<&super::ContainerProbes> for Container {
    fn from(probes: &super::ContainerProbes) -> Self {
        Self {
            name: probes.name.clone(),
            liveness: probes.liveness.as_ref().map(Probe::from),
            readiness: probes.readiness.as_ref().map(Probe::from),
            startup: probes.startup.as_ref().map(Probe::from),
        }
    }
}

impl From<&super::Probe> for Probe {
    fn from(probe: &super::Probe) -> Self {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).ok();
        let mut wire = Self {
            initial_delay_seconds: seconds(probe.initial_delay).filter(|delay| *delay != 0),
            period_seconds: seconds(probe.period),
            timeout_seconds: seconds(probe.timeout),
            success_threshold: Some(probe.success_threshold.into()),
            failure_threshold: Some(probe.failure_threshold.into()),
            termination_grace_period_seconds: probe.termination_grace.and_then(seconds),
            ..Self::default()
        };
        match probe.action.clone() {
            ProbeAction::Http {
                port,
                path,
                scheme,
                headers,
            } => {
                wire.http_get = Some(HttpGet {
                    port: port.into(),
                    path: Some(path),
                    host: None,
                    scheme: Some(scheme),
                    http_headers: headers,
                });
            }
            ProbeAction::Tcp { port } => {
                wire.tcp_socket = Some(TcpSocket {
                    port: port.into(),
                    host: None,
                });
            }
            ProbeAction::Grpc { port, service } => {
                wire.grpc = Some(Grpc {
                    port: port.into(),
                    service: Some(service).filter(|service| !service.is_empty()),
                });
            }
            ProbeAction::Exec { command } => wire.exec = Some(Exec { command }),
        }
        wire
    }
}
