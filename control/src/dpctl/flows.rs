//! `dpctl flows`: the flows that the balancer remembers.

use anyhow::Result;

use super::Outcome;
use super::args::{FlowFilter, Flows, Global};
use super::render::{Align::Left, Align::Right, age, print, rows, say};
use crate::api::client::ask;
use crate::api::types;

/// Asks and prints.
pub async fn run(global: &Global, verb: Option<Flows>, filter: FlowFilter) -> Result<Outcome> {
    let filter = match verb {
        None => filter,
        Some(Flows::List(filter)) => filter,
    };
    let mut path = format!("/v1/flows?limit={}", filter.limit);
    let addresses = [("client", filter.client), ("backend", filter.backend)];
    for (name, address) in addresses {
        if let Some(address) = address {
            path += &format!("&{name}={address}");
        }
    }
    if let Some(service) = &filter.of.service {
        path += &format!("&service={service}");
    }
    let found: types::Flows = ask(&global.socket, &path).await?;
    print(global, &found.flows, |_| table(global, &found.flows))?;
    let left = found.all - found.flows.len();
    if left > 0 {
        say(&format!("{left} more; --limit shows them"));
    }
    if found.all == 0 {
        say(
            "no flow is remembered: only flows that this node translates are, and those that begin while a ring changes",
        );
    }
    Ok(Outcome::Yes)
}

fn table(global: &Global, flows: &[types::Flow]) -> String {
    let lines = flows.iter().map(|flow| {
        vec![
            flow.service.clone().unwrap_or_else(|| "-".to_owned()),
            flow.protocol.clone(),
            flow.client.clone(),
            flow.address.clone(),
            flow.backend.clone().unwrap_or_else(|| "-".to_owned()),
            if flow.alive { "alive" } else { "dead" }.to_owned(),
            flow.translation.clone().unwrap_or_else(|| "-".to_owned()),
            age(flow.idle_s),
        ]
    });
    let columns = [
        ("SERVICE", Left),
        ("PROTOCOL", Left),
        ("CLIENT", Left),
        ("ADDRESS", Left),
        ("BACKEND", Left),
        ("STATE", Left),
        ("TRANSLATION", Left),
        ("IDLE", Right),
    ];
    rows(global, &columns, lines.collect())
}
