//! The header of a gVisor image (`checkpoint.img`).
//!
//! Eight bytes of magic, a big-endian `u64` length, and as many bytes of JSON: a map from text to text.
//! The guest's memory and kernel state follow, which are none of ours. The header is written by runsc but
//! what stands in it is the pod's doing (its OCI specs), so it is read with limits.

use std::collections::BTreeMap;
use std::io::{self, Read};

use dormouse_core::Reason;
use serde::de::IgnoredAny;

/// What a gVisor image begins with.
pub const MAGIC: &[u8; 8] = b"gVisorSF";

/// The longest JSON of a header, in bytes. The specs of a pod with hundreds of containers fit.
pub const LENGTH_LIMIT: usize = 8 << 20;

/// The most containers of one image.
pub const MAX_CONTAINERS: usize = 512;

/// The longest of the short values (version, network, compression), in bytes.
const MAX_VALUE: usize = 256;

/// What runsc calls a container that has no name: the first is the pod sandbox's own.
const UNNAMED: &str = "__no_name_";

/// What the header of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the runsc that wrote it calls itself, as in `release-20260905.0`.
    pub runsc_version: String,
    /// How many containers' processes are in the image.
    pub container_count: usize,
    /// The names of the containers whose specs are in the image, sorted; may include init containers that
    /// have ended. The pod sandbox's own has the empty name.
    pub containers: Vec<String>,
    /// The kind of network, as in `sandbox`; empty where runsc does not say.
    pub network: String,
    /// How the image is compressed, as in `none` or `flate-best-speed`; empty where runsc does not say.
    pub compression: String,
    /// How long magic, length and JSON are together, in bytes.
    pub length: usize,
}

/// The header of an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The image ends within the header.
    #[error("the image ends within its header")]
    Short,
    /// Not a gVisor image.
    #[error("not a gVisor image: it does not begin with gVisorSF")]
    Magic,
    /// The header claims to be longer than any header is.
    #[error("the image's header claims {found} bytes, more than {LENGTH_LIMIT}")]
    TooLong {
        /// The length claimed, in bytes.
        found: u64,
    },
    /// Not the JSON that a header is.
    #[error("the image's header is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// A value is missing.
    #[error("the image's header lacks {0}")]
    Missing(&'static str),
    /// A value cannot be used.
    #[error("the image's header has a value of {0} that cannot be used")]
    BadValue(&'static str),
    /// The image cannot be read.
    #[error("cannot read the image's header: {0}")]
    Io(#[source] io::Error),
}

impl HeaderError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Io(_) => Reason::SnapshotStoreFailed,
            _ => Reason::SnapshotInvalid,
        }
    }
}

/// Reads the header off the beginning of an image.
///
/// # Errors
/// [`HeaderError`]
pub fn read(image: &mut dyn Read) -> Result<Header, HeaderError> {
    let mut data = vec![0; 16];
    fill(image, &mut data)?;
    let length = declared(&data)?;
    let total = length.saturating_add(16);
    let mut json = vec![0; length];
    fill(image, &mut json)?;
    parse_json(&json, total)
}

fn fill(image: &mut dyn Read, data: &mut [u8]) -> Result<(), HeaderError> {
    image.read_exact(data).map_err(|e| {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            HeaderError::Short
        } else {
            HeaderError::Io(e)
        }
    })
}

/// Reads the header of an image from its first bytes.
///
/// # Errors
/// [`HeaderError`]; [`HeaderError::Short`] also if `data` is only the first part of the header.
pub fn parse(data: &[u8]) -> Result<Header, HeaderError> {
    let length = declared(data)?;
    let end = length.saturating_add(16);
    let json = data.get(16..end).ok_or(HeaderError::Short)?;
    parse_json(json, end)
}

/// The length of the JSON by the first 16 bytes.
fn declared(data: &[u8]) -> Result<usize, HeaderError> {
    let magic = data.get(..8).ok_or(HeaderError::Short)?;
    if magic != MAGIC {
        return Err(HeaderError::Magic);
    }
    let length = data
        .get(8..16)
        .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
        .map(u64::from_be_bytes)
        .ok_or(HeaderError::Short)?;
    usize::try_from(length)
        .ok()
        .filter(|l| *l <= LENGTH_LIMIT)
        .ok_or(HeaderError::TooLong { found: length })
}

fn parse_json(json: &[u8], length: usize) -> Result<Header, HeaderError> {
    // runsc adds keys from version to version; those that nobody here needs are passed over.
    let map: BTreeMap<String, String> = serde_json::from_slice(json)?;
    let short = |key: &'static str| match map.get(key) {
        Some(value) if value.len() <= MAX_VALUE && !value.contains(char::is_control) => {
            Ok(Some(value.clone()))
        }
        Some(_) => Err(HeaderError::BadValue(key)),
        None => Ok(None),
    };
    let runsc_version = short("runsc_version")?
        .filter(|v| !v.is_empty())
        .ok_or(HeaderError::Missing("runsc_version"))?;
    let container_count = short("container_count")?
        .ok_or(HeaderError::Missing("container_count"))?
        .parse()
        .ok()
        .filter(|n| (1..=MAX_CONTAINERS).contains(n))
        .ok_or(HeaderError::BadValue("container_count"))?;
    let specs = map
        .get("container_specs")
        .ok_or(HeaderError::Missing("container_specs"))?;
    let specs: BTreeMap<String, IgnoredAny> = serde_json::from_str(specs)?;
    if specs.len() > MAX_CONTAINERS
        || specs.len() < container_count
        || specs.keys().any(|n| n.len() > MAX_VALUE)
    {
        return Err(HeaderError::BadValue("container_specs"));
    }
    let mut containers: Vec<String> = specs
        .into_keys()
        .map(|name| {
            if name.starts_with(UNNAMED) {
                String::new()
            } else {
                name
            }
        })
        .collect();
    containers.sort();
    Ok(Header {
        runsc_version,
        container_count,
        containers,
        network: short("network")?.unwrap_or_default(),
        compression: short("compression")?.unwrap_or_default(),
        length,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(json: &str) -> Vec<u8> {
        let mut data = MAGIC.to_vec();
        data.extend((json.len() as u64).to_be_bytes());
        data.extend(json.as_bytes());
        data
    }

    const GOLDEN: &str = r#"{"_timestamp":"1","compression":"none","container_count":"2",
        "container_specs":"{\"__no_name_0\":{\"ociVersion\":\"1.1.0\"},\"main\":{\"process\":{\"args\":[\"sh\"]}}}",
        "cpu_usage":"1ms","gvisor_wall_time":"2s","network":"sandbox","runsc_version":"release-20260905.0"}"#;

    #[test]
    fn golden() {
        let mut data = image(GOLDEN);
        let length = data.len();
        data.extend(b"the guest's state");
        let header = parse(&data).unwrap();
        assert_eq!(
            header,
            Header {
                runsc_version: "release-20260905.0".into(),
                container_count: 2,
                containers: vec![String::new(), "main".into()],
                network: "sandbox".into(),
                compression: "none".into(),
                length,
            }
        );
        assert_eq!(read(&mut data.as_slice()).unwrap(), header);
        for end in 0..length {
            assert!(matches!(parse(&data[..end]), Err(HeaderError::Short)), "{end}");
            assert!(
                matches!(read(&mut &data[..end]), Err(HeaderError::Short)),
                "{end}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_header() {
        let mut long = image("{}");
        long[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(matches!(parse(&long), Err(HeaderError::TooLong { .. })));
        // A reader must not make room for what is only claimed.
        assert!(matches!(
            read(&mut long.as_slice()),
            Err(HeaderError::TooLong { .. })
        ));
        assert!(matches!(
            parse(b"gVisorSG\0\0\0\0\0\0\0\0"),
            Err(HeaderError::Magic)
        ));
        assert!(matches!(parse(&image("[]")), Err(HeaderError::Damaged(_))));
        assert!(matches!(parse(&image("{\"a\":1}")), Err(HeaderError::Damaged(_))));
        assert!(matches!(
            parse(&image("{}")),
            Err(HeaderError::Missing("runsc_version"))
        ));
        for (from, to) in [
            ("\"2\"", "\"0\""),
            ("\"2\"", "\"3\""),
            ("\"2\"", "\"-2\""),
            ("\"2\"", "\"99999999999999999999\""),
            ("release-20260905.0", "a\\u0000b"),
        ] {
            assert!(
                matches!(
                    parse(&image(&GOLDEN.replace(from, to))),
                    Err(HeaderError::BadValue(_))
                ),
                "{to}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..400), begin in any::<bool>()) {
            let data = if begin { [MAGIC.as_slice(), &[0; 6], &data].concat() } else { data };
            let (parsed, streamed) = (parse(&data), read(&mut data.as_slice()));
            prop_assert_eq!(parsed.ok(), streamed.ok());
        }

        #[test]
        fn what_is_read_is_within_limits(at in 0_usize..GOLDEN.len(), byte in any::<u8>()) {
            let mut data = image(GOLDEN);
            data[16 + at] = byte;
            if let Ok(header) = parse(&data) {
                prop_assert!(header.container_count <= header.containers.len());
                prop_assert!(!header.runsc_version.is_empty() && header.length == data.len());
            }
        }
    }
}
