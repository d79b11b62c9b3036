//! Resources and configuration in, [`Desired`] out: what this node should be.
//!
//! Pure and total: an object that cannot be followed becomes a [`Condition`], and so does every
//! conflict between objects; the rest stays in force. Not here: parsing (`source`), row layouts (`plan`).

mod routers;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, NodeAddress};

use super::surroundings::Surroundings;
use super::{Condition, Desired, Egress, NodeState, ObjectName};
use crate::config::Document;
use crate::config::document::NoBackend;
use crate::source::resource::{Objects, Origin, Resources, Sourced};

/// What this node should be, by what the sources and the configuration say. Where documents leave it to the
/// host's network who a peer is, `around` says it; without, such peers are left out.
pub fn merge(
    resources: &Resources,
    config: &Document,
    node_name: &str,
    around: Option<&Surroundings>,
) -> Desired {
    merge_since(&mut Memory::default(), resources, config, node_name, around)
}

/// What a merge leaves to the next one, which then looks at what has changed. It may be lost.
#[derive(Debug, Default)]
pub struct Memory {
    services: services::Register,
    other_nodes: OtherNodes,
}

/// The addresses of other nodes, of the objects that they were read from.
#[derive(Debug, Default)]
struct OtherNodes {
    of: Objects<Node>,
    addresses: BTreeSet<IpAddr>,
}

impl OtherNodes {
    fn follow(&mut self, nodes: &Objects<Node>, own: &str) {
        if self.of.ptr_eq(nodes) {
            return;
        }
        self.of = nodes.clone();
        let others = nodes.iter().filter(|(name, _)| name.name != own);
        self.addresses = others
            .flat_map(|(_, node)| node.object.status.iter())
            .flat_map(|status| status.addresses.iter().flatten())
            .filter_map(|address| address.address.parse().ok())
            .collect();
    }
}

/// The same as [`merge`], at the cost of what has changed since `memory` was used last: services that have not
/// changed are the same values as then.
pub fn merge_since(
    memory: &mut Memory,
    resources: &Resources,
    config: &Document,
    node_name: &str,
    around: Option<&Surroundings>,
) -> Desired {
    let mut conditions = Conditions(resources.conditions.clone());
    let found = resources.nodes.get(&ObjectName {
        namespace: String::new(),
        name: node_name.to_owned(),
    });
    let mut node = match found {
        Some(found) => node_state(node_name, &found.object),
        None => {
            conditions.0.push(Condition {
                object: format!("Node {node_name}"),
                origin: String::new(),
                reason: "NodeMissing".to_owned(),
                message: "this node has no Node object, so it has no pods and no BGP; add one or set nodeName"
                    .to_owned(),
            });
            NodeState {
                name: node_name.to_owned(),
                ..NodeState::default()
            }
        }
    };
    node.refuses = config.load_balancer.no_backend == NoBackend::Reject;
    let routers = match found {
        Some(found) => routers::merge(
            resources,
            &config.bgp,
            &node,
            found,
            around,
            &mut conditions,
        ),
        None => BTreeMap::new(),
    };
    let around = services::Around {
        node: &node,
        routers: &routers,
        config: &config.load_balancer,
    };
    let register = &mut memory.services;
    let services = register.follow(resources, &around, &mut conditions);
    let health_checks = register.health_checks();
    let egress = egress(config, &node, &mut conditions);
    let mut conditions = conditions.0;
    conditions.sort();
    conditions.dedup();
    memory.other_nodes.follow(&resources.nodes, node_name);
    let node_ports_at = &config.load_balancer.node_port_addresses;
    let serves = |addr: &IpAddr| {
        node_ports_at.is_empty() || node_ports_at.iter().any(|prefix| prefix.contains(*addr))
    };
    let others = memory.other_nodes.addresses.iter();
    let other_nodes = others
        .filter(|addr| serves(addr) && !node.addresses.contains(addr))
        .copied()
        .collect();
    Desired {
        node,
        other_nodes,
        services,
        health_checks,
        egress,
        routers,
        conditions,
    }
}

/// Collects conditions of objects.
struct Conditions(Vec<Condition>);

impl Conditions {
    fn add(
        &mut self,
        kind: &str,
        name: &ObjectName,
        origin: &Origin,
        reason: &str,
        message: String,
    ) {
        self.0.push(Condition {
            object: format!("{kind} {name}"),
            origin: origin.to_string(),
            reason: reason.to_owned(),
            message,
        });
    }
}

fn node_state(name: &str, node: &Node) -> NodeState {
    let addresses = || {
        let addresses = node.status.iter().flat_map(|status| &status.addresses);
        addresses.flatten()
    };
    let parsed = |address: &NodeAddress| address.address.parse::<IpAddr>().ok();
    let internal: Vec<IpAddr> = addresses()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(parsed)
        .collect();
    let spec = node.spec.clone().unwrap_or_default();
    let pod_cidrs: BTreeSet<IpNetwork> = spec
        .pod_cidrs
        .into_iter()
        .flatten()
        .chain(spec.pod_cidr)
        .filter_map(|text| text.parse::<IpNetwork>().ok())
        .filter_map(|prefix| IpNetwork::new(prefix.network(), prefix.prefix()).ok())
        .collect();
    NodeState {
        name: name.to_owned(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        ipv4: internal.iter().find_map(|ip| match ip {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        ipv6: internal.iter().find_map(|ip| match ip {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
        addresses: addresses().filter_map(parsed).collect(),
        pod_cidrs,
        refuses: false,
    }
}

fn egress(config: &Document, node: &NodeState, conditions: &mut Conditions) -> Option<Egress> {
    if !config.masquerade.enabled {
        return None;
    }
    let native = config.ipv4_native_routing_cidr.iter().copied().collect();
    match (config.masquerade.egress_address, node.ipv4) {
        (Some(address), own) => Some(Egress {
            address,
            is_node_address: own == Some(address),
            native,
        }),
        (None, Some(address)) => Some(Egress {
            address,
            is_node_address: true,
            native,
        }),
        (None, None) => {
            conditions.0.push(Condition {
                object: format!("Node {}", node.name),
                origin: String::new(),
                reason: "NoEgressAddress".to_owned(),
                message: "masquerade is on and the node has no IPv4 InternalIP; add one or set masquerade.egressAddress"
                    .to_owned(),
            });
            None
        }
    }
}

#[cfg(test)]
mod tests;
