//! What dashboard, alerts and documentation call metrics, held to what agent and controller register.
//!
//! The names are read from the sources: this crate cannot link them, and a scrape lacks what nothing was counted in yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The crates whose metrics are scraped.
const CRATES: [&str; 2] = ["crates/agent/src", "crates/controller/src"];

/// Where they are explained.
const PAGE: &str = "docs/operations/metrics.md";

/// How the name of a metric of ours begins, or of one that we serve as agent-sandbox and controller-runtime do.
const OURS: [&str; 4] = ["dormouse_", "agent_sandbox", "workqueue_", "controller_runtime_"];

/// How that of a metric begins which others serve.
const THEIRS: &str = "kube_";

/// What can be registered, as a declaration names it and as the documentation does.
const KINDS: [(&str, Kind); 4] = [
    ("Histogram", Kind::Histogram),
    ("Counter", Kind::Counter),
    ("Gauge", Kind::Gauge),
    ("Info", Kind::Info),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        KINDS
            .map(|(_, kind)| kind)
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// What is scraped, each name with its kind; a histogram's without what is appended to it.
#[derive(Debug, Default)]
pub(super) struct Metrics(BTreeMap<String, Kind>);

impl Metrics {
    /// All that agent and controller register.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let mut all = BTreeMap::new();
        for place in CRATES {
            let mut files = Vec::new();
            sources(&root.join(place), &mut files)?;
            for file in files {
                let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                if text.contains("prometheus_client::") {
                    let found =
                        registered(&text).with_context(|| format!("metrics in {}", file.display()))?;
                    all.extend(found);
                }
            }
        }
        ensure!(!all.is_empty(), "no metric was found in {CRATES:?}");
        Ok(Self(all))
    }

    /// Whether a scrape has a series of this name.
    fn has_series(&self, name: &str) -> bool {
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|base| self.0.get(base) == Some(&Kind::Histogram));
        of_histogram || self.0.get(name).is_some_and(|kind| *kind != Kind::Histogram)
    }

    /// Refuses expressions, wherever they stand in a document, of series that nobody serves; says how many there are.
    pub(super) fn check_expressions(&self, document: &Value) -> Result<usize> {
        let mut expressions = Vec::new();
        collect(document, &mut expressions);
        for expression in &expressions {
            let names = names(expression);
            ensure!(
                !names.is_empty() || expression.contains(THEIRS),
                "`{expression}` names no metric that is known"
            );
            for name in names {
                ensure!(
                    self.has_series(name),
                    "`{expression}` names {name}, which neither agent nor controller serves"
                );
            }
        }
        Ok(expressions.len())
    }

    /// Holds the tables of the documentation to it, both ways.
    pub(super) fn check_page(&self, root: &Path) -> Result<()> {
        let text = fs::read_to_string(root.join(PAGE)).with_context(|| format!("read {PAGE}"))?;
        let explained = explained(&text);
        for (name, kind) in &self.0 {
            match explained.get(name.as_str()) {
                None => bail!("{PAGE} lacks {name}, a {}", kind.as_str()),
                Some(said) if said != kind => bail!(
                    "{PAGE} calls {name} a {}, and it is a {}",
                    said.as_str(),
                    kind.as_str()
                ),
                Some(_) => {}
            }
        }
        if let Some(name) = explained.keys().find(|name| !self.0.contains_key(**name)) {
            bail!("{PAGE} has {name}, which neither agent nor controller registers");
        }
        // What is to be watched is written as one asks for it.
        let asked = text
            .lines()
            .filter(|line| line.starts_with("| `") && kind_of_row(line).is_none());
        for name in asked.flat_map(names) {
            ensure!(
                self.has_series(name),
                "{PAGE} asks for {name}, which neither agent nor controller serves"
            );
        }
        Ok(())
    }
}

/// All Rust files below a directory.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", dir.display()))?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// What a source registers with prometheus-client, under the names that a scrape has.
fn registered(source: &str) -> Result<BTreeMap<String, Kind>> {
    let prefix = source
        .split_once("Registry::with_prefix(\"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or_else(String::new, |(prefix, _)| format!("{prefix}_"));
    let mut found = BTreeMap::new();
    for call in [".register(", ".register_with_unit(", "gauges("] {
        for (at, _) in source.match_indices(call) {
            let Some(arguments) = source.get(at + call.len()..).and_then(arguments) else {
                bail!("a call of {call} has no end");
            };
            let Some(base) = arguments.split('"').nth(1) else {
                // A function of the same name, which hands a name on.
                continue;
            };
            let kind = if call == "gauges(" {
                Kind::Gauge
            } else {
                kind(source, arguments)
                    .with_context(|| format!("the kind of {base} cannot be read from the source"))?
            };
            let unit = match arguments.split_once("Unit::") {
                Some((_, rest)) => format!("_{}", word(rest).to_lowercase()),
                None => String::new(),
            };
            let suffix = match kind {
                Kind::Counter => "_total",
                Kind::Info => "_info",
                Kind::Gauge | Kind::Histogram => "",
            };
            found.insert(format!("{prefix}{base}{unit}{suffix}"), kind);
        }
    }
    Ok(found)
}

/// What stands before the parenthesis that closes a call; `None` if none does.
fn arguments(text: &str) -> Option<&str> {
    let (mut depth, mut quoted, mut escaped) = (1_u32, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.get(..at);
        }
    }
    None
}

/// The kind of what is registered: it is made there, or a variable or field of that name is declared with it.
fn kind(source: &str, arguments: &str) -> Option<Kind> {
    if arguments.contains("Info::new(") {
        return Some(Kind::Info);
    }
    let last = arguments
        .trim_end()
        .trim_end_matches(',')
        .rsplit(',')
        .next()?
        .trim();
    let name = last.trim_end_matches(".clone()").rsplit('.').next()?;
    [format!("{name}: "), format!("let {name} = ")]
        .iter()
        .flat_map(|declared| lines_after(source, declared))
        .find_map(|line| {
            let alias = format!("type {}<", word(line));
            kind_named(line).or_else(|| lines_after(source, &alias).find_map(kind_named))
        })
}

fn kind_named(text: &str) -> Option<Kind> {
    KINDS
        .iter()
        .find(|(name, _)| text.contains(name))
        .map(|(_, kind)| *kind)
}

/// What follows in the line wherever this stands, and no name goes on to it.
fn lines_after<'a>(source: &'a str, what: &str) -> impl Iterator<Item = &'a str> {
    source.match_indices(what).filter_map(move |(at, found)| {
        let before = source.get(..at)?.chars().next_back();
        let goes_on = before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
        source
            .get(at + found.len()..)?
            .lines()
            .next()
            .filter(|_| !goes_on)
    })
}

/// The word that a text begins with.
fn word(text: &str) -> &str {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

/// The metrics that a text names and we serve.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':')))
        .filter(|name| OURS.iter().any(|ours| name.starts_with(ours)))
        .collect()
}

/// The values of all `expr` in a document.
fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(expression) if name == "expr" => found.push(expression),
                    field => collect(field, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// The kind that the second cell of a table's row begins with.
fn kind_of_row(line: &str) -> Option<Kind> {
    Kind::parse(word(line.split('|').nth(2)?.trim()))
}

/// What the tables of a page explain: names in the first cell, the kind in the second.
fn explained(page: &str) -> BTreeMap<&str, Kind> {
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| Some((line.split('|').nth(1)?, kind_of_row(line)?)))
        .flat_map(|(cell, kind)| names(cell).into_iter().map(move |name| (name, kind)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::paths::Paths;

    const SOURCE: &str = r#"
        type Latencies<L> = Family<L, Histogram, fn() -> Histogram>;
        struct Inner {
            latency: Latencies<Labels>,
            swap: Gauge,
            wakes: Family<Labels, Counter>,
        }
        struct Figures {
            swap: u64,
        }
        let mut registry = Registry::with_prefix("dormouse");
        registry.register("build", "Which \"version\" (of it)", Info::new(vec![]));
        registry.register_with_unit(
            "wake",
            "Time, as it is",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("wake", "Wakes", wakes.clone());
        registry.register_with_unit("swap_free", "Free", Unit::Bytes, gauges.swap.clone());
        registry.register_collector(Box::new(counts.clone()));
        gauges(encoder, "sandboxes", "There are", counts)
        fn register(registry: &mut Registry) {}
    "#;

    fn metrics() -> Metrics {
        Metrics(registered(SOURCE).unwrap())
    }

    #[test]
    fn names_and_kinds_are_read_from_a_source() {
        let found: Vec<_> = metrics().0.into_iter().collect();
        let expected = [
            ("dormouse_build_info", Kind::Info),
            ("dormouse_sandboxes", Kind::Gauge),
            ("dormouse_swap_free_bytes", Kind::Gauge),
            ("dormouse_wake_seconds", Kind::Histogram),
            ("dormouse_wake_total", Kind::Counter),
        ];
        assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind)));
        let error = registered(r#"registry.register("x", "What it is", unheard_of.clone());"#).unwrap_err();
        assert!(error.to_string().contains("the kind of x"), "{error}");
    }

    #[test]
    fn series_that_nobody_serves_are_refused() {
        let ask = |expression: &str| {
            metrics().check_expressions(&json!({"panels": [{"targets": [{"expr": expression}]}]}))
        };
        for good in [
            "sum by (le) (rate(dormouse_wake_seconds_bucket[5m]))",
            "dormouse_swap_free_bytes / dormouse_sandboxes{rung=\"Frozen\"} < 0.1",
            "kube_daemonset_status_number_unavailable > 0",
        ] {
            assert_eq!(ask(good).unwrap(), 1, "{good}");
        }
        for bad in [
            "dormouse_wake_seconds",
            "dormouse_wake",
            "dormouse_swap_free",
            "dormouse_sandboxes_total",
            "dormuose_sandboxes",
        ] {
            assert!(ask(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_explains_what_its_tables_name() {
        let page = "| metric | kind |\n| `/metrics` | text |\n\
            | `dormouse_a`, `dormouse_b` | gauge, bytes | both |\n\
            | `rate(dormouse_c_total[5m]) > 0` | somebody waits |\n";
        let found: Vec<_> = explained(page).into_iter().collect();
        assert_eq!(found, [("dormouse_a", Kind::Gauge), ("dormouse_b", Kind::Gauge)]);
    }

    #[test]
    fn what_is_written_of_metrics_is_so() {
        let root = Paths::discover().unwrap().root;
        let metrics = Metrics::of(&root).unwrap();
        metrics.check_page(&root).unwrap();
        let dashboard =
            fs::read_to_string(root.join("daemonset/chart/dormouse/files/dashboard.json")).unwrap();
        let dashboard = serde_json::from_str(&dashboard).unwrap();
        assert!(metrics.check_expressions(&dashboard).unwrap() > 0);
    }
}
