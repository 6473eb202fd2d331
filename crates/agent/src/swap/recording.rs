//! Effects on a node that exists only in memory: it records what was done, can fail at any step, and can die.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::config::{MIB, SwapConfig};
use super::effects::{EffectError, GatherError, SwapEffects, TakenZram};
use super::facts::{ActiveSwap, Facts, Protection, SwapLine};
use super::plan_test::facts;
use super::record::SwapRecord;

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) log: Vec<String>,
    pub(super) zram: BTreeMap<u32, u64>,
    pub(super) files: BTreeSet<PathBuf>,
    pub(super) mappings: BTreeMap<String, PathBuf>,
    pub(super) swaps: Vec<ActiveSwap>,
    pub(super) ram_available: u64,
    pub(super) boot: u32,
    pub(super) steps: usize,
    /// From this step on, everything fails (the agent is dead).
    pub(super) dies_at: Option<usize>,
    /// This one step fails.
    pub(super) fails_at: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct RecordingEffects(pub(super) Arc<Mutex<Node>>);

impl RecordingEffects {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Node {
            ram_available: 6000 * MIB,
            boot: 1,
            ..Node::default()
        })))
    }

    fn step(&self, what: String, effect: impl FnOnce(&mut Node)) -> Result<(), EffectError> {
        let mut node = self.0.lock().unwrap();
        let now = node.steps;
        node.steps += 1;
        if node.dies_at.is_some_and(|n| now >= n) || node.fails_at == Some(now) {
            return Err(EffectError::Io {
                what: "test",
                path: what.into(),
                source: io::ErrorKind::Other.into(),
            });
        }
        node.log.push(what);
        effect(&mut node);
        Ok(())
    }
}

impl SwapEffects for RecordingEffects {
    fn gather(&self, _: &SwapConfig, record: Option<SwapRecord>) -> Result<Facts, GatherError> {
        let node = self.0.lock().unwrap();
        Ok(Facts {
            boot_id: format!("boot{}", node.boot),
            swaps: node.swaps.clone(),
            ram_available: node.ram_available,
            record,
            ..facts()
        })
    }

    fn load_module(&self, name: &'static str) -> Result<(), EffectError> {
        self.step(format!("module {name}"), |_| ())
    }

    fn zram_take(&self) -> Result<TakenZram, EffectError> {
        let index = (7..)
            .find(|i| !self.0.lock().unwrap().zram.contains_key(i))
            .unwrap();
        self.step(format!("zram {index} take"), |n| {
            n.zram.insert(index, 0);
        })?;
        Ok(TakenZram {
            index,
            hot_added: true,
        })
    }

    fn zram_size(&self, index: u32, _: &[&str], bytes: u64) -> Result<PathBuf, EffectError> {
        self.step(format!("zram {index} size"), |n| {
            n.zram.insert(index, bytes);
        })?;
        Ok(format!("/dev/zram{index}").into())
    }

    fn zram_drop(&self, taken: TakenZram, bytes: u64) -> Result<(), EffectError> {
        self.step(format!("zram {} drop", taken.index), |n| {
            if n.zram.get(&taken.index).is_some_and(|b| *b == bytes || *b == 0) {
                n.zram.remove(&taken.index);
            }
        })
    }

    fn file_make(&self, path: &Path, _: u64) -> Result<(), EffectError> {
        self.step(format!("file {} make", path.display()), |n| {
            assert!(n.files.insert(path.into()));
        })
    }

    fn file_remove(&self, path: &Path) -> Result<(), EffectError> {
        self.step(format!("file {} remove", path.display()), |n| {
            assert!(!n.mappings.values().any(|p| p == path), "still mapped");
            n.files.remove(path);
        })
    }

    fn crypt_open(&self, mapping: &str, file: &Path) -> Result<PathBuf, EffectError> {
        self.step(format!("crypt {mapping} open"), |n| {
            assert!(n.mappings.insert(mapping.into(), file.into()).is_none());
        })?;
        Ok(Path::new("/dev/mapper").join(mapping))
    }

    fn crypt_close(&self, mapping: &str, file: &Path) -> Result<(), EffectError> {
        self.step(format!("crypt {mapping} close"), |n| {
            if n.mappings.get(mapping).is_some_and(|f| f == file) {
                n.mappings.remove(mapping);
            }
        })
    }

    fn mkswap(&self, path: &Path) -> Result<(), EffectError> {
        self.step(format!("mkswap {}", path.display()), |_| ())
    }

    fn swapon(&self, path: &Path, priority: u16) -> Result<(), EffectError> {
        self.step(format!("swapon {} {priority}", path.display()), |n| {
            let text = path.to_string_lossy().into_owned();
            let zram = text.strip_prefix("/dev/zram").map(|i| i.parse().unwrap());
            let mapping = text.strip_prefix("/dev/mapper/").map(str::to_owned);
            n.swaps.push(ActiveSwap {
                line: SwapLine {
                    path: path.into(),
                    is_file: zram.is_none() && mapping.is_none(),
                    bytes: 64 * MIB,
                    used: 0,
                    priority: i32::from(priority),
                },
                protection: match (&zram, &mapping) {
                    (Some(_), _) => Protection::Ram,
                    (_, Some(_)) => Protection::Encrypted,
                    _ => Protection::Plain,
                },
                zram,
                mapping,
            });
        })
    }

    fn swapoff(&self, path: &Path) -> Result<(), EffectError> {
        self.step(format!("swapoff {}", path.display()), |n| {
            n.swaps.retain(|s| s.line.path != path);
        })
    }
}
