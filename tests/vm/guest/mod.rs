//! What runs in the guest. Each is an ignored test, started by name by the host's side.

mod cgroup;
mod clock;
mod gvisor;
mod ipvlan;
mod kernel;
mod pages;
mod swap;

use dormouse_testkit::vm;

/// Refuses to do anything on a machine that is not the guest: these tests turn swap on and off for everyone.
fn only_in_guest() {
    assert!(
        vm::in_guest(),
        "this runs in the VM only: cargo test -p dormouse-tests --test vm"
    );
}

macro_rules! guest {
    ($($name:ident => $path:path;)+) => {
        $(
            #[test]
            #[ignore = "runs in the VM, started by the test of the same name"]
            fn $name() {
                only_in_guest();
                $path();
            }
        )+
    };
}

guest! {
    kernel_is_as_promised => kernel::as_promised;
    no_swap_and_plain_swap_and_kubelet => swap::refusals;
    encrypted_swap_comes_holds_and_goes => swap::encrypted;
    swap_survives_a_restart_and_a_torn_start => swap::restart;
    full_swap_is_said => swap::full;
    cgroup_v2_reclaim_and_freeze => cgroup::reclaim_and_freeze;
    packets_wake_on_ipvlan => ipvlan::packets_wake;
    gvisor_runs_on_this_cpu => gvisor::runs;
    gvisor_pod_sleeps_and_wakes => gvisor::sleeps_and_wakes;
}
