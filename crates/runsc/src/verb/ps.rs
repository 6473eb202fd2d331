//! `ps` of a sleeping pod.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Deserialize;

use super::Context;
use super::asleep::sleeper;
use crate::outcome::{Failure, Outcome};

/// `control.Process`.
#[derive(Deserialize)]
struct Process {
    uid: u64,
    pid: i64,
    ppid: i64,
    pgid: i64,
    c: i64,
    tty: String,
    stime: String,
    time: String,
    cmd: String,
}

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let format = context.invocation.flag("format").unwrap_or("table");
    // Another format is an error that runsc tells without asking the sentry; but it loads the container.
    if !matches!(format, "table" | "json") {
        return context.exec();
    }
    let Some(sleeper) = sleeper(context) else {
        return context.exec();
    };
    let processes: Vec<Process> = sleeper
        .known
        .processes
        .as_ref()
        .and_then(|p| serde_json::from_str::<Option<Vec<Process>>>(p.get()).ok())
        .flatten()
        .unwrap_or_default();
    let text = if format == "json" {
        pids(&processes)
    } else {
        table(&processes)
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}

fn pids(processes: &[Process]) -> String {
    let pids: Vec<String> = processes.iter().map(|p| p.pid.to_string()).collect();
    format!("[{}]\n", pids.join(","))
}

/// Cells of at least ten characters, three apart, the last one as it is.
fn table(processes: &[Process]) -> String {
    let head = ["UID", "PID", "PPID", "PGID", "C", "TTY", "STIME", "TIME", "CMD"].map(str::to_owned);
    let rows: Vec<[String; 9]> = std::iter::once(head)
        .chain(processes.iter().map(|p| {
            [
                p.uid.to_string(),
                p.pid.to_string(),
                p.ppid.to_string(),
                p.pgid.to_string(),
                p.c.to_string(),
                p.tty.clone(),
                p.stime.clone(),
                p.time.clone(),
                p.cmd.clone(),
            ]
        }))
        .collect();
    let mut widths = [0_usize; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max((cell.chars().count() + 3).max(10));
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            if i + 1 == row.len() {
                text.push_str(cell);
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "{cell:<width$}");
            }
        }
        text.push('\n');
    }
    text
}
