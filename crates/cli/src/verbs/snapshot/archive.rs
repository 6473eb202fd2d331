//! `dormouse snapshot export` and `import`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dormouse_rpc::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::agent::{Agent, refused};
use crate::args::Global;
use crate::error::CliError;
use crate::output::{complain, print};
use crate::verbs::bar;
use crate::view::units::mib;
use crate::view::{SnapshotView, clean};

/// How much of an archive goes into one message, in bytes: half of what the agent takes in one request.
const PIECE: usize = 32 << 10;

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::File { verb, path, source }
}

/// Where an archive goes to; a file that does not become whole is not left behind.
struct Target {
    out: Box<dyn Write + Send>,
    file: Option<Partial>,
}

/// The file under another name, until it is whole.
struct Partial {
    file: std::fs::File,
    partial: PathBuf,
    path: PathBuf,
}

impl Target {
    fn open(path: &Path) -> Result<Self, CliError> {
        use std::os::unix::fs::OpenOptionsExt as _;

        if path == Path::new("-") {
            return Ok(Self {
                out: Box::new(std::io::stdout()),
                file: None,
            });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", &partial)(error));
            }
            _ => {}
        }
        // A snapshot holds whatever the guest had in memory: it is nobody else's file that this goes to.
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(failed("create", &partial))?;
        Ok(Self {
            out: Box::new(file.try_clone().map_err(failed("open", &partial))?),
            file: Some(Partial {
                file,
                partial,
                path: path.to_owned(),
            }),
        })
    }

    fn finish(mut self) -> Result<(), CliError> {
        self.out.flush()?;
        if let Some(written) = &self.file {
            let path = &written.path;
            written
                .file
                .sync_all()
                .map_err(failed("sync", &written.partial))?;
            std::fs::rename(&written.partial, path).map_err(failed("rename to", path))?;
            let path = path.clone();
            // From here on there is nothing under the other name.
            self.file = None;
            // Without a directory it is in this one.
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            std::fs::File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(failed("sync", dir))?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(written) = &self.file {
            let _ = std::fs::remove_file(&written.partial);
        }
    }
}

pub(super) async fn export(global: &Global, id: String, path: &Path) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let what = format!("export of snapshot {}", clean(&id));
    let answer = agent
        .client()
        .export_snapshot(v1::ExportSnapshotRequest { id })
        .await;
    let mut pieces = answer.map_err(|status| refused(&what, status))?.into_inner();
    let mut target = Target::open(path)?;
    let bar = bar::bytes(global, "export", 0);
    let mut written: u64 = 0;
    while let Some(piece) = pieces.message().await.map_err(|status| refused(&what, status))? {
        if piece.total_bytes > 0 {
            bar::measure(&bar, piece.total_bytes);
        }
        target.out.write_all(&piece.data).map_err(failed("write", path))?;
        written = written.saturating_add(piece.data.len() as u64);
        bar.set_position(written);
    }
    bar.finish_and_clear();
    target.finish()?;
    complain(&format!("{}  {}", path.display(), mib(written)));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn import(global: &Global, path: &Path) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let (mut from, total): (Box<dyn Read + Send>, u64) = if path == Path::new("-") {
        (Box::new(std::io::stdin()), 0)
    } else {
        let file = std::fs::File::open(path).map_err(failed("open", path))?;
        let length = file.metadata().map_err(failed("look at", path))?.len();
        (Box::new(file), length)
    };
    let namespace = global.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let bar = bar::bytes(global, "import", total);
    let (sender, receiver) = mpsc::channel(4);
    let reading = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || -> std::io::Result<()> {
            let mut namespace = namespace;
            loop {
                let mut data = Vec::with_capacity(PIECE);
                let read = (&mut from).take(PIECE as u64).read_to_end(&mut data)?;
                if read == 0 && namespace.is_empty() {
                    return Ok(());
                }
                let piece = v1::ImportSnapshotRequest {
                    data,
                    namespace: std::mem::take(&mut namespace),
                };
                if sender.blocking_send(piece).is_err() {
                    // The agent has said why.
                    return Ok(());
                }
                bar.inc(read as u64);
            }
        }
    });
    let answer = agent
        .client()
        .import_snapshot(ReceiverStream::new(receiver))
        .await;
    bar.finish_and_clear();
    let what = format!("import of {}", path.display());
    let snapshot = match answer {
        Ok(answer) => answer.into_inner().snapshot,
        Err(status) => {
            return Err(refused(&what, status));
        }
    };
    if let Ok(Err(source)) = reading.await {
        return Err(failed("read", path)(source));
    }
    let snapshot = snapshot.ok_or(CliError::Empty {
        what: "ImportSnapshot".to_owned(),
        lacks: "snapshot",
    })?;
    print(global.output, &SnapshotView::from(&snapshot), |_| {
        format!("{}  {}", clean(&snapshot.id), mib(snapshot.image_bytes))
    })?;
    Ok(ExitCode::SUCCESS)
}
