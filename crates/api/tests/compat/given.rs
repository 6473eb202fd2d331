//! What is compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use dormouse_api::crds::{self, Definition};
use serde_json::Value;

/// The files below `tests/compat/upstream-crds`.
pub(crate) const UPSTREAM: [&str; 4] = [
    "agents.x-k8s.io_sandboxes.yaml",
    "extensions.agents.x-k8s.io_sandboxclaims.yaml",
    "extensions.agents.x-k8s.io_sandboxtemplates.yaml",
    "extensions.agents.x-k8s.io_sandboxwarmpools.yaml",
];

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A YAML file of the repository.
pub(crate) fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// agent-sandbox's definition.
pub(crate) fn upstream(file: &str) -> &'static Value {
    static READ: LazyLock<BTreeMap<&str, Value>> = LazyLock::new(|| {
        UPSTREAM
            .map(|file| (file, yaml(&format!("tests/compat/upstream-crds/{file}"))))
            .into()
    });
    &READ[file]
}

/// Our definitions.
pub(crate) fn all() -> &'static [Definition] {
    static MADE: LazyLock<Vec<Definition>> = LazyLock::new(|| crds::all().unwrap());
    &MADE
}

/// Our definition of the same kind.
pub(crate) fn ours(file: &str) -> &'static Value {
    let found = all().iter().find(|definition| definition.path == file);
    &found.unwrap_or_else(|| panic!("there is no {file}")).object
}

/// The schema of a definition's only version.
pub(crate) fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}
