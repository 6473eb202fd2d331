use super::config::{FileConfig, MIB, SwapConfig, ZramConfig};
use super::facts::{ActiveSwap, DirectoryFacts, EncryptionLack, Facts, Protection, SwapLine, ZramFacts};
use super::kubelet::{KubeletFacts, KubeletSwap};
use super::plan::{Build, FILE_NAME, MAPPING_NAME, Refusal, Skip, plan};
use super::record::{Part, SwapRecord};
use dormouse_core::Reason;

pub(super) fn facts() -> Facts {
    Facts {
        boot_id: "this".into(),
        ram_total: 8192 * MIB,
        ram_available: 6000 * MIB,
        swaps: vec![],
        kubelet: KubeletFacts::Absent,
        zram: Some(ZramFacts {
            hot_add: true,
            idle: vec![],
        }),
        encryption: Ok(()),
        mkswap: Ok(()),
        directory: Some(Ok(DirectoryFacts {
            free: 100_000 * MIB,
            total: 200_000 * MIB,
            suitable: Ok("ext4"),
        })),
        record: None,
    }
}

pub(super) fn both() -> SwapConfig {
    SwapConfig {
        zram: Some(ZramConfig::default()),
        file: Some(FileConfig {
            size_mib: 1024,
            directory: "/var/lib/dormouse".into(),
            priority: 100,
            keep_free_percent: 10,
        }),
        ..SwapConfig::default()
    }
}

pub(super) fn swap(path: &str, protection: Protection) -> ActiveSwap {
    ActiveSwap {
        line: SwapLine {
            path: path.into(),
            is_file: false,
            bytes: 64 * MIB,
            used: 0,
            priority: -2,
        },
        protection,
        zram: None,
        mapping: None,
    }
}

fn kubelet(fail_swap_on: bool) -> KubeletFacts {
    KubeletFacts::Configured(KubeletSwap {
        path: "/k".into(),
        fail_swap_on,
        pods_may_swap: false,
    })
}

fn own_file() -> Part {
    Part::File {
        path: format!("/var/lib/dormouse/{FILE_NAME}").into(),
        bytes: 1024 * MIB,
        mapping: Some(MAPPING_NAME.into()),
    }
}

fn record(boot: &str, parts: Vec<Part>) -> Option<SwapRecord> {
    let mut r = SwapRecord::new(boot.into());
    r.parts = parts;
    Some(r)
}

fn own_zram_active() -> ActiveSwap {
    ActiveSwap {
        zram: Some(1),
        ..swap("/dev/zram1", Protection::Ram)
    }
}

fn own_file_active() -> ActiveSwap {
    ActiveSwap {
        mapping: Some(MAPPING_NAME.into()),
        ..swap("/dev/dm-0", Protection::Encrypted)
    }
}

#[test]
fn zram_first_and_an_encrypted_file_behind() {
    let p = plan(&facts(), &both());
    assert_eq!(
        p.build,
        vec![
            Build::Zram {
                bytes: 2048 * MIB,
                priority: 32000
            },
            Build::File {
                path: format!("/var/lib/dormouse/{FILE_NAME}").into(),
                bytes: 1024 * MIB,
                priority: 100,
                mapping: Some(MAPPING_NAME.into()),
            },
        ]
    );
    assert_eq!(p.verdict, Ok(()));
}

#[test]
fn zram_is_bounded() {
    for (percent, min, max, want) in [
        (1, 64, 8192, 81),
        (1, 100, 8192, 100),
        (90, 64, 500, 500),
        (100, 1, 999_999, 8192),
        (1, 20_000, 30_000, 8192),
    ] {
        let mut c = both();
        c.zram = Some(ZramConfig {
            percent_of_ram: percent,
            min_mib: min,
            max_mib: max,
            priority: 32000,
        });
        assert_eq!(
            plan(&facts(), &c).build[0],
            Build::Zram {
                bytes: want * MIB,
                priority: 32000
            }
        );
    }
}

#[test]
fn nothing_configured_and_nothing_there() {
    let p = plan(&facts(), &SwapConfig::default());
    assert_eq!(p.verdict, Err(Refusal::NoSwap));
    assert_eq!(p.verdict.unwrap_err().reason(), Reason::NoSwap);
}

#[test]
fn foreign_swap_that_is_safe_is_used_and_nothing_is_brought() {
    for protection in [Protection::Ram, Protection::Encrypted] {
        let f = Facts {
            swaps: vec![swap("/dev/x", protection)],
            ..facts()
        };
        let p = plan(&f, &both());
        assert!(p.build.is_empty() && p.retire.is_empty() && p.dismantle.is_empty());
        assert_eq!(p.verdict, Ok(()));
        let p = plan(
            &f,
            &SwapConfig {
                beside_foreign: true,
                ..both()
            },
        );
        assert_eq!(p.build.len(), 2);
    }
}

#[test]
fn plain_foreign_swap_needs_leave_even_beside_our_own() {
    let f = Facts {
        swaps: vec![swap("/dev/sda2", Protection::Plain)],
        ..facts()
    };
    for config in [
        both(),
        SwapConfig::default(),
        SwapConfig {
            beside_foreign: true,
            ..both()
        },
    ] {
        let p = plan(&f, &config);
        assert_eq!(p.verdict.clone().unwrap_err().reason(), Reason::PlainSwapRefused);
        assert!(p.build.is_empty());
        let p = plan(
            &f,
            &SwapConfig {
                allow_plain_swap: true,
                ..config
            },
        );
        assert_eq!(p.verdict, Ok(()));
    }
}

#[test]
fn the_kubelet_has_the_last_word_on_new_swap() {
    let f = Facts {
        kubelet: kubelet(true),
        ..facts()
    };
    let p = plan(&f, &both());
    assert!(p.build.is_empty());
    assert_eq!(p.verdict.unwrap_err().reason(), Reason::KubeletForbidsSwap);
    // Without a wish for own swap it is simply not there.
    assert_eq!(plan(&f, &SwapConfig::default()).verdict, Err(Refusal::NoSwap));
    let f = Facts {
        kubelet: KubeletFacts::Unreadable {
            path: "/k".into(),
            why: "x".into(),
        },
        ..facts()
    };
    assert_eq!(
        plan(&f, &both()).verdict.unwrap_err().reason(),
        Reason::KubeletForbidsSwap
    );
    let f = Facts {
        kubelet: kubelet(false),
        ..facts()
    };
    assert_eq!(plan(&f, &both()).build.len(), 2);
    // Foreign swap was there before us and is not our doing.
    let f = Facts {
        kubelet: kubelet(true),
        swaps: vec![swap("/dev/x", Protection::Encrypted)],
        ..facts()
    };
    assert_eq!(plan(&f, &both()).verdict, Ok(()));
}

#[test]
fn a_restarted_agent_recognises_its_own() {
    let zram = Part::Zram {
        index: 1,
        bytes: 2048 * MIB,
        hot_added: true,
    };
    let f = Facts {
        swaps: vec![own_zram_active(), own_file_active()],
        record: record("this", vec![zram.clone(), own_file()]),
        ..facts()
    };
    let p = plan(&f, &both());
    assert_eq!(p.keep, vec![zram.clone(), own_file()]);
    assert!(p.build.is_empty() && p.dismantle.is_empty() && p.retire.is_empty());
    // Half of it was torn: only that half is made again.
    let f = Facts {
        swaps: vec![own_zram_active()],
        ..f
    };
    let p = plan(&f, &both());
    assert_eq!(p.keep, vec![zram.clone()]);
    assert_eq!(p.dismantle, vec![own_file()]);
    assert!(matches!(p.build.as_slice(), [Build::File { .. }]));
    // Now the kubelet forbids it: it goes.
    let p = plan(
        &Facts {
            kubelet: kubelet(true),
            ..f.clone()
        },
        &both(),
    );
    assert_eq!(p.retire, vec![zram.clone()]);
    assert_eq!(p.verdict.unwrap_err().reason(), Reason::KubeletForbidsSwap);
    // Not configured any more: it goes.
    let p = plan(&f, &SwapConfig::default());
    assert_eq!(p.retire, vec![zram]);
    assert_eq!(p.verdict, Err(Refusal::NoSwap));
}

#[test]
fn after_a_reboot_only_the_file_is_ours() {
    let zram = Part::Zram {
        index: 1,
        bytes: 2048 * MIB,
        hot_added: true,
    };
    let f = Facts {
        // Somebody else's zram1 in the new boot.
        swaps: vec![own_zram_active()],
        record: record("earlier", vec![zram.clone(), own_file()]),
        ..facts()
    };
    let p = plan(&f, &both());
    assert_eq!(p.dismantle, vec![zram, own_file()]);
    assert!(p.keep.is_empty() && p.retire.is_empty() && p.build.is_empty());
    assert_eq!(p.verdict, Ok(()));
}

#[test]
fn a_file_that_cannot_be_encrypted() {
    let f = Facts {
        encryption: Err(EncryptionLack::NoDeviceMapper),
        ..facts()
    };
    let p = plan(&f, &both());
    assert!(matches!(p.build.as_slice(), [Build::Zram { .. }]));
    assert_eq!(p.skip, vec![Skip::NoEncryption(EncryptionLack::NoDeviceMapper)]);
    assert_eq!(p.verdict, Ok(()));
    let only_file = SwapConfig { zram: None, ..both() };
    let p = plan(&f, &only_file);
    assert_eq!(p.verdict.unwrap_err().reason(), Reason::PlainSwapRefused);
    let p = plan(
        &f,
        &SwapConfig {
            allow_plain_swap: true,
            ..only_file
        },
    );
    assert!(matches!(p.build.as_slice(), [Build::File { mapping: None, .. }]));
}

#[test]
fn what_the_node_lacks_is_said() {
    let only_file = SwapConfig { zram: None, ..both() };
    let full = Facts {
        directory: Some(Ok(DirectoryFacts {
            free: 2000 * MIB,
            total: 10_000 * MIB,
            suitable: Ok("ext4"),
        })),
        ..facts()
    };
    assert_eq!(plan(&full, &only_file).build, vec![]);
    assert_eq!(
        plan(&full, &only_file).skip,
        vec![Skip::DiskTooFull {
            path: "/var/lib/dormouse".into(),
            want: 1024,
            left: 976,
            keep: 1000
        }]
    );
    let tmpfs = Facts {
        directory: Some(Ok(DirectoryFacts {
            free: 1 << 40,
            total: 1 << 40,
            suitable: Err("tmpfs".into()),
        })),
        ..facts()
    };
    assert_eq!(
        plan(&tmpfs, &only_file).verdict.unwrap_err().reason(),
        Reason::SwapSetupFailed
    );
    let none = Facts {
        zram: None,
        mkswap: Err("missing".into()),
        ..facts()
    };
    assert_eq!(plan(&none, &both()).skip.len(), 2);
    let no_zram = Facts {
        zram: Some(ZramFacts::default()),
        ..facts()
    };
    assert_eq!(plan(&no_zram, &both()).skip, vec![Skip::NoZram]);
    assert_eq!(plan(&no_zram, &both()).verdict, Ok(()));
}
