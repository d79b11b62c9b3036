//! `fairlead.io/v1alpha1 BGPPeerProfile`: what Cilium's objects have no field for, for the BGP peers that
//! it selects. Cilium's own objects stay as they are.
//!
//! Not here: what it means for this node (`desired::merge`).

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::definition;
use super::field::{check_selector, within, within_if_any};
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `BGPPeerProfile`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerProfile {
    /// `fairlead.io/v1alpha1`.
    pub api_version: String,
    /// `BGPPeerProfile`.
    pub kind: String,
    /// Its name.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Spec,
}

/// What a profile says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in the configuration"
)]
pub struct Spec {
    /// The nodes it is for; absent or empty: all.
    #[serde(default)]
    #[schemars(schema_with = "definition::label_selector")]
    pub node_selector: Option<LabelSelector>,
    /// The peers it is for: those that one entry fits. Absent or empty: all.
    #[serde(default)]
    pub peers: Vec<PeerSelector>,
    /// The selected peer is not one router: all who dial from this many bits of its address are let in. Absent: it is
    /// one.
    pub range: Option<Range>,
    /// Watched by BFD; absent: not.
    pub bfd: Option<Bfd>,
    /// The peer is at most this many hops away: packets from farther are not taken (GTSM, RFC 5082).
    /// Absent: not looked at.
    #[serde(default, deserialize_with = "within_if_any::<u8, 1, 254, _>")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security_hops: Option<u8>,
    /// It is waited for, never dialled. Default: no.
    #[serde(default)]
    pub passive: bool,
    /// How many prefixes per family it may send before its session ends. Default: `bgp.maxPrefixes` of the
    /// configuration.
    #[serde(
        default,
        deserialize_with = "within_if_any::<u32, 1, 4_294_967_295, _>"
    )]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_prefixes: Option<u32>,
    /// No session, for this reason, which the peer is told (RFC 9003).
    #[schemars(length(max = 128))]
    pub shutdown: Option<String>,
    /// Our paths are about to go: the peer is asked to prefer others (RFC 8326). Default: no.
    #[serde(default)]
    pub graceful_shutdown: bool,
    /// It is told what other peers told, too. Default: no, a node is not a transit router.
    #[serde(default)]
    pub transit: bool,
    /// How many seconds after the restart time either side keeps the other's routes, for who has no better ones (RFC
    /// 9494). Absent: none. Needs `gracefulRestart` of the peer's `CiliumBGPPeerConfig`.
    #[serde(default, deserialize_with = "within_if_any::<u32, 1, 16_777_215, _>")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub long_lived_stale_seconds: Option<u32>,
    /// It may tell several paths per prefix; those that are equally good are used together (RFC 7911). Default: no.
    #[serde(default)]
    pub add_path: bool,
    /// What this node is to the peer, which is of another AS: routes that only customers may hear of are marked, and
    /// neither taken nor told where they would leak (RFC 9234). Absent: nothing is said of it.
    #[serde(default)]
    #[schemars(schema_with = "role")]
    pub role: Option<Role>,
    /// No session with a peer that does not say its own role. Default: no.
    #[serde(default)]
    pub role_strict: bool,
}

/// What a router is to its neighbour (RFC 9234 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It carries the peer's packets anywhere.
    Provider,
    /// It is a route server.
    RsServer,
    /// It is a client of a route server, which the peer is.
    RsClient,
    /// The peer carries its packets anywhere.
    Customer,
    /// Each carries only what is for itself and its customers.
    Peer,
}

/// Peers of which all that is said is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct PeerSelector {
    /// Its address is this one, or in this prefix.
    #[schemars(
        with = "Option<String>",
        regex(pattern = r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$")
    )]
    pub address: Option<IpNetwork>,
    /// Its AS number, as the peer's object says it.
    pub asn: Option<u32>,
    /// It is spoken to by the `CiliumBGPPeerConfig` of this name.
    pub peer_config: Option<String>,
}

/// Routers that are not named one by one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The bits of the peer's address that theirs have, too.
    #[serde(deserialize_with = "within::<u8, 1, 128, _>")]
    #[schemars(range(min = 1, max = 128))]
    pub prefix_length: u8,
    /// Their AS numbers. Absent or empty: the one that the peer's object says, or any when that is 0.
    #[serde(default)]
    pub asns: Vec<u32>,
    /// How many there may be at a time. Default: 32.
    #[serde(default = "limit", deserialize_with = "within::<u32, 1, 4096, _>")]
    #[schemars(range(min = 1, max = 4096))]
    pub limit: u32,
}

/// How a peer is watched by BFD (RFC 5880).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Packets that may be lost before the peer counts as gone. Default: 3.
    #[serde(default = "multiplier", deserialize_with = "within::<u8, 2, 255, _>")]
    #[schemars(range(min = 2, max = 255))]
    pub detect_multiplier: u8,
    /// The least milliseconds between two packets that we send. Default: 300.
    #[serde(
        default = "interval_ms",
        deserialize_with = "within::<u32, 10, 60_000, _>"
    )]
    #[schemars(range(min = 10, max = 60_000))]
    pub transmit_interval_milliseconds: u32,
    /// The least milliseconds between two packets that we can take. Default: 300.
    #[serde(
        default = "interval_ms",
        deserialize_with = "within::<u32, 10, 60_000, _>"
    )]
    #[schemars(range(min = 10, max = 60_000))]
    pub receive_interval_milliseconds: u32,
    /// The peer may be behind routers (RFC 5883). Default: when its `ebgpMultihop` is more than 1.
    pub multihop: Option<bool>,
    /// No BGP session unless BFD is up. Default: no.
    #[serde(default)]
    pub strict: bool,
}

/// An enumeration without the words `oneOf` and `const`, which an API server does not know.
fn role(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "nullable": true,
        "enum": ["provider", "rs-server", "rs-client", "customer", "peer"],
    })
}

const fn limit() -> u32 {
    32
}
const fn multiplier() -> u8 {
    3
}
const fn interval_ms() -> u32 {
    300
}

impl Check for PeerProfile {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        check_selector(&spec, "nodeSelector", self.spec.node_selector.as_ref())?;
        if self
            .spec
            .shutdown
            .as_ref()
            .is_some_and(|text| text.len() > 128)
        {
            return Err(Wrong {
                path: spec.key("shutdown"),
                why: "is longer than the 128 octets that a peer can be told".to_owned(),
            });
        }
        if self.spec.role_strict && self.spec.role.is_none() {
            return Err(Wrong {
                path: spec.key("roleStrict"),
                why: "needs a role; write role: customer, or what this node is".to_owned(),
            });
        }
        for (index, peer) in self.spec.peers.iter().enumerate() {
            if *peer == PeerSelector::default() {
                return Err(Wrong {
                    path: spec.key("peers").index(index),
                    why: "says nothing; leave `peers` out to select all".to_owned(),
                });
            }
        }
        Ok(())
    }
}
