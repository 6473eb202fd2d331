//! How long a client waits for a hibernated pod for which a shell stands by, and what the shell costs meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_core::{Policy, Rung, ShellPolicy};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Pod, memory};

use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, Taken, digits, mib};
use crate::{ask, fleet, image};

/// A wake of a guest of this size with its image in the page cache and a shell, ms.
fn limit(size: u32) -> Option<f64> {
    (size == 64).then_some(120.0)
}

/// How long the node is left alone before a wake: a shell that stands by has stood for a while.
const REST: Duration = Duration::from_millis(300);

pub(crate) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let options = || RigOptions {
        config: format!("{}[shells]\nmax = 100\n", image::CONFIG),
        ..RigOptions::default()
    };
    for size in &plan.image_sizes {
        fleet::on_rig(&format!("shell-{size}"), options(), async |rig| {
            wakes(plan, rig, *size, row).await
        })
        .await?;
    }
    fleet::on_rig("shells", options(), async |rig| cost(plan, rig, row).await).await?;
    row.note(
        "A shell stands by (policy `Always`) and the snapshot is hashed before each wake, by order and by a client's \
         connection in turn. With and without: in turn, too, on the same pod. Memory: pods of 8 MiB are hibernated \
         without shells, then with; the node's MemAvailable before and after, with the page cache dropped, and what \
         the agent says of each (PSS of the processes in the pod's cgroup).",
    );
    Ok(())
}

fn policy(shell: ShellPolicy) -> Policy {
    Policy {
        shell,
        ..Policy::default()
    }
}

async fn run(rig: &Rig, size: u32, name: &str) -> Result<Pod> {
    let spec = AgentGuest::mib(size)
        .pod(name)
        .annotation("dormouse.dev/managed", "true");
    let pod = rig.run_pod(spec).await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    Ok(pod)
}

/// Hibernates the pod; with a shell, until it stands.
async fn sleep(rig: &Rig, pod: &Pod, shell: ShellPolicy) -> Result<()> {
    tokio::time::sleep(ask::AWAKE).await;
    rig.set_policy(pod, &policy(shell)).await?;
    let outcome = rig.hibernate(pod).await.context("hibernate")?;
    ensure!(outcome.moved, "pod {} was hibernated before", pod.name);
    image::settled(rig, pod).await?;
    rig.wait_shell(pod, shell == ShellPolicy::Always, ask::LIMIT)
        .await?;
    tokio::time::sleep(REST).await;
    Ok(())
}

/// Wakes the pod by a client's connection.
async fn packet(rig: &Rig, pod: &Pod) -> Result<Taken> {
    let taken = ask::packet(pod, "/answer").await?;
    let view = rig.wait_rung(pod, Rung::Running, ask::LIMIT).await?;
    let last = view.last_wake.context("a woken pod without a wake")?;
    ensure!(last.source == "Packet", "it was woken by {}", last.source);
    Ok(taken)
}

async fn wakes(plan: &Plan, rig: &Rig, size: u32, row: &mut Row) -> Result<()> {
    let wait = |what: &str, limit| Series::wait(format!("{what}, {size} MiB"), limit);
    let mut order = wait("Hibernated with a shell, order", limit(size));
    let mut own = wait("Hibernated with a shell, packet", limit(size));
    let mut without = wait("Hibernated without, order", None);
    let mut without_own = wait("Hibernated without, packet", None);
    let pod = run(rig, size, &format!("shell-{size}")).await?;
    say(format!("hibernated with a shell, {size} MiB"));
    for _ in 0..plan.n_image {
        for shell in [ShellPolicy::Always, ShellPolicy::Never] {
            let with = shell == ShellPolicy::Always;
            let (order, own) = if with {
                (&mut order, &mut own)
            } else {
                (&mut without, &mut without_own)
            };
            sleep(rig, &pod, shell).await?;
            order.take(ask::order(rig, &pod, "/answer").await?);
            sleep(rig, &pod, shell).await?;
            own.take(packet(rig, &pod).await?);
        }
    }
    let must = limit(size).map_or_else(|| "-".to_owned(), |limit| format!("p50 <= {limit:.0} ms"));
    let mut line = Line::new(
        format!("Hibernated {size} MiB with a shell: order; own packet -> first answer"),
        must,
    )
    .measured(format!(
        "{}; {} (without: {}; {})",
        order.halves(),
        own.halves(),
        without.halves(),
        without_own.halves()
    ))
    .n(order.samples.n());
    if let Some(limit) = limit(size) {
        line = line
            .at_most("order", order.samples.p50(), limit)
            .at_most("packet", own.samples.p50(), limit);
    }
    row.line(line);
    row.series.extend([order, own, without, without_own]);
    Ok(())
}

/// What shells take of the node's memory.
async fn cost(plan: &Plan, rig: &Rig, row: &mut Row) -> Result<()> {
    say(format!("{} shells", plan.shells));
    let mut pods = Vec::new();
    for index in 0..plan.shells {
        let pod = run(rig, 8, &format!("cost-{index}")).await?;
        sleep(rig, &pod, ShellPolicy::Never).await?;
        pods.push(pod);
    }
    let before = fleet::node().await?;
    for pod in &pods {
        rig.set_policy(pod, &policy(ShellPolicy::Always)).await?;
    }
    let mut said = Series::new("a shell, as the agent says", "MiB");
    let mut charged = Series::new("a pod with a shell, as its cgroup is charged", "MiB");
    for pod in &pods {
        rig.wait_shell(pod, true, ask::LIMIT).await?;
    }
    let after = fleet::node().await?;
    for pod in &pods {
        let view = rig.get(pod).await?;
        said.push(mib(view.shell.context("no shell")?.bytes));
        charged.push(mib(memory::footprint(pod)?.cgroup));
    }
    let taken = before.available.saturating_sub(after.available) / u64::from(plan.shells.max(1));
    let mut node = Series::new("a shell, of the node's memory", "MiB");
    node.push(mib(taken));
    row.line(
        Line::new("a shell that stands by: memory", "shown")
            .measured(format!(
                "{} MiB of the node's each; the agent says {} MiB, the cgroup {} MiB",
                digits(mib(taken)),
                said.halves(),
                charged.halves()
            ))
            .n(said.samples.n()),
    );
    row.series.extend([node, said, charged]);
    Ok(())
}
