//! `cargo xtask fuzz`: every fuzz target for a bounded time, with the compiler that everything else is built with.
//!
//! libFuzzer wants coverage counters, which stable compilers can insert, too; what it takes a nightly compiler for
//! are the address sanitizer (the code below the targets is safe Rust) and `cargo fuzz` itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, ui};

/// What `cargo fuzz` gives the compiler, less the sanitizer.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// An input that keeps a target busy for longer has found something, in seconds.
const SLOWEST_INPUT: u32 = 10;

/// A target that needs more memory has found something, in MiB.
const MOST_MEMORY: u32 = 1024;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// How many targets run at once; as many as there are processors without it.
    #[arg(long)]
    jobs: Option<usize>,
    /// Which targets; all of them without any.
    targets: Vec<String>,
}

/// Where a target's things are.
struct Target {
    name: String,
    seeds: PathBuf,
    corpus: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

/// Builds the targets and runs them; one that finds something does not keep the others from running.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    prereq::ensure(&[Group::Rust, Group::Fuzz])?;
    let targets = chosen(&paths, &args.targets)?;
    let programs = ui::step("build the fuzz targets", || build(&paths, &targets))?;
    let jobs = args
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    println!(
        "  ... {} targets, {} s each, {jobs} at once",
        targets.len(),
        args.seconds
    );

    // Some targets read their input from files, and the directories that they make end with them uncleared.
    let files = tempfile::tempdir_in("/dev/shm").context("make a directory in memory")?;
    let left = Mutex::new(targets.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(target) = left.lock().ok().and_then(|mut left| left.next()) {
                    let began = Instant::now();
                    match fuzz(&paths, &programs, target, files.path(), args.seconds) {
                        Ok(said) => {
                            println!("  ok  {} ({}): {said}", target.name, ui::seconds(began.elapsed()));
                        }
                        Err(error) => {
                            println!("  FAILED  {}: {error:#}", target.name);
                            failed
                                .lock()
                                .map(|mut failed| failed.push(target.name.clone()))
                                .ok();
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    if !failed.is_empty() {
        bail!("fuzz targets found something: {}", failed.join(", "));
    }
    Ok(())
}

/// The targets that are asked for, or all that there are.
fn chosen(paths: &Paths, asked: &[String]) -> Result<Vec<Target>> {
    let dir = paths.root.join("fuzz");
    let mut all: Vec<String> = fs::read_dir(dir.join("targets"))
        .context("read fuzz/targets")?
        .filter_map(|entry| {
            Path::new(&entry.ok()?.file_name())
                .file_stem()?
                .to_str()
                .map(str::to_owned)
        })
        .collect();
    all.sort();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are: {}", all.join(" "));
    }
    let work = paths.target.join("fuzz");
    all.into_iter()
        .filter(|name| asked.is_empty() || asked.contains(name))
        .map(|name| {
            let target = Target {
                seeds: dir.join("seeds").join(&name),
                corpus: work.join("corpus").join(&name),
                artifacts: work.join("artifacts").join(&name),
                log: work.join("log").join(format!("{name}.log")),
                name,
            };
            if !target.seeds.is_dir() {
                bail!(
                    "fuzz target {} has no examples to start from in fuzz/seeds",
                    target.name
                );
            }
            Ok(target)
        })
        .collect()
}

/// Compiles the targets; the directory of the programs.
fn build(paths: &Paths, targets: &[Target]) -> Result<PathBuf> {
    let work = paths.target.join("fuzz");
    let host = exec::capture(Command::new("rustc").arg("-vV"))?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths.root.join("fuzz"))
        .env("CARGO_TARGET_DIR", &work)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .args(["build", "--features", "runtime"])
        // With a target named, even the host's own, the flags are kept from what runs while building.
        .args(["--target", host]);
    for target in targets {
        cargo.args(["--bin", &target.name]);
    }
    // Elsewhere it follows what the crates have come to depend on.
    let strict = std::env::var_os("CI").is_some();
    if strict {
        cargo.arg("--locked");
    }
    exec::capture(&mut cargo).with_context(|| match strict {
        true => "if it is about the lock file: `cargo xtask fuzz` brings fuzz/Cargo.lock up to date, to be committed",
        false => "the fuzz targets do not compile",
    })?;
    Ok(work.join(host).join("debug"))
}

/// Runs one target, and gives its own last words on how far it came.
fn fuzz(paths: &Paths, programs: &Path, target: &Target, files: &Path, seconds: u32) -> Result<String> {
    for dir in [
        Some(target.corpus.as_path()),
        Some(&target.artifacts),
        target.log.parent(),
    ] {
        let dir = dir.context("a log without a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let log = File::create(&target.log).with_context(|| format!("create {}", target.log.display()))?;
    let mut program = Command::new(programs.join(&target.name));
    program
        .current_dir(&paths.root)
        .env("TMPDIR", files)
        // New inputs go to the first directory.
        .args([&target.corpus, &target.seeds])
        .arg(format!("-artifact_prefix={}/", target.artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOWEST_INPUT}"))
        .arg(format!("-rss_limit_mb={MOST_MEMORY}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log);
    let status = program
        .status()
        .with_context(|| format!("start the fuzz target {}", target.name))?;
    let log = String::from_utf8_lossy(&fs::read(&target.log).context("read the log")?).into_owned();
    if !status.success() {
        let from = log.lines().count().saturating_sub(40);
        let end: Vec<&str> = log.lines().skip(from).collect();
        bail!(
            "{status}; what it found is in {}\n{}",
            target.artifacts.display(),
            end.join("\n")
        );
    }
    Ok(log.lines().last().unwrap_or("it said nothing").to_owned())
}
