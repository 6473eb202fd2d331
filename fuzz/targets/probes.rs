//! The annotation of probes that a pod brings.
#![no_main]

use dormouse_core::{MAX_PROBES_BYTES, ProbeAction, Probes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let probes = match Probes::from_json(text) {
        Ok(probes) => probes,
        Err(error) => {
            // It goes into events and conditions: a pod must not make it long.
            assert!(error.to_string().len() < 2048, "{error}");
            return;
        }
    };
    assert!(text.len() <= MAX_PROBES_BYTES);
    for container in probes.containers() {
        for probe in [&container.liveness, &container.readiness, &container.startup]
            .into_iter()
            .flatten()
        {
            assert!(!probe.period.is_zero() && !probe.timeout.is_zero());
            assert!(probe.success_threshold > 0 && probe.failure_threshold > 0);
            match &probe.action {
                ProbeAction::Http {
                    port, path, headers, ..
                } => {
                    assert!(*port > 0 && path.starts_with('/'));
                    assert!(path.bytes().all(|b| b.is_ascii_graphic()));
                    assert!(headers.iter().all(|h| !h.value.contains(['\r', '\n'])));
                }
                ProbeAction::Tcp { port } | ProbeAction::Grpc { port, .. } => assert!(*port > 0),
                ProbeAction::Exec { command } => assert!(!command.is_empty()),
            }
        }
    }
    // What is written may be longer than what was read: it says what others leave to be understood.
    if let Ok(written) = probes.to_json() {
        assert_eq!(
            Probes::from_json(&written).expect("what was written is read"),
            probes
        );
    }
});
