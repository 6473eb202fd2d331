//! The manifest of an archive, which nobody vouches for.
#![no_main]

use dormouse_snapshot::{MAX_FILE_SIZE, MAX_FILES, decode_untrusted};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = decode_untrusted(data) else {
        return;
    };
    assert!(manifest.files.len() <= MAX_FILES);
    for file in &manifest.files {
        assert!(file.size <= MAX_FILE_SIZE && !file.name.as_str().contains('/'));
    }
    let text = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    assert_eq!(
        decode_untrusted(&text).expect("what was written is read"),
        manifest
    );
});
