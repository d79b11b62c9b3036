//! Cluster configurations that select this node -> its BGP instances.
//!
//! Of two that select a node the first by name is in force, as in Cilium, whose operator lets the one
//! stand that was there first. A peering policy goes before them all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Conditions, Sourced};
use super::place::{self, Place};
use super::pools;
use super::{Secrets, attributes, families, selector_of, service_kinds};
use crate::desired::surroundings::Surroundings;
use crate::desired::{
    Advertised, Family, Neighbor, NodeState, ObjectName, Profile, VirtualRouter, What,
};
use crate::source::resource::Resources;
use crate::source::resource::advertisement::{Advertisement, Told, Type};
use crate::source::resource::cluster_config::{ClusterConfig, Instance, Peer};
use crate::source::resource::config_override::{self, ConfigOverride};
use crate::source::resource::peer_config::{self, PeerConfig};

const KIND: &str = "CiliumBGPClusterConfig";
const PEER_KIND: &str = "CiliumBGPPeerConfig";
const ADVERTISEMENT_KIND: &str = "CiliumBGPAdvertisement";
const OVERRIDE_KIND: &str = "CiliumBGPNodeConfigOverride";

/// The BGP instances of this node, by name.
pub(super) fn merge(
    resources: &Resources,
    secrets: &Secrets<'_>,
    node: &NodeState,
    has_policy: bool,
    around: Option<&Surroundings>,
    conditions: &mut Conditions,
) -> BTreeMap<String, VirtualRouter> {
    for (name, config) in &resources.cluster_configs {
        let mut nodes = resources.nodes.values();
        if !nodes.any(|node| selects(config, node.object.metadata.labels.as_ref())) {
            let message = "nodeSelector selects no node that is known".to_owned();
            conditions.add(KIND, name, &config.origin, "NoMatchingNode", message);
        }
    }
    let mut selecting = resources
        .cluster_configs
        .iter()
        .filter(|(_, config)| selects(config, Some(&node.labels)));
    let Some((name, chosen)) = selecting.next() else {
        return BTreeMap::new();
    };
    for (other, config) in selecting {
        let message = format!(
            "{KIND} {name} selects node {} as well, and is in force; narrow nodeSelector of one of the two",
            node.name
        );
        conditions.add(
            KIND,
            other,
            &config.origin,
            "ConflictingClusterConfig",
            message,
        );
    }
    if has_policy {
        let message = format!(
            "a CiliumBGPPeeringPolicy selects node {}, and goes before it; remove one of the two",
            node.name
        );
        conditions.add(
            KIND,
            name,
            &chosen.origin,
            "ConflictingClusterConfig",
            message,
        );
        return BTreeMap::new();
    }
    let own = resources.config_overrides.get(&ObjectName {
        namespace: String::new(),
        name: node.name.clone(),
    });
    if let Some(own) = own {
        say_what_is_not_there(own, &chosen.object, conditions);
    }
    let mut merge = Merge {
        name,
        chosen,
        resources,
        secrets,
        node,
        around,
        conditions,
    };
    let instances = chosen.object.spec.bgp_instances.iter();
    instances
        .filter_map(|instance| {
            let overrides = own.map(|own| &own.object.spec.bgp_instances);
            let own = overrides.and_then(|all| all.iter().find(|own| own.name == instance.name));
            Some((instance.name.clone(), merge.router(instance, own)?))
        })
        .collect()
}

fn selects(config: &Sourced<ClusterConfig>, labels: Option<&BTreeMap<String, String>>) -> bool {
    let none = BTreeMap::new();
    let selector = config.object.spec.node_selector.as_ref();
    selector.is_none_or(|selector| selector_of(selector).matches(labels.unwrap_or(&none)))
}

/// An override of what the configuration does not have is a typing mistake.
fn say_what_is_not_there(
    own: &Sourced<ConfigOverride>,
    config: &ClusterConfig,
    conditions: &mut Conditions,
) {
    let name = ObjectName {
        namespace: String::new(),
        name: own.object.metadata.name.clone().unwrap_or_default(),
    };
    for overridden in &own.object.spec.bgp_instances {
        let instances = &config.spec.bgp_instances;
        let instance = instances.iter().find(|one| one.name == overridden.name);
        let unknown_peers: Vec<_> = overridden
            .peers
            .iter()
            .filter(|peer| {
                instance.is_some_and(|i| i.peers.iter().all(|one| one.name != peer.name))
            })
            .map(|peer| format!("peer {:?} of instance {:?}", peer.name, overridden.name))
            .collect();
        let unknown_instance = instance.is_none();
        let unknown = unknown_instance.then(|| format!("instance {:?}", overridden.name));
        for what in unknown.into_iter().chain(unknown_peers) {
            let message = format!("the {KIND} of this node has no {what}; it has no effect");
            conditions.add(
                OVERRIDE_KIND,
                &name,
                &own.origin,
                "NothingOverridden",
                message,
            );
        }
    }
}

struct Merge<'a, 'c> {
    name: &'a ObjectName,
    chosen: &'a Sourced<ClusterConfig>,
    resources: &'a Resources,
    secrets: &'a Secrets<'a>,
    node: &'a NodeState,
    around: Option<&'a Surroundings>,
    conditions: &'c mut Conditions,
}

impl Merge<'_, '_> {
    fn condition(&mut self, reason: &str, message: String) {
        self.conditions
            .add(KIND, self.name, &self.chosen.origin, reason, message);
    }

    fn router(
        &mut self,
        instance: &Instance,
        own: Option<&config_override::Instance>,
    ) -> Option<VirtualRouter> {
        let Some(local_asn) = own.and_then(|own| own.local_asn).or(instance.local_asn) else {
            let message = format!(
                "instance {}: it has no localASN, and no {OVERRIDE_KIND} of node {} gives it one",
                instance.name, self.node.name
            );
            self.condition("NoLocalASN", message);
            return None;
        };
        let router_id = own.and_then(|own| own.router_id);
        if router_id.is_none() && self.node.ipv4.is_none() {
            let message = format!(
                "instance {}: the node has no IPv4 address to be its router id; give it one in a {OVERRIDE_KIND}",
                instance.name
            );
            self.condition("NoRouterId", message);
        }
        let mut neighbors: BTreeMap<(IpAddr, u16), Neighbor> = BTreeMap::new();
        for peer in &instance.peers {
            let own = own.and_then(|own| own.peers.iter().find(|own| own.name == peer.name));
            let Some((address, port, neighbor)) = self.peer(&instance.name, peer, own) else {
                continue;
            };
            // A peer that dials us is known by its address alone.
            if neighbors.keys().any(|(known, _)| *known == address) {
                let message = format!(
                    "instance {}, peer {}: another peer has address {address}; the first is used",
                    instance.name, peer.name
                );
                self.condition("Duplicate", message);
                continue;
            }
            neighbors.insert((address, port), neighbor);
        }
        Some(VirtualRouter {
            object: format!("{KIND} {}", self.name),
            local_asn,
            router_id,
            local_port: own.and_then(|own| own.local_port).or(instance.local_port),
            links: instance
                .peers
                .iter()
                .filter_map(place::link)
                .map(str::to_owned)
                .collect(),
            neighbors,
        })
    }

    fn peer(
        &mut self,
        instance: &str,
        peer: &Peer,
        own: Option<&config_override::Peer>,
    ) -> Option<(IpAddr, u16, Neighbor)> {
        let place = format!("instance {instance}, peer {}", peer.name);
        let Place { address, interface } = match place::find(peer, self.around?) {
            Ok(found) => found,
            Err((reason, why)) => {
                self.condition(reason, format!("{place}: {why}"));
                return None;
            }
        };
        let defaults = peer_config::Spec::default();
        let config = match &peer.peer_config_ref {
            None => None,
            Some(reference) => {
                let name = ObjectName {
                    namespace: String::new(),
                    name: reference.name.clone(),
                };
                let Some((name, config)) = self.resources.peer_configs.get_key_value(&name) else {
                    let message = format!(
                        "{place}: {PEER_KIND} {name} is not there; there is no session without it"
                    );
                    self.condition("MissingPeerConfigs", message);
                    return None;
                };
                Some((name, config))
            }
        };
        let spec = config.map_or(&defaults, |(_, config)| &config.object.spec);
        let password = match (&spec.auth_secret_ref, config) {
            (Some(secret), Some((name, config))) => match self.secrets.password(secret) {
                Ok(password) => Some(password),
                Err(why) => {
                    let message = format!("{why}; there is no session without its password");
                    let origin = &config.origin;
                    let conditions = &mut *self.conditions;
                    conditions.add(PEER_KIND, name, origin, "MissingAuthSecret", message);
                    return None;
                }
            },
            _ => None,
        };
        // An override names the address itself. A peer known by its link is spoken with from there.
        let is_on_link = interface.is_some();
        let named = own.and_then(|own| own.local_address);
        let local_address = match (named, &spec.transport.source_interface) {
            (None, Some(device)) if !is_on_link => {
                let found = place::source(device, address, self.around?);
                found
                    .map_err(|(reason, why)| {
                        let message = format!(
                            "{place}: transport.sourceInterface: {why}; the host chooses the source"
                        );
                        self.condition(reason, message);
                    })
                    .ok()
            }
            (named, _) => named,
        };
        let advertised = self.families(spec, config);
        if advertised.is_empty() {
            return None;
        }
        let seconds = |number: u16| Duration::from_secs(number.into());
        let neighbor = Neighbor {
            asn: peer.peer_asn,
            name: Some(peer.name.clone()),
            peer_config: peer.peer_config_ref.as_ref().map(|r| r.name.clone()),
            ebgp_multihop_ttl: spec.ebgp_multihop,
            connect_retry: Duration::from_secs(spec.timers.connect_retry_time_seconds.into()),
            hold: seconds(spec.timers.hold_time_seconds),
            keepalive: seconds(spec.timers.keep_alive_time_seconds),
            graceful_restart: spec
                .graceful_restart
                .as_ref()
                .filter(|restart| restart.enabled)
                .map(|restart| seconds(restart.restart_time_seconds)),
            password,
            interface,
            local_address,
            local_port: own
                .and_then(|own| own.local_port)
                .or(spec.transport.local_port),
            profile: Profile::default(),
            advertised,
        };
        Some((address, spec.transport.peer_port, neighbor))
    }

    /// The families of a peer and what is told in each.
    fn families(
        &mut self,
        spec: &peer_config::Spec,
        config: Option<(&ObjectName, &Arc<Sourced<PeerConfig>>)>,
    ) -> BTreeMap<Family, Vec<Advertised>> {
        let named = spec
            .families
            .iter()
            .map(|f| (f.afi.as_str(), f.safi.as_str()));
        let conditions = &mut *self.conditions;
        let spoken = families(named, |message| {
            if let Some((name, config)) = config {
                conditions.add(
                    PEER_KIND,
                    name,
                    &config.origin,
                    "FamilyUnsupported",
                    message,
                );
            }
        });
        spoken
            .into_iter()
            .map(|family| {
                let afi = match family {
                    Family::Ipv4 => "ipv4",
                    Family::Ipv6 => "ipv6",
                };
                let selectors = spec
                    .families
                    .iter()
                    .filter(|f| f.afi == afi && f.safi == "unicast");
                let told = selectors
                    .filter_map(|family| family.advertisements.as_ref())
                    .flat_map(|selector| self.told(&selector_of(selector)))
                    .collect();
                (family, told)
            })
            .collect()
    }

    /// What the selected advertisements say.
    fn told(&mut self, selector: &crate::desired::LabelSelector) -> Vec<Advertised> {
        let none = BTreeMap::new();
        let mut all = Vec::new();
        for (name, advertisement) in &self.resources.advertisements {
            let labels = advertisement.object.metadata.labels.as_ref();
            if selector.matches(labels.unwrap_or(&none)) {
                let told = advertisement.object.spec.advertisements.iter();
                all.extend(told.flat_map(|told| self.one(told, name, advertisement)));
            }
        }
        all
    }

    fn one(
        &mut self,
        told: &Told,
        object: &ObjectName,
        advertisement: &Sourced<Advertisement>,
    ) -> Vec<Advertised> {
        let mut condition = |reason: &str, message: String| {
            let conditions = &mut *self.conditions;
            let origin = &advertisement.origin;
            conditions.add(ADVERTISEMENT_KIND, object, origin, reason, message);
        };
        // Nothing is selected by a selector that is not there.
        let selector = told.selector.as_ref().map(selector_of);
        let what = match told.advertisement_type {
            Type::PodCIDR => vec![What::PodCidrs],
            Type::Service => {
                let said = told.service.as_ref().zip(selector);
                let what = said.map(|(service, selector)| What::Services {
                    selector,
                    kinds: service_kinds(&service.addresses),
                    aggregate_v4: service.aggregation_length_ipv4,
                    aggregate_v6: service.aggregation_length_ipv6,
                });
                what.into_iter().collect()
            }
            Type::CiliumPodIPPool => {
                let found = pools::selected(selector.as_ref(), self.resources, self.node);
                let pools = found.unwrap_or_else(|(reason, why)| {
                    let message = format!("CiliumPodIPPool: {why}; nothing of it is advertised");
                    condition(reason, message);
                    Vec::new()
                });
                pools.into_iter().map(|pool| pool.what).collect()
            }
            Type::Interface => {
                let device = told.interface.as_ref().zip(self.around);
                let what = device.map(|(device, around)| {
                    let name = device.name.clone();
                    let found = place::addresses(&name, around);
                    let addresses = found.unwrap_or_else(|(reason, why)| {
                        let message = format!("interface: {why}; nothing of it is advertised");
                        condition(reason, message);
                        BTreeSet::new()
                    });
                    What::Interface { name, addresses }
                });
                what.into_iter().collect()
            }
        };
        let said = told.attributes.clone().unwrap_or_default();
        let attributes = attributes(said.communities.as_ref(), said.local_preference);
        let advertised = |what| Advertised {
            what,
            attributes: attributes.clone(),
        };
        what.into_iter().map(advertised).collect()
    }
}
