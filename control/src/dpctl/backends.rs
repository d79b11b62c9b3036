//! `dpctl backends`: how each stands, and taking them out of service and back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Outcome;
use super::args::{Backends, Global, OfService, Which};
use super::render::{Align::Left, Align::Right, age, endpoint, print, rows, say, share};
use super::run::dash;
use crate::api::client::{ask, order};
use crate::api::types::{Backend, DrainOutcome, Service};

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(500);

/// Asks or orders, and prints.
pub async fn run(global: &Global, verb: Option<Backends>, of: OfService) -> Result<Outcome> {
    match verb {
        None => list(global, &of).await,
        Some(Backends::List(of)) => list(global, &of).await,
        Some(Backends::Drain {
            which,
            wait,
            idle,
            timeout,
        }) => {
            let outcome = drain(global, &which).await?;
            match outcome {
                Outcome::Yes if wait => wait_until_idle(global, &which, idle, timeout).await,
                Outcome::Yes | Outcome::No | Outcome::NotAsked => Ok(outcome),
            }
        }
        Some(Backends::Undrain { which }) => undrain(global, &which).await,
    }
}

/// A backend of a service's address.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row<'a> {
    service: &'a str,
    service_address: &'a str,
    service_port: u16,
    protocol: &'a str,
    /// Slots of the service's ring.
    ring: u32,
    #[serde(flatten)]
    backend: &'a Backend,
}

/// The backends of a service.
pub(super) fn of(service: &Service) -> Vec<Row<'_>> {
    let backends = service.backends.iter();
    backends
        .map(|backend| Row {
            service: &service.name,
            service_address: &service.address,
            service_port: service.port,
            protocol: &service.protocol,
            ring: service.slots,
            backend,
        })
        .collect()
}

async fn list(global: &Global, only: &OfService) -> Result<Outcome> {
    let mut services: Vec<Service> = ask(&global.socket, "/v1/services").await?;
    if let Some(name) = &only.service {
        services.retain(|service| service.name == *name);
        if services.is_empty() {
            say(&format!(
                "no service is called {name:?}; `dpctl services` lists them"
            ));
            return Ok(Outcome::No);
        }
    }
    let all: Vec<_> = services.iter().flat_map(of).collect();
    print(global, &all, |wide| table(global, wide, &all))?;
    if all.is_empty() {
        say("no backends; EndpointSlice documents name them");
    }
    Ok(Outcome::Yes)
}

/// Draws backends.
pub(super) fn table(global: &Global, wide: bool, backends: &[Row<'_>]) -> String {
    let mut columns = vec![
        ("SERVICE", Left),
        ("ADDRESS", Left),
        ("BACKEND", Left),
        ("STATE", Left),
        ("RING", Right),
        ("PACKETS", Right),
        ("BYTES", Right),
        ("NEW FLOWS", Right),
    ];
    if wide {
        columns.extend([
            ("IN TRANSITION", Right),
            ("FORWARD", Left),
            ("NEXT HOP", Left),
            ("WEIGHT", Right),
            ("HEALTH", Left),
            ("SINCE", Right),
            ("NEXT CHECK", Right),
            ("LAST ERROR", Left),
        ]);
    }
    let lines = backends.iter().map(|row| {
        let backend = row.backend;
        let traffic = &backend.traffic;
        let mut cells = vec![
            row.service.to_owned(),
            format!(
                "{}/{}",
                endpoint(row.service_address, row.service_port),
                row.protocol
            ),
            endpoint(&backend.address, backend.port),
            backend.state.clone(),
            share(backend.slots, row.ring, ""),
            traffic.packets.to_string(),
            traffic.bytes.to_string(),
            // Of UDP nobody knows.
            if row.protocol == "tcp" {
                traffic.new_flows.to_string()
            } else {
                "-".to_owned()
            },
        ];
        if wide {
            cells.extend([
                traffic.in_transition.to_string(),
                backend.forward.clone(),
                backend.next_hop.clone().unwrap_or_else(|| "-".to_owned()),
                backend.weight.to_string(),
            ]);
            cells.extend(match &backend.health {
                None => ["-", "-", "-", "-"].map(str::to_owned),
                Some(health) => [
                    health.verdict.clone(),
                    age(health.since_s),
                    format!("{}ms", health.next_ms),
                    dash(health.last_error.as_deref().unwrap_or_default()),
                ],
            });
        }
        cells
    });
    rows(global, &columns, lines.collect())
}

async fn drain(global: &Global, which: &Which) -> Result<Outcome> {
    let outcome: DrainOutcome = order(&global.socket, &path("drain", which)).await?;
    print(global, &outcome, |_| {
        outcome
            .changed
            .iter()
            .map(|drain| format!("{drain} drained\n"))
            .collect()
    })?;
    if outcome.backends.is_empty() {
        say(&format!(
            "no service has a backend {}; `dpctl backends list` shows them",
            said(which)
        ));
        return Ok(Outcome::No);
    }
    if outcome.changed.is_empty() {
        say(&format!("{} was drained already", said(which)));
    }
    Ok(Outcome::Yes)
}

async fn undrain(global: &Global, which: &Which) -> Result<Outcome> {
    let outcome: DrainOutcome = order(&global.socket, &path("undrain", which)).await?;
    print(global, &outcome, |_| {
        outcome
            .changed
            .iter()
            .map(|drain| format!("{drain} undrained\n"))
            .collect()
    })?;
    if outcome.changed.is_empty() {
        say(&if outcome.drained.is_empty() {
            "nothing is drained".to_owned()
        } else {
            format!(
                "{} was not drained; drained are: {}",
                said(which),
                outcome.drained.join(", ")
            )
        });
        return Ok(Outcome::No);
    }
    Ok(Outcome::Yes)
}

fn path(verb: &str, which: &Which) -> String {
    let mut path = format!("/v1/backends/{verb}?address={}", which.backend.address);
    if let Some(port) = which.backend.port {
        path += &format!("&port={port}");
    }
    if let Some(service) = &which.of.service {
        path += &format!("&service={service}");
    }
    path
}

fn said(which: &Which) -> String {
    match &which.of.service {
        Some(service) => format!("{} of service {service}", which.backend),
        None => which.backend.to_string(),
    }
}

/// Waits until no packet has been sent to the backends for `idle`.
async fn wait_until_idle(
    global: &Global,
    which: &Which,
    idle: Duration,
    timeout: Duration,
) -> Result<Outcome> {
    let began = tokio::time::Instant::now();
    let mut seen = sent(global, which).await?;
    let mut last = began;
    while !seen.is_empty() && last.elapsed() < idle {
        if began.elapsed() >= timeout {
            say(&format!(
                "{} still gets packets after {}: flows that do not end stay until loadBalancer.drainWindow is over",
                said(which),
                age(timeout.as_secs())
            ));
            return Ok(Outcome::No);
        }
        tokio::time::sleep(LOOK).await;
        let now = sent(global, which).await?;
        if now != seen {
            (seen, last) = (now, tokio::time::Instant::now());
        }
    }
    say(&format!("{} gets no packets", said(which)));
    Ok(Outcome::Yes)
}

/// How many packets were sent to each of the backends; those whose row has gone get none.
async fn sent(global: &Global, which: &Which) -> Result<BTreeMap<(String, u16), u64>> {
    let services: Vec<Service> = ask(&global.socket, "/v1/services").await?;
    let address = which.backend.address.to_string();
    let backends = services.iter().flat_map(|service| &service.backends);
    Ok(backends
        .filter(|backend| backend.address == address && backend.forward != "-")
        .filter(|backend| which.backend.port.is_none_or(|port| port == backend.port))
        .map(|backend| ((address.clone(), backend.port), backend.traffic.packets))
        .collect())
}
