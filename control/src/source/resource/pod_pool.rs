//! `cilium.io/v2alpha1 CiliumPodIPPool` and `cilium.io/v2 CiliumNode`: pools of pod addresses, and what of them each
//! node has.
//!
//! Cilium's operator reads the one and writes the other, in its multi-pool mode. Not here: what is announced of them
//! (`desired::merge`).

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::Check;

/// A `CiliumPodIPPool`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPool {
    /// `cilium.io/v2alpha1` or `cilium.io/v2`.
    pub api_version: String,
    /// `CiliumPodIPPool`.
    pub kind: String,
    /// Its name, and the labels by which advertisements select it.
    pub metadata: ObjectMeta,
    /// What it gives to nodes; only their shares, which stand in `CiliumNode`, matter here.
    #[serde(default)]
    pub spec: Value,
}

impl Check for PodPool {}

/// A `CiliumNode`, as far as its shares of pools.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct CiliumNode {
    /// Its name is the node's.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Spec,
}

impl Check for CiliumNode {
    /// Most of it is between Cilium's agent and operator.
    const IS_READ_WHOLE: bool = false;
}

/// What a `CiliumNode` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Spec {
    /// The addresses of its pods.
    #[serde(default)]
    pub ipam: Ipam,
}

/// The addresses of a node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Ipam {
    /// Those from pools.
    #[serde(default)]
    pub pools: Pools,
}

/// What a node has of pools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Pools {
    /// Its shares.
    #[serde(default)]
    pub allocated: Vec<Share>,
}

/// What a node has of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Share {
    /// The pool's name.
    pub pool: String,
    /// The prefixes that its pods get addresses from.
    #[serde(default)]
    pub cidrs: Vec<IpNetwork>,
}
