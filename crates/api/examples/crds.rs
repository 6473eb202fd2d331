//! Writes the CustomResourceDefinitions to `crds/`, or compares them with what is there. Started by `cargo xtask crds`.
//!
//! An example, so that what writes YAML is no dependency of what runs in a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dormouse_api::crds::{self, Definition};

/// What `kubectl apply` can keep of an object in its annotation, in bytes.
const LARGEST: usize = 256 << 10;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments
        .next()
        .map(PathBuf::from)
        .context("usage: crds DIRECTORY [--check]")?;
    let check = match arguments.next().as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("{other} is not known; usage: crds DIRECTORY [--check]"),
    };
    let wanted = wanted()?;
    let found = found(&dir)?;
    if check {
        return compare(&wanted, &found);
    }
    for (path, text) in &wanted {
        let path = dir.join(path);
        let folder = path.parent().context("a definition without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{:>7} bytes  {}", text.len(), path.display());
    }
    for path in found.keys().filter(|path| !wanted.contains_key(*path)) {
        let path = dir.join(path);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        println!("removed        {}", path.display());
    }
    Ok(())
}

/// What is to be below `crds/`, by path.
fn wanted() -> Result<BTreeMap<String, String>> {
    crds::all()?
        .into_iter()
        .map(|definition| Ok((definition.path.clone(), text(&definition)?)))
        .collect()
}

fn text(definition: &Definition) -> Result<String> {
    let json = serde_json::to_string(&definition.object)
        .context("write JSON")?
        .len();
    if json >= LARGEST {
        bail!(
            "{} has {json} bytes as JSON; with {LARGEST} and more `kubectl apply` refuses it",
            definition.path
        );
    }
    let options = serde_saphyr::ser_options! {
        compact_list_indent: true,
        // Patterns and rules are compared and copied; they stay on one line.
        prefer_block_scalars: false,
    };
    let mut text = String::from("# Made by `cargo xtask crds`.\n");
    serde_saphyr::to_fmt_writer_with_options(&mut text, &definition.object, options)
        .with_context(|| format!("write {} as YAML", definition.path))?;
    Ok(text)
}

/// What is below `crds/`, by path.
fn found(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for folder in ["", "optional/"] {
        let Ok(entries) = fs::read_dir(dir.join(folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".yaml") {
                let text = fs::read_to_string(entry.path())
                    .with_context(|| format!("read {}", entry.path().display()))?;
                found.insert(format!("{folder}{name}"), text);
            }
        }
    }
    Ok(found)
}

fn compare(wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Result<()> {
    let mut differ: Vec<&str> = wanted
        .iter()
        .filter(|(path, text)| found.get(*path) != Some(text))
        .map(|(path, _)| path.as_str())
        .collect();
    differ.extend(
        found
            .keys()
            .filter(|path| !wanted.contains_key(*path))
            .map(String::as_str),
    );
    if !differ.is_empty() {
        bail!(
            "crds/ is not what crates/api makes of its types: {}; run `cargo xtask crds` and commit",
            differ.join(", ")
        );
    }
    println!(
        "{} definitions in crds/ are as crates/api makes them",
        wanted.len()
    );
    Ok(())
}
