//! Steps in words: what is done, and to which key.

use fairlead_common::addr::{Addr, Port};
use fairlead_common::service::{ServiceKey, SourceRange};

use crate::plan::Step;

/// Says what a step does and to which key, for people.
pub fn describe(step: &Step) -> String {
    let socket = |addr: Addr, port: Port| std::net::SocketAddr::new(addr.ip(), port.number());
    let frontend = |key: &ServiceKey| format!("{}/{}", socket(key.addr, key.port), key.proto);
    let source = |range: &SourceRange| {
        format!(
            "{}/{} to service id {}",
            range.addr.ip(),
            range.length(),
            range.service
        )
    };
    match step {
        Step::PutNode(_) => "write the node's row".to_owned(),
        Step::PutDevice(device) => format!("write device {}", device.ifindex),
        Step::RemoveDevice(row) => format!("empty device row {row}"),
        Step::PutNextHop(id, next_hop) => format!(
            "write next hop {id} ({} on device {})",
            next_hop.addr, next_hop.ifindex
        ),
        Step::RemoveNextHop(id) => format!("empty next hop {id}"),
        Step::PutBackend(id, backend) => format!(
            "write backend {id} ({})",
            socket(backend.addr, backend.port)
        ),
        Step::RemoveBackend(id) => format!("empty backend {id}"),
        Step::PutSlots { ring, slots } => {
            format!("write {} slots of the ring at {ring}", slots.len())
        }
        Step::PutSourceRange(range) => format!("let sources in ({})", source(range)),
        Step::RemoveSourceRange(range) => format!("keep sources out ({})", source(range)),
        Step::PutService(key, _) => format!("write service {}", frontend(key)),
        Step::RemoveService(key) => format!("remove service {}", frontend(key)),
        Step::PutAddress(addr, _) => format!("write address {addr}"),
        Step::RemoveAddress(addr) => format!("remove address {addr}"),
        Step::PutSieve(_) => "write the sieve of addresses".to_owned(),
        Step::ClearCounts { services, backends } => format!(
            "clear the counters of {} services and {} backends",
            services.len(),
            backends.len()
        ),
        Step::PutServing(key) => format!("look for answers of {}", socket(key.addr, key.port)),
        Step::RemoveServing(key) => {
            format!(
                "look no longer for answers of {}",
                socket(key.addr, key.port)
            )
        }
        Step::PutArrival(key, _) => format!(
            "take packets for {}/{} to {} out of tunnels",
            socket(key.service, key.port),
            key.proto,
            key.backend
        ),
        Step::RemoveArrival(key) => format!(
            "take no packets for {}/{} to {} out of tunnels",
            socket(key.service, key.port),
            key.proto,
            key.backend
        ),
        Step::ForgetFlows { services, backends } => {
            let services = services.iter().map(frontend);
            let backends = backends.iter().map(|id| format!("backend {id}"));
            let names: Vec<_> = services.chain(backends).collect();
            format!("forget flows of {}", names.join(", "))
        }
    }
}
