//! What a pod's cgroup has used.

use std::path::Path;

use super::freezer::read;
use super::{CgroupError, CgroupVersion, PodCgroup};

/// A memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// None.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

/// Memory of a pod's cgroup and the levels below, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupMemory {
    /// In RAM.
    pub current: u64,
    /// In swap; `None` where the kernel does not account it.
    pub swap: Option<u64>,
    /// The limit for RAM.
    pub limit: MemoryLimit,
}

/// v1 writes "no limit" as the largest number of pages.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

impl PodCgroup {
    /// What the pod has in memory and swap.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn memory(&self) -> Result<CgroupMemory, CgroupError> {
        let dir = &self.memory;
        match self.version {
            CgroupVersion::V1 => {
                let limit = number(&dir.join("memory.limit_in_bytes"))?;
                let stat = dir.join("memory.stat");
                Ok(CgroupMemory {
                    current: number(&dir.join("memory.usage_in_bytes"))?,
                    swap: read(&stat)?
                        .lines()
                        .find_map(|l| l.strip_prefix("total_swap ")?.parse().ok()),
                    limit: if limit >= V1_UNLIMITED {
                        MemoryLimit::Unlimited
                    } else {
                        MemoryLimit::Bytes(limit)
                    },
                })
            }
            CgroupVersion::V2 => {
                let path = dir.join("memory.max");
                let limit = match read(&path)?.trim_end() {
                    "max" => MemoryLimit::Unlimited,
                    n => MemoryLimit::Bytes(n.parse().map_err(|_| CgroupError::Strange {
                        path,
                        what: "memory limit",
                    })?),
                };
                let swap = match number(&dir.join("memory.swap.current")) {
                    Err(CgroupError::Gone { .. }) => None,
                    other => Some(other?),
                };
                Ok(CgroupMemory {
                    current: number(&dir.join("memory.current"))?,
                    swap,
                    limit,
                })
            }
        }
    }

    /// CPU time that the sentry's cgroup has used, in ns, read as runsc reads it; `None` where the kernel
    /// does not account it.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn cpu_ns(&self) -> Result<Option<u64>, CgroupError> {
        let Some(dir) = &self.cpu else { return Ok(None) };
        match self.version {
            CgroupVersion::V1 => number(&dir.join("cpuacct.usage")).map(Some),
            CgroupVersion::V2 => {
                let stat = read(&dir.join("cpu.stat"))?;
                let usec: Option<u64> = stat
                    .lines()
                    .find_map(|l| l.strip_prefix("usage_usec ")?.parse().ok());
                Ok(usec.map(|n| n.saturating_mul(1000)))
            }
        }
    }
}

fn number(path: &Path) -> Result<u64, CgroupError> {
    read(path)?.trim_end().parse().map_err(|_| CgroupError::Strange {
        path: path.to_owned(),
        what: "number",
    })
}
