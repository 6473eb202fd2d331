use dormouse_core::Reason;

use super::config::{MIB, SwapConfig};
use super::facts::Protection;
use super::manager::SwapManager;
use super::plan_test::{both, swap};
use super::record::RECORD_NAME;
use super::recording::RecordingEffects;
use super::take_down::TakeDownError;

struct Rig {
    node: RecordingEffects,
    directory: tempfile::TempDir,
    config: SwapConfig,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = both();
        // The name is looked at on the real file system before the record claims it.
        config.file.as_mut().unwrap().directory = directory.path().join("swap");
        Self {
            node: RecordingEffects::new(),
            directory,
            config,
        }
    }

    fn agent(&self) -> SwapManager {
        SwapManager::with_effects(
            self.config.clone(),
            self.directory.path(),
            Box::new(self.node.clone()),
        )
        .unwrap()
    }

    fn assert_whole(&self, why: &str) {
        let node = self.node.0.lock().unwrap();
        let own = node
            .swaps
            .iter()
            .filter(|s| s.line.path.to_str() != Some("/dev/foreign"))
            .count();
        assert_eq!(
            (own, node.zram.len(), node.files.len(), node.mappings.len()),
            (2, 1, 1, 1),
            "{why}: {node:?}"
        );
    }

    fn assert_nothing_left(&self, why: &str) {
        let node = self.node.0.lock().unwrap();
        assert_eq!(
            (
                node.swaps.len(),
                node.zram.len(),
                node.files.len(),
                node.mappings.len()
            ),
            (0, 0, 0, 0),
            "{why}: {node:?}"
        );
        assert!(!self.directory.path().join(RECORD_NAME).exists(), "{why}");
    }
}

#[test]
fn up_in_order_and_down_in_the_other() {
    let rig = Rig::new();
    let agent = rig.agent();
    let started = agent.start().unwrap();
    assert_eq!(started.brought.active.len(), 2);
    let file = rig.config.file.as_ref().unwrap().directory.join("dormouse.swap");
    let file = file.display();
    assert_eq!(
        rig.node.0.lock().unwrap().log,
        vec![
            "zram 7 take".to_owned(),
            "zram 7 size".to_owned(),
            "mkswap /dev/zram7".to_owned(),
            "swapon /dev/zram7 32000".to_owned(),
            format!("file {file} make"),
            "crypt dormouse-swap open".to_owned(),
            "mkswap /dev/mapper/dormouse-swap".to_owned(),
            "swapon /dev/mapper/dormouse-swap 100".to_owned(),
        ]
    );
    rig.assert_whole("after the start");
    // A restarted agent does nothing at all.
    rig.node.0.lock().unwrap().log.clear();
    let started = rig.agent().start().unwrap();
    assert_eq!(started.brought.active.len(), 2);
    assert!(rig.node.0.lock().unwrap().log.is_empty());
    let agent = rig.agent();
    agent.start().unwrap();
    let down = agent.take_down().unwrap();
    assert_eq!(down.parts.len(), 2);
    assert_eq!(
        rig.node.0.lock().unwrap().log,
        vec![
            "swapoff /dev/mapper/dormouse-swap".to_owned(),
            "crypt dormouse-swap close".to_owned(),
            format!("file {file} remove"),
            "swapoff /dev/zram7".to_owned(),
            "zram 7 drop".to_owned(),
        ]
    );
    rig.assert_nothing_left("after the take-down");
    assert_eq!(agent.take_down().unwrap().parts.len(), 0);
}

#[test]
fn a_failing_step_leaves_nothing_of_its_part() {
    for step in 0..8 {
        let rig = Rig::new();
        rig.node.0.lock().unwrap().fails_at = Some(step);
        let started = rig.agent().start().unwrap();
        assert_eq!(started.brought.failed.len(), 1, "step {step}");
        assert_eq!(started.brought.failed[0].reason(), Reason::SwapSetupFailed);
        assert_eq!(started.brought.active.len(), 1, "step {step}");
        let node = rig.node.0.lock().unwrap();
        assert_eq!(node.swaps.len(), 1);
        assert_eq!(node.zram.len() + node.files.len(), 1, "step {step}: {node:?}");
        drop(node);
        rig.agent().start().unwrap();
        rig.assert_whole(&format!("second start after a failure at {step}"));
    }
}

#[test]
fn death_at_any_step_is_mended_by_the_next_start() {
    // Death between taking a zram device and writing it down leaves an empty device, which occupies nothing;
    // here the take and the record are one step, so that case does not arise.
    for step in 0..9 {
        let rig = Rig::new();
        rig.node.0.lock().unwrap().dies_at = Some(step);
        rig.agent().start().unwrap();
        rig.node.0.lock().unwrap().dies_at = None;
        rig.agent().start().unwrap();
        rig.assert_whole(&format!("death at {step}"));
        rig.agent().take_down().unwrap();
        rig.assert_nothing_left(&format!("death at {step}"));
    }
    // The same on the way down.
    for step in 8..14 {
        let rig = Rig::new();
        let agent = rig.agent();
        agent.start().unwrap();
        rig.node.0.lock().unwrap().dies_at = Some(step);
        let died = agent.take_down().is_err();
        assert_eq!(died, step < 13);
        rig.node.0.lock().unwrap().dies_at = None;
        rig.agent().take_down().unwrap();
        rig.assert_nothing_left(&format!("death at {step}"));
    }
}

#[test]
fn after_a_reboot_the_file_is_made_anew() {
    let rig = Rig::new();
    rig.agent().start().unwrap();
    {
        let mut node = rig.node.0.lock().unwrap();
        node.boot = 2;
        node.swaps.clear();
        node.zram.clear();
        node.mappings.clear();
        node.log.clear();
        // Somebody else's now.
        node.zram.insert(7, 2048 * MIB);
    }
    rig.agent().start().unwrap();
    let node = rig.node.0.lock().unwrap();
    assert_eq!(node.zram.len(), 2, "{node:?}");
    assert!(node.log[0].ends_with("dormouse.swap remove"), "{:?}", node.log);
    assert_eq!(
        (node.files.len(), node.mappings.len(), node.swaps.len()),
        (1, 1, 2)
    );
}

#[test]
fn pages_that_do_not_fit_keep_the_swap_up() {
    let rig = Rig::new();
    let agent = rig.agent();
    agent.start().unwrap();
    {
        let mut node = rig.node.0.lock().unwrap();
        node.ram_available = 300 * MIB;
        node.swaps.iter_mut().for_each(|s| s.line.used = 30 * MIB);
        node.log.clear();
    }
    let err = agent.take_down().unwrap_err();
    assert_eq!(err.reason(), Reason::InsufficientMemory);
    let TakeDownError::DoesNotFit {
        used,
        available,
        reserve,
        ..
    } = &err
    else {
        panic!("{err}")
    };
    assert_eq!((*used, *available, *reserve), (60 * MIB, 300 * MIB, 256 * MIB));
    assert!(err.to_string().contains("holds 60 MiB"), "{err}");
    assert!(rig.node.0.lock().unwrap().log.is_empty());
    rig.assert_whole("refused take-down");
    rig.node.0.lock().unwrap().ram_available = 400 * MIB;
    assert_eq!(agent.take_down().unwrap().returned, 60 * MIB);
    rig.assert_nothing_left("take-down");
}

#[test]
fn foreign_swap_is_never_touched() {
    let mut rig = Rig::new();
    rig.config.beside_foreign = true;
    rig.node
        .0
        .lock()
        .unwrap()
        .swaps
        .push(swap("/dev/foreign", Protection::Encrypted));
    let agent = rig.agent();
    agent.start().unwrap();
    rig.assert_whole("beside foreign");
    agent.take_down().unwrap();
    let node = rig.node.0.lock().unwrap();
    assert_eq!(node.swaps.len(), 1);
    assert!(!node.log.iter().any(|l| l.contains("foreign")));
}

#[test]
fn an_unwanted_part_is_retired_only_if_it_fits() {
    let mut rig = Rig::new();
    rig.agent().start().unwrap();
    rig.config.zram = None;
    rig.node.0.lock().unwrap().swaps[0].line.used = 50 * MIB;
    rig.node.0.lock().unwrap().ram_available = 10 * MIB;
    let started = rig.agent().start().unwrap();
    assert_eq!(started.brought.not_retired.len(), 1);
    assert_eq!(
        started.brought.not_retired[0].reason(),
        Reason::InsufficientMemory
    );
    rig.assert_whole("not retired");
    rig.node.0.lock().unwrap().ram_available = 1000 * MIB;
    assert!(rig.agent().start().unwrap().brought.not_retired.is_empty());
    assert_eq!(rig.node.0.lock().unwrap().swaps.len(), 1);
    assert!(rig.node.0.lock().unwrap().zram.is_empty());
}

#[test]
fn a_foreign_file_of_our_name_is_left_alone() {
    let rig = Rig::new();
    let directory = &rig.config.file.as_ref().unwrap().directory;
    std::fs::create_dir(directory).unwrap();
    let file = directory.join("dormouse.swap");
    std::fs::write(&file, "somebody's").unwrap();
    let started = rig.agent().start().unwrap();
    assert_eq!(started.brought.failed.len(), 1);
    assert_eq!(started.brought.active.len(), 1);
    rig.agent().take_down().unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
}
