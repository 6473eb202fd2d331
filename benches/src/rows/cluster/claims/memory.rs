//! What a pool's standbys take of their node's memory, asleep beside running.

use std::time::Duration;

use anyhow::Result;
use dormouse_testkit::guest::remembers_a_word_in;
use dormouse_testkit::memory::Node;
use dormouse_testkit::swap::TestSwap;
use serde_json::json;

use super::pool::{Pool, pod_template};
use crate::fleet;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::rows::cluster::site::Site;
use crate::samples::{Series, digits, mib};

/// The guests' blocks: even MiB are random, odd ones repeat a short text.
const MIB: u32 = 64;
/// How long they are left alone before the node's memory is read: what starts them has ended, and caches have settled.
const REST: Duration = Duration::from_secs(15);

/// What a pool takes.
struct Taken {
    /// Of `MemAvailable`; RAM that zram occupies and the shims are in it. MiB.
    memory: f64,
    zram: f64,
    swap: f64,
}

pub(super) async fn measure(
    plan: &Plan,
    site: &Site,
    row: &mut Row,
    zram: &mut Option<TestSwap>,
) -> Result<()> {
    let running = taken(plan, site, "running", None).await?;
    let on_zram = taken(plan, site, "on-zram", Some("Dozing")).await?;
    // Nothing sleeps in it any more.
    drop(zram.take());
    let on_disk = taken(plan, site, "on-disk", Some("Dozing")).await?;
    let count = plan.pool_memory;
    for (name, asleep, must, limit) in [
        ("zram", &on_zram, "<= 1/3", 1.0 / 3.0),
        ("disk", &on_disk, "<= 1/4", 0.25),
    ] {
        let share = asleep.memory / running.memory;
        row.line(
            Line::new(
                format!(
                    "{count} Dozing standbys of {MIB} MiB, half compressible, on {name}: the node's memory, against {count} \
                     Running ones"
                ),
                must,
            )
            .measured(format!(
                "{} ({} of {} MiB; {} MiB each; zram {} MiB, in swap {} MiB)",
                digits(share),
                digits(asleep.memory),
                digits(running.memory),
                digits(asleep.memory / f64::from(count)),
                digits(asleep.zram),
                digits(asleep.swap),
            ))
            .n(1)
            .at_most("share", share, limit),
        );
    }
    for (name, taken) in [("Running", running), ("zram", on_zram), ("disk", on_disk)] {
        let mut series = Series::new(format!("memory of {count} standbys, {name}"), "MiB");
        series.push(taken.memory);
        row.series.push(series);
    }
    row.note(format!(
        "Memory: how much MemAvailable is less than before the pool was made, the page cache dropped before each reading, {} s \
         after all standbys wait as they are to. Shims, sentries and RAM that zram occupies are in it; so is what \
         the cluster's own parts keep for {count} pods.",
        REST.as_secs()
    ));
    Ok(())
}

async fn taken(plan: &Plan, site: &Site, name: &str, rung: Option<&'static str>) -> Result<Taken> {
    say(format!("memory of a pool of {}, {name}", plan.pool_memory));
    tokio::time::sleep(REST).await;
    let before = fleet::node().await?;
    // In place: a second copy of it would be in the figures of those that run.
    let fill = format!(
        "BLOCK = bytearray({MIB} << 20)\nTEXT = b'the dormouse sleeps in the teapot; ' * 29960\n\
         for i in range({MIB}): BLOCK[i << 20:i + 1 << 20] = secrets.token_bytes(1 << 20) if i % 2 == 0 else TEXT[:1 << 20]"
    );
    let template = pod_template(MIB, &remembers_a_word_in("BLOCK", &fill));
    let pool = Pool::make(site, name, &template, plan.pool_memory, rung, &json!({})).await?;
    pool.settled().await?;
    tokio::time::sleep(REST).await;
    let after = fleet::node().await?;
    pool.remove().await?;
    Ok(difference(before, after))
}

fn difference(before: Node, after: Node) -> Taken {
    let more = |before: u64, after: u64| mib(after) - mib(before);
    Taken {
        memory: more(after.available, before.available),
        zram: more(before.zram_used, after.zram_used),
        swap: more(before.swap_used, after.swap_used),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_testkit::memory::Node;

    use super::difference;

    #[test]
    fn less_that_is_available_is_more_that_is_taken() {
        let node = |available: u64, zram_used: u64| Node {
            available: available << 20,
            swap_used: 0,
            zram_used: zram_used << 20,
        };
        let taken = difference(node(100, 1), node(70, 11));
        assert_eq!((taken.memory, taken.zram, taken.swap), (30.0, 10.0, 0.0));
        // Noise may make it less than nothing; it is not cut off.
        assert_eq!(difference(node(70, 0), node(71, 0)).memory, -1.0);
    }
}
