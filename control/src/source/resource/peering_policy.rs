//! `cilium.io/v2alpha1 CiliumBGPPeeringPolicy`, with Cilium's names, defaults and limits.
//!
//! Cilium 1.12 to 1.18 read it; 1.19 removed it. Not here: what it means for this node
//! (`desired::merge`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Deserializer};

use super::community::{Large, Standard, WellKnown};
use super::field::{check_selector, within};
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `CiliumBGPPeeringPolicy`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeeringPolicy {
    /// `cilium.io/v2alpha1`.
    pub api_version: String,
    /// `CiliumBGPPeeringPolicy`.
    pub kind: String,
    /// Its name and labels.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Spec,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The nodes it is for; absent or empty: all.
    pub node_selector: Option<LabelSelector>,
    /// BGP instances; at least one.
    pub virtual_routers: Vec<VirtualRouter>,
}

/// A BGP instance of a policy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualRouter {
    /// Our AS number.
    #[serde(rename = "localASN")]
    pub local_asn: u32,
    /// Announce the node's pod CIDRs. Default: no.
    #[serde(rename = "exportPodCIDR", default)]
    pub export_pod_cidr: bool,
    /// Announce what the node has of these pools of pod addresses; absent: none.
    #[serde(rename = "podIPPoolSelector")]
    pub pod_ip_pool_selector: Option<LabelSelector>,
    /// Announce these services; absent: none.
    pub service_selector: Option<LabelSelector>,
    /// Which of their addresses. Default: `LoadBalancerIP`.
    #[serde(default = "load_balancer_ip")]
    pub service_advertisements: Vec<ServiceAdvertisement>,
    /// Peers; at least one.
    pub neighbors: Vec<Neighbor>,
}

/// Which addresses of a service are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum ServiceAdvertisement {
    /// Those of the load balancer.
    LoadBalancerIP,
    /// Those of the cluster; not acted on.
    ClusterIP,
    /// `spec.externalIPs`.
    ExternalIP,
}

fn load_balancer_ip() -> Vec<ServiceAdvertisement> {
    vec![ServiceAdvertisement::LoadBalancerIP]
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbor {
    /// Its address, written as a prefix (`10.0.0.1/32`); the length says nothing.
    #[serde(deserialize_with = "address_of_prefix")]
    pub peer_address: IpAddr,
    /// Its TCP port. Default: 179.
    #[serde(default = "bgp_port", deserialize_with = "within::<u16, 1, 65535, _>")]
    pub peer_port: u16,
    /// Its AS number.
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    /// The Secret of its TCP MD5 password (RFC 2385), under the key `password`.
    pub auth_secret_ref: Option<String>,
    /// TTL towards it when it is external. Default: 1.
    #[serde(
        rename = "eBGPMultihopTTL",
        default = "one_hop",
        deserialize_with = "within::<u8, 1, 255, _>"
    )]
    pub ebgp_multihop_ttl: u8,
    /// Seconds between attempts to connect. Default: 120.
    #[serde(
        default = "connect_retry_s",
        deserialize_with = "within::<u32, 1, 2_147_483_647, _>"
    )]
    pub connect_retry_time_seconds: u32,
    /// Seconds without a message after which the session ends. Default: 90.
    #[serde(default = "hold_s", deserialize_with = "within::<u16, 3, 65535, _>")]
    pub hold_time_seconds: u16,
    /// Seconds between keepalives. Default: 30.
    #[serde(
        default = "keepalive_s",
        deserialize_with = "within::<u16, 1, 65535, _>"
    )]
    pub keep_alive_time_seconds: u16,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
    /// Address families. Default: IPv4 and IPv6 unicast.
    #[serde(default)]
    pub families: Vec<Family>,
    /// Attributes for some of the paths; those of load balancers' pools are not acted on.
    #[serde(default)]
    pub advertised_path_attributes: Vec<PathAttributes>,
}

/// Graceful restart (RFC 4724).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// Whether it is offered.
    #[serde(default)]
    pub enabled: bool,
    /// Seconds that a restart may take. Default: 120.
    #[serde(default = "restart_s", deserialize_with = "within::<u16, 1, 4095, _>")]
    pub restart_time_seconds: u16,
}

/// An address family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Family {
    /// `ipv4`, `ipv6`, `l2vpn`, `ls` or `opaque`.
    pub afi: String,
    /// `unicast` and others.
    pub safi: String,
}

/// Attributes for some of the paths.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathAttributes {
    /// What is selected.
    pub selector_type: SelectorType,
    /// Which of them; absent: all. With `PodCIDR` it selects nodes.
    pub selector: Option<LabelSelector>,
    /// Communities to attach.
    pub communities: Option<Communities>,
    /// LOCAL_PREF towards internal peers.
    pub local_preference: Option<u32>,
}

/// What path attributes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SelectorType {
    /// The pod CIDRs of the selected nodes.
    PodCIDR,
    /// Service addresses of the selected pools; not acted on.
    CiliumLoadBalancerIPPool,
    /// What the node has of the selected pools of pod addresses.
    CiliumPodIPPool,
}

/// Communities to attach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Communities {
    /// RFC 1997, as `64512:1` or a number.
    pub standard: Vec<Standard>,
    /// RFC 1997 by name.
    pub well_known: Vec<WellKnown>,
    /// RFC 8092, as `64512:1:2`.
    pub large: Vec<Large>,
}

const fn bgp_port() -> u16 {
    179
}
const fn one_hop() -> u8 {
    1
}
const fn connect_retry_s() -> u32 {
    120
}
const fn hold_s() -> u16 {
    90
}
const fn keepalive_s() -> u16 {
    30
}
const fn restart_s() -> u16 {
    120
}

fn address_of_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        let length = if address.is_ipv4() { 32 } else { 128 };
        return Err(serde::de::Error::custom(format!(
            "{address} must be written as a prefix: {address}/{length}"
        )));
    }
    match text.parse::<IpNetwork>() {
        Ok(prefix) => Ok(prefix.ip()),
        Err(_) => Err(serde::de::Error::custom(format!(
            "{text:?} is not an address in prefix form, such as 10.0.0.1/32"
        ))),
    }
}

impl Check for PeeringPolicy {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        if self.spec.virtual_routers.is_empty() {
            return Err(Wrong {
                path: spec.key("virtualRouters"),
                why: "is empty; list at least one".to_owned(),
            });
        }
        check_selector(&spec, "nodeSelector", self.spec.node_selector.as_ref())?;
        let mut asns = BTreeMap::new();
        for (index, router) in self.spec.virtual_routers.iter().enumerate() {
            let path = spec.clone().key("virtualRouters").index(index);
            if let Some(first) = asns.insert(router.local_asn, index) {
                return Err(Wrong {
                    path: path.key("localASN"),
                    why: format!(
                        "{} is that of virtualRouters[{first}] already; join the two",
                        router.local_asn
                    ),
                });
            }
            if router.neighbors.is_empty() {
                return Err(Wrong {
                    path: path.key("neighbors"),
                    why: "is empty; list at least one".to_owned(),
                });
            }
            check_selector(&path, "serviceSelector", router.service_selector.as_ref())?;
            let pools = router.pod_ip_pool_selector.as_ref();
            check_selector(&path, "podIPPoolSelector", pools)?;
            for (index, neighbor) in router.neighbors.iter().enumerate() {
                let own = path.clone().key("neighbors").index(index);
                for (index, paths) in neighbor.advertised_path_attributes.iter().enumerate() {
                    let own = own.clone().key("advertisedPathAttributes").index(index);
                    check_selector(&own, "selector", paths.selector.as_ref())?;
                }
                if neighbor.keep_alive_time_seconds > neighbor.hold_time_seconds {
                    return Err(Wrong {
                        path: path
                            .key("neighbors")
                            .index(index)
                            .key("keepAliveTimeSeconds"),
                        why: format!(
                            "{} is longer than holdTimeSeconds, which is {}; choose at most a third of it",
                            neighbor.keep_alive_time_seconds, neighbor.hold_time_seconds
                        ),
                    });
                }
            }
        }
        Ok(())
    }
}
