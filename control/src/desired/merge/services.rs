//! Services and their EndpointSlices -> services by where clients reach them.
//!
//! What a service means follows kube-proxy. Not ours are those that are headless, ExternalName, or have the
//! label `service.kubernetes.io/service-proxy-name` or `service.kubernetes.io/headless`. Of two services with
//! one address, port, protocol and scope the older one wins, then the one whose name comes first, so that
//! every node decides alike.
//!
//! ```text
//!   places (addresses x ports) -> scopes (who may come) -> endpoints (who serves it) -> Service -> register
//!                                      ▲                        ▲
//!                                      └──────── policy ────────┘
//! ```

mod endpoints;
mod places;
mod policy;
mod register;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_common::addr::Proto;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use self::policy::Policy;
pub(super) use self::register::Register;
use super::Conditions;
use crate::config::document::LoadBalancer;
use crate::desired::check::{self, Check};
use crate::desired::{
    AddressKind, Backend, BackendAddr, Frontend, HealthCheck, Home, NodeState, ObjectName, Scope,
    Service, VirtualRouter,
};
use crate::source::resource::Sourced;

const KIND: &str = "Service";
const SLICE_KIND: &str = "EndpointSlice";
/// Names the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Gives a service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Says that a service has no address to be served at.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What a service's meaning depends on beside itself.
pub(super) struct Around<'a> {
    /// This node.
    pub(super) node: &'a NodeState,
    /// Its BGP instances: whether they announce cluster addresses.
    pub(super) routers: &'a BTreeMap<String, VirtualRouter>,
    /// How services are balanced.
    pub(super) config: &'a LoadBalancer,
}

/// The specification of a service that is ours to balance.
fn ours(sourced: &Sourced<core::Service>) -> Option<&core::ServiceSpec> {
    let spec = sourced.object.spec.as_ref()?;
    let labels = sourced.object.metadata.labels.as_ref();
    let has = |label| labels.is_some_and(|labels| labels.contains_key(label));
    let is_ours = !has(PROXY_NAME)
        && !has(HEADLESS)
        && spec.cluster_ip.as_deref() != Some("None")
        && spec.type_.as_deref() != Some("ExternalName");
    is_ours.then_some(spec)
}

/// A service of ours.
struct One<'a> {
    name: &'a ObjectName,
    sourced: &'a Sourced<core::Service>,
    spec: &'a core::ServiceSpec,
    slices: &'a [(&'a ObjectName, &'a Sourced<EndpointSlice>)],
    around: &'a Around<'a>,
}

impl One<'_> {
    fn say(&self, conditions: &mut Conditions, reason: &str, message: String) {
        conditions.add(KIND, self.name, &self.sourced.origin, reason, message);
    }

    fn frontends(&self, conditions: &mut Conditions) -> Vec<(Frontend, Service)> {
        let policy = Policy::of(self, conditions);
        let template = self.template(&policy, conditions);
        let mut routers = self.around.routers.values();
        let is_cluster_announced =
            routers.any(|router| router.tells(AddressKind::Cluster, &template));
        let mut all = Vec::new();
        for port in self.spec.ports.iter().flatten() {
            let Some(proto) = self.proto(port, conditions) else {
                continue;
            };
            let places = self.places(port);
            if !places.is_empty() {
                self.expect_endpoints(port, conditions);
            }
            for ((addr, number), kinds) in places {
                let outside = Frontend {
                    addr,
                    port: number,
                    proto,
                    scope: Scope::Outside,
                };
                let [backends, near] = self.backends(outside, port, &policy, conditions);
                let is_node_or_balancer = kinds.iter().any(|kind| *kind != AddressKind::Cluster);
                let is_balancers = kinds.contains(&AddressKind::LoadBalancer);
                let service = Service {
                    address_kinds: kinds,
                    forwarding: policy.forwarding(number, &backends),
                    source_ranges: policy.source_ranges.clone().filter(|_| is_balancers),
                    ..template.clone()
                };
                // No packet comes in to a loopback address, nor to other nodes'.
                let is_from_outside = is_node_or_balancer || is_cluster_announced;
                if is_from_outside && !addr.is_loopback() && !addr.is_unspecified() {
                    let is_local = if is_node_or_balancer {
                        policy.external_local
                    } else {
                        policy.internal_local
                    };
                    let service = Service {
                        backends: only_here(is_local, &backends),
                        only_local: is_local,
                        ..service.clone()
                    };
                    all.push((outside, service));
                }
                let inside = Frontend {
                    scope: Scope::Inside,
                    ..outside
                };
                let is_local =
                    policy.internal_local && service.address_kinds.contains(&AddressKind::Cluster);
                let service = Service {
                    backends: only_here(is_local, &near),
                    ..service
                };
                all.push((inside, service));
            }
        }
        all
    }

    /// The health check that the service asks for.
    fn check(&self, conditions: &mut Conditions) -> Option<Check> {
        let annotations = self.sourced.object.metadata.annotations.as_ref()?;
        match annotations.get(check::ANNOTATION)?.parse() {
            Ok(check) => Some(check),
            Err(wrong) => {
                conditions.add(
                    KIND,
                    self.name,
                    &self.sourced.origin,
                    "HealthCheckInvalid",
                    format!(
                        "annotation {}: {wrong}; until then its backends are not checked",
                        check::ANNOTATION
                    ),
                );
                None
            }
        }
    }

    /// What all frontends of the service have in common.
    fn template(&self, policy: &Policy, conditions: &mut Conditions) -> Service {
        let labels = self.sourced.object.metadata.labels.clone();
        Service {
            object: self.name.clone(),
            labels: labels.unwrap_or_default(),
            affinity: policy.affinity,
            check: self.check(conditions),
            ..Service::default()
        }
    }

    fn proto(&self, port: &core::ServicePort, conditions: &mut Conditions) -> Option<Proto> {
        match port.protocol.as_deref() {
            None | Some("TCP") => Some(Proto::TCP),
            Some("UDP") => Some(Proto::UDP),
            Some(other) => {
                let message = format!(
                    "port {}: {other} is not balanced; use TCP or UDP",
                    port.port
                );
                self.say(conditions, "ProtocolUnsupported", message);
                None
            }
        }
    }

    /// What load balancers in front of the cluster ask this node: only of services that each node serves with
    /// its own backends.
    fn health_check(&self, found: &[(Frontend, Service)]) -> Option<(u16, HealthCheck)> {
        let is_asked = self.spec.type_.as_deref() == Some("LoadBalancer")
            && self.spec.external_traffic_policy.as_deref() == Some("Local");
        let port = self.spec.health_check_node_port.filter(|_| is_asked)?;
        let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
        let local: BTreeSet<_> = found
            .iter()
            .filter(|(frontend, _)| frontend.scope == Scope::Outside)
            .flat_map(|(_, service)| service.backends.iter())
            .filter(|(_, backend)| backend.ready)
            .map(|(at, _)| at.addr)
            .collect();
        let check = HealthCheck {
            object: self.name.clone(),
            local_endpoints: local.len() as u32,
        };
        Some((port, check))
    }
}

/// The backends of this node only, where a traffic policy wants that.
fn only_here(
    is_local: bool,
    backends: &Arc<BTreeMap<BackendAddr, Backend>>,
) -> Arc<BTreeMap<BackendAddr, Backend>> {
    if !is_local {
        return Arc::clone(backends);
    }
    let here = backends.iter().filter(|(_, one)| one.home == Home::Here);
    Arc::new(here.map(|(at, one)| (*at, *one)).collect())
}
