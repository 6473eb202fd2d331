//! Files that were changed, swapped, forged or put there by somebody else.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use dormouse_core::Reason;

use super::*;

/// Does something to a committed snapshot's directory and says what opening it comes to, at every level of
/// checking, in this boot and in the next.
fn opened_after(harm: impl Fn(&Path)) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for verify in [VerifyOnWake::HeaderOnly, VerifyOnWake::Auto, VerifyOnWake::Full] {
        for reopen in [false, true] {
            let place = Place::new();
            let mut store = place.open();
            let id = committed(&store, "pod", 10);
            harm(&place.root().join("snapshots").join(id.to_string()));
            if reopen {
                drop(store);
                store = place.open();
            }
            let refused = store.open_image(
                id,
                &OpenRequest {
                    verify,
                    ..wake("pod")
                },
            );
            let refused = refused.expect_err("it was opened");
            assert!(!refused.to_string().is_empty());
            reasons.push(refused.reason());
        }
    }
    reasons.dedup();
    reasons
}

fn set_len(path: &Path, change: i64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len() as i64 + change;
    file.set_len(len as u64).unwrap();
}

/// Changes a byte and puts the time back, as a failing disk or a clever hand would.
fn flip_silently(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(before).unwrap();
}

#[test]
fn files_that_are_not_those_committed() {
    for name in ["checkpoint.img", "pages_meta.img", "pages.img"] {
        for harm in [
            |p: &Path| set_len(p, -1),
            |p: &Path| set_len(p, 1),
            |p: &Path| set_len(p, -200),
            |p: &Path| fs::remove_file(p).unwrap(),
            |p: &Path| fs::write(p, "x").unwrap(),
            |p: &Path| {
                let data = fs::read(p).unwrap();
                fs::remove_file(p).unwrap();
                fs::write(p, data).unwrap();
            },
            |p: &Path| {
                fs::rename(p, p.with_extension("away")).unwrap();
                symlink(p.with_extension("away"), p).unwrap();
            },
            |p: &Path| fs::hard_link(p, p.with_extension("second")).unwrap(),
            |p: &Path| {
                fs::remove_file(p).unwrap();
                fs::create_dir(p).unwrap();
            },
            |p: &Path| {
                fs::remove_file(p).unwrap();
                nix::unistd::mkfifo(p, nix::sys::stat::Mode::S_IRUSR).unwrap();
            },
        ] {
            assert_eq!(
                opened_after(|dir| harm(&dir.join(name))),
                [Reason::SnapshotDamaged],
                "{name}"
            );
        }
    }
    let swapped = |dir: &Path| {
        fs::rename(dir.join("pages.img"), dir.join("x")).unwrap();
        fs::rename(dir.join("pages_meta.img"), dir.join("pages.img")).unwrap();
        fs::rename(dir.join("x"), dir.join("pages_meta.img")).unwrap();
    };
    assert_eq!(opened_after(swapped), [Reason::SnapshotDamaged]);
}

#[test]
fn manifests_that_this_node_did_not_write() {
    let edit = |dir: &Path, from: &str, to: &str| {
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    };
    for (from, to) in [
        ("\"default\"", "\"kube-system\""),
        ("pages.img", "../../etc/shadow"),
        ("pages.img", "/etc/shadow"),
        ("\"size\":", "\"size\":9"),
        ("Hibernate", "Import"),
        (
            "\"mac\":\"",
            "\"mac\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"x\":\"",
        ),
    ] {
        let reasons = opened_after(|dir| edit(dir, from, to));
        assert!(
            reasons == [Reason::SnapshotForged] || reasons == [Reason::SnapshotDamaged],
            "{from} {to}: {reasons:?}"
        );
    }
    assert_eq!(
        opened_after(|dir| edit(dir, "\"version\":1", "\"version\":2")),
        [Reason::SnapshotFormatUnknown]
    );
    for content in ["", "{", "[]", "null", "\0"] {
        let reasons = opened_after(|dir| fs::write(dir.join("manifest.json"), content).unwrap());
        assert_eq!(reasons, [Reason::SnapshotDamaged]);
    }
    let huge = |dir: &Path| {
        let file = fs::File::create(dir.join("manifest.json")).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    assert_eq!(opened_after(huge), [Reason::SnapshotDamaged]);
    let link = |dir: &Path| {
        fs::rename(dir.join("manifest.json"), dir.join("m")).unwrap();
        symlink("m", dir.join("manifest.json")).unwrap();
    };
    assert_eq!(opened_after(link), [Reason::SnapshotDamaged]);
    assert_eq!(
        opened_after(|dir| fs::remove_file(dir.join("manifest.json")).unwrap()),
        [Reason::SnapshotDamaged]
    );
}

#[test]
fn a_manifest_of_another_snapshot_is_forged() {
    let place = Place::new();
    let store = place.open();
    let (a, b) = (committed(&store, "pod", 10), committed(&store, "pod", 11));
    let dir = place.root().join("snapshots");
    fs::copy(
        dir.join(a.to_string()).join("manifest.json"),
        dir.join(b.to_string()).join("manifest.json"),
    )
    .unwrap();
    assert_eq!(
        store.open_image(b, &wake("pod")).unwrap_err().reason(),
        Reason::SnapshotForged
    );
}

#[test]
fn a_flipped_bit_is_found_and_the_snapshot_kept() {
    let place = Place::new();
    let store = place.open();
    let id = committed(&store, "pod", 10);
    store.touch(id, 11).unwrap();
    let dir = place.root().join("snapshots").join(id.to_string());
    flip_silently(&dir.join("pages.img"), CHUNK + 17);
    // By design: a check in this boot vouches for the bytes.
    assert!(store.open_image(id, &wake("pod")).is_ok());
    let full = OpenRequest {
        verify: VerifyOnWake::Full,
        ..wake("pod")
    };
    let refused = store.open_image(id, &full).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotDamaged);
    assert!(refused.to_string().contains("pages.img"), "{refused}");
    // From now on at any level, also for the next agent, and never removed silently.
    drop(store);
    for _ in 0..2 {
        let store = place.open();
        let header = OpenRequest {
            verify: VerifyOnWake::HeaderOnly,
            ..wake("pod")
        };
        assert_eq!(
            store.open_image(id, &header).unwrap_err().reason(),
            Reason::SnapshotDamaged
        );
        assert!(matches!(store.get(id).unwrap().state, SnapshotState::Damaged(_)));
        let none = GcLimits {
            ttl_ms: Some(0),
            node: crate::gc::Quota {
                count: Some(0),
                bytes: None,
            },
            ..GcLimits::default()
        };
        assert!(store.prune(Some(&none), 1 << 40).unwrap().removed.is_empty());
        assert!(store.export(id, &mut Vec::new(), 1).is_err());
        assert!(matches!(
            store.fsck(true, Budget::default(), 9).unwrap().findings[0].class,
            Class::Damaged(_)
        ));
    }
    let store = place.open();
    // What was put right is good again.
    flip_silently(&dir.join("pages.img"), CHUNK + 17);
    store.verify(id, Budget::default(), 70).unwrap();
    assert!(store.open_image(id, &wake("pod")).is_ok());
}

#[test]
fn what_was_found_bad_gets_no_hashes() {
    let place = Place::new();
    let store = place.open();
    let validated = staged(&store, 1, 10).validate(draft("pod")).unwrap();
    let id = validated.commit_unverified(Budget::default(), 10).unwrap().id();
    let path = place
        .root()
        .join("snapshots")
        .join(id.to_string())
        .join("checkpoint.img");
    flip_silently(&path, 0);
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap_err().reason(),
        Reason::SnapshotDamaged
    );
    let refused = store.finish_hashes(id, Budget::default(), 20).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotDamaged);
}

#[test]
fn a_scrub_finds_flipped_bits_in_every_file() {
    let place = Place::new();
    let store = place.open();
    let ids: Vec<_> = (0..4).map(|n| committed(&store, "pod", n)).collect();
    for (id, name) in ids.iter().zip(["checkpoint.img", "pages_meta.img", "pages.img"]) {
        let path = place.root().join("snapshots").join(id.to_string()).join(name);
        let len = fs::metadata(&path).unwrap().len();
        flip_silently(&path, len - 1);
    }
    let scrubbed = store.scrub(0, Budget::default(), 1000);
    assert_eq!(scrubbed.good, ids[3..]);
    let bad: Vec<_> = scrubbed.bad.iter().map(|(id, e)| (*id, e.reason())).collect();
    assert_eq!(
        bad,
        ids[..3]
            .iter()
            .map(|id| (*id, Reason::SnapshotDamaged))
            .collect::<Vec<_>>()
    );
}

#[test]
fn lost_marks_hold_the_snapshot() {
    for content in [None, Some("{}"), Some("")] {
        let place = Place::new();
        let id = committed(&place.open(), "pod", 10);
        let marks = place
            .root()
            .join("snapshots")
            .join(id.to_string())
            .join("marks.json");
        match content {
            None => fs::remove_file(&marks).unwrap(),
            Some(text) => fs::write(&marks, text).unwrap(),
        }
        let store = place.open();
        assert_eq!(
            store.remove(id, false).unwrap_err().reason(),
            Reason::SnapshotHeld
        );
        assert!(
            !store.fsck(false, Budget::default(), 1).unwrap().findings[0]
                .action
                .is_empty()
        );
        assert_eq!(
            store.open_image(id, &wake("pod")).unwrap().checked(),
            Checked::Full
        );
        store.unhold(id, crate::marks::MARKS_LOST).unwrap();
        store.remove(id, false).unwrap();
    }
}

#[test]
fn a_lost_node_key_is_said_and_not_replaced() {
    let place = Place::new();
    let id = committed(&place.open(), "pod", 10);
    let path = place.root().join("node.key");
    let key = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(
        Store::open(place.options()).unwrap_err().reason(),
        Reason::SnapshotKeyMissing
    );
    let write = |data: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(&path, data).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&[9; 32]);
    let store = place.open();
    assert_eq!(store.broken()[0].reason, Reason::SnapshotForged);
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap_err().reason(),
        Reason::SnapshotForged
    );
    assert_eq!(
        store.remove(id, false).unwrap_err().reason(),
        Reason::SnapshotNotFound
    );
    drop(store);
    write(&key);
    place.open().open_image(id, &wake("pod")).unwrap();
}

#[test]
fn fsck_classifies_and_repairs_without_deleting() {
    let place = Place::new();
    let store = place.open();
    let (ok, torn) = (committed(&store, "a", 10), committed(&store, "b", 11));
    drop(store);
    let dir = place.root().join("snapshots");
    fs::write(dir.join(torn.to_string()).join("manifest.json"), "{").unwrap();
    fs::write(dir.join("note.txt"), "x").unwrap();
    let link = SnapshotId::new(5);
    symlink("/etc", dir.join(link.to_string())).unwrap();
    let store = place.open();
    let classes = |repair| {
        let report = store.fsck(repair, Budget::default(), 9).unwrap();
        report
            .findings
            .into_iter()
            .map(|f| (f.id, f.class, f.done))
            .collect::<Vec<_>>()
    };
    let looked = classes(false);
    assert_eq!(looked.len(), 4);
    assert!(looked.iter().all(|(.., done)| !done));
    assert!(
        looked
            .iter()
            .any(|(id, c, _)| *id == Some(torn) && matches!(c, Class::Torn(_)))
    );
    assert!(
        looked
            .iter()
            .any(|(id, c, _)| *id == Some(link) && matches!(c, Class::Foreign(_)))
    );
    assert!(
        looked
            .iter()
            .any(|(id, c, _)| id.is_none() && matches!(c, Class::Foreign(_)))
    );
    assert_eq!(classes(true).iter().filter(|(.., done)| *done).count(), 3);
    assert_eq!(classes(true), [(Some(ok), Class::Ok, false)]);
    assert!(store.broken().is_empty());
    let kept = place.root().join("quarantine");
    assert!(kept.join(torn.to_string()).join("pages.img").exists());
    assert!(kept.join("note.txt").exists() && fs::symlink_metadata(kept.join(link.to_string())).is_ok());
    assert!(Path::new("/etc/passwd").exists());
}

type Case<T> = (&'static str, fn(&T));
type Change = fn(&mut Draft);

#[test]
fn images_that_are_not_whole_are_not_committed() {
    let cases: [Case<Path>; 9] = [
        ("missing", |d| fs::remove_file(d.join("pages.img")).unwrap()),
        ("unexpected", |d| fs::write(d.join("core"), "x").unwrap()),
        ("link", |d| {
            fs::remove_file(d.join("pages.img")).unwrap();
            symlink("/etc/passwd", d.join("pages.img")).unwrap();
        }),
        ("second name", |d| {
            fs::hard_link(d.join("pages.img"), d.join("../x")).unwrap();
        }),
        ("header only", |d| {
            fs::write(d.join("checkpoint.img"), header()).unwrap();
        }),
        ("torn header", |d| {
            fs::write(d.join("checkpoint.img"), &header()[..30]).unwrap();
        }),
        ("empty", |d| fs::write(d.join("checkpoint.img"), "").unwrap()),
        ("no image", |d| {
            fs::write(d.join("checkpoint.img"), [0; 5000]).unwrap();
        }),
        ("other version", |d| {
            let mut data = header();
            let at = data.windows(8).position(|w| w == b"20260905").unwrap();
            data[at..at + 8].copy_from_slice(b"20260801");
            data.extend([1; 1000]);
            fs::write(d.join("checkpoint.img"), data).unwrap();
        }),
    ];
    for (what, harm) in cases {
        let place = Place::new();
        let store = place.open();
        let staging = staged(&store, 1, 10);
        harm(staging.dir());
        let refused = staging.validate(draft("pod")).expect_err(what);
        assert_eq!(refused.reason(), Reason::SnapshotInvalid, "{what}: {refused}");
        assert!(store.list().is_empty() && store.usage().is_empty(), "{what}");
    }
    // What the caller gives is checked as well.
    let cases: [(&str, Change); 5] = [
        ("restore", |d| {
            d.restore = serde_json::json!("x".repeat(300 << 10));
        }),
        ("namespace", |d| d.sandbox.namespace = String::new()),
        ("name", |d| d.sandbox.name = "a\nb".into()),
        ("features", |d| d.key.cpu_features = vec!["b".into(), "a".into()]),
        ("hold", |d| d.hold = Some(String::new())),
    ];
    for (what, change) in cases {
        let place = Place::new();
        let store = place.open();
        let mut draft = draft("pod");
        change(&mut draft);
        let refused = staged(&store, 1, 10)
            .validate(draft)
            .unwrap()
            .commit(Budget::default(), 10)
            .expect_err(what);
        assert_eq!(refused.reason(), Reason::InvalidRequest, "{what}: {refused}");
        assert!(store.list().is_empty() && store.usage().is_empty(), "{what}");
        assert!(tree(&place.root().join("staging")).is_empty(), "{what}");
    }
}
