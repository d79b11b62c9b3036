//! Flows that are remembered, as `dpctl flows list` shows them.
//!
//! In the steady state there are none: only flows that begin while their slot is in transition are remembered.

use std::net::IpAddr;

use anyhow::Result;
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::service::{ServiceKey, flags};
use fairlead_common::tables;
use serde::Deserialize;

use super::{State, View, endpoint};
use crate::api::types;
use crate::dataplane::observe;
use crate::dataplane::table::Pinned;
use crate::plan::services as rows;

/// Which flows are meant; what is absent is not asked for.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct FlowQuestion {
    service: Option<String>,
    client: Option<IpAddr>,
    backend: Option<IpAddr>,
    #[serde(default)]
    limit: usize,
}

impl View {
    /// `GET /v1/flows`: the first ones that are meant, in the order of the table, and how many there are.
    pub fn flows(&self, question: &FlowQuestion) -> Result<types::Flows> {
        let state = self.state.load_full();
        let now_s = observe::now_s()?;
        let table: Pinned<tables::Flows> = Pinned::open(&self.pins)?;
        let mut answer = types::Flows::default();
        for row in table.rows() {
            let (key, flow) = row?;
            let row = flow_row(&state, &key, flow, now_s);
            if !is_meant(question, &state, &key, flow, &row) {
                continue;
            }
            answer.all += 1;
            if answer.flows.len() < question.limit {
                answer.flows.push(row);
            }
        }
        Ok(answer)
    }
}

fn flow_row(state: &State, key: &FlowKey, flow: Flow, now_s: u32) -> types::Flow {
    let outside = ServiceKey::new(key.dst, key.dst_port, key.proto);
    let mut services = state.desired.services.iter();
    let service = services.find(|(frontend, _)| {
        let key = rows::key(frontend);
        key == outside || key == outside.inside()
    });
    let backend = state.actual.backends.get(&flow.backend);
    types::Flow {
        service: service.map(|(_, service)| service.object.to_string()),
        protocol: key.proto.to_string(),
        client: endpoint(key.src, key.src_port),
        address: endpoint(key.dst, key.dst_port),
        backend: backend.map(|row| rows::address(row).to_string()),
        alive: backend.is_some_and(|row| row.flags & flags::ALIVE != 0),
        idle_s: u64::from(now_s.saturating_sub(flow.last_seen_s)),
    }
}

fn is_meant(
    question: &FlowQuestion,
    state: &State,
    key: &FlowKey,
    flow: Flow,
    row: &types::Flow,
) -> bool {
    let backend = state.actual.backends.get(&flow.backend);
    let is = |wanted: Option<IpAddr>, found: Option<IpAddr>| wanted.is_none() || wanted == found;
    (question.service.is_none() || question.service == row.service)
        && is(question.client, Some(key.src.ip()))
        && is(question.backend, backend.map(|row| row.addr.ip()))
}
