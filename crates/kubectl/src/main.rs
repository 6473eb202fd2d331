//! The `kubectl dormouse` command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    dormouse_kubectl::main()
}
