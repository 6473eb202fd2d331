//! An archive of a snapshot, which may be anybody's.
#![no_main]

use dormouse_snapshot::check_archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(archive) = check_archive(&mut &*data, 64 << 20) {
        assert!(archive.manifest.is_hashed());
    }
});
