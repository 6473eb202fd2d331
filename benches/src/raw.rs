//! The real runsc by hand: what saving a guest and making it again costs without any of Dormouse.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_net::links;
use dormouse_sentry::{ContainerKind, Record, RunDir, RunscState, Switch};
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, Stack};

use crate::ask;
use crate::samples::{Taken, ms};

/// How long a killed sentry may take to end, and its parent to notice.
const ENDS: Duration = Duration::from_secs(10);

/// Calls runsc and waits for it, ms.
pub(crate) fn call(runsc: &Path, dir: &Path, args: &[String]) -> Result<f64> {
    let words = words()?;
    let began = Instant::now();
    let status = Command::new(runsc)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Not a pipe: the sentry would inherit it, and it would never end.
        .stderr(words.try_clone()?)
        .status()
        .with_context(|| format!("start {}", runsc.display()))?;
    let took = ms(began.elapsed());
    ensure!(status.success(), "runsc {args:?}: {status}: {}", said(words));
    Ok(took)
}

fn words() -> Result<std::fs::File> {
    let fd = nix::sys::memfd::memfd_create(c"runsc", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(fd.into())
}

fn said(mut words: std::fs::File) -> String {
    use std::io::{Read, Seek, SeekFrom};

    let mut text = String::new();
    let _ = words.seek(SeekFrom::Start(0));
    let _ = words.read_to_string(&mut text);
    text.trim().to_owned()
}

/// `runsc checkpoint --leave-running` of a pod into an empty directory, ms.
pub(crate) fn checkpoint(stack: &Stack, pod: &Pod, image: &Path) -> Result<f64> {
    let args = [
        format!("--root={}", stack.runsc_root().display()),
        "checkpoint".into(),
        "--leave-running".into(),
        format!("--image-path={}", image.display()),
        pod.id.clone(),
    ];
    call(&stack.built().part("runsc"), stack.dir(), &args)
}

/// A hibernated pod, while its agent is away.
pub(crate) struct Orphan<'a> {
    pod: &'a Pod,
    record: Record,
    image: PathBuf,
}

impl<'a> Orphan<'a> {
    /// Reads the record of a pod that is hibernated.
    pub(crate) fn of(rig: &Rig, pod: &'a Pod) -> Result<Self> {
        let dir = RunDir::new(rig.stack.run_dir())?;
        let record = Switch::open(&dir, &pod.id.parse()?).record()?;
        let hibernation = record.hibernation.as_ref().context("it is not hibernated")?;
        let image = crate::image::store(rig)
            .join("snapshots")
            .join(&hibernation.snapshot);
        Ok(Self { pod, record, image })
    }

    /// Makes the guest again with four calls of runsc, one after the other and with the shim's own flags, and asks it.
    /// The addresses, which a person would have to put back first, are there before the clock starts.
    pub(crate) async fn wake(&self) -> Result<Taken> {
        let network = self
            .record
            .network
            .as_ref()
            .context("no addresses in the record")?;
        links::restore_hushed(&self.pod.netns, &serde_json::from_str(network.get())?)?;
        let image = format!("--image-path={}", self.image.display());
        let root = self.pod.id.as_str();
        let began = Instant::now();
        let mut parts = vec![
            ("create".to_owned(), self.verb(root, "create", &[])?),
            (
                "restore".to_owned(),
                self.verb(root, "restore", &["--detach", &image])?,
            ),
        ];
        let unhushing = Instant::now();
        links::unhush(&self.pod.netns)?;
        let unhushed = ms(unhushing.elapsed());
        let (mut created, mut started) = (0.0, 0.0);
        for id in self.containers() {
            created += self.verb(id, "create", &[])?;
            started += self.verb(id, "start", &[])?;
        }
        parts.push(("create container".to_owned(), created));
        parts.push(("start container".to_owned(), started));
        let calls = ms(began.elapsed()) - unhushed;
        let answered = Instant::now();
        ask::get(self.pod, "/answer").await?;
        let inside: f64 = parts.iter().map(|(_, value)| value).sum();
        parts.push(("between the calls".to_owned(), calls - inside));
        parts.push(("first answer".to_owned(), ms(answered.elapsed())));
        Ok(Taken::of(parts))
    }

    /// Ends the guest, so that the pod is hibernated as before.
    pub(crate) fn end(&self) -> Result<()> {
        let id = &self.record.sandbox_id;
        let sentry = RunscState::read(&self.record.runtime_root, id, &id.into())?.sentry()?;
        sentry.end(ENDS, ENDS)?;
        for id in self.containers().chain([self.pod.id.as_str()]) {
            self.verb(id, "delete", &["--force"])?;
        }
        Ok(())
    }

    fn containers(&self) -> impl Iterator<Item = &str> {
        let containers = self.record.containers.iter();
        containers
            .filter(|c| c.kind == ContainerKind::Container)
            .map(|c| c.id.as_str())
    }

    /// A verb as the shim calls it for this container.
    fn verb(&self, id: &str, verb: &str, options: &[&str]) -> Result<f64> {
        let launch = self
            .record
            .containers
            .iter()
            .find(|c| c.id.as_str() == id)
            .and_then(|c| c.launch.as_ref())
            .context("it is not known how the container was made")?;
        let at = launch.create.iter().position(|word| word == "create");
        let globals = launch
            .create
            .get(..at.context("no `create`")?)
            .unwrap_or_default();
        let args: Vec<String> = if verb == "create" {
            launch.create.clone()
        } else {
            let tail = [verb].into_iter().chain(options.iter().copied()).chain([id]);
            globals.iter().cloned().chain(tail.map(str::to_owned)).collect()
        };
        call(&self.record.runsc.path, &launch.directory, &args)
    }
}
