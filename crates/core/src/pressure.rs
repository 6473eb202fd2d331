//! Whom memory pressure on the node pushes further down the ladder.

use std::time::Duration;

use crate::Rung;

/// A pod, as far as this decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleeper<'a> {
    /// Names the pod sandbox.
    pub id: &'a str,
    /// Where the pod stands.
    pub rung: Rung,
    /// How long it has been idle.
    pub idle: Duration,
    /// Whether Dormouse may put it to sleep by itself.
    pub managed: bool,
    /// Whether it can doze.
    pub can_doze: bool,
    /// Whether it can be hibernated.
    pub can_hibernate: bool,
    /// Whether a step is under way.
    pub moving: bool,
    /// Whether somebody waits for its wake.
    pub waking: bool,
    /// Whether a shell stands by for it.
    pub shell: bool,
}

/// The shell to give up next, which comes before anything else: nobody's memory is in it. Of several, that of the pod which
/// has been idle longest. `None` if none stands by.
#[must_use]
pub fn next_shell_to_give_up<'a>(pods: impl IntoIterator<Item = Sleeper<'a>>) -> Option<&'a str> {
    pods.into_iter()
        .filter(|pod| pod.shell && !pod.moving && !pod.waking)
        .max_by_key(|pod| pod.idle)
        .map(|pod| pod.id)
}

/// The pod to hibernate next: of those that doze, or sleep in RAM because they cannot doze, the one that has been idle
/// longest. `None` if there is no such pod.
#[must_use]
pub fn next_to_hibernate<'a>(pods: impl IntoIterator<Item = Sleeper<'a>>) -> Option<&'a str> {
    pods.into_iter()
        .filter(|pod| pod.managed && pod.can_hibernate && !pod.moving && !pod.waking)
        .filter(|pod| match pod.rung {
            Rung::Dozing => true,
            Rung::Frozen => !pod.can_doze,
            _ => false,
        })
        .max_by_key(|pod| pod.idle)
        .map(|pod| pod.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(id: &str, rung: Rung, idle: u64) -> Sleeper<'_> {
        Sleeper {
            id,
            rung,
            idle: Duration::from_secs(idle),
            managed: true,
            can_doze: true,
            can_hibernate: true,
            moving: false,
            waking: false,
            shell: false,
        }
    }

    #[test]
    fn the_shell_of_the_longest_idle_pod_goes_first() {
        let shell = |id, idle| Sleeper {
            shell: true,
            ..sleeper(id, Rung::Hibernated, idle)
        };
        let pods = [
            shell("short", 10),
            sleeper("none", Rung::Hibernated, 900),
            shell("long", 500),
        ];
        assert_eq!(next_shell_to_give_up(pods), Some("long"));
        let moving = Sleeper {
            moving: true,
            ..pods[0]
        };
        // It would use it.
        let waking = Sleeper {
            waking: true,
            ..pods[2]
        };
        assert_eq!(next_shell_to_give_up([moving, waking]), None);
    }

    #[test]
    fn the_longest_idle_sleeper_goes_first() {
        let pods = [
            sleeper("running", Rung::Running, 900),
            sleeper("frozen", Rung::Frozen, 800),
            sleeper("short", Rung::Dozing, 10),
            sleeper("long", Rung::Dozing, 500),
            sleeper("hibernated", Rung::Hibernated, 1000),
        ];
        assert_eq!(next_to_hibernate(pods), Some("long"));
        let no_swap = Sleeper {
            can_doze: false,
            ..sleeper("frozen", Rung::Frozen, 800)
        };
        assert_eq!(next_to_hibernate([pods[2], no_swap]), Some("frozen"));
        for left_alone in [
            Sleeper {
                managed: false,
                ..pods[3]
            },
            Sleeper {
                can_hibernate: false,
                ..pods[3]
            },
            Sleeper {
                moving: true,
                ..pods[3]
            },
            Sleeper {
                waking: true,
                ..pods[3]
            },
        ] {
            assert_eq!(next_to_hibernate([left_alone]), None);
        }
    }
}
