//! `dpctl services`: which services there are, and everything about one.

use anyhow::Result;

use super::Outcome;
use super::args::{Global, Services};
use super::render::{Align::Left, Align::Right, age, endpoint, print, rows, say, share};
use super::run::dash;
use crate::api::client::ask;
use crate::api::types::Service;

/// Asks and prints.
pub async fn run(global: &Global, verb: Option<Services>, name: Option<String>) -> Result<Outcome> {
    match verb {
        None => list(global, name.as_deref()).await,
        Some(Services::List { name }) => list(global, name.as_deref()).await,
        Some(Services::Get { name }) => get(global, &name).await,
    }
}

/// The services of a name or an address; those of all names without one.
async fn named(global: &Global, name: Option<&str>) -> Result<Vec<Service>> {
    let mut services: Vec<Service> = ask(&global.socket, "/v1/services").await?;
    if let Some(name) = name {
        services.retain(|service| {
            service.name == name
                || service.address == name
                || service.name.split('/').next_back() == Some(name)
        });
        if services.is_empty() {
            say(&format!(
                "no service is called {name:?} or has that address"
            ));
        }
    }
    Ok(services)
}

async fn list(global: &Global, name: Option<&str>) -> Result<Outcome> {
    let services = named(global, name).await?;
    if name.is_some() && services.is_empty() {
        return Ok(Outcome::No);
    }
    print(global, &services, |wide| table(global, wide, &services))?;
    hints(&services);
    if services.is_empty() {
        say("no services; put Service and EndpointSlice documents into the manifests folder");
    }
    Ok(Outcome::Yes)
}

fn table(global: &Global, wide: bool, services: &[Service]) -> String {
    let mut columns = vec![
        ("NAME", Left),
        ("ADDRESS", Left),
        ("CLIENTS", Left),
        ("ANNOUNCED", Left),
        ("BACKEND", Left),
        ("FORWARD", Left),
        ("RING", Right),
        ("PACKETS", Right),
        ("BYTES", Right),
    ];
    if wide {
        columns.extend([
            ("NEW FLOWS", Right),
            ("IN TRANSITION", Right),
            ("DROPS", Right),
            ("FORWARDING", Left),
            ("AFFINITY", Right),
            ("SOURCES", Left),
            ("HEALTH CHECK", Left),
        ]);
    }
    let mut lines = Vec::new();
    for service in services {
        let mut cells = vec![
            service.name.clone(),
            format!(
                "{}/{}",
                endpoint(&service.address, service.port),
                service.protocol
            ),
            service.scope.clone(),
            announced(service),
            String::new(),
            String::new(),
            share(
                service.slots.saturating_sub(service.slots_in_transition),
                service.slots,
                "steady",
            ),
            service.traffic.packets.to_string(),
            service.traffic.bytes.to_string(),
        ];
        if wide {
            cells.extend([
                service.traffic.new_flows.to_string(),
                service.traffic.in_transition.to_string(),
                service.drops.values().sum::<u64>().to_string(),
                service.forwarding.clone(),
                affinity(service),
                sources(service),
                dash(service.health_check.as_deref().unwrap_or_default()),
            ]);
        }
        lines.push(cells);
        for backend in &service.backends {
            let mut cells = vec![
                String::new(),
                format!("  {}", endpoint(&backend.address, backend.port)),
                String::new(),
                String::new(),
                backend.state.clone(),
                backend.forward.clone(),
                share(backend.slots, service.slots, ""),
                backend.traffic.packets.to_string(),
                backend.traffic.bytes.to_string(),
            ];
            if wide {
                cells.extend([
                    backend.traffic.new_flows.to_string(),
                    backend.traffic.in_transition.to_string(),
                    String::new(),
                ]);
                cells.extend(vec![String::new(); 4]);
            }
            lines.push(cells);
        }
    }
    rows(global, &columns, lines)
}

fn announced(service: &Service) -> String {
    match (service.announced, service.reason.as_str()) {
        (true, _) => "yes".to_owned(),
        (false, "") => "-".to_owned(),
        (false, reason) => format!("no ({reason})"),
    }
}

fn affinity(service: &Service) -> String {
    service.affinity_s.map_or_else(|| "-".to_owned(), age)
}

fn sources(service: &Service) -> String {
    match service.source_ranges.as_deref() {
        None => "all".to_owned(),
        Some([]) => "nobody".to_owned(),
        Some(ranges) => ranges.join(","),
    }
}

async fn get(global: &Global, name: &str) -> Result<Outcome> {
    let services = named(global, Some(name)).await?;
    if services.is_empty() {
        return Ok(Outcome::No);
    }
    print(global, &services, |_| {
        let told: Vec<_> = services
            .iter()
            .map(|service| details(global, service))
            .collect();
        told.join("\n")
    })?;
    hints(&services);
    Ok(Outcome::Yes)
}

fn details(global: &Global, service: &Service) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text += &format!("{name:<16}{value}\n");
    };
    line("Service", service.name.clone());
    line(
        "Address",
        format!(
            "{}/{}",
            endpoint(&service.address, service.port),
            service.protocol
        ),
    );
    line("Clients", service.scope.clone());
    let why = if service.announced {
        format!("yes: {}", service.reason)
    } else {
        announced(service)
    };
    line("Announced", why);
    line("Forwarding", service.forwarding.clone());
    line("Affinity", affinity(service));
    line("Sources", sources(service));
    line(
        "Ring",
        match service.slots {
            0 => "none".to_owned(),
            slots => format!(
                "{slots} slots, {} in transition",
                service.slots_in_transition
            ),
        },
    );
    line(
        "Health check",
        dash(service.health_check.as_deref().unwrap_or_default()),
    );
    let traffic = &service.traffic;
    line(
        "Traffic",
        format!(
            "{} packets, {} bytes, {} in transition",
            traffic.packets, traffic.bytes, traffic.in_transition
        ),
    );
    line(
        "New flows",
        if service.protocol == "tcp" {
            traffic.new_flows.to_string()
        } else {
            format!(
                "not known: {} does not say when a flow begins",
                service.protocol
            )
        },
    );
    let drops: Vec<_> = service
        .drops
        .iter()
        .map(|(reason, packets)| format!("{packets} {reason}"))
        .collect();
    line(
        "Drops",
        if drops.is_empty() {
            "0".to_owned()
        } else {
            drops.join(", ")
        },
    );
    text += "\n";
    text + &super::backends::table(global, true, &super::backends::of(service))
}

fn hints(services: &[Service]) {
    for service in services {
        if let Some(hint) = &service.hint {
            let address = endpoint(&service.address, service.port);
            say(&format!(
                "{} ({address}/{}): {hint}",
                service.name, service.protocol
            ));
        }
    }
}
