//! Communities as Cilium's objects write them: `64512:1`, `4294967041`, `no-export`, `64512:1:2`.

use serde::{Deserialize, Deserializer};

/// A community of RFC 1997, written as two numbers of 16 bits or one of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard(pub u32);

/// A large community of RFC 8092, written as three numbers of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large(pub [u32; 3]);

/// A community of IANA's registry "BGP Well-known Communities", written by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WellKnown(pub u32);

/// Those that Cilium's objects allow.
const WELL_KNOWN: [(&str, u32); 14] = [
    ("internet", 0x0000_0000),
    ("planned-shut", 0xFFFF_0000),
    ("accept-own", 0xFFFF_0001),
    ("route-filter-translated-v4", 0xFFFF_0002),
    ("route-filter-v4", 0xFFFF_0003),
    ("route-filter-translated-v6", 0xFFFF_0004),
    ("route-filter-v6", 0xFFFF_0005),
    ("llgr-stale", 0xFFFF_0006),
    ("no-llgr", 0xFFFF_0007),
    ("blackhole", 0xFFFF_029A),
    ("no-export", 0xFFFF_FF01),
    ("no-advertise", 0xFFFF_FF02),
    ("no-export-subconfed", 0xFFFF_FF03),
    ("no-peer", 0xFFFF_FF04),
];

/// A decimal number without sign.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|octet| octet.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn standard(text: &str) -> Option<Standard> {
    let Some((high, low)) = text.split_once(':') else {
        return number(text).map(Standard);
    };
    let (high, low): (u16, u16) = (number(high)?, number(low)?);
    Some(Standard(u32::from(high) << 16 | u32::from(low)))
}

fn large(text: &str) -> Option<Large> {
    let parts: Option<Vec<u32>> = text.split(':').map(number).collect();
    parts?.try_into().ok().map(Large)
}

fn well_known(text: &str) -> Option<WellKnown> {
    WELL_KNOWN
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| WellKnown(*value))
}

fn read<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    parse: fn(&str) -> Option<T>,
    such_as: &str,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no community such as {such_as}"))
    })
}

impl<'de> Deserialize<'de> for Standard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, standard, "64512:1 or 4226809857")
    }
}

impl<'de> Deserialize<'de> for Large {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, large, "64512:1:2")
    }
}

impl<'de> Deserialize<'de> for WellKnown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, well_known, "no-export or blackhole")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_are_read_in_all_forms_and_nothing_else_is() {
        assert_eq!(standard("64512:1"), Some(Standard(64512 << 16 | 1)));
        assert_eq!(standard("4294967041"), Some(Standard(0xFFFF_FF01)));
        assert_eq!(large("4200000000:1:2"), Some(Large([4_200_000_000, 1, 2])));
        assert_eq!(well_known("no-export"), Some(WellKnown(0xFFFF_FF01)));
        for wrong in [
            "",
            ":",
            "65536:1",
            "1:65536",
            "-1",
            "+1",
            "1:2:3",
            "4294967296",
        ] {
            assert_eq!(standard(wrong), None, "{wrong}");
        }
        for wrong in ["1:2", "1:2:3:4", "1:2:x", "1:2:4294967296"] {
            assert_eq!(large(wrong), None, "{wrong}");
        }
        assert_eq!(well_known("No-Export"), None);
    }
}
