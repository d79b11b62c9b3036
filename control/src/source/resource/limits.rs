//! What Kubernetes' API server checks beyond types: addresses, prefixes and ports. A file has no API
//! server in front of it. Not here: fields that Fairlead does not read.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, Secret, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// Its path is asked for where something is wrong with it: clusters have many, and nearly all are right.
fn address(path: impl FnOnce() -> FieldPath, text: &str) -> Result<IpAddr, Wrong> {
    text.parse().map_err(|_| Wrong {
        path: path(),
        why: format!("{text:?} is not an IP address"),
    })
}

fn port(path: impl FnOnce() -> FieldPath, number: i32) -> Result<(), Wrong> {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err(Wrong {
        path: path(),
        why: format!("{number} is not within 1 to 65535"),
    })
}

/// A day, as the API server has it.
const LONGEST_AFFINITY_S: i32 = 86400;

fn affinity(service: &ServiceSpec, spec: &FieldPath) -> Result<(), Wrong> {
    let config = service.session_affinity_config.as_ref();
    let client = config.and_then(|config| config.client_ip.as_ref());
    let seconds = client.and_then(|client| client.timeout_seconds);
    if let Some(seconds) = seconds.filter(|s| !(1..=LONGEST_AFFINITY_S).contains(s)) {
        let path = spec.clone().key("sessionAffinityConfig").key("clientIP");
        return Err(Wrong {
            path: path.key("timeoutSeconds"),
            why: format!("{seconds} is not within 1 to {LONGEST_AFFINITY_S}"),
        });
    }
    Ok(())
}

impl Check for Node {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        let prefix = |path: FieldPath, text: &str| {
            text.parse::<IpNetwork>().map(|_| ()).map_err(|_| Wrong {
                path,
                why: format!("{text:?} is not a prefix such as 10.1.0.0/24"),
            })
        };
        if let Some(node) = &self.spec {
            if let Some(text) = &node.pod_cidr {
                prefix(spec.clone().key("podCIDR"), text)?;
            }
            for (index, text) in node.pod_cidrs.iter().flatten().enumerate() {
                prefix(spec.clone().key("podCIDRs").index(index), text)?;
            }
        }
        let addresses = self.status.iter().flat_map(|status| &status.addresses);
        for (index, entry) in addresses.flatten().enumerate() {
            if entry.type_ == "InternalIP" {
                let path = || FieldPath::default().key("status").key("addresses");
                address(|| path().index(index).key("address"), &entry.address)?;
            }
        }
        Ok(())
    }
}

impl Check for Service {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        if let Some(service) = &self.spec {
            if let Some(text) = service
                .load_balancer_ip
                .as_deref()
                .filter(|t| !t.is_empty())
            {
                address(|| spec.clone().key("loadBalancerIP"), text)?;
            }
            for (index, text) in service.external_ips.iter().flatten().enumerate() {
                address(|| spec.clone().key("externalIPs").index(index), text)?;
            }
            for (index, text) in service.cluster_ips.iter().flatten().enumerate() {
                if text != "None" {
                    address(|| spec.clone().key("clusterIPs").index(index), text)?;
                }
            }
            for (index, entry) in service.ports.iter().flatten().enumerate() {
                let path = || spec.clone().key("ports").index(index);
                port(|| path().key("port"), entry.port)?;
                // 0 is what the API server fills in.
                if let Some(number) = entry.node_port.filter(|number| *number != 0) {
                    port(|| path().key("nodePort"), number)?;
                }
            }
            if let Some(number) = service.health_check_node_port.filter(|n| *n != 0) {
                port(|| spec.clone().key("healthCheckNodePort"), number)?;
            }
            affinity(service, &spec)?;
            for (key, value, known) in [
                (
                    "sessionAffinity",
                    &service.session_affinity,
                    ["ClientIP", "None"],
                ),
                (
                    "externalTrafficPolicy",
                    &service.external_traffic_policy,
                    ["Cluster", "Local"],
                ),
                (
                    "internalTrafficPolicy",
                    &service.internal_traffic_policy,
                    ["Cluster", "Local"],
                ),
            ] {
                let unknown = value
                    .as_deref()
                    .filter(|text| !text.is_empty() && !known.contains(text));
                if let Some(text) = unknown {
                    let [first, second] = known;
                    return Err(Wrong {
                        path: spec.key(key),
                        why: format!("{text:?} is neither {first} nor {second}"),
                    });
                }
            }
        }
        let ingress = self
            .status
            .iter()
            .filter_map(|status| status.load_balancer.as_ref())
            .flat_map(|balancer| balancer.ingress.iter().flatten());
        for (index, entry) in ingress.enumerate() {
            if let Some(text) = &entry.ip {
                let path = || FieldPath::default().key("status").key("loadBalancer");
                address(|| path().key("ingress").index(index).key("ip"), text)?;
            }
        }
        Ok(())
    }
}

/// The API server checks no more of it than its types.
impl Check for Secret {}

impl Check for EndpointSlice {
    fn check(&self) -> Result<(), Wrong> {
        let root = FieldPath::default();
        for (index, entry) in self.ports.iter().flatten().enumerate() {
            if let Some(number) = entry.port {
                port(
                    || root.clone().key("ports").index(index).key("port"),
                    number,
                )?;
            }
        }
        let wants_v4 = match self.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => return Ok(()),
            other => {
                return Err(Wrong {
                    path: root.key("addressType"),
                    why: format!("{other:?} is not one of IPv4, IPv6 and FQDN"),
                });
            }
        };
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            for (place, text) in endpoint.addresses.iter().enumerate() {
                let path = || {
                    let endpoint = root.clone().key("endpoints").index(index);
                    endpoint.key("addresses").index(place)
                };
                if address(path, text)?.is_ipv4() != wants_v4 {
                    return Err(Wrong {
                        path: path(),
                        why: format!(
                            "{text} is not of addressType {}; use a slice per family",
                            self.address_type
                        ),
                    });
                }
            }
        }
        Ok(())
    }
}
