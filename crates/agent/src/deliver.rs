//! Environment variables for a container that runs already: a file in it, and a command that follows.
//!
//! Both are run in the container as its user. The file is there whole or as it was before, and for nobody else to read.

use std::time::Duration;

use dormouse_core::{LateEnv, LateEnvError, Reason, Variables};
use dormouse_cri::{CallError, ExecEnd, Runtime};

/// How long the file may take, and the command after it. A command that hangs holds up its claim for as long.
const FILE_LIMIT: Duration = Duration::from_secs(5);
const EXEC_LIMIT: Duration = Duration::from_secs(10);

/// What the script finds the file's content in: whoever looks at the container's processes sees their arguments.
const CONTENT: &str = "DORMOUSE_LATE_ENV";

/// Writes the file that is its first argument. `set -C` follows no link that somebody has put there meanwhile; a directory
/// would take `mv`'s file in.
const WRITE: &str = r#"
set -eu
umask 077
file=$1
content=$DORMOUSE_LATE_ENV
unset DORMOUSE_LATE_ENV
new=$file.new-$$
[ ! -d "$file" ]
[ -d "${file%/*}/" ] || mkdir -p "${file%/*}"
rm -f "$new"
trap 'rm -f "$new"' EXIT
set -C
printf '%s' "$content" >"$new"
mv -f "$new" "$file"
"#;

/// An environment that is to be given to a container.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Runs the commands.
    pub(crate) runtime: Runtime,
    /// Name of the container.
    pub(crate) container: String,
    /// Its id.
    pub(crate) container_id: String,
    /// What the pod has said at its birth.
    pub(crate) late: LateEnv,
    /// The environment.
    pub(crate) variables: Variables,
}

/// Why an environment was not delivered. Nothing here says what is in it: not even containerd's words are passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    /// The pod has not asked for it.
    #[error(
        "it takes no environment variables once it runs; {} is not among its annotations",
        dormouse_core::ANNOTATION_LATE_ENV
    )]
    NotTaken,
    /// What it has asked for cannot be read.
    #[error(transparent)]
    Annotation(#[from] LateEnvError),
    /// It sleeps.
    #[error("its guest sleeps")]
    Asleep,
    /// The container is not there, or does not run.
    #[error("its container {0:?} does not run")]
    NoContainer(String),
    /// The file could not be written.
    #[error("the file {file} could not be written in container {container:?}: {end}")]
    File {
        /// Which.
        file: String,
        /// Where.
        container: String,
        /// How the attempt ended.
        end: Failed,
    },
    /// The command failed.
    #[error(
        "the command of {} failed in container {container:?}: {end}",
        dormouse_core::ANNOTATION_LATE_ENV_EXEC
    )]
    Exec {
        /// Where.
        container: String,
        /// How it ended.
        end: Failed,
    },
}

/// How a command ended that did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// By itself.
    #[error("it ended with status {0}")]
    Status(u32),
    /// It was killed.
    #[error("it took longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It could not be run.
    #[error("containerd could not run it ({0})")]
    NotRun(Reason),
}

impl Failed {
    const fn reason(&self) -> Reason {
        match self {
            // Whatever it was, it may pass.
            Self::NotRun(
                reason @ (Reason::RuntimeUnavailable | Reason::DeadlineExceeded | Reason::PodNotFound),
            ) => *reason,
            // No such program, for example.
            Self::Status(_) | Self::TimedOut(_) | Self::NotRun(_) => Reason::EnvironmentNotDelivered,
        }
    }
}

impl DeliverError {
    /// The stable reason code.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::NotTaken => Reason::EnvironmentNotTaken,
            Self::Annotation(_) => Reason::InvalidAnnotation,
            Self::Asleep | Self::NoContainer(_) => Reason::PodNotReady,
            Self::File { end, .. } | Self::Exec { end, .. } => end.reason(),
        }
    }
}

impl Delivery {
    /// Writes the file and runs the command.
    ///
    /// # Errors
    /// One of them failed, or could not be run.
    pub(crate) async fn carry_out(&self) -> Result<(), DeliverError> {
        let content = [(CONTENT.to_owned(), self.variables.to_file())];
        let write = write_command(&self.late.file);
        let written = self.run(&write, &content, FILE_LIMIT);
        written.await.map_err(|end| DeliverError::File {
            file: self.late.file.clone(),
            container: self.container.clone(),
            end,
        })?;
        if self.late.exec.is_empty() {
            return Ok(());
        }
        let followed = self.run(&self.late.exec, self.variables.pairs(), EXEC_LIMIT);
        followed.await.map_err(|end| DeliverError::Exec {
            container: self.container.clone(),
            end,
        })
    }

    async fn run(&self, command: &[String], env: &[(String, String)], limit: Duration) -> Result<(), Failed> {
        judge(
            self.runtime.exec(&self.container_id, command, env, limit).await,
            limit,
        )
    }
}

fn judge(end: Result<ExecEnd, CallError>, limit: Duration) -> Result<(), Failed> {
    match end {
        Ok(ExecEnd::Exited(0)) => Ok(()),
        Ok(ExecEnd::Exited(status)) => Err(Failed::Status(status)),
        Ok(ExecEnd::TimedOut) => Err(Failed::TimedOut(limit)),
        Err(error) => Err(Failed::NotRun(error.reason())),
    }
}

fn write_command(file: &str) -> [String; 5] {
    ["/bin/sh", "-c", WRITE, "dormouse-late-env", file].map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Output};

    use proptest::prelude::*;

    use super::*;

    /// Writes the file as a container would.
    fn write(file: &Path, content: &str) -> bool {
        let [shell, words @ ..] = write_command(file.to_str().unwrap());
        let ran = Command::new(shell).args(words).env(CONTENT, content).output();
        ran.unwrap().status.success()
    }

    /// What a shell finds in the variables of a file.
    fn read(file: &Path, names: &[&str]) -> Output {
        let shown: Vec<String> = names
            .iter()
            .map(|name| format!("printf '%s\\0' \"${name}\""))
            .collect();
        let script = format!(". \"$1\"\n{}", shown.join("\n"));
        let ran = Command::new("/bin/sh")
            .args(["-euc", &script, "sh"])
            .arg(file)
            .output();
        ran.unwrap()
    }

    fn variables(all: &[(&str, &str)]) -> Variables {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Variables::new(all.iter().map(owned).collect()).unwrap()
    }

    #[test]
    fn the_file_is_made_whole_and_for_its_user_alone() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("run/claim/env");
        assert!(write(&file, "A='1'\n"));
        assert!(write(&file, "A='2'\n"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "A='2'\n");
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = std::fs::read_dir(file.parent().unwrap()).unwrap();
        assert_eq!(left.count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_link_is_replaced_and_a_directory_is_not_written_into() {
        let place = tempfile::tempdir().unwrap();
        let (file, other) = (place.path().join("env"), place.path().join("other"));
        std::fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        assert!(write(&file, "A='1'\n"));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "mine");
        assert!(!file.is_symlink());
        let directory = place.path().join("directory");
        std::fs::create_dir(&directory).unwrap();
        assert!(!write(&directory, "A='1'\n"));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn where_nothing_can_be_written_it_fails() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("a"), "").unwrap();
        assert!(!write(&place.path().join("a/env"), "A='1'\n"));
        assert!(!write(Path::new("/proc/env"), "A='1'\n"));
    }

    #[test]
    fn the_largest_environment_fits() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("env");
        let value = "x".repeat(dormouse_core::MAX_VARIABLES_BYTES - 5);
        assert!(write(&file, &variables(&[("A", &value)]).to_file()));
        assert_eq!(read(&file, &["A"]).stdout.len(), value.len() + 1);
    }

    #[test]
    fn what_may_pass_is_told_from_what_does_not() {
        let not_run = |reason| Failed::NotRun(reason).reason();
        assert_eq!(not_run(Reason::RuntimeUnavailable), Reason::RuntimeUnavailable);
        assert_eq!(
            not_run(Reason::RuntimeCallFailed),
            Reason::EnvironmentNotDelivered
        );
        for end in [Failed::Status(1), Failed::TimedOut(EXEC_LIMIT)] {
            assert_eq!(end.reason(), Reason::EnvironmentNotDelivered);
        }
        assert!(judge(Ok(ExecEnd::Exited(0)), EXEC_LIMIT).is_ok());
        assert!(judge(Ok(ExecEnd::TimedOut), EXEC_LIMIT).is_err());
    }

    /// Whatever may mean something to a shell, beside everything else.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof!["[^\0]{0,64}", r#"[ '"\\$`!#&|;<>(){}*?~\n\r\t=a-z]{0,64}"#,]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_reads_back_what_was_given(values in proptest::collection::vec(value(), 1..5)) {
            let place = tempfile::tempdir().unwrap();
            let file = place.path().join("env");
            let names = ["A", "_b", "C1", "D_"];
            let all: Vec<(&str, &str)> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
            prop_assert!(write(&file, &variables(&all).to_file()));
            let used: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            let read = read(&file, &used);
            let wanted: String = all.iter().map(|(_, value)| format!("{value}\0")).collect();
            prop_assert_eq!(read.stdout, wanted.into_bytes());
            prop_assert!(read.status.success() && read.stderr.is_empty());
        }
    }
}
