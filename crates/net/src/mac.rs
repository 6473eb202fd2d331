//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it names one interface: neither a group's, nor broadcast, nor all zeroes.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// The text is not six bytes in hexadecimal with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is six bytes in hexadecimal with colons between them")]
pub struct NotAMacAddress;

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(NotAMacAddress)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NotAMacAddress);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMacAddress)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NotAMacAddress),
        }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NotAMacAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac = MacAddress([2, 0, 0xab, 0xff, 9, 1]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in [
            "",
            "02:00:ab:ff:09",
            "02:00:ab:ff:09:01:02",
            "2:0:ab:ff:9:1",
            "02:00:ab:ff:09:+1",
            "02:00:ab:ff:09:é",
        ] {
            assert_eq!(bad.parse::<MacAddress>(), Err(NotAMacAddress), "{bad}");
        }
    }
}
