//! Starting containerd and giving it the test images.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::VersionRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::record::Record;
use super::slot::Slot;
use crate::built::Built;
use crate::host::{ProcessId, wait};

/// Under a compiler's load a start takes seconds; alone it takes 0.2 s.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Starts containerd, records it, and waits until the CRI answers.
pub(super) async fn start(built: &Built, slot: &Slot, record: &mut Record) -> Result<Channel> {
    let log_path = slot.dir.join("containerd.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("open {}", log_path.display()))?;
    let child = Command::new(built.part("containerd"))
        .arg("--config")
        .arg(slot.dir.join("containerd.toml"))
        // The runc shim, the CNI plugins and runsc are found here.
        .env("PATH", path_with(&built.stack.join("bin"))?)
        .current_dir(&slot.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share containerd's log")?)
        .stderr(log)
        // Ctrl-C at the terminal is for the test, which then takes the stack down in order.
        .process_group(0)
        .spawn()
        .context("start containerd")?;
    let id = i32::try_from(child.id())
        .ok()
        .and_then(ProcessId::of)
        .context("containerd ended as soon as it had started")?;
    record.containerd = Some(id);
    record.save()?;
    reap(child);

    let socket = slot.socket();
    wait::until("containerd's CRI", START_LIMIT, async || {
        anyhow::ensure!(id.alive(), "containerd has ended");
        let channel = connect(socket.clone()).await?;
        RuntimeServiceClient::new(channel.clone())
            .version(VersionRequest::default())
            .await?;
        Ok(channel)
    })
    .await
}

/// Waits for a child in the background, so that it never stays as a zombie that looks alive.
fn reap(mut child: std::process::Child) {
    std::thread::spawn(move || {
        let _ = child.wait();
    });
}

/// A lazily reconnecting connection over a Unix socket.
async fn connect(socket: PathBuf) -> Result<Channel> {
    Endpoint::from_static("http://containerd.local")
        .connect_with_connector(service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .context("connect to containerd's socket")
}

/// Imports the images that the stack was built with.
pub(super) async fn import_images(built: &Built, slot: &Slot) -> Result<()> {
    for image in ["pause.tar", "busybox.tar", "python.tar"] {
        let output = tokio::process::Command::new(built.part("ctr"))
            .arg("--address")
            .arg(slot.socket())
            .args(["--namespace", "k8s.io", "images", "import", "--local"])
            .arg(built.stack.join("images").join(image))
            .stdin(Stdio::null())
            .output()
            .await
            .context("start ctr")?;
        anyhow::ensure!(
            output.status.success(),
            "image {image} was refused: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn path_with(bin: &std::path::Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin.to_path_buf())
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    std::env::join_paths(dirs).context("a directory in PATH holds a colon")
}
