//! A bundle's configuration and the annotations in it, which a pod chooses.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use dormouse_runsc::annotations::{Bundle, is_allowed};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

fuzz_target!(|data: &[u8]| {
    let file = DIR.path().join("config.json");
    fs::write(&file, data).expect("a file in memory");
    let Ok(mut bundle) = Bundle::read(DIR.path()) else {
        return;
    };
    let Ok(dropped) = bundle.filter(&[]) else { return };
    let text = fs::read(&file).expect("the file");
    if dropped.is_empty() {
        assert_eq!(text, data, "nothing to do, nothing touched");
    }
    let mut again = Bundle::read(DIR.path()).expect("what was written is read");
    assert_eq!(again.annotations, bundle.annotations);
    assert_eq!(
        again.filter(&[]).expect("once more"),
        Vec::<String>::new(),
        "one pass drops everything"
    );
    // As a plain parser sees it.
    if let Ok(Value::Object(all)) = serde_json::from_slice(&text)
        && let Some(Value::Object(annotations)) = all.get("annotations")
    {
        for key in annotations.keys() {
            assert!(
                is_allowed(key, &[]) || key == "dev.gvisor.spec.cgroup-parent",
                "{key} got through"
            );
        }
    }
});
