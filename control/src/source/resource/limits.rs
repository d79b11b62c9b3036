//! What Kubernetes' API server checks beyond types: addresses, prefixes and ports. A file has no API
//! server in front of it. Not here: fields that Fairlead does not read.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Check, Wrong};
use crate::source::located::FieldPath;

fn address(path: FieldPath, text: &str) -> Result<IpAddr, Wrong> {
    text.parse().map_err(|_| Wrong {
        path,
        why: format!("{text:?} is not an IP address"),
    })
}

fn port(path: FieldPath, number: i32) -> Result<(), Wrong> {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err(Wrong {
        path,
        why: format!("{number} is not within 1 to 65535"),
    })
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
                let path = FieldPath::default().key("status").key("addresses");
                address(path.index(index).key("address"), &entry.address)?;
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
                address(spec.clone().key("loadBalancerIP"), text)?;
            }
            for (index, text) in service.external_ips.iter().flatten().enumerate() {
                address(spec.clone().key("externalIPs").index(index), text)?;
            }
            for (index, entry) in service.ports.iter().flatten().enumerate() {
                port(
                    spec.clone().key("ports").index(index).key("port"),
                    entry.port,
                )?;
            }
        }
        let ingress = self
            .status
            .iter()
            .filter_map(|status| status.load_balancer.as_ref())
            .flat_map(|balancer| balancer.ingress.iter().flatten());
        for (index, entry) in ingress.enumerate() {
            if let Some(text) = &entry.ip {
                let path = FieldPath::default().key("status").key("loadBalancer");
                address(path.key("ingress").index(index).key("ip"), text)?;
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
                port(root.clone().key("ports").index(index).key("port"), number)?;
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
                let path = root.clone().key("endpoints").index(index);
                let path = path.key("addresses").index(place);
                if address(path.clone(), text)?.is_ipv4() != wants_v4 {
                    return Err(Wrong {
                        path,
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
