//! How long it takes to fill a pool whose application needs seconds to start, each standby by itself and from a golden
//! snapshot.

use std::time::Instant;

use anyhow::{Context, Result};
use dormouse_testkit::guest::remembers_a_word_in;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::pool::{Pool, pod_template};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::rows::cluster::site::{Site, sandbox};
use crate::samples::{Series, digits, ms};

const MIB: u32 = 64;
/// For how long the application works until it listens, with a processor to itself.
const STARTS: u64 = 3;
/// Says how many rounds of work it does in a second; it is answered with.
const RATES: &str = "
import hashlib
began = time.perf_counter()
hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000)
rate = int(2_000_000 / (time.perf_counter() - began))
secrets.token_hex = lambda _: str(rate)";

pub(super) async fn measure(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    let (count, rounds) = plan.pool_fill;
    // In a guest's own time a processor that others have counts, too: so it is an amount of work.
    let work = rate(site).await?.saturating_mul(STARTS);
    let mut without = Series::wait(format!("pool of {count} full, each starts by itself"), None);
    let mut golden = Series::wait(format!("pool of {count} full, golden: Auto"), None);
    for round in 0..rounds {
        without.push(filled(site, count, work, &format!("without-{round}"), &json!({})).await?);
        let spec = json!({"golden": "Auto"});
        golden.push(filled(site, count, work, &format!("golden-{round}"), &spec).await?);
    }
    let share = golden.samples.p50() / without.samples.p50();
    row.line(
        Line::new(
            format!(
                "pool of {count}, application needs {STARTS} s to start: made -> {count} ready, golden: Auto, against without"
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
        "Standbys wait Dozing on zram, the pools in turn. The application works as much as takes {STARTS} s on a processor \
         of its own ({work} rounds of PBKDF2), then fills {MIB} MiB and listens; a readiness probe every second says so. The first standby of a golden pool starts by itself, too.",
    ));
    row.series.extend([without, golden]);
    Ok(())
}

/// How much an application works in a second, with nobody else there.
async fn rate(site: &Site) -> Result<u64> {
    const NAME: &str = "rate";
    let mut object = sandbox(NAME, MIB, &json!({}));
    let program = remembers_a_word_in("b''", RATES);
    object["spec"]["podTemplate"]["spec"]["containers"][0]["command"][2] = json!(program);
    let (_, rate) = site.start(NAME, &object).await?;
    site.sandboxes()
        .delete(NAME, &DeleteParams::foreground())
        .await
        .context("delete the Sandbox that was timed")?;
    rate.parse()
        .with_context(|| format!("a rate, which {rate:?} is not"))
}

/// From the pool's creation until it says that all are ready, ms.
async fn filled(site: &Site, count: u32, work: u64, name: &str, spec: &Value) -> Result<f64> {
    say(format!("filling a pool of {count}, {name}"));
    let program = remembers_a_word_in(
        &format!("bytearray(secrets.token_bytes(1 << 20)) * {MIB}"),
        &format!("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', {work})"),
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
