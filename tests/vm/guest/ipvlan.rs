//! Packet wake on ipvlan, which the host's kernel may lack: the very test of `dormouse-net`, brought along built.

use std::process::Command;

use dormouse_testkit::host::command::capture;
use dormouse_testkit::vm::PAYLOAD;

pub(super) fn packets_wake() {
    let said = capture(
        Command::new(format!("{PAYLOAD}/net"))
            .args(["--exact", "on_ipvlan", "--nocapture"])
            .env("DORMOUSE_REQUIRE_IPVLAN", "1"),
    )
    .unwrap();
    println!("{said}");
    // A filter that matches nothing is a success for the test harness.
    assert!(said.contains("1 passed") && !said.contains("SKIPPED"), "{said}");
}
