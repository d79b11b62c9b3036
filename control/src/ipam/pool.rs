//! `cilium.io CiliumLoadBalancerIPPool`: the addresses there are, and for which services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use crate::object;
use crate::source::resource::field::label_selector;

/// A pool as it is written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Written {
    /// Its name and age.
    pub metadata: ObjectMeta,
    /// What it holds.
    pub spec: Spec,
}

/// What a pool holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Its addresses.
    pub blocks: Vec<Block>,
    /// The services it is for; absent: all. The labels `io.kubernetes.service.namespace` and
    /// `io.kubernetes.service.name` are a service's namespace and name.
    pub service_selector: Option<LabelSelector>,
    /// Whether the first and the last address of a `cidr` are given too. Default: yes.
    #[serde(rename = "allowFirstLastIPs")]
    pub allow_first_last_ips: Option<Ends>,
    /// Nothing new is given of it.
    pub disabled: bool,
}

/// Whether the ends of a prefix are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Ends {
    /// They are.
    Yes,
    /// They are not: a network's address and broadcast address.
    No,
}

/// Some addresses: a prefix, or from one to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Block {
    /// A prefix.
    pub cidr: Option<IpNetwork>,
    /// The first address.
    pub start: Option<IpAddr>,
    /// The last address; without it the first is the only one.
    pub stop: Option<IpAddr>,
}

/// A pool that addresses can be given of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// When it was made, and its name: of two that overlap the later is not used.
    pub age: (Option<jiff::Timestamp>, String),
    /// Its addresses.
    pub ranges: Vec<Range>,
    /// The services it is for.
    pub selector: object::LabelSelector,
    /// Nothing new is given of it.
    pub is_disabled: bool,
}

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: IpAddr,
    /// The last; not before the first.
    pub last: IpAddr,
}

impl Written {
    /// The pool it makes.
    ///
    /// # Errors
    /// A block that is none, or a selector that contradicts itself: which field, why, what to write.
    pub fn pool(&self) -> Result<Pool, String> {
        let name = self.metadata.name.clone().unwrap_or_default();
        let with_ends = self.spec.allow_first_last_ips != Some(Ends::No);
        let ranges = self.spec.blocks.iter().enumerate().map(|(place, block)| {
            let range = block.range(with_ends);
            range.map_err(|why| format!("spec.blocks[{place}]: {why}"))
        });
        let selector = self.spec.service_selector.clone().unwrap_or_default();
        let made = self.metadata.creation_timestamp.as_ref();
        Ok(Pool {
            age: (made.map(|time| time.0), name.clone()),
            name,
            ranges: ranges.collect::<Result<_, _>>()?,
            selector: label_selector(&selector)
                .map_err(|why| format!("spec.serviceSelector: {why}"))?,
            is_disabled: self.spec.disabled,
        })
    }
}

impl Block {
    fn range(&self, with_ends: bool) -> Result<Range, String> {
        match (self.cidr, self.start, self.stop) {
            (Some(cidr), None, None) => Ok(Range::of(cidr, with_ends)),
            (None, Some(first), last) => {
                let last = last.unwrap_or(first);
                if first.is_ipv4() != last.is_ipv4() {
                    return Err(format!("{first} and {last} are of two families"));
                }
                if first > last {
                    return Err(format!("stop {last} is before start {first}"));
                }
                Ok(Range { first, last })
            }
            _ => Err("write cidr, or start and stop".to_owned()),
        }
    }
}

impl Range {
    /// A prefix's addresses. A prefix of one or two addresses has no ends to keep back.
    fn of(cidr: IpNetwork, with_ends: bool) -> Self {
        let (first, last) = (cidr.network(), cidr.broadcast());
        let has_inner = number(last) - number(first) > 1;
        if with_ends || !has_inner {
            return Self { first, last };
        }
        Self {
            first: address(first.is_ipv4(), number(first) + 1),
            last: address(first.is_ipv4(), number(last) - 1),
        }
    }

    /// Whether an address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&ip)
    }

    /// Whether both have an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }

    /// How many addresses; the largest number when there are more.
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Its addresses from one on.
    pub fn addresses(&self, from: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let is_v4 = self.first.is_ipv4();
        let from = from.max(number(self.first));
        (from..=number(self.last)).map(move |number| address(is_v4, number))
    }
}

/// An address as a number, within its family.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(is_v4: bool, number: u128) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_v4 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str) -> Result<Pool, String> {
        let text = format!(r#"{{"metadata":{{"name":"a"}},"spec":{spec}}}"#);
        serde_json::from_str::<Written>(&text).unwrap().pool()
    }

    fn first_and_last(spec: &str) -> (String, String) {
        let pool = read(spec).unwrap();
        (
            pool.ranges[0].first.to_string(),
            pool.ranges[0].last.to_string(),
        )
    }

    #[test]
    fn a_block_is_a_prefix_a_range_or_an_address() {
        let of = |first: &str, last: &str| (first.to_owned(), last.to_owned());
        assert_eq!(
            first_and_last(r#"{"blocks":[{"cidr":"192.0.2.0/29"}]}"#),
            of("192.0.2.0", "192.0.2.7")
        );
        assert_eq!(
            first_and_last(r#"{"blocks":[{"cidr":"192.0.2.0/29"}],"allowFirstLastIPs":"No"}"#),
            of("192.0.2.1", "192.0.2.6")
        );
        assert_eq!(
            first_and_last(r#"{"blocks":[{"cidr":"2001:db8::/127"}],"allowFirstLastIPs":"No"}"#),
            of("2001:db8::", "2001:db8::1")
        );
        assert_eq!(
            first_and_last(r#"{"blocks":[{"start":"192.0.2.9"}]}"#),
            of("192.0.2.9", "192.0.2.9")
        );
        let all = read(r#"{"blocks":[{"cidr":"::/0"}]}"#).unwrap();
        assert_eq!(all.ranges[0].size(), u128::MAX);
    }

    #[test]
    fn what_is_no_block_says_where_and_what_to_write() {
        for (block, said) in [
            ("{}", "spec.blocks[0]: write cidr, or start and stop"),
            (
                r#"{"start":"192.0.2.9","stop":"192.0.2.1"}"#,
                "spec.blocks[0]: stop 192.0.2.1 is before start 192.0.2.9",
            ),
            (
                r#"{"start":"192.0.2.9","stop":"::1"}"#,
                "spec.blocks[0]: 192.0.2.9 and ::1 are of two families",
            ),
        ] {
            let error = read(&format!(r#"{{"blocks":[{block}]}}"#)).unwrap_err();
            assert_eq!(error, said);
        }
    }
}
