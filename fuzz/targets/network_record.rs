//! A pod's addresses and routes, as they are read from its record before a wake.
#![no_main]

use dormouse_net::links::{NetworkRecord, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(record) = serde_json::from_slice::<NetworkRecord>(data) else {
        return;
    };
    assert!(record.interfaces.len() <= limits::INTERFACES && record.routes.len() <= limits::ROUTES);
    for interface in &record.interfaces {
        assert!(interface.addresses.len() <= limits::ADDRESSES);
        assert!(interface.neighbours.len() <= limits::NEIGHBOURS);
        assert!(!interface.name.is_empty() && !interface.name.contains('/'));
    }
    let text = serde_json::to_vec(&record).expect("a record is JSON");
    let again: NetworkRecord = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(again, record);
});
