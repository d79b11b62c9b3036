//! Everything about one peer, as an operator asks for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use fairlead_bgp::snapshot::{NeighborSnapshot, PeerSnapshot};
use fairlead_bgp::wire::Open;
use fairlead_bgp::{Direction, Family, Role};

use super::{group, hint, peer_row, policy};
use crate::api::types::{BgpRole, Capability, GracefulRestart, MessageCount, Neighbor, Past};
use crate::bgp_io::Md5Drops;

pub(super) fn row(
    local_asn: u32,
    router_id: Ipv4Addr,
    neighbor: NeighborSnapshot,
    drops: Md5Drops,
) -> Neighbor {
    let hints = hint::all(local_asn, &neighbor, drops);
    let NeighborSnapshot { peer, config, .. } = &neighbor;
    Neighbor {
        name: peer.name.clone(),
        alias: peer.alias.clone(),
        range: neighbor.range.clone(),
        local_router_id: router_id.to_string(),
        peer_router_id: peer.router_id.map(|id| id.to_string()),
        local_address: peer.local_address.map(|address| address.to_string()),
        opened_by: neighbor.opened.map(|direction| match direction {
            Direction::Active => "us".to_owned(),
            Direction::Passive => "it".to_owned(),
        }),
        passive: config.passive,
        shutdown: config.shutdown.clone(),
        next_attempt_s: neighbor.rests.map(|rest| rest.as_secs()),
        established_count: peer.established_count,
        last_reset: peer.last_reset.as_ref().map(|reset| Past {
            ago_s: reset.ago.as_secs(),
            what: reset.reason.to_string(),
        }),
        last_notification: peer.last_notification.as_ref().map(|said| Past {
            ago_s: said.ago.as_secs(),
            what: format!(
                "{} {}",
                if said.by_us { "sent" } else { "received" },
                said.notification
            ),
        }),
        configured_hold_s: config.hold_time.as_secs(),
        configured_keepalive_s: config.keepalive_time.as_secs(),
        proposed_hold_s: peer.heard.as_ref().map(|open| open.hold_time_s),
        connect_retry_s: config.connect_retry_time.as_secs(),
        capabilities: capabilities(&neighbor.offered, peer.heard.as_ref()),
        other_capabilities: peer
            .heard
            .iter()
            .flat_map(|open| open.others.iter().copied())
            .collect(),
        messages: messages(peer),
        attributes_discarded: peer.counters.attributes_discarded,
        treated_as_withdraw: peer.counters.treated_as_withdraw,
        import: policy::import(&config.import),
        rejected: neighbor
            .rejected
            .iter()
            .map(|(rejection, count)| (rejection.to_string(), *count))
            .collect(),
        max_prefixes: config.max_prefixes,
        graceful_shutdown: config.graceful_shutdown,
        transit: config.transit,
        role: role(&neighbor),
        graceful_restart: graceful_restart(&neighbor),
        group: neighbor
            .group
            .clone()
            .map(|group| group::row(local_asn, group)),
        md5: peer.signed,
        ttl: neighbor.distance.ttl,
        least_ttl: neighbor.distance.least_ttl,
        hints,
        peer: peer_row(local_asn, neighbor.peer, drops),
    }
}

fn capabilities(ours: &Open, theirs: Option<&Open>) -> Vec<Capability> {
    let both = |name: String, has: &dyn Fn(&Open) -> bool| Capability {
        name,
        sent: has(ours),
        received: theirs.is_some_and(has),
    };
    let families = Family::ALL
        .into_iter()
        .map(|family| both(family.to_string(), &|open| open.families.contains(&family)));
    families
        .chain([
            both("four-octet AS numbers".to_owned(), &|open| {
                open.four_octet_as
            }),
            both("route refresh".to_owned(), &|open| open.route_refresh),
            both("enhanced route refresh".to_owned(), &|open| {
                open.enhanced_route_refresh
            }),
            both("IPv4 by IPv6 next hops".to_owned(), &|open| {
                open.extended_next_hop
            }),
            both("extended messages".to_owned(), &|open| {
                open.extended_messages
            }),
            Capability {
                name: "several paths from it".to_owned(),
                sent: !ours.add_path_receive.is_empty(),
                received: theirs.is_some_and(|open| !open.add_path_send.is_empty()),
            },
            Capability {
                name: "several paths from us".to_owned(),
                sent: !ours.add_path_send.is_empty(),
                received: theirs.is_some_and(|open| !open.add_path_receive.is_empty()),
            },
            both("role".to_owned(), &|open| !open.roles.is_empty()),
            both("graceful restart".to_owned(), &|open| {
                open.graceful_restart.is_some()
            }),
            both("graceful restart after NOTIFICATION".to_owned(), &|open| {
                let offer = open.graceful_restart.as_ref();
                offer.is_some_and(|offer| offer.notification)
            }),
            both("long-lived graceful restart".to_owned(), &|open| {
                open.long_lived.is_some()
            }),
            both("host name".to_owned(), &|open| open.hostname.is_some()),
        ])
        .filter(|capability| capability.sent || capability.received)
        .collect()
}

fn role(neighbor: &NeighborSnapshot) -> Option<BgpRole> {
    let named = |number: &u8| {
        let role = Role::of_number(*number);
        role.map_or_else(|| format!("role {number}"), |role| role.to_string())
    };
    let heard = neighbor.peer.heard.as_ref();
    let role = BgpRole {
        ours: neighbor.offered.roles.iter().map(named).next(),
        strict: neighbor.config.role_strict,
        its: heard
            .iter()
            .flat_map(|open| &open.roles)
            .map(named)
            .collect(),
    };
    (role.ours.is_some() || !role.its.is_empty()).then_some(role)
}

fn messages(peer: &PeerSnapshot) -> Vec<MessageCount> {
    let (received, sent) = (&peer.counters.received, &peer.counters.sent);
    [
        ("OPEN", received.opens, sent.opens),
        ("UPDATE", received.updates, sent.updates),
        ("NOTIFICATION", received.notifications, sent.notifications),
        ("KEEPALIVE", received.keepalives, sent.keepalives),
        (
            "ROUTE-REFRESH",
            received.route_refreshes,
            sent.route_refreshes,
        ),
    ]
    .into_iter()
    .map(|(kind, received, sent)| MessageCount {
        kind: kind.to_owned(),
        received,
        sent,
    })
    .collect()
}

fn graceful_restart(neighbor: &NeighborSnapshot) -> GracefulRestart {
    let seconds = |time: Duration| time.as_secs();
    let offer = |open: &Open| {
        open.graceful_restart
            .as_ref()
            .map(|offer| seconds(offer.restart_time))
    };
    let heard = neighbor.peer.heard.as_ref();
    let theirs = heard.and_then(|open| open.graceful_restart.as_ref());
    GracefulRestart {
        offered_s: offer(&neighbor.offered),
        peer_s: heard.and_then(offer),
        offered_long_lived_s: neighbor
            .offered
            .long_lived
            .iter()
            .flat_map(BTreeMap::values)
            .map(|said| seconds(said.stale_time))
            .max(),
        peer_long_lived_s: heard
            .iter()
            .filter_map(|open| open.long_lived.as_ref())
            .flatten()
            .map(|(family, said)| (family.to_string(), seconds(said.stale_time)))
            .collect(),
        peer_restarted: theirs.is_some_and(|offer| offer.restarting),
        peer_preserves: theirs
            .iter()
            .flat_map(|offer| &offer.families)
            .filter(|(_, preserved)| **preserved)
            .map(|(family, _)| family.to_string())
            .collect(),
        kept_s: neighbor
            .stale
            .iter()
            .map(|(family, left)| (family.to_string(), seconds(*left)))
            .collect(),
        end_of_rib_received: neighbor
            .end_of_rib
            .iter()
            .map(ToString::to_string)
            .collect(),
        end_of_rib_sent: neighbor.end_of_rib_sent,
    }
}
