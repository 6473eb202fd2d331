//! Containerd, the agent, and the swap that the agent brings.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dormouse_rpc::v1;
use dormouse_testkit::host::command::capture;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Agent, AgentOptions, AgentPaths, Stack, StackOptions, memory};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

use crate::place::Place;
use crate::words::at;
use crate::{say, words};

const MIB: u64 = 1 << 20;
/// zram's size before compression, where a swap file stands behind it.
const ZRAM_MIB: u64 = 1024;
/// What a gVisor pod of Python needs beside its own data, MiB.
pub(crate) const POD_MIB: u64 = 64;

/// Starts everything and says what it is.
pub(crate) async fn start(place: &Place, pods: u32, mib: u32) -> Result<Rig> {
    let stack = say::step("a private containerd", Stack::start(StackOptions::default())).await?;
    let bin = stack.built().stack.join("bin");
    say::block(&format!(
        "{}, {}, a bridge of its own ({})",
        version(&bin.join("containerd"), 2)?,
        version(&bin.join("runsc"), 2)?,
        stack.bridge().0
    ));
    bridge(&stack)?;

    let need = u64::from(pods) * (u64::from(mib) + POD_MIB);
    let (file, no_file) = match file_mib(place, need) {
        Ok(file) => (Some(file), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let more = config(place, pods, need, file);
    let agent = say::step(
        "dormouse-agent",
        Agent::start(&stack, AgentOptions::default(), |paths| {
            base(paths, place) + &more
        }),
    )
    .await?;
    let client = dormouse_rpc::connect(&agent.paths().socket).await?;
    let rig = Rig { client, agent, stack };
    swap(&rig, place, no_file.as_deref()).await?;
    Ok(rig)
}

/// `runsc version release-20260905.0` -> `runsc release-20260905.0`
fn version(program: &Path, word: usize) -> Result<String> {
    let text = capture(Command::new(program).arg("--version"))?;
    let version = text.split_whitespace().nth(word).unwrap_or("?");
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} {version}"))
}

/// CNI would make the bridge with the first pod; the peer of the pods' connections listens on it before.
fn bridge(stack: &Stack) -> Result<()> {
    let (name, address) = stack.bridge();
    let address = format!("{address}/24");
    capture(Command::new("ip").args(["link", "add", "name", &name, "type", "bridge"]))?;
    // Set to itself, or else it would follow the lowest of its ports, and pods would lose their gateway whenever
    // another pod comes.
    let mac =
        fs::read_to_string(format!("/sys/class/net/{name}/address")).context("read the bridge's address")?;
    for args in [
        ["link", "set", &name, "address", mac.trim()].as_slice(),
        &["address", "add", &address, "dev", &name],
        &["link", "set", &name, "up"],
    ] {
        capture(Command::new("ip").args(args))?;
    }
    Ok(())
}

/// How large the swap file may be: what is needed, and at most half of what the disk has to spare.
fn file_mib(place: &Place, need: u64) -> Result<u64> {
    let at = place.state_dir();
    let disk = statvfs(&at).with_context(|| format!("look at the disk of {}", at.display()))?;
    let unit = disk.fragment_size();
    let free = disk.blocks_available().saturating_mul(unit) / MIB;
    let keep = disk.blocks().saturating_mul(unit) / MIB / 10;
    let spare = free.saturating_sub(keep) / 2;
    ensure!(
        spare >= 512,
        "no swap file: {} has {} free, and a tenth of it has to stay free",
        at.display(),
        words::bytes(free * MIB)
    );
    Ok((need + 512).min(spare))
}

fn base(paths: &AgentPaths, place: &Place) -> String {
    format!(
        "version = 1\nrun_dir = \"{}\"\nstate_dir = \"{}\"\nruntime_endpoint = \"unix://{}\"\n\
         [api]\nsocket = \"{}\"\n[http]\nlisten = \"off\"\n",
        paths.run_dir.display(),
        place.state_dir().display(),
        paths.containerd.display(),
        paths.socket.display(),
    )
}

/// The agent brings zram and, behind it, a file. Both, and ahead of whatever others have on this machine, so that
/// the demo shows the same everywhere.
fn config(place: &Place, pods: u32, need: u64, file: Option<u64>) -> String {
    let zram = if file.is_some() { ZRAM_MIB } else { need + 512 };
    // One client wakes them all.
    let wakes = 120.max(pods * 8);
    let mut text = format!(
        "[packets]\nwakes_per_source_per_minute = {wakes}\n\
         [swap]\nallow_plain_swap = true\nbeside_foreign = true\n\
         [swap.zram]\npercent_of_ram = 50\nmin_mib = 64\nmax_mib = {zram}\n"
    );
    if let Some(file) = file {
        text.push_str(&format!(
            "[swap.file]\nsize_mib = {file}\ndirectory = \"{}\"\npriority = 31000\n",
            place.swap_dir().display()
        ));
    }
    text
}

/// Says which swap there is now, and why not the other.
async fn swap(rig: &Rig, place: &Place, no_file: Option<&str>) -> Result<()> {
    let node = rig
        .client
        .clone()
        .get_node(v1::GetNodeRequest {})
        .await?
        .into_inner()
        .node;
    let node = node.context("the agent said nothing of the node")?;
    if let Some(lack) = node
        .capabilities
        .iter()
        .find(|able| able.name == "swap" && !able.available)
    {
        anyhow::bail!(
            "pods cannot doze on this machine: {} {}; the agent says:\n{}",
            lack.reason,
            lack.message,
            words::tail(&rig.agent.log(), 10)
        );
    }
    let parts = brought(place)?;
    let of = |kind: &str| parts.iter().find(|part| at(part, "/kind") == kind);
    let size = |part: &Value| words::bytes(at(part, "/bytes").as_u64().unwrap_or(0));
    match of("zram") {
        Some(zram) => say::block(&format!(
            "swap in RAM, compressed (zram): {}, used first",
            size(zram)
        )),
        None => say::block("no zram: this kernel has none (module zram)"),
    }
    match (of("file"), no_file) {
        (Some(file), _) if at(file, "/mapping").is_string() => say::block(&format!(
            "swap file: {}, encrypted with a key that nobody keeps, behind it",
            size(file)
        )),
        (Some(file), _) => say::block(&format!(
            "swap file: {}, behind it, NOT encrypted: allowed for this demo, since {}",
            size(file),
            lack()
        )),
        (None, Some(why)) => say::block(why),
        (None, None) => say::block(&format!(
            "no swap file; the agent says:\n{}",
            words::tail(&rig.agent.log(), 5)
        )),
    }
    if memory::swaps()?.len() > parts.len() {
        say::block("other swap is active on this machine as well; the figures below count all of it");
    }
    Ok(())
}

/// The agent's record of what it brought.
fn brought(place: &Place) -> Result<Vec<Value>> {
    let path = place.state_dir().join("swap.json");
    // Not written when nothing was brought.
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(Vec::new());
    };
    let record: Value = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(at(&record, "/parts").as_array().cloned().unwrap_or_default())
}

/// What this machine lacks for an encrypted file.
fn lack() -> &'static str {
    if !Path::new("/dev/mapper/control").exists() {
        "the kernel has no device mapper"
    } else if !Path::new("/dev/loop-control").exists() {
        "the kernel has no loop devices"
    } else {
        "cryptsetup is not installed"
    }
}

/// Runs the real command line against this node's agent and returns what it printed.
pub(crate) fn cli(rig: &Rig, args: &[&str]) -> Result<String> {
    let program = rig.stack.built().own("dormouse")?;
    capture(
        Command::new(program)
            .args(args)
            .env("DORMOUSE_SOCKET", &rig.agent.paths().socket),
    )
}
