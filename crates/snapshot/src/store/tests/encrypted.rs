//! A store that is encrypted at rest.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use dormouse_core::Reason;

use super::*;
use crate::key::FileKey;

pub(crate) fn file_key(place: &Place, byte: u8) -> Arc<FileKey> {
    let path = place.dir.path().join(format!("key-{byte}"));
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Arc::new(FileKey::read(&path).unwrap())
}

pub(crate) fn encrypted(place: &Place, byte: u8) -> Store {
    Store::open(StoreOptions {
        keys: Some(file_key(place, byte)),
        encrypt: true,
        ..place.options()
    })
    .unwrap()
}

pub(crate) fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

pub(crate) fn commit(store: &Store, memory: &Path) -> SnapshotId {
    let staging = store
        .reserve(&request(), 10)
        .unwrap()
        .stage(Some(memory))
        .unwrap();
    assert!(staging.dir().starts_with(memory));
    write_image(staging.dir(), 9);
    staging
        .validate(draft("pod"))
        .unwrap()
        .commit(Budget::default(), 10)
        .unwrap()
        .id()
}

#[test]
fn nothing_on_the_disk_is_in_the_clear() {
    let (place, memory) = (Place::new(), memory());
    let store = encrypted(&place, 1);
    let refused = store.reserve(&request(), 1).unwrap().stage(None).unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidRequest);
    let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let refused = store
        .reserve(&request(), 1)
        .unwrap()
        .stage(Some(on_disk.path()))
        .unwrap_err();
    assert!(matches!(refused, StageError::NotMemory { .. }));

    let id = commit(&store, memory.path());
    assert!(tree(memory.path()).is_empty());
    let needle = &pages(9)[100..164];
    for path in tree(&place.root()).iter().filter(|p| p.is_file()) {
        let data = fs::read(path).unwrap();
        assert!(
            !data.windows(needle.len()).any(|w| w == needle),
            "{}",
            path.display()
        );
        assert!(!data.windows(8).any(|w| w == b"gVisorSF"), "{}", path.display());
    }
    store.verify(id, Budget::default(), 20).unwrap();
    let request = OpenRequest {
        memory: Some(memory.path()),
        ..wake("pod")
    };
    let image = store.open_image(id, &request).unwrap();
    let second = store.open_image(id, &request).unwrap();
    assert_eq!(image.checked(), Checked::Full);
    assert_ne!(image.dir(), second.dir());
    assert_eq!(fs::read(image.dir().join("pages.img")).unwrap(), pages(9));
    drop((image, second));
    assert!(tree(memory.path()).is_empty());
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap_err().reason(),
        Reason::InvalidRequest
    );
}

#[test]
fn without_the_key_it_is_noise() {
    let (place, memory) = (Place::new(), memory());
    let id = commit(&encrypted(&place, 1), memory.path());
    let request = OpenRequest {
        memory: Some(memory.path()),
        ..wake("pod")
    };
    let refused = encrypted(&place, 2).open_image(id, &request).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotKeyMissing);
    let refused = place.open().open_image(id, &request).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotKeyMissing);
    // The bytes can be vouched for without it.
    place.open().verify(id, Budget::default(), 20).unwrap();

    let key = place
        .root()
        .join("snapshots")
        .join(id.to_string())
        .join("data.key");
    let wrapped = fs::read(&key).unwrap();
    fs::write(&key, vec![0; wrapped.len()]).unwrap();
    let store = encrypted(&place, 1);
    assert_eq!(
        store.open_image(id, &request).unwrap_err().reason(),
        Reason::SnapshotDamaged
    );
    fs::remove_file(&key).unwrap();
    assert!(store.open_image(id, &request).is_err());
    assert!(matches!(
        store.fsck(false, Budget::default(), 1).unwrap().findings[0].class,
        Class::Damaged(_)
    ));
    assert!(tree(memory.path()).is_empty());
}

#[test]
fn a_changed_record_is_refused_whole() {
    let (place, memory) = (Place::new(), memory());
    let store = encrypted(&place, 1);
    let id = commit(&store, memory.path());
    let path = place
        .root()
        .join("snapshots")
        .join(id.to_string())
        .join("pages.img");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"x", CHUNK + 100).unwrap();
    file.set_modified(modified).unwrap();
    let request = OpenRequest {
        verify: VerifyOnWake::HeaderOnly,
        memory: Some(memory.path()),
        ..wake("pod")
    };
    assert_eq!(
        store.open_image(id, &request).unwrap_err().reason(),
        Reason::SnapshotDamaged
    );
    assert!(tree(memory.path()).is_empty());
}

#[test]
fn removal_destroys_the_key_first() {
    let (place, memory) = (Place::new(), memory());
    let store = encrypted(&place, 1);
    let id = commit(&store, memory.path());
    let path = place
        .root()
        .join("snapshots")
        .join(id.to_string())
        .join("data.key");
    let open = fs::File::open(&path).unwrap();
    let len = open.metadata().unwrap().len();
    assert!(len > 32);
    store.remove(id, false).unwrap();
    let mut data = vec![1; len as usize];
    open.read_exact_at(&mut data, 0).unwrap();
    assert!(data.iter().all(|b| *b == 0));
}
