//! What the waiter does for the agent while its pod is hibernated: it calls the real runsc for its own container, the way
//! the shim called it.

mod child;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_sentry::hold::{RunscCall, Streams};
use dormouse_sentry::releases::{Releases, program_of, today};
use dormouse_sentry::wrapper_config::check_program;
use dormouse_sentry::{ContainerId, Launch, Record, Switch, WrapperConfig};

/// The most that is kept of what runsc says, in bytes.
const WORDS: u64 = 4096;

/// How much of the end of runsc's log is looked through for its last words, in bytes.
const TAIL: u64 = 64 << 10;

/// How long a `create` may take.
const CREATE: Duration = Duration::from_secs(300);

/// The same for a shell: it was made for somebody who may come, and who wants to kill the pod meanwhile waits for it.
const SHELL: Duration = Duration::from_secs(4);

/// Calls runsc, and says what it said where it failed. `config` is what the waiter began with, perhaps months ago.
pub(super) fn call(
    config: &WrapperConfig,
    switch: &Switch,
    container: &ContainerId,
    call: &RunscCall,
    streams: &Streams,
) -> Result<(), String> {
    let record = switch.record().map_err(|e| e.to_string())?;
    // The guest that runs is the shim's alone; only a save may be asked of it.
    if record.hibernation.is_none() && !matches!(call, RunscCall::Checkpoint { .. }) {
        return Err("the pod is not hibernated".to_owned());
    }
    let launch = record
        .container(container)
        .and_then(|c| c.launch.as_ref())
        .ok_or("it is not known how the container was created")?;
    let runsc = program(config, &record, call)?;
    let within = match call {
        RunscCall::Create if record.shell().is_some() => Some(SHELL),
        RunscCall::Create => Some(CREATE),
        _ => None,
    };
    let (args, streams) = arguments(launch, container, call, streams)?;
    run(&runsc, launch, call.verb(), &args, streams, within)
}

/// The pod's own release, as the node has it now. An image is read and written by exactly that; only what is left of a
/// guest may be tidied up by another one.
fn program(config: &WrapperConfig, record: &Record, call: &RunscCall) -> Result<PathBuf, String> {
    let again = config.again();
    let config = again.as_ref().unwrap_or(config);
    let dir = config.dir().ok_or("there is no run directory")?;
    let version = &record.runsc.version;
    let program = program_of(config, &dir, &record.runsc);
    let must_be_exact = !matches!(call, RunscCall::Delete);
    let is_restore = matches!(call, RunscCall::Restore { .. });
    if !version.is_empty() && (must_be_exact && !program.exact || is_restore) {
        Releases::look(config, &dir)
            .usable(version, today())
            .map_err(|error| format!("{}: {error}", error.reason()))?;
    }
    check_program(&program.path).map_err(|e| e.to_string())?;
    Ok(program.path)
}

/// Calls runsc for a container, the way the shim had it made.
pub(super) fn invoke(
    runsc: &Path,
    launch: &Launch,
    container: &ContainerId,
    call: &RunscCall,
    streams: &Streams,
) -> Result<(), String> {
    let (args, streams) = arguments(launch, container, call, streams)?;
    run(runsc, launch, call.verb(), &args, streams, None)
}

/// The shim's global flags.
pub(super) fn globals(launch: &Launch) -> Result<Vec<String>, String> {
    let verb = launch
        .create
        .iter()
        .position(|a| a == "create")
        .ok_or("the shim did not call `create`")?;
    Ok(launch.create.get(..verb).unwrap_or_default().to_vec())
}

/// runsc's arguments, with the shim's global flags before them, and the streams for it.
fn arguments(
    launch: &Launch,
    container: &ContainerId,
    call: &RunscCall,
    streams: &Streams,
) -> Result<(Vec<String>, Streams), String> {
    let mut args = globals(launch)?;
    if matches!(call, RunscCall::Create) {
        return Ok((launch.create.clone(), Streams::default()));
    }
    args.push(call.verb().to_owned());
    match call {
        RunscCall::Checkpoint { image } => args.extend(["--leave-running".to_owned(), image_path(image)]),
        RunscCall::Restore { image } => args.extend(["--detach".to_owned(), image_path(image)]),
        RunscCall::Delete => args.push("--force".to_owned()),
        RunscCall::Create | RunscCall::Start => {}
    }
    args.push(container.to_string());
    let mut own = Streams::default();
    if matches!(call, RunscCall::Start) {
        for (own, kept) in own.iter_mut().zip(streams) {
            *own = kept
                .as_ref()
                .map(OwnedFd::try_clone)
                .transpose()
                .map_err(|e| format!("cannot copy a stream: {e}"))?;
        }
    }
    Ok((args, own))
}

fn image_path(image: &Path) -> String {
    format!("--image-path={}", image.display())
}

fn run(
    runsc: &Path,
    launch: &Launch,
    verb: &str,
    args: &[String],
    streams: Streams,
    within: Option<Duration>,
) -> Result<(), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("cannot {what} {}: {e}", runsc.display());
    // Its own words come through a file: a pipe would be inherited by the sentry and never end.
    let words = nix::sys::memfd::memfd_create(c"runsc-stderr", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|e| failed("take the words of", &e))?;
    let own = words.try_clone().map_err(|e| failed("take the words of", &e))?;
    let [stdin, stdout, stderr] = streams;
    let mut command = Command::new(runsc);
    command.args(args).current_dir(&launch.directory);
    command.stdin(stream(stdin)).stdout(stream(stdout));
    // A container's standard error is its own; runsc then speaks through its log alone.
    match stderr {
        Some(fd) => command.stderr(Stdio::from(fd)),
        None if verb == "start" => command.stderr(Stdio::null()),
        None => command.stderr(Stdio::from(own)),
    };
    let log = Log::of(args);
    let mut child = command.spawn().map_err(|e| failed("start", &e))?;
    let ended = match within {
        Some(within) => child::wait(&mut child, within),
        None => child.wait().map(Some),
    };
    let status = ended
        .map_err(|e| failed("wait for", &e))?
        .ok_or("it took too long, and was ended with all that it had begun")?;
    if status.success() {
        return Ok(());
    }
    let said = Some(said(words)).filter(|said| !said.is_empty());
    Err(match said.or_else(|| log?.last_error()) {
        Some(said) => format!("{status}: {said}"),
        None => format!("{status}; see runsc's log"),
    })
}

/// The log that the shim has runsc write, from where it ended before the call.
struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    fn of(args: &[String]) -> Option<Self> {
        let path = args.iter().find_map(|a| a.strip_prefix("--log="))?;
        let path = PathBuf::from(path);
        let from = std::fs::metadata(&path).map_or(0, |m| m.len());
        Some(Self { path, from })
    }

    /// What runsc says last, in the one line of JSON that the shim, too, looks for.
    fn last_error(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Line {
            msg: String,
            level: String,
        }
        let mut file = File::open(&self.path).ok()?;
        let end = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(self.from.max(end.saturating_sub(TAIL))))
            .ok()?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let errors = text
            .lines()
            .rev()
            .filter_map(|l| serde_json::from_str::<Line>(l).ok());
        let last = errors.into_iter().find(|l| l.level == "error")?;
        Some(last.msg.chars().take(1000).collect())
    }
}

fn stream(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

fn said(mut words: File) -> String {
    let mut text = Vec::new();
    let _ = words.seek(SeekFrom::Start(0));
    let _ = words.take(WORDS).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Launch {
        let create = ["--root=/r", "--log=/l", "create", "--bundle", "/b", "c1"];
        Launch {
            create: create.map(str::to_owned).to_vec(),
            directory: "/b".into(),
            stdio: [None; 3],
            started: true,
        }
    }

    fn words(call: &RunscCall) -> String {
        let container = "c1".parse().unwrap();
        let (args, _) = arguments(&launch(), &container, call, &Streams::default()).unwrap();
        args.join(" ")
    }

    #[test]
    fn the_last_words_are_those_of_this_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let line =
            |level: &str, msg: &str| format!("{{\"msg\":{msg:?},\"level\":{level:?},\"time\":\"x\"}}\n");
        std::fs::write(&path, line("error", "of an earlier call")).unwrap();
        let log = Log::of(&["--root=/r".into(), format!("--log={}", path.display())]).unwrap();
        assert_eq!(log.last_error(), None);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text += &(line("error", "first")
            + &line("error", "restoring: EOF")
            + &line("warning", "beside it")
            + "torn {");
        std::fs::write(&path, text).unwrap();
        assert_eq!(log.last_error().as_deref(), Some("restoring: EOF"));
        assert!(Log::of(&["--root=/r".into()]).is_none());
    }

    #[test]
    fn runsc_is_called_with_the_shims_own_flags() {
        let image = std::path::PathBuf::from("/i");
        assert_eq!(
            words(&RunscCall::Create),
            "--root=/r --log=/l create --bundle /b c1"
        );
        assert_eq!(words(&RunscCall::Start), "--root=/r --log=/l start c1");
        assert_eq!(words(&RunscCall::Delete), "--root=/r --log=/l delete --force c1");
        assert_eq!(
            words(&RunscCall::Restore { image: image.clone() }),
            "--root=/r --log=/l restore --detach --image-path=/i c1"
        );
        assert_eq!(
            words(&RunscCall::Checkpoint { image }),
            "--root=/r --log=/l checkpoint --leave-running --image-path=/i c1"
        );
    }
}
