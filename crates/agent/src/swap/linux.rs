//! The effects on a real node.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::config::SwapConfig;
use super::effects::{EffectError, GatherError, SwapEffects, TakenZram};
use super::facts::Facts;
use super::gather;
use super::record::SwapRecord;
use super::sys;
use super::tools::{self, Tool, weak_link};

/// Where device-mapper nodes are.
const MAPPER: &str = "/dev/mapper";
/// Key of AES-256 in XTS mode, in bytes.
const KEY_BYTES: usize = 64;
/// How many mappings are looked at when one is searched by name.
const MAX_MAPPINGS: usize = 4096;

/// The real node.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxEffects;

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EffectError {
    let path = path.to_path_buf();
    move |source| EffectError::Io { what, path, source }
}

fn write(path: &Path, text: &str) -> Result<(), EffectError> {
    fs::write(path, text).map_err(io_error("write", path))
}

fn zram_block(index: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/zram{index}"))
}

/// Size of a zram device in bytes; `None` if it is gone.
fn zram_bytes(index: u32) -> Option<u64> {
    fs::read_to_string(zram_block(index).join("disksize"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

impl SwapEffects for LinuxEffects {
    fn gather(&self, config: &SwapConfig, record: Option<SwapRecord>) -> Result<Facts, GatherError> {
        gather::gather(config, record)
    }

    fn load_module(&self, name: &'static str) -> Result<(), EffectError> {
        Ok(tools::run(Tool::Modprobe, &["-q", name], b"")?)
    }

    fn zram_take(&self) -> Result<TakenZram, EffectError> {
        let hot_add = Path::new(gather::ZRAM_HOT_ADD);
        if hot_add.exists() {
            // Reading makes a device and tells its number.
            let text = fs::read_to_string(hot_add).map_err(io_error("read", hot_add))?;
            let index = text
                .trim()
                .parse()
                .map_err(|_| io_error("understand", hot_add)(io::ErrorKind::InvalidData.into()))?;
            return Ok(TakenZram {
                index,
                hot_added: true,
            });
        }
        let idle = gather::zram().and_then(|z| z.idle.first().copied());
        idle.map(|index| TakenZram {
            index,
            hot_added: false,
        })
        .ok_or(EffectError::NoZramDevice)
    }

    fn zram_size(&self, index: u32, compressors: &[&str], bytes: u64) -> Result<PathBuf, EffectError> {
        let block = zram_block(index);
        let algorithm = block.join("comp_algorithm");
        // The kernel's default stays if it knows none of them: any compressor is better than no zram.
        let _chosen = compressors.iter().find(|c| fs::write(&algorithm, c).is_ok());
        // Fails with EBUSY on a device that somebody gave a size meanwhile.
        write(&block.join("disksize"), &bytes.to_string())?;
        device_node(&format!("zram{index}"))
    }

    fn zram_drop(&self, taken: TakenZram, bytes: u64) -> Result<(), EffectError> {
        match zram_bytes(taken.index) {
            None => return Ok(()),
            // 0: torn between taking it and giving it a size; still ours only if it was added for us.
            Some(0) if !taken.hot_added => return Ok(()),
            Some(0) => {}
            Some(now) if now != bytes => return Ok(()),
            Some(_) => write(&zram_block(taken.index).join("reset"), "1")?,
        }
        if taken.hot_added {
            write(Path::new(gather::ZRAM_HOT_REMOVE), &taken.index.to_string())?;
        }
        Ok(())
    }

    fn file_make(&self, path: &Path, bytes: u64) -> Result<(), EffectError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("make", directory)(e)),
            _ => {}
        }
        let real = directory.canonicalize().map_err(io_error("resolve", directory))?;
        if let Some(weak) = weak_link(&real) {
            return Err(EffectError::WeakDirectory {
                directory: directory.to_path_buf(),
                weak,
            });
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        let file = match opened {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(EffectError::NotOurs(path.to_path_buf()));
            }
            other => other.map_err(io_error("make", path))?,
        };
        let made = reserve(&file, path, bytes);
        if made.is_err() {
            // The first error is the one to tell; the record still names the file for the next start.
            let _ = fs::remove_file(path);
        }
        made
    }

    fn file_remove(&self, path: &Path) -> Result<(), EffectError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
            _ => Ok(()),
        }
    }

    fn crypt_open(&self, mapping: &str, file: &Path) -> Result<PathBuf, EffectError> {
        if find_mapping(mapping).is_some() {
            return Err(EffectError::NotOurs(Path::new(MAPPER).join(mapping)));
        }
        let random = Path::new("/dev/urandom");
        let mut key = [0_u8; KEY_BYTES];
        File::open(random)
            .and_then(|mut f| f.read_exact(&mut key))
            .map_err(io_error("read", random))?;
        // The key goes through a pipe: never on a command line, never on a disk.
        let args = [
            "open".as_ref(),
            "--batch-mode".as_ref(),
            "--type".as_ref(),
            "plain".as_ref(),
            "--cipher".as_ref(),
            "aes-xts-plain64".as_ref(),
            "--key-size".as_ref(),
            "512".as_ref(),
            "--key-file".as_ref(),
            "-".as_ref(),
            file.as_os_str(),
            mapping.as_ref(),
        ];
        let opened = tools::run(Tool::Cryptsetup, &args, &key);
        key.fill(0);
        std::hint::black_box(&key);
        opened?;
        if let Some(device) = find_mapping(mapping).and_then(|dm| loop_below(&dm)) {
            // Without it every page that goes out would first fill the page cache of the swap file. A file
            // system that cannot do it still swaps correctly, so this is no failure.
            let _ = File::open(device).and_then(|f| sys::loop_direct_io(&f));
        }
        Ok(Path::new(MAPPER).join(mapping))
    }

    fn crypt_close(&self, mapping: &str, file: &Path) -> Result<(), EffectError> {
        let Some(dm) = find_mapping(mapping) else {
            return Ok(());
        };
        let stands_on = loop_below(&dm)
            .and_then(|l| {
                l.file_name()
                    .map(|n| Path::new("/sys/block").join(n).join("loop/backing_file"))
            })
            .and_then(|p| fs::read_to_string(p).ok());
        let ours = stands_on.is_some_and(|s| {
            let text = s.trim_end_matches('\n');
            Path::new(text.strip_suffix(" (deleted)").unwrap_or(text)) == file
        });
        if !ours {
            return Ok(());
        }
        // The loop device frees itself with its last user.
        Ok(tools::run(Tool::Cryptsetup, &["close", mapping], b"")?)
    }

    fn mkswap(&self, path: &Path) -> Result<(), EffectError> {
        Ok(tools::run(Tool::Mkswap, &[path], b"")?)
    }

    fn swapon(&self, path: &Path, priority: u16) -> Result<(), EffectError> {
        sys::swapon(path, priority).map_err(io_error("turn on swap", path))
    }

    fn swapoff(&self, path: &Path) -> Result<(), EffectError> {
        sys::swapoff(path).map_err(io_error("turn off swap", path))
    }
}

fn reserve(file: &File, path: &Path, bytes: u64) -> Result<(), EffectError> {
    // Only btrfs knows the flag; every other file system refuses it and does not need it.
    let _ = sys::set_nocow(file);
    let length =
        i64::try_from(bytes).map_err(|_| io_error("size", path)(io::ErrorKind::InvalidInput.into()))?;
    nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, length).map_err(|e| {
        EffectError::NoFallocate {
            path: path.to_path_buf(),
            source: e.into(),
        }
    })?;
    file.sync_all().map_err(io_error("sync", path))
}

/// The node of a block device below `/dev`.
fn device_node(name: &str) -> Result<PathBuf, EffectError> {
    let path = Path::new("/dev").join(name);
    let meta = fs::symlink_metadata(&path).map_err(io_error("find", &path))?;
    if meta.file_type().is_block_device() {
        Ok(path)
    } else {
        Err(io_error("use", &path)(io::Error::other("it is no block device")))
    }
}

/// The kernel's name (`dm-0`) of a mapping.
fn find_mapping(mapping: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.take(MAX_MAPPINGS).flatten().find_map(|e| {
        let name = fs::read_to_string(e.path().join("dm/name")).ok()?;
        (name.trim_end() == mapping).then(|| e.file_name().to_string_lossy().into_owned())
    })
}

/// The loop device that a mapping stands on, below `/dev`.
fn loop_below(dm: &str) -> Option<PathBuf> {
    let slaves = fs::read_dir(Path::new("/sys/block").join(dm).join("slaves")).ok()?;
    slaves
        .flatten()
        .map(|e| e.file_name())
        .find(|n| n.to_string_lossy().starts_with("loop"))
        .map(|n| Path::new("/dev").join(n))
}
