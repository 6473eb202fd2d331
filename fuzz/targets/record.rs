//! A pod's record, read from its file as the agent and the wrapper do.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use dormouse_sentry::{Record, RunDir, SandboxId, Switch};
use libfuzzer_sys::fuzz_target;

struct Place {
    switch: Switch,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let run = RunDir::new(dir.path()).expect("an absolute path");
    run.prepare().expect("the run directory");
    let id: SandboxId = "s1".parse().expect("an id");
    let file = run.record_path(&id);
    fs::create_dir_all(file.parent().expect("a parent")).expect("the pod's directory");
    Place {
        switch: Switch::open(&run, &id),
        file,
        _dir: dir,
    }
});

fuzz_target!(|data: &[u8]| {
    let place = &*PLACE;
    fs::write(&place.file, data).expect("a file in memory");
    if let Ok(record) = place.switch.record() {
        let text = serde_json::to_string(&record).expect("a record is JSON");
        let again: Record = serde_json::from_str(&text).expect("what was written is read");
        assert_eq!(serde_json::to_string(&again).expect("a record is JSON"), text);
    }
});
