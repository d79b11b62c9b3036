//! Services and their EndpointSlices -> services by where clients reach them.
//!
//! Which objects are ours follows kube-proxy: not headless, not ExternalName, not with the label
//! `service.kubernetes.io/service-proxy-name`; a load balancer class must be absent or name us.
//! Of two services with one address, port and protocol the older one wins, then the one whose name
//! comes first, so that every node decides alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::addr::Proto;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Conditions;
use crate::desired::{
    AddressKind, Backend, BackendAddr, Frontend, Home, ObjectName, Scope, Service,
};
use crate::source::resource::{Resources, Sourced};

const KIND: &str = "Service";
const SLICE_KIND: &str = "EndpointSlice";
/// Names the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Gives a service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// All services of the sources that are ours.
pub(super) fn merge(
    resources: &Resources,
    node_name: &str,
    conditions: &mut Conditions,
) -> BTreeMap<Frontend, Service> {
    let slices = slices_by_service(resources, conditions);
    let mut by_age: Vec<_> = resources.services.iter().collect();
    by_age.sort_by_key(|(name, sourced)| {
        let created = sourced.object.metadata.creation_timestamp.clone();
        (created.is_none(), created, *name)
    });
    let mut services: BTreeMap<Frontend, Service> = BTreeMap::new();
    for (name, sourced) in by_age {
        let Some(spec) = ours(name, sourced, conditions) else {
            continue;
        };
        let one = One {
            node_name,
            name,
            sourced,
            spec,
            slices: slices.get(name).map_or(&[], Vec::as_slice),
        };
        for (frontend, service) in one.frontends(conditions) {
            match services.get(&frontend) {
                None => {
                    services.insert(frontend, service);
                }
                Some(winner) => conditions.add(
                    KIND,
                    name,
                    &sourced.origin,
                    "AddressConflict",
                    format!(
                        "{frontend} belongs to Service {}, which is older or comes first by name; give one of them another address or port",
                        winner.object
                    ),
                ),
            }
        }
    }
    services
}

/// The slices of each service.
fn slices_by_service<'a>(
    resources: &'a Resources,
    conditions: &mut Conditions,
) -> BTreeMap<ObjectName, Vec<(&'a ObjectName, &'a Sourced<EndpointSlice>)>> {
    let mut slices = BTreeMap::<_, Vec<_>>::new();
    for (name, sourced) in &resources.slices {
        let slice = &sourced.object;
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
            conditions.add(
                SLICE_KIND,
                name,
                &sourced.origin,
                "NoService",
                format!("the label {SERVICE_NAME} is missing, so it belongs to no service; add it"),
            );
            continue;
        };
        if slice.address_type == "FQDN" {
            conditions.add(
                SLICE_KIND,
                name,
                &sourced.origin,
                "AddressTypeUnsupported",
                "addressType FQDN names no addresses; use IPv4 or IPv6".to_owned(),
            );
            continue;
        }
        let service = ObjectName {
            namespace: name.namespace.clone(),
            name: service.clone(),
        };
        slices.entry(service).or_default().push((name, sourced));
    }
    slices
}

/// The specification of a service that is ours to balance.
fn ours<'a>(
    name: &ObjectName,
    sourced: &'a Sourced<core::Service>,
    conditions: &mut Conditions,
) -> Option<&'a core::ServiceSpec> {
    let spec = sourced.object.spec.as_ref()?;
    let labels = sourced.object.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(PROXY_NAME))
        || spec.cluster_ip.as_deref() == Some("None")
        || spec.type_.as_deref() == Some("ExternalName")
        || !spec.load_balancer_class.as_deref().is_none_or(is_our_class)
    {
        return None;
    }
    if spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .next()
        .is_some()
    {
        conditions.add(
            KIND,
            name,
            &sourced.origin,
            "SourceRangesUnsupported",
            "spec.loadBalancerSourceRanges cannot be enforced yet, so the service is left out rather than opened to all; remove the ranges to balance it"
                .to_owned(),
        );
        return None;
    }
    let mut unsupported = |field: &str, consequence: &str| {
        let message = format!("{field} is not acted on yet: {consequence}");
        conditions.add(KIND, name, &sourced.origin, "FieldUnsupported", message);
    };
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        unsupported(
            "spec.sessionAffinity ClientIP",
            "connections of one client go to several backends",
        );
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        unsupported(
            "spec.externalTrafficPolicy Local",
            "backends of all nodes are used; the client's address is kept all the same",
        );
    }
    Some(spec)
}

/// Load balancer classes that we answer to.
fn is_our_class(class: &str) -> bool {
    class == "io.cilium/bgp-control-plane" || class.starts_with("fairlead.io/")
}

/// A service of ours.
struct One<'a> {
    node_name: &'a str,
    name: &'a ObjectName,
    sourced: &'a Sourced<core::Service>,
    spec: &'a core::ServiceSpec,
    slices: &'a [(&'a ObjectName, &'a Sourced<EndpointSlice>)],
}

impl One<'_> {
    fn frontends(&self, conditions: &mut Conditions) -> Vec<(Frontend, Service)> {
        let mut all = Vec::new();
        for (addr, address_kinds) in self.addresses() {
            for port in self.spec.ports.iter().flatten() {
                let Some(proto) = self.proto(port, conditions) else {
                    continue;
                };
                let Ok(number) = u16::try_from(port.port) else {
                    unreachable!("ports were checked when the object was read")
                };
                let frontend = Frontend {
                    addr,
                    port: number,
                    proto,
                    scope: Scope::Outside,
                };
                let service = Service {
                    object: self.name.clone(),
                    labels: self
                        .sourced
                        .object
                        .metadata
                        .labels
                        .clone()
                        .unwrap_or_default(),
                    address_kinds: address_kinds.clone(),
                    backends: self.backends(frontend, port, conditions),
                    ..Service::default()
                };
                all.push((frontend, service));
            }
        }
        all
    }

    fn addresses(&self) -> BTreeMap<IpAddr, BTreeSet<AddressKind>> {
        let mut addresses = BTreeMap::<IpAddr, BTreeSet<AddressKind>>::new();
        let mut add = |text: &str, kind| {
            if let Ok(address) = text.parse() {
                addresses.entry(address).or_default().insert(kind);
            }
        };
        for text in self.spec.external_ips.iter().flatten() {
            add(text, AddressKind::External);
        }
        if self.spec.type_.as_deref() == Some("LoadBalancer") {
            if let Some(text) = &self.spec.load_balancer_ip {
                add(text, AddressKind::LoadBalancer);
            }
            let balancer = self
                .sourced
                .object
                .status
                .as_ref()
                .and_then(|status| status.load_balancer.as_ref());
            for ingress in balancer.iter().flat_map(|b| b.ingress.iter().flatten()) {
                if let Some(text) = &ingress.ip {
                    add(text, AddressKind::LoadBalancer);
                }
            }
        }
        addresses
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
                conditions.add(
                    KIND,
                    self.name,
                    &self.sourced.origin,
                    "ProtocolUnsupported",
                    message,
                );
                None
            }
        }
    }

    /// The backends of one port: those of the slices of the address's family.
    fn backends(
        &self,
        frontend: Frontend,
        port: &core::ServicePort,
        conditions: &mut Conditions,
    ) -> BTreeMap<BackendAddr, Backend> {
        let mut backends = BTreeMap::<BackendAddr, Backend>::new();
        let mut other_family = false;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        for (slice_name, slice) in self.slices {
            let matching = slice.object.ports.iter().flatten().find(|candidate| {
                candidate.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
                    && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            let Some(matching) = matching else {
                continue;
            };
            if (slice.object.address_type == "IPv4") != frontend.addr.is_ipv4() {
                other_family |= !slice.object.endpoints.is_empty();
                continue;
            }
            let target = matching
                .port
                .and_then(|number| u16::try_from(number).ok())
                .unwrap_or(frontend.port);
            let mut leaves_out = false;
            for endpoint in &slice.object.endpoints {
                // Kubernetes: the addresses of an endpoint are interchangeable; kube-proxy uses the
                // first.
                let Some(Ok(addr)) = endpoint.addresses.first().map(|text| text.parse()) else {
                    continue;
                };
                let found = self.backend(endpoint);
                if found.home == Home::Bare && target != frontend.port {
                    leaves_out = true;
                    continue;
                }
                let address = BackendAddr { addr, port: target };
                let backend = backends.entry(address).or_insert(found);
                backend.ready |= found.ready;
                backend.serving |= found.serving;
            }
            if leaves_out {
                conditions.add(
                    SLICE_KIND,
                    slice_name,
                    &slice.origin,
                    "PortRemapUnsupported",
                    format!(
                        "its port {target} differs from port {} of Service {}: backends without nodeName answer clients directly, so they must listen on the service's port; these are left out",
                        port.port, self.name
                    ),
                );
            }
        }
        if backends.is_empty() && other_family {
            conditions.add(
                KIND,
                self.name,
                &self.sourced.origin,
                "FamilyMismatch",
                format!(
                    "{frontend}: its backends are all of the other address family; add a slice of the address's family"
                ),
            );
        }
        backends
    }

    /// Absent conditions mean: ready, serving as it is ready (discovery.k8s.io/v1).
    fn backend(&self, endpoint: &Endpoint) -> Backend {
        let conditions = endpoint.conditions.as_ref();
        let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
        let ready = is_ready || self.spec.publish_not_ready_addresses == Some(true);
        Backend {
            ready,
            serving: is_serving || ready,
            weight: 1,
            home: match endpoint.node_name.as_deref() {
                Some(name) if name == self.node_name => Home::Here,
                Some(_) => Home::Elsewhere,
                None => Home::Bare,
            },
        }
    }
}
