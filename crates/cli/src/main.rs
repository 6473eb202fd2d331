//! The `dormouse` command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    dormouse_cli::main()
}
