use super::super::Verdict;
use super::*;

fn some(text: &str) -> Option<Result<String, String>> {
    Some(Ok(text.to_owned()))
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|&item| item.to_owned()).collect()
}

#[test]
fn agent_configurations() {
    let path = Path::new("/etc/dormouse/agent.toml");
    let judged = |text: Option<Result<String, String>>| {
        let (check, config) = agent_config(path, text.as_ref());
        (
            check.verdict,
            config.swap.brings_own(),
            config.swap.allow_plain_swap,
        )
    };
    assert_eq!(judged(None), (Verdict::Ok, false, false));
    assert_eq!(judged(Some(Err("denied".into()))), (Verdict::Fail, false, false));
    assert_eq!(
        judged(some(
            "version = 1\n[swap]\nallow_plain_swap = true\n[swap.zram]\n"
        )),
        (Verdict::Ok, true, true)
    );
    assert_eq!(
        judged(some("version = 1\n[swap.file]\nsize_mib = 1")),
        (Verdict::Ok, true, false)
    );
    assert_eq!(judged(some("version = ")), (Verdict::Fail, false, false));
}

#[test]
fn wrapper_configurations() {
    let path = Path::new("/etc/dormouse/runsc.json");
    assert_eq!(wrapper_config(path, None).0.verdict, Verdict::Warn);
    let (check, config) = wrapper_config(
        path,
        some(r#"{"runsc":"/usr/bin/runsc","run_dir":"/run/dormouse"}"#).as_ref(),
    );
    assert_eq!(check.verdict, Verdict::Ok);
    assert_eq!(config.unwrap().runsc, Path::new("/usr/bin/runsc"));
    assert_eq!(wrapper_config(path, some("{}").as_ref()).0.verdict, Verdict::Fail);
}

#[test]
fn helper_binaries_belong_to_root() {
    let judged = |path: &str, uid, mode| {
        runsc(
            Path::new(path),
            Ok(FileFacts {
                uid,
                mode,
                directory: false,
            }),
        )
        .verdict
    };
    assert_eq!(judged("/usr/bin/runsc", 0, 0o100_755), Verdict::Ok);
    assert_eq!(judged("/usr/bin/runsc", 1000, 0o100_755), Verdict::Fail);
    assert_eq!(judged("/usr/bin/runsc", 0, 0o100_775), Verdict::Fail);
    assert_eq!(judged("/usr/bin/runsc", 0, 0o100_644), Verdict::Fail);
    assert_eq!(judged("runsc", 0, 0o100_755), Verdict::Fail);
    assert_eq!(runsc(Path::new("/x"), Err("none".into())).verdict, Verdict::Fail);
}

#[test]
fn containerds_and_handlers() {
    let judged = |name: &str, version: &str| {
        containerd(&dormouse_cri::RuntimeVersion {
            name: name.into(),
            version: version.into(),
        })
        .verdict
    };
    assert_eq!(judged("containerd", "2.3.7"), Verdict::Ok);
    assert_eq!(judged("containerd", "1.7.2"), Verdict::Warn);
    assert_eq!(judged("cri-o", "1.33"), Verdict::Fail);
    assert_eq!(handler("d", &owned(&["runc", "d"])).verdict, Verdict::Ok);
    assert_eq!(handler("d", &[]).verdict, Verdict::Warn);
    let missing = handler("d", &owned(&["runc"]));
    assert_eq!(missing.verdict, Verdict::Fail);
    assert!(missing.advice.contains("runtimes.d"));
}

#[test]
fn cgroup_versions() {
    let judged = |v1: &[&str], v2: Option<&[&str]>, reclaim| {
        cgroups(&Cgroups {
            v1: owned(v1),
            v2: v2.map(owned),
            reclaim,
        })
        .verdict
    };
    assert_eq!(judged(&["memory", "freezer"], Some(&[]), false), Verdict::Ok);
    assert_eq!(judged(&["memory"], None, false), Verdict::Fail);
    assert_eq!(judged(&[], Some(&["cpu", "memory"]), true), Verdict::Ok);
    assert_eq!(judged(&[], Some(&["memory"]), false), Verdict::Fail);
    assert_eq!(judged(&[], Some(&["cpu"]), true), Verdict::Fail);
    assert_eq!(judged(&[], None, false), Verdict::Fail);
    let v2 = Cgroups {
        v2: Some(owned(&["memory"])),
        ..Cgroups::default()
    };
    let limit = |value: &str| swap_limits(&v2, &[("/kubepods".into(), value.into())]).verdict;
    assert_eq!(limit("max"), Verdict::Ok);
    assert_eq!(limit("0"), Verdict::Fail);
}

#[test]
fn kubelets() {
    let path = Path::new("/var/lib/kubelet/config.yaml");
    let judged =
        |text: Option<Result<String, String>>, swap, own| kubelet(path, text.as_ref(), swap, own).verdict;
    assert_eq!(judged(None, true, true), Verdict::Ok);
    assert_eq!(
        judged(
            some("kind: KubeletConfiguration\nfailSwapOn: false\nx: [1]\n"),
            true,
            true
        ),
        Verdict::Ok
    );
    assert_eq!(
        judged(some("kind: KubeletConfiguration\n"), false, false),
        Verdict::Warn
    );
    assert_eq!(
        judged(some("kind: KubeletConfiguration\n"), true, false),
        Verdict::Fail
    );
    assert_eq!(judged(some("failSwapOn: true\n"), false, true), Verdict::Fail);
    assert_eq!(judged(some("failSwapOn: [\n"), false, false), Verdict::Warn);
    assert_eq!(judged(Some(Err("denied".into())), false, false), Verdict::Warn);
}

#[test]
fn run_directories() {
    let judged = |facts, tmpfs| run_dir(Path::new("/run/dormouse"), facts, tmpfs).verdict;
    let facts = |uid, mode| {
        Some(FileFacts {
            uid,
            mode,
            directory: true,
        })
    };
    assert_eq!(judged(None, true), Verdict::Warn);
    assert_eq!(judged(facts(0, 0o40700), true), Verdict::Ok);
    assert_eq!(judged(facts(0, 0o40700), false), Verdict::Warn);
    assert_eq!(judged(facts(0, 0o40777), true), Verdict::Fail);
    assert_eq!(judged(facts(5, 0o40700), true), Verdict::Fail);
}

#[test]
fn the_rest() {
    assert_eq!(root(0).verdict, Verdict::Ok);
    assert_eq!(root(1000).verdict, Verdict::Fail);
    assert_eq!(page_out(Support::Yes).verdict, Verdict::Ok);
    assert_eq!(page_out(Support::No).verdict, Verdict::Fail);
    assert_eq!(page_out(Support::Forbidden).verdict, Verdict::Warn);
    assert_eq!(pressure(false).verdict, Verdict::Warn);
    assert_eq!(clock(1970, Some(true)).verdict, Verdict::Fail);
    assert_eq!(clock(2026, Some(false)).verdict, Verdict::Warn);
    assert_eq!(clock(2026, None).verdict, Verdict::Ok);
}

#[test]
fn releases_of_runsc() {
    use dormouse_rpc::v1::Capability;
    let usable = Runsc {
        version: "release-1".into(),
        path: "/opt/runsc".into(),
        origin: "Current".into(),
        restore: Some(Capability {
            available: true,
            ..Default::default()
        }),
        snapshots: 3,
        ..Default::default()
    };
    assert_eq!(release(&usable), None);
    let ending = |days| Runsc {
        until: "2027-03-01".into(),
        days_left: Some(days),
        ..usable.clone()
    };
    assert_eq!(release(&ending(31)), None);
    let check = release(&ending(30)).unwrap();
    assert_eq!(check.verdict, Verdict::Warn);
    assert!(
        check.found.contains("30 days") && check.found.contains("3 snapshots"),
        "{check:?}"
    );
    let refused = Runsc {
        origin: "Kept".into(),
        restore: Some(Capability {
            reason: "RuntimeVersionEnded".into(),
            message: "give it a later day".into(),
            ..Default::default()
        }),
        ..ending(0)
    };
    let check = release(&refused).unwrap();
    assert!(check.found.contains("RuntimeVersionEnded"), "{check:?}");
    assert_eq!(check.advice, "give it a later day");
    // Nobody needs it.
    let unneeded = Runsc {
        snapshots: 0,
        ..refused.clone()
    };
    assert_eq!(release(&unneeded), None);
    let current = Runsc {
        origin: "Current".into(),
        ..unneeded
    };
    assert!(release(&current).is_some(), "new pods are born under it");
}
