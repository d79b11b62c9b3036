//! Rows as JSON: one shape per type of the registry, with lower camelCase names.
//!
//! Not for choosing rows, nor for tables on a terminal.

use std::collections::BTreeSet;

use fairlead_common::addr::{Addr, Cidr4, Proto};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::fragment::{FragmentKey, Ports};
use fairlead_common::nat::{NatFlow, NatWay};
use fairlead_common::reason::Reason;
use fairlead_common::route::{Device, Node, TxPort, device_flags, node_flags};
use fairlead_common::served::Sieve;
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, Count, NextHop, RingPage, Service, ServiceCopy, ServiceDrop,
    ServiceKey, Slot, SourceRange, Traffic, flags, forward, next_hop_flags, scope, service_flags,
};
use fairlead_common::snat::{Binding, EgressPort, State};
use fairlead_common::socket::{Client, Translation, Translations};
use serde_json::{Value, json};

/// A key or a value as JSON.
pub(super) trait ToJson {
    fn to_json(&self) -> Value;
}

impl ToJson for Addr {
    fn to_json(&self) -> Value {
        address(*self)
    }
}

impl ToJson for u64 {
    fn to_json(&self) -> Value {
        json!(self)
    }
}

impl ToJson for u32 {
    fn to_json(&self) -> Value {
        json!(self)
    }
}

fn address(addr: Addr) -> Value {
    if addr.is_none() {
        Value::Null
    } else {
        json!(addr.to_string())
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

impl ToJson for Node {
    fn to_json(&self) -> Value {
        let cidrs = |cidrs: &[Cidr4]| -> Vec<String> {
            cidrs
                .iter()
                .filter(|&&cidr| cidr != Cidr4::NONE)
                .map(ToString::to_string)
                .collect()
        };
        let buckets = |cells: &[u8]| cells.iter().copied().collect::<BTreeSet<u8>>();
        json!({
            "tunnelV4": address(self.tunnel_v4),
            "tunnelV6": address(self.tunnel_v6),
            "egress": address(self.egress),
            "egressIsLocal": self.flags & node_flags::EGRESS_IS_LOCAL != 0,
            "native": cidrs(&self.native),
            "pods": cidrs(&self.pods),
            "buckets": buckets(&self.buckets),
            "ownBuckets": buckets(&self.own_buckets),
            "namespace": self.namespace,
        })
    }
}

impl ToJson for Device {
    fn to_json(&self) -> Value {
        json!({ "ifindex": self.ifindex, "mac": mac(self.mac), "mtu": self.mtu, "noTurn": self.flags & device_flags::NO_TURN != 0 })
    }
}

impl ToJson for TxPort {
    fn to_json(&self) -> Value {
        json!({ "ifindex": self.ifindex, "program": self.program })
    }
}

impl ToJson for Sieve {
    fn to_json(&self) -> Value {
        json!({ "bits": self.bits() })
    }
}

impl ToJson for ServiceKey {
    fn to_json(&self) -> Value {
        json!({
            "addr": address(self.addr),
            "port": self.port.number(),
            "proto": self.proto.to_string(),
            "scope": if self.scope == scope::INSIDE { "inside" } else { "outside" },
        })
    }
}

impl ToJson for Service {
    fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "ring": self.ring,
            "slots": self.slots,
            "affinitySeconds": self.affinity_s,
            "sourceRanges": self.flags & service_flags::SOURCE_RANGES != 0,
        })
    }
}

impl ToJson for ServiceCopy {
    fn to_json(&self) -> Value {
        json!({ "key": self.key.to_json(), "service": self.service.to_json() })
    }
}

impl ToJson for SourceRange {
    fn to_json(&self) -> Value {
        json!({
            "service": self.service,
            "prefix": format!("{}/{}", self.addr.ip(), self.length()),
        })
    }
}

impl ToJson for Slot {
    fn to_json(&self) -> Value {
        json!({ "current": self.current, "previous": self.previous })
    }
}

impl ToJson for RingPage {
    fn to_json(&self) -> Value {
        self.iter().map(ToJson::to_json).collect()
    }
}

impl ToJson for Backend {
    fn to_json(&self) -> Value {
        let forward = match self.forward {
            forward::FREE => json!("free"),
            forward::L2 => json!("l2"),
            forward::ENCAPSULATE => json!("encapsulate"),
            forward::HERE => json!("here"),
            forward::GUE => json!("gue"),
            forward::NAT => json!("nat"),
            other => json!(other),
        };
        json!({
            "addr": address(self.addr),
            "port": self.port.number(),
            "forward": forward,
            "alive": self.flags & flags::ALIVE != 0,
            "stack": self.flags & flags::STACK != 0,
            "nextHop": self.next_hop,
        })
    }
}

impl ToJson for NextHop {
    fn to_json(&self) -> Value {
        json!({
            "ifindex": self.ifindex,
            "addr": address(self.addr),
            "source": mac(self.source),
            "destination": mac(self.destination),
            "mtu": self.mtu,
            "resolved": self.flags & next_hop_flags::RESOLVED != 0,
        })
    }
}

impl ToJson for FlowKey {
    fn to_json(&self) -> Value {
        let mut key = json!({
            "src": address(self.src),
            "srcPort": self.src_port.number(),
            "dst": address(self.dst),
            "dstPort": self.dst_port.number(),
            "proto": self.proto.to_string(),
        });
        if self.scope == scope::INSIDE {
            key["scope"] = json!("inside");
        }
        key
    }
}

impl ToJson for NatFlow {
    fn to_json(&self) -> Value {
        let mut binding = self.binding.to_json();
        binding["wayEpoch"] = json!(self.binding.whose);
        json!({ "answer": self.answer().to_json(), "binding": binding, "way": self.way })
    }
}

impl ToJson for NatWay {
    fn to_json(&self) -> Value {
        json!({ "device": self.device, "mac": mac(self.mac) })
    }
}

impl ToJson for ArrivalKey {
    fn to_json(&self) -> Value {
        json!({
            "service": address(self.service),
            "port": self.port.number(),
            "proto": self.proto.to_string(),
            "backend": address(self.backend),
        })
    }
}

impl ToJson for Arrival {
    fn to_json(&self) -> Value {
        json!({ "backend": self.backend, "service": self.service })
    }
}

impl ToJson for FragmentKey {
    fn to_json(&self) -> Value {
        json!({
            "src": address(self.src),
            "dst": address(self.dst),
            "id": self.id,
            "proto": Proto(self.proto as u8).to_string(),
        })
    }
}

impl ToJson for Ports {
    fn to_json(&self) -> Value {
        json!({
            "srcPort": self.src.number(),
            "dstPort": self.dst.number(),
            "seenSeconds": self.seen_s,
        })
    }
}

impl ToJson for Flow {
    fn to_json(&self) -> Value {
        json!({ "backend": self.backend, "lastSeenSeconds": self.last_seen_s })
    }
}

impl ToJson for Binding {
    fn to_json(&self) -> Value {
        json!({
            "inside": address(self.inside),
            "insidePort": self.inside_port.number(),
            "state": State::from_row(self.state).name(),
            "lastSeenSeconds": self.last_seen_s,
        })
    }
}

impl ToJson for EgressPort {
    fn to_json(&self) -> Value {
        json!({ "port": self.port.number() })
    }
}

impl ToJson for Translation {
    fn to_json(&self) -> Value {
        json!({
            "service": address(self.service),
            "servicePort": self.service_port.number(),
            "backend": self.id,
            "backendAddr": address(self.backend),
            "backendPort": self.backend_port.number(),
        })
    }
}

impl ToJson for Translations {
    fn to_json(&self) -> Value {
        self.rows.iter().map(ToJson::to_json).collect()
    }
}

impl ToJson for Client {
    fn to_json(&self) -> Value {
        json!({ "namespace": self.namespace, "service": self.service })
    }
}

impl ToJson for Traffic {
    fn to_json(&self) -> Value {
        json!({
            "packets": self.packets,
            "bytes": self.bytes,
            "newFlows": self.new_flows,
            "inTransition": self.in_transition,
        })
    }
}

impl ToJson for ServiceDrop {
    fn to_json(&self) -> Value {
        let reason = Reason::ALL.get(self.reason as usize);
        json!({
            "service": self.service,
            "reason": reason.map_or_else(|| self.reason.to_string(), ToString::to_string),
        })
    }
}

impl ToJson for Count {
    fn to_json(&self) -> Value {
        json!({ "packets": self.packets, "bytes": self.bytes })
    }
}
