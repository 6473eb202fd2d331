//! One line per thing done, with the time since the start.

use std::sync::LazyLock;
use std::time::Instant;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Says what happens now.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("[{:>5.0} s] {}", BEGAN.elapsed().as_secs_f64(), text.as_ref());
}
