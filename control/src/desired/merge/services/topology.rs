//! Which endpoints are near: the hints of EndpointSlices, read as kube-proxy reads them.
//!
//! All or nothing (`topologyModeFromHints`, kubernetes/pkg/proxy/topology.go): hints count only when every
//! ready endpoint has them and one of them names this node or its zone; nodes come before zones.
//! `trafficDistribution` and topology aware routing both arrive here as hints.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints};

use crate::desired::NodeState;

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Whom the hints must name.
pub(super) enum Near<'a> {
    /// Nobody: all endpoints are used.
    Any,
    /// This node.
    Node(&'a str),
    /// This node's zone.
    Zone(&'a str),
}

impl<'a> Near<'a> {
    /// What the hints of a port's ready endpoints say for a node.
    pub(super) fn of<'e>(
        ready: impl Iterator<Item = &'e Endpoint> + Clone,
        node: &'a NodeState,
    ) -> Self {
        let by_node = Self::Node(&node.name);
        if by_node.holds(ready.clone()) {
            return by_node;
        }
        match node.labels.get(ZONE) {
            Some(zone) if Self::Zone(zone).holds(ready) => Self::Zone(zone),
            Some(_) | None => Self::Any,
        }
    }

    fn holds<'e>(&self, mut ready: impl Iterator<Item = &'e Endpoint> + Clone) -> bool {
        ready
            .clone()
            .all(|endpoint| self.hints(endpoint).next().is_some())
            && ready.any(|endpoint| self.covers(endpoint))
    }

    /// Whether an endpoint is near enough to be used.
    pub(super) fn covers(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Any => true,
            Self::Node(name) | Self::Zone(name) => self.hints(endpoint).any(|hint| hint == *name),
        }
    }

    fn hints<'e>(&self, endpoint: &'e Endpoint) -> impl Iterator<Item = &'e str> {
        let of = |pick: fn(&EndpointHints) -> Vec<&str>| {
            endpoint.hints.as_ref().map(pick).unwrap_or_default()
        };
        let names = match self {
            Self::Any => Vec::new(),
            Self::Node(_) => of(|hints| {
                let nodes = hints.for_nodes.iter().flatten();
                nodes.map(|node| node.name.as_str()).collect()
            }),
            Self::Zone(_) => of(|hints| {
                let zones = hints.for_zones.iter().flatten();
                zones.map(|zone| zone.name.as_str()).collect()
            }),
        };
        names.into_iter()
    }
}
