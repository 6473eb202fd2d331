//! How long it takes to fill a pool whose application needs seconds to start, each standby by itself and from a golden
//! snapshot.

use std::time::Instant;

use anyhow::Result;
use dormouse_testkit::guest::remembers_a_word_in;
use serde_json::{Value, json};

use super::pool::{Pool, pod_template};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::rows::cluster::site::Site;
use crate::samples::{Series, digits, ms};

const MIB: u32 = 64;
/// What the application does first: seconds of the processor's time, however many others want it too.
const STARTS: &str = "while time.process_time() < 3.0: pass";

pub(super) async fn measure(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    let (count, rounds) = plan.pool_fill;
    let mut without = Series::wait(format!("pool of {count} full, each starts by itself"), None);
    let mut golden = Series::wait(format!("pool of {count} full, golden: Auto"), None);
    for round in 0..rounds {
        without.push(filled(site, count, &format!("without-{round}"), &json!({})).await?);
        let spec = json!({"golden": "Auto"});
        golden.push(filled(site, count, &format!("golden-{round}"), &spec).await?);
    }
    let share = golden.samples.p50() / without.samples.p50();
    row.line(
        Line::new(
            format!(
                "pool of {count}, application needs 3 s to start: made -> {count} ready, golden: Auto, against without"
            ),
            "<= 1/3",
        )
        .measured(format!(
            "{} ({} of {} s)",
            digits(share),
            digits(golden.samples.p50() / 1e3),
            digits(without.samples.p50() / 1e3)
        ))
        .n(rounds)
        .at_most("share", share, 1.0 / 3.0),
    );
    row.note(format!(
        "Standbys wait Dozing on zram, the pools in turn. The application works for 3 s of CPU time, then fills {MIB} MiB and \
         listens; a readiness probe every second says so. The first standby of a golden pool starts by itself, too.",
    ));
    row.series.extend([without, golden]);
    Ok(())
}

/// From the pool's creation until it says that all are ready, ms.
async fn filled(site: &Site, count: u32, name: &str, spec: &Value) -> Result<f64> {
    say(format!("filling a pool of {count}, {name}"));
    let program = remembers_a_word_in(
        &format!("bytearray(secrets.token_bytes(1 << 20)) * {MIB}"),
        STARTS,
    );
    let mut template = pod_template(MIB, &program);
    template["spec"]["containers"][0]["readinessProbe"] = json!({
        "httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 120,
    });
    let began = Instant::now();
    let pool = Pool::make(site, name, &template, count, Some("Dozing"), spec).await?;
    pool.ready().await?;
    let took = ms(began.elapsed());
    // All of them sleep before they are taken away: what is under way then would go on into the next one.
    pool.settled().await?;
    pool.remove().await?;
    Ok(took)
}
