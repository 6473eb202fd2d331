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

/// A pod as version 0.1.0 puts it on the wire: what is written here can be read for as long as the package is called v1.
const OF_THE_FIRST: &str = "0a017512026e731a03626f782a06677669736f7238014002520240015807b20103733130";

/// Fields that do not exist, 4001 to 4004, one of each wire type: a number, eight bytes, a text, four bytes.
const UNKNOWN: [&str; 4] = [
    "88fa0105",
    "91fa010102030405060708",
    "9afa010161",
    "a5fa0101020304",
];

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

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn what_the_first_version_says_is_understood() {
    assert_eq!(v1::Pod::decode(&*bytes(OF_THE_FIRST)).unwrap(), pod());
    assert_eq!(pod().encode_to_vec(), bytes(OF_THE_FIRST));
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let mut later = bytes(OF_THE_FIRST);
    later.extend(bytes(&UNKNOWN.concat()));
    assert_eq!(v1::Pod::decode(&*later).unwrap(), pod());
    // In a request, too: an agent carries out the order of a later controller.
    let order = v1::FreezeRequest {
        pod: Some(v1::PodRef {
            uid: "u".to_owned(),
            ..v1::PodRef::default()
        }),
        ..v1::FreezeRequest::default()
    };
    let mut later = order.encode_to_vec();
    later.extend(bytes(&UNKNOWN.concat()));
    assert_eq!(v1::FreezeRequest::decode(&*later).unwrap(), order);
}

#[test]
fn words_of_a_later_version_are_unspecified() {
    let mut later = pod();
    later.rung = 4711;
    later.moving_to = 4711;
    let read = v1::Pod::decode(&*later.encode_to_vec()).unwrap();
    assert_eq!((read.rung().to_core(), read.moving_to().to_core()), (None, None));
    assert_eq!(read.uid, "u");
    let event = v1::WatchResponse {
        kind: 4711,
        ..v1::WatchResponse::default()
    };
    let read = v1::WatchResponse::decode(&*event.encode_to_vec()).unwrap();
    assert_eq!(read.kind(), v1::watch_response::Kind::Unspecified);
    // What a guest may do is not guessed.
    let policy = v1::Policy {
        resume_policy: 4711,
        ..v1::Policy::default()
    };
    assert!(Policy::try_from(policy).is_err());
}

#[test]
fn what_an_earlier_version_does_not_say_has_a_meaning() {
    let earlier = v1::Pod::decode(&[][..]).unwrap();
    assert_eq!(earlier, v1::Pod::default());
    assert_eq!(earlier.rung().to_core(), None);
    assert_eq!(
        Policy::try_from(v1::Policy::default()).unwrap(),
        Policy::default()
    );
    assert_eq!(pod().rung().to_core(), Some(Rung::Frozen));
}
