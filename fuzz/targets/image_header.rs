//! The header of a gVisor image: runsc writes it, but what stands in it is the pod's doing.
#![no_main]

use dormouse_snapshot::header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let parsed = header::parse(data).ok();
    assert_eq!(parsed, header::read(&mut &*data).ok());
    if let Some(header) = parsed {
        assert!(header.length <= data.len() && header.container_count <= header.containers.len());
    }
});
