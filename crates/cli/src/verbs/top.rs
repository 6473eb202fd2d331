//! `dormouse top`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use dormouse_rpc::v1;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, Stdin};
use tokio::time::{Instant, MissedTickBehavior};

use crate::agent::{Agent, refused};
use crate::args::{Global, TopArgs};
use crate::error::CliError;
use crate::output::print;
use crate::sys::terminal_lines;
use crate::view::{NodeView, PodView, pod_table};

/// The shortest time between two drawings: a node that wakes a hundred pods is drawn ten times a second.
const SHORTEST: Duration = Duration::from_millis(100);

/// Lines that are not pods: summary, empty line, header, help.
const FURNITURE: usize = 4;

#[derive(Debug, Serialize)]
struct Snapshot {
    node: NodeView,
    pods: Vec<PodView>,
}

/// Shows the pods until `q` or an interrupt; changes of rung at once, the other figures every interval.
pub(super) async fn top(global: &Global, args: TopArgs) -> Result<ExitCode, CliError> {
    let agent = Agent::connect(global).await?;
    let list = v1::ListRequest {
        managed_only: !args.all,
        label_selector: args.selector.clone(),
        namespace: global.namespace.clone().unwrap_or_default(),
    };
    if args.once || !io::stdout().is_terminal() {
        let (node, pods) = look(&agent, &list).await?;
        let snapshot = Snapshot {
            pods: pods.iter().map(PodView::from).collect(),
            node,
        };
        print(global.output, &snapshot, |wide| {
            format!("{}\n\n{}", snapshot.node.summary(), pod_table(&pods, wide))
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let watch = v1::WatchRequest {
        managed_only: list.managed_only,
        label_selector: list.label_selector.clone(),
        namespace: list.namespace.clone(),
    };
    let mut changes = agent
        .client()
        .watch(watch)
        .await
        .map_err(|status| refused("watch", status))?
        .into_inner();
    let wide = global.output == crate::args::Format::Wide;
    let mut screen = Screen::enter()?;
    let mut ticks = tokio::time::interval(args.interval.max(SHORTEST));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut redraw: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => redraw = Some(Instant::now()),
            change = changes.message() => match change.map_err(|status| refused("watch", status))? {
                Some(_) => redraw = redraw.or(Some(Instant::now() + SHORTEST)),
                None => return Err(refused("watch", tonic::Status::unavailable("the agent ended it"))),
            },
            () = until(redraw) => {
                redraw = None;
                let (node, pods) = look(&agent, &list).await?;
                draw(&node.summary(), &pod_table(&pods, wide), terminal_lines())?;
            }
            key = screen.key() => if matches!(key?, Key::Quit) { return Ok(ExitCode::SUCCESS) },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn look(agent: &Agent, list: &v1::ListRequest) -> Result<(NodeView, Vec<v1::Pod>), CliError> {
    let (node, pods) = tokio::try_join!(agent.node(), agent.list(list.clone()))?;
    Ok((NodeView::from(&node), pods))
}

/// Draws over what was there, line by line, so that nothing flickers.
fn draw(summary: &str, table: &str, lines: Option<u16>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(frame(summary, table, lines).as_bytes())?;
    out.flush()?;
    Ok(())
}

fn frame(summary: &str, table: &str, lines: Option<u16>) -> String {
    let room = lines.map_or(usize::MAX, |lines| {
        usize::from(lines).saturating_sub(FURNITURE).max(1)
    });
    let total = table.lines().count().saturating_sub(1);
    let mut text = format!("\x1b[H{summary}\x1b[K\n\x1b[K\n");
    for line in table.lines().take(room.saturating_add(1)) {
        text.push_str(&format!("{line}\x1b[K\n"));
    }
    let hidden = total.saturating_sub(room);
    if hidden > 0 {
        text.push_str(&format!("and {hidden} more; "));
    }
    text.push_str("q to quit\x1b[K\x1b[J");
    text
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

enum Key {
    Quit,
    Other,
}

/// The terminal, taken over; given back when dropped.
struct Screen {
    /// The keyboard's settings before; `None` if the input is no terminal.
    before: Option<Termios>,
    keys: Option<Stdin>,
}

impl Screen {
    fn enter() -> Result<Self, CliError> {
        let stdin = io::stdin();
        let before = if stdin.is_terminal() {
            tcgetattr(&stdin).ok()
        } else {
            None
        };
        let keys = match &before {
            Some(before) => {
                let mut raw = before.clone();
                raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
                tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(io::Error::from)?;
                Some(tokio::io::stdin())
            }
            None => None,
        };
        let screen = Self { before, keys };
        // Another screen, no cursor, no line wrapping.
        let mut out = io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        out.flush()?;
        Ok(screen)
    }

    /// The next key; never, if the input is no terminal.
    async fn key(&mut self) -> Result<Key, CliError> {
        let Some(keys) = &mut self.keys else {
            return std::future::pending().await;
        };
        // Interrupt comes as a byte where the terminal makes no signal of it.
        const INTERRUPT: u8 = 3;
        let mut buffer = [0_u8; 16];
        let read = keys.read(&mut buffer).await?;
        let quit = read == 0
            || buffer
                .iter()
                .take(read)
                .any(|key| matches!(*key, b'q' | b'Q' | INTERRUPT));
        Ok(if quit { Key::Quit } else { Key::Other })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_screen() {
        let table = "HEAD\na\nb\nc";
        let whole = frame("sum", table, Some(24));
        assert_eq!(whole.matches("\n").count(), 6);
        assert!(!whole.contains("more"));
        let cut = frame("sum", table, Some(6));
        assert!(cut.contains("\nb\u{1b}[K"), "{cut:?}");
        assert!(!cut.contains("\nc\u{1b}[K"));
        assert!(cut.ends_with("and 1 more; q to quit\x1b[K\x1b[J"));
        assert!(frame("sum", table, Some(1)).contains("and 2 more"));
        assert!(!frame("sum", table, None).contains("more"));
    }
}
