//! Where it was measured.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use dormouse_testkit::host::command;
use dormouse_testkit::{Built, memory};
use procfs::{CpuInfo, Current, LoadAverage, Meminfo};
use serde::Serialize;

use crate::plan::Plan;
use crate::progress::say;
use crate::samples::mib;

/// The machine and what runs on it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) at: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: f64,
    /// Load average over one minute at the start.
    pub(crate) load: f32,
    pub(crate) commit: String,
    pub(crate) runsc: String,
    pub(crate) containerd: String,
    pub(crate) foreign_swap: Vec<String>,
    /// RAM for the largest fleet is there.
    #[serde(skip)]
    pub(crate) roomy: bool,
}

impl Machine {
    pub(crate) fn look(plan: &Plan) -> Result<Self> {
        let built = Built::find()?;
        let uname = nix::sys::utsname::uname().context("uname")?;
        let cpus = CpuInfo::current().context("read /proc/cpuinfo")?;
        let memory = Meminfo::current().context("read /proc/meminfo")?;
        let available = memory.mem_available.unwrap_or(0);
        Ok(Self {
            at: jiff::Zoned::now()
                .with_time_zone(jiff::tz::TimeZone::UTC)
                .strftime("%Y-%m-%d %H:%M UTC")
                .to_string(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu: cpus.model_name(0).unwrap_or("unknown").to_owned(),
            cpus: cpus.num_cores(),
            memory_mib: mib(memory.mem_total).round(),
            load: LoadAverage::current().context("read /proc/loadavg")?.one,
            commit: commit(),
            runsc: first_line(&built.part("runsc")),
            containerd: first_line(&built.part("containerd")),
            foreign_swap: memory::swaps()?
                .iter()
                .map(|swap| swap.path.display().to_string())
                .collect(),
            // A gVisor pod with a Python guest of 64 MiB takes some 170 MiB awake.
            roomy: mib(available) > f64::from(plan.fleet) * 170.0 + 2048.0,
        })
    }

    /// Refuses a run whose figures would say nothing, warns of one that is noisy.
    pub(crate) fn complain(&self, whole: bool) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!("needs root: it runs pods, makes swap and reads other processes' memory figures");
        }
        if !self.foreign_swap.is_empty() {
            let swaps = self.foreign_swap.join(", ");
            if whole {
                bail!(
                    "swap is active already ({swaps}): rows on one kind of swap would be on that; swapoff first"
                );
            }
            say(format!(
                "warning: swap is active already ({swaps}); the kind of swap is not what the rows say"
            ));
        }
        if self.load > 1.0 {
            say(format!(
                "warning: load average {:.1}: other work on this machine makes the figures worse",
                self.load
            ));
        }
        if !self.roomy {
            say("warning: little free memory: the fleet may not fit");
        }
        Ok(())
    }

    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} on {} x {}, {:.0} MiB RAM, Linux {}, {}, {}; commit {}; load {:.1} at the start",
            self.at,
            self.cpus,
            self.cpu,
            self.memory_mib,
            self.kernel,
            self.containerd,
            self.runsc,
            self.commit,
            self.load
        )
    }
}

fn commit() -> String {
    let git = |args: &[&str]| command::capture(Command::new("git").args(args)).ok();
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".into();
    };
    // Only what is measured: results and notes may be on their way.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates"]).unwrap_or_default();
    let mark = if changed.trim().is_empty() {
        ""
    } else {
        " with changes"
    };
    format!("{}{mark}", head.trim())
}

fn first_line(binary: &Path) -> String {
    let name = binary
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let text = command::capture(Command::new(binary).arg("--version")).unwrap_or_default();
    // `containerd github.com/... v2.3.7 ...`, `runsc version release-...`
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with('v') && word.contains('.') || word.starts_with("release-"))
        .unwrap_or("of unknown version");
    format!("{name} {version}")
}
