//! Archives, good and hostile.

use std::fs;

use dormouse_core::Reason;
use proptest::prelude::*;

use super::encrypted::{commit as commit_encrypted, encrypted, memory};
use super::*;
use crate::archive::{ArchiveError, check};
use crate::digest::Digest;
use crate::manifest::{Manifest, Provenance};

fn request() -> ImportRequest {
    ImportRequest {
        namespace: "team-b".into(),
        max_bytes: GIB,
        digest: None,
        original: None,
        facts: None,
    }
}

fn restore() -> OpenRequest<'static> {
    OpenRequest {
        purpose: Purpose::Restore { namespace: "team-b" },
        ..wake("pod")
    }
}

fn exported() -> (SnapshotId, Vec<u8>) {
    let place = Place::new();
    let store = place.open();
    let id = committed(&store, "pod", 10);
    let mut archive = Vec::new();
    let written = store.export(id, &mut archive, 20).unwrap();
    assert_eq!(written, archive.len() as u64);
    (id, archive)
}

/// Nothing of a refused archive is left.
fn refused(archive: &[u8], request: &ImportRequest) -> ImportError {
    let place = Place::new();
    let store = place.open();
    let error = store
        .import(&mut &*archive, request, 30)
        .expect_err("it was imported");
    assert!(store.list().is_empty() && store.usage().is_empty());
    for dir in ["staging", "snapshots", "trash", "quarantine"] {
        assert!(tree(&place.root().join(dir)).is_empty(), "{error}");
    }
    error
}

/// The archive with its manifest changed, everything else made to fit.
fn forged(archive: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let len = u32::from_be_bytes(archive[12..16].try_into().unwrap()) as usize;
    let mut manifest: serde_json::Value = serde_json::from_slice(&archive[16..16 + len]).unwrap();
    change(&mut manifest);
    let text = serde_json::to_vec(&manifest).unwrap();
    let mut data = archive[..12].to_vec();
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(&text);
    data.extend(&archive[16 + len..archive.len() - 32]);
    let digest = Digest::of(&data);
    data.extend(digest.as_bytes());
    data
}

#[test]
fn out_and_in() {
    let (original, archive) = exported();
    // Zeros are left out.
    assert!((archive.len() as u64) < 3 * CHUNK);
    let checked = check(&mut archive.as_slice(), GIB).unwrap();
    let place = Place::new();
    let store = place.open();
    let request = ImportRequest {
        digest: Some(checked.digest),
        original: Some(original),
        ..request()
    };
    let snapshot = store.import(&mut archive.as_slice(), &request, 30).unwrap();
    assert_ne!(snapshot.id(), original);
    assert_eq!(snapshot.manifest.taken, Taken::Import);
    assert_eq!(snapshot.manifest.sandbox.namespace, "team-b");
    assert_eq!(
        snapshot.manifest.provenance,
        Some(Provenance {
            id: original,
            node: "node-1".into(),
            sandbox: draft("pod").sandbox
        })
    );
    let entry = snapshot
        .manifest
        .files
        .iter()
        .find(|f| f.name.as_str() == "pages.img")
        .unwrap();
    assert!(entry.allocated < entry.size - CHUNK / 2);
    let image = store.open_image(snapshot.id(), &restore()).unwrap();
    assert_eq!(fs::read(image.dir().join("pages.img")).unwrap(), pages(7));
    // The pod that the archive names is not one of this node.
    for namespace in ["team-b", "default"] {
        let wake = OpenRequest {
            purpose: Purpose::Wake {
                pod_uid: "pod",
                namespace,
            },
            ..wake("pod")
        };
        let refused = store.open_image(snapshot.id(), &wake).unwrap_err();
        assert_eq!(refused.reason(), Reason::SnapshotNamespaceMismatch);
    }
    drop((image, store));
    place.open().verify(snapshot.id(), Budget::default(), 40).unwrap();
}

#[test]
fn pending_ones_stay() {
    let place = Place::new();
    let store = place.open();
    let validated = staged(&store, 1, 10).validate(draft("pod")).unwrap();
    let id = validated.commit_unverified(Budget::default(), 10).unwrap().id();
    assert_eq!(
        store.export(id, &mut Vec::new(), 1).unwrap_err().reason(),
        Reason::SnapshotUnverified
    );
}

#[test]
fn into_and_out_of_encrypted_stores() {
    let (_, archive) = exported();
    let (place, memory) = (Place::new(), memory());
    let store = encrypted(&place, 1);
    // What comes in the clear is encrypted on its way.
    let snapshot = store.import(&mut archive.as_slice(), &request(), 30).unwrap();
    assert!(snapshot.manifest.encryption.is_some());
    let disk = fs::read(snapshot.path.join("pages.img")).unwrap();
    let needle = &pages(7)[100..164];
    assert!(!disk.windows(64).any(|w| w == needle));
    let open = OpenRequest {
        memory: Some(memory.path()),
        ..restore()
    };
    let image = store.open_image(snapshot.id(), &open).unwrap();
    assert_eq!(fs::read(image.dir().join("pages.img")).unwrap(), pages(7));
    drop(image);
    // And goes out as it is.
    let id = commit_encrypted(&store, memory.path());
    let mut sealed = Vec::new();
    store.export(id, &mut sealed, 40).unwrap();
    assert!(!sealed.windows(8).any(|w| w == b"gVisorSF"));
    let error = refused(&sealed, &request());
    assert_eq!(error.reason(), Reason::SnapshotKeyMissing);
    let other = Place::new();
    let error = encrypted(&other, 2)
        .import(&mut sealed.as_slice(), &request(), 50)
        .unwrap_err();
    assert_eq!(error.reason(), Reason::SnapshotKeyMissing);
    let other = Place::new();
    let store = encrypted(&other, 1);
    let snapshot = store.import(&mut sealed.as_slice(), &request(), 50).unwrap();
    let image = store.open_image(snapshot.id(), &open).unwrap();
    assert_eq!(fs::read(image.dir().join("pages.img")).unwrap(), pages(9));
}

#[test]
fn truncated_extended_or_changed() {
    let (_, archive) = exported();
    let len = archive.len();
    for end in [0, 1, 8, 12, 15, 16, 100, len / 2, len - 33, len - 32, len - 1] {
        let error = refused(&archive[..end], &request());
        assert!(
            matches!(error, ImportError::Archive(ArchiveError::Truncated)),
            "{end}: {error}"
        );
    }
    let extended = [archive.as_slice(), b"\0"].concat();
    assert!(matches!(
        refused(&extended, &request()),
        ImportError::Archive(ArchiveError::Trailing)
    ));
    for at in [0, 7, 11, 15, 20, len / 2, len - 40, len - 1] {
        let mut bad = archive.clone();
        bad[at] ^= 1;
        let error = refused(&bad, &request());
        assert!(
            matches!(
                error.reason(),
                Reason::SnapshotInvalid | Reason::SnapshotFormatUnknown
            ),
            "{at}: {error}"
        );
    }
    for length in [u32::MAX, 25 << 20] {
        let mut bad = archive.clone();
        bad[12..16].copy_from_slice(&length.to_be_bytes());
        assert!(matches!(
            refused(&bad, &request()),
            ImportError::Archive(ArchiveError::Length("manifest"))
        ));
    }
}

type Case = (&'static str, fn(&mut serde_json::Value));

#[test]
fn hostile_manifests() {
    let (_, archive) = exported();
    refused(
        &forged(&archive, |_| ()),
        &ImportRequest {
            max_bytes: CHUNK,
            ..request()
        },
    );
    let cases: &[Case] = &[
        ("absolute", |m| m["files"][0]["name"] = "/etc/shadow".into()),
        ("escape", |m| m["files"][0]["name"] = "../x".into()),
        ("hidden", |m| m["files"][0]["name"] = ".x".into()),
        ("ours", |m| m["files"][0]["name"] = "node/../manifest.json".into()),
        ("manifest", |m| m["files"][0]["name"] = "manifest.json".into()),
        ("twice", |m| m["files"][1]["name"] = m["files"][0]["name"].clone()),
        ("bomb", |m| m["files"][0]["size"] = (1_u64 << 60).into()),
        ("bomb, too", |m| {
            m["files"][0]["size"] = (1_u64 << 38).into();
            m["files"][0]["stored"] = (1_u64 << 38).into();
        }),
        ("no files", |m| m["files"] = serde_json::json!([])),
        ("many files", |m| {
            let one = m["files"][0].clone();
            m["files"] = (0..17).map(|_| one.clone()).collect();
        }),
        ("unknown", |m| m["link"] = "/etc".into()),
        ("no hashes", |m| m["files"][0]["hashes"] = serde_json::Value::Null),
        ("other chunks", |m| {
            m["files"][0]["hashes"]["chunk_size"] = 1.into();
        }),
        ("encrypted", |m| {
            m["encryption"] = serde_json::json!({"algorithm": "XChaCha20Poly1305", "key_id": "k",
                "wrapped_key": "0".repeat(64), "record_size": CHUNK});
        }),
        ("restore", |m| m["restore"] = "x".repeat(300 << 10).into()),
        ("namespace", |m| {
            m["sandbox"]["namespace"] = "x".repeat(300).into();
        }),
        ("containers", |m| m["key"]["containers"] = serde_json::json!([])),
        ("other runsc", |m| {
            m["key"]["runtime_version"] = "release-20260801.0".into();
        }),
        ("id", |m| m["id"] = "../../x".into()),
    ];
    for (what, change) in cases {
        let error = refused(&forged(&archive, change), &request());
        assert_eq!(error.reason(), Reason::SnapshotInvalid, "{what}: {error}");
    }
    let newer = forged(&archive, |m| m["version"] = 2.into());
    assert_eq!(
        refused(&newer, &request()).reason(),
        Reason::SnapshotFormatUnknown
    );
    let other = ImportRequest {
        original: Some(SnapshotId::new(3)),
        ..request()
    };
    assert!(matches!(refused(&archive, &other), ImportError::Other { .. }));
    let other = ImportRequest {
        digest: Some(Digest::of(b"x")),
        ..request()
    };
    assert!(matches!(refused(&archive, &other), ImportError::Other { .. }));
    let facts = ImportRequest {
        facts: Some(crate::NodeFacts::default()),
        ..request()
    };
    assert_eq!(refused(&archive, &facts).reason(), Reason::RuntimeVersionMismatch);
}

#[test]
fn a_manifest_is_read_as_it_was_written() {
    let (_, archive) = exported();
    let manifest = check(&mut archive.as_slice(), GIB).unwrap().manifest;
    let text = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(crate::manifest::decode_untrusted(&text).unwrap(), manifest);
    let again: Manifest = serde_json::from_slice(&text).unwrap();
    assert_eq!(again, manifest);
}

proptest! {
    #[test]
    fn anything_is_refused_without_a_panic(data in proptest::collection::vec(any::<u8>(), 0..600), begin in any::<bool>()) {
        let data = if begin { [b"DRMSNAP\0\0\0\0\x01".as_slice(), &data].concat() } else { data };
        prop_assert!(check(&mut data.as_slice(), GIB).is_err());
        prop_assert!(crate::manifest::decode_untrusted(&data).is_err());
    }
}
