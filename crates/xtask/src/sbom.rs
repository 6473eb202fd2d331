//! What the programs were made of, as CycloneDX: the crates that the lock file pins, and the C library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::binaries::{IMAGE, host_triple};
use crate::exec;
use crate::paths::Paths;

/// What the compiler links into static programs beside crates: Debian's package of the C library.
fn c_library() -> Value {
    let package = exec::capture(Command::new("cc").arg("-print-file-name=libc.a"))
        .ok()
        .and_then(|path| std::fs::canonicalize(path.trim()).ok())
        .and_then(|path| package_of(&path));
    match package {
        Some((name, version)) => {
            let purl = format!("pkg:deb/debian/{name}@{version}");
            json!({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
        }
        None => json!({"type": "library", "bom-ref": "libc", "name": "libc"}),
    }
}

/// Which Debian package has put it there.
fn package_of(path: &std::path::Path) -> Option<(String, String)> {
    // With merged directories the package may know it by either name.
    let other = std::path::Path::new("/usr").join(path.strip_prefix("/").ok()?);
    let said = [path, other.as_path()]
        .into_iter()
        .find_map(|path| exec::capture(Command::new("dpkg-query").arg("--search").arg(path)).ok())?;
    let name = said.lines().next()?.split(": ").next()?.to_owned();
    let version = exec::capture(
        Command::new("dpkg-query")
            .args(["--show", "--showformat=${Version}"])
            .arg(&name),
    )
    .ok()?;
    let plain = name.split(':').next().unwrap_or(&name).to_owned();
    Some((plain, version))
}

/// The list. There is no time and no random number in it, so that it is the same for the same parts.
pub(crate) fn cyclone_dx(paths: &Paths) -> Result<Value> {
    // Not offline: it looks into parts of the workspace that are in no program, and that nothing has fetched yet on a new
    // machine.
    let triple = host_triple()?;
    let metadata = exec::capture(Command::new("cargo").current_dir(&paths.root).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &triple,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("`cargo metadata` wrote no JSON")?;
    let lock = paths.root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("read {}", lock.display()))?;
    let checksums = checksums(&lock);
    let mut components: Vec<Value> = crates(&metadata)?
        .iter()
        .map(|package| component(package, &checksums))
        .collect();
    components.push(c_library());
    components.sort_by_key(|component| {
        component
            .get("bom-ref")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    });
    components.dedup();
    let version = text(&metadata, "/packages/0/version");
    let version = packages(&metadata)?
        .values()
        .find(|package| text(package, "/name") == "dormouse-agent")
        .map_or(version, |package| text(package, "/version"));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "container", "bom-ref": "dormouse", "name": "dormouse", "version": version,
            "licenses": [{"expression": "Apache-2.0"}],
        }},
        "components": components,
    }))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn packages(metadata: &Value) -> Result<BTreeMap<&str, &Value>> {
    Ok(metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("`cargo metadata` names no packages")?
        .iter()
        .map(|package| (text(package, "/id"), package))
        .collect())
}

/// Every crate that is compiled into a program: what is reached from it by normal dependencies.
fn crates(metadata: &Value) -> Result<Vec<&Value>> {
    let packages = packages(metadata)?;
    let nodes: BTreeMap<&str, &Value> = metadata
        .pointer("/resolve/nodes")
        .and_then(Value::as_array)
        .context("`cargo metadata` resolved nothing")?
        .iter()
        .map(|node| (text(node, "/id"), node))
        .collect();
    let mut wanted: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| {
            IMAGE
                .iter()
                .any(|program| program.package == text(package, "/name"))
        })
        .map(|(id, _)| *id)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !seen.insert(id) {
            continue;
        }
        let dependencies = nodes
            .get(id)
            .and_then(|node| node.get("deps"))
            .and_then(Value::as_array);
        for dependency in dependencies.into_iter().flatten() {
            let kinds = dependency.get("dep_kinds").and_then(Value::as_array);
            let normal = kinds.is_some_and(|kinds| {
                kinds
                    .iter()
                    .any(|kind| kind.get("kind").is_none_or(Value::is_null))
            });
            if normal {
                wanted.push(text(dependency, "/pkg"));
            }
        }
    }
    Ok(seen.iter().filter_map(|id| packages.get(id).copied()).collect())
}

/// The checksums in a lock file, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            package.lines().find_map(|line| {
                let rest = line.strip_prefix(name)?.strip_prefix(" = \"")?;
                rest.strip_suffix('"').map(str::to_owned)
            })
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let (name, version) = (text(package, "/name"), text(package, "/version"));
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut made = Map::new();
    made.insert("type".to_owned(), json!("library"));
    made.insert("bom-ref".to_owned(), json!(purl));
    made.insert("name".to_owned(), json!(name));
    made.insert("version".to_owned(), json!(version));
    made.insert("purl".to_owned(), json!(purl));
    if let Some(license) = package.get("license").and_then(Value::as_str) {
        // Older crates write a slash for "or".
        let license = license.replace('/', " OR ");
        made.insert("licenses".to_owned(), json!([{"expression": license}]));
    }
    if let Some(checksum) = checksums.get(&(name.to_owned(), version.to_owned())) {
        made.insert(
            "hashes".to_owned(),
            json!([{"alg": "SHA-256", "content": checksum}]),
        );
    }
    Value::Object(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_compiled_in_is_listed() {
        let package =
            |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let needs = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("dormouse-agent"), package("used"), package("deep"), package("tested-with"), package("built-with"),
            ],
            "resolve": {"nodes": [
                {"id": "dormouse-agent", "deps": [
                    needs("used", Value::Null), needs("tested-with", json!("dev")), needs("built-with", json!("build")),
                ]},
                {"id": "used", "deps": [needs("deep", Value::Null), needs("dormouse-agent", Value::Null)]},
                {"id": "deep", "deps": []},
            ]},
        });
        let names: Vec<&str> = crates(&metadata)
            .unwrap()
            .into_iter()
            .map(|package| text(package, "/name"))
            .collect();
        assert_eq!(names, ["deep", "dormouse-agent", "used"]);
    }

    #[test]
    fn components_have_their_checksums() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nsource = \"s\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let checksums = checksums(lock);
        let package = json!({"name": "a", "version": "1.2.3", "license": "MIT/Apache-2.0"});
        let made = component(&package, &checksums);
        assert_eq!(text(&made, "/purl"), "pkg:cargo/a@1.2.3");
        assert_eq!(text(&made, "/hashes/0/content"), "abc");
        assert_eq!(text(&made, "/licenses/0/expression"), "MIT OR Apache-2.0");
        assert_eq!(checksums.len(), 1);
    }
}
