//! What the API server says to each case of `tests/compat/validation.yaml`.

use std::path::PathBuf;

use dormouse_testkit::Cluster;
use serde_json::Value;

use crate::support::{namespace, shared};

/// Objects of a namespace go there; those of the cluster do not mind.
const SPACE: &str = "validation";

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Does something with an object; what kubectl says if it fails.
async fn does(cluster: &Cluster, verb: &str, object: &Value) -> Result<(), String> {
    let file = cluster.dir().join("validated.json");
    std::fs::write(&file, object.to_string()).unwrap();
    let file = file.display().to_string();
    // Strict: a field that no kind has is no case of these.
    let done = cluster
        .kubectl(&[verb, "-f", &file, "-n", SPACE, "--validate=strict"])
        .await;
    done.map(drop).map_err(|error| format!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_and_refuses_what_the_kinds_say() {
    let cluster = shared().await;
    let crds = repository("crds").display().to_string();
    cluster
        .kubectl(&["apply", "--server-side", "-f", &crds])
        .await
        .unwrap();
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ])
        .await
        .unwrap();
    namespace(&cluster, SPACE).await;

    let text = std::fs::read_to_string(repository("tests/compat/validation.yaml")).unwrap();
    let cases: Vec<Value> = serde_saphyr::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let mut said = does(&cluster, "create", &case["object"]).await;
        let made = said.is_ok();
        if made && let Some(then) = case.get("then") {
            said = does(&cluster, "replace", then).await;
        }
        match (said, case["refused"].as_str()) {
            (Ok(()), None) => {}
            (Err(message), Some(refused)) if message.contains(refused) => {}
            (said, refused) => wrong.push(format!("{name}: {said:?} instead of {refused:?}")),
        }
        if made {
            let kind = format!(
                "{}.{}",
                case["object"]["kind"].as_str().unwrap(),
                case["object"]["apiVersion"]
                    .as_str()
                    .unwrap()
                    .split('/')
                    .next()
                    .unwrap()
            );
            let object = case["object"]["metadata"]["name"].as_str().unwrap();
            cluster
                .kubectl(&["delete", &kind, object, "-n", SPACE, "--wait=true"])
                .await
                .unwrap();
        }
    }
    assert!(cases.len() >= 50, "{}", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
