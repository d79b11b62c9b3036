//! Where a service is reached: its addresses and ports, and the fields that name them.
//!
//! A load balancer class must be absent or name us for the load balancer's addresses to be ours; cluster
//! address, external addresses and node ports are ours whatever the class, as they are kube-proxy's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;

use super::One;
use crate::desired::AddressKind;
use crate::object::is_our_class;

/// Addresses and ports of one port of a service.
type Places = BTreeMap<(IpAddr, u16), BTreeSet<AddressKind>>;

impl One<'_> {
    /// Where one of the service's ports is reached.
    pub(super) fn places(&self, port: &core::ServicePort) -> Places {
        let mut places = Places::new();
        let mut add = |addr, port: i32, kind| {
            let Ok(number) = u16::try_from(port) else {
                unreachable!("ports were checked when the object was read")
            };
            places.entry((addr, number)).or_default().insert(kind);
        };
        for (addr, kind) in self.addresses() {
            add(addr, port.port, kind);
        }
        let kind = self.spec.type_.as_deref();
        let has_node_port = matches!(kind, Some("NodePort" | "LoadBalancer"));
        // A service without node ports (`allocateLoadBalancerNodePorts: false`) simply has none here.
        if let Some(node_port) = port.node_port.filter(|n| has_node_port && *n != 0) {
            for addr in self.node_port_addresses() {
                add(addr, node_port, AddressKind::Node);
            }
            // Where each node serves by its own backends, only that node knows them.
            if self.spec.external_traffic_policy.as_deref() != Some("Local") {
                let other_nodes = [
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Ipv6Addr::UNSPECIFIED.into(),
                ];
                for addr in other_nodes
                    .into_iter()
                    .filter(|addr| self.has_family(*addr))
                {
                    add(addr, node_port, AddressKind::Node);
                }
            }
        }
        places
    }

    /// The addresses that the service itself has.
    fn addresses(&self) -> Vec<(IpAddr, AddressKind)> {
        let mut addresses = Vec::new();
        let mut add = |text: &String, kind| {
            if let Ok(addr) = text.parse() {
                addresses.push((addr, kind));
            }
        };
        let cluster = self.spec.cluster_ips.iter().flatten();
        for text in cluster.chain(&self.spec.cluster_ip) {
            add(text, AddressKind::Cluster);
        }
        for text in self.spec.external_ips.iter().flatten() {
            add(text, AddressKind::External);
        }
        let class = self.spec.load_balancer_class.as_deref();
        if self.spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(is_our_class) {
            if let Some(text) = &self.spec.load_balancer_ip {
                add(text, AddressKind::LoadBalancer);
            }
            let status = self.sourced.object.status.as_ref();
            let balancer = status.and_then(|status| status.load_balancer.as_ref());
            for ingress in balancer.iter().flat_map(|b| b.ingress.iter().flatten()) {
                // Packets to an address of mode `Proxy` must go through the load balancer that has it.
                if let Some(text) = &ingress.ip
                    && ingress.ip_mode.as_deref() != Some("Proxy")
                {
                    add(text, AddressKind::LoadBalancer);
                }
            }
        }
        addresses
    }

    /// The addresses of this node that the service's node ports are reached at. Its own processes reach them at
    /// the loopback addresses too, as kube-proxy has it, unless the configuration names others.
    fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        let (node, prefixes) = (
            self.around.node,
            &self.around.config.node_port_addresses[..],
        );
        let internal = || {
            let v4 = node
                .ipv4
                .map(|v4| [IpAddr::V4(v4), Ipv4Addr::LOCALHOST.into()]);
            let v6 = node
                .ipv6
                .map(|v6| [IpAddr::V6(v6), Ipv6Addr::LOCALHOST.into()]);
            v4.into_iter().chain(v6).flatten()
        };
        let named = prefixes.iter().filter(|prefix| is_whole(prefix));
        let within = node
            .addresses
            .iter()
            .copied()
            .filter(|addr| prefixes.iter().any(|prefix| prefix.contains(*addr)));
        let addresses: BTreeSet<IpAddr> = if prefixes.is_empty() {
            internal().collect()
        } else {
            named.map(IpNetwork::ip).chain(within).collect()
        };
        addresses
            .into_iter()
            .filter(|addr| self.has_family(*addr))
            .collect()
    }

    /// Whether the service has this address's family: by its own word, its cluster addresses or its slices.
    fn has_family(&self, addr: IpAddr) -> bool {
        let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(families) = self.spec.ip_families.as_ref().filter(|f| !f.is_empty()) {
            return families.iter().any(|known| known == family);
        }
        let cluster = self.spec.cluster_ips.iter().flatten();
        let mut cluster = cluster
            .chain(&self.spec.cluster_ip)
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .peekable();
        if cluster.peek().is_some() {
            return cluster.any(|known| known.is_ipv4() == addr.is_ipv4());
        }
        self.slices
            .iter()
            .any(|(_, slice)| slice.object.address_type == family)
    }
}

/// Whether a prefix is one address.
fn is_whole(prefix: &IpNetwork) -> bool {
    prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 }
}
