//! Annotations that a pod brings, and durations in them.
#![no_main]

use std::collections::BTreeMap;

use dormouse_core::{
    ANNOTATION_DOZE_AFTER, ANNOTATION_FREEZE_AFTER, ANNOTATION_IDLE_TIMEOUT, ANNOTATION_MANAGED,
    ANNOTATION_PREFIX, ANNOTATION_RESUME_POLICY, ANNOTATION_SHELL, ANNOTATION_WAKE_SCHEDULE,
    ANNOTATION_WAKE_UDP_PORTS, MAX_DURATION, Policy, format_duration, parse_duration,
};
use libfuzzer_sys::fuzz_target;

const KEYS: [&str; 8] = [
    ANNOTATION_MANAGED,
    ANNOTATION_IDLE_TIMEOUT,
    ANNOTATION_FREEZE_AFTER,
    ANNOTATION_DOZE_AFTER,
    ANNOTATION_RESUME_POLICY,
    ANNOTATION_WAKE_UDP_PORTS,
    ANNOTATION_SHELL,
    ANNOTATION_WAKE_SCHEDULE,
];

fuzz_target!(|text: &str| {
    if let Some(duration) = parse_duration(text)
        && duration <= MAX_DURATION
    {
        let read = parse_duration(&format_duration(duration)).expect("what was written is read");
        assert_eq!(read.as_millis(), duration.as_millis());
    }
    let mut annotations = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = match key.parse::<usize>().ok().and_then(|nth| KEYS.get(nth)) {
            Some(known) => (*known).to_owned(),
            None => format!("{ANNOTATION_PREFIX}{key}"),
        };
        annotations.insert(key, value.to_owned());
    }
    match Policy::from_annotations(&annotations) {
        Ok((_, policy)) => {
            for duration in [policy.idle_timeout, policy.freeze_after, policy.doze_after]
                .into_iter()
                .flatten()
            {
                assert!(duration <= MAX_DURATION);
            }
            if let Some(schedule) = policy.wake_schedule {
                assert!(schedule.next_after(0).is_some());
            }
            assert!(policy.wake_udp_ports.len() <= 32 && !policy.wake_udp_ports.contains(&0));
        }
        // It goes into events and conditions: a pod must not make it long.
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
});
