//! Standbys that a claim passes over, and why: a node whose agent is away has many, and none of them is looked at twice.

use std::collections::BTreeSet;

/// Standbys that a claim passes over.
#[derive(Debug, Clone, Default)]
pub struct Passed {
    /// Those that were tried.
    names: BTreeSet<String>,
    /// All of these nodes: they are lost.
    lost: BTreeSet<String>,
    /// Those of these nodes that sleep: nobody can be told to wake them.
    unreachable: BTreeSet<String>,
    /// All of these nodes, as long as there are other ready ones: they are being drained.
    drained: Later,
    /// Those of these nodes that sleep, as long as there are any others: their agents have not answered of late.
    silent: Later,
}

/// Nodes whose standbys come later.
#[derive(Debug, Clone, Default)]
struct Later {
    nodes: BTreeSet<String>,
    /// Whether it is their turn.
    now: bool,
}

impl Later {
    fn has(&self, node: &str) -> bool {
        !self.now && self.nodes.contains(node)
    }

    fn put_off(&mut self, node: &str) -> bool {
        !self.now && self.nodes.insert(node.to_owned())
    }

    /// Whether that changes anything.
    fn turn(&mut self) -> bool {
        !self.nodes.is_empty() && !std::mem::replace(&mut self.now, true)
    }
}

impl Passed {
    /// Passes one over.
    pub(super) fn tried(&mut self, name: &str) {
        self.names.insert(name.to_owned());
    }

    /// Passes all of a node over.
    pub(super) fn lost(&mut self, node: &str) {
        self.lost.insert(node.to_owned());
    }

    /// Passes those of a node over that sleep.
    pub(super) fn unreachable(&mut self, node: &str) {
        self.unreachable.insert(node.to_owned());
    }

    /// Takes those of a node only if there are no other ready ones; whether they are put off by that.
    pub(super) fn drained(&mut self, node: &str) -> bool {
        self.drained.put_off(node)
    }

    /// Takes those of a node that sleep only if there are no others; whether they are put off by that.
    pub(super) fn silent(&mut self, node: &str) -> bool {
        self.silent.put_off(node)
    }

    /// There are no others, but for some that are not ready if `unready`; whether there are any that were put off for them.
    pub(super) fn relents(&mut self, unready: bool) -> bool {
        self.drained.turn() || (!unready && self.silent.turn())
    }

    /// Whether it passes this one over.
    pub(super) fn has(&self, name: &str, node: Option<&str>, asleep: bool) -> bool {
        let by_node = |node: &str| {
            self.lost.contains(node)
                || self.drained.has(node)
                || (asleep && (self.unreachable.contains(node) || self.silent.has(node)))
        };
        self.names.contains(name) || node.is_some_and(by_node)
    }

    /// Passes these over, for tests.
    #[cfg(test)]
    pub(crate) fn over(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_put_off_come_when_there_are_no_others() {
        assert!(!Passed::default().relents(false), "there are none");
        let mut passed = Passed::default();
        assert!(passed.drained("cordoned") && passed.silent("hung"));
        assert!(passed.has("a", Some("cordoned"), false) && passed.has("b", Some("hung"), true));
        assert!(!passed.has("c", Some("hung"), false) && !passed.has("d", None, true));
        // Ready ones of a node that is drained are better than some that are not ready.
        assert!(passed.relents(true));
        assert!(!passed.has("a", Some("cordoned"), false) && passed.has("b", Some("hung"), true));
        assert!(!passed.drained("cordoned") && !passed.relents(true));
        assert!(passed.relents(false) && !passed.has("b", Some("hung"), true));
        assert!(!passed.silent("hung") && !passed.relents(false));
    }

    #[test]
    fn those_that_cannot_be_had_do_not_come_again() {
        let mut passed = Passed::default();
        passed.lost("lost");
        passed.unreachable("away");
        passed.tried("tried");
        assert!(!passed.relents(false));
        assert!(passed.has("a", Some("lost"), false) && passed.has("tried", None, false));
        assert!(passed.has("b", Some("away"), true) && !passed.has("b", Some("away"), false));
    }
}
