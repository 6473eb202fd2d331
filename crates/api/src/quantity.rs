//! Kubernetes' quantities, as far as requests need them.

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

#[cfg(test)]
mod tests {
    use super::*;

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
