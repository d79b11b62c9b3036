//! What is read for one scrape of `/metrics`.

use std::collections::BTreeMap;

use anyhow::Result;
use fairlead_common::service::{Count, SLOTS_PER_PAGE};
use fairlead_common::tables::{self, Table as _};

use super::{BACKEND_STATES, View, announcement, backend_state, bfd_of, peer_row, peers_of};
use crate::bgp_io::Md5Drops;
use crate::dataplane::table::Pinned;
use crate::plan::{Actual, services as rows};
use crate::telemetry::metrics::{Figures, Service, Table};

impl View {
    /// `GET /metrics`: counters from the kernel, everything else as of the last round.
    ///
    /// # Errors
    /// A table of counters cannot be read.
    pub async fn figures(&self) -> Result<Figures> {
        let state = self.state.load_full();
        let counts: Pinned<tables::ServiceStats> = Pinned::open(&self.pins)?;
        let services = state.desired.services.iter().map(|(frontend, service)| {
            let key = rows::key(frontend);
            // One row after another: the table has a row per possible service and CPU.
            let count = match state.actual.services.get(&key) {
                Some(row) => counts.count(row.id)?,
                None => Count::default(),
            };
            let mut backends: BTreeMap<_, _> = BACKEND_STATES.map(|state| (state, 0)).into();
            for backend in service.backends.values() {
                *backends.entry(backend_state(*backend)).or_default() += 1;
            }
            Ok(Service {
                name: service.object.to_string(),
                address: frontend.addr.to_string(),
                port: frontend.port,
                protocol: frontend.proto.to_string(),
                packets: count.packets,
                bytes: count.bytes,
                scope: frontend.scope.name(),
                announced: service.is_announceable(frontend) && announcement(&state, frontend).0,
                backends,
            })
        });
        let services = services.collect::<Result<_>>()?;
        let mut conditions: BTreeMap<String, usize> = BTreeMap::new();
        for condition in &state.conditions {
            *conditions.entry(condition.reason.clone()).or_default() += 1;
        }
        let peers = peers_of(&state).await.into_iter();
        Ok(Figures {
            reasons: self.reasons()?,
            services,
            peers: peers
                .map(|(asn, peer)| peer_row(asn, peer, Md5Drops::default()))
                .collect(),
            bfd: bfd_of(&state).await,
            routes: state.routes.clone(),
            tables: full(&state.actual),
            attachments: state.attachments.clone(),
            conditions,
        })
    }
}

/// How full the tables are that a plan fills, as the last round knows them. Those that packets fill
/// would have to be walked; translations are counted where they are cleared away.
fn full(actual: &Actual) -> Vec<Table> {
    let slots = actual.rings.values().map(Vec::len).sum();
    [
        (
            tables::Services::NAME,
            actual.services.len(),
            tables::Services::CAPACITY,
        ),
        (
            tables::Backends::NAME,
            actual.backends.len(),
            tables::Backends::CAPACITY,
        ),
        (
            tables::Rings::NAME,
            slots,
            tables::Rings::CAPACITY * SLOTS_PER_PAGE,
        ),
        (
            tables::Devices::NAME,
            actual.devices.len(),
            tables::Devices::CAPACITY,
        ),
    ]
    .map(|(name, entries, capacity)| Table {
        name,
        entries: entries as u64,
        capacity: capacity.into(),
    })
    .into()
}
