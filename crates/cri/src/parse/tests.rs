//! On records of containerd 2.3.7 with gVisor, taken from a running pod.

use prost_types::Any;

use super::*;

const METADATA: &str = include_str!("testdata/sandbox-metadata.json");
const SPEC: &str = include_str!("testdata/sandbox-spec.json");
/// The recorded options of the runtime: type URL and configuration path.
const CONFIG_PATH: &str = "/srv/stack/etc/runsc.toml";

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: type_url.into(),
        value,
    }
}

fn recorded() -> Container {
    let options = RuntimeOptions {
        type_url: "io.containerd.runsc.v1.options".into(),
        config_path: CONFIG_PATH.into(),
        config_body: vec![],
    };
    Container {
        runtime: Some(containerd_client::services::v1::container::Runtime {
            name: GVISOR.into(),
            options: Some(any("runtimeoptions.v1.Options", options.encode_to_vec())),
        }),
        spec: Some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Spec",
            SPEC.into(),
        )),
        extensions: [(
            SANDBOX_METADATA.to_owned(),
            any(
                "github.com/containerd/cri/pkg/store/sandbox/Metadata",
                METADATA.into(),
            ),
        )]
        .into(),
        ..Default::default()
    }
}

#[test]
fn a_recorded_sandbox() {
    let record = SandboxRecord::from_container(&recorded()).unwrap();
    assert_eq!(record.runtime_type, GVISOR);
    assert_eq!(record.shim_config.as_deref(), Some(Path::new(CONFIG_PATH)));
    assert!(
        record.cgroup_parent.starts_with("/dormouse/pod0000"),
        "{}",
        record.cgroup_parent
    );
    assert!(
        record
            .netns
            .unwrap()
            .starts_with("/srv/stack/state/io.containerd.grpc.v1.cri/netns")
    );
    assert!(record.log_directory.starts_with("/srv/stack/podlogs"));
}

#[test]
fn the_spec_says_what_the_metadata_does_not() {
    let whole = SandboxRecord::from_container(&recorded()).unwrap();
    let mut without = recorded();
    without.extensions.clear();
    let record = SandboxRecord::from_container(&without).unwrap();
    assert_eq!(record.netns, whole.netns);
    assert_eq!(record.cgroup_parent, whole.cgroup_parent);
    assert_eq!(record.log_directory, PathBuf::new());
}

#[test]
fn cgroup_parents_of_both_drivers() {
    assert_eq!(
        parent_of("/kubepods/besteffort/podx/id"),
        "/kubepods/besteffort/podx"
    );
    assert_eq!(
        parent_of("kubepods-podx.slice:cri-containerd:id"),
        "kubepods-podx.slice"
    );
    assert_eq!(parent_of(""), "");
}

#[test]
fn damaged_documents_are_refused() {
    for damaged in [
        "",
        "{",
        "[]",
        "{\"Metadata\":7}",
        "{\"Metadata\":{\"NetNSPath\":[]}}",
    ] {
        let mut container = recorded();
        container
            .extensions
            .insert(SANDBOX_METADATA.into(), any("", damaged.into()));
        let error = SandboxRecord::from_container(&container).unwrap_err();
        assert!(
            matches!(error, AnswerError::Malformed { .. }),
            "{damaged:?}: {error}"
        );
    }
    let mut container = recorded();
    container.spec = Some(any("", vec![b' '; MAX_DOCUMENT + 1]));
    assert!(matches!(
        SandboxRecord::from_container(&container).unwrap_err(),
        AnswerError::TooLong {
            limit: MAX_DOCUMENT,
            ..
        }
    ));
    let deep = "[".repeat(100_000);
    assert!(parse_container_info(&format!("{{\"x\":{deep}")).is_err());
}

#[test]
fn a_containers_info() {
    let info = r#"{"sandboxID":"s","pid":4711,"removing":false,"snapshotKey":"k","runtimeType":"io.containerd.runsc.v1",
        "runtimeOptions":{"type_url":"io.containerd.runsc.v1.options"},"config":{"metadata":{"name":"main"}},"new":[1]}"#;
    assert_eq!(parse_container_info(info).unwrap().pid, 4711);
    assert_eq!(parse_container_info("{}").unwrap().pid, 0);
    assert!(parse_container_info(r#"{"pid":"x"}"#).is_err());
    assert!(parse_container_info(r#"{"pid":99999999999}"#).is_err());
}

#[test]
fn state_roots() {
    let default = Path::new("/run/containerd/runsc/k8s.io");
    assert_eq!(runtime_roots(GVISOR, None), [default]);
    assert_eq!(
        runtime_roots(
            GVISOR,
            Some("binary_name = \"/x\"\nroot = \"/srv/r\"\n[runsc_config]\nplatform = \"systrap\"")
        ),
        [Path::new("/srv/r/k8s.io"), default]
    );
    assert_eq!(
        runtime_roots(GVISOR, Some("root = \"/run/containerd/runsc\"")),
        [default]
    );
    for useless in ["", "root = 7", "root = \"relative\"", "root = ["] {
        assert_eq!(runtime_roots(GVISOR, Some(useless)), [default], "{useless:?}");
    }
    assert!(runtime_roots("io.containerd.runc.v2", Some("root = \"/x\"")).is_empty());
}

#[test]
fn ids() {
    assert!(is_id(
        "81de3ef38457f44773ae655df9dbeb1965414768aab64b7816f5abfa802fbc21"
    ));
    for bad in ["", ".", "..", "a/b", "-x", "a b", "ä", &"a".repeat(129)] {
        assert!(!is_id(bad), "{bad:?}");
    }
}
