//! Update groups, as an operator asks for them.

use fairlead_bgp::GroupSnapshot;

use crate::api::types::{BgpGroup, BgpGroupFamily};

pub(super) fn row(local_asn: u32, group: GroupSnapshot) -> BgpGroup {
    let families = group
        .next_hops
        .iter()
        .map(|(family, next_hop)| BgpGroupFamily {
            family: family.to_string(),
            next_hop: next_hop.map(|address| address.to_string()),
            passed_on: group.passed_on.get(family).copied().unwrap_or(0),
        });
    BgpGroup {
        local_asn,
        number: group.number,
        internal: group.internal,
        families: families.collect(),
        longest_message: group.longest_message,
        role: group.role.map(|role| role.to_string()),
        graceful_shutdown: group.graceful_shutdown,
        transit: group.transit,
        waiting: group.waiting,
        peers: group.peers,
        behind: group.behind,
    }
}
