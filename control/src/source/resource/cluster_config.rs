//! `cilium.io/v2 CiliumBGPClusterConfig`: which nodes speak BGP as whom, with whom.
//!
//! Not here: how a peer is spoken to (`peer_config`), what it is told (`advertisement`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::field::{check_selector, within, within_if_any};
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `CiliumBGPClusterConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// `cilium.io/v2` or `cilium.io/v2alpha1`.
    pub api_version: String,
    /// `CiliumBGPClusterConfig`.
    pub kind: String,
    /// Its name.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Spec,
    /// Written by an operator; not read.
    pub status: Option<serde_json::Value>,
}

/// What a cluster configuration says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The nodes it is for; absent or empty: all.
    pub node_selector: Option<LabelSelector>,
    /// BGP instances, 1 to 16, by name.
    pub bgp_instances: Vec<Instance>,
}

/// A BGP instance.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Its name, unique in the object.
    pub name: String,
    /// Our AS number; absent: an override must say it.
    #[serde(
        rename = "localASN",
        default,
        deserialize_with = "within_if_any::<u32, 1, 4_294_967_295, _>"
    )]
    pub local_asn: Option<u32>,
    /// The TCP port to listen on; absent: do not listen.
    #[serde(default, deserialize_with = "within_if_any::<u16, 1, 65535, _>")]
    pub local_port: Option<u16>,
    /// Its peers, by name.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A peer of an instance.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its name, unique in the instance.
    pub name: String,
    /// Its address.
    pub peer_address: Option<IpAddr>,
    /// Its AS number. Default: 0, whatever it says.
    #[serde(
        rename = "peerASN",
        default,
        deserialize_with = "within::<u32, 0, 4_294_967_295, _>"
    )]
    pub peer_asn: u32,
    /// The link that a link-local address is on.
    pub peer_interface: Option<String>,
    /// How its address is found.
    pub auto_discovery: Option<AutoDiscovery>,
    /// How it is spoken to; absent: by the defaults, and it is told nothing.
    pub peer_config_ref: Option<PeerConfigRef>,
}

/// How a peer's address is found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoDiscovery {
    /// Where it is sought.
    pub mode: Mode,
    /// With `DefaultGateway`: of which family.
    pub default_gateway: Option<DefaultGateway>,
    /// With `Unnumbered`: on which link.
    pub unnumbered: Option<Unnumbered>,
}

/// Where a peer is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mode {
    /// It is the gateway of the default route.
    DefaultGateway,
    /// It advertises itself as a router on a link.
    Unnumbered,
}

/// A link on which a peer is sought.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unnumbered {
    /// The device.
    pub interface: String,
}

impl AutoDiscovery {
    /// The field without which the mode means nothing.
    fn lacks(&self) -> Option<&'static str> {
        match self.mode {
            Mode::DefaultGateway => self.default_gateway.is_none().then_some("defaultGateway"),
            Mode::Unnumbered => self.unnumbered.is_none().then_some("unnumbered"),
        }
    }
}

/// The gateway of the default route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultGateway {
    /// `ipv4` or `ipv6`.
    pub address_family: AddressFamily,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The name of a `CiliumBGPPeerConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PeerConfigRef {
    /// `cilium.io`, in older manifests.
    pub group: Option<String>,
    /// `CiliumBGPPeerConfig`, in older manifests.
    pub kind: Option<String>,
    /// The object's name.
    pub name: String,
}

impl ClusterConfig {
    /// Whether the host's network says where one of its peers is.
    pub fn seeks_peers(&self) -> bool {
        let mut peers = self
            .spec
            .bgp_instances
            .iter()
            .flat_map(|instance| &instance.peers);
        peers.any(|peer| peer.auto_discovery.is_some() || peer.peer_interface.is_some())
    }
}

impl Check for ClusterConfig {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        check_selector(&spec, "nodeSelector", self.spec.node_selector.as_ref())?;
        let instances = &self.spec.bgp_instances;
        if !(1..=16).contains(&instances.len()) {
            return Err(Wrong {
                path: spec.key("bgpInstances"),
                why: format!("has {} entries; list 1 to 16", instances.len()),
            });
        }
        let mut names = BTreeSet::new();
        for (index, instance) in instances.iter().enumerate() {
            let path = spec.clone().key("bgpInstances").index(index);
            unique(&mut names, &path, &instance.name)?;
            let mut names = BTreeSet::new();
            for (index, peer) in instance.peers.iter().enumerate() {
                let path = path.clone().key("peers").index(index);
                unique(&mut names, &path, &peer.name)?;
                if peer.peer_address.is_none() && peer.auto_discovery.is_none() {
                    return Err(Wrong {
                        path: path.key("peerAddress"),
                        why: "is missing; write it, or autoDiscovery".to_owned(),
                    });
                }
                let lacks = peer.auto_discovery.as_ref().and_then(AutoDiscovery::lacks);
                if let (Some(field), None) = (lacks, peer.peer_address) {
                    return Err(Wrong {
                        path: path.key("autoDiscovery").key(field),
                        why: "is missing; its mode needs it".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a name of a list is there once.
pub(super) fn unique<'a>(
    names: &mut BTreeSet<&'a str>,
    path: &FieldPath,
    name: &'a str,
) -> Result<(), Wrong> {
    if names.insert(name) {
        return Ok(());
    }
    Err(Wrong {
        path: path.clone().key("name"),
        why: format!("{name:?} is taken in this list; give each entry its own"),
    })
}
