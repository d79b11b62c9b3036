//! Peering policies that select this node -> its BGP instances.
//!
//! When two policies select a node Cilium applies neither, and so do we: which of them was meant is not
//! ours to guess. A peer whose password is missing is left out, because a session without it would be
//! weaker than what was asked for (Cilium runs it with an empty one).

mod profiles;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fairlead_bgp::{LargeCommunity, Password};
use k8s_openapi::api::core::v1::Node;

use super::{Conditions, Sourced};
use crate::config::document::Bgp;
use crate::desired::{
    AddressKind, Family, LabelSelector, Neighbor, NodeState, ObjectName, PathAttributes,
    VirtualRouter,
};
use crate::source::resource::field::label_selector;
use crate::source::resource::peering_policy::{
    self as policy, PeeringPolicy, SelectorType, ServiceAdvertisement,
};
use crate::source::resource::{Origin, Resources};

const KIND: &str = "CiliumBGPPeeringPolicy";
/// Where Cilium looks for the Secrets of its peers.
const SECRETS_NAMESPACE: &str = "kube-system";
const ANNOTATION: &str = "cilium.io/bgp-virtual-router.";

/// The virtual routers of this node.
pub(super) fn merge(
    resources: &Resources,
    config: &Bgp,
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
    let mut routers: BTreeMap<u32, VirtualRouter> = chosen
        .object
        .spec
        .virtual_routers
        .iter()
        .map(|router| {
            let mut context = Context {
                name,
                origin: &chosen.origin,
                asn: router.local_asn,
                resources,
                secrets: config.secrets_namespace.as_deref(),
                conditions,
            };
            let annotated = annotation(node, object, router.local_asn, context.conditions);
            (
                router.local_asn,
                virtual_router(router, &annotated, node, &mut context),
            )
        })
        .collect();
    profiles::apply(resources, node, &mut routers, conditions);
    routers
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
    resources: &'a Resources,
    secrets: Option<&'a str>,
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
            ServiceAdvertisement::ClusterIP => {
                address_kinds.insert(AddressKind::Cluster);
            }
        }
    }
    let mut neighbors = BTreeMap::new();
    for neighbor in &router.neighbors {
        let key: (IpAddr, u16) = (neighbor.peer_address, neighbor.peer_port);
        let Some(value) = self::neighbor(neighbor, node, context) else {
            continue;
        };
        // A peer that dials us is known by its address alone.
        if neighbors.keys().any(|(address, _)| *address == key.0) {
            context.condition(
                "Duplicate",
                &format!("peer {} is listed twice; the first is used", key.0),
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

fn neighbor(
    neighbor: &policy::Neighbor,
    node: &NodeState,
    context: &mut Context<'_>,
) -> Option<Neighbor> {
    let peer = neighbor.peer_address;
    let password = match &neighbor.auth_secret_ref {
        None => None,
        Some(secret) => match password(secret, context) {
            Ok(password) => Some(password),
            Err(why) => {
                context.condition(
                    "MissingAuthSecret",
                    &format!("peer {peer}: {why}; there is no session without its password"),
                );
                return None;
            }
        },
    };
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
        password,
        bfd: None,
        pod_cidr_attributes: pod_cidr_attributes(neighbor, node, context),
    })
}

/// The password that a Secret holds; `stringData` goes before `data`, as in the API server.
fn password(secret: &str, context: &Context<'_>) -> Result<Password, String> {
    let name = ObjectName {
        namespace: context.secrets.unwrap_or(SECRETS_NAMESPACE).to_owned(),
        name: secret.to_owned(),
    };
    let Some(secret) = context.resources.secrets.get(&name) else {
        return Err(format!("Secret {name} is not there"));
    };
    let texts = secret.object.string_data.as_ref();
    let octets = secret.object.data.as_ref();
    let octets = texts
        .and_then(|texts| texts.get("password"))
        .map(String::as_bytes)
        .or_else(|| Some(&octets?.get("password")?.0[..]))
        .ok_or_else(|| format!("Secret {name} has no key `password`"))?;
    Password::new(octets)
        .map_err(|why| format!("`password` of Secret {name} cannot be used: {why}"))
}

/// What the policy attaches to the pod CIDRs of this node: of several entries all communities, and the
/// highest preference.
fn pod_cidr_attributes(
    neighbor: &policy::Neighbor,
    node: &NodeState,
    context: &mut Context<'_>,
) -> PathAttributes {
    let mut attributes = PathAttributes::default();
    for entry in &neighbor.advertised_path_attributes {
        if entry.selector_type != SelectorType::PodCIDR {
            let message = format!(
                "peer {}: advertisedPathAttributes of {:?} are not acted on yet: its paths are announced without them",
                neighbor.peer_address, entry.selector_type
            );
            context.condition("FieldUnsupported", &message);
            continue;
        }
        let is_selected = |selector| selector_of(selector).matches(&node.labels);
        if !entry.selector.as_ref().is_none_or(is_selected) {
            continue;
        }
        if let Some(communities) = &entry.communities {
            let named = communities.well_known.iter().map(|community| community.0);
            let standard = communities.standard.iter().map(|community| community.0);
            attributes.communities.extend(named.chain(standard));
            let large = communities.large.iter().map(|community| {
                let [global, local1, local2] = community.0;
                LargeCommunity {
                    global,
                    local1,
                    local2,
                }
            });
            attributes.large_communities.extend(large);
        }
        attributes.local_preference = attributes.local_preference.max(entry.local_preference);
    }
    attributes
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
