//! A pool with golden snapshots while time goes by, and much goes wrong.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What becomes of a node's standbys and snapshots.
#[derive(Debug, Clone, Copy)]
struct Fate {
    /// Seconds until one is ready; `None`: never.
    boots_in: Option<i64>,
    /// Seconds until a snapshot is taken, and whether it is then; `None`: never.
    saves_in: Option<(i64, bool)>,
    /// Whether clones are given up.
    refuses_clones: bool,
    /// Whether the scheduler takes what is to go there to the first node instead.
    is_full: bool,
}

fn fate() -> impl Strategy<Value = Fate> {
    let saves = prop_oneof![
        3 => (1_i64..20, Just(true)).prop_map(Some),
        1 => (1_i64..20, Just(false)).prop_map(Some),
        1 => Just(None),
    ];
    (
        prop_oneof![4 => (1_i64..40).prop_map(Some), 1 => Just(None)],
        saves,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(boots_in, saves_in, refuses_clones, is_full)| Fate {
            boots_in,
            saves_in,
            refuses_clones,
            is_full,
        })
}

proptest! {
    /// Whatever fails: a pool has all its standbys a little after the bound, each node gets one seed at a time while there is
    /// hope, nobody is a clone of what is not ready, and there is one golden snapshot for each node.
    #[test]
    fn a_pool_is_filled_whatever_becomes_of_its_golden_snapshots(
        fates in prop::collection::vec(fate(), 1..4),
        wanted in 1_i32..12,
    ) {
        let names: Vec<String> = (0..fates.len()).map(|at| at.to_string()).collect();
        let fate_of = |node: &str| fates[node.parse::<usize>().unwrap()];
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut observed = look(golden_pool(wanted), vec![], &all);
        let mut count = 0;
        for second in 0..75 {
            let now = later(now(), second);
            let golden_before: BTreeSet<String> = observed
                .goldens
                .iter()
                .filter(|golden| crate::snapshot::is_ready(golden))
                .map(|golden| name_of(golden))
                .collect();
            let next = at(&observed, now);
            observed.attempts = next.attempts.clone();
            for step in &next.steps {
                match step {
                    Step::CreateGolden(golden) => {
                        let mut golden = (**golden).clone();
                        golden.metadata.uid = Some(format!("golden-{second}"));
                        golden.metadata.creation_timestamp = Some(Time(now));
                        prop_assert!(observed.goldens.iter().all(|known| name_of(known) != name_of(&golden)));
                        observed.goldens.push(Arc::new(golden));
                    }
                    Step::DeleteGolden { name, .. } => observed.goldens.retain(|golden| name_of(golden) != *name),
                    _ => {}
                }
            }
            prop_assert_eq!(next.places.len(), next.make);
            for place in &next.places {
                count += 1;
                let mut made = build::placed(next.standby.as_ref().unwrap(), place);
                let name = format!("s{count}");
                made.metadata.uid = Some(format!("{name}-uid"));
                made.metadata.name = Some(name);
                made.metadata.creation_timestamp = Some(Time(now));
                if let Some(golden) = &place.golden {
                    let known = observed.goldens.iter().find(|known| name_of(known) == *golden);
                    prop_assert!(known.is_some_and(|known| crate::snapshot::is_ready(known)));
                }
                observed.members.push(Arc::new(made));
            }
            let mut booting: BTreeMap<String, usize> = BTreeMap::new();
            for member in &mut observed.members {
                let member = Arc::make_mut(member);
                let made = member.metadata.creation_timestamp.as_ref().unwrap().0;
                let age = now.duration_since(made).as_secs();
                let told = member.metadata.annotations.clone().unwrap();
                let aim = &told[annotations::PREFERRED_NODE];
                let golden = told.get(annotations::GOLDEN);
                let fate = fate_of(aim);
                let node = if fate.is_full { "0" } else { aim };
                let status = member.status.get_or_insert_default();
                let gives_up = golden.is_some() && (fate.refuses_clones || fate.is_full);
                if age >= 1 {
                    status.node_name = Some(node.to_owned());
                    if gives_up && status.conditions.is_empty() {
                        status.conditions.push(condition(RESTORED, false, "ColdStart", now));
                    }
                }
                let boots = golden.is_none() || gives_up;
                let is_ready = fate_of(node).boots_in.is_some_and(|boots_in| age >= if boots { boots_in } else { 1 });
                let said = status.conditions.iter().any(|condition| condition.type_ == "Ready");
                if is_ready && !said {
                    status.conditions.push(condition("Ready", true, "DependenciesReady", now));
                }
                if boots && !is_ready && !fate.is_full {
                    *booting.entry(aim.clone()).or_default() += 1;
                }
            }
            for golden in &mut observed.goldens {
                let source = golden.spec.sandbox_name.clone();
                let member = observed.members.iter().find(|member| member.metadata.name.as_ref() == Some(&source));
                let node = member.unwrap().status.clone().unwrap().node_name.unwrap();
                let made = golden.metadata.creation_timestamp.as_ref().unwrap().0;
                let age = now.duration_since(made).as_secs();
                if golden.status.is_none()
                    && let Some((seconds, taken)) = fate_of(&node).saves_in
                    && age >= seconds
                {
                    let known = (**golden).clone();
                    *golden = Arc::new(if taken { ready(known, &node) } else { failed(known) });
                }
            }
            prop_assert!(observed.members.len() <= usize::try_from(wanted).unwrap());
            // What one node refuses is no reason for the others to boot.
            let is_sound = |node: &str| {
                let fate = fate_of(node);
                !fate.refuses_clones && !fate.is_full && !fates[0].is_full
            };
            for place in &next.places {
                let node = place.node.as_deref().unwrap();
                let of_node = observed.goldens.iter().find(|golden| {
                    golden.status.as_ref().and_then(|status| status.node_name.as_deref()) == Some(node)
                });
                let has_golden = of_node.is_some_and(|golden| golden_before.contains(&name_of(golden)));
                prop_assert!(!has_golden || !is_sound(node) || place.golden.is_some(), "{place:?}");
            }
            let given_up: BTreeSet<&str> = names
                .iter()
                .map(String::as_str)
                .filter(|node| fate_of(node).refuses_clones || fate_of(node).is_full)
                .collect();
            let fails = fates.iter().any(|fate| !matches!(fate.saves_in, Some((_, true))));
            if second < 60 && given_up.is_empty() && !fails {
                prop_assert!(booting.values().all(|seeds| *seeds <= 1), "{booting:?} after {second} s");
            }
        }
        prop_assert_eq!(observed.members.len(), usize::try_from(wanted).unwrap());
        let names: BTreeSet<String> = observed.goldens.iter().map(|golden| name_of(golden)).collect();
        prop_assert_eq!(names.len(), observed.goldens.len());
    }
}
