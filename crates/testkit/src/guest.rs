//! Programs that run inside pods.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::pod::{ContainerSpec, PodSpec};

/// Where they are inside a container.
pub const FOLDER: &str = "/guests";

const PROGRAMS: &[(&str, &str)] = &[
    ("agent.py", include_str!("../guests/agent.py")),
    ("world.py", include_str!("../guests/world.py")),
];

pub(crate) fn write_programs(dir: &Path) -> Result<()> {
    for (name, text) in PROGRAMS {
        fs::write(dir.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// A Python program that makes up a word, in memory alone beside a block of so many MiB, and answers with it at port 8080: one that
/// has lost its memory answers with another.
#[must_use]
pub fn remembers_a_word(mib: u32) -> String {
    remembers_a_word_in(
        &format!("bytearray(secrets.token_bytes(1 << 20)) * {mib}"),
        "pass",
    )
}

/// The same with another block, a Python expression, after something that is done first, Python statements. `secrets` and
/// `time` are there.
#[must_use]
pub fn remembers_a_word_in(block: &str, first: &str) -> String {
    format!(
        "
import http.server, secrets, time
{first}
WORD = secrets.token_hex(16)
BLOCK = {block}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = WORD.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', 8080), Handler).serve_forever()
"
    )
}

/// The agent workload `guests/agent.py`: HTTP API, session, files, thread, memory block, outbound connection.
#[derive(Debug, Clone)]
pub struct AgentGuest {
    /// The port that it listens on.
    pub port: u16,
    /// Size of its memory block, MiB; half random, half compressible.
    pub mib: u32,
    /// A peer that echoes lines ([`crate::peer::Peer`]), to which it holds a connection.
    pub connect: Option<SocketAddr>,
    /// Seconds between keepalives on that connection; 0 for none.
    pub keepalive: u32,
    /// Milliseconds between ticks of its background thread.
    pub tick_millis: u32,
    /// Whether it listens on IPv6, too.
    pub dual_stack: bool,
}

impl Default for AgentGuest {
    fn default() -> Self {
        Self {
            port: 8080,
            mib: 0,
            connect: None,
            keepalive: 0,
            tick_millis: 1000,
            dual_stack: false,
        }
    }
}

impl AgentGuest {
    /// With a memory block of this size.
    #[must_use]
    pub fn mib(mib: u32) -> Self {
        Self {
            mib,
            ..Self::default()
        }
    }

    /// A container that runs it.
    #[must_use]
    pub fn container(&self) -> ContainerSpec {
        let mut args = vec![
            format!("--port={}", self.port),
            format!("--mib={}", self.mib),
            format!("--tick={}", f64::from(self.tick_millis) / 1000.0),
        ];
        if self.dual_stack {
            args.push("--dual-stack".into());
        }
        if let Some(peer) = self.connect {
            args.push(format!("--connect={peer}"));
            args.push(format!("--keepalive={}", self.keepalive));
        }
        ContainerSpec::guest("agent", "agent.py", &args)
    }

    /// A pod with that container.
    #[must_use]
    pub fn pod(&self, name: impl Into<String>) -> PodSpec {
        PodSpec::new(name).container(self.container())
    }
}

/// The guest `guests/world.py`: one of everything that a kernel can hold for a process.
#[derive(Debug, Clone, Default)]
pub struct WorldGuest {
    /// More folders in which it keeps files open, by name.
    pub folders: Vec<(String, String)>,
}

impl WorldGuest {
    /// The port on which lines come back over TCP and datagrams over UDP.
    pub const ECHO_PORT: u16 = 9000;
    /// The port on which whatever comes is counted.
    pub const STREAM_PORT: u16 = 9001;

    /// With one more folder.
    #[must_use]
    pub fn folder(mut self, name: &str, path: &str) -> Self {
        self.folders.push((name.to_owned(), path.to_owned()));
        self
    }

    /// A container that runs it.
    #[must_use]
    pub fn container(&self) -> ContainerSpec {
        let args: Vec<String> = self
            .folders
            .iter()
            .map(|(name, path)| format!("{name}={path}"))
            .collect();
        ContainerSpec::guest("world", "world.py", &args)
    }
}
