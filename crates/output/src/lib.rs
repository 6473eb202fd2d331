//! How Dormouse's command lines print: tables for people, JSON and YAML for programs.

mod print;
mod table;
mod text;
mod units;

pub use print::{Format, OutputError, complain, json, json_line, line, print, yaml};
pub use table::table;
pub use text::{clean, or_dash};
pub use units::{mib, millis, millis_number, span};
