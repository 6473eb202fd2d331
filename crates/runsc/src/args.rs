//! What the shim wants: global flags in any order, a verb, its flags, a container.

use std::ffi::{OsStr, OsString};

/// runsc's global flags that take a value; the shim writes them as `--k=v`, people also as `--k v`.
const GLOBAL_VALUES: [&str; 16] = [
    "root",
    "log",
    "log-format",
    "panic-log",
    "debug-log",
    "debug-log-fd",
    "debug-log-format",
    "debug-command",
    "log-fd",
    "panic-log-fd",
    "platform",
    "network",
    "file-access",
    "overlay2",
    "watchdog-action",
    "pod-init-config",
];

/// Flags of runsc's verbs that take a value.
const VERB_VALUES: [&str; 28] = [
    "bundle",
    "b",
    "pid-file",
    "console-socket",
    "user-log",
    "process",
    "internal-pid-file",
    "cwd",
    "env",
    "user",
    "u",
    "cap",
    "additional-gids",
    "process-label",
    "apparmor",
    "exec-fd",
    "pass-fd",
    "pid",
    "pgid",
    "rootpid",
    "interval",
    "format",
    "resources",
    "r",
    "image-path",
    "work-path",
    "fs-restore-image-path",
    "compression",
];

/// runsc's verbs, to tell a flag's value from the verb after a flag that is not known.
const VERBS: [&str; 30] = [
    "checkpoint",
    "create",
    "delete",
    "do",
    "events",
    "exec",
    "fscheckpoint",
    "kill",
    "list",
    "pause",
    "port-forward",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
    "wait",
    "flags",
    "help",
    "tar",
    "usage",
    "debug",
    "read-control",
    "write-control",
    "install",
    "uninstall",
    "mitigate",
];

/// One call of the wrapper.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invocation {
    globals: Vec<(String, String)>,
    flags: Vec<(String, String)>,
    /// The verb; empty where there is none.
    pub verb: String,
    /// The verb's arguments after its flags; for most verbs the first is the container.
    pub positional: Vec<String>,
}

impl Invocation {
    /// Reads the arguments the way Go's flag package does. What is not text takes no part: it is still
    /// handed on to the real runsc.
    #[must_use]
    pub fn parse(argv: &[OsString]) -> Self {
        let mut rest = argv.iter().map(|a| a.to_string_lossy().into_owned()).peekable();
        let mut parsed = Self::default();
        while let Some(arg) = rest.next() {
            if let Some((name, value)) = split_flag(&arg) {
                let value = value.unwrap_or_else(|| {
                    let takes = GLOBAL_VALUES.contains(&name.as_str())
                        || rest
                            .peek()
                            .is_some_and(|next| !is_flag(next) && !VERBS.contains(&next.as_str()));
                    if takes && !is_known_bool(&name) {
                        rest.next().unwrap_or_default()
                    } else {
                        "true".to_owned()
                    }
                });
                parsed.globals.push((name, value));
            } else {
                parsed.verb = arg;
                break;
            }
        }
        while let Some(arg) = rest.next() {
            if arg == "--" {
                parsed.positional.extend(rest);
                break;
            }
            if let Some((name, value)) = split_flag(&arg) {
                let value = value.unwrap_or_else(|| {
                    if VERB_VALUES.contains(&name.as_str()) {
                        rest.next().unwrap_or_default()
                    } else {
                        "true".to_owned()
                    }
                });
                parsed.flags.push((name, value));
            } else {
                // Flags end at the first argument that is none.
                parsed.positional.push(arg);
                parsed.positional.extend(rest);
                break;
            }
        }
        parsed
    }

    /// The last value of a global flag.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<&str> {
        last(&self.globals, name)
    }

    /// The last value of one of the verb's flags.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<&str> {
        last(&self.flags, name)
    }

    /// Whether a boolean flag of the verb is set.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.flag(name)
            .is_some_and(|v| matches!(v, "true" | "t" | "T" | "TRUE" | "True" | "1"))
    }

    /// The container that the verb is for, as it was written.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        self.positional.first().map(String::as_str)
    }

    /// runsc's root directory.
    #[must_use]
    pub fn root(&self) -> &str {
        // runsc's own default for root.
        self.global("root")
            .filter(|r| !r.is_empty())
            .unwrap_or("/var/run/runsc")
    }
}

fn last<'a>(flags: &'a [(String, String)], name: &str) -> Option<&'a str> {
    flags
        .iter()
        .rev()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

fn is_flag(arg: &str) -> bool {
    arg.len() > 1 && arg.starts_with('-')
}

/// Global flags without a value that are met in practice before the verb.
fn is_known_bool(name: &str) -> bool {
    matches!(
        name,
        "debug"
            | "strace"
            | "ignore-cgroups"
            | "rootless"
            | "systemd-cgroup"
            | "alsologtostderr"
            | "version"
            | "allow-packet-socket-write"
            | "directfs"
            | "help"
            | "h"
    )
}

/// `-k`, `--k`, `--k=v`.
fn split_flag(arg: &str) -> Option<(String, Option<String>)> {
    if !is_flag(arg) || arg == "--" {
        return None;
    }
    let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'))?;
    Some(match body.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (body.to_owned(), None),
    })
}

/// The arguments with `--force` put after the verb, for a `delete` that has to be tried again. Unchanged where
/// there is no such verb.
#[must_use]
pub fn with_force(argv: &[OsString], verb: &str) -> Vec<OsString> {
    // A flag's value may be spelled like the verb, so each place is judged by how the whole is read then.
    argv.iter()
        .enumerate()
        .filter(|(_, arg)| *arg == OsStr::new(verb))
        .map(|(at, _)| {
            let mut out = argv.to_vec();
            out.insert(at + 1, "--force".into());
            out
        })
        .find(|out| {
            let read = Invocation::parse(out);
            read.verb == verb && read.is_set("force")
        })
        .unwrap_or_else(|| argv.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(args: &[&str]) -> Invocation {
        Invocation::parse(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn reads_what_the_shim_writes() {
        let i = parse(&[
            "--platform=systrap",
            "--root=/r",
            "--log=/b/log.json",
            "--log-format=json",
            "exec",
            "--process",
            "/tmp/p",
            "--detach",
            "--pid-file",
            "/b/x.pid",
            "abc",
        ]);
        assert_eq!(
            (i.verb.as_str(), i.container(), i.root()),
            ("exec", Some("abc"), "/r")
        );
        assert_eq!(i.flag("process"), Some("/tmp/p"));
        assert!(i.is_set("detach"));
        let i = parse(&["--root", "/r", "-debug", "kill", "--all", "abc", "9"]);
        assert_eq!(
            (i.verb.as_str(), i.root(), i.positional.as_slice()),
            ("kill", "/r", &["abc".to_owned(), "9".to_owned()][..])
        );
        assert!(i.is_set("all") && !i.is_set("pid"));
        let i = parse(&["exec", "abc", "sh", "-c", "--root=x"]);
        assert_eq!((i.container(), i.root()), (Some("abc"), "/var/run/runsc"));
        assert_eq!(parse(&["--unknown", "value", "state", "c"]).verb, "state");
        assert_eq!(parse(&["--unknown", "state", "c"]).verb, "state");
        assert_eq!(parse(&["--version"]).verb, "");
        assert_eq!(parse(&[]).verb, "");
        assert_eq!(parse(&["update", "--resources=-", "c"]).container(), Some("c"));
    }

    #[test]
    fn force_goes_after_the_verb() {
        let argv: Vec<OsString> = ["--root=/r", "delete", "c"].iter().map(OsString::from).collect();
        assert_eq!(
            with_force(&argv, "delete"),
            ["--root=/r", "delete", "--force", "c"]
        );
        // Values and ids may be spelled like the verb.
        let argv: Vec<OsString> = ["--root", "delete", "--log", "delete", "delete", "delete"]
            .iter()
            .map(OsString::from)
            .collect();
        assert_eq!(
            with_force(&argv, "delete"),
            [
                "--root", "delete", "--log", "delete", "delete", "--force", "delete"
            ]
        );
    }

    proptest! {
        #[test]
        fn any_order_of_globals_is_the_same(
            mut globals in proptest::collection::vec(("[a-z][a-z-]{0,10}", "[a-z/.]{0,10}"), 0..8),
            spaced in any::<bool>(),
            seed in any::<u64>(),
        ) {
            globals.retain(|(n, _)| n != "root" && n != "log");
            let mut args: Vec<Vec<String>> = globals.iter().map(|(n, v)| vec![format!("--{n}={v}")]).collect();
            args.push(if spaced { vec!["--root".into(), "/r".into()] } else { vec!["--root=/r".into()] });
            args.push(vec!["--log=/l".into()]);
            let by = usize::try_from(seed % args.len() as u64).unwrap();
            args.rotate_left(by);
            let mut argv: Vec<OsString> = args.into_iter().flatten().map(OsString::from).collect();
            argv.extend(["kill", "--all", "c1", "9"].map(OsString::from));
            let i = Invocation::parse(&argv);
            prop_assert_eq!(i.verb.as_str(), "kill");
            prop_assert_eq!(i.root(), "/r");
            prop_assert_eq!(i.global("log"), Some("/l"));
            prop_assert_eq!(i.container(), Some("c1"));
        }

        #[test]
        fn nothing_is_too_strange(args in proptest::collection::vec(".{0,12}", 0..10)) {
            let argv: Vec<OsString> = args.iter().map(OsString::from).collect();
            let _ = Invocation::parse(&argv);
        }
    }
}
