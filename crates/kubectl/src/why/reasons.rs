//! Reason codes in words. Pure.

use dormouse_api::conditions::{ready, restored, suspended};
use dormouse_core::Reason;

/// What a reason of a condition means, where its message does not say so.
const CONDITIONS: [(&str, &str); 9] = [
    (
        ready::DEPENDENCIES_NOT_READY,
        "Its pod or its Service is not ready yet.",
    ),
    (
        ready::MULTIPLE_PODS,
        "More than one pod is owned by it, and which is meant cannot be told: delete all but one.",
    ),
    (ready::RECONCILER_ERROR, "An API call failed, and is tried again."),
    (
        ready::INVALID_CONFIGURATION,
        "The API server refuses what the specification leads to: correct the specification.",
    ),
    (
        suspended::POD_NOT_OWNED,
        "The pod of its name is somebody else's, and is left alone.",
    ),
    (
        restored::COLD_START,
        "It was started anew, as its suspensionStrategy.fallback says.",
    ),
    (
        restored::NODE_UNAVAILABLE,
        "It was to be a clone, whose node had no room or could not be reached, and was started anew.",
    ),
    (restored::POD_GONE, "Its pod went while its guest slept in it."),
    ("Unschedulable", "No node takes its pod."),
];

/// What a reason code means; `None` if it is none of ours.
pub(super) fn meaning(code: &str) -> Option<&'static str> {
    if let Some((_, meaning)) = CONDITIONS.iter().find(|(known, _)| *known == code) {
        return Some(meaning);
    }
    code.parse::<Reason>().ok().map(|reason| reason.meaning().trim())
}

/// The reason codes that a text names as such, `Code: ...` or `(Code)`, each with its meaning.
pub(super) fn explained(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for word in text.split_whitespace() {
        let marked = word.strip_suffix(':').or_else(|| {
            word.trim_end_matches([';', ',', '.'])
                .strip_prefix('(')?
                .strip_suffix(')')
        });
        if let Some(code) = marked
            && let Some(meaning) = meaning(code)
        {
            let line = format!("{code}: {meaning}");
            if !all.contains(&line) {
                all.push(line);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_ours_has_a_meaning() {
        for reason in Reason::ALL {
            assert!(
                meaning(reason.as_str()).is_some_and(|text| !text.is_empty()),
                "{reason}"
            );
        }
        assert_eq!(meaning("NobodysCode"), None);
    }

    #[test]
    fn only_what_is_marked_as_a_code_is_one() {
        assert_eq!(explained("the guest was Restored and Ordered"), [""; 0]);
        let found = explained("cannot: SwapFull: no room (NodeBusy), SwapFull:");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("SwapFull: The swap is full"), "{found:?}");
    }
}
