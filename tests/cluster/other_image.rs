//! The image that was built, with another wrapper in it: what an upgrade brings, and a downgrade takes away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dormouse_testkit::Image;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Where the wrapper is in the image.
const WRAPPER: &str = "bin/dormouse-runsc";

/// Follows the program's own bytes, which is nothing to whoever executes it.
const MORE: &[u8] = b"\nanother wrapper\n";

/// An image whose programs are those of the one that was built, but for the bytes of the wrapper.
#[derive(Debug)]
pub(crate) struct OtherImage {
    /// Its digest, with `sha256:`.
    pub(crate) digest: String,
    /// The archive.
    pub(crate) file: PathBuf,
    /// What an agent of this image puts on its node.
    pub(crate) wrapper: Vec<u8>,
    _dir: TempDir,
}

impl OtherImage {
    /// Makes it of the one that was built.
    pub(crate) fn of(image: &Image) -> Result<Self> {
        let dir = tempfile::tempdir().context("a directory for another image")?;
        let (layout, root) = (dir.path().join("layout"), dir.path().join("root"));
        unpack(&image.file, &layout)?;
        let blobs = Blobs(layout.join("blobs/sha256"));
        let mut index = read_json(&layout.join("index.json"))?;
        let mut manifest = blobs.json(&index["manifests"][0])?;
        let mut config = blobs.json(&manifest["config"])?;
        let layers = manifest["layers"].as_array().map_or(0, Vec::len);
        let kind = manifest["layers"][0]["mediaType"].as_str().unwrap_or_default();
        ensure!(
            layers == 1 && kind.ends_with(".tar"),
            "not an image that was built for tests: {manifest}"
        );

        unpack(&blobs.path(&manifest["layers"][0])?, &root)?;
        let path = root.join(WRAPPER);
        let mut wrapper = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        wrapper.extend_from_slice(MORE);
        // In place: it keeps its mode.
        fs::write(&path, &wrapper).with_context(|| format!("write {}", path.display()))?;
        let layer = dir.path().join("layer.tar");
        pack(&root, &layer)?;
        let layer = fs::read(&layer).context("read the layer")?;

        let (layer, size) = blobs.put(&layer)?;
        manifest["layers"][0]["digest"] = json!(layer);
        manifest["layers"][0]["size"] = json!(size);
        config["rootfs"]["diff_ids"] = json!([layer]);
        let (config, size) = blobs.put(&serde_json::to_vec(&config)?)?;
        manifest["config"]["digest"] = json!(config);
        manifest["config"]["size"] = json!(size);
        let (digest, size) = blobs.put(&serde_json::to_vec(&manifest)?)?;
        let mut entry = index["manifests"][0].clone();
        entry["digest"] = json!(digest);
        entry["size"] = json!(size);
        entry["annotations"] = json!({
            "io.containerd.image.name": format!("{}@{digest}", image.repository),
            "org.opencontainers.image.ref.name": "another",
        });
        index["manifests"] = json!([entry]);
        fs::write(layout.join("index.json"), index.to_string()).context("write the index")?;

        let file = dir.path().join("another.tar");
        pack(&layout, &file)?;
        Ok(Self {
            digest,
            file,
            wrapper,
            _dir: dir,
        })
    }
}

/// The blobs of a layout.
struct Blobs(PathBuf);

impl Blobs {
    /// Where the blob is that a descriptor names.
    fn path(&self, descriptor: &Value) -> Result<PathBuf> {
        let digest = descriptor["digest"]
            .as_str()
            .and_then(|it| it.strip_prefix("sha256:"));
        Ok(self
            .0
            .join(digest.with_context(|| format!("no digest: {descriptor}"))?))
    }

    fn json(&self, descriptor: &Value) -> Result<Value> {
        read_json(&self.path(descriptor)?)
    }

    /// Its digest and its size.
    fn put(&self, data: &[u8]) -> Result<(String, usize)> {
        let mut name = String::new();
        for byte in Sha256::digest(data) {
            name.push_str(&format!("{byte:02x}"));
        }
        fs::write(self.0.join(&name), data).with_context(|| format!("write blob {name}"))?;
        Ok((format!("sha256:{name}"), data.len()))
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

fn unpack(archive: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
    tar(Command::new("tar")
        .args(["--numeric-owner", "-xpf"])
        .arg(archive)
        .arg("-C")
        .arg(into))
}

fn pack(from: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--owner=0", "--group=0", "-cf"]);
    tar(command.arg(archive).arg("-C").arg(from).arg("."))
}

fn tar(command: &mut Command) -> Result<()> {
    let output = command.output().context("start tar")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
