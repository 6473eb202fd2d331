//! A sentry's dump of its goroutines, which says whether a guest is stopped.
#![no_main]

use dormouse_sentry::{StopState, stacks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|dump: &str| {
    let picture = stacks::read(dump);
    if picture.state == StopState::Paused {
        let stopped = dump.contains("(*Task).doStop(") || dump.contains("(*Kernel).Pause(");
        assert!(
            stopped && dump.contains("(*Task).run("),
            "no guest is paused for want of evidence"
        );
    }
});
