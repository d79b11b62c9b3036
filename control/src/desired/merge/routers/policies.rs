//! Peering policies that select this node -> its BGP instances.
//!
//! When two policies select a node Cilium applies neither, and so do we: which of them was meant is not
//! ours to guess.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::super::{Conditions, Sourced};
use super::pools::{self, Pool};
use super::{Secrets, attributes, families, selector_of, service_kinds};
use crate::desired::{
    Advertised, Neighbor, NodeState, ObjectName, PathAttributes, Profile, VirtualRouter, What,
};
use crate::source::resource::peering_policy::{self as policy, PeeringPolicy, SelectorType};
use crate::source::resource::{Origin, Resources};

const KIND: &str = "CiliumBGPPeeringPolicy";
const ANNOTATION: &str = "cilium.io/bgp-virtual-router.";

/// The virtual routers of this node.
pub(super) fn merge(
    resources: &Resources,
    secrets: &Secrets<'_>,
    node: &NodeState,
    object: &Sourced<Node>,
    conditions: &mut Conditions,
) -> BTreeMap<String, VirtualRouter> {
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
                resources,
                secrets,
                conditions,
            };
            let annotated = annotation(node, object, router.local_asn, context.conditions);
            (
                router.local_asn.to_string(),
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

struct Context<'a> {
    name: &'a ObjectName,
    origin: &'a Origin,
    asn: u32,
    resources: &'a Resources,
    secrets: &'a Secrets<'a>,
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
    let pools = router.pod_ip_pool_selector.as_ref().map(|selector| {
        let found = pools::selected(Some(&selector_of(selector)), context.resources, node);
        found.unwrap_or_else(|(reason, why)| {
            let message = format!("podIPPoolSelector: {why}; nothing of it is announced");
            context.condition(reason, &message);
            Vec::new()
        })
    });
    let pools = pools.unwrap_or_default();
    if annotated.router_id.is_none() && node.ipv4.is_none() {
        context.condition(
            "NoRouterId",
            &format!(
                "the node has no IPv4 address to be its router id; annotate it with {ANNOTATION}{}: router-id=A.B.C.D",
                router.local_asn
            ),
        );
    }
    let kinds = service_kinds(&router.service_advertisements);
    let services = router.service_selector.as_ref().map(|selector| Advertised {
        what: What::Services {
            selector: selector_of(selector),
            kinds,
            aggregate_v4: None,
            aggregate_v6: None,
        },
        attributes: PathAttributes::default(),
    });
    let mut neighbors = BTreeMap::new();
    for neighbor in &router.neighbors {
        let key: (IpAddr, u16) = (neighbor.peer_address, neighbor.peer_port);
        let pod_cidrs = router.export_pod_cidr.then(|| Advertised {
            what: What::PodCidrs,
            attributes: path_attributes(neighbor, SelectorType::PodCIDR, &node.labels),
        });
        let of_pools = pools.iter().map(|Pool { labels, what }| Advertised {
            what: what.clone(),
            attributes: path_attributes(neighbor, SelectorType::CiliumPodIPPool, labels),
        });
        say_what_is_not_marked(neighbor, context);
        let told: Vec<_> = pod_cidrs
            .into_iter()
            .chain(of_pools)
            .chain(services.clone())
            .collect();
        let Some(value) = self::neighbor(neighbor, &told, context) else {
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
        object: format!("{KIND} {}", context.name),
        local_asn: router.local_asn,
        router_id: annotated.router_id,
        local_port: annotated.local_port,
        links: BTreeSet::new(),
        neighbors,
    }
}

fn neighbor(
    neighbor: &policy::Neighbor,
    told: &[Advertised],
    context: &mut Context<'_>,
) -> Option<Neighbor> {
    let peer = neighbor.peer_address;
    let password = match &neighbor.auth_secret_ref {
        None => None,
        Some(secret) => match context.secrets.password(secret) {
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
    let named = neighbor
        .families
        .iter()
        .map(|family| (family.afi.as_str(), family.safi.as_str()));
    let spoken = families(named, |message| {
        context.condition("FamilyUnsupported", &format!("peer {peer}: {message}"));
    });
    if spoken.is_empty() {
        return None;
    }
    let seconds = |number: u16| Duration::from_secs(u64::from(number));
    Some(Neighbor {
        asn: neighbor.peer_asn,
        name: None,
        ebgp_multihop_ttl: neighbor.ebgp_multihop_ttl,
        connect_retry: Duration::from_secs(u64::from(neighbor.connect_retry_time_seconds)),
        hold: seconds(neighbor.hold_time_seconds),
        keepalive: seconds(neighbor.keep_alive_time_seconds),
        graceful_restart: neighbor
            .graceful_restart
            .as_ref()
            .filter(|restart| restart.enabled)
            .map(|restart| seconds(restart.restart_time_seconds)),
        password,
        peer_config: None,
        interface: None,
        local_address: None,
        local_port: None,
        profile: Profile::default(),
        advertised: spoken
            .into_iter()
            .map(|family| (family, told.to_vec()))
            .collect(),
    })
}

/// What the policy attaches to paths of a type, of what has these labels: of several entries all communities, and the
/// highest preference.
fn path_attributes(
    neighbor: &policy::Neighbor,
    of: SelectorType,
    labels: &BTreeMap<String, String>,
) -> PathAttributes {
    let mut all = PathAttributes::default();
    let is_selected = |selector| selector_of(selector).matches(labels);
    let entries = neighbor.advertised_path_attributes.iter();
    let entries = entries.filter(|entry| {
        entry.selector_type == of && entry.selector.as_ref().is_none_or(is_selected)
    });
    for entry in entries {
        all.add(&attributes(
            entry.communities.as_ref(),
            entry.local_preference,
        ));
    }
    all
}

/// Attributes that the policy asks for and paths do not get.
fn say_what_is_not_marked(neighbor: &policy::Neighbor, context: &mut Context<'_>) {
    let unsupported = SelectorType::CiliumLoadBalancerIPPool;
    let mut entries = neighbor.advertised_path_attributes.iter();
    if entries.any(|entry| entry.selector_type == unsupported) {
        let message = format!(
            "peer {}: advertisedPathAttributes of {unsupported:?} are not acted on yet: its paths are announced without them",
            neighbor.peer_address
        );
        context.condition("FieldUnsupported", &message);
    }
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
