//! What a process has logged, for people who look into a failed test.

use std::collections::HashMap;

/// How often the same line is shown.
const SHOWN: usize = 2;

/// The last lines of a log that say something new. A line is the same as another one when it differs in no more than what
/// comes before its first space, which is the time.
pub(crate) fn condensed(log: &str, last: usize) -> Vec<String> {
    let mut said: HashMap<&str, usize> = HashMap::new();
    for line in log.lines() {
        *said.entry(text(line)).or_default() += 1;
    }
    let mut shown: HashMap<&str, usize> = HashMap::new();
    let mut lines: Vec<String> = log
        .lines()
        .filter_map(|line| {
            let times = shown.entry(text(line)).or_default();
            *times += 1;
            let all = said.get(text(line)).copied().unwrap_or_default();
            match *times {
                SHOWN if all > SHOWN => Some(format!("{line} ({all} times in all)")),
                1..=SHOWN => Some(line.to_owned()),
                _ => None,
            }
        })
        .collect();
    lines.split_off(lines.len().saturating_sub(last))
}

fn text(line: &str) -> &str {
    line.split_once(' ').map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_and_again_does_not_hide_the_rest() {
        let mut log = "1 lost\n".to_owned();
        for time in 2..100 {
            log.push_str(&format!("{time} tried\n"));
        }
        log.push_str("100 ended\n");
        assert_eq!(
            condensed(&log, 4),
            ["1 lost", "2 tried", "3 tried (98 times in all)", "100 ended"]
        );
        assert_eq!(condensed(&log, 1), ["100 ended"]);
    }
}
