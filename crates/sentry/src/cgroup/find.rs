//! Where a pod's cgroup is.

use std::path::{Component, Path, PathBuf};

use super::{CgroupError, CgroupVersion, PodCgroup, SLEEPER};
use crate::file::{FileError, read_bounded};
use crate::ids::PodUid;

/// The most that is read of `/proc/PID/cgroup`, in bytes.
const CGROUP_LIMIT: usize = 64 << 10;
/// The most that is read of `/proc/self/mountinfo`, in bytes: nodes have thousands of mounts.
const MOUNTS_LIMIT: usize = 16 << 20;

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    version: CgroupVersion,
    /// The controllers of a v1 hierarchy.
    controllers: Vec<String>,
    /// Which part of the hierarchy is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

impl PodCgroup {
    /// Finds the pod's cgroup from that of its sentry.
    ///
    /// The sentry may sit deeper than the pod (with some cgroup drivers and shim options it does): the
    /// pod's own level is the one that is named after it, `pod<UID>` with the cgroupfs driver,
    /// `…-pod<UID with _>.slice` with systemd's. Without that level nothing is taken.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn find(pid: i32, uid: &PodUid) -> Result<Self, CgroupError> {
        let cgroups = read_text(Path::new(&format!("/proc/{pid}/cgroup")), CGROUP_LIMIT)?;
        let mounts = read_text(Path::new("/proc/self/mountinfo"), MOUNTS_LIMIT)?;
        Self::find_in(pid, uid, &cgroups, &parse_mounts(&mounts))
    }

    pub(super) fn find_in(
        pid: i32,
        uid: &PodUid,
        cgroups: &str,
        mounts: &[Mount],
    ) -> Result<Self, CgroupError> {
        let place = |controller: &'static str| locate(controller, cgroups, mounts);
        // Controllers that v1 does not have are on v2, also on a hybrid node; there the freezer is part of
        // every cgroup.
        let v1 = (place("freezer"), place("memory"));
        let (version, freezer, memory, cpu) = match v1 {
            (Some(freezer), Some(memory)) => (
                CgroupVersion::V1,
                freezer,
                memory,
                place("cpuacct").map(Place::whole),
            ),
            _ => {
                let unified = locate_unified(cgroups, mounts).ok_or(CgroupError::NotVisible {
                    controller: "freezer and memory",
                    pid,
                })?;
                (
                    CgroupVersion::V2,
                    unified.clone(),
                    unified.clone(),
                    Some(unified.whole()),
                )
            }
        };
        freezer.clone().pod(pid, uid)?;
        let freezer = freezer.whole().join(SLEEPER);
        Ok(Self {
            version,
            freezer,
            memory: memory.pod(pid, uid)?,
            cpu,
        })
    }

    /// Whether a path, perhaps from a record, is the level that may be frozen: our own, below one that is
    /// named after the pod.
    pub(super) fn check(path: &Path, uid: &PodUid) -> Result<(), CgroupError> {
        let plain = path.is_absolute()
            && path
                .components()
                .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        let below = path
            .parent()
            .into_iter()
            .flat_map(Path::iter)
            .any(|part| part.to_str().is_some_and(|p| is_pod_component(p, uid)));
        if plain && below && path.ends_with(SLEEPER) {
            Ok(())
        } else {
            Err(CgroupError::Foreign {
                path: path.to_owned(),
                uid: uid.to_string(),
            })
        }
    }
}

/// A process's place in a hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Where the hierarchy is mounted.
    point: PathBuf,
    /// The process's cgroup below it.
    below: PathBuf,
}

impl Place {
    fn whole(self) -> PathBuf {
        self.point.join(self.below)
    }

    /// The level that is named after the pod.
    fn pod(self, pid: i32, uid: &PodUid) -> Result<PathBuf, CgroupError> {
        let mut path = self.point;
        for part in &self.below {
            path.push(part);
            if part.to_str().is_some_and(|p| is_pod_component(p, uid)) {
                return Ok(path);
            }
        }
        Err(CgroupError::NotThePods {
            pid,
            found: self.below.display().to_string(),
            uid: uid.to_string(),
        })
    }
}

/// Whether a directory's name is that of the pod's cgroup in either driver's form.
fn is_pod_component(name: &str, uid: &PodUid) -> bool {
    if name.strip_prefix("pod") == Some(uid.as_str()) {
        return true;
    }
    let Some(slice) = name.strip_suffix(".slice") else {
        return false;
    };
    // A dash stands for a level in systemd's names, so kubelet writes the UID's as underscores; what comes
    // after the last dash is therefore the pod.
    let last = slice.rsplit_once('-').map_or(slice, |(_, last)| last);
    last.strip_prefix("pod") == Some(uid.as_str().replace('-', "_").as_str())
}

/// This process's own cgroup in the v1 hierarchy of a controller.
pub(super) fn own_place(controller: &str) -> Option<PathBuf> {
    let cgroups = read_text(Path::new("/proc/self/cgroup"), CGROUP_LIMIT).ok()?;
    let mounts = read_text(Path::new("/proc/self/mountinfo"), MOUNTS_LIMIT).ok()?;
    locate(controller, &cgroups, &parse_mounts(&mounts)).map(Place::whole)
}

/// The place in the v1 hierarchy of a controller.
fn locate(controller: &str, cgroups: &str, mounts: &[Mount]) -> Option<Place> {
    let path = cgroups.lines().find_map(|line| {
        let (_, controllers, path) = split_line(line)?;
        controllers.split(',').any(|c| c == controller).then_some(path)
    })?;
    mounts
        .iter()
        .filter(|m| m.version == CgroupVersion::V1 && m.controllers.iter().any(|c| c == controller))
        .find_map(|m| place_in(m, path))
}

/// The place in the v2 hierarchy.
fn locate_unified(cgroups: &str, mounts: &[Mount]) -> Option<Place> {
    let path = cgroups.lines().find_map(|line| {
        let (id, controllers, path) = split_line(line)?;
        (id == "0" && controllers.is_empty()).then_some(path)
    })?;
    mounts
        .iter()
        .filter(|m| m.version == CgroupVersion::V2)
        .find_map(|m| place_in(m, path))
}

/// `ID:CONTROLLERS:PATH`; a path may have colons of its own.
fn split_line(line: &str) -> Option<(&str, &str, &Path)> {
    let mut parts = line.splitn(3, ':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    Some((id, controllers, Path::new(path)))
}

fn place_in(mount: &Mount, path: &Path) -> Option<Place> {
    // A path that leads out of the reader's cgroup namespace begins with `/..`.
    if path.components().any(|c| matches!(c, Component::ParentDir)) {
        return None;
    }
    let below = path.strip_prefix(&mount.root).ok()?;
    // A sentry that has been frozen before sits on the level of our own: its place is the one above.
    let below = if below.ends_with(SLEEPER) {
        below.parent()?
    } else {
        below
    };
    Some(Place {
        point: mount.point.clone(),
        below: below.to_owned(),
    })
}

/// The cgroup mounts in the text of `/proc/PID/mountinfo`.
pub(super) fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (unescape(left.next()?)?, unescape(left.next()?)?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let version = match kind {
        "cgroup" => CgroupVersion::V1,
        "cgroup2" => CgroupVersion::V2,
        _ => return None,
    };
    Some(Mount {
        version,
        controllers: options.split(',').map(str::to_owned).collect(),
        root: root.into(),
        point: point.into(),
    })
}

/// Spaces and the like are written as `\040` in mountinfo.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(3)?;
        rest = tail;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn read_text(path: &Path, limit: usize) -> Result<String, CgroupError> {
    let data = match read_bounded(path, limit) {
        // The process went away between the lookup and now.
        Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {
            return Err(CgroupError::Gone {
                path: path.to_owned(),
            });
        }
        Err(FileError::Missing { path }) => return Err(CgroupError::Gone { path }),
        other => other?,
    };
    String::from_utf8(data).map_err(|_| CgroupError::Strange {
        path: path.to_owned(),
        what: "text",
    })
}

/// Whether this process is in `dir` or below, by the text of `/proc/self/cgroup`.
pub(super) fn holds_caller(dir: &Path) -> Result<bool, CgroupError> {
    let cgroups = read_text(Path::new("/proc/self/cgroup"), CGROUP_LIMIT)?;
    let mounts = parse_mounts(&read_text(Path::new("/proc/self/mountinfo"), MOUNTS_LIMIT)?);
    let v1 = locate("freezer", &cgroups, &mounts);
    let unified = locate_unified(&cgroups, &mounts);
    Ok([v1, unified]
        .into_iter()
        .flatten()
        .any(|place| place.whole().starts_with(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0a1b2c3d-0000-1111-2222-333344445555";

    fn uid() -> PodUid {
        UID.parse().unwrap()
    }

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
37 31 0:34 / /cg\\040x/freezer rw shared:4 master:1 - cgroup cgroup rw,freezer
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn cgroupfs_driver_on_v1_with_the_sentry_deeper() {
        let cgroups = format!(
            "6:freezer:/kubepods/burstable/pod{UID}/abc\n5:cpu,cpuacct:/kubepods/burstable/pod{UID}\n4:memory:/kubepods/burstable/pod{UID}\n0::/\n"
        );
        let found = PodCgroup::find_in(1, &uid(), &cgroups, &parse_mounts(V1)).unwrap();
        assert_eq!(found.version, CgroupVersion::V1);
        assert_eq!(
            found.freezer,
            PathBuf::from(format!("/cg x/freezer/kubepods/burstable/pod{UID}/abc/dormouse"))
        );
        assert_eq!(
            found.memory,
            PathBuf::from(format!("/sys/fs/cgroup/memory/kubepods/burstable/pod{UID}"))
        );
        assert_eq!(
            found.cpu.unwrap(),
            PathBuf::from(format!("/sys/fs/cgroup/cpu,cpuacct/kubepods/burstable/pod{UID}"))
        );
        PodCgroup::check(&found.freezer, &uid()).unwrap();
    }

    #[test]
    fn systemd_driver_on_v2_in_a_namespace() {
        let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
        let mounts =
            parse_mounts("30 23 0:26 /machine.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        let cgroups = format!("0::/machine.slice/kubepods.slice/{slice}/cri-containerd-x.scope\n");
        let found = PodCgroup::find_in(1, &uid(), &cgroups, &mounts).unwrap();
        assert_eq!(found.version, CgroupVersion::V2);
        assert_eq!(
            found.freezer,
            PathBuf::from(format!(
                "/sys/fs/cgroup/kubepods.slice/{slice}/cri-containerd-x.scope/dormouse"
            ))
        );
        assert_eq!(
            found.memory,
            PathBuf::from(format!("/sys/fs/cgroup/kubepods.slice/{slice}"))
        );
        PodCgroup::check(&found.freezer, &uid()).unwrap();
        // The same once the sentry has been put on the level of our own.
        let again = cgroups.trim_end().to_owned() + "/dormouse\n";
        assert_eq!(PodCgroup::find_in(1, &uid(), &again, &mounts).unwrap(), found);
    }

    #[test]
    fn nothing_but_the_pods_own_level_is_taken() {
        let mounts = parse_mounts("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let other = UID.replace('5', "6");
        for path in [
            "/".to_owned(),
            "/kubepods".to_owned(),
            format!("/pod{other}"),
            format!("/pod{UID}x"),
            format!("/xpod{UID}"),
            format!("/{UID}"),
            format!("/a-pod{UID}.slice"),
            format!("/kubepods-pod{}x.slice", UID.replace('-', "_")),
            format!("/kubepods-xpod{}.slice", UID.replace('-', "_")),
            format!("/../pod{UID}"),
        ] {
            assert!(
                PodCgroup::find_in(1, &uid(), &format!("0::{path}\n"), &mounts).is_err(),
                "{path}"
            );
        }
        for path in [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/dormouse",
            &format!("/pod{UID}"),
            &format!("pod{UID}/dormouse"),
            &format!("/pod{UID}/../dormouse"),
            &format!("/pod{UID}/x"),
        ] {
            assert!(PodCgroup::check(Path::new(path), &uid()).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(cgroups in ".{0,300}", mounts in ".{0,300}") {
            let _ = PodCgroup::find_in(1, &uid(), &cgroups, &parse_mounts(&mounts));
        }

        #[test]
        fn what_is_found_is_named_after_the_pod(before in "[a-z/]{0,20}", after in "[a-z/.]{0,20}") {
            let mounts = parse_mounts("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
            if let Ok(found) = PodCgroup::find_in(1, &uid(), &format!("0::/{before}/pod{UID}/{after}\n"), &mounts) {
                prop_assert!(PodCgroup::check(&found.freezer, &uid()).is_ok());
            }
        }
    }
}
