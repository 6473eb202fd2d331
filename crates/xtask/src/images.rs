//! Test images from Debian packages: pause, busybox and python, without a registry.
//!
//! Files come from `apt-get download` and `dpkg -x`, the layer from `tar` with fixed order, times and owners, and
//! the image from `crane`. crane's `mutate` works on registries only, so its own in-memory one serves it on
//! loopback for the moment.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{exec, prereq, stack, ui};

/// One image.
#[derive(Debug)]
struct Image {
    file: &'static str,
    /// The name that it has in containerd.
    name: &'static str,
    packages: &'static [&'static str],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
}

/// Debian's python3.11 with what `http.server`, `ssl`, `sqlite3`, `ctypes` and readline need.
const PYTHON: &[&str] = &[
    "busybox-static",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libexpat1",
    "zlib1g",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libncursesw6",
    "libtinfo6",
    "libreadline8",
    "libcrypt1",
    "libdb5.3",
    "libgcc-s1",
];

const IMAGES: &[Image] = &[
    Image {
        file: "pause.tar",
        name: "localhost/pause:1",
        packages: &["busybox-static"],
        // busybox' init would want an inittab; a shell that waits reaps its children and ends at once on TERM.
        entrypoint: &["/bin/busybox", "sh", "-c", PAUSE],
        command: &[],
    },
    Image {
        file: "busybox.tar",
        name: "localhost/busybox:1",
        packages: &["busybox-static"],
        entrypoint: &[],
        command: &["/bin/sh"],
    },
    Image {
        file: "python.tar",
        name: "localhost/python:3.11",
        packages: PYTHON,
        entrypoint: &[],
        command: &["/usr/bin/python3"],
    },
];

const PAUSE: &str = "trap 'exit 0' TERM INT; /bin/busybox sleep 2147483647 & while :; do wait $!; done";

/// Left out of every image: nothing in a test reads them, and they are most of the size.
const DROPPED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/python3.11/test",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/tkinter",
];

/// Raise it when the code below changes what is in an image.
const RECIPE: u32 = 1;

/// Builds the images that are missing and links them into the stack as `images`.
pub(crate) fn build(home: &Path, stack_dir: &Path) -> Result<()> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{RECIPE} {IMAGES:?} {DROPPED:?}"));
    let hash = stack::short_hex(&hasher.finalize());
    let dir = home.join("images").join(&hash);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let missing: Vec<&Image> = IMAGES
        .iter()
        .filter(|image| !dir.join(image.file).is_file())
        .collect();
    if !missing.is_empty() {
        let work = home.join("work/images");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(work.join("debs")).context("create the images' work directory")?;
        ui::step("Debian packages for the test images", || {
            download(&work.join("debs"), &missing)
        })?;
        let registry = Registry::start(&stack_dir.join("bin/crane"))?;
        for image in missing {
            ui::step(&format!("image {}", image.name), || {
                image.build(&work, &dir, &registry)
            })?;
        }
        fs::remove_dir_all(&work).context("remove the images' work directory")?;
    }
    let link = stack_dir.join("images");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(Path::new("../images").join(hash), &link)
        .context("link the images into the stack")
}

/// Fetches every package once; `apt-get download` needs no package to be installed and installs none.
fn download(debs: &Path, images: &[&Image]) -> Result<()> {
    let mut packages: Vec<&str> = images.iter().flat_map(|image| image.packages).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    let attempt = || {
        exec::capture(
            Command::new("apt-get")
                .current_dir(debs)
                .arg("download")
                .args(&packages),
        )
        .map(drop)
    };
    // A new machine has no package lists, an old one may have stale ones.
    attempt().or_else(|_| prereq::refresh_package_lists().and_then(|()| attempt()))
}

impl Image {
    fn build(&self, work: &Path, out: &Path, registry: &Registry) -> Result<()> {
        let root = work.join("root");
        let _ = fs::remove_dir_all(&root);
        for folder in [
            "bin", "etc", "proc", "sys", "dev", "root", "usr/bin", "var/tmp", "tmp",
        ] {
            fs::create_dir_all(root.join(folder))
                .with_context(|| format!("create /{folder} of {}", self.name))?;
        }
        for package in self.packages {
            exec::capture(
                Command::new("dpkg")
                    .arg("-x")
                    .arg(deb(&work.join("debs"), package)?)
                    .arg(&root),
            )?;
        }
        for path in DROPPED {
            let _ = fs::remove_dir_all(root.join(path));
        }
        link_applets(&root)?;
        if root.join("usr/bin/python3.11").is_file() {
            std::os::unix::fs::symlink("python3.11", root.join("usr/bin/python3")).context("link python3")?;
        }
        write(
            &root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )?;
        write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        write(&root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        exec::capture(
            Command::new("chmod")
                .args(["1777"])
                .arg(root.join("tmp"))
                .arg(root.join("var/tmp")),
        )?;

        let layer = work.join("layer.tar");
        exec::capture(
            Command::new("tar")
                .args([
                    "--sort=name",
                    "--mtime=@0",
                    "--owner=0",
                    "--group=0",
                    "--numeric-owner",
                    "-cf",
                ])
                .arg(&layer)
                .arg("-C")
                .arg(&root)
                .arg("."),
        )?;
        registry.assemble(self, &layer, &out.join(self.file))
    }
}

/// The downloaded file of a package: `<package>_<version>_<arch>.deb`.
fn deb(debs: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    for entry in fs::read_dir(debs).with_context(|| format!("read {}", debs.display()))? {
        let path = entry.context("read the downloaded packages")?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no file for {package} into {}", debs.display())
}

/// One symbolic link per busybox applet, in /bin.
fn link_applets(root: &Path) -> Result<()> {
    let listed = exec::capture(Command::new(root.join("bin/busybox")).arg("--list"))?;
    for applet in listed
        .lines()
        .filter(|name| *name != "busybox" && !name.contains('/'))
    {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", &link)
                .with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// crane's own registry, in memory and on loopback only, for as long as this value lives.
struct Registry {
    crane: PathBuf,
    server: Child,
    port: u16,
}

impl Registry {
    fn start(crane: &Path) -> Result<Self> {
        let mut server = Command::new(crane)
            .args(["registry", "serve", "--address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", crane.display()))?;
        let mut lines = BufReader::new(server.stderr.take().context("crane has no standard error")?).lines();
        // It picks a free port and says which before it accepts anything.
        let port = loop {
            let Some(line) = lines.next() else {
                let status = server.wait().context("wait for crane")?;
                bail!("`crane registry serve` ended early ({status})");
            };
            let line = line.context("read what crane says")?;
            if let Some(port) = line
                .rsplit_once("serving on port ")
                .and_then(|(_, port)| port.parse().ok())
            {
                break port;
            }
        };
        // It logs every request: somebody has to read that, or it blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            crane: crane.to_path_buf(),
            server,
            port,
        })
    }

    fn assemble(&self, image: &Image, layer: &Path, out: &Path) -> Result<()> {
        let bare = format!("127.0.0.1:{}/image:bare", self.port);
        exec::capture(
            Command::new(&self.crane)
                .args(["append", "--oci-empty-base", "--new_tag", &bare, "--new_layer"])
                .arg(layer),
        )?;
        let partial = out.with_extension("partial");
        let mut mutate = Command::new(&self.crane);
        mutate.args([
            "mutate",
            &bare,
            "--set-platform",
            &platform()?,
            "--tag",
            image.name,
            "--output",
        ]);
        mutate
            .arg(&partial)
            .args(["--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        for (flag, words) in [("--entrypoint", image.entrypoint), ("--cmd", image.command)] {
            for word in words {
                // The flags take comma-separated lists, in CSV quoting.
                mutate.arg(format!("{flag}=\"{}\"", word.replace('"', "\"\"")));
            }
        }
        exec::capture(&mut mutate)?;
        fs::rename(&partial, out).with_context(|| format!("put {} in place", out.display()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What this machine's images are for.
pub(crate) fn platform() -> Result<String> {
    Ok(match std::env::consts::ARCH {
        "x86_64" => "linux/amd64".to_owned(),
        "aarch64" => "linux/arm64".to_owned(),
        other => bail!("no test images for {other}: only x86_64 and aarch64 are known"),
    })
}
