//! The agent's swap manager on a kernel with device mapper.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_agent::swap::{
    FileConfig, Owner, Part, Protection, RECORD_NAME, SwapConfig, SwapManager, ZramConfig,
};
use dormouse_core::Reason;
use dormouse_testkit::host::command::capture;
use dormouse_testkit::vm::SCRATCH;

use super::pages::{MARKER, Pages};

const MIB: u64 = 1 << 20;

fn directory() -> PathBuf {
    Path::new(SCRATCH).join("dormouse-swap")
}

fn swap_file() -> PathBuf {
    directory().join("dormouse.swap")
}

fn both(zram_mib: u64, file_mib: u64) -> SwapConfig {
    SwapConfig {
        zram: Some(ZramConfig {
            percent_of_ram: 1,
            min_mib: zram_mib,
            max_mib: zram_mib,
            priority: 32000,
        }),
        file: Some(FileConfig {
            size_mib: file_mib,
            directory: directory(),
            priority: 100,
            keep_free_percent: 10,
        }),
        ..SwapConfig::default()
    }
}

fn manager(config: SwapConfig, state: &Path) -> SwapManager {
    fs::create_dir_all(state).unwrap();
    SwapManager::new(config, state).unwrap()
}

fn active() -> Vec<String> {
    let text = fs::read_to_string("/proc/swaps").unwrap();
    text.lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

fn run(program: &str, args: &[&str]) {
    println!(
        "{program} {}: {}",
        args.join(" "),
        capture(Command::new(program).args(args)).unwrap().trim()
    );
}

fn assert_nothing_left(state: &Path) {
    assert_eq!(active(), Vec::<String>::new());
    assert!(!swap_file().exists());
    assert!(!state.join(RECORD_NAME).exists());
    assert!(!Path::new("/dev/mapper/dormouse-swap").exists());
    let loops = capture(Command::new("losetup").arg("-a")).unwrap();
    assert_eq!(loops.trim(), "");
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        if let Ok(size) = fs::read_to_string(entry.path().join("disksize")) {
            assert_eq!(size.trim(), "0", "{:?}", entry.path());
        }
    }
}

/// No swap, plain swap without leave, a kubelet that forbids, and a foreign encrypted one.
pub(super) fn refusals() {
    let state = Path::new("/var/lib/dormouse-refusals");
    let none = manager(SwapConfig::default(), state);
    none.start().unwrap();
    assert_eq!(none.state().unwrap().usable, Err(Reason::NoSwap));

    let kubelet = PathBuf::from("/var/lib/kubelet.yaml");
    fs::write(
        &kubelet,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
    )
    .unwrap();
    let forbidden = manager(
        SwapConfig {
            kubelet_config: Some(kubelet.clone()),
            ..both(64, 64)
        },
        state,
    );
    forbidden.start().unwrap();
    assert_eq!(forbidden.state().unwrap().usable, Err(Reason::KubeletForbidsSwap));
    assert_eq!(active(), Vec::<String>::new());

    let plain = "/var/lib/plain.swap";
    run("fallocate", &["-l", "64M", plain]);
    run("chmod", &["0600", plain]);
    run("mkswap", &[plain]);
    run("swapon", &[plain]);
    let refused = manager(both(64, 64), state);
    refused.start().unwrap();
    let seen = refused.state().unwrap();
    assert_eq!(seen.usable, Err(Reason::PlainSwapRefused));
    assert_eq!(
        (seen.devices[0].owner, seen.devices[0].protection),
        (Owner::Foreign, Protection::Plain)
    );
    assert_eq!(active(), vec![plain.to_owned()]);
    let allowed = manager(
        SwapConfig {
            allow_plain_swap: true,
            ..SwapConfig::default()
        },
        state,
    );
    allowed.start().unwrap();
    assert_eq!(allowed.state().unwrap().usable, Ok(()));
    assert_eq!(allowed.take_down().unwrap().parts, Vec::<Part>::new());
    assert_eq!(active(), vec![plain.to_owned()], "foreign swap was touched");
    run("swapoff", &[plain]);

    // The same file, encrypted by somebody else, is good without leave.
    run("modprobe", &["dm_crypt"]);
    let open = format!(
        "head -c 64 /dev/urandom | cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --key-file - {plain} theirs"
    );
    run("sh", &["-c", &open]);
    run("mkswap", &["/dev/mapper/theirs"]);
    run("swapon", &["/dev/mapper/theirs"]);
    let found = manager(both(64, 64), state);
    found.start().unwrap();
    let seen = found.state().unwrap();
    assert_eq!(seen.usable, Ok(()));
    assert_eq!(seen.devices.len(), 1);
    assert_eq!(
        (seen.devices[0].owner, seen.devices[0].protection),
        (Owner::Foreign, Protection::Encrypted)
    );
    run("swapoff", &["/dev/mapper/theirs"]);
    run("cryptsetup", &["close", "theirs"]);
    fs::remove_file(plain).unwrap();
    assert_nothing_left(state);
}

/// The whole life: brought up, filled past zram into the file, nothing readable on the disk, refused to go while it
/// would not fit, gone without a trace.
pub(super) fn encrypted() {
    let state = Path::new("/var/lib/dormouse-encrypted");
    let swap = manager(both(32, 192), state);
    let started = swap.start().unwrap();
    println!("{:?}", started.brought);
    assert_eq!(started.brought.active.len(), 2);
    let now = swap.state().unwrap();
    assert_eq!(now.usable, Ok(()));
    let seen: Vec<(Owner, Protection, i32)> = now
        .devices
        .iter()
        .map(|d| (d.owner, d.protection, d.priority))
        .collect();
    assert_eq!(
        seen,
        vec![
            (Owner::Own, Protection::Ram, 32000),
            (Owner::Own, Protection::Encrypted, 100)
        ]
    );
    assert!(now.total > 220 * MIB && now.free == now.total, "{now:?}");
    let table = capture(Command::new("dmsetup").args(["table", "dormouse-swap"])).unwrap();
    assert!(table.contains("crypt aes-xts-plain64"), "{table}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(swap_file()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let record = fs::read_to_string(state.join(RECORD_NAME)).unwrap();
    assert!(!record.contains("key"), "{record}");
    for block in fs::read_dir("/sys/block").unwrap().flatten() {
        if let Ok(direct) = fs::read_to_string(block.path().join("loop/dio")) {
            println!(
                "{:?} bypasses the page cache: {}",
                block.file_name(),
                direct.trim()
            );
        }
    }

    let pages = Pages::new("dmpages", 128);
    let before = pages.charged();
    // One call may give up early.
    for _ in 0..10 {
        if pages.charged() < 20 * MIB {
            break;
        }
        let _ = pages.reclaim(before);
    }
    let full = swap.state().unwrap();
    println!(
        "{} MiB charged before, {} MiB after; {full:?}",
        before / MIB,
        pages.charged() / MIB
    );
    assert!(
        pages.charged() < 20 * MIB,
        "{} MiB are left",
        pages.charged() / MIB
    );
    assert!(pages.swapped() > 100 * MIB);
    assert!(full.devices[0].used > 24 * MIB, "zram comes first: {full:?}");
    assert!(full.devices[1].used > 40 * MIB, "the file comes behind: {full:?}");
    let zram = full.zram.unwrap();
    assert!(zram.occupied > 0 && zram.original >= zram.compressed, "{zram:?}");
    assert!(!marker_on_disk(), "a guest's memory is readable on the disk");

    // 3 GiB of reserve can never be had in this guest.
    let greedy = manager(
        SwapConfig {
            take_down_reserve_mib: 3072,
            ..both(32, 192)
        },
        state,
    );
    let refused = greedy.take_down().unwrap_err();
    println!("{refused}");
    assert_eq!(refused.reason(), Reason::InsufficientMemory);
    assert_eq!(active().len(), 2);

    let down = swap.take_down().unwrap();
    assert!(down.returned > 100 * MIB, "{down:?}");
    assert_eq!(swap.state().unwrap().usable, Err(Reason::NoSwap));
    pages.assert_intact();
    drop(pages);
    assert_nothing_left(state);

    // The test for the marker is a test: on plain swap it is found.
    let plain = manager(
        SwapConfig {
            zram: None,
            allow_plain_swap: true,
            ..both(64, 128)
        },
        state,
    );
    let cryptsetup = Path::new("/sbin/cryptsetup");
    fs::rename(cryptsetup, "/sbin/cryptsetup.away").unwrap();
    let refused = manager(
        SwapConfig {
            zram: None,
            ..both(64, 128)
        },
        state,
    );
    let verdict = refused.start().unwrap().plan.verdict.unwrap_err();
    println!("{verdict}");
    assert_eq!(verdict.reason(), Reason::PlainSwapRefused);
    assert_eq!(refused.state().unwrap().usable, Err(Reason::PlainSwapRefused));
    let started = plain.start();
    fs::rename("/sbin/cryptsetup.away", cryptsetup).unwrap();
    println!("{:?}", started.unwrap().brought);
    let pages = Pages::new("plainpages", 64);
    for _ in 0..10 {
        if pages.charged() < 10 * MIB {
            break;
        }
        let _ = pages.reclaim(pages.charged());
    }
    assert_eq!(plain.state().unwrap().devices[0].protection, Protection::Plain);
    assert!(
        marker_on_disk(),
        "the marker should have been found on plain swap"
    );
    plain.take_down().unwrap();
    pages.assert_intact();
    drop(pages);
    assert_nothing_left(state);
}

/// Whether any page on the scratch disk begins with the marker. The device is read, not the file: blocks that were
/// only reserved read as zeros through the file system, whatever swap has written there.
fn marker_on_disk() -> bool {
    run("sync", &[]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut disk = fs::File::open("/dev/vdc").unwrap();
    let mut buffer = vec![0_u8; 4 << 20];
    loop {
        let read = disk.read(&mut buffer).unwrap();
        if read == 0 {
            return false;
        }
        if buffer[..read]
            .chunks(4096)
            .any(|page| page.starts_with(MARKER.as_bytes()))
        {
            return true;
        }
    }
}

/// A restarted agent finds its own; what a torn start or another boot left is cleared away and made anew.
pub(super) fn restart() {
    let state = Path::new("/var/lib/dormouse-restart");
    manager(both(64, 64), state).start().unwrap();
    let before = active();
    let again = manager(both(64, 64), state);
    let started = again.start().unwrap();
    assert_eq!(started.plan.keep.len(), 2);
    assert!(started.plan.build.is_empty());
    assert_eq!(active(), before);
    assert!(
        again
            .state()
            .unwrap()
            .devices
            .iter()
            .all(|d| d.owner == Owner::Own)
    );

    // Torn: off, but everything still set up.
    for area in &before {
        run("swapoff", &[area]);
    }
    let torn = manager(both(64, 64), state);
    let started = torn.start().unwrap();
    println!("{:?}", started.brought);
    assert_eq!((started.plan.dismantle.len(), started.plan.build.len()), (2, 2));
    assert!(started.brought.failed.is_empty() && started.brought.left_over.is_empty());
    assert_eq!(active().len(), 2);

    // Another boot: the record's boot id is not this one's. Its zram is somebody else's now and is left alone.
    torn.take_down().unwrap();
    fs::write(
        state.join(RECORD_NAME),
        format!(
            r#"{{"version":1,"bootId":"another","parts":[{{"kind":"file","path":{:?},"bytes":1048576,"mapping":"dormouse-swap"}}]}}"#,
            swap_file()
        ),
    )
    .unwrap();
    fs::write(swap_file(), "what the last boot left").unwrap();
    let booted = manager(both(64, 64), state);
    let started = booted.start().unwrap();
    assert_eq!(started.plan.dismantle.len(), 1);
    assert_eq!(started.brought.active.len(), 2);
    booted.take_down().unwrap();
    assert_nothing_left(state);

    // A file of the same name that nobody recorded is not ours.
    fs::write(swap_file(), "somebody's").unwrap();
    let careful = manager(both(64, 64), state);
    let started = careful.start().unwrap();
    assert_eq!(started.brought.failed.len(), 1);
    println!("{}", started.brought.failed[0]);
    careful.take_down().unwrap();
    assert_eq!(fs::read_to_string(swap_file()).unwrap(), "somebody's");
    fs::remove_file(swap_file()).unwrap();
    assert_nothing_left(state);
}

/// Full swap is a reason, not a failure.
pub(super) fn full() {
    let state = Path::new("/var/lib/dormouse-full");
    let swap = manager(
        SwapConfig {
            file: None,
            // Twice what counts as full by default.
            ..both(64, 64)
        },
        state,
    );
    swap.start().unwrap();
    assert_eq!(swap.state().unwrap().usable, Ok(()));
    let pages = Pages::new("fullpages", 96);
    for _ in 0..10 {
        let _ = pages.reclaim(64 * MIB);
    }
    let now = swap.state().unwrap();
    println!("{now:?}");
    assert_eq!(now.usable, Err(Reason::SwapFull));
    pages.assert_intact();
    drop(pages);
    assert_eq!(swap.state().unwrap().usable, Ok(()));
    swap.take_down().unwrap();
    assert_nothing_left(state);
}
