//! Progress of what takes long: on the error stream, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Format, Global};

/// How often something turns while nothing is known of how far it is.
const TURN: Duration = Duration::from_millis(120);

/// A bar over bytes; none where that is no terminal, or where a program reads the output. Without a total it counts.
pub(super) fn bytes(global: &Global, what: &str, total: u64) -> ProgressBar {
    let target = match global.output {
        Format::Table | Format::Wide => ProgressDrawTarget::stderr(),
        Format::Json | Format::Yaml => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what.to_owned());
    if total == 0 {
        style(&bar, "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}");
        bar.enable_steady_tick(TURN);
    } else {
        measure(&bar, total);
    }
    bar
}

/// It is known now how much there is.
pub(super) fn measure(bar: &ProgressBar, total: u64) {
    bar.set_length(total);
    style(
        bar,
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    );
}

/// For what says only when it has ended.
pub(super) fn wait(global: &Global, what: &str) -> ProgressBar {
    let bar = bytes(global, what, 0);
    style(&bar, "{spinner} {msg} {elapsed}");
    bar
}

/// A template that cannot be read leaves the one before.
fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
