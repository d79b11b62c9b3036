//! What is read for one scrape of `/metrics`.

use std::collections::BTreeMap;

use anyhow::Result;
use fairlead_common::service::{SLOTS_PER_PAGE, Traffic};
use fairlead_common::tables::{self, Table as _};

use super::bgp::{bfd_of, peer_row, peers_of};
use super::services::{BACKEND_STATES, drops, state_of};
use super::{View, announcement};
use crate::bgp_io::Md5Drops;
use crate::dataplane::table::Pinned;
use crate::plan::{Actual, services as rows};
use crate::telemetry::metrics::{Backend, Figures, Service, Table};

impl View {
    /// `GET /metrics`: counters from the kernel, everything else as of the last round.
    ///
    /// # Errors
    /// A table of counters cannot be read.
    pub async fn figures(&self) -> Result<Figures> {
        let state = self.state.load_full();
        let counts: Pinned<tables::ServiceStats> = Pinned::open(&self.pins)?;
        let drops = drops(&Pinned::open(&self.pins)?)?;
        let services = state.desired.services.iter().map(|(frontend, service)| {
            let key = rows::key(frontend);
            // One row after another: the table has a row per possible service and CPU.
            let row = state.actual.services.get(&key);
            let count = match row {
                Some(row) => counts.count(&row.id)?,
                None => Traffic::default(),
            };
            let mut backends: BTreeMap<_, _> = BACKEND_STATES.map(|state| (state, 0)).into();
            for (at, backend) in service.backends.iter() {
                let state = state_of(&state, service, at, *backend);
                *backends.entry(state).or_default() += 1;
            }
            Ok(Service {
                name: service.object.to_string(),
                address: frontend.addr.to_string(),
                port: frontend.port,
                protocol: frontend.proto.to_string(),
                traffic: count,
                drops: row
                    .and_then(|row| drops.get(&row.id))
                    .cloned()
                    .unwrap_or_default(),
                scope: frontend.scope.name(),
                announced: service.is_announceable(frontend) && announcement(&state, frontend).0,
                backends,
            })
        });
        let services = services.collect::<Result<_>>()?;
        let backend_counts: Pinned<tables::BackendStats> = Pinned::open(&self.pins)?;
        let backends = state.actual.backends.iter().map(|(id, row)| {
            let at = rows::address(row);
            Ok(Backend {
                address: at.addr.to_string(),
                port: at.port,
                traffic: backend_counts.count(id)?,
            })
        });
        let backends = backends.collect::<Result<_>>()?;
        let mut conditions: BTreeMap<String, usize> = BTreeMap::new();
        for condition in &state.conditions {
            *conditions.entry(condition.reason.clone()).or_default() += 1;
        }
        let peers = peers_of(&state).await.into_iter();
        Ok(Figures {
            reasons: self.reasons()?,
            services,
            backends,
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
    let slots = actual.rings.values().map(|slots| slots.len()).sum();
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
