//! Flows that are remembered, as `dpctl flows list` shows them.
//!
//! In the steady state only flows are that this node translates; beside them flows that begin while their slot is in
//! transition.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use anyhow::Result;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::service::{Backend, flags};
use fairlead_common::snat::{self, Binding};
use fairlead_common::tables;
use serde::Deserialize;

use super::{State, View, endpoint};
use crate::api::types;
use crate::dataplane::kept::Kept;
use crate::dataplane::observe;
use crate::dataplane::table::Pinned;
use crate::desired::Service;
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
    /// `GET /v1/flows`: the first ones that are meant, in the order of the tables, and how many there are.
    pub fn flows(&self, question: &FlowQuestion) -> Result<types::Flows> {
        let state = self.state.load_full();
        let known = Known::of(&state);
        let now_s = observe::now_s()?;
        let mut answer = types::Flows::default();
        let mut take = |flow: Remembered<'_>| {
            let service = known.services.get(&(flow.address, flow.proto)).copied();
            if !flow.is_meant(question, service) {
                return;
            }
            answer.all += 1;
            if answer.flows.len() < question.limit {
                answer.flows.push(flow.row(service, now_s));
            }
        };
        let in_transition: Pinned<tables::Flows> = Pinned::open(&self.pins)?;
        for row in in_transition.rows() {
            let (key, flow) = row?;
            take(Remembered {
                proto: key.proto,
                client: (key.src, key.src_port),
                address: (key.dst, key.dst_port),
                backend: state.actual.backends.get(&flow.backend),
                state: None,
                last_seen_s: flow.last_seen_s,
            });
        }
        let mut kept = HashSet::new();
        Kept::open(&self.pins)?.each(|_, flow| {
            let answer = flow.answer();
            kept.insert(answer);
            if !snat::is_expired(&flow.binding, answer.proto, now_s) {
                take(known.translated(&answer, &flow.binding));
            }
        })?;
        let recent: Pinned<tables::NatRecent> = Pinned::open(&self.pins)?;
        for row in recent.rows() {
            let (key, binding) = row?;
            if !snat::is_expired(&binding, key.proto, now_s) && !kept.contains(&key) {
                take(known.translated(&key, &binding));
            }
        }
        Ok(answer)
    }
}

/// What flows are told by.
struct Known<'a> {
    services: BTreeMap<((Addr, Port), Proto), &'a Service>,
    backends: BTreeMap<(Addr, Port), &'a Backend>,
}

impl<'a> Known<'a> {
    fn of(state: &'a State) -> Self {
        let services = state.desired.services.iter().map(|(frontend, service)| {
            let key = rows::key(frontend);
            (((key.addr, key.port), key.proto), &**service)
        });
        let backends = state.actual.backends.values();
        Self {
            services: services.collect(),
            backends: backends.map(|row| ((row.addr, row.port), row)).collect(),
        }
    }

    /// A flow that this node translates, by its answers.
    fn translated(&self, answer: &FlowKey, binding: &Binding) -> Remembered<'a> {
        Remembered {
            proto: answer.proto,
            client: (answer.dst, answer.dst_port),
            address: (binding.inside, binding.inside_port),
            backend: self.backends.get(&(answer.src, answer.src_port)).copied(),
            state: Some(snat::State::from_row(binding.state)),
            last_seen_s: binding.last_seen_s,
        }
    }
}

/// A flow of either memory.
struct Remembered<'a> {
    proto: Proto,
    client: (Addr, Port),
    address: (Addr, Port),
    backend: Option<&'a Backend>,
    /// How far it has come, when it is translated.
    state: Option<snat::State>,
    last_seen_s: u32,
}

impl Remembered<'_> {
    fn is_meant(&self, question: &FlowQuestion, service: Option<&Service>) -> bool {
        let is =
            |wanted: Option<IpAddr>, found: Option<IpAddr>| wanted.is_none() || wanted == found;
        let wanted = question.service.as_ref();
        wanted.is_none_or(|wanted| service.is_some_and(|one| one.object.to_string() == *wanted))
            && is(question.client, Some(self.client.0.ip()))
            && is(question.backend, self.backend.map(|row| row.addr.ip()))
    }

    fn row(&self, service: Option<&Service>, now_s: u32) -> types::Flow {
        let text = |(addr, port)| endpoint(addr, port);
        types::Flow {
            service: service.map(|service| service.object.to_string()),
            protocol: self.proto.to_string(),
            client: text(self.client),
            address: text(self.address),
            backend: self.backend.map(|row| rows::address(row).to_string()),
            alive: self
                .backend
                .is_some_and(|row| row.flags & flags::ALIVE != 0),
            translation: self.state.map(|state| state.name().to_owned()),
            idle_s: u64::from(now_s.saturating_sub(self.last_seen_s)),
        }
    }
}
