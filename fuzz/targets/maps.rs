//! `/proc/PID/smaps` of a sandbox's process, part of which (names of mappings) the process chooses.
#![no_main]

use dormouse_runtime::pageout::maps::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(mappings) = parse(text) else { return };
    let mut end = 0;
    for mapping in mappings {
        assert!(
            mapping.range.len > 0 && mapping.range.start >= end,
            "in order, and none empty"
        );
        end = mapping
            .range
            .start
            .checked_add(mapping.range.len)
            .expect("within the address space");
    }
});
