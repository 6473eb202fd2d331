//! How the machines of a cluster and this host reach each other: one bridge, a link per machine, and a route per node's pods.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::slot::Slot;
use crate::host::ProcessId;

/// The bridge, with this host's address on it.
pub(super) fn bridge(slot: &Slot) -> Result<()> {
    let (bridge, host) = (&slot.bridge, slot.host());
    batch(
        None,
        &format!("link add {bridge} type bridge\naddr add {host}/24 dev {bridge}\nlink set {bridge} up\n"),
    )
}

/// Plugs a machine in: the `number`th, 0 being the control plane.
pub(super) fn plug(slot: &Slot, machine: &Machine, number: u8) -> Result<()> {
    let link = link(slot, number);
    let bridge = &slot.bridge;
    batch(
        None,
        &format!(
            "link add {link} type veth peer name eth0 netns {}\nlink set {link} master {bridge} up\n",
            machine.init().pid
        ),
    )?;
    batch(
        Some(machine.init()),
        &format!(
            "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
            machine.address(),
            slot.host()
        ),
    )
}

/// Removes this host's end of a machine's link, which outlives the machine for a moment.
pub(super) fn unplug(slot: &Slot, number: u8) {
    // Fails when the kernel was faster.
    let _ = batch(None, &format!("link delete {}\n", link(slot, number)));
}

/// Routes to the pods of all `nodes`, on this host (`None`) or on one of the machines; who is no node itself also gets one to the
/// services, over the first node.
pub(super) fn routes(slot: &Slot, machine: Option<&Machine>, nodes: u8) -> Result<()> {
    let mut script = String::new();
    let own = machine.map(Machine::address);
    let is_node = |address: Ipv4Addr| (1..=nodes).any(|number| slot.node(number) == address);
    for number in 1..=nodes {
        let via = slot.node(number);
        if own != Some(via) {
            script.push_str(&format!("route replace {} via {via}\n", slot.pods_of(number)));
        }
    }
    if nodes > 0 && !own.is_some_and(is_node) {
        script.push_str(&format!(
            "route replace {} via {}\n",
            slot.services(),
            slot.node(1)
        ));
    }
    batch(machine.map(Machine::init), &script)
}

/// This host's end of a machine's link.
fn link(slot: &Slot, number: u8) -> String {
    format!("{}v{number}", slot.bridge)
}

/// Runs lines of `ip`, in the network namespace of a machine's first process if one is given.
fn batch(inside: Option<ProcessId>, script: &str) -> Result<()> {
    let mut command = match inside {
        Some(init) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net=/proc/{}/ns/net", init.pid))
                .args(["--", "ip"]);
            command
        }
        None => Command::new("ip"),
    };
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    child
        .stdin
        .take()
        .context("ip has no standard input")?
        .write_all(script.as_bytes())
        .context("tell ip what to do")?;
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        bail!("ip: {}of:\n{script}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
