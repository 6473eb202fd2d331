//! runsc's own state file.
#![no_main]

use dormouse_sentry::RunscState;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The step from the file to these bytes waits for a torn file to be whole, which would only cost time here.
    if let Ok(state) = serde_json::from_slice::<RunscState>(data) {
        let _ = state.annotations();
        let _ = state.runsc_version();
        if let Ok(sentry) = state.sentry() {
            assert!(sentry.pid > 0, "0 and less mean many processes to kill(2)");
        }
    }
});
