//! Peer profiles -> what they add to the peers that they select.
//!
//! Of several profiles that select a peer the first by name counts, and the others say so: two halves of
//! what two people meant would be neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fairlead_bgp::bfd::{Hops, Timing};
use fairlead_bgp::{BfdConfig, Role};
use ipnetwork::IpNetwork;

use super::super::Conditions;
use super::selector_of;
use crate::desired::{Neighbor, NodeState, Profile, Range, VirtualRouter};
use crate::source::resource::Resources;
use crate::source::resource::peer_profile::{self, Bfd, PeerProfile, PeerSelector};

const KIND: &str = "BGPPeerProfile";

/// Adds what profiles say to the peers of this node.
pub(super) fn apply(
    resources: &Resources,
    node: &NodeState,
    routers: &mut BTreeMap<String, VirtualRouter>,
    conditions: &mut Conditions,
) {
    let for_this_node: Vec<_> = resources
        .peer_profiles
        .iter()
        .filter(|(_, profile)| {
            let selector = profile.object.spec.node_selector.as_ref();
            selector.is_none_or(|selector| selector_of(selector).matches(&node.labels))
        })
        .collect();
    let mut impossible = BTreeSet::new();
    for (instance, router) in &mut *routers {
        for ((address, port), neighbor) in &mut router.neighbors {
            let mut selecting = for_this_node
                .iter()
                .filter(|(_, profile)| selects(&profile.object, *address, neighbor));
            let Some((first, chosen)) = selecting.next() else {
                continue;
            };
            for (name, profile) in selecting {
                let message = format!(
                    "peer {address}: {KIND} {first} selects it as well, and is in force; narrow `peers` of one of the two"
                );
                conditions.add(KIND, name, &profile.origin, "PeerConflict", message);
            }
            let is_multihop = neighbor.ebgp_multihop_ttl > 1;
            let said = &chosen.object.spec;
            let is_one = neighbor.interface.is_none() && said.range.is_none();
            let bfd = said.bfd.as_ref().filter(|_| is_one);
            if said.bfd.is_some() && bfd.is_none() {
                let message = format!(
                    "peer {address}: BFD watches neither peers by link-local addresses nor ranges"
                );
                conditions.add(KIND, first, &chosen.origin, "FieldUnsupported", message);
            }
            let restarts = neighbor.graceful_restart.is_some();
            let long_lived = said.long_lived_stale_seconds.filter(|_| restarts);
            if said.long_lived_stale_seconds.is_some() && !restarts {
                let message = format!(
                    "peer {address}: longLivedStaleSeconds begins after the restart time: enable its gracefulRestart"
                );
                conditions.add(KIND, first, &chosen.origin, "NoGracefulRestart", message);
            }
            let is_internal = neighbor.asn == router.local_asn;
            let role = said.role.filter(|_| !is_internal);
            if said.role.is_some() && role.is_none() {
                let message = format!(
                    "peer {address}: it is of our own AS, and roles are for peers of others (RFC 9234)"
                );
                conditions.add(KIND, first, &chosen.origin, "FieldUnsupported", message);
            }
            let range = said
                .range
                .as_ref()
                .map(|said| range(said, *address, neighbor));
            let range = range.transpose().unwrap_or_else(|why| {
                let message =
                    format!("peer {address}: {why}; there is no session with anybody of it");
                conditions.add(KIND, first, &chosen.origin, "RangeImpossible", message);
                impossible.insert((instance.clone(), (*address, *port)));
                None
            });
            neighbor.profile = Profile {
                range,
                bfd: bfd.map(|bfd| watch(bfd, is_multihop)),
                ttl_security: said.ttl_security_hops,
                passive: said.passive,
                max_prefixes: said.max_prefixes,
                shutdown: said.shutdown.clone(),
                graceful_shutdown: said.graceful_shutdown,
                transit: said.transit,
                long_lived_stale_time: long_lived.map(|s| Duration::from_secs(s.into())),
                add_path: said.add_path,
                role: role.map(what_we_are),
                role_strict: said.role_strict,
            };
        }
    }
    for (name, profile) in &for_this_node {
        let selects_any = routers.values().any(|router| {
            let mut neighbors = router.neighbors.iter();
            neighbors.any(|((address, _), neighbor)| selects(&profile.object, *address, neighbor))
        });
        if !selects_any {
            let message = format!(
                "it selects none of the BGP peers of node {}; `dpctl bgp peers` lists them",
                node.name
            );
            conditions.add(KIND, name, &profile.origin, "NoPeerSelected", message);
        }
    }
    for (instance, neighbor) in impossible {
        if let Some(router) = routers.get_mut(&instance) {
            router.neighbors.remove(&neighbor);
        }
    }
}

/// The range that a peer stands for.
fn range(said: &peer_profile::Range, address: IpAddr, peer: &Neighbor) -> Result<Range, String> {
    let length = said.prefix_length;
    let prefix = IpNetwork::new(address, length)
        .map_err(|_| format!("range.prefixLength {length} is more than its address has bits"))?;
    if prefix.network() != address {
        return Err(format!(
            "it is no range of prefixLength {length}: give the peer the address {}",
            prefix.network()
        ));
    }
    if peer.interface.is_some() {
        return Err("a range of link-local addresses is not supported".to_owned());
    }
    // The kernel would have to want signatures of a whole prefix; to let its members in unsigned is no answer.
    if peer.password.is_some() {
        return Err("a range with authSecretRef is not supported".to_owned());
    }
    let asns: BTreeSet<u32> = said.asns.iter().copied().collect();
    let own = Some(peer.asn).filter(|asn| *asn != 0);
    Ok(Range {
        prefix,
        asns: if asns.is_empty() {
            own.into_iter().collect()
        } else {
            asns
        },
        limit: said.limit as usize,
    })
}

fn selects(profile: &PeerProfile, address: IpAddr, neighbor: &Neighbor) -> bool {
    let fits = |peer: &PeerSelector| {
        peer.address.is_none_or(|prefix| prefix.contains(address))
            && peer.asn.is_none_or(|asn| asn == neighbor.asn)
            && (peer.peer_config.is_none() || peer.peer_config == neighbor.peer_config)
    };
    let peers = &profile.spec.peers;
    peers.is_empty() || peers.iter().any(fits)
}

const fn what_we_are(role: peer_profile::Role) -> Role {
    match role {
        peer_profile::Role::Provider => Role::Provider,
        peer_profile::Role::RsServer => Role::RsServer,
        peer_profile::Role::RsClient => Role::RsClient,
        peer_profile::Role::Customer => Role::Customer,
        peer_profile::Role::Peer => Role::Peer,
    }
}

fn watch(bfd: &Bfd, is_multihop: bool) -> BfdConfig {
    let interval = |ms: u32| Duration::from_millis(ms.into());
    BfdConfig {
        timing: Timing {
            min_transmit: interval(bfd.transmit_interval_milliseconds),
            min_receive: interval(bfd.receive_interval_milliseconds),
            multiplier: bfd.detect_multiplier,
        },
        hops: if bfd.multihop.unwrap_or(is_multihop) {
            Hops::Multi
        } else {
            Hops::Single
        },
        strict: bfd.strict,
    }
}
