//! An agent and a controller, or a command line, of neighbouring versions: what one says more, or less, the other can read.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use dormouse_core::{Policy, Rung};
use dormouse_rpc::v1;
use prost::Message;

/// A pod as version 0.1.0 puts it on the wire: what is written here stays as it is for as long as the package is called v1.
const OF_THE_FIRST: &str = "0a017512026e731a03626f782a0667766973 6f7238014002521008011a0208052805\
                            3001380140015801580ab201037331 30";

fn pod() -> v1::Pod {
    v1::Pod {
        uid: "u".to_owned(),
        namespace: "ns".to_owned(),
        name: "box".to_owned(),
        runtime: "gvisor".to_owned(),
        managed: true,
        rung: v1::Rung::Frozen.into(),
        policy: Some(v1::Policy {
            durable: true,
            ..v1::Policy::default()
        }),
        policy_generation: 7,
        snapshot_id: "s10".to_owned(),
        ..v1::Pod::default()
    }
}

#[test]
fn print() {
    let bytes = pod().encode_to_vec();
    println!("{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
}
