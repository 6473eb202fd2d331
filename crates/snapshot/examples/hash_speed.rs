//! How fast a snapshot's bytes are vouched for, from the page cache.
//!
//! `cargo run --release -p dormouse-snapshot --example hash_speed [DIRECTORY [MIB]]`

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use dormouse_snapshot::{
    Budget, CompatibilityKey, ContainerKey, Draft, OpenRequest, Purpose, ReserveRequest, SandboxRef, Store,
    StoreOptions, Taken, VerifyOnWake,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: u64 = args.next().map_or(Ok(1024), |text| text.parse())?;
    let root = parent.join(format!("hash-speed-{}", std::process::id()));
    let outcome = measure(&root, mib);
    std::fs::remove_dir_all(&root)?;
    outcome
}

fn measure(root: &std::path::Path, mib: u64) -> Result<(), Box<dyn Error>> {
    let store = Store::open(StoreOptions::new(root, "boot"))?;
    let request = ReserveRequest {
        namespace: "default".into(),
        expected_bytes: mib << 20,
    };
    let staging = store.reserve(&request, 1)?.stage(None)?;
    let name = "pages.img".parse()?;
    let mut file = staging.file(&name)?;
    let mut block: Vec<u8> = (0..1_u64 << 20)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1)
        .collect();
    for n in 0..mib {
        if let Some(first) = block.first_mut() {
            *first = n as u8 | 1;
        }
        file.write_all(&block)?;
    }
    drop(file);
    let draft = Draft {
        sandbox: SandboxRef {
            pod_uid: "pod".into(),
            name: "pod".into(),
            namespace: "default".into(),
        },
        template_hash: None,
        key: CompatibilityKey {
            runtime: "none".into(),
            runtime_version: "0".into(),
            arch: "x86_64".into(),
            cpu_features: Vec::new(),
            network: String::new(),
            containers: vec![ContainerKey {
                name: String::new(),
                image: String::new(),
            }],
        },
        parent: None,
        taken: Taken::Create,
        restore: serde_json::Value::Null,
        memory: std::collections::BTreeMap::new(),
        files: vec![name],
        hold: None,
    };
    let budget = Budget::default();
    let report = |what: &str, begun: Instant| {
        let seconds = begun.elapsed().as_secs_f64();
        let speed = (mib << 20) as f64 / seconds / 1e9;
        let line = format!("{what:<24} {seconds:8.3} s {speed:8.2} GB/s\n");
        std::io::stdout().write_all(line.as_bytes())
    };
    let begun = Instant::now();
    let id = staging.validate(draft)?.commit_unverified(budget, 1)?.id();
    report("commit without hashes", begun)?;
    let begun = Instant::now();
    store.finish_hashes(id, budget, 2)?;
    report("finish the hashes", begun)?;
    for _ in 0..3 {
        let begun = Instant::now();
        store.verify(id, budget, 3)?;
        report("verify", begun)?;
    }
    let begun = Instant::now();
    let purpose = Purpose::Wake {
        pod_uid: "pod",
        namespace: "default",
    };
    let verify = VerifyOnWake::Auto;
    store.open_image(
        id,
        &OpenRequest {
            purpose,
            verify,
            facts: None,
            memory: None,
            budget,
            now_ms: 4,
        },
    )?;
    report("open for a wake", begun)?;
    Ok(())
}
