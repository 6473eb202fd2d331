//! The wrapper's command line.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use dormouse_runsc::args::{Invocation, with_force};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let argv: Vec<OsString> = data
        .split(|&b| b == 0)
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    let call = Invocation::parse(&argv);
    let _ = (
        call.root(),
        call.container(),
        call.is_set("force"),
        call.flag("all"),
    );
    let forced = with_force(&argv, &call.verb);
    if call.verb == "delete" && call.flag("force").is_none() {
        let again = Invocation::parse(&forced);
        assert_eq!(
            (again.verb.as_str(), again.root(), again.positional.as_slice()),
            ("delete", call.root(), call.positional.as_slice())
        );
        assert!(again.is_set("force") && forced.len() == argv.len() + 1);
    }
});
