//! `cargo xtask image`: one small OCI image with all of Dormouse's programs.
//!
//! It holds the programs, which are static, and a list of what they were made of; no library, no shell, no package manager.
//! Two builds of one commit with one toolchain are the same byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::binaries::{self, IMAGE, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, images, sbom, ui};

/// The image's name unless it is given another: the chart's default.
pub(crate) const REPOSITORY: &str = "localhost/dormouse";

/// Who runs in it unless the pod says otherwise. Numbers, because kubelet can only check these (`runAsNonRoot`).
const USER: &str = "65532:65532";

/// Where the list of parts is in the image.
const SBOM: &str = "usr/share/dormouse/sbom.cdx.json";

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As shipped; without it a debug build with fail points, for tests.
    #[arg(long)]
    release: bool,
    /// The image's name, without tag or digest.
    #[arg(long, default_value = REPOSITORY, value_name = "NAME")]
    repository: String,
}

/// An image that was made.
#[derive(Debug)]
pub(crate) struct Image {
    /// An OCI archive that `ctr -n k8s.io images import` and `crane push` take.
    pub(crate) file: PathBuf,
    /// Its parts as CycloneDX JSON.
    sbom: PathBuf,
    /// Its name with tag.
    name: String,
    /// The manifest's digest, with `sha256:`.
    digest: String,
}

/// Builds the image and says what it is called.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    prereq::ensure(&[Group::Rust])?;
    let profile = if args.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let binaries = binaries::build_image(&paths, profile)?;
    let image = build(&paths, &binaries.dir, profile, &args.repository)?;
    println!("image   {}", image.name);
    println!("digest  {}", image.digest);
    println!("file    {}", image.file.display());
    println!("parts   {}", image.sbom.display());
    println!("\nctr -n k8s.io images import {}", image.file.display());
    println!(
        "helm install dormouse daemonset/chart/dormouse --set image.repository={},image.digest={}",
        args.repository, image.digest
    );
    Ok(())
}

/// Makes the image of programs that are built.
pub(crate) fn build(paths: &Paths, bin: &Path, profile: Profile, repository: &str) -> Result<Image> {
    let dir = paths.target.join("image");
    let work = dir.join("work");
    let _ = fs::remove_dir_all(&work);
    let root = work.join("root");
    let version = version(paths)?;
    ui::step("image", || {
        fill(&root, bin, profile)?;
        let parts = sbom::cyclone_dx(paths)?;
        let sbom = dir.join("sbom.cdx.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&parts)?);
        put(&root, SBOM, text.as_bytes())?;
        fs::write(&sbom, &text).with_context(|| format!("write {}", sbom.display()))?;
        let name = format!("{repository}:{version}");
        let digest = layout(&work, &root, profile, repository, &name, &version)?;
        let file = dir.join("dormouse.tar");
        let partial = dir.join(".dormouse.tar.partial");
        tar(&work.join("layout"), &partial)?;
        fs::rename(&partial, &file).with_context(|| format!("put {} in place", file.display()))?;
        // For whoever installs it: the tests, and scripts.
        let digest_file = dir.join("dormouse.digest");
        fs::write(&digest_file, &digest).with_context(|| format!("write {}", digest_file.display()))?;
        fs::remove_dir_all(&work).context("remove the image's work directory")?;
        Ok(Image {
            file,
            sbom,
            name,
            digest,
        })
    })
}

fn version(paths: &Paths) -> Result<String> {
    let manifest = paths.root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("read {}", manifest.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .context("Cargo.toml names no version of the workspace")
}

/// Puts everything that the image holds below `root`, but for the list of parts.
fn fill(root: &Path, bin: &Path, profile: Profile) -> Result<()> {
    for program in IMAGE.map(|program| program.name) {
        let from = bin.join(program);
        ensure!(
            is_static(&from)?,
            "{} is not static, and there are no libraries in the image",
            from.display()
        );
        install(root, &from, &format!("bin/{program}"), profile)?;
    }
    put(
        root,
        "etc/passwd",
        b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    )?;
    put(root, "etc/group", b"root:x:0:\nnonroot:x:65532:\n")
}

/// Whether a program needs no loader.
fn is_static(program: &Path) -> Result<bool> {
    let headers = exec::capture(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(program)
            .env("LC_ALL", "C"),
    )?;
    Ok(!headers
        .lines()
        .any(|line| line.trim_start().starts_with("INTERP")))
}

/// Copies a program without what only a debugger reads.
fn install(root: &Path, from: &Path, inside: &str, profile: Profile) -> Result<()> {
    let to = root.join(inside);
    fs::create_dir_all(to.parent().context("a file without a directory")?)?;
    fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
    if profile == Profile::Dev {
        exec::capture(Command::new("strip").arg("--strip-debug").arg(&to))?;
    }
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn put(root: &Path, inside: &str, data: &[u8]) -> Result<()> {
    let path = root.join(inside);
    fs::create_dir_all(path.parent().context("a file without a directory")?)?;
    fs::write(&path, data).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// Writes the OCI layout, and returns the manifest's digest.
fn layout(
    work: &Path,
    root: &Path,
    profile: Profile,
    repository: &str,
    name: &str,
    version: &str,
) -> Result<String> {
    let layer = work.join("layer.tar");
    tar(root, &layer)?;
    let diff_id = sha256(&layer)?;
    let (layer, kind) = match profile {
        // It goes no further than to this machine.
        Profile::Dev => (layer, "tar"),
        Profile::Release => {
            exec::capture(Command::new("gzip").arg("--no-name").arg(&layer))?;
            (work.join("layer.tar.gz"), "tar+gzip")
        }
    };
    let layout = work.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    let layer_digest = sha256(&layer)?;
    let layer_size = fs::metadata(&layer)?.len();
    fs::rename(&layer, blobs.join(&layer_digest)).context("put the layer in place")?;
    let blob = |value: &Value| -> Result<(String, usize)> {
        let text = serde_json::to_vec(value)?;
        let digest = hex(&Sha256::digest(&text));
        fs::write(blobs.join(&digest), &text).with_context(|| format!("write blob {digest}"))?;
        Ok((digest, text.len()))
    };
    let labels: BTreeMap<&str, &str> = BTreeMap::from([
        ("org.opencontainers.image.title", "Dormouse"),
        ("org.opencontainers.image.version", version),
        ("org.opencontainers.image.licenses", "Apache-2.0"),
    ]);
    let (os, architecture) = images::platform()?
        .split_once('/')
        .map(|(os, architecture)| (os.to_owned(), architecture.to_owned()))
        .context("a platform without a slash")?;
    let (config, config_size) = blob(&json!({
        "architecture": architecture, "os": os,
        "config": {
            "User": USER, "Env": ["PATH=/bin"], "Cmd": ["/bin/dormouse", "--help"], "WorkingDir": "/", "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    }))?;
    let (manifest, manifest_size) = blob(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{config}"), "size": config_size,
        },
        "layers": [{
            "mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"),
            "digest": format!("sha256:{layer_digest}"), "size": layer_size,
        }],
        "annotations": labels,
    }))?;
    let digest = format!("sha256:{manifest}");
    // Under both names: with its tag for people, and by its digest, which is what the chart's pods name.
    let names = [
        (name.to_owned(), version),
        (format!("{repository}@{digest}"), version),
    ];
    let manifests: Vec<Value> = names
        .iter()
        .map(|(full, tag)| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": manifest_size,
                "platform": {"architecture": architecture, "os": os},
                "annotations": {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": tag},
            })
        })
        .collect();
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?).context("write index.json")?;
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).context("write oci-layout")?;
    Ok(digest)
}

/// Everything below `from`, in an order and with times and owners that are always the same.
fn tar(from: &Path, to: &Path) -> Result<()> {
    exec::capture(
        Command::new("tar")
            .args([
                "--format=ustar",
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mode=go-w",
                "-cf",
            ])
            .arg(to)
            .arg("-C")
            .arg(from)
            .arg("."),
    )
    .map(drop)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
