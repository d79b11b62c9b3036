//! Which routes of a peer may be used, and why not the others.
//!
//! Not for what we announce: that is what the embedder originates, filtered by peer name alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::config::{ImportPolicy, PrefixRule};
use crate::wire::{Attributes, Family, Role};

/// Why a path is kept but not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rejection {
    /// Our AS is in its path (RFC 4271 §9.1.2).
    AsLoop,
    /// A reflector brings us our own route back (RFC 4456 §8).
    OwnOrigin,
    /// An external peer's path does not begin with its AS (RFC 4271 §6.3).
    FirstAsDiffers,
    /// The prefix is one of ours or lies inside one.
    OwnPrefix,
    /// The prefix is never routed: loopback, link-local, multicast, reserved.
    Martian,
    /// The next hop cannot be one: ours, unspecified, mapped, of the other family.
    BadNextHop,
    /// BFD says that packets to the next hop are lost (RFC 5882 §4.1).
    NextHopDown,
    /// It was for customers of its peer only, or of others: a leak (RFC 9234 §5).
    Leak,
    /// The import policy does not name it.
    NotImported,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsLoop => "our AS is in the path",
            Self::OwnOrigin => "it is our own route",
            Self::FirstAsDiffers => "the path does not begin with the peer's AS",
            Self::OwnPrefix => "we originate this prefix or one that contains it",
            Self::Martian => "such a prefix is never routed",
            Self::BadNextHop => "the next hop is not usable",
            Self::NextHopDown => "BFD is down to the next hop",
            Self::Leak => "it was told to customers only and leaked (RFC 9234)",
            Self::NotImported => "the import policy does not name it",
        })
    }
}

/// The prefixes that a speaker originates, for fast "is it inside one of them".
#[derive(Debug, Default)]
pub(crate) struct OwnPrefixes {
    prefixes: BTreeSet<IpNetwork>,
    /// How many there are of each length.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl OwnPrefixes {
    pub(crate) fn insert(&mut self, prefix: IpNetwork) {
        if self.prefixes.insert(prefix) {
            let length = (Family::of(&prefix), prefix.prefix());
            *self.lengths.entry(length).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, prefix: &IpNetwork) {
        if !self.prefixes.remove(prefix) {
            return;
        }
        let length = (Family::of(prefix), prefix.prefix());
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// Whether a prefix is ours or inside one of ours. An own default route covers nothing.
    fn cover(&self, prefix: &IpNetwork) -> bool {
        if prefix.prefix() == 0 {
            return self.prefixes.contains(prefix);
        }
        let family = Family::of(prefix);
        self.lengths
            .range((family, 1)..=(family, prefix.prefix()))
            .any(|((_, length), _)| {
                IpNetwork::new(prefix.ip(), *length)
                    .and_then(|wider| IpNetwork::new(wider.network(), *length))
                    .is_ok_and(|wider| self.prefixes.contains(&wider))
            })
    }
}

/// What a path is judged by.
pub(crate) struct Judge<'a> {
    pub(crate) policy: &'a ImportPolicy,
    pub(crate) own: &'a OwnPrefixes,
    /// Neighbours that BFD lost.
    pub(crate) unreachable: &'a BTreeSet<IpAddr>,
    pub(crate) local_as: u32,
    pub(crate) router_id: Ipv4Addr,
    /// Our end of the connection, and the next hops that we tell the peer.
    pub(crate) local_addresses: [Option<IpAddr>; 3],
    pub(crate) remote_as: u32,
    pub(crate) internal: bool,
    /// What we are to the peer (RFC 9234).
    pub(crate) role: Option<Role>,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub(crate) extended_next_hop: bool,
    /// The peer is known by its link, so a link-local next hop means something.
    pub(crate) has_link: bool,
}

impl Judge<'_> {
    /// What is wrong with a path.
    pub(crate) fn path(&self, prefix: &IpNetwork, attributes: &Attributes) -> Option<Rejection> {
        self.attributes(attributes)
            .or_else(|| self.prefix(prefix, attributes.next_hop))
    }

    /// What is wrong with attributes, whatever the prefix.
    pub(crate) fn attributes(&self, attributes: &Attributes) -> Option<Rejection> {
        if attributes.as_path.contains(&self.local_as) {
            return Some(Rejection::AsLoop);
        }
        if !self.internal && attributes.as_path.first() != Some(&self.remote_as) {
            return Some(Rejection::FirstAsDiffers);
        }
        if attributes.rare().originator_id == Some(self.router_id) {
            return Some(Rejection::OwnOrigin);
        }
        if self.is_leak(attributes) {
            return Some(Rejection::Leak);
        }
        let next_hop = attributes.next_hop;
        let mapped = matches!(next_hop, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let is_ours = self.local_addresses.contains(&Some(next_hop));
        if mapped || next_hop.is_unspecified() || is_ours {
            return Some(Rejection::BadNextHop);
        }
        if is_link_local(next_hop) && !self.has_link {
            return Some(Rejection::BadNextHop);
        }
        self.unreachable
            .contains(&next_hop)
            .then_some(Rejection::NextHopDown)
    }

    /// RFC 9234 §5: what is for customers only does not come from a customer, and from a peer only by its own word.
    fn is_leak(&self, attributes: &Attributes) -> bool {
        let only_to_customer = attributes.rare().only_to_customer;
        match (self.role, only_to_customer) {
            (Some(Role::Provider | Role::RsServer), Some(_)) => true,
            (Some(Role::Peer), Some(said_by)) => said_by != self.remote_as,
            (Some(Role::Customer | Role::RsClient) | None, _) | (_, None) => false,
        }
    }

    /// What is wrong with a prefix, or with a next hop for it: one of the other family needs what
    /// RFC 8950 negotiates.
    pub(crate) fn prefix(&self, prefix: &IpNetwork, next_hop: IpAddr) -> Option<Rejection> {
        let is_of_other_family = prefix.is_ipv4() != next_hop.is_ipv4();
        if is_of_other_family && !(prefix.is_ipv4() && self.extended_next_hop) {
            return Some(Rejection::BadNextHop);
        }
        if is_martian(prefix) {
            return Some(Rejection::Martian);
        }
        if self.own.cover(prefix) {
            return Some(Rejection::OwnPrefix);
        }
        let imported = match self.policy {
            ImportPolicy::Nothing => false,
            ImportPolicy::All => true,
            ImportPolicy::Prefixes(rules) => rules.iter().any(|rule| rule.matches(prefix)),
        };
        (!imported).then_some(Rejection::NotImported)
    }
}

impl PrefixRule {
    /// Whether the rule names a route.
    pub fn matches(&self, route: &IpNetwork) -> bool {
        let own = self.prefix.prefix();
        let longest = if self.prefix.is_ipv4() { 32 } else { 128 };
        let (low, high) = match (self.ge, self.le) {
            (None, None) => (own, own),
            (Some(ge), None) => (ge, longest),
            (None, Some(le)) => (own, le),
            (Some(ge), Some(le)) => (ge, le),
        };
        covers(&self.prefix, route) && (low..=high).contains(&route.prefix())
    }
}

fn covers(wider: &IpNetwork, narrower: &IpNetwork) -> bool {
    wider.prefix() <= narrower.prefix() && wider.contains(narrower.ip())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether a prefix lies in space that is never routed between nodes.
fn is_martian(prefix: &IpNetwork) -> bool {
    let length = prefix.prefix();
    match prefix.ip() {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            (matches!(first, 0 | 127) && length >= 8)
                || (address.is_link_local() && length >= 16)
                || (first >= 224 && length >= 3)
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            (segments[0] & 0xFFC0 == 0xFE80 && length >= 10)
                || (segments[0] & 0xFF00 == 0xFF00 && length >= 8)
                || (address.to_ipv4_mapped().is_some() && length >= 96)
                || (length == 128 && (address.is_loopback() || address.is_unspecified()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn rule(prefix: &str, ge: Option<u8>, le: Option<u8>) -> PrefixRule {
        PrefixRule {
            prefix: net(prefix),
            ge,
            le,
        }
    }

    #[test]
    fn a_rule_without_bounds_names_its_prefix_only() {
        let rule = rule("10.0.0.0/8", None, None);
        assert!(rule.matches(&net("10.0.0.0/8")));
        assert!(!rule.matches(&net("10.1.0.0/16")));
    }

    #[test]
    fn bounds_select_lengths_inside_the_prefix() {
        let between = rule("10.0.0.0/8", Some(16), Some(24));
        assert!(between.matches(&net("10.1.0.0/16")));
        assert!(between.matches(&net("10.1.2.0/24")));
        assert!(!between.matches(&net("10.0.0.0/8")));
        assert!(!between.matches(&net("10.1.2.3/32")));
        assert!(!between.matches(&net("11.1.0.0/16")));
        assert!(rule("10.0.0.0/8", Some(32), None).matches(&net("10.1.2.3/32")));
        assert!(rule("2001:db8::/32", None, Some(64)).matches(&net("2001:db8:1::/48")));
        assert!(!rule("0.0.0.0/0", None, Some(32)).matches(&net("2001:db8::/32")));
    }

    static NONE: BTreeSet<IpAddr> = BTreeSet::new();

    fn judge<'a>(policy: &'a ImportPolicy, own: &'a OwnPrefixes) -> Judge<'a> {
        Judge {
            policy,
            own,
            unreachable: &NONE,
            local_as: 65001,
            router_id: Ipv4Addr::new(10, 0, 0, 1),
            local_addresses: [Some(IpAddr::from([192, 0, 2, 1])), None, None],
            remote_as: 65002,
            internal: false,
            role: None,
            extended_next_hop: false,
            has_link: false,
        }
    }

    fn verdict(judge: &Judge<'_>, prefix: &str) -> Option<Rejection> {
        let next_hop = match net(prefix) {
            IpNetwork::V4(_) => IpAddr::from([192, 0, 2, 2]),
            IpNetwork::V6(_) => "2001:db8::2".parse().unwrap(),
        };
        judge.prefix(&net(prefix), next_hop)
    }

    #[test]
    fn martians_are_refused_by_every_policy_and_the_default_route_is_none() {
        let own = OwnPrefixes::default();
        let judge = judge(&ImportPolicy::All, &own);
        for martian in [
            "0.1.0.0/16",
            "127.0.0.0/8",
            "169.254.7.0/24",
            "224.0.0.0/4",
            "239.1.1.1/32",
            "240.0.0.0/4",
            "255.255.255.255/32",
            "fe80::/10",
            "ff02::/16",
            "::1/128",
            "::ffff:10.0.0.0/104",
        ] {
            assert_eq!(
                verdict(&judge, martian),
                Some(Rejection::Martian),
                "{martian}"
            );
        }
        for routed in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "2001:db8::/32"] {
            assert_eq!(verdict(&judge, routed), None, "{routed}");
        }
    }

    #[test]
    fn own_prefixes_and_what_lies_inside_them_are_refused() {
        let mut own = OwnPrefixes::default();
        for ours in [net("10.1.0.0/24"), net("2001:db8:1::/64"), net("0.0.0.0/0")] {
            own.insert(ours);
        }
        let judge = judge(&ImportPolicy::All, &own);
        for ours in [
            "10.1.0.0/24",
            "10.1.0.7/32",
            "2001:db8:1::7/128",
            "0.0.0.0/0",
        ] {
            assert_eq!(verdict(&judge, ours), Some(Rejection::OwnPrefix), "{ours}");
        }
        for others in ["10.1.0.0/16", "10.1.1.0/24", "2001:db8::/32"] {
            assert_eq!(verdict(&judge, others), None, "{others}");
        }
    }

    #[test]
    fn nothing_is_imported_by_default() {
        let own = OwnPrefixes::default();
        let policy = ImportPolicy::default();
        assert_eq!(
            verdict(&judge(&policy, &own), "10.0.0.0/8"),
            Some(Rejection::NotImported)
        );
    }

    #[test]
    fn loops_foreign_first_ases_and_impossible_next_hops_are_refused() {
        let own = OwnPrefixes::default();
        let judge = judge(&ImportPolicy::All, &own);
        let with = |as_path: &[u32], next_hop: &str| {
            let mut attributes = Attributes::local(next_hop.parse().unwrap());
            attributes.as_path = as_path.to_vec();
            judge.attributes(&attributes)
        };
        assert_eq!(with(&[65002], "192.0.2.2"), None);
        assert_eq!(with(&[65002, 65001], "192.0.2.2"), Some(Rejection::AsLoop));
        assert_eq!(with(&[65009], "192.0.2.2"), Some(Rejection::FirstAsDiffers));
        assert_eq!(with(&[], "192.0.2.2"), Some(Rejection::FirstAsDiffers));
        assert_eq!(with(&[65002], "192.0.2.1"), Some(Rejection::BadNextHop));
        assert_eq!(
            with(&[65002], "::ffff:192.0.2.2"),
            Some(Rejection::BadNextHop)
        );
    }

    #[test]
    fn what_is_for_customers_only_is_a_leak_where_it_must_not_come_from() {
        let own = OwnPrefixes::default();
        let mut judge = judge(&ImportPolicy::All, &own);
        let mut attributes = Attributes::local(IpAddr::from([192, 0, 2, 2]));
        attributes.as_path = vec![65002];
        // RFC 9234 §5, ingress: by our role, an OTC of the neighbour's AS and of another one.
        for (role, of_it, of_another) in [
            (None, false, false),
            (Some(Role::Customer), false, false),
            (Some(Role::RsClient), false, false),
            (Some(Role::Peer), false, true),
            (Some(Role::Provider), true, true),
            (Some(Role::RsServer), true, true),
        ] {
            judge.role = role;
            for (asn, is_leak) in [
                (None, false),
                (Some(65002), of_it),
                (Some(65009), of_another),
            ] {
                attributes.rare = None;
                if let Some(asn) = asn {
                    attributes.keep_to_customers(asn);
                }
                let expected = is_leak.then_some(Rejection::Leak);
                assert_eq!(judge.attributes(&attributes), expected, "{role:?} {asn:?}");
            }
        }
    }
}
