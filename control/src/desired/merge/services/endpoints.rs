//! Who serves a frontend: the endpoints of the service's slices as backends.
//!
//! Absent conditions of an endpoint mean ready, and serving as it is ready (discovery.k8s.io/v1). An endpoint
//! that is not ready serves the flows it has while it says so and terminates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::policy::Policy;
use super::topology::Near;
use super::{Conditions, One, SLICE_KIND};
use crate::desired::{Backend, BackendAddr, Forwarding, Frontend, Home, ObjectName};
use crate::source::resource::Sourced;

/// An endpoint that can serve a frontend.
struct Candidate<'a> {
    at: BackendAddr,
    backend: Backend,
    endpoint: &'a Endpoint,
}

/// A slice that has the port, and the number that its endpoints listen on.
struct Source<'a> {
    name: &'a ObjectName,
    slice: &'a Sourced<EndpointSlice>,
    port: i32,
}

impl One<'_> {
    /// Says when nobody at all serves a port.
    pub(super) fn expect_endpoints(&self, port: &core::ServicePort, conditions: &mut Conditions) {
        let mut endpoints = self
            .sources(port)
            .flat_map(|source| &source.slice.object.endpoints);
        if endpoints.next().is_none() {
            let named = port.name.as_deref().unwrap_or("");
            let message = format!(
                "port {} has no endpoint, so its packets are dropped (service-no-backend); add an EndpointSlice with the label {} and a port named {named:?}",
                port.port,
                super::SERVICE_NAME
            );
            self.say(conditions, "NoEndpoints", message);
        }
    }

    /// The slices that have a port of this name and protocol.
    fn sources(&self, port: &core::ServicePort) -> impl Iterator<Item = Source<'_>> {
        let wanted = port.name.clone().unwrap_or_default();
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let same = port.port;
        self.slices.iter().filter_map(move |(name, slice)| {
            let found = slice.object.ports.iter().flatten().find(|candidate| {
                candidate.name.as_deref().unwrap_or("") == wanted
                    && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
            })?;
            Some(Source {
                name,
                slice,
                port: found.port.unwrap_or(same),
            })
        })
    }

    /// The backends of a frontend, wherever they are: for clients outside, and for those inside.
    ///
    /// A service that asks for it by `trafficDistribution` has near backends for clients inside. To those outside the
    /// nodes must look alike, or a flow would end when the routers bring it to another one.
    pub(super) fn backends(
        &self,
        frontend: Frontend,
        port: &core::ServicePort,
        policy: &Policy,
        conditions: &mut Conditions,
    ) -> [Arc<BTreeMap<BackendAddr, Backend>>; 2] {
        let candidates = self.all_candidates(frontend, port, policy, conditions);
        let are_hints_for_all = self.around.config.topology_aware_hints;
        let outside = Arc::new(self.joined(are_hints_for_all, &candidates));
        let inside = if self.spec.traffic_distribution.is_some() && !are_hints_for_all {
            Arc::new(self.joined(true, &candidates))
        } else {
            Arc::clone(&outside)
        };
        [outside, inside]
    }

    fn all_candidates(
        &self,
        frontend: Frontend,
        port: &core::ServicePort,
        policy: &Policy,
        conditions: &mut Conditions,
    ) -> Vec<Candidate<'_>> {
        let is_own = |source: &Source<'_>| {
            (source.slice.object.address_type == "IPv4") == frontend.addr.is_ipv4()
        };
        let (own, other): (Vec<_>, Vec<_>) = self
            .sources(port)
            .filter(|source| !source.slice.object.endpoints.is_empty())
            .partition(is_own);
        let mut candidates = Vec::new();
        for source in &own {
            self.candidates(source, frontend, port, policy, &mut candidates, conditions);
        }
        if own.is_empty() && !other.is_empty() {
            // A tunnel carries either family over either.
            let crosses = matches!(policy.forwarding, Forwarding::DsrIpip | Forwarding::DsrGue);
            for source in other.iter().filter(|_| crosses) {
                self.candidates(source, frontend, port, policy, &mut candidates, conditions);
            }
            candidates.retain(|candidate| candidate.backend.home == Home::Bare);
            if candidates.is_empty() {
                let message = format!(
                    "{frontend}: its backends are all of the other address family; add a slice of the address's family, or, for hosts that unwrap, annotate the service with fairlead.io/forwarding: dsr-ipip"
                );
                self.say(conditions, "FamilyMismatch", message);
            }
        }
        candidates
    }

    /// The endpoints of a slice that can serve the frontend.
    fn candidates<'a>(
        &self,
        source: &Source<'a>,
        frontend: Frontend,
        port: &core::ServicePort,
        policy: &Policy,
        candidates: &mut Vec<Candidate<'a>>,
        conditions: &mut Conditions,
    ) {
        let Ok(target) = u16::try_from(source.port) else {
            unreachable!("ports were checked when the object was read")
        };
        let Source { name, slice, .. } = source;
        let mut seen = BTreeSet::new();
        let mut leaves_out = false;
        for endpoint in &slice.object.endpoints {
            // The addresses of an endpoint are interchangeable; kube-proxy uses the first.
            let Some(Ok(addr)) = endpoint.addresses.first().map(|text| text.parse()) else {
                continue;
            };
            if !seen.insert(addr) {
                // In slices beside each other this happens while endpoints move; in one it is a mistake.
                conditions.add(
                    SLICE_KIND,
                    name,
                    &slice.origin,
                    "DuplicateEndpoint",
                    format!("{addr} is listed twice and counts once; remove one of the two"),
                );
            }
            let home = self.home(endpoint, addr);
            let is_other = target != frontend.port && !policy.remaps(port.port, target);
            if home == Home::Bare && is_other {
                leaves_out = true;
                continue;
            }
            let mut backend = self.backend(endpoint, home);
            backend.weight = policy.weights.get(&addr).copied().unwrap_or(1);
            candidates.push(Candidate {
                at: BackendAddr { addr, port: target },
                backend,
                endpoint,
            });
        }
        if leaves_out {
            conditions.add(
                SLICE_KIND,
                name,
                &slice.origin,
                "PortRemapUnsupported",
                format!(
                    "its port {target} differs from port {} of Service {}: backends without nodeName answer clients directly, so they must listen on the port that clients name; these are left out; annotate the service with fairlead.io/forwarding: nat, or, where an agent runs beside the endpoints, name its node in them (nodeName)",
                    frontend.port, self.name
                ),
            );
        }
    }

    fn backend(&self, endpoint: &Endpoint, home: Home) -> Backend {
        let conditions = endpoint.conditions.as_ref();
        let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let terminates = conditions.and_then(|c| c.terminating).unwrap_or(false);
        let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
        let ready = is_ready || self.spec.publish_not_ready_addresses == Some(true);
        Backend {
            ready,
            serving: ready || (is_serving && terminates),
            weight: 1,
            home,
        }
    }

    /// A node of which there is no object is still another node: its agent may be there before its object is.
    fn home(&self, endpoint: &Endpoint, addr: IpAddr) -> Home {
        let node = self.around.node;
        if node.addresses.contains(&addr) {
            return Home::Here;
        }
        match endpoint.node_name.as_deref() {
            None | Some("") => Home::Bare,
            Some(name) if name == node.name => Home::Here,
            Some(_) => Home::Elsewhere,
        }
    }

    /// One backend for each address and port, those that are not near by their hints without a share.
    fn joined(
        &self,
        follows_hints: bool,
        candidates: &[Candidate<'_>],
    ) -> BTreeMap<BackendAddr, Backend> {
        let ready = candidates.iter().filter(|one| one.backend.ready);
        let near = if follows_hints {
            Near::of(ready.map(|one| one.endpoint), self.around.node)
        } else {
            Near::Any
        };
        let mut backends = BTreeMap::<BackendAddr, Backend>::new();
        for one in candidates {
            let mut found = one.backend;
            // Without a share it takes no new flow and keeps those it has. What terminates is not measured by
            // its distance: it serves only when nobody is ready.
            if found.ready && !near.covers(one.endpoint) {
                found.weight = 0;
            }
            let backend = backends.entry(one.at).or_insert(found);
            backend.weight = backend.weight.max(found.weight);
            backend.ready |= found.ready;
            backend.serving |= found.serving;
        }
        backends
    }
}
