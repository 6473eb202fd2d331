//! Progress of what takes long.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Format, Global};

/// A bar over bytes on the error stream; none where that is no terminal, or where a program reads the output.
pub(super) fn bytes(global: &Global, what: &str, total: u64) -> ProgressBar {
    let target = match global.output {
        Format::Table | Format::Wide => ProgressDrawTarget::stderr(),
        Format::Json | Format::Yaml => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what.to_owned());
    // A template that cannot be read leaves the built-in one.
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    ) {
        bar.set_style(style);
    }
    bar
}

/// The same for what says only when it has ended.
pub(super) fn wait(global: &Global, what: &str) -> ProgressBar {
    let bar = bytes(global, what, 0);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
