//! The real runsc, called as the shim called it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::hold::Streams;
use dormouse_sentry::{ContainerId, ContainerRecord};

/// The most that is kept of what runsc says, in bytes.
const WORDS: u64 = 4096;

/// How often it is looked whether runsc is done. It takes 10 ms at the very least.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// A call of runsc failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunscError {
    /// How the container was made is not known.
    #[error(
        "it is not known how container {container} was created; it was started by a wrapper of another version, and can be hibernated after its next start"
    )]
    NoLaunch {
        /// The container.
        container: ContainerId,
    },
    /// It could not be started.
    #[error("cannot start {}: {source}; is the real runsc installed?", path.display())]
    Start {
        /// The real runsc.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It said no.
    #[error("runsc {verb} of container {container} failed ({status}): {words}")]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// On which container.
        container: ContainerId,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// It did not end.
    #[error("runsc {verb} of container {container} did not end in {waited:?} and was killed")]
    Hangs {
        /// What was tried.
        verb: &'static str,
        /// On which container.
        container: ContainerId,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl RunscError {
    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::NoLaunch { .. } => Reason::WrapperMissing,
            Self::Start { .. } => Reason::RuntimeCallFailed,
            Self::Failed { .. } | Self::Hangs { .. } => Reason::RuntimeCallFailed,
        }
    }
}

/// How one container is handled: with the global flags that the shim gave.
#[derive(Debug)]
pub(super) struct Runsc<'a> {
    path: &'a PathBuf,
    container: &'a ContainerRecord,
    globals: &'a [String],
    create: &'a [String],
    directory: &'a PathBuf,
}

impl<'a> Runsc<'a> {
    /// # Errors
    /// [`RunscError::NoLaunch`]
    pub(super) fn of(path: &'a PathBuf, container: &'a ContainerRecord) -> Result<Self, RunscError> {
        let none = || RunscError::NoLaunch {
            container: container.id.clone(),
        };
        let launch = container.launch.as_ref().ok_or_else(none)?;
        let verb = launch
            .create
            .iter()
            .position(|a| a == "create")
            .ok_or_else(none)?;
        Ok(Self {
            path,
            container,
            globals: launch.create.get(..verb).unwrap_or_default(),
            create: launch.create.get(verb..).unwrap_or_default(),
            directory: &launch.directory,
        })
    }

    /// Makes the container again.
    pub(super) fn create(&self, within: Duration) -> Result<(), RunscError> {
        self.call("create", self.create, Streams::default(), within)
    }

    /// Starts it: in a sandbox that is being restored this restores it.
    pub(super) fn start(&self, streams: Streams, within: Duration) -> Result<(), RunscError> {
        self.call("start", &["start".to_owned(), self.id()], streams, within)
    }

    /// Begins to fill the sandbox out of an image.
    pub(super) fn restore(&self, image: &str, within: Duration) -> Result<(), RunscError> {
        let args = [
            "restore".to_owned(),
            "--detach".to_owned(),
            format!("--image-path={image}"),
            self.id(),
        ];
        self.call("restore", &args, Streams::default(), within)
    }

    /// Saves the sandbox, for versions whose control socket is not known.
    pub(super) fn checkpoint(&self, image: &str, within: Duration) -> Result<(), RunscError> {
        let args = [
            "checkpoint".to_owned(),
            "--leave-running".to_owned(),
            format!("--image-path={image}"),
            self.id(),
        ];
        self.call("checkpoint", &args, Streams::default(), within)
    }

    /// Forgets the container, whatever its state. Never of a sandbox that is stopped: that hangs.
    pub(super) fn delete(&self, within: Duration) -> Result<(), RunscError> {
        let args = ["delete".to_owned(), "--force".to_owned(), self.id()];
        self.call("delete", &args, Streams::default(), within)
    }

    fn id(&self) -> String {
        self.container.id.to_string()
    }

    fn call(
        &self,
        verb: &'static str,
        args: &[String],
        streams: Streams,
        within: Duration,
    ) -> Result<(), RunscError> {
        let start = |source| RunscError::Start {
            path: self.path.clone(),
            source,
        };
        // Its own words come through a file: a pipe would be inherited by the sentry and never end.
        let words = tempfile().map_err(start)?;
        let [stdin, stdout, stderr] = streams;
        let own = words.try_clone().map_err(start)?;
        let mut command = Command::new(self.path);
        command.args(self.globals).args(args).current_dir(self.directory);
        command.stdin(stream(stdin)).stdout(stream(stdout));
        // A container's standard error is its own; runsc then speaks through its log alone.
        match stderr {
            Some(fd) => command.stderr(Stdio::from(fd)),
            None if verb == "start" => command.stderr(Stdio::null()),
            None => command.stderr(Stdio::from(own)),
        };
        let mut child = command.spawn().map_err(start)?;
        drop(command);
        let began = Instant::now();
        let Some(status) = wait(&mut child, began + within).map_err(start)? else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(RunscError::Hangs {
                verb,
                container: self.container.id.clone(),
                waited: within,
            });
        };
        if status.success() {
            return Ok(());
        }
        Err(RunscError::Failed {
            verb,
            container: self.container.id.clone(),
            status,
            words: said(&words),
        })
    }
}

fn stream(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

fn wait(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A file that nobody else sees.
fn tempfile() -> std::io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"runsc-stderr", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

fn said(words: &File) -> String {
    use std::io::{Seek, SeekFrom};
    let mut text = Vec::new();
    let mut words = words;
    let _ = words.seek(SeekFrom::Start(0));
    let _ = words.take(WORDS).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() {
        "it said nothing; see its log".to_owned()
    } else {
        text.to_owned()
    }
}
