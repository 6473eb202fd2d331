//! What an installation puts on the node's disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{NodeSettings, PrepareError};
use crate::config::Config;

/// Begins every text that the installer writes: what bears it may be overwritten and removed.
const MARK: &str = "# Written by Dormouse for this node; changes are overwritten.\n";

/// The files as they are packaged for nodes without Kubernetes.
const DROP_IN: &str = include_str!("../../../../daemonset/containerd/50-dormouse.toml");
const SHIM_CONFIG: &str = include_str!("../../../../daemonset/containerd/runsc.toml");

/// A file as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Everything but the drop-in, in the order in which it is written: who names a file comes after it.
pub(super) fn programs(
    settings: &NodeSettings,
    config: &Config,
    wrapper: Vec<u8>,
    systemd_cgroup: bool,
) -> Vec<Wanted> {
    let file = |path: PathBuf, content: Vec<u8>, mode| Wanted { path, content, mode };
    vec![
        file(
            settings.wrapper_config_path(),
            wrapper_config(settings, config).into_bytes(),
            0o644,
        ),
        file(settings.wrapper_path(), wrapper, 0o755),
        file(
            settings.shim_config_path(),
            shim_config(settings, systemd_cgroup).into_bytes(),
            0o644,
        ),
    ]
}

/// The runtime handler.
pub(super) fn drop_in(settings: &NodeSettings) -> Wanted {
    let text = DROP_IN
        .replace(
            "/etc/dormouse/runsc.toml",
            &settings.shim_config_path().display().to_string(),
        )
        .replace(
            "/etc/containerd/conf.d/50-dormouse.toml",
            &settings.drop_in.display().to_string(),
        )
        .replace(
            "stats_collect_period = '10s'",
            &format!("stats_collect_period = '{}'", settings.stats_collect_period),
        );
    Wanted {
        path: settings.drop_in.clone(),
        content: format!("{MARK}{text}").into_bytes(),
        mode: 0o644,
    }
}

fn wrapper_config(settings: &NodeSettings, config: &Config) -> String {
    let mut keys = Map::new();
    keys.insert("runsc".to_owned(), json!(settings.runsc));
    keys.insert("run_dir".to_owned(), json!(config.run_dir));
    keys.insert("state_dir".to_owned(), json!(config.state_dir));
    keys.extend(settings.wrapper.clone());
    format!("{:#}\n", Value::Object(keys))
}

fn shim_config(settings: &NodeSettings, systemd_cgroup: bool) -> String {
    let mut text = SHIM_CONFIG
        .replace(
            "/usr/local/bin/dormouse-runsc",
            &settings.wrapper_path().display().to_string(),
        )
        .replace(
            "/etc/dormouse/runsc.json",
            &settings.wrapper_config_path().display().to_string(),
        )
        .replace(
            "/etc/dormouse/runsc.toml",
            &settings.shim_config_path().display().to_string(),
        );
    // What the packaged file says itself gives way.
    let given = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        !line.starts_with('#') && settings.runsc_config.contains_key(key)
    };
    text = text
        .lines()
        .filter(|line| !given(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    if systemd_cgroup && !settings.runsc_config.contains_key("systemd-cgroup") {
        text.push_str("systemd-cgroup = \"true\"\n");
    }
    for (key, value) in &settings.runsc_config {
        text.push_str(&format!("{key} = \"{value}\"\n"));
    }
    format!("{MARK}{text}")
}

/// Whether the file is as it has to be.
pub(super) fn is_as_wanted(wanted: &Wanted) -> bool {
    let meta = fs::symlink_metadata(&wanted.path);
    meta.is_ok_and(|meta| {
        meta.is_file()
            && meta.permissions().mode() & 0o7777 == wanted.mode
            && meta.uid() == nix::unistd::geteuid().as_raw()
            && meta.len() == wanted.content.len() as u64
    }) && fs::read(&wanted.path).is_ok_and(|content| content == wanted.content)
}

/// Writes the file unless it is as it has to be; says whether it was written. A reader sees the old file or the new one,
/// also after a power cut.
pub(super) fn put(wanted: &Wanted) -> Result<bool, PrepareError> {
    if is_as_wanted(wanted) {
        return Ok(false);
    }
    let failed = |verb| {
        let path = wanted.path.clone();
        move |source| PrepareError::File { verb, path, source }
    };
    let dir = wanted.path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(failed("make the directory of"))?;
    let mut name = wanted.path.file_name().unwrap_or_default().to_owned();
    // containerd takes only `*.toml` out of its directory, and nobody executes this name.
    name.push(".new");
    let temporary = dir.join(name);
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(wanted.mode)
            .open(&temporary)?;
        file.write_all(&wanted.content)?;
        // Whatever the umask says.
        file.set_permissions(fs::Permissions::from_mode(wanted.mode))?;
        file.sync_all()?;
        fs::rename(&temporary, &wanted.path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed("write"))?;
    Ok(true)
}

/// Removes a file that the installer has written; says whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, PrepareError> {
    let failed = |source| PrepareError::File {
        verb: "remove",
        path: path.to_owned(),
        source,
    };
    match fs::remove_file(path) {
        Ok(()) => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

/// Whether a text was written by the installer.
pub(super) fn is_ours(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| text.starts_with(MARK.as_bytes()))
}

/// Removes a directory if nothing is in it any more.
pub(super) fn remove_empty(dir: &Path) -> bool {
    fs::remove_dir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> NodeSettings {
        NodeSettings {
            directory: dir.join("opt/dormouse"),
            drop_in: dir.join("etc/containerd/conf.d/50-dormouse.toml"),
            ..NodeSettings::default()
        }
    }

    fn text(wanted: &Wanted) -> toml::Table {
        std::str::from_utf8(&wanted.content).unwrap().parse().unwrap()
    }

    #[test]
    fn the_drop_in_adds_one_handler_that_names_our_shims_configuration() {
        let mut settings = settings(Path::new("/x"));
        settings.stats_collect_period = "30s".to_owned();
        let drop_in = text(&drop_in(&settings));
        let cri = &drop_in["plugins"]["io.containerd.cri.v1.runtime"];
        assert_eq!(cri["stats_collect_period"].as_str(), Some("30s"));
        let runtimes = cri["containerd"]["runtimes"].as_table().unwrap();
        assert_eq!(runtimes.keys().collect::<Vec<_>>(), ["dormouse-gvisor"]);
        let handler = &runtimes["dormouse-gvisor"];
        assert_eq!(
            handler["options"]["ConfigPath"].as_str(),
            Some("/x/opt/dormouse/runsc.toml")
        );
        let keys = handler["pod_annotations"].as_array().unwrap();
        // One star of containerd's would let an annotation through that opens files of the node.
        assert!(keys.iter().all(|key| key.as_str() != Some("dev.gvisor.*")));
    }

    #[test]
    fn the_shim_is_told_of_the_wrapper_and_the_wrapper_of_runsc() {
        let mut settings = settings(Path::new("/x"));
        settings.runsc_config = [("platform", "kvm"), ("debug", "true")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        settings.wrapper.insert("keep_days".to_owned(), json!(7));
        let config = Config::default();
        let files = programs(&settings, &config, b"wrapper".to_vec(), true);
        let shim = text(&files[2]);
        assert_eq!(
            shim["binary_name"].as_str(),
            Some("/x/opt/dormouse/dormouse-runsc")
        );
        let flags = shim["runsc_config"].as_table().unwrap();
        assert_eq!(flags["platform"].as_str(), Some("kvm"));
        assert_eq!(flags["systemd-cgroup"].as_str(), Some("true"));
        assert_eq!(flags["restore-spec-validation"].as_str(), Some("warning"));
        let told: Value = serde_json::from_slice(&files[0].content).unwrap();
        assert_eq!(told["runsc"], "/usr/local/bin/runsc");
        assert_eq!(told["run_dir"], "/run/dormouse");
        assert_eq!(told["keep_days"], 7);
        assert_eq!(files[1].mode, 0o755);
    }

    #[test]
    fn only_what_differs_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = drop_in(&settings(dir.path()));
        assert!(put(&wanted).unwrap());
        assert!(is_ours(&wanted.path));
        let first = fs::metadata(&wanted.path).unwrap();
        assert!(!put(&wanted).unwrap());
        let second = fs::metadata(&wanted.path).unwrap();
        assert_eq!((first.ino(), first.mtime()), (second.ino(), second.mtime()));
        fs::set_permissions(&wanted.path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(put(&wanted).unwrap(), "who may write it counts, too");
        // What a killed installer has left is in nobody's way.
        let mut left = wanted.path.clone().into_os_string();
        left.push(".new");
        fs::write(&left, "half").unwrap();
        fs::write(&wanted.path, "changed").unwrap();
        assert!(put(&wanted).unwrap());
        assert!(!Path::new(&left).exists());
        let names: Vec<_> = fs::read_dir(wanted.path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["50-dormouse.toml"]);
        assert!(remove(&wanted.path).unwrap());
        assert!(!remove(&wanted.path).unwrap());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = drop_in(&settings(dir.path()));
        fs::create_dir_all(wanted.path.parent().unwrap()).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, &wanted.path).unwrap();
        assert!(put(&wanted).unwrap());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(is_as_wanted(&wanted));
    }
}
