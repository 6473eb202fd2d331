//! `dormouse-runsc`: an OCI runtime wrapper around runsc that hides a sleeping pod from the shim.
//!
//! The stock gVisor shim starts it, by its `binary_name`, for every verb. It becomes the real runsc by
//! `exec` for all of them, but first wakes the pod for those that need its guest, and answers `state`,
//! `events --stats`, `ps` and `update` itself while the pod sleeps. It needs no agent: what it must know is in
//! the run directory, and it can wake a pod alone. See `docs/operations/files.md` for the files.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = dormouse_runsc::failpoints::start();
    dormouse_runsc::run(std::env::args_os().collect())
}
