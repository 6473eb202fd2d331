//! Debian packages for the guest: named, downloaded, unpacked; never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::command::capture;

/// The package whose dependency is the current cloud kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What the guest has beside its kernel. Libraries are listed because nothing resolves dependencies here; the image
/// build checks that none is missing.
const PACKAGES: &[&str] = &[
    "busybox-static",
    // For binaries that were built on this host.
    "libc6",
    "libgcc-s1",
    // Swap.
    "util-linux",
    "mount",
    "cryptsetup-bin",
    "dmsetup",
    "libcryptsetup12",
    "libdevmapper1.02.1",
    "libpopt0",
    "libjson-c5",
    "libargon2-1",
    "libuuid1",
    "libblkid1",
    "libmount1",
    "libsmartcols1",
    "libssl3",
    "libudev1",
    "libselinux1",
    "libpcre2-8-0",
    "libtinfo6",
    "libcap-ng0",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libzstd1",
    "libcrypt1",
    "libpam0g",
    "libaudit1",
    // Network.
    "iproute2",
    "libbpf1",
    "libelf1",
    "zlib1g",
    "libmnl0",
    "libxtables12",
    "libbsd0",
    "libmd0",
    "libdb5.3",
    "libtirpc3",
    "libgssapi-krb5-2",
    "libkrb5-3",
    "libk5crypto3",
    "libkrb5support0",
    "libcom-err2",
    "libkeyutils1",
];

/// The exact packages that the archive offers now.
#[derive(Debug)]
pub(super) struct Selection {
    names: Vec<String>,
    /// One line per package with its file name and checksum: what the guest's identity is made of.
    pub(super) identity: String,
}

/// Asks apt for the current versions; refreshes its lists if it does not know the packages.
pub(super) fn select() -> Result<Selection> {
    ask().or_else(|_| {
        capture(Command::new("apt-get").arg("update")).context("refresh the package lists")?;
        ask()
    })
    .context("the guest is made of Debian packages: is this Debian (or a derivative with linux-image-cloud-amd64)?")
}

fn ask() -> Result<Selection> {
    let depends = capture(Command::new("apt-cache").args(["depends", "--important", KERNEL]))?;
    let kernel = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL} names no kernel"))?;
    let mut names: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    names.push(kernel.to_owned());
    let identity = capture(
        Command::new("apt-get")
            .args(["download", "--print-uris"])
            .args(&names),
    )?;
    Ok(Selection { names, identity })
}

impl Selection {
    /// Downloads the packages into `downloads` and unpacks them into `root`.
    pub(super) fn unpack(&self, downloads: &Path, root: &Path) -> Result<()> {
        fs::create_dir_all(downloads).with_context(|| format!("create {}", downloads.display()))?;
        // apt checks the archive's signature and each package's checksum.
        capture(
            Command::new("apt-get")
                .current_dir(downloads)
                .args(["download", "--quiet", "-o", "APT::Sandbox::User=root"])
                .args(&self.names),
        )
        .context("download the guest's packages")?;
        let mut unpacked = 0_usize;
        for entry in fs::read_dir(downloads).context("list the downloaded packages")? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                capture(Command::new("dpkg").arg("-x").arg(&package).arg(root))?;
                unpacked += 1;
            }
        }
        ensure!(
            unpacked == self.names.len(),
            "{unpacked} packages came, {} were asked for",
            self.names.len()
        );
        Ok(())
    }
}

/// The only entry of a directory whose name begins so.
pub(super) fn find(dir: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| super::file_name(path).starts_with(prefix))
        .with_context(|| format!("nothing in {} begins with {prefix}", dir.display()))
}
