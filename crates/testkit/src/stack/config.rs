//! Configuration files of one stack.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::slot::Slot;
use super::{Cni, StackOptions, record};
use crate::built::Built;

/// Writes everything that containerd, the shims, CNI and the wrapper read.
pub(super) fn write(built: &Built, slot: &Slot, options: &StackOptions) -> Result<()> {
    for folder in ["cni", "logs", "guests", "w", "opt", "nri-plugins", "nri-conf"] {
        fs::create_dir_all(slot.dir.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    network(slot, options)?;
    put(
        &slot.dir.join("runsc.toml"),
        &runsc(slot, &built.part("runsc"), options)?,
    )?;
    if options.shim_grouping {
        grouping_launcher(built, slot)?;
    }
    if options.wrapper {
        wrapper(built, slot, options)?;
    }
    put(
        &slot.dir.join("containerd.toml"),
        &containerd(built, slot, options),
    )?;
    crate::guest::write_programs(&slot.dir.join("guests"))
}

/// Writes what CNI reads. Whole at once: containerd reads it whenever it changes.
pub(super) fn network(slot: &Slot, options: &StackOptions) -> Result<()> {
    let path = slot.dir.join("cni/10-network.conflist");
    let partial = path.with_extension("partial");
    put(&partial, &cni(slot, options)?)?;
    fs::rename(&partial, &path).context("put the network's configuration in place")
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn cni(slot: &Slot, options: &StackOptions) -> Result<String> {
    let mut ranges = vec![json!([{"subnet": slot.subnet(), "gateway": slot.gateway()}])];
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if options.dual_stack {
        ranges.push(json!([{"subnet": slot.subnet6()}]));
        routes.push(json!({"dst": "::/0"}));
    }
    routes.extend(
        options
            .routes
            .iter()
            .map(|destination| json!({"dst": destination})),
    );
    let ipam = json!({
        "type": "host-local", "dataDir": slot.dir.join("ipam"), "ranges": ranges, "routes": routes,
    });
    let mut plugin = match &options.cni {
        Cni::Bridge => json!({
            "type": "bridge", "bridge": slot.bridge, "isGateway": true, "ipMasq": false,
            "hairpinMode": true, "ipam": ipam,
        }),
        Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "ipam": ipam}),
        Cni::Ipvlan { master } => json!({"type": "ipvlan", "master": master, "mode": "l2", "ipam": ipam}),
    };
    if let (Some(mtu), Some(plugin)) = (options.mtu, plugin.as_object_mut()) {
        plugin.insert("mtu".to_owned(), mtu.into());
    }
    Ok(serde_json::to_string_pretty(
        &json!({"cniVersion": "1.0.0", "name": record::network(slot), "plugins": [plugin]}),
    )?)
}

/// The gVisor shim's file: which runsc, where its state is, which flags.
fn runsc(slot: &Slot, binary: &Path, options: &StackOptions) -> Result<String> {
    let mut text = format!(
        "binary_name = {}\nroot = {}\n\n[runsc_config]\nplatform = \"systrap\"\nrestore-spec-validation = \"warning\"\n",
        quoted(binary)?,
        quoted(&slot.dir.join("rr"))?,
    );
    for (key, value) in &options.runsc_config {
        text.push_str(&format!("{key} = {}\n", serde_json::to_string(value)?));
    }
    Ok(text)
}

/// A TOML basic string has JSON's escapes.
fn quoted(path: &Path) -> Result<String> {
    Ok(serde_json::to_string(path)?)
}

/// The shim reads `grouping` from a global file or from `config.toml` in its working directory, which containerd
/// makes the bundle: a launcher that puts it there keeps other stacks and the machine's own containerd out of it.
fn grouping_launcher(built: &Built, slot: &Slot) -> Result<()> {
    let path = slot.dir.join("shim-grouped");
    put(
        &path,
        &format!(
            "#!/bin/sh\nif [ -f config.json ]; then echo 'grouping = true' > config.toml; fi\nexec {} \"$@\"\n",
            built.part("containerd-shim-runsc-v1").display()
        ),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("make the launcher executable")
}

/// The wrapper's configuration: beside its binary.
pub(super) fn wrapper_config(slot: &Slot) -> PathBuf {
    slot.dir.join("w/dormouse-runsc.json")
}

/// A copy of the wrapper with its own configuration beside it, so that it needs no file in /etc and no variable.
fn wrapper(built: &Built, slot: &Slot, options: &StackOptions) -> Result<()> {
    let source = match &options.wrapper_binary {
        Some(path) => path.clone(),
        None => built.own("dormouse-runsc")?,
    };
    let dir = slot.dir.join("w");
    let binary = dir.join("dormouse-runsc");
    fs::copy(&source, &binary).with_context(|| format!("copy {}", source.display()))?;
    let mut own = serde_json::Map::new();
    own.insert("runsc".into(), json!(built.part("runsc")));
    own.insert("run_dir".into(), json!(slot.run_dir()));
    own.insert("state_dir".into(), json!(slot.dir.join("agent")));
    own.extend(options.wrapper_config.clone());
    put(&wrapper_config(slot), &serde_json::to_string_pretty(&own)?)?;
    put(
        &slot.dir.join("dormouse-runsc.toml"),
        &runsc(slot, &binary, options)?,
    )
}

fn containerd(built: &Built, slot: &Slot, options: &StackOptions) -> String {
    let dir = slot.dir.display();
    let bin = built.stack.join("bin");
    let bin = bin.display();
    let period = options.stats_collect_period.as_millis();
    let shim_path = if options.shim_grouping {
        format!("runtime_path = '{dir}/shim-grouped'")
    } else {
        format!("runtime_path = '{bin}/containerd-shim-runsc-v1'")
    };
    let mut text = format!(
        r"version = 3
root = '{dir}/root'
state = '{dir}/state'
imports = []

[grpc]
address = '{dir}/c.sock'

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'localhost/pause:1'

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
stats_collect_period = '{period}ms'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{bin}']
conf_dir = '{dir}/cni'
use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{bin}/runc'
Root = '{dir}/runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc]
runtime_type = 'io.containerd.runsc.v1'
{shim_path}
pod_annotations = ['dev.gvisor.*']
container_annotations = ['dev.gvisor.*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc.options]
TypeUrl = 'io.containerd.runsc.v1.options'
ConfigPath = '{dir}/runsc.toml'

# The default sockets are global: two containerds on one machine would fight over them.
[plugins.'io.containerd.nri.v1.nri']
socket_path = '{dir}/nri.sock'
plugin_path = '{dir}/nri-plugins'
plugin_config_path = '{dir}/nri-conf'
[plugins.'io.containerd.shim.v1.manager']
socket_dir = '{dir}/s'
[plugins.'io.containerd.internal.v1.opt']
path = '{dir}/opt'
"
    );
    if options.wrapper {
        text.push_str(&format!(
            r"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dormouse-gvisor]
runtime_type = 'io.containerd.runsc.v1'
{shim_path}
pod_annotations = ['dev.gvisor.flag.allow-connected-on-save', 'dev.gvisor.spec.mount.*.type',
    'dev.gvisor.spec.mount.*.share', 'dev.gvisor.spec.mount.*.options', 'dormouse.dev/*']
container_annotations = ['dev.gvisor.flag.allow-connected-on-save', 'dev.gvisor.spec.mount.*.type',
    'dev.gvisor.spec.mount.*.share', 'dev.gvisor.spec.mount.*.options', 'dormouse.dev/*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dormouse-gvisor.options]
TypeUrl = 'io.containerd.runsc.v1.options'
ConfigPath = '{dir}/dormouse-runsc.toml'
"
        ));
    }
    text
}
