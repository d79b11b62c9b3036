//! `cilium.io/v2 CiliumBGPNodeConfigOverride`: what differs on the node that it is named after.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::cluster_config::unique;
use super::field::within_if_any;
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `CiliumBGPNodeConfigOverride`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigOverride {
    /// `cilium.io/v2` or `cilium.io/v2alpha1`.
    pub api_version: String,
    /// `CiliumBGPNodeConfigOverride`.
    pub kind: String,
    /// The node's name.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Spec,
}

/// What an override says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Instances of the cluster configuration, by name.
    pub bgp_instances: Vec<Instance>,
}

/// What differs of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its BGP identifier.
    #[serde(rename = "routerID")]
    pub router_id: Option<Ipv4Addr>,
    /// The TCP port to listen on.
    #[serde(default, deserialize_with = "within_if_any::<u16, 1, 65535, _>")]
    pub local_port: Option<u16>,
    /// Our AS number.
    #[serde(
        rename = "localASN",
        default,
        deserialize_with = "within_if_any::<u32, 1, 4_294_967_295, _>"
    )]
    pub local_asn: Option<u32>,
    /// Its peers, by name.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// What differs of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The source address of our connections.
    pub local_address: Option<IpAddr>,
    /// The source port of our connections.
    #[serde(default, deserialize_with = "within_if_any::<u16, 1, 65535, _>")]
    pub local_port: Option<u16>,
}

impl Check for ConfigOverride {
    fn check(&self) -> Result<(), Wrong> {
        let list = FieldPath::default().key("spec").key("bgpInstances");
        let mut names = BTreeSet::new();
        for (index, instance) in self.spec.bgp_instances.iter().enumerate() {
            let path = list.clone().index(index);
            unique(&mut names, &path, &instance.name)?;
            if instance.router_id.is_some_and(|id| id.is_unspecified()) {
                return Err(Wrong {
                    path: path.key("routerID"),
                    why: "0.0.0.0 identifies nobody; choose an address of the node".to_owned(),
                });
            }
            let mut names = BTreeSet::new();
            for (index, peer) in instance.peers.iter().enumerate() {
                let path = path.clone().key("peers").index(index);
                unique(&mut names, &path, &peer.name)?;
            }
        }
        Ok(())
    }
}
