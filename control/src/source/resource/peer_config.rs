//! `cilium.io/v2 CiliumBGPPeerConfig`: how peers are spoken to, and which advertisements they are told.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::field::{check_selector, within, within_if_any};
use super::peering_policy::GracefulRestart;
use super::{Check, Wrong};
use crate::source::located::FieldPath;

/// A `CiliumBGPPeerConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerConfig {
    /// `cilium.io/v2` or `cilium.io/v2alpha1`.
    pub api_version: String,
    /// `CiliumBGPPeerConfig`.
    pub kind: String,
    /// Its name.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Spec,
    /// Written by an operator; not read.
    pub status: Option<serde_json::Value>,
}

/// What a peer configuration says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Ports and the source of connections.
    pub transport: Transport,
    /// Timers of the session.
    pub timers: Timers,
    /// The Secret of its TCP MD5 password (RFC 2385), under the key `password`.
    pub auth_secret_ref: Option<String>,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
    /// TTL towards external peers. Default: 1.
    #[serde(deserialize_with = "within::<u8, 1, 255, _>")]
    pub ebgp_multihop: u8,
    /// Address families. Default: IPv4 and IPv6 unicast, and nothing is told.
    pub families: Vec<Family>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            timers: Timers::default(),
            auth_secret_ref: None,
            graceful_restart: None,
            ebgp_multihop: 1,
            families: Vec::new(),
        }
    }
}

/// Ports and the source of connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transport {
    /// The peer's TCP port. Default: 179.
    #[serde(deserialize_with = "within::<u16, 1, 65535, _>")]
    pub peer_port: u16,
    /// The source port of our connections (v2alpha1). Default: any.
    #[serde(deserialize_with = "within_if_any::<u16, 1, 65535, _>")]
    pub local_port: Option<u16>,
    /// The device whose address our connections come from; not acted on.
    pub source_interface: Option<String>,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            peer_port: 179,
            local_port: None,
            source_interface: None,
        }
    }
}

/// Timers of a session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timers {
    /// Seconds between attempts to connect. Default: 120.
    #[serde(deserialize_with = "within::<u32, 1, 2_147_483_647, _>")]
    pub connect_retry_time_seconds: u32,
    /// Seconds without a message after which the session ends. Default: 90.
    #[serde(deserialize_with = "within::<u16, 3, 65535, _>")]
    pub hold_time_seconds: u16,
    /// Seconds between keepalives. Default: 30.
    #[serde(deserialize_with = "within::<u16, 1, 65535, _>")]
    pub keep_alive_time_seconds: u16,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            connect_retry_time_seconds: 120,
            hold_time_seconds: 90,
            keep_alive_time_seconds: 30,
        }
    }
}

/// An address family, and what is told in it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Family {
    /// `ipv4`, `ipv6`, `l2vpn`, `ls` or `opaque`.
    pub afi: String,
    /// `unicast` and others.
    pub safi: String,
    /// The `CiliumBGPAdvertisement`s that are told, by their labels; absent: none.
    pub advertisements: Option<LabelSelector>,
}

impl Check for PeerConfig {
    fn check(&self) -> Result<(), Wrong> {
        let spec = FieldPath::default().key("spec");
        let timers = &self.spec.timers;
        if timers.keep_alive_time_seconds > timers.hold_time_seconds {
            return Err(Wrong {
                path: spec.key("timers").key("keepAliveTimeSeconds"),
                why: format!(
                    "{} is longer than holdTimeSeconds, which is {}; choose at most a third of it",
                    timers.keep_alive_time_seconds, timers.hold_time_seconds
                ),
            });
        }
        for (index, family) in self.spec.families.iter().enumerate() {
            let path = spec.clone().key("families").index(index);
            check_selector(&path, "advertisements", family.advertisements.as_ref())?;
        }
        Ok(())
    }
}
