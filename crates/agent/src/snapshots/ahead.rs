//! A save's bytes on their way to the disk while the runtime still writes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_snapshot::{Pace as _, Staging};

use super::SavePace;

/// How often it is looked what has come.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Goes on until it is dropped.
#[derive(Debug)]
pub struct WritingAhead(Arc<AtomicBool>);

impl WritingAhead {
    /// To be called within the agent's runtime. A save that keeps to a budget is not written ahead, nor one whose image is
    /// written to memory first.
    pub fn start(staging: &Staging, pace: &SavePace) -> Option<Self> {
        if pace.is_sliced() {
            return None;
        }
        let mut ahead = staging.write_ahead()?;
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        tokio::task::spawn_blocking(move || {
            while !seen.load(Ordering::Relaxed) {
                ahead.step();
                std::thread::sleep(LOOK_AGAIN);
            }
        });
        Some(Self(done))
    }
}

impl Drop for WritingAhead {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
