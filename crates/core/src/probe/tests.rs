use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::Moment;

fn at(seconds: u64) -> Moment {
    Moment::from_start(Duration::from_secs(seconds))
}

fn tcp() -> Probe {
    Probe {
        action: ProbeAction::Tcp { port: 80 },
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace: None,
    }
}

fn container(kinds: &[ProbeKind]) -> ContainerProbes {
    let probe = |kind| kinds.contains(&kind).then(tcp);
    ContainerProbes {
        name: "main".to_owned(),
        liveness: probe(ProbeKind::Liveness),
        readiness: probe(ProbeKind::Readiness),
        startup: probe(ProbeKind::Startup),
    }
}

fn kinds(begun: &[(ProbeKind, Ticket)]) -> Vec<ProbeKind> {
    begun.iter().map(|(kind, _)| *kind).collect()
}

/// Runs the one probe that is due.
fn run(state: &mut ProbeState, now: Moment, outcome: ProbeOutcome) -> Option<ProbeVerdict> {
    let begun = state.begin(now);
    assert_eq!(begun.len(), 1, "{state:?}");
    state.ended(begun[0].0, begun[0].1, outcome, now)
}

use ProbeKind::{Liveness, Readiness, Startup};
use ProbeOutcome::{Failure, Success, Unknown};

#[test]
fn what_kubernetes_writes_is_read_and_written_again() {
    let text = json!([
        {"name": "main",
         "liveness": {"exec": {"command": ["cat", "/alive"]}, "terminationGracePeriodSeconds": 7},
         "readiness": {"httpGet": {"port": 8080, "path": "ready?full=1", "scheme": "HTTPS",
             "httpHeaders": [{"name": "Host", "value": "box.example"}]},
             "successThreshold": 2, "periodSeconds": 1, "timeoutSeconds": 5, "initialDelaySeconds": 3}},
        {"name": "side", "startup": {"grpc": {"port": 9000, "service": "box"}, "failureThreshold": 30,
             "periodSeconds": 0}},
    ]);
    let probes = Probes::from_json(&text.to_string()).unwrap();
    let [main, side] = probes.containers() else {
        panic!("{probes:?}")
    };
    let ready = main.readiness.as_ref().unwrap();
    assert_eq!(
        (ready.period, ready.timeout),
        (Duration::from_secs(1), Duration::from_secs(5))
    );
    assert_eq!((ready.success_threshold, ready.failure_threshold), (2, 3));
    let ProbeAction::Http { path, scheme, .. } = &ready.action else {
        panic!("{ready:?}")
    };
    assert_eq!((path.as_str(), *scheme), ("/ready?full=1", Scheme::Https));
    let alive = main.liveness.as_ref().unwrap();
    assert_eq!(alive.termination_grace, Some(Duration::from_secs(7)));
    assert_eq!(side.startup.as_ref().unwrap().period, Duration::from_secs(10));
    assert_eq!(Probes::from_json(&probes.to_json().unwrap()), Ok(probes));
}

#[test]
fn what_cannot_be_run_is_refused() {
    let tcp = json!({"port": 80});
    let many: Vec<_> = (0..=MAX_CONTAINERS)
        .map(|n| json!({"name": format!("c{n}"), "liveness": {"tcpSocket": tcp}}))
        .collect();
    let headers: Vec<_> = (0..33)
        .map(|n| json!({"name": format!("x-{n}"), "value": ""}))
        .collect();
    for bad in [
        json!(null),
        json!([]),
        json!([{"name": "main"}]),
        json!([{"name": "Main", "liveness": {"tcpSocket": tcp}}]),
        json!([{"name": "", "liveness": {"tcpSocket": tcp}}]),
        json!([{"name": "a", "liveness": {"tcpSocket": tcp}}, {"name": "a", "startup": {"tcpSocket": tcp}}]),
        json!(many),
        json!([{"name": "main", "alive": {"tcpSocket": tcp}}]),
    ] {
        let result = Probes::from_json(&bad.to_string());
        assert!(result.is_err(), "{bad} is {result:?}");
        assert!(result.unwrap_err().to_string().len() < 512);
    }
    for (kind, bad) in [
        (Liveness, json!({})),
        (Liveness, json!({"tcpSocket": tcp, "exec": {"command": ["true"]}})),
        (Liveness, json!({"tcpSocket": {"port": 0}})),
        (Liveness, json!({"tcpSocket": {"port": 65536}})),
        (Liveness, json!({"tcpSocket": {"port": "http"}})),
        (Liveness, json!({"tcpSocket": {"port": 80, "host": "10.0.0.1"}})),
        (
            Liveness,
            json!({"httpGet": {"port": 80, "host": "169.254.169.254"}}),
        ),
        (Liveness, json!({"httpGet": {"port": 80, "path": "/a b"}})),
        (Liveness, json!({"httpGet": {"port": 80, "path": "/\r\nx: y"}})),
        (Liveness, json!({"httpGet": {"port": 80, "scheme": "FTP"}})),
        (Liveness, json!({"httpGet": {"port": 80, "httpHeaders": headers}})),
        (
            Liveness,
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}}),
        ),
        (
            Liveness,
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "", "value": ""}]}}),
        ),
        (
            Liveness,
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "b\r\nc: d"}]}}),
        ),
        (Liveness, json!({"exec": {"command": []}})),
        (Liveness, json!({"exec": {"command": ["a\0"]}})),
        (Liveness, json!({"exec": {}})),
        (Liveness, json!({"tcpSocket": tcp, "periodSeconds": -1})),
        (
            Liveness,
            json!({"tcpSocket": tcp, "timeoutSeconds": 1_000_000_000}),
        ),
        (Liveness, json!({"tcpSocket": tcp, "successThreshold": 2})),
        (Startup, json!({"tcpSocket": tcp, "successThreshold": 2})),
        (
            Liveness,
            json!({"tcpSocket": tcp, "terminationGracePeriodSeconds": 0}),
        ),
        (
            Readiness,
            json!({"tcpSocket": tcp, "terminationGracePeriodSeconds": 1}),
        ),
        (Liveness, json!({"tcpSocket": tcp, "sidewaysSeconds": 1})),
        (Liveness, json!({"tcpSocket": {"port": 80, "unix": "/x"}})),
    ] {
        let result = Probe::from_kubernetes(kind, bad.clone());
        assert!(result.is_err(), "{bad} is {result:?}");
        assert!(result.unwrap_err().to_string().len() < 512);
    }
    let long = "x".repeat(MAX_PROBES_BYTES + 1);
    assert_eq!(Probes::from_json(&long), Err(ProbesError::TooLong));
}

#[test]
fn a_container_that_takes_long_to_start_is_left_alone_until_it_has() {
    let mut probes = container(&ProbeKind::ALL);
    probes.liveness.as_mut().unwrap().initial_delay = Duration::from_secs(60);
    let mut state = ProbeState::new(&probes, at(0));
    assert!(!state.is_started() && !state.is_ready());
    assert_eq!(run(&mut state, at(0), Failure), None);
    assert_eq!(state.due(), Some(at(10)));
    assert_eq!(run(&mut state, at(10), Failure), None);
    assert_eq!(run(&mut state, at(20), Success), Some(ProbeVerdict::Started));
    assert_eq!(
        state.due(),
        Some(at(20)),
        "it is asked at once whether it is ready"
    );
    assert_eq!(kinds(&state.begin(at(20))), [Readiness]);
    assert_eq!(
        state.due(),
        Some(at(60)),
        "the delay counts from the container's start"
    );
    assert!(state.is_started() && !state.is_ready());
}

#[test]
fn a_container_that_never_starts_is_stopped_once() {
    let mut state = ProbeState::new(&container(&[Startup]), at(0));
    assert_eq!(run(&mut state, at(0), Failure), None);
    assert_eq!(run(&mut state, at(10), Failure), None);
    assert_eq!(
        run(&mut state, at(20), Failure),
        Some(ProbeVerdict::Stop(Startup))
    );
    assert_eq!(state.due(), None);
    assert!(!state.is_ready());
}

#[test]
fn only_a_row_of_results_counts() {
    let mut probes = container(&[Readiness]);
    probes.readiness.as_mut().unwrap().success_threshold = 2;
    let mut state = ProbeState::new(&probes, at(0));
    assert_eq!(run(&mut state, at(0), Success), None);
    assert_eq!(run(&mut state, at(10), Unknown), None, "which says nothing");
    assert_eq!(run(&mut state, at(20), Success), Some(ProbeVerdict::Ready(true)));
    for second in [30, 50, 70] {
        assert_eq!(run(&mut state, at(second), Failure), None);
        assert_eq!(run(&mut state, at(second + 10), Success), None);
    }
    assert!(state.is_ready());
    assert_eq!(run(&mut state, at(90), Failure), None);
    assert_eq!(run(&mut state, at(100), Failure), None);
    assert_eq!(
        run(&mut state, at(110), Failure),
        Some(ProbeVerdict::Ready(false))
    );
}

#[test]
fn a_container_without_a_readiness_probe_is_ready_until_it_is_to_be_stopped() {
    let mut state = ProbeState::new(&container(&[Liveness]), at(0));
    assert!(state.is_ready());
    assert_eq!(run(&mut state, at(0), Failure), None);
    assert_eq!(run(&mut state, at(10), Failure), None);
    assert!(state.is_ready());
    assert_eq!(
        run(&mut state, at(20), Failure),
        Some(ProbeVerdict::Stop(Liveness))
    );
    assert!(!state.is_ready());
    assert_eq!(state.due(), None, "the next container is another one");
}

#[test]
fn a_sleeper_is_what_it_was_and_begins_anew() {
    let mut state = ProbeState::new(&container(&[Liveness, Readiness]), at(0));
    for (kind, ticket) in state.begin(at(0)) {
        state.ended(kind, ticket, Success, at(0));
    }
    for second in [10, 20] {
        for (kind, ticket) in state.begin(at(second)) {
            state.ended(kind, ticket, Failure, at(second));
        }
    }
    let on_the_way = state.begin(at(30));
    state.pause();
    assert_eq!(state.due(), None);
    assert!(state.begin(at(1000)).is_empty());
    for (kind, ticket) in on_the_way {
        assert_eq!(
            state.ended(kind, ticket, Failure, at(31)),
            None,
            "that was the sleep"
        );
    }
    assert!(state.is_ready());
    state.resume(at(1000));
    assert_eq!(state.due(), Some(at(1010)));
    for (kind, ticket) in state.begin(at(1010)) {
        assert_eq!(state.ended(kind, ticket, Failure, at(1010)), None, "a row of one");
    }
}

#[test]
fn what_is_recalled_waits_for_the_guest_to_run() {
    let probes = container(&ProbeKind::ALL);
    let mut state = ProbeState::recalled(&probes, true, true);
    assert!(state.is_ready());
    assert_eq!(state.due(), None);
    state.resume(at(5));
    assert_eq!(kinds(&state.begin(at(15))), [Liveness, Readiness]);
    assert!(!ProbeState::recalled(&probes, false, false).is_started());
}

/// What happens to a container's probes.
#[derive(Debug, Clone)]
enum Happening {
    Wait(u64),
    Begin,
    End(ProbeKind, ProbeOutcome),
    EndOld(ProbeKind, ProbeOutcome),
    Pause,
    Resume,
}

fn happening() -> impl Strategy<Value = Happening> {
    let kind = prop_oneof![Just(Liveness), Just(Readiness), Just(Startup)];
    let outcome = prop_oneof![Just(Success), Just(Failure), Just(Unknown)];
    prop_oneof![
        (0..30_u64).prop_map(Happening::Wait),
        Just(Happening::Begin),
        (kind.clone(), outcome.clone()).prop_map(|(k, o)| Happening::End(k, o)),
        (kind, outcome).prop_map(|(k, o)| Happening::EndOld(k, o)),
        Just(Happening::Pause),
        Just(Happening::Resume),
    ]
}

fn any_probe() -> impl Strategy<Value = Option<Probe>> {
    proptest::option::of(
        (0..40_u64, 1..20_u64, 1..4_u32).prop_map(|(delay, period, failures)| Probe {
            initial_delay: Duration::from_secs(delay),
            period: Duration::from_secs(period),
            failure_threshold: failures,
            ..tcp()
        }),
    )
}

proptest! {
    #[test]
    fn the_kubelets_rules_hold(
        (liveness, readiness, startup) in (any_probe(), any_probe(), any_probe()),
        ready_after in 1..4_u32,
        happenings in proptest::collection::vec(happening(), 0..200),
    ) {
        let mut probes = ContainerProbes { name: "main".to_owned(), liveness, readiness, startup };
        if let Some(readiness) = &mut probes.readiness {
            readiness.success_threshold = ready_after;
        }
        let mut state = ProbeState::new(&probes, at(0));
        let mut now = 0;
        let mut flying: Vec<(ProbeKind, Ticket)> = Vec::new();
        let mut old: Vec<(ProbeKind, Ticket)> = Vec::new();
        // The last results of each kind since anything began anew.
        let mut results: Vec<(ProbeKind, bool)> = Vec::new();
        let mut paused = false;
        let mut stopped = Vec::new();
        for happening in happenings {
            let (started, passed) = (state.is_started(), state.has_passed());
            match happening {
                Happening::Wait(seconds) => now += seconds,
                Happening::Begin => {
                    let due = state.due();
                    for (kind, ticket) in state.begin(at(now)) {
                        prop_assert!(due.is_some_and(|due| due <= at(now)));
                        prop_assert!(!paused, "nothing runs in a sleeper");
                        prop_assert_eq!(kind == Startup, !started, "the startup probe, or the others");
                        prop_assert!(!flying.iter().any(|(other, _)| *other == kind), "one at a time");
                        prop_assert!(!stopped.contains(&kind), "that container is about to go");
                        let delay = probes.get(kind).unwrap().initial_delay;
                        prop_assert!(at(0).after(delay) <= at(now), "not within the delay");
                        flying.push((kind, ticket));
                    }
                }
                Happening::End(kind, outcome) => {
                    let Some(n) = flying.iter().position(|(other, _)| *other == kind) else { continue };
                    let (_, ticket) = flying.remove(n);
                    let verdict = state.ended(kind, ticket, outcome, at(now));
                    old.push((kind, ticket));
                    if outcome != Unknown {
                        results.push((kind, outcome == Success));
                    }
                    let row = |wanted: bool| {
                        results.iter().rev().filter(|(k, _)| *k == kind).take_while(|(_, s)| *s == wanted).count()
                    };
                    let probe = probes.get(kind).unwrap();
                    match verdict {
                        Some(ProbeVerdict::Stop(of)) => {
                            prop_assert_eq!(of, kind);
                            prop_assert!(kind != Readiness && row(false) >= probe.failure_threshold as usize);
                            stopped.push(kind);
                        }
                        Some(ProbeVerdict::Ready(ready)) => {
                            let threshold = if ready { probe.success_threshold } else { probe.failure_threshold };
                            prop_assert!(kind == Readiness && row(ready) >= threshold as usize);
                            prop_assert_eq!((passed, state.has_passed()), (!ready, ready));
                        }
                        Some(ProbeVerdict::Started) => prop_assert!(kind == Startup && !started),
                        None => {
                            prop_assert_eq!((started, passed), (state.is_started(), state.has_passed()));
                        }
                    }
                }
                Happening::EndOld(kind, outcome) => {
                    let before = state.clone();
                    for (other, ticket) in old.iter().filter(|(other, _)| *other == kind) {
                        prop_assert_eq!(state.ended(*other, *ticket, outcome, at(now)), None);
                    }
                    prop_assert_eq!(&state, &before, "what ended has ended");
                }
                Happening::Pause => {
                    state.pause();
                    old.append(&mut flying);
                    results.clear();
                    paused = true;
                    prop_assert_eq!(state.due(), None);
                    prop_assert_eq!((started, passed), (state.is_started(), state.has_passed()));
                }
                Happening::Resume => {
                    state.resume(at(now));
                    if paused {
                        prop_assert!(state.due().is_none_or(|due| due > at(now)), "not at once");
                    }
                    paused = false;
                }
            }
        }
    }
}
