//! Peering policies that select this node -> its BGP instances.
//!
//! When two policies select a node Cilium applies neither, and so do we: which of them was meant is not
//! ours to guess. A peer that asks for a password is left out, because a session without it would be
//! weaker than what was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::{Conditions, Sourced};
use crate::desired::{
    AddressKind, Family, LabelSelector, Neighbor, NodeState, ObjectName, VirtualRouter,
};
use crate::source::resource::peering_policy::{
    self as policy, PeeringPolicy, ServiceAdvertisement, label_selector,
};
use crate::source::resource::{Origin, Resources};

const KIND: &str = "CiliumBGPPeeringPolicy";
const ANNOTATION: &str = "cilium.io/bgp-virtual-router.";

/// The virtual routers of this node.
pub(super) fn merge(
    resources: &Resources,
    node: &NodeState,
    object: &Sourced<Node>,
    conditions: &mut Conditions,
) -> BTreeMap<u32, VirtualRouter> {
    let selecting: Vec<_> = resources
        .peering_policies
        .iter()
        .filter(|(_, policy)| selects(&policy.object, &node.labels))
        .collect();
    let (name, chosen) = match selecting[..] {
        [] => return BTreeMap::new(),
        [one] => one,
        [..] => {
            let names: Vec<_> = selecting.iter().map(|(name, _)| name.to_string()).collect();
            for (name, policy) in &selecting {
                conditions.add(
                    KIND,
                    name,
                    &policy.origin,
                    "NodeConflict",
                    format!(
                        "{} all select node {}, so none is applied; narrow their nodeSelector",
                        names.join(", "),
                        node.name
                    ),
                );
            }
            return BTreeMap::new();
        }
    };
    chosen
        .object
        .spec
        .virtual_routers
        .iter()
        .map(|router| {
            let mut context = Context {
                name,
                origin: &chosen.origin,
                asn: router.local_asn,
                conditions,
            };
            let annotated = annotation(node, object, router.local_asn, context.conditions);
            (
                router.local_asn,
                virtual_router(router, &annotated, node, &mut context),
            )
        })
        .collect()
}

fn selects(policy: &PeeringPolicy, labels: &BTreeMap<String, String>) -> bool {
    policy
        .spec
        .node_selector
        .as_ref()
        .is_none_or(|selector| selector_of(selector).matches(labels))
}

/// A policy's selector; that it makes sense was checked when the object was read.
fn selector_of(
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
) -> LabelSelector {
    let Ok(selector) = label_selector(selector) else {
        unreachable!("selectors were checked when the object was read")
    };
    selector
}

struct Context<'a> {
    name: &'a ObjectName,
    origin: &'a Origin,
    asn: u32,
    conditions: &'a mut Conditions,
}

impl Context<'_> {
    fn condition(&mut self, reason: &str, message: &str) {
        let message = format!("virtual router {}: {message}", self.asn);
        self.conditions
            .add(KIND, self.name, self.origin, reason, message);
    }
}

fn virtual_router(
    router: &policy::VirtualRouter,
    annotated: &Annotated,
    node: &NodeState,
    context: &mut Context<'_>,
) -> VirtualRouter {
    if router.pod_ip_pool_selector.is_some() {
        context.condition(
            "FieldUnsupported",
            "podIPPoolSelector is not acted on yet: pool addresses are not announced",
        );
    }
    if annotated.router_id.is_none() && node.ipv4.is_none() {
        context.condition(
            "NoRouterId",
            &format!(
                "the node has no IPv4 address to be its router id; annotate it with {ANNOTATION}{}: router-id=A.B.C.D",
                router.local_asn
            ),
        );
    }
    let mut address_kinds = BTreeSet::new();
    for kind in &router.service_advertisements {
        match kind {
            ServiceAdvertisement::LoadBalancerIP => {
                address_kinds.insert(AddressKind::LoadBalancer);
            }
            ServiceAdvertisement::ExternalIP => {
                address_kinds.insert(AddressKind::External);
            }
            ServiceAdvertisement::ClusterIP => context.condition(
                "FieldUnsupported",
                "serviceAdvertisements ClusterIP is not acted on yet: cluster addresses are not announced",
            ),
        }
    }
    let mut neighbors = BTreeMap::new();
    for neighbor in &router.neighbors {
        let key: (IpAddr, u16) = (neighbor.peer_address, neighbor.peer_port);
        let Some(value) = self::neighbor(neighbor, context) else {
            continue;
        };
        if neighbors.contains_key(&key) {
            context.condition(
                "Duplicate",
                &format!(
                    "peer {} port {} is listed twice; the first is used",
                    key.0, key.1
                ),
            );
            continue;
        }
        neighbors.insert(key, value);
    }
    VirtualRouter {
        object: context.name.clone(),
        local_asn: router.local_asn,
        router_id: annotated.router_id,
        local_port: annotated.local_port,
        export_pod_cidr: router.export_pod_cidr,
        services: router.service_selector.as_ref().map(selector_of),
        address_kinds,
        neighbors,
    }
}

fn neighbor(neighbor: &policy::Neighbor, context: &mut Context<'_>) -> Option<Neighbor> {
    let peer = neighbor.peer_address;
    if let Some(secret) = &neighbor.auth_secret_ref {
        context.condition(
            "AuthUnsupported",
            &format!(
                "peer {peer}: the password in Secret {secret} cannot be used yet, so there is no session rather than an open one; remove authSecretRef to have one"
            ),
        );
        return None;
    }
    if !neighbor.advertised_path_attributes.is_empty() {
        context.condition(
            "FieldUnsupported",
            &format!("peer {peer}: advertisedPathAttributes is not acted on yet: paths are announced without them"),
        );
    }
    let mut families = BTreeSet::new();
    for family in &neighbor.families {
        match (family.afi.as_str(), family.safi.as_str()) {
            ("ipv4", "unicast") => families.insert(Family::Ipv4),
            ("ipv6", "unicast") => families.insert(Family::Ipv6),
            (afi, safi) => {
                context.condition(
                    "FamilyUnsupported",
                    &format!(
                        "peer {peer}: {afi} {safi} is not spoken; use ipv4 unicast and ipv6 unicast"
                    ),
                );
                false
            }
        };
    }
    if neighbor.families.is_empty() {
        families = BTreeSet::from([Family::Ipv4, Family::Ipv6]);
    }
    if families.is_empty() {
        return None;
    }
    let seconds = |number: u16| Duration::from_secs(u64::from(number));
    Some(Neighbor {
        asn: neighbor.peer_asn,
        ebgp_multihop_ttl: neighbor.ebgp_multihop_ttl,
        connect_retry: Duration::from_secs(u64::from(neighbor.connect_retry_time_seconds)),
        hold: seconds(neighbor.hold_time_seconds),
        keepalive: seconds(neighbor.keep_alive_time_seconds),
        graceful_restart: neighbor
            .graceful_restart
            .as_ref()
            .filter(|restart| restart.enabled)
            .map(|restart| seconds(restart.restart_time_seconds)),
        families,
    })
}

/// What the node's annotation says of a virtual router.
#[derive(Default)]
struct Annotated {
    router_id: Option<Ipv4Addr>,
    local_port: Option<u16>,
}

/// Reads `cilium.io/bgp-virtual-router.<asn>: router-id=10.0.0.1,local-port=179`.
fn annotation(
    node: &NodeState,
    object: &Sourced<Node>,
    asn: u32,
    conditions: &mut Conditions,
) -> Annotated {
    let key = format!("{ANNOTATION}{asn}");
    let mut annotated = Annotated::default();
    let annotations = object.object.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(&key)) else {
        return annotated;
    };
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let read = match part.split_once('=') {
            Some(("router-id", value)) => {
                annotated.router_id = value
                    .parse()
                    .ok()
                    .filter(|id: &Ipv4Addr| !id.is_unspecified());
                annotated.router_id.is_some()
            }
            Some(("local-port", value)) => {
                annotated.local_port = value.parse().ok().filter(|port| *port != 0);
                annotated.local_port.is_some()
            }
            Some(_) | None => false,
        };
        if !read {
            let name = ObjectName {
                namespace: String::new(),
                name: node.name.clone(),
            };
            let message = format!(
                "annotation {key}: {part:?} is ignored; write router-id=A.B.C.D or local-port=1..65535"
            );
            conditions.add("Node", &name, &object.origin, "AnnotationInvalid", message);
        }
    }
    annotated
}
