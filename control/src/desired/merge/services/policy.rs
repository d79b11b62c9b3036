//! What a service asks for beside addresses and ports: fields of its specification, and our annotations.
//!
//! A value that is not understood is a condition. It never opens a service to clients that it might have
//! meant to keep out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error, StrDeserializer};

use super::{Conditions, One};
use crate::desired::{Backend, BackendAddr, Forwarding, Home};

/// How packets get to backends without an agent: a [`Forwarding`].
const FORWARDING: &str = "fairlead.io/forwarding";
/// Shares of backends: `10.0.0.1=3, 10.0.0.2=0`; others have 1.
const WEIGHTS: &str = "fairlead.io/weights";
/// The greatest weight. With more, the smallest share of a ring of 65537 slots would round to none.
const GREATEST_WEIGHT: u32 = 65535;
/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY: Duration = Duration::from_hours(3);

/// What a service asks for.
pub(super) struct Policy {
    pub(super) forwarding: Forwarding,
    pub(super) weights: BTreeMap<IpAddr, u32>,
    pub(super) affinity: Option<Duration>,
    /// The only sources that are let in; none: all.
    pub(super) source_ranges: Option<BTreeSet<IpNetwork>>,
    /// Clients outside get backends of this node only.
    pub(super) external_local: bool,
    /// Clients of the cluster address get backends of this node only.
    pub(super) internal_local: bool,
}

impl Policy {
    pub(super) fn of(one: &One<'_>, conditions: &mut Conditions) -> Self {
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        Self {
            forwarding: forwarding(one, conditions),
            weights: weights(one, conditions),
            affinity: affinity(one),
            source_ranges: source_ranges(one, conditions),
            external_local: is_local(&one.spec.external_traffic_policy),
            internal_local: is_local(&one.spec.internal_traffic_policy),
        }
    }
}

impl Policy {
    /// Whether hosts without an agent may listen on `target` where clients name another port than that. That a node
    /// port is another one is no reason to translate for hosts that serve the service's own.
    pub(super) fn remaps(&self, port: i32, target: u16) -> bool {
        match self.forwarding {
            Forwarding::Nat => true,
            Forwarding::Auto => port != i32::from(target),
            Forwarding::DsrL2 | Forwarding::DsrIpip | Forwarding::DsrGue => false,
        }
    }

    /// How packets to a port get to these backends.
    pub(super) fn forwarding(
        &self,
        port: u16,
        backends: &BTreeMap<BackendAddr, Backend>,
    ) -> Forwarding {
        let mut bare = backends.iter().filter(|(_, one)| one.home == Home::Bare);
        if self.forwarding == Forwarding::Auto && bare.any(|(at, _)| at.port != port) {
            Forwarding::Nat
        } else {
            self.forwarding
        }
    }
}

fn annotation<'a>(one: &'a One<'_>, key: &str) -> Option<&'a str> {
    let annotations = one.sourced.object.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(key)).map(String::as_str)
}

fn forwarding(one: &One<'_>, conditions: &mut Conditions) -> Forwarding {
    let Some(text) = annotation(one, FORWARDING) else {
        return Forwarding::default();
    };
    let text: StrDeserializer<'_, Error> = text.trim().into_deserializer();
    Forwarding::deserialize(text).unwrap_or_else(|why| {
        let message = format!("annotation {FORWARDING}: {why}; auto is in force");
        one.say(conditions, "ForwardingUnknown", message);
        Forwarding::default()
    })
}

fn weights(one: &One<'_>, conditions: &mut Conditions) -> BTreeMap<IpAddr, u32> {
    let mut weights = BTreeMap::new();
    let text = annotation(one, WEIGHTS).unwrap_or("");
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let pair = part.split_once('=');
        let read = pair.and_then(|(addr, weight)| {
            let weight = weight.trim().parse().ok()?;
            Some((addr.trim().parse::<IpAddr>().ok()?, weight))
        });
        match read {
            Some((addr, weight)) if weight <= GREATEST_WEIGHT => {
                weights.insert(addr, weight);
            }
            Some(_) | None => {
                let message = format!(
                    "annotation {WEIGHTS}: {part:?} is not ADDRESS=WEIGHT with a weight of 0 to {GREATEST_WEIGHT}, as in 10.0.0.1=3; it has no effect"
                );
                one.say(conditions, "WeightUnreadable", message);
            }
        }
    }
    weights
}

fn affinity(one: &One<'_>) -> Option<Duration> {
    if one.spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = one.spec.session_affinity_config.as_ref();
    let client = config.and_then(|config| config.client_ip.as_ref());
    let seconds = client.and_then(|client| client.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Some(seconds.map_or(AFFINITY, Duration::from_secs))
}

/// Unlike kube-proxy's, ranges of one family close the service's addresses of the other one.
fn source_ranges(one: &One<'_>, conditions: &mut Conditions) -> Option<BTreeSet<IpNetwork>> {
    let texts = one.spec.load_balancer_source_ranges.as_ref();
    let texts = texts.filter(|texts| !texts.is_empty())?;
    let mut ranges = BTreeSet::new();
    for text in texts {
        let read = text.trim().parse::<IpNetwork>();
        match read.and_then(|range| IpNetwork::new(range.network(), range.prefix())) {
            Ok(range) => {
                ranges.insert(range);
            }
            Err(why) => {
                let message = format!(
                    "spec.loadBalancerSourceRanges: {text:?} is not a prefix such as 10.0.0.0/8 ({why}); who it meant to let in is kept out"
                );
                one.say(conditions, "SourceRangeUnreadable", message);
            }
        }
    }
    Some(ranges)
}
