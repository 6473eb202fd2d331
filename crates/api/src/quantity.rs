//! Kubernetes' quantities, as far as requests need them.

use k8s_openapi::api::core::v1::Container;

/// Memory that a container requests while its guest dozes or is hibernated.
pub const MEMORY_ASLEEP: &str = "16Mi";

/// Suffixes and how many thousandths they stand for.
const SUFFIXES: [(&str, u128); 14] = [
    ("Ki", 1_024_000),
    ("Mi", 1_048_576_000),
    ("Gi", 1_073_741_824_000),
    ("Ti", 1_099_511_627_776_000),
    ("Pi", 1_125_899_906_842_624_000),
    ("Ei", 1_152_921_504_606_846_976_000),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("", 1000),
];

/// A quantity in thousandths, rounded up; `None` if it is none, or one with an exponent or below a thousandth, which
/// nobody requests.
///
/// Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
#[must_use]
pub fn millis(text: &str) -> Option<u128> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (_, factor) = SUFFIXES.iter().find(|(name, _)| *name == suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let parse = |digits: &str| {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse::<u128>().ok()
        }
    };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits = parse(whole)?.checked_mul(scale)?.checked_add(parse(fraction)?)?;
    Some(digits.checked_mul(*factor)?.div_ceil(scale))
}

/// A quantity in bytes, rounded up; `None` as with [`millis`], or beyond what fits.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    u64::try_from(millis(text)?.div_ceil(1000)).ok()
}

/// Bytes of memory that containers request; `None` if none of them requests any.
#[must_use]
pub fn memory_requests(containers: &[Container]) -> Option<u64> {
    let mut asked = containers.iter().filter_map(|container| {
        let requests = container.resources.as_ref()?.requests.as_ref()?;
        bytes(&requests.get("memory")?.0)
    });
    let first = asked.next()?;
    Some(asked.fold(first, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containers_request_is_summed_up() {
        let containers = |requests: &[Option<&str>]| -> Vec<Container> {
            let container = |memory: &Option<&str>| {
                let requests = memory.map(|memory| serde_json::json!({"requests": {"memory": memory}}));
                serde_json::from_value(serde_json::json!({"name": "c", "resources": requests})).unwrap()
            };
            requests.iter().map(container).collect()
        };
        assert_eq!(
            memory_requests(&containers(&[Some("16Mi"), None, Some("1Ki")])),
            Some((16 << 20) + 1024)
        );
        assert_eq!(memory_requests(&containers(&[None])), None);
        assert_eq!(bytes("1.5"), Some(2));
    }

    #[test]
    fn quantities_are_compared_whatever_they_are_written_in() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Gi", "1024Mi"),
            ("1.5k", "1500"),
            (".5", "500m"),
            ("2.", "2"),
        ] {
            assert_eq!(millis(one), millis(other), "{one} {other}");
            assert!(millis(one).is_some());
        }
        assert!(millis("16Mi") < millis("17M"));
        for text in ["", "m", ".", "1e3", "-1", "1 Mi", "1mi", "999999999999999999999"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
